"""The replies of an offline model, and the chunks in which a provider would send them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from strands.types.content import Messages
from strands.types.event_loop import StopReason
from strands.types.streaming import StreamEvent


@dataclass(frozen=True)
class ToolCall:
    """A tool that the model asks for.

    Args:
        name: The tool's name. For structured output, the name of the Pydantic model.
        input: The tool's arguments.
        tool_use_id: The id of this call; without one it is derived from its place in the conversation.
    """

    name: str
    input: Mapping[str, Any] = field(default_factory=dict)
    tool_use_id: str | None = None


@dataclass(frozen=True)
class ScriptedReply:
    """One answer of the model. The fields that are set arrive in this order.

    Args:
        reasoning: The model's reasoning, streamed before its text.
        redacted_reasoning: Reasoning that the provider hides, as opaque bytes.
        text: The text, streamed in several chunks.
        tool_calls: The tools it asks for.
        error: Raised after everything above has been streamed.
        redact_user: Replaces the user's message, as a guardrail of Amazon Bedrock does.
        redact_assistant: Replaces the model's answer, in the same way.
        guardrail_trace: The guardrail's trace, which Amazon Bedrock sends with the usage at the end.
        stop_reason: Why the model stopped; by default `guardrail_intervened` after a redaction, `tool_use`
            with tool calls, else `end_turn`.
        usage: Token counts (`inputTokens`, `outputTokens`, `totalTokens`, `cacheReadInputTokens`, …); by
            default a quarter of the characters, which is roughly what providers count.
        latency_ms: The latency that is reported, in milliseconds; the model does not wait for it.
        chunk_delay: Seconds to wait before each chunk, without blocking the event loop.
    """

    reasoning: str = ""
    redacted_reasoning: bytes = b""
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    error: Exception | None = None
    redact_user: str | None = None
    redact_assistant: str | None = None
    guardrail_trace: Mapping[str, Any] | None = None
    stop_reason: StopReason | None = None
    usage: Mapping[str, int] | None = None
    latency_ms: int = 25
    chunk_delay: float = 0.0


Reply: TypeAlias = str | Exception | ToolCall | ScriptedReply
"""An entry of a script: a text, an error to raise, a tool call, or anything else as a `ScriptedReply`."""


def chunks_of(reply: ScriptedReply, messages: Messages, characters: int) -> Iterator[StreamEvent]:
    """Yield the chunks of a reply up to its end, texts in pieces of this many characters."""
    if reply.error is not None and not (reply.text or reply.reasoning or reply.tool_calls):
        return  # A provider that refuses a request sends no chunk at all.

    def pieces(text: str) -> list[str]:
        return [text[at : at + characters] for at in range(0, len(text), characters)]

    yield {"messageStart": {"role": "assistant"}}
    if reply.reasoning:
        yield from _block({"reasoningContent": {"text": piece}} for piece in pieces(reply.reasoning))
    if reply.redacted_reasoning:
        yield from _block([{"reasoningContent": {"redactedContent": reply.redacted_reasoning}}])
    if reply.text:
        yield from _block({"text": piece} for piece in pieces(reply.text))
    for index, call in enumerate(reply.tool_calls):
        # With the number of messages in it, a resumed conversation does not use an id again.
        tool_use_id = call.tool_use_id or f"offline-{len(messages)}-{index}"
        start = {"toolUse": {"toolUseId": tool_use_id, "name": call.name}}
        yield from _block(({"toolUse": {"input": piece}} for piece in pieces(json.dumps(call.input))), start)


def closing_chunks(reply: ScriptedReply, messages: Messages) -> Iterator[StreamEvent]:
    """Yield the end of a reply, in Amazon Bedrock's order: stop reason, redactions, usage and metrics."""
    redacted = reply.redact_user is not None or reply.redact_assistant is not None
    by_content: StopReason = "guardrail_intervened" if redacted else "tool_use" if reply.tool_calls else "end_turn"
    yield {"messageStop": {"stopReason": reply.stop_reason or by_content}}
    if reply.redact_user is not None:
        yield {"redactContent": {"redactUserContentMessage": reply.redact_user}}
    if reply.redact_assistant is not None:
        yield {"redactContent": {"redactAssistantContentMessage": reply.redact_assistant}}
    usage = reply.usage if reply.usage is not None else _estimated_usage(reply, messages)
    metadata: dict[str, Any] = {"usage": dict(usage), "metrics": {"latencyMs": reply.latency_ms}}
    if reply.guardrail_trace is not None:
        metadata["trace"] = {"guardrail": reply.guardrail_trace}
    yield cast("StreamEvent", {"metadata": metadata})


def _block(deltas: Iterable[Mapping[str, Any]], start: Mapping[str, Any] | None = None) -> Iterator[StreamEvent]:
    yield cast("StreamEvent", {"contentBlockStart": {"start": start or {}}})
    for delta in deltas:
        yield cast("StreamEvent", {"contentBlockDelta": {"delta": delta}})
    yield {"contentBlockStop": {}}


def _estimated_usage(reply: ScriptedReply, messages: Messages) -> dict[str, int]:
    said = len(reply.text) + sum(len(json.dumps(call.input)) for call in reply.tool_calls)
    heard = sum(len(block.get("text", "")) for message in messages for block in message["content"])
    tokens = {"inputTokens": max(1, heard // 4), "outputTokens": max(1, said // 4)}
    return {**tokens, "totalTokens": sum(tokens.values())}
