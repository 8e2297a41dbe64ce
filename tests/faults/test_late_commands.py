"""A command that was held up on its way and arrives behind newer ones, which were acknowledged, changes nothing.

Its client has given it up and sent another; the network delivers it all the same, when it likes. The proxy on the wire
does just that (`support/wire_proxy.py`). What no standalone server can keep out is told in `docs/guarantees.md`.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from strands.types.session import Session, SessionAgent, SessionMessage
from support.histories import SESSIONS, SMALL, by_hand, manager_of, repository_of, talker, texts
from support.repositories import MultiAgent
from support.waiting import eventually
from support.wire_proxy import Cut

from mongodb_session_manager import MongoDBSessionRepository

pytestmark = pytest.mark.topology


@dataclass
class World:
    """A session, and two ways to it: a plain client, and one whose commands may be late."""

    database: Database[Any]
    there: MongoDBSessionRepository
    late: MongoDBSessionRepository
    late_client: MongoClient[Any]
    hold: Callable[..., contextlib.AbstractContextManager[None]]

    def conversation(self, turns: int = 1, **options: Any) -> None:
        with manager_of(self.there.client, self.database.name, **options) as manager:
            agent = talker(manager)
            for number in range(turns):
                agent(f"prompt {number}")
                manager.flush()

    def session(self) -> dict[str, Any]:
        found = self.database[SESSIONS].find_one({"_id": "s"})
        assert found is not None
        return found


@pytest.fixture
def world(server: Any, client: MongoClient[Any], database: Database[Any], proxies: Any) -> Iterator[World]:
    retries = server.kind == "replica_set"  # Then the driver sends it again first, and after that the library.
    proxy = proxies()

    @contextlib.contextmanager
    def hold(command: str, number: int = 1) -> Iterator[None]:
        """Hold up the next such command, and the driver's retry, until the block has ended."""
        go = threading.Event()
        cut = Cut(command, "long after", number, 1 + retries, go.wait)
        proxy.cut(cut)
        try:
            yield
            assert cut.seen > number + retries, "nothing was held up, or nothing was sent again"
        finally:
            go.set()
        eventually(lambda: cut.answers == 1 + retries)
        proxy.heal()

    options: Any = {"socketTimeoutMS": 300, "retryWrites": retries, "heartbeatFrequencyMS": 500}
    with MongoClient(proxy.uri, **options) as late:
        late.admin.command("ping")
        yield World(database, repository_of(client, database.name), repository_of(late, database.name), late, hold)


def test_metadata_that_was_set_later_stays(world: World) -> None:
    world.there.create_session(Session(session_id="s", session_type="x"))
    with world.hold("update"):
        world.late.update_metadata("s", {"status": "open"})
        world.late.update_metadata("s", {"status": "closed"})

    assert world.there.get_metadata("s") == {"metadata": {"status": "closed"}}


def test_metadata_that_was_set_after_a_deletion_stays(world: World) -> None:
    world.there.create_session(Session(session_id="s", session_type="x"))
    world.there.update_metadata("s", {"status": "open"})
    with world.hold("update"):
        world.late.delete_metadata("s", ["status"])
        world.there.update_metadata("s", {"status": "closed"})

    assert world.there.get_metadata("s") == {"metadata": {"status": "closed"}}


def test_a_state_that_was_stored_later_stays(world: World) -> None:
    manager = manager_of(world.late_client, world.database.name)
    agent = talker(manager)
    agent("hi")
    with world.hold("update"):
        for number in (1, 2):
            agent.state.set("n", number)
            manager.sync_agent(agent)

    assert world.session()["agents"]["assistant"]["agent_data"]["state"] == {"n": 2}


def test_a_state_that_another_turn_has_changed_stays(world: World) -> None:
    manager = manager_of(world.late_client, world.database.name)
    agent = talker(manager)
    agent("hi")
    with world.hold("update"):
        agent.state.set("n", 1)
        manager.sync_agent(agent)
        with manager_of(world.there.client, world.database.name) as another:
            other = talker(another)
            other.state.set("n", 2)
            other("go on")

    assert world.session()["agents"]["assistant"]["agent_data"]["state"] == {"n": 2}


def test_an_agent_that_the_repository_has_updated_later_stays(world: World) -> None:
    def agent(number: int) -> SessionAgent:
        return SessionAgent(agent_id="assistant", state={"n": number}, conversation_manager_state={})

    world.conversation()
    with world.hold("update"):
        world.late.update_agent("s", agent(1))
        world.late.update_agent("s", agent(2))

    assert world.session()["agents"]["assistant"]["agent_data"]["state"] == {"n": 2}


@pytest.mark.parametrize("begun", [False, True])
def test_the_state_of_a_graph_that_was_stored_later_stays(world: World, begun: bool) -> None:
    world.there.create_session(Session(session_id="s", session_type="x"))
    if begun:
        world.there.create_multi_agent("s", MultiAgent("graph", {"n": 0}))
    with world.hold("update"):
        world.late.create_multi_agent("s", MultiAgent("graph", {"n": 1}))
        world.late.update_multi_agent("s", MultiAgent("graph", {"n": 2}))

    assert world.there.read_multi_agent("s", "graph") == {"n": 2}


# An archived message is announced in the session document first, then changed in its segment.
@pytest.mark.parametrize(("turns", "held"), [(1, 1), (8, 1), (8, 2)], ids=["embedded", "announced", "archived"])
def test_a_redaction_is_not_taken_back_by_an_earlier_change(world: World, turns: int, held: int) -> None:
    world.conversation(turns, **SMALL)
    assert (world.session()["agents"]["assistant"]["archived_count"] > 0) == (turns == 8)

    with world.hold("update", held):
        for text in ("version 1", "REDACTED"):
            message = SessionMessage(message=by_hand(text), message_id=0)
            world.late.update_message("s", "assistant", message)

    assert texts(world.there.list_messages("s", "assistant", limit=1)) == ["REDACTED"]


# What a living process has put there too late it repairs; nobody repairs what arrives long after.
@pytest.mark.parametrize("held", [1, 2, 3], ids=["begun", "put", "noted"])
def test_what_was_redacted_since_is_not_brought_back_into_the_search(world: World, held: int) -> None:
    world.there.index_messages()  # Makes the text index, which takes longer than the late client waits.
    world.conversation()
    with world.hold("update", held):
        world.late.index_messages()
        world.there.update_message("s", "assistant", SessionMessage(by_hand("REDACTED"), 0))

    found = {one["_id"]["message"]: one["text"] for one in world.database.sessions_search.find()}
    assert found == {0: "REDACTED", 1: "Re: prompt 0"}


def test_a_deletion_deletes_no_session_that_was_begun_after_it(world: World) -> None:
    world.conversation()
    with world.hold("delete"):
        world.late.delete_session("s")
        with manager_of(world.there.client, world.database.name) as manager:
            talker(manager)("a new conversation")

    assert texts(world.there.list_messages("s", "assistant")) == ["a new conversation", "Re: a new conversation"]


def test_a_message_is_not_appended_to_a_session_that_was_begun_after_it(world: World) -> None:
    world.conversation()
    message = SessionMessage(message=by_hand("of the old life"), message_id=9)
    with world.hold("update"):
        world.late.create_message("s", "assistant", message)
        world.there.delete_session("s")
        world.conversation()

    assert texts(world.there.list_messages("s", "assistant")) == ["prompt 0", "Re: prompt 0"]


def test_a_feedback_is_stored_once_though_it_has_moved_into_the_history_meanwhile(world: World) -> None:
    world.there.create_session(Session(session_id="s", session_type="x"))
    with world.hold("update"):
        world.late.add_feedback("s", {"rating": "mine"})
        for number in range(210):
            world.there.add_feedback("s", {"rating": number})

    ratings = [feedback["rating"] for feedback in world.there.get_feedbacks("s")]
    assert ratings == ["mine", *range(210)]


def test_a_lease_is_not_taken_again_after_it_was_given_back(world: World) -> None:
    manager = manager_of(world.late_client, world.database.name)
    talker(manager)("hi")
    with world.hold("update"), manager.lease(3600):
        pass

    with manager_of(world.there.client, world.database.name).lease(1):
        pass


def test_a_session_that_was_begun_and_deleted_is_not_brought_back(world: World, server: Any) -> None:
    if server.kind != "replica_set":
        pytest.skip("a standalone server numbers no commands: see docs/guarantees.md")
    world.there.create_session(Session(session_id="another", session_type="x"))
    with world.hold("update"):
        manager_of(world.late_client, world.database.name).update_metadata({"x": 1})
        world.there.delete_session("s")

    assert not world.there.session_exists("s")


# --- an answer that is lost while others go on


def test_a_large_feedback_whose_answer_was_lost_is_stored_once_though_another_came(
    client: MongoClient[Any], database: Database[Any], proxies: Any
) -> None:
    there, proxy = repository_of(client, database.name), proxies()
    there.create_session(Session(session_id="s", session_type="x"))
    proxy.cut(
        Cut("update", "before its answer arrives", meanwhile=lambda: there.add_feedback("s", {"rating": "other"}))
    )
    with MongoClient(proxy.uri, retryWrites=False) as cut_off:
        late = repository_of(cut_off, database.name)
        late.add_feedback("s", {"rating": "mine", "comment": "x" * 300_000})

    assert [feedback["rating"] for feedback in there.get_feedbacks("s")] == ["mine", "other"]
