"""The lease: the right to be the only writer of a session for a while.

The store decides, by the server's clock: every write of every other process is refused while the lease runs, and every
write of the holder is refused once it has run out. A holder that dies keeps nobody out for longer than its seconds.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from pymongo.errors import PyMongoError

from .._model.limits import LEASE_POLL_SECONDS
from .._statements.changes import renew_lease
from .._statements.sessions import SessionRef
from .._store.session_store import SessionStore
from ..errors import MongoDBSessionError, SessionBusyError
from .error_notes import add_note

T = TypeVar("T")


@dataclass(eq=False)
class HeldLease:
    """The lease that a manager holds of its session, or none.

    Attributes:
        store: Takes it and gives it back.
        session_id: The session's id.
        opened: Opens the session, if that is not done, and returns it.
        session: Returns the session, with the lease that is held.
        taken: Called when it was taken: what was read before may be old.
        flush: Stores what is unsaved; with an error on its way, a failure becomes a note of that.
        settle: The same without holding up an event loop.
        token: The lease's own, while it is held.
    """

    store: SessionStore
    session_id: str
    opened: Callable[[], SessionRef]
    session: Callable[[], SessionRef]
    taken: Callable[[], None]
    flush: Callable[[BaseException | None], None]
    settle: Callable[[BaseException | None], Coroutine[Any, Any, None]]
    token: str | None = None

    def renew(self, seconds: float) -> None:
        """Let it run for so many seconds from now.

        Raises:
            MongoDBSessionError: None is held.
            SessionBusyError: It has run out.
        """
        if self.token is None:
            raise MongoDBSessionError("this manager holds no lease", session_id=self.session_id)
        session = self.session()
        known = {"incarnation": session.incarnation}
        self.store.changes.guarded(session, lambda session, _: renew_lease(session, seconds), known=known)

    def release(self, token: str, error: BaseException | None) -> None:
        """Give it back; with an error on its way, a failure becomes a note of that."""
        if self.token == token:  # Else it was not got: another task of this manager may have it.
            self.token = None
        try:
            self.store.changes.release_lease(self.session_id, token)
        except PyMongoError as failure:
            if error is None:
                raise
            add_note(error, failure, "the lease could not be given back and will run out by itself")


class SessionLease:
    """A lease of one manager's session; made by ``MongoDBSessionManager.lease``.

    Use it with ``with`` or ``async with``. Leaving stores what the manager still holds, then gives the lease back.

    Attributes:
        seconds: How long the lease runs from when it is taken or renewed.
        wait: How many seconds to wait for another holder before ``SessionBusyError``.
    """

    def __init__(self, held: HeldLease, seconds: float, wait: float) -> None:
        _check_seconds(seconds)
        if not wait >= 0:  # Nor NaN.
            raise ValueError("wait must not be negative")
        self.seconds = seconds
        self.wait = wait
        self._held = held
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._token = uuid.uuid4().hex

    def renew(self, seconds: float | None = None) -> None:
        """Let the lease run for ``seconds`` (default: as at first) from now.

        Raises:
            SessionBusyError: It has run out; somebody else may have written since.
            ValueError: ``seconds`` are none that a lease can be taken for.
        """
        if seconds is not None:
            _check_seconds(seconds)
        self._held.renew(self.seconds if seconds is None else seconds)

    def __enter__(self) -> SessionLease:
        """Take the lease; the session is read anew by the next agent that is built."""
        deadline = self._begin()
        try:
            while (pause := self._attempt(deadline)) is not None:
                time.sleep(pause)
        except BaseException as error:
            self._held.release(self._token, error)
            raise
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Store what is unsaved, then give the lease back."""
        try:
            self._held.flush(error)
        finally:
            self._held.release(self._token, error or sys.exc_info()[1])

    async def __aenter__(self) -> SessionLease:
        """Take the lease without holding up the event loop."""
        deadline = self._begin()
        try:
            while (pause := await self._run(partial(self._attempt, deadline))) is not None:
                await asyncio.sleep(pause)
        except BaseException as error:
            # It may have been taken, whatever was heard of it, and nobody will leave it.
            await self._run(partial(self._held.release, self._token, error))
            raise
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Store what is unsaved, then give the lease back, without holding up the event loop."""
        try:
            await self._held.settle(error)
        finally:
            await self._run(partial(self._held.release, self._token, error or sys.exc_info()[1]))

    async def _run(self, call: Callable[[], T]) -> T:
        return await self._held.store.commands.executor.run(call)

    def _begin(self) -> float:
        """Return until when to try. A second lease inside the first is refused: leaving it would end the first.

        Raises:
            MongoDBSessionError: One is held.
        """
        if self._held.token is not None:
            session_id = self._held.session_id
            raise MongoDBSessionError("this manager already holds the lease of its session", session_id=session_id)
        return time.monotonic() + self.wait

    def _attempt(self, deadline: float) -> float | None:
        """Take the lease; return None, or for how many seconds to wait before the next attempt."""
        held = self._held
        taken_for = held.store.changes.take_lease(held.opened(), self._owner, self._token, self.seconds)
        if taken_for is None:
            held.token = self._token
            held.taken()
            return None
        left = deadline - time.monotonic()
        if left <= 0:
            says = f"session_id={held.session_id!r} is leased by another process; waited {self.wait:g} s"
            raise SessionBusyError(says, taken_for, session_id=held.session_id)
        return min(left, random.uniform(*LEASE_POLL_SECONDS))


def _check_seconds(seconds: float) -> None:
    if not 0 < seconds <= 86_400:
        raise ValueError("seconds must be above 0 and at most 86400")
