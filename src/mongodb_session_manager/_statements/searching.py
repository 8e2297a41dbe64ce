"""Search documents: what is read to make them, how they are put, and how the session document says how far they go."""

from __future__ import annotations

from datetime import datetime

from bson import ObjectId
from typing_extensions import NotRequired, TypedDict

from .._model.documents import Document
from .._model.keys import check_id, check_text, exact_text
from .._model.limits import INT32_MAX
from .._model.shapes import IndexingProgress
from ..errors import shown
from .expressions import EACH_AGENT, archived_count_of, array_at, for_each_message, is_object, messages_of, whole_at
from .sessions import RELATED_EXPIRY, Update, as_promised


def search_conditions(
    session_id: str | None, agent_id: str | None, role: str | None, application_name: str | None, limit: int
) -> dict[str, str]:
    """Return the fields that found messages must have; what is None is not asked for.

    Raises:
        TypeError: A condition is no string.
        ValueError: The role is another than ``"user"`` and ``"assistant"``; ``limit`` is no ``int`` from 1 on.
        InvalidIdentifierError: An id cannot be used.
    """
    conditions: dict[str, str] = {}
    if session_id is not None:
        conditions["session_id"] = check_id(session_id, "session_id")
    if agent_id is not None:
        conditions["agent_id"] = check_id(agent_id, "agent_id")
    if role is not None:
        if role not in ("user", "assistant"):
            raise ValueError(f"role must be 'user' or 'assistant', not {shown(role)}")
        conditions["role"] = exact_text(role)
    if application_name is not None:
        conditions["application_name"] = check_text(application_name, "application_name")
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= INT32_MAX:
        raise ValueError(f"limit must be an int of at least 1, not {shown(limit)}")
    return conditions


class IndexingStanding(TypedDict):
    """What ``indexing_standing`` yields.

    Attributes:
        incarnation: The incarnation of the session.
        parts_expire_at: Until when its related documents are kept, UTC; absent where they have no expiry.
        parts_moving_to: Until when somebody is just making them live, UTC; absent where nobody does.
        application_name: The application of the session; absent where none was given.
        edits: How often stored messages of the agent were changed.
        rewrites: How often stored messages of it were replaced.
        indexed: The mark of an indexer, see ``IndexingProgress``; absent where none was there yet.
    """

    incarnation: ObjectId
    parts_expire_at: NotRequired[datetime]
    parts_moving_to: NotRequired[datetime]
    application_name: NotRequired[str]
    edits: int
    rewrites: int
    indexed: NotRequired[IndexingProgress]


class UnindexedMessages(IndexingStanding):
    """What ``unindexed_projection`` yields.

    Attributes:
        message_count: The agent's ``next_message_id``; 0 where it is no count.
        total: How many messages the agent has, archived and embedded.
        archived_count: How many of them are archived; None where that is no count. The key itself is absent where
            there is no such agent.
        messages: The text of the next embedded messages; none as long as archived ones come first. None for what is
            no message.
    """

    message_count: int
    total: int
    archived_count: int | None
    messages: list[Document | None]


def indexing_standing(key: str) -> Document:
    """Return the projection of how far an agent's messages are in the search, an ``IndexingStanding``."""
    agent = f"$agents.{key}"
    return {
        **RELATED_EXPIRY,
        "application_name": 1,
        "edits": whole_at(f"{agent}.edits"),
        "rewrites": whole_at(f"{agent}.rewrites"),
        "indexed": f"{agent}.indexed",
    }


def unindexed_projection(key: str, limit: int) -> Document:
    """Return the projection of what an indexer needs, an ``UnindexedMessages``; at most ``limit`` of them."""
    agent = f"$agents.{key}"
    start, archived = whole_at(f"{agent}.indexed.count"), whole_at(f"{agent}.archived_count")
    skip = {"$min": [INT32_MAX, {"$max": [0, {"$subtract": [start, archived]}]}]}
    page = {"$slice": [messages_of(agent), skip, limit]}
    return {
        **indexing_standing(key),
        "message_count": whole_at(f"{agent}.message_count"),
        "total": {"$add": [archived, {"$size": messages_of(agent)}]},
        "archived_count": archived_count_of(agent),
        "messages": {"$cond": [{"$gte": [start, archived]}, _texts(page), []]},
    }


def unindexed_in_segment_projection(offset: int) -> Document:
    """Return the projection of the text of a segment's messages, from an offset of the conversation on."""
    messages = array_at("$messages")
    rest = {"$slice": [messages, {"$subtract": [offset, "$_id.first"]}, {"$max": [1, {"$size": messages}]}]}
    return {"messages": _texts(rest)}


def _texts(messages: Document) -> Document:
    """Return the expression for these messages with only their blocks of text; null for what is no message."""
    # The last two: in older documents, which keep the original of what was redacted.
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
    return for_each_message(messages, {"$cond": [is_object("$$m"), message, None]})


def begin_indexing(session_id: str, incarnation: ObjectId, key: str) -> Update:
    """Return the update that says that an agent's messages will be indexed, from the first one on.

    It is sent before any of them is read: whoever changes a message after it knows that the old text may be in the
    search.
    """
    agent = f"agents.{key}"
    indexed = {"count": {"$literal": 0}, "rewrites": whole_at(f"${agent}.rewrites")}
    which = {"_id": session_id, "incarnation": incarnation, f"{agent}.message_count": {"$exists": True}}
    return Update(which, [{"$set": {f"{agent}.indexed": indexed}}])


def indexed(session_id: str, key: str, standing: IndexingStanding, stop: int) -> Update:
    """Return the update that says that the first ``stop`` messages are in the search.

    It matches only while ``indexed`` and the expiry of related documents are as they were read: so nobody has indexed
    further meanwhile, and what was put there expires with the session.

    Args:
        session_id: The session.
        key: The agent's key.
        standing: How things stood when the messages were read.
        stop: How many messages, from the first one on.
    """
    agent = f"agents.{key}"
    which = as_promised(session_id, standing)
    which.update({f"{agent}.indexed.{name}": standing["indexed"][name] for name in ("count", "rewrites")})
    return Update(which, {"$set": {f"{agent}.indexed.count": stop}})


def rewrite_indexed(session_id: str, incarnation: ObjectId, key: str, rewrites: int) -> Update:
    """Return the update that says that all of so many rewrites are in the search, if only the last one was not."""
    agent = f"agents.{key}"
    which: Document = {"_id": session_id, "incarnation": incarnation}
    which.update({f"{agent}.rewrites": rewrites, f"{agent}.indexed.rewrites": rewrites - 1})
    return Update(which, {"$set": {f"{agent}.indexed.rewrites": rewrites}})


def put_search_document(document: Document, *, wins_ties: bool) -> Update:
    """Return the upsert of a search document; where there is one already, that with more ``edits`` stays.

    Args:
        document: The document.
        wins_ties: Whether it replaces one with as many ``edits``.
    """
    is_newer = {"$gt" if wins_ties else "$gte": ["$edits", document["edits"]]}
    # A pipeline, so that the filter is the _id alone: a filter by edits would insert where nothing matched.
    found: Document = {"$cond": [is_newer, "$$ROOT", {"$literal": document}]}
    if "expires_at" in document:
        # The one that stays may have been made when the session was to expire sooner.
        found = {"$mergeObjects": [found, {"expires_at": {"$max": ["$expires_at", document["expires_at"]]}}]}
    return Update({"_id": document["_id"]}, [{"$replaceWith": found}])


def behind_projection() -> Document:
    """Return the projection of which agents have messages that are not in the search, or not as they are now.

    It yields ``incarnation`` (absent in an older document, or what another program has put there) and ``agents``. Of
    each agent ``{key, adopted, behind}``: whether it has the counters that an older document lacks, and whether it has
    such messages.
    """
    agent = "$$a.v"
    total = {"$add": [whole_at(f"{agent}.archived_count"), {"$size": messages_of(agent)}]}
    has_others = {"$ne": [whole_at(f"{agent}.indexed.count"), total]}
    has_changed = {"$ne": [whole_at(f"{agent}.indexed.rewrites"), whole_at(f"{agent}.rewrites")]}
    counters = [{"$ne": [{"$type": f"{agent}.{name}"}, "missing"]} for name in ("archived_count", "message_count")]
    found = {"key": "$$a.k", "adopted": {"$and": counters}, "behind": {"$or": [has_others, has_changed]}}
    agents = {"$filter": {"input": EACH_AGENT, "as": "a", "cond": is_object(agent)}}
    return {"incarnation": 1, "agents": {"$map": {"input": agents, "as": "a", "in": found}}}
