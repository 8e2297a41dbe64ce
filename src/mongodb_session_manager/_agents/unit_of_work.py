"""The unit of work of one agent: what its next commits will carry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from bson import ObjectId

from .._model.documents import STATES, Document, check_size
from .._model.encoding import PendingBlobs, blob_markers, encode, size_in_bson, to_bson
from .._model.limits import MAX_COMMIT_BYTES
from .._model.metrics import Totals
from .._statements.commits import TrackedMessage
from .._statements.live import LiveView
from .._statements.rewrites import Rewrite
from .._store.session_commands import now
from .._store.session_store import SessionStore
from .conversation import Conversation
from .operations import QueuedCommit, RewriteOperation
from .outbox import Operation, Outbox, OutboxOwner
from .slots import Due
from .staged_fields import StagedFields


class AgentWork(Outbox):
    """One agent's unit of work.

    Args:
        conversation: What is known of the agent's stored conversation.
        blob_threshold: From how many bytes on a binary becomes a blob.
        rebase: Whether new commits append behind what other writers have stored meanwhile.
        store: What sends the operations.
        owner: Who is told.

    Attributes:
        conversation: As given.
        blob_threshold: As given.
        fields: Which fields of the agent's record are staged.
        archiving: The archiving of the agent's messages that is under way or was the last, if any was.
        indexing: The same, of its messages' indexing.
        indexed: The ``next_message_id`` up to which this process knows the search to be complete; -1 if it knows none.
    """

    archiving: Future[None] | None = None
    indexing: Future[None] | None = None
    indexed = -1

    def __init__(
        self, conversation: Conversation, blob_threshold: int, rebase: bool, store: SessionStore, owner: OutboxOwner
    ) -> None:
        super().__init__(store, owner)
        self.conversation = conversation
        self.blob_threshold = blob_threshold
        self.fields = StagedFields()
        self._rebase = rebase
        # Fields, and a view, that wait for a commit that is made anyway.
        self._riding: Document = {}
        self._riding_view: tuple[LiveView, Due] | None = None

    @property
    def waiting_bytes(self) -> int:
        """Size of what waits, in bytes; blobs count, too."""
        commits = [operation for operation in list(self.queue) if isinstance(operation, QueuedCommit)]
        blobs = [message.blobs for commit in commits for message in commit.messages]
        return sum(commit.bytes for commit in commits) + sum(one.total_bytes for one in blobs if one is not None)

    # --- messages ---------------------------------------------------------------------------------------------------

    def append(
        self,
        body: Document,
        size: int,
        source: Any,
        totals: Totals,
        blobs: PendingBlobs | None,
        guardrail_event: Document | None = None,
    ) -> TrackedMessage:
        """Put a message of ``size`` bytes, besides its blobs, into the next commit."""
        body["created_at"] = datetime.now(timezone.utc)
        follows = self.conversation.live.follows()
        message = TrackedMessage(None, source, body.get("tracking_id"), follows=follows, turn_id=body.get("turn_id"))
        message.body, message.totals, message.blobs = body, totals, blobs
        if guardrail_event is not None:
            message.guardrail_events = (guardrail_event,)
        with self.lock:
            message.commit = commit = self._open_commit(size)
            commit.messages.append(message)
            commit.bytes += size
        self.conversation.live.appended(message)
        self._fill()
        return message

    def change(
        self,
        message: TrackedMessage,
        body: Document,
        blobs: PendingBlobs | None = None,
        *,
        copies: bool = False,
        guardrail_event: Document | None = None,
    ) -> bool:
        """Replace parts of a message: where it waits, if it was never sent, else where it is stored.

        What is being sent is not changed; the rewrite queues behind it. A message that was ever sent is edited *and*
        rewritten: it may be stored already, and if it is not, the old text is not sent again.

        Args:
            message: The message.
            body: Fields to replace.
            blobs: What of them is too large for the session document.
            copies: Whether what is stored elsewhere under its ``tracking_id`` is replaced as well.
            guardrail_event: An intervention to list in the session.

        Returns:
            Whether there is something to send now.
        """
        unnamed: set[ObjectId] = set()
        with self.lock:
            commit = message.commit
            if commit is not None:
                before = message.blobs
                message.body = {**{k: v for k, v in message.body.items() if k != "extra"}, **body}
                if guardrail_event is not None and not commit.started:
                    message.guardrail_events += (guardrail_event,)
                # Those of the old content are not to be sent again, either.
                message.blobs = blobs
                if before is not None and (kept := before.only(blob_markers(message.body))).blobs:
                    message.blobs = replace(kept, blobs=kept.blobs + (blobs.blobs if blobs is not None else []))
                if not commit.started:
                    return False
                if before is not None and message.blobs is not before:
                    # A failed attempt may have uploaded them.
                    unnamed = before.uploaded - (message.blobs.uploaded if message.blobs is not None else set())
            key = self.conversation.key
            work = Rewrite(key, -1, body, message.tracking_id, copies, guardrail_event, unnamed)
            self.queue.append(RewriteOperation(message, work, self.conversation, blobs))
        self._fill()
        return True

    def complete(self, guardrail_event: Document, completed: Document) -> None:
        """Put more that is known of an intervention in its place, wherever it is not sent yet."""
        with self.lock:
            for operation in self.queue:
                if operation.started:
                    continue  # What is being sent is not changed.
                if isinstance(operation, RewriteOperation):
                    work = operation.work
                    work.body = _completed(work.body, guardrail_event, completed)
                    if work.guardrail_event is guardrail_event:
                        work.guardrail_event = completed
                elif isinstance(operation, QueuedCommit):
                    for message in operation.messages:
                        message.body = _completed(message.body, guardrail_event, completed)
                        message.guardrail_events = tuple(
                            completed if event is guardrail_event else event for event in message.guardrail_events
                        )

    def send_rewrites(self) -> None:
        """Send the changes of stored messages that wait, whatever waits before them. While nothing is being sent."""
        for operation in [waiting for waiting in self.queue if isinstance(waiting, RewriteOperation)]:
            session, commit = self._owner.ref(), operation.message.commit
            if isinstance(commit, QueuedCommit) and commit.first_message_id is not None:
                # It was sent and failed; but it may be stored, and only the answer to it was lost.
                there = self._store.reads.read_message(session.session_id, commit.key, commit.first_message_id)
                if there is not None and there.get("commit_id") == commit.commit_id:
                    self.conversation.was_stored(commit)
                    with self.lock:
                        self.queue.remove(commit)
            operation.send(self._store, session)
            with self.lock:
                self.queue.remove(operation)

    # --- the agent's record -----------------------------------------------------------------------------------------

    def create(self, agent_data: Document, blobs: PendingBlobs) -> None:
        """Put the record of a new agent into the next commit; by itself it waits for one, or for ``send``."""
        with self.lock:
            commit = self._open_commit()
            commit.creates = agent_data
            commit.blobs += (blobs,)
            commit.bytes += len(to_bson(agent_data))
        self._fill()

    def stage(self, fields: Mapping[str, Any], marks: dict[str, bytes], due: Due | None = None) -> None:
        """Put fields of the agent's record, and its live view, into the next commit.

        Args:
            fields: The fields, as they are now.
            marks: The fingerprints of those that have changed.
            due: What is live, if that is to be stored; the state of the conversation manager goes with it.
        """
        manager_state = "conversation_manager_state"
        names = [*marks, *([manager_state] if due is not None and manager_state in fields else [])]
        if not names and due is None:
            return
        conversation, where = self.conversation, f"agent_id={self.conversation.agent_id!r} "
        changed: Document = {}
        # Each commit uploads its own, for those of another may be gone.
        blobs = PendingBlobs(self.blob_threshold)
        size = 0
        for name in dict.fromkeys(names):
            changed[name] = encode(fields[name], name, blobs)
            size += check_size({name: changed[name]}, where + name)
        view = refused = None
        if due is not None:
            removed = changed.get(manager_state, {}).get("removed_message_count", 0)  # As the server finds it.
            view, refused = conversation.view(due, removed, where + "live message", blobs)
            size += sum(size_in_bson(held.body) for held in view.held)
        # All or nothing: what is refused above leaves the others to be found changed again.
        self.fields.staged(marks)
        waits = due is not None and due.rides and set(changed) <= {manager_state} and not blobs.blobs
        if changed:
            changed["updated_at"] = now().isoformat()
        with self.lock:
            self._riding.update(changed)
            if view is not None and due is not None:
                self._riding_view = view, due
            if not waits or self._waiting_commit() is not None:
                commit = self._open_commit(size)
                commit.bytes += size
                commit.field_bytes += size
                if blobs.blobs:
                    commit.blobs += (blobs,)
        self._fill()
        if refused is not None and conversation.live.tell_refused(refused):
            raise refused

    def hold_nothing_of(self, message: TrackedMessage) -> None:
        """Take what waits of a message in another form out of the views: it was redacted."""
        with self.lock:
            for operation in self.queue:
                if isinstance(operation, QueuedCommit) and operation.view is not None:
                    operation.view = operation.view.without(message)
            if self._riding_view is not None:
                view, due = self._riding_view
                self._riding_view = view.without(message), due

    def look_at_state(self, state: Any) -> None:
        """Note whether the agent's state may have changed; cheap enough for an event loop."""
        if self.fields.look_at_state(state):
            self._fill()

    # --- the queue --------------------------------------------------------------------------------------------------

    @property
    def unsent(self) -> bool:
        """Whether something waits, or is being sent, that is to be stored whether anybody asks for it or not.

        The record of a new agent by itself is not: nobody has said anything to it, and it can be built again.
        """
        if self.fields.changed_state is not None or self._sending is not None:
            return True
        waiting = list(self.queue)
        return bool(waiting) and not (len(waiting) == 1 and _only_begins_an_agent(waiting[0]))

    def set_rebase(self, rebase: bool) -> None:
        """Decide anew what the waiting commits do on a conflict."""
        with self.lock:
            for operation in self.queue:
                if isinstance(operation, QueuedCommit):
                    operation.rebase = rebase

    def drop(self) -> None:
        """Forget what is queued and what has changed."""
        self.fields.changed_state = None
        self._riding.clear()
        self._riding_view = None
        super().drop()

    def _waiting_commit(self) -> QueuedCommit | None:
        last = self.queue[-1] if self.queue else None
        return last if isinstance(last, QueuedCommit) and not last.started else None

    def _open_commit(self, size: int = 0) -> QueuedCommit:
        """Return the commit that is still open to ``size`` bytes more, with the fields that wait for one."""
        commit = self._waiting_commit()
        if commit is None or (commit.bytes and commit.bytes + size > MAX_COMMIT_BYTES):
            commit = QueuedCommit(self.conversation, self._rebase)
            self.queue.append(commit)
        if self._riding:
            commit.fields.update(self._riding)
            self._riding.clear()
        if self._riding_view is not None:
            (commit.view, due), self._riding_view = self._riding_view, None
            self.conversation.live.stored(due)
        return commit

    def _has_work(self) -> bool:
        return bool(self.queue) or self.fields.changed_state is not None

    def _prepare(self) -> None:
        if state := self.fields.take_state():
            self.stage(state, self.fields.changed(state))

    def _after_fork(self) -> None:
        super()._after_fork()
        self.archiving = self.indexing = None

    def _refuse(self, operation: Operation) -> bool:
        """Take note that MongoDB has no room for a commit; return whether something of it is to be tried without it.

        Given up are, in this order: changed fields, the state of a new agent, and messages, one by one.
        """
        if not isinstance(operation, QueuedCommit):
            return False
        commit, messages = operation, operation.messages
        if (commit.fields or commit.view) and (messages or commit.creates is not None):
            self._forget_fields(commit)
            return True
        if commit.creates is not None and any(commit.creates[name] for name in STATES):
            self.fields.forget(STATES)
            commit.creates = {**commit.creates, **{name: {} for name in STATES}}
            commit.blobs = ()
            return True
        self._forget_fields(commit)
        with self.lock:
            if len(messages) > 1:
                rest = QueuedCommit(self.conversation, commit.rebase, messages[1:])
                for message in rest.messages:
                    message.commit = rest
                commit.messages = messages[:1]
                self.queue.insert(1, rest)
                return True
            _give_up(messages)
            self.conversation.live.refused(messages)
            commit.messages = []
            return bool(messages) and commit.creates is not None

    def _forget_fields(self, commit: QueuedCommit) -> None:
        """Give up what a commit was to store besides messages; it will be found changed again."""
        self.fields.forget(commit.fields)
        commit.fields = {}
        if commit.view is not None:
            commit.view = None
            self.conversation.live.lost()


def _only_begins_an_agent(operation: Operation) -> bool:
    """Return whether an operation is the record of a new agent and nothing else, and was never sent."""
    if not isinstance(operation, QueuedCommit) or operation.started or operation.messages:
        return False
    return operation.creates is not None and not operation.fields


def _completed(body: Document, guardrail_event: Document, completed: Document) -> Document:
    # A copy: what is being sent is not changed.
    return {**body, "guardrail_event": completed} if body.get("guardrail_event") is guardrail_event else body


def _give_up(messages: Iterable[TrackedMessage]) -> None:
    for message in messages:
        message.commit = message.blobs = None
        message.body = {}
