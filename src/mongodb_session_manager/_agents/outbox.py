"""What waits to be stored, in which order, and who sends it.

An ``Outbox`` is a queue of operations that are sent in order, one at a time, by one thread. Its lock is held only to
look at the queue, never while a command is under way. An operation leaves the queue when it is stored; one that failed
stays at its head and is sent again first.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from concurrent.futures import Future
from typing import Protocol

from .._client.executor import in_event_loop, settle
from .._client.forks import each_in_child
from .._statements.sessions import SessionRef
from .._store.session_store import SessionStore
from ..errors import MessageNotFoundError, MongoDBSessionError, UnstorableValueError


class Operation(Protocol):
    """Something that waits to be stored.

    Attributes:
        started: Whether it was ever sent; then it may be stored, whatever was heard of it.
    """

    started: bool

    def start(self) -> None:
        """Take note that it is sent. Called under the outbox's lock, before each attempt."""

    def send(self, store: SessionStore, session: SessionRef) -> None:
        """Store it; an error means that it is to be sent again.

        Raises:
            UnstorableValueError: It can never be stored as it is.
            MessageNotFoundError: The message that it changes is not stored any more.
        """


class OutboxOwner(Protocol):
    """Whose outbox it is: for whom it sends, and who is told what it does."""

    def ref(self) -> SessionRef:
        """Return for whom, and by which right, at the moment of sending."""

    def filled(self) -> None:
        """Take note that there is something unsent."""

    def sent(self) -> None:
        """Take note that nothing is under way any more; perhaps nothing waits, either."""


class Sending:
    """One run through an outbox, until its queue is empty or something fails. Whoever waits for it is told if it fails.

    Mostly nobody waits but the thread that sends, so the future is made only for those who do.
    """

    _future: Future[None] | None = None

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def let_wait(self) -> None:
        """Prepare for somebody who will wait. Only under the outbox's lock, while the outbox is sending this."""
        if self._future is None:
            self._future = Future()

    def is_over(self, failure: BaseException | None) -> None:
        """Tell whoever waits. Only when the outbox is no longer sending this: then nobody joins them."""
        if self._future is None:
            return
        if failure is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(failure)

    def wait(self) -> None:
        """Wait until it is stored; raise why it was not."""
        assert self._future is not None
        try:
            self._future.result()
        except Exception:
            self._outbox.failure_was_told()
            raise

    def wait_quietly(self) -> None:
        """Wait until it is over. Whoever asked for it hears whether it failed."""
        assert self._future is not None
        self._future.exception()

    async def settle(self) -> None:
        """Wait until it is stored, without holding up the event loop; raise why it was not."""
        assert self._future is not None
        try:
            await settle(self._future)
        except Exception:
            self._outbox.failure_was_told()
            raise


class Outbox:
    """Operations that are sent in order.

    Args:
        store: What sends them, and has the executor where that is done.
        owner: For whom they are sent, and who is told.

    Attributes:
        failure_is_known: Whether somebody has been told that what waits could not be stored.
    """

    failure_is_known = False
    _sending: Sending | None = None

    def __init__(self, store: SessionStore, owner: OutboxOwner) -> None:
        self.lock = threading.Lock()
        self.queue: deque[Operation] = deque()
        self._store = store
        self._owner = owner
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
            sending, is_mine = self._begin_to_send()
            if sending is None:
                return None
            sending.let_wait()
        if is_mine:
            try:
                self._store.commands.executor.submit(lambda: self._drain(sending))
            except BaseException as error:
                with self.lock:
                    self._sending = None
                sending.is_over(error)  # Or everybody would wait for what nobody sends.
                raise
        return sending

    def send_at_once(self) -> None:
        """Send whatever is queued in the caller's thread, or wait for the one that does; raise why it failed."""
        with self.lock:
            sending, is_mine = self._begin_to_send()
            if sending is not None and not is_mine:
                sending.let_wait()
        if sending is None:
            return
        if not is_mine:
            sending.wait()
        elif (error := self._drain(sending)) is not None:
            if isinstance(error, Exception):
                self.failure_was_told()
            raise error

    def _begin_to_send(self) -> tuple[Sending | None, bool]:
        """Return what is being sent, which goes on until the queue is empty, and whether the caller is to do it."""
        if self._sending is not None:
            return self._sending, False
        if not self._has_work():
            return None, False
        self._sending = Sending(self)
        return self._sending, True

    def failure_was_told(self) -> None:
        """Take note that somebody has been told that what waits could not be stored."""
        self.failure_is_known = True
        self._owner.sent()

    def _fill(self) -> None:
        self.failure_is_known = False
        if self.unsent:
            self._owner.filled()

    def wait_quietly(self) -> None:
        """Wait for what is being sent. Whoever asked for it hears whether it failed."""
        with self.lock:
            sending = self._sending
            if sending is not None:
                sending.let_wait()
        if sending is not None:
            sending.wait_quietly()

    def drop(self) -> None:
        """Forget what is queued."""
        with self.lock:
            self.queue.clear()
        self._owner.sent()

    def _after_fork(self) -> None:
        # The parent has the threads that send, and will send what is queued.
        self.lock = threading.Lock()
        self.queue.clear()
        self._sending = None

    def _has_work(self) -> bool:
        return bool(self.queue)

    def _refuse(self, operation: Operation) -> bool:
        """Take note that an operation can never be stored; return whether something of it is left to send."""
        return False

    def _prepare(self) -> None:
        """Do what is too slow for an event loop, before each operation."""

    def _drain(self, sending: Sending) -> BaseException | None:
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
                    operation.start()
                try:
                    operation.send(self._store, self._owner.ref())
                except (UnstorableValueError, MessageNotFoundError) as error:
                    # It can never be stored. (The latter: what was to be replaced is not there any more.)
                    refused = refused or error
                    if self._refuse(operation):
                        continue
                with self.lock:
                    if self.queue and self.queue[0] is operation:
                        self.queue.popleft()
        except BaseException as error:
            failure = error
            with self.lock:
                self._sending = None
        failure = failure or refused
        sending.is_over(failure)
        self._owner.sent()
        return failure


def wait_unless_in_loop(sending: Sending | None) -> None:
    """Wait until it is stored. On an event loop nobody waits here: the agent's next hook does, or ``flush()``."""
    if sending is not None and not in_event_loop():
        sending.wait()


_outboxes: weakref.WeakSet[Outbox] = each_in_child(lambda outbox: outbox._after_fork())
