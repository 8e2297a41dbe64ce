"""Error handling and edge cases: what an application sees when something is wrong, and that it can go on afterwards.

Faults on the wire and processes that die: `test_exactly_once.py`, `test_crashes.py`. Ids and values that are refused:
`test_identifiers_and_values.py`.
"""

import logging
import socket
from typing import Any

import pytest
from offline_model import OfflineScriptedModel, ScriptedReply
from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError, ServerSelectionTimeoutError
from strands import Agent
from strands.types.exceptions import SessionException
from support.application import Application, both_durabilities
from support.histories import texts

import mongodb_session_manager
from mongodb_session_manager import (
    AgentNotFoundError,
    BlobMissingError,
    DamagedSessionError,
    HistoryIncompleteError,
    InvalidIdentifierError,
    MessageNotFoundError,
    MongoDBSessionError,
    SessionBusyError,
    SessionConflictError,
    SessionExistsError,
    SessionNotFoundError,
    UnstorableValueError,
    create_mongodb_session_manager,
)

# --- which errors there are


ERRORS: list[tuple[type[Exception], list[type[Exception]]]] = [
    (MongoDBSessionError, [SessionException]),
    (SessionNotFoundError, [MongoDBSessionError, ValueError]),
    (AgentNotFoundError, [MongoDBSessionError, ValueError]),
    (MessageNotFoundError, [MongoDBSessionError, ValueError]),
    (InvalidIdentifierError, [MongoDBSessionError, ValueError]),
    (UnstorableValueError, [MongoDBSessionError, ValueError]),
    (SessionExistsError, [MongoDBSessionError, DuplicateKeyError]),
    (SessionConflictError, [MongoDBSessionError]),
    (SessionBusyError, [MongoDBSessionError]),
    (BlobMissingError, [MongoDBSessionError]),
    (HistoryIncompleteError, [MongoDBSessionError]),
    (DamagedSessionError, [MongoDBSessionError]),
]


@pytest.mark.parametrize(("error", "bases"), ERRORS, ids=lambda value: getattr(value, "__name__", ""))
def test_an_error_can_be_caught_as_what_callers_of_strands_and_of_pymongo_expect(
    error: type[Exception], bases: list[type[Exception]]
) -> None:
    for base in bases:
        assert issubclass(error, base)
    assert getattr(mongodb_session_manager, error.__name__) is error
    assert error.__name__ in mongodb_session_manager.__all__


def test_every_error_of_the_library_is_public_and_one_class_catches_them_all() -> None:
    errors = [
        found
        for name in mongodb_session_manager.__all__
        if isinstance(found := getattr(mongodb_session_manager, name), type) and issubclass(found, Exception)
    ]
    assert set(errors) == {error for error, _ in ERRORS}


# --- an application that handles them


@pytest.mark.slow
def test_without_a_server_the_first_use_says_so_and_the_manager_can_be_closed(database_name: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # Bound and not listening: whoever connects is refused.
        session_manager = create_mongodb_session_manager(
            session_id="s",
            connection_string=f"mongodb://127.0.0.1:{nobody.getsockname()[1]}/",
            database_name=database_name,
            serverSelectionTimeoutMS=100,
        )
        try:
            with pytest.raises(ServerSelectionTimeoutError):
                Agent(agent_id="a", model=OfflineScriptedModel(), session_manager=session_manager)
            with pytest.raises(ServerSelectionTimeoutError):
                session_manager.update_metadata({"customer": "alice"})
            with pytest.raises(PyMongoError):
                session_manager.check_session_exists()
        finally:
            session_manager.close()


@pytest.mark.topology
@both_durabilities
def test_a_stream_that_breaks_off_leaves_the_question_and_the_conversation_goes_on(
    app: Application, durability: Any
) -> None:
    broken = ScriptedReply(text="Half an ans", error=ConnectionError("the provider hung up"))
    agent = app.agent(app.manager(durability=durability), broken, "Whole.")
    with pytest.raises(Exception, match="hung up"):
        agent("Hello?")
    assert texts(app.messages()) == ["Hello?"]
    agent("Again?")
    assert texts(app.messages())[0] == "Hello?"
    assert texts(app.messages())[-2:] == ["Again?", "Whole."]

    restored = app.agent(app.manager())
    assert [m["role"] for m in restored.messages] == [m["role"] for m in agent.messages]


# --- edges of what is possible


@pytest.mark.parametrize("text", ["", " ", "\x00", "🐟" * 1000, "$where", "a.b", "}", "\ud800"], ids=repr)
def test_a_message_of_any_text_is_stored_and_comes_back(app: Application, text: str) -> None:
    with app.manager() as manager:
        app.agent(manager, ScriptedReply(text=text or "x"))([{"text": text}])
    restored = app.agent(app.manager())
    assert [message["content"] for message in restored.messages] == [[{"text": text}], [{"text": text or "x"}]]


def test_an_agent_without_a_turn_is_stored_and_restored_without_messages(app: Application) -> None:
    with app.manager() as manager:
        app.agent(manager)
    again = app.manager()
    assert again.list_agents() == ["a"]
    assert app.agent(again).messages == []


def test_a_summary_of_nothing_is_zeros_lists_of_nothing_are_empty_and_nothing_is_begun(
    app: Application,
) -> None:
    manager = app.manager()
    assert (manager.check_session_exists(), manager.list_agents(), manager.get_feedbacks()) == (False, [], [])
    assert (manager.get_metadata(), manager.get_guardrail_events(), manager.get_message_count("a")) == ({}, [], 0)
    summary = manager.get_metrics_summary()
    assert (summary.messages, summary.tokens.total, summary.latency.p95, summary.cost) == (0, 0, None, None)
    assert manager.session_repository.list_sessions().sessions == []
    assert not manager.check_session_exists()


@pytest.mark.topology
def test_no_error_of_a_turn_is_logged_and_raised(app: Application, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "mongodb_session_manager")
    agent = app.agent(app.manager(), "One.", "Two.")
    with app.failing(["update", "find"], error_code=8000), pytest.raises(OperationFailure):
        agent("1")
    assert not [record for record in caplog.records if record.name.startswith("mongodb_session_manager")]
