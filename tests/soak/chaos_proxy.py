"""A proxy before each node that loses, delays and holds up commands at random.

The clients see the whole replica set through its proxies: the hosts in the answers to `hello` are replaced.
`support/wire_proxy.py` cuts one connection exactly where a test wants it; this one cuts any, anywhere.
"""

from __future__ import annotations

import collections
import contextlib
import random
import re
import socket
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import bson
from support.wire_proxy import _end, _read_message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_HEADER = struct.Struct("<iiii")
_OP_REPLY, _OP_MSG = 1, 2013
# Where the document of a message begins: behind its header and flags and, in a reply, cursor and counts.
_BODY = {_OP_REPLY: 36, _OP_MSG: 21}
_UNTOUCHED = frozenset(("", "hello", "isMaster", "ismaster", "ping", "buildInfo", "endSessions", "killCursors"))
_INCARNATION = re.compile(rb"\x07incarnation\x00(.{12})", re.DOTALL)
_HELD_SECONDS = 30.0


@dataclass(frozen=True)
class Weather:
    """What happens to commands: a probability each.

    Attributes:
        cut_before: the connection ends, and the command reaches no server.
        cut_after: it is run, and the connection ends before its answer arrives.
        late: the connection ends, and the command reaches the server when up to `late_seconds` have passed.
        delay: it waits up to `delay_seconds`, and the client waits.
        closed: every connection ends, and there are no new ones.
    """

    cut_before: float = 0.0
    cut_after: float = 0.0
    late: float = 0.0
    delay: float = 0.0
    late_seconds: float = 2.0
    delay_seconds: float = 0.3
    closed: bool = False


FAIR = Weather()


class ChaosProxy:
    """Forwards connections to one node.

    Attributes:
        weather: what happens to commands from now on.
        did: how often what has happened.
        begun: how often an upsert that begins a life of a session was sent, by the life.
        unanswered: lives whose beginning was sent and not answered.
    """

    def __init__(self, port: int, rng: random.Random) -> None:
        self.weather = FAIR
        self.did: collections.Counter[str] = collections.Counter()
        self.begun: collections.Counter[str] = collections.Counter()
        self.unanswered: set[str] = set()
        self.hosts: Mapping[str, str] = {}
        self._rng = rng
        self._server = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._held = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def start(self) -> None:
        """Listen."""
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """End all connections and listen no more."""
        _end(self._listener)
        self.cut_all()

    def cut_all(self) -> None:
        """End all connections there are."""
        with self._lock:
            still_open = list(self._open)
        for connection in still_open:
            _end(connection)

    @property
    def holds_nothing(self) -> bool:
        """Whether every command that was held up has reached the server or is lost."""
        with self._lock:
            return self._held == 0

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                try:
                    server = None if self.weather.closed else socket.create_connection(self._server, timeout=5)
                except OSError:  # the node is down
                    server = None
                if server is None:
                    _end(client)
                    continue
                server.settimeout(None)
                for connection in (client, server):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._open.update((client, server))
                _Connection(self, client, server)

    def _fate(self, command: str) -> tuple[str, float]:
        """What happens to a command, and after how many seconds."""
        weather = self.weather
        if command in _UNTOUCHED or weather is FAIR:
            return "", 0.0
        with self._lock:
            chance = self._rng.random()
            for name in ("cut_before", "cut_after", "late", "delay"):
                chance -= getattr(weather, name)
                if chance < 0:
                    self.did[name] += 1
                    longest = {"late": weather.late_seconds, "delay": weather.delay_seconds}.get(name, 0.0)
                    return name, self._rng.uniform(0.01, 1) * longest
        return "", 0.0

    def _hold(self, number: int) -> None:
        with self._lock:
            self._held += number

    def _sends(self, lives: list[str]) -> None:
        with self._lock:
            self.begun.update(lives)
            self.unanswered.update(lives)

    def _answered(self, lives: list[str]) -> None:
        with self._lock:
            for life in lives:
                if self.begun[life] == 1:
                    self.unanswered.discard(life)


class _Connection:
    """One connection: a thread for what the client says, one for what the server says."""

    def __init__(self, proxy: ChaosProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._cut = False
        self._lives: list[str] = []
        for pump in (self._requests, self._replies):
            threading.Thread(target=pump, daemon=True).start()

    def _requests(self) -> None:
        late = False
        try:
            while (message := _read_message(self._client)) is not None:
                fate, seconds = self._proxy._fate(_command_of(message))
                if fate == "cut_before":
                    break
                self._lives = _lives_begun_by(message)
                self._proxy._sends(self._lives)
                self._cut = fate == "cut_after"
                if fate == "late":
                    late = True
                    threading.Thread(target=self._deliver_late, args=(message, seconds), daemon=True).start()
                    break
                if fate == "delay":
                    threading.Event().wait(seconds)
                self._server.sendall(message)
        except OSError:
            pass
        finally:
            self._end(self._client) if late else self._end(self._client, self._server)

    def _deliver_late(self, message: bytes, seconds: float) -> None:
        self._proxy._hold(1)
        try:
            threading.Event().wait(seconds)
            # It may be another process by now, where the node was killed and started again.
            with socket.create_connection(self._proxy._server, timeout=_HELD_SECONDS) as server:
                server.sendall(message)
                _read_message(server)
                self._proxy.did["arrived late"] += 1
        except OSError:
            pass  # The node is down: it was lost, not late.
        finally:
            self._proxy._hold(-1)
            self._end(self._server)

    def _replies(self) -> None:
        try:
            while (message := _read_message(self._server)) is not None:
                if self._cut:
                    break
                self._proxy._answered(self._lives)
                self._client.sendall(_with_hosts(message, self._proxy.hosts))
        except OSError:
            pass
        finally:
            self._end(self._client, self._server)

    def _end(self, *connections: socket.socket) -> None:
        for connection in connections:
            _end(connection)
        with self._proxy._lock:
            self._proxy._open.difference_update(connections)


def _command_of(message: bytes) -> str:
    """The name of a command, which is the first key of its document; empty for what is no OP_MSG."""
    if _HEADER.unpack_from(message)[3] != _OP_MSG:
        return ""
    start = _BODY[_OP_MSG] + 5
    return message[start : message.index(b"\x00", start)].decode()


def _lives_begun_by(message: bytes) -> list[str]:
    """The lives that a command begins: of its upserts of session documents, and of the documents it puts in."""
    if b"$setOnInsert\x00" not in message or b"schema_version\x00" not in message:
        return []
    return [found.hex() for found in _INCARNATION.findall(message)]


def _with_hosts(message: bytes, hosts: Mapping[str, str]) -> bytes:
    """An answer to `hello` with the proxies in the place of the nodes; any other message as it is."""
    kind = _HEADER.unpack_from(message)[3]
    if not hosts or kind not in _BODY or b"hosts\x00" not in message[:2000]:
        return message
    start = _BODY[kind]
    document: dict[str, Any] = bson.decode(message[start:])
    if "hosts" not in document or "me" not in document:
        return message
    replace: Callable[[str], str] = lambda host: hosts.get(host, host)  # noqa: E731
    for name in ("hosts", "passives", "arbiters"):
        if name in document:
            document[name] = [replace(host) for host in document[name]]
    for name in ("me", "primary"):
        if name in document:
            document[name] = replace(document[name])
    body = bson.encode(document)
    _, request_id, response_to, _ = _HEADER.unpack_from(message)
    return _HEADER.pack(start + len(body), request_id, response_to, kind) + message[16:start] + body
