"""Makes any model's connection break during an answer, to show what is stored of the turn."""

from collections.abc import AsyncIterator
from typing import Any

from strands import Agent


def break_after(agent: Agent, pieces: int) -> None:
    """Let the next answer of the agent's model break after this many pieces."""
    stream: Any = agent.model.stream

    async def breaking(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        left = pieces
        async for event in stream(*args, **kwargs):
            if "contentBlockDelta" in event:
                left -= 1
            if left < 0:
                raise ConnectionError("the model's connection broke")
            yield event

    agent.model.stream = breaking
