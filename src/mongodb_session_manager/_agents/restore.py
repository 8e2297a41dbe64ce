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

from .._model import documents, live_view
from .._model.documents import Document, StoredAgent
from .._model.turns import turns_interleave, turns_together
from .live_conversation import LiveConversation
from .record import trims_by_itself
from .slots import Slot, ref_of
from .unit_of_work import AgentWork


def restore(
    work: AgentWork, agent: Any, stored: StoredAgent, repair: Callable[[list[Message]], list[Message]]
) -> ObjectId | None:
    """Make the agent what is stored of it, the way Strands' own session managers do.

    Args:
        work: The agent's unit of work: takes note of what is stored.
        agent: The agent.
        stored: What is stored of it.
        repair: Strands' repair of tool uses without results.

    Returns:
        The turn of its last message.
    """
    assert stored.agent_data is not None
    conversation = work.conversation
    conversation.next_message_id, conversation.changes = stored.message_count, stored.changes
    conversation.embedded, conversation.rewrites = stored.embedded, stored.rewrites
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
    if isinstance(agent, Agent) and manager_state.get("__name__") == type(agent.conversation_manager).__name__:
        prepended = agent.conversation_manager.restore_from_session(manager_state) or []
    rows = _rows(agent, stored, prepended, manager_state)
    interrupted = _interrupted(internal_state)
    if interrupted is not None or turns_interleave(rows):
        rows = [row for run in _runs(rows) for row in _together(run, interrupted)]
    last_turn_id = rows[-1].get("turn_id") if rows else None
    if not (isinstance(agent, Agent) and agent.model.stateful):
        _make_live(conversation.live, agent, stored, rows, repair)
    work.fields.stored_state(agent.state, state)
    known: Document = {"conversation_manager_state": manager_state, "_internal_state": internal_state}
    for name in ("model", "system_prompt"):
        if name in stored.agent_data:
            known[name] = stored.agent_data[name]
    work.fields.stored(known)
    return last_turn_id


def _rows(agent: Any, stored: StoredAgent, prepended: list[Message], manager_state: Document) -> list[Document]:
    """Return the messages (decoded) of what is live, oldest first, as they are stored.

    Of each also ``slot``, its place as in ``LiveConversation``. What is in no log has the ``turn_id`` of the message
    before it; a message that the conversation manager has is the very object of its slot.
    """
    view, window = stored.live, stored.window
    for index, message in enumerate(window, stored.message_count - len(window)):
        message["slot"] = message.get("message_id", index)
        if "redact_message" in message:  # Nothing else of it is stored any more.
            message["slot"] = Slot(documents.to_messages([dict(message)])[0], message["slot"], redacted=True)
    if view is None:
        return [*({"slot": Slot(message)} for message in prepended), *window]
    if view.keys().isdisjoint(("before", "held")):
        return window
    logged = {message["message_id"]: message for message in window}
    # The very objects that the conversation manager has, so that they are known again.
    in_state = agent.conversation_manager.get_state() if isinstance(agent, Agent) else {}
    rows: list[Document] = []
    turn_id: Any = None
    for place in live_view.places(view, logged):
        slot: Slot
        if isinstance(place, dict):
            kept: Any = in_state.get(place["state"])
            found = manager_state.get(place["state"]) if kept is None else kept
            if not isinstance(found, dict):
                continue
            slot = Slot(found, state=None if kept is None else place["state"])  # type: ignore[arg-type]
        elif (held := live_view.held_form(view, place)) is not None:
            turn_id = held.get("turn_id", turn_id)
            slot = Slot(documents.to_messages([held])[0], place if isinstance(place, int) else None).as_held()
        else:
            turn_id = logged[place].get("turn_id")
            rows.append(logged[place])
            continue
        rows.append({"slot": slot, "turn_id": turn_id, "tracking_id": slot.message.get("tracking_id")})
    return rows


def _runs(rows: list[Document]) -> list[list[Document]]:
    """Return the stretches of what is live in which messages are in the order of the log.

    Only there may turns of two writers interleave: any other order is what a writer has seen live.
    """
    runs: list[list[Document]] = [[]]
    highest = -1
    for row in rows:
        ref = ref_of(row["slot"])
        if isinstance(ref, int):
            if ref < highest:
                runs.append([])
            highest = ref
        runs[-1].append(row)
    return runs


def _together(run: list[Document], interrupted: str | None) -> list[Document]:
    return [run[index] for index in turns_together(run, interrupted)]


def _make_live(
    live: LiveConversation,
    agent: Any,
    stored: StoredAgent,
    rows: list[Document],
    repair: Callable[[list[Message]], list[Message]],
) -> None:
    slots = [row.pop("slot") for row in rows]
    turn_ids = [row.get("turn_id") for row in rows]
    messages = [
        slot.message if isinstance(slot, Slot) else message
        for slot, message in zip(slots, documents.to_messages(rows), strict=True)
    ]
    agent.messages = messages
    is_exact = stored.live is not None and stored.live.get("at") == stored.message_count
    newest = stored.message_count - 1 if stored.message_count else None
    live.restored(slots, messages, newest, exact=is_exact, turn_ids=turn_ids)
    if not messages:
        return
    if trims_by_itself(agent) and not is_exact:
        # As at the end of the last turn, which may have moved the window and stored nothing after that.
        agent.conversation_manager.apply_management(agent)
    if documents.have_tool_blocks(agent.messages):
        agent.messages = repair(agent.messages)
    live.was_made(agent)


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
