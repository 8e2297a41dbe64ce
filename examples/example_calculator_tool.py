"""An agent with a tool, on a session in MongoDB: it is told a name, and another process asks for that name.

    uv run python examples/example_calculator_tool.py      (or: make demo)

It needs no key and no network: it starts the bundled MongoDB (`MONGODB_URI` names another), and a script answers
instead of a model. `model_from_environment.py` shows how to choose a real model.
"""

import logging
import os
import re
import time
import uuid
from datetime import datetime
from typing import Any

from another_process import resume_in_another_process, session_to_resume
from arithmetic import calculate
from model_from_environment import describe, model_from_environment
from offline_model import Reply, ScriptedReply, ToolCall
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from small_talk import small_talk
from strands import Agent, tool
from strands.types.content import Messages
from terminal import CYAN, DIM, GREEN, document, say, talk, title

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionManagerFactory, create_mongodb_session_manager
from mongodb_session_manager.local import LocalMongoDB

DATABASE, COLLECTION = "session_manager_examples", "sessions"

logger = logging.getLogger("example")


@tool
def calculator(expression: str) -> str:
    """Calculate the value of an arithmetic expression.

    Args:
        expression: Numbers, parentheses and + - * / // % **, such as "(17 + 4) * 2".
    """
    return str(calculate(expression))


def build_agent(session_manager: MongoDBSessionManager) -> Agent:
    """Build the assistant on a session. This restores its stored messages and state."""
    return Agent(
        model=model_from_environment(scripted_answer),
        agent_id="assistant",  # The same in every process: it identifies the conversation.
        tools=[calculator],
        system_prompt="You are a friendly assistant. Use the calculator for every calculation. Answer in one sentence.",
        session_manager=session_manager,
        callback_handler=None,
    )


def scripted_answer(messages: Messages) -> Reply:
    """Answer as the offline model: call the tool for a calculation, and remember the name."""
    newest = messages[-1]["content"][-1]
    if "toolResult" in newest:
        return f"That is {newest['toolResult']['content'][0]['text']}."
    if calculation := re.search(r"[\d(][\d\s.+\-*/%()]*[\d)]", newest.get("text", "")):
        return ScriptedReply(text="Let me see.", tool_calls=(ToolCall("calculator", {"expression": calculation[0]}),))
    return small_talk(messages)


def basic_usage(uri: str, session_id: str, *prompts: str) -> None:
    """Make a session manager, give it to an agent, talk. Each message is stored at once."""
    with create_mongodb_session_manager(
        session_id=session_id,
        connection_string=uri,
        database_name=DATABASE,
        collection_name=COLLECTION,
    ) as session_manager:
        agent = build_agent(session_manager)
        say(f"process {os.getpid()} · {len(agent.messages)} messages restored from MongoDB", style=DIM)
        for prompt in prompts:
            talk(agent, prompt)
        session_manager.update_metadata({"customer": "alice-1", "channel": "terminal"})
        used = session_manager.get_metrics_summary()
        say(f"  {used.turns} turns, {used.tokens.total} tokens, slowest answer {used.latency.max:.0f} ms", style=DIM)


def show_what_is_stored(uri: str, session_id: str) -> None:
    """Read the session's document, as any MongoDB client can."""
    with MongoClient[dict[str, Any]](uri) as client:
        document(client[DATABASE][COLLECTION].find_one({"_id": session_id}) or {})


class AssistantService:
    """In production: one factory per process, made when the service starts, and one manager per request."""

    def __init__(self, uri: str) -> None:
        self._sessions = MongoDBSessionManagerFactory(
            connection_string=uri,
            database_name=DATABASE,
            collection_name=COLLECTION,
            maxPoolSize=50,
            minPoolSize=2,
            serverSelectionTimeoutMS=5000,
            w="majority",
            ttl_hours=24 * 30,  # A session ends this long after its last activity.
            durability="turn",  # One write per turn; a process that dies inside a turn loses that turn.
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
        """Store what is unsaved and close the client. Call it when the service stops."""
        self._sessions.close()


def measure(uri: str, session_id: str) -> None:
    """What makes it fast: the factory's managers share one client, whose connections stay open."""
    with MongoDBSessionManagerFactory(uri, DATABASE, COLLECTION) as factory:
        ways = {
            "with a client per request": lambda: create_mongodb_session_manager(session_id, uri, DATABASE, COLLECTION),
            "through one factory": lambda: factory.create_session_manager(session_id),
        }
        for way, open_session in ways.items():
            begin = time.perf_counter()
            for _ in range(20):
                with open_session() as session_manager:
                    build_agent(session_manager)
            milliseconds = (time.perf_counter() - begin) * 1000 / 20
            say(f"  open a session and restore its agent, {way:<26} {milliseconds:8.1f} ms")


def main() -> None:
    """Run all parts; with `--resume`, run as the other process of part 2."""
    to_resume = session_to_resume(__doc__)
    with LocalMongoDB() as server:
        if to_resume:
            basic_usage(server.uri, to_resume, "What is my name?")
            return
        say(f"model {describe(model_from_environment(scripted_answer))}", style=DIM)
        session_id = f"user-alice-demo-{uuid.uuid4().hex[:8]}"
        title("1 · Basic usage: an agent with a tool, on a session in MongoDB")
        basic_usage(server.uri, session_id, "Hello, my name is Alice.", "How much is (17 + 4) * 2?")

        title("2 · Another process opens the same session")
        resume_in_another_process(session_id, server.uri)

        title("What MongoDB holds: one document")
        show_what_is_stored(server.uri, session_id)

        title("3 · In production: one factory per process, one manager per request")
        service = AssistantService(server.uri)
        user_id = uuid.uuid4().hex[:8]
        for prompt in ("Hello, my name is Bob.", "How much is 2 ** 10?", "What is my name?"):
            say(f"  you        {prompt}", style=CYAN)
            say(f"  assistant  {service.answer(user_id, prompt)}", style=GREEN)
        service.close()

        title("4 · What makes it fast: the factory's managers share one client")
        measure(server.uri, session_id)


if __name__ == "__main__":
    main()
