"""What is read when a session is opened: the live windows of its agents."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from .._model.documents import Document
from .._model.expiry import EXPIRED
from .._model.limits import CACHED_NAMES
from .expressions import REMOVED, for_each_message, is_object, messages_of, number_at

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
    """Return the projection that reads a session's ``incarnation`` and the live windows of some of its agents.

    The window begins at the agent's ``removed_message_count``: a conversation manager has taken the messages before
    it out of the live conversation. So the bytes read depend on the window, not on the length of the conversation.
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
    opened = {
        "agent_data": f"{agent}.agent_data",
        "message_count": f"{agent}.message_count",
        "changes": number_at(f"{agent}.changes"),
        "archived_count": "$$archived",
        "removed": "$$removed",
        "embedded": {"$size": "$$messages"},
        "bytes": {"$bsonSize": agent},
        "window": for_each_message(window, _WINDOW_FIELDS),
    }
    skip = {"$max": [0, {"$subtract": ["$$removed", "$$archived"]}]}
    read = {
        "messages": messages_of(agent),
        "archived": number_at(f"{agent}.archived_count"),
        "removed": number_at(f"{agent}.{REMOVED}"),
    }
    window_of = {"$let": {"vars": read, "in": {"$let": {"vars": {"skip": skip}, "in": opened}}}}
    return {"$cond": [is_object(agent), window_of, None]}
