"""Running totals and ratings, for a summary."""

from __future__ import annotations

from typing import Any, TypedDict

from bson import ObjectId

from .._model.documents import Document
from .._model.keys import encode_key
from .._model.limits import MAX_RATING_CHARACTERS
from .expressions import count_of, for_each_agent, is_object, messages_of, messages_that, number_at, switch
from .feedback import EMBEDDED_FEEDBACKS


class AgentTotals(TypedDict, total=False):
    """The running totals of one agent.

    Attributes:
        key: The agent's key.
        usage: Its running totals as stored (see ``docs/data-model.md``); of an older document only ``messages`` and
            ``turns``. Absent where an expression found nothing.
    """

    key: str
    usage: Any


class TotalsAsRead(TypedDict, total=False):
    """What ``metrics_projection`` yields.

    Attributes:
        incarnation: The incarnation of the session; absent in an older document.
        feedbacks_archived: How many feedbacks are archived; their ratings are in the history.
        agents: One for each agent asked for that the session has.
        ratings: One for each embedded feedback, oldest first: text of at most 100 characters, a number, a bool; None
            for anything else.
    """

    incarnation: ObjectId
    feedbacks_archived: float
    agents: list[AgentTotals]
    ratings: list[Any]


class SegmentRatings(TypedDict):
    """What ``segment_ratings_projection`` yields.

    Attributes:
        count: How many feedbacks the segment has.
        ratings: As in ``TotalsAsRead``; fewer than ``count`` where only those of one agent were asked for.
    """

    count: int
    ratings: list[Any]


def metrics_projection(agent_id: str | None) -> Document:
    """Return the projection of what a summary of metrics needs, a ``TotalsAsRead``.

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
    """Return the projection of a segment of feedbacks to their ratings; ``agent_id`` as for ``metrics_projection``."""
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
