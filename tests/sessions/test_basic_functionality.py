"""Basic functionality: what the introduction promises, from the first line of code to the document in the database.

Each test is one of the ways in which the library is first used: as a service would, and then read as somebody reads the
collection. The details of each part are tested in the files that are named after it.
"""

import asyncio
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from offline_model import OfflineScriptedModel, ToolCall
from pymongo import MongoClient
from pymongo.database import Database
from strands import Agent, ToolContext, tool
from strands.types.session import Session, SessionAgent, SessionMessage
from support.application import dialogue

from mongodb_session_manager import (
    MongoDBConnectionPool,
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    MongoDBSessionRepository,
    close_global_factory,
    create_mongodb_session_manager,
    get_global_factory,
    initialize_global_factory,
)

COLLECTION = "agent_sessions"

pytestmark = [pytest.mark.new_database, pytest.mark.topology]


@tool(context=True)
def set_language(language: str, tool_context: ToolContext) -> str:
    """Remember which language the user speaks."""
    tool_context.agent.state.set("user_language", language)
    return f"{language} it is"


def build_agent(manager: MongoDBSessionManager, *replies: Any, agent_id: str = "support-agent") -> Agent:
    return Agent(
        agent_id=agent_id,
        model=OfflineScriptedModel(replies),
        tools=[set_language],
        session_manager=manager,
        system_prompt="You are a helpful assistant.",
        callback_handler=None,
    )


def document_of(database: Database[Any], session_id: str) -> dict[str, Any]:
    document = database[COLLECTION].find_one({"_id": session_id})
    assert document is not None
    return document


@pytest.mark.slow
def test_the_quick_start_leaves_one_document_in_the_documented_shape(
    server: Any, database: Database[Any], database_name: str
) -> None:
    session_manager = create_mongodb_session_manager(
        session_id="customer-12345",
        connection_string=server.uri,
        database_name=database_name,
        collection_name=COLLECTION,
    )
    agent = build_agent(session_manager, "Of course.")
    response = agent("Hello, can you help me?")
    session_manager.sync_agent(agent)
    session_manager.close()

    assert str(response).strip() == "Of course."
    assert database[COLLECTION].count_documents({}) == 1
    document = document_of(database, "customer-12345")
    assert document["session_id"] == document["_id"] == "customer-12345"
    assert document["session_type"] == "default"
    assert isinstance(document["created_at"], datetime)
    assert isinstance(document["updated_at"], datetime)

    stored = document["agents"]["support-agent"]
    assert stored["agent_data"]["agent_id"] == "support-agent"
    assert stored["agent_data"]["system_prompt"] == "You are a helpful assistant."
    assert {"state", "conversation_manager_state", "created_at", "updated_at"} <= set(stored["agent_data"])
    assert dialogue(stored["messages"]) == [("user", "Hello, can you help me?"), ("assistant", "Of course.")]
    for message_id, message in enumerate(stored["messages"]):
        assert message["message_id"] == message_id
        assert isinstance(message["created_at"], datetime)
        assert isinstance(message["updated_at"], datetime)

    question, answer = stored["messages"]
    assert "event_loop_metrics" not in question
    metrics = answer["event_loop_metrics"]
    assert metrics["accumulated_metrics"]["latencyMs"] == 25
    usage = metrics["accumulated_usage"]
    assert usage["totalTokens"] == usage["inputTokens"] + usage["outputTokens"] > 0


def test_a_later_process_knows_what_was_said_and_what_the_agent_remembers(server: Any, database_name: str) -> None:
    names = {"connection_string": server.uri, "database_name": database_name, "collection_name": COLLECTION}
    with create_mongodb_session_manager("user-session-001", **names) as manager:
        agent = build_agent(manager, ToolCall("set_language", {"language": "euskera"}), "Hello, Alice.")
        agent("Remember my name is Alice")
        agent.state.set("preferences", {"tone": "formal", "dialect": "bizkaiera"})
        manager.sync_agent(agent)

    with create_mongodb_session_manager("user-session-001", **names) as manager:
        agent = build_agent(manager, "Your name is Alice.")
        assert dialogue(agent.messages)[0] == ("user", "Remember my name is Alice")
        assert agent.state.get() == {
            "user_language": "euskera",
            "preferences": {"tone": "formal", "dialect": "bizkaiera"},
        }
        agent("What's my name?")
        assert agent.model.last_messages[0]["content"][0]["text"] == "Remember my name is Alice"
        assert manager.get_message_count("support-agent") == 6


def test_a_production_configuration_reaches_the_client(server: Any, database_name: str) -> None:
    options = {"maxPoolSize": 100, "minPoolSize": 25, "maxIdleTimeMS": 45000, "serverSelectionTimeoutMS": 5000}
    with MongoDBSessionManager(
        session_id="session-id",
        connection_string=server.uri,
        database_name=database_name,
        collection_name=COLLECTION,
        **options,
        w="majority",
        journal=True,
    ) as manager:
        client = manager.session_repository.client
        assert (client.options.pool_options.max_pool_size, client.options.pool_options.min_pool_size) == (100, 25)
        assert client.options.pool_options.max_idle_time_seconds == 45
        assert client.options.server_selection_timeout == 5
        assert client.write_concern.document == {"w": "majority", "j": True}
        build_agent(manager, "Hello.")("Hello?")


def test_the_repository_does_all_that_its_reference_shows_in_one_piece(
    client: MongoClient[Any], database: Database[Any], database_name: str
) -> None:
    repository = MongoDBSessionRepository(
        client=client,
        database_name=database_name,
        collection_name=COLLECTION,
        metadata_fields=["priority", "status"],
    )
    session = Session(session_id="user-123", session_type="chat")  # type: ignore[arg-type]
    assert repository.create_session(session) is session
    assert {key: document_of(database, "user-123")[key] for key in ("agents", "metadata", "feedbacks")} == {
        "agents": {},
        "metadata": {},
        "feedbacks": [],
    }

    repository.update_metadata("user-123", {"user_name": "Alice", "priority": "high", "token": "t"})
    repository.update_metadata("user-123", {"priority": "low"})
    repository.delete_metadata("user-123", ["token"])

    agent = SessionAgent(agent_id="assistant-1", state={}, conversation_manager_state={})
    agent.model, agent.system_prompt = "claude-3-sonnet", "You are a helpful assistant"  # type: ignore[attr-defined]
    repository.create_agent("user-123", agent)
    for message_id, (role, text) in enumerate([("user", "Hello!"), ("assistant", "Hi! How can I help?")], start=1):
        message = {"role": role, "content": [{"text": text}]}
        repository.create_message("user-123", "assistant-1", SessionMessage(message, message_id))  # type: ignore[arg-type]
    repository.add_feedback("user-123", {"rating": "up", "comment": "Great service!"})

    assert repository.get_metadata("user-123") == {"metadata": {"user_name": "Alice", "priority": "low"}}
    (feedback,) = repository.get_feedbacks("user-123")
    assert (feedback["rating"], feedback["comment"]) == ("up", "Great service!")
    assert isinstance(feedback["created_at"], datetime)
    read = repository.read_agent("user-123", "assistant-1")
    assert read is not None
    assert (read.model, read.system_prompt) == ("claude-3-sonnet", "You are a helpful assistant")
    listed = repository.list_messages("user-123", "assistant-1", limit=1, offset=1)
    assert [(m.message_id, m.message["content"][0]["text"]) for m in listed] == [(2, "Hi! How can I help?")]

    redacted = repository.read_message("user-123", "assistant-1", 2)
    assert redacted is not None
    redacted.message["content"] = [{"text": "[Content removed for privacy]"}]
    repository.update_message("user-123", "assistant-1", redacted)
    assert dialogue(document_of(database, "user-123")["agents"]["assistant-1"]["messages"]) == [
        ("user", "Hello!"),
        ("assistant", "[Content removed for privacy]"),
    ]
    repository.close()
    assert client.admin.command("ping")["ok"] == 1


@pytest.fixture
def nobody_uses_the_shared_clients() -> Iterator[None]:
    yield
    close_global_factory()
    MongoDBConnectionPool.close()


@pytest.mark.usefixtures("nobody_uses_the_shared_clients")
def test_requests_of_a_service_share_the_global_factory_and_go_on_with_each_others_sessions(
    server: Any, database_name: str
) -> None:
    factory = initialize_global_factory(
        connection_string=server.uri, database_name=database_name, collection_name=COLLECTION, maxPoolSize=100
    )
    assert get_global_factory() is factory

    async def request(prompt: str, answer: str) -> list[str]:
        async with await get_global_factory().open("chat-1", agent_id="support-agent") as manager:
            agent = build_agent(manager, answer)
            return [event["data"] async for event in agent.stream_async(prompt) if "data" in event]

    assert "".join(asyncio.run(request("I am Alice.", "Hello, Alice."))) == "Hello, Alice."
    assert "".join(asyncio.run(request("Who am I?", "You are Alice."))) == "You are Alice."

    assert factory.create_session_manager("chat-1").get_message_count("support-agent") == 4
    stats = factory.get_connection_stats()
    assert (stats["in_use"], stats["configuration"]["max_pool_size"]) == (0, 100)


@pytest.mark.usefixtures("nobody_uses_the_shared_clients")
def test_the_pools_client_serves_managers_and_factories_that_do_not_close_it(server: Any, database_name: str) -> None:
    client = MongoDBConnectionPool.initialize(server.uri)
    names = {"database_name": database_name, "collection_name": COLLECTION}
    with MongoDBSessionManager("s", client=MongoDBConnectionPool.get_client(), **names) as manager:
        build_agent(manager, "Hello.")("Hello?")
    with MongoDBSessionManagerFactory(client=client, **names) as factory:
        assert factory.create_session_manager("s").get_message_count("support-agent") == 2
    assert client.admin.command("ping")["ok"] == 1
    assert (MongoDBConnectionPool.get_pool_stats()["check_outs"] or 0) > 0
