"""One request of a writer: a manager, its agents, a few steps, and the end, or none."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from offline_model import OfflineScriptedModel, Reply, ScriptedReply, ToolCall
from strands import Agent, tool
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.hooks import MessageAddedEvent
from strands.hooks.registry import HookOrder

from mongodb_session_manager.errors import SessionConflictError, SessionNotFoundError
from soak import plan
from soak.journal import tokens_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak.writers import Writer

_TIMES_TO_CLOSE = 6
_FILLER = "kettle blue refund river stone window paper engine garden silver " * 12


@tool
def look_up(word: str) -> str:
    """Look something up."""
    return f"{word[:-1]}r was found"


class Visit:
    """One request. What a step has staged and not acknowledged waits in `pending` until the manager is closed."""

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
        life = self._manager._incarnation
        return None if life is None else str(life)

    # --- the request ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Make the steps, then close; some never close."""
        if self._session.kind == "leased" and self._rng.random() < 0.7:
            self._attempt("lease", self._steps_within_a_lease)
        else:
            self._steps()
        if self._is_over:
            return
        if any(self._pending.values()) or self._rng.random() < 0.85:
            self._close()

    def _steps_within_a_lease(self) -> None:
        # Some run out in the middle.
        seconds = self._rng.choice((0.2, 2.0, 5.0))
        with self._manager.lease(seconds=seconds, wait=self._rng.choice((0, 1.0, 3.0))) as lease:
            self._leased = True
            try:
                self._steps()
                if self._rng.random() < 0.3:
                    self._attempt("renew", lease.renew)
                    self._steps()
            finally:
                self._leased = False
        # Leaving a lease stores what waits.
        self._is_stored()

    def _steps(self) -> None:
        steps: list[tuple[Callable[[], None], int]] = [
            (self._turn, 10),
            (self._append, 5),
            (self._redact_latest, 3),
            (self._set_metadata, 3),
            (self._set_state, 3),
            (self._feedback, 2),
            (self._reload, 1),
            (self._flush, 1),
        ]
        names, weights = zip(*steps, strict=True)
        for _ in range(self._rng.randint(1, 4)):
            if not self._is_over:
                self._rng.choices(names, weights)[0]()

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

    def _turn(self) -> None:
        agent = self._agent()
        if agent is None:
            return
        blob, uses_tool, redacts = self._blob_size(0.2), self._rng.random() < 0.3, self._rng.random() < 0.15
        if redacts:
            # With a tool, Strands redacts what comes from that.
            blob, uses_tool = 0, False
        names = [asked := self._say(agent, "u", blob)]
        script = self._scripts[agent.agent_id]
        script.clear()
        if uses_tool:
            names.append(used := self._say(agent, "t"))
            self._intend(agent, result := used[:-1] + "r")
            names.append(result)
            script.append(ToolCall("look_up", {"word": used}, tool_use_id=f"use-{used[:-1]}"))
        names.append(answer := self._say(agent, "a"))
        said = {"text": answer, "latency_ms": self._rng.randint(1, 3000)}
        replacement = asked[:-1] + "x"
        if redacts:
            self._journal.write("redact", token=asked, by=replacement)
            said["redact_user"] = replacement
        script.append(ScriptedReply(**said))
        content: Any = self._content(asked, blob)
        prompt = content if blob else content[0]["text"]
        in_a_loop = self._rng.random() < 0.3
        leased = self._leased

        def take() -> None:
            if in_a_loop:
                asyncio.run(agent.invoke_async(prompt))
            else:
                agent(prompt)

        def acknowledge() -> None:
            self._stored(names, agent)
            if redacts:
                self._journal.write("redacted", token=asked)
                self._writer.mine[self._session.id, agent.agent_id].discard(asked)

        error = self._attempt("turn", take)
        self._last[agent.agent_id] = ""
        if error is None:
            self._is_stored(agent.agent_id)
            acknowledge()
            self._last[agent.agent_id] = answer
            if leased:
                where = {"session": self._session.id, "agent": agent.agent_id, "life": self._life}
                self._journal.write("alone", tokens=names, **where)
            if redacts:
                self._writer.look_for(self._session, asked)
            return
        # What is in the agent's memory is in the unit of work, too, as far as it is not stored.
        staged = {name for message in agent.messages for name in tokens_in(texts(message))}
        if redacts and replacement in staged:
            self._wait(agent.agent_id, lambda: self._journal.write("redacted", token=asked))
            staged.add(asked)
        left = [name for name in names if name in staged]
        self._wait(agent.agent_id, lambda: self._stored(left))

    def _append(self) -> None:
        agent = self._agent()
        if agent is None:
            return
        blob = self._blob_size(0.3)
        role = "assistant" if self._rng.random() < 0.2 and not blob else "user"
        name = self._say(agent, "h" if role == "user" else "a", blob)
        message: Any = {"role": role, "content": self._content(name, blob)}
        self._last[agent.agent_id] = ""
        if self._attempt("append", lambda: self._manager.append_message(message, agent)) is None:
            self._is_stored(agent.agent_id)
            self._stored([name], agent)
            self._last[agent.agent_id] = name
        else:
            self._wait(agent.agent_id, lambda: self._stored([name]))

    def _redact_latest(self) -> None:
        for agent_id, name in self._last.items():
            if name and agent_id in self._agents:
                break
        else:
            return
        self._last[agent_id] = ""
        self._writer.mine[self._session.id, agent_id].discard(name)
        replacement = name[:-1] + "x"
        self._journal.write("redact", token=name, by=replacement)
        role = "assistant" if name[-1] == "a" else "user"
        message: Any = {"role": role, "content": [{"text": replacement}]}
        redact = lambda: self._manager.redact_latest_message(message, self._agents[agent_id])  # noqa: E731
        done = lambda: self._journal.write("redacted", token=name)  # noqa: E731
        if self._attempt("redact latest", redact) is None:
            done()
            self._writer.look_for(self._session, name)
        else:
            self._wait(agent_id, done)

    def _reload(self) -> None:
        agent = self._agent()
        # One that is not stored yet cannot be read again.
        if agent is not None and agent.agent_id in self._known:
            # What was not stored is forgotten: nobody is told that it is stored.
            self._pending.pop(agent.agent_id, None)
            self._last[agent.agent_id] = ""
            self._attempt("reload", lambda: self._manager.reload(agent))

    # --- values and feedbacks ---------------------------------------------------------------------------------------

    def _set(self, what: str, agent: str, key: str, value: int | None, act: Callable[[], object]) -> None:
        number = self._writer.number_of()
        where = {"session": self._session.id, "agent": agent, "life": self._life}
        self._journal.write("set", what=what, key=key, value=value, number=number, **where)

        def done() -> None:
            self._journal.write("was set", number=number, session=self._session.id, life=self._life)

        if self._attempt(what, act) is None:
            if what == "state":
                self._is_stored(agent)
            done()
        elif what == "state":
            self._wait(agent, done)

    def _set_metadata(self) -> None:
        key = f"w{self._writer.number:02d}_{self._rng.randint(0, 2)}"
        if self._rng.random() < 0.2:
            self._set("metadata", "", key, None, lambda: self._manager.delete_metadata([key]))
        else:
            value = self._writer.number_of()
            self._set("metadata", "", key, value, lambda: self._manager.update_metadata({key: value}))

    def _set_state(self) -> None:
        agent = self._agent(own=True)
        if agent is not None:
            value = self._writer.number_of()
            agent.state.set("count", value)
            self._set("state", agent.agent_id, "count", value, lambda: self._manager.sync_agent(agent))

    def _feedback(self) -> None:
        name = self._writer.token("f")
        feedback: dict[str, Any] = {"rating": self._rng.choice(("up", "down")), "comment": name}
        if self._known and self._rng.random() < 0.5:
            # About a message that may lie in the history by now.
            feedback.update(agent_id=self._rng.choice(sorted(self._known)), message_id=0)
        self._journal.write("feedback", token=name, session=self._session.id, life=self._life)
        if self._attempt("feedback", lambda: self._manager.add_feedback(feedback)) is None:
            self._stored([name])


def texts(message: Any) -> bytes:
    """All texts of a message's content, one after the other."""
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            for part in value.values():
                walk(part)
        elif isinstance(value, list):
            for part in value:
                walk(part)

    with contextlib.suppress(KeyError):
        walk(message["content"])
    return "\n".join(found).encode()
