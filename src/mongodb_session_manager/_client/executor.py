"""Where commands run: a bounded thread executor beside each client, so that an event loop never waits for MongoDB."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from pymongo import MongoClient

from .._model.limits import MAX_EXECUTOR_CLOSINGS, THREADS, THREADS_BEHIND
from .forks import each_in_child

try:
    from strands._async import is_run_async_bridge
except ImportError:  # It is Strands' private business; without it every command changes threads.

    def is_run_async_bridge() -> bool:
        """Return False: nothing is known of Strands' loops."""
        return False


T = TypeVar("T")


class Executor:
    """Runs blocking calls of one client in threads, each in a copy of its caller's context.

    The context carries ``pymongo.timeout()`` and the current OpenTelemetry span into the thread.
    """

    def __init__(self) -> None:
        self._after_fork()
        _executors.add(self)

    def _after_fork(self) -> None:
        # A child has the parent's executor but none of its threads, and perhaps a lock that nobody will release.
        self._lock = threading.Lock()
        # By how many threads it has.
        self._by_size: dict[int, ThreadPoolExecutor] = {}

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Run ``call`` in a thread. Where no thread can be had any more (the interpreter is ending), run it now."""
        return self._submit(contextvars.copy_context(), call, THREADS)

    def submit_behind(self, call: Callable[[], T]) -> Future[T]:
        """Run what no turn waits for, in one of few threads that no turn needs, and with no deadline of a turn's."""
        return self._submit(contextvars.Context(), call, THREADS_BEHIND)

    def _submit(self, context: contextvars.Context, call: Callable[[], T], threads: int) -> Future[T]:
        for _ in range(MAX_EXECUTOR_CLOSINGS):
            with self._lock:
                if threads not in self._by_size:
                    self._by_size[threads] = ThreadPoolExecutor(threads, thread_name_prefix="mongodb-session")
                executor = self._by_size[threads]
            try:
                return executor.submit(context.run, call)
            except RuntimeError:
                if self._by_size.get(threads) is executor:
                    break  # The interpreter is ending.
                # Closed between the two steps above: there is a new one to be had.
        future: Future[T] = Future()
        try:
            future.set_result(context.run(call))
        except BaseException as error:
            future.set_exception(error)
        return future

    async def run(self, call: Callable[[], T]) -> T:
        """Run ``call`` in a thread and wait for it without holding up the event loop; see ``settle``."""
        return await settle(self.submit(call))

    def close(self, *, wait: bool = False) -> None:
        """Let the threads end when what they do is done, and perhaps wait for that. The executor can be used again."""
        # No lock: the garbage collector may call this while the same thread holds it.
        executors, self._by_size = self._by_size, {}
        for executor in executors.values():
            executor.shutdown(wait=wait)


async def settle(future: Future[T]) -> T:
    """Wait until the outcome of a call that has begun is known, even if the waiting task is cancelled.

    The cancellation is raised after that: whoever is cancelled knows that nothing of theirs is still under way.
    """
    if future.done():
        return future.result()
    waiting = asyncio.wrap_future(future)
    cancelled: asyncio.CancelledError | None = None
    while not waiting.done():
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError as error:
            cancelled = error
        except BaseException:
            if not waiting.done():
                raise  # Not the call's own error: the coroutine itself is being closed.
    if cancelled is not None:
        failure = None if waiting.cancelled() else waiting.exception()
        raise cancelled from failure
    return waiting.result()


def executor_of(client: MongoClient[Any]) -> Executor:
    """Return the executor that belongs to this client."""
    executor = _executor_of_client.get(id(client))
    if executor is None:
        new = Executor()
        executor = _executor_of_client.setdefault(id(client), new)  # Of two threads, both get the first one's.
        if executor is new:
            weakref.finalize(client, _forget, id(client), executor).atexit = False
    return executor


def alone_on_a_private_loop() -> bool:
    """Return whether nobody would notice if the running event loop waited.

    A synchronous ``agent(...)`` runs on a loop that Strands makes for that one call, in a thread of its own, while its
    caller waits. Where the call is the only task there, a command may run at once: two changes of thread, half of what
    a ``durability="turn"`` turn costs besides its commands, are saved.
    """
    return is_run_async_bridge() and len(asyncio.all_tasks()) == 1


def in_event_loop() -> bool:
    """Return whether the caller runs on an event loop, which must not wait."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# By identity: two clients of one server compare equal, but one may be closed while the other works.
_executor_of_client: dict[int, Executor] = {}
_executors: weakref.WeakSet[Executor] = each_in_child(lambda executor: executor._after_fork())


def _forget(client_id: int, executor: Executor) -> None:
    # The client is just dying, so no other has its id yet.
    _executor_of_client.pop(client_id, None)
    executor.close()
