"""Servers, clients and databases for all tests.

Tests of behaviour take `server`, `client` or `database` and run once on a standalone server and once on a
replica set. Each server is started when the first test needs it and lives until the end of the run. Where
`MONGODB_URI` is set, that server is the only one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from pymongo import MongoClient
from support.chromium import MISSING
from support.databases import FurnishedDatabases
from support.wire_proxy import WireProxy

from mongodb_session_manager.local import LocalMongoDB

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from pymongo.database import Database

# No deadlines: a machine that is busy is not a failure of the code under test.
settings.register_profile("dev", max_examples=100, deadline=None)
settings.register_profile("ci", max_examples=1000, deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

SERVERS = ["external"] if os.environ.get("MONGODB_URI") else ["standalone", "replica_set"]
# `failCommand`, see support/failpoints.py; and what has expired is removed at once.
PARAMETERS = {"enableTestCommands": 1, "ttlMonitorSleepSecs": 1}


# Where a node that is killed loses nothing of what it wrote, and an fsync costs nothing: half of a server's time.
MEMORY = Path("/dev/shm")
MEMORY_NEEDED = 12 * 2**30  # For three workers with four servers each; half of it is theirs wherever the files are.


def memory_is_plenty() -> bool:
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < MEMORY_NEEDED:
        return False
    figures = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(figures["MemAvailable"].split()[0]) * 1024 > MEMORY_NEEDED


@contextlib.contextmanager
def running(**options: Any) -> Iterator[LocalMongoDB]:
    """A server with its files in memory, if there is plenty."""
    with pytest.MonkeyPatch.context() as patch:
        if memory_is_plenty():
            patch.setenv("TMPDIR", str(MEMORY))
        server = LocalMongoDB(parameters=PARAMETERS, **options)
        server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def standalone() -> Iterator[LocalMongoDB]:
    """A standalone server."""
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def replica_set() -> Iterator[LocalMongoDB]:
    """A replica set of three nodes. A test that ends a node starts one of its own instead."""
    with running(replica_set=True) as server:
        yield server


@pytest.fixture(scope="session", params=SERVERS)
def server(request: pytest.FixtureRequest) -> LocalMongoDB:
    """Each kind of server in turn."""
    found: LocalMongoDB = request.getfixturevalue("replica_set" if request.param == "replica_set" else "standalone")
    return found


@pytest.fixture(scope="session")
def client(server: LocalMongoDB) -> Iterator[MongoClient[dict[str, Any]]]:
    """A plain client of `server`, for what a test arranges and checks behind the library's back."""
    plain: MongoClient[dict[str, Any]]
    with MongoClient(server.uri, appname="tests") as plain:
        yield plain


@pytest.fixture(scope="session")
def furnished(client: MongoClient[dict[str, Any]]) -> FurnishedDatabases:
    """Databases of `server` that have their collections and indexes already."""
    return FurnishedDatabases(client)


@pytest.fixture
def database_name(
    request: pytest.FixtureRequest,
    server: LocalMongoDB,
    client: MongoClient[dict[str, Any]],
    furnished: FurnishedDatabases,
) -> Iterator[str]:
    """The name of a database that is this test's own, without any document.

    On a standalone server it is new. On a replica set, where a new collection costs three nodes more than most tests,
    it has the collections of a session already; nothing but a test that is marked `new_database` can tell.
    """
    elsewhere = {"standalone", "replica_set"} & set(request.fixturenames)
    if server.kind == "replica_set" and request.node.get_closest_marker("new_database") is None and not elsewhere:
        with furnished.lend() as name:
            yield name
    else:
        name = f"test_{uuid.uuid4().hex}"
        yield name
        client.drop_database(name)


@pytest.fixture
def database(client: MongoClient[dict[str, Any]], database_name: str) -> Database[dict[str, Any]]:
    """This test's own database."""
    return client[database_name]


@pytest.fixture
def proxies(client: MongoClient[dict[str, Any]]) -> Iterator[Callable[[], WireProxy]]:
    """Makes proxies of the server that accepts writes."""
    client.admin.command("ping")
    assert client.address is not None
    address = client.address
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(WireProxy(*address))


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marks mean that are only of use here."""
    config.addinivalue_line("markers", "new_database: needs a database without collections on a replica set as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not to be run on both kinds of server."""
    left_out = [
        item
        for item in items
        if item.get_closest_marker("one_server")
        and getattr(item, "callspec", None) is not None
        and item.callspec.params.get("server") == "replica_set"  # type: ignore[attr-defined]
    ]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Say loudly, and last, that the tests in a browser did not run, where there is no browser."""
    yield
    missed = [report for report in terminalreporter.stats.get("skipped", ()) if MISSING in str(report.longrepr)]
    if missed:
        terminalreporter.write_sep("!", f"{len(missed)} tests: {MISSING}", red=True, bold=True)
