"""The view that shows every message of every session as a document of its own, wherever it is stored. Pure."""

from __future__ import annotations

from .._model.documents import Document
from .._model.expiry import NOT_EXPIRED
from .expressions import EACH_AGENT
from .feedback import FEEDBACKS
from .sweeping import says_whose


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
        {"$match": {"$expr": {"$eq": [{"$type": "$agent.v.messages"}, "object"]}}},
        {"$replaceWith": _message("$_id", "$$ROOT", "$agent", "$agent.v.messages")},
    ]
    mine = {"$filter": {"input": EACH_AGENT, "as": "a", "cond": {"$eq": ["$$a.k", "$$key"]}}}
    session: list[Document] = [
        {"$match": {"$expr": {"$and": [{"$eq": ["$incarnation", "$$incarnation"]}, NOT_EXPIRED]}}},
        {"$project": {"application_name": 1, "session_type": 1, "agent": {"$first": mine}}},
        # A segment counts as soon as its session says so.
        {"$match": {"$expr": {"$lt": ["$$first", "$agent.v.archived_count"]}}},
        {"$project": {"agent.v.messages": 0}},
    ]
    archived: list[Document] = [
        {"$match": {"_id.agent": {"$ne": FEEDBACKS}, "$expr": says_whose("$_id", "first")}},
        {
            "$lookup": {
                "from": sessions,
                "localField": "_id.session",
                "foreignField": "_id",
                "let": {"incarnation": "$_id.incarnation", "key": "$_id.agent", "first": "$_id.first"},
                "pipeline": session,
                "as": "session",
            }
        },
        {"$unwind": "$session"},
        {"$unwind": "$messages"},
        {"$match": {"$expr": {"$eq": [{"$type": "$messages"}, "object"]}}},
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
            # Older documents keep role and content in `message`, also of what was redacted.
            *(
                {"$cond": [{"$eq": [{"$type": older}, "object"]}, older, {}]}
                for older in (f"{message}.message", f"{message}.redact_message")
            ),
            message,
        ]
    }
