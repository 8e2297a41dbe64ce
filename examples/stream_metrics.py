"""What is stored of streamed answers, over many sessions: a query of one's own, on plain fields."""

from typing import Any

from pymongo.collection import Collection


def metrics_of_all(sessions: Collection[dict[str, Any]], agent_id: str, session_ids: list[str]) -> dict[str, Any]:
    """Return how many answers there are, their tokens, and their average times in milliseconds."""
    messages = f"agents.{agent_id}.messages"
    metrics = f"{messages}.event_loop_metrics"  # Of the model's messages only.
    figures = {
        "answers": {"$sum": 1},
        "tokens": {"$sum": f"${metrics}.accumulated_usage.outputTokens"},
        "first_ms": {"$avg": f"${metrics}.accumulated_metrics.timeToFirstByteMs"},
        "last_ms": {"$avg": f"${metrics}.accumulated_metrics.latencyMs"},
    }
    return sessions.aggregate(
        [
            {"$match": {"_id": {"$in": session_ids}}},
            {"$unwind": f"${messages}"},
            {"$match": {metrics: {"$exists": True}}},
            {"$group": {"_id": None, **figures}},
        ]
    ).next()
