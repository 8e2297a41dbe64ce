"""What answers cost: their metrics, what the application says of them, and what they add to the running totals."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from strands.hooks import AfterModelCallEvent
from strands.types.content import Message

from .._model.documents import Document
from .._model.limits import MAX_TOKENS
from .._model.metrics import NO_USAGE, ToolCall, Totals, message_metrics, usage_since
from .._statements.commits import TrackedMessage
from ..telemetry import Observer
from .operations import LateMetricsOperation
from .record import accumulated_latency, accumulated_usage, model_id_of


@dataclass(frozen=True)
class Given:
    """What was given for one answer.

    Attributes:
        tokens: Its input and output tokens, or None.
        began: When its stopwatch was started, by ``time.perf_counter()``, or None.
    """

    tokens: tuple[int, int] | None = None
    began: float | None = None

    def replace_in(self, metrics: Document | None) -> Document:
        """Return the ``event_loop_metrics`` of an answer that is stored now.

        Args:
            metrics: What is known of it otherwise; it is not changed.
        """
        usage, times = NO_USAGE, {"latencyMs": 0}
        if metrics is not None:
            usage, times = metrics["accumulated_usage"], metrics["accumulated_metrics"]
        if self.tokens is not None:
            # Counts of cached tokens would belong to other counts than these.
            sent, generated = self.tokens
            usage = {"inputTokens": sent, "outputTokens": generated, "totalTokens": sent + generated}
        if self.began is not None:
            times = {**times, "latencyMs": max(1, round((time.perf_counter() - self.began) * 1000))}
        return {"accumulated_usage": dict(usage), "accumulated_metrics": dict(times)}


class MetricsOverride:
    """Holds what the application says of the next answer, in place of what its provider reports, until one takes it.

    A manager and the followers of its agents share it. Whichever answer is stored next takes what was given; the end
    of a turn forgets what no answer has taken, and so does what keeps a message from being.
    """

    def __init__(self) -> None:
        # At most one. Two agents may end their answers in two threads: `pop` gives it to one of them.
        self._given: list[Given] = []

    def set_tokens(self, input_tokens: int, output_tokens: int) -> None:
        """Say how many tokens the next answer has used.

        Raises:
            TypeError: A count is no ``int``.
            ValueError: A count is negative or above ``MAX_TOKENS``. What was given before holds.
        """
        for name, count in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
            if not isinstance(count, int) or isinstance(count, bool):
                raise TypeError(f"{name} must be an int, not {type(count).__name__}")
            if not 0 <= count <= MAX_TOKENS:
                raise ValueError(f"{name} must be from 0 to 2**53, not {count}")
        self._given = [replace(self.take() or Given(), tokens=(int(input_tokens), int(output_tokens)))]

    def start_timing(self) -> None:
        """Start the stopwatch of the next answer, or start it anew."""
        self._given = [replace(self.take() or Given(), began=time.perf_counter())]

    def take(self) -> Given | None:
        """Return what was given, and forget it."""
        try:
            return self._given.pop()
        except IndexError:
            return None

    def forget(self) -> None:
        """Forget what was given."""
        self._given.clear()


@dataclass
class Answer:
    """What an answer cost.

    Attributes:
        model: Whose answer it is.
        metrics: Its ``event_loop_metrics``; None if nothing is known of it.
        given: What the application has said of it, if it has.
        message: Strands' message, where it gave the answer last.
        tracked: Where the answer waits or is stored.
    """

    model: str | None
    metrics: Document | None
    given: Given | None = None
    message: Message | None = None
    tracked: TrackedMessage | None = None


class AnswerCosts:
    """Tells what the answers of one agent cost.

    Args:
        key: The agent's key.
        override: What the application has said of the next answer, of whichever agent of the manager.
        observer: Who is told what answers have used, if anybody.
    """

    _call_began: float | None = None
    _call_ms: float | None = None
    # The last model call, until its answer is a message.
    _answered: AfterModelCallEvent | None = None
    # The answer that Strands gave last; one that was appended by hand and lacks metrics.
    _last: Answer | None = None
    _lacking: Answer | None = None

    def __init__(self, key: str, override: MetricsOverride, observer: Observer | None) -> None:
        self._key = key
        self._override = override
        self._observer = observer
        # How much of what Strands has counted is accounted for: tokens, and milliseconds as ``latencyMs``.
        self._counted: dict[str, float] = {}
        # What answers used that were made anew, by model: the next message brings it into the totals.
        self._discarded: list[tuple[str | None, Document]] = []

    def follow(self, agent: Any) -> None:
        """Take note of what Strands has counted for the agent before it is followed."""
        self._counted = {**accumulated_usage(agent), "latencyMs": accumulated_latency(agent)}

    def call_begins(self) -> None:
        """Start the clock for a provider that reports no latency."""
        self._discard()
        self._call_began = time.perf_counter()

    def call_ends(self, event: AfterModelCallEvent) -> None:
        """Stop it, and take note of the answer."""
        # For a callback may have failed before the next call began.
        self._discard()
        if self._call_began is not None:
            self._call_ms = (time.perf_counter() - self._call_began) * 1000
        if event.stop_response is not None:
            self._answered = event

    def forget(self) -> None:
        """Forget an answer that became no message, and what was said of the next one: the turn is over."""
        self._answered = None
        self._override.forget()

    def forget_override(self) -> None:
        """Forget what was said of the next answer: it is refused, and what was said is true of no other."""
        self._override.forget()

    def of_answer(self, message: Message, agent: Any, *, from_agent: bool) -> Answer:
        """Return what an answer cost that Strands gave, or with which the agent was built."""
        answer = Answer(model_id_of(agent), _own_metrics(message, self._call_ms))
        self._call_ms = None
        self._last = None
        if from_agent:
            self._answered = None
            if answer.metrics is not None:
                self._count(answer.metrics)
            self._take_override(answer)
            answer.message = message
            self._last = answer
        return answer

    def of_answer_by_hand(self, message: Message, agent: Any) -> Answer:
        """Return what an answer cost that the application appends; ``add_late_metrics`` may tell more of it."""
        answer = Answer(model_id_of(agent), _own_metrics(message, None))
        if answer.metrics is None:
            self._lacking = answer
        self._take_override(answer)
        return answer

    def _take_override(self, answer: Answer) -> None:
        if (given := self._override.take()) is not None:
            answer.given, answer.metrics = given, given.replace_in(answer.metrics)

    def growth(self, *, starts_turn: bool, answer: Answer | None = None, calls: Iterable[ToolCall] = ()) -> Totals:
        """Return what a message adds to the running totals, and with it the answers that were made anew before."""
        totals = Totals()
        totals.add_message(starts_turn)
        discarded, self._discarded = self._discarded, []
        for model, metrics in discarded:
            totals.add_model_call(model, metrics)
        if answer is not None and answer.metrics is not None:
            totals.add_model_call(answer.model, answer.metrics)
        for call in calls:
            totals.add_tool_call(call)
        return totals

    def correct(self, message: Message | None) -> LateMetricsOperation | None:
        """Give an answer that is staged or stored the counts that are said now, if it is the one Strands gave last.

        It has its time already, so a stopwatch is forgotten; so are counts that are no single answer's (None).
        """
        given, answer = self._override.take(), self._last
        if given is None or given.tokens is None or answer is None or answer.message is not message:
            return None
        before, metrics = answer.metrics, replace(given, began=None).replace_in(answer.metrics)
        totals = Totals()
        if before is None:
            totals.add_model_call(answer.model, metrics)
        else:
            totals.add_tokens(answer.model, metrics)
            totals.add_tokens(answer.model, before, sign=-1)
        answer.metrics = metrics
        assert answer.tracked is not None
        return LateMetricsOperation(self._key, answer.tracked, metrics, totals, before)

    def late_metrics(self, agent: Any) -> LateMetricsOperation | None:
        """Give an answer that was appended by hand the metrics by which the agent's have grown, once."""
        answer = self._lacking
        if answer is None:
            return None
        grown = usage_since(accumulated_usage(agent), self._counted)
        latency = max(0.0, accumulated_latency(agent) - self._counted.get("latencyMs", 0))
        metrics = message_metrics(grown, {"latencyMs": latency}, self._call_ms) if grown else None
        if metrics is None:
            return None
        self._lacking = None
        self._count(metrics)
        totals = Totals()
        if answer.given is None:
            totals.add_model_call(model_id_of(agent), metrics)
        elif answer.given.tokens is None:
            # Its time is stored, and it is counted as an answer; what it lacks are its tokens.
            assert answer.metrics is not None
            metrics = {**metrics, "accumulated_metrics": answer.metrics["accumulated_metrics"]}
            totals.add_tokens(model_id_of(agent), metrics)
        else:
            return None  # The application knows better.
        assert answer.tracked is not None
        return LateMetricsOperation(self._key, answer.tracked, metrics, totals, answer.metrics)

    def _discard(self) -> None:
        """Take note of an answer in whose place another is made: it was paid for, and no message will carry it."""
        event, self._answered = self._answered, None
        if event is None or event.stop_response is None or not event.retry:
            return
        metrics = _own_metrics(event.stop_response.message, self._call_ms)
        if metrics is not None:
            self._discarded.append((model_id_of(event.agent), metrics))
            # Strands counts its tokens, and not its latency.
            self._count({**metrics, "accumulated_metrics": {}})

    def _count(self, metrics: Document) -> None:
        if self._observer is not None:
            self._observer.tokens_used(metrics["accumulated_usage"])
        for name, value in {**metrics["accumulated_usage"], **metrics["accumulated_metrics"]}.items():
            self._counted[name] = self._counted.get(name, 0) + value


def _own_metrics(message: Message, measured_ms: float | None) -> Document | None:
    """Return the metrics that Strands has attached to a message: those of the one call that made it."""
    metadata: Mapping[str, Any] = message.get("metadata") or {}
    return message_metrics(metadata.get("usage"), metadata.get("metrics"), measured_ms)
