"""The commands that a client sends to the server, and their sizes: exact, and free of machine noise."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from pymongo import monitoring

# What the driver sends for itself, whatever the library does: handshakes, heartbeats, its own tidying up.
_CONNECTION_COMMANDS = frozenset(
    {"hello", "ismaster", "saslstart", "saslcontinue", "authenticate", "endsessions", "killcursors"}
)
_ENCODING: CodecOptions[dict[str, Any]] = CodecOptions(uuid_representation=UuidRepresentation.STANDARD)


def _size(document: Mapping[str, Any]) -> int:
    return len(bson.encode(document, codec_options=_ENCODING))


@dataclass
class RecordedCommand:
    """One command as it was sent, and what became of it.

    Attributes:
        name: such as `"update"`.
        database: the database it was sent to.
        collection: the collection it is about; `None` for a command about none, such as `ping`.
        command: the whole command, a copy made when it was sent.
        request_bytes: size of the command as BSON.
        reply_bytes: size of the reply as BSON; `None` until it arrived, and if it never did.
        failure: the server's error, or the driver's description of a lost connection; `None` if it succeeded.
    """

    name: str
    database: str
    collection: str | None
    command: dict[str, Any]
    request_bytes: int
    reply_bytes: int | None = None
    failure: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.collection or ''} ({self.request_bytes} bytes)"


class Commands(list[RecordedCommand]):
    """Commands in the order in which they were sent."""

    @property
    def names(self) -> list[str]:
        return [command.name for command in self]

    def named(self, *names: str) -> Commands:
        """Those with one of the names."""
        return Commands(command for command in self if command.name in names)

    def on(self, collection: str) -> Commands:
        """Those about the collection."""
        return Commands(command for command in self if command.collection == collection)

    def carry(self, text: str) -> bool:
        """Whether any of them has the text in it."""
        return any(text.encode() in bson.encode(command.command, codec_options=_ENCODING) for command in self)

    @property
    def request_bytes(self) -> int:
        return sum(command.request_bytes for command in self)

    @property
    def reply_bytes(self) -> int:
        return sum(command.reply_bytes or 0 for command in self)

    @property
    def failures(self) -> list[Mapping[str, Any]]:
        return [command.failure for command in self if command.failure is not None]


@dataclass
class CommandRecorder(monitoring.CommandListener):
    """Records the commands of every client that was made with `event_listeners=[recorder]`."""

    commands: Commands = field(default_factory=Commands)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[Any, int], RecordedCommand] = {}
        self._recordings: list[Commands] = []

    @property
    def names(self) -> list[str]:
        with self._lock:
            return self.commands.names

    def clear(self) -> None:
        """Forget what was recorded; replies still to come are not recorded."""
        with self._lock:
            self.commands.clear()
            self._open.clear()

    @contextlib.contextmanager
    def recording(self) -> Iterator[Commands]:
        """Yield the commands that are sent while the block runs, by whichever thread."""
        seen = Commands()
        with self._lock:
            self._recordings.append(seen)
        try:
            yield seen
        finally:
            with self._lock:
                # By identity: two recordings with equal content are still two.
                self._recordings = [recording for recording in self._recordings if recording is not seen]

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name.lower() in _CONNECTION_COMMANDS:
            return
        # getMore names the cursor first and the collection after it.
        target = event.command.get("collection" if event.command_name == "getMore" else event.command_name)
        recorded = RecordedCommand(
            name=event.command_name,
            database=event.database_name,
            collection=target if isinstance(target, str) else None,
            command=copy.deepcopy(dict(event.command)),
            request_bytes=_size(event.command),
        )
        with self._lock:
            self._open[event.connection_id, event.request_id] = recorded
            for commands in (self.commands, *self._recordings):
                commands.append(recorded)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        with self._lock:
            recorded = self._open.pop((event.connection_id, event.request_id), None)
        if recorded is not None:
            recorded.reply_bytes = _size(event.reply)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        with self._lock:
            recorded = self._open.pop((event.connection_id, event.request_id), None)
        if recorded is not None:
            recorded.failure = event.failure
