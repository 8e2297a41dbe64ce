"""A chat service with FastAPI: one factory for the application, one session per request, answers as streams.

    uv run python examples/example_fastapi.py              starts it, talks to it, and ends
    uv run python examples/example_fastapi.py --serve      http://127.0.0.1:8000, until Ctrl-C

    curl -N -X POST -H 'X-Session-ID: me' 'http://127.0.0.1:8000/chat?prompt=My+name+is+Alice.'

It needs no key and no network: MongoDB is the bundled one (`MONGODB_URI` names another), and the model is a script;
`model_from_environment.py` tells how to choose a real one. For Server-Sent Events and a page in the browser see
`example_fastapi_streaming.py`.
"""

import argparse
import json
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import httpx
from fastapi import FastAPI, Query, Request
from fastapi.responses import StreamingResponse
from model_from_environment import describe, model_from_environment
from offline_model import OfflineScriptedModel
from small_talk import small_talk
from strands import Agent
from strands.types.content import Messages
from web_server import serve, served

from mongodb_session_manager import MongoDBSessionManager, get_global_factory
from mongodb_session_manager.fastapi import (
    add_exception_handlers,
    create_router,
    open_session,
    session_lifespan,
    stream_turn,
)
from mongodb_session_manager.local import LocalMongoDB

AGENT_ID = "assistant"  # The same in every process: it is the key of the conversation.

# A parameter of this type is the request's session: read before the endpoint runs, closed after the stream's last byte.
Session = Annotated[MongoDBSessionManager, open_session(agent_id=AGENT_ID)]


def build_agent(session_manager: MongoDBSessionManager) -> Agent:
    """Build the assistant on a session: what the session holds of it is restored here."""
    return Agent(
        model=model_from_environment(scripted_answer),
        agent_id=AGENT_ID,
        system_prompt="You are a friendly assistant. Answer in one sentence.",
        session_manager=session_manager,
        callback_handler=None,
    )


def scripted_answer(messages: Messages) -> str:
    """What the offline model says."""
    return small_talk(messages, known="Your name is {}, and we have not met for the first time.")


def create_app(uri: str) -> FastAPI:
    """Build the service, as in production."""
    # The lifespan makes the factory, whose connections all requests share; at the end it stores what is unsaved and
    # closes them.
    app = FastAPI(
        lifespan=session_lifespan(
            connection_string=uri,
            database_name="session_manager_examples",
            collection_name="sessions",
            maxPoolSize=100,  # Connection pool size
            minPoolSize=10,  # Keep minimum connections ready
            waitQueueTimeoutMS=5000,  # How long a command waits for a connection, then 503
            serverSelectionTimeoutMS=5000,  # How long to look for a primary, then 503
            w="majority",  # Acknowledged once a majority has it
            ttl_hours=24 * 30,  # A session ends by itself so long after its last activity
            durability="message",  # The default: a question is stored before the model is asked
        )
    )
    add_exception_handlers(app)  # 404, 409, 422, 503 instead of 500
    app.include_router(create_router())  # /health, /health/ready, /metrics

    # Basic usage: the dependency opens the session, the stream stores the turn.
    @app.post("/chat")
    async def chat(session: Session, prompt: str) -> StreamingResponse:
        """Stream the answer. If the client goes away, what it has read is stored."""
        agent = build_agent(session)

        async def answer() -> AsyncIterator[str]:
            async for event in stream_turn(session, agent, prompt):
                if "data" in event:
                    yield event["data"]

        return StreamingResponse(answer(), media_type="text/plain")

    # Factory usage: without the dependency, the factory opens the session.
    @app.post("/ask")
    async def ask(request: Request, prompt: str, session_id: Annotated[str, Query()]) -> dict[str, Any]:
        """Answer in one piece."""
        # Method 1: from the application's state, which is explicit
        factory = request.app.state.session_factory
        # Method 2: the global factory, which is the same one
        assert factory is get_global_factory()

        async with await factory.open(session_id, agent_id=AGENT_ID) as session_manager:
            agent = build_agent(session_manager)
            restored = len(agent.messages)
            result = await agent.invoke_async(prompt)
        return {"answer": str(result).strip(), "messages_restored": restored}

    return app


def talk(client: httpx.Client, at_once: int) -> None:
    """Use the service as its clients do."""
    session_id = f"fastapi-{uuid.uuid4().hex[:8]}"
    print(f"\nPOST /chat, X-Session-ID: {session_id}: My name is Alice.")
    turn = {"params": {"prompt": "My name is Alice."}, "headers": {"X-Session-ID": session_id}}
    with client.stream("POST", "/chat", **turn) as answer:
        for piece in answer.iter_text():
            print(f"  {piece}")

    print("POST /ask: What is my name?")
    answered = client.post("/ask", params={"prompt": "What is my name?", "session_id": session_id}).json()
    print(f"  {answered['answer']}  ({answered['messages_restored']} messages restored)")

    print("POST /chat without a session id")
    print(f"  {client.post('/chat', params={'prompt': 'Hello'}).status_code}")

    print("GET /health/ready")
    print(f"  {client.get('/health/ready').json()}")

    print(f"POST /chat, {at_once} sessions at once")
    print(f"  all answered in {talk_at_once(client, at_once):.2f} s")

    print("GET /metrics, Accept: application/json")
    pool = client.get("/metrics", headers={"Accept": "application/json"}).json()["pool"]
    print(f"  {json.dumps({name: pool[name] for name in ('created', 'in_use', 'idle', 'waiting', 'check_outs')})}")
    print("GET /metrics")
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(("mongodb_session_opened_total", "mongodb_session_tokens_total")):
            print(f"  {line}")


def talk_at_once(client: httpx.Client, number: int) -> float:
    """What makes it fast: sessions that begin at once share a few connections. Return the seconds for all of them."""

    def ask(session_id: str) -> None:
        client.post("/chat", params={"prompt": "Hello!"}, headers={"X-Session-ID": session_id}).raise_for_status()

    begun = time.perf_counter()
    with ThreadPoolExecutor(number) as people:
        list(people.map(ask, (f"at-once-{uuid.uuid4().hex}" for _ in range(number))))
    return time.perf_counter() - begun


def main() -> None:
    """Start MongoDB and the service, then talk to it or wait for others to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", action="store_true", help="serve until Ctrl-C")
    parser.add_argument("--port", type=int, default=8000, help="with --serve (default 8000)")
    arguments = parser.parse_args()
    model = model_from_environment(scripted_answer)  # A wrong choice is told now, not by the first request.
    print(f"model: {describe(model)}")
    with LocalMongoDB() as mongodb:
        app = create_app(mongodb.uri)
        if arguments.serve:
            serve(app, "127.0.0.1", arguments.port)
            return
        with served(app) as client:
            talk(client, at_once=50 if isinstance(model, OfflineScriptedModel) else 3)  # A real model costs.


if __name__ == "__main__":
    main()
