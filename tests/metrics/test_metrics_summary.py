"""What a session has cost, asked in one small read: equal to what its messages say together, wherever they lie."""

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall
from strands import Agent, tool
from strands.types.session import Session, SessionAgent, SessionMessage
from support.application import Application, both_durabilities, look_up
from support.costs import LOOK_UP, TOKENS, plain_reply, reply
from support.histories import HISTORY, SESSIONS, SMALL, by_hand, stored, talker

from mongodb_session_manager import (
    AgentMetrics,
    FeedbackCounts,
    InvalidIdentifierError,
    LatencyMetrics,
    MetricsSummary,
    ModelPrice,
    MongoDBSessionManager,
    TokenCounts,
)
from mongodb_session_manager._model.metrics import Totals
from mongodb_session_manager._model.metrics_summary import summarise

# Buckets grow by 2^(1/4); the middle of one is at most half of that from either end.
ERROR = 2 ** (1 / 8) * (1 + 1e-9)
NOTHING = LatencyMetrics(0, None, None, None, None)
NO_TOKENS = TokenCounts(0, 0, 0, 0, 0)
EMPTY = MetricsSummary(0, 0, NO_TOKENS, NOTHING, None, {}, {}, {}, FeedbackCounts(0, {}))


@tool
def broken() -> str:
    """Fail."""
    raise RuntimeError("no")


def agent_of(manager: MongoDBSessionManager, *replies: Any, **options: Any) -> Agent:
    model_id = options.pop("model_id", "offline-scripted-model")
    options = {"agent_id": "assistant", "tools": [look_up, broken], **options}
    return talker(manager, model=OfflineScriptedModel(replies, model_id=model_id), **options)


def exact_percentile(latencies: Sequence[float], percent: int) -> float:
    """By nearest rank."""
    return sorted(latencies)[math.ceil(percent * len(latencies) / 100) - 1]


def assert_percentiles(found: LatencyMetrics, latencies: Sequence[float]) -> None:
    """They keep the error that the documentation states."""
    assert found.count == len(latencies)
    assert found.max == max(latencies)
    assert found.mean == pytest.approx(sum(latencies) / len(latencies))
    for percentile, percent in ((found.p50, 50), (found.p95, 95)):
        exact = exact_percentile(latencies, percent)
        assert percentile is not None
        assert exact / ERROR <= percentile <= exact * ERROR
        assert percentile <= max(latencies)


def assert_sums(found: AgentMetrics, messages: Sequence[dict[str, Any]]) -> None:
    """A summary says what stored messages say together."""
    metrics = [message["event_loop_metrics"] for message in messages if "event_loop_metrics" in message]

    def tokens(name: str) -> int:
        return sum(one["accumulated_usage"].get(name, 0) for one in metrics)

    assert found.messages == len(messages)
    assert found.tokens == TokenCounts(*map(tokens, TOKENS))
    assert sum(model.calls for model in found.models.values()) == len(metrics)
    latencies = [one["accumulated_metrics"]["latencyMs"] for one in metrics]
    if latencies:
        assert_percentiles(found.latency, latencies)
    results = [block["toolResult"] for m in messages for block in m["content"] if "toolResult" in block]
    failed = [result for result in results if result["status"] == "error"]
    assert sum(one.calls for one in found.tools.values()) == len(results)
    assert sum(one.errors for one in found.tools.values()) == len(failed)
    assert sum(one.successes for one in found.tools.values()) == len(results) - len(failed)


# --- sums


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_summary_is_the_sum_of_the_messages_after_whatever_has_happened_to_them(
    app: Application, seed: int
) -> None:
    chance = random.Random(seed)
    models = {"assistant": "anthropic.claude-v1:0", "$b.c%": "another"}
    turns = dict.fromkeys(models, 0)
    called = 0

    def answers() -> list[Any]:
        nonlocal called
        replies = []
        while chance.random() < 0.3:
            called += 1
            call = chance.choice((ToolCall("look_up", {"what": "x"}), ToolCall("broken"), ToolCall("no_such_tool")))
            call = dataclasses.replace(call, tool_use_id=f"call-{called}")
            replies.append(reply("", chance.randrange(50), latency_ms=chance.randrange(1, 3_000), calls=(call,)))
        redacted = {"redact_user": "[removed]"} if chance.random() < 0.1 else {}
        return [*replies, reply("Yes.", chance.randrange(50), latency_ms=chance.randrange(1, 60_000), **redacted)]

    for _ in range(5):  # processes
        manager = app.manager(durability=chance.choice(("message", "turn")), **SMALL)
        agents = {name: agent_of(manager, agent_id=name, model_id=model) for name, model in models.items()}
        for _ in range(10):
            name, agent = chance.choice(list(agents.items()))
            model: Any = agent.model
            if chance.random() < 0.8:
                model.will_reply(*answers())
                if chance.random() < 0.2:
                    manager.set_token_counts(chance.randrange(100), chance.randrange(100))
                if chance.random() < 0.2:
                    manager.start_timing()
                agent("And?")
            else:
                manager.append_message(by_hand("By hand?"), agent)
                manager.append_message(by_hand("Also by hand.", "assistant"), agent)
                agent.event_loop_metrics.accumulated_usage["outputTokens"] += 3
                agent.event_loop_metrics.accumulated_usage["totalTokens"] += 3
                agent.event_loop_metrics.accumulated_metrics["latencyMs"] += 17
                manager.sync_agent(agent)
            turns[name] += 1
            if chance.random() < 0.2:
                manager.redact_latest_message(by_hand("[removed]", "assistant"), agent)
        manager.close()

    summary = app.repository.get_metrics_summary("s")
    found = {
        name: stored(app.database, agent_id=key) for name, key in (("assistant", "assistant"), ("$b.c%", "%24b%2Ec%25"))
    }
    assert all(one.segments for one in found.values()), "nothing was archived"
    assert_sums(summary, [message for one in found.values() for message in one.messages])
    assert summary.turns == sum(turns.values())
    assert summary.agents.keys() == summary.models.keys() ^ {*models, *models.values()} == models.keys()
    for name, model_id in models.items():
        agent_summary = summary.agents[name]
        assert_sums(agent_summary, found[name].messages)
        assert agent_summary.turns == turns[name]
        assert agent_summary.models == {model_id: summary.models[model_id]}
        alone = app.repository.get_metrics_summary("s", name)
        assert alone.agents == {name: agent_summary}
        assert dataclasses.asdict(agent_summary).items() <= dataclasses.asdict(alone).items()
    assert all(summary.tools[name].successes == 0 for name in summary.tools.keys() & {"broken", "no_such_tool"})


@pytest.mark.slow
def test_a_long_lived_agent_and_a_restarted_one_are_counted_alike(app: Application) -> None:
    long_lived = agent_of(app.manager("long"), *(plain_reply("Yes.", 10, 4) for _ in range(6)))
    for number in range(6):
        long_lived("And?")
        agent_of(app.manager("restarted"), plain_reply("Yes.", 10, 4))("And?")
        for session_id in ("long", "restarted"):
            summary = app.manager(session_id).get_metrics_summary()
            assert summary.tokens == TokenCounts(10 * (number + 1), 4 * (number + 1), 14 * (number + 1), 0, 0)
            assert (summary.messages, summary.turns, summary.latency.count) == (2 * number + 2, number + 1, number + 1)


def test_one_model_and_one_tool_of_two_agents_are_added_up(app: Application) -> None:
    manager = app.manager()
    one = agent_of(manager, reply("", 1, calls=LOOK_UP, latency_ms=10), reply("A", 2, latency_ms=20), agent_id="one")
    other = agent_of(
        manager, reply("", 3, calls=LOOK_UP, latency_ms=1_000), reply("B", 4, latency_ms=30), agent_id="other"
    )
    one("?")
    other("?")

    summary = manager.get_metrics_summary()
    (model,) = summary.models.values()
    assert (model.calls, model.tokens.output, model.latency.max) == (4, 10, 1_000)
    assert model.latency.mean == pytest.approx(265)
    assert summary.tools["look_up"].calls == summary.tools["look_up"].successes == 2
    milliseconds = [agent.tools["look_up"].milliseconds for agent in summary.agents.values()]
    assert summary.tools["look_up"].milliseconds == pytest.approx(sum(milliseconds))
    assert all(0 <= one < 60_000 for one in milliseconds)
    assert [agent.tokens.output for agent in summary.agents.values()] == [3, 7]


def test_a_turn_that_is_not_stored_yet_is_not_in_the_summary(app: Application) -> None:
    seen: list[int] = []

    def answer(messages: Any) -> Any:
        seen.append(manager.get_metrics_summary().messages)
        return "Yes."

    manager, agent = app.opened(answer, durability="turn")
    agent("1")
    agent("2")
    assert seen == [0, 2]


def test_a_summary_is_ready_for_json_and_cannot_be_changed(app: Application) -> None:
    manager = app.manager()
    agent_of(manager, reply("", 1, calls=(ToolCall("broken"),)), reply("Yes.", 2))("?")
    manager.add_feedback({"rating": "up"})
    summary = manager.get_metrics_summary(prices={"offline-scripted-model": ModelPrice(input=1, output=1)})
    assert json.loads(json.dumps(dataclasses.asdict(summary))) == dataclasses.asdict(summary)
    with pytest.raises(dataclasses.FrozenInstanceError):
        summary.messages = 0  # type: ignore[misc]


# --- one small read


@pytest.mark.slow
@both_durabilities
def test_the_summary_is_one_read_however_long_the_session_is(app: Application, durability: Any) -> None:
    manager = app.manager(durability=durability, **SMALL)
    agent = agent_of(manager, *(reply("Yes. " * 100, 1) for _ in range(31)))
    sizes = []
    for turns in (1, 30):
        for _ in range(turns):
            agent("And? " * 100)
        manager.flush()
        with app.recorder.recording() as commands:
            manager.get_metrics_summary()
        assert commands.names == ["find"]
        sizes.append(commands.reply_bytes)
    assert sizes[1] <= sizes[0] + 50
    assert sizes[0] < 1_000


@pytest.mark.slow
def test_one_agents_summary_reads_nothing_of_the_others(app: Application) -> None:
    manager = app.manager()
    for number in range(20):
        agent_of(manager, reply("Yes.", 1), agent_id=f"agent-{number}")("?")
    with app.recorder.recording() as commands:
        summary = manager.get_metrics_summary("agent-7")
    assert commands.names == ["find"]
    assert commands.reply_bytes < 1_000
    assert list(summary.agents) == ["agent-7"]
    assert (summary.messages, summary.turns) == (2, 1)


# --- what is not there


def test_a_session_or_agent_that_does_not_exist_has_an_empty_summary_and_is_not_begun(app: Application) -> None:
    manager = app.manager()
    assert manager.get_metrics_summary() == app.repository.get_metrics_summary("s") == EMPTY
    assert manager.get_metrics_summary("assistant") == EMPTY
    assert app.database[SESSIONS].count_documents({}) == 0
    agent_of(manager, reply("Yes.", 1))("?")
    assert manager.get_metrics_summary("nobody") == EMPTY


def test_ids_and_prices_that_cannot_be_are_refused_before_anything_is_sent(app: Application) -> None:
    manager = app.manager()
    with app.recorder.recording() as commands:
        with pytest.raises(InvalidIdentifierError):
            manager.get_metrics_summary("a/b")
        with pytest.raises(TypeError, match="agent_id"):
            manager.get_metrics_summary({"$gt": ""})  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="session_id"):
            app.repository.get_metrics_summary({"$gt": ""})  # type: ignore[arg-type]
        for prices in ([], {"m": 3}, {1: ModelPrice(input=1, output=1)}, "m"):
            with pytest.raises(TypeError, match="prices"):
                manager.get_metrics_summary(prices=prices)  # type: ignore[arg-type]
    assert commands == []


@pytest.mark.slow
def test_what_other_programs_have_put_into_the_totals_does_not_break_the_summary(app: Application) -> None:
    odd: list[Any] = [None, "text", 7, [], True, {}, math.nan, math.inf, {"a": {"b": {}}}, -3, b"x"]
    odd += [{name: value} for name in ("messages", "turns", "models", "tools") for value in odd]
    odd += [
        {kind: {"x": {name: value}}}
        for kind in ("models", "tools")
        for value in odd[:11]
        for name in ("calls", "errors", "milliseconds", "inputTokens", "latency")
    ]
    odd += [
        {"models": {"x": {"latency": {name: value}}}}
        for value in odd[:11]
        for name in ("count", "sum", "max", "buckets")
    ]
    odd += [
        {"models": {"x": {"latency": {"count": 2, "buckets": {key: 2}}}}}
        for key in ("", "-1", "x", "9" * 50, "1.5", "²")
    ]
    odd += [{"models": {"%FF": {"calls": 1}, "%zz": {"calls": 1}, "%": {"calls": 1}}}]
    agents = {f"agent-{n}": {"usage": usage, "messages": []} for n, usage in enumerate(odd)}
    good = {"messages": 4, "turns": 2, "models": {"m": {"calls": 2, "outputTokens": 5}}}
    app.database[SESSIONS].insert_one(
        {"_id": "s", "agents": {**agents, "good": {"usage": good}, "%FF": {}, "no object": 3}}
    )
    summary = app.repository.get_metrics_summary("s", prices={"m": ModelPrice(input=1, output=1)})
    assert summary.agents["good"].tokens.output == summary.models["m"].tokens.output == 5
    assert len(summary.agents) == len(odd) + 3
    for n in range(len(odd)):
        app.repository.get_metrics_summary("s", f"agent-{n}")
    assert app.repository.get_metrics_summary("s", "no object") == EMPTY


# --- older documents, and messages of a repository


def older_message(number: int, form: str) -> dict[str, Any]:
    """Of a conversation of prompts, tool uses, tool results and answers."""
    contents: list[Any] = [
        [{"text": "?"}],
        [{"toolUse": {"toolUseId": f"t{number}", "name": "look_up", "input": {}}}],
        [{"toolResult": {"toolUseId": f"t{number}", "content": [], "status": "success"}}],
        [{"text": "!"}],
    ]
    role, content = ("user", "assistant")[number % 2], contents[number % 4]
    if form == "string" and "text" in content[0]:
        content = content[0]["text"]
    metrics = {"accumulated_usage": {"totalTokens": 100 * number}, "accumulated_metrics": {"latencyMs": 5}}
    if form == "direct":
        return {"message_id": number, "role": role, "content": content, "event_loop_metrics": metrics}
    return {"message_id": number, "message": {"role": role, "content": content}, "event_loop_metrics": metrics}


@pytest.mark.parametrize("form", ["nested", "string", "direct"])
def test_messages_and_turns_of_an_older_document_count_before_and_after_its_next_turn(
    app: Application, form: str
) -> None:
    agent = {"agent_data": {"agent_id": "assistant"}, "messages": [older_message(number, form) for number in range(12)]}
    app.database[SESSIONS].insert_one({"_id": "s", "agents": {"assistant": agent}})
    for summary in (app.repository.get_metrics_summary("s"), app.repository.get_metrics_summary("s", "assistant")):
        assert (summary.messages, summary.turns, summary.tokens) == (12, 3, NO_TOKENS)

    with app.manager(**SMALL) as manager:
        agent_of(manager, plain_reply("Yes.", 10, 4))("And?")

    summary = app.repository.get_metrics_summary("s")
    assert stored(app.database).segments
    assert (summary.messages, summary.turns, summary.tokens) == (14, 4, TokenCounts(10, 4, 14, 0, 0))


def test_a_message_that_a_repository_creates_counts_as_a_message_and_no_more(app: Application) -> None:
    app.repository.create_session(Session("s", session_type="AGENT"))  # type: ignore[arg-type]
    app.repository.create_agent("s", SessionAgent("assistant", {}, {}))
    metadata: Any = {"usage": {"inputTokens": 3, "outputTokens": 5, "totalTokens": 8}, "metrics": {"latencyMs": 9}}
    message: Any = {"role": "assistant", "content": [{"text": "Yes."}], "metadata": metadata}
    app.repository.create_message("s", "assistant", SessionMessage(message, 4))
    summary = app.repository.get_metrics_summary("s")
    assert (summary.messages, summary.turns, summary.tokens, summary.models) == (1, 0, NO_TOKENS, {})


# --- percentiles


def summary_of(latencies: Sequence[float]) -> MetricsSummary:
    totals = Totals()
    for latency in latencies:
        totals.add_model_call("m", {"accumulated_usage": {}, "accumulated_metrics": {"latencyMs": latency}})
    usage: dict[str, Any] = {}
    for path, value in {**totals.increments, **totals.maxima}.items():
        *parents, last = path.split(".")
        inner = usage
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return summarise([("a", usage)], [], {})


@pytest.mark.slow
@given(st.lists(st.integers(1, 2_000) | st.integers(1, 10**7) | st.floats(1, 1e9), min_size=1, max_size=60))
def test_percentiles_keep_the_error_they_state(latencies: list[float]) -> None:
    summary = summary_of(latencies)
    for found in (summary.latency, summary.models["m"].latency, summary.agents["a"].latency):
        assert_percentiles(found, latencies)


def test_percentiles_of_equal_and_of_single_latencies() -> None:
    assert summary_of([1234]).latency == LatencyMetrics(1, 1234, 1234, 1234, 1234)
    assert summary_of([0.5, 0.5, 0.5]).latency.max == 0.5
    assert summary_of([]).latency == NOTHING
    equal = summary_of([1234] * 100).latency
    assert equal.max == 1234
    assert 1234 / ERROR <= (equal.p50 or 0) <= 1234


# --- prices


PRICES = {
    "cheap": ModelPrice(input=0.25, output=1.25),
    "dear": ModelPrice(input=3, output=15, cache_read=0.3, cache_write=3.75),
}


def spend(app: Application, **replies: Any) -> MongoDBSessionManager:
    """A session in which each of these models has given one answer, to an agent of its own."""
    manager = app.manager()
    for model_id, answer in replies.items():
        agent_of(manager, answer, agent_id=f"agent of {model_id}", model_id=model_id)("?")
    return manager


def test_costs_are_tokens_times_prices_per_model_agent_and_session(app: Application) -> None:
    manager = spend(app, cheap=plain_reply("A", 1_000_000, 200_000), dear=plain_reply("B", 10_000, 2_000))
    summary = manager.get_metrics_summary(prices=PRICES)
    assert summary.models["cheap"].cost == summary.agents["agent of cheap"].cost == pytest.approx(0.25 + 0.25)
    assert summary.models["dear"].cost == summary.agents["agent of dear"].cost == pytest.approx(0.03 + 0.03)
    assert summary.cost == pytest.approx(0.56)
    assert manager.get_metrics_summary("agent of dear", prices=PRICES).cost == pytest.approx(0.06)
    assert manager.get_metrics_summary().cost is None
    assert app.manager("nobody").get_metrics_summary(prices=PRICES).cost == 0


def test_a_model_without_a_price_leaves_no_cost_that_lacks_its_part(app: Application) -> None:
    manager = spend(app, cheap=plain_reply("A", 1_000_000, 0), unknown=plain_reply("B", 10, 2))
    summary = manager.get_metrics_summary(prices=PRICES)
    assert summary.cost is None
    assert summary.agents["agent of unknown"].cost is None
    assert summary.agents["agent of cheap"].cost == summary.models["cheap"].cost == pytest.approx(0.25)
    assert [name for name, model in summary.models.items() if model.cost is None] == ["unknown"]


@pytest.mark.parametrize("input_holds_cached", [True, False])
def test_cached_tokens_are_paid_once_whichever_way_the_provider_counts_them(
    app: Application, input_holds_cached: bool
) -> None:
    cached = {"cacheReadInputTokens": 60_000, "cacheWriteInputTokens": 20_000}
    counts = {"inputTokens": 100_000, "outputTokens": 1_000, "totalTokens": 101_000}
    if not input_holds_cached:
        counts["inputTokens"] = 20_000
    answer = ScriptedReply(text="A", usage={**counts, **cached})
    summary = spend(app, dear=answer).get_metrics_summary(prices=PRICES)
    assert summary.cost == pytest.approx((20_000 * 3 + 1_000 * 15 + 60_000 * 0.3 + 20_000 * 3.75) / 1e6)


def test_cached_tokens_without_a_price_leave_no_cost(app: Application) -> None:
    answer = plain_reply("A", 10, 2, more={"cacheReadInputTokens": 4})
    summary = spend(app, cheap=answer).get_metrics_summary(prices=PRICES)
    assert summary.cost is summary.models["cheap"].cost is None


@pytest.mark.parametrize("name", ["input", "output", "cache_read", "cache_write"])
def test_prices_that_are_none_are_refused(name: str) -> None:
    for wrong in (-1, -0.01, math.nan, math.inf, 10**400):
        with pytest.raises(ValueError, match=name):
            ModelPrice(**{"input": 1, "output": 1, name: wrong})
    for no_number in ("3", True, [], b"1", 1j):
        with pytest.raises(TypeError, match=name):
            ModelPrice(**{"input": 1, "output": 1, name: no_number})  # type: ignore[arg-type]
    assert ModelPrice(**{"input": 1, "output": 1, name: 0})


# --- feedback


@pytest.mark.slow
def test_feedback_is_counted_by_rating_also_where_it_is_archived(app: Application) -> None:
    manager = app.manager()
    agent_of(manager, reply("Yes.", 1))("?")
    for number in range(250):
        agent_id = {"agent_id": "assistant"} if number % 5 == 0 else {}
        manager.add_feedback({"rating": ("up", "down", 5)[number % 3], "comment": "c" * 100, **agent_id})
    manager.add_feedback({"comment": "no rating"})
    manager.add_feedback({"rating": {"stars": 5}, "agent_id": "assistant"})
    assert app.database[HISTORY].count_documents({"_id.agent": "$feedbacks"}) > 0

    with app.recorder.recording() as commands:
        feedback = manager.get_metrics_summary().feedback
    assert feedback == FeedbackCounts(252, {"up": 84, "down": 83, "5": 83})
    assert commands.names == ["find", "find"]
    assert commands.reply_bytes < 252 * 25 + 1_500

    named = manager.get_metrics_summary("assistant")
    assert named.feedback == FeedbackCounts(51, {"up": 17, "down": 16, "5": 17})
    assert named.messages == 2


def test_an_agent_id_that_looks_like_a_field_selects_nothing_else(app: Application) -> None:
    manager = app.manager()
    for agent_id in ("a", "$agent_id"):
        agent_of(manager, plain_reply("Yes.", 10, 4), agent_id=agent_id)("And?")
    manager.add_feedback({"rating": "up", "agent_id": "a"})
    manager.add_feedback({"rating": "down", "agent_id": "$agent_id"})
    assert manager.get_metrics_summary("$agent_id").feedback == FeedbackCounts(1, {"down": 1})


def test_ratings_that_are_none_make_no_large_read(app: Application) -> None:
    manager = app.manager()
    long, other = "ñ" * 100_000, "ñ" * 100 + "…" * 1_000
    for rating in (long, other, {"text": "x" * 100_000}, ["x" * 100_000], b"x" * 100_000, None, True, 4.5):
        manager.add_feedback({"rating": rating})
    with app.recorder.recording() as commands:
        feedback = manager.get_metrics_summary().feedback
    assert feedback == FeedbackCounts(8, {"ñ" * 100: 2, "True": 1, "4.5": 1})
    assert commands.reply_bytes < 2_000


# --- whether a session exists


@pytest.mark.new_database
def test_asking_whether_a_session_exists_begins_none(app: Application) -> None:
    with app.factory() as factory:
        manager = factory.create_session_manager("s")
        with app.recorder.recording() as commands:
            assert manager.check_session_exists() is False
            assert factory.check_session_exists("s") is False
        assert commands.names == ["find", "find"]
        assert app.database.list_collection_names() == []

        agent_of(manager, reply("Yes.", 1))("?")
        assert manager.check_session_exists() is factory.check_session_exists("s") is True
        assert factory.check_session_exists("s", collection_name="others") is False
        assert factory.check_session_exists("s", database_name=f"{app.database.name}_2") is False
        manager.session_repository.delete_session("s")
        assert manager.check_session_exists() is False
        with pytest.raises(InvalidIdentifierError):
            factory.check_session_exists("a/b")
    with pytest.raises(RuntimeError, match="closed"):
        factory.check_session_exists("s")
