"""A session's metadata: set, removed, kept below its size, and watched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from .._model.documents import Document
from .._model.limits import MAX_METADATA_BYTES
from .expressions import counter_is, number_at, object_at
from .sessions import SessionRef, Update

METADATA_SIZE: Document = {"$bsonSize": object_at("$metadata")}
"""Expression for how many bytes a session's metadata has."""


def set_metadata(session: SessionRef, metadata: Mapping[str, Any], changes: int, now: datetime) -> Update:
    """Return the update that sets these metadata fields and leaves the others, if they were changed so often before."""
    has_room = {"$lte": [METADATA_SIZE, MAX_METADATA_BYTES]}
    changed = {f"metadata.{key}": value for key, value in metadata.items()}
    return _change_metadata(session, {"$set": changed}, changes, now, has_room)


def unset_metadata(session: SessionRef, keys: Iterable[str], changes: int, now: datetime) -> Update:
    """Return the update that removes these metadata fields, if they were changed so often before."""
    return _change_metadata(session, {"$unset": {f"metadata.{key}": "" for key in keys}}, changes, now)


def _change_metadata(
    session: SessionRef, change: Document, changes: int, now: datetime, that: Document | None = None
) -> Update:
    counted = {**change, "$inc": {"metadata_changes": 1}}
    return session.write(now, counted, counter_is("metadata_changes", changes), that=that)


_PATHS_CHANGED = {
    "$concatArrays": [
        {
            "$map": {
                "input": {"$objectToArray": {"$ifNull": ["$updateDescription.updatedFields", {}]}},
                "as": "f",
                "in": "$$f.k",
            }
        },
        {"$ifNull": ["$updateDescription.removedFields", []]},
        {"$ifNull": ["$updateDescription.truncatedArrays.field", []]},
    ]
}
_IS_METADATA = {"$regexMatch": {"input": "$$path", "regex": r"^metadata(\.|$)"}}

METADATA_CHANGES: list[Document] = [
    {
        "$match": {
            "$or": [
                # Deletions and replacements, and what ends a stream: the collection was dropped or renamed.
                {"operationType": {"$nin": ["insert", "update"]}},
                {"$expr": {"$anyElementTrue": {"$map": {"input": _PATHS_CHANGED, "as": "path", "in": _IS_METADATA}}}},
            ]
        }
    },
    {"$project": {"documentKey": 1}},
]
"""Pipeline of a change stream that yields the changes after which a session's metadata may be other than before."""


METADATA_CHANGES_SO_FAR = number_at("$metadata_changes")
"""Expression for how often a session's metadata was changed."""
