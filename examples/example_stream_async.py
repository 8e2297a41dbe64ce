"""Answers that arrive token by token: many streams in one event loop, their figures, failures, and a restart.

    uv run python examples/example_stream_async.py

It needs no key and no network: MongoDB is the bundled one (`MONGODB_URI` names another), and the model is a script;
`model_from_environment.py` tells how to choose a real one.
"""

import asyncio
import logging
import os
import sys
import time
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
from stream_figures import StreamFigures, summary, watch
from stream_metrics import metrics_of_all
from terminal import CYAN, DIM, RED, say, title

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionManagerFactory, create_mongodb_session_manager
from mongodb_session_manager.local import LocalMongoDB

DATABASE, COLLECTION = "session_manager_examples", "sessions"
AGENT_ID = "assistant"  # The same in every process: it is the key of the conversation.
TTL_HOURS = 24 * 30  # A session ends by itself so long after its last activity; the last writer decides.

logger = logging.getLogger("example")


def build_agent(session_manager: MongoDBSessionManager) -> Agent:
    """Build the assistant on a session: what the session holds of it is restored here."""
    return Agent(
        model=model_from_environment(scripted_answer, chunk_characters=8),
        agent_id=AGENT_ID,
        system_prompt="You are a friendly assistant. Answer in two sentences.",
        session_manager=session_manager,
        callback_handler=None,
    )


def scripted_answer(messages: Messages) -> ScriptedReply:
    """What the offline model says, a piece every 50 ms."""
    text = f"{small_talk(messages)} You read this before I have said it all."
    return ScriptedReply(text=text, chunk_delay=0.05, latency_ms=0)  # It tells no latency, so that is measured.


async def show(agent: Agent, prompt: str | None) -> None:
    """Ask, and print the pieces of the answer as they arrive, then the figures."""
    say(f"  you        {prompt or '(nothing: the question is stored already)'}", style=CYAN)
    figures = StreamFigures()
    print("  assistant  ", end="", flush=True)
    try:
        async for event in agent.stream_async(prompt):  # Question and answer are stored meanwhile.
            figures.heed(event)
            if "data" in event:
                print(f"{event['data']}·", end="", flush=True)
    finally:
        print()
    say(f"             {figures}", style=DIM)


async def basic_usage(uri: str, session_id: str, prompt: str) -> None:
    """Make a session manager, give it to an agent, read its stream. Everything is stored as it happens."""
    async with create_mongodb_session_manager(
        session_id, uri, DATABASE, COLLECTION, ttl_hours=TTL_HOURS
    ) as session_manager:
        agent = build_agent(session_manager)  # Reads the session, synchronously; a service opens it first, see below.
        say(f"  process {os.getpid()}, session {session_id}: {len(agent.messages)} messages restored", style=DIM)
        await show(agent, prompt)


class StreamingService:
    """In production: one factory per process, made when the service starts; one manager per request.

    Where answers go to browsers, `example_fastapi.py` has less to write.
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
            durability="message",  # The default: a question is stored before the model is asked.
        )

    async def answer(self, session_id: str, prompt: str | None, figures: StreamFigures) -> AsyncIterator[str]:
        """Answer one request, piece by piece; any process may answer the next one of this session."""
        try:
            # Read in a thread, so that building the agent sends nothing and the event loop never waits for MongoDB.
            async with await self.sessions.open(session_id, agent_id=AGENT_ID) as session_manager:
                async for event in build_agent(session_manager).stream_async(prompt):
                    figures.heed(event)
                    if "data" in event:
                        yield event["data"]
        except PyMongoError as error:
            logger.error("session %s: %s", session_id, type(error).__name__)
            yield "\nI cannot reach my memory just now. Please try again."

    async def close(self) -> None:
        """Store what is unsaved, and close the pooled client, when the service stops."""
        await asyncio.to_thread(self.sessions.close)


async def many_at_once(service: StreamingService, session_ids: list[str]) -> None:
    """Let so many people ask at once in this one event loop, and watch the streams while they come."""
    streams = [StreamFigures() for _ in session_ids]

    async def person(session_id: str, figures: StreamFigures) -> None:
        async for _ in service.answer(session_id, "Hello, my name is Bob.", figures):
            pass

    watching = asyncio.create_task(watch(streams))
    begun = time.perf_counter()
    await asyncio.gather(*map(person, session_ids, streams))
    watching.cancel()
    seconds, added_up = time.perf_counter() - begun, sum(figures.last - figures.begun for figures in streams)
    say(f"  {summary(streams)}")
    say(f"  all of them in {seconds:.2f} s; their times add up to {added_up:.1f} s")


async def stored_metrics(service: StreamingService, session_ids: list[str]) -> None:
    """Print what is stored of each answer: the manager's summary of one session, and a query of one's own for all."""
    session_manager = service.sessions.create_session_manager(session_ids[0])
    one = await asyncio.to_thread(session_manager.get_metrics_summary)
    say(f"  of one session: {one.turns} turn, {one.tokens.output} tokens out, answered in {one.latency.max:.0f} ms")
    collection = service.sessions.client[DATABASE][COLLECTION]
    found = await asyncio.to_thread(metrics_of_all, collection, AGENT_ID, session_ids)
    say(
        f"  of all: {found['answers']} answers, {found['tokens']} tokens out,"
        f" first byte after {found['first_ms']:.0f} ms and the last after {found['last_ms']:.0f} ms on average"
    )


async def error_recovery(service: StreamingService, session_id: str) -> None:
    """The model's connection breaks in mid-answer: the question is stored, and is answered by the next request."""
    async with await service.sessions.open(session_id, agent_id=AGENT_ID) as session_manager:
        agent = build_agent(session_manager)
        break_after(agent, pieces=3)
        try:
            await show(agent, "What is my name?")
        except Exception as error:  # Providers have errors of their own.
            say(f"  {type(error).__name__}: {error}", style=RED)
        say(f"  {await stored(session_manager)} messages are stored, the last one is the question", style=DIM)

    async with await service.sessions.open(session_id, agent_id=AGENT_ID) as session_manager:
        await show(build_agent(session_manager), None)  # No prompt: the agent answers what stands there already.
        say(f"  {await stored(session_manager)} messages are stored", style=DIM)


async def stored(session_manager: MongoDBSessionManager) -> int:
    """Count the messages that are stored."""
    return await asyncio.to_thread(session_manager.get_message_count, AGENT_ID)


async def run(uri: str, number: int) -> None:
    """Run all parts, the second one with so many streams."""
    run_id = uuid.uuid4().hex[:8]
    alice, others = f"stream-alice-{run_id}", [f"stream-{index}-{run_id}" for index in range(number)]

    title("1 · Basic usage: an answer that is read while it is said")
    await basic_usage(uri, alice, "Hello, my name is Alice.")

    service = StreamingService(uri)
    title(f"2 · In production: {number} people at once, one event loop, one factory")
    await many_at_once(service, others)

    title("3 · The stored metrics")
    await stored_metrics(service, others)

    title("4 · The model fails in mid-answer, and the session goes on")
    await error_recovery(service, alice)

    title("5 · Another process goes on with the session")
    await asyncio.to_thread(resume_in_another_process, alice, uri)

    title("6 · Messages that are appended by hand, around the stream")
    async with await service.sessions.open(f"stream-carol-{run_id}", agent_id=AGENT_ID) as session_manager:
        await by_hand(session_manager, build_agent(session_manager))
    await service.close()


def main() -> None:
    """Run all parts; or with `--resume`, as the other process, the fifth one."""
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
