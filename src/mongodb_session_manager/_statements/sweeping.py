"""Which related documents are orphaned: their incarnation is over, or their segment can never be committed."""

from __future__ import annotations

from typing import Any

from .._model.documents import Document
from .expressions import agent_with_key, is_whole


def says_whose(path: str, number: str, *otherwise: str) -> Document:
    """Return the expression for whether a related document was written by this library.

    It was, if it says to which session, incarnation and agent it belongs, in the types that are written here.

    Args:
        path: Where it says so: ``"$_id"``, or ``"$metadata"`` of a file.
        number: The field there that is a number.
        otherwise: Other types that this field may have.
    """
    numbers = ["int", "long", "double", *otherwise]
    types = {"session": ["string"], "incarnation": ["objectId"], "agent": ["string"], number: numbers}
    return {"$and": [{"$in": [{"$type": f"{path}.{name}"}, allowed]} for name, allowed in types.items()]}


def may_be_incarnation(incarnation: Any) -> Document:
    """Return the expression for whether a session document is, or may be, that of this incarnation of the session.

    It may be where its ``incarnation`` is no ObjectId any more: an export may have made a text of it.
    """
    does_not_tell = {"$not": [{"$in": [{"$type": "$incarnation"}, ["objectId", "missing", "null"]]}]}
    return {"$or": [{"$eq": ["$incarnation", incarnation]}, does_not_tell]}


def incarnations_to_sweep(sessions: str, number: str) -> list[Document]:
    """Return the pipeline on related documents that yields the incarnations of sessions that need a look.

    Of each ``{_id: {session, incarnation}, over, marked}``: whether it seems over, else one of its documents has a mark
    that may have to go; and whether one of them has a mark.

    Args:
        sessions: Name of the collection of the session documents.
        number: The field of the related documents' ``_id`` that is a number.
    """
    alive: list[Document] = [{"$match": {"$expr": may_be_incarnation("$$incarnation")}}, {"$project": {"_id": 1}}]
    return [
        {"$match": {"$expr": says_whose("$_id", number)}},
        {
            "$group": {
                "_id": {"session": "$_id.session", "incarnation": "$_id.incarnation"},
                "marked": {"$max": {"$ne": [{"$type": "$orphaned_at"}, "missing"]}},
            }
        },
        look_up_session(sessions, {"incarnation": "$_id.incarnation"}, alive, "found"),
        {"$project": {"marked": 1, "over": {"$eq": ["$found", []]}}},
        {"$match": {"$or": [{"over": True}, {"marked": True}]}},
    ]


def stale_segments(sessions: str) -> list[Document]:
    """Return the pipeline on segments that yields those that were never committed, and that nobody can commit any more.

    Of each ``{_id, edits}``: the agent's ``edits`` when its messages were read.
    """
    names = {"incarnation": "$_id.incarnation", "key": "$_id.agent", "first": "$_id.first", "edits": "$edits"}
    stale: list[Document] = [
        {"$match": {"$expr": _outdated("$$incarnation", "$$key", "$$first", "$$edits")}},
        {"$project": {"_id": 1}},
    ]
    return [
        {"$match": {"$expr": says_whose("$_id", "first")}},
        look_up_session(sessions, names, stale, "found"),
        {"$match": {"found": {"$ne": []}}},
        {"$project": {"edits": 1}},
    ]


def outdates(segment: Document) -> Document:
    """Return the expression for whether a session is such that nobody can commit this segment any more."""
    of = segment["_id"]
    return _outdated(of["incarnation"], {"$literal": of["agent"]}, of["first"], segment["edits"])


def _outdated(incarnation: Any, key: Any, first: Any, edits: Any) -> Document:
    archived, edits_now = "$$mine.v.archived_count", "$$mine.v.edits"
    # Not committed, and a message was edited since it was read. Numbers sort before what is none.
    numbers = [is_whole(number) for number in (edits, archived, edits_now)]
    uncommitted = {"$and": [*numbers, {"$gte": [first, archived]}, {"$lt": [edits, edits_now]}]}
    is_outdated = {"$let": {"vars": {"mine": agent_with_key(key)}, "in": uncommitted}}
    return {"$and": [{"$eq": ["$incarnation", incarnation]}, is_outdated]}


def look_up_session(sessions: str, names: Document, pipeline: list[Document], into: str) -> Document:
    """Return the stage that puts the session of a related document, as the pipeline leaves it, into an array.

    Args:
        sessions: Name of the collection of the session documents.
        names: What the pipeline sees of the related document, as ``$$name``.
        pipeline: What is read of the session document.
        into: The field of the array; it stays empty where there is no such session, or the pipeline drops it.
    """
    by_id = {"from": sessions, "localField": "_id.session", "foreignField": "_id"}
    return {"$lookup": {**by_id, "let": names, "pipeline": pipeline, "as": into}}
