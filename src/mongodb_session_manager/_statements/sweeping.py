"""What is orphaned, of all sessions."""

from __future__ import annotations

from typing import Any

from .._model.documents import Document
from .expressions import EACH_AGENT, is_whole


def says_whose(path: str, number: str, *otherwise: str) -> Document:
    """Return the expression for whether a path says whose something is, in the types in which that is written here.

    What says so in others, or not at all, is somebody else's.

    Args:
        path: ``"$_id"`` of a part of a session, ``"$metadata"`` of a file.
        number: Its field that is a number.
        otherwise: Types that this may have instead.
    """
    types = {
        "session": ["string"],
        "incarnation": ["objectId"],
        "agent": ["string"],
        number: ["int", "long", "double", *otherwise],
    }
    return {"$and": [{"$in": [{"$type": f"{path}.{name}"}, allowed]} for name, allowed in types.items()]}


def may_be_incarnation(incarnation: Any) -> Document:
    """Return the expression for whether a session document is, or may be, that of this incarnation of the session.

    One whose incarnation is none any more (an export has made a text of it, say) does not tell.
    """
    does_not_tell = {"$not": [{"$in": [{"$type": "$incarnation"}, ["objectId", "missing", "null"]]}]}
    return {"$or": [{"$eq": ["$incarnation", incarnation]}, does_not_tell]}


def incarnations_to_sweep(sessions: str, number: str) -> list[Document]:
    """Return the pipeline on related documents that yields incarnations that seem over, or have a marked document.

    Each is ``{_id: {session, incarnation}, over, marked}``.

    Args:
        sessions: Name of the collection of the session documents.
        number: The field of a part's ``_id`` that is a number.
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
        _look_up_session(sessions, {"incarnation": "$_id.incarnation"}, alive),
        {"$project": {"marked": 1, "over": {"$eq": ["$found", []]}}},
        {"$match": {"$or": [{"over": True}, {"marked": True}]}},
    ]


def stale_segments(sessions: str) -> list[Document]:
    """Return the pipeline on segments that yields ``{_id, edits}`` of those that nobody can commit any more."""
    names = {"incarnation": "$_id.incarnation", "key": "$_id.agent", "first": "$_id.first", "edits": "$edits"}
    stale: list[Document] = [
        {"$match": {"$expr": _outdated("$$incarnation", "$$key", "$$first", "$$edits")}},
        {"$project": {"_id": 1}},
    ]
    return [
        {"$match": {"$expr": says_whose("$_id", "first")}},
        _look_up_session(sessions, names, stale),
        {"$match": {"found": {"$ne": []}}},
        {"$project": {"edits": 1}},
    ]


def outdates(segment: Document, edits: int) -> Document:
    """Return the expression for whether a session is such that nobody can commit this segment any more."""
    return _outdated(segment["incarnation"], {"$literal": segment["agent"]}, segment["first"], edits)


def _outdated(incarnation: Any, key: Any, first: Any, edits: Any) -> Document:
    mine = {"$first": {"$filter": {"input": EACH_AGENT, "as": "a", "cond": {"$eq": ["$$a.k", key]}}}}
    archived, edits_now = "$$mine.v.archived_count", "$$mine.v.edits"
    # Not committed, and a message was edited since it was read. Numbers sort before what is none.
    numbers = [is_whole(number) for number in (edits, archived, edits_now)]
    uncommitted = {"$and": [*numbers, {"$gte": [first, archived]}, {"$lt": [edits, edits_now]}]}
    return {
        "$and": [
            {"$eq": ["$incarnation", incarnation]},
            {"$let": {"vars": {"mine": mine}, "in": uncommitted}},
        ]
    }


def _look_up_session(sessions: str, names: Document, pipeline: list[Document]) -> Document:
    """Return the stage that makes ``found`` of the session of a part: what the pipeline leaves of its document."""
    return {
        "$lookup": {
            "from": sessions,
            "localField": "_id.session",
            "foreignField": "_id",
            "let": names,
            "pipeline": pipeline,
            "as": "found",
        }
    }
