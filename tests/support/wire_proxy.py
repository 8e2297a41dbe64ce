"""A proxy between a client and a server, which cuts the connection exactly where a test wants it.

The server's own failpoint closes a connection *before* a command is run. What it cannot do is the harder case: the
command was run, and its answer is lost. Here a message is forwarded, the reply is taken from the server, which
proves that the command is done, and the connection ends before the client sees it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import bson

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

Moment = Literal["before it is run", "before its answer arrives"]

# https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/
_HEADER = struct.Struct("<iiii")
_OP_MSG = 2013


@dataclass
class Cut:
    """Where connections are cut.

    Args:
        command: name of the commands that are counted, such as `"update"`; or several names.
        moment: when the connection ends; see the module.
        number: the first command that is hit, counted from 1 from here on.
        times: how many are hit from there on; `None`: all.
        meanwhile: called before the connection ends: what the rest of the world does in that moment.
    """

    command: str | tuple[str, ...]
    moment: Moment
    number: int = 1
    times: int | None = 1
    meanwhile: Callable[[], object] | None = None
    seen: int = field(default=0, init=False)

    def hits(self, command: str) -> bool:
        """Count a command; return whether its connection is to be cut."""
        if command not in ((self.command,) if isinstance(self.command, str) else self.command):
            return False
        self.seen += 1
        return self.seen >= self.number and (self.times is None or self.seen < self.number + self.times)


class WireProxy:
    """Forwards connections to one server.

    Attributes:
        forwarded: names of the commands that were sent to the server, in their order; of all connections.
        cut_commands: names of those that were hit by a `Cut`.
    """

    def __init__(self, host: str, port: int) -> None:
        self.forwarded: list[str] = []
        self.cut_commands: list[str] = []
        self._server = (host, port)
        self._lock = threading.Lock()
        self._cut: Cut | None = None
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]

    @property
    def uri(self) -> str:
        """Connection string of the server through this proxy; it alone, also if it is one node of several."""
        return f"mongodb://127.0.0.1:{self._port}/?directConnection=true"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._listener)
        with self._lock:
            still_open = list(self._open)
        for connection in still_open:
            _end(connection)

    def cut(self, cut: Cut) -> None:
        """Begin to cut connections; replaces what was said before."""
        with self._lock:
            self._cut = cut

    def heal(self) -> None:
        """Cut no more connections."""
        with self._lock:
            self._cut = None

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                _Connection(self, client, socket.create_connection(self._server))

    def _cut_for(self, command: str) -> Cut | None:
        with self._lock:
            if self._cut is not None and self._cut.hits(command):
                self.cut_commands.append(command)
                return self._cut
            return None

    def _note(self, command: str) -> None:
        with self._lock:
            self.forwarded.append(command)


class _Connection:
    """One connection: a thread for what the client says, one for what the server says."""

    def __init__(self, proxy: WireProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._cut: Cut | None = None
        with proxy._lock:
            proxy._open.update((client, server))
        for pump in (self._requests, self._replies):
            threading.Thread(target=pump, daemon=True).start()

    def _requests(self) -> None:
        try:
            while (message := _read_message(self._client)) is not None:
                command = _command_of(message)
                cut = self._proxy._cut_for(command)
                if cut is not None and cut.moment == "before it is run":
                    _meanwhile(cut)
                    break
                # Before it is sent: a client has one command under way, so the next reply is this one's.
                self._cut = cut
                self._proxy._note(command)
                self._server.sendall(message)
        except OSError:
            pass
        finally:
            self._end()

    def _replies(self) -> None:
        try:
            while (message := _read_message(self._server)) is not None:
                if self._cut is not None:
                    _meanwhile(self._cut)
                    break
                self._client.sendall(message)
        except OSError:
            pass
        finally:
            self._end()

    def _end(self) -> None:
        for connection in (self._client, self._server):
            _end(connection)
        with self._proxy._lock:
            self._proxy._open.difference_update((self._client, self._server))


def _meanwhile(cut: Cut) -> None:
    if cut.meanwhile is not None:
        cut.meanwhile()


def _read_message(connection: socket.socket) -> bytes | None:
    """One whole message; None where the connection ends between two."""
    header = _read(connection, _HEADER.size)
    if not header:
        return None
    length = _HEADER.unpack(header)[0]
    return header + _read(connection, length - _HEADER.size)


def _read(connection: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = connection.recv(length - len(parts))
        if not part:
            if parts:
                raise ConnectionError("the connection ended inside a message")
            return b""
        parts += part
    return bytes(parts)


def _command_of(message: bytes) -> str:
    """The name of a command; empty for what is no OP_MSG, which is only the very first greeting."""
    if _HEADER.unpack_from(message)[3] != _OP_MSG:
        return ""
    # After the header: four bytes of flags, the kind of the first section (0), the command, whose first key names it.
    start = _HEADER.size + 5
    length = struct.unpack_from("<i", message, start)[0]
    return next(iter(bson.decode(message[start : start + length])))


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
