"""Index creation: which indexes a collection gets, once, by whom; and that nothing stops where they cannot be made.

Which index serves which list of sessions: `test_listing.py`. Those of binaries and of the search: `test_blobs.py` and
`test_search.py`.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import pytest
from offline_model import OfflineScriptedModel
from pymongo import IndexModel, MongoClient
from strands import Agent
from strands.types.session import Session
from support.commands import CommandRecorder
from support.failpoints import fail_command

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionManagerFactory, MongoDBSessionRepository

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymongo.collection import Collection

COLLECTION = "sessions"

pytestmark = pytest.mark.new_database


@pytest.fixture
def client_in_trouble(server: Any) -> Iterator[MongoClient[dict[str, Any]]]:
    """A client whose commands `fail_command(…, app_name="in trouble")` can make fail."""
    client: MongoClient[dict[str, Any]]
    with MongoClient(server.uri, appname="in trouble") as client:
        yield client


@pytest.fixture
def recorder() -> CommandRecorder:
    return CommandRecorder()


@pytest.fixture
def watched_client(server: Any, recorder: CommandRecorder) -> Iterator[MongoClient[dict[str, Any]]]:
    client: MongoClient[dict[str, Any]]
    with MongoClient(server.uri, event_listeners=[recorder]) as client:
        yield client


def build_agent(manager: MongoDBSessionManager) -> Agent:
    return Agent(agent_id="a", model=OfflineScriptedModel(), session_manager=manager, callback_handler=None)


def indexed_fields(collection: Collection[Any]) -> set[str]:
    return {index["key"][0][0] for index in collection.index_information().values() if len(index["key"]) == 1}


def keys_of(collection: Collection[Any]) -> list[str]:
    """The keys of all indexes, in their order, such as `created_at, _id`."""
    return sorted(", ".join(name for name, _ in index["key"]) for index in collection.index_information().values())


@pytest.mark.topology
def test_a_collection_has_the_indexes_of_the_documentation_and_no_other(
    client: MongoClient[Any], database_name: str
) -> None:
    repository = MongoDBSessionRepository(
        client=client, database_name=database_name, collection_name=COLLECTION, metadata_fields=["priority"]
    )
    assert keys_of(repository.collection) == [
        "_id",
        "agent_ids, created_at, _id",
        "application_name, created_at, _id",
        "created_at",
        "created_at, _id",
        "metadata.priority",
        "metadata.priority, created_at, _id",
        "updated_at",
        "updated_at, _id",
    ]


def test_sessions_are_indexed_by_their_times_and_by_the_chosen_metadata_fields(
    client: MongoClient[Any], database_name: str
) -> None:
    repository = MongoDBSessionRepository(
        client=client,
        database_name=database_name,
        collection_name="sessions",
        metadata_fields=["priority", "status", "customer.tier"],
    )
    assert indexed_fields(repository.collection) >= {
        "created_at",
        "updated_at",
        "metadata.priority",
        "metadata.status",
        "metadata.customer.tier",
    }


def test_without_metadata_fields_no_metadata_is_indexed(client: MongoClient[Any], database_name: str) -> None:
    repository = MongoDBSessionRepository(client=client, database_name=database_name, collection_name=COLLECTION)
    fields = indexed_fields(repository.collection)
    assert fields >= {"created_at", "updated_at"}
    assert not any("metadata" in key for key in keys_of(repository.collection))


@pytest.mark.parametrize("made_by", ["repository", "manager", "factory"])
def test_with_a_ttl_mongodb_is_told_to_remove_what_has_expired_and_nothing_else(
    client: MongoClient[Any], database_name: str, made_by: str
) -> None:
    names: dict[str, Any] = {"database_name": database_name, "collection_name": COLLECTION}
    if made_by == "repository":
        MongoDBSessionRepository(client=client, ttl_hours=1, **names)
    elif made_by == "manager":
        build_agent(MongoDBSessionManager("s", client=client, ttl_hours=1, **names))
    else:
        factory = MongoDBSessionManagerFactory(client=client, ttl_hours=1, **names)
        build_agent(factory.create_session_manager("s"))
    index = client[database_name][COLLECTION].index_information()["expires_at_ttl"]
    assert index["key"] == [("expires_at", 1)]
    assert index["expireAfterSeconds"] == 0
    assert index["partialFilterExpression"] == {"expires_at": {"$exists": True}}


def test_indexes_are_ensured_once_per_process_and_collection(
    watched_client: MongoClient[Any], database_name: str, recorder: CommandRecorder
) -> None:
    names: dict[str, Any] = {"client": watched_client, "database_name": database_name, "collection_name": "sessions"}
    MongoDBSessionRepository(**names, metadata_fields=["status"])
    assert recorder.names.count("createIndexes") >= 1
    recorder.clear()
    for _ in range(3):
        repository = MongoDBSessionRepository(**names, metadata_fields=["status"])
        repository.session_exists("user-123")
    assert recorder.names.count("createIndexes") == 0


def test_another_collection_and_another_metadata_field_get_their_indexes_too(
    client: MongoClient[Any], database_name: str
) -> None:
    for collection_name, field in (("one", "status"), ("two", "status"), ("one", "priority")):
        repository = MongoDBSessionRepository(
            client=client,
            database_name=database_name,
            collection_name=collection_name,
            metadata_fields=[field],
        )
        assert indexed_fields(repository.collection) >= {"created_at", "updated_at", f"metadata.{field}"}


def test_indexes_are_ensured_by_the_first_manager_of_a_process_and_by_no_other(
    watched_client: MongoClient[Any], server: Any, database_name: str, recorder: CommandRecorder
) -> None:
    names: dict[str, Any] = {"database_name": database_name, "collection_name": COLLECTION}
    with recorder.recording() as first:
        build_agent(MongoDBSessionManager("s", client=watched_client, **names))
    with recorder.recording() as later:
        build_agent(MongoDBSessionManager("s", client=watched_client, **names))
        build_agent(MongoDBSessionManager("another", client=watched_client, **names))
        # A client of its own, as every manager made from a connection string has.
        with MongoDBSessionManager("s", server.uri, **names, event_listeners=[recorder]) as manager:
            build_agent(manager)

    assert first.names.count("createIndexes") == 1
    assert "find" in later.names
    assert "createIndexes" not in later.names


@pytest.mark.topology
def test_a_connection_string_that_names_one_node_does_not_have_indexes_ensured_again(
    server: Any, database_name: str, recorder: CommandRecorder
) -> None:
    first_node_only = re.sub(r",[^/]*", "", server.uri, count=1)
    client: MongoClient[dict[str, Any]]
    # Not connected yet: the first manager knows the node that was named, the second all nodes of a replica set.
    with MongoClient(first_node_only, event_listeners=[recorder], connect=False) as client:
        for session_id in ("s", "t", "u"):
            build_agent(MongoDBSessionManager(session_id, None, database_name, COLLECTION, client))

    assert recorder.names.count("createIndexes") == 1


@pytest.mark.topology
def test_a_failure_to_create_an_index_is_logged_and_the_repository_works(
    client: MongoClient[Any], client_in_trouble: MongoClient[Any], database_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with fail_command(client, "createIndexes", app_name="in trouble", error_code=13):
        repository = MongoDBSessionRepository(
            client=client_in_trouble,
            database_name=database_name,
            collection_name="sessions",
            metadata_fields=["status"],
        )
        repository._ensure_indexes()
    assert any(record.name.startswith("mongodb_session_manager") for record in caplog.records)
    assert "index" in caplog.text
    repository.create_session(Session(session_id="user-123", session_type="chat"))
    assert repository.session_exists("user-123")


@pytest.mark.topology
@pytest.mark.parametrize("failure", [{"close_connection": True}, {"error_code": 1}])
def test_indexes_that_could_not_be_created_are_created_by_the_next_repository(
    client: MongoClient[Any], client_in_trouble: MongoClient[Any], database_name: str, failure: Any
) -> None:
    names = {"client": client_in_trouble, "database_name": database_name, "collection_name": "sessions"}
    with fail_command(client, "createIndexes", app_name="in trouble", **failure):
        MongoDBSessionRepository(**names)
    repository = MongoDBSessionRepository(**names)
    assert indexed_fields(repository.collection) >= {"created_at", "updated_at"}


def test_indexes_that_were_refused_for_good_are_not_asked_for_nor_told_of_again(
    watched_client: MongoClient[Any],
    client: MongoClient[Any],
    database_name: str,
    recorder: CommandRecorder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = client[database_name].sessions
    own.create_index("created_at", expireAfterSeconds=30 * 86400)
    own.create_index("updated_at", name="mine")
    names = {"client": watched_client, "database_name": database_name, "collection_name": "sessions"}
    repository = MongoDBSessionRepository(**names, metadata_fields=["status"], ttl_hours=1)

    assert indexed_fields(repository.collection) >= {"metadata.status", "expires_at"}
    assert sum(len(index["key"]) > 1 for index in own.index_information().values()) == 5
    told = [record.message for record in caplog.records if "not created" in record.message]
    assert len(told) == 2
    recorder.clear()
    MongoDBSessionRepository(**names, metadata_fields=["status"], ttl_hours=1)
    assert recorder.names == []


def test_without_the_right_to_make_indexes_that_is_told_once(
    client: MongoClient[Any],
    client_in_trouble: MongoClient[Any],
    database_name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = {"client": client_in_trouble, "database_name": database_name, "collection_name": "sessions"}
    with fail_command(client, "createIndexes", app_name="in trouble", error_code=13):
        for _ in range(3):
            MongoDBSessionRepository(**names)
    assert len([record for record in caplog.records if "not created" in record.message]) == 1


def test_where_other_indexes_take_the_room_those_are_made_that_fit(
    client: MongoClient[Any], database_name: str
) -> None:
    own = client[database_name].sessions
    own.create_indexes([IndexModel(f"own{number}") for number in range(60)])
    repository = MongoDBSessionRepository(client=client, database_name=database_name, collection_name="sessions")
    assert indexed_fields(repository.collection) >= {"created_at", "updated_at"}
    assert len(own.index_information()) == 64


@pytest.mark.parametrize(
    ("fields", "error"),
    [("user", TypeError), ([f"f{number}" for number in range(29)], ValueError), ([7], TypeError), (["$a"], ValueError)],
)
@pytest.mark.parametrize("kind", [MongoDBSessionRepository, MongoDBSessionManagerFactory, MongoDBSessionManager])
def test_metadata_fields_that_cannot_be_indexed_are_refused(
    client: MongoClient[Any], database_name: str, kind: Any, fields: Any, error: type[Exception]
) -> None:
    session = {"session_id": "s"} if kind is MongoDBSessionManager else {}
    with pytest.raises(error, match="metadata"):
        kind(**session, client=client, database_name=database_name, metadata_fields=fields)


def test_as_many_fields_as_are_allowed_are_indexed_twice_and_once_where_named_twice(
    client: MongoClient[Any], database_name: str
) -> None:
    fields = ["address", "address.city", *(f"f{number}" for number in range(26))]
    repository = MongoDBSessionRepository(
        client=client, database_name=database_name, collection_name="c", metadata_fields=[*fields, "f1"], ttl_hours=1
    )
    assert len(repository.collection.index_information()) == 64
