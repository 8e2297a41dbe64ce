"""A unique index of the application's own: what it refuses is told at once, and everything else goes on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from pymongo import MongoClient
from pymongo.errors import DuplicateKeyError
from strands.types.session import Session
from support.commands import CommandRecorder
from support.histories import SMALL, manager_of, said, stored, talker, texts

from mongodb_session_manager import MongoDBSessionRepository, SessionExistsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymongo.database import Database

pytestmark = pytest.mark.new_database


@pytest.fixture
def recorder() -> CommandRecorder:
    return CommandRecorder()


@pytest.fixture
def own(server: Any, recorder: CommandRecorder) -> Iterator[MongoClient[Any]]:
    client: MongoClient[Any]
    with MongoClient(server.uri, event_listeners=[recorder]) as client:
        yield client


@pytest.fixture
def taken(database: Database[Any], own: MongoClient[Any]) -> MongoDBSessionRepository:
    """Sessions have a unique ticket in their metadata; there is one without, so there can be no other."""
    database.sessions.create_index("metadata.ticket", unique=True)
    repository = MongoDBSessionRepository(client=own, database_name=database.name, collection_name="sessions")
    repository.create_session(Session(session_id="one", session_type="x"))
    return repository


def test_a_session_that_a_unique_index_refuses_is_an_error_at_once(
    taken: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    with recorder.recording() as commands, pytest.raises(DuplicateKeyError) as refused:
        taken.create_session(Session(session_id="two", session_type="x"))

    assert not isinstance(refused.value, SessionExistsError), "there is no session of this id"
    assert commands.names == ["insert"]
    assert not taken.session_exists("two")


def test_an_agent_whose_session_a_unique_index_refuses_is_an_error_at_once(
    taken: MongoDBSessionRepository, own: MongoClient[Any], database: Database[Any], recorder: CommandRecorder
) -> None:
    manager = manager_of(own, database.name, "two")
    with recorder.recording() as commands, pytest.raises(DuplicateKeyError):
        talker(manager)

    assert len(commands.named("find", "update")) <= 3
    database.sessions.drop_index("metadata.ticket_1")
    talker(manager)("hi")
    assert texts(taken.list_messages("two", "assistant")) == said("hi")


def test_metadata_that_a_unique_index_refuses_is_an_error_and_changes_nothing(
    taken: MongoDBSessionRepository, database: Database[Any]
) -> None:
    taken.update_metadata("one", {"ticket": 1})
    taken.create_session(Session(session_id="two", session_type="x"))

    with pytest.raises(DuplicateKeyError):
        taken.update_metadata("two", {"ticket": 1})

    assert taken.get_metadata("two") == {"metadata": {}}


@pytest.mark.slow
def test_a_history_that_a_unique_index_refuses_is_not_tried_again_and_again(
    own: MongoClient[Any], database: Database[Any], recorder: CommandRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    database.sessions_history.create_index("count", unique=True)
    prompts = [f"prompt {number}" for number in range(8)]
    for session_id in ("s", "t"):
        with manager_of(own, database.name, session_id, **SMALL) as manager:
            agent = talker(manager)
            for prompt in prompts:
                with recorder.recording() as commands, caplog.at_level(logging.WARNING):
                    agent(prompt)
                    manager.flush()
                assert len(commands) <= 10, commands.names

    assert stored(database, "s").archived
    assert "not archived" in caplog.text
    found = stored(database, "t")
    assert not found.archived
    assert texts(found.embedded) == said(*prompts)
