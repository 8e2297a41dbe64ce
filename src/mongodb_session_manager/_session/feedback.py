"""How a feedback of the application becomes a stored one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bson import ObjectId

from .._model.documents import check_storable
from .._model.keys import check_feedback, encode_key
from .._statements.feedback import MessageLink
from .._statements.sessions import SessionRef
from .._store.session_commands import now
from .._store.session_store import SessionStore


def add_feedback(
    store: SessionStore, session_id: str, session: Callable[[], SessionRef], feedback: Mapping[str, Any]
) -> None:
    """Append a feedback to a session; ``session`` is called, to open it, when the feedback is known to be storable.

    Raises:
        InvalidIdentifierError: A key cannot be stored, or ``message_id`` is none.
        UnstorableValueError: A value cannot be stored.
        SessionNotFoundError: There is no such session.
        AgentNotFoundError: It is about an agent that the session does not have.
        MessageNotFoundError: It is about a message that the agent does not have.
    """
    moment = now()
    stored = {**check_feedback(feedback), "created_at": moment, "commit_id": ObjectId()}
    check_storable(stored, "feedback", session_id)
    link = None
    if stored.get("agent_id") is not None:
        link = MessageLink(encode_key(stored["agent_id"]), stored.get("message_id"))
    store.changes.add_feedback(session(), stored, link, moment)
