"""Run as a program: a turn that moves the parts of its session on, in a process killed at each command in turn.

Usage: `python -m support.expiry_crash_script URI DATABASE`. As in `support/crash_script.py`; each child begins with
what is kept in the database (`support/snapshots.py`). Prints a line of JSON per child, a `Crash`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pymongo import MongoClient
from strands.agent.conversation_manager import SlidingWindowConversationManager

from support.blobs import THRESHOLD, shown, talker
from support.crash_script import Crash, KillAt, Killer, kill_at_every_command, run_child
from support.histories import SMALL, manager_of
from support.snapshots import put_back

if TYPE_CHECKING:
    from collections.abc import Callable

TTL_HOURS = 10


def take_a_turn(client: MongoClient[Any], database: str) -> None:
    with manager_of(client, database, ttl_hours=TTL_HOURS, blob_threshold_bytes=THRESHOLD, **SMALL) as manager:
        agent = talker(manager, conversation_manager=SlidingWindowConversationManager(window_size=4))
        agent(shown("hello", 1))


def main(uri: str, database: str) -> None:
    def child(kill_at: KillAt, number: int) -> Crash:
        def scene(killer: Killer, tell: Callable[[Any], None]) -> None:
            client: MongoClient[Any]
            with MongoClient(uri) as client:
                put_back(client[database])
            with MongoClient(uri, event_listeners=[killer]) as client:
                take_a_turn(client, database)

        return run_child(f"{kill_at} {number}", scene, kill_at, number)

    kill_at_every_command(child)


if __name__ == "__main__":
    main(*sys.argv[1:])
