"""The chat's server: FastAPI, answers as Server-Sent Events, tools that manage the agent's state.

    uv run python examples/example_fastapi_streaming.py              starts the service, talks to it, and ends
    uv run python examples/example_fastapi_streaming.py --serve      http://127.0.0.1:8880, until Ctrl-C

It is the backend of the page in `playground/chat`. It needs no key and no network: it starts the bundled MongoDB
(`MONGODB_URI` names another), and a script answers instead of a model. To customise it, change `_AGENT_PROMPT`, the
tools and `build_agent`; `model_from_environment.py` shows how to choose a real model.

`chat_turn.py` turns a turn into events. `chat_conversations.py` has the other endpoints (lists, messages, details,
feedback). `chat_identity.py` and `chat_guard.py` decide who may do what.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from chat_client import talk
from chat_conversations import conversations_router
from chat_guard import add_error_handlers, guards
from chat_identity import own_options, signing_key
from chat_script import chat_model
from chat_turn import Turn, events_of, session_id_of
from fastapi import Depends, FastAPI
from model_from_environment import describe
from sse_starlette import EventSourceResponse
from strands import Agent, ToolContext, tool
from web_server import serve, served

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionManagerFactory, create_mongodb_session_manager
from mongodb_session_manager.fastapi import create_router, open_session, session_lifespan
from mongodb_session_manager.local import LocalMongoDB

DATABASE, COLLECTION = "session_manager_examples", "playground_sessions"
AGENT_ID = "assistant"  # The same in every process: it identifies the conversation.
FRONTENDS = ["http://localhost:8881", "http://127.0.0.1:8881"]

_AGENT_PROMPT = """You are a friendly assistant in a chat that is kept in MongoDB.
Use `remember` for facts about the user, such as the name, and `recall` to look them up.
Use `add_note` and `list_notes` for the user's notes. Answer briefly, in Markdown."""


@tool(context=True)
def remember(fact: str, value: str, tool_context: ToolContext) -> str:
    """Remember a fact about the user: what it is, such as "name", and its value."""
    tool_context.agent.state.set(fact, value)
    return "remembered"


@tool(context=True)
def recall(fact: str, tool_context: ToolContext) -> str:
    """Look up a fact about the user, such as "name"; empty if it is not known."""
    return str(tool_context.agent.state.get(fact) or "")


@tool(context=True)
def add_note(note: str, tool_context: ToolContext) -> str:
    """Add to the user's notes."""
    state = tool_context.agent.state
    state.set("notes", [*(state.get("notes") or []), note])
    return "added"


@tool(context=True)
def list_notes(tool_context: ToolContext) -> str:
    """Return the user's notes, as JSON."""
    return json.dumps(tool_context.agent.state.get("notes") or [])


def build_agent(session_manager: MongoDBSessionManager) -> Agent:
    """Build the assistant on a session. This restores its stored messages and state."""
    return Agent(
        model=chat_model(session_manager.session_id),
        agent_id=AGENT_ID,
        tools=[remember, recall, add_note, list_notes],
        system_prompt=_AGENT_PROMPT,
        session_manager=session_manager,
        callback_handler=None,
    )


# The request's session. It is read before the endpoint runs, and closed after the last byte of the stream. With the
# lease, only one request at a time can take a turn; it is renewed while the request lasts.
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
        key: The key that signs identities.
        origins: The origins of the frontend.
        hosts: The host names of this service.
        build_agent: Builds the agent with the id `AGENT_ID` on a session.
        **options: Options of the factory and its `MongoClient`; they override those below.
    """
    production = {
        "database_name": DATABASE,
        "collection_name": COLLECTION,
        "index_messages": True,  # The text of messages can be searched.
        "maxPoolSize": 50,  # Most requests wait for a model, not for a connection: 50 connections serve hundreds.
        "minPoolSize": 2,
        "serverSelectionTimeoutMS": 5_000,  # If the database is down, fail after 5 s instead of 30.
        "w": "majority",
    }
    # The lifespan makes the factory, whose connections all requests share, and closes it at the end. It is also the
    # global factory.
    lifespan = session_lifespan(uri, **{**production, **options})
    app = FastAPI(lifespan=lifespan, middleware=guards(key, origins, hosts), docs_url=None, redoc_url=None)
    add_error_handlers(app)  # 404, 409, 422, 503 instead of 500
    app.include_router(create_router())  # /health, /health/ready, /metrics
    app.include_router(conversations_router(AGENT_ID, build_agent))

    @app.post("/chat")
    async def chat(session: Session, turn: Turn) -> EventSourceResponse:
        """Stream a turn. If the client disconnects, the part that was streamed is stored."""
        # A client that reads nothing for 30 s counts as disconnected.
        return EventSourceResponse(events_of(session, build_agent(session), turn), send_timeout=30)

    return app


def read_without_the_service(uri: str) -> None:
    """Basic usage: any program can open the conversations of the service, here the newest one."""
    with MongoDBSessionManagerFactory(uri, DATABASE, COLLECTION) as factory:
        newest = factory.list_sessions(limit=1).sessions[0]
    with create_mongodb_session_manager(newest.session_id, uri, DATABASE, COLLECTION) as session_manager:
        agent = build_agent(session_manager)
        print("\nThe same conversation in a program without a web service")
        print(f"  {len(agent.messages)} messages restored, state {agent.state.get()}")


def main() -> None:
    """Start MongoDB and the service; then talk to it, or serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--serve", action="store_true", help="serve until Ctrl-C")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=8880, help="with --serve (default 8880)")
    parser.add_argument("--frontend-origin", action="append", metavar="ORIGIN", help="of the page (default port 8881)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="keep conversations and the signing key here")
    arguments = parser.parse_args()
    print(f"model: {describe(chat_model('none'))}", flush=True)  # A wrong choice fails now, not at the first request.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # End in order, as after Ctrl-C.
    key = signing_key(arguments.data)
    with LocalMongoDB(data_dir=arguments.data and arguments.data / "mongodb") as mongodb:
        origins = [origin.rstrip("/") for origin in arguments.frontend_origin or FRONTENDS]
        app = create_app(mongodb.uri, key, origins=origins, hosts=["localhost", "127.0.0.1", arguments.host])
        if arguments.serve:
            serve(app, arguments.host, arguments.port)
            return
        with served(app) as browser:
            talk(browser)
        read_without_the_service(mongodb.uri)


if __name__ == "__main__":
    main()
