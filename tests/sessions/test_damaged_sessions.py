"""A session that another program has damaged says so at once and by name: nothing is guessed, nobody waits for it."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from bson import Decimal128
from strands.types.session import SessionMessage
from support.application import Application
from support.gates import Gate
from support.histories import HISTORY, Interruption, by_hand, manager_of, talker

from mongodb_session_manager import DamagedSessionError, HistoryIncompleteError

# What a session document may say of how many messages an agent has, and no version of this library has written.
NO_COUNTS = ["x", None, 2.5, -1, float("nan"), float("inf"), 2.0**63, {"n": 2}, [2], True, Decimal128("2")]
FIELD = "agents.assistant.message_count"


@pytest.fixture
def talked(app: Application) -> Application:
    """In which the session ``s`` has two turns of the agent ``assistant``."""
    agent = talker(app.manager())
    agent("one")
    agent("two")
    return app


def damage(talked: Application, value: Any) -> None:
    talked.repository.collection.update_one({"_id": "s"}, {"$set": {FIELD: value}})


def assert_says_what_is_damaged(error: DamagedSessionError) -> None:
    assert (error.session_id, error.agent_id, error.field) == ("s", "assistant", FIELD)
    assert FIELD in str(error)
    assert "session_id='s'" in str(error)


# --- a count of messages that is none


@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
def test_an_agent_with_a_damaged_count_is_not_resumed_as_if_it_were_whole(talked: Application, value: Any) -> None:
    damage(talked, value)
    before = talked.repository.collection.find_one({})
    with pytest.raises(DamagedSessionError) as raised:
        talker(talked.process())
    assert_says_what_is_damaged(raised.value)
    assert repr(talked.repository.collection.find_one({})) == repr(before)


@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
def test_whoever_writes_to_an_agent_with_a_damaged_count_is_told_at_once(talked: Application, value: Any) -> None:
    manager = manager_of(talked.client, talked.database.name)
    agent = talker(manager)
    damage(talked, value)
    writes: list[Callable[[], Any]] = [
        lambda: manager.append_message(by_hand("three"), agent),
        manager.flush,
        lambda: talked.repository.create_message("s", "assistant", SessionMessage(by_hand("four"), 50)),
        lambda: talked.repository.create_message("s", "assistant", SessionMessage(by_hand("zero"), 0)),
        lambda: talked.repository.add_feedback("s", {"agent_id": "assistant", "message_id": 50}),
    ]
    for write in writes:
        with talked.recorder.recording() as commands, pytest.raises(DamagedSessionError) as raised:
            write()
        assert_says_what_is_damaged(raised.value)
        assert len(commands) <= 3, commands.names
    assert len(talked.repository.list_messages("s", "assistant")) == 4


def test_what_waited_for_a_damaged_count_is_stored_once_it_is_corrected(talked: Application) -> None:
    manager = talked.process()
    agent = talker(manager)
    damage(talked, "x")
    with pytest.raises(DamagedSessionError):
        manager.append_message(by_hand("three"), agent)
    damage(talked, 4.0)  # As a shell writes it.
    manager.flush()
    agent("four")
    assert [message.message_id for message in talked.repository.list_messages("s", "assistant")] == list(range(7))


@pytest.mark.parametrize("value", [4, 4.0])
def test_a_whole_count_that_a_shell_wrote_is_a_count(talked: Application, value: Any) -> None:
    damage(talked, value)
    talked.repository.create_message("s", "assistant", SessionMessage(by_hand("three"), 4))
    assert [message.message_id for message in talked.repository.list_messages("s", "assistant")] == list(range(5))


@pytest.mark.parametrize("value", ["x", None, {"n": 2}], ids=repr)
def test_a_message_of_an_agent_with_a_damaged_count_is_read_or_the_damage_is_named(
    talked: Application, value: Any
) -> None:
    talked.repository.collection.update_one({"_id": "s"}, {"$set": {"agents.assistant.archived_count": 2}})
    damage(talked, value)
    assert talked.repository.read_message("s", "assistant", 3) is not None
    with pytest.raises(DamagedSessionError) as raised:
        talked.repository.read_message("s", "assistant", 9)
    assert_says_what_is_damaged(raised.value)


@pytest.mark.parametrize("archived", [0, 2])
def test_a_count_below_the_messages_that_are_there_is_told_and_gives_no_id_out_twice(
    talked: Application, archived: int
) -> None:
    manager = talked.process()
    agent = talker(manager)
    embedded = talked.record("assistant")["messages"][archived:]
    fewer = {"agents.assistant.archived_count": archived, "agents.assistant.messages": embedded}
    talked.repository.collection.update_one({}, {"$set": fewer})
    damage(talked, 3)
    before = talked.session()
    writes: list[Callable[[], Any]] = [
        lambda: talker(talked.process()),
        lambda: manager.append_message(by_hand("three"), agent),
        lambda: talked.repository.create_message("s", "assistant", SessionMessage(by_hand("three"), 3)),
    ]

    for write in writes:
        with pytest.raises(DamagedSessionError, match="is 3, and there are 4 messages"):
            write()

    assert talked.session() == before


# A range of numbers matches both of them, and `$set` would make a counter of what was damaged.
@pytest.mark.parametrize("value", [2.5, [2]], ids=repr)
def test_a_count_that_is_damaged_right_before_a_message_is_appended_is_told_and_left_as_it_is(
    talked: Application, value: Any
) -> None:
    meanwhile = Interruption()
    watched = talked.process(meanwhile).session_repository
    meanwhile.arm("started", 2, lambda: damage(talked, value))
    with pytest.raises(DamagedSessionError):
        watched.create_message("s", "assistant", SessionMessage(by_hand("three"), 50))
    assert meanwhile.error is None
    assert meanwhile.commands[:2] == ["find", "update"]

    agent = talked.record("assistant")
    assert agent["message_count"] == value
    assert len(agent["messages"]) == 4


# --- a history that is not whole


@pytest.fixture
def archived(app: Application) -> Application:
    """In which the older messages and feedbacks of the session ``s`` are in the history."""
    with app.process(archive_after_messages=8, archive_block=4) as manager:
        agent = talker(manager)
        for number in range(8):
            agent(str(number))
        for _ in range(201):
            manager.add_feedback({"rating": "up"})
    assert app.database[HISTORY].count_documents({"_id.agent": "assistant"}) >= 2
    return app


@pytest.mark.slow
def test_messages_that_are_missing_from_the_history_are_named_and_no_deletion_is_blamed(archived: Application) -> None:
    archived.database[HISTORY].delete_one({"_id.agent": "assistant", "_id.first": 4})
    with pytest.raises(HistoryIncompleteError) as raised:
        archived.repository.list_messages("s", "assistant", limit=7, offset=1)
    error = raised.value
    assert (error.session_id, error.agent_id, error.first, error.last, error.missing) == ("s", "assistant", 1, 7, 4)
    assert str(error) == (
        "session_id='s': 4 of the archived messages of agent_id='assistant' from offset 1 to 7 are missing"
    )
    # The live conversation does not reach back so far.
    assert [block["text"] for block in talker(archived.process()).messages[-1]["content"]] == ["Re: 7"]


@pytest.mark.slow
def test_an_agent_whose_live_messages_are_missing_from_the_history_is_not_resumed_without_them(
    archived: Application,
) -> None:
    removed = "agents.assistant.agent_data.conversation_manager_state.removed_message_count"
    archived.repository.collection.update_one({}, {"$set": {removed: 2}})
    archived.database[HISTORY].delete_many({"_id.agent": "assistant"})
    with pytest.raises(HistoryIncompleteError, match="are missing") as raised:
        talker(archived.process(), window=100)
    assert (raised.value.agent_id, raised.value.first) == ("assistant", 2)


@pytest.mark.slow
def test_feedbacks_that_are_missing_from_the_history_are_not_left_out_of_lists_and_counts(
    archived: Application,
) -> None:
    archived.database[HISTORY].delete_many({"_id.agent": "$feedbacks"})
    for read in (archived.repository.get_feedbacks, archived.repository.get_metrics_summary):
        with pytest.raises(
            HistoryIncompleteError, match="archived feedbacks from offset 0 to 99 are missing"
        ) as raised:
            read("s")
        assert (raised.value.agent_id, raised.value.missing) == (None, 100)


@pytest.mark.slow
@pytest.mark.parametrize("read", ["list_messages", "get_feedbacks", "get_metrics_summary"])
def test_a_session_that_is_deleted_while_it_is_read_is_gone_and_not_incomplete(
    archived: Application, applications: Callable[..., Application], read: str
) -> None:
    gate, found = Gate(), []
    reader = applications([gate]).repository
    arguments = ("s", "assistant") if read == "list_messages" else ("s",)

    def reading() -> None:
        try:
            found.append(getattr(reader, read)(*arguments))
        except Exception as error:
            found.append(error)

    with gate.holding("find") as held:  # The session document is read, its history is not.
        thread = threading.Thread(target=reading)
        thread.start()
        held.wait()
        archived.repository.delete_session("s")
    thread.join(60)
    [outcome] = found
    assert outcome == [] or outcome.messages == 0
