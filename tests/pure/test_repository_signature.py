"""The repository is one of Strands', with the documented parameters."""

import inspect

import pytest
from strands.session.session_repository import SessionRepository

from mongodb_session_manager import (
    MongoDBSessionRepository,
)


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
