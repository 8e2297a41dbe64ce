"""Expiry: when a session ends by itself, and until when its related documents must be kept. Pure.

A session lives for one *ttl* from its last activity on: each write of content moves its ``expires_at``. Its related
documents (segments, search documents, blobs) are other documents, which MongoDB removes on their own. A session that
lives must never lose one. So the session document names a time before which none of them expires, ``parts_expire_at``,
and no write moves ``expires_at`` to that time or beyond. A tenth of a ttl lies between the two, for clocks that differ.
A writer that would come too close first gives the related documents a later expiry, two ttl from then:

1. ``parts_moving_to`` says which. From here on a new related document gets that expiry.
2. All related documents that are there get it.
3. ``parts_expire_at`` says so.

A related document that was made with the earlier expiry does no harm. A blob is there in step 2, because its expiry is
read after it was stored. A segment never counts, because its commit demands that both fields are as they were read. An
expiry only ever becomes later.

Without ``parts_expire_at`` related documents have no expiry. If their session gets a ttl, its document says so first,
and then those get an expiry that were there before. A writer without a ttl moves them to ``FOREVER`` before it takes
``expires_at`` and ``ttl_hours`` away, so that a command that is still on its way cannot undo this.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from ..errors import shown
from .limits import MAX_TTL_HOURS

FOREVER = datetime(9999, 12, 31, tzinfo=timezone.utc)
"""The expiry of related documents whose session has lost its ttl."""

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
    """Return until when the related documents of a session must be kept that expires then."""
    return expires_at + timedelta(milliseconds=ttl // timedelta(milliseconds=10))


def related_kept_until(now: datetime, ttl: timedelta) -> datetime:
    """Return the expiry that related documents get which are moved on now."""
    return now + 2 * ttl


def first_expiry(now: datetime, ttl: timedelta | None) -> dict[str, Any]:
    """Return the fields by which a new session expires; none without a ttl."""
    if ttl is None:
        return {}
    return {"expires_at": now + ttl, "ttl_hours": in_hours(ttl), "parts_expire_at": related_kept_until(now, ttl)}


def expiry_of_new_related(session: Mapping[str, Any]) -> datetime | None:
    """Return the ``expires_at`` of a new related document of the session that was read; None: it gets none."""
    moment: datetime | None = session.get("parts_moving_to") or session.get("parts_expire_at")
    return moment
