"""The state of a graph or swarm."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from .._model.documents import Document
from .._model.keys import encode_key
from .expressions import counter_is, number_at
from .sessions import SessionRef, Update


def multi_agent(session: SessionRef, multi_agent_id: str, state: Any, changes: int | None, now: datetime) -> Update:
    """Return the update that stores the state of a graph or swarm.

    Args:
        session: Whose.
        multi_agent_id: Of which graph or swarm.
        state: Its state, encoded.
        changes: How often its state was changed before; None: it is not stored yet.
        now: The time of the change.
    """
    entry = f"multi_agents.{encode_key(multi_agent_id)}"
    if changes is None:
        new = {"state": state, "created_at": now, "updated_at": now, "changes": 0}
        return session.write(now, {"$set": {entry: new}}, {entry: {"$exists": False}})
    changed = {"$set": {f"{entry}.state": state, f"{entry}.updated_at": now}, "$inc": {f"{entry}.changes": 1}}
    return session.write(now, changed, {entry: {"$exists": True}, **counter_is(f"{entry}.changes", changes)})


def multi_agent_projection(multi_agent_id: str) -> Document:
    """Return the projection of how often the state of a graph or swarm was changed: null if it is not stored."""
    entry = f"$multi_agents.{encode_key(multi_agent_id)}"
    stored = {"$ne": [{"$type": f"{entry}.state"}, "missing"]}
    return {"changes": {"$cond": [stored, number_at(f"{entry}.changes"), None]}}


def multi_agent_state_expression(multi_agent_id: str) -> str:
    """Return the expression for the stored state of a graph or swarm."""
    return f"$multi_agents.{encode_key(multi_agent_id)}.state"
