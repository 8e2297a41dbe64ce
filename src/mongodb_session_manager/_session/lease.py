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
from functools import partial
from types import TracebackType
from typing import Any

from pymongo.errors import PyMongoError

from .._model.limits import LEASE_POLL_SECONDS
from .._statements.changes import renew_lease
from ..errors import MongoDBSessionError, SessionBusyError
from .managed_session import ManagedSession
from .outboxes import add_note


class SessionLease:
    """A lease of one manager's session; made by ``MongoDBSessionManager.lease``.

    Use it with ``with`` or ``async with``. Leaving stores what the manager still holds, then gives the lease back.

    Attributes:
        seconds: How long the lease runs from when it is taken or renewed.
        wait: How many seconds to wait for another holder before ``SessionBusyError``.
    """

    def __init__(
        self,
        session: ManagedSession,
        seconds: float,
        wait: float,
        flush: Callable[[BaseException | None], None],
        settle: Callable[[BaseException | None], Coroutine[Any, Any, None]],
    ) -> None:
        _check_seconds(seconds)
        if not wait >= 0:  # Nor NaN.
            raise ValueError("wait must not be negative")
        self.seconds = seconds
        self.wait = wait
        self._session = session
        # These store what is unsaved, in a thread or on an event loop, beside an error that is on its way.
        self._flush = flush
        self._settle = settle
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._token = uuid.uuid4().hex

    def renew(self, seconds: float | None = None) -> None:
        """Let the lease run for ``seconds`` (default: as at first) from now.

        Raises:
            MongoDBSessionError: The manager holds no lease.
            SessionBusyError: It has run out; somebody else may have written since.
            ValueError: ``seconds`` are none that a lease can be taken for.
        """
        if seconds is None:
            seconds = self.seconds
        _check_seconds(seconds)
        if self._session.lease_token is None:
            raise MongoDBSessionError("this manager holds no lease", session_id=self._session.session_id)
        session = self._session.ref()
        known = {"incarnation": session.incarnation}
        self._session.store.changes.guarded(session, lambda session, _: renew_lease(session, seconds), known=known)

    def __enter__(self) -> SessionLease:
        """Take the lease; the session is read anew by the next agent that is built."""
        deadline = self._begin()
        try:
            while (pause := self._attempt(deadline)) is not None:
                time.sleep(pause)
        except BaseException as error:
            self._release(error)
            raise
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Store what is unsaved, then give the lease back."""
        try:
            self._flush(error)
        finally:
            self._release(error or sys.exc_info()[1])

    async def __aenter__(self) -> SessionLease:
        """Take the lease without holding up the event loop."""
        deadline = self._begin()
        run = self._session.store.commands.executor.run
        try:
            while (pause := await run(partial(self._attempt, deadline))) is not None:
                await asyncio.sleep(pause)
        except BaseException as error:
            # It may have been taken, whatever was heard of it, and nobody will leave it.
            await run(partial(self._release, error))
            raise
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Store what is unsaved, then give the lease back, without holding up the event loop."""
        try:
            await self._settle(error)
        finally:
            release = partial(self._release, error or sys.exc_info()[1])
            await self._session.store.commands.executor.run(release)

    def _begin(self) -> float:
        """Return until when to try. A second lease inside the first is refused: leaving it would end the first.

        Raises:
            MongoDBSessionError: One is held.
        """
        if self._session.lease_token is not None:
            raise MongoDBSessionError(
                "this manager already holds the lease of its session", session_id=self._session.session_id
            )
        return time.monotonic() + self.wait

    def _attempt(self, deadline: float) -> float | None:
        """Take the lease; return None, or for how many seconds to wait before the next attempt."""
        session = self._session
        taken_for = session.store.changes.take_lease(session.open_ref(), self._owner, self._token, self.seconds)
        if taken_for is None:
            session.lease_token = self._token
            session.prefetch_again()  # What was read before may be old.
            return None
        left = deadline - time.monotonic()
        if left <= 0:
            says = f"session_id={session.session_id!r} is leased by another process; waited {self.wait:g} s"
            raise SessionBusyError(says, taken_for, session_id=session.session_id)
        return min(left, random.uniform(*LEASE_POLL_SECONDS))

    def _release(self, error: BaseException | None) -> None:
        """Give the lease back; with an error on its way, a failure becomes a note of that."""
        session = self._session
        if session.lease_token == self._token:  # Else it was not got: another task of this manager may have it.
            session.lease_token = None
        try:
            session.store.changes.release_lease(session.session_id, self._token)
        except PyMongoError as failure:
            if error is None:
                raise
            add_note(error, failure, "the lease could not be given back and will run out by itself")


def _check_seconds(seconds: float) -> None:
    if not 0 < seconds <= 86_400:
        raise ValueError("seconds must be above 0 and at most 86400")
