"""A model whose answers a test can hold between two pieces, and let on."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

from strands.models import Model
from strands.types.streaming import StreamEvent


class Gate:
    """What the pieces of answers pass. Open at first. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passes: int | None = None
        self.waiting = threading.Event()

    def hold(self, after: int = 0) -> None:
        """Let `after` more pieces pass, then none."""
        with self._lock:
            self._passes = after
            self.waiting.clear()

    def open(self) -> None:
        """Let everything pass."""
        with self._lock:
            self._passes = None

    async def passed(self) -> None:
        """Return when one piece may pass."""
        while True:
            with self._lock:
                if self._passes is None:
                    return
                if self._passes:
                    self._passes -= 1
                    return
                self.waiting.set()
            await asyncio.sleep(0.01)


class GatedModel(Model):
    """Another model, whose pieces pass a gate.

    Args:
        model: the model that answers.
        gate: what its pieces pass.
    """

    def __init__(self, model: Model, gate: Gate) -> None:
        self._model = model
        self._gate = gate

    def update_config(self, **model_config: Any) -> None:
        self._model.update_config(**model_config)

    def get_config(self) -> Any:
        return self._model.get_config()

    def structured_output(self, *args: Any, **kwargs: Any) -> Any:
        return self._model.structured_output(*args, **kwargs)

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[StreamEvent]:
        async for event in self._model.stream(*args, **kwargs):
            if "contentBlockDelta" in event:
                await self._gate.passed()
            yield event
