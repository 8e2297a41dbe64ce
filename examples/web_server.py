"""The web server of the examples: uvicorn, alone or in a thread with a client in the same program."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI


class Server(uvicorn.Server):
    """A server that prints its address when it accepts connections. At its end it waits up to 5 s for running turns."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        super().__init__(
            uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5)  # Seconds.
        )

    async def startup(self, sockets: Any = None) -> None:
        """Start it."""
        await super().startup(sockets)
        if self.started:
            print(f"The server listens on {self.url}", flush=True)

    @property
    def url(self) -> str:
        """The address; with port 0, the port that the system has chosen."""
        return f"http://{self.config.host}:{self.servers[0].sockets[0].getsockname()[1]}"


def serve(app: FastAPI, host: str, port: int) -> None:
    """Run a service until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        Server(app, host, port).run()


@contextmanager
def served(app: FastAPI) -> Iterator[httpx.Client]:
    """Run a service while the block runs, and return a client for it."""
    server = Server(app, "127.0.0.1", 0)
    serving = threading.Thread(target=server.run)
    serving.start()
    try:
        while not server.started and serving.is_alive():
            time.sleep(0.01)
        if not server.started:
            raise SystemExit("The server could not start.")
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        serving.join()
