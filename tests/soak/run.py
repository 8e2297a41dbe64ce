"""One run on one kind of server: begin everything, let it go wrong for a while, mend it, and check what is left."""

import collections
import faulthandler
import logging
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from support.waiting import eventually

from soak.ending import tidy_up
from soak.faults import Faults
from soak.invariants import findings
from soak.journal import Told, read_journals
from soak.nursery import Children
from soak.stored import Stored
from soak.world import COLLECTION, DATABASE, World
from soak.writers import Writer

_THREADS = [0, 1]
_CHILDREN = [10, 11]
_PROGRESS_SECONDS = 15.0
# After everything is mended: no command waits longer than that for a server.
_END_SECONDS = 90.0
_MEMORY = Path("/dev/shm")


def run(kind: str, seconds: float, seed: int) -> int:
    """Run for so long; return how many findings there are."""
    _say(f"soak on a {kind}: seed {seed}, {seconds:g} s")
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None))
    logging.basicConfig(filename=folder / "library.log", level=logging.WARNING, force=True)
    world = World(kind, random.Random(f"{seed}/{kind}"))
    children: Children | None = None
    threads: list[threading.Thread] = []
    found: list[str] = []
    try:
        world.start()
        began = time.monotonic()
        until = began + seconds
        specification = {
            "uri": world.uri,
            "folder": str(folder),
            "seed": seed,
            "began": began,
            "until": until,
            "database": DATABASE,
        }
        children = Children(specification, _CHILDREN)
        children.fill_up()
        for number in _THREADS:
            writer = Writer({**specification, "writer": number, "generation": 1})
            threads.append(threading.Thread(target=writer.run, name=f"writer {number}", daemon=True))
            threads[-1].start()
        faults = Faults(world, children, random.Random(f"{seed}/{kind}/faults"))
        faults.start()
        try:
            _watch(folder, until, faults)
        finally:
            faults.stop()
            world.heal()
        found += _end_of_writers(threads, children)
        (folder / "stop").touch()
        told = read_journals(folder)
        found += [f"{what}\n    {len(when)} times: {'; '.join(when[:3])}" for what, when in told.findings.items()]
        found += faults.problems
        names = [*children.begun, *(f"w{number:02d}g001" for number in _THREADS)]
        found += [
            f"{name} was not killed and did not come to its end; see children.log, or above"
            for name in names
            if name not in told.ended and name not in children.killed
        ]
        eventually(world.is_idle, message="no command of a writer is under way")
        found += _checked(world, told)
        _report(told, faults, world, children)
    except Exception:
        found.append(f"this program failed itself\n{traceback.format_exc()}")
    finally:
        (folder / "stop").touch()
        if children is not None:
            children.stop()
        for thread in threads:
            thread.join(10)
        world.stop()
        if not found:
            shutil.rmtree(folder, ignore_errors=True)
    for what in found:
        _say(f"FINDING {what}")
    _say(f"soak on a {kind}: {len(found)} findings" + (f"; journals and logs are in {folder}" if found else ""))
    return len(found)


def _watch(folder: Path, until: float, faults: Faults) -> None:
    pause = threading.Event()
    while (left := until - time.monotonic()) > 0:
        pause.wait(min(left, _PROGRESS_SECONDS))
        lines = sum(path.read_bytes().count(b"\n") for path in folder.glob("w*.jsonl"))
        left = max(0.0, until - time.monotonic())
        _say(f"  {left:.0f} s left, {lines} lines in the journals, {sum(faults.did.values())} faults")


def _end_of_writers(threads: list[threading.Thread], children: Children) -> list[str]:
    """Wait for the writers; one that does not end after all is mended hangs."""

    def ended() -> bool:
        return not children.alive() and not any(thread.is_alive() for thread in threads)

    try:
        eventually(ended, _END_SECONDS, "the writers have ended")
    except AssertionError:
        children.tell_where()
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        hanging = [*children.alive(), *(thread.name for thread in threads if thread.is_alive())]
        return [f"these did not end within {_END_SECONDS:g} s after all was mended: {hanging}"]
    return []


def _checked(world: World, told: Told) -> list[str]:
    unanswered: set[str] = set()
    for proxy in world.proxies:
        unanswered |= proxy.unanswered
    with world.plain_client() as client:
        tidied = tidy_up(client, DATABASE)
        return tidied + findings(Stored(client[DATABASE], COLLECTION), told, world.kind, unanswered)


def _report(told: Told, faults: Faults, world: World, children: Children) -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    for (_, outcome), number in told.did.items():
        outcomes[outcome] += number
    _say(f"  outcomes: {_counts(outcomes)}")
    _say(f"  operations: {_counts({' '.join(name): number for name, number in told.did.items()})}")
    _say(f"  errors: {_counts(told.errors)}")
    proxies: collections.Counter[str] = collections.Counter()
    for proxy in world.proxies:
        proxies.update(proxy.did)
    _say(f"  faults: {_counts(faults.did)}; of commands: {_counts(proxies)}")
    stored = sum(said.acknowledged for said in told.messages.values())
    redacted = sum(said.redacted for said in told.messages.values())
    _say(
        f"  {len(told.messages)} messages, {stored} acknowledged, {redacted} redacted; {len(told.feedbacks)} feedbacks"
    )
    _say(f"  {len(children.begun)} child processes, {len(children.killed)} killed; {len(told.lives)} lives of sessions")


def _counts(counter: Any) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counter.items()))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
