"""A real MongoDB for demos, tests and laptops: started on loopback, gone with its owner.

The servers are children of a small *keeper* process, not of the owner. The kernel's own way to bind a
child's life to its parent (`PR_SET_PDEATHSIG`) is tied to the thread that forked, so a server started by a
worker thread would die with that thread. The keeper instead ends the servers, and removes a temporary folder,
as soon as its input closes or it has another parent: after a normal exit, an exception and SIGKILL alike.

The servers listen on 127.0.0.1 without authentication: every user of the machine can reach them.
Linux and macOS. `python -m mongodb_session_manager.local` runs a server until it is interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pymongo.errors import OperationFailure

from ._local import keeper, mongod
from ._local.mongod import LocalMongoDBError, command

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LocalMongoDB", "LocalMongoDBError", "LocalNode"]

_PORT_ATTEMPTS = 10
_NO_KEEPER = "The process that keeps the servers has ended: stopped, killed, or no temporary folder to be had"
_ALREADY_INITIALIZED, _NOT_YET_INITIALIZED = 23, 94  # The server's error codes.


class LocalMongoDB:
    """A MongoDB that lives as long as the `with` block around it.

    Where the environment variable `MONGODB_URI` is set, that server is used and nothing is started or
    stopped. Otherwise the `mongod` of the `local` extra is started, or else the one on the PATH.

    The servers end at `stop()`, when this object and its nodes are collected, and with the process that
    started them, however it ends. A fork of that process can connect to them; its `stop()` does nothing.

    Attributes:
        kind: `"external"` if `MONGODB_URI` was set when the object was made, else `"standalone"` or
            `"replica_set"`.
        nodes: the running servers; empty before `start()`, after `stop()` and for `"external"`.
    """

    kind: Literal["standalone", "replica_set", "external"]

    def __init__(
        self,
        *,
        replica_set: bool | int = False,
        data_dir: str | os.PathLike[str] | None = None,
        parameters: Mapping[str, object] | None = None,
    ) -> None:
        """Describe the server; `start()` or `with` starts it.

        Args:
            replica_set: `False` for a standalone server, `True` for a replica set of three nodes, or the
                number of nodes, from 1.
            data_dir: folder that keeps the data, made if it is missing and usable again later. `None`: a
                temporary folder, removed at the end.
            parameters: server parameters, as for `mongod --setParameter`; what is no text is sent as JSON.

        Raises:
            ValueError: `replica_set` is a number below 1.
        """
        if replica_set is not False and replica_set < 1:
            raise ValueError(f"replica_set is True, False or a number of nodes from 1, not {replica_set!r}")
        self._members = 3 if replica_set is True else int(replica_set)
        self._data_dir = None if data_dir is None else Path(data_dir).absolute()
        self._parameters = dict(parameters or {})
        self._external_uri = os.environ.get("MONGODB_URI", "")
        self.kind = "external" if self._external_uri else "replica_set" if self._members else "standalone"
        self.nodes: tuple[LocalNode, ...] = ()
        self._keeper: KeeperProcess | None = None
        self._version: str | None = None

    def __repr__(self) -> str:
        # Not the URI: an external one may hold a password.
        return f"LocalMongoDB(kind={self.kind!r}, ports={[node.port for node in self.nodes]!r})"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def version(self) -> str:
        """The server's version, such as `"6.0.5"`. `LocalMongoDBError` if it does not run."""
        if self._version is None:
            raise LocalMongoDBError("This LocalMongoDB does not run: call start(), or use it in a `with`")
        return self._version

    @property
    def uri(self) -> str:
        """The connection string, for a replica set with all nodes. `LocalMongoDBError` if it does not run."""
        _ = self.version
        if self._external_uri:
            return self._external_uri
        hosts = ",".join(node.host for node in self.nodes)
        return f"mongodb://{hosts}/" + (f"?replicaSet={mongod.REPLICA_SET}" if self._members else "")

    @property
    def primary(self) -> LocalNode:
        """The node that accepts writes; while an election is under way, it is waited for.

        Raises:
            LocalMongoDBError: it does not run, is external, or no node accepted writes within 60 s.
        """
        _ = self.version
        if not self.nodes:
            raise LocalMongoDBError("The nodes of the server that MONGODB_URI names are not known here")

        def find() -> LocalNode | None:
            running = (node for node in self.nodes if node.pid is not None)
            return next((node for node in running if mongod.ask(node.port, "hello").get("isWritablePrimary")), None)

        return mongod.wait_for(find, "No node became the primary")

    def start(self) -> None:
        """Start the server; return when it accepts writes and every node of a replica set has the data.

        Raises:
            LocalMongoDBError: it runs already; there is no MongoDB to run; mongod ended by itself (the
                message has its reason) or was not ready within 60 s; the server of `MONGODB_URI` did not
                answer.
        """
        if self._version is not None:
            raise LocalMongoDBError("This LocalMongoDB runs already")
        if self._external_uri:
            self._version = mongod.version_of(self._external_uri)
            return
        arguments = [mongod.find_mongod(), *mongod.options(self._parameters, replica_set=self._members > 0)]
        if self._data_dir is not None:
            self._data_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._keeper = process = KeeperProcess(self._data_dir)
            folders = [process.folder / f"node{number}" for number in range(max(self._members, 1))]
            self.nodes = tuple(LocalNode(process, folder, arguments) for folder in folders)
            for node in self.nodes:
                node.start()
            if self._members:
                form_replica_set(self.nodes)
            self._version = str(command(self.nodes[0].port, "buildInfo")["version"])
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server; remove its folder if that was temporary. Without effect if it does not run."""
        process, self._keeper = self._keeper, None
        self._version, self.nodes = None, ()
        if process is not None:
            process.end()


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
        return f"{mongod.HOST}:{self.port}"

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
                probe.bind((mongod.HOST, 0))
                self.port = probe.getsockname()[1]
            # Another process may be faster between the probe's close and mongod's bind.
            with contextlib.suppress(mongod.PortTakenError):
                return self._start()
        raise mongod.PortTakenError(
            f"mongod could not listen: {_PORT_ATTEMPTS} free ports in a row were taken meanwhile"
        )

    def _start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        log = self._folder.with_suffix(".log")
        arguments = [*self._command, "--port", str(self.port), "--dbpath", str(self._folder)]
        self.pid = self._keeper.request("start", arguments, str(log))

        def answers() -> bool:
            exit_code = self._keeper.request("exit_code", self.pid)
            if exit_code is not None:
                self.pid = None
                raise mongod.why_it_ended(arguments[0], self.port, exit_code, log.read_text(errors="replace"))
            # Compared, because another server may have been faster to the port, and ours about to give up.
            return mongod.ask(self.port, "serverStatus").get("pid") == self.pid

        mongod.wait_for(answers, f"mongod did not answer on port {self.port}")

    def _end(self, signal_number: int) -> None:
        if self.pid is not None:
            self._keeper.request("signal", self.pid, int(signal_number))
            ended = f"mongod on port {self.port} did not end"
            mongod.wait_for(lambda: self._keeper.request("exit_code", self.pid) is not None, ended)
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
            wanted = {"_id": mongod.REPLICA_SET, "version": 1, "members": members, "settings": settings}
            command(first, "replSetInitiate", wanted)
        except OperationFailure as error:
            if error.code not in (_ALREADY_INITIALIZED, _NOT_YET_INITIALIZED):
                raise
        return None

    config = mongod.wait_for(configure, "The replica set could not be configured")
    if [member["host"] for member in config["members"]] != [node.host for node in nodes]:
        # An earlier run's, on other ports. Forced, since no node finds itself in the old configuration.
        config.update(members=members, version=config["version"] + 1)
        command(first, "replSetReconfig", config, force=True)

    def complete() -> bool:
        states = [mongod.ask(node.port, "hello") for node in nodes]
        primaries = sum(bool(state.get("isWritablePrimary")) for state in states)
        return primaries == 1 and sum(bool(state.get("secondary")) for state in states) == len(nodes) - 1

    mongod.wait_for(complete, "The replica set did not elect a primary and bring all nodes up to date")


def main(arguments: list[str] | None = None) -> int:
    """Run a server until it is interrupted; its connection string is the first line of the output."""
    parser = argparse.ArgumentParser(prog="python -m mongodb_session_manager.local", description=main.__doc__)
    parser.add_argument("--replica-set", action="store_true", help="three nodes instead of a standalone server")
    parser.add_argument("--data-dir", metavar="DIR", help="keep the data there, instead of in a temporary folder")
    options = parser.parse_args(arguments)
    if os.environ.get("MONGODB_URI"):
        sys.stderr.write("MONGODB_URI is set: there is nothing to start\n")
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with LocalMongoDB(replica_set=options.replica_set, data_dir=options.data_dir) as server:
            sys.stdout.write(f"{server.uri}\n")
            sys.stdout.flush()
            threading.Event().wait()
    except LocalMongoDBError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
