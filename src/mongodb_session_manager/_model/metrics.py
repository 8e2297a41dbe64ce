"""What a turn cost: the metrics of one message, and the running totals of an agent.

What is stored on a message is that message's own usage and latency, so that sums over messages are true. Strands'
``event_loop_metrics`` grow as long as an ``Agent`` object exists; their sum would count the same tokens again and
again. The running totals grow by ``$inc`` in the same update that stores the message.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from .documents import Document
from .keys import encode_key
from .limits import CACHED_NAMES, MAX_INTEGER_INCREMENT, MAX_TOKENS

LATENCY_BUCKETS_PER_DOUBLING = 4
"""Latencies are counted in buckets whose bounds grow by 2^(1/4), 19 %: a percentile is known to within that."""


TOKENS = ("inputTokens", "outputTokens", "totalTokens", "cacheReadInputTokens", "cacheWriteInputTokens")
NO_USAGE = {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0}
"""The tokens of an answer of which nothing is known."""

_TIMES = ("latencyMs", "timeToFirstByteMs")


@dataclass
class ToolCall:
    """One finished call of a tool.

    Attributes:
        name: The tool.
        failed: Whether its result says ``status: error``.
        milliseconds: How long it ran, or None if that was not seen.
    """

    name: str
    failed: bool = False
    milliseconds: float | None = None


@dataclass(slots=True, eq=False)
class Totals:
    """Growth of an agent's running totals: what one message adds to them.

    Attributes:
        increments: Paths below the agent's ``usage`` and what is added there.
        maxima: Paths below ``usage`` and the value they grow to.
    """

    increments: dict[str, float] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)

    def add(self, path: str, amounts: Mapping[str, float]) -> None:
        """Add amounts, by their names below ``path``, which ends with a dot."""
        increments = self.increments
        for name, amount in amounts.items():
            name = path + name
            increments[name] = increments.get(name, 0) + amount

    def add_message(self, starts_turn: bool) -> None:
        """Count one message, and the turn it begins."""
        self.add("", {"messages": 1, "turns": 1} if starts_turn else {"messages": 1})

    def add_model_call(self, model: str | None, metrics: Mapping[str, Any]) -> None:
        """Count what one answer of a model used; ``metrics`` is a stored ``event_loop_metrics``."""
        path = _model_path(model)
        amounts = {**metrics["accumulated_usage"], "calls": 1}
        latency = metrics["accumulated_metrics"].get("latencyMs", 0)
        if latency > 0:
            amounts["latency.count"] = 1
            amounts["latency.sum"] = latency
            amounts[f"latency.buckets.{latency_bucket(latency)}"] = 1
            self.maxima[path + "latency.max"] = max(latency, self.maxima.get(path + "latency.max", 0))
        self.add(path, amounts)

    def add_tokens(self, model: str | None, metrics: Mapping[str, Any], sign: int = 1) -> None:
        """Count the tokens of an answer, and not the answer; with ``sign=-1``, count them no longer."""
        self.add(_model_path(model), {name: sign * amount for name, amount in metrics["accumulated_usage"].items()})

    def add_tool_call(self, call: ToolCall) -> None:
        """Count one finished call of a tool."""
        amounts: dict[str, float] = {"calls": 1}
        if call.failed:
            amounts["errors"] = 1
        if call.milliseconds is not None:
            amounts["milliseconds"] = call.milliseconds
        self.add(f"tools.{encode_key(call.name)}.", amounts)


@lru_cache(maxsize=CACHED_NAMES)
def _model_path(model: str | None) -> str:
    return f"models.{encode_key(model or 'unknown')}."


def summed(totals: Iterable[Totals], path: str = "") -> tuple[Document, Document]:
    """Return what some messages add together, below a path: increments and maxima, as in each of them."""
    increments: Document = {}
    maxima: Document = {}
    for grown in totals:
        for name, amount in grown.increments.items():
            added = amount if abs(amount) <= MAX_INTEGER_INCREMENT else float(amount)
            increments[path + name] = increments.get(path + name, 0) + added
        for name, value in grown.maxima.items():
            maxima[path + name] = max(value, maxima.get(path + name, 0))
    return increments, maxima


def latency_bucket(milliseconds: float) -> int:
    """Return the bucket of a latency: bucket ``i`` ends at ``2 ** (i / 4)`` ms, and bucket 0 holds up to 1 ms."""
    return max(0, math.ceil(math.log2(milliseconds) * LATENCY_BUCKETS_PER_DOUBLING)) if milliseconds > 0 else 0


def message_metrics(usage: Any, metrics: Any, measured_ms: float | None) -> Document | None:
    """Return the ``event_loop_metrics`` of one message, or None if nothing is known of its cost.

    Args:
        usage: Strands' ``Usage`` of that one model call: token counts.
        metrics: Strands' ``Metrics`` of it: ``latencyMs`` and perhaps ``timeToFirstByteMs``, in milliseconds.
        measured_ms: How long the call took by this process's clock. It stands in where a provider reports 0
            (OpenAI, LiteLLM and Anthropic do).
    """
    tokens = _numbers(usage, TOKENS)
    times = _numbers(metrics, _TIMES)
    if not tokens and not times:
        return None
    latency = times.get("latencyMs", 0)
    if latency <= 0 and measured_ms is not None:
        latency = max(1, round(measured_ms))
    accumulated: Document = {"latencyMs": latency}
    if times.get("timeToFirstByteMs", 0) > 0:
        accumulated["timeToFirstByteMs"] = times["timeToFirstByteMs"]
    return {
        "accumulated_usage": NO_USAGE | tokens,
        "accumulated_metrics": accumulated,
    }


def usage_since(current: Any, counted: Mapping[str, float]) -> Document:
    """Return by how much an agent's accumulated usage has grown beyond what was already counted."""
    return {
        name: value - counted.get(name, 0)
        for name, value in _numbers(current, TOKENS).items()
        if value > counted.get(name, 0)
    }


def _numbers(source: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the numbers that can be true; no NaN, nothing negative, nothing that would take a sum beyond 64 bits."""
    found: dict[str, Any] = {}
    if isinstance(source, (dict, Mapping)):
        for name in names:
            value = source.get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS:
                found[name] = value
    return found
