"""The view of all messages: each once, wherever it is stored, and nothing that does not count."""

from collections import Counter
from datetime import datetime
from typing import Any

import pytest
from offline_model import OfflineScriptedModel, ScriptedReply
from pymongo.errors import OperationFailure
from strands.agent.conversation_manager import SlidingWindowConversationManager
from support.application import Application

from mongodb_session_manager import MongoDBSessionError
from mongodb_session_manager import MongoDBSessionRepository as Repository
from mongodb_session_manager._model.archive_policy import ArchivePolicy
from mongodb_session_manager._model.keys import decode_key

# Each makes a view.
pytestmark = pytest.mark.new_database


@pytest.fixture
def repository(app: Application) -> Repository:
    return app.repository


def converse(
    app: Application, session_id: str, turns: int, agent_id: str = "assistant", model_id: str = "model", **options: Any
) -> None:
    """Turns of which each uses 10 tokens more than the one before; without options none is archived."""
    replies = [
        ScriptedReply(text=f"Re: {n}", usage={"inputTokens": 7, "outputTokens": 10 * n, "totalTokens": 10 * n + 7})
        for n in range(turns)
    ]
    with app.manager(session_id, **options) as manager:
        model = OfflineScriptedModel(replies, model_id=model_id)
        window = SlidingWindowConversationManager(window_size=2)
        agent = app.agent(manager, model=model, agent_id=agent_id, conversation_manager=window)
        for n in range(turns):
            agent(f"{n}")
        agent.state.set("ended", True)


SOON: Any = {"archive_after_messages": 2, "archive_block": 2}


def view(repository: Repository) -> Any:
    return repository.database[repository.create_messages_view()]


def shown(view: Any, **query: Any) -> list[tuple[str, str, int, str]]:
    """What the view shows: sessions, agents, ids and texts, in this order."""
    return sorted(
        (row["session_id"], row["agent_id"], row["message_id"], row["content"][0]["text"]) for row in view.find(query)
    )


def expected(session_id: str, turns: int, agent_id: str = "assistant") -> list[tuple[str, str, int, str]]:
    texts = [text for n in range(turns) for text in (f"{n}", f"Re: {n}")]
    return [(session_id, agent_id, message_id, text) for message_id, text in enumerate(texts)]


def archived_count(app: Application, session_id: str, agent_id: str = "assistant") -> int:
    count: int = app.record(agent_id, session_id)["archived_count"]
    return count


@pytest.mark.slow
@pytest.mark.topology
def test_every_message_is_shown_once_embedded_or_archived_with_its_session_agent_and_model(
    repository: Repository, app: Application, database: Any
) -> None:
    converse(app, "short", 2)
    converse(app, "long", 7, application_name="shop", session_type="chat", **SOON)
    converse(app, "long", 5, "support.v2", "provider/model.v1:0", **SOON)
    assert archived_count(app, "long") >= 4
    assert archived_count(app, "long", "support.v2") >= 2

    all_messages = view(repository)

    assert shown(all_messages) == [
        *expected("long", 7),
        *expected("long", 5, "support.v2"),
        *expected("short", 2),
    ]
    assert shown(all_messages, agent_id="support.v2") == expected("long", 5, "support.v2")
    rows = list(all_messages.find({"session_id": "long"}))
    assert {(row["application_name"], row["session_type"]) for row in rows} == {("shop", "chat")}
    assert {(row["agent_id"], row["model"]) for row in rows} == {
        ("assistant", "model"),
        ("support.v2", "provider/model.v1:0"),
    }
    assert {row["role"] for row in rows} == {"user", "assistant"}
    for row in all_messages.find():
        assert isinstance(row["created_at"], datetime)
        assert ("event_loop_metrics" in row) == (row["role"] == "assistant")
    ids = [tuple(row["_id"].values()) for row in all_messages.find()]
    assert len(set(ids)) == len(ids)


@pytest.mark.slow
def test_tokens_per_model_over_the_view_are_those_that_the_agents_count(
    repository: Repository, app: Application, database: Any
) -> None:
    converse(app, "one", 7, "a", "model.v1", **SOON)
    converse(app, "one", 3, "b.c", "model.v2", **SOON)
    converse(app, "two", 6, "a", "model.v2", **SOON)
    converse(app, "three", 2, "a", "model.v1")

    usage = "$event_loop_metrics.accumulated_usage"
    grouped = view(repository).aggregate(
        [
            {"$match": {"role": "assistant"}},
            {
                "$group": {
                    "_id": "$model",
                    "calls": {"$sum": 1},
                    **{name: {"$sum": f"{usage}.{name}"} for name in ("inputTokens", "outputTokens", "totalTokens")},
                }
            },
        ]
    )
    counted: dict[str, Counter[str]] = {}
    for document in database.sessions.find():
        for agent in document["agents"].values():
            for key, totals in agent["usage"]["models"].items():
                numbers = {name: n for name, n in totals.items() if name != "latency"}
                counted.setdefault(decode_key(key), Counter()).update(numbers)
    assert {row.pop("_id"): row for row in grouped} == counted
    assert sum(model["totalTokens"] for model in counted.values()) > 0
    assert set(counted) == {"model.v1", "model.v2"}


@pytest.mark.slow
def test_a_segment_that_is_not_committed_is_not_shown(
    repository: Repository, app: Application, database: Any, client: Any
) -> None:
    converse(app, "s", 6)
    incarnation = app.session()["incarnation"]

    def archive() -> None:
        policy = ArchivePolicy(after_messages=1, block=4)
        repository._store.archiver.archive("s", incarnation, "assistant", policy)

    with app.failing("update", error_code=13), pytest.raises(OperationFailure):
        archive()
    assert database.sessions_history.count_documents({}) == 1
    assert archived_count(app, "s") == 0
    all_messages = view(repository)
    assert shown(all_messages) == expected("s", 6)

    archive()
    assert archived_count(app, "s") >= 4
    assert shown(all_messages) == expected("s", 6)


@pytest.mark.slow
def test_what_deleted_and_ended_sessions_have_left_is_not_shown(
    repository: Repository, app: Application, database: Any
) -> None:
    for session_id in ("gone", "again", "deleted", "alive"):
        converse(app, session_id, 6, **SOON)
    # As a process leaves them that dies before it has deleted their history.
    database.sessions.delete_many({"_id": {"$in": ["gone", "again"]}})
    converse(app, "again", 5, "assistant", "model", **SOON)
    repository.delete_session("deleted")
    assert database.sessions_history.count_documents({"_id.session": "gone"})
    assert len(database.sessions_history.distinct("_id.incarnation", {"_id.session": "again"})) == 2

    assert shown(view(repository)) == [*expected("again", 5), *expected("alive", 6)]


@pytest.mark.slow
def test_an_agent_without_messages_and_archived_feedback_are_not_shown(
    repository: Repository, app: Application
) -> None:
    converse(app, "s", 1)
    for n in range(201):
        repository.add_feedback("s", {"n": n})
    with app.manager() as manager:
        app.agent(manager, agent_id="silent")
    assert repository.database["sessions_history"].count_documents({}) == 1
    assert shown(view(repository)) == expected("s", 1)


def test_older_documents_are_shown_as_newer_ones_are(repository: Repository, app: Application, database: Any) -> None:
    moment = datetime(2024, 1, 15, 9, 0, 0)
    times = {"created_at": moment, "updated_at": moment}
    nested: dict[str, Any] = {"message_id": 0, "message": {"role": "user", "content": [{"text": "Hello"}]}, **times}
    plain: dict[str, Any] = {"message_id": 1, "role": "assistant", "content": [{"text": "Hi"}], **times}
    older: dict[str, Any] = {
        "_id": "older",
        "session_id": "older",
        "session_type": "default",
        **times,
        "agents": {
            "a": {"agent_data": {"agent_id": "a", "state": {}}, **times, "messages": [nested, plain]},
            "nameless": {**times, "messages": [plain]},
            "empty": {**times},
        },
    }
    database.sessions.insert_many([older, {"_id": "without agents"}])
    converse(app, "newer", 5, **SOON)

    all_messages = view(repository)

    assert shown(all_messages, session_id="older") == [
        ("older", "a", 0, "Hello"),
        ("older", "a", 1, "Hi"),
        ("older", "nameless", 1, "Hi"),
    ]
    roles = {(row["agent_id"], row["message_id"]): row["role"] for row in all_messages.find({"session_id": "older"})}
    assert roles == {("a", 0): "user", ("a", 1): "assistant", ("nameless", 1): "assistant"}
    assert shown(all_messages, session_id="newer") == expected("newer", 5)


@pytest.mark.slow
def test_the_view_is_made_once_made_anew_and_read_only(repository: Repository, app: Application, database: Any) -> None:
    converse(app, "s", 4, **SOON)
    assert repository.create_messages_view() == "sessions_messages"
    assert repository.create_messages_view() == "sessions_messages"
    all_messages = database.sessions_messages
    assert shown(all_messages) == expected("s", 4)
    for write in (
        lambda: all_messages.insert_one({"_id": 1}),
        lambda: all_messages.update_many({}, {"$set": {"role": "user"}}),
        lambda: all_messages.delete_many({}),
    ):
        with pytest.raises(OperationFailure, match="view"):
            write()
    assert shown(all_messages) == expected("s", 4)

    # Of an older version.
    database.command("collMod", "sessions_messages", viewOn="sessions", pipeline=[{"$match": {"_id": 0}}])
    assert shown(all_messages) == []
    repository.create_messages_view()
    assert shown(all_messages) == expected("s", 4)


@pytest.mark.parametrize("theirs", ["sessions_messages", "theirs"], ids=["a collection", "a view"])
def test_what_somebody_else_has_made_under_the_views_name_is_left_alone(
    repository: Repository, database: Any, theirs: str
) -> None:
    if theirs != "sessions_messages":
        database.command("create", "sessions_messages", viewOn=theirs, pipeline=[])
    database[theirs].insert_one({"_id": "theirs"})
    with pytest.raises(MongoDBSessionError, match="sessions_messages is there already"):
        repository.create_messages_view()
    assert list(database.sessions_messages.find()) == [{"_id": "theirs"}]


def test_a_view_of_sessions_that_are_still_to_come_shows_them(repository: Repository, app: Application) -> None:
    all_messages = view(repository)
    assert shown(all_messages) == []
    converse(app, "s", 5, **SOON)
    assert shown(all_messages) == expected("s", 5)
