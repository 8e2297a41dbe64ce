"""A unique index of the application's own: what it refuses is told at once, and everything else goes on."""

import logging

import pytest
from pymongo.errors import DuplicateKeyError
from support.application import Application
from support.histories import SESSIONS, SMALL, said, stored, talker, texts
from support.repositories import a_session

from mongodb_session_manager import MongoDBSessionRepository, SessionExistsError

pytestmark = pytest.mark.new_database


@pytest.fixture
def taken(app: Application) -> MongoDBSessionRepository:
    """Sessions have a unique ticket in their metadata; there is one without, so there can be no other."""
    app.database[SESSIONS].create_index("metadata.ticket", unique=True)
    repository = app.repository
    repository.create_session(a_session("one"))
    return repository


def test_a_session_that_a_unique_index_refuses_is_an_error_at_once(
    taken: MongoDBSessionRepository, app: Application
) -> None:
    with app.recorder.recording() as commands, pytest.raises(DuplicateKeyError) as refused:
        taken.create_session(a_session("two"))

    assert not isinstance(refused.value, SessionExistsError), "there is no session of this id"
    assert commands.names == ["insert"]
    assert not taken.session_exists("two")


def test_an_agent_whose_session_a_unique_index_refuses_is_an_error_at_once(
    taken: MongoDBSessionRepository, app: Application
) -> None:
    manager = app.manager("two")
    with app.recorder.recording() as commands, pytest.raises(DuplicateKeyError):
        talker(manager)

    assert len(commands.named("find", "update")) <= 3
    app.database[SESSIONS].drop_index("metadata.ticket_1")
    talker(manager)("hi")
    assert texts(taken.list_messages("two", "assistant")) == said("hi")


def test_metadata_that_a_unique_index_refuses_is_an_error_and_changes_nothing(taken: MongoDBSessionRepository) -> None:
    taken.update_metadata("one", {"ticket": 1})
    taken.create_session(a_session("two"))

    with pytest.raises(DuplicateKeyError):
        taken.update_metadata("two", {"ticket": 1})

    assert taken.get_metadata("two") == {"metadata": {}}


@pytest.mark.slow
def test_a_history_that_a_unique_index_refuses_is_not_tried_again_and_again(
    app: Application, caplog: pytest.LogCaptureFixture
) -> None:
    app.database.sessions_history.create_index("count", unique=True)
    prompts = [f"prompt {number}" for number in range(8)]
    for session_id in ("s", "t"):
        with app.manager(session_id, **SMALL) as manager:
            agent = talker(manager)
            for prompt in prompts:
                with app.recorder.recording() as commands, caplog.at_level(logging.WARNING):
                    agent(prompt)
                    manager.flush()
                assert len(commands) <= 10, commands.names

    assert stored(app.database, "s").archived
    assert "not archived" in caplog.text
    found = stored(app.database, "t")
    assert not found.archived
    assert texts(found.embedded) == said(*prompts)
