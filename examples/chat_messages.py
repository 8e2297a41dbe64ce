"""Stored messages as the page shows them: texts, calls of tools, ratings, and what each turn has cost."""

import textwrap
from typing import Any

from chat_json import to_json

from mongodb_session_manager import MongoDBSessionManager

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
    """Return what a message says."""
    return "".join(block.get("text", "") for block in message["content"])


def tool_use(block: Document) -> Document:
    """Return a call of a tool as the frontend shows it."""
    return {"id": block["toolUseId"], "name": block["name"], "input": block["input"]}


def tool_result(block: Document) -> Document:
    """Return what a tool has answered as the frontend shows it."""
    parts = [part["text"] if "text" in part else to_json(part.get("json", "…")) for part in block["content"]]
    return {"id": block["toolUseId"], "status": block["status"], "text": "\n".join(parts)}


def metrics_of(messages: list[Document]) -> Document:
    """Return what stored messages have cost together."""
    stored = [found for message in messages if (found := message.get("event_loop_metrics"))]
    usage = [found.get("accumulated_usage", {}) for found in stored]
    return {
        "input_tokens": sum(found.get("inputTokens", 0) for found in usage),
        "output_tokens": sum(found.get("outputTokens", 0) for found in usage),
        "latency_ms": sum(found.get("accumulated_metrics", {}).get("latencyMs", 0) for found in stored),
    }


def title_of(manager: MongoDBSessionManager, agent_id: str) -> str:
    """Return the title that the list shows as well: the one that was given, or the first words."""
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
    """Return whether a user's message begins a turn; the others hold results of tools."""
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
