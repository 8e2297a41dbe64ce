"""What a manager has not stored yet: it is kept alive for it, and stores it at the latest when the interpreter ends."""

from __future__ import annotations

import atexit
import logging
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol

import pymongo
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from .._agents.outbox import Outbox, Sending
from .._client.executor import settle
from .._client.forks import in_child
from .._model.limits import AT_EXIT_SECONDS
from ..errors import MongoDBSessionError, SessionNotFoundError, described
from . import behind_turns
from .agents import ManagedAgents
from .managed_session import ManagedSession
from .orchestrators import Orchestrators

logger = logging.getLogger(__name__)


class Owner(Protocol):
    """Whose outboxes they are: a manager."""

    session_id: str

    def flush(self) -> None:
        """Store everything that is not stored yet."""


class Outboxes:
    """The outboxes of one manager: those of its agents, and of its graphs and swarms.

    Args:
        owner: The manager. It is not kept alive by this alone.
        session: Its session.

    Attributes:
        session: As given.
        agents: Its agents.
        orchestrators: Its graphs and swarms.
        session_is_gone: Whether the session was deleted, or has expired, before everything was stored.
    """

    session_is_gone = False

    def __init__(self, owner: Owner, session: ManagedSession) -> None:
        self.session = session
        self.ref = session.ref
        self.agents = ManagedAgents(session, session.settings, session.store, self, session.observer)
        self.orchestrators = Orchestrators(session, self)
        self._owner = weakref.ref(owner)

    def __iter__(self) -> Iterator[Outbox]:
        """Go through them, as they are now."""
        yield from self.agents.works()
        yield from self.orchestrators.works()

    @property
    def unsent(self) -> bool:
        """Whether one of them holds something that is not stored."""
        return any(outbox.unsent for outbox in self)

    # --- storing ----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Store everything, and wait until it is stored; raise one of the errors of what could not be."""
        failure: Exception | None = self.agents.stage()
        for under_way in self._under_way():
            try:
                if isinstance(under_way, Sending):
                    under_way.wait()
                else:
                    under_way.result()
            except Exception as error:
                # The others are waited for as well; one error stands for all, each keeps its own unit of work.
                failure = failure or error
        if failure is not None:
            raise failure

    async def settle(self) -> None:
        """Do the same on an event loop. No thread of the executor waits for another one: all might be waiting."""
        failure: Exception | None = self.agents.stage()
        for under_way in self._under_way():
            try:
                await (under_way.settle() if isinstance(under_way, Sending) else settle(under_way))
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _under_way(self) -> Iterator[Sending | Future[None]]:
        """Begin to send, then what is due behind the turns, and yield what is to be waited for."""
        sendings = [outbox.send() for outbox in self]
        yield from (sending for sending in sendings if sending is not None)
        yield from behind_turns.under_way(self.session, self.agents.works)

    @contextmanager
    def beside(self, error: BaseException | None) -> Iterator[None]:
        """If an error is on its way already, make a failure in the block, which stores something, a note of it."""
        try:
            yield
        except Exception as failure:
            if isinstance(failure, SessionNotFoundError):
                self.drop()
                self.session_is_gone = True
            if error is None:
                raise
            add_note(error, failure)

    def drop(self) -> None:
        """Forget what is unsent: the session is gone, and nothing of this can ever be stored."""
        for outbox in self:
            outbox.drop()

    # --- who keeps the manager alive --------------------------------------------------------------------------------

    def filled(self) -> None:
        """Keep the manager alive, and known to the end of the process, while it holds something unsent."""
        if (owner := self._owner()) is not None:
            _unsent[self] = owner

    def sent(self) -> None:
        """Let go of the manager if nothing is left to send, or if somebody knows that the rest cannot be stored."""
        owner = self._owner()  # Held to the end: perhaps nothing else keeps the manager alive.
        # In this order: another thread may fill an outbox in between.
        _unsent.pop(self, None)
        left = [outbox for outbox in self if outbox.unsent]
        if owner is not None and any(not outbox.failure_is_known for outbox in left):
            _unsent[self] = owner
        elif left:
            _failed.add(self)

    def closed(self) -> None:
        """Let go of the manager."""
        _unsent.pop(self, None)

    def flush_owner(self) -> None:
        """Let the manager store everything that is not stored yet, if it is still there."""
        if (owner := self._owner()) is not None:
            with self.beside(None):
                owner.flush()


# Those that hold something unsent, with the manager: a forgotten one still stores its turn at exit.
_unsent: dict[Outboxes, Owner] = {}
# Those that hold what could not be stored, and have said so. Whoever was told may have tried again by other means, so
# it is stored only if he asks this manager to; and an outage does not fill the memory.
_failed: weakref.WeakSet[Outboxes] = weakref.WeakSet()


def flush_managers_on(client: MongoClient[Any]) -> None:
    """Store what managers with this very client have not stored; raise the first failure after all have tried."""
    failure: Exception | None = None
    for outboxes in {*_unsent, *_failed}:
        if outboxes.session.store.commands.client is client and outboxes.unsent:
            try:
                outboxes.flush_owner()
            except Exception as error:
                failure = failure or error
    if failure is not None:
        raise failure


def _store_at_exit() -> None:
    """Store what is unsent when the interpreter ends; say so where that fails. One deadline for all of it."""
    with pymongo.timeout(AT_EXIT_SECONDS):
        for owner in list(_unsent.values()):
            try:
                owner.flush()
            except Exception as error:
                logger.error(
                    "session_id=<%s>, error=<%s> | lost: not stored at exit", owner.session_id, described(error)
                )


atexit.register(_store_at_exit)
in_child(_unsent.clear)  # The parent will store what is unsent.


def add_note(error: BaseException, failure: Exception, what: str = "the session could not be stored") -> None:
    """Let an error that is on its way say what failed besides, unless it says so itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (PyMongoError, MongoDBSessionError)):
            return
        cause = cause.__cause__
    note = f"Besides, {what}: {described(failure)}"
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:  # Python 3.10
        logger.error("error=<%s> | %s", described(error), note)
