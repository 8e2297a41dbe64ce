"""Rewrites: which stored messages are meant, what replaces parts of them in place; and metrics that come late."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bson import ObjectId
from typing_extensions import NotRequired

from .._model.documents import Document
from .._model.metrics import Totals, summed
from .commits import agent_projection, intervention, list_interventions
from .expressions import array_at, counter_is, messages_of, messages_that, number_at
from .live import copies_count, held_with
from .searching import IndexingStanding, indexing_standing
from .sessions import SessionRef, Update


@dataclass
class Rewrite:
    """What replaces parts of a stored message in place, and perhaps of its copies.

    Attributes:
        key: The agent's key in the document.
        message_id: The message's id.
        body: Fields to replace; what it does not name (times, metrics, ids) is kept.
        tracking_id: The message's tracking id, if known. A message with this ``message_id`` and another tracking id is
            left alone: there may be one after the database was restored to an earlier state.
        copies: Whether every message with this ``tracking_id`` is meant: a retried prompt may be stored twice.
        guardrail_event: An intervention to list in the session, once.
        unnamed: Files that the messages have named before; found while they are replaced.
        rewrites: The agent's ``rewrites`` once it is done; 0 before.
    """

    key: str
    message_id: int
    body: Document
    tracking_id: str | None = None
    copies: bool = False
    guardrail_event: Document | None = None
    unnamed: set[ObjectId] = field(default_factory=set)
    rewrites: int = 0

    def condition(self, prefix: str = "") -> Document:
        """Return the condition on a message's fields, named with this prefix, that is true of the messages meant."""
        if self.tracking_id is None:
            return {f"{prefix}message_id": self.message_id}
        nameless: Document = {f"{prefix}message_id": self.message_id, f"{prefix}tracking_id": None}
        tracked: Document = {f"{prefix}tracking_id": self.tracking_id}
        if not self.copies:
            tracked[f"{prefix}message_id"] = self.message_id
        return {"$or": [tracked, nameless]}

    def found_in(self, messages: Any) -> Document:
        """Return the expression for those of these messages that meet ``condition``."""
        is_there: Document = {"$eq": ["$$m.message_id", self.message_id]}
        if self.tracking_id is not None:
            nameless = {"$and": [is_there, {"$eq": [{"$ifNull": ["$$m.tracking_id", None]}, None]}]}
            tracked: Document = {"$eq": ["$$m.tracking_id", {"$literal": self.tracking_id}]}
            is_there = {"$or": [tracked if self.copies else {"$and": [tracked, is_there]}, nameless]}
        return messages_that(messages, is_there)


class RewriteStanding(IndexingStanding):
    """What ``rewrite_projection`` yields.

    Attributes:
        exists: Whether there is such an agent.
        changes: How often its record was changed.
        message_count: The agent's ``next_message_id``.
        stored_count: How many messages it has, archived and embedded.
        archived_count: How many of them are archived.
        messages: Those embedded messages that are meant, as they are stored.
        held: What the live view holds of them: its name ``k`` and what is held, ``v``.
        copies_count: Whether the view holds content of logged messages, and of none that was redacted.
        listed: Whether the intervention is listed in the session already; absent without one.
    """

    exists: bool
    changes: int
    message_count: int
    stored_count: int
    archived_count: int
    messages: list[Document]
    held: list[Document]
    copies_count: bool
    listed: NotRequired[bool]


def rewrite(session: SessionRef, work: Rewrite, standing: RewriteStanding, now: datetime) -> Update:
    """Return the update that replaces parts of messages in the session document, as they were just read.

    It comes first for archived messages, too: it takes the next number of ``edits`` for this writer, and so decides
    who may replace them there.

    Args:
        session: Whose.
        work: What is replaced, of which messages.
        standing: How things stand. They must still stand so: since then nobody has changed, appended or archived a
            message, and nobody has begun to index the conversation.
        now: The messages' new ``updated_at``.
    """
    agent = f"agents.{work.key}"
    message_ids = [message["message_id"] for message in standing["messages"]]
    changes, array_filters = _rewriting(f"{agent}.messages", work, message_ids, standing["edits"] + 1, now)
    changes["$set"][f"{agent}.updated_at"] = now
    changes["$inc"] = {f"{agent}.edits": 1, f"{agent}.rewrites": 1}
    changes["$unset"].update({f"{agent}.live.held.{held['k']}": "" for held in standing["held"]})
    if standing["copies_count"]:
        changes["$set"][f"{agent}.live.rewrites"] = standing["rewrites"] + 1
    conditions: Document = {
        f"{agent}.message_count": standing["message_count"],
        **counter_is(f"{agent}.edits", standing["edits"]),
        **counter_is(f"{agent}.archived_count", standing["archived_count"]),
        f"{agent}.indexed": {"$exists": "indexed" in standing},
    }
    if work.guardrail_event is not None:
        conditions["guardrail_events.id"] = {"$ne": work.guardrail_event["id"]}
        list_interventions(changes, [intervention(work.key, work.message_id, work.guardrail_event)])
    return session.write(now, changes, conditions, array_filters)


def rewrite_projection(work: Rewrite) -> Document:
    """Return the projection of how things stand for ``rewrite``, a ``RewriteStanding``."""
    agent = f"$agents.{work.key}"
    projection = {
        **agent_projection(work.key),
        **indexing_standing(work.key),
        "archived_count": number_at(f"{agent}.archived_count"),
        "messages": work.found_in(messages_of(agent)),
        "held": held_with(agent, work.message_id, work.tracking_id),
        "copies_count": {"$and": [{"$isNumber": f"{agent}.live.rewrites"}, copies_count(agent)]},
    }
    if work.guardrail_event is not None:
        projection["listed"] = {"$in": [work.guardrail_event["id"], array_at("$guardrail_events.id")]}
    return projection


def rewrite_in_segment(
    segment: Document, work: Rewrite, message_ids: Sequence[int], edit: int, now: datetime
) -> Update:
    """Return the update of a segment that replaces parts of messages in it.

    A message that was replaced by a later edit than this one stays as it is.
    """
    return Update({"_id": segment}, *_rewriting("messages", work, message_ids, edit, now))


def left_by_rewriting(messages: Iterable[Document], body: Mapping[str, Any]) -> list[Document]:
    """Return what a rewrite with this body leaves of each message; the messages as they were before it."""
    gone = {*body, "message", "extra"}
    return [{k: v for k, v in message.items() if k not in gone} for message in messages]


def _rewriting(
    messages: str, work: Rewrite, message_ids: Sequence[int], edit: int, now: datetime
) -> tuple[dict[str, Document], list[Document]]:
    # A command that arrives late meets messages with a higher `edit`.
    earlier = {"$or": [{"m.edit": {"$exists": False}}, {"m.edit": {"$lt": edit}}]}
    which: Document = {"$and": [{"m.message_id": {"$in": list(message_ids)}}, work.condition("m."), earlier]}
    changed = {f"{messages}.$[m].{name}": value for name, value in work.body.items()}
    changed[f"{messages}.$[m].updated_at"] = now
    changed[f"{messages}.$[m].edit"] = edit
    # `message` is where older documents keep role and content.
    removed = {f"{messages}.$[m].{name}": "" for name in ("message", "extra") if name not in work.body}
    return {"$set": changed, "$unset": removed}, [which]


def late_metrics(
    session: SessionRef,
    key: str,
    message_id: int,
    metrics: Document,
    totals: Totals,
    now: datetime,
    before: Document | None = None,
) -> Update:
    """Return the update that gives a stored message its metrics, once: if it has none, or those ``before``."""
    agent = f"agents.{key}"
    lacking = {"message_id": message_id, "event_loop_metrics": {"$exists": False} if before is None else before}
    increments, maxima = summed([totals], f"{agent}.usage.")
    increments[f"{agent}.edits"] = 1
    update: Document = {"$set": {f"{agent}.messages.$[m].event_loop_metrics": metrics}, "$inc": increments}
    if maxima:
        update["$max"] = maxima
    return session.write(now, update, {f"{agent}.messages": {"$elemMatch": lacking}}, [{"m.message_id": message_id}])
