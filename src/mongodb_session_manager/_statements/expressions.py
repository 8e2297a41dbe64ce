"""Expressions that several statements need: counts, arrays and numbers that may be none."""

from __future__ import annotations

from typing import Any

from .._model.documents import Document

EACH_AGENT: Document = {"$objectToArray": {"$cond": [{"$eq": [{"$type": "$agents"}, "object"]}, "$agents", {}]}}
"""Expression for the agents of a session, ``{k: key, v: record}`` each; none where they are no document."""


# How many messages a conversation manager has taken out of the live conversation, from the first one on.
REMOVED = "agent_data.conversation_manager_state.removed_message_count"


def counter_is(path: str, value: int) -> Document:
    """Return the condition that a counter has this value. In an older document it may be missing, which is 0."""
    return {path: value if value else {"$in": [0, None]}}


def messages_of(agent: str) -> Document:
    return array_at(f"{agent}.messages")


def array_at(path: str) -> Document:
    return {"$cond": [{"$isArray": path}, path, []]}


def each_message(messages: Any, expression: Any) -> Document:
    """Return the expression for what an expression, which sees `$$m`, is for each of these messages."""
    return {"$map": {"input": messages, "as": "m", "in": expression}}


def count_of(agent: str) -> Document:
    return {"$add": [number_at(f"{agent}.archived_count"), {"$size": messages_of(agent)}]}


def number_at(path: str) -> Document:
    return {"$cond": [{"$isNumber": path}, path, 0]}


def whole_at(path: str) -> Document:
    """Return the expression for a count; 0 where there is none."""
    return {"$cond": [is_whole(path), _to_long(path), 0]}


def archived_count_of(agent: str) -> Document:
    """Return the expression for how many messages are archived: null where what says so is no count."""
    count = f"{agent}.archived_count"
    spoilt = {"$cond": [{"$eq": [{"$type": count}, "missing"]}, "$$REMOVE", None]}
    return {"$cond": [is_whole(count), _to_long(count), spoilt]}


def is_whole(number: Any) -> Document:
    """Return the expression for whether a value is a count: a shell writes one as floating point, and there is NaN."""
    return {"$and": [{"$eq": [number, _to_long(number)]}, {"$gte": [_to_long(number), 0]}]}


def _to_long(number: Any) -> Document:
    # Never an error: in a $lookup, MongoDB computes even what stands behind a false condition, ahead of time.
    return {"$convert": {"input": number, "to": "long", "onError": -1, "onNull": -1}}
