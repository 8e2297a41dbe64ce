"""The unit of work of one agent, or of a graph or swarm: what its next commits will carry."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from bson import ObjectId

from .._model.archive_policy import DocumentSize
from .._model.documents import STATES, Document, check_size
from .._model.encoding import blob_markers, encode, fingerprint, fingerprints, to_bson
from .._model.keys import exact_text
from .._model.limits import KEPT_BEYOND_LIVE, MAX_COMMIT_BYTES
from .._model.metrics import Totals
from .._model.pending_blobs import PendingBlobs
from .._statements.commits import Commit
from .._statements.rewrites import Rewrite
from .._store.session_commands import now
from .operations import (
    AppendOperation,
    Conversation,
    Entry,
    MultiAgent,
    RewriteOperation,
)
from .outbox import Operation, Outbox

_TRACKING_ID = operator.methodcaller("get", "tracking_id")


def _only_begins_an_agent(operation: Operation) -> bool:
    """Return whether an operation is the record of a new agent and nothing else, and was never sent."""
    if not isinstance(operation, AppendOperation) or operation.started or operation.entries:
        return False
    return operation.work.creates is not None and not operation.work.fields


class MultiAgentWork(Outbox, MultiAgent):
    """The unit of work of a graph or swarm.

    Attributes:
        staged: Its state as it was staged last, or read, as a fingerprint.
    """

    staged: bytes | None = None

    def __init__(self, multi_agent_id: str, *args: Any) -> None:
        Outbox.__init__(self, *args)
        MultiAgent.__init__(self, multi_agent_id)


def _tracking_id(message: Mapping[str, Any]) -> str | None:
    """Return the ``tracking_id`` by which a message can be looked for."""
    value = message.get("tracking_id")
    return exact_text(value) if isinstance(value, str) else None


def _completed(body: Document, guardrail_event: Document, completed: Document) -> Document:
    # A copy: what is in flight is not changed.
    return {**body, "guardrail_event": completed} if body.get("guardrail_event") is guardrail_event else body


class AgentWork(Outbox, Conversation):
    """One agent's unit of work, and what is known of its stored conversation.

    Attributes:
        last: The message that was appended last.
        rebase: Whether new commits append behind what others have stored meanwhile.
        blob_threshold: From how many bytes on a binary becomes a blob.
        archiving: The archiving of the agent's messages that is under way or was the last, if any was.
        indexing: The same, of feeding the search.
        indexed: The ``next_message_id`` up to which this process knows the search to be complete; -1 if it knows none.
    """

    archiving: Future[None] | None = None
    indexing: Future[None] | None = None
    indexed = -1
    rebase = True
    last: Entry | None = None
    _last_restored: Entry | None = None
    _state: Any = None
    _state_version: int | None = None
    _stored_state: Any = None
    _changed_state: Any = None

    def __init__(self, agent_id: str, key: str, document: DocumentSize, blob_threshold: int, *args: Any) -> None:
        Outbox.__init__(self, *args)
        Conversation.__init__(self, agent_id, key, document)
        self.blob_threshold = blob_threshold
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
        copies: bool = False,
        guardrail_event: Document | None = None,
    ) -> bool:
        """Replace parts of a message: where it waits, if it was never sent, else where it is stored.

        What is in flight is not changed by that; the rewrite queues behind it. A message that was ever sent is edited
        *and* rewritten: it may be stored already, and if it is not, the old text is not sent again.

        Args:
            entry: The message.
            body: Fields to replace.
            blobs: What of them is too large for the session document.
            copies: Whether what is stored elsewhere under its ``tracking_id`` is replaced as well.
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
            work = Rewrite(self.key, -1, body, entry.tracking_id, copies, guardrail_event, unnamed)
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
        if len(self._known) + len(self._restored_ids) <= 2 * len(live) + KEPT_BEYOND_LIVE:
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
        if operation is None or (operation.bytes and operation.bytes + size > MAX_COMMIT_BYTES):
            operation = AppendOperation(self, Commit(self.key, 0), self.rebase)
            self.queue.append(operation)
        if self._riding:
            operation.work.fields.update(self._riding)
            self._riding.clear()
        return operation

    def _refuse(self, operation: Operation) -> bool:
        return isinstance(operation, AppendOperation) and self._was_refused(operation)

    def _was_refused(self, operation: AppendOperation) -> bool:
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
                there = self._store.reads.read_message(session.session_id, self.key, commit.work.first_message_id)
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
