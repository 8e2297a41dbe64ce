"""Filters, updates and projections: every statement that is sent about a session document. Pure.

A statement that changes a session names in its filter the life of the session it means (``incarnation``) and that no
other process holds the lease; an append also names the ``message_id`` it expects to be next. So the server decides,
in one atomic update, whether the writer's picture of the session is still true.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from bson import MaxKey, MinKey, ObjectId

from .._model.documents import Document, message_document, new_agent
from .._model.encoding import to_bson
from .._model.expiry import EXPIRED, NOT_EXPIRED, in_hours, parts_needed_until
from .._model.guardrails import MAX_GUARDRAIL_EVENTS
from .._model.keys import decode_key, encode_key
from .._model.metrics import Totals, summed

# What a live agent needs of a stored message. Times, metrics and commit ids stay on the server: they are a third of
# a short message.
_WINDOW_FIELDS = {
    name: f"$$m.{name}"
    for name in (
        *("message_id", "role", "content", "tracking_id", "metadata", "extra", "turn_id"),
        # Where older documents keep role and content, and what was redacted.
        *("message", "redact_message"),
    )
}


class Update(NamedTuple):
    """One ``update_one``."""

    filter: Document
    update: Document | list[Document]
    array_filters: list[Document] | None = None


class SessionRef(NamedTuple):
    """Which session a writer means, and by which right it writes.

    Attributes:
        session_id: The session's id.
        incarnation: The life of the session that was opened; None where any will do (the repository's own methods).
        lease_token: The token of the lease this writer holds, if it does.
        ttl: How long the session lives from this writer's activity on; None: until it is deleted.
    """

    session_id: str
    incarnation: ObjectId | None = None
    lease_token: str | None = None
    ttl: timedelta | None = None

    def filter(self, **conditions: Any) -> Document:
        """Return the filter by which the server decides whether this writer may write at all."""
        document: Document = {"_id": self.session_id}
        if self.incarnation is not None:
            document["incarnation"] = self.incarnation
        if self.lease_token is None:
            document["$expr"] = _MAY_WRITE
        else:
            document["lease.token"] = self.lease_token
            document["$expr"] = _MAY_WRITE_WITH_LEASE
        document.update(conditions)
        return document

    def write(
        self,
        now: datetime,
        changes: Document,
        conditions: Mapping[str, Any],
        array_filters: list[Document] | None = None,
        that: Document | None = None,
    ) -> Update:
        """Return an update of the session's content: it moves ``updated_at`` and ``expires_at``, too.

        It matches no session whose parts would not outlive it, and, for a writer without a ttl, none that has one;
        ``SessionStore`` then sees to it.

        Args:
            now: The time of the change.
            changes: What else changes.
            conditions: What must be true of the session.
            array_filters: Array filters of the changes.
            that: An expression that must be true besides.
        """
        document = self.filter(**conditions)
        changed = changes.setdefault("$set", {})
        changed["updated_at"] = now
        if self.ttl is None:
            document["ttl_hours"] = None
        else:
            changed["ttl_hours"] = in_hours(self.ttl)
            changed["expires_at"] = expires_at = now + self.ttl
            document["parts_expire_at"] = {"$not": {"$lt": parts_needed_until(expires_at, self.ttl)}}
        if that is not None:
            document["$expr"] = {"$and": [document["$expr"], that]}
        return Update(document, changes, array_filters)


# Compared by the server's clock. A missing field sorts before every date, so no lease passes, too.
_MAY_WRITE: Document = {"$and": [{"$lte": ["$lease.expires_at", "$$NOW"]}, NOT_EXPIRED]}
_MAY_WRITE_WITH_LEASE: Document = {"$and": [{"$gt": ["$lease.expires_at", "$$NOW"]}, NOT_EXPIRED]}


FEEDBACKS = "$feedbacks"
"""Stands in a segment's ``_id`` where an agent's key would; no agent has such a key."""

MAX_FEEDBACKS = 200
"""A session document with this many feedbacks is archived from before it takes another."""

MAX_FEEDBACK_BYTES = 256 * 1024
"""Or with this many bytes of them."""

MAX_METADATA_BYTES = 4 * 1024 * 1024
"""What a session's metadata may have as BSON: MongoDB takes 16 MB in a document, and a conversation needs room."""

EACH_AGENT: Document = {"$objectToArray": {"$cond": [{"$eq": [{"$type": "$agents"}, "object"]}, "$agents", {}]}}
"""Expression for the agents of a session, ``{k: key, v: record}`` each; none where they are no document."""

# How many messages a conversation manager has taken out of the live conversation, from the first one on.
_REMOVED = "agent_data.conversation_manager_state.removed_message_count"


@dataclass
class Commit:
    """What one update of a session document carries for one agent.

    Attributes:
        key: The agent's key in the document.
        position: The ``message_id`` the first message is to get; it guards the update.
        changes: The agent's ``changes`` so far; it guards an update that appends nothing.
        messages: Stored messages without their ``message_id``, oldest first.
        creates: The agent's whole ``agent_data`` if the agent is not stored yet, else None.
        fields: Fields of ``agent_data`` that have changed, since it was created here or read, encoded.
        totals: Growth of the running totals, by each of the messages.
        guardrail_events: Interventions of a guardrail, each with the index of its message in ``messages``.
        commit_id: Stored on the first message, so that a commit of unknown outcome can be recognised.
    """

    key: str
    position: int
    messages: Sequence[Document] = ()
    creates: Document | None = None
    fields: Document = field(default_factory=dict)
    totals: Sequence[Totals] = ()
    guardrail_events: Sequence[tuple[int, Document]] = ()
    changes: int = 0
    commit_id: ObjectId = field(default_factory=ObjectId)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to send."""
        return not (self.messages or self.fields or self.creates is not None)


def commit(session: SessionRef, work: Commit, now: datetime) -> Update:
    """Return the update that stores everything in ``work``, or nothing of it."""
    agent = f"agents.{work.key}"
    messages: list[Document] = []
    for body in work.messages:
        message_id = work.position + len(messages)
        messages.append(message_document(message_id, body, body.get("created_at", now), now))
    if messages:
        messages[0]["commit_id"] = work.commit_id
    changed: Document = {}
    if work.creates is not None:
        record = new_agent({**work.creates, **work.fields}, now)
        increments, maxima = summed(work.totals)
        record["message_count"] = len(messages)
        record["usage"] = _nested({**increments, **maxima})
        record["messages"] = messages
        changed[agent] = record
        update: Document = {"$set": changed, "$addToSet": {"agent_ids": work.creates["agent_id"]}}
        conditions: Document = {agent: {"$exists": False}}
    else:
        changed[f"{agent}.updated_at"] = now
        for name, value in work.fields.items():
            changed[f"{agent}.agent_data.{name}"] = value
        if not messages:
            return change_agent(session, work.key, changed, work.changes, now)
        increments, maxima = summed(work.totals, f"{agent}.usage.")
        increments[f"{agent}.message_count"] = len(messages)
        if work.fields:
            increments[f"{agent}.changes"] = 1
        update = {"$set": changed, "$push": {f"{agent}.messages": {"$each": messages}}, "$inc": increments}
        if maxima:
            update["$max"] = maxima
        conditions = {f"{agent}.message_count": work.position}
    if work.guardrail_events:
        _list_interventions(
            update, [_intervention(work.key, work.position + index, event) for index, event in work.guardrail_events]
        )
    return session.write(now, update, conditions)


@dataclass
class Rewrite:
    """What replaces parts of a stored message, where it stands, and perhaps of its twins.

    Attributes:
        key: The agent's key in the document.
        message_id: The message's id.
        body: Fields to replace; what it does not name (times, metrics, ids) is kept.
        tracking_id: Which message it is, where that is known: another one under this ``message_id``, as there may be
            after the store went back to an earlier state, is left alone.
        twins: Whether every message with this ``tracking_id`` is meant: a retried prompt may stand there twice.
        guardrail_event: An intervention to list in the session, once.
        unnamed: Files that the messages have named before; found while they are replaced.
    """

    key: str
    message_id: int
    body: Document
    tracking_id: str | None = None
    twins: bool = False
    guardrail_event: Document | None = None
    unnamed: set[ObjectId] = field(default_factory=set)

    def condition(self, prefix: str = "") -> Document:
        """Return the condition that the messages meet which are meant, on their fields, with a prefix."""
        if self.tracking_id is None:
            return {f"{prefix}message_id": self.message_id}
        nameless: Document = {f"{prefix}message_id": self.message_id, f"{prefix}tracking_id": None}
        tracked: Document = {f"{prefix}tracking_id": self.tracking_id}
        if not self.twins:
            tracked[f"{prefix}message_id"] = self.message_id
        return {"$or": [tracked, nameless]}

    def found_in(self, messages: Any) -> Document:
        """Return the expression for those of these messages that meet ``condition``."""
        is_there: Document = {"$eq": ["$$m.message_id", self.message_id]}
        if self.tracking_id is not None:
            nameless = {"$and": [is_there, {"$eq": [{"$ifNull": ["$$m.tracking_id", None]}, None]}]}
            tracked: Document = {"$eq": ["$$m.tracking_id", {"$literal": self.tracking_id}]}
            is_there = {"$or": [tracked if self.twins else {"$and": [tracked, is_there]}, nameless]}
        return {"$filter": {"input": messages, "as": "m", "cond": is_there}}


def rewrite(session: SessionRef, work: Rewrite, standing: Mapping[str, Any], now: datetime) -> Update:
    """Return the update that replaces parts of messages in the session document, as they were just read.

    Where the message is archived, it says who may replace it there: the next number of ``edits`` is this writer's.

    Args:
        session: Whose.
        work: What is replaced, of which messages.
        standing: How things stand, as ``rewrite_projection`` has it. They must still stand so: nobody has changed,
            appended or archived a message since, and nobody has begun to copy messages into the search.
        now: The messages' new ``updated_at``.
    """
    agent = f"agents.{work.key}"
    message_ids = [message["message_id"] for message in standing["messages"]]
    changes, array_filters = _rewriting(f"{agent}.messages", work, message_ids, standing["edits"] + 1, now)
    changes["$set"][f"{agent}.updated_at"] = now
    changes["$inc"] = {f"{agent}.edits": 1, f"{agent}.rewrites": 1}
    conditions: Document = {f"{agent}.message_count": standing["message_count"]}
    for name in ("edits", "archived_count"):
        conditions.update(counter_is(f"{agent}.{name}", standing[name]))
    conditions[f"{agent}.indexed"] = {"$exists": "indexed" in standing}
    if work.guardrail_event is not None:
        conditions["guardrail_events.id"] = {"$ne": work.guardrail_event["id"]}
        _list_interventions(changes, [_intervention(work.key, work.message_id, work.guardrail_event)])
    return session.write(now, changes, conditions, array_filters)


def rewrite_projection(work: Rewrite) -> Document:
    """Return the projection of how things stand for ``rewrite``, with the messages that are meant, as stored."""
    agent = f"$agents.{work.key}"
    projection = {
        **agent_projection(work.key),
        **indexing_standing(work.key),
        "archived_count": _number(f"{agent}.archived_count"),
        "messages": work.found_in(_messages(agent)),
    }
    if work.guardrail_event is not None:
        ids = {"$cond": [{"$isArray": "$guardrail_events.id"}, "$guardrail_events.id", []]}
        projection["listed"] = {"$in": [work.guardrail_event["id"], ids]}
    return projection


def _intervention(key: str, message_id: int, guardrail_event: Document) -> Document:
    return {**guardrail_event, "agent_id": decode_key(key), "message_id": message_id}


def _list_interventions(update: Document, interventions: list[Document]) -> None:
    """Let an update list these interventions in the session as well, the newest ones only."""
    update.setdefault("$push", {})["guardrail_events"] = {"$each": interventions, "$slice": -MAX_GUARDRAIL_EVENTS}
    update.setdefault("$inc", {})["guardrail_event_count"] = len(interventions)


def rewrite_in_segment(
    segment: Document, work: Rewrite, message_ids: Sequence[int], edit: int, now: datetime
) -> Update:
    """Return the update of a segment that replaces parts of messages in it; those that were replaced later stay."""
    changes, array_filters = _rewriting("messages", work, message_ids, edit, now)
    return Update({"_id": segment}, changes, array_filters)


def left_by_rewriting(messages: Iterable[Document], body: Mapping[str, Any]) -> list[Document]:
    """Return what is left of messages, as they were before, of which these parts were replaced."""
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
    """Return the update that gives a stored message its metrics, once: in the place of none, or of those ``before``."""
    agent = f"agents.{key}"
    lacking = {"message_id": message_id, "event_loop_metrics": {"$exists": False} if before is None else before}
    increments, maxima = summed([totals], f"{agent}.usage.")
    increments[f"{agent}.edits"] = 1
    update: Document = {"$set": {f"{agent}.messages.$[m].event_loop_metrics": metrics}, "$inc": increments}
    if maxima:
        update["$max"] = maxima
    return session.write(now, update, {f"{agent}.messages": {"$elemMatch": lacking}}, [{"m.message_id": message_id}])


def agent_fields(session: SessionRef, key: str, fields: Mapping[str, Any], changes: int, now: datetime) -> Update:
    """Return the update that replaces fields of a stored agent whose record was changed so often before."""
    agent = f"agents.{key}"
    changed = {f"{agent}.agent_data.{name}": value for name, value in fields.items()}
    return change_agent(session, key, {**changed, f"{agent}.updated_at": now}, changes, now)


def change_agent(session: SessionRef, key: str, changed: Document, changes: int, now: datetime) -> Update:
    """Return the update that changes an agent's record, once: if it was changed so often before."""
    agent = f"agents.{key}"
    is_as_known = {agent: {"$exists": True}, **counter_is(f"{agent}.changes", changes)}
    return session.write(now, {"$set": changed, "$inc": {f"{agent}.changes": 1}}, is_as_known)


def counter_is(path: str, value: int) -> Document:
    """Return the condition that a counter has this value. In an older document it may be missing, which is 0."""
    return {path: value if value else {"$in": [0, None]}}


def append_message(session: SessionRef, key: str, message: Document, now: datetime) -> Update:
    """Return the update that appends one message with an id of the caller's; later ids may be any higher ones."""
    agent = f"agents.{key}"
    changes = {
        "$push": {f"{agent}.messages": message},
        "$set": {f"{agent}.message_count": message["message_id"] + 1, f"{agent}.updated_at": now},
        "$inc": {f"{agent}.usage.messages": 1},
    }
    # Of a counter that is none, it would make one, and perhaps give an id out twice.
    count = f"{agent}.message_count"
    is_number = {"$in": [{"$type": f"${count}"}, ["int", "long", "double"]]}
    is_count = {"$and": [is_number, {"$eq": [{"$mod": [_number(f"${count}"), 1]}, 0]}]}
    return session.write(now, changes, {count: {"$gte": 0, "$lte": message["message_id"]}}, that=is_count)


def multi_agent(session: SessionRef, multi_agent_id: str, state: Any, changes: int | None, now: datetime) -> Update:
    """Return the update that stores the state of a graph or swarm.

    Args:
        session: Whose.
        multi_agent_id: Of which graph or swarm.
        state: Its state, encoded.
        changes: How often its state was changed before; None: it is not stored yet.
        now: The time of the change.
    """
    entry = f"multi_agents.{encode_key(multi_agent_id)}"
    if changes is None:
        new = {"state": state, "created_at": now, "updated_at": now, "changes": 0}
        return session.write(now, {"$set": {entry: new}}, {entry: {"$exists": False}})
    changed = {"$set": {f"{entry}.state": state, f"{entry}.updated_at": now}, "$inc": {f"{entry}.changes": 1}}
    return session.write(now, changed, {entry: {"$exists": True}, **counter_is(f"{entry}.changes", changes)})


def multi_agent_projection(multi_agent_id: str) -> Document:
    """Return the projection of how often the state of a graph or swarm was changed: None if it is not stored."""
    entry = f"$multi_agents.{encode_key(multi_agent_id)}"
    stored = {"$ne": [{"$type": f"{entry}.state"}, "missing"]}
    return {"changes": {"$cond": [stored, _number(f"{entry}.changes"), None]}}


def set_metadata(session: SessionRef, metadata: Mapping[str, Any], changes: int, now: datetime) -> Update:
    """Return the update that sets these metadata fields and leaves the others, if they were changed so often before."""
    has_room = {"$lte": [metadata_size_expression(metadata), MAX_METADATA_BYTES]}
    that = {"$and": [has_room, metadata_without_gaps_expression(metadata)]}
    changed = {f"metadata.{key}": value for key, value in metadata.items()}
    return _change_metadata(session, {"$set": changed}, changes, now, that)


def _change_metadata(
    session: SessionRef, change: Document, changes: int, now: datetime, that: Document | None = None
) -> Update:
    counted = {**change, "$inc": {"metadata_changes": 1}}
    return session.write(now, counted, counter_is("metadata_changes", changes), that=that)


def metadata_size_expression(metadata: Mapping[str, Any]) -> Document:
    """Return the expression for the size that a session's metadata will have with these fields, in bytes.

    At most: the names of fields count as if they were new.
    """
    replaced = {str(index): _metadata_at(key.split(".")) for index, key in enumerate(metadata)}
    names = sum(len(key.encode()) + _LEVEL_BYTES * key.count(".") for key in metadata)
    added = len(to_bson({str(index): value for index, value in enumerate(metadata.values())})) + names
    return {
        "$add": [
            {"$bsonSize": {"$cond": [{"$eq": [{"$type": "$metadata"}, "object"]}, "$metadata", {}]}},
            {"$subtract": [added, {"$bsonSize": replaced}]},
        ]
    }


def metadata_without_gaps_expression(metadata: Iterable[str]) -> Document:
    """Return the expression for whether no field lies beyond the end of an array, which MongoDB fills with nulls.

    Directly behind the last element is not beyond.
    """
    conditions = []
    for parts in (key.split(".") for key in metadata):
        for depth, part in enumerate(parts):
            if (index := _index(part)) is not None:
                above = _metadata_at(parts[:depth])
                size = {"$cond": [{"$isArray": "$$above"}, {"$size": "$$above"}, _INT32_MAX]}
                conditions.append({"$let": {"vars": {"above": above}, "in": {"$lte": [index, size]}}})
    return {"$and": conditions}


# What a nested document has besides its fields: its type, its length, its end and the end of its name.
_LEVEL_BYTES = 7
_INT32_MAX = 2**31 - 1


def _metadata_at(parts: Iterable[str]) -> Any:
    """Return the expression for the metadata that an update of this path means: a number may be an array's index."""
    at: Any = "$metadata"
    for part in parts:
        if (index := _index(part)) is not None:
            element = {"$arrayElemAt": ["$$above", index]}
            inner: Any = {"$cond": [{"$isArray": "$$above"}, element, f"$$above.{part}"]}
            at = {"$let": {"vars": {"above": at}, "in": inner}}
        elif isinstance(at, str):
            at = f"{at}.{part}"
        elif isinstance(at["$let"]["in"], str):
            at["$let"]["in"] += f".{part}"
        else:
            at = {"$let": {"vars": {"above": at}, "in": f"$$above.{part}"}}
    return at


def _index(part: str) -> int | None:
    """Return the index of an array that a part of a path may be, or None."""
    if not (part.isascii() and part.isdecimal()):
        return None
    return int(part) if len(part) < 10 else _INT32_MAX


def unset_metadata(session: SessionRef, keys: Iterable[str], changes: int, now: datetime) -> Update:
    """Return the update that removes these metadata fields, if they were changed so often before."""
    return _change_metadata(session, {"$unset": {f"metadata.{key}": "" for key in keys}}, changes, now)


METADATA_CHANGES: list[Document] = [
    {
        "$match": {
            "$or": [
                # Deletions and replacements, and what ends a stream: the collection was dropped or renamed.
                {"operationType": {"$nin": ["insert", "update"]}},
                {
                    "$expr": {
                        "$anyElementTrue": {
                            "$map": {
                                "input": {
                                    "$concatArrays": [
                                        {
                                            "$map": {
                                                "input": {
                                                    "$objectToArray": {
                                                        "$ifNull": ["$updateDescription.updatedFields", {}]
                                                    }
                                                },
                                                "as": "f",
                                                "in": "$$f.k",
                                            }
                                        },
                                        {"$ifNull": ["$updateDescription.removedFields", []]},
                                        {"$ifNull": ["$updateDescription.truncatedArrays.field", []]},
                                    ]
                                },
                                "as": "path",
                                "in": {"$regexMatch": {"input": "$$path", "regex": r"^metadata(\.|$)"}},
                            }
                        }
                    }
                },
            ]
        }
    },
    {"$project": {"documentKey": 1}},
]
"""Pipeline of a change stream that yields the changes after which a session's metadata may be other than before."""


class MessageLink(NamedTuple):
    """What a feedback is about.

    Attributes:
        agent_key: Key of the agent.
        message_id: The message; None where it is about the agent, or where the message is known to exist.
    """

    agent_key: str
    message_id: int | None = None

    def exists(self) -> Document:
        """Return the expression for whether the session has it, as far as its document tells: false if archived."""
        agent = f"$agents.{self.agent_key}"
        is_there: Document = {"$eq": [{"$type": agent}, "object"]}
        if self.message_id is None:
            return is_there
        count, messages = f"{agent}.message_count", _messages(agent)
        ids = {"$map": {"input": messages, "as": "m", "in": "$$m.message_id"}}
        # As many messages as ids were given out: each id is one, wherever it is. A repository's ids may have gaps.
        gapless = {"$eq": [count, {"$add": [_number(f"{agent}.archived_count"), {"$size": messages}]}]}
        counted = {"$and": [{"$gt": [_number(count), self.message_id]}, gapless]}
        return {"$and": [is_there, {"$or": [counted, {"$in": [self.message_id, ids]}]}]}


def add_feedback(
    session: SessionRef, feedback: Document, link: MessageLink | None, count: int, now: datetime
) -> Update:
    """Return the update that appends one feedback, if there are so many before it, archived ones included.

    And if there is room, and what it is about is there.
    """
    conditions: list[Document] = [{"$eq": [_feedback_count(), count]}, {"$not": _FEEDBACKS_ARE_FULL}]
    if link is not None:
        conditions.append(link.exists())
    return session.write(now, {"$push": {"feedbacks": feedback}}, {}, that={"$and": conditions})


def feedback_projection(feedback: Document, link: MessageLink | None) -> Document:
    """Return the projection that tells whether a feedback is stored, and if not, why.

    Either there is no room for it, or what it is about is not ``linked``.
    """
    position: Document = {}
    if link is not None:
        # Of the agent alone it says as much; no message has the id -1.
        position = position_projection(link.agent_key, -1 if link.message_id is None else link.message_id)
    commit_ids = {"$cond": [{"$isArray": "$feedbacks.commit_id"}, "$feedbacks.commit_id", []]}
    return {
        **position,
        "count": _feedback_count(),
        "archived": _number("$feedbacks_archived"),
        "stored": {"$in": [feedback["commit_id"], commit_ids]},
        "full": _FEEDBACKS_ARE_FULL,
        "linked": {"$literal": True} if link is None else link.exists(),
    }


_FEEDBACKS: Document = {"$cond": [{"$isArray": "$feedbacks"}, "$feedbacks", []]}
_FEEDBACKS_ARE_FULL: Document = {
    "$or": [
        {"$gte": [{"$size": _FEEDBACKS}, MAX_FEEDBACKS]},
        {"$gte": [{"$bsonSize": {"f": _FEEDBACKS}}, MAX_FEEDBACK_BYTES]},
    ]
}


def _feedback_count() -> Document:
    return {"$add": [_number("$feedbacks_archived"), {"$size": _FEEDBACKS}]}


# --- leases: all times are the server's -----------------------------------------------------------------------------


def take_lease(session: SessionRef, owner: str, token: str, seconds: float, leases: int) -> Update:
    """Return the update that takes the lease if it is free or expired, and was taken so often before."""
    free = {"$lte": ["$lease.expires_at", "$$NOW"]}
    lease = {
        "owner": {"$literal": owner},
        "token": {"$literal": token},
        "expires_at": {"$add": ["$$NOW", round(seconds * 1000)]},
    }
    return Update(
        {
            "_id": session.session_id,
            "incarnation": session.incarnation,
            **counter_is("leases", leases),
            "$expr": {"$and": [free, NOT_EXPIRED]},
        },
        # $unset first: $set merges into a document that is there.
        [{"$unset": "lease"}, {"$set": {"lease": lease, "leases": leases + 1}}],
    )


def renew_lease(session: SessionRef, seconds: float) -> Update:
    """Return the update that moves the end of a lease that is still held."""
    return Update(session.filter(), [{"$set": {"lease.expires_at": {"$add": ["$$NOW", round(seconds * 1000)]}}}])


def release_lease(session_id: str, token: str) -> Update:
    """Return the update that gives a lease back; somebody else's is left alone."""
    return Update({"_id": session_id, "lease.token": token}, {"$unset": {"lease": ""}})


# --- expiry ---------------------------------------------------------------------------------------------------------


def live(session_id: str) -> Document:
    """Return the filter of a session that has not expired."""
    return {"_id": session_id, "$expr": NOT_EXPIRED}


def life(session_id: str, incarnation: ObjectId) -> Document:
    """Return the filter of one life of a session that has not expired."""
    return {"_id": session_id, "incarnation": incarnation, "$expr": NOT_EXPIRED}


def expired(session_id: str, incarnation: ObjectId | None) -> Document:
    """Return the filter of a life of a session that has expired and was not removed yet."""
    return {"_id": session_id, "incarnation": incarnation, "$expr": EXPIRED}


def unless_expired(projection: Mapping[str, Any]) -> Document:
    """Return the projection with None for every expression of it if the session has expired: its blobs may be gone."""
    return {
        name: value if value == 1 or name in STANDING else {"$cond": [EXPIRED, None, value]}
        for name, value in projection.items()
    }


def announce_parts(session_id: str, standing: Mapping[str, Any], until: datetime) -> Update:
    """Return the update that says where the parts of a session are moved to, if nobody has said more meanwhile."""
    which = {**_as_promised(session_id, standing), "$expr": NOT_EXPIRED}
    return Update(which, {"$set": {"parts_moving_to": until}})


def promise_parts(session_id: str, standing: Mapping[str, Any], until: datetime) -> Update:
    """Return the update that says that the parts were moved on."""
    which = {**_as_promised(session_id, {**standing, "parts_moving_to": until}), "$expr": NOT_EXPIRED}
    return Update(which, {"$set": {"parts_expire_at": until}, "$unset": {"parts_moving_to": ""}})


def end_expiry(session_id: str, standing: Mapping[str, Any]) -> Update:
    """Return the update by which a session expires no more; its parts are kept for ever, or never had an expiry."""
    which = {**_as_promised(session_id, standing), "$expr": NOT_EXPIRED}
    return Update(which, {"$unset": {"expires_at": "", "ttl_hours": ""}})


def begin_expiry_of_parts(session_id: str, incarnation: ObjectId, until: datetime) -> Update:
    """Return the update that says when the parts of an expiring session go, if they had no expiry so far."""
    which = {**_as_promised(session_id, {"incarnation": incarnation}), "$expr": NOT_EXPIRED}
    return Update({**which, "expires_at": {"$lt": until}}, {"$set": {"parts_expire_at": until}})


def _as_promised(session_id: str, standing: Mapping[str, Any]) -> Document:
    """Return the filter of a session of whose parts still the same is said; None matches a field that is not there."""
    names = ("incarnation", "parts_expire_at", "parts_moving_to")
    return {"_id": session_id, **{name: standing.get(name) for name in names}}


def keep_parts(until: datetime) -> Document:
    """Return the change by which parts of a session expire no sooner than this."""
    return {"$max": {"expires_at": until}}


# --- reading --------------------------------------------------------------------------------------------------------


def open_projection(agent_keys: Sequence[str]) -> Document:
    """Return the projection that reads which life of a session this is and the live windows of some of its agents.

    The window begins at the agent's ``removed_message_count``: a conversation manager has taken the messages before
    it out of the live conversation. So the bytes read depend on the window, not on the length of the conversation.
    """
    return {
        "incarnation": 1,
        "bytes": {"$bsonSize": "$$ROOT"},
        "expired": EXPIRED,
        "parts_expire_at": 1,
        "agents_opened": {"$cond": [EXPIRED, [], list(map(_agent_window, agent_keys))]},
    }


@lru_cache(maxsize=256)  # A service opens the same few agents again and again.
def _agent_window(key: str) -> Document:
    agent = f"$agents.{key}"
    removed = f"{agent}.{_REMOVED}"
    # A positive position: a negative one counts from the end. A length of 0 would be an error.
    window = {"$slice": ["$$messages", "$$skip", {"$max": [1, {"$size": "$$messages"}]}]}
    opened = {
        "agent_data": f"{agent}.agent_data",
        "message_count": f"{agent}.message_count",
        "changes": _number(f"{agent}.changes"),
        "archived_count": "$$archived",
        "removed": "$$removed",
        "embedded": {"$size": "$$messages"},
        "bytes": {"$bsonSize": agent},
        "window": {"$map": {"input": window, "as": "m", "in": _WINDOW_FIELDS}},
    }
    skip = {"$max": [0, {"$subtract": ["$$removed", "$$archived"]}]}
    return {
        "$cond": [
            {"$eq": [{"$type": agent}, "object"]},
            {
                "$let": {
                    "vars": {
                        "messages": _messages(agent),
                        "archived": _number(f"{agent}.archived_count"),
                        "removed": _number(removed),
                    },
                    "in": {"$let": {"vars": {"skip": skip}, "in": opened}},
                }
            },
            None,
        ]
    }


ANY_INDEXED: Document = {
    "$anyElementTrue": {
        "$map": {
            "input": EACH_AGENT,
            "as": "a",
            "in": {"$ne": [{"$type": "$$a.v.indexed"}, "missing"]},
        }
    }
}
"""Expression for whether messages of a session may be in the search."""


def agent_projection(key: str) -> Document:
    """Return the projection that tells how an agent's record stands."""
    agent = f"$agents.{key}"
    return {
        "exists": {"$eq": [{"$type": agent}, "object"]},
        "changes": _number(f"{agent}.changes"),
        "message_count": f"{agent}.message_count",
        "stored_count": _count(agent),
    }


def position_projection(key: str, message_id: int) -> Document:
    """Return the projection that tells a writer whose append did not match how things stand."""
    agent = f"$agents.{key}"
    at_position = {"$filter": {"input": _messages(agent), "as": "m", "cond": {"$eq": ["$$m.message_id", message_id]}}}
    return {
        **agent_projection(key),
        "archived_count": _number(f"{agent}.archived_count"),
        "embedded": {"$ne": [at_position, []]},
        "commit_id": {"$first": {"$map": {"input": at_position, "as": "m", "in": "$$m.commit_id"}}},
    }


STANDING: Document = {
    "incarnation": 1,
    "lease": 1,
    "expired": EXPIRED,
    "ttl_hours": 1,
    "parts_expire_at": 1,
    "parts_moving_to": 1,
    "any_indexed": ANY_INDEXED,
    "now": "$$NOW",
}
"""Projection of what decides whether a write is allowed at all."""


def page_projection(key: str, offset: int, limit: int | None) -> Document:
    """Return the projection of the embedded part of a page of an agent's messages, and of where that part begins."""
    archived = _number(f"$agents.{key}.archived_count")
    length: Any = {"$size": "$$messages"}
    if limit is not None:
        # What of the page lies before the embedded messages is not taken from them.
        length = {"$min": [limit, {"$subtract": [offset + limit, "$$archived"]}]}
    page = {"$slice": ["$$messages", {"$max": [0, {"$subtract": [offset, "$$archived"]}]}, {"$max": [1, "$$length"]}]}
    return {
        "incarnation": 1,
        "archived_count": archived,
        "messages": {
            "$let": {
                "vars": {"messages": _messages(f"$agents.{key}"), "archived": archived},
                "in": {
                    "$let": {"vars": {"length": length}, "in": {"$cond": [{"$gt": ["$$length", 0]}, page, []]}},
                },
            }
        },
    }


def message_projection(key: str, message_id: int) -> Document:
    """Return the projection of one message."""
    return {
        "messages": {
            "$filter": {
                "input": _messages(f"$agents.{key}"),
                "as": "m",
                "cond": {"$eq": ["$$m.message_id", message_id]},
            }
        }
    }


def agent_data_expression(key: str) -> Document:
    """Return the expression for an agent's record: None if there is no such agent."""
    agent = f"$agents.{key}"
    return {"$cond": [{"$eq": [{"$type": agent}, "object"]}, {"$ifNull": [f"{agent}.agent_data", {}]}, None]}


def multi_agent_state_expression(multi_agent_id: str) -> str:
    """Return the expression for the stored state of a graph or swarm."""
    return f"$multi_agents.{encode_key(multi_agent_id)}.state"


def count_expression(key: str) -> Document:
    """Return the expression for the number of an agent's messages: those archived and those embedded."""
    return _count(f"$agents.{key}")


AGENT_KEYS: Document = {"$map": {"input": EACH_AGENT, "as": "a", "in": "$$a.k"}}
"""Expression for the keys of a session's agents."""


def metrics_projection(agent_id: str | None) -> Document:
    """Return the projection of what a summary of metrics needs: the agents' running totals, the feedbacks' ratings.

    Args:
        agent_id: Only this agent's, and only of feedbacks that name it; None for all.
    """
    if agent_id is None:
        agents: Document = {"$map": {"input": EACH_AGENT, "as": "a", "in": {"key": "$$a.k", "usage": _usage("$$a.v")}}}
    else:
        key = encode_key(agent_id)
        agent = f"$agents.{key}"
        one = {"key": {"$literal": key}, "usage": _usage(agent)}
        agents = {"$cond": [{"$eq": [{"$type": agent}, "object"]}, [one], []]}
    return {
        "_id": 0,
        "incarnation": 1,
        "feedbacks_archived": _number("$feedbacks_archived"),
        "agents": agents,
        "ratings": _ratings(_FEEDBACKS, agent_id),
    }


def segment_ratings_projection(agent_id: str | None) -> Document:
    """Return the projection of a segment of feedbacks to their ratings; ``agent_id`` as for ``metrics_projection``."""
    return {"_id": 0, "count": 1, "ratings": _ratings("$messages", agent_id)}


# Longer ratings are read up to here, so that a summary stays a small read.
_RATING_CHARACTERS = 100


def _ratings(feedbacks: Any, agent_id: str | None) -> Document:
    if agent_id is not None:
        named = {"$eq": ["$$f.agent_id", {"$literal": agent_id}]}
        feedbacks = {"$filter": {"input": feedbacks, "as": "f", "cond": named}}
    rating = "$$f.rating"
    kind = {"$type": rating}
    short = {
        "$switch": {
            "branches": [
                {"case": {"$eq": [kind, "string"]}, "then": {"$substrCP": [rating, 0, _RATING_CHARACTERS]}},
                {"case": {"$in": [kind, ["int", "long", "double", "bool"]]}, "then": rating},
            ],
            "default": None,
        }
    }
    return {"$map": {"input": feedbacks, "as": "f", "in": short}}


def _usage(agent: str) -> Document:
    """Return the expression for an agent's running totals.

    An older document has none, and what it tells of tokens are totals of an ``Agent`` object, good for no sum; so what
    is counted there is messages and turns.
    """
    has_results = {
        "$or": [{"$gt": [f"$$m.{content}.toolResult", []]} for content in ("content", "message.content")]  # Not empty.
    }
    from_user = {"$eq": [{"$ifNull": ["$$m.role", "$$m.message.role"]}, "user"]}
    prompts = {
        "$filter": {"input": _messages(agent), "as": "m", "cond": {"$and": [from_user, {"$not": [has_results]}]}}
    }
    return {"$ifNull": [f"{agent}.usage", {"messages": _count(agent), "turns": {"$size": prompts}}]}


def adopt(agent_keys: Sequence[str]) -> list[Document]:
    """Return the update that gives an older document the counters and the incarnation it lacks.

    Computed by the server from what it holds at that moment, so it is right whoever writes meanwhile.
    """
    fields: Document = {
        "incarnation": {"$ifNull": ["$incarnation", ObjectId()]},
        "schema_version": {"$ifNull": ["$schema_version", 1]},
        "agent_ids": {
            "$concatArrays": [_AGENT_IDS, {"$filter": {"input": _AGENTS_THERE, "as": "id", "cond": _UNLISTED}}]
        },
    }
    for key in agent_keys:
        agent = f"$agents.{key}"
        messages = _numbered(_messages(agent))
        beyond_last = {
            "$add": [
                {"$ifNull": [{"$max": {"$map": {"input": messages, "as": "m", "in": _number("$$m.message_id")}}}, -1]},
                1,
            ]
        }
        counters = {
            "messages": messages,
            "message_count": {"$ifNull": [f"{agent}.message_count", {"$max": [beyond_last, {"$size": messages}]}]},
            "archived_count": _number(f"{agent}.archived_count"),
            "edits": _number(f"{agent}.edits"),
            "usage": _usage(agent),
        }
        fields[f"agents.{key}"] = {
            "$cond": [
                {"$eq": [{"$type": agent}, "object"]},
                {"$mergeObjects": [agent, counters]},
                # An agent that is not there stays away.
                "$$REMOVE",
            ]
        }
    return [{"$set": fields}]


# Older documents lack `agent_ids`; one to which an agent was added since has some of them.
_AGENT_IDS: Document = {"$cond": [{"$isArray": "$agent_ids"}, "$agent_ids", []]}
_AGENTS_THERE: Document = {
    "$map": {"input": EACH_AGENT, "as": "a", "in": {"$ifNull": ["$$a.v.agent_data.agent_id", "$$a.k"]}}
}
_UNLISTED: Document = {"$not": [{"$in": ["$$id", _AGENT_IDS]}]}


# --- history --------------------------------------------------------------------------------------------------------


def segment_id(session_id: str, incarnation: ObjectId, key: str, first: int) -> Document:
    """Return the ``_id`` of the segment whose first message stands at this position. The order of fields counts."""
    return {"session": session_id, "incarnation": incarnation, "agent": key, "first": first}


def segments_of(session_id: str, incarnation: ObjectId) -> Document:
    """Return the condition on ``_id`` that all segments of one life of a session meet, and no others."""
    of_session = {"session": session_id, "incarnation": incarnation}
    return {"$gte": {**of_session, "agent": MinKey()}, "$lte": {**of_session, "agent": MaxKey()}}


def segment_bounds() -> Document:
    """Return the projection of the lowest and the highest ``message_id`` of a segment."""
    ids = _each(_array("$messages"), "$$m.message_id")
    numbers = {"$filter": {"input": ids, "as": "id", "cond": {"$isNumber": "$$id"}}}
    return {"first_id": {"$first": numbers}, "last_id": {"$last": numbers}}


def segment_page_projection(start: int, stop: int) -> Document:
    """Return the projection of those messages of a segment that stand between two positions."""
    begin = {"$max": [start, "$_id.first"]}
    length = {"$max": [1, {"$subtract": [stop, begin]}]}
    return {"count": 1, "messages": {"$slice": ["$messages", {"$subtract": [begin, "$_id.first"]}, length]}}


def segment_message_projection(message_id: int) -> Document:
    """Return the projection of one message of a segment."""
    return {"messages": {"$filter": {"input": "$messages", "as": "m", "cond": {"$eq": ["$$m.message_id", message_id]}}}}


def block_projection(key: str, block: int) -> Document:
    """Return the projection of what an archiver needs: the oldest embedded messages and how things stand."""
    if key == FEEDBACKS:
        archived = _number("$feedbacks_archived")
        size = {"$size": _FEEDBACKS}
        return {
            **_PARTS,
            "bytes": {"$bsonSize": "$$ROOT"},
            "agent": {
                "archived_count": archived,
                "edits": {"$literal": 0},  # Nobody edits a feedback.
                "removed": {"$add": [archived, size]},
                "embedded": size,
                "bytes": {"$bsonSize": {"f": _FEEDBACKS}},
            },
            "messages": {"$slice": [_FEEDBACKS, block]},
        }
    agent = f"$agents.{key}"
    messages = _messages(agent)
    return {
        **_PARTS,
        "bytes": {"$bsonSize": "$$ROOT"},
        "agent": {
            "archived_count": f"{agent}.archived_count",
            "edits": f"{agent}.edits",
            "removed": _number(f"{agent}.{_REMOVED}"),
            "embedded": {"$size": messages},
            "bytes": {"$ifNull": [{"$bsonSize": f"{agent}"}, 0]},
        },
        "messages": {"$slice": [messages, block]},
    }


_PARTS = {"incarnation": 1, "parts_expire_at": 1, "parts_moving_to": 1}


def archive(session_id: str, standing: Mapping[str, Any], key: str, first: int, count: int, edits: int) -> Update:
    """Return the update that commits a segment: it drops exactly its messages from the session document.

    It asks for no lease: what a conversation holds does not change by this, only where. The segment's expiry is what
    was read of the session, ``standing``; that must still be so.
    """
    which = _as_promised(session_id, standing)
    if key == FEEDBACKS:
        which["feedbacks_archived"] = first if first else {"$in": [None, 0]}
        return Update(which, [{"$set": {"feedbacks": _rest("$feedbacks", count), "feedbacks_archived": first + count}}])
    agent = f"agents.{key}"
    which.update({f"{agent}.archived_count": first, f"{agent}.edits": edits})
    messages = _rest(f"${agent}.messages", count)
    return Update(which, [{"$set": {f"{agent}.messages": messages, f"{agent}.archived_count": first + count}}])


def _rest(messages: str, count: int) -> Document:
    return {"$slice": [messages, count, {"$max": [1, {"$size": messages}]}]}


# --- the sweep ------------------------------------------------------------------------------------------------------


def says_whose(path: str, number: str, *otherwise: str) -> Document:
    """Return the expression for whether a path says whose something is, in the types in which that is written here.

    What says so in others, or not at all, is somebody else's.

    Args:
        path: ``"$_id"`` of a part of a session, ``"$metadata"`` of a file.
        number: Its field that is a number.
        otherwise: Types that this may have instead.
    """
    types = {
        "session": ["string"],
        "incarnation": ["objectId"],
        "agent": ["string"],
        number: ["int", "long", "double", *otherwise],
    }
    return {"$and": [{"$in": [{"$type": f"{path}.{name}"}, allowed]} for name, allowed in types.items()]}


def may_be_life(incarnation: Any) -> Document:
    """Return the expression for whether a session document is, or may be, that of this life of the session.

    One whose incarnation is none any more (an export has made a text of it, say) does not tell.
    """
    does_not_tell = {"$not": [{"$in": [{"$type": "$incarnation"}, ["objectId", "missing", "null"]]}]}
    return {"$or": [{"$eq": ["$incarnation", incarnation]}, does_not_tell]}


def lives_to_sweep(sessions: str, number: str) -> list[Document]:
    """Return the pipeline on parts of sessions that yields the lives that seem over, and those with a marked part.

    Each is ``{_id: {session, incarnation}, over, marked}``.

    Args:
        sessions: Name of the collection of the session documents.
        number: The field of a part's ``_id`` that is a number.
    """
    alive: list[Document] = [{"$match": {"$expr": may_be_life("$$incarnation")}}, {"$project": {"_id": 1}}]
    return [
        {"$match": {"$expr": says_whose("$_id", number)}},
        {
            "$group": {
                "_id": {"session": "$_id.session", "incarnation": "$_id.incarnation"},
                "marked": {"$max": {"$ne": [{"$type": "$orphaned_at"}, "missing"]}},
            }
        },
        _look_up_session(sessions, {"incarnation": "$_id.incarnation"}, alive),
        {"$project": {"marked": 1, "over": {"$eq": ["$found", []]}}},
        {"$match": {"$or": [{"over": True}, {"marked": True}]}},
    ]


def stale_segments(sessions: str) -> list[Document]:
    """Return the pipeline on segments that yields ``{_id, edits}`` of those that nobody can commit any more."""
    names = {"incarnation": "$_id.incarnation", "key": "$_id.agent", "first": "$_id.first", "edits": "$edits"}
    stale: list[Document] = [
        {"$match": {"$expr": _outdated("$$incarnation", "$$key", "$$first", "$$edits")}},
        {"$project": {"_id": 1}},
    ]
    return [
        {"$match": {"$expr": says_whose("$_id", "first")}},
        _look_up_session(sessions, names, stale),
        {"$match": {"found": {"$ne": []}}},
        {"$project": {"edits": 1}},
    ]


def outdates(segment: Document, edits: int) -> Document:
    """Return the expression for whether a session is such that nobody can commit this segment any more."""
    return _outdated(segment["incarnation"], {"$literal": segment["agent"]}, segment["first"], edits)


def _outdated(incarnation: Any, key: Any, first: Any, edits: Any) -> Document:
    mine = {"$first": {"$filter": {"input": EACH_AGENT, "as": "a", "cond": {"$eq": ["$$a.k", key]}}}}
    archived, edits_now = "$$mine.v.archived_count", "$$mine.v.edits"
    # Not committed, and a message was edited since it was read. Numbers sort before what is none.
    numbers = [_is_whole(number) for number in (edits, archived, edits_now)]
    uncommitted = {"$and": [*numbers, {"$gte": [first, archived]}, {"$lt": [edits, edits_now]}]}
    return {
        "$and": [
            {"$eq": ["$incarnation", incarnation]},
            {"$let": {"vars": {"mine": mine}, "in": uncommitted}},
        ]
    }


def _look_up_session(sessions: str, names: Document, pipeline: list[Document]) -> Document:
    """Return the stage that makes ``found`` of the session of a part: what the pipeline leaves of its document."""
    return {
        "$lookup": {
            "from": sessions,
            "localField": "_id.session",
            "foreignField": "_id",
            "let": names,
            "pipeline": pipeline,
            "as": "found",
        }
    }


# --- search ---------------------------------------------------------------------------------------------------------


def indexing_standing(key: str) -> Document:
    """Return the projection of how far an agent's messages can be found, and of what has been changed in them.

    It yields ``incarnation``, ``application_name``, ``edits``, ``rewrites`` (how often messages were replaced) and
    ``indexed``: absent, or ``count``, the position from which on nothing is known to be found, and the ``rewrites``
    that are known to have reached the search.
    """
    agent = f"$agents.{key}"
    return {
        **_PARTS,
        "application_name": 1,
        "edits": _whole(f"{agent}.edits"),
        "rewrites": _whole(f"{agent}.rewrites"),
        "indexed": f"{agent}.indexed",
    }


def unindexed_projection(key: str, limit: int) -> Document:
    """Return the projection of what a feeder needs: how things stand and the text of the next embedded messages.

    Beside ``indexing_standing`` that is ``message_count``, ``total`` (how many messages there are), ``archived_count``
    (None where it is no number; absent without the agent) and ``messages``.
    """
    agent = f"$agents.{key}"
    start, archived = _whole(f"{agent}.indexed.count"), _whole(f"{agent}.archived_count")
    position = {"$min": [_INT32_MAX, {"$max": [0, {"$subtract": [start, archived]}]}]}
    page = {"$slice": [_messages(agent), position, limit]}
    return {
        **indexing_standing(key),
        "message_count": _whole(f"{agent}.message_count"),
        "total": {"$add": [archived, {"$size": _messages(agent)}]},
        "archived_count": _archived_count(agent),
        "messages": {"$cond": [{"$gte": [start, archived]}, _texts(page), []]},
    }


def unindexed_in_segment_projection(position: int) -> Document:
    """Return the projection of the text of a segment's messages from a position of the conversation on."""
    messages = _array("$messages")
    rest = {"$slice": [messages, {"$subtract": [position, "$_id.first"]}, {"$max": [1, {"$size": messages}]}]}
    return {"messages": _texts(rest)}


def _texts(messages: Document) -> Document:
    """Return the expression for messages of which only blocks of text are left; null for what is none."""
    # The latter two: in older documents, which keep what was redacted.
    content: Document = {"$ifNull": ["$$m.content", "$$m.redact_message.content", "$$m.message.content"]}
    has_text = {"$ne": [{"$type": "$$b.text"}, "missing"]}
    blocks = {"$filter": {"input": content, "as": "b", "cond": has_text}}
    texts = {"$map": {"input": blocks, "as": "b", "in": {"text": "$$b.text"}}}
    message = {
        "message_id": "$$m.message_id",
        "role": {"$ifNull": ["$$m.role", "$$m.message.role"]},
        "created_at": "$$m.created_at",
        "content": {"$cond": [{"$isArray": content}, texts, content]},
    }
    return _each(messages, {"$cond": [{"$eq": [{"$type": "$$m"}, "object"]}, message, None]})


def begin_indexing(session_id: str, incarnation: ObjectId, key: str) -> Update:
    """Return the update that says that an agent's messages will be indexed, from the first one on.

    It comes before any of them is read: whoever changes one from here on knows that it may be in the search.
    """
    agent = f"agents.{key}"
    indexed = {"count": {"$literal": 0}, "rewrites": _whole(f"${agent}.rewrites")}
    which = {"_id": session_id, "incarnation": incarnation, f"{agent}.message_count": {"$exists": True}}
    return Update(which, [{"$set": {f"{agent}.indexed": indexed}}])


def indexed(session_id: str, key: str, standing: Mapping[str, Any], stop: int) -> Update:
    """Return the update that says that the messages up to a position are in the search, if nobody has said more.

    And if they expire with the parts of the session, as these did when it was read.
    """
    agent = f"agents.{key}"
    which = _as_promised(session_id, standing)
    which.update({f"{agent}.indexed.{name}": standing["indexed"][name] for name in ("count", "rewrites")})
    return Update(which, {"$set": {f"{agent}.indexed.count": stop}})


def rewrite_indexed(session_id: str, incarnation: ObjectId, key: str, rewrites: int) -> Update:
    """Return the update that says that the latest of so many rewrites has reached the search, as all before."""
    agent = f"agents.{key}"
    which: Document = {"_id": session_id, "incarnation": incarnation}
    which.update({f"{agent}.rewrites": rewrites, f"{agent}.indexed.rewrites": rewrites - 1})
    return Update(which, {"$set": {f"{agent}.indexed.rewrites": rewrites}})


def put_search_document(document: Document, *, wins_ties: bool) -> Update:
    """Return the upsert of a search document, which leaves one alone that was made after more ``edits``.

    Args:
        document: The document.
        wins_ties: Whether it takes the place of one with as many edits.
    """
    is_newer = {"$gt" if wins_ties else "$gte": ["$edits", document["edits"]]}
    # A pipeline, so that the filter is the _id alone: a filter by edits would insert where nothing matched.
    found: Document = {"$cond": [is_newer, "$$ROOT", {"$literal": document}]}
    if "expires_at" in document:
        # It may have been put when the parts of its session were to go sooner.
        found = {"$mergeObjects": [found, {"expires_at": {"$max": ["$expires_at", document["expires_at"]]}}]}
    return Update({"_id": document["_id"]}, [{"$replaceWith": found}])


def behind_projection() -> Document:
    """Return the projection of which agents have messages that the search does not have, or not as they are now.

    Of each agent it yields its ``key``, whether it is ``behind`` and whether it has the counters of an ``adopted`` one.
    """
    agent = "$$a.v"
    total = {"$add": [_whole(f"{agent}.archived_count"), {"$size": _messages(agent)}]}
    has_other_ones = {"$ne": [_whole(f"{agent}.indexed.count"), total]}
    has_old_ones = {"$ne": [_whole(f"{agent}.indexed.rewrites"), _whole(f"{agent}.rewrites")]}
    counters = [{"$ne": [{"$type": f"{agent}.{name}"}, "missing"]} for name in ("archived_count", "message_count")]
    found = {"key": "$$a.k", "adopted": {"$and": counters}, "behind": {"$or": [has_other_ones, has_old_ones]}}
    agents = {"$filter": {"input": EACH_AGENT, "as": "a", "cond": {"$eq": [{"$type": agent}, "object"]}}}
    return {"incarnation": 1, "agents": {"$map": {"input": agents, "as": "a", "in": found}}}


SIZES: Document = {
    "incarnation": 1,
    "bytes": {"$bsonSize": "$$ROOT"},
    "feedbacks": {"$bsonSize": {"f": _FEEDBACKS}},
    "agents": {
        "$map": {
            "input": EACH_AGENT,
            "as": "a",
            "in": {
                "key": "$$a.k",
                "messages": {"$bsonSize": {"m": {"$ifNull": ["$$a.v.messages", []]}}},
                "archived_count": "$$a.v.archived_count",
                "edits": "$$a.v.edits",
            },
        }
    },
}
"""Projection of the size of a session document and of each agent's embedded messages, in bytes."""


def _numbered(messages: Document) -> Document:
    """Return the expression that gives messages without a ``message_id`` their position as such."""
    positions = {"$range": [0, {"$size": messages}]}
    message = {"$arrayElemAt": [messages, "$$i"]}
    numbered = {"$mergeObjects": [{"message_id": "$$i"}, message]}
    kept = {"$cond": [{"$eq": [{"$type": message}, "object"]}, numbered, message]}
    return {"$map": {"input": positions, "as": "i", "in": kept}}


def _messages(agent: str) -> Document:
    return _array(f"{agent}.messages")


def _array(path: str) -> Document:
    return {"$cond": [{"$isArray": path}, path, []]}


def _each(messages: Any, expression: Any) -> Document:
    """Return the expression for what an expression, which sees `$$m`, is for each of these messages."""
    return {"$map": {"input": messages, "as": "m", "in": expression}}


def _count(agent: str) -> Document:
    return {"$add": [_number(f"{agent}.archived_count"), {"$size": _messages(agent)}]}


def _number(path: str) -> Document:
    return {"$cond": [{"$isNumber": path}, path, 0]}


def _whole(path: str) -> Document:
    """Return the expression for a count; 0 where there is none."""
    return {"$cond": [_is_whole(path), _to_long(path), 0]}


def _archived_count(agent: str) -> Document:
    """Return the expression for how many messages are archived: null where what says so is no count."""
    count = f"{agent}.archived_count"
    spoilt = {"$cond": [{"$eq": [{"$type": count}, "missing"]}, "$$REMOVE", None]}
    return {"$cond": [_is_whole(count), _to_long(count), spoilt]}


def _is_whole(number: Any) -> Document:
    """Return the expression for whether a value is a count: a shell writes one as floating point, and there is NaN."""
    return {"$and": [{"$eq": [number, _to_long(number)]}, {"$gte": [_to_long(number), 0]}]}


def _to_long(number: Any) -> Document:
    # Never an error: in a $lookup, MongoDB computes even what stands behind a false condition, ahead of time.
    return {"$convert": {"input": number, "to": "long", "onError": -1, "onNull": -1}}


def _nested(paths: Mapping[str, Any]) -> Document:
    document: Document = {}
    for path, value in paths.items():
        *parents, last = path.split(".")
        inner = document
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return document


METADATA_CHANGES_SO_FAR = _number("$metadata_changes")
"""Expression for how often a session's metadata was changed."""

LEASES_SO_FAR = _number("$leases")
"""Expression for how often a session's lease was taken."""
