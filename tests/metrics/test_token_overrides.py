"""An application that knows better what an answer cost says so, for the next answer alone, and the sums stay true."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from offline_model import ScriptedReply, ToolCall
from strands import Agent, tool
from strands.bidi import BidiAgent
from strands.hooks import AfterInvocationEvent, BeforeInvocationEvent
from support.application import Application, both_durabilities
from support.bidi_model import HANG_UP, ScriptedBidiModel
from support.costs import LOOK_UP, use
from support.costs import plain_reply as reply
from support.flows import call, spoken, written
from support.histories import by_hand

from mongodb_session_manager import TokenCounts, UnstorableValueError


def metrics(app: Application, agent_id: str = "a") -> list[Any]:
    """Input, output and total tokens and milliseconds of each stored message; None for one without metrics."""
    found: list[Any] = []
    for message in app.messages(agent_id):
        if (stored := message.get("event_loop_metrics")) is None:
            found.append(None)
        else:
            usage = stored["accumulated_usage"]
            counts = (usage["inputTokens"], usage["outputTokens"], usage["totalTokens"])
            found.append((*counts, stored["accumulated_metrics"]["latencyMs"]))
    return found


def assert_summary_is_their_sum(app: Application, *agent_ids: str) -> None:
    found = [one for agent_id in agent_ids or ("a",) for one in metrics(app, agent_id) if one is not None]
    summary = app.repository.get_metrics_summary("s")
    sums = [sum(one[n] for one in found) for n in range(3)]
    assert summary.tokens == TokenCounts(*sums, cache_read=0, cache_write=0)
    assert sum(model.calls for model in summary.models.values()) == len(found)
    latencies = [one[3] for one in found if one[3] > 0]
    assert (summary.latency.count, summary.latency.max) == (len(latencies), max(latencies, default=None))
    assert (summary.latency.mean or 0) * len(latencies) == pytest.approx(sum(latencies))


# --- the next answer, and no other


@both_durabilities
def test_the_next_answer_records_the_counts_that_were_set_and_the_one_after_it_its_own(
    app: Application, durability: Any
) -> None:
    manager, agent = app.opened(reply("One.", 3, 1), reply("Two.", 6, 2), durability=durability)
    manager.set_token_counts(input_tokens=20, output_tokens=45)
    agent("Kaixo")
    agent("And?")
    assert metrics(app) == [None, (20, 45, 65, 20), None, (6, 2, 8, 20)]
    assert_summary_is_their_sum(app)


@both_durabilities
def test_the_next_answers_latency_is_the_time_since_timing_was_started(app: Application, durability: Any) -> None:
    manager = app.manager(durability=durability)
    # Pauses before its chunks: at least 80 ms until the message.
    agent = app.agent(
        manager, reply("Slowly.", 3, 1, latency_ms=1, chunk_delay=0.02), reply("Two.", 6, 2, latency_ms=7)
    )
    manager.start_timing()
    agent("1")
    agent("2")
    _, first, _, second = metrics(app)
    assert first[:3] == (3, 1, 4)
    assert 75 <= first[3] < 60_000
    assert isinstance(first[3], int)
    assert second == (6, 2, 8, 7)
    assert_summary_is_their_sum(app)


def test_counts_and_timing_hold_together_and_the_last_that_was_said_counts(app: Application) -> None:
    manager, agent = app.opened(*(reply("One.", 3, 1, latency_ms=60_000) for _ in range(2)))
    manager.set_token_counts(1, 1)
    manager.start_timing()
    manager.set_token_counts(20, 45)
    agent("1")
    manager.set_token_counts(20, 45)
    manager.start_timing()
    manager.start_timing()
    agent("2")
    for number in (1, 3):
        assert metrics(app)[number][:3] == (20, 45, 65)
        assert 1 <= metrics(app)[number][3] < 60_000


def test_cached_tokens_that_were_reported_go_with_the_counts_they_belonged_to(app: Application) -> None:
    manager, agent = app.opened(reply("One.", 3, 1, more={"cacheReadInputTokens": 100}))
    manager.set_token_counts(20, 45)
    agent("1")
    assert manager.get_metrics_summary().tokens == TokenCounts(20, 45, 65, 0, 0)


def test_a_provider_that_reports_nothing_is_helped(app: Application) -> None:
    manager, agent = app.opened(reply("One.", 0, 0))
    manager.set_token_counts(0, 45)
    agent("1")
    assert metrics(app)[1][:3] == (0, 45, 45)


@pytest.mark.slow
@both_durabilities
def test_in_a_turn_with_tools_the_message_that_calls_them_takes_it(app: Application, durability: Any) -> None:
    manager, agent = app.opened(reply("", 3, 1, tool_calls=LOOK_UP), reply("Done.", 6, 2), durability=durability)
    manager.set_token_counts(20, 45)
    agent("Do it")
    assert metrics(app) == [None, (20, 45, 65, 20), None, (6, 2, 8, 20)]
    assert_summary_is_their_sum(app)


def test_counts_that_are_set_by_a_tool_are_those_of_the_answer_that_follows(app: Application) -> None:
    @tool
    def count() -> str:
        """Say what the answer will cost."""
        manager.set_token_counts(20, 45)
        return "counted"

    manager, agent = app.opened(reply("", 3, 1, tool_calls=(ToolCall("count"),)), reply("Done.", 6, 2), tools=[count])
    agent("Do it")
    assert metrics(app) == [None, (3, 1, 4, 20), None, (20, 45, 65, 20)]


def test_a_prompt_or_a_message_the_agent_was_built_with_takes_nothing(app: Application) -> None:
    manager = app.manager()
    app.agent(manager, agent_id="first")
    manager.set_token_counts(20, 45)
    built_with: Any = [by_hand("before"), by_hand("said before", "assistant")]
    agent = app.agent(manager, reply("One.", 3, 1), messages=built_with)
    manager.append_message(by_hand("1"), agent)
    agent("1")
    assert metrics(app) == [None, None, None, (20, 45, 65, 20)]


def test_the_next_answer_of_any_agent_takes_it(app: Application) -> None:
    manager = app.manager()
    one = app.agent(manager, reply("One.", 3, 1), agent_id="one")
    other = app.agent(manager, reply("Two.", 6, 2), agent_id="other")
    manager.set_token_counts(20, 45)
    other("?")
    one("?")
    assert metrics(app, "other") == [None, (20, 45, 65, 20)]
    assert metrics(app, "one") == [None, (3, 1, 4, 20)]
    assert_summary_is_their_sum(app, "one", "other")


def test_of_two_agents_that_answer_at_the_same_time_one_takes_it(app: Application) -> None:
    manager = app.manager()
    agents = [app.agent(manager, reply("Yes.", 3, 1), agent_id=f"agent-{n}") for n in range(4)]
    manager.set_token_counts(20, 45)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda agent: agent("?"), agents))
    inputs = sorted(metrics(app, agent.agent_id)[1][0] for agent in agents)
    assert inputs == [3, 3, 3, 20]


def test_another_manager_of_the_session_takes_nothing(app: Application) -> None:
    app.manager().set_token_counts(20, 45)
    app.agent(app.manager(), reply("One.", 3, 1))("?")
    assert metrics(app) == [None, (3, 1, 4, 20)]


def test_a_reloaded_agent_takes_it(app: Application) -> None:
    manager, agent = app.opened(reply("One.", 3, 1), reply("Two.", 6, 2))
    agent("1")
    manager.set_token_counts(20, 45)
    manager.reload(agent)
    agent("2")
    assert metrics(app) == [None, (3, 1, 4, 20), None, (20, 45, 65, 20)]


def test_a_redacted_answer_keeps_the_counts_that_were_set(app: Application) -> None:
    manager, agent = app.opened(reply("Secret.", 3, 1, redact_user="[removed]", redact_assistant="[removed]"))
    manager.set_token_counts(20, 45)
    agent("Secret?")
    manager.redact_latest_message(by_hand("[gone]", "assistant"), agent)
    assert metrics(app) == [None, (20, 45, 65, 20)]
    assert_summary_is_their_sum(app)


def test_a_voice_agents_next_answer_takes_it_though_its_text_comes_later(app: Application) -> None:
    manager = app.manager()
    agent = BidiAgent(ScriptedBidiModel(), agent_id="a", session_manager=manager)
    manager.set_token_counts(20, 45)
    call("Hello", [*spoken("assistant", "Good morning.", "t1"), *written("How are you?", "t2"), HANG_UP])(agent)
    manager.set_token_counts(1, 2)
    call("Hello?", [HANG_UP])(agent)
    call("Bye", [*written("Bye!", "t3"), HANG_UP])(agent)
    found = [one for one in metrics(app) if one is not None]
    assert found == [(20, 45, 65, 0)]
    assert_summary_is_their_sum(app)


# --- what finds no answer is forgotten


@both_durabilities
def test_a_turn_that_fails_leaves_nothing_to_the_next(app: Application, durability: Any) -> None:
    manager = app.manager(durability=durability)
    agent = app.agent(manager, RuntimeError("the provider is down"), reply("Two.", 6, 2, latency_ms=7))
    manager.set_token_counts(20, 45)
    manager.start_timing()
    with contextlib.suppress(Exception):
        agent("1")
    agent("2")
    assert metrics(app) == [None, None, (6, 2, 8, 7)]
    assert_summary_is_their_sum(app)


def test_what_is_said_after_a_turns_last_answer_is_forgotten_with_the_turn(app: Application) -> None:
    manager, agent = app.opened(reply("One.", 3, 1), reply("Two.", 6, 2))
    agent.hooks.add_callback(AfterInvocationEvent, lambda _: manager.set_token_counts(20, 45))
    agent("1")
    agent("2")
    assert metrics(app) == [None, (3, 1, 4, 20), None, (6, 2, 8, 20)]


def test_what_a_hook_says_when_a_turn_begins_is_that_turns(app: Application) -> None:
    manager, agent = app.opened(reply("One.", 3, 1))
    agent.hooks.add_callback(BeforeInvocationEvent, lambda _: manager.set_token_counts(20, 45))
    agent("1")
    assert metrics(app) == [None, (20, 45, 65, 20)]


def test_an_answer_that_goes_on_in_another_turn_gives_nothing_away(app: Application) -> None:
    def go_on(event: AfterInvocationEvent) -> None:
        if agent.model.calls == 1:  # type: ignore[attr-defined]
            event.resume = "And then?"

    manager, agent = app.opened(reply("Once upon a time.", 3, 1), reply("The end.", 6, 2), hooks=[go_on])
    manager.set_token_counts(20, 45)
    agent("Tell a story")
    assert metrics(app) == [None, (20, 45, 65, 20), None, (6, 2, 8, 20)]


def test_what_was_said_of_an_answer_that_cannot_be_stored_is_no_others(app: Application) -> None:
    manager, agent = app.opened(reply("Two.", 6, 2))
    manager.set_token_counts(20, 45)
    with pytest.raises(UnstorableValueError):
        manager.append_message({"role": "assistant", "content": [{"text": object()}]}, agent)
    manager.append_message(by_hand("Better.", "assistant"), agent)
    agent("2")
    assert metrics(app) == [None, None, (6, 2, 8, 20)]


def refusing_once(app: Application, manager: Any, *replies: Any) -> Agent:
    """An agent whose first turn cannot begin."""
    refusals = iter([RuntimeError("not allowed")])

    def refuse(_: BeforeInvocationEvent) -> None:
        for refusal in refusals:
            raise refusal

    return app.agent(manager, *replies, hooks=[refuse])


def test_what_was_said_before_a_turn_that_could_not_begin_is_said_of_the_next_answer(app: Application) -> None:
    manager = app.manager()
    agent = refusing_once(app, manager, reply("Two.", 6, 2), reply("Three.", 9, 3))
    manager.set_token_counts(20, 45)
    with pytest.raises(RuntimeError, match="not allowed"):
        agent("1")
    agent("2")
    agent("3")
    assert metrics(app) == [None, (20, 45, 65, 20), None, (9, 3, 12, 20)]


def test_what_is_said_after_a_turn_could_not_begin_is_the_next_turns(app: Application) -> None:
    manager = app.manager()
    agent = refusing_once(app, manager, reply("Two.", 6, 2))
    manager.set_token_counts(1, 2)
    with pytest.raises(RuntimeError, match="not allowed"):
        agent("1")
    manager.set_token_counts(20, 45)
    agent("2")
    assert metrics(app) == [None, (20, 45, 65, 20)]


# --- answers that are appended by hand


@both_durabilities
def test_an_answer_appended_by_hand_takes_what_was_set(app: Application, durability: Any) -> None:
    manager, agent = app.opened(reply("Two.", 6, 2), durability=durability)
    manager.start_timing()
    manager.append_message(by_hand("1"), agent)
    manager.set_token_counts(20, 45)
    manager.append_message(by_hand("One.", "assistant"), agent)
    agent("2")
    stored = metrics(app)
    assert stored[1][:3] == (20, 45, 65)
    assert 1 <= stored[1][3] < 60_000
    assert stored[2:] == [None, (6, 2, 8, 20)]
    assert_summary_is_their_sum(app)


def test_metrics_that_came_with_an_answer_give_way_to_what_was_set(app: Application) -> None:
    manager, agent = app.opened()
    manager.set_token_counts(20, 45)
    usage = {"inputTokens": 3, "outputTokens": 1, "totalTokens": 4}
    answer: Any = {**by_hand("One.", "assistant"), "metadata": {"usage": usage, "metrics": {"latencyMs": 9}}}
    manager.append_message(answer, agent)
    assert metrics(app) == [(20, 45, 65, 9)]
    assert_summary_is_their_sum(app)


@both_durabilities
def test_what_strands_counts_for_an_answer_whose_counts_were_set_is_given_to_no_other(
    app: Application, durability: Any
) -> None:
    manager, agent = app.opened(reply("Three.", 6, 2), durability=durability)
    manager.set_token_counts(20, 45)
    manager.append_message(by_hand("One.", "assistant"), agent)
    use(agent, 10, latency_ms=5)
    manager.sync_agent(agent)
    manager.sync_agent(agent)
    manager.append_message(by_hand("Two.", "assistant"), agent)
    use(agent, 100, latency_ms=6)
    manager.sync_agent(agent)
    agent("3")
    manager.sync_agent(agent)
    assert metrics(app) == [(20, 45, 65, 0), (300, 100, 400, 6), None, (6, 2, 8, 20)]
    assert_summary_is_their_sum(app)


@both_durabilities
def test_an_answer_that_was_only_timed_gets_its_tokens_at_the_next_sync_once(app: Application, durability: Any) -> None:
    manager, agent = app.opened(reply("Three.", 6, 2), durability=durability)
    manager.start_timing()
    manager.append_message(by_hand("One.", "assistant"), agent)
    timed = metrics(app)[0]
    assert timed[:3] == (0, 0, 0)
    use(agent, 10, latency_ms=60_000)
    manager.sync_agent(agent)
    manager.sync_agent(agent)
    agent("3")
    manager.append_message(by_hand("Four.", "assistant"), agent)
    use(agent, 100, latency_ms=6)
    manager.sync_agent(agent)
    assert metrics(app) == [(30, 10, 40, timed[3]), None, (6, 2, 8, 20), (300, 100, 400, 6)]
    assert_summary_is_their_sum(app)


def test_an_answer_of_a_turn_whose_counts_were_set_does_not_distort_what_comes_late(app: Application) -> None:
    manager, agent = app.opened(reply("One.", 3, 1), reply("Three.", 6, 2))
    manager.set_token_counts(20, 45)
    agent("1")
    manager.append_message(by_hand("Two.", "assistant"), agent)
    use(agent, 100, latency_ms=6)
    manager.sync_agent(agent)
    assert metrics(app) == [None, (20, 45, 65, 20), (300, 100, 400, 6)]
    assert_summary_is_their_sum(app)


@both_durabilities
@pytest.mark.parametrize("same_object", [False, True])
def test_the_copy_of_a_streamed_answer_gives_it_the_counts_that_were_set_and_leaves_nothing(
    app: Application, durability: Any, same_object: bool
) -> None:
    manager = app.manager(durability=durability)
    agent = app.agent(manager, reply("One.", 3, 1, more={"cacheReadInputTokens": 100}), reply("Two.", 6, 2))
    manager.append_message(by_hand("1"), agent)
    agent("1")
    for input_tokens in (7, 20):
        manager.set_token_counts(input_tokens, 45)
        manager.start_timing()
        manager.append_message(agent.messages[-1] if same_object else by_hand("One.", "assistant"), agent)
        manager.sync_agent(agent)
    agent("2")
    assert metrics(app) == [None, (20, 45, 65, 20), None, (6, 2, 8, 20)]
    assert_summary_is_their_sum(app)


@both_durabilities
def test_the_copy_of_an_answer_corrects_it_before_its_turn_ends(app: Application, durability: Any) -> None:
    def correct(_: AfterInvocationEvent) -> None:
        manager.set_token_counts(20, 45)
        manager.append_message(by_hand("One.", "assistant"), agent)

    manager = app.manager(durability=durability)
    nothing = ScriptedReply(text="One.", usage={}, latency_ms=0)
    agent = app.agent(manager, nothing, hooks=[correct])
    agent("1")
    assert metrics(app)[1][:3] == (20, 45, 65)
    assert_summary_is_their_sum(app)


def test_counts_that_are_no_single_answers_are_forgotten(app: Application) -> None:
    manager, agent = app.opened(reply("Wait. ", 3, 1, tool_calls=LOOK_UP), reply("Done.", 6, 2), reply("Two.", 9, 3))
    agent("1")
    manager.set_token_counts(20, 45)
    manager.append_message(by_hand("Wait. Done.", "assistant"), agent)
    manager.set_token_counts(20, 45)
    manager.append_message(agent.messages[1], agent)
    agent("2")
    assert metrics(app) == [None, (3, 1, 4, 20), None, (6, 2, 8, 20), None, (9, 3, 12, 20)]
    assert_summary_is_their_sum(app)


# --- what is refused


@pytest.mark.parametrize("wrong", [-1, 2**53 + 1, 2**63, 10**30])
def test_counts_that_cannot_be_are_refused_and_what_was_said_before_holds(app: Application, wrong: int) -> None:
    manager = app.manager()
    manager.set_token_counts(20, 45)
    with pytest.raises(ValueError, match="input_tokens"):
        manager.set_token_counts(wrong, 1)
    with pytest.raises(ValueError, match="output_tokens"):
        manager.set_token_counts(1, wrong)
    app.agent(manager, reply("One.", 3, 1))("?")
    assert metrics(app) == [None, (20, 45, 65, 20)]


@pytest.mark.parametrize("wrong", [1.0, "1", None, True, [1]])
def test_counts_that_are_no_integers_are_refused(app: Application, wrong: Any) -> None:
    manager = app.manager()
    with pytest.raises(TypeError, match="input_tokens"):
        manager.set_token_counts(wrong, 1)
    with pytest.raises(TypeError, match="output_tokens"):
        manager.set_token_counts(1, wrong)
    app.agent(manager, reply("One.", 3, 1))("?")
    assert metrics(app) == [None, (3, 1, 4, 20)]


def test_the_largest_counts_are_stored_and_added_up(app: Application) -> None:
    manager, agent = app.opened(*(reply("Yes.", 3, 1) for _ in range(3)))
    for _ in range(3):
        manager.set_token_counts(2**53, 2**53)
        agent("?")
    assert manager.get_metrics_summary().tokens == TokenCounts(3 * 2**53, 3 * 2**53, 3 * 2**54, 0, 0)
