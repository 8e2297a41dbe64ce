"""Factories: managers that share a client, which nobody else's factory closes."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import pytest
from offline_model import OfflineScriptedModel
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import AutoReconnect, ConfigurationError, InvalidOperation
from strands import Agent
from support.commands import CommandRecorder
from support.failpoints import fail_command
from support.waiting import eventually

from mongodb_session_manager import (
    InvalidIdentifierError,
    MongoDBConnectionPool,
    MongoDBSessionManagerFactory,
    close_global_factory,
    get_global_factory,
    initialize_global_factory,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# No server listens there; nothing in these tests that uses it sends anything.
NOWHERE = "mongodb://127.0.0.1:9/"


@pytest.fixture(autouse=True)
def _no_global_factory_is_left_behind() -> Iterator[None]:
    close_global_factory()
    yield
    close_global_factory()


def talk(manager: Any, *, agent_id: str = "a") -> Agent:
    agent = Agent(
        model=OfflineScriptedModel(["Hello."]), agent_id=agent_id, session_manager=manager, callback_handler=None
    )
    agent("Hi.")
    return agent


# --- making one


def test_the_parameters_are_those_of_the_documentation() -> None:
    parameters = inspect.signature(MongoDBSessionManagerFactory).parameters

    assert list(parameters)[:4] == ["connection_string", "database_name", "collection_name", "client"]
    assert parameters["database_name"].default == "database_name"
    assert parameters["collection_name"].default == "collection_name"
    assert list(inspect.signature(MongoDBSessionManagerFactory.create_session_manager).parameters) == [
        "self",
        "session_id",
        "database_name",
        "collection_name",
        "kwargs",
    ]


def test_a_factory_needs_a_client_or_a_way_to_make_one() -> None:
    with pytest.raises(ValueError, match="connection_string"):
        MongoDBSessionManagerFactory()


def test_a_connection_string_beside_a_borrowed_client_is_ignored_as_the_repository_does() -> None:
    with MongoClient(NOWHERE, connect=False) as client:
        assert MongoDBSessionManagerFactory("mongodb://elsewhere/", client=client).client is client


def test_options_for_a_borrowed_client_are_refused_rather_than_dropped() -> None:
    with MongoClient(NOWHERE, connect=False) as client, pytest.raises(TypeError, match="maxPoolSize, tls"):
        MongoDBSessionManagerFactory(client=client, tls=True, maxPoolSize=5)


def test_an_async_client_is_refused_with_the_reason() -> None:
    client: AsyncMongoClient[Any] = AsyncMongoClient(NOWHERE, connect=False)
    with pytest.raises(TypeError, match="event loop"):
        MongoDBSessionManagerFactory(client=client)  # type: ignore[arg-type]


def test_unacknowledged_writes_are_refused_since_lost_messages_would_go_unnoticed() -> None:
    with pytest.raises(ValueError, match="w=0"):
        MongoDBSessionManagerFactory(NOWHERE, w=0)
    with MongoClient(NOWHERE, w=0, connect=False) as client, pytest.raises(ValueError, match="w=0"):
        MongoDBSessionManagerFactory(client=client)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"durability": "trun"}, ValueError),
        ({"on_conflict": "merge"}, ValueError),
        ({"maxPoolSiez": 5}, ConfigurationError),
    ],
)
def test_a_misspelt_option_fails_when_the_application_starts_not_at_the_first_request(
    options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        MongoDBSessionManagerFactory(NOWHERE, **options)


def test_options_of_the_client_reach_it_and_the_defaults_are_those_of_the_pool() -> None:
    with MongoDBSessionManagerFactory(NOWHERE + "?maxPoolSize=7", appname="chat", maxIdleTimeMS=1000) as factory:
        pool = factory.client.options.pool_options
        assert (pool.max_pool_size, pool.min_pool_size) == (7, 7)
        assert (pool.appname, pool.max_idle_time_seconds, pool.wait_queue_timeout) == ("chat", 1, 5)


# --- managers


@pytest.mark.slow
def test_managers_share_the_client_and_making_one_sends_nothing(server: Any, database_name: str) -> None:
    recorder = CommandRecorder()
    with MongoDBSessionManagerFactory(
        server.uri, database_name, "sessions", minPoolSize=0, event_listeners=[recorder]
    ) as factory:
        first, second = factory.create_session_manager("s1"), factory.create_session_manager("s2")

        assert recorder.names == []
        assert first.session_repository.client is second.session_repository.client is factory.client


@pytest.mark.slow
def test_database_and_collection_are_the_factorys_unless_a_call_says_otherwise(
    server: Any, client: MongoClient[Any], database_name: str
) -> None:
    with MongoDBSessionManagerFactory(server.uri, database_name, "sessions") as factory:
        talk(factory.create_session_manager("here"))
        talk(factory.create_session_manager("there", collection_name="others"))
        talk(factory.create_session_manager("by position", database_name, "thirds"))

    database = client[database_name]
    assert [document["_id"] for document in database["sessions"].find()] == ["here"]
    assert [document["_id"] for document in database["others"].find()] == ["there"]
    assert [document["_id"] for document in database["thirds"].find()] == ["by position"]


def test_parameters_of_the_factory_are_the_defaults_of_its_managers(
    server: Any, client: MongoClient[Any], database_name: str
) -> None:
    with MongoDBSessionManagerFactory(
        server.uri, database_name, "sessions", application_name="chat", session_type="support"
    ) as factory:
        talk(factory.create_session_manager("plain"))
        talk(factory.create_session_manager("special", session_type="sales"))

    stored = {document["_id"]: document for document in client[database_name]["sessions"].find()}
    assert (stored["plain"]["application_name"], stored["plain"]["session_type"]) == ("chat", "support")
    assert (stored["special"]["application_name"], stored["special"]["session_type"]) == ("chat", "sales")


def test_an_option_of_the_shared_client_cannot_be_changed_for_one_manager() -> None:
    with MongoDBSessionManagerFactory(NOWHERE) as factory, pytest.raises(TypeError, match="maxPoolSize"):
        factory.create_session_manager("s", maxPoolSize=5)


def test_a_misspelt_parameter_of_a_manager_is_not_taken_for_an_option() -> None:
    with MongoDBSessionManagerFactory(NOWHERE) as factory, pytest.raises(TypeError, match="durabilty"):
        factory.create_session_manager("s", durabilty="turn")


@pytest.mark.slow
@pytest.mark.topology
def test_many_threads_store_their_sessions_through_one_factory(
    server: Any, client: MongoClient[Any], database_name: str
) -> None:
    errors: list[Exception] = []

    def serve(number: int) -> None:
        try:
            for _ in range(3):
                talk(factory.create_session_manager(f"s{number}"))
        except Exception as error:
            errors.append(error)

    with MongoDBSessionManagerFactory(server.uri, database_name, "sessions", maxPoolSize=4) as factory:
        threads = [threading.Thread(target=serve, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = factory.get_connection_stats()

    assert errors == []
    assert (stats["in_use"], stats["waiting"]) == (0, 0)
    stored = client[database_name]["sessions"].find()
    assert sorted((d["_id"], d["agents"]["a"]["message_count"]) for d in stored) == [
        (f"s{number}", 6) for number in range(8)
    ]


# --- open


@pytest.mark.slow
def test_after_open_building_the_agent_sends_nothing(server: Any, database_name: str) -> None:
    recorder = CommandRecorder()
    with MongoDBSessionManagerFactory(server.uri, database_name, "sessions", event_listeners=[recorder]) as factory:
        for agent_id in ("a", "b"):
            talk(factory.create_session_manager("s"), agent_id=agent_id)

        async def resume() -> list[Agent]:
            manager = await factory.open("s", agent_id=["a", "b"])
            with recorder.recording() as sent:
                agents = [
                    Agent(model=OfflineScriptedModel(), agent_id=agent_id, session_manager=manager)
                    for agent_id in ("a", "b")
                ]
            assert sent.names == []
            return agents

        with recorder.recording() as sent:
            agents = asyncio.run(resume())

    assert [len(agent.messages) for agent in agents] == [2, 2]
    assert sent.on("sessions").names == ["find"]


def test_open_takes_one_id_or_none(server: Any, database_name: str) -> None:
    with MongoDBSessionManagerFactory(server.uri, database_name, "sessions") as factory:
        talk(asyncio.run(factory.open("s", agent_id="assistant")), agent_id="assistant")
        manager = asyncio.run(factory.open("s"))

        assert manager.get_message_count("assistant") == 2


def test_the_event_loop_goes_on_while_a_session_is_opened(
    server: Any, client: MongoClient[Any], database_name: str
) -> None:
    async def ticks_while_opening() -> int:
        opening = asyncio.ensure_future(factory.open("s", agent_id="a"))
        ticks = 0
        while not opening.done():
            await asyncio.sleep(0.01)
            ticks += 1
        await opening
        return ticks

    with MongoDBSessionManagerFactory(server.uri, database_name, "sessions", appname="slow") as factory:
        talk(factory.create_session_manager("s"))
        with fail_command(client, "find", app_name="slow", block_ms=500, times=1):
            ticks = asyncio.run(ticks_while_opening())

    assert ticks > 2  # one, if it stood still


@pytest.mark.topology
def test_a_read_error_while_opening_is_an_error_never_an_empty_conversation(
    server: Any, client: MongoClient[Any], database_name: str
) -> None:
    with MongoDBSessionManagerFactory(
        server.uri, database_name, "sessions", appname="unlucky", retryReads=False
    ) as factory:
        talk(factory.create_session_manager("s"))
        with (
            fail_command(client, "find", app_name="unlucky", error_code=13),
            pytest.raises(Exception, match="failCommand"),
        ):
            asyncio.run(factory.open("s", agent_id="a"))


def test_ids_that_cannot_be_used_are_refused_before_anything_is_sent() -> None:
    with MongoDBSessionManagerFactory(NOWHERE) as factory:
        with pytest.raises(InvalidIdentifierError):
            factory.create_session_manager("a/b")
        with pytest.raises(InvalidIdentifierError):
            asyncio.run(factory.open("s", agent_id="a/b"))
        with pytest.raises(TypeError):
            asyncio.run(factory.open({"$gt": ""}))  # type: ignore[arg-type]


# --- closing


def test_two_factories_with_different_options_live_side_by_side_and_close_only_themselves(
    server: Any, database_name: str
) -> None:
    first = MongoDBSessionManagerFactory(server.uri, database_name, "sessions", maxPoolSize=5)
    second = MongoDBSessionManagerFactory(server.uri, database_name, "sessions", maxPoolSize=6)
    assert first.get_connection_stats()["configuration"]["max_pool_size"] == 5
    assert second.get_connection_stats()["configuration"]["max_pool_size"] == 6

    talk(first.create_session_manager("s"))
    first.close()

    manager = second.create_session_manager("s")
    assert len(talk(manager).messages) == 4
    second.close()


def test_a_borrowed_client_is_never_closed(server: Any, database_name: str) -> None:
    with MongoClient(server.uri) as client:
        with MongoDBSessionManagerFactory(client=client, database_name=database_name) as factory:
            talk(factory.create_session_manager("s"))
        factory.close()

        assert client.admin.command("ping")["ok"] == 1


def test_a_closed_factory_says_so() -> None:
    factory = MongoDBSessionManagerFactory(NOWHERE)
    factory.close()
    factory.close()

    assert factory.closed
    with pytest.raises(RuntimeError, match="closed"):
        factory.create_session_manager("s")
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(factory.open("s"))


def test_the_owned_client_is_closed_with_its_factory(server: Any) -> None:
    with MongoDBSessionManagerFactory(server.uri) as factory:
        client = factory.client
        client.admin.command("ping")

    with pytest.raises(InvalidOperation):
        client.admin.command("ping")
    # The driver's own thread may have been about to open one more, which it closes at once.
    eventually(lambda: factory.get_connection_stats()["open"] == 0)


def unsent_turn(factory: MongoDBSessionManagerFactory, client: MongoClient[Any]) -> None:
    """Store one turn; leave a second, which could not be stored, in a manager that nobody holds any more."""
    talk(factory.create_session_manager("s"))
    with (
        fail_command(client, "update", app_name="unlucky", close_connection=True),
        pytest.raises(AutoReconnect),
    ):
        talk(factory.create_session_manager("s", durability="turn"))


def message_count(client: MongoClient[Any], database_name: str) -> int:
    [document] = client[database_name]["sessions"].find()
    return int(document["agents"]["a"]["message_count"])


@pytest.mark.slow
@pytest.mark.topology
def test_closing_stores_what_a_manager_has_not_stored_yet(
    server: Any, client: MongoClient[Any], database_name: str
) -> None:
    factory = MongoDBSessionManagerFactory(server.uri, database_name, "sessions", appname="unlucky", retryWrites=False)
    unsent_turn(factory, client)
    assert message_count(client, database_name) == 2

    factory.close()

    assert message_count(client, database_name) == 4


@pytest.mark.slow
def test_closing_leaves_what_waits_on_another_factorys_client(
    server: Any, client: MongoClient[Any], database_name: str
) -> None:
    first = MongoDBSessionManagerFactory(server.uri, database_name, "sessions", appname="unlucky", retryWrites=False)
    unsent_turn(first, client)

    with MongoDBSessionManagerFactory(server.uri, database_name, "sessions"):
        pass

    assert message_count(client, database_name) == 2
    first.close()
    assert message_count(client, database_name) == 4


@pytest.mark.slow
@pytest.mark.topology
def test_if_closing_cannot_store_it_the_factory_stays_open_and_nothing_is_lost(
    server: Any, client: MongoClient[Any], database_name: str
) -> None:
    initialize_global_factory(server.uri, database_name, "sessions", appname="unlucky", retryWrites=False)
    unsent_turn(get_global_factory(), client)

    with (
        fail_command(client, "update", app_name="unlucky", close_connection=True),
        pytest.raises(AutoReconnect),
    ):
        close_global_factory()
    assert not get_global_factory().closed

    close_global_factory()
    assert message_count(client, database_name) == 4


# --- figures


@pytest.mark.slow
def test_connection_stats_are_those_of_the_factorys_own_client(server: Any, database_name: str) -> None:
    with (
        MongoDBSessionManagerFactory(server.uri, database_name) as busy,
        MongoDBSessionManagerFactory(server.uri, database_name) as idle,
    ):
        talk(busy.create_session_manager("s"))
        assert busy.get_connection_stats()["check_outs"] >= 3  # type: ignore[operator]
        assert idle.get_connection_stats()["check_outs"] == 0
        eventually(lambda: busy.get_connection_stats()["server_version"] is not None)


def test_of_a_borrowed_client_only_what_is_known_is_told(server: Any) -> None:
    with (
        MongoClient(server.uri, maxPoolSize=9) as client,
        MongoDBSessionManagerFactory(client=client) as factory,
    ):
        stats = factory.get_connection_stats()
        assert (stats["open"], stats["servers"]) == (None, None)
        assert stats["configuration"]["max_pool_size"] == 9


def test_of_a_client_borrowed_from_the_pool_everything_is_known(server: Any) -> None:
    client = MongoDBConnectionPool.initialize(server.uri)
    try:
        with MongoDBSessionManagerFactory(client=client) as factory:
            client.admin.command("ping")
            assert factory.get_connection_stats()["check_outs"] == 1
    finally:
        MongoDBConnectionPool.close()


# --- the global factory


def test_before_initialisation_the_error_says_what_to_call() -> None:
    with pytest.raises(RuntimeError, match="initialize_global_factory"):
        get_global_factory()


def test_the_global_factory_is_the_same_everywhere_until_it_is_closed() -> None:
    factory = initialize_global_factory(
        connection_string=NOWHERE, database_name="virtualagents", maxPoolSize=100, minPoolSize=10
    )
    assert get_global_factory() is factory

    close_global_factory()
    close_global_factory()

    assert factory.closed
    with pytest.raises(RuntimeError, match="initialize_global_factory"):
        get_global_factory()


def test_initialising_again_neither_closes_nor_forgets_a_factory_in_use() -> None:
    factory = initialize_global_factory(NOWHERE, "one")

    assert initialize_global_factory(NOWHERE, "one") is factory
    with pytest.raises(RuntimeError, match=r"close_global_factory\(\)"):
        initialize_global_factory(NOWHERE, "two")
    assert get_global_factory() is factory
    assert not factory.closed


def test_a_global_factory_that_was_closed_by_hand_can_be_initialised_anew() -> None:
    initialize_global_factory(NOWHERE).close()

    with pytest.raises(RuntimeError, match="initialize_global_factory"):
        get_global_factory()
    assert initialize_global_factory(NOWHERE, "other") is get_global_factory()


def test_threads_that_initialise_at_once_get_one_factory() -> None:
    together = threading.Barrier(8)
    factories: list[MongoDBSessionManagerFactory] = []

    def initialise() -> None:
        together.wait()
        factories.append(initialize_global_factory(NOWHERE))

    threads = [threading.Thread(target=initialise) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(factories) == 8
    assert all(factory is factories[0] for factory in factories)


# --- credentials and forks


def test_no_error_or_picture_of_a_factory_shows_a_credential() -> None:
    uri = "mongodb://ada:s3cret@127.0.0.1:9/"
    factory = initialize_global_factory(uri)
    with pytest.raises(RuntimeError) as other:
        initialize_global_factory(uri, maxPoolSize=3)
    with pytest.raises(ConfigurationError) as unknown:
        MongoDBSessionManagerFactory(uri, maxPoolSiez=3)

    manager = factory.create_session_manager("s")
    shown = f"{factory!r} {manager!r} {other.value!r} {unknown.value!r} {factory.get_connection_stats()}"
    assert "127.0.0.1:9" in shown
    assert "s3cret" not in shown
    assert "ada" not in shown


@pytest.mark.slow
@pytest.mark.topology
def test_a_factory_made_before_a_fork_stores_sessions_in_the_children(
    server: Any, client: MongoClient[Any], database_name: str
) -> None:
    script = textwrap.dedent(
        """
        import os, sys, traceback, warnings
        from offline_model import OfflineScriptedModel
        from strands import Agent
        from mongodb_session_manager import get_global_factory, initialize_global_factory

        warnings.filterwarnings("error", message="MongoClient opened before fork")
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of every fork beside threads.

        def talk(session_id):
            manager = get_global_factory().create_session_manager(session_id)
            model = OfflineScriptedModel(["Hello."])
            Agent(model=model, agent_id="a", session_manager=manager, callback_handler=None)("Hi.")
            manager.close()

        factory = initialize_global_factory(sys.argv[1], sys.argv[2], "sessions")
        talk("parent")
        parents_client = factory.client
        children = []
        for number in range(2):
            child = os.fork()
            if child == 0:
                try:
                    talk(f"child {number}")
                    assert factory.client is not parents_client
                    factory.close()
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    sys.stderr.flush()
                    os._exit(1)
            children.append(child)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
        talk("parent")
        factory.close()
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, server.uri, database_name],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PYTHONPATH": "examples"},
    )

    assert (done.returncode, done.stderr) == (0, "")
    stored = client[database_name]["sessions"].find()
    assert sorted((d["_id"], d["agents"]["a"]["message_count"]) for d in stored) == [
        ("child 0", 2),
        ("child 1", 2),
        ("parent", 4),
    ]
