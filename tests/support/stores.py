"""The stores in which a flow is kept: Strands' own files, and MongoDB."""

import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pymongo import MongoClient
from strands import Agent
from strands.bidi import BidiAgent
from strands.session import FileSessionManager
from strands.session.session_manager import SessionManager

from mongodb_session_manager import MongoDBSessionManager
from mongodb_session_manager.mongodb_session_repository import MongoDBSessionRepository
from support.equality import assert_same
from support.flows import Flow, Live, orchestrator_picture, picture
from support.histories import SESSIONS, manager_of


class Store(Protocol):
    """One session, as processes see it that know nothing of each other."""

    def manager(self) -> SessionManager:
        """A session manager as a fresh process would make it."""

    def orchestrator_state(self, orchestrator_id: str) -> dict[str, Any] | None:
        """What is stored of a graph or a swarm."""


@dataclass
class FileStore:
    """A session in files, by Strands' `FileSessionManager`."""

    directory: Path
    session_id: str = "s"

    def manager(self) -> FileSessionManager:
        return FileSessionManager(self.session_id, storage_dir=str(self.directory))

    def orchestrator_state(self, orchestrator_id: str) -> dict[str, Any] | None:
        return self.manager().read_multi_agent(self.session_id, orchestrator_id)


@dataclass
class MongoStore:
    """A session in MongoDB; every manager has another client than the one before it.

    Args:
        clients: One for each manager in turn, as `alternating_clients` makes them.
        stack: Close it to close the managers.
    """

    clients: Iterator[MongoClient[dict[str, Any]]]
    database_name: str
    durability: Literal["message", "turn"]
    stack: ExitStack
    session_id: str = "s"
    collection_name: str = field(default=SESSIONS, init=False)

    def manager(self) -> MongoDBSessionManager:
        made = manager_of(next(self.clients), self.database_name, self.session_id, durability=self.durability)
        return self.stack.enter_context(made)

    def orchestrator_state(self, orchestrator_id: str) -> dict[str, Any] | None:
        repository = MongoDBSessionRepository(
            client=next(self.clients), database_name=self.database_name, collection_name=self.collection_name
        )
        return repository.read_multi_agent(self.session_id, orchestrator_id)


@contextmanager
def alternating_clients(uri: str) -> Iterator[Iterator[MongoClient[dict[str, Any]]]]:
    """Two clients in turn, without an end: one for each manager would watch three nodes each."""
    one: MongoClient[dict[str, Any]]
    other: MongoClient[dict[str, Any]]
    with MongoClient(uri) as one, MongoClient(uri) as other:
        yield itertools.cycle((one, other))


def run(flow: Flow, store: Store, *, moves: bool) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Take a flow through its steps; after each, yield what is live and what a fresh process restores.

    Args:
        flow: The flow.
        store: The session's store, empty.
        moves: Whether each step runs on what was restored after the one before; else all run in one process.
    """
    live = flow.build(store.manager())
    for step in flow.steps:
        step(live)
        restored = restore(flow, store)
        yield picture(live), restored_picture(restored, store)
        if moves:
            live = restored


def restore(flow: Flow, store: Store) -> Live:
    """Build a flow's agent as a fresh process does."""
    return flow.build(store.manager())


def restored_picture(restored: Live, store: Store) -> dict[str, Any]:
    """The picture of what was restored.

    Strands begins a graph or swarm anew that has nothing left to do, whatever was restored; there the picture
    is what the store holds.
    """
    if isinstance(restored, Agent | BidiAgent):
        return picture(restored)
    stored = orchestrator_picture(store.orchestrator_state(restored.id))
    assert stored is not None, "nothing is stored of the orchestrator"
    if stored["next_nodes_to_execute"]:
        assert_same(picture(restored), stored)
    return stored


def without_chance(value: Any, seen: dict[str, str] | None = None) -> Any:
    """The value without measured times and with every UUID replaced by its ordinal: two runs can be compared."""
    seen = {} if seen is None else seen

    def ordinal(match: re.Match[str]) -> str:
        return seen.setdefault(match[0], f"uuid-{len(seen)}")

    if isinstance(value, str):
        return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", ordinal, value)
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key != "timeToFirstByteMs"}
        return {key: without_chance(item, seen) for key, item in kept.items()}
    if isinstance(value, list):
        return [without_chance(item, seen) for item in value]
    return value
