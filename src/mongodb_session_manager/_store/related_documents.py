"""What belongs to a session beside its document, history, blobs and search documents: kept, let go, deleted, swept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from bson import ObjectId
from bson.raw_bson import RawBSONDocument

from .._model.documents import Document
from .._model.expiry import FOREVER, expiry_of_new_related, related_kept_until, related_needed_until
from .._model.pending_blobs import PendingBlobs
from .._model.related_shapes import BlobOwner
from .._statements import related_expiry, sessions
from .._statements.sessions import SessionRef
from .history import History
from .search_index import SearchIndex
from .sending import attempts
from .session_commands import SessionCommands, has_expired, now
from .upkeep import Failures


class RelatedDocuments:
    """Sees to it that what belongs to a session lives as long as the session, and no longer.

    Args:
        commands: About session documents.
        history: About segments.
        search: About search documents.
    """

    def __init__(self, commands: SessionCommands, history: History, search: SearchIndex) -> None:
        self._commands = commands
        self._history = history
        self._search = search

    def has_indexed(self, session_id: str) -> bool:
        """Return whether messages of a session may be in the search."""
        return bool(
            (self._commands.find_one({"_id": session_id}, {"indexed": sessions.ANY_INDEXED}) or {}).get("indexed")
        )

    def delete_related(self, session_id: str, incarnation: ObjectId | None, *, indexed: bool) -> None:
        """Delete the related documents of an incarnation that is over; those of the search only if it was indexed."""
        if incarnation is None:
            return  # An older document has none.
        self._history.delete_session(session_id, incarnation)
        self._commands.blobs.delete_session(session_id, incarnation)
        if indexed:
            self._search.delete_session(session_id, incarnation)

    def delete_blobs(self, file_ids: Iterable[ObjectId]) -> None:
        """Delete blobs that nothing names any more. A sweep finds those of a process that ends before."""
        self._commands.blobs.delete(file_ids)

    def see_to_expiry(self, session: SessionRef, standing: Document) -> None:
        """Let the parts of a session live on where this writer would let the session outlive them."""
        session_id, promised = session.session_id, standing.get("parts_expire_at")
        if session.ttl is not None:
            if promised is None or promised >= related_needed_until(now() + session.ttl, session.ttl):
                return
            until = related_kept_until(now(), session.ttl)
        elif standing.get("ttl_hours") is None:
            return
        elif promised is None or promised >= FOREVER:
            self._commands.update(related_expiry.end_expiry(session_id, standing))
            return
        else:
            until = FOREVER
        # Or where somebody else is moving them to, or has died over it.
        until = max(until, standing.get("parts_moving_to") or until)
        if self._commands.update(related_expiry.announce_move(session_id, standing, until)):
            self._history.keep(session_id, standing["incarnation"], until)
            self._commands.blobs.keep_session(session_id, standing["incarnation"], until, standing["now"])
            if standing["any_indexed"]:
                self._search.keep(session_id, standing["incarnation"], until)
            self._commands.update(related_expiry.confirm_move(session_id, standing, until))

    def let_related_expire(self, session: SessionRef) -> None:
        """Give an expiry to the parts of a session that has got a ttl when it had some already.

        The session document comes first: from then on nobody lets the session live longer than that without moving
        its parts on, and a part that was moved on, or made since, is not touched here.
        """
        assert session.ttl is not None
        assert session.incarnation is not None
        session_id, incarnation = session.session_id, session.incarnation
        began, until = self._commands.blobs.server_time(), related_kept_until(now(), session.ttl)
        if self._commands.update(related_expiry.begin_expiry(session_id, incarnation, until)):
            self._history.let_expire(session_id, incarnation, until)
            if self.has_indexed(session_id):
                self._search.let_expire(session_id, incarnation, until)
            self._commands.blobs.let_expire(self._commands.blobs.files_of(session_id, incarnation, before=began), until)

    def upload(self, session: SessionRef, key: str, message_id: int | None, blobs: PendingBlobs) -> SessionRef:
        """Store the blobs of a message, or of the state of an agent, before the commit that names them.

        Returns:
            The session, of the incarnation that the blobs belong to: the only one whose documents may name them.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        if not blobs.blobs:
            return session
        incarnation = session.incarnation or self._commands.standing(session)["incarnation"]
        owner: BlobOwner = {
            "session": session.session_id,
            "incarnation": incarnation,
            "agent": key,
            "message": message_id,
        }
        self._commands.blobs.upload(blobs, owner)
        if session.ttl is not None:
            self._keep_as_long_as_promised(session, incarnation, blobs.uploaded)
        return session._replace(incarnation=incarnation)

    def _keep_as_long_as_promised(self, session: SessionRef, incarnation: ObjectId, file_ids: set[ObjectId]) -> None:
        """Let files that were just stored expire no sooner than the session promises of its parts.

        Whoever moves the parts on says so first, and leaves alone what has no expiry yet. So it is read again once they
        have theirs: if it still says the same, whoever moves them on from here finds them with it.
        """
        which = sessions.of_incarnation(session.session_id, incarnation)
        kept: datetime | None = None
        for _ in attempts(f"session_id={session.session_id!r}: its blobs could not be kept"):
            standing = self._commands.find_raw(which, {"parts_expire_at": 1, "parts_moving_to": 1})
            if standing is None:
                self.delete_blobs(file_ids)
                self._commands.explain(session, {})
                raise has_expired(session)
            until = expiry_of_new_related(standing)
            if until == kept:
                return
            assert until is not None  # What was promised is never taken back.
            self._commands.blobs.keep(file_ids, until)
            kept = until

    def sweep(self, older_than_seconds: float) -> int:
        """Remove blobs that nobody names, segments and search documents of incarnations that are over; return how many.

        Raises:
            MongoDBSessionError: Errors of single sessions; what there is of all others was done.
        """
        failures = Failures()
        removed = 0
        for parts in (self._history, self._search):
            removed += parts.sweep(self._commands.collection.name, self._commands.holds, older_than_seconds, failures)
        removed += self._commands.blobs.sweep(self._named, failures, older_than_seconds)
        failures.tell("the sweep could not do all")
        return removed

    def _named(
        self, session_id: str, incarnation: ObjectId, key: str, files: Mapping[ObjectId, int | None]
    ) -> set[ObjectId]:
        """Return those of these files that the session still names; see ``BlobStore.sweep``."""
        document = self._commands.find_raw({"_id": session_id, "incarnation": incarnation}, {})
        if document is None:
            return set() if self._commands.is_over(session_id, incarnation) else set(files)
        missing = dict(files)

        def look_in(found: RawBSONDocument) -> None:
            content = bytes(found.raw)
            for file_id in [file_id for file_id in missing if file_id.binary in content]:
                del missing[file_id]

        # The session document first, then its history: what moves meanwhile moves there.
        look_in(document)
        for message_id in sorted({message_id for message_id in missing.values() if message_id is not None}):
            for segment in self._history.raw_segments_covering(session_id, incarnation, key, message_id):
                look_in(segment)
        # A commit that found others' messages before it has put its own elsewhere.
        if missing:
            for segment in self._history.raw_segments(session_id, incarnation, key):
                look_in(segment)
        return files.keys() - missing.keys()
