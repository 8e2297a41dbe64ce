"""Segments of the history: read, and committed by one update of the session document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bson import MaxKey, MinKey, ObjectId

from .._model.documents import Document
from .expressions import EACH_AGENT, REMOVED, array_at, each_message, messages_of, number_at
from .feedback import EMBEDDED_FEEDBACKS, FEEDBACKS
from .related_expiry import RELATED_EXPIRY, as_promised
from .sessions import Update


def segment_id(session_id: str, incarnation: ObjectId, key: str, first: int) -> Document:
    """Return the ``_id`` of the segment whose first message stands at this position. The order of fields counts."""
    return {"session": session_id, "incarnation": incarnation, "agent": key, "first": first}


def segments_of(session_id: str, incarnation: ObjectId) -> Document:
    """Return the condition on ``_id`` that all segments of one incarnation of a session meet, and no others."""
    of_session = {"session": session_id, "incarnation": incarnation}
    return {"$gte": {**of_session, "agent": MinKey()}, "$lte": {**of_session, "agent": MaxKey()}}


def segment_bounds() -> Document:
    """Return the projection of the lowest and the highest ``message_id`` of a segment."""
    ids = each_message(array_at("$messages"), "$$m.message_id")
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
        archived = number_at("$feedbacks_archived")
        size = {"$size": EMBEDDED_FEEDBACKS}
        return {
            **RELATED_EXPIRY,
            "bytes": {"$bsonSize": "$$ROOT"},
            "agent": {
                "archived_count": archived,
                "edits": {"$literal": 0},  # Nobody edits a feedback.
                "removed": {"$add": [archived, size]},
                "embedded": size,
                "bytes": {"$bsonSize": {"f": EMBEDDED_FEEDBACKS}},
            },
            "messages": {"$slice": [EMBEDDED_FEEDBACKS, block]},
        }
    agent = f"$agents.{key}"
    messages = messages_of(agent)
    return {
        **RELATED_EXPIRY,
        "bytes": {"$bsonSize": "$$ROOT"},
        "agent": {
            "archived_count": f"{agent}.archived_count",
            "edits": f"{agent}.edits",
            "removed": number_at(f"{agent}.{REMOVED}"),
            "embedded": {"$size": messages},
            "bytes": {"$ifNull": [{"$bsonSize": f"{agent}"}, 0]},
        },
        "messages": {"$slice": [messages, block]},
    }


def archive(session_id: str, standing: Mapping[str, Any], key: str, first: int, count: int, edits: int) -> Update:
    """Return the update that commits a segment: it drops exactly its messages from the session document.

    It asks for no lease: what a conversation holds does not change by this, only where. The segment's expiry is what
    was read of the session, ``standing``; that must still be so.
    """
    which = as_promised(session_id, standing)
    if key == FEEDBACKS:
        which["feedbacks_archived"] = first if first else {"$in": [None, 0]}
        return Update(which, [{"$set": {"feedbacks": _rest("$feedbacks", count), "feedbacks_archived": first + count}}])
    agent = f"agents.{key}"
    which.update({f"{agent}.archived_count": first, f"{agent}.edits": edits})
    messages = _rest(f"${agent}.messages", count)
    return Update(which, [{"$set": {f"{agent}.messages": messages, f"{agent}.archived_count": first + count}}])


def _rest(messages: str, count: int) -> Document:
    return {"$slice": [messages, count, {"$max": [1, {"$size": messages}]}]}


SIZES: Document = {
    "incarnation": 1,
    "bytes": {"$bsonSize": "$$ROOT"},
    "feedbacks": {"$bsonSize": {"f": EMBEDDED_FEEDBACKS}},
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
