"""Whatever is stored has the fields and types that the shapes name, and no others."""

import types
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from bson.codec_options import CodecOptions
from offline_model import OfflineScriptedModel, ScriptedReply
from strands import Agent
from strands.agent.conversation_manager import SlidingWindowConversationManager, SummarizingConversationManager
from strands.types.exceptions import ContextWindowOverflowException
from support.blobs import THRESHOLD, shown
from support.histories import SESSIONS, SMALL, by_hand
from support.recorded import SCENES
from support.shapes import SHAPES
from typing_extensions import get_type_hints, is_typeddict

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionRepository
from mongodb_session_manager._model import related_shapes, shapes

MARKERS = {"EncodedMarker", "BlobMarker", "BlobReference"}


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
        if not isinstance(value, list):
            yield f"{path} is a {type(value).__name__}"
            return
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

    def inspect(self, database: Any) -> None:
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
    agent = Agent(model=model, agent_id="assistant", system_prompt="Be short.", session_manager=one)
    agent.conversation_manager = window
    agent.state.set("large", 2**70)
    with one.lease(60):
        for turn in range(5):
            agent(shown(f"turn {turn}", turn))
            one.flush()
        one.append_message({**by_hand("by hand"), "colour": "red"}, agent)
        one.add_feedback({"rating": 5, "comment": "good", "agent_id": "assistant", "message_id": 0})
        one.update_metadata({"customer": "alice"})
        one.flush()
        repository.index_messages()
        inspect()
    repository.collection.delete_one({"_id": "s"})
    repository.sweep(0)


def what_is_live(manager: Callable[..., MongoDBSessionManager], **_: Any) -> None:
    """An agent whose live conversation is in many ways not its log."""
    one = manager()
    slow = ScriptedReply(text="2", chunk_delay=0.02)  # It takes a while until its first byte.
    full = ScriptedReply(error=ContextWindowOverflowException("full"))
    summarizing = SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2)
    model = OfflineScriptedModel(["1", slow, full, "A summary.", "3", "4", "5"])
    agent = Agent(model=model, agent_id="summarizing", session_manager=one, conversation_manager=summarizing)
    for prompt in ("one", "two", "three"):
        agent(prompt)
    last, answer = agent.messages[-2:]
    agent.messages[-2:] = [{**last, "content": [*last["content"], *answer["content"]], "colour": "red"}]  # type: ignore[typeddict-unknown-key]
    agent("four")
    del agent.messages[-2:]
    agent("five")
    window = SlidingWindowConversationManager(window_size=2)
    other = Agent(agent_id="window", model=OfflineScriptedModel(), session_manager=one, conversation_manager=window)
    for text in ("one", "two", "three"):
        other.messages.append({"role": "user", "content": [{"text": text}]})
    one.sync_agent(other)


NEVER_MET = {
    ("SessionDocument", "parts_moving_to"),  # Only for a moment, while related documents get a later expiry.
    ("BlobChunk", "orphaned_at"),  # Only of chunks without a file, a second old.
    ("TokenUsage", "cacheWriteInputTokens"),  # As cacheReadInputTokens, which some flows have.
    ("ModelTotals", "cacheWriteInputTokens"),
}


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["message", "turn"])
def test_whatever_is_stored_has_the_documented_fields_and_types(database: Any, durability: str) -> None:
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
    scenes = {
        **SCENES,
        "what is live": what_is_live,
        "everything": partial(everything, inspect=lambda: inspection.inspect(database)),
    }
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
