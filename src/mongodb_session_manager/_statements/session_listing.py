"""Lists of sessions: what is asked for, what the server computes of each session, where a page ends. Pure.

A list shows headers, never conversations: counts, tokens and the words for the title are computed by the server, so
that a page has a few kilobytes however long its sessions are.

The order is total: by a time and, where two sessions have the same, by ``_id``. A page ends at a position in that
order, and the next one begins behind it. Nothing is skipped by counting: the hundredth page costs what the first does.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple

import bson
from bson import ObjectId
from bson.errors import BSONError

from .._model.documents import Document, stored_time
from .._model.encoding import CODEC_OPTIONS, MARKER, decode, to_bson
from .._model.expiry import FOREVER, NOT_EXPIRED
from .._model.foreign import count, name_of
from .._model.keys import check_depth, check_id, check_metadata_paths, check_name, encode_key
from .._model.limits import MAX_LISTED_SESSIONS, TITLE_CHARACTERS, TITLE_READ_BYTES, TITLE_READ_CHARACTERS
from ..errors import shown
from .expressions import EACH_AGENT
from .segments import segment_id

SortBy = Literal["created_at", "updated_at"]


# What Strands writes in the user's name when a tool is called directly.
_DIRECT_CALL = r"^agent\.tool\.[^\n]* direct tool call\.\n"

_SURROGATES = re.compile("[\ud800-\udfff]")
_CURSOR = {"sort_by": str, "newest_first": bool, "time": datetime, "session_id": str, "tied": bool}


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


@dataclass(frozen=True)
class SessionPage:
    """One page of a list of sessions.

    Attributes:
        sessions: In the order that was asked for; empty if there are none.
        cursor: Ask for the next page with it; None on the last page.
    """

    sessions: list[SessionHeader]
    cursor: str | None


# --- what is asked for ----------------------------------------------------------------------------------------------


class Order(NamedTuple):
    """The order of a list.

    Attributes:
        sort_by: The field.
        newest_first: Whether the latest time comes first.
    """

    sort_by: SortBy
    newest_first: bool

    @property
    def sort(self) -> list[tuple[str, int]]:
        """MongoDB's form of it."""
        direction = -1 if self.newest_first else 1
        return [(self.sort_by, direction), ("_id", direction)]


class Position(NamedTuple):
    """Where a page ends: the last session on it.

    Attributes:
        time: Its time, by which the list is sorted.
        session_id: Its id.
        tied: Whether the next session has the same time.
    """

    time: datetime
    session_id: str
    tied: bool


@dataclass(frozen=True)
class Listing:
    """A page that is asked for, checked.

    Attributes:
        conditions: Conditions that the sessions meet.
        order: Their order.
        limit: How many at most.
        after: Where the former page ended; None for the first one.
    """

    conditions: tuple[Document, ...]
    order: Order
    limit: int
    after: Position | None

    @property
    def filters(self) -> list[Document]:
        """The filters whose sessions, one filter's behind the other's, are the page and what follows it.

        One filter, or two where sessions share the time at which the former page ended. As two commands each is a
        plain range of an index; as one, with ``$or``, MongoDB's planner sorted everything that follows.
        """
        if self.after is None:
            return [_all(self.conditions)]
        beyond = "$lt" if self.order.newest_first else "$gt"
        later: Document = {self.order.sort_by: {beyond: self.after.time}}
        tied: Document = {self.order.sort_by: {"$eq": self.after.time}, "_id": {beyond: self.after.session_id}}
        return [_all((*self.conditions, where)) for where in ([tied, later] if self.after.tied else [later])]


def listing(
    *,
    metadata: Mapping[str, Any] | None,
    application_name: str | None,
    session_type: str | None,
    agent_id: str | None,
    created_from: datetime | None,
    created_before: datetime | None,
    updated_from: datetime | None,
    updated_before: datetime | None,
    sort_by: SortBy,
    newest_first: bool,
    limit: int,
    cursor: str | None,
) -> Listing:
    """Return what is asked for, or raise an error that says what is wrong with it.

    Raises:
        TypeError: An argument has the wrong type.
        InvalidIdentifierError: A metadata key or the agent's id cannot be used.
        UnstorableValueError: A value to compare with is nested too deeply.
        ValueError: A time has no time zone or is out of range; ``sort_by``, ``limit`` or ``cursor`` is wrong.
    """
    if sort_by not in ("created_at", "updated_at"):
        raise ValueError(f"sort_by must be 'created_at' or 'updated_at', not {shown(sort_by)}")
    if not isinstance(newest_first, bool):
        raise TypeError(f"newest_first must be a bool, not {type(newest_first).__name__}")
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise TypeError(f"limit must be an int, not {type(limit).__name__}")
    if not 1 <= limit <= MAX_LISTED_SESSIONS:
        raise ValueError(f"limit must be from 1 to {MAX_LISTED_SESSIONS}, not {shown(limit)}")
    order = Order(sort_by, newest_first)
    conditions = [
        *_metadata(metadata),
        *_equal("application_name", application_name),
        *_equal("session_type", session_type),
        *_agent(agent_id),
        *_times("created", created_from, created_before),
        *_times("updated", updated_from, updated_before),
        {"$expr": NOT_EXPIRED},
        _IS_A_SESSION,
    ]
    return Listing(tuple(conditions), order, limit, None if cursor is None else read_cursor(cursor, order))


_FIRST_TIME = datetime(1, 1, 1, tzinfo=timezone.utc)

# `$expr` over types: MongoDB finds no index for it, so it never leads the planner astray.
_IS_A_SESSION: Document = {
    "$expr": {
        "$and": [
            {"$eq": [{"$type": "$_id"}, "string"]},
            # Python's times end there, and a page could not.
            *({"$eq": [{"$type": time}, "date"]} for time in ("$created_at", "$updated_at")),
            *({"$lte": [time, FOREVER]} for time in ("$created_at", "$updated_at")),
            *({"$gte": [time, _FIRST_TIME]} for time in ("$created_at", "$updated_at")),
        ]
    }
}


def _all(conditions: Iterable[Document]) -> Document:
    return {"$and": list(conditions)}


def _metadata(metadata: Mapping[str, Any] | None) -> list[Document]:
    if metadata is None:
        return []
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a mapping, not {type(metadata).__name__}")
    checked = dict(zip(check_metadata_paths(metadata), metadata.values(), strict=True))
    for path, value in checked.items():
        check_depth(value, f"metadata {path}", path.count(".") + 1)
    # $eq: what looks like an operator is a value like any other.
    return [{f"metadata.{path}": {"$eq": value}} for path, value in checked.items()]


def _equal(name: str, value: str | None) -> list[Document]:
    if value is None:
        return []
    return [{name: {"$eq": check_name(value, name)}}]


def _agent(agent_id: str | None) -> list[Document]:
    if agent_id is None:
        return []
    agent_id = check_id(agent_id, "agent_id")
    # Older documents have no `agent_ids`: the index holds them under None.
    return [
        {"agent_ids": {"$in": [agent_id, None]}},
        {"$or": [{"agent_ids": {"$eq": agent_id}}, {f"agents.{encode_key(agent_id)}": {"$exists": True}}]},
    ]


def _times(what: str, start: datetime | None, end: datetime | None) -> list[Document]:
    bounds: Document = {}
    for name, operator, moment in ((f"{what}_from", "$gte", start), (f"{what}_before", "$lt", end)):
        if moment is None:
            continue
        if not isinstance(moment, datetime):
            raise TypeError(f"{name} must be a datetime, not {type(moment).__name__}")
        if moment.utcoffset() is None:
            raise ValueError(f"{name} has no time zone: say which moment is meant, as datetime.now(timezone.utc) does")
        try:
            bounds[operator] = stored_time(moment)
        except OverflowError:
            raise ValueError(f"{name} is out of range: in UTC it lies before the year 1 or after 9999") from None
    return [{f"{what}_at": bounds}] if bounds else []


def indexes(metadata_fields: Iterable[str]) -> list[list[tuple[str, int]]]:
    """Return the keys of the indexes that lists are read from, each in the order of a list behind what it filters.

    Each commit moves `updated_at`, so an index that holds it is written by each commit; there is one such, and what is
    filtered by is indexed beside `created_at` only.
    """
    before: list[tuple[str, ...]] = [(), ("application_name",), ("agent_ids",)]
    before += [(f"metadata.{name}",) for name in metadata_fields]
    keys = [(*names, "created_at", "_id") for names in before]
    return [[(name, 1) for name in key] for key in [*keys, ("updated_at", "_id")]]


# --- cursors --------------------------------------------------------------------------------------------------------


def write_cursor(order: Order, position: Position) -> str:
    """Return a position as text for the caller to bring back."""
    content = to_bson({**order._asdict(), **position._asdict()})
    return base64.urlsafe_b64encode(content).decode("ascii").rstrip("=")


def read_cursor(cursor: str, order: Order) -> Position:
    """Return the position that a cursor stands for.

    It says where to go on and nothing else, so one that was changed shows nobody what the filters would not.

    Raises:
        TypeError: It is no string.
        ValueError: It is not one that was returned for this order.
    """
    if not isinstance(cursor, str):
        raise TypeError(f"cursor must be a string, not {type(cursor).__name__}")
    wrong = ValueError("cursor is damaged, or none that list_sessions returned: pass that of the former page as it was")
    try:
        content = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        found = bson.decode(content, CODEC_OPTIONS)
    except (ValueError, BSONError):
        raise wrong from None
    if {name: type(value) for name, value in found.items()} != _CURSOR:
        raise wrong
    of = Order(*(found[name] for name in Order._fields))
    if of != order:
        raise ValueError(
            f"cursor belongs to a list with sort_by={shown(of.sort_by)} and newest_first={shown(of.newest_first)}: "
            "the pages of one list have one order"
        )
    return Position(*(found[name] for name in Position._fields))


# --- what the server computes ---------------------------------------------------------------------------------------


def _object(path: str) -> Document:
    return {"$cond": [{"$eq": [{"$type": path}, "object"]}, path, {}]}


def _array(path: str) -> Document:
    return {"$cond": [{"$isArray": path}, path, []]}


def _over_agents(expression: Any) -> Document:
    return {"$map": {"input": EACH_AGENT, "as": "a", "in": expression}}


def _tokens(name: str) -> Document:
    models = {"$objectToArray": _object("$$a.v.usage.models")}
    return {"$sum": _over_agents({"$sum": {"$map": {"input": models, "as": "m", "in": f"$$m.v.{name}"}}})}


def _first(items: Any, found: Any) -> Document:
    """Return the expression for the first that is found in an array; null if there is none. ``found`` sees `$$this`."""
    # Of `$cond` only one branch is computed: behind what was found nothing is looked at.
    unless_found = {"$cond": [{"$ne": ["$$value", None]}, "$$value", found]}
    return {"$reduce": {"input": items, "initialValue": None, "in": unless_found}}


def _text(text: str) -> Document:
    """Return the expression for what a title needs of a block's text: null if it is blank, or there is none."""
    cut = {"$substrCP": [{"$trim": {"input": text}}, 0, TITLE_READ_CHARACTERS]}
    is_text = {"$eq": [{"$type": text}, "string"]}
    is_nobodys = {"$or": [{"$eq": ["$$cut", ""]}, {"$regexMatch": {"input": "$$cut", "regex": _DIRECT_CALL}}]}
    # Text with a lone surrogate is stored as bytes. One that is kept as a blob would have to be fetched.
    is_bytes = {"$cond": [{"$eq": [{"$type": f"{text}.value"}, "binData"]}, {"$binarySize": f"{text}.value"}, None]}
    is_marker = {
        "$and": [
            {"$eq": [{"$type": text}, "object"]},
            {"$eq": [f"{text}.{MARKER}", "str"]},
            {"$gt": [is_bytes, None]},
            {"$lte": [is_bytes, TITLE_READ_BYTES]},
        ]
    }
    return {
        "$switch": {
            "branches": [
                {
                    "case": is_text,
                    "then": {"$let": {"vars": {"cut": cut}, "in": {"$cond": [is_nobodys, None, "$$cut"]}}},
                },
                {"case": is_marker, "then": text},
            ],
            "default": None,
        }
    }


def _first_user_text(messages: Any) -> Document:
    """Return the expression for the first text that the user wrote, cut, as it is stored; null if there is none."""
    # Older documents keep role and content in `message`, what was redacted, too, and a text as `content` itself. A
    # tuple is a marker.
    role = {"$ifNull": ["$$this.role", "$$this.message.role"]}
    content = {"$ifNull": ["$$this.content", "$$this.redact_message.content", "$$this.message.content"]}
    blocks = {
        "$switch": {
            "branches": [
                {"case": {"$isArray": "$$content"}, "then": "$$content"},
                {"case": {"$eq": [{"$type": "$$content"}, "string"]}, "then": [{"text": "$$content"}]},
                {"case": {"$isArray": "$$content.value"}, "then": "$$content.value"},
            ],
            "default": [],
        }
    }
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
        "text": _first_user_text(_array("$$this.v.messages")),
    }
    found = {
        "$reduce": {
            "input": EACH_AGENT,
            "initialValue": {"archived": None, "text": None},
            "in": {"$cond": [{"$ne": ["$$value.text", None]}, "$$value", one_more]},
        }
    }
    has_title = {"$gt": [{"$strLenBytes": {"$trim": {"input": "$metadata.title"}}}, 0]}
    return {"$cond": [{"$cond": [{"$eq": [{"$type": "$metadata.title"}, "string"]}, has_title, False]}, {}, found]}


PROJECTION: Document = {
    "session_id": 1,
    "session_type": 1,
    "application_name": 1,
    "incarnation": 1,
    "created_at": 1,
    "updated_at": 1,
    "expires_at": 1,
    "metadata": 1,
    # Older documents lack `agent_ids`.
    "agent_ids": {
        "$cond": [
            {"$isArray": "$agent_ids"},
            "$agent_ids",
            _over_agents({"key": "$$a.k", "agent_id": "$$a.v.agent_data.agent_id"}),
        ]
    },
    "message_count": {"$sum": _over_agents({"$sum": ["$$a.v.archived_count", {"$size": _array("$$a.v.messages")}]})},
    "feedback_count": {"$sum": ["$feedbacks_archived", {"$size": _array("$feedbacks")}]},
    "input_tokens": _tokens("inputTokens"),
    "output_tokens": _tokens("outputTokens"),
    "total_tokens": _tokens("totalTokens"),
    "words": _words(),
}
"""Projection of the header of a session, metadata as it is, everything else computed."""

SEGMENT_PROJECTION: Document = {"text": _first_user_text(_array("$messages"))}
"""Projection of what a title needs of the first segment of an agent's history."""


# --- headers --------------------------------------------------------------------------------------------------------


def first_segment(document: Document) -> Document | None:
    """Return the ``_id`` of the segment that may hold the words for a session's title; None if none is needed."""
    key = document["words"].get("archived")
    incarnation = document.get("incarnation")
    return segment_id(document["_id"], incarnation, key, 0) if key and isinstance(incarnation, ObjectId) else None


def page(asked: Listing, found: list[Document], archived: Mapping[str, Any]) -> SessionPage:
    """Return a page.

    Args:
        asked: What was asked for.
        found: The sessions as projected, one more than asked for if there are so many.
        archived: By session id, the first user text in the segment that `first_segment` named, as projected.
    """
    shown = found[: asked.limit]
    cursor = None
    if len(found) > asked.limit:
        last, following = found[asked.limit - 1][asked.order.sort_by], found[asked.limit][asked.order.sort_by]
        cursor = write_cursor(asked.order, Position(last, shown[-1]["_id"], last == following))
    return SessionPage([_header(document, archived.get(document["_id"])) for document in shown], cursor)


def _header(document: Document, archived_text: Any) -> SessionHeader:
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    title = metadata.get("title")
    if not isinstance(title, str) or not title.strip():
        title = _title(archived_text) or _title(document["words"].get("text"))
    session_type, application_name = document.get("session_type"), document.get("application_name")
    expires_at = document.get("expires_at")
    return SessionHeader(
        session_id=document["_id"],
        session_type=session_type if isinstance(session_type, str) else "default",
        application_name=application_name if isinstance(application_name, str) else None,
        created_at=document["created_at"],
        updated_at=document["updated_at"],
        expires_at=expires_at if isinstance(expires_at, datetime) else None,
        title=title,
        agent_ids=_agent_ids(document["agent_ids"]),
        message_count=count(document["message_count"]),
        input_tokens=count(document["input_tokens"]),
        output_tokens=count(document["output_tokens"]),
        total_tokens=count(document["total_tokens"]),
        feedback_count=count(document["feedback_count"]),
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
