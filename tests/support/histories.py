"""Conversations that are archived early, and a look at what is stored of them behind the library's back."""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall
from pymongo import MongoClient, monitoring
from pymongo.database import Database
from strands import Agent, tool
from strands.agent.conversation_manager import SlidingWindowConversationManager

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionRepository

SESSIONS = "sessions"
HISTORY = "sessions_history"

SMALL: dict[str, Any] = {"archive_after_messages": 8, "archive_block": 4}
"""Thresholds by which a few turns are enough."""
NEVER: dict[str, Any] = {"archive_after_messages": 10**6, "archive_after_bytes": 10**9}
"""Thresholds that no conversation of a test reaches."""


def echo(messages: Any) -> str:
    return f"Re: {messages[-1]['content'][0].get('text')}"


def said(*prompts: str) -> list[str]:
    """What the messages of these turns say."""
    return [text for prompt in prompts for text in (prompt, f"Re: {prompt}")]


def manager_of(
    client: MongoClient[Any], database_name: str, session_id: str = "s", **options: Any
) -> MongoDBSessionManager:
    """A manager as a process makes it."""
    return MongoDBSessionManager(
        session_id, client=client, database_name=database_name, collection_name=SESSIONS, **options
    )


def repository_of(client: MongoClient[Any], database_name: str) -> MongoDBSessionRepository:
    return MongoDBSessionRepository(client=client, database_name=database_name, collection_name=SESSIONS)


def talker(manager: MongoDBSessionManager, window: int = 4, **options: Any) -> Agent:
    """An agent that repeats what it hears and keeps so many messages live."""
    defaults: dict[str, Any] = {
        "agent_id": "assistant",
        "model": OfflineScriptedModel(echo),
        "conversation_manager": SlidingWindowConversationManager(window_size=window),
    }
    return Agent(session_manager=manager, callback_handler=None, **{**defaults, **options})


@tool
def look_up(word: str) -> str:
    """Look something up."""
    return f"{word}: found"


def answer(messages: Any) -> Any:
    """The echo of what was heard; or a tool call, or a refusal, where it is asked for one."""
    heard = messages[-1]["content"][0]
    if "toolResult" in heard:
        return "Found."
    if heard["text"] == "look it up":
        return ToolCall("look_up", {"word": "fish"})
    if "secret" in heard["text"]:
        return ScriptedReply(text="I cannot.", redact_user="[redacted]")
    return f"Re: {heard['text']}"


def tool_talker(manager: MongoDBSessionManager, **options: Any) -> Agent:
    """An agent that can look things up, and refuses to speak of secrets."""
    return Agent(
        model=OfflineScriptedModel(answer),
        agent_id="assistant",
        tools=[look_up],
        session_manager=manager,
        callback_handler=None,
        **options,
    )


def texts(messages: Iterable[Any]) -> list[str]:
    """What each message says; of Strands', of stored ones and of a repository's."""
    bodies = [getattr(message, "message", message) for message in messages]
    return [block.get("text") or next(iter(block)) for message in bodies for block in message["content"]]


def by_hand(text: str, role: str = "user") -> Any:
    return {"role": role, "content": [{"text": text}]}


@dataclass(frozen=True)
class Stored:
    """One agent's conversation as it lies in the collections.

    Attributes:
        agent: Its record in the session document.
        segments: The segments that count, oldest first.
        beyond: Segments that do not count: not committed, or stale.
    """

    agent: dict[str, Any]
    segments: list[dict[str, Any]]
    beyond: list[dict[str, Any]]

    @property
    def archived(self) -> list[Any]:
        return [message for segment in self.segments for message in segment["messages"]]

    @property
    def embedded(self) -> list[Any]:
        return list(self.agent["messages"])

    @property
    def messages(self) -> list[Any]:
        return self.archived + self.embedded


def stored(database: Database[Any], session_id: str = "s", agent_id: str = "assistant") -> Stored:
    """What is stored of a conversation, after a look at what must be true of it at every moment."""
    document = database[SESSIONS].find_one({"_id": session_id})
    assert document is not None, session_id
    agent = document["agents"][agent_id]
    found = Stored(agent, [], [])
    archived = agent["archived_count"]
    query = {"_id.session": session_id, "_id.incarnation": document["incarnation"], "_id.agent": agent_id}
    position = 0
    for segment in database[HISTORY].find(query).sort("_id", 1):
        assert list(segment["_id"]) == ["session", "incarnation", "agent", "first"]
        assert segment["count"] == len(segment["messages"]) > 0
        if segment["_id"]["first"] < archived:
            assert segment["_id"]["first"] == position, "segments overlap, or one is missing"
            position += segment["count"]
            found.segments.append(segment)
        else:
            found.beyond.append(segment)
    assert position == archived, "segments and archived_count disagree"
    assert len(found.beyond) <= 1
    assert all(segment["_id"]["first"] == archived for segment in found.beyond)
    ids = [message["message_id"] for message in found.messages]
    assert ids == sorted(set(ids)), "a message is stored twice, or out of order"
    assert agent["message_count"] == (ids[-1] + 1 if ids else 0)
    tracking_ids = [message["tracking_id"] for message in found.messages if "tracking_id" in message]
    assert len(set(tracking_ids)) == len(tracking_ids), "a message is stored twice"
    return found


def gapless(found: Stored) -> Stored:
    """The same, of a conversation of managers: ids are positions, and running totals count each message once."""
    assert [message["message_id"] for message in found.messages] == list(range(len(found.messages)))
    assert found.agent["usage"].get("messages", 0) == len(found.messages)
    return found


def at_rest(database: Database[Any]) -> bytes:
    """Every byte of every document of the database's collections."""
    raw = [
        document.raw
        for name in database.list_collection_names()
        for document in database.get_collection(
            name, codec_options=database.codec_options.with_options(document_class=RawBSONDocument)
        ).find()
    ]
    return b"".join(raw)


def foreign_segments(database: Database[Any]) -> list[Any]:
    """The `_id` of every segment that belongs to no life of a session that is there."""
    lives = {(document["_id"], document["incarnation"]) for document in database[SESSIONS].find({}, {"incarnation": 1})}
    ids = [segment["_id"] for segment in database[HISTORY].find({}, {"_id": 1})]
    return [found for found in ids if (found["session"], found["incarnation"]) not in lives]


class Interruption(monitoring.CommandListener):
    """Does something when a client is about to send its n-th command from `arm` on, or has its answer.

    What is done runs in the sending thread, so nothing of that thread's goes on meanwhile.

    Attributes:
        commands: names of the commands that were sent since then.
        acted: whether it came to that.
        error: what the interruption raised; PyMongo swallows it.
    """

    def __init__(self, moment: str = "started", number: int = 1) -> None:
        self.moment = moment
        self.number = number
        self.commands: list[str] = []
        self.acted = False
        self.error: BaseException | None = None
        self._lock = threading.Lock()
        self._moment = ""
        self._left = 0
        self._act: Callable[[], object] = lambda: None

    def arm(self, moment: str, number: int, act: Callable[[], object]) -> None:
        """Interrupt at the n-th command from here on: `started`, before it is sent, or `succeeded`."""
        with self._lock:
            self.commands.clear()
            self._moment, self._left, self._act = moment, number, act

    def at_its_command(self, act: Callable[[], object]) -> None:
        """Interrupt at the command that it was made for."""
        self.arm(self.moment, self.number, act)

    def disarm(self) -> None:
        """Interrupt no more; raise what the interruption raised."""
        with self._lock:
            self._moment = ""
        if self.error is not None:
            raise self.error

    def _at(self, moment: str) -> None:
        with self._lock:
            if moment != self._moment:
                return
            self._left -= 1
            hit = self._left == 0
        if hit:
            self.acted = True
            try:
                self._act()
            except BaseException as error:
                self.error = error
                raise

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        with self._lock:
            self.commands.append(event.command_name)
        self._at("started")

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        self._at("succeeded")

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        self._at("succeeded")


def interruptions(uri: str, moment: str = "started") -> Iterator[tuple[MongoClient[Any], Interruption]]:
    """Yield clients, the first to be interrupted at its first command, and so on, until one did not send so many.

    The loop says what with `at_its_command`, and from where on commands are counted.
    """
    for number in itertools.count(1):
        interruption = Interruption(moment, number)
        client: MongoClient[Any]
        with MongoClient(uri, event_listeners=[interruption]) as client:
            yield client, interruption
            interruption.disarm()
        if not interruption.acted:
            return


def lay_out(database: Database[Any], ids: list[int], blocks: list[int], session_id: str = "s", removed: int = 0) -> int:
    """Put a conversation of messages with these ids into the collections, so many of them per segment.

    Returns:
        How many are archived; the others are embedded.
    """
    moment = datetime.now(timezone.utc)
    messages = [
        {
            "message_id": n,
            "role": "user",
            "content": [{"text": f"text {n}"}],
            "created_at": moment,
            "updated_at": moment,
        }
        for n in ids
    ]
    incarnation = ObjectId()
    segments, first = [], 0
    for count in blocks:
        key = {"session": session_id, "incarnation": incarnation, "agent": "assistant", "first": first}
        part = messages[first : first + count]
        segments.append({"_id": key, "count": len(part), "edits": 0, "created_at": moment, "messages": part})
        first += len(part)
    agent = {
        "agent_data": {"agent_id": "assistant", "conversation_manager_state": {"removed_message_count": removed}},
        "message_count": ids[-1] + 1 if ids else 0,
        "archived_count": first,
        "edits": 0,
        "usage": {"messages": len(ids)},
        "messages": messages[first:],
    }
    document = {"_id": session_id, "session_id": session_id, "incarnation": incarnation, "agent_ids": ["assistant"]}
    database[SESSIONS].insert_one(
        {**document, "created_at": moment, "updated_at": moment, "agents": {"assistant": agent}}
    )
    for at in range(0, len(segments), 500):
        database[HISTORY].insert_many(segments[at : at + 500])
    return first
