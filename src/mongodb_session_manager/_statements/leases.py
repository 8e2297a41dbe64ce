"""Leases: who may take, renew and release one. All times are the server's."""

from __future__ import annotations

from .._model.documents import Document
from .._model.expiry import NOT_EXPIRED
from .expressions import counter_is, number_at
from .sessions import SessionRef, Update


def take_lease(session: SessionRef, owner: str, token: str, seconds: float, leases: int) -> Update:
    """Return the update that takes the lease if it is free or expired, and was taken so often before."""
    which: Document = {"_id": session.session_id, "incarnation": session.incarnation, **counter_is("leases", leases)}
    which["$expr"] = {"$and": [{"$lte": ["$lease.expires_at", "$$NOW"]}, NOT_EXPIRED]}
    lease = {"owner": {"$literal": owner}, "token": {"$literal": token}, "expires_at": _in(seconds)}
    # $unset first: $set merges into a document that is there.
    return Update(which, [{"$unset": "lease"}, {"$set": {"lease": lease, "leases": leases + 1}}])


def renew_lease(session: SessionRef, seconds: float) -> Update:
    """Return the update that moves the end of a lease that is still held."""
    return Update(session.filter(), [{"$set": {"lease.expires_at": _in(seconds)}}])


def release_lease(session_id: str, token: str) -> Update:
    """Return the update that gives a lease back; somebody else's is left alone."""
    return Update({"_id": session_id, "lease.token": token}, {"$unset": {"lease": ""}})


def _in(seconds: float) -> Document:
    return {"$add": ["$$NOW", round(seconds * 1000)]}


LEASES_SO_FAR = number_at("$leases")
"""Expression for how often a session's lease was taken."""
