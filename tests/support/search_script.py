"""Run as a program: processes that are killed at each command of a feeding of the search, or of a redaction, in turn.

Usage: `python -m support.search_script URI DATABASE DEED ACTION FILE`. As in `support/archiver_script.py`: for each
command of the deed (`index` or `redact`) a child is killed before it is sent and another when its answer has come,
until one is left to the end; right before the command is sent somebody else does the action. Each child has a copy of
the session that is kept in the file. Prints the JSON of a `Killed` per child.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bson
from bson import ObjectId
from pymongo import MongoClient

from mongodb_session_manager.mongodb_session_repository import MongoDBSessionRepository
from support.archiver_script import ACTIONS, Killed, converse, redact
from support.histories import HISTORY, SESSIONS, SMALL, Interruption, manager_of, talker

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymongo.database import Database

SEARCH = "sessions_search"
STATES = ("embedded", "archived", "indexed", "indexed, then archived", "archived, then indexed")


def repository_of(client: MongoClient[Any], database_name: str) -> MongoDBSessionRepository:
    return MongoDBSessionRepository(client=client, database_name=database_name, collection_name=SESSIONS)


def index(client: MongoClient[Any], database_name: str, session_id: str) -> None:
    """Index messages as a manager does behind a turn."""
    with manager_of(client, database_name, session_id, index_messages=True) as manager:
        talker(manager)


def archive(client: MongoClient[Any], database_name: str, session_id: str) -> None:
    with manager_of(client, database_name, session_id, **SMALL) as manager:
        talker(manager)


STEPS: dict[str, Callable[[MongoClient[Any], str, str], None]] = {
    "embedded": lambda *_: None,
    "archived": archive,
    "indexed": index,
}


def session_in_state(client: MongoClient[Any], database_name: str, state: str) -> dict[str, Any]:
    """The documents of a session in one of the `STATES`, by collection; none of them is left in the database."""
    session_id = f"template, {state}"
    converse(client, database_name, session_id)
    for done in state.split(", then "):
        STEPS[done](client, database_name, session_id)
    database = client[database_name]
    found: dict[str, Any] = {}
    for name in (SESSIONS, HISTORY, SEARCH):
        query = {"_id" if name == SESSIONS else "_id.session": session_id}
        found[name] = list(database[name].find(query))
        database[name].delete_many(query)
    return found


def put_session(database: Database[Any], session: dict[str, Any], session_id: str) -> None:
    """Put a copy of such a session into the database, a life of its own."""
    incarnation = ObjectId()
    for name, documents in session.items():
        for document in documents:
            if name == SESSIONS:
                copy = {**document, "_id": session_id, "session_id": session_id, "incarnation": incarnation}
            else:
                copy = {**document, "_id": {**document["_id"], "session": session_id, "incarnation": incarnation}}
            if name == SEARCH:
                copy["session_id"] = session_id
            database[name].insert_one(copy)


DEEDS: dict[str, Callable[[MongoClient[Any], str, str], None]] = {"index": index, "redact": redact}


def child(
    uri: str, database_name: str, deed: str, action: str, file: str, session_id: str, moment: str, number: int
) -> str:
    """The life of one child that is not killed; one that is says at which command."""
    interruption = Interruption()
    with MongoClient(uri) as plain, MongoClient(uri, event_listeners=[interruption]) as client:
        put_session(plain[database_name], bson.decode(Path(file).read_bytes()), session_id)
        client.admin.command("ping")

        def act() -> None:
            command = interruption.commands[-1]
            ACTIONS[action](plain, database_name, session_id)

            def kill() -> None:
                os.write(1, json.dumps(asdict(Killed(session_id, command))).encode() + b"\n")
                os.kill(os.getpid(), signal.SIGKILL)

            if moment == "started":
                kill()
            interruption.arm("succeeded", 1, kill)

        interruption.arm("started", number, act)
        DEEDS[deed](client, database_name, session_id)
    return json.dumps(asdict(Killed(session_id, "")))


def main(uri: str, database_name: str, deed: str, action: str, file: str) -> None:
    for number in count(1):
        statuses = []
        for moment in ("started", "succeeded"):
            assert threading.active_count() == 1
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    session_id = f"{deed}, {action}, {moment} {number}"
                    found = child(uri, database_name, deed, action, file, session_id, moment, number)
                    os.write(1, found.encode() + b"\n")
                    status = 0
                finally:
                    os._exit(status)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        assert set(statuses) <= {0, -signal.SIGKILL}, statuses
        if statuses == [0, 0]:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
