"""Run as a program: a turn that moves the parts of its session on, in a process killed at each command in turn.

Usage: `python -m support.expiry_crash_script URI DATABASE`. As in `support/crash_script.py`; each child has a session
of its own, whose parts have less than one ttl left. Prints a line of JSON per child, a `Crash`.
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from pymongo import MongoClient
from strands.agent.conversation_manager import SlidingWindowConversationManager

from support.blobs import THRESHOLD, shown, talker
from support.crash_script import Crash, KillAt, Killer, kill_at_every_command, run_child
from support.histories import SMALL, manager_of

if TYPE_CHECKING:
    from collections.abc import Callable

TTL_HOURS = 10


def turns(client: MongoClient[Any], database: str, session_id: str, prompts: list[str]) -> None:
    with manager_of(
        client, database, session_id, ttl_hours=TTL_HOURS, blob_threshold_bytes=THRESHOLD, **SMALL
    ) as manager:
        agent = talker(manager, conversation_manager=SlidingWindowConversationManager(window_size=4))
        for prompt in prompts:
            agent(shown(prompt, 1))


def let_time_pass(client: MongoClient[Any], database: str, session_id: str) -> None:
    """Let the session have half an hour, and its parts an hour."""
    now = datetime.now(timezone.utc)
    sessions = client[database]["sessions"]
    session = sessions.find_one({"_id": session_id})
    assert session is not None
    half, whole = now + timedelta(hours=0.5), now + timedelta(hours=1)
    sessions.update_one({"_id": session_id}, {"$set": {"expires_at": half, "parts_expire_at": whole}})
    files = client[database]["sessions_blobs.files"].distinct("_id", {"metadata.incarnation": session["incarnation"]})
    for name, mine in (
        ("_history", {"_id.incarnation": session["incarnation"]}),
        ("_blobs.files", {"_id": {"$in": files}}),
        ("_blobs.chunks", {"files_id": {"$in": files}}),
    ):
        client[database][f"sessions{name}"].update_many(mine, {"$set": {"expires_at": whole}})


def main(uri: str, database: str) -> None:
    def child(kill_at: KillAt, number: int) -> Crash:
        session_id = f"{kill_at} {number}"

        def scene(killer: Killer, tell: Callable[[Any], None]) -> None:
            client: MongoClient[Any]
            with MongoClient(uri) as client:
                turns(client, database, session_id, [f"prompt {n}" for n in range(6)])
                let_time_pass(client, database, session_id)
            with MongoClient(uri, event_listeners=[killer]) as client:
                turns(client, database, session_id, ["hello"])

        return run_child(session_id, scene, kill_at, number)

    kill_at_every_command(child)


if __name__ == "__main__":
    main(*sys.argv[1:])
