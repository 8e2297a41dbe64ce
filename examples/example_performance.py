"""What connection pooling saves: the same requests with one client per session manager, and with one factory.

    uv run python examples/example_performance.py                       prints tables
    uv run python examples/example_performance.py --plot pooling.svg    also draws a picture (.svg, .png, .pdf)

It needs no key and no network: it starts the bundled MongoDB (`MONGODB_URI` names another), and a script answers at
once instead of a model, so the times are those of the sessions. `model_from_environment.py` shows how to choose a real
model; then every request calls it, and there are only a few requests.
"""

import argparse
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from model_from_environment import describe, model_from_environment
from offline_model import OfflineScriptedModel
from performance_figures import Figures
from performance_report import Comparison, draw, explain, print_figures
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from small_talk import small_talk
from strands import Agent
from terminal import DIM, say

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionManagerFactory, create_mongodb_session_manager
from mongodb_session_manager.local import LocalMongoDB

DATABASE, COLLECTION = "session_manager_examples", "performance"
ROUNDS = 3

OpenSession = Callable[[str], MongoDBSessionManager]
"""Returns the manager of a session; leaving its `with` closes it."""


@contextmanager
def basic_usage(uri: str) -> Iterator[OpenSession]:
    """Each session manager makes, connects and closes its own client. That is right for a script."""
    yield lambda session_id: create_mongodb_session_manager(session_id, uri, DATABASE, COLLECTION)


@contextmanager
def factory_usage(uri: str) -> Iterator[OpenSession]:
    """One factory for the whole process. Its managers share one client, whose connections stay open."""
    with MongoDBSessionManagerFactory(uri, DATABASE, COLLECTION) as factory:
        yield factory.create_session_manager


@contextmanager
def production_usage(uri: str) -> Iterator[OpenSession]:
    """One factory, configured for a service with many requests at once."""
    with MongoDBSessionManagerFactory(
        uri,
        DATABASE,
        COLLECTION,
        maxPoolSize=200,  # At least the number of threads: a command waits if all connections are in use,
        waitQueueTimeoutMS=5000,  # and fails after this long.
        minPoolSize=10,  # Connected before they are needed.
        maxIdleTimeMS=30000,
        serverSelectionTimeoutMS=5000,  # The client looks this long for a primary during an election.
        w="majority",  # Acknowledged when a majority of the nodes has it.
        durability="turn",  # One write per turn; a process that dies inside a turn loses that turn.
        ttl_hours=1,  # A session ends this long after its last activity.
    ) as factory:
        yield factory.create_session_manager


WAYS = {
    "a client per session manager": basic_usage,
    "one factory": factory_usage,
    'one factory, durability="turn"': production_usage,
}


def restore(session_manager: MongoDBSessionManager) -> Agent:
    """Build the agent. This restores its stored messages and state."""
    model = model_from_environment(small_talk)
    return Agent(model=model, agent_id="assistant", session_manager=session_manager, callback_handler=None)


def take_turn(session_manager: MongoDBSessionManager) -> None:
    """Restore the agent and take one turn: question and answer are stored."""
    restore(session_manager)("Hello, my name is Alice.")


Act = Callable[[MongoDBSessionManager], object]
SITUATIONS: dict[str, tuple[Act, int]] = {  # What each request does, and how many run at once.
    "sequential: open the session, restore its agent": (restore, 1),
    "sequential: requests of one turn": (take_turn, 1),
    "concurrent: requests of one turn, 4 at once": (take_turn, 4),
    "concurrent: requests of one turn, 16 at once": (take_turn, 16),
}


def compare(uri: str, requests: int) -> Iterator[tuple[str, Comparison]]:
    """Measure every way in every situation; yield the situation's name and the figures by the way's name."""
    run = uuid.uuid4().hex[:8]
    session_ids = {way: [f"{run}-{at}-{number}" for number in range(requests)] for at, way in enumerate(WAYS)}
    with ExitStack() as stack:
        server = stack.enter_context(MongoClient[dict[str, Any]](uri))
        opened = {way: stack.enter_context(usage(uri)) for way, usage in WAYS.items()}

        def measure(figures: Figures, way: str, act: Act, threads: int, ids: list[str]) -> None:
            def request(session_id: str) -> None:
                with opened[way](session_id) as session_manager:
                    act(session_manager)

            figures.measure(request, ids, threads, server)

        for way in WAYS:  # Create the sessions, and warm up.
            measure(Figures(), way, take_turn, 1, session_ids[way])
        for situation, (act, threads) in SITUATIONS.items():
            figures = {way: Figures() for way in WAYS}
            for turn in range(ROUNDS):  # Alternate, because the speed of a machine varies.
                for way in WAYS:
                    measure(figures[way], way, act, threads, session_ids[way][turn::ROUNDS])
            yield situation, figures


def main() -> None:
    """Compare, print, and draw if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, help="in each situation, at least 2 (default 48, or 2 of a real model)")
    parser.add_argument("--plot", metavar="FILE", help="draw the figures into this file: .svg, .png or .pdf")
    arguments = parser.parse_args()

    model = model_from_environment(small_talk)
    requests = max(2, arguments.requests or (48 if isinstance(model, OfflineScriptedModel) else 2))
    say(f"model {describe(model)}", style=DIM)
    say(f"{requests} requests in each situation, each on a stored session of its own", style=DIM)
    compared: dict[str, Comparison] = {}
    try:
        with LocalMongoDB() as mongodb:
            for situation, figures in compare(mongodb.uri, requests):
                print_figures(situation, figures)
                compared[situation] = figures
    except PyMongoError as error:  # A failed request makes the comparison worthless.
        sys.exit(f"MongoDB: {error}")
    explain()
    if arguments.plot:
        turns = {threads: compared[name] for name, (act, threads) in SITUATIONS.items() if act is take_turn}
        sequential = {name.partition(": ")[2]: found for name, found in compared.items() if SITUATIONS[name][1] == 1}
        draw(sequential, turns, arguments.plot)
        say(f"drawn: {arguments.plot}")


if __name__ == "__main__":
    main()
