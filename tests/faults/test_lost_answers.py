"""The answer to any command of a change is lost on a replica set, and the driver sends the command again.

MongoDB then answers what it answered before; but a `findAndModify` it answers with the whole document as it was,
whatever projection was asked for. So none is sent here: the library writes, and reads by ids what it has to know.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from strands.types.session import SessionMessage
from support.commands import CommandRecorder
from support.histories import by_hand, manager_of, talker, texts
from support.wire_proxy import Cut

from mongodb_session_manager import MongoDBSessionRepository

pytestmark = pytest.mark.topology

TINY: dict[str, Any] = {"archive_after_messages": 10, "archive_block": 4, "blob_threshold_bytes": 1000}
TURNS = 6
WRITES = ("update", "insert", "delete")


def image(number: int) -> Any:
    return {"image": {"format": "png", "source": {"bytes": bytes([number]) * 3000}}}


def conversation(client: MongoClient[Any], database: Database[Any], *, index: bool = True, **options: Any) -> None:
    """Six prompts with an image each, the first four messages archived, all of them in the search."""
    with manager_of(client, database.name, index_messages=index, **TINY, **options) as manager:
        agent = talker(manager)
        for number in range(TURNS):
            agent([{"text": f"prompt {number}"}, image(number)])
            manager.flush()
    (session,) = database.sessions.find()
    assert session["agents"]["assistant"]["archived_count"] == 4


def blobs_of_messages(database: Database[Any]) -> list[int]:
    return sorted(file["metadata"]["message"] for file in database["sessions_blobs.files"].find())


def searched(database: Database[Any]) -> dict[int, str]:
    return {found["_id"]["message"]: found["text"] for found in database.sessions_search.find().sort("_id", 1)}


def said(*changed: int) -> dict[int, str]:
    """What the messages say, of which some say that they are gone."""
    texts = [text for number in range(TURNS) for text in (f"prompt {number}", f"Re: prompt {number}")]
    return {number: "gone" if number in changed else text for number, text in enumerate(texts)}


@pytest.fixture
def repository(client: MongoClient[Any], database: Database[Any]) -> MongoDBSessionRepository:
    return MongoDBSessionRepository(client=client, database_name=database.name, collection_name="sessions")


@pytest.fixture
def cut_off(client: MongoClient[Any], database: Database[Any], proxies: Any) -> Iterator[Callable[..., Any]]:
    """Does something while the answer to one of its commands is lost; returns the names of those that were."""

    def do(act: Callable[[MongoDBSessionRepository], object], command: str, number: int) -> list[str]:
        proxy = proxies()
        with MongoClient(proxy.uri, retryWrites=client.options.retry_writes) as there:
            there.admin.command("ping")
            proxy.cut(Cut(command, "before its answer arrives", number))
            act(MongoDBSessionRepository(client=there, database_name=database.name, collection_name="sessions"))
        return proxy.cut_commands

    return do


def redact(message_id: int) -> Callable[[MongoDBSessionRepository], object]:
    message = SessionMessage(message=by_hand("gone"), message_id=message_id)
    return lambda repository: repository.update_message("s", "assistant", message)


@pytest.mark.parametrize(("message_id", "updates"), [(2, 4), (10, 3)], ids=["archived", "embedded"])
def test_a_redaction_reaches_its_message_its_blob_and_the_search_and_nothing_else(
    client: Any, database: Database[Any], repository: Any, cut_off: Any, message_id: int, updates: int
) -> None:
    commands = [("update", number) for number in range(1, updates + 1)] + [("delete", 1), ("delete", 2)]
    for command, number in [*commands, ("update", updates + 1)]:
        conversation(client, database)

        cut = cut_off(redact(message_id), command, number)

        assert cut == [command] * ((command, number) in commands), f"{command} {number}"
        assert texts(repository.list_messages("s", "assistant"))[:: 2 if message_id else 1]
        assert blobs_of_messages(database) == [number for number in range(0, 12, 2) if number != message_id]
        assert searched(database) == said(message_id), f"{command} {number}"
        repository.index_messages()
        assert searched(database) == said(message_id), f"{command} {number}"
        said_now = [texts([message])[0] for message in repository.list_messages("s", "assistant")]
        assert dict(enumerate(said_now)) == said(message_id)
        repository.delete_session("s")


def test_a_deletion_leaves_nothing(client: Any, database: Database[Any], repository: Any, cut_off: Any) -> None:
    for number in range(1, 7):
        conversation(client, database)

        cut = cut_off(lambda repository: repository.delete_session("s"), "delete", number)

        assert cut == ["delete"] * (number <= 5)
        for name in database.list_collection_names():
            assert database[name].count_documents({}) == 0, f"{name} after {number}"


def test_every_message_of_a_segment_is_found_though_some_were_before(
    client: Any, database: Database[Any], repository: Any, cut_off: Any
) -> None:
    for number in range(1, 6):
        conversation(client, database, index=False)
        database.sessions.update_one({}, {"$set": {"agents.assistant.indexed": {"count": 2, "rewrites": 0}}})

        cut_off(lambda repository: repository.index_messages(), "update", number)

        expected = {message_id: text for message_id, text in said().items() if message_id >= 2}
        assert searched(database) == expected, number
        (session,) = database.sessions.find()
        assert session["agents"]["assistant"]["indexed"]["count"] == 2 * TURNS
        repository.delete_session("s")


def test_no_operation_depends_on_what_a_find_and_modify_returns(server: Any, database: Database[Any]) -> None:
    recorder = CommandRecorder()
    client: MongoClient[Any]
    with MongoClient(server.uri, event_listeners=[recorder]) as client, recorder.recording() as commands:
        conversation(client, database, ttl_hours=1)
        repository = MongoDBSessionRepository(
            client=client, database_name=database.name, collection_name="sessions", ttl_hours=24
        )
        repository.update_metadata("s", {"a": 1})  # A longer ttl moves on what belongs to the session.
        for message_id in (2, 10):
            redact(message_id)(repository)
        for number in range(210):
            repository.add_feedback("s", {"n": number})
        repository.index_messages(rebuild=True)
        with manager_of(client, database.name).lease(30) as lease:
            lease.renew()
        repository.sweep(0)
        repository.delete_session("s")

    assert len(commands) > 500
    assert "findAndModify" not in commands.names
