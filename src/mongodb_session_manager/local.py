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
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ._local.mongod import REPLICA_SET, LocalMongoDBError, ask, command, find_mongod, options, version_of, wait_for
from ._local.nodes import KeeperProcess, LocalNode, form_replica_set

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["LocalMongoDB", "LocalMongoDBError", "LocalNode"]


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
        return f"mongodb://{hosts}/" + (f"?replicaSet={REPLICA_SET}" if self._members else "")

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
            return next((node for node in running if ask(node.port, "hello").get("isWritablePrimary")), None)

        return wait_for(find, "No node became the primary")

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
            self._version = version_of(self._external_uri)
            return
        mongod = [find_mongod(), *options(self._parameters, replica_set=self._members > 0)]
        if self._data_dir is not None:
            self._data_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._keeper = keeper = KeeperProcess(self._data_dir)
            folders = [keeper.folder / f"node{number}" for number in range(max(self._members, 1))]
            self.nodes = tuple(LocalNode(keeper, folder, mongod) for folder in folders)
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
        keeper, self._keeper = self._keeper, None
        self._version, self.nodes = None, ()
        if keeper is not None:
            keeper.end()


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
