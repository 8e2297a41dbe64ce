"""Until when what belongs to a session is kept: announced, moved on, promised."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from bson import ObjectId

from .._model.documents import Document
from .._model.expiry import NOT_EXPIRED
from .sessions import Update


def announce_move(session_id: str, standing: Mapping[str, Any], until: datetime) -> Update:
    """Return the update that says where the parts of a session are moved to, if nobody has said more meanwhile."""
    which = {**as_promised(session_id, standing), "$expr": NOT_EXPIRED}
    return Update(which, {"$set": {"parts_moving_to": until}})


def confirm_move(session_id: str, standing: Mapping[str, Any], until: datetime) -> Update:
    """Return the update that says that the parts were moved on."""
    which = {**as_promised(session_id, {**standing, "parts_moving_to": until}), "$expr": NOT_EXPIRED}
    return Update(which, {"$set": {"parts_expire_at": until}, "$unset": {"parts_moving_to": ""}})


def end_expiry(session_id: str, standing: Mapping[str, Any]) -> Update:
    """Return the update by which a session expires no more; its parts are kept for ever, or never had an expiry."""
    which = {**as_promised(session_id, standing), "$expr": NOT_EXPIRED}
    return Update(which, {"$unset": {"expires_at": "", "ttl_hours": ""}})


def begin_expiry(session_id: str, incarnation: ObjectId, until: datetime) -> Update:
    """Return the update that says when the parts of an expiring session go, if they had no expiry so far."""
    which = {**as_promised(session_id, {"incarnation": incarnation}), "$expr": NOT_EXPIRED}
    return Update({**which, "expires_at": {"$lt": until}}, {"$set": {"parts_expire_at": until}})


def as_promised(session_id: str, standing: Mapping[str, Any]) -> Document:
    """Return the filter of a session of whose parts still the same is said; None matches a field that is not there."""
    names = ("incarnation", "parts_expire_at", "parts_moving_to")
    return {"_id": session_id, **{name: standing.get(name) for name in names}}


def keep_until(until: datetime) -> Document:
    """Return the change by which parts of a session expire no sooner than this."""
    return {"$max": {"expires_at": until}}


RELATED_EXPIRY = {"incarnation": 1, "parts_expire_at": 1, "parts_moving_to": 1}
