"""Multiple agents: each agent of a session has a conversation, a state and figures of its own, whoever else answers."""

import asyncio
from typing import Any

import pytest
from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall
from strands import Agent
from strands.hooks import AfterMultiAgentInvocationEvent, AfterNodeCallEvent, HookRegistry
from strands.multiagent import GraphBuilder
from strands.multiagent.base import MultiAgentBase, MultiAgentResult, Status
from strands.types.exceptions import SessionException
from support.application import Application, both_durabilities
from support.equality import assert_same

from mongodb_session_manager import MongoDBSessionManager


def test_agents_of_one_session_have_separate_histories_and_states(app: Application) -> None:
    manager = app.manager()
    translator = app.agent(manager, "Kaixo.", "Agur.", agent_id="translator", state={"language": "eu"})
    support = app.agent(manager, "Turn it off and on.", agent_id="support", state={"level": 2})
    translator("Hello")
    support("It is broken")
    translator("Goodbye")

    again = app.manager()
    restored = {agent_id: app.agent(again, agent_id=agent_id) for agent_id in ("translator", "support")}

    assert_same(restored["translator"].messages, translator.messages)
    assert_same(restored["support"].messages, support.messages)
    assert restored["translator"].state.get() == {"language": "eu"}
    assert restored["support"].state.get() == {"level": 2}
    assert (len(app.messages("translator")), len(app.messages("support"))) == (4, 2)


def test_a_second_agent_of_the_same_id_is_refused_and_the_first_goes_on(app: Application) -> None:
    manager = app.manager()
    first = app.agent(manager, "One.", "Two.")
    first("1")

    with pytest.raises(SessionException, match="unique"):
        app.agent(manager)
    first("2")

    assert app.dialogue() == [("user", "1"), ("assistant", "One."), ("user", "2"), ("assistant", "Two.")]


def test_agents_and_their_messages_are_counted_without_reading_them(app: Application) -> None:
    manager = app.manager()
    assert (manager.list_agents(), manager.get_message_count("a")) == ([], 0)

    app.agent(manager, "x" * 50_000, agent_id="z")("Hello?")
    app.agent(manager, ToolCall("look_up", {"what": "price"}), "42.", agent_id="a")("Price?")
    with app.recorder.recording() as commands:
        found = manager.list_agents(), manager.get_message_count("z"), manager.get_message_count("a")
        nobody = manager.get_message_count("nobody")

    assert (*found, nobody) == (["z", "a"], 2, 4, 0)
    assert commands.reply_bytes < 4_000


HOSTILE = ["a.b", "$x", "%", "a", "a%2Eb", "b", "$", ".", "a$b", "__proto__", "messages", "ünï¢ode 🐟", " "]


@pytest.mark.slow
@both_durabilities
def test_agents_with_hostile_ids_keep_whole_conversations_apart(app: Application, durability: Any) -> None:
    manager = app.manager(durability=durability)
    live = {}
    for agent_id in HOSTILE:
        agent = app.agent(
            manager,
            ToolCall("look_up", {"what": agent_id}),
            ScriptedReply(text=f"For {agent_id}.", redact_user=f"[{agent_id}]"),
            "Bye.",
            agent_id=agent_id,
        )
        agent(f"I am {agent_id}")
        agent.state.set("me", agent_id)
        agent("Goodbye")
        live[agent_id] = agent

    again = app.manager()
    assert again.list_agents() == HOSTILE
    for agent_id in HOSTILE:
        assert again.get_message_count(agent_id) == 6
        restored = app.agent(again, "Still here.", agent_id=agent_id)
        assert_same(restored.messages, live[agent_id].messages)
        assert restored.state.get() == {"me": agent_id}
        restored("Are you there?")
        assert again.get_message_count(agent_id) == 8
    assert len(app.session()["agents"]) == len(HOSTILE)


@pytest.mark.topology
@both_durabilities
def test_agents_that_answer_at_the_same_time_store_what_they_were_asked_and_said(
    app: Application, durability: Any
) -> None:
    names = [f"agent-{n}" for n in range(6)]
    manager = app.manager(durability=durability)
    agents = [app.agent(manager, f"{name} one.", f"{name} two.", agent_id=name) for name in names]

    async def together() -> None:
        for n in (1, 2):
            await asyncio.gather(*(agent.invoke_async(f"{agent.agent_id} asks {n}") for agent in agents))

    asyncio.run(together())

    for name in names:
        assert app.dialogue(name) == [
            ("user", f"{name} asks 1"),
            ("assistant", f"{name} one."),
            ("user", f"{name} asks 2"),
            ("assistant", f"{name} two."),
        ]


@pytest.mark.topology
def test_agents_of_one_session_in_two_processes_do_not_touch_each_other(app: Application) -> None:
    translator = app.agent(app.manager(), "Kaixo.", "Agur.", agent_id="translator")
    support = app.agent(app.manager(), "Turn it off.", "And on.", agent_id="support")
    for prompt in ("1", "2"):
        translator.state.set("last", prompt)
        translator(prompt)
        support(prompt)

    assert app.session()["agent_ids"] == ["translator", "support"]
    assert [text for _, text in app.dialogue("translator")] == ["1", "Kaixo.", "2", "Agur."]
    assert [text for _, text in app.dialogue("support")] == ["1", "Turn it off.", "2", "And on."]
    assert app.session()["agents"]["support"]["agent_data"]["state"] == {}


def test_each_agent_has_metrics_of_its_own_and_the_session_their_sum(app: Application) -> None:
    def reply(tokens: int) -> ScriptedReply:
        usage = {"inputTokens": tokens, "outputTokens": 2 * tokens, "totalTokens": 3 * tokens}
        return ScriptedReply(text="Well.", usage=usage, latency_ms=100)

    manager = app.manager()
    app.agent(manager, reply(10), agent_id="translator")("1")
    app.agent(manager, reply(1), agent_id="support")("1")

    assert manager.get_metrics_summary("translator").tokens.total == 30
    assert manager.get_metrics_summary("support").tokens.total == 3
    summary = manager.get_metrics_summary()
    assert (summary.tokens.total, summary.messages) == (33, 4)
    assert {name: agent.tokens.total for name, agent in summary.agents.items()} == {"translator": 30, "support": 3}


def test_a_redaction_reaches_the_message_of_one_agent_and_no_other(app: Application) -> None:
    manager = app.manager()
    agents = {name: app.agent(manager, "Noted.", agent_id=name) for name in ("translator", "support")}
    for agent in agents.values():
        agent("My card is 4929.")
    manager.redact_latest_message({"role": "assistant", "content": [{"text": "[removed]"}]}, agents["support"])

    assert app.dialogue("support")[-1] == ("assistant", "[removed]")
    assert app.dialogue("translator")[-1] == ("assistant", "Noted.")


def test_a_graph_of_agents_and_an_agent_share_a_session(app: Application) -> None:
    manager = app.manager()
    app.agent(manager, "Hello.", agent_id="host")("Hello?")
    builder = GraphBuilder()
    for name in ("first", "second"):
        node = Agent(name=name, model=OfflineScriptedModel([f"{name} done."]), callback_handler=None)
        builder.add_node(node, name)
    builder.add_edge("first", "second")
    builder.set_graph_id("pipeline")
    builder.set_max_node_executions(4)
    builder.set_session_manager(manager)
    builder.build()("Go.")

    assert manager.list_agents() == ["host"]
    state = manager.session_repository.read_multi_agent("s", "pipeline")
    assert state is not None
    assert sorted(state["completed_nodes"]) == ["first", "second"]
    assert app.dialogue("host") == [("user", "Hello?"), ("assistant", "Hello.")]


class Pipeline(MultiAgentBase):
    """An orchestrator of one's own, which has its session manager initialize it, as Strands' interface says."""

    def __init__(self, manager: MongoDBSessionManager) -> None:
        self.id = "pipeline"
        self.done: list[str] = []
        self.hooks = HookRegistry()
        self.hooks.add_hook(manager)
        manager.initialize_multi_agent(self)

    def serialize_state(self) -> dict[str, Any]:
        return {"done": list(self.done)}

    def deserialize_state(self, payload: dict[str, Any]) -> None:
        self.done = payload["done"]

    async def invoke_async(self, task: Any, invocation_state: Any = None, **_: Any) -> MultiAgentResult:
        self.done.append(task)
        await self.hooks.invoke_callbacks_async(AfterNodeCallEvent(self, task))
        await self.hooks.invoke_callbacks_async(AfterMultiAgentInvocationEvent(self))
        return MultiAgentResult(status=Status.COMPLETED)


def test_an_orchestrator_of_ones_own_is_stored_without_strands_event_of_its_beginning(app: Application) -> None:
    pipeline = Pipeline(app.manager())
    asyncio.run(pipeline.invoke_async("one"))
    asyncio.run(pipeline.invoke_async("two"))

    assert Pipeline(app.manager()).done == ["one", "two"]
