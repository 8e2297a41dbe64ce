"""Feedbacks: each is appended once, only about an agent or message that is there, and only while there is room."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from .._model.documents import Document
from .._model.limits import MAX_EMBEDDED_FEEDBACK_BYTES, MAX_EMBEDDED_FEEDBACKS
from .commits import append_projection
from .expressions import array_at, count_of, for_each_message, is_object, messages_of, number_at
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
        is_there = is_object(agent)
        if self.message_id is None:
            return is_there
        count = f"{agent}.message_count"
        ids = for_each_message(messages_of(agent), "$$m.message_id")
        # As many messages as ids were given out: each id is one, wherever it is. A repository's ids may have gaps.
        gapless = {"$eq": [count, count_of(agent)]}
        counted = {"$and": [{"$gt": [number_at(count), self.message_id]}, gapless]}
        return {"$and": [is_there, {"$or": [counted, {"$in": [self.message_id, ids]}]}]}


def add_feedback(
    session: SessionRef, feedback: Document, link: MessageLink | None, count: int, now: datetime
) -> Update:
    """Return the update that appends one feedback: if there are ``count`` before it, archived ones included.

    It also asks for room, and for what the feedback is about.
    """
    conditions: list[Document] = [{"$eq": [_FEEDBACK_COUNT, count]}, {"$not": _FEEDBACKS_ARE_FULL}]
    if link is not None:
        conditions.append(link.exists())
    return session.write(now, {"$push": {"feedbacks": feedback}}, {}, that={"$and": conditions})


def feedback_projection(feedback: Document, link: MessageLink | None) -> Document:
    """Return the projection that tells whether a feedback is stored, and if not, why.

    It yields, beside what ``append_projection`` says of the message that the feedback is about:

    - ``count``: how many feedbacks the session has, archived ones included;
    - ``archived``: how many of them are archived;
    - ``stored``: whether this very feedback is embedded;
    - ``full``: whether there is no room for another before some are archived;
    - ``linked``: whether what it is about is there; false also where that is archived and the ids have gaps.
    """
    about: Document = {}
    if link is not None:
        # No message has the id -1: where the feedback is about an agent, only what is said of the agent counts.
        about = append_projection(link.agent_key, -1 if link.message_id is None else link.message_id)
    return {
        **about,
        "count": _FEEDBACK_COUNT,
        "archived": number_at("$feedbacks_archived"),
        "stored": {"$in": [feedback["commit_id"], array_at("$feedbacks.commit_id")]},
        "full": _FEEDBACKS_ARE_FULL,
        "linked": {"$literal": True} if link is None else link.exists(),
    }


EMBEDDED_FEEDBACKS: Document = array_at("$feedbacks")

_FEEDBACKS_ARE_FULL: Document = {
    "$or": [
        {"$gte": [{"$size": EMBEDDED_FEEDBACKS}, MAX_EMBEDDED_FEEDBACKS]},
        {"$gte": [{"$bsonSize": {"f": EMBEDDED_FEEDBACKS}}, MAX_EMBEDDED_FEEDBACK_BYTES]},
    ]
}

_FEEDBACK_COUNT: Document = {"$add": [number_at("$feedbacks_archived"), {"$size": EMBEDDED_FEEDBACKS}]}
