"""What waits to be stored is neither lost, held up, kept for ever nor taken for something else."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any

import pytest
from offline_model import OfflineScriptedModel, ScriptedReply
from pymongo.errors import InvalidOperation, OperationFailure, WriteConcernError
from strands import Agent
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.hooks import MessageAddedEvent
from support.application import APP_NAME, Application, both_durabilities
from support.histories import by_hand, texts
from support.running import run_script

from mongodb_session_manager import (
    MongoDBSessionError,
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    SessionConflictError,
    SessionNotFoundError,
    UnstorableValueError,
)


def agent(manager: MongoDBSessionManager, *replies: Any, **options: Any) -> Agent:
    model = OfflineScriptedModel(replies or ["Yes."] * 20)
    return Agent(model=model, session_manager=manager, callback_handler=None, **{"agent_id": "a", **options})


def image(content: bytes) -> dict[str, Any]:
    return {"image": {"format": "png", "source": {"bytes": content}}}


@contextlib.contextmanager
def stored_but_not_told(app: Application) -> Iterator[None]:
    """Updates are made, and the answer is that too few nodes have them yet."""
    failure = {"code": 64, "errmsg": "waiting for replication timed out"}
    data = {"failCommands": ["update"], "appName": APP_NAME, "writeConcernError": failure}
    client = app.database.client
    client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=data)
    try:
        yield
    finally:
        client.admin.command("configureFailPoint", "failCommand", mode="off")


def assert_forgotten(manager: weakref.ref[MongoDBSessionManager]) -> None:
    gc.collect()
    assert manager() is None


class KeepsADate(SlidingWindowConversationManager):
    """A conversation manager whose state cannot be stored."""

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "since": date(2026, 1, 1)}


@pytest.mark.slow
def test_a_manager_whose_window_moved_is_forgotten_when_nobody_holds_it(app: Application) -> None:
    opened = app.process()
    talker = agent(opened, conversation_manager=SlidingWindowConversationManager(window_size=4))
    for _ in range(4):
        talker("And?")
    opened.close()
    forgotten = weakref.ref(opened)
    del opened, talker
    assert_forgotten(forgotten)


@pytest.mark.slow
@both_durabilities
def test_state_that_cannot_be_stored_keeps_no_message_from_being_stored(app: Application, durability: Any) -> None:
    opened = app.process(durability=durability)
    other = agent(opened, agent_id="other")
    other("Hello")
    talker = agent(opened)
    talker.conversation_manager = KeepsADate()
    other.state.set("seen", 1)
    with pytest.raises(Exception, match="cannot be stored") as refused:
        talker("Hello")
    assert isinstance(refused.value.__cause__ or refused.value, UnstorableValueError)
    assert app.messages()[0]["content"] == [{"text": "Hello"}]

    with pytest.raises(UnstorableValueError):
        opened.flush()
    assert app.record("other")["agent_data"]["state"] == {"seen": 1}


@pytest.mark.slow
def test_an_image_appended_by_hand_is_not_taken_for_another_one(app: Application) -> None:
    opened = app.process()
    talker = agent(opened)
    opened.append_message({"role": "user", "content": [image(b"one")]}, talker)
    talker([image(b"two")])
    opened.append_message({"role": "assistant", "content": [image(b"three")]}, talker)
    opened.append_message({"role": "assistant", "content": [image(b"four")]}, talker)
    images = [m["content"][0]["image"]["source"]["bytes"] for m in app.messages() if "image" in m["content"][0]]
    assert images == [b"one", b"two", b"three", b"four"]


@pytest.mark.slow
def test_a_conversation_appended_by_hand_does_not_swallow_the_next_question(app: Application) -> None:
    opened = app.process()
    talker = agent(opened)
    for role, text in (("user", "Hi"), ("assistant", "Hello"), ("assistant", "Hello")):
        opened.append_message(by_hand(text, role), talker)
    talker("Hi")
    assert texts(app.messages()) == ["Hi", "Hello", "Hello", "Hi", "Yes."]


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
    app: Application, leave: Callable[[MongoDBSessionManager], None]
) -> None:
    opened = MongoDBSessionManager("s", app.uri, app.database.name, "sessions")
    talker = agent(opened)
    talker("one")
    talker.conversation_manager = KeepsADate()

    with pytest.raises(UnstorableValueError):
        leave(opened)

    opened.close()
    with pytest.raises(InvalidOperation, match="after close"):
        opened.list_agents()


@pytest.mark.slow
def test_a_message_carries_the_time_at_which_it_was_added_not_that_of_its_commit(app: Application) -> None:
    opened = app.process(durability="turn")
    agent(opened, ScriptedReply(text="A long answer in many pieces", chunk_delay=0.05))("How long?")
    question, answer = app.messages()
    assert answer["created_at"] - question["created_at"] >= timedelta(milliseconds=50)


@pytest.mark.slow
def test_a_redaction_after_a_refused_message_does_not_overwrite_the_one_before(app: Application) -> None:
    opened = app.process()
    talker = agent(opened)
    talker("one")
    with pytest.raises(UnstorableValueError):
        talker("x" * 17_000_000)
    with pytest.raises(MongoDBSessionError, match="no message"):
        opened.redact_latest_message(by_hand("[redacted]"), talker)
    assert app.dialogue() == [("user", "one"), ("assistant", "Yes.")]


def test_a_guardrail_redacts_the_question_and_not_a_note_that_was_appended_by_hand_behind_it(app: Application) -> None:
    opened = app.process()
    talker = agent(opened, ScriptedReply(text="No.", redact_user="[redacted]"))
    note = by_hand("a note", "assistant")

    def take_a_note(event: MessageAddedEvent) -> None:
        if event.message["role"] == "user":
            opened.append_message(note, event.agent)

    talker.hooks.add_callback(MessageAddedEvent, take_a_note)
    talker("secret")

    assert app.dialogue() == [("user", "[redacted]"), ("assistant", "a note"), ("assistant", "No.")]
    events = [(event["message_id"], event["action"]) for event in opened.get_guardrail_events()]
    assert events == [(0, "redacted"), (2, "intervened")]


@pytest.mark.topology
def test_an_agent_whose_first_commit_failed_can_be_built_again(app: Application) -> None:
    opened = app.process()
    agent(opened, agent_id="other")
    said = [by_hand("one"), by_hand("1", "assistant")]
    with app.failing("update"), pytest.raises(OperationFailure):
        agent(opened, messages=[dict(message) for message in said])
    again = agent(opened, messages=[dict(message) for message in said])
    again("two")
    assert texts(app.messages()) == ["one", "1", "two", "Yes."]


@pytest.mark.slow
def test_a_manager_whose_agent_was_refused_is_forgotten_when_nobody_holds_it(app: Application) -> None:
    agent(app.process())  # The session is there, so that the next agent takes a commit of its own.
    opened = app.process()
    with pytest.raises(UnstorableValueError):
        agent(opened, agent_id="b", messages=[by_hand(date(2026, 1, 1))])
    forgotten = weakref.ref(opened)
    del opened
    assert_forgotten(forgotten)


@pytest.mark.topology
@pytest.mark.parametrize("fails_first", [False, True])
def test_a_reload_redacts_what_may_have_been_stored_though_nobody_was_told_so(
    app: Application, fails_first: bool
) -> None:
    opened = app.process(on_conflict="raise")
    talker = agent(opened)
    talker("one")
    with stored_but_not_told(app), pytest.raises(WriteConcernError):
        opened.append_message(by_hand("secret"), talker)
    with app.failing("update"), pytest.raises(OperationFailure):
        opened.redact_latest_message(by_hand("[redacted]"), talker)
    if fails_first:
        with app.failing("update"), pytest.raises(OperationFailure):
            opened.reload(talker)
        opened.flush()  # What was found to be stored is not sent again.
    opened.reload(talker)
    assert texts(app.messages()) == ["one", "Yes.", "[redacted]"]
    assert talker.messages[-1]["content"] == [{"text": "[redacted]"}]


@pytest.mark.topology
def test_a_reload_that_could_not_read_keeps_what_waits(app: Application) -> None:
    opened = app.process(on_conflict="raise")
    one, other = agent(opened), agent(app.process())
    other("first")
    with pytest.raises(SessionConflictError):
        one("second")
    with app.failing("find"), pytest.raises(OperationFailure):
        opened.reload(one)
    opened.flush(on_conflict="rebase")
    assert texts(app.messages()) == ["first", "Yes.", "second"]


def test_a_manager_of_its_own_client_can_be_closed_after_its_session_was_deleted(app: Application) -> None:
    opened = MongoDBSessionManager("s", app.uri, app.database.name, "sessions", durability="turn")
    talker = agent(opened)
    talker.state.set("a", 1)
    app.database.sessions.delete_one({"_id": "s"})
    with pytest.raises(SessionNotFoundError):
        opened.close()
    opened.close()
    with pytest.raises(Exception, match="close"):
        opened.get_metadata()


@pytest.mark.slow
def test_an_agent_with_messages_whose_bson_is_far_larger_than_it_seems_is_stored(app: Application) -> None:
    mine = app.process()
    mine.update_metadata({"begun": True})
    flags = {"toolUseId": "t", "status": "success", "content": [{"json": [True] * 16_000}]}  # 117 kB
    messages: Any = [{"role": "user", "content": [{"toolResult": flags}]} for _ in range(160)]

    agent(mine, messages=messages)

    assert len(mine.session_repository.list_messages("s", "a")) == 160


# --- an agent that is built and never asked


def close_in_thread(opened: MongoDBSessionManager) -> None:
    asyncio.run(asyncio.to_thread(opened.close))


@pytest.mark.slow
@both_durabilities
def test_a_request_that_builds_an_agent_and_asks_it_nothing_keeps_no_manager_in_memory(
    app: Application, durability: Any
) -> None:
    app.process().update_metadata({"begun": True})  # So that the agent is not stored together with its session.
    opened = app.process(durability=durability)
    talker = agent(opened)
    talker.state.set("seen", 1)
    forgotten = weakref.ref(opened)
    del opened, talker
    assert_forgotten(forgotten)


@pytest.mark.slow
def test_an_agent_that_is_never_asked_keeps_no_manager_in_memory_whose_other_agents_have_answered(
    app: Application,
) -> None:
    opened = app.process()
    asked, spare = agent(opened), agent(opened, agent_id="spare")
    asked("Hello")
    opened.append_message(by_hand("by hand"), asked)
    assert opened.list_agents() == ["a"]
    forgotten = weakref.ref(opened)
    del opened, asked, spare
    assert_forgotten(forgotten)


def test_a_factory_is_closed_at_once_though_sessions_are_gone_in_which_nobody_was_asked(app: Application) -> None:
    factory = MongoDBSessionManagerFactory(app.uri, app.database.name, "sessions", event_listeners=[app.recorder])
    held = []
    for number in range(3):
        opened = asyncio.run(factory.open(f"s{number}", agent_id="a"))
        held.append((opened, agent(opened)))
    app.database.sessions.delete_many({})
    with app.recorder.recording() as commands:
        factory.close()
    assert commands.names == []


@pytest.mark.parametrize(
    "store", [MongoDBSessionManager.flush, MongoDBSessionManager.close, leave_with, leave_async_with, close_in_thread]
)
def test_an_agent_that_is_never_asked_is_stored_if_its_manager_is_flushed_or_closed(
    app: Application, store: Callable[[MongoDBSessionManager], None]
) -> None:
    app.process().update_metadata({"begun": True})
    opened = app.process()
    talker = agent(opened)
    talker.state.set("seen", 1)
    store(opened)
    restored = agent(app.process())
    assert restored.state.get() == {"seen": 1}


@pytest.mark.topology
def test_a_new_agent_that_could_not_be_stored_when_its_manager_was_closed_is_stored_when_it_is_closed_again(
    app: Application,
) -> None:
    app.process().update_metadata({"begun": True})
    opened = MongoDBSessionManager("s", app.uri, app.database.name, "sessions", appname=APP_NAME)
    talker = agent(opened)
    with app.failing("update"), pytest.raises(OperationFailure):
        opened.close()
    opened.close()
    assert app.database.sessions.find_one({"agents.a": {"$exists": True}})
    del talker


BUILDS_AN_AGENT_AND_ENDS = """
    import sys

    from offline_model import OfflineScriptedModel
    from pymongo import MongoClient
    from strands import Agent

    from mongodb_session_manager import MongoDBSessionManager

    uri, database_name = sys.argv[1:]
    client = MongoClient(uri)
    manager = MongoDBSessionManager("s", client=client, database_name=database_name, collection_name="sessions")
    manager.update_metadata({"begun": True})
    agent = Agent(model=OfflineScriptedModel(["Yes."]), agent_id="a", session_manager=manager, callback_handler=None)
"""


@pytest.mark.slow
def test_a_process_that_ends_stores_no_agent_that_was_asked_nothing_and_complains_of_nothing(app: Application) -> None:
    run_script(BUILDS_AN_AGENT_AND_ENDS, app.uri, app.database.name)
    assert app.session()["agents"] == {}
