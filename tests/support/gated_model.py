"""A model whose answers a test can hold between two pieces, let on, or have fail."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from strands.models import Model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from strands.types.streaming import StreamEvent


class Gate:
    """What the pieces of answers pass. Open at first. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passes: int | None = None
        self._failures: list[tuple[int, Exception]] = []
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

    def fail_next(self, error: Exception, after: int = 0) -> None:
        """Have the next model call that is not spoken for raise `error` after this many pieces."""
        with self._lock:
            self._failures.append((after, error))

    def reset(self) -> None:
        """Open, and nothing fails any more."""
        with self._lock:
            self._passes, self._failures = None, []

    def take_failure(self) -> tuple[int, Exception] | None:
        """What the model call that begins now is to raise, and after how many pieces."""
        with self._lock:
            return self._failures.pop(0) if self._failures else None

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
        failure = self._gate.take_failure()
        pieces = 0
        async for event in self._model.stream(*args, **kwargs):
            if failure is not None and pieces == failure[0]:
                raise failure[1]
            if "contentBlockDelta" in event:
                await self._gate.passed()
                pieces += 1
            yield event
        if failure is not None:
            raise failure[1]
