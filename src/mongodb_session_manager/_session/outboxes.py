"""What a manager has not stored yet: it is kept alive for it, and stores it at the latest when the interpreter ends."""

from __future__ import annotations

import atexit
import itertools
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import pymongo
from pymongo import MongoClient

from .._agents.outbox import Outbox
from .._client.forks import in_child
from .._model.limits import AT_EXIT_SECONDS
from ..errors import described
from .managed_session import ManagedSession

logger = logging.getLogger(__name__)


class Owner(Protocol):
    """Whose outboxes they are: a manager."""

    session_id: str

    def flush(self) -> None:
        """Store everything that is not stored yet."""


class Outboxes:
    """The outboxes of one manager.

    Args:
        owner: The manager. It is not kept alive by this alone.
        session: Its session.
        client: The client that it sends with.

    Attributes:
        sources: Each returns some of the outboxes, as they are now.
    """

    def __init__(self, owner: Owner, session: ManagedSession, client: MongoClient[Any]) -> None:
        self.client = client
        self.ref = session.ref
        self.sources: list[Callable[[], Iterable[Outbox]]] = []
        self._owner = weakref.ref(owner)

    def __iter__(self) -> Iterator[Outbox]:
        """Go through them, as they are now."""
        return itertools.chain.from_iterable([source() for source in self.sources])

    def flush(self) -> None:
        """Let the manager store everything that is not stored yet."""
        if (owner := self._owner()) is not None:
            owner.flush()

    @property
    def unsent(self) -> bool:
        """Whether one of them holds something that is not stored."""
        return any(outbox.unsent for outbox in self)

    def drop(self) -> None:
        """Forget what is unsent: the session is gone, and nothing of this can ever be stored."""
        for outbox in self:
            outbox.drop()

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


# Those that hold something unsent, with the manager: a forgotten one still stores its turn at exit.
_unsent: dict[Outboxes, Owner] = {}
# Those that hold what could not be stored, and have said so. Whoever was told may have tried again by other means, so
# it is stored only if he asks this manager to; and an outage does not fill the memory.
_failed: weakref.WeakSet[Outboxes] = weakref.WeakSet()


def unsent_on(client: MongoClient[Any]) -> list[Outboxes]:
    """Return the outboxes of managers on this very client that hold something unsent."""
    return [outboxes for outboxes in {*_unsent, *_failed} if outboxes.client is client and outboxes.unsent]


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
