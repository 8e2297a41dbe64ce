"""What a turn costs: commands, bytes and milliseconds, against the length of the conversation, beside other stores.

One turn is what a web request does: open an existing session, build its agent, take one text turn. Counts come from
PyMongo's command events and are exact. Times are taken in interleaved rounds in one process; *added* is what a store
adds to the same turn of an agent that has the same live messages and no session manager.

    python benchmarks/turn_cost.py [--rounds N] [--quick] [--on-loop] [--count-pool]

The exit code tells whether the exact targets were met; times depend on the machine and never decide it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import support
from support import Samples, Store, Target, Traffic

from mongodb_session_manager.local import LocalMongoDB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strands import Agent

HISTORIES = (0, 100, 1_000, 5_000)
RESUME_LIMIT = 24 * 1024
WARM_UP = 2
"""Rounds that are not counted."""


@dataclass
class Counts:
    """What a store sends, by history where it differs.

    Attributes:
        turn: Open, build, one text turn; by history.
        again: A second turn of that agent; by history.
        tool: Open, build, one turn with one tool call; by history.
        resume: Open and build alone; by history.
        new: The first turn of a session that is new.
    """

    turn: dict[int, Traffic]
    again: dict[int, Traffic]
    tool: dict[int, Traffic]
    resume: dict[int, Traffic]
    new: Traffic


class Stores:
    """All that is compared."""

    def __init__(self, uri: str, directory: str, *, counts_pool: bool) -> None:
        self.ours = {
            durability: support.OurStore(uri, durability, counts_pool=counts_pool) for durability in ("message", "turn")
        }
        self.replays = {durability: support.ReplayStore(uri, store) for durability, store in self.ours.items()}
        self.none = support.NoStore(self.replays["message"].live)
        self.others: list[Store] = [
            support.FileStore(directory),
            support.SnapshotStore(uri, "invocation"),
            support.SnapshotStore(uri, "message"),
            support.RivalStore(uri),
        ]
        # In the order in which they are built: a replay needs the session of ours.
        self.all: list[Store] = [*self.ours.values(), *self.replays.values(), *self.others, self.none]
        self.counted: list[Store] = [*self.ours.values(), *self.others]


def count(store: Store, histories: Sequence[int]) -> Counts:
    """Count what a store sends."""
    counts = Counts({}, {}, {}, {}, _count_new(store))
    for history in histories:
        opened: list[Agent] = []
        store.reset(history)
        counts.resume[history] = store.traffic(partial(_open, store, history, opened))
        turn = partial(opened[0], support.TEXT)
        counts.turn[history] = _sum(counts.resume[history], store.traffic(turn))
        counts.again[history] = store.traffic(turn)
        store.reset(history)
        counts.tool[history] = store.traffic(partial(_tool_turn, store, history))
        store.reset(history)
    return counts


def _open(store: Store, history: int, opened: list[Agent]) -> None:
    opened.append(store.agent(history, counted=True))


def _tool_turn(store: Store, history: int) -> None:
    store.agent(history, counted=True, model=support.tool_model())(support.TEXT)


def _count_new(store: Store) -> Traffic:
    def first_turn() -> None:
        support.make_agent(session_manager=store.manager("new", counted=True))(support.TEXT)

    return store.traffic(first_turn)


def _sum(one: Traffic, other: Traffic) -> Traffic:
    return Traffic(
        one.commands + other.commands,
        one.sent + other.sent,
        one.written + other.written,
        one.received + other.received,
        one.names + other.names,
    )


def measure(
    stores: Sequence[Store], histories: Sequence[int], rounds: int, *, on_loop: bool
) -> dict[tuple[Store, int], Samples]:
    """Time the turn of every store at every length, all in turn, in another order each round."""
    samples = {(store, history): Samples() for store in stores for history in histories}
    gc.collect()
    gc.freeze()
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        for number in range(-WARM_UP, rounds):
            for history in histories:
                for store in stores:
                    store.reset(history)
                for store in random.sample(stores, len(stores)):
                    store.prepare(history)
                    took = _timed_turn(store, history, loop if on_loop else None)
                    if number >= 0:
                        samples[store, history].milliseconds.append(took)
    gc.unfreeze()
    return samples


def _timed_turn(store: Store, history: int, loop: asyncio.AbstractEventLoop | None) -> float:
    gc.collect(1)
    gc.disable()
    try:
        if loop is not None:
            return loop.run_until_complete(_timed_turn_on_loop(store, history))
        began = time.perf_counter()
        agent = store.agent(history)
        agent(support.TEXT)
        return (time.perf_counter() - began) * 1000
    finally:
        gc.enable()


async def _timed_turn_on_loop(store: Store, history: int) -> float:
    began = time.perf_counter()
    agent = await store.agent_on_loop(history)
    await agent.invoke_async(support.TEXT)
    return (time.perf_counter() - began) * 1000


def report(
    stores: Stores, counts: dict[Store, Counts], samples: dict[tuple[Store, int], Samples], histories: Sequence[int]
) -> list[Target]:
    """Print the tables; return the targets."""
    for history in histories:
        rows = []
        base = samples[stores.none, history]
        for store in stores.all:
            timed = samples[store, history]
            added = timed.p20 - base.p20, timed.median - base.median
            traffic = counts[store].turn[history] if store in counts else None
            rows.append(
                [
                    store.name,
                    "as ours" if traffic is None else f"{traffic.commands}{' files' * (store.unit == 'files')}",
                    "" if traffic is None else f"{traffic.sent:,}",
                    "" if traffic is None else f"{traffic.received:,}",
                    f"{timed.p20:.2f}",
                    f"{timed.median:.2f}",
                    *(("", "") if store is stores.none else (f"{added[0]:+.2f}", f"{added[1]:+.2f}")),
                ]
            )
            if store is stores.none:
                rows[-1][1:4] = ["0", "0", "0"]
        support.print_table(
            f"History of {history:,} messages: open the session, build its agent, one text turn",
            ["store", "commands", "bytes sent", "received", "p20 ms", "median", "added p20", "added median"],
            rows,
        )
    small, large = histories[0], histories[1]
    support.print_table(
        f"Commands of other turns, history {small} (the window stays) → {large} (it moves)",
        ["store", "text turn", "second turn", "tool turn", "new session, first turn"],
        [
            [
                store.name,
                *(
                    f"{by_history[small].commands} → {by_history[large].commands}"
                    for by_history in (counts[store].turn, counts[store].again, counts[store].tool)
                ),
                counts[store].new.commands,
            ]
            for store in stores.counted
        ],
    )
    support.print_table(
        "Bytes read to resume (open and build)",
        ["store", *(f"history {history:,}" for history in histories)],
        [
            [store.name, *(f"{counts[store].resume[history].received:,}" for history in histories)]
            for store in stores.counted
        ],
    )
    return targets(stores, counts, samples, histories)


def targets(
    stores: Stores, counts: dict[Store, Counts], samples: dict[tuple[Store, int], Samples], histories: Sequence[int]
) -> list[Target]:
    """Return what was promised, and whether it is kept."""
    message, turn = stores.ours["message"], stores.ours["turn"]
    found = []

    def commands_at_most(text: str, pairs: Sequence[tuple[Traffic, int]]) -> None:
        met = all(traffic.commands <= limit for traffic, limit in pairs)
        figures = ", ".join(f"{traffic.commands} (of {limit})" for traffic, limit in pairs)
        found.append(Target(text, met, figures, exact=True))

    for store, floors in ((message, (3, 4, 5, 6)), (turn, (2, 2, 2, 2))):
        mine = counts[store]
        for name, by_history, limits in (
            ("text turn", mine.turn, floors[:2]),
            ("tool turn", mine.tool, floors[2:]),
            ("second turn", mine.again, (floors[0] - 1, floors[1] - 1)),
        ):
            limit_of = {history: limits[history >= support.WINDOW] for history in histories}
            pairs = [(by_history[history], limit_of[history]) for history in histories]
            commands_at_most(f"{store.name}: commands of a {name}, by history", pairs)
        commands_at_most(f"{store.name}: commands of a new session", [(mine.new, floors[0] + 1)])

    least = min(counts[store].turn[history].commands for store in stores.others for history in histories)
    found.append(
        Target(
            '"turn" sends no more commands than any other store',
            all(
                counts[turn].turn[h].commands <= counts[other].turn[h].commands
                for other in stores.others
                for h in histories
            ),
            f"{max(counts[turn].turn[h].commands for h in histories)}, the least of the others {least}",
            exact=True,
        )
    )
    for store in (other for other in stores.others if other.per_message):
        pairs = [(h, counts[message].turn[h].commands, counts[store].turn[h].commands) for h in histories]
        found.append(
            Target(
                f'"message" sends fewer commands than {store.name}',
                all(mine < theirs for _, mine, theirs in pairs),
                _against(pairs),
                exact=True,
            )
        )
    for store in (other for other in stores.others if other.rewrites_window):
        triples = [(h, counts[turn].turn[h].written, counts[store].turn[h].written) for h in histories]
        found.append(
            Target(
                f'"turn" writes fewer bytes than {store.name}, once there is a window to rewrite',
                all(mine < theirs for history, mine, theirs in triples if history),
                _against(triples),
                exact=True,
            )
        )

    for store in (message, turn):
        read = {history: counts[store].resume[history].received for history in histories if history}
        spread = max(read.values()) / min(read.values()) - 1
        found.append(
            Target(
                f"{store.name}: bytes read to resume differ by at most 10 % between {min(read)} and {max(read):,}",
                spread <= 0.10,
                f"{spread:.2%}",
                exact=True,
            )
        )
        found.append(
            Target(
                f"{store.name}: at most {RESUME_LIMIT:,} bytes read to resume {support.WINDOW} messages",
                max(read.values()) <= RESUME_LIMIT,
                f"{max(read.values()):,}",
                exact=True,
            )
        )

    for durability, limit in (("message", 1.7), ("turn", 1.35)):
        store = stores.ours[durability]
        ratios = {}
        for history in histories:
            base = samples[stores.none, history].p20
            ours = samples[store, history].p20 - base
            ratios[history] = ours / (samples[stores.replays[durability], history].p20 - base)
        found.append(
            Target(
                f"{store.name}: adds at most {limit} times what the bare PyMongo replay adds",
                max(ratios.values()) <= limit,
                ", ".join(f"{ratio:.2f} at {history:,}" for history, ratio in ratios.items()),
                exact=False,
            )
        )
    return found


def _against(figures: Sequence[tuple[int, int, int]]) -> str:
    return "; ".join(f"{mine:,} against {theirs:,} at {history:,}" for history, mine, theirs in figures)


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, help="interleaved rounds to time (default 400; with --quick 10)")
    parser.add_argument("--quick", action="store_true", help="histories of 0 and 100 messages only, few rounds")
    parser.add_argument(
        "--on-loop",
        action="store_true",
        help="take the turns on one event loop (`await factory.open`, `invoke_async`), not by `agent(...)`",
    )
    parser.add_argument(
        "--count-pool",
        action="store_true",
        help="ours on clients that the factory makes, which count what their connections do; the replay's do not",
    )
    arguments = parser.parse_args()
    histories = HISTORIES[:2] if arguments.quick else HISTORIES
    rounds = arguments.rounds or (10 if arguments.quick else 400)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(LocalMongoDB())
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        stores = Stores(server.uri, directory, counts_pool=arguments.count_pool)
        began = time.perf_counter()
        for store in stores.all:
            for history in histories:
                store.build(history)
        counts = {store: count(store, histories) for store in stores.counted}
        how = "`invoke_async` on one event loop" if arguments.on_loop else "`agent(...)`"
        print(f"{support.versions(stores.ours['turn'].client)}; {rounds} rounds, turns by {how}", flush=True)
        print(f"Built and counted in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        samples = measure(stores.all, histories, rounds, on_loop=arguments.on_loop)
        return support.print_targets(report(stores, counts, samples, histories))


if __name__ == "__main__":
    sys.exit(main())
