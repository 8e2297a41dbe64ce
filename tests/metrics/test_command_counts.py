"""Performance benchmarking, in counts: the exact commands and bytes of each event, on both kinds of server.

A command is a round trip that a person waits for, and a line on the database's bill. These are the floor: no command
is sent that carries nothing.
"""

import asyncio
import contextlib
import copy
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from offline_model import ScriptedReply, ToolCall
from pymongo.database import Database
from strands import Agent, ToolContext, tool
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.agent.state import AgentState
from support.application import Application, both_durabilities, look_up
from support.commands import Commands
from support.histories import SESSIONS

from mongodb_session_manager import MongoDBSessionManager

pytestmark = pytest.mark.topology


@tool(context=True)
def remember(key: str, tool_context: ToolContext) -> str:
    """Put a key into the agent's state."""
    tool_context.agent.state.set(key, True)
    return f"{key} remembered"


TOOL_TURN = (ScriptedReply(text="Let me see.", tool_calls=(ToolCall("look_up", {"what": "price"}),)), "It is 42.")


@dataclass
class Shop(Application):
    """Where the tests open sessions."""

    def agent(self, *arguments: Any, **options: Any) -> Agent:
        return super().agent(*arguments, **{"tools": [remember, look_up], "system_prompt": "Be brief.", **options})

    def stored_conversation(self, session_id: str = "s", turns: int = 1, **options: Any) -> None:
        """Have one process hold a conversation, so that the collection, its indexes and the session exist."""
        agent = self.agent(self.manager(session_id), *(f"Answer {n}." for n in range(turns)), **options)
        for n in range(turns):
            agent(f"Question {n}?")

    def sent_by(self, act: Callable[..., object], *arguments: Any) -> list[str]:
        """The names of the commands that something sends."""
        with self.recorder.recording() as commands:
            act(*arguments)
        return commands.names

    def request(self, durability: str, prompt: str, *replies: Any, session_id: str = "s", **options: Any) -> list[str]:
        """The commands of a request: it builds an agent and takes one turn."""
        with self.recorder.recording() as commands:
            self.agent(self.manager(session_id, durability=durability), *replies, **options)(prompt)
        return commands.names

    def resume(self, session_id: str = "s", **options: Any) -> Commands:
        """The commands that building an agent on an existing session sends."""
        with self.recorder.recording() as commands:
            self.agent(self.manager(session_id), **options)
        return commands


@pytest.fixture
def shop(server: Any, database: Database[Any]) -> Iterator[Shop]:
    with contextlib.closing(Shop(server.uri, database)) as shop:
        yield shop


def costs(message: list[str], turn: list[str]) -> pytest.MarkDecorator:
    """What is sent with each durability."""
    return pytest.mark.parametrize(("durability", "expected"), [("message", message), ("turn", turn)])


# --- turns


@costs(["find", "update", "update"], ["find", "update"])
def test_a_text_turn_in_an_existing_session_is_one_read_and_no_write_that_carries_nothing(
    shop: Shop, durability: Any, expected: list[str]
) -> None:
    shop.stored_conversation()

    assert shop.request(durability, "How are you?", "Fine.") == expected
    assert len(shop.messages()) == 4


@costs(["find", "update", "update"], ["find", "update"])
def test_a_window_that_moves_costs_nothing_and_is_where_it_was_in_the_next_process(
    shop: Shop, durability: Any, expected: list[str]
) -> None:
    def window() -> dict[str, Any]:
        return {"conversation_manager": SlidingWindowConversationManager(window_size=2)}

    shop.stored_conversation(**window())

    with shop.recorder.recording() as commands:
        agent = shop.agent(shop.manager(durability=durability), "Fine.", **window())
        agent("How are you?")
    assert commands.names == expected

    restored = shop.agent(shop.manager(durability=durability), "Fine.", **window())
    assert restored.messages == agent.messages
    assert restored.conversation_manager.get_state() == agent.conversation_manager.get_state()
    assert restored.conversation_manager.removed_message_count == 2
    restored("And now?")
    state = shop.record()["agent_data"]["conversation_manager_state"]
    assert state["removed_message_count"] >= 2  # It rode with the next commit.


class Keeper(SlidingWindowConversationManager):
    """A conversation manager of an application's own: what it does at the end of a turn, nobody knows."""

    def restore_from_session(self, state: dict[str, Any]) -> Any:
        return super().restore_from_session(state)


@costs(["find", "update", "update", "update"], ["find", "update"])
def test_a_window_that_an_application_moves_by_rules_of_its_own_is_stored_at_the_end_of_the_turn(
    shop: Shop, durability: Any, expected: list[str]
) -> None:
    shop.stored_conversation(conversation_manager=Keeper(window_size=2))

    assert shop.request(durability, "How are you?", "Fine.", conversation_manager=Keeper(window_size=2)) == expected
    state = shop.record()["agent_data"]["conversation_manager_state"]
    assert state["removed_message_count"] == 2


@costs(["find", *["update"] * 4], ["find", "update"])
def test_a_tool_turn_costs_one_write_a_message_or_one_for_all(shop: Shop, durability: Any, expected: list[str]) -> None:
    shop.stored_conversation()

    assert shop.request(durability, "What is the price?", *TOOL_TURN) == expected
    assert len(shop.messages()) == 6


@costs(["find", *["update"] * 4], ["find", "update"])
def test_a_tool_turn_whose_window_moves_costs_no_more(shop: Shop, durability: Any, expected: list[str]) -> None:
    def window() -> dict[str, Any]:
        return {"conversation_manager": SlidingWindowConversationManager(window_size=4)}

    shop.stored_conversation(**window())

    with shop.recorder.recording() as commands:
        agent = shop.agent(shop.manager(durability=durability), *TOOL_TURN, **window())
        agent("What is the price?")

    assert commands.names == expected
    restored = shop.agent(shop.manager(durability=durability), "Fine.", **window())
    assert restored.messages == agent.messages
    assert restored.conversation_manager.removed_message_count == 2


@costs(["update"] * 2, ["update"])
@pytest.mark.parametrize("turns_before", [1, 2])
def test_a_later_turn_of_the_same_agent_saves_the_read(
    shop: Shop, durability: Any, expected: list[str], turns_before: int
) -> None:
    shop.stored_conversation()
    agent = shop.agent(shop.manager(durability=durability), *["Yes."] * 3)
    for _ in range(turns_before):
        agent("And?")

    assert shop.sent_by(agent, "And then?") == expected


@costs(["update"] * 4, ["update"])
def test_a_second_tool_turn_of_the_same_agent_saves_the_read(shop: Shop, durability: Any, expected: list[str]) -> None:
    shop.stored_conversation()
    agent = shop.agent(shop.manager(durability=durability), *TOOL_TURN, *TOOL_TURN)
    agent("What is the price?")

    assert shop.sent_by(agent, "And tomorrow?") == expected


@costs(["find", "update", "update"], ["find", "update"])
def test_streaming_costs_what_a_plain_call_costs(shop: Shop, durability: Any, expected: list[str]) -> None:
    shop.stored_conversation()

    async def turn() -> None:
        agent = shop.agent(shop.manager(durability=durability), "Fine, and you, my dear friend from far away?")
        async for _ in agent.stream_async("How are you?"):
            pass

    assert shop.sent_by(lambda: asyncio.run(turn())) == expected


# It reads what it replaces, for its blobs, and then whether an archiver holds a copy of the message.
@costs(["find", "update", "find", "update", "find", "update"], ["find", "update"])
def test_a_redaction_by_a_guardrail_is_one_write_of_its_own_or_part_of_the_turn(
    shop: Shop, durability: Any, expected: list[str]
) -> None:
    shop.stored_conversation()

    assert shop.request(durability, "a secret", ScriptedReply(text="No.", redact_user="[removed]")) == expected


@both_durabilities
def test_a_turn_that_failed_in_the_model_costs_one_write_for_what_the_user_said(shop: Shop, durability: Any) -> None:
    shop.stored_conversation()
    agent = shop.agent(shop.manager(durability=durability), RuntimeError("the provider is down"))

    with shop.recorder.recording() as commands, pytest.raises(RuntimeError, match="provider is down"):
        agent("How are you?")

    assert commands.names == ["update"]


# --- what costs nothing


@both_durabilities
def test_syncing_flushing_and_closing_after_a_turn_send_nothing(shop: Shop, durability: Any) -> None:
    shop.stored_conversation()
    manager, agent = shop.opened(*TOOL_TURN, durability=durability)
    agent("What is the price?")

    with shop.recorder.recording() as commands:
        manager.sync_agent(agent)
        manager.sync_agent(agent)
        manager.flush()
        manager.close()

    assert commands.names == []


def test_syncing_an_agent_that_was_just_restored_sends_nothing(shop: Shop) -> None:
    shop.stored_conversation(state={"language": "eu", "count": 1})
    manager, agent = shop.opened()

    assert shop.sent_by(manager.sync_agent, agent) == []


def test_making_a_manager_sends_nothing_whether_its_client_is_borrowed_or_its_own(
    shop: Shop, server: Any, database_name: str
) -> None:
    with shop.recorder.recording() as commands:
        shop.manager()
        MongoDBSessionManager("s", server.uri, database_name, SESSIONS, event_listeners=[shop.recorder]).close()

    assert commands.names == []


@costs(["update"] * 2, ["update"])
def test_state_that_did_not_change_costs_nothing_and_is_not_sent(
    shop: Shop, durability: Any, expected: list[str]
) -> None:
    value = {"language": "eu", "cart": [{"item": n, "price": 1.0} for n in range(50)]}
    shop.stored_conversation(state=copy.deepcopy(value))
    agent = shop.agent(shop.manager(durability=durability), *["Yes."] * 4)

    def untouched() -> None:
        pass

    def set_to_what_it_is() -> None:
        agent.state.set("language", "eu")

    def replaced_by_an_equal_one() -> None:
        agent.state = AgentState(copy.deepcopy(value))

    def replaced_by_one_in_another_order() -> None:
        agent.state = AgentState(copy.deepcopy(value))
        agent.state.set("language", "eu")

    for change in (untouched, set_to_what_it_is, replaced_by_an_equal_one, replaced_by_one_in_another_order):
        change()
        with shop.recorder.recording() as commands:
            agent("And?")
        assert commands.names == expected, change.__name__
        assert not any("state" in key for update in sets(commands) for key in update), change.__name__


@costs(["update"] * 2, ["update"])
def test_changed_state_rides_along_with_the_turn(shop: Shop, durability: Any, expected: list[str]) -> None:
    shop.stored_conversation(state={"n": 1})
    agent = shop.agent(shop.manager(durability=durability), "Yes.", "Yes.")

    for value in (2, 2.0):  # 2 and 2.0 are two values
        agent.state = AgentState({"n": value})
        assert shop.sent_by(agent, "And?") == expected
        stored = shop.record()["agent_data"]["state"]["n"]
        assert (stored, type(stored)) == (value, type(value))


@both_durabilities
def test_state_that_a_tool_changed_rides_along_with_the_tools_result(shop: Shop, durability: Any) -> None:
    shop.stored_conversation()
    agent = shop.agent(shop.manager(durability=durability), ToolCall("remember", {"key": "k"}), "Remembered.")

    assert shop.sent_by(agent, "Remember k") == (["update"] * 4 if durability == "message" else ["update"])
    assert shop.record()["agent_data"]["state"] == {"k": True}


# --- beginning


@costs(["find", *["update"] * 3], ["find", *["update"] * 2])
def test_a_new_session_costs_at_most_one_command_more_than_an_existing_one(
    shop: Shop, durability: Any, expected: list[str]
) -> None:
    shop.stored_conversation("another")

    assert shop.request(durability, "Hello?", "Hello.", session_id="new") == expected


@costs(["find", "update", "update"], ["find", "update"])
def test_a_new_agent_in_an_existing_session_costs_no_command_of_its_own(
    shop: Shop, durability: Any, expected: list[str]
) -> None:
    shop.stored_conversation()

    assert shop.request(durability, "Hello?", "Hello.", agent_id="b") == expected
    assert shop.session()["agent_ids"] == ["a", "b"]


@pytest.mark.parametrize("session_id", ["s", "new"])
def test_a_history_given_to_a_new_agent_is_stored_by_one_update(shop: Shop, session_id: str) -> None:
    shop.stored_conversation()
    history = [
        {"role": role, "content": [{"text": f"{role} {n}"}]} for n in range(10) for role in ("user", "assistant")
    ]

    with shop.recorder.recording() as commands:
        shop.agent(shop.manager(session_id), agent_id="b", messages=copy.deepcopy(history))

    assert commands.names == ["find", "update"]
    stored = shop.session(session_id)["agents"]["b"]["messages"]
    assert [(m["message_id"], m["role"], m["content"]) for m in stored] == [
        (n, message["role"], message["content"]) for n, message in enumerate(history)
    ]


@pytest.mark.parametrize("agent_ids", ["a", ["a"], ["a", "b", "not there yet"]])
def test_after_open_building_an_agent_on_the_event_loop_sends_nothing(shop: Shop, agent_ids: Any) -> None:
    shop.stored_conversation()
    shop.stored_conversation(agent_id="b")

    async def request() -> tuple[Commands, Commands, Commands]:
        with shop.recorder.recording() as opening:
            manager = await shop.factory().open("s", agent_id=agent_ids)
        with shop.recorder.recording() as building:
            ids = [agent_ids] if isinstance(agent_ids, str) else agent_ids
            agents = [shop.agent(manager, "Yes.", agent_id=agent_id) for agent_id in ids]
        with shop.recorder.recording() as turn:
            await agents[0].invoke_async("And?")
        return opening, building, turn

    opening, building, turn = asyncio.run(request())

    assert opening.names == ["find"]
    assert building.names == []
    assert turn.names == ["update", "update"]


def test_opening_a_session_that_does_not_exist_begins_it_with_one_command_more(shop: Shop) -> None:
    shop.stored_conversation()

    async def request() -> None:
        manager = await shop.factory().open("new", agent_id="a")
        agent = shop.agent(manager, "Hello.")
        await agent.invoke_async("Hello?")

    assert shop.sent_by(lambda: asyncio.run(request())) == ["find", "update", "update", "update"]


# --- bytes


@pytest.mark.slow
def test_the_bytes_read_on_resume_depend_on_the_window_and_not_on_the_length_of_the_conversation(shop: Shop) -> None:
    store_short_and_long(shop)

    read = {}
    for session_id in ("short", "long"):
        manager = shop.manager(session_id)
        with shop.recorder.recording() as commands:
            agent = shop.agent(manager)
        assert commands.names == ["find"]
        assert len(agent.messages) == 40
        read[session_id] = commands.reply_bytes

    assert read["long"] == pytest.approx(read["short"], rel=0.10)


@pytest.mark.slow
def test_a_long_conversation_that_is_resumed_goes_on_where_it_ended(shop: Shop) -> None:
    # What shows that the long session of the test above is one that the library itself would have written.
    store_short_and_long(shop)

    agent = shop.agent(shop.manager("long", archive_after_messages=10_000, archive_after_bytes=10**8), "Yes.")
    assert shop.sent_by(agent, "And?") == ["update"] * 2  # The window moves, too.
    again = shop.agent(shop.manager("long"), "Yes.")
    assert again.messages == agent.messages
    assert again.conversation_manager.removed_message_count == 4_962
    stored = shop.session("long")["agents"]["a"]
    assert [message["message_id"] for message in stored["messages"][-2:]] == [5_000, 5_001]


@pytest.mark.slow
@both_durabilities
def test_resuming_forty_messages_of_350_bytes_reads_at_most_24_kilobytes(shop: Shop, durability: Any) -> None:
    answers = [f"{n:03d}".ljust(350, "a") for n in range(20)]
    agent = shop.agent(shop.manager(durability=durability), *answers)
    for n in range(20):
        agent(f"{n:03d}".ljust(350, "q"))

    commands = shop.resume()

    assert len(shop.messages()) == 40
    assert commands.names == ["find"]
    assert 40 * 350 < commands.reply_bytes <= 24 * 1024


@pytest.mark.slow
def test_resume_reads_the_asked_agent_and_nothing_else_of_the_session(shop: Shop) -> None:
    shop.stored_conversation()
    before = shop.resume()

    manager = shop.manager()
    other = shop.agent(manager, "w" * 100_000, agent_id="another", state={"much": "x" * 100_000})
    other("v" * 100_000)
    manager.update_metadata({"much": "y" * 100_000})
    manager.add_feedback({"rating": "up", "comment": "z" * 100_000})
    after = shop.resume()

    assert after.names == before.names == ["find"]
    assert after.reply_bytes == before.reply_bytes
    assert before.reply_bytes < 4 * 1024


def test_resume_reads_no_metrics_times_or_commit_ids_of_messages(shop: Shop) -> None:
    shop.stored_conversation(turns=10)
    before = shop.resume()

    shop.database.sessions.update_one(
        {"_id": "s"},
        {
            "$set": {
                "agents.a.messages.$[].event_loop_metrics": {"much": "x" * 1_000},
                "agents.a.messages.$[].guardrail_event": {"much": "y" * 1_000},
                "agents.a.usage.much": "z" * 1_000,
            }
        },
    )
    after = shop.resume()

    assert after.reply_bytes == before.reply_bytes


@pytest.mark.slow
def test_a_turn_sends_its_messages_once_and_not_the_conversation_before_it(shop: Shop) -> None:
    shop.stored_conversation(turns=10)
    agent = shop.agent(shop.manager(), *["A" * 2_000] * 2)
    agent("Q" * 2_000)

    with shop.recorder.recording() as commands:
        agent("Q" * 2_000)

    # Filter, guard, totals, metrics, ids, and the signed cluster time of a replica set: 1.2 KB a command.
    assert 4_000 < commands.request_bytes < 4_000 + 2 * 1_536


# --- helpers


def sets(commands: Commands) -> list[dict[str, Any]]:
    """The `$set` of each update that was sent."""
    return [
        update["u"].get("$set", {}) for command in commands.named("update") for update in command.command["updates"]
    ]


def store_short_and_long(shop: Shop) -> None:
    """Store 50 turns, by the library itself; and the same session, 50 times as long."""
    shop.stored_conversation("short", turns=50)
    shop.database.sessions.insert_one(grown(shop.session("short"), "long", messages=5_000))


def grown(session: dict[str, Any], session_id: str, messages: int) -> dict[str, Any]:
    """A session that the library stored, as it would be after more turns of the same kind."""
    session = copy.deepcopy(session)
    agent = session["agents"]["a"]
    pattern = agent["messages"]
    in_window = len(pattern) - agent["agent_data"]["conversation_manager_state"]["removed_message_count"]
    agent["messages"] = [
        {
            **copy.deepcopy(pattern[n % len(pattern)]),
            "message_id": n,
            "tracking_id": str(uuid.uuid4()),
        }
        for n in range(messages)
    ]
    agent["message_count"] = messages
    agent["agent_data"]["conversation_manager_state"]["removed_message_count"] = messages - in_window
    return {**session, "_id": session_id, "session_id": session_id}
