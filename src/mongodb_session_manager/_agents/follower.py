"""Follows one agent: what each of Strands' events, and a message by hand, brings into the agent's unit of work.

All of this runs on the agent's event loop, so all of it is cheap, and nothing here sends a command.
"""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bson import ObjectId
from strands.hooks import AfterModelCallEvent
from strands.types.content import Message

from .._model import documents
from .._model.documents import Document, StoredAgent
from .._model.encoding import PendingBlobs, encode, fingerprint
from .._model.guardrails import INTERVENED
from .._model.keys import check_tracking_id
from .._model.limits import EARLY_COMMIT_BYTES
from .._statements.commits import TrackedMessage
from ..errors import MongoDBSessionError, UnstorableValueError
from ..telemetry import Observer
from .answer_costs import AnswerCosts, MetricsOverride
from .interventions import Interventions
from .record import agent_fields, give_tracking_id, session_agent
from .restore import restore
from .slots import Slot
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
    _follows_an_agent = False

    def __init__(
        self, work: AgentWork, *, by_turn: bool, override: MetricsOverride, observer: Observer | None = None
    ) -> None:
        self.work = work
        self.guardrail = Interventions(work)
        self._conversation = work.conversation
        self._live = work.conversation.live
        # The application may append by hand, or flush, in another thread than the agent's.
        self._lock = threading.RLock()
        self._by_turn = by_turn
        self._turns = Turns()
        self._costs = AnswerCosts(work.conversation.key, override, observer)
        self._tool_calls = ToolCalls()
        # What the assistant has said since the user spoke last.
        self._said: list[Message] = []
        # What was logged without an event since the last turn: one may yet come.
        self._logged_early: list[Slot] = []

    # --- the beginning ----------------------------------------------------------------------------------------------

    def created_with_session(self, agent: Any) -> None:
        """Take note that the agent was stored together with a new session, as it is."""
        count = len(agent.messages)
        self._live.restored(list(range(count)), agent.messages, count - 1 if count else None)
        self._conversation.next_message_id = self._conversation.embedded.count = count
        self._follow_new(agent)

    def create(self, agent: Any) -> None:
        """Put a new agent, and the messages it was built with, into the next commit."""
        blobs = PendingBlobs(self.work.blob_threshold)
        self.work.create(documents.agent_data(session_agent(agent), blobs), blobs)
        self._live.look(agent)
        self._log_fresh(agent)
        self._follow_new(agent)

    def restore(self, agent: Any, stored: StoredAgent, repair: Callable[[list[Message]], list[Message]]) -> None:
        """Make the agent what is stored of it; see ``restore``."""
        self._turns.last_id = restore(self.work, agent, stored, repair)
        self._follow(agent)

    def _follow_new(self, agent: Any) -> None:
        self.work.fields.stored(agent_fields(agent))
        self.work.fields.stored_state(agent.state, agent.state.get())
        self._follow(agent)

    def _follow(self, agent: Any) -> None:
        self._agent = weakref.ref(agent)
        self._follows_an_agent = True
        self._costs.follow(agent)

    # --- turns and calls --------------------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """Take note that an invocation begins."""
        self._turns.begin()
        self._said = []
        self._logged_early.clear()

    def end_turn(self, agent: Any) -> BaseException | None:
        """Take note that an invocation is over; return the error that ended it, if one did."""
        error = self._turns.end()
        self._costs.forget()
        self.guardrail.forget()
        if not self._turns.is_running(agent) and not is_interrupted(agent):
            self._tool_calls.forget()
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
        """Stage a message that was added to the live conversation; every event appends, but for what is known here."""
        with self._lock:
            self._live.look(agent)
            try:
                self._log_fresh(agent, before=message)
            finally:  # What cannot be stored does not keep this message from it.
                self._message_added(message, agent, by_hand=by_hand)

    def _message_added(self, message: Message, agent: Any, *, by_hand: bool) -> None:
        slot = self._live.slot_of(message)
        if slot is not None and not slot.fresh:
            if any(slot is early for early in self._logged_early):
                return  # It was logged, by a flush in another thread, before Strands has told of it.
            if slot.copied and (tracked := self._tracked(slot)) is not None:
                # A continuation: it is longer than what stood there.
                slot.copied, slot.form, slot.logged_form = False, None, None
                self._replace(tracked, message)
                return
            if by_hand or slot.by_hand:
                slot.by_hand = False  # It was logged as this very occurrence.
                return
            slot = self._live.occurs_again(message)
        elif slot is not None and self._expected is None and self._was_noted(slot, told=True):
            return
        if self._expected is not None and message["role"] == "user":
            expected, self._expected = self._expected, None
            refused = expected.tracked.commit is None and expected.tracked.message_id is None
            if not refused and _is_same(expected, message):
                self._recognise(expected, message)
                return
        # Outside a turn Strands appends what tells of a direct call of a tool; no user has said it.
        is_said = by_hand or self._turns.is_running(agent)
        self._append(message, agent, from_agent=True, is_said=is_said, slot=slot)
        if by_hand and slot is not None:
            slot.by_hand = True

    def message_updated(self, tracking_id: str, message: Message, agent: Any) -> None:
        """Stage the replacement of a message: a transcript that is complete now."""
        with self._lock:
            self._live.look(agent)
            if known := self._live.with_id(tracking_id):
                if (slot := self._live.slot_of(message)) is not None:
                    slot.copied, slot.form, slot.logged_form = False, None, None
                self._replace(known[-1], message)

    def append_by_hand(self, message: Message, agent: Any) -> None:
        """Stage a message of the application's own, unless Strands has appended it or is about to."""
        with self._lock:
            if any(message is live for live in agent.messages):
                give_tracking_id(message)
                self.message_added(message, agent, by_hand=True)
                if message["role"] == "assistant":
                    self._correct(message)
                return
            last, self._live.last = self._live.last, None  # As in `_append`.
        body, size, blobs = self._body(message)  # Not under the lock: it takes time.
        with self._lock:
            self._live.look(agent)
            self._append_note(message, agent, body, size, blobs, last)

    def _append_note(
        self,
        message: Message,
        agent: Any,
        body: Document,
        size: int,
        blobs: PendingBlobs | None,
        last: TrackedMessage | None,
    ) -> None:
        text = documents.message_text(message)
        role = message["role"]
        only_text = text and all("text" in block for block in body["content"])
        if role == "assistant" and only_text and self._has_said(text):
            self._live.last = last
            self._correct(self._said[-1] if text == documents.message_text(self._said[-1]) else None)
            return
        # Strands gives each message such an id when it appends it; the two will be one message.
        body["tracking_id"] = body.get("tracking_id") or str(uuid.uuid4())
        in_cycle = self._live.waits_for_results()
        body["turn_id"] = ObjectId() if in_cycle else self._turns.of_message_by_hand(role)
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
        if not self._turns.is_running(agent):  # In a turn Strands may be about to tell of it.
            self._log_fresh(agent)
        tracked = self.work.append(body, size, message, totals, blobs)
        self._live.note(tracked)
        if role == "user":
            self._said = []
            self._expected = Expected(tracked, text, body)
        elif answer is not None:
            self._expected = None
            answer.tracked = tracked

    def _log_fresh(self, agent: Any, before: Message | None = None) -> None:
        """Log what was appended to the live conversation without an event; only what comes before a message."""
        refused: Exception | None = None
        for slot in self._live.fresh(before):
            if self._was_noted(slot, told=False):
                continue
            give_tracking_id(slot.message)
            try:
                self._append(slot.message, agent, from_agent=False, slot=slot)
            except (UnstorableValueError, TypeError) as error:
                refused = refused or error
            if before is None:
                self._logged_early.append(slot)
        if refused is not None:
            raise refused

    def _was_noted(self, slot: Slot, *, told: bool) -> bool:
        """Return, and note, whether a message was appended by hand before it was in the live conversation."""
        if (note := self._live.note_of(slot, told=told)) is None:
            return False
        if note.tracking_id is not None:
            slot.message["tracking_id"] = note.tracking_id
        self._live.is_live_now(note, slot.message)
        return True

    def _tracked(self, slot: Slot) -> TrackedMessage | None:
        if isinstance(slot.ref, int):
            slot.ref = TrackedMessage(slot.ref, slot.message, slot.message.get("tracking_id"))
        return slot.ref

    def redact_latest(self, redact_message: Message, agent: Any) -> bool:
        """Replace the content of the message that was appended last; return whether that is to be sent now.

        Raises:
            MongoDBSessionError: The agent has no message, or its latest was refused and is stored nowhere.
            TypeError: The ``tracking_id`` is no text.
        """
        with self._lock:
            return self._redact_latest(redact_message, agent)

    def _redact_latest(self, redact_message: Message, agent: Any) -> bool:
        tracking_id = check_tracking_id(redact_message)
        self._live.look(agent)
        fresh = [slot.message.get("tracking_id") for slot in self._live.fresh()]
        if tracking_id is None or tracking_id in fresh:
            self._log_fresh(agent)  # Strands' latest may be a guidance that it has told of by no event.
        latest = self._live.last
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
        same = self._live.with_id(tracking_id)
        if same and latest not in same:
            # Strands means its own latest message; behind that stands one that was appended by hand.
            latest = same[-1]
        # So may a message that was appended by hand twice; each time it got an id of its own.
        same = [*same, *self._live.made_of(redact_message), *self._live.made_of(latest.source)]
        copies = {id(other): other for other in same if other is not latest}.values()
        for redacted in [*copies, latest]:
            self._live.redacted(redacted)
            self.work.hold_nothing_of(redacted)
        # One redaction, one event in the session, however often the message stands in the conversation.
        to_send = [
            self.work.change(redacted, body, copies=True, guardrail_event=event if redacted is latest else None)
            for redacted in [*copies, latest]
        ]
        return any(to_send)

    def _append(
        self, message: Message, agent: Any, *, from_agent: bool, is_said: bool = False, slot: Slot | None = None
    ) -> None:
        # A message that is refused here is the latest all the same: no other is to be redacted in its place.
        self._live.last = None
        if slot is not None:
            slot.fresh, slot.refused = False, True  # Unless it can be stored.
        body, size, blobs = self._body(message)
        if slot is not None:
            slot.refused = False
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
        if not from_agent and self._follows_an_agent:
            body["origin"] = "context"
        tracked = self.work.append(body, size, message, totals, blobs, event)
        if slot is not None:
            self._live.log(slot, tracked)
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
        self._live.is_live_now(expected.tracked, message)
        self._turns.join(body["turn_id"])
        if fingerprint(documents.text_blocks(message["content"])) != before:
            self._replace(expected.tracked, message)

    # --- the agent's record and late metrics ------------------------------------------------------------------------

    def stage_agent(self, agent: Any) -> None:
        """Stage what has changed in the agent's record and in what is live."""
        with self._lock:
            is_over = not self._turns.is_running(agent)
            self._live.look(agent)
            if is_over:
                self._log_fresh(agent)
            fields = agent_fields(agent)
            marks = self.work.fields.changed(fields)
            # The state of the conversation manager and the view are written together: those of two writers do not fit.
            archived = self._conversation.embedded.archived
            due = self._live.to_store(agent, archived, is_due="conversation_manager_state" in marks, is_over=is_over)
            self.work.stage(fields, marks, due)
            self.work.look_at_state(agent.state)

    def stage_agent_if_alive(self) -> None:
        """Stage what has changed in the agent since its last event, if the agent is still there."""
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
