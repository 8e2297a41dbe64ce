"""What a guardrail did is stored with the message and listed in the session; what it matched is stored nowhere."""

from __future__ import annotations

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from itertools import product
from typing import TYPE_CHECKING, Any

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from strands import Agent, tool
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.bidi import BidiAgent
from strands.hooks import MessageAddedEvent
from strands.types.session import SessionMessage
from support.bidi_model import ScriptedBidiModel
from support.commands import CommandRecorder
from support.equality import assert_same
from support.failpoints import fail_command
from support.histories import HISTORY, SESSIONS, SMALL, at_rest, by_hand, manager_of, stored, talker, texts
from support.waiting import eventually
from support.wire_proxy import Cut, Moment, WireProxy

from mongodb_session_manager import AgentNotFoundError, MongoDBSessionManager
from mongodb_session_manager._model.guardrails import (
    facts_in_stream,
    facts_of_config,
    facts_of_trace,
)
from mongodb_session_manager._model.limits import MAX_GUARDRAIL_EVENTS
from mongodb_session_manager.mongodb_session_repository import MongoDBSessionRepository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from pymongo.database import Database

both_durabilities = pytest.mark.parametrize("durability", ["message", "turn"])
reads_traces = pytest.mark.skipif(find_spec("strands.middleware") is None, reason="Strands 1.62 made it public")

APP_NAME = "guardrails"
REDACTED = "[User input redacted.]"
PROMPT = "Sell bubblegum to Jane Roe, card 4111-1111"

# Of the form of https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_GuardrailTraceAssessment.html
MATCHES = ("bubblegum", "heckish", "4111-1111", "4222-2222", "Jane Roe", "ZX-81", "Z.-8.", "I would say", "because of")
TRACE: dict[str, Any] = {
    "actionReason": "Blocked because of bubblegum",
    "modelOutput": ["I would say 4111-1111"],
    "inputAssessment": {
        "gr5h8vq2": {
            "topicPolicy": {
                "topics": [{"name": "Sales to children", "type": "DENY", "action": "BLOCKED", "detected": True}]
            },
            "contentPolicy": {
                "filters": [
                    {"type": "VIOLENCE", "confidence": "HIGH", "filterStrength": "LOW", "action": "BLOCKED"},
                    {"type": "HATE", "confidence": "NONE", "action": "NONE", "detected": False},
                    {"type": "INSULTS", "confidence": "LOW", "action": "BLOCKED", "detected": False},
                ]
            },
            "wordPolicy": {
                "customWords": [{"match": "bubblegum", "action": "BLOCKED", "detected": True}],
                "managedWordLists": [{"match": "heckish", "type": "PROFANITY", "action": "NONE", "detected": True}],
            },
            "sensitiveInformationPolicy": {
                "piiEntities": [
                    {"match": "4111-1111", "type": "CREDIT_DEBIT_CARD_NUMBER", "action": "BLOCKED"},
                    {"match": "4222-2222", "type": "CREDIT_DEBIT_CARD_NUMBER", "action": "BLOCKED"},
                    {"match": "Jane Roe", "type": "NAME", "action": "ANONYMIZED", "detected": True},
                ],
                "regexes": [{"name": "booking code", "match": "ZX-81", "regex": "Z.-8.", "action": "BLOCKED"}],
            },
            "invocationMetrics": {"guardrailProcessingLatency": 240},
        }
    },
    "outputAssessments": {
        "gr5h8vq2": [
            {
                "contextualGroundingPolicy": {
                    "filters": [
                        {"type": "GROUNDING", "score": 0.25, "threshold": 0.5, "action": "BLOCKED"},
                        {"type": "RELEVANCE", "score": 0.9, "threshold": 0.5, "action": "NONE"},
                    ]
                }
            }
        ]
    },
}
POLICIES = [
    {"policy": "topicPolicy", "type": "DENY", "name": "Sales to children", "action": "BLOCKED", "source": "input"},
    {"policy": "contentPolicy", "type": "VIOLENCE", "action": "BLOCKED", "confidence": "HIGH", "source": "input"},
    {"policy": "wordPolicy", "type": "CUSTOM", "action": "BLOCKED", "source": "input"},
    {"policy": "wordPolicy", "type": "PROFANITY", "action": "NONE", "source": "input"},
    {
        "policy": "sensitiveInformationPolicy",
        "type": "CREDIT_DEBIT_CARD_NUMBER",
        "action": "BLOCKED",
        "source": "input",
    },
    {"policy": "sensitiveInformationPolicy", "type": "NAME", "action": "ANONYMIZED", "source": "input"},
    {
        "policy": "sensitiveInformationPolicy",
        "type": "REGEX",
        "name": "booking code",
        "action": "BLOCKED",
        "source": "input",
    },
    {
        "policy": "contextualGroundingPolicy",
        "type": "GROUNDING",
        "action": "BLOCKED",
        "score": 0.25,
        "threshold": 0.5,
        "source": "output",
    },
]
KNOWN = {"guardrail_id": "gr5h8vq2", "guardrail_version": "3", "policies": POLICIES}
BLOCKED = ScriptedReply(text="I cannot.", redact_user=REDACTED, guardrail_trace=TRACE)


class GuardedModel(OfflineScriptedModel):
    """A model that is configured as Strands' `BedrockModel` is, with a guardrail."""

    def __init__(self, replies: Any) -> None:
        super().__init__(replies)
        self.update_config(guardrail_id="gr5h8vq2", guardrail_version="3")


class NotStreaming(GuardedModel):
    """As Bedrock does it with `streaming=False`: the trace comes before the redactions."""

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        chunks = [chunk async for chunk in super().stream(*args, **kwargs)]
        for chunk in sorted(chunks, key=lambda chunk: "redactContent" in chunk):
            yield chunk


@dataclass(frozen=True)
class Office:
    """What opens sessions: one recorded client of this test's database.

    Attributes:
        client: the client of all managers.
        recorder: what it sends.
        database: the same database, by another client.
    """

    client: MongoClient[Any]
    recorder: CommandRecorder
    database: Database[Any]

    def manager(self, session_id: str = "s", **options: Any) -> MongoDBSessionManager:
        return manager_of(self.client, self.database.name, session_id, **options)

    def repository(self) -> MongoDBSessionRepository:
        return MongoDBSessionRepository(client=self.client, database_name=self.database.name, collection_name=SESSIONS)

    def events(self, session_id: str = "s") -> list[dict[str, Any]]:
        return self.repository().get_guardrail_events(session_id)

    def messages(self, session_id: str = "s") -> list[dict[str, Any]]:
        return stored(self.database, session_id).messages

    def nothing_at_rest(self, *words: str) -> None:
        content = at_rest(self.database)
        assert [word for word in words if word.encode() in content] == []


@pytest.fixture
def office(server: Any, database: Database[Any]) -> Iterator[Office]:
    recorder = CommandRecorder()
    client: MongoClient[Any]
    with MongoClient(server.uri, appname=APP_NAME, event_listeners=[recorder]) as client:
        codec_options = database.codec_options.with_options(tz_aware=True)
        yield Office(client, recorder, database.with_options(codec_options=codec_options))


def guarded(manager: MongoDBSessionManager, *replies: Any, model: Any = GuardedModel, **options: Any) -> Agent:
    defaults: dict[str, Any] = {
        "agent_id": "assistant",
        "callback_handler": None,
        "conversation_manager": SlidingWindowConversationManager(window_size=4),
    }
    return Agent(model=model(replies), session_manager=manager, **{**defaults, **options})


def told(event: dict[str, Any]) -> dict[str, Any]:
    """An event without what differs each time."""
    assert isinstance(event["id"], bson.ObjectId)
    assert isinstance(event["created_at"], datetime)
    return {name: value for name, value in event.items() if name not in ("id", "created_at")}


def listed(event: dict[str, Any], message_id: int) -> dict[str, Any]:
    return {**event, "agent_id": "assistant", "message_id": message_id}


# --- what is recorded


@reads_traces
@both_durabilities
@pytest.mark.parametrize("model", [GuardedModel, NotStreaming])
def test_a_redaction_says_which_policies_fired_with_the_message_and_in_the_session(
    office: Office, durability: Any, model: Any
) -> None:
    with office.manager(durability=durability) as manager:
        agent = guarded(manager, "Hello.", BLOCKED, "Bye.", model=model)
        agent("Hello?")
        agent(PROMPT)
        agent("Goodbye")
        events = manager.get_guardrail_events()

    messages = office.messages()
    assert texts(messages) == ["Hello?", "Hello.", REDACTED, "I cannot.", "Goodbye", "Bye."]
    assert [index for index, message in enumerate(messages) if "guardrail_event" in message] == [2, 3]
    redacted, intervened = (messages[index]["guardrail_event"] for index in (2, 3))
    stopped = {"stop_reason": "guardrail_intervened", **KNOWN}
    assert told(redacted) == {"action": "redacted", "role": "user", **stopped}
    assert told(intervened) == {"action": "intervened", "role": "assistant", **stopped}
    assert events == office.events() == [listed(redacted, 2), listed(intervened, 3)]
    assert office.database[SESSIONS].find_one()["guardrail_event_count"] == 2  # type: ignore[index]


@both_durabilities
def test_nothing_that_a_policy_matched_is_stored_or_ever_sent_besides_the_prompt(
    office: Office, durability: Any
) -> None:
    with office.recorder.recording() as commands, office.manager(durability=durability) as manager:
        guarded(manager, BLOCKED)(PROMPT)

    office.nothing_at_rest(PROMPT, *MATCHES)
    carried = b"".join(bson.encode(command.command) for command in commands)
    in_the_prompt = [word for word in MATCHES if word in PROMPT]
    assert [word for word in MATCHES if word.encode() in carried] == (in_the_prompt if durability == "message" else [])


@reads_traces
@both_durabilities
def test_an_answer_that_a_guardrail_has_masked_or_blocked_is_recorded_without_a_redaction(
    office: Office, durability: Any
) -> None:
    reply = ScriptedReply(text="Dear {NAME}", stop_reason="guardrail_intervened", guardrail_trace=TRACE)
    with office.manager(durability=durability) as manager:
        guarded(manager, reply)("Who?")

    (event,) = office.events()
    assert told(event) == {
        "action": "intervened",
        "role": "assistant",
        "agent_id": "assistant",
        "message_id": 1,
        "stop_reason": "guardrail_intervened",
        **KNOWN,
    }
    assert texts(office.messages()) == ["Who?", "Dear {NAME}"]
    office.nothing_at_rest(*MATCHES)


@both_durabilities
def test_a_redacted_answer_never_reaches_the_database(office: Office, durability: Any) -> None:
    reply = ScriptedReply(text="I would say it", redact_assistant="[gone]", guardrail_trace=TRACE)
    with office.recorder.recording() as commands, office.manager(durability=durability) as manager:
        guarded(manager, reply)("Who?")

    assert not any(b"I would say" in bson.encode(command.command) for command in commands)
    assert [(event["action"], event["role"], event["message_id"]) for event in office.events()] == [
        ("intervened", "assistant", 1)
    ]


@both_durabilities
def test_a_model_that_names_no_guardrail_gives_the_stop_reason_alone(office: Office, durability: Any) -> None:
    with office.manager(durability=durability) as manager:
        guarded(manager, BLOCKED, model=OfflineScriptedModel)(PROMPT)

    redacted, intervened = office.events()
    assert (intervened["stop_reason"], intervened["policies"]) == ("guardrail_intervened", [])
    # A redaction is sent at once; when it can wait for the turn, the model has stopped by then.
    assert redacted.get("stop_reason") == (None if durability == "message" else "guardrail_intervened")
    office.nothing_at_rest(*MATCHES)


@both_durabilities
def test_a_guardrail_that_only_watches_and_an_agent_without_one_record_nothing(office: Office, durability: Any) -> None:
    with office.manager(durability=durability) as manager:
        guarded(manager, ScriptedReply(text="Sure.", guardrail_trace=TRACE), "And?")("Well?")
    with office.manager("plain", durability=durability) as manager:
        talker(manager)("Well?")

    assert office.events() == office.events("plain") == office.events("no such session") == []
    for document in office.database[SESSIONS].find():
        assert "guardrail" not in str(document)


@reads_traces
def test_what_a_guardrail_said_of_one_answer_is_not_said_of_the_next(office: Office) -> None:
    with office.manager() as manager:
        unexplained = ScriptedReply(text="No.", redact_user=REDACTED)
        agent = guarded(manager, BLOCKED, unexplained)
        agent(PROMPT)
        agent("Once more")
        manager.redact_latest_message(by_hand("[by hand]", "assistant"), agent)

    assert [len(event["policies"]) for event in office.events()] == [8, 8, 0, 0, 0]


def test_what_a_guardrail_said_before_a_tool_was_used_is_not_said_of_the_answer(office: Office) -> None:
    @tool
    def look_up() -> str:
        """Look something up."""
        return "Found."

    with office.manager() as manager:

        def listen(**event: Any) -> None:
            if trace := event.get("event", {}).get("metadata", {}).get("trace"):
                manager.record_guardrail_trace(trace, agent)

        replies = (
            ScriptedReply(tool_calls=(ToolCall("look_up"),), guardrail_trace=TRACE),
            ScriptedReply(text="No.", stop_reason="guardrail_intervened"),
        )
        options: dict[str, Any] = {"tools": [look_up], "callback_handler": listen}
        agent = guarded(manager, *replies, model=OfflineScriptedModel, **options)
        agent("Look it up")

    assert [event["policies"] for event in office.events()] == [[]]


def test_what_is_known_of_a_guardrail_is_not_said_of_what_comes_after_a_failed_turn(office: Office) -> None:
    with office.manager() as manager:
        agent = guarded(manager, RuntimeError("the provider is down"))
        with pytest.raises(RuntimeError, match="down"):
            agent(PROMPT)
        manager.redact_latest_message(by_hand(REDACTED), agent)

    assert [told(event) for event in office.events()] == [
        {"action": "redacted", "role": "user", "policies": [], "agent_id": "assistant", "message_id": 0}
    ]


@both_durabilities
def test_a_redacted_tool_result_is_recorded(office: Office, durability: Any) -> None:
    @tool
    def look_up() -> str:
        """Look something up."""
        return "Jane Roe, 4111-1111"

    with office.manager(durability=durability) as manager:
        guarded(manager, ToolCall("look_up"), BLOCKED, tools=[look_up])("Who is it?")

    assert [(event["action"], event["message_id"]) for event in office.events()] == [("redacted", 2), ("intervened", 3)]
    assert office.messages()[2]["content"][0]["toolResult"]["content"] == [{"text": REDACTED}]
    office.nothing_at_rest(*MATCHES)


@both_durabilities
def test_the_message_keeps_its_ids_metadata_and_metrics(office: Office, durability: Any) -> None:
    with office.manager(durability=durability) as manager:
        agent = guarded(manager, BLOCKED)
        agent(PROMPT)
        manager.flush()
        before = office.messages()
        manager.redact_latest_message(by_hand("[by hand]", "assistant"), agent)

    after = office.messages()
    assert [message["tracking_id"] for message in after] == [message["tracking_id"] for message in agent.messages]
    for name in ("tracking_id", "turn_id", "metadata", "event_loop_metrics", "created_at"):
        assert after[1][name] == before[1][name]
    agent_record = stored(office.database).agent
    tokens = after[1]["event_loop_metrics"]["accumulated_usage"]["totalTokens"]
    assert [model["totalTokens"] for model in agent_record["usage"]["models"].values()] == [tokens]
    # The message shows what happened to it last; the session, everything.
    assert [event["action"] for event in office.events()] == ["redacted", "intervened", "redacted"]
    assert after[1]["guardrail_event"]["action"] == "redacted"


@both_durabilities
def test_a_restored_agent_is_what_it_was_and_a_read_message_knows_its_redaction(
    office: Office, durability: Any
) -> None:
    with office.manager(durability=durability) as manager:
        agent = guarded(manager, BLOCKED)
        agent(PROMPT)
    with office.manager() as manager:
        assert_same(talker(manager).messages, agent.messages)

    message = office.repository().read_message("s", "assistant", 0)
    assert message is not None
    assert message.redact_message == by_hand(REDACTED)


@both_durabilities
def test_a_redaction_costs_no_command_more(office: Office, durability: Any) -> None:
    with office.manager() as manager:
        guarded(manager, "Hello.")("Hello?")

    with office.recorder.recording() as commands, office.manager(durability=durability) as manager:
        guarded(manager, BLOCKED)(PROMPT)

    in_message = ["find", "update", "find", "update", "find", "update"]
    assert commands.names == (in_message if durability == "message" else ["find", "update"])


def test_a_new_agent_of_a_begun_session_is_stored_with_its_first_event(office: Office) -> None:
    with office.manager(durability="turn") as manager:
        manager.add_feedback({"rating": "up"})
        guarded(manager, BLOCKED, agent_id="v1.2")(PROMPT)

    assert [(event["agent_id"], event["message_id"]) for event in office.events()] == [("v1.2", 0), ("v1.2", 1)]


# --- by hand


def test_a_trace_that_is_recorded_by_hand_is_stored_with_the_redaction_that_follows(office: Office) -> None:
    with office.manager() as manager:
        agent = talker(manager)
        agent(PROMPT)
        manager.record_guardrail_trace({"guardrail": TRACE}, agent)
        manager.redact_latest_message(by_hand(REDACTED, "assistant"), agent)
        manager.redact_latest_message(by_hand("[again]", "assistant"), agent)
        with pytest.raises(AgentNotFoundError):
            manager.record_guardrail_trace(TRACE, Agent(model=OfflineScriptedModel()))

    first, second = office.events()
    assert (first["policies"], second["policies"]) == (POLICIES, [])


@both_durabilities
def test_a_callback_handler_may_record_the_trace_of_any_model(office: Office, durability: Any) -> None:
    with office.manager(durability=durability) as manager:

        def listen(**event: Any) -> None:
            if trace := event.get("event", {}).get("metadata", {}).get("trace"):
                manager.record_guardrail_trace(trace, agent)

        agent = guarded(manager, BLOCKED, model=OfflineScriptedModel, callback_handler=listen)
        agent(PROMPT)

    assert office.events()[-1]["policies"] == POLICIES


def test_a_message_of_a_bidirectional_agent_is_recorded_likewise(office: Office) -> None:
    with office.manager() as manager:
        agent = BidiAgent(model=ScriptedBidiModel(), agent_id="assistant", session_manager=manager)
        manager.append_message(by_hand(PROMPT), agent)
        manager.record_guardrail_trace(TRACE, agent)
        manager.redact_latest_message(by_hand(REDACTED), agent)

    assert [(event["message_id"], event["policies"]) for event in office.events()] == [(0, POLICIES)]
    office.nothing_at_rest(*MATCHES)


# --- traces of any form


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


@pytest.mark.parametrize("odd", [None, "secret", ["secret"], {"secret": 1}, {"inputAssessment": "secret"}])
def test_a_turn_whose_trace_has_another_form_is_stored_without_it(office: Office, odd: Any) -> None:
    with office.manager() as manager:
        guarded(manager, ScriptedReply(text="No.", redact_user=REDACTED, guardrail_trace=odd))(PROMPT)

    assert [event["policies"] for event in office.events()] == [[], []]
    office.nothing_at_rest("secret", *MATCHES)


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


# --- readers that are slow, or go away


@pytest.mark.slow
def test_a_reader_that_stops_reading_before_the_trace_does_not_keep_the_text_in_the_store(office: Office) -> None:
    with office.manager() as manager:
        agent = guarded(manager, BLOCKED)

        async def request() -> list[str]:
            stream = agent.stream_async(PROMPT)
            async for event in stream:
                if "redactContent" in event.get("event", {}):
                    break
            # The stream is open still, and nobody asks for more.
            await asyncio.to_thread(eventually, lambda: b"bubblegum" not in at_rest(office.database))
            found = await asyncio.to_thread(lambda: texts(office.messages()))
            async for _ in stream:
                pass
            return found

        assert asyncio.run(request()) == [REDACTED]

    assert [event["action"] for event in office.events()] == ["redacted", "intervened"]


def test_a_reader_that_goes_away_before_the_trace_leaves_no_text_behind(office: Office) -> None:
    with office.manager() as manager:
        agent = guarded(manager, BLOCKED)

        async def request() -> None:
            stream = agent.stream_async(PROMPT)
            async for event in stream:
                if "redactContent" in event.get("event", {}):
                    await stream.aclose()  # type: ignore[attr-defined]
                    break

        asyncio.run(request())
        eventually(lambda: b"bubblegum" not in at_rest(office.database))

    assert [(event["action"], event["policies"]) for event in office.events()] == [("redacted", POLICIES)]


@reads_traces
@pytest.mark.parametrize("noted", [False, True], ids=["", "with a note appended by hand behind the prompt"])
def test_a_redaction_is_not_lost_with_a_stream_that_is_cancelled_before_the_guardrail_has_said_why(
    office: Office, noted: bool
) -> None:
    with office.manager() as manager:
        agent = guarded(manager, BLOCKED)
        if noted:
            note = by_hand("a note", "assistant")
            agent.hooks.add_callback(MessageAddedEvent, lambda event: manager.append_message(note, event.agent))
        redacted = asyncio.Event()

        async def silent(context: Any, next_fn: Any) -> Any:
            async for event in next_fn(context):
                yield event
                if "redactContent" in event.get("event", {}):
                    redacted.set()
                    await asyncio.Event().wait()  # The model's next chunk never comes.

        agent.add_middleware(pytest.importorskip("strands.middleware").InvokeModelStage, silent)

        async def request() -> None:
            turn = asyncio.create_task(agent.invoke_async(PROMPT))
            await redacted.wait()
            turn.cancel()
            with pytest.raises(asyncio.CancelledError):
                await turn

        asyncio.run(request())
    office.nothing_at_rest(PROMPT)


def test_a_redaction_after_a_model_call_that_failed_waits_for_no_trace(office: Office) -> None:
    manager = office.manager()
    agent = guarded(manager, RuntimeError("the provider is down"))

    async def request() -> None:
        with pytest.raises(RuntimeError, match="down"):
            await agent.invoke_async(PROMPT)
        manager.redact_latest_message(by_hand(REDACTED), agent)

    asyncio.run(request())
    eventually(lambda: b"bubblegum" not in at_rest(office.database))
    manager.close()


# --- once, whatever happens


def guarded_turn(manager: MongoDBSessionManager) -> None:
    guarded(manager, BLOCKED)(PROMPT)


def redact_by_hand(manager: MongoDBSessionManager) -> None:
    manager.redact_latest_message(by_hand(REDACTED, "assistant"), talker(manager))


# name: (the act, durability, how many commands write it, the events)
ACTS: dict[str, tuple[Callable[[MongoDBSessionManager], None], str, int, list[tuple[str, int]]]] = {
    "a turn": (guarded_turn, "message", 3, [("redacted", 2), ("intervened", 3)]),
    "a turn in one update": (guarded_turn, "turn", 1, [("redacted", 2), ("intervened", 3)]),
    "by hand": (redact_by_hand, "message", 1, [("redacted", 1)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS.keys())
def test_a_lost_answer_doubles_no_event(act: Any, office: Office, proxies: Callable[[], WireProxy]) -> None:
    do, durability, writes, expected = act
    moments: tuple[Moment, Moment] = ("before it is run", "before its answer arrives")

    def run(number: int, moment: Moment, retry_writes: bool) -> tuple[str, list[str]]:
        session_id = f"{number} {moment} {retry_writes}"
        with office.manager(session_id) as manager:
            talker(manager)("Hello?")
        proxy = proxies()
        client: MongoClient[Any]
        with MongoClient(proxy.uri, retryWrites=retry_writes) as client:
            manager = manager_of(client, office.database.name, session_id, durability=durability)
            client.admin.command("ping")
            proxy.cut(Cut("update", moment, number))
            do(manager)
            manager.close()
        return session_id, proxy.cut_commands

    cases = list(product(range(1, writes + 2), moments, (True, False)))
    with ThreadPoolExecutor(16) as threads:
        ended = list(threads.map(lambda case: run(*case), cases))

    for (number, _, _), (session_id, cut) in zip(cases, ended, strict=True):
        assert len(cut) == (number <= writes), session_id
        events = office.events(session_id)
        assert [(event["action"], event["message_id"]) for event in events] == expected, session_id
        document = office.database[SESSIONS].find_one({"_id": session_id})
        assert document is not None
        assert document["guardrail_event_count"] == len(expected), session_id
    office.nothing_at_rest("bubblegum", "4111-1111")


@pytest.mark.topology
def test_a_redaction_of_a_message_that_could_not_be_stored_is_one_event(office: Office, client: Any) -> None:
    manager = office.manager()
    agent = talker(manager)
    with fail_command(client, "update", app_name=APP_NAME, error_code=8000), pytest.raises(OperationFailure):
        manager.append_message(by_hand(PROMPT), agent)
    with office.recorder.recording() as commands:
        manager.redact_latest_message(by_hand(REDACTED), agent)
    manager.close()

    assert commands.names == ["update", "find", "update", "find"]
    assert [event["message_id"] for event in office.events()] == [0]
    assert office.messages()[0]["guardrail_event"]["id"] == office.events()[0]["id"]
    office.nothing_at_rest("bubblegum")


@both_durabilities
def test_a_prompt_that_was_tried_again_is_one_event_though_it_stands_there_twice(
    office: Office, durability: Any
) -> None:
    prompt = {**by_hand(PROMPT), "tracking_id": "one-and-the-same"}
    with office.manager(durability=durability) as manager:
        agent = guarded(manager, RuntimeError("the provider is down"), BLOCKED)
        with pytest.raises(RuntimeError, match="down"):
            agent([copy.deepcopy(prompt)])
        agent([copy.deepcopy(prompt)])

    redacted, intervened = office.events()
    assert (redacted["message_id"], intervened["message_id"]) == (1, 2)
    document = office.database[SESSIONS].find_one()
    assert document is not None
    prompts = document["agents"]["assistant"]["messages"][:2]
    assert [message["guardrail_event"]["id"] for message in prompts] == [redacted["id"]] * 2
    assert document["guardrail_event_count"] == 2
    office.nothing_at_rest(*MATCHES)


# --- long sessions


@pytest.mark.topology
@pytest.mark.parametrize("moment", [None, "before it is run", "before its answer arrives"])
def test_the_redaction_of_an_archived_message_is_listed_once(
    office: Office, proxies: Callable[[], WireProxy], moment: Any
) -> None:
    proxy = proxies()
    client: MongoClient[Any]
    with MongoClient(proxy.uri, retryWrites=False) as client:
        manager = manager_of(client, office.database.name)
        agent = talker(manager)
        manager.append_message(by_hand(PROMPT), agent)
        with office.manager(**SMALL) as another:
            other = talker(another)
            for number in range(8):
                other(f"prompt {number}")
        found = stored(office.database)
        assert texts(found.archived)[0] == PROMPT
        if moment is not None:
            # In the session document, the change of the history is announced.
            proxy.cut(Cut("update", moment))
        manager.record_guardrail_trace(TRACE, agent)
        manager.redact_latest_message(by_hand(REDACTED), agent)
        manager.close()

    assert proxy.cut_commands == ([] if moment is None else ["update"])
    (event,) = office.events()
    message = stored(office.database).archived[0]
    assert told(event) == {
        "action": "redacted",
        "role": "user",
        "policies": POLICIES,
        "agent_id": "assistant",
        "message_id": 0,
    }
    assert message["guardrail_event"] == {k: v for k, v in event.items() if k not in ("agent_id", "message_id")}
    office.nothing_at_rest(*MATCHES)


def test_the_event_of_a_message_moves_into_the_history_with_it(office: Office) -> None:
    with office.manager(**SMALL) as manager:
        agent = guarded(manager, BLOCKED, *map(str, range(8)))
        agent(PROMPT)
        for number in range(8):
            agent(f"prompt {number}")

    assert len(list(office.database[HISTORY].find())) > 0
    archived = stored(office.database).archived
    assert [message["guardrail_event"]["id"] for message in archived[:2]] == [event["id"] for event in office.events()]


@pytest.mark.slow
def test_a_session_lists_the_newest_events_counts_them_all_and_stays_writable(office: Office) -> None:
    turns = MAX_GUARDRAIL_EVENTS // 2 + 5
    with office.manager() as manager:
        agent = guarded(manager, *[BLOCKED] * turns)
        for _ in range(turns):
            agent(PROMPT)

    document = office.database[SESSIONS].find_one()
    assert document is not None
    assert document["guardrail_event_count"] == 2 * turns
    events = office.events()
    assert [event["message_id"] for event in events] == list(range(10, 2 * turns))
    assert len(events) == MAX_GUARDRAIL_EVENTS
    assert len(office.messages()) == 2 * turns
    # Each message keeps its own, so nothing is lost to whoever counts.
    assert all("guardrail_event" in message for message in office.messages())


@pytest.mark.slow
@reads_traces
def test_the_view_of_all_messages_counts_policies_across_sessions(office: Office) -> None:
    for session_id in ("a", "b"):
        with office.manager(session_id, **SMALL) as manager:
            agent = guarded(manager, BLOCKED, *map(str, range(8)))
            agent(PROMPT)
            for number in range(8):
                agent(f"prompt {number}")
    repository = office.repository()
    name = repository.create_messages_view()

    found = office.database[name].aggregate(
        [
            {"$match": {"guardrail_event.action": "redacted"}},
            {"$unwind": "$guardrail_event.policies"},
            {"$group": {"_id": "$guardrail_event.policies.policy", "messages": {"$addToSet": "$_id"}}},
            {"$project": {"messages": {"$size": "$messages"}}},
        ]
    )
    assert {one["_id"]: one["messages"] for one in found} == {policy["policy"]: 2 for policy in POLICIES}


@pytest.mark.slow
def test_a_message_that_the_repository_redacts_is_redacted_as_before(office: Office) -> None:
    with office.manager() as manager:
        talker(manager)(PROMPT)
    message = SessionMessage(by_hand(PROMPT), 0, redact_message=by_hand(REDACTED))
    office.repository().update_message("s", "assistant", message)

    assert office.messages()[0]["redact_message"] == by_hand(REDACTED)
    assert office.events() == []
