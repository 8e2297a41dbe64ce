"""What is read of a session's agents and their messages after it was opened."""

from __future__ import annotations

from typing import Any, TypedDict

from bson import ObjectId

from .._model.documents import Document
from ..errors import shown
from .expressions import for_each_agent, is_object, messages_of, messages_with_id, number_at


class PageAsRead(TypedDict, total=False):
    """What ``page_projection`` yields.

    Attributes:
        incarnation: The incarnation of the session; absent in an older document, which has nothing archived.
        archived_count: How many messages are archived: the offset of the first embedded one. Perhaps a float.
        messages: The embedded messages of the page, oldest first, decoded.
    """

    incarnation: ObjectId
    archived_count: float
    messages: list[Document]


def check_page(limit: object, offset: object) -> None:
    """Refuse what no page of messages can be.

    Raises:
        ValueError: ``limit`` or ``offset`` is negative or no ``int``; a ``limit`` of None is all.
    """
    for name, value in (("limit", limit), ("offset", offset)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ValueError(f"{name} must be an int of at least 0, not {shown(value)}")


def page_projection(key: str, offset: int, limit: int | None) -> Document:
    """Return the projection of the embedded part of a page of an agent's messages, a ``PageAsRead``."""
    messages, archived = messages_of(f"$agents.{key}"), number_at(f"$agents.{key}.archived_count")
    length: Any = {"$size": "$$messages"}
    if limit is not None:
        # What of the page lies before the embedded messages is not taken from them.
        length = {"$min": [limit, {"$subtract": [offset + limit, "$$archived"]}]}
    page = {"$slice": ["$$messages", {"$max": [0, {"$subtract": [offset, "$$archived"]}]}, {"$max": [1, "$$length"]}]}
    cut = {"$let": {"vars": {"length": length}, "in": {"$cond": [{"$gt": ["$$length", 0]}, page, []]}}}
    return {
        "incarnation": 1,
        "archived_count": archived,
        "messages": {"$let": {"vars": {"messages": messages, "archived": archived}, "in": cut}},
    }


def message_projection(key: str, message_id: int) -> Document:
    """Return the projection of ``messages`` to the embedded message with this id, or to none."""
    return {"messages": messages_with_id(messages_of(f"$agents.{key}"), message_id)}


def agent_data_expression(key: str) -> Document:
    """Return the expression for an agent's record: null if there is no such agent."""
    agent = f"$agents.{key}"
    return {"$cond": [is_object(agent), {"$ifNull": [f"{agent}.agent_data", {}]}, None]}


AGENT_KEYS: Document = for_each_agent("$$a.k")
"""Expression for the keys of a session's agents."""
