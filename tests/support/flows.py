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

import pytest
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
Step: TypeAlias = Callable[[Live], None]


@dataclass(frozen=True)
class Flow:
    """One way through Strands.

    Args:
        build: Makes the agent on a session manager; the first time and in every later process.
        steps: What happens, one after the other.
        lost_by_strands: Why `FileSessionManager` restores something else than what was live, if it does.
        strands_cannot_store: What `FileSessionManager` raises, if it cannot store this flow at all.
    """

    build: Callable[[SessionManager], Live]
    steps: tuple[Step, ...]
    lost_by_strands: str = ""
    strands_cannot_store: type[Exception] | None = None


def flow(build: Callable[[SessionManager], Live], *steps: Step, **limits: Any) -> Flow:
    """A flow of these steps."""
    return Flow(build, steps, **limits)


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


def say(prompt: Any, *replies: Any, state: dict[str, Any] | None = None, **options: Any) -> Step:
    """A step: the application sets `state`, the user says `prompt`, the model answers with `replies`."""

    def step(agent: Agent) -> None:
        for key, value in (state or {}).items():
            agent.state.set(key, value)
        agent.model.will_reply(*replies)
        agent(prompt, **options)

    return step


def fails(step: Step, error: type[Exception] = Exception, match: str | None = None) -> Step:
    """A step: what another does, which the application sees fail."""

    def failing(live: Live) -> None:
        with pytest.raises(error, match=match):
            step(live)

    return failing


# --- Tools

IMAGE = {"image": {"format": "png", "source": {"bytes": b"\x89PNG\r\n\x1a\n\x00\xff"}}}


@tool
def measure(depth: float, repeat: bool = False) -> dict[str, Any]:
    """Measure something and return values of every type."""
    numbers = {"int": 1, "float": 1.0, "bool": True, "none": None, "big": 2**53 + 1, "depth": depth}
    values = {**numbers, "list": [1, [2.0, {}]]}
    return {"status": "success", "content": [{"json": values}, {"text": "ünï¢ode ✓ 🐟"}, IMAGE]}


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


@tool(context=True)
def stop(tool_context: ToolContext) -> str:
    """Stop the turn."""
    tool_context.agent.cancel()
    return "stopped"


# --- Steps and hooks of one flow


def replace_the_state(agent: Agent) -> None:
    agent.state = AgentState({"b": [2, 2.0, True]})
    say("And now?", "Still here.")(agent)


def ask_twice(event: BeforeToolCallEvent) -> None:
    event.interrupt("first", reason="really?")
    if event.interrupt("second", reason={"n": [1, 1.0, True]}) != "yes":
        event.cancel_tool = "not approved"


def ask_for_all_tools(event: BeforeToolsEvent) -> None:
    if event.interrupt("all", reason={"n": [1, 1.0, True]}) != "yes":
        event.cancel = "not approved"


def answer_interrupts(answer: Any, *replies: Any) -> Step:
    """A step: a person answers every open interrupt; of an agent, which then replies, or of an orchestrator."""

    def step(live: Live) -> None:
        if replies:
            live.model.will_reply(*replies)
        is_open = [one for one in live._interrupt_state.interrupts.values() if one.response is None]
        live([{"interruptResponse": {"interruptId": one.id, "response": answer}} for one in is_open])

    return step


class Person(BaseModel):
    """Who somebody is."""

    name: str
    age: int
    height: float


def repeat_a_prompt_that_failed(agent: Agent) -> None:
    prompt = [{"role": "user", "content": [{"text": "My PIN is 1234"}]}]
    agent.model.will_reply(ConnectionError("provider is down"), BLOCKED)
    with pytest.raises(ConnectionError):
        agent(prompt)
    agent(prompt)


def stop_in_the_middle(agent: Agent) -> None:
    async def stream() -> None:
        async for event in agent.stream_async("Tell a long story"):
            if "data" in event:
                agent.cancel(message="Stopped by Alice")

    agent.model.will_reply("Once upon a time, there was a fish that could not swim. " * 3)
    asyncio.run(stream())


def stop_before_it_begins(agent: Agent) -> None:
    stopped = threading.Event()
    stopped.set()
    say("Stop at once", "Never said.", cancel_signal=stopped)(agent)


def cancel_the_task(agent: Agent) -> None:
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


def fail(event: BeforeToolCallEvent) -> None:
    raise ConnectionError("the hook failed")


def go_on(event: AfterInvocationEvent) -> None:
    if not event.agent.state.get("went_on"):
        event.agent.state.set("went_on", True)
        event.resume = "And then?"


# --- A bidirectional agent


def voice_agent(session_manager: SessionManager) -> BidiAgent:
    return BidiAgent(ScriptedBidiModel(), tools=[remember], agent_id="voice", session_manager=session_manager)


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
    start, stop = bidi.BidiTranscriptStartEvent(role, content_id), bidi.BidiTranscriptStopEvent(role, content_id)
    return [start, *deltas, stop]


def written(text: str, content_id: str) -> list[Any]:
    """The events of a text."""
    start, stop = bidi.BidiTextStartEvent(content_id), bidi.BidiTextStopEvent(content_id)
    return [start, bidi.BidiTextDeltaEvent(text, content_id), stop]


def thought(text: str, content_id: str) -> list[Any]:
    """The events of a reasoning."""
    start, stop = bidi.BidiReasoningStartEvent(content_id), bidi.BidiReasoningStopEvent(content_id)
    return [start, bidi.BidiReasoningDeltaEvent(text, content_id), stop]


CALLED = bidi.BidiToolUseBlocksEvent([{"toolUseId": "1", "name": "remember", "input": {"key": "k", "value": 1.0}}])
SAID = [bidi.BidiResponseStartEvent("r1"), *spoken("user", "Remember it", "t1"), *thought("I will.", "t2"), CALLED]
ANSWERED = [*written("Remembered.", "t3"), *spoken("assistant", "Remembered.", "t4"), HANG_UP]
CUT = [*spoken("assistant", "Once upon", "t5")[:2], HANG_UP]


# --- Several agents


class AskBeforeWriting(HookProvider):
    """A person is asked before the node `write`."""

    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        registry.add_callback(BeforeNodeCallEvent, self.ask)

    def ask(self, event: BeforeNodeCallEvent) -> None:
        if event.node_id == "write":
            event.interrupt("write", reason={"values": [1, 1.0, True]})


def writers(session_manager: SessionManager) -> Live:
    """A graph of three nodes; a person is asked before the second."""
    nodes = {name: node_agent(name, f"{name}: done.") for name in ("research", "write", "check")}
    return row_of(nodes, session_manager, AskBeforeWriting())


def payers(**payment: Any) -> Callable[[SessionManager], Live]:
    """A graph in which the first node's tool asks a person."""

    def build(session_manager: SessionManager) -> Live:
        pay = node_agent("pay", ToolCall("transfer", payment), "Paid.", tools=[transfer])
        return row_of({"pay": pay, "tell": node_agent("tell", "Told.")}, session_manager)

    return build


def office(session_manager: SessionManager) -> Live:
    """A swarm in which one agent hands over to the other, whose tool asks a person."""
    hand_over = {"agent_name": "payer", "message": "please pay", "context": {"amounts": [1, 1.0, True]}}
    clerk = node_agent("clerk", ToolCall("handoff_to_agent", hand_over), "Handed over.")
    payer = node_agent("payer", ToolCall("transfer", {"amount": 5.0}), "Paid.", tools=[transfer])
    return Swarm([clerk, payer], session_manager=session_manager, id="office")


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


# --- The flows

STATE = {"int": 1, "float": 1.0, "bool": True, "none": None, "dotted.key": {"$set": [0, 0.0, False, ""]}, "": {}}
EARLIER = [
    {"role": "user", "content": [{"text": "Earlier"}]},
    {"role": "assistant", "content": [{"text": "Yes."}]},
]
USAGE = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15, "cacheReadInputTokens": 7}
THOUGHTFUL = ScriptedReply(reasoning="Blue, I think.", redacted_reasoning=b"\x00\x01\xfe", text="It is blue.")
FULL = ContextWindowOverflowException("too long")
BLOCKED = ScriptedReply(text="I cannot say.", redact_user="[redacted]")
BAD = ScriptedReply(text="Something bad.", redact_user="[user]", redact_assistant="[assistant]")
ALICE = ToolCall("Person", {"name": "Alice", "age": 30, "height": 2.0})
THANKS = say("Thanks", "You are welcome.")
DOUBLED = "a continuation extends the last message; Strands' managers store it a second time (harness-sdk#4420)"


def measuring(depth: float, **options: Any) -> ToolCall:
    return ToolCall("measure", {"depth": depth, **options})


def remembering(key: str, value: Any) -> ToolCall:
    return ToolCall("remember", {"key": key, "value": value})


BOTH = ScriptedReply(tool_calls=(remembering("a", 1.0), remembering("b", None)))


FLOWS: dict[str, Flow] = {
    # Text, an image, reasoning (with bytes), citations of state; several turns.
    "plain": flow(
        agent_with(state=STATE),
        say("Hello ünï¢ode 🐟", ScriptedReply(text="Hello, how are you today?", usage=USAGE)),
        say([{"text": "What is this?"}, IMAGE], THOUGHTFUL),
        say("And now?", "Still blue.", state={"turns": {"count": 2, "share": 2.0, "done": False}}),
    ),
    # The application replaces the agent's state as a whole, by `agent.state = AgentState(…)`.
    "replaced_state": flow(
        agent_with(state=lambda: {"a": 1}),
        say("Hello", "Hi."),
        replace_the_state,
        THANKS,
        lost_by_strands="it compares versions, and the new object counts from 0 as the old one did",
    ),
    # An agent that is given a history: `Agent(messages=[…])`.
    "initial_messages": flow(
        agent_with(messages=lambda: copy.deepcopy(EARLIER)),
        lambda _: None,
        say("Go on", "I do."),
        lost_by_strands="it gives these messages a tracking id at the first invocation, after they were stored",
    ),
    # Tools that return every type, change the state, and fail.
    "tool_use": flow(
        agent_with(measure, remember, broken),
        say(
            "Measure it",
            ScriptedReply(text="Let me see.", tool_calls=(measuring(2.0, repeat=True), remembering("k", [1, 1.0]))),
            "Measured.",
        ),
        say("Again", ToolCall("broken", {"reason": "no such thing"}), "That failed."),
        say("Remember more", remembering("n", {"deep": {"er": [True, 1]}}), "Done."),
    ),
    # The model asks for a tool that does not exist, by a name that no tool may have.
    "unknown_tool": flow(
        agent_with(measure),
        say("Try", ToolCall("no such tool!", {"a": 1}), "It does not exist."),
        say("Then stop", "Stopped."),
    ),
    # A tool asks a person and the agent stops; another tool of the same message has finished by then.
    "interrupt_in_a_tool": flow(
        agent_with(transfer, remember),
        say(
            "Transfer 5",
            ScriptedReply(tool_calls=(ToolCall("transfer", {"amount": 5.0, "proof": True}), remembering("k", 1))),
        ),
        answer_interrupts("Alice", "Transferred."),
        THANKS,
    ),
    # A hook asks a person before every tool, and asks twice.
    "interrupt_in_a_hook": flow(
        agent_with(remember, hooks=[ask_twice]),
        say("Remember", remembering("k", 1.0)),
        answer_interrupts("yes"),
        answer_interrupts("no", "It was not approved."),
        THANKS,
    ),
    # A hook asks a person once for all tools of a message, none of which has run by then.
    "interrupt_before_all_tools": flow(
        agent_with(remember, hooks=[ask_for_all_tools]),
        say("Remember both", BOTH),
        answer_interrupts("yes", "Done."),
        say("Again", BOTH),
        answer_interrupts("no", "It was not approved."),
    ),
    # The model answers with structured output, at once and only when it is told to.
    "structured_output": flow(
        agent_with(),
        say("Alice is 30", ALICE, structured_output_model=Person),
        say("Again", "She is Alice.", ALICE, structured_output_model=Person),
        THANKS,
    ),
    # A window of four messages, over turns with and without tools.
    "sliding_window": flow(
        agent_with(measure, conversation_manager=lambda: SlidingWindowConversationManager(window_size=4)),
        say("One", "1"),
        say("Two", measuring(1), "2"),
        say("Three", "3"),
        say("Four", measuring(4.0), measuring(5), "4"),
        say("Five", "5"),
    ),
    # A window that is applied before model calls, so that it counts them.
    "window_per_turn": flow(
        agent_with(measure, conversation_manager=lambda: SlidingWindowConversationManager(window_size=3, per_turn=2)),
        say("One", "1"),
        say("Two", measuring(1), "2"),
        say("Three", "3"),
        say("Four", "4"),
    ),
    # No conversation manager at work.
    "no_window": flow(agent_with(conversation_manager=NullConversationManager), say("One", "1"), say("Two", "2")),
    # The first message is pinned; the window moves behind it.
    "pinned_messages": flow(
        agent_with(conversation_manager=lambda: SlidingWindowConversationManager(window_size=4, pin_first=1)),
        *(say(f"Question {n}", f"Answer {n}") for n in range(5)),
        lost_by_strands="it restores the newest messages by their number; it does not know that an old one stays",
    ),
    # The context overflows, the older messages are summarized; twice.
    "summarizing": flow(
        agent_with(
            conversation_manager=lambda: SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2)
        ),
        say("One", "1"),
        say("Two", "2"),
        say("Three", FULL, "Summary of one and two.", "3"),
        say("Four", "4"),
        say("Five", FULL, "Summary of the summary, three and four.", "5"),
        say("Six", "6"),
    ),
    # The context overflows and the window drops messages.
    "context_overflow": flow(
        agent_with(conversation_manager=lambda: SlidingWindowConversationManager(window_size=20)),
        say("One", "1"),
        say("Two", "2"),
        say("Three", FULL, FULL, "3"),
        say("Four", "4"),
    ),
    # The context overflows because of a long tool result, which the window shortens in place.
    "context_overflow_in_tool_result": flow(
        agent_with(long_report, conversation_manager=lambda: SlidingWindowConversationManager(window_size=20)),
        say("Report", ToolCall("long_report", {"lines": 200}), FULL, "Long."),
        THANKS,
        lost_by_strands="the window shortens what the model sees; what is stored is the original",
    ),
    # A guardrail replaces what the user said; the conversation goes on.
    "redaction_of_the_user": flow(
        agent_with(),
        say("Hello", "Hi."),
        say("My PIN is 1234", BLOCKED),
        say("Sorry", "No problem."),
    ),
    # The application repeats a message that failed: one object, twice in the history, both redacted.
    "redaction_of_a_retried_prompt": flow(
        agent_with(),
        say("Hello", "Hi."),
        repeat_a_prompt_that_failed,
        say("Sorry", "No problem."),
    ),
    # A guardrail replaces what a tool returned.
    "redaction_of_a_tool_result": flow(
        agent_with(measure),
        say("Measure", measuring(1.0), BLOCKED),
        say("Why?", "A guardrail stopped it."),
    ),
    # A guardrail replaces what the user and what the model said.
    "redaction_of_the_assistant": flow(agent_with(), say("Say something bad", BAD), say("Hello", "Hi.")),
    # Somebody stops the answer: before it begins, and in its middle.
    "cancellation_while_streaming": flow(
        agent_with(),
        say("Hello", "Hi."),
        stop_in_the_middle,
        stop_before_it_begins,
        say("Are you there?", "Yes."),
    ),
    # A tool stops the turn that it belongs to.
    "cancellation_of_a_tool": flow(
        agent_with(stop),
        say("Stop yourself", ToolCall("stop")),
        say("Go on", "I do."),
    ),
    # The web server cancels the request's task while the answer is streaming.
    "task_cancellation": flow(agent_with(), say("Hello", "Hi."), cancel_the_task, say("Are you there?", "Yes.")),
    # The application calls a tool itself, which is recorded as four messages.
    "direct_tool_call": flow(
        agent_with(measure, remember),
        lambda agent: agent.tool.measure(depth=1.0, user_message_override="Measure it, please"),
        say("And?", "It is measured."),
        lambda agent: agent.tool.remember(key="k", value={"a": [1, 1.0, True]}),
        lambda agent: agent.tool.measure(depth=2, record_direct_tool_call=False),
        THANKS,
    ),
    # The model's provider fails; the user's message stays, the next turn goes on.
    "failing_model": flow(
        agent_with(),
        say("Hello", "Hi."),
        fails(
            say("Hello?", ScriptedReply(text="I was about to", error=ConnectionError("provider is down"))),
            ConnectionError,
        ),
        say("And now?", "Here I am."),
    ),
    # The model's answer is cut at its token limit, in the middle of a tool call.
    "token_limit": flow(
        agent_with(measure),
        fails(
            say("Measure", ScriptedReply(text="I", tool_calls=(measuring(1),), stop_reason="max_tokens")),
            MaxTokensReachedException,
        ),
        say("Go on", "Done."),
    ),
    # The application limits the turns of an invocation, so that it ends behind a tool result.
    "turn_limit": flow(
        agent_with(measure),
        say("Measure", measuring(1), limits={"turns": 1}),
        say("Go on", "Done."),
    ),
    # An error leaves a tool call without its result; Strands repairs that at the next prompt.
    "crash_in_a_tool_call": flow(
        agent_with(measure, hooks=[fail]),
        fails(say("Measure", measuring(1)), match="the hook failed"),
        say("What happened?", "It failed."),
    ),
    # A tool runs in the background; its result arrives as a continuation of the same invocation.
    "background_task": flow(
        agent_with(slow_report, background_tasks={"always": ["slow_report"]}),
        say("Report on fish", ToolCall("slow_report", {"subject": "fish"}), "It is on its way.", "Here it is."),
        THANKS,
        lost_by_strands=DOUBLED,
    ),
    # The model itself chooses the background, by an argument that Strands takes out of the call.
    "background_task_chosen_by_the_model": flow(
        agent_with(slow_report, background_tasks={"agentic": ["slow_report"]}),
        say(
            "Report on fish",
            ToolCall("slow_report", {"subject": "fish", "_background_execution": True}),
            "It is on its way.",
            "Here it is.",
        ),
        THANKS,
        lost_by_strands=DOUBLED,
    ),
    # A hook goes on with a new prompt after the turn has ended.
    "continuation": flow(
        agent_with(hooks=[go_on]),
        say("Tell a story", "Once upon a time.", "The end."),
        THANKS,
    ),
    # Text, transcripts of both speakers, reasoning, tools; and a call that is cut in a sentence.
    "bidi_agent": flow(
        voice_agent,
        call("Hello", SAID, ANSWERED),
        call("A story", CUT),
        call("Bye", [*written("Bye!", "t6"), HANG_UP]),
        lost_by_strands="it stores a transcript's placeholder, not what was said (a MessageUpdatedEvent)",
    ),
    # Three nodes in a row; a person is asked before the second.
    "graph": flow(
        writers,
        lambda live: live("Write about fish"),
        answer_interrupts("yes"),
        lambda live: live("Again"),
    ),
    # A node's tool asks a person.
    "graph_with_an_interrupted_tool": flow(
        payers(amount=5.0),
        lambda live: live("Pay this"),
        answer_interrupts("Alice"),
    ),
    # The same, with bytes in the task, in the node's messages and in what the person is asked.
    "graph_with_bytes": flow(
        payers(amount=5.0, proof=True),
        lambda live: live([{"text": "Pay this"}, IMAGE]),
        answer_interrupts("Alice"),
        strands_cannot_store=TypeError,
    ),
    # One agent hands over to the other, which is interrupted by its tool.
    "swarm": flow(office, lambda live: live("Pay 5"), answer_interrupts("Alice")),
}
