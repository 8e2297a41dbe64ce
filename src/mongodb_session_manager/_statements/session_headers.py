"""What a list says of a session: what the server computes of it, and the title that is made of the user's words. Pure.

A list shows headers, never conversations: counts, tokens and the words for the title are computed by the server, so
that a page has a few kilobytes however long its sessions are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bson import ObjectId
from typing_extensions import NotRequired, TypedDict

from .._model.documents import Document
from .._model.encoding import MARKER, decode
from .._model.foreign import count, name_of
from .._model.limits import TITLE_CHARACTERS, TITLE_READ_BYTES, TITLE_READ_CHARACTERS
from .._model.related_shapes import SegmentId
from .expressions import EACH_AGENT, array_at, for_each_agent, is_object, object_at, switch
from .segments import segment_id

# What Strands writes in the user's name when a tool is called directly.
_DIRECT_CALL = r"^agent\.tool\.[^\n]* direct tool call\.\n"

_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class SessionHeader:
    """What a list shows of one session.

    Attributes:
        session_id: The session.
        session_type: Its type; ``"default"`` where none was given.
        application_name: The application it belongs to, or None.
        created_at: When it began, UTC.
        updated_at: When its content last changed, UTC.
        expires_at: When it expires, UTC; None if it does not.
        title: ``metadata["title"]`` if that is a text; else the beginning of the first text the user wrote, on one
            line, at most 80 characters, with "…" where it was cut; None if there is neither. It is made when the list
            is read and stored nowhere, so a redaction reaches it at once.
        agent_ids: Its agents, in the order in which they joined.
        message_count: Messages of all its agents, archived ones included.
        input_tokens: Tokens sent to models so far, by all its agents.
        output_tokens: Tokens received from models.
        total_tokens: Both, as the providers counted them.
        feedback_count: Feedbacks.
        metadata: The session's metadata, all of it, up to 8 MB; ``{}`` if it has none.
    """

    session_id: str
    session_type: str
    application_name: str | None
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    title: str | None
    agent_ids: list[str]
    message_count: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    feedback_count: int
    metadata: dict[str, Any]


class ListedSession(TypedDict):
    """A session as ``PROJECTION`` yields it: both times are times, the numbers are whatever adding up has given.

    What may be absent is as it is stored; another program may have put anything there.

    Attributes:
        _id: Its id.
        created_at: When it began, UTC.
        updated_at: When its content last changed, UTC.
        agent_ids: The ids of its agents; of an older document ``{key, agent_id}`` each, ``agent_id`` perhaps absent.
        message_count: Messages of all agents, archived ones included.
        feedback_count: Feedbacks, archived ones included.
        input_tokens: Tokens sent to models.
        output_tokens: Tokens received from models.
        total_tokens: Both.
        words: ``{archived, text}``, see ``_words``; ``{}`` where ``metadata.title`` is the title.
    """

    _id: str
    created_at: datetime
    updated_at: datetime
    agent_ids: list[Any]
    message_count: Any
    feedback_count: Any
    input_tokens: Any
    output_tokens: Any
    total_tokens: Any
    words: Document
    session_type: NotRequired[Any]
    application_name: NotRequired[Any]
    expires_at: NotRequired[Any]
    metadata: NotRequired[Any]
    incarnation: NotRequired[Any]


# --- what the server computes ---------------------------------------------------------------------------------------


def _tokens(name: str) -> Document:
    models = {"$objectToArray": object_at("$$a.v.usage.models")}
    return {"$sum": for_each_agent({"$sum": {"$map": {"input": models, "as": "m", "in": f"$$m.v.{name}"}}})}


def _first(items: Any, found: Any) -> Document:
    """Return the expression for the first that is found in an array; null if there is none. ``found`` sees `$$this`."""
    # Of `$cond` only one branch is computed: behind what was found nothing is looked at.
    unless_found = {"$cond": [{"$ne": ["$$value", None]}, "$$value", found]}
    return {"$reduce": {"input": items, "initialValue": None, "in": unless_found}}


def _text(text: str) -> Document:
    """Return the expression for what a title needs of a block's text: null if it is blank, or there is none."""
    cut = {"$substrCP": [{"$trim": {"input": text}}, 0, TITLE_READ_CHARACTERS]}
    is_nobodys = {"$or": [{"$eq": ["$$cut", ""]}, {"$regexMatch": {"input": "$$cut", "regex": _DIRECT_CALL}}]}
    words = {"$let": {"vars": {"cut": cut}, "in": {"$cond": [is_nobodys, None, "$$cut"]}}}
    # Text with a lone surrogate is stored as bytes. One that is kept as a blob would have to be fetched.
    value = f"{text}.value"
    size = {"$cond": [{"$eq": [{"$type": value}, "binData"]}, {"$binarySize": value}, None]}
    is_short = [{"$gt": [size, None]}, {"$lte": [size, TITLE_READ_BYTES]}]
    is_marker = {"$and": [is_object(text), {"$eq": [f"{text}.{MARKER}", "str"]}, *is_short]}
    return switch(({"$eq": [{"$type": text}, "string"]}, words), (is_marker, text), default=None)


def _first_user_text(messages: Any) -> Document:
    """Return the expression for the first text that the user wrote, cut, as it is stored; null if there is none."""
    # Older documents keep role and content in `message`, and also what was redacted; their `content` may be a text
    # itself. A tuple is a marker.
    role = {"$ifNull": ["$$this.role", "$$this.message.role"]}
    content = {"$ifNull": ["$$this.content", "$$this.redact_message.content", "$$this.message.content"]}
    blocks = switch(
        ({"$isArray": "$$content"}, "$$content"),
        ({"$eq": [{"$type": "$$content"}, "string"]}, [{"text": "$$content"}]),
        ({"$isArray": "$$content.value"}, "$$content.value"),
        default=[],
    )
    words = {"$let": {"vars": {"content": content}, "in": _first(blocks, _text("$$this.text"))}}
    return _first(messages, {"$cond": [{"$eq": [role, "user"]}, words, None]})


def _words() -> Document:
    """Return the expression ``{archived, text}`` for the title of a session.

    ``text`` is the first user text that is embedded, or null. ``archived`` is the key of the agent whose history may
    hold an earlier one, or null: the first agent whose beginning is archived, if none before it has a text.
    """
    is_archived = {"$gt": ["$$this.v.archived_count", 0]}
    one_more = {
        "archived": {"$ifNull": ["$$value.archived", {"$cond": [is_archived, "$$this.k", None]}]},
        "text": _first_user_text(array_at("$$this.v.messages")),
    }
    unless_found = {"$cond": [{"$ne": ["$$value.text", None]}, "$$value", one_more]}
    found = {"$reduce": {"input": EACH_AGENT, "initialValue": {"archived": None, "text": None}, "in": unless_found}}
    has_title = {"$gt": [{"$strLenBytes": {"$trim": {"input": "$metadata.title"}}}, 0]}
    return {"$cond": [{"$cond": [{"$eq": [{"$type": "$metadata.title"}, "string"]}, has_title, False]}, {}, found]}


# Older documents lack `agent_ids`.
_IDS_OF_OLDER = for_each_agent({"key": "$$a.k", "agent_id": "$$a.v.agent_data.agent_id"})
_ARCHIVED_AND_EMBEDDED = ["$$a.v.archived_count", {"$size": array_at("$$a.v.messages")}]
_AS_STORED = (
    *("session_id", "session_type", "application_name", "incarnation"),
    *("created_at", "updated_at", "expires_at", "metadata"),
)

PROJECTION: Document = {
    **dict.fromkeys(_AS_STORED, 1),
    "agent_ids": {"$cond": [{"$isArray": "$agent_ids"}, "$agent_ids", _IDS_OF_OLDER]},
    "message_count": {"$sum": for_each_agent({"$sum": _ARCHIVED_AND_EMBEDDED})},
    "feedback_count": {"$sum": ["$feedbacks_archived", {"$size": array_at("$feedbacks")}]},
    "input_tokens": _tokens("inputTokens"),
    "output_tokens": _tokens("outputTokens"),
    "total_tokens": _tokens("totalTokens"),
    "words": _words(),
}
"""Projection of a session to a ``ListedSession``: metadata as it is, everything else computed."""

SEGMENT_PROJECTION: Document = {"text": _first_user_text(array_at("$messages"))}
"""Projection of what a title needs of the first segment of an agent's history: its first user ``text``, or null."""


# --- headers --------------------------------------------------------------------------------------------------------


def first_segment(session: ListedSession) -> SegmentId | None:
    """Return the ``_id`` of the segment that may hold the words for a session's title; None if none is needed."""
    key, incarnation = session["words"].get("archived"), session.get("incarnation")
    return segment_id(session["_id"], incarnation, key, 0) if key and isinstance(incarnation, ObjectId) else None


def header(session: ListedSession, archived_text: Any) -> SessionHeader:
    """Return the header of a session.

    Args:
        session: The session.
        archived_text: The first user text in the segment that ``first_segment`` names, as projected; None without one.
    """
    metadata = session["metadata"] if isinstance(session.get("metadata"), dict) else {}
    title = metadata.get("title")
    if not isinstance(title, str) or not title.strip():
        title = _title(archived_text) or _title(session["words"].get("text"))
    session_type, application_name = session.get("session_type"), session.get("application_name")
    expires_at = session.get("expires_at")
    return SessionHeader(
        session_id=session["_id"],
        session_type=session_type if isinstance(session_type, str) else "default",
        application_name=application_name if isinstance(application_name, str) else None,
        created_at=session["created_at"],
        updated_at=session["updated_at"],
        expires_at=expires_at if isinstance(expires_at, datetime) else None,
        title=title,
        agent_ids=_agent_ids(session["agent_ids"]),
        message_count=count(session["message_count"]),
        input_tokens=count(session["input_tokens"]),
        output_tokens=count(session["output_tokens"]),
        total_tokens=count(session["total_tokens"]),
        feedback_count=count(session["feedback_count"]),
        metadata=metadata,
    )


def _agent_ids(projected: Iterable[Any]) -> list[str]:
    ids = []
    for one in projected:
        if isinstance(one, dict) and isinstance(one.get("key"), str):
            one = one["agent_id"] if isinstance(one.get("agent_id"), str) else name_of(one["key"])
        if isinstance(one, str):
            ids.append(one)
    return ids


def _title(stored: Any) -> str | None:
    """Return a title made of a user's text, as it is stored or the beginning of it; None if there is none."""
    text = decode(stored)
    if not isinstance(text, str):
        return None
    is_longer = len(text) >= TITLE_READ_CHARACTERS
    line = " ".join(_SURROGATES.sub("\ufffd", text).split())
    if len(line) <= TITLE_CHARACTERS and not is_longer:
        return line or None
    line, following = line[: TITLE_CHARACTERS - 1], line[TITLE_CHARACTERS - 1 : TITLE_CHARACTERS]
    if following not in ("", " "):
        words, _, rest = line.rpartition(" ")
        # A script without spaces, or one long word, is cut where it must be.
        line = words if len(rest) < TITLE_CHARACTERS // 2 else line
    return line.rstrip() + "…"
