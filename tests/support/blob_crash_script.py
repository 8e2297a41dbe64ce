"""Run as a program: something is done with images in a process that is killed at each of its commands in turn.

Usage: `python -m support.blob_crash_script URI DATABASE SCENARIO`. As in `support/crash_script.py`: for each command a
child is killed before it is sent and another when its answer has come, until one is left to the end. Each child
begins with empty collections: those of the child before it, since making them costs more than all the rest. Prints a
line of JSON per child, a `Crash` whose `session_id` names the child.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pymongo import MongoClient
from strands.agent.conversation_manager import SlidingWindowConversationManager

from mongodb_session_manager import MongoDBSessionManager
from mongodb_session_manager.mongodb_session_repository import MongoDBSessionRepository
from support.blobs import THRESHOLD, shown, talker
from support.crash_script import Crash, KillAt, Killer, kill_at_every_command, run_child
from support.sweeping import swept

if TYPE_CHECKING:
    from collections.abc import Callable

COLLECTION = "sessions"


def opened(client: MongoClient[Any], database: str, collection: str, **options: Any) -> MongoDBSessionManager:
    return MongoDBSessionManager(
        "s",
        client=client,
        database_name=database,
        collection_name=collection,
        blob_threshold_bytes=THRESHOLD,
        **options,
    )


def repository_of(client: MongoClient[Any], database: str, collection: str) -> MongoDBSessionRepository:
    return MongoDBSessionRepository(client=client, database_name=database, collection_name=collection)


PARTS = ("", "_history", "_blobs.files", "_blobs.chunks")


def empty(client: MongoClient[Any], database: str, collection: str) -> None:
    """Delete every document, and keep the collections and their indexes."""
    for name in PARTS:
        client[database][f"{collection}{name}"].delete_many({})


def begin(client: MongoClient[Any], database: str, collection: str) -> None:
    """A turn with two images, before anything is killed."""
    with opened(client, database, collection) as manager:
        talker(manager)(shown("before", 1, 2))


def leave_rubbish(client: MongoClient[Any], database: str, collection: str) -> None:
    """Two lives of sessions of which only blobs and history are left."""
    for session_id in ("s", "other"):
        manager = MongoDBSessionManager(
            session_id,
            client=client,
            database_name=database,
            collection_name=collection,
            blob_threshold_bytes=THRESHOLD,
            archive_after_messages=2,
            archive_block=2,
        )
        agent = talker(manager, conversation_manager=SlidingWindowConversationManager(window_size=2))
        for n in range(3):
            agent(shown(f"{n}", n))
        manager.close()
        client[database][collection].delete_many({"_id": session_id})


def begin_with_rubbish(client: MongoClient[Any], database: str, collection: str) -> None:
    """The same, after two other lives; all children after the first have a copy of what was left of them."""
    if "rubbish_history" not in client[database].list_collection_names():
        leave_rubbish(client, database, "rubbish")
    for name in PARTS:
        client[database][f"rubbish{name}"].aggregate([{"$merge": f"{collection}{name}"}])
    begin(client, database, collection)


def take_a_turn(durability: str) -> Callable[..., None]:
    def act(client: MongoClient[Any], database: str, collection: str, ack: Callable[[int], None]) -> None:
        manager = opened(client, database, collection, durability=durability)
        agent = talker(manager)
        agent._model_state["screen"] = b"s" * 200
        agent(shown("look", 3, 4))
        ack(4)
        manager.close()

    return act


def redact(client: MongoClient[Any], database: str, collection: str, ack: Callable[[int], None]) -> None:
    manager = opened(client, database, collection)
    agent = talker(manager)
    manager.append_message({"role": "user", "content": shown("my secret", 3)}, agent)
    ack(3)
    manager.redact_latest_message({"role": "user", "content": [{"text": "[redacted]"}]}, agent)
    ack(4)
    manager.close()


def delete(client: MongoClient[Any], database: str, collection: str, ack: Callable[[int], None]) -> None:
    repository_of(client, database, collection).delete_session("s")
    ack(1)


def sweep(client: MongoClient[Any], database: str, collection: str, ack: Callable[[int], None]) -> None:
    swept(repository_of(client, database, collection), -2)
    ack(1)


SCENARIOS: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
    "a turn with message": (begin, take_a_turn("message")),
    "a turn with turn": (begin, take_a_turn("turn")),
    "a redaction": (begin, redact),
    "a deletion": (begin, delete),
    "a sweep": (begin_with_rubbish, sweep),
}


def main(uri: str, database: str, scenario: str) -> None:
    prepare, act = SCENARIOS[scenario]

    def child(kill_at: KillAt, number: int) -> Crash:
        def scene(killer: Killer, tell: Callable[[Any], None]) -> None:
            client: MongoClient[Any]
            with MongoClient(uri) as client:  # Acknowledged by a majority: that is what a sweep reads.
                empty(client, database, COLLECTION)
                prepare(client, database, COLLECTION)
            with MongoClient(uri, event_listeners=[killer]) as client:
                act(client, database, COLLECTION, tell)

        return run_child(f"{kill_at} {number}", scene, kill_at, number)

    kill_at_every_command(child)


if __name__ == "__main__":
    main(*sys.argv[1:])
