"""Writers in processes of their own, to be killed: forks of one process that has imported everything already.

Importing Strands takes a second of a processor, a fork a few milliseconds. `Children` is the end of the main process.
Run as a program this module is the nursery: a line of JSON begins a writer, the end of the input ends them all.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Children:
    """The writers that are processes, from the main process's side.

    Attributes:
        killed: names of those that were killed.
        begun: names of all that were begun.
    """

    def __init__(self, specification: dict[str, Any], writers: list[int]) -> None:
        self.killed: set[str] = set()
        self.begun: list[str] = []
        self._specification = specification
        self._generations = dict.fromkeys(writers, 0)
        self._running: dict[int, tuple[int, str]] = {}
        self._lock = threading.Lock()
        self._log = (Path(specification["folder"]) / "children.log").open("ab")
        # A session of its own: Ctrl-C in a terminal reaches the main process alone.
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "soak.nursery"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )

    def fill_up(self) -> None:
        """Begin a process for each writer that has none."""
        with self._lock:
            for writer in self._generations:
                pid, _ = self._running.get(writer, (0, ""))
                if pid and _is_there(pid):
                    continue
                self._generations[writer] += 1
                generation = self._generations[writer]
                reply = self._ask({**self._specification, "writer": writer, "generation": generation})
                name = f"w{writer:02d}g{generation:03d}"
                self._running[writer] = (reply, name)
                self.begun.append(name)

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(json.dumps(request) + "\n")
        self._nursery.stdin.flush()
        return int(self._nursery.stdout.readline())

    def kill_one(self, rng: random.Random) -> None:
        """Kill one of them."""
        with self._lock:
            if alive := self._alive():
                pid, name = rng.choice(alive)
                self.killed.add(name)
                _signal(pid, signal.SIGKILL)

    def freeze_one(self, rng: random.Random) -> int | None:
        """Let one of them stand still; return which."""
        with self._lock:
            if not (alive := self._alive()):
                return None
            pid = rng.choice(alive)[0]
            _signal(pid, signal.SIGSTOP)
            return pid

    @staticmethod
    def let_go_on(pid: int) -> None:
        """Let it go on."""
        _signal(pid, signal.SIGCONT)

    def _alive(self) -> list[tuple[int, str]]:
        return [one for one in self._running.values() if _is_there(one[0])]

    def alive(self) -> list[str]:
        """Names of those that run."""
        with self._lock:
            return [name for _, name in self._alive()]

    def tell_where(self) -> None:
        """Let each that still runs write into the log where its threads are."""
        for pid, _ in self._alive():
            _signal(pid, signal.SIGUSR1)

    def stop(self) -> None:
        """End all of them, and the nursery."""
        with contextlib.suppress(OSError):
            assert self._nursery.stdin is not None
            self._nursery.stdin.close()
        try:
            self._nursery.wait(30)
        except subprocess.TimeoutExpired:
            self._nursery.kill()
            self._nursery.wait()
        assert self._nursery.stdout is not None
        self._nursery.stdout.close()
        self._log.close()


def _is_there(pid: int) -> bool:
    return _signal(pid, 0)


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _begin(specification: dict[str, Any]) -> int:
    nursery = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with contextlib.suppress(OSError, AttributeError):  # not on Linux
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != nursery:
            os._exit(1)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(2, 1)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        from soak.writers import write

        write(specification)
        status = 0
    finally:
        os._exit(status)


def _main() -> None:
    import soak.writers  # noqa: F401 - so that the children have it

    assert threading.active_count() == 1, "what is forked must have one thread"
    pids: set[int] = set()
    requests = os.fdopen(0, "rb", buffering=0)
    while True:
        ready = select.select([requests], [], [], 0.1)[0]
        for pid in list(pids):
            if os.waitpid(pid, os.WNOHANG)[0]:
                pids.discard(pid)
        if not ready:
            continue
        line = requests.readline()
        if not line:
            break
        pid = _begin(json.loads(line))
        pids.add(pid)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
    for pid in pids:
        _signal(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _main()
