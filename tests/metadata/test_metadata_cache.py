"""`SessionMetadataCache`: what it saves, and that nobody ever reads what a write of his own process has replaced."""

import contextlib
import gc
import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from support.application import NOWHERE
from support.commands import CommandRecorder
from support.failpoints import fail_command
from support.gates import Gate
from support.histories import SESSIONS
from support.running import run_script
from support.waiting import eventually

from mongodb_session_manager import MongoDBSessionManagerFactory, SessionMetadataCache, SessionNotFoundError
from mongodb_session_manager._model.limits import MAX_CACHED_METADATA_BYTES
from mongodb_session_manager.local import LocalMongoDB

APP_NAME = "metadata cache"
THREAD = "mongodb-metadata-watch"


class Process:
    """What one process has: a factory, and its commands."""

    def __init__(self, uri: str, database_name: str, cache: SessionMetadataCache | None, **options: Any) -> None:
        self.recorder, self.gate = CommandRecorder(), Gate()
        self.cache = cache
        listeners = [self.recorder, self.gate]
        defaults = {"minPoolSize": 0, "appname": APP_NAME, "event_listeners": listeners, "metadata_cache": cache}
        self.factory = MongoDBSessionManagerFactory(uri, database_name, SESSIONS, **{**defaults, **options})

    def manager(self, session_id: str = "s", **options: Any) -> Any:
        return self.factory.create_session_manager(session_id, **options)

    def metadata(self, session_id: str = "s") -> Any:
        return self.manager(session_id).get_metadata().get("metadata")

    @contextlib.contextmanager
    def slow_read(self, result: Any) -> Iterator[None]:
        """A read of this result, whose answer has come and that the process has not seen while the block runs."""
        with ThreadPoolExecutor(1) as threads:
            with self.gate.holding("find") as held:
                slow = threads.submit(self.metadata)
                held.wait()
                yield
            assert slow.result() == result

    @property
    def stats(self) -> Any:
        return self.factory.get_connection_stats()["metadata_cache"]

    def close(self) -> None:
        self.factory.close()


@contextlib.contextmanager
def processes(uri: str, database_name: str) -> Iterator[Callable[..., Process]]:
    """Makes processes that share a database; none of them leaves a thread that watches."""
    with contextlib.ExitStack() as stack:
        yield lambda cache=None, **options: stack.enter_context(
            contextlib.closing(Process(uri, database_name, cache, **options))
        )
    assert not watching_threads()


@pytest.fixture
def process(server: Any, database_name: str) -> Iterator[Callable[..., Process]]:
    """Makes processes that share this test's database."""
    with processes(server.uri, database_name) as make:
        yield make


def watching_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def cache(**options: Any) -> SessionMetadataCache:
    return SessionMetadataCache(**{"ttl_seconds": 3600, **options})


# --- what it saves


def test_metadata_that_was_read_is_read_again_without_a_command_by_every_manager_of_the_factory(process: Any) -> None:
    here = process(cache())
    here.manager().update_metadata({"topic": "fish"})
    here.recorder.clear()

    assert [here.metadata() for _ in range(3)] == [{"topic": "fish"}] * 3

    assert here.recorder.names == ["find"]
    assert (here.stats["hits"], here.stats["misses"], here.stats["entries"]) == (2, 1, 1)


def test_without_a_cache_every_read_asks_the_database_and_there_are_no_figures_of_one(process: Any) -> None:
    here = process()
    here.manager().update_metadata({"topic": "fish"})
    here.recorder.clear()

    assert here.metadata() == here.metadata() == {"topic": "fish"}

    assert here.recorder.names == ["find", "find"]
    assert "metadata_cache" not in here.factory.get_connection_stats()


def test_a_session_that_does_not_exist_is_asked_for_until_somebody_begins_it(process: Any) -> None:
    here, there = process(cache()), process()
    assert here.manager().get_metadata() == {}

    there.manager().update_metadata({"begun": True})

    assert here.metadata() == {"begun": True}


@pytest.mark.slow
def test_an_empty_session_is_known_to_be_empty(process: Any) -> None:
    here = process(cache())
    assert here.manager().session
    here.recorder.clear()

    assert [here.manager().get_metadata() for _ in range(2)] == [{"metadata": {}}] * 2
    assert here.recorder.names == ["find"]


@pytest.mark.slow
def test_sessions_collections_and_databases_do_not_share_entries(process: Any, client: Any) -> None:
    here = process(cache())
    name = here.manager().session_repository.database.name
    places: list[dict[str, Any]] = [
        {"session_id": "s"},
        {"session_id": "t"},
        {"session_id": "s", "collection_name": "others"},
        {"session_id": "s", "database_name": f"{name}_2"},
    ]
    try:
        for _ in range(2):
            for number, place in enumerate(places):
                here.manager(**place).update_metadata({"number": number})
            assert [here.manager(**place).get_metadata()["metadata"]["number"] for place in places] == [0, 1, 2, 3]
            assert [here.manager(**place).get_metadata()["metadata"]["number"] for place in places] == [0, 1, 2, 3]
    finally:
        client.drop_database(f"{name}_2")


@pytest.mark.slow
def test_beyond_its_limit_the_cache_gives_up_what_was_not_used_for_longest(process: Any) -> None:
    here = process(cache(max_entries=2))
    for session_id in "abc":
        here.manager(session_id).update_metadata({"id": session_id})
    for session_id in "abac":  # Now b was not used for longest.
        here.metadata(session_id)
    here.recorder.clear()

    assert [here.metadata(session_id)["id"] for session_id in "aca"] == ["a", "c", "a"]
    assert here.recorder.names == []
    assert here.metadata("b") == {"id": "b"}
    assert here.recorder.names == ["find"]
    assert (here.stats["entries"], here.stats["evictions"]) == (2, 2)


@pytest.mark.slow
def test_what_another_process_has_written_is_seen_when_the_time_is_over(process: Any) -> None:
    here, there = process(cache(ttl_seconds=0.2)), process()
    there.manager().update_metadata({"n": 1})
    assert here.metadata() == {"n": 1}

    there.manager().update_metadata({"n": 2})

    eventually(lambda: here.metadata() == {"n": 2})
    assert here.stats["expirations"] >= 1


def test_the_figures_go_to_json_beside_those_of_the_connections(process: Any) -> None:
    here = process(cache(max_entries=7))
    here.metadata()

    shown = json.loads(json.dumps({"pool": here.factory.get_connection_stats()}))["pool"]

    events = dict.fromkeys(("hits", "evictions", "expirations", "invalidations"), 0)
    expected = {"entries": 0, "max_entries": 7, "misses": 1, "watching": 0, **events}
    assert shown["metadata_cache"] == here.cache.stats() == expected
    assert shown["in_use"] == 0


def test_clear_forgets_what_a_foreign_program_has_changed(process: Any, database: Any) -> None:
    here = process(cache())
    here.manager().update_metadata({"n": 1})
    assert here.metadata() == {"n": 1}
    database[SESSIONS].update_one({"_id": "s"}, {"$set": {"metadata.n": 2}})
    assert here.metadata() == {"n": 1}

    here.cache.clear()

    assert here.metadata() == {"n": 2}


# --- what it never does


def test_what_a_caller_does_with_the_values_he_got_or_gave_reaches_nobody_else(process: Any) -> None:
    here = process(cache())
    given = {"list": [1], "inner": {"n": 1}}
    here.manager().update_metadata(given)
    for _ in range(2):  # From the database, then from memory.
        found = here.manager().get_metadata()
        found["metadata"]["list"].append(2)
        found["metadata"]["inner"]["n"] = 2
        found["metadata"]["new"] = True
        given["list"].append(3)

    assert here.metadata() == {"list": [1], "inner": {"n": 1}}


CHANGES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "update": (lambda manager: manager.update_metadata({"n": 2}), {"n": 2, "deep": {"a": 1}}),
    "dotted update": (
        lambda manager: manager.update_metadata({"deep.a": 2, "deep.b": 3}),
        {"n": 1, "deep": {"a": 2, "b": 3}},
    ),
    "delete": (lambda manager: manager.delete_metadata(["n"]), {"deep": {"a": 1}}),
    "dotted delete": (lambda manager: manager.delete_metadata(["deep.a"]), {"n": 1, "deep": {}}),
    "tool": (lambda manager: manager.get_metadata_tool()(action="set", metadata={"n": 2}), {"n": 2, "deep": {"a": 1}}),
    "repository's update": (
        lambda manager: manager.session_repository.update_metadata("s", {"n": 2}),
        {"n": 2, "deep": {"a": 1}},
    ),
    "repository's delete": (lambda manager: manager.session_repository.delete_metadata("s", ["n"]), {"deep": {"a": 1}}),
    "deletion of the session": (lambda manager: manager.session_repository.delete_session("s"), None),
}
each_change = pytest.mark.parametrize(("change", "after"), CHANGES.values(), ids=CHANGES)


@each_change
def test_a_change_by_any_manager_of_the_factory_is_seen_at_once_by_all(process: Any, change: Any, after: Any) -> None:
    here = process(cache())
    one, other = here.manager(), here.manager()
    one.update_metadata({"n": 1, "deep": {"a": 1}})
    assert one.get_metadata() == other.get_metadata()

    change(one)

    for reader in (other, one, here.manager()):
        assert reader.get_metadata().get("metadata") == after


@each_change
def test_a_slow_reader_does_not_put_back_what_was_replaced_while_it_was_reading(
    process: Any, change: Any, after: Any
) -> None:
    here = process(cache())
    manager = here.manager()
    manager.update_metadata({"n": 1, "deep": {"a": 1}})

    with here.slow_read({"n": 1, "deep": {"a": 1}}):  # It has not put the old value into the cache.
        change(manager)

    assert here.metadata() == after
    assert here.metadata() == after


def test_of_two_reads_at_once_the_one_that_began_later_is_kept(process: Any, database: Any) -> None:
    here = process(cache())
    here.manager().update_metadata({"n": 1})

    with here.slow_read({"n": 1}):
        database[SESSIONS].update_one({"_id": "s"}, {"$set": {"metadata.n": 2}})
        assert here.metadata() == {"n": 2}

    assert here.metadata() == {"n": 2}


def test_large_metadata_is_not_held(process: Any) -> None:
    here = process(cache())
    for size, entries in ((MAX_CACHED_METADATA_BYTES - 1000, 1), (MAX_CACHED_METADATA_BYTES, 0)):
        here.manager().update_metadata({"text": "x" * size})
        assert here.metadata() == {"text": "x" * size}
        assert here.stats["entries"] == entries


@pytest.mark.topology
def test_what_is_held_was_read_from_the_primary(process: Any) -> None:
    here = process(cache(), readPreference="primaryPreferred")
    here.manager().update_metadata({"n": 1})
    here.recorder.clear()

    here.metadata()

    (command,) = here.recorder.commands.named("find")
    assert "primaryPreferred" not in repr(command)


def test_nothing_is_kept_that_was_read_while_a_write_was_under_way(process: Any) -> None:
    """The update is carried out and not yet known to be: a value read before it must not be served after it."""
    here = process(cache())
    here.manager().update_metadata({"n": 1})
    writer = here.manager()
    writer.update_metadata({"m": 1})  # It has opened the session: its next command is the update.

    with ThreadPoolExecutor(2) as threads, here.gate.holding("find") as reading:
        slow = threads.submit(here.metadata)
        reading.wait()  # With n = 1.
        with here.gate.holding("update") as writing:
            write = threads.submit(writer.update_metadata, {"n": 2})
            writing.wait()
            assert here.metadata()["n"] == 2  # Read during the write, and not kept.
            assert here.stats["entries"] == 0
            reading.released.set()
            assert slow.result()["n"] == 1
            assert here.stats["entries"] == 0
            assert here.metadata()["n"] == 2
        write.result()

    assert here.metadata()["n"] == 2
    assert here.stats["entries"] == 1


@pytest.mark.topology
def test_what_was_known_before_is_not_served_once_a_write_may_have_been_carried_out(process: Any) -> None:
    here = process(cache())
    writer = here.manager()
    writer.update_metadata({"n": 1})
    assert here.metadata() == {"n": 1}

    with ThreadPoolExecutor(1) as threads, here.gate.holding("update") as writing:
        write = threads.submit(writer.update_metadata, {"n": 2})
        writing.wait()
        assert here.metadata() == {"n": 2}
        writing.released.set()
        write.result()


def test_a_slow_reader_does_not_put_back_what_was_cleared_meanwhile(process: Any, database: Any) -> None:
    here = process(cache())
    here.manager().update_metadata({"n": 1})

    with here.slow_read({"n": 1}):
        database[SESSIONS].update_one({"_id": "s"}, {"$set": {"metadata.n": 2}})
        here.cache.clear()

    assert here.metadata() == {"n": 2}


def test_two_writes_at_once_keep_the_cache_out_until_both_are_done(process: Any) -> None:
    here = process(cache())
    first, second = here.manager(), here.manager()
    first.update_metadata({"n": 1})
    second.update_metadata({"m": 1})

    with ThreadPoolExecutor(2) as threads, here.gate.holding("update") as writing:
        write = threads.submit(first.update_metadata, {"n": 2})
        writing.wait()
        second.update_metadata({"m": 2})
        assert here.metadata() == {"n": 2, "m": 2}
        assert here.stats["entries"] == 0
        writing.released.set()
        write.result()

    here.metadata()
    assert here.stats["entries"] == 1


@pytest.mark.topology
def test_a_write_that_fails_leaves_nothing_in_the_cache_and_nothing_blocked(
    process: Any, client: Any, database: Any
) -> None:
    here = process(cache())
    manager = here.manager()
    manager.update_metadata({"n": 1})
    here.metadata()

    with fail_command(client, "update", app_name=APP_NAME, error_code=13), pytest.raises(PyMongoError):
        manager.update_metadata({"n": 2})
    # It may have been carried out for all one knows.
    database[SESSIONS].update_one({"_id": "s"}, {"$set": {"metadata.n": 3}})

    assert here.metadata() == {"n": 3}
    assert here.stats["entries"] == 1


@pytest.mark.topology
def test_a_read_that_fails_is_an_error_and_the_next_one_asks_again(process: Any, client: Any) -> None:
    here = process(cache(), retryReads=False)
    here.manager().update_metadata({"n": 1})

    with fail_command(client, "find", app_name=APP_NAME, error_code=13, times=1), pytest.raises(PyMongoError):
        here.metadata()

    assert here.metadata() == {"n": 1}


def test_a_session_begun_anew_under_the_same_id_does_not_show_the_metadata_of_the_one_before(process: Any) -> None:
    """Another process deletes the session: a manager that has opened the new one knows that the entry is of the old."""
    here, there = process(cache()), process()
    old = here.manager()
    old.update_metadata({"life": 1})
    assert here.metadata() == {"life": 1}
    there.manager().session_repository.delete_session("s")
    there.manager().update_metadata({"life": 2})

    new = here.manager()
    assert new.session
    assert new.get_metadata() == {"metadata": {"life": 2}}
    assert here.metadata() == {"life": 2}

    with pytest.raises(SessionNotFoundError):
        old.update_metadata({"life": 3})
    assert here.metadata() == {"life": 2}


@pytest.mark.slow
@pytest.mark.topology
def test_readers_and_writers_in_many_threads_never_see_a_value_older_than_one_that_was_written(process: Any) -> None:
    here = process(cache(max_entries=2))
    sessions = ["a", "b", "c"]
    for session_id in sessions:
        here.manager(session_id).update_metadata({"n": 0})
    written = dict.fromkeys(sessions, 0)
    done = threading.Event()

    def write(session_id: str) -> None:
        manager = here.manager(session_id)
        for n in range(1, 60):
            manager.update_metadata({"n": n})
            written[session_id] = n

    def read() -> int:
        count = 0
        while not done.is_set():
            for session_id in sessions:
                at_least = written[session_id]
                assert here.metadata(session_id)["n"] >= at_least
                count += 1
        return count

    with ThreadPoolExecutor(6) as threads:
        readers = [threads.submit(read) for _ in range(3)]
        try:
            for writer in [threads.submit(write, session_id) for session_id in sessions]:
                writer.result()
        finally:
            done.set()
        assert all(reader.result() for reader in readers)
    assert here.cache._memory._reads == here.cache._memory._writes == {}


# --- whose it is


def test_a_cache_serves_one_factory_and_another_when_that_is_closed() -> None:
    """The same id means another session on another server."""
    mine = cache()
    with (
        MongoDBSessionManagerFactory(NOWHERE, metadata_cache=mine) as first,
        pytest.raises(ValueError, match="one factory"),
    ):
        MongoDBSessionManagerFactory(NOWHERE, metadata_cache=mine)
    assert first.closed
    MongoDBSessionManagerFactory(NOWHERE, metadata_cache=mine).close()


def test_a_factory_that_could_not_be_made_does_not_keep_the_cache() -> None:
    mine = cache()
    with pytest.raises(ValueError, match="durability"):
        MongoDBSessionManagerFactory(NOWHERE, metadata_cache=mine, durability="trun")
    MongoDBSessionManagerFactory(NOWHERE, metadata_cache=mine).close()


def test_after_the_factory_is_closed_managers_of_a_borrowed_client_ask_the_database(
    process: Any, client: Any, database: Any
) -> None:
    mine = cache()
    factory = MongoDBSessionManagerFactory(None, database.name, SESSIONS, client, metadata_cache=mine)
    manager = factory.create_session_manager("s")
    manager.update_metadata({"n": 1})
    manager.get_metadata()
    factory.close()

    process(mine).manager().update_metadata({"n": 2})
    database[SESSIONS].update_one({"_id": "s"}, {"$set": {"metadata.n": 3}})

    assert manager.get_metadata() == {"metadata": {"n": 3}}


def test_a_read_that_comes_too_late_leaves_nothing_in_the_cache_for_the_next_factory(
    client: Any, database_name: str
) -> None:
    mine = cache(watch=True)
    factory = MongoDBSessionManagerFactory(None, database_name, SESSIONS, client, metadata_cache=mine)
    manager = factory.create_session_manager("s")
    manager.update_metadata({"n": 1})
    factory.close()

    assert manager.get_metadata() == {"metadata": {"n": 1}}
    assert (mine.stats()["entries"], watching_threads()) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["closed", "forgotten"])
@pytest.mark.parametrize("ttl_hours", [None, 1])
def test_what_one_factory_has_read_is_never_another_ones(
    process: Any, client: Any, database: Any, ends: str, ttl_hours: Any
) -> None:
    """The database of the other one stands for another server: to the cache it has the same name."""
    mine = cache()
    factory = MongoDBSessionManagerFactory(None, database.name, SESSIONS, client, metadata_cache=mine)
    former = factory.create_session_manager("s", ttl_hours=ttl_hours)
    former.update_metadata({"of": "the former"})
    assert former.get_metadata() == {"metadata": {"of": "the former"}}
    if ends == "closed":
        factory.close()
    del factory
    gc.collect()

    here = process(mine)
    database[SESSIONS].update_one({"_id": "s"}, {"$set": {"metadata.of": "the next"}})
    assert here.metadata() == {"of": "the next"}
    database[SESSIONS].update_one({"_id": "s"}, {"$set": {"metadata.of": "nobody"}})

    assert former.get_metadata() == {"metadata": {"of": "nobody"}}
    mine.clear()
    former.get_metadata()
    assert mine.stats()["entries"] == 0
    former.session_repository.get_metadata("s")


def test_the_watchers_of_a_factory_that_was_forgotten_end_when_the_cache_is_given_to_the_next(
    watching: Any, replicas: Any, name: str
) -> None:
    mine = cache(watch=True)
    factory = MongoDBSessionManagerFactory(None, name, SESSIONS, replicas, metadata_cache=mine)
    manager = factory.create_session_manager("s")
    manager.get_metadata()
    (before,) = watching_threads()
    del factory
    gc.collect()

    here = watching(mine)
    manager.get_metadata()

    (now,) = watching_threads()
    assert (before.is_alive(), now is not before, here.stats["watching"]) == (False, True, 1)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        *(({"max_entries": number}, ValueError) for number in (0, -1)),
        *(({"max_entries": number}, TypeError) for number in (True, 1.5, None)),
        *(({"ttl_seconds": number}, ValueError) for number in (0, -1, float("nan"), float("inf"))),
        *(({"ttl_seconds": number}, TypeError) for number in ("60", True, None)),
        ({"watch": 1}, TypeError),
    ],
)
def test_limits_that_are_none_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        SessionMetadataCache(**options)


def test_what_is_no_cache_is_refused_and_no_manager_takes_one() -> None:
    with pytest.raises(TypeError, match="metadata_cache"):
        MongoDBSessionManagerFactory(NOWHERE, metadata_cache={})
    with MongoDBSessionManagerFactory(NOWHERE) as factory, pytest.raises(TypeError, match="metadata_cache"):
        factory.create_session_manager("s", metadata_cache=cache())


# --- other processes: change streams


@pytest.fixture
def replicas(replica_set: LocalMongoDB) -> Iterator[MongoClient[Any]]:
    """A plain client of the replica set."""
    with MongoClient(replica_set.uri, appname="tests") as client:
        yield client


@pytest.fixture
def name(replicas: Any) -> Iterator[str]:
    """The name of a database of the replica set that is this test's own."""
    name = f"test_{uuid.uuid4().hex}"
    yield name
    replicas.drop_database(name)


@pytest.fixture
def watching(replica_set: LocalMongoDB, name: str) -> Iterator[Callable[..., Process]]:
    """Makes processes on the replica set, whose caches watch, and waits until they do."""
    with processes(replica_set.uri, name) as make:

        def watch(mine: SessionMetadataCache | None = None, **options: Any) -> Process:
            made = make(mine, **options)
            if mine is not None:
                made.metadata()
                eventually(lambda: made.stats["watching"] == 1)
            return made

        yield watch


@each_change
def test_a_change_by_another_process_is_seen_long_before_the_time_is_over(
    watching: Any, change: Any, after: Any
) -> None:
    there = watching()
    there.manager().update_metadata({"n": 1, "deep": {"a": 1}})
    here = watching(cache(watch=True))
    assert here.metadata() == {"n": 1, "deep": {"a": 1}}

    change(there.manager())

    eventually(lambda: here.metadata() == after)


def test_a_session_replaced_as_a_whole_by_a_foreign_program_is_seen(watching: Any) -> None:
    here = watching(cache(watch=True))
    here.manager().update_metadata({"n": 1})
    assert here.metadata() == {"n": 1}
    sessions = here.manager().session_repository.collection

    document = sessions.find_one({"_id": "s"})
    sessions.replace_one({"_id": "s"}, {**document, "metadata": {"n": 2}})
    eventually(lambda: here.metadata() == {"n": 2})

    sessions.update_one({"_id": "s"}, [{"$set": {"metadata.list": [1, 2, 3, 4, 5, 6, 7, 8]}}])
    eventually(lambda: here.metadata()["n"] == 2 and len(here.metadata().get("list", [])) == 8)
    sessions.update_one({"_id": "s"}, [{"$set": {"metadata.list": {"$slice": ["$metadata.list", 2]}}}])
    eventually(lambda: here.metadata()["list"] == [1, 2])


def test_what_is_no_change_of_metadata_does_not_empty_the_cache(watching: Any) -> None:
    here, there = watching(cache(watch=True)), watching()
    there.manager().update_metadata({"n": 1})
    there.manager("other").update_metadata({"n": 1})
    sessions = there.manager().session_repository.collection
    eventually(lambda: here.metadata() == {"n": 1} and here.stats["entries"] == 1)
    here.metadata("other")

    there.manager().add_feedback({"rating": "up"})
    sessions.update_one({"_id": "s"}, {"$set": {"metadatas": 1, "title": "metadata"}})
    # What comes after it in the stream tells that these were seen.
    there.manager("other").update_metadata({"n": 2})
    eventually(lambda: here.metadata("other") == {"n": 2})
    here.recorder.clear()

    assert here.metadata() == {"n": 1}
    assert not here.recorder.commands.named("find")


def test_while_the_stream_is_lost_nothing_old_is_kept_and_it_is_opened_again(
    watching: Any, replicas: Any, caplog: pytest.LogCaptureFixture
) -> None:
    there = watching()
    there.manager().update_metadata({"n": 1})
    here = watching(cache(watch=True), appname="lost stream")
    assert here.metadata() == {"n": 1}
    # ChangeStreamFatalError, as after an event that is too large: the driver does not resume by itself.
    with fail_command(replicas, ["getMore", "aggregate"], app_name="lost stream", error_code=280):
        eventually(lambda: here.stats["watching"] == 0)
        there.manager().update_metadata({"n": 2})
        assert here.metadata() == {"n": 2}  # Read anew, and kept for the time limit.
        there.manager().update_metadata({"n": 3})
    eventually(lambda: here.metadata() == {"n": 3})
    eventually(lambda: here.stats["watching"] == 1)
    there.manager().update_metadata({"n": 4})
    eventually(lambda: here.metadata() == {"n": 4})

    assert len([record for record in caplog.records if "interrupted" in record.message]) == 1


def test_a_stream_that_cannot_be_opened_yet_is_told_of_once_and_opened_when_it_can_be(
    watching: Any, replica_set: LocalMongoDB, replicas: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    there = watching()
    there.manager().update_metadata({"n": 1})
    with processes(replica_set.uri, name) as make:
        here = make(cache(watch=True), appname="no stream yet")
        with fail_command(replicas, "aggregate", app_name="no stream yet", error_code=280):
            assert here.metadata() == {"n": 1}
            eventually(lambda: len(here.recorder.commands.named("aggregate").failures) >= 2)
            assert here.metadata() == {"n": 1}
            there.manager().update_metadata({"n": 2})

        eventually(lambda: here.stats["watching"] == 1)
        assert here.metadata() == {"n": 2}  # What was read before the stream was open may be old.

    assert len([record for record in caplog.records if "interrupted" in record.message]) == 1


@pytest.mark.parametrize(
    "foreign_id", [{"tenant": 1}, 7, None, RawBSONDocument(b"\x0f\0\0\0\x02a\0\x03\0\0\0\xff\xfe\0\0")]
)
def test_documents_that_are_no_sessions_do_not_end_the_watching(
    watching: Any, replicas: Any, name: str, foreign_id: Any, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = watching(cache(watch=True)), watching()
    there.manager().update_metadata({"n": 1})
    eventually(lambda: here.metadata() == {"n": 1})
    replicas[name][SESSIONS].insert_one({"_id": foreign_id, "metadata": {}})
    replicas[name][SESSIONS].update_one({"_id": foreign_id}, {"$set": {"metadata.a": 1}})

    there.manager().update_metadata({"n": 2})

    eventually(lambda: here.metadata() == {"n": 2})
    eventually(lambda: here.stats["watching"] == 1)
    assert len(watching_threads()) == 1
    # What cannot even be decoded costs a stream, and no more.
    assert ("interrupted" in caplog.text) == isinstance(foreign_id, RawBSONDocument)


def test_a_collection_that_is_dropped_is_forgotten_and_watched_again(watching: Any) -> None:
    here = watching(cache(watch=True))
    here.manager().update_metadata({"n": 1})
    assert here.metadata() == {"n": 1}

    here.manager().session_repository.collection.drop()
    eventually(lambda: here.manager().get_metadata() == {})

    there = watching()
    there.manager().update_metadata({"n": 2})
    eventually(lambda: here.metadata() == {"n": 2})
    there.manager().update_metadata({"n": 3})
    eventually(lambda: here.metadata() == {"n": 3})


def test_each_collection_in_use_is_watched_once_and_none_when_the_factory_is_closed(watching: Any) -> None:
    here = watching(cache(watch=True))
    for _ in range(3):
        here.manager("s", collection_name="others").get_metadata()
    eventually(lambda: here.stats["watching"] == 2)
    assert len(watching_threads()) == 2

    here.factory.close()

    assert watching_threads() == []
    assert here.cache.stats()["watching"] == 0


def test_watching_leaves_half_of_the_connections_to_everybody_else(
    watching: Any, caplog: pytest.LogCaptureFixture
) -> None:
    here = watching(cache(watch=True), maxPoolSize=3)
    others = here.manager("s", collection_name="others")
    for n in range(3):
        others.update_metadata({"n": n})
        assert others.get_metadata() == others.get_metadata() == {"metadata": {"n": n}}

    assert here.stats["watching"] == len(watching_threads()) == 1
    assert len([record for record in caplog.records if "maxPoolSize=<3>" in record.message]) == 1


@pytest.mark.parametrize("option", ["timeoutMS", "socketTimeoutMS"])
def test_a_client_with_short_timeouts_is_watched_for_without_interruption(watching: Any, option: str) -> None:
    here = watching(cache(watch=True), **{option: 400})
    with here.recorder.recording() as commands:
        eventually(lambda: len(commands.named("getMore")) >= 3)

    assert commands.named("aggregate") == []
    assert not commands.failures


def test_a_cache_that_nobody_holds_any_more_is_not_watched_for(replicas: Any, name: str) -> None:
    factory = MongoDBSessionManagerFactory(None, name, SESSIONS, replicas, metadata_cache=cache(watch=True))
    factory.create_session_manager("s").get_metadata()
    assert watching_threads()
    del factory
    eventually(lambda: not watching_threads())


def test_where_there_are_no_change_streams_the_time_limit_holds_and_a_warning_says_so(
    standalone: LocalMongoDB, database_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with processes(standalone.uri, database_name) as process:
        here, there = process(cache(watch=True)), process()
        there.manager().update_metadata({"n": 1})
        with caplog.at_level(logging.WARNING):
            here.metadata()
            eventually(lambda: not watching_threads())
        warnings = [record.name for record in caplog.records if "time limit" in record.message]
        assert warnings == ["mongodb_session_manager._session.metadata_watch"]
        assert here.metadata() == {"n": 1}
        here.recorder.clear()

        there.manager().update_metadata({"n": 2})

        assert [here.metadata() for _ in range(3)] == [{"n": 1}] * 3
        assert (here.recorder.names, here.stats["watching"], watching_threads()) == ([], 0, [])
        here.manager().update_metadata({"m": 1})  # Its own writes it sees all the same.
        assert here.metadata() == {"n": 2, "m": 1}


def test_a_forked_child_begins_with_an_empty_cache_watches_by_itself_and_is_not_stopped_by_a_held_lock(
    replica_set: LocalMongoDB, name: str
) -> None:
    script = """
        import sys, threading, warnings
        from mongodb_session_manager import MongoDBSessionManagerFactory, SessionMetadataCache
        from support.running import in_child
        from support.waiting import eventually

        def child():
            assert cache.stats()["misses"] == cache.stats()["entries"] == cache.stats()["watching"] == 0
            mine = factory.create_session_manager("s")
            assert mine.get_metadata() == {"metadata": {"n": 1}}
            eventually(lambda: cache.stats()["watching"] == 1)
            mine.update_metadata({"n": 2})  # Here and in the parent.
            assert mine.get_metadata() == {"metadata": {"n": 2}}
            factory.close()
            assert "mongodb-metadata-watch" not in [thread.name for thread in threading.enumerate()]

        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of every fork beside threads.
        cache = SessionMetadataCache(ttl_seconds=3600, watch=True)
        factory = MongoDBSessionManagerFactory(sys.argv[1], sys.argv[2], "sessions", metadata_cache=cache)
        manager = factory.create_session_manager("s")
        manager.update_metadata({"n": 1})
        eventually(lambda: cache.stats()["watching"] == 1 or manager.get_metadata() is None)
        manager.get_metadata()
        with cache._lock, cache._memory._lock:
            assert in_child(child) == 0
        eventually(lambda: manager.get_metadata() == {"metadata": {"n": 2}})
        factory.close()
        """
    run_script(script, replica_set.uri, name)
