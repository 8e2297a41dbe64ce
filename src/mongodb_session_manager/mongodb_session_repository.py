"""The repository: Strands' ``SessionRepository`` on MongoDB, and what the documents hold besides."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any

from bson import ObjectId
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError
from strands.session.session_repository import SessionRepository
from strands.types.session import Session, SessionAgent, SessionMessage

from ._client.clients import open_client
from ._model import documents
from ._model.documents import Document, MongoDBSessionAgent
from ._model.encoding import decode, encode, from_bson, to_bson
from ._model.expiry import check_ttl, first_expiry
from ._model.foreign import mapping, name_of
from ._model.keys import (
    check_feedback,
    check_id,
    check_message_id,
    check_metadata,
    check_metadata_fields,
    check_metadata_paths,
    check_name,
    check_text,
    encode_key,
    exact_text,
)
from ._model.limits import BLOB_THRESHOLD_BYTES, DEFAULT_PAGE, INT32_MAX, MAX_METADATA_BYTES, SWEEP_GRACE_SECONDS
from ._model.metrics import Totals
from ._model.metrics_summary import MetricsSummary, ModelPrice, check_prices, summarise
from ._model.pending_blobs import PendingBlobs
from ._session.metadata_cache import CacheUse, SessionPlace
from ._session.metadata_watch import watch
from ._statements import commits, multi_agent_states, reading, session_listing, sessions
from ._statements.feedback import MessageLink
from ._statements.listing_cursor import SortBy
from ._statements.rewrites import Rewrite
from ._statements.session_listing import SessionPage
from ._statements.sessions import SessionRef
from ._store.search_index import MessageHit
from ._store.sending import is_there
from ._store.session_commands import now
from ._store.session_store import SessionStore
from .errors import (
    AgentNotFoundError,
    SessionConflictError,
    SessionExistsError,
    UnstorableValueError,
    shown,
)


class MongoDBSessionRepository(SessionRepository):
    """MongoDB implementation of SessionRepository interface for persistent session storage.

    Most applications use ``MongoDBSessionManager``, which stands on the same documents and sends far fewer commands.
    The repository may be shared by threads.

    Args:
        connection_string: MongoDB connection string; the repository then owns the client and closes it. Ignored if
            ``client`` is given.
        database_name: Database of the sessions.
        collection_name: Collection of the sessions.
        client: A client to borrow; whoever made it closes it.
        metadata_fields: Metadata fields to index, 28 at most; a dot addresses a nested field.
        ttl_hours: A session ends by itself so many hours after it was written to last; None: it does not. Each write
            decides that anew for its session, so give the same to whatever writes to a collection.
        **kwargs: Options of the ``MongoClient`` that is made from ``connection_string``. Beside ``client`` they have no
            effect, which a warning says.

    Attributes:
        client: The ``MongoClient``.
        database: The database.
        collection: The collection of the session documents.

    Raises:
        ValueError: Neither ``connection_string`` nor ``client``; the write concern is ``w=0``; ``ttl_hours`` is not
            above 0; there are more than 28 ``metadata_fields``.
        TypeError: ``client`` is an ``AsyncMongoClient``; ``metadata_fields`` is one string.
    """

    _ensures_indexes_at_once = True

    def __init__(
        self,
        connection_string: str | None = None,
        database_name: str = "database_name",
        collection_name: str = "collection_name",
        client: MongoClient[Any] | None = None,
        metadata_fields: Sequence[str] | None = None,
        *,
        ttl_hours: float | None = None,
        **kwargs: Any,
    ) -> None:
        fields = check_metadata_fields(metadata_fields)
        # Other collections are named after this one. (What is no text, PyMongo refuses.)
        database_name, collection_name = (
            exact_text(name) if isinstance(name, str) else name for name in (database_name, collection_name)
        )
        self._ttl = check_ttl(ttl_hours)
        self._owns_client = client is None
        if client is not None and kwargs:
            warnings.warn(f"a borrowed client keeps its options; ignored: {', '.join(sorted(kwargs))}", stacklevel=2)
        if client is None:
            if connection_string is None:
                raise ValueError("give a connection_string, or a client to borrow")
            client = open_client(connection_string, kwargs)
        try:
            self._store = SessionStore(client, database_name, collection_name, fields)
        except BaseException:
            if self._owns_client:
                client.close()
            raise
        self.client: MongoClient[Any] = client
        self.collection: Collection[Document] = self._store.commands.collection
        self.database: Database[Document] = self.collection.database
        self._place = SessionPlace(database_name, collection_name)
        # Set by a factory, for its managers' reads; every write here keeps it true.
        self._cache_use: CacheUse | None = None
        if self._ensures_indexes_at_once:
            self._ensure_indexes()

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
            raise SessionExistsError(f"session_id={session_id!r} exists") from error
        session.created_at, session.updated_at = documents.to_iso(created_at), documents.to_iso(updated_at)
        return session

    def read_session(self, session_id: str, **kwargs: Any) -> Session | None:
        """Return the session's id, type and times, or None if it does not exist."""
        header = {"session_id": 1, "session_type": 1, "created_at": 1, "updated_at": 1}
        document = self._store.commands.find_one(sessions.not_expired(check_id(session_id, "session_id")), header)
        return None if document is None else documents.to_session(document)

    def session_exists(self, session_id: str) -> bool:
        """Return whether there is a session with this id."""
        which = sessions.not_expired(check_id(session_id, "session_id"))
        return self._store.commands.find_one(which, {"_id": 1}) is not None

    def delete_session(self, session_id: str, **kwargs: Any) -> None:
        """Delete a session with all that belongs to it.

        Raises:
            SessionNotFoundError: There is no such session.
            SessionBusyError: A process holds its lease.
        """
        session = self._ref(session_id)
        with self._changing_metadata(session.session_id):
            self._store.lifecycle.delete(session)

    def list_sessions(
        self,
        *,
        metadata: Mapping[str, Any] | None = None,
        application_name: str | None = None,
        session_type: str | None = None,
        agent_id: str | None = None,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
        updated_from: datetime | None = None,
        updated_before: datetime | None = None,
        sort_by: SortBy = "created_at",
        newest_first: bool = True,
        limit: int = DEFAULT_PAGE,
        cursor: str | None = None,
    ) -> SessionPage:
        """Return a page of the sessions that meet all of these filters: their headers, no conversation.

        Pages by ``created_at`` show every session once that is there from the first page to the last, whatever is
        written meanwhile. By ``updated_at`` a session that changes meanwhile moves: it may be shown again or, where it
        moves to a page that was read already, not at all; the first page, read anew, has it. Sessions that have
        expired are not listed. A page holds the whole metadata of its sessions: where that is large, ask for few at
        once. Which filters an index serves: ``docs/listing.md``.

        Args:
            metadata: Fields and the values they must equal; a dot addresses a nested field. A value is never an
                operator: ``{"$gt": ""}`` finds what equals just that. None also finds sessions without the field, and
                a value those that have it in an array.
            application_name: Only sessions of this application.
            session_type: Only sessions of this type.
            agent_id: Only sessions that have this agent.
            created_from: Only sessions that began at this time or later; it has a time zone. The server keeps
                milliseconds.
            created_before: Only sessions that began before this time.
            updated_from: Only sessions that last changed at this time or later.
            updated_before: Only sessions that last changed before this time.
            sort_by: ``"created_at"`` or ``"updated_at"``.
            newest_first: Whether the latest comes first; else the earliest.
            limit: How many sessions at most, from 1 to 100.
            cursor: ``cursor`` of the former page. Give the same filters with it; only the order is checked.

        Returns:
            The page; ``cursor`` is None on the last one.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A time has no time zone or is out of range; ``sort_by`` or ``limit`` is none of these;
                ``cursor`` is damaged, or of a list in another order.
            InvalidIdentifierError: A metadata key or ``agent_id`` cannot be used.
            UnstorableValueError: A value to compare with is none that MongoDB knows.
        """
        asked = session_listing.listing(
            metadata=metadata,
            application_name=application_name,
            session_type=session_type,
            agent_id=agent_id,
            created_from=created_from,
            created_before=created_before,
            updated_from=updated_from,
            updated_before=updated_before,
            sort_by=sort_by,
            newest_first=newest_first,
            limit=limit,
            cursor=cursor,
        )
        for condition in asked.conditions:
            _check_storable(condition, "filter")
        return self._store.reads.list_sessions(asked)

    # --- agents -----------------------------------------------------------------------------------------------------

    def create_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Create an agent without messages. ``model`` and ``system_prompt`` are stored if the object has them.

        Raises:
            SessionNotFoundError: There is no such session.
            SessionConflictError: The session has this agent. It was left as it is.
            UnstorableValueError: Its state holds something that cannot be stored.
        """
        session, key = self._ref(session_id), _agent_key(session_agent.agent_id)
        blobs = self._pending_blobs()
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
            raise SessionConflictError(f"session_id={session_id!r} has an agent_id={session_agent.agent_id!r}")

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
        blobs = self._pending_blobs()
        fields = documents.agent_data(session_agent, blobs)
        del fields["created_at"]
        session = self._store.related.upload(session, key, None, blobs)
        moment = now()
        fields["updated_at"] = documents.to_iso(moment)
        if (
            self._store.changes.guarded(
                session,
                lambda session, found: commits.agent_fields(session, key, fields, found["changes"], moment),
                commits.agent_projection(key),
                lambda found: not found["exists"],
                agent_keys=[key],
            )
            is not None
        ):
            raise AgentNotFoundError(f"session_id={session_id!r} has no agent_id={session_agent.agent_id!r}")
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
        session, key = self._ref(session_id), _agent_key(agent_id)
        message_id = check_message_id(session_message.message_id)
        moment = now()
        created_at = documents.parse_time(session_message.created_at, moment)
        updated_at = documents.parse_time(session_message.updated_at, moment)
        blobs = self._pending_blobs()
        body = documents.session_message_body(session_message, blobs)
        session = self._store.related.upload(session, key, message_id, blobs)
        message = commits.TrackedMessage(None, None, body.get("tracking_id"))
        message.body = {**body, "created_at": created_at, "updated_at": updated_at}
        message.totals = Totals()
        message.totals.add_message(starts_turn=False)
        append = commits.Commit(key, [message], first_message_id=message_id, gap_allowed=True)
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
        session, key = self._ref(session_id), _agent_key(agent_id)
        message_id = check_message_id(session_message.message_id)
        blobs = self._pending_blobs()
        body = documents.session_message_body(session_message, blobs)
        session = self._store.related.upload(session, key, message_id, blobs)
        moment = now()
        work = Rewrite(key, message_id, body, body.get("tracking_id"))
        self._store.messages.rewrite(session, work, moment)
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

    def list_message_documents(
        self, session_id: str, agent_id: str, limit: int | None = None, offset: int = 0
    ) -> list[dict[str, Any]]:
        """Return the same page as ``list_messages``, each message as the document that is stored of it.

        So it also has what Strands' type has no room for: ``event_loop_metrics``, ``turn_id``, ``guardrail_event``.
        The fields are those of ``docs/data-model.md``; values are decoded, blobs are fetched, times have a time zone.

        Args:
            session_id: As for ``list_messages``, like all below.
            agent_id: The agent.
            limit: How many messages at most; None for all.
            offset: How many of the oldest messages to skip.

        Raises:
            ValueError: ``limit`` or ``offset`` is negative or no ``int``.
        """
        return self._page(session_id, agent_id, limit, offset)

    # --- graphs and swarms ------------------------------------------------------------------------------------------

    def create_multi_agent(self, session_id: str, multi_agent: Any, **kwargs: Any) -> None:
        """Store the state of a new graph or swarm.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        session = self._ref(session_id)
        multi_agent_id = check_id(multi_agent.id, "multi_agent_id")
        session, state = self._multi_agent_state(session, multi_agent, multi_agent_id)
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
        session = self._ref(session_id)
        multi_agent_id = check_id(multi_agent.id, "multi_agent_id")
        session, state = self._multi_agent_state(session, multi_agent, multi_agent_id)
        missing = self._store.changes.guarded(
            session,
            lambda session, found: multi_agent_states.multi_agent(
                session, multi_agent_id, state, found["changes"], now()
            ),
            multi_agent_states.multi_agent_projection(multi_agent_id),
            lambda found: found["changes"] is None,
        )
        if missing is not None:
            raise AgentNotFoundError(f"session_id={session_id!r} has no multi_agent_id={multi_agent_id!r}")

    # --- metadata ---------------------------------------------------------------------------------------------------

    def update_metadata(self, session_id: str, metadata: dict[str, Any]) -> None:
        """Set metadata fields of a session and leave the others. A dot in a key addresses a nested field.

        Raises:
            SessionNotFoundError: There is no such session.
            InvalidIdentifierError: A key is empty, has an empty part or one that begins with ``$``, holds a NUL, or
                numbers an element of a list above 999.
            UnstorableValueError: A value cannot be stored, or lies below one that is no object; the call brings more
                than 4 MB; or the session's metadata has more than 4 MB already.
        """
        session = self._ref(session_id)
        self._update_metadata(lambda: session, check_metadata(metadata))

    def get_metadata(self, session_id: str) -> dict[str, Any]:
        """Return ``{"metadata": {…}}``, or ``{}`` if the session does not exist."""
        which = sessions.not_expired(check_id(session_id, "session_id"))
        document = self._store.commands.find_plain(which, {"_id": 0, "metadata": 1})
        return {} if document is None else {"metadata": dict(mapping(document.get("metadata")))}

    def delete_metadata(self, session_id: str, metadata_keys: list[str]) -> None:
        """Remove metadata fields of a session and leave the others; those that are not there are no error.

        Raises:
            SessionNotFoundError: There is no such session.
            InvalidIdentifierError: As for ``update_metadata``.
        """
        self._delete_metadata(self._ref(session_id), check_metadata_paths(metadata_keys))

    # --- feedback ---------------------------------------------------------------------------------------------------

    def add_feedback(self, session_id: str, feedback: dict[str, Any]) -> None:
        """Append a feedback, typically ``rating`` and ``comment`` and any fields; ``created_at`` is added.

        With ``agent_id`` in it, it is about that agent, with ``message_id`` besides, about that message of the agent.

        Raises:
            SessionNotFoundError: There is no such session.
            AgentNotFoundError: It is about an agent that the session does not have.
            MessageNotFoundError: It is about a message that the agent does not have.
            InvalidIdentifierError: A key cannot be stored; ``message_id`` is no ``int``, negative, or without
                ``agent_id``.
            UnstorableValueError: A value cannot be stored.
        """
        session = self._ref(session_id)
        self._add_feedback(lambda: session, feedback)

    def get_feedbacks(self, session_id: str) -> list[dict[str, Any]]:
        """Return a session's feedbacks, oldest first; ``[]`` if it has none or does not exist."""
        feedbacks = self._store.reads.get_feedbacks(check_id(session_id, "session_id"))
        return [{key: value for key, value in feedback.items() if key != "commit_id"} for feedback in feedbacks]

    # --- metrics ----------------------------------------------------------------------------------------------------

    def get_metrics_summary(
        self, session_id: str, agent_id: str | None = None, *, prices: Mapping[str, ModelPrice] | None = None
    ) -> MetricsSummary:
        """Return what a session has used: tokens, latencies (ms), tools, costs; and how people rated it.

        It is one small read, however long the session is: the running totals that grow with every message, and the
        ratings. (One more where feedbacks are archived.) So it holds what was archived or redacted, too.

        Args:
            session_id: The session.
            agent_id: Only this agent, and only feedbacks that have this ``agent_id``; None for the whole session.
            prices: By model id, per million tokens; without them, and for a model that is not among them, ``cost`` is
                None.

        Returns:
            The summary; ``MetricsSummary`` tells each field, and ``LatencyMetrics`` how exact percentiles are. Of a
            session or an agent that does not exist all counts are 0.

        Raises:
            TypeError: ``prices`` is no mapping of model ids to ``ModelPrice``.
            InvalidIdentifierError: An id cannot be used.
        """
        checked = check_prices(prices)
        if agent_id is not None:
            agent_id = check_id(agent_id, "agent_id")
        usages, ratings = self._store.reads.read_metrics(check_id(session_id, "session_id"), agent_id)
        return summarise(usages, ratings, checked)

    # --- guardrails -------------------------------------------------------------------------------------------------

    def get_guardrail_events(self, session_id: str) -> list[dict[str, Any]]:
        """Return what guardrails did in a session, oldest first; ``[]`` if nothing or if it does not exist.

        Returns:
            The newest 100: ``{id, agent_id, message_id, role, action, created_at, stop_reason?, guardrail_id?,
            guardrail_version?, policies}``; see ``docs/guardrails.md``.
        """
        return self._store.reads.get_guardrail_events(check_id(session_id, "session_id"))

    # --- search -----------------------------------------------------------------------------------------------------

    def search_messages(
        self,
        text: str,
        *,
        session_id: str | None = None,
        agent_id: str | None = None,
        role: str | None = None,
        application_name: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> list[MessageHit]:
        """Return the messages in which a text is found, the best fit first.

        Found are the messages of sessions whose managers have ``index_messages=True``, and those that
        ``index_messages`` of the repository went through.

        Args:
            text: Words, any of which is to be found; ``"a phrase"`` in quotes and ``-word`` (not this one) as MongoDB's
                ``$text`` knows them. Case and accents do not count.
            session_id: Only in this session.
            agent_id: Only in conversations of agents with this id.
            role: Only what the ``"user"``, or the ``"assistant"``, has said.
            application_name: Only in sessions of this application.
            limit: How many messages at most.

        Raises:
            TypeError: The text or a condition is no string.
            ValueError: The text is empty or cannot be sent; the role is another; ``limit`` is no ``int`` from 1 on.
            InvalidIdentifierError: An id cannot be used.
            MongoDBSessionError: Nothing was ever indexed.
        """
        conditions: dict[str, str] = {}
        if session_id is not None:
            conditions["session_id"] = check_id(session_id, "session_id")
        if agent_id is not None:
            conditions["agent_id"] = check_id(agent_id, "agent_id")
        if role is not None:
            if role not in ("user", "assistant"):
                raise ValueError(f"role must be 'user' or 'assistant', not {shown(role)}")
            conditions["role"] = exact_text(role)
        if application_name is not None:
            conditions["application_name"] = check_text(application_name, "application_name")
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= INT32_MAX:
            raise ValueError(f"limit must be an int of at least 1, not {shown(limit)}")
        return self._store.search.search(check_text(text, "text"), limit, conditions)

    # --- for operators ----------------------------------------------------------------------------------------------

    def index_messages(self, session_id: str | None = None, *, rebuild: bool = False) -> int:
        """Let messages be found that cannot be yet: of sessions that were there before, or written by a repository.

        Run it from a shell, once; beside writers, too. It creates the collection and its index.

        Args:
            session_id: Only those of this session; None for all sessions.
            rebuild: Whether to go through all messages, not only those that are missing: after the collection
                ``<collection>_search`` was dropped.

        Returns:
            How many messages it went through.

        Raises:
            SessionNotFoundError: There is no such session.
            MongoDBSessionError: Messages of sessions that somebody has spoilt could not be read. It names them; all
                others can be found.
        """
        if session_id is not None:
            session_id = check_id(session_id, "session_id")
        return self._store.indexer.index_all(session_id, rebuild=rebuild)

    def sweep(self, older_than_seconds: float = SWEEP_GRACE_SECONDS) -> int:
        """Remove what no session names any more: blobs, and history and search documents of sessions that are gone.

        Processes that die between two commands leave such things, and so does a state whose blobs were replaced. A
        live blob or segment is never removed. Run it regularly, once a day, say: a sweep only marks what it finds
        (``orphaned_at``), and the first sweep that comes after the grace time removes it, if it is orphaned still.
        So collections can be restored one after the other, in any order, with sweeps in between. It reads the history
        of those sessions only that have blobs whose message is not where it was meant to be.

        What others keep in these collections is left alone, except chunks of a file that is gone: they do not tell
        whose they were.

        Args:
            older_than_seconds: The grace time since the mark, and for blobs also since they were uploaded. Below two
                hours (7200) only where nothing writes: a blob is uploaded before the commit that names it.

        Returns:
            How many blobs, segments and search documents were removed.

        Raises:
            MongoDBSessionError: What belonged to some sessions could not be marked or removed. It names them; all
                others are done.
        """
        return self._store.related.sweep(older_than_seconds)

    # --- for people's own queries -----------------------------------------------------------------------------------

    def create_messages_view(self) -> str:
        """Make the read-only view ``<collection>_messages``: every message of every session, one document each.

        It shows the messages embedded in session documents and the archived ones alike, each with ``session_id``,
        ``session_type``, ``application_name``, ``agent_id``, ``model`` and the fields of the stored message. MongoDB
        computes it at each query; it stores nothing. Call it once, from a shell or when an application is deployed;
        calling it again brings a view of an older version up to date.

        Returns:
            The view's name.

        Raises:
            MongoDBSessionError: There is a collection, or another view, of that name. It is left as it is.
            OperationFailure: The user may not make views.
        """
        return self._store.create_messages_view()

    # --- the client -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the client if the repository made it; a borrowed one stays open."""
        if self._owns_client:
            self.client.close()

    def _ensure_indexes(self) -> None:
        """Create the indexes, once per process and collection. A failure is logged, not raised."""
        self._store.ensure_indexes(expiring=self._ttl is not None)

    # --- shared with the manager ------------------------------------------------------------------------------------

    def _page(self, session_id: str, agent_id: str, limit: int | None, offset: int) -> list[Document]:
        for name, value in (("limit", limit), ("offset", offset)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise ValueError(f"{name} must be an int of at least 0, not {shown(value)}")
        key = _agent_key(agent_id)
        return self._store.reads.list_messages(check_id(session_id, "session_id"), key, offset, limit)

    def _ref(self, session_id: str) -> SessionRef:
        return SessionRef(check_id(session_id, "session_id"), ttl=self._ttl)

    def _pending_blobs(self) -> PendingBlobs:
        return PendingBlobs(BLOB_THRESHOLD_BYTES)

    def _multi_agent_state(self, session: SessionRef, multi_agent: Any, multi_agent_id: str) -> tuple[SessionRef, Any]:
        """Return what is stored of a graph or swarm, its blobs uploaded, and the session for which they were."""
        blobs = self._pending_blobs()
        where = f"multi_agent_id={multi_agent_id!r} state"
        state = encode(multi_agent.serialize_state(), where, blobs)
        documents.check_size({"state": state}, where)
        return self._store.related.upload(session, "", None, blobs), state

    def _update_metadata(self, session: Callable[[], SessionRef], metadata: Document) -> None:
        _check_storable(metadata, "metadata")
        if (size := len(to_bson(metadata))) > MAX_METADATA_BYTES:
            raise UnstorableValueError(f"metadata of {size} bytes: at most {MAX_METADATA_BYTES} can be set at once")
        known = session()
        if metadata:
            with self._changing_metadata(known.session_id):
                self._store.changes.set_metadata(known, metadata)

    def _delete_metadata(self, session: SessionRef, keys: Sequence[str]) -> None:
        if keys:
            with self._changing_metadata(session.session_id):
                self._store.changes.unset_metadata(session, keys)

    def _read_metadata(self, session_id: str, incarnation: ObjectId | None) -> dict[str, Any]:
        """Return what ``get_metadata`` returns, from the cache if there is one."""
        use = self._cache_use
        if use is None:
            return self.get_metadata(session_id)
        cache = use.cache
        cache._watch(use, self._place, lambda watched: watch(cache, self._place, self._store, watched))
        content = cache._read(
            use, self._place, session_id, incarnation, lambda: self._store.reads.read_metadata(session_id)
        )
        return {} if content is None else {"metadata": self._store.reads.metadata(content)}

    def _changing_metadata(self, session_id: str) -> AbstractContextManager[None]:
        use = self._cache_use
        return nullcontext() if use is None else use.cache._changing(self._place, session_id)

    def _add_feedback(self, session: Callable[[], SessionRef], feedback: Mapping[str, Any]) -> None:
        moment = now()
        stored = {**check_feedback(feedback), "created_at": moment, "commit_id": ObjectId()}
        _check_storable(stored, "feedback")
        link = None
        if stored.get("agent_id") is not None:
            link = MessageLink(encode_key(stored["agent_id"]), stored.get("message_id"))
        self._store.changes.add_feedback(session(), stored, link, moment)

    def _list_agents(self, session_id: str) -> list[str]:
        # Keys only: no message is read. `agent_ids` lacks in older documents.
        projection = {"_id": 0, "keys": reading.AGENT_KEYS}
        document = self._store.commands.find_one(sessions.not_expired(session_id), projection)
        return [name_of(key) for key in (document or {}).get("keys") or []]

    def _count_messages(self, session_id: str, agent_id: str) -> int:
        return self._store.reads.count_messages(session_id, encode_key(agent_id))


class RepositoryOfManagers(MongoDBSessionRepository):
    """What managers stand on. To make it sends nothing: they see to the indexes when they open their sessions."""

    _ensures_indexes_at_once = False


def _agent_key(agent_id: str) -> str:
    return encode_key(check_id(agent_id, "agent_id"))


def _check_storable(document: Document, what: str) -> None:
    """Refuse what BSON cannot hold before anything is sent. Dates, ObjectIds and the like are stored as such."""
    for key, value in document.items():
        try:
            content = to_bson({"value": value})
        except Exception as error:
            raise UnstorableValueError(f"{what}[{shown(key)}] cannot be stored: {type(error).__name__}") from error
        documents.check_size(content, f"{what}[{shown(key)}]")
