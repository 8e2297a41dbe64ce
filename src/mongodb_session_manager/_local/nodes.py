"""The nodes of a local MongoDB, and the owner's end of the process that keeps them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from . import keeper
from .mongod import HOST, LocalMongoDBError, PortTakenError, ask, wait_for, why_it_ended

_PORT_ATTEMPTS = 10
_NO_KEEPER = "The process that keeps the servers has ended: stopped, killed, or no temporary folder to be had"


class KeeperProcess:
    """A keeper, started; it and the servers end with `end`, with this object and with this process.

    Args:
        data_dir: The folder of the servers' data; None for a temporary one.

    Attributes:
        folder: That folder.
    """

    def __init__(self, data_dir: Path | None) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._number = 0
        self._pipe, theirs = Pipe()
        with theirs:
            # A session of its own: Ctrl-C in a terminal reaches the owner alone, which ends as it sees fit.
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, a file of this package
                [sys.executable, "-I", "-S", keeper.__file__, str(self._owner), str(data_dir or "")],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        self.folder = Path(self.request("folder"))

    def request(self, name: str, *arguments: object) -> Any:
        """Return what the keeper's method of this name returns.

        Raises:
            LocalMongoDBError: It failed, or there is no keeper any more.
        """
        with self._lock:
            self._number += 1
            answered = 0
            try:
                self._pipe.send((self._number, name, *arguments))
                # Numbered, because the answer to a request that Ctrl-C interrupted may still be on its way.
                while answered != self._number:
                    answered, result = self._pipe.recv()
            except (OSError, EOFError):
                raise LocalMongoDBError(_NO_KEEPER) from None
        if isinstance(result, OSError):
            raise LocalMongoDBError(str(result))
        return result

    def end(self) -> None:
        """End the servers. Does nothing in a fork: they belong to the process that started them."""
        if os.getpid() != self._owner:
            return
        with self._lock, contextlib.suppress(OSError):
            # Said, not only implied by closing: a fork of this process may hold the pipe open.
            self._pipe.send(None)
            self._pipe.close()
        self._process.wait()


class LocalNode:
    """One mongod of a `LocalMongoDB`, to be ended and started again by tests of failures.

    Attributes:
        port: TCP port on 127.0.0.1; stays the same when the node is started again.
        pid: process id of the mongod; `None` after `kill()` and `stop()`.
    """

    port: int
    pid: int | None

    def __init__(self, process: KeeperProcess, folder: Path, command: list[str]) -> None:
        self.port = 0
        self.pid = None
        self._keeper = process
        self._folder = folder
        self._command = command

    def __repr__(self) -> str:
        return f"LocalNode(port={self.port!r}, pid={self.pid!r})"

    @property
    def host(self) -> str:
        """Address and port, as in a connection string."""
        return f"{HOST}:{self.port}"

    def kill(self) -> None:
        """End the mongod as a crash does (SIGKILL), and return when it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the mongod in order (SIGTERM: a primary steps down first), and return when it is gone.

        Raises:
            LocalMongoDBError: it was not gone within 60 s.
        """
        self._end(signal.SIGTERM)

    def start(self) -> None:
        """Start the mongod, again on its port and its data, and return when it answers.

        Raises:
            LocalMongoDBError: it runs already, its port is taken by now, or it ended by itself.
        """
        if self.pid is not None:
            raise LocalMongoDBError(f"The node on port {self.port} runs already")
        if self.port:
            return self._start()
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            with socket.socket() as probe:
                probe.bind((HOST, 0))
                self.port = probe.getsockname()[1]
            try:
                return self._start()
            except PortTakenError:
                # Another process was faster between the probe's close and mongod's bind.
                if attempt == _PORT_ATTEMPTS:
                    raise
        return None

    def _start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        log = self._folder.with_suffix(".log")
        command = [*self._command, "--port", str(self.port), "--dbpath", str(self._folder)]
        self.pid = self._keeper.request("start", command, str(log))

        def answers() -> bool:
            exit_code = self._keeper.request("exit_code", self.pid)
            if exit_code is not None:
                self.pid = None
                raise why_it_ended(command[0], self.port, exit_code, log.read_text(errors="replace"))
            # Compared, because another server may have been faster to the port, and ours about to give up.
            return ask(self.port, "serverStatus").get("pid") == self.pid

        wait_for(answers, f"mongod did not answer on port {self.port}")

    def _end(self, signal_number: int) -> None:
        if self.pid is not None:
            self._keeper.request("signal", self.pid, int(signal_number))
            ended = f"mongod on port {self.port} did not end"
            wait_for(lambda: self._keeper.request("exit_code", self.pid) is not None, ended)
            self.pid = None
