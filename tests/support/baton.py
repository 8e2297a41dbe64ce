"""A model that says a word only when the test allows it, and what it says."""

import asyncio
from typing import Any

from offline_model import OfflineScriptedModel

WORDS = [f"word{number:02} " for number in range(40)]
REPLY = "".join(WORDS)


class Baton:
    """Lets a model say a word only when the test allows it."""

    def __init__(self) -> None:
        self.allowed = 0
        self.cancelled = 0

    async def wait_for(self, number: int) -> None:
        try:
            while self.allowed <= number:
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class BatonModel(OfflineScriptedModel):
    """Says one word at a time, each when the baton allows it."""

    def __init__(self, baton: Baton, replies: Any = (REPLY,)) -> None:
        super().__init__(replies, chunk_characters=len(WORDS[0]))
        self._baton = baton

    async def stream(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        number = 0
        async for chunk in super().stream(messages, *args, **kwargs):
            if "contentBlockDelta" in chunk and "text" in chunk["contentBlockDelta"]["delta"]:
                await self._baton.wait_for(number)
                number += 1
            yield chunk
