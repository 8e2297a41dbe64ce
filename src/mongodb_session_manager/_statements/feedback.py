"""Feedbacks: appended once, about what is there, while there is room."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from .._model.documents import Document
from .._model.limits import MAX_EMBEDDED_FEEDBACK_BYTES, MAX_EMBEDDED_FEEDBACKS
from .commits import append_projection
from .expressions import messages_of, number_at
from .sessions import SessionRef, Update

FEEDBACKS = "$feedbacks"
"""Stands in a segment's ``_id`` where an agent's key would; no agent has such a key."""


class MessageLink(NamedTuple):
    """What a feedback is about.

    Attributes:
        agent_key: Key of the agent.
        message_id: The message; None where it is about the agent, or where the message is known to exist.
    """

    agent_key: str
    message_id: int | None = None

    def exists(self) -> Document:
        """Return the expression for whether the session has it, as far as its document tells: false if archived."""
        agent = f"$agents.{self.agent_key}"
        is_there: Document = {"$eq": [{"$type": agent}, "object"]}
        if self.message_id is None:
            return is_there
        count, messages = f"{agent}.message_count", messages_of(agent)
        ids = {"$map": {"input": messages, "as": "m", "in": "$$m.message_id"}}
        # As many messages as ids were given out: each id is one, wherever it is. A repository's ids may have gaps.
        gapless = {"$eq": [count, {"$add": [number_at(f"{agent}.archived_count"), {"$size": messages}]}]}
        counted = {"$and": [{"$gt": [number_at(count), self.message_id]}, gapless]}
        return {"$and": [is_there, {"$or": [counted, {"$in": [self.message_id, ids]}]}]}


def add_feedback(
    session: SessionRef, feedback: Document, link: MessageLink | None, count: int, now: datetime
) -> Update:
    """Return the update that appends one feedback, if there are so many before it, archived ones included.

    And if there is room, and what it is about is there.
    """
    conditions: list[Document] = [{"$eq": [_feedback_count(), count]}, {"$not": _FEEDBACKS_ARE_FULL}]
    if link is not None:
        conditions.append(link.exists())
    return session.write(now, {"$push": {"feedbacks": feedback}}, {}, that={"$and": conditions})


def feedback_projection(feedback: Document, link: MessageLink | None) -> Document:
    """Return the projection that tells whether a feedback is stored, and if not, why.

    Either there is no room for it, or what it is about is not ``linked``.
    """
    position: Document = {}
    if link is not None:
        # Of the agent alone it says as much; no message has the id -1.
        position = append_projection(link.agent_key, -1 if link.message_id is None else link.message_id)
    commit_ids = {"$cond": [{"$isArray": "$feedbacks.commit_id"}, "$feedbacks.commit_id", []]}
    return {
        **position,
        "count": _feedback_count(),
        "archived": number_at("$feedbacks_archived"),
        "stored": {"$in": [feedback["commit_id"], commit_ids]},
        "full": _FEEDBACKS_ARE_FULL,
        "linked": {"$literal": True} if link is None else link.exists(),
    }


EMBEDDED_FEEDBACKS: Document = {"$cond": [{"$isArray": "$feedbacks"}, "$feedbacks", []]}


_FEEDBACKS_ARE_FULL: Document = {
    "$or": [
        {"$gte": [{"$size": EMBEDDED_FEEDBACKS}, MAX_EMBEDDED_FEEDBACKS]},
        {"$gte": [{"$bsonSize": {"f": EMBEDDED_FEEDBACKS}}, MAX_EMBEDDED_FEEDBACK_BYTES]},
    ]
}


def _feedback_count() -> Document:
    return {"$add": [number_at("$feedbacks_archived"), {"$size": EMBEDDED_FEEDBACKS}]}
