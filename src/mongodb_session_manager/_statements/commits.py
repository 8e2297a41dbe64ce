"""One commit: messages, changed fields, a new agent; and what tells a writer whose append did not match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bson import ObjectId

from .._model.documents import Document, message_document, new_agent
from .._model.encoding import PendingBlobs
from .._model.keys import decode_key
from .._model.limits import MAX_GUARDRAIL_EVENTS
from .._model.metrics import Totals, summed
from .expressions import count_of, counter_is, for_each_message, messages_of, messages_with_id, number_at
from .live import LiveView
from .sessions import SessionRef, Update


@dataclass(slots=True, eq=False, repr=False)
class TrackedMessage:
    """One message of a conversation, stored or waiting to be.

    Attributes:
        message_id: Its id once it is stored; None before.
        source: The live message object it was made from; None for a repository's.
        tracking_id: The id that Strands knows it by, if it has one.
        body: While it waits: the stored message without its ``message_id``.
        blobs: While it waits: what of it is too large for the session document.
        totals: While it waits: what it adds to the agent's running totals.
        guardrail_events: While it waits: what is to be listed of it in the session.
        commit: While it waits: what carries it.
        follows: While it waits: the logged message that it follows, in a tuple, ``(None,)`` if it follows none. Empty:
            the one before it in the log.
        turn_id: Its turn, if that is known.
    """

    message_id: int | None
    source: Any
    tracking_id: str | None
    body: Document = field(default_factory=dict)
    blobs: PendingBlobs | None = None
    totals: Totals | None = None
    guardrail_events: tuple[Document, ...] = ()
    commit: Commit | None = None
    follows: tuple[Any, ...] = ()
    turn_id: ObjectId | None = None


@dataclass(eq=False)
class Commit:
    """What one update of a session document carries for one agent: messages, changed fields, the record of a new agent.

    Attributes:
        key: The agent's key in the document.
        messages: The new messages, oldest first.
        creates: The agent's whole ``agent_data`` if the agent is not stored yet, else None.
        fields: Fields of ``agent_data`` that have changed since the agent was created or read, encoded.
        blobs: What of ``creates``, ``fields`` and ``view`` is too large for the session document.
        view: The agent's live view, if it has changed.
        rewrites: The agent's ``rewrites`` as far as the writer knows; it guards a view that has copies of messages.
        first_message_id: The ``message_id`` of the first message; it guards the update. None until it is sent.
        expected_id: The ``message_id`` that the first message was to have, before other writers took it.
        gap_allowed: Whether messages may be missing before ``first_message_id``: the caller has chosen it.
        rebase: Whether to append behind what other writers have stored meanwhile.
        changes: The agent's ``changes`` as far as the writer knows; it guards an update that appends nothing.
        commit_id: Stored on the first message, so that a commit of unknown outcome can be recognised.
        bytes: Size of the messages and fields, without blobs.
        field_bytes: Size of the fields.
        started: Whether it was ever sent: then it may be stored, whatever was heard of it.
        bodies: The messages' bodies as they are sent. A message may be changed while its blobs are uploaded; then the
            rewrite that queues behind finds what was sent.
        message_blobs: Their blobs.
    """

    key: str
    messages: list[TrackedMessage] = field(default_factory=list)
    creates: Document | None = None
    fields: Document = field(default_factory=dict)
    blobs: tuple[PendingBlobs, ...] = ()
    view: LiveView | None = None
    rewrites: int = 0
    first_message_id: int | None = None
    expected_id: int | None = None
    gap_allowed: bool = False
    rebase: bool = False
    changes: int = 0
    commit_id: ObjectId = field(default_factory=ObjectId)
    bytes: int = 0
    field_bytes: int = 0
    started: bool = False
    bodies: list[Document] = field(default_factory=list)
    message_blobs: list[PendingBlobs | None] = field(default_factory=list)

    def start(self) -> None:
        """Take note that it is sent, as it is now."""
        self.started = True
        self.bodies = [message.body for message in self.messages]
        self.message_blobs = [message.blobs for message in self.messages]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to send."""
        return not (self.messages or self.fields or self.view or self.creates is not None)

    def is_behind(self, message_count: float) -> bool:
        """Return whether other writers have stored messages under its ids, or it leaves a gap that it may not leave."""
        first = self.first_message_id or 0
        return bool(self.messages) and first != message_count and not (self.gap_allowed and message_count < first)

    def id_of(self, message: Any) -> int | None:
        """Return the id of a logged message, stored or in this commit; None if it was refused."""
        if not isinstance(message, TrackedMessage):
            return int(message)
        if message.message_id is None and message in self.messages:
            return (self.first_message_id or 0) + self.messages.index(message)
        return message.message_id

    def live_document(self) -> Document | None:
        """Return the view as it is stored; None if the commit carries none."""
        first = self.first_message_id or 0
        others = {first: self.others} if self.messages else {}
        return None if self.view is None else self.view.document(self.id_of, first, others, self.rewrites)

    @property
    def others(self) -> range:
        """The ids that other writers took before the first message."""
        first = self.first_message_id or 0
        return range(first if self.expected_id is None else self.expected_id, first)


def commit(session: SessionRef, work: Commit, now: datetime) -> Update:
    """Return the update that stores everything in ``work``, or nothing of it."""
    live = work.live_document()
    if work.creates is None and not work.messages:
        return agent_fields(session, work.key, work.fields, work.changes, now, live, _as_not_redacted(work))
    first = work.first_message_id or 0
    messages: list[Document] = []
    events: list[Document] = []
    for message_id, (new, body) in enumerate(zip(work.messages, work.bodies, strict=True), first):
        times = body.get("created_at", now), body.get("updated_at", now)
        messages.append(message_document(message_id, body, *times))
        if new.follows and (parent := None if new.follows[0] is None else work.id_of(new.follows[0])) != message_id - 1:
            messages[-1]["parent"] = parent
        events += [intervention(work.key, message_id, event) for event in new.guardrail_events]
    if messages:
        messages[0]["commit_id"] = work.commit_id
    that = None
    agent = f"agents.{work.key}"
    if work.creates is not None:
        update, conditions = _begin_agent(work, work.creates, messages, now)
    elif work.gap_allowed:
        update, conditions = _append(work, messages, now, {"$gte": 0, "$lte": first}, first + len(messages))
        that = _is_count(f"${agent}.message_count")
    else:
        update, conditions = _append(work, messages, now, first)
    if live is not None and work.creates is not None:
        update["$set"][agent]["live"] = live
    elif live is not None:
        update["$set"][f"{agent}.live"] = live
        conditions.update(_as_not_redacted(work))
    if events:
        list_interventions(update, events)
    return session.write(now, update, conditions, that=that)


def _begin_agent(work: Commit, creates: Document, messages: list[Document], now: datetime) -> tuple[Document, Document]:
    agent = f"agents.{work.key}"
    record = new_agent({**creates, **work.fields}, now)
    increments, maxima = _growth(work)
    record["message_count"] = len(messages)
    record["usage"] = _nested({**increments, **maxima})
    record["messages"] = messages
    update: Document = {"$set": {agent: record}, "$addToSet": {"agent_ids": creates["agent_id"]}}
    return update, {agent: {"$exists": False}}


def _append(
    work: Commit, messages: list[Document], now: datetime, guard: Any, message_count: int | None = None
) -> tuple[Document, Document]:
    """Append behind as many messages as ``guard`` says, and set or increment ``message_count``."""
    agent = f"agents.{work.key}"
    changed: Document = {f"{agent}.updated_at": now}
    changed.update({f"{agent}.agent_data.{name}": value for name, value in work.fields.items()})
    increments, maxima = _growth(work, f"{agent}.usage.")
    if message_count is None:
        increments[f"{agent}.message_count"] = len(messages)
    else:
        changed[f"{agent}.message_count"] = message_count
    if work.fields or work.view is not None:
        increments[f"{agent}.changes"] = 1
    update: Document = {"$set": changed, "$push": {f"{agent}.messages": {"$each": messages}}, "$inc": increments}
    if maxima:
        update["$max"] = maxima
    return update, {f"{agent}.message_count": guard}


def _growth(work: Commit, prefix: str = "") -> tuple[Document, Document]:
    return summed([message.totals for message in work.messages if message.totals is not None], prefix)


def _is_count(field: str) -> Document:
    """Match a counter that is a whole number: from another value an update would make a wrong ``message_id``."""
    is_number = {"$in": [{"$type": field}, ["int", "long", "double"]]}
    return {"$and": [is_number, {"$eq": [{"$mod": [number_at(field), 1]}, 0]}]}


def _as_not_redacted(work: Commit) -> Document:
    """Return the condition that no message was replaced since the copies in a commit's view were made."""
    has_copies = work.view is not None and work.view.has_copies
    return counter_is(f"agents.{work.key}.rewrites", work.rewrites) if has_copies else {}


def agent_fields(
    session: SessionRef,
    key: str,
    fields: Mapping[str, Any],
    changes: int,
    now: datetime,
    live: Document | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> Update:
    """Return the update that replaces fields of a stored agent, once: only while its ``changes`` are as given.

    Args:
        session: Whose.
        key: The agent's key.
        fields: The fields of its record.
        changes: Its ``changes``, as they were read.
        now: Its new ``updated_at``.
        live: Its new live view; None: that stays.
        conditions: What must be true besides.
    """
    agent = f"agents.{key}"
    changed: Document = {f"{agent}.updated_at": now}
    changed.update({f"{agent}.agent_data.{name}": value for name, value in fields.items()})
    if live is not None:
        changed[f"{agent}.live"] = live
    is_as_known = {agent: {"$exists": True}, **counter_is(f"{agent}.changes", changes), **(conditions or {})}
    return session.write(now, {"$set": changed, "$inc": {f"{agent}.changes": 1}}, is_as_known)


def agent_projection(key: str) -> Document:
    """Return the projection that tells how an agent's record stands."""
    agent = f"$agents.{key}"
    return {
        "exists": {"$eq": [{"$type": agent}, "object"]},
        "changes": number_at(f"{agent}.changes"),
        "rewrites": number_at(f"{agent}.rewrites"),
        "message_count": f"{agent}.message_count",
        "stored_count": count_of(agent),
    }


def append_projection(key: str, message_id: int) -> Document:
    """Return the projection that tells a writer whose append did not match how things stand."""
    agent = f"$agents.{key}"
    at_position = messages_with_id(messages_of(agent), message_id)
    return {
        **agent_projection(key),
        "archived_count": number_at(f"{agent}.archived_count"),
        "embedded": {"$ne": [at_position, []]},
        "commit_id": {"$first": for_each_message(at_position, "$$m.commit_id")},
    }


def _nested(paths: Mapping[str, Any]) -> Document:
    document: Document = {}
    for path, value in paths.items():
        *parents, last = path.split(".")
        inner = document
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return document


def intervention(key: str, message_id: int, guardrail_event: Document) -> Document:
    """Return what is listed of a guardrail's intervention: also whose message it was about."""
    return {**guardrail_event, "agent_id": decode_key(key), "message_id": message_id}


def list_interventions(update: Document, interventions: list[Document]) -> None:
    """Let an update list these interventions in the session as well, the newest ones only."""
    update.setdefault("$push", {})["guardrail_events"] = {"$each": interventions, "$slice": -MAX_GUARDRAIL_EVENTS}
    update.setdefault("$inc", {})["guardrail_event_count"] = len(interventions)
