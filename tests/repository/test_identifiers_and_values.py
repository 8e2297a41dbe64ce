"""What may be an id and what may be a value: nothing opens, erases or bends somebody else's data.

Many of these are defects that other MongoDB session stores have shipped.
"""

import math
from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
from bson.raw_bson import RawBSONDocument
from strands import Agent
from strands.types.session import SessionAgent, SessionMessage
from support.application import Application
from support.equality import assert_same
from support.histories import SESSIONS, repository_of, texts
from support.repositories import MultiAgent, a_message, a_session, agent_of, an_agent, begin, message_of

from mongodb_session_manager import (
    InvalidIdentifierError,
    ModelPrice,
    MongoDBSessionError,
    UnstorableValueError,
)
from mongodb_session_manager import MongoDBSessionRepository as Repository
from mongodb_session_manager._model.encoding import fingerprint


def message_with(value: Any, message_id: int = 0) -> SessionMessage:
    """An assistant message that calls a tool with `value` as an argument."""
    tool_use = {"toolUseId": "call-1", "name": "tool", "input": {"argument": value}}
    return a_message(message_id, role="assistant", content=[{"toolUse": tool_use}])


def said(repository: Repository, session_id: str = "s", agent_id: str = "a") -> list[str]:
    return texts(repository.list_messages(session_id, agent_id))


@pytest.fixture
def repository(app: Application) -> Repository:
    """A repository without any session."""
    return app.repository


@pytest.fixture
def conversation(repository: Repository) -> Repository:
    """A repository in which the session `s` has an agent `a` without messages."""
    begin(repository)
    return repository


Operation = Callable[[Repository, Any], Any]

BY_SESSION_ID: dict[str, Operation] = {
    "create_session": lambda r, i: r.create_session(a_session(i)),
    "read_session": lambda r, i: r.read_session(i),
    "delete_session": lambda r, i: r.delete_session(i),
    "session_exists": lambda r, i: r.session_exists(i),
    "create_agent": lambda r, i: r.create_agent(i, an_agent()),
    "read_agent": lambda r, i: r.read_agent(i, "a"),
    "update_agent": lambda r, i: r.update_agent(i, an_agent()),
    "create_message": lambda r, i: r.create_message(i, "a", a_message()),
    "read_message": lambda r, i: r.read_message(i, "a", 0),
    "update_message": lambda r, i: r.update_message(i, "a", a_message()),
    "list_messages": lambda r, i: r.list_messages(i, "a"),
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
    "create_agent": lambda r, i: r.create_agent("s", an_agent(i)),
    "read_agent": lambda r, i: r.read_agent("s", i),
    "update_agent": lambda r, i: r.update_agent("s", an_agent(i)),
    "create_message": lambda r, i: r.create_message("s", i, a_message()),
    "read_message": lambda r, i: r.read_message("s", i, 0),
    "update_message": lambda r, i: r.update_message("s", i, a_message()),
    "list_messages": lambda r, i: r.list_messages("s", i),
    "create_multi_agent": lambda r, i: r.create_multi_agent("s", MultiAgent(i, {})),
    "read_multi_agent": lambda r, i: r.read_multi_agent("s", i),
    "update_multi_agent": lambda r, i: r.update_multi_agent("s", MultiAgent(i, {})),
}

OPERATIONS = [
    *(pytest.param(operation, id=f"{name}-session_id") for name, operation in BY_SESSION_ID.items()),
    *(pytest.param(operation, id=f"{name}-agent_id") for name, operation in BY_AGENT_ID.items()),
]

NO_STRINGS = [{"$gt": ""}, {"$ne": None}, ["s"], b"s", 1, None, True]

UNUSABLE = ["", "a/b", "/", "../s", "a\0b", "\ud800", "ok\udfff"]
UNUSABLE += ["a\nERROR a forged line of the log", "\t", "\x1b[2J", "\x7f", "\x85", "x" * 1025, "🙂" * 257]
UNUSABLE += ["x" * 5_000_000, "/" * 5_000_000, "\n" * 5_000_000]


# --- ids that are refused -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("identifiers", "error"), [(NO_STRINGS, TypeError), (UNUSABLE, InvalidIdentifierError)])
def test_an_id_that_is_no_string_or_unusable_is_refused_in_a_line_before_any_command_is_sent(
    operation: Operation, identifiers: Any, error: type[Exception], conversation: Repository, app: Application
) -> None:
    with app.recorder.recording() as commands:
        for identifier in identifiers:
            with pytest.raises(error) as refusal:
                operation(conversation, identifier)
            assert len(str(refusal.value)) < 1000
    assert commands == []


LONG = "x" * 3_000_000


@pytest.mark.parametrize(
    "refused",
    [
        lambda r: r.update_metadata("s", {LONG + "..": 1}),
        lambda r: r.update_metadata("s", {LONG: 1}),
        lambda r: r.update_metadata("s", {"a": {LONG: {"b.c": 1}}}),
        lambda r: r.update_metadata("s", {"a": {LONG + ".": 1}}),
        lambda r: r.delete_metadata("s", ["$" + LONG]),
        lambda r: r.add_feedback("s", {LONG + ".": 1}),
        lambda r: r.list_sessions(sort_by=LONG),
        lambda r: r.list_sessions(limit=10**5000),
        lambda r: r.list_messages("s", "a", limit=-(10**5000)),
        lambda r: r.read_message("s", "a", 10**5000),
        lambda r: r.search_messages("x", role=LONG),
        lambda r: r.search_messages("x", limit=10**5000),
        lambda r: r.create_message("s", "a", message_with({LONG: object()})),
        lambda r: r.create_message("s", "a", message_with({LONG: "x" * (16 * 1024 * 1024)})),
        lambda r: r.get_metrics_summary("s", prices={LONG: 1}),
    ],
)
def test_no_error_repeats_megabytes_of_what_it_refuses(
    refused: Callable[[Repository], Any], conversation: Repository, app: Application
) -> None:
    with app.recorder.recording() as commands, pytest.raises((ValueError, TypeError)) as refusal:
        refused(conversation)
    assert 10 < len(str(refusal.value)) < 2000
    assert commands == []


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


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("identifier", [Kind.SUPPORT, Liar("support")], ids=["enum", "liar"])
def test_an_id_that_is_the_member_of_an_enum_names_what_its_value_names(
    operation: Operation, identifier: str, repository: Repository, app: Application
) -> None:
    def outcome(given: str) -> Any:
        repository.collection.delete_many({})
        for session_id in ("s", "support"):
            begin(repository, session_id)
        app.recorder.clear()
        try:
            operation(repository, given)
        except MongoDBSessionError as error:
            return type(error), app.recorder.names
        return "done", app.recorder.names

    found = outcome(identifier)
    commands = str([command.command for command in app.recorder.commands])
    assert "support" in commands
    assert "SUPPORT" not in commands
    assert "another" not in commands
    assert found == outcome("support")


def talker(app: Application, manager: Any = None, agent_id: str = "a", **options: Any) -> Agent:
    return app.agent(manager, lambda _: "Yes.", agent_id=agent_id, **options)


@pytest.mark.slow
@pytest.mark.parametrize("text", [Kind.SUPPORT, Liar("support")], ids=["enum", "liar"])
def test_a_session_whose_names_are_members_of_enums_is_stored_found_and_resumed_by_their_values(
    text: Any, repository: Repository, app: Application
) -> None:
    manager = app.manager(text, application_name=text, session_type=text, index_messages=True)
    assert (manager.session_id, type(manager.session_id)) == ("support", str)
    agent = talker(app, manager, text)
    agent("Hello")
    manager.append_message({"role": "user", "content": "by hand"}, agent)
    manager.update_metadata({text: {text: 1}})
    manager.add_feedback({"agent_id": text, "message_id": 0, text: 5})
    manager.close()

    document = app.session("support")
    names = (document["_id"], document["application_name"], document["session_type"], document["agent_ids"])
    assert names == ("support", "support", "support", ["support"])
    assert list(document["agents"]) == ["support"]
    assert document["metadata"] == {"support": {"support": 1}}
    assert repository.get_metadata(text) == {"metadata": {"support": {"support": 1}}}
    assert repository.get_feedbacks("support")[0]["support"] == 5
    metadata = {"metadata": {text: {"support": 1}}}
    for filters in ({"application_name": text}, {"session_type": text}, {"agent_id": text}, metadata):
        assert [session.session_id for session in repository.list_sessions(**filters).sessions] == ["support"]
    for conditions in ({"session_id": text}, {"agent_id": text}, {"application_name": text}):
        assert [hit.message_id for hit in repository.search_messages("Hello", **conditions)] == [0]
    assert len(talker(app, app.manager("support"), text).messages) == 3
    manager = app.manager(text)
    manager.delete_metadata([text])
    assert manager.get_metadata() == {"metadata": {}}
    repository.delete_session(text)
    assert not repository.session_exists("support")


def test_prices_under_members_of_an_enum_are_those_of_their_models(app: Application) -> None:
    manager = app.manager()
    talker(app, manager)("Hello")
    [model] = manager.get_metrics_summary().models
    model_id = Enum("ModelId", {"ONE": model}, type=str)
    summary = manager.get_metrics_summary(prices={model_id.ONE: ModelPrice(input=1, output=1)})  # type: ignore[attr-defined]
    assert summary.cost is not None


@pytest.mark.parametrize("names", [{"application_name": {"$gt": ""}}, {"session_type": 5}, {"session_type": None}])
def test_a_name_of_a_session_that_is_no_text_is_refused_before_it_is_stored(names: Any, app: Application) -> None:
    with pytest.raises(TypeError, match="must be a string"):
        app.manager(**names)


# --- tracking ids ---------------------------------------------------------------------------------

NO_TRACKING_IDS = [{"$ne": None}, {}, ["x"], 5, 0, False, b"x"]


def tracked(text: str, tracking_id: Any) -> Any:
    return {"role": "user", "content": [{"text": text}], "tracking_id": tracking_id}


@pytest.mark.parametrize("tracking_id", NO_TRACKING_IDS, ids=repr)
def test_a_message_whose_tracking_id_is_no_text_is_refused_and_the_conversation_goes_on(
    tracking_id: Any, repository: Repository, app: Application
) -> None:
    refused, redacted = tracked("refused", tracking_id), tracked("gone", tracking_id)
    manager = app.manager()
    agent = talker(app, manager)
    agent("first")
    refusals: list[Callable[[], Any]] = [
        lambda: manager.append_message(dict(refused), agent),
        lambda: manager.redact_latest_message(redacted, agent),
        lambda: repository.create_message("s", "a", SessionMessage(refused, 9)),
        lambda: repository.update_message("s", "a", SessionMessage(refused, 0)),
        lambda: repository.update_message("s", "a", SessionMessage({"role": "user", "content": []}, 0, redacted)),
    ]
    if tracking_id:  # In the place of others Strands puts one of its own before anybody sees the message.
        refusals += [lambda: agent([dict(refused)]), lambda: talker(app, manager, "new", messages=[dict(refused)])]
    for refusal in refusals:
        with pytest.raises(TypeError, match="tracking_id must be a string"):
            refusal()
    manager.flush()
    agent("second")
    manager.close()
    assert said(repository) == ["first", "Yes.", "second", "Yes."]


def test_a_redaction_after_a_message_with_a_bad_tracking_id_does_not_hit_the_one_before(app: Application) -> None:
    manager = app.manager()
    agent = talker(app, manager)
    agent("first")
    with pytest.raises(TypeError, match="tracking_id"):
        agent([tracked("refused", {"$ne": None})])
    with pytest.raises(MongoDBSessionError, match="no message to redact"):
        manager.redact_latest_message({"role": "user", "content": [{"text": "gone"}]}, agent)
    assert said(app.repository) == ["first", "Yes."]


@pytest.mark.parametrize("tracking_id", ["", None])
def test_an_empty_tracking_id_is_none_so_that_a_redaction_hits_no_other_message(
    tracking_id: Any, app: Application
) -> None:
    manager = app.manager()
    agent = talker(app, manager)
    for text in ("one", "two"):
        manager.append_message(tracked(text, tracking_id), agent)
    manager.redact_latest_message(tracked("gone", tracking_id), agent)
    assert said(app.repository) == ["one", "gone"]
    assert all(message["tracking_id"] for message in app.messages())


def test_a_tracking_id_that_is_the_member_of_an_enum_is_its_value(app: Application) -> None:
    manager = app.manager()
    agent = talker(app, manager)
    agent([tracked("secret", Kind.SUPPORT)])
    manager.redact_latest_message(tracked("gone", Kind.SUPPORT), agent)
    assert app.messages()[0]["tracking_id"] == "support"
    assert said(app.repository) == ["gone", "Yes."]


@pytest.mark.slow
def test_a_stored_tracking_id_that_is_no_text_keeps_no_conversation_from_being_resumed(app: Application) -> None:
    talker(app)("first")
    spoilt = {"agents.a.messages.0.tracking_id": {"$ne": None}}
    app.database[SESSIONS].update_one({}, {"$set": spoilt})
    agent = talker(app)
    for _ in range(55):  # Until messages that have left the live conversation are forgotten.
        agent("again")
    assert len(said(app.repository)) == 112


# --- session ids ----------------------------------------------------------------------------------

SESSION_IDS = [
    *("s1", "s10", "s", "S1", "s1.", "s1*", "s.*", "*", "$gt", "a.b", "сессия", "🙂", " ", "null", "s1 "),
    *("x" * 1024, "🙂" * 256, "\u00a0", "\u200b"),
]


@pytest.fixture
def spoken(repository: Repository) -> Repository:
    """A repository with a session of each id, in which something was said."""
    for session_id in SESSION_IDS:
        begin(repository, session_id)
        repository.create_message(session_id, "a", a_message(text=f"said in {session_id}"))
    return repository


@pytest.mark.slow
def test_every_session_id_names_its_own_session(spoken: Repository) -> None:
    for session_id in SESSION_IDS:
        session: Any = spoken.read_session(session_id)
        assert session.session_id == session_id
        assert said(spoken, session_id) == [f"said in {session_id}"]


@pytest.mark.slow
@pytest.mark.parametrize("deleted", ["s1", "s", "s.*", "s1*", "*", "$gt"])
def test_deleting_a_session_leaves_its_neighbours_alone(deleted: str, spoken: Repository) -> None:
    spoken.delete_session(deleted)
    assert not spoken.session_exists(deleted)
    for session_id in SESSION_IDS:
        if session_id != deleted:
            assert said(spoken, session_id) == [f"said in {session_id}"]


# --- agent ids ------------------------------------------------------------------------------------

AGENT_IDS = [
    *("assistant", "a", "a.b", "a%2Eb", "a%252Eb", "a..b", ".", "..", ".a", "a.", "a.b.c", "b"),
    *("$a", "a$", "$", "$$", "%24a", "%", "%%", "%25", "%00", "a.messages", "a.agent_data.state"),
    *("агент", "é", "e\u0301", "🙂", "0", "-1", "1", "__proto__", "constructor", " ", " a", "a b"),
    *("agent_data", "messages", "agents", "session_id", "_id", "A", "x" * 500),
]


@pytest.mark.slow
def test_every_agent_id_names_its_own_agent_whose_update_changes_no_other(repository: Repository) -> None:
    repository.create_session(a_session())
    for agent_id in AGENT_IDS:
        repository.create_agent("s", an_agent(agent_id, {"named": agent_id}))
        repository.create_message("s", agent_id, a_message(text=f"said to {agent_id}"))
    changed = ("a.b", "$a", "%", "0")
    for agent_id in changed:
        repository.update_agent("s", an_agent(agent_id, {"changed": agent_id}))
        repository.update_message("s", agent_id, a_message(text=f"changed for {agent_id}"))
    for agent_id in AGENT_IDS:
        agent = agent_of(repository, agent_id)
        state, text = ("changed", "changed for") if agent_id in changed else ("named", "said to")
        assert (agent.agent_id, agent.state) == (agent_id, {state: agent_id})
        assert said(repository, "s", agent_id) == [f"{text} {agent_id}"]


@pytest.mark.slow
def test_every_multi_agent_id_names_its_own_state(repository: Repository) -> None:
    repository.create_session(a_session())
    for multi_agent_id in AGENT_IDS:
        repository.create_multi_agent("s", MultiAgent(multi_agent_id, {"named": multi_agent_id}))
    for multi_agent_id in AGENT_IDS:
        assert repository.read_multi_agent("s", multi_agent_id) == {"named": multi_agent_id}


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
    agent_id: str, key: str, repository: Repository, app: Application
) -> None:
    begin(repository, agent_id=agent_id)
    document = app.session()
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


ODD_KEYS = ["$", "$set", "$a", ".", "a.b", "..", "", "\0", "a\0b", "\ud800", "%", "_id", "é", " ", "__proto__", "0"]

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
    "extended-json": [{"$oid": "5f" * 12}, {"$numberLong": "1"}, {"$binary": {"base64": "", "subType": "00"}}],
    "expressions": ["$a", "$$NOW", "$$ROOT", {"$literal": "$a"}, {"a": "$b"}],
    "bytes": [b"\x00\xff", b"x" * 1000, b"\xc3\x28"],
    "bytes-nested": {"a": [{"b": [b"deep", {"c": b""}]}]},
    "bytes-marker-of-strands": {"__bytes_encoded__": True, "data": "aGVsbG8="},
    "bytes-marker-that-is-no-base64": [{"__bytes_encoded__": True, "data": "?"}, {"__bytes_encoded__": 1, "data": 2}],
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
    "keys-that-are-no-strings": {1: "int", None: "none", 2.5: "float", "1": "str", -0.0: "zero", (1, "a"): "tuple"},
    "boolean-keys": [{True: "yes", False: "no"}, {1: "one", 0: "zero"}, {1.0: "one"}],
    "keys-that-are-bytes": {b"k": 1, "k": 2},
    "a-key-beyond-bson": {2**200: 1},
    "looks-like-a-blob": {"file_id": "1", "length": 3, "$blob": "1", "_blob": b"x", "__blob__": 1},
}

EVERY_VALUE = [pytest.param(value, id=name) for name, value in VALUES.items()]


@pytest.mark.parametrize("value", EVERY_VALUE)
def test_a_value_in_a_message_comes_back_exactly_as_it_was(value: Any, conversation: Repository) -> None:
    conversation.create_message("s", "a", message_with(value))
    assert_same(message_of(conversation).message, message_with(value).message)
    listed = conversation.list_messages("s", "a")
    assert_same([message.message for message in listed], [message_with(value).message])


@pytest.mark.parametrize("value", EVERY_VALUE)
def test_a_value_in_agent_state_comes_back_exactly_as_it_was(value: Any, repository: Repository) -> None:
    repository.create_session(a_session())
    repository.create_agent("s", an_agent(state={"created": value}))
    assert_same(agent_of(repository).state, {"created": value})

    repository.update_agent("s", SessionAgent("a", {"updated": value}, {"kept": value}, {"internal": value}))
    updated = agent_of(repository)
    assert_same(updated.state, {"updated": value})
    assert_same(updated.conversation_manager_state, {"kept": value})
    assert_same(updated._internal_state, {"internal": value})


@pytest.mark.parametrize("value", EVERY_VALUE)
def test_a_value_in_the_state_of_a_multi_agent_comes_back_exactly_as_it_was(value: Any, repository: Repository) -> None:
    repository.create_session(a_session())
    repository.create_multi_agent("s", MultiAgent("graph", {"created": value}))
    assert_same(repository.read_multi_agent("s", "graph"), {"created": value})
    repository.update_multi_agent("s", MultiAgent("graph", {"updated": value}))
    assert_same(repository.read_multi_agent("s", "graph"), {"updated": value})


@pytest.mark.slow
@pytest.mark.parametrize("value", EVERY_VALUE)
def test_a_value_in_a_rewritten_message_comes_back_exactly_as_it_was(value: Any, conversation: Repository) -> None:
    conversation.create_message("s", "a", a_message())
    rewritten = message_with(value)
    rewritten.redact_message = message_with([value]).message
    conversation.update_message("s", "a", rewritten)
    assert_same(message_of(conversation).to_message()["content"], message_with([value]).message["content"])


def test_odd_keys_at_the_top_of_agent_state_come_back(repository: Repository) -> None:
    state = {key: {key: key} for key in ODD_KEYS} | {"$ref": "users", "$id": 1}
    repository.create_session(a_session())
    repository.create_agent("s", an_agent(state=state))
    assert_same(agent_of(repository).state, state)


def test_a_value_that_looks_like_the_stored_form_of_another_value_is_not_taken_for_it(
    conversation: Repository, app: Application
) -> None:
    """What the library stores for an odd value is itself a legal value, and so is what it stores for that."""
    value: Any = [
        VALUES[name] for name in ("integers-beyond-bson", "odd-keys", "tuples", "lone-surrogates", "180-levels")
    ]
    for generation in range(3):
        conversation.create_message("s", "a", message_with(value, generation))
        assert_same(message_of(conversation, generation).message, message_with(value).message)
        stored = app.messages()[generation]["content"][0]["toolUse"]["input"]
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
    size: int, conversation: Repository
) -> None:
    """PyMongo hands out documents of more than 4 KB in another type than smaller ones."""
    state = {"integer": 2**200, "tuple": (1,), "reference": {"$ref": "a", "$id": 1}, "ballast": "x" * size}
    conversation.update_agent("s", an_agent(state=state))
    conversation.create_message("s", "a", message_with(state))
    conversation.create_multi_agent("s", MultiAgent("graph", state))
    assert_same(agent_of(conversation).state, state)
    assert_same(message_of(conversation).message, message_with(state).message)
    assert_same(conversation.list_messages("s", "a")[0].message, message_with(state).message)
    assert_same(conversation.read_multi_agent("s", "graph"), state)


def test_integers_come_back_as_plain_int(conversation: Repository) -> None:
    integers = [1, 2**31, 2**40, -(2**63), 2**63 - 1, 2**63]
    conversation.create_message("s", "a", message_with(integers))
    conversation.update_agent("s", an_agent(state={"integers": integers}))
    message = message_of(conversation)
    assert type(message.message_id) is int
    from_message = message.message["content"][0]["toolUse"]["input"]["argument"]
    for values in (from_message, agent_of(conversation).state["integers"]):
        assert [(type(value), value) for value in values] == [(int, value) for value in integers]


def test_ordinary_values_are_stored_as_they_are_so_that_they_can_be_queried(
    conversation: Repository, app: Application
) -> None:
    ordinary = {"city": "Zürich", "days": 3, "price": 9.5, "sure": True, "tags": ["a", "b"], "none": None, "raw": b"x"}
    conversation.create_message("s", "a", message_with(ordinary))
    conversation.update_agent("s", an_agent(state={"profile": ordinary}))
    query = {
        "agents.a.messages.content.toolUse.input.argument.city": "Zürich",
        "agents.a.agent_data.state.profile.days": 3,
    }
    assert app.database[SESSIONS].count_documents(query) == 1
    assert_same(app.messages()[0]["content"][0]["toolUse"]["input"]["argument"], ordinary)
    assert_same(app.record()["agent_data"]["state"]["profile"], ordinary)


def test_options_of_a_borrowed_client_do_not_change_what_is_read(conversation: Repository, app: Application) -> None:
    value = {"n": 2**40, "b": b"x", "d": {"e": [1.0]}}
    conversation.update_agent("s", an_agent(state=value))
    conversation.create_message("s", "a", message_with(value))
    conversation.add_feedback("s", {"rating": "up"})
    results = []
    for options in ({}, {"tz_aware": False, "document_class": RawBSONDocument}, {"tz_aware": True}):
        repository = repository_of(app.new_client(**options), app.database.name)
        message, agent = message_of(repository), agent_of(repository)
        assert_same(message.message, message_with(value).message)
        assert_same(agent.state, value)
        results.append((message.created_at, agent.created_at, repository.get_feedbacks("s")))
    assert results[1:] == results[:1] * 2


def test_a_megabyte_of_text_is_an_ordinary_message(conversation: Repository) -> None:
    text = "å 1" * (1024 * 1024 // 4)
    conversation.create_message("s", "a", a_message(0, text))
    conversation.create_message("s", "a", a_message(1, "and on"))
    assert said(conversation) == [text, "and on"]


def test_later_changes_to_a_stored_object_do_not_reach_the_store(conversation: Repository) -> None:
    arguments = {"list": [1]}
    conversation.create_message("s", "a", message_with(arguments))
    arguments["list"].append(2)
    assert_same(message_of(conversation).message, message_with({"list": [1]}).message)


# --- values that can never be stored --------------------------------------------------------------


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


UNSTORABLE = [object(), {1, 2}, frozenset({"a"}), lambda: None, 1j, (item for item in ()), cyclic()]
WRITES: dict[str, Operation] = {
    "create_message": lambda r, v: r.create_message("s", "a", message_with(v, 1)),
    "update_message": lambda r, v: r.update_message("s", "a", message_with(v)),
    "create_agent": lambda r, v: r.create_agent("s", an_agent("another", v)),
    "update_agent": lambda r, v: r.update_agent("s", an_agent(state=v)),
    "create_multi_agent": lambda r, v: r.create_multi_agent("s", MultiAgent("graph", v)),
    "update_metadata": lambda r, v: r.update_metadata("s", v),
    "add_feedback": lambda r, v: r.add_feedback("s", v),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_cannot_be_stored_is_refused_before_any_command_is_sent_and_takes_no_message_id(
    write: Operation, conversation: Repository, app: Application
) -> None:
    conversation.create_message("s", "a", a_message(0, "first"))
    before = app.session()
    for unstorable in UNSTORABLE:
        with app.recorder.recording() as commands, pytest.raises(UnstorableValueError) as refusal:
            write(conversation, {"fine": "a secret", "culprit": unstorable})
        assert commands == [], type(unstorable)
        assert isinstance(refusal.value, ValueError)
        assert "a secret" not in str(refusal.value)
    assert app.session() == before
    conversation.create_message("s", "a", a_message(1, "goes on"))
    assert said(conversation) == ["first", "goes on"]


@pytest.mark.parametrize("unstorable", UNSTORABLE[:-1], ids=lambda value: type(value).__name__)
def test_the_refusal_of_a_value_says_where_the_value_is(unstorable: Any, conversation: Repository) -> None:
    with pytest.raises(UnstorableValueError, match=r"content.*toolUse.*argument.*culprit.*2"):
        conversation.create_message("s", "a", message_with({"culprit": [0, 1, unstorable]}))
    with pytest.raises(UnstorableValueError, match=r"state.*culprit"):
        conversation.update_agent("s", an_agent(state={"fine": 1, "culprit": unstorable}))


@pytest.mark.slow
def test_a_message_of_many_small_values_that_no_document_holds_is_refused_by_size_before_anything_is_sent(
    conversation: Repository, app: Application
) -> None:
    refused = r"message_id=4 message has 19289015 bytes; at most 15728640 can be stored"
    with app.recorder.recording() as commands, pytest.raises(UnstorableValueError, match=refused):
        conversation.create_message("s", "a", message_with([0.5] * 1_200_000, 4))
    assert commands == []


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
