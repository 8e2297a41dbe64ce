"""Expressions that several statements need: counts, arrays and numbers that may be missing or of another type."""

from __future__ import annotations

from typing import Any

from .._model.documents import Document


def is_object(path: Any) -> Document:
    """Return the expression for whether a document stands at a path."""
    return {"$eq": [{"$type": path}, "object"]}


def object_at(path: str) -> Document:
    """Return the expression for the document at a path; ``{}`` where there is none."""
    return {"$cond": [is_object(path), path, {}]}


def array_at(path: str) -> Document:
    """Return the expression for the array at a path; ``[]`` where there is none."""
    return {"$cond": [{"$isArray": path}, path, []]}


def switch(*branches: tuple[Any, Any], default: Any) -> Document:
    """Return the expression for the value of the first of these branches, ``(case, value)``, whose case is true."""
    return {"$switch": {"branches": [{"case": case, "then": value} for case, value in branches], "default": default}}


EACH_AGENT: Document = {"$objectToArray": object_at("$agents")}
"""Expression for the agents of a session, ``{k: agent key, v: what is stored of it}`` each; none without ``agents``."""


def for_each_agent(expression: Any) -> Document:
    """Return the expression for the array of what an expression, which sees ``$$a.k`` and ``$$a.v``, is per agent."""
    return {"$map": {"input": EACH_AGENT, "as": "a", "in": expression}}


def agent_with_key(key: Any) -> Document:
    """Return the expression for the element of ``EACH_AGENT`` with this agent key."""
    return {"$first": {"$filter": {"input": EACH_AGENT, "as": "a", "cond": {"$eq": ["$$a.k", key]}}}}


def messages_of(agent: str) -> Document:
    """Return the expression for the embedded messages of an agent."""
    return array_at(f"{agent}.messages")


def for_each_message(messages: Any, expression: Any) -> Document:
    """Return the expression for the array of what an expression, which sees ``$$m``, is for each of these messages."""
    return {"$map": {"input": messages, "as": "m", "in": expression}}


def messages_that(messages: Any, condition: Any) -> Document:
    """Return the expression for those of these messages of which a condition, which sees ``$$m``, is true."""
    return {"$filter": {"input": messages, "as": "m", "cond": condition}}


def messages_with_id(messages: Any, message_id: int) -> Document:
    """Return the expression for those of these messages that have this ``message_id``: one, or none."""
    return messages_that(messages, {"$eq": ["$$m.message_id", message_id]})


# How many messages a conversation manager has taken out of the live conversation, from the first one on.
REMOVED = "agent_data.conversation_manager_state.removed_message_count"


def counter_is(path: str, value: int) -> Document:
    """Return the condition that a counter has this value. In an older document it may be missing, which is 0."""
    return {path: value if value else {"$in": [0, None]}}


def count_of(agent: str) -> Document:
    """Return the expression for how many messages an agent has, archived and embedded."""
    return {"$add": [number_at(f"{agent}.archived_count"), {"$size": messages_of(agent)}]}


def number_at(path: str) -> Document:
    """Return the expression for the number at a path; 0 where there is none."""
    return {"$cond": [{"$isNumber": path}, path, 0]}


def whole_at(path: str) -> Document:
    """Return the expression for the count at a path; 0 where there is none, or no count."""
    return {"$cond": [is_whole(path), _to_long(path), 0]}


def archived_count_of(agent: str) -> Document:
    """Return the expression for how many messages are archived: absent where nothing says so, null for no count."""
    count = f"{agent}.archived_count"
    spoilt = {"$cond": [{"$eq": [{"$type": count}, "missing"]}, "$$REMOVE", None]}
    return {"$cond": [is_whole(count), _to_long(count), spoilt]}


def is_whole(number: Any) -> Document:
    """Return the expression for whether a value is a count: a shell writes one as floating point, and there is NaN."""
    return {"$and": [{"$eq": [number, _to_long(number)]}, {"$gte": [_to_long(number), 0]}]}


def _to_long(number: Any) -> Document:
    # Never an error: in a $lookup, MongoDB computes even what stands behind a false condition, ahead of time.
    return {"$convert": {"input": number, "to": "long", "onError": -1, "onNull": -1}}
