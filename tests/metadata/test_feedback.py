"""Feedback: what a person said of a session, an agent or one message, and never of something that is not there."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

import pytest
from support.application import Application
from support.gates import Gate
from support.histories import SESSIONS, SMALL, repository_of, talker
from support.repositories import a_message, an_agent

from mongodb_session_manager import (
    AgentNotFoundError,
    InvalidIdentifierError,
    MessageNotFoundError,
    MongoDBSessionManager,
    MongoDBSessionRepository,
    SessionNotFoundError,
)


def stored_feedbacks(app: Application) -> list[Any]:
    """The feedbacks in the session document."""
    return list((app.database[SESSIONS].find_one({"_id": "s"}) or {}).get("feedbacks", []))


def conversation(app: Application, *prompts: str, **options: Any) -> MongoDBSessionManager:
    manager = app.manager(**options)
    agent = talker(manager)
    for prompt in prompts or ("Hi.",):
        agent(prompt)
    manager.flush()
    return manager


def with_gaps(app: Application) -> MongoDBSessionRepository:
    """An agent whose messages have the ids 1, 5 and 9."""
    app.manager().update_metadata({"begun": True})
    repository = app.repository
    repository.create_agent("s", an_agent("assistant"))
    for message_id in (1, 5, 9):
        repository.create_message("s", "assistant", a_message(message_id))
    return repository


# --- what is stored


def test_any_fields_are_kept_and_the_time_of_the_storing_is_added(app: Application) -> None:
    manager = app.manager()
    before = datetime.now(timezone.utc)

    manager.add_feedback({"rating": 4, "comment": "Good.", "tags": ["fast"], "created_at": "long ago"})

    (feedback,) = manager.get_feedbacks()
    created_at = feedback.pop("created_at")
    assert feedback == {"rating": 4, "comment": "Good.", "tags": ["fast"]}
    assert abs((created_at - before).total_seconds()) < 60


def test_feedback_on_a_message_says_which_in_what_is_stored_and_read(app: Application) -> None:
    manager = conversation(app)

    manager.add_feedback({"rating": "up", "agent_id": "assistant", "message_id": 1})
    app.repository.add_feedback("s", {"rating": "down", "agent_id": "assistant", "message_id": 0})

    found = [(f["rating"], f["agent_id"], f["message_id"]) for f in manager.get_feedbacks()]
    assert found == [("up", "assistant", 1), ("down", "assistant", 0)]
    assert [(f["agent_id"], f["message_id"]) for f in stored_feedbacks(app)] == [("assistant", 1), ("assistant", 0)]


def test_feedback_on_an_agent_alone_and_on_one_whose_id_is_encoded_in_the_document(app: Application) -> None:
    manager = app.manager()
    talker(manager, agent_id="$support.v2 %")("Hi.")

    manager.add_feedback({"rating": "up", "agent_id": "$support.v2 %"})
    manager.add_feedback({"rating": "up", "agent_id": "$support.v2 %", "message_id": 1})

    assert len(manager.get_feedbacks()) == 2


def test_a_form_that_leaves_agent_and_message_empty_gives_feedback_on_the_session(app: Application) -> None:
    app.manager().add_feedback({"rating": "up", "agent_id": None, "message_id": None})

    assert len(stored_feedbacks(app)) == 1


# --- what is refused


@pytest.mark.parametrize(
    ("link", "error"),
    [
        ({"message_id": 1}, InvalidIdentifierError),
        ({"agent_id": None, "message_id": 1}, InvalidIdentifierError),
        *(({"agent_id": "assistant", "message_id": n}, InvalidIdentifierError) for n in (-1, "1", True, 1.0, 2**63)),
        *(({"agent_id": a, "message_id": 1}, InvalidIdentifierError) for a in ("a/b", "", {"$gt": ""})),
        ({"agent_id": 7, "message_id": 1}, TypeError),
    ],
)
def test_a_link_that_can_name_no_message_is_refused_before_anything_is_sent(
    app: Application, link: dict[str, Any], error: type[Exception]
) -> None:
    manager, repository = app.manager(), app.repository
    app.recorder.clear()

    with pytest.raises(error):
        manager.add_feedback({"rating": "up", **link})
    with pytest.raises(error):
        repository.add_feedback("s", {"rating": "up", **link})

    assert app.recorder.names == []


def test_feedback_on_what_is_not_there_names_what_is_missing_and_writes_nothing(app: Application) -> None:
    manager = conversation(app)
    before = app.session()

    for add in (manager.add_feedback, lambda feedback: app.repository.add_feedback("s", feedback)):
        with pytest.raises(AgentNotFoundError, match="stranger"):
            add({"rating": "up", "agent_id": "stranger"})
        with pytest.raises(AgentNotFoundError, match="stranger"):
            add({"rating": "up", "agent_id": "stranger", "message_id": 0})
        with pytest.raises(MessageNotFoundError, match="message_id=2"):
            add({"rating": "up", "agent_id": "assistant", "message_id": 2})

    assert app.session() == before


def test_feedback_on_an_agent_does_not_begin_a_session_that_would_not_have_it(app: Application) -> None:
    with pytest.raises(AgentNotFoundError):
        app.manager().add_feedback({"rating": "up", "agent_id": "assistant", "message_id": 0})
    with pytest.raises(SessionNotFoundError):
        app.repository.add_feedback("s", {"rating": "up", "agent_id": "assistant", "message_id": 0})

    assert app.database[SESSIONS].count_documents({}) == 0


def test_a_manager_whose_session_was_deleted_does_not_write_to_the_one_that_came_after(app: Application) -> None:
    manager = conversation(app)
    app.repository.delete_session("s")
    conversation(app)

    with pytest.raises(SessionNotFoundError):
        manager.add_feedback({"rating": "up", "agent_id": "assistant", "message_id": 0})

    assert stored_feedbacks(app) == []


def test_feedback_in_the_middle_of_a_turn_that_is_stored_at_its_end_finds_no_message_yet(app: Application) -> None:
    manager = conversation(app, durability="turn")
    agent = talker(app.manager(durability="turn"))

    refused: list[str] = []

    def too_early(**event: Any) -> None:
        if "data" in event:
            with pytest.raises(MessageNotFoundError) as refusal:
                manager.add_feedback({"rating": "up", "agent_id": "assistant", "message_id": 2})
            refused.append(str(refusal.value))

    agent.callback_handler = too_early
    agent("And now?")

    assert refused
    manager.add_feedback({"rating": "up", "agent_id": "assistant", "message_id": 2})
    assert len(stored_feedbacks(app)) == 1


# --- archived messages, gaps, older documents


@pytest.mark.slow
def test_feedback_on_an_archived_message_is_stored_and_needs_no_look_into_the_history(app: Application) -> None:
    manager = conversation(app, *(f"Question {n}." for n in range(8)), **SMALL)
    agent = app.record("assistant")
    assert agent["archived_count"] > 0
    app.recorder.clear()

    manager.add_feedback({"rating": "up", "agent_id": "assistant", "message_id": 0})

    assert app.recorder.names == ["find", "update"]
    with pytest.raises(MessageNotFoundError):
        manager.add_feedback({"rating": "up", "agent_id": "assistant", "message_id": 16})


def test_an_id_that_no_message_was_given_is_not_found_though_higher_ones_are(app: Application) -> None:
    repository = with_gaps(app)

    for message_id in (1, 5, 9):
        repository.add_feedback("s", {"agent_id": "assistant", "message_id": message_id})
    for message_id in (0, 2, 8, 10):
        with pytest.raises(MessageNotFoundError):
            repository.add_feedback("s", {"agent_id": "assistant", "message_id": message_id})

    assert [feedback["message_id"] for feedback in stored_feedbacks(app)] == [1, 5, 9]


def test_an_archived_message_is_looked_for_in_the_history_where_ids_have_gaps(app: Application) -> None:
    repository = with_gaps(app)
    repository._store.archiver.make_room("s", 16 * 1024 * 1024)
    agent = app.record("assistant")
    assert (agent["archived_count"], agent["messages"]) == (3, [])
    app.recorder.clear()

    repository.add_feedback("s", {"agent_id": "assistant", "message_id": 5})
    assert app.recorder.names == ["find", "find", "find", "find", "update"]
    with pytest.raises(MessageNotFoundError):
        repository.add_feedback("s", {"agent_id": "assistant", "message_id": 6})

    assert [feedback["message_id"] for feedback in stored_feedbacks(app)] == [5]


@pytest.mark.slow
@pytest.mark.topology
def test_feedback_on_a_message_that_was_deleted_while_it_was_looked_for_is_not_given_to_the_next_session(
    app: Application,
) -> None:
    with_gaps(app)._store.archiver.make_room("s", 16 * 1024 * 1024)
    gate = Gate()
    slow = app.new_client(event_listeners=[gate])
    repository = repository_of(slow, app.database.name)
    with ThreadPoolExecutor(1) as threads:
        with contextlib.ExitStack() as held:
            read = held.enter_context(gate.holding("find"))
            adding = threads.submit(repository.add_feedback, "s", {"agent_id": "assistant", "message_id": 5})
            for _ in range(2):  # How it stands, where it would be in the history, and the message itself.
                read.wait()
                following = held.enter_context(gate.holding("find"))
                read.released.set()
                read = following
            read.wait()
            app.repository.delete_session("s")
            with_gaps(app)
        with pytest.raises(SessionNotFoundError):
            adding.result()

    assert stored_feedbacks(app) == []


def test_feedback_on_messages_of_an_older_document_is_stored(app: Application) -> None:
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there!"}]
    app.database[SESSIONS].insert_one(
        {"_id": "s", "session_id": "s", "agents": {"assistant": {"agent_data": {}, "messages": said}}}
    )

    app.repository.add_feedback("s", {"agent_id": "assistant", "message_id": 1})
    with pytest.raises(MessageNotFoundError):
        app.repository.add_feedback("s", {"agent_id": "assistant", "message_id": 2})

    assert [feedback["message_id"] for feedback in stored_feedbacks(app)] == [1]


# --- what it costs, and many of them


@pytest.mark.topology
def test_feedback_costs_one_read_and_one_write_with_a_link_or_without(app: Application) -> None:
    manager = conversation(app)
    app.recorder.clear()

    manager.add_feedback({"rating": "up"})
    manager.add_feedback({"rating": "up", "agent_id": "assistant"})
    manager.add_feedback({"rating": "up", "agent_id": "assistant", "message_id": 1})

    assert app.recorder.names == ["find", "update"] * 3


@pytest.mark.slow
def test_many_feedbacks_on_messages_move_into_the_history_in_order_and_once(app: Application) -> None:
    manager = conversation(app)
    for n in range(405):
        manager.add_feedback({"n": n, "agent_id": "assistant", "message_id": n % 2})

    assert [feedback["n"] for feedback in manager.get_feedbacks()] == list(range(405))
    assert len(stored_feedbacks(app)) <= 200
    with pytest.raises(MessageNotFoundError):
        manager.add_feedback({"n": 405, "agent_id": "assistant", "message_id": 2})


@pytest.mark.slow
def test_a_full_document_refuses_feedback_on_a_missing_message_before_it_makes_room(app: Application) -> None:
    manager = conversation(app)
    for n in range(200):
        manager.add_feedback({"n": n})

    with pytest.raises(MessageNotFoundError):
        manager.add_feedback({"agent_id": "assistant", "message_id": 2})
    manager.add_feedback({"agent_id": "assistant", "message_id": 1})

    assert len(manager.get_feedbacks()) == 201


@pytest.mark.slow
@pytest.mark.topology
def test_feedback_of_many_people_at_once_is_stored_once_each(app: Application) -> None:
    conversation(app)
    managers = [app.manager() for _ in range(4)]

    def give(manager: MongoDBSessionManager, person: int) -> None:
        for n in range(20):
            manager.add_feedback({"person": person, "n": n, "agent_id": "assistant", "message_id": 1})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(give, managers, range(4)))

    found = sorted((feedback["person"], feedback["n"]) for feedback in app.manager().get_feedbacks())
    assert found == [(person, n) for person in range(4) for n in range(20)]
