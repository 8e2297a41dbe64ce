"""What a guardrail did is stored with the message and listed in the session; what it matched is stored nowhere."""

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from importlib.util import find_spec
from itertools import product
from typing import Any

import bson
import pytest
from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import OperationFailure
from strands import Agent, tool
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.bidi import BidiAgent
from strands.hooks import MessageAddedEvent
from strands.types.session import SessionMessage
from support.application import Application, both_durabilities, look_up
from support.bidi_model import ScriptedBidiModel
from support.equality import assert_same
from support.histories import HISTORY, SESSIONS, SMALL, at_rest, by_hand, manager_of, stored, talker, texts
from support.waiting import eventually
from support.wire_proxy import Cut, Moment, WireProxy

from mongodb_session_manager import AgentNotFoundError, MongoDBSessionManager
from mongodb_session_manager._model.limits import MAX_GUARDRAIL_EVENTS

reads_traces = pytest.mark.skipif(find_spec("strands.middleware") is None, reason="Strands 1.62 made it public")

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


def fired(policy: str, type_: str, action: str = "BLOCKED", source: str = "input", **more: Any) -> dict[str, Any]:
    """What is stored of a policy that fired."""
    return {"policy": policy, "type": type_, "action": action, "source": source, **more}


POLICIES = [
    fired("topicPolicy", "DENY", name="Sales to children"),
    fired("contentPolicy", "VIOLENCE", confidence="HIGH"),
    fired("wordPolicy", "CUSTOM"),
    fired("wordPolicy", "PROFANITY", "NONE"),
    fired("sensitiveInformationPolicy", "CREDIT_DEBIT_CARD_NUMBER"),
    fired("sensitiveInformationPolicy", "NAME", "ANONYMIZED"),
    fired("sensitiveInformationPolicy", "REGEX", name="booking code"),
    fired("contextualGroundingPolicy", "GROUNDING", source="output", score=0.25, threshold=0.5),
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


@pytest.fixture
def app(applications: Callable[..., Application], database: Database[Any]) -> Application:
    found = applications()
    found.database = database.with_options(codec_options=database.codec_options.with_options(tz_aware=True))
    return found


def events_of(app: Application, session_id: str = "s") -> list[dict[str, Any]]:
    return app.repository.get_guardrail_events(session_id)


def messages_of(app: Application) -> list[dict[str, Any]]:
    """All of the conversation, wherever it lies."""
    return stored(app.database).messages


def guarded(manager: MongoDBSessionManager, *replies: Any, model: Any = GuardedModel, **options: Any) -> Agent:
    defaults: dict[str, Any] = {
        "agent_id": "assistant",
        "callback_handler": None,
        "conversation_manager": SlidingWindowConversationManager(window_size=4),
    }
    return Agent(model=model(replies), session_manager=manager, **{**defaults, **options})


def listening(manager: MongoDBSessionManager, *replies: Any, **options: Any) -> Agent:
    """An agent of a model without a guardrail; its callback handler records the traces that it hears of."""

    def listen(**event: Any) -> None:
        if trace := event.get("event", {}).get("metadata", {}).get("trace"):
            manager.record_guardrail_trace(trace, agent)

    agent = guarded(manager, *replies, model=OfflineScriptedModel, callback_handler=listen, **options)
    return agent


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
    app: Application, durability: Any, model: Any
) -> None:
    with app.manager(durability=durability) as manager:
        agent = guarded(manager, "Hello.", BLOCKED, "Bye.", model=model)
        agent("Hello?")
        agent(PROMPT)
        agent("Goodbye")
        events = manager.get_guardrail_events()

    messages = messages_of(app)
    assert texts(messages) == ["Hello?", "Hello.", REDACTED, "I cannot.", "Goodbye", "Bye."]
    assert [index for index, message in enumerate(messages) if "guardrail_event" in message] == [2, 3]
    redacted, intervened = (messages[index]["guardrail_event"] for index in (2, 3))
    stopped = {"stop_reason": "guardrail_intervened", **KNOWN}
    assert told(redacted) == {"action": "redacted", "role": "user", **stopped}
    assert told(intervened) == {"action": "intervened", "role": "assistant", **stopped}
    assert events == events_of(app) == [listed(redacted, 2), listed(intervened, 3)]
    assert app.session()["guardrail_event_count"] == 2


@both_durabilities
def test_nothing_that_a_policy_matched_is_stored_or_ever_sent_besides_the_prompt(
    app: Application, durability: Any
) -> None:
    with app.recorder.recording() as commands, app.manager(durability=durability) as manager:
        guarded(manager, BLOCKED)(PROMPT)

    app.nothing_at_rest(PROMPT, *MATCHES)
    in_the_prompt = [word for word in MATCHES if word in PROMPT]
    assert [word for word in MATCHES if commands.carry(word)] == (in_the_prompt if durability == "message" else [])


@pytest.mark.slow
@reads_traces
@both_durabilities
def test_an_answer_that_a_guardrail_has_masked_or_blocked_is_recorded_without_a_redaction(
    app: Application, durability: Any
) -> None:
    reply = ScriptedReply(text="Dear {NAME}", stop_reason="guardrail_intervened", guardrail_trace=TRACE)
    with app.manager(durability=durability) as manager:
        guarded(manager, reply)("Who?")

    (event,) = events_of(app)
    intervened = {"action": "intervened", "role": "assistant", "stop_reason": "guardrail_intervened", **KNOWN}
    assert told(event) == listed(intervened, 1)
    assert texts(messages_of(app)) == ["Who?", "Dear {NAME}"]
    app.nothing_at_rest(*MATCHES)


@both_durabilities
def test_a_redacted_answer_never_reaches_the_database(app: Application, durability: Any) -> None:
    reply = ScriptedReply(text="I would say it", redact_assistant="[gone]", guardrail_trace=TRACE)
    with app.recorder.recording() as commands, app.manager(durability=durability) as manager:
        guarded(manager, reply)("Who?")

    assert not commands.carry("I would say")
    assert texts(messages_of(app)) == ["Who?", "[gone]"]
    assert [(event["action"], event["role"], event["message_id"]) for event in events_of(app)] == [
        ("intervened", "assistant", 1)
    ]


@both_durabilities
def test_a_model_that_names_no_guardrail_gives_the_stop_reason_alone(app: Application, durability: Any) -> None:
    with app.manager(durability=durability) as manager:
        guarded(manager, BLOCKED, model=OfflineScriptedModel)(PROMPT)

    redacted, intervened = events_of(app)
    assert (intervened["stop_reason"], intervened["policies"]) == ("guardrail_intervened", [])
    # A redaction is sent at once; when it can wait for the turn, the model has stopped by then.
    assert redacted.get("stop_reason") == (None if durability == "message" else "guardrail_intervened")
    app.nothing_at_rest(*MATCHES)


@both_durabilities
def test_a_guardrail_that_only_watches_and_an_agent_without_one_record_nothing(
    app: Application, durability: Any
) -> None:
    with app.manager(durability=durability) as manager:
        guarded(manager, ScriptedReply(text="Sure.", guardrail_trace=TRACE), "And?")("Well?")
    with app.manager("plain", durability=durability) as manager:
        talker(manager)("Well?")

    assert events_of(app) == events_of(app, "plain") == events_of(app, "no such session") == []
    for document in app.database[SESSIONS].find():
        assert "guardrail" not in str(document)


@reads_traces
def test_what_a_guardrail_said_of_one_answer_is_not_said_of_the_next(app: Application) -> None:
    with app.manager() as manager:
        unexplained = ScriptedReply(text="No.", redact_user=REDACTED)
        agent = guarded(manager, BLOCKED, unexplained)
        agent(PROMPT)
        agent("Once more")
        manager.redact_latest_message(by_hand("[by hand]", "assistant"), agent)

    assert [len(event["policies"]) for event in events_of(app)] == [8, 8, 0, 0, 0]


def test_what_a_guardrail_said_before_a_tool_was_used_is_not_said_of_the_answer(app: Application) -> None:
    replies = (
        ScriptedReply(tool_calls=(ToolCall("look_up", {"what": "x"}),), guardrail_trace=TRACE),
        ScriptedReply(text="No.", stop_reason="guardrail_intervened"),
    )
    with app.manager() as manager:
        listening(manager, *replies, tools=[look_up])("Look it up")

    assert [event["policies"] for event in events_of(app)] == [[]]


def test_what_is_known_of_a_guardrail_is_not_said_of_what_comes_after_a_failed_turn(app: Application) -> None:
    with app.manager() as manager:
        agent = guarded(manager, RuntimeError("the provider is down"))
        with pytest.raises(RuntimeError, match="down"):
            agent(PROMPT)
        manager.redact_latest_message(by_hand(REDACTED), agent)

    redacted = {"action": "redacted", "role": "user", "policies": []}
    assert [told(event) for event in events_of(app)] == [listed(redacted, 0)]


@both_durabilities
def test_a_redacted_tool_result_is_recorded_and_still_answers_its_tool_use(app: Application, durability: Any) -> None:
    @tool
    def ask() -> str:
        """Ask who it is."""
        return "Jane Roe, 4111-1111"

    with app.manager(durability=durability) as manager:
        agent = guarded(manager, ToolCall("ask"), BLOCKED, tools=[ask])
        agent("Who is it?")

    assert [(event["action"], event["message_id"]) for event in events_of(app)] == [("redacted", 2), ("intervened", 3)]
    use, result = (message["content"][0] for message in messages_of(app)[1:3])
    assert result["toolResult"]["content"] == [{"text": REDACTED}]
    assert result["toolResult"]["toolUseId"] == use["toolUse"]["toolUseId"]
    assert_same(talker(app.manager()).messages, agent.messages)
    app.nothing_at_rest(*MATCHES)


@both_durabilities
def test_the_message_keeps_its_ids_metadata_and_metrics(app: Application, durability: Any) -> None:
    with app.manager(durability=durability) as manager:
        agent = guarded(manager, BLOCKED)
        agent(PROMPT)
        manager.flush()
        before = messages_of(app)
        manager.redact_latest_message(by_hand("[by hand]", "assistant"), agent)

    after = messages_of(app)
    assert [message["tracking_id"] for message in after] == [message["tracking_id"] for message in agent.messages]
    for name in ("tracking_id", "turn_id", "metadata", "event_loop_metrics", "created_at"):
        assert after[1][name] == before[1][name]
    agent_record = stored(app.database).agent
    tokens = after[1]["event_loop_metrics"]["accumulated_usage"]["totalTokens"]
    assert [model["totalTokens"] for model in agent_record["usage"]["models"].values()] == [tokens]
    # The message shows what happened to it last; the session, everything.
    assert [event["action"] for event in events_of(app)] == ["redacted", "intervened", "redacted"]
    assert after[1]["guardrail_event"]["action"] == "redacted"


@both_durabilities
def test_a_restored_agent_is_what_it_was_and_a_read_message_knows_its_redaction(
    app: Application, durability: Any
) -> None:
    with app.manager(durability=durability) as manager:
        agent = guarded(manager, BLOCKED)
        agent(PROMPT)
    with app.manager() as manager:
        assert_same(talker(manager).messages, agent.messages)

    message = app.repository.read_message("s", "assistant", 0)
    assert message is not None
    assert message.redact_message == by_hand(REDACTED)


def test_a_new_agent_of_a_begun_session_is_stored_with_its_first_event(app: Application) -> None:
    with app.manager(durability="turn") as manager:
        manager.add_feedback({"rating": "up"})
        guarded(manager, BLOCKED, agent_id="v1.2")(PROMPT)

    assert [(event["agent_id"], event["message_id"]) for event in events_of(app)] == [("v1.2", 0), ("v1.2", 1)]


# --- by hand


def test_a_trace_that_is_recorded_by_hand_is_stored_with_the_redaction_that_follows(app: Application) -> None:
    with app.manager() as manager:
        agent = talker(manager)
        agent(PROMPT)
        manager.record_guardrail_trace({"guardrail": TRACE}, agent)
        manager.redact_latest_message(by_hand(REDACTED, "assistant"), agent)
        manager.redact_latest_message(by_hand("[again]", "assistant"), agent)
        with pytest.raises(AgentNotFoundError):
            manager.record_guardrail_trace(TRACE, Agent(model=OfflineScriptedModel()))

    first, second = events_of(app)
    assert (first["policies"], second["policies"]) == (POLICIES, [])


@both_durabilities
def test_a_callback_handler_may_record_the_trace_of_any_model(app: Application, durability: Any) -> None:
    with app.manager(durability=durability) as manager:
        listening(manager, BLOCKED)(PROMPT)

    assert events_of(app)[-1]["policies"] == POLICIES


def test_a_message_of_a_bidirectional_agent_is_recorded_likewise(app: Application) -> None:
    with app.manager() as manager:
        agent = BidiAgent(model=ScriptedBidiModel(), agent_id="assistant", session_manager=manager)
        manager.append_message(by_hand(PROMPT), agent)
        manager.record_guardrail_trace(TRACE, agent)
        manager.redact_latest_message(by_hand(REDACTED), agent)

    assert [(event["message_id"], event["policies"]) for event in events_of(app)] == [(0, POLICIES)]
    app.nothing_at_rest(*MATCHES)


# --- traces of any form


@pytest.mark.parametrize("odd", [None, "secret", ["secret"], {"secret": 1}, {"inputAssessment": "secret"}])
def test_a_turn_whose_trace_has_another_form_is_stored_without_it(app: Application, odd: Any) -> None:
    with app.manager() as manager:
        guarded(manager, ScriptedReply(text="No.", redact_user=REDACTED, guardrail_trace=odd))(PROMPT)

    assert [event["policies"] for event in events_of(app)] == [[], []]
    app.nothing_at_rest("secret", *MATCHES)


# --- readers that are slow, or go away


@pytest.mark.slow
def test_a_reader_that_stops_reading_before_the_trace_does_not_keep_the_text_in_the_store(app: Application) -> None:
    with app.manager() as manager:
        agent = guarded(manager, BLOCKED)

        async def request() -> list[str]:
            stream = agent.stream_async(PROMPT)
            async for event in stream:
                if "redactContent" in event.get("event", {}):
                    break
            # The stream is open still, and nobody asks for more.
            await asyncio.to_thread(eventually, lambda: b"bubblegum" not in at_rest(app.database))
            found = await asyncio.to_thread(lambda: texts(messages_of(app)))
            async for _ in stream:
                pass
            return found

        assert asyncio.run(request()) == [REDACTED]

    assert [event["action"] for event in events_of(app)] == ["redacted", "intervened"]


def test_a_reader_that_goes_away_before_the_trace_leaves_no_text_behind(app: Application) -> None:
    with app.manager() as manager:
        agent = guarded(manager, BLOCKED)

        async def request() -> None:
            stream = agent.stream_async(PROMPT)
            async for event in stream:
                if "redactContent" in event.get("event", {}):
                    await stream.aclose()  # type: ignore[attr-defined]
                    break

        asyncio.run(request())
        eventually(lambda: b"bubblegum" not in at_rest(app.database))

    assert [(event["action"], event["policies"]) for event in events_of(app)] == [("redacted", POLICIES)]


@reads_traces
@pytest.mark.parametrize("noted", [False, True], ids=["", "with a note appended by hand behind the prompt"])
def test_a_redaction_is_not_lost_with_a_stream_that_is_cancelled_before_the_guardrail_has_said_why(
    app: Application, noted: bool
) -> None:
    with app.manager() as manager:
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
    app.nothing_at_rest(PROMPT)


def test_a_redaction_after_a_model_call_that_failed_waits_for_no_trace(app: Application) -> None:
    manager = app.manager()
    agent = guarded(manager, RuntimeError("the provider is down"))

    async def request() -> None:
        with pytest.raises(RuntimeError, match="down"):
            await agent.invoke_async(PROMPT)
        manager.redact_latest_message(by_hand(REDACTED), agent)

    asyncio.run(request())
    eventually(lambda: b"bubblegum" not in at_rest(app.database))
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
def test_a_lost_answer_doubles_no_event(act: Any, app: Application, proxies: Callable[[], WireProxy]) -> None:
    do, durability, writes, expected = act
    moments: tuple[Moment, Moment] = ("before it is run", "before its answer arrives")

    def run(number: int, moment: Moment, retry_writes: bool) -> tuple[str, list[str]]:
        session_id = f"{number} {moment} {retry_writes}"
        with app.manager(session_id) as manager:
            talker(manager)("Hello?")
        proxy = proxies()
        client: MongoClient[Any]
        with MongoClient(proxy.uri, retryWrites=retry_writes) as client:
            manager = manager_of(client, app.database.name, session_id, durability=durability)
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
        events = events_of(app, session_id)
        assert [(event["action"], event["message_id"]) for event in events] == expected, session_id
        assert app.session(session_id)["guardrail_event_count"] == len(expected), session_id
    app.nothing_at_rest("bubblegum", "4111-1111")


@pytest.mark.topology
def test_a_redaction_of_a_message_that_could_not_be_stored_is_one_event_and_does_not_send_its_text_again(
    app: Application,
) -> None:
    manager = app.manager()
    agent = talker(manager)
    with app.failing("update"), pytest.raises(OperationFailure):
        manager.append_message(by_hand(PROMPT), agent)
    with app.recorder.recording() as commands:
        manager.redact_latest_message(by_hand(REDACTED), agent)
    manager.close()

    assert commands.names == ["update", "find", "update", "find"]
    assert not commands.carry("bubblegum")
    assert [event["message_id"] for event in events_of(app)] == [0]
    assert messages_of(app)[0]["guardrail_event"]["id"] == events_of(app)[0]["id"]
    app.nothing_at_rest("bubblegum")


@both_durabilities
def test_a_prompt_that_was_tried_again_is_one_event_though_it_stands_there_twice(
    app: Application, durability: Any
) -> None:
    prompt = {**by_hand(PROMPT), "tracking_id": "one-and-the-same"}
    with app.manager(durability=durability) as manager:
        agent = guarded(manager, RuntimeError("the provider is down"), BLOCKED)
        with pytest.raises(RuntimeError, match="down"):
            agent([copy.deepcopy(prompt)])
        agent([copy.deepcopy(prompt)])

    redacted, intervened = events_of(app)
    assert (redacted["message_id"], intervened["message_id"]) == (1, 2)
    document = app.session()
    prompts = document["agents"]["assistant"]["messages"][:2]
    assert texts(prompts) == [REDACTED, REDACTED]
    assert [message["guardrail_event"]["id"] for message in prompts] == [redacted["id"]] * 2
    assert document["guardrail_event_count"] == 2
    app.nothing_at_rest(*MATCHES)


# --- long sessions


@pytest.mark.slow
@pytest.mark.topology
@pytest.mark.parametrize("moment", [None, "before it is run", "before its answer arrives"])
def test_the_redaction_of_an_archived_message_is_listed_once(
    app: Application, proxies: Callable[[], WireProxy], moment: Any
) -> None:
    proxy = proxies()
    client: MongoClient[Any]
    with MongoClient(proxy.uri, retryWrites=False) as client:
        manager = manager_of(client, app.database.name)
        agent = talker(manager)
        manager.append_message(by_hand(PROMPT), agent)
        with app.manager(**SMALL) as another:
            other = talker(another)
            for number in range(8):
                other(f"prompt {number}")
        found = stored(app.database)
        assert texts(found.archived)[0] == PROMPT
        if moment is not None:
            # In the session document, the change of the history is announced.
            proxy.cut(Cut("update", moment))
        manager.record_guardrail_trace(TRACE, agent)
        manager.redact_latest_message(by_hand(REDACTED), agent)
        manager.close()

    assert proxy.cut_commands == ([] if moment is None else ["update"])
    (event,) = events_of(app)
    message = stored(app.database).archived[0]
    assert told(event) == listed({"action": "redacted", "role": "user", "policies": POLICIES}, 0)
    assert message["guardrail_event"] == {k: v for k, v in event.items() if k not in ("agent_id", "message_id")}
    app.nothing_at_rest(*MATCHES)


@pytest.mark.slow
def test_the_event_of_a_message_moves_into_the_history_with_it(app: Application) -> None:
    with app.manager(**SMALL) as manager:
        agent = guarded(manager, BLOCKED, *map(str, range(8)))
        agent(PROMPT)
        for number in range(8):
            agent(f"prompt {number}")

    assert len(list(app.database[HISTORY].find())) > 0
    archived = stored(app.database).archived
    assert [message["guardrail_event"]["id"] for message in archived[:2]] == [event["id"] for event in events_of(app)]


@pytest.mark.slow
def test_a_session_lists_the_newest_events_counts_them_all_and_stays_writable(app: Application) -> None:
    turns = MAX_GUARDRAIL_EVENTS // 2 + 5
    with app.manager() as manager:
        agent = guarded(manager, *[BLOCKED] * turns)
        for _ in range(turns):
            agent(PROMPT)

    document = app.session()
    assert document["guardrail_event_count"] == 2 * turns
    events = events_of(app)
    assert [event["message_id"] for event in events] == list(range(10, 2 * turns))
    assert len(events) == MAX_GUARDRAIL_EVENTS
    assert len(messages_of(app)) == 2 * turns
    # Each message keeps its own, so nothing is lost to whoever counts.
    assert all("guardrail_event" in message for message in messages_of(app))


@pytest.mark.slow
@reads_traces
def test_the_view_of_all_messages_counts_policies_across_sessions(app: Application) -> None:
    for session_id in ("a", "b"):
        with app.manager(session_id, **SMALL) as manager:
            agent = guarded(manager, BLOCKED, *map(str, range(8)))
            agent(PROMPT)
            for number in range(8):
                agent(f"prompt {number}")
    repository = app.repository
    name = repository.create_messages_view()

    found = app.database[name].aggregate(
        [
            {"$match": {"guardrail_event.action": "redacted"}},
            {"$unwind": "$guardrail_event.policies"},
            {"$group": {"_id": "$guardrail_event.policies.policy", "messages": {"$addToSet": "$_id"}}},
            {"$project": {"messages": {"$size": "$messages"}}},
        ]
    )
    assert {one["_id"]: one["messages"] for one in found} == {policy["policy"]: 2 for policy in POLICIES}


@pytest.mark.slow
def test_a_message_that_the_repository_redacts_is_redacted_as_before(app: Application) -> None:
    with app.manager() as manager:
        talker(manager)(PROMPT)
    message = SessionMessage(by_hand(PROMPT), 0, redact_message=by_hand(REDACTED))
    app.repository.update_message("s", "assistant", message)

    assert messages_of(app)[0]["redact_message"] == by_hand(REDACTED)
    assert events_of(app) == []
