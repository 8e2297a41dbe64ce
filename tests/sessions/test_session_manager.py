"""The session manager as an application uses it: what it stores, restores, refuses and gives back."""

import asyncio
import contextlib
import copy
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

import pytest
from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import InvalidOperation, OperationFailure, PyMongoError
from pymongo.read_preferences import Primary, PrimaryPreferred
from strands import Agent, ToolContext, tool
from strands.session.repository_session_manager import RepositorySessionManager
from strands.types.exceptions import EventLoopException
from support.application import NOWHERE, Application, both_durabilities, dialogue
from support.commands import Commands
from support.equality import assert_same
from support.histories import SESSIONS, at_rest, by_hand, texts

from mongodb_session_manager import (
    AgentNotFoundError,
    MessageNotFoundError,
    MongoDBSessionError,
    MongoDBSessionManager,
    SessionNotFoundError,
    UnstorableValueError,
    create_mongodb_session_manager,
)

SECRET = "my card is 4929-1234-5678-9012"


def looking_at(app: Application, seen: list[int]) -> Any:
    """A tool that notes how many messages are stored when it is called."""

    @tool
    def look() -> str:
        """Look at what is stored so far."""
        seen.append(len(app.messages()))
        return "looked"

    return look


@tool
def write_much(megabytes: int) -> str:
    """Write a long report."""
    return "m" * (megabytes * 1024 * 1024)


# --- making one


def test_the_function_of_the_documentation_returns_a_manager_of_strands(app: Application) -> None:
    with create_mongodb_session_manager("s", app.uri, app.database.name, SESSIONS) as manager:
        assert isinstance(manager, MongoDBSessionManager)
        assert isinstance(manager, RepositorySessionManager)
        assert manager.session_id == "s"


def test_options_of_the_client_and_of_the_manager_reach_both_through_the_function(
    server: Any, database_name: str
) -> None:
    with create_mongodb_session_manager(
        "s", server.uri, database_name, maxPoolSize=7, appname="chat", w="majority", session_type="chat"
    ) as manager:
        client = manager.session_repository.client
        assert client.options.pool_options.max_pool_size == 7
        assert client.options.pool_options.appname == "chat"
        assert client.write_concern.document["w"] == "majority"
        assert manager.session.session_type == "chat"


@pytest.mark.parametrize("options", [{"durability": "trun"}, {"durability": None}, {"on_conflict": "merge"}, {"w": 0}])
def test_an_option_that_would_lose_messages_or_means_nothing_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"durability|on_conflict|w=0"):
        MongoDBSessionManager("s", NOWHERE, **options)


def test_a_borrowed_client_that_does_not_acknowledge_writes_is_refused() -> None:
    with MongoClient(NOWHERE, w=0, connect=False) as client, pytest.raises(ValueError, match="w=0"):
        MongoDBSessionManager("s", client=client)


def test_neither_a_connection_string_nor_a_client_is_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match=r"connection_string.*client"):
        MongoDBSessionManager("s")


def test_an_async_client_is_refused_with_the_reason_instead_of_failing_in_the_first_turn() -> None:
    client: AsyncMongoClient[Any] = AsyncMongoClient(NOWHERE, connect=False)
    with pytest.raises(TypeError, match="event loop"):
        MongoDBSessionManager("s", client=client)  # type: ignore[arg-type]


def test_options_beside_a_borrowed_client_are_named_rather_than_silently_dropped() -> None:
    with MongoClient(NOWHERE, connect=False) as client, pytest.warns(UserWarning, match=r"maxPoolSize.*tls"):
        MongoDBSessionManager("s", client=client, tls=True, maxPoolSize=5)


@pytest.mark.slow
def test_a_client_wins_over_a_connection_string_as_documented(app: Application) -> None:
    with MongoDBSessionManager("s", NOWHERE, app.database.name, SESSIONS, app.client) as manager:
        assert manager.session_repository.client is app.client
    assert app.client.admin.command("ping")["ok"] == 1


def test_a_misspelt_option_of_the_client_is_an_error() -> None:
    with pytest.raises(PyMongoError, match="maxPoolSiez"):
        MongoDBSessionManager("s", NOWHERE, maxPoolSiez=5)


@pytest.mark.slow
def test_no_repr_error_or_log_line_shows_the_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    manager = MongoDBSessionManager(
        "s", "mongodb://alice:wonderland@127.0.0.1:9/?authSource=admin", serverSelectionTimeoutMS=100
    )
    with pytest.raises(PyMongoError) as caught:
        manager.get_metadata()
    with pytest.raises(PyMongoError) as caught_by_agent:
        Agent(model=OfflineScriptedModel(), session_manager=manager, callback_handler=None)
    manager.close()

    shown = [repr(manager), str(manager), repr(manager.session_repository), repr(caught.value), str(caught.value)]
    shown += [repr(caught_by_agent.value), caplog.text]
    assert "s" in repr(manager)
    assert "wonderland" not in "\n".join(shown)


# --- the session, without naming it


@pytest.mark.slow
def test_metadata_can_be_written_before_there_is_a_session_or_an_agent_and_stays(app: Application) -> None:
    manager = app.manager()
    assert manager.get_metadata() == {}

    manager.update_metadata({"user": "Alice", "priority": "high", "address.city": "Bilbo"})
    manager.update_metadata({"priority": "low", "address.zip": "48001"})
    app.agent(manager, "Hello.")("Hello?")

    expected = {"user": "Alice", "priority": "low", "address": {"city": "Bilbo", "zip": "48001"}}
    assert manager.get_metadata() == {"metadata": expected}
    assert app.session()["metadata"] == expected
    assert app.dialogue() == [("user", "Hello?"), ("assistant", "Hello.")]


@pytest.mark.slow
def test_deleting_metadata_removes_what_is_named_and_nothing_else(app: Application) -> None:
    manager = app.manager()
    manager.update_metadata({"token": SECRET, "keep": 1, "nested": {"gone": 1, "stays": 2}})

    manager.delete_metadata(["token", "nested.gone", "never there"])

    assert manager.get_metadata() == {"metadata": {"keep": 1, "nested": {"stays": 2}}}
    app.nothing_at_rest(SECRET)


def test_deleting_metadata_of_a_session_that_does_not_exist_is_no_error(app: Application) -> None:
    manager = app.manager()
    manager.delete_metadata(["anything"])
    assert manager.get_metadata() in ({}, {"metadata": {}})


def test_feedback_given_during_a_conversation_does_not_touch_the_conversation(app: Application) -> None:
    manager, agent = app.opened("One.", "Two.")
    agent("1")
    manager.add_feedback({"rating": "up"})
    manager.update_metadata({"rated": True})
    agent("2")

    assert app.dialogue() == [("user", "1"), ("assistant", "One."), ("user", "2"), ("assistant", "Two.")]
    assert len(manager.get_feedbacks()) == 1


def test_the_session_property_is_the_stored_header_and_begins_the_session(app: Application) -> None:
    manager = app.manager(session_type="support")

    session = manager.session

    stored = app.session()
    assert (session.session_id, session.session_type) == ("s", "support")
    created_at = datetime.fromisoformat(session.created_at)
    assert created_at.tzinfo is not None
    assert created_at.replace(tzinfo=None) == stored["created_at"]
    assert app.manager().session.created_at == session.created_at


def test_application_name_and_session_type_are_stored_with_a_new_session_and_never_changed_later(
    app: Application,
) -> None:
    app.agent(app.manager(application_name="shop", session_type="chat"), "Hello.")("Hello?")
    app.agent(app.manager(application_name="other", session_type="other"), "Hello.")("Hello?")
    app.manager("t", application_name="shop", session_type="chat").update_metadata({"k": 1})
    app.manager("u").update_metadata({"k": 1})

    for session_id in ("s", "t"):
        stored = app.session(session_id)
        assert (stored["application_name"], stored["session_type"]) == ("shop", "chat")
    assert app.session("u")["session_type"] == "default"
    assert "application_name" not in app.session("u")


def test_a_manager_whose_session_was_deleted_does_not_bring_it_back_and_can_be_closed(app: Application) -> None:
    manager, agent = app.opened("One.", "Two.")
    agent("1")
    app.database.sessions.delete_one({"_id": "s"})

    with pytest.raises(SessionNotFoundError, match="'s'"):
        agent("2")
    with pytest.raises(SessionNotFoundError):
        manager.update_metadata({"k": 1})
    with pytest.raises(SessionNotFoundError):
        manager.close()
    with pytest.raises(SessionNotFoundError):
        manager.reload(agent)  # gives up what cannot be stored any more
    manager.close()

    assert app.database.sessions.count_documents({}) == 0


# --- closing


def test_closing_closes_the_managers_own_client_once_and_leaves_a_borrowed_one_open(app: Application) -> None:
    own = create_mongodb_session_manager("s", app.uri, app.database.name, SESSIONS)
    app.agent(own, "Hello.")("Hello?")
    borrowed = app.manager()
    borrowed.update_metadata({"k": 1})

    for manager in (own, borrowed):
        manager.close()
        manager.close()

    with pytest.raises(InvalidOperation):
        own.session_repository.client.admin.command("ping")
    assert app.client.admin.command("ping")["ok"] == 1


async def inside(manager: MongoDBSessionManager, kind: str, work: Callable[[], Awaitable[None]]) -> None:
    if kind == "with":
        with manager:
            await work()
    else:
        async with manager:
            await work()


with_and_async_with = pytest.mark.parametrize("kind", ["with", "async with"])


@pytest.mark.slow
@with_and_async_with
def test_leaving_with_or_async_with_closes_the_managers_own_client(app: Application, kind: str) -> None:
    manager = create_mongodb_session_manager("s", app.uri, app.database.name)

    async def request() -> None:
        await app.agent(manager, "Hello.").invoke_async("Hello?")

    asyncio.run(inside(manager, kind, request))

    with pytest.raises(InvalidOperation):
        manager.session_repository.client.admin.command("ping")


@pytest.mark.slow
@with_and_async_with
def test_leaving_with_stores_what_an_unfinished_turn_has_collected_also_when_an_error_is_on_its_way(
    app: Application, kind: str
) -> None:
    manager = app.manager(durability="turn")

    async def stream() -> None:
        agent = app.agent(manager, ScriptedReply(text="A long answer, in several chunks of text."))
        async for event in agent.stream_async("Hello?"):
            if "data" in event:
                raise ValueError("the application gave up")

    with pytest.raises(ValueError, match="gave up"):
        asyncio.run(inside(manager, kind, stream))

    assert app.dialogue()[0] == ("user", "Hello?")


@pytest.mark.slow
@pytest.mark.topology
@both_durabilities
def test_what_could_not_be_stored_is_kept_and_stored_by_a_later_close(app: Application, durability: Any) -> None:
    manager, agent = app.opened("One.", "Two.", durability=durability)
    agent("1")

    with app.failing("update"):
        with pytest.raises(OperationFailure):
            agent("2")
        with pytest.raises(OperationFailure):
            manager.close()
        with pytest.raises(OperationFailure):
            manager.close()
        assert len(app.messages()) == 2
    manager.close()

    # With "message" the user's message could not be stored, and Strands went no further.
    expected = [("user", "2")] if durability == "message" else [("user", "2"), ("assistant", "Two.")]
    assert app.dialogue()[2:] == expected


@pytest.mark.slow
@pytest.mark.topology
def test_a_failure_at_the_end_of_with_is_raised_and_close_can_be_called_again(app: Application) -> None:
    manager, agent = app.opened("One.")
    agent("1")

    def request() -> None:
        with manager:
            agent.state.set("cart", ["bread"])
            with contextlib.suppress(OperationFailure):
                manager.sync_agent(agent)

    with app.failing("update"), pytest.raises(OperationFailure):
        request()
    manager.close()

    assert app.record()["agent_data"]["state"] == {"cart": ["bread"]}


@with_and_async_with
def test_an_error_inside_with_is_not_replaced_by_a_failure_to_store(app: Application, kind: str) -> None:
    manager, agent = app.opened("One.")
    agent("1")

    async def request() -> None:
        agent.state.set("cart", ["bread"])
        manager.append_message({"role": "user", "content": "by hand"}, agent)
        raise ValueError("the application's own")

    with app.failing("update"), pytest.raises(ValueError, match="own") as caught:
        asyncio.run(inside(manager, kind, request))
    manager.close()

    if hasattr(caught.value, "add_note"):  # Python 3.11 and later; before that it is logged
        assert "OperationFailure" in "\n".join(caught.value.__notes__)
    assert app.dialogue()[-1] == ("user", "by hand")


# --- agents


@pytest.mark.topology
@pytest.mark.parametrize("existing", [True, False])
def test_after_a_failed_read_the_same_manager_can_build_the_agent(app: Application, existing: bool) -> None:
    if existing:
        app.agent(app.manager(), "Hello.")("Hello?")
    manager = app.manager()

    with app.failing("find"), pytest.raises(OperationFailure):
        app.agent(manager)
    agent = app.agent(manager, "Yes.")
    agent("And?")

    assert dialogue(agent.messages)[-2:] == [("user", "And?"), ("assistant", "Yes.")]
    assert len(app.messages()) == (4 if existing else 2)


@pytest.mark.topology
@both_durabilities
def test_a_read_error_is_an_error_and_never_an_empty_history_that_overwrites_the_stored_one(
    app: Application, durability: Any
) -> None:
    app.agent(app.manager(), "Hello.")("Hello?")
    before = app.session()

    manager = app.manager(durability=durability)
    reads = (
        lambda: app.agent(manager),
        manager.get_metadata,
        manager.get_feedbacks,
        lambda: manager.get_message_count("a"),
    )
    with app.failing("find"):
        for read in reads:
            with pytest.raises(OperationFailure):
                read()
        manager.close()

    assert app.session() == before
    assert len(app.agent().messages) == 2


def test_an_agent_that_was_not_built_with_the_manager_is_refused_by_name(app: Application) -> None:
    manager = app.manager()
    stranger = Agent(model=OfflineScriptedModel(), agent_id="stranger", callback_handler=None)

    for call in (
        lambda: manager.append_message(by_hand("x"), stranger),
        lambda: manager.sync_agent(stranger),
        lambda: manager.redact_latest_message(by_hand("x"), stranger),
    ):
        with pytest.raises(AgentNotFoundError, match="stranger"):
            call()


def test_model_and_system_prompt_are_stored_with_the_agent_and_follow_its_changes(app: Application) -> None:
    def data() -> tuple[Any, Any]:
        stored = app.record()["agent_data"]
        return stored.get("model"), stored.get("system_prompt")

    agent = app.agent(app.manager(), "One.", "Two.", system_prompt="Be brief.")
    agent("1")
    assert data() == ("offline-scripted-model", "Be brief.")

    agent.system_prompt = "Be verbose."
    agent.model.update_config(model_id="offline-scripted-model-2")
    agent("2")
    assert data() == ("offline-scripted-model-2", "Be verbose.")


@both_durabilities
def test_model_and_system_prompt_are_kept_when_a_later_process_names_none(app: Application, durability: Any) -> None:
    app.agent(app.manager(), "One.", system_prompt="Be brief.")("1")

    agent = app.agent(app.manager(durability=durability), "Two.")
    agent.model.update_config(model_id=None)
    agent("2")
    agent.state.set("k", 1)
    app.managers[-1].sync_agent(agent)

    stored = app.record()["agent_data"]
    assert (stored["model"], stored["system_prompt"]) == ("offline-scripted-model", "Be brief.")
    read = app.managers[-1].session_repository.read_agent("s", "a")
    assert read is not None
    assert (read.model, read.system_prompt) == ("offline-scripted-model", "Be brief.")


@both_durabilities
def test_a_history_given_to_a_new_agent_is_stored_and_the_conversation_goes_on_behind_it(
    app: Application, durability: Any
) -> None:
    history = [by_hand("Earlier"), by_hand("Yes.", "assistant")]
    agent = app.agent(app.manager(durability=durability), "Sure.", messages=copy.deepcopy(history))
    assert app.dialogue() == dialogue(history)

    agent("Go on")
    restored = app.agent(app.manager(), messages=[by_hand("not this")])

    assert app.dialogue() == [*dialogue(history), ("user", "Go on"), ("assistant", "Sure.")]
    assert_same(restored.messages, agent.messages)


# --- messages appended by hand, as the documentation shows it


async def stream_handler(session_manager: MongoDBSessionManager, agent: Agent, prompt: str) -> AsyncIterator[str]:
    """The streaming example of the documentation, word for word."""
    # Start timing automatically
    session_manager.append_message({"role": "user", "content": prompt}, agent)

    response_chunks = []

    # Stream response tokens
    async for event in agent.stream_async(prompt):
        if "data" in event:
            response_chunks.append(event["data"])
            yield event["data"]  # Real-time streaming

    # Save complete response with metrics
    full_response = "".join(response_chunks)
    session_manager.append_message({"role": "assistant", "content": full_response}, agent)
    session_manager.sync_agent(agent)


def run_streaming_example(manager: MongoDBSessionManager, agent: Agent, *prompts: str) -> None:
    async def conversation() -> None:
        for prompt in prompts:
            async for _ in stream_handler(manager, agent, prompt):
                pass
        await asyncio.to_thread(manager.flush)

    asyncio.run(conversation())


@both_durabilities
def test_the_streaming_example_run_as_written_stores_two_messages_a_turn(app: Application, durability: Any) -> None:
    manager = app.manager(durability=durability)
    agent = app.agent(manager, "Fine, and how are you today, my friend?", "Goodbye, and come again soon, please.")

    run_streaming_example(manager, agent, "How are you?", "Bye")

    stored = app.messages()
    assert dialogue(stored) == dialogue(agent.messages)
    assert [message["role"] for message in stored] == ["user", "assistant"] * 2
    assert ["event_loop_metrics" in message for message in stored] == [False, True, False, True]
    assert app.record()["usage"]["messages"] == 4
    assert app.record()["usage"]["turns"] == 2
    assert_same(app.agent(app.manager()).messages, agent.messages)


@both_durabilities
def test_the_streaming_example_with_a_tool_in_the_turn_stores_each_message_once(
    app: Application, durability: Any
) -> None:
    manager = app.manager(durability=durability)
    calls = ScriptedReply(text="Let me look that up.", tool_calls=(ToolCall("look_up", {"what": "price"}),))
    agent = app.agent(manager, calls, "It is 42, as ever.", "You are welcome.")

    run_streaming_example(manager, agent, "What is the price?", "Thanks")

    stored = app.messages()
    assert dialogue(stored) == dialogue(agent.messages)
    assert [message["role"] for message in stored] == ["user", "assistant", "user", "assistant", "user", "assistant"]
    assert_same(app.agent(app.manager()).messages, agent.messages)


@both_durabilities
@pytest.mark.parametrize("answers", [["Yes."] * 3, ["One.", "Two.", "Three."]])
def test_the_same_question_asked_again_is_stored_again(app: Application, durability: Any, answers: list[str]) -> None:
    manager, agent = app.opened(*answers, durability=durability)

    run_streaming_example(manager, agent, "Again!", "Again!", "Again!")

    assert app.dialogue() == [pair for answer in answers for pair in (("user", "Again!"), ("assistant", answer))]
    assert_same(app.agent(app.manager()).messages, agent.messages)


def test_a_question_appended_by_hand_and_another_one_asked_are_two(app: Application) -> None:
    manager, agent = app.opened("Fine.")
    manager.append_message({"role": "user", "content": "A note of my own"}, agent)
    agent("How are you?")
    manager.append_message({"role": "assistant", "content": "Not what was said"}, agent)

    assert texts(app.messages()) == ["A note of my own", "How are you?", "Fine.", "Not what was said"]


def test_a_string_as_content_becomes_one_text_block_and_is_stored_when_the_call_returns(app: Application) -> None:
    manager, agent = app.opened()

    message = {"role": "user", "content": "Hello"}
    manager.append_message(message, agent)  # type: ignore[arg-type]

    assert app.messages()[0]["content"] == [{"text": "Hello"}]
    assert app.agent(app.manager()).messages[0]["content"] == [{"text": "Hello"}]


def test_a_message_put_into_the_live_conversation_by_hand_is_stored_by_append_message(app: Application) -> None:
    manager, agent = app.opened("Fine.")
    agent.messages.append(by_hand("from elsewhere"))
    manager.append_message(agent.messages[-1], agent)
    agent("How are you?")

    assert app.dialogue() == [("user", "from elsewhere"), ("user", "How are you?"), ("assistant", "Fine.")]


@pytest.mark.topology
def test_messages_of_many_threads_are_all_stored_once(app: Application) -> None:
    manager, agent = app.opened()

    def write(writer: int) -> None:
        for n in range(10):
            manager.append_message({"role": "user", "content": f"{writer}/{n}"}, agent)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))

    stored = [text for _, text in app.dialogue()]
    assert sorted(stored) == sorted(f"{writer}/{n}" for writer in range(8) for n in range(10))
    for writer in range(8):
        assert [text for text in stored if text.startswith(f"{writer}/")] == [f"{writer}/{n}" for n in range(10)]


# --- durability "turn"


@pytest.mark.topology
def test_a_turn_is_stored_as_a_whole_at_its_end_by_one_update(app: Application) -> None:
    seen: list[int] = []
    _, agent = app.opened("Hello.", ToolCall("look"), "Done.", tools=[looking_at(app, seen)], durability="turn")
    agent("Hello?")

    with app.recorder.recording() as commands:
        agent("Look")

    assert seen == [2]
    assert commands.named("update", "insert").names == ["update"]
    pushed = commands[-1].command["updates"][0]["u"]["$push"]["agents.a.messages"]["$each"]
    assert [message["message_id"] for message in pushed] == [2, 3, 4, 5]
    assert len({message["turn_id"] for message in app.messages()[2:]}) == 1
    assert_same(app.agent(app.manager()).messages, agent.messages)


@pytest.mark.topology
def test_with_durability_message_each_message_is_stored_before_the_next_step_of_the_turn(app: Application) -> None:
    seen: list[int] = []

    def answer(messages: Any) -> Any:
        seen.append(len(app.messages()))
        return ToolCall("look") if len(messages) == 1 else "Done."

    agent = app.agent(app.manager(), answer, tools=[looking_at(app, seen)])
    agent("Look")

    assert seen == [1, 2, 3]


def test_a_turn_that_fails_in_the_model_is_stored_at_its_end(app: Application) -> None:
    agent = app.agent(app.manager(durability="turn"), ToolCall("look_up", {"what": "x"}), RuntimeError("down"))
    with pytest.raises(EventLoopException, match="down"):
        agent("Hello?")
    assert [message["role"] for message in app.messages()] == ["user", "assistant", "user"]


def test_direct_tool_calls_are_stored_at_once_though_turns_are_stored_whole(app: Application) -> None:
    agent = app.agent(app.manager(durability="turn"))
    agent.tool.look_up(what="price")
    assert app.dialogue() == dialogue(agent.messages)
    assert len(app.messages()) >= 3


@pytest.mark.slow
def test_a_turn_that_has_collected_more_than_eight_megabytes_is_stored_before_it_ends(app: Application) -> None:
    seen: list[int] = []

    def answer(messages: Any) -> Any:
        seen.append(len(app.messages()))
        return ToolCall("write_much", {"megabytes": 5}) if len(messages) < 5 else "Done."

    agent = app.agent(app.manager(durability="turn"), answer, tools=[write_much])
    agent("Write")

    assert seen == [0, 0, 5]
    assert [message["role"] for message in app.messages()] == ["user", "assistant"] * 3


# --- what cannot be stored


@both_durabilities
@pytest.mark.parametrize(
    "content",
    [
        [{"text": object()}],
        [{"json": {"when": datetime(2024, 1, 1, tzinfo=timezone.utc)}}],
        [{"text": {1, 2}}],
        [{"text": "x" * (15 * 1024 * 1024 + 1)}],
    ],
    ids=["an object", "a date", "a set", "too much text"],
)
def test_a_message_that_cannot_be_stored_is_refused_whole_and_later_messages_go_on(
    app: Application, durability: Any, content: Any
) -> None:
    manager, agent = app.opened("One.", "Two.", durability=durability)
    agent("1")

    with app.recorder.recording() as commands, pytest.raises(UnstorableValueError):
        manager.append_message({"role": "user", "content": content}, agent)
    assert commands.names == []
    agent("2")

    assert app.dialogue() == [("user", "1"), ("assistant", "One."), ("user", "2"), ("assistant", "Two.")]
    assert_same(app.agent(app.manager()).messages, agent.messages)


def test_what_is_no_message_is_refused(app: Application) -> None:
    manager, agent = app.opened()
    for message in ({}, {"role": "user"}, {"content": "x"}, "Hello", None):
        with pytest.raises(UnstorableValueError, match="role"):
            manager.append_message(message, agent)  # type: ignore[arg-type]
    assert app.messages() == []


@pytest.mark.slow
@both_durabilities
def test_state_that_is_too_big_is_refused_by_name_and_the_conversation_goes_on(
    app: Application, durability: Any
) -> None:
    agent = app.agent(app.manager(durability=durability), "One.", "Two.", "Three.")
    agent("1")
    agent.state.set("much", "x" * (15 * 1024 * 1024 + 1))
    with pytest.raises(UnstorableValueError, match=r"state.*\d{8} bytes"):
        agent("2")
    agent.state.set("much", "little")
    agent("3")

    stored = app.dialogue()
    assert stored[:3] == [("user", "1"), ("assistant", "One."), ("user", "2")]
    assert [text for _, text in stored].count("3") == 1
    assert app.record()["agent_data"]["state"] == {"much": "little"}


# --- documents of others


def older_session(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """A session document without counters or incarnation."""
    moment = datetime(2024, 1, 15, 9, 0, 0)
    data = {
        "agent_id": "a",
        "state": {"language": "eu"},
        "conversation_manager_state": {},
        "created_at": "2024-01-15T09:00:00Z",
        "updated_at": "2024-01-15T09:00:00Z",
    }
    times = {"created_at": moment, "updated_at": moment}
    return {
        "_id": "s",
        "session_id": "s",
        "session_type": "default",
        **times,
        "their_own": {"field": 1},
        "agents": {"a": {"agent_data": data, **times, "messages": [{**m, **times} for m in messages]}},
    }


OLDER_MESSAGES = {
    "string content": [
        {"message_id": 1, "role": "user", "content": "Hello"},
        {"message_id": 2, "role": "assistant", "content": "Hi there!", "event_loop_metrics": {}},
    ],
    "nested": [
        {"message_id": 0, "message": by_hand("Hello"), "redact_message": None},
        {"message_id": 1, "message": by_hand("Hi there!", "assistant")},
    ],
    "flat": [
        {"message_id": 0, "role": "user", "content": [{"text": "Hello"}], "their_own": [1]},
        {"message_id": 1, "role": "assistant", "content": [{"text": "Hi there!"}], "their_own": [2]},
    ],
}


@pytest.mark.slow
@both_durabilities
@pytest.mark.parametrize("form", OLDER_MESSAGES)
def test_a_session_stored_in_an_older_form_is_resumed_continued_and_kept(
    app: Application, durability: Any, form: str
) -> None:
    older = older_session(OLDER_MESSAGES[form])
    app.database.sessions.insert_one(copy.deepcopy(older))

    agent = app.agent(app.manager(durability=durability), "Yes.")
    assert dialogue(agent.messages) == [("user", "Hello"), ("assistant", "Hi there!")]
    assert agent.state.get() == {"language": "eu"}
    agent("Still there?")

    session = app.session()
    stored = session["agents"]["a"]["messages"]
    assert stored[:2] == older["agents"]["a"]["messages"]
    assert dialogue(stored[2:]) == [("user", "Still there?"), ("assistant", "Yes.")]
    ids = [message["message_id"] for message in stored]
    assert ids == sorted(set(ids))
    assert session["their_own"] == {"field": 1}
    restored = app.agent(app.manager())
    assert dialogue(restored.messages) == dialogue(agent.messages)


@pytest.mark.parametrize("form", OLDER_MESSAGES)
def test_a_message_stored_in_an_older_form_can_be_redacted(app: Application, form: str) -> None:
    messages = copy.deepcopy(OLDER_MESSAGES[form])
    target = messages[-1].get("message", messages[-1])
    target["content"] = SECRET if isinstance(target["content"], str) else [{"text": SECRET}]
    app.database.sessions.insert_one(older_session(messages))
    manager, agent = app.opened()

    manager.redact_latest_message(by_hand("[removed]", "assistant"), agent)

    app.nothing_at_rest(SECRET)
    assert dialogue(app.agent(app.manager()).messages)[-1] == ("assistant", "[removed]")


# --- where it reads


@pytest.mark.slow
@pytest.mark.topology
@pytest.mark.parametrize("preference", ["secondary", "secondaryPreferred", "nearest", "primary"])
def test_a_client_that_reads_from_secondaries_does_not_resume_an_old_conversation(
    applications: Callable[..., Application], preference: str
) -> None:
    app = applications(client_options={"readPreference": preference})
    with app.manager() as manager:
        app.agent(manager, "Hello.")("Hello?")
        manager.get_metadata()
        manager.get_message_count("a")
    assert isinstance(manager.session_repository.collection.read_preference, Primary)

    finds = app.recorder.commands.named("find", "aggregate", "count")
    assert len(finds) >= 3
    modes = {find.command.get("$readPreference", {"mode": "primary"})["mode"] for find in finds}
    # To a standalone server a driver may say that any will do: there is one.
    assert modes <= {"primary", "primaryPreferred"}


@pytest.mark.slow
@pytest.mark.topology
def test_primary_preferred_is_honoured_so_that_a_conversation_can_be_read_while_there_is_no_primary(
    server: Any, database_name: str
) -> None:
    with MongoDBSessionManager("s", server.uri, database_name, readPreference="primaryPreferred") as manager:
        assert isinstance(manager.session_repository.collection.read_preference, PrimaryPreferred)
        manager.update_metadata({"k": 1})
        assert manager.get_metadata() == {"metadata": {"k": 1}}


# --- redaction

REDACTED = "[removed]"


def assert_redacted(app: Application, message: dict[str, Any], role: str) -> None:
    assert message["role"] == role
    assert message["content"] == [{"text": REDACTED}]
    event = message["guardrail_event"]
    assert isinstance(event["created_at"], datetime)
    assert SECRET not in repr(event)
    app.nothing_at_rest(SECRET)


@pytest.mark.slow
@pytest.mark.topology
@both_durabilities
def test_what_a_guardrail_removed_from_the_users_message_is_in_no_collection(app: Application, durability: Any) -> None:
    agent = app.agent(
        app.manager(durability=durability), "Hello.", ScriptedReply(text="I cannot.", redact_user=REDACTED), "Bye."
    )
    agent("Hello?")
    agent(SECRET)
    agent("Goodbye")

    stored = app.messages()
    assert_redacted(app, stored[2], "user")
    assert stored[2]["tracking_id"] == agent.messages[2]["tracking_id"]
    assert [message["content"] for message in stored] == [message["content"] for message in agent.messages]
    assert "guardrail_event" not in stored[0]
    assert_same(app.agent(app.manager()).messages, agent.messages)


@both_durabilities
@pytest.mark.parametrize("redact_live_message", [True, False])
def test_a_message_redacted_by_hand_is_in_no_collection_and_keeps_ids_metadata_and_cost(
    app: Application, durability: Any, redact_live_message: bool
) -> None:
    usage = {"inputTokens": 7, "outputTokens": 3, "totalTokens": 10}
    manager, agent = app.opened(ScriptedReply(text=SECRET, usage=usage), "Bye.", durability=durability)
    agent("Tell me")
    before = app.messages()[-1]
    assert SECRET.encode() in at_rest(app.database)

    if redact_live_message:  # as Strands does: the live message has changed already
        agent.messages[-1]["content"] = [{"text": REDACTED}]
        manager.redact_latest_message(agent.messages[-1], agent)
    else:
        manager.redact_latest_message(by_hand(REDACTED, "assistant"), agent)

    after = app.messages()[-1]
    assert_redacted(app, after, "assistant")
    for name in ("message_id", "tracking_id", "metadata", "event_loop_metrics", "created_at", "turn_id"):
        assert after[name] == before[name], name
    assert after["updated_at"] >= before["updated_at"]
    agent("Goodbye")
    assert [message["role"] for message in app.messages()] == ["user", "assistant"] * 2
    app.nothing_at_rest(SECRET)


def test_a_message_redacted_in_a_later_process_is_in_no_collection_and_keeps_its_cost(app: Application) -> None:
    app.agent(app.manager(), SECRET)("Tell me")
    before = app.record()
    manager, agent = app.opened()

    manager.redact_latest_message(by_hand(REDACTED, "assistant"), agent)

    assert_redacted(app, app.messages()[-1], "assistant")
    assert app.messages()[-1]["event_loop_metrics"] == before["messages"][-1]["event_loop_metrics"]
    assert app.record()["usage"] == before["usage"]


@pytest.mark.slow
@both_durabilities
def test_a_redaction_on_a_running_loop_is_stored_before_anything_that_follows(
    app: Application, durability: Any
) -> None:
    manager, agent = app.opened(SECRET, "Bye.", durability=durability)
    agent("Tell me")

    async def request() -> Commands:
        with app.recorder.recording() as commands:
            manager.redact_latest_message(by_hand(REDACTED, "assistant"), agent)
            async for event in agent.stream_async("Goodbye"):
                if "data" in event and durability == "message":
                    # The hook of the user's message has awaited the redaction before it.
                    app.nothing_at_rest(SECRET)
        return commands

    with app.slow(["update"]):
        commands = asyncio.run(request())

    assert_redacted(app, app.messages()[1], "assistant")
    # The redaction, then the messages of the turn.
    assert len(commands.named("update")) == 1 + (2 if durability == "message" else 1)


def test_a_prompt_that_another_process_stored_under_the_same_tracking_id_is_redacted_as_well(app: Application) -> None:
    prompt = {**by_hand(SECRET), "tracking_id": "one-and-the-same"}
    late = app.agent(app.manager(), ScriptedReply(text="I cannot.", redact_user=REDACTED))
    app.agent(app.manager(), "Hm.")([copy.deepcopy(prompt)])

    late([copy.deepcopy(prompt)])

    assert [message.get("tracking_id") for message in app.messages()].count("one-and-the-same") == 2
    app.nothing_at_rest(SECRET)


@both_durabilities
@pytest.mark.parametrize("flushed", [False, True])
def test_a_message_that_was_appended_by_hand_twice_is_redacted_in_both_places(
    app: Application, durability: Any, flushed: bool
) -> None:
    manager, agent = app.opened(durability=durability)
    message = by_hand(SECRET)
    for _ in range(2):
        manager.append_message(message, agent)
    if flushed:
        manager.flush()

    manager.redact_latest_message(by_hand(REDACTED), agent)
    manager.flush()

    assert app.dialogue() == [("user", REDACTED)] * 2
    assert dialogue(app.agent(app.manager()).messages) == [("user", REDACTED)] * 2
    app.nothing_at_rest(SECRET)


def test_a_redaction_hits_no_other_message_after_the_store_went_back(
    app: Application, caplog: pytest.LogCaptureFixture
) -> None:
    manager, agent = app.opened("Yes.", "Yes.", "Yes.")
    agent("one")
    before = app.session()
    agent(SECRET)
    tracking_id = agent.messages[2]["tracking_id"]
    app.database.sessions.replace_one({}, before)  # What was acknowledged is gone.
    agent("three")

    manager.redact_latest_message({**by_hand(REDACTED), "tracking_id": tracking_id}, agent)
    manager.flush()

    assert [text for _, text in app.dialogue()] == ["one", "Yes.", "three", "Yes."]
    assert "not stored any more" in caplog.text
    assert SECRET not in caplog.text


def test_a_repository_replaces_no_other_message_under_the_same_id(app: Application) -> None:
    agent = app.agent(app.manager(), "Yes.")
    agent("one")
    (message,) = app.repository.list_messages("s", "a", limit=1)
    message.message["tracking_id"] = "of another message"  # type: ignore[typeddict-unknown-key]
    message.redact_message = by_hand(REDACTED)

    with pytest.raises(MessageNotFoundError):
        app.repository.update_message("s", "a", message)

    assert app.dialogue()[0] == ("user", "one")


def test_redacting_where_there_is_no_message_is_an_error_and_sends_nothing(app: Application) -> None:
    manager, agent = app.opened()
    with app.recorder.recording() as commands, pytest.raises(MongoDBSessionError, match="no message"):
        manager.redact_latest_message(by_hand(REDACTED), agent)
    assert commands.names == []


@pytest.mark.topology
def test_a_redaction_that_could_not_be_stored_is_stored_later(app: Application) -> None:
    manager, agent = app.opened(SECRET)
    agent("Tell me")
    with app.failing("update"), pytest.raises(OperationFailure):
        manager.redact_latest_message(by_hand(REDACTED, "assistant"), agent)
    manager.close()
    assert_redacted(app, app.messages()[-1], "assistant")


def test_state_that_a_tool_reads_during_a_redacted_turn_is_kept(app: Application) -> None:
    @tool(context=True)
    def remember(tool_context: ToolContext) -> str:
        """Remember something."""
        tool_context.agent.state.set("remembered", True)
        return "ok"

    redacted = ScriptedReply(text="No.", redact_user=REDACTED)
    app.agent(app.manager(), ToolCall("remember"), redacted, tools=[remember])("Remember")
    assert app.agent(app.manager()).state.get() == {"remembered": True}
