"""The manager: the face of all that keeps one session of Strands agents in MongoDB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from pymongo import MongoClient
from strands.hooks import HookRegistry
from strands.session.repository_session_manager import RepositorySessionManager
from strands.tools.decorator import DecoratedFunctionTool
from strands.types.content import Message
from strands.types.session import Session

from ._agents.outbox import wait_unless_in_loop
from ._model.archive_policy import ArchivePolicy
from ._model.guardrails import facts_of_trace
from ._model.keys import check_feedback, check_id, encode_key
from ._model.limits import BLOB_THRESHOLD_BYTES
from ._model.metrics_summary import MetricsSummary, ModelPrice
from ._session.lease import SessionLease
from ._session.managed_session import ManagedSession
from ._session.metadata import SessionMetadata
from ._session.metadata_tool import metadata_tool
from ._session.options import Durability, FeedbackHook, MetadataHook, OnConflict, Settings, call_hook, check_on_conflict
from ._session.outboxes import Outboxes
from ._session.strands_events import StrandsEvents, has_guardrail
from .errors import AgentNotFoundError, SessionNotFoundError
from .mongodb_session_repository import RepositoryOfManagers
from .telemetry import Observer


class MongoDBSessionManager(RepositorySessionManager):
    """Keeps one session of Strands agents in MongoDB.

    Give it to an ``Agent`` (or several with different ``agent_id``, a ``Graph``, a ``Swarm``, a ``BidiAgent``) as
    ``session_manager``. The constructor sends nothing; the session is read, or begun, when the first agent is built.

    Args:
        session_id: The session's id: any text of up to 1024 bytes without slashes and control characters.
        connection_string: MongoDB connection string; the manager then owns the client and closes it.
        database_name: Database of the sessions.
        collection_name: Collection of the sessions.
        client: A client to borrow instead, whatever else is given; whoever made it closes it.
        metadata_fields: Metadata fields to index.
        application_name: Stored with a new session, to tell the sessions of several applications apart.
        session_type: Stored with a new session; any text.
        durability: ``"message"`` stores every message as it is added. ``"turn"`` stores all that a turn brought in
            one update at its end: a process that dies inside a turn loses that turn, the user's message included.
        archive_after_messages: An agent with this many messages in the session document is archived from: the oldest,
            live or not, move to ``<collection>_history``; the newest stay.
        archive_after_bytes: Or with this many bytes of them.
        archive_block: How many messages move at once; fewer, where they have half of ``archive_after_bytes``.
        ttl_hours: The session ends by itself so many hours after its last activity; None: it does not. Each write
            decides that anew, so give the same to all that write to a collection.
        blob_threshold_bytes: A binary of this size, wherever it is in a message or in state, is kept in GridFS, in
            ``<collection>_blobs``, and so is a text of 1 MB.
        index_messages: Whether the text of messages can be found with ``search_messages`` of the repository or factory.
            After each turn it is copied into ``<collection>_search``, in a thread; ``flush`` and ``close`` wait for it.
        on_conflict: What to do if another process has stored messages of the same agent meanwhile. ``"rebase"``
            appends behind them; ``"raise"`` raises ``SessionConflictError`` and keeps the unit of work.
        metadata_hook: Called instead of each of ``update_metadata``, ``get_metadata`` and ``delete_metadata``, also
            where an agent's tool is what calls them; see ``MetadataHook``.
        feedback_hook: Called instead of ``add_feedback``; see ``FeedbackHook``.
        **client_options: Options of the ``MongoClient`` that is made from ``connection_string``; beside ``client``
            they have no effect, which a warning says.

    Raises:
        InvalidIdentifierError: The session id is empty, has more than 1024 bytes, or holds a slash, a control character
            or a lone surrogate.
        TypeError: The session id, ``application_name`` or ``session_type`` is no string, ``client`` is an
            ``AsyncMongoClient``, ``metadata_fields`` is one string, or a hook is no function or an ``async`` one.
        ValueError: Neither ``connection_string`` nor ``client``; ``w=0``; an unknown ``durability``; a threshold
            below 1; ``ttl_hours`` not above 0; more than 28 ``metadata_fields``.
    """

    _closed = False

    def __init__(
        self,
        session_id: str,
        connection_string: str | None = None,
        database_name: str = "database_name",
        collection_name: str = "collection_name",
        client: MongoClient[Any] | None = None,
        *,
        metadata_fields: Sequence[str] | None = None,
        application_name: str | None = None,
        session_type: str = "default",
        durability: Durability = "message",
        on_conflict: OnConflict = "rebase",
        ttl_hours: float | None = None,
        archive_after_messages: int = ArchivePolicy.after_messages,
        archive_after_bytes: int = ArchivePolicy.after_bytes,
        archive_block: int = ArchivePolicy.block,
        blob_threshold_bytes: int = BLOB_THRESHOLD_BYTES,
        metadata_hook: MetadataHook | None = None,
        feedback_hook: FeedbackHook | None = None,
        index_messages: bool = False,
        **client_options: Any,
    ) -> None:
        # Strands' constructor is not called: it reads and creates the session at once.
        session_id = check_id(session_id, "session_id")
        settings = Settings.among(locals())
        repository = RepositoryOfManagers(
            connection_string,
            database_name,
            collection_name,
            client,
            metadata_fields,
            ttl_hours=ttl_hours,
            **client_options,
        )
        self._assemble(session_id, settings, repository, None)

    @classmethod
    def _of_parts(
        cls, session_id: str, settings: Settings, repository: RepositoryOfManagers, observer: Observer | None
    ) -> MongoDBSessionManager:
        """Make a factory's manager: they share a repository, which holds no state and takes 0.1 ms to make."""
        manager = cls.__new__(cls)
        manager._assemble(check_id(session_id, "session_id"), settings, repository, observer)
        return manager

    def _assemble(
        self, session_id: str, settings: Settings, repository: RepositoryOfManagers, observer: Observer | None
    ) -> None:
        self.session_id = session_id
        self.session_repository: RepositoryOfManagers = repository
        self._settings = settings
        self._session = ManagedSession(session_id, settings, repository._store, observer)
        self._outboxes = Outboxes(self, self._session)
        self._agents = self._outboxes.agents
        self._executor = repository._store.commands.executor

    # --- Strands' methods -------------------------------------------------------------------------------------------

    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        """Follow an agent, graph or swarm. Callbacks that store are coroutines, so no event loop waits for MongoDB."""
        self._events().register(registry)

    def initialize(self, agent: Any, **kwargs: Any) -> None:
        """Restore the agent from the session, or begin to keep it there. Called when an ``Agent`` is built.

        Raises:
            MongoDBSessionError: Another agent of this manager has the same id.
            SessionNotFoundError: The session that this manager opened was deleted.
            InvalidIdentifierError: The agent's id cannot be used.
        """
        self._agents.initialize(agent, self._fix_broken_tool_use)
        if has_guardrail(agent):
            self._events().watch_guardrail(agent)

    def append_message(self, message: Message, agent: Any, **kwargs: Any) -> None:
        """Store a message. Strands stores its messages by itself; this is for messages of your own.

        A message that Strands stores as well is stored once: one that is in ``agent.messages``, the user's message
        that equals the one Strands stores next, an answer that equals the one it stored last.

        Args:
            message: ``{"role": …, "content": [blocks]}``; a string as content becomes one text block.
            agent: An agent that was built with this session manager.

        Raises:
            UnstorableValueError: The message holds something that cannot be stored, or is none.
            TypeError: Its ``tracking_id`` is no text. (An empty one counts as none, as for Strands.)
            AgentNotFoundError: The agent was not built with this session manager.
        """
        follower = self._agents.follower(agent)
        follower.append_by_hand(message, agent)
        wait_unless_in_loop(follower.work.send())

    def redact_latest_message(self, redact_message: Message, agent: Any, **kwargs: Any) -> None:
        """Replace the content of the message that was appended last, in the store as well.

        The original is then in none of the collections; its ids, metadata and metrics are kept.

        Args:
            redact_message: What stands there instead.
            agent: Whose message.

        Raises:
            MongoDBSessionError: The agent has no message, or its latest was refused and is stored nowhere.
            TypeError: The ``tracking_id`` of ``redact_message`` is no text. Nothing was changed.
        """
        follower = self._agents.follower(agent)
        if follower.redact_latest(redact_message, agent):
            wait_unless_in_loop(follower.work.send())

    def record_guardrail_trace(self, trace: Mapping[str, Any], agent: Any) -> None:
        """Take note of which policies of a guardrail fired; what it redacts or stops next is stored with them.

        The traces of models whose configuration names a ``guardrail_id`` are noted without that. Nothing that a policy
        matched is kept, and nothing is sent: call it before ``redact_latest_message``, or during a model call.

        Args:
            trace: As Amazon Bedrock forms it: ``{"guardrail": {"inputAssessment": …, "outputAssessments": …}}``.
            agent: An agent that was built with this session manager.

        Raises:
            AgentNotFoundError: The agent was not built with this session manager.
        """
        self._agents.follower(agent).guardrail.said(facts_of_trace(trace))

    def sync_agent(self, agent: Any, **kwargs: Any) -> None:
        """Store what has changed in the agent and is not stored yet; after a turn that is nothing.

        An answer that was appended by hand gets the metrics by which ``agent.event_loop_metrics`` has grown.

        Raises:
            AgentNotFoundError: The agent was not built with this session manager.
        """
        follower = self._agents.follower(agent)
        try:
            follower.stage_late_metrics(agent)
            follower.stage_agent(agent)
        finally:
            wait_unless_in_loop(follower.work.send())

    def initialize_multi_agent(self, source: Any, **kwargs: Any) -> None:
        """Restore a graph or swarm from the session, or begin to keep it there."""
        sending = self._outboxes.orchestrators.begin(source, self._outboxes.orchestrators.read(source))
        if sending is not None:
            sending.wait()

    def sync_multi_agent(self, source: Any, **kwargs: Any) -> None:
        """Store the state of a graph or swarm if it has changed."""
        wait_unless_in_loop(self._outboxes.orchestrators.stage(source))

    # --- the session ------------------------------------------------------------------------------------------------

    @property
    def session(self) -> Session:  # type: ignore[override]
        """The session's header. Reads it; begins the session if there is none."""
        self._session.open_ref()
        session = self.session_repository.read_session(self.session_id)
        if session is None:
            raise self._session.is_gone()
        return session

    def update_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Set metadata fields of the session and leave the others. A dot in a key addresses a nested field.

        Raises:
            InvalidIdentifierError: A key is empty, has an empty part or one that begins with ``$``, holds a NUL, or
                numbers an element of a list above 999.
            UnstorableValueError: A value cannot be stored, or lies below one that is no object; the call brings more
                than 4 MB; or the session's metadata has more than 4 MB already.
        """
        self._metadata().update(metadata)

    def get_metadata(self) -> dict[str, Any]:
        """Return ``{"metadata": {…}}``, or ``{}`` if the session does not exist.

        With a ``SessionMetadataCache`` what another process has written may be missing for its ``ttl_seconds``; what
        was written through this factory is not.
        """
        return self._metadata().get()

    def delete_metadata(self, metadata_keys: Sequence[str]) -> None:
        """Remove metadata fields of the session; those that are not there are no error.

        Raises:
            InvalidIdentifierError: As for ``update_metadata``.
        """
        self._metadata().delete(metadata_keys)

    def _metadata(self) -> SessionMetadata:
        return SessionMetadata(self._session, self.session_repository._metadata, self)

    def get_metadata_tool(
        self, readable: Sequence[str] | None = None, writable: Sequence[str] | None = None
    ) -> DecoratedFunctionTool[Any, Any]:
        """Return a tool named ``manage_metadata``, with which an agent reads and changes this session's metadata.

        ``Agent(tools=[manager.get_metadata_tool(readable=["customer"], writable=[])], …)``. What the model does
        passes through ``metadata_hook``. What is refused, and what fails, the model is told as the tool's error.

        Args:
            readable: Keys that the model may see; a key allows all below it, ``customer`` also ``customer.name``, but
                not what it lies in. None: all. Other keys are not shown even where everything is asked for.
            writable: Keys that it may set and delete, likewise. None: all.

        Raises:
            TypeError: A list of keys is none, or a key is not a string.
            InvalidIdentifierError: A key can be none; see ``update_metadata``.
        """
        return metadata_tool(self._metadata(), readable, writable)

    def add_feedback(self, feedback: Mapping[str, Any]) -> None:
        """Append what a person said: typically ``rating`` and ``comment``; ``created_at`` is added.

        With ``agent_id`` in it, it is about that agent, with ``message_id`` besides, about that message of the agent.

        Raises:
            AgentNotFoundError: It is about an agent that is not stored in this session. Nothing was written.
            MessageNotFoundError: It is about a message that the agent does not have, or that is not stored yet.
            InvalidIdentifierError: A key cannot be stored; ``message_id`` is no ``int``, negative, or without
                ``agent_id``.
            UnstorableValueError: A value cannot be stored.
        """

        def add(feedback: Mapping[str, Any]) -> None:
            # Where it is about an agent, there is no use in beginning a session that would not have it.
            about_agent = check_feedback(feedback).get("agent_id") is not None
            session = self._session.ref if about_agent else self._session.open_ref
            try:
                self.session_repository._append_feedback(self.session_id, session, feedback)
            except SessionNotFoundError as error:
                if not about_agent or self._session.incarnation is not None:
                    raise
                agent_id = feedback["agent_id"]
                raise AgentNotFoundError(
                    f"session_id={self.session_id!r} has no agent_id={agent_id!r}: it does not exist yet",
                    session_id=self.session_id,
                    agent_id=agent_id,
                ) from error

        given = check_feedback(feedback)
        call_hook(self._settings.feedback_hook, "feedback_hook", add, "add", self, feedback=given)

    def get_feedbacks(self) -> list[dict[str, Any]]:
        """Return the session's feedbacks, oldest first, each with its ``created_at``."""
        return self.session_repository.get_feedbacks(self.session_id)

    def get_guardrail_events(self) -> list[dict[str, Any]]:
        """Return what guardrails did in the session, oldest first; see the repository's method of this name."""
        return self.session_repository.get_guardrail_events(self.session_id)

    def list_agents(self) -> list[str]:
        """Return the ids of the agents that the session has, in the order in which they joined it."""
        return self._session.store.reads.list_agents(self.session_id)

    def get_message_count(self, agent_id: str) -> int:
        """Return how many messages an agent's stored conversation has; 0 if there is no such agent."""
        return self._session.store.reads.count_messages(self.session_id, encode_key(check_id(agent_id, "agent_id")))

    def check_session_exists(self) -> bool:
        """Return whether the session is stored. It is not begun by that."""
        return self.session_repository.session_exists(self.session_id)

    # --- metrics ----------------------------------------------------------------------------------------------------

    def get_metrics_summary(
        self, agent_id: str | None = None, *, prices: Mapping[str, ModelPrice] | None = None
    ) -> MetricsSummary:
        """Return what the session has used: tokens, latencies (ms), tools, costs; and how people rated it.

        One small read, however long the session is, and what is not stored yet is not in it: with
        ``durability="turn"`` the turn that is under way.

        Args:
            agent_id: Only this agent, and only feedbacks that have this ``agent_id``; None for the whole session.
            prices: By model id, per million tokens; without them, and for a model that is not among them, ``cost`` is
                None.

        Returns:
            The summary; ``MetricsSummary`` tells each field, and ``LatencyMetrics`` how exact percentiles are. Of a
            session or an agent that does not exist all counts are 0.

        Raises:
            TypeError: ``prices`` is no mapping of model ids to ``ModelPrice``.
            InvalidIdentifierError: The agent's id cannot be used.
        """
        return self.session_repository.get_metrics_summary(self.session_id, agent_id, prices=prices)

    def set_token_counts(self, input_tokens: int, output_tokens: int) -> None:
        """Say how many tokens the next answer has used; that is stored and counted in place of what is reported.

        It holds for the next assistant message of any agent of this manager, also for one that is appended by hand; in
        a turn with tools that is the message that calls them. Where the last answer of a turn is appended by hand once
        more, they become that answer's. What no answer has taken by the end of a turn is forgotten. Cached tokens that
        the provider reports beside are not stored then.

        Args:
            input_tokens: Tokens sent to the model, from 0 to 2**53.
            output_tokens: Tokens that it generated, likewise.

        Raises:
            TypeError: A count is no ``int``.
            ValueError: A count is negative or above 2**53.
        """
        self._agents.override.set_tokens(input_tokens, output_tokens)

    def start_timing(self) -> None:
        """Start a stopwatch: the latency of the next answer is the time from here to its message, in milliseconds.

        It holds for the same answer as ``set_token_counts``, but for none that is stored already. Called again before
        that, it starts anew.
        """
        self._agents.override.start_timing()

    # --- storing, closing -------------------------------------------------------------------------------------------

    def flush(self, on_conflict: OnConflict | None = None) -> None:
        """Store everything that is not stored yet, and wait until it is.

        In async code: ``await asyncio.to_thread(manager.flush)``.

        Args:
            on_conflict: For what waits now, instead of the manager's own.
        """
        if on_conflict is not None:
            check_on_conflict(on_conflict)
            for follower in self._agents.followers():
                follower.work.set_rebase(on_conflict == "rebase")
        self._outboxes.flush()

    def reload(self, agent: Any) -> None:
        """Make the agent equal to what is stored, and forget what of it is not.

        For ``on_conflict="raise"``, after a ``SessionConflictError``. In async code call it through
        ``asyncio.to_thread``.

        Raises:
            AgentNotFoundError: The agent was not built with this session manager, or is stored no more.
        """
        self._agents.reload(agent, self._fix_broken_tool_use)

    def lease(self, seconds: float, wait: float = 0) -> SessionLease:
        """Return a lease for ``with`` or ``async with``: inside it no other process can write to this session.

        Build the agent inside: the session is read anew there.

        Args:
            seconds: How long the lease runs; a turn should fit in. ``renew()`` prolongs it.
            wait: How many seconds to wait for another holder.

        Returns:
            The lease; entering it raises ``SessionBusyError`` if another process held it for all of ``wait``.
        """
        return SessionLease(self._session, seconds, wait, self._store_beside, self._settle_beside)

    def close(self) -> None:
        """Store what is unsaved, then close the client if the manager owns it. May be called again.

        Raises:
            PyMongoError: Something could not be stored. The manager stays open and keeps it: ``close()`` again later.
            UnstorableValueError: Something never can be. The manager is closed all the same.
        """
        if not self._closed:
            self._store_beside(None, closes=True)

    def __enter__(self) -> MongoDBSessionManager:
        """Return the manager; leaving ``with`` closes it."""
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Store what is unsaved and close."""
        if not self._closed:
            self._store_beside(error, closes=True)

    async def __aenter__(self) -> MongoDBSessionManager:
        """Return the manager; leaving ``async with`` closes it without holding up the event loop."""
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Store what is unsaved and close."""
        if not self._closed:
            await self._settle_beside(error, closes=True)

    def _store_beside(self, error: BaseException | None, *, closes: bool = False) -> None:
        """Store what is unsaved; then close, if this is the end of the manager or of its session.

        Args:
            error: One that is on its way already; a failure becomes a note of it.
            closes: Whether this is the manager's end.
        """
        try:
            with self._outboxes.beside(error):
                self.flush()
        finally:
            if closes or self._outboxes.session_is_gone:
                self._close()

    async def _settle_beside(self, error: BaseException | None, *, closes: bool = False) -> None:
        """Do the same without holding up the event loop."""
        try:
            with self._outboxes.beside(error):
                await self._outboxes.settle()
        finally:
            if closes or self._outboxes.session_is_gone:
                await self._executor.run(self._close)

    def _close(self) -> None:
        if self._outboxes.unsent:
            return  # It could not be stored; the client stays open, so that `close()` can be called again.
        observer = self._session.observer
        if observer is not None and self._session.incarnation is not None and not self._closed:
            observer.session_closed()
        self._closed = True
        self._outboxes.closed()
        self.session_repository.close()
        if self.session_repository._owns_client:
            self._executor.close()

    def _events(self) -> StrandsEvents:
        # Made when it is asked for: it knows the manager, which is not to be kept alive by what it holds itself.
        return StrandsEvents(self._outboxes, self)

    def __repr__(self) -> str:
        """Name the session; never the connection string."""
        return f"{type(self).__name__}(session_id={self.session_id!r})"


def create_mongodb_session_manager(
    session_id: str,
    connection_string: str | None = None,
    database_name: str = "database_name",
    collection_name: str = "collection_name",
    client: MongoClient[Any] | None = None,
    **kwargs: Any,
) -> MongoDBSessionManager:
    """Return a session manager; a shorthand for ``MongoDBSessionManager`` with the same parameters."""
    return MongoDBSessionManager(session_id, connection_string, database_name, collection_name, client, **kwargs)
