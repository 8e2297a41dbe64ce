"""How long the event loop stands still while sessions are stored on a slow MongoDB.

A failpoint makes the server wait before every command. A task on the same loop asks to be woken every millisecond;
how much later it is woken is the stall. Two scenes, each the best of three runs, because a busy machine stalls too:

- 32 people at once, 50 ms a command: each opens a stored session, builds its agent and streams one turn.
- four agents of one manager, 200 ms a command; a guardrail redacts what one of them was asked, in mid-turn.

Beside them the same turns with no session manager at all, and with PyPI's `strands-session-mongodb`, which keeps
Strands' synchronous hooks (one run: it is slow).

    python benchmarks/event_loop.py [--quick] [--runs N]

Everything here is time, so the exit code is 0 whatever is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import support
from pymongo import MongoClient
from strands_session_mongodb import MongoDBSessionManager as RivalSessionManager
from support import OfflineScriptedModel, ScriptedReply, Target

from mongodb_session_manager import MongoDBSessionManagerFactory
from mongodb_session_manager.local import LocalMongoDB

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from strands import Agent

SESSIONS = 32
AGENT_IDS = ("researcher", "writer", "editor", "critic")
SAMPLE_SECONDS = 0.001
STALL_LIMIT_MS = 40
TOTAL_LIMIT_SECONDS = 1.5
SECRET = "My card number is 4000 0012 3456 7899."
REDACTED = "[redacted]"
APP_NAME = "benchmark"
DATABASE = "event_loop"
# Every command that a store here sends.
COMMANDS = ("find", "getMore", "insert", "update", "delete", "findAndModify", "aggregate", "createIndexes")


@dataclass(frozen=True)
class Run:
    """What one run of a scene took.

    Attributes:
        stall_ms: The longest the loop did not come round, in milliseconds.
        seconds: From the first opening to the end of the last turn.
    """

    stall_ms: float
    seconds: float


async def watched(act: Callable[[], Awaitable[Any]]) -> Run:
    """Run ``act`` on this loop and watch how the loop keeps time meanwhile."""
    longest = 0.0

    async def sample() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(SAMPLE_SECONDS)
            longest = max(longest, time.perf_counter() - began - SAMPLE_SECONDS)

    # What is there already stays out of Python's garbage collections: those stall a loop with any store.
    gc.collect()
    gc.freeze()
    sampler = asyncio.create_task(sample())
    await asyncio.sleep(10 * SAMPLE_SECONDS)
    longest = 0.0
    began = time.perf_counter()
    await act()
    seconds = time.perf_counter() - began
    await asyncio.sleep(2 * SAMPLE_SECONDS)  # So that a stall at the very end is seen.
    sampler.cancel()
    with suppress(asyncio.CancelledError):
        await sampler
    gc.unfreeze()
    return Run(longest * 1000, seconds)


async def stream(agent: Agent, prompt: str) -> None:
    """Take one turn as a web service does."""
    async for _ in agent.stream_async(prompt):
        pass


def redacting_model() -> OfflineScriptedModel:
    """Return a model whose guardrail redacts the user's message."""
    return OfflineScriptedModel([ScriptedReply(text="I cannot help with that.", redact_user=REDACTED)])


def model_of(agent_id: str) -> OfflineScriptedModel:
    """Return the model of one of the four agents: the first one's redacts."""
    return redacting_model() if agent_id == AGENT_IDS[0] else support.text_model()


class Contender:
    """Somebody who keeps the sessions, or does not.

    Attributes:
        name: As printed.
        runs: How often a scene is run at most.
    """

    name = "no session manager"
    runs = 100

    def make_sessions(self) -> None:
        """Store the sessions that are opened later."""

    async def open(self, session_id: str, agent_ids: tuple[str, ...]) -> Any:
        """Open a session; the manager for its agents."""
        return None

    def check(self, session_id: str, agent_ids: tuple[str, ...], turns: int) -> None:
        """Make sure that the turns are stored."""

    async def many_sessions(self) -> None:
        """32 people take one turn each."""

        async def request(number: int) -> None:
            manager = await self.open(f"session-{number}", (support.AGENT_ID,))
            await stream(support.make_agent(session_manager=manager), support.TEXT)

        await asyncio.gather(*(request(number) for number in range(SESSIONS)))

    async def four_agents(self) -> None:
        """Four agents of one manager take one turn each; one of them is redacted."""
        manager = await self.open("together", AGENT_IDS)
        agents = [
            support.make_agent(model_of(agent_id), agent_id=agent_id, session_manager=manager) for agent_id in AGENT_IDS
        ]
        prompts = [SECRET, *(support.TEXT for _ in AGENT_IDS[1:])]
        await asyncio.gather(*(stream(agent, prompt) for agent, prompt in zip(agents, prompts, strict=True)))


class Ours(Contender):
    """This library."""

    def __init__(self, uri: str, durability: str) -> None:
        self.name = f'ours, "{durability}"'
        self.factory = MongoDBSessionManagerFactory(
            uri, DATABASE, f"ours_{durability}", durability=durability, appName=APP_NAME
        )

    def make_sessions(self) -> None:
        """Store sessions of one turn."""
        for number in range(SESSIONS):
            manager = self.factory.create_session_manager(f"session-{number}")
            support.make_agent(session_manager=manager)(support.TEXT)
        manager = self.factory.create_session_manager("together")
        for agent_id in AGENT_IDS:
            support.make_agent(agent_id=agent_id, session_manager=manager)(support.TEXT)

    async def open(self, session_id: str, agent_ids: tuple[str, ...]) -> Any:
        """Open a session off the loop."""
        return await self.factory.open(session_id, agent_id=agent_ids)

    def check(self, session_id: str, agent_ids: tuple[str, ...], turns: int) -> None:
        """Make sure that the turns are stored, and what was redacted is not."""
        collection = self.factory.create_session_manager(session_id).session_repository.collection
        document = collection.find_one({"_id": session_id})
        assert document is not None
        assert SECRET not in str(document), "the redacted text is at rest"
        assert (REDACTED in str(document)) == (agent_ids == AGENT_IDS)
        for agent_id in agent_ids:
            assert document["agents"][agent_id]["message_count"] == 2 * turns


class Rival(Contender):
    """PyPI's `strands-session-mongodb`."""

    name = "strands-session-mongodb"
    runs = 1

    def __init__(self, uri: str) -> None:
        self.client: MongoClient[dict[str, Any]] = MongoClient(uri, appname=APP_NAME)

    def make_sessions(self) -> None:
        """Store sessions of one turn."""
        for number in range(SESSIONS):
            support.make_agent(session_manager=self._manager(f"session-{number}"))(support.TEXT)
        manager = self._manager("together")
        for agent_id in AGENT_IDS:
            support.make_agent(agent_id=agent_id, session_manager=manager)(support.TEXT)

    async def open(self, session_id: str, agent_ids: tuple[str, ...]) -> Any:
        """Open a session; it has no way to do so off the loop."""
        return self._manager(session_id)

    def _manager(self, session_id: str) -> RivalSessionManager:
        return RivalSessionManager(session_id, client=self.client, database_name=DATABASE, collection_name="rival")


def main() -> None:
    """Run both scenes with everybody and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, help="runs of each scene (default 3; with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="one run of each scene")
    arguments = parser.parse_args()
    runs = arguments.runs or (1 if arguments.quick else 3)
    with LocalMongoDB(parameters={"enableTestCommands": 1}) as server:
        switch: MongoClient[dict[str, Any]]
        with MongoClient(server.uri, appname="switch") as switch:
            ours = [Ours(server.uri, "message"), Ours(server.uri, "turn")]
            contenders = [Contender(), *ours, Rival(server.uri)]
            print(f"{support.versions(switch)}; best of {runs} runs")
            targets = []
            for scene, title, milliseconds in (
                ("many_sessions", f"{SESSIONS} sessions at once, one turn each", 50),
                ("four_agents", f"{len(AGENT_IDS)} agents of one manager, one of them redacted", 200),
            ):
                best = _run_scene(switch, contenders, scene, milliseconds, runs)
                support.print_table(
                    f"{title}, {milliseconds} ms a command",
                    ["session manager", "longest stall, ms", "all together, s"],
                    [[who.name, f"{run.stall_ms:.1f}", f"{run.seconds:.2f}"] for who, run in best.items()],
                )
                targets += [target for who in ours for target in _targets(who, title, best[who])]
            support.print_targets(targets)


def _run_scene(
    switch: MongoClient[dict[str, Any]], contenders: list[Contender], scene: str, milliseconds: int, runs: int
) -> dict[Contender, Run]:
    best = {}
    for who in contenders:
        switch.drop_database(DATABASE)
        who.make_sessions()
        found = []
        for _ in range(min(runs, who.runs)):
            with support.fail_command(switch, COMMANDS, app_name=APP_NAME, block_ms=milliseconds):
                found.append(asyncio.run(watched(getattr(who, scene))))
        many = scene == "many_sessions"
        who.check(*("session-0", (support.AGENT_ID,)) if many else ("together", AGENT_IDS), turns=1 + len(found))
        best[who] = Run(min(run.stall_ms for run in found), min(run.seconds for run in found))
    return best


def _targets(who: Contender, title: str, best: Run) -> list[Target]:
    stall = Target(
        f"{who.name}: {title}: the loop stands still for at most {STALL_LIMIT_MS} ms",
        best.stall_ms <= STALL_LIMIT_MS,
        f"{best.stall_ms:.1f} ms",
        exact=False,
    )
    total = Target(
        f"{who.name}: {title}: under {TOTAL_LIMIT_SECONDS} s together",
        best.seconds < TOTAL_LIMIT_SECONDS,
        f"{best.seconds:.2f} s",
        exact=False,
    )
    return [stall, total]


if __name__ == "__main__":
    main()
