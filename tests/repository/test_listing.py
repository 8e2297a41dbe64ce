"""Lists of sessions: every session once, by the filters that were given, with headers that cost little."""

import base64
import inspect
import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import bson
import pytest
from bson import ObjectId
from offline_model import ScriptedReply
from strands import Agent
from strands.agent.conversation_manager import SlidingWindowConversationManager
from support.application import Application
from support.commands import CommandRecorder, Commands
from support.repositories import a_message, a_session

from mongodb_session_manager import MongoDBSessionManagerFactory, SessionPage
from mongodb_session_manager import MongoDBSessionRepository as Repository
from mongodb_session_manager._model.documents import new_session
from mongodb_session_manager._model.limits import MAX_LISTED_SESSIONS, TITLE_CHARACTERS
from mongodb_session_manager._statements.session_listing import PageEnd, write_cursor
from mongodb_session_manager.errors import InvalidIdentifierError, UnstorableValueError

T0 = datetime(2026, 1, 1, tzinfo=timezone.utc)
SECOND = timedelta(seconds=1)
SOON: Any = {"archive_after_messages": 2, "archive_block": 2}

# Most make indexes of their own.
pytestmark = pytest.mark.new_database


FIELDS = ["user", "address.city"]


@pytest.fixture
def repository(app: Application) -> Repository:
    return Repository(
        client=app.client, database_name=app.database.name, collection_name="sessions", metadata_fields=FIELDS
    )


@pytest.fixture
def recorder(app: Application) -> CommandRecorder:
    return app.recorder


@pytest.fixture
def sessions(repository: Repository, app: Application) -> Any:
    """The collection, with its indexes."""
    return app.database.sessions


def session(session_id: str, seconds: float = 0, **fields: Any) -> dict[str, Any]:
    """A session document that began and changed so many seconds after T0."""
    moment = T0 + seconds * SECOND
    return {**new_session(session_id, "default", None, moment, moment), **fields}


def agent(*messages: Any, **fields: Any) -> dict[str, Any]:
    """An agent's record, with these messages: a role and its content."""
    stored = [{"message_id": n, "role": role, "content": content} for n, (role, content) in enumerate(messages)]
    return {"agent_data": {"agent_id": "a"}, "message_count": len(stored), "archived_count": 0, **fields} | {
        "messages": fields.get("messages", stored)
    }


def said(text: Any) -> tuple[str, Any]:
    return "user", [{"text": text}]


def ids(page: SessionPage) -> list[str]:
    return [header.session_id for header in page.sessions]


def all_pages(repository: Repository, **asked: Any) -> list[SessionPage]:
    pages = [repository.list_sessions(**asked)]
    while pages[-1].cursor is not None:
        pages.append(repository.list_sessions(**asked, cursor=pages[-1].cursor))
        assert len(pages) < 100, "the pages have no end"
    return pages


def listed(repository: Repository, **asked: Any) -> list[str]:
    return [session_id for page in all_pages(repository, **asked) for session_id in ids(page)]


def converse(app: Application, session_id: str, *prompts: Any, agent_id: str = "assistant", **options: Any) -> Agent:
    """Real turns; of a window of two messages the rest can be archived."""
    usage: Any = {"inputTokens": 7, "outputTokens": 10, "totalTokens": 17}
    replies = [ScriptedReply(text=f"Re: {n}", usage=usage) for n in range(len(prompts))]
    with app.manager(session_id, metadata_fields=FIELDS, **options) as manager:
        window = SlidingWindowConversationManager(window_size=2)
        talker = app.agent(manager, *replies, agent_id=agent_id, conversation_manager=window)
        for prompt in prompts:
            talker(prompt)
            manager.flush()
    return talker


# --- paging


@pytest.mark.slow
@pytest.mark.parametrize("sort_by", ["created_at", "updated_at"])
@pytest.mark.parametrize("newest_first", [True, False], ids=["newest first", "oldest first"])
@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_pages_show_every_session_once_in_order_however_many_share_a_time(
    repository: Repository, sessions: Any, sort_by: Any, newest_first: bool, limit: int
) -> None:
    documents = [session(f"s{n:02}", n // 5) for n in range(23)]
    sessions.insert_many(documents[::2] + documents[1::2])
    pages = all_pages(repository, sort_by=sort_by, newest_first=newest_first, limit=limit)
    expected = sorted((document["_id"] for document in documents), reverse=newest_first)
    assert [session_id for page in pages for session_id in ids(page)] == expected
    assert [len(page.sessions) for page in pages] == [limit] * (23 // limit) + ([23 % limit] if 23 % limit else [])


def test_sessions_that_begin_and_change_while_pages_are_read_neither_repeat_nor_hide_others(
    repository: Repository, sessions: Any
) -> None:
    documents = [session(f"s{n:02}", n // 3) for n in range(20)]
    sessions.insert_many(documents)
    seen: list[str] = []
    page = repository.list_sessions(limit=4)
    for turn in range(100):
        seen += ids(page)
        if page.cursor is None:
            break
        # Before, among and behind those that are still to come, and at the very time at which the page ended.
        sessions.insert_many([session(f"new{turn}-{seconds}", seconds) for seconds in (-1, 3, 999)])
        sessions.insert_one(session(f"zz{turn}", (page.sessions[-1].created_at - T0).total_seconds()))
        sessions.update_many({}, {"$set": {"updated_at": T0 + (1000 + turn) * SECOND}})
        sessions.delete_many({"_id": {"$in": seen[-2:]}})
        page = repository.list_sessions(limit=4, cursor=page.cursor)
    assert [session_id for session_id in seen if session_id.startswith("s")] == sorted(
        (document["_id"] for document in documents), reverse=True
    )
    assert len(set(seen)) == len(seen)


def test_by_its_last_change_a_session_moves_to_the_first_page_and_no_other_is_skipped(
    repository: Repository, sessions: Any
) -> None:
    sessions.insert_many([session(f"s{n}", n) for n in range(6)])
    first = repository.list_sessions(sort_by="updated_at", limit=2)
    repository.update_metadata("s1", {"touched": True})
    second = repository.list_sessions(sort_by="updated_at", limit=2, cursor=first.cursor)
    third = repository.list_sessions(sort_by="updated_at", limit=2, cursor=second.cursor)
    assert [ids(page) for page in (first, second, third)] == [["s5", "s4"], ["s3", "s2"], ["s0"]]
    assert third.cursor is None
    assert ids(repository.list_sessions(sort_by="updated_at", limit=1)) == ["s1"]


def test_a_page_is_one_command_and_two_where_sessions_share_a_time(
    repository: Repository, sessions: Any, recorder: CommandRecorder
) -> None:
    sessions.insert_many([session(f"s{n}", n) for n in range(5)] + [session(f"t{n}", 9) for n in range(5)])
    cursor = None
    for expected in (1, 2, 1):
        with recorder.recording() as commands:
            cursor = repository.list_sessions(limit=4, cursor=cursor).cursor
        assert commands.names == ["find"] * expected
    assert cursor is None


def test_there_is_nothing_to_list_in_an_empty_collection(repository: Repository) -> None:
    assert repository.list_sessions() == SessionPage([], None)


def test_a_page_has_twenty_sessions_unless_another_number_is_asked_for(repository: Repository, sessions: Any) -> None:
    sessions.insert_many([session(f"s{n:03}", n) for n in range(MAX_LISTED_SESSIONS + 1)])
    assert len(repository.list_sessions().sessions) == 20
    assert len(repository.list_sessions(limit=MAX_LISTED_SESSIONS).sessions) == MAX_LISTED_SESSIONS


# --- filters


@pytest.mark.slow
def test_each_filter_and_all_together_find_what_meets_them(repository: Repository, sessions: Any) -> None:
    sessions.insert_many(
        [
            session("a", 1, application_name="shop", metadata={"user": "alice", "address": {"city": "Bilbao"}}),
            session("b", 2, application_name="shop", session_type="chat", metadata={"user": "bob"}),
            session("c", 3, application_name="help", agent_ids=["x"], metadata={"user": ["alice", "bob"]}),
            session("d", 4, agent_ids=["x", "y"], updated_at=T0 + 9 * SECOND, metadata={"user": None}),
        ]
    )

    def found(**asked: Any) -> str:
        return "".join(ids(repository.list_sessions(newest_first=False, **asked)))

    assert found() == found(metadata={}) == "abcd"
    assert found(application_name="shop") == "ab"
    assert found(session_type="chat") == "b"
    assert found(metadata={"user": "alice"}) == "ac"
    assert found(metadata={"address.city": "Bilbao", "user": "alice"}) == "a"
    assert found(metadata={"address": {"city": "Bilbao"}}) == "a"
    assert found(metadata={"user": None}) == "d"
    assert found(agent_id="x") == "cd"
    assert found(agent_id="y") == "d"
    assert found(created_from=T0 + 2 * SECOND, created_before=T0 + 4 * SECOND) == "bc"
    assert found(updated_from=T0 + 3 * SECOND) == "cd"
    assert found(updated_before=T0 + 3 * SECOND) == "ab"
    assert found(updated_from=T0 + 9 * SECOND, agent_id="x", sort_by="updated_at") == "d"
    assert found(application_name="shop", session_type="chat", metadata={"user": "bob"}) == "b"
    assert found(application_name="shop", agent_id="x") == ""


def test_filters_hold_on_every_page(repository: Repository, sessions: Any) -> None:
    sessions.insert_many(
        [session(f"s{n:02}", n // 7, application_name=f"app{n % 2}", agent_ids=[f"agent{n % 3}"]) for n in range(60)]
    )
    asked: dict[str, Any] = {"application_name": "app1", "agent_id": "agent2", "created_from": T0 + 2 * SECOND}
    for sort_by in ("created_at", "updated_at"):
        expected = [f"s{n:02}" for n in range(14, 60) if n % 2 == 1 and n % 3 == 2]
        assert listed(repository, **asked, limit=2, newest_first=False, sort_by=sort_by) == expected


@pytest.mark.slow
@pytest.mark.parametrize("agent_id", ["support.v2", "100%", "%2E", "$feedbacks", "$x", "a b", "агент"])
def test_an_agent_is_found_whatever_its_name_in_newer_documents_and_in_older_ones(
    repository: Repository, app: Application, sessions: Any, agent_id: str
) -> None:
    converse(app, "newer", "Hello", agent_id=agent_id)
    converse(app, "older", "Hello", agent_id=agent_id)
    converse(app, "other", "Hello", agent_id="other")
    sessions.update_one({"_id": "older"}, {"$unset": {"agent_ids": "", "incarnation": ""}})
    page = repository.list_sessions(agent_id=agent_id, newest_first=False)
    assert ids(page) == ["newer", "older"]
    assert [header.agent_ids for header in page.sessions] == [[agent_id], [agent_id]]
    # An agent that joins an older session hides none of those that were there.
    converse(app, "older", "Hello", agent_id="second")
    assert sessions.find_one({"_id": "older"})["agent_ids"] == [agent_id, "second"]  # type: ignore[index]
    assert listed(repository, agent_id=agent_id, newest_first=False) == ["newer", "older"]
    assert listed(repository, agent_id="second") == ["older"]


HOSTILE: list[Any] = [
    {"$gt": ""},
    {"$ne": None},
    {"$exists": True},
    {"$in": ["alice"]},
    {"$regex": "."},
    re.compile("."),
    {"$where": "true"},
    ["$$ROOT"],
    "$metadata.user",
]


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_a_value_that_looks_like_an_operator_is_a_value(repository: Repository, sessions: Any, value: Any) -> None:
    sessions.insert_many([session("a", metadata={"user": "alice"}), session("b", metadata={"user": ""})])
    assert listed(repository, metadata={"user": value}) == []
    assert listed(repository, metadata={"address.city": value}) == []


def test_an_operator_that_was_stored_as_a_value_is_found_as_one(repository: Repository, sessions: Any) -> None:
    sessions.insert_many([session("a", metadata={"user": {"$gt": ""}}), session("b", metadata={"user": "bob"})])
    assert listed(repository, metadata={"user": {"$gt": ""}}) == ["a"]


NAIVE = datetime(2026, 1, 1)

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"metadata": ["user"]}, TypeError, "metadata must be a mapping"),
    ({"metadata": "user"}, TypeError, "metadata must be a mapping"),
    ({"metadata": {"$where": "1"}}, InvalidIdentifierError, r"'\$where'"),
    ({"metadata": {"a.$gt": 1}}, InvalidIdentifierError, "begins with"),
    ({"metadata": {"": 1}}, InvalidIdentifierError, "empty"),
    ({"metadata": {"a\0": 1}}, InvalidIdentifierError, "NUL"),
    ({"metadata": {1: 1}}, TypeError, "string"),
    ({"metadata": {"user": object()}}, UnstorableValueError, "metadata.user"),
    ({"metadata": {"user": "\ud800"}}, UnstorableValueError, "metadata.user"),
    ({"metadata": {"user": 2**70}}, UnstorableValueError, "metadata.user"),
    ({"application_name": {"$gt": ""}}, TypeError, "application_name must be a string, not dict"),
    ({"application_name": "\ud800"}, UnstorableValueError, "application_name"),
    ({"session_type": {"$ne": ""}}, TypeError, "session_type must be a string"),
    ({"agent_id": {"$gt": ""}}, TypeError, "agent_id must be a string"),
    ({"agent_id": ""}, InvalidIdentifierError, "agent_id is empty"),
    ({"agent_id": "a/b"}, InvalidIdentifierError, "slash"),
    ({"created_from": NAIVE}, ValueError, "created_from has no time zone"),
    ({"updated_before": NAIVE}, ValueError, "updated_before has no time zone"),
    ({"created_before": "2026-01-01"}, TypeError, "created_before must be a datetime, not str"),
    ({"updated_from": {"$gt": ""}}, TypeError, "updated_from must be a datetime"),
    ({"created_from": datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))}, ValueError, "created_from is out"),
    ({"updated_before": datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))}, ValueError, "updated_before is"),
    ({"sort_by": "title"}, ValueError, "sort_by must be 'created_at' or 'updated_at', not 'title'"),
    ({"sort_by": "$natural"}, ValueError, "sort_by"),
    ({"newest_first": 1}, TypeError, "newest_first must be a bool"),
    ({"limit": 0}, ValueError, "limit must be from 1 to 100, not 0"),
    ({"limit": MAX_LISTED_SESSIONS + 1}, ValueError, "limit"),
    ({"limit": True}, TypeError, "limit"),
    ({"limit": 2.0}, TypeError, "limit"),
    ({"limit": "20"}, TypeError, "limit"),
    ({"cursor": 7}, TypeError, "cursor must be a string"),
    ({"cursor": ""}, ValueError, "cursor is damaged"),
    ({"cursor": "nonsense"}, ValueError, "cursor is damaged"),
    ({"cursor": "ünsinn\0"}, ValueError, "cursor is damaged"),
    ({"cursor": "A" * 4001}, ValueError, "cursor is damaged"),
]


@pytest.mark.parametrize(("asked", "error", "message"), WRONG, ids=lambda value: repr(value)[:40])
def test_what_cannot_be_asked_for_is_refused_before_anything_is_sent(
    repository: Repository, recorder: CommandRecorder, asked: dict[str, Any], error: type[Exception], message: str
) -> None:
    with recorder.recording() as commands, pytest.raises(error, match=message):
        repository.list_sessions(**asked)
    assert not commands


def test_a_cursor_that_was_damaged_or_belongs_to_another_order_is_refused(
    repository: Repository, sessions: Any, recorder: CommandRecorder
) -> None:
    sessions.insert_many([session(f"s{n}", n) for n in range(3)])
    cursor = repository.list_sessions(limit=1).cursor
    assert cursor is not None
    with recorder.recording() as commands:
        for damaged in (cursor[1:], cursor[:-1], cursor[::-1], cursor + cursor, cursor.lower()):
            with pytest.raises(ValueError, match="cursor is damaged"):
                repository.list_sessions(limit=1, cursor=damaged)
        for other in ({"sort_by": "updated_at"}, {"newest_first": False}):
            with pytest.raises(ValueError, match="sort_by='created_at' and newest_first=True"):
                repository.list_sessions(cursor=cursor, **other)  # type: ignore[arg-type]
        for time, session_id, tied in ((T0, {"$gt": ""}, False), ({"$gt": 0}, "s", False), (T0, "s", 1)):
            forged = write_cursor(PageEnd("created_at", True, time, session_id, tied))  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="cursor is damaged"):
                repository.list_sessions(cursor=forged)
        for content in (b"", b"\0", bson.encode({}), bson.encode({"time": T0, "session_id": "s", "tied": False})):
            forged = base64.urlsafe_b64encode(content).decode()
            with pytest.raises(ValueError, match="cursor is damaged"):
                repository.list_sessions(cursor=forged)
    assert not commands
    assert ids(repository.list_sessions(limit=1, cursor=cursor)) == ["s1"]


def test_times_of_any_zone_mean_the_same_moment_to_the_millisecond(repository: Repository, sessions: Any) -> None:
    sessions.insert_one(session("s", 0.123))
    moment = (T0 + timedelta(milliseconds=123)).astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert listed(repository, created_from=moment) == ["s"]
    assert listed(repository, created_before=moment) == []
    assert listed(repository, created_from=moment + timedelta(microseconds=999)) == ["s"]
    assert listed(repository, created_from=moment + timedelta(milliseconds=1)) == []


# --- what is no session, or no longer one


def test_an_expired_session_is_not_listed_and_one_that_will_expire_is(repository: Repository, sessions: Any) -> None:
    now = datetime.now(timezone.utc)
    later = (now + timedelta(hours=1)).replace(microsecond=0)
    sessions.insert_many(
        [
            session("expired", 1, expires_at=now - timedelta(seconds=1)),
            session("long ago", 2, expires_at=T0),
            session("later", 3, expires_at=later),
            session("never", 4),
            session("none", 5, expires_at=None),
        ]
    )
    pages = all_pages(repository, limit=1)
    assert [(h.session_id, h.expires_at) for page in pages for h in page.sessions] == [
        ("none", None),
        ("never", None),
        ("later", later),
    ]
    assert listed(repository, sort_by="updated_at", agent_id=None) == ["none", "never", "later"]


def test_documents_that_are_no_sessions_are_passed_over(repository: Repository, sessions: Any) -> None:
    sessions.insert_many(
        [
            session("s"),
            {"_id": ObjectId(), "created_at": T0, "updated_at": T0},
            {"_id": "no times"},
            session("text as times", created_at="2026", updated_at="2026"),
            session("strange", agents=[1], agent_ids="a", feedbacks=7, metadata=[1], title=9),
            session("stranger", agents={"a": 1, "b": {"messages": [1, None, {"role": "user", "content": [3, {}]}]}}),
        ]
    )
    for newest_first in (True, False):
        assert set(listed(repository, newest_first=newest_first, limit=1)) == {"s", "strange", "stranger"}


# --- headers


@pytest.mark.slow
def test_a_header_counts_what_the_session_holds_archived_or_not(
    repository: Repository, app: Application, sessions: Any, recorder: CommandRecorder
) -> None:
    converse(app, "s", *"12345", application_name="shop", session_type="chat", **SOON)
    converse(app, "s", *"67", agent_id="support.v2")
    repository.update_metadata("s", {"user": "alice", "address.city": "Bilbao"})
    repository.add_feedback("s", {"rating": "up"})
    stored = sessions.find_one({"_id": "s"})
    assert stored is not None
    assert stored["agents"]["assistant"]["archived_count"] > 0
    with recorder.recording() as commands:
        (header,) = repository.list_sessions().sessions
    assert commands.names == ["find", "find"]
    assert commands.reply_bytes < 1_500
    assert header.session_id == "s"
    assert (header.application_name, header.session_type) == ("shop", "chat")
    read = repository.read_session("s")
    assert read is not None
    assert (header.created_at.isoformat(), header.updated_at.isoformat()) == (read.created_at, read.updated_at)
    assert header.created_at.utcoffset() == timedelta(0)
    assert header.agent_ids == ["assistant", "support.v2"]
    assert header.message_count == 14
    assert (header.input_tokens, header.output_tokens, header.total_tokens) == (49, 70, 119)
    assert header.feedback_count == 1
    assert header.metadata == {"user": "alice", "address": {"city": "Bilbao"}}
    assert (header.title, header.expires_at) == ("1", None)
    with pytest.raises(AttributeError):
        header.title = "other"  # type: ignore[misc]


def test_of_a_session_without_anything_everything_is_empty(repository: Repository) -> None:
    repository.create_session(a_session())
    (header,) = repository.list_sessions().sessions
    nothing = {"application_name": None, "title": None, "message_count": 0, "total_tokens": 0, "feedback_count": 0}
    assert header == replace(header, session_type="chat", agent_ids=[], metadata={}, **nothing)


def test_an_older_document_has_a_header_too(repository: Repository, sessions: Any) -> None:
    nested = {"message_id": 1, "message": {"role": "user", "content": [{"text": "  Good\n morning "}]}}
    sessions.insert_one(
        {
            "_id": "s",
            "created_at": T0,
            "updated_at": T0,
            "agents": {"a%2Eb": {"messages": [nested, nested]}, "c": {"agent_data": {"agent_id": "c"}}},
        }
    )
    (header,) = repository.list_sessions().sessions
    assert (header.session_id, header.session_type, header.title) == ("s", "default", "Good morning")
    assert (header.agent_ids, header.message_count, header.total_tokens) == (["a.b", "c"], 2, 0)


LONG = "The quick brown fox jumps over the lazy dog while seventeen sceptical badgers keep the minutes of it."

DIRECT_CALL = 'agent.tool.manage_metadata direct tool call.\nInput parameters: {"action": "set"}\n'

TITLES: list[tuple[str, dict[str, Any], str | None]] = [
    ("plain", {"a": agent(said("Hello"))}, "Hello"),
    ("a string", {"a": agent(("user", "Hello"))}, "Hello"),
    ("white space", {"a": agent(said(" \n\tHello,\r\n  you\u2003there \n"))}, "Hello, you there"),
    ("cut at a word", {"a": agent(said(LONG))}, LONG[: LONG.index(" keep")] + "…"),
    ("as long as may be", {"a": agent(said("x" * 80))}, "x" * 80),
    ("one word", {"a": agent(said("x" * 81))}, "x" * 79 + "…"),
    ("no spaces", {"a": agent(said("漢" * 5_000))}, "漢" * 79 + "…"),
    ("emoji", {"a": agent(said("👋" * 1_000))}, "👋" * 79 + "…"),
    ("cut among spaces", {"a": agent(said("Hi" + " " * 900 + "there"))}, "Hi…"),
    ("blank first", {"a": agent(said(" \n "), said("Hello"))}, "Hello"),
    ("an image first", {"a": agent(("user", [{"image": {}}, {"text": "What is it?"}]))}, "What is it?"),
    ("only an image", {"a": agent(("user", [{"image": {"format": "png"}}]))}, None),
    ("an image, then words", {"a": agent(("user", [{"image": {}}]), said("And?"))}, "And?"),
    ("a tool result", {"a": agent(("user", [{"toolResult": {"content": [{"text": "no"}]}}]))}, None),
    ("assistant first", {"a": agent(("assistant", [{"text": "Welcome"}]), said("Hello"))}, "Hello"),
    ("assistant only", {"a": agent(("assistant", [{"text": "Welcome"}]))}, None),
    ("empty content", {"a": agent(("user", []), ("user", None), ("user", ""))}, None),
    ("a direct tool call", {"a": agent(said(DIRECT_CALL), said("Hello"))}, "Hello"),
    ("only a direct tool call", {"a": agent(said(DIRECT_CALL))}, None),
    ("words about one", {"a": agent(said("agent.tool.x direct tool call?"))}, "agent.tool.x direct tool call?"),
    ("the third agent", {"a": agent(), "b": agent(("user", "")), "c": agent(said("B")), "d": agent(said("D"))}, "B"),
    ("lone surrogate", {"a": agent(said({"__encoded__": "str", "value": b"A\xed\xa0\x80B"}))}, "A\ufffdB"),
    ("much of it", {"a": agent(said({"__encoded__": "str", "value": b"\xed\xa0\x80" * 9_999}), said("B"))}, "B"),
    ("a blob", {"a": agent(said({"__encoded__": "text", "value": {"file": ObjectId(), "length": 9}}), said("B"))}, "B"),
    ("a tuple", {"a": agent(("user", {"__encoded__": "tuple", "value": [{"text": "Hello"}]}))}, "Hello"),
    ("strange markers", {"a": agent(said({"__encoded__": "str", "value": 7}), said({"__encoded__": "int"}))}, None),
    ("a dollar", {"a": agent(said("$$ROOT costs $5"))}, "$$ROOT costs $5"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("agents", "title"), [t[1:] for t in TITLES], ids=[t[0] for t in TITLES])
def test_the_title_is_the_beginning_of_what_the_user_wrote_first(
    repository: Repository, sessions: Any, agents: dict[str, Any], title: str | None
) -> None:
    sessions.insert_one(session("s", agents=agents))
    (header,) = repository.list_sessions().sessions
    assert header.title == title
    assert title is None or len(title) <= TITLE_CHARACTERS
    if set(agents) == {"a"}:  # Where it is archived instead, it is the same.
        stored = sessions.find_one_and_delete({"_id": "s"})
        first = {"session": "s", "incarnation": stored["incarnation"], "agent": "a", "first": 0}  # type: ignore[index]
        messages = agents["a"]["messages"]
        repository.database["sessions_history"].insert_one({"_id": first, "count": 9, "messages": messages})
        sessions.insert_one({**stored, "agents": {"a": agent(archived_count=9)}})  # type: ignore[dict-item]
        assert repository.list_sessions().sessions[0].title == title


@pytest.mark.parametrize("title", ["Holidays", "x" * 200, " as it is "])
def test_a_title_among_the_metadata_comes_first_as_it_is(
    repository: Repository, sessions: Any, recorder: CommandRecorder, title: str
) -> None:
    sessions.insert_one(session("s", metadata={"title": title}, agents={"a": agent(said("No"), archived_count=2)}))
    with recorder.recording() as commands:
        assert repository.list_sessions().sessions[0].title == title
    assert commands.names == ["find"]


@pytest.mark.parametrize("title", ["", " ", None, 7, ["x"], {"__encoded__": "str", "value": b"x"}])
def test_what_is_no_title_among_the_metadata_is_passed_over(repository: Repository, sessions: Any, title: Any) -> None:
    sessions.insert_one(session("s", metadata={"title": title}, agents={"a": agent(said("Hello"))}))
    assert repository.list_sessions().sessions[0].title == "Hello"


@pytest.mark.slow
def test_archived_beginnings_of_all_sessions_of_a_page_are_one_command(
    repository: Repository, app: Application, sessions: Any, recorder: CommandRecorder
) -> None:
    for number in range(4):
        converse(app, f"s{number}", f"First {number}", "Second", "Third", **SOON)
    converse(app, "short", "Only")
    assert sessions.count_documents({"agents.assistant.archived_count": {"$gt": 0}}) == 4
    with recorder.recording() as commands:
        page = repository.list_sessions(newest_first=False)
    assert [header.title for header in page.sessions] == ["First 0", "First 1", "First 2", "First 3", "Only"]
    assert [(command.name, command.collection) for command in commands] == [
        ("find", "sessions"),
        ("find", "sessions_history"),
    ]
    assert commands.reply_bytes < 4_000
    plan = explain(repository, commands[1:])
    assert "COLLSCAN" not in str(plan)
    assert plan["executionStats"]["totalDocsExamined"] == 4


def test_where_the_archived_beginning_has_no_words_later_ones_are_taken(repository: Repository, sessions: Any) -> None:
    incarnation = ObjectId()
    archived = agent(said("Later"), archived_count=1)
    sessions.insert_one(session("s", incarnation=incarnation, agents={"e": agent(), "a": archived}))
    first = {"session": "s", "incarnation": incarnation, "agent": "a", "first": 0}
    image = {"message_id": 0, "role": "user", "content": [{"image": {}}]}
    repository.database["sessions_history"].insert_one({"_id": first, "count": 1, "messages": [image]})
    assert repository.list_sessions().sessions[0].title == "Later"
    # Another life of the session is another session.
    sessions.update_one({"_id": "s"}, {"$set": {"incarnation": ObjectId()}})
    assert repository.list_sessions().sessions[0].title == "Later"


@pytest.mark.parametrize("options", [{}, SOON], ids=["embedded", "archived"])
def test_a_redacted_message_leaves_its_words_in_no_title(
    repository: Repository, app: Application, sessions: Any, options: Any
) -> None:
    converse(app, "s", "My card is 4000", "And", "so", "on", **options)
    archived = sessions.find_one({"_id": "s"})["agents"]["assistant"]["archived_count"]  # type: ignore[index]
    assert bool(archived) == bool(options)
    assert repository.list_sessions().sessions[0].title == "My card is 4000"
    repository.update_message("s", "assistant", a_message(0, "[removed]"))
    assert repository.list_sessions().sessions[0].title == "[removed]"
    app.nothing_at_rest("My card")


@pytest.mark.slow
def test_a_page_stays_small_however_long_the_texts_and_the_conversations_are(
    repository: Repository, sessions: Any, recorder: CommandRecorder
) -> None:
    words = "word " * 20_000
    sessions.insert_many([session(f"s{n}", n, agents={"a": agent(*[said(words)] * 20)}) for n in range(20)])
    with recorder.recording() as commands:
        assert repository.list_sessions().sessions[0].message_count == 20
    assert commands.names == ["find"]
    assert commands.reply_bytes < 20 * 1_000


# --- indexes


def explain(repository: Repository, commands: Commands) -> dict[str, Any]:
    """How the server carries out the one command."""
    (command,) = commands
    query = {k: v for k, v in command.command.items() if k in ("find", "filter", "projection", "sort", "limit")}
    found: dict[str, Any] = repository.database.command("explain", query, verbosity="executionStats")
    return found


SERVED: dict[str, dict[str, Any]] = {
    "all by created_at": {},
    "a range of created_at": {"created_from": T0 + 100 * SECOND, "created_before": T0 + 700 * SECOND},
    "all by updated_at": {"sort_by": "updated_at"},
    "a range of updated_at": {"sort_by": "updated_at", "updated_from": T0 + 100 * SECOND},
    "application_name": {"application_name": "app7"},
    "application_name and a range": {"application_name": "app7", "created_before": T0 + 700 * SECOND},
    "agent_id": {"agent_id": "agent7"},
    "a metadata field": {"metadata": {"user": "user7"}},
    "a nested metadata field": {"metadata": {"address.city": "city7"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("newest_first", [True, False], ids=["newest first", "oldest first"])
@pytest.mark.parametrize("combination", SERVED)
def test_the_documented_combinations_read_a_page_from_an_index_in_its_order(
    repository: Repository, sessions: Any, recorder: CommandRecorder, combination: str, newest_first: bool
) -> None:
    sessions.insert_many(
        [
            session(
                f"s{n:04}",
                n // 2,
                application_name=f"app{n // 2 % 10}",
                agent_ids=[f"agent{n // 2 % 10}", "all"],
                metadata={"user": f"user{n // 2 % 10}", "address": {"city": f"city{n // 2 % 10}"}},
            )
            for n in range(2_000)
        ]
    )
    asked = {**SERVED[combination], "newest_first": newest_first, "limit": 20}
    page, seen = None, 0
    for _ in range(3):
        with recorder.recording() as commands:
            page = repository.list_sessions(**asked, cursor=page.cursor if page else None)
        for command in commands:
            plan = explain(repository, Commands([command]))
            stages = str(plan["queryPlanner"]["winningPlan"])
            assert "IXSCAN" in stages
            assert "COLLSCAN" not in stages
            assert "'SORT'" not in stages
            assert plan["executionStats"]["totalKeysExamined"] <= 20 + 5
            assert plan["executionStats"]["totalDocsExamined"] <= 20 + 5
        seen += len(page.sessions)
        if page.cursor is None:
            break
    assert seen == 60


def test_one_index_alone_is_written_by_each_commit_besides_that_of_the_last_change(
    repository: Repository, sessions: Any
) -> None:
    keys = [tuple(name for name, _ in index["key"]) for index in sessions.index_information().values()]
    assert {key for key in keys if "updated_at" in key} == {("updated_at",), ("updated_at", "_id")}


# --- the factory


@pytest.mark.slow
def test_a_factory_lists_the_sessions_of_its_collection_and_of_others(app: Application) -> None:
    database = app.database
    factory = MongoDBSessionManagerFactory(None, database.name, "one", app.client, application_name="shop")
    database.one.insert_many([session("a", 1), session("b", 2, application_name="shop")])
    database.two.insert_one(session("c"))
    page = factory.list_sessions(limit=1)
    assert ids(page) == ["b"]
    with app.recorder.recording() as commands:
        assert ids(factory.list_sessions(limit=1, cursor=page.cursor)) == ["a"]
    assert commands.names == ["find"]
    assert ids(factory.list_sessions(application_name="shop")) == ["b"]
    assert ids(factory.list_sessions(collection_name="two")) == ["c"]
    assert ids(factory.list_sessions(database_name=f"{database.name}_none")) == []
    app.client.drop_database(f"{database.name}_none")
    with pytest.raises(TypeError, match="colour"):
        factory.list_sessions(colour="red")
    factory.close()
    with pytest.raises(RuntimeError, match="closed"):
        factory.list_sessions()


def test_the_factory_documents_every_filter() -> None:
    filters = list(inspect.signature(Repository.list_sessions).parameters)[1:]
    assert MongoDBSessionManagerFactory.list_sessions.__doc__ is not None
    for name in filters:
        assert f"``{name}``" in MongoDBSessionManagerFactory.list_sessions.__doc__
