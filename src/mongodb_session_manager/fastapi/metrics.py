"""What Prometheus is told: commands as PyMongo reports them, sessions, tokens, and the pool when it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from ..mongodb_session_factory import MongoDBSessionManagerFactory

# From a command beside the server to one that waits for an election.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class SessionMetrics(CommandListener):
    """The figures of one factory, in a Prometheus registry of their own.

    ``session_lifespan`` makes one. Where the factory borrows a client of yours, make it yourself, and give it to the
    client and to the router::

        metrics = SessionMetrics()
        client = MongoClient(uri, event_listeners=[metrics])
        app.include_router(create_router(metrics=metrics))

    Attributes:
        registry: For metrics of your own beside them.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._commands = Histogram(
            "mongodb_session_command_duration_seconds",
            "How long commands took, by name and outcome (ok, failed).",
            ["command", "outcome"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._opened = Counter(
            "mongodb_session_opened", "Sessions that were opened: one per manager.", registry=self.registry
        )
        self._closed = Counter("mongodb_session_closed", "Of these, those that were closed.", registry=self.registry)
        self._tokens = Counter(
            "mongodb_session_tokens", "Tokens that answers have used.", ["direction"], registry=self.registry
        )
        for direction in _DIRECTIONS.values():
            self._tokens.labels(direction)
        self._pool = _Pool()
        self.registry.register(self._pool)

    def watch(self, factory: MongoDBSessionManagerFactory) -> None:
        """Count what the managers of a factory do from now on, and tell the state of its pool when asked.

        One factory at a time, and a factory has one observer: another that was there is told no more.
        """
        factory._observer = self
        self._pool.factory = factory

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return what Prometheus reads and its media type, OpenMetrics if ``accept``, a header, asks for that.

        The first call may wait for 0.1 s; see ``factory.get_connection_stats``.
        """
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type

    def session_opened(self) -> None:
        """Count a session."""
        self._opened.inc()

    def session_closed(self) -> None:
        """Count a session that ended."""
        self._closed.inc()

    def tokens_used(self, usage: Mapping[str, int]) -> None:
        """Count the tokens of an answer."""
        for name, direction in _DIRECTIONS.items():
            if tokens := usage.get(name):
                self._tokens.labels(direction).inc(tokens)

    def started(self, event: CommandStartedEvent) -> None:
        """Nothing to count yet."""

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Count a command that was answered."""
        self._commands.labels(event.command_name, "ok").observe(event.duration_micros / 1e6)

    def failed(self, event: CommandFailedEvent) -> None:
        """Count a command that failed, or whose answer never came."""
        self._commands.labels(event.command_name, "failed").observe(event.duration_micros / 1e6)


# What Strands calls them, and what a label calls them. Cached tokens are a part of the input for some providers.
_DIRECTIONS = {
    "inputTokens": "input",
    "outputTokens": "output",
    "cacheReadInputTokens": "cache_read",
    "cacheWriteInputTokens": "cache_write",
}

_Family = Callable[..., "GaugeMetricFamily | CounterMetricFamily"]

# By the key of `ServerPoolStats`, and the limit; milliseconds are told as seconds.
_POOL: dict[str, tuple[_Family, str, str]] = {
    "open": (GaugeMetricFamily, "connections", "Connections that exist."),
    "in_use": (GaugeMetricFamily, "connections_in_use", "Connections that a command holds."),
    "idle": (GaugeMetricFamily, "connections_idle", "Connections that nobody holds."),
    "connecting": (GaugeMetricFamily, "connections_connecting", "Connections that are being set up."),
    "waiting": (GaugeMetricFamily, "waiting", "Threads that wait for a connection."),
    "created": (CounterMetricFamily, "connections_created", "Connections begun."),
    "closed": (CounterMetricFamily, "connections_closed", "Connections that ended."),
    "check_outs": (CounterMetricFamily, "check_outs", "Times a connection was handed out."),
    "check_out_failures": (CounterMetricFamily, "check_out_failures", "Times none could be handed out."),
    "check_out_timeouts": (CounterMetricFamily, "check_out_timeouts", "Of these, those that waited in vain."),
    "check_out_wait_total_ms": (CounterMetricFamily, "check_out_wait_seconds", "Time spent waiting for connections."),
    "clears": (CounterMetricFamily, "clears", "Times all connections were given up after an error."),
    "limit": (GaugeMetricFamily, "limit", "maxPoolSize."),
}


class _Pool(Collector):
    """Reads the pool's state when Prometheus asks, so that nothing is counted twice."""

    factory: MongoDBSessionManagerFactory | None = None

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Any] = {
            key: family(f"mongodb_session_pool_{name}", says, labels=["server"])
            for key, (family, name, says) in _POOL.items()
        }
        if self.factory is not None:
            stats = self.factory.get_connection_stats()
            limit = stats["configuration"]["max_pool_size"]
            for server, counts in (stats["servers"] or {}).items():
                told: dict[str, Any] = {**counts, "limit": limit}
                for key, family in families.items():
                    if (value := told[key]) is not None:
                        family.add_metric([server], value / 1000 if key.endswith("_ms") else value)
        return families.values()
