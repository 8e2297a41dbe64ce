"""Which of Strands' events are followed, and when the unit of work is committed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from strands import Agent
from strands.bidi import hooks as bidi_hooks
from strands.hooks import HookRegistry, events
from strands.hooks.registry import HookOrder
from strands.session.session_manager import SessionManager

from .._agents.follower import AgentFollower
from .._agents.interventions import watch_stream
from .._agents.outbox import Sending
from .._client.executor import alone_on_a_private_loop
from .._model.guardrails import facts_of_config
from . import behind_turns
from .outboxes import Outboxes, add_note

try:
    from strands.middleware import InvokeModelStage
except ImportError:  # Strands keeps it to itself before 1.62.
    InvokeModelStage = None  # type: ignore[assignment]


class StrandsEvents:
    """Follows the events of one manager's agents, graphs and swarms.

    Callbacks that store are coroutines, so no event loop waits for MongoDB.

    Args:
        outboxes: The manager's, with its agents, graphs and swarms.
        manager: Asked to restore an agent that is built, and to redact in an agent's conversation.
    """

    def __init__(self, outboxes: Outboxes, manager: SessionManager) -> None:
        self._session = outboxes.session
        self._follower = outboxes.agents.follower
        self._orchestrators = outboxes.orchestrators
        self._manager = manager

    def register(self, registry: HookRegistry, callbacks: _Callbacks | None = None) -> None:
        """Follow the events of an agent, graph or swarm: all that there are, or these."""
        for event_type, callback, order in callbacks or _CALLBACKS:
            registry.add_callback(event_type, getattr(self, callback), order=order)

    def watch_guardrail(self, agent: Agent) -> None:
        """Look in the stream of the agent's model for what its guardrail says."""
        agent.add_middleware(InvokeModelStage, self._watch_model)

    def _agent_initialized(self, event: events.AgentInitializedEvent) -> None:
        self._manager.initialize(event.agent)
        if not isinstance(event.agent, Agent):
            self.register(event.agent.hooks, _BIDI_CALLBACKS)

    def _turn_begins(self, event: events.BeforeInvocationEvent) -> None:
        self._follower(event.agent).begin_turn()

    def _model_call_begins(self, event: events.BeforeModelCallEvent) -> None:
        self._follower(event.agent).model_call_begins()

    def _model_call_ends(self, event: events.AfterModelCallEvent) -> None:
        self._follower(event.agent).model_call_ends(event)

    def _tool_call_begins(self, event: events.BeforeToolCallEvent) -> None:
        self._follower(event.agent).tool_call_begins(event.tool_use["toolUseId"], event.agent)

    def _tool_call_ends(self, event: events.AfterToolCallEvent) -> None:
        self._follower(event.agent).tool_call_ends(event.tool_use["toolUseId"], event.tool_use["name"])

    async def _message_added(self, event: events.MessageAddedEvent) -> None:
        follower = self._follower(event.agent)
        follower.message_added(event.message, event.agent)
        if not follower.waits(event.agent):
            await self._commit(follower, event.agent)

    async def _message_updated(self, event: events.MessageUpdatedEvent) -> None:
        follower = self._follower(event.agent)
        follower.message_updated(event.tracking_id, event.message, event.agent)
        if not follower.waits(event.agent):
            await self._commit(follower, event.agent)

    async def _commit(self, follower: AgentFollower, agent: Any) -> None:
        """Stage what has changed in the agent and commit. What cannot be stored does not keep the rest from it."""
        try:
            follower.stage_agent(agent)
        finally:
            if alone_on_a_private_loop():
                follower.work.send_at_once()
            else:
                await _settle(follower.work.send())

    async def _turn_ended(self, event: Any) -> None:
        follower = self._follower(event.agent)
        error = follower.end_turn(event.agent)
        try:
            await self._commit(follower, event.agent)
        except Exception as failure:
            # The turn itself failed: that error goes on its way, and what is unsaved stays in the unit of work.
            if error is None:
                raise
            add_note(error, failure)
        else:
            behind_turns.begin(self._session, follower.work)

    async def _multi_agent_initialized(self, event: events.MultiAgentInitializedEvent) -> None:
        stored = await self._session.store.commands.executor.run(lambda: self._orchestrators.read(event.source))
        await _settle(self._orchestrators.begin(event.source, stored))

    async def _multi_agent_changed(self, event: Any) -> None:
        await _settle(self._orchestrators.stage(event.source))

    def _watch_model(
        self, context: Any, next_fn: Callable[[Any], AsyncGenerator[Any, None]]
    ) -> AsyncGenerator[Any, None]:
        agent = context.agent
        guardrail = self._follower(agent).guardrail

        def redact_prompt(text: str) -> None:
            content: Any = {"role": "user", "content": [{"text": text}]}
            # Named, as Strands does: another may have been appended by hand behind it.
            content["tracking_id"] = agent.messages[-1].get("tracking_id")
            self._manager.redact_latest_message(content, agent)

        guardrail.watch_call(_guardrail_of(context.model))
        # Handed on as it is: it must be this generator that is closed when nobody listens any more.
        return watch_stream(next_fn(context), guardrail.said, redact_prompt)


async def _settle(sending: Sending | None) -> None:
    if sending is not None:
        await sending.settle()


def has_guardrail(agent: Any) -> bool:
    """Return whether the agent's model has a guardrail whose words can be found in its stream."""
    return InvokeModelStage is not None and isinstance(agent, Agent) and bool(_guardrail_of(agent.model))


def _guardrail_of(model: Any) -> dict[str, Any]:
    """Return what a model's configuration says of its guardrail; ``{}`` if it has none."""
    get_config = getattr(model, "get_config", None)
    return facts_of_config(None if get_config is None else get_config())


_Callbacks = Sequence[tuple[type[Any], str, float]]

# Which method follows which event. `SDK_FIRST` is called before all other callbacks, `SDK_LAST` after them.
_CALLBACKS: _Callbacks = (
    (events.AgentInitializedEvent, "_agent_initialized", HookOrder.DEFAULT),
    # Last, so that a callback that fails before it leaves no turn open.
    (events.BeforeInvocationEvent, "_turn_begins", HookOrder.SDK_LAST),
    # The clocks run as close to the call as they can.
    (events.BeforeModelCallEvent, "_model_call_begins", HookOrder.SDK_LAST),
    (events.AfterModelCallEvent, "_model_call_ends", HookOrder.SDK_FIRST),
    (events.BeforeToolCallEvent, "_tool_call_begins", HookOrder.SDK_LAST),
    (events.AfterToolCallEvent, "_tool_call_ends", HookOrder.SDK_FIRST),
    (events.MessageAddedEvent, "_message_added", HookOrder.DEFAULT),
    # Last, so that what other callbacks change in the agent's state is stored with the turn.
    (events.AfterInvocationEvent, "_turn_ended", HookOrder.SDK_LAST),
    (events.MultiAgentInitializedEvent, "_multi_agent_initialized", HookOrder.DEFAULT),
    # An orchestrator of one's own may be initialized by `initialize_multi_agent`, and no event tells of that.
    (events.AfterNodeCallEvent, "_multi_agent_changed", HookOrder.SDK_LAST),
    (events.AfterMultiAgentInvocationEvent, "_multi_agent_changed", HookOrder.SDK_LAST),
)
# What else there is to follow in a `BidiAgent`: registered when one of these is built. An `Agent` is built at each
# request, and there registering a callback costs more than calling it.
_BIDI_CALLBACKS: _Callbacks = (
    (events.MessageUpdatedEvent, "_message_updated", HookOrder.DEFAULT),
    (bidi_hooks.BidiResponseStopEvent, "_turn_ended", HookOrder.SDK_LAST),
    (bidi_hooks.BidiAgentStopEvent, "_turn_ended", HookOrder.SDK_LAST),
)
