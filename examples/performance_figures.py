"""Measures requests: times in this process, and the counts of the server."""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pymongo import MongoClient
from pymongo.errors import OperationFailure


@dataclass
class Figures:
    """The figures of some requests.

    Attributes:
        milliseconds: The time of each request.
        seconds: The time of all requests together.
        cpu_seconds: The CPU time of this process; other work on the machine affects it least.
        connections: Connections that were made to the server.
        commands: Commands that read or write documents.
    """

    milliseconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    connections: float = 0
    commands: float = 0

    @property
    def per_second(self) -> float:
        """Requests per second."""
        return len(self.milliseconds) / self.seconds

    @property
    def p50(self) -> float:
        """The median, in milliseconds."""
        return statistics.median(self.milliseconds)

    @property
    def p95(self) -> float:
        """The time that 95 % of the requests did not exceed, in milliseconds."""
        return statistics.quantiles(self.milliseconds, n=20, method="inclusive")[-1]

    def measure(
        self, request: Callable[[str], object], session_ids: Sequence[str], threads: int, server: MongoClient[Any]
    ) -> None:
        """Make a request for each session, `threads` at once, and add the figures."""

        def timed(session_id: str) -> float:
            begun = time.perf_counter()
            request(session_id)
            return 1000 * (time.perf_counter() - begun)

        connections, commands = counted_by(server)
        with ThreadPoolExecutor(threads) as pool:
            begun, cpu_begun = time.perf_counter(), time.process_time()
            self.milliseconds += pool.map(timed, session_ids)
            self.seconds += time.perf_counter() - begun
            self.cpu_seconds += time.process_time() - cpu_begun
        connections_now, commands_now = counted_by(server)
        self.connections += connections_now - connections
        self.commands += commands_now - commands


def counted_by(server: MongoClient[Any]) -> tuple[float, float]:
    """Return how many connections, and commands that read or write documents, the server has counted so far."""
    try:
        status = server.admin.command("serverStatus")
    except OperationFailure:  # This user lacks the role `clusterMonitor`.
        return float("nan"), float("nan")
    counts = status["metrics"]["commands"]
    commands = sum(counts.get(name, {"total": 0})["total"] for name in ("find", "insert", "update", "delete"))
    return status["connections"]["totalCreated"], commands
