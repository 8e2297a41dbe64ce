"""Prints the stored metrics of streamed answers: the library's summary of one session, and a query over many."""

import asyncio

from terminal import say

from mongodb_session_manager import MongoDBSessionManagerFactory


async def show_stored_metrics(
    factory: MongoDBSessionManagerFactory, database: str, collection: str, agent_id: str, session_ids: list[str]
) -> None:
    """Print the metrics of the first session, and of all of them."""
    session_manager = factory.create_session_manager(session_ids[0])
    one = await asyncio.to_thread(session_manager.get_metrics_summary)
    say(f"  of one session: {one.turns} turn, {one.tokens.output} tokens out, answered in {one.latency.max:.0f} ms")

    messages = f"agents.{agent_id}.messages"
    metrics = f"{messages}.event_loop_metrics"  # Only the model's messages have it.
    figures = {
        "answers": {"$sum": 1},
        "tokens": {"$sum": f"${metrics}.accumulated_usage.outputTokens"},
        "first_ms": {"$avg": f"${metrics}.accumulated_metrics.timeToFirstByteMs"},
        "last_ms": {"$avg": f"${metrics}.accumulated_metrics.latencyMs"},
    }
    pipeline = [
        {"$match": {"_id": {"$in": session_ids}}},
        {"$unwind": f"${messages}"},
        {"$match": {metrics: {"$exists": True}}},
        {"$group": {"_id": None, **figures}},
    ]
    sessions = factory.client[database][collection]
    found = await asyncio.to_thread(lambda: sessions.aggregate(pipeline).next())
    say(
        f"  of all: {found['answers']} answers, {found['tokens']} tokens out,"
        f" first byte after {found['first_ms']:.0f} ms and the last after {found['last_ms']:.0f} ms on average"
    )
