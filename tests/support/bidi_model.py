"""A scripted, offline bidirectional model, for `BidiAgent`."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any

from strands.bidi.models import BidiModel
from strands.bidi.types.content import BidiContentDelta, BidiMessage
from strands.bidi.types.events import BidiConnectionStopEvent, BidiOutputEvent

HANG_UP = BidiConnectionStopEvent(connection_id="offline", reason="user_request")
"""As the last event of a script: `agent.receive()` ends with it."""


class ScriptedBidiModel(BidiModel):
    """Answers everything that is sent (a message, tool results, audio) with the next batch of a script.

    Args:
        batches: Per `send()`, the events that the model then emits.
    """

    def __init__(self, *batches: Iterable[BidiOutputEvent]) -> None:
        self._script = deque(batches)
        self._events: asyncio.Queue[BidiOutputEvent | None] = asyncio.Queue()
        self._config: dict[str, Any] = {"model_id": "offline-scripted-bidi-model"}

    def will_emit(self, *batches: Iterable[BidiOutputEvent]) -> None:
        """Add batches to the end of the script."""
        self._script.extend(batches)

    def update_config(self, **model_config: Any) -> None:
        """Change what `get_config()` reports."""
        self._config.update(model_config)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration: `model_id`."""
        return self._config

    async def start(self, *args: Any, **kwargs: Any) -> None:
        """Open the pretended connection; a queue belongs to the event loop that runs now."""
        self._events = asyncio.Queue()

    async def stop(self) -> None:
        """Close the pretended connection."""
        await self._events.put(None)

    async def send(self, content: BidiMessage | BidiContentDelta) -> None:
        """Emit the next batch of the script, whatever the content; nothing once it has ended."""
        for event in self._script.popleft() if self._script else ():
            await self._events.put(event)

    async def receive(self) -> AsyncIterator[BidiOutputEvent]:
        """Yield what was emitted, until the connection is closed."""
        while (event := await self._events.get()) is not None:
            yield event
