"""Answers that arrive token by token: many streams in one event loop, their figures, failures, and a restart.

    uv run python examples/example_stream_async.py

It needs no key and no network: MongoDB is the bundled one (`MONGODB_URI` names another), and the model is a script.
`model_from_environment.py` tells how to choose a real one.

In six parts: basic usage, many streams at once as in production, the stored metrics, a model that fails in mid-answer,
the conversation in another process, and messages that are appended by hand.
"""

import argparse
import asyncio
import logging
import os
import re
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_from_environment import describe, model_from_environment
from offline_model import OfflineScriptedModel, Reply, ScriptedReply
from pymongo.errors import PyMongoError
from strands import Agent
from strands.types.content import Messages
from terminal import CYAN, DIM, RED, say, title

from mongodb_session_manager import (
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    create_mongodb_session_manager,
)
from mongodb_session_manager.local import LocalMongoDB

DATABASE, COLLECTION = "session_manager_examples", "sessions"
AGENT_ID = "assistant"  # The same in every process: it is the key of the conversation.
TTL_HOURS = 24 * 30  # A session ends by itself so long after its last activity; the last writer decides.
STREAMS, STREAMS_OF_A_REAL_MODEL = 20, 3

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


def scripted_answer(messages: Messages) -> Reply:
    """What the offline model says, a piece every 50 ms: found in `messages` and nowhere else."""
    said = [block["text"] for message in messages for block in message["content"] if "text" in block]
    names = [match[1] for match in (re.search(r"my name is (\w+)", text, re.IGNORECASE) for text in said) if match]
    known = "Hello."
    if names:
        asked = "what is my name" in said[-1].lower()
        known = f"Your name is {names[-1]}." if asked else f"Nice to meet you, {names[-1]}."
    text = f"{known} You read this before I have said it all."
    return ScriptedReply(text=text, chunk_delay=0.05, latency_ms=0)  # It tells no latency, so that is measured.


# --- One stream and its figures


@dataclass
class StreamFigures:
    """What a stream does, while it does it.

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

    def heed(self, event: dict[str, Any]) -> None:
        """Take note of an event of `agent.stream_async`."""
        if "data" in event:
            self.last = time.perf_counter()
            self.first = self.first or self.last
            self.pieces += 1
        elif metadata := event.get("event", {}).get("metadata"):
            self.tokens += metadata["usage"]["outputTokens"]

    def __str__(self) -> str:
        """What is known so far."""
        if not self.first:
            return "nothing yet"
        seconds = self.last - self.begun
        tokens = f", {self.tokens} tokens, {self.tokens / seconds:.0f} a second" if self.tokens else ""
        return f"first piece after {1000 * (self.first - self.begun):.0f} ms, {self.pieces} in {seconds:.2f} s{tokens}"


async def pieces_of(agent: Agent, prompt: str | None, figures: StreamFigures) -> AsyncIterator[str]:
    """Take a turn and yield the answer as it arrives; question and answer are stored meanwhile."""
    async for event in agent.stream_async(prompt):
        figures.heed(event)
        if "data" in event:
            yield event["data"]
    figures.ended = True


async def show(agent: Agent, prompt: str | None) -> None:
    """Ask, and print the pieces of the answer as they arrive, then the figures."""
    say(f"  you        {prompt or '(nothing: the question is stored already)'}", style=CYAN)
    figures = StreamFigures()
    print("  assistant  ", end="", flush=True)
    try:
        async for piece in pieces_of(agent, prompt, figures):
            print(f"{piece}·", end="", flush=True)
    finally:
        print()
    say(f"             {figures}", style=DIM)


# --- Six ways to use it


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
            durability="message",  # the default: a question is stored before the model is asked
        )

    async def answer(self, session_id: str, prompt: str | None, figures: StreamFigures) -> AsyncIterator[str]:
        """Answer one request, piece by piece; any process may answer the next one of this session."""
        try:
            # Read in a thread, so that building the agent sends nothing and the event loop never waits for MongoDB.
            async with await self.sessions.open(session_id, agent_id=AGENT_ID) as session_manager:
                async for piece in pieces_of(build_agent(session_manager), prompt, figures):
                    yield piece
        except PyMongoError as error:
            logger.error("session %s: %s", session_id, type(error).__name__)
            yield "\nI cannot reach my memory just now. Please try again."

    async def close(self) -> None:
        """Store what is unsaved, and close the pooled client, when the service stops."""
        await asyncio.to_thread(self.sessions.close)


async def many_at_once(service: StreamingService, session_ids: list[str]) -> None:
    """Let so many people ask at once in this one event loop, and watch the streams while they come."""

    async def person(session_id: str) -> None:
        figures = StreamFigures()
        streams.append(figures)
        async for _ in service.answer(session_id, "Hello, my name is Bob.", figures):
            pass

    streams: list[StreamFigures] = []
    watching = asyncio.create_task(watch(streams))
    begun = time.perf_counter()
    await asyncio.gather(*(person(session_id) for session_id in session_ids))
    watching.cancel()
    seconds, added_up = time.perf_counter() - begun, sum(figures.last - figures.begun for figures in streams)
    say(f"  {summary(streams)}")
    say(f"  all of them in {seconds:.2f} s; their times add up to {added_up:.1f} s")


async def watch(streams: list[StreamFigures]) -> None:
    """Print what all streams do together, three times a second."""
    while True:
        await asyncio.sleep(0.3)
        say(f"  {summary(streams)}", style=DIM)


def summary(streams: list[StreamFigures]) -> str:
    """Sum several streams up: those that speak, those that have ended, first pieces and pieces per second."""
    speaking = [figures for figures in streams if figures.first]
    if not speaking:
        return f"{len(streams)} streams, none speaks yet"
    first = statistics.median(1000 * (figures.first - figures.begun) for figures in speaking)
    seconds = max(figures.last for figures in speaking) - min(figures.begun for figures in speaking)
    rate = sum(figures.pieces for figures in speaking) / seconds
    ended = sum(figures.ended for figures in speaking)
    return f"{len(speaking)} streams, {ended} ended · first piece after {first:.0f} ms · {rate:.0f} pieces a second"


async def stored_metrics(service: StreamingService, session_ids: list[str]) -> None:
    """Print what is stored of each answer: the manager's summary of one session, and a query of one's own for all."""
    session_manager = service.sessions.create_session_manager(session_ids[0])
    of_one = await asyncio.to_thread(session_manager.get_metrics_summary)
    tokens, latency = of_one.tokens, of_one.latency
    say(f"  of one session: {of_one.turns} turn, {tokens.output} tokens out, answered in {latency.max:.0f} ms")

    message, metrics = f"$agents.{AGENT_ID}.messages", f"$agents.{AGENT_ID}.messages.event_loop_metrics"
    collection = service.sessions.client[DATABASE][COLLECTION]
    of_all = await asyncio.to_thread(
        lambda: collection.aggregate(
            [
                {"$match": {"_id": {"$in": session_ids}}},
                {"$unwind": message},
                {"$match": {metrics[1:]: {"$exists": True}}},
                {
                    "$group": {
                        "_id": None,
                        "answers": {"$sum": 1},
                        "tokens": {"$sum": f"{metrics}.accumulated_usage.outputTokens"},
                        "first": {"$avg": f"{metrics}.accumulated_metrics.timeToFirstByteMs"},
                        "latency": {"$avg": f"{metrics}.accumulated_metrics.latencyMs"},
                    }
                },
            ]
        ).next()
    )
    say(
        f"  of all: {of_all['answers']} answers, {of_all['tokens']} tokens out,"
        f" first byte after {of_all['first']:.0f} ms and the last after {of_all['latency']:.0f} ms on average"
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


def break_after(agent: Agent, pieces: int) -> None:
    """Let the next answer of the agent's model break off, whatever the model is."""
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


async def stream_handler(session_manager: MongoDBSessionManager, agent: Agent, prompt: str) -> AsyncIterator[str]:
    """Stream and append by hand. Strands' hooks store both messages as well; neither is stored twice."""
    session_manager.append_message({"role": "user", "content": prompt}, agent)

    response_chunks = []
    async for event in agent.stream_async(prompt):
        if "data" in event:
            response_chunks.append(event["data"])
            yield event["data"]

    full_response = "".join(response_chunks)
    session_manager.append_message({"role": "assistant", "content": full_response}, agent)
    session_manager.sync_agent(agent)


async def by_hand(service: StreamingService, session_id: str) -> None:
    """Run that pattern."""
    async with await service.sessions.open(session_id, agent_id=AGENT_ID) as session_manager:
        agent = build_agent(session_manager)
        for turn, prompt in enumerate(["Hello, my name is Carol.", "What is my name?"], start=1):
            async for _ in stream_handler(session_manager, agent, prompt):
                pass
            await asyncio.to_thread(session_manager.flush)  # On a running event loop an append does not wait.
            say(f"  {turn} turns by hand: {await stored(session_manager)} messages are stored")


# --- The program


async def run(uri: str, number: int) -> None:
    """Run all parts, the second one with so many streams."""
    run_id = uuid.uuid4().hex[:8]
    alice, carol = f"stream-alice-{run_id}", f"stream-carol-{run_id}"
    others = [f"stream-{index}-{run_id}" for index in range(number)]

    title("1 · Basic usage: an answer that is read while it is said")
    await basic_usage(uri, alice, "Hello, my name is Alice.")

    service = StreamingService(uri)
    try:
        title(f"2 · In production: {number} people at once, one event loop, one factory")
        await many_at_once(service, others)

        title("3 · The stored metrics")
        await stored_metrics(service, others)

        title("4 · The model fails in mid-answer, and the session goes on")
        await error_recovery(service, alice)

        title("5 · Another process goes on with the session")
        # The connection string may hold a password: in the environment, other users cannot read it.
        command = [sys.executable, str(Path(__file__).resolve()), "--resume", alice]
        other = await asyncio.create_subprocess_exec(*command, env={**os.environ, "MONGODB_URI": uri})
        if await other.wait():
            raise RuntimeError(f"the other process ended with {other.returncode}")

        title("6 · Messages that are appended by hand, around the stream")
        await by_hand(service, carol)
    finally:
        await service.close()


def main() -> None:
    """Run all parts; or with `--resume`, as the other process, the fifth one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--resume", metavar="SESSION_ID", help="continue a session of MONGODB_URI and ask for the name")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, stream=sys.stdout, format="  log        %(message)s")

    with LocalMongoDB() as mongodb:
        if arguments.resume:
            asyncio.run(basic_usage(mongodb.uri, arguments.resume, "What is my name?"))
            return
        model = model_from_environment(scripted_answer)
        say(f"model {describe(model)}", style=DIM)
        asyncio.run(run(mongodb.uri, STREAMS if isinstance(model, OfflineScriptedModel) else STREAMS_OF_A_REAL_MODEL))


if __name__ == "__main__":
    main()
