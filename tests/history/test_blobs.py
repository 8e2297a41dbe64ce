"""Large binaries and texts are kept beside the session document, whole, and only as long as somebody names them."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import gridfs
import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import AutoReconnect, OperationFailure
from support.blobs import left as files_and_chunks
from support.blobs import stored, taken_out
from support.commands import CommandRecorder
from support.equality import assert_same
from support.failpoints import fail_command
from support.sweeping import age_marks, sweep_blobs, swept_blobs
from support.wire_proxy import Cut, WireProxy

from mongodb_session_manager import BlobMissingError, MongoDBSessionError
from mongodb_session_manager._model.encoding import PendingBlobs, blob_files, decode, to_bson
from mongodb_session_manager._model.limits import BLOB_CHUNK_BYTES
from mongodb_session_manager._model.related_shapes import BlobOwner
from mongodb_session_manager._store.blobs import BlobStore
from mongodb_session_manager.local import LocalMongoDB

MEGABYTE = 1024 * 1024
LIFE = ObjectId()
OWNER: BlobOwner = {"session": "s1", "incarnation": LIFE, "agent": "assistant", "message": 3}
APP_NAME = "blobs"


def owner(session: str = "s1", incarnation: ObjectId = LIFE, agent: str = "assistant") -> BlobOwner:
    return {"session": session, "incarnation": incarnation, "agent": agent, "message": 0}


@pytest.fixture
def store(database: Database[Any]) -> BlobStore:
    return BlobStore(database, "sessions")


@pytest.fixture
def files(database: Database[Any]) -> Any:
    return database["sessions_blobs.files"]


@pytest.fixture
def chunks(database: Database[Any]) -> Any:
    return database["sessions_blobs.chunks"]


@pytest.fixture
def recorder() -> CommandRecorder:
    return CommandRecorder()


@pytest.fixture
def watched(server: LocalMongoDB, database_name: str, recorder: CommandRecorder) -> Iterator[BlobStore]:
    """A store on a client of its own, whose commands are recorded and can be made to fail."""
    client: MongoClient[Any]
    with MongoClient(server.uri, appname=APP_NAME, event_listeners=[recorder]) as client:
        yield BlobStore(client[database_name], "sessions")


def upload(store: BlobStore, *data: bytes | str, of: BlobOwner = OWNER, threshold: int = 0) -> Any:
    """Store a value that holds `data`; return it as its session document has it."""
    encoded, pending = taken_out(list(data), threshold, threshold)
    store.upload(pending, of)
    return stored(encoded)


def fetched(store: BlobStore, value: Any) -> Any:
    return decode(value, store.fetch(blob_files(value)))


def age(files: Any, file_ids: Collection[ObjectId], **age: float) -> None:
    moment = datetime.now(timezone.utc) - timedelta(**age)
    files.update_many({"_id": {"$in": list(file_ids)}}, {"$set": {"uploadDate": moment}})


@pytest.fixture
def left(database: Database[Any]) -> Callable[[], set[ObjectId]]:
    """The files that are there; each has its chunks, and there are no others."""

    def look() -> set[ObjectId]:
        files, chunks = files_and_chunks(database)
        assert files == chunks
        return files

    return look


# --- uploading and reading ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_block_of_20_mb_comes_back_and_every_gridfs_tool_can_read_it(store: BlobStore, database: Any) -> None:
    data = random.Random(1).randbytes(20 * MEGABYTE)
    value = upload(store, data, threshold=128 * 1024)
    assert len(to_bson({"value": value})) < 200
    assert fetched(store, value) == [data]
    ((file_id, length),) = blob_files(value).items()
    assert length == len(data)
    with gridfs.GridFSBucket(database, "sessions_blobs").open_download_stream(file_id) as stream:
        assert stream.read() == data
        assert stream.metadata == OWNER


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"", "", b"\0", "\ud800" * 40, "é\udfff𝄞" * 100_000])
def test_binaries_and_texts_of_every_kind_come_back(store: BlobStore, data: bytes | str) -> None:
    value = upload(store, data)
    (length,) = blob_files(value).values()
    assert length == len(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    assert_same(fetched(store, value), [data])


@pytest.mark.slow
@pytest.mark.new_database
def test_a_file_says_whose_it_is_before_it_has_a_chunk(watched: BlobStore, recorder: CommandRecorder) -> None:
    with recorder.recording() as commands:
        upload(watched, b"x" * 9 * MEGABYTE, b"y")
    assert commands.names == ["createIndexes"] * 2 + ["update", "insert", "insert", "update", "insert"]
    # The time must be the server's: by a slow client's time a sweep would take the file at once.
    assert commands.named("update")[0].command["updates"][0]["u"]["$currentDate"] == {"uploadDate": True}


def test_indexes_are_made_once_per_process(
    watched: BlobStore, recorder: CommandRecorder, database: Any, files: Any, chunks: Any
) -> None:
    upload(watched, b"first")
    with recorder.recording() as commands:
        upload(watched, b"second")
        upload(BlobStore(database, "sessions"), b"third")
    assert commands.names == ["update", "insert"]
    assert [("metadata.session", 1), ("metadata.incarnation", 1)] in [
        i["key"] for i in files.index_information().values()
    ]
    assert any(i["key"] == [("files_id", 1), ("n", 1)] and i["unique"] for i in chunks.index_information().values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "size", "commands"),
    [(12, MEGABYTE, ["find"]), (200, 3, ["find"]), (1, 40 * MEGABYTE, ["find", "getMore", "getMore"])],
)
def test_all_blobs_are_read_with_one_command_and_beyond_16_mb_with_more_of_the_same_answer(
    watched: BlobStore, recorder: CommandRecorder, count: int, size: int, commands: list[str]
) -> None:
    data = [bytes([n]) * size for n in range(count)]
    value = upload(watched, *data)
    with recorder.recording() as sent:
        assert fetched(watched, value) == data
    assert sent.names == commands


def test_what_is_stored_already_is_not_sent_again(watched: BlobStore, recorder: CommandRecorder) -> None:
    encoded, pending = taken_out([b"x" * 100], 10, 10)
    watched.upload(pending, OWNER)
    before = stored(encoded)
    with recorder.recording() as commands:
        watched.upload(pending, OWNER)
        watched.upload(PendingBlobs(10), OWNER)
        assert watched.fetch({}) == {}
    assert commands == []
    assert stored(encoded) == before


def test_what_a_sweep_might_have_taken_is_sent_again_and_what_may_be_named_stays(store: BlobStore) -> None:
    encoded, pending = taken_out([b"x" * 100], 10, 10)
    store.upload(pending, OWNER)
    before = stored(encoded)
    assert pending.blobs[0].uploaded_at is not None
    pending.blobs[0].uploaded_at -= 3601
    store.upload(pending, OWNER)
    after = stored(encoded)
    assert blob_files(before).keys().isdisjoint(blob_files(after))
    # The first commit may have arrived, and only its answer was lost.
    assert fetched(store, before) == fetched(store, after) == [b"x" * 100]


# --- faults ---------------------------------------------------------------------------------------


@pytest.fixture
def proxy(proxies: Callable[[], WireProxy]) -> WireProxy:
    return proxies()


@pytest.fixture
def proxied(proxy: WireProxy, database_name: str) -> Iterator[BlobStore]:
    client: MongoClient[Any]
    # Without PyMongo's own retries, so that ours are seen on a replica set as well.
    with MongoClient(proxy.uri, retryWrites=False) as client:
        yield BlobStore(client[database_name], "sessions")


@pytest.mark.slow
@pytest.mark.topology
@pytest.mark.parametrize("moment", ["before it is run", "before its answer arrives"])
@pytest.mark.parametrize(("command", "number", "times"), [("insert", 1, 1), ("insert", 2, 1), ("update", 1, 2)])
def test_a_connection_lost_half_way_costs_nothing_but_time(
    proxied: BlobStore, proxy: WireProxy, moment: Any, command: str, number: int, times: int, left: Any
) -> None:
    data = os.urandom(20 * MEGABYTE)
    proxy.cut(Cut(command, moment, number, times))
    value = upload(proxied, data)
    assert proxy.cut_commands == [command] * times
    assert fetched(proxied, value) == [data]
    assert left() == set(blob_files(value))


@pytest.mark.slow
@pytest.mark.topology
def test_a_connection_that_is_always_lost_is_an_error(proxied: BlobStore, proxy: WireProxy, files: Any) -> None:
    encoded, pending = taken_out(b"x" * 9 * MEGABYTE, 10, 10)
    proxy.cut(Cut("insert", "before it is run", 2, None))
    with pytest.raises(AutoReconnect):
        proxied.upload(pending, OWNER)
    assert len(proxy.cut_commands) == 3
    assert files.distinct("_id") == []
    proxy.heal()
    proxied.upload(pending, OWNER)
    assert fetched(proxied, stored(encoded)) == b"x" * 9 * MEGABYTE


@pytest.mark.slow
@pytest.mark.topology
def test_after_a_failed_upload_the_next_sends_the_rest_under_new_ids(
    client: MongoClient[Any], watched: BlobStore, proxied: BlobStore, proxy: WireProxy, left: Any
) -> None:
    encoded, pending = taken_out([b"first", b"second" * MEGABYTE, "third"], 1, 1)
    proxy.cut(Cut("insert", "before it is run", 2, None))
    with pytest.raises(AutoReconnect):
        proxied.upload(pending, OWNER)
    first, failed, _ = blob_files(encoded)
    assert left() == {first}
    with (
        fail_command(client, "insert", app_name=APP_NAME, error_code=96),
        pytest.raises(OperationFailure),
    ):
        watched.upload(pending, OWNER)
    assert failed not in blob_files(encoded)
    assert first in blob_files(encoded)
    assert [blob.uploaded_at is None for blob in pending.blobs] == [False, True, True]
    assert left() == {first}
    watched.upload(pending, OWNER)
    assert fetched(watched, stored(encoded)) == [b"first", b"second" * MEGABYTE, "third"]
    assert left() == set(blob_files(encoded))


UPLOADS_20_MB = """
import sys
from bson import ObjectId
from pymongo import MongoClient
from mongodb_session_manager._store.blobs import BlobStore
from mongodb_session_manager._model.encoding import PendingBlobs
from mongodb_session_manager._model.encoding import encode

uri, database_name, incarnation = sys.argv[1:]
pending = PendingBlobs(10)
encode(b"x" * 20 * 1024 * 1024, blobs=pending)
owner = {"session": "s1", "incarnation": ObjectId(incarnation), "agent": "assistant", "message": 3}
BlobStore(MongoClient(uri)[database_name], "sessions").upload(pending, owner)
"""


@pytest.fixture
def interrupted(proxy: WireProxy, database_name: str, files: Any, chunks: Any) -> ObjectId:
    """The file of an upload whose process was killed half way."""
    arguments = [sys.executable, "-c", UPLOADS_20_MB, proxy.uri, database_name, str(LIFE)]
    process = subprocess.Popen(arguments)
    proxy.cut(Cut("insert", "before it is run", 2, meanwhile=process.kill))
    assert process.wait(60) == -signal.SIGKILL
    (file_id,) = files.distinct("_id")
    assert 0 < chunks.count_documents({"files_id": file_id}) < 20 * MEGABYTE / BLOB_CHUNK_BYTES
    return file_id


@pytest.mark.slow
def test_half_an_upload_is_never_read_as_a_whole(store: BlobStore, interrupted: ObjectId) -> None:
    with pytest.raises(BlobMissingError):
        store.fetch({interrupted: 20 * MEGABYTE})


@pytest.mark.slow
def test_half_an_upload_goes_with_its_session(store: BlobStore, interrupted: ObjectId, left: Any) -> None:
    store.delete_session("s1", LIFE)
    assert left() == set()


@pytest.mark.slow
def test_half_an_upload_is_swept(store: BlobStore, interrupted: ObjectId, files: Any, chunks: Any, left: Any) -> None:
    assert swept_blobs(store, nothing_named) == 0
    age(files, [interrupted], hours=25)
    assert swept_blobs(store, nothing_named) == 1
    assert left() == set()


@pytest.mark.parametrize(
    ("number", "change"),
    [
        pytest.param(None, None, id="all-chunks"),
        pytest.param(0, None, id="first-chunk"),
        pytest.param(1, None, id="chunk-in-the-middle"),
        pytest.param(2, None, id="last-chunk"),
        pytest.param(1, {"$set": {"data": b"short"}}, id="cut-in-the-middle"),
        pytest.param(2, {"$set": {"data": b""}}, id="cut-at-the-end"),
        pytest.param(2, {"$set": {"data": b"x" * BLOB_CHUNK_BYTES}}, id="longer"),
        pytest.param(2, {"$set": {"n": 3}}, id="as-long-with-a-gap"),
    ],
)
def test_a_blob_that_is_not_whole_is_an_error_that_names_it(
    store: BlobStore, chunks: Any, number: int | None, change: Any
) -> None:
    value = upload(store, b"whole", b"x" * (2 * BLOB_CHUNK_BYTES + 1), b"as well")
    file_id = list(blob_files(value))[1]
    query = {"files_id": file_id} if number is None else {"files_id": file_id, "n": number}
    if change is None:
        assert chunks.delete_many(query).deleted_count
    else:
        assert chunks.update_one(query, change).modified_count == 1
    with pytest.raises(BlobMissingError, match=f"sessions_blobs: file {file_id} has") as error:
        fetched(store, value)
    assert error.value.file_id == file_id
    assert isinstance(error.value, MongoDBSessionError)


# --- deleting -------------------------------------------------------------------------------------


def test_deleted_files_are_gone_with_their_chunks_and_others_stay(store: BlobStore, left: Any) -> None:
    gone = upload(store, b"x" * 3 * BLOB_CHUNK_BYTES, b"y")
    kept = upload(store, b"z")
    store.delete(blob_files(gone))
    assert left() == set(blob_files(kept))
    store.delete(blob_files(gone))
    store.delete([])
    assert fetched(store, kept) == [b"z"]


def test_a_few_files_are_deleted_with_two_commands(watched: BlobStore, recorder: CommandRecorder) -> None:
    value = upload(watched, *(b"%d" % n for n in range(20)))
    with recorder.recording() as commands:
        watched.delete(blob_files(value))
        watched.delete([])
    assert commands.names == ["delete", "delete"]


def test_deleting_a_session_deletes_the_files_of_that_life_only(store: BlobStore, left: Any) -> None:
    another_life = ObjectId()
    upload(store, b"a", b"b", of=owner())
    upload(store, b"c", of=owner(agent="other"))
    later = upload(store, b"d", of=owner(incarnation=another_life))
    neighbour = upload(store, b"e", of=owner("s10"))
    store.delete_session("s1", LIFE)
    assert left() == {*blob_files(later), *blob_files(neighbour)}
    store.delete_session("s1", another_life)
    assert left() == set(blob_files(neighbour))


@pytest.mark.slow
@pytest.mark.topology
@pytest.mark.parametrize("number", [1, 2])
def test_a_deletion_that_was_interrupted_can_be_repeated(
    proxied: BlobStore, proxy: WireProxy, files: Any, number: int, left: Any
) -> None:
    upload(proxied, b"a", b"b")
    proxy.cut(Cut("delete", "before it is run", number, times=None))
    with pytest.raises(AutoReconnect):
        proxied.delete_session("s1", LIFE)
    proxy.heal()
    assert files.distinct("_id")
    proxied.delete_session("s1", LIFE)
    assert left() == set()


# --- sweeping -------------------------------------------------------------------------------------


def nothing_named(*_: Any) -> set[ObjectId]:
    return set()


class Owners:
    """The sessions of a test, as far as a sweep asks for them."""

    def __init__(self, *values: tuple[BlobOwner, Any]) -> None:
        self.asked: list[tuple[str, ObjectId, str]] = []
        self._named: dict[tuple[str, ObjectId, str], set[ObjectId]] = {}
        for of, value in values:
            self._named.setdefault((of["session"], of["incarnation"], of["agent"]), set()).update(blob_files(value))

    def __call__(self, session: str, life: ObjectId, agent: str, file_ids: Collection[ObjectId]) -> set[ObjectId]:
        self.asked.append((session, life, agent))
        return self._named.get((session, life, agent), set())


def test_a_sweep_removes_old_files_that_nobody_names_and_no_others(store: BlobStore, files: Any, left: Any) -> None:
    named, unnamed, young = (
        upload(store, b"a", b"b"),
        upload(store, b"x" * 2 * BLOB_CHUNK_BYTES, b"d"),
        upload(store, b"e"),
    )
    age(files, [*blob_files(named), *blob_files(unnamed)], hours=25)
    age(files, blob_files(young), hours=23)
    assert swept_blobs(store, Owners((OWNER, named))) == 2
    assert left() == {*blob_files(named), *blob_files(young)}
    assert fetched(store, named) == [b"a", b"b"]
    assert swept_blobs(store, Owners((OWNER, named))) == 0
    assert swept_blobs(store, Owners((OWNER, named)), grace_seconds=22 * 3600) == 1
    assert left() == set(blob_files(named))


def test_a_sweep_tells_lives_agents_and_sessions_apart(store: BlobStore, files: Any, left: Any) -> None:
    owners = [owner(), owner(incarnation=ObjectId()), owner(agent="other"), owner("s10")]
    values = [upload(store, b"%d" % n, b"%d!" % n, of=of) for n, of in enumerate(owners)]
    age(files, left(), hours=25)
    sessions = Owners((owners[0], values[0]), (owners[3], values[3]))
    assert swept_blobs(store, sessions) == 4
    assert left() == {*blob_files(values[0]), *blob_files(values[3])}
    assert set(sessions.asked) == {(of["session"], of["incarnation"], of["agent"]) for of in owners}


def test_what_is_named_while_the_sweep_runs_is_kept(store: BlobStore, files: Any) -> None:
    """A file is found first and its owner asked afterwards, so that a commit in between is seen."""
    value = upload(store, b"a")
    age(files, blob_files(value), hours=25)
    assert swept_blobs(store, lambda *owner_and_ids: set(owner_and_ids[3])) == 0
    assert fetched(store, value) == [b"a"]


def chunk_of(file_id: ObjectId, n: int = 0) -> dict[str, Any]:
    return {"files_id": file_id, "n": n, "data": b"orphan"}


def test_a_sweep_removes_old_chunks_without_a_file(store: BlobStore, files: Any, chunks: Any) -> None:
    value = upload(store, b"a")
    now = datetime.now(timezone.utc)
    old, young = (ObjectId.from_datetime(now - timedelta(hours=hours)) for hours in (25, 23))
    chunks.insert_many([chunk_of(old), chunk_of(old, 7), chunk_of(young)])
    # A file that is as old as the orphan, and named.
    live = ObjectId.from_datetime(now - timedelta(hours=25, seconds=1))
    uploaded = now - timedelta(hours=25)
    files.insert_one({"_id": live, "length": 6, "uploadDate": uploaded, "metadata": OWNER})
    chunks.insert_one(chunk_of(live))
    assert swept_blobs(store, lambda *_: {live}) == 1
    assert set(chunks.distinct("files_id")) == {young, live, *blob_files(value)}
    assert set(files.distinct("_id")) == {live, *blob_files(value)}


@pytest.mark.slow
def test_a_sweep_of_many_files_asks_each_owner_for_a_thousand_at_a_time(
    store: BlobStore, files: Any, chunks: Any, left: Any
) -> None:
    kept = upload(store, b"a")
    old = datetime.now(timezone.utc) - timedelta(days=2)
    age(files, blob_files(kept), days=2)
    ids = [ObjectId() for _ in range(2500)]
    files.insert_many({"_id": file_id, "length": 6, "uploadDate": old, "metadata": OWNER} for file_id in ids)
    chunks.insert_many(chunk_of(file_id) for file_id in ids)
    sessions = Owners((OWNER, kept))
    assert sweep_blobs(store, sessions) == 0
    age_marks(store)
    sessions.asked.clear()
    assert sweep_blobs(store, sessions) == 2500
    assert len(sessions.asked) == 3
    assert left() == set(blob_files(kept))
