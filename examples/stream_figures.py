"""What a stream does, while it does it: when its first piece came, how many there are a second."""

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from terminal import DIM, say


@dataclass
class StreamFigures:
    """The figures of one stream.

    Attributes:
        begun: When the question was asked, in seconds of `time.perf_counter`.
        first: When the first piece of the answer came.
        last: When the newest one came.
        pieces: How many there were. A piece is what the provider sends at once: often a token, sometimes more.
        tokens: Tokens of the answer, which the provider tells at its end.
        ended: Whether the answer is complete.
    """

    begun: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    last: float = 0.0
    pieces: int = 0
    tokens: int = 0
    ended: bool = False

    def heed(self, event: Mapping[str, Any]) -> None:
        """Take note of an event of `agent.stream_async`."""
        if "data" in event:
            self.last = time.perf_counter()
            self.first = self.first or self.last
            self.pieces += 1
        elif metadata := event.get("event", {}).get("metadata"):
            self.tokens += metadata["usage"]["outputTokens"]
        elif "result" in event:
            self.ended = True

    def __str__(self) -> str:
        """What is known so far."""
        if not self.first:
            return "nothing yet"
        seconds = self.last - self.begun
        tokens = f", {self.tokens} tokens, {self.tokens / seconds:.0f} a second" if self.tokens else ""
        return f"first piece after {1000 * (self.first - self.begun):.0f} ms, {self.pieces} in {seconds:.2f} s{tokens}"


def summary(streams: Sequence[StreamFigures]) -> str:
    """Sum several streams up: those that speak, those that have ended, first pieces and pieces per second."""
    speaking = [figures for figures in streams if figures.first]
    if not speaking:
        return f"{len(streams)} streams, none speaks yet"
    first = statistics.median(1000 * (figures.first - figures.begun) for figures in speaking)
    seconds = max(figures.last for figures in speaking) - min(figures.begun for figures in speaking)
    rate = sum(figures.pieces for figures in speaking) / seconds
    ended = sum(figures.ended for figures in speaking)
    return f"{len(speaking)} streams, {ended} ended · first piece after {first:.0f} ms · {rate:.0f} pieces a second"


async def watch(streams: Sequence[StreamFigures]) -> None:
    """Print what all streams do together, three times a second."""
    while True:
        await asyncio.sleep(0.3)
        say(f"  {summary(streams)}", style=DIM)
