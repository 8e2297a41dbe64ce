"""The manager: follows one session's agents through their events and stores what changed, once per event."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal

import pymongo
from bson import ObjectId
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from strands import Agent
from strands.agent.state import AgentState
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
from strands.hooks.events import (
    AfterMultiAgentInvocationEvent,
    AfterNodeCallEvent,
    MultiAgentInitializedEvent,
)
from strands.hooks.registry import HookOrder
from strands.session.repository_session_manager import RepositorySessionManager
from strands.types.content import Message
from strands.types.session import Session, SessionAgent

from . import documents
from .command_pool import CommandPool, command_pool, in_event_loop, settle
from .documents import Document, MongoDBSessionAgent, StoredAgent
from .encoding import encode, to_bson
from .errors import AgentNotFoundError, MongoDBSessionError, SessionNotFoundError
from .keys import check_id, check_metadata, check_metadata_paths, encode_key
from .lease import SessionLease, no_lease_twice
from .metrics import ToolCall, Totals, message_metrics, usage_since
from .mongodb_session_repository import MongoDBSessionRepository
from .session_store import SessionStore, now
from .statements import SessionRef, renew_lease
from .unit_of_work import AgentWork, Entry, Expected, LateMetricsOperation, MultiAgentOperation, Outbox

logger = logging.getLogger(__name__)

Durability = Literal["message", "turn"]
OnConflict = Literal["rebase", "raise"]

# A turn that has collected this much commits early, far from the 16 MB that MongoDB takes in one update.
_EARLY_COMMIT_BYTES = 8 * 1024 * 1024
# How long the end of the interpreter may be held up to store what is unsent.
_AT_EXIT_SECONDS = 30


class MongoDBSessionManager(RepositorySessionManager):
    """Keeps one session of Strands agents in MongoDB.

    Give it to an ``Agent`` (or several with different ``agent_id``, a ``Graph``, a ``Swarm``, a ``BidiAgent``) as
    ``session_manager``. The constructor sends nothing; the session is read, or begun, when the first agent is built.

    Args:
        session_id: The session's id: any text without a slash or NUL.
        connection_string: MongoDB connection string; the manager then owns the client and closes it.
        database_name: Database of the sessions.
        collection_name: Collection of the sessions.
        client: A client to borrow instead, whatever else is given; whoever made it closes it.
        metadata_fields: Metadata fields to index.
        application_name: Stored with a new session, to tell the sessions of several applications apart.
        session_type: Stored with a new session; any text.
        durability: ``"message"`` stores every message as it is added. ``"turn"`` stores all that a turn brought in
            one update at its end: a process that dies inside a turn loses that turn, the user's message included.
        on_conflict: What to do if another process has stored messages of the same agent meanwhile. ``"rebase"``
            appends behind them; ``"raise"`` raises ``SessionConflictError`` and keeps the unit of work.
        **client_options: Options of the ``MongoClient`` that is made from ``connection_string``; beside ``client``
            they have no effect, which a warning says.

    Raises:
        InvalidIdentifierError: The session id is empty or holds a slash, a NUL or a lone surrogate.
        TypeError: The session id is no string, or ``client`` is an ``AsyncMongoClient``.
        ValueError: Neither ``connection_string`` nor ``client``; ``w=0``; an unknown ``durability``.
    """

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
        **client_options: Any,
    ) -> None:
        # Strands' constructor is not called: it reads and creates the session at once.
        self.session_id = check_id(session_id, "session_id")
        if durability not in ("message", "turn"):
            raise ValueError(f"durability must be 'message' or 'turn', not {durability!r}")
        _check_on_conflict(on_conflict)
        self.session_repository: MongoDBSessionRepository = MongoDBSessionRepository(
            connection_string,
            database_name,
            collection_name,
            client,
            list(metadata_fields or ()),
            _ensure_indexes_now=False,
            **client_options,
        )
        self._durability = durability
        self._on_conflict = on_conflict
        self._application_name = application_name
        self._session_type = session_type
        self._store: SessionStore = self.session_repository._store
        self._pool: CommandPool = command_pool(self._store.client)
        self._incarnation: ObjectId | None = None
        self._lease_token: str | None = None
        self._prefetched: dict[str, StoredAgent] = {}
        self._agents: dict[str, AgentWork] = {}
        self._multi_agents: dict[str, Outbox] = {}
        self._multi_agent_states: dict[str, bytes] = {}
        self._closed = False

    # --- Strands' hooks ---------------------------------------------------------------------------------------------

    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        """Follow an agent, graph or swarm. Callbacks that store are coroutines, so no event loop waits for MongoDB."""
        add = registry.add_callback
        add(AgentInitializedEvent, lambda event: self.initialize(event.agent))
        # Last, so that a callback that fails before it leaves no turn open.
        add(BeforeInvocationEvent, self._before_invocation, order=HookOrder.SDK_LAST)
        add(BeforeModelCallEvent, self._before_model_call, order=HookOrder.SDK_LAST)
        add(AfterModelCallEvent, self._after_model_call, order=HookOrder.SDK_FIRST)
        add(BeforeToolCallEvent, self._before_tool_call, order=HookOrder.SDK_LAST)
        add(AfterToolCallEvent, self._after_tool_call, order=HookOrder.SDK_FIRST)
        add(MessageAddedEvent, self._message_added)
        add(MessageUpdatedEvent, self._message_updated)
        # Last, so that what other callbacks change in the agent's state is stored with the turn.
        add(AfterInvocationEvent, self._after_invocation, order=HookOrder.SDK_LAST)
        add(MultiAgentInitializedEvent, self._multi_agent_initialized)
        add([AfterNodeCallEvent, AfterMultiAgentInvocationEvent], self._multi_agent_changed)
        from strands.bidi.hooks import BidiAgentStopEvent, BidiResponseStopEvent

        add([BidiResponseStopEvent, BidiAgentStopEvent], self._after_invocation, order=HookOrder.SDK_LAST)

    def _before_invocation(self, event: BeforeInvocationEvent) -> None:
        work = self._work(event.agent)
        work.in_turn = True
        work.turn_started = False
        work.turn_id = ObjectId()
        work.turn_texts = []
        work.outer_error = sys.exc_info()[1]

    def _before_model_call(self, event: BeforeModelCallEvent) -> None:
        self._work(event.agent).model_call_began = time.perf_counter()

    def _after_model_call(self, event: AfterModelCallEvent) -> None:
        work = self._work(event.agent)
        if work.model_call_began is not None:
            work.model_call_ms = (time.perf_counter() - work.model_call_began) * 1000

    def _before_tool_call(self, event: BeforeToolCallEvent) -> None:
        self._work(event.agent).tool_call_began[event.tool_use["toolUseId"]] = time.perf_counter()

    def _after_tool_call(self, event: AfterToolCallEvent) -> None:
        work = self._work(event.agent)
        tool_use_id = event.tool_use["toolUseId"]
        began = work.tool_call_began.pop(tool_use_id, None)
        took = None if began is None else round((time.perf_counter() - began) * 1000, 3)
        work.tool_calls[tool_use_id] = ToolCall(event.tool_use["name"], milliseconds=took)

    async def _message_added(self, event: MessageAddedEvent) -> None:
        work = self._work(event.agent)
        self._stage_message(work, event.message, event.agent)
        await self._commit_if_due(work, event.agent)

    async def _message_updated(self, event: MessageUpdatedEvent) -> None:
        work = self._work(event.agent)
        body = documents.message_body(event.message, "message")
        known = work.by_tracking_id.get(event.tracking_id)
        if known:
            known[-1].source = event.message
            work.change(known[-1], body)
        await self._commit_if_due(work, event.agent)

    async def _after_invocation(self, event: Any) -> None:
        work = self._work(event.agent)
        outer_error, work.outer_error = work.outer_error, None
        work.in_turn = False
        error = sys.exc_info()[1]
        try:
            self._stage_agent(work, event.agent)
            if (sending := work.send()) is not None:
                await settle(sending)
        except Exception as failure:
            # The turn itself failed: that error goes on its way, and what is unsaved stays in the unit of work.
            # An error that was there before the turn began is somebody else's.
            if error is None or error is outer_error:
                raise
            _add_note(error, f"The session could not be stored, either: {failure!r}")
        finally:
            work.prune(event.agent.messages)

    async def _multi_agent_initialized(self, event: MultiAgentInitializedEvent) -> None:
        state = await self._pool.run(lambda: self._read_multi_agent(event.source))
        if (sending := self._begin_multi_agent(event.source, state)) is not None:
            await settle(sending)

    async def _multi_agent_changed(self, event: AfterNodeCallEvent | AfterMultiAgentInvocationEvent) -> None:
        if (sending := self._stage_multi_agent(event.source)) is not None:
            await settle(sending)

    async def _commit_if_due(self, work: AgentWork, agent: Any) -> None:
        # A BidiAgent tells no beginning of a turn: all of its conversation is one, from start to stop.
        in_turn = work.in_turn or (not isinstance(agent, Agent) and getattr(agent, "_started", True))
        if self._durability == "turn" and in_turn and work.waiting_bytes < _EARLY_COMMIT_BYTES:
            return
        self._stage_agent(work, agent)
        if (sending := work.send()) is not None:
            await settle(sending)

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
        if key in self._agents:
            raise MongoDBSessionError(
                f"agent_id={agent_id!r} is used by another agent of this session manager: it must be unique"
            )
        work = AgentWork(agent_id, key, self._pool, self._store, self._session_ref, self._track_unsent)
        work.rebase = self._on_conflict == "rebase"
        stored = self._prefetched.pop(key, None)
        if stored is None:
            stored = self._open([key], agent)[key]
        if stored is not _CREATED:
            self._restore(work, agent, stored)
        self._agents[key] = work
        if stored is _CREATED or stored.agent_data is None:
            self._begin(work, agent, created=stored is _CREATED)

    def append_message(self, message: Message, agent: Any, **kwargs: Any) -> None:
        """Store a message. Strands stores its messages by itself; this is for messages of your own.

        A message that Strands stores as well is stored once: one that is in ``agent.messages``, the user's message
        that equals the one Strands stores next, an answer that equals the one it stored last.

        Args:
            message: ``{"role": …, "content": [blocks]}``; a string as content becomes one text block.
            agent: An agent that was built with this session manager.

        Raises:
            UnstorableValueError: The message holds something that cannot be stored, or is none.
            AgentNotFoundError: The agent was not built with this session manager.
        """
        work = self._work(agent)
        if any(message is live for live in agent.messages):
            self._stage_message(work, message, agent)
        else:
            self._stage_by_hand(work, message)
        self._send_now(work)

    def redact_latest_message(self, redact_message: Message, agent: Any, **kwargs: Any) -> None:
        """Replace the content of the message that was appended last, in the store as well.

        The original is then in none of the collections; its ids, metadata and metrics are kept.

        Args:
            redact_message: What stands there instead.
            agent: Whose message.

        Raises:
            MongoDBSessionError: The agent has no message.
        """
        work = self._work(agent)
        entry = work.last
        if entry is None:
            raise MongoDBSessionError(f"agent_id={work.agent_id!r} has no message to redact")
        content = encode(documents.text_blocks(redact_message["content"]), "redact_message['content']")
        body: Document = {
            "role": redact_message["role"],
            "content": content,
            "redact_message": {"role": redact_message["role"], "content": content},
            "guardrail_event": {"action": "redacted", "role": redact_message["role"], "created_at": now()},
        }
        tracking_id = redact_message.get("tracking_id")
        # A prompt that was tried again may stand in the conversation twice, under one tracking id.
        same = work.by_tracking_id.get(tracking_id, []) if tracking_id else []
        to_send = [work.change(redacted, body, tracking_id) for redacted in {id(e): e for e in [*same, entry]}.values()]
        if any(to_send):
            self._send_now(work)

    def sync_agent(self, agent: Any, **kwargs: Any) -> None:
        """Store what has changed in the agent and is not stored yet; after a turn that is nothing.

        An answer that was appended by hand gets the metrics by which ``agent.event_loop_metrics`` has grown.

        Raises:
            AgentNotFoundError: The agent was not built with this session manager.
        """
        work = self._work(agent)
        self._stage_agent(work, agent)
        self._stage_late_metrics(work, agent)
        self._send_now(work)

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
            raise SessionNotFoundError(f"session_id={self.session_id!r} was deleted")
        return session

    def update_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Set metadata fields of the session and leave the others. A dot in a key addresses a nested field.

        Raises:
            InvalidIdentifierError: A key is empty, has an empty part or one that begins with ``$``, or holds a NUL.
            UnstorableValueError: A value cannot be stored.
        """
        self.session_repository._update_metadata(self._open_ref(), check_metadata(metadata))

    def get_metadata(self) -> dict[str, Any]:
        """Return ``{"metadata": {…}}``, or ``{}`` if the session does not exist."""
        return self.session_repository.get_metadata(self.session_id)

    def delete_metadata(self, metadata_keys: Sequence[str]) -> None:
        """Remove metadata fields of the session; those that are not there are no error."""
        self.session_repository._delete_metadata(self._open_ref(), check_metadata_paths(metadata_keys))

    def add_feedback(self, feedback: Mapping[str, Any]) -> None:
        """Append what a person said: typically ``rating`` and ``comment``; ``created_at`` is added."""
        self.session_repository._add_feedback(self._open_ref, feedback)

    def get_feedbacks(self) -> list[dict[str, Any]]:
        """Return the session's feedbacks, oldest first, each with its ``created_at``."""
        return self.session_repository.get_feedbacks(self.session_id)

    def list_agents(self) -> list[str]:
        """Return the ids of the agents that the session has, in the order in which they joined it."""
        return self.session_repository._list_agents(self.session_id)

    def get_message_count(self, agent_id: str) -> int:
        """Return how many messages an agent's stored conversation has; 0 if there is no such agent."""
        return self.session_repository._count_messages(self.session_id, check_id(agent_id, "agent_id"))

    def flush(self, on_conflict: OnConflict | None = None) -> None:
        """Store everything that is not stored yet, and wait until it is.

        In async code: ``await asyncio.to_thread(manager.flush)``.

        Args:
            on_conflict: For what waits now, instead of the manager's own.
        """
        if on_conflict is not None:
            _check_on_conflict(on_conflict)
            for work in self._agents.values():
                work.set_rebase(on_conflict == "rebase")
        failure: BaseException | None = None
        for sending in [outbox.send() for outbox in self._outboxes()]:
            try:
                _wait(sending)
            except Exception as error:
                # The others are waited for as well; one error stands for all, each keeps its own unit of work.
                failure = failure or error
        if failure is not None:
            raise failure

    def reload(self, agent: Any) -> None:
        """Make the agent equal to what is stored, and forget what of it is not.

        For ``on_conflict="raise"``, after a ``SessionConflictError``. In async code call it through
        ``asyncio.to_thread``.

        Raises:
            AgentNotFoundError: The agent was not built with this session manager, or is stored no more.
        """
        work = self._work(agent)
        work.drop()
        fresh = AgentWork(work.agent_id, work.key, self._pool, self._store, self._session_ref, self._track_unsent)
        fresh.rebase = work.rebase
        stored = self._open([work.key], None)[work.key]
        if stored.agent_data is None:
            raise AgentNotFoundError(f"session_id={self.session_id!r} has no agent_id={work.agent_id!r}")
        self._restore(fresh, agent, stored)
        self._agents[work.key] = fresh

    def lease(self, seconds: float, wait: float = 0) -> SessionLease:
        """Return a lease for ``with`` or ``async with``: inside it no other process can write to this session.

        Build the agent inside: the session is read anew there.

        Args:
            seconds: How long the lease runs; a turn should fit in. ``renew()`` prolongs it.
            wait: How many seconds to wait for another holder.

        Returns:
            The lease; entering it raises ``SessionBusyError`` if another process held it for all of ``wait``.
        """
        return SessionLease(self, seconds, wait)

    def close(self) -> None:
        """Store what is unsaved, then close the client if the manager owns it. May be called again.

        Raises:
            PyMongoError: Something could not be stored. The manager stays open and keeps it: ``close()`` again later.
        """
        if self._closed:
            return
        self.flush()
        self._closed = True
        self.session_repository.close()
        if self.session_repository._owns_client:
            self._pool.close()

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
        self._flush_beside(error)
        self.close()

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
            await self._settle_beside(error)
            await self._pool.run(self.close)

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
        self._store.ensure_indexes()
        created: list[Document] = []

        def create() -> Document:
            moment = now()
            document = documents.new_session(
                self.session_id, self._session_type, self._application_name, moment, moment
            )
            if new_agent is not None:
                self._add_new_agent(document, keys[0], new_agent)
            created.append(document)
            return document

        # A session that this manager has seen and that is gone was deleted: it is not brought back.
        opened = self._store.open(self.session_id, keys, create if self._incarnation is None else None)
        if opened is None or self._incarnation not in (None, opened.incarnation):
            raise SessionNotFoundError(f"session_id={self.session_id!r} was deleted")
        self._incarnation = opened.incarnation
        if new_agent is not None and any(document["incarnation"] == opened.incarnation for document in created):
            return {keys[0]: _CREATED}
        return opened.agents

    def _ensure_open(self) -> None:
        if self._incarnation is None:
            self._open([], None)

    def _open_ref(self) -> SessionRef:
        self._ensure_open()
        return self._session_ref()

    def _session_ref(self) -> SessionRef:
        return SessionRef(self.session_id, self._incarnation, self._lease_token)

    def _add_new_agent(self, document: Document, key: str, agent: Any) -> None:
        """Put a new agent and the messages it was built with into the document of a new session."""
        moment = document["created_at"]
        record = documents.new_agent(documents.agent_data(_session_agent(agent)), moment)
        turn_id = ObjectId()
        totals = Totals()
        for index, message in enumerate(agent.messages):
            _give_tracking_id(message)
            body = documents.message_body(message, f"messages[{index}]")
            body["turn_id"] = turn_id
            totals.add_message(starts_turn=False)
            record["messages"].append(documents.message_document(index, body, moment, moment))
        record["message_count"] = len(record["messages"])
        record["usage"] = dict(totals.increments)
        document["agents"][key] = record
        document["agent_ids"].append(agent.agent_id)

    def _begin(self, work: AgentWork, agent: Any, *, created: bool) -> None:
        """Begin to keep an agent that was not stored before."""
        if created:
            for index, message in enumerate(agent.messages):
                work.know(index, message)
            work.position = len(agent.messages)
        else:
            work.create(documents.agent_data(_session_agent(agent)))
            for message in agent.messages:
                _give_tracking_id(message)
                self._append(work, message, agent, from_agent=False)
        work.is_staged(_agent_fields(agent))
        work.watch_state(agent.state, agent.state.get())
        if not created and agent.messages:
            self._send_now(work)

    def _restore(self, work: AgentWork, agent: Any, stored: StoredAgent) -> None:
        """Make the agent what is stored of it, the way Strands' own session managers do."""
        work.counted_usage = _accumulated_usage(agent)
        if stored.agent_data is None:
            return
        work.position = stored.message_count
        session_agent = documents.to_session_agent(stored.agent_data, work.key)
        agent.state = _agent_state(session_agent.state)
        session_agent.initialize_internal_state(agent)
        prepended: list[Message] = []
        offset = 0
        if isinstance(agent, Agent):
            if session_agent.conversation_manager_state:
                manager_state = session_agent.conversation_manager_state
                prepended = agent.conversation_manager.restore_from_session(manager_state) or []
            offset = max(0, agent.conversation_manager.removed_message_count)
        window = stored.window
        if offset < stored.window_offset:
            # A conversation manager of one's own begins earlier than its stored state says: read the rest.
            window = self._store.list_messages(self.session_id, work.key, offset, None)
        else:
            window = window[offset - stored.window_offset :]
        messages = [documents.to_message(message) for message in window]
        for position, (message, found) in enumerate(zip(messages, window, strict=True)):
            work.know(found.get("message_id", offset + position), message)
        if window:
            work.last_turn_id = window[-1].get("turn_id")
        if not (isinstance(agent, Agent) and agent.model.stateful):
            if any("turn_id" in message for message in window):
                order = documents.turns_together(window)
                if order != window:
                    messages = [documents.to_message(message) for message in order]
            agent.messages = self._fix_broken_tool_use(prepended + messages)
        work.watch_state(agent.state, session_agent.state)
        known = {"conversation_manager_state": session_agent.conversation_manager_state}
        known["_internal_state"] = session_agent._internal_state
        known.update(
            {name: stored.agent_data[name] for name in ("model", "system_prompt") if name in stored.agent_data}
        )
        work.is_staged(known)

    # --- staging: what runs on the event loop, so all of it is cheap --------------------------------------------------

    def _work(self, agent: Any) -> AgentWork:
        work = self._agents.get(encode_key(agent.agent_id))
        if work is None:
            raise AgentNotFoundError(f"agent_id={agent.agent_id!r} was not built with this session manager")
        return work

    def _stage_message(self, work: AgentWork, message: Message, agent: Any) -> None:
        """Put a message that Strands has appended to the live conversation into the unit of work."""
        tracking_id = message.get("tracking_id")
        known = work.by_tracking_id.get(tracking_id) if tracking_id else None
        if known:
            # Whatever is in the conversation as often as it is stored was appended before, or is a continuation: a
            # longer message in its place, under its id. A prompt that is tried again is in it once more.
            live = sum(1 for other in agent.messages if other.get("tracking_id") == tracking_id)
            if 0 < live <= len(known):
                if known[-1].source is not message:
                    known[-1].source = message
                    work.change(known[-1], documents.message_body(message, "message"))
                return
        if work.expected is not None and message["role"] == "user":
            expected, work.expected = work.expected, None
            if expected.text == documents.message_text(message):
                self._recognise(work, expected, message)
                return
        self._append(work, message, agent, from_agent=True)

    def _append(self, work: AgentWork, message: Message, agent: Any, *, from_agent: bool) -> Entry:
        body = documents.message_body(message, "message")
        carries_results = documents.has_tool_result(message)
        if from_agent and work.in_turn and not work.turn_started and carries_results and work.last_turn_id is not None:
            # An interrupted turn goes on: its tool results belong to the tool uses that were stored before.
            work.turn_id = work.last_turn_id
        starts_turn = from_agent and message["role"] == "user" and not carries_results and not work.turn_started
        if starts_turn and not work.in_turn:
            work.turn_id = ObjectId()
        if from_agent:
            work.turn_started = work.in_turn
        body["turn_id"] = work.last_turn_id = work.turn_id
        metrics = None
        if message["role"] == "assistant":
            work.turn_texts.append(documents.message_text(message))
            metadata = message.get("metadata") or {}
            metrics = message_metrics(metadata.get("usage"), metadata.get("metrics"), work.model_call_ms)
            work.model_call_ms = None
            if metrics is not None:
                body["event_loop_metrics"] = metrics
                if from_agent:
                    work.count_usage(metrics)
        else:
            work.turn_texts = work.turn_texts if carries_results else []
        calls = _tool_calls(work, message) if carries_results else []

        def add_totals(totals: Totals) -> None:
            totals.add_message(starts_turn)
            if metrics is not None:
                totals.add_model_call(_model_id(agent), metrics)
            for call in calls:
                totals.add_tool_call(call)

        if self._durability == "turn":
            work.waiting_bytes += len(to_bson(body))
        return work.append(body, message, add_totals)

    def _stage_by_hand(self, work: AgentWork, message: Message) -> None:
        """Put a message that is not in the live conversation into the unit of work, unless it is there already."""
        body = documents.message_body(message, "message")
        text = documents.message_text(message)
        role = message["role"]
        if role == "assistant" and work.turn_texts and text in (work.turn_texts[-1], "".join(work.turn_texts)):
            return
        if not work.in_turn and role == "user":
            work.turn_id = ObjectId()
        # Strands gives each message such an id when it appends it; the two will be one message.
        body.setdefault("tracking_id", str(uuid.uuid4()))
        body["turn_id"] = work.last_turn_id = work.turn_id
        metrics = None
        if role == "assistant":
            metadata = message.get("metadata") or {}
            metrics = message_metrics(metadata.get("usage"), metadata.get("metrics"), None)
            if metrics is not None:
                body["event_loop_metrics"] = metrics
        entry = work.append(body, message, lambda totals: totals.add_message(starts_turn=role == "user"))
        if role == "user":
            work.turn_texts = []
            work.expected = Expected(entry, text, body)
        elif role == "assistant":
            work.turn_texts.append(text)
            if metrics is None:
                work.lacking_metrics = entry

    def _recognise(self, work: AgentWork, expected: Expected, message: Message) -> None:
        """Take Strands' message for the one that was appended by hand just before."""
        entry, body = expected.entry, expected.body
        # Nobody has seen the id that Strands gave it a moment ago; this one is stored.
        message["tracking_id"] = body["tracking_id"]
        entry.source = message
        work.turn_id = body["turn_id"]
        work.turn_started = work.in_turn
        fresh = documents.message_body(message, "message")
        if to_bson({"": fresh["content"]}) != to_bson({"": body["content"]}):
            work.change(entry, fresh)

    def _stage_agent(self, work: AgentWork, agent: Any) -> None:
        """Put what has changed in the agent's record into the unit of work."""
        work.stage(_agent_fields(agent))
        work.look_at_state(agent.state)

    def _stage_late_metrics(self, work: AgentWork, agent: Any) -> None:
        entry = work.lacking_metrics
        if entry is None:
            return
        grown = usage_since(_accumulated_usage(agent), work.counted_usage)
        if not grown:
            return
        latency = _accumulated_latency(agent) - work.counted_latency
        metrics = message_metrics(grown, {"latencyMs": max(0, latency)}, work.model_call_ms)
        if metrics is None:
            return
        work.lacking_metrics = None
        work.count_usage(metrics)
        totals = Totals()
        totals.add_model_call(_model_id(agent), metrics)
        work.put(LateMetricsOperation(work.key, entry, metrics, totals))

    def _read_multi_agent(self, source: Any) -> Any:
        multi_agent_id = check_id(source.id, "multi_agent_id")
        self._ensure_open()
        return self._store.read_multi_agent(self.session_id, multi_agent_id)

    def _begin_multi_agent(self, source: Any, state: Any) -> Future[None] | None:
        if state is None:
            return self._stage_multi_agent(source)
        self._multi_agent_states[source.id] = to_bson({"state": encode(state)})
        source.deserialize_state(state)
        return None

    def _stage_multi_agent(self, source: Any) -> Future[None] | None:
        multi_agent_id = check_id(source.id, "multi_agent_id")
        state = encode(source.serialize_state(), f"multi_agent_id={multi_agent_id!r} state")
        content = to_bson({"state": state})
        outbox = self._multi_agents.get(multi_agent_id)
        if outbox is None:
            outbox = Outbox(self._pool, self._store, self._session_ref, self._track_unsent)
            self._multi_agents[multi_agent_id] = outbox
        if self._multi_agent_states.get(multi_agent_id) != content:
            self._multi_agent_states[multi_agent_id] = content
            outbox.put(MultiAgentOperation(multi_agent_id, state))
        return outbox.send()

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
            if error is None:
                raise
            _add_note(error, f"The session could not be stored, either: {failure!r}")

    async def _settle_beside(self, error: BaseException | None) -> None:
        """Flush as ``_flush_beside`` does. No thread of the pool waits for another one: all might be waiting."""
        for sending in [outbox.send() for outbox in self._outboxes()]:
            try:
                if sending is not None:
                    await settle(sending)
            except Exception as failure:
                if error is None:
                    raise
                _add_note(error, f"The session could not be stored, either: {failure!r}")

    def _outboxes(self) -> list[Outbox]:
        return [*self._agents.values(), *self._multi_agents.values()]

    def _track_unsent(self) -> None:
        """Keep this manager alive, and known to the end of the process, while it holds something unsent."""
        if any(outbox.unsent for outbox in self._outboxes()):
            _unsent.add(self)
        else:
            _unsent.discard(self)

    # --- leases -----------------------------------------------------------------------------------------------------

    def _take_lease(self, owner: str, token: str, seconds: float) -> float | None:
        no_lease_twice(self._lease_token)
        self._ensure_open()
        taken_for = self._store.take_lease(self._session_ref(), owner, token, seconds)
        if taken_for is None:
            self._lease_token = token
            # What was read before may be old by now.
            self._prefetched.clear()
        return taken_for

    def _renew_lease(self, seconds: float) -> None:
        if self._lease_token is None:
            raise MongoDBSessionError("this manager holds no lease")
        session = self._session_ref()
        self._store.guarded(session, renew_lease(session, seconds))

    def _release_lease(self, token: str, error: BaseException | None) -> None:
        self._lease_token = None
        try:
            self._store.release_lease(self.session_id, token)
        except PyMongoError as failure:
            if error is None:
                raise
            _add_note(error, f"The lease could not be given back, and will run out by itself: {failure!r}")


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


# Stands for an agent that was stored together with a new session: there is nothing to restore.
_CREATED = StoredAgent(agent_data=None)

# Managers that hold something unsent. Strong references: a forgotten manager still stores its turn at exit.
_unsent: set[MongoDBSessionManager] = set()


def _session_agent(agent: Any) -> MongoDBSessionAgent:
    plain = SessionAgent.from_agent(agent)
    return MongoDBSessionAgent(
        agent_id=plain.agent_id,
        state=plain.state,
        conversation_manager_state=plain.conversation_manager_state,
        _internal_state=plain._internal_state,
        created_at=plain.created_at,
        updated_at=plain.updated_at,
        model=_model_id(agent),
        system_prompt=agent.system_prompt,
    )


def _agent_state(stored: Document) -> AgentState:
    try:
        return AgentState(stored)
    except ValueError:
        # Strands takes only what JSON knows. Somebody has put a date or an ObjectId there; it becomes text.
        return AgentState(json.loads(json.dumps(stored, default=str)))


def _agent_fields(agent: Any) -> Document:
    """Return what is stored of an agent besides its state; what is None is left as it is stored."""
    fields: Document = {}
    if isinstance(agent, Agent):
        fields["conversation_manager_state"] = agent.conversation_manager.get_state()
        fields["_internal_state"] = {
            "interrupt_state": agent._interrupt_state.to_dict(),
            "model_state": agent._model_state,
        }
    for name, value in (("model", _model_id(agent)), ("system_prompt", agent.system_prompt)):
        if value is not None:
            fields[name] = value
    return fields


def _model_id(agent: Any) -> str | None:
    get_config = getattr(agent.model, "get_config", None)
    config = get_config() if get_config is not None else None
    model_id = config.get("model_id") if isinstance(config, Mapping) else getattr(config, "model_id", None)
    return model_id if isinstance(model_id, str) else None


def _accumulated_usage(agent: Any) -> dict[str, float]:
    try:
        return dict(agent.event_loop_metrics.accumulated_usage)
    except NotImplementedError:  # BidiAgent
        return {}


def _accumulated_latency(agent: Any) -> float:
    try:
        return float(agent.event_loop_metrics.accumulated_metrics.get("latencyMs", 0))
    except NotImplementedError:  # BidiAgent
        return 0


def _tool_calls(work: AgentWork, message: Message) -> list[ToolCall]:
    """Return the tool calls whose results a message carries, as far as they were seen."""
    calls = []
    for block in message["content"]:
        result = block.get("toolResult")
        if result and (call := work.tool_calls.pop(result["toolUseId"], None)):
            call.failed = result.get("status") == "error"
            calls.append(call)
    return calls


def _give_tracking_id(message: Message) -> None:
    """Give a message the id that Strands would give it at the first invocation, which is after it is stored."""
    if not message.get("tracking_id"):
        message["tracking_id"] = str(uuid.uuid4())


def _wait(sending: Future[None] | None) -> None:
    if sending is not None:
        sending.result()


def _check_on_conflict(on_conflict: str) -> None:
    if on_conflict not in ("rebase", "raise"):
        raise ValueError(f"on_conflict must be 'rebase' or 'raise', not {on_conflict!r}")


def _add_note(error: BaseException, note: str) -> None:
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:  # Python 3.10
        logger.error("error=<%r> | %s", error, note)


def _store_at_exit() -> None:
    """Store what is unsent when the interpreter ends; say so where that fails. One deadline for all of it."""
    with pymongo.timeout(_AT_EXIT_SECONDS):
        for manager in list(_unsent):
            try:
                manager.flush()
            except Exception as error:
                logger.error("session_id=<%s>, error=<%r> | lost: not stored at exit", manager.session_id, error)


atexit.register(_store_at_exit)
if hasattr(os, "register_at_fork"):  # Not on Windows.
    # The parent will store what is unsent.
    os.register_at_fork(after_in_child=_unsent.clear)
