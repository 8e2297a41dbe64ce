"""What a guardrail does while an agent answers, and what of that is stored with the messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal

from strands.types.content import Message

from .._model.documents import Document
from .._model.guardrails import facts_in_stream, facts_of_stop_reason, guardrail_event, is_redaction, redacted_prompt
from .._store.session_commands import now
from .unit_of_work import AgentWork


class Interventions:
    """The interventions of guardrails in the turn of one agent.

    Args:
        work: The agent's unit of work.
    """

    # The answer of a model call in which a guardrail intervened.
    _intervened: Message | None = None

    def __init__(self, work: AgentWork) -> None:
        self._work = work
        # What is known of the guardrail, and the redactions of this turn.
        self._facts: Document = {}
        self._redactions: list[Document] = []

    def call_begins(self) -> None:
        """Take note that a model call begins."""
        self._intervened = None

    def watch_call(self, facts: Document) -> None:
        """Take note that a model call begins whose stream may hold a guardrail's trace, and what is known before."""
        self.forget()
        self._facts = facts

    def said(self, facts: Document) -> None:
        """Take note of what a guardrail says of its intervention; redactions that wait to be sent get it, too."""
        self._facts = {**self._facts, **facts}
        for index, event in enumerate(self._redactions):
            completed = self._redactions[index] = {**event, **facts}
            self._work.complete(event, completed)

    def stopped(self, answer: Message, stop_reason: str) -> None:
        """Take note that a guardrail has stopped the model call that gave this answer."""
        self._intervened = answer
        self.said(facts_of_stop_reason(stop_reason))

    def forget(self) -> None:
        """Forget what is known: it belongs to no later message."""
        self._facts = {}
        self._redactions = []

    def of_answer(self, message: Message) -> Document | None:
        """Return what is stored with an answer, if a guardrail has stopped its model call."""
        event = self._event("intervened", message["role"]) if message is self._intervened else None
        self.forget()
        return event

    def of_redaction(self, role: str, *, in_turn: bool) -> Document:
        """Return what is stored with a message that is redacted; in a turn more of it may become known."""
        event = self._event("redacted", role)
        if in_turn:
            self._redactions.append(event)
        else:
            self.forget()
        return event

    def _event(self, action: Literal["redacted", "intervened"], role: str) -> Document:
        return guardrail_event(action, role, now(), self._facts)


async def watch_stream(
    events: AsyncGenerator[Any, None], said: Callable[[Document], None], redact: Callable[[str], None]
) -> AsyncGenerator[Any, None]:
    """Pass on the events of a model's stream, and look in them for what its guardrail says: no hook is told.

    A redaction is passed on when the model's next event was looked at: in it the guardrail says why.

    Args:
        events: The stream.
        said: Told what the guardrail says.
        redact: Told what is to stand in the place of the prompt, where Strands can no longer be.
    """
    held: list[Any] = []
    try:
        async for event in events:
            if facts := facts_in_stream(event):
                said(facts)
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
                redact(text)
        raise
    while held:
        yield held.pop(0)
