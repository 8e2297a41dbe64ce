"""Running totals and ratings, for a summary."""

from __future__ import annotations

from typing import Any

from .._model.documents import Document
from .._model.keys import encode_key
from .._model.limits import MAX_RATING_CHARACTERS
from .expressions import EACH_AGENT, count_of, messages_of, number_at
from .feedback import EMBEDDED_FEEDBACKS


def metrics_projection(agent_id: str | None) -> Document:
    """Return the projection of what a summary of metrics needs: the agents' running totals, the feedbacks' ratings.

    Args:
        agent_id: Only this agent's, and only of feedbacks that name it; None for all.
    """
    if agent_id is None:
        agents: Document = {
            "$map": {"input": EACH_AGENT, "as": "a", "in": {"key": "$$a.k", "usage": usage_of("$$a.v")}}
        }
    else:
        key = encode_key(agent_id)
        agent = f"$agents.{key}"
        one = {"key": {"$literal": key}, "usage": usage_of(agent)}
        agents = {"$cond": [{"$eq": [{"$type": agent}, "object"]}, [one], []]}
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
    short = {
        "$switch": {
            "branches": [
                {"case": {"$eq": [kind, "string"]}, "then": {"$substrCP": [rating, 0, MAX_RATING_CHARACTERS]}},
                {"case": {"$in": [kind, ["int", "long", "double", "bool"]]}, "then": rating},
            ],
            "default": None,
        }
    }
    return {"$map": {"input": feedbacks, "as": "f", "in": short}}


def usage_of(agent: str) -> Document:
    """Return the expression for an agent's running totals.

    An older document has none, and what it tells of tokens are totals of an ``Agent`` object, good for no sum; so what
    is counted there is messages and turns.
    """
    has_results = {
        "$or": [{"$gt": [f"$$m.{content}.toolResult", []]} for content in ("content", "message.content")]  # Not empty.
    }
    from_user = {"$eq": [{"$ifNull": ["$$m.role", "$$m.message.role"]}, "user"]}
    prompts = {
        "$filter": {"input": messages_of(agent), "as": "m", "cond": {"$and": [from_user, {"$not": [has_results]}]}}
    }
    return {"$ifNull": [f"{agent}.usage", {"messages": count_of(agent), "turns": {"$size": prompts}}]}
