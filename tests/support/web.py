"""A web server of a test's own: uvicorn in a thread, on a free port; and what its metrics say."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from support.waiting import eventually


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


def figure(browser: httpx.Client, name: str, **labels: str) -> float:
    """The sum of a metric over what is not asked for, such as the servers."""
    found = [
        float(sample.value)
        for family in text_string_to_metric_families(browser.get("/metrics").text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert found, f"no {name} {labels}"
    return sum(found)
