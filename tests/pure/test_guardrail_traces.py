"""Of a guardrail's trace what is known is kept, bounded, and never what a policy matched."""

from typing import Any

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mongodb_session_manager._model.guardrails import (
    facts_in_stream,
    facts_of_config,
    facts_of_trace,
)


def anything() -> st.SearchStrategy[Any]:
    words = st.sampled_from(
        [
            *("guardrail", "inputAssessment", "outputAssessments", "topicPolicy", "topics", "contentPolicy", "filters"),
            *("wordPolicy", "customWords", "managedWordLists", "sensitiveInformationPolicy", "piiEntities", "regexes"),
            *("contextualGroundingPolicy", "match", "type", "action", "confidence", "score", "threshold", "detected"),
        ]
    )
    leaves = st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=3)),
        st.sampled_from(["BLOCKED", "NONE", "the secret", "secret", "\ud800", "S" * 65]),
    )
    inner = st.recursive(
        leaves, lambda one: st.lists(one, max_size=3) | st.dictionaries(words, one, max_size=4), max_leaves=12
    )
    lists = {"topicPolicy": "topics", "contentPolicy": "filters", "wordPolicy": "customWords"}
    near = st.sampled_from(list(lists.items())).flatmap(
        lambda at: inner.map(lambda one: {"inputAssessment": {"secret": {at[0]: {at[1]: [one]}}}})
    )
    return inner | near


@pytest.mark.slow
@given(trace=anything())
def test_of_a_trace_of_any_form_only_known_fields_are_kept(trace: Any) -> None:
    stream = facts_in_stream({"event": {"metadata": {"trace": {"guardrail": trace}}}})
    for facts in (facts_of_trace(trace), stream):
        assert facts.keys() == {"policies"}
        bson.encode(facts)
        assert "secret" not in str(facts)
        fields = {"policy", "type", "name", "action", "confidence", "score", "threshold", "source"}
        assert all(policy.keys() <= fields for policy in facts["policies"])


@pytest.mark.slow
def test_what_is_kept_of_a_trace_is_bounded() -> None:
    topics = [{"name": f"{number}" * 1000, "type": "DENY", "action": "BLOCKED"} for number in range(5000)]
    trace = {"inputAssessment": {str(n): {"topicPolicy": {"topics": topics}} for n in range(10)}}
    assert len(bson.encode(facts_of_trace(trace))) < 5000
    assert len(facts_of_config({"guardrail_id": "x" * 1000})["guardrail_id"]) == 100


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "", 7, None, ["secret"]])
def test_a_name_that_is_none_is_left_out(name: Any) -> None:
    topics = {"topics": [{"name": name, "type": "DENY", "action": "BLOCKED"}]}
    (policy,) = facts_of_trace({"inputAssessment": {"gr": {"topicPolicy": topics}}})["policies"]
    assert policy == {"policy": "topicPolicy", "type": "DENY", "action": "BLOCKED", "source": "input"}


@pytest.mark.parametrize(
    ("event", "facts"),
    [
        ({"event": {"messageStop": {"stopReason": "end_turn"}}}, {"stop_reason": "end_turn"}),
        ({"event": {"messageStop": {"stopReason": "The secret"}}}, {}),
        ({"event": {"messageStop": None}}, {}),
        ({"event": {"metadata": {"usage": {}}}}, {}),
        ({"event": {"metadata": {"trace": None}}}, {}),
        ({"event": None}, {}),
        ({"data": "secret"}, {}),
        (None, {}),
    ],
)
def test_a_stream_says_why_it_stopped_and_nothing_else(event: Any, facts: Any) -> None:
    assert facts_in_stream(event) == facts
