"""Segments: their ``_id``, how they are read, and the one update of the session document that commits a segment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bson import MaxKey, MinKey, ObjectId

from .._model.documents import Document
from .._model.limits import INT64_MAX
from .._model.related_shapes import SegmentId
from .expressions import REMOVED, array_at, for_each_agent, for_each_message, messages_of, messages_with_id, number_at
from .feedback import EMBEDDED_FEEDBACKS, FEEDBACKS
from .sessions import RELATED_EXPIRY, Update, as_promised

# --- which segments -------------------------------------------------------------------------------------------------


def segment_id(session_id: str, incarnation: ObjectId, key: str, first: int) -> SegmentId:
    """Return the ``_id`` of the segment whose first message has this offset. The order of the fields counts."""
    return {"session": session_id, "incarnation": incarnation, "agent": key, "first": first}


def segments_of(session_id: str, incarnation: ObjectId) -> Document:
    """Return the condition on ``_id`` that all segments of one incarnation of a session meet, and no others."""
    of_session = {"session": session_id, "incarnation": incarnation}
    return {"$gte": {**of_session, "agent": MinKey()}, "$lte": {**of_session, "agent": MaxKey()}}


def segments_up_to(session_id: str, incarnation: ObjectId, key: str, offset: int = INT64_MAX) -> Document:
    """Return the condition on ``_id`` of an agent's segments (or the feedbacks') that begin at an offset or before."""
    low, high = (segment_id(session_id, incarnation, key, first) for first in (0, offset))
    return {"$gte": low, "$lte": high}


# --- what is read of a segment --------------------------------------------------------------------------------------


def segment_bounds() -> Document:
    """Return the projection of the lowest and the highest ``message_id`` of a segment: absent where none has one."""
    ids = for_each_message(array_at("$messages"), "$$m.message_id")
    numbers = {"$filter": {"input": ids, "as": "id", "cond": {"$isNumber": "$$id"}}}
    return {"first_id": {"$first": numbers}, "last_id": {"$last": numbers}}


def segment_page_projection(start: int, stop: int) -> Document:
    """Return the projection of a segment's messages from offset ``start`` up to ``stop``, and of its ``count``."""
    begin = {"$max": [start, "$_id.first"]}
    length = {"$max": [1, {"$subtract": [stop, begin]}]}
    return {"count": 1, "messages": {"$slice": ["$messages", {"$subtract": [begin, "$_id.first"]}, length]}}


def segment_message_projection(message_id: int) -> Document:
    """Return the projection of a segment's ``messages`` to the one with this id, or to none."""
    return {"messages": messages_with_id("$messages", message_id)}


# --- archiving ------------------------------------------------------------------------------------------------------


def block_projection(key: str, block: int) -> Document:
    """Return the projection of what an archiver needs of an agent, or of the feedbacks.

    It yields, beside ``RELATED_EXPIRY``:

    - ``bytes``: the size of the session document;
    - ``messages``: the oldest embedded messages, at most ``block`` of them;
    - ``agent``: ``archived_count`` and ``edits`` (absent in an older document), ``removed`` (how many messages are no
      longer live, archived ones included), ``embedded`` (how many there are) and ``bytes`` (their size, with that of
      the agent's record).
    """
    if key == FEEDBACKS:
        archived, size, messages = number_at("$feedbacks_archived"), {"$size": EMBEDDED_FEEDBACKS}, EMBEDDED_FEEDBACKS
        embedded: Document = {
            "archived_count": archived,
            "edits": {"$literal": 0},  # Nobody edits a feedback.
            "removed": {"$add": [archived, size]},
            "embedded": size,
            "bytes": {"$bsonSize": {"f": EMBEDDED_FEEDBACKS}},
        }
    else:
        agent = f"$agents.{key}"
        messages = messages_of(agent)
        embedded = {
            "archived_count": f"{agent}.archived_count",
            "edits": f"{agent}.edits",
            "removed": number_at(f"{agent}.{REMOVED}"),
            "embedded": {"$size": messages},
            "bytes": {"$ifNull": [{"$bsonSize": f"{agent}"}, 0]},
        }
    size_of_all = {"$bsonSize": "$$ROOT"}
    return {**RELATED_EXPIRY, "bytes": size_of_all, "agent": embedded, "messages": {"$slice": [messages, block]}}


def archive(session_id: str, standing: Mapping[str, Any], key: str, first: int, count: int, edits: int) -> Update:
    """Return the update that commits a segment: it drops exactly its messages from the session document.

    It asks for no lease: it does not change what a conversation holds, only where that lies. The segment's expiry is
    what was read of the session, ``standing``; that must still be so.
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
    "agents": for_each_agent(
        {
            "key": "$$a.k",
            "messages": {"$bsonSize": {"m": {"$ifNull": ["$$a.v.messages", []]}}},
            "archived_count": "$$a.v.archived_count",
            "edits": "$$a.v.edits",
        }
    ),
}
"""Projection of the size of a session document, of its embedded feedbacks and of each agent's embedded messages."""
