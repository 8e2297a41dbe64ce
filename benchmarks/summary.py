"""What `get_metrics_summary()` costs on a session of 50 messages and on one of 50,000.

Both sessions are grown by real turns, so that the older part of the long one is archived; the model reports latencies
from 100 ms to 20 s, so that many latency buckets are in use. Counts come from PyMongo's command events and are exact.
Times are taken in one process, in turn at either length.

    python benchmarks/summary.py [--quick] [--rounds N]

The exit code tells whether the exact targets were met; times depend on the machine and never decide it.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from typing import TYPE_CHECKING, Any

import support
from support import OfflineScriptedModel, OurStore, Samples, ScriptedReply, Target, Traffic

from mongodb_session_manager.local import LocalMongoDB

if TYPE_CHECKING:
    from mongodb_session_manager import MetricsSummary, MongoDBSessionManager

SHORT, LONG, LONG_IF_QUICK = 50, 50_000, 5_000
MOST_GROWTH = 2.0
AGENT_TURNS = 500
"""Turns that one `Agent` takes: it keeps records of its own of every turn."""


def grow(store: OurStore, messages: int) -> None:
    """Make the session of this length by real turns, and wait until nothing is being archived any more."""
    chance = random.Random(messages)

    def reply(_: Any) -> ScriptedReply:
        return ScriptedReply(text=support.TEXT, latency_ms=round(100 * 200 ** chance.random()))

    for begun in range(0, messages // 2, AGENT_TURNS):
        manager = manager_of(store, messages)
        model = OfflineScriptedModel(reply, chunk_characters=support.TEXT_BYTES)
        agent = support.make_agent(model, session_manager=manager)
        for _ in range(min(AGENT_TURNS, messages // 2 - begun)):
            agent(support.TEXT)
        manager.flush()
    manager.add_feedback({"rating": "up", "comment": support.TEXT})


def manager_of(store: OurStore, messages: int, *, counted: bool = False) -> MongoDBSessionManager:
    """Open the session of this length."""
    factory = store.counted_factory if counted else store.factory
    return factory.create_session_manager(store.session_id(messages))


def measure(store: OurStore, lengths: tuple[int, int], rounds: int) -> dict[int, Samples]:
    """Time summaries at either length, in turn."""
    managers = {length: manager_of(store, length) for length in lengths}
    taken = {length: Samples() for length in lengths}
    for number in range(rounds + 10):
        for length in lengths:
            began = time.perf_counter()
            managers[length].get_metrics_summary()
            if number >= 10:  # The connection is warm.
                taken[length].milliseconds.append((time.perf_counter() - began) * 1000)
    return taken


def report(
    lengths: tuple[int, int],
    summaries: dict[int, MetricsSummary],
    traffic: dict[int, Traffic],
    documents: dict[int, int],
    taken: dict[int, Samples],
) -> list[Target]:
    """Print the table; return what was promised, and whether it is kept."""
    support.print_table(
        "get_metrics_summary()",
        ["messages", "session document, bytes", "commands", "bytes sent / received", "p20, ms", "median, ms"],
        [
            [
                f"{length:,}",
                f"{documents[length]:,}",
                traffic[length].commands,
                f"{traffic[length].sent:,} / {traffic[length].received:,}",
                f"{taken[length].p20:.2f}",
                f"{taken[length].median:.2f}",
            ]
            for length in lengths
        ],
    )
    short, long = lengths
    growth = taken[long].median / taken[short].median
    received = traffic[long].received / traffic[short].received
    text = f"a summary at {long:,} messages: at most {MOST_GROWTH:g} times that at {short}, in"
    return [
        Target(f"{text} median time", growth <= MOST_GROWTH, f"{growth:.2f}", exact=False),
        Target(f"{text} bytes received", received <= MOST_GROWTH, f"{received:.2f}", exact=True),
        Target(
            "a summary is one command",
            all(traffic[length].names == ["find"] for length in lengths),
            ", ".join(str(traffic[length].commands) for length in lengths),
            exact=True,
        ),
        Target(
            "every message is counted",
            all(summaries[length].messages == length for length in lengths),
            ", ".join(f"{summaries[length].messages:,}" for length in lengths),
            exact=True,
        ),
    ]


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=500, help="summaries to time at either length (default 500)")
    parser.add_argument("--quick", action="store_true", help="5,000 messages in place of 50,000")
    arguments = parser.parse_args()
    lengths = (SHORT, LONG_IF_QUICK if arguments.quick else LONG)
    with LocalMongoDB() as server:
        store = OurStore(server.uri, "message")
        print(f"{support.versions(store.client)}; {arguments.rounds} rounds", flush=True)
        summaries: dict[int, MetricsSummary] = {}
        traffic: dict[int, Traffic] = {}
        documents: dict[int, int] = {}
        for length in lengths:
            began = time.perf_counter()
            grow(store, length)
            print(f"{length:,} messages in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            manager = manager_of(store, length, counted=True)
            summaries[length] = manager.get_metrics_summary()
            traffic[length] = store.traffic(manager.get_metrics_summary)
            size = {"$project": {"bytes": {"$bsonSize": "$$ROOT"}}}
            (found,) = store.collection.aggregate([{"$match": {"_id": store.session_id(length)}}, size])
            documents[length] = found["bytes"]
        targets = report(lengths, summaries, traffic, documents, measure(store, lengths, arguments.rounds))
    return support.print_targets(targets)


if __name__ == "__main__":
    sys.exit(main())
