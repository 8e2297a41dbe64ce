"""The list of what guardrails did in a session."""

from __future__ import annotations

from .._model.documents import Document
from .._model.keys import decode_key
from .._model.limits import MAX_GUARDRAIL_EVENTS


def intervention(key: str, message_id: int, guardrail_event: Document) -> Document:
    """Return what is listed of a guardrail's intervention: also whose message it was about."""
    return {**guardrail_event, "agent_id": decode_key(key), "message_id": message_id}


def list_interventions(update: Document, interventions: list[Document]) -> None:
    """Let an update list these interventions in the session as well, the newest ones only."""
    update.setdefault("$push", {})["guardrail_events"] = {"$each": interventions, "$slice": -MAX_GUARDRAIL_EVENTS}
    update.setdefault("$inc", {})["guardrail_event_count"] = len(interventions)
