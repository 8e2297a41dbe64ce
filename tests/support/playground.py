"""The playground of a test run: the real backend and the real frontend on free ports, the model behind a gate."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from example_fastapi_streaming import COLLECTION, build_agent, create_app
from pymongo.collection import Collection
from pymongo.database import Database
from strands.models import Model

from support.gated_model import Gate, GatedModel
from support.waiting import eventually

ROOT = Path(__file__).parent.parent.parent
FRONTEND = ROOT / "playground" / "chat" / "frontend.py"
BACKEND = ROOT / "examples" / "example_fastapi_streaming.py"
SECRET = "a-secret-of-the-tests"


@dataclass
class Playground:
    """What runs, and what its tests look at.

    Attributes:
        url: the address of the page.
        backend_url: the address of the service.
        database: what the service stores in.
        gate: what the pieces of all answers pass.
    """

    url: str
    backend_url: str
    database: Database[dict[str, Any]]
    gate: Gate

    @property
    def sessions(self) -> Collection[dict[str, Any]]:
        """The stored conversations."""
        return self.database[COLLECTION]

    def stored(self, conversation_id: str) -> dict[str, Any]:
        """The one document of a conversation, whoever owns it."""
        found = list(self.sessions.find({"_id": {"$regex": rf"\.{re.escape(conversation_id)}$"}}))
        assert len(found) == 1, f"{len(found)} documents for one conversation"
        return found[0]

    def stored_messages(self, conversation_id: str) -> list[dict[str, Any]]:
        """The messages of a conversation, as stored."""
        return list(self.stored(conversation_id)["agents"]["assistant"]["messages"])

    def stored_texts(self, conversation_id: str, role: str = "") -> list[str]:
        """The texts of a conversation, as stored; of messages that have text."""
        texts = (
            "".join(block.get("text", "") for block in message["content"])
            for message in self.stored_messages(conversation_id)
            if role in ("", message["role"])
        )
        return [text for text in texts if text]


@contextlib.contextmanager
def served_playground(uri: str, database: Database[dict[str, Any]], model: Model | None = None) -> Iterator[Playground]:
    """Serve backend and frontend while the block runs; the backend in a thread, so that a test can hold its model.

    Args:
        uri: the connection string of the database's server.
        database: what the backend stores in.
        model: answers in place of the example's own.
    """
    gate = Gate()

    def build_gated_agent(session_manager: Any) -> Any:
        agent = build_agent(session_manager)
        agent.model = GatedModel(model or agent.model, gate)
        return agent

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with served_frontend(port) as url:
            app = create_app(
                uri, SECRET, origins=[url], build_agent=build_gated_agent, database_name=database.name, minPoolSize=0
            )
            server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            try:
                eventually(lambda: server.started or not thread.is_alive(), message="the backend runs")
                assert server.started, "the lifespan failed"
                yield Playground(url, f"http://127.0.0.1:{port}", database, gate)
            finally:
                gate.open()
                server.should_exit = True
                thread.join(30)
                assert not thread.is_alive(), "the backend did not end"


@contextlib.contextmanager
def served_frontend(backend_port: int) -> Iterator[str]:
    """Run the frontend's program while the block runs; give its address."""
    port = free_port()
    arguments = ["--port", str(port), "--backend-port", str(backend_port)]
    process = subprocess.Popen([sys.executable, str(FRONTEND), *arguments], stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: listens(port) or process.poll() is not None, message="the frontend runs")
        assert process.poll() is None, "the frontend ended"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


class BackendProcess:
    """The backend's program, in a process that can be ended and started again on the same port.

    Args:
        settings: variables of its environment.
    """

    def __init__(self, **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {**os.environ, **settings}
        self._process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str, pace_ms: int) -> None:
        """Start it and wait until it listens; the model takes `pace_ms` for each piece."""
        self._process = process = subprocess.Popen(
            [sys.executable, str(BACKEND), "--serve", "--port", str(self.port), *arguments],
            env={**self._environment, "OFFLINE_PACE_MS": str(pace_ms)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        eventually(lambda: listens(self.port) or process.poll() is not None, 60, "the backend listens")
        assert process.poll() is None, process.communicate()[0]

    def end(self, by: signal.Signals = signal.SIGKILL) -> tuple[int, str]:
        """End it, as a crash does or by another signal, if it runs; returns its exit code and what it has said."""
        if self._process is None:
            return 0, ""
        process, self._process = self._process, None
        process.send_signal(by)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def listens(port: int) -> bool:
    """Return whether somebody listens on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
