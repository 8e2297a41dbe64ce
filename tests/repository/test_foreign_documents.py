"""Documents that another program has written, or spoilt: they break nothing that is read, least of all a list."""

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from bson import Decimal128
from support.application import Application

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def tokens(value: Any) -> Any:
    return {"agents": {"a": {"usage": {"models": {"m": {"inputTokens": value}}}}}}


@pytest.mark.parametrize(
    "spoilt",
    [
        {"agent_ids": [1, None, {"x": 1}, {"key": 1}, ["a"]]},
        {"agent_ids": None},
        {"agents": {"100%FF": {"messages": []}}},
        {"agents": {"a": {"agent_data": {"agent_id": 7}, "messages": []}}},
        {"agents": [1]},
        {"agents": "x"},
        {"agents": None},
        {"agents": {"a": None}},
        {"feedbacks": {"a": 1}},
        {"feedbacks": "x"},
        {"feedbacks": None},
        {"feedbacks": ["x", 5, None]},
        {"feedbacks_archived": "x"},
        {"feedbacks_archived": float("nan")},
        tokens(float("nan")),
        tokens(float("-inf")),
        tokens(Decimal128("1.5")),
        tokens(Decimal128("NaN")),
        tokens("5"),
        {"agents": {"a": {"usage": "x"}}},
        {"agents": {"a": {"usage": {"models": [1]}}}},
        {"agents": {"a": {"archived_count": float("nan")}}},
        {"metadata": "x"},
        {"metadata": [1]},
        {"metadata": None},
    ],
    ids=str,
)
def test_a_spoilt_document_is_read_as_what_it_can_mean_and_hides_no_other(app: Application, spoilt: Any) -> None:
    whole = {"created_at": NOW, "updated_at": NOW, "agents": {}}
    app.database.sessions.insert_one({"_id": "good", "session_id": "good", **whole})
    earlier = {"created_at": NOW - timedelta(days=1)}
    app.database.sessions.insert_one({"_id": "spoilt", "session_id": "spoilt", **whole, **earlier, **spoilt})
    manager = app.manager("spoilt")
    repository = manager.session_repository

    for sort_by in ("created_at", "updated_at"):
        headers = repository.list_sessions(sort_by=sort_by).sessions
        assert {header.session_id for header in headers} == {"good", "spoilt"}
        (header,) = (header for header in headers if header.session_id == "spoilt")
        assert [type(agent_id) for agent_id in header.agent_ids] == [str] * len(header.agent_ids)
        assert (header.input_tokens, header.message_count, header.metadata) == (0, 0, {})

    assert manager.get_metrics_summary().tokens.input == 0
    assert manager.get_metrics_summary("a").tokens.input == 0
    assert manager.get_metadata() == {"metadata": {}}
    assert manager.get_feedbacks() == []
    assert len(manager.list_agents()) == len(header.agent_ids) or "agent_ids" in spoilt


def test_an_agent_is_named_by_its_key_where_nothing_better_is_known(app: Application) -> None:
    agents = {"a%2Eb": {}, "100%FF": {}, "c": {"agent_data": {"agent_id": 7}}, "d": {"agent_data": {"agent_id": "D"}}}
    app.database.sessions.insert_one({"_id": "s", "created_at": NOW, "updated_at": NOW, "agents": agents})
    manager = app.manager()

    (header,) = manager.session_repository.list_sessions().sessions
    assert header.agent_ids == ["a.b", "100%FF", "c", "D"]
    assert manager.list_agents() == ["a.b", "100%FF", "c", "d"]


def test_a_counter_that_was_written_in_a_shell_makes_no_fraction_of_a_message_id(app: Application) -> None:
    """A shell writes numbers as floating point."""

    one, other = (app.agent(None, "Yes.") for _ in range(2))
    other("first")
    app.database.sessions.update_one({"_id": "s"}, {"$set": {"agents.a.message_count": 2.0}})
    one("second")

    assert [(m["message_id"], type(m["message_id"])) for m in app.messages()] == [(n, int) for n in range(4)]


WITHOUT_CONTENT = {"role": "assistant", "content": None}


@pytest.mark.parametrize("message", [WITHOUT_CONTENT, {"message": WITHOUT_CONTENT}], ids=["flat", "nested"])
def test_a_message_without_content_keeps_no_session_from_being_opened(app: Application, message: Any) -> None:
    said = {"message_id": 0, **message}
    app.database.sessions.insert_one(
        {"_id": "s", "agents": {"a": {"agent_data": {"agent_id": "a"}, "messages": [said]}}}
    )
    agent = app.agent(None, "Yes.")
    agent("Hello?")
    assert [m["content"] for m in agent.messages] == [[], [{"text": "Hello?"}], [{"text": "Yes."}]]
    assert app.record()["messages"][0] == said
