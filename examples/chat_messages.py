"""Stored messages as the page shows them: texts, tool calls, ratings, and the tokens and times of each turn."""

import textwrap
from typing import Any

from chat_json import to_json

from mongodb_session_manager import MetricsSummary, MongoDBSessionManager

Document = dict[str, Any]


def messages_of(manager: MongoDBSessionManager, agent_id: str, start: int, stop: int) -> list[Document]:
    """Return the stored messages from `message_id` start up to stop, archived ones included."""
    return manager.session_repository.list_message_documents(
        manager.session_id, agent_id, limit=stop - start, offset=start
    )


def shown(message: Document) -> Document:
    """Return a stored message as the frontend shows it."""
    blocks = message["content"]
    return {
        "message_id": message["message_id"],
        "role": message["role"],
        "text": text_of(message),
        "tool_uses": [tool_use(block["toolUse"]) for block in blocks if "toolUse" in block],
        "tool_results": [tool_result(block["toolResult"]) for block in blocks if "toolResult" in block],
        "created_at": message["created_at"].isoformat(),
        "metrics": metrics_of([message]) if message.get("event_loop_metrics") else None,
    }


def text_of(message: Document) -> str:
    """Return the text of a message."""
    return "".join(block.get("text", "") for block in message["content"])


def tool_use(block: Document) -> Document:
    """Return a tool call as the frontend shows it."""
    return {"id": block["toolUseId"], "name": block["name"], "input": block["input"]}


def tool_result(block: Document) -> Document:
    """Return a tool result as the frontend shows it."""
    parts = [part["text"] if "text" in part else to_json(part.get("json", "…")) for part in block["content"]]
    return {"id": block["toolUseId"], "status": block["status"], "text": "\n".join(parts)}


def metrics_of(messages: list[Document]) -> Document:
    """Return the tokens and times of stored messages, added up."""
    stored = [found for message in messages if (found := message.get("event_loop_metrics"))]
    usage = [found.get("accumulated_usage", {}) for found in stored]
    return {
        "input_tokens": sum(found.get("inputTokens", 0) for found in usage),
        "output_tokens": sum(found.get("outputTokens", 0) for found in usage),
        "latency_ms": sum(found.get("accumulated_metrics", {}).get("latencyMs", 0) for found in stored),
    }


def figures_of(metrics: MetricsSummary, ratings: dict[int, str]) -> Document:
    """Return the figures of a conversation as the frontend shows them."""
    return {
        "messages": metrics.messages,
        "turns": metrics.turns,
        "input_tokens": metrics.tokens.input,
        "output_tokens": metrics.tokens.output,
        "latency_ms_p50": metrics.latency.p50,
        "latency_ms_p95": metrics.latency.p95,
        "tool_calls": sum(tool.calls for tool in metrics.tools.values()),
        "feedback": {rating: list(ratings.values()).count(rating) for rating in ("up", "down")},
    }


def title_of(manager: MongoDBSessionManager, agent_id: str) -> str:
    """Return the same title as the list shows: the one in the metadata, or the first words."""
    given = manager.get_metadata().get("metadata", {}).get("title")
    if isinstance(given, str) and given.strip():
        return given
    first = " ".join("".join(map(text_of, messages_of(manager, agent_id, 0, 1))).split())
    cut = textwrap.shorten(first, 80, placeholder="…", break_on_hyphens=False)
    return cut if len(cut) > 40 or len(first) <= 80 else first[:79] + "…"


def ratings_of(manager: MongoDBSessionManager, agent_id: str) -> dict[int, str]:
    """Return the newest rating of each message that has one, by `message_id`."""
    return {
        feedback["message_id"]: feedback["rating"]
        for feedback in manager.get_feedbacks()
        if feedback.get("agent_id") == agent_id and feedback.get("message_id") is not None
    }


def is_prompt(message: Document) -> bool:
    """Return whether a message is a user's prompt, which begins a turn, and not a tool result."""
    return message["role"] == "user" and not any("toolResult" in block for block in message["content"])


def newest_turns(manager: MongoDBSessionManager, agent_id: str, number: int) -> list[list[Document]]:
    """Return the messages of the newest turns, oldest first."""
    start = manager.get_message_count(agent_id)
    messages: list[Document] = []
    while start > 0 and sum(map(is_prompt, messages)) < number:  # An agent may call a hundred tools in a turn.
        stop, start = start, max(0, start - 100)
        messages[:0] = messages_of(manager, agent_id, start, stop)
    begins = [index for index, message in enumerate(messages) if is_prompt(message)][-number:]
    return [messages[begin:end] for begin, end in zip(begins, [*begins[1:], None], strict=True)]
