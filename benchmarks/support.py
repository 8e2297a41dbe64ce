"""What the benchmarks stand on: conversations of a given length in each store, and how a turn is measured.

A conversation is made by real turns of a real `Agent` (`TEMPLATE_TURNS` of them, so that the default window of 40
messages has moved as it does in any long conversation), kept by the store itself. Longer ones repeat the records that
the store wrote, with ids of their own, and say that correspondingly more messages have left the window.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import math
import platform
import statistics
import sys
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bson
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import ASCENDING, IndexModel, MongoClient
from strands import Agent, tool
from strands.hooks import AfterInvocationEvent, AgentInitializedEvent, HookRegistry, MessageAddedEvent
from strands.hooks.registry import HookOrder
from strands.session.file_session_manager import FileSessionManager
from strands.session.snapshot_session_manager import SnapshotSessionManager
from strands_mongodb_storage import MongoDBStorage
from strands_session_mongodb import MongoDBSessionManager as RivalSessionManager

from mongodb_session_manager import MongoDBSessionManagerFactory
from mongodb_session_manager._client.clients import DEFAULT_OPTIONS
from mongodb_session_manager._statements import session_listing

_REPOSITORY = Path(__file__).resolve().parent.parent
# The offline model of the examples, the recorder and the failpoints of the tests.
sys.path += [str(_REPOSITORY / "examples"), str(_REPOSITORY / "tests" / "support")]

from commands import CommandRecorder, Commands, RecordedCommand  # noqa: E402
from failpoints import fail_command  # noqa: E402
from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pymongo.collection import Collection
    from strands.session.session_manager import SessionManager
    from strands.types.content import Messages

__all__ = ["OfflineScriptedModel", "ScriptedReply", "fail_command"]

AGENT_ID = "assistant"
SYSTEM_PROMPT = "You are a helpful assistant."
WINDOW = 40
"""Messages that Strands' default conversation manager keeps live."""
TEMPLATE_TURNS = 50
_TEMPLATE_MESSAGES = 2 * TEMPLATE_TURNS

TEXT_BYTES = 350
_WORDS = "The quick brown fox jumps over the lazy dog while seventeen sceptical badgers keep the minutes. "
TEXT = (_WORDS * 4)[:TEXT_BYTES]
"""What the user says and what the model answers, in every message."""


# --- agents ---------------------------------------------------------------------------------------------------------


@tool
def look_up(word: str) -> str:
    """Look up a word.

    Args:
        word: The word.
    """
    return f"{word}: see there"


def text_model(text: str = TEXT) -> OfflineScriptedModel:
    """Return a model that answers everything with this text, in one chunk."""
    return OfflineScriptedModel(lambda _: text, chunk_characters=len(text))


def tool_model() -> OfflineScriptedModel:
    """Return a model that calls a tool once per turn before it answers with `TEXT`."""

    def reply(messages: Messages) -> ScriptedReply:
        if any("toolResult" in block for block in messages[-1]["content"]):
            return ScriptedReply(text=TEXT)
        return ScriptedReply(tool_calls=(ToolCall("look_up", {"word": "badger"}),))

    return OfflineScriptedModel(reply, chunk_characters=TEXT_BYTES)


def make_agent(model: OfflineScriptedModel | None = None, **options: Any) -> Agent:
    """Return the agent of these benchmarks; it prints nothing."""
    return Agent(
        model=model or text_model(),
        system_prompt=SYSTEM_PROMPT,
        tools=[look_up],
        callback_handler=None,
        **{"agent_id": AGENT_ID, **options},
    )


# --- stores ---------------------------------------------------------------------------------------------------------


@dataclass
class Traffic:
    """What one turn sent to its store and got back.

    Attributes:
        commands: Commands; for a store in files, files that were read or written.
        sent: Bytes sent, or written to files.
        written: The part of ``sent`` that belongs to commands that write.
        received: Bytes of the answers, or read from files.
        names: The commands' names in order; for a store in files, ``read`` and ``write``.
    """

    commands: int
    sent: int
    written: int
    received: int
    names: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, commands: Commands) -> Traffic:
        """Return the traffic of recorded commands."""
        writes = commands.named("insert", "update", "delete", "findAndModify")
        return cls(len(commands), commands.request_bytes, writes.request_bytes, commands.reply_bytes, commands.names)

    def since(self, before: Traffic) -> Traffic:
        """Return what came after an earlier reading of the same tally."""
        return Traffic(
            self.commands - before.commands,
            self.sent - before.sent,
            self.written - before.written,
            self.received - before.received,
            self.names[before.commands :],
        )


class Store(ABC):
    """Keeps one session per history length.

    Attributes:
        name: As printed.
        per_message: Whether every message is stored as it is added, not only at the end of a turn.
        rewrites_window: Whether each write carries all live messages.
        unit: What ``Traffic.commands`` counts.
        text: What the user says and what the model answers.
    """

    name: str
    per_message = True
    rewrites_window = False
    unit = "commands"
    text = TEXT

    @abstractmethod
    def build(self, history: int) -> None:
        """Make the session with this many messages; 0: an agent that has said nothing yet."""

    @abstractmethod
    def reset(self, history: int) -> None:
        """Take that session back to what `build` made."""

    @abstractmethod
    def manager(self, session_id: str, *, counted: bool = False) -> SessionManager | None:
        """Open a session. ``counted``: what it sends is recorded for `tally` and `traffic`."""

    @abstractmethod
    def tally(self) -> Traffic:
        """Return what all ``counted`` managers have sent so far."""

    def traffic(self, act: Callable[[], object]) -> Traffic:
        """Run ``act``, which uses ``counted`` managers, and return what it sent."""
        before = self.tally()
        act()
        return self.tally().since(before)

    def session_id(self, history: int) -> str:
        """Return the id of the session with this many messages."""
        return f"history-{history}"

    def agent(self, history: int, *, counted: bool = False, model: OfflineScriptedModel | None = None) -> Agent:
        """Open the session of this length and build its agent."""
        manager = self.manager(self.session_id(history), counted=counted)
        return make_agent(model or text_model(self.text), session_manager=manager)

    async def agent_on_loop(self, history: int) -> Agent:
        """Open the session of this length and build its agent on a running event loop, as asynchronous code does."""
        return self.agent(history)

    def prepare(self, history: int) -> None:  # noqa: B027 (most stores have nothing to do)
        """Do what belongs to no turn, right before one is timed."""

    def _converse(self, session_id: str, turns: int) -> Agent:
        agent = make_agent(text_model(self.text), session_manager=self.manager(session_id))
        for _ in range(turns):
            agent(self.text)
        return agent


class _MongoStore(Store):
    """A store on MongoDB: a plain client to work with and one whose commands are recorded."""

    def __init__(self, uri: str, database_name: str, client: MongoClient[dict[str, Any]] | None = None) -> None:
        self.database_name = database_name
        self.client: MongoClient[dict[str, Any]] = MongoClient(uri) if client is None else client
        self.recorder = CommandRecorder()
        self.recorded_client: MongoClient[dict[str, Any]] = MongoClient(uri, event_listeners=[self.recorder])
        self.collection: Collection[dict[str, Any]] = self.client[database_name]["sessions"]

    def tally(self) -> Traffic:
        return Traffic.of(self.recorder.commands)

    def _client(self, counted: bool) -> MongoClient[dict[str, Any]]:
        return self.recorded_client if counted else self.client


class _DocumentStore(_MongoStore):
    """A store with one document per session; `reset` puts the document back."""

    def __init__(self, uri: str, database_name: str, client: MongoClient[dict[str, Any]] | None = None) -> None:
        super().__init__(uri, database_name, client)
        self.documents: dict[int, RawBSONDocument] = {}

    def reset(self, history: int) -> None:
        document = self.documents[history]
        self.collection.replace_one({"_id": document["_id"]}, document, upsert=True)


class OurStore(_DocumentStore):
    """This library.

    Args:
        uri: The server.
        durability: As for the manager.
        database_name: Where its sessions are.
        counts_pool: Whether the factory makes its client, which then counts what its connections do; or borrows one,
            of the same options.
        **more: More parameters of the factory.
    """

    def __init__(
        self, uri: str, durability: str, database_name: str | None = None, *, counts_pool: bool = False, **more: Any
    ) -> None:
        super().__init__(uri, database_name or f"ours_{durability}", MongoClient(uri, **DEFAULT_OPTIONS))
        self.name = f'ours, "{durability}"'
        self.per_message = durability == "message"
        self.embedded = _TEMPLATE_MESSAGES
        """How many of its messages a long session has in its document; older ones have been archived."""
        options: Any = {
            "database_name": self.database_name,
            "collection_name": "sessions",
            "durability": durability,
            **more,
        }
        client = None if counts_pool else self.client
        self.factory = MongoDBSessionManagerFactory(uri if counts_pool else None, client=client, **options)
        self.counted_factory = MongoDBSessionManagerFactory(client=self.recorded_client, **options)

    def manager(self, session_id: str, *, counted: bool = False) -> SessionManager:
        return (self.counted_factory if counted else self.factory).create_session_manager(session_id)

    async def agent_on_loop(self, history: int) -> Agent:
        return make_agent(session_manager=await self.factory.open(self.session_id(history), agent_id=AGENT_ID))

    def build(self, history: int) -> None:
        self._converse("template", 0 if history == 0 else TEMPLATE_TURNS)
        document = self.collection.find_one_and_delete({"_id": "template"})
        assert document is not None
        self.documents[history] = RawBSONDocument(
            bson.encode(our_document(document, self.session_id(history), history, self.embedded))
        )
        self.reset(history)


def our_document(template: Mapping[str, Any], session_id: str, history: int, embedded: int) -> dict[str, Any]:
    """Return this library's document of a session of ``history`` messages, from a shorter one that it wrote.

    All but the ``embedded`` newest are archived, as the library would have; their segments are left out, for no turn
    reads them.
    """
    document: dict[str, Any] = copy.deepcopy(dict(template))
    document["_id"] = document["session_id"] = session_id
    record = document["agents"][AGENT_ID]
    written = record["messages"]
    assert len(written) in (0, _TEMPLATE_MESSAGES), "one document holds the whole conversation"
    record["messages"] = []
    turn_ids = [ObjectId() for _ in range(history // 2)]
    archived = max(0, history - embedded)
    for message_id in range(archived, history):
        message = dict(written[message_id % len(written)])
        message.update(message_id=message_id, tracking_id=str(uuid.uuid4()), turn_id=turn_ids[message_id // 2])
        if "commit_id" in message:
            message["commit_id"] = ObjectId()
        record["messages"].append(message)
    record["message_count"] = history
    record["archived_count"] = archived
    # The library may store a move of the window only with the next message, so the last one is not always stored.
    record["agent_data"]["conversation_manager_state"]["removed_message_count"] += history - len(written)
    return document


class SnapshotStore(_DocumentStore):
    """Strands' `SnapshotSessionManager` on PyPI's `strands-mongodb-storage`."""

    rewrites_window = True

    def __init__(self, uri: str, save_latest_on: str) -> None:
        super().__init__(uri, f"snapshot_{save_latest_on}")
        self.save_latest_on: Any = save_latest_on
        self.per_message = save_latest_on == "message"
        self.name = f"Snapshot + strands-mongodb-storage, per {save_latest_on}"

    def manager(self, session_id: str, *, counted: bool = False) -> SessionManager:
        storage = MongoDBStorage(
            client=self._client(counted), database_name=self.database_name, collection_name="sessions"
        )
        return SnapshotSessionManager(session_id, storage=storage, save_latest_on=self.save_latest_on)

    def build(self, history: int) -> None:
        session_id = self.session_id(history)
        self._converse(session_id, 0 if history == 0 else TEMPLATE_TURNS)
        document = self.collection.find_one({"_id": {"$regex": f"/{session_id}/"}})
        if document is None:
            return  # It stores nothing before the first turn.
        snapshot = json.loads(document["data"])
        snapshot["data"]["conversation_manager_state"]["removed_message_count"] = max(0, history - WINDOW)
        document["data"] = json.dumps(snapshot, ensure_ascii=False).encode()
        self.documents[history] = RawBSONDocument(bson.encode(document))
        self.reset(history)

    def reset(self, history: int) -> None:
        if history in self.documents:
            super().reset(history)
        else:
            self.collection.delete_one({"_id": {"$regex": f"/{self.session_id(history)}/"}})


class RivalStore(_MongoStore):
    """PyPI's `strands-session-mongodb`: one document per message."""

    name = "strands-session-mongodb"

    def __init__(self, uri: str) -> None:
        super().__init__(uri, "rival")
        self.records: dict[int, list[dict[str, Any]]] = {}

    def manager(self, session_id: str, *, counted: bool = False) -> SessionManager:
        return RivalSessionManager(
            session_id, client=self._client(counted), database_name=self.database_name, collection_name="sessions"
        )

    def build(self, history: int) -> None:
        session_id = self.session_id(history)
        self._converse(session_id, 0 if history == 0 else TEMPLATE_TURNS)
        messages = list(self.collection.find({"pk": self._messages_of(session_id)}, {"_id": 0}).sort("sk", 1))
        for message_id in range(len(messages), history):
            record = dict(messages[message_id % _TEMPLATE_MESSAGES])
            data = json.loads(record["data"])
            data["message_id"] = message_id
            data["message"]["tracking_id"] = str(uuid.uuid4())
            record.update(sk=f"MSG#{message_id:020d}", data=json.dumps(data))
            messages.append(record)
        if history > _TEMPLATE_MESSAGES:
            self.collection.insert_many(messages[_TEMPLATE_MESSAGES:])
            self._remove_from_window(session_id, history)
        self.records[history] = list(self.collection.find({"pk": f"SESSION#{session_id}"}))

    def reset(self, history: int) -> None:
        later = {"pk": self._messages_of(self.session_id(history)), "sk": {"$gte": f"MSG#{history:020d}"}}
        self.collection.delete_many(later)
        for record in self.records[history]:
            self.collection.replace_one({"_id": record["_id"]}, record)

    def _messages_of(self, session_id: str) -> str:
        return f"SESSION#{session_id}#AGENT#{AGENT_ID}"

    def _remove_from_window(self, session_id: str, history: int) -> None:
        which = {"pk": f"SESSION#{session_id}", "sk": f"AGENT#{AGENT_ID}"}
        agent = self.collection.find_one(which)
        assert agent is not None
        data = json.loads(agent["data"])
        data["conversation_manager_state"]["removed_message_count"] = history - WINDOW
        self.collection.update_one(which, {"$set": {"data": json.dumps(data)}})


class FileStore(Store):
    """Strands' `FileSessionManager`: one file per message."""

    name = "FileSessionManager"
    unit = "files"

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self.records: dict[int, bytes] = {}
        self._counts = Traffic(0, 0, 0, 0)

    def manager(self, session_id: str, *, counted: bool = False) -> SessionManager:
        if counted:
            return _CountingFileSessionManager(session_id, str(self.directory), self._counts)
        return FileSessionManager(session_id, storage_dir=str(self.directory))

    def tally(self) -> Traffic:
        return copy.deepcopy(self._counts)

    def build(self, history: int) -> None:
        self._converse(self.session_id(history), 0 if history == 0 else TEMPLATE_TURNS)
        messages = self._agent(history) / "messages"
        for message_id in range(_TEMPLATE_MESSAGES, history):
            data = json.loads((messages / f"message_{message_id % _TEMPLATE_MESSAGES}.json").read_bytes())
            data["message_id"] = message_id
            data["message"]["tracking_id"] = str(uuid.uuid4())
            (messages / f"message_{message_id}.json").write_text(json.dumps(data, indent=2))
        record = self._agent(history) / "agent.json"
        data = json.loads(record.read_bytes())
        data["conversation_manager_state"]["removed_message_count"] = max(0, history - WINDOW)
        self.records[history] = json.dumps(data, indent=2).encode()
        record.write_bytes(self.records[history])

    def reset(self, history: int) -> None:
        (self._agent(history) / "agent.json").write_bytes(self.records[history])
        message_id = history
        while (later := self._agent(history) / "messages" / f"message_{message_id}.json").exists():
            later.unlink()
            message_id += 1

    def _agent(self, history: int) -> Path:
        return self.directory / f"session_{self.session_id(history)}" / "agents" / f"agent_{AGENT_ID}"


class _CountingFileSessionManager(FileSessionManager):
    """Counts the files it reads and writes."""

    def __init__(self, session_id: str, storage_dir: str, counts: Traffic) -> None:
        self._counts = counts
        super().__init__(session_id, storage_dir=storage_dir)

    def _read_file(self, path: str) -> dict[str, Any]:
        self._counts.commands += 1
        self._counts.names.append("read")
        self._counts.received += Path(path).stat().st_size
        return super()._read_file(path)

    def _write_file(self, path: str, data: dict[str, Any]) -> None:
        super()._write_file(path, data)
        self._counts.commands += 1
        self._counts.names.append("write")
        size = Path(path).stat().st_size
        self._counts.sent += size
        self._counts.written += size


class NoStore(Store):
    """No session manager: an agent that is given its live messages. What everything else is measured against."""

    name = "no session manager"

    def __init__(self, live: Callable[[int], Messages]) -> None:
        self._live = live
        self._messages: Messages = []

    def build(self, history: int) -> None:
        """Nothing to make."""

    def reset(self, history: int) -> None:
        """Nothing to take back."""

    def prepare(self, history: int) -> None:
        self._messages = copy.deepcopy(self._live(history))

    def manager(self, session_id: str, *, counted: bool = False) -> None:
        return None

    def tally(self) -> Traffic:
        return Traffic(0, 0, 0, 0)

    def agent(self, history: int, *, counted: bool = False, model: OfflineScriptedModel | None = None) -> Agent:
        return make_agent(model, messages=self._messages)


class ReplayStore(_DocumentStore):
    """Bare PyMongo: the commands that ours sent in a dry run, at the same moments, and nothing else.

    The agent has no session manager; it is given the live messages, made before the clock runs. Filters, projections
    and documents are those that were recorded, but for the session's id. The calls are synchronous. The client is the
    one that ours borrows, or one of the same options; the collection has the same indexes: all that is part of what a
    command costs.
    """

    def __init__(self, uri: str, ours: OurStore) -> None:
        super().__init__(uri, f"replay_{ours.database_name}", ours.client)
        self.name = f"bare PyMongo replay of {ours.name}"
        self.per_message = ours.per_message
        self._ours = ours
        self._scripts: dict[int, _Script] = {}
        self._messages: Messages = []
        # Every write of ours keeps these as well; they belong to the command's cost, not to the library's.
        keys = [[(name, ASCENDING)] for name in ("created_at", "updated_at")]
        self.collection.create_indexes([IndexModel(key) for key in keys + session_listing.indexes(())])

    def manager(self, session_id: str, *, counted: bool = False) -> None:
        return None

    def build(self, history: int) -> None:
        document = dict(self._ours.documents[history])
        document["_id"] = f"replay-{history}"
        self.documents[history] = RawBSONDocument(bson.encode(document))
        self._scripts[history] = _record(self._ours, history, document["_id"])
        self.reset(history)

    def live(self, history: int) -> Messages:
        """Return the messages that ours had restored in the dry run."""
        return self._scripts[history].live

    def prepare(self, history: int) -> None:
        self._messages = copy.deepcopy(self.live(history))

    def agent(self, history: int, *, counted: bool = False, model: OfflineScriptedModel | None = None) -> Agent:
        script = self._scripts[history]
        collection = self._client(counted)[self.database_name]["sessions"]
        return make_agent(model, messages=self._messages, hooks=[_Replay(collection, script)])


class _Replay:
    """Sends the commands of a script at the moments at which ours did."""

    def __init__(self, collection: Collection[dict[str, Any]], script: _Script) -> None:
        self._collection = collection
        self._script = script
        self._moments = iter(script.messages)

    def register_hooks(self, registry: HookRegistry, **_: Any) -> None:
        registry.add_callback(AgentInitializedEvent, lambda _: self._send(self._script.open))
        registry.add_callback(MessageAddedEvent, lambda _: self._send(next(self._moments)))
        registry.add_callback(AfterInvocationEvent, lambda _: self._send(self._script.after), order=HookOrder.SDK_LAST)

    def _send(self, commands: list[RecordedCommand]) -> None:
        for command in commands:
            _replay(self._collection, command)


@dataclass
class _Script:
    """The commands of one turn, by the moment at which ours sent them.

    Attributes:
        live: The messages the agent had when it was built.
        open: Sent before the agent was ready.
        messages: Per message that was added.
        after: At the end of the turn.
    """

    live: Messages
    open: list[RecordedCommand]
    messages: list[list[RecordedCommand]]
    after: list[RecordedCommand]


def _record(ours: OurStore, history: int, replayed_id: str) -> _Script:
    """Run one turn of ours and return what it sent, addressed to another session."""
    ours.reset(history)
    with ours.recorder.recording() as commands:
        agent = ours.agent(history, counted=True)
        live = copy.deepcopy(agent.messages)
        marks = [len(commands)]
        # Added after the manager's own, hence called after it.
        agent.hooks.add_callback(MessageAddedEvent, lambda _: marks.append(len(commands)))
        agent(TEXT)
    ours.reset(history)
    for command in commands:
        for statement in command.command.get("updates", []):
            statement["q"]["_id"] = replayed_id
        if "filter" in command.command:
            command.command["filter"]["_id"] = replayed_id
    parts = [list(commands[start:end]) for start, end in zip([0, *marks], [*marks, None], strict=True)]
    return _Script(live, open=parts[0], messages=parts[1:-1], after=parts[-1])


def _replay(collection: Collection[dict[str, Any]], recorded: RecordedCommand) -> None:
    command = recorded.command
    if recorded.name == "find":
        assert collection.find_one(command["filter"], command["projection"]) is not None
        return
    assert recorded.name == "update", recorded
    for statement in command["updates"]:
        result = collection.update_one(statement["q"], statement["u"], array_filters=statement.get("arrayFilters"))
        assert result.matched_count == 1, "a replayed write found another state than the recorded one"


# --- figures --------------------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, interpolated linearly."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return low + (high - low) * (position - math.floor(position))


@dataclass
class Samples:
    """Times of the same thing, in milliseconds."""

    milliseconds: list[float] = field(default_factory=list)

    @property
    def p20(self) -> float:
        """What it takes when the machine does nothing else: the 20th percentile."""
        return percentile(self.milliseconds, 20)

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.milliseconds)


@dataclass
class Target:
    """One figure that was promised.

    Attributes:
        text: What was promised.
        met: Whether it was kept.
        figure: What was measured.
        exact: Whether the figure is a count, which no busy machine can change.
    """

    text: str
    met: bool
    figure: str
    exact: bool

    def __str__(self) -> str:
        return f"{'PASS' if self.met else 'FAIL'}  {self.text}: {self.figure}"


def print_targets(targets: Sequence[Target]) -> int:
    """Print every target; return the exit code, which only exact ones decide."""
    print("\nTargets")
    for target in targets:
        print(f"  {target}")
    missed = [target for target in targets if target.exact and not target.met]
    return 1 if missed else 0


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table in Markdown, so that it can be pasted into a document."""
    lines = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    print(f"\n{title}\n")
    for number, line in enumerate(lines):
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("| " + " | ".join(cells) + " |")
        if number == 0:
            rules = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
            print("| " + " | ".join(rules) + " |")


def versions(client: MongoClient[Any]) -> str:
    """Return what was measured on what, in one line."""
    packages = ("strands-agents", "pymongo", "strands-mongodb-storage", "strands-session-mongodb")
    named = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    server = client.server_info()["version"]
    return ", ".join([f"Python {platform.python_version()}", f"MongoDB {server}", *named])
