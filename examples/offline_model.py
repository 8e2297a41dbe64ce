"""An offline model: it answers from a script, and needs no network, key or GPU.

Examples, tests and benchmarks use it instead of a language model. Its model id says so.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

from offline_reply import Reply, ScriptedReply, ToolCall, chunks_of, closing_chunks
from pydantic import BaseModel
from strands.models import Model
from strands.types.content import Messages
from strands.types.streaming import StreamEvent

__all__ = ["OfflineScriptedModel", "Reply", "ScriptedReply", "ToolCall"]

T = TypeVar("T", bound=BaseModel)


class OfflineScriptedModel(Model):
    """A Strands model provider that answers from a script.

    Args:
        replies: The replies, one per model call; or a function that gets the messages (role and content,
            as any provider gets them) and returns the reply.
        model_id: The id that `get_config()` reports.
        chunk_characters: Texts are streamed in chunks of this many characters.
        context_window_limit: The size of the context window in tokens, if it is to be reported.

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
            *args: Other arguments that Strands gives to every provider; ignored.
            **kwargs: The same.

        Yields:
            The chunks; usage and metrics come last.

        Raises:
            RuntimeError: If the script is exhausted.
            Exception: The error that the script has at this place.
        """
        reply = self._next_reply(messages)
        for chunk in chunks_of(reply, messages, self._chunk_characters):
            if reply.chunk_delay:
                await asyncio.sleep(reply.chunk_delay)
            yield chunk
        if reply.error is not None:
            raise reply.error
        for chunk in closing_chunks(reply, messages):
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
