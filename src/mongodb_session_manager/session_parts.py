"""What a session has in a collection beside its own: documents whose ``_id`` begins ``{session, incarnation, …}``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from bson import ObjectId
from pymongo.collection import Collection
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import Primary

from . import statements
from .documents import Document
from .sending import until_known


class SessionParts:
    """Deletes such documents, and moves the time on at which they expire.

    Attributes:
        collection: Where they are.
    """

    collection: Collection[Document]

    def delete_session(self, session_id: str, incarnation: ObjectId) -> None:
        """Delete all documents of one life of a session."""
        which = {"_id": statements.segments_of(session_id, incarnation)}
        until_known(lambda: self.collection.delete_many(which))

    def keep(self, session_id: str, incarnation: ObjectId, until: datetime) -> None:
        """Let all documents of one life of a session expire no sooner than this."""
        which = {"_id": statements.segments_of(session_id, incarnation)}
        until_known(lambda: self.collection.update_many(which, statements.keep_parts(until)))

    def let_expire(self, session_id: str, incarnation: ObjectId, until: datetime) -> bool:
        """Give an expiry to those of one life of a session that have none; return whether there was one."""
        which = {"_id": statements.segments_of(session_id, incarnation), "expires_at": None}
        result = until_known(lambda: self.collection.update_many(which, {"$set": {"expires_at": until}}))
        return bool(result.modified_count)

    def delete_ended(self, sessions: str, is_over: Callable[[str, ObjectId], bool]) -> int:
        """Delete those of lives of sessions that are over; return how many. A life that is over never returns.

        Args:
            sessions: Name of the collection of the session documents.
            is_over: Returns for certain whether a life is over.
        """
        with self._settled().aggregate(statements.ended_lives(sessions), allowDiskUse=True) as lives:
            return sum(
                self.collection.delete_many(
                    {"_id": statements.segments_of(life["_id"]["session"], life["_id"]["incarnation"])}
                ).deleted_count
                for life in lives
                if is_over(life["_id"]["session"], life["_id"]["incarnation"])
            )

    def _settled(self) -> Collection[Document]:
        """Return the collection as it will be after any failover: what decides a deletion is read there."""
        return self.collection.with_options(read_preference=Primary(), read_concern=ReadConcern("majority"))
