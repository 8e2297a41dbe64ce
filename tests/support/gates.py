"""Holding a thread at a known point: after the server has answered its command, before the library sees the answer."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from pymongo import monitoring

DEADLINE_SECONDS = 60.0


@dataclass
class Held:
    """One thread that is held, or will be.

    Attributes:
        arrived: set when the thread is there.
        released: set to let it go on.
    """

    arrived: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Wait until the thread is there."""
        assert self.arrived.wait(DEADLINE_SECONDS), "no such command was answered"


class Gate(monitoring.CommandListener):
    """Holds the next command of a name, of every client that was made with `event_listeners=[gate]`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: dict[str, Held] = {}

    @contextlib.contextmanager
    def holding(self, command: str) -> Iterator[Held]:
        """Hold the thread that sends this command next, once it is answered, until the block ends at the latest."""
        held = Held()
        with self._lock:
            self._next[command] = held
        try:
            yield held
        finally:
            held.released.set()
            with self._lock:
                self._next.pop(command, None)

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Nothing to hold yet."""

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        with self._lock:
            held = self._next.pop(event.command_name, None)
        if held is not None:
            held.arrived.set()
            held.released.wait(DEADLINE_SECONDS)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Only answers are held."""
