"""How nodes become a replica set."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from pymongo.errors import OperationFailure

from .mongod import REPLICA_SET, ask, command, wait_for
from .nodes import LocalNode

_ALREADY_INITIALIZED, _NOT_YET_INITIALIZED = 23, 94  # The server's error codes.


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
            command(
                first,
                "replSetInitiate",
                {"_id": REPLICA_SET, "version": 1, "members": members, "settings": settings},
            )
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
