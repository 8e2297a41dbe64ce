"""One commit: messages, changed fields, a new agent; and what tells a writer whose append did not match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bson import ObjectId

from .._model.documents import Document, message_document, new_agent
from .._model.metrics import Totals, summed
from .expressions import count_of, counter_is, messages_of, number_at
from .interventions import intervention, list_interventions
from .sessions import SessionRef, Update


@dataclass
class Commit:
    """What one update of a session document carries for one agent.

    Attributes:
        key: The agent's key in the document.
        first_message_id: The ``message_id`` the first message is to get; it guards the update.
        changes: The agent's ``changes`` so far; it guards an update that appends nothing.
        messages: Stored messages without their ``message_id``, oldest first.
        creates: The agent's whole ``agent_data`` if the agent is not stored yet, else None.
        fields: Fields of ``agent_data`` that have changed, since it was created here or read, encoded.
        totals: Growth of the running totals, by each of the messages.
        guardrail_events: Interventions of a guardrail, each with the index of its message in ``messages``.
        commit_id: Stored on the first message, so that a commit of unknown outcome can be recognised.
    """

    key: str
    first_message_id: int
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
        message_id = work.first_message_id + len(messages)
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
        conditions = {f"{agent}.message_count": work.first_message_id}
    if work.guardrail_events:
        list_interventions(
            update,
            [intervention(work.key, work.first_message_id + index, event) for index, event in work.guardrail_events],
        )
    return session.write(now, update, conditions)


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
    is_count = {"$and": [is_number, {"$eq": [{"$mod": [number_at(f"${count}"), 1]}, 0]}]}
    return session.write(now, changes, {count: {"$gte": 0, "$lte": message["message_id"]}}, that=is_count)


def agent_projection(key: str) -> Document:
    """Return the projection that tells how an agent's record stands."""
    agent = f"$agents.{key}"
    return {
        "exists": {"$eq": [{"$type": agent}, "object"]},
        "changes": number_at(f"{agent}.changes"),
        "message_count": f"{agent}.message_count",
        "stored_count": count_of(agent),
    }


def append_projection(key: str, message_id: int) -> Document:
    """Return the projection that tells a writer whose append did not match how things stand."""
    agent = f"$agents.{key}"
    at_position = {"$filter": {"input": messages_of(agent), "as": "m", "cond": {"$eq": ["$$m.message_id", message_id]}}}
    return {
        **agent_projection(key),
        "archived_count": number_at(f"{agent}.archived_count"),
        "embedded": {"$ne": [at_position, []]},
        "commit_id": {"$first": {"$map": {"input": at_position, "as": "m", "in": "$$m.commit_id"}}},
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
