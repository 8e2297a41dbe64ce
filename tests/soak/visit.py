"""What is done in one request: a few steps, chosen at random, and the end, or none."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from offline_model import ScriptedReply, ToolCall

from soak.journal import texts, tokens_in
from soak.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable


class Visit(Request):
    """One request."""

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
        # One right after the other: an older one may be under way still.
        for _ in range(self._rng.choice((1, 1, 2, 4))):
            if self._rng.random() < 0.2:
                self._set("metadata", "", key, None, lambda: self._manager.delete_metadata([key]))
            else:
                value = self._writer.number_of()
                self._set("metadata", "", key, value, partial(self._manager.update_metadata, {key: value}))

    def _set_state(self) -> None:
        agent = self._agent(own=True)
        for _ in range(0 if agent is None else self._rng.choice((1, 1, 2, 4))):
            value = self._writer.number_of()
            agent.state.set("count", value)
            self._set("state", agent.agent_id, "count", value, lambda: self._manager.sync_agent(agent))

    def _feedback(self) -> None:
        name = self._writer.token("f")
        feedback: dict[str, Any] = {"rating": self._rng.choice(("up", "down")), "comment": name}
        if self._known and self._rng.random() < 0.5:
            # About a message that may lie in the history by now.
            feedback.update(agent_id=self._rng.choice(sorted(self._known)), message_id=0)
        if not self._session.index_messages and self._rng.random() < 0.5:
            # So large that they move into the history as well.
            feedback["details"] = "kettle " * 6000
        self._journal.write("feedback", token=name, session=self._session.id, life=self._life)
        if self._attempt("feedback", lambda: self._manager.add_feedback(feedback)) is None:
            self._stored([name])
