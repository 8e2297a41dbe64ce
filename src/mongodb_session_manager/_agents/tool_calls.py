"""How often tools are called, how long they take, and whether they fail."""

from __future__ import annotations

import time
from typing import Any

from strands.types.content import Message

from .._model.metrics import ToolCall


class ToolCalls:
    """The calls of tools of one agent that no message has carried yet."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._ended: dict[str, ToolCall] = {}
        # The last answer that was appended by hand: it may ask for tools, and is not in the live conversation.
        self.asked_by_hand: list[Message] = []

    def begins(self, tool_use_id: str) -> None:
        """Start the clock of a call."""
        self._began[tool_use_id] = time.perf_counter()

    def ends(self, tool_use_id: str, name: str) -> None:
        """Stop it; the call is counted with the message that carries its result."""
        began = self._began.pop(tool_use_id, None)
        took = None if began is None else round((time.perf_counter() - began) * 1000, 3)
        self._ended[tool_use_id] = ToolCall(name, milliseconds=took)

    def forget(self) -> None:
        """Forget calls that no message will tell of any more: a tool had called them, or the application."""
        self._ended.clear()

    def carried_by(self, message: Message, live: list[Message]) -> list[ToolCall]:
        """Return the calls whose results a message carries.

        Those that were not seen, of another process for instance, are known by the answer that asked for them.
        """
        calls = []
        for block in message["content"]:
            result = block.get("toolResult") if isinstance(block, dict) else None
            if not isinstance(result, dict) or not isinstance(tool_use_id := result.get("toolUseId"), str):
                continue
            call = self._ended.pop(tool_use_id, None)
            if call is None and (name := _tool_name(tool_use_id, [*live, *self.asked_by_hand])) is not None:
                call = ToolCall(name)
            if call is not None:
                call.failed = result.get("status") == "error"
                calls.append(call)
        return calls


def _tool_name(tool_use_id: str, messages: list[Message]) -> str | None:
    """Return which tool the latest of these messages with such a tool use asks for, or None if none does."""
    for message in reversed(messages):
        content: Any = message.get("content")
        for block in content if isinstance(content, list) else []:
            tool_use = block.get("toolUse") if isinstance(block, dict) else None
            if isinstance(tool_use, dict) and tool_use.get("toolUseId") == tool_use_id:
                name = tool_use.get("name")
                return name if isinstance(name, str) else None
    return None
