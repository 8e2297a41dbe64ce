"""What storing sessions costs the people who wait for a web service, and what it costs its health checks.

One uvicorn worker in a process of its own; the load comes from this one. A model says 40 words, 100 ms apart. Two
loads:

- paced: 400 people begin a chat, 50 per second, so that 200 are in flight; each goes on with a stored session.
- burst: 200 begin in the same moment.

A health check is asked for every 20 ms meanwhile. The same application four times: without any session manager; with
this library (`open_session`, `stream_turn`); with its repository under Strands' own `RepositorySessionManager`, whose
synchronous hooks send on the event loop; and with PyPI's `strands-session-mongodb`, which keeps those hooks, too. What
storing adds is the difference to the first, in the same run.

    python benchmarks/web.py [--quick]

Everything here is time, so the exit code is 0 whatever is measured; but an answer that fails ends the program.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Annotated, Any

import support
import uvicorn
from fastapi import FastAPI, Header
from fastapi.responses import StreamingResponse
from pymongo import MongoClient
from strands import Agent
from strands.session.repository_session_manager import RepositorySessionManager
from strands_session_mongodb import MongoDBSessionManager as RivalSessionManager
from support import OfflineScriptedModel, ScriptedReply, Target

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionManagerFactory, MongoDBSessionRepository
from mongodb_session_manager.fastapi import create_router, open_session, session_lifespan, stream_turn
from mongodb_session_manager.local import LocalMongoDB

DATABASE = "web"
WORDS, DELAY_SECONDS = 40, 0.1
TEXT = "word " * WORDS
PER_SECOND, PACED, BURST = 50, 400, 200
HEALTH_EVERY_SECONDS = 0.02
CONTENDERS = {
    "none": "no session manager",
    "ours": "ours",
    "synchronous": "our repository, Strands' synchronous hooks",
    "rival": "strands-session-mongodb",
}
ADDED_LIMIT_MS, HEALTH_LIMIT_MS = 10, 100

Session = Annotated[MongoDBSessionManager, open_session(agent_id=support.AGENT_ID)]


def create_app(contender: str, uri: str) -> FastAPI:
    """Build the service, storing its sessions as the contender does."""
    app = FastAPI(lifespan=session_lifespan(uri, DATABASE, "ours"))
    app.include_router(create_router())
    synchronous_manager = _synchronous_managers(MongoClient(uri))

    def agent_of(session_manager: Any) -> Agent:
        reply = ScriptedReply(text=TEXT, chunk_delay=DELAY_SECONDS)
        model = OfflineScriptedModel([reply], chunk_characters=len("word "))
        return support.make_agent(model, session_manager=session_manager)

    def answer(events: Any) -> StreamingResponse:
        texts = (event["data"] async for event in events if "data" in event)
        return StreamingResponse(texts, media_type="text/plain")

    if contender == "ours":

        @app.post("/chat")
        async def chat(session: Session) -> StreamingResponse:
            return answer(stream_turn(session, agent_of(session), support.TEXT))

    else:

        @app.post("/chat")
        async def chat_without(x_session_id: Annotated[str, Header()]) -> StreamingResponse:
            manager = None if contender == "none" else synchronous_manager[contender](x_session_id)
            return answer(agent_of(manager).stream_async(support.TEXT))

    return app


def _synchronous_managers(client: MongoClient[dict[str, Any]]) -> dict[str, Callable[[str], Any]]:
    """Return what makes the manager of a session, by contender; all of these send on the event loop."""
    repository = MongoDBSessionRepository(client=client, database_name=DATABASE, collection_name="synchronous")

    def rival(session_id: str) -> RivalSessionManager:
        return RivalSessionManager(session_id, client=client, database_name=DATABASE, collection_name="rival")

    return {"synchronous": partial(RepositorySessionManager, session_repository=repository), "rival": rival}


def store_sessions(uri: str, prefix: str, number: int) -> None:
    """Store sessions of one turn, for each store."""
    client: MongoClient[dict[str, Any]]
    with MongoClient(uri) as client, MongoDBSessionManagerFactory(client=client, database_name=DATABASE) as factory:
        ours = partial(factory.create_session_manager, collection_name="ours")
        for make_manager in (ours, *_synchronous_managers(client).values()):
            for index in range(number):
                support.make_agent(session_manager=make_manager(f"{prefix}-{index}"))(support.TEXT)


@dataclass
class Load:
    """What the people waited for, in milliseconds."""

    first: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)

    def row(self, name: str, floor: Load) -> list[str]:
        """Return the figures as a row of the table."""
        added = statistics.median(self.first) - statistics.median(floor.first)
        figures = [
            statistics.median(self.first),
            added,
            support.percentile(self.first, 99),
            support.percentile(self.health, 99),
            max(self.health),
        ]
        return [name, *(f"{figure:.1f}" for figure in figures)]


async def ask(port: int, method: str, path: str, session_id: str = "") -> tuple[float, str]:
    """Send a request; return the milliseconds to the first byte of the body, and all of it, as it came."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n"
        f"X-Session-ID: {session_id}\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head.partition(b"\r\n")[0], head
    body = await reader.read(65536)
    first = (time.perf_counter() - began) * 1000
    while more := await reader.read(65536):
        body += more
    writer.close()
    return first, body.decode()


async def put_under_load(port: int, prefix: str, number: int, per_second: float | None) -> Load:
    """Let so many people chat."""
    load = Load()

    async def chat(index: int) -> None:
        if per_second:
            await asyncio.sleep(index / per_second)
        first, body = await ask(port, "POST", "/chat", f"{prefix}-{index}")
        assert body.count("word ") == WORDS, body
        assert body.endswith("0\r\n\r\n"), "cut off"
        load.first.append(first)

    async def check_health() -> None:
        while True:
            load.health.append((await ask(port, "GET", "/health"))[0])
            await asyncio.sleep(HEALTH_EVERY_SECONDS)

    checking = asyncio.create_task(check_health())
    await asyncio.gather(*(chat(index) for index in range(number)))
    checking.cancel()
    return load


def measure(contender: str, uri: str, loads: dict[str, tuple[int, float | None]]) -> dict[str, Load]:
    """Run one contender's service under each load."""
    with subprocess.Popen([sys.executable, __file__, "--serve", contender, uri], stdout=subprocess.PIPE) as worker:
        try:
            assert worker.stdout is not None
            port = int(worker.stdout.readline())
            asyncio.run(put_under_load(port, "warm", 20, None))
            return {name: asyncio.run(put_under_load(port, name, *load)) for name, load in loads.items()}
        finally:
            worker.terminate()


def check(uri: str, loads: dict[str, tuple[int, float | None]]) -> None:
    """Make sure that every turn is stored, where the documents are ours."""
    client: MongoClient[dict[str, Any]]
    with MongoClient(uri) as client:
        for store, (name, (number, _)) in product(("ours", "synchronous"), loads.items()):
            found = client[DATABASE][store].count_documents(
                {"_id": {"$regex": f"^{name}-"}, f"agents.{support.AGENT_ID}.message_count": 4}
            )
            assert found == number, f"{store}, {name}: {found} of {number} conversations are whole"


def serve(contender: str, uri: str) -> None:
    """Run the service on a free port, and print it."""
    server = uvicorn.Server(uvicorn.Config(create_app(contender, uri), port=0, log_level="warning"))

    async def run() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)
        await serving

    asyncio.run(run())


def main() -> None:
    """Measure all contenders and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the load")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve)
        return
    part = 4 if arguments.quick else 1
    loads: dict[str, tuple[int, float | None]] = {
        "paced": (PACED // part, PER_SECOND / part),
        "burst": (BURST // part, None),
    }
    with LocalMongoDB() as server:
        client: MongoClient[dict[str, Any]]
        with MongoClient(server.uri) as client:
            print(f"{support.versions(client)}, {', '.join(_web_versions())}")
        for name, (number, _) in {**loads, "warm": (20, None)}.items():
            store_sessions(server.uri, name, number)
        measured = {name: measure(name, server.uri, loads) for name in CONTENDERS}
        check(server.uri, loads)
    header = ["session manager", "first word, p50 ms", "added", "p99", "/health p99", "worst"]
    for name, (number, per_second) in loads.items():
        pace = f"{per_second:g} per second" if per_second else "at once"
        floor = measured["none"][name]
        rows = [load[name].row(CONTENDERS[who], floor) for who, load in measured.items()]
        title = f"`web.py`: {name}, {number} chats, {pace}, {WORDS} words {DELAY_SECONDS * 1000:g} ms apart"
        support.print_table(title, header, rows)
    ours, none = measured["ours"]["paced"], measured["none"]["paced"]
    added = statistics.median(ours.first) - statistics.median(none.first)
    health = support.percentile(ours.health, 99)
    first_word = f"paced: storing adds under {ADDED_LIMIT_MS} ms to the first word, median"
    alive = f"paced: /health under {HEALTH_LIMIT_MS} ms, p99"
    support.print_targets(
        [
            Target("every answer is whole, and every turn of ours is stored", True, "all", exact=True),
            Target(first_word, added < ADDED_LIMIT_MS, f"{added:.1f} ms", exact=False),
            Target(alive, health < HEALTH_LIMIT_MS, f"{health:.1f} ms", exact=False),
        ]
    )


def _web_versions() -> list[str]:
    return [f"{name} {importlib.metadata.version(name)}" for name in ("fastapi", "starlette", "uvicorn")]


if __name__ == "__main__":
    main()
