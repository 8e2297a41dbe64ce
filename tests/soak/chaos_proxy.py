"""A proxy before each node that loses, delays and holds up commands at random.

The clients see the whole replica set through its proxies: the hosts in the answers to `hello` are replaced.
`support/wire_proxy.py` cuts one connection exactly where a test wants it; this one cuts any, anywhere.
"""

import collections
import random
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import bson
from support.wire_proxy import BODY, HEADER, Connection, Proxy, command_of, read_message

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


class _Connection(Connection):
    """One connection, with the fates of its commands."""

    def __init__(self, *arguments: Any) -> None:
        self._cut = False
        self._late = False
        self._lives: list[str] = []
        super().__init__(*arguments)

    def forward(self, message: bytes) -> bool:
        fate, seconds = self.proxy.fate(command_of(message))
        if fate == "cut_before":
            return False
        self._lives = _lives_begun_by(message)
        self.proxy.sends(self._lives)
        self._cut = fate == "cut_after"
        if fate == "late":
            self._late = True
            threading.Thread(target=self._deliver_late, args=(message, seconds), daemon=True).start()
            return False
        if fate == "delay":
            threading.Event().wait(seconds)
        self.server.sendall(message)
        return True

    def end_of_requests(self) -> None:
        self.end(self.client) if self._late else self.end()

    def _deliver_late(self, message: bytes, seconds: float) -> None:
        self.proxy.hold(1)
        try:
            threading.Event().wait(seconds)
            # It may be another process by now, where the node was killed and started again.
            with socket.create_connection(self.proxy.server, timeout=_HELD_SECONDS) as server:
                server.sendall(message)
                read_message(server)
                self.proxy.did["arrived late"] += 1
        except OSError:
            pass  # The node is down: it was lost, not late.
        finally:
            self.proxy.hold(-1)
            self.end(self.server)

    def answer(self, message: bytes) -> bool:
        if self._cut:
            return False
        self.proxy.answered(self._lives)
        self.client.sendall(_with_hosts(message, self.proxy.hosts))
        return True


class ChaosProxy(Proxy):
    """Forwards connections to one node.

    Attributes:
        weather: what happens to commands from now on.
        did: how often what has happened.
        begun: how often an upsert that begins a life of a session was sent, by the life.
        unanswered: lives whose beginning was sent and not answered.
    """

    connection = _Connection

    def __init__(self, port: int, rng: random.Random) -> None:
        super().__init__("127.0.0.1", port)
        self.weather = FAIR
        self.did: collections.Counter[str] = collections.Counter()
        self.begun: collections.Counter[str] = collections.Counter()
        self.unanswered: set[str] = set()
        self.hosts: Mapping[str, str] = {}
        self._rng = rng
        self._held = 0

    @property
    def holds_nothing(self) -> bool:
        """Whether every command that was held up has reached the server or is lost."""
        with self.lock:
            return self._held == 0

    def connect(self) -> socket.socket:
        if self.weather.closed:
            raise ConnectionRefusedError
        server = socket.create_connection(self.server, timeout=5)
        server.settimeout(None)
        return server

    def fate(self, command: str) -> tuple[str, float]:
        """What happens to a command, and after how many seconds."""
        weather = self.weather
        if command in _UNTOUCHED or weather is FAIR:
            return "", 0.0
        with self.lock:
            chance = self._rng.random()
            for name in ("cut_before", "cut_after", "late", "delay"):
                chance -= getattr(weather, name)
                if chance < 0:
                    self.did[name] += 1
                    longest = {"late": weather.late_seconds, "delay": weather.delay_seconds}.get(name, 0.0)
                    return name, self._rng.uniform(0.01, 1) * longest
        return "", 0.0

    def hold(self, number: int) -> None:
        with self.lock:
            self._held += number

    def sends(self, lives: list[str]) -> None:
        with self.lock:
            self.begun.update(lives)
            self.unanswered.update(lives)

    def answered(self, lives: list[str]) -> None:
        with self.lock:
            for life in lives:
                if self.begun[life] == 1:
                    self.unanswered.discard(life)


def _lives_begun_by(message: bytes) -> list[str]:
    """The lives that a command begins: of its upserts of session documents, and of the documents it puts in."""
    if b"$setOnInsert\x00" not in message or b"schema_version\x00" not in message:
        return []
    return [found.hex() for found in _INCARNATION.findall(message)]


def _with_hosts(message: bytes, hosts: Mapping[str, str]) -> bytes:
    """An answer to `hello` with the proxies in the place of the nodes; any other message as it is."""
    kind = HEADER.unpack_from(message)[3]
    if not hosts or kind not in BODY or b"hosts\x00" not in message[:2000]:
        return message
    start = BODY[kind]
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
    _, request_id, response_to, _ = HEADER.unpack_from(message)
    return HEADER.pack(start + len(body), request_id, response_to, kind) + message[16:start] + body
