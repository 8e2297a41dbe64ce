"""An application: a process with a recorded client, what it opens on this test's database, and what is stored there.

The fixture `app` is one; `applications` makes more of them, or one with options (`fixtures/applications.py`).
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from offline_model import OfflineScriptedModel
from pymongo import MongoClient
from pymongo.database import Database
from strands import Agent, tool

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionManagerFactory, MongoDBSessionRepository
from mongodb_session_manager._model.keys import encode_key
from support.commands import CommandRecorder
from support.failpoints import fail_command
from support.histories import SESSIONS, at_rest, echo, manager_of

APP_NAME = "the application"
NOWHERE = "mongodb://127.0.0.1:9/"  # No server listens there.
FAILED = 96  # OperationFailed: an error that no driver sends a command again for.

both_durabilities = pytest.mark.parametrize("durability", ["message", "turn"])


@tool
def look_up(what: str) -> str:
    """Look something up."""
    return f"{what}: 42"


def dialogue(messages: Iterable[Any]) -> list[tuple[str, str]]:
    """Role and text of each message, live or stored."""
    return [(m["role"], "".join(block.get("text", "") for block in m["content"])) for m in messages]


@dataclass
class Application:
    """A process. Its managers and clients are closed when it is.

    Args:
        uri: of the server.
        database: this test's database by a plain client, for a look behind the library's back.
        listeners: of the client, besides the recorder.
        client_options: of the client.
        defaults: what its managers are made with, where a test does not say otherwise.

    Attributes:
        client: what its managers send commands with.
        recorder: what they have sent.
        managers: in the order in which they were made.
    """

    uri: str
    database: Database[Any]
    listeners: Sequence[Any] = ()
    client_options: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.recorder = CommandRecorder()
        self.managers: list[MongoDBSessionManager] = []
        self.client = self.new_client(event_listeners=[self.recorder, *self.listeners], **self.client_options)

    def close(self) -> None:
        self._stack.close()

    # --- what it opens

    def new_client(self, uri: str = "", **options: Any) -> MongoClient[Any]:
        """Another client, as another process has one; not recorded, unless `options` say so."""
        client: MongoClient[Any] = MongoClient(uri or self.uri, **{"appname": APP_NAME, **options})
        return self._stack.enter_context(client)

    def manager(self, session_id: str = "s", *, client: Any = None, **options: Any) -> MongoDBSessionManager:
        options = {**self.defaults, **options}
        manager = manager_of(client or self.client, self.database.name, session_id, **options)
        self._stack.callback(manager.close)
        self.managers.append(manager)
        return manager

    def process(self, *listeners: Any, uri: str = "", **options: Any) -> MongoDBSessionManager:
        """A manager of session `s` that shares nothing with others, as in another process; it is not closed."""
        client = self.new_client(uri, event_listeners=list(listeners))
        return manager_of(client, self.database.name, **{**self.defaults, **options})

    def agent(self, manager: MongoDBSessionManager | None = None, *replies: Any, **options: Any) -> Agent:
        """An agent, `a`, that gives these replies, or those of one function; without any, the echo of what it hears."""
        script = replies[0] if len(replies) == 1 and callable(replies[0]) else replies or echo
        defaults: dict[str, Any] = {
            "agent_id": "a",
            "model": OfflineScriptedModel(script),
            "tools": [look_up],
            "callback_handler": None,
        }
        return Agent(session_manager=manager or self.manager(), **{**defaults, **options})

    def opened(self, *replies: Any, durability: str = "", **options: Any) -> tuple[MongoDBSessionManager, Agent]:
        """A manager of session `s`, and an agent of it, as `agent` makes one."""
        manager = self.manager(**({"durability": durability} if durability else {}))
        return manager, self.agent(manager, *replies, **options)

    @property
    def repository(self) -> MongoDBSessionRepository:
        return MongoDBSessionRepository(client=self.client, database_name=self.database.name, collection_name=SESSIONS)

    def factory(self, **options: Any) -> MongoDBSessionManagerFactory:
        """A factory that borrows the client."""
        factory = MongoDBSessionManagerFactory(
            client=self.client, database_name=self.database.name, collection_name=SESSIONS, **options
        )
        self._stack.callback(factory.close)
        return factory

    # --- what goes wrong

    def failing(self, commands: str | Sequence[str], **options: Any) -> contextlib.AbstractContextManager[None]:
        """The client's commands of these names fail, with an error of the server unless `options` say otherwise."""
        return fail_command(self.database.client, commands, app_name=APP_NAME, **{"error_code": FAILED, **options})

    def slow(self, commands: str | Sequence[str] = "update", milliseconds: int = 200) -> Any:
        """The client's commands of these names take so much longer."""
        return fail_command(self.database.client, commands, app_name=APP_NAME, block_ms=milliseconds)

    # --- what is stored

    def session(self, session_id: str = "s") -> dict[str, Any]:
        """The session document, as somebody's own query reads it."""
        document = self.database[SESSIONS].find_one({"_id": session_id})
        assert document is not None, session_id
        return document

    def record(self, agent_id: str = "a", session_id: str = "s") -> dict[str, Any]:
        """What the session document has of an agent; empty if it has none."""
        document = self.database[SESSIONS].find_one({"_id": session_id}) or {}
        found: dict[str, Any] = document.get("agents", {}).get(encode_key(agent_id), {})
        return found

    def messages(self, agent_id: str = "a", session_id: str = "s") -> list[dict[str, Any]]:
        """The stored messages of an agent that are not archived, without a gap."""
        record = self.record(agent_id, session_id)
        messages: list[dict[str, Any]] = record.get("messages", [])
        first = record.get("archived_count", 0)
        assert [message["message_id"] for message in messages] == list(range(first, first + len(messages)))
        return messages

    def dialogue(self, agent_id: str = "a", session_id: str = "s") -> list[tuple[str, str]]:
        """Role and text of these messages."""
        return dialogue(self.messages(agent_id, session_id))

    def nothing_at_rest(self, *words: str) -> None:
        """No document of the database has any of these words anywhere."""
        content = at_rest(self.database)
        assert [word for word in words if word.encode() in content] == []
