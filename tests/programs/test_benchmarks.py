"""Performance benchmarking: each benchmark starts and explains itself, and what it promises to count is counted.

Times are never tested: machines differ. What a turn sends, in commands and bytes, is exact and tested in
`test_command_counts.py`; what a page of sessions reads, in `test_listing.py`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from offline_model import OfflineScriptedModel
from pymongo import MongoClient
from strands import Agent
from strands.agent.conversation_manager import SlidingWindowConversationManager
from support.commands import CommandRecorder, Commands

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionManagerFactory

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
BENCHMARKS = sorted(path for path in ROOT.glob("benchmarks/*.py") if path.name != "support.py")
COLLECTION = "sessions"

# The stores that ours is compared with come with the extra `benchmarks`, which the tests do not need.
rivals_are_installed = all(
    importlib.util.find_spec(name) for name in ("strands_mongodb_storage", "strands_session_mongodb")
)


# --- the scripts


@pytest.mark.skipif(not rivals_are_installed, reason="needs the extra `benchmarks`")
@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda path: path.name)
def test_a_benchmark_imports_what_it_needs_and_explains_itself(script: Path) -> None:
    finished = subprocess.run(
        [sys.executable, str(script), "--help"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(f"usage: {script.name}")


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda path: path.name)
def test_a_benchmark_is_explained_and_is_run_by_make(script: Path) -> None:
    assert f"## `{script.name}`" in (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    assert f"benchmarks/{script.name}" in (ROOT / "Makefile").read_text("utf-8")


# --- what they count: the same at any length


class Service:
    """A recorded client, and sessions of a given length on it."""

    def __init__(self, client: MongoClient[dict[str, Any]], recorder: CommandRecorder, database_name: str) -> None:
        self.client = client
        self.recorder = recorder
        self.place = {"database_name": database_name, "collection_name": COLLECTION}

    def agent(self, manager: MongoDBSessionManager) -> Agent:
        return Agent(
            agent_id="a",
            model=OfflineScriptedModel(lambda _: "x" * 350),
            session_manager=manager,
            conversation_manager=SlidingWindowConversationManager(window_size=10),
            callback_handler=None,
        )

    def manager(self, session_id: str, **options: Any) -> MongoDBSessionManager:
        return MongoDBSessionManager(session_id, client=self.client, **self.place, **options)

    def session_of(self, session_id: str, turns: int) -> None:
        with self.manager(session_id, archive_after_messages=40, archive_block=20) as manager:
            agent = self.agent(manager)
            for _ in range(turns):
                agent("y" * 350)

    def next_turn(self, session_id: str) -> Commands:
        """What a request sends that opens the session, takes one turn and is gone."""
        with self.recorder.recording() as commands:
            self.agent(self.manager(session_id))("y" * 350)
        return commands


@pytest.fixture
def service(server: Any, database_name: str) -> Iterator[Service]:
    recorder = CommandRecorder()
    client: MongoClient[dict[str, Any]]
    with MongoClient(server.uri, event_listeners=[recorder]) as client:
        yield Service(client, recorder, database_name)


def test_a_turn_of_a_long_session_sends_and_reads_what_one_of_a_short_session_does(service: Service) -> None:
    service.session_of("short", turns=8)
    service.session_of("long", turns=60)

    short, long = service.next_turn("short"), service.next_turn("long")

    assert short.names == long.names == ["find", "update", "update"]
    # Not to the byte: counters have more digits, and what is removed from the window is a number, too.
    assert long.request_bytes == pytest.approx(short.request_bytes, abs=200)
    assert long.reply_bytes == pytest.approx(short.reply_bytes, abs=1000)


def test_a_summary_of_a_long_session_reads_what_one_of_a_short_session_does(service: Service) -> None:
    service.session_of("short", turns=8)
    service.session_of("long", turns=60)

    read = {}
    for session_id in ("short", "long"):
        manager = service.manager(session_id)
        with service.recorder.recording() as commands:
            manager.get_metrics_summary()
        assert commands.names == ["find"]
        read[session_id] = commands.reply_bytes
    # The measured latencies may lie in some buckets more.
    assert read["long"] == pytest.approx(read["short"], abs=400)


@pytest.mark.topology
def test_a_hundred_managers_of_a_factory_send_nothing_and_share_the_connections(server: Any, service: Service) -> None:
    with MongoDBSessionManagerFactory(server.uri, **service.place, minPoolSize=0) as factory:
        service.session_of("s", turns=1)
        for n in range(100):
            factory.create_session_manager(f"s{n}")
        assert factory.get_connection_stats()["check_outs"] == 0
        for _ in range(100):
            assert factory.create_session_manager("s").get_message_count("a") == 2
        stats = factory.get_connection_stats()
    assert stats["check_outs"] == 100
    # One after the other: the pool has no reason to open a second connection to the server that is asked.
    assert max(pool["open"] for pool in (stats["servers"] or {}).values()) == 1


@pytest.mark.topology
def test_a_request_with_a_client_of_its_own_opens_connections_that_a_factory_saves(
    server: Any, service: Service
) -> None:
    service.session_of("s", turns=1)
    opened = 0
    for _ in range(3):
        with MongoDBSessionManagerFactory(server.uri, **service.place, minPoolSize=0) as one_request:
            one_request.create_session_manager("s").get_message_count("a")
            opened += one_request.get_connection_stats()["created"] or 0
    with MongoDBSessionManagerFactory(server.uri, **service.place, minPoolSize=0) as factory:
        for _ in range(3):
            factory.create_session_manager("s").get_message_count("a")
        shared = factory.get_connection_stats()["created"]
    assert (opened, shared) == (3, 1)
