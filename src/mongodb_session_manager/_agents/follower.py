"""Follows one agent: what each of Strands' events, and a message by hand, brings into the agent's unit of work.

All of this runs on the agent's event loop, so all of it is cheap, and nothing here sends a command.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from strands.hooks import AfterModelCallEvent
from strands.types.content import Message

from .._model import documents
from .._model.documents import Document, StoredAgent
from .._model.encoding import PendingBlobs, encode, fingerprint
from .._model.guardrails import INTERVENED
from .._model.keys import check_tracking_id
from .._model.limits import EARLY_COMMIT_BYTES
from .._statements.commits import TrackedMessage
from ..errors import MongoDBSessionError
from ..telemetry import Observer
from .answer_costs import AnswerCosts
from .interventions import Interventions
from .metrics_override import MetricsOverride
from .record import agent_fields, give_tracking_id, session_agent, trims_by_itself
from .restore import restore
from .tool_calls import ToolCalls
from .turns import Turns, is_interrupted
from .unit_of_work import AgentWork


@dataclass(frozen=True)
class Expected:
    """A user's message that was appended by hand; Strands may be about to append the same one.

    Attributes:
        tracked: Where it waits or is stored.
        text: Its text.
        body: What was stored of it.
    """

    tracked: TrackedMessage
    text: str
    body: Document


class AgentFollower:
    """Turns the events of one agent into its unit of work.

    Args:
        work: The agent's unit of work.
        by_turn: Whether messages wait for the end of their turn (``durability="turn"``).
        override: What the application has said of the next answer, of whichever agent of the manager.
        observer: Who is told what answers have used, if anybody.

    Attributes:
        work: As given.
        guardrail: What a guardrail does in the agent's turn.
    """

    _agent: Callable[[], Any] = staticmethod(lambda: None)
    # Appended by hand: the user's message that Strands is about to append.
    _expected: Expected | None = None
    _window_settings: Document | None = None

    def __init__(
        self, work: AgentWork, *, by_turn: bool, override: MetricsOverride, observer: Observer | None = None
    ) -> None:
        self.work = work
        self.guardrail = Interventions(work)
        self._conversation = work.conversation
        self._known = work.conversation.messages
        self._by_turn = by_turn
        self._turns = Turns()
        self._costs = AnswerCosts(work.conversation.key, override, observer)
        self._tool_calls = ToolCalls()
        # What the assistant has said since the user spoke last.
        self._said: list[Message] = []

    # --- the beginning ----------------------------------------------------------------------------------------------

    def created_with_session(self, agent: Any) -> None:
        """Take note that the agent was stored together with a new session, as it is."""
        self._known.restored(range(len(agent.messages)), agent.messages)
        self._conversation.next_message_id = self._conversation.embedded.count = len(agent.messages)
        self._follow_new(agent)

    def create(self, agent: Any) -> None:
        """Put a new agent, and the messages it was built with, into the next commit."""
        blobs = PendingBlobs(self.work.blob_threshold)
        self.work.create(documents.agent_data(session_agent(agent), blobs), blobs)
        for message in agent.messages:
            give_tracking_id(message)
            self._append(message, agent, from_agent=False)
        self._follow_new(agent)

    def restore(
        self,
        agent: Any,
        stored: StoredAgent,
        read_from: Callable[[int], list[Document]],
        repair: Callable[[list[Message]], list[Message]],
    ) -> None:
        """Make the agent what is stored of it; see ``restore``."""
        self._turns.last_id = restore(self.work, agent, stored, read_from, repair)
        self._follow(agent)

    def _follow_new(self, agent: Any) -> None:
        self.work.fields.stored(agent_fields(agent))
        self.work.fields.stored_state(agent.state, agent.state.get())
        self._follow(agent)

    def _follow(self, agent: Any) -> None:
        self._agent = weakref.ref(agent)
        self._costs.follow(agent)

    # --- turns and calls --------------------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """Take note that an invocation begins."""
        self._turns.begin()
        self._said = []

    def end_turn(self, agent: Any) -> BaseException | None:
        """Take note that an invocation is over; return the error that ended it, if one did."""
        error = self._turns.end()
        self._costs.forget()
        self.guardrail.forget()
        if not self._turns.is_running(agent) and not is_interrupted(agent):
            self._tool_calls.forget()
        self._known.prune(agent.messages)
        return error

    def waits(self, agent: Any) -> bool:
        """Return whether what is staged waits for the end of the turn."""
        return self._by_turn and self._turns.is_running(agent) and self.work.waiting_bytes < EARLY_COMMIT_BYTES

    def model_call_begins(self) -> None:
        """Take note that the agent asks its model."""
        self._costs.call_begins()
        self.guardrail.call_begins()

    def model_call_ends(self, event: AfterModelCallEvent) -> None:
        """Take note of the model's answer."""
        self._costs.call_ends(event)
        if (answer := event.stop_response) is not None and answer.stop_reason == INTERVENED:
            self.guardrail.stopped(answer.message, answer.stop_reason)

    def tool_call_begins(self, tool_use_id: str, agent: Any) -> None:
        """Take note that a tool is called."""
        if not self._turns.is_running(agent) and not is_interrupted(agent):
            # Whether a direct call becomes messages is not told; that of the one before has by now.
            self._tool_calls.forget()
        self._tool_calls.begins(tool_use_id)

    def tool_call_ends(self, tool_use_id: str, name: str) -> None:
        """Take note that it has returned."""
        self._tool_calls.ends(tool_use_id, name)

    # --- messages ---------------------------------------------------------------------------------------------------

    def message_added(self, message: Message, agent: Any, *, by_hand: bool = False) -> None:
        """Stage a message that was added to the live conversation, unless it is known."""
        tracking_id = message.get("tracking_id")
        if known := self._known.with_id(tracking_id):
            # Whatever is in the conversation as often as it is stored was appended before, or is a continuation: a
            # longer message in its place, under its id. A prompt that is tried again is in it once more.
            live = sum(1 for other in agent.messages if other.get("tracking_id") == tracking_id)
            if 0 < live <= len(known):
                if known[-1].source is not message:
                    self._replace(known[-1], message)
                return
        if self._expected is not None and message["role"] == "user":
            expected, self._expected = self._expected, None
            refused = expected.tracked.commit is None and expected.tracked.message_id is None
            if not refused and _is_same(expected, message):
                self._recognise(expected, message)
                return
        # Outside a turn Strands appends what tells of a direct call of a tool; no user has said it.
        self._append(message, agent, from_agent=True, is_said=by_hand or self._turns.is_running(agent))

    def message_updated(self, tracking_id: str, message: Message) -> None:
        """Stage the replacement of a message: a transcript that is complete now."""
        if known := self._known.with_id(tracking_id):
            self._replace(known[-1], message)

    def append_by_hand(self, message: Message, agent: Any) -> None:
        """Stage a message of the application's own, unless Strands has appended it or is about to."""
        if any(message is live for live in agent.messages):
            self.message_added(message, agent, by_hand=True)
            if message["role"] == "assistant":
                self._correct(message)
            return
        last, self._known.last = self._known.last, None  # As in `_append`.
        body, size, blobs = self._body(message)
        text = documents.message_text(message)
        role = message["role"]
        only_text = text and all("text" in block for block in body["content"])
        if role == "assistant" and only_text and self._has_said(text):
            self._known.last = last
            self._correct(self._said[-1] if text == documents.message_text(self._said[-1]) else None)
            return
        # Strands gives each message such an id when it appends it; the two will be one message.
        body["tracking_id"] = body.get("tracking_id") or str(uuid.uuid4())
        body["turn_id"] = self._turns.of_message_by_hand(role)
        carries_results = documents.has_tool_result(message)
        calls = self._tool_calls.carried_by(message, agent.messages) if carries_results else []
        answer = None
        if role == "assistant":
            self._tool_calls.asked_by_hand = [message]
            answer = self._costs.of_answer_by_hand(message, agent)
            if answer.metrics is not None:
                body["event_loop_metrics"] = answer.metrics
        starts_turn = role == "user" and not carries_results
        totals = self._costs.growth(starts_turn=starts_turn, answer=answer, calls=calls)
        tracked = self.work.append(body, size, message, totals, blobs)
        if role == "user":
            self._said = []
            self._expected = Expected(tracked, text, body)
        elif answer is not None:
            self._expected = None
            answer.tracked = tracked

    def redact_latest(self, redact_message: Message) -> bool:
        """Replace the content of the message that was appended last; return whether that is to be sent now.

        Raises:
            MongoDBSessionError: The agent has no message, or its latest was refused and is stored nowhere.
            TypeError: The ``tracking_id`` is no text.
        """
        tracking_id = check_tracking_id(redact_message)
        latest = self._known.last
        if latest is None:
            agent_id = self._conversation.agent_id
            raise MongoDBSessionError(
                f"agent_id={agent_id!r} has no message to redact: its latest is not stored", agent_id=agent_id
            )
        role = redact_message["role"]
        # Nothing of it becomes a blob: several messages may get it, and a blob belongs to one.
        content = encode(documents.text_blocks(redact_message["content"]), "redact_message['content']")
        documents.check_size({"content": content}, "redact_message")
        event = self.guardrail.of_redaction(role, in_turn=self._turns.invoked)
        body: Document = {
            "role": role,
            "content": content,
            "redact_message": {"role": role, "content": content},
            "guardrail_event": event,
        }
        # A prompt that was tried again may stand in the conversation twice, under one tracking id.
        same = self._known.with_id(tracking_id)
        if same and latest not in same:
            # Strands means its own latest message; behind that stands one that was appended by hand.
            latest = same[-1]
        # So may a message that was appended by hand twice; each time it got an id of its own.
        same = [*same, *self._known.made_of(redact_message), *self._known.made_of(latest.source)]
        copies = {id(other): other for other in same if other is not latest}.values()
        # One redaction, one event in the session, however often the message stands in the conversation.
        to_send = [
            self.work.change(redacted, body, copies=True, guardrail_event=event if redacted is latest else None)
            for redacted in [*copies, latest]
        ]
        return any(to_send)

    def _append(self, message: Message, agent: Any, *, from_agent: bool, is_said: bool = False) -> None:
        # A message that is refused here is the latest all the same: no other is to be redacted in its place.
        self._known.last = None
        body, size, blobs = self._body(message)
        role = message["role"]
        carries_results = documents.has_tool_result(message)
        body["turn_id"], begins_turn = self._turns.of_message(
            role, from_agent=from_agent, carries_results=carries_results
        )
        answer = event = None
        if role == "assistant":
            answer = self._costs.of_answer(message, agent, from_agent=from_agent)
            if answer.metrics is not None:
                body["event_loop_metrics"] = answer.metrics
            if from_agent:
                self._said.append(message)
                if (event := self.guardrail.of_answer(message)) is not None:
                    body["guardrail_event"] = event
        elif not carries_results:
            self._said = []
        calls = self._tool_calls.carried_by(message, agent.messages) if from_agent and carries_results else []
        totals = self._costs.growth(starts_turn=begins_turn and is_said, answer=answer, calls=calls)
        tracked = self.work.append(body, size, message, totals, blobs, event)
        if answer is not None:
            answer.tracked = tracked

    def _body(self, message: Message) -> tuple[Document, int, PendingBlobs | None]:
        """Return what is stored of a message, its size in bytes, and the blobs that were taken out of it."""
        # Its own: a message may be appended by hand in another thread while this one is encoded.
        blobs = PendingBlobs(self.work.blob_threshold)
        try:
            where = f"agent_id={self._conversation.agent_id!r} message"
            body, size = documents.measured_body(message, where, blobs)
        except Exception:
            self._costs.forget_override()
            raise
        return body, size, blobs if blobs.blobs else None

    def _replace(self, tracked: TrackedMessage, message: Message) -> None:
        """Stage a message in the place of a known one."""
        tracked.source = message
        body, _, blobs = self._body(message)
        self.work.change(tracked, body, blobs)

    def _has_said(self, text: str) -> bool:
        """Return whether this is what the assistant said last, or all that it has said in this turn."""
        said = [documents.message_text(message) for message in self._said]
        return bool(said) and text in (said[-1], "".join(said))

    def _correct(self, message: Message | None) -> None:
        if (correction := self._costs.correct(message)) is not None:
            self.work.put(correction)

    def _recognise(self, expected: Expected, message: Message) -> None:
        """Take Strands' message for the one that was appended by hand just before."""
        body = expected.body
        # Nobody has seen the id that Strands gave it a moment ago; this one is stored.
        message["tracking_id"] = body["tracking_id"]
        before = fingerprint(documents.text_blocks(expected.tracked.source["content"]))
        expected.tracked.source = message
        self._turns.join(body["turn_id"])
        if fingerprint(documents.text_blocks(message["content"])) != before:
            self._replace(expected.tracked, message)

    # --- the agent's record and late metrics ------------------------------------------------------------------------

    def stage_agent(self, agent: Any) -> None:
        """Stage what has changed in the agent's record."""
        fields = agent_fields(agent)
        riding = None
        if trims_by_itself(agent):
            settings = {**fields["conversation_manager_state"], "removed_message_count": None}
            if settings == self._window_settings:
                # Only the window may have moved: `restore` moves it again. That is not worth a command.
                riding = "conversation_manager_state"
            self._window_settings = settings
        self.work.stage(fields, riding)
        self.work.look_at_state(agent.state)

    def stage_agent_if_alive(self) -> None:
        """Stage what has changed in the agent's record since its last event, if the agent is still there."""
        agent = self._agent()
        if agent is not None:
            self.stage_agent(agent)

    def stage_late_metrics(self, agent: Any) -> None:
        """Give an answer that was appended by hand the metrics by which the agent's have grown, once."""
        if (late := self._costs.late_metrics(agent)) is not None:
            self.work.put(late)


def _is_same(expected: Expected, message: Message) -> bool:
    """Return whether Strands' message is the one that was appended by hand: the same text, or the same content."""
    if expected.text:
        return expected.text == documents.message_text(message)
    one, other = expected.tracked.source["content"], message["content"]
    return fingerprint(documents.text_blocks(one)) == fingerprint(documents.text_blocks(other))
