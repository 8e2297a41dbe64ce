"""A chat service with FastAPI: one factory for the application, one session per request, streamed answers.

    uv run python examples/example_fastapi.py              starts the service, talks to it, and ends
    uv run python examples/example_fastapi.py --serve      http://127.0.0.1:8000, until Ctrl-C

    curl -N -X POST -H 'X-Session-ID: me' 'http://127.0.0.1:8000/chat?prompt=My+name+is+Alice.'

It needs no key and no network: it starts the bundled MongoDB (`MONGODB_URI` names another), and a script answers
instead of a model. `model_from_environment.py` shows how to choose a real model.
`example_fastapi_streaming.py` adds Server-Sent Events and a page in the browser.
"""

import argparse
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import httpx
from fastapi import FastAPI, Request
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

AGENT_ID = "assistant"  # The same in every process: it identifies the conversation.

# A parameter of this type is the request's session. It is read before the endpoint runs, and closed after the last byte
# of the response.
Session = Annotated[MongoDBSessionManager, open_session(agent_id=AGENT_ID)]


def build_agent(session_manager: MongoDBSessionManager) -> Agent:
    """Build the assistant on a session. This restores its stored messages and state."""
    return Agent(
        model=model_from_environment(scripted_answer),
        agent_id=AGENT_ID,
        system_prompt="You are a friendly assistant. Answer in one sentence.",
        session_manager=session_manager,
        callback_handler=None,
    )


def scripted_answer(messages: Messages) -> str:
    """Answer as the offline model."""
    return small_talk(messages, known="Your name is {}, and we have met before.")


def create_app(uri: str) -> FastAPI:
    """Build the service, as in production."""
    # The lifespan makes the factory, whose connections all requests share. At the end it closes the factory.
    app = FastAPI(
        lifespan=session_lifespan(
            connection_string=uri,
            database_name="session_manager_examples",
            collection_name="sessions",
            maxPoolSize=100,  # At most this many connections
            minPoolSize=10,  # This many stay open
            waitQueueTimeoutMS=5000,  # A command waits this long for a connection, then 503
            serverSelectionTimeoutMS=5000,  # The client looks this long for a primary, then 503
            w="majority",  # Acknowledged when a majority of the nodes has it
            ttl_hours=24 * 30,  # A session ends this long after its last activity
            durability="message",  # The default: each message is stored at once
        )
    )
    add_exception_handlers(app)  # 404, 409, 422, 503 instead of 500
    app.include_router(create_router())  # /health, /health/ready, /metrics

    # Basic usage: the dependency opens the session, and the turn is stored while it streams.
    @app.post("/chat")
    async def chat(session: Session, prompt: str) -> StreamingResponse:
        """Stream the answer. If the client disconnects, the part that was streamed is stored."""
        events = stream_turn(session, build_agent(session), prompt)
        return StreamingResponse((event["data"] async for event in events if "data" in event), media_type="text/plain")

    # Factory usage: without the dependency, the factory opens the session.
    @app.post("/ask")
    async def ask(request: Request, prompt: str, session_id: str) -> dict[str, Any]:
        """Answer in one piece."""
        # Method 1: from the application's state, which is explicit
        factory = request.app.state.session_factory
        # Method 2: the global factory, which is the same object
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
    answered = client.post("/ask", params={"prompt": "What is my name?", "session_id": session_id}).json()
    print(f"POST /ask: What is my name?\n  {answered['answer']}  ({answered['messages_restored']} messages restored)")
    print(f"POST /chat without a session id\n  {client.post('/chat', params={'prompt': 'Hello'}).status_code}")
    print(f"GET /health/ready\n  {client.get('/health/ready').json()}")
    print(f"POST /chat, {at_once} sessions at once\n  all answered in {talk_at_once(client, at_once):.2f} s")

    pool = client.get("/metrics", headers={"Accept": "application/json"}).json()["pool"]
    figures = json.dumps({name: pool[name] for name in ("created", "in_use", "idle", "waiting", "check_outs")})
    print(f"GET /metrics, Accept: application/json\n  {figures}\nGET /metrics")
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(("mongodb_session_opened_total", "mongodb_session_tokens_total")):
            print(f"  {line}")


def talk_at_once(client: httpx.Client, number: int) -> float:
    """What makes it fast: requests at once share a few connections. Return the seconds that all requests took."""

    def ask(session_id: str) -> None:
        client.post("/chat", params={"prompt": "Hello!"}, headers={"X-Session-ID": session_id}).raise_for_status()

    begin = time.perf_counter()
    with ThreadPoolExecutor(number) as people:
        list(people.map(ask, (f"at-once-{uuid.uuid4().hex}" for _ in range(number))))
    return time.perf_counter() - begin


def main() -> None:
    """Start MongoDB and the service; then talk to it, or serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", action="store_true", help="serve until Ctrl-C")
    parser.add_argument("--port", type=int, default=8000, help="with --serve (default 8000)")
    arguments = parser.parse_args()
    model = model_from_environment(scripted_answer)  # A wrong choice fails now, not at the first request.
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
