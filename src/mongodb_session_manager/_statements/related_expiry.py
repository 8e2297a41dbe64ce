"""Until when the related documents of a session are kept: announced, prolonged, promised.

The fields of the session document: ``parts_expire_at`` is until when they are kept for certain, ``parts_moving_to``
until when somebody is just making them live. How the two work together: ``_model/expiry.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypedDict

from bson import ObjectId

from .._model.documents import Document
from .._model.expiry import NOT_EXPIRED
from .sessions import Update


def announce_move(session_id: str, standing: Mapping[str, Any], until: datetime) -> Update:
    """Return the update that announces until when related documents will be kept, if nobody has said so meanwhile."""
    which = {**as_promised(session_id, standing), "$expr": NOT_EXPIRED}
    return Update(which, {"$set": {"parts_moving_to": until}})


def confirm_move(session_id: str, standing: Mapping[str, Any], until: datetime) -> Update:
    """Return the update that says that all related documents are now kept as long as was announced."""
    which = {**as_promised(session_id, {**standing, "parts_moving_to": until}), "$expr": NOT_EXPIRED}
    return Update(which, {"$set": {"parts_expire_at": until}, "$unset": {"parts_moving_to": ""}})


def end_expiry(session_id: str, standing: Mapping[str, Any]) -> Update:
    """Return the update by which a session no longer expires; its related documents do not, either."""
    which = {**as_promised(session_id, standing), "$expr": NOT_EXPIRED}
    return Update(which, {"$unset": {"expires_at": "", "ttl_hours": ""}})


def begin_expiry(session_id: str, incarnation: ObjectId, until: datetime) -> Update:
    """Return the update that says until when the related documents of an expiring session are kept.

    For a session that has got its ttl later: so far they had no expiry.
    """
    which = {**as_promised(session_id, {"incarnation": incarnation}), "$expr": NOT_EXPIRED}
    return Update({**which, "expires_at": {"$lt": until}}, {"$set": {"parts_expire_at": until}})


def as_promised(session_id: str, standing: Mapping[str, Any]) -> Document:
    """Match the session only while the fields of ``RELATED_EXPIRY`` are as in ``standing``.

    One that is absent there must still be absent, which is what None matches.
    """
    return {"_id": session_id, **{name: standing.get(name) for name in RELATED_EXPIRY}}


def keep_until(until: datetime) -> Document:
    """Return the change by which related documents expire no sooner than this."""
    return {"$max": {"expires_at": until}}


RELATED_EXPIRY = {"incarnation": 1, "parts_expire_at": 1, "parts_moving_to": 1}
"""Projection of what a new related document needs of its session, a ``RelatedExpiry``."""


class RelatedExpiry(TypedDict, total=False):
    """Until when the related documents of a session are kept, and of which incarnation they are.

    Attributes:
        incarnation: The incarnation of the session; absent in an older document, which has no related documents.
        parts_expire_at: Until when they are kept, UTC; absent where they have no expiry.
        parts_moving_to: Until when somebody is just making them live, UTC; absent where nobody does.
    """

    incarnation: ObjectId
    parts_expire_at: datetime | None
    parts_moving_to: datetime | None
