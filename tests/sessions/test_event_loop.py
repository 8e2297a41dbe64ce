"""The event loop never waits for MongoDB: while one person's message is stored, everybody else's stream goes on.

Every command is made to take 200 ms. A heart beats on the loop meanwhile; a command that held up the loop would be one
during which the heart did not beat at all. So what is asserted is an order of events, not a duration.
"""

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pymongo
import pytest
from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall
from pymongo import monitoring
from pymongo.database import Database
from pymongo.errors import PyMongoError
from strands import Agent
from strands.bidi import BidiAgent
from strands.bidi.hooks import BidiAgentStopEvent, BidiResponseStopEvent
from strands.hooks import AfterInvocationEvent, HookRegistry, MessageAddedEvent, MessageUpdatedEvent
from strands.hooks.events import AfterMultiAgentInvocationEvent, AfterNodeCallEvent, MultiAgentInitializedEvent
from strands.multiagent import GraphBuilder, Swarm
from support.application import APP_NAME, Application, both_durabilities
from support.bidi_model import ScriptedBidiModel
from support.histories import SESSIONS, by_hand
from support.running import run_python

from mongodb_session_manager import MongoDBSessionManager

SLOW_MS = 200
# What is watched, and made slow.
COMMANDS = ("find", "getMore", "aggregate", "update", "insert", "delete", "createIndexes")
# The heart beats every 2 ms if it can. A busy machine may let it beat less often; a loop that waits lets it not at all.
ENOUGH_BEATS = 3

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


@dataclass
class Observed:
    """One command: where it ran, in whose context, and how often the heart beat meanwhile."""

    name: str
    command: dict[str, Any]
    thread: threading.Thread
    request_id: str
    beats_before: int
    beats: int | None = None


class Heart(monitoring.CommandListener):
    """Beats on the event loop, and notes for each command of the application how often it beat meanwhile."""

    def __init__(self) -> None:
        self.commands: list[Observed] = []
        self._beats = 0
        self._open: dict[int, Observed] = {}

    async def beat(self) -> None:
        while True:
            self._beats += 1
            await asyncio.sleep(0.002)

    @property
    def in_flight(self) -> int:
        return len(self._open)

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name in COMMANDS:
            seen = Observed(
                event.command_name,
                dict(event.command),
                threading.current_thread(),
                request_id.get(),
                self._beats,
            )
            self._open[event.request_id] = seen
            self.commands.append(seen)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        self._ended(event.request_id)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        self._ended(event.request_id)

    def _ended(self, request_id: int) -> None:
        seen = self._open.pop(request_id, None)
        if seen is not None:
            seen.beats = self._beats - seen.beats_before


@dataclass
class Service(Application):
    """A web service with one event loop, and a heart."""

    heart: Heart = field(default_factory=Heart)

    def __post_init__(self) -> None:
        self.listeners = [self.heart]
        super().__post_init__()

    def run_slowly(self, work: Awaitable[Any], milliseconds: int = SLOW_MS) -> list[Observed]:
        """Run something on an event loop while the database is slow; return its commands."""

        async def main() -> None:
            beating = asyncio.create_task(self.heart.beat())
            try:
                await work
            finally:
                beating.cancel()

        self.heart.commands.clear()
        with self.slow(COMMANDS, milliseconds):
            asyncio.run(main())
        return list(self.heart.commands)


@pytest.fixture
def service(server: Any, database: Database[Any]) -> Iterator[Service]:
    with contextlib.closing(Service(server.uri, database)) as service:
        yield service


def graph_of(manager: MongoDBSessionManager) -> Any:
    builder = GraphBuilder()
    builder.add_node(Agent(model=OfflineScriptedModel(["Found."]), agent_id="r", callback_handler=None), "research")
    builder.set_graph_id("pipeline")
    builder.set_max_node_executions(10)
    builder.set_session_manager(manager)
    return builder.build()


def swarm_of(manager: MongoDBSessionManager) -> Swarm:
    clerk = Agent(model=OfflineScriptedModel(["Done."]), agent_id="clerk", name="clerk", callback_handler=None)
    return Swarm([clerk], session_manager=manager, id="office")


def assert_the_loop_went_on(commands: list[Observed], expected: list[str]) -> None:
    """Each command was sent, from another thread than the loop's, and the heart beat while it was under way."""
    assert [command.name for command in commands] == expected
    for command in commands:
        assert command.thread is not threading.main_thread(), command.name
        assert command.beats is not None, command.name
        assert command.beats >= ENOUGH_BEATS, f"{command.name} held up the event loop"


async def consume(agent: Agent, prompt: Any) -> None:
    async for _ in agent.stream_async(prompt):
        pass


# --- turns


@pytest.mark.slow
@pytest.mark.topology
@both_durabilities
def test_everybody_elses_stream_goes_on_while_a_turn_is_stored(service: Service, durability: Any) -> None:
    agent = service.agent(
        service.manager(durability=durability), ToolCall("look_up", {"what": "price"}), "It is 42, as ever."
    )

    commands = service.run_slowly(consume(agent, "What is the price?"))

    assert_the_loop_went_on(commands, ["update"] * (4 if durability == "message" else 1))
    assert len(service.dialogue()) == 4


@pytest.mark.slow
def test_a_whole_request_from_open_to_close_never_holds_up_the_loop(service: Service) -> None:
    service.agent(service.manager(), "Hello.")("Hello?")

    async def request() -> None:
        async with await service.factory().open("s", agent_id="a") as manager:
            agent = service.agent(manager, "Fine.")
            await consume(agent, "How are you?")
            agent.state.set("asked", True)

    commands = service.run_slowly(request())

    assert_the_loop_went_on(commands, ["find", "update", "update", "update"])
    assert service.record()["agent_data"]["state"] == {"asked": True}


@pytest.mark.slow
@pytest.mark.topology
@pytest.mark.new_database
def test_the_first_request_of_a_process_and_of_a_session_does_not_hold_up_the_loop_either(service: Service) -> None:
    async def request() -> None:
        manager = await service.factory().open("s", agent_id="a")
        await consume(service.agent(manager, "Hello."), "Hello?")

    commands = service.run_slowly(request())

    assert_the_loop_went_on(commands, ["createIndexes", "find", "update", "update", "update"])


@pytest.mark.slow
@both_durabilities
def test_a_guardrails_redaction_in_a_stream_does_not_hold_up_the_loop(service: Service, durability: Any) -> None:
    agent = service.agent(service.manager(durability=durability), ScriptedReply(text="No.", redact_user="[removed]"))

    commands = service.run_slowly(consume(agent, "a secret"))

    # A redaction reads what it replaces, and whether an archiver holds a copy of the message.
    expected = {"message": ["update", "find", "update", "find", "update"], "turn": ["update"]}
    assert_the_loop_went_on(commands, expected[durability])
    assert service.dialogue() == [("user", "[removed]"), ("assistant", "No.")]


@pytest.mark.slow
def test_four_agents_of_one_manager_one_of_them_redacted_hold_up_neither_the_loop_nor_each_other(
    service: Service,
) -> None:
    manager = service.manager()
    agents = [service.agent(manager, f"Answer {n}.", agent_id=f"agent {n}") for n in range(3)]
    redacted = service.agent(manager, ScriptedReply(text="No.", redact_user="[removed]"), agent_id="agent 3")
    most_at_once = 0

    async def all_at_once() -> None:
        async def watch() -> None:
            nonlocal most_at_once
            while True:
                most_at_once = max(most_at_once, service.heart.in_flight)
                await asyncio.sleep(0.002)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(consume(agent, "Hello?") for agent in [*agents, redacted]))
        watching.cancel()

    # Long enough for four threads to begin.
    commands = service.run_slowly(all_at_once(), 4 * SLOW_MS)

    names = [command.name for command in commands]
    assert_the_loop_went_on(commands, names)
    # The redaction reads what it replaces, and whether an archiver holds a copy.
    assert sorted(names) == ["find"] * 2 + ["update"] * 9
    assert most_at_once == 4
    for n in range(3):
        assert service.dialogue(f"agent {n}") == [("user", "Hello?"), ("assistant", f"Answer {n}.")]
    assert service.dialogue("agent 3") == [("user", "[removed]"), ("assistant", "No.")]


@pytest.mark.slow
def test_a_graph_and_a_swarm_are_stored_without_holding_up_the_loop(service: Service) -> None:
    graph, swarm = graph_of(service.manager("graph")), swarm_of(service.manager("swarm"))

    async def both() -> None:
        await graph.invoke_async("Write")
        await swarm.invoke_async("Work")

    commands = service.run_slowly(both())

    assert len(commands) >= 2
    assert_the_loop_went_on(commands, ["update"] * len(commands))


# --- methods that are called on the loop


@pytest.mark.slow
def test_messages_appended_by_hand_on_the_loop_are_on_their_way_and_nobody_waits(service: Service) -> None:
    manager, agent = service.opened()

    async def request() -> None:
        manager.append_message({"role": "user", "content": "one"}, agent)
        assert service.heart.in_flight <= 1  # it has returned, and nothing is stored yet
        manager.append_message({"role": "assistant", "content": "two"}, agent)
        await asyncio.to_thread(manager.flush)

    commands = service.run_slowly(request())

    assert 1 <= len(commands) <= 2
    assert_the_loop_went_on(commands, ["update"] * len(commands))
    assert service.dialogue() == [("user", "one"), ("assistant", "two")]


@pytest.mark.slow
def test_a_redaction_by_hand_on_the_loop_is_on_its_way_and_nobody_waits(service: Service) -> None:
    manager, agent = service.opened("my secret")
    agent("Tell me")

    async def request() -> None:
        manager.redact_latest_message(by_hand("[removed]", "assistant"), agent)
        await asyncio.to_thread(manager.flush)

    commands = service.run_slowly(request())

    assert_the_loop_went_on(commands, ["find", "update", "find"])
    assert service.dialogue() == [("user", "Tell me"), ("assistant", "[removed]")]


@pytest.mark.slow
def test_sync_agent_on_the_loop_is_on_its_way_and_nobody_waits(service: Service) -> None:
    manager, agent = service.opened("Hello.")
    agent("Hello?")

    async def request() -> None:
        agent.state.set("cart", ["bread"] * 1_000)
        manager.sync_agent(agent)
        await asyncio.to_thread(manager.flush)

    commands = service.run_slowly(request())

    assert_the_loop_went_on(commands, ["update"])
    assert service.record()["agent_data"]["state"] == {"cart": ["bread"] * 1_000}


@pytest.mark.slow
def test_the_streaming_example_of_the_documentation_never_holds_up_the_loop(service: Service) -> None:
    manager, agent = service.opened("Fine, and how are you today, my friend?")

    async def request() -> None:
        manager.append_message({"role": "user", "content": "How are you?"}, agent)
        response = "".join([event["data"] async for event in agent.stream_async("How are you?") if "data" in event])
        manager.append_message({"role": "assistant", "content": response}, agent)
        manager.sync_agent(agent)
        await asyncio.to_thread(manager.close)

    commands = service.run_slowly(request())

    assert_the_loop_went_on(commands, ["update", "update"])
    assert [role for role, _ in service.dialogue()] == ["user", "assistant"]


@pytest.mark.slow
def test_a_lease_is_taken_waited_for_and_given_back_without_holding_up_the_loop(service: Service) -> None:
    first, second = service.manager(), service.manager()
    first.update_metadata({"k": 1})
    second.get_metadata()
    order: list[str] = []

    async def request(name: str, manager: MongoDBSessionManager) -> None:
        async with manager.lease(30, wait=30):
            order.append(f"{name} in")
            # Not on the loop: inside a lease the session is read anew, and Strands' constructor is synchronous.
            agent = await asyncio.to_thread(service.agent, manager, "Hello.")
            await consume(agent, name)
            order.append(f"{name} out")

    async def two_requests() -> None:
        await asyncio.gather(request("first", first), request("second", second))

    commands = service.run_slowly(two_requests())

    assert_the_loop_went_on(commands, [command.name for command in commands])
    assert order[0].split()[0] == order[1].split()[0] != order[2].split()[0] == order[3].split()[0]
    assert len(service.dialogue()) == 4


# --- what settles


@pytest.mark.slow
@pytest.mark.topology
def test_a_message_that_was_on_its_way_when_its_request_was_cancelled_is_stored_before_the_cancellation_leaves(
    service: Service,
) -> None:
    agent = service.agent(service.manager(), "Never said.")

    async def request() -> None:
        streaming = asyncio.create_task(consume(agent, "Hello?"))
        while not service.heart.in_flight:
            assert not streaming.done(), "the whole turn went by in one step of the loop"
            await asyncio.sleep(0.002)
        streaming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await streaming
        assert service.heart.in_flight == 0
        assert service.dialogue()[:1] == [("user", "Hello?")]

    service.run_slowly(request())


@pytest.mark.slow
@pytest.mark.topology
def test_more_turns_at_once_than_there_are_threads_all_end_and_are_all_stored(service: Service) -> None:
    async def request(n: int) -> None:
        manager = await service.factory().open(f"s{n}", agent_id="a")
        await consume(service.agent(manager, f"Answer {n}."), f"Question {n}?")

    async def all_at_once() -> None:
        await asyncio.gather(*(request(n) for n in range(40)))

    with service.slow(COMMANDS, 10):
        asyncio.run(all_at_once())

    for n in range(40):
        assert service.dialogue(session_id=f"s{n}") == [("user", f"Question {n}?"), ("assistant", f"Answer {n}.")]


MANY_REQUESTS_FAIL = """
    import asyncio, os, sys
    from offline_model import OfflineScriptedModel
    from pymongo import MongoClient
    from strands import Agent
    from mongodb_session_manager import MongoDBSessionManager

    uri, app_name, database_name, collection_name = sys.argv[1:]
    client = MongoClient(uri, appname=app_name)

    async def request(n):
        async with MongoDBSessionManager(f"s{n}", None, database_name, collection_name, client) as manager:
            agent = Agent(model=OfflineScriptedModel(), agent_id="a", session_manager=manager, callback_handler=None)
            manager.append_message({"role": "user", "content": "Hello?"}, agent)
            raise ValueError("the application's own")

    async def all_at_once():
        return await asyncio.gather(*map(request, range(64)), return_exceptions=True)

    print({type(ended).__name__ for ended in asyncio.run(all_at_once())}, flush=True)
    os._exit(0)  # at a normal end, what is unsent would be tried once more
"""


@pytest.mark.slow
@pytest.mark.topology
def test_many_requests_that_fail_while_the_database_fails_do_not_wait_for_each_other_for_ever(
    service: Service,
) -> None:
    for n in range(64):
        service.manager(f"s{n}").update_metadata({"k": n})

    # In a process of its own: one that waits for ever would not even end.
    with service.failing("update", block_ms=30):
        finished = run_python(MANY_REQUESTS_FAIL, service.uri, APP_NAME, service.database.name, SESSIONS)

    assert finished.stdout.strip() == "{'ValueError'}", finished.stderr


# --- contexts


@pytest.mark.slow
def test_each_command_runs_in_a_copy_of_its_requests_context(service: Service) -> None:
    for name in ("alice", "bob"):
        service.agent(service.manager(name), "Hello.")("Hello?")

    async def request(name: str) -> None:
        request_id.set(name)
        async with await service.factory().open(name, agent_id="a") as manager:
            agent = service.agent(manager, "Yes.", ScriptedReply(text="No.", redact_user="[removed]"))
            await consume(agent, "And?")
            await consume(agent, "And?")
            manager.append_message({"role": "user", "content": "by hand"}, agent)

    async def both() -> None:
        await asyncio.gather(request("alice"), request("bob"))

    commands = service.run_slowly(both())

    by_session: dict[str, set[str]] = {"alice": set(), "bob": set()}
    for command in commands:
        sent = command.command
        query = sent.get("filter") or sent.get("query") or sent["updates"][0]["q"]
        # A query of the history names a range of segments.
        session_id = query["_id"] if isinstance(query["_id"], str) else query["_id"]["$lte"]["session"]
        by_session[session_id].add(command.request_id)
    assert by_session == {"alice": {"alice"}, "bob": {"bob"}}


@pytest.mark.slow
@pytest.mark.topology
def test_a_deadline_of_pymongo_around_a_turn_reaches_the_commands_and_what_missed_it_is_stored_later(
    service: Service,
) -> None:
    manager, agent = service.opened("Hello.", "Never said.")

    async def in_time() -> None:
        with pymongo.timeout(30):
            await consume(agent, "Hello?")

    commands = service.run_slowly(in_time())
    assert all("maxTimeMS" in command.command for command in commands)

    async def too_late() -> None:
        with pymongo.timeout(SLOW_MS / 1000 / 4):
            await consume(agent, "And?")

    with pytest.raises(PyMongoError) as caught:
        service.run_slowly(too_late())
    manager.flush()

    assert caught.value.timeout
    assert service.dialogue() == [("user", "Hello?"), ("assistant", "Hello."), ("user", "And?")]


# --- how it is done


@pytest.mark.slow
def test_every_hook_that_stores_is_a_coroutine_function_since_strands_runs_others_on_the_loop(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: dict[type, list[Any]] = {}
    add_callback = HookRegistry.add_callback

    def recording(registry: HookRegistry, event_type: Any, callback: Any, **options: Any) -> None:
        if callback.__module__.startswith("mongodb_session_manager."):
            added.setdefault(event_type, []).append(callback)
        add_callback(registry, event_type, callback, **options)

    monkeypatch.setattr(HookRegistry, "add_callback", recording)
    service.agent(service.manager("agent"))
    BidiAgent(ScriptedBidiModel(), agent_id="voice", session_manager=service.manager("voice"))
    Swarm([Agent(model=OfflineScriptedModel([]), name="clerk")], session_manager=service.manager("swarm"))

    for event in (
        MessageAddedEvent,
        MessageUpdatedEvent,
        AfterInvocationEvent,
        BidiResponseStopEvent,
        BidiAgentStopEvent,
        MultiAgentInitializedEvent,
        AfterNodeCallEvent,
        AfterMultiAgentInvocationEvent,
    ):
        assert added[event], event
        assert all(inspect.iscoroutinefunction(callback) for callback in added[event]), event


@both_durabilities
def test_synchronous_calls_graphs_and_swarms_under_a_running_loop_and_beside_it_are_all_stored(
    service: Service, durability: Any
) -> None:
    manager, agent = service.opened(*[f"Answer {n}." for n in range(4)], durability=durability)
    agent("0")  # no loop at all

    async def notebook() -> None:
        agent("1")  # Strands runs it on a loop of its own, in another thread
        await consume(agent, "2")
        graph_of(manager)("Write")
        swarm_of(manager)("Work")

    asyncio.run(notebook())
    asyncio.run(agent.invoke_async("3"))  # another loop than before

    assert service.dialogue() == [pair for n in range(4) for pair in (("user", f"{n}"), ("assistant", f"Answer {n}."))]
    states = {key: entry["state"]["status"] for key, entry in service.session()["multi_agents"].items()}
    assert states == {"pipeline": "completed", "office": "completed"}


def test_a_synchronous_call_under_a_running_loop_returns_with_its_turn_stored(service: Service) -> None:
    agent = service.agent(None, "Hello.")

    async def notebook() -> list[tuple[str, str]]:
        agent("Hello?")
        return service.dialogue()

    with service.slow(COMMANDS, 20):
        assert asyncio.run(notebook()) == [("user", "Hello?"), ("assistant", "Hello.")]
