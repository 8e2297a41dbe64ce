"""The tool by which an agent reads and changes the metadata of its session, and which keys it may touch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pymongo.errors import PyMongoError
from strands import tool
from strands.tools.decorator import DecoratedFunctionTool

from .._model.keys import check_metadata, check_metadata_paths
from ..errors import described
from .metadata import SessionMetadata

# Plain types only: not every provider understands `anyOf`. Text where an object or a list should be is taken as well.
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "action": {
            "type": "string",
            "enum": ["get", "set", "update", "delete"],
            "description": "get reads; set and update both set the given fields and leave the others; delete removes.",
        },
        "metadata": {
            "type": "object",
            "description": "For set and update: the fields and their values. A dot in a key addresses a nested field.",
        },
        "keys": {
            "type": "array",
            "items": {"type": "string"},
            "description": "For delete: the keys to remove. For get: the keys to read; without it everything is read.",
        },
    },
    "required": ["action"],
}


def metadata_tool(
    session_metadata: SessionMetadata, readable: Sequence[str] | None, writable: Sequence[str] | None
) -> DecoratedFunctionTool[Any, Any]:
    """Return the tool for one session; see ``MongoDBSessionManager.get_metadata_tool``.

    Strands runs it in a thread, since it is no coroutine, and turns what it raises into the tool's error.
    """
    may_read, may_write = _allowed(readable, "readable"), _allowed(writable, "writable")
    description = (
        "Read and change the metadata of this conversation: facts about it that outlast it, by key. "
        f"{_told('read', may_read)} {_told('change', may_write)}"
    )

    @tool(name="manage_metadata", description=description, inputSchema={"json": _SCHEMA})
    def manage_metadata(
        action: Literal["get", "set", "update", "delete"],
        metadata: dict[str, Any] | str | None = None,
        keys: list[str] | str | None = None,
    ) -> str:
        try:
            if action == "get":
                wanted = _each(_keys(keys))
                _refuse_others(wanted, may_read, "read")
                found = session_metadata.get().get("metadata") or {}
                if wanted:
                    found = {key: value for key in wanted for value in _at(found, key)}
                elif may_read is not None:
                    found = _part(found, may_read)
                return json.dumps(_readable(found), ensure_ascii=False)
            if action == "delete":
                if not (gone := check_metadata_paths(_keys(keys))):
                    raise ValueError("delete needs keys: the keys to remove")
                _refuse_others(gone, may_write, "change")
                return _done("Deleted", gone, session_metadata.delete(gone))
            if not (fields := _fields(metadata)):
                raise ValueError(f"{action} needs metadata: an object with the fields to set")
            _refuse_others(fields, may_write, "change")
            return _done("Stored", list(fields), session_metadata.update(fields))
        except PyMongoError as error:
            # The model, and so the conversation, must not hear what the database quotes: values, keys, hosts. That may
            # be what another agent of the session was told.
            raise RuntimeError(f"the database has failed: {described(error)}") from error

    return manage_metadata


def _allowed(keys: Sequence[str] | None, name: str) -> list[str] | None:
    if keys is None:
        return None
    if isinstance(keys, str) or not isinstance(keys, Sequence):
        raise TypeError(f"{name} must be a list of metadata keys, not {type(keys).__name__}")
    return _each(keys)


def _each(keys: Sequence[Any]) -> list[str]:
    """Return the keys, checked one by one: here it does not matter if one lies below another."""
    return [path for key in keys for path in check_metadata_paths([key])]


def _told(verb: str, allowed: list[str] | None) -> str:
    if allowed is None:
        return f"You may {verb} every key."
    if not allowed:
        return f"You may {verb} no key."
    return f"You may {verb} these keys and what lies below them, no others: {', '.join(allowed)}."


def _refuse_others(keys: Sequence[str] | Mapping[str, Any], allowed: list[str] | None, verb: str) -> None:
    if allowed is not None:
        others = [key for key in keys if not any(key == path or key.startswith(f"{path}.") for path in allowed)]
        if others:
            raise ValueError(f"not allowed: {', '.join(others)}. {_told(verb, allowed)}")


def _done(what: str, wanted: list[str], done: list[str]) -> str:
    """Return what the model is told. Which other keys a hook has made of its own, it is not."""
    if not done:
        raise ValueError("refused by the application: nothing was changed")
    if set(done) != set(wanted):
        return f"{what}, but not as given: the application changed it. Read what is there now."
    return f"{what}: {', '.join(wanted)}"


def _fields(metadata: dict[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(metadata, str):
        metadata = _parsed(metadata, "metadata") if metadata.strip() else {}
        if not isinstance(metadata, dict):
            raise ValueError('metadata must be an object with the fields to set, such as {"topic": "billing"}')
    return check_metadata(metadata or {})


def _keys(keys: Any) -> list[Any]:
    """Return what the model wrote as a list of keys: a list, or text that holds one, one key or several."""
    if isinstance(keys, str):
        text = keys.strip()
        if text == "null":
            return []
        if text.startswith(("[", '"')):
            keys = _parsed(text if text[0] == "[" else f"[{text}]", "keys")
        else:
            keys = [key.strip() for key in text.split(",") if key.strip()]
    return list(keys or [])


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is text but not valid JSON: {error}") from None


def _at(found: Mapping[str, Any], path: str) -> list[Any]:
    """Return the value at a dotted path, in a list: empty where there is none."""
    value: Any = found
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return []
        value = value[part]
    return [value]


def _part(found: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """Return what of a document lies at these paths, nested as it is."""
    part: dict[str, Any] = {}
    # Shorter ones first: one that lies below another is part of it already.
    for path in sorted(paths, key=len):
        for value in _at(found, path):
            inner, *parents, last = part, *path.split(".")
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = value
    return part


def _readable(value: Any) -> Any:
    """Return a value of BSON as one of JSON: times as ISO 8601, what JSON does not know as text."""
    if isinstance(value, Mapping):
        return {key: _readable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_readable(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return f"({len(value)} bytes)"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
