"""The servers, their proxies, and how a writer reaches them."""

import contextlib
import os
import random
import signal
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError
from support.waiting import eventually

from mongodb_session_manager.local import LocalMongoDB, LocalMongoDBError, LocalNode
from soak.chaos_proxy import FAIR, ChaosProxy

WRITERS = "soak"
"""`appName` of the writers' clients: the failpoints hit nobody else."""

DATABASE, COLLECTION = "soak", "sessions"
_PARAMETERS = {"enableTestCommands": 1, "ttlMonitorSleepSecs": 1}
# A client looks at a node twice a second, so that a node that comes back is found.
_OPTIONS = "heartbeatFrequencyMS=500&connectTimeoutMS=2000&serverSelectionTimeoutMS=8000"


class World:
    """A server (or three) with a proxy before each node.

    Attributes:
        kind: `"standalone"` or `"replica_set"`.
        nodes: its nodes.
        proxies: one for each.
        uri: connection string through the proxies.
    """

    def __init__(self, kind: str, rng: random.Random) -> None:
        self.kind = kind
        self._rng = rng
        self._server = LocalMongoDB(replica_set=kind == "replica_set", parameters=_PARAMETERS)
        self.nodes: tuple[LocalNode, ...] = ()
        self.proxies: list[ChaosProxy] = []
        self.uri = ""

    def start(self) -> None:
        """Start the servers and the proxies."""
        self._server.start()
        self.nodes = self._server.nodes
        self.proxies = [ChaosProxy(node.port, random.Random(self._rng.random())) for node in self.nodes]
        through = [f"127.0.0.1:{proxy.port}" for proxy in self.proxies]
        for proxy in self.proxies:
            proxy.hosts = dict(zip((node.host for node in self.nodes), through, strict=True))
            proxy.start()
        # Acknowledged is durable: no crash and no failover may take it back.
        durable = "replicaSet=local&w=majority" if self.kind == "replica_set" else "w=1&journal=true"
        self.uri = f"mongodb://{','.join(through)}/?{durable}&{_OPTIONS}"

    def stop(self) -> None:
        """End everything."""
        for proxy in self.proxies:
            proxy.stop()
        for node in self.nodes:
            self.let_go_on(node)
        self._server.stop()

    def plain_client(self) -> MongoClient[dict[str, Any]]:
        """A client that no fault is meant for."""
        return MongoClient(self._server.uri, serverSelectionTimeoutMS=60_000)

    def primary(self) -> LocalNode:
        """The node that accepts writes; waits for it."""
        return self._server.primary

    def command(self, node: LocalNode, name: str, value: object = 1, **arguments: Any) -> dict[str, Any] | None:
        """Send a command to this very node; None if it does not answer in time, or says no."""
        with contextlib.suppress(PyMongoError):
            client: MongoClient[dict[str, Any]]
            with MongoClient(
                "127.0.0.1",
                node.port,
                directConnection=True,
                serverSelectionTimeoutMS=2000,
                connectTimeoutMS=2000,
                socketTimeoutMS=5000,
            ) as client:
                return client.admin.command(name, value, **arguments)
        return None

    @staticmethod
    def freeze(node: LocalNode) -> None:
        """Let a node stand still; its connections stay."""
        if node.pid is not None:
            os.kill(node.pid, signal.SIGSTOP)

    @staticmethod
    def let_go_on(node: LocalNode) -> None:
        """Let a node go on."""
        if node.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(node.pid, signal.SIGCONT)

    def heal(self) -> None:
        """End all faults; return when all nodes are up and what was held up has arrived."""
        for proxy in self.proxies:
            proxy.weather = FAIR
        for node in self.nodes:
            self.let_go_on(node)
            if node.pid is None:
                node.start()
        for node in self.nodes:
            eventually(lambda node=node: self._off(node), message="the failpoint is off")
        eventually(self._all_up, message="all nodes are up")
        eventually(lambda: all(proxy.holds_nothing for proxy in self.proxies), message="no command is held up any more")

    def _off(self, node: LocalNode) -> bool:
        return self.command(node, "configureFailPoint", "failCommand", mode="off") is not None

    def _all_up(self) -> bool:
        states = [self.command(node, "hello") or {} for node in self.nodes]
        writable = sum(bool(state.get("isWritablePrimary")) for state in states)
        return writable == 1 and all(state.get("isWritablePrimary") or state.get("secondary") for state in states)

    def is_idle(self) -> bool:
        """Whether the server is doing nothing for a writer."""
        try:
            reply = self.command(self.primary(), "currentOp", **{"$ownOps": False, "active": True, "appName": WRITERS})
        except LocalMongoDBError:
            return False
        return reply is not None and not reply["inprog"]
