"""What another program has put into a document: read as what it can mean, or as nothing, never as an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .keys import decode_key


def name_of(key: str) -> str:
    """Return the name that stands behind a key; somebody else's key is its own name."""
    try:
        return decode_key(key)
    except UnicodeDecodeError:
        return key


def mapping(stored: Any) -> Mapping[str, Any]:
    """Return a stored document; what is none is empty."""
    return stored if isinstance(stored, dict) else {}


def mappings(stored: Any) -> list[dict[str, Any]]:
    """Return the documents of a stored array; what is none is empty."""
    return [one for one in stored if isinstance(one, dict)] if isinstance(stored, list) else []


def number(stored: Any) -> float:
    """Return a stored number; what is none, not even a finite one, is 0."""
    if isinstance(stored, bool) or not isinstance(stored, (int, float)) or not math.isfinite(stored):
        return 0
    return stored


def count(stored: Any) -> int:
    """Return a stored number as a whole one."""
    return int(number(stored))
