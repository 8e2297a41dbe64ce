"""How an agent is made what is stored of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from bson import ObjectId
from strands import Agent
from strands.agent.state import AgentState
from strands.types.content import Message
from strands.types.session import SessionAgent

from .._model import documents
from .._model.documents import Document, StoredAgent
from .._model.turns import turns_interleave, turns_together
from .record import trims_by_itself
from .unit_of_work import AgentWork


def restore(
    work: AgentWork,
    agent: Any,
    stored: StoredAgent,
    read_from: Callable[[int], list[Document]],
    repair: Callable[[list[Message]], list[Message]],
) -> ObjectId | None:
    """Make the agent what is stored of it, the way Strands' own session managers do.

    Args:
        work: The agent's unit of work: takes note of what is stored.
        agent: The agent.
        stored: What is stored of it.
        read_from: Reads the stored messages from an offset on, where the window begins too late.
        repair: Strands' repair of tool uses without results.

    Returns:
        The turn of its last message.
    """
    assert stored.agent_data is not None
    last_turn_id: ObjectId | None = None
    conversation = work.conversation
    conversation.next_message_id, conversation.changes = stored.message_count, stored.changes
    conversation.embedded = stored.embedded
    state, manager_state, internal_state = documents.states(stored.agent_data)
    agent.state = _agent_state(state)
    # Strands' own way; only the internal state counts.
    as_stored = SessionAgent(
        agent_id=agent.agent_id,
        state=state,
        conversation_manager_state=manager_state,
        _internal_state=internal_state,
        created_at="",
        updated_at="",
    )
    as_stored.initialize_internal_state(agent)
    prepended: list[Message] = []
    offset = 0
    if isinstance(agent, Agent):
        if manager_state:
            prepended = agent.conversation_manager.restore_from_session(manager_state) or []
        offset = max(0, agent.conversation_manager.removed_message_count)
    if offset < stored.window_offset:
        # A conversation manager of one's own begins earlier than its stored state says.
        window = read_from(offset)
    else:
        window = stored.window[offset - stored.window_offset :]
    messages: list[Message] = []
    if window:
        messages, last_turn_id = _restored(work, window, offset, _interrupted(internal_state))
    if not (isinstance(agent, Agent) and agent.model.stateful):
        agent.messages = prepended + messages
        if agent.messages:
            if trims_by_itself(agent):
                # As at the end of the last turn, which may have moved the window and stored nothing after that.
                agent.conversation_manager.apply_management(agent)
            if documents.have_tool_blocks(agent.messages):
                agent.messages = repair(agent.messages)
    work.fields.stored_state(agent.state, state)
    known: Document = {"conversation_manager_state": manager_state, "_internal_state": internal_state}
    for name in ("model", "system_prompt"):
        if name in stored.agent_data:
            known[name] = stored.agent_data[name]
    work.fields.stored(known)
    return last_turn_id


def _restored(
    work: AgentWork, window: list[Document], offset: int, interrupted: str | None
) -> tuple[list[Message], ObjectId | None]:
    """Return the live messages of a stored window that begins at ``offset``, and the last one's turn."""
    order = None
    if interrupted is not None or turns_interleave(window):
        order = turns_together(window, interrupted)
    last_turn_id = window[-1 if order is None else order[-1]].get("turn_id")
    message_ids, messages = documents.to_messages(window, offset)
    if order is not None:
        message_ids, messages = [message_ids[index] for index in order], [messages[index] for index in order]
    work.conversation.messages.restored(message_ids, messages)
    return messages, last_turn_id


def _interrupted(internal_state: Document) -> str | None:
    """Return the ``tracking_id`` of the message whose tool uses wait for an answer to an interrupt, if any do."""
    state = internal_state.get("interrupt_state") or {}
    pending = state.get("pending_tool_execution") if state.get("activated") else None
    tracking_id = (pending or {}).get("assistant_message", {}).get("tracking_id")
    return tracking_id if isinstance(tracking_id, str) else None


def _agent_state(stored: Document) -> AgentState:
    try:
        return AgentState(stored)
    except ValueError:
        # Strands takes only what JSON knows. Somebody has put a date or an ObjectId there; it becomes text.
        return AgentState(json.loads(json.dumps(stored, default=str)))
