"""A web server of a test's own: uvicorn in a thread, on a free port."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn

from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def served(app: Any, **options: Any) -> Iterator[httpx.Client]:
    """Run an application, its lifespan included, while the block runs; give a client of it."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none", **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started or not thread.is_alive(), message="the web server runs")
        assert server.started, "the lifespan failed"
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as browser:
            yield browser
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the web server did not end"
