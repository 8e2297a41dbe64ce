"""Expiry: when a session ends by itself, and until when what belongs to it must be kept. Pure.

A session lives for one *ttl* from its last activity on: each write of content moves its ``expires_at``. Its parts, the
segments of its history and its blobs, are other documents, which MongoDB removes on their own. So that a live session
never loses a part, its document names a time before which none of them goes, ``parts_expire_at``, and no write moves
``expires_at`` to it or beyond; a tenth of a ttl lies between, for clocks that differ. The writer that would, moves the
parts on first, to two ttl from then:

1. ``parts_moving_to`` says where to. From here on a new part gets that.
2. All parts that are there are moved on.
3. ``parts_expire_at`` says so.

A part that was made by what step 1 has changed is either there in step 2 (a blob: its time is read after it was
stored), or never counts (a segment: its commit demands that both fields are as they were read). Parts are only ever
moved on, never back.

Without ``parts_expire_at`` they have no expiry. They get one if their session gets a ttl: its document says so first,
and then those do that were there before. A writer without a ttl moves them on to ``FOREVER`` before it takes
``expires_at`` and ``ttl_hours`` away, so that this cannot be undone by what is still under way.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from ..errors import shown
from .limits import MAX_TTL_HOURS

FOREVER = datetime(9999, 12, 31, tzinfo=timezone.utc)
"""The expiry of parts that had one until their session lost its own."""

EXPIRED: dict[str, Any] = {
    # Anything but a date expires nothing, for MongoDB as well.
    "$and": [{"$eq": [{"$type": "$expires_at"}, "date"]}, {"$lte": ["$expires_at", "$$NOW"]}]
}
"""Expression that tells whether a session is past its time, by the server's clock."""

NOT_EXPIRED: dict[str, Any] = {"$not": [EXPIRED]}
"""Its opposite."""


def check_ttl(ttl_hours: object) -> timedelta | None:
    """Return a ``ttl_hours`` as a ``timedelta``; None stays None.

    Raises:
        TypeError: It is no number.
        ValueError: It is not above 0, or more than a hundred years.
    """
    if ttl_hours is None:
        return None
    if not isinstance(ttl_hours, (int, float)) or isinstance(ttl_hours, bool):
        raise TypeError(f"ttl_hours must be a number of hours or None, not {shown(ttl_hours)}")
    if not 0 < ttl_hours <= MAX_TTL_HOURS:
        raise ValueError(f"ttl_hours must be above 0 and at most {MAX_TTL_HOURS}, not {shown(ttl_hours)}")
    # MongoDB keeps milliseconds.
    return timedelta(milliseconds=max(1, round(ttl_hours * 3_600_000)))


def in_hours(ttl: timedelta) -> float:
    """Return the ``ttl_hours`` of a session document: it tells that the session expires by this library."""
    return ttl / timedelta(hours=1)


def related_needed_until(expires_at: datetime, ttl: timedelta) -> datetime:
    """Return until when the parts of a session must be kept that expires then."""
    return expires_at + timedelta(milliseconds=ttl // timedelta(milliseconds=10))


def related_kept_until(now: datetime, ttl: timedelta) -> datetime:
    """Return until when the parts of a session are kept that are moved on now."""
    return now + 2 * ttl


def first_expiry(now: datetime, ttl: timedelta | None) -> dict[str, Any]:
    """Return the fields by which a new session expires; none without a ttl."""
    if ttl is None:
        return {}
    return {"expires_at": now + ttl, "ttl_hours": in_hours(ttl), "parts_expire_at": related_kept_until(now, ttl)}


def expiry_of_new_related(session: Mapping[str, Any]) -> datetime | None:
    """Return the ``expires_at`` of a new part of a session, of which these fields were read; None: it has none."""
    moment: datetime | None = session.get("parts_moving_to") or session.get("parts_expire_at")
    return moment
