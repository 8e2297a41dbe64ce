"""What a client's connections are doing, counted from the events of ``pymongo.monitoring``."""

from __future__ import annotations

import threading
import weakref
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, TypedDict, cast

import pymongo
from pymongo import MongoClient, monitoring
from pymongo.errors import PyMongoError

from .._model.limits import MAX_UNCOUNTED_EVENTS, VERSION_PATIENCE_SECONDS, VERSION_TIMEOUT_SECONDS
from .forks import each_in_child


class ServerPoolStats(TypedDict):
    """The connections to one server. ``maxPoolSize`` and ``minPoolSize`` apply to each server by itself."""

    open: int
    """Connections that exist: idle, in use, or being set up. Always ``created - closed``."""
    in_use: int
    """Connections that a command or cursor holds at this moment."""
    idle: int
    """Connections that are ready and that nobody holds."""
    connecting: int
    """Connections that are being set up (TCP, TLS, authentication)."""
    waiting: int
    """Threads that have asked for a connection and have none yet: they queue, or theirs is being set up.
    Above zero for longer than a moment: ``maxPoolSize`` is too small, or the server too slow."""
    created: int
    """Connections begun since the client was made, those that failed to come about included."""
    closed: int
    """Connections that ended, for any reason: idle too long, an error, the client's end, a failed set-up."""
    check_outs: int
    """Times a connection was handed out."""
    check_out_failures: int
    """Times none could be handed out: timeouts, failed connections, a closed client."""
    check_out_timeouts: int
    """Those failures that waited ``waitQueueTimeoutMS`` (or the operation's own deadline) in vain."""
    check_out_wait_total_ms: float
    """Milliseconds spent waiting for a connection, by all check-outs together, failed ones included."""
    check_out_wait_mean_ms: float | None
    """Milliseconds per check-out, failed ones included. ``None`` before the first."""
    check_out_wait_max_ms: float | None
    """Milliseconds of the longest wait. ``None`` before the first check-out ended."""
    clears: int
    """Times the driver gave up all connections at once after a network error or a failed heartbeat."""


class PoolConfiguration(TypedDict):
    """The options in force, whether given, from the connection string or by default. No credentials."""

    hosts: list[str]
    """``host:port`` (or the path of a socket) of every server the client knows of, sorted."""
    max_pool_size: int | None
    """``maxPoolSize``. ``None``: no limit."""
    min_pool_size: int
    """``minPoolSize``."""
    max_connecting: int
    """``maxConnecting``: connections that may be set up at the same time."""
    max_idle_time_ms: int | None
    """``maxIdleTimeMS``. ``None``: idle connections stay."""
    wait_queue_timeout_ms: int | None
    """``waitQueueTimeoutMS``. ``None``: no limit."""
    connect_timeout_ms: int | None
    """``connectTimeoutMS``. ``None``: no limit."""
    socket_timeout_ms: int | None
    """``socketTimeoutMS``. ``None``: no limit."""
    server_selection_timeout_ms: int
    """``serverSelectionTimeoutMS``."""
    timeout_ms: int | None
    """``timeoutMS``, the deadline of a whole operation. ``None``: not set."""
    retry_writes: bool
    """``retryWrites``."""
    retry_reads: bool
    """``retryReads``."""
    replica_set: str | None
    """``replicaSet``. ``None``: not set."""
    app_name: str | None
    """``appName``. ``None``: not set."""


class PoolStats(TypedDict):
    """The state of a client's connections at one moment, over all servers. Only values that JSON knows.

    The counts are ``None`` for a client that was made elsewhere and carries no ``PoolStatistics`` listener:
    PyMongo tells nobody else about its connections.
    """

    open: int | None
    """As in ``ServerPoolStats``, summed over the servers, like all that follow up to ``clears``."""
    in_use: int | None
    idle: int | None
    connecting: int | None
    waiting: int | None
    created: int | None
    closed: int | None
    check_outs: int | None
    check_out_failures: int | None
    check_out_timeouts: int | None
    check_out_wait_total_ms: float | None
    check_out_wait_mean_ms: float | None
    """Over all servers. ``None`` also before the first check-out."""
    check_out_wait_max_ms: float | None
    """Over all servers. ``None`` also before the first check-out ended."""
    clears: int | None
    servers: dict[str, ServerPoolStats] | None
    """The same by server, keyed ``host:port``, for every server that was ever connected to."""
    server_version: str | None
    """Such as ``"6.0.5"``. ``None`` as long as no server has been asked and has answered."""
    configuration: PoolConfiguration


class PoolStatistics(monitoring.ConnectionPoolListener):
    """Counts what happens to a client's connections.

    Clients made by this library carry one. For true figures about a client of your own, give it one as well::

        client = MongoClient(uri, event_listeners=[PoolStatistics()])
    """

    def __init__(self) -> None:
        self._reset_after_fork()
        _listeners.add(self)

    def read(self) -> dict[str, ServerPoolStats]:
        """Return the counts of this moment, keyed by server (``host:port``)."""
        with self._lock:
            self._count()
            return {_host(address): server.read() for address, server in self._servers.items()}

    def _told(self, event: Any) -> None:
        """Note an event. A command brings three: many counted at once cost less than each by itself."""
        self._uncounted.append(event)
        if len(self._uncounted) >= MAX_UNCOUNTED_EVENTS:
            with self._lock:
                self._count()

    pool_created = pool_ready = pool_cleared = pool_closed = _told
    connection_created = connection_ready = connection_closed = _told
    connection_check_out_started = connection_check_out_failed = _told
    connection_checked_out = connection_checked_in = _told

    def _count(self) -> None:
        with suppress(IndexError):
            while True:
                event = self._uncounted.popleft()
                self._servers[event.address].count(event)

    def _reset_after_fork(self) -> None:
        """Forget the parent's connections and threads: the child has none of them."""
        self._servers: defaultdict[tuple[str, int | None], _Server] = defaultdict(_Server)
        self._uncounted: deque[Any] = deque()
        # Re-entrant: a garbage collection while events are counted may close a cursor, which publishes an event.
        self._lock = threading.RLock()


# Stands in `_Server.holders` for a connection that is not ready yet.
_CONNECTING = -1


class _Server:
    """The counters of one server, by the names in `ServerPoolStats`. The caller holds the lock.

    PyMongo publishes events outside of its own locks, so those of two threads may arrive in another order
    than they happened: a connection is checked out by one thread before its check-in by another is told.
    Everything here is therefore counted so that the order does not matter. Every step takes constant time.
    """

    def __init__(self) -> None:
        # How many threads hold a connection, by its id. Two for the moment in which the check-out by the next
        # holder has been told and the check-in by the last has not.
        self.holders: dict[int, int] = {}
        self.longest_wait_ms = 0.0
        self.counts: Any = Counter()

    def count(self, event: Any) -> None:
        """Count what an event tells."""
        counts = self.counts
        match event:
            case monitoring.ConnectionCheckOutStartedEvent():
                counts["waiting"] += 1
            case monitoring.ConnectionCheckedOutEvent():
                counts["check_outs"] += 1
                self.waited(event.duration)
                self.hold(event.connection_id, 1)
            case monitoring.ConnectionCheckedInEvent():
                self.hold(event.connection_id, -1)
            case monitoring.ConnectionCheckOutFailedEvent():
                counts["check_out_failures"] += 1
                counts["check_out_timeouts"] += event.reason == monitoring.ConnectionCheckOutFailedReason.TIMEOUT
                self.waited(event.duration)
            case monitoring.ConnectionCreatedEvent():
                counts["created"] += 1
                counts["connecting"] += 1
                self.holders[event.connection_id] = _CONNECTING
            case monitoring.ConnectionReadyEvent():
                if self.holders.get(event.connection_id) == _CONNECTING:
                    counts["connecting"] -= 1
                    self.holders[event.connection_id] = 0
            case monitoring.ConnectionClosedEvent():
                self.drop(event.connection_id)
            case monitoring.PoolCreatedEvent():
                # A server that left the topology and is back numbers its connections from 1 again. What is still
                # held of the former pool is closed at its check-in.
                for connection_id in list(self.holders):
                    self.drop(connection_id)
            case monitoring.PoolClearedEvent():
                # The connections report their own ends, those in use when they are given back.
                counts["clears"] += 1

    def hold(self, connection_id: int, change: int) -> None:
        """Note that a connection has one holder more or less. One that has ended stays ended."""
        before = self.holders.get(connection_id)
        if before is not None:
            after = self.holders[connection_id] = before + change
            self.counts["in_use"] += (after > 0) - (before > 0)

    def drop(self, connection_id: int) -> None:
        """Note that a connection ended, perhaps while it was being set up or in use."""
        holders = self.holders.pop(connection_id, None)
        if holders is not None:
            self.counts["closed"] += 1
            self.counts["connecting"] -= holders == _CONNECTING
            self.counts["in_use"] -= holders > 0

    def waited(self, seconds: float | None) -> None:
        """Note the end of a wait."""
        self.counts["waiting"] -= 1
        if seconds is not None:
            self.counts["check_out_wait_total_ms"] += seconds * 1000
            self.longest_wait_ms = max(self.longest_wait_ms, seconds * 1000)

    def read(self) -> ServerPoolStats:
        """Return the counts, and what follows from them."""
        counts, existing = self.counts, len(self.holders)
        idle = existing - counts["in_use"] - counts["connecting"]
        return _total([{**counts, "open": existing, "idle": idle, "check_out_wait_max_ms": self.longest_wait_ms}])


class PoolReport:
    """Tells the state of one client's connections without waiting for the database.

    Args:
        client: The client. If a ``PoolStatistics`` is among its event listeners, the counts are known.

    Attributes:
        client: The client.
    """

    def __init__(self, client: MongoClient[dict[str, Any]]) -> None:
        self.client = client
        self._statistics = next(
            (item for item in client.options.event_listeners if isinstance(item, PoolStatistics)), None
        )
        self._version: str | None = None
        self._asking: threading.Thread | None = None

    def read(self) -> PoolStats:
        """Return the state of this moment.

        The first call that finds a connection idle also asks the server for its version, in a thread of its
        own, and waits at most 0.1 s for the answer. That question is in the counts of later calls.
        """
        servers = None if self._statistics is None else self._statistics.read()
        # The question must not join a queue for connections that this report is to tell of.
        connection_is_free = servers is None or any(server["idle"] for server in servers.values())
        version = self._server_version() if connection_is_free else self._version
        total = dict.fromkeys(ServerPoolStats.__annotations__) if servers is None else _total(list(servers.values()))
        found = {"servers": servers, "server_version": version, "configuration": configuration(self.client)}
        return cast("PoolStats", {**total, **found})

    def _server_version(self) -> str | None:
        # Asked only of a server that is known to be there: with none, selecting one would be a wait.
        if self._version is None and self.client.topology_description.has_readable_server():
            asking = self._asking
            if asking is None or not asking.is_alive():
                asking = threading.Thread(target=self._ask_version, name="mongodb-version", daemon=True)
                asking.start()
                self._asking = asking
            asking.join(VERSION_PATIENCE_SECONDS)
        return self._version

    def _ask_version(self) -> None:
        try:
            with pymongo.timeout(VERSION_TIMEOUT_SECONDS):
                self._version = str(self.client.server_info()["version"])
        except PyMongoError:
            pass  # The next call asks again.


def _total(servers: Iterable[Mapping[str, Any]]) -> ServerPoolStats:
    """Return the counts of some servers together. What a server has not counted is 0."""
    servers = list(servers)
    total: Any = {name: sum(server.get(name) or 0 for server in servers) for name in ServerPoolStats.__annotations__}
    waits = total["check_outs"] + total["check_out_failures"]
    total["check_out_wait_mean_ms"] = total["check_out_wait_total_ms"] / waits if waits else None
    longest = max((server["check_out_wait_max_ms"] or 0.0 for server in servers), default=0.0)
    total["check_out_wait_max_ms"] = longest if waits else None
    return cast("ServerPoolStats", total)


def configuration(client: MongoClient[dict[str, Any]]) -> PoolConfiguration:
    """Return the options that are in force for ``client``. Sends nothing."""
    options = client.options
    pool = options.pool_options
    return {
        "hosts": sorted(_host(address) for address in client.topology_description.server_descriptions()),
        "max_pool_size": int(pool.max_pool_size) if pool.max_pool_size else None,
        "min_pool_size": pool.min_pool_size,
        "max_connecting": pool.max_connecting,
        "max_idle_time_ms": _milliseconds(pool.max_idle_time_seconds),
        "wait_queue_timeout_ms": _milliseconds(pool.wait_queue_timeout),
        "connect_timeout_ms": _milliseconds(pool.connect_timeout),
        "socket_timeout_ms": _milliseconds(pool.socket_timeout),
        "server_selection_timeout_ms": round(options.server_selection_timeout * 1000),
        "timeout_ms": _milliseconds(options.timeout),
        "retry_writes": options.retry_writes,
        "retry_reads": options.retry_reads,
        "replica_set": options.replica_set_name,
        "app_name": pool.appname,
    }


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _host(address: tuple[str, int | None]) -> str:
    host, port = address
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_listeners: weakref.WeakSet[PoolStatistics] = each_in_child(lambda listener: listener._reset_after_fork())
