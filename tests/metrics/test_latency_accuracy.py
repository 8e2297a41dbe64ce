"""Latency measurement accuracy: what is stored lies within what the test's own clock saw; percentiles keep their word.

Nothing sleeps: a model, or a tool, is held by an event, and the clock is read around everything that is measured and
inside of it.
"""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall
from strands import Agent, tool
from support.application import Application, both_durabilities

DEADLINE_SECONDS = 30.0
# Latencies are stored in whole milliseconds.
ROUNDING_MS = 0.5


@dataclass
class Held:
    """Something that begins, and goes on when it is told to.

    Attributes:
        begun_at: When it began, by the test's clock, in milliseconds.
        ended_at: When it went on.
    """

    begun: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    begun_at: float = 0.0
    ended_at: float = 0.0

    def wait(self) -> None:
        self.begun_at = now_ms()
        self.begun.set()
        assert self.go_on.wait(DEADLINE_SECONDS)
        self.ended_at = now_ms()

    @property
    def took(self) -> float:
        """How long it was held, in milliseconds: what is measured around it took at least that."""
        return self.ended_at - self.begun_at


class HeldModel(OfflineScriptedModel):
    """A scripted model that is held in the middle of each answer, before its first chunk."""

    def __init__(self, replies: list[Any], holds: list[Held]) -> None:
        super().__init__(replies)
        self.holds = iter(holds)

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        await asyncio.to_thread(next(self.holds).wait)
        async for chunk in super().stream(*args, **kwargs):
            yield chunk


def now_ms() -> float:
    return time.perf_counter() * 1000


def held_turn(agent: Agent, holds: list[Held], busy_ms: float = 20.0) -> float:
    """Take a turn in a thread, holding each of these for a while; return how long all of it took, in milliseconds."""
    began = now_ms()
    thread = threading.Thread(target=agent, args=("Hello?",))
    thread.start()
    for held in holds:
        assert held.begun.wait(DEADLINE_SECONDS)
        until = held.begun_at + busy_ms
        while now_ms() < until:
            pass  # A time that passes for certain; how long it was is read from the clock.
        held.go_on.set()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    return now_ms() - began


def latencies(app: Application) -> list[int]:
    """The stored latencies of all answers."""
    metrics = [message["event_loop_metrics"] for message in app.messages() if "event_loop_metrics" in message]
    return [one["accumulated_metrics"]["latencyMs"] for one in metrics]


def unreported(text: str = "Well.", calls: tuple[ToolCall, ...] = ()) -> ScriptedReply:
    """An answer of a provider that reports a latency of 0 ms, as several do."""
    return ScriptedReply(text=text, latency_ms=0, tool_calls=calls)


@both_durabilities
def test_a_measured_latency_is_the_time_that_the_model_took(app: Application, durability: Any) -> None:
    held = Held()
    model = HeldModel([unreported()], [held])
    agent = app.agent(app.manager(durability=durability), model=model)

    whole_turn = held_turn(agent, [held])

    (stored,) = latencies(app)
    assert held.took - ROUNDING_MS <= stored <= whole_turn + ROUNDING_MS
    assert app.repository.get_metrics_summary("s").latency.max == stored


def test_the_time_of_a_tool_is_the_tools_and_in_no_latency_of_the_model(app: Application) -> None:
    answers, working = [Held(), Held()], Held()

    @tool
    def work() -> str:
        """Work for a while."""
        working.wait()
        return "done"

    model = HeldModel([unreported("Let me see.", (ToolCall("work"),)), unreported()], answers)
    agent = app.agent(model=model, tools=[work])

    whole_turn = held_turn(agent, [answers[0], working, answers[1]])

    first, second = latencies(app)
    for stored, held in zip((first, second), answers, strict=True):
        assert held.took - ROUNDING_MS <= stored
    tools = app.repository.get_metrics_summary("s").tools["work"].milliseconds
    assert working.took - ROUNDING_MS <= tools
    # Three parts of one turn that do not overlap.
    assert first + second + tools <= whole_turn + 3 * ROUNDING_MS


def test_each_answer_has_its_own_time_and_their_sum_is_that_of_the_session(app: Application) -> None:
    holds = [Held() for _ in range(3)]
    model = HeldModel([unreported() for _ in holds], holds)
    agent = app.agent(model=model)

    turns = [held_turn(agent, [held], busy_ms) for held, busy_ms in zip(holds, (5.0, 40.0, 10.0), strict=True)]

    stored = latencies(app)
    for latency, held, turn in zip(stored, holds, turns, strict=True):
        assert held.took - ROUNDING_MS <= latency <= turn + ROUNDING_MS
    summary = app.repository.get_metrics_summary("s").latency
    assert summary.count == 3
    assert summary.mean == pytest.approx(sum(stored) / 3)
    assert summary.max == max(stored)


def test_the_time_from_start_timing_is_that_to_the_answer(app: Application) -> None:
    held = Held()
    model = HeldModel([ScriptedReply(text="Well.", latency_ms=1)], [held])
    manager, agent = app.opened(model=model)

    began = now_ms()
    manager.start_timing()
    started = now_ms()
    held_turn(agent, [held])

    (stored,) = latencies(app)
    assert held.ended_at - started - ROUNDING_MS <= stored <= now_ms() - began + ROUNDING_MS


@pytest.mark.parametrize("reported", [3, 4321], ids=["less than was measured", "more than was measured"])
def test_a_latency_that_the_provider_reports_is_stored_as_it_was_reported(app: Application, reported: int) -> None:
    held = Held()
    model = HeldModel([ScriptedReply(text="Well.", latency_ms=reported)], [held])
    held_turn(app.agent(model=model), [held])
    assert latencies(app) == [reported]


def test_storing_takes_no_part_in_the_latency(app: Application) -> None:
    agent = app.agent(None, *(unreported() for _ in range(10)))
    began = now_ms()
    for n in range(10):
        agent(f"Question {n}?")
    took = now_ms() - began

    stored = latencies(app)
    assert len(stored) == 10
    assert min(stored) >= 1  # 0 would say that nobody measured it
    # However often the database is asked. A latency below 1 ms is stored as 1.
    assert sum(stored) <= took + 10


@pytest.mark.slow
def test_percentiles_of_stored_latencies_are_within_the_stated_error(app: Application) -> None:
    reported = [round(50 * 1.07**n) for n in range(60)]
    agent = app.agent(None, *(ScriptedReply(text="Well.", latency_ms=latency) for latency in reported))
    for n in range(1, len(reported) + 1):
        agent(f"Question {n}?")
        found = app.repository.get_metrics_summary("s").latency
        for percent, percentile in ((50, found.p50), (95, found.p95)):
            exact = reported[math.ceil(n * percent / 100) - 1]
            assert percentile is not None
            assert exact / 2 ** (1 / 8) <= percentile <= exact * 2 ** (1 / 8), (n, percent)
        assert (found.count, found.max) == (n, reported[n - 1])
        assert found.mean == pytest.approx(sum(reported[:n]) / n)
