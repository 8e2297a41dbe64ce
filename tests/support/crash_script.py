"""Run as a program: a conversation in a process that is killed at each of its commands in turn.

Usage: `python -m support.crash_script URI DATABASE DURABILITY`. For the first, the second, … command, one child is
killed (SIGKILL) before the command is sent and another when its answer has come, until one is left to the end. Each
child has a session of its own. Prints a line of JSON per child, a `Crash`.

The children are forks: importing Strands takes a second, a fork a few milliseconds. Nothing is shared that matters:
the parent never makes a client or a manager.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall
from pymongo import MongoClient, monitoring
from strands import Agent, tool
from strands.hooks import MessageAddedEvent
from strands.hooks.registry import HookOrder

from mongodb_session_manager import MongoDBSessionManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KillAt = Literal["started", "succeeded"]

PROMPTS = ("hi", "look it up", "my secret")
SAID = ("hi", "Re: hi", "look it up", "toolUse", "toolResult", "Found.", "[redacted]", "I cannot.")
"""What the messages say at the end."""
TURN_ENDS = (0, 2, 6, 8)
"""How many messages there are when no turn is under way."""


@dataclass(frozen=True)
class Crash:
    """What became of one child.

    Attributes:
        session_id: its session.
        command: name of the command at which it was killed; empty if it came to its end.
        acknowledged: how many messages it was told are stored.
        killed: whether it was killed.
    """

    session_id: str
    command: str
    acknowledged: int
    killed: bool


@tool
def look_up(word: str) -> str:
    """Look something up."""
    return f"{word}: found"


def answer(messages: Any) -> Any:
    heard = messages[-1]["content"][0]
    if "toolResult" in heard:
        return "Found."
    if heard["text"] == "look it up":
        return ToolCall("look_up", {"word": "fish"})
    if heard["text"] == "my secret":
        return ScriptedReply(text="I cannot.", redact_user="[redacted]")
    return f"Re: {heard['text']}"


def talker(manager: MongoDBSessionManager) -> Agent:
    """The agent of the conversation, also for the process that goes on with it."""
    return Agent(
        model=OfflineScriptedModel(answer),
        agent_id="assistant",
        tools=[look_up],
        session_manager=manager,
        callback_handler=None,
    )


class Killer(monitoring.CommandListener):
    """Kills this process at one of its commands; `tell` is told the command's name first."""

    def __init__(self, kill_at: KillAt, number: int, tell: Callable[[str], None]) -> None:
        self._left = {"started": 0, "succeeded": 0, kill_at: number}
        self._tell = tell

    def _at(self, moment: KillAt, command: str) -> None:
        self._left[moment] -= 1
        if self._left[moment] == 0:
            self._tell(command)
            os.kill(os.getpid(), signal.SIGKILL)

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self._at("started", event.command_name)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        self._at("succeeded", event.command_name)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


def converse(uri: str, database_name: str, durability: Any, session_id: str, killer: Killer, ack: Any) -> None:
    """The conversation: open, a text turn, a tool turn, a redacted turn, close."""
    with MongoClient(uri, event_listeners=[killer]) as client:
        manager = MongoDBSessionManager(
            session_id,
            client=client,
            database_name=database_name,
            collection_name="sessions",
            durability=durability,
        )
        agent = talker(manager)
        if durability == "message":
            # After the manager's own callback, so the message is stored by then.
            stored = HookOrder.SDK_LAST + 1
            agent.hooks.add_callback(MessageAddedEvent, lambda event: ack(len(event.agent.messages)), order=stored)
        for prompt in PROMPTS:
            agent(prompt)
            ack(len(agent.messages))
        manager.close()


def run_child(name: str, act: Callable[[Killer, Callable[[Any], None]], None], kill_at: KillAt, number: int) -> Crash:
    """Let a forked child act, and die at this command; ``act`` is given what kills it and what tells the parent."""
    assert threading.active_count() == 1
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Straight into the pipe: what was told is known, however the process ends.
        def tell(value: Any) -> None:
            os.write(writer, json.dumps(value).encode() + b"\n")

        status = 1
        try:
            act(Killer(kill_at, number, tell), tell)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader) as told:  # noqa: PTH123 - a file descriptor
        values = [json.loads(line) for line in told]
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the child of {name!r} ended with {status}"
    return Crash(
        name,
        command="".join(value for value in values if isinstance(value, str)),
        acknowledged=max((value for value in values if isinstance(value, int)), default=0),
        killed=status != 0,
    )


def kill_at_every_command(child: Callable[[KillAt, int], Crash]) -> None:
    """Print what became of each child, until one is not killed: it has sent all its commands.

    The next child begins when a line on the input says that one has seen enough of what the last one left.
    """
    moments: tuple[KillAt, KillAt] = ("started", "succeeded")
    for number in count(1):
        found = []
        for kill_at in moments:
            found.append(child(kill_at, number))
            sys.stdout.write(json.dumps(asdict(found[-1])) + "\n")
            sys.stdout.flush()
            sys.stdin.readline()
        if not all(crash.killed for crash in found):
            return


def crashes(script: str, *arguments: str) -> Iterator[Crash]:
    """What became of each process of such a script, a module of this package, before the next one begins."""
    with subprocess.Popen(
        [sys.executable, "-m", f"support.{script}", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            for line in running.stdout:
                yield Crash(**json.loads(line))
                running.stdin.write("seen\n")
                running.stdin.flush()
            assert running.wait(60) == 0
        finally:
            running.kill()


def main(uri: str, database_name: str, durability: str) -> None:
    def child(kill_at: KillAt, number: int) -> Crash:
        session_id = f"{durability}, {kill_at} {number}"

        def act(killer: Killer, tell: Callable[[Any], None]) -> None:
            converse(uri, database_name, durability, session_id, killer, tell)

        return run_child(session_id, act, kill_at, number)

    kill_at_every_command(child)


if __name__ == "__main__":
    main(*sys.argv[1:])
