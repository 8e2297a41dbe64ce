"""Spans for OpenTelemetry, and calls to the observer of a factory. Neither happens unless it is asked for.

`enable` switches the spans on. OpenTelemetry is not imported before that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer, TracerProvider
    from pymongo.monitoring import CommandFailedEvent

__all__ = ["disable", "enable"]

P = ParamSpec("P")
T = TypeVar("T")
Attributes = Mapping[str, "str | int"]


class Observer(Protocol):
    """Counts what the managers of one factory do. Called from any thread; it must be quick and not raise."""

    def session_opened(self) -> None:
        """A manager has read its session, or begun it, for the first time."""

    def session_closed(self) -> None:
        """A manager that had opened its session was closed."""

    def tokens_used(self, usage: Mapping[str, int]) -> None:
        """An answer has used so many tokens, by Strands' names: ``inputTokens``, ``outputTokens`` and so on."""


def enable(tracer_provider: TracerProvider | None = None) -> None:
    """Record spans: ``mongodb_session.open``, ``.commit``, ``.archive``, and each command of PyMongo beneath.

    Call it once, before any ``MongoClient``, manager or factory is made: PyMongo tells only later clients' commands.
    Spans carry the agent's id and counts: no session id, which often names a person, and nothing of a conversation.

    Args:
        tracer_provider: Where the spans go; default: OpenTelemetry's global one. Those of PyMongo's commands go to the
            first one that was ever given, here or to PyMongo's instrumentation itself.

    Raises:
        ImportError: The extra ``telemetry`` is not installed.
    """
    global _tracer
    try:
        from opentelemetry.instrumentation.pymongo import PymongoInstrumentor
        from opentelemetry.trace import get_tracer
    except ImportError as error:
        raise ImportError(
            "spans need an extra: pip install 'mongodb-session-manager[telemetry]'", name=error.name
        ) from error
    _tracer = get_tracer("mongodb_session_manager", tracer_provider=tracer_provider)
    PymongoInstrumentor().instrument(
        tracer_provider=tracer_provider, capture_statement=False, failed_hook=_without_the_servers_words
    )


def disable() -> None:
    """Record no more spans."""
    global _tracer
    if _tracer is not None:
        from opentelemetry.instrumentation.pymongo import PymongoInstrumentor

        PymongoInstrumentor().uninstrument()
        _tracer = None


def traced(name: str, attributes: Attributes, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``call`` with the arguments behind it, within a span if spans are enabled; return what it returns."""
    if _tracer is None:
        return call(*args, **kwargs)
    from opentelemetry.trace import Status, StatusCode

    # What an exception says names the session.
    with _tracer.start_as_current_span(
        f"mongodb_session.{name}",
        attributes={f"mongodb_session.{key}": value for key, value in attributes.items()},
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            return call(*args, **kwargs)
        except BaseException as error:
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


_tracer: Tracer | None = None


def _without_the_servers_words(span: Any, event: CommandFailedEvent) -> None:
    """Replace the server's error message, which may quote a key, by the name of the error."""
    from opentelemetry.trace import Status, StatusCode

    failure: Mapping[str, Any] = event.failure
    span.set_status(Status(StatusCode.ERROR, str(failure.get("codeName") or failure.get("errtype") or "failed")))
