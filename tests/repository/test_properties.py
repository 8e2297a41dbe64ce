"""Whatever a model, a tool or a user can put in a conversation comes back exactly as it was.

Hypothesis invents the conversations. The oracle is the `FileSessionManager` of Strands wherever a JSON file can
hold the value; for the rest (lone surrogates, tuples, keys that are no strings) it is the value itself.
"""

import copy
import itertools
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pymongo import MongoClient
from strands.session.file_session_manager import FileSessionManager
from strands.types.session import SessionAgent, SessionMessage
from support.equality import assert_same, differences
from support.repositories import a_session, begin

from mongodb_session_manager import InvalidIdentifierError, MongoDBSessionRepository

pytestmark = pytest.mark.slow

AGENT = "assistant"

generous = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

numbered = itertools.count()


def new_session_id() -> str:
    return f"session-{next(numbered)}"


# --- conversations --------------------------------------------------------------------------------

any_text = st.text(st.characters(exclude_categories=()), max_size=12)
plain_text = st.text(max_size=12)

KEYS_WITH_A_MEANING = [
    *("$ref", "$id", "$db", "$set", "$", ".", "a.b", "", "\0", "_id", "__proto__", "%"),
    *("__bytes_encoded__", "data", "__encoded__", "value", "message_id", "content"),
]
TEXTS_WITH_A_MEANING = ["int", "str", "tuple", "dict", "bson", "$$NOW", "$a", "\ud800", "aGVsbG8="]
NUMBERS_AT_THE_EDGE = [2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 2**200]

any_key = any_text | st.sampled_from(KEYS_WITH_A_MEANING)
any_scalar = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(NUMBERS_AT_THE_EDGE),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1.0]),
    any_text,
    st.sampled_from(TEXTS_WITH_A_MEANING),
    st.binary(max_size=12),
)
no_string = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.tuples(st.integers(), any_text)
)

any_value = st.recursive(
    any_scalar,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(any_key, inner, max_size=4),
        st.dictionaries(any_key | no_string, inner, max_size=3),
    ),
    max_leaves=8,
)
json_value = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), plain_text),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_text, inner, max_size=4),
    max_leaves=8,
)


def content_blocks(text: st.SearchStrategy[str], value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The content blocks of Strands: `text` for every text, `value` wherever a tool decides what to send."""
    raw = st.binary(max_size=40)
    source = st.fixed_dictionaries({"bytes": raw})
    image = st.fixed_dictionaries({"format": st.sampled_from(["png", "jpeg", "gif", "webp"]), "source": source})
    document = st.fixed_dictionaries({"format": st.sampled_from(["pdf", "txt", "md"]), "name": text, "source": source})
    tool_result_content = st.one_of(
        st.fixed_dictionaries({"text": text}),
        st.fixed_dictionaries({"json": value}),
        st.fixed_dictionaries({"image": image}),
        st.fixed_dictionaries({"document": document}),
    )
    tool_use = st.fixed_dictionaries({"toolUseId": text, "name": text, "input": value})
    tool_result = st.fixed_dictionaries(
        {
            "toolUseId": text,
            "status": st.sampled_from(["success", "error"]),
            "content": st.lists(tool_result_content, max_size=2),
        }
    )
    reasoning = st.one_of(
        st.fixed_dictionaries({"reasoningText": st.fixed_dictionaries({"text": text}, optional={"signature": text})}),
        st.fixed_dictionaries({"redactedContent": raw}),
    )
    return st.one_of(
        st.fixed_dictionaries({"text": text}),
        st.fixed_dictionaries({"toolUse": tool_use}),
        st.fixed_dictionaries({"toolResult": tool_result}),
        st.fixed_dictionaries({"image": image}),
        st.fixed_dictionaries({"document": document}),
        st.fixed_dictionaries({"reasoningContent": reasoning}),
        st.just({"cachePoint": {"type": "default"}}),
    )


def conversations(text: st.SearchStrategy[str], value: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "assistant"]),
                "content": st.lists(content_blocks(text, value), max_size=3),
            },
            optional={
                "tracking_id": st.uuids().map(str),
                "metadata": st.fixed_dictionaries({"custom": st.dictionaries(text, value, max_size=2)}),
            },
        ),
        max_size=4,
    )


any_conversation = conversations(plain_text, json_value) | conversations(any_text, any_value)

ordinary_state = st.dictionaries(plain_text, json_value, max_size=4)
odd_state = st.dictionaries(any_key | no_string, any_value, max_size=4)
any_state = ordinary_state | odd_state

any_identifier = st.one_of(
    any_text,
    st.text("ab.$%/\0", max_size=6),
    st.text("aé🙂 *?\\'\"-_0", min_size=1, max_size=6),
    st.sampled_from(["a.b", "a%2Eb", "$a", "%24a", "%", "%25", "0", "__proto__", "..", "messages"]),
)


def usable(identifier: str) -> bool:
    try:
        size = len(identifier.encode())
    except UnicodeEncodeError:
        return False
    return 0 < size <= 1024 and "/" not in identifier and "Cc" not in map(unicodedata.category, identifier)


# --- the two stores -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(standalone: Any) -> Iterator[MongoDBSessionRepository]:
    name = "properties"
    with MongoClient(standalone.uri) as client:
        client.drop_database(name)
        yield MongoDBSessionRepository(client=client, database_name=name, collection_name="sessions")
        client.drop_database(name)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> FileSessionManager:
    return FileSessionManager("unused", storage_dir=str(tmp_path_factory.mktemp("oracle")))


def kept_by_oracle(oracle: FileSessionManager, session_id: str, message: SessionMessage) -> bool:
    """Store `message` in the oracle; True if it comes back unchanged."""
    try:
        oracle.create_message(session_id, AGENT, message)
        read = oracle.read_message(session_id, AGENT, message.message_id)
    except (AttributeError, TypeError, ValueError):
        return False
    return read is not None and not any(differences(read.message, message.message))


def in_short(messages: list[SessionMessage]) -> list[tuple[int, Any, Any]]:
    return [(message.message_id, message.message, message.redact_message) for message in messages]


# --- properties -----------------------------------------------------------------------------------


@generous
@given(
    conversation=any_conversation,
    gaps=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    limit=st.none() | st.integers(0, 6),
    offset=st.integers(0, 6),
)
def test_a_conversation_is_read_as_the_file_store_of_strands_reads_it(
    conversation: list[Any],
    gaps: list[int],
    limit: int | None,
    offset: int,
    repository: MongoDBSessionRepository,
    oracle: FileSessionManager,
) -> None:
    session_id = new_session_id()
    live: list[SessionMessage] = []
    next_id = 0
    for message, gap in zip(conversation, gaps, strict=False):
        next_id += gap
        live.append(SessionMessage(message=copy.deepcopy(message), message_id=next_id))
        next_id += 1

    for store in (repository, oracle):
        begin(store, session_id, AGENT)
    oracle_keeps = [kept_by_oracle(oracle, session_id, message) for message in live]
    for message in live:
        repository.create_message(session_id, AGENT, message)

    # Storing a message does not change it.
    assert_same([message.message for message in live], conversation)

    page = repository.list_messages(session_id, AGENT, limit, offset)
    event("the oracle decides" if all(oracle_keeps) else "the live value decides")
    if all(oracle_keeps):
        expected = in_short(oracle.list_messages(session_id, AGENT, limit, offset))
    else:
        expected = in_short(live)[offset:] if limit is None else in_short(live)[offset : offset + limit]
    assert_same(in_short(page), expected)
    if live:
        read = repository.read_message(session_id, AGENT, live[-1].message_id)
        assert read is not None
        assert_same(in_short([read]), in_short(live[-1:]))
    oracle.delete_session(session_id)


@generous
@given(created=any_state, updated=any_state)
def test_the_state_of_an_agent_is_read_as_it_was_last_stored(
    created: Any, updated: Any, repository: MongoDBSessionRepository, oracle: FileSessionManager
) -> None:
    session_id = new_session_id()
    for store in (repository, oracle):
        store.create_session(a_session(session_id))
    first = SessionAgent(AGENT, copy.deepcopy(created), {})
    manager_state, internal_state = {"removed_message_count": 1, "inner": created}, {"model_state": updated}
    second = SessionAgent(AGENT, copy.deepcopy(updated), copy.deepcopy(manager_state), copy.deepcopy(internal_state))

    repository.create_agent(session_id, first)
    after_creation = repository.read_agent(session_id, AGENT)
    assert after_creation is not None
    assert_same(after_creation.state, created)

    repository.update_agent(session_id, second)
    after_update = repository.read_agent(session_id, AGENT)
    assert after_update is not None
    assert after_update.created_at == after_creation.created_at
    found = (after_update.state, after_update.conversation_manager_state, after_update._internal_state)
    live = (updated, manager_state, internal_state)
    assert_same(found, live)
    assert_same((second.state, second.conversation_manager_state, second._internal_state), live)

    try:
        oracle.create_agent(session_id, second)
        stored = oracle.read_agent(session_id, AGENT)
    except (AttributeError, TypeError, ValueError):
        stored = None
    if stored is not None:
        from_oracle = (stored.state, stored.conversation_manager_state, stored._internal_state)
        if not any(differences(from_oracle, live)):
            event("the oracle decides")
            assert_same(found, from_oracle)
    oracle.delete_session(session_id)


@generous
@given(before=any_conversation, after=any_conversation, redact=st.booleans())
def test_a_rewritten_message_has_the_new_content_and_its_neighbours_keep_theirs(
    before: list[Any], after: list[Any], redact: bool, repository: MongoDBSessionRepository
) -> None:
    session_id = new_session_id()
    begin(repository, session_id, AGENT)
    for message_id, message in enumerate(before):
        repository.create_message(session_id, AGENT, SessionMessage(copy.deepcopy(message), message_id))
    expected = [message["content"] for message in before]
    for message_id, message in list(enumerate(after[: len(before)]))[::2]:
        new: Any = {"role": before[message_id]["role"], "content": copy.deepcopy(message["content"])}
        rewritten = SessionMessage(copy.deepcopy(before[message_id]) if redact else new, message_id)
        rewritten.redact_message = new if redact else None
        repository.update_message(session_id, AGENT, rewritten)
        expected[message_id] = message["content"]
    found = repository.list_messages(session_id, AGENT)
    assert_same([message.to_message()["content"] for message in found], expected)
    tracking_ids = [message.message.get("tracking_id") for message in found]
    assert tracking_ids == [message.get("tracking_id") for message in before]


@generous
@given(identifiers=st.lists(any_identifier, max_size=5, unique=True), update=st.integers(0, 4))
def test_an_agent_id_is_refused_or_names_an_agent_of_its_own(
    identifiers: list[str], update: int, repository: MongoDBSessionRepository
) -> None:
    session_id = new_session_id()
    repository.create_session(a_session(session_id))
    states: dict[str, Any] = {}
    for identifier in identifiers:
        if usable(identifier):
            states[identifier] = {"named": identifier}
            repository.create_agent(session_id, SessionAgent(identifier, states[identifier], {}))
        else:
            with pytest.raises(InvalidIdentifierError):
                repository.create_agent(session_id, SessionAgent(identifier, {}, {}))
    for identifier in list(states)[update : update + 1]:
        states[identifier] = {"updated": identifier}
        repository.update_agent(session_id, SessionAgent(identifier, states[identifier], {}))
    for identifier, state in states.items():
        agent = repository.read_agent(session_id, identifier)
        assert agent is not None
        assert_same((agent.agent_id, agent.state), (identifier, state))


@generous
@given(identifiers=st.lists(any_identifier, max_size=4, unique=True))
def test_a_session_id_is_refused_or_names_a_session_of_its_own(
    identifiers: list[str], repository: MongoDBSessionRepository
) -> None:
    repository.collection.delete_many({})
    usables = [identifier for identifier in identifiers if usable(identifier)]
    for identifier in identifiers:
        session = a_session(identifier)
        if identifier in usables:
            repository.create_session(session)
        else:
            with pytest.raises(InvalidIdentifierError):
                repository.create_session(session)
    for identifier in usables:
        read = repository.read_session(identifier)
        assert read is not None
        assert_same(read.session_id, identifier)
    for identifier in usables[:1]:
        repository.delete_session(identifier)
    assert [repository.session_exists(identifier) for identifier in usables] == [
        index > 0 for index in range(len(usables))
    ]
