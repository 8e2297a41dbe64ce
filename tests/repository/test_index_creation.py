"""Index creation: which indexes a collection gets, once, by whom; and that nothing stops where they cannot be made.

Which index serves which list of sessions: `test_listing.py`. Those of binaries and of the search: `test_blobs.py` and
`test_search.py`.
"""

import logging
import re
from typing import Any

import pytest
from pymongo import IndexModel
from support.application import Application
from support.histories import SESSIONS, manager_of
from support.repositories import a_session

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionManagerFactory
from mongodb_session_manager import MongoDBSessionRepository as Repository

pytestmark = pytest.mark.new_database

TIMES = {"created_at", "updated_at"}


def repository_of(app: Application, collection_name: str = SESSIONS, **options: Any) -> Repository:
    return Repository(client=app.client, database_name=app.database.name, collection_name=collection_name, **options)


def indexed_fields(repository: Repository) -> set[str]:
    indexes = repository.collection.index_information().values()
    return {index["key"][0][0] for index in indexes if len(index["key"]) == 1}


def keys_of(repository: Repository) -> list[str]:
    """The keys of all indexes, in their order, such as `created_at, _id`."""
    indexes = repository.collection.index_information().values()
    return sorted(", ".join(name for name, _ in index["key"]) for index in indexes)


@pytest.mark.topology
def test_a_collection_has_the_indexes_of_the_documentation_and_no_other(app: Application) -> None:
    assert keys_of(repository_of(app, metadata_fields=["priority"])) == [
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


def test_sessions_are_indexed_by_their_times_and_by_the_chosen_metadata_fields(app: Application) -> None:
    fields = ["priority", "status", "customer.tier"]
    found = indexed_fields(repository_of(app, metadata_fields=fields))
    assert found >= TIMES | {f"metadata.{field}" for field in fields}


def test_without_metadata_fields_no_metadata_is_indexed(app: Application) -> None:
    repository = repository_of(app)
    assert indexed_fields(repository) >= TIMES
    assert not any("metadata" in key for key in keys_of(repository))


@pytest.mark.parametrize("made_by", ["repository", "manager", "factory"])
def test_with_a_ttl_mongodb_is_told_to_remove_what_has_expired_and_nothing_else(app: Application, made_by: str) -> None:
    if made_by == "repository":
        repository_of(app, ttl_hours=1)
    elif made_by == "manager":
        app.agent(app.manager(ttl_hours=1))
    else:
        app.agent(app.factory(ttl_hours=1).create_session_manager("s"))
    index = app.database[SESSIONS].index_information()["expires_at_ttl"]
    assert index["key"] == [("expires_at", 1)]
    assert index["expireAfterSeconds"] == 0
    assert index["partialFilterExpression"] == {"expires_at": {"$exists": True}}


def test_indexes_are_ensured_once_per_process_and_collection(app: Application) -> None:
    repository_of(app, metadata_fields=["status"])
    assert app.recorder.names.count("createIndexes") >= 1
    app.recorder.clear()
    for _ in range(3):
        repository_of(app, metadata_fields=["status"]).session_exists("user-123")
    assert app.recorder.names.count("createIndexes") == 0


def test_another_collection_and_another_metadata_field_get_their_indexes_too(app: Application) -> None:
    for collection_name, field in (("one", "status"), ("two", "status"), ("one", "priority")):
        repository = repository_of(app, collection_name, metadata_fields=[field])
        assert indexed_fields(repository) >= {*TIMES, f"metadata.{field}"}


def test_indexes_are_ensured_by_the_first_manager_of_a_process_and_by_no_other(app: Application) -> None:
    with app.recorder.recording() as first:
        app.agent(app.manager())
    with app.recorder.recording() as later:
        app.agent(app.manager())
        app.agent(app.manager("another"))
        # A client of its own, as every manager made from a connection string has.
        with MongoDBSessionManager(
            "s", app.uri, app.database.name, SESSIONS, event_listeners=[app.recorder]
        ) as manager:
            app.agent(manager)

    assert first.names.count("createIndexes") == 1
    assert "find" in later.names
    assert "createIndexes" not in later.names


@pytest.mark.topology
def test_a_connection_string_that_names_one_node_does_not_have_indexes_ensured_again(app: Application) -> None:
    first_node_only = re.sub(r",[^/]*", "", app.uri, count=1)
    # Not connected yet: the first manager knows the node that was named, the second all nodes of a replica set.
    client = app.new_client(first_node_only, event_listeners=[app.recorder], connect=False)
    for session_id in ("s", "t", "u"):
        app.agent(manager_of(client, app.database.name, session_id))

    assert app.recorder.names.count("createIndexes") == 1


@pytest.mark.topology
def test_a_failure_to_create_an_index_is_logged_and_the_repository_works(
    app: Application, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with app.failing("createIndexes", error_code=13):
        repository = repository_of(app, metadata_fields=["status"])
        repository._ensure_indexes()
    assert any(record.name.startswith("mongodb_session_manager") for record in caplog.records)
    assert "index" in caplog.text
    repository.create_session(a_session())
    assert repository.session_exists("s")


@pytest.mark.slow
@pytest.mark.topology
@pytest.mark.parametrize("failure", [{"close_connection": True, "error_code": None}, {"error_code": 1}])
def test_indexes_that_could_not_be_created_are_created_by_the_next_repository(app: Application, failure: Any) -> None:
    with app.failing("createIndexes", **failure):
        repository_of(app)
    assert indexed_fields(repository_of(app)) >= TIMES


def test_indexes_that_were_refused_for_good_are_not_asked_for_nor_told_of_again(
    app: Application, caplog: pytest.LogCaptureFixture
) -> None:
    own = app.database[SESSIONS]
    own.create_index("created_at", expireAfterSeconds=30 * 86400)
    own.create_index("updated_at", name="mine")
    repository = repository_of(app, metadata_fields=["status"], ttl_hours=1)

    assert indexed_fields(repository) >= {"metadata.status", "expires_at"}
    assert sum(len(index["key"]) > 1 for index in own.index_information().values()) == 5
    told = [record.message for record in caplog.records if "not created" in record.message]
    assert len(told) == 2
    app.recorder.clear()
    repository_of(app, metadata_fields=["status"], ttl_hours=1)
    assert app.recorder.names == []


def test_without_the_right_to_make_indexes_that_is_told_once(
    app: Application, caplog: pytest.LogCaptureFixture
) -> None:
    with app.failing("createIndexes", error_code=13):
        for _ in range(3):
            repository_of(app)
    assert len([record for record in caplog.records if "not created" in record.message]) == 1


@pytest.mark.slow
def test_where_other_indexes_take_the_room_those_are_made_that_fit(app: Application) -> None:
    own = app.database[SESSIONS]
    own.create_indexes([IndexModel(f"own{number}") for number in range(60)])
    assert indexed_fields(repository_of(app)) >= TIMES
    assert len(own.index_information()) == 64


@pytest.mark.parametrize(
    ("fields", "error"),
    [("user", TypeError), ([f"f{number}" for number in range(29)], ValueError), ([7], TypeError), (["$a"], ValueError)],
)
@pytest.mark.parametrize("kind", [Repository, MongoDBSessionManagerFactory, MongoDBSessionManager])
def test_metadata_fields_that_cannot_be_indexed_are_refused(
    app: Application, kind: Any, fields: Any, error: type[Exception]
) -> None:
    session = {"session_id": "s"} if kind is MongoDBSessionManager else {}
    with pytest.raises(error, match="metadata"):
        kind(**session, client=app.client, database_name=app.database.name, metadata_fields=fields)


@pytest.mark.slow
def test_as_many_fields_as_are_allowed_are_indexed_twice_and_once_where_named_twice(app: Application) -> None:
    fields = ["address", "address.city", *(f"f{number}" for number in range(26))]
    repository = repository_of(app, metadata_fields=[*fields, "f1"], ttl_hours=1)
    assert len(repository.collection.index_information()) == 64
