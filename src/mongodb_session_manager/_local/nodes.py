"""The nodes of a local MongoDB: the owner's end of the process that keeps them, and how they become a replica set."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from pymongo.errors import OperationFailure

from . import keeper
from .mongod import HOST, REPLICA_SET, LocalMongoDBError, PortTakenError, ask, command, wait_for, why_it_ended

_PORT_ATTEMPTS = 10
_NO_KEEPER = "The process that keeps the servers has ended: stopped, killed, or no temporary folder to be had"
_ALREADY_INITIALIZED, _NOT_YET_INITIALIZED = 23, 94  # The server's error codes.


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

    def __init__(self, process: KeeperProcess, folder: Path, command: list[str]) -> None:
        self.port = 0
        self.pid: int | None = None
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
        for _ in range(_PORT_ATTEMPTS):
            with socket.socket() as probe:
                probe.bind((HOST, 0))
                self.port = probe.getsockname()[1]
            # Another process may be faster between the probe's close and mongod's bind.
            with contextlib.suppress(PortTakenError):
                return self._start()
        raise PortTakenError(f"mongod could not listen: {_PORT_ATTEMPTS} free ports in a row were taken meanwhile")

    def _start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        log = self._folder.with_suffix(".log")
        mongod = [*self._command, "--port", str(self.port), "--dbpath", str(self._folder)]
        self.pid = self._keeper.request("start", mongod, str(log))

        def answers() -> bool:
            exit_code = self._keeper.request("exit_code", self.pid)
            if exit_code is not None:
                self.pid = None
                raise why_it_ended(mongod[0], self.port, exit_code, log.read_text(errors="replace"))
            # Compared, because another server may have been faster to the port, and ours about to give up.
            return ask(self.port, "serverStatus").get("pid") == self.pid

        wait_for(answers, f"mongod did not answer on port {self.port}")

    def _end(self, signal_number: int) -> None:
        if self.pid is not None:
            self._keeper.request("signal", self.pid, int(signal_number))
            ended = f"mongod on port {self.port} did not end"
            wait_for(lambda: self._keeper.request("exit_code", self.pid) is not None, ended)
            self.pid = None


def form_replica_set(nodes: Sequence[LocalNode]) -> None:
    """Make a replica set of nodes that run; return when it has a primary and every other node has the data.

    Raises:
        LocalMongoDBError: That was not so within 60 s.
    """
    first = nodes[0].port
    members = [{"_id": number, "host": node.host} for number, node in enumerate(nodes)]
    # The defaults (an election after 10 s, a heartbeat every 2 s) are made for networks.
    settings = {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500}

    def configure() -> dict[str, Any] | None:
        with contextlib.suppress(OperationFailure):  # Not initialized, or its configuration is still read.
            return dict(command(first, "replSetGetConfig")["config"])
        try:
            wanted = {"_id": REPLICA_SET, "version": 1, "members": members, "settings": settings}
            command(first, "replSetInitiate", wanted)
        except OperationFailure as error:
            if error.code not in (_ALREADY_INITIALIZED, _NOT_YET_INITIALIZED):
                raise
        return None

    config = wait_for(configure, "The replica set could not be configured")
    if [member["host"] for member in config["members"]] != [node.host for node in nodes]:
        # An earlier run's, on other ports. Forced, since no node finds itself in the old configuration.
        config.update(members=members, version=config["version"] + 1)
        command(first, "replSetReconfig", config, force=True)

    def complete() -> bool:
        states = [ask(node.port, "hello") for node in nodes]
        primaries = sum(bool(state.get("isWritablePrimary")) for state in states)
        return primaries == 1 and sum(bool(state.get("secondary")) for state in states) == len(nodes) - 1

    wait_for(complete, "The replica set did not elect a primary and bring all nodes up to date")
