"""Strands' ``SessionRepository``: sessions, agents, messages, graphs and swarms, by single calls."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pymongo.errors import DuplicateKeyError
from strands.session.session_repository import SessionRepository
from strands.types.session import Session, SessionAgent, SessionMessage

from .._model import documents
from .._model.documents import Document, MongoDBSessionAgent
from .._model.encoding import PendingBlobs, decode, from_bson, to_bson
from .._model.expiry import first_expiry
from .._model.keys import check_id, check_message_id, check_name, encode_key
from .._model.limits import BLOB_THRESHOLD_BYTES
from .._model.metrics import Totals
from .._statements import changes, commits
from .._statements.reading import check_page
from .._statements.rewrites import Rewrite
from .._statements.sessions import SessionRef, not_expired
from .._store.sending import is_there
from .._store.session_commands import now
from .._store.session_store import SessionStore
from ..errors import AgentNotFoundError, SessionConflictError, SessionExistsError
from .metadata import StoredMetadata
from .orchestrators import encoded_state


class StrandsRepository(SessionRepository):
    """Implements what Strands asks of a repository.

    Args:
        store: The sessions.
        metadata: Their metadata, which a deletion takes away.
        ttl: How long a session lives from its last activity on; None: until it is deleted.
    """

    def __init__(self, store: SessionStore, metadata: StoredMetadata, ttl: timedelta | None) -> None:
        self._store = store
        self._metadata = metadata
        self._ttl = ttl

    # --- sessions ---------------------------------------------------------------------------------------------------

    def create_session(self, session: Session, **kwargs: Any) -> Session:
        """Create a session without agents, metadata or feedbacks.

        Args:
            session: Its ``session_id`` and ``session_type``. Its ``created_at`` and ``updated_at`` become what was
                stored, in whole milliseconds.
            **kwargs: For Strands' future use.

        Returns:
            The same object.

        Raises:
            SessionExistsError: There is a session with this id. It was left as it is.
        """
        session_id = check_id(session.session_id, "session_id")
        moment = now()
        created_at = documents.parse_time(session.created_at, moment)
        updated_at = documents.parse_time(session.updated_at, moment)
        session_type = check_name(session.session_type, "session_type")
        try:
            self._store.lifecycle.insert(
                documents.new_session(session_id, session_type, None, created_at, updated_at)
                | first_expiry(moment, self._ttl)
            )
        except DuplicateKeyError as error:
            if not is_there(error):
                raise
            raise SessionExistsError(f"session_id={session_id!r} exists", session_id=session_id) from error
        session.created_at, session.updated_at = documents.to_iso(created_at), documents.to_iso(updated_at)
        return session

    def read_session(self, session_id: str, **kwargs: Any) -> Session | None:
        """Return the session's id, type and times, or None if it does not exist."""
        header = {"session_id": 1, "session_type": 1, "created_at": 1, "updated_at": 1}
        document = self._store.commands.find_one(not_expired(check_id(session_id, "session_id")), header)
        return None if document is None else documents.to_session(document)

    def session_exists(self, session_id: str) -> bool:
        """Return whether there is a session with this id."""
        return self._store.commands.find_one(not_expired(check_id(session_id, "session_id")), {"_id": 1}) is not None

    def delete_session(self, session_id: str, **kwargs: Any) -> None:
        """Delete a session with all that belongs to it.

        Raises:
            SessionNotFoundError: There is no such session.
            SessionBusyError: A process holds its lease.
        """
        session = self._ref(session_id)
        with self._metadata.changing(session.session_id):
            self._store.lifecycle.delete(session)

    # --- agents -----------------------------------------------------------------------------------------------------

    def create_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Create an agent without messages. ``model`` and ``system_prompt`` are stored if the object has them.

        Raises:
            SessionNotFoundError: There is no such session.
            SessionConflictError: The session has this agent. It was left as it is.
            UnstorableValueError: Its state holds something that cannot be stored.
        """
        session, key = self._ref(session_id), _agent_key(session_agent.agent_id)
        blobs = PendingBlobs(BLOB_THRESHOLD_BYTES)
        data = documents.agent_data(session_agent, blobs)
        session = self._store.related.upload(session, key, None, blobs)
        exists = self._store.changes.guarded(
            session,
            lambda session, _: commits.commit(session, commits.Commit(key, creates=data), now()),
            commits.agent_projection(key),
            lambda found: bool(found["exists"]),
            agent_keys=[key],
        )
        # The same one to the microsecond is this one: only the answer to the first attempt was lost.
        if exists is not None and self._store.reads.read_agent_data(session.session_id, key) != decode(
            from_bson(to_bson(data)), blobs.contents
        ):
            raise SessionConflictError(
                f"session_id={session_id!r} has an agent_id={session_agent.agent_id!r}",
                session_id=session_id,
                agent_id=session_agent.agent_id,
            )

    def read_agent(self, session_id: str, agent_id: str, **kwargs: Any) -> MongoDBSessionAgent | None:
        """Return an agent with its state, model and system prompt, or None if there is none; never its messages."""
        key = _agent_key(agent_id)
        found = self._store.reads.read_agent_data(check_id(session_id, "session_id"), key)
        return None if found is None else documents.to_session_agent(found, key)

    def update_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Replace what is stored of an agent. ``created_at`` is kept; ``updated_at`` becomes now, in the object, too.

        A ``model`` or ``system_prompt`` that the object does not have is kept as it is stored.

        Raises:
            SessionNotFoundError: There is no such session.
            AgentNotFoundError: The session has no such agent.
            UnstorableValueError: Its state holds something that cannot be stored.
        """
        session, key = self._ref(session_id), _agent_key(session_agent.agent_id)
        blobs = PendingBlobs(BLOB_THRESHOLD_BYTES)
        fields = documents.agent_data(session_agent, blobs)
        del fields["created_at"]
        session = self._store.related.upload(session, key, None, blobs)
        moment = now()
        fields["updated_at"] = documents.to_iso(moment)
        missing = self._store.changes.guarded(
            session,
            lambda session, found: commits.agent_fields(session, key, fields, found["changes"], moment),
            commits.agent_projection(key),
            lambda found: not found["exists"],
            agent_keys=[key],
        )
        if missing is not None:
            raise _not_found(session_id, "agent_id", session_agent.agent_id)
        session_agent.updated_at = fields["updated_at"]

    # --- messages ---------------------------------------------------------------------------------------------------

    def create_message(self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any) -> None:
        """Append a message to an agent's conversation.

        Args:
            session_id: The session.
            agent_id: The agent.
            session_message: The message. Its ``message_id`` may be any number not below that of the next message;
                gaps are legal. Its times become what was stored, in whole milliseconds.
            **kwargs: For Strands' future use.

        Raises:
            SessionNotFoundError: There is no such session.
            AgentNotFoundError: The session has no such agent.
            SessionConflictError: The ``message_id`` is taken, or lies below one that is.
            InvalidIdentifierError: The ``message_id`` is no ``int`` or negative.
            TypeError: Its ``tracking_id`` is no text.
            UnstorableValueError: The message holds something that cannot be stored.
        """
        key = _agent_key(agent_id)
        session, message_id, body = self._stored_message(session_id, key, session_message)
        moment = now()
        created_at = documents.parse_time(session_message.created_at, moment)
        updated_at = documents.parse_time(session_message.updated_at, moment)
        body |= {"created_at": created_at, "updated_at": updated_at}
        totals = Totals()
        totals.add_message(starts_turn=False)
        message = commits.TrackedMessage(None, None, body.get("tracking_id"), body, totals=totals)
        append = commits.Commit(key, [message], first_message_id=message_id, gap_allowed=True)
        append.start()
        self._store.messages.commit(session, append)
        session_message.created_at = documents.to_iso(created_at)
        session_message.updated_at = documents.to_iso(updated_at)

    def read_message(self, session_id: str, agent_id: str, message_id: int, **kwargs: Any) -> SessionMessage | None:
        """Return a message, or None if there is none. Its stored metrics are left out."""
        key = _agent_key(agent_id)
        found = self._store.reads.read_message(check_id(session_id, "session_id"), key, check_message_id(message_id))
        return None if found is None else documents.to_session_message(found)

    def update_message(self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any) -> None:
        """Replace a stored message, typically to redact it: the original is then in none of the collections.

        ``created_at`` and metrics are kept; ``updated_at`` becomes now, in the object, too. With ``redact_message``
        set, that message is what is stored.

        Raises:
            SessionNotFoundError: There is no such session.
            AgentNotFoundError: The session has no such agent.
            MessageNotFoundError: The agent has no such message, or the one with this ``message_id`` has another
                ``tracking_id``.
            InvalidIdentifierError: The ``message_id`` is no ``int`` or negative.
            TypeError: Its ``tracking_id`` is no text.
            UnstorableValueError: The message holds something that cannot be stored.
        """
        key = _agent_key(agent_id)
        session, message_id, body = self._stored_message(session_id, key, session_message)
        moment = now()
        self._store.messages.rewrite(session, Rewrite(key, message_id, body, body.get("tracking_id")), moment)
        session_message.updated_at = documents.to_iso(moment)

    def list_messages(
        self, session_id: str, agent_id: str, limit: int | None = None, offset: int = 0, **kwargs: Any
    ) -> list[SessionMessage]:
        """Return a page of an agent's messages, oldest first; ``[]`` if there is no such agent.

        Args:
            session_id: The session.
            agent_id: The agent.
            limit: How many messages at most; None for all.
            offset: How many of the oldest messages to skip.
            **kwargs: For Strands' future use.

        Raises:
            ValueError: ``limit`` or ``offset`` is negative or no ``int``.
        """
        return [documents.to_session_message(message) for message in self._page(session_id, agent_id, limit, offset)]

    # --- graphs and swarms ------------------------------------------------------------------------------------------

    def create_multi_agent(self, session_id: str, multi_agent: Any, **kwargs: Any) -> None:
        """Store the state of a new graph or swarm.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        session, multi_agent_id, state = self._multi_agent_state(session_id, multi_agent)
        self._store.changes.put_multi_agent(session, multi_agent_id, state)

    def read_multi_agent(self, session_id: str, multi_agent_id: str, **kwargs: Any) -> dict[str, Any] | None:
        """Return the stored state of a graph or swarm, or None."""
        found = self._store.reads.read_multi_agent(
            check_id(session_id, "session_id"), check_id(multi_agent_id, "multi_agent_id")
        )
        return found.state if isinstance(found.state, dict) else None

    def update_multi_agent(self, session_id: str, multi_agent: Any, **kwargs: Any) -> None:
        """Replace the stored state of a graph or swarm.

        Raises:
            SessionNotFoundError: There is no such session.
            AgentNotFoundError: The session has no such graph or swarm.
        """
        session, multi_agent_id, state = self._multi_agent_state(session_id, multi_agent)
        missing = self._store.changes.guarded(
            session,
            lambda session, found: changes.multi_agent(session, multi_agent_id, state, found["changes"], now()),
            changes.multi_agent_projection(multi_agent_id),
            lambda found: found["changes"] is None,
        )
        if missing is not None:
            raise _not_found(session_id, "multi_agent_id", multi_agent_id)

    # --- what these share -------------------------------------------------------------------------------------------

    def _ref(self, session_id: str) -> SessionRef:
        return SessionRef(check_id(session_id, "session_id"), ttl=self._ttl)

    def _page(self, session_id: str, agent_id: str, limit: int | None, offset: int) -> list[Document]:
        check_page(limit, offset)
        key = _agent_key(agent_id)
        return self._store.reads.list_messages(check_id(session_id, "session_id"), key, offset, limit)

    def _stored_message(
        self, session_id: str, key: str, session_message: SessionMessage
    ) -> tuple[SessionRef, int, Document]:
        """Upload the blobs of a message; return the session they belong to, the message's id and what is stored."""
        session, message_id = self._ref(session_id), check_message_id(session_message.message_id)
        blobs = PendingBlobs(BLOB_THRESHOLD_BYTES)
        body = documents.session_message_body(session_message, blobs)
        return self._store.related.upload(session, key, message_id, blobs), message_id, body

    def _multi_agent_state(self, session_id: str, multi_agent: Any) -> tuple[SessionRef, str, Any]:
        """Upload the blobs of a graph's or swarm's state; return the session they belong to, its id and the state."""
        session, multi_agent_id = self._ref(session_id), check_id(multi_agent.id, "multi_agent_id")
        blobs = PendingBlobs(BLOB_THRESHOLD_BYTES)
        state = encoded_state(multi_agent_id, multi_agent.serialize_state(), blobs)
        return self._store.related.upload(session, "", None, blobs), multi_agent_id, state


def _agent_key(agent_id: str) -> str:
    return encode_key(check_id(agent_id, "agent_id"))


def _not_found(session_id: str, kind: str, agent_id: str) -> AgentNotFoundError:
    says = f"session_id={session_id!r} has no {kind}={agent_id!r}"
    return AgentNotFoundError(says, session_id=session_id, agent_id=agent_id)
