"""`manage_metadata`: what an agent's model may see and change of its session's metadata, and what it is told."""

import asyncio
import json
import threading
import uuid
from datetime import datetime, timezone
from typing import Any

import pytest
from bson import Decimal128, ObjectId
from offline_model import OfflineScriptedModel, ToolCall
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from strands import Agent
from strands.hooks import AfterToolCallEvent
from support.application import Application

from mongodb_session_manager import InvalidIdentifierError, MongoDBSessionManager


@pytest.fixture
def manager(app: Application) -> MongoDBSessionManager:
    return app.manager()


def agent_with(manager: MongoDBSessionManager, *calls: Any, **allowed: Any) -> Agent:
    script = [ToolCall("manage_metadata", call) for call in calls]
    return Agent(
        model=OfflineScriptedModel([*script, "Done."]),
        agent_id="a",
        session_manager=manager,
        tools=[manager.get_metadata_tool(**allowed)],
        callback_handler=None,
    )


def asked(manager: MongoDBSessionManager, *calls: Any, **allowed: Any) -> list[tuple[str, str]]:
    """What the model is told of each of its calls: status and text."""
    agent = agent_with(manager, *calls, **allowed)
    agent("Go.")
    return told(agent)


def told(agent: Agent) -> list[tuple[str, str]]:
    results = [
        block["toolResult"] for message in agent.messages for block in message["content"] if "toolResult" in block
    ]
    assert all(len(result["content"]) == 1 for result in results)
    return [(result["status"], result["content"][0]["text"]) for result in results]


def read(manager: MongoDBSessionManager, call: Any = None, **allowed: Any) -> Any:
    ((status, text),) = asked(manager, {"action": "get", **(call or {})}, **allowed)
    assert status == "success", text
    return json.loads(text)


def stored(manager: MongoDBSessionManager) -> Any:
    return manager.get_metadata()["metadata"]


# --- what it does


def test_the_model_is_told_the_actions_the_parameters_and_the_keys_it_may_use(manager: MongoDBSessionManager) -> None:
    spec = manager.get_metadata_tool(readable=["customer"], writable=[]).tool_spec

    assert spec["name"] == "manage_metadata"
    schema = spec["inputSchema"]["json"]
    assert schema["required"] == ["action"]
    assert schema["properties"]["action"]["enum"] == ["get", "set", "update", "delete"]
    assert {name: field["type"] for name, field in schema["properties"].items()} == {
        "action": "string",
        "metadata": "object",
        "keys": "array",
    }
    assert "customer" in spec["description"]
    assert "change no key" in spec["description"]
    json.dumps(spec)


def test_an_agent_sets_reads_and_deletes_metadata_of_its_session(
    manager: MongoDBSessionManager, app: Application
) -> None:
    results = asked(
        manager,
        {"action": "set", "metadata": {"topic": "fish", "address": {"city": "Bilbao"}}},
        {"action": "update", "metadata": {"address.zip": "48001"}},
        {"action": "get"},
        {"action": "get", "keys": ["address.city", "missing"]},
        {"action": "delete", "keys": ["topic", "address.city"]},
        {"action": "get"},
    )

    assert [status for status, _ in results] == ["success"] * 6
    assert json.loads(results[2][1]) == {"topic": "fish", "address": {"city": "Bilbao", "zip": "48001"}}
    assert json.loads(results[3][1]) == {"address.city": "Bilbao"}
    assert json.loads(results[5][1]) == {"address": {"zip": "48001"}}
    assert app.session()["metadata"] == stored(manager) == {"address": {"zip": "48001"}}


@pytest.mark.parametrize(
    "keys",
    [["a", "b.c"], '["a", "b.c"]', ' [ "a" , "b.c" ] ', "a,b.c", "a, b.c ,", "a,  b.c", '"a", "b.c"'],
)
def test_keys_in_any_form_that_models_write_are_understood(manager: MongoDBSessionManager, keys: Any) -> None:
    manager.update_metadata({"a": 1, "b": {"c": 2}, "d": 3})

    assert read(manager, {"keys": keys}) == {"a": 1, "b.c": 2}
    manager.get_metadata_tool()(action="delete", keys=keys)
    assert stored(manager) == {"b": {}, "d": 3}


@pytest.mark.parametrize("keys", [None, [], "", " ", "[]", "null"])
def test_no_keys_in_any_form_read_everything_and_delete_nothing(manager: MongoDBSessionManager, keys: Any) -> None:
    manager.update_metadata({"a": 1})

    assert read(manager, {"keys": keys}) == {"a": 1}
    with pytest.raises(ValueError, match="needs keys"):
        manager.get_metadata_tool()(action="delete", keys=keys)
    assert stored(manager) == {"a": 1}


def test_a_key_and_one_below_it_can_be_read_at_once_and_one_in_quotes(manager: MongoDBSessionManager) -> None:
    manager.update_metadata({"a": {"b": 1}, "c": 2})

    both, quoted = asked(manager, {"action": "get", "keys": ["a", "a.b"]}, {"action": "get", "keys": '"c"'})

    assert [json.loads(text) for _, text in (both, quoted)] == [{"a": {"b": 1}, "a.b": 1}, {"c": 2}]


@pytest.mark.slow
def test_metadata_written_as_text_is_understood(manager: MongoDBSessionManager) -> None:
    ((status, _),) = asked(manager, {"action": "set", "metadata": '{"topic": "fish", "n.m": [1, null]}'})

    assert status == "success"
    assert stored(manager) == {"topic": "fish", "n": {"m": [1, None]}}


def test_a_session_without_metadata_and_one_that_was_not_begun_read_as_empty(manager: MongoDBSessionManager) -> None:
    assert json.loads(manager.get_metadata_tool()(action="get")) == {}
    assert read(manager) == {}


def test_values_that_json_does_not_know_are_shown_as_text(manager: MongoDBSessionManager) -> None:
    moment, object_id, uid = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), ObjectId(), uuid.uuid4()
    manager.update_metadata(
        {
            "at": moment,
            "id": object_id,
            "uid": uid,
            "raw": b"\x00\xff",
            "price": Decimal128("9.99"),
            "nan": float("nan"),
            "deep": {"list": [{"at": moment}, float("inf")]},
            "name": "Łódź",
        }
    )

    assert read(manager) == {
        "at": "2026-01-02T03:04:05+00:00",
        "id": str(object_id),
        "uid": str(uid),
        "raw": "(2 bytes)",
        "price": "9.99",
        "nan": "nan",
        "deep": {"list": [{"at": "2026-01-02T03:04:05+00:00"}, "inf"]},
        "name": "Łódź",
    }


# --- what it may not


ALLOWED: dict[str, Any] = {"readable": ["customer", "order.status"], "writable": ["customer.mood", "topic"]}
METADATA: dict[str, Any] = {
    "customer": {"name": "Alice", "mood": "calm"},
    "customers": 7,
    "order": {"status": "open", "card": "4111"},
    "secret": "s3cret",
}


def test_reading_everything_shows_only_the_readable_part(manager: MongoDBSessionManager) -> None:
    manager.update_metadata(METADATA)

    assert read(manager, **ALLOWED) == {"customer": METADATA["customer"], "order": {"status": "open"}}
    assert manager.get_metadata_tool(readable=[])(action="get") == "{}"
    overlapping = manager.get_metadata_tool(readable=["order.status", "order", "nothing.here", "secret.below"])
    assert json.loads(overlapping(action="get")) == {"order": METADATA["order"]}


@pytest.mark.parametrize("key", ["customer", "customer.name", "order.status"])
def test_an_allowed_key_and_what_lies_below_it_can_be_read(manager: MongoDBSessionManager, key: str) -> None:
    manager.update_metadata(METADATA)

    assert list(read(manager, {"keys": [key]}, **ALLOWED)) == [key]


@pytest.mark.parametrize("key", ["secret", "order", "order.card", "customers", "order.statusx", "custom"])
def test_other_keys_a_parent_and_a_neighbour_with_the_same_beginning_cannot_be_read(
    manager: MongoDBSessionManager, key: str
) -> None:
    manager.update_metadata(METADATA)

    ((status, text),) = asked(manager, {"action": "get", "keys": ["customer", key]}, **ALLOWED)

    assert (status, "not allowed" in text, key in text) == ("error", True, True)
    assert "customer, order.status" in text  # What it may read instead.
    assert not any(value in text for value in ("s3cret", "4111", "Alice"))


@pytest.mark.parametrize(
    "call",
    [
        {"action": "set", "metadata": {"secret": 1}},
        {"action": "update", "metadata": {"topic": "fish", "secret": 1}},
        {"action": "set", "metadata": {"customer": {"mood": "happy"}}},
        {"action": "set", "metadata": {"customer.name": "Bob"}},
        {"action": "set", "metadata": {"customer.moody": 1}},
        {"action": "set", "metadata": '{"customer.name": "Bob"}'},
        {"action": "delete", "keys": ["customer"]},
        {"action": "delete", "keys": "topic, secret"},
        {"action": "delete", "keys": '["topic", "order.status"]'},
    ],
)
def test_what_is_not_writable_is_neither_set_nor_deleted_nor_anything_beside_it(
    manager: MongoDBSessionManager, call: Any
) -> None:
    manager.update_metadata(METADATA)

    ((status, text),) = asked(manager, call, **ALLOWED)

    assert (status, "not allowed" in text) == ("error", True)
    assert stored(manager) == METADATA


def test_an_allowed_key_and_what_lies_below_it_can_be_written(manager: MongoDBSessionManager) -> None:
    manager.update_metadata(METADATA)

    results = asked(
        manager,
        {"action": "set", "metadata": {"customer.mood": "happy", "topic": {"name": "fish"}}},
        {"action": "set", "metadata": {"topic.since": 2026}},
        {"action": "delete", "keys": ["topic.name"]},
        **ALLOWED,
    )

    assert [status for status, _ in results] == ["success"] * 3
    customer = {"name": "Alice", "mood": "happy"}
    assert stored(manager) == {**METADATA, "customer": customer, "topic": {"since": 2026}}


def test_an_error_of_the_server_does_not_show_the_model_a_value_that_it_may_not_read(
    manager: MongoDBSessionManager,
) -> None:
    manager.update_metadata({"card": "4111", "list": [1]})

    results = asked(
        manager,
        {"action": "set", "metadata": {"card.kind": "debit"}},
        {"action": "set", "metadata": {"list.name": 1}},
        readable=[],
        writable=["card.kind", "list"],
    )

    assert [(status, "no object" in text, "4111" in text) for status, text in results] == [("error", True, False)] * 2
    assert stored(manager) == {"card": "4111", "list": [1]}


@pytest.mark.parametrize("name", ["readable", "writable"])
def test_a_list_of_keys_that_is_none_is_refused_rather_than_allowing_or_forbidding_everything(
    manager: MongoDBSessionManager, name: str
) -> None:
    for wrong, error in (("customer", TypeError), ([1], TypeError), (["$a"], InvalidIdentifierError), (1, TypeError)):
        with pytest.raises(error):
            manager.get_metadata_tool(**{name: wrong})


# --- what it tells of errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"action": "drop"}, "get"),
        ({}, "action"),
        ({"action": "set"}, "needs metadata"),
        ({"action": "set", "metadata": {}}, "needs metadata"),
        ({"action": "set", "metadata": "{topic: fish"}, "JSON"),
        ({"action": "set", "metadata": '["topic"]'}, "object"),
        ({"action": "set", "metadata": ["topic"]}, "metadata"),
        ({"action": "set", "metadata": {"$set": 1}}, "$"),
        ({"action": "set", "metadata": {"a": 1, "a.b": 2}}, "overlap"),
        ({"action": "set", "metadata": {"a": {"b.c": 1}}}, "dot"),
        ({"action": "set", "metadata": {"a": 2**80}}, "cannot be stored"),
        ({"action": "delete"}, "needs keys"),
        ({"action": "delete", "keys": ["a..b"]}, "empty part"),
        ({"action": "get", "keys": '["a"'}, "JSON"),
        ({"action": "get", "keys": [1]}, "keys"),
    ],
)
def test_a_call_that_makes_no_sense_is_answered_with_what_is_wrong_and_the_turn_goes_on(
    manager: MongoDBSessionManager, call: Any, says: str
) -> None:
    agent = agent_with(manager, call)
    result = agent("Go.")

    ((status, text),) = told(agent)
    assert (status, says in text) == ("error", True), text
    assert str(result).strip() == "Done."
    assert stored(manager) == {}


@pytest.mark.topology
def test_a_failure_of_the_database_is_the_tools_error_and_known_to_hooks(
    manager: MongoDBSessionManager, app: Application
) -> None:
    failures: list[Any] = []
    agent = agent_with(manager, {"action": "set", "metadata": {"a": 1}}, {"action": "get"})
    agent.hooks.add_callback(AfterToolCallEvent, lambda event: failures.append(event.exception))

    with app.failing("update", error_code=13, times=1):
        agent.tool.manage_metadata(action="set", metadata={"a": 1}, record_direct_tool_call=False)

    assert [str(failure) for failure in failures] == [
        "the database has failed: OperationFailure code=13 (Unauthorized)"
    ]
    assert isinstance(failures[0].__cause__, OperationFailure)
    agent("Go.")
    assert told(agent)[-1] == ("success", '{"a": 1}')


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [{}, {"readable": ["a"]}, {"writable": ["a"]}], ids=str)
def test_a_model_is_not_told_what_the_database_says(manager: MongoDBSessionManager, allowed: Any) -> None:
    manager.update_metadata({"a": 1})
    nowhere: Any = MongoClient("mongodb://secret-host.invalid:9/?serverSelectionTimeoutMS=10")
    lost = MongoDBSessionManager("s", client=nowhere)
    for call in (
        {"action": "get", "keys": ["a"]},
        {"action": "set", "metadata": {"a": 1}},
        {"action": "delete", "keys": ["a"]},
    ):
        with pytest.raises(RuntimeError, match=r"^the database has failed: \w+$"):
            lost.get_metadata_tool(**allowed)(**call)
    nowhere.close()


def test_a_tool_of_a_deleted_session_says_so(manager: MongoDBSessionManager) -> None:
    agent = agent_with(manager)
    manager.session_repository.delete_session("s")

    result = agent.tool.manage_metadata(action="set", metadata={"a": 1}, record_direct_tool_call=False)

    (content,) = result["content"]
    assert result["status"] == "error"
    assert "deleted" in content["text"] or "not exist" in content["text"]


# --- what it costs


def test_an_operation_sends_one_read_and_one_write_at_most_and_bad_ones_send_nothing(
    manager: MongoDBSessionManager, app: Application
) -> None:
    tool = manager.get_metadata_tool(writable=["a"])
    tool(action="set", metadata={"a": 1})
    app.recorder.clear()

    tool(action="set", metadata={"a": 1})
    tool(action="get")
    tool(action="delete", keys=["a"])
    with pytest.raises(ValueError, match="not allowed"):
        tool(action="set", metadata={"b": 1})

    assert app.recorder.names == ["find", "update", "find", "find", "update"]


def test_the_event_loop_goes_on_while_the_tool_waits_for_the_database(
    manager: MongoDBSessionManager, app: Application
) -> None:
    """The database is held until the loop has done something else: if the loop waited, neither would go on."""
    released, blocked = threading.Event(), threading.Event()

    def hold(original: Any, action: str, session_id: str, **kwargs: Any) -> Any:
        blocked.set()
        assert released.wait(30)
        return original()

    held = app.manager(metadata_hook=hold)

    async def turn() -> None:
        agent = agent_with(held, {"action": "get"})

        async def something_else() -> None:
            while not blocked.is_set():
                await asyncio.sleep(0.001)
            released.set()

        await asyncio.gather(agent.invoke_async("Go."), something_else())
        assert told(agent) == [("success", "{}")]

    asyncio.run(turn())
