"""What waits to be stored is neither lost, held up, kept for ever nor taken for something else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from offline_model import OfflineScriptedModel, ScriptedReply
from pymongo import MongoClient
from pymongo.errors import InvalidOperation, OperationFailure, WriteConcernError
from strands import Agent
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.hooks import MessageAddedEvent
from support.failpoints import fail_command

from mongodb_session_manager import (
    MongoDBSessionError,
    MongoDBSessionManager,
    SessionConflictError,
    SessionNotFoundError,
    UnstorableValueError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pymongo.collection import Collection

APP_NAME = "unit-of-work"


@pytest.fixture
def own_client(server: Any) -> Iterator[MongoClient[dict[str, Any]]]:
    client: MongoClient[dict[str, Any]]
    with MongoClient(server.uri, appname=APP_NAME) as client:
        yield client


@pytest.fixture
def manager(own_client: MongoClient[dict[str, Any]], database_name: str) -> Callable[..., MongoDBSessionManager]:
    def make(**options: Any) -> MongoDBSessionManager:
        return MongoDBSessionManager(
            "s", client=own_client, database_name=database_name, collection_name="sessions", **options
        )

    return make


@pytest.fixture
def sessions(client: MongoClient[dict[str, Any]], database_name: str) -> Collection[dict[str, Any]]:
    return client[database_name]["sessions"]


def agent(manager: MongoDBSessionManager, *replies: Any, agent_id: str = "a", **options: Any) -> Agent:
    model = OfflineScriptedModel(replies or ["Yes."] * 20)
    return Agent(model=model, agent_id=agent_id, session_manager=manager, callback_handler=None, **options)


def stored(sessions: Collection[dict[str, Any]], agent_id: str = "a") -> list[dict[str, Any]]:
    document = sessions.find_one({"_id": "s"})
    return [] if document is None else document["agents"][agent_id]["messages"]


def image(content: bytes) -> dict[str, Any]:
    return {"image": {"format": "png", "source": {"bytes": content}}}


@contextlib.contextmanager
def stored_but_not_told(client: MongoClient[dict[str, Any]]) -> Iterator[None]:
    """Updates are made, and the answer is that too few nodes have them yet."""
    failure = {"code": 64, "errmsg": "waiting for replication timed out"}
    data = {"failCommands": ["update"], "appName": APP_NAME, "writeConcernError": failure}
    client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=data)
    try:
        yield
    finally:
        client.admin.command("configureFailPoint", "failCommand", mode="off")


class KeepsADate(SlidingWindowConversationManager):
    """A conversation manager whose state cannot be stored."""

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "since": date(2026, 1, 1)}


def test_a_manager_whose_window_moved_is_forgotten_when_nobody_holds_it(
    manager: Callable[..., MongoDBSessionManager],
) -> None:
    opened = manager()
    talker = agent(opened, conversation_manager=SlidingWindowConversationManager(window_size=4))
    for _ in range(4):
        talker("And?")
    opened.close()
    forgotten = weakref.ref(opened)
    del opened, talker
    gc.collect()
    assert forgotten() is None


@pytest.mark.parametrize("durability", ["message", "turn"])
def test_state_that_cannot_be_stored_keeps_no_message_from_being_stored(
    manager: Callable[..., MongoDBSessionManager], sessions: Collection[dict[str, Any]], durability: str
) -> None:
    opened = manager(durability=durability)
    other = agent(opened, agent_id="other")
    other("Hello")
    talker = agent(opened)
    talker.conversation_manager = KeepsADate()
    other.state.set("seen", 1)
    with pytest.raises(Exception, match="cannot be stored") as refused:
        talker("Hello")
    assert isinstance(refused.value.__cause__ or refused.value, UnstorableValueError)
    assert stored(sessions)[0]["content"] == [{"text": "Hello"}]

    with pytest.raises(UnstorableValueError):
        opened.flush()
    document = sessions.find_one({"_id": "s"})
    assert document is not None
    assert document["agents"]["other"]["agent_data"]["state"] == {"seen": 1}


def test_an_image_appended_by_hand_is_not_taken_for_another_one(
    manager: Callable[..., MongoDBSessionManager], sessions: Collection[dict[str, Any]]
) -> None:
    opened = manager()
    talker = agent(opened)
    opened.append_message({"role": "user", "content": [image(b"one")]}, talker)  # type: ignore[list-item]
    talker([image(b"two")])
    opened.append_message({"role": "assistant", "content": [image(b"three")]}, talker)  # type: ignore[list-item]
    opened.append_message({"role": "assistant", "content": [image(b"four")]}, talker)  # type: ignore[list-item]
    images = [m["content"][0]["image"]["source"]["bytes"] for m in stored(sessions) if "image" in m["content"][0]]
    assert images == [b"one", b"two", b"three", b"four"]


def test_a_conversation_appended_by_hand_does_not_swallow_the_next_question(
    manager: Callable[..., MongoDBSessionManager], sessions: Collection[dict[str, Any]]
) -> None:
    opened = manager()
    talker = agent(opened)
    for role, text in (("user", "Hi"), ("assistant", "Hello"), ("assistant", "Hello")):
        opened.append_message({"role": role, "content": [{"text": text}]}, talker)  # type: ignore[typeddict-item]
    talker("Hi")
    assert [m["content"][0]["text"] for m in stored(sessions)] == ["Hi", "Hello", "Hello", "Hi", "Yes."]


def leave_with(opened: MongoDBSessionManager) -> None:
    with opened:
        pass


def leave_async_with(opened: MongoDBSessionManager) -> None:
    async def leave() -> None:
        async with opened:
            pass

    asyncio.run(leave())


@pytest.mark.parametrize("leave", [MongoDBSessionManager.close, leave_with, leave_async_with])
def test_a_manager_that_holds_what_can_never_be_stored_says_so_once_and_is_closed(
    server: Any, database_name: str, leave: Callable[[MongoDBSessionManager], None]
) -> None:
    opened = MongoDBSessionManager("s", server.uri, database_name, "sessions")
    talker = agent(opened)
    talker("one")
    talker.conversation_manager = KeepsADate()

    with pytest.raises(UnstorableValueError):
        leave(opened)

    opened.close()
    with pytest.raises(InvalidOperation, match="after close"):
        opened.list_agents()


def test_a_message_carries_the_time_at_which_it_was_added_not_that_of_its_commit(
    manager: Callable[..., MongoDBSessionManager], sessions: Collection[dict[str, Any]]
) -> None:
    opened = manager(durability="turn")
    agent(opened, ScriptedReply(text="A long answer in many pieces", chunk_delay=0.05))("How long?")
    question, answer = stored(sessions)
    assert answer["created_at"] - question["created_at"] >= timedelta(milliseconds=50)


def test_a_redaction_after_a_refused_message_does_not_overwrite_the_one_before(
    manager: Callable[..., MongoDBSessionManager], sessions: Collection[dict[str, Any]]
) -> None:
    opened = manager()
    talker = agent(opened)
    talker("one")
    with pytest.raises(UnstorableValueError):
        talker("x" * 17_000_000)
    with pytest.raises(MongoDBSessionError, match="no message"):
        opened.redact_latest_message({"role": "user", "content": [{"text": "[redacted]"}]}, talker)
    assert [(m["role"], m["content"][0]["text"]) for m in stored(sessions)] == [("user", "one"), ("assistant", "Yes.")]


def test_a_guardrail_redacts_the_question_and_not_a_note_that_was_appended_by_hand_behind_it(
    manager: Callable[..., MongoDBSessionManager], sessions: Collection[dict[str, Any]]
) -> None:
    opened = manager()
    talker = agent(opened, ScriptedReply(text="No.", redact_user="[redacted]"))
    note: Any = {"role": "assistant", "content": [{"text": "a note"}]}

    def take_a_note(event: MessageAddedEvent) -> None:
        if event.message["role"] == "user":
            opened.append_message(note, event.agent)

    talker.hooks.add_callback(MessageAddedEvent, take_a_note)
    talker("secret")

    content = [(m["role"], m["content"][0]["text"]) for m in stored(sessions)]
    assert content == [("user", "[redacted]"), ("assistant", "a note"), ("assistant", "No.")]
    events = [(event["message_id"], event["action"]) for event in opened.get_guardrail_events()]
    assert events == [(0, "redacted"), (2, "intervened")]


def test_an_agent_whose_first_commit_failed_can_be_built_again(
    manager: Callable[..., MongoDBSessionManager],
    client: MongoClient[dict[str, Any]],
    sessions: Collection[dict[str, Any]],
) -> None:
    opened = manager()
    agent(opened, agent_id="other")
    said: list[Any] = [
        {"role": "user", "content": [{"text": "one"}]},
        {"role": "assistant", "content": [{"text": "1"}]},
    ]
    with fail_command(client, "update", app_name=APP_NAME, error_code=13), pytest.raises(OperationFailure):
        agent(opened, messages=[dict(message) for message in said])
    again = agent(opened, messages=[dict(message) for message in said])
    again("two")
    assert [m["content"][0]["text"] for m in stored(sessions)] == ["one", "1", "two", "Yes."]


def test_a_manager_whose_agent_was_refused_is_forgotten_when_nobody_holds_it(
    manager: Callable[..., MongoDBSessionManager],
) -> None:
    agent(manager())  # The session is there, so that the next agent takes a commit of its own.
    opened = manager()
    with pytest.raises(UnstorableValueError):
        agent(opened, agent_id="b", messages=[{"role": "user", "content": [{"text": date(2026, 1, 1)}]}])
    forgotten = weakref.ref(opened)
    del opened
    gc.collect()
    assert forgotten() is None


@pytest.mark.parametrize("fails_first", [False, True])
def test_a_reload_redacts_what_may_have_been_stored_though_nobody_was_told_so(
    manager: Callable[..., MongoDBSessionManager],
    client: MongoClient[dict[str, Any]],
    sessions: Collection[dict[str, Any]],
    fails_first: bool,
) -> None:
    opened = manager(on_conflict="raise")
    talker = agent(opened)
    talker("one")
    with stored_but_not_told(client), pytest.raises(WriteConcernError):
        opened.append_message({"role": "user", "content": [{"text": "secret"}]}, talker)
    with fail_command(client, "update", app_name=APP_NAME, error_code=13), pytest.raises(OperationFailure):
        opened.redact_latest_message({"role": "user", "content": [{"text": "[redacted]"}]}, talker)
    if fails_first:
        with fail_command(client, "update", app_name=APP_NAME, error_code=13), pytest.raises(OperationFailure):
            opened.reload(talker)
        opened.flush()  # What was found to be stored is not sent again.
    opened.reload(talker)
    assert [m["content"][0]["text"] for m in stored(sessions)] == ["one", "Yes.", "[redacted]"]
    assert talker.messages[-1]["content"] == [{"text": "[redacted]"}]


def test_a_reload_that_could_not_read_keeps_what_waits(
    manager: Callable[..., MongoDBSessionManager],
    client: MongoClient[dict[str, Any]],
    sessions: Collection[dict[str, Any]],
) -> None:
    opened = manager(on_conflict="raise")
    one, other = agent(opened), agent(manager())
    other("first")
    with pytest.raises(SessionConflictError):
        one("second")
    with fail_command(client, "find", app_name=APP_NAME, error_code=13), pytest.raises(OperationFailure):
        opened.reload(one)
    opened.flush(on_conflict="rebase")
    assert [m["content"][0]["text"] for m in stored(sessions)] == ["first", "Yes.", "second"]


def test_a_manager_of_its_own_client_can_be_closed_after_its_session_was_deleted(
    server: Any, database_name: str, sessions: Collection[dict[str, Any]]
) -> None:
    opened = MongoDBSessionManager("s", server.uri, database_name, "sessions", durability="turn")
    talker = agent(opened)
    talker.state.set("a", 1)
    sessions.delete_one({"_id": "s"})
    with pytest.raises(SessionNotFoundError):
        opened.close()
    opened.close()
    with pytest.raises(Exception, match="close"):
        opened.get_metadata()


def test_an_agent_with_messages_whose_bson_is_far_larger_than_it_seems_is_stored(
    manager: Callable[..., MongoDBSessionManager],
) -> None:
    mine = manager()
    mine.update_metadata({"begun": True})
    flags = {"toolUseId": "t", "status": "success", "content": [{"json": [True] * 16_000}]}  # 117 kB
    messages: Any = [{"role": "user", "content": [{"toolResult": flags}]} for _ in range(160)]

    agent(mine, messages=messages)

    assert len(mine.session_repository.list_messages("s", "a")) == 160
