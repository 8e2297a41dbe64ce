"""Performance benchmarking: each benchmark starts and explains itself, and what it promises to count is counted.

Times are never tested: machines differ. What a turn sends, in commands and bytes, is exact and tested in
`test_command_counts.py`; what a page of sessions reads, in `test_listing.py`.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from strands.agent.conversation_manager import SlidingWindowConversationManager
from support.application import Application
from support.histories import SESSIONS

from mongodb_session_manager import MongoDBSessionManagerFactory

ROOT = Path(__file__).parents[2]
BENCHMARKS = sorted(path for path in ROOT.glob("benchmarks/*.py") if path.name != "support.py")

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


def talk(app: Application, session_id: str, turns: int, **options: Any) -> None:
    """A request that opens a session, takes so many turns and is gone."""
    with app.manager(session_id, **options) as manager:
        window = SlidingWindowConversationManager(window_size=10)
        agent = app.agent(manager, *["x" * 350] * turns, conversation_manager=window)
        for _ in range(turns):
            agent("y" * 350)


def sessions_of_two_lengths(app: Application) -> Iterator[str]:
    for session_id, turns in (("short", 8), ("long", 60)):
        talk(app, session_id, turns, archive_after_messages=40, archive_block=20)
        yield session_id


def test_a_turn_of_a_long_session_sends_and_reads_what_one_of_a_short_session_does(app: Application) -> None:
    sent = {}
    for session_id in sessions_of_two_lengths(app):
        with app.recorder.recording() as sent[session_id]:
            talk(app, session_id, 1)

    short, long = sent["short"], sent["long"]
    assert short.names == long.names == ["find", "update", "update"]
    # Not to the byte: counters have more digits, and what is removed from the window is a number, too.
    assert long.request_bytes == pytest.approx(short.request_bytes, abs=200)
    assert long.reply_bytes == pytest.approx(short.reply_bytes, abs=1000)


def test_a_summary_of_a_long_session_reads_what_one_of_a_short_session_does(app: Application) -> None:
    read = {}
    for session_id in sessions_of_two_lengths(app):
        manager = app.manager(session_id)
        with app.recorder.recording() as commands:
            manager.get_metrics_summary()
        assert commands.names == ["find"]
        read[session_id] = commands.reply_bytes
    # The measured latencies may lie in some buckets more.
    assert read["long"] == pytest.approx(read["short"], abs=400)


@pytest.mark.topology
def test_a_hundred_managers_of_a_factory_send_nothing_and_share_the_connections(app: Application) -> None:
    talk(app, "s", turns=1)
    with MongoDBSessionManagerFactory(app.uri, app.database.name, SESSIONS, minPoolSize=0) as factory:
        for n in range(100):
            factory.create_session_manager(f"s{n}")
        assert factory.get_connection_stats()["check_outs"] == 0
        for _ in range(100):
            assert factory.create_session_manager("s").get_message_count("a") == 2
        stats = factory.get_connection_stats()
    # One after the other: the pool has no reason to open a second connection to the server that is asked.
    assert (stats["check_outs"], stats["created"]) == (100, 1)
