"""What is stored of an agent itself, and how it is told from Strands' object."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from bson import ObjectId
from strands import Agent
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.types.content import Message
from strands.types.session import SessionAgent

from .._model import documents
from .._model.documents import Document, MongoDBSessionAgent
from .._model.encoding import PendingBlobs
from .._model.limits import EARLY_COMMIT_BYTES
from .._model.metrics import Totals


def add_new_agent(session: Document, key: str, agent: Any, blob_threshold: int) -> bool:
    """Put a new agent, and the messages it was built with, into the document of a new session.

    Returns:
        Whether that was done. It was not where something of it is too large; then it takes commits of its own.
    """
    moment = session["created_at"]
    blobs = PendingBlobs(blob_threshold)
    record = documents.new_agent(documents.agent_data(session_agent(agent), blobs), moment)
    turn_id = ObjectId()
    totals = Totals()
    size = 0
    for index, message in enumerate(agent.messages):
        give_tracking_id(message)
        body, message_size = documents.measured_body(message, f"messages[{index}]", blobs)
        size += message_size
        body["turn_id"] = turn_id
        totals.add_message(starts_turn=False)
        record["messages"].append(documents.message_document(index, body, moment, moment))
    if blobs.blobs or size > EARLY_COMMIT_BYTES:
        return False
    record["message_count"] = len(record["messages"])
    record["usage"] = dict(totals.increments)
    session["agents"][key] = record
    session["agent_ids"].append(record["agent_data"]["agent_id"])
    return True


def session_agent(agent: Any) -> MongoDBSessionAgent:
    """Return the agent as Strands stores it, with its model and system prompt."""
    plain = SessionAgent.from_agent(agent)
    return MongoDBSessionAgent(
        agent_id=plain.agent_id,
        state=plain.state,
        conversation_manager_state=plain.conversation_manager_state,
        _internal_state=plain._internal_state,
        created_at=plain.created_at,
        updated_at=plain.updated_at,
        model=model_id_of(agent),
        system_prompt=agent.system_prompt,
    )


def agent_fields(agent: Any) -> Document:
    """Return what is stored of an agent besides its state; what is None is left as it is stored."""
    fields: Document = {}
    if isinstance(agent, Agent):
        fields["conversation_manager_state"] = agent.conversation_manager.get_state()
        fields["_internal_state"] = {
            "interrupt_state": agent._interrupt_state.to_dict(),
            "model_state": agent._model_state,
        }
    for name, value in (("model", model_id_of(agent)), ("system_prompt", agent.system_prompt)):
        if value is not None:
            fields[name] = value
    return fields


def model_id_of(agent: Any) -> str | None:
    """Return the id of the agent's model, as its provider names it, or None."""
    get_config = getattr(agent.model, "get_config", None)
    config = get_config() if get_config is not None else None
    model_id = config.get("model_id") if isinstance(config, (dict, Mapping)) else getattr(config, "model_id", None)
    return model_id if isinstance(model_id, str) else None


def accumulated_usage(agent: Any) -> dict[str, float]:
    """Return the tokens that Strands has counted for the agent so far."""
    try:
        return dict(agent.event_loop_metrics.accumulated_usage)
    except NotImplementedError:  # BidiAgent
        return {}


def accumulated_latency(agent: Any) -> float:
    """Return the milliseconds that Strands has counted for the agent so far."""
    try:
        return float(agent.event_loop_metrics.accumulated_metrics.get("latencyMs", 0))
    except NotImplementedError:  # BidiAgent
        return 0


def trims_by_itself(agent: Any) -> bool:
    """Return whether the agent's window follows from its messages alone, so that a restored agent finds it again.

    That is so for Strands' sliding window, the default. What ``pin_first`` or another conversation manager does is not
    repeated by a restore; it is stored in the view.
    """
    manager = getattr(agent, "conversation_manager", None)
    return type(manager) is SlidingWindowConversationManager and not manager.pin_first


def give_tracking_id(message: Message) -> None:
    """Give a message the id that Strands would give it at the first invocation, which is after it is stored."""
    if not message.get("tracking_id"):
        message["tracking_id"] = str(uuid.uuid4())
