"""Streamed answers: many streams in one event loop, their figures, a model that fails, and a restart.

    uv run python examples/example_stream_async.py

It needs no key and no network: it starts the bundled MongoDB (`MONGODB_URI` names another), and a script answers
instead of a model. `model_from_environment.py` shows how to choose a real model.
"""

import asyncio
import logging
import os
import sys
import uuid
from collections.abc import AsyncIterator

from another_process import resume_in_another_process, session_to_resume
from breaking_model import break_after
from model_from_environment import describe, model_from_environment
from offline_model import OfflineScriptedModel, ScriptedReply
from pymongo.errors import PyMongoError
from small_talk import small_talk
from strands import Agent
from strands.types.content import Messages
from stream_by_hand import by_hand
from stream_figures import StreamFigures, show, watched
from stream_metrics import show_stored_metrics
from terminal import DIM, RED, say, title

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionManagerFactory, create_mongodb_session_manager
from mongodb_session_manager.local import LocalMongoDB

DATABASE, COLLECTION = "session_manager_examples", "sessions"
AGENT_ID = "assistant"  # The same in every process: it identifies the conversation.
TTL_HOURS = 24 * 30  # A session ends this long after its last activity; the last writer decides.

logger = logging.getLogger("example")


def build_agent(session_manager: MongoDBSessionManager) -> Agent:
    """Build the assistant on a session. This restores its stored messages and state."""
    return Agent(
        model=model_from_environment(scripted_answer, chunk_characters=8),
        agent_id=AGENT_ID,
        system_prompt="You are a friendly assistant. Answer in two sentences.",
        session_manager=session_manager,
        callback_handler=None,
    )


def scripted_answer(messages: Messages) -> ScriptedReply:
    """Answer as the offline model, one piece every 50 ms."""
    text = f"{small_talk(messages)} You read this before I have said it all."
    return ScriptedReply(text=text, chunk_delay=0.05, latency_ms=0)  # No latency is reported, so it is measured.


async def basic_usage(uri: str, session_id: str, prompt: str) -> None:
    """Make a session manager, give it to an agent, read its stream. Each message is stored at once."""
    async with create_mongodb_session_manager(
        session_id, uri, DATABASE, COLLECTION, ttl_hours=TTL_HOURS
    ) as session_manager:
        agent = build_agent(session_manager)  # Reads the session synchronously; `StreamingService` does better.
        say(f"  process {os.getpid()}, session {session_id}: {len(agent.messages)} messages restored", style=DIM)
        await show(agent, prompt)


class StreamingService:
    """In production: one factory per process, made when the service starts, and one manager per request.

    For answers to browsers see `example_fastapi.py`, which is shorter.
    """

    def __init__(self, uri: str) -> None:
        self.sessions = MongoDBSessionManagerFactory(
            connection_string=uri,
            database_name=DATABASE,
            collection_name=COLLECTION,
            maxPoolSize=50,
            minPoolSize=2,
            serverSelectionTimeoutMS=5000,
            w="majority",
            ttl_hours=TTL_HOURS,
            durability="message",  # The default: each message is stored at once.
        )

    async def answer(self, session_id: str, prompt: str | None, figures: StreamFigures) -> AsyncIterator[str]:
        """Answer one request, piece by piece. Any process may answer the next request of this session."""
        try:
            # `open` reads the session in a thread. Building the agent then sends nothing: the event loop never waits.
            async with await self.sessions.open(session_id, agent_id=AGENT_ID) as session_manager:
                async for event in build_agent(session_manager).stream_async(prompt):
                    figures.count(event)
                    if "data" in event:
                        yield event["data"]
        except PyMongoError as error:
            logger.error("session %s: %s", session_id, type(error).__name__)
            yield "\nI cannot reach my memory just now. Please try again."

    async def close(self) -> None:
        """Store what is unsaved and close the client. Call it when the service stops."""
        await asyncio.to_thread(self.sessions.close)


async def many_at_once(service: StreamingService, session_ids: list[str]) -> None:
    """Many people ask at once in this one event loop; print figures while the streams are running."""

    async def person(session_id: str, figures: StreamFigures) -> None:
        async for _ in service.answer(session_id, "Hello, my name is Bob.", figures):
            pass

    streams = [StreamFigures() for _ in session_ids]
    async with watched(streams):
        await asyncio.gather(*map(person, session_ids, streams))


async def error_recovery(service: StreamingService, session_id: str) -> None:
    """The model's connection breaks during an answer. The question is stored, and the next request answers it."""
    async with await service.sessions.open(session_id, agent_id=AGENT_ID) as session_manager:
        agent = build_agent(session_manager)
        break_after(agent, pieces=3)
        try:
            await show(agent, "What is my name?")
        except Exception as error:  # Each provider has its own errors.
            say(f"  {type(error).__name__}: {error}", style=RED)

    async with await service.sessions.open(session_id, agent_id=AGENT_ID) as session_manager:
        agent = build_agent(session_manager)
        say(f"  {len(agent.messages)} messages are stored, the last one is the question", style=DIM)
        await show(agent, None)  # No prompt: the agent answers the stored question.
        say(f"  {len(agent.messages)} messages are stored", style=DIM)


async def run(uri: str, number: int) -> None:
    """Run all parts; part 2 with this many streams."""
    run_id = uuid.uuid4().hex[:8]
    alice, others = f"stream-alice-{run_id}", [f"stream-{index}-{run_id}" for index in range(number)]

    title("1 · Basic usage: an answer that arrives piece by piece")
    await basic_usage(uri, alice, "Hello, my name is Alice.")

    service = StreamingService(uri)
    title(f"2 · In production: {number} people at once, one event loop, one factory")
    await many_at_once(service, others)

    title("3 · The stored metrics")
    await show_stored_metrics(service.sessions, DATABASE, COLLECTION, AGENT_ID, others)

    title("4 · The model fails during an answer, and the session continues")
    await error_recovery(service, alice)

    title("5 · Another process continues the session")
    await asyncio.to_thread(resume_in_another_process, alice, uri)

    title("6 · Messages that the program appends itself, around the stream")
    async with await service.sessions.open(f"stream-carol-{run_id}", agent_id=AGENT_ID) as session_manager:
        await by_hand(session_manager, build_agent(session_manager))
    await service.close()


def main() -> None:
    """Run all parts; with `--resume`, run as the other process of part 5."""
    to_resume = session_to_resume(__doc__)
    logging.basicConfig(level=logging.ERROR, stream=sys.stdout, format="  log        %(message)s")
    with LocalMongoDB() as mongodb:
        if to_resume:
            asyncio.run(basic_usage(mongodb.uri, to_resume, "What is my name?"))
            return
        model = model_from_environment(scripted_answer)
        say(f"model {describe(model)}", style=DIM)
        asyncio.run(run(mongodb.uri, 20 if isinstance(model, OfflineScriptedModel) else 3))  # A real model costs.


if __name__ == "__main__":
    main()
