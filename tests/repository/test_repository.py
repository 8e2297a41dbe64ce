"""`MongoDBSessionRepository`: every method of the reference, on a real server."""

import contextlib
import inspect
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from bson import ObjectId
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from offline_model import OfflineScriptedModel
from pymongo import AsyncMongoClient, MongoClient
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError, InvalidOperation, OperationFailure, PyMongoError
from strands import Agent
from strands.multiagent import GraphBuilder
from strands.session.session_repository import SessionRepository
from strands.types.exceptions import SessionException
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType
from support.commands import CommandRecorder
from support.equality import assert_same
from support.failpoints import fail_command

from mongodb_session_manager import (
    AgentNotFoundError,
    MessageNotFoundError,
    MongoDBSessionError,
    MongoDBSessionManager,
    MongoDBSessionRepository,
    SessionConflictError,
    SessionExistsError,
    SessionNotFoundError,
)

SECRET = "4929-1234-5678-9012"


def a_message(message_id: Any = 0, text: str = "Hello!", role: str = "user", **of_message: Any) -> SessionMessage:
    message = {"role": role, "content": [{"text": text}], **of_message}
    return SessionMessage(message=message, message_id=message_id)  # type: ignore[arg-type]


def an_agent(agent_id: str = "assistant-1", state: dict[str, Any] | None = None) -> SessionAgent:
    return SessionAgent(agent_id=agent_id, state=state or {}, conversation_manager_state={})


def text_of(message: SessionMessage | None) -> str:
    assert message is not None
    return message.to_message()["content"][0]["text"]


def ids_of(messages: list[SessionMessage]) -> list[int]:
    return [message.message_id for message in messages]


def moment(iso: str) -> datetime:
    """The time an ISO string names; it must say its offset."""
    parsed = datetime.fromisoformat(iso.replace("Z", "+00:00"))
    assert parsed.tzinfo is not None
    return parsed


def is_recent(time: datetime) -> bool:
    if time.tzinfo is None:
        time = time.replace(tzinfo=timezone.utc)
    return abs(datetime.now(timezone.utc) - time) < timedelta(minutes=1)


class MultiAgent:
    """The two things a repository asks of a graph or a swarm."""

    def __init__(self, multi_agent_id: str, state: dict[str, Any]) -> None:
        self.id = multi_agent_id
        self.state = state

    def serialize_state(self) -> dict[str, Any]:
        return self.state


@pytest.fixture
def repository(client: MongoClient, database_name: str) -> MongoDBSessionRepository:
    return MongoDBSessionRepository(client=client, database_name=database_name, collection_name="sessions")


@pytest.fixture
def session(repository: MongoDBSessionRepository) -> MongoDBSessionRepository:
    """The repository, with the session `user-123` in it."""
    repository.create_session(Session(session_id="user-123", session_type="chat"))
    return repository


@pytest.fixture
def conversation(session: MongoDBSessionRepository) -> MongoDBSessionRepository:
    """The repository, with the agent `assistant-1`, who has no messages yet, in the session `user-123`."""
    session.create_agent("user-123", an_agent())
    return session


@pytest.fixture
def documents(client: MongoClient, database_name: str) -> Collection[dict[str, Any]]:
    """The collection of session documents, as any reader of the database sees it."""
    return client[database_name]["sessions"].with_options(CodecOptions(tz_aware=True))


@pytest.fixture
def client_in_trouble(server: Any) -> Iterator[MongoClient]:
    """A client whose commands `fail_command(…, app_name="in trouble")` can make fail."""
    with MongoClient(server.uri, appname="in trouble") as client:
        yield client


@pytest.fixture
def recorder() -> CommandRecorder:
    return CommandRecorder()


@pytest.fixture
def watched_client(server: Any, recorder: CommandRecorder) -> Iterator[MongoClient]:
    with MongoClient(server.uri, event_listeners=[recorder]) as client:
        yield client


@pytest.fixture
def watched(
    conversation: MongoDBSessionRepository,
    watched_client: MongoClient,
    database_name: str,
    recorder: CommandRecorder,
) -> MongoDBSessionRepository:
    """A second repository on the same conversation; `recorder` sees what it sends from now on."""
    repository = MongoDBSessionRepository(
        client=watched_client, database_name=database_name, collection_name="sessions"
    )
    recorder.clear()
    return repository


def document_of(documents: Collection[dict[str, Any]], session_id: str = "user-123") -> dict[str, Any]:
    document = documents.find_one({"_id": session_id})
    assert document is not None
    return document


def stored_messages(documents: Collection[dict[str, Any]], agent_id: str = "assistant-1") -> list[dict[str, Any]]:
    return document_of(documents)["agents"][agent_id]["messages"]


def places_that_hold(needle: bytes, client: MongoClient, database_name: str) -> list[str]:
    """The collections with a document whose raw BSON has `needle` in it."""
    raw = CodecOptions(document_class=RawBSONDocument)
    database = client[database_name]
    return [
        name
        for name in database.list_collection_names()
        if any(needle in bytes(document.raw) for document in database[name].with_options(raw).find())
    ]


# --- the class ------------------------------------------------------------------------------------


def test_the_repository_is_a_strands_repository_found_in_the_documented_places() -> None:
    from mongodb_session_manager import mongodb_session_repository

    assert mongodb_session_repository.MongoDBSessionRepository is MongoDBSessionRepository
    assert issubclass(MongoDBSessionRepository, SessionRepository)


DOCUMENTED_PARAMETERS = {
    "__init__": [
        "connection_string",
        "database_name",
        "collection_name",
        "client",
        "metadata_fields",
        "kwargs",
    ],
    "create_session": ["session", "kwargs"],
    "read_session": ["session_id", "kwargs"],
    "create_agent": ["session_id", "session_agent", "kwargs"],
    "read_agent": ["session_id", "agent_id", "kwargs"],
    "update_agent": ["session_id", "session_agent", "kwargs"],
    "create_message": ["session_id", "agent_id", "session_message", "kwargs"],
    "read_message": ["session_id", "agent_id", "message_id", "kwargs"],
    "update_message": ["session_id", "agent_id", "session_message", "kwargs"],
    "list_messages": ["session_id", "agent_id", "limit", "offset", "kwargs"],
    "create_multi_agent": ["session_id", "multi_agent", "kwargs"],
    "read_multi_agent": ["session_id", "multi_agent_id", "kwargs"],
    "update_multi_agent": ["session_id", "multi_agent", "kwargs"],
    "update_metadata": ["session_id", "metadata"],
    "get_metadata": ["session_id"],
    "delete_metadata": ["session_id", "metadata_keys"],
    "add_feedback": ["session_id", "feedback"],
    "get_feedbacks": ["session_id"],
    "close": [],
    "_ensure_indexes": [],
}


@pytest.mark.parametrize("method", DOCUMENTED_PARAMETERS)
def test_a_method_takes_the_documented_parameters_in_the_documented_order(method: str) -> None:
    parameters = list(inspect.signature(getattr(MongoDBSessionRepository, method)).parameters)
    documented = ["self", *DOCUMENTED_PARAMETERS[method]]
    without_additions = [name for name in parameters if name in documented]
    assert without_additions == documented
    positional = [name for name in documented if name != "kwargs"]
    assert parameters[: len(positional)] == positional


def test_the_defaults_of_the_constructor_and_of_pagination_are_the_documented_ones() -> None:
    constructor = inspect.signature(MongoDBSessionRepository.__init__).parameters
    assert constructor["connection_string"].default is None
    assert constructor["database_name"].default == "database_name"
    assert constructor["collection_name"].default == "collection_name"
    assert constructor["client"].default is None
    assert constructor["metadata_fields"].default is None
    pagination = inspect.signature(MongoDBSessionRepository.list_messages).parameters
    assert pagination["limit"].default is None
    assert pagination["offset"].default == 0


# --- construction ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_repository_made_from_a_connection_string_owns_its_client_and_closes_it(
    server: Any, database_name: str
) -> None:
    repository = MongoDBSessionRepository(
        connection_string=server.uri, database_name=database_name, collection_name="sessions"
    )
    assert repository._owns_client is True
    repository.create_session(Session(session_id="user-123", session_type="chat"))
    repository.close()
    with pytest.raises(InvalidOperation):
        repository.client.admin.command("ping")


@pytest.mark.slow
def test_a_repository_never_closes_a_borrowed_client(client: MongoClient, database_name: str) -> None:
    repository = MongoDBSessionRepository(client=client, database_name=database_name)
    assert repository._owns_client is False
    assert repository.client is client
    repository.close()
    assert client.admin.command("ping")["ok"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("owned", [True, False], ids=["owned", "borrowed"])
def test_closing_twice_does_no_harm(owned: bool, server: Any, client: MongoClient, database_name: str) -> None:
    source: dict[str, Any] = {"connection_string": server.uri} if owned else {"client": client}
    repository = MongoDBSessionRepository(database_name=database_name, **source)
    repository.close()
    repository.close()


@pytest.mark.slow
def test_a_connection_string_beside_a_client_is_ignored(client: MongoClient, database_name: str) -> None:
    repository = MongoDBSessionRepository("mongodb://nowhere.invalid:1/", database_name, "sessions", client)
    repository.create_session(Session(session_id="user-123", session_type="chat"))
    assert repository.client is client
    assert repository._owns_client is False


@pytest.mark.slow
def test_options_for_the_client_reach_the_client(server: Any, database_name: str) -> None:
    repository = MongoDBSessionRepository(
        connection_string=server.uri,
        database_name=database_name,
        collection_name="sessions",
        maxPoolSize=50,
        minPoolSize=10,
        retryWrites=True,
        appname="orders",
    )
    options = repository.client.options
    assert (options.pool_options.max_pool_size, options.pool_options.min_pool_size) == (50, 10)
    assert options.retry_writes is True
    assert options.pool_options.appname == "orders"
    repository.close()


@pytest.mark.slow
def test_the_client_the_database_and_the_collection_are_public(
    repository: MongoDBSessionRepository, client: MongoClient, database_name: str
) -> None:
    assert repository.client is client
    assert repository.database.name == database_name
    assert repository.collection.full_name == f"{database_name}.sessions"


def test_without_names_the_documented_names_are_used(client: MongoClient) -> None:
    repository = MongoDBSessionRepository(client=client)
    assert repository.database.name == "database_name"
    assert repository.collection.name == "collection_name"
    client.drop_database("database_name")


def test_a_repository_needs_a_connection_string_or_a_client() -> None:
    with pytest.raises(ValueError, match="connection_string"):
        MongoDBSessionRepository(database_name="chat_db")


def test_unacknowledged_writes_are_refused_because_they_could_lose_messages(server: Any, database_name: str) -> None:
    with pytest.raises(ValueError, match="w=0"):
        MongoDBSessionRepository(connection_string=server.uri, database_name=database_name, w=0)
    with MongoClient(server.uri, w=0) as client, pytest.raises(ValueError, match="w=0"):
        MongoDBSessionRepository(client=client, database_name=database_name)


def test_an_async_client_is_refused_with_the_reason(server: Any, database_name: str) -> None:
    client: Any = AsyncMongoClient(server.uri, connect=False)
    with pytest.raises(TypeError, match="AsyncMongoClient"):
        MongoDBSessionRepository(client=client, database_name=database_name)


# --- sessions -------------------------------------------------------------------------------------


@pytest.mark.topology
def test_a_new_session_is_one_readable_document(
    repository: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    session = Session(session_id="user-123", session_type="chat")  # type: ignore[arg-type]
    session.updated_at = session.created_at  # Strands asks the clock twice.
    assert repository.create_session(session) is session

    document = document_of(documents)
    incarnation = document.pop("incarnation")
    created_at, updated_at = document.pop("created_at"), document.pop("updated_at")
    assert isinstance(incarnation, ObjectId)
    assert isinstance(created_at, datetime)
    assert is_recent(created_at)
    assert created_at == updated_at
    assert document.pop("multi_agents", {}) == {}
    assert_same(
        document,
        {
            "_id": "user-123",
            "session_id": "user-123",
            "session_type": "chat",
            "schema_version": 1,
            "agent_ids": [],
            "metadata": {},
            "feedbacks": [],
            "agents": {},
        },
    )


def test_a_session_is_read_as_it_was_created(repository: MongoDBSessionRepository) -> None:
    created = repository.create_session(Session(session_id="user-123", session_type="chat"))  # type: ignore[arg-type]
    read = repository.read_session("user-123")
    assert read is not None
    assert (read.session_id, read.session_type) == ("user-123", "chat")
    assert (moment(read.created_at), moment(read.updated_at)) == (
        moment(created.created_at),
        moment(created.updated_at),
    )
    assert is_recent(moment(read.created_at))


def test_the_session_type_of_strands_is_stored_as_its_name(
    repository: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    repository.create_session(Session(session_id="user-123", session_type=SessionType.AGENT))
    assert_same(document_of(documents)["session_type"], "AGENT")
    read = repository.read_session("user-123")
    assert read is not None
    assert read.session_type == SessionType.AGENT


def test_a_session_that_exists_is_not_created_again_and_stays_as_it_is(
    conversation: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    conversation.create_message("user-123", "assistant-1", a_message())
    before = document_of(documents)
    with pytest.raises(SessionExistsError, match="user-123") as refusal:
        conversation.create_session(Session(session_id="user-123", session_type="other"))  # type: ignore[arg-type]
    assert isinstance(refusal.value, DuplicateKeyError)
    assert isinstance(refusal.value, PyMongoError)
    assert isinstance(refusal.value, SessionException)
    assert document_of(documents) == before


@pytest.mark.topology
def test_of_many_requests_that_create_one_session_exactly_one_succeeds(
    repository: MongoDBSessionRepository,
) -> None:
    def create(_: int) -> bool:
        try:
            repository.create_session(Session(session_id="user-123", session_type="chat"))  # type: ignore[arg-type]
        except SessionExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(create, range(8))) == 1


def test_session_exists_tells_whether_a_session_exists(session: MongoDBSessionRepository) -> None:
    assert session.session_exists("user-123") is True
    assert session.session_exists("user-12") is False


@pytest.mark.topology
def test_deleting_a_session_leaves_nothing_of_it_anywhere(
    conversation: MongoDBSessionRepository, client: MongoClient, database_name: str
) -> None:
    large = SECRET.encode() + b"\x89PNG" * 250_000
    image = {"image": {"format": "png", "source": {"bytes": large}}}
    conversation.create_message("user-123", "assistant-1", a_message(0, SECRET))
    with_image = {"role": "user", "content": [image]}
    conversation.create_message("user-123", "assistant-1", SessionMessage(with_image, 1))  # type: ignore[arg-type]
    conversation.update_agent("user-123", an_agent(state={"card": SECRET}))
    conversation.update_metadata("user-123", {"card": SECRET})
    conversation.create_session(Session(session_id="another", session_type="chat"))  # type: ignore[arg-type]
    assert places_that_hold(SECRET.encode(), client, database_name)

    conversation.delete_session("user-123")

    assert places_that_hold(SECRET.encode(), client, database_name) == []
    assert places_that_hold(b"user-123", client, database_name) == []
    assert conversation.session_exists("another")


def test_a_deleted_session_is_missing_and_cannot_be_deleted_again(
    conversation: MongoDBSessionRepository,
) -> None:
    conversation.delete_session("user-123")
    assert conversation.read_session("user-123") is None
    with pytest.raises(SessionNotFoundError, match="user-123"):
        conversation.delete_session("user-123")


def test_a_session_created_after_a_deletion_begins_empty(
    conversation: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    conversation.create_message("user-123", "assistant-1", a_message())
    first = document_of(documents)["incarnation"]
    conversation.delete_session("user-123")
    conversation.create_session(Session(session_id="user-123", session_type="chat"))  # type: ignore[arg-type]
    assert conversation.read_agent("user-123", "assistant-1") is None
    assert conversation.list_messages("user-123", "assistant-1") == []
    assert document_of(documents)["incarnation"] != first


@pytest.mark.topology
def test_a_late_write_does_not_bring_a_deleted_session_back(
    conversation: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    conversation.create_message("user-123", "assistant-1", a_message())
    conversation.delete_session("user-123")
    with pytest.raises(SessionNotFoundError):
        conversation.create_message("user-123", "assistant-1", a_message(1))
    with pytest.raises(SessionNotFoundError):
        conversation.update_metadata("user-123", {"status": "open"})
    assert documents.count_documents({}) == 0


# --- what is missing ------------------------------------------------------------------------------

Operation = Callable[[MongoDBSessionRepository], Any]

READERS: dict[str, tuple[Operation, Any]] = {
    "session": (lambda r: r.read_session("missing"), None),
    "agent-of-missing-session": (lambda r: r.read_agent("missing", "assistant-1"), None),
    "agent": (lambda r: r.read_agent("user-123", "missing"), None),
    "message-of-missing-session": (lambda r: r.read_message("missing", "assistant-1", 0), None),
    "message-of-missing-agent": (lambda r: r.read_message("user-123", "missing", 0), None),
    "message": (lambda r: r.read_message("user-123", "assistant-1", 7), None),
    "messages-of-missing-session": (lambda r: r.list_messages("missing", "assistant-1"), []),
    "documents-of-missing-session": (lambda r: r.list_message_documents("missing", "assistant-1"), []),
    "messages-of-missing-agent": (lambda r: r.list_messages("user-123", "missing"), []),
    "messages-of-new-agent": (lambda r: r.list_messages("user-123", "assistant-1"), []),
    "multi-agent-of-missing-session": (lambda r: r.read_multi_agent("missing", "graph"), None),
    "multi-agent": (lambda r: r.read_multi_agent("user-123", "missing"), None),
    "metadata-of-missing-session": (lambda r: r.get_metadata("missing"), {}),
    "metadata-of-new-session": (lambda r: r.get_metadata("user-123"), {"metadata": {}}),
    "feedbacks-of-missing-session": (lambda r: r.get_feedbacks("missing"), []),
    "feedbacks-of-new-session": (lambda r: r.get_feedbacks("user-123"), []),
}


@pytest.mark.parametrize(("read", "result"), READERS.values(), ids=READERS)
def test_reading_what_is_missing_is_no_error(
    read: Operation, result: Any, conversation: MongoDBSessionRepository
) -> None:
    assert_same(read(conversation), result)


WRITERS: dict[str, tuple[Operation, Any]] = {
    "create_agent": (lambda r: r.create_agent("missing", an_agent()), SessionNotFoundError),
    "update_agent-session": (lambda r: r.update_agent("missing", an_agent()), SessionNotFoundError),
    "update_agent-agent": (lambda r: r.update_agent("user-123", an_agent("missing")), AgentNotFoundError),
    "create_message-session": (
        lambda r: r.create_message("missing", "assistant-1", a_message()),
        SessionNotFoundError,
    ),
    "create_message-agent": (
        lambda r: r.create_message("user-123", "missing", a_message()),
        AgentNotFoundError,
    ),
    "update_message-session": (
        lambda r: r.update_message("missing", "assistant-1", a_message()),
        SessionNotFoundError,
    ),
    "update_message-agent": (
        lambda r: r.update_message("user-123", "missing", a_message()),
        (AgentNotFoundError, MessageNotFoundError),
    ),
    "update_message-message": (
        lambda r: r.update_message("user-123", "assistant-1", a_message(7)),
        MessageNotFoundError,
    ),
    "create_multi_agent": (
        lambda r: r.create_multi_agent("missing", MultiAgent("graph", {})),
        SessionNotFoundError,
    ),
    "update_multi_agent-session": (
        lambda r: r.update_multi_agent("missing", MultiAgent("graph", {})),
        SessionNotFoundError,
    ),
    "update_multi_agent-multi_agent": (
        lambda r: r.update_multi_agent("user-123", MultiAgent("missing", {})),
        AgentNotFoundError,
    ),
    "update_metadata": (lambda r: r.update_metadata("missing", {"a": 1}), SessionNotFoundError),
    "delete_metadata": (lambda r: r.delete_metadata("missing", ["a"]), SessionNotFoundError),
    "add_feedback": (lambda r: r.add_feedback("missing", {"rating": "up"}), SessionNotFoundError),
    "delete_session": (lambda r: r.delete_session("missing"), SessionNotFoundError),
}


@pytest.mark.parametrize(("write", "error"), WRITERS.values(), ids=WRITERS)
def test_writing_to_what_is_missing_is_an_error_that_names_it_and_creates_nothing(
    write: Operation,
    error: Any,
    conversation: MongoDBSessionRepository,
    documents: Collection[dict[str, Any]],
) -> None:
    before = list(documents.find())
    with pytest.raises(error, match=r"missing|7") as refusal:
        write(conversation)
    assert isinstance(refusal.value, SessionException)
    assert isinstance(refusal.value, ValueError)
    assert list(documents.find()) == before


DATABASE_READERS: dict[str, Operation] = {
    "read_session": lambda r: r.read_session("user-123"),
    "session_exists": lambda r: r.session_exists("user-123"),
    "read_agent": lambda r: r.read_agent("user-123", "assistant-1"),
    "read_message": lambda r: r.read_message("user-123", "assistant-1", 0),
    "list_messages": lambda r: r.list_messages("user-123", "assistant-1"),
    "read_multi_agent": lambda r: r.read_multi_agent("user-123", "graph"),
    "get_metadata": lambda r: r.get_metadata("user-123"),
    "get_feedbacks": lambda r: r.get_feedbacks("user-123"),
}


@pytest.mark.topology
@pytest.mark.parametrize("read", DATABASE_READERS.values(), ids=DATABASE_READERS)
def test_a_failed_read_is_an_error_and_never_looks_like_an_empty_history(
    read: Operation,
    conversation: MongoDBSessionRepository,
    client: MongoClient,
    client_in_trouble: MongoClient,
    database_name: str,
) -> None:
    repository = MongoDBSessionRepository(
        client=client_in_trouble, database_name=database_name, collection_name="sessions"
    )
    read(repository)
    with (
        fail_command(client, ["find", "aggregate", "count"], app_name="in trouble", error_code=13),
        pytest.raises(OperationFailure),
    ):
        read(repository)


# --- agents ---------------------------------------------------------------------------------------


def test_an_agent_is_stored_in_the_documented_shape(
    session: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    agent: Any = SessionAgent("assistant-1", {"step": 1}, {"removed_message_count": 0}, {"interrupt_state": {}})
    agent.model = "claude-3-sonnet"
    agent.system_prompt = "You are a helpful assistant"
    assert session.create_agent("user-123", agent) is None

    document = document_of(documents)
    assert document["agent_ids"] == ["assistant-1"]
    assert list(document["agents"]) == ["assistant-1"]
    stored = document["agents"]["assistant-1"]
    stored.pop("usage", None)
    assert isinstance(stored.pop("created_at"), datetime)
    assert isinstance(stored.pop("updated_at"), datetime)
    agent_data = stored.pop("agent_data")
    assert is_recent(moment(agent_data.pop("created_at")))
    assert is_recent(moment(agent_data.pop("updated_at")))
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


def test_an_agent_is_read_as_it_was_created(session: MongoDBSessionRepository) -> None:
    agent = SessionAgent("assistant-1", {"step": 1}, {"removed_message_count": 3}, {"model_state": {"a": 1}})
    session.create_agent("user-123", agent)
    read: Any = session.read_agent("user-123", "assistant-1")
    assert isinstance(read, SessionAgent)
    assert read.agent_id == "assistant-1"
    assert_same(read.state, {"step": 1})
    assert_same(read.conversation_manager_state, {"removed_message_count": 3})
    assert_same(read._internal_state, {"model_state": {"a": 1}})
    assert moment(read.created_at) == moment(agent.created_at)
    assert moment(read.updated_at) == moment(agent.updated_at)
    assert (read.model, read.system_prompt) == (None, None)


def test_creating_an_agent_that_exists_never_erases_its_history(
    conversation: MongoDBSessionRepository,
) -> None:
    conversation.create_message("user-123", "assistant-1", a_message(0, "kept"))
    refused = None
    try:
        conversation.create_agent("user-123", an_agent())
    except MongoDBSessionError as error:
        refused = error
    assert refused is None or "assistant-1" in str(refused)
    assert text_of(conversation.read_message("user-123", "assistant-1", 0)) == "kept"


def test_updating_an_agent_replaces_its_state_and_keeps_its_creation_time_and_its_messages(
    session: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    session.create_agent("user-123", an_agent(state={"step": 1, "old": True}))
    session.create_message("user-123", "assistant-1", a_message())
    created: Any = session.read_agent("user-123", "assistant-1")
    before = document_of(documents)["agents"]["assistant-1"]

    update = SessionAgent("assistant-1", {"step": 2}, {"removed_message_count": 1}, {"model_state": {}})
    update.created_at = "2001-01-01T00:00:00+00:00"
    assert session.update_agent("user-123", update) is None

    read: Any = session.read_agent("user-123", "assistant-1")
    assert_same(read.state, {"step": 2})
    assert_same(read.conversation_manager_state, {"removed_message_count": 1})
    assert_same(read._internal_state, {"model_state": {}})
    assert moment(read.created_at) == moment(created.created_at)
    assert moment(read.updated_at) > moment(created.updated_at)
    after = document_of(documents)["agents"]["assistant-1"]
    assert after["created_at"] == before["created_at"]
    assert after["updated_at"] >= before["updated_at"]
    assert after["messages"] == before["messages"]
    assert after["message_count"] == 1


def test_the_model_and_the_system_prompt_of_an_agent_are_stored_and_outlive_updates_without_them(
    conversation: MongoDBSessionRepository,
) -> None:
    agent: Any = conversation.read_agent("user-123", "assistant-1")
    agent.model = "claude-3-sonnet"
    agent.system_prompt = "You are an expert coding assistant"
    conversation.update_agent("user-123", agent)
    conversation.update_agent("user-123", an_agent(state={"step": 2}))
    read: Any = conversation.read_agent("user-123", "assistant-1")
    assert (read.model, read.system_prompt) == ("claude-3-sonnet", "You are an expert coding assistant")
    assert read.state == {"step": 2}


def test_a_system_prompt_of_content_blocks_comes_back_as_it_was(session: MongoDBSessionRepository) -> None:
    agent: Any = an_agent()
    agent.system_prompt = [{"text": "Be brief."}, {"cachePoint": {"type": "default"}}]
    session.create_agent("user-123", agent)
    read: Any = session.read_agent("user-123", "assistant-1")
    assert_same(read.system_prompt, agent.system_prompt)


def test_the_agents_of_a_session_do_not_share_anything(conversation: MongoDBSessionRepository) -> None:
    conversation.create_agent("user-123", an_agent("assistant-2", {"mine": 2}))
    conversation.create_message("user-123", "assistant-1", a_message(0, "for one"))
    conversation.create_message("user-123", "assistant-2", a_message(0, "for two"))
    second = conversation.read_agent("user-123", "assistant-2")
    assert second is not None
    assert second.state == {"mine": 2}
    assert text_of(conversation.read_message("user-123", "assistant-1", 0)) == "for one"
    assert text_of(conversation.read_message("user-123", "assistant-2", 0)) == "for two"


# --- messages -------------------------------------------------------------------------------------


def test_a_message_is_stored_flat_with_its_times_as_dates(
    conversation: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    assert conversation.create_message("user-123", "assistant-1", a_message(0, "Hello!")) is None
    (stored,) = stored_messages(documents)
    assert is_recent(stored.pop("created_at"))
    assert is_recent(stored.pop("updated_at"))
    stored.pop("commit_id", None)
    assert_same(stored, {"message_id": 0, "role": "user", "content": [{"text": "Hello!"}]})


def test_what_strands_adds_to_a_message_is_stored_beside_its_content(
    conversation: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    metadata = {
        "usage": {"inputTokens": 3, "outputTokens": 5, "totalTokens": 8},
        "metrics": {"latencyMs": 12},
    }
    message = a_message(0, "Hi!", "assistant", tracking_id="t-1", metadata=metadata)
    conversation.create_message("user-123", "assistant-1", message)
    (stored,) = stored_messages(documents)
    assert stored["tracking_id"] == "t-1"
    assert_same(stored["metadata"], metadata)
    read = conversation.read_message("user-123", "assistant-1", 0)
    assert read is not None
    assert_same(read.message, message.message)


def test_a_message_is_read_as_it_was_created(conversation: MongoDBSessionRepository) -> None:
    message = a_message(0, "Hello!")
    conversation.create_message("user-123", "assistant-1", message)
    for read in (
        conversation.read_message("user-123", "assistant-1", message_id=0),
        *conversation.list_messages("user-123", "assistant-1"),
    ):
        assert type(read) is SessionMessage
        assert_same(read.message, {"role": "user", "content": [{"text": "Hello!"}]})
        assert read.message_id == 0
        assert read.redact_message is None
        assert moment(read.created_at) == moment(message.created_at)
        assert moment(read.updated_at) == moment(message.updated_at)
        assert is_recent(moment(read.created_at))


def test_a_plain_text_becomes_one_text_block(conversation: MongoDBSessionRepository) -> None:
    message: Any = {"role": "user", "content": "Hello!"}
    conversation.create_message("user-123", "assistant-1", SessionMessage(message, 0))
    read = conversation.read_message("user-123", "assistant-1", 0)
    assert read is not None
    assert_same(read.message["content"], [{"text": "Hello!"}])


def test_messages_count_from_any_id_and_may_leave_gaps(
    conversation: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    for message_id, text in ((1, "Hello!"), (2, "Hi! How can I help you?"), (10, "Much later")):
        conversation.create_message("user-123", "assistant-1", a_message(message_id, text))
        assert document_of(documents)["agents"]["assistant-1"]["message_count"] == message_id + 1
    assert ids_of(conversation.list_messages("user-123", "assistant-1")) == [1, 2, 10]
    assert text_of(conversation.read_message("user-123", "assistant-1", 10)) == "Much later"
    assert conversation.read_message("user-123", "assistant-1", 0) is None
    assert conversation.read_message("user-123", "assistant-1", 5) is None


@pytest.mark.parametrize("message_id", [1, 2])
def test_a_message_never_overwrites_another(
    message_id: int, conversation: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    conversation.create_message("user-123", "assistant-1", a_message(1, "first"))
    conversation.create_message("user-123", "assistant-1", a_message(2, "second"))
    before = document_of(documents)
    with pytest.raises(SessionConflictError):
        conversation.create_message("user-123", "assistant-1", a_message(message_id, "intruder"))
    assert document_of(documents) == before


@pytest.mark.parametrize("message_id", [0, 3])
def test_a_message_never_slips_in_before_one_that_is_stored(
    message_id: int, conversation: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    conversation.create_message("user-123", "assistant-1", a_message(2, "first"))
    conversation.create_message("user-123", "assistant-1", a_message(5, "second"))
    before = document_of(documents)
    with pytest.raises(MongoDBSessionError):
        conversation.create_message("user-123", "assistant-1", a_message(message_id, "intruder"))
    assert document_of(documents) == before


@pytest.mark.topology
def test_of_many_writers_that_want_one_message_id_exactly_one_gets_it(
    conversation: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    start = threading.Barrier(6)

    def create(writer: int) -> str | None:
        start.wait(60)
        try:
            conversation.create_message("user-123", "assistant-1", a_message(0, f"writer {writer}"))
        except SessionConflictError:
            return None
        return f"writer {writer}"

    with ThreadPoolExecutor(6) as threads:
        winners = [text for text in threads.map(create, range(6)) if text]
    stored = [message["content"][0]["text"] for message in stored_messages(documents)]
    assert len(winners) == 1
    assert stored == winners


@pytest.mark.slow
@pytest.mark.topology
def test_one_repository_serves_many_threads(repository: MongoDBSessionRepository) -> None:
    def converse(number: int) -> list[str]:
        session_id = f"user-{number}"
        repository.create_session(Session(session_id=session_id, session_type="chat"))  # type: ignore[arg-type]
        repository.create_agent(session_id, an_agent())
        for message_id in range(10):
            repository.create_message(session_id, "assistant-1", a_message(message_id, f"{number}/{message_id}"))
        return [text_of(message) for message in repository.list_messages(session_id, "assistant-1")]

    with ThreadPoolExecutor(8) as threads:
        for number, texts in enumerate(threads.map(converse, range(8))):
            assert texts == [f"{number}/{message_id}" for message_id in range(10)]


NO_MESSAGE_IDS = ["0", "abc", None, 1.0, True, False, [0], {"$gte": 0}]


@pytest.mark.parametrize("message_id", NO_MESSAGE_IDS, ids=repr)
def test_a_message_id_that_is_no_int_is_refused_before_any_command_is_sent(
    message_id: Any, watched: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    for operation in (watched.create_message, watched.update_message):
        with pytest.raises(ValueError, match="message_id"):
            operation("user-123", "assistant-1", a_message(message_id))
    with pytest.raises(ValueError, match="message_id"):
        watched.read_message("user-123", "assistant-1", message_id)
    assert recorder.names == []


def test_a_negative_message_id_is_never_stored(
    conversation: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    with pytest.raises((ValueError, MongoDBSessionError)):
        conversation.create_message("user-123", "assistant-1", a_message(-1))
    assert stored_messages(documents) == []


# --- listing --------------------------------------------------------------------------------------


@pytest.fixture
def ten_messages(conversation: MongoDBSessionRepository) -> MongoDBSessionRepository:
    """Ten messages with the ids 0, 3, 6 … 27: pages count messages, not ids."""
    for message_id in range(0, 30, 3):
        conversation.create_message("user-123", "assistant-1", a_message(message_id, f"text {message_id}"))
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
    page: dict[str, Any], expected: list[int], ten_messages: MongoDBSessionRepository
) -> None:
    messages = ten_messages.list_messages("user-123", "assistant-1", **page)
    assert isinstance(messages, list)
    assert ids_of(messages) == expected
    assert [text_of(message) for message in messages] == [f"text {message_id}" for message_id in expected]
    documents = ten_messages.list_message_documents("user-123", "assistant-1", **page)
    assert [document["message_id"] for document in documents] == expected
    assert [document["content"] for document in documents] == [message.message["content"] for message in messages]


@pytest.mark.parametrize("page", [{"limit": -1}, {"offset": -1}, {"limit": -5, "offset": -5}], ids=str)
def test_a_negative_page_is_refused(page: dict[str, int], ten_messages: MongoDBSessionRepository) -> None:
    with pytest.raises(ValueError, match=r"limit|offset"):
        ten_messages.list_messages("user-123", "assistant-1", **page)
    with pytest.raises(ValueError, match=r"limit|offset"):
        ten_messages.list_message_documents("user-123", "assistant-1", **page)


def test_strands_calls_the_methods_without_keywords_and_callers_may_add_their_own(
    ten_messages: MongoDBSessionRepository,
) -> None:
    assert ids_of(ten_messages.list_messages("user-123", "assistant-1", 2, 1)) == [3, 6]
    assert text_of(ten_messages.read_message("user-123", "assistant-1", 3, trace="x")) == "text 3"
    assert ten_messages.read_session("user-123", trace="x") is not None
    assert ten_messages.read_agent("user-123", "assistant-1", trace="x") is not None
    assert ids_of(ten_messages.list_messages("user-123", "assistant-1", 1, 0, trace="x")) == [0]
    ten_messages.create_message("user-123", "assistant-1", a_message(30), trace="x")
    ten_messages.update_message("user-123", "assistant-1", a_message(30, "new"), trace="x")
    ten_messages.update_agent("user-123", an_agent(), trace="x")
    ten_messages.create_agent("user-123", an_agent("assistant-2"), trace="x")
    ten_messages.create_session(Session(session_id="other", session_type="chat"), trace="x")  # type: ignore[arg-type]
    assert text_of(ten_messages.read_message("user-123", "assistant-1", 30)) == "new"


# --- rewriting and redacting a message ------------------------------------------------------------

METRICS = {
    "accumulated_metrics": {"latencyMs": 1234},
    "accumulated_usage": {"inputTokens": 45, "outputTokens": 78, "totalTokens": 123},
}


@pytest.fixture
def told_a_secret(
    conversation: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> MongoDBSessionRepository:
    """Three messages; the middle one holds the secret and has everything a message can have."""
    metadata = {"usage": METRICS["accumulated_usage"], "metrics": {"latencyMs": 1234}, "custom": {"a": 1}}
    conversation.create_message("user-123", "assistant-1", a_message(0, "before", tracking_id="t-0"))
    secret = a_message(1, f"It is {SECRET}", "assistant", tracking_id="t-1", metadata=metadata)
    conversation.create_message("user-123", "assistant-1", secret)
    conversation.create_message("user-123", "assistant-1", a_message(2, "after", tracking_id="t-2"))
    documents.update_one({"_id": "user-123"}, {"$set": {"agents.assistant-1.messages.1.event_loop_metrics": METRICS}})
    return conversation


def test_metrics_are_not_part_of_a_message_that_is_read(told_a_secret: MongoDBSessionRepository) -> None:
    read = told_a_secret.read_message("user-123", "assistant-1", 1)
    listed = told_a_secret.list_messages("user-123", "assistant-1")[1]
    for message in (read, listed):
        assert message is not None
        assert not hasattr(message, "event_loop_metrics")
        assert "event_loop_metrics" not in message.message
        assert text_of(message) == f"It is {SECRET}"


def test_a_rewritten_message_keeps_everything_but_its_content(
    told_a_secret: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    first, before, last = stored_messages(documents)
    update = a_message(1, "[Content removed for privacy]", "assistant")
    update.created_at = "2001-01-01T00:00:00+00:00"
    assert told_a_secret.update_message("user-123", "assistant-1", update) is None

    first_after, after, last_after = stored_messages(documents)
    assert (first_after, last_after) == (first, last)
    assert_same(after["content"], [{"text": "[Content removed for privacy]"}])
    assert after["role"] == "assistant"
    assert after["created_at"] == before["created_at"]
    assert after["updated_at"] >= before["updated_at"]
    assert after["tracking_id"] == "t-1"
    assert_same(after["metadata"], before["metadata"])
    assert_same(after["event_loop_metrics"], METRICS)
    read = told_a_secret.read_message("user-123", "assistant-1", 1)
    assert text_of(read) == "[Content removed for privacy]"


def test_a_rewrite_is_counted_so_that_no_archiver_stores_what_was_rewritten(
    told_a_secret: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    before = document_of(documents)["agents"]["assistant-1"]
    told_a_secret.update_message("user-123", "assistant-1", a_message(1, "removed", "assistant"))
    after = document_of(documents)["agents"]["assistant-1"]
    assert after["edits"] == before["edits"] + 1
    assert after["message_count"] == before["message_count"] == 3


def test_a_rewritten_secret_is_nowhere_in_the_database(
    told_a_secret: MongoDBSessionRepository, client: MongoClient, database_name: str
) -> None:
    assert places_that_hold(SECRET.encode(), client, database_name) == ["sessions"]
    message: Any = told_a_secret.read_message("user-123", "assistant-1", 1)
    message.message["content"] = [{"text": "[Content removed for privacy]"}]
    told_a_secret.update_message("user-123", "assistant-1", message)
    assert places_that_hold(SECRET.encode(), client, database_name) == []


def test_redacting_by_hand_removes_the_original_that_the_object_still_holds(
    told_a_secret: MongoDBSessionRepository,
    client: MongoClient,
    database_name: str,
    documents: Collection[dict[str, Any]],
) -> None:
    message: Any = told_a_secret.read_message("user-123", "assistant-1", 1)
    message.redact_message = {"role": "assistant", "content": [{"text": "[redacted]"}]}
    told_a_secret.update_message("user-123", "assistant-1", message)

    assert places_that_hold(SECRET.encode(), client, database_name) == []
    for read in (
        told_a_secret.read_message("user-123", "assistant-1", 1),
        told_a_secret.list_messages("user-123", "assistant-1")[1],
    ):
        assert read is not None
        assert read.redact_message is not None
        redacted = read.to_message()
        assert (redacted["role"], redacted["content"]) == ("assistant", [{"text": "[redacted]"}])
        assert read.message["tracking_id"] == "t-1"
    stored = stored_messages(documents)[1]
    assert stored["tracking_id"] == "t-1"
    assert_same(stored["event_loop_metrics"], METRICS)
    assert stored["metadata"]["custom"] == {"a": 1}


def test_a_redaction_by_strands_is_stored_as_a_redaction(
    told_a_secret: MongoDBSessionRepository, client: MongoClient, database_name: str
) -> None:
    redacted: Any = {"role": "assistant", "content": [{"text": "[redacted]"}], "tracking_id": "t-1"}
    message = SessionMessage(message=redacted, message_id=1, redact_message=redacted)
    told_a_secret.update_message("user-123", "assistant-1", message)
    assert places_that_hold(SECRET.encode(), client, database_name) == []
    assert text_of(told_a_secret.read_message("user-123", "assistant-1", 1)) == "[redacted]"


def test_a_message_created_with_a_redaction_does_not_store_the_original(
    conversation: MongoDBSessionRepository, client: MongoClient, database_name: str
) -> None:
    message = a_message(0, SECRET)
    message.redact_message = {"role": "user", "content": [{"text": "[redacted]"}]}
    conversation.create_message("user-123", "assistant-1", message)
    assert places_that_hold(SECRET.encode(), client, database_name) == []
    assert text_of(conversation.read_message("user-123", "assistant-1", 0)) == "[redacted]"


def test_a_redacted_image_is_nowhere_in_the_database(
    conversation: MongoDBSessionRepository, client: MongoClient, database_name: str
) -> None:
    picture = SECRET.encode() + b"\x89PNG" * 250_000
    image: Any = {"role": "user", "content": [{"image": {"format": "png", "source": {"bytes": picture}}}]}
    conversation.create_message("user-123", "assistant-1", SessionMessage(image, 0))
    read = conversation.read_message("user-123", "assistant-1", 0)
    assert read is not None
    assert_same(read.message, image)
    conversation.update_message("user-123", "assistant-1", a_message(0, "[an image]"))
    assert places_that_hold(SECRET.encode(), client, database_name) == []
    assert places_that_hold(b"\x89PNG" * 100, client, database_name) == []


def test_a_message_behind_a_gap_is_rewritten_by_its_id_not_by_its_place(
    ten_messages: MongoDBSessionRepository,
) -> None:
    ten_messages.update_message("user-123", "assistant-1", a_message(6, "rewritten"))
    texts = {m.message_id: text_of(m) for m in ten_messages.list_messages("user-123", "assistant-1")}
    assert texts == {message_id: f"text {message_id}" for message_id in ALL} | {6: "rewritten"}
    with pytest.raises(MessageNotFoundError):
        ten_messages.update_message("user-123", "assistant-1", a_message(7, "in the gap"))


def test_the_times_that_were_stored_are_written_back_into_the_object(
    conversation: MongoDBSessionRepository,
) -> None:
    message = a_message(0)
    conversation.create_message("user-123", "assistant-1", message)
    created: Any = conversation.read_message("user-123", "assistant-1", 0)
    assert (moment(created.created_at), moment(created.updated_at)) == (
        moment(message.created_at),
        moment(message.updated_at),
    )
    update = a_message(0, "rewritten")
    conversation.update_message("user-123", "assistant-1", update)
    updated: Any = conversation.read_message("user-123", "assistant-1", 0)
    assert moment(updated.created_at) == moment(created.created_at)
    assert moment(updated.updated_at) == moment(update.updated_at)
    agent = an_agent(state={"step": 2})
    conversation.update_agent("user-123", agent)
    stored: Any = conversation.read_agent("user-123", "assistant-1")
    assert moment(stored.updated_at) == moment(agent.updated_at)


CONTENT_WRITES: dict[str, Operation] = {
    "create_agent": lambda r: r.create_agent("user-123", an_agent("assistant-2")),
    "update_agent": lambda r: r.update_agent("user-123", an_agent(state={"step": 2})),
    "create_message": lambda r: r.create_message("user-123", "assistant-1", a_message(3)),
    "update_message": lambda r: r.update_message("user-123", "assistant-1", a_message(0, "new")),
    "update_metadata": lambda r: r.update_metadata("user-123", {"status": "open"}),
    "delete_metadata": lambda r: r.delete_metadata("user-123", ["priority"]),
    "add_feedback": lambda r: r.add_feedback("user-123", {"rating": "up"}),
    "create_multi_agent": lambda r: r.create_multi_agent("user-123", MultiAgent("graph", {"a": 1})),
}


@pytest.mark.parametrize("write", CONTENT_WRITES.values(), ids=CONTENT_WRITES)
def test_every_change_moves_the_time_of_the_session_and_nothing_else_of_its_head(
    write: Operation, conversation: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    conversation.create_message("user-123", "assistant-1", a_message(0))
    conversation.update_metadata("user-123", {"priority": "high"})
    long_ago = datetime(2020, 1, 1, tzinfo=timezone.utc)
    documents.update_one({"_id": "user-123"}, {"$set": {"created_at": long_ago, "updated_at": long_ago}})
    before = document_of(documents)
    write(conversation)
    after = document_of(documents)
    assert is_recent(after["updated_at"])
    for unchanged in ("session_id", "session_type", "created_at", "incarnation", "schema_version"):
        assert after[unchanged] == before[unchanged]


# --- what it costs --------------------------------------------------------------------------------

COSTS: dict[str, Operation] = {
    "read_session": lambda r: r.read_session("user-123"),
    "session_exists": lambda r: r.session_exists("user-123"),
    "read_agent": lambda r: r.read_agent("user-123", "assistant-1"),
    "update_agent": lambda r: r.update_agent("user-123", an_agent(state={"step": 2})),
    "create_message": lambda r: r.create_message("user-123", "assistant-1", a_message(1)),
    "read_message": lambda r: r.read_message("user-123", "assistant-1", 0),
    "list_messages": lambda r: r.list_messages("user-123", "assistant-1"),
    "update_metadata": lambda r: r.update_metadata("user-123", {"status": "open"}),
    "get_metadata": lambda r: r.get_metadata("user-123"),
    "add_feedback": lambda r: r.add_feedback("user-123", {"rating": "up"}),
    "get_feedbacks": lambda r: r.get_feedbacks("user-123"),
}


@pytest.mark.topology
@pytest.mark.parametrize("operation", COSTS.values(), ids=COSTS)
def test_an_ordinary_operation_costs_one_read_and_one_write_that_holds_for_what_was_read(
    operation: Operation, watched: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    watched.create_message("user-123", "assistant-1", a_message(0))
    recorder.clear()
    operation(watched)
    read = operation in [COSTS[name] for name in COSTS if name.startswith(("read", "get", "list", "session"))]
    assert recorder.names == (["find"] if read else ["find", "update"])


# --- metadata -------------------------------------------------------------------------------------


def test_a_partial_update_of_metadata_keeps_the_other_fields(
    session: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    assert (
        session.update_metadata("user-123", {"user_name": "Alice", "priority": "high", "category": "support"}) is None
    )
    session.update_metadata("user-123", {"priority": "low"})
    session.update_metadata("user-123", {"status": "active"})
    expected = {"user_name": "Alice", "priority": "low", "category": "support", "status": "active"}
    assert_same(session.get_metadata("user-123"), {"metadata": expected})
    assert_same(document_of(documents)["metadata"], expected)


def test_a_dot_in_a_metadata_key_addresses_a_nested_field(session: MongoDBSessionRepository) -> None:
    session.update_metadata("user-123", {"customer": {"name": "Alice", "tier": "free"}})
    session.update_metadata("user-123", {"customer.tier": "gold", "order.number": 7})
    assert_same(
        session.get_metadata("user-123"),
        {"metadata": {"customer": {"name": "Alice", "tier": "gold"}, "order": {"number": 7}}},
    )
    session.delete_metadata("user-123", ["customer.name"])
    assert_same(
        session.get_metadata("user-123"),
        {"metadata": {"customer": {"tier": "gold"}, "order": {"number": 7}}},
    )


def test_deleting_metadata_removes_the_named_fields_only(session: MongoDBSessionRepository) -> None:
    session.update_metadata("user-123", {"temp_token": "x", "session_secret": "y", "status": "open"})
    assert session.delete_metadata("user-123", ["temp_token", "session_secret", "never_there"]) is None
    assert_same(session.get_metadata("user-123"), {"metadata": {"status": "open"}})


def test_an_empty_change_of_metadata_changes_nothing(session: MongoDBSessionRepository) -> None:
    session.update_metadata("user-123", {"status": "open"})
    session.update_metadata("user-123", {})
    session.delete_metadata("user-123", [])
    assert_same(session.get_metadata("user-123"), {"metadata": {"status": "open"}})


@pytest.mark.parametrize(
    "value",
    [None, True, 0, 1.5, "", "text", [], {}, [1, {"a": [None]}], {"a": {"b": {"c": 1}}}, 2**40, b"raw"],
    ids=repr,
)
def test_a_metadata_value_comes_back_as_it_was(value: Any, session: MongoDBSessionRepository) -> None:
    session.update_metadata("user-123", {"field": value})
    assert_same(session.get_metadata("user-123"), {"metadata": {"field": value}})


def test_a_date_in_metadata_is_stored_as_a_date(
    session: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    due = datetime(2024, 1, 26, 10, 30, 45, 123000, tzinfo=timezone.utc)
    session.update_metadata("user-123", {"due": due})
    assert document_of(documents)["metadata"]["due"] == due
    assert session.get_metadata("user-123")["metadata"]["due"] == due


def test_a_metadata_value_that_looks_like_an_expression_is_only_text(
    session: MongoDBSessionRepository,
) -> None:
    session.update_metadata("user-123", {"note": "$session_id", "other": "$$NOW"})
    assert_same(session.get_metadata("user-123"), {"metadata": {"note": "$session_id", "other": "$$NOW"}})


ILLEGAL_KEYS = ["$x", "", "a..b", "a\0b", ".a", "a.", ".", "a.$b", "a.$", "$", "a.$[]", "\ud800"]


@pytest.mark.parametrize("key", ILLEGAL_KEYS, ids=ascii)
def test_an_illegal_metadata_key_is_refused_before_any_command_is_sent(
    key: str, watched: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    with pytest.raises(ValueError, match="metadata"):
        watched.update_metadata("user-123", {"legal": 1, key: 2})
    with pytest.raises(ValueError, match="metadata"):
        watched.delete_metadata("user-123", ["legal", key])
    assert recorder.names == []
    assert_same(watched.get_metadata("user-123"), {"metadata": {}})


@pytest.mark.parametrize(
    "value",
    [
        {"$set": 1},
        {"a": {"$set": {"b": 1}}},
        [{"$set": 1}],
        {"": 1},
        {"a\0b": 1},
        {"a": [{"b": {"$inc": 1}}]},
    ],
    ids=repr,
)
def test_an_illegal_key_inside_a_metadata_value_is_refused_before_any_command_is_sent(
    value: Any, watched: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    with pytest.raises(ValueError, match="metadata"):
        watched.update_metadata("user-123", {"field": value})
    assert recorder.names == []


@pytest.mark.parametrize("key", [1, None, b"a", ("a",)], ids=repr)
def test_a_metadata_key_that_is_no_string_is_refused_before_any_command_is_sent(
    key: Any, watched: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    with pytest.raises((TypeError, ValueError)):
        watched.update_metadata("user-123", {key: 1})
    with pytest.raises((TypeError, ValueError)):
        watched.delete_metadata("user-123", [key])
    assert recorder.names == []


def test_metadata_never_reaches_outside_the_metadata(
    conversation: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    before = document_of(documents)
    conversation.update_metadata("user-123", {"session_id": "x", "agents.assistant-1.state": 1, "feedbacks": []})
    after = document_of(documents)
    for unchanged in ("_id", "session_id", "agents", "agent_ids", "feedbacks"):
        assert after[unchanged] == before[unchanged]


# --- feedback -------------------------------------------------------------------------------------


def test_feedback_is_kept_in_order_with_the_time_it_was_given(
    session: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    up = {"rating": "up", "comment": "Great response!"}
    down = {"rating": "down", "comment": "Too slow", "category": "performance", "user_id": "alice"}
    assert session.add_feedback("user-123", up) is None
    session.add_feedback("user-123", down)

    feedbacks = session.get_feedbacks("user-123")
    for feedback in feedbacks:
        created_at = feedback.pop("created_at")
        assert isinstance(created_at, datetime)
        assert is_recent(created_at)
    assert_same(
        feedbacks,
        [
            {"rating": "up", "comment": "Great response!"},
            {"rating": "down", "comment": "Too slow", "category": "performance", "user_id": "alice"},
        ],
    )
    stored = document_of(documents)["feedbacks"]
    assert [feedback["rating"] for feedback in stored] == ["up", "down"]
    assert all(isinstance(feedback["created_at"], datetime) for feedback in stored)


def test_the_same_feedback_object_can_be_given_twice(session: MongoDBSessionRepository) -> None:
    feedback = {"rating": "up"}
    session.add_feedback("user-123", feedback)
    session.add_feedback("user-123", feedback)
    assert [given["rating"] for given in session.get_feedbacks("user-123")] == ["up", "up"]


# --- graphs and swarms ----------------------------------------------------------------------------


def test_the_state_of_a_multi_agent_is_stored_read_and_replaced(
    session: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    assert session.create_multi_agent("user-123", MultiAgent("graph", {"status": "pending", "old": 1})) is None
    assert_same(session.read_multi_agent("user-123", "graph"), {"status": "pending", "old": 1})
    assert session.update_multi_agent("user-123", MultiAgent("graph", {"status": "completed"})) is None
    assert_same(session.read_multi_agent("user-123", "graph"), {"status": "completed"})
    stored = document_of(documents)["multi_agents"]["graph"]
    assert_same(stored["state"], {"status": "completed"})
    assert isinstance(stored["created_at"], datetime)
    assert stored["updated_at"] >= stored["created_at"]


def test_a_multi_agent_and_an_agent_of_the_same_name_do_not_meet(
    conversation: MongoDBSessionRepository,
) -> None:
    conversation.create_multi_agent("user-123", MultiAgent("assistant-1", {"status": "pending"}))
    conversation.create_message("user-123", "assistant-1", a_message())
    assert conversation.read_multi_agent("user-123", "assistant-1") == {"status": "pending"}
    assert len(conversation.list_messages("user-123", "assistant-1")) == 1


@pytest.mark.slow
def test_the_state_of_a_strands_graph_restores_the_graph(session: MongoDBSessionRepository) -> None:
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
    session.create_multi_agent("user-123", graph)
    graph.state.execution_count = 3
    session.update_multi_agent("user-123", graph)
    state = session.read_multi_agent("user-123", "writers")
    assert_same(state, graph.serialize_state())
    assert state is not None
    a_graph().deserialize_state(state)


# --- documents of older versions and of other writers ---------------------------------------------


def stamp(minute: int, second: int = 0) -> datetime:
    return datetime(2024, 1, 26, 10, minute, second, tzinfo=timezone.utc)


def legacy_document() -> dict[str, Any]:
    """The document of the specification: no counters, no incarnation, plain texts, ids from 1."""
    return {
        "_id": "user-123",
        "session_id": "user-123",
        "session_type": "default",
        "created_at": stamp(30, 45),
        "updated_at": stamp(35, 12),
        "metadata": {"user_name": "Alice", "priority": "high"},
        "feedbacks": [{"rating": "up", "comment": "Great response!", "created_at": stamp(36)}],
        "agents": {
            "assistant-1": {
                "agent_data": {
                    "agent_id": "assistant-1",
                    "model": "claude-3-sonnet",
                    "system_prompt": "You are a helpful assistant",
                    "created_at": "2024-01-26T10:30:45.123456Z",
                    "updated_at": "2024-01-26T10:35:12.456789Z",
                },
                "created_at": stamp(30, 45),
                "updated_at": stamp(35, 12),
                "messages": [
                    {
                        "message_id": 1,
                        "role": "user",
                        "content": "Hello!",
                        "created_at": stamp(30, 50),
                        "updated_at": stamp(30, 50),
                    },
                    {
                        "message_id": 2,
                        "role": "assistant",
                        "content": "Hi! How can I help you?",
                        "created_at": stamp(30, 55),
                        "updated_at": stamp(30, 55),
                        "event_loop_metrics": METRICS,
                    },
                ],
            }
        },
    }


@pytest.fixture
def legacy(repository: MongoDBSessionRepository, documents: Collection[dict[str, Any]]) -> MongoDBSessionRepository:
    documents.insert_one(legacy_document())
    return repository


def test_the_documented_document_is_readable(legacy: MongoDBSessionRepository) -> None:
    session: Any = legacy.read_session("user-123")
    assert (session.session_id, session.session_type) == ("user-123", "default")
    assert (moment(session.created_at), moment(session.updated_at)) == (stamp(30, 45), stamp(35, 12))
    agent: Any = legacy.read_agent("user-123", "assistant-1")
    assert (agent.agent_id, agent.model) == ("assistant-1", "claude-3-sonnet")
    assert agent.system_prompt == "You are a helpful assistant"
    assert (agent.state, agent.conversation_manager_state) == ({}, {})
    assert moment(agent.created_at) == moment("2024-01-26T10:30:45.123456Z")
    messages = legacy.list_messages("user-123", "assistant-1")
    assert ids_of(messages) == [1, 2]
    assert_same(messages[0].message, {"role": "user", "content": [{"text": "Hello!"}]})
    assert_same(messages[1].message, {"role": "assistant", "content": [{"text": "Hi! How can I help you?"}]})
    assert moment(messages[0].created_at) == stamp(30, 50)
    assert text_of(legacy.read_message("user-123", "assistant-1", 2)) == "Hi! How can I help you?"
    assert legacy.get_metadata("user-123") == {"metadata": {"user_name": "Alice", "priority": "high"}}
    assert [feedback["rating"] for feedback in legacy.get_feedbacks("user-123")] == ["up"]


def test_the_first_message_appended_to_an_older_document_goes_behind_what_is_there_and_adds_the_counters(
    legacy: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    legacy.create_message("user-123", "assistant-1", a_message(3, "And now?"))
    assert ids_of(legacy.list_messages("user-123", "assistant-1")) == [1, 2, 3]
    document = document_of(documents)
    assert document["agents"]["assistant-1"]["message_count"] == 4
    assert isinstance(document["incarnation"], ObjectId)
    legacy.create_message("user-123", "assistant-1", a_message(4, "Later"))
    assert ids_of(legacy.list_messages("user-123", "assistant-1")) == [1, 2, 3, 4]


@pytest.mark.parametrize("message_id", [1, 2])
def test_a_message_never_overwrites_one_of_an_older_document(
    message_id: int, legacy: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    with pytest.raises(SessionConflictError):
        legacy.create_message("user-123", "assistant-1", a_message(message_id, "intruder"))
    assert stored_messages(documents) == legacy_document()["agents"]["assistant-1"]["messages"]


def test_an_agent_of_an_older_document_can_be_updated(
    legacy: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    legacy.update_agent("user-123", an_agent(state={"step": 1}))
    agent: Any = legacy.read_agent("user-123", "assistant-1")
    assert (agent.state, agent.model) == ({"step": 1}, "claude-3-sonnet")
    assert moment(agent.created_at) == moment("2024-01-26T10:30:45.123456Z")
    assert ids_of(legacy.list_messages("user-123", "assistant-1")) == [1, 2]


def test_a_message_of_an_older_document_can_be_rewritten(
    legacy: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    legacy.update_message("user-123", "assistant-1", a_message(2, "[removed]", "assistant"))
    assert text_of(legacy.read_message("user-123", "assistant-1", 2)) == "[removed]"
    stored = stored_messages(documents)[1]
    assert stored["created_at"] == stamp(30, 55)
    assert_same(stored["event_loop_metrics"], METRICS)
    assert text_of(legacy.read_message("user-123", "assistant-1", 1)) == "Hello!"


def test_an_older_document_takes_metadata_feedback_agents_and_deletion(
    legacy: MongoDBSessionRepository,
) -> None:
    legacy.update_metadata("user-123", {"priority": "low"})
    legacy.add_feedback("user-123", {"rating": "down"})
    legacy.create_agent("user-123", an_agent("assistant-2"))
    legacy.create_message("user-123", "assistant-2", a_message(0, "to the second"))
    legacy.create_multi_agent("user-123", MultiAgent("graph", {"a": 1}))
    assert legacy.get_metadata("user-123") == {"metadata": {"user_name": "Alice", "priority": "low"}}
    assert [feedback["rating"] for feedback in legacy.get_feedbacks("user-123")] == ["up", "down"]
    assert text_of(legacy.read_message("user-123", "assistant-2", 0)) == "to the second"
    assert ids_of(legacy.list_messages("user-123", "assistant-1")) == [1, 2]
    legacy.delete_session("user-123")
    assert not legacy.session_exists("user-123")


def test_a_nested_message_is_readable_and_can_be_rewritten_without_leaving_the_original(
    repository: MongoDBSessionRepository,
    documents: Collection[dict[str, Any]],
    client: MongoClient,
    database_name: str,
) -> None:
    document = legacy_document()
    document["agents"]["assistant-1"]["messages"] = [
        {
            "message_id": 0,
            "message": {"role": "user", "content": [{"text": SECRET}]},
            "created_at": "2024-01-26T10:30:50.123456+00:00",
            "updated_at": "2024-01-26T10:30:50.123456+00:00",
        },
        {
            "message_id": 1,
            "message": {"role": "assistant", "content": "as plain text"},
            "redact_message": None,
        },
    ]
    documents.insert_one(document)
    first, second = repository.list_messages("user-123", "assistant-1")
    assert_same(first.message, {"role": "user", "content": [{"text": SECRET}]})
    assert moment(first.created_at) == moment("2024-01-26T10:30:50.123456+00:00")
    assert_same(second.message, {"role": "assistant", "content": [{"text": "as plain text"}]})

    repository.update_message("user-123", "assistant-1", a_message(0, "[redacted]"))
    assert text_of(repository.read_message("user-123", "assistant-1", 0)) == "[redacted]"
    assert places_that_hold(SECRET.encode(), client, database_name) == []


def test_a_redaction_in_a_nested_message_is_honoured(
    repository: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    document = legacy_document()
    document["agents"]["assistant-1"]["messages"] = [
        {
            "message_id": 0,
            "message": {"role": "user", "content": [{"text": SECRET}]},
            "redact_message": {"role": "user", "content": [{"text": "[redacted]"}]},
        }
    ]
    documents.insert_one(document)
    assert text_of(repository.read_message("user-123", "assistant-1", 0)) == "[redacted]"


def test_what_was_redacted_in_a_nested_message_is_shown_nowhere(
    repository: MongoDBSessionRepository,
    documents: Collection[dict[str, Any]],
    client: MongoClient,
    database_name: str,
) -> None:
    document = legacy_document()
    document["agents"]["assistant-1"]["messages"] = [
        {
            "message_id": 0,
            "message": {"role": "user", "content": [{"text": SECRET}], "tracking_id": "t"},
            "redact_message": {"role": "user", "content": [{"text": "[redacted]"}]},
        }
    ]
    documents.insert_one(document)
    manager = MongoDBSessionManager("user-123", None, database_name, documents.name, client)
    agent = Agent(OfflineScriptedModel(), agent_id="assistant-1", session_manager=manager, callback_handler=None)
    assert_same(agent.messages, [{"role": "user", "content": [{"text": "[redacted]"}], "tracking_id": "t"}])

    assert repository.list_sessions().sessions[0].title == "[redacted]"
    repository.index_messages()
    assert [hit.text for hit in repository.search_messages("redacted")] == ["[redacted]"]
    [shown] = client[database_name][repository.create_messages_view()].find()
    assert shown["content"] == [{"text": "[redacted]"}]


@pytest.mark.slow
def test_fields_that_the_library_does_not_know_survive_every_write(
    repository: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    unknown = {"by": "another version", "deep": [{"a": 1}]}
    document = legacy_document() | {"unknown": unknown}
    agent = document["agents"]["assistant-1"]
    agent["unknown"] = agent["agent_data"]["unknown"] = unknown
    for message in agent["messages"]:
        message["unknown"] = unknown
    documents.insert_one(document)

    assert len(repository.list_messages("user-123", "assistant-1")) == 2
    repository.update_agent("user-123", an_agent(state={"step": 1}))
    repository.create_message("user-123", "assistant-1", a_message(3))
    repository.update_message("user-123", "assistant-1", a_message(2, "rewritten", "assistant"))
    repository.update_metadata("user-123", {"a": 1})
    repository.add_feedback("user-123", {"rating": "up"})
    repository.create_multi_agent("user-123", MultiAgent("graph", {}))

    document = document_of(documents)
    agent = document["agents"]["assistant-1"]
    assert document["unknown"] == agent["unknown"] == agent["agent_data"]["unknown"] == unknown
    assert [message.get("unknown") for message in agent["messages"]] == [unknown, unknown, None]


def test_content_blocks_that_nobody_knows_yet_are_readable(
    repository: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    document = legacy_document()
    content = [{"hologram": {"depth": 3}}, {"text": "Hello!"}]
    document["agents"]["assistant-1"]["messages"][0]["content"] = content
    documents.insert_one(document)
    read = repository.read_message("user-123", "assistant-1", 1)
    assert read is not None
    assert_same(read.message["content"], content)


NOT_OURS = [
    {"__encoded__": "int", "value": "no number"},
    {"__encoded__": "int", "value": None},
    {"__encoded__": "str", "value": b"\xff"},
    {"__encoded__": "dict", "value": [1, 2]},
    {"__encoded__": "dict", "value": [[{}, 1]]},
    {"__encoded__": "bson", "value": b"no bson"},
    {"__encoded__": {"a": 1}, "value": 1},
]


@pytest.mark.parametrize("value", NOT_OURS, ids=repr)
def test_what_others_wrote_never_makes_a_session_unopenable(
    value: Any, legacy: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    agent = "agents.assistant-1"
    documents.update_one(
        {"_id": "user-123"},
        {
            "$set": {
                "unknown": value,
                "metadata.field": value,
                f"{agent}.unknown": value,
                f"{agent}.agent_data.state": {"field": value},
                f"{agent}.messages.0.unknown": value,
                f"{agent}.messages.0.content": [{"toolUse": {"input": value}}],
            }
        },
    )
    read: Any = legacy.read_agent("user-123", "assistant-1")
    assert_same(read.state, {"field": value})
    first = legacy.list_messages("user-123", "assistant-1")[0]
    assert_same(first.message["content"], [{"toolUse": {"input": value}}])
    assert_same(legacy.get_metadata("user-123")["metadata"]["field"], value)
    assert legacy.read_session("user-123") is not None
    legacy.create_message("user-123", "assistant-1", a_message(3, "goes on"))


BARE_DOCUMENTS: dict[str, dict[str, Any]] = {
    "no-agents": {"_id": "user-123"},
    "agent-without-messages": {
        "_id": "user-123",
        "session_id": "user-123",
        "agents": {"assistant-1": {"agent_data": {"agent_id": "assistant-1"}}},
    },
    "agent-without-anything": {"_id": "user-123", "agents": {"assistant-1": {}}},
    "message-without-times": {
        "_id": "user-123",
        "agents": {
            "assistant-1": {
                "agent_data": {},
                "messages": [{"message_id": 0, "role": "user", "content": [{"text": "x"}]}],
            }
        },
    },
}


@pytest.mark.parametrize("document", BARE_DOCUMENTS.values(), ids=BARE_DOCUMENTS)
def test_a_document_with_almost_nothing_in_it_never_makes_a_session_unopenable(
    document: dict[str, Any], repository: MongoDBSessionRepository, documents: Collection[dict[str, Any]]
) -> None:
    documents.insert_one(dict(document))
    session = repository.read_session("user-123")
    assert session is not None
    assert session.session_id == "user-123"
    assert repository.session_exists("user-123")
    assert repository.get_metadata("user-123") == {"metadata": {}}
    assert repository.get_feedbacks("user-123") == []
    assert repository.read_multi_agent("user-123", "graph") is None
    stored = repository.list_messages("user-123", "assistant-1")
    if "agents" not in document:
        assert repository.read_agent("user-123", "assistant-1") is None
        repository.create_agent("user-123", an_agent())
    else:
        agent = repository.read_agent("user-123", "assistant-1")
        assert agent is not None
        assert agent.agent_id == "assistant-1"
    repository.create_message("user-123", "assistant-1", a_message(len(stored), "goes on"))
    assert text_of(repository.list_messages("user-123", "assistant-1")[-1]) == "goes on"
    repository.update_metadata("user-123", {"status": "open"})
    repository.add_feedback("user-123", {"rating": "up"})
    assert repository.get_metadata("user-123") == {"metadata": {"status": "open"}}
    assert len(repository.get_feedbacks("user-123")) == 1


# --- an answer that never arrives ------------------------------------------------------------------


class LosesOneAnswer:
    """A proxy before a server that, once armed, cuts the connection instead of passing the answer to a command.

    The command has then been executed, and the driver cannot know it.

    Attributes:
        marker: Bytes that the command has in it.
    """

    marker = b"the marker"

    def __init__(self, address: tuple[str, int]) -> None:
        self.armed = threading.Event()
        self._target = address
        self._condemned: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                from_driver, _ = self._listener.accept()
                to_server = socket.create_connection(self._target)
                for pump in (self._requests, self._answers):
                    threading.Thread(target=pump, args=(from_driver, to_server), daemon=True).start()

    def _requests(self, driver: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), server:
            while request := driver.recv(65536):
                if self.marker in request and self.armed.is_set():
                    self.armed.clear()
                    self._condemned.add(server)
                server.sendall(request)

    def _answers(self, driver: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), driver:
            while (answer := server.recv(65536)) and server not in self._condemned:
                driver.sendall(answer)
            driver.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def loses_one_answer(standalone: Any) -> Iterator[LosesOneAnswer]:
    with MongoClient(standalone.uri) as client:
        client.admin.command("ping")
        address = client.address
    assert address is not None
    proxy = LosesOneAnswer(address)
    yield proxy
    proxy.close()


@pytest.fixture
def unlucky(standalone: Any, loses_one_answer: LosesOneAnswer) -> Iterator[MongoDBSessionRepository]:
    """A repository behind the proxy; on a standalone server, where PyMongo retries no write by itself."""
    name = f"test_{uuid.uuid4().hex}"
    with MongoClient("127.0.0.1", loses_one_answer.port, directConnection=True) as client:
        repository = MongoDBSessionRepository(client=client, database_name=name, collection_name="sessions")
        repository.create_session(Session(session_id="user-123", session_type="chat"))
        repository.create_agent("user-123", an_agent())
        yield repository
        loses_one_answer.armed.clear()
        client.drop_database(name)


def test_a_message_whose_answer_was_lost_is_stored_once_and_is_no_conflict_with_itself(
    unlucky: MongoDBSessionRepository, loses_one_answer: LosesOneAnswer
) -> None:
    loses_one_answer.armed.set()
    unlucky.create_message("user-123", "assistant-1", a_message(0, "the marker"))
    assert not loses_one_answer.armed.is_set()
    unlucky.create_message("user-123", "assistant-1", a_message(1, "next"))
    assert ids_of(unlucky.list_messages("user-123", "assistant-1")) == [0, 1]


def test_an_agent_whose_answer_was_lost_is_created_once_and_is_no_conflict_with_itself(
    unlucky: MongoDBSessionRepository, loses_one_answer: LosesOneAnswer
) -> None:
    loses_one_answer.armed.set()
    unlucky.create_agent("user-123", an_agent("assistant-2", {"a": "the marker"}))
    assert not loses_one_answer.armed.is_set()
    agent = unlucky.read_agent("user-123", "assistant-2")
    assert agent is not None
    assert agent.state == {"a": "the marker"}


def test_a_feedback_whose_answer_was_lost_is_stored_once(
    unlucky: MongoDBSessionRepository, loses_one_answer: LosesOneAnswer
) -> None:
    loses_one_answer.armed.set()
    unlucky.add_feedback("user-123", {"comment": "the marker"})
    assert not loses_one_answer.armed.is_set()
    assert [feedback["comment"] for feedback in unlucky.get_feedbacks("user-123")] == ["the marker"]


@pytest.mark.slow
def test_an_update_whose_answer_was_lost_is_applied(
    unlucky: MongoDBSessionRepository, loses_one_answer: LosesOneAnswer
) -> None:
    unlucky.create_message("user-123", "assistant-1", a_message(0, "before"))
    for update in (
        lambda: unlucky.update_agent("user-123", an_agent(state={"a": "the marker"})),
        lambda: unlucky.update_message("user-123", "assistant-1", a_message(0, "the marker")),
        lambda: unlucky.update_metadata("user-123", {"a": "the marker"}),
        lambda: unlucky.create_multi_agent("user-123", MultiAgent("graph", {"a": "the marker"})),
        lambda: unlucky.update_multi_agent("user-123", MultiAgent("graph", {"b": "the marker"})),
    ):
        loses_one_answer.armed.set()
        update()
        assert not loses_one_answer.armed.is_set()
    agent = unlucky.read_agent("user-123", "assistant-1")
    assert agent is not None
    assert agent.state == {"a": "the marker"}
    assert text_of(unlucky.read_message("user-123", "assistant-1", 0)) == "the marker"
    assert unlucky.get_metadata("user-123") == {"metadata": {"a": "the marker"}}
    assert unlucky.read_multi_agent("user-123", "graph") == {"b": "the marker"}


# --- the example of the reference -----------------------------------------------------------------


def test_the_complete_example_of_the_reference_works(client: MongoClient, database_name: str) -> None:
    repo = MongoDBSessionRepository(
        client=client,
        database_name=database_name,
        collection_name="sessions",
        metadata_fields=["priority", "status"],
    )
    repo.create_session(Session(session_id="user-123", session_type="chat"))  # type: ignore[arg-type]
    repo.update_metadata("user-123", {"user_name": "Alice", "priority": "high"})
    agent: Any = SessionAgent(agent_id="assistant-1", state={}, conversation_manager_state={})
    agent.model = "claude-3-sonnet"
    agent.system_prompt = "You are a helpful assistant"
    repo.create_agent("user-123", agent)
    repo.create_message("user-123", "assistant-1", a_message(1, "Hello!"))
    repo.create_message("user-123", "assistant-1", a_message(2, "Hi! How can I help?", "assistant"))
    repo.add_feedback("user-123", {"rating": "up", "comment": "Great service!"})

    assert ids_of(repo.list_messages("user-123", "assistant-1")) == [1, 2]
    assert repo.get_metadata("user-123") == {"metadata": {"user_name": "Alice", "priority": "high"}}
    assert len(repo.get_feedbacks("user-123")) == 1
    read: Any = repo.read_agent("user-123", "assistant-1")
    assert read.model == "claude-3-sonnet"
    repo.close()
    assert client.admin.command("ping")["ok"] == 1
