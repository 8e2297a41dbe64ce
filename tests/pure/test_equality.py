"""The tests' own idea of equality: without it, a restore that turns 1 into 1.0 would pass."""

import pytest
from support.equality import assert_same, differences

NAN = float("nan")


@pytest.mark.parametrize(
    "value",
    [1, 1.0, True, None, "", b"", [], {}, (), NAN, {"a": [NAN, {"b": b"\0"}]}, {1: "int", "1": "str"}],
    ids=repr,
)
def test_a_value_is_the_same_as_itself(value):
    assert_same(value, value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (True, 1.0),
        (0.0, -0.0),
        ([], ()),
        ("a", b"a"),
        (b"a", bytearray(b"a")),
        ({1: "x"}, {True: "x"}),
        ({"a": None}, {}),
        ([1], [1, None]),
        (NAN, 0.0),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2.0]}}),
    ],
    ids=repr,
)
def test_values_that_python_confuses_are_told_apart(one, other):
    with pytest.raises(AssertionError, match="the values differ"):
        assert_same(one, other)
    with pytest.raises(AssertionError, match="the values differ"):
        assert_same(other, one)


def test_a_difference_names_its_place():
    [difference] = differences({"messages": [{"id": 1}]}, {"messages": [{"id": 1.0}]})
    assert str(difference) == "$['messages'][0]['id']: int 1 instead of float 1.0"


def test_the_order_of_keys_does_not_count():
    assert_same({"a": 1, "b": 2}, {"b": 2, "a": 1})
