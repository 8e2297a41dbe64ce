"""What is read of a session's agents and their messages."""

from __future__ import annotations

from typing import Any

from .._model.documents import Document
from ..errors import shown
from .expressions import EACH_AGENT, count_of, messages_of, number_at


def check_page(limit: object, offset: object) -> None:
    """Refuse what no page of messages can be.

    Raises:
        ValueError: ``limit`` or ``offset`` is negative or no ``int``; a ``limit`` of None is all.
    """
    for name, value in (("limit", limit), ("offset", offset)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ValueError(f"{name} must be an int of at least 0, not {shown(value)}")


def page_projection(key: str, offset: int, limit: int | None) -> Document:
    """Return the projection of the embedded part of a page of an agent's messages, and of where that part begins."""
    archived = number_at(f"$agents.{key}.archived_count")
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
                "vars": {"messages": messages_of(f"$agents.{key}"), "archived": archived},
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
                "input": messages_of(f"$agents.{key}"),
                "as": "m",
                "cond": {"$eq": ["$$m.message_id", message_id]},
            }
        }
    }


def agent_data_expression(key: str) -> Document:
    """Return the expression for an agent's record: None if there is no such agent."""
    agent = f"$agents.{key}"
    return {"$cond": [{"$eq": [{"$type": agent}, "object"]}, {"$ifNull": [f"{agent}.agent_data", {}]}, None]}


def count_expression(key: str) -> Document:
    """Return the expression for the number of an agent's messages: those archived and those embedded."""
    return count_of(f"$agents.{key}")


AGENT_KEYS: Document = {"$map": {"input": EACH_AGENT, "as": "a", "in": "$$a.k"}}
"""Expression for the keys of a session's agents."""
