"""The frame of a request: its manager, the agents that it builds, and what is acknowledged when."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from offline_model import OfflineScriptedModel, Reply
from strands import Agent, tool
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.hooks import MessageAddedEvent
from strands.hooks.registry import HookOrder

from mongodb_session_manager.errors import SessionConflictError, SessionNotFoundError
from soak import plan
from soak.journal import texts, tokens_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak.writers import Writer

_TIMES_TO_CLOSE = 6
_FILLER = "kettle blue refund river stone window paper engine garden silver " * 12


@tool
def look_up(word: str) -> str:
    """Look something up."""
    return f"{word[:-1]}r was found"


class Request:
    """A request without its steps.

    What a step has staged and was not told to be stored is pending: stored when the manager could be closed.
    """

    def __init__(self, writer: Writer, session: plan.Session) -> None:
        self._writer = writer
        self._rng = writer.rng
        self._journal = writer.journal
        self._session = session
        self._manager = writer.manager(session)
        self._tells_each = not self._manager._settings.by_turn
        self._scripts: dict[str, deque[Reply]] = {}
        self._agents: dict[str, Agent] = {}
        self._pending: dict[str, list[Callable[[], None]]] = {}
        self._last: dict[str, str] = {}
        self._known: set[str] = set()
        self._leased = False
        self._is_over = False

    @property
    def _life(self) -> str | None:
        life = self._manager._session.incarnation
        return None if life is None else str(life)

    def _attempt(self, kind: str, act: Callable[[], object]) -> Exception | None:
        error = self._writer.attempt(kind, self._session, act)
        if isinstance(error, SessionNotFoundError):
            self._is_over = True
        if isinstance(error, SessionConflictError) and not self._is_over and self._rng.random() < 0.5:
            self._flush("rebase")
        return error

    def _flush(self, on_conflict: Any = None) -> None:
        if self._attempt("flush", lambda: self._manager.flush(on_conflict)) is None:
            self._is_stored()

    def _close(self) -> None:
        for _ in range(_TIMES_TO_CLOSE):
            error = self._attempt("close", self._manager.close)
            if error is None:
                self._is_stored()
                return
            if self._is_over:
                return
            self._writer.pause()

    def _is_stored(self, agent_id: str | None = None) -> None:
        """What was pending is acknowledged, of one agent or of all."""
        for pending in list(self._pending.values()) if agent_id is None else [self._pending.get(agent_id, [])]:
            while pending:
                pending.pop(0)()

    def _wait(self, agent_id: str, acknowledge: Callable[[], None]) -> None:
        self._pending.setdefault(agent_id, []).append(acknowledge)

    # --- agents and messages ----------------------------------------------------------------------------------------

    def _agent(self, own: bool | None = None) -> Agent | None:
        """An agent of this request; None if it could not be built."""
        own = self._rng.random() < 0.4 if own is None else own
        agent_id = self._writer.own_agent if own else plan.SHARED
        if agent_id not in self._agents:
            script: deque[Reply] = deque()

            def build() -> None:
                agent = Agent(
                    model=OfflineScriptedModel(lambda _: script.popleft()),
                    agent_id=agent_id,
                    tools=[look_up],
                    conversation_manager=SlidingWindowConversationManager(window_size=6),
                    session_manager=self._manager,
                    callback_handler=None,
                )
                if self._tells_each:
                    # After the manager's own callback, so the message is stored by then.
                    agent.hooks.add_callback(MessageAddedEvent, self._message_added, order=HookOrder.SDK_LAST + 1)
                self._agents[agent_id], self._scripts[agent_id] = agent, script

            if self._attempt("build", build) is not None:
                return None
        return self._agents[agent_id]

    def _message_added(self, event: MessageAddedEvent) -> None:
        self._stored([name for name in tokens_in(texts(event.message)) if name[-1] != "x"])

    def _say(self, agent: Agent, part: str, blob: int = 0) -> str:
        """Take note of a message that is to be stored."""
        name = self._writer.token(part)
        self._intend(agent, name, blob)
        return name

    def _intend(self, agent: Agent, name: str, blob: int = 0) -> None:
        where = {"session": self._session.id, "agent": agent.agent_id, "life": self._life}
        self._journal.write("message", token=name, blob=blob, **where)

    def _stored(self, names: list[str], agent: Agent | None = None) -> None:
        if names:
            self._journal.write("stored", tokens=names, life=self._life, session=self._session.id)
        if agent is not None:
            self._known.add(agent.agent_id)
            mine = self._writer.mine.setdefault((self._session.id, agent.agent_id), set())
            mine.update(name for name in names if name[-1] in "uah")

    def _content(self, name: str, blob: int) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = [{"text": f"{name} {_FILLER[: self._rng.randint(0, 700)]}"}]
        if blob:
            content.append({"image": {"format": "png", "source": {"bytes": plan.blob(name, blob)}}})
        return content

    def _blob_size(self, chance: float) -> int:
        if self._rng.random() >= chance:
            return 0
        return self._rng.choice((plan.BLOB_BYTES, 5000, 9000, 300_000 if self._rng.random() < 0.2 else 20_000))
