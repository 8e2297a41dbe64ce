"""Sessions that end by themselves: when, what goes with them, and that a live one never loses a part."""

from __future__ import annotations

import asyncio
import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from pymongo import MongoClient
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType
from support.blobs import THRESHOLD, said, shown, talker
from support.commands import CommandRecorder
from support.gates import Gate
from support.histories import HISTORY, NEVER, SESSIONS, SMALL, Interruption, by_hand, manager_of, stored
from support.killed import crashes
from support.snapshots import keep, put_back
from support.waiting import eventually
from support.wire_proxy import Cut, WireProxy

from mongodb_session_manager import (
    MessageNotFoundError,
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    SessionMetadataCache,
    SessionNotFoundError,
)
from mongodb_session_manager.mongodb_session_repository import MongoDBSessionRepository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pymongo.database import Database

FILES = "sessions_blobs.files"
PARTS = (HISTORY, "sessions_search", FILES, "sessions_blobs.chunks")
FOREVER = datetime(9999, 12, 31, tzinfo=timezone.utc)
both_durabilities = pytest.mark.parametrize("durability", ["message", "turn"])


@pytest.fixture
def database(client: MongoClient[dict[str, Any]], database_name: str) -> Iterator[Database[dict[str, Any]]]:
    """This test's own database, with times in UTC; MongoDB removes nothing by itself meanwhile."""
    with monitor(client, ttlMonitorEnabled=False):
        yield client.get_database(database_name, codec_options=client.codec_options.with_options(tz_aware=True))


@contextmanager
def monitor(client: MongoClient[Any], **parameters: Any) -> Iterator[None]:
    """Set up how MongoDB removes what has expired."""
    before = {name: client.admin.command("getParameter", 1, **{name: 1})[name] for name in parameters}
    client.admin.command({"setParameter": 1, **parameters})
    yield
    client.admin.command({"setParameter": 1, **before})


@pytest.fixture
def opened(client: MongoClient[Any], database: Database[Any]) -> Callable[..., MongoDBSessionManager]:
    """Makes managers as processes do; each archives and makes blobs early."""

    def open_session(session_id: str = "s", ttl_hours: float | None = 10, **options: Any) -> MongoDBSessionManager:
        defaults: dict[str, Any] = {
            **SMALL,
            "blob_threshold_bytes": THRESHOLD,
            "index_messages": True,
            "client": client,
        }
        options = {**defaults, **options}
        return manager_of(options.pop("client"), database.name, session_id, ttl_hours=ttl_hours, **options)

    return open_session


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def repository(client: MongoClient[Any], database: Database[Any], ttl_hours: float | None) -> MongoDBSessionRepository:
    return MongoDBSessionRepository(
        client=client, database_name=database.name, collection_name=SESSIONS, ttl_hours=ttl_hours
    )


def document(database: Database[Any], session_id: str = "s") -> dict[str, Any]:
    found = database[SESSIONS].find_one({"_id": session_id})
    assert found is not None
    return found


def let_pass(database: Database[Any], hours: float, session_id: str = "s") -> None:
    """Let so much time pass for a session and its parts: what is stored of it moves into the past."""
    back = timedelta(hours=hours)
    incarnation = document(database, session_id)["incarnation"]

    def earlier(field: str) -> list[dict[str, Any]]:
        moved = {"$subtract": [f"${field}", round(back.total_seconds() * 1000)]}
        return [{"$set": {field: {"$cond": [{"$lt": [f"${field}", FOREVER]}, moved, f"${field}"]}}}]

    for field in ("expires_at", "parts_expire_at", "parts_moving_to", "updated_at"):
        database[SESSIONS].update_one({"_id": session_id, field: {"$exists": True}}, earlier(field))
    for name, mine in owned(database, incarnation).items():
        database[name].update_many({**mine, "expires_at": {"$exists": True}}, earlier("expires_at"))


def owned(database: Database[Any], incarnation: Any) -> dict[str, dict[str, Any]]:
    """For each collection of parts, which of them belong to a life of a session."""
    files = database[FILES].distinct("_id", {"metadata.incarnation": incarnation})
    mine: dict[str, Any] = {"_id.incarnation": incarnation}
    return dict(zip(PARTS, (mine, mine, {"_id": {"$in": files}}, {"files_id": {"$in": files}}), strict=True))


def parts(database: Database[Any]) -> list[dict[str, Any]]:
    return [found for name in PARTS for found in database[name].find({}, {"data": 0, "messages": 0})]


def assert_parts_outlive(database: Database[Any], session_id: str = "s") -> None:
    """What must be true at every moment: no part goes before it was promised to, and no promise before the session."""
    for session in database[SESSIONS].find({"_id": session_id}):
        promised = session.get("parts_expire_at", FOREVER)
        assert promised >= session.get("expires_at", FOREVER), "the session may outlive its parts"
        assert ("ttl_hours" in session) == ("expires_at" in session)
        for name, mine in owned(database, session["incarnation"]).items():
            for part in database[name].find(mine):
                if name in PARTS[:2]:
                    # One that nobody has committed yet does not count.
                    agent = session["agents"].get(part["_id"]["agent"], {})
                    counts, position = agent.get("archived_count", 0), part["_id"].get("first")
                    if position is None:
                        counts, position = agent.get("indexed", {}).get("count", 0), part["_id"]["message"]
                    if position >= counts:
                        continue
                assert part.get("expires_at", FOREVER) >= promised, name


def converse(manager: MongoDBSessionManager, turns: int = 6, images: int = 1) -> Any:
    """Take turns that are archived from, each with images; return the agent."""
    agent = windowed(manager)
    for n in range(turns):
        agent(shown(f"prompt {n}", *range(images)))
    manager.flush()
    return agent


def windowed(manager: MongoDBSessionManager) -> Any:
    return talker(manager, conversation_manager=SlidingWindowConversationManager(window_size=4))


# --- the parameter --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), 10**9])
def test_a_ttl_that_is_no_time_is_refused_everywhere(client: MongoClient[Any], wrong: Any) -> None:
    for make in (
        lambda: MongoDBSessionManager("s", client=client, ttl_hours=wrong),
        lambda: MongoDBSessionManagerFactory(client=client, ttl_hours=wrong),
        lambda: MongoDBSessionRepository(client=client, ttl_hours=wrong),
    ):
        with pytest.raises(ValueError, match="ttl_hours"):
            make()


@pytest.mark.parametrize("wrong", ["1", True, timedelta(hours=1)])
def test_a_ttl_that_is_no_number_is_refused(client: MongoClient[Any], wrong: Any) -> None:
    with pytest.raises(TypeError, match="ttl_hours"):
        MongoDBSessionManager("s", client=client, ttl_hours=wrong)


def test_a_factory_gives_its_ttl_to_its_managers_and_their_repository(
    client: MongoClient[Any], database: Database[Any]
) -> None:
    with MongoDBSessionManagerFactory(
        client=client, database_name=database.name, collection_name=SESSIONS, ttl_hours=10
    ) as factory:
        one, other = factory.create_session_manager("one"), factory.create_session_manager("other", ttl_hours=None)
        one.update_metadata({"a": 1})
        other.update_metadata({"a": 1})
        one.session_repository.update_metadata("one", {"b": 1})
        other.session_repository.update_metadata("other", {"b": 1})
    assert "expires_at" in document(database, "one")
    assert "expires_at" not in document(database, "other")


# --- activity -------------------------------------------------------------------------------------------------------


@both_durabilities
def test_a_ttl_costs_no_command(
    server: Any, database: Database[Any], opened: Callable[..., MongoDBSessionManager], durability: str
) -> None:
    recorder = CommandRecorder()
    with MongoClient(server.uri, event_listeners=[recorder]) as client:
        sent = {}
        for ttl_hours in (None, 10):
            # New, so that no index is made for one of them only.
            opened("first", ttl_hours, client=client).update_metadata({"a": 1})
            recorder.clear()
            options: dict[str, Any] = {"client": client, "durability": durability, "index_messages": False}
            for _ in range(2):
                with opened(f"s {ttl_hours}", ttl_hours, **options) as manager:
                    talker(manager)("hello")
            sent[ttl_hours] = recorder.names
    assert sent[10] == sent[None]


def test_a_session_expires_one_ttl_after_its_last_activity(
    database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    agent = talker(opened())
    new = document(database)
    agent("hello")
    used = document(database)
    for found in (new, used):
        assert found["expires_at"] == found["updated_at"] + timedelta(hours=10)
    assert new["parts_expire_at"] == new["updated_at"] + timedelta(hours=20)
    assert used["parts_expire_at"] == new["parts_expire_at"]


WRITES: dict[str, Callable[[MongoDBSessionRepository], object]] = {
    "metadata": lambda r: r.update_metadata("s", {"a": 1}),
    "metadata removed": lambda r: r.delete_metadata("s", ["a"]),
    "feedback": lambda r: r.add_feedback("s", {"rating": "up"}),
    "new agent": lambda r: r.create_agent("s", SessionAgent("another", {}, {})),
    "agent": lambda r: r.update_agent("s", SessionAgent("assistant", {"a": 1}, {})),
    "message": lambda r: r.create_message("s", "assistant", SessionMessage(by_hand("one more"), 50)),
    "replaced message": lambda r: r.update_message("s", "assistant", SessionMessage(by_hand("another"), 11)),
    "replaced archived message": lambda r: r.update_message("s", "assistant", SessionMessage(by_hand("another"), 0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("write", WRITES)
def test_every_write_of_a_repository_is_an_activity(
    client: MongoClient[Any],
    database: Database[Any],
    opened: Callable[..., MongoDBSessionManager],
    write: str,
) -> None:
    with opened() as manager:
        converse(manager)
    let_pass(database, 9)
    WRITES[write](repository(client, database, 10))
    found = document(database)
    assert found["expires_at"] == found["updated_at"] + timedelta(hours=10)
    assert_parts_outlive(database)


@pytest.mark.slow
def test_a_cache_of_metadata_shows_nothing_of_a_session_past_its_time(
    client: MongoClient[Any], database: Database[Any]
) -> None:
    with MongoDBSessionManagerFactory(
        client=client,
        database_name=database.name,
        collection_name=SESSIONS,
        ttl_hours=0.5 / 3600,
        metadata_cache=SessionMetadataCache(),
    ) as factory:
        factory.create_session_manager("s").update_metadata({"a": 1})
        reader = factory.create_session_manager("s")
        assert reader.get_metadata() == {"metadata": {"a": 1}}
        eventually(lambda: reader.get_metadata() == {}, 10)


# --- a session that is past its time --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.topology
def test_a_session_past_its_time_counts_as_absent(
    client: MongoClient[Any], database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    with opened() as manager:
        converse(manager)
        manager.add_feedback({"rating": "up"})
    let_pass(database, 10)
    found = repository(client, database, 10)
    assert found.read_session("s") is None
    assert not found.session_exists("s")
    assert found.read_agent("s", "assistant") is None
    assert found.read_message("s", "assistant", 0) is None
    assert found.read_message("s", "assistant", 11) is None
    assert found.list_messages("s", "assistant") == []
    assert found.get_metadata("s") == {}
    assert found.get_feedbacks("s") == []
    assert found.read_multi_agent("s", "graph") is None
    assert found.get_metrics_summary("s").messages == 0
    reader = opened()
    assert reader.list_agents() == []
    assert reader.get_message_count("assistant") == 0
    before = document(database)
    for write in WRITES.values():
        with pytest.raises(SessionNotFoundError):
            write(found)
        with pytest.raises(SessionNotFoundError):
            write(repository(client, database, None))
    assert document(database) == before


@pytest.mark.topology
def test_what_a_manager_writes_after_the_end_of_its_session_is_refused_and_brings_nothing_back(
    database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    manager = opened(index_messages=False)
    agent = talker(manager)
    agent("hello")
    let_pass(database, 10)
    before = document(database)
    with pytest.raises(SessionNotFoundError, match="expired"):
        manager.update_metadata({"a": 1})
    with pytest.raises(Exception, match="expired"):
        agent("still there?")
    with pytest.raises(SessionNotFoundError):
        manager.lease(5).__enter__()
    with pytest.raises(SessionNotFoundError):
        manager.close()
    assert document(database) == before


@both_durabilities
def test_a_turn_after_the_end_is_refused_though_the_parts_of_the_session_are_kept_for_longer(
    database: Database[Any], opened: Callable[..., MongoDBSessionManager], durability: str
) -> None:
    manager = opened(index_messages=False, durability=durability)
    agent = talker(manager)
    agent("hello")
    database[SESSIONS].update_one({}, {"$set": {"expires_at": utc_now()}})
    before = document(database)
    with pytest.raises(Exception, match="expired"):
        agent("still there?")
    with pytest.raises(SessionNotFoundError):
        manager.close()
    assert document(database) == before


@pytest.mark.slow
@pytest.mark.topology
@both_durabilities
def test_an_id_that_is_resumed_after_the_end_is_a_new_session_and_nothing_is_left_of_the_old(
    database: Database[Any], opened: Callable[..., MongoDBSessionManager], durability: str
) -> None:
    late = opened(durability=durability)
    converse(late, images=1).state.set("color", "red")
    late.update_metadata({"a": 1})
    old = document(database)
    let_pass(database, 10)
    manager = opened(durability=durability)
    agent = windowed(manager)
    assert agent.messages == []
    assert agent.state.get() == {}
    assert manager.get_metadata() == {"metadata": {}}
    new = document(database)
    assert new["incarnation"] != old["incarnation"]
    assert new["expires_at"] > utc_now()
    assert parts(database) == []
    with pytest.raises(SessionNotFoundError):
        late.update_metadata({"late": True})
    agent(shown("a new life", 1))
    assert said(windowed(opened()).messages) == ["a new life*", "Re: a new life"]
    assert_parts_outlive(database)


@pytest.mark.slow
@pytest.mark.topology
def test_an_expired_session_is_created_anew_by_a_repository_and_deleted_like_an_absent_one(
    client: MongoClient[Any], database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    found = repository(client, database, 10)
    with opened() as manager:
        converse(manager)
    let_pass(database, 10)
    # Its times are the caller's; what it lives from is now.
    old = Session("s", SessionType.AGENT, created_at="2020-01-01T00:00:00Z", updated_at="2020-01-01T00:00:00Z")
    found.create_session(old)
    assert found.session_exists("s")
    assert document(database)["agents"] == {}
    assert parts(database) == []
    let_pass(database, 10)
    with pytest.raises(SessionNotFoundError):
        found.delete_session("s")
    assert database[SESSIONS].find_one() is None


@pytest.mark.slow
def test_of_two_that_resume_an_expired_session_at_once_both_get_the_same_new_one(
    server: Any, database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    with opened() as manager:
        converse(manager)
    for number in itertools.count(1):
        let_pass(database, 10)
        interruption = Interruption()
        with MongoClient(server.uri, event_listeners=[interruption]) as client:
            first, other = opened(client=client), opened()
            interruption.arm("started", number, lambda other=other: other.update_metadata({"other": True}))  # type: ignore[misc]
            first.update_metadata({"first": True})
            assert interruption.error is None
            done = len(interruption.commands) < number
            if done:
                other.update_metadata({"other": True})
            found = document(database)
            assert found["metadata"] == {"first": True, "other": True}, number
            assert parts(database) == []
        if done:
            return


@pytest.mark.slow
@pytest.mark.topology
def test_mongodb_removes_a_session_and_all_its_parts(
    client: MongoClient[Any], database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    with opened() as manager, opened("kept") as other, opened("endless", None) as third:
        for each in (manager, other, third):
            converse(each)
    kept = {name: database[name].count_documents({}) * 2 // 3 for name in PARTS}
    let_pass(database, 10)
    with monitor(client, ttlMonitorEnabled=True):
        # The session document goes first; its parts wait for their own time.
        eventually(lambda: database[SESSIONS].find_one({"_id": "s"}) is None)
        assert {name: database[name].count_documents({}) for name in PARTS} == {
            name: count * 3 // 2 for name, count in kept.items()
        }
        for name in PARTS:
            ours = {"expires_at": {"$lt": utc_now() + timedelta(hours=10.5)}}
            database[name].update_many(ours, {"$set": {"expires_at": utc_now()}})
        eventually(lambda: {name: database[name].count_documents({}) for name in PARTS} == kept)
    assert said(windowed(opened("kept")).messages) == said(windowed(opened("endless", None)).messages) != []


@pytest.mark.slow
@pytest.mark.topology
def test_a_resume_after_the_end_does_not_need_the_parts_that_are_gone(
    client: MongoClient[Any], database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    with opened() as manager:
        converse(manager)
    let_pass(database, 10)
    for name in PARTS:
        database[name].delete_many({})
    with pytest.raises(SessionNotFoundError, match="expired"):
        repository(client, database, 10).create_agent("s", SessionAgent("assistant", {}, {}))
    with pytest.raises(SessionNotFoundError, match="expired"):
        repository(client, database, 10).update_agent("s", SessionAgent("assistant", {}, {}))
    assert windowed(opened()).messages == []


@pytest.mark.slow
@pytest.mark.topology
@pytest.mark.parametrize("again", ["create_session", "open"])
def test_a_new_session_in_the_place_of_an_expired_one_is_there_once_though_its_answer_was_lost(
    client: MongoClient[Any],
    database: Database[Any],
    opened: Callable[..., MongoDBSessionManager],
    again: str,
) -> None:
    with opened() as manager:
        converse(manager)
    let_pass(database, 10)
    client.admin.command("ping")
    assert client.address is not None
    cut_off: MongoClient[Any]
    with WireProxy(*client.address) as proxy, MongoClient(proxy.uri, retryWrites=False) as cut_off:
        proxy.cut(Cut("update", "before its answer arrives"))
        if again == "open":
            opened(client=cut_off).update_metadata({"new": True})
        else:
            repository(cut_off, database, 10).create_session(Session("s", SessionType.AGENT))
        assert proxy.cut_commands == ["update"]
    assert document(database)["agents"] == {}
    assert parts(database) == []


@pytest.mark.slow
def test_an_expired_session_that_mongodb_removes_while_it_is_created_anew_is_created(
    server: Any, database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    for number in itertools.count(1):
        with opened() as manager:
            manager.update_metadata({"a": 1})
        let_pass(database, 10)
        interruption = Interruption()
        with MongoClient(server.uri, event_listeners=[interruption]) as client:
            found = repository(client, database, 10)
            interruption.arm(
                "started", number, lambda: database[SESSIONS].delete_many({"expires_at": {"$lt": utc_now()}})
            )
            found.create_session(Session("s", SessionType.AGENT))
            assert document(database)["metadata"] == {}
            found.delete_session("s")
            if len(interruption.commands) < number:
                return


@pytest.mark.slow
def test_nobody_brings_a_session_back_that_ends_while_its_expiry_is_taken_away(
    server: Any, database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    for number in itertools.count(1):
        session_id = f"{number}"
        with opened(session_id) as manager:
            converse(manager)
        interruption = Interruption()

        def end(session_id: str = session_id) -> None:
            let_pass(database, 30, session_id)
            for name in PARTS:
                database[name].delete_many({"expires_at": {"$lt": utc_now()}})

        with MongoClient(server.uri, event_listeners=[interruption]) as client:
            manager = opened(session_id, None, client=client)
            manager.list_agents()
            interruption.arm("started", number, end)
            try:
                manager.update_metadata({"a": 1})
            except SessionNotFoundError:
                assert "a" not in document(database, session_id)["metadata"]
                assert "expires_at" in document(database, session_id)
            else:
                assert len(repository(client, database, None).list_messages(session_id, "assistant")) in (12, 0)
            assert interruption.error is None
            if len(interruption.commands) < number:
                assert number > 6
                return


@pytest.mark.parametrize("foreign", ["2030-01-01", 1_893_456_000])
def test_an_expires_at_of_somebody_elses_that_is_no_date_ends_nothing(
    database: Database[Any], opened: Callable[..., MongoDBSessionManager], foreign: Any
) -> None:
    with opened(ttl_hours=None) as manager:
        talker(manager)("hello")
    database[SESSIONS].update_one({"_id": "s"}, {"$set": {"expires_at": foreign}})
    with opened(ttl_hours=None) as manager:
        talker(manager)("again")
    assert len(document(database)["agents"]["assistant"]["messages"]) == 4
    assert document(database)["expires_at"] == foreign


def test_an_expires_at_of_the_applications_own_is_left_to_it(
    database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    with opened(ttl_hours=None) as manager:
        talker(manager)("hello")
    own = datetime(2100, 1, 1, tzinfo=timezone.utc)
    database[SESSIONS].update_one({"_id": "s"}, {"$set": {"expires_at": own}})
    with opened(ttl_hours=None) as manager:
        talker(manager)("again")
    assert document(database)["expires_at"] == own


def test_what_could_not_be_stored_because_the_session_has_ended_is_told_once(
    server: Any, database: Database[Any]
) -> None:
    factory = MongoDBSessionManagerFactory(server.uri, database.name, SESSIONS, ttl_hours=10, durability="turn")
    manager = factory.create_session_manager("s")
    agent = talker(manager)
    agent("hello")
    let_pass(database, 10)
    with pytest.raises(Exception, match="expired"):
        agent("again")
    with pytest.raises(SessionNotFoundError):
        factory.close()
    factory.close()
    assert factory.closed


def test_leaving_with_after_the_end_of_a_session_closes_the_manager(server: Any, database: Database[Any]) -> None:
    def expire(manager: MongoDBSessionManager) -> None:
        agent = talker(manager)
        agent("hello")
        let_pass(database, 10)
        with pytest.raises(Exception, match="expired"):
            agent("again")

    def make() -> MongoDBSessionManager:
        return MongoDBSessionManager("s", server.uri, database.name, SESSIONS, ttl_hours=10)

    manager = make()
    with pytest.raises(SessionNotFoundError), manager:
        expire(manager)
    manager.close()

    async def in_async_code() -> MongoDBSessionManager:
        async with make() as manager:
            await asyncio.to_thread(expire, manager)
        return manager

    with pytest.raises(SessionNotFoundError):
        asyncio.run(in_async_code())


@pytest.mark.slow
def test_a_write_that_is_refused_for_another_reason_leaves_the_expiry_as_it_is(
    client: MongoClient[Any], database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    with opened() as manager:
        converse(manager)
    before = document(database)
    with pytest.raises(MessageNotFoundError):
        repository(client, database, None).update_message("s", "assistant", SessionMessage(by_hand("?"), 99))
    with opened(ttl_hours=None) as manager, manager.lease(1):
        pass
    assert document(database)["expires_at"] == before["expires_at"]


# --- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_parts_expire_about_one_ttl_after_their_session(
    database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    with opened() as manager:
        converse(manager)
        expires_at = document(database)["expires_at"]
    found = parts(database)
    assert {name for name in PARTS if database[name].count_documents({})} == set(PARTS)
    for part in found:
        assert timedelta(hours=9.9) < part["expires_at"] - expires_at < timedelta(hours=10.1)
    assert_parts_outlive(database)


@pytest.mark.slow
@pytest.mark.topology
@both_durabilities
def test_parts_move_on_when_less_than_one_ttl_is_left_and_only_then(
    server: Any, database: Database[Any], opened: Callable[..., MongoDBSessionManager], durability: str
) -> None:
    recorder = CommandRecorder()
    with MongoClient(server.uri, event_listeners=[recorder]) as client:
        with opened(durability=durability) as manager:
            converse(manager)
        for hours, moved in ((8.5, 0), (3, 4), (5, 0), (8, 4)):
            let_pass(database, hours)
            with opened(client=client, durability=durability) as manager:
                agent = windowed(manager)
                recorder.clear()
                agent("hello")
                many = [c for c in recorder.commands.named("update") if c.command["updates"][0].get("multi")]
                assert len(many) == moved, hours
                # A turn that is far from it sends what it always sends.
                if not moved:
                    assert set(recorder.names) <= {"update", "find", "insert"}
            assert_parts_outlive(database)
    assert len(stored(database).messages) == 20


@pytest.mark.slow
def test_a_writer_with_a_longer_ttl_takes_the_parts_along(
    database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    with opened(ttl_hours=1) as manager:
        converse(manager)
    with opened(ttl_hours=100) as manager:
        windowed(manager)("hello")
    assert document(database)["expires_at"] > utc_now() + timedelta(hours=99)
    assert_parts_outlive(database)
    with opened(ttl_hours=1) as manager:
        windowed(manager)("hello")
    # It ends sooner now, and its parts are kept until they would have gone.
    assert document(database)["expires_at"] < utc_now() + timedelta(hours=2)
    assert_parts_outlive(database)
    let_pass(database, 1)
    assert windowed(opened(ttl_hours=1)).messages == []


@pytest.mark.slow
def test_a_session_without_a_ttl_gets_one_at_its_next_activity_and_so_do_its_parts(
    database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    with opened(ttl_hours=None) as manager:
        converse(manager)
    assert not any("expires_at" in part for part in parts(database))
    assert "expires_at" not in document(database)
    with opened() as manager:
        windowed(manager)("hello")
    assert document(database)["expires_at"] > utc_now()
    assert all("expires_at" in part for part in parts(database))
    assert_parts_outlive(database)


def test_a_ttl_that_came_and_went_before_the_parts_had_any_expiry_is_gone(
    client: MongoClient[Any], database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    with opened(ttl_hours=None) as manager:
        converse(manager)
    repository(client, database, 10).update_metadata("s", {"a": 1})
    assert "expires_at" in document(database)
    repository(client, database, None).update_metadata("s", {"b": 1})
    assert "expires_at" not in document(database)
    assert_parts_outlive(database)


@pytest.mark.slow
@pytest.mark.topology
@both_durabilities
def test_a_session_loses_its_ttl_at_its_next_activity_and_keeps_its_parts(
    database: Database[Any], opened: Callable[..., MongoDBSessionManager], durability: str
) -> None:
    with opened() as manager:
        converse(manager)
    with opened(ttl_hours=None, durability=durability) as manager:
        windowed(manager)(shown("hello", 7))
    assert "expires_at" not in document(database)
    assert_parts_outlive(database)
    let_pass(database, 10**4)
    assert_parts_outlive(database)
    with opened(ttl_hours=None) as manager:
        assert said(windowed(manager).messages)[-1] == "Re: hello"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ttl", "other_ttl"), [(10, 10), (10, None), (None, 10), (10, 1), (1, 100), (100, 10), (None, None)]
)
@pytest.mark.parametrize("moment", ["started", "succeeded"])
def test_whatever_another_process_does_between_two_commands_no_live_session_loses_a_part(
    server: Any,
    database: Database[Any],
    opened: Callable[..., MongoDBSessionManager],
    ttl: float | None,
    other_ttl: float | None,
    moment: str,
) -> None:
    """One takes a turn with an image and archives; another does the same, with another ttl, at any moment of that."""
    with opened() as manager:
        converse(manager, turns=4)
    # Little is left, so that whoever writes next moves the parts on.
    let_pass(database, 9.5)
    keep(database)

    def other() -> None:
        for turn in range(2):
            with opened("s", other_ttl) as manager:
                windowed(manager)(shown(f"other {turn}", turn))

    for number in itertools.count(1):
        put_back(database)
        interruption = Interruption()
        with MongoClient(server.uri, event_listeners=[interruption]) as client:
            with opened("s", ttl, client=client) as manager:
                agent = windowed(manager)
                interruption.arm(moment, number, other)
                agent(shown("first", 1))
                agent(shown("again", 1))
            assert interruption.error is None
            done = len(interruption.commands) < number
        assert_parts_outlive(database)
        windowed(opened("s", ttl))
        if done:
            assert number > 8
            return


@pytest.mark.slow
def test_a_process_killed_at_any_command_while_it_moves_parts_on_loses_and_leaves_nothing(
    server: Any, client: MongoClient[Any], database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    with opened(index_messages=False) as manager:
        converse(manager)
    # The session has half an hour left, and its parts an hour.
    now = utc_now()
    database[SESSIONS].update_one({}, {"$set": {"expires_at": now + timedelta(hours=0.5)}})
    database[SESSIONS].update_one({}, {"$set": {"parts_expire_at": now + timedelta(hours=1)}})
    for name in PARTS:
        database[name].update_many({}, {"$set": {"expires_at": now + timedelta(hours=1)}})
    keep(database)
    killed = []
    for crash in crashes(server.uri, database.name, "a turn that moves parts on"):
        killed.append(crash.command)
        assert_parts_outlive(database)
        with opened() as manager:
            agent = windowed(manager)
            heard = len(stored(database).messages)
            assert heard in ((14,) if not crash.killed else (12, 13, 14)), crash
            agent(shown("go on", 9))
        assert_parts_outlive(database)
        assert said(windowed(opened()).messages)[-2:] == ["go on*", "Re: go on"]
    # Twice each: two collections of blobs and one of segments, what says so before and after, and the commits.
    assert killed.count("update") >= 2 * (3 + 2 + 2)


@pytest.mark.slow
@pytest.mark.parametrize("ttl", [None, 100])
def test_a_blob_that_is_stored_while_older_ones_get_their_expiry_is_kept_as_long_as_its_session(
    server: Any, database: Database[Any], opened: Callable[..., MongoDBSessionManager], ttl: float | None
) -> None:
    with opened("s", None) as manager:
        converse(manager, turns=4)
    keep(database)

    def other() -> None:
        for turn in range(2):
            with opened("s", ttl) as manager:
                windowed(manager)(shown(f"other {turn}", turn))

    for number in itertools.count(1):
        put_back(database)
        interruption = Interruption()
        with MongoClient(server.uri, event_listeners=[interruption]) as client:
            with opened("s", 1, client=client) as manager:
                agent = windowed(manager)
                interruption.arm("succeeded", number, other)
                agent("hello")
            assert interruption.error is None
            done = len(interruption.commands) < number
        assert_parts_outlive(database)
        if done:
            return


@pytest.mark.slow
def test_a_segment_that_mongodb_removes_before_it_is_adopted_is_made_again(
    server: Any, database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    for number in itertools.count(1):
        session_id = f"{number}"
        with opened(session_id, **NEVER) as manager:
            agent = windowed(manager)
            for n in range(6):
                agent(f"prompt {n}")
        found = document(database, session_id)
        key = {"session": session_id, "incarnation": found["incarnation"], "agent": "assistant", "first": 0}
        left = found["agents"]["assistant"]["messages"][:4]
        database[HISTORY].insert_one({"_id": key, "count": 4, "edits": 0, "messages": left, "expires_at": utc_now()})
        interruption = Interruption()
        with MongoClient(server.uri, event_listeners=[interruption]) as client:
            with opened(session_id, client=client) as manager:
                agent = windowed(manager)
                interruption.arm(
                    "started", number, lambda: database[HISTORY].delete_many({"expires_at": {"$lt": utc_now()}})
                )
                agent("hello")
            assert interruption.error is None
            done = len(interruption.commands) < number
        assert_parts_outlive(database, session_id)
        assert len(stored(database, session_id).messages) == 14
        if done:
            return


@pytest.mark.slow
def test_after_any_sequence_of_processes_with_any_ttl_no_live_session_loses_a_part(
    database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    chance = random.Random(7)
    expected: list[str] = []
    for step in range(60):
        ttl = chance.choice([None, 1, 10, 100])
        with opened("s", ttl) as manager:
            before = document(database).get("expires_at") if step else None
            agent = windowed(manager)
            if before is not None and before <= utc_now():
                expected.clear()
            assert said(agent.messages) == expected[-4:], step
            agent(shown(f"{step}", step))
            expected += [f"{step}*", f"Re: {step}"]
        assert_parts_outlive(database)
        let_pass(database, chance.choice([0.1, 0.5, 0.9, 1.1, 5, 9]))
        assert_parts_outlive(database)


@pytest.mark.slow
def test_indexes_that_let_mongodb_remove_what_has_expired(
    database: Database[Any], opened: Callable[..., MongoDBSessionManager]
) -> None:
    with ExitStack() as stack:
        converse(stack.enter_context(opened()))
    for name in (SESSIONS, *PARTS):
        index = database[name].index_information()["expires_at_ttl"]
        assert index["key"] == [("expires_at", 1)]
        assert index["expireAfterSeconds"] == 0


# --- a new agent, and two writers at once


@both_durabilities
@pytest.mark.parametrize(
    ("theirs", "mine", "hours_ago"),
    [(1, None, 0), (1, 1, 0.95), (1, 10, 0)],
    ids=["none where there was one", "the same, and parts that are to be moved on", "a longer one"],
)
def test_a_new_agent_is_stored_though_the_expiry_of_its_session_is_to_be_seen_to_first(
    opened: Callable[..., MongoDBSessionManager],
    database: Database[Any],
    durability: str,
    theirs: float,
    mine: float | None,
    hours_ago: float,
) -> None:
    with opened(ttl_hours=theirs) as manager:
        talker(manager, agent_id="old")("hi")
    let_pass(database, hours_ago)
    if hours_ago:
        database[SESSIONS].update_one({}, {"$set": {"parts_expire_at": utc_now() + timedelta(hours=1)}})

    with opened(ttl_hours=mine, durability=durability) as manager:
        talker(manager, agent_id="new")("hello")

    assert said(document(database)["agents"]["new"]["messages"]) == ["hello", "Re: hello"]


@both_durabilities
def test_a_new_agent_that_met_a_lease_is_stored_when_the_lease_has_ended(
    server: Any, opened: Callable[..., MongoDBSessionManager], database: Database[Any], durability: str
) -> None:
    gate = Gate()
    slow: MongoClient[Any]
    with (
        MongoClient(server.uri, event_listeners=[gate]) as slow,
        opened() as holder,
        opened(client=slow, durability=durability) as manager,
        ThreadPoolExecutor(1) as threads,
    ):
        talker(holder, agent_id="old")("hi")
        agent = talker(manager, agent_id="new")
        with gate.holding("update") as held:
            with holder.lease(30):
                answer = threads.submit(agent, "hello")
                held.wait()  # It was refused, and has not yet read why.
            held.released.set()
            answer.result()

    assert said(document(database)["agents"]["new"]["messages"]) == ["hello", "Re: hello"]


def test_a_blob_lives_as_long_as_its_session_though_another_writer_moves_parts_on_while_it_is_stored(
    server: Any, opened: Callable[..., MongoDBSessionManager], database: Database[Any]
) -> None:
    one_gate, other_gate = Gate(), Gate()
    one_client: MongoClient[Any]
    other_client: MongoClient[Any]
    with (
        MongoClient(server.uri, event_listeners=[one_gate]) as one_client,
        MongoClient(server.uri, event_listeners=[other_gate]) as other_client,
        opened(client=one_client) as one,
        opened(client=other_client) as other,
        ThreadPoolExecutor(2) as threads,
    ):
        first, second = talker(one, agent_id="one"), talker(other, agent_id="other")
        first("hi")
        second("hi")
        for manager in (one, other):
            manager.flush()
        let_pass(database, 9.99)
        database[SESSIONS].update_one({}, {"$set": {"parts_expire_at": utc_now() + timedelta(hours=1)}})
        with one_gate.holding("find") as decided, other_gate.holding("find") as stored_and_read:
            # One has read that it must move on what belongs to the session. Meanwhile the other stores a blob, and
            # reads until when such things are kept: until soon.
            moving = threads.submit(first, "This moves it on.")
            decided.wait()
            storing = threads.submit(second, shown("look", 3))
            stored_and_read.wait()
            decided.released.set()
            moving.result()
            stored_and_read.released.set()
            storing.result()

    promised = document(database)["parts_expire_at"]
    for name in (FILES, "sessions_blobs.chunks"):
        (found,) = database[name].find()
        assert found["expires_at"] >= promised, name
