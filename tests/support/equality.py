"""Equality that includes types, and says where two values differ."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Absent:
    """Stands for a key or an element that one of the two values does not have."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT = Absent()


class Difference(NamedTuple):
    """One place at which two values differ."""

    path: str
    actual: Any
    expected: Any

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.actual)} instead of {_shown(self.expected)}"


def differences(actual: Any, expected: Any, path: str = "$") -> Iterator[Difference]:
    """Yield every place at which `actual` is not exactly `expected`.

    Types count (1, 1.0 and True are three values; a list is no tuple), so do signs of zeros; NaN equals NaN;
    the order of keys does not count. Where two lists differ in length, the missing elements are named.
    """
    if type(actual) is not type(expected):
        yield Difference(path, actual, expected)
    elif isinstance(expected, Mapping):
        # Keys are told apart by type as well: {1: …} is not {True: …}.
        ours = {(type(key), key): value for key, value in actual.items()}
        theirs = {(type(key), key): value for key, value in expected.items()}
        for key in [*theirs, *(key for key in ours if key not in theirs)]:
            yield from differences(ours.get(key, ABSENT), theirs.get(key, ABSENT), f"{path}[{key[1]!r}]")
    elif isinstance(expected, Sequence) and not isinstance(expected, str | bytes | bytearray):
        for index in range(max(len(actual), len(expected))):
            yield from differences(_at(actual, index), _at(expected, index), f"{path}[{index}]")
    elif isinstance(expected, float):
        same = math.copysign(1, actual) == math.copysign(1, expected) if actual == expected else False
        if not (same or (math.isnan(actual) and math.isnan(expected))):
            yield Difference(path, actual, expected)
    elif actual != expected:
        yield Difference(path, actual, expected)


def assert_same(actual: Any, expected: Any) -> None:
    """Fail, naming every difference, unless `actual` is exactly `expected`, types included."""
    found = list(differences(actual, expected))
    assert not found, "\n".join(["the values differ:", *(f"  {difference}" for difference in found[:20])])


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else ABSENT


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 160 else text[:157] + '…'}"
