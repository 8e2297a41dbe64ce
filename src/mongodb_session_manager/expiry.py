"""Expiry: when a session ends by itself, and until when what belongs to it must be kept. Pure.

A session lives for one *ttl* from its last activity on: each write of content moves its ``expires_at``. Its parts, the
segments of its history and its blobs, are other documents, which MongoDB removes on their own. So that a live session
never loses a part, its document names a time before which none of them goes, ``parts_expire_at``, and no write moves
``expires_at`` beyond that. The writer that would, moves the parts on first, to two ttl from then:

1. ``parts_moving_to`` says where to. From here on a new part gets that.
2. All parts that are there are moved on.
3. ``parts_expire_at`` says so.

A part that was made by what step 1 has changed is either there in step 2 (a blob: its time is read after it was
stored), or never counts (a segment: its commit demands that both fields are as they were read). Parts are only ever
moved on, never back. Without ``parts_expire_at`` they have no expiry at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

FOREVER = datetime(9999, 12, 31, tzinfo=timezone.utc)
"""The expiry of parts that had one until their session lost its own."""

EXPIRED: dict[str, Any] = {"$lte": [{"$ifNull": ["$expires_at", FOREVER]}, "$$NOW"]}
"""Expression that tells whether a session is past its time, by the server's clock."""

NOT_EXPIRED: dict[str, Any] = {"$gt": [{"$ifNull": ["$expires_at", FOREVER]}, "$$NOW"]}
"""Its opposite."""

_MAX_HOURS = 24 * 366 * 100


def check_ttl(ttl_hours: object) -> timedelta | None:
    """Return a ``ttl_hours`` as a ``timedelta``; None stays None.

    Raises:
        TypeError: It is no number.
        ValueError: It is not above 0, or more than a hundred years.
    """
    if ttl_hours is None:
        return None
    if not isinstance(ttl_hours, (int, float)) or isinstance(ttl_hours, bool):
        raise TypeError(f"ttl_hours must be a number of hours or None, not {ttl_hours!r}")
    if not math.isfinite(ttl_hours) or not 0 < ttl_hours <= _MAX_HOURS:
        raise ValueError(f"ttl_hours must be above 0 and at most {_MAX_HOURS}, not {ttl_hours!r}")
    # MongoDB keeps milliseconds.
    return timedelta(milliseconds=max(1, round(ttl_hours * 3_600_000)))


def parts_kept_until(now: datetime, ttl: timedelta) -> datetime:
    """Return until when the parts of a session are kept that are moved on now."""
    return now + 2 * ttl


def first_expiry(now: datetime, ttl: timedelta | None) -> dict[str, datetime]:
    """Return the fields by which a new session expires; none without a ttl."""
    if ttl is None:
        return {}
    return {"expires_at": now + ttl, "parts_expire_at": parts_kept_until(now, ttl)}


def expiry_of_new_parts(session: Mapping[str, Any]) -> datetime | None:
    """Return the ``expires_at`` of a new part of a session, of which these fields were read; None: it has none."""
    moment: datetime | None = session.get("parts_moving_to") or session.get("parts_expire_at")
    return moment
