"""The keeper: a process that starts servers for one owner, and ends them when the owner is gone.

Run as a script, without site-packages and this package, so that it starts in 0.1 s.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from typing import Any

# How long servers may outlive their owner while a fork of the owner still holds the pipe open.
_OWNER_CHECK_SECONDS = 0.5
_STOP_SECONDS = 30
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def keep(owner: int, data_dir: str, pipe: Connection[Any, Any]) -> None:
    """Start servers as the owner asks; end them when it says so, or when it is gone.

    Args:
        owner: The process id of the owner.
        data_dir: The folder of the servers' data; "" for a temporary one, which is removed at the end.
        pipe: Requests come by it: ``(number, name, *arguments)``. Each is answered by ``(number, result)``; the result
            is an ``OSError`` where it failed. ``None`` ends the keeper.
    """
    die_with_me = None
    if sys.platform == "linux":
        # For a `killall -9 python`, which ends the keeper too. It has one thread, so this holds here.
        die_with_me = functools.partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, signal.SIGKILL)
    folder = data_dir or tempfile.mkdtemp(prefix="mongodb-session-manager-")
    servers: dict[int, subprocess.Popen[bytes]] = {}

    def start(command: list[str], log: str) -> int:
        with open(log, "wb") as output:  # noqa: PTH123 - one module less to import
            server = subprocess.Popen(  # noqa: S603 - the mongod that the owner found
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=die_with_me
            )
        servers[server.pid] = server
        return server.pid

    answers: dict[str, Any] = {
        "folder": lambda: folder,
        "start": start,
        # The owner cannot: only a parent knows that a process id is still its child's.
        "signal": lambda pid, number: servers[pid].send_signal(number),
        "exit_code": lambda pid: servers[pid].poll(),
    }
    try:
        while os.getppid() == owner:
            if not pipe.poll(_OWNER_CHECK_SECONDS):
                continue
            request = pipe.recv()
            if request is None:
                break
            number, name, *arguments = request
            try:
                result = answers[name](*arguments)
            except OSError as error:
                result = error
            pipe.send((number, result))
    except EOFError:
        pass  # The owner has closed its end, or has ended.
    finally:
        for server in servers.values():
            server.send_signal(signal.SIGTERM if data_dir else signal.SIGKILL)
        for server in servers.values():
            try:
                server.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()  # The journal has what was written.
                server.wait()
        if not data_dir:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for interruption in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # It ends after its owner, whatever is sent to both. A function, since mongod would inherit SIG_IGN.
        signal.signal(interruption, lambda *_: None)
    keep(int(sys.argv[1]), sys.argv[2], Connection(0))
