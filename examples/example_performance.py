"""What connection pooling gives: the same requests with a client per session manager, and with one factory.

    uv run python examples/example_performance.py                       tables
    uv run python examples/example_performance.py --plot pooling.svg    and a picture (.svg, .png, .pdf)

It needs no key and no network: MongoDB is the bundled one (`MONGODB_URI` names another), and the model is a script
that answers at once, so that what is left is what sessions cost. `model_from_environment.py` tells how to choose a
real model; then every request is a call of it, and there are only a few.

Three ways to get a session manager, and what they cost, one request after another and many at once.
"""

import argparse
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from model_from_environment import describe, model_from_environment
from offline_model import OfflineScriptedModel
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError
from strands import Agent
from terminal import DIM, say, table, title

from mongodb_session_manager import (
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    create_mongodb_session_manager,
)
from mongodb_session_manager.local import LocalMongoDB

DATABASE, COLLECTION = "session_manager_examples", "performance"
REQUESTS, REQUESTS_OF_A_REAL_MODEL = 48, 2
THREADS = (1, 4, 16)
ROUNDS = 3


# --- Three ways to get a session manager

OpenSession = Callable[[str], MongoDBSessionManager]
"""Returns the manager of a session; leaving its `with` closes it."""


@contextmanager
def basic_usage(uri: str) -> Iterator[OpenSession]:
    """Each session manager makes a client of its own, connects it, and closes it. Right for a script."""

    def open_session(session_id: str) -> MongoDBSessionManager:
        return create_mongodb_session_manager(session_id, uri, DATABASE, COLLECTION)

    yield open_session


@contextmanager
def factory_usage(uri: str) -> Iterator[OpenSession]:
    """One factory for the whole process; its managers share a client, whose connections stay open."""
    with MongoDBSessionManagerFactory(uri, DATABASE, COLLECTION) as factory:
        yield factory.create_session_manager


@contextmanager
def production_usage(uri: str) -> Iterator[OpenSession]:
    """One factory, set up for a service with many requests at once."""
    with MongoDBSessionManagerFactory(
        uri,
        DATABASE,
        COLLECTION,
        maxPoolSize=200,  # not below the number of threads: a command waits when all connections are in use,
        waitQueueTimeoutMS=5000,  # and fails after this long
        minPoolSize=10,  # connected before they are needed
        maxIdleTimeMS=30000,
        serverSelectionTimeoutMS=5000,  # how long to look for a primary during an election
        w="majority",  # acknowledged once a majority has it
        durability="turn",  # a turn is one write; a process that dies inside a turn loses that turn
        ttl_hours=1,  # a session ends by itself so long after its last activity
    ) as factory:
        yield factory.create_session_manager


Way = Callable[[str], AbstractContextManager[OpenSession]]
Act = Callable[[MongoDBSessionManager], object]
Server = MongoClient[dict[str, Any]]

OWN, POOLED = "a client per session manager", "one factory"
WAYS: dict[str, Way] = {
    OWN: basic_usage,
    POOLED: factory_usage,
    'one factory, durability="turn"': production_usage,
}


# --- What a request does


def restore(session_manager: MongoDBSessionManager) -> Agent:
    """Build the agent: what the session holds of it is restored."""
    return Agent(
        model=model_from_environment(lambda _: "Nice to meet you."),
        agent_id="assistant",
        session_manager=session_manager,
        callback_handler=None,
    )


def take_turn(session_manager: MongoDBSessionManager) -> None:
    """Restore the agent and take one turn: its question and its answer are stored."""
    restore(session_manager)("Hello, my name is Alice.")


# --- What is measured


@dataclass
class Figures:
    """What some requests took.

    Attributes:
        milliseconds: What each of them took.
        seconds: What all of them took.
        cpu_seconds: What this process computed for them; a machine that is busy with other work changes it least.
        connections: Connections that were made to the server for them.
        commands: Reads and writes of documents that it was sent for them.
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
        """What 95 % of the requests did not exceed, in milliseconds."""
        return statistics.quantiles(self.milliseconds, n=20, method="inclusive")[-1]


def measure(
    figures: Figures, open_session: OpenSession, act: Act, session_ids: list[str], threads: int, server: Server
) -> None:
    """Open each session, act on it, close it, so many at once; add what that took to the figures."""

    def request(session_id: str) -> float:
        begun = time.perf_counter()
        with open_session(session_id) as session_manager:
            act(session_manager)
        return 1000 * (time.perf_counter() - begun)

    connections, commands = counted_by(server)
    with ThreadPoolExecutor(threads) as pool:
        begun, cpu_begun = time.perf_counter(), time.process_time()
        figures.milliseconds += pool.map(request, session_ids)
        figures.seconds += time.perf_counter() - begun
        figures.cpu_seconds += time.process_time() - cpu_begun
    connections_now, commands_now = counted_by(server)
    figures.connections += connections_now - connections
    figures.commands += commands_now - commands


def counted_by(server: Server) -> tuple[float, float]:
    """Return how many connections, and reads and writes of documents, the server has had so far."""
    try:
        status = server.admin.command("serverStatus")
    except OperationFailure:  # This user may not ask: it takes the role `clusterMonitor`.
        return float("nan"), float("nan")
    counts = status["metrics"]["commands"]
    commands = sum(counts.get(name, {"total": 0})["total"] for name in ("find", "insert", "update", "delete"))
    return status["connections"]["totalCreated"], commands


def compare(uri: str, requests: int) -> Iterator[tuple[str, dict[str, Figures]]]:
    """Measure every way in every situation; yield the situation's name and the figures by the way's name."""
    situations: dict[str, tuple[Act, int]] = {
        "sequential: open the session, restore its agent": (restore, 1),
        **{situation_of(threads): (take_turn, threads) for threads in THREADS},
    }
    run = uuid.uuid4().hex[:8]
    session_ids = {name: [f"{run}-{at}-{number}" for number in range(requests)] for at, name in enumerate(WAYS)}
    with ExitStack() as stack:
        server = stack.enter_context(MongoClient[dict[str, Any]](uri))
        # The factories live as long as a service does.
        ways = {name: stack.enter_context(way(uri)) for name, way in WAYS.items()}
        for name, open_session in ways.items():  # Makes the sessions, and warms everything up.
            measure(Figures(), open_session, take_turn, session_ids[name], 1, server)
        for situation, (act, threads) in situations.items():
            figures = {name: Figures() for name in ways}
            for turn in range(ROUNDS):  # By turns, for a machine has better moments and worse ones.
                for name, open_session in ways.items():
                    measure(figures[name], open_session, act, session_ids[name][turn::ROUNDS], threads, server)
            yield situation, figures


def situation_of(threads: int) -> str:
    """Name the situation in which so many requests are taken at once."""
    return f"concurrent: requests of one turn, {threads} at once" if threads > 1 else "sequential: requests of one turn"


# --- What it prints and draws


def print_figures(situation: str, figures: dict[str, Figures]) -> None:
    """Print a table of the ways in one situation, and what pooling makes of it."""
    title(situation)
    table(
        ["session manager", "per second", "p50 ms", "p95 ms", "CPU ms", "commands", "connections"],
        [
            [
                name,
                f"{found.per_second:.0f}",
                f"{found.p50:.1f}",
                f"{found.p95:.1f}",
                f"{1000 * found.cpu_seconds / len(found.milliseconds):.1f}",
                f"{found.commands / len(found.milliseconds):.1f}",
                f"{found.connections:.0f}",
            ]
            for name, found in figures.items()
        ],
    )
    say(f"  → pooled: {figures[POOLED].per_second / figures[OWN].per_second:.1f} times as many per second")


def draw(figures: dict[str, dict[str, Figures]], file: str) -> None:
    """Draw the figures into a file; its ending says which format."""
    import matplotlib as mpl  # Only here: nobody else needs it.

    mpl.use("agg")
    from matplotlib import pyplot

    colours = dict(zip(WAYS, ("#d55e00", "#0072b2", "#009e73"), strict=True))  # Told apart by the colour-blind, too.
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6))

    sequential = [situation for situation in figures if situation.startswith("sequential")]
    for at, (name, colour) in enumerate(colours.items()):
        places = [group + (at - 1) * 0.27 for group in range(len(sequential))]
        bars = left.bar(places, [figures[situation][name].p50 for situation in sequential], 0.25, color=colour)
        left.bar_label(bars, fmt="%.1f", padding=2)
    left.set_xticks(range(len(sequential)), [situation.partition(": ")[2] for situation in sequential])
    left.set_ylabel("milliseconds, median")
    left.set_title("One after another: time of each (lower is better)")

    for name, colour in colours.items():
        rates = [figures[situation_of(threads)][name].per_second for threads in THREADS]
        right.plot(THREADS, rates, "o-", color=colour, label=name)
    right.set_xscale("log", base=2)
    right.set_xticks(THREADS, [str(threads) for threads in THREADS])
    right.set_xlabel("requests at once")
    right.set_ylabel("requests per second")
    right.set_title("Many at once: throughput (higher is better)")

    for axes in (left, right):
        axes.margins(y=0.12)
        axes.set_ylim(bottom=0)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="lower center", ncols=len(WAYS), frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(file, dpi=150)


# --- The program


def main() -> None:
    """Compare, print, and draw if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, help=f"in each situation, at least 2 (default {REQUESTS})")
    parser.add_argument("--plot", metavar="FILE", help="draw the figures into this file: .svg, .png or .pdf")
    arguments = parser.parse_args()

    model = model_from_environment(lambda _: "")
    default = REQUESTS if isinstance(model, OfflineScriptedModel) else REQUESTS_OF_A_REAL_MODEL
    requests = max(2, arguments.requests or default)
    say(f"model {describe(model)}", style=DIM)
    say(f"{requests} requests in each situation, each on a stored session of its own", style=DIM)
    figures: dict[str, dict[str, Figures]] = {}
    try:
        with LocalMongoDB() as mongodb:
            for situation, found in compare(mongodb.uri, requests):
                print_figures(situation, found)
                figures[situation] = found
    except PyMongoError as error:  # One request that fails spoils the comparison.
        sys.exit(f"MongoDB: {error}")

    say()
    for line in (
        "CPU ms       what this process computed for one request",
        "commands     reads and writes of documents that the server was sent for one request",
        "connections  that were made to the server meanwhile, as it counts them: a client of its own makes",
        "             one to send on and up to two to watch the server; a factory's are there already",
        "The bundled server is on this machine, without TLS or password. Over a network a connection",
        "takes 10 to 50 ms, and pooling gives more. Other work on the machine spoils times; counts are exact.",
    ):
        say(line, style=DIM)
    if arguments.plot:
        draw(figures, arguments.plot)
        say(f"drawn: {arguments.plot}")


if __name__ == "__main__":
    main()
