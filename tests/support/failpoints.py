"""Faults made by the server itself: the drivers' own `failCommand`, which needs `enableTestCommands=1`."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pymongo import MongoClient


@contextlib.contextmanager
def fail_command(
    client: MongoClient[dict[str, Any]],
    commands: str | Sequence[str],
    *,
    app_name: str,
    error_code: int | None = None,
    close_connection: bool = False,
    block_ms: int | None = None,
    times: int | Literal["alwaysOn"] | None = None,
) -> Iterator[None]:
    """Make commands fail, or wait, while the block runs.

    A server has one such failpoint: blocks cannot be nested, and parallel tests need servers of their own.
    In a replica set it is set on the node that is primary when the block begins.

    Args:
        client: sends the switch; it needs another `appName` than the client that is to fail.
        commands: names of the commands, such as `"update"`.
        app_name: only clients with this `appName` are affected.
        error_code: answer with this error instead of running the command. After one that speaks of the server's
            state (91, 189, 10107, 11600, …) a client looks at the server again before it sends anything more,
            which takes up to its `heartbeatFrequencyMS` (10 s by default).
        close_connection: close the connection instead of running the command.
        block_ms: wait so long first, in milliseconds; alone, the command then runs.
        times: how often; `None` and `"alwaysOn"`: until the block ends.
    """
    data: dict[str, Any] = {
        "failCommands": [commands] if isinstance(commands, str) else list(commands),
        "appName": app_name,
    }
    if error_code is not None:
        data["errorCode"] = error_code
    if close_connection:
        data["closeConnection"] = True
    if block_ms is not None:
        data.update(blockConnection=True, blockTimeMS=block_ms)
    mode = "alwaysOn" if times in (None, "alwaysOn") else {"times": times}
    with _pinned(client) as server:
        server.admin.command("configureFailPoint", "failCommand", mode=mode, data=data)
        try:
            yield
        finally:
            server.admin.command("configureFailPoint", "failCommand", mode="off")


@contextlib.contextmanager
def _pinned(client: MongoClient[dict[str, Any]]) -> Iterator[MongoClient[dict[str, Any]]]:
    # After an election inside the block, `client` would switch off the failpoint of the new primary.
    client.admin.command("ping")
    if client.topology_description.topology_type_name != "ReplicaSetWithPrimary":
        yield client
        return
    address = client.address
    assert address is not None, "no primary to set the failpoint on"
    pinned: MongoClient[dict[str, Any]]
    with MongoClient(*address, directConnection=True) as pinned:
        yield pinned
