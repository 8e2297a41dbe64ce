"""The lease: one process at a time writes to a session, by the server's clock, whatever becomes of the processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from offline_model import OfflineScriptedModel
from pymongo import MongoClient, monitoring
from pymongo.errors import OperationFailure
from strands import Agent
from strands.types.session import SessionAgent, SessionMessage
from support.commands import CommandRecorder
from support.failpoints import fail_command
from support.waiting import eventually
from support.wire_proxy import Cut, WireProxy

from mongodb_session_manager import (
    MongoDBSessionError,
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    SessionBusyError,
    SessionNotFoundError,
)
from mongodb_session_manager.mongodb_session_repository import MongoDBSessionRepository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pymongo.database import Database

    Process = Callable[..., MongoDBSessionManager]

APP_NAME = "in trouble"
UNAUTHORIZED = 13  # refused by the server and of no use to send again; so it is told at once


@pytest.fixture
def process(server: Any, database_name: str) -> Iterator[Process]:
    """Makes a manager of the session "s" with a client of its own: what a process is to a lease."""
    with ExitStack() as clients:

        def start(
            listeners: Sequence[monitoring.CommandListener] = (), uri: str = "", **options: Any
        ) -> MongoDBSessionManager:
            client: MongoClient[Any] = MongoClient(uri or server.uri, appname=APP_NAME, event_listeners=list(listeners))
            clients.enter_context(client)
            return MongoDBSessionManager(
                "s", client=client, database_name=database_name, collection_name="sessions", **options
            )

        yield start


@pytest.fixture
def repository(client: MongoClient[Any], database_name: str) -> MongoDBSessionRepository:
    return MongoDBSessionRepository(client=client, database_name=database_name, collection_name="sessions")


def talker(manager: MongoDBSessionManager) -> Agent:
    """An agent that answers each message with its echo."""
    model = OfflineScriptedModel(lambda messages: f"Re: {messages[-1]['content'][0]['text']}")
    return Agent(model=model, agent_id="assistant", session_manager=manager, callback_handler=None)


def by_hand(text: str) -> Any:
    return {"role": "user", "content": [{"text": text}]}


def texts(messages: Any) -> list[str]:
    return [message["content"][0]["text"] for message in messages]


def stored(database: Database[Any]) -> list[str]:
    document = database.sessions.find_one({"_id": "s"})
    assert document is not None
    return texts(document["agents"]["assistant"]["messages"])


def lease_of(database: Database[Any]) -> Any:
    document = database.sessions.find_one({"_id": "s"})
    assert document is not None
    return document.get("lease")


def wait_until_past(client: MongoClient[Any], moment: Any) -> None:
    """Wait until it is later than `moment` by the clock that counts: the server's."""
    eventually(lambda: client.admin.command("hello")["localTime"] > moment)


# --- taking and waiting


@pytest.mark.topology
def test_a_second_process_is_told_at_once_that_the_session_is_taken_and_for_how_long(process: Process) -> None:
    with process().lease(600):
        with pytest.raises(SessionBusyError) as raised, process().lease(30):
            pytest.fail("two processes hold the lease")

        assert raised.value.retry_after is not None
        assert 500 < raised.value.retry_after <= 600


def test_a_second_process_waits_as_long_as_it_said_before_it_gives_up(process: Process) -> None:
    with process().lease(600):
        began = time.monotonic()
        with pytest.raises(SessionBusyError), process().lease(30, wait=0.3):
            pytest.fail("two processes hold the lease")
        assert 0.3 <= time.monotonic() - began < 60


@pytest.mark.topology
def test_a_process_that_waits_gets_the_lease_when_it_is_given_back(process: Process) -> None:
    waiter = process()
    got_it = threading.Event()

    def wait() -> None:
        with waiter.lease(600, wait=300):
            got_it.set()

    with ThreadPoolExecutor() as threads:
        with process().lease(600):
            waiting = threads.submit(wait)
            assert not got_it.wait(0.3)
        waiting.result(60)
    assert got_it.is_set()


def test_in_async_code_a_second_process_is_told_at_once_and_a_waiting_one_gets_it(process: Process) -> None:
    one, other = process(), process()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    async def wait() -> None:
        async with other.lease(600, wait=300):
            talker(other)

    async def main() -> None:
        async with one.lease(600):
            with pytest.raises(SessionBusyError) as raised:
                async with other.lease(30):
                    pytest.fail("two processes hold the lease")
            assert 500 < (raised.value.retry_after or 0) <= 600
            with pytest.raises(SessionBusyError):
                async with other.lease(30, wait=0.2):
                    pytest.fail("two processes hold the lease")
            waiting = asyncio.create_task(wait())
            ticking = asyncio.create_task(tick())
            # If the event loop stood still while one waits, nobody would be inside for that long.
            while ticks < 30:
                assert not waiting.done()
                await asyncio.sleep(0.01)
        await asyncio.wait_for(waiting, 60)
        ticking.cancel()

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.topology
def test_processes_that_contend_for_a_session_are_never_inside_together(
    process: Process, database: Database[Any]
) -> None:
    processes, rounds = 4, 5
    talker(process())
    start = threading.Barrier(processes)
    inside = threading.Semaphore(1)

    def contend(name: str) -> None:
        manager = process(on_conflict="raise")
        start.wait(30)
        for number in range(rounds):
            with manager.lease(600, wait=300):
                assert inside.acquire(blocking=False), "two processes hold the lease"
                # What is read inside is true until the lease is left, so nothing conflicts and no turn is lost.
                if number == 0:
                    agent = talker(manager)
                else:
                    manager.reload(agent)
                turn = manager.get_metadata()["metadata"].get("turn", 0)
                agent(f"{name} {number}")
                manager.update_metadata({"turn": turn + 1})
                inside.release()

    with ThreadPoolExecutor() as threads:
        list(threads.map(contend, [f"process {number}" for number in range(processes)]))

    assert len(stored(database)) == processes * rounds * 2
    assert database.sessions.find_one({})["metadata"] == {"turn": processes * rounds}  # type: ignore[index]
    assert lease_of(database) is None


def test_a_session_can_be_leased_before_it_exists_and_leased_again_after(
    process: Process, database: Database[Any]
) -> None:
    manager = process()
    with manager.lease(30):
        talker(manager)("hi")
    with manager.lease(30):
        manager.update_metadata({"again": True})

    assert stored(database) == ["hi", "Re: hi"]
    assert lease_of(database) is None


def test_a_lease_inside_a_lease_is_refused_and_the_outer_one_goes_on(process: Process, database: Database[Any]) -> None:
    manager = process()
    with manager.lease(30) as lease:
        agent = talker(manager)
        with pytest.raises(MongoDBSessionError, match="already"), manager.lease(30):
            pytest.fail("a lease inside a lease")
        with pytest.raises(MongoDBSessionError, match="already"), lease:
            pytest.fail("a lease inside itself")

        with pytest.raises(SessionBusyError), process().lease(30):
            pytest.fail("the outer lease was given back")
        agent("hi")

    assert stored(database) == ["hi", "Re: hi"]


@pytest.mark.parametrize("seconds", [0, -1, 86_401, float("nan")])
def test_a_lease_that_could_not_be_held_or_would_never_end_is_refused(process: Process, seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        process().lease(seconds)
    with process().lease(30) as lease:
        with pytest.raises(ValueError, match="seconds"):
            lease.renew(seconds)
        lease.renew()


def test_two_tasks_of_one_manager_that_ask_at_once_do_not_end_each_others_lease(
    process: Process, database: Database[Any]
) -> None:
    manager = process()
    agent = talker(manager)
    refused: list[Exception] = []

    async def ask() -> None:
        try:
            async with manager.lease(30):
                while not refused:
                    await asyncio.sleep(0.001)
                await agent.invoke_async("hi")
        except MongoDBSessionError as error:  # By the server, or by the manager, which has got it already.
            refused.append(error)

    async def both() -> None:
        await asyncio.wait_for(asyncio.gather(ask(), ask()), timeout=30)

    asyncio.run(both())

    assert len(refused) == 1
    assert stored(database) == ["hi", "Re: hi"]


def test_a_lease_does_not_make_a_session_look_recently_used(process: Process, database: Database[Any]) -> None:
    manager = process()
    talker(manager)("hi")
    before = database.sessions.find_one({})
    assert before is not None

    with manager.lease(30) as lease:
        lease.renew()

    # That a lease was taken is counted: a command that takes one may arrive after it was given back.
    assert database.sessions.find_one({}) == {**before, "leases": 1}


def test_taking_a_lease_reads_anew_what_was_read_before(server: Any, process: Process, database: Database[Any]) -> None:
    """An agent that is built inside sees the other's last turn, also where the session was opened before."""
    talker(process())("before")
    with MongoDBSessionManagerFactory(server.uri, database.name, "sessions") as factory:
        manager = asyncio.run(factory.open("s", agent_id="assistant"))
        other = process()
        with other.lease(30):
            talker(other)("meanwhile")

        with manager.lease(30):
            agent = talker(manager)
            assert texts(agent.messages) == ["before", "Re: before", "meanwhile", "Re: meanwhile"]


def test_an_agent_that_was_opened_before_the_lease_is_built_inside_without_a_command(
    server: Any, process: Process, database: Database[Any]
) -> None:
    """Building is synchronous: what it sent would hold up the event loop."""
    talker(process())("before")
    recorder = CommandRecorder()

    async def take_turn(factory: MongoDBSessionManagerFactory) -> None:
        manager = await factory.open("s", agent_id="assistant")
        async with manager.lease(30):
            with recorder.recording() as sent:
                agent = talker(manager)
            assert sent.names == []
            await agent.invoke_async("hi")

    with MongoDBSessionManagerFactory(
        server.uri, database.name, "sessions", event_listeners=[recorder], minPoolSize=0
    ) as factory:
        asyncio.run(take_turn(factory))

    assert stored(database) == ["before", "Re: before", "hi", "Re: hi"]


@pytest.mark.slow
@pytest.mark.topology
def test_a_lease_whose_answer_was_lost_is_held(
    process: Process, client: MongoClient[Any], database: Database[Any]
) -> None:
    client.admin.command("ping")
    assert client.address is not None
    talker(process())
    with WireProxy(*client.address) as proxy:
        manager = process(uri=f"{proxy.uri}&retryWrites=false")
        manager.get_metadata()
        manager.update_metadata({"begun": True})
        proxy.cut(Cut("update", "before its answer arrives"))
        with manager.lease(30):
            assert proxy.cut_commands == ["update"]
            talker(manager)("hi")
            proxy.cut(Cut("update", "before its answer arrives"))  # and so is the one that gives it back
        assert proxy.cut_commands == ["update", "update"]
        manager.session_repository.client.close()

    assert lease_of(database) is None
    assert stored(database) == ["hi", "Re: hi"]


# --- who may write


class Picture:
    """A graph as far as a repository sees it."""

    def __init__(self, multi_agent_id: str) -> None:
        self.id = multi_agent_id

    def serialize_state(self) -> dict[str, Any]:
        return {"status": "new"}


def session_message(message_id: int) -> SessionMessage:
    return SessionMessage(message=by_hand("from outside"), message_id=message_id)


def session_agent(agent_id: str) -> SessionAgent:
    return SessionAgent(agent_id=agent_id, state={"new": True}, conversation_manager_state={})


BY_A_MANAGER: dict[str, Callable[[MongoDBSessionManager, Agent], object]] = {
    "a turn": lambda _, agent: agent("from outside"),
    "a message": lambda manager, agent: manager.append_message(by_hand("from outside"), agent),
    "a redaction": lambda manager, agent: manager.redact_latest_message(by_hand("from outside"), agent),
    "a change of state": lambda manager, agent: (agent.state.set("new", True), manager.sync_agent(agent)),
    "a new agent's messages": lambda manager, _: Agent(
        messages=[by_hand("from outside")], agent_id="new", session_manager=manager, model=OfflineScriptedModel()
    ),
    "metadata": lambda manager, _: manager.update_metadata({"new": True}),
    "less metadata": lambda manager, _: manager.delete_metadata(["topic"]),
    "feedback": lambda manager, _: manager.add_feedback({"rating": "up"}),
}

BY_A_REPOSITORY: dict[str, Callable[[MongoDBSessionRepository], object]] = {
    "create_agent": lambda r: r.create_agent("s", session_agent("new")),
    "update_agent": lambda r: r.update_agent("s", session_agent("assistant")),
    "create_message": lambda r: r.create_message("s", "assistant", session_message(7)),
    "update_message": lambda r: r.update_message("s", "assistant", session_message(0)),
    "create_multi_agent": lambda r: r.create_multi_agent("s", Picture("new")),
    "update_multi_agent": lambda r: r.update_multi_agent("s", Picture("graph")),
    "update_metadata": lambda r: r.update_metadata("s", {"new": True}),
    "delete_metadata": lambda r: r.delete_metadata("s", ["topic"]),
    "add_feedback": lambda r: r.add_feedback("s", {"rating": "up"}),
    "delete_session": lambda r: r.delete_session("s"),
}


def begin_with_everything(manager: MongoDBSessionManager) -> None:
    manager.update_metadata({"topic": "fish"})
    talker(manager)("hi")
    manager.session_repository.create_multi_agent("s", Picture("graph"))


@pytest.mark.parametrize("name", BY_A_MANAGER)
def test_what_another_manager_writes_during_a_lease_is_refused_and_can_be_stored_after_it(
    process: Process, database: Database[Any], name: str
) -> None:
    write = BY_A_MANAGER[name]
    begin_with_everything(process())
    other = process()
    agent = talker(other)

    with process().lease(30):
        before = database.sessions.find_one({})
        with pytest.raises(SessionBusyError) as raised:
            write(other, agent)
        assert database.sessions.find_one({}) == before
        assert 0 < (raised.value.retry_after or 0) <= 30

    other.flush()
    if name in ("metadata", "less metadata", "feedback"):  # these are written at once or not at all
        write(other, agent)
    after = database.sessions.find_one({})
    assert after is not None
    assert after != before
    assert "lease" not in after


@pytest.mark.parametrize("name", BY_A_REPOSITORY)
def test_what_a_repository_writes_during_a_lease_is_refused_and_goes_through_after_it(
    process: Process, database: Database[Any], repository: MongoDBSessionRepository, name: str
) -> None:
    write = BY_A_REPOSITORY[name]
    begin_with_everything(process())

    with process().lease(30):
        before = database.sessions.find_one({})
        with pytest.raises(SessionBusyError) as raised:
            write(repository)
        assert database.sessions.find_one({}) == before
        assert 0 < (raised.value.retry_after or 0) <= 30

    write(repository)
    after = database.sessions.find_one({})
    assert after is None or after != before


@pytest.mark.parametrize("name", BY_A_MANAGER)
def test_the_holder_of_the_lease_writes_everything(process: Process, database: Database[Any], name: str) -> None:
    begin_with_everything(process())
    manager = process()

    with manager.lease(30):
        before = database.sessions.find_one({})
        BY_A_MANAGER[name](manager, talker(manager))
        assert database.sessions.find_one({}) != before


def test_a_leased_session_can_still_be_read(process: Process, repository: MongoDBSessionRepository) -> None:
    begin_with_everything(process())

    with process().lease(30):
        assert texts(talker(process()).messages) == ["hi", "Re: hi"]
        assert process().get_metadata() == {"metadata": {"topic": "fish"}}
        assert len(repository.list_messages("s", "assistant")) == 2


# --- the end of a lease


@pytest.mark.slow
@pytest.mark.topology
def test_a_lease_that_has_run_out_lets_its_holder_store_nothing_more_but_keeps_what_he_has(
    process: Process, client: MongoClient[Any], database: Database[Any]
) -> None:
    talker(process())
    manager = process()

    def work_too_long() -> None:
        with manager.lease(0.2) as lease:
            agent = talker(manager)
            wait_until_past(client, lease_of(database)["expires_at"])
            for write in (
                lambda: agent("late"),
                lambda: manager.update_metadata({"late": True}),
                lambda: lease.renew(),
                lambda: manager.flush(),
            ):
                with pytest.raises(SessionBusyError, match="run out"):
                    write()
            assert stored(database) == []

    with pytest.raises(SessionBusyError, match="run out"):  # leaving is the last chance, and refused as well
        work_too_long()

    # Without a lease he is a writer like any other: behind what was stored meanwhile.
    talker(process())("meanwhile")
    manager.flush()
    assert stored(database) == ["meanwhile", "Re: meanwhile", "late"]


@pytest.mark.topology
def test_a_holder_whose_lease_ran_out_does_not_end_the_lease_of_the_next(
    process: Process, client: MongoClient[Any], database: Database[Any]
) -> None:
    slow, quick = process(), process()
    with ExitStack() as leases:
        with slow.lease(0.2):
            wait_until_past(client, lease_of(database)["expires_at"])
            leases.enter_context(quick.lease(30))
            held = lease_of(database)
            with pytest.raises(SessionBusyError):
                slow.update_metadata({"late": True})

        assert lease_of(database) == held
        with pytest.raises(SessionBusyError), process().lease(30):
            pytest.fail("two processes hold the lease")


def test_a_holder_whose_lease_ran_out_stores_nothing_while_the_next_one_holds_it(
    process: Process, client: MongoClient[Any], database: Database[Any]
) -> None:
    """The next one has stored nothing yet: only the token tells the writes of the one before from his."""
    talker(process())("before")
    slow, quick = process(), process()

    def work_too_long() -> None:
        with slow.lease(0.2) as lease:
            agent = talker(slow)
            wait_until_past(client, lease_of(database)["expires_at"])
            with quick.lease(60):
                held = lease_of(database)
                for write in (lambda: lease.renew(3600), lambda: agent("late"), slow.flush):
                    with pytest.raises(SessionBusyError, match="run out"):
                        write()
                assert lease_of(database) == held
                assert stored(database) == ["before", "Re: before"]

    with pytest.raises(SessionBusyError, match="run out"):  # Leaving is refused as well.
        work_too_long()
    slow.close()


@pytest.mark.slow
@pytest.mark.topology
def test_the_lease_of_a_process_that_was_killed_keeps_nobody_out_for_longer_than_it_said(
    server: Any, process: Process, database: Database[Any]
) -> None:
    script = textwrap.dedent("""
        import sys

        from mongodb_session_manager import MongoDBSessionManager

        manager = MongoDBSessionManager("s", sys.argv[1], sys.argv[2], "sessions")
        with manager.lease(2):
            print("inside", flush=True)
            sys.stdin.readline()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script, server.uri, database.name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "inside\n"
        running.kill()

    manager = process()
    with manager.lease(30, wait=60):
        talker(manager)("hi")

    assert stored(database) == ["hi", "Re: hi"]


@pytest.mark.slow
@pytest.mark.topology
def test_renewing_keeps_the_others_out_for_longer(
    process: Process, client: MongoClient[Any], database: Database[Any]
) -> None:
    manager = process()
    with manager.lease(600) as lease:
        agent = talker(manager)
        first_end = lease_of(database)["expires_at"]
        lease.renew(4)  # shorter, too
        assert lease_of(database)["expires_at"] < first_end
        short_end = lease_of(database)["expires_at"]
        lease.renew(600)
        wait_until_past(client, short_end)

        with pytest.raises(SessionBusyError), process().lease(30):
            pytest.fail("two processes hold the lease")
        agent("hi")
        lease.renew()
        assert lease_of(database)["expires_at"] > short_end

    assert stored(database) == ["hi", "Re: hi"]


def test_a_lease_that_is_not_held_cannot_be_renewed(process: Process) -> None:
    lease = process().lease(30)
    with pytest.raises(MongoDBSessionError, match="no lease"):
        lease.renew()
    with lease:
        pass
    with pytest.raises(MongoDBSessionError, match="no lease"):
        lease.renew()


class ApplicationError(Exception):
    """What the application raises inside a lease."""


@pytest.mark.topology
@pytest.mark.parametrize("way", ["with", "async with"])
@pytest.mark.parametrize("ends", ["well", "with an error"])
def test_leaving_stores_what_is_unsaved_and_then_gives_the_lease_back(
    process: Process, client: MongoClient[Any], database: Database[Any], way: str, ends: str
) -> None:
    manager = process(durability="turn")
    talker(process())

    def work() -> None:
        agent = talker(manager)
        with (
            fail_command(client, "update", app_name=APP_NAME, error_code=UNAUTHORIZED),
            pytest.raises(OperationFailure),
        ):
            agent("hi")
        assert stored(database) == []
        if ends == "with an error":
            raise ApplicationError

    def in_sync_code() -> None:
        with manager.lease(30):
            work()

    async def in_async_code() -> None:
        async with manager.lease(30):
            await asyncio.to_thread(work)

    run = in_sync_code if way == "with" else lambda: asyncio.run(in_async_code())
    if ends == "with an error":
        with pytest.raises(ApplicationError):
            run()
    else:
        run()

    assert stored(database) == ["hi", "Re: hi"]
    assert lease_of(database) is None


@pytest.mark.topology
@pytest.mark.parametrize("way", ["with", "async with"])
def test_the_lease_is_given_back_also_when_what_is_unsaved_cannot_be_stored(
    process: Process, client: MongoClient[Any], database: Database[Any], way: str
) -> None:
    manager = process(durability="turn")
    talker(process())

    def work() -> None:
        agent = talker(manager)
        with pytest.raises(OperationFailure):
            agent("hi")

    # Fails for the turn and for the last try on leaving; the third update gives the lease back.
    with ExitStack() as trouble:
        fail_twice = fail_command(client, "update", app_name=APP_NAME, error_code=UNAUTHORIZED, times=2)

        def leave() -> None:
            with manager.lease(30):
                trouble.enter_context(fail_twice)
                work()

        async def leave_async() -> None:
            async with manager.lease(30):
                trouble.enter_context(fail_twice)
                await asyncio.to_thread(work)

        ways = {"with": leave, "async with": lambda: asyncio.run(leave_async())}
        with pytest.raises(OperationFailure):
            ways[way]()

    assert lease_of(database) is None
    assert stored(database) == []
    manager.close()
    assert stored(database) == ["hi", "Re: hi"]


class Sent(monitoring.CommandListener):
    """Tells that an update is on its way."""

    def __init__(self) -> None:
        self.update = threading.Event()

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name == "update":
            self.update.set()

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


@pytest.mark.topology
def test_a_taker_that_is_cancelled_does_not_keep_the_others_out(
    process: Process, client: MongoClient[Any], database: Database[Any]
) -> None:
    talker(process())
    sent = Sent()
    manager = process([sent])

    async def take() -> None:
        async with manager.lease(600):
            pytest.fail("it was cancelled before")

    async def main() -> None:
        taking = asyncio.create_task(take())
        await asyncio.to_thread(sent.update.wait, 30)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking

    with fail_command(client, "update", app_name=APP_NAME, block_ms=300):
        asyncio.run(main())

    with process().lease(30, wait=60):
        pass
    with manager.lease(30, wait=60):  # and it can take it later
        pass


def test_a_waiting_taker_that_is_cancelled_does_not_take_it_later(process: Process, database: Database[Any]) -> None:
    holder, waiter = process(), process()

    async def main() -> None:
        async with holder.lease(600):
            waiting = asyncio.create_task(waiter.lease(30, wait=300).__aenter__())
            await asyncio.wait([waiting], timeout=0.2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(main())
    assert lease_of(database) is None


def test_a_session_that_ended_during_the_lease_is_not_brought_back_by_its_holder(
    process: Process, database: Database[Any]
) -> None:
    manager = process()

    def work() -> None:
        with manager.lease(30):
            agent = talker(manager)
            database.sessions.delete_one({"_id": "s"})  # expired, or deleted by an administrator
            agent("late")

    with pytest.raises(SessionNotFoundError):
        work()

    assert database.sessions.find_one({}) is None
