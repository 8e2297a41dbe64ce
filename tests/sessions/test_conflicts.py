"""More than one writer: two processes on one session lose nothing, double nothing and mix nothing up.

A manager with a client of its own stands for a process: the library shares nothing between two of them.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from offline_model import ScriptedReply, ToolCall
from pymongo import monitoring
from strands import Agent, ToolContext, tool
from strands.types.session import SessionMessage
from support.application import Application, both_durabilities
from support.histories import SMALL, Interruption, by_hand
from support.histories import talker as windowed
from support.running import start_python
from support.starting import begin_together

from mongodb_session_manager import MongoDBSessionManager, SessionConflictError, SessionNotFoundError

pytestmark = pytest.mark.topology


def text_of(message: Any) -> str:
    return "".join(block.get("text", "") for block in message["content"])


def texts(messages: Any) -> list[str]:
    return [text_of(message) for message in messages]


def stored_messages(app: Application) -> list[dict[str, Any]]:
    """The stored conversation, after a look at what must be true of it whoever wrote it."""
    agent, messages = app.record(), app.messages()
    assert agent["message_count"] == len(messages)
    assert agent["usage"].get("messages", 0) == len(messages)
    tracking_ids = [message["tracking_id"] for message in messages if "tracking_id" in message]
    assert len(set(tracking_ids)) == len(tracking_ids), "a message is stored twice"
    return messages


# --- rebase: behind what others have stored


@pytest.mark.slow
@both_durabilities
def test_two_processes_that_take_turns_on_one_agent_keep_every_message_of_both(
    app: Application, durability: Any
) -> None:
    one = app.agent(app.process(durability=durability))
    other = app.agent(app.process(durability=durability))

    for number in range(3):
        one(f"one {number}")
        other(f"other {number}")

    expected = [text for n in range(3) for who in ("one", "other") for text in (f"{who} {n}", f"Re: {who} {n}")]
    assert texts(stored_messages(app)) == expected
    assert app.record()["usage"]["turns"] == 6
    assert texts(app.agent(app.process()).messages) == expected


@pytest.mark.slow
@both_durabilities
def test_turns_at_the_same_moment_are_all_kept_in_the_order_of_each_writer(app: Application, durability: Any) -> None:
    writers = ("one", "two", "three")
    app.agent(app.process())
    agents = {writer: app.agent(app.process(durability=durability)) for writer in writers}
    start = threading.Barrier(len(writers))

    def talk(writer: str) -> None:
        start.wait(30)
        for number in range(8):
            agents[writer](f"{writer} {number}")

    with ThreadPoolExecutor() as threads:
        list(threads.map(talk, writers))

    stored = texts(stored_messages(app))
    assert len(stored) == 3 * 8 * 2
    for writer in writers:
        mine = [text for text in stored if text.removeprefix("Re: ").startswith(f"{writer} ")]
        assert mine == [text for n in range(8) for text in (f"{writer} {n}", f"Re: {writer} {n}")]


@pytest.mark.slow
def test_a_turn_that_is_stored_as_one_is_not_cut_by_the_messages_of_others(app: Application) -> None:
    app.agent(app.process())
    start = threading.Barrier(3)

    def talk(writer: str, durability: Any) -> None:
        @tool
        def look_up(word: str) -> str:
            """Look something up."""
            return f"{word}: found"

        def answer(messages: Any) -> Any:
            return ToolCall("look_up", {"word": writer}) if "toolResult" not in messages[-1]["content"][0] else writer

        agent = app.agent(app.process(durability=durability), answer, tools=[look_up])
        start.wait(30)
        for _ in range(6):
            agent(writer)

    with ThreadPoolExecutor() as threads:
        list(threads.map(talk, ("one", "two", "three"), ("turn", "turn", "message")))

    stored = stored_messages(app)
    assert len(stored) == 3 * 6 * 4
    for writer in ("one", "two"):
        mine = [message for message in stored if text_of(message) == writer and message["role"] == "user"]
        for begin in (message["message_id"] for message in mine):
            assert {message["turn_id"] for message in stored[begin : begin + 4]} == {stored[begin]["turn_id"]}


@pytest.mark.slow
def test_four_processes_that_append_to_one_agent_lose_and_double_nothing(app: Application) -> None:
    script = """
        import sys

        from offline_model import OfflineScriptedModel
        from strands import Agent

        from mongodb_session_manager import MongoDBSessionManager

        uri, database_name, writer = sys.argv[1:]
        with MongoDBSessionManager("s", uri, database_name, "sessions") as manager:
            agent = Agent(model=OfflineScriptedModel(), agent_id="a", session_manager=manager)
            for number in range(50):
                if number % 10 == 0:
                    print("ready", flush=True)
                    sys.stdin.readline()
                manager.append_message({"role": "user", "content": [{"text": f"{writer} {number}"}]}, agent)
    """
    app.agent(app.process())
    writers = [f"writer-{number}" for number in range(4)]
    with ExitStack() as stack:
        running = [stack.enter_context(start_python(script, app.uri, app.database.name, writer)) for writer in writers]
        for one in running:
            stack.callback(one.kill)
        for _ in range(5):
            begin_together(running)
        ended = []
        for one in running:
            _, errors = one.communicate(timeout=120)
            ended.append((one.returncode, errors))

    assert ended == [(0, "")] * 4
    stored = texts(stored_messages(app))
    assert len(stored) == 200
    for writer in writers:
        assert [text for text in stored if text.startswith(f"{writer} ")] == [f"{writer} {n}" for n in range(50)]
    # Otherwise this test has shown nothing.
    assert stored != sorted(stored, key=lambda text: text.split()[0]), "the processes ran one after the other"


@pytest.mark.slow
def test_a_redaction_hits_its_own_message_when_another_process_has_appended_in_between(app: Application) -> None:
    other = app.agent(app.process())

    def guardrail(messages: Any) -> Any:
        other("meanwhile")
        return ScriptedReply(text="I cannot.", redact_user="[redacted]")

    app.agent(app.process())  # so that both are behind the store
    one = app.agent(app.process(), guardrail)
    other("before")
    one("my secret")

    said = ["before", "Re: before", "[redacted]", "meanwhile", "Re: meanwhile", "I cannot."]
    assert texts(stored_messages(app)) == said


@pytest.mark.slow
def test_a_redaction_after_a_restore_leaves_the_turn_of_the_other_process_alone(app: Application) -> None:
    other = app.agent(app.process())
    one = app.agent(app.process(), lambda _: other("other's question") and "one's answer")
    one("one's question")
    manager = app.process()
    restored = app.agent(manager)
    last = restored.messages[-1]
    assert text_of(last) == "Re: other's question", "the turns were not put together"

    manager.redact_latest_message({**last, "content": [{"text": "[redacted]"}]}, restored)

    assert texts(stored_messages(app)) == ["one's question", "other's question", "[redacted]", "one's answer"]


@pytest.mark.slow
@pytest.mark.parametrize(("turns", "update"), [(1, 2), (8, 3)], ids=["embedded", "archived"])
def test_of_two_redactions_at_the_same_moment_the_one_that_ends_last_stays(
    app: Application, turns: int, update: int
) -> None:
    repository = app.repository
    with app.process(**SMALL) as manager:
        agent = windowed(manager)
        for number in range(turns):
            agent(f"prompt {number}")
            manager.flush()
    meanwhile = Interruption()
    mine = app.process(meanwhile).session_repository
    first, last = (SessionMessage(by_hand(f"redacted {order}"), 0) for order in ("first", "last"))
    meanwhile.arm("started", update, lambda: repository.update_message("s", "assistant", first))

    mine.update_message("s", "assistant", last)

    assert meanwhile.error is None
    assert meanwhile.commands[:update] == ["find"] * (update - 1) + ["update"]
    (found,) = repository.list_messages("s", "assistant", limit=1)
    assert text_of(found.message) == "redacted last"


def test_a_prompt_that_is_tried_again_while_it_is_redacted_keeps_its_text_nowhere(app: Application) -> None:
    prompt = {**by_hand("my secret"), "tracking_id": "t"}
    meanwhile = Interruption()
    manager, another = app.process(meanwhile), app.process()
    agent = app.agent(manager)
    manager.append_message(prompt, agent)
    other = app.agent(another)
    meanwhile.arm("started", 2, lambda: another.append_message(dict(prompt), other))

    manager.redact_latest_message({**by_hand("[redacted]"), "tracking_id": "t"}, agent)

    assert meanwhile.error is None
    assert meanwhile.commands[:2] == ["find", "update"]
    assert texts(app.record()["messages"]) == ["[redacted]", "[redacted]"]


# --- raise: tell, and keep


def conflicting(app: Application, durability: Any = "message") -> tuple[MongoDBSessionManager, Agent, Agent]:
    """A manager that raises, with an agent whose turn met one of the other agent; and both agents."""
    manager = app.process(on_conflict="raise", durability=durability)
    one, other = app.agent(manager), app.agent(app.process())
    other("first")
    with pytest.raises(SessionConflictError, match=r"'s'.*'a'") as raised:
        one("too late")
    assert "too late" not in str(raised.value), "it tells content"
    assert texts(stored_messages(app)) == ["first", "Re: first"]
    return manager, one, other


@pytest.mark.slow
@both_durabilities
def test_with_raise_a_conflict_is_told_by_name_and_reload_goes_on_from_what_is_stored(
    app: Application, durability: Any
) -> None:
    manager, one, _ = conflicting(app, durability)

    manager.reload(one)

    assert texts(one.messages) == ["first", "Re: first"]
    one("again")
    manager.close()
    assert texts(stored_messages(app)) == ["first", "Re: first", "again", "Re: again"]


@both_durabilities
def test_with_raise_what_could_not_be_stored_is_kept_and_a_flush_can_append_it(
    app: Application, durability: Any
) -> None:
    manager, one, other = conflicting(app, durability)
    with pytest.raises(SessionConflictError):
        manager.flush()  # asked once more, told once more
    assert texts(stored_messages(app)) == ["first", "Re: first"]

    manager.flush(on_conflict="rebase")

    # With "message" the first write failed, and so the turn before the model was asked.
    mine = ["too late"] if durability == "message" else ["too late", "Re: too late"]
    assert texts(stored_messages(app)) == ["first", "Re: first", *mine]
    one("next")
    assert texts(stored_messages(app)) == ["first", "Re: first", *mine, "next", "Re: next"]
    other("last")
    with pytest.raises(SessionConflictError):  # the flush was for what waited then
        one("too late again")
    manager.reload(one)


def test_with_raise_closing_does_not_drop_what_conflicts(app: Application) -> None:
    manager, *_ = conflicting(app)

    with pytest.raises(SessionConflictError):
        manager.close()
    manager.flush(on_conflict="rebase")
    manager.close()

    assert texts(stored_messages(app)) == ["first", "Re: first", "too late"]


# --- interleaved tool turns


def assert_no_tool_result_is_cut_off(messages: Any) -> None:
    """Each tool use has its own, real result right behind it: what a model provider demands."""
    assert "interrupted" not in str(messages).lower()
    for message, next_message in zip(messages, [*messages[1:], {"content": []}], strict=True):
        uses = [block["toolUse"]["toolUseId"] for block in message["content"] if "toolUse" in block]
        results = [block["toolResult"] for block in next_message["content"] if "toolResult" in block]
        assert [result["toolUseId"] for result in results] == uses
        assert all(result["status"] == "success" for result in results)


@pytest.mark.slow
def test_tool_turns_that_two_processes_interleave_are_each_restored_in_one_piece(app: Application) -> None:
    meeting = threading.Barrier(2)

    def build(name: str) -> Agent:
        @tool
        def look_up(word: str) -> str:
            """Look something up."""
            meeting.wait(30)  # both tool uses are stored, and neither result
            return f"{word} found by {name}"

        call = ToolCall("look_up", {"word": "fish"}, tool_use_id=f"use-{name}")
        return app.agent(app.process(), call, f"answer to {name}", tools=[look_up])

    app.agent(app.process())
    agents = {name: build(name) for name in ("one", "two")}  # Neither is to see a half of the other's turn.
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda name: agents[name](f"question of {name}"), agents))

    stored = stored_messages(app)
    turns = [message["turn_id"] for message in stored]
    assert len(set(turns)) == 2
    assert len(turns) == 8
    assert turns[:4] != turns[:1] * 4, "nothing was interleaved: this test has shown nothing"

    restored = app.agent(app.process(), "Goodbye.")
    assert_no_tool_result_is_cut_off(restored.messages)
    first, second = ("one", "two") if text_of(stored[0]) == "question of one" else ("two", "one")
    assert texts(restored.messages) == [
        f"question of {first}", "", "", f"answer to {first}", f"question of {second}", "", "", f"answer to {second}",
    ]  # fmt: skip
    restored("Bye.")
    assert_no_tool_result_is_cut_off(restored.model.last_messages)
    assert len(stored_messages(app)) == 10


def test_an_agent_that_is_opened_between_a_tool_use_and_its_result_of_another_process_leaves_the_result_in_its_place(
    app: Application,
) -> None:
    @tool
    def look_up(word: str) -> str:
        """Look something up, while another process opens the session and takes a turn."""
        # Strands finds a tool use without a result at the end, and stores "interrupted" for it before its own turn.
        app.agent(app.process(), "answer to other")("question of other")
        return f"{word} found"

    app.agent(app.process(), ToolCall("look_up", {"word": "fish"}), "answer to one", tools=[look_up])("question of one")

    assert len(stored_messages(app)) == 7
    restored = app.agent(app.process(), "Goodbye.")
    assert_no_tool_result_is_cut_off(restored.messages)
    assert texts(restored.messages) == [
        "question of one", "", "", "answer to one", "question of other", "answer to other",
    ]  # fmt: skip
    restored("Bye.")
    assert_no_tool_result_is_cut_off(restored.model.last_messages)


@tool(context=True)
def pay(amount: float, tool_context: ToolContext) -> str:
    """Pay, after a person was asked."""
    return f"paid {amount}: {tool_context.interrupt('approval', reason='much')}"


@pytest.mark.parametrize("resumed_by", ["the same process", "another process"])
def test_an_interrupted_tool_turn_is_resumed_in_one_piece_behind_the_turn_of_another_process(
    app: Application, resumed_by: str
) -> None:
    one = app.agent(app.process(), ToolCall("pay", {"amount": 5.0}), "Paid.", tools=[pay])
    other = app.agent(app.process())
    result = one("Pay 5")
    assert result.stop_reason == "interrupt"
    other("meanwhile")

    if resumed_by == "another process":
        one = app.agent(app.process(), "Paid.", tools=[pay])
    one([{"interruptResponse": {"interruptId": result.interrupts[0].id, "response": "yes"}}])

    assert "paid 5.0: yes" in str(stored_messages(app))
    restored = app.agent(app.process()).messages
    assert_no_tool_result_is_cut_off(restored)
    assert texts(restored) == ["Pay 5", "", "", "Paid.", "meanwhile", "Re: meanwhile"]


# --- agents and sessions are begun once


def test_two_processes_that_build_the_same_new_agent_both_keep_their_messages(app: Application) -> None:
    app.process().update_metadata({"begun": True})  # a session without agents
    one, other = app.agent(app.process()), app.agent(app.process())

    one("one")
    other("other")

    assert texts(stored_messages(app)) == ["one", "Re: one", "other", "Re: other"]
    assert app.session()["agent_ids"] == ["a"]
    assert app.session()["metadata"] == {"begun": True}


def test_an_agent_that_another_process_began_is_not_begun_again_over_its_data(app: Application) -> None:
    app.process().update_metadata({"begun": True})
    manager = app.process(on_conflict="raise")
    one, other = app.agent(app.process()), app.agent(manager)
    one.state.set("basket", ["fish"])
    one("one")

    with pytest.raises(SessionConflictError):
        other("other")
    manager.reload(other)

    assert texts(stored_messages(app)) == ["one", "Re: one"]
    assert app.record()["agent_data"]["state"] == {"basket": ["fish"]}


@both_durabilities
def test_what_the_second_process_changed_in_the_state_of_an_agent_both_began_is_stored(
    app: Application, durability: Any
) -> None:
    app.process().update_metadata({"begun": True})
    one, other = app.agent(app.process()), app.agent(app.process(durability=durability))
    one("one")
    other.state.set("basket", ["fish"])

    other("other")

    assert app.record()["agent_data"]["state"] == {"basket": ["fish"]}


@both_durabilities
def test_an_interrupt_of_the_second_process_in_an_agent_both_began_can_be_resumed(
    app: Application, durability: Any
) -> None:
    app.process().update_metadata({"begun": True})
    one = app.agent(app.process())
    other = app.agent(app.process(durability=durability), ToolCall("pay", {"amount": 5.0}), tools=[pay])
    one("one")
    result = other("Pay 5")
    assert result.stop_reason == "interrupt"

    resumed = app.agent(app.process(), "Paid.", tools=[pay])
    resumed([{"interruptResponse": {"interruptId": result.interrupts[0].id, "response": "yes"}}])

    assert texts(resumed.messages) == ["one", "Re: one", "Pay 5", "", "", "Paid."]
    assert_no_tool_result_is_cut_off(resumed.messages)


class MeetBeforeTheFirstUpsert(monitoring.CommandListener):
    """Holds the clients it listens to until all of them are about to insert the session that none of them has found."""

    def __init__(self, processes: int) -> None:
        self._meeting = threading.Barrier(processes)
        self._still_to_come = threading.BoundedSemaphore(processes)

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        upserts = event.command_name == "update" and event.command["updates"][0].get("upsert")
        if upserts and self._still_to_come.acquire(blocking=False):
            self._meeting.wait(30)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass

    @property
    def met(self) -> bool:
        return not self._still_to_come.acquire(blocking=False) and not self._meeting.broken


@pytest.mark.new_database
def test_two_first_requests_at_once_begin_one_session_with_the_messages_of_both(app: Application) -> None:
    app.database.create_collection("sessions")
    meeting = MeetBeforeTheFirstUpsert(2)

    def first_request(name: str) -> Agent:
        agent = app.agent(app.process(meeting))
        agent(name)
        return agent

    with ThreadPoolExecutor() as threads:
        list(threads.map(first_request, ("one", "other")))

    assert meeting.met
    assert app.database.sessions.count_documents({}) == 1
    stored = texts(stored_messages(app))
    assert sorted(stored) == ["Re: one", "Re: other", "one", "other"]
    assert stored.index("one") < stored.index("Re: one")
    assert stored.index("other") < stored.index("Re: other")


# --- deleted sessions stay deleted


def every_late_write(app: Application, manager: MongoDBSessionManager, agent: Agent) -> dict[str, Callable[[], object]]:
    return {
        "a turn": lambda: agent("late"),
        "a message": lambda: manager.append_message(by_hand("late"), agent),
        "a redaction": lambda: manager.redact_latest_message(by_hand("[redacted]", "assistant"), agent),
        "unsent messages": manager.flush,
        "metadata": lambda: manager.update_metadata({"late": True}),
        "less metadata": lambda: manager.delete_metadata(["topic"]),
        "feedback": lambda: manager.add_feedback({"rating": "up"}),
        "a new agent": lambda: app.agent(manager, agent_id="late"),
        "a reload": lambda: manager.reload(agent),
        "a lease": lambda: manager.lease(30).__enter__(),
    }


LATE = ["a message", "a redaction", "metadata", "less metadata", "feedback", "a new agent", "a reload", "a lease"]
LATE_WRITES = [
    *(("message", late) for late in ("a turn", "unsent messages", *LATE)),
    *(("turn", late) for late in ("a turn", "unsent messages")),
]


@pytest.mark.parametrize("begun_again", [False, True], ids=["", "begun again"])
@pytest.mark.parametrize(("durability", "late"), LATE_WRITES)
def test_a_late_writer_neither_brings_back_a_deleted_session_nor_changes_one_that_was_begun_again_under_its_id(
    app: Application, durability: Any, late: str, begun_again: bool
) -> None:
    manager = app.process(durability=durability)
    agent = app.agent(manager)
    agent("before")
    app.repository.delete_session("s")
    if begun_again:
        new = app.process()
        new.update_metadata({"topic": "new"})
        app.agent(new)("new")
    stored = app.database.sessions.find_one({"_id": "s"})
    assert bool(stored) == begun_again
    if late == "unsent messages":
        with pytest.raises(SessionNotFoundError):
            agent("late")

    with pytest.raises(SessionNotFoundError):
        every_late_write(app, manager, agent)[late]()

    assert app.database.sessions.find_one({"_id": "s"}) == stored


# --- state: the last write wins, as a whole


@both_durabilities
def test_of_two_processes_that_change_an_agents_state_the_last_one_wins_as_a_whole(
    app: Application, durability: Any
) -> None:
    one, other = app.agent(app.process(durability=durability)), app.agent(app.process(durability=durability))
    one.state.set("one", 1)
    other.state.set("other", 2)

    one("one")
    other("other")

    assert app.record()["agent_data"]["state"] == {"other": 2}
    assert app.agent(app.process()).state.get() == {"other": 2}


def test_a_process_that_did_not_change_the_state_does_not_undo_what_another_one_stored(app: Application) -> None:
    one, other = app.agent(app.process()), app.agent(app.process())
    one.state.set("one", 1)

    one("one")
    other("other")

    assert app.record()["agent_data"]["state"] == {"one": 1}


@pytest.mark.slow
def test_agents_of_one_session_do_not_stand_in_each_others_way(app: Application) -> None:
    # A conflict is about one agent's conversation, not about the session.
    managers = [app.process(on_conflict="raise") for _ in range(3)]
    agents = [app.agent(manager, agent_id=f"agent-{n}") for n, manager in enumerate(managers)]

    def talk(agent: Agent) -> None:
        for _ in range(5):
            agent("go on")

    with ThreadPoolExecutor() as threads:
        list(threads.map(talk, agents))

    counts = {key: agent["message_count"] for key, agent in app.session()["agents"].items()}
    assert counts == {"agent-0": 10, "agent-1": 10, "agent-2": 10}
