"""The agents of one manager: restored or begun when they are built, followed from then on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from strands.types.content import Message

from .._agents.answer_costs import MetricsOverride
from .._agents.conversation import Conversation
from .._agents.follower import AgentFollower
from .._agents.outbox import OutboxOwner, wait_unless_in_loop
from .._agents.unit_of_work import AgentWork
from .._model.keys import check_id, encode_key, exact_text
from .._store.session_store import SessionStore
from ..errors import AgentNotFoundError, MongoDBSessionError, SessionNotFoundError, shown
from ..telemetry import Observer
from .managed_session import CREATED, ManagedSession
from .options import Settings

Repair = Callable[[list[Message]], list[Message]]
"""Strands' repair of tool uses without results."""


class ManagedAgents:
    """The agents of one manager, by their ids.

    Args:
        session: The session they belong to.
        settings: What the manager is asked to do.
        store: Where the session is kept.
        owner: Who is told what their outboxes do.
        observer: Who is told what answers have used, if anybody.

    Attributes:
        override: What the application has said of the next answer, of whichever agent.
        kept: Agents to keep alive, for whoever closes the manager when they are out of scope and has yet to look what
            changed in them; None: they are not kept.
    """

    kept: list[Any] | None = None

    def __init__(
        self,
        session: ManagedSession,
        settings: Settings,
        store: SessionStore,
        owner: OutboxOwner,
        observer: Observer | None,
    ) -> None:
        self.override = MetricsOverride()
        self._session = session
        self._settings = settings
        self._store = store
        self._owner = owner
        self._observer = observer
        self._followers: dict[str, AgentFollower] = {}

    def followers(self) -> list[AgentFollower]:
        """Return who follows each of them, as they are now: another may join meanwhile."""
        return list(self._followers.values())

    def works(self) -> list[AgentWork]:
        """Return the unit of work of each of them."""
        return [follower.work for follower in self.followers()]

    def follower(self, agent: Any) -> AgentFollower:
        """Return who follows an agent.

        Raises:
            AgentNotFoundError: The agent was not built with this session manager.
        """
        agent_id = exact_text(agent.agent_id)  # A member of an enum has another hash than its value.
        follower = self._followers.get(agent_id)
        if follower is None:
            raise AgentNotFoundError(
                f"agent_id={shown(agent_id)} was not built with this session manager", agent_id=agent_id
            )
        return follower

    def initialize(self, agent: Any, repair: Repair) -> None:
        """Restore an agent, or begin to keep it, and follow it.

        Args:
            agent: The agent.
            repair: Strands' repair of tool uses without results.

        Raises:
            MongoDBSessionError: Another agent has the same id.
        """
        agent_id = check_id(agent.agent_id, "agent_id")
        key = encode_key(agent_id)
        if agent_id in self._followers:
            raise MongoDBSessionError(
                f"agent_id={agent_id!r} is used by another agent of this session manager: it must be unique",
                session_id=self._session.session_id,
                agent_id=agent_id,
            )
        follower = self._new_follower(agent_id, key)
        stored = self._session.stored_agent(key, agent)
        try:
            if stored is CREATED:
                follower.created_with_session(agent)
            elif stored.agent_data is None:
                follower.create(agent)
            else:
                follower.restore(agent, stored, repair)
            self._followers[agent_id] = follower
            if agent.messages and stored.agent_data is None:
                wait_unless_in_loop(follower.work.send())
        except BaseException:
            # There will be no such agent: another one may be built under its id, and nothing of this one waits.
            self._followers.pop(agent_id, None)
            follower.work.drop()
            raise
        if self.kept is not None:
            self.kept.append(agent)

    def reload(self, agent: Any, repair: Repair) -> None:
        """Make an agent equal to what is stored, and forget what of it is not.

        Raises:
            AgentNotFoundError: The agent was not built with this session manager, or is stored no more.
        """
        work = self.follower(agent).work
        agent_id, key = work.conversation.agent_id, work.conversation.key
        work.wait_quietly()
        work.send_rewrites()  # What was redacted is not to be restored.
        try:
            stored = self._session.open([key], None)[key]
        except SessionNotFoundError:
            work.drop()  # It can never be stored.
            raise
        if stored.agent_data is None:
            session_id = self._session.session_id
            raise AgentNotFoundError(
                f"session_id={session_id!r} has no agent_id={agent_id!r}", session_id=session_id, agent_id=agent_id
            )
        work.drop()
        fresh = self._new_follower(agent_id, key)
        fresh.restore(agent, stored, repair)
        self._followers[agent_id] = fresh

    def stage(self) -> MongoDBSessionError | None:
        """Stage what has changed in the agents since their last events; return the first error of what was refused."""
        refused: MongoDBSessionError | None = None
        for follower in self.followers():
            try:
                follower.stage_agent_if_alive()
            except MongoDBSessionError as error:
                refused = refused or error
        return refused

    def _new_follower(self, agent_id: str, key: str) -> AgentFollower:
        settings = self._settings
        conversation = Conversation(agent_id, key, self._session.document)
        work = AgentWork(conversation, settings.blob_threshold_bytes, settings.rebase, self._store, self._owner)
        return AgentFollower(work, by_turn=settings.by_turn, override=self.override, observer=self._observer)
