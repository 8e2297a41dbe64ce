"""Appends messages itself around a stream. Strands' hooks store them, too; none is stored twice."""

import asyncio
from collections.abc import AsyncIterator

from strands import Agent
from terminal import say

from mongodb_session_manager import MongoDBSessionManager


async def stream_handler(session_manager: MongoDBSessionManager, agent: Agent, prompt: str) -> AsyncIterator[str]:
    """Append the question, stream the answer, append it."""
    session_manager.append_message({"role": "user", "content": prompt}, agent)

    response_chunks = []
    async for event in agent.stream_async(prompt):
        if "data" in event:
            response_chunks.append(event["data"])
            yield event["data"]

    full_response = "".join(response_chunks)
    session_manager.append_message({"role": "assistant", "content": full_response}, agent)
    session_manager.sync_agent(agent)


async def by_hand(session_manager: MongoDBSessionManager, agent: Agent) -> None:
    """Take two such turns, and count the stored messages."""
    for turn, prompt in enumerate(["Hello, my name is Carol.", "What is my name?"], start=1):
        async for _ in stream_handler(session_manager, agent, prompt):
            pass
        await asyncio.to_thread(session_manager.flush)  # On a running event loop an append does not wait.
        messages = await asyncio.to_thread(session_manager.get_message_count, agent.agent_id)
        say(f"  {turn} turns by hand: {messages} messages are stored")
