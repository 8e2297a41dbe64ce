"""The sweep: what is orphaned goes, later; what comes back, is somebody else's, or lives beside a spoilt session stays.

The same spoilt sessions are given to everything else that goes through all of them.
"""

import itertools
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import bson
import pytest
from bson import Decimal128, Int64, MaxKey, ObjectId, Regex
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import WriteError
from strands.agent.conversation_manager import SlidingWindowConversationManager
from support.blobs import THRESHOLD, assert_every_named_file_is_whole, shown, talker
from support.histories import SESSIONS, Interruption, manager_of, repository_of
from support.sweeping import swept

from mongodb_session_manager import MongoDBSessionError
from mongodb_session_manager._model.archive_policy import ArchivePolicy
from mongodb_session_manager._store.search_index import IndexingTask

COLLECTIONS = (SESSIONS, "sessions_history", "sessions_search", "sessions_blobs.files", "sessions_blobs.chunks")
PARTS = COLLECTIONS[1:]
GRACE = timedelta(days=1)

State = dict[str, list[bytes]]


class World:
    """A database with sessions that have parts of every kind."""

    def __init__(self, client: MongoClient[Any], name: str) -> None:
        self.client = client
        self.database: Database[Any] = client[name]
        self.repository = repository_of(client, name)

    def begin(self, session_id: str, turns: int = 6, **options: Any) -> None:
        """A conversation with images; most of it is in the history, and all can be searched."""
        defaults: dict[str, Any] = {
            "blob_threshold_bytes": THRESHOLD,
            "archive_after_messages": 4,
            "archive_block": 2,
            "index_messages": True,
        }
        with manager_of(self.client, self.database.name, session_id, **{**defaults, **options}) as manager:
            agent = talker(manager, conversation_manager=SlidingWindowConversationManager(window_size=2))
            for number in range(turns):
                agent(shown(f"prompt {number}", number))

    def make_older(self) -> None:
        """Let every blob be two days old: their ids, which tell the time, too."""
        days = timedelta(days=2)
        ids = {file["_id"] for file in self.files.find({}, {"_id": 1})}
        older = {i.binary: ObjectId.from_datetime(i.generation_time - days).binary[:4] + i.binary[4:] for i in ids}
        content = self.content()
        for old, new in older.items():
            content = {name: [one.replace(old, new) for one in found] for name, found in content.items()}
        for name in COLLECTIONS:
            self.database[name].delete_many({})
            self.put(name, content)
        self.files.update_many({}, {"$set": {"uploadDate": datetime.now(timezone.utc) - days}})

    @property
    def segments(self) -> Any:
        return self.database["sessions_history"]

    @property
    def files(self) -> Any:
        return self.database["sessions_blobs.files"]

    def session(self) -> Any:
        return self.database[SESSIONS].find_one({"_id": "s"})

    def headers(self, limit: int) -> list[Any]:
        """All sessions that are listed, page by page."""
        found: list[Any] = []
        cursor = None
        while True:
            page = self.repository.list_sessions(limit=limit, cursor=cursor)
            found += page.sessions
            if (cursor := page.cursor) is None:
                return found

    def leave_uncommitted(self) -> int:
        """Leave a segment as of an archiver that has died after it had inserted it; return its `first`."""
        last = self.segments.find_one(sort=[("_id.first", -1)])
        first: int = last["_id"]["first"] + last["count"]
        self.segments.insert_one({**last, "_id": {**last["_id"], "first": first}})
        return first

    def content(self) -> State:
        """Every document, as bytes."""
        codec: Any = bson.DEFAULT_CODEC_OPTIONS.with_options(document_class=RawBSONDocument)
        return {
            name: sorted(one.raw for one in self.database.get_collection(name, codec_options=codec).find())
            for name in COLLECTIONS
        }

    def put(self, name: str, content: State) -> None:
        """Restore one collection."""
        if content[name]:
            self.database[name].insert_many(map(RawBSONDocument, content[name]))

    def sizes(self) -> list[int]:
        """How many parts there are of each kind."""
        return [self.database[name].count_documents({}) for name in PARTS]

    def marked(self) -> list[int]:
        return [self.database[name].count_documents({"orphaned_at": {"$exists": True}}) for name in PARTS]

    def let_the_grace_time_pass(self) -> None:
        for name in PARTS:
            earlier = {"$subtract": ["$orphaned_at", GRACE // timedelta(milliseconds=1)]}
            self.database[name].update_many({"orphaned_at": {"$type": "date"}}, [{"$set": {"orphaned_at": earlier}}])


@pytest.fixture
def world(client: MongoClient[Any], database_name: str) -> World:
    return World(client, database_name)


def lose(world: World, session_id: str = "s") -> Any:
    """Remove a session document alone; return it."""
    return world.database[SESSIONS].find_one_and_delete({"_id": session_id})


# --- what is orphaned -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.topology
def test_what_a_session_has_left_goes_with_the_first_sweep_after_the_grace_time_and_not_before(world: World) -> None:
    world.begin("gone")
    world.begin("alive")
    world.make_older()
    mine = world.content()
    lose(world, "gone")
    segments, searched, files, chunks = (size // 2 for size in world.sizes())
    assert min(segments, searched, files, chunks) > 1

    for _ in range(2):
        assert world.repository.sweep() == 0
        assert world.marked() == [segments, searched, files, 0]
    world.let_the_grace_time_pass()
    assert world.repository.sweep() == segments + searched + files

    assert world.sizes() == [segments, searched, files, chunks]
    assert world.marked() == [0, 0, 0, 0]
    for name, found in world.content().items():
        assert set(found) <= set(mine[name])
    assert len(world.repository.list_messages("alive", "assistant")) == 12
    assert_every_named_file_is_whole(world.database)


@pytest.mark.slow
@pytest.mark.topology
def test_a_session_that_comes_back_loses_nothing_and_has_the_whole_grace_time_when_it_is_lost_again(
    world: World,
) -> None:
    world.begin("s")
    world.make_older()
    before = world.content()
    session = lose(world)
    world.repository.sweep()
    world.let_the_grace_time_pass()

    world.database[SESSIONS].insert_one(session)
    assert world.repository.sweep() == 0
    assert world.content() == before

    lose(world)
    assert world.repository.sweep() == 0
    assert world.sizes() == [len(before[name]) for name in PARTS]


@pytest.mark.slow
def test_chunks_whose_file_comes_back_are_kept_and_have_the_whole_grace_time_when_it_is_lost_again(
    world: World,
) -> None:
    world.begin("s")
    world.make_older()
    before = world.content()
    world.files.delete_many({})
    assert world.repository.sweep() == 0
    assert world.marked() == [0, 0, 0, 6]
    world.let_the_grace_time_pass()

    world.put("sessions_blobs.files", before)
    assert world.repository.sweep() == 0
    assert world.content() == before

    world.files.delete_many({})
    assert world.repository.sweep() == 0
    world.let_the_grace_time_pass()
    assert world.repository.sweep() == 6
    assert world.database["sessions_blobs.chunks"].count_documents({}) == 0


@pytest.mark.slow
def test_a_restore_in_any_order_of_the_collections_with_sweeps_in_between_loses_nothing(world: World) -> None:
    world.begin("s", 4)
    world.make_older()
    before = world.content()
    assert all(before.values())
    for order in itertools.permutations(COLLECTIONS):
        for name in COLLECTIONS:
            world.database[name].delete_many({})
        for name in order:
            world.put(name, before)
            assert world.repository.sweep(3600) == 0, (order, name)
        assert world.content() == before, order


@pytest.mark.slow
def test_a_manager_that_goes_on_in_the_middle_of_a_restore_deletes_no_history(world: World) -> None:
    """Its archiver and its indexer find no session document; that will come."""
    world.begin("s")
    before = world.content()
    session = lose(world)
    store = world.repository._store

    store.archiver.archive("s", session["incarnation"], "assistant", ArchivePolicy(4, 10**6, 2))
    store.indexer.index(IndexingTask("s", session["incarnation"], "assistant"))

    world.database[SESSIONS].insert_one(session)
    assert world.content() == before
    assert_whole(world, "s")


@pytest.mark.slow
def test_a_segment_that_nobody_can_commit_goes_after_the_grace_time_and_stays_if_its_session_goes_back_in_time(
    world: World,
) -> None:
    world.begin("s")
    archived = world.leave_uncommitted()
    earlier = world.session()
    # A message was edited since.
    world.database[SESSIONS].update_one({}, {"$inc": {"agents.assistant.edits": 1}})
    later = world.session()
    segments = world.segments
    count = segments.count_documents({})

    assert world.repository.sweep() == 0
    assert world.marked()[0] == 1
    world.let_the_grace_time_pass()
    world.database[SESSIONS].replace_one({}, earlier)
    assert world.repository.sweep() == 0
    assert world.marked()[0] == 0
    assert segments.count_documents({}) == count

    world.database[SESSIONS].replace_one({}, later)
    assert world.repository.sweep() == 0
    world.let_the_grace_time_pass()
    assert world.repository.sweep() == 1
    assert segments.find_one({"_id.first": archived}) is None
    assert segments.count_documents({}) == count - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "counters",
    [{"edits": "x"}, {"archived_count": float("nan"), "edits": 5}, {"archived_count": None, "edits": 5}],
    ids=str,
)
def test_a_segment_is_not_given_up_because_somebody_has_spoilt_a_counter(world: World, counters: Any) -> None:
    world.begin("s")
    changed = {f"agents.assistant.{name}": value for name, value in counters.items()}
    world.database[SESSIONS].update_one({}, {"$set": changed})
    world.leave_uncommitted()  # An archiver is about to commit it.
    count = world.segments.count_documents({})

    assert swept(world.repository) == 0
    assert world.segments.count_documents({}) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    "incarnation", [5, "65f000000000000000000000", [ObjectId("65f000000000000000000000")]], ids=str
)
def test_the_history_of_a_session_whose_incarnation_was_spoilt_is_kept(world: World, incarnation: Any) -> None:
    world.begin("s")
    world.make_older()
    before = world.content()
    mine = world.session()["incarnation"]
    world.database[SESSIONS].update_one({}, {"$set": {"incarnation": incarnation}})
    for _ in range(2):
        assert world.repository.sweep() == 0
        world.let_the_grace_time_pass()
    world.database[SESSIONS].update_one({}, {"$set": {"incarnation": mine}})
    assert world.content() == before


# --- what is somebody else's ----------------------------------------------------------------------

OLD = datetime(2020, 1, 1, tzinfo=timezone.utc)
LIFE = ObjectId()
WHOSE: list[Any] = [
    5,
    "x",
    {"session": 5, "incarnation": 7},
    {"session": "gone", "incarnation": 5, "agent": "a"},
    {"session": {"x": 1}, "incarnation": LIFE, "agent": "a"},
    {"session": "gone", "incarnation": LIFE, "agent": ["a"]},
    {"session": "gone", "incarnation": str(LIFE), "agent": "a"},
]
FOREIGN: list[tuple[str, Any]] = [
    ("sessions_history", {"SessionId": "lc-1", "History": "{}"}),
    ("sessions_search", {"q": 1, "text": "prompt"}),
    ("sessions_blobs.files", {"filename": "x", "length": 0, "chunkSize": 1, "uploadDate": OLD}),
    *(("sessions_history", {"_id": whose, "messages": []}) for whose in WHOSE),
    *(("sessions_search", {"_id": whose, "text": "prompt"}) for whose in WHOSE),
    *(("sessions_blobs.files", {"metadata": whose, "uploadDate": OLD}) for whose in WHOSE),
    ("sessions_history", {"_id": {"session": "gone", "incarnation": LIFE, "agent": "a", "first": "0"}}),
    ("sessions_history", {"_id": {"session": "gone", "incarnation": LIFE, "agent": 5, "first": 0}}),
    ("sessions_search", {"_id": {"session": "gone", "incarnation": LIFE, "agent": "a", "message": None}}),
    (
        "sessions_blobs.files",
        {"_id": "x", "metadata": {"session": "gone", "incarnation": LIFE, "agent": "a"}, "uploadDate": OLD},
    ),
    ("sessions_blobs.chunks", {"files_id": "x", "n": 0, "data": b"x"}),
    ("sessions_blobs.chunks", {"files_id": 5, "n": 0, "data": b"x"}),
    ("sessions_blobs.chunks", {"files_id": [ObjectId.from_datetime(OLD)], "n": 1, "data": b"x"}),
]


@pytest.mark.slow
def test_what_others_keep_in_these_collections_is_left_as_it_is_and_keeps_nothing_from_being_swept(
    world: World,
) -> None:
    world.begin("gone")
    world.begin("alive")
    world.make_older()
    theirs = ObjectId.from_datetime(OLD)
    foreign = [
        *FOREIGN,
        ("sessions_blobs.files", {"_id": theirs, "length": 1, "uploadDate": OLD, "metadata": {"by": "me"}}),
        ("sessions_blobs.chunks", {"files_id": theirs, "n": 0, "data": b"x"}),
        ("sessions_history", {"_id": "y", "orphaned_at": OLD}),
    ]
    before = world.content()
    lose(world, "gone")
    for name, document in foreign:
        world.database[name].insert_one({"_id": ObjectId(), **document})
    # In order of their bytes, as all are compared.
    others = {name: [one for one in found if one not in before[name]] for name, found in world.content().items()}
    assert sum(map(len, others.values())) == len(foreign)

    assert swept(world.repository) > 0

    for name, found in world.content().items():
        assert [one for one in found if one not in before[name]] == others[name], name
    assert [world.database[name].count_documents({"_id.session": "gone"}) for name in PARTS[:2]] == [5, 4]
    assert_whole(world, "alive")
    assert {hit.session_id for hit in world.repository.search_messages("prompt", limit=1000)} == {"alive"}


# --- several at once, and errors ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.topology
@pytest.mark.parametrize("number", range(1, 19))
def test_a_session_that_comes_back_between_any_two_commands_of_a_sweep_keeps_no_mark(
    server: Any, world: World, number: int
) -> None:
    """A mark that stays would be old when the session is lost again: then its history would go at once."""
    world.begin("s", 3)
    world.make_older()
    before = world.content()
    session = lose(world)

    def come_back() -> None:
        world.database[SESSIONS].insert_one(session)
        world.repository.sweep()

    interruption = Interruption(number=number)
    client: MongoClient[Any]
    with MongoClient(server.uri, event_listeners=[interruption]) as client:
        client.admin.command("ping")
        interruption.at_its_command(come_back)
        World(client, world.database.name).repository.sweep()
        interruption.disarm()
    assert world.database[SESSIONS].count_documents({}) == 1, f"there are only {len(interruption.commands)} commands"
    assert world.content() == before


@pytest.mark.slow
def test_sweeps_at_once_remove_what_is_orphaned_and_nothing_else(server: Any, world: World) -> None:
    for number in range(4):
        world.begin(f"gone {number}", 3)
        world.begin(f"alive {number}", 3)
    world.make_older()
    for number in range(4):
        lose(world, f"gone {number}")
    expected = [size // 2 for size in world.sizes()]

    def sweep(_: int) -> int:
        client: MongoClient[Any]
        with MongoClient(server.uri) as client:
            return swept(World(client, world.database.name).repository)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(sweep, range(4)))

    assert world.sizes() == expected
    assert world.marked() == [0, 0, 0, 0]
    assert_every_named_file_is_whole(world.database)


@pytest.mark.slow
def test_a_sweep_that_cannot_do_one_session_does_all_others_and_names_it(world: World) -> None:
    world.begin("a")
    world.begin("z")
    history = world.segments
    lose(world, "a")
    lose(world, "z")
    # There is no room for a mark.
    full = {"_id": {"session": "full", "incarnation": ObjectId(), "agent": "a", "first": 0}, "text": ""}
    full["text"] = "x" * (16 * 1024 * 1024 - len(bson.encode(full)))
    history.insert_one(full)

    with pytest.raises(MongoDBSessionError, match="the sweep could not do all of session_id='full'; all others") as one:
        world.repository.sweep(0)
    assert isinstance(one.value.__cause__, WriteError)
    assert "xxx" not in str(one.value)
    with pytest.raises(MongoDBSessionError, match="'full'"):
        world.repository.sweep(0)

    assert [one["_id"] for one in history.find({}, {"_id": 1})] == [full["_id"]]
    assert world.database["sessions_search"].count_documents({}) == 0


# --- spoilt sessions ------------------------------------------------------------------------------


def put_bad(world: World, change: Callable[[Any], None]) -> None:
    """A copy of the session `s` that is spoilt: it comes first wherever sessions are in order of their ids."""
    session = world.session()
    session["_id"] = session["session_id"] = "bad"
    change(session)
    world.database[SESSIONS].insert_one(session)
    for segment in list(world.segments.find({"_id.session": "s"})):
        segment["_id"]["session"] = "bad"
        world.segments.insert_one(segment)


def found(world: World, session_id: str) -> list[int]:
    hits = world.repository.search_messages("prompt", session_id=session_id, limit=1000)
    return sorted(hit.message_id for hit in hits)


@pytest.mark.slow
@pytest.mark.parametrize("spoilt", ["x", None, 5, [1], {"message_id": [1], "content": [{"text": "prompt"}]}], ids=str)
def test_a_spoilt_message_keeps_no_other_of_its_session_from_being_found(world: World, spoilt: Any) -> None:
    world.begin("s", index_messages=False)

    def change(session: Any) -> None:
        session["agents"]["assistant"]["messages"][0] = spoilt

    put_bad(world, change)
    world.segments.update_one({"_id.session": "bad", "_id.first": 2}, {"$set": {"messages.1": spoilt}})
    embedded = 12 - len(world.session()["agents"]["assistant"]["messages"])

    assert world.repository.index_messages() == 24
    assert found(world, "s") == list(range(12))
    assert found(world, "bad") == [number for number in range(12) if number not in (3, embedded)]
    assert world.repository.index_messages() == 0


SPOILT: dict[str, Callable[[Any], None]] = {
    "incarnation": lambda session: session.update(incarnation=5),
    "archived_count": lambda session: session["agents"]["assistant"].update(archived_count="x"),
    "another archived_count": lambda session: session["agents"]["assistant"].update(archived_count=2.5),
    "a key": lambda session: session["agents"].update({"100%FF": session["agents"]["assistant"]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", SPOILT.values(), ids=SPOILT)
def test_messages_that_cannot_be_indexed_are_told_by_their_session_and_keep_off_no_others(
    world: World, change: Callable[[Any], None]
) -> None:
    world.begin("s", index_messages=False)
    put_bad(world, change)
    with pytest.raises(MongoDBSessionError, match="could not take in all messages of session_id='bad'; all others"):
        world.repository.index_messages()
    assert found(world, "s") == list(range(12))


@pytest.mark.slow
def test_an_agents_record_that_says_too_much_of_the_search_hides_no_message(world: World) -> None:
    world.begin("s", index_messages=False)
    world.database[SESSIONS].update_one({}, {"$set": {"agents.assistant.indexed": {"count": 2**40, "rewrites": 0}}})
    assert world.repository.index_messages() == 12
    assert found(world, "s") == list(range(12))


@pytest.mark.slow
def test_a_spoilt_search_document_hides_no_other(world: World) -> None:
    world.begin("s")
    spoilt = [("role", 5), ("text", ["prompt"]), ("agent_id", ["x"]), ("session_id", "$unset")]
    for number, (name, value) in enumerate(spoilt, 1000):
        document: Any = world.database["sessions_search"].find_one({"_id.session": "s"})
        document["_id"]["message"] = number
        document[name] = value
        if value == "$unset":
            del document[name]
        world.database["sessions_search"].insert_one(document)
    other: Any = world.database["sessions_search"].find_one({"_id.message": 0})
    for number in (float("inf"), 2.5, -1):
        other["_id"]["message"] = number
        world.database["sessions_search"].insert_one(other)
    assert len(world.repository.search_messages("prompt", limit=1000)) == 12


def test_a_session_of_a_time_beyond_all_calendars_ends_no_list(world: World) -> None:
    world.begin("s", 1)
    session = world.session()
    for number, milliseconds in enumerate((2**60, -(2**60))):
        moment = bson.datetime_ms.DatetimeMS(milliseconds)
        world.database[SESSIONS].insert_one({**session, "_id": f"x{number}", "created_at": moment})
    world.database[SESSIONS].insert_one({**session, "_id": "t"})
    assert sorted(header.session_id for header in world.headers(1)) == ["s", "t"]


JUNK: list[Any] = [
    *(None, "x", "", 5, -1, 2.5, float("nan"), float("inf"), True, Int64(2**62), Decimal128("NaN"), b"x", OLD),
    *([], [1], [None, "x"], [[{"text": "prompt"}]], [{"message_id": 5}], {}, {"x": 1}, {"message_id": 5}),
    *({"a.b": 1}, {"": 1}, {"$x": {"$y": 1}}, {"$ref": "x", "$id": 1}, ObjectId(), MaxKey(), Regex("x")),
    *({"__encoded__": "str", "value": b"\xff\xfe"}, {"__encoded__": "tuple", "value": 5}),
]


def spoil(chance: random.Random, document: Any) -> None:
    """Put junk somewhere into a document, besides its `_id`."""
    inner, depth = document, 0
    while True:
        keys = [key for key in (inner if isinstance(inner, dict) else range(len(inner))) if depth or key != "_id"]
        if not keys:
            return
        key = chance.choice(keys)
        depth += 1
        if isinstance(inner[key], (dict, list)) and inner[key] and chance.random() < 0.8:
            inner = inner[key]
            continue
        inner[key] = chance.choice(JUNK)
        if isinstance(inner, dict) and chance.random() < 0.2:
            del inner[key]
        return


@pytest.mark.slow
@pytest.mark.new_database  # It makes a view.
@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_spoilt_in_some_sessions_all_others_are_swept_indexed_shown_found_and_listed(
    world: World, seed: int
) -> None:
    chance = random.Random(seed)
    world.begin("good", index_messages=False)
    world.begin("gone")
    world.make_older()
    good: Any = world.database[SESSIONS].find_one({"_id": "good"})
    parts = {name: list(world.database[name].find({"_id.session": "good"})) for name in PARTS[:1]}
    searched = list(world.database["sessions_search"].find({"_id.session": "gone"}))
    files = list(world.files.find({"metadata.session": "good"}))
    lose(world, "gone")

    def put(name: str, document: Any) -> None:
        # What an index cannot take, such as two arrays side by side, nobody can have put there.
        with suppress(WriteError):
            world.database[name].insert_one(document)

    def copy(document: Any) -> Any:
        return bson.decode(bson.encode(document))

    for number in range(60):
        session = {**copy(good), "_id": f"bad {number}", "session_id": f"bad {number}"}
        for _ in range(chance.choice((0, 1, 1, 3))):
            spoil(chance, session)
        put(SESSIONS, session)
        for segment in map(copy, parts["sessions_history"]):
            segment["_id"]["session"] = f"bad {number}"
            if chance.random() < 0.2:
                spoil(chance, segment)
            if chance.random() < 0.05:
                spoil(chance, segment["_id"])
            put("sessions_history", segment)
        document = copy(chance.choice(searched))
        document["_id"].update(session=f"bad {number}", incarnation=good["incarnation"])
        spoil(chance, document)
        if chance.random() < 0.3:
            spoil(chance, document["_id"])
        put("sessions_search", document)
        file = {**copy(chance.choice(files)), "_id": ObjectId.from_datetime(OLD)}
        file["metadata"]["session"] = f"bad {number}"
        spoil(chance, file)
        put("sessions_blobs.files", file)
    for number, junk in enumerate(JUNK):
        put(SESSIONS, {"_id": f"junk {number}", "agents": {"a": junk}, "created_at": OLD, "updated_at": OLD})
        put(SESSIONS, {"_id": f"more {number}", "agents": {"a": {"messages": junk, "archived_count": junk}}})
        with suppress(WriteError):
            put(SESSIONS, {"_id": junk, "agents": good["agents"]})

    def tells_only_of_bad_ones(deed: Callable[[], Any]) -> None:
        told = ""
        try:
            deed()
        except MongoDBSessionError as error:
            told = str(error)
        assert "'good'" not in told
        assert "'gone'" not in told

    for _ in range(2):
        tells_only_of_bad_ones(lambda: world.repository.sweep(0))
    gone = [{"_id.session": "gone"}, {"_id.session": "gone"}, {"metadata.session": "gone"}]
    assert [world.database[name].count_documents(which) for name, which in zip(PARTS, gone, strict=False)] == [0, 0, 0]
    assert list(world.segments.find({"_id.session": "good"})) == parts["sessions_history"]
    assert list(world.files.find({"metadata.session": "good"})) == files
    assert_whole(world, "good")

    tells_only_of_bad_ones(lambda: world.repository.index_messages())
    assert found(world, "good") == list(range(12))
    world.repository.search_messages("prompt", limit=10_000)

    rows = list(world.database[world.repository.create_messages_view()].find({"session_id": "good"}))
    assert sorted(row["message_id"] for row in rows) == list(range(12))

    (header,) = [header for header in world.headers(10) if header.session_id == "good"]
    assert (header.message_count, header.title) == (12, "prompt 0")


def assert_whole(world: World, session_id: str) -> None:
    messages = [stored.message for stored in world.repository.list_messages(session_id, "assistant")]
    assert [message["content"] for message in messages[::2]] == [shown(f"prompt {n}", n) for n in range(6)]
    assert len(messages) == 12
