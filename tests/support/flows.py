"""The flows through which a conversation passes: how each is built, and its steps.

A flow knows nothing of stores. `build` makes the agent (or orchestrator) on a session manager, the same way
in every process; each step takes it a part of the way, and between two steps another process may take over.
"""

import asyncio
import copy
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall
from pydantic import BaseModel
from strands import Agent, ToolContext, tool
from strands.agent.conversation_manager import (
    NullConversationManager,
    SlidingWindowConversationManager,
    SummarizingConversationManager,
)
from strands.agent.state import AgentState
from strands.bidi import BidiAgent
from strands.bidi.types import events as bidi
from strands.hooks import (
    AfterInvocationEvent,
    BeforeNodeCallEvent,
    BeforeToolCallEvent,
    BeforeToolsEvent,
    HookProvider,
    HookRegistry,
)
from strands.multiagent import GraphBuilder, Swarm
from strands.session.session_manager import SessionManager
from strands.types.exceptions import ContextWindowOverflowException, MaxTokensReachedException

from support.bidi_model import HANG_UP, ScriptedBidiModel

Live: TypeAlias = Any
"""What runs: an `Agent`, a `BidiAgent`, a `Graph` or a `Swarm`."""


@dataclass(frozen=True)
class Flow:
    """One way through Strands.

    Args:
        build: Makes the agent on a session manager; the first time and in every later process.
        steps: What happens, one after the other.
        lost_by_strands: Why `FileSessionManager` restores something else than what was live, if it does.
        lost: Why every session manager does, so that `FileSessionManager`'s result is what is expected.
        strands_cannot_store: What `FileSessionManager` raises, if it cannot store this flow at all.
    """

    build: Callable[[SessionManager], Live]
    steps: tuple[Callable[[Live], None], ...]
    lost_by_strands: str = ""
    lost: str = ""
    strands_cannot_store: type[Exception] | None = None


def picture(live: Live) -> dict[str, Any]:
    """Everything a session manager has to bring back, as plain values."""
    if isinstance(live, Agent):
        seen = {
            "messages": live.messages,
            "state": live.state.get(),
            "conversation_manager_state": live.conversation_manager.get_state(),
            "interrupt_state": live._interrupt_state.to_dict(),
            "model_state": live._model_state,
        }
    elif isinstance(live, BidiAgent):
        seen = {"messages": live.messages, "state": live.state.get()}
    else:
        return orchestrator_picture(live.serialize_state())
    return copy.deepcopy(seen)


def orchestrator_picture(state: dict[str, Any] | None) -> dict[str, Any] | None:
    """The state of a graph or swarm; without the order of what Strands itself keeps in sets."""
    unordered = ("completed_nodes", "failed_nodes", "interrupted_nodes")
    return state and {key: sorted(value) if key in unordered else copy.deepcopy(value) for key, value in state.items()}


def agent_with(*tools: Any, **options: Any) -> Callable[[SessionManager], Agent]:
    """A builder of an agent on an offline model; an option may be a function that makes the value anew."""

    def build(session_manager: SessionManager) -> Agent:
        return Agent(
            model=OfflineScriptedModel(),
            agent_id="assistant",
            tools=list(tools),
            callback_handler=None,
            session_manager=session_manager,
            **{name: value() if callable(value) else value for name, value in options.items()},
        )

    return build


def say(prompt: Any, *replies: Any, state: dict[str, Any] | None = None, **options: Any) -> Callable[[Agent], None]:
    """A step: the application sets `state`, the user says `prompt`, the model answers with `replies`."""

    def step(agent: Agent) -> None:
        for key, value in (state or {}).items():
            agent.state.set(key, value)
        agent.model.will_reply(*replies)
        agent(prompt, **options)

    return step


# --- Tools


@tool
def measure(depth: float, repeat: bool = False) -> dict[str, Any]:
    """Measure something and return values of every type."""
    picture_of_it = {"format": "png", "source": {"bytes": b"\x89PNG\r\n\x00\xff"}}
    values = {
        "int": 1,
        "float": 1.0,
        "bool": True,
        "none": None,
        "big": 2**53 + 1,
        "depth": depth,
        "list": [1, [2.0, {}]],
    }
    return {
        "status": "success",
        "content": [{"json": values}, {"text": "ünï¢ode ✓ 🐟"}, {"image": picture_of_it}],
    }


@tool(context=True)
def remember(key: str, value: Any, tool_context: ToolContext) -> str:
    """Put a value into the agent's state."""
    tool_context.agent.state.set(key, value)
    return f"{key} remembered"


@tool(context=True)
def transfer(amount: float, tool_context: ToolContext, proof: bool = False) -> str:
    """Transfer money once a person has agreed; the proof that they see is bytes."""
    reason = {"amount": amount, "limits": [1, 1.0, True], "proof": b"\0\xff" if proof else None}
    answer = tool_context.interrupt("approve", reason=reason)
    return f"transferred {amount}, approved by {answer}"


@tool(context=True)
async def slow_report(subject: str, tool_context: ToolContext) -> str:
    """Write a report, in the background; it is ready once the model has said that it is on its way."""

    async def model_has_answered() -> None:
        while "on its way" not in str(tool_context.agent.messages[-1]):
            await asyncio.sleep(0.001)

    await asyncio.wait_for(model_has_answered(), timeout=60)
    return f"report on {subject}"


@tool
def broken(reason: str) -> str:
    """Fail."""
    raise RuntimeError(reason)


@tool
def long_report(lines: int) -> str:
    """Write a report of many lines."""
    return "\n".join(f"line {line} of the report" for line in range(lines))


# --- One agent


def plain() -> Flow:
    """Text, an image, reasoning (with bytes), citations of state; several turns."""
    image = {"image": {"format": "png", "source": {"bytes": b"\x89PNG\r\n\x1a\n\x00\xff"}}}
    thoughtful = ScriptedReply(reasoning="Blue, I think.", redacted_reasoning=b"\x00\x01\xfe", text="It is blue.")
    state = {
        "int": 1,
        "float": 1.0,
        "bool": True,
        "none": None,
        "dotted.key": {"$set": [0, 0.0, False, ""]},
        "": {},
    }
    usage = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15, "cacheReadInputTokens": 7}
    return Flow(
        agent_with(state=state),
        (
            say("Hello ünï¢ode 🐟", ScriptedReply(text="Hello, how are you today?", usage=usage)),
            say([{"text": "What is this?"}, image], thoughtful),
            say("And now?", "Still blue.", state={"turns": {"count": 2, "share": 2.0, "done": False}}),
        ),
    )


def replaced_state() -> Flow:
    """The application replaces the agent's state as a whole, by `agent.state = AgentState(…)`."""

    def replace(agent: Agent) -> None:
        agent.state = AgentState({"b": [2, 2.0, True]})
        say("And now?", "Still here.")(agent)

    return Flow(
        agent_with(state=lambda: {"a": 1}),
        (say("Hello", "Hi."), replace, say("Thanks", "You are welcome.")),
        lost_by_strands="it compares versions, and the new object counts from 0 as the old one did",
    )


def initial_messages() -> Flow:
    """An agent that is given a history: `Agent(messages=[…])`."""
    history = [
        {"role": "user", "content": [{"text": "Earlier"}]},
        {"role": "assistant", "content": [{"text": "Yes."}]},
    ]
    untracked = "Strands gives these messages their tracking id at the first invocation, after they were stored"
    return Flow(
        agent_with(messages=lambda: copy.deepcopy(history)),
        (lambda _: None, say("Go on", "I do.")),
        lost_by_strands=untracked,
    )


def tool_use() -> Flow:
    """Tools that return every type, change the state, and fail."""
    calls = ScriptedReply(
        text="Let me see.",
        tool_calls=(
            ToolCall("measure", {"depth": 2.0, "repeat": True}),
            ToolCall("remember", {"key": "k", "value": [1, 1.0]}),
        ),
    )
    return Flow(
        agent_with(measure, remember, broken),
        (
            say("Measure it", calls, "Measured."),
            say("Again", ToolCall("broken", {"reason": "no such thing"}), "That failed."),
            say(
                "Remember more",
                ToolCall("remember", {"key": "n", "value": {"deep": {"er": [True, 1]}}}),
                "Done.",
            ),
        ),
    )


def unknown_tool() -> Flow:
    """The model asks for a tool that does not exist, by a name that no tool may have."""
    return Flow(
        agent_with(measure),
        (say("Try", ToolCall("no such tool!", {"a": 1}), "It does not exist."), say("Then stop", "Stopped.")),
    )


def interrupt_in_a_tool() -> Flow:
    """A tool asks a person and the agent stops; another tool of the same message has finished by then."""
    pay = ToolCall("transfer", {"amount": 5.0, "proof": True})
    both = ScriptedReply(tool_calls=(pay, ToolCall("remember", {"key": "k", "value": 1})))
    return Flow(
        agent_with(transfer, remember),
        (
            say("Transfer 5", both),
            answer_interrupts("Alice", "Transferred."),
            say("Thanks", "You are welcome."),
        ),
    )


def interrupt_in_a_hook() -> Flow:
    """A hook asks a person before every tool, and asks twice."""

    def approve(event: BeforeToolCallEvent) -> None:
        event.interrupt("first", reason="really?")
        if event.interrupt("second", reason={"n": [1, 1.0, True]}) != "yes":
            event.cancel_tool = "not approved"

    return Flow(
        agent_with(remember, hooks=lambda: [approve]),
        (
            say("Remember", ToolCall("remember", {"key": "k", "value": 1.0})),
            answer_interrupts("yes"),
            answer_interrupts("no", "It was not approved."),
            say("Thanks", "You are welcome."),
        ),
    )


def interrupt_before_all_tools() -> Flow:
    """A hook asks a person once for all tools of a message, none of which has run by then."""

    def approve(event: BeforeToolsEvent) -> None:
        if event.interrupt("all", reason={"n": [1, 1.0, True]}) != "yes":
            event.cancel = "not approved"

    both = (
        ToolCall("remember", {"key": "a", "value": 1.0}),
        ToolCall("remember", {"key": "b", "value": None}),
    )
    return Flow(
        agent_with(remember, hooks=lambda: [approve]),
        (
            say("Remember both", ScriptedReply(tool_calls=both)),
            answer_interrupts("yes", "Done."),
            say("Again", ScriptedReply(tool_calls=both)),
            answer_interrupts("no", "It was not approved."),
        ),
    )


def answer_interrupts(answer: Any, *replies: Any) -> Callable[[Agent], None]:
    """A step: a person answers every open interrupt."""

    def step(agent: Agent) -> None:
        agent.model.will_reply(*replies)
        is_open = [one for one in agent._interrupt_state.interrupts.values() if one.response is None]
        agent([{"interruptResponse": {"interruptId": one.id, "response": answer}} for one in is_open])

    return step


class Person(BaseModel):
    """Who somebody is."""

    name: str
    age: int
    height: float


def structured_output() -> Flow:
    """The model answers with structured output, at once and only when it is told to."""
    alice = ToolCall("Person", {"name": "Alice", "age": 30, "height": 2.0})
    return Flow(
        agent_with(),
        (
            say("Alice is 30", alice, structured_output_model=Person),
            say("Again", "She is Alice.", alice, structured_output_model=Person),
            say("Thanks", "You are welcome."),
        ),
    )


def sliding_window() -> Flow:
    """A window of four messages, over turns with and without tools."""
    return Flow(
        agent_with(measure, conversation_manager=lambda: SlidingWindowConversationManager(window_size=4)),
        (
            say("One", "1"),
            say("Two", ToolCall("measure", {"depth": 1}), "2"),
            say("Three", "3"),
            say("Four", ToolCall("measure", {"depth": 4.0}), ToolCall("measure", {"depth": 5}), "4"),
            say("Five", "5"),
        ),
    )


def window_per_turn() -> Flow:
    """A window that is applied before model calls, so that it counts them."""
    return Flow(
        agent_with(measure, conversation_manager=lambda: SlidingWindowConversationManager(window_size=3, per_turn=2)),
        (
            say("One", "1"),
            say("Two", ToolCall("measure", {"depth": 1}), "2"),
            say("Three", "3"),
            say("Four", "4"),
        ),
    )


def no_window() -> Flow:
    """No conversation manager at work."""
    return Flow(agent_with(conversation_manager=NullConversationManager), (say("One", "1"), say("Two", "2")))


def pinned_messages() -> Flow:
    """The first message is pinned; the window moves behind it."""
    return Flow(
        agent_with(conversation_manager=lambda: SlidingWindowConversationManager(window_size=4, pin_first=1)),
        tuple(say(f"Question {n}", f"Answer {n}") for n in range(5)),
        lost="Strands restores the newest messages by their number; it does not know that an old one stays",
    )


def summarizing() -> Flow:
    """The context overflows, the older messages are summarized; twice."""
    full = ContextWindowOverflowException("too long")
    return Flow(
        agent_with(
            conversation_manager=lambda: SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2)
        ),
        (
            say("One", "1"),
            say("Two", "2"),
            say("Three", full, "Summary of one and two.", "3"),
            say("Four", "4"),
            say("Five", full, "Summary of the summary, three and four.", "5"),
            say("Six", "6"),
        ),
    )


def context_overflow() -> Flow:
    """The context overflows and the window drops messages."""
    full = ContextWindowOverflowException("too long")
    return Flow(
        agent_with(conversation_manager=lambda: SlidingWindowConversationManager(window_size=20)),
        (say("One", "1"), say("Two", "2"), say("Three", full, full, "3"), say("Four", "4")),
    )


def context_overflow_in_tool_result() -> Flow:
    """The context overflows because of a long tool result, which the window shortens in place."""
    full = ContextWindowOverflowException("too long")
    return Flow(
        agent_with(long_report, conversation_manager=lambda: SlidingWindowConversationManager(window_size=20)),
        (
            say("Report", ToolCall("long_report", {"lines": 200}), full, "Long."),
            say("Thanks", "You are welcome."),
        ),
        lost="the window shortens what the model sees; what is stored is the original",
    )


def redaction_of_the_user() -> Flow:
    """A guardrail replaces what the user said; the conversation goes on."""
    blocked = ScriptedReply(text="I cannot say.", redact_user="[redacted]")
    return Flow(agent_with(), (say("Hello", "Hi."), say("My PIN is 1234", blocked), say("Sorry", "No problem.")))


def redaction_of_a_retried_prompt() -> Flow:
    """The application repeats a message that failed: one object, twice in the history, both redacted."""
    blocked = ScriptedReply(text="I cannot say.", redact_user="[redacted]")

    def retry(agent: Agent) -> None:
        prompt = [{"role": "user", "content": [{"text": "My PIN is 1234"}]}]
        agent.model.will_reply(ConnectionError("provider is down"), blocked)
        try:
            agent(prompt)
        except ConnectionError:
            agent(prompt)

    return Flow(agent_with(), (say("Hello", "Hi."), retry, say("Sorry", "No problem.")))


def redaction_of_a_tool_result() -> Flow:
    """A guardrail replaces what a tool returned."""
    blocked = ScriptedReply(text="I cannot say.", redact_user="[redacted]")
    return Flow(
        agent_with(measure),
        (
            say("Measure", ToolCall("measure", {"depth": 1.0}), blocked),
            say("Why?", "A guardrail stopped it."),
        ),
    )


def redaction_of_the_assistant() -> Flow:
    """A guardrail replaces what the user and what the model said."""
    both = ScriptedReply(text="Something bad.", redact_user="[user]", redact_assistant="[assistant]")
    return Flow(agent_with(), (say("Say something bad", both), say("Hello", "Hi.")))


def cancellation_while_streaming() -> Flow:
    """Somebody stops the answer: before it begins, and in its middle."""

    def in_the_middle(agent: Agent) -> None:
        async def stream() -> None:
            async for event in agent.stream_async("Tell a long story"):
                if "data" in event:
                    agent.cancel(message="Stopped by Alice")

        agent.model.will_reply("Once upon a time, there was a fish that could not swim. " * 3)
        asyncio.run(stream())

    def before_it_begins(agent: Agent) -> None:
        stop = threading.Event()
        stop.set()
        agent.model.will_reply("Never said.")
        agent("Stop at once", cancel_signal=stop)

    return Flow(agent_with(), (say("Hello", "Hi."), in_the_middle, before_it_begins, say("Are you there?", "Yes.")))


def cancellation_of_a_tool() -> Flow:
    """A tool stops the turn that it belongs to."""

    @tool(context=True)
    def stop(tool_context: ToolContext) -> str:
        """Stop the turn."""
        tool_context.agent.cancel()
        return "stopped"

    return Flow(agent_with(stop), (say("Stop yourself", ToolCall("stop")), say("Go on", "I do.")))


def task_cancellation() -> Flow:
    """The web server cancels the request's task while the answer is streaming."""

    def cancel(agent: Agent) -> None:
        async def request() -> None:
            begun = asyncio.Event()

            async def stream() -> None:
                async for event in agent.stream_async("Tell a long story"):
                    if "data" in event:
                        begun.set()

            task = asyncio.create_task(stream())
            await begun.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        agent.model.will_reply(ScriptedReply(text="Once upon a time " * 20, chunk_delay=0.005))
        asyncio.run(request())

    return Flow(agent_with(), (say("Hello", "Hi."), cancel, say("Are you there?", "Yes.")))


def direct_tool_call() -> Flow:
    """The application calls a tool itself, which is recorded as four messages."""
    return Flow(
        agent_with(measure, remember),
        (
            lambda agent: agent.tool.measure(depth=1.0, user_message_override="Measure it, please"),
            say("And?", "It is measured."),
            lambda agent: agent.tool.remember(key="k", value={"a": [1, 1.0, True]}),
            lambda agent: agent.tool.measure(depth=2, record_direct_tool_call=False),
            say("Thanks", "You are welcome."),
        ),
    )


def failing_model() -> Flow:
    """The model's provider fails; the user's message stays, the next turn goes on."""

    def fail(agent: Agent) -> None:
        agent.model.will_reply(ScriptedReply(text="I was about to", error=ConnectionError("provider is down")))
        try:
            agent("Hello?")
        except ConnectionError:
            return
        raise AssertionError("the provider's error was swallowed")

    return Flow(agent_with(), (say("Hello", "Hi."), fail, say("And now?", "Here I am.")))


def token_limit() -> Flow:
    """The model's answer is cut at its token limit, in the middle of a tool call."""

    def cut(agent: Agent) -> None:
        call = ToolCall("measure", {"depth": 1})
        agent.model.will_reply(ScriptedReply(text="I", tool_calls=(call,), stop_reason="max_tokens"))
        try:
            agent("Measure")
        except MaxTokensReachedException:
            return
        raise AssertionError("the cut was not reported")

    return Flow(agent_with(measure), (cut, say("Go on", "Done.")))


def turn_limit() -> Flow:
    """The application limits the turns of an invocation, so that it ends behind a tool result."""
    return Flow(
        agent_with(measure),
        (say("Measure", ToolCall("measure", {"depth": 1}), limits={"turns": 1}), say("Go on", "Done.")),
    )


def crash_in_a_tool_call() -> Flow:
    """An error leaves a tool call without its result; Strands repairs that at the next prompt."""

    def fail(event: BeforeToolCallEvent) -> None:
        raise ConnectionError("the hook failed")

    def crash(agent: Agent) -> None:
        agent.model.will_reply(ToolCall("measure", {"depth": 1}))
        try:
            agent("Measure")
        except Exception as error:
            if "the hook failed" in str(error):
                return
            raise
        raise AssertionError("the hook's error was swallowed")

    return Flow(agent_with(measure, hooks=lambda: [fail]), (crash, say("What happened?", "It failed.")))


def background_task() -> Flow:
    """A tool runs in the background; its result arrives as a continuation of the same invocation."""
    return Flow(
        agent_with(slow_report, background_tasks={"always": ["slow_report"]}),
        (
            say(
                "Report on fish",
                ToolCall("slow_report", {"subject": "fish"}),
                "It is on its way.",
                "Here it is.",
            ),
            say("Thanks", "You are welcome."),
        ),
        lost_by_strands=DOUBLED,
    )


def background_task_chosen_by_the_model() -> Flow:
    """The model itself chooses the background, by an argument that Strands takes out of the call."""
    call = ToolCall("slow_report", {"subject": "fish", "_background_execution": True})
    return Flow(
        agent_with(slow_report, background_tasks={"agentic": ["slow_report"]}),
        (say("Report on fish", call, "It is on its way.", "Here it is."), say("Thanks", "You are welcome.")),
        lost_by_strands=DOUBLED,
    )


DOUBLED = "a continuation extends the last message; Strands' managers store it a second time (harness-sdk#4420)"


def continuation() -> Flow:
    """A hook goes on with a new prompt after the turn has ended."""

    def go_on(event: AfterInvocationEvent) -> None:
        if not event.agent.state.get("went_on"):
            event.agent.state.set("went_on", True)
            event.resume = "And then?"

    return Flow(
        agent_with(hooks=lambda: [go_on]),
        (say("Tell a story", "Once upon a time.", "The end."), say("Thanks", "You are welcome.")),
    )


# --- A bidirectional agent


def bidi_agent() -> Flow:
    """Text, transcripts of both speakers, reasoning, tools; and a call that is cut in a sentence."""
    called = bidi.BidiToolUseBlocksEvent(
        [{"toolUseId": "call-1", "name": "remember", "input": {"key": "k", "value": 1.0}}]
    )
    said = [
        bidi.BidiResponseStartEvent("r1"),
        *spoken("user", "Remember it", "t1"),
        *thought("I will.", "t2"),
        called,
    ]
    answered = [*written("Remembered.", "t3"), *spoken("assistant", "Remembered.", "t4"), HANG_UP]
    cut = [
        bidi.BidiTranscriptStartEvent("assistant", "t5"),
        bidi.BidiTranscriptDeltaEvent("Once upon", "assistant", "t5"),
        HANG_UP,
    ]

    def build(session_manager: SessionManager) -> BidiAgent:
        return BidiAgent(ScriptedBidiModel(), tools=[remember], agent_id="voice", session_manager=session_manager)

    return Flow(
        build,
        (call("Hello", said, answered), call("A story", cut), call("Bye", [*written("Bye!", "t6"), HANG_UP])),
        lost_by_strands="it stores a transcript's placeholder, not what was said (a MessageUpdatedEvent)",
    )


def call(prompt: str, *batches: list[Any]) -> Callable[[BidiAgent], None]:
    """A step: a call in which the user sends `prompt` and the model emits `batches`, until it hangs up."""

    def step(agent: BidiAgent) -> None:
        async def talk() -> None:
            async with agent:
                await agent.send(prompt)
                async for _ in agent.receive():
                    pass

        agent.model.will_emit(*batches)
        asyncio.run(talk())

    return step


def spoken(role: Any, text: str, content_id: str) -> list[Any]:
    """The events of a transcript."""
    deltas = [bidi.BidiTranscriptDeltaEvent(part, role, content_id) for part in (text[:4], text[4:])]
    return [
        bidi.BidiTranscriptStartEvent(role, content_id),
        *deltas,
        bidi.BidiTranscriptStopEvent(role, content_id),
    ]


def written(text: str, content_id: str) -> list[Any]:
    """The events of a text."""
    start, stop = bidi.BidiTextStartEvent(content_id), bidi.BidiTextStopEvent(content_id)
    return [start, bidi.BidiTextDeltaEvent(text, content_id), stop]


def thought(text: str, content_id: str) -> list[Any]:
    """The events of a reasoning."""
    start, stop = bidi.BidiReasoningStartEvent(content_id), bidi.BidiReasoningStopEvent(content_id)
    return [start, bidi.BidiReasoningDeltaEvent(text, content_id), stop]


# --- Several agents


class AskBeforeWriting(HookProvider):
    """A person is asked before the node `write`."""

    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        registry.add_callback(BeforeNodeCallEvent, self.ask)

    def ask(self, event: BeforeNodeCallEvent) -> None:
        if event.node_id == "write":
            event.interrupt("write", reason={"values": [1, 1.0, True]})


def graph() -> Flow:
    """Three nodes in a row; a person is asked before the second."""

    def build(session_manager: SessionManager) -> Live:
        nodes = {name: node_agent(name, f"{name}: done.") for name in ("research", "write", "check")}
        return row_of(nodes, session_manager, AskBeforeWriting())

    return Flow(build, (lambda live: live("Write about fish"), answer_orchestrator("yes"), lambda live: live("Again")))


def graph_with_an_interrupted_tool() -> Flow:
    """A node's tool asks a person."""

    def build(session_manager: SessionManager) -> Live:
        pay = node_agent("pay", ToolCall("transfer", {"amount": 5.0}), "Paid.", tools=[transfer])
        return row_of({"pay": pay, "tell": node_agent("tell", "Told.")}, session_manager)

    return Flow(build, (lambda live: live("Pay this"), answer_orchestrator("Alice")))


def graph_with_bytes() -> Flow:
    """The same, with bytes in the task, in the node's messages and in what the person is asked."""

    def build(session_manager: SessionManager) -> Live:
        call = ToolCall("transfer", {"amount": 5.0, "proof": True})
        pay = node_agent("pay", call, "Paid.", tools=[transfer])
        return row_of({"pay": pay, "tell": node_agent("tell", "Told.")}, session_manager)

    image = {"image": {"format": "png", "source": {"bytes": b"\x89PNG\x00\xff"}}}
    return Flow(
        build,
        (lambda live: live([{"text": "Pay this"}, image]), answer_orchestrator("Alice")),
        strands_cannot_store=TypeError,
    )


def swarm() -> Flow:
    """One agent hands over to the other, which is interrupted by its tool."""

    def build(session_manager: SessionManager) -> Live:
        context = {"amounts": [1, 1.0, True]}
        hand_over = {"agent_name": "payer", "message": "please pay", "context": context}
        clerk = node_agent("clerk", ToolCall("handoff_to_agent", hand_over), "Handed over.")
        payer = node_agent("payer", ToolCall("transfer", {"amount": 5.0}), "Paid.", tools=[transfer])
        return Swarm([clerk, payer], session_manager=session_manager, id="office")

    return Flow(build, (lambda live: live("Pay 5"), answer_orchestrator("Alice")))


def row_of(nodes: dict[str, Agent], session_manager: SessionManager, *hooks: HookProvider) -> Live:
    """A graph whose nodes run one after the other."""
    builder = GraphBuilder()
    for name, agent in nodes.items():
        builder.add_node(agent, name)
    for one, next_one in itertools.pairwise(nodes):
        builder.add_edge(one, next_one)
    builder.set_entry_point(next(iter(nodes)))
    builder.set_max_node_executions(10)
    builder.set_graph_id("pipeline")
    builder.set_session_manager(session_manager)
    builder.set_hook_providers(list(hooks))
    return builder.build()


def node_agent(name: str, *replies: Any, tools: list[Any] | None = None) -> Agent:
    """An agent inside a graph or a swarm, which says its replies again and again."""

    def answer(messages: Any) -> Any:
        said = sum(message["role"] == "assistant" for message in messages)
        return replies[min(said, len(replies) - 1)]

    model = OfflineScriptedModel(answer)
    return Agent(model=model, agent_id=name, name=name, tools=tools or [], callback_handler=None)


def answer_orchestrator(answer: Any) -> Callable[[Live], None]:
    """A step: a person answers every open interrupt of a graph or a swarm."""

    def step(live: Live) -> None:
        is_open = [one for one in live._interrupt_state.interrupts.values() if one.response is None]
        live([{"interruptResponse": {"interruptId": one.id, "response": answer}} for one in is_open])

    return step


FLOWS: dict[str, Flow] = {
    make.__name__: make()
    for make in (
        plain,
        replaced_state,
        initial_messages,
        tool_use,
        unknown_tool,
        interrupt_in_a_tool,
        interrupt_in_a_hook,
        interrupt_before_all_tools,
        structured_output,
        sliding_window,
        window_per_turn,
        no_window,
        pinned_messages,
        summarizing,
        context_overflow,
        context_overflow_in_tool_result,
        redaction_of_the_user,
        redaction_of_a_retried_prompt,
        redaction_of_a_tool_result,
        redaction_of_the_assistant,
        cancellation_while_streaming,
        cancellation_of_a_tool,
        task_cancellation,
        direct_tool_call,
        failing_model,
        token_limit,
        turn_limit,
        crash_in_a_tool_call,
        background_task,
        background_task_chosen_by_the_model,
        continuation,
        bidi_agent,
        graph,
        graph_with_an_interrupted_tool,
        graph_with_bytes,
        swarm,
    )
}
