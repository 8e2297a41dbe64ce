"""Every command that the library sends, in all that it does, with a name in the place of whatever is new each time.

`python -m support.recorded FILE`, with `examples` and `tests` on the path, writes them down. Two files are equal if
the same is sent; what a change of the code alone should leave as it is, this tells.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bson import ObjectId
from pymongo import MongoClient
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.types.session import Session, SessionAgent, SessionMessage

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionRepository, SessionBusyError
from mongodb_session_manager.local import LocalMongoDB
from support.application import Application
from support.blobs import THRESHOLD, image, shown, talker
from support.flows import FLOWS
from support.histories import SMALL, by_hand

LEFT_OUT = {
    *("background_task", "background_task_chosen_by_the_model", "summarizing"),
    *("context_overflow", "context_overflow_in_tool_result"),
}
"""Flows in which threads decide what comes first."""

# What the driver adds; what Strands measures only where it took at least a millisecond; and what a guardrail
# says, which is in time for a redaction that is on its way, or is not.
_LEFT_OUT_FIELDS = {"lsid", "txnNumber", "$clusterTime", "timeToFirstByteMs", "stop_reason"}
_CHANCE = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}|[0-9a-f]{24}|(?<=_)\d{5,9}(?!\d)")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*(?:\+\d\d:\d\d|Z)?")
_MEASURED = re.compile(r"latency|milliseconds|execution_time|_ms$|Ms$", re.IGNORECASE)


class Names:
    """Gives the same name to the same id, time or token, in the order in which they are met."""

    def __init__(self) -> None:
        self._known: dict[Any, str] = {}

    def of(self, value: Any, key: str = "") -> Any:
        """The value as JSON."""
        if isinstance(value, Mapping):
            kept = {name: inner for name, inner in value.items() if name not in _LEFT_OUT_FIELDS}
            return {self._text(_bucket(name)): self.of(inner, f"{key}.{name}") for name, inner in kept.items()}
        if isinstance(value, (list, tuple)):
            # Strands keeps these in sets, and the library the ids of files.
            in_set = key.endswith("_nodes") or (key.endswith("$in") and all(isinstance(one, ObjectId) for one in value))
            return [self.of(inner, key) for inner in (sorted(value) if in_set else value)]
        if isinstance(value, ObjectId):
            return self._text(str(value))
        if isinstance(value, datetime):
            return "TIME"
        if isinstance(value, bytes):
            return f"{len(value)} bytes {hashlib.sha256(value).hexdigest()[:8]}"
        if isinstance(value, (int, float)) and not isinstance(value, bool) and _MEASURED.search(key):
            return "MEASURED"
        if isinstance(value, str):
            return "OWNER" if key.endswith(".owner.$literal") else self._text(value)
        return value if isinstance(value, (int, float)) or value is None else repr(value)

    def _text(self, text: str) -> str:
        named = _CHANCE.sub(lambda found: self._known.setdefault(found[0], f"ID-{len(self._known)}"), text)
        return _TIME.sub("TIME", named)


def _bucket(name: str) -> str:
    """A field's name; running totals count latencies in fields that are named after them."""
    return re.sub(r"(histogram|buckets?)\.[^.]+$", r"\1.N", name) if _MEASURED.search(name) else name


def flow(name: str) -> Callable[..., None]:
    def scene(manager: Callable[..., MongoDBSessionManager], **_: Any) -> None:
        live = FLOWS[name].build(manager())
        for step in FLOWS[name].steps:
            step(live)
        FLOWS[name].build(manager())

    return scene


def archiving(manager: Callable[..., MongoDBSessionManager], repository: MongoDBSessionRepository, **_: Any) -> None:
    window = {"conversation_manager": SlidingWindowConversationManager(window_size=4)}
    one = manager(**SMALL)
    agent = talker(one, **window)
    for turn in range(8):
        agent(f"turn {turn}")
        one.flush()
    talker(manager(**SMALL), conversation_manager=SlidingWindowConversationManager(window_size=12))
    repository.list_messages("s", "assistant")
    repository.list_messages("s", "assistant", limit=3, offset=2)
    archived = repository.read_message("s", "assistant", 1)
    assert archived is not None
    archived.message = by_hand("other words")
    repository.update_message("s", "assistant", archived)
    one.add_feedback({"rating": "up", "agent_id": "assistant", "message_id": 1})
    for n in range(201):
        one.add_feedback({"rating": n})
    one.get_feedbacks()
    one.get_metrics_summary()
    repository.delete_session("s")


def blobs_and_redaction(
    manager: Callable[..., MongoDBSessionManager], repository: MongoDBSessionRepository, **_: Any
) -> None:
    one = manager(blob_threshold_bytes=THRESHOLD, **SMALL)
    agent = talker(one, conversation_manager=SlidingWindowConversationManager(window_size=2))
    agent.state.set("big", "x" * 1_100_000)
    for turn in range(3):
        agent(shown(f"turn {turn}", turn))
        one.flush()
    agent(shown("a secret", 7))
    one.flush()
    one.append_message({"role": "user", "content": [{"text": "mine"}, image(8)]}, agent)
    one.redact_latest_message(by_hand("gone"), agent)
    one.flush()
    for turn in range(4):
        agent(f"more {turn}")
        one.flush()
    talker(manager(blob_threshold_bytes=THRESHOLD, **SMALL))
    archived = repository.read_message("s", "assistant", 0)
    assert archived is not None
    archived.redact_message = by_hand("redacted")
    repository.update_message("s", "assistant", archived)
    one.get_guardrail_events()
    repository.sweep(3600)


def expiry(manager: Callable[..., MongoDBSessionManager], repository: MongoDBSessionRepository, **_: Any) -> None:
    for ttl_hours in (None, 1, 50, None, 2):
        one = manager(ttl_hours=ttl_hours, blob_threshold_bytes=THRESHOLD, **SMALL)
        agent = talker(one, conversation_manager=SlidingWindowConversationManager(window_size=2))
        for turn in range(5):
            agent(shown(f"turn {turn}", turn))
            one.flush()
        repository.index_messages()
        one.update_metadata({"a": 1})
    repository.collection.update_one({"_id": "s"}, {"$set": {"expires_at": datetime(2020, 1, 1, tzinfo=timezone.utc)}})
    repository.session_exists("s")
    talker(manager(ttl_hours=1))("anew")


def leases(manager: Callable[..., MongoDBSessionManager], **_: Any) -> None:
    one, other = manager(), manager()
    talker(one)("first")
    with one.lease(30) as lease:
        talker(one, "another")("under lease")
        lease.renew()
        for refused in (lambda: other.update_metadata({"a": 1}), other.lease(5).__enter__):
            try:
                refused()
            except SessionBusyError:
                continue
            raise AssertionError
        one.update_metadata({"b": {"c": 1}})
    other.update_metadata({"a": 1})


def search(manager: Callable[..., MongoDBSessionManager], repository: MongoDBSessionRepository, **_: Any) -> None:
    for options in (SMALL, {"index_messages": True}):  # Not both at once: two threads would do it.
        one = manager(application_name="shop", **options)
        agent = talker(one, conversation_manager=SlidingWindowConversationManager(window_size=2))
        for turn in range(6):
            agent(f"fish {turn}")
            one.flush()
        repository.index_messages()
    one.redact_latest_message(by_hand("gone", "assistant"), agent)
    one.flush()
    repository.search_messages("fish")
    repository.search_messages("fish", session_id="s", agent_id="assistant", limit=2)
    repository.index_messages()
    repository.index_messages("s", rebuild=True)
    repository.delete_session("s")
    repository.sweep(0)


def a_repository(manager: Callable[..., MongoDBSessionManager], repository: MongoDBSessionRepository, **_: Any) -> None:
    repository.create_session(Session(session_id="r", session_type="AGENT"))
    repository.create_agent("r", SessionAgent("a", {"x": 1}, {}))
    for n in range(3):
        repository.create_message("r", "a", SessionMessage(by_hand(f"text {n}"), n))
    repository.read_session("r")
    found = repository.read_agent("r", "a")
    assert found is not None
    found.state = {"x": 2}
    repository.update_agent("r", found)
    message = repository.read_message("r", "a", 1)
    assert message is not None
    message.message = by_hand("changed")
    repository.update_message("r", "a", message)
    repository.list_messages("r", "a", limit=2, offset=1)
    repository.update_metadata("r", {"customer.name": "Ann", "list": [1, 2]})
    repository.update_metadata("r", {"list.1": 3})
    repository.get_metadata("r")
    repository.delete_metadata("r", ["list"])
    repository.add_feedback("r", {"rating": "up", "agent_id": "a", "message_id": 2})
    repository.get_feedbacks("r")
    repository.get_metrics_summary("r", "a")
    repository.get_metrics_summary("r")
    repository.get_guardrail_events("r")
    repository.create_multi_agent("r", _Orchestrator())
    repository.update_multi_agent("r", _Orchestrator())
    repository.read_multi_agent("r", "team")
    repository.create_messages_view()
    repository.create_messages_view()
    first = repository.list_sessions(limit=1, sort_by="updated_at")
    repository.list_sessions(metadata={"customer.name": "Ann"}, agent_id="a", application_name="x", session_type="y")
    manager()
    talker(manager())("hello")
    repository.list_sessions(limit=1, sort_by="updated_at", cursor=first.cursor)
    repository.collection.insert_one({"_id": "old", "agents": {"a": {"messages": [{"message": by_hand("old")}]}}})
    repository.create_message("old", "a", SessionMessage(by_hand("new"), 1))
    repository.delete_session("r")
    repository.sweep(3600)


def one_session(manager: Callable[..., MongoDBSessionManager], **_: Any) -> None:
    """A manager's own methods, two of them that write at once, and a session that is made anew."""
    one = manager()
    agent = talker(one)
    one.append_message(by_hand("by hand"), agent)
    agent("by hand")
    one.set_token_counts(1, 2)
    agent.state.set("k", {"v": 1})
    one.sync_agent(agent)
    other = manager()
    twin = talker(other)
    agent("here")
    twin("there")
    one.reload(agent)
    one.append_message(by_hand("an answer", "assistant"), agent)
    one.sync_agent(agent)
    one.delete_metadata(["nothing"])
    one.get_metadata()
    one.list_agents()
    one.get_message_count("assistant")
    one.check_session_exists()
    assert one.session.session_id == "s"


class _Orchestrator:
    id = "team"

    def serialize_state(self) -> dict[str, Any]:
        return {"type": "graph", "x": 1}


SCENES: dict[str, Callable[..., None]] = {
    **{f"flow {name}": flow(name) for name in FLOWS if name not in LEFT_OUT},
    **{
        scene.__name__: scene
        for scene in (archiving, blobs_and_redaction, expiry, leases, search, a_repository, one_session)
    },
}


def record(uri: str) -> Iterator[tuple[str, list[Any]]]:
    """Each scene, with both durabilities, and the commands that it sends."""
    client: MongoClient[Any]
    with MongoClient(uri) as client:
        for durability in ("message", "turn"):
            for number, (name, scene) in enumerate(SCENES.items()):
                database = client[f"{durability}_{number}"]
                app = Application(uri, database, defaults={"durability": durability})
                scene(manager=app.manager, repository=app.repository)
                for one in app.managers:
                    one.close()
                app.close()
                client.drop_database(database)
                names = Names()
                yield (
                    f"{name}, {durability}",
                    [names.of({**sent.command, "$db": "DB"}) for sent in app.recorder.commands],
                )


if __name__ == "__main__":
    with LocalMongoDB() as server, Path(sys.argv[1]).open("w", encoding="utf-8") as file:
        for scene, commands in record(server.uri):
            file.write(json.dumps({scene: commands}, indent=1, ensure_ascii=False) + "\n")
