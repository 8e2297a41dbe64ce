"""Connection pooling: the shared client's options are the caller's, its figures true; it survives threads and forks."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from bson.codec_options import TypeRegistry
from bson.son import SON
from pymongo import AsyncMongoClient, CursorType, MongoClient, ReadPreference, WriteConcern
from pymongo.driver_info import DriverInfo
from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    InvalidURI,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)
from pymongo.monitoring import (
    ConnectionCheckedInEvent,
    ConnectionCheckedOutEvent,
    ConnectionCheckOutStartedEvent,
    ConnectionClosedEvent,
    ConnectionCreatedEvent,
    ConnectionReadyEvent,
)
from pymongo.read_concern import ReadConcern
from pymongo.server_api import ServerApi
from support.commands import CommandRecorder
from support.failpoints import fail_command
from support.waiting import eventually

from mongodb_session_manager._client.clients import check_client, open_client
from mongodb_session_manager._client.pool_statistics import PoolReport, PoolStatistics
from mongodb_session_manager._model.limits import MAX_UNCOUNTED_EVENTS
from mongodb_session_manager.mongodb_connection_pool import MongoDBConnectionPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def _no_pool_is_left_behind() -> Iterator[None]:
    MongoDBConnectionPool.close()
    yield
    MongoDBConnectionPool.close()


@pytest.fixture
def nobody() -> str:
    """The address of a server that is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


class Holders:
    """Threads that each hold one connection: they wait on the server for a document, until one is inserted."""

    def __init__(self, watched: MongoClient[Any], beside: MongoClient[Any], database_name: str) -> None:
        # Of a capped collection, a tailable cursor waits on the server for the next document.
        beside[database_name].create_collection("signal", capped=True, size=4096)
        self._signal = beside[database_name]["signal"]
        self._signal.insert_one({"n": 0})
        self._watched = watched[database_name]["signal"]
        self.threads: list[threading.Thread] = []
        self.errors: list[Exception] = []

    def start(self, count: int) -> None:
        for _ in range(count):
            self.threads.append(threading.Thread(target=self._hold))
            self.threads[-1].start()

    def release(self) -> None:
        self._signal.insert_one({"n": 1})
        for thread in self.threads:
            thread.join()

    def _hold(self) -> None:
        try:
            with self._watched.find(cursor_type=CursorType.TAILABLE_AWAIT).max_await_time_ms(60_000) as cursor:
                next(cursor)
                next(cursor)
        except Exception as error:
            self.errors.append(error)


@contextmanager
def holding(count: int, watched: MongoClient[Any], beside: MongoClient[Any], database_name: str) -> Iterator[Holders]:
    holders = Holders(watched, beside, database_name)
    holders.start(count)
    try:
        eventually(lambda: holders.errors or of(watched, "in_use", "waiting") == {"in_use": count, "waiting": 0})
        assert holders.errors == []
        yield holders
    finally:
        holders.release()


def of(client: MongoClient[Any], *names: str) -> dict[str, Any]:
    """Some of the counts, summed over the servers, without asking any server for anything."""
    [statistics] = [item for item in client.options.event_listeners if isinstance(item, PoolStatistics)]
    servers = [dict(server) for server in statistics.read().values()]
    return {name: sum(server[name] for server in servers) for name in names}


# --- options


def test_before_initialisation_the_error_says_what_to_call() -> None:
    with pytest.raises(RuntimeError, match=r"MongoDBConnectionPool\.initialize\("):
        MongoDBConnectionPool.get_client()
    with pytest.raises(RuntimeError, match=r"MongoDBConnectionPool\.initialize\("):
        MongoDBConnectionPool.get_pool_stats()


def test_the_defaults_are_those_of_the_documentation(nobody: str) -> None:
    client = MongoDBConnectionPool.initialize(f"mongodb://{nobody}/", connect=False)

    assert client.options.pool_options.max_pool_size == 100
    assert client.options.pool_options.min_pool_size == 10
    assert client.options.pool_options.max_idle_time_seconds == 30
    assert client.options.pool_options.wait_queue_timeout == 5
    assert client.options.retry_writes is True
    assert client.options.retry_reads is True


@pytest.mark.parametrize(
    ("query", "options", "expected"),
    [
        ("", {"maxPoolSize": 7}, (7, 7)),
        ("", {"maxpoolsize": 7}, (7, 7)),
        ("", {"maxPoolSize": 50}, (50, 10)),
        ("", {"maxPoolSize": 0}, (0, 0)),
        ("", {"maxPoolSize": None}, (None, 10)),
        ("?maxPoolSize=7", {}, (7, 7)),
        ("?MAXPOOLSIZE=7", {}, (7, 7)),
        ("?appName=x&maxPoolSize=7", {}, (7, 7)),
        ("?appName=x;maxPoolSize=7", {}, (7, 7)),
        ("?maxPoolSize=7", {"maxPoolSize": 8}, (8, 8)),
        ("?maxPoolSize=7&minPoolSize=3", {}, (7, 3)),
        ("?minPoolSize=3", {"maxPoolSize": 5}, (5, 3)),
        ("?minPoolSize=3", {"minPoolSize": 4}, (100, 4)),
        ("?minPoolSize=0", {}, (100, 0)),
    ],
)
def test_pool_sizes_that_were_asked_for_win_over_the_defaults(
    nobody: str, query: str, options: dict[str, Any], expected: tuple[int | None, int]
) -> None:
    with open_client(f"mongodb://{nobody}/{query}", {"connect": False, **options}, shared=True) as client:
        pool = client.options.pool_options
        assert (pool.max_pool_size, pool.min_pool_size) == expected


def test_a_minimum_that_was_asked_for_is_never_changed_silently(nobody: str) -> None:
    with pytest.raises(ValueError, match="minPoolSize"):
        open_client(f"mongodb://{nobody}/", {"maxPoolSize": 5, "minPoolSize": 6, "connect": False}, shared=True)


def test_options_in_the_connection_string_win_over_the_defaults(nobody: str) -> None:
    uri = f"mongodb://{nobody}/?retryWrites=false&retryReads=false&maxIdleTimeMS=1000&waitQueueTimeoutMS=2000"
    with open_client(uri, {"connect": False}, shared=True) as client:
        assert client.options.retry_writes is False
        assert client.options.retry_reads is False
        assert client.options.pool_options.max_idle_time_seconds == 1
        assert client.options.pool_options.wait_queue_timeout == 2


REGISTRY = TypeRegistry()
DRIVER = DriverInfo("chat", "1.0")
API = ServerApi("1")

PASSED_THROUGH: list[tuple[dict[str, Any], Callable[[MongoClient[Any]], Any], Any]] = [
    ({"appname": "chat"}, lambda c: c.options.pool_options.appname, "chat"),
    ({"compressors": "zlib"}, lambda c: "compressors=['zlib']" in repr(c), True),
    ({"connectTimeoutMS": 1234}, lambda c: c.options.pool_options.connect_timeout, 1.234),
    ({"directConnection": True}, lambda c: c.options.direct_connection, True),
    ({"document_class": SON}, lambda c: c.codec_options.document_class, SON),
    ({"driver": DRIVER}, lambda c: c.options.pool_options.driver, DRIVER),
    ({"heartbeatFrequencyMS": 1234}, lambda c: c.options.heartbeat_frequency, 1.234),
    ({"journal": True}, lambda c: c.write_concern.document["j"], True),
    ({"loadBalanced": True}, lambda c: c.options.load_balanced, True),
    ({"localThresholdMS": 99}, lambda c: c.options.local_threshold_ms, 99),
    ({"maxConnecting": 5}, lambda c: c.options.pool_options.max_connecting, 5),
    ({"readConcernLevel": "majority"}, lambda c: c.read_concern, ReadConcern("majority")),
    ({"readPreference": "secondary"}, lambda c: c.read_preference, ReadPreference.SECONDARY),
    ({"replicaSet": "rs0"}, lambda c: c.options.replica_set_name, "rs0"),
    ({"server_api": API}, lambda c: c.options.pool_options.server_api, API),
    ({"serverMonitoringMode": "poll"}, lambda c: c.options.server_monitoring_mode, "poll"),
    ({"serverSelectionTimeoutMS": 1234}, lambda c: c.options.server_selection_timeout, 1.234),
    ({"server_selector": min}, lambda c: c.options.server_selector, min),
    ({"socketTimeoutMS": 1234}, lambda c: c.options.pool_options.socket_timeout, 1.234),
    ({"timeoutMS": 1234}, lambda c: c.options.timeout, 1.234),
    ({"tls": True}, lambda c: "tls=True" in repr(c), True),
    (
        {"tls": True, "tlsAllowInvalidHostnames": True},
        lambda c: c.options.pool_options.tls_allow_invalid_hostnames,
        True,
    ),
    ({"type_registry": REGISTRY}, lambda c: c.codec_options.type_registry, REGISTRY),
    ({"tz_aware": True}, lambda c: c.codec_options.tz_aware, True),
    (
        {"unicode_decode_error_handler": "replace"},
        lambda c: c.codec_options.unicode_decode_error_handler,
        "replace",
    ),
    ({"uuidRepresentation": "standard"}, lambda c: c.codec_options.uuid_representation, 4),
    ({"w": "majority", "wTimeoutMS": 9}, lambda c: c.write_concern, WriteConcern("majority", wtimeout=9)),
]


@pytest.mark.parametrize(
    ("options", "read", "expected"), PASSED_THROUGH, ids=[",".join(case[0]) for case in PASSED_THROUGH]
)
def test_no_option_of_mongoclient_is_dropped(
    nobody: str, options: dict[str, Any], read: Callable[[MongoClient[Any]], Any], expected: object
) -> None:
    client = MongoDBConnectionPool.initialize(f"mongodb://{nobody}/", connect=False, **options)

    assert read(client) == expected


@pytest.mark.slow
def test_user_name_and_password_are_used_for_authentication(server: Any) -> None:
    MongoDBConnectionPool.initialize(server.uri, username="nobody", password="wrong", serverSelectionTimeoutMS=5000)

    with pytest.raises(Exception, match="Authentication failed"):
        MongoDBConnectionPool.get_client().admin.command("ping")


def test_an_unknown_option_is_an_error_and_leaves_the_pool_uninitialised(nobody: str) -> None:
    with pytest.raises(ConfigurationError, match="maxPoolSiez"):
        MongoDBConnectionPool.initialize(f"mongodb://{nobody}/", maxPoolSiez=5)
    with pytest.raises(RuntimeError, match="not initialised"):
        MongoDBConnectionPool.get_client()


@pytest.mark.slow
def test_listeners_of_the_caller_hear_commands_beside_ours(server: Any) -> None:
    recorder = CommandRecorder()
    listeners = [recorder]
    client = MongoDBConnectionPool.initialize(server.uri, event_listeners=listeners)

    client.admin.command("ping")

    assert recorder in client.options.event_listeners
    assert MongoDBConnectionPool.get_pool_stats()["check_outs"] == 1
    assert listeners == [recorder]


@pytest.mark.parametrize(("query", "options"), [("?w=0", {}), ("", {"w": 0}), ("", {"W": 0})])
def test_unacknowledged_writes_are_refused_since_lost_messages_would_go_unnoticed(
    nobody: str, query: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="w=0"):
        MongoDBConnectionPool.initialize(f"mongodb://{nobody}/{query}", **options)
    with pytest.raises(RuntimeError, match="not initialised"):
        MongoDBConnectionPool.get_client()


def test_w_of_the_caller_wins_over_w_0_in_the_connection_string(nobody: str) -> None:
    with open_client(f"mongodb://{nobody}/?w=0", {"w": 1, "connect": False}, shared=True) as client:
        assert client.write_concern == WriteConcern(1)


def test_an_async_client_is_refused_with_the_reason(nobody: str) -> None:
    client: AsyncMongoClient[Any] = AsyncMongoClient(f"mongodb://{nobody}/", connect=False)

    with pytest.raises(TypeError, match="event loop"):
        check_client(client)
    with pytest.raises(TypeError, match="event loop"):
        MongoDBConnectionPool.initialize(client)  # type: ignore[arg-type]


def test_something_that_is_no_connection_string_is_refused(nobody: str) -> None:
    with (
        MongoClient(f"mongodb://{nobody}/", connect=False) as client,
        pytest.raises(TypeError, match="client="),
    ):
        MongoDBConnectionPool.initialize(client)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="NoneType"):
        MongoDBConnectionPool.initialize(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="str"):
        check_client(f"mongodb://{nobody}/")


# --- one client per process


def test_the_same_arguments_give_the_same_client(nobody: str) -> None:
    client = MongoDBConnectionPool.initialize(f"mongodb://{nobody}/", maxPoolSize=5, connect=False)

    assert MongoDBConnectionPool.initialize(f"mongodb://{nobody}/", maxpoolsize=5, connect=False) is client
    assert MongoDBConnectionPool.get_client() is client


def test_other_arguments_neither_close_the_client_in_use_nor_hand_it_out(server: Any) -> None:
    client = MongoDBConnectionPool.initialize(server.uri)

    with pytest.raises(RuntimeError, match=r"MongoDBConnectionPool\.close\(\)"):
        MongoDBConnectionPool.initialize(server.uri, maxPoolSize=5)

    assert client.admin.command("ping")["ok"] == 1
    assert MongoDBConnectionPool.get_client() is client


def test_after_close_the_pool_can_be_initialised_with_other_arguments(nobody: str) -> None:
    first = MongoDBConnectionPool.initialize(f"mongodb://{nobody}/", connect=False)
    MongoDBConnectionPool.close()
    MongoDBConnectionPool.close()

    with pytest.raises(RuntimeError, match="initialize"):
        MongoDBConnectionPool.get_client()
    second = MongoDBConnectionPool.initialize(f"mongodb://{nobody}/", maxPoolSize=5, connect=False)

    assert second is not first
    assert MongoDBConnectionPool.get_client() is second


def test_threads_that_initialise_at_once_share_one_client(server: Any) -> None:
    together = threading.Barrier(16)
    clients: list[MongoClient[Any]] = []

    def initialise() -> None:
        together.wait()
        clients.append(MongoDBConnectionPool.initialize(server.uri, minPoolSize=0))

    threads = [threading.Thread(target=initialise) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(clients) == 16
    assert all(client is clients[0] for client in clients)


# --- figures


@pytest.mark.slow
def test_connections_in_use_are_counted_while_they_are_in_use(
    server: Any, client: MongoClient[Any], database_name: str
) -> None:
    watched = MongoDBConnectionPool.initialize(server.uri, minPoolSize=0)

    with holding(8, watched, client, database_name) as holders:
        busy = MongoDBConnectionPool.get_pool_stats()

    assert holders.errors == []
    assert busy["open"] == busy["in_use"] + busy["idle"]  # type: ignore[operator]
    assert busy["waiting"] == 0
    done = MongoDBConnectionPool.get_pool_stats()
    assert (done["in_use"], done["waiting"], done["open"]) == (0, 0, done["idle"])
    assert done["created"] >= 8  # type: ignore[operator]


def test_threads_that_wait_for_a_connection_are_counted_and_so_is_their_wait(
    server: Any, client: MongoClient[Any], database_name: str
) -> None:
    watched = MongoDBConnectionPool.initialize(server.uri, maxPoolSize=1, minPoolSize=0, waitQueueTimeoutMS=60_000)

    with holding(1, watched, client, database_name):
        waiters = [threading.Thread(target=watched.admin.command, args=("ping",)) for _ in range(3)]
        for waiter in waiters:
            waiter.start()
        eventually(lambda: of(watched, "in_use", "waiting") == {"in_use": 1, "waiting": 3})
        before = MongoDBConnectionPool.get_pool_stats()
    for waiter in waiters:
        waiter.join()

    after = MongoDBConnectionPool.get_pool_stats()
    assert after["check_outs"] - before["check_outs"] >= 3  # type: ignore[operator]
    assert (after["waiting"], after["in_use"], after["open"]) == (0, 0, 1)
    assert after["check_out_failures"] == 0
    assert after["check_out_wait_max_ms"] > 0  # type: ignore[operator]
    # Three waiters, of which none waited longer than the longest.
    grown = after["check_out_wait_total_ms"] - before["check_out_wait_total_ms"]  # type: ignore[operator]
    assert after["check_out_wait_max_ms"] <= grown  # type: ignore[operator]
    assert after["check_out_wait_mean_ms"] == pytest.approx(
        after["check_out_wait_total_ms"] / after["check_outs"]  # type: ignore[operator]
    )


def test_a_wait_in_vain_is_counted_as_a_failure_with_its_time(
    server: Any, client: MongoClient[Any], database_name: str
) -> None:
    watched = MongoDBConnectionPool.initialize(server.uri, maxPoolSize=1, waitQueueTimeoutMS=50)

    with holding(1, watched, client, database_name):
        with pytest.raises(WaitQueueTimeoutError):
            watched.admin.command("ping")
        stats = MongoDBConnectionPool.get_pool_stats()

    assert (stats["check_out_failures"], stats["check_out_timeouts"], stats["waiting"]) == (1, 1, 0)
    assert stats["check_out_wait_max_ms"] >= 50  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.topology
def test_many_threads_leave_figures_that_add_up(server: Any) -> None:
    client = MongoDBConnectionPool.initialize(server.uri, maxPoolSize=4, minPoolSize=0, waitQueueTimeoutMS=60_000)

    def ping() -> None:
        for _ in range(50):
            client.admin.command("ping")

    threads = [threading.Thread(target=ping) for _ in range(16)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen = MongoDBConnectionPool.get_pool_stats()
        assert 0 <= seen["in_use"] <= seen["open"] <= 4  # type: ignore[operator]
        assert seen["open"] == seen["in_use"] + seen["idle"] + seen["connecting"]  # type: ignore[operator]
        assert 0 <= seen["waiting"] <= 17  # type: ignore[operator]
        threads[0].join(0.01)
        threads[-1].join(0.01)
    for thread in threads:
        thread.join()

    stats = MongoDBConnectionPool.get_pool_stats()
    assert (stats["in_use"], stats["waiting"], stats["check_out_failures"]) == (0, 0, 0)
    assert stats["check_outs"] >= 800  # type: ignore[operator]
    assert stats["open"] == stats["created"] - stats["closed"]  # type: ignore[operator]


@pytest.mark.topology
def test_a_connection_that_breaks_in_use_is_no_longer_counted_as_open(server: Any, client: MongoClient[Any]) -> None:
    watched = MongoDBConnectionPool.initialize(server.uri, minPoolSize=0, appname="breaks", retryReads=False)
    watched.admin.command("ping")

    with (
        fail_command(client, "find", app_name="breaks", close_connection=True, times=1),
        pytest.raises(AutoReconnect),
    ):
        watched["any"]["any"].find_one()

    assert of(watched, "in_use", "open", "clears", "closed") == {
        "in_use": 0,
        "open": 0,
        "clears": 1,
        "closed": 1,
    }
    watched.admin.command("ping")
    assert of(watched, "in_use", "open", "created") == {"in_use": 0, "open": 1, "created": 2}


@pytest.mark.slow
@pytest.mark.topology
def test_closing_while_a_connection_is_in_use_ends_at_zero(
    server: Any, client: MongoClient[Any], database_name: str
) -> None:
    watched = open_client(server.uri, {"minPoolSize": 3}, shared=True)
    report = PoolReport(watched)

    with holding(1, watched, client, database_name):
        watched.close()
        assert report.read()["in_use"] == 1

    # The driver's own thread may have been about to open one more, which it closes at once.
    eventually(lambda: report.read()["open"] == 0)
    stats = report.read()
    assert (stats["in_use"], stats["idle"], stats["connecting"], stats["waiting"]) == (0, 0, 0, 0)
    assert stats["created"] == stats["closed"]


def test_the_order_in_which_two_threads_report_does_not_matter() -> None:
    statistics = PoolStatistics()
    address = ("db1", 27017)
    statistics.connection_check_out_started(ConnectionCheckOutStartedEvent(address))
    statistics.connection_created(ConnectionCreatedEvent(address, 1))
    statistics.connection_ready(ConnectionReadyEvent(address, 1, 0.001))
    statistics.connection_checked_out(ConnectionCheckedOutEvent(address, 1, 0.002))
    # The first thread has given the connection back; the second, which got it, is heard first.
    statistics.connection_check_out_started(ConnectionCheckOutStartedEvent(address))
    statistics.connection_checked_out(ConnectionCheckedOutEvent(address, 1, 0.004))
    statistics.connection_checked_in(ConnectionCheckedInEvent(address, 1))

    figures = statistics.read()["db1:27017"]
    assert (figures["in_use"], figures["idle"], figures["waiting"]) == (1, 0, 0)
    assert figures["check_out_wait_total_ms"] == pytest.approx(6)
    assert figures["check_out_wait_mean_ms"] == pytest.approx(3)
    assert figures["check_out_wait_max_ms"] == pytest.approx(4)

    # It breaks, and its check-in is heard after its end.
    statistics.connection_closed(ConnectionClosedEvent(address, 1, "error"))
    statistics.connection_checked_in(ConnectionCheckedInEvent(address, 1))
    figures = statistics.read()["db1:27017"]
    assert (figures["open"], figures["in_use"], figures["idle"]) == (0, 0, 0)
    assert (figures["created"], figures["closed"]) == (1, 1)


def test_servers_are_counted_apart_and_connections_that_fail_to_come_about_leave_nothing() -> None:
    statistics = PoolStatistics()
    for host in ("db1", "db2"):
        statistics.connection_created(ConnectionCreatedEvent((host, 27017), 1))
    statistics.connection_ready(ConnectionReadyEvent(("db1", 27017), 1, 0.001))
    assert {host: figures["connecting"] for host, figures in statistics.read().items()} == {
        "db1:27017": 0,
        "db2:27017": 1,
    }

    statistics.connection_closed(ConnectionClosedEvent(("db2", 27017), 1, "error"))

    servers = statistics.read()
    assert (servers["db1:27017"]["open"], servers["db1:27017"]["idle"]) == (1, 1)
    assert (servers["db2:27017"]["open"], servers["db2:27017"]["connecting"]) == (0, 0)


@pytest.mark.topology
def test_the_figures_are_json_and_tell_version_and_options_in_force(server: Any) -> None:
    client = MongoDBConnectionPool.initialize(server.uri, maxPoolSize=7, appname="chat", socketTimeoutMS=9000)
    client.admin.command("ping")

    eventually(lambda: MongoDBConnectionPool.get_pool_stats()["server_version"] is not None)

    stats = MongoDBConnectionPool.get_pool_stats()
    assert json.loads(json.dumps(stats)) == stats
    assert stats["server_version"] == client.server_info()["version"]
    assert stats["configuration"]["max_pool_size"] == 7
    assert stats["configuration"]["min_pool_size"] == 7
    assert stats["configuration"]["max_idle_time_ms"] == 30_000
    assert stats["configuration"]["wait_queue_timeout_ms"] == 5_000
    assert stats["configuration"]["socket_timeout_ms"] == 9_000
    assert stats["configuration"]["app_name"] == "chat"
    assert set(stats["servers"]) <= set(stats["configuration"]["hosts"])  # type: ignore[arg-type]


def test_the_version_is_asked_for_once_however_often_a_dashboard_looks(server: Any) -> None:
    recorder = CommandRecorder()
    client = MongoDBConnectionPool.initialize(server.uri, event_listeners=[recorder])
    client.admin.command("ping")
    eventually(lambda: MongoDBConnectionPool.get_pool_stats()["server_version"] is not None)
    before = MongoDBConnectionPool.get_pool_stats()["check_outs"]

    for _ in range(10):
        MongoDBConnectionPool.get_pool_stats()

    assert MongoDBConnectionPool.get_pool_stats()["check_outs"] == before


@pytest.mark.slow
def test_asking_for_the_version_never_joins_the_queue_for_connections(
    server: Any, client: MongoClient[Any], database_name: str
) -> None:
    watched = MongoDBConnectionPool.initialize(server.uri, maxPoolSize=1, minPoolSize=0)

    with holding(1, watched, client, database_name):
        assert MongoDBConnectionPool.get_pool_stats()["server_version"] is None
        assert of(watched, "in_use", "waiting") == {"in_use": 1, "waiting": 0}

    eventually(lambda: MongoDBConnectionPool.get_pool_stats()["server_version"] is not None)


def test_figures_do_not_wait_for_a_server_that_is_away(nobody: str) -> None:
    MongoDBConnectionPool.initialize(f"mongodb://{nobody}/")  # Selecting a server would take 30 s.

    began = time.monotonic()
    stats = MongoDBConnectionPool.get_pool_stats()

    assert time.monotonic() - began < 20
    assert stats["server_version"] is None
    assert stats["open"] == 0
    assert stats["configuration"]["hosts"] == [nobody]


def test_of_a_client_made_elsewhere_nothing_is_invented(server: Any) -> None:
    with MongoClient(server.uri, maxPoolSize=9) as client:
        client.admin.command("ping")
        stats = PoolReport(client).read()

    unknown = {name for name, value in stats.items() if value is None} - {"server_version"}
    assert unknown == set(stats) - {"server_version", "configuration"}
    assert stats["configuration"]["max_pool_size"] == 9


def test_a_client_made_elsewhere_can_be_given_our_listener(server: Any) -> None:
    with MongoClient(server.uri, event_listeners=[PoolStatistics()]) as client:
        client.admin.command("ping")

        assert of(client, "open", "check_outs") == {"open": 1, "check_outs": 1}


# --- credentials


def test_no_error_log_or_figure_shows_a_credential(nobody: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    uri = f"mongodb://lovelace:s3cret@{nobody}/"
    client = MongoDBConnectionPool.initialize(uri, serverSelectionTimeoutMS=50)

    with pytest.raises(ServerSelectionTimeoutError) as away:
        client.admin.command("ping")
    with pytest.raises(RuntimeError) as other:
        MongoDBConnectionPool.initialize(uri, password="s3cret2")

    shown = f"{away.value!r} {other.value!r} {client!r} {MongoDBConnectionPool.get_pool_stats()} {caplog.text}"
    assert nobody in shown
    assert "s3cret" not in shown
    assert "lovelace" not in shown


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://ada:s3c/ret@localhost:1/db",
        "mongodb://ada:12/s3cret@localhost:1/db x",
        "mongodb://ada:s3cret?x@localhost:1/",
        "mongodb://ada:12/s3 cret?a=b@localhost:1/",
        "mongodb://ada:s3cret@ret@localhost:1/",
        "mongodb://ada:s3cret:ret@localhost:1/",
        "ada:s3cret@localhost:1",
        "mongo://ada:s3cret@localhost:1",
    ],
)
def test_a_password_that_was_not_encoded_is_not_quoted_in_the_error(uri: str) -> None:
    with pytest.raises((InvalidURI, ValueError)) as failure:
        MongoDBConnectionPool.initialize(uri, connect=False)

    error: BaseException | None = failure.value
    while error is not None:
        assert "s3" not in str(error)
        assert "ret" not in str(error).replace("retry", "")
        error = error.__cause__ or error.__context__


# --- fork


@pytest.mark.slow
def test_a_forked_child_gets_a_client_of_its_own_even_if_the_fork_hits_a_busy_moment(server: Any) -> None:
    script = textwrap.dedent(
        """
        import os, sys, threading, warnings
        from mongodb_session_manager.mongodb_connection_pool import MongoDBConnectionPool as Pool

        warnings.filterwarnings("error", message="MongoClient opened before fork")
        parent = Pool.initialize(sys.argv[1], minPoolSize=0, maxPoolSize=4)
        over = threading.Event()

        def work():
            while not over.is_set():
                parent.admin.command("ping")
                Pool.get_pool_stats()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of every fork beside threads.
            child = os.fork()
            if child == 0:
                try:
                    client = Pool.get_client()
                    assert client is not parent
                    assert Pool.initialize(sys.argv[1], minPoolSize=0, maxPoolSize=4) is client
                    assert client.options.pool_options.max_pool_size == 4
                    client.admin.command("ping")
                    stats = Pool.get_pool_stats()
                    assert (stats["check_outs"], stats["in_use"], stats["waiting"]) == (1, 0, 0), stats
                    Pool.close()
                    os._exit(0)
                except BaseException as error:
                    print(repr(error), file=sys.stderr, flush=True)
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        over.set()
        for thread in threads:
            thread.join()
        assert parent is Pool.get_client()
        parent.admin.command("ping")
        Pool.close()
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, server.uri], capture_output=True, text=True, timeout=120, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_lock_that_was_held_at_the_fork_does_not_stop_the_child(server: Any) -> None:
    script = textwrap.dedent(
        """
        import os, sys, threading, traceback, warnings
        from mongodb_session_manager._client.pool_statistics import PoolStatistics
        from mongodb_session_manager.mongodb_connection_pool import MongoDBConnectionPool as Pool

        warnings.simplefilter("ignore")
        inherited = Pool.initialize(sys.argv[1], minPoolSize=0)
        inherited.admin.command("ping")
        [statistics] = [item for item in inherited.options.event_listeners if isinstance(item, PoolStatistics)]
        held, over = threading.Event(), threading.Event()

        def hold():
            with Pool._lock, Pool._owned._lock, statistics._lock:
                held.set()
                over.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        child = os.fork()
        if child == 0:
            try:
                assert Pool.initialize(sys.argv[1], minPoolSize=0) is Pool.get_client() is not inherited
                Pool.get_client().admin.command("ping")
                # Managers made before the fork still hold the inherited client.
                inherited.admin.command("ping")
                [figures] = [server for server in statistics.read().values() if server["check_outs"]]
                assert (figures["check_outs"], figures["open"], figures["in_use"]) == (1, 1, 0), figures
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        over.set()
        holder.join()
        Pool.close()
        sys.exit(exit_code)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, server.uri], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_what_nobody_asks_for_is_counted_all_the_same_and_fills_no_memory() -> None:
    statistics, address = PoolStatistics(), ("db.example", 27017)
    statistics.connection_created(ConnectionCreatedEvent(address, 1))
    statistics.connection_ready(ConnectionReadyEvent(address, 1, 0.01))
    for _ in range(MAX_UNCOUNTED_EVENTS):
        statistics.connection_check_out_started(ConnectionCheckOutStartedEvent(address))
        statistics.connection_checked_out(ConnectionCheckedOutEvent(address, 1, 0.25))
        statistics.connection_checked_in(ConnectionCheckedInEvent(address, 1))
        assert len(statistics._uncounted) < MAX_UNCOUNTED_EVENTS
    found = statistics.read()["db.example:27017"]
    assert (found["check_outs"], found["waiting"], found["in_use"], found["idle"]) == (MAX_UNCOUNTED_EVENTS, 0, 0, 1)
    assert found["check_out_wait_total_ms"] == pytest.approx(250 * MAX_UNCOUNTED_EVENTS)
