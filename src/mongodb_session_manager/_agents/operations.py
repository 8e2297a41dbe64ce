"""What can wait to be stored for an agent, and how each is sent. An operation knows what it changes, not its owner."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from bson import ObjectId

from .. import telemetry
from .._model.documents import Document
from .._model.encoding import PendingBlobs, blob_files
from .._model.limits import MAKE_ROOM_ABOVE_BYTES, MAKE_ROOM_AGAIN_BYTES
from .._model.metrics import Totals
from .._statements.commits import Commit, TrackedMessage
from .._statements.reading import message_projection
from .._statements.rewrites import Rewrite, late_metrics
from .._statements.sessions import SessionRef, Update
from .._store.session_commands import now
from .._store.session_store import SessionStore
from ..errors import MessageNotFoundError
from .conversation import Conversation
from .outbox import Operation

logger = logging.getLogger(__name__)


class QueuedCommit(Commit):
    """A commit that waits to be sent for the agent of ``conversation``."""

    def __init__(self, conversation: Conversation, rebase: bool, messages: list[TrackedMessage] | None = None) -> None:
        super().__init__(conversation.key, messages or [], rebase=rebase)
        self.conversation = conversation

    def send(self, store: SessionStore, session: SessionRef) -> None:
        """Store it behind the messages that are there now, or where it was first sent to."""
        conversation = self.conversation
        if self.first_message_id is None:
            self.first_message_id = self.expected_id = conversation.next_message_id
            self.changes, self.rewrites = conversation.changes, conversation.rewrites
        self._make_room(store, session)
        for blobs in self.blobs:
            store.related.upload(session, self.key, None, blobs)
        for message_id, pending in enumerate(self.message_blobs, self.first_message_id):
            if pending is not None:
                store.related.upload(session, self.key, message_id, pending)
        attributes: telemetry.Attributes = {"agent_id": conversation.agent_id, "messages": len(self.messages)}
        uploaded = self._held_files()
        telemetry.traced("commit", attributes, store.messages.commit, session, self)
        conversation.was_stored(self)
        if self.view is not None:
            # What the view before has held, or what this one may hold no more, is named by nobody else.
            unnamed, conversation.held_files = (conversation.held_files | uploaded), self._held_files()
            store.commands.blobs.delete(unnamed - conversation.held_files)

    def _held_files(self) -> set[ObjectId]:
        return set() if self.view is None else set(blob_files([held.body for held in self.view.held]))

    def _make_room(self, store: SessionStore, session: SessionRef) -> None:
        document = self.conversation.document
        if document.bytes + self.bytes > document.make_room_above:
            left = store.archiver.make_room(session.session_id, self.bytes)
            document.bytes = document.bytes if left is None else left
            document.make_room_above = max(MAKE_ROOM_ABOVE_BYTES, document.bytes + self.bytes + MAKE_ROOM_AGAIN_BYTES)


@dataclass(eq=False)
class RewriteOperation(Operation):
    """A change of a message that is stored, or will be before this is sent.

    Attributes:
        message: Which message.
        work: What is replaced; its ``message_id`` is known when it is sent.
        conversation: What is known of the agent's stored conversation.
        blobs: What of it is too large for the session document.
    """

    message: TrackedMessage
    work: Rewrite
    conversation: Conversation
    blobs: PendingBlobs | None = None

    def send(self, store: SessionStore, session: SessionRef) -> None:
        """Rewrite the message where it stands."""
        if self.message.message_id is None:
            return  # It was refused.
        self.work.message_id = self.message.message_id
        if self.blobs is not None:
            store.related.upload(session, self.work.key, self.message.message_id, self.blobs)
        try:
            store.messages.rewrite(session, self.work, now())
        except MessageNotFoundError:
            if not self.work.copies:
                raise
            # Stored nowhere, so nothing is left to redact: the store went back to a state before the message.
            logger.warning(
                "session_id=<%s>, message_id=<%s> | not stored any more: nothing to redact",
                session.session_id,
                self.message.message_id,
            )
        if self.work.rewrites == self.conversation.rewrites + 1:  # Else somebody else has replaced one as well.
            self.conversation.rewrites = self.work.rewrites


@dataclass(eq=False)
class LateMetricsOperation(Operation):
    """The metrics of a message that was stored without them, or with a part of them: those ``before``."""

    key: str
    message: TrackedMessage
    metrics: Document
    totals: Totals
    before: Document | None = None

    def send(self, store: SessionStore, session: SessionRef) -> None:
        """Store the metrics, unless the message has some by now."""
        if self.message.message_id is None:
            return  # It was refused.
        message_id = self.message.message_id

        def write(session: SessionRef, _: Document) -> Update:
            return late_metrics(session, self.key, message_id, self.metrics, self.totals, now(), self.before)

        def done(found: Document) -> bool:
            # It has other metrics by now, or is gone; or else only a lease had stood in the way.
            return all(message.get("event_loop_metrics") != self.before for message in found["messages"])

        known = {"incarnation": session.incarnation}
        store.changes.guarded(session, write, message_projection(self.key, message_id), done, known=known)
