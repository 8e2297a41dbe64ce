"""Metrics tracking validation: tokens and times of a conversation are true for each message, and true as a sum.

Strands' own `event_loop_metrics` run for the life of an `Agent` object. Stored as they are, they would be counted again
with every message, and somebody would pay by them.
"""

import asyncio
import contextlib
import gc
from typing import Any

import pytest
from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall
from strands import Agent, ModelRetryStrategy, ToolContext, tool
from strands.hooks import AfterModelCallEvent, BeforeModelCallEvent
from strands.types.exceptions import ModelThrottledException
from support.application import Application, both_durabilities, look_up
from support.costs import LOOK_UP, TOKENS, reply, use
from support.histories import by_hand

from mongodb_session_manager._model.keys import encode_key
from mongodb_session_manager._model.metrics import ToolCall as FinishedCall


@tool
async def wait(seconds: float) -> str:
    """Wait."""
    await asyncio.sleep(seconds)
    return "waited"


@tool
def broken() -> str:
    """Fail."""
    raise RuntimeError("no")


def metrics(app: Application) -> list[dict[str, Any] | None]:
    """What is stored with each message."""
    return [message.get("event_loop_metrics") for message in app.messages()]


def costs(app: Application) -> tuple[list[int | None], list[int | None]]:
    """The output tokens of each message; and the milliseconds."""
    found = metrics(app)
    tokens = [one and one["accumulated_usage"]["outputTokens"] for one in found]
    return tokens, [one and one["accumulated_metrics"]["latencyMs"] for one in found]


def model_totals(app: Application) -> dict[str, Any]:
    """The running totals of the model."""
    found: dict[str, Any] = app.record()["usage"]["models"]["offline-scripted-model"]
    return found


def summed(messages: list[dict[str, Any]]) -> dict[str, int]:
    """The tokens and milliseconds of all messages together, as somebody's dashboard adds them up."""
    found = [message["event_loop_metrics"] for message in messages if "event_loop_metrics" in message]
    sums = {name: sum(metrics["accumulated_usage"].get(name, 0) for metrics in found) for name in TOKENS}
    return {**sums, "latencyMs": sum(metrics["accumulated_metrics"]["latencyMs"] for metrics in found)}


def strands_totals(*agents: Agent) -> dict[str, int]:
    """What Strands says that these agents have used in their lives."""
    metrics = [agent.event_loop_metrics for agent in agents]
    sums = {name: sum(one.accumulated_usage.get(name, 0) for one in metrics) for name in TOKENS}
    return {**sums, "latencyMs": sum(one.accumulated_metrics["latencyMs"] for one in metrics)}


def assert_totals_match(record: dict[str, Any], model_id: str = "offline-scripted-model") -> None:
    """The running totals say of one model what the messages say together."""
    found = [m["event_loop_metrics"] for m in record["messages"] if "event_loop_metrics" in m]
    model = record["usage"]["models"][encode_key(model_id)]
    latencies = [metrics["accumulated_metrics"]["latencyMs"] for metrics in found]
    sums = summed(record["messages"])
    assert {name: model.get(name, 0) for name in TOKENS} == {name: sums[name] for name in TOKENS}
    assert model["calls"] == len(found)
    assert model["latency"]["count"] == len(latencies)
    assert model["latency"]["sum"] == sum(latencies)
    assert model["latency"]["max"] == max(latencies)
    assert sorted(in_buckets(model["latency"]["buckets"])) == sorted(bucket(latency) for latency in latencies)
    assert record["usage"]["messages"] == len(record["messages"])


def bucket(latency: float) -> int:
    """The documented bucket of a latency: the first whose end, 2^(i/4) ms, is not below it."""
    return next(i for i in range(400) if 2 ** (i / 4) >= latency * (1 - 1e-12))


def in_buckets(buckets: dict[str, int]) -> list[int]:
    return [int(i) for i, count in buckets.items() for _ in range(count)]


# --- messages


@both_durabilities
def test_each_answer_carries_its_own_cost_so_that_nobody_pays_for_it_twice(app: Application, durability: Any) -> None:
    agent = app.agent(
        app.manager(durability=durability),
        reply("One.", 10, latency_ms=11),
        reply("", 20, latency_ms=22, calls=LOOK_UP),
        reply("Two.", 30, latency_ms=33),
    )
    agent("1")
    agent("2")

    assert costs(app)[0] == [None, 10, None, 20, None, 30]
    assert costs(app)[1] == [None, 11, None, 22, None, 33]
    usage = app.messages()[-1]["event_loop_metrics"]["accumulated_usage"]
    assert usage == dict(zip(TOKENS, (90, 30, 120, 150, 210), strict=True))


def test_what_the_user_said_and_what_tools_returned_cost_nothing(app: Application) -> None:
    agent = app.agent(app.manager(), reply("", 20, calls=LOOK_UP), reply("Two.", 30))
    agent("1")
    agent.tool.look_up(what="y")

    users = [message for message in app.messages() if message["role"] == "user"]
    assert len(users) >= 3
    assert not any("event_loop_metrics" in message for message in users)


@both_durabilities
def test_the_sum_over_messages_is_what_strands_says_the_agent_has_used(app: Application, durability: Any) -> None:
    replies = []
    for n in range(1, 8):
        calls = (ToolCall("look_up", {"what": str(n)}),) if n % 3 == 0 else ()
        replies.append(reply(f"Answer {n}.", 2**n, latency_ms=3**n, calls=calls))
    agent = app.agent(app.manager(durability=durability), *replies, reply("End.", 1))
    while agent.model.calls < 8:
        agent("And?")

    assert summed(app.messages()) == strands_totals(agent)
    assert_totals_match(app.record())


@both_durabilities
def test_the_sum_stays_true_when_the_conversation_moves_through_several_processes(
    app: Application, durability: Any
) -> None:
    lives = []
    for life in range(1, 4):
        agent = app.agent(
            app.manager(durability=durability),
            reply("Hm.", 10 * life, latency_ms=life),
            reply("So.", 100 * life, latency_ms=7 * life),
        )
        agent("1")
        agent("2")
        app.managers[-1].sync_agent(agent)
        lives.append(agent)

    assert summed(app.messages()) == strands_totals(*lives)
    assert_totals_match(app.record())
    assert app.record()["usage"]["turns"] == 6


def test_the_cost_survives_changes_of_state_syncs_and_redaction(app: Application) -> None:
    manager, agent = app.opened(reply("One.", 10), reply("Two.", 20, redact_user="[removed]"))
    agent("1")
    agent("2")
    before, usage = metrics(app), app.record()["usage"]

    agent.state.set("k", 1)
    manager.sync_agent(agent)
    manager.redact_latest_message(by_hand("[removed]", "assistant"), agent)
    manager.update_metadata({"k": 1})
    manager.add_feedback({"rating": "up"})
    manager.close()

    assert metrics(app) == before
    assert [m and m["accumulated_usage"]["outputTokens"] for m in before] == [None, 10, None, 20]
    assert app.record()["usage"] == usage


def test_a_restored_agent_does_not_get_the_metrics_of_before_into_its_messages(app: Application) -> None:
    app.agent(app.manager(), reply("One.", 10))("1")
    read = app.manager().session_repository.list_messages("s", "a")
    restored = app.agent()

    assert not any("event_loop_metrics" in message.message for message in read)
    assert not any("event_loop_metrics" in message for message in restored.messages)
    assert restored.event_loop_metrics.accumulated_usage["totalTokens"] == 0


def test_the_documents_of_messages_tell_their_cost_and_their_turn(app: Application) -> None:
    agent = app.agent(app.manager(), reply("One.", 10), reply("Two.", 20))
    agent("1")
    agent("2")
    read = app.manager().session_repository.list_message_documents("s", "a")
    assert [message.get("event_loop_metrics") for message in read] == metrics(app)
    assert metrics(app)[1]
    turns = [message["turn_id"] for message in read]
    assert turns[0] == turns[1] != turns[2] == turns[3]
    assert all(message["created_at"].tzinfo is not None for message in read)


# --- totals


@both_durabilities
def test_the_running_totals_say_what_the_messages_say_together(app: Application, durability: Any) -> None:
    latencies = [1, 2, 3, 16, 17, 1000, 1001, 65_536, 90_000]
    agent = app.agent(
        app.manager(durability=durability),
        *(reply(f"{n}", 10 + n, latency_ms=latency) for n, latency in enumerate(latencies)),
    )
    for _ in latencies:
        agent("And?")

    record = app.record()
    assert_totals_match(record)
    latency = record["usage"]["models"]["offline-scripted-model"]["latency"]
    assert (latency["count"], latency["sum"], latency["max"]) == (9, sum(latencies), 90_000)
    assert record["usage"]["turns"] == 9
    # Bucket i ends at 2^(i/4) ms: 16 ms is the end of bucket 16, 17 ms is beyond it.
    assert latency["buckets"]["16"] == 1
    assert latency["buckets"]["17"] == 1


@both_durabilities
def test_tools_are_counted_with_their_errors_and_times(app: Application, durability: Any) -> None:
    three = (ToolCall("wait", {"seconds": 0.05}), ToolCall("broken"), ToolCall("look_up", {"what": "x"}))
    agent = app.agent(
        app.manager(durability=durability),
        reply("", 1, calls=three),
        reply("", 1, calls=(ToolCall("look_up", {"what": "y"}),)),
        reply("", 1, calls=(ToolCall("no_such_tool"),)),
        reply("Done.", 1),
        tools=[look_up, wait, broken],
    )
    agent("Do it")

    record = app.record()
    tools = record["usage"]["tools"]
    results = [block["toolResult"] for m in record["messages"] for block in m["content"] if "toolResult" in block]
    assert sum(tool["calls"] for tool in tools.values()) == len(results) == 5
    assert sum(tool.get("errors", 0) for tool in tools.values()) == sum(r["status"] == "error" for r in results)
    assert (tools["look_up"]["calls"], tools["look_up"].get("errors", 0)) == (2, 0)
    assert (tools["broken"]["calls"], tools["broken"]["errors"]) == (1, 1)
    assert tools["wait"]["milliseconds"] >= 45
    assert 0 <= tools["look_up"]["milliseconds"] < 60_000
    assert (tools["no_such_tool"]["calls"], tools["no_such_tool"]["errors"]) == (1, 1)
    assert record["usage"]["turns"] == 1


def test_a_tools_result_and_its_count_are_stored_by_the_same_update(app: Application) -> None:
    seen: list[tuple[int, int]] = []

    def answer(messages: Any) -> Any:
        record = app.record()
        tools = record["usage"].get("tools", {})
        seen.append((len(record["messages"]), sum(tool["calls"] for tool in tools.values())))
        return ToolCall("look_up", {"what": "x"}) if len(messages) < 4 else "Done."

    app.agent(app.manager(), answer)("Do it")

    assert seen == [(1, 0), (3, 1), (5, 2)]


@both_durabilities
def test_a_direct_call_of_a_tool_is_no_turn(app: Application, durability: Any) -> None:
    manager, agent = app.opened(reply("One.", 1), reply("Two.", 1), durability=durability)
    agent.tool.look_up(what="x")
    agent("1")
    agent.tool.look_up(what="y")
    agent("2")

    usage = app.record()["usage"]
    assert (usage["turns"], usage["messages"], usage["tools"]["look_up"]["calls"]) == (2, 12, 2)
    assert len({message["turn_id"] for message in app.messages()}) == 4
    assert manager.session_repository.list_sessions().sessions[0].title == "1"


def test_a_prompt_that_was_put_into_the_conversation_and_appended_by_hand_begins_a_turn(app: Application) -> None:
    manager, agent = app.opened(reply("One.", 1), reply("Two.", 1))
    for turns in (1, 3):
        agent.messages.append(by_hand("Hello"))
        manager.append_message(agent.messages[-1], agent)
        assert app.record()["usage"]["turns"] == turns
        agent("1")


def test_agents_and_models_are_counted_apart_also_by_ids_with_dots(app: Application) -> None:
    manager = app.manager()
    haiku, sonnet = "eu.anthropic.claude-3-haiku-20240307-v1:0", "$eu.anthropic.claude-3-sonnet%"
    first = app.agent(manager, reply("One.", 1), reply("Two.", 2))
    second = app.agent(manager, reply("Three.", 10), reply("Four.", 20), agent_id="b.c")
    first.model.update_config(model_id=haiku)
    second.model.update_config(model_id=sonnet)
    for agent in (first, second, first, second):
        agent("And?")

    for agent_id, model_id, agent in (("a", haiku, first), ("b.c", sonnet, second)):
        record = app.record(agent_id)
        assert list(record["usage"]["models"]) == [encode_key(model_id)]
        assert_totals_match(record, model_id)
        assert summed(record["messages"]) == strands_totals(agent)


def test_a_model_that_is_changed_in_the_middle_is_counted_for_its_own_answers(app: Application) -> None:
    agent = app.agent(app.manager(), reply("One.", 1), reply("Two.", 10))
    agent("1")
    agent.model.update_config(model_id="another")
    agent("2")

    models = app.record()["usage"]["models"]
    assert {name: model["outputTokens"] for name, model in models.items()} == {
        "offline-scripted-model": 1,
        "another": 10,
    }


@tool(context=True)
def ask(tool_context: ToolContext) -> str:
    """Ask the user."""
    return str(tool_context.interrupt("question", reason="why"))


@both_durabilities
@pytest.mark.parametrize("in_another_process", [False, True])
def test_all_tools_of_an_interrupted_answer_are_counted_when_it_goes_on(
    app: Application, durability: Any, in_another_process: bool
) -> None:
    calls = (ToolCall("look_up", {"what": "x"}), ToolCall("ask"))
    tools = [look_up, ask]
    manager, agent = app.opened(reply("", 1, calls=calls), reply("Done.", 1), tools=tools, durability=durability)
    interrupts = agent("Do it").interrupts
    if in_another_process:
        manager.close()
        agent = app.agent(app.manager(durability=durability), reply("Done.", 1), tools=tools)
    agent([{"interruptResponse": {"interruptId": one.id, "response": "yes"}} for one in interrupts])

    usage = app.record()["usage"]
    assert {name: tool["calls"] for name, tool in usage["tools"].items()} == {"look_up": 1, "ask": 1}
    assert ("milliseconds" in usage["tools"]["look_up"]) is not in_another_process
    assert usage["turns"] == 1


def test_a_call_of_a_tool_whose_name_cannot_be_is_counted(app: Application) -> None:
    agent = app.agent(app.manager(), reply("", 1, calls=(ToolCall("nope$.x"),)), reply("Done.", 1))
    agent("Do it")

    tools = app.record()["usage"]["tools"]
    assert {name: (tool["calls"], tool["errors"]) for name, tool in tools.items()} == {encode_key("nope$.x"): (1, 1)}


def test_the_results_of_tools_that_are_appended_by_hand_are_counted(app: Application) -> None:
    def use_of(tool_use_id: str, name: Any) -> Any:
        return {"toolUse": {"toolUseId": tool_use_id, "name": name, "input": {}}}

    def result_of(tool_use_id: Any, status: str) -> Any:
        return {"toolResult": {"toolUseId": tool_use_id, "status": status, "content": []}}

    manager, agent = app.opened()
    uses = [use_of("1", "look_up"), use_of("2", "other"), use_of("3", None)]
    results = [result_of("1", "success"), result_of("2", "error")]
    strange = [result_of("3", "success"), result_of("4", "error"), result_of([], "error"), {"toolResult": None}]
    manager.append_message(by_hand("Do it"), agent)
    manager.append_message({"role": "assistant", "content": uses}, agent)
    manager.append_message({"role": "user", "content": [*results, *strange]}, agent)
    manager.append_message(by_hand("Done.", "assistant"), agent)

    usage = app.record()["usage"]
    assert usage["tools"] == {"look_up": {"calls": 1}, "other": {"calls": 1, "errors": 1}}
    assert (usage["messages"], usage["turns"]) == (4, 1)


@pytest.mark.slow
def test_direct_calls_of_tools_that_are_not_recorded_are_neither_counted_nor_kept(app: Application) -> None:
    def kept() -> int:
        gc.collect()
        return sum(type(one) is FinishedCall for one in gc.get_objects())

    @tool
    def indirect() -> str:
        """Look it up."""
        for _ in range(5):
            agent.tool.look_up(what="x", record_direct_tool_call=False)
        return "done"

    calls = reply("", 1, calls=(ToolCall("indirect"),))
    agent = app.agent(app.manager(), calls, reply("One.", 1), tools=[indirect, look_up])
    before = kept()
    agent("1")
    assert kept() == before
    for _ in range(5):
        agent.tool.look_up(what="x", record_direct_tool_call=False)
    assert kept() <= before + 1
    agent.tool.look_up(what="y")

    tools = app.record()["usage"]["tools"]
    assert {name: tool["calls"] for name, tool in tools.items()} == {"indirect": 1, "look_up": 1}
    assert "milliseconds" in tools["look_up"]


# --- what is easily counted twice


class Refused(ModelRetryStrategy):
    """Tries again without waiting."""

    def __init__(self) -> None:
        super().__init__(max_attempts=4, initial_delay=0)


@both_durabilities
def test_a_model_call_that_was_retried_is_counted_once(app: Application, durability: Any) -> None:
    throttled = ModelThrottledException("slow down")
    agent = app.agent(
        app.manager(durability=durability),
        throttled,
        ScriptedReply(text="Half an answer that nobody", error=throttled),
        reply("One.", 10, latency_ms=5),
        reply("Two.", 20, latency_ms=6),
        retry_strategy=Refused(),
    )
    agent("1")
    agent("2")

    assert agent.model.calls == 4
    assert len(app.messages()) == 4
    assert summed(app.messages()) == strands_totals(agent)
    assert_totals_match(app.record())
    assert app.record()["usage"]["turns"] == 2


@pytest.mark.slow
def test_the_latency_of_a_retried_call_is_that_of_the_call_that_answered(app: Application) -> None:
    # Twelve chunks with a pause before each: the refused call takes at least 240 ms.
    refused = ScriptedReply(text="x" * 24 * 9, error=ModelThrottledException("slow down"), chunk_delay=0.02)
    answered = reply("Fast.", 1, latency_ms=0)
    agent = app.agent(app.manager(), refused, answered, retry_strategy=Refused())
    agent("1")

    (latency,) = (m["accumulated_metrics"]["latencyMs"] for m in metrics(app) if m)
    assert latency < 200


def once_more(event: AfterModelCallEvent) -> None:
    """Have an answer made anew that is no good."""
    if event.stop_response is not None and event.stop_response.message["content"] == [{"text": "No good."}]:
        event.retry = True


@both_durabilities
def test_an_answer_that_a_hook_had_made_anew_is_paid_for_and_stored_nowhere(app: Application, durability: Any) -> None:
    manager = app.manager(durability=durability)
    bad = reply("No good.", 10, latency_ms=50)
    agent = app.agent(manager, bad, bad, reply("Good.", 20), reply("Two.", 40), hooks=[once_more])
    agent("1")
    agent("2")

    assert agent.model.calls == 4
    assert costs(app)[0] == [None, 20, None, 40]
    model = model_totals(app)
    assert {name: model[name] for name in TOKENS} == {name: strands_totals(agent)[name] for name in TOKENS}
    assert (model["calls"], model["latency"]["count"], model["latency"]["sum"]) == (4, 4, 140)


@both_durabilities
def test_what_a_discarded_answer_used_is_given_to_no_other(app: Application, durability: Any) -> None:
    manager, agent = app.opened(reply("No good.", 10), reply("Good.", 20), hooks=[once_more], durability=durability)
    agent("1")
    manager.append_message(by_hand("By hand.", "assistant"), agent)
    manager.sync_agent(agent)
    assert metrics(app)[-1] is None

    manager.append_message(by_hand("By another call.", "assistant"), agent)
    use(agent, 5, latency_ms=6)
    manager.sync_agent(agent)
    assert summed(app.messages())["outputTokens"] == 25


def test_a_discarded_answer_is_counted_if_a_callback_fails_before_another_is_asked_for(app: Application) -> None:
    asked: list[BeforeModelCallEvent] = []

    def fail_once(event: BeforeModelCallEvent) -> None:
        asked.append(event)
        if len(asked) == 2:
            raise RuntimeError("not now")

    agent = app.agent(app.manager(), reply("No good.", 10), reply("Yes.", 20), hooks=[once_more])
    agent.hooks.add_callback(BeforeModelCallEvent, fail_once)
    with pytest.raises(RuntimeError, match="not now"):
        agent("1")
    agent("2")

    assert (model_totals(app)["outputTokens"], model_totals(app)["calls"]) == (30, 2)


def test_a_discarded_answer_is_counted_with_the_next_message_if_its_turn_fails(app: Application) -> None:
    down = RuntimeError("the provider is down")
    agent = app.agent(app.manager(), reply("No good.", 10), down, reply("Yes.", 20), hooks=[once_more])
    with contextlib.suppress(Exception):
        agent("1")
    agent("2")

    assert (model_totals(app)["outputTokens"], model_totals(app)["calls"]) == (30, 2)


@pytest.mark.topology
@both_durabilities
def test_a_message_that_had_to_be_sent_again_is_counted_once(app: Application, durability: Any) -> None:
    manager, agent = app.opened(reply("One.", 10), reply("Two.", 20), durability=durability)
    agent("1")
    for message in agent.messages:  # by hand, as some do
        manager.append_message(message, agent)
    manager.append_message(by_hand("One.", "assistant"), agent)
    manager.sync_agent(agent)
    agent("2")
    manager.sync_agent(agent)

    assert summed(app.messages()) == strands_totals(agent)
    assert_totals_match(app.record())
    assert len(app.messages()) == 4


# --- metrics that come late


@both_durabilities
def test_an_answer_appended_by_hand_gets_its_cost_at_the_next_sync_once(app: Application, durability: Any) -> None:
    manager = app.manager(durability=durability)
    agent = app.agent(manager, reply("One.", 10, latency_ms=5), reply("Three.", 30, latency_ms=7))
    agent("1")
    manager.append_message(by_hand("2"), agent)
    manager.append_message(by_hand("Two, by another model call.", "assistant"), agent)
    assert metrics(app)[-1] is None

    use(agent, 20, latency_ms=6)
    manager.sync_agent(agent)
    first = metrics(app)
    manager.sync_agent(agent)
    assert metrics(app) == first
    agent("3")
    manager.sync_agent(agent)

    assert costs(app)[0] == [None, 10, None, 20, None, 30]
    assert costs(app)[1] == [None, 5, None, 6, None, 7]
    assert summed(app.messages()) == strands_totals(agent)
    assert_totals_match(app.record())


def test_a_sync_that_finds_nothing_used_invents_no_cost(app: Application) -> None:
    manager, agent = app.opened()
    manager.append_message(by_hand("Hello.", "assistant"), agent)
    manager.sync_agent(agent)
    assert metrics(app) == [None]


def test_late_cost_in_a_later_process_is_only_what_that_process_used(app: Application) -> None:
    app.agent(app.manager(), reply("One.", 10))("1")
    manager, agent = app.opened()
    manager.append_message(by_hand("Two.", "assistant"), agent)
    use(agent, 20, latency_ms=6)
    manager.sync_agent(agent)

    assert costs(app)[0] == [None, 10, 20]


def test_an_agent_whose_metrics_ran_before_it_was_given_a_session_brings_none_of_that(app: Application) -> None:
    agent = Agent(model=OfflineScriptedModel([reply("One.", 10)]), agent_id="a", callback_handler=None)
    agent("before there was a session")
    manager = app.manager()
    agent.messages = []
    manager.initialize(agent)
    manager.append_message(by_hand("Two.", "assistant"), agent)
    use(agent, 20, latency_ms=6)
    manager.sync_agent(agent)

    assert costs(app)[0] == [20]


def test_metrics_that_came_with_a_message_appended_by_hand_are_kept(app: Application) -> None:
    manager, agent = app.opened()
    usage = {"inputTokens": 3, "outputTokens": 1, "totalTokens": 4}
    metadata = {"usage": usage, "metrics": {"latencyMs": 9}}
    manager.append_message({**by_hand("Hello.", "assistant"), "metadata": metadata}, agent)
    use(agent, 20, latency_ms=6)
    manager.sync_agent(agent)

    assert metrics(app) == [{"accumulated_usage": usage, "accumulated_metrics": {"latencyMs": 9}}]


def test_a_turn_that_failed_leaves_the_sums_true(app: Application) -> None:
    agent = app.agent(
        app.manager(),
        reply("", 10, calls=LOOK_UP),
        RuntimeError("the provider is down"),
        reply("Yes.", 30),
    )
    with contextlib.suppress(Exception):
        agent("1")
    agent("2")

    assert agent.model.calls == 3
    assert summed(app.messages()) == strands_totals(agent)
    assert_totals_match(app.record())
    assert app.record()["usage"]["turns"] == 2


@pytest.mark.parametrize("wrong", [-5, 2**53 + 1, 2**62, 2**63, 10**30, float("nan"), float("inf")])
def test_a_number_that_no_answer_can_have_used_is_not_counted_and_the_agent_goes_on(
    app: Application, wrong: Any
) -> None:
    absurd = ScriptedReply(text="One.", usage={"inputTokens": wrong, "outputTokens": 1, "totalTokens": 1})
    agent = app.agent(app.manager(), absurd, absurd, absurd, reply("Four.", 10))
    for _ in range(4):
        agent("And?")

    counts = [m["accumulated_usage"]["inputTokens"] for m in metrics(app) if m]
    assert counts == [0, 0, 0, 30]
    assert_totals_match(app.record())


def test_the_largest_counts_never_take_a_total_beyond_what_mongodb_can_add_to(app: Application) -> None:
    largest = {"inputTokens": 2**53, "outputTokens": 2**53, "totalTokens": 2**53}
    agent = app.agent(app.manager(), ScriptedReply(text="One.", usage=largest), reply("Two.", 10), reply("Three.", 10))
    agent("1")
    sessions = app.database.sessions
    total = "agents.a.usage.models.offline-scripted-model.inputTokens"
    sessions.update_one({}, {"$mul": {total: 1024}})  # As if 1,024 such answers had been stored.
    agent("2")
    app.manager().close()
    agent("3")

    assert len(app.messages()) == 6
    assert sessions.count_documents({total: {"$type": "double", "$gte": 2.0**63}}) == 1
