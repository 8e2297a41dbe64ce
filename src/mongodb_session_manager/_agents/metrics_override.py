"""What the application says of the next answer in place of what its provider reports: token counts, a stopwatch.

A manager and the followers of its agents share one ``MetricsOverride``. Whichever answer is stored next takes what was
given; the end of a turn forgets what no answer has taken, and so does what keeps a message from being.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from .._model.documents import Document
from .._model.limits import MAX_TOKENS


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
        usage = {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0}
        accumulated: Document = {"latencyMs": 0}
        if metrics is not None:
            usage = metrics["accumulated_usage"]
            accumulated = dict(metrics["accumulated_metrics"])
        if self.tokens is not None:
            input_tokens, output_tokens = self.tokens
            # Counts of cached tokens would belong to other counts than these.
            usage = {
                "inputTokens": input_tokens,
                "outputTokens": output_tokens,
                "totalTokens": input_tokens + output_tokens,
            }
        if self.began is not None:
            accumulated["latencyMs"] = max(1, round((time.perf_counter() - self.began) * 1000))
        return {"accumulated_usage": usage, "accumulated_metrics": accumulated}


class MetricsOverride:
    """Holds what was given until an answer takes it. False while there is nothing."""

    def __init__(self) -> None:
        # At most one. Two agents may end their answers in two threads: `pop` gives it to one of them.
        self._given: list[Given] = []

    def __bool__(self) -> bool:
        return bool(self._given)

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
