"""Exactly once: whatever happens to a connection or a server, nothing is lost and nothing is stored twice.

Three kinds of faults, all real: a proxy on the wire that cuts a connection before a command is run or before its
answer arrives (`support/wire_proxy.py`), the server's own `failCommand` (`support/failpoints.py`), and a primary that
is killed.
"""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import pymongo
import pytest
from offline_model import OfflineScriptedModel
from pymongo import MongoClient, monitoring
from pymongo.database import Database
from pymongo.errors import AutoReconnect, NetworkTimeout, OperationFailure, PyMongoError, WriteConcernError
from strands import Agent
from strands.types.session import SessionAgent, SessionMessage
from support.commands import CommandRecorder
from support.failpoints import fail_command
from support.histories import by_hand, gapless, manager_of, said, stored, texts
from support.histories import tool_talker as talker
from support.repositories import MultiAgent
from support.running import run_python, start_python
from support.waiting import eventually
from support.wire_proxy import Cut, Moment, WireProxy

from mongodb_session_manager import MongoDBSessionManager
from mongodb_session_manager.local import LocalMongoDB

pytestmark = pytest.mark.topology

MOMENTS: tuple[Moment, Moment] = ("before it is run", "before its answer arrives")
at_both_moments = pytest.mark.parametrize("moment", MOMENTS)
both_durabilities = pytest.mark.parametrize("durability", ["message", "turn"])

APP_NAME = "in trouble"
# The least interval: after a fault the driver looks at the server again before it sends anything more. And on a
# replica set as on a standalone server, no retry but the library's own, unless a test says otherwise.
OPTIONS: dict[str, Any] = {"appname": APP_NAME, "heartbeatFrequencyMS": 500, "retryWrites": False}
# Refused by the server and of no use to send again; so it is told at once.
UNAUTHORIZED = 13


def stored_messages(database: Database[Any], session_id: str = "s") -> list[dict[str, Any]]:
    """The stored conversation, after a look at what must be true of it whatever has happened."""
    found = gapless(stored(database, session_id))
    # Running totals ride with the messages, so what is counted twice was sent twice.
    tokens = [one["event_loop_metrics"]["accumulated_usage"] for one in found.messages if "metadata" in one]
    models = found.agent["usage"].get("models", {}).values()
    assert sum(model["totalTokens"] for model in models) == sum(each["totalTokens"] for each in tokens)
    return found.messages


@dataclass(frozen=True)
class Processes:
    """Managers of this test's database, each with a client of its own; `proxy` makes proxies of the server."""

    uri: str
    database: Database[Any]
    stack: ExitStack
    proxy: Callable[[], WireProxy]

    @property
    def client(self) -> MongoClient[Any]:
        """A plain client."""
        return self.database.client

    def stored(self, session_id: str = "s") -> list[str]:
        """What the stored messages say."""
        return texts(stored_messages(self.database, session_id))

    def session(self) -> Any:
        return self.database.sessions.find_one({"_id": "s"})

    def __call__(
        self,
        session_id: str = "s",
        uri: str = "",
        listener: monitoring.CommandListener | None = None,
        client_options: Any = (),
        **options: Any,
    ) -> MongoDBSessionManager:
        listeners = [] if listener is None else [listener]
        client: MongoClient[Any] = MongoClient(
            uri or self.uri, **{**OPTIONS, **dict(client_options), "event_listeners": listeners}
        )
        self.stack.enter_context(client)
        return manager_of(client, self.database.name, session_id, **options)


@pytest.fixture
def process(server: Any, database: Database[Any], proxies: Any) -> Iterator[Processes]:
    # After `proxies`, so that it ends before them: a client that finds no server takes 30 s to close.
    with ExitStack() as stack:
        yield Processes(server.uri, database, stack, proxies)


# --- one broken connection, at every command of every kind of write


@dataclass(frozen=True)
class Writing:
    """Something that is written, and what is stored of it.

    Args:
        act: does it, as a process would, with a manager that has sent nothing yet.
        stored: what the messages of the session's agent then say.
        commands: how many commands write it.
        durability: of the manager.
        begun: whether the session has the agent already, with a message that says "before".
    """

    act: Callable[[MongoDBSessionManager], None]
    stored: tuple[str, ...]
    commands: int
    durability: Literal["message", "turn"] = "message"
    begun: bool = True


def say(*prompts: str) -> Callable[[MongoDBSessionManager], None]:
    def act(manager: MongoDBSessionManager) -> None:
        agent = talker(manager)
        for prompt in prompts:
            agent(prompt)

    return act


def begin_an_agent_with_messages(manager: MongoDBSessionManager) -> None:
    manager.update_metadata({"begun": True})
    talker(manager, messages=[by_hand("one"), by_hand("two")])("three")


def append_by_hand(manager: MongoDBSessionManager) -> None:
    agent = talker(manager)
    for text in ("one", "two"):
        manager.append_message(by_hand(text), agent)


def redact_by_hand(manager: MongoDBSessionManager) -> None:
    agent = talker(manager)
    agent("one")
    manager.redact_latest_message(by_hand("[redacted]", "assistant"), agent)


WRITINGS = {
    "a turn": Writing(say("hi"), ("before", "hi", "Re: hi"), 2),
    "a tool turn": Writing(say("look it up"), ("before", "look it up", "toolUse", "toolResult", "Found."), 4),
    "a turn in one update": Writing(
        say("look it up"), ("before", "look it up", "toolUse", "toolResult", "Found."), 1, "turn"
    ),
    "two turns in two updates": Writing(say("hi", "ho"), ("before", "hi", "Re: hi", "ho", "Re: ho"), 2, "turn"),
    "messages by hand": Writing(append_by_hand, ("before", "one", "two"), 2),
    "a redacted turn": Writing(say("my secret"), ("before", "[redacted]", "I cannot."), 3),
    "a redacted turn in one update": Writing(say("my secret"), ("before", "[redacted]", "I cannot."), 1, "turn"),
    "a redaction by hand": Writing(redact_by_hand, ("before", "one", "[redacted]"), 3),
    "an agent with messages": Writing(
        begin_an_agent_with_messages, ("one", "two", "three", "Re: three"), 5, begun=False
    ),
    "a session": Writing(say("hi"), ("hi", "Re: hi"), 3, begun=False),
    "a session and a turn in one update": Writing(say("hi"), ("hi", "Re: hi"), 2, "turn", begun=False),
}


@pytest.mark.parametrize("writing", WRITINGS.values(), ids=WRITINGS.keys())
def test_a_broken_connection_loses_nothing_and_doubles_nothing(writing: Writing, process: Processes) -> None:
    def run(number: int, moment: Moment, retry_writes: bool) -> tuple[str, list[str]]:
        session_id = f"{number} {moment} {retry_writes}"
        if writing.begun:
            manager = process(session_id)
            manager.append_message(by_hand("before"), talker(manager))
        proxy = process.proxy()
        proxy.cut(Cut("update", moment, number))
        manager = process(session_id, proxy.uri, None, {"retryWrites": retry_writes}, durability=writing.durability)
        writing.act(manager)
        manager.close()
        return session_id, proxy.cut_commands

    process.database.sessions.create_index("created_at")  # or the collection begins in the midst of it
    # At once: each waits half a second for the driver to look at the server again. One number more than there are
    # commands shows that none was forgotten.
    numbers = range(1, writing.commands + 2)
    with ThreadPoolExecutor(32) as threads:
        ended = list(threads.map(lambda case: run(*case), product(numbers, MOMENTS, (True, False))))

    for (number, _, _), (session_id, cut) in zip(product(numbers, MOMENTS, (True, False)), ended, strict=True):
        assert cut == ["update"] * (number <= writing.commands), session_id
        assert tuple(process.stored(session_id)) == writing.stored, session_id
    assert "secret" not in str(list(process.database.sessions.find()))


@both_durabilities
def test_a_message_whose_answer_was_lost_is_not_doubled_behind_what_others_stored_meanwhile(
    process: Processes, durability: str
) -> None:
    other = talker(process())
    proxy = process.proxy()
    one = talker(process(uri=proxy.uri, durability=durability))
    proxy.cut(Cut("update", "before its answer arrives", meanwhile=lambda: other("other")))

    one("one")

    assert proxy.cut_commands == ["update"]
    expected = {
        "message": ["one", "other", "Re: other", "Re: one"],
        "turn": ["one", "Re: one", "other", "Re: other"],
    }
    assert process.stored() == expected[durability]


def test_a_message_that_never_arrived_is_appended_behind_what_others_stored_meanwhile(process: Processes) -> None:
    other = talker(process())
    proxy = process.proxy()
    one = talker(process(uri=proxy.uri))
    proxy.cut(Cut("update", "before it is run", meanwhile=lambda: other("other")))

    one("one")

    assert process.stored() == ["other", "Re: other", "one", "Re: one"]


def test_with_raise_a_message_whose_answer_was_lost_is_no_conflict_with_itself(process: Processes) -> None:
    proxy = process.proxy()
    one = talker(process(uri=proxy.uri, on_conflict="raise"))
    proxy.cut(Cut("update", "before its answer arrives", times=2))

    one("one")

    assert process.stored() == ["one", "Re: one"]


def test_a_message_that_has_moved_behind_others_is_not_doubled_when_it_is_sent_again_after_an_error(
    process: Processes,
) -> None:
    """It is looked for where it was sent to, not where the conversation was thought to end."""
    other = talker(process())
    other("before")
    proxy = process.proxy()
    manager = process(uri=proxy.uri)
    one = talker(manager)
    other("other")
    # The first update does not match; the second does, behind the other's turn, and nobody hears of it.
    proxy.cut(Cut("update", "before its answer arrives", number=2, times=None))
    with pytest.raises(AutoReconnect):
        manager.append_message(by_hand("one"), one)
    proxy.heal()

    manager.flush()

    assert process.stored() == ["before", "Re: before", "other", "Re: other", "one"]


SINGLE_WRITES: dict[str, tuple[Callable[[MongoDBSessionManager, Agent], object], str, Any]] = {
    # name: (the write, the path of what it changes, what stands there afterwards)
    "metadata": (lambda m, _: m.update_metadata({"topic": "fish"}), "metadata", {"topic": "fish"}),
    "metadata-deleted": (lambda m, _: m.delete_metadata(["topic"]), "metadata", {}),
    "feedback": (lambda m, _: m.add_feedback({"rating": "up"}), "feedbacks.rating", ["up"]),
    "repository-feedback": (
        lambda m, _: m.session_repository.add_feedback("s", {"rating": "up"}),
        "feedbacks.rating",
        ["up"],
    ),
    "repository-message": (
        lambda m, _: m.session_repository.create_message("s", "assistant", SessionMessage(by_hand("new"), 1)),
        "agents.assistant.messages.message_id",
        [0, 1],
    ),
    "repository-update": (
        lambda m, _: m.session_repository.update_message("s", "assistant", SessionMessage(by_hand("new"), 0)),
        "agents.assistant.messages.content",
        [[{"text": "new"}]],
    ),
    "repository-agent": (
        lambda m, _: m.session_repository.create_agent("s", SessionAgent("other", {}, {})),
        "agents.other.messages",
        [],
    ),
    "graph": (
        lambda m, _: m.session_repository.create_multi_agent("s", MultiAgent("graph", {"status": "new"})),
        "multi_agents.graph.state",
        {"status": "new"},
    ),
}


@pytest.mark.parametrize("name", SINGLE_WRITES)
@at_both_moments
def test_a_single_write_whose_connection_broke_is_stored_once_and_is_no_error(
    process: Processes, name: str, moment: Moment
) -> None:
    write, path, expected = SINGLE_WRITES[name]
    proxy = process.proxy()
    manager = process(uri=proxy.uri)
    agent = talker(manager)
    manager.append_message(by_hand("before"), agent)
    proxy.cut(Cut("update", moment))

    write(manager, agent)

    assert proxy.cut_commands == ["update"]
    found = process.database.sessions.aggregate([{"$project": {"_id": 0, "found": f"${path}"}}]).next()
    assert found == {"found": expected}


@pytest.mark.parametrize("timed", [False, True])
def test_tokens_that_come_late_are_counted_once_when_their_answer_is_lost(process: Processes, timed: bool) -> None:
    proxy = process.proxy()
    manager = process(uri=proxy.uri)
    agent = talker(manager)
    manager.append_message(by_hand("before"), agent)
    if timed:
        manager.start_timing()
    manager.append_message(by_hand("by hand", "assistant"), agent)
    agent.event_loop_metrics.accumulated_usage.update(inputTokens=3, outputTokens=4, totalTokens=7)
    proxy.cut(Cut("update", "before its answer arrives"))

    manager.sync_agent(agent)

    assert proxy.cut_commands == ["update"]
    (model,) = stored(process.database).agent["usage"]["models"].values()
    assert (model["inputTokens"], model["outputTokens"], model["totalTokens"], model["calls"]) == (3, 4, 7, 1)
    assert model.get("latency", {}).get("count", 0) == timed


# --- a database that stays away


def leave(manager: MongoDBSessionManager) -> None:
    with manager:
        pass


# What stores what could not be stored, and what it says itself.
KEEPERS: dict[str, tuple[Callable[[MongoDBSessionManager, Agent], object], list[str]]] = {
    "flush": (lambda manager, _: manager.flush(), []),
    "close": (lambda manager, _: manager.close(), []),
    "next turn": (lambda _, agent: agent("next"), said("next")),
    "sync": (lambda manager, agent: manager.sync_agent(agent), []),
    "leaving": (lambda manager, _: leave(manager), []),
}


@both_durabilities
def test_a_turn_that_cannot_be_stored_is_an_error_and_is_stored_later_once_however(
    process: Processes, durability: Any
) -> None:
    def run(moment: Moment, keeper: str) -> None:
        keep, more = KEEPERS[keeper]
        session_id = f"{moment} {keeper}"
        proxy = process.proxy()
        manager = process(session_id, proxy.uri, durability=durability)
        agent = talker(manager)
        agent("before")
        proxy.cut(Cut("update", moment, times=None))
        with pytest.raises(AutoReconnect):
            agent("hi")
        with pytest.raises(AutoReconnect):
            manager.flush()  # and again: what is kept is kept
        assert len(proxy.cut_commands) >= 4, "it gave up at once"
        proxy.heal()

        keep(manager, agent)

        # With "message" the turn ended at its first write, before the model was asked.
        expected = [*said("before"), "hi", *(["Re: hi"] if durability == "turn" else []), *more]
        assert process.stored(session_id) == expected, session_id
        if keeper not in ("close", "leaving"):
            agent("last")
            manager.close()
            assert process.stored(session_id) == [*expected, "last", "Re: last"], session_id

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda case: run(*case), product(MOMENTS, KEEPERS)))


@at_both_moments
def test_a_message_that_is_redacted_while_it_cannot_be_stored_leaves_its_text_nowhere(
    process: Processes, moment: Moment
) -> None:
    proxy = process.proxy()
    manager = process(uri=proxy.uri)
    agent = talker(manager)
    proxy.cut(Cut("update", moment, times=None))
    with pytest.raises(AutoReconnect):
        manager.append_message(by_hand("a secret"), agent)
    with pytest.raises(AutoReconnect):
        manager.redact_latest_message(by_hand("[redacted]"), agent)
    proxy.heal()

    manager.flush()

    assert process.stored() == ["[redacted]"]
    assert "secret" not in str(process.session())


# https://github.com/mongodb/specifications, retryable writes: NotWritablePrimary, PrimarySteppedDown,
# InterruptedDueToReplStateChange; and a connection that the server closes.
@pytest.mark.parametrize(
    "fault", [{"error_code": 10107}, {"error_code": 189}, {"error_code": 11602}, {"close_connection": True}], ids=str
)
@both_durabilities
def test_a_server_that_is_no_longer_the_primary_or_hangs_up_costs_no_message(
    process: Processes, durability: str, fault: dict[str, Any]
) -> None:
    recorder = CommandRecorder()
    agent = talker(process(listener=recorder, durability=durability))

    with fail_command(process.client, "update", app_name=APP_NAME, times=1, **fault):
        agent("hi")

    assert len(recorder.commands.failures) == 1
    assert process.stored() == said("hi")


def retryable_writes_or_skip(server: Any) -> None:
    if server.kind != "replica_set":
        pytest.skip("a standalone server has no retryable writes")


def replicate_too_late(client: MongoClient[Any], error: dict[str, Any]) -> None:
    """The next update is run, and its answer says that others do not have it yet."""
    data = {"failCommands": ["update"], "appName": APP_NAME, "writeConcernError": error}
    client.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=data)


def test_a_turn_that_was_stored_but_not_replicated_in_time_is_told_and_not_stored_again(process: Processes) -> None:
    manager = process(durability="turn")
    agent = talker(manager)
    replicate_too_late(process.client, {"code": 64, "errmsg": "waiting for replication timed out"})
    with pytest.raises(WriteConcernError):
        agent("hi")

    agent("ho")

    assert process.stored() == said("hi", "ho")


# The spec for retryable writes lists more of them; no server labels them for a command without a transaction number.
@pytest.mark.parametrize("code", [6, 7, 89, 262, 9001])
@both_durabilities
def test_an_error_of_the_network_behind_the_server_costs_no_turn(
    process: Processes, durability: str, code: int, server: Any
) -> None:
    retryable_writes_or_skip(server)
    agent = talker(process(durability=durability, client_options={"retryWrites": True}))

    with fail_command(process.client, "update", app_name=APP_NAME, error_code=code, times=1):
        agent("hi")

    assert process.stored() == said("hi")


@pytest.mark.parametrize("code", [91, 189, 262, 11602])
@both_durabilities
def test_a_primary_that_steps_down_before_others_have_the_commit_costs_no_turn(
    process: Processes, durability: str, code: int, server: Any
) -> None:
    retryable_writes_or_skip(server)
    agent = talker(process(durability=durability, client_options={"retryWrites": True}))
    replicate_too_late(process.client, {"code": code, "errmsg": "interrupted", "errInfo": {"writeConcern": {}}})

    agent("hi")

    assert process.stored() == said("hi")


def test_a_change_of_state_that_arrives_late_does_not_undo_a_newer_one(process: Processes, server: Any) -> None:
    retryable_writes_or_skip(server)
    proxy, all_else_is_stored = process.proxy(), threading.Event()
    manager = process(uri=proxy.uri, client_options={"retryWrites": True, "socketTimeoutMS": 500})
    agent = talker(manager)
    agent("hi")
    first = Cut("update", "long after", meanwhile=all_else_is_stored.wait)
    proxy.cut(first)
    for number in (1, 2):
        agent.state.set("number", number)
        manager.sync_agent(agent)

    all_else_is_stored.set()

    assert first.answered.wait(10)
    assert process.session()["agents"]["assistant"]["agent_data"]["state"] == {"number": 2}


@pytest.mark.parametrize("options", [{"timeoutMS": 300}, {"socketTimeoutMS": 300, "retryReads": False}])
def test_a_read_whose_time_is_over_is_not_sent_again(process: Processes, options: dict[str, Any]) -> None:
    talker(process())("hi")
    recorder = CommandRecorder()
    manager = process(listener=recorder, client_options=options)

    with (
        fail_command(process.client, "find", app_name=APP_NAME, block_ms=1000, times=2),
        pytest.raises(NetworkTimeout),
    ):
        talker(manager)

    assert len(recorder.commands.failures) == 1


# --- a primary is killed


def test_a_primary_that_is_killed_in_the_midst_of_turns_loses_nothing_that_was_acknowledged() -> None:
    writers = [("one", "message"), ("two", "message"), ("three", "turn"), ("four", "turn")]
    acknowledged: dict[str, int] = dict.fromkeys((writer for writer, _ in writers), 0)
    enough = threading.Event()

    with LocalMongoDB(replica_set=True) as server, ExitStack() as stack:
        plain: MongoClient[Any] = stack.enter_context(MongoClient(server.uri))
        process = Processes(server.uri, plain["test"], stack, pytest.fail)
        retry = {"retryWrites": True}
        agents = {
            writer: talker(process(writer, client_options=retry, durability=durability))
            for writer, durability in writers
        }

        def talk(writer: str) -> None:
            while not enough.is_set():
                agents[writer](f"{acknowledged[writer]}")
                acknowledged[writer] += 1

        def each_went_on(turns: int) -> None:
            goals = {writer: number + turns for writer, number in acknowledged.items()}
            eventually(lambda: failed() or all(acknowledged[writer] >= goal for writer, goal in goals.items()))

        with ThreadPoolExecutor() as threads:
            talking = [threads.submit(talk, writer) for writer in agents]

            def failed() -> bool:
                return any(one.done() for one in talking)

            try:
                each_went_on(5)
                killed = server.primary
                killed.kill()
                each_went_on(5)
            finally:
                enough.set()
            for one in talking:
                one.result()
        assert server.primary is not killed

        for writer, turns in acknowledged.items():
            assert process.stored(writer) == said(*map(str, range(turns)))
            assert texts(talker(process(writer)).messages) == texts(agents[writer].messages)


# --- errors beside errors


class ModelError(Exception):
    """What a provider raises."""


def notes_of(error: BaseException, log: pytest.LogCaptureFixture) -> str:
    return str(error.__notes__) if sys.version_info >= (3, 11) else log.text


@both_durabilities
def test_the_models_error_is_not_hidden_by_the_databases(
    process: Processes, durability: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = process(durability=durability)
    agent = talker(manager)
    with ExitStack() as trouble:

        def fail(_: Any) -> Any:
            agent.state.set("unsaved", True)
            trouble.enter_context(fail_command(process.client, "update", app_name=APP_NAME, error_code=UNAUTHORIZED))
            raise ModelError("overloaded")

        agent.model = OfflineScriptedModel(fail)
        with pytest.raises(ModelError, match="overloaded") as raised:
            agent("hi")

    assert "OperationFailure" in notes_of(raised.value, caplog)
    manager.close()  # and what could not be stored then is now
    assert process.stored() == ["hi"]
    assert talker(process()).state.get("unsaved") is True


@pytest.mark.parametrize(
    ("way", "durability"), [("called", "turn"), ("awaited", "turn"), ("streamed", "turn"), ("awaited", "message")]
)
def test_a_commit_that_fails_while_an_unrelated_error_is_handled_is_still_told(
    process: Processes, durability: str, way: str
) -> None:
    manager = process(durability=durability)
    agent = talker(manager)

    async def stream() -> None:
        try:
            raise KeyError("unrelated")
        except KeyError:
            async for _ in agent.stream_async("hi"):
                pass

    async def wait() -> None:
        try:
            raise KeyError("unrelated")
        except KeyError:
            await agent.invoke_async("hi")

    def call() -> None:
        try:
            raise KeyError("unrelated")
        except KeyError:
            agent("hi")

    ways = {"called": call, "awaited": lambda: asyncio.run(wait()), "streamed": lambda: asyncio.run(stream())}
    with (
        fail_command(process.client, "update", app_name=APP_NAME, error_code=UNAUTHORIZED),
        pytest.raises(OperationFailure),
    ):
        ways[way]()

    manager.close()
    assert process.stored() == (["hi", "Re: hi"] if durability == "turn" else ["hi"])


# --- cancellation


class Watch(monitoring.CommandListener):
    """Tells that an update was sent, how many of those sent are still without an answer, and how long one failed."""

    def __init__(self) -> None:
        self.sent = threading.Event()
        self.under_way = 0
        self.failed_after_seconds = 0.0

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name == "update":
            self.under_way += 1
            self.sent.set()

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        self.under_way -= event.command_name == "update"

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        self.under_way -= event.command_name == "update"
        self.failed_after_seconds = max(self.failed_after_seconds, event.duration_micros / 1e6)


async def cancel_a_turn(agent: Agent, watch: Watch, times: int = 1) -> None:
    """Cancel a turn as soon as it sends an update; an impatient canceller changes nothing."""
    turn = asyncio.create_task(agent.invoke_async("hi"))
    await asyncio.to_thread(watch.sent.wait, 30)
    for _ in range(times):
        turn.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert watch.under_way == 0


@both_durabilities
@pytest.mark.parametrize("times", [1, 3])
def test_a_cancelled_turn_leaves_when_its_commit_has_settled(process: Processes, durability: str, times: int) -> None:
    watch = Watch()
    manager = process(durability=durability, listener=watch)
    agent = talker(manager)
    watch.sent.clear()

    with fail_command(process.client, "update", app_name=APP_NAME, block_ms=300):
        asyncio.run(cancel_a_turn(agent, watch, times))

    expected = ["hi"] if durability == "message" else said("hi")
    assert process.stored() == expected
    agent("ho")
    assert process.stored() == [*expected, *said("ho")]


def test_a_cancelled_turn_whose_commit_failed_keeps_it_for_the_next(process: Processes) -> None:
    watch = Watch()
    manager = process(listener=watch)
    agent = talker(manager)
    watch.sent.clear()

    with fail_command(process.client, "update", app_name=APP_NAME, block_ms=100, error_code=UNAUTHORIZED):
        asyncio.run(cancel_a_turn(agent, watch))

    agent("ho")
    assert process.stored() == ["hi", "ho", "Re: ho"]


# --- the caller's deadline


@pytest.mark.parametrize("way", ["called", "awaited"])
def test_the_callers_deadline_reaches_the_commit(process: Processes, way: str) -> None:
    watch = Watch()
    manager = process(durability="turn", listener=watch)
    agent = talker(manager)

    async def wait() -> None:
        await agent.invoke_async("hi")

    ways = {"called": lambda: agent("hi"), "awaited": lambda: asyncio.run(wait())}
    with (
        fail_command(process.client, "update", app_name=APP_NAME, block_ms=4000, times=1),
        pytest.raises(PyMongoError) as raised,
        pymongo.timeout(1),
    ):
        ways[way]()

    assert raised.value.timeout
    # Of the command alone: a busy machine takes its time for everything else.
    assert watch.failed_after_seconds < 3.5, "the commit waited for the server, not for the caller's deadline"
    manager.flush()
    assert process.stored() == said("hi")


# --- the end of the process

UNFINISHED = """
    import asyncio
    import sys

    from offline_model import OfflineScriptedModel
    from strands import Agent

    from mongodb_session_manager import MongoDBSessionManager

    uri, database_name = sys.argv[1:]
    manager = MongoDBSessionManager("s", uri, database_name, "sessions", durability="turn")
    model = OfflineScriptedModel(["Hello."])
    agent = Agent(model=model, agent_id="assistant", session_manager=manager, callback_handler=None)
    stream = agent.stream_async("my secret question")

    async def until_the_model_speaks():
        while "data" not in await anext(stream):
            pass

    loop = asyncio.new_event_loop()
    loop.run_until_complete(until_the_model_speaks())
    print("speaking", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def unfinished(uri: str, database_name: str) -> Iterator[subprocess.Popen[str]]:
    """A process that ends, as soon as its input says so, in the midst of a turn that is to be stored at its end."""
    with start_python(UNFINISHED, uri, database_name) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "speaking\n", running.communicate()[1]
            yield running
        finally:
            running.kill()


def test_a_turn_that_was_not_stored_when_the_process_ends_is_stored_at_its_end(
    server: Any, database: Database[Any], database_name: str
) -> None:
    with unfinished(server.uri, database_name) as running:
        assert database.sessions.find_one({})["agents"]["assistant"]["messages"] == []  # type: ignore[index]
        _, errors = running.communicate("end\n", timeout=60)

    assert running.returncode == 0, errors
    assert texts(stored_messages(database)) == ["my secret question"]


def test_a_turn_that_is_lost_at_the_end_of_the_process_is_at_least_told(
    proxies: Callable[[], WireProxy], database: Database[Any], database_name: str
) -> None:
    proxy = proxies()
    with unfinished(f"{proxy.uri}&retryWrites=false", database_name) as running:
        proxy.cut(Cut("update", "before it is run", times=None))
        _, errors = running.communicate("end\n", timeout=60)

    assert stored_messages(database) == []
    assert "session_id=<s>" in errors
    assert "lost" in errors
    assert "secret" not in errors


TOLD = """
    import sys

    from offline_model import OfflineScriptedModel
    from pymongo import MongoClient
    from pymongo.errors import OperationFailure
    from strands import Agent
    from support.failpoints import fail_command

    from mongodb_session_manager import MongoDBSessionManager

    uri, database_name = sys.argv[1:]
    client = MongoClient(uri, appname="told")


    def ask():
        manager = MongoDBSessionManager("s", client=client, database_name=database_name, collection_name="sessions")
        model = OfflineScriptedModel(["Done."])
        return Agent(model=model, agent_id="assistant", session_manager=manager, callback_handler=None)("Transfer 5.")


    ask()
    with fail_command(MongoClient(uri), "update", app_name="told", error_code=13):
        try:
            ask()
        except OperationFailure:
            ask_again = True
    if ask_again:
        ask()
"""


def test_a_question_that_was_told_to_have_failed_and_was_asked_again_is_not_stored_a_second_time_at_exit(
    server: Any, database: Database[Any], database_name: str
) -> None:
    ended = run_python(TOLD, server.uri, database_name)
    assert ended.returncode == 0, ended.stderr
    assert texts(stored_messages(database)) == ["Transfer 5.", "Done."] * 2
