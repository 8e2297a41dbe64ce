"""What is read of a session: what is live when it is opened; later its agents, messages, totals and ratings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .._model.documents import Document
from .._model.expiry import EXPIRED
from .._model.keys import check_int, encode_key
from .._model.limits import CACHED_NAMES, MAX_RATING_CHARACTERS
from .expressions import (
    REMOVED,
    count_of,
    for_each_agent,
    for_each_message,
    is_object,
    messages_of,
    messages_that,
    messages_with_id,
    number_at,
    switch,
)
from .feedback import EMBEDDED_FEEDBACKS
from .live import copies_count, counts, is_live

# --- when it is opened -----------------------------------------------------------------------------------------------

# What a live agent needs of a stored message. Times, metrics and commit ids stay on the server: they are a third of
# a short message.
_WINDOW_FIELDS = {
    name: f"$$m.{name}"
    for name in (
        *("message_id", "role", "content", "tracking_id", "metadata", "extra", "turn_id"),
        # Where older documents keep role and content, and what was redacted.
        *("message", "redact_message"),
    )
}


def open_projection(agent_keys: Sequence[str]) -> Document:
    """Return the projection that reads a session's ``incarnation`` and what is live of some of its agents.

    ``window`` are the embedded messages that the live view names. Where there is no view, it begins at the agent's
    ``removed_message_count``: a conversation manager has taken the messages before it out of the live conversation. So
    the bytes read depend on what is live, not on the length of the conversation.
    """
    return {
        "incarnation": 1,
        "bytes": {"$bsonSize": "$$ROOT"},
        "expired": EXPIRED,
        "parts_expire_at": 1,
        "agents_opened": {"$cond": [EXPIRED, [], list(map(_agent_window, agent_keys))]},
    }


@lru_cache(maxsize=CACHED_NAMES)
def _agent_window(key: str) -> Document:
    agent = f"$agents.{key}"
    # The offset is not negative: a negative one counts from the end. A length of 0 would be an error.
    window = {"$slice": ["$$messages", "$$skip", {"$max": [1, {"$size": "$$messages"}]}]}
    removed = number_at(f"{agent}.{REMOVED}")
    has_view = counts(agent, removed)
    named = messages_that("$$messages", is_live(agent))
    opened = {
        "agent_data": f"{agent}.agent_data",
        "message_count": f"{agent}.message_count",
        "changes": number_at(f"{agent}.changes"),
        "rewrites": number_at(f"{agent}.rewrites"),
        "archived_count": "$$archived",
        "removed": "$$removed",
        "embedded": {"$size": "$$messages"},
        "bytes": {"$bsonSize": {"m": "$$messages"}},
        "live": {"$cond": [has_view, f"{agent}.live", "$$REMOVE"]},
        "copies_count": copies_count(agent),
        "first_id": {"$first": "$$messages.message_id"},
        "window": for_each_message({"$cond": [has_view, named, window]}, _WINDOW_FIELDS),
    }
    skip = {"$max": [0, {"$subtract": ["$$removed", "$$archived"]}]}
    read = {
        "messages": messages_of(agent),
        "archived": number_at(f"{agent}.archived_count"),
        "removed": removed,
    }
    window_of = {"$let": {"vars": read, "in": {"$let": {"vars": {"skip": skip}, "in": opened}}}}
    return {"$cond": [is_object(agent), window_of, None]}


# --- agents and messages ---------------------------------------------------------------------------------------------


def check_page(limit: object, offset: object) -> None:
    """Refuse what no page of messages can be.

    Raises:
        ValueError: ``limit`` or ``offset`` is negative or no ``int``; a ``limit`` of None is all.
    """
    for name, value in (("limit", limit), ("offset", offset)):
        if value is not None:
            check_int(value, name, 0)


def page_projection(key: str, offset: int, limit: int | None) -> Document:
    """Return the projection of the embedded part of a page of an agent's messages.

    It yields ``incarnation`` (absent in an older document), ``archived_count`` (the offset of the first embedded
    message, perhaps a float) and ``messages`` (those of the page, oldest first).
    """
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


# --- totals and ratings ----------------------------------------------------------------------------------------------


def metrics_projection(agent_id: str | None) -> Document:
    """Return the projection of what a summary of metrics needs.

    It yields ``incarnation`` (absent in an older document), ``feedbacks_archived``, and:

    - ``agents``: ``{key, usage}`` of each agent. ``usage`` are its running totals as stored (``docs/data-model.md``);
      of an older document only ``messages`` and ``turns``; absent where an expression found nothing.
    - ``ratings``: one for each embedded feedback, oldest first: text of at most 100 characters, a number, a bool; None
      for anything else.

    Args:
        agent_id: Only this agent's, and only of feedbacks that name it; None for all.
    """
    if agent_id is None:
        agents = for_each_agent({"key": "$$a.k", "usage": usage_of("$$a.v")})
    else:
        key = encode_key(agent_id)
        agent = f"$agents.{key}"
        agents = {"$cond": [is_object(agent), [{"key": {"$literal": key}, "usage": usage_of(agent)}], []]}
    return {
        "_id": 0,
        "incarnation": 1,
        "feedbacks_archived": number_at("$feedbacks_archived"),
        "agents": agents,
        "ratings": _ratings(EMBEDDED_FEEDBACKS, agent_id),
    }


def segment_ratings_projection(agent_id: str | None) -> Document:
    """Return the projection of a segment of feedbacks to their ``count`` and ``ratings``, as ``metrics_projection``.

    There are fewer ratings than ``count`` where only those of one agent are asked for.
    """
    return {"_id": 0, "count": 1, "ratings": _ratings("$messages", agent_id)}


def _ratings(feedbacks: Any, agent_id: str | None) -> Document:
    if agent_id is not None:
        named = {"$eq": ["$$f.agent_id", {"$literal": agent_id}]}
        feedbacks = {"$filter": {"input": feedbacks, "as": "f", "cond": named}}
    rating = "$$f.rating"
    kind = {"$type": rating}
    short = switch(
        ({"$eq": [kind, "string"]}, {"$substrCP": [rating, 0, MAX_RATING_CHARACTERS]}),
        ({"$in": [kind, ["int", "long", "double", "bool"]]}, rating),
        default=None,
    )
    return {"$map": {"input": feedbacks, "as": "f", "in": short}}


def usage_of(agent: str) -> Document:
    """Return the expression for an agent's running totals.

    An older document has none. The tokens that it names are totals of an ``Agent`` object and must not be added up, so
    only its messages and turns are counted.
    """
    # More than an empty array: one of the blocks is a result.
    has_results = {"$or": [{"$gt": [f"$$m.{content}.toolResult", []]} for content in ("content", "message.content")]}
    from_user = {"$eq": [{"$ifNull": ["$$m.role", "$$m.message.role"]}, "user"]}
    prompts = messages_that(messages_of(agent), {"$and": [from_user, {"$not": [has_results]}]})
    return {"$ifNull": [f"{agent}.usage", {"messages": count_of(agent), "turns": {"$size": prompts}}]}
