"""What tests of blobs in sessions share: images, an agent that is shown some, and what must be true of the files."""

import itertools
import random
from typing import Any

import bson
from bson import ObjectId
from offline_model import OfflineScriptedModel, ScriptedReply
from pymongo.database import Database
from strands import Agent

from mongodb_session_manager import MongoDBSessionManager
from mongodb_session_manager._model.encoding import CODEC_OPTIONS, PendingBlobs, blob_files, encode, to_bson
from mongodb_session_manager._store.blobs import BlobStore

THRESHOLD = 100
"""`blob_threshold_bytes` of tests in which the size of a blob does not matter."""


def data(seed: int, size: int = 200) -> bytes:
    """Bytes of an image: the same for the same seed."""
    return random.Random(seed).randbytes(size)


def image(seed: int, size: int = 200) -> Any:
    return {"image": {"format": "png", "source": {"bytes": data(seed, size)}}}


def shown(text: str, *seeds: int) -> Any:
    """A prompt with images."""
    return [{"text": text}, *map(image, seeds)]


def answer(messages: Any) -> Any:
    """What the model says: the echo of what it heard; a refusal where a guardrail is to speak."""
    heard = messages[-1]["content"][0].get("text", "?")
    return ScriptedReply(text="No.", redact_user="[redacted]") if "secret" in heard else f"Re: {heard}"


def talker(manager: MongoDBSessionManager, agent_id: str = "assistant", **options: Any) -> Agent:
    return Agent(
        model=OfflineScriptedModel(answer),
        agent_id=agent_id,
        session_manager=manager,
        callback_handler=None,
        **options,
    )


def said(messages: Any) -> list[str]:
    """What each message says: the text of its first block, with a * for each image that follows."""
    return [message["content"][0].get("text", "?") + "*" * (len(message["content"]) - 1) for message in messages]


def named_files(database: Database[Any], collection: str = "sessions") -> dict[ObjectId, int]:
    """The files that anything stored names, with their lengths."""
    sessions, history = (
        database.get_collection(name, codec_options=CODEC_OPTIONS).find()
        for name in (collection, f"{collection}_history")
    )
    named: dict[ObjectId, int] = {}
    lives = set()
    for session in sessions:
        named.update(blob_files(session))
        lives.add((session["_id"], session["incarnation"]))
    for segment in history:
        # Those of lives that are over count no more.
        if (segment["_id"]["session"], segment["_id"]["incarnation"]) in lives:
            named.update(blob_files(segment))
    return named


def left(database: Database[Any], collection: str = "sessions") -> tuple[set[ObjectId], set[ObjectId]]:
    """The files that are there, and those of which a chunk is there."""
    files = database[f"{collection}_blobs.files"].distinct("_id")
    return set(files), set(database[f"{collection}_blobs.chunks"].distinct("files_id"))


def assert_every_named_file_is_whole(database: Database[Any], collection: str = "sessions") -> set[ObjectId]:
    named = named_files(database, collection)
    BlobStore(database, collection).fetch(named)
    files, chunks = left(database, collection)
    assert files >= named.keys()
    assert chunks >= named.keys()
    return set(named)


def assert_only_named_files_are_left(database: Database[Any], collection: str = "sessions") -> None:
    named = assert_every_named_file_is_whole(database, collection)
    assert left(database, collection) == (named, named)


def nested(value: Any, depth: int) -> Any:
    """The value below this many levels of lists and dictionaries."""
    for level in itertools.islice(itertools.cycle((lambda v: [v], lambda v: {"in": v})), depth):
        value = level(value)
    return value


def stored(value: Any) -> Any:
    """The encoded value after a way through BSON."""
    return bson.decode(to_bson({"value": value}), CODEC_OPTIONS)["value"]


def taken_out(value: Any, threshold: int, text_threshold: int) -> tuple[Any, PendingBlobs]:
    """The encoded value, and what was taken out of it."""
    pending = PendingBlobs(threshold, text_threshold)
    return encode(value, blobs=pending), pending
