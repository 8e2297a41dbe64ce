"""Names: which ids are accepted, and how a name becomes a key of a document.

A session id is only ever a *value*. Ids of agents and names of models and tools become *keys*, and MongoDB reads a dot
in a path and a ``$`` at its start as syntax. So those are percent-encoded, and only where needed: ``a.b`` is stored
as ``a%2Eb``; a plain name stays plain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from ..errors import InvalidIdentifierError, UnstorableValueError, shown
from . import limits

# Unicode's category Cc. A line break in an id would forge a line of a log.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_SURROGATE = re.compile("[\ud800-\udfff]")


def exact_text(text: str) -> str:
    """Return the content of a text as a plain ``str``.

    ``str()`` does not: that of a ``(str, Enum)`` is the name of the member, and a subclass may answer what it likes.
    """
    return text if type(text) is str else str.__str__(text)


def _as_text(value: object, kind: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{kind} must be a string, not {type(value).__name__}")
    return exact_text(value)


def check_id(value: object, kind: str) -> str:
    """Return ``value`` as plain text if it can name a session, an agent, a graph or a swarm.

    Args:
        value: The id.
        kind: What it names, for the error: ``"session_id"``, ``"agent_id"``.

    Raises:
        TypeError: It is not a string. (A dictionary here would be a filter that opens somebody else's session.)
        InvalidIdentifierError: It is empty, has more than ``MAX_ID_BYTES``, or holds a slash (Strands refuses those), a
            NUL or another control character, or a lone surrogate (MongoDB cannot store those).
    """
    text = _as_text(value, kind)
    if not text:
        raise InvalidIdentifierError(f"{kind} is empty")
    # The number of characters first: megabytes are not gone through.
    if len(text) > limits.MAX_ID_BYTES or len(text.encode("utf-8", "surrogatepass")) > limits.MAX_ID_BYTES:
        raise InvalidIdentifierError(f"{kind}={shown(text)} has more than {limits.MAX_ID_BYTES} bytes")
    if "/" in text:
        raise InvalidIdentifierError(f"{kind}={shown(text)} holds a slash")
    if (control := _CONTROL.search(text)) is not None:
        what = "NUL" if control[0] == "\0" else "control"
        raise InvalidIdentifierError(f"{kind}={shown(text)} holds a {what} character")
    if _SURROGATE.search(text):
        raise InvalidIdentifierError(f"{kind}={shown(text)} holds a lone surrogate")
    return text


def check_name(value: object, kind: str) -> str:
    """Return a name that is stored with a session, ``application_name`` or ``session_type``, as plain text.

    Args:
        value: The name. Of a member of an ``Enum``, as Strands' ``SessionType``, it is the value.
        kind: What it is, for the error.

    Raises:
        TypeError: It is no text.
        UnstorableValueError: It holds a lone surrogate (MongoDB takes none).
    """
    text = _as_text(value.value if isinstance(value, Enum) else value, kind)
    if _SURROGATE.search(text):
        raise UnstorableValueError(f"{kind} holds a lone surrogate")
    return text


def check_tracking_id(message: Mapping[str, Any]) -> str | None:
    """Return the ``tracking_id`` of a message as plain text; None where it has none.

    An empty one is none: Strands takes it for missing, too, and gives the message another.

    Raises:
        TypeError: It is no text. (In a filter a dictionary would name other messages.)
    """
    value = message.get("tracking_id")
    return None if value is None else _as_text(value, "tracking_id") or None


def check_text(value: object, kind: str) -> str:
    """Return ``value`` if it is a text that can be looked for.

    Raises:
        TypeError: It is not a string.
        ValueError: It is empty, or holds a lone surrogate (MongoDB takes none).
    """
    text = _as_text(value, kind)
    if not text.strip():
        raise ValueError(f"{kind} is empty")
    if _SURROGATE.search(text):
        raise ValueError(f"{kind} holds a lone surrogate")
    return text


def check_int(value: object, kind: str, least: int) -> int:
    """Return ``value`` if it is an ``int`` of at least so much.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{kind} must be an int of at least {least}, not {shown(value)}")
    return value


def check_message_id(value: object) -> int:
    """Return ``value`` if it can be a ``message_id``: a zero-based index.

    Raises:
        InvalidIdentifierError: It is not an ``int``, or negative, or beyond 63 bits.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidIdentifierError(f"message_id must be an int, not {type(value).__name__}")
    if not 0 <= value < limits.INT64_MAX:
        raise InvalidIdentifierError(f"message_id={shown(value)} is out of range", message_id=value)
    return int(value)


@lru_cache(maxsize=limits.CACHED_NAMES)
def encode_key(name: str) -> str:
    """Return the key that stands for ``name`` in a document. Two names never share a key.

    ``%``, ``.`` and a leading ``$`` are percent-encoded; so are NUL and lone surrogates, and the empty name becomes a
    bare ``%`` (a model may call a tool by such a name).
    """
    if not name:
        return "%"
    key = exact_text(name).replace("%", "%25").replace(".", "%2E").replace("\0", "%00")
    if key[0] == "$":
        key = "%24" + key[1:]
    return _SURROGATE.sub(lambda lone: quote(lone[0], errors="surrogatepass"), key)


def decode_key(key: str) -> str:
    """Return the name that ``encode_key`` turned into ``key``."""
    if "%" not in key:
        return key
    if key == "%":
        return ""
    return unquote_to_bytes(key).decode("utf-8", "surrogatepass")


def is_key(key: str) -> bool:
    """Return whether ``encode_key`` makes this key, of whatever name."""
    try:
        return encode_key(decode_key(key)) == key
    except UnicodeDecodeError:
        return False


def check_feedback(feedback: object) -> dict[str, Any]:
    """Return ``feedback`` if every key can be stored. Nothing in it is addressed by a path, so no key holds a dot.

    ``agent_id`` and ``message_id``, where they are in it and not None, say what it is about.

    Raises:
        TypeError: It is not a mapping, or a key or the ``agent_id`` is not a string.
        InvalidIdentifierError: A key is empty, begins with ``$``, or holds a dot, a NUL or a lone surrogate; the
            ``agent_id`` or ``message_id`` is none, or the latter comes without the former; a key is ``commit_id``.
        UnstorableValueError: It is nested too deeply.
    """
    if not isinstance(feedback, Mapping):
        raise TypeError(f"feedback must be a mapping, not {type(feedback).__name__}")
    check_depth(feedback, "feedback")
    _check_nested_keys(feedback, "feedback")
    # By their content: a member of an enum has another hash than its value.
    checked = {exact_text(key): value for key, value in feedback.items()}
    if "commit_id" in checked:
        raise InvalidIdentifierError("feedback key 'commit_id' is the library's own: give the field another name")
    if checked.get("agent_id") is not None:
        checked["agent_id"] = check_id(checked["agent_id"], "agent_id")
    if checked.get("message_id") is not None:
        check_message_id(checked["message_id"])
        if checked.get("agent_id") is None:
            raise InvalidIdentifierError("a feedback with a message_id needs the agent_id whose message it is")
    return checked


def check_metadata(metadata: object) -> dict[str, Any]:
    """Return ``metadata`` if every key can be stored; a dot in a key addresses a nested field.

    Raises:
        TypeError: It is not a mapping, or a key is not a string.
        InvalidIdentifierError: A key or a part of its path is empty, begins with ``$``, or holds a NUL or a lone
            surrogate; or it is too long, or numbers an element of a list above ``MAX_METADATA_INDEX``; a key *inside*
            a value holds a dot (it could never be addressed); or one key is a part of another's path (MongoDB would
            refuse the whole update).
        UnstorableValueError: A value is nested too deeply.
    """
    checked = check_compared_metadata(metadata)
    for path, value in checked.items():
        _check_nested_keys(value, f"metadata {path}")
    return checked


def check_compared_metadata(metadata: object) -> dict[str, Any]:
    """Return ``metadata`` if stored metadata can be compared with it: as ``check_metadata``, but any key in a value."""
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a mapping, not {type(metadata).__name__}")
    checked = dict(zip(check_metadata_paths(metadata), metadata.values(), strict=True))
    for path, value in checked.items():
        check_depth(value, f"metadata {path}", path.count(".") + 1)
    return checked


def check_metadata_fields(fields: Iterable[object] | None) -> list[str]:
    """Return the metadata fields to index, each once.

    Raises:
        TypeError: They are one string, or one is no string.
        InvalidIdentifierError: One can be no metadata key.
        ValueError: There are more than MongoDB has room for.
    """
    if isinstance(fields, str):
        raise TypeError("metadata_fields must be a list of strings, not one string")
    # One by one: here it does not matter if one lies below another.
    checked = list(dict.fromkeys(path for field in fields or () for path in check_metadata_paths([field])))
    if len(checked) > limits.MAX_INDEXED_METADATA_FIELDS:
        raise ValueError(
            f"metadata_fields has {len(checked)} fields: at most {limits.MAX_INDEXED_METADATA_FIELDS} can be indexed"
        )
    return checked


def check_metadata_paths(keys: Iterable[object]) -> list[str]:
    """Return the metadata keys as a list of dotted paths, checked as by ``check_metadata``."""
    if isinstance(keys, str):
        raise TypeError("metadata keys must be a list of strings, not one string")
    paths = [_check_path(_check_metadata_key(key)) for key in keys]
    taken = {tuple(path.split(".")) for path in paths}
    for parts in taken:
        for length in range(1, len(parts)):
            if parts[:length] in taken:
                raise InvalidIdentifierError(
                    f"metadata keys {shown('.'.join(parts[:length]))} and {shown('.'.join(parts))} overlap"
                )
    return paths


def _check_metadata_key(key: object, what: str = "metadata key") -> str:
    key = _as_text(key, what)
    for part in key.split("."):
        if not part:
            raise InvalidIdentifierError(f"{what} {shown(key)} is empty or has an empty part")
        if part[0] == "$":
            raise InvalidIdentifierError(f"{what} {shown(key)}: a part begins with '$'")
    if "\0" in key or _SURROGATE.search(key):
        raise InvalidIdentifierError(f"{what} {shown(key)} holds a NUL character or a lone surrogate")
    return key


def _check_path(key: str) -> str:
    parts = key.split(".")
    wrong = None
    if len(key) > limits.MAX_METADATA_KEY_CHARACTERS:
        wrong = f" has more than {limits.MAX_METADATA_KEY_CHARACTERS} characters"
    elif len(parts) > limits.MAX_METADATA_DEPTH:
        wrong = f" has {len(parts)} parts: at most {limits.MAX_METADATA_DEPTH}"
    elif any(part.isascii() and part.isdecimal() and int(part) > limits.MAX_METADATA_INDEX for part in parts[1:]):
        wrong = f": a number in it may be the index of a list, and is above {limits.MAX_METADATA_INDEX}"
    if wrong is not None:
        raise InvalidIdentifierError(f"metadata key {shown(key)}{wrong}")
    return key


def check_depth(value: object, what: str, depth: int = 0) -> None:
    """Refuse a value that is nested more deeply than MongoDB is sure to take.

    Args:
        value: The value.
        what: Its name for the error.
        depth: How deep it lies already.

    Raises:
        UnstorableValueError: It is.
    """
    if isinstance(value, (Mapping, list, tuple)):
        if depth >= limits.MAX_METADATA_DEPTH:
            raise UnstorableValueError(f"{what} is nested too deeply: {limits.MAX_METADATA_DEPTH} levels can be stored")
        for inner in value.values() if isinstance(value, Mapping) else value:
            check_depth(inner, what, depth + 1)


def _check_nested_keys(value: object, path: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_metadata_key(key, f"key inside {path}:")
            if "." in key:
                raise InvalidIdentifierError(f"key inside {path}: {shown(key)} holds a dot")
            _check_nested_keys(inner, f"{path}.{exact_text(key)}"[: limits.MAX_METADATA_KEY_CHARACTERS])
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_nested_keys(inner, path)
