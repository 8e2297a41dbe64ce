"""Answers that cost what a test says, and an application that calls its model by itself."""

from typing import Any

from offline_model import ScriptedReply, ToolCall
from strands import Agent

TOKENS = ("inputTokens", "outputTokens", "totalTokens", "cacheReadInputTokens", "cacheWriteInputTokens")
LOOK_UP = (ToolCall("look_up", {"what": "x"}),)
MULTIPLES = dict(zip(TOKENS, (3, 1, 4, 5, 7), strict=True))


def reply(text: str, tokens: int, *, latency_ms: int = 20, calls: Any = (), **options: Any) -> ScriptedReply:
    """A reply of so many output tokens, and of another multiple of each other kind."""
    usage: Any = {kind: multiple * tokens for kind, multiple in MULTIPLES.items()}
    return ScriptedReply(text=text, usage=usage, latency_ms=latency_ms, tool_calls=calls, **options)


def plain_reply(text: str, input_tokens: int, output_tokens: int, *, more: Any = (), **options: Any) -> ScriptedReply:
    """A reply of so many tokens, without a cache unless there is `more`."""
    total = input_tokens + output_tokens
    usage = {"inputTokens": input_tokens, "outputTokens": output_tokens, "totalTokens": total, **dict(more)}
    return ScriptedReply(text=text, usage=usage, **{"latency_ms": 20, **options})


def use(agent: Agent, tokens: int, latency_ms: int) -> None:
    """What an application does that calls its model by itself: it counts into the agent's metrics."""
    metrics = agent.event_loop_metrics
    for kind in TOKENS[:3]:
        metrics.accumulated_usage[kind] += MULTIPLES[kind] * tokens  # type: ignore[literal-required]
    metrics.accumulated_metrics["latencyMs"] += latency_ms
