"""How a sweep deletes what is orphaned, and how work on all sessions goes on where one session fails.

A sweep finds what nobody needs by reading several collections, and they may be in the midst of a restore: then history
seems orphaned whose session document comes a minute later. So there is one rule for everything that a sweep deletes,
``Orphans``: it is marked first, and deleted by a later sweep, after the grace time, if it is orphaned then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bson.errors import BSONError
from pymongo.collection import Collection
from pymongo.errors import DocumentTooLarge, OperationFailure

from .._model.documents import Document
from .._model.limits import MAX_SHOWN_SESSIONS
from ..errors import MongoDBSessionError, described, shown
from .sending import UNAUTHORIZED

_MARKED: Document = {"orphaned_at": {"$exists": True}}
_UNMARKED: Document = {"orphaned_at": {"$not": {"$type": "date"}}}


class Orphans:
    """Deletes documents that have been orphaned for longer than the grace time: their mark ``orphaned_at`` tells.

    All times are the server's. Sweeps may be ended at any point, run again, and run several at once.

    Args:
        collection: Where they are.
        grace_seconds: How long a mark must have stood.
        delete: Deletes what meets a filter and returns how much that was; None: as the collection does it.
    """

    def __init__(
        self, collection: Collection[Any], grace_seconds: float, delete: Callable[[Document], int] | None = None
    ) -> None:
        self._collection = collection
        self._delete = delete or (lambda which: collection.delete_many(which).deleted_count)
        since = {"$subtract": ["$$NOW", round(grace_seconds * 1000)]}
        self._due: Document = {"orphaned_at": {"$type": "date"}, "$expr": {"$lte": ["$orphaned_at", since]}}

    def sweep(self, which: Document, orphaned: Callable[[], Document | None], *, marked: bool) -> int:
        """Delete what was marked long enough ago, mark what was not, and take the mark off what is orphaned no more.

        Args:
            which: The documents.
            orphaned: Returns, for certain, the filter of those of them that are orphaned now; None: none is. It is
                called right before anything is deleted.
            marked: Whether one of them had a mark when they were found. Without one, nothing is deleted.

        Returns:
            How many were deleted.
        """
        orphans = orphaned()
        deleted = 0
        if orphans is not None:
            if marked:
                deleted = self._delete({"$and": [orphans, self._due]})
            # Only now: no grace time is so short that one sweep both marks and deletes.
            mark = [{"$set": {"orphaned_at": "$$NOW"}}]
            if self._collection.update_many({"$and": [orphans, _UNMARKED]}, mark).modified_count:
                # Its owner may have come back in between, and another sweep have looked before there was a mark.
                marked, orphans = True, orphaned()
        if marked:
            back = [which, _MARKED] if orphans is None else [which, _MARKED, {"$nor": [orphans]}]
            self._collection.update_many({"$and": back}, {"$unset": {"orphaned_at": ""}})
        return deleted

    def sweep_together(self, which: Document, orphaned: Callable[[], bool], *, marked: bool) -> int:
        """Do the same with documents of which all are orphaned, or none: ``orphaned`` returns whether they are."""
        return self.sweep(which, lambda: which if orphaned() else None, marked=marked)


class Failures:
    """Errors of single sessions: each ends the work on its session only, and is raised when all others are done."""

    def __init__(self) -> None:
        self._sessions: dict[str, None] = {}
        self._first: Exception | None = None

    @contextmanager
    def of(self, session_id: str) -> Iterator[None]:
        """Keep an error of the work on one session. An error that every other session would meet is raised at once."""
        try:
            yield
        except (MongoDBSessionError, OperationFailure, DocumentTooLarge, BSONError) as error:
            if isinstance(error, OperationFailure) and (error.timeout or error.code == UNAUTHORIZED):
                raise
            self._sessions[session_id] = None
            self._first = self._first or error

    def tell(self, what: str) -> None:
        """Raise an error that names the sessions, if there are any.

        Args:
            what: What was not done, or not all of it.

        Raises:
            MongoDBSessionError: There are; its cause is the first error.
        """
        if self._first is None:
            return
        named = ", ".join(map(shown, list(self._sessions)[:MAX_SHOWN_SESSIONS]))
        others = len(self._sessions) - MAX_SHOWN_SESSIONS
        more = f" and {others} more" if others > 0 else ""
        raise MongoDBSessionError(
            f"{what} of session_id={named}{more}; all others are done. The first error: {described(self._first)}",
            session_id=next(iter(self._sessions)) if len(self._sessions) == 1 else None,
        ) from self._first
