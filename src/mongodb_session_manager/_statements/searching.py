"""Search documents, and how far they have come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bson import ObjectId

from .._model.documents import Document
from .._model.limits import INT32_MAX
from .expressions import EACH_AGENT, archived_count_of, array_at, each_message, messages_of, whole_at
from .related_expiry import RELATED_EXPIRY, as_promised
from .sessions import Update


def indexing_standing(key: str) -> Document:
    """Return the projection of how far an agent's messages can be found, and of what has been changed in them.

    It yields ``incarnation``, ``application_name``, ``edits``, ``rewrites`` (how often messages were replaced) and
    ``indexed``: absent, or ``count``, the position from which on nothing is known to be found, and the ``rewrites``
    that are known to have reached the search.
    """
    agent = f"$agents.{key}"
    return {
        **RELATED_EXPIRY,
        "application_name": 1,
        "edits": whole_at(f"{agent}.edits"),
        "rewrites": whole_at(f"{agent}.rewrites"),
        "indexed": f"{agent}.indexed",
    }


def unindexed_projection(key: str, limit: int) -> Document:
    """Return the projection of what an indexer needs: how things stand and the text of the next embedded messages.

    Beside ``indexing_standing`` that is ``message_count``, ``total`` (how many messages there are), ``archived_count``
    (None where it is no number; absent without the agent) and ``messages``.
    """
    agent = f"$agents.{key}"
    start, archived = whole_at(f"{agent}.indexed.count"), whole_at(f"{agent}.archived_count")
    position = {"$min": [INT32_MAX, {"$max": [0, {"$subtract": [start, archived]}]}]}
    page = {"$slice": [messages_of(agent), position, limit]}
    return {
        **indexing_standing(key),
        "message_count": whole_at(f"{agent}.message_count"),
        "total": {"$add": [archived, {"$size": messages_of(agent)}]},
        "archived_count": archived_count_of(agent),
        "messages": {"$cond": [{"$gte": [start, archived]}, _texts(page), []]},
    }


def unindexed_in_segment_projection(position: int) -> Document:
    """Return the projection of the text of a segment's messages from a position of the conversation on."""
    messages = array_at("$messages")
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
    return each_message(messages, {"$cond": [{"$eq": [{"$type": "$$m"}, "object"]}, message, None]})


def begin_indexing(session_id: str, incarnation: ObjectId, key: str) -> Update:
    """Return the update that says that an agent's messages will be indexed, from the first one on.

    It comes before any of them is read: whoever changes one from here on knows that it may be in the search.
    """
    agent = f"agents.{key}"
    indexed = {"count": {"$literal": 0}, "rewrites": whole_at(f"${agent}.rewrites")}
    which = {"_id": session_id, "incarnation": incarnation, f"{agent}.message_count": {"$exists": True}}
    return Update(which, [{"$set": {f"{agent}.indexed": indexed}}])


def indexed(session_id: str, key: str, standing: Mapping[str, Any], stop: int) -> Update:
    """Return the update that says that the messages up to a position are in the search, if nobody has said more.

    And if they expire with the parts of the session, as these did when it was read.
    """
    agent = f"agents.{key}"
    which = as_promised(session_id, standing)
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
    total = {"$add": [whole_at(f"{agent}.archived_count"), {"$size": messages_of(agent)}]}
    has_other_ones = {"$ne": [whole_at(f"{agent}.indexed.count"), total]}
    has_old_ones = {"$ne": [whole_at(f"{agent}.indexed.rewrites"), whole_at(f"{agent}.rewrites")]}
    counters = [{"$ne": [{"$type": f"{agent}.{name}"}, "missing"]} for name in ("archived_count", "message_count")]
    found = {"key": "$$a.k", "adopted": {"$and": counters}, "behind": {"$or": [has_other_ones, has_old_ones]}}
    agents = {"$filter": {"input": EACH_AGENT, "as": "a", "cond": {"$eq": [{"$type": agent}, "object"]}}}
    return {"incarnation": 1, "agents": {"$map": {"input": agents, "as": "a", "in": found}}}
