"""What is changed besides messages, agents and feedback: metadata, the states of graphs and swarms, the lease.

Each update names in its filter how often that was changed before. And what an older document is given that it lacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from bson import ObjectId

from .._model.documents import Document
from .._model.keys import encode_key
from .._model.limits import MAX_METADATA_BYTES
from .expressions import array_at, counter_is, for_each_agent, for_each_message, is_object, number_at, object_at
from .reading import usage_of
from .sessions import MAY_WRITE, SessionRef, Update

# --- metadata --------------------------------------------------------------------------------------------------------

METADATA_SIZE: Document = {"$bsonSize": object_at("$metadata")}
"""Expression for how many bytes a session's metadata has."""


def set_metadata(session: SessionRef, metadata: Mapping[str, Any], changes: int, now: datetime) -> Update:
    """Return the update that sets these metadata fields and leaves the others, if they were changed so often before."""
    has_room = {"$lte": [METADATA_SIZE, MAX_METADATA_BYTES]}
    changed = {f"metadata.{key}": value for key, value in metadata.items()}
    return _change_metadata(session, {"$set": changed}, changes, now, has_room)


def unset_metadata(session: SessionRef, keys: Iterable[str], changes: int, now: datetime) -> Update:
    """Return the update that removes these metadata fields, if they were changed so often before."""
    return _change_metadata(session, {"$unset": {f"metadata.{key}": "" for key in keys}}, changes, now)


def _change_metadata(
    session: SessionRef, change: Document, changes: int, now: datetime, that: Document | None = None
) -> Update:
    counted = {**change, "$inc": {"metadata_changes": 1}}
    return session.write(now, counted, counter_is("metadata_changes", changes), that=that)


_FIELDS_SET = {"$objectToArray": {"$ifNull": ["$updateDescription.updatedFields", {}]}}
_PATHS_CHANGED = [
    {"$map": {"input": _FIELDS_SET, "as": "f", "in": "$$f.k"}},
    {"$ifNull": ["$updateDescription.removedFields", []]},
    {"$ifNull": ["$updateDescription.truncatedArrays.field", []]},
]
_IS_METADATA = {"$regexMatch": {"input": "$$path", "regex": r"^metadata(\.|$)"}}
_ARE_METADATA = {"$map": {"input": {"$concatArrays": _PATHS_CHANGED}, "as": "path", "in": _IS_METADATA}}
# Deletions and replacements, and what ends a stream: the collection was dropped or renamed.
_IS_NO_UPDATE = {"operationType": {"$nin": ["insert", "update"]}}

METADATA_CHANGES: list[Document] = [
    {"$match": {"$or": [_IS_NO_UPDATE, {"$expr": {"$anyElementTrue": _ARE_METADATA}}]}},
    {"$project": {"documentKey": 1}},
]
"""Pipeline of a change stream that yields the changes after which a session's metadata may be other than before."""


METADATA_CHANGES_SO_FAR = number_at("$metadata_changes")
"""Expression for how often a session's metadata was changed."""


# --- graphs and swarms -----------------------------------------------------------------------------------------------


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
    """Return the projection of how often the state of a graph or swarm was changed: null if it is not stored."""
    entry = f"$multi_agents.{encode_key(multi_agent_id)}"
    stored = {"$ne": [{"$type": f"{entry}.state"}, "missing"]}
    return {"changes": {"$cond": [stored, number_at(f"{entry}.changes"), None]}}


def multi_agent_state_expression(multi_agent_id: str) -> str:
    """Return the expression for the stored state of a graph or swarm."""
    return f"$multi_agents.{encode_key(multi_agent_id)}.state"


# --- the lease: all times are the server's ---------------------------------------------------------------------------


def take_lease(session: SessionRef, owner: str, token: str, seconds: float, leases: int) -> Update:
    """Return the update that takes the lease if it is free or expired, and was taken so often before."""
    which: Document = {"_id": session.session_id, "incarnation": session.incarnation, **counter_is("leases", leases)}
    which["$expr"] = MAY_WRITE
    lease = {"owner": {"$literal": owner}, "token": {"$literal": token}, "expires_at": _in(seconds)}
    # $unset first: $set merges into a document that is there.
    return Update(which, [{"$unset": "lease"}, {"$set": {"lease": lease, "leases": leases + 1}}])


def renew_lease(session: SessionRef, seconds: float) -> Update:
    """Return the update that moves the end of a lease that is still held."""
    return Update(session.filter(), [{"$set": {"lease.expires_at": _in(seconds)}}])


def release_lease(session_id: str, token: str) -> Update:
    """Return the update that gives a lease back; somebody else's is left alone."""
    return Update({"_id": session_id, "lease.token": token}, {"$unset": {"lease": ""}})


def _in(seconds: float) -> Document:
    return {"$add": ["$$NOW", round(seconds * 1000)]}


LEASES_SO_FAR = number_at("$leases")
"""Expression for how often a session's lease was taken."""


# --- older documents: what they lack ---------------------------------------------------------------------------------


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
        messages = _numbered(array_at(f"{agent}.messages"))
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
