"""How a manager stores everything that is not stored yet, in a thread or on an event loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .._agents.outbox import Sending
from .._client.executor import settle
from ..errors import SessionNotFoundError
from .agents import ManagedAgents
from .behind_turns import BehindTurns
from .error_notes import add_note
from .outboxes import Outboxes


@dataclass(eq=False)
class Flushing:
    """Stores what one manager has not stored yet.

    Attributes:
        agents: Its agents.
        outboxes: Its outboxes.
        behind: What runs behind its turns.
        session_is_gone: Whether the session was deleted, or has expired, before everything was stored.
    """

    agents: ManagedAgents
    outboxes: Outboxes
    behind: BehindTurns
    session_is_gone: bool = False

    def flush(self) -> None:
        """Store everything, and wait until it is stored; raise one of the errors of what could not be."""
        sendings, failure = self._send()
        for sending in sendings:
            try:
                sending.wait()
            except Exception as error:
                # The others are waited for as well; one error stands for all, each keeps its own unit of work.
                failure = failure or error
        for under_way in self.behind.wait_for(self.agents.works):
            under_way.result()
        if failure is not None:
            raise failure

    async def settle(self) -> None:
        """Do the same on an event loop. No thread of the executor waits for another one: all might be waiting."""
        sendings, failure = self._send()
        for sending in sendings:
            try:
                await sending.settle()
            except Exception as error:
                failure = failure or error
        for under_way in self.behind.wait_for(self.agents.works):
            await settle(under_way)
        if failure is not None:
            raise failure

    @contextmanager
    def beside(self, error: BaseException | None) -> Iterator[None]:
        """If an error is on its way already, make a failure in the block a note of it."""
        try:
            yield
        except Exception as failure:
            if isinstance(failure, SessionNotFoundError):
                self.outboxes.drop()  # Nothing of it can ever be stored.
                self.session_is_gone = True
            if error is None:
                raise
            add_note(error, failure)

    def _send(self) -> tuple[list[Sending], Exception | None]:
        """Stage what has changed in the agents and begin to send; return what to wait for, and what was refused."""
        refused = self.agents.stage()
        sendings = [outbox.send() for outbox in self.outboxes]
        return [sending for sending in sendings if sending is not None], refused
