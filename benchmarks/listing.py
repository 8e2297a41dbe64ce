"""What a page of sessions costs among 100,000 of them, and what the indexes behind it cost an append.

Two collections hold the same sessions: one with the indexes of this library, one with those that `created_at`,
`updated_at` and the metadata field have anyway. Pages are read from the first by `list_sessions`; beside it stands what
one writes by hand on the second: whole documents, sorted by the time alone, and skipped. Appends are the library's own,
to the same sessions of both in turn.

    python benchmarks/listing.py [--quick] [--rounds N]

Keys, documents and bytes are counted and exact; a missed target of theirs makes the exit code 1. Times never do.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import support
from pymongo import MongoClient
from support import CommandRecorder, Samples, Target

from mongodb_session_manager import SessionPage
from mongodb_session_manager._model.documents import message_document, new_agent, new_session
from mongodb_session_manager._statements.commits import Commit, TrackedMessage
from mongodb_session_manager._statements.sessions import SessionRef
from mongodb_session_manager.local import LocalMongoDB
from mongodb_session_manager.mongodb_session_repository import MongoDBSessionRepository, RepositoryOfManagers

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymongo.collection import Collection

DATABASE = "listing"
PAGE = 20
KEY_LIMIT = 60
"""Keys of an index that a page of 20 may read."""
BYTES_LIMIT = 1024
"""Bytes that one session of a page may have."""
MESSAGES = 6
LONG = 100
"""Messages of the twenty-five sessions that are long."""
APPLICATIONS, USERS, AGENTS = 20, 2_000, 10
BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)

LISTS: dict[str, dict[str, Any]] = {
    "newest": {},
    "changed last": {"sort_by": "updated_at"},
    "of one application": {"application_name": "application-7"},
    "of one user": {"metadata": {"user": "user-77"}},
    "with one agent": {"agent_id": "agent-7"},
    "of 100 messages": {"application_name": "long"},
}


def session(number: int, messages: int = MESSAGES) -> dict[str, Any]:
    """Return a session of this many messages; one begins each second."""
    chance = random.Random(number)
    began = BEGIN + timedelta(seconds=number)
    changed = began + timedelta(seconds=chance.randrange(86_400))
    document = new_session(f"session-{number:06}", "default", f"application-{number % APPLICATIONS}", began, changed)
    agent_id = f"agent-{chance.randrange(AGENTS)}"
    record = new_agent({"agent_id": agent_id, "state": {}, "conversation_manager_state": {}}, changed)
    for position in range(messages):
        body = {"role": "assistant" if position % 2 else "user", "content": [{"text": f"{number}: {support.TEXT}"}]}
        record["messages"].append(message_document(position, body, changed, changed))
    tokens = {"calls": 3, "inputTokens": 300, "outputTokens": 240, "totalTokens": 540}
    record.update(message_count=messages, usage={"messages": messages, "turns": 3, "models": {"offline": tokens}})
    document.update(agent_ids=[agent_id], agents={agent_id: record})
    document["metadata"] = {"user": f"user-{chance.randrange(USERS)}", "language": "en"}
    return document


@dataclass
class Cost:
    """What a page costs.

    Attributes:
        keys: Keys of indexes that the server looked at.
        documents: Documents that it looked at.
        in_memory: Whether it sorted in memory.
        received: Bytes of the answers.
        times: Of the whole call, decoding included.
    """

    keys: int = 0
    documents: int = 0
    in_memory: bool = False
    received: int = 0
    times: Samples = field(default_factory=Samples)


class World:
    """The two collections, and what is asked of them.

    Attributes:
        ours: The repository with the indexes for lists.
        plain: The collection without, and the repository that appends to it.
    """

    def __init__(self, uri: str, count: int) -> None:
        self.recorder = CommandRecorder()
        self.count = count
        self.client: MongoClient[Any] = MongoClient(uri)
        counted: MongoClient[Any] = MongoClient(uri, event_listeners=[self.recorder])
        self.ours = MongoDBSessionRepository(None, DATABASE, "ours", self.client, ["user"])
        self.counted = MongoDBSessionRepository(None, DATABASE, "ours", counted, ["user"])
        self.without = RepositoryOfManagers(None, DATABASE, "plain", self.client)
        self.plain: Collection[dict[str, Any]] = self.without.collection
        for name in ("created_at", "updated_at", "metadata.user"):
            self.plain.create_index(name)
        long = [{**session(-number, LONG), "application_name": "long"} for number in range(1, 26)]
        self.ours.collection.insert_many(long)
        self.plain.insert_many(long)
        for start in range(0, count, 1_000):
            documents = [session(number) for number in range(start, min(start + 1_000, count))]
            self.ours.collection.insert_many(documents)
            self.plain.insert_many(documents)

    def listed(self, asked: dict[str, Any], cursor: str | None = None) -> Cost:
        """Return what a page of `list_sessions` makes the server do."""
        cost = Cost()
        with self.recorder.recording() as commands:
            self.counted.list_sessions(**asked, limit=PAGE, cursor=cursor)
        for command in commands:
            query = {k: v for k, v in command.command.items() if k in ("find", "filter", "projection", "sort", "limit")}
            self._explain(cost, query)
        cost.received = commands.reply_bytes
        return cost

    def by_hand(self, asked: dict[str, Any], skip: int = 0) -> Cost:
        """Return what the same page makes the server do that is written by hand."""
        cost = Cost()
        sort_by, query = self._query(asked)
        self._explain(cost, {"find": "plain", "filter": query, "sort": {sort_by: -1}, "skip": skip, "limit": PAGE})
        with self.recorder.recording() as commands:
            list(self._find(asked, skip, self.counted.database["plain"]))
        cost.received = commands.reply_bytes
        return cost

    def read_by_hand(self, asked: dict[str, Any], skip: int = 0) -> None:
        """Read that page: whole documents."""
        assert self._find(asked, skip, self.plain)

    def _find(self, asked: dict[str, Any], skip: int, collection: Collection[dict[str, Any]]) -> list[dict[str, Any]]:
        sort_by, query = self._query(asked)
        return list(collection.find(query).sort(sort_by, -1).skip(skip).limit(PAGE))

    @staticmethod
    def _query(asked: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        query = {k: v for k, v in asked.items() if k == "application_name"}
        query |= {f"metadata.{k}": v for k, v in asked.get("metadata", {}).items()}
        if "agent_id" in asked:
            query["agent_ids"] = asked["agent_id"]
        return asked.get("sort_by", "created_at"), query

    def _explain(self, cost: Cost, query: dict[str, Any]) -> None:
        plan = self.client[DATABASE].command("explain", query, verbosity="executionStats")
        cost.keys += plan["executionStats"]["totalKeysExamined"]
        cost.documents += plan["executionStats"]["totalDocsExamined"]
        cost.in_memory |= "'SORT'" in str(plan["queryPlanner"]["winningPlan"])

    def deep_cursor(self) -> str:
        """Walk half of all sessions, page by page, and return the cursor of the page after them."""
        page: SessionPage | None = None
        seen: set[str] = set()
        while len(seen) < self.count // 2:
            page = self.ours.list_sessions(limit=100, cursor=page.cursor if page else None)
            assert seen.isdisjoint(header.session_id for header in page.sessions)
            seen.update(header.session_id for header in page.sessions)
        newest = {session(number)["_id"] for number in range(self.count - len(seen), self.count)}
        assert seen == newest, "a page repeated or skipped a session"
        assert page is not None
        assert page.cursor is not None
        return page.cursor


def timed(act: Callable[[], Any]) -> float:
    """Return what a call takes, in milliseconds."""
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000


def appends(world: World, rounds: int) -> tuple[Samples, Samples]:
    """Append to random sessions; return the times with the indexes for lists and without."""
    times: dict[str, Samples] = {"ours": Samples(), "plain": Samples()}
    chance = random.Random(7)
    positions: dict[tuple[str, str], int] = {}
    body = {"role": "user", "content": [{"text": support.TEXT}]}
    for turn in range(rounds):
        which = {"_id": f"session-{chance.randrange(world.count):06}"}
        # Both are read, so that neither is the one that lies in the server's cache.
        document = world.ours.collection.find_one(which)
        assert document is not None
        assert world.plain.find_one(which) is not None
        (key,) = document["agents"]
        for name, repository in chance.sample([("ours", world.ours), ("plain", world.without)], 2):
            position = positions.setdefault((name, document["_id"]), MESSAGES)
            message = TrackedMessage(None, None, None)
            message.body = dict(body)
            work = Commit(key, [message], first_message_id=position)
            work.start()
            reference = SessionRef(document["_id"], document["incarnation"])
            taken = timed(lambda r=repository, w=work, s=reference: r._store.messages.commit(s, w))  # type: ignore[misc]
            positions[name, document["_id"]] += 1
            if turn >= rounds // 10:  # The first ones fill caches.
                times[name].milliseconds.append(taken)
    return times["ours"], times["plain"]


def main() -> int:
    """Make the sessions, read pages, append, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="10,000 sessions")
    parser.add_argument("--rounds", type=int, default=60, help="how often each page is read (default 60)")
    options = parser.parse_args()
    count = 10_000 if options.quick else 100_000
    with LocalMongoDB() as server:
        world = World(server.uri, count)
        print(f"{support.versions(world.client)}; {count:,} sessions of {MESSAGES} messages, {options.rounds} rounds")
        deep = world.deep_cursor()
        pages: dict[str, tuple[dict[str, Any], str | None, int]] = {name: (a, None, 0) for name, a in LISTS.items()}
        deep_name = f"newest, after {count // 2:,} others"
        pages[deep_name] = ({}, deep, count // 2)
        ours = {name: world.listed(asked, cursor) for name, (asked, cursor, _) in pages.items()}
        hand = {name: world.by_hand(asked, skip) for name, (asked, _, skip) in pages.items()}
        for turn in range(options.rounds + 2):
            for name, (asked, cursor, skip) in pages.items():
                taken = timed(lambda a=asked, c=cursor: world.ours.list_sessions(**a, limit=PAGE, cursor=c))  # type: ignore[misc]
                # By hand it takes so long where there is no index that a few times must do.
                slow = turn % 10 == 0 and timed(lambda a=asked, s=skip: world.read_by_hand(a, s))  # type: ignore[misc]
                if turn >= 2:
                    ours[name].times.milliseconds.append(taken)
                if slow:
                    hand[name].times.milliseconds.append(slow)
        with_indexes, without = appends(world, 20 * options.rounds)
    return _report(ours, hand, deep_name, with_indexes, without)


def _report(ours: dict[str, Cost], hand: dict[str, Cost], deep: str, with_indexes: Samples, without: Samples) -> int:
    rows = []
    for name, cost in ours.items():
        for who, one in (("list_sessions", cost), ("by hand", hand[name])):
            times = [f"{one.times.p20:.2f}", f"{one.times.median:.2f}"]
            sorts = "in memory" if one.in_memory else "index"
            rows.append([name, who, f"{one.keys:,}", f"{one.documents:,}", sorts, f"{one.received:,}", *times])
    header = ["20 sessions", "read by", "keys", "documents", "sorted by", "bytes received", "p20 ms", "median ms"]
    support.print_table("Pages", header, rows)
    rows = [
        [name, f"{one.p20:.3f}", f"{one.median:.3f}"]
        for name, one in (("with the indexes for lists", with_indexes), ("without", without))
    ]
    support.print_table("Appends of one message", ["collection", "p20 ms", "median ms"], rows)
    targets = []
    for name, cost in ours.items():
        met = max(cost.keys, cost.documents) < KEY_LIMIT and not cost.in_memory
        text = f"{name}: fewer than {KEY_LIMIT} keys and documents, not sorted in memory"
        targets.append(Target(text, met, f"{cost.keys} and {cost.documents}", exact=True))
    most = max(cost.received for cost in ours.values()) / PAGE
    targets.append(Target(f"at most {BYTES_LIMIT} bytes a session", most <= BYTES_LIMIT, f"{most:.0f}", exact=True))
    ratio = ours[deep].times.p20 / ours["newest"].times.p20
    targets.append(Target("the deep page takes at most 1.5 times the first", ratio <= 1.5, f"{ratio:.2f}", exact=False))
    ratio = ours[deep].times.p20 / hand[deep].times.p20
    targets.append(Target("and at most half of skipping", ratio <= 0.5, f"{ratio:.2f}", exact=False))
    ratio = with_indexes.p20 / without.p20
    text = "an append takes at most 1.1 times what it takes without these indexes"
    targets.append(Target(text, ratio <= 1.1, f"{ratio:.3f}", exact=False))
    return support.print_targets(targets)


if __name__ == "__main__":
    sys.exit(main())
