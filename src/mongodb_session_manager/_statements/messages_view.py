"""The view that shows every message of every session as a document of its own, wherever it is stored. Pure."""

from __future__ import annotations

from .._model.documents import Document
from .._model.expiry import NOT_EXPIRED
from .expressions import EACH_AGENT, agent_with_key, is_object, object_at
from .feedback import FEEDBACKS
from .sweeping import look_up_session, says_whose


def pipeline(sessions: str, history: str) -> list[Document]:
    """Return the view's pipeline on the collection of the sessions.

    Args:
        sessions: Name of that collection.
        history: Name of the collection of the segments.
    """
    embedded: list[Document] = [
        {"$match": {"$expr": NOT_EXPIRED}},
        {"$project": {"application_name": 1, "session_type": 1, "agent": EACH_AGENT}},
        {"$unwind": "$agent"},
        {"$unwind": "$agent.v.messages"},
        # Whatever else somebody has put there is no message.
        {"$match": {"$expr": is_object("$agent.v.messages")}},
        {"$replaceWith": _message("$_id", "$$ROOT", "$agent", "$agent.v.messages")},
    ]
    session: list[Document] = [
        {"$match": {"$expr": {"$and": [{"$eq": ["$incarnation", "$$incarnation"]}, NOT_EXPIRED]}}},
        {"$project": {"application_name": 1, "session_type": 1, "agent": agent_with_key("$$key")}},
        # A segment counts as soon as its session says so.
        {"$match": {"$expr": {"$lt": ["$$first", "$agent.v.archived_count"]}}},
        {"$project": {"agent.v.messages": 0}},
    ]
    names = {"incarnation": "$_id.incarnation", "key": "$_id.agent", "first": "$_id.first"}
    archived: list[Document] = [
        {"$match": {"_id.agent": {"$ne": FEEDBACKS}, "$expr": says_whose("$_id", "first")}},
        look_up_session(sessions, names, session, "session"),
        {"$unwind": "$session"},
        {"$unwind": "$messages"},
        {"$match": {"$expr": is_object("$messages")}},
        {"$replaceWith": _message("$_id.session", "$session", "$session.agent", "$messages")},
    ]
    return [*embedded, {"$unionWith": {"coll": history, "pipeline": archived}}]


def _message(session_id: str, session: str, agent: str, message: str) -> Document:
    return {
        "$mergeObjects": [
            {
                "_id": {"session": session_id, "agent": f"{agent}.k", "message_id": f"{message}.message_id"},
                "session_id": session_id,
                "session_type": f"{session}.session_type",
                "application_name": f"{session}.application_name",
                "agent_id": {"$ifNull": [f"{agent}.v.agent_data.agent_id", f"{agent}.k"]},
                "model": f"{agent}.v.agent_data.model",
            },
            # Older documents keep role and content in `message`, and in `redact_message` where it was redacted.
            object_at(f"{message}.message"),
            object_at(f"{message}.redact_message"),
            message,
        ]
    }
