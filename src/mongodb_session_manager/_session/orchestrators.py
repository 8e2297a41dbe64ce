"""Graphs and swarms: their state is restored, staged when it has changed, and stored as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .._agents.outbox import Operation, Outbox, OutboxOwner, Sending
from .._model.documents import check_size
from .._model.encoding import PendingBlobs, encode, fingerprint
from .._model.keys import check_id
from .._statements.sessions import SessionRef
from .._store.session_reads import MultiAgentAsRead
from .._store.session_store import SessionStore
from .managed_session import ManagedSession


@dataclass(eq=False)
class _StateOperation(Operation):
    """The state of a graph or swarm, as a whole."""

    work: OrchestratorWork
    state: Any
    blobs: PendingBlobs

    def send(self, store: SessionStore, session: SessionRef) -> None:
        store.related.upload(session, "", None, self.blobs)
        work = self.work
        work.stored = store.changes.put_multi_agent(session, work.multi_agent_id, self.state, work.stored)


class OrchestratorWork(Outbox):
    """The unit of work of one graph or swarm.

    Attributes:
        multi_agent_id: Its id.
        stored: What is stored of it, as far as this process knows.
        staged: Its state as it was staged last, or read, as a fingerprint.
    """

    stored: MultiAgentAsRead | None = None
    staged: bytes | None = None

    def __init__(self, multi_agent_id: str, store: SessionStore, owner: OutboxOwner) -> None:
        super().__init__(store, owner)
        self.multi_agent_id = multi_agent_id


def encoded_state(multi_agent_id: str, state: Any, blobs: PendingBlobs) -> Any:
    """Return what is stored of the state of a graph or swarm; ``blobs`` takes what is too large for its document.

    Raises:
        UnstorableValueError: It holds a value that cannot be stored, or is too large.
    """
    where = f"multi_agent_id={multi_agent_id!r} state"
    encoded = encode(state, where, blobs)
    check_size({"state": encoded}, where)
    return encoded


@dataclass(eq=False)
class Orchestrators:
    """The graphs and swarms of one manager.

    Attributes:
        session: The session they belong to.
        owner: Who is told what their outboxes do.
    """

    session: ManagedSession
    owner: OutboxOwner
    _works: dict[str, OrchestratorWork] = field(default_factory=dict, init=False)

    def works(self) -> list[OrchestratorWork]:
        """Return the unit of work of each, as they are now."""
        return list(self._works.values())

    def read(self, source: Any) -> MultiAgentAsRead:
        """Read what is stored of a graph or swarm; begin the session if there is none."""
        multi_agent_id = check_id(source.id, "multi_agent_id")
        session = self.session.open_ref()
        return self.session.store.reads.read_multi_agent(session.session_id, multi_agent_id)

    def begin(self, source: Any, stored: MultiAgentAsRead) -> Sending | None:
        """Restore a graph or swarm from what was read; or stage its state, where nothing is stored."""
        work = self._work(source)
        work.stored = stored
        if stored.state is None:
            return self.stage(source)
        work.staged = fingerprint(stored.state)
        source.deserialize_state(stored.state)
        return None

    def stage(self, source: Any) -> Sending | None:
        """Begin to store the state of a graph or swarm, if it has changed; return what to wait for."""
        work = self._work(source)
        state = source.serialize_state()
        mark = fingerprint(state, f"multi_agent_id={work.multi_agent_id!r} state")
        if mark != work.staged:
            blobs = PendingBlobs(self.session.settings.blob_threshold_bytes)
            work.put(_StateOperation(work, encoded_state(work.multi_agent_id, state, blobs), blobs))
            work.staged = mark
        return work.send()

    def _work(self, source: Any) -> OrchestratorWork:
        multi_agent_id = check_id(source.id, "multi_agent_id")
        if multi_agent_id not in self._works:
            self._works[multi_agent_id] = OrchestratorWork(multi_agent_id, self.session.store, self.owner)
        return self._works[multi_agent_id]
