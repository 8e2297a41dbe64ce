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
from types import TracebackType
from typing import TYPE_CHECKING

from .errors import MongoDBSessionError, SessionBusyError

if TYPE_CHECKING:
    from .mongodb_session_manager import MongoDBSessionManager

# How often a taker asks again while it waits.
_POLL_SECONDS = (0.02, 0.1)


class SessionLease:
    """A lease of one manager's session; made by ``MongoDBSessionManager.lease``.

    Use it with ``with`` or ``async with``. Leaving stores what the manager still holds, then gives the lease back.

    Attributes:
        seconds: How long the lease runs from when it is taken or renewed.
        wait: How many seconds to wait for another holder before ``SessionBusyError``.
    """

    def __init__(self, manager: MongoDBSessionManager, seconds: float, wait: float) -> None:
        _check_seconds(seconds)
        if not wait >= 0:  # Nor NaN.
            raise ValueError("wait must not be negative")
        self.seconds = seconds
        self.wait = wait
        self._manager = manager
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
        self._manager._renew_lease(self.seconds if seconds is None else seconds)

    def __enter__(self) -> SessionLease:
        """Take the lease; the session is read anew by the next agent that is built."""
        no_lease_twice(self._manager._lease_token)
        deadline = time.monotonic() + self.wait
        try:
            while (taken_for := self._take()) is not None:
                time.sleep(self._pause(deadline, taken_for))
        except BaseException as error:
            self._manager._release_lease(self._token, error)
            raise
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Store what is unsaved, then give the lease back."""
        try:
            self._manager._flush_beside(error)
        finally:
            self._manager._release_lease(self._token, error or sys.exc_info()[1])

    async def __aenter__(self) -> SessionLease:
        """Take the lease without holding up the event loop."""
        no_lease_twice(self._manager._lease_token)
        deadline = time.monotonic() + self.wait
        try:
            while (taken_for := await self._manager._pool.run(self._take)) is not None:
                await asyncio.sleep(self._pause(deadline, taken_for))
        except BaseException as error:
            # It may have been taken, whatever was heard of it, and nobody will leave it.
            failure = error
            await self._manager._pool.run(lambda: self._manager._release_lease(self._token, failure))
            raise
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Store what is unsaved, then give the lease back, without holding up the event loop."""
        try:
            await self._manager._settle_beside(error)
        finally:
            failure = error or sys.exc_info()[1]
            await self._manager._pool.run(lambda: self._manager._release_lease(self._token, failure))

    def _take(self) -> float | None:
        return self._manager._take_lease(self._owner, self._token, self.seconds)

    def _pause(self, deadline: float, taken_for: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise SessionBusyError(
                f"session_id={self._manager.session_id!r} is leased by another process; waited {self.wait:g} s",
                taken_for,
            )
        return min(left, random.uniform(*_POLL_SECONDS))


def _check_seconds(seconds: float) -> None:
    if not 0 < seconds <= 86_400:
        raise ValueError("seconds must be above 0 and at most 86400")


def no_lease_twice(token: str | None) -> None:
    """Refuse a second lease inside the first: leaving the inner one would end the outer one."""
    if token is not None:
        raise MongoDBSessionError("this manager already holds the lease of its session")
