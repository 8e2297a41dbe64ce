"""Lists of sessions: which are asked for, in which order, what makes a page, and the cursor: where a page ended. Pure.

The order is total: by a time and, where two sessions have the same, by ``_id``. The next page begins behind the last
session of the former one. Nothing is skipped by counting: the hundredth page costs what the first does.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple

import bson
from bson.errors import BSONError

from .._model.documents import Document, stored_time
from .._model.encoding import CODEC_OPTIONS, to_bson
from .._model.expiry import FOREVER, NOT_EXPIRED
from .._model.keys import check_compared_metadata, check_id, check_name, encode_key
from .._model.limits import MAX_LISTED_SESSIONS
from ..errors import shown
from .session_headers import ListedSession, SessionHeader, header

SortBy = Literal["created_at", "updated_at"]


class PageEnd(NamedTuple):
    """Where a page ends, in a list of which order.

    Attributes:
        sort_by: The field by which the list is sorted.
        newest_first: Whether the latest time comes first.
        time: The time of the last session on the page.
        session_id: The id of this session.
        tied: Whether the next session has the same time.
    """

    sort_by: SortBy
    newest_first: bool
    time: datetime
    session_id: str
    tied: bool


@dataclass(frozen=True)
class SessionPage:
    """One page of a list of sessions.

    Attributes:
        sessions: In the order that was asked for; empty if there are none.
        cursor: Ask for the next page with it; None on the last page.
    """

    sessions: list[SessionHeader]
    cursor: str | None


@dataclass(frozen=True)
class Listing:
    """A page that is asked for, checked.

    Attributes:
        conditions: Conditions that the sessions meet.
        sort_by: The field by which they are sorted.
        newest_first: Whether the latest time comes first.
        limit: How many at most.
        after: Where the former page ended; None for the first one.
    """

    conditions: list[Document]
    sort_by: SortBy
    newest_first: bool
    limit: int
    after: PageEnd | None

    @property
    def sort(self) -> list[tuple[str, int]]:
        """The order as MongoDB takes it."""
        direction = -1 if self.newest_first else 1
        return [(self.sort_by, direction), ("_id", direction)]

    @property
    def filters(self) -> list[Document]:
        """The filters to send one after the other: together they find the page and all that follows it.

        One filter, or two where sessions share the time at which the former page ended. As two commands each is a
        plain range of an index; as one, with ``$or``, MongoDB's planner sorted everything that follows.
        """
        if self.after is None:
            return [{"$and": [*self.conditions]}]
        beyond = "$lt" if self.newest_first else "$gt"
        later: Document = {self.sort_by: {beyond: self.after.time}}
        tied: Document = {self.sort_by: {"$eq": self.after.time}, "_id": {beyond: self.after.session_id}}
        return [{"$and": [*self.conditions, where]} for where in ([tied, later] if self.after.tied else [later])]


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
    after = None if cursor is None else read_cursor(cursor, sort_by, newest_first)
    return Listing(conditions, sort_by, newest_first, limit, after)


# `$expr` over types: MongoDB finds no index for it, so it never leads the planner astray.
_FIRST_TIME = datetime(1, 1, 1, tzinfo=timezone.utc)
_BOTH_TIMES = ("$created_at", "$updated_at")
_IS_A_SESSION: Document = {
    "$expr": {
        "$and": [
            {"$eq": [{"$type": "$_id"}, "string"]},
            *({"$eq": [{"$type": time}, "date"]} for time in _BOTH_TIMES),
            # What lies outside of Python's times, no page could show.
            *({"$lte": [time, FOREVER]} for time in _BOTH_TIMES),
            *({"$gte": [time, _FIRST_TIME]} for time in _BOTH_TIMES),
        ]
    }
}


def _metadata(metadata: Mapping[str, Any] | None) -> list[Document]:
    if metadata is None:
        return []
    # $eq: what looks like an operator is a value like any other.
    return [{f"metadata.{path}": {"$eq": value}} for path, value in check_compared_metadata(metadata).items()]


def _equal(name: str, value: str | None) -> list[Document]:
    return [] if value is None else [{name: {"$eq": check_name(value, name)}}]


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
    """Return the keys of the indexes that lists are read from: first what a list is filtered by, then its order.

    Each commit moves ``updated_at``, and so each commit writes every index that holds it. There is only one such index;
    what a list is filtered by is indexed with ``created_at`` only.
    """
    filtered = ["application_name", "agent_ids", *(f"metadata.{name}" for name in metadata_fields)]
    keys = [["created_at", "_id"], *([name, "created_at", "_id"] for name in filtered), ["updated_at", "_id"]]
    return [[(name, 1) for name in key] for key in keys]


def page(asked: Listing, found: list[ListedSession], archived: Mapping[str, Any]) -> SessionPage:
    """Return a page.

    Args:
        asked: What was asked for.
        found: The sessions as projected, one more than asked for if there are so many.
        archived: By session id, the first user text in the segment that ``first_segment`` named, as projected.
    """
    on_page, cursor = found[: asked.limit], None
    if len(found) > asked.limit:
        last, following = found[asked.limit - 1], found[asked.limit]
        time, tied = last[asked.sort_by], last[asked.sort_by] == following[asked.sort_by]
        cursor = write_cursor(PageEnd(asked.sort_by, asked.newest_first, time, last["_id"], tied))
    return SessionPage([header(session, archived.get(session["_id"])) for session in on_page], cursor)


# --- the cursor ------------------------------------------------------------------------------------------------------

_FIELDS = {"sort_by": str, "newest_first": bool, "time": datetime, "session_id": str, "tied": bool}


def write_cursor(end: PageEnd) -> str:
    """Return the end of a page as text for the caller to bring back."""
    return base64.urlsafe_b64encode(to_bson(end._asdict())).decode("ascii").rstrip("=")


def read_cursor(cursor: str, sort_by: SortBy, newest_first: bool) -> PageEnd:
    """Return the end of a page that a cursor stands for.

    It says where to go on and nothing else, so a cursor that was changed shows nobody what the filters would not.

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
    if {name: type(value) for name, value in found.items()} != _FIELDS:
        raise wrong
    end = PageEnd(**found)
    if (end.sort_by, end.newest_first) != (sort_by, newest_first):
        raise ValueError(
            f"cursor belongs to a list with sort_by={shown(end.sort_by)} and newest_first={shown(end.newest_first)}: "
            "the pages of one list have one order"
        )
    return end
