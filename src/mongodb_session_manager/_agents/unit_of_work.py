"""The unit of work: what an agent's next commit will carry, and how it gets there.

An ``Outbox`` is a queue of operations that are sent in order, one at a time, by one thread. Its lock is held only to
look at the queue, never while a command is under way. An operation leaves the queue when it is stored; one that failed
stays at its head and is sent again first.

An ``AgentWork`` is the outbox of one agent and knows how to put messages and changed fields into it.
"""

from __future__ import annotations

import logging
import operator
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Protocol

from bson import ObjectId

from .. import telemetry
from .._client.command_pool import settle
from .._client.forks import each_in_child
from .._model.archive_policy import MAKE_ROOM_ABOVE_BYTES, DocumentSize, Embedded
from .._model.documents import STATES, Document, check_size
from .._model.encoding import blob_markers, encode, fingerprint, fingerprints, to_bson
from .._model.keys import exact_text
from .._model.metrics import Totals
from .._model.pending_blobs import PendingBlobs
from .._statements.commits import Commit
from .._statements.reading import message_projection
from .._statements.rewrites import Rewrite, late_metrics
from .._statements.sessions import SessionRef, Update
from .._store.session_commands import now
from .._store.session_reads import MultiAgentAsRead
from .._store.session_store import SessionStore
from ..errors import MessageNotFoundError, MongoDBSessionError, UnstorableValueError

logger = logging.getLogger(__name__)

_TRACKING_ID = operator.methodcaller("get", "tracking_id")

# MongoDB takes 16 MB in an update; a message that would make a commit larger than this begins the next one.
_COMMIT_BYTES = 15 * 1024 * 1024

# Where there was little to archive, it is looked for again when the document has grown by this much.
_ROOM_STEP_BYTES = 2 * 1024 * 1024


class Operation(Protocol):
    """Something that waits to be stored.

    Attributes:
        started: Whether it was ever sent; then it may be stored, whatever was heard of it. Set under the lock.
    """

    started: bool

    def send(self, store: SessionStore, session: SessionRef) -> None:
        """Store it; an error means that it is to be sent again.

        Raises:
            UnstorableValueError: It can never be stored as it is.
            MessageNotFoundError: The message that it changes is not stored any more.
        """

    def refuse(self) -> bool:
        """Drop what can never be stored; return whether something else is left to send."""


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


class AppendOperation:
    """New messages, changed fields, a new agent's record: one commit.

    Attributes:
        agent: Whose.
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

    def __init__(self, agent: AgentWork, work: Commit, rebase: bool, entries: Iterable[Entry] = ()) -> None:
        self.agent = agent
        self.work = work
        self.rebase = rebase
        self.entries = list(entries)

    def send(self, store: SessionStore, session: SessionRef) -> None:
        """Store it, at the position that is next now, or where it was first sent to."""
        work, document = self.work, self.agent.document
        if not self.placed:
            self.placed = True
            work.position, work.changes = self.agent.position, self.agent.changes
        if document.bytes + self.bytes > document.make_room_above:
            left = store.archiver.make_room(session.session_id, self.bytes)
            document.bytes = document.bytes if left is None else left
            document.make_room_above = max(MAKE_ROOM_ABOVE_BYTES, document.bytes + self.bytes + _ROOM_STEP_BYTES)
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
                store.related.upload(session, work.key, work.position + index, entry.blobs)
        work.messages, work.totals, work.guardrail_events = messages, totals, guardrail_events
        attributes: telemetry.Attributes = {"agent_id": self.agent.agent_id, "messages": len(messages)}
        telemetry.traced("commit", attributes, store.commit, session, work, self.rebase)
        self.agent.was_stored(self)

    def refuse(self) -> bool:
        """Drop the changed fields, if there are messages beside them, else everything."""
        return self.agent.was_refused(self)


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
            if not self.work.twins:
                raise
            # Stored nowhere, so nothing is left to redact: the store went back to a state before the message.
            logger.warning(
                "session_id=<%s>, message_id=<%s> | not stored any more: nothing to redact",
                session.session_id,
                self.entry.message_id,
            )

    def refuse(self) -> bool:
        """Drop it."""
        return False


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

    def refuse(self) -> bool:
        """Drop it."""
        return False


@dataclass(eq=False)
class MultiAgentOperation:
    """The state of a graph or swarm, as a whole."""

    outbox: MultiAgentWork
    state: Any
    blobs: PendingBlobs
    started: bool = False

    def send(self, store: SessionStore, session: SessionRef) -> None:
        """Store the state."""
        store.related.upload(session, "", None, self.blobs)
        work = self.outbox
        work.stored = store.put_multi_agent(session, work.multi_agent_id, self.state, work.stored)

    def refuse(self) -> bool:
        """Drop it."""
        return False


def _only_begins_an_agent(operation: Operation) -> bool:
    """Return whether an operation is the record of a new agent and nothing else, and was never sent."""
    if not isinstance(operation, AppendOperation) or operation.started or operation.entries:
        return False
    return operation.work.creates is not None and not operation.work.fields


class _UnderWay:
    """One run through an outbox. Mostly nobody waits for it but who does it, so its future is made on demand."""

    _future: Future[None] | None = None

    def future(self) -> Future[None]:
        """Return what to wait for. Only under the outbox's lock, and while this is what the outbox is sending."""
        if self._future is None:
            self._future = Future()
        return self._future

    def is_over(self, failure: BaseException | None) -> None:
        """Tell whoever waits. Only when the outbox is no longer sending this: then nobody asks for the future."""
        if self._future is None:
            return
        if failure is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(failure)


class Sending:
    """What is on its way from an outbox. Whoever waits for it is told if it fails."""

    def __init__(self, outbox: Outbox, future: Future[None]) -> None:
        self._outbox = outbox
        self._future = future

    def wait(self) -> None:
        """Wait until it is stored; raise why it was not."""
        try:
            self._future.result()
        except Exception:
            self._outbox.failure_was_told()
            raise

    async def settle(self) -> None:
        """Wait until it is stored, without holding up the event loop; raise why it was not."""
        try:
            await settle(self._future)
        except Exception:
            self._outbox.failure_was_told()
            raise


class Outbox:
    """Operations that are sent in order.

    Args:
        store: What sends them, and has the pool where that is done.
        session: Returns for whom, and by which right, at the moment of sending.
        filled: Told that there is something unsent.
        sent: Told that nothing is under way any more; perhaps nothing waits, either.

    Attributes:
        failure_is_known: Whether somebody has been told that what waits could not be stored.
    """

    def __init__(
        self,
        store: SessionStore,
        session: Callable[[], SessionRef],
        filled: Callable[[], None],
        sent: Callable[[], None],
    ) -> None:
        self.lock = threading.Lock()
        self.queue: deque[Operation] = deque()
        self._store = store
        self._session = session
        self._filled = filled
        self._sent = sent
        self.failure_is_known = False
        self._sending: _UnderWay | None = None
        _outboxes.add(self)

    @property
    def unsent(self) -> bool:
        """Whether something waits, or is under way, that is to be stored whether anybody asks for it or not."""
        return bool(self.queue)

    def put(self, operation: Operation) -> None:
        """Queue an operation."""
        with self.lock:
            self.queue.append(operation)
        self._fill()

    def send(self) -> Sending | None:
        """Begin to send whatever is queued; return what to wait for, or None if there is nothing."""
        with self.lock:
            under_way, is_mine = self._begin_to_send()
            if under_way is None:
                return None
            future = under_way.future()
        if is_mine:
            try:
                self._store.commands.pool.submit(lambda: self._drain(under_way))
            except BaseException as error:
                with self.lock:
                    self._sending = None
                future.set_exception(error)  # Or everybody would wait for what nobody sends.
                raise
        return Sending(self, future)

    def send_at_once(self) -> None:
        """Send whatever is queued in the caller's thread, or wait for the one that does; raise why it failed."""
        with self.lock:
            under_way, is_mine = self._begin_to_send()
            future = None if is_mine or under_way is None else under_way.future()
        try:
            if future is not None:
                future.result()
            elif under_way is not None and (error := self._drain(under_way)) is not None:
                raise error
        except Exception:
            self.failure_was_told()
            raise

    def _begin_to_send(self) -> tuple[_UnderWay | None, bool]:
        """Return what is under way, which goes on until the queue is empty, and whether the caller is to do it."""
        if self._sending is not None:
            return self._sending, False
        if not self._has_work():
            return None, False
        self._sending = _UnderWay()
        return self._sending, True

    def failure_was_told(self) -> None:
        """Take note that somebody has been told that what waits could not be stored."""
        self.failure_is_known = True
        self._sent()

    def _fill(self) -> None:
        self.failure_is_known = False
        if self.unsent:
            self._filled()

    def wait_quietly(self) -> None:
        """Wait for what is under way. Whoever asked for it hears whether it failed."""
        with self.lock:
            future = self._sending.future() if self._sending is not None else None
        if future is not None:
            future.exception()

    def drop(self) -> None:
        """Forget what is queued."""
        with self.lock:
            self.queue.clear()
        self._sent()

    def _after_fork(self) -> None:
        # The parent has the threads that send, and will send what is queued.
        self.lock = threading.Lock()
        self.queue.clear()
        self._sending = None

    def _has_work(self) -> bool:
        return bool(self.queue)

    def _prepare(self) -> None:
        """Do what is too slow for an event loop, before each operation."""

    def _drain(self, under_way: _UnderWay) -> BaseException | None:
        """Send until the queue is empty or something fails; return why it failed, and tell whoever waits."""
        refused: MongoDBSessionError | None = None
        failure: BaseException | None = None
        try:
            while True:
                try:
                    self._prepare()
                except UnstorableValueError as error:
                    refused = refused or error  # What else waits is sent all the same.
                with self.lock:
                    if not self._has_work():
                        # Under the lock: whoever queues from here on finds nobody sending and begins anew.
                        self._sending = None
                        break
                    if not self.queue:
                        continue
                    operation = self.queue[0]
                    operation.started = True
                try:
                    operation.send(self._store, self._session())
                except (UnstorableValueError, MessageNotFoundError) as error:
                    # It can never be stored. (The latter: what was to be replaced is not there any more.)
                    refused = refused or error
                    if operation.refuse():
                        continue
                with self.lock:
                    if self.queue and self.queue[0] is operation:
                        self.queue.popleft()
        except BaseException as error:
            failure = error
            with self.lock:
                self._sending = None
        failure = failure or refused
        under_way.is_over(failure)
        self._sent()
        return failure


class MultiAgentWork(Outbox):
    """The unit of work of a graph or swarm.

    Attributes:
        multi_agent_id: Its id.
        stored: What is stored of it, as far as this process knows.
        staged: Its state as it was staged last, or read, as a fingerprint.
    """

    stored: MultiAgentAsRead | None = None
    staged: bytes | None = None

    def __init__(self, multi_agent_id: str, *args: Any) -> None:
        super().__init__(*args)
        self.multi_agent_id = multi_agent_id


def _tracking_id(message: Mapping[str, Any]) -> str | None:
    """Return the ``tracking_id`` by which a message can be looked for."""
    value = message.get("tracking_id")
    return exact_text(value) if isinstance(value, str) else None


def _completed(body: Document, guardrail_event: Document, completed: Document) -> Document:
    # A copy: what is in flight is not changed.
    return {**body, "guardrail_event": completed} if body.get("guardrail_event") is guardrail_event else body


_outboxes: weakref.WeakSet[Outbox] = each_in_child(lambda outbox: outbox._after_fork())


class AgentWork(Outbox):
    """One agent's unit of work, and what is known of its stored conversation.

    Attributes:
        agent_id: The agent.
        key: Its key in the session document.
        position: The ``message_id`` that is next, as far as this process knows.
        changes: How often the agent's record was changed, as far as this process knows.
        last: The message that was appended last.
        rebase: Whether new commits append behind what others have stored meanwhile.
        embedded: What the agent has in the session document.
        document: The size of that document.
        blob_threshold: From how many bytes on a binary becomes a blob.
        archiving: The archiving of the agent's messages that is under way or was the last, if any was.
        indexing: The same, of feeding the search.
        indexed: The ``position`` up to which this process knows the search to have the messages; -1 if it knows none.
    """

    archiving: Future[None] | None = None
    indexing: Future[None] | None = None
    indexed = -1
    rebase = True
    position = 0
    changes = 0
    last: Entry | None = None
    _last_restored: Entry | None = None
    _state: Any = None
    _state_version: int | None = None
    _stored_state: Any = None
    _changed_state: Any = None

    def __init__(self, agent_id: str, key: str, document: DocumentSize, blob_threshold: int, *args: Any) -> None:
        super().__init__(*args)
        self.agent_id = agent_id
        self.key = key
        self.document = document
        self.blob_threshold = blob_threshold
        self.embedded = Embedded()
        # By tracking id, oldest first. Restored messages join on first need: few are ever looked for.
        self._known: dict[str, list[Entry]] = {}
        self._restored: list[tuple[int, Any]] = []
        self._restored_ids: set[str | None] = set()
        # What each field was last staged with, as a fingerprint. State is compared by identity and version first.
        self._staged: dict[str, bytes] = {}
        self._riding: Document = {}

    @property
    def waiting_bytes(self) -> int:
        """Size of what waits, in bytes; blobs count, too."""
        size = 0
        for operation in list(self.queue):
            if isinstance(operation, AppendOperation):
                size += operation.bytes
                for entry in operation.entries:
                    if entry.blobs is not None:
                        size += entry.blobs.total_bytes
        return size

    # --- messages ---------------------------------------------------------------------------------------------------

    def append(
        self,
        body: Document,
        size: int,
        source: Any,
        totals: Totals,
        blobs: PendingBlobs | None,
        guardrail_event: Document | None = None,
    ) -> Entry:
        """Put a message of ``size`` bytes, besides its blobs, into the next commit."""
        body["created_at"] = datetime.now(timezone.utc)
        entry = Entry(None, source, body.get("tracking_id"))
        entry.body, entry.totals, entry.blobs = body, totals, blobs
        if guardrail_event is not None:
            entry.guardrail_events = (guardrail_event,)
        with self.lock:
            entry.commit = operation = self._open_append(size)
            operation.entries.append(entry)
            operation.bytes += size
        self.last = entry
        if entry.tracking_id:
            self._known.setdefault(entry.tracking_id, []).append(entry)
        self._fill()
        return entry

    def know(self, message_ids: Sequence[int], messages: list[Any]) -> None:
        """Take note of the stored messages of the live conversation: their ids and what they became."""
        self._restored = list(zip(message_ids, messages, strict=True))
        try:
            self._restored_ids = set(map(_TRACKING_ID, messages))
        except TypeError:  # Another program has stored what is no text, and cannot be looked for.
            self._restored_ids = set(map(_tracking_id, messages))
        if messages:
            self.last = self._last_restored = Entry(message_ids[-1], messages[-1], _tracking_id(messages[-1]))

    def known(self, tracking_id: str | None) -> list[Entry]:
        """Return the known messages with this ``tracking_id``, oldest first; what is no text names none."""
        if not tracking_id or not isinstance(tracking_id, str):
            return []
        tracking_id = exact_text(tracking_id)
        if tracking_id in self._restored_ids:
            self._restored_ids.remove(tracking_id)
            last = self._last_restored
            entries = [
                last if last is not None and source is last.source else Entry(message_id, source, tracking_id)
                for message_id, source in self._restored
                if source.get("tracking_id") == tracking_id
            ]
            self._known[tracking_id] = entries + self._known.get(tracking_id, [])
        return self._known.get(tracking_id, [])

    def made_of(self, source: Any) -> list[Entry]:
        """Return the known messages that were made of this very object: one that was appended twice is two of them."""
        return [entry for entries in self._known.values() for entry in entries if entry.source is source]

    def change(
        self,
        entry: Entry,
        body: Document,
        blobs: PendingBlobs | None = None,
        *,
        twins: bool = False,
        guardrail_event: Document | None = None,
    ) -> bool:
        """Replace parts of a message: where it waits, if it was never sent, else where it is stored.

        What is in flight is not changed by that; the rewrite queues behind it. A message that was ever sent is edited
        *and* rewritten: it may be stored already, and if it is not, the old text is not sent again.

        Args:
            entry: The message.
            body: Fields to replace.
            blobs: What of them is too large for the session document.
            twins: Whether what is stored elsewhere under its ``tracking_id`` is replaced as well.
            guardrail_event: An intervention to list in the session.

        Returns:
            Whether there is something to send now.
        """
        unnamed: set[ObjectId] = set()
        with self.lock:
            operation = entry.commit
            if operation is not None:
                before = entry.blobs
                entry.body = {**{k: v for k, v in entry.body.items() if k != "extra"}, **body}
                if guardrail_event is not None and not operation.started:
                    entry.guardrail_events += (guardrail_event,)
                # Those of the old content are not to be sent again, either.
                entry.blobs = blobs
                if before is not None and (kept := before.only(blob_markers(entry.body))).blobs:
                    entry.blobs = replace(kept, blobs=kept.blobs + (blobs.blobs if blobs is not None else []))
                if not operation.started:
                    return False
                if before is not None and entry.blobs is not before:
                    # A failed attempt may have uploaded them.
                    unnamed = before.uploaded - (entry.blobs.uploaded if entry.blobs is not None else set())
            work = Rewrite(self.key, -1, body, entry.tracking_id, twins, guardrail_event, unnamed)
            self.queue.append(RewriteOperation(entry, work, blobs))
        self._fill()
        return True

    def complete(self, guardrail_event: Document, completed: Document) -> None:
        """Put more that is known of an intervention in its place, wherever it is not sent yet."""
        with self.lock:
            for operation in self.queue:
                if operation.started:
                    continue  # What is in flight is not changed.
                if isinstance(operation, RewriteOperation):
                    work = operation.work
                    work.body = _completed(work.body, guardrail_event, completed)
                    if work.guardrail_event is guardrail_event:
                        work.guardrail_event = completed
                elif isinstance(operation, AppendOperation):
                    for entry in operation.entries:
                        entry.body = _completed(entry.body, guardrail_event, completed)
                        entry.guardrail_events = tuple(
                            completed if event is guardrail_event else event for event in entry.guardrail_events
                        )

    def prune(self, live: list[Any]) -> None:
        """Forget messages that have left the live conversation, so that a long one does not fill the memory."""
        if len(self._known) + len(self._restored_ids) <= 2 * len(live) + 100:
            return
        kept = set(map(_tracking_id, live))
        self._restored = [stored for stored in self._restored if _tracking_id(stored[1]) in kept]
        self._restored_ids &= kept
        self._known = {
            tracking_id: entries
            for tracking_id, entries in self._known.items()
            if tracking_id in kept or any(entry.commit is not None for entry in entries)
        }

    def _waiting_append(self) -> AppendOperation | None:
        last = self.queue[-1] if self.queue else None
        return last if isinstance(last, AppendOperation) and not last.started else None

    def _open_append(self, size: int = 0) -> AppendOperation:
        """Return the commit that is still open to ``size`` bytes more, with the fields that were to ride with it."""
        operation = self._waiting_append()
        if operation is None or (operation.bytes and operation.bytes + size > _COMMIT_BYTES):
            operation = AppendOperation(self, Commit(self.key, 0), self.rebase)
            self.queue.append(operation)
        if self._riding:
            operation.work.fields.update(self._riding)
            self._riding.clear()
        return operation

    def was_stored(self, operation: AppendOperation) -> None:
        """Take note that a commit is stored."""
        work, entries = operation.work, operation.entries
        for index, entry in enumerate(entries):
            entry.message_id = work.position + index
            entry.commit = entry.blobs = entry.totals = None
            entry.body = {}
        if entries:
            self.position = work.position + len(entries)
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

    def was_refused(self, operation: AppendOperation) -> bool:
        """Take note that MongoDB has no room for a commit; return whether something of it is to be tried without it.

        Given up are, in this order: changed fields, the state of a new agent, and messages, one by one.
        """
        work, entries = operation.work, operation.entries
        if work.fields and (entries or work.creates is not None):
            self._forget_staged(work.fields)
            work.fields = {}
            return True
        if work.creates is not None and any(work.creates[name] for name in STATES):
            self._forget_staged(STATES)
            work.creates = {**work.creates, **{name: {} for name in STATES}}
            operation.state_blobs = ()
            return True
        self._forget_staged(work.fields)
        with self.lock:
            if len(entries) > 1:
                rest = AppendOperation(self, Commit(self.key, 0), operation.rebase, entries[1:])
                for entry in rest.entries:
                    entry.commit = rest
                operation.entries = entries[:1]
                self.queue.insert(1, rest)
                return True
            for entry in entries:
                entry.commit = entry.blobs = None
                entry.body = {}
                for same in self._known.values():
                    if entry in same:
                        same.remove(entry)
            if self.last in entries:
                self.last = None  # It is stored nowhere; no other message is to be redacted in its place.
            operation.entries = []
            return bool(entries) and work.creates is not None

    def _forget_staged(self, names: Iterable[str]) -> None:
        """Let fields that were not stored after all be found changed again."""
        for name in names:
            self._staged.pop(name, None)
            if name == "state":
                self._state_version = self._stored_state = None

    def send_rewrites(self) -> None:
        """Send the changes of stored messages that wait, whatever waits before them. For while nothing is under way."""
        for operation in [waiting for waiting in self.queue if isinstance(waiting, RewriteOperation)]:
            session, commit = self._session(), operation.entry.commit
            if commit is not None and commit.placed:
                # It was sent and failed; but it may be stored, and only the answer to it was lost.
                there = self._store.reads.read_message(session.session_id, self.key, commit.work.position)
                if there is not None and there.get("commit_id") == commit.work.commit_id:
                    self.was_stored(commit)
                    with self.lock:
                        self.queue.remove(commit)
            operation.send(self._store, session)
            with self.lock:
                self.queue.remove(operation)

    def drop(self) -> None:
        """Forget what is queued and what has changed."""
        self._changed_state = None
        self._riding.clear()
        super().drop()

    def _after_fork(self) -> None:
        super()._after_fork()
        self.archiving = self.indexing = None

    def set_rebase(self, rebase: bool) -> None:
        """Decide anew what the waiting commits do on a conflict."""
        with self.lock:
            for operation in self.queue:
                if isinstance(operation, AppendOperation):
                    operation.rebase = rebase

    # --- the agent's record -----------------------------------------------------------------------------------------

    def create(self, agent_data: Document, blobs: PendingBlobs) -> None:
        """Put the record of a new agent into the next commit; by itself it waits for one, or for ``send``."""
        with self.lock:
            operation = self._open_append()
            operation.work.creates = agent_data
            operation.state_blobs += (blobs,)
            operation.bytes += len(to_bson(agent_data))
        self._fill()

    def stage(self, fields: Mapping[str, Any], riding: str | None = None) -> None:
        """Put those fields of the agent's record into the next commit whose content has changed.

        Content is compared, types included; not versions, which count changes that change nothing.

        Args:
            fields: The fields, as they are now.
            riding: Name of a field that is not worth a commit of its own: it waits for one that is made anyway.
        """
        staged = {name: mark for name, mark in fingerprints(fields).items() if mark != self._staged.get(name)}
        if not staged:
            return
        changed: Document = {}
        # Each commit uploads its own, for those of another may be gone.
        blobs = PendingBlobs(self.blob_threshold)
        size = 0
        for name in staged:
            changed[name] = encode(fields[name], name, blobs)
            size += check_size({name: changed[name]}, f"agent_id={self.agent_id!r} {name}")
        # All or nothing: what is refused above leaves the others to be found changed again.
        self._staged.update(staged)
        waits = changed.keys() == {riding} and not blobs.blobs
        changed["updated_at"] = now().isoformat()
        with self.lock:
            self._riding.update(changed)
            if waits and self._waiting_append() is None:
                return
            operation = self._open_append(size)
            operation.bytes += size
            operation.field_bytes += size
            if blobs.blobs:
                operation.state_blobs += (blobs,)
        self._fill()

    def is_staged(self, fields: Mapping[str, Any]) -> None:
        """Take note of fields as they are stored."""
        self._staged.update(fingerprints(fields))

    def watch_state(self, state: Any, stored: Any) -> None:
        """Take note that ``stored`` is what the store holds of ``state``, an ``AgentState``."""
        self._state, self._state_version, self._stored_state = state, state._get_version(), stored
        self._staged.pop("state", None)

    def look_at_state(self, state: Any) -> None:
        """Note whether the agent's state may have changed; cheap enough for an event loop."""
        if state is not self._state or state._get_version() != self._state_version:
            self._changed_state = state
            self._fill()

    @property
    def unsent(self) -> bool:
        """Whether something waits, or is under way, that is to be stored whether anybody asks for it or not.

        The record of a new agent by itself is not: nobody has said anything to it, and it can be built again.
        """
        if self._changed_state is not None or self._sending is not None:
            return True
        waiting = list(self.queue)
        return bool(waiting) and not (len(waiting) == 1 and _only_begins_an_agent(waiting[0]))

    def _has_work(self) -> bool:
        return bool(self.queue) or self._changed_state is not None

    def _prepare(self) -> None:
        # Taken first: a change that comes from here on is noticed again.
        state, self._changed_state = self._changed_state, None
        if state is None:
            return
        version = state._get_version()
        value = state.get()  # A deep copy: 31 ms for 5,000 small dictionaries. Hence here, in a thread.
        if self._stored_state is not None:
            self._staged["state"] = fingerprint(self._stored_state)
            self._stored_state = None
        self._state, self._state_version = state, version
        self.stage({"state": value})
