"""How large, how deep and how far out in a list metadata may be, and that nothing passes the limits."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.application import Application
from support.commands import Commands
from support.repositories import a_session

from mongodb_session_manager import (
    InvalidIdentifierError,
    MongoDBSessionRepository,
    UnstorableValueError,
)
from mongodb_session_manager._model.limits import (
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    MAX_METADATA_INDEX,
    MAX_METADATA_KEY_CHARACTERS,
)

MB = 1024 * 1024


@pytest.fixture
def repository(app: Application) -> MongoDBSessionRepository:
    repository = app.repository
    repository.create_session(a_session())
    return repository


@pytest.fixture
def commands(repository: MongoDBSessionRepository, app: Application) -> Iterator[Commands]:
    """What is sent once the session is there."""
    with app.recorder.recording() as commands:
        yield commands


def metadata(repository: MongoDBSessionRepository) -> Any:
    return repository.get_metadata("s")["metadata"]


def metadata_bytes(app: Application) -> int:
    size = {"$project": {"bytes": {"$bsonSize": "$metadata"}}}
    return int(app.database.sessions.aggregate([size]).next()["bytes"])


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = {"k": value} if level % 2 else [value]
    return value


def test_a_gap_in_a_list_is_filled_with_nulls_as_mongodb_does(repository: MongoDBSessionRepository) -> None:
    repository.update_metadata("s", {"tags": ["a"], "rows": [{"cells": [1]}], "7": {"0": ["a"]}})

    repository.update_metadata("s", {"tags.1": "b", "rows.0.cells.2": 3, "rows.1.name": "second", "7.0.0": "A"})
    repository.update_metadata(
        "s", {f"tags.{MAX_METADATA_INDEX}": "last", f"new.{MAX_METADATA_INDEX}": "a field", "5000000.name": 1}
    )

    assert metadata(repository) == {
        "tags": ["a", "b", *[None] * (MAX_METADATA_INDEX - 2), "last"],
        "rows": [{"cells": [1, None, 3]}, {"name": "second"}],
        "7": {"0": ["A"]},
        "new": {str(MAX_METADATA_INDEX): "a field"},
        "5000000": {"name": 1},
    }


@pytest.mark.parametrize(
    "key", ["tags.1000", "tags.1400000", f"tags.{'9' * 900}", "tags.0001000", "tags.1000.name", "7.0.1000"]
)
def test_an_index_that_would_fill_a_list_with_many_nulls_is_refused_before_anything_is_sent(
    repository: MongoDBSessionRepository, commands: Commands, key: str
) -> None:
    for keys in ([key], ["topic", key]):
        with pytest.raises(InvalidIdentifierError, match="999"):
            repository.update_metadata("s", dict.fromkeys(keys, "x"))
    assert commands == []


def test_a_call_that_brings_too_much_is_refused_before_anything_is_sent(
    repository: MongoDBSessionRepository, commands: Commands
) -> None:
    for too_much in (
        {"text": "x" * MAX_METADATA_BYTES},
        dict.fromkeys(("a", "b", "c.d", "e"), "x" * MB),
        {f"{number}".ljust(1000, "x"): 1 for number in range(MAX_METADATA_BYTES // 1000)},  # Names of fields count.
    ):
        with pytest.raises(UnstorableValueError, match="at most"):
            repository.update_metadata("s", too_much)
    assert commands == []


def test_a_manager_that_is_given_too_much_begins_no_session(app: Application) -> None:
    with pytest.raises(UnstorableValueError, match="at most"):
        app.manager().update_metadata({"text": "x" * MAX_METADATA_BYTES})
    assert app.database.sessions.count_documents({}) == 0


def test_metadata_that_is_full_takes_no_more_until_some_of_it_is_deleted(
    repository: MongoDBSessionRepository, app: Application
) -> None:
    repository.update_metadata("s", {"a": "x" * (3 * MB)})
    repository.update_metadata("s", {"b": "x" * (3 * MB)})
    before = metadata_bytes(app)
    assert before <= 2 * MAX_METADATA_BYTES

    with pytest.raises(UnstorableValueError, match=f"has {before} bytes"):
        repository.update_metadata("s", {"c": 1})
    assert metadata_bytes(app) == before

    repository.delete_metadata("s", ["a"])
    repository.update_metadata("s", {"c": 1})
    assert sorted(metadata(repository)) == ["b", "c"]


def test_what_is_nested_too_deeply_is_refused_before_anything_is_sent(
    repository: MongoDBSessionRepository, commands: Commands
) -> None:
    for levels in (MAX_METADATA_DEPTH, MAX_METADATA_DEPTH + 100, 5000):
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
    assert commands == []


@pytest.mark.parametrize(
    "path",
    [".".join(["p"] * (MAX_METADATA_DEPTH + 1)), "x" * (MAX_METADATA_KEY_CHARACTERS + 1)],
)
def test_a_path_that_is_too_long_is_refused_before_anything_is_sent(
    repository: MongoDBSessionRepository, commands: Commands, path: str
) -> None:
    for refused in (
        lambda: repository.update_metadata("s", {path: 1}),
        lambda: repository.delete_metadata("s", [path]),
        lambda: repository.list_sessions(metadata={path: 1}),
    ):
        with pytest.raises(InvalidIdentifierError):
            refused()
    assert commands == []


@pytest.mark.slow
def test_the_deepest_and_the_longest_are_stored_found_and_deleted(repository: MongoDBSessionRepository) -> None:
    for path, value in (
        ("d", nested(MAX_METADATA_DEPTH - 1)),
        (".".join(["p"] * MAX_METADATA_DEPTH), 1),
        ("x" * MAX_METADATA_KEY_CHARACTERS, 1),
        (".".join("i" + "0" * (MAX_METADATA_DEPTH - 1)), 1),
        (".".join("j0" * (MAX_METADATA_DEPTH // 2)), 1),
    ):
        repository.update_metadata("s", {path: value})
        repository.update_metadata("s", {path: value})
        assert len(repository.list_sessions(metadata={path: value}).sessions) == 1
        repository.delete_metadata("s", [path])
        assert repository.list_sessions(metadata={path: value}).sessions == []
    repository.add_feedback("s", {"rating": nested(MAX_METADATA_DEPTH - 1)})
    assert repository.get_feedbacks("s")[0]["rating"] == nested(MAX_METADATA_DEPTH - 1)


def test_a_feedbacks_own_commit_id_is_refused_rather_than_lost(
    repository: MongoDBSessionRepository, commands: Commands
) -> None:
    with pytest.raises(InvalidIdentifierError, match="commit_id"):
        repository.add_feedback("s", {"rating": 5, "commit_id": "deadbeef"})
    assert commands == []
