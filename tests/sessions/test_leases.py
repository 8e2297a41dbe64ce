"""The lease: one process at a time writes to a session, by the server's clock, whatever becomes of the processes."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
from offline_model import OfflineScriptedModel
from pymongo.errors import OperationFailure
from strands import Agent
from support.application import Application
from support.commands import CommandRecorder
from support.histories import by_hand, texts
from support.repositories import MultiAgent, a_message, an_agent
from support.running import start_python
from support.waiting import eventually
from support.wire_proxy import Cut, WireProxy

from mongodb_session_manager import (
    MongoDBSessionError,
    MongoDBSessionManager,
    MongoDBSessionRepository,
    SessionBusyError,
    SessionNotFoundError,
)
from mongodb_session_manager._session.lease import SessionLease


def lease_of(app: Application) -> Any:
    return app.session().get("lease")


def wait_until_past(app: Application, moment: Any) -> None:
    """Wait until it is later than `moment` by the clock that counts: the server's."""
    eventually(lambda: app.database.client.admin.command("hello")["localTime"] > moment)


def assert_others_are_kept_out(app: Application) -> None:
    with pytest.raises(SessionBusyError), app.process().lease(30):
        pytest.fail("two processes hold the lease")


# --- taking and waiting


@pytest.mark.topology
def test_a_second_process_is_told_at_once_that_the_session_is_taken_and_for_how_long(app: Application) -> None:
    with app.process().lease(600):
        with pytest.raises(SessionBusyError) as raised, app.process().lease(30):
            pytest.fail("two processes hold the lease")

        assert raised.value.retry_after is not None
        assert 500 < raised.value.retry_after <= 600


@pytest.mark.slow
def test_a_second_process_waits_as_long_as_it_said_before_it_gives_up(app: Application) -> None:
    with app.process().lease(600):
        began = time.monotonic()
        with pytest.raises(SessionBusyError), app.process().lease(30, wait=0.3):
            pytest.fail("two processes hold the lease")
        assert 0.3 <= time.monotonic() - began < 60


@pytest.mark.slow
@pytest.mark.topology
def test_a_process_that_waits_gets_the_lease_when_it_is_given_back(app: Application) -> None:
    waiter = app.process()
    got_it = threading.Event()

    def wait() -> None:
        with waiter.lease(600, wait=300):
            got_it.set()

    with ThreadPoolExecutor() as threads:
        with app.process().lease(600):
            waiting = threads.submit(wait)
            assert not got_it.wait(0.3)
        waiting.result(60)
    assert got_it.is_set()


@pytest.mark.slow
def test_in_async_code_a_second_process_is_told_at_once_and_a_waiting_one_gets_it(app: Application) -> None:
    one, other = app.process(), app.process()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    async def wait() -> None:
        async with other.lease(600, wait=300):
            app.agent(other)

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
def test_processes_that_contend_for_a_session_are_never_inside_together(app: Application) -> None:
    processes, rounds = 4, 5
    app.agent(app.process())
    start = threading.Barrier(processes)
    inside = threading.Semaphore(1)

    def contend(name: str) -> None:
        manager = app.process(on_conflict="raise")
        start.wait(30)
        for number in range(rounds):
            with manager.lease(600, wait=300):
                assert inside.acquire(blocking=False), "two processes hold the lease"
                # What is read inside is true until the lease is left, so nothing conflicts and no turn is lost.
                if number == 0:
                    agent = app.agent(manager)
                else:
                    manager.reload(agent)
                turn = manager.get_metadata()["metadata"].get("turn", 0)
                agent(f"{name} {number}")
                manager.update_metadata({"turn": turn + 1})
                inside.release()

    with ThreadPoolExecutor() as threads:
        list(threads.map(contend, [f"process {number}" for number in range(processes)]))

    assert len(texts(app.messages())) == processes * rounds * 2
    assert app.database.sessions.find_one({})["metadata"] == {"turn": processes * rounds}  # type: ignore[index]
    assert lease_of(app) is None


def test_a_session_can_be_leased_before_it_exists_and_leased_again_after(app: Application) -> None:
    manager = app.process()
    with manager.lease(30):
        app.agent(manager)("hi")
    with manager.lease(30):
        manager.update_metadata({"again": True})

    assert texts(app.messages()) == ["hi", "Re: hi"]
    assert lease_of(app) is None


def test_a_lease_inside_a_lease_is_refused_and_the_outer_one_goes_on(app: Application) -> None:
    manager = app.process()
    with manager.lease(30) as lease:
        agent = app.agent(manager)
        with pytest.raises(MongoDBSessionError, match="already"), manager.lease(30):
            pytest.fail("a lease inside a lease")
        with pytest.raises(MongoDBSessionError, match="already"), lease:
            pytest.fail("a lease inside itself")

        assert_others_are_kept_out(app)
        agent("hi")

    assert texts(app.messages()) == ["hi", "Re: hi"]


@pytest.mark.parametrize("seconds", [0, -1, 86_401, float("nan")])
def test_a_lease_that_could_not_be_held_or_would_never_end_is_refused(app: Application, seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        app.process().lease(seconds)
    with app.process().lease(30) as lease:
        with pytest.raises(ValueError, match="seconds"):
            lease.renew(seconds)
        lease.renew()


def test_two_tasks_of_one_manager_that_ask_at_once_do_not_end_each_others_lease(app: Application) -> None:
    manager = app.process()
    agent = app.agent(manager)
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
    assert texts(app.messages()) == ["hi", "Re: hi"]


def test_a_lease_does_not_make_a_session_look_recently_used(app: Application) -> None:
    manager = app.process()
    app.agent(manager)("hi")
    before = app.database.sessions.find_one({})
    assert before is not None

    with manager.lease(30) as lease:
        lease.renew()

    # That a lease was taken is counted: a command that takes one may arrive after it was given back.
    assert app.database.sessions.find_one({}) == {**before, "leases": 1}


def test_taking_a_lease_reads_anew_what_was_read_before(app: Application) -> None:
    app.agent(app.process())("before")
    manager = asyncio.run(app.factory().open("s", agent_id="a"))
    other = app.process()
    with other.lease(30):
        app.agent(other)("meanwhile")

    with manager.lease(30):
        agent = app.agent(manager)
        assert texts(agent.messages) == ["before", "Re: before", "meanwhile", "Re: meanwhile"]


def test_an_agent_that_was_opened_before_the_lease_is_built_inside_without_a_command(app: Application) -> None:
    app.agent(app.process())("before")

    async def take_turn() -> None:
        manager = await app.factory().open("s", agent_id="a")
        async with manager.lease(30):
            with app.recorder.recording() as sent:
                agent = app.agent(manager)
            assert sent.names == []
            await agent.invoke_async("hi")

    asyncio.run(take_turn())

    assert texts(app.messages()) == ["before", "Re: before", "hi", "Re: hi"]


@pytest.mark.slow
@pytest.mark.topology
def test_a_lease_whose_answer_was_lost_is_held(app: Application, proxies: Callable[[], WireProxy]) -> None:
    app.agent(app.process())
    proxy = proxies()
    manager = app.process(uri=f"{proxy.uri}&retryWrites=false")
    manager.get_metadata()
    manager.update_metadata({"begun": True})
    proxy.cut(Cut("update", "before its answer arrives"))
    with manager.lease(30):
        assert proxy.cut_commands == ["update"]
        app.agent(manager)("hi")
        proxy.cut(Cut("update", "before its answer arrives"))  # and so is the one that gives it back
    assert proxy.cut_commands == ["update", "update"]
    manager.session_repository.client.close()

    assert lease_of(app) is None
    assert texts(app.messages()) == ["hi", "Re: hi"]


# --- who may write


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
    "create_agent": lambda r: r.create_agent("s", an_agent("new", {"new": True})),
    "update_agent": lambda r: r.update_agent("s", an_agent("a", {"new": True})),
    "create_message": lambda r: r.create_message("s", "a", a_message(7, "from outside")),
    "update_message": lambda r: r.update_message("s", "a", a_message(0, "from outside")),
    "create_multi_agent": lambda r: r.create_multi_agent("s", MultiAgent("new", {"status": "new"})),
    "update_multi_agent": lambda r: r.update_multi_agent("s", MultiAgent("graph", {"status": "new"})),
    "update_metadata": lambda r: r.update_metadata("s", {"new": True}),
    "delete_metadata": lambda r: r.delete_metadata("s", ["topic"]),
    "add_feedback": lambda r: r.add_feedback("s", {"rating": "up"}),
    "delete_session": lambda r: r.delete_session("s"),
}


def begin_with_everything(app: Application) -> None:
    manager = app.process()
    manager.update_metadata({"topic": "fish"})
    app.agent(manager)("hi")
    manager.session_repository.create_multi_agent("s", MultiAgent("graph", {"status": "new"}))


def assert_refused_during_a_lease(app: Application, write: Callable[[], object]) -> Any:
    """The write is refused and changes nothing; returns the session document of before."""
    with app.process().lease(30):
        before = app.session()
        with pytest.raises(SessionBusyError) as raised:
            write()
        assert app.session() == before
        assert 0 < (raised.value.retry_after or 0) <= 30
    return before


@pytest.mark.parametrize("name", BY_A_MANAGER)
def test_what_another_manager_writes_during_a_lease_is_refused_and_can_be_stored_after_it(
    app: Application, name: str
) -> None:
    write = BY_A_MANAGER[name]
    begin_with_everything(app)
    other = app.process()
    agent = app.agent(other)

    before = assert_refused_during_a_lease(app, lambda: write(other, agent))

    other.flush()
    if name in ("metadata", "less metadata", "feedback"):  # these are written at once or not at all
        write(other, agent)
    assert app.session() != before
    assert lease_of(app) is None


@pytest.mark.parametrize("name", BY_A_REPOSITORY)
def test_what_a_repository_writes_during_a_lease_is_refused_and_goes_through_after_it(
    app: Application, name: str
) -> None:
    write = BY_A_REPOSITORY[name]
    begin_with_everything(app)

    before = assert_refused_during_a_lease(app, lambda: write(app.repository))

    write(app.repository)
    assert app.database.sessions.find_one({}) != {key: value for key, value in before.items() if key != "lease"}


@pytest.mark.parametrize("name", BY_A_MANAGER)
def test_the_holder_of_the_lease_writes_everything(app: Application, name: str) -> None:
    begin_with_everything(app)
    manager = app.process()

    with manager.lease(30):
        before = app.database.sessions.find_one({})
        BY_A_MANAGER[name](manager, app.agent(manager))
        assert app.database.sessions.find_one({}) != before


def test_a_leased_session_can_still_be_read(app: Application) -> None:
    begin_with_everything(app)

    with app.process().lease(30):
        assert texts(app.agent(app.process()).messages) == ["hi", "Re: hi"]
        assert app.process().get_metadata() == {"metadata": {"topic": "fish"}}
        assert len(app.repository.list_messages("s", "a")) == 2


# --- the end of a lease


@pytest.mark.slow
@pytest.mark.topology
def test_a_lease_that_has_run_out_lets_its_holder_store_nothing_more_but_keeps_what_he_has(app: Application) -> None:
    app.agent(app.process())
    manager = app.process()

    def work_too_long() -> None:
        with manager.lease(0.2) as lease:
            agent = app.agent(manager)
            wait_until_past(app, lease_of(app)["expires_at"])
            for write in (
                lambda: agent("late"),
                lambda: manager.update_metadata({"late": True}),
                lambda: lease.renew(),
                lambda: manager.flush(),
            ):
                with pytest.raises(SessionBusyError, match="run out"):
                    write()
            assert texts(app.messages()) == []

    with pytest.raises(SessionBusyError, match="run out"):  # leaving is the last chance, and refused as well
        work_too_long()

    # Without a lease he is a writer like any other: behind what was stored meanwhile.
    app.agent(app.process())("meanwhile")
    manager.flush()
    assert texts(app.messages()) == ["meanwhile", "Re: meanwhile", "late"]


@pytest.mark.slow
@pytest.mark.topology
def test_a_holder_whose_lease_ran_out_does_not_end_the_lease_of_the_next(app: Application) -> None:
    slow, quick = app.process(), app.process()
    with ExitStack() as leases:
        with slow.lease(0.2):
            wait_until_past(app, lease_of(app)["expires_at"])
            leases.enter_context(quick.lease(30))
            held = lease_of(app)
            with pytest.raises(SessionBusyError):
                slow.update_metadata({"late": True})

        assert lease_of(app) == held
        assert_others_are_kept_out(app)


@pytest.mark.slow
def test_a_holder_whose_lease_ran_out_stores_nothing_while_the_next_one_holds_it(app: Application) -> None:
    # The next one has stored nothing yet: only the token tells the writes of the one before from his.
    app.agent(app.process())("before")
    slow, quick = app.process(), app.process()

    def work_too_long() -> None:
        with slow.lease(0.2) as lease:
            agent = app.agent(slow)
            wait_until_past(app, lease_of(app)["expires_at"])
            with quick.lease(60):
                held = lease_of(app)
                for write in (lambda: lease.renew(3600), lambda: agent("late"), slow.flush):
                    with pytest.raises(SessionBusyError, match="run out"):
                        write()
                assert lease_of(app) == held
                assert texts(app.messages()) == ["before", "Re: before"]

    with pytest.raises(SessionBusyError, match="run out"):  # Leaving is refused as well.
        work_too_long()
    slow.close()


@pytest.mark.slow
@pytest.mark.topology
def test_the_lease_of_a_process_that_was_killed_keeps_nobody_out_for_longer_than_it_said(app: Application) -> None:
    script = """
        import sys

        from mongodb_session_manager import MongoDBSessionManager

        manager = MongoDBSessionManager("s", sys.argv[1], sys.argv[2], "sessions")
        with manager.lease(2):
            print("inside", flush=True)
            sys.stdin.readline()
    """
    with start_python(script, app.uri, app.database.name) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "inside\n"
        running.kill()

    manager = app.process()
    with manager.lease(30, wait=60):
        app.agent(manager)("hi")

    assert texts(app.messages()) == ["hi", "Re: hi"]


@pytest.mark.slow
@pytest.mark.topology
def test_renewing_keeps_the_others_out_for_longer(app: Application) -> None:
    manager = app.process()
    with manager.lease(600) as lease:
        agent = app.agent(manager)
        first_end = lease_of(app)["expires_at"]
        lease.renew(4)  # shorter, too
        assert lease_of(app)["expires_at"] < first_end
        short_end = lease_of(app)["expires_at"]
        lease.renew(600)
        wait_until_past(app, short_end)

        assert_others_are_kept_out(app)
        agent("hi")
        lease.renew()
        assert lease_of(app)["expires_at"] > short_end

    assert texts(app.messages()) == ["hi", "Re: hi"]


def test_a_lease_that_is_not_held_cannot_be_renewed(app: Application) -> None:
    lease = app.process().lease(30)
    with pytest.raises(MongoDBSessionError, match="no lease"):
        lease.renew()
    with lease:
        pass
    with pytest.raises(MongoDBSessionError, match="no lease"):
        lease.renew()


class ApplicationError(Exception):
    """What the application raises inside a lease."""


def work_inside(lease: SessionLease, way: str, work: Callable[[], None]) -> None:
    """Do some work inside a lease, in synchronous or in async code."""

    async def main() -> None:
        async with lease:
            await asyncio.to_thread(work)

    if way == "async with":
        asyncio.run(main())
    else:
        with lease:
            work()


@pytest.mark.topology
@pytest.mark.parametrize("way", ["with", "async with"])
@pytest.mark.parametrize("ends", ["well", "with an error"])
def test_leaving_stores_what_is_unsaved_and_then_gives_the_lease_back(app: Application, way: str, ends: str) -> None:
    manager = app.process(durability="turn")
    app.agent(app.process())

    def work() -> None:
        agent = app.agent(manager)
        with app.failing("update"), pytest.raises(OperationFailure):
            agent("hi")
        assert texts(app.messages()) == []
        if ends == "with an error":
            raise ApplicationError

    with pytest.raises(ApplicationError) if ends == "with an error" else nullcontext():
        work_inside(manager.lease(30), way, work)

    assert texts(app.messages()) == ["hi", "Re: hi"]
    assert lease_of(app) is None


@pytest.mark.topology
@pytest.mark.parametrize("way", ["with", "async with"])
def test_the_lease_is_given_back_also_when_what_is_unsaved_cannot_be_stored(app: Application, way: str) -> None:
    manager = app.process(durability="turn")
    app.agent(app.process())

    with ExitStack() as trouble:

        def work() -> None:
            # Fails for the turn and for the last try on leaving; the third update gives the lease back.
            trouble.enter_context(app.failing("update", times=2))
            agent = app.agent(manager)
            with pytest.raises(OperationFailure):
                agent("hi")

        with pytest.raises(OperationFailure):
            work_inside(manager.lease(30), way, work)

    assert lease_of(app) is None
    assert texts(app.messages()) == []
    manager.close()
    assert texts(app.messages()) == ["hi", "Re: hi"]


@pytest.mark.slow
@pytest.mark.topology
def test_a_taker_that_is_cancelled_does_not_keep_the_others_out(app: Application) -> None:
    app.agent(app.process())
    sent = CommandRecorder()
    manager = app.process(sent)

    async def take() -> None:
        async with manager.lease(600):
            pytest.fail("it was cancelled before")

    async def main() -> None:
        taking = asyncio.create_task(take())
        await asyncio.to_thread(eventually, lambda: "update" in sent.names)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking

    with app.slow(milliseconds=300):
        asyncio.run(main())

    with app.process().lease(30, wait=60):
        pass
    with manager.lease(30, wait=60):  # and it can take it later
        pass


@pytest.mark.slow
def test_a_waiting_taker_that_is_cancelled_does_not_take_it_later(app: Application) -> None:
    holder, waiter = app.process(), app.process()

    async def main() -> None:
        async with holder.lease(600):
            waiting = asyncio.create_task(waiter.lease(30, wait=300).__aenter__())
            await asyncio.wait([waiting], timeout=0.2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(main())
    assert lease_of(app) is None


def test_a_session_that_ended_during_the_lease_is_not_brought_back_by_its_holder(app: Application) -> None:
    manager = app.process()

    def work() -> None:
        with manager.lease(30):
            agent = app.agent(manager)
            app.database.sessions.delete_one({"_id": "s"})  # expired, or deleted by an administrator
            agent("late")

    with pytest.raises(SessionNotFoundError):
        work()

    assert app.database.sessions.find_one({}) is None
