"""The manager: follows one session's agents through their events and stores what changed, once per event."""

from __future__ import annotations

import atexit
import itertools
import logging
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any

import pymongo
from bson import ObjectId
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from strands import Agent
from strands.bidi.hooks import BidiAgentStopEvent, BidiResponseStopEvent
from strands.hooks import (
    AfterInvocationEvent,
    AfterModelCallEvent,
    AfterToolCallEvent,
    AgentInitializedEvent,
    BeforeInvocationEvent,
    BeforeModelCallEvent,
    BeforeToolCallEvent,
    HookRegistry,
    MessageAddedEvent,
    MessageUpdatedEvent,
)
from strands.hooks.events import AfterMultiAgentInvocationEvent, AfterNodeCallEvent, MultiAgentInitializedEvent
from strands.hooks.registry import HookOrder
from strands.session.repository_session_manager import RepositorySessionManager
from strands.tools.decorator import DecoratedFunctionTool
from strands.types.content import Message
from strands.types.session import Session

from ._agents.follower import AgentFollower
from ._agents.metrics_override import MetricsOverride
from ._agents.operations import MultiAgentOperation
from ._agents.outbox import Outbox, Sending
from ._agents.record import add_new_agent
from ._agents.unit_of_work import AgentWork, MultiAgentWork
from ._client.executor import Executor, alone_on_a_private_loop, in_event_loop, settle
from ._client.forks import in_child
from ._model import documents
from ._model.archive_policy import ArchivePolicy, DocumentSize
from ._model.documents import Document, StoredAgent
from ._model.encoding import encode, fingerprint
from ._model.expiry import first_expiry
from ._model.guardrails import facts_in_stream, facts_of_config, facts_of_trace, is_redaction, redacted_prompt
from ._model.keys import check_feedback, check_id, encode_key, exact_text
from ._model.metrics_summary import MetricsSummary, ModelPrice
from ._model.pending_blobs import BLOB_THRESHOLD_BYTES, PendingBlobs
from ._session.error_notes import add_note
from ._session.hooks import FeedbackHook, MetadataHook, call_hook
from ._session.lease import HeldLease, SessionLease
from ._session.metadata import SessionMetadata
from ._session.metadata_tool import metadata_tool
from ._session.options import Durability, OnConflict, Settings, check_on_conflict
from ._statements.sessions import SessionRef
from ._store.indexing import IndexingTask
from ._store.session_commands import now
from ._store.session_reads import MultiAgentAsRead
from ._store.session_store import SessionStore
from .errors import AgentNotFoundError, MongoDBSessionError, SessionNotFoundError, described, shown
from .mongodb_session_repository import MongoDBSessionRepository, RepositoryOfManagers
from .telemetry import Observer, traced

try:
    from strands.middleware import InvokeModelStage
except ImportError:  # Strands keeps it to itself before 1.62.
    InvokeModelStage = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

# A conversation that was long before it was to be indexed is not gone through in one go: whoever closes the manager
# waits for that.
_BATCHES_BEHIND_A_TURN = 5

# How long the end of the interpreter may be held up to store what is unsent.
_AT_EXIT_SECONDS = 30


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
            which its conversation manager has taken out of the live conversation, move to ``<collection>_history``.
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
            where an agent's tool is what calls them; see ``MetadataHook`` in this module.
        feedback_hook: Called instead of ``add_feedback``; see ``FeedbackHook`` in this module.
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

    # What every manager begins with stands here: one is made for each request.
    _incarnation: ObjectId | None = None
    _held_lease: HeldLease | None = None
    # A ttl came to a session that had none: what belongs to it expires with it from the next turn's end on.
    _related_should_expire = False
    # For whoever closes the manager when the agents are out of scope: what changed in them since their last event.
    _kept_agents: list[Any] | None = None
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
        settings = Settings(
            application_name=application_name,
            session_type=session_type,
            durability=durability,
            on_conflict=on_conflict,
            ttl_hours=ttl_hours,
            archive_after_messages=archive_after_messages,
            archive_after_bytes=archive_after_bytes,
            archive_block=archive_block,
            blob_threshold_bytes=blob_threshold_bytes,
            metadata_hook=metadata_hook,
            feedback_hook=feedback_hook,
            index_messages=index_messages,
        )
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
        cls, session_id: str, settings: Settings, repository: MongoDBSessionRepository, observer: Observer | None
    ) -> MongoDBSessionManager:
        """Make a factory's manager: they share a repository, which holds no state and takes 0.1 ms to make."""
        manager = cls.__new__(cls)
        manager._assemble(check_id(session_id, "session_id"), settings, repository, observer)
        return manager

    def _assemble(
        self, session_id: str, settings: Settings, repository: MongoDBSessionRepository, observer: Observer | None
    ) -> None:
        self.session_id = session_id
        self._settings = settings
        self.session_repository: MongoDBSessionRepository = repository
        self._observer = observer
        self._store: SessionStore = self.session_repository._store
        self._executor: Executor = self._store.commands.executor
        self._override = MetricsOverride()
        self._document = DocumentSize()
        self._prefetched: dict[str, StoredAgent] = {}
        self._agents: dict[str, AgentFollower] = {}
        self._multi_agents: dict[str, MultiAgentWork] = {}

    # --- Strands' hooks ---------------------------------------------------------------------------------------------

    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        """Follow an agent, graph or swarm. Callbacks that store are coroutines, so no event loop waits for MongoDB."""
        self._register(registry, _CALLBACKS)

    def _register(self, registry: HookRegistry, callbacks: _Callbacks) -> None:
        for event_type, callback, order in callbacks:
            registry.add_callback(event_type, getattr(self, callback), order=order)

    def _agent_initialized(self, event: AgentInitializedEvent) -> None:
        self.initialize(event.agent)
        if not isinstance(event.agent, Agent):
            self._register(event.agent.hooks, _BIDI_CALLBACKS)

    def _turn_begins(self, event: BeforeInvocationEvent) -> None:
        self._follower(event.agent).begin_turn()

    def _model_call_begins(self, event: BeforeModelCallEvent) -> None:
        self._follower(event.agent).model_call_begins()

    def _model_call_ends(self, event: AfterModelCallEvent) -> None:
        self._follower(event.agent).model_call_ends(event)

    def _tool_call_begins(self, event: BeforeToolCallEvent) -> None:
        self._follower(event.agent).tool_call_begins(event.tool_use["toolUseId"], event.agent)

    def _tool_call_ends(self, event: AfterToolCallEvent) -> None:
        self._follower(event.agent).tool_call_ends(event.tool_use["toolUseId"], event.tool_use["name"])

    async def _message_added(self, event: MessageAddedEvent) -> None:
        follower = self._follower(event.agent)
        follower.message_added(event.message, event.agent)
        if not follower.waits(event.agent):
            await self._commit(follower, event.agent)

    async def _message_updated(self, event: MessageUpdatedEvent) -> None:
        follower = self._follower(event.agent)
        follower.message_updated(event.tracking_id, event.message)
        if not follower.waits(event.agent):
            await self._commit(follower, event.agent)

    async def _commit(self, follower: AgentFollower, agent: Any) -> None:
        """Stage what has changed in the agent and commit. What cannot be stored does not keep the rest from it."""
        try:
            follower.stage_agent(agent)
        finally:
            if alone_on_a_private_loop():
                follower.work.send_at_once()
            else:
                await _settle(follower.work.send())

    async def _turn_ended(self, event: Any) -> None:
        follower = self._follower(event.agent)
        error = follower.end_turn(event.agent)
        try:
            await self._commit(follower, event.agent)
        except Exception as failure:
            # The turn itself failed: that error goes on its way, and what is unsaved stays in the unit of work.
            if error is None:
                raise
            add_note(error, failure)
        else:
            self._archive_if_due(follower.work)
            self._index_if_due(follower.work)

    async def _multi_agent_initialized(self, event: MultiAgentInitializedEvent) -> None:
        state = await self._executor.run(lambda: self._read_multi_agent(event.source))
        await _settle(self._begin_multi_agent(event.source, state))

    async def _multi_agent_changed(self, event: AfterNodeCallEvent | AfterMultiAgentInvocationEvent) -> None:
        await _settle(self._stage_multi_agent(event.source))

    async def _watch_model(
        self, context: Any, next_fn: Callable[[Any], AsyncGenerator[Any, None]]
    ) -> AsyncGenerator[Any, None]:
        """Look in the stream of a model that has a guardrail for what the guardrail says: no hook is told.

        A redaction is passed on when the model's next event was looked at: in it the guardrail says why.
        """
        agent = context.agent
        follower = self._follower(agent)
        follower.watch_for_trace(facts_of_config(_model_config(context.model)))
        held: list[Any] = []
        try:
            async for event in next_fn(context):
                if facts := facts_in_stream(event):
                    follower.guardrail_said(facts)
                if is_redaction(event):
                    held.append(event)
                    continue
                while held:
                    yield held.pop(0)
                yield event
        except Exception:
            while held:
                yield held.pop(0)
            raise
        except BaseException:
            # Nobody listens any more, so what Strands would have redacted is redacted here.
            for text in map(redacted_prompt, held):
                if text is not None:
                    content: Any = {"role": "user", "content": [{"text": text}]}
                    # Named, as Strands does: another may have been appended by hand behind it.
                    content["tracking_id"] = agent.messages[-1].get("tracking_id")
                    self.redact_latest_message(content, agent)
            raise
        while held:
            yield held.pop(0)

    # --- Strands' methods -------------------------------------------------------------------------------------------

    def initialize(self, agent: Any, **kwargs: Any) -> None:
        """Restore the agent from the session, or begin to keep it there. Called when an ``Agent`` is built.

        Raises:
            MongoDBSessionError: Another agent of this manager has the same id.
            SessionNotFoundError: The session that this manager opened was deleted.
            InvalidIdentifierError: The agent's id cannot be used.
        """
        agent_id = check_id(agent.agent_id, "agent_id")
        key = encode_key(agent_id)
        if agent_id in self._agents:
            raise MongoDBSessionError(
                f"agent_id={agent_id!r} is used by another agent of this session manager: it must be unique"
            )
        follower = self._new_follower(agent_id, key)
        stored = self._prefetched.pop(key, None)
        if stored is None:
            stored = self._open([key], agent)[key]
        try:
            if stored is _CREATED:
                follower.created_with_session(agent)
            elif stored.agent_data is None:
                follower.create(agent)
            else:
                self._restore(follower, agent, stored)
            self._agents[agent_id] = follower
            if agent.messages and stored.agent_data is None:
                self._send_now(follower.work)
        except BaseException:
            # There will be no such agent: another one may be built under its id, and nothing of this one waits.
            self._agents.pop(agent_id, None)
            follower.work.drop()
            raise
        if self._kept_agents is not None:
            self._kept_agents.append(agent)
        if InvokeModelStage is not None and isinstance(agent, Agent) and facts_of_config(_model_config(agent.model)):
            agent.add_middleware(InvokeModelStage, self._watch_model)

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
        follower = self._follower(agent)
        follower.append_by_hand(message, agent)
        self._send_now(follower.work)

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
        follower = self._follower(agent)
        if follower.redact_latest(redact_message):
            self._send_now(follower.work)

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
        self._follower(agent).guardrail_said(facts_of_trace(trace))

    def sync_agent(self, agent: Any, **kwargs: Any) -> None:
        """Store what has changed in the agent and is not stored yet; after a turn that is nothing.

        An answer that was appended by hand gets the metrics by which ``agent.event_loop_metrics`` has grown.

        Raises:
            AgentNotFoundError: The agent was not built with this session manager.
        """
        follower = self._follower(agent)
        try:
            follower.stage_late_metrics(agent)
            follower.stage_agent(agent)
        finally:
            self._send_now(follower.work)

    def initialize_multi_agent(self, source: Any, **kwargs: Any) -> None:
        """Restore a graph or swarm from the session, or begin to keep it there."""
        _wait(self._begin_multi_agent(source, self._read_multi_agent(source)))

    def sync_multi_agent(self, source: Any, **kwargs: Any) -> None:
        """Store the state of a graph or swarm if it has changed."""
        sending = self._stage_multi_agent(source)
        if not in_event_loop():
            _wait(sending)

    # --- the session ------------------------------------------------------------------------------------------------

    @property
    def session(self) -> Session:  # type: ignore[override]
        """The session's header. Reads it; begins the session if there is none."""
        self._ensure_open()
        session = self.session_repository.read_session(self.session_id)
        if session is None:
            raise SessionNotFoundError(f"session_id={self.session_id!r} was deleted, or has expired")
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
        repository = self.session_repository
        return SessionMetadata(
            self.session_id,
            self._settings.metadata_hook,
            self,
            read=lambda: repository._read_metadata(self.session_id, self._incarnation),
            update=lambda metadata: repository._update_metadata(self._open_ref, metadata),
            delete=lambda keys: repository._delete_metadata(self._open_ref(), keys),
        )

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
            session = self._session_ref if about_agent else self._open_ref
            try:
                self.session_repository._add_feedback(session, feedback)
            except SessionNotFoundError as error:
                if not about_agent or self._incarnation is not None:
                    raise
                raise AgentNotFoundError(
                    f"session_id={self.session_id!r} has no agent_id={feedback['agent_id']!r}: it does not exist yet"
                ) from error

        if self._settings.feedback_hook is None:
            add(feedback)
        else:
            given = check_feedback(feedback)
            names: Any = {"session_manager": self, "feedback": given}
            call_hook(self._settings.feedback_hook, "feedback_hook", add, "add", self.session_id, **names)

    def get_feedbacks(self) -> list[dict[str, Any]]:
        """Return the session's feedbacks, oldest first, each with its ``created_at``."""
        return self.session_repository.get_feedbacks(self.session_id)

    def get_guardrail_events(self) -> list[dict[str, Any]]:
        """Return what guardrails did in the session, oldest first; see the repository's method of this name."""
        return self.session_repository.get_guardrail_events(self.session_id)

    def list_agents(self) -> list[str]:
        """Return the ids of the agents that the session has, in the order in which they joined it."""
        return self.session_repository._list_agents(self.session_id)

    def get_message_count(self, agent_id: str) -> int:
        """Return how many messages an agent's stored conversation has; 0 if there is no such agent."""
        return self.session_repository._count_messages(self.session_id, check_id(agent_id, "agent_id"))

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
        self._override.set_tokens(input_tokens, output_tokens)

    def start_timing(self) -> None:
        """Start a stopwatch: the latency of the next answer is the time from here to its message, in milliseconds.

        It holds for the same answer as ``set_token_counts``, but for none that is stored already. Called again before
        that, it starts anew.
        """
        self._override.start_timing()

    # --- storing, closing -------------------------------------------------------------------------------------------

    def flush(self, on_conflict: OnConflict | None = None) -> None:
        """Store everything that is not stored yet, and wait until it is.

        In async code: ``await asyncio.to_thread(manager.flush)``.

        Args:
            on_conflict: For what waits now, instead of the manager's own.
        """
        if on_conflict is not None:
            check_on_conflict(on_conflict)
            for follower in list(self._agents.values()):
                follower.work.set_rebase(on_conflict == "rebase")
        sendings, failure = self._send_all()
        for sending in sendings:
            try:
                _wait(sending)
            except Exception as error:
                # The others are waited for as well; one error stands for all, each keeps its own unit of work.
                failure = failure or error
        for under_way in itertools.chain(self._behind_the_turn(), self._behind_the_turn()):
            under_way.result()
        if failure is not None:
            raise failure

    def reload(self, agent: Any) -> None:
        """Make the agent equal to what is stored, and forget what of it is not.

        For ``on_conflict="raise"``, after a ``SessionConflictError``. In async code call it through
        ``asyncio.to_thread``.

        Raises:
            AgentNotFoundError: The agent was not built with this session manager, or is stored no more.
        """
        follower = self._follower(agent)
        work = follower.work
        work.wait_quietly()
        work.send_rewrites()  # What was redacted is not to be restored.
        try:
            stored = self._open([work.key], None)[work.key]
        except SessionNotFoundError:
            work.drop()  # It can never be stored.
            raise
        if stored.agent_data is None:
            raise AgentNotFoundError(f"session_id={self.session_id!r} has no agent_id={work.agent_id!r}")
        work.drop()
        fresh = self._new_follower(work.agent_id, work.key)
        self._restore(fresh, agent, stored)
        self._agents[work.agent_id] = fresh

    def lease(self, seconds: float, wait: float = 0) -> SessionLease:
        """Return a lease for ``with`` or ``async with``: inside it no other process can write to this session.

        Build the agent inside: the session is read anew there.

        Args:
            seconds: How long the lease runs; a turn should fit in. ``renew()`` prolongs it.
            wait: How many seconds to wait for another holder.

        Returns:
            The lease; entering it raises ``SessionBusyError`` if another process held it for all of ``wait``.
        """
        if self._held_lease is None:
            self._held_lease = HeldLease(
                self._store,
                self.session_id,
                opened=self._open_ref,
                session=self._session_ref,
                taken=self._read_anew,
                flush=self._flush_beside,
                settle=self._settle_beside,
            )
        return SessionLease(self._held_lease, seconds, wait)

    def close(self) -> None:
        """Store what is unsaved, then close the client if the manager owns it. May be called again.

        Raises:
            PyMongoError: Something could not be stored. The manager stays open and keeps it: ``close()`` again later.
            UnstorableValueError: Something never can be. The manager is closed all the same.
        """
        if not self._closed:
            try:
                self.flush()
            except SessionNotFoundError:
                self._give_up()
                raise
            finally:
                self._close()

    def __enter__(self) -> MongoDBSessionManager:
        """Return the manager; leaving ``with`` closes it."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Store what is unsaved and close."""
        if not self._closed:
            try:
                self._flush_beside(error)
            finally:
                self._close()

    async def __aenter__(self) -> MongoDBSessionManager:
        """Return the manager; leaving ``async with`` closes it without holding up the event loop."""
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Store what is unsaved and close."""
        if not self._closed:
            try:
                await self._settle_beside(error)
            finally:
                await self._executor.run(self._close)

    def _give_up(self) -> None:
        """Forget what is unsaved: the session is gone, and nothing of this can ever be stored."""
        for outbox in self._outboxes():
            outbox.drop()

    def _close(self) -> None:
        if self._holds_work():
            return  # It could not be stored; the client stays open, so that `close()` can be called again.
        if self._observer is not None and self._incarnation is not None and not self._closed:
            self._observer.session_closed()
        self._closed = True
        _unsent.discard(self)
        self.session_repository.close()
        if self.session_repository._owns_client:
            self._executor.close()

    def __repr__(self) -> str:
        """Name the session; never the connection string."""
        return f"{type(self).__name__}(session_id={self.session_id!r})"

    # --- opening ----------------------------------------------------------------------------------------------------

    def _prefetch(self, agent_ids: Iterable[str]) -> None:
        """Open the session and read the windows of these agents; building each of them then sends nothing."""
        keys = [encode_key(check_id(agent_id, "agent_id")) for agent_id in agent_ids]
        self._prefetched.update(self._open(keys, None))

    def _open(self, keys: Sequence[str], new_agent: Any) -> dict[str, StoredAgent]:
        """Read the session and these agents; begin the session if there is none, with the agent that needs it."""
        self._store.ensure_indexes(expiring=self._settings.ttl is not None)
        created: list[Document] = []

        def create() -> Document:
            moment = now()
            document = documents.new_session(
                self.session_id, self._settings.session_type, self._settings.application_name, moment, moment
            ) | first_expiry(moment, self._settings.ttl)
            if new_agent is not None and add_new_agent(
                document, keys[0], new_agent, self._settings.blob_threshold_bytes
            ):
                created.append(document)
            return document

        # A session that this manager has seen and that is gone was deleted: it is not brought back.
        begin = create if self._incarnation is None else None
        opened = traced("open", {"agents": len(keys)}, self._store.open, self.session_id, keys, begin)
        if opened is None or self._incarnation not in (None, opened.incarnation):
            raise SessionNotFoundError(f"session_id={self.session_id!r} was deleted, or has expired")
        if self._observer is not None and self._incarnation is None:
            self._observer.session_opened()
        self._incarnation = opened.incarnation
        self._document.bytes = opened.bytes
        self._related_should_expire = self._settings.ttl is not None and not opened.related_expire
        if created and any(document["incarnation"] == opened.incarnation for document in created):
            return {keys[0]: _CREATED}
        return opened.agents

    def _read_anew(self) -> None:
        """Read again what was read ahead: it may be old by now. Not when the agents are built: on an event loop."""
        opened, self._prefetched = list(self._prefetched), {}
        if opened:
            self._prefetched.update(self._open(opened, None))

    def _ensure_open(self) -> None:
        if self._incarnation is None:
            self._open([], None)

    def _open_ref(self) -> SessionRef:
        self._ensure_open()
        return self._session_ref()

    def _session_ref(self) -> SessionRef:
        token = None if self._held_lease is None else self._held_lease.token
        return SessionRef(self.session_id, self._incarnation, token, self._settings.ttl)

    def _follower(self, agent: Any) -> AgentFollower:
        agent_id = exact_text(agent.agent_id)  # A member of an enum has another hash than its value.
        follower = self._agents.get(agent_id)
        if follower is None:
            raise AgentNotFoundError(f"agent_id={shown(agent_id)} was not built with this session manager")
        return follower

    def _new_follower(self, agent_id: str, key: str) -> AgentFollower:
        settings = self._settings
        outbox = self._store, self._session_ref, self._filled, self._sent
        work = AgentWork(agent_id, key, self._document, settings.blob_threshold_bytes, *outbox)
        work.rebase = settings.rebase
        return AgentFollower(work, by_turn=settings.by_turn, override=self._override, observer=self._observer)

    def _restore(self, follower: AgentFollower, agent: Any, stored: StoredAgent) -> None:
        def read_from(offset: int) -> list[Document]:
            return self._store.reads.list_messages(self.session_id, follower.work.key, offset, None)

        follower.restore(agent, stored, read_from, self._fix_broken_tool_use)

    # --- graphs and swarms ------------------------------------------------------------------------------------------

    def _read_multi_agent(self, source: Any) -> MultiAgentAsRead:
        multi_agent_id = check_id(source.id, "multi_agent_id")
        self._ensure_open()
        return self._store.reads.read_multi_agent(self.session_id, multi_agent_id)

    def _begin_multi_agent(self, source: Any, stored: MultiAgentAsRead) -> Sending | None:
        work = self._multi_agent_work(source)
        work.stored = stored
        if stored.state is None:
            return self._stage_multi_agent(source)
        work.staged = fingerprint(stored.state)
        source.deserialize_state(stored.state)
        return None

    def _stage_multi_agent(self, source: Any) -> Sending | None:
        work = self._multi_agent_work(source)
        where = f"multi_agent_id={work.multi_agent_id!r} state"
        state = source.serialize_state()
        mark = fingerprint(state, where)
        if mark != work.staged:
            blobs = PendingBlobs(self._settings.blob_threshold_bytes)
            stored = encode(state, where, blobs)
            documents.check_size({"state": stored}, where)
            work.staged = mark
            work.put(MultiAgentOperation(work, stored, blobs))
        return work.send()

    def _multi_agent_work(self, source: Any) -> MultiAgentWork:
        multi_agent_id = check_id(source.id, "multi_agent_id")
        work = self._multi_agents.get(multi_agent_id)
        if work is None:
            work = MultiAgentWork(multi_agent_id, self._store, self._session_ref, self._filled, self._sent)
            self._multi_agents[multi_agent_id] = work
        return work

    # --- sending ----------------------------------------------------------------------------------------------------

    def _send_now(self, work: AgentWork) -> None:
        """Send what is staged. On an event loop nobody waits here: the agent's next hook does, or ``flush()``."""
        sending = work.send()
        if not in_event_loop():
            _wait(sending)

    def _flush_beside(self, error: BaseException | None) -> None:
        """Flush; if an error is on its way already, a failure becomes a note of it."""
        try:
            self.flush()
        except Exception as failure:
            if isinstance(failure, SessionNotFoundError):
                self._give_up()
                self._close()
            if error is None:
                raise
            add_note(error, failure)

    async def _settle_beside(self, error: BaseException | None) -> None:
        """Flush as ``_flush_beside`` does. No thread of the executor waits for another one: all might be waiting."""
        sendings, failure = self._send_all()
        for sending in sendings:
            try:
                await _settle(sending)
            except Exception as another:
                failure = failure or another
        for under_way in itertools.chain(self._behind_the_turn(), self._behind_the_turn()):
            await settle(under_way)
        if failure is not None:
            if isinstance(failure, SessionNotFoundError):
                self._give_up()
                await self._executor.run(self._close)
            if error is None:
                raise failure
            add_note(error, failure)

    def _outboxes(self) -> list[Outbox]:
        # Copies: an agent may join while another's commit ends in a thread.
        outboxes: list[Outbox] = [follower.work for follower in list(self._agents.values())]
        return outboxes + list(self._multi_agents.values())

    def _holds_work(self) -> bool:
        return any(outbox.unsent for outbox in self._outboxes())

    def _send_all(self) -> tuple[list[Sending | None], Exception | None]:
        """Stage what has changed in the agents and begin to send; return what to wait for, and what was refused."""
        refused: Exception | None = None
        for follower in list(self._agents.values()):
            try:
                follower.stage_agent_if_alive()
            except MongoDBSessionError as error:
                refused = refused or error
        return [outbox.send() for outbox in self._outboxes()], refused

    # --- archiving --------------------------------------------------------------------------------------------------

    def _archive_if_due(self, work: AgentWork) -> None:
        """Begin to archive in a thread what has left the live conversation, if there is enough of it."""
        under_way = work.archiving is not None and not work.archiving.done()
        due = self._related_should_expire or work.embedded.due(self._settings.archive_policy, self._document.bytes)
        if due and not under_way:
            work.archiving = self._executor.submit_behind(lambda: self._archive(work))

    def _archive(self, work: AgentWork) -> None:
        before, incarnation, policy = replace(work.embedded), self._incarnation, self._settings.archive_policy
        assert incarnation is not None
        try:
            if self._related_should_expire:
                self._store.related.let_related_expire(self._session_ref())
                self._related_should_expire = False
            archive, attributes = self._store.archiver.archive, {"agent_id": work.agent_id}
            left = traced("archive", attributes, archive, self.session_id, incarnation, work.key, policy)
        except PyMongoError as error:
            # Nothing is lost by that, and it stays due: the next turn, here or in another process, tries again.
            logger.warning("session_id=<%s>, error=<%s> | not archived", self.session_id, described(error))
            return
        if left is not None:
            self._document.bytes = max(0, self._document.bytes - before.bytes + left.bytes)
            # And what was committed meanwhile.
            left.count += work.embedded.count - before.count
            left.bytes += work.embedded.bytes - before.bytes
            left.removed = max(left.removed, work.embedded.removed)
            work.embedded = left

    # --- the search -------------------------------------------------------------------------------------------------

    def _index_if_due(self, work: AgentWork) -> None:
        """Begin to feed the search in a thread, if it may lack messages; also what a process has left that died."""
        if not self._settings.index_messages or work.indexed == work.next_message_id or self._incarnation is None:
            return
        if work.indexing is None or work.indexing.done():
            work.indexing = self._executor.submit_behind(lambda: self._index(work))

    def _index(self, work: AgentWork) -> None:
        position, incarnation = work.next_message_id, self._incarnation
        assert incarnation is not None
        task = IndexingTask(self.session_id, incarnation, work.key, at_least=position, batches=_BATCHES_BEHIND_A_TURN)
        try:
            done = self._store.indexer.index(task)
        except (PyMongoError, MongoDBSessionError) as error:
            # The messages themselves are stored, and it stays due.
            logger.warning("session_id=<%s>, error=<%s> | not indexed", self.session_id, described(error))
        else:
            if done.complete:
                work.indexed = position

    # --- what runs behind a turn ------------------------------------------------------------------------------------

    def _behind_the_turn(self) -> Iterator[Future[None]]:
        """Begin to archive and index what is due; yield what is under way. Twice, for then more may be due."""
        followers = list(self._agents.values())
        for follower in followers:
            if not follower.work.unsent:
                self._archive_if_due(follower.work)
                self._index_if_due(follower.work)
        for follower in followers:
            archiving, follower.work.archiving = follower.work.archiving, None
            indexing, follower.work.indexing = follower.work.indexing, None
            yield from (under_way for under_way in (archiving, indexing) if under_way is not None)

    def _filled(self) -> None:
        """Keep this manager alive, and known to the end of the process, while it holds something unsent."""
        _unsent.add(self)

    def _sent(self) -> None:
        # In this order: another thread may fill an outbox in between.
        _unsent.discard(self)
        failed = False
        for outbox in self._outboxes():
            if outbox.unsent:
                if not outbox.failure_is_known:
                    _unsent.add(self)
                    return
                failed = True
        if failed:
            _failed.add(self)


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


_Callbacks = Sequence[tuple[type[Any], str, float]]

# Which method follows which event. `SDK_FIRST` is called before all other callbacks, `SDK_LAST` after them.
_CALLBACKS: _Callbacks = (
    (AgentInitializedEvent, "_agent_initialized", HookOrder.DEFAULT),
    # Last, so that a callback that fails before it leaves no turn open.
    (BeforeInvocationEvent, "_turn_begins", HookOrder.SDK_LAST),
    # The clocks run as close to the call as they can.
    (BeforeModelCallEvent, "_model_call_begins", HookOrder.SDK_LAST),
    (AfterModelCallEvent, "_model_call_ends", HookOrder.SDK_FIRST),
    (BeforeToolCallEvent, "_tool_call_begins", HookOrder.SDK_LAST),
    (AfterToolCallEvent, "_tool_call_ends", HookOrder.SDK_FIRST),
    (MessageAddedEvent, "_message_added", HookOrder.DEFAULT),
    # Last, so that what other callbacks change in the agent's state is stored with the turn.
    (AfterInvocationEvent, "_turn_ended", HookOrder.SDK_LAST),
    (MultiAgentInitializedEvent, "_multi_agent_initialized", HookOrder.DEFAULT),
    # An orchestrator of one's own may be initialized by `initialize_multi_agent`, and no event tells of that.
    (AfterNodeCallEvent, "_multi_agent_changed", HookOrder.SDK_LAST),
    (AfterMultiAgentInvocationEvent, "_multi_agent_changed", HookOrder.SDK_LAST),
)
# What else there is to follow in a `BidiAgent`: registered when one of these is built. An `Agent` is built at each
# request, and there registering a callback costs more than calling it.
_BIDI_CALLBACKS: _Callbacks = (
    (MessageUpdatedEvent, "_message_updated", HookOrder.DEFAULT),
    (BidiResponseStopEvent, "_turn_ended", HookOrder.SDK_LAST),
    (BidiAgentStopEvent, "_turn_ended", HookOrder.SDK_LAST),
)

# Stands for an agent that was stored together with a new session: there is nothing to restore.
_CREATED = StoredAgent(agent_data=None)

# Managers that hold something unsent. Strong references: a forgotten manager still stores its turn at exit.
_unsent: set[MongoDBSessionManager] = set()
# Managers that hold what could not be stored, and have said so. Whoever was told may have tried again by other means,
# so it is stored only if he asks this manager to; and an outage does not fill the memory.
_failed: weakref.WeakSet[MongoDBSessionManager] = weakref.WeakSet()


def managers_with_unsent_work(client: MongoClient[Any]) -> list[MongoDBSessionManager]:
    """Return the managers on this very client that hold something unsent."""
    return [
        manager
        for manager in {*_unsent, *_failed}
        if manager._store.commands.client is client and manager._holds_work()
    ]


def _wait(sending: Sending | None) -> None:
    if sending is not None:
        sending.wait()


async def _settle(sending: Sending | None) -> None:
    if sending is not None:
        await sending.settle()


def _model_config(model: Any) -> Any:
    get_config = getattr(model, "get_config", None)
    return None if get_config is None else get_config()


def _store_at_exit() -> None:
    """Store what is unsent when the interpreter ends; say so where that fails. One deadline for all of it."""
    with pymongo.timeout(_AT_EXIT_SECONDS):
        for manager in list(_unsent):
            try:
                manager.flush()
            except Exception as error:
                logger.error(
                    "session_id=<%s>, error=<%s> | lost: not stored at exit", manager.session_id, described(error)
                )


atexit.register(_store_at_exit)
in_child(_unsent.clear)  # The parent will store what is unsent.
