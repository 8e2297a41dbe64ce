"""What `make soak` checks at the end: nothing is found where nothing went wrong, and all that is damaged is found."""

import copy
import random
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.database import Database

from mongodb_session_manager.local import LocalMongoDB
from soak import plan
from soak.ending import restored, tidy_up
from soak.invariants import findings
from soak.journal import Told, read_journals
from soak.stored import Stored, blobs_in
from soak.world import COLLECTION
from soak.writers import Writer

pytestmark = pytest.mark.slow

_SESSIONS = ("plain-indexed-0", "plain-bare-0", "kept-indexed-0", "leased-indexed-0", "mortal-indexed-0")
_REQUESTS = 90


class Soaked:
    """A database in which two writers have written in turn, and what they were told."""

    def __init__(self, client: MongoClient[Any], name: str, folder: Path, uri: str) -> None:
        self.client = client
        self.database = client[name]
        rng, began = random.Random(7), time.monotonic()
        specification = {"uri": uri, "database": name, "folder": str(folder), "seed": 7, "began": began, "until": began}
        writers = [Writer({**specification, "writer": number, "generation": 1}) for number in (0, 1)]
        for _ in range(_REQUESTS):
            rng.choice(writers).request(plan.by_id(rng.choice(_SESSIONS)))
        for writer in writers:
            writer.close()
        self.told: Told = read_journals(folder)
        self.tidied = tidy_up(client, name)

    def copied_to(self, other: Database[Any]) -> None:
        """Put all of it into another database."""
        raw = self.database.with_options(
            codec_options=self.database.codec_options.with_options(document_class=RawBSONDocument)
        )
        for name in raw.list_collection_names():
            if documents := list(raw[name].find({})):
                other[name].insert_many(documents)


@pytest.fixture(scope="module")
def soaked(standalone: LocalMongoDB, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soaked]:
    client: MongoClient[Any]
    with MongoClient(standalone.uri) as client:
        yield Soaked(client, "soaked", tmp_path_factory.mktemp("journals"), f"{standalone.uri}?journal=true")
        client.drop_database("soaked")


@pytest.fixture
def damaged(soaked: Soaked) -> Iterator[Database[Any]]:
    """A copy, to be damaged."""
    soaked.client.drop_database("damaged")
    database = soaked.client["damaged"]
    soaked.copied_to(database)
    yield database
    soaked.client.drop_database("damaged")


def test_nothing_is_found_where_nothing_went_wrong(soaked: Soaked) -> None:
    assert soaked.told.findings == {}
    assert soaked.tidied == []
    assert findings(Stored(soaked.database, COLLECTION), soaked.told) == []
    # It was no empty run.
    assert sum(said.acknowledged for said in soaked.told.messages.values()) > 100
    assert any(said.redacted for said in soaked.told.messages.values())
    assert soaked.told.alone
    assert soaked.told.feedbacks


def one_with(database: Database[Any], **wanted: Any) -> tuple[dict[str, Any], str]:
    """A session that lasts and the key of an agent with embedded messages, and archived ones if that is wanted."""
    for session in database[COLLECTION].find(wanted.get("query", {"_id": {"$regex": "^(plain|kept)"}})):
        for key, agent in session["agents"].items():
            if len(agent["messages"]) > 2 and agent["archived_count"] >= wanted.get("archived", 0):
                return session, key
    raise AssertionError("the run has no such agent")


def twice(database: Database[Any], told: Told) -> None:
    session, key = one_with(database)
    agent = session["agents"][key]
    again = {**agent["messages"][-1], "message_id": agent["message_count"]}
    change = {"$push": {f"agents.{key}.messages": again}, "$inc": {f"agents.{key}.message_count": 1}}
    database[COLLECTION].update_one({"_id": session["_id"]}, change)


def lost(database: Database[Any], told: Told) -> None:
    session, key = one_with(database)
    change = {"$pop": {f"agents.{key}.messages": 1}, "$inc": {f"agents.{key}.message_count": -1}}
    database[COLLECTION].update_one({"_id": session["_id"]}, change)


def swapped(database: Database[Any], told: Told) -> None:
    for session in database[COLLECTION].find({}):
        for key, agent in session["agents"].items():
            if key.startswith("writer") and len(messages := agent["messages"]) > 1:
                messages[0]["content"], messages[1]["content"] = messages[1]["content"], messages[0]["content"]
                database[COLLECTION].replace_one({"_id": session["_id"]}, session)
                return


def torn_apart(database: Database[Any], told: Told) -> None:
    session_id, life, agent, names = told.alone[0]
    told.alone.append((session_id, life, agent, names[::-1]))


def deleted(database: Database[Any], told: Told) -> None:
    told.deleted.append((one_with(database)[0]["_id"], time.monotonic()))


def gap(database: Database[Any], told: Told) -> None:
    session, key = one_with(database)
    field = f"agents.{key}.messages.1.message_id"
    database[COLLECTION].update_one({"_id": session["_id"]}, {"$inc": {field: 1}})


def segment_gone(database: Database[Any], told: Told) -> None:
    session, key = one_with(database, archived=1)
    database[f"{COLLECTION}_history"].delete_one({"_id.session": session["_id"], "_id.agent": key})


def total_wrong(database: Database[Any], told: Told) -> None:
    session, key = one_with(database)
    database[COLLECTION].update_one({"_id": session["_id"]}, {"$inc": {f"agents.{key}.usage.messages": 1}})


def tokens_wrong(database: Database[Any], told: Told) -> None:
    session, key = one_with(database)
    field = f"agents.{key}.usage.models.offline-scripted-model.totalTokens"
    database[COLLECTION].update_one({"_id": session["_id"]}, {"$inc": {field: 1}})


def named_blob(database: Database[Any]) -> ObjectId:
    """A blob that a message names."""
    owners = [*database[COLLECTION].find({}), *database[f"{COLLECTION}_history"].find({})]
    return next(file_id for owner in owners for file_id, _ in blobs_in(owner))


def blob_missing(database: Database[Any], told: Told) -> None:
    database[f"{COLLECTION}_blobs.files"].delete_one({"_id": named_blob(database)})


def blob_other(database: Database[Any], told: Told) -> None:
    chunks = database[f"{COLLECTION}_blobs.chunks"]
    chunk = chunks.find_one({"files_id": named_blob(database), "n": 0})
    assert chunk is not None
    chunks.update_one({"_id": chunk["_id"]}, {"$set": {"data": bytes(len(chunk["data"]))}})


def blob_unnamed(database: Database[Any], told: Told) -> None:
    files = database[f"{COLLECTION}_blobs.files"]
    file = files.find_one({})
    assert file is not None
    files.insert_one({**file, "_id": ObjectId()})


def chunk_unowned(database: Database[Any], told: Told) -> None:
    database[f"{COLLECTION}_blobs.chunks"].insert_one({"files_id": ObjectId(), "n": 0, "data": b"x"})


def part_of_another_life(name: str) -> Callable[[Database[Any], Told], None]:
    def damage(database: Database[Any], told: Told) -> None:
        part = database[f"{COLLECTION}_{name}"].find_one({})
        assert part is not None
        part["_id"]["incarnation"] = ObjectId()
        database[f"{COLLECTION}_{name}"].insert_one(part)

    return damage


def part_expires_sooner(database: Database[Any], told: Told) -> None:
    ends = database[COLLECTION].find_one({"_id": "kept-indexed-0"}, {"expires_at": 1})
    assert ends is not None
    change = {"$set": {"expires_at": ends["expires_at"] - timedelta(hours=1)}}
    database[f"{COLLECTION}_search"].update_one({"_id.session": "kept-indexed-0"}, change)


def found_as_other(database: Database[Any], told: Told) -> None:
    database[f"{COLLECTION}_search"].update_one({"text": {"$ne": ""}}, {"$set": {"text": "something else"}})


def not_found(database: Database[Any], told: Told) -> None:
    database[f"{COLLECTION}_search"].delete_one({"text": {"$ne": ""}})


def redacted_back(database: Database[Any], told: Told) -> None:
    name = next(name for name, said in told.messages.items() if said.redacted)
    database[f"{COLLECTION}_search"].update_one({}, {"$set": {"forgotten": f"once it said {name} here"}})


def feedback_twice(database: Database[Any], told: Told) -> None:
    session = database[COLLECTION].find_one({"feedbacks.0": {"$exists": True}})
    assert session is not None
    database[COLLECTION].update_one({"_id": session["_id"]}, {"$push": {"feedbacks": session["feedbacks"][0]}})


def feedback_lost(database: Database[Any], told: Told) -> None:
    query = {"feedbacks.0": {"$exists": True}, "_id": {"$regex": "^(plain|kept)"}}
    assert database[COLLECTION].update_one(query, {"$pop": {"feedbacks": 1}}).modified_count


def metadata_old(database: Database[Any], told: Told) -> None:
    key = next(key for (what, session, _, key), _ in told.values.items() if what == "metadata" and "plain" in session)
    assert (
        database[COLLECTION].update_many({"_id": {"$regex": "^plain"}}, {"$set": {f"metadata.{key}": 1}}).matched_count
    )


def state_old(database: Database[Any], told: Told) -> None:
    session_id, agent = next(key[1:3] for key in told.values if key[0] == "state" and "plain" in key[1])
    field = f"agents.{agent}.agent_data.state.count"
    assert database[COLLECTION].update_one({"_id": session_id}, {"$set": {field: 1}}).matched_count


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (twice, "stored once"),
        (lost, "stored once"),
        (swapped, "order"),
        (torn_apart, "alone"),
        (deleted, "lives"),
        (gap, "numbers"),
        (segment_gone, "segments"),
        (total_wrong, "totals"),
        (tokens_wrong, "totals"),
        (blob_missing, "blobs"),
        (blob_other, "blobs"),
        (blob_unnamed, "orphans"),
        (chunk_unowned, "orphans"),
        (part_of_another_life("history"), "orphans"),
        (part_of_another_life("search"), "orphans"),
        (part_expires_sooner, "expiry"),
        (found_as_other, "search"),
        (not_found, "search"),
        (redacted_back, "redacted"),
        (feedback_twice, "feedbacks"),
        (feedback_lost, "feedbacks"),
        (metadata_old, "values"),
        (state_old, "values"),
    ],
)
def test_what_is_damaged_is_found(
    soaked: Soaked, damaged: Database[Any], damage: Callable[[Database[Any], Told], None], check: str
) -> None:
    told = copy.deepcopy(soaked.told)
    damage(damaged, told)
    found = findings(Stored(damaged, COLLECTION), told)
    assert any(what.startswith(f"{check}: ") for what in found), found


def test_what_cannot_be_restored_is_found(soaked: Soaked, damaged: Database[Any]) -> None:
    damaged[f"{COLLECTION}_blobs.chunks"].delete_many({})
    assert restored(soaked.client, "damaged")
