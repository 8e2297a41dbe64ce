"""What happens to a turn while it is being stored: changes, forks and outages lose nothing and leave nothing behind."""

import asyncio
import contextlib
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pymongo.errors import OperationFailure
from support.application import APP_NAME, Application
from support.gates import Gate
from support.histories import by_hand
from support.running import run_script
from support.waiting import eventually

from mongodb_session_manager import MongoDBSessionManagerFactory

pytestmark = pytest.mark.slow

PICTURE, LARGER = b"picture" * 30_000, b"larger!" * 40_000


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def held(applications: Callable[..., Application], gate: Gate) -> Application:
    """An application whose uploads can be held."""
    return applications([gate])


def image(content: bytes) -> dict[str, Any]:
    return {"image": {"format": "png", "source": {"bytes": content}}}


def test_a_picture_that_is_redacted_while_it_is_uploaded_lies_in_no_collection(held: Application, gate: Gate) -> None:
    manager, agent = held.opened()
    manager.flush()

    async def redact() -> None:
        manager.redact_latest_message(by_hand("[redacted]"), agent)

    with ThreadPoolExecutor() as threads:
        with gate.holding("insert") as uploading:
            threads.submit(manager.append_message, {"role": "user", "content": [image(PICTURE)]}, agent)
            uploading.wait()
            asyncio.run(redact())
        manager.flush()
    assert held.dialogue() == [("user", "[redacted]")]
    assert held.database["sessions_blobs.files"].count_documents({}) == 0
    assert held.database["sessions_blobs.chunks"].count_documents({}) == 0


def test_a_message_that_is_replaced_while_its_picture_is_uploaded_can_be_read_at_any_moment(
    held: Application, gate: Gate
) -> None:
    manager, agent = held.opened()
    manager.flush()

    def shown() -> Any:
        (message,) = held.repository.list_messages("s", "a")
        return message.message["content"][0]["image"]["source"]["bytes"]

    def say(content: bytes) -> None:
        message: Any = {"role": "user", "content": [image(content)], "tracking_id": "t"}
        agent.messages[:] = [message]
        manager.append_message(message, agent)

    async def say_more() -> None:
        say(LARGER)

    with ThreadPoolExecutor() as threads:
        with gate.holding("insert") as uploading:
            threads.submit(say, PICTURE)
            uploading.wait()
            asyncio.run(say_more())
            with gate.holding("insert") as uploading_more:
                uploading.released.set()
                uploading_more.wait()
                assert shown() == PICTURE
        manager.flush()
    assert shown() == LARGER


def test_a_manager_that_is_forgotten_in_an_outage_is_still_stored_when_its_factory_is_closed(app: Application) -> None:
    factory = MongoDBSessionManagerFactory(
        app.uri, app.database.name, "sessions", appname=APP_NAME, event_listeners=[app.recorder]
    )
    outage = contextlib.ExitStack()

    async def handle() -> None:
        manager = factory.create_session_manager("s")
        agent = app.agent(manager)
        await asyncio.to_thread(manager.flush)
        outage.enter_context(app.failing("update"))
        manager.append_message(by_hand("Important."), agent)

    async def serve() -> None:
        await handle()
        gc.collect()
        await asyncio.to_thread(eventually, lambda: app.recorder.commands.failures)

    with outage:
        asyncio.run(serve())
        gc.collect()

    def closed() -> bool:
        """The attempt that failed may not be over yet."""
        with contextlib.suppress(OperationFailure):
            factory.close()
            return True
        return False

    eventually(closed)
    assert app.dialogue() == [("user", "Important.")]


TALKS_AND_FORKS = """
    import sys, warnings
    from offline_model import OfflineScriptedModel
    from strands import Agent
    from strands.hooks import MessageAddedEvent
    from support.running import in_child
    from mongodb_session_manager import MongoDBSessionManager

    warnings.filterwarnings("error", message="MongoClient opened before fork")  # A child that sends anything.
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of every fork beside threads.

    def fork(event):
        if event.message["role"] == "user":
            assert in_child(manager.flush) == 0

    manager = MongoDBSessionManager("s", sys.argv[1], sys.argv[2], "sessions", durability="turn")
    agent = Agent(model=OfflineScriptedModel(["Hello."]), agent_id="a", session_manager=manager, callback_handler=None)
    agent.hooks.add_callback(MessageAddedEvent, fork)
    agent("Hi.")
    manager.close()
"""


def test_a_turn_that_is_under_way_at_a_fork_is_stored_once_and_by_the_parent(app: Application) -> None:
    run_script(TALKS_AND_FORKS, app.uri, app.database.name)
    assert app.dialogue() == [("user", "Hi."), ("assistant", "Hello.")]
