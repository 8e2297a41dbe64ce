"""Connection pooling: the shared client's options are the caller's, its figures true; it survives threads and forks."""

import json
import logging
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import pytest
from bson.codec_options import TypeRegistry
from bson.son import SON
from pymongo import AsyncMongoClient, CursorType, MongoClient, ReadPreference, WriteConcern
from pymongo.database import Database
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
from support.application import NOWHERE
from support.commands import CommandRecorder
from support.failpoints import fail_command
from support.running import run_script
from support.waiting import eventually

from mongodb_session_manager._client.clients import open_client
from mongodb_session_manager._client.pool_statistics import PoolReport, PoolStatistics
from mongodb_session_manager._model.limits import MAX_UNCOUNTED_EVENTS
from mongodb_session_manager.mongodb_connection_pool import MongoDBConnectionPool


@pytest.fixture(autouse=True)
def _no_pool_is_left_behind() -> Iterator[None]:
    MongoDBConnectionPool.close()
    yield
    MongoDBConnectionPool.close()


@contextmanager
def holding(count: int, watched: MongoClient[Any], database: Database[Any]) -> Iterator[list[Future[None]]]:
    """So many threads each hold a connection, and wait on the server for a document until the block ends."""
    # Of a capped collection, a tailable cursor waits on the server for the next document.
    signal = database.create_collection("signal", capped=True, size=4096)
    signal.insert_one({"n": 0})

    def hold() -> None:
        waiting = watched[database.name]["signal"].find(cursor_type=CursorType.TAILABLE_AWAIT)
        with waiting.max_await_time_ms(60_000) as cursor:
            next(cursor)
            next(cursor)

    with ThreadPoolExecutor(count) as threads:
        held = [threads.submit(hold) for _ in range(count)]
        try:
            eventually(lambda: of(watched, "in_use", "waiting") == {"in_use": count, "waiting": 0})
            yield held
        finally:
            signal.insert_one({"n": 1})


def of(client: MongoClient[Any], *names: str) -> dict[str, Any]:
    """Some of the counts, summed over the servers, without asking any server for anything."""
    [statistics] = [item for item in client.options.event_listeners if isinstance(item, PoolStatistics)]
    servers = [dict(server) for server in statistics.read().values()]
    return {name: sum(server[name] for server in servers) for name in names}


def stats() -> dict[str, Any]:
    return dict(MongoDBConnectionPool.get_pool_stats())


# --- options


def test_before_initialisation_the_error_says_what_to_call() -> None:
    for ask in (MongoDBConnectionPool.get_client, MongoDBConnectionPool.get_pool_stats):
        with pytest.raises(RuntimeError, match=r"MongoDBConnectionPool\.initialize\("):
            ask()


def test_the_defaults_are_those_of_the_documentation() -> None:
    client = MongoDBConnectionPool.initialize(NOWHERE, connect=False)

    pool = client.options.pool_options
    assert (pool.max_pool_size, pool.min_pool_size) == (100, 10)
    assert (pool.max_idle_time_seconds, pool.wait_queue_timeout) == (30, 5)
    assert client.options.retry_writes is client.options.retry_reads is True


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
    query: str, options: dict[str, Any], expected: tuple[int | None, int]
) -> None:
    with open_client(NOWHERE + query, {"connect": False, **options}, shared=True) as client:
        pool = client.options.pool_options
        assert (pool.max_pool_size, pool.min_pool_size) == expected


def test_a_minimum_that_was_asked_for_is_never_changed_silently() -> None:
    with pytest.raises(ValueError, match="minPoolSize"):
        open_client(NOWHERE, {"maxPoolSize": 5, "minPoolSize": 6, "connect": False}, shared=True)


def test_options_in_the_connection_string_win_over_the_defaults() -> None:
    uri = f"{NOWHERE}?retryWrites=false&retryReads=false&maxIdleTimeMS=1000&waitQueueTimeoutMS=2000"
    with open_client(uri, {"connect": False}, shared=True) as client:
        assert client.options.retry_writes is client.options.retry_reads is False
        pool = client.options.pool_options
        assert (pool.max_idle_time_seconds, pool.wait_queue_timeout) == (1, 2)


REGISTRY = TypeRegistry()
DRIVER = DriverInfo("chat", "1.0")
API = ServerApi("1")

# What is read of the client, for each.
PASSED_THROUGH: list[tuple[dict[str, Any], str, Any]] = [
    ({"appname": "chat"}, "options.pool_options.appname", "chat"),
    ({"compressors": "zlib"}, "options.pool_options._compression_settings.compressors", ["zlib"]),
    ({"connectTimeoutMS": 1234}, "options.pool_options.connect_timeout", 1.234),
    ({"directConnection": True}, "options.direct_connection", True),
    ({"document_class": SON}, "codec_options.document_class", SON),
    ({"driver": DRIVER}, "options.pool_options.driver", DRIVER),
    ({"heartbeatFrequencyMS": 1234}, "options.heartbeat_frequency", 1.234),
    ({"journal": True}, "write_concern.document", {"j": True}),
    ({"loadBalanced": True}, "options.load_balanced", True),
    ({"localThresholdMS": 99}, "options.local_threshold_ms", 99),
    ({"maxConnecting": 5}, "options.pool_options.max_connecting", 5),
    ({"readConcernLevel": "majority"}, "read_concern", ReadConcern("majority")),
    ({"readPreference": "secondary"}, "read_preference", ReadPreference.SECONDARY),
    ({"replicaSet": "rs0"}, "options.replica_set_name", "rs0"),
    ({"server_api": API}, "options.pool_options.server_api", API),
    ({"serverMonitoringMode": "poll"}, "options.server_monitoring_mode", "poll"),
    ({"serverSelectionTimeoutMS": 1234}, "options.server_selection_timeout", 1.234),
    ({"server_selector": min}, "options.server_selector", min),
    ({"socketTimeoutMS": 1234}, "options.pool_options.socket_timeout", 1.234),
    ({"timeoutMS": 1234}, "options.timeout", 1.234),
    ({"tls": True}, "options.pool_options._ssl_context.verify_mode", ssl.CERT_REQUIRED),
    ({"tls": True, "tlsAllowInvalidHostnames": True}, "options.pool_options.tls_allow_invalid_hostnames", True),
    ({"type_registry": REGISTRY}, "codec_options.type_registry", REGISTRY),
    ({"tz_aware": True}, "codec_options.tz_aware", True),
    ({"unicode_decode_error_handler": "replace"}, "codec_options.unicode_decode_error_handler", "replace"),
    ({"uuidRepresentation": "standard"}, "codec_options.uuid_representation", 4),
    ({"w": "majority", "wTimeoutMS": 9}, "write_concern", WriteConcern("majority", wtimeout=9)),
]


@pytest.mark.parametrize(
    ("options", "name", "expected"), PASSED_THROUGH, ids=[",".join(case[0]) for case in PASSED_THROUGH]
)
def test_no_option_of_mongoclient_is_dropped(options: dict[str, Any], name: str, expected: object) -> None:
    client = MongoDBConnectionPool.initialize(NOWHERE, connect=False, **options)

    assert attrgetter(name)(client) == expected


@pytest.mark.slow
def test_user_name_and_password_are_used_for_authentication(server: Any) -> None:
    MongoDBConnectionPool.initialize(server.uri, username="nobody", password="wrong", serverSelectionTimeoutMS=5000)

    with pytest.raises(Exception, match="Authentication failed"):
        MongoDBConnectionPool.get_client().admin.command("ping")


def test_an_unknown_option_is_an_error_and_leaves_the_pool_uninitialised() -> None:
    with pytest.raises(ConfigurationError, match="maxPoolSiez"):
        MongoDBConnectionPool.initialize(NOWHERE, maxPoolSiez=5)
    with pytest.raises(RuntimeError, match="not initialised"):
        MongoDBConnectionPool.get_client()


@pytest.mark.slow
def test_listeners_of_the_caller_hear_commands_beside_ours(server: Any) -> None:
    recorder = CommandRecorder()
    listeners = [recorder]
    client = MongoDBConnectionPool.initialize(server.uri, event_listeners=listeners)

    client.admin.command("ping")

    assert recorder in client.options.event_listeners
    assert stats()["check_outs"] == 1
    assert listeners == [recorder]


@pytest.mark.parametrize(("query", "options"), [("?w=0", {}), ("", {"w": 0}), ("", {"W": 0})])
def test_unacknowledged_writes_are_refused_since_lost_messages_would_go_unnoticed(
    query: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="w=0"):
        MongoDBConnectionPool.initialize(NOWHERE + query, **options)
    with pytest.raises(RuntimeError, match="not initialised"):
        MongoDBConnectionPool.get_client()


def test_w_of_the_caller_wins_over_w_0_in_the_connection_string() -> None:
    with open_client(NOWHERE + "?w=0", {"w": 1, "connect": False}, shared=True) as client:
        assert client.write_concern == WriteConcern(1)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (AsyncMongoClient(NOWHERE, connect=False), "event loop"),
        (MongoClient(NOWHERE, connect=False), "client="),
        (None, "NoneType"),
    ],
)
def test_what_is_no_connection_string_is_refused_with_the_reason(given: Any, why: str) -> None:
    with pytest.raises(TypeError, match=why):
        MongoDBConnectionPool.initialize(given)


# --- one client per process


def test_the_same_arguments_give_the_same_client() -> None:
    client = MongoDBConnectionPool.initialize(NOWHERE, maxPoolSize=5, connect=False)

    assert MongoDBConnectionPool.initialize(NOWHERE, maxpoolsize=5, connect=False) is client
    assert MongoDBConnectionPool.get_client() is client


@pytest.mark.slow
def test_other_arguments_neither_close_the_client_in_use_nor_hand_it_out(server: Any) -> None:
    client = MongoDBConnectionPool.initialize(server.uri)

    with pytest.raises(RuntimeError, match=r"MongoDBConnectionPool\.close\(\)"):
        MongoDBConnectionPool.initialize(server.uri, maxPoolSize=5)

    assert client.admin.command("ping")["ok"] == 1
    assert MongoDBConnectionPool.get_client() is client


def test_after_close_the_pool_can_be_initialised_with_other_arguments() -> None:
    first = MongoDBConnectionPool.initialize(NOWHERE, connect=False)
    MongoDBConnectionPool.close()
    MongoDBConnectionPool.close()

    with pytest.raises(RuntimeError, match="initialize"):
        MongoDBConnectionPool.get_client()
    second = MongoDBConnectionPool.initialize(NOWHERE, maxPoolSize=5, connect=False)

    assert second is not first
    assert MongoDBConnectionPool.get_client() is second


def test_threads_that_initialise_at_once_share_one_client(server: Any) -> None:
    together = threading.Barrier(16)

    def initialise(_: int) -> MongoClient[Any]:
        together.wait()
        return MongoDBConnectionPool.initialize(server.uri, minPoolSize=0)

    with ThreadPoolExecutor(16) as threads:
        clients = list(threads.map(initialise, range(16)))
    assert all(client is clients[0] for client in clients)


# --- figures


@pytest.mark.slow
def test_connections_in_use_are_counted_while_they_are_in_use(server: Any, database: Database[Any]) -> None:
    watched = MongoDBConnectionPool.initialize(server.uri, minPoolSize=0)

    with holding(8, watched, database) as held:
        busy = stats()

    assert [one.exception() for one in held] == [None] * 8
    assert busy["open"] == busy["in_use"] + busy["idle"]
    assert busy["waiting"] == 0
    done = stats()
    assert (done["in_use"], done["waiting"], done["open"]) == (0, 0, done["idle"])
    assert done["created"] >= 8


@pytest.mark.slow
def test_threads_that_wait_for_a_connection_are_counted_and_so_is_their_wait(
    server: Any, database: Database[Any]
) -> None:
    watched = MongoDBConnectionPool.initialize(server.uri, maxPoolSize=1, minPoolSize=0, waitQueueTimeoutMS=60_000)

    with ThreadPoolExecutor(3) as threads, holding(1, watched, database):
        for _ in range(3):
            threads.submit(watched.admin.command, "ping")
        eventually(lambda: of(watched, "in_use", "waiting") == {"in_use": 1, "waiting": 3})
        before = stats()

    after = stats()
    assert after["check_outs"] - before["check_outs"] >= 3
    assert (after["waiting"], after["in_use"], after["open"]) == (0, 0, 1)
    assert after["check_out_failures"] == 0
    assert after["check_out_wait_max_ms"] > 0
    # Three waiters, of which none waited longer than the longest.
    grown = after["check_out_wait_total_ms"] - before["check_out_wait_total_ms"]
    assert after["check_out_wait_max_ms"] <= grown
    assert after["check_out_wait_mean_ms"] == pytest.approx(after["check_out_wait_total_ms"] / after["check_outs"])


@pytest.mark.slow
def test_a_wait_in_vain_is_counted_as_a_failure_with_its_time(server: Any, database: Database[Any]) -> None:
    watched = MongoDBConnectionPool.initialize(server.uri, maxPoolSize=1, waitQueueTimeoutMS=50)

    with holding(1, watched, database):
        with pytest.raises(WaitQueueTimeoutError):
            watched.admin.command("ping")
        seen = stats()

    assert (seen["check_out_failures"], seen["check_out_timeouts"], seen["waiting"]) == (1, 1, 0)
    assert seen["check_out_wait_max_ms"] >= 50


@pytest.mark.slow
@pytest.mark.topology
def test_many_threads_leave_figures_that_add_up(server: Any) -> None:
    client = MongoDBConnectionPool.initialize(server.uri, maxPoolSize=4, minPoolSize=0, waitQueueTimeoutMS=60_000)

    def ping() -> None:
        for _ in range(50):
            client.admin.command("ping")

    with ThreadPoolExecutor(16) as threads:
        pinging = [threads.submit(ping) for _ in range(16)]
        while wait(pinging, timeout=0.02).not_done:
            seen = stats()
            assert 0 <= seen["in_use"] <= seen["open"] <= 4
            assert seen["open"] == seen["in_use"] + seen["idle"] + seen["connecting"]
            assert 0 <= seen["waiting"] <= 17

    done = stats()
    assert (done["in_use"], done["waiting"], done["check_out_failures"]) == (0, 0, 0)
    assert done["check_outs"] >= 800
    assert done["open"] == done["created"] - done["closed"]


@pytest.mark.slow
@pytest.mark.topology
def test_a_connection_that_breaks_in_use_is_no_longer_counted_as_open(server: Any, client: MongoClient[Any]) -> None:
    watched = MongoDBConnectionPool.initialize(server.uri, minPoolSize=0, appname="breaks", retryReads=False)
    watched.admin.command("ping")

    with (
        fail_command(client, "find", app_name="breaks", close_connection=True, times=1),
        pytest.raises(AutoReconnect),
    ):
        watched["any"]["any"].find_one()

    assert of(watched, "in_use", "open", "clears", "closed") == {"in_use": 0, "open": 0, "clears": 1, "closed": 1}
    watched.admin.command("ping")
    assert of(watched, "in_use", "open", "created") == {"in_use": 0, "open": 1, "created": 2}


@pytest.mark.slow
@pytest.mark.topology
def test_closing_while_a_connection_is_in_use_ends_at_zero(server: Any, database: Database[Any]) -> None:
    watched = open_client(server.uri, {"minPoolSize": 3}, shared=True)
    report = PoolReport(watched)

    with holding(1, watched, database):
        watched.close()
        assert report.read()["in_use"] == 1

    # The driver's own thread may have been about to open one more, which it closes at once.
    eventually(lambda: report.read()["open"] == 0)
    last = report.read()
    assert (last["in_use"], last["idle"], last["connecting"], last["waiting"]) == (0, 0, 0, 0)
    assert last["created"] == last["closed"]


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

    eventually(lambda: stats()["server_version"] is not None)

    seen = stats()
    assert json.loads(json.dumps(seen)) == seen
    assert seen["server_version"] == client.server_info()["version"]
    expected = {"max_pool_size": 7, "min_pool_size": 7, "max_idle_time_ms": 30_000, "wait_queue_timeout_ms": 5_000}
    expected |= {"socket_timeout_ms": 9_000, "app_name": "chat"}
    assert {name: seen["configuration"][name] for name in expected} == expected
    assert set(seen["servers"]) <= set(seen["configuration"]["hosts"])


def test_the_version_is_asked_for_once_however_often_a_dashboard_looks(server: Any) -> None:
    MongoDBConnectionPool.initialize(server.uri).admin.command("ping")
    eventually(lambda: stats()["server_version"] is not None)
    before = stats()["check_outs"]

    assert [stats()["check_outs"] for _ in range(10)] == [before] * 10


@pytest.mark.slow
def test_asking_for_the_version_never_joins_the_queue_for_connections(server: Any, database: Database[Any]) -> None:
    watched = MongoDBConnectionPool.initialize(server.uri, maxPoolSize=1, minPoolSize=0)

    with holding(1, watched, database):
        assert stats()["server_version"] is None
        assert of(watched, "in_use", "waiting") == {"in_use": 1, "waiting": 0}

    eventually(lambda: stats()["server_version"] is not None)


def test_figures_do_not_wait_for_a_server_that_is_away() -> None:
    MongoDBConnectionPool.initialize(NOWHERE)  # Selecting a server would take 30 s.

    began = time.monotonic()
    seen = stats()

    assert time.monotonic() - began < 20
    assert (seen["server_version"], seen["open"]) == (None, 0)
    assert seen["configuration"]["hosts"] == ["127.0.0.1:9"]


# --- credentials


@pytest.mark.slow
def test_no_error_log_or_figure_shows_a_credential(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    uri = "mongodb://lovelace:s3cret@127.0.0.1:9/"
    client = MongoDBConnectionPool.initialize(uri, serverSelectionTimeoutMS=50)

    with pytest.raises(ServerSelectionTimeoutError) as away:
        client.admin.command("ping")
    with pytest.raises(RuntimeError) as other:
        MongoDBConnectionPool.initialize(uri, password="s3cret2")

    shown = f"{away.value!r} {other.value!r} {client!r} {stats()} {caplog.text}"
    assert "127.0.0.1:9" in shown
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
    script = """
        import sys, threading, warnings
        from mongodb_session_manager.mongodb_connection_pool import MongoDBConnectionPool as Pool
        from support.running import in_child

        warnings.filterwarnings("error", message="MongoClient opened before fork")
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of every fork beside threads.
        parent = Pool.initialize(sys.argv[1], minPoolSize=0, maxPoolSize=4)
        over = threading.Event()

        def work():
            while not over.is_set():
                parent.admin.command("ping")
                Pool.get_pool_stats()

        def child():
            client = Pool.get_client()
            assert client is not parent
            assert Pool.initialize(sys.argv[1], minPoolSize=0, maxPoolSize=4) is client
            assert client.options.pool_options.max_pool_size == 4
            client.admin.command("ping")
            stats = Pool.get_pool_stats()
            assert (stats["check_outs"], stats["in_use"], stats["waiting"]) == (1, 0, 0), stats
            Pool.close()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert [in_child(child) for _ in range(5)] == [0] * 5
        over.set()
        for thread in threads:
            thread.join()
        assert parent is Pool.get_client()
        parent.admin.command("ping")
        Pool.close()
        """
    run_script(script, server.uri)


@pytest.mark.slow
def test_a_lock_that_was_held_at_the_fork_does_not_stop_the_child(server: Any) -> None:
    script = """
        import sys, threading, warnings
        from mongodb_session_manager._client.pool_statistics import PoolStatistics
        from mongodb_session_manager.mongodb_connection_pool import MongoDBConnectionPool as Pool
        from support.running import in_child

        warnings.simplefilter("ignore")
        inherited = Pool.initialize(sys.argv[1], minPoolSize=0)
        inherited.admin.command("ping")
        [statistics] = [item for item in inherited.options.event_listeners if isinstance(item, PoolStatistics)]
        held, over = threading.Event(), threading.Event()

        def hold():
            with Pool._lock, Pool._owned._lock, statistics._lock:
                held.set()
                over.wait()

        def child():
            assert Pool.initialize(sys.argv[1], minPoolSize=0) is Pool.get_client() is not inherited
            Pool.get_client().admin.command("ping")
            # Managers made before the fork still hold the inherited client.
            inherited.admin.command("ping")
            [figures] = [server for server in statistics.read().values() if server["check_outs"]]
            assert (figures["check_outs"], figures["open"], figures["in_use"]) == (1, 1, 0), figures

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        exit_code = in_child(child)
        over.set()
        holder.join()
        Pool.close()
        sys.exit(exit_code)
        """
    run_script(script, server.uri)


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
