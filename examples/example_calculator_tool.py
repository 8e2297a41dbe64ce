"""A conversation that survives its process: an agent with a tool is told a name, another is asked for it.

    uv run python examples/example_calculator_tool.py      (or: make demo)

It needs no key and no network: MongoDB is the bundled one (`MONGODB_URI` names another), and the model is a
script that answers from the messages it is given. `model_from_environment.py` tells how to choose a real one.

In four parts: basic usage, the same session in another process, a service as in production, and what makes it
fast.
"""

import argparse
import ast
import logging
import operator
import os
import re
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from model_from_environment import describe, model_from_environment
from offline_model import Reply, ScriptedReply, ToolCall
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from strands import Agent, tool
from strands.types.content import Messages
from terminal import CYAN, DIM, GREEN, WIDTH, say, shortened, table, title

from mongodb_session_manager import MongoDBSessionManagerFactory, create_mongodb_session_manager
from mongodb_session_manager.local import LocalMongoDB

DATABASE, COLLECTION = "session_manager_examples", "sessions"
SYSTEM_PROMPT = "You are a friendly assistant. Use the calculator for every calculation. Answer in one sentence."

logger = logging.getLogger("example")


# --- The agent and its tool


@tool
def calculator(expression: str) -> str:
    """Calculate the value of an arithmetic expression.

    Args:
        expression: Numbers, parentheses and + - * / // % **, such as "(17 + 4) * 2".
    """
    return str(evaluate(ast.parse(expression, mode="eval").body))


OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def evaluate(node: ast.expr) -> int | float:
    """Calculate a parsed expression; it is a model's, so nothing but arithmetic on numbers is evaluated."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return OPERATORS[type(op)](evaluate(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            first, second = evaluate(left), evaluate(right)
            if isinstance(op, ast.Pow) and abs(second) * max(abs(first), 1) > 10_000:
                raise ValueError("the power is too large")
            return OPERATORS[type(op)](first, second)
    raise ValueError("not an arithmetic expression")


def build_agent(session_manager: Any) -> Agent:
    """Build the assistant on a session: what the session holds of it is restored here."""
    return Agent(
        model=model_from_environment(scripted_answer),
        agent_id="assistant",  # the same in every process: it is the key of the conversation
        tools=[calculator],
        system_prompt=SYSTEM_PROMPT,
        session_manager=session_manager,
        callback_handler=None,
    )


def scripted_answer(messages: Messages) -> Reply:
    """What the offline model says: found in `messages` and nowhere else."""
    said = [block["text"] for message in messages for block in message["content"] if "text" in block]
    names = [match[1] for match in (re.search(r"my name is (\w+)", text, re.IGNORECASE) for text in said) if match]
    last = messages[-1]["content"][-1]
    if "toolResult" in last:
        return f"That is {last['toolResult']['content'][0]['text']}."
    question = last.get("text", "")
    if "what is my name" in question.lower():
        return f"Your name is {names[-1]}." if names else "I do not know your name."
    if calculation := re.search(r"[\d(][\d\s.+\-*/%()]*[\d)]", question):
        return ScriptedReply(text="Let me see.", tool_calls=(ToolCall("calculator", {"expression": calculation[0]}),))
    return f"Nice to meet you, {names[-1]}." if names else "Hello!"


# --- Four ways to use a session


def first_process(uri: str, session_id: str) -> None:
    """Basic usage: make a session manager, give it to an agent, talk. Everything is stored as it happens."""
    with create_mongodb_session_manager(
        session_id=session_id,
        connection_string=uri,
        database_name=DATABASE,
        collection_name=COLLECTION,
    ) as session_manager:
        agent = build_agent(session_manager)
        say(f"process {os.getpid()} · session {session_id}", style=DIM)
        say(f"model {describe(agent.model)}", style=DIM)
        talk(agent, "Hello, my name is Alice.")
        talk(agent, "How much is (17 + 4) * 2?")
        session_manager.update_metadata({"customer": "alice-1", "channel": "terminal"})


def second_process(uri: str, session_id: str) -> None:
    """The same session, opened by a process that has nothing but the session's id."""
    with create_mongodb_session_manager(session_id, uri, DATABASE, COLLECTION) as session_manager:
        agent = build_agent(session_manager)
        say(f"process {os.getpid()} · {len(agent.messages)} messages restored from MongoDB", style=DIM)
        talk(agent, "What is my name?")


class AssistantService:
    """In production: one factory per process, made when the service starts; one manager per request."""

    def __init__(self, uri: str) -> None:
        self._sessions = MongoDBSessionManagerFactory(
            connection_string=uri,
            database_name=DATABASE,
            collection_name=COLLECTION,
            maxPoolSize=50,
            minPoolSize=2,
            serverSelectionTimeoutMS=5000,
            w="majority",
            ttl_hours=24 * 30,  # a session ends by itself so long after its last activity
            durability="turn",  # a turn is one write; a process that dies inside a turn loses that turn
        )

    def answer(self, user_id: str, prompt: str) -> str:
        """Answer one request; any process may answer the next one of this user."""
        session_id = f"user-{user_id}-assistant-{datetime.now():%Y%m}"
        try:
            with self._sessions.create_session_manager(session_id) as session_manager:
                return str(build_agent(session_manager)(prompt)).strip()
        except PyMongoError as error:
            logger.error("session %s: %s", session_id, type(error).__name__)
            return "I cannot reach my memory just now. Please try again."

    def close(self) -> None:
        """Store what is unsaved, and close the pooled client, when the service stops."""
        self._sessions.close()


def measure(uri: str, session_id: str, rounds: int = 20) -> tuple[float, float]:
    """Resume a session with a client of its own, and with a pooled one; return both medians in ms."""

    def resume_with_own_client() -> None:
        with create_mongodb_session_manager(session_id, uri, DATABASE, COLLECTION) as session_manager:
            build_agent(session_manager)

    factory = MongoDBSessionManagerFactory(uri, DATABASE, COLLECTION)

    def resume_with_pooled_client() -> None:
        with factory.create_session_manager(session_id) as session_manager:
            build_agent(session_manager)

    try:
        resume_with_pooled_client()  # the first one connects
        return tuple(median_ms(resume, rounds) for resume in (resume_with_own_client, resume_with_pooled_client))
    finally:
        factory.close()


def median_ms(action: Callable[[], None], rounds: int) -> float:
    """Run an action `rounds` times; return the median time in milliseconds."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        action()
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


# --- What it prints


def talk(agent: Agent, prompt: str) -> None:
    """Say something to the agent and print the turn, with the tools it used."""
    before = len(agent.messages)
    say(f"  you        {prompt}", style=CYAN)
    agent(prompt)
    for message in agent.messages[before + 1 :]:
        for block in message["content"]:
            if "text" in block:
                say(f"  assistant  {block['text']}", style=GREEN)
            elif "toolUse" in block:
                say(f"  tool       {block['toolUse']['name']}({block['toolUse']['input']})", style=DIM)
            elif "toolResult" in block:
                say(f"             → {block['toolResult']['content'][0].get('text')}", style=DIM)


def lines_of(value: Any, indent: str = "  ") -> Iterator[str]:
    """Yield a stored document as indented lines, one value a line; of a long list the two ends."""
    pairs = list(value.items() if isinstance(value, dict) else ((f"[{at}]", item) for at, item in enumerate(value)))
    left_out = len(pairs) - 4 if isinstance(value, list) else 0
    for at, (key, item) in enumerate(pairs):
        if left_out > 0 and 2 <= at < 2 + left_out:
            if at == 2:
                yield f"{indent}… {left_out} more"
            continue
        inline = f"{indent}{key}: {plain(item)}"
        if isinstance(item, dict | list) and item and len(inline) > WIDTH:
            yield f"{indent}{key}:"
            yield from lines_of(item, indent + "  ")
        else:
            yield shortened(inline, WIDTH)


def plain(value: Any) -> str:
    """A stored value on one line, as a person would write it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(plain, value)) + "]"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="milliseconds")
    return repr(value) if isinstance(value, str) else str(value)


def print_metrics(document: dict[str, Any]) -> None:
    """Print what each message of the model has cost, from the stored document."""
    rows = []
    for message in document["agents"]["assistant"]["messages"]:
        metrics = message.get("event_loop_metrics")
        if not metrics:
            continue
        usage, latency = metrics["accumulated_usage"], metrics["accumulated_metrics"]["latencyMs"]
        said = " ".join(
            block.get("text") or f"→ {block['toolUse']['name']}"
            for block in message["content"]
            if {"text", "toolUse"} & set(block)
        )
        figures = message["message_id"], usage["inputTokens"], usage["outputTokens"], latency
        rows.append([shortened(said, 40), *map(str, figures)])
    table(["said", "message", "tokens in", "tokens out", "latency ms"], rows)


# --- The program


def main() -> None:
    """Run all parts; or with `--resume`, as the other process, the second one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--resume", metavar="SESSION_ID", help="continue a session of MONGODB_URI and ask for the name")
    arguments = parser.parse_args()

    with LocalMongoDB() as server:
        if arguments.resume:
            second_process(server.uri, arguments.resume)
            return

        session_id = f"user-alice-demo-{uuid.uuid4().hex[:8]}"
        title("1 · Basic usage: an agent with a tool, on a session in MongoDB")
        first_process(server.uri, session_id)

        title("2 · Another process opens the same session")
        # The connection string may hold a password: in the environment, other users cannot read it.
        subprocess.run(  # noqa: S603 - this very file
            [sys.executable, str(Path(__file__).resolve()), "--resume", session_id],
            env={**os.environ, "MONGODB_URI": server.uri},
            check=True,
        )

        title("What MongoDB holds: one document")
        with MongoClient[dict[str, Any]](server.uri) as client:
            document = client[DATABASE][COLLECTION].find_one({"_id": session_id}) or {}
        for line in lines_of(document):
            say(line)
        title("What the model's messages have cost")
        print_metrics(document)

        title("3 · In production: one factory per process, one manager per request")
        service = AssistantService(server.uri)
        user_id = uuid.uuid4().hex[:8]
        try:
            for prompt in ("Hello, my name is Bob.", "How much is 2 ** 10?", "What is my name?"):
                say(f"  you        {prompt}", style=CYAN)
                say(f"  assistant  {service.answer(user_id, prompt)}", style=GREEN)
        finally:
            service.close()

        title("4 · What makes it fast: the factory's managers share one pooled client")
        own, pooled = measure(server.uri, session_id)
        say(f"  open a session and restore its agent, with a client per request   {own:8.1f} ms")
        say(f"  the same through one factory                                      {pooled:8.1f} ms")
        say("  example_performance.py compares this in full", style=DIM)


if __name__ == "__main__":
    main()
