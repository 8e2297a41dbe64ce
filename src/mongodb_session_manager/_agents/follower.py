"""Follows one agent: what each of Strands' events brings into the agent's unit of work.

All of this runs on the agent's event loop, so all of it is cheap, and nothing here sends a command.
"""

from __future__ import annotations

import sys
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bson import ObjectId
from strands import Agent
from strands.hooks import AfterModelCallEvent
from strands.types.content import Message

from .._model import documents
from .._model.documents import Document, StoredAgent
from .._model.encoding import encode, fingerprint
from .._model.guardrails import INTERVENED, facts_of_stop_reason, guardrail_event
from .._model.keys import check_tracking_id
from .._model.limits import EARLY_COMMIT_BYTES
from .._model.metrics import ToolCall, Totals, message_metrics, usage_since
from .._model.pending_blobs import PendingBlobs
from .._store.session_commands import now
from ..errors import MongoDBSessionError
from ..telemetry import Observer
from .metrics_override import Given, MetricsOverride
from .operations import Entry, LateMetricsOperation
from .record import (
    accumulated_latency,
    accumulated_usage,
    agent_fields,
    give_tracking_id,
    model_id_of,
    session_agent,
    trims_by_itself,
)
from .restore import restore
from .unit_of_work import AgentWork


@dataclass(frozen=True)
class Expected:
    """A user's message that was appended by hand; Strands may be about to append the same one.

    Attributes:
        entry: Where it waits or is stored.
        text: Its text.
        body: What was stored of it.
    """

    entry: Entry
    text: str
    body: Document


@dataclass
class Answer:
    """The answer that an agent gave last.

    Attributes:
        message: Strands' message.
        entry: Where it waits or is stored.
        model: Whose it is.
        metrics: What is stored of its cost.
    """

    message: Message
    entry: Entry
    model: str | None
    metrics: Document | None


@dataclass(frozen=True)
class Lacking:
    """An answer that was appended by hand, without what Strands counts of it.

    Attributes:
        entry: Where it waits or is stored.
        given: What the application has said of it, if it has.
        metrics: What is stored of its cost by that.
    """

    entry: Entry
    given: Given | None
    metrics: Document | None


class AgentFollower:
    """Turns the events of one agent into its unit of work.

    Args:
        work: The agent's unit of work.
        by_turn: Whether messages wait for the end of their turn (``durability="turn"``).
        override: What the application has said of the next answer, of whichever agent of the manager.
        observer: Who is told what answers have used, if anybody.

    Attributes:
        work: The agent's unit of work.
        outer_error: An exception that was being handled when the turn began: not the turn's own.
    """

    # What most agents begin with stands here: a follower is made for each request.
    outer_error: BaseException | None = None
    _agent: Callable[[], Any] = staticmethod(lambda: None)
    _in_turn = False
    _turn_has_begun = False
    # None: the next message makes one.
    _turn_id: ObjectId | None = None
    # The turn of the message before; below, what the assistant has said in it.
    _last_turn_id: ObjectId | None = None
    _last_answer: Answer | None = None
    # Appended by hand: the user's message Strands is about to append, the answer that lacks metrics.
    _expected: Expected | None = None
    _lacking_metrics: Lacking | None = None
    _counted_latency: float = 0
    _window_settings: Document | None = None
    _model_call_began: float | None = None
    _model_call_ms: float | None = None
    # The last model call, until its answer is a message.
    _answered: AfterModelCallEvent | None = None
    # The answer of a model call in which a guardrail intervened; below, what is known of that, and its redactions.
    _intervened: Message | None = None

    def __init__(
        self, work: AgentWork, *, by_turn: bool, override: MetricsOverride, observer: Observer | None = None
    ) -> None:
        self.work = work
        self._observer = observer
        self._override = override
        self._by_turn = by_turn
        self._where = f"agent_id={work.agent_id!r} message"
        self._said: list[Message] = []
        self._counted_usage: dict[str, float] = {}
        # What answers used that were made anew, by model: the next message brings it into the totals.
        self._discarded: list[tuple[str | None, Document]] = []
        self._tool_call_began: dict[str, float] = {}
        self._tool_calls: dict[str, ToolCall] = {}
        # The last answer that was appended by hand; it may ask for tools, and is not in the live conversation.
        self._asked_by_hand: list[Message] = []
        self._guardrail_facts: Document = {}
        self._redactions: list[Document] = []

    # --- the beginning ----------------------------------------------------------------------------------------------

    def created_with_session(self, agent: Any) -> None:
        """Take note that the agent was stored together with a new session, as it is."""
        self.work.know(range(len(agent.messages)), agent.messages)
        self.work.next_message_id = self.work.embedded.count = len(agent.messages)
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
        """Make the agent what is stored of it, the way Strands' own session managers do.

        Args:
            agent: The agent.
            stored: What is stored of it.
            read_from: Reads the stored messages from a position on, where the window begins too late.
            repair: Strands' repair of tool uses without results.
        """
        self._last_turn_id = restore(self.work, agent, stored, read_from, repair)
        self._follow(agent)

    def _follow_new(self, agent: Any) -> None:
        self.work.is_staged(agent_fields(agent))
        self.work.watch_state(agent.state, agent.state.get())
        self._follow(agent)

    def _follow(self, agent: Any) -> None:
        self._agent = weakref.ref(agent)
        self._counted_usage = accumulated_usage(agent)
        self._counted_latency = accumulated_latency(agent)

    # --- turns and calls --------------------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """Take note that an invocation begins."""
        self._in_turn = True
        self._turn_has_begun = False
        self._turn_id = None
        self._said = []
        self.outer_error = sys.exc_info()[1]

    def end_turn(self, agent: Any) -> BaseException | None:
        """Take note that an invocation is over; return the error that ended it, if one did."""
        self._in_turn = self._turn_has_begun = False
        self._answered = None
        self._override.forget()
        self._forget_guardrail()
        if not self._is_in_turn(agent) and not _is_interrupted(agent):
            # No message tells of them any more: a tool had called them.
            self._tool_calls.clear()
        self.work.prune(agent.messages)
        error, outer_error = sys.exc_info()[1], self.outer_error
        self.outer_error = None
        # An exception that was being handled before the turn began is somebody else's.
        return None if error is outer_error else error

    def waits(self, agent: Any) -> bool:
        """Return whether what is staged waits for the end of the turn."""
        in_turn = self._in_turn or self._is_in_turn(agent)
        return self._by_turn and in_turn and self.work.waiting_bytes < EARLY_COMMIT_BYTES

    def _is_in_turn(self, agent: Any) -> bool:
        # A BidiAgent tells no beginning of a turn: while it runs, it is in one.
        return self._in_turn or (not isinstance(agent, Agent) and getattr(agent, "_started", True))

    def model_call_begins(self) -> None:
        """Start the clock for a provider that reports no latency."""
        self._discard()
        self._intervened = None
        self._model_call_began = time.perf_counter()

    def model_call_ends(self, event: AfterModelCallEvent) -> None:
        """Stop it, and take note of an answer whose model call a guardrail has stopped."""
        # For a callback may have failed before the next call began.
        self._discard()
        if self._model_call_began is not None:
            self._model_call_ms = (time.perf_counter() - self._model_call_began) * 1000
        if (answer := event.stop_response) is None:
            return
        self._answered = event
        if answer.stop_reason == INTERVENED:
            self._intervened = answer.message
            self.guardrail_said(facts_of_stop_reason(answer.stop_reason))

    def _discard(self) -> None:
        """Take note of an answer in whose place another is made: it was paid for, and no message will carry it."""
        event, self._answered = self._answered, None
        if event is None or event.stop_response is None or not event.retry:
            return
        metrics = _own_metrics(event.stop_response.message, self._model_call_ms)
        if metrics is not None:
            self._discarded.append((model_id_of(event.agent), metrics))
            # Strands counts its tokens, and not its latency.
            self._count({**metrics, "accumulated_metrics": {}})

    def tool_call_begins(self, tool_use_id: str, agent: Any) -> None:
        """Start the clock of a tool."""
        if not self._is_in_turn(agent) and not _is_interrupted(agent):
            # Whether a direct call becomes messages is not told; that of the one before has by now.
            self._tool_calls.clear()
        self._tool_call_began[tool_use_id] = time.perf_counter()

    def tool_call_ends(self, tool_use_id: str, name: str) -> None:
        """Stop it; the call is counted with the message that carries its result."""
        began = self._tool_call_began.pop(tool_use_id, None)
        took = None if began is None else round((time.perf_counter() - began) * 1000, 3)
        self._tool_calls[tool_use_id] = ToolCall(name, milliseconds=took)

    # --- guardrails -------------------------------------------------------------------------------------------------

    def watch_for_trace(self, facts: Document) -> None:
        """Take note that a model call begins whose stream may hold a guardrail's trace, and what is known before."""
        self._forget_guardrail()
        self._guardrail_facts = facts

    def guardrail_said(self, facts: Document) -> None:
        """Take note of what a guardrail says of its intervention; redactions that wait to be sent get it, too."""
        self._guardrail_facts = {**self._guardrail_facts, **facts}
        for index, event in enumerate(self._redactions):
            completed = self._redactions[index] = {**event, **facts}
            self.work.complete(event, completed)

    def _forget_guardrail(self) -> None:
        self._guardrail_facts = {}
        self._redactions = []

    # --- messages ---------------------------------------------------------------------------------------------------

    def message_added(self, message: Message, agent: Any, *, by_hand: bool = False) -> None:
        """Stage a message that was added to the live conversation, unless it is known."""
        tracking_id = message.get("tracking_id")
        if known := self.work.known(tracking_id):
            # Whatever is in the conversation as often as it is stored was appended before, or is a continuation: a
            # longer message in its place, under its id. A prompt that is tried again is in it once more.
            live = sum(1 for other in agent.messages if other.get("tracking_id") == tracking_id)
            if 0 < live <= len(known):
                if known[-1].source is not message:
                    known[-1].source = message
                    self._replace(known[-1], message)
                return
        if self._expected is not None and message["role"] == "user":
            expected, self._expected = self._expected, None
            refused = expected.entry.commit is None and expected.entry.message_id is None
            if not refused and _is_same(expected, message):
                self._recognise(expected, message)
                return
        # Outside a turn Strands appends what tells of a direct call of a tool; no user has said it.
        self._append(message, agent, from_agent=True, is_said=by_hand or self._in_turn or self._is_in_turn(agent))

    def message_updated(self, tracking_id: str, message: Message) -> None:
        """Stage the replacement of a message: a transcript that is complete now."""
        if known := self.work.known(tracking_id):
            known[-1].source = message
            self._replace(known[-1], message)

    def append_by_hand(self, message: Message, agent: Any) -> None:
        """Stage a message of the application's own, unless Strands has appended it or is about to."""
        if any(message is live for live in agent.messages):
            self.message_added(message, agent, by_hand=True)
            if message["role"] == "assistant":
                self._correct_answer(message)
            return
        last, self.work.last = self.work.last, None  # As in `_append`.
        body, size, blobs = self._body(message)
        text = documents.message_text(message)
        role = message["role"]
        only_text = text and all("text" in block for block in body["content"])
        if role == "assistant" and only_text and self._has_said(text):
            self.work.last = last
            self._correct_answer(self._said[-1] if text == documents.message_text(self._said[-1]) else None)
            return
        if role == "user" and not self._in_turn:
            self._turn_id = None
        # Strands gives each message such an id when it appends it; the two will be one message.
        body["tracking_id"] = body.get("tracking_id") or str(uuid.uuid4())
        self._turn_id = self._turn_id or ObjectId()
        body["turn_id"] = self._last_turn_id = self._turn_id
        own = metrics = given = None
        calls = self._finished_calls(message, agent) if documents.has_tool_result(message) else []
        if role == "assistant":
            self._asked_by_hand = [message]
            own = metrics = _own_metrics(message, None)
            if self._override and (given := self._override.take()):
                metrics = given.replace_in(own)
        if metrics is not None:
            body["event_loop_metrics"] = metrics

        totals = self._totals(starts_turn=role == "user" and not documents.has_tool_result(message))
        if metrics is not None:
            totals.add_model_call(model_id_of(agent), metrics)
        for call in calls:
            totals.add_tool_call(call)
        entry = self.work.append(body, size, message, totals, blobs)
        if role == "user":
            self._said = []
            self._expected = Expected(entry, text, body)
        elif role == "assistant":
            self._expected = None
            if own is None:
                self._lacking_metrics = Lacking(entry, given, metrics)

    def redact_latest(self, redact_message: Message) -> bool:
        """Replace the content of the message that was appended last; return whether that is to be sent now.

        Raises:
            MongoDBSessionError: The agent has no message, or its latest was refused and is stored nowhere.
            TypeError: The ``tracking_id`` is no text.
        """
        tracking_id = check_tracking_id(redact_message)
        entry = self.work.last
        if entry is None:
            raise MongoDBSessionError(
                f"agent_id={self.work.agent_id!r} has no message to redact: its latest is not stored"
            )
        role = redact_message["role"]
        # Nothing of it becomes a blob: several messages may get it, and a blob belongs to one.
        content = encode(documents.text_blocks(redact_message["content"]), "redact_message['content']")
        documents.check_size({"content": content}, "redact_message")
        event = guardrail_event("redacted", role, now(), self._guardrail_facts)
        body: Document = {
            "role": role,
            "content": content,
            "redact_message": {"role": role, "content": content},
            "guardrail_event": event,
        }
        # A prompt that was tried again may stand in the conversation twice, under one tracking id.
        same = self.work.known(tracking_id)
        if same and entry not in same:
            # Strands means its own latest message; behind that stands one that was appended by hand.
            entry = same[-1]
        # So may a message that was appended by hand twice; each time it got an id of its own.
        same = [*same, *self.work.made_of(redact_message), *self.work.made_of(entry.source)]
        entries = {id(other): other for other in same if other is not entry}.values()
        # One redaction, one event in the session, however often the message stands in the conversation.
        to_send = [
            self.work.change(redacted, body, copies=True, guardrail_event=event if redacted is entry else None)
            for redacted in [*entries, entry]
        ]
        if self._in_turn:
            self._redactions.append(event)
        else:
            self._forget_guardrail()
        return any(to_send)

    def _append(self, message: Message, agent: Any, *, from_agent: bool, is_said: bool = False) -> None:
        # A message that is refused here is the latest all the same: no other is to be redacted in its place.
        self.work.last = None
        body, size, blobs = self._body(message)
        role = message["role"]
        carries_results = documents.has_tool_result(message)
        begins_turn = from_agent and role == "user" and not carries_results and not self._turn_has_begun
        if from_agent and self._in_turn and not self._turn_has_begun and carries_results and self._last_turn_id:
            # An interrupted turn goes on: its tool results belong to the tool uses that were stored before.
            self._turn_id = self._last_turn_id
        elif self._turn_id is None or (begins_turn and not self._in_turn):
            self._turn_id = ObjectId()
        if from_agent:
            self._turn_has_begun = self._in_turn
        body["turn_id"] = self._last_turn_id = self._turn_id
        metrics = model = None
        if role == "assistant":
            model = model_id_of(agent)
            if from_agent:
                self._answered = None
                self._said.append(message)
            metrics = _own_metrics(message, self._model_call_ms)
            self._model_call_ms = None
            if metrics is not None and from_agent:
                self._count(metrics)
            if from_agent and self._override and (given := self._override.take()):
                metrics = given.replace_in(metrics)
            if metrics is not None:
                body["event_loop_metrics"] = metrics
        elif not carries_results:
            self._said = []
        event = None
        if role == "assistant" and from_agent:
            if message is self._intervened:
                event = body["guardrail_event"] = guardrail_event("intervened", role, now(), self._guardrail_facts)
            self._forget_guardrail()
        calls = self._finished_calls(message, agent) if from_agent and carries_results else []
        totals = self._totals(starts_turn=begins_turn and is_said)
        if metrics is not None:
            totals.add_model_call(model, metrics)
        for call in calls:
            totals.add_tool_call(call)
        entry = self.work.append(body, size, message, totals, blobs, event)
        if role == "assistant":
            self._last_answer = Answer(message, entry, model, metrics) if from_agent else None

    def _totals(self, *, starts_turn: bool) -> Totals:
        """Return what a message adds to the running totals, and with it the answers that were made anew before."""
        totals = Totals()
        totals.add_message(starts_turn)
        if self._discarded:
            discarded, self._discarded = self._discarded, []
            for model, metrics in discarded:
                totals.add_model_call(model, metrics)
        return totals

    def _body(self, message: Message) -> tuple[Document, int, PendingBlobs | None]:
        """Return what is stored of a message, its size in bytes, and the blobs that were taken out of it."""
        # Its own: a message may be appended by hand in another thread while this one is encoded.
        blobs = PendingBlobs(self.work.blob_threshold)
        try:
            body, size = documents.measured_body(message, self._where, blobs)
        except Exception:
            # What was said of this message is true of no other.
            self._override.forget()
            raise
        return body, size, blobs if blobs.blobs else None

    def _replace(self, entry: Entry, message: Message) -> None:
        """Stage a message in the place of a known one."""
        body, _, blobs = self._body(message)
        self.work.change(entry, body, blobs)

    def _has_said(self, text: str) -> bool:
        """Return whether this is what the assistant said last, or all that it has said in this turn."""
        said = [documents.message_text(message) for message in self._said]
        return bool(said) and text in (said[-1], "".join(said))

    def _correct_answer(self, message: Message | None) -> None:
        """Give an answer that is staged or stored the counts that are said now, if it is the last one.

        It has its time already, so a stopwatch is forgotten; so are counts that are no single answer's (None).
        """
        given, answer = self._override.take(), self._last_answer
        if given is None or given.tokens is None or answer is None or answer.message is not message:
            return
        before, metrics = answer.metrics, replace(given, began=None).replace_in(answer.metrics)
        totals = Totals()
        if before is None:
            totals.add_model_call(answer.model, metrics)
        else:
            totals.add_tokens(answer.model, metrics)
            totals.add_tokens(answer.model, before, sign=-1)
        answer.metrics = metrics
        self.work.put(LateMetricsOperation(self.work.key, answer.entry, metrics, totals, before))

    def _recognise(self, expected: Expected, message: Message) -> None:
        """Take Strands' message for the one that was appended by hand just before."""
        body = expected.body
        # Nobody has seen the id that Strands gave it a moment ago; this one is stored.
        message["tracking_id"] = body["tracking_id"]
        before = fingerprint(documents.text_blocks(expected.entry.source["content"]))
        expected.entry.source = message
        self._turn_id = body["turn_id"]
        self._turn_has_begun = self._in_turn
        if fingerprint(documents.text_blocks(message["content"])) != before:
            self._replace(expected.entry, message)

    def _finished_calls(self, message: Message, agent: Any) -> list[ToolCall]:
        """Return the tool calls whose results a message carries.

        Those that were not seen, of another process for instance, are known by the answer that asked for them.
        """
        calls = []
        for block in message["content"]:
            result = block.get("toolResult") if isinstance(block, dict) else None
            if not isinstance(result, dict) or not isinstance(tool_use_id := result.get("toolUseId"), str):
                continue
            call = self._tool_calls.pop(tool_use_id, None)
            if call is None and (name := _tool_name(tool_use_id, [*agent.messages, *self._asked_by_hand])) is not None:
                call = ToolCall(name)
            if call is not None:
                call.failed = result.get("status") == "error"
                calls.append(call)
        return calls

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
        lacking = self._lacking_metrics
        if lacking is None:
            return
        grown = usage_since(accumulated_usage(agent), self._counted_usage)
        latency = max(0.0, accumulated_latency(agent) - self._counted_latency)
        metrics = message_metrics(grown, {"latencyMs": latency}, self._model_call_ms) if grown else None
        if metrics is None:
            return
        self._lacking_metrics = None
        self._count(metrics)
        totals = Totals()
        if lacking.given is None:
            totals.add_model_call(model_id_of(agent), metrics)
        elif lacking.given.tokens is None:
            # Its time is stored, and it is counted as an answer; what it lacks are its tokens.
            assert lacking.metrics is not None
            metrics = {**metrics, "accumulated_metrics": lacking.metrics["accumulated_metrics"]}
            totals.add_tokens(model_id_of(agent), metrics)
        else:
            return  # The application knows better.
        self.work.put(LateMetricsOperation(self.work.key, lacking.entry, metrics, totals, lacking.metrics))

    def _count(self, metrics: Document) -> None:
        if self._observer is not None:
            self._observer.tokens_used(metrics["accumulated_usage"])
        for name, value in metrics["accumulated_usage"].items():
            self._counted_usage[name] = self._counted_usage.get(name, 0) + value
        self._counted_latency += metrics["accumulated_metrics"].get("latencyMs", 0)


def _is_same(expected: Expected, message: Message) -> bool:
    """Return whether Strands' message is the one that was appended by hand: the same text, or the same content."""
    if expected.text:
        return expected.text == documents.message_text(message)
    one, other = expected.entry.source["content"], message["content"]
    return fingerprint(documents.text_blocks(one)) == fingerprint(documents.text_blocks(other))


def _tool_name(tool_use_id: str, messages: list[Message]) -> str | None:
    """Return which tool the latest of these messages with such a tool use asks for, or None if none does."""
    for message in reversed(messages):
        content = message.get("content")
        for block in content if isinstance(content, list) else []:
            tool_use = block.get("toolUse") if isinstance(block, dict) else None
            if isinstance(tool_use, dict) and tool_use.get("toolUseId") == tool_use_id:
                name = tool_use.get("name")
                return name if isinstance(name, str) else None
    return None


def _is_interrupted(agent: Any) -> bool:
    """Return whether the agent's turn will go on with an answer to an interrupt."""
    state = getattr(agent, "_interrupt_state", None)  # Not every kind of agent in every version has one.
    return bool(state and state.activated)


def _own_metrics(message: Message, measured_ms: float | None) -> Document | None:
    """Return the metrics that Strands has attached to a message: those of the one call that made it."""
    metadata: Mapping[str, Any] = message.get("metadata") or {}
    return message_metrics(metadata.get("usage"), metadata.get("metrics"), measured_ms)
