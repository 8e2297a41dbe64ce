"""Run as a program: processes that are killed at each command of an archiving, or of a redaction, in turn.

Usage: `python -m support.archiver_script URI DATABASE DEED ACTION`. For the first, the second, … command of the deed
(`archive`; `redact` archived messages; `redact early`, while an archiver that died has left a copy of them), one
child is killed (SIGKILL) before the command is sent and another when its answer has come, until one is left to its
end. Right before the command is sent, somebody else does the action: `nothing`, `redact` (the first turn), `delete`
(the session) or `begin again`.

Each child has a session of its own, `CONVERSATION` long, that nobody has archived from yet. Prints the JSON of a
`Killed` per child. The children are forks; see `crash_script`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from pymongo import MongoClient
from strands.types.session import SessionMessage

from support.histories import HISTORY, NEVER, SESSIONS, SMALL, Interruption, by_hand, manager_of, said, talker

if TYPE_CHECKING:
    from pymongo.database import Database

SECRET = "secret 0"
PROMPTS = (SECRET, *(f"prompt {number}" for number in range(1, 8)))
CONVERSATION = said(*PROMPTS)
REDACTED = ["[redacted]", "[redacted]", *CONVERSATION[2:]]
"""What the messages say once the secret, and the answer that repeats it, are redacted."""


@dataclass(frozen=True)
class Killed:
    """What became of one child.

    Attributes:
        session_id: its session.
        command: name of the command at which it was killed; empty if it came to its end.
    """

    session_id: str
    command: str


def converse(client: MongoClient[Any], database_name: str, session_id: str) -> None:
    """The conversation, all of it in the session document."""
    with manager_of(client, database_name, session_id, durability="turn", **NEVER) as manager:
        agent = talker(manager)
        for prompt in PROMPTS:
            agent(prompt)


def redact(client: MongoClient[Any], database_name: str, session_id: str) -> None:
    """Redact the first turn, as the guardrails of an application would, whoever has the session."""
    with manager_of(client, database_name, session_id) as manager:
        for message_id, role in enumerate(("user", "assistant")):
            message = SessionMessage(by_hand("", role), message_id, redact_message=by_hand("[redacted]", role))
            manager.session_repository.update_message(session_id, "assistant", message)


def leave_uncommitted(database: Database[Any], session_id: str) -> None:
    """Leave what an archiver leaves that dies before its third command."""
    document = database[SESSIONS].find_one({"_id": session_id})
    assert document is not None
    agent = document["agents"]["assistant"]
    key = {"session": session_id, "incarnation": document["incarnation"], "agent": "assistant", "first": 0}
    segment = {"_id": key, "count": 4, "edits": agent["edits"], "messages": agent["messages"][:4]}
    database[HISTORY].insert_one(segment)


def delete(client: MongoClient[Any], database_name: str, session_id: str) -> None:
    with manager_of(client, database_name, session_id) as manager:
        manager.session_repository.delete_session(session_id)


def begin_again(client: MongoClient[Any], database_name: str, session_id: str) -> None:
    """Delete the session and take a turn under its id."""
    delete(client, database_name, session_id)
    with manager_of(client, database_name, session_id) as manager:
        talker(manager)("a new life")


def nothing(client: MongoClient[Any], database_name: str, session_id: str) -> None:
    """Leave everything as it is."""


ACTIONS = {"nothing": nothing, "redact": redact, "delete": delete, "begin again": begin_again}


def child(uri: str, database_name: str, deed: str, action: str, session_id: str, moment: str, number: int) -> str:
    """The life of one child that is not killed; one that is says at which command."""
    interruption = Interruption()
    with MongoClient(uri) as plain, MongoClient(uri, event_listeners=[interruption]) as client:
        converse(plain, database_name, session_id)
        if deed == "redact":
            with manager_of(plain, database_name, session_id, **SMALL) as manager:
                talker(manager)
        if deed == "redact early":
            leave_uncommitted(plain[database_name], session_id)
        manager = manager_of(client, database_name, session_id, **SMALL)
        if deed == "archive":
            talker(manager)

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
        if deed == "archive":
            manager.flush()
        else:
            redact(client, database_name, session_id)
    return json.dumps(asdict(Killed(session_id, "")))


def main(uri: str, database_name: str, deed: str, action: str) -> None:
    for number in count(1):
        statuses = []
        for moment in ("started", "succeeded"):
            assert threading.active_count() == 1
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    session_id = f"{deed}, {action}, {moment} {number}"
                    os.write(1, child(uri, database_name, deed, action, session_id, moment, number).encode() + b"\n")
                    status = 0
                finally:
                    os._exit(status)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        assert set(statuses) <= {0, -signal.SIGKILL}, statuses
        if statuses == [0, 0]:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
