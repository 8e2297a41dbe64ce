"""What may be an id and what may be a value: nothing opens, erases or bends somebody else's data.

Many of these are defects that other MongoDB session stores have shipped.
"""

import math
import uuid
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import pytest
from bson.raw_bson import RawBSONDocument
from offline_model import OfflineScriptedModel
from pymongo import MongoClient
from strands import Agent
from strands.types.session import Session, SessionAgent, SessionMessage
from support.commands import CommandRecorder
from support.equality import assert_same

from mongodb_session_manager import (
    InvalidIdentifierError,
    ModelPrice,
    MongoDBSessionError,
    MongoDBSessionManager,
    MongoDBSessionRepository,
    UnstorableValueError,
)
from mongodb_session_manager._model.encoding import fingerprint


def message_with(value: Any, message_id: int = 0) -> SessionMessage:
    """An assistant message that calls a tool with `value` as an argument."""
    tool_use = {"toolUseId": "call-1", "name": "tool", "input": {"argument": value}}
    return SessionMessage(
        message={"role": "assistant", "content": [{"toolUse": tool_use}]},
        message_id=message_id,
    )


def text_message(text: str, message_id: int = 0) -> SessionMessage:
    return SessionMessage(message={"role": "user", "content": [{"text": text}]}, message_id=message_id)


def agent_with(state: dict[Any, Any], agent_id: str = "assistant") -> SessionAgent:
    return SessionAgent(agent_id=agent_id, state=state, conversation_manager_state={})


def texts(repository: MongoDBSessionRepository, session_id: str, agent_id: str) -> list[str]:
    stored = repository.list_messages(session_id, agent_id)
    return [block["text"] for message in stored for block in message.message["content"]]


@pytest.fixture(scope="module")
def database_name(client: MongoClient) -> Iterator[str]:
    """One database for all tests of this file: they are many, and making a database is slow."""
    name = f"values_{uuid.uuid4().hex}"
    yield name
    client.drop_database(name)


@pytest.fixture
def repository(client: MongoClient, database_name: str) -> MongoDBSessionRepository:
    """A repository without any session."""
    client[database_name]["sessions"].delete_many({})
    return MongoDBSessionRepository(client=client, database_name=database_name, collection_name="sessions")


@pytest.fixture
def conversation(repository: MongoDBSessionRepository) -> MongoDBSessionRepository:
    """A repository in which the session `s1` has an agent `assistant` without messages."""
    repository.create_session(Session(session_id="s1", session_type="AGENT"))
    repository.create_agent("s1", agent_with({}))
    return repository


@pytest.fixture
def recorder() -> CommandRecorder:
    return CommandRecorder()


@pytest.fixture
def watched(
    conversation: MongoDBSessionRepository, server: Any, database_name: str, recorder: CommandRecorder
) -> Iterator[MongoDBSessionRepository]:
    """A second repository on the same conversation; `recorder` sees what it sends from now on."""
    with MongoClient(server.uri, event_listeners=[recorder]) as client:
        repository = MongoDBSessionRepository(client=client, database_name=database_name, collection_name="sessions")
        recorder.clear()
        yield repository


class MultiAgent:
    """The two things a repository asks of a graph or a swarm."""

    def __init__(self, multi_agent_id: Any, state: dict[str, Any]) -> None:
        self.id = multi_agent_id
        self.state = state

    def serialize_state(self) -> dict[str, Any]:
        return self.state


Operation = Callable[[MongoDBSessionRepository, Any], Any]

BY_SESSION_ID: dict[str, Operation] = {
    "create_session": lambda r, i: r.create_session(Session(session_id=i, session_type="AGENT")),
    "read_session": lambda r, i: r.read_session(i),
    "delete_session": lambda r, i: r.delete_session(i),
    "session_exists": lambda r, i: r.session_exists(i),
    "create_agent": lambda r, i: r.create_agent(i, agent_with({})),
    "read_agent": lambda r, i: r.read_agent(i, "assistant"),
    "update_agent": lambda r, i: r.update_agent(i, agent_with({})),
    "create_message": lambda r, i: r.create_message(i, "assistant", text_message("x")),
    "read_message": lambda r, i: r.read_message(i, "assistant", 0),
    "update_message": lambda r, i: r.update_message(i, "assistant", text_message("x")),
    "list_messages": lambda r, i: r.list_messages(i, "assistant"),
    "update_metadata": lambda r, i: r.update_metadata(i, {"key": "value"}),
    "get_metadata": lambda r, i: r.get_metadata(i),
    "delete_metadata": lambda r, i: r.delete_metadata(i, ["key"]),
    "add_feedback": lambda r, i: r.add_feedback(i, {"rating": "up"}),
    "get_feedbacks": lambda r, i: r.get_feedbacks(i),
    "create_multi_agent": lambda r, i: r.create_multi_agent(i, MultiAgent("graph", {})),
    "read_multi_agent": lambda r, i: r.read_multi_agent(i, "graph"),
    "update_multi_agent": lambda r, i: r.update_multi_agent(i, MultiAgent("graph", {})),
}

BY_AGENT_ID: dict[str, Operation] = {
    "create_agent": lambda r, i: r.create_agent("s1", agent_with({}, i)),
    "read_agent": lambda r, i: r.read_agent("s1", i),
    "update_agent": lambda r, i: r.update_agent("s1", agent_with({}, i)),
    "create_message": lambda r, i: r.create_message("s1", i, text_message("x")),
    "read_message": lambda r, i: r.read_message("s1", i, 0),
    "update_message": lambda r, i: r.update_message("s1", i, text_message("x")),
    "list_messages": lambda r, i: r.list_messages("s1", i),
    "create_multi_agent": lambda r, i: r.create_multi_agent("s1", MultiAgent(i, {})),
    "read_multi_agent": lambda r, i: r.read_multi_agent("s1", i),
    "update_multi_agent": lambda r, i: r.update_multi_agent("s1", MultiAgent(i, {})),
}

OPERATIONS = [
    *(pytest.param(operation, id=f"{name}-session_id") for name, operation in BY_SESSION_ID.items()),
    *(pytest.param(operation, id=f"{name}-agent_id") for name, operation in BY_AGENT_ID.items()),
]

NO_STRINGS = [{"$gt": ""}, {"$ne": None}, ["s1"], b"s1", 1, None, True]

UNUSABLE = ["", "a/b", "/", "../s1", "a\0b", "\ud800", "ok\udfff"]
UNUSABLE += ["a\nERROR a forged line of the log", "\t", "\x1b[2J", "\x7f", "\x85", "x" * 1025, "🙂" * 257]


# --- ids that are refused -------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_id_that_is_no_string_opens_nobodys_session(
    operation: Operation, watched: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    for identifier in NO_STRINGS:
        with pytest.raises(TypeError):
            operation(watched, identifier)
    assert recorder.names == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_unusable_id_is_refused_before_any_command_is_sent(
    operation: Operation, watched: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    for identifier in UNUSABLE:
        with pytest.raises(InvalidIdentifierError) as refusal:
            operation(watched, identifier)
        assert isinstance(refusal.value, ValueError)
    assert recorder.names == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_error_of_an_id_of_megabytes_fits_into_a_line_of_a_log(
    operation: Operation, watched: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    for identifier in ("x" * 5_000_000, "/" * 5_000_000, "\n" * 5_000_000):
        with pytest.raises(InvalidIdentifierError) as refusal:
            operation(watched, identifier)
        assert len(str(refusal.value)) < 1000
    assert recorder.names == []


LONG = "x" * 3_000_000


@pytest.mark.parametrize(
    "refused",
    [
        lambda r: r.update_metadata("s1", {LONG + "..": 1}),
        lambda r: r.update_metadata("s1", {LONG: 1}),
        lambda r: r.update_metadata("s1", {"a": {LONG: {"b.c": 1}}}),
        lambda r: r.update_metadata("s1", {"a": {LONG + ".": 1}}),
        lambda r: r.delete_metadata("s1", ["$" + LONG]),
        lambda r: r.add_feedback("s1", {LONG + ".": 1}),
        lambda r: r.list_sessions(sort_by=LONG),
        lambda r: r.list_sessions(limit=10**5000),
        lambda r: r.list_messages("s1", "assistant", limit=-(10**5000)),
        lambda r: r.read_message("s1", "assistant", 10**5000),
        lambda r: r.search_messages("x", role=LONG),
        lambda r: r.search_messages("x", limit=10**5000),
        lambda r: r.create_message("s1", "assistant", message_with({LONG: object()})),
        lambda r: r.create_message("s1", "assistant", message_with({LONG: "x" * (16 * 1024 * 1024)})),
        lambda r: r.get_metrics_summary("s1", prices={LONG: 1}),
    ],
)
def test_no_error_repeats_megabytes_of_what_it_refuses(
    refused: Callable[[MongoDBSessionRepository], Any], watched: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    with pytest.raises((ValueError, TypeError)) as refusal:
        refused(watched)
    assert 10 < len(str(refusal.value)) < 2000
    assert recorder.names == []


# --- texts that are more than text ----------------------------------------------------------------


class Kind(str, Enum):
    """``str()`` of a member is its name, and its hash is not that of its value."""

    SUPPORT = "support"
    MODEL = "offline-scripted"


class Liar(str):
    """A text that says it is another."""

    __slots__ = ()

    def __str__(self) -> str:
        return "another/../one"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("identifier", [Kind.SUPPORT, Liar("support")], ids=["enum", "liar"])
def test_an_id_that_is_the_member_of_an_enum_names_what_its_value_names(
    operation: Operation, identifier: str, watched: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    def outcome(given: str) -> Any:
        watched.collection.delete_many({})
        for session_id in ("s1", "support"):
            watched.create_session(Session(session_id=session_id, session_type="AGENT"))
            watched.create_agent(session_id, agent_with({}))
        recorder.clear()
        try:
            operation(watched, given)
        except MongoDBSessionError as error:
            return type(error), recorder.names
        return "done", recorder.names

    found = outcome(identifier)
    commands = str([command.command for command in recorder.commands])
    assert "support" in commands
    assert "SUPPORT" not in commands
    assert "another" not in commands
    assert found == outcome("support")


def manager_of(repository: MongoDBSessionRepository, session_id: str = "s", **options: Any) -> MongoDBSessionManager:
    return MongoDBSessionManager(session_id, None, repository.database.name, "sessions", repository.client, **options)


def talker(manager: MongoDBSessionManager, agent_id: str = "a", **options: Any) -> Agent:
    model = OfflineScriptedModel(["Yes."] * 60)
    return Agent(model=model, agent_id=agent_id, session_manager=manager, callback_handler=None, **options)


@pytest.mark.parametrize("text", [Kind.SUPPORT, Liar("support")], ids=["enum", "liar"])
def test_a_session_whose_names_are_members_of_enums_is_stored_found_and_resumed_by_their_values(
    text: Any, repository: MongoDBSessionRepository
) -> None:
    manager = manager_of(repository, text, application_name=text, session_type=text, index_messages=True)
    assert (manager.session_id, type(manager.session_id)) == ("support", str)
    agent = talker(manager, text)
    agent("Hello")
    manager.append_message({"role": "user", "content": "by hand"}, agent)
    manager.update_metadata({text: {text: 1}})
    manager.add_feedback({"agent_id": text, "message_id": 0, text: 5})
    manager.close()

    document = repository.collection.find_one({})
    assert document is not None
    names = (document["_id"], document["application_name"], document["session_type"], document["agent_ids"])
    assert names == ("support", "support", "support", ["support"])
    assert list(document["agents"]) == ["support"]
    assert document["metadata"] == {"support": {"support": 1}}
    assert repository.get_metadata(text) == {"metadata": {"support": {"support": 1}}}
    assert repository.get_feedbacks("support")[0]["support"] == 5
    for filters in (
        {"application_name": text},
        {"session_type": text},
        {"agent_id": text},
        {"metadata": {text: {"support": 1}}},
    ):
        assert [session.session_id for session in repository.list_sessions(**filters).sessions] == ["support"]
    for conditions in ({"session_id": text}, {"agent_id": text}, {"application_name": text}):
        assert [hit.message_id for hit in repository.search_messages("Hello", **conditions)] == [0]
    assert len(talker(manager_of(repository, "support"), text).messages) == 3
    manager = manager_of(repository, text)
    manager.delete_metadata([text])
    assert manager.get_metadata() == {"metadata": {}}
    repository.delete_session(text)
    assert not repository.session_exists("support")


def test_prices_under_members_of_an_enum_are_those_of_their_models(repository: MongoDBSessionRepository) -> None:
    manager = manager_of(repository)
    talker(manager)("Hello")
    [model] = manager.get_metrics_summary().models
    model_id = Enum("ModelId", {"ONE": model}, type=str)
    summary = manager.get_metrics_summary(prices={model_id.ONE: ModelPrice(input=1, output=1)})  # type: ignore[attr-defined]
    assert summary.cost is not None


@pytest.mark.parametrize("names", [{"application_name": {"$gt": ""}}, {"session_type": 5}, {"session_type": None}])
def test_a_name_of_a_session_that_is_no_text_is_refused_before_it_is_stored(
    names: Any, repository: MongoDBSessionRepository
) -> None:
    with pytest.raises(TypeError, match="must be a string"):
        manager_of(repository, **names)


# --- tracking ids ---------------------------------------------------------------------------------

NO_TRACKING_IDS = [{"$ne": None}, {}, ["x"], 5, 0, False, b"x"]


@pytest.mark.parametrize("tracking_id", NO_TRACKING_IDS, ids=repr)
def test_a_message_whose_tracking_id_is_no_text_is_refused_and_the_conversation_goes_on(
    tracking_id: Any, repository: MongoDBSessionRepository
) -> None:
    said: Any = {"role": "user", "content": [{"text": "refused"}], "tracking_id": tracking_id}
    redacted: Any = {"role": "user", "content": [{"text": "gone"}], "tracking_id": tracking_id}
    manager = manager_of(repository)
    agent = talker(manager)
    agent("first")
    refusals: list[Callable[[], Any]] = [
        lambda: manager.append_message(dict(said), agent),
        lambda: manager.redact_latest_message(redacted, agent),
        lambda: repository.create_message("s", "a", SessionMessage(said, 9)),
        lambda: repository.update_message("s", "a", SessionMessage(said, 0)),
        lambda: repository.update_message("s", "a", SessionMessage({"role": "user", "content": []}, 0, redacted)),
    ]
    if tracking_id:  # In the place of others Strands puts one of its own before anybody sees the message.
        refusals += [lambda: agent([dict(said)]), lambda: talker(manager, "new", messages=[dict(said)])]
    for refusal in refusals:
        with pytest.raises(TypeError, match="tracking_id must be a string"):
            refusal()
    manager.flush()
    agent("second")
    manager.close()
    assert texts(repository, "s", "a") == ["first", "Yes.", "second", "Yes."]


def test_a_redaction_after_a_message_with_a_bad_tracking_id_does_not_hit_the_one_before(
    repository: MongoDBSessionRepository,
) -> None:
    manager = manager_of(repository)
    agent = talker(manager)
    agent("first")
    bad: Any = {"role": "user", "content": [{"text": "refused"}], "tracking_id": {"$ne": None}}
    with pytest.raises(TypeError, match="tracking_id"):
        agent([bad])
    with pytest.raises(MongoDBSessionError, match="no message to redact"):
        manager.redact_latest_message({"role": "user", "content": [{"text": "gone"}]}, agent)
    assert texts(repository, "s", "a") == ["first", "Yes."]


@pytest.mark.parametrize("tracking_id", ["", None])
def test_an_empty_tracking_id_is_none_so_that_a_redaction_hits_no_other_message(
    tracking_id: Any, repository: MongoDBSessionRepository
) -> None:
    manager = manager_of(repository)
    agent = talker(manager)
    for text in ("one", "two"):
        message: Any = {"role": "user", "content": [{"text": text}], "tracking_id": tracking_id}
        manager.append_message(message, agent)
    redacted: Any = {"role": "user", "content": [{"text": "gone"}], "tracking_id": tracking_id}
    manager.redact_latest_message(redacted, agent)
    assert texts(repository, "s", "a") == ["one", "gone"]
    stored = repository.list_message_documents("s", "a")
    assert all(message["tracking_id"] for message in stored)


def test_a_tracking_id_that_is_the_member_of_an_enum_is_its_value(repository: MongoDBSessionRepository) -> None:
    manager = manager_of(repository)
    agent = talker(manager)
    agent([{"role": "user", "content": [{"text": "secret"}], "tracking_id": Kind.SUPPORT}])  # type: ignore[list-item, typeddict-unknown-key]
    manager.redact_latest_message({"role": "user", "content": [{"text": "gone"}], "tracking_id": Kind.SUPPORT}, agent)
    assert repository.list_message_documents("s", "a")[0]["tracking_id"] == "support"
    assert texts(repository, "s", "a") == ["gone", "Yes."]


@pytest.mark.slow
def test_a_stored_tracking_id_that_is_no_text_keeps_no_conversation_from_being_resumed(
    repository: MongoDBSessionRepository,
) -> None:
    first = manager_of(repository)
    talker(first)("first")
    repository.collection.update_one({}, {"$set": {"agents.a.messages.0.tracking_id": {"$ne": None}}})
    agent = talker(manager_of(repository))
    for _ in range(55):  # Until messages that have left the live conversation are forgotten.
        agent("again")
    assert len(texts(repository, "s", "a")) == 112


# --- session ids ----------------------------------------------------------------------------------

SESSION_IDS = [
    "s1",
    "s10",
    "s",
    "S1",
    "s1.",
    "s1*",
    "s.*",
    "*",
    "$gt",
    "a.b",
    "сессия",
    "🙂",
    " ",
    "null",
    "s1 ",
    "x" * 1024,
    "🙂" * 256,
    "\u00a0",
    "\u200b",
]


@pytest.mark.slow
def test_every_session_id_names_its_own_session(repository: MongoDBSessionRepository) -> None:
    for session_id in SESSION_IDS:
        repository.create_session(Session(session_id=session_id, session_type="AGENT"))
        repository.create_agent(session_id, agent_with({}))
        repository.create_message(session_id, "assistant", text_message(f"said in {session_id}"))
    for session_id in SESSION_IDS:
        session = repository.read_session(session_id)
        assert session is not None
        assert session.session_id == session_id
        assert texts(repository, session_id, "assistant") == [f"said in {session_id}"]


@pytest.mark.slow
@pytest.mark.parametrize("deleted", ["s1", "s", "s.*", "s1*", "*", "$gt"])
def test_deleting_a_session_leaves_its_neighbours_alone(deleted: str, repository: MongoDBSessionRepository) -> None:
    for session_id in SESSION_IDS:
        repository.create_session(Session(session_id=session_id, session_type="AGENT"))
        repository.create_agent(session_id, agent_with({}))
        repository.create_message(session_id, "assistant", text_message(f"said in {session_id}"))
    repository.delete_session(deleted)
    assert not repository.session_exists(deleted)
    for session_id in SESSION_IDS:
        if session_id != deleted:
            assert texts(repository, session_id, "assistant") == [f"said in {session_id}"]


# --- agent ids ------------------------------------------------------------------------------------

AGENT_IDS = [
    *("assistant", "a", "a.b", "a%2Eb", "a%252Eb", "a..b", ".", "..", ".a", "a.", "a.b.c", "b"),
    *("$a", "a$", "$", "$$", "%24a", "%", "%%", "%25", "%00", "a.messages", "a.agent_data.state"),
    *("агент", "é", "e\u0301", "🙂", "0", "-1", "1", "__proto__", "constructor", " ", " a", "a b"),
    *("agent_data", "messages", "agents", "session_id", "_id", "A", "x" * 500),
]


@pytest.mark.slow
def test_every_agent_id_names_its_own_agent(repository: MongoDBSessionRepository) -> None:
    repository.create_session(Session(session_id="s1", session_type="AGENT"))
    for agent_id in AGENT_IDS:
        repository.create_agent("s1", agent_with({"named": agent_id}, agent_id))
        repository.create_message("s1", agent_id, text_message(f"said to {agent_id}"))
    for agent_id in AGENT_IDS:
        agent = repository.read_agent("s1", agent_id)
        assert agent is not None
        assert (agent.agent_id, agent.state) == (agent_id, {"named": agent_id})
        assert texts(repository, "s1", agent_id) == [f"said to {agent_id}"]


@pytest.mark.slow
def test_an_update_of_one_agent_changes_no_agent_with_a_similar_name(
    repository: MongoDBSessionRepository,
) -> None:
    repository.create_session(Session(session_id="s1", session_type="AGENT"))
    for agent_id in AGENT_IDS:
        repository.create_agent("s1", agent_with({"version": 1}, agent_id))
        repository.create_message("s1", agent_id, text_message("before"))
    for agent_id in ("a.b", "$a", "%", "0"):
        repository.update_agent("s1", agent_with({"version": 2}, agent_id))
        repository.update_message("s1", agent_id, text_message("after"))
    for agent_id in AGENT_IDS:
        changed = agent_id in ("a.b", "$a", "%", "0")
        agent = repository.read_agent("s1", agent_id)
        assert agent is not None
        assert agent.state == {"version": 2 if changed else 1}
        assert texts(repository, "s1", agent_id) == ["after" if changed else "before"]


@pytest.mark.slow
def test_every_multi_agent_id_names_its_own_state(repository: MongoDBSessionRepository) -> None:
    repository.create_session(Session(session_id="s1", session_type="AGENT"))
    for multi_agent_id in AGENT_IDS:
        repository.create_multi_agent("s1", MultiAgent(multi_agent_id, {"named": multi_agent_id}))
    for multi_agent_id in AGENT_IDS:
        assert repository.read_multi_agent("s1", multi_agent_id) == {"named": multi_agent_id}


@pytest.mark.parametrize(
    ("agent_id", "key"),
    [
        ("assistant-1", "assistant-1"),
        ("Support agent", "Support agent"),
        ("agent_2", "agent_2"),
        ("агент", "агент"),
        ("a$b", "a$b"),
        ("a.b", "a%2Eb"),
        ("$a", "%24a"),
        ("a%b", "a%25b"),
    ],
)
def test_an_agent_id_is_percent_encoded_in_the_document_only_where_mongodb_needs_it(
    agent_id: str, key: str, repository: MongoDBSessionRepository, client: MongoClient, database_name: str
) -> None:
    repository.create_session(Session(session_id="s1", session_type="AGENT"))
    repository.create_agent("s1", agent_with({}, agent_id))
    document = client[database_name]["sessions"].find_one({"_id": "s1"})
    assert document is not None
    assert list(document["agents"]) == [key]
    assert document["agents"][key]["agent_data"]["agent_id"] == agent_id
    assert document["agent_ids"] == [agent_id]


# --- values that come back exactly as they were ---------------------------------------------------


def nested(levels: int) -> Any:
    """A value that lies `levels` lists and dictionaries deep."""
    value: Any = "the innermost"
    for level in range(levels):
        value = [value] if level % 2 else {"inner": value}
    return value


ODD_KEYS = [
    "$",
    "$set",
    "$a",
    ".",
    "a.b",
    "..",
    "",
    "\0",
    "a\0b",
    "\ud800",
    "%",
    "_id",
    "é",
    " ",
    "__proto__",
    "0",
]

VALUES: dict[str, Any] = {
    "nothing": None,
    "empties": ["", [], {}, b"", [[]], {"": {}}, [{}]],
    "booleans-are-no-numbers": [True, 1, 1.0, False, 0, 0.0],
    "booleans-in-a-mapping": {"a": True, "b": 1, "c": 1.0},
    "small-integers": [0, -1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**32, 2**53, 2**53 + 1],
    "largest-bson-integers": [2**63 - 1, -(2**63), 2**62],
    "integers-beyond-bson": [2**63, -(2**63) - 1, 2**64, 2**200, -(2**200), 10**100],
    "floats": [0.1, 1e308, 5e-324, -1.5, 1e16, 2.0**63],
    "nan": math.nan,
    "infinities": [math.inf, -math.inf],
    "negative-zero": [-0.0, 0.0],
    "unicode": ["é", "e\u0301", "🙂", "\u202e", "\ufeff", "\u0000", "a\0b", "\uffff", "\x7f"],
    "lone-surrogates": ["\ud800", "a\udfffb", ["\udc00"]],
    "surrogates-that-would-make-a-pair": ["\ud83d\ude42", "\ude42\ud83d"],
    "surrogate-keys": {"\ud800": 1, "a\udfff": {"\udc00": "\udc00"}},
    "odd-keys": {key: key for key in ODD_KEYS},
    "odd-keys-nested": {key: {key: [{key: key}]} for key in ODD_KEYS},
    "key-order": {"z": 1, "a": 2, "$m": 3, "\0": 4, "b": 5},
    "database-reference": {"$ref": "users", "$id": 1},
    "database-reference-with-database": {"$ref": "users", "$id": "x", "$db": "other", "more": [1]},
    "database-reference-nested": [{"a": {"$ref": "users", "$id": {"$ref": "users", "$id": 1}}}],
    "only-half-a-reference": [{"$ref": "users"}, {"$id": 1}, {"$db": "x"}, {"$ref": None, "$id": None}],
    "operators": {"$set": {"a": 1}, "$where": "sleep(1000)", "$gt": "", "$oid": "x", "$date": 0},
    "extended-json": [
        {"$oid": "5f" * 12},
        {"$numberLong": "1"},
        {"$binary": {"base64": "", "subType": "00"}},
    ],
    "expressions": ["$a", "$$NOW", "$$ROOT", {"$literal": "$a"}, {"a": "$b"}],
    "bytes": [b"\x00\xff", b"x" * 1000, b"\xc3\x28"],
    "bytes-nested": {"a": [{"b": [b"deep", {"c": b""}]}]},
    "bytes-marker-of-strands": {"__bytes_encoded__": True, "data": "aGVsbG8="},
    "bytes-marker-that-is-no-base64": [
        {"__bytes_encoded__": True, "data": "?"},
        {"__bytes_encoded__": 1, "data": 2},
    ],
    "marker-of-ours": {"__encoded__": "int", "value": "0x10"},
    "markers-of-ours-of-every-kind": [
        *({"__encoded__": kind, "value": []} for kind in ("int", "str", "tuple", "dict", "bson", "x", None, 1)),
        *({"__encoded__": kind, "value": b"a"} for kind in ("int", "str", "tuple", "dict", "bson")),
        *({"__encoded__": kind, "value": "zz"} for kind in ("int", "str", "tuple", "dict", "bson")),
        {"__encoded__": "tuple"},
        {"__encoded__": {"__encoded__": "tuple", "value": []}, "value": (), "more": 1},
    ],
    "40-levels": nested(40),
    "180-levels": nested(180),
    "500-levels": nested(500),
    "tuples": [(), (1,), (1, (2, [3, (4,)])), {"a": ("b", {"c": ()})}],
    "keys-that-are-no-strings": {
        1: "int",
        None: "none",
        2.5: "float",
        "1": "str",
        -0.0: "zero",
        (1, "a"): "tuple",
    },
    "boolean-keys": [{True: "yes", False: "no"}, {1: "one", 0: "zero"}, {1.0: "one"}],
    "keys-that-are-bytes": {b"k": 1, "k": 2},
    "a-key-beyond-bson": {2**200: 1},
    "looks-like-a-blob": {"file_id": "1", "length": 3, "$blob": "1", "_blob": b"x", "__blob__": 1},
}

EVERY_VALUE = [pytest.param(value, id=name) for name, value in VALUES.items()]


@pytest.mark.parametrize("value", EVERY_VALUE)
def test_a_value_in_a_message_comes_back_exactly_as_it_was(value: Any, conversation: MongoDBSessionRepository) -> None:
    conversation.create_message("s1", "assistant", message_with(value))
    read = conversation.read_message("s1", "assistant", 0)
    listed = conversation.list_messages("s1", "assistant")
    assert read is not None
    assert_same(read.message, message_with(value).message)
    assert_same([message.message for message in listed], [message_with(value).message])


@pytest.mark.parametrize("value", EVERY_VALUE)
def test_a_value_in_agent_state_comes_back_exactly_as_it_was(value: Any, repository: MongoDBSessionRepository) -> None:
    repository.create_session(Session(session_id="s1", session_type="AGENT"))
    repository.create_agent("s1", agent_with({"created": value}))
    created = repository.read_agent("s1", "assistant")
    assert created is not None
    assert_same(created.state, {"created": value})

    agent = SessionAgent("assistant", {"updated": value}, {"kept": value}, {"internal": value})
    repository.update_agent("s1", agent)
    updated = repository.read_agent("s1", "assistant")
    assert updated is not None
    assert_same(updated.state, {"updated": value})
    assert_same(updated.conversation_manager_state, {"kept": value})
    assert_same(updated._internal_state, {"internal": value})


@pytest.mark.parametrize("value", EVERY_VALUE)
def test_a_value_in_the_state_of_a_multi_agent_comes_back_exactly_as_it_was(
    value: Any, repository: MongoDBSessionRepository
) -> None:
    repository.create_session(Session(session_id="s1", session_type="AGENT"))
    repository.create_multi_agent("s1", MultiAgent("graph", {"created": value}))
    assert_same(repository.read_multi_agent("s1", "graph"), {"created": value})
    repository.update_multi_agent("s1", MultiAgent("graph", {"updated": value}))
    assert_same(repository.read_multi_agent("s1", "graph"), {"updated": value})


@pytest.mark.parametrize("value", EVERY_VALUE)
def test_a_value_in_a_rewritten_message_comes_back_exactly_as_it_was(
    value: Any, conversation: MongoDBSessionRepository
) -> None:
    conversation.create_message("s1", "assistant", text_message("first"))
    rewritten = message_with(value)
    rewritten.redact_message = message_with([value]).message
    conversation.update_message("s1", "assistant", rewritten)
    read = conversation.read_message("s1", "assistant", 0)
    assert read is not None
    assert_same(read.to_message()["content"], message_with([value]).message["content"])


def test_odd_keys_at_the_top_of_agent_state_come_back(repository: MongoDBSessionRepository) -> None:
    state = {key: {key: key} for key in ODD_KEYS} | {"$ref": "users", "$id": 1}
    repository.create_session(Session(session_id="s1", session_type="AGENT"))
    repository.create_agent("s1", agent_with(state))
    agent = repository.read_agent("s1", "assistant")
    assert agent is not None
    assert_same(agent.state, state)


def test_a_value_that_looks_like_the_stored_form_of_another_value_is_not_taken_for_it(
    conversation: MongoDBSessionRepository, client: MongoClient, database_name: str
) -> None:
    """What the library stores for an odd value is itself a legal value, and so is what it stores for that."""
    value: Any = [
        VALUES[name] for name in ("integers-beyond-bson", "odd-keys", "tuples", "lone-surrogates", "180-levels")
    ]
    for generation in range(3):
        conversation.create_message("s1", "assistant", message_with(value, generation))
        read = conversation.read_message("s1", "assistant", generation)
        assert read is not None
        assert_same(read.message, message_with(value).message)
        document = client[database_name]["sessions"].find_one({"_id": "s1"})
        assert document is not None
        stored = document["agents"]["assistant"]["messages"][generation]["content"][0]["toolUse"]["input"]
        value = as_plain_python(stored["argument"])


def as_plain_python(value: Any) -> Any:
    """`value` as PyMongo decoded it, in the types in which a model or a tool would send it."""
    if isinstance(value, dict):
        return {key: as_plain_python(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_plain_python(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return value


@pytest.mark.parametrize("size", [0, 1_000, 4_000, 5_000, 100_000])
def test_an_odd_value_comes_back_whatever_the_size_of_the_document_around_it(
    size: int, conversation: MongoDBSessionRepository
) -> None:
    """PyMongo hands out documents of more than 4 KB in another type than smaller ones."""
    state = {"integer": 2**200, "tuple": (1,), "reference": {"$ref": "a", "$id": 1}, "ballast": "x" * size}
    conversation.update_agent("s1", agent_with(state))
    conversation.create_message("s1", "assistant", message_with(state))
    conversation.create_multi_agent("s1", MultiAgent("graph", state))
    agent = conversation.read_agent("s1", "assistant")
    message = conversation.read_message("s1", "assistant", 0)
    assert agent is not None
    assert message is not None
    assert_same(agent.state, state)
    assert_same(message.message, message_with(state).message)
    assert_same(conversation.list_messages("s1", "assistant")[0].message, message_with(state).message)
    assert_same(conversation.read_multi_agent("s1", "graph"), state)


def test_integers_come_back_as_plain_int(conversation: MongoDBSessionRepository) -> None:
    integers = [1, 2**31, 2**40, -(2**63), 2**63 - 1, 2**63]
    conversation.create_message("s1", "assistant", message_with(integers))
    conversation.update_agent("s1", agent_with({"integers": integers}))
    message = conversation.read_message("s1", "assistant", 0)
    agent = conversation.read_agent("s1", "assistant")
    assert message is not None
    assert agent is not None
    assert type(message.message_id) is int
    from_message = message.message["content"][0]["toolUse"]["input"]["argument"]
    for values in (from_message, agent.state["integers"]):
        assert [(type(value), value) for value in values] == [(int, value) for value in integers]


def test_ordinary_values_are_stored_as_they_are_so_that_they_can_be_queried(
    conversation: MongoDBSessionRepository, client: MongoClient, database_name: str
) -> None:
    ordinary = {
        "city": "Zürich",
        "days": 3,
        "price": 9.5,
        "sure": True,
        "tags": ["a", "b"],
        "none": None,
        "raw": b"x",
    }
    conversation.create_message("s1", "assistant", message_with(ordinary))
    conversation.update_agent("s1", agent_with({"profile": ordinary}))
    document = client[database_name]["sessions"].find_one(
        {
            "agents.assistant.messages.content.toolUse.input.argument.city": "Zürich",
            "agents.assistant.agent_data.state.profile.days": 3,
        }
    )
    assert document is not None
    stored = document["agents"]["assistant"]
    assert_same(stored["messages"][0]["content"][0]["toolUse"]["input"]["argument"], ordinary)
    assert_same(stored["agent_data"]["state"]["profile"], ordinary)


def test_options_of_a_borrowed_client_do_not_change_what_is_read(server: Any, database_name: str) -> None:
    value = {"n": 2**40, "b": b"x", "d": {"e": [1.0]}}
    results = []
    session_id = "with-options"
    for options in ({}, {"tz_aware": False, "document_class": RawBSONDocument}, {"tz_aware": True}):
        with MongoClient(server.uri, **options) as client:
            repository = MongoDBSessionRepository(
                client=client, database_name=database_name, collection_name="sessions"
            )
            if not results:
                repository.create_session(Session(session_id=session_id, session_type="AGENT"))
                repository.create_agent(session_id, agent_with(value))
                repository.create_message(session_id, "assistant", message_with(value))
                repository.add_feedback(session_id, {"rating": "up"})
            message = repository.read_message(session_id, "assistant", 0)
            agent = repository.read_agent(session_id, "assistant")
            assert message is not None
            assert agent is not None
            assert_same(message.message, message_with(value).message)
            assert_same(agent.state, value)
            results.append((message.created_at, agent.created_at, repository.get_feedbacks(session_id)))
    assert results[1:] == results[:1] * 2


def test_a_megabyte_of_text_is_an_ordinary_message(conversation: MongoDBSessionRepository) -> None:
    text = "å 1" * (1024 * 1024 // 4)
    conversation.create_message("s1", "assistant", text_message(text))
    conversation.create_message("s1", "assistant", text_message("and on", 1))
    assert texts(conversation, "s1", "assistant") == [text, "and on"]


def test_later_changes_to_a_stored_object_do_not_reach_the_store(
    conversation: MongoDBSessionRepository,
) -> None:
    arguments = {"list": [1]}
    conversation.create_message("s1", "assistant", message_with(arguments))
    arguments["list"].append(2)
    read = conversation.read_message("s1", "assistant", 0)
    assert read is not None
    assert_same(read.message, message_with({"list": [1]}).message)


# --- values that can never be stored --------------------------------------------------------------


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


UNSTORABLE = [
    pytest.param(object(), id="object"),
    pytest.param({1, 2}, id="set"),
    pytest.param(frozenset({"a"}), id="frozenset"),
    pytest.param(lambda: None, id="function"),
    pytest.param(1j, id="complex"),
    pytest.param((item for item in ()), id="generator"),
    pytest.param(cyclic(), id="cycle"),
]


@pytest.mark.parametrize("unstorable", UNSTORABLE)
def test_a_message_that_cannot_be_stored_is_refused_by_name_and_takes_no_message_id(
    unstorable: Any,
    watched: MongoDBSessionRepository,
    recorder: CommandRecorder,
    client: MongoClient,
    database_name: str,
) -> None:
    before = client[database_name]["sessions"].find_one({"_id": "s1"})
    with pytest.raises(UnstorableValueError) as refusal:
        watched.create_message("s1", "assistant", message_with({"fine": "a secret", "culprit": unstorable}))
    assert recorder.names == []
    assert client[database_name]["sessions"].find_one({"_id": "s1"}) == before
    assert isinstance(refusal.value, ValueError)
    assert "a secret" not in str(refusal.value)

    watched.create_message("s1", "assistant", text_message("goes on"))
    assert texts(watched, "s1", "assistant") == ["goes on"]


@pytest.mark.parametrize("unstorable", UNSTORABLE[:-1])
def test_the_refusal_of_a_value_says_where_the_value_is(
    unstorable: Any, conversation: MongoDBSessionRepository
) -> None:
    with pytest.raises(UnstorableValueError, match=r"content.*toolUse.*argument.*culprit.*2"):
        conversation.create_message("s1", "assistant", message_with({"culprit": [0, 1, unstorable]}))
    with pytest.raises(UnstorableValueError, match=r"state.*culprit"):
        conversation.update_agent("s1", agent_with({"fine": 1, "culprit": unstorable}))


@pytest.mark.parametrize("unstorable", UNSTORABLE)
def test_agent_state_that_cannot_be_stored_leaves_the_agent_as_it_was(
    unstorable: Any, watched: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    watched.update_agent("s1", agent_with({"version": 1}))
    recorder.clear()
    with pytest.raises(UnstorableValueError):
        watched.update_agent("s1", agent_with({"version": 2, "culprit": unstorable}))
    with pytest.raises(UnstorableValueError):
        watched.create_agent("s1", agent_with({"culprit": unstorable}, "another"))
    with pytest.raises(UnstorableValueError):
        watched.create_multi_agent("s1", MultiAgent("graph", {"culprit": unstorable}))
    assert recorder.names == []
    agent = watched.read_agent("s1", "assistant")
    assert agent is not None
    assert agent.state == {"version": 1}
    assert watched.read_agent("s1", "another") is None
    assert watched.read_multi_agent("s1", "graph") is None


@pytest.mark.parametrize("unstorable", UNSTORABLE)
def test_a_rewrite_that_cannot_be_stored_leaves_the_message_as_it_was(
    unstorable: Any, watched: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    watched.create_message("s1", "assistant", text_message("first"))
    recorder.clear()
    with pytest.raises(UnstorableValueError):
        watched.update_message("s1", "assistant", message_with(unstorable))
    assert recorder.names == []
    assert texts(watched, "s1", "assistant") == ["first"]


@pytest.mark.parametrize("unstorable", UNSTORABLE)
def test_metadata_and_feedback_that_cannot_be_stored_are_refused_before_any_command_is_sent(
    unstorable: Any, watched: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    with pytest.raises(UnstorableValueError):
        watched.update_metadata("s1", {"fine": 1, "culprit": unstorable})
    with pytest.raises(UnstorableValueError):
        watched.add_feedback("s1", {"rating": "up", "culprit": unstorable})
    assert recorder.names == []
    assert watched.get_metadata("s1") == {"metadata": {}}
    assert watched.get_feedbacks("s1") == []


def test_a_text_larger_than_a_document_is_refused_and_the_session_stays_usable(
    conversation: MongoDBSessionRepository,
) -> None:
    with pytest.raises(UnstorableValueError):
        conversation.create_message("s1", "assistant", text_message("x" * (17 * 1024 * 1024)))
    with pytest.raises(UnstorableValueError):
        conversation.update_agent("s1", agent_with({"huge": "x" * (17 * 1024 * 1024)}))
    conversation.create_message("s1", "assistant", text_message("goes on"))
    assert texts(conversation, "s1", "assistant") == ["goes on"]


def test_a_message_of_many_small_values_that_no_document_holds_is_refused_by_size_before_anything_is_sent(
    watched: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    refused = r"message_id=4 message has 19289015 bytes; at most 15728640 can be stored"
    with pytest.raises(UnstorableValueError, match=refused):
        watched.create_message("s1", "assistant", message_with([0.5] * 1_200_000, 4))
    assert recorder.names == []


class Text(str):
    """What is no plain value, and stored as one."""


def test_fingerprints_are_alike_where_values_are_stored_alike_and_nowhere_else() -> None:
    unlike: list[Any] = [1, 1.0, True, "1", b"1", None, 0.0, -0.0, [1], (1,), {"a": 1, "b": 2}, {"b": 2, "a": 1}]
    unlike += [2**70, "\ud800", {1: "a"}, {"1": "a"}, [[]], [{}]]
    assert len({fingerprint(value) for value in unlike}) == len(unlike)
    # Neither how often an object is in a value nor where a text came from counts.
    one, parts = ["ab"], ["a", "b"]
    assert fingerprint([one, one]) == fingerprint([["ab"], ["".join(parts)]])
    assert fingerprint({"x": math.nan}) == fingerprint({"x": math.nan})
    assert fingerprint([Text("a")]) == fingerprint(["a"])
    with pytest.raises(UnstorableValueError, match="state cannot be stored"):
        fingerprint(object(), "state")
