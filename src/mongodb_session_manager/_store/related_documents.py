"""Related documents (segments, blobs, search documents): how long they are kept, when they are deleted and swept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from bson import ObjectId
from bson.raw_bson import RawBSONDocument

from .._model.encoding import PendingBlobs
from .._model.expiry import FOREVER, NOT_EXPIRED, expiry_of_new_related, related_kept_until, related_needed_until
from .._model.related_shapes import BlobOwner
from .._statements import sessions
from .._statements.sessions import SessionRef, Standing
from .history import History
from .search_index import SearchIndex
from .sending import attempts
from .session_commands import SessionCommands, has_expired, now
from .upkeep import BlobSweep, Failures


@dataclass(eq=False)
class RelatedDocuments:
    """Sees to it that the related documents of a session live as long as the session, and no longer.

    Attributes:
        commands: About session documents.
        history: About segments.
        search: About search documents.
    """

    commands: SessionCommands
    history: History
    search: SearchIndex

    def has_indexed(self, session_id: str) -> bool:
        """Return whether messages of a session may be in the search."""
        found = self.commands.find_one({"_id": session_id}, {"indexed": sessions.ANY_INDEXED})
        return bool(found and found["indexed"])

    def delete_related(self, session_id: str, incarnation: ObjectId | None, *, indexed: bool) -> None:
        """Delete the related documents of an incarnation that is over; those of the search only if it was indexed."""
        if incarnation is None:
            return  # An older document has none.
        self.history.delete_session(session_id, incarnation)
        self.commands.blobs.delete_session(session_id, incarnation)
        if indexed:
            self.search.delete_session(session_id, incarnation)

    def see_to_expiry(self, session: SessionRef, standing: Standing) -> None:
        """Let a session's related documents live longer where this writer is about to let the session outlive them.

        Args:
            session: Whose, with the writer's ttl.
            standing: How the session stands.
        """
        session_id, incarnation, found = session.session_id, standing.incarnation, standing.found
        promised = standing.parts_expire_at
        if session.ttl is not None:
            if promised is None or promised >= related_needed_until(now() + session.ttl, session.ttl):
                return
            until = related_kept_until(now(), session.ttl)
        elif standing.ttl_hours is None:
            return
        elif promised is None or promised >= FOREVER:
            self.commands.update(sessions.end_expiry(session_id, found))
            return
        else:
            until = FOREVER
        # Or as long as somebody else is just making them live, or was when it died.
        until = max(until, standing.parts_moving_to or until)
        if self.commands.update(sessions.announce_move(session_id, found, until)):
            self.history.keep(session_id, incarnation, until)
            self.commands.blobs.keep_session(session_id, incarnation, until, standing.now)
            if standing.any_indexed:
                self.search.keep(session_id, incarnation, until)
            self.commands.update(sessions.confirm_move(session_id, found, until))

    def let_related_expire(self, session: SessionRef) -> None:
        """Give an expiry to the related documents that a session had before it got a ttl.

        The session document comes first: from then on nobody lets the session live longer than that without letting
        its related documents live longer, too. Those that have got an expiry meanwhile are not touched here.
        """
        assert session.ttl is not None
        assert session.incarnation is not None
        session_id, incarnation = session.session_id, session.incarnation
        began, until = self.commands.blobs.server_time(), related_kept_until(now(), session.ttl)
        if self.commands.update(sessions.begin_expiry(session_id, incarnation, until)):
            self.history.let_expire(session_id, incarnation, until)
            if self.has_indexed(session_id):
                self.search.let_expire(session_id, incarnation, until)
            self.commands.blobs.let_expire(session_id, incarnation, until, before=began)

    def upload(self, session: SessionRef, key: str, message_id: int | None, blobs: PendingBlobs) -> SessionRef:
        """Store the blobs of a message, or of the state of an agent, before the commit that names them.

        Returns:
            The session, of the incarnation that the blobs belong to: the only one whose documents may name them.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        if not blobs.blobs:
            return session
        incarnation = session.incarnation or self.commands.standing(session).incarnation
        owner = BlobOwner(session=session.session_id, incarnation=incarnation, agent=key, message=message_id)
        self.commands.blobs.upload(blobs, owner)
        if session.ttl is not None:
            self._keep_as_long_as_promised(session, incarnation, blobs.uploaded)
        return session._replace(incarnation=incarnation)

    def _keep_as_long_as_promised(self, session: SessionRef, incarnation: ObjectId, file_ids: set[ObjectId]) -> None:
        """Let files that were just stored expire no sooner than the session document promises of its related documents.

        Whoever prolongs that promise announces it first, and leaves alone what has no expiry yet. So the promise is
        read again once the files have their expiry: if it is still the same, whoever prolongs it later finds them.
        """
        which = {"_id": session.session_id, "incarnation": incarnation, "$expr": NOT_EXPIRED}
        kept: datetime | None = None
        for _ in attempts(f"session_id={session.session_id!r}: its blobs could not be kept", session.session_id):
            standing = self.commands.find_raw(which, {"parts_expire_at": 1, "parts_moving_to": 1})
            if standing is None:
                self.commands.blobs.delete(file_ids)
                self.commands.standing(session)
                raise has_expired(session)
            until = expiry_of_new_related(standing)
            if until == kept:
                return
            assert until is not None  # What was promised is never taken back.
            self.commands.blobs.keep(file_ids, until)
            kept = until

    def sweep(self, older_than_seconds: float) -> int:
        """Remove blobs that nobody names, segments and search documents of incarnations that are over; return how many.

        Raises:
            MongoDBSessionError: There were errors of single sessions; all others were swept.
        """
        failures = Failures()
        removed = 0
        for related in (self.history, self.search):
            removed += related.sweep(self.commands.collection.name, self.commands.holds, older_than_seconds, failures)
        removed += BlobSweep(self.commands.blobs, older_than_seconds).run(self._named, failures)
        failures.tell("the sweep could not do all")
        return removed

    def _named(
        self, session_id: str, incarnation: ObjectId, key: str, files: Mapping[ObjectId, int | None]
    ) -> set[ObjectId]:
        """Return those of these files that the session still names; see ``upkeep.Named``."""
        document = self.commands.find_raw({"_id": session_id, "incarnation": incarnation}, {})
        if document is None:
            return set() if self.commands.is_over(session_id, incarnation) else set(files)
        missing = dict(files)

        def look_in(found: RawBSONDocument) -> None:
            content = bytes(found.raw)
            for file_id in [file_id for file_id in missing if file_id.binary in content]:
                del missing[file_id]

        # The session document first, then its history: what moves meanwhile moves there.
        look_in(document)
        for message_id in sorted({message_id for message_id in missing.values() if message_id is not None}):
            segment = self.history.raw_segment_covering(session_id, incarnation, key, message_id)
            if segment is not None:
                look_in(segment)
        # A commit that found others' messages before its own has given its own other ids.
        if missing:
            for segment in self.history.raw_segments(session_id, incarnation, key):
                look_in(segment)
        return files.keys() - missing.keys()
