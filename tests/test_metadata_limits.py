"""How large, how deep and how far out in a list metadata may be, and that nothing passes the limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pymongo import MongoClient
from strands.types.session import Session
from support.commands import CommandRecorder

from mongodb_session_manager import InvalidIdentifierError, MongoDBSessionRepository, UnstorableValueError
from mongodb_session_manager._model.keys import MAX_DEPTH, MAX_INDEXES, MAX_PATH_CHARACTERS
from mongodb_session_manager._statements.metadata_changes import MAX_METADATA_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymongo.database import Database

MB = 1024 * 1024


@pytest.fixture
def recorder() -> CommandRecorder:
    return CommandRecorder()


@pytest.fixture
def repository(server: Any, recorder: CommandRecorder, database_name: str) -> Iterator[MongoDBSessionRepository]:
    client: MongoClient[Any]
    with MongoClient(server.uri, event_listeners=[recorder]) as client:
        made = MongoDBSessionRepository(client=client, database_name=database_name, collection_name="sessions")
        made.create_session(Session(session_id="s", session_type="chat"))
        recorder.clear()
        yield made


def metadata(repository: MongoDBSessionRepository) -> Any:
    return repository.get_metadata("s")["metadata"]


def metadata_bytes(database: Database[Any]) -> int:
    size = {"$project": {"bytes": {"$bsonSize": "$metadata"}}}
    return int(database.sessions.aggregate([size]).next()["bytes"])


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = {"k": value} if level % 2 else [value]
    return value


@pytest.mark.parametrize(
    "keys",
    [
        ["tags.1400000"],
        ["tags.2"],
        ["tags.99999999999999999999"],
        ["topic", "tags.1400000"],
        ["tags.2.name"],
        ["deep.tags.3"],
        ["rows.0.2"],
        ["rows.0.cells.1"],
        ["7.0.2"],
    ],
)
def test_an_element_beyond_the_end_of_a_list_is_refused_rather_than_the_gap_filled(
    repository: MongoDBSessionRepository, keys: list[str]
) -> None:
    before = {"tags": ["a"], "deep": {"tags": ["a", "b"]}, "rows": [[1]], "7": {"0": ["a"]}}
    if keys == ["rows.0.cells.1"]:
        before["rows"] = [{"cells": []}]
    repository.update_metadata("s", before)

    with pytest.raises(UnstorableValueError, match="beyond the end of a list"):
        repository.update_metadata("s", dict.fromkeys(keys, "x"))

    assert metadata(repository) == before


def test_elements_of_a_list_can_be_set_and_the_next_one_added(repository: MongoDBSessionRepository) -> None:
    repository.update_metadata("s", {"tags": ["a"], "rows": [{"cells": [1]}], "7": {"0": ["a"]}, "none": None})

    repository.update_metadata("s", {"tags.1": "b", "rows.0.cells.1": 2, "7.0.1": "b", "8.5000000": "new"})
    repository.update_metadata("s", {"tags.0": "A", "rows.0.name": "first", "rows.1.name": "second", "7.5000000": 1})

    assert metadata(repository) == {
        "tags": ["A", "b"],
        "rows": [{"cells": [1, 2], "name": "first"}, {"name": "second"}],
        "7": {"0": ["a", "b"], "5000000": 1},
        "8": {"5000000": "new"},
        "none": None,
    }


def test_a_list_whose_elements_are_replaced_does_not_pass_the_limit(
    repository: MongoDBSessionRepository, database: Database[Any]
) -> None:
    repository.update_metadata("s", {"tags": [{"0": "x" * MB} for _ in range(3)]})

    with pytest.raises(UnstorableValueError, match="at most"):
        repository.update_metadata("s", {"tags.0": "y" * (3 * MB)})
    repository.update_metadata("s", {"tags.0": "y" * (MB + 1000)})
    repository.update_metadata("s", {"tags.0": "z" * (MB + 2000)})

    assert metadata_bytes(database) <= MAX_METADATA_BYTES


def test_the_names_of_fields_count(repository: MongoDBSessionRepository, database: Database[Any]) -> None:
    for start in range(6):
        names = [f"{start}x{number}".ljust(1000, "x") for number in range(1000)]
        try:
            repository.update_metadata("s", dict.fromkeys(names, 1))
        except UnstorableValueError:
            break
    assert (start, metadata_bytes(database) <= MAX_METADATA_BYTES) == (4, True)


def test_what_is_nested_too_deeply_is_refused_before_anything_is_sent(
    repository: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    for levels in (MAX_DEPTH, MAX_DEPTH + 100, 5000):
        for refused in (
            lambda levels=levels: repository.update_metadata("s", {"d": nested(levels)}),
            lambda levels=levels: repository.update_metadata("s", {"a.b": nested(levels - 1)}),
            lambda levels=levels: repository.add_feedback("s", {"rating": nested(levels)}),
            lambda levels=levels: repository.list_sessions(metadata={"d": nested(levels)}),
        ):
            with pytest.raises(UnstorableValueError, match="too deeply"):
                refused()
    cyclic: dict[str, Any] = {}
    cyclic["again"] = cyclic
    with pytest.raises(UnstorableValueError, match="too deeply"):
        repository.update_metadata("s", cyclic)
    assert recorder.names == []


@pytest.mark.parametrize(
    "path",
    [".".join(["p"] * (MAX_DEPTH + 1)), "x" * (MAX_PATH_CHARACTERS + 1), ".".join("p" + "0" * (MAX_INDEXES + 1))],
)
def test_a_path_that_is_too_long_is_refused_before_anything_is_sent(
    repository: MongoDBSessionRepository, recorder: CommandRecorder, path: str
) -> None:
    for refused in (
        lambda: repository.update_metadata("s", {path: 1}),
        lambda: repository.delete_metadata("s", [path]),
        lambda: repository.list_sessions(metadata={path: 1}),
    ):
        with pytest.raises(InvalidIdentifierError):
            refused()
    assert recorder.names == []


def test_the_deepest_and_the_longest_are_stored_found_and_deleted(repository: MongoDBSessionRepository) -> None:
    for path, value in (
        ("d", nested(MAX_DEPTH - 1)),
        (".".join(["p"] * MAX_DEPTH), 1),
        ("x" * MAX_PATH_CHARACTERS, 1),
        (".".join(["i", *"0" * MAX_INDEXES, *("q" * (MAX_DEPTH - MAX_INDEXES - 1))]), 1),
        (".".join("j0" * MAX_INDEXES), 1),
    ):
        repository.update_metadata("s", {path: value})
        repository.update_metadata("s", {path: value})
        assert len(repository.list_sessions(metadata={path: value}).sessions) == 1
        repository.delete_metadata("s", [path])
        assert repository.list_sessions(metadata={path: value}).sessions == []
    repository.add_feedback("s", {"rating": nested(MAX_DEPTH - 1)})
    assert repository.get_feedbacks("s")[0]["rating"] == nested(MAX_DEPTH - 1)


def test_a_feedbacks_own_commit_id_is_refused_rather_than_lost(
    repository: MongoDBSessionRepository, recorder: CommandRecorder
) -> None:
    with pytest.raises(InvalidIdentifierError, match="commit_id"):
        repository.add_feedback("s", {"rating": 5, "commit_id": "deadbeef"})
    assert recorder.names == []
