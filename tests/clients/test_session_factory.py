"""Factories: managers that share a client, which nobody else's factory closes."""

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import pytest
from offline_model import OfflineScriptedModel
from pymongo import AsyncMongoClient, MongoClient
from pymongo.database import Database
from pymongo.errors import AutoReconnect, ConfigurationError, InvalidOperation
from strands import Agent
from support.application import NOWHERE
from support.commands import CommandRecorder
from support.failpoints import fail_command
from support.histories import SESSIONS
from support.running import run_script
from support.waiting import eventually

from mongodb_session_manager import (
    InvalidIdentifierError,
    MongoDBSessionManagerFactory,
    close_global_factory,
    get_global_factory,
    initialize_global_factory,
)
from mongodb_session_manager._client.pool_statistics import PoolStatistics

Factories: TypeAlias = Callable[..., MongoDBSessionManagerFactory]


@pytest.fixture(autouse=True)
def _no_global_factory_is_left_behind() -> Iterator[None]:
    close_global_factory()
    yield
    close_global_factory()


@pytest.fixture
def factories(server: Any, database_name: str) -> Iterator[Factories]:
    """Makes factories that store in this test's database, with clients of their own."""
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> MongoDBSessionManagerFactory:
            factory = MongoDBSessionManagerFactory(server.uri, database_name, SESSIONS, **options)
            stack.callback(factory.close)
            return factory

        yield make


def talk(manager: Any, *, agent_id: str = "a") -> Agent:
    model = OfflineScriptedModel(["Hello."])
    agent = Agent(model=model, agent_id=agent_id, session_manager=manager, callback_handler=None)
    agent("Hi.")
    return agent


def counted(database: Database[Any]) -> dict[str, int]:
    """How many messages each stored session has."""
    return {found["_id"]: found["agents"]["a"]["message_count"] for found in database[SESSIONS].find()}


# --- making one


def test_the_parameters_are_those_of_the_documentation() -> None:
    parameters = inspect.signature(MongoDBSessionManagerFactory).parameters

    assert list(parameters)[:4] == ["connection_string", "database_name", "collection_name", "client"]
    assert parameters["database_name"].default == "database_name"
    assert parameters["collection_name"].default == "collection_name"
    of_a_manager = inspect.signature(MongoDBSessionManagerFactory.create_session_manager).parameters
    assert list(of_a_manager) == ["self", "session_id", "database_name", "collection_name", "kwargs"]


def test_a_factory_needs_a_client_or_a_way_to_make_one() -> None:
    with pytest.raises(ValueError, match="connection_string"):
        MongoDBSessionManagerFactory()


def test_a_connection_string_beside_a_borrowed_client_is_ignored_as_the_repository_does() -> None:
    with MongoClient(NOWHERE, connect=False) as client:
        assert MongoDBSessionManagerFactory("mongodb://elsewhere/", client=client).client is client


def test_options_for_a_borrowed_client_are_refused_rather_than_dropped() -> None:
    with MongoClient(NOWHERE, connect=False) as client, pytest.raises(TypeError, match="maxPoolSize, tls"):
        MongoDBSessionManagerFactory(client=client, tls=True, maxPoolSize=5)


@pytest.mark.parametrize(
    ("client", "error", "why"),
    [
        (AsyncMongoClient(NOWHERE, connect=False), TypeError, "event loop"),
        (NOWHERE, TypeError, "str"),
        (MongoClient(NOWHERE, w=0, connect=False), ValueError, "w=0"),
    ],
)
def test_a_client_with_which_messages_could_be_lost_is_not_borrowed(
    client: Any, error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
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


# --- managers


@pytest.mark.slow
def test_database_and_collection_are_the_factorys_unless_a_call_says_otherwise(
    factories: Factories, database: Database[Any]
) -> None:
    factory = factories()
    talk(factory.create_session_manager("here"))
    talk(factory.create_session_manager("there", collection_name="others"))
    talk(factory.create_session_manager("by position", database.name, "thirds"))

    stored = {name: [found["_id"] for found in database[name].find()] for name in (SESSIONS, "others", "thirds")}
    assert stored == {SESSIONS: ["here"], "others": ["there"], "thirds": ["by position"]}


@pytest.mark.slow
def test_parameters_of_the_factory_are_the_defaults_of_its_managers(
    factories: Factories, database: Database[Any]
) -> None:
    factory = factories(application_name="chat", session_type="support")
    talk(factory.create_session_manager("plain"))
    talk(factory.create_session_manager("special", session_type="sales"))

    stored = {found["_id"]: (found["application_name"], found["session_type"]) for found in database[SESSIONS].find()}
    assert stored == {"plain": ("chat", "support"), "special": ("chat", "sales")}


@pytest.mark.parametrize("option", ["maxPoolSize", "durabilty"])
def test_an_option_of_the_shared_client_and_a_misspelt_one_are_refused_for_one_manager(option: str) -> None:
    with MongoDBSessionManagerFactory(NOWHERE) as factory, pytest.raises(TypeError, match=option):
        factory.create_session_manager("s", **{option: 5})


@pytest.mark.slow
@pytest.mark.topology
def test_many_threads_store_their_sessions_through_one_factory(factories: Factories, database: Database[Any]) -> None:
    factory = factories(maxPoolSize=4)

    def serve(number: int) -> None:
        for _ in range(3):
            talk(factory.create_session_manager(f"s{number}"))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(serve, range(8)))

    stats = factory.get_connection_stats()
    assert (stats["in_use"], stats["waiting"]) == (0, 0)
    assert counted(database) == {f"s{number}": 6 for number in range(8)}


# --- open


@pytest.mark.slow
def test_after_open_building_the_agent_sends_nothing(factories: Factories) -> None:
    recorder = CommandRecorder()
    factory = factories(event_listeners=[recorder])
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
    assert sent.on(SESSIONS).names == ["find"]


@pytest.mark.slow
def test_open_takes_one_id_or_none(factories: Factories) -> None:
    factory = factories()
    talk(asyncio.run(factory.open("s", agent_id="assistant")), agent_id="assistant")

    assert asyncio.run(factory.open("s")).get_message_count("assistant") == 2


@pytest.mark.slow
def test_the_event_loop_goes_on_while_a_session_is_opened(factories: Factories, client: MongoClient[Any]) -> None:
    async def ticks_while_opening() -> int:
        opening = asyncio.ensure_future(factory.open("s", agent_id="a"))
        ticks = 0
        while not opening.done():
            await asyncio.sleep(0.01)
            ticks += 1
        await opening
        return ticks

    factory = factories(appname="slow")
    talk(factory.create_session_manager("s"))
    with fail_command(client, "find", app_name="slow", block_ms=500, times=1):
        assert asyncio.run(ticks_while_opening()) > 2  # one, if it stood still


@pytest.mark.slow
@pytest.mark.topology
def test_a_read_error_while_opening_is_an_error_never_an_empty_conversation(
    factories: Factories, client: MongoClient[Any]
) -> None:
    factory = factories(appname="unlucky", retryReads=False)
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


@pytest.mark.slow
def test_two_factories_with_different_options_live_side_by_side_and_close_only_themselves(
    factories: Factories,
) -> None:
    first, second = factories(maxPoolSize=5), factories(maxPoolSize=6)
    assert first.get_connection_stats()["configuration"]["max_pool_size"] == 5
    assert second.get_connection_stats()["configuration"]["max_pool_size"] == 6

    talk(first.create_session_manager("s"))
    first.close()

    assert len(talk(second.create_session_manager("s")).messages) == 4


def test_a_closed_factory_says_so() -> None:
    factory = MongoDBSessionManagerFactory(NOWHERE)
    factory.close()
    factory.close()

    assert factory.closed
    for use in (lambda: factory.create_session_manager("s"), lambda: asyncio.run(factory.open("s"))):
        with pytest.raises(RuntimeError, match="closed"):
            use()


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


@pytest.mark.slow
@pytest.mark.topology
def test_closing_stores_what_a_manager_has_not_stored_yet_and_leaves_what_waits_on_another_client(
    factories: Factories, client: MongoClient[Any], database: Database[Any]
) -> None:
    factory = factories(appname="unlucky", retryWrites=False)
    unsent_turn(factory, client)

    factories().close()
    assert counted(database) == {"s": 2}

    factory.close()
    assert counted(database) == {"s": 4}


@pytest.mark.slow
@pytest.mark.topology
def test_if_closing_cannot_store_it_the_factory_stays_open_and_nothing_is_lost(
    server: Any, client: MongoClient[Any], database: Database[Any]
) -> None:
    initialize_global_factory(server.uri, database.name, SESSIONS, appname="unlucky", retryWrites=False)
    unsent_turn(get_global_factory(), client)

    with (
        fail_command(client, "update", app_name="unlucky", close_connection=True),
        pytest.raises(AutoReconnect),
    ):
        close_global_factory()
    assert not get_global_factory().closed

    close_global_factory()
    assert counted(database) == {"s": 4}


# --- figures


@pytest.mark.slow
def test_connection_stats_are_those_of_the_factorys_own_client(factories: Factories) -> None:
    busy, idle = factories(), factories()
    talk(busy.create_session_manager("s"))
    assert busy.get_connection_stats()["check_outs"] >= 3  # type: ignore[operator]
    assert idle.get_connection_stats()["check_outs"] == 0
    eventually(lambda: busy.get_connection_stats()["server_version"] is not None)


def test_of_a_borrowed_client_nothing_is_invented(server: Any) -> None:
    with MongoClient(server.uri, maxPoolSize=9) as client, MongoDBSessionManagerFactory(client=client) as factory:
        client.admin.command("ping")
        stats = factory.get_connection_stats()
    known = {name for name, value in stats.items() if value is not None} - {"server_version"}
    assert known == {"configuration"}
    assert stats["configuration"]["max_pool_size"] == 9


def test_of_a_borrowed_client_with_our_listener_everything_is_known(server: Any) -> None:
    with (
        MongoClient(server.uri, event_listeners=[PoolStatistics()]) as client,
        MongoDBSessionManagerFactory(client=client) as factory,
    ):
        client.admin.command("ping")
        stats = factory.get_connection_stats()
    assert (stats["open"], stats["check_outs"]) == (1, 1)


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

    def initialise(_: int) -> MongoDBSessionManagerFactory:
        together.wait()
        return initialize_global_factory(NOWHERE)

    with ThreadPoolExecutor(8) as threads:
        factories = list(threads.map(initialise, range(8)))
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
def test_a_factory_made_before_a_fork_stores_sessions_in_the_children(server: Any, database: Database[Any]) -> None:
    script = """
        import sys, warnings
        from offline_model import OfflineScriptedModel
        from strands import Agent
        from mongodb_session_manager import get_global_factory, initialize_global_factory
        from support.running import in_child

        warnings.filterwarnings("error", message="MongoClient opened before fork")
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of every fork beside threads.

        def talk(session_id):
            manager = get_global_factory().create_session_manager(session_id)
            model = OfflineScriptedModel(["Hello."])
            Agent(model=model, agent_id="a", session_manager=manager, callback_handler=None)("Hi.")
            manager.close()

        def child():
            talk(session_id)
            assert factory.client is not parents_client
            factory.close()

        factory = initialize_global_factory(sys.argv[1], sys.argv[2], "sessions")
        talk("parent")
        parents_client = factory.client
        for session_id in ("child 0", "child 1"):
            assert in_child(child) == 0
        talk("parent")
        factory.close()
        """
    run_script(script, server.uri, database.name)
    assert counted(database) == {"child 0": 2, "child 1": 2, "parent": 4}
