"""Prints streams and their figures while they run: when the first piece came, and how many come per second."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from strands import Agent
from terminal import CYAN, DIM, say


@dataclass
class StreamFigures:
    """The figures of one stream.

    Attributes:
        begun: When the question was asked, in seconds of `time.perf_counter`.
        first: When the first piece of the answer came.
        last: When the newest one came.
        pieces: How many pieces came. A piece is what the provider sends at once: often a token, sometimes more.
        tokens: Tokens of the answer, which the provider reports at the end.
        ended: Whether the answer is complete.
    """

    begun: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    last: float = 0.0
    pieces: int = 0
    tokens: int = 0
    ended: bool = False

    def count(self, event: Mapping[str, Any]) -> None:
        """Count an event of `agent.stream_async`."""
        if "data" in event:
            self.last = time.perf_counter()
            self.first = self.first or self.last
            self.pieces += 1
        elif metadata := event.get("event", {}).get("metadata"):
            self.tokens += metadata["usage"]["outputTokens"]
        elif "result" in event:
            self.ended = True

    def __str__(self) -> str:
        """Return the figures so far as a text."""
        if not self.first:
            return "nothing yet"
        seconds = self.last - self.begun
        tokens = f", {self.tokens} tokens, {self.tokens / seconds:.0f} a second" if self.tokens else ""
        return f"first piece after {1000 * (self.first - self.begun):.0f} ms, {self.pieces} in {seconds:.2f} s{tokens}"


async def show(agent: Agent, prompt: str | None) -> None:
    """Ask, and print the pieces of the answer as they arrive, then the figures."""
    say(f"  you        {prompt or '(nothing: the question is already stored)'}", style=CYAN)
    figures = StreamFigures()
    print("  assistant  ", end="", flush=True)
    try:
        async for event in agent.stream_async(prompt):  # Meanwhile question and answer are stored.
            figures.count(event)
            if "data" in event:
                print(f"{event['data']}·", end="", flush=True)
    finally:
        print()
    say(f"             {figures}", style=DIM)


@asynccontextmanager
async def watched(streams: Sequence[StreamFigures]) -> AsyncIterator[None]:
    """Print the figures of all streams three times a second while the block runs, and once at its end."""

    async def watch() -> None:
        while True:
            await asyncio.sleep(0.3)
            say(f"  {summary(streams)}", style=DIM)

    watching = asyncio.create_task(watch())
    begin = time.perf_counter()
    try:
        yield
    finally:
        watching.cancel()
    seconds, added_up = time.perf_counter() - begin, sum(figures.last - figures.begun for figures in streams)
    say(f"  {summary(streams)}")
    say(f"  all of them in {seconds:.2f} s; their times add up to {added_up:.1f} s")


def summary(streams: Sequence[StreamFigures]) -> str:
    """Return a line about all streams: how many have begun and ended, first pieces, pieces per second."""
    begun = [figures for figures in streams if figures.first]
    if not begun:
        return f"{len(streams)} streams, no piece yet"
    first = statistics.median(1000 * (figures.first - figures.begun) for figures in begun)
    seconds = max(figures.last for figures in begun) - min(figures.begun for figures in begun)
    rate = sum(figures.pieces for figures in begun) / seconds
    ended = sum(figures.ended for figures in begun)
    return f"{len(begun)} streams, {ended} ended · first piece after {first:.0f} ms · {rate:.0f} pieces a second"
