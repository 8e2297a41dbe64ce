"""Large binaries and texts are taken out of a value and put back; nobody else's value is taken for a marker."""

import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from support.blobs import stored, taken_out
from support.equality import assert_same

from mongodb_session_manager import UnstorableValueError
from mongodb_session_manager._model.encoding import MARKER, PendingBlobs, blob_files, decode, encode, to_bson

MEGABYTE = 1024 * 1024
LIFE = ObjectId()


def contents(pending: PendingBlobs) -> dict[ObjectId, bytes]:
    """What a fetch would return once these are uploaded."""
    return {
        blob.marker["value"]["file"]: blob.data
        if isinstance(blob.data, bytes)
        else blob.data.encode("utf-8", "surrogatepass")
        for blob in pending.blobs
    }


@pytest.mark.parametrize(("length", "files"), [(0, 0), (9, 0), (10, 1), (11, 1)])
def test_a_binary_is_taken_out_from_the_threshold_on(length: int, files: int) -> None:
    data = os.urandom(length)
    encoded, pending = taken_out({"image": data}, 10, 1000)
    assert len(pending.blobs) == files
    assert pending.total_bytes == length * files
    if files:
        file_id = pending.blobs[0].marker["value"]["file"]
        assert encoded == {"image": {MARKER: "blob", "value": {"file": file_id, "length": length}}}
    else:
        assert encoded == {"image": data}
    assert decode(stored(encoded), contents(pending)) == {"image": data}


@pytest.mark.parametrize("text", ["a" * 10, "é" * 10, "\ud800" * 10, "𝄞" * 10, "a" * 5 + "\udfff" + "é" * 9])
def test_a_text_is_taken_out_from_the_threshold_on_and_not_encoded_yet(text: str) -> None:
    value = [text, {"text": text}, text[:9]]
    encoded, pending = taken_out(value, 1, 10)
    assert [encoded[0], encoded[1]["text"]] == [blob.marker for blob in pending.blobs]
    for blob in pending.blobs:
        assert blob.data is text
        assert blob.marker == {MARKER: "text", "value": {"file": blob.marker["value"]["file"], "length": 0}}
    assert_same(decode(stored(encoded), contents(pending)), value)


def test_without_a_collector_everything_stays_in_the_value() -> None:
    value = {"image": b"x" * MEGABYTE, "text": "y" * MEGABYTE}
    assert encode(value) == value


def test_a_binary_that_is_changed_after_it_was_taken_out_is_stored_as_it_was() -> None:
    data = bytearray(b"before it was changed")
    _, pending = taken_out(data, 5, 5)
    data[:6] = b"behind"
    assert_same(pending.blobs[0].data, b"before it was changed")


NESTED: dict[str, Any] = {
    "in-a-tuple": ({"a": (b"x" * 20, "t" * 20)},),
    "under-a-key-that-is-no-string": {1: {"$ref": b"x" * 20}, None: ["t" * 20]},
    "as-a-key": {b"k" * 20: 1, 2: 3},
    "before-a-key-that-is-no-string": {"a": {"b": b"x" * 20}, "c": "t" * 20, "d": b"short", 1: b"x" * 20},
    "of-types-of-their-own": [type("Image", (bytes,), {})(b"x" * 20), type("Page", (str,), {})("t" * 20)],
}


@pytest.mark.parametrize("value", [pytest.param(value, id=name) for name, value in NESTED.items()])
def test_a_binary_comes_back_from_wherever_it_lies(value: Any) -> None:
    encoded, pending = taken_out(value, 10, 10)
    assert pending.blobs
    assert b"x" * 20 not in to_bson({"": encoded})
    assert b"t" * 20 not in to_bson({"": encoded})
    found = decode(stored(encoded), contents(pending))
    assert found == value
    assert list(blob_files(stored(encoded))) == [blob.marker["value"]["file"] for blob in pending.blobs]


def test_a_binary_below_80_levels_stays_in_the_value() -> None:
    value: Any = {"image": b"x" * 20, "text": "t" * 20}
    for _ in range(85):
        value = [value]
    encoded, pending = taken_out(value, 10, 10)
    assert pending.blobs == []
    assert decode(stored(encoded)) == value


def forgeries() -> Iterator[Any]:
    file_id = ObjectId()
    for name, names_file in itertools.product(("blob", "text"), (str(file_id), file_id.binary, 7, None)):
        yield {MARKER: name, "value": {"file": names_file, "length": 3}}
        yield {"value": {"file": names_file, "length": 3}, MARKER: name}
    yield {MARKER: "dict", "value": [[MARKER, "blob"], ["value", {"file": str(file_id), "length": 3}]]}
    yield {MARKER: {MARKER: "blob", "value": {"file": b"x" * 12, "length": 1}}, "value": 1}


@pytest.mark.parametrize("forged", list(forgeries()))
def test_a_marker_that_a_user_writes_is_never_taken_for_one(forged: Any) -> None:
    for value in (forged, [forged], {"a": (forged,)}):
        encoded, pending = taken_out(value, 100, 100)
        assert pending.blobs == []
        assert blob_files(stored(encoded)) == {}
        assert_same(decode(stored(encoded), {ObjectId(): b"abc"}), value)


def test_a_user_cannot_name_a_file() -> None:
    with pytest.raises(UnstorableValueError):
        encode({MARKER: "blob", "value": {"file": ObjectId(), "length": 3}})


@pytest.mark.parametrize(
    "not_quite",
    [
        {MARKER: "blob", "value": {"file": LIFE, "length": 3, "more": 1}},
        {MARKER: "blob", "value": {"file": LIFE, "length": 3}, "more": 1},
        {MARKER: "blob", "value": {"file": LIFE}},
        {MARKER: "blob", "value": {"file": LIFE, "length": "3"}},
        {MARKER: "Blob", "value": {"file": LIFE, "length": 3}},
        {MARKER: ["blob"], "value": {"file": LIFE, "length": 3}},
        {"encoded": "blob", "value": {"file": LIFE, "length": 3}},
    ],
)
def test_a_stored_document_that_is_not_exactly_a_marker_names_no_file(not_quite: Any) -> None:
    assert blob_files([not_quite]) == {}
    assert decode(not_quite, {LIFE: b"abc"}) == not_quite


def test_a_marker_whose_file_was_not_read_stays_a_document() -> None:
    encoded, pending = taken_out([b"first" * 5, b"second" * 5, "third" * 5], 10, 10)
    read = dict(itertools.islice(contents(pending).items(), 1))
    found = decode(stored(encoded), read)
    assert found == [b"first" * 5, *stored(encoded)[1:]]
    assert decode(stored(encoded)) == stored(encoded)


def test_a_value_that_is_refused_leaves_nothing_to_upload() -> None:
    pending = PendingBlobs(10, 10)
    encode(b"x" * 10, blobs=pending)
    endless: list[Any] = [b"x" * 10]
    endless.append(endless)
    for value in ([b"x" * 10, "t" * 10, object()], endless):
        with pytest.raises(UnstorableValueError):
            encode(value, blobs=pending)
    assert len(pending.blobs) == 1


any_text = st.text(st.characters(exclude_categories=()), max_size=12)


any_key = any_text | st.sampled_from([MARKER, "value", "file", "length", "$ref", "a.b", "", "\0"])


any_leaf = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    any_text,
    st.binary(max_size=12),
    st.binary(max_size=12).map(lambda data: data * 5),
    st.sampled_from(["blob", "text", "dict"]),
)


any_value = st.recursive(
    any_leaf,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(any_key, inner, max_size=4),
        st.dictionaries(any_key | st.integers() | st.binary(max_size=8), inner, max_size=3),
        st.tuples(st.sampled_from(["blob", "text"]), inner).map(lambda two: {MARKER: two[0], "value": two[1]}),
    ),
    max_leaves=10,
)


def largest_binary(value: Any) -> int:
    if isinstance(value, dict):
        return max((largest_binary(inner) for inner in value.values()), default=-1)
    if isinstance(value, list):
        return max(map(largest_binary, value), default=-1)
    return len(value) if isinstance(value, bytes) else -1


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(value=any_value, threshold=st.integers(0, 20), text_threshold=st.integers(0, 12))
def test_whatever_is_taken_out_of_a_value_is_put_back(value: Any, threshold: int, text_threshold: int) -> None:
    encoded, pending = taken_out(value, threshold, text_threshold)
    in_document = stored(encoded)
    event("with blobs" if pending.blobs else "without blobs")
    assert_same(decode(in_document, contents(pending)), value)
    assert_same(decode(stored(encode(value))), value)
    assert list(blob_files(in_document)) == [blob.marker["value"]["file"] for blob in pending.blobs]
    # A text with a lone surrogate is a short binary of its own.
    assert largest_binary(in_document) < max(threshold, 3 * text_threshold, 1)
