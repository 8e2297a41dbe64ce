"""In which order sessions are listed, and the cursor: where a page ended, as text for the caller to bring back. Pure.

The order is total: by a time and, where two sessions have the same, by ``_id``. The next page begins behind the last
session of the former one. Nothing is skipped by counting: the hundredth page costs what the first does.
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Literal, NamedTuple

import bson
from bson.errors import BSONError

from .._model.encoding import CODEC_OPTIONS, to_bson
from ..errors import shown

SortBy = Literal["created_at", "updated_at"]


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


class PageEnd(NamedTuple):
    """Where a page ends: the last session on it.

    Attributes:
        time: Its time, by which the list is sorted.
        session_id: Its id.
        tied: Whether the next session has the same time.
    """

    time: datetime
    session_id: str
    tied: bool


_FIELDS = {"sort_by": str, "newest_first": bool, "time": datetime, "session_id": str, "tied": bool}


def write_cursor(order: Order, end: PageEnd) -> str:
    """Return the end of a page as text for the caller to bring back."""
    content = to_bson({**order._asdict(), **end._asdict()})
    return base64.urlsafe_b64encode(content).decode("ascii").rstrip("=")


def read_cursor(cursor: str, order: Order) -> PageEnd:
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
    of = Order(*(found[name] for name in Order._fields))
    if of != order:
        raise ValueError(
            f"cursor belongs to a list with sort_by={shown(of.sort_by)} and newest_first={shown(of.newest_first)}: "
            "the pages of one list have one order"
        )
    return PageEnd(*(found[name] for name in PageEnd._fields))
