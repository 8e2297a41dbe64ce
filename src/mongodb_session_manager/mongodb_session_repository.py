"""The repository: Strands' ``SessionRepository`` on MongoDB, and what the documents hold besides."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from bson import ObjectId
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database

from ._client.clients import open_client
from ._model import keys
from ._model.documents import Document, check_storable
from ._model.expiry import check_ttl
from ._model.limits import DEFAULT_PAGE, SWEEP_GRACE_SECONDS
from ._model.metrics_summary import MetricsSummary, ModelPrice, check_prices, summarise
from ._session.metadata import StoredMetadata
from ._session.metadata_cache import MetadataMemory
from ._session.strands_repository import StrandsRepository
from ._statements import session_listing
from ._statements.feedback import MessageLink
from ._statements.searching import search_conditions
from ._statements.session_listing import SessionPage, SortBy
from ._statements.sessions import SessionRef
from ._store.search_index import MessageHit
from ._store.session_commands import now
from ._store.session_store import SessionStore


class MongoDBSessionRepository(StrandsRepository):
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
        fields = keys.check_metadata_fields(metadata_fields)
        # Other collections are named after this one. (What is no text, PyMongo refuses.)
        database_name, collection_name = (
            keys.exact_text(name) if isinstance(name, str) else name for name in (database_name, collection_name)
        )
        ttl = check_ttl(ttl_hours)
        self._owns_client = client is None
        if client is not None and kwargs:
            warnings.warn(f"a borrowed client keeps its options; ignored: {', '.join(sorted(kwargs))}", stacklevel=2)
        if client is None:
            if connection_string is None:
                raise ValueError("give a connection_string, or a client to borrow")
            client = open_client(connection_string, kwargs)
        try:
            store = SessionStore(client, database_name, collection_name, fields)
        except BaseException:
            if self._owns_client:
                client.close()
            raise
        super().__init__(store, StoredMetadata(store, None), ttl)
        self.client: MongoClient[Any] = client
        self.collection: Collection[Document] = store.commands.collection
        self.database: Database[Document] = self.collection.database
        if self._ensures_indexes_at_once:
            self._ensure_indexes()

    # --- sessions and messages ---------------------------------------------------------------------------------------

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
        filters = {name: value for name, value in locals().items() if name != "self"}
        asked = session_listing.listing(**filters)
        for condition in asked.conditions:
            check_storable(condition, "filter")
        return self._store.reads.list_sessions(asked)

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
        self._metadata.update(session.session_id, lambda: session, keys.check_metadata(metadata))

    def get_metadata(self, session_id: str) -> dict[str, Any]:
        """Return ``{"metadata": {…}}``, or ``{}`` if the session does not exist."""
        return self._metadata.get(keys.check_id(session_id, "session_id"))

    def delete_metadata(self, session_id: str, metadata_keys: list[str]) -> None:
        """Remove metadata fields of a session and leave the others; those that are not there are no error.

        Raises:
            SessionNotFoundError: There is no such session.
            InvalidIdentifierError: As for ``update_metadata``.
        """
        self._metadata.delete(self._ref(session_id), keys.check_metadata_paths(metadata_keys))

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
        self._append_feedback(session.session_id, lambda: session, feedback)

    def get_feedbacks(self, session_id: str) -> list[dict[str, Any]]:
        """Return a session's feedbacks, oldest first; ``[]`` if it has none or does not exist."""
        found = self._store.reads.get_feedbacks(keys.check_id(session_id, "session_id"))
        return [{key: value for key, value in feedback.items() if key != "commit_id"} for feedback in found]

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
            agent_id = keys.check_id(agent_id, "agent_id")
        usages, ratings = self._store.reads.read_metrics(keys.check_id(session_id, "session_id"), agent_id)
        return summarise(usages, ratings, checked)

    # --- guardrails -------------------------------------------------------------------------------------------------

    def get_guardrail_events(self, session_id: str) -> list[dict[str, Any]]:
        """Return what guardrails did in a session, oldest first; ``[]`` if nothing or if it does not exist.

        Returns:
            The newest 100: ``{id, agent_id, message_id, role, action, created_at, stop_reason?, guardrail_id?,
            guardrail_version?, policies}``; see ``docs/guardrails.md``.
        """
        return self._store.reads.get_guardrail_events(keys.check_id(session_id, "session_id"))

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
        conditions = search_conditions(session_id, agent_id, role, application_name, limit)
        return self._store.search.search(keys.check_text(text, "text"), limit, conditions)

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
            session_id = keys.check_id(session_id, "session_id")
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

    # --- what these and managers share ------------------------------------------------------------------------------

    def _append_feedback(self, session_id: str, session: Callable[[], SessionRef], feedback: Mapping[str, Any]) -> None:
        """Append a feedback; ``session`` is called, to open the session, when it is known to be storable."""
        moment = now()
        stored = {**keys.check_feedback(feedback), "created_at": moment, "commit_id": ObjectId()}
        check_storable(stored, "feedback", session_id)
        link = None
        if stored.get("agent_id") is not None:
            link = MessageLink(keys.encode_key(stored["agent_id"]), stored.get("message_id"))
        self._store.changes.add_feedback(session(), stored, link, moment)

    def _ensure_indexes(self) -> None:
        """Create the indexes, once per process and collection. A failure is logged, not raised."""
        self._store.ensure_indexes(expiring=self._ttl is not None)

    # --- the client -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the client if the repository made it; a borrowed one stays open."""
        if self._owns_client:
            self.client.close()


class RepositoryOfManagers(MongoDBSessionRepository):
    """What managers stand on. To make it sends nothing: they see to the indexes when they open their sessions."""

    _ensures_indexes_at_once = False

    def remember_in(self, memory: MetadataMemory) -> None:
        """Let managers read metadata from a factory's memory; whatever is written from here on keeps it true."""
        self._metadata = StoredMetadata(self._store, memory)
