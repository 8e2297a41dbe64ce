"""What can wait to be stored, and how each is sent. An operation knows what it changes, not who has queued it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .. import telemetry
from .._model.archive_policy import DocumentSize, Embedded
from .._model.documents import Document
from .._model.limits import MAKE_ROOM_ABOVE_BYTES, MAKE_ROOM_AGAIN_BYTES
from .._model.metrics import Totals
from .._model.pending_blobs import PendingBlobs
from .._statements.commits import Commit
from .._statements.reading import message_projection
from .._statements.rewrites import Rewrite, late_metrics
from .._statements.sessions import SessionRef, Update
from .._store.session_commands import now
from .._store.session_reads import MultiAgentAsRead
from .._store.session_store import SessionStore
from ..errors import MessageNotFoundError

logger = logging.getLogger(__name__)


class Entry:
    """One message of the conversation, stored or waiting.

    Attributes:
        message_id: Its id once it is stored.
        body: What is stored of it while it waits.
        source: The live message object it came from.
        tracking_id: The id that Strands knows it by, as it is stored, if it has one.
        blobs: What of it is too large for the session document, while it waits.
        commit: The operation that carries it while it waits.
        guardrail_events: What is to be listed in the session of it, while it waits.
        totals: What it adds to the agent's running totals, while it waits.
    """

    __slots__ = ("blobs", "body", "commit", "guardrail_events", "message_id", "source", "totals", "tracking_id")

    def __init__(self, message_id: int | None, source: Any, tracking_id: str | None) -> None:
        self.message_id = message_id
        self.source = source
        self.tracking_id = tracking_id
        self.body: Document = {}
        self.blobs: PendingBlobs | None = None
        self.commit: AppendOperation | None = None
        self.guardrail_events: tuple[Document, ...] = ()
        self.totals: Totals | None = None


class Conversation:
    """What is known of one agent's stored conversation.

    Attributes:
        agent_id: The agent.
        key: Its key in the session document.
        next_message_id: The ``message_id`` that is next, as far as this process knows.
        changes: How often the agent's record was changed, as far as this process knows.
        embedded: What the agent has in the session document.
        document: The size of that document.
    """

    next_message_id = 0
    changes = 0

    def __init__(self, agent_id: str, key: str, document: DocumentSize) -> None:
        self.agent_id = agent_id
        self.key = key
        self.document = document
        self.embedded = Embedded()

    def was_stored(self, operation: AppendOperation) -> None:
        """Take note that a commit is stored."""
        work, entries = operation.work, operation.entries
        for index, entry in enumerate(entries):
            entry.message_id = work.first_message_id + index
            entry.commit = entry.blobs = entry.totals = None
            entry.body = {}
        if entries:
            self.next_message_id = work.first_message_id + len(entries)
        if work.creates is None and work.fields:
            self.changes = work.changes + 1
        embedded = self.embedded
        embedded.count += len(entries)
        # A field that is stored anew takes the place of another.
        embedded.bytes += operation.bytes - operation.field_bytes
        self.document.bytes += operation.bytes - operation.field_bytes
        window = work.fields.get("conversation_manager_state")
        if isinstance(window, dict) and isinstance(removed := window.get("removed_message_count"), int):
            embedded.removed = removed


class AppendOperation:
    """New messages, changed fields, a new agent's record: one commit.

    Attributes:
        conversation: Whose.
        work: What the commit carries, but for what comes with the messages: that is put there when it is sent.
        rebase: Whether to append behind what others have stored meanwhile.
        entries: The messages.
        bytes: Size of the messages and fields, without blobs.
        field_bytes: Size of the fields.
        state_blobs: What of the fields is too large for the session document.
        started: As for every operation.
        placed: Whether the position is decided.
    """

    bytes = 0
    field_bytes = 0
    state_blobs: tuple[PendingBlobs, ...] = ()
    started = False
    placed = False

    def __init__(self, conversation: Conversation, work: Commit, rebase: bool, entries: Iterable[Entry] = ()) -> None:
        self.conversation = conversation
        self.work = work
        self.rebase = rebase
        self.entries = list(entries)

    def send(self, store: SessionStore, session: SessionRef) -> None:
        """Store it, at the position that is next now, or where it was first sent to."""
        work, document = self.work, self.conversation.document
        if not self.placed:
            self.placed = True
            work.first_message_id, work.changes = self.conversation.next_message_id, self.conversation.changes
        if document.bytes + self.bytes > document.make_room_above:
            left = store.archiver.make_room(session.session_id, self.bytes)
            document.bytes = document.bytes if left is None else left
            document.make_room_above = max(MAKE_ROOM_ABOVE_BYTES, document.bytes + self.bytes + MAKE_ROOM_AGAIN_BYTES)
        for blobs in self.state_blobs:
            store.related.upload(session, work.key, None, blobs)
        messages: list[Document] = []
        totals: list[Totals] = []
        guardrail_events: list[tuple[int, Document]] = []
        for index, entry in enumerate(self.entries):
            messages.append(entry.body)
            if entry.totals is not None:
                totals.append(entry.totals)
            for event in entry.guardrail_events:
                guardrail_events.append((index, event))
            if entry.blobs is not None:
                store.related.upload(session, work.key, work.first_message_id + index, entry.blobs)
        work.messages, work.totals, work.guardrail_events = messages, totals, guardrail_events
        attributes: telemetry.Attributes = {"agent_id": self.conversation.agent_id, "messages": len(messages)}
        telemetry.traced("commit", attributes, store.commit, session, work, self.rebase)
        self.conversation.was_stored(self)


@dataclass(eq=False)
class RewriteOperation:
    """A change of a message that is stored, or will be before this is sent.

    Attributes:
        entry: Which message.
        work: What is replaced; its ``message_id`` is known when it is sent.
        blobs: What of it is too large for the session document.
        started: As for every operation.
    """

    entry: Entry
    work: Rewrite
    blobs: PendingBlobs | None = None
    started: bool = False

    def send(self, store: SessionStore, session: SessionRef) -> None:
        """Rewrite the message where it stands."""
        if self.entry.message_id is None:
            return  # It was refused.
        self.work.message_id = self.entry.message_id
        if self.blobs is not None:
            store.related.upload(session, self.work.key, self.entry.message_id, self.blobs)
        try:
            store.rewrite(session, self.work, now())
        except MessageNotFoundError:
            if not self.work.copies:
                raise
            # Stored nowhere, so nothing is left to redact: the store went back to a state before the message.
            logger.warning(
                "session_id=<%s>, message_id=<%s> | not stored any more: nothing to redact",
                session.session_id,
                self.entry.message_id,
            )


@dataclass(eq=False)
class LateMetricsOperation:
    """The metrics of a message that was stored without them, or with a part of them: those ``before``."""

    key: str
    entry: Entry
    metrics: Document
    totals: Totals
    before: Document | None = None
    started: bool = False

    def send(self, store: SessionStore, session: SessionRef) -> None:
        """Store the metrics, unless the message has some by now."""
        if self.entry.message_id is None:
            return  # It was refused.
        message_id = self.entry.message_id

        def write(session: SessionRef, _: Document) -> Update:
            return late_metrics(session, self.key, message_id, self.metrics, self.totals, now(), self.before)

        def settled(found: Document) -> bool:
            # It has other metrics by now, or is gone; or else only a lease had stood in the way.
            return all(message.get("event_loop_metrics") != self.before for message in found["messages"])

        known = {"incarnation": session.incarnation}
        store.guarded(session, write, message_projection(self.key, message_id), settled, known=known)


class MultiAgent:
    """What is known of a graph or swarm that is stored.

    Attributes:
        multi_agent_id: Its id.
        stored: What is stored of it, as far as this process knows.
    """

    stored: MultiAgentAsRead | None = None

    def __init__(self, multi_agent_id: str) -> None:
        self.multi_agent_id = multi_agent_id


@dataclass(eq=False)
class MultiAgentOperation:
    """The state of a graph or swarm, as a whole."""

    multi_agent: MultiAgent
    state: Any
    blobs: PendingBlobs
    started: bool = False

    def send(self, store: SessionStore, session: SessionRef) -> None:
        """Store the state."""
        store.related.upload(session, "", None, self.blobs)
        one = self.multi_agent
        one.stored = store.put_multi_agent(session, one.multi_agent_id, self.state, one.stored)
