"""`MongoDBSessionRepository`: every method of the reference, on a real server."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from bson import ObjectId
from offline_model import OfflineScriptedModel
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import DuplicateKeyError, InvalidOperation, OperationFailure, PyMongoError
from strands import Agent
from strands.multiagent import GraphBuilder
from strands.types.exceptions import SessionException
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType
from support.application import NOWHERE, Application
from support.commands import Commands
from support.equality import assert_same
from support.histories import SESSIONS, at_rest, repository_of
from support.repositories import (
    MultiAgent,
    a_message,
    a_session,
    agent_of,
    an_agent,
    begin,
    message_of,
    text_of,
)
from support.wire_proxy import Cut

from mongodb_session_manager import (
    AgentNotFoundError,
    MessageNotFoundError,
    MongoDBSessionError,
    SessionConflictError,
    SessionExistsError,
    SessionNotFoundError,
)
from mongodb_session_manager import MongoDBSessionRepository as Repository

SECRET = "4929-1234-5678-9012"


def ids_of(messages: list[SessionMessage]) -> list[int]:
    return [message.message_id for message in messages]


def moment(iso: str) -> datetime:
    """The time an ISO string names; it must say its offset."""
    parsed = datetime.fromisoformat(iso.replace("Z", "+00:00"))
    assert parsed.tzinfo is not None
    return parsed


def times_of(read: Any) -> tuple[datetime, datetime]:
    return moment(read.created_at), moment(read.updated_at)


def is_recent(time: datetime) -> bool:
    if time.tzinfo is None:
        time = time.replace(tzinfo=timezone.utc)
    return abs(datetime.now(timezone.utc) - time) < timedelta(minutes=1)


@pytest.fixture
def repository(app: Application) -> Repository:
    return app.repository


@pytest.fixture
def session(repository: Repository) -> Repository:
    """The repository, with the session `s` in it."""
    repository.create_session(a_session())
    return repository


@pytest.fixture
def conversation(repository: Repository) -> Repository:
    """The repository, with the agent `a`, who has no messages yet, in the session `s`."""
    begin(repository)
    return repository


@pytest.fixture
def commands(conversation: Repository, app: Application) -> Iterator[Commands]:
    """What is sent once the conversation is there."""
    with app.recorder.recording() as commands:
        yield commands


# --- construction ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_repository_made_from_a_connection_string_owns_its_client_and_closes_it(
    server: Any, database_name: str
) -> None:
    repository = Repository(connection_string=server.uri, database_name=database_name, collection_name=SESSIONS)
    assert repository._owns_client is True
    repository.create_session(a_session())
    for _ in range(2):  # Closing twice does no harm.
        repository.close()
    with pytest.raises(InvalidOperation):
        repository.client.admin.command("ping")


@pytest.mark.slow
def test_a_repository_never_closes_a_borrowed_client(client: MongoClient, database_name: str) -> None:
    repository = Repository("mongodb://nowhere.invalid:1/", database_name, SESSIONS, client)
    assert repository.client is client, "the connection string beside it counts for nothing"
    assert repository._owns_client is False
    assert repository.database.name == database_name
    assert repository.collection.full_name == f"{database_name}.{SESSIONS}"
    for _ in range(2):
        repository.close()
    repository.create_session(a_session())


@pytest.mark.slow
def test_options_for_the_client_reach_the_client(server: Any, database_name: str) -> None:
    options = {"maxPoolSize": 50, "minPoolSize": 10, "retryWrites": True, "appname": "orders"}
    repository = Repository(server.uri, database_name, SESSIONS, **options)
    found = repository.client.options
    assert (found.pool_options.max_pool_size, found.pool_options.min_pool_size) == (50, 10)
    assert found.retry_writes is True
    assert found.pool_options.appname == "orders"
    repository.close()


def test_a_repository_needs_a_connection_string_or_a_client() -> None:
    with pytest.raises(ValueError, match="connection_string"):
        Repository(database_name="chat_db")


@pytest.mark.slow
def test_unacknowledged_writes_are_refused_because_they_could_lose_messages() -> None:
    with pytest.raises(ValueError, match="w=0"):
        Repository(NOWHERE, w=0)
    with MongoClient(NOWHERE, w=0, connect=False) as client, pytest.raises(ValueError, match="w=0"):
        Repository(client=client)


@pytest.mark.slow
def test_an_async_client_is_refused_with_the_reason() -> None:
    client: Any = AsyncMongoClient(NOWHERE, connect=False)
    with pytest.raises(TypeError, match="AsyncMongoClient"):
        Repository(client=client)


# --- sessions -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.topology
def test_a_new_session_is_one_readable_document(repository: Repository, app: Application) -> None:
    session = a_session()
    session.updated_at = session.created_at  # Strands asks the clock twice.
    assert repository.create_session(session) is session

    document = app.session()
    created_at, updated_at = document.pop("created_at"), document.pop("updated_at")
    assert isinstance(document.pop("incarnation"), ObjectId)
    assert isinstance(created_at, datetime)
    assert is_recent(created_at)
    assert created_at == updated_at
    assert document.pop("multi_agents", {}) == {}
    empty = {"agent_ids": [], "metadata": {}, "feedbacks": [], "agents": {}}
    assert_same(document, {"_id": "s", "session_id": "s", "session_type": "chat", "schema_version": 1, **empty})


@pytest.mark.slow
def test_a_session_is_read_as_it_was_created(repository: Repository) -> None:
    created = repository.create_session(a_session())
    read: Any = repository.read_session("s")
    assert (read.session_id, read.session_type) == ("s", "chat")
    assert times_of(read) == times_of(created)
    assert is_recent(moment(read.created_at))


def test_the_session_type_of_strands_is_stored_as_its_name(repository: Repository, app: Application) -> None:
    repository.create_session(Session(session_id="s", session_type=SessionType.AGENT))
    assert_same(app.session()["session_type"], "AGENT")
    read: Any = repository.read_session("s")
    assert read.session_type == SessionType.AGENT


def test_a_session_that_exists_is_not_created_again_and_stays_as_it_is(
    conversation: Repository, app: Application
) -> None:
    conversation.create_message("s", "a", a_message())
    before = app.session()
    with pytest.raises(SessionExistsError, match="session_id='s'") as refusal:
        conversation.create_session(Session(session_id="s", session_type="other"))  # type: ignore[arg-type]
    for kind in (DuplicateKeyError, PyMongoError, SessionException):
        assert isinstance(refusal.value, kind)
    assert app.session() == before


@pytest.mark.topology
def test_of_many_requests_that_create_one_session_exactly_one_succeeds(repository: Repository) -> None:
    def create(_: int) -> bool:
        try:
            repository.create_session(a_session())
        except SessionExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(create, range(8))) == 1


def test_session_exists_tells_whether_a_session_exists(repository: Repository) -> None:
    repository.create_session(a_session("user-123"))
    assert repository.session_exists("user-123") is True
    assert repository.session_exists("user-12") is False


@pytest.mark.topology
def test_deleting_a_session_leaves_nothing_of_it_anywhere(repository: Repository, app: Application) -> None:
    begin(repository, "user-123")
    image = {"image": {"format": "png", "source": {"bytes": SECRET.encode() + b"\x89PNG" * 250_000}}}
    repository.create_message("user-123", "a", a_message(0, SECRET))
    repository.create_message("user-123", "a", a_message(1, content=[image]))
    repository.update_agent("user-123", an_agent(state={"card": SECRET}))
    repository.update_metadata("user-123", {"card": SECRET})
    repository.create_session(a_session("another"))
    assert SECRET.encode() in at_rest(app.database)

    repository.delete_session("user-123")

    app.nothing_at_rest(SECRET, "user-123")
    assert repository.session_exists("another")


def test_a_deleted_session_is_missing_and_cannot_be_deleted_again(conversation: Repository) -> None:
    conversation.delete_session("s")
    assert conversation.read_session("s") is None
    with pytest.raises(SessionNotFoundError, match="session_id='s'"):
        conversation.delete_session("s")


def test_a_session_created_after_a_deletion_begins_empty(conversation: Repository, app: Application) -> None:
    conversation.create_message("s", "a", a_message())
    first = app.session()["incarnation"]
    conversation.delete_session("s")
    conversation.create_session(a_session())
    assert conversation.read_agent("s", "a") is None
    assert conversation.list_messages("s", "a") == []
    assert app.session()["incarnation"] != first


# --- what is missing ------------------------------------------------------------------------------

Operation = Callable[[Repository], Any]

MISSING: dict[str, tuple[Operation, Any]] = {
    "session": (lambda r: r.read_session("missing"), None),
    "agent-of-missing-session": (lambda r: r.read_agent("missing", "a"), None),
    "agent": (lambda r: r.read_agent("s", "missing"), None),
    "message-of-missing-session": (lambda r: r.read_message("missing", "a", 0), None),
    "message-of-missing-agent": (lambda r: r.read_message("s", "missing", 0), None),
    "message": (lambda r: r.read_message("s", "a", 7), None),
    "messages-of-missing-session": (lambda r: r.list_messages("missing", "a"), []),
    "documents-of-missing-session": (lambda r: r.list_message_documents("missing", "a"), []),
    "messages-of-missing-agent": (lambda r: r.list_messages("s", "missing"), []),
    "messages-of-new-agent": (lambda r: r.list_messages("s", "a"), []),
    "multi-agent-of-missing-session": (lambda r: r.read_multi_agent("missing", "graph"), None),
    "multi-agent": (lambda r: r.read_multi_agent("s", "missing"), None),
    "metadata-of-missing-session": (lambda r: r.get_metadata("missing"), {}),
    "metadata-of-new-session": (lambda r: r.get_metadata("s"), {"metadata": {}}),
    "feedbacks-of-missing-session": (lambda r: r.get_feedbacks("missing"), []),
    "feedbacks-of-new-session": (lambda r: r.get_feedbacks("s"), []),
}


@pytest.mark.parametrize(("read", "result"), MISSING.values(), ids=MISSING)
def test_reading_what_is_missing_is_no_error(read: Operation, result: Any, conversation: Repository) -> None:
    assert_same(read(conversation), result)


NO_SESSION = SessionNotFoundError
REFUSED: dict[str, tuple[Operation, Any]] = {
    "create_agent": (lambda r: r.create_agent("missing", an_agent()), NO_SESSION),
    "update_agent-session": (lambda r: r.update_agent("missing", an_agent()), NO_SESSION),
    "update_agent-agent": (lambda r: r.update_agent("s", an_agent("missing")), AgentNotFoundError),
    "create_message-session": (lambda r: r.create_message("missing", "a", a_message()), NO_SESSION),
    "create_message-agent": (lambda r: r.create_message("s", "missing", a_message()), AgentNotFoundError),
    "update_message-session": (lambda r: r.update_message("missing", "a", a_message()), NO_SESSION),
    "update_message-agent": (
        lambda r: r.update_message("s", "missing", a_message()),
        (AgentNotFoundError, MessageNotFoundError),
    ),
    "update_message-message": (lambda r: r.update_message("s", "a", a_message(7)), MessageNotFoundError),
    "create_multi_agent": (lambda r: r.create_multi_agent("missing", MultiAgent("graph", {})), NO_SESSION),
    "update_multi_agent-session": (lambda r: r.update_multi_agent("missing", MultiAgent("graph", {})), NO_SESSION),
    "update_multi_agent": (lambda r: r.update_multi_agent("s", MultiAgent("missing", {})), AgentNotFoundError),
    "update_metadata": (lambda r: r.update_metadata("missing", {"a": 1}), NO_SESSION),
    "delete_metadata": (lambda r: r.delete_metadata("missing", ["a"]), NO_SESSION),
    "add_feedback": (lambda r: r.add_feedback("missing", {"rating": "up"}), NO_SESSION),
    "delete_session": (lambda r: r.delete_session("missing"), NO_SESSION),
}


@pytest.mark.parametrize(("write", "error"), REFUSED.values(), ids=REFUSED)
def test_writing_to_what_is_missing_is_an_error_that_names_it_and_creates_nothing(
    write: Operation, error: Any, conversation: Repository, app: Application
) -> None:
    before = list(app.database[SESSIONS].find())
    with pytest.raises(error, match=r"missing|7") as refusal:
        write(conversation)
    assert isinstance(refusal.value, SessionException)
    assert isinstance(refusal.value, ValueError)
    assert list(app.database[SESSIONS].find()) == before


# --- what is there --------------------------------------------------------------------------------

READS: dict[str, Operation] = {
    "read_session": lambda r: r.read_session("s"),
    "session_exists": lambda r: r.session_exists("s"),
    "read_agent": lambda r: r.read_agent("s", "a"),
    "read_message": lambda r: r.read_message("s", "a", 0),
    "list_messages": lambda r: r.list_messages("s", "a"),
    "read_multi_agent": lambda r: r.read_multi_agent("s", "graph"),
    "get_metadata": lambda r: r.get_metadata("s"),
    "get_feedbacks": lambda r: r.get_feedbacks("s"),
}
WRITES: dict[str, Operation] = {
    "create_agent": lambda r: r.create_agent("s", an_agent("b")),
    "update_agent": lambda r: r.update_agent("s", an_agent(state={"step": 2})),
    "create_message": lambda r: r.create_message("s", "a", a_message(1)),
    "update_message": lambda r: r.update_message("s", "a", a_message(0, "new")),
    "update_metadata": lambda r: r.update_metadata("s", {"status": "open"}),
    "delete_metadata": lambda r: r.delete_metadata("s", ["priority"]),
    "add_feedback": lambda r: r.add_feedback("s", {"rating": "up"}),
    "create_multi_agent": lambda r: r.create_multi_agent("s", MultiAgent("graph", {"a": 1})),
}


@pytest.mark.topology
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_failed_read_is_an_error_and_never_looks_like_an_empty_history(
    read: Operation, conversation: Repository, app: Application
) -> None:
    read(conversation)
    with app.failing(["find", "aggregate", "count"], error_code=13), pytest.raises(OperationFailure):
        read(conversation)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_every_change_moves_the_time_of_the_session_and_nothing_else_of_its_head(
    write: Operation, conversation: Repository, app: Application
) -> None:
    conversation.create_message("s", "a", a_message(0))
    conversation.update_metadata("s", {"priority": "high"})
    long_ago = datetime(2020, 1, 1, tzinfo=timezone.utc)
    app.database[SESSIONS].update_one({"_id": "s"}, {"$set": {"created_at": long_ago, "updated_at": long_ago}})
    before = app.session()
    write(conversation)
    after = app.session()
    assert is_recent(after["updated_at"])
    for unchanged in ("session_id", "session_type", "created_at", "incarnation", "schema_version"):
        assert after[unchanged] == before[unchanged]


@pytest.mark.topology
@pytest.mark.parametrize("name", [name for name in (*READS, *WRITES) if name != "update_message"])
def test_an_ordinary_operation_costs_one_read_and_one_write_that_holds_for_what_was_read(
    name: str, conversation: Repository, app: Application
) -> None:
    conversation.create_message("s", "a", a_message(0))
    conversation.update_metadata("s", {"priority": "high"})
    with app.recorder.recording() as commands:
        (READS | WRITES)[name](conversation)
    assert commands.names == (["find"] if name in READS else ["find", "update"])


# --- agents ---------------------------------------------------------------------------------------


def test_an_agent_is_stored_in_the_documented_shape(session: Repository, app: Application) -> None:
    agent: Any = SessionAgent("assistant-1", {"step": 1}, {"removed_message_count": 0}, {"interrupt_state": {}})
    agent.model = "claude-3-sonnet"
    agent.system_prompt = "You are a helpful assistant"
    assert session.create_agent("s", agent) is None

    document = app.session()
    assert document["agent_ids"] == ["assistant-1"]
    assert list(document["agents"]) == ["assistant-1"]
    stored = document["agents"]["assistant-1"]
    stored.pop("usage", None)
    agent_data = stored.pop("agent_data")
    for name in ("created_at", "updated_at"):
        assert isinstance(stored.pop(name), datetime)
        assert is_recent(moment(agent_data.pop(name)))
    assert_same(stored, {"message_count": 0, "archived_count": 0, "edits": 0, "changes": 0, "messages": []})
    assert_same(
        agent_data,
        {
            "agent_id": "assistant-1",
            "state": {"step": 1},
            "conversation_manager_state": {"removed_message_count": 0},
            "_internal_state": {"interrupt_state": {}},
            "model": "claude-3-sonnet",
            "system_prompt": "You are a helpful assistant",
        },
    )


def test_an_agent_is_read_as_it_was_created(session: Repository) -> None:
    agent = SessionAgent("a", {"step": 1}, {"removed_message_count": 3}, {"model_state": {"a": 1}})
    session.create_agent("s", agent)
    read = agent_of(session)
    assert isinstance(read, SessionAgent)
    assert read.agent_id == "a"
    assert_same(read.state, {"step": 1})
    assert_same(read.conversation_manager_state, {"removed_message_count": 3})
    assert_same(read._internal_state, {"model_state": {"a": 1}})
    assert times_of(read) == times_of(agent)
    assert (read.model, read.system_prompt) == (None, None)


def test_creating_an_agent_that_exists_never_erases_its_history(conversation: Repository) -> None:
    conversation.create_message("s", "a", a_message(0, "kept"))
    with pytest.raises(MongoDBSessionError, match="agent_id='a'"):
        conversation.create_agent("s", an_agent())
    assert text_of(message_of(conversation)) == "kept"


def test_updating_an_agent_replaces_its_state_and_keeps_its_creation_time_and_its_messages(
    session: Repository, app: Application
) -> None:
    session.create_agent("s", an_agent(state={"step": 1, "old": True}))
    session.create_message("s", "a", a_message())
    created = agent_of(session)
    before = app.record()

    update = SessionAgent("a", {"step": 2}, {"removed_message_count": 1}, {"model_state": {}})
    update.created_at = "2001-01-01T00:00:00+00:00"
    assert session.update_agent("s", update) is None

    read = agent_of(session)
    assert_same(read.state, {"step": 2})
    assert_same(read.conversation_manager_state, {"removed_message_count": 1})
    assert_same(read._internal_state, {"model_state": {}})
    assert moment(read.created_at) == moment(created.created_at)
    assert moment(read.updated_at) > moment(created.updated_at)
    after = app.record()
    assert after["updated_at"] >= before["updated_at"]
    for kept in ("created_at", "messages", "message_count"):
        assert after[kept] == before[kept]


def test_the_model_and_the_system_prompt_of_an_agent_are_stored_and_outlive_updates_without_them(
    conversation: Repository,
) -> None:
    agent = agent_of(conversation)
    agent.model = "claude-3-sonnet"
    agent.system_prompt = "You are an expert coding assistant"
    conversation.update_agent("s", agent)
    conversation.update_agent("s", an_agent(state={"step": 2}))
    read = agent_of(conversation)
    assert (read.model, read.system_prompt) == ("claude-3-sonnet", "You are an expert coding assistant")
    assert read.state == {"step": 2}


def test_a_system_prompt_of_content_blocks_comes_back_as_it_was(session: Repository) -> None:
    agent: Any = an_agent()
    agent.system_prompt = [{"text": "Be brief."}, {"cachePoint": {"type": "default"}}]
    session.create_agent("s", agent)
    assert_same(agent_of(session).system_prompt, agent.system_prompt)


# --- messages -------------------------------------------------------------------------------------


def test_a_message_is_stored_flat_with_its_times_as_dates(conversation: Repository, app: Application) -> None:
    assert conversation.create_message("s", "a", a_message(0, "Hello!")) is None
    (stored,) = app.messages()
    assert is_recent(stored.pop("created_at"))
    assert is_recent(stored.pop("updated_at"))
    stored.pop("commit_id", None)
    assert_same(stored, {"message_id": 0, "role": "user", "content": [{"text": "Hello!"}]})


def test_what_strands_adds_to_a_message_is_stored_beside_its_content(
    conversation: Repository, app: Application
) -> None:
    usage = {"inputTokens": 3, "outputTokens": 5, "totalTokens": 8}
    metadata = {"usage": usage, "metrics": {"latencyMs": 12}}
    message = a_message(0, "Hi!", "assistant", tracking_id="t-1", metadata=metadata)
    conversation.create_message("s", "a", message)
    (stored,) = app.messages()
    assert stored["tracking_id"] == "t-1"
    assert_same(stored["metadata"], metadata)
    assert_same(message_of(conversation).message, message.message)


def test_a_message_is_read_as_it_was_created(conversation: Repository) -> None:
    message = a_message(0, "Hello!")
    conversation.create_message("s", "a", message)
    by_id = conversation.read_message("s", "a", message_id=0)
    for read in (by_id, *conversation.list_messages("s", "a")):
        assert type(read) is SessionMessage
        assert_same(read.message, {"role": "user", "content": [{"text": "Hello!"}]})
        assert read.message_id == 0
        assert read.redact_message is None
        assert times_of(read) == times_of(message)
        assert is_recent(moment(read.created_at))


def test_a_plain_text_becomes_one_text_block(conversation: Repository) -> None:
    conversation.create_message("s", "a", a_message(content="Hello!"))
    assert_same(message_of(conversation).message["content"], [{"text": "Hello!"}])


def test_messages_count_from_any_id_and_may_leave_gaps(conversation: Repository, app: Application) -> None:
    for message_id, text in ((1, "Hello!"), (2, "Hi! How can I help you?"), (10, "Much later")):
        conversation.create_message("s", "a", a_message(message_id, text))
        assert app.record()["message_count"] == message_id + 1
    assert ids_of(conversation.list_messages("s", "a")) == [1, 2, 10]
    assert text_of(message_of(conversation, 10)) == "Much later"
    assert conversation.read_message("s", "a", 0) is None
    assert conversation.read_message("s", "a", 5) is None


@pytest.mark.parametrize(("stored", "message_id"), [((1, 2), 1), ((1, 2), 2), ((2, 5), 0), ((2, 5), 3)])
def test_a_message_never_overwrites_another_nor_slips_in_before_one(
    stored: tuple[int, int], message_id: int, conversation: Repository, app: Application
) -> None:
    for there in stored:
        conversation.create_message("s", "a", a_message(there, f"text {there}"))
    before = app.session()
    with pytest.raises(SessionConflictError):
        conversation.create_message("s", "a", a_message(message_id, "intruder"))
    assert app.session() == before


@pytest.mark.topology
def test_of_many_writers_that_want_one_message_id_exactly_one_gets_it(
    conversation: Repository, app: Application
) -> None:
    start = threading.Barrier(6)

    def create(writer: int) -> str | None:
        start.wait(60)
        try:
            conversation.create_message("s", "a", a_message(0, f"writer {writer}"))
        except SessionConflictError:
            return None
        return f"writer {writer}"

    with ThreadPoolExecutor(6) as threads:
        winners = [text for text in threads.map(create, range(6)) if text]
    assert len(winners) == 1
    assert [text for _, text in app.dialogue()] == winners


@pytest.mark.slow
@pytest.mark.topology
def test_one_repository_serves_many_threads(repository: Repository) -> None:
    def converse(number: int) -> list[str]:
        begin(repository, f"user-{number}")
        for message_id in range(10):
            repository.create_message(f"user-{number}", "a", a_message(message_id, f"{number}/{message_id}"))
        return [text_of(message) for message in repository.list_messages(f"user-{number}", "a")]

    with ThreadPoolExecutor(8) as threads:
        for number, texts in enumerate(threads.map(converse, range(8))):
            assert texts == [f"{number}/{message_id}" for message_id in range(10)]


@pytest.mark.parametrize("message_id", ["0", "abc", None, 1.0, True, False, [0], {"$gte": 0}], ids=repr)
def test_a_message_id_that_is_no_int_is_refused_before_any_command_is_sent(
    message_id: Any, conversation: Repository, commands: Commands
) -> None:
    for operation in (conversation.create_message, conversation.update_message):
        with pytest.raises(ValueError, match="message_id"):
            operation("s", "a", a_message(message_id))
    with pytest.raises(ValueError, match="message_id"):
        conversation.read_message("s", "a", message_id)
    assert commands == []


def test_a_negative_message_id_is_never_stored(conversation: Repository, app: Application) -> None:
    with pytest.raises((ValueError, MongoDBSessionError)):
        conversation.create_message("s", "a", a_message(-1))
    assert app.record()["messages"] == []


# --- listing --------------------------------------------------------------------------------------


@pytest.fixture
def ten_messages(conversation: Repository) -> Repository:
    """Ten messages with the ids 0, 3, 6 … 27: pages count messages, not ids."""
    for message_id in range(0, 30, 3):
        conversation.create_message("s", "a", a_message(message_id, f"text {message_id}"))
    return conversation


ALL = list(range(0, 30, 3))


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ({}, ALL),
        ({"limit": None}, ALL),
        ({"limit": 4}, ALL[:4]),
        ({"limit": 4, "offset": 4}, ALL[4:8]),
        ({"limit": 4, "offset": 8}, ALL[8:]),
        ({"offset": 3}, ALL[3:]),
        ({"offset": 9}, ALL[9:]),
        ({"offset": 10}, []),
        ({"offset": 11}, []),
        ({"offset": 1000, "limit": 5}, []),
        ({"limit": 0}, []),
        ({"limit": 0, "offset": 3}, []),
        ({"limit": 1000}, ALL),
        ({"limit": 10}, ALL),
        ({"limit": 1, "offset": 9}, ALL[9:]),
        ({"limit": 2**40, "offset": 1}, ALL[1:]),
    ],
    ids=str,
)
def test_a_page_of_messages_is_counted_in_messages_from_the_oldest(
    page: dict[str, Any], expected: list[int], ten_messages: Repository
) -> None:
    messages = ten_messages.list_messages("s", "a", **page)
    assert isinstance(messages, list)
    assert ids_of(messages) == expected
    assert [text_of(message) for message in messages] == [f"text {message_id}" for message_id in expected]
    documents = ten_messages.list_message_documents("s", "a", **page)
    assert [document["message_id"] for document in documents] == expected
    assert [document["content"] for document in documents] == [message.message["content"] for message in messages]


@pytest.mark.parametrize("page", [{"limit": -1}, {"offset": -1}, {"limit": -5, "offset": -5}], ids=str)
def test_a_negative_page_is_refused(page: dict[str, int], ten_messages: Repository) -> None:
    for listed in (ten_messages.list_messages, ten_messages.list_message_documents):
        with pytest.raises(ValueError, match=r"limit|offset"):
            listed("s", "a", **page)


def test_strands_calls_the_methods_without_keywords_and_callers_may_add_their_own(ten_messages: Repository) -> None:
    assert ids_of(ten_messages.list_messages("s", "a", 2, 1)) == [3, 6]
    assert text_of(ten_messages.read_message("s", "a", 3, trace="x")) == "text 3"
    assert ten_messages.read_session("s", trace="x") is not None
    assert ten_messages.read_agent("s", "a", trace="x") is not None
    assert ids_of(ten_messages.list_messages("s", "a", 1, 0, trace="x")) == [0]
    ten_messages.create_message("s", "a", a_message(30), trace="x")
    ten_messages.update_message("s", "a", a_message(30, "new"), trace="x")
    ten_messages.update_agent("s", an_agent(), trace="x")
    ten_messages.create_agent("s", an_agent("b"), trace="x")
    ten_messages.create_session(a_session("other"), trace="x")
    assert text_of(message_of(ten_messages, 30)) == "new"


# --- rewriting and redacting a message ------------------------------------------------------------

METRICS = {
    "accumulated_metrics": {"latencyMs": 1234},
    "accumulated_usage": {"inputTokens": 45, "outputTokens": 78, "totalTokens": 123},
}


@pytest.fixture
def told_a_secret(conversation: Repository, app: Application) -> Repository:
    """Three messages; the middle one holds the secret and has everything a message can have."""
    metadata = {"usage": METRICS["accumulated_usage"], "metrics": {"latencyMs": 1234}, "custom": {"a": 1}}
    conversation.create_message("s", "a", a_message(0, "before", tracking_id="t-0"))
    secret = a_message(1, f"It is {SECRET}", "assistant", tracking_id="t-1", metadata=metadata)
    conversation.create_message("s", "a", secret)
    conversation.create_message("s", "a", a_message(2, "after", tracking_id="t-2"))
    app.database[SESSIONS].update_one({"_id": "s"}, {"$set": {"agents.a.messages.1.event_loop_metrics": METRICS}})
    assert SECRET.encode() in at_rest(app.database)
    return conversation


def test_metrics_are_not_part_of_a_message_that_is_read(told_a_secret: Repository) -> None:
    for message in (message_of(told_a_secret, 1), told_a_secret.list_messages("s", "a")[1]):
        assert not hasattr(message, "event_loop_metrics")
        assert "event_loop_metrics" not in message.message
        assert text_of(message) == f"It is {SECRET}"


def test_a_rewritten_message_keeps_everything_but_its_content(told_a_secret: Repository, app: Application) -> None:
    first, before, last = app.messages()
    update = a_message(1, "[Content removed for privacy]", "assistant")
    update.created_at = "2001-01-01T00:00:00+00:00"
    assert told_a_secret.update_message("s", "a", update) is None

    first_after, after, last_after = app.messages()
    assert (first_after, last_after) == (first, last)
    assert after.pop("updated_at") >= before.pop("updated_at")
    assert_same(after.pop("content"), [{"text": "[Content removed for privacy]"}])
    assert after.pop("edit") == 1
    assert_same(after, {name: value for name, value in before.items() if name != "content"})
    assert text_of(message_of(told_a_secret, 1)) == "[Content removed for privacy]"


def test_a_rewritten_secret_is_nowhere_in_the_database(told_a_secret: Repository, app: Application) -> None:
    message = message_of(told_a_secret, 1)
    message.message["content"] = [{"text": "[Content removed for privacy]"}]
    told_a_secret.update_message("s", "a", message)
    app.nothing_at_rest(SECRET)


def test_a_rewrite_is_counted_so_that_no_archiver_stores_what_was_rewritten(
    told_a_secret: Repository, app: Application
) -> None:
    before = app.record()
    told_a_secret.update_message("s", "a", a_message(1, "removed", "assistant"))
    after = app.record()
    assert after["edits"] == before["edits"] + 1
    assert after["message_count"] == before["message_count"] == 3


def test_redacting_by_hand_removes_the_original_that_the_object_still_holds(
    told_a_secret: Repository, app: Application
) -> None:
    message = message_of(told_a_secret, 1)
    message.redact_message = {"role": "assistant", "content": [{"text": "[redacted]"}]}
    told_a_secret.update_message("s", "a", message)

    app.nothing_at_rest(SECRET)
    for read in (message_of(told_a_secret, 1), told_a_secret.list_messages("s", "a")[1]):
        assert read.redact_message is not None
        redacted = read.to_message()
        assert (redacted["role"], redacted["content"]) == ("assistant", [{"text": "[redacted]"}])
        assert read.message["tracking_id"] == "t-1"
    stored = app.messages()[1]
    assert stored["tracking_id"] == "t-1"
    assert_same(stored["event_loop_metrics"], METRICS)
    assert stored["metadata"]["custom"] == {"a": 1}


def test_a_redaction_by_strands_is_stored_as_a_redaction(told_a_secret: Repository, app: Application) -> None:
    redacted: Any = {"role": "assistant", "content": [{"text": "[redacted]"}], "tracking_id": "t-1"}
    message = SessionMessage(message=redacted, message_id=1, redact_message=redacted)
    told_a_secret.update_message("s", "a", message)
    app.nothing_at_rest(SECRET)
    assert text_of(message_of(told_a_secret, 1)) == "[redacted]"


def test_a_message_created_with_a_redaction_does_not_store_the_original(
    conversation: Repository, app: Application
) -> None:
    message = a_message(0, SECRET)
    message.redact_message = {"role": "user", "content": [{"text": "[redacted]"}]}
    conversation.create_message("s", "a", message)
    app.nothing_at_rest(SECRET)
    assert text_of(message_of(conversation)) == "[redacted]"


def test_a_message_behind_a_gap_is_rewritten_by_its_id_not_by_its_place(ten_messages: Repository) -> None:
    ten_messages.update_message("s", "a", a_message(6, "rewritten"))
    texts = {m.message_id: text_of(m) for m in ten_messages.list_messages("s", "a")}
    assert texts == {message_id: f"text {message_id}" for message_id in ALL} | {6: "rewritten"}
    with pytest.raises(MessageNotFoundError):
        ten_messages.update_message("s", "a", a_message(7, "in the gap"))


def test_the_times_that_were_stored_are_written_back_into_the_object(conversation: Repository) -> None:
    message = a_message(0)
    conversation.create_message("s", "a", message)
    created = message_of(conversation)
    assert times_of(created) == times_of(message)
    update = a_message(0, "rewritten")
    conversation.update_message("s", "a", update)
    assert times_of(message_of(conversation)) == (moment(created.created_at), moment(update.updated_at))
    agent = an_agent(state={"step": 2})
    conversation.update_agent("s", agent)
    assert moment(agent_of(conversation).updated_at) == moment(agent.updated_at)


# --- metadata and feedback ------------------------------------------------------------------------


def test_a_dot_in_a_metadata_key_addresses_a_nested_field(session: Repository) -> None:
    session.update_metadata("s", {"customer": {"name": "Alice", "tier": "free"}})
    session.update_metadata("s", {"customer.tier": "gold", "order.number": 7})
    found = session.get_metadata("s")["metadata"]
    assert_same(found, {"customer": {"name": "Alice", "tier": "gold"}, "order": {"number": 7}})
    session.delete_metadata("s", ["customer.name"])
    assert_same(session.get_metadata("s")["metadata"], {"customer": {"tier": "gold"}, "order": {"number": 7}})


def test_an_empty_change_of_metadata_changes_nothing(session: Repository) -> None:
    session.update_metadata("s", {"status": "open"})
    session.update_metadata("s", {})
    session.delete_metadata("s", [])
    assert_same(session.get_metadata("s"), {"metadata": {"status": "open"}})


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, 1.5, "", "text", [], {}, [1, {"a": [None]}], {"a": {"b": {"c": 1}}}, 2**40, b"raw"),
        *("$session_id", "$$NOW"),  # What looks like an expression is only text.
    ],
    ids=repr,
)
def test_a_metadata_value_comes_back_as_it_was(value: Any, session: Repository) -> None:
    session.update_metadata("s", {"field": value})
    assert_same(session.get_metadata("s"), {"metadata": {"field": value}})


def test_a_date_in_metadata_is_stored_as_a_date(session: Repository, app: Application) -> None:
    due = datetime(2024, 1, 26, 10, 30, 45, 123000, tzinfo=timezone.utc)
    session.update_metadata("s", {"due": due})
    assert app.session()["metadata"]["due"] == due.replace(tzinfo=None)
    assert session.get_metadata("s")["metadata"]["due"] == due


ILLEGAL_KEYS = ["$x", "", "a..b", "a\0b", ".a", "a.", ".", "a.$b", "a.$", "$", "a.$[]", "\ud800"]


@pytest.mark.parametrize("key", [*ILLEGAL_KEYS, 1, None, b"a", ("a",)], ids=ascii)
def test_an_illegal_metadata_key_is_refused_before_any_command_is_sent(
    key: Any, conversation: Repository, commands: Commands
) -> None:
    error = ValueError if isinstance(key, str) else (TypeError, ValueError)
    with pytest.raises(error, match="metadata"):
        conversation.update_metadata("s", {"legal": 1, key: 2})
    with pytest.raises(error, match="metadata"):
        conversation.delete_metadata("s", ["legal", key])
    assert commands == []
    assert_same(conversation.get_metadata("s"), {"metadata": {}})


@pytest.mark.parametrize(
    "value",
    [{"$set": 1}, {"a": {"$set": {"b": 1}}}, [{"$set": 1}], {"": 1}, {"a\0b": 1}, {"a": [{"b": {"$inc": 1}}]}],
    ids=repr,
)
def test_an_illegal_key_inside_a_metadata_value_is_refused_before_any_command_is_sent(
    value: Any, conversation: Repository, commands: Commands
) -> None:
    with pytest.raises(ValueError, match="metadata"):
        conversation.update_metadata("s", {"field": value})
    assert commands == []


def test_metadata_never_reaches_outside_the_metadata(conversation: Repository, app: Application) -> None:
    before = app.session()
    conversation.update_metadata("s", {"session_id": "x", "agents.a.state": 1, "feedbacks": []})
    after = app.session()
    for unchanged in ("_id", "session_id", "agents", "agent_ids", "feedbacks"):
        assert after[unchanged] == before[unchanged]


def test_the_same_feedback_object_can_be_given_twice(session: Repository) -> None:
    feedback = {"rating": "up"}
    for _ in range(2):
        assert session.add_feedback("s", feedback) is None
    assert [given["rating"] for given in session.get_feedbacks("s")] == ["up", "up"]


# --- graphs and swarms ----------------------------------------------------------------------------


def test_the_state_of_a_multi_agent_is_stored_read_and_replaced(session: Repository, app: Application) -> None:
    assert session.create_multi_agent("s", MultiAgent("graph", {"status": "pending", "old": 1})) is None
    assert_same(session.read_multi_agent("s", "graph"), {"status": "pending", "old": 1})
    assert session.update_multi_agent("s", MultiAgent("graph", {"status": "completed"})) is None
    assert_same(session.read_multi_agent("s", "graph"), {"status": "completed"})
    stored = app.session()["multi_agents"]["graph"]
    assert_same(stored["state"], {"status": "completed"})
    assert isinstance(stored["created_at"], datetime)
    assert stored["updated_at"] >= stored["created_at"]


def test_a_multi_agent_and_an_agent_of_the_same_name_do_not_meet(conversation: Repository) -> None:
    conversation.create_multi_agent("s", MultiAgent("a", {"status": "pending"}))
    conversation.create_message("s", "a", a_message())
    assert conversation.read_multi_agent("s", "a") == {"status": "pending"}
    assert len(conversation.list_messages("s", "a")) == 1


@pytest.mark.slow
def test_the_state_of_a_strands_graph_restores_the_graph(session: Repository) -> None:
    def a_graph() -> Any:
        builder = GraphBuilder()
        builder.set_graph_id("writers")
        builder.add_node(Agent(name="first"), "first")
        builder.add_node(Agent(name="second"), "second")
        builder.add_edge("first", "second")
        builder.set_entry_point("first")
        builder.set_max_node_executions(10)
        return builder.build()

    graph = a_graph()
    graph.state.task = [{"image": {"format": "png", "source": {"bytes": b"\x89PNG"}}}]
    session.create_multi_agent("s", graph)
    graph.state.execution_count = 3
    session.update_multi_agent("s", graph)
    state = session.read_multi_agent("s", "writers")
    assert_same(state, graph.serialize_state())
    assert state is not None
    a_graph().deserialize_state(state)


# --- documents of older versions and of other writers ---------------------------------------------


def stamp(minute: int, second: int = 0) -> datetime:
    return datetime(2024, 1, 26, 10, minute, second, tzinfo=timezone.utc)


def legacy_document(*messages: dict[str, Any]) -> dict[str, Any]:
    """The document of the specification: no counters, no incarnation, plain texts, ids from 1."""

    def said(message_id: int, role: str, text: str, second: int) -> dict[str, Any]:
        times = {"created_at": stamp(30, second), "updated_at": stamp(30, second)}
        return {"message_id": message_id, "role": role, "content": text, **times}

    answer = said(2, "assistant", "Hi! How can I help you?", 55)
    times = {"created_at": stamp(30, 45), "updated_at": stamp(35, 12)}
    agent_data = {
        "agent_id": "a",
        "model": "claude-3-sonnet",
        "system_prompt": "You are a helpful assistant",
        "created_at": "2024-01-26T10:30:45.123456Z",
        "updated_at": "2024-01-26T10:35:12.456789Z",
    }
    stored = list(messages) or [said(1, "user", "Hello!", 50), {**answer, "event_loop_metrics": METRICS}]
    return {
        "_id": "s",
        "session_id": "s",
        "session_type": "default",
        **times,
        "metadata": {"user_name": "Alice", "priority": "high"},
        "feedbacks": [{"rating": "up", "comment": "Great response!", "created_at": stamp(36)}],
        "agents": {"a": {"agent_data": agent_data, **times, "messages": stored}},
    }


@pytest.fixture
def legacy(repository: Repository, app: Application) -> Repository:
    app.database[SESSIONS].insert_one(legacy_document())
    return repository


def test_the_documented_document_is_readable(legacy: Repository) -> None:
    session: Any = legacy.read_session("s")
    assert (session.session_id, session.session_type) == ("s", "default")
    assert times_of(session) == (stamp(30, 45), stamp(35, 12))
    agent = agent_of(legacy)
    assert (agent.agent_id, agent.model) == ("a", "claude-3-sonnet")
    assert agent.system_prompt == "You are a helpful assistant"
    assert (agent.state, agent.conversation_manager_state) == ({}, {})
    assert moment(agent.created_at) == moment("2024-01-26T10:30:45.123456Z")
    messages = legacy.list_messages("s", "a")
    assert ids_of(messages) == [1, 2]
    assert_same(messages[0].message, {"role": "user", "content": [{"text": "Hello!"}]})
    assert_same(messages[1].message, {"role": "assistant", "content": [{"text": "Hi! How can I help you?"}]})
    assert moment(messages[0].created_at) == stamp(30, 50)
    assert text_of(message_of(legacy, 2)) == "Hi! How can I help you?"
    assert legacy.get_metadata("s") == {"metadata": {"user_name": "Alice", "priority": "high"}}
    assert [feedback["rating"] for feedback in legacy.get_feedbacks("s")] == ["up"]


def test_the_first_message_appended_to_an_older_document_goes_behind_what_is_there_and_adds_the_counters(
    legacy: Repository, app: Application
) -> None:
    legacy.create_message("s", "a", a_message(3, "And now?"))
    assert ids_of(legacy.list_messages("s", "a")) == [1, 2, 3]
    assert app.record()["message_count"] == 4
    assert isinstance(app.session()["incarnation"], ObjectId)
    legacy.create_message("s", "a", a_message(4, "Later"))
    assert ids_of(legacy.list_messages("s", "a")) == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("message_id", [1, 2])
def test_a_message_never_overwrites_one_of_an_older_document(
    message_id: int, legacy: Repository, app: Application
) -> None:
    before = app.record()["messages"]
    with pytest.raises(SessionConflictError):
        legacy.create_message("s", "a", a_message(message_id, "intruder"))
    assert app.record()["messages"] == before


def test_an_agent_of_an_older_document_can_be_updated(legacy: Repository) -> None:
    legacy.update_agent("s", an_agent(state={"step": 1}))
    agent = agent_of(legacy)
    assert (agent.state, agent.model) == ({"step": 1}, "claude-3-sonnet")
    assert moment(agent.created_at) == moment("2024-01-26T10:30:45.123456Z")
    assert ids_of(legacy.list_messages("s", "a")) == [1, 2]


def test_a_message_of_an_older_document_can_be_rewritten(legacy: Repository, app: Application) -> None:
    before = app.record()["messages"][1]
    legacy.update_message("s", "a", a_message(2, "[removed]", "assistant"))
    assert text_of(message_of(legacy, 2)) == "[removed]"
    stored = app.record()["messages"][1]
    assert stored["created_at"] == before["created_at"]
    assert_same(stored["event_loop_metrics"], METRICS)
    assert text_of(message_of(legacy, 1)) == "Hello!"


def test_an_older_document_takes_metadata_feedback_agents_and_deletion(legacy: Repository) -> None:
    legacy.update_metadata("s", {"priority": "low"})
    legacy.add_feedback("s", {"rating": "down"})
    legacy.create_agent("s", an_agent("b"))
    legacy.create_message("s", "b", a_message(0, "to the second"))
    legacy.create_multi_agent("s", MultiAgent("graph", {"a": 1}))
    assert legacy.get_metadata("s") == {"metadata": {"user_name": "Alice", "priority": "low"}}
    assert [feedback["rating"] for feedback in legacy.get_feedbacks("s")] == ["up", "down"]
    assert text_of(message_of(legacy, 0, "b")) == "to the second"
    assert ids_of(legacy.list_messages("s", "a")) == [1, 2]
    legacy.delete_session("s")
    assert not legacy.session_exists("s")


def nested(message_id: int, role: str, content: Any, **more: Any) -> dict[str, Any]:
    """A message as an older version stored it."""
    return {"message_id": message_id, "message": {"role": role, "content": content}, **more}


def test_a_nested_message_is_readable_and_can_be_rewritten_without_leaving_the_original(
    repository: Repository, app: Application
) -> None:
    iso = "2024-01-26T10:30:50.123456+00:00"
    older = nested(0, "user", [{"text": SECRET}], created_at=iso, updated_at=iso)
    plain = nested(1, "assistant", "as plain text", redact_message=None)
    app.database[SESSIONS].insert_one(legacy_document(older, plain))
    first, second = repository.list_messages("s", "a")
    assert_same(first.message, {"role": "user", "content": [{"text": SECRET}]})
    assert moment(first.created_at) == moment(iso)
    assert_same(second.message, {"role": "assistant", "content": [{"text": "as plain text"}]})

    repository.update_message("s", "a", a_message(0, "[redacted]"))
    assert text_of(message_of(repository)) == "[redacted]"
    app.nothing_at_rest(SECRET)


def test_what_was_redacted_in_a_nested_message_is_shown_nowhere(repository: Repository, app: Application) -> None:
    redacted = {"role": "user", "content": [{"text": "[redacted]"}]}
    older = nested(0, "user", [{"text": SECRET}], redact_message=redacted)
    older["message"]["tracking_id"] = "t"
    app.database[SESSIONS].insert_one(legacy_document(older))

    assert text_of(message_of(repository)) == "[redacted]"
    assert_same(app.agent(model=OfflineScriptedModel()).messages, [{**redacted, "tracking_id": "t"}])
    assert repository.list_sessions().sessions[0].title == "[redacted]"
    repository.index_messages()
    assert [hit.text for hit in repository.search_messages("redacted")] == ["[redacted]"]
    [shown] = app.database[repository.create_messages_view()].find()
    assert shown["content"] == [{"text": "[redacted]"}]


@pytest.mark.slow
def test_fields_that_the_library_does_not_know_survive_every_write(repository: Repository, app: Application) -> None:
    unknown = {"by": "another version", "deep": [{"a": 1}]}
    document = legacy_document() | {"unknown": unknown}
    agent = document["agents"]["a"]
    for part in (agent, agent["agent_data"], *agent["messages"]):
        part["unknown"] = unknown
    app.database[SESSIONS].insert_one(document)

    assert len(repository.list_messages("s", "a")) == 2
    repository.update_agent("s", an_agent(state={"step": 1}))
    repository.create_message("s", "a", a_message(3))
    repository.update_message("s", "a", a_message(2, "rewritten", "assistant"))
    repository.update_metadata("s", {"a": 1})
    repository.add_feedback("s", {"rating": "up"})
    repository.create_multi_agent("s", MultiAgent("graph", {}))

    agent = app.record()
    assert app.session()["unknown"] == agent["unknown"] == agent["agent_data"]["unknown"] == unknown
    assert [message.get("unknown") for message in agent["messages"]] == [unknown, unknown, None]


@pytest.mark.slow
def test_content_blocks_that_nobody_knows_yet_are_readable(repository: Repository, app: Application) -> None:
    content = [{"hologram": {"depth": 3}}, {"text": "Hello!"}]
    app.database[SESSIONS].insert_one(legacy_document({"message_id": 1, "role": "user", "content": content}))
    assert_same(message_of(repository, 1).message["content"], content)


NOT_OURS = [
    {"__encoded__": "int", "value": "no number"},
    {"__encoded__": "int", "value": None},
    {"__encoded__": "str", "value": b"\xff"},
    {"__encoded__": "dict", "value": [1, 2]},
    {"__encoded__": "dict", "value": [[{}, 1]]},
    {"__encoded__": "bson", "value": b"no bson"},
    {"__encoded__": {"a": 1}, "value": 1},
]


@pytest.mark.slow
@pytest.mark.parametrize("value", NOT_OURS, ids=repr)
def test_what_others_wrote_never_makes_a_session_unopenable(value: Any, legacy: Repository, app: Application) -> None:
    spoilt = {
        "unknown": value,
        "metadata.field": value,
        "agents.a.unknown": value,
        "agents.a.agent_data.state": {"field": value},
        "agents.a.messages.0.unknown": value,
        "agents.a.messages.0.content": [{"toolUse": {"input": value}}],
    }
    app.database[SESSIONS].update_one({"_id": "s"}, {"$set": spoilt})
    assert_same(agent_of(legacy).state, {"field": value})
    first = legacy.list_messages("s", "a")[0]
    assert_same(first.message["content"], [{"toolUse": {"input": value}}])
    assert_same(legacy.get_metadata("s")["metadata"]["field"], value)
    assert legacy.read_session("s") is not None
    legacy.create_message("s", "a", a_message(3, "goes on"))


A_MESSAGE = {"message_id": 0, "role": "user", "content": [{"text": "x"}]}
BARE_DOCUMENTS: dict[str, dict[str, Any]] = {
    "no-agents": {},
    "agent-without-messages": {"session_id": "s", "agents": {"a": {"agent_data": {"agent_id": "a"}}}},
    "agent-without-anything": {"agents": {"a": {}}},
    "message-without-times": {"agents": {"a": {"agent_data": {}, "messages": [A_MESSAGE]}}},
}


@pytest.mark.parametrize("document", BARE_DOCUMENTS.values(), ids=BARE_DOCUMENTS)
def test_a_document_with_almost_nothing_in_it_never_makes_a_session_unopenable(
    document: dict[str, Any], repository: Repository, app: Application
) -> None:
    app.database[SESSIONS].insert_one({"_id": "s", **document})
    session: Any = repository.read_session("s")
    assert session.session_id == "s"
    assert repository.session_exists("s")
    assert repository.get_metadata("s") == {"metadata": {}}
    assert repository.get_feedbacks("s") == []
    assert repository.read_multi_agent("s", "graph") is None
    stored = repository.list_messages("s", "a")
    if "agents" in document:
        assert agent_of(repository).agent_id == "a"
    else:
        assert repository.read_agent("s", "a") is None
        repository.create_agent("s", an_agent())
    repository.create_message("s", "a", a_message(len(stored), "goes on"))
    assert text_of(repository.list_messages("s", "a")[-1]) == "goes on"
    repository.update_metadata("s", {"status": "open"})
    repository.add_feedback("s", {"rating": "up"})
    assert repository.get_metadata("s") == {"metadata": {"status": "open"}}
    assert len(repository.get_feedbacks("s")) == 1


# --- an answer that never arrives ------------------------------------------------------------------


@pytest.mark.slow
def test_an_update_whose_answer_was_lost_is_applied(conversation: Repository, app: Application, proxies: Any) -> None:
    proxy = proxies()
    unlucky = repository_of(app.new_client(proxy.uri), app.database.name)
    conversation.create_multi_agent("s", MultiAgent("graph", {"status": "old"}))
    for update in (
        lambda: unlucky.update_agent("s", an_agent(state={"status": "new"})),
        lambda: unlucky.update_multi_agent("s", MultiAgent("graph", {"status": "new"})),
    ):
        proxy.cut(Cut("update", "before its answer arrives"))
        update()
    assert proxy.cut_commands == ["update", "update"]
    assert agent_of(conversation).state == {"status": "new"}
    assert conversation.read_multi_agent("s", "graph") == {"status": "new"}
