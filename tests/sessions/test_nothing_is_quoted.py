"""What people said stays in the conversation: no log line, note or error of the library repeats a server's own words.

A validator quotes the value that it refuses, a unique index the key. The driver's error says so, too; it is its
caller's, and the ``__cause__`` of ours.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from offline_model import OfflineScriptedModel, ToolCall
from pymongo.errors import (
    BulkWriteError,
    DuplicateKeyError,
    NotPrimaryError,
    OperationFailure,
    ServerSelectionTimeoutError,
    WriteError,
)
from strands import Agent
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.types.session import Session

from mongodb_session_manager import (
    MongoDBSessionManager,
    MongoDBSessionRepository,
    SessionExistsError,
    SessionNotFoundError,
)
from mongodb_session_manager.errors import described

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pymongo import MongoClient
    from pymongo.database import Database

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


@pytest.fixture
def manager(
    client: MongoClient[dict[str, Any]], database_name: str, log: pytest.LogCaptureFixture
) -> Iterator[Callable[..., MongoDBSessionManager]]:
    """Makes managers of session ``s``; whatever they log, nothing of it quotes the secret."""

    def make(**options: Any) -> MongoDBSessionManager:
        return MongoDBSessionManager(
            "s", client=client, database_name=database_name, collection_name="sessions", **options
        )

    yield make
    logged = [(record.getMessage(), record.exc_info) for record in log.records if record.name.startswith("mongodb_s")]
    assert [message for message, _ in logged if SECRET in message or "4111" in message] == []
    assert [traceback for _, traceback in logged if traceback] == []


def validated(database: Database[Any], collection: str, schema: Any) -> None:
    """Let a collection refuse what breaks a rule; it may be there already."""
    if collection not in database.list_collection_names():
        database.create_collection(collection)
    database.command("collMod", collection, validator={"$jsonSchema": schema})


def talker(manager: MongoDBSessionManager, *replies: Any, **options: Any) -> Agent:
    model = OfflineScriptedModel(replies or ["Yes."] * 50)
    return Agent(model=model, agent_id="a", session_manager=manager, callback_handler=None, **options)


# --- the log


def test_a_segment_that_a_validator_refuses_puts_no_conversation_into_the_log(
    manager: Callable[..., MongoDBSessionManager], database: Database[Any], log: pytest.LogCaptureFixture
) -> None:
    validated(database, "sessions_history", NO_SEGMENT)
    with manager(archive_after_messages=4, archive_block=2) as opened:
        agent = talker(opened, conversation_manager=SlidingWindowConversationManager(window_size=2))
        for _ in range(5):
            agent(SECRET)
    assert "error=<WriteError code=121 (DocumentValidationFailure)> | not archived" in log.text


def test_a_search_document_that_a_validator_refuses_puts_no_conversation_into_the_log(
    manager: Callable[..., MongoDBSessionManager], database: Database[Any], log: pytest.LogCaptureFixture
) -> None:
    validated(database, "sessions_search", NO_SEARCH)
    with manager(index_messages=True) as opened:
        talker(opened)(SECRET)
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
    server: Any, database: Database[Any], database_name: str
) -> None:
    validated(database, "sessions", NO_MESSAGE)
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ENDS), server.uri, database_name, SECRET],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "error=<WriteError code=121 (DocumentValidationFailure)> | lost: not stored at exit" in ended.stderr
    assert "4111" not in ended.stderr


# --- notes, and errors of ours


@pytest.mark.parametrize("refuses", ["validator", "unique index"])
def test_the_note_of_an_error_that_is_on_its_way_says_what_failed_besides_and_not_what_was_said(
    manager: Callable[..., MongoDBSessionManager],
    client: MongoClient[dict[str, Any]],
    database: Database[Any],
    log: pytest.LogCaptureFixture,
    refuses: str,
) -> None:
    if refuses == "validator":
        validated(database, "sessions", NO_MESSAGE)
        told = "WriteError code=121 (DocumentValidationFailure)"
    else:
        database.sessions.create_index("agents.a.messages.content.text", unique=True, name="words")
        other: Any = {"role": "user", "content": [{"text": SECRET}]}
        database.sessions.insert_one({"_id": "other", "agents": {"a": {"messages": [other]}}})
        told = "DuplicateKeyError code=11000 (DuplicateKey)"
    opened = manager()
    agent = talker(opened)

    async def request() -> None:
        async with opened:
            opened.append_message({"role": "user", "content": [{"text": SECRET}]}, agent)  # On a loop it does not wait.
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        asyncio.run(request())

    notes = "\n".join(getattr(raised.value, "__notes__", [])) or log.text  # Python 3.10 has no notes: it is logged.
    assert f"Besides, the session could not be stored: {told}" in notes
    assert "4111" not in notes
    with pytest.raises(OperationFailure, match="4111"):  # Its caller has the driver's own error, which does quote it.
        opened.flush()
    opened.reload(agent)  # It gives up what cannot be stored.


def test_an_agent_is_not_told_through_its_metadata_tool_what_the_server_quotes(
    manager: Callable[..., MongoDBSessionManager], database: Database[Any]
) -> None:
    validated(database, "sessions", NO_TIER)
    opened = manager()
    call = ToolCall("manage_metadata", {"action": "set", "metadata": {"tier": SECRET}})
    agent = talker(opened, call, "Done.", tools=[opened.get_metadata_tool()])
    agent("Set it.")
    results = [
        block["toolResult"] for message in agent.messages for block in message["content"] if "toolResult" in block
    ]
    assert [result["status"] for result in results] == ["error"]
    assert "4111" not in str(results)
    assert "the database has failed: WriteError code=121 (DocumentValidationFailure)" in str(results)


def test_the_name_of_a_session_that_exists_is_all_that_the_error_says_of_it(
    client: MongoClient[dict[str, Any]], database: Database[Any]
) -> None:
    repository = MongoDBSessionRepository(client=client, database_name=database.name, collection_name="sessions")
    database.sessions.insert_one({"_id": "s", "metadata": {"said": SECRET}})
    with pytest.raises(SessionExistsError) as raised:
        repository.create_session(Session(session_id="s", session_type="AGENT"))  # type: ignore[arg-type]
    assert str(raised.value) == "session_id='s' exists"
    assert SECRET not in repr(raised.value)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (WriteError("said", 121, {"code": 121, "errmsg": "said"}), "WriteError code=121 (DocumentValidationFailure)"),
        (
            OperationFailure("said", 13, {"code": 13, "codeName": "Unauthorized"}),
            "OperationFailure code=13 (Unauthorized)",
        ),
        (OperationFailure("said"), "OperationFailure"),
        (DuplicateKeyError("said", 11000, {"keyValue": "said"}), "DuplicateKeyError code=11000 (DuplicateKey)"),
        (
            BulkWriteError({"writeErrors": [{"code": 121, "errmsg": "said"}]}),
            "BulkWriteError code=121 (DocumentValidationFailure)",
        ),
        (
            NotPrimaryError("said", {"code": 189, "codeName": "PrimarySteppedDown"}),
            "NotPrimaryError code=189 (PrimarySteppedDown)",
        ),
        (ServerSelectionTimeoutError("said"), "ServerSelectionTimeoutError"),
        (ValueError("said"), "ValueError"),
        (SessionNotFoundError("session_id='s' was deleted"), "SessionNotFoundError: session_id='s' was deleted"),
        (SessionExistsError("session_id='s' exists"), "SessionExistsError: session_id='s' exists"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_described_by_what_cannot_hold_a_conversation(error: Exception, says: str) -> None:
    assert described(error) == says
