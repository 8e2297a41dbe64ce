"""Sessions that end by themselves: when, what goes with them, and that a live one never loses a part."""

import asyncio
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType
from support.application import Application
from support.blobs import THRESHOLD, said, shown, talker
from support.gates import Gate
from support.histories import HISTORY, NEVER, SESSIONS, SMALL, by_hand, interruptions, stored
from support.killed import crashes
from support.snapshots import keep, put_back
from support.waiting import eventually
from support.wire_proxy import Cut

from mongodb_session_manager import (
    MessageNotFoundError,
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    SessionMetadataCache,
    SessionNotFoundError,
)
from mongodb_session_manager.mongodb_session_repository import MongoDBSessionRepository

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
def app(applications: Callable[..., Application]) -> Application:
    """A process whose managers archive and make blobs early."""
    return applications(**SMALL, blob_threshold_bytes=THRESHOLD, index_messages=True, ttl_hours=10)


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def repository(app: Application, ttl_hours: float | None, client: Any = None) -> MongoDBSessionRepository:
    return MongoDBSessionRepository(
        client=client or app.client, database_name=app.database.name, collection_name=SESSIONS, ttl_hours=ttl_hours
    )


def change(app: Application, **fields: Any) -> None:
    """Change fields of the session document behind the library's back."""
    app.database[SESSIONS].update_one({"_id": "s"}, {"$set": fields})


def let_pass(app: Application, hours: float, session_id: str = "s") -> None:
    """Let so much time pass for a session and its parts: what is stored of it moves into the past."""
    back, database = timedelta(hours=hours), app.database
    incarnation = app.session(session_id)["incarnation"]

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


def parts(app: Application) -> list[dict[str, Any]]:
    return [found for name in PARTS for found in app.database[name].find({}, {"data": 0, "messages": 0})]


def assert_parts_outlive(app: Application, session_id: str = "s") -> None:
    """What must be true at every moment: no part goes before it was promised to, and no promise before the session."""
    for session in app.database[SESSIONS].find({"_id": session_id}):
        promised = session.get("parts_expire_at", FOREVER)
        assert promised >= session.get("expires_at", FOREVER), "the session may outlive its parts"
        assert ("ttl_hours" in session) == ("expires_at" in session)
        for name, mine in owned(app.database, session["incarnation"]).items():
            for part in app.database[name].find(mine):
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


def begin(app: Application, session_id: str = "s", turns: int = 6, **options: Any) -> None:
    with app.manager(session_id, **options) as manager:
        converse(manager, turns)


def say(app: Application, prompt: Any, **options: Any) -> None:
    """Take one turn in a process of its own."""
    with app.manager(**options) as manager:
        windowed(manager)(prompt)


def windowed(manager: MongoDBSessionManager) -> Any:
    return talker(manager, conversation_manager=SlidingWindowConversationManager(window_size=4))


# --- the parameter --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), 10**9])
def test_a_ttl_that_is_no_time_is_refused_everywhere(app: Application, wrong: Any) -> None:
    for make in (
        lambda: MongoDBSessionManager("s", client=app.client, ttl_hours=wrong),
        lambda: MongoDBSessionManagerFactory(client=app.client, ttl_hours=wrong),
        lambda: MongoDBSessionRepository(client=app.client, ttl_hours=wrong),
    ):
        with pytest.raises(ValueError, match="ttl_hours"):
            make()


@pytest.mark.parametrize("wrong", ["1", True, timedelta(hours=1)])
def test_a_ttl_that_is_no_number_is_refused(app: Application, wrong: Any) -> None:
    with pytest.raises(TypeError, match="ttl_hours"):
        MongoDBSessionManager("s", client=app.client, ttl_hours=wrong)


def test_a_factory_gives_its_ttl_to_its_managers_and_their_repository(app: Application) -> None:
    with app.factory(ttl_hours=10) as factory:
        one, other = factory.create_session_manager("one"), factory.create_session_manager("other", ttl_hours=None)
        one.update_metadata({"a": 1})
        other.update_metadata({"a": 1})
        one.session_repository.update_metadata("one", {"b": 1})
        other.session_repository.update_metadata("other", {"b": 1})
    assert "expires_at" in app.session("one")
    assert "expires_at" not in app.session("other")


# --- activity -------------------------------------------------------------------------------------------------------


@both_durabilities
def test_a_ttl_costs_no_command(app: Application, durability: str) -> None:
    sent = {}
    for ttl_hours in (None, 10):
        # New, so that no index is made for one of them only.
        app.manager("first", ttl_hours=ttl_hours).update_metadata({"a": 1})
        app.recorder.clear()
        options: dict[str, Any] = {"ttl_hours": ttl_hours, "durability": durability, "index_messages": False}
        for _ in range(2):
            with app.manager(f"s {ttl_hours}", **options) as manager:
                talker(manager)("hello")
        sent[ttl_hours] = app.recorder.names
    assert sent[10] == sent[None]


def test_a_session_expires_one_ttl_after_its_last_activity(app: Application) -> None:
    agent = talker(app.manager())
    new = app.session()
    agent("hello")
    used = app.session()
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
def test_every_write_of_a_repository_is_an_activity(app: Application, write: str) -> None:
    begin(app)
    let_pass(app, 9)
    WRITES[write](repository(app, 10))
    found = app.session()
    assert found["expires_at"] == found["updated_at"] + timedelta(hours=10)
    assert_parts_outlive(app)


@pytest.mark.slow
def test_a_cache_of_metadata_shows_nothing_of_a_session_past_its_time(app: Application) -> None:
    with app.factory(
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
def test_a_session_past_its_time_counts_as_absent(app: Application) -> None:
    with app.manager() as manager:
        converse(manager)
        manager.add_feedback({"rating": "up"})
    let_pass(app, 10)
    found = repository(app, 10)
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
    reader = app.manager()
    assert reader.list_agents() == []
    assert reader.get_message_count("assistant") == 0
    before = app.session()
    for write in WRITES.values():
        with pytest.raises(SessionNotFoundError):
            write(found)
        with pytest.raises(SessionNotFoundError):
            write(repository(app, None))
    assert app.session() == before


@pytest.mark.topology
def test_what_a_manager_writes_after_the_end_of_its_session_is_refused_and_brings_nothing_back(
    app: Application,
) -> None:
    manager = app.manager(index_messages=False)
    agent = talker(manager)
    agent("hello")
    let_pass(app, 10)
    before = app.session()
    with pytest.raises(SessionNotFoundError, match="expired"):
        manager.update_metadata({"a": 1})
    with pytest.raises(Exception, match="expired"):
        agent("still there?")
    with pytest.raises(SessionNotFoundError):
        manager.lease(5).__enter__()
    with pytest.raises(SessionNotFoundError):
        manager.close()
    assert app.session() == before


@both_durabilities
def test_a_turn_after_the_end_is_refused_though_the_parts_of_the_session_are_kept_for_longer(
    app: Application, durability: str
) -> None:
    manager = app.manager(index_messages=False, durability=durability)
    agent = talker(manager)
    agent("hello")
    change(app, expires_at=utc_now())
    before = app.session()
    with pytest.raises(Exception, match="expired"):
        agent("still there?")
    with pytest.raises(SessionNotFoundError):
        manager.close()
    assert app.session() == before


@pytest.mark.slow
@pytest.mark.topology
@both_durabilities
def test_an_id_that_is_resumed_after_the_end_is_a_new_session_and_nothing_is_left_of_the_old(
    app: Application, durability: str
) -> None:
    late = app.manager(durability=durability)
    converse(late, images=1).state.set("color", "red")
    late.update_metadata({"a": 1})
    old = app.session()
    let_pass(app, 10)
    manager = app.manager(durability=durability)
    agent = windowed(manager)
    assert agent.messages == []
    assert agent.state.get() == {}
    assert manager.get_metadata() == {"metadata": {}}
    new = app.session()
    assert new["incarnation"] != old["incarnation"]
    assert new["expires_at"] > utc_now()
    assert parts(app) == []
    with pytest.raises(SessionNotFoundError):
        late.update_metadata({"late": True})
    agent(shown("a new life", 1))
    assert said(windowed(app.manager()).messages) == ["a new life*", "Re: a new life"]
    assert_parts_outlive(app)


@pytest.mark.slow
@pytest.mark.topology
def test_an_expired_session_is_created_anew_by_a_repository_and_deleted_like_an_absent_one(app: Application) -> None:
    found = repository(app, 10)
    begin(app)
    let_pass(app, 10)
    # Its times are the caller's; what it lives from is now.
    old = Session("s", SessionType.AGENT, created_at="2020-01-01T00:00:00Z", updated_at="2020-01-01T00:00:00Z")
    found.create_session(old)
    assert found.session_exists("s")
    assert app.session()["agents"] == {}
    assert parts(app) == []
    let_pass(app, 10)
    with pytest.raises(SessionNotFoundError):
        found.delete_session("s")
    assert app.database[SESSIONS].find_one() is None


@pytest.mark.slow
def test_of_two_that_resume_an_expired_session_at_once_both_get_the_same_new_one(app: Application) -> None:
    begin(app)
    for client, interruption in interruptions(app.uri):
        let_pass(app, 10)
        first, other = app.manager(client=client), app.manager()
        interruption.at_its_command(lambda other=other: other.update_metadata({"other": True}))  # type: ignore[misc]
        first.update_metadata({"first": True})
        if not interruption.acted:
            other.update_metadata({"other": True})
        assert app.session()["metadata"] == {"first": True, "other": True}, interruption.number
        assert parts(app) == []


@pytest.mark.slow
@pytest.mark.topology
def test_mongodb_removes_a_session_and_all_its_parts(app: Application) -> None:
    with app.manager() as manager, app.manager("kept") as other, app.manager("endless", ttl_hours=None) as third:
        for each in (manager, other, third):
            converse(each)
    kept = {name: app.database[name].count_documents({}) * 2 // 3 for name in PARTS}
    let_pass(app, 10)
    with monitor(app.database.client, ttlMonitorEnabled=True):
        # The session document goes first; its parts wait for their own time.
        eventually(lambda: app.database[SESSIONS].find_one({"_id": "s"}) is None)
        assert {name: app.database[name].count_documents({}) for name in PARTS} == {
            name: count * 3 // 2 for name, count in kept.items()
        }
        for name in PARTS:
            ours = {"expires_at": {"$lt": utc_now() + timedelta(hours=10.5)}}
            app.database[name].update_many(ours, {"$set": {"expires_at": utc_now()}})
        eventually(lambda: {name: app.database[name].count_documents({}) for name in PARTS} == kept)
    assert (
        said(windowed(app.manager("kept")).messages)
        == said(windowed(app.manager("endless", ttl_hours=None)).messages)
        != []
    )


@pytest.mark.slow
@pytest.mark.topology
def test_a_resume_after_the_end_does_not_need_the_parts_that_are_gone(app: Application) -> None:
    begin(app)
    let_pass(app, 10)
    for name in PARTS:
        app.database[name].delete_many({})
    with pytest.raises(SessionNotFoundError, match="expired"):
        repository(app, 10).create_agent("s", SessionAgent("assistant", {}, {}))
    with pytest.raises(SessionNotFoundError, match="expired"):
        repository(app, 10).update_agent("s", SessionAgent("assistant", {}, {}))
    assert windowed(app.manager()).messages == []


@pytest.mark.slow
@pytest.mark.topology
@pytest.mark.parametrize("again", ["create_session", "open"])
def test_a_new_session_in_the_place_of_an_expired_one_is_there_once_though_its_answer_was_lost(
    proxies: Any, app: Application, again: str
) -> None:
    begin(app)
    let_pass(app, 10)
    proxy = proxies()
    cut_off = app.new_client(proxy.uri, retryWrites=False)
    proxy.cut(Cut("update", "before its answer arrives"))
    if again == "open":
        app.manager(client=cut_off).update_metadata({"new": True})
    else:
        repository(app, 10, cut_off).create_session(Session("s", SessionType.AGENT))
    assert proxy.cut_commands == ["update"]
    assert app.session()["agents"] == {}
    assert parts(app) == []


@pytest.mark.slow
def test_an_expired_session_that_mongodb_removes_while_it_is_created_anew_is_created(app: Application) -> None:
    for client, interruption in interruptions(app.uri):
        with app.manager() as manager:
            manager.update_metadata({"a": 1})
        let_pass(app, 10)
        found = repository(app, 10, client)
        interruption.at_its_command(lambda: app.database[SESSIONS].delete_many({"expires_at": {"$lt": utc_now()}}))
        found.create_session(Session("s", SessionType.AGENT))
        assert app.session()["metadata"] == {}
        found.delete_session("s")


@pytest.mark.slow
def test_nobody_brings_a_session_back_that_ends_while_its_expiry_is_taken_away(app: Application) -> None:
    for client, interruption in interruptions(app.uri):
        session_id = f"{interruption.number}"
        begin(app, session_id)

        def end(session_id: str = session_id) -> None:
            let_pass(app, 30, session_id)
            for name in PARTS:
                app.database[name].delete_many({"expires_at": {"$lt": utc_now()}})

        manager = app.manager(session_id, ttl_hours=None, client=client)
        manager.list_agents()
        interruption.at_its_command(end)
        try:
            manager.update_metadata({"a": 1})
        except SessionNotFoundError:
            assert "a" not in app.session(session_id)["metadata"]
            assert "expires_at" in app.session(session_id)
        else:
            assert len(repository(app, None).list_messages(session_id, "assistant")) in (12, 0)
    assert interruption.number > 6


@pytest.mark.parametrize("foreign", ["2030-01-01", 1_893_456_000])
def test_an_expires_at_of_somebody_elses_that_is_no_date_ends_nothing(app: Application, foreign: Any) -> None:
    with app.manager(ttl_hours=None) as manager:
        talker(manager)("hello")
    change(app, expires_at=foreign)
    with app.manager(ttl_hours=None) as manager:
        talker(manager)("again")
    assert len(app.session()["agents"]["assistant"]["messages"]) == 4
    assert app.session()["expires_at"] == foreign


def test_an_expires_at_of_the_applications_own_is_left_to_it(app: Application) -> None:
    with app.manager(ttl_hours=None) as manager:
        talker(manager)("hello")
    own = datetime(2100, 1, 1, tzinfo=timezone.utc)
    change(app, expires_at=own)
    with app.manager(ttl_hours=None) as manager:
        talker(manager)("again")
    assert app.session()["expires_at"] == own


def test_what_could_not_be_stored_because_the_session_has_ended_is_told_once(app: Application) -> None:
    factory = MongoDBSessionManagerFactory(app.uri, app.database.name, SESSIONS, ttl_hours=10, durability="turn")
    manager = factory.create_session_manager("s")
    agent = talker(manager)
    agent("hello")
    let_pass(app, 10)
    with pytest.raises(Exception, match="expired"):
        agent("again")
    with pytest.raises(SessionNotFoundError):
        factory.close()
    factory.close()
    assert factory.closed


def test_leaving_with_after_the_end_of_a_session_closes_the_manager(app: Application) -> None:
    def expire(manager: MongoDBSessionManager) -> None:
        agent = talker(manager)
        agent("hello")
        let_pass(app, 10)
        with pytest.raises(Exception, match="expired"):
            agent("again")

    def make() -> MongoDBSessionManager:
        return MongoDBSessionManager("s", app.uri, app.database.name, SESSIONS, ttl_hours=10)

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
def test_a_write_that_is_refused_for_another_reason_leaves_the_expiry_as_it_is(app: Application) -> None:
    begin(app)
    before = app.session()
    with pytest.raises(MessageNotFoundError):
        repository(app, None).update_message("s", "assistant", SessionMessage(by_hand("?"), 99))
    with app.manager(ttl_hours=None) as manager, manager.lease(1):
        pass
    assert app.session()["expires_at"] == before["expires_at"]


# --- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_parts_expire_about_one_ttl_after_their_session(app: Application) -> None:
    with app.manager() as manager:
        converse(manager)
        expires_at = app.session()["expires_at"]
    found = parts(app)
    assert {name for name in PARTS if app.database[name].count_documents({})} == set(PARTS)
    for part in found:
        assert timedelta(hours=9.9) < part["expires_at"] - expires_at < timedelta(hours=10.1)
    assert_parts_outlive(app)


@pytest.mark.slow
@pytest.mark.topology
@both_durabilities
def test_parts_move_on_when_less_than_one_ttl_is_left_and_only_then(app: Application, durability: str) -> None:
    begin(app, durability=durability)
    for hours, moved in ((8.5, 0), (3, 4), (5, 0), (8, 4)):
        let_pass(app, hours)
        with app.manager(durability=durability) as manager:
            agent = windowed(manager)
            app.recorder.clear()
            agent("hello")
            many = [c for c in app.recorder.commands.named("update") if c.command["updates"][0].get("multi")]
            assert len(many) == moved, hours
            # A turn that is far from it sends what it always sends.
            if not moved:
                assert set(app.recorder.names) <= {"update", "find", "insert"}
        assert_parts_outlive(app)
    assert len(stored(app.database).messages) == 20


@pytest.mark.slow
def test_a_writer_with_a_longer_ttl_takes_the_parts_along(app: Application) -> None:
    begin(app, ttl_hours=1)
    say(app, "hello", ttl_hours=100)
    assert app.session()["expires_at"] > utc_now() + timedelta(hours=99)
    assert_parts_outlive(app)
    say(app, "hello", ttl_hours=1)
    # It ends sooner now, and its parts are kept until they would have gone.
    assert app.session()["expires_at"] < utc_now() + timedelta(hours=2)
    assert_parts_outlive(app)
    let_pass(app, 1)
    assert windowed(app.manager(ttl_hours=1)).messages == []


@pytest.mark.slow
def test_a_session_without_a_ttl_gets_one_at_its_next_activity_and_so_do_its_parts(app: Application) -> None:
    begin(app, ttl_hours=None)
    assert not any("expires_at" in part for part in parts(app))
    assert "expires_at" not in app.session()
    say(app, "hello")
    assert app.session()["expires_at"] > utc_now()
    assert all("expires_at" in part for part in parts(app))
    assert_parts_outlive(app)


def test_a_ttl_that_came_and_went_before_the_parts_had_any_expiry_is_gone(app: Application) -> None:
    begin(app, ttl_hours=None)
    repository(app, 10).update_metadata("s", {"a": 1})
    assert "expires_at" in app.session()
    repository(app, None).update_metadata("s", {"b": 1})
    assert "expires_at" not in app.session()
    assert_parts_outlive(app)


@pytest.mark.slow
@pytest.mark.topology
@both_durabilities
def test_a_session_loses_its_ttl_at_its_next_activity_and_keeps_its_parts(app: Application, durability: str) -> None:
    begin(app)
    say(app, shown("hello", 7), ttl_hours=None, durability=durability)
    assert "expires_at" not in app.session()
    assert_parts_outlive(app)
    let_pass(app, 10**4)
    assert_parts_outlive(app)
    with app.manager(ttl_hours=None) as manager:
        assert said(windowed(manager).messages)[-1] == "Re: hello"


def two_turns_of_another(app: Application, ttl_hours: float | None) -> None:
    for turn in range(2):
        say(app, shown(f"other {turn}", turn), ttl_hours=ttl_hours)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ttl", "other_ttl"), [(10, 10), (10, None), (None, 10), (10, 1), (1, 100), (100, 10), (None, None)]
)
@pytest.mark.parametrize("moment", ["started", "succeeded"])
def test_whatever_another_process_does_between_two_commands_no_live_session_loses_a_part(
    app: Application, ttl: float | None, other_ttl: float | None, moment: str
) -> None:
    """One takes a turn with an image and archives; another does the same, with another ttl, at any moment of that."""
    begin(app, turns=4)
    # Little is left, so that whoever writes next moves the parts on.
    let_pass(app, 9.5)
    keep(app.database)

    for client, interruption in interruptions(app.uri, moment):
        put_back(app.database)
        with app.manager(ttl_hours=ttl, client=client) as manager:
            agent = windowed(manager)
            interruption.at_its_command(lambda: two_turns_of_another(app, other_ttl))
            agent(shown("first", 1))
            agent(shown("again", 1))
        assert_parts_outlive(app)
        with app.manager(ttl_hours=ttl) as manager:
            windowed(manager)
    assert interruption.number > 8


@pytest.mark.slow
def test_a_process_killed_at_any_command_while_it_moves_parts_on_loses_and_leaves_nothing(app: Application) -> None:
    begin(app, index_messages=False)
    # The session has half an hour left, and its parts an hour.
    now = utc_now()
    change(app, expires_at=now + timedelta(hours=0.5))
    change(app, parts_expire_at=now + timedelta(hours=1))
    for name in PARTS:
        app.database[name].update_many({}, {"$set": {"expires_at": now + timedelta(hours=1)}})
    keep(app.database)
    killed = []
    for crash in crashes(app.uri, app.database.name, "a turn that moves parts on"):
        killed.append(crash.command)
        assert_parts_outlive(app)
        with app.manager() as manager:
            agent = windowed(manager)
            heard = len(stored(app.database).messages)
            assert heard in ((14,) if not crash.killed else (12, 13, 14)), crash
            agent(shown("go on", 9))
        assert_parts_outlive(app)
        assert said(windowed(app.manager()).messages)[-2:] == ["go on*", "Re: go on"]
    # Twice each: two collections of blobs and one of segments, what says so before and after, and the commits.
    assert killed.count("update") >= 2 * (3 + 2 + 2)


@pytest.mark.slow
@pytest.mark.parametrize("ttl", [None, 100])
def test_a_blob_that_is_stored_while_older_ones_get_their_expiry_is_kept_as_long_as_its_session(
    app: Application, ttl: float | None
) -> None:
    begin(app, turns=4, ttl_hours=None)
    keep(app.database)

    for client, interruption in interruptions(app.uri, "succeeded"):
        put_back(app.database)
        with app.manager(ttl_hours=1, client=client) as manager:
            agent = windowed(manager)
            interruption.at_its_command(lambda: two_turns_of_another(app, ttl))
            agent("hello")
        assert_parts_outlive(app)


@pytest.mark.slow
def test_a_segment_that_mongodb_removes_before_it_is_adopted_is_made_again(app: Application) -> None:
    for client, interruption in interruptions(app.uri):
        session_id = f"{interruption.number}"
        with app.manager(session_id, **NEVER) as manager:
            agent = windowed(manager)
            for n in range(6):
                agent(f"prompt {n}")
        found = app.session(session_id)
        key = {"session": session_id, "incarnation": found["incarnation"], "agent": "assistant", "first": 0}
        left = found["agents"]["assistant"]["messages"][:4]
        app.database[HISTORY].insert_one(
            {"_id": key, "count": 4, "edits": 0, "messages": left, "expires_at": utc_now()}
        )
        with app.manager(session_id, client=client) as manager:
            agent = windowed(manager)
            interruption.at_its_command(lambda: app.database[HISTORY].delete_many({"expires_at": {"$lt": utc_now()}}))
            agent("hello")
        assert_parts_outlive(app, session_id)
        assert len(stored(app.database, session_id).messages) == 14


@pytest.mark.slow
def test_after_any_sequence_of_processes_with_any_ttl_no_live_session_loses_a_part(app: Application) -> None:
    chance = random.Random(7)
    expected: list[str] = []
    for step in range(60):
        ttl = chance.choice([None, 1, 10, 100])
        with app.manager("s", ttl_hours=ttl) as manager:
            before = app.session().get("expires_at") if step else None
            agent = windowed(manager)
            if before is not None and before <= utc_now():
                expected.clear()
            assert said(agent.messages) == expected[-4:], step
            agent(shown(f"{step}", step))
            expected += [f"{step}*", f"Re: {step}"]
        assert_parts_outlive(app)
        let_pass(app, chance.choice([0.1, 0.5, 0.9, 1.1, 5, 9]))
        assert_parts_outlive(app)


@pytest.mark.slow
def test_indexes_that_let_mongodb_remove_what_has_expired(app: Application) -> None:
    converse(app.manager())
    for name in (SESSIONS, *PARTS):
        index = app.database[name].index_information()["expires_at_ttl"]
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
    app: Application, durability: str, theirs: float, mine: float | None, hours_ago: float
) -> None:
    with app.manager(ttl_hours=theirs) as manager:
        talker(manager, agent_id="old")("hi")
    let_pass(app, hours_ago)
    if hours_ago:
        change(app, parts_expire_at=utc_now() + timedelta(hours=1))

    with app.manager(ttl_hours=mine, durability=durability) as manager:
        talker(manager, agent_id="new")("hello")

    assert said(app.session()["agents"]["new"]["messages"]) == ["hello", "Re: hello"]


@both_durabilities
def test_a_new_agent_that_met_a_lease_is_stored_when_the_lease_has_ended(app: Application, durability: str) -> None:
    gate = Gate()
    slow = app.new_client(event_listeners=[gate])
    holder, manager = app.manager(), app.manager(client=slow, durability=durability)
    with ThreadPoolExecutor(1) as threads:
        talker(holder, agent_id="old")("hi")
        agent = talker(manager, agent_id="new")
        with gate.holding("update") as held:
            with holder.lease(30):
                answer = threads.submit(agent, "hello")
                held.wait()  # It was refused, and has not yet read why.
            held.released.set()
            answer.result()

    assert said(app.session()["agents"]["new"]["messages"]) == ["hello", "Re: hello"]


def test_a_blob_lives_as_long_as_its_session_though_another_writer_moves_parts_on_while_it_is_stored(
    app: Application,
) -> None:
    one_gate, other_gate = Gate(), Gate()
    one, other = (app.manager(client=app.new_client(event_listeners=[gate])) for gate in (one_gate, other_gate))
    with ThreadPoolExecutor(2) as threads:
        first, second = talker(one, agent_id="one"), talker(other, agent_id="other")
        first("hi")
        second("hi")
        for manager in (one, other):
            manager.flush()
        let_pass(app, 9.99)
        change(app, parts_expire_at=utc_now() + timedelta(hours=1))
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

    promised = app.session()["parts_expire_at"]
    for name in (FILES, "sessions_blobs.chunks"):
        (found,) = app.database[name].find()
        assert found["expires_at"] >= promised, name
