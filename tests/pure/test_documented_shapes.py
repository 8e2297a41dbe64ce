"""Every field of a stored document has a type that explains it; the documentation shows these fields and no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

import pytest
from support.shapes import SHAPES
from typing_extensions import get_original_bases, get_type_hints, is_typeddict

from mongodb_session_manager._model import related_shapes, shapes

DOCS = Path(__file__).parents[2] / "docs"

SHOWN: dict[str, list[type[Any]]] = {
    "data-model.md": [
        shapes.SessionDocument,
        related_shapes.Segment,
        related_shapes.BlobMarker,
        related_shapes.BlobFile,
        related_shapes.BlobChunk,
        shapes.UsageTotals,
    ],
    "search.md": [related_shapes.SearchDocument],
    "guardrails.md": [shapes.GuardrailEvent],
}
"""Which shape each block of a page shows, in the order of the page."""

IN_PROSE = {
    "ListedGuardrailEvent",  # "each with agent_id and message_id besides"
    "EncodedMarker",  # The table of values that BSON cannot hold.
    "RelatedDocument",  # A base: each of the others shows its fields.
}


class Shown(NamedTuple):
    """A field in a block: whether it may be missing, and the fields inside it, if these are shown."""

    optional: bool
    fields: dict[str, Shown] | None


_TOKEN = re.compile(r'"[^"]*"|[{}\[\],:?]|[^\s{}\[\],:?"]+')
_COMMENT_COLUMN = 30


def blocks(page: str) -> Iterator[dict[str, Shown]]:
    """The documents that a page shows: its fenced blocks without a language."""
    text = (DOCS / page).read_text("utf-8")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language:
            continue
        tokens = [token for line in block.splitlines() for token in _TOKEN.findall(code_of(line))]
        if "{" in tokens:
            fields, _ = read_value(tokens, tokens.index("{"))
            assert fields is not None, block
            yield fields


def code_of(line: str) -> str:
    """A line without the explanation on its right."""
    indent = len(line) - len(line.lstrip())
    return "" if indent >= _COMMENT_COLUMN else re.split(r"(?<=\S)\s{2,}", line, maxsplit=1)[0]


def read_value(tokens: list[str], at: int) -> tuple[dict[str, Shown] | None, int]:
    """The fields of the value that begins there, or None where it shows none, and where it ends."""
    if tokens[at] == "[":
        fields: dict[str, Shown] | None = None
        at += 1
        while tokens[at] != "]":
            inner, at = read_value(tokens, at)
            fields = {**(fields or {}), **inner} if inner else fields  # Of several elements, what all have together.
            at += tokens[at] == ","
        return fields, at + 1
    if tokens[at] == "{":
        found: dict[str, Shown] = {}
        at += 1
        while tokens[at] != "}":
            if tokens[at] != "…":
                name = "*" if tokens[at][0] == '"' else tokens[at]  # Of names that are keys, each stands for all.
                optional = tokens[at + 1] == "?"
                at += optional
                inner = None
                if tokens[at + 1] == ":":
                    inner, at = read_value(tokens, at + 2)
                    at -= 1
                found[name] = Shown(optional, inner)
            at += 1
            at += tokens[at] == ","
        return found or None, at + 1
    while tokens[at] not in ",]}":
        at += 1
    return None, at


def fields_of(shape: Any) -> dict[str, Any] | None:
    """The fields of a shape, or of the shapes in a list or a document of them; None for any other type."""
    if is_typeddict(shape):
        return get_type_hints(shape)
    if get_origin(shape) is dict and is_typeddict(get_args(shape)[1]):
        return {"*": get_args(shape)[1]}
    if get_origin(shape) is list:
        return fields_of(get_args(shape)[0])
    return None


def shape_of(kind: Any) -> Any:
    """The shape in a list; of several kinds of elements the one that has fields."""
    if get_origin(kind) is list:
        return shape_of(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return next((shape for shape in get_args(kind) if is_typeddict(shape)), kind)
    return kind


def differences(shape: Any, shown: dict[str, Shown], seen: set[str], optionals: bool, path: str) -> Iterator[str]:
    shape = shape_of(shape)
    fields = fields_of(shape)
    assert fields is not None, f"{path} shows fields, its type has none"
    seen.add(getattr(shape, "__name__", ""))
    yield from (f"{path}.{name} is in no type" for name in shown.keys() - fields.keys())
    yield from (f"{path}.{name} is not in the documentation" for name in fields.keys() - shown.keys())
    for name in fields.keys() & shown.keys():
        may_be_missing = is_typeddict(shape) and name in shape.__optional_keys__
        if optionals and shown[name].optional != may_be_missing:
            yield f"{path}.{name} {'may' if may_be_missing else 'may not'} be missing"
        inner = shown[name].fields
        if inner is not None:
            yield from differences(fields[name], inner, seen, optionals, f"{path}.{name}")


def test_the_documentation_shows_every_stored_field_and_no_other() -> None:
    wrong: list[str] = []
    seen: set[str] = set()
    for page, roots in SHOWN.items():
        shown = list(blocks(page))
        assert len(shown) == len(roots) or page == "guardrails.md"
        for shape, block in zip(roots, shown, strict=False):
            wrong += differences(shape, block, seen, page != "guardrails.md", f"{page}: {shape.__name__}")
    assert "\n".join(wrong) == ""

    assert {shape.__name__ for shape in SHAPES} - seen - IN_PROSE == set()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_field_of_a_shape_has_a_sentence(shape: type[Any]) -> None:
    described = re.findall(r"^ {8}(\w+): ", shape.__doc__ or "", re.MULTILINE)
    inherited = {name for base in get_original_bases(shape) for name in getattr(base, "__annotations__", ())}
    assert described == [name for name in shape.__annotations__ if name not in inherited]
