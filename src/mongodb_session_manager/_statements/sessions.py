"""Which session a writer means, and whether it may write; what every update of a session checks and changes.

And until when the related documents of a session are kept. ``parts_expire_at`` says until when they are kept for
certain, ``parts_moving_to`` until when somebody is just making them live. How the two work together:
``_model/expiry.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from bson import ObjectId

from .._model.documents import Document
from .._model.expiry import EXPIRED, NOT_EXPIRED, in_hours, related_needed_until
from .._model.shapes import Lease
from .expressions import for_each_agent


class Update(NamedTuple):
    """One ``update_one``."""

    filter: Document
    update: Document | list[Document]
    array_filters: list[Document] | None = None


class SessionRef(NamedTuple):
    """Which session a writer means, and by which right it writes.

    Attributes:
        session_id: The session's id.
        incarnation: The one that was opened; None where any will do (the repository's own methods).
        lease_token: The token of the lease this writer holds, if it does.
        ttl: How long the session lives from this writer's activity on; None: until it is deleted.
    """

    session_id: str
    incarnation: ObjectId | None = None
    lease_token: str | None = None
    ttl: timedelta | None = None

    def pinned(self, incarnation: ObjectId | None) -> SessionRef:
        """Return the same session, of just this incarnation: the one that was read."""
        return self._replace(incarnation=incarnation)

    def filter(self, **conditions: Any) -> Document:
        """Return the filter by which the server decides whether this writer may write at all."""
        document: Document = {"_id": self.session_id}
        if self.incarnation is not None:
            document["incarnation"] = self.incarnation
        if self.lease_token is None:
            document["$expr"] = MAY_WRITE
        else:
            document["lease.token"] = self.lease_token
            document["$expr"] = _MAY_WRITE_WITH_LEASE
        document.update(conditions)
        return document

    def write(
        self,
        now: datetime,
        changes: Document,
        conditions: Mapping[str, Any],
        array_filters: list[Document] | None = None,
        that: Document | None = None,
    ) -> Update:
        """Return an update of the session's content: it moves ``updated_at`` and ``expires_at``, too.

        It matches no session whose parts would not outlive it, and, for a writer without a ttl, none that has one;
        ``SessionStore`` then sees to it.

        Args:
            now: The time of the change.
            changes: What else changes.
            conditions: What must be true of the session.
            array_filters: Array filters of the changes.
            that: An expression that must be true besides.
        """
        document = self.filter(**conditions)
        changed = changes.setdefault("$set", {})
        changed["updated_at"] = now
        if self.ttl is None:
            document["ttl_hours"] = None
        else:
            changed["ttl_hours"] = in_hours(self.ttl)
            changed["expires_at"] = expires_at = now + self.ttl
            document["parts_expire_at"] = {"$not": {"$lt": related_needed_until(expires_at, self.ttl)}}
        if that is not None:
            document["$expr"] = {"$and": [document["$expr"], that]}
        return Update(document, changes, array_filters)


# Compared by the server's clock. A missing field sorts before every date, so no lease passes, too.
MAY_WRITE: Document = {"$and": [{"$lte": ["$lease.expires_at", "$$NOW"]}, NOT_EXPIRED]}
"""Expression for whether a writer without a lease may write: the session lives, and nobody holds its lease."""

_MAY_WRITE_WITH_LEASE: Document = {"$and": [{"$gt": ["$lease.expires_at", "$$NOW"]}, NOT_EXPIRED]}


def not_expired(session_id: str) -> Document:
    """Return the filter of a session that has not expired."""
    return {"_id": session_id, "$expr": NOT_EXPIRED}


def expired(session_id: str, incarnation: ObjectId | None) -> Document:
    """Return the filter of an incarnation of a session that has expired and was not removed yet."""
    return {"_id": session_id, "incarnation": incarnation, "$expr": EXPIRED}


def unless_expired(projection: Mapping[str, Any]) -> Document:
    """Return the projection with None for every expression of it if the session has expired: its blobs may be gone."""
    return {
        name: value if value == 1 or name in STANDING else {"$cond": [EXPIRED, None, value]}
        for name, value in projection.items()
    }


ANY_INDEXED: Document = {"$anyElementTrue": for_each_agent({"$ne": [{"$type": "$$a.v.indexed"}, "missing"]})}
"""Expression for whether messages of a session may be in the search."""


STANDING: Document = {
    "incarnation": 1,
    "lease": 1,
    "expired": EXPIRED,
    "ttl_hours": 1,
    "parts_expire_at": 1,
    "parts_moving_to": 1,
    "any_indexed": ANY_INDEXED,
    "now": "$$NOW",
}
"""Projection of a ``Standing``."""


@dataclass(frozen=True)
class Standing:
    """How a session stands: read before a write that has to know it, or because a write did not match.

    Attributes:
        incarnation: Which one is there. (``SessionCommands.standing`` gives one to an older document first.)
        lease: Who holds the lease, or held it last; None: nobody.
        now: The server's clock when this was read.
        expired: Whether the session has expired and was not removed yet.
        ttl_hours: The ttl of the last writer, in hours; None: it had none.
        parts_expire_at: Until when the related documents are promised to be kept; None: they have no expiry.
        parts_moving_to: Until when somebody is letting them live instead; None: nobody is.
        any_indexed: Whether messages of it may be in the search.
        found: All that was read, with what the write needs besides, by its name in the projection.
    """

    incarnation: ObjectId
    lease: Lease | None
    now: datetime
    expired: bool
    ttl_hours: float | None
    parts_expire_at: datetime | None
    parts_moving_to: datetime | None
    any_indexed: bool
    found: Document

    @classmethod
    def of(cls, found: Document) -> Standing:
        """Return what was read by a projection with ``STANDING`` in it."""
        read: dict[str, Any] = {name: found.get(name) for name in STANDING}
        return cls(**read, found=found)

    @property
    def lease_seconds(self) -> float:
        """For how many seconds the lease still runs, by the server's clock; 0 or less: it does not."""
        return (self.lease["expires_at"] - self.now).total_seconds() if self.lease else 0.0


# --- the expiry of related documents ---------------------------------------------------------------------------------


def announce_move(session_id: str, standing: Mapping[str, Any], until: datetime) -> Update:
    """Return the update that announces until when related documents will be kept, if nobody has said so meanwhile."""
    return Update(_alive_as_promised(session_id, standing), {"$set": {"parts_moving_to": until}})


def confirm_move(session_id: str, standing: Mapping[str, Any], until: datetime) -> Update:
    """Return the update that says that all related documents are now kept as long as was announced."""
    which = _alive_as_promised(session_id, {**standing, "parts_moving_to": until})
    return Update(which, {"$set": {"parts_expire_at": until}, "$unset": {"parts_moving_to": ""}})


def end_expiry(session_id: str, standing: Mapping[str, Any]) -> Update:
    """Return the update by which a session no longer expires; its related documents do not, either."""
    return Update(_alive_as_promised(session_id, standing), {"$unset": {"expires_at": "", "ttl_hours": ""}})


def begin_expiry(session_id: str, incarnation: ObjectId, until: datetime) -> Update:
    """Return the update that says until when the related documents of an expiring session are kept.

    For a session that has got its ttl later: so far they had no expiry.
    """
    which = _alive_as_promised(session_id, {"incarnation": incarnation})
    return Update({**which, "expires_at": {"$lt": until}}, {"$set": {"parts_expire_at": until}})


def as_promised(session_id: str, standing: Mapping[str, Any]) -> Document:
    """Match the session only while the fields of ``RELATED_EXPIRY`` are as in ``standing``.

    One that is absent there must still be absent, which is what None matches.
    """
    return {"_id": session_id, **{name: standing.get(name) for name in RELATED_EXPIRY}}


def _alive_as_promised(session_id: str, standing: Mapping[str, Any]) -> Document:
    return {**as_promised(session_id, standing), "$expr": NOT_EXPIRED}


def keep_until(until: datetime) -> Document:
    """Return the change by which related documents expire no sooner than this."""
    return {"$max": {"expires_at": until}}


RELATED_EXPIRY = {"incarnation": 1, "parts_expire_at": 1, "parts_moving_to": 1}
"""Projection of what a new related document needs of its session. Each may be absent."""
