"""The server's error codes that are looked at, and what each means here."""

from __future__ import annotations

UNAUTHORIZED = 13
"""The user has no right to this command."""

INDEX_NOT_FOUND = 27
"""A text search without its index: no message was indexed yet."""

PATH_NOT_VIABLE = 28
"""A metadata key leads through a field that is no document."""

NAMESPACE_EXISTS = 48
"""The collection or view is there."""

NOT_A_LIST_OR_NUMBER = frozenset((2, 14))
"""The field to push to is no list, or the one to add to no number (BadValue, TypeMismatch)."""

DOCUMENT_TOO_LARGE = frozenset((10334, 17419, 17420))
"""The update would make a document larger than 16 MB."""

INDEX_REFUSED = frozenset((UNAUTHORIZED, 67, 85, 86))
"""An index that will be refused as long as the collection and the user's rights are as they are.

Unauthorized, too many indexes (67), or one of the application's own with the same keys (85) or the same name (86) and
other options.
"""

WATCHING_REFUSED = frozenset((UNAUTHORIZED, 18, 59, 115, 40573))
"""A change stream that will never be granted: the user may not (Unauthorized, AuthenticationFailed), or the server has
none (CommandNotFound, CommandNotSupported, "only supported on replica sets").
"""
