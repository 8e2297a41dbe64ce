"""What waits to be stored is neither lost, held up, kept for ever nor taken for something else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import weakref
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from offline_model import OfflineScriptedModel, ScriptedReply
from pymongo import MongoClient
from pymongo.errors import InvalidOperation, OperationFailure, WriteConcernError
from strands import Agent
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.hooks import MessageAddedEvent
from support.commands import CommandRecorder
from support.failpoints import fail_command
from support.gates import Gate
from support.waiting import eventually

from mongodb_session_manager import (
    MongoDBSessionError,
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    MongoDBSessionRepository,
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.topology
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


@pytest.mark.slow
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


@pytest.mark.topology
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


@pytest.mark.topology
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


@pytest.mark.slow
def test_an_agent_with_messages_whose_bson_is_far_larger_than_it_seems_is_stored(
    manager: Callable[..., MongoDBSessionManager],
) -> None:
    mine = manager()
    mine.update_metadata({"begun": True})
    flags = {"toolUseId": "t", "status": "success", "content": [{"json": [True] * 16_000}]}  # 117 kB
    messages: Any = [{"role": "user", "content": [{"toolResult": flags}]} for _ in range(160)]

    agent(mine, messages=messages)

    assert len(mine.session_repository.list_messages("s", "a")) == 160


# --- an agent that is built and never asked


def close_in_thread(opened: MongoDBSessionManager) -> None:
    asyncio.run(asyncio.to_thread(opened.close))


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["message", "turn"])
def test_a_request_that_builds_an_agent_and_asks_it_nothing_keeps_no_manager_in_memory(
    manager: Callable[..., MongoDBSessionManager], durability: str
) -> None:
    manager().update_metadata({"begun": True})  # So that the agent is not stored together with its session.
    opened = manager(durability=durability)
    talker = agent(opened)
    talker.state.set("seen", 1)
    forgotten = weakref.ref(opened)
    del opened, talker
    gc.collect()
    assert forgotten() is None


@pytest.mark.slow
def test_an_agent_that_is_never_asked_keeps_no_manager_in_memory_whose_other_agents_have_answered(
    manager: Callable[..., MongoDBSessionManager],
) -> None:
    opened = manager()
    asked, spare = agent(opened), agent(opened, agent_id="spare")
    asked("Hello")
    opened.append_message({"role": "user", "content": [{"text": "by hand"}]}, asked)
    assert opened.list_agents() == ["a"]
    forgotten = weakref.ref(opened)
    del opened, asked, spare
    gc.collect()
    assert forgotten() is None


def test_a_factory_is_closed_at_once_though_sessions_are_gone_in_which_nobody_was_asked(
    server: Any, client: MongoClient[dict[str, Any]], database_name: str
) -> None:
    recorder = CommandRecorder()
    factory = MongoDBSessionManagerFactory(server.uri, database_name, "sessions", event_listeners=[recorder])
    held = []
    for number in range(3):
        opened = asyncio.run(factory.open(f"s{number}", agent_id="a"))
        held.append((opened, agent(opened)))
    client[database_name]["sessions"].delete_many({})
    recorder.clear()
    factory.close()
    assert recorder.names == []


@pytest.mark.parametrize(
    "store", [MongoDBSessionManager.flush, MongoDBSessionManager.close, leave_with, leave_async_with, close_in_thread]
)
def test_an_agent_that_is_never_asked_is_stored_if_its_manager_is_flushed_or_closed(
    manager: Callable[..., MongoDBSessionManager], store: Callable[[MongoDBSessionManager], None]
) -> None:
    manager().update_metadata({"begun": True})
    opened = manager()
    talker = agent(opened)
    talker.state.set("seen", 1)
    store(opened)
    restored = agent(manager())
    assert restored.state.get() == {"seen": 1}


@pytest.mark.topology
def test_a_new_agent_that_could_not_be_stored_when_its_manager_was_closed_is_stored_when_it_is_closed_again(
    server: Any, client: MongoClient[dict[str, Any]], database_name: str
) -> None:
    with MongoDBSessionManager("s", server.uri, database_name, "sessions") as first:
        first.update_metadata({"begun": True})
    opened = MongoDBSessionManager("s", server.uri, database_name, "sessions", appname=APP_NAME)
    talker = agent(opened)
    with fail_command(client, "update", app_name=APP_NAME, error_code=13), pytest.raises(OperationFailure):
        opened.close()
    opened.close()
    assert client[database_name]["sessions"].find_one({"agents.a": {"$exists": True}})
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
def test_a_process_that_ends_stores_no_agent_that_was_asked_nothing_and_complains_of_nothing(
    server: Any, database_name: str, sessions: Collection[dict[str, Any]]
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BUILDS_AN_AGENT_AND_ENDS), server.uri, database_name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    document = sessions.find_one({"_id": "s"})
    assert document is not None
    assert document["agents"] == {}


@pytest.mark.slow
def test_a_turn_that_is_under_way_at_a_fork_is_stored_once_and_by_the_parent(
    server: Any, sessions: Collection[dict[str, Any]], database_name: str
) -> None:
    script = textwrap.dedent(
        """
        import os, sys, traceback, warnings
        from offline_model import OfflineScriptedModel
        from strands import Agent
        from strands.hooks import MessageAddedEvent
        from mongodb_session_manager import MongoDBSessionManager

        warnings.filterwarnings("error", message="MongoClient opened before fork")  # A child that sends anything.
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of every fork beside threads.

        def fork(event):
            if event.message["role"] == "user":
                child = os.fork()
                if child == 0:
                    try:
                        manager.flush()
                        os._exit(0)
                    except BaseException:
                        traceback.print_exc()
                        sys.stderr.flush()
                        os._exit(1)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

        manager = MongoDBSessionManager("s", sys.argv[1], sys.argv[2], "sessions", durability="turn")
        agent = Agent(
            model=OfflineScriptedModel(["Hello."]), agent_id="a", session_manager=manager, callback_handler=None
        )
        agent.hooks.add_callback(MessageAddedEvent, fork)
        agent("Hi.")
        manager.close()
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, server.uri, database_name],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PYTHONPATH": "examples"},
    )
    assert done.returncode == 0, done.stderr
    assert [message["content"][0]["text"] for message in stored(sessions)] == ["Hi.", "Hello."]


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def held(server: Any, database_name: str, gate: Gate) -> Iterator[MongoDBSessionManager]:
    """A manager whose uploads can be held."""
    held_client: MongoClient[dict[str, Any]]
    with (
        MongoClient(server.uri, event_listeners=[gate]) as held_client,
        MongoDBSessionManager("s", client=held_client, database_name=database_name, collection_name="sessions") as held,
    ):
        yield held


PICTURE, LARGER = b"picture" * 30_000, b"larger!" * 40_000


@pytest.mark.slow
def test_a_picture_that_is_redacted_while_it_is_uploaded_lies_in_no_collection(
    held: MongoDBSessionManager, gate: Gate, client: MongoClient[dict[str, Any]], database_name: str
) -> None:
    asking = agent(held)
    held.flush()

    async def redact() -> None:
        held.redact_latest_message({"role": "user", "content": [{"text": "[redacted]"}]}, asking)

    with ThreadPoolExecutor() as threads:
        with gate.holding("insert") as uploading:
            threads.submit(held.append_message, {"role": "user", "content": [image(PICTURE)]}, asking)
            uploading.wait()
            asyncio.run(redact())
        held.flush()
    assert [message["content"] for message in stored(client[database_name]["sessions"])] == [[{"text": "[redacted]"}]]
    assert client[database_name]["sessions_blobs.files"].count_documents({}) == 0
    assert client[database_name]["sessions_blobs.chunks"].count_documents({}) == 0


@pytest.mark.slow
def test_a_message_that_is_replaced_while_its_picture_is_uploaded_can_be_read_at_any_moment(
    held: MongoDBSessionManager, gate: Gate, client: MongoClient[dict[str, Any]], database_name: str
) -> None:
    asking = agent(held)
    held.flush()
    repository = MongoDBSessionRepository(client=client, database_name=database_name, collection_name="sessions")

    def shown() -> Any:
        (message,) = repository.list_messages("s", "a")
        return message.message["content"][0]["image"]["source"]["bytes"]

    def say(content: bytes) -> None:
        message: Any = {"role": "user", "content": [image(content)], "tracking_id": "t"}
        asking.messages[:] = [message]
        held.append_message(message, asking)

    async def say_more() -> None:
        say(LARGER)

    with ThreadPoolExecutor() as threads:
        with gate.holding("insert") as uploading:
            threads.submit(say, PICTURE)
            uploading.wait()
            asyncio.run(say_more())
            with gate.holding("insert") as uploading_more:
                uploading.released.set()
                uploading_more.wait()
                assert shown() == PICTURE
        held.flush()
    assert shown() == LARGER


@pytest.mark.slow
def test_a_manager_that_is_forgotten_in_an_outage_is_still_stored_when_its_factory_is_closed(
    server: Any, client: MongoClient[dict[str, Any]], database_name: str, sessions: Collection[dict[str, Any]]
) -> None:
    recorder = CommandRecorder()
    factory = MongoDBSessionManagerFactory(
        server.uri, database_name, "sessions", appname=APP_NAME, event_listeners=[recorder]
    )
    outage = contextlib.ExitStack()

    async def handle() -> None:
        manager = factory.create_session_manager("s")
        asking = agent(manager)
        await asyncio.to_thread(manager.flush)
        outage.enter_context(fail_command(client, "update", app_name=APP_NAME, error_code=2))
        manager.append_message({"role": "user", "content": [{"text": "Important."}]}, asking)

    async def serve() -> None:
        await handle()
        gc.collect()
        await asyncio.to_thread(eventually, lambda: recorder.commands.failures)

    with outage:
        asyncio.run(serve())
        gc.collect()

    def closed() -> bool:
        """The attempt that failed may not be over yet."""
        with contextlib.suppress(OperationFailure):
            factory.close()
            return True
        return False

    eventually(closed)
    assert [message["content"] for message in stored(sessions)] == [[{"text": "Important."}]]
