"""The chat's server: FastAPI, answers as Server-Sent Events, tools that manage the agent's state.

    uv run python examples/example_fastapi_streaming.py              starts it, talks to it, and ends
    uv run python examples/example_fastapi_streaming.py --serve      http://127.0.0.1:8880, until Ctrl-C

It is the backend of the page in `playground/chat`. It needs no key and no network: MongoDB is the bundled one
(`MONGODB_URI` names another), and the model is a script. To make it yours, change `_AGENT_PROMPT`, the tools and
`build_agent`; `model_from_environment.py` tells how to choose a real model.

What stands beside the chat (lists, history, details, feedback) is in `chat_conversations.py`, who may ask for what in
`chat_guard.py`.
"""

import argparse
import asyncio
import json
import logging
import signal
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import httpx
import uvicorn
from chat_conversations import (
    conversations_router,
    is_prompt,
    messages_of,
    metrics_of,
    text_of,
    tool_result,
    tool_use,
    uuid_of,
)
from chat_guard import (
    MAX_PROMPT_CHARACTERS,
    add_error_handlers,
    guards,
    own_options,
    own_session_id,
    signing_key,
    to_json,
)
from chat_script import chat_model
from fastapi import Depends, FastAPI
from model_from_environment import describe
from pydantic import BaseModel, Field
from sse_starlette import EventSourceResponse, ServerSentEvent
from strands import Agent, ToolContext, tool

from mongodb_session_manager import (
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    create_mongodb_session_manager,
)
from mongodb_session_manager.fastapi import (
    create_router,
    open_session,
    session_lifespan,
    status_of,
    stream_turn,
)
from mongodb_session_manager.local import LocalMongoDB

logger = logging.getLogger("chat")

DATABASE, COLLECTION = "session_manager_examples", "playground_sessions"
AGENT_ID = "assistant"  # The same in every process: it is the key of the conversation.
FRONTENDS = ("http://localhost:8881", "http://127.0.0.1:8881")

# --- The agent: change it as you like

_AGENT_PROMPT = """You are a friendly assistant in a chat that is kept in MongoDB.
Use `remember` for facts about the user, such as the name, and `recall` to look them up.
Use `add_note` and `list_notes` for the user's notes. Answer briefly, in Markdown."""


@tool(context=True)
def remember(fact: str, value: str, tool_context: ToolContext) -> str:
    """Remember a fact about the user.

    Args:
        fact: What it is, such as "name".
        value: The fact itself.
    """
    tool_context.agent.state.set(fact, value)
    return "remembered"


@tool(context=True)
def recall(fact: str, tool_context: ToolContext) -> str:
    """Look up a fact about the user; empty if it is not known.

    Args:
        fact: What it is, such as "name".
    """
    return str(tool_context.agent.state.get(fact) or "")


@tool(context=True)
def add_note(note: str, tool_context: ToolContext) -> str:
    """Add to the user's notes.

    Args:
        note: The note.
    """
    state = tool_context.agent.state
    state.set("notes", [*(state.get("notes") or []), note])
    return "added"


@tool(context=True)
def list_notes(tool_context: ToolContext) -> str:
    """Return the user's notes, as JSON."""
    return json.dumps(tool_context.agent.state.get("notes") or [])


def build_agent(session_manager: MongoDBSessionManager) -> Agent:
    """Build the assistant on a session: its messages and its state are restored here."""
    return Agent(
        model=chat_model(session_manager.session_id),
        agent_id=AGENT_ID,
        tools=[remember, recall, add_note, list_notes],
        system_prompt=_AGENT_PROMPT,
        session_manager=session_manager,
        callback_handler=None,
    )


# --- The service


class Turn(BaseModel):
    """What the frontend sends for a turn."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]
    retry: bool = False


async def session_id_of(
    turn: Turn,  # noqa: ARG001 - checked before the session is opened, so that a refused one begins none
    session_id: Annotated[str, Depends(own_session_id)],
) -> str:
    """Return the id of the session of a turn."""
    return session_id


# The request's session: read before the endpoint runs, stored and closed after the stream's last byte. The lease lets
# one request at a time take a turn; while it lasts, it is renewed.
Session = Annotated[
    MongoDBSessionManager,
    open_session(agent_id=AGENT_ID, session_id=Depends(session_id_of), request_options=Depends(own_options), lease=20),
]


def create_app(
    uri: str,
    key: str,
    *,
    origins: Sequence[str] = FRONTENDS,
    hosts: Sequence[str] = ("localhost", "127.0.0.1"),
    build_agent: Callable[[MongoDBSessionManager], Agent] = build_agent,
    **options: Any,
) -> FastAPI:
    """Build the service.

    Args:
        uri: The connection string of MongoDB.
        key: Identities are signed with it.
        origins: Where the frontend is served.
        hosts: Names that this service is reached by.
        build_agent: Builds the agent with the id `AGENT_ID` on a session.
        **options: Of the factory and its `MongoClient`, in place of those below.
    """
    production = {
        "database_name": DATABASE,
        "collection_name": COLLECTION,
        "index_messages": True,  # What was said can be searched.
        "maxPoolSize": 50,  # Turns in flight wait for a model, not for a connection: 50 serve hundreds.
        "minPoolSize": 2,
        "serverSelectionTimeoutMS": 5_000,  # A database that is away is told after 5 s, not after 30.
        "w": "majority",
    }
    # The lifespan makes the factory, whose connections all requests share, and closes it at the end.
    app = FastAPI(
        title="Chat",
        lifespan=session_lifespan(uri, **{**production, **options}),
        middleware=guards(key, origins, hosts),
        docs_url=None,
        redoc_url=None,
    )
    add_error_handlers(app)  # 404, 409, 422, 503 instead of 500
    app.include_router(create_router())  # /health, /health/ready, /metrics
    app.include_router(conversations_router(AGENT_ID, build_agent))

    @app.post("/chat")
    async def chat(session: Session, turn: Turn) -> EventSourceResponse:
        """Stream a turn. If the client goes away, what it has read is stored."""
        agent = build_agent(session)
        # A reader that takes nothing for half a minute is gone.
        return EventSourceResponse(events_of(session, agent, turn), send_timeout=30)

    return app


async def events_of(session: MongoDBSessionManager, agent: Agent, turn: Turn) -> AsyncIterator[ServerSentEvent]:
    """Take a turn and tell it as Server-Sent Events."""
    # A prompt that is stored already is not stored again: the agent goes on from where it stands.
    goes_on = turn.retry and is_unanswered(agent, turn.prompt)
    try:
        stop_reason = "end_turn"
        async for event in stream_turn(session, agent, None if goes_on else turn.prompt):
            if "data" in event:
                yield sse("text", {"text": event["data"]})
            elif "message" in event:
                for block in event["message"]["content"]:
                    if "toolUse" in block:
                        yield sse("tool_use", tool_use(block["toolUse"]))
                    elif "toolResult" in block:
                        yield sse("tool_result", tool_result(block["toolResult"]))
            elif "result" in event:
                stop_reason = event["result"].stop_reason
        yield sse("done", {**await asyncio.to_thread(stored_turn, session), "stop_reason": stop_reason})
    except Exception as error:  # The stream has begun and its status is sent, so an event tells the frontend.
        logger.warning("session_id=<%s> | the turn failed", session.session_id, exc_info=error)
        status, detail = status_of(error) or (502, "The model does not answer.")
        # The stored id holds the identity, which scripts of the page are not to know.
        detail = detail.replace(session.session_id, uuid_of(session.session_id))
        yield sse("failed", {"status": status, "detail": detail})


def is_unanswered(agent: Agent, prompt: str) -> bool:
    """Return whether this is the newest prompt of the conversation and has no answer, only calls of tools perhaps."""
    for message in reversed(agent.messages):
        if is_prompt(message):
            return text_of(message) == prompt
        if message["role"] == "assistant" and not any("toolUse" in block for block in message["content"]):
            return False
    return False


def stored_turn(session: MongoDBSessionManager) -> dict[str, Any]:
    """Return the ids of the turn's messages and what the turn has cost, as they are stored."""
    start = session.get_message_count(AGENT_ID)
    messages: list[dict[str, Any]] = []
    while start > 0 and not any(map(is_prompt, messages)):  # An agent may call a hundred tools in a turn.
        stop, start = start, max(0, start - 100)
        messages[:0] = messages_of(session, AGENT_ID, start, stop)
    begins = [index for index, message in enumerate(messages) if is_prompt(message)]
    turn = messages[begins[-1] :] if begins else messages
    ids = {message["role"]: message["message_id"] for message in turn[-1:]}
    if begins:
        ids["user"] = turn[0]["message_id"]
    return {
        "message_ids": {"user": ids.get("user"), "assistant": ids.get("assistant")},
        "metrics": metrics_of(turn),
    }


def sse(event: str, data: dict[str, Any]) -> ServerSentEvent:
    """Return an event whose data is JSON."""
    return ServerSentEvent(to_json(data), event=event)


# --- The program


class Server(uvicorn.Server):
    """A server that says when it accepts connections."""

    async def startup(self, sockets: Any = None) -> None:
        """Start it."""
        await super().startup(sockets)
        if self.started:
            print(f"The chat's server listens on http://{self.config.host}:{self.port}", flush=True)

    @property
    def port(self) -> int:
        """The port it listens on; another one than was asked for, if that was 0."""
        return int(self.servers[0].sockets[0].getsockname()[1])


def make_server(app: FastAPI, host: str = "127.0.0.1", port: int = 0) -> Server:
    """Return a server that ends turns under way when it is told to end: what was streamed is stored."""
    return Server(uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5))


def talk(port: int) -> None:
    """Use the service as the page does."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as browser:
        browser.get("/conversations")  # The answer brings the cookie that says who this is from now on.
        browser.headers["X-Session-ID"] = str(uuid.uuid4())
        for prompt in ("My name is Alice.", "What is my name?"):
            print(f"\nPOST /chat: {prompt}")
            with browser.stream("POST", "/chat", json={"prompt": prompt}) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        print(f"  {line.removeprefix('data: ')}")

        print("\nGET /conversations")
        for conversation in browser.get("/conversations").json()["conversations"]:
            print(f"  {conversation['title']}  ({conversation['messages']} messages)")
        print("GET /conversation/details")
        details = browser.get("/conversation/details").json()
        print(f"  state {details['state']}, {details['summary']['turns']} turns")
        print("GET /health/ready")
        print(f"  {browser.get('/health/ready').json()}")

        begin = time.perf_counter()
        for _ in range(50):
            browser.get("/conversation")
        milliseconds = (time.perf_counter() - begin) * 1000 / 50
        pool = browser.get("/metrics", headers={"Accept": "application/json"}).json()["pool"]
        print("GET /conversation 50 times, and GET /metrics: the requests share the factory's connections")
        print(f"  {milliseconds:.1f} ms each, {pool['check_outs']} commands over {pool['created']} connections")


def read_without_the_service(uri: str) -> None:
    """Basic usage: any program can open the conversation that the service has stored last."""
    with MongoDBSessionManagerFactory(uri, DATABASE, COLLECTION) as factory:
        newest = factory.list_sessions(limit=1).sessions[0]
    with create_mongodb_session_manager(newest.session_id, uri, DATABASE, COLLECTION) as session_manager:
        agent = build_agent(session_manager)
        print("\nThe same conversation in a program without a web service")
        print(f"  {len(agent.messages)} messages restored, state {agent.state.get()}")


def main() -> None:
    """Start MongoDB and the service, then talk to it or wait for others to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--serve", action="store_true", help="serve until Ctrl-C")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=8880, help="with --serve (default 8880)")
    parser.add_argument(
        "--frontend-origin",
        action="append",
        metavar="ORIGIN",
        help="of the page (default the ports 8881 of this machine)",
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="keep conversations and the signing key here")
    arguments = parser.parse_args()
    print(f"model: {describe(chat_model('none'))}", flush=True)  # A wrong choice is told now, not by the first request.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # So that what follows ends in order.
    key = signing_key(arguments.data)
    with LocalMongoDB(data_dir=arguments.data and arguments.data / "mongodb") as mongodb:
        app = create_app(
            mongodb.uri,
            key,
            origins=[origin.rstrip("/") for origin in arguments.frontend_origin or FRONTENDS],
            hosts=["localhost", "127.0.0.1", arguments.host],
        )
        if arguments.serve:
            with suppress(KeyboardInterrupt):
                make_server(app, arguments.host, arguments.port).run()
            return
        server = make_server(app)
        serving = threading.Thread(target=server.run)
        serving.start()
        try:
            while not server.started and serving.is_alive():
                time.sleep(0.01)
            talk(server.port)
        finally:
            server.should_exit = True
            serving.join()
        read_without_the_service(mongodb.uri)


if __name__ == "__main__":
    main()
