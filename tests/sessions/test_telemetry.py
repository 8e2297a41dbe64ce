"""Spans, for those who ask for them: what the library did, with PyMongo's commands beneath, and nobody's words."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from pymongo.errors import PyMongoError
from support.failpoints import fail_command
from support.histories import talker

from mongodb_session_manager import MongoDBSessionManagerFactory, SessionExistsError, SessionNotFoundError, telemetry
from mongodb_session_manager.local import LocalMongoDB

SECRET = "the code is swordfish"
SESSION_ID = "customer-alice"
APP_NAME = "traced"


# One for the whole run: PyMongo's instrumentation keeps its first provider.
EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    EXPORTER.clear()
    telemetry.enable(PROVIDER)
    yield EXPORTER
    telemetry.disable()


@pytest.fixture
def factory(
    spans: InMemorySpanExporter, server: LocalMongoDB, database_name: str
) -> Iterator[MongoDBSessionManagerFactory]:
    with MongoDBSessionManagerFactory(
        server.uri, database_name, archive_after_messages=4, archive_block=2, appName=APP_NAME, minPoolSize=0
    ) as factory:
        yield factory


def take_turns(factory: MongoDBSessionManagerFactory, turns: int = 1) -> None:
    with factory.create_session_manager(SESSION_ID) as manager:
        agent = talker(manager, window=2)
        for _ in range(turns):
            agent(SECRET)


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == f"mongodb_session.{name}"]


def test_open_commit_and_archive_are_spans_with_the_commands_beneath(
    factory: MongoDBSessionManagerFactory, spans: InMemorySpanExporter
) -> None:
    take_turns(factory, turns=4)

    assert [dict(span.attributes or {}) for span in named(spans, "open")] == [{"mongodb_session.agents": 1}]
    commits = named(spans, "commit")
    assert [dict(span.attributes or {}) for span in commits] == [
        {"mongodb_session.agent_id": "assistant", "mongodb_session.messages": 1}
    ] * 8
    assert named(spans, "archive")

    def beneath(span: ReadableSpan) -> set[str]:
        return {
            child.name.rpartition(".")[2]
            for child in spans.get_finished_spans()
            if child.parent is not None and span.context is not None and child.parent.span_id == span.context.span_id
        }

    assert "find" in beneath(named(spans, "open")[0])
    for commit in commits:
        assert beneath(commit) == {"update"}
    assert {"find", "insert", "update"} <= beneath(named(spans, "archive")[0])


@pytest.mark.slow
def test_no_span_tells_a_word_or_a_session(factory: MongoDBSessionManagerFactory, spans: InMemorySpanExporter) -> None:
    take_turns(factory, turns=4)
    repository = factory.create_session_manager(SESSION_ID).session_repository
    session = repository.read_session(SESSION_ID)
    assert session is not None
    with pytest.raises(PyMongoError):
        repository.collection.insert_one({"_id": SESSION_ID})  # type: ignore[arg-type]
    with pytest.raises(SessionExistsError):
        repository.create_session(session)

    everything = "".join(
        span.to_json() for span in spans.get_finished_spans() if "strands" not in str(span.instrumentation_scope)
    )
    assert "insert" in everything
    assert SESSION_ID not in everything
    assert SECRET not in everything
    assert "swordfish" not in everything


@pytest.mark.slow
def test_a_commit_that_fails_is_a_span_with_the_name_of_the_error(
    factory: MongoDBSessionManagerFactory, spans: InMemorySpanExporter, client: Any
) -> None:
    take_turns(factory)
    with pytest.raises(PyMongoError), fail_command(client, "update", app_name=APP_NAME, error_code=8000, times=1):
        take_turns(factory)
    failed = [span for span in named(spans, "commit") if span.status.status_code is StatusCode.ERROR]
    assert [span.status.description for span in failed] == ["OperationFailure"]
    assert not failed[0].events
    under = [span for span in spans.get_finished_spans() if span.name.endswith(".update")]
    assert "Location8000" in {span.status.description for span in under}


@pytest.mark.slow
def test_a_session_that_is_gone_is_named_to_the_caller_and_not_to_the_span(
    factory: MongoDBSessionManagerFactory, spans: InMemorySpanExporter
) -> None:
    def turn_in_a_deleted_session() -> None:
        with factory.create_session_manager(SESSION_ID) as manager:
            agent = talker(manager)
            manager.session_repository.delete_session(SESSION_ID)
            agent("Hello")

    with pytest.raises(SessionNotFoundError, match=SESSION_ID):
        turn_in_a_deleted_session()
    failed = [span for span in named(spans, "commit") if span.status.status_code is StatusCode.ERROR]
    assert failed
    assert {span.status.description for span in failed} == {"SessionNotFoundError"}


@pytest.mark.slow
def test_nothing_of_it_is_imported_or_recorded_unless_asked_for() -> None:
    script = """
import sys
import mongodb_session_manager
from mongodb_session_manager import telemetry
assert "opentelemetry.instrumentation.pymongo" not in sys.modules
assert telemetry.traced("open", {}, sum, [1, 2]) == 3
sys.modules["opentelemetry.instrumentation.pymongo"] = None
try:
    telemetry.enable()
except ImportError as error:
    assert "mongodb-session-manager[telemetry]" in str(error), error
else:
    raise AssertionError("it was enabled")
assert telemetry.traced("open", {}, sum, [1, 2]) == 3
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
