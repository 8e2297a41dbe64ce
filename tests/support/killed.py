"""Run as a program: something is done in a process that is killed at each of its commands in turn.

Usage: `python -m support.killed URI DATABASE DEED ACTION [FILE]`, a deed and an action of `support/deeds.py`. For the
first, the second, … command of the deed, one child is killed (SIGKILL) before the command is sent and another when its
answer has come, until one is left to its end. Right before that command is sent, somebody else does the action. Prints
a line of JSON per child, a `Crash`; the next child begins when a line on the input says that what it left was seen.

The children are forks: importing Strands takes a second, a fork a few milliseconds. Nothing is shared that matters:
the parent never makes a client or a manager.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count

from pymongo import MongoClient

from support.deeds import ACTIONS, DEEDS, Scene
from support.histories import Interruption


@dataclass(frozen=True)
class Crash:
    """What became of one child.

    Attributes:
        session_id: its session.
        command: name of the command at which it was killed; empty if it came to its end.
        acknowledged: how many messages it was told are stored.
    """

    session_id: str
    command: str
    acknowledged: int

    @property
    def killed(self) -> bool:
        return bool(self.command)


def crashes(uri: str, database_name: str, deed: str, action: str = "nothing", file: str = "") -> Iterator[Crash]:
    """What became of each child, before the next one begins; the last two were not killed."""
    found: list[Crash] = []
    with subprocess.Popen(
        [sys.executable, "-m", "support.killed", uri, database_name, deed, action, file],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            for line in running.stdout:
                found.append(Crash(**json.loads(line)))
                yield found[-1]
                running.stdin.write("seen\n")
                running.stdin.flush()
            assert running.wait(60) == 0
        finally:
            running.kill()
    assert [one.killed for one in found] == [True] * (len(found) - 2) + [False] * 2
    commands = [one.command for one in found]
    assert commands[0::2] == commands[1::2], "not every command was hit at both moments"


def be_killed(scene: Scene, interruption: Interruption, deed: str, action: str, moment: str, number: int) -> None:
    """The life of one child."""
    acknowledged = 0

    def acknowledge(messages: int) -> None:
        nonlocal acknowledged
        acknowledged = messages

    def tell(command: str) -> None:
        os.write(1, json.dumps(asdict(Crash(scene.session_id, command, acknowledged))).encode() + b"\n")

    def here() -> None:
        command = interruption.commands[-1]
        ACTIONS[action](scene.plain, scene.database_name, scene.session_id)

        def die() -> None:
            tell(command)
            os.kill(os.getpid(), signal.SIGKILL)

        if moment == "started":
            die()
        interruption.arm("succeeded", 1, die)

    with scene.plain, scene.client:
        act = DEEDS[deed](scene)
        interruption.arm("started", number, here)
        act(acknowledge)
    assert interruption.error is None, interruption.error
    tell("")


def main(uri: str, database_name: str, deed: str, action: str, file: str) -> None:
    for number in count(1):
        statuses = []
        for moment in ("started", "succeeded"):
            assert threading.active_count() == 1
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    killer = Interruption()
                    clients = MongoClient(uri), MongoClient(uri, event_listeners=[killer])
                    scene = Scene(*clients, database_name, f"{deed}, {action}, {moment} {number}", file)
                    be_killed(scene, killer, deed, action, moment, number)
                    status = 0
                finally:
                    os._exit(status)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            sys.stdin.readline()
        assert set(statuses) <= {0, -signal.SIGKILL}, statuses
        if statuses == [0, 0]:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
