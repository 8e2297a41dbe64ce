"""Every field of a stored document has a type that explains it; the documentation shows these fields and no others."""

from __future__ import annotations

import re
import types
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, get_args, get_origin

import pytest
from bson.codec_options import CodecOptions
from offline_model import OfflineScriptedModel, ScriptedReply
from strands import Agent
from strands.agent.conversation_manager import SlidingWindowConversationManager
from support.blobs import THRESHOLD, shown
from support.histories import SESSIONS, SMALL, by_hand
from support.recorded import SCENES
from typing_extensions import get_original_bases, get_type_hints, is_typeddict

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionRepository
from mongodb_session_manager._model import related_shapes, shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pymongo.database import Database

DOCS = Path(__file__).parents[1] / "docs"

SHAPES: list[Any] = [
    shape
    for module in (shapes, related_shapes)
    for shape in vars(module).values()
    if is_typeddict(shape) and shape.__module__ == module.__name__
]
MARKERS = {"EncodedMarker", "BlobMarker", "BlobReference"}

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


# --- the documentation ----------------------------------------------------------------------------------------------


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
    return get_args(kind)[0] if get_origin(kind) is list else kind


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


# --- what is stored -------------------------------------------------------------------------------------------------


def findings(value: Any, kind: Any, path: str) -> Iterator[str]:
    """Where a stored value is not of a type."""
    if kind is Any:
        return
    origin = get_origin(kind)
    if is_typeddict(kind):
        if not isinstance(value, dict):
            yield f"{path} is a {type(value).__name__}"
            return
        hints = get_type_hints(kind)
        yield from (f"{path}.{name} is missing" for name in kind.__required_keys__ - value.keys())
        for name, inner in value.items():
            if name in hints:
                yield from findings(inner, hints[name], f"{path}.{name}")
            elif kind is not shapes.Feedback:  # It may have whatever else the application likes.
                yield f"{path}.{name} is in no type"
    elif origin is list:
        assert isinstance(value, list), path
        for index, one in enumerate(value):
            yield from findings(one, get_args(kind)[0], f"{path}[{index}]")
    elif origin is dict:
        for name, one in value.items():
            yield from findings(one, get_args(kind)[1], f"{path}.{name}")
    elif origin is Literal:
        if value not in get_args(kind):
            yield f"{path} is {value!r}"
    elif origin in (Union, types.UnionType):
        if all(list(findings(value, one, path)) for one in get_args(kind)):
            yield f"{path} is none of {kind}"
    else:
        wanted = {float: (int, float), int: int, datetime: datetime}.get(kind, kind)
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            yield f"{path} is a {type(value).__name__}"


def markers(value: Any) -> Iterator[dict[str, Any]]:
    """The markers in a stored value."""
    if isinstance(value, dict):
        if "__encoded__" in value:
            yield value
        for inner in value.values():
            yield from markers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from markers(inner)


STORED: dict[str, Any] = {
    SESSIONS: shapes.SessionDocument,
    f"{SESSIONS}_history": related_shapes.Segment,
    f"{SESSIONS}_search": related_shapes.SearchDocument,
    f"{SESSIONS}_blobs.files": related_shapes.BlobFile,
    f"{SESSIONS}_blobs.chunks": related_shapes.BlobChunk,
}
AWARE: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True)


class Inspection:
    """Looks at all that is stored, and notes which fields it has met."""

    def __init__(self) -> None:
        self.wrong: set[str] = set()
        self.met: set[tuple[str, str]] = set()

    def inspect(self, database: Database[Any]) -> None:
        for name, shape in STORED.items():
            for document in database.get_collection(name, AWARE).find({"_id": {"$ne": "old"}}):
                self.wrong |= set(findings(document, shape, name))
                self._meet(document, shape)
                for marker in markers(document):
                    is_blob = marker["__encoded__"] in ("blob", "text")
                    kind = related_shapes.BlobMarker if is_blob else related_shapes.EncodedMarker
                    self.wrong |= set(findings(marker, kind, f"{name}: marker"))

    def _meet(self, value: Any, kind: Any) -> None:
        if get_origin(kind) in (Union, types.UnionType):
            for one in get_args(kind):
                if not list(findings(value, one, "")):
                    self._meet(value, one)
        elif get_origin(kind) is list:
            for one in value:
                self._meet(one, get_args(kind)[0])
        elif get_origin(kind) is dict:
            for one in value.values():
                self._meet(one, get_args(kind)[1])
        elif is_typeddict(kind):
            for name, hint in get_type_hints(kind).items():
                if name in value:
                    self.met.add((kind.__name__, name))
                    self._meet(value[name], hint)


TRACE = {
    "inputAssessment": {
        "g": {
            "topicPolicy": {"topics": [{"name": "Advice", "type": "DENY", "action": "BLOCKED", "detected": True}]},
            "contentPolicy": {"filters": [{"type": "HATE", "confidence": "HIGH", "action": "BLOCKED"}]},
            "contextualGroundingPolicy": {
                "filters": [{"type": "GROUNDING", "score": 0.25, "threshold": 0.5, "action": "BLOCKED"}]
            },
        }
    }
}


def everything(
    manager: Callable[..., MongoDBSessionManager], repository: MongoDBSessionRepository, inspect: Callable[[], None]
) -> None:
    """One session with all that a session can have at once, and what is left of it when its document is gone."""
    one = manager(ttl_hours=1, application_name="shop", blob_threshold_bytes=THRESHOLD, **SMALL)
    refusal = ScriptedReply(text="No.", redact_user="[redacted]", guardrail_trace=TRACE)
    model = OfflineScriptedModel(["Yes.", refusal, "Yes.", "Yes.", "Yes."])
    model.update_config(guardrail_id="g", guardrail_version="3")
    window = SlidingWindowConversationManager(window_size=2)
    agent = Agent(model=model, agent_id="assistant", system_prompt="Be short.", session_manager=one, **QUIET)
    agent.conversation_manager = window
    agent.state.set("large", 2**70)
    with one.lease(60):
        for turn in range(5):
            agent(shown(f"turn {turn}", turn))
            one.flush()
        one.append_message({**by_hand("by hand"), "colour": "red"}, agent)  # type: ignore[typeddict-unknown-key]
        one.add_feedback({"rating": 5, "comment": "good", "agent_id": "assistant", "message_id": 0})
        one.update_metadata({"customer": "alice"})
        one.flush()
        repository.index_messages()
        inspect()
    repository.collection.delete_one({"_id": "s"})
    repository.sweep(0)


QUIET: dict[str, Any] = {"callback_handler": None}

NEVER_MET = {
    ("SessionDocument", "parts_moving_to"),  # Only for a moment, while related documents get a later expiry.
    ("BlobChunk", "orphaned_at"),  # Only of chunks without a file, a second old.
    ("TokenUsage", "cacheWriteInputTokens"),  # As cacheReadInputTokens, which some flows have.
    ("ModelTotals", "cacheWriteInputTokens"),
}


@pytest.mark.one_server
@pytest.mark.parametrize("durability", ["message", "turn"])
def test_whatever_is_stored_has_the_documented_fields_and_types(database: Database[Any], durability: str) -> None:
    inspection = Inspection()

    class Repository(MongoDBSessionRepository):
        def delete_session(self, session_id: str, **kwargs: Any) -> None:
            inspection.inspect(database)
            super().delete_session(session_id, **kwargs)

    where: dict[str, Any] = {
        "client": database.client,
        "database_name": database.name,
        "collection_name": SESSIONS,
    }
    scenes = {**SCENES, "everything": partial(everything, inspect=lambda: inspection.inspect(database))}
    for scene in scenes.values():
        managers: list[MongoDBSessionManager] = []

        def manager(managers: list[MongoDBSessionManager] = managers, **options: Any) -> MongoDBSessionManager:
            managers.append(MongoDBSessionManager("s", durability=durability, **where, **options))
            return managers[-1]

        scene(manager=manager, repository=Repository(**where))
        for one in managers:
            one.close()
        inspection.inspect(database)
        for name in STORED:
            database[name].delete_many({})

    assert inspection.wrong == set()
    fields = {(shape.__name__, name) for shape in SHAPES for name in get_type_hints(shape)}
    of_stored = {field for field in fields if field[0] not in ("RelatedDocument", *MARKERS)}
    assert of_stored - inspection.met == NEVER_MET
