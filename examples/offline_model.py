"""An offline model: it says what a script tells it to say, and needs no network, key or GPU.

Examples, tests and benchmarks use it in place of a language model. It is none, and its model id says so.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar, cast

from pydantic import BaseModel
from strands.models import Model
from strands.types.content import Messages
from strands.types.event_loop import StopReason
from strands.types.streaming import StreamEvent

T = TypeVar("T", bound=BaseModel)


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
    """One answer of the model; whatever is set arrives in the order of these fields.

    Args:
        reasoning: What the model thought, streamed before its text.
        redacted_reasoning: Thoughts that the provider hides, as opaque bytes.
        text: What the model says, streamed in several chunks.
        tool_calls: The tools it asks for.
        error: Raised after everything above has been streamed.
        redact_user: Replaces what the user said, as a guardrail of Amazon Bedrock does.
        redact_assistant: Replaces what the model said, likewise.
        guardrail_trace: What the guardrail found, as Amazon Bedrock says it with the usage, last of all.
        stop_reason: Why the model stopped; by default `guardrail_intervened` after a redaction, `tool_use`
            with tool calls, else `end_turn`.
        usage: Token counts (`inputTokens`, `outputTokens`, `totalTokens`, `cacheReadInputTokens`, …); by
            default a quarter of the characters, which is what providers roughly count.
        latency_ms: The latency that is reported, in milliseconds; it is not waited for.
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
"""What a script holds: a text, an error to raise, a tool call, or anything else as a `ScriptedReply`."""


class OfflineScriptedModel(Model):
    """A Strands model provider that answers from a script.

    Args:
        replies: The replies, used one per model call; or a function that is given the messages (role and
            content, as any provider gets them) and returns the reply.
        model_id: The id that `get_config()` reports.
        chunk_characters: Texts are streamed in chunks of this many characters.
        context_window_limit: The size of the context window in tokens that is reported, if any.

    Attributes:
        calls: How often the model was called.
        last_messages: The messages of the latest call; empty before the first.

    Raises:
        ValueError: If `chunk_characters` is below 1.
    """

    def __init__(
        self,
        replies: Iterable[Reply] | Callable[[Messages], Reply] = (),
        *,
        model_id: str = "offline-scripted-model",
        chunk_characters: int = 24,
        context_window_limit: int | None = None,
    ) -> None:
        if chunk_characters < 1:
            raise ValueError(f"chunk_characters must be at least 1, got {chunk_characters}")
        self._answer = replies if callable(replies) else None
        self._script: deque[Reply] = deque(() if callable(replies) else replies)
        self._chunk_characters = chunk_characters
        self._config: dict[str, Any] = {"model_id": model_id}
        if context_window_limit is not None:
            self._config["context_window_limit"] = context_window_limit
        self.calls = 0
        self.last_messages: Messages = []

    def will_reply(self, *replies: Reply) -> None:
        """Add replies to the end of the script."""
        self._script.extend(replies)

    def update_config(self, **model_config: Any) -> None:
        """Change what `get_config()` reports."""
        self._config.update(model_config)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration: `model_id`, and `context_window_limit` if it was given."""
        return self._config

    async def stream(self, messages: Messages, *args: Any, **kwargs: Any) -> AsyncIterator[StreamEvent]:
        """Stream the next reply, in the chunks that a real provider sends.

        Args:
            messages: The conversation so far.
            *args: What Strands gives to every provider and a script has no use for.
            **kwargs: Likewise.

        Yields:
            The chunks, the usage and metrics last.

        Raises:
            RuntimeError: If the script is exhausted.
            Exception: The error that the script holds at this place.
        """
        reply = self._next_reply(messages)
        for chunk in self._chunks(reply, messages):
            if reply.chunk_delay:
                await asyncio.sleep(reply.chunk_delay)
            yield chunk
        if reply.error is not None:
            raise reply.error
        for chunk in _closing_chunks(reply, messages):
            yield chunk

    async def structured_output(
        self,
        output_model: type[T],
        prompt: Messages,
        system_prompt: str | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[dict[str, T | Any], None]:
        """Yield the next reply as `output_model`: the input of its tool call, or its text as JSON."""
        reply = self._next_reply(prompt)
        if reply.error is not None:
            raise reply.error
        values = reply.tool_calls[0].input if reply.tool_calls else json.loads(reply.text)
        yield {"output": output_model(**values)}

    def _next_reply(self, messages: Messages) -> ScriptedReply:
        self.calls += 1
        self.last_messages = messages
        if self._answer is not None:
            reply = self._answer(messages)
        elif self._script:
            reply = self._script.popleft()
        else:
            raise RuntimeError(f"the script of {self._config['model_id']!r} ended before call {self.calls}")
        if isinstance(reply, str):
            return ScriptedReply(text=reply)
        if isinstance(reply, ToolCall):
            return ScriptedReply(tool_calls=(reply,))
        if isinstance(reply, Exception):
            return ScriptedReply(error=reply)
        return reply

    def _chunks(self, reply: ScriptedReply, messages: Messages) -> Iterator[StreamEvent]:
        if reply.error is not None and not (reply.text or reply.reasoning or reply.tool_calls):
            return  # a provider that refuses a request sends no chunk at all
        yield {"messageStart": {"role": "assistant"}}
        if reply.reasoning:
            yield from self._block(*({"reasoningContent": {"text": part}} for part in self._parts(reply.reasoning)))
        if reply.redacted_reasoning:
            yield from self._block({"reasoningContent": {"redactedContent": reply.redacted_reasoning}})
        if reply.text:
            yield from self._block(*({"text": part} for part in self._parts(reply.text)))
        for index, call in enumerate(reply.tool_calls):
            # Counting messages gives ids that a resumed conversation does not give out again.
            tool_use_id = call.tool_use_id or f"offline-{len(messages)}-{index}"
            tool_use = {"toolUse": {"toolUseId": tool_use_id, "name": call.name}}
            arguments = json.dumps(call.input)
            yield from self._block(*({"toolUse": {"input": part}} for part in self._parts(arguments)), start=tool_use)

    def _parts(self, text: str) -> list[str]:
        return [text[at : at + self._chunk_characters] for at in range(0, len(text), self._chunk_characters)]

    def _block(self, *deltas: Mapping[str, Any], start: Mapping[str, Any] | None = None) -> Iterator[StreamEvent]:
        yield cast("StreamEvent", {"contentBlockStart": {"start": start or {}}})
        for delta in deltas:
            yield cast("StreamEvent", {"contentBlockDelta": {"delta": delta}})
        yield {"contentBlockStop": {}}


def _closing_chunks(reply: ScriptedReply, messages: Messages) -> Iterator[StreamEvent]:
    """The end of a reply, in Amazon Bedrock's order: stop reason, redactions, usage and metrics."""
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


def _estimated_usage(reply: ScriptedReply, messages: Messages) -> dict[str, int]:
    said = len(reply.text) + sum(len(json.dumps(call.input)) for call in reply.tool_calls)
    heard = sum(len(block.get("text", "")) for message in messages for block in message["content"])
    tokens = {"inputTokens": max(1, heard // 4), "outputTokens": max(1, said // 4)}
    return {**tokens, "totalTokens": sum(tokens.values())}
