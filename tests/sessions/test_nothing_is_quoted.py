"""What people said stays in the conversation: no log line, note or error of the library repeats a server's own words.

A validator quotes the value that it refuses, a unique index the key. The driver's error says so, too; it is its
caller's, and the ``__cause__`` of ours.
"""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from offline_model import ToolCall
from pymongo.errors import OperationFailure
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.types.session import Session
from support.application import Application
from support.histories import by_hand
from support.running import run_python

from mongodb_session_manager import SessionExistsError

# Validators and indexes of their own would stay in a database that others are lent.
pytestmark = pytest.mark.new_database

SECRET = "my card is 4111-1111"

# Each refuses what was said, and quotes it: the value that breaks the rule is the text itself.
NO_TEXT: dict[str, Any] = {"items": {"properties": {"content": {"items": {"properties": {"text": {"maxLength": 3}}}}}}}
NO_SEGMENT = {"properties": {"messages": NO_TEXT}}
NO_SEARCH = {"properties": {"text": {"maxLength": 3}}}
NO_MESSAGE = {"properties": {"agents": {"properties": {"a": {"properties": {"messages": NO_TEXT}}}}}}
NO_TIER = {"properties": {"metadata": {"properties": {"tier": {"maxLength": 3}}}}}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "mongodb_session_manager")
    return caplog


@pytest.fixture(autouse=True)
def nothing_is_quoted(log: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is logged, nothing of it quotes the secret."""
    yield
    logged = [(record.getMessage(), record.exc_info) for record in log.records if record.name.startswith("mongodb_s")]
    assert [message for message, _ in logged if SECRET in message or "4111" in message] == []
    assert [traceback for _, traceback in logged if traceback] == []


def validated(app: Application, collection: str, schema: Any) -> None:
    """Let a collection refuse what breaks a rule; it may be there already."""
    if collection not in app.database.list_collection_names():
        app.database.create_collection(collection)
    app.database.command("collMod", collection, validator={"$jsonSchema": schema})


# --- the log


def test_a_segment_that_a_validator_refuses_puts_no_conversation_into_the_log(
    app: Application, log: pytest.LogCaptureFixture
) -> None:
    validated(app, "sessions_history", NO_SEGMENT)
    with app.manager(archive_after_messages=4, archive_block=2) as opened:
        agent = app.agent(opened, conversation_manager=SlidingWindowConversationManager(window_size=2))
        for _ in range(5):
            agent(SECRET)
    assert "error=<WriteError code=121 (DocumentValidationFailure)> | not archived" in log.text


def test_a_search_document_that_a_validator_refuses_puts_no_conversation_into_the_log(
    app: Application, log: pytest.LogCaptureFixture
) -> None:
    validated(app, "sessions_search", NO_SEARCH)
    with app.manager(index_messages=True) as opened:
        app.agent(opened)(SECRET)
    assert "error=<OperationFailure code=121 (DocumentValidationFailure)> | not indexed" in log.text


ENDS = """
    import asyncio
    import sys

    from offline_model import OfflineScriptedModel
    from pymongo import MongoClient
    from strands import Agent

    from mongodb_session_manager import MongoDBSessionManager

    uri, database_name, secret = sys.argv[1:]
    manager = MongoDBSessionManager("s", None, database_name, "sessions", MongoClient(uri))
    agent = Agent(model=OfflineScriptedModel(), agent_id="a", session_manager=manager, callback_handler=None)


    async def append():
        manager.append_message({"role": "user", "content": secret}, agent)  # On a loop it does not wait.


    asyncio.run(append())
"""


@pytest.mark.slow
def test_a_message_that_a_validator_refuses_at_the_end_of_the_process_is_told_without_its_text(
    app: Application,
) -> None:
    validated(app, "sessions", NO_MESSAGE)
    ended = run_python(ENDS, app.uri, app.database.name, SECRET)
    assert "error=<WriteError code=121 (DocumentValidationFailure)> | lost: not stored at exit" in ended.stderr
    assert "4111" not in ended.stderr


# --- notes, and errors of ours


@pytest.mark.parametrize("refuses", ["validator", "unique index"])
def test_the_note_of_an_error_that_is_on_its_way_says_what_failed_besides_and_not_what_was_said(
    app: Application, log: pytest.LogCaptureFixture, refuses: str
) -> None:
    if refuses == "validator":
        validated(app, "sessions", NO_MESSAGE)
        told = "WriteError code=121 (DocumentValidationFailure)"
    else:
        app.database.sessions.create_index("agents.a.messages.content.text", unique=True, name="words")
        app.database.sessions.insert_one({"_id": "other", "agents": {"a": {"messages": [by_hand(SECRET)]}}})
        told = "DuplicateKeyError code=11000 (DuplicateKey)"
    opened = app.manager()
    agent = app.agent(opened)

    async def request() -> None:
        async with opened:
            opened.append_message(by_hand(SECRET), agent)  # On a loop it does not wait.
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        asyncio.run(request())

    notes = "\n".join(getattr(raised.value, "__notes__", [])) or log.text  # Python 3.10 has no notes: it is logged.
    assert f"Besides, the session could not be stored: {told}" in notes
    assert "4111" not in notes
    with pytest.raises(OperationFailure, match="4111"):  # Its caller has the driver's own error, which does quote it.
        opened.flush()
    opened.reload(agent)  # It gives up what cannot be stored.


def test_an_agent_is_not_told_through_its_metadata_tool_what_the_server_quotes(app: Application) -> None:
    validated(app, "sessions", NO_TIER)
    opened = app.manager()
    call = ToolCall("manage_metadata", {"action": "set", "metadata": {"tier": SECRET}})
    agent = app.agent(opened, call, "Done.", tools=[opened.get_metadata_tool()])
    agent("Set it.")
    results = [block["toolResult"] for m in agent.messages for block in m["content"] if "toolResult" in block]
    assert [result["status"] for result in results] == ["error"]
    assert "4111" not in str(results)
    assert "the database has failed: WriteError code=121 (DocumentValidationFailure)" in str(results)


def test_the_name_of_a_session_that_exists_is_all_that_the_error_says_of_it(app: Application) -> None:
    app.database.sessions.insert_one({"_id": "s", "metadata": {"said": SECRET}})
    with pytest.raises(SessionExistsError) as raised:
        app.repository.create_session(Session(session_id="s", session_type="AGENT"))  # type: ignore[arg-type]
    assert str(raised.value) == "session_id='s' exists"
    assert SECRET not in repr(raised.value)
