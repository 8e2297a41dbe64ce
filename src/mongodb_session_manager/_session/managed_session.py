"""The session of one manager: begun or opened once, known by its incarnation from then on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bson import ObjectId

from .._agents.record import add_new_agent
from .._model import documents
from .._model.archive_policy import DocumentSize
from .._model.documents import Document, StoredAgent
from .._model.expiry import first_expiry
from .._model.keys import check_id, encode_key
from .._statements.sessions import SessionRef
from .._store.session_commands import now
from .._store.session_store import SessionStore
from ..errors import SessionNotFoundError
from ..telemetry import Observer, traced
from .options import Settings

CREATED = StoredAgent(agent_data=None)
"""Stands for an agent that was stored together with a new session: there is nothing to restore."""


class ManagedSession:
    """The session of one manager.

    Attributes:
        session_id: The session's id.
        settings: What the manager is asked to do.
        store: Where the session is kept.
        observer: Who is told that it was opened, and what answers have used, if anybody.
        incarnation: The one that was opened; None before.
        lease_token: The token of the lease that the manager holds; None if it holds none.
        document: The size of the session document, as far as this process knows.
        related_should_expire: A ttl came to a session that had none: its related documents have yet to get an expiry.
    """

    # One is made for each request, so what every one begins with stands here.
    incarnation: ObjectId | None = None
    lease_token: str | None = None
    related_should_expire = False

    def __init__(self, session_id: str, settings: Settings, store: SessionStore, observer: Observer | None) -> None:
        self.session_id = session_id
        self.settings = settings
        self.store = store
        self.observer = observer
        self.document = DocumentSize()
        self._prefetched: dict[str, StoredAgent] = {}

    def ref(self) -> SessionRef:
        """Return which session is meant, and by which right the manager writes. Sends nothing."""
        return SessionRef(self.session_id, self.incarnation, self.lease_token, self.settings.ttl)

    def open_ref(self) -> SessionRef:
        """Return the same; open or begin the session first, if that is not done."""
        if self.incarnation is None:
            self.open([], None)
        return self.ref()

    def prefetch(self, agent_ids: Iterable[str]) -> None:
        """Open the session and read the windows of these agents; building each of them then sends nothing."""
        keys = [encode_key(check_id(agent_id, "agent_id")) for agent_id in agent_ids]
        self._prefetched.update(self.open(keys, None))

    def prefetch_again(self) -> None:
        """Read again what was prefetched: it may be old by now. Not when the agents are built: on an event loop."""
        keys, self._prefetched = list(self._prefetched), {}
        if keys:
            self._prefetched.update(self.open(keys, None))

    def stored_agent(self, key: str, new_agent: Any) -> StoredAgent:
        """Return what is stored of an agent, prefetched or read now; it is ``CREATED`` if it began with the session."""
        prefetched = self._prefetched.pop(key, None)
        return self.open([key], new_agent)[key] if prefetched is None else prefetched

    def open(self, keys: Sequence[str], new_agent: Any) -> dict[str, StoredAgent]:
        """Read the session and these agents; begin the session if there is none, with the agent that needs it."""
        settings = self.settings
        self.store.ensure_indexes(expiring=settings.ttl is not None)
        created: list[Document] = []

        def create() -> Document:
            moment = now()
            document = documents.new_session(
                self.session_id, settings.session_type, settings.application_name, moment, moment
            ) | first_expiry(moment, settings.ttl)
            if new_agent is not None and add_new_agent(document, keys[0], new_agent, settings.blob_threshold_bytes):
                created.append(document)
            return document

        # A session that this manager has seen and that is gone was deleted: it is not brought back.
        begin = create if self.incarnation is None else None
        opened = traced("open", {"agents": len(keys)}, self.store.lifecycle.open, self.session_id, keys, begin)
        if opened is None or self.incarnation not in (None, opened.incarnation):
            raise self.is_gone()
        if self.observer is not None and self.incarnation is None:
            self.observer.session_opened()
        self.incarnation = opened.incarnation
        self.document.bytes = opened.bytes
        self.related_should_expire = settings.ttl is not None and not opened.related_expire
        if any(document["incarnation"] == opened.incarnation for document in created):
            return {keys[0]: CREATED}
        return opened.agents

    def is_gone(self) -> SessionNotFoundError:
        """Return the error that says so."""
        return SessionNotFoundError(
            f"session_id={self.session_id!r} was deleted, or has expired", session_id=self.session_id
        )
