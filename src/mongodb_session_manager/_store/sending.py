"""How often, and how soon, a command is sent again; which error codes of the server are looked at."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from pymongo.errors import AutoReconnect, DuplicateKeyError, ServerSelectionTimeoutError

from .._model.limits import MAX_BACK_OFF_SECONDS, MAX_RECONNECTS, MAX_WRITE_ATTEMPTS
from ..errors import SessionConflictError

T = TypeVar("T")

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


def attempts(what: str, session_id: str | None = None) -> Iterator[int]:
    """Yield how often something was tried before, with a pause in between.

    Every loop that reads how something stands and then sends what is right for that runs over this.

    Args:
        what: For the error: what could not be done, and of which session.
        session_id: For the error: the session.

    Raises:
        SessionConflictError: It was tried too often.
    """
    for times in range(MAX_WRITE_ATTEMPTS):
        if times:
            back_off(times - 1)
        yield times
    raise SessionConflictError(f"{what}: other writers came first {MAX_WRITE_ATTEMPTS} times", session_id=session_id)


def is_there(error: DuplicateKeyError) -> bool:
    """Return whether an insert failed because there is a document with its ``_id``.

    Otherwise a unique index of the application's own has refused it, and trying again is of no use.
    """
    pattern = (error.details or {}).get("keyPattern")
    return pattern is None or dict(pattern) == {"_id": 1}


def until_known(send: Callable[[], T]) -> T:
    """Send a command until its outcome is known; it must be guarded or idempotent, for it may arrive twice."""
    reconnects = 0
    while True:
        try:
            return send()
        except ServerSelectionTimeoutError:
            raise  # Nothing was sent, and PyMongo has waited long enough.
        except AutoReconnect:
            # Sent or not, nobody knows.
            if reconnects == MAX_RECONNECTS:
                raise
            back_off(reconnects)
            reconnects += 1


def back_off(times: int) -> None:
    """Wait a moment, longer and more random each time, so that writers that collided do not collide again."""
    time.sleep(random.uniform(0, min(MAX_BACK_OFF_SECONDS, 0.001 * 2 ** min(times, 10))))
