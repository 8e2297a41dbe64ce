"""What an older document lacks."""

from __future__ import annotations

from collections.abc import Sequence

from bson import ObjectId

from .._model.documents import Document
from .expressions import array_at, for_each_agent, for_each_message, is_object, messages_of, number_at
from .reading import usage_of


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
        messages = _numbered(messages_of(agent))
        last_id = {"$ifNull": [{"$max": for_each_message(messages, number_at("$$m.message_id"))}, -1]}
        next_id = {"$max": [{"$add": [last_id, 1]}, {"$size": messages}]}
        counters = {
            "messages": messages,
            "message_count": {"$ifNull": [f"{agent}.message_count", next_id]},
            "archived_count": number_at(f"{agent}.archived_count"),
            "edits": number_at(f"{agent}.edits"),
            "usage": usage_of(agent),
        }
        # An agent that is not there stays away.
        fields[f"agents.{key}"] = {"$cond": [is_object(agent), {"$mergeObjects": [agent, counters]}, "$$REMOVE"]}
    return [{"$set": fields}]


# Older documents lack `agent_ids`; one to which an agent was added since has some of them.
_AGENT_IDS: Document = array_at("$agent_ids")
_AGENTS_THERE: Document = for_each_agent({"$ifNull": ["$$a.v.agent_data.agent_id", "$$a.k"]})
_UNLISTED: Document = {"$not": [{"$in": ["$$id", _AGENT_IDS]}]}


def _numbered(messages: Document) -> Document:
    """Return the expression that gives a message without a ``message_id`` its offset as such."""
    offsets = {"$range": [0, {"$size": messages}]}
    message = {"$arrayElemAt": [messages, "$$i"]}
    numbered = {"$mergeObjects": [{"message_id": "$$i"}, message]}
    return {"$map": {"input": offsets, "as": "i", "in": {"$cond": [is_object(message), numbered, message]}}}
