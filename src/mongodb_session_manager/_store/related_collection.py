"""What segments and search documents have in common: how they are deleted and kept, and which are orphaned.

Both lie in a collection beside the sessions, and their ``_id`` begins ``{session, incarnation, agent, …}``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import ClassVar

from bson import ObjectId
from pymongo.collection import Collection
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import Primary

from .._model.documents import Document
from .._model.related_shapes import SegmentId
from .._statements import segments, sweeping
from .._statements.sessions import keep_until
from .sending import until_known
from .upkeep import Failures, Orphans

Holds = Callable[[str, Document], bool]
"""Returns for certain whether an expression is true of a session document: ``holds(session_id, expression)``."""


class RelatedCollection:
    """The segments, or the search documents, of the sessions of one collection.

    Args:
        sessions: The collection of the session documents.
        name: What their collection's name adds to that of the sessions.

    Attributes:
        collection: Where they are.
        number: The field of ``_id`` that is a number.
    """

    number: ClassVar[str]

    def __init__(self, sessions: Collection[Document], name: str) -> None:
        self.collection: Collection[Document] = sessions.database.get_collection(
            f"{sessions.name}_{name}", codec_options=sessions.codec_options, read_preference=sessions.read_preference
        )

    def delete_session(self, session_id: str, incarnation: ObjectId) -> None:
        """Delete all documents of one incarnation of a session."""
        which = {"_id": segments.segments_of(session_id, incarnation)}
        until_known(lambda: self.collection.delete_many(which))

    def keep(self, session_id: str, incarnation: ObjectId, until: datetime) -> None:
        """Let all documents of one incarnation of a session expire no sooner than this."""
        which = {"_id": segments.segments_of(session_id, incarnation)}
        until_known(lambda: self.collection.update_many(which, keep_until(until)))

    def let_expire(self, session_id: str, incarnation: ObjectId, until: datetime) -> bool:
        """Give an expiry to those of one incarnation of a session that have none; return whether there was one."""
        which = {"_id": segments.segments_of(session_id, incarnation), "expires_at": None}
        result = until_known(lambda: self.collection.update_many(which, {"$set": {"expires_at": until}}))
        return bool(result.modified_count)

    def sweep(
        self, sessions: str, holds: Holds, grace_seconds: float, failures: Failures, *, but: Sequence[SegmentId] = ()
    ) -> int:
        """Sweep the documents of incarnations that are over; return how many were deleted.

        Args:
            sessions: Name of the collection of the session documents.
            holds: Tells for certain what a session document is like.
            grace_seconds: See ``Orphans``.
            failures: Takes errors of single sessions.
            but: The ``_id`` of those that are left alone: orphaned though their session lives.
        """
        orphans = Orphans(self.collection, grace_seconds)
        deleted = 0
        to_sweep = sweeping.incarnations_to_sweep(sessions, self.number)
        with self._majority().aggregate(to_sweep, allowDiskUse=True) as incarnations:
            for found in incarnations:
                with failures.of(found["_id"]["session"]):
                    deleted += self._sweep_incarnation(orphans, holds, found, but)
        return deleted

    def _sweep_incarnation(self, orphans: Orphans, holds: Holds, found: Document, but: Sequence[SegmentId]) -> int:
        session_id, incarnation = found["_id"]["session"], found["_id"]["incarnation"]
        ids = {**segments.segments_of(session_id, incarnation), "$nin": list(but)}
        which = {"_id": ids, "$expr": sweeping.says_whose("$_id", self.number)}
        may_exist = sweeping.may_be_incarnation(incarnation)
        return orphans.sweep_together(which, lambda: not holds(session_id, may_exist), marked=found["marked"])

    def _majority(self) -> Collection[Document]:
        """Return the collection as it will be after any failover: what decides a deletion is read there."""
        return self.collection.with_options(read_preference=Primary(), read_concern=ReadConcern("majority"))
