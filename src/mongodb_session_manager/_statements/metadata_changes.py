"""A session's metadata: set, removed, kept below its size, and watched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from .._model.documents import Document
from .._model.encoding import to_bson
from .expressions import INT32_MAX, counter_is, number_at
from .sessions import SessionRef, Update

MAX_METADATA_BYTES = 4 * 1024 * 1024
"""What a session's metadata may have as BSON: MongoDB takes 16 MB in a document, and a conversation needs room."""


def set_metadata(session: SessionRef, metadata: Mapping[str, Any], changes: int, now: datetime) -> Update:
    """Return the update that sets these metadata fields and leaves the others, if they were changed so often before."""
    has_room = {"$lte": [metadata_size_expression(metadata), MAX_METADATA_BYTES]}
    that = {"$and": [has_room, metadata_without_gaps_expression(metadata)]}
    changed = {f"metadata.{key}": value for key, value in metadata.items()}
    return _change_metadata(session, {"$set": changed}, changes, now, that)


def _change_metadata(
    session: SessionRef, change: Document, changes: int, now: datetime, that: Document | None = None
) -> Update:
    counted = {**change, "$inc": {"metadata_changes": 1}}
    return session.write(now, counted, counter_is("metadata_changes", changes), that=that)


def metadata_size_expression(metadata: Mapping[str, Any]) -> Document:
    """Return the expression for the size that a session's metadata will have with these fields, in bytes.

    At most: the names of fields count as if they were new.
    """
    replaced = {str(index): _metadata_at(key.split(".")) for index, key in enumerate(metadata)}
    names = sum(len(key.encode()) + _LEVEL_BYTES * key.count(".") for key in metadata)
    added = len(to_bson({str(index): value for index, value in enumerate(metadata.values())})) + names
    return {
        "$add": [
            {"$bsonSize": {"$cond": [{"$eq": [{"$type": "$metadata"}, "object"]}, "$metadata", {}]}},
            {"$subtract": [added, {"$bsonSize": replaced}]},
        ]
    }


def metadata_without_gaps_expression(metadata: Iterable[str]) -> Document:
    """Return the expression for whether no field lies beyond the end of an array, which MongoDB fills with nulls.

    Directly behind the last element is not beyond.
    """
    conditions = []
    for parts in (key.split(".") for key in metadata):
        for depth, part in enumerate(parts):
            if (index := _index(part)) is not None:
                above = _metadata_at(parts[:depth])
                size = {"$cond": [{"$isArray": "$$above"}, {"$size": "$$above"}, INT32_MAX]}
                conditions.append({"$let": {"vars": {"above": above}, "in": {"$lte": [index, size]}}})
    return {"$and": conditions}


# What a nested document has besides its fields: its type, its length, its end and the end of its name.
_LEVEL_BYTES = 7


def _metadata_at(parts: Iterable[str]) -> Any:
    """Return the expression for the metadata that an update of this path means: a number may be an array's index."""
    at: Any = "$metadata"
    for part in parts:
        if (index := _index(part)) is not None:
            element = {"$arrayElemAt": ["$$above", index]}
            inner: Any = {"$cond": [{"$isArray": "$$above"}, element, f"$$above.{part}"]}
            at = {"$let": {"vars": {"above": at}, "in": inner}}
        elif isinstance(at, str):
            at = f"{at}.{part}"
        elif isinstance(at["$let"]["in"], str):
            at["$let"]["in"] += f".{part}"
        else:
            at = {"$let": {"vars": {"above": at}, "in": f"$$above.{part}"}}
    return at


def _index(part: str) -> int | None:
    """Return the index of an array that a part of a path may be, or None."""
    if not (part.isascii() and part.isdecimal()):
        return None
    return int(part) if len(part) < 10 else INT32_MAX


def unset_metadata(session: SessionRef, keys: Iterable[str], changes: int, now: datetime) -> Update:
    """Return the update that removes these metadata fields, if they were changed so often before."""
    return _change_metadata(session, {"$unset": {f"metadata.{key}": "" for key in keys}}, changes, now)


METADATA_CHANGES: list[Document] = [
    {
        "$match": {
            "$or": [
                # Deletions and replacements, and what ends a stream: the collection was dropped or renamed.
                {"operationType": {"$nin": ["insert", "update"]}},
                {
                    "$expr": {
                        "$anyElementTrue": {
                            "$map": {
                                "input": {
                                    "$concatArrays": [
                                        {
                                            "$map": {
                                                "input": {
                                                    "$objectToArray": {
                                                        "$ifNull": ["$updateDescription.updatedFields", {}]
                                                    }
                                                },
                                                "as": "f",
                                                "in": "$$f.k",
                                            }
                                        },
                                        {"$ifNull": ["$updateDescription.removedFields", []]},
                                        {"$ifNull": ["$updateDescription.truncatedArrays.field", []]},
                                    ]
                                },
                                "as": "path",
                                "in": {"$regexMatch": {"input": "$$path", "regex": r"^metadata(\.|$)"}},
                            }
                        }
                    }
                },
            ]
        }
    },
    {"$project": {"documentKey": 1}},
]
"""Pipeline of a change stream that yields the changes after which a session's metadata may be other than before."""


METADATA_CHANGES_SO_FAR = number_at("$metadata_changes")
"""Expression for how often a session's metadata was changed."""
