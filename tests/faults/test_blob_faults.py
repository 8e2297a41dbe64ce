"""Blobs and what goes wrong: whoever dies, loses a connection or races, no named blob is lost and no other is left.

After each fault the session goes on in a new process. Then every file that anything stored names is whole, and after a
sweep there is no other file or chunk.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count, product
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from pymongo import MongoClient, monitoring
from pymongo.errors import AutoReconnect
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.types.session import SessionAgent, SessionMessage
from support.blob_crash_script import COLLECTION, SCENARIOS, empty, opened, repository_of
from support.blobs import (
    assert_every_named_file_is_whole,
    assert_only_named_files_are_left,
    data,
    image,
    left,
    named_files,
    said,
    shown,
    talker,
)
from support.crash_script import Crash, crashes
from support.sweeping import swept
from support.wire_proxy import Cut, Moment, WireProxy

from mongodb_session_manager import MongoDBSessionManager, SessionNotFoundError
from mongodb_session_manager._model.archive_policy import ArchivePolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mongodb_session_manager.mongodb_session_repository import MongoDBSessionRepository

both_durabilities = pytest.mark.parametrize("durability", ["message", "turn"])


class Place(NamedTuple):
    """A client, and the collection of the sessions."""

    client: MongoClient[Any]
    database: str
    collection: str = COLLECTION

    def manager(self, **options: Any) -> MongoDBSessionManager:
        return opened(*self, **options)

    @property
    def repository(self) -> MongoDBSessionRepository:
        return repository_of(*self)

    def sweep(self) -> int:
        """Sweep without any grace. Ids tell whole seconds, so this is ahead of the one that is passing."""
        return swept(self.repository, -2)

    def on(self, client: MongoClient[Any]) -> Place:
        return self._replace(client=client)

    def empty(self) -> None:
        """Delete every document, and keep the collections and their indexes: making them costs more than a test."""
        empty(*self)


@pytest.fixture
def place(client: MongoClient[Any], database_name: str) -> Place:
    return Place(client, database_name)


# --- a process that is killed ---------------------------------------------------------------------


BEFORE = ["before**", "Re: before"]
TURN = [*BEFORE, "look**", "Re: look"]
# What may be stored after so many messages were acknowledged.
OUTCOMES: dict[str, Callable[[Crash], list[list[str]]]] = {
    "a turn with message": lambda crash: [TURN] if crash.acknowledged else [TURN[:n] for n in (2, 3, 4)],
    "a turn with turn": lambda crash: [TURN] if crash.acknowledged else [BEFORE, TURN],
    "a redaction": lambda crash: {
        0: [BEFORE, [*BEFORE, "my secret*"]],
        3: [[*BEFORE, "my secret*"], [*BEFORE, "[redacted]"]],
        4: [[*BEFORE, "[redacted]"]],
    }[crash.acknowledged],
    "a deletion": lambda crash: [[]] if crash.acknowledged else [BEFORE, []],
    "a sweep": lambda _: [BEFORE],
}
# How often each command of theirs is hit, besides those that open, read and make indexes.
WRITES = {
    # Three files of two commands each, beside the commits of two messages or one turn.
    "a turn with message": {"update": 5, "insert": 3},
    "a turn with turn": {"update": 4, "insert": 3},
    "a redaction": {"update": 3, "insert": 1, "delete": 2},
    "a deletion": {"delete": 4},
    # Files and chunks of two lives, and their segments.
    "a sweep": {"delete": 6},
}


@pytest.mark.topology
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_process_killed_before_or_after_any_command_about_blobs_loses_and_leaves_nothing(
    server: Any, place: Place, scenario: str
) -> None:
    database = place.client[place.database]
    hit: list[str] = []
    for crash in crashes("blob_crash_script", server.uri, place.database, scenario):
        assert_every_named_file_is_whole(database)
        before = talker(place.manager())
        assert said(before.messages) in OUTCOMES[scenario](crash), crash
        images = [block for message in before.messages for block in message["content"][1:]]
        assert images == [image(n) for n in range(1, len(images) + 1)], crash
        if crash.killed and crash.session_id.startswith("started"):
            hit.append(crash.command)

        agent = talker(place.manager())
        agent(shown("go on", 9))
        place.sweep()

        again = talker(place.manager())
        assert said(again.messages) == [*said(before.messages), "go on*", "Re: go on"], crash
        assert again.messages == agent.messages, crash
        assert_only_named_files_are_left(database)
        if scenario == "a sweep":
            assert not list(database.sessions_history.find()), crash
    assert {name: hit.count(name) for name in WRITES[scenario]} == WRITES[scenario]


# --- a connection that is cut ---------------------------------------------------------------------

COMMANDS = ("find", "aggregate", "update", "insert", "delete")
MOMENTS: tuple[Moment, Moment] = ("before it is run", "before its answer arrives")


def turn(durability: str) -> Callable[[Place], None]:
    def act(place: Place) -> None:
        manager = place.manager(durability=durability)
        agent = talker(manager)
        agent._model_state["screen"] = data(7)
        agent(shown("look", 3, 4))
        manager.close()

    return act


def redaction(place: Place) -> None:
    manager = place.manager()
    agent = talker(manager)
    manager.append_message({"role": "user", "content": shown("my secret", 3)}, agent)
    manager.redact_latest_message({"role": "user", "content": [{"text": "[redacted]"}]}, agent)
    manager.close()


def deletion(place: Place) -> None:
    place.repository.delete_session("s")


def sweeping(place: Place) -> None:
    place.sweep()


# What is done, what is stored then, and whether an error of the connection may be told.
CUT: dict[str, tuple[Callable[[Place], None], list[str], bool]] = {
    "a turn with message": (turn("message"), TURN, False),
    "a turn with turn": (turn("turn"), TURN, False),
    "a redaction": (redaction, [*BEFORE, "[redacted]"], False),
    "a deletion": (deletion, [], True),
    "a sweep": (sweeping, BEFORE, True),
}


CUTS_AT_A_TIME = 8


@pytest.mark.topology
@pytest.mark.parametrize("name", CUT)
def test_a_connection_that_is_cut_at_any_command_about_blobs_loses_and_leaves_nothing(place: Place, name: str) -> None:
    act, expected, may_fail = CUT[name]
    place.client.admin.command("ping")
    assert place.client.address is not None
    host, port = place.client.address
    database = place.client[place.database]

    # Many at a time, since a client waits half a second after a cut; the collections are used again and again.
    free: SimpleQueue[Place] = SimpleQueue()
    for number in range(CUTS_AT_A_TIME):
        free.put(place._replace(collection=f"c{number}"))

    def run(number: int, moment: Moment) -> bool:
        """Cut one command; return whether there was one to be cut."""
        mine = free.get_nowait()
        mine.empty()
        try:
            return cut(mine, number, moment)
        finally:
            free.put(mine)

    def cut(mine: Place, number: int, moment: Moment) -> bool:
        with mine.manager() as manager:
            talker(manager)(shown("before", 1, 2))
        if name == "a sweep":
            lonely = mine.manager()
            talker(lonely, "other")(shown("gone", 5))
            database[mine.collection].update_one({"_id": "s"}, {"$unset": {"agents.other": ""}})
        client: MongoClient[Any]
        with (
            WireProxy(host, port) as proxy,
            MongoClient(proxy.uri, retryWrites=False, heartbeatFrequencyMS=500) as client,
        ):
            proxy.cut(Cut(COMMANDS, moment, number))
            try:
                act(mine.on(client))
            except (AutoReconnect, SessionNotFoundError):
                assert may_fail, mine
            proxy.heal()
            was_cut = bool(proxy.cut_commands)
        found = said(talker(mine.manager()).messages)
        assert found == expected or (may_fail and was_cut and found == BEFORE), mine
        assert_every_named_file_is_whole(database, mine.collection)
        mine.sweep()
        assert_only_named_files_are_left(database, mine.collection)
        return was_cut

    with ThreadPoolExecutor(CUTS_AT_A_TIME) as threads:
        for first in count(1, 4):
            cases = list(product(range(first, first + 4), MOMENTS))
            if not all(threads.map(lambda case: run(*case), cases)):
                break


# --- others, at every command -----------------------------------------------------------------------


class Meanwhile(monitoring.CommandListener):
    """Does something before or after the nth command of a client, in the midst of what the client does."""

    def __init__(self, number: int, moment: str, act: Callable[[], object]) -> None:
        self._left = number
        self._moment = moment
        self._act = act
        self._busy = threading.Lock()
        self.done = False

    def _at(self, moment: str) -> None:
        if moment != self._moment or self.done:
            return
        self._left -= 1
        if self._left == 0:
            self.done = True
            self._act()

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self._at("before")

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        self._at("after")

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        self._at("after")


def at_each_command(
    uri: str,
    place: Place,
    prepare: Callable[[Place], object],
    act: Callable[[Place], object],
    other: Callable[..., Any],
) -> Iterator[tuple[str, object]]:
    """Let `other` happen before and after each command of `act`, each time in a collection with nothing else in it.

    Yields at which command it happened, and what `act` returned or raised.
    """
    for number in count(1):
        for moment in ("before", "after"):
            place.empty()
            prepare(place)
            meanwhile = Meanwhile(number, moment, lambda: other(place))
            client: MongoClient[Any]
            outcome: object
            with MongoClient(uri, event_listeners=[meanwhile]) as client:
                try:
                    outcome = act(place.on(client))
                except Exception as error:
                    outcome = error
            if not meanwhile.done:
                assert number > 2, "nothing was sent"
                return
            yield f"{moment} command {number}", outcome


def two_turns(place: Place) -> None:
    with place.manager() as manager:
        agent = talker(manager)
        for n in (1, 2):
            agent(shown(f"{n}", n))


@pytest.mark.topology
@both_durabilities
def test_a_sweep_in_the_midst_of_a_turn_deletes_nothing(server: Any, place: Place, durability: str) -> None:
    def act(mine: Place) -> None:
        turn(durability)(mine)

    for moment, outcome in at_each_command(server.uri, place, two_turns, act, lambda mine: mine.repository.sweep()):
        assert outcome is None, moment
        assert said(talker(place.manager()).messages) == ["1*", "Re: 1", "2*", "Re: 2", "look**", "Re: look"]
        assert_only_named_files_are_left(place.client[place.database])


POLICY = ArchivePolicy(after_messages=1, block=2)


def conversation_to_archive(place: Place) -> None:
    """Four turns of which the oldest three can be archived."""
    manager = place.manager()
    agent = talker(manager, conversation_manager=SlidingWindowConversationManager(window_size=2))
    for n in range(4):
        agent(shown(f"{n}", n))
    agent.state.set("window", "moved")
    manager.close()
    stored: Any = place.client[place.database][place.collection].find_one({})
    assert "archived_count" not in stored["agents"]["assistant"] or not stored["agents"]["assistant"]["archived_count"]
    assert stored["agents"]["assistant"]["agent_data"]["conversation_manager_state"]["removed_message_count"] >= 4


def archive(place: Place) -> None:
    stored: Any = place.client[place.database][place.collection].find_one({})
    place.repository._store.archiver.archive("s", stored["incarnation"], "assistant", POLICY)


ARCHIVED = [text for n in range(4) for text in (f"{n}*", f"Re: {n}")]


@pytest.mark.topology
@pytest.mark.parametrize("order", ["archive in a sweep", "sweep in an archiving"])
def test_a_sweep_while_messages_move_into_the_history_deletes_nothing(server: Any, place: Place, order: str) -> None:
    def sweep(mine: Place) -> int:
        return mine.sweep()

    act, other = (sweep, archive) if order == "archive in a sweep" else (archive, sweep)
    for moment, outcome in at_each_command(server.uri, place, conversation_to_archive, act, other):
        assert outcome in (None, 0), moment
        stored = place.repository.list_messages("s", "assistant")
        assert said(message.message for message in stored) == ARCHIVED, moment
        assert place.sweep() == 0
        archived: Any = place.client[place.database][place.collection].find_one({})
        assert archived["agents"]["assistant"]["archived_count"] >= 4
        assert_only_named_files_are_left(place.client[place.database])


def redact_the_first(place: Place) -> None:
    gone: Any = {"role": "user", "content": [{"text": "gone"}]}
    place.repository.update_message("s", "assistant", SessionMessage(gone, 0))


def begin_and_archive(place: Place) -> None:
    conversation_to_archive(place)
    archive(place)


@pytest.mark.parametrize("prepare", [conversation_to_archive, begin_and_archive])
def test_a_message_that_is_redacted_while_it_is_read_is_read_as_it_was_or_as_it_is(
    server: Any, place: Place, prepare: Callable[[Place], None]
) -> None:
    def read(mine: Place) -> Any:
        return [found.message for found in mine.repository.list_messages("s", "assistant")]

    seen = []
    for _, outcome in at_each_command(server.uri, place, prepare, read, redact_the_first):
        assert isinstance(outcome, list), outcome
        seen.append(said(outcome))
        assert seen[-1] in (ARCHIVED, ["gone", *ARCHIVED[1:]])
    assert ARCHIVED in seen
    assert ["gone", *ARCHIVED[1:]] in seen


def delete_and_begin_again(place: Place) -> None:
    place.repository.delete_session("s")
    with place.manager() as manager:
        talker(manager)(shown("anew", 8))


def by_a_manager(place: Place) -> None:
    turn("message")(place)


def by_the_repository(place: Place) -> None:
    big = [{"text": "look"}, image(3, 128 * 1024)]
    place.repository.create_message("s", "assistant", SessionMessage({"role": "user", "content": big}, 7))


def by_an_update(place: Place) -> None:
    big = [{"text": "look"}, image(3, 128 * 1024)]
    place.repository.update_message("s", "assistant", SessionMessage({"role": "user", "content": big}, 0))


def by_an_agent_update(place: Place) -> None:
    place.repository.update_agent("s", SessionAgent("assistant", {"screen": data(3, 128 * 1024)}, {}))


class Orchestrator:
    id = "graph"

    def serialize_state(self) -> dict[str, Any]:
        return {"screen": data(3, 128 * 1024)}


def by_a_graph(place: Place) -> None:
    place.repository.create_multi_agent("s", Orchestrator())


@pytest.mark.parametrize("act", [by_a_manager, by_the_repository, by_an_update, by_an_agent_update, by_a_graph])
def test_a_session_that_is_begun_again_in_the_midst_of_a_write_loses_no_blob(
    server: Any, place: Place, act: Callable[[Place], None]
) -> None:
    told = 0
    database = place.client[place.database]
    for moment, outcome in at_each_command(server.uri, place, two_turns, act, delete_and_begin_again):
        # Strands wraps what is raised behind the first model call.
        cause = getattr(outcome, "original_exception", outcome)
        assert cause is None or isinstance(cause, SessionNotFoundError), (moment, outcome)
        told += outcome is not None
        place.sweep()
        # Whatever is stored can be read, and nothing else is left.
        assert_only_named_files_are_left(database)
        assert said(talker(place.manager()).messages)[-1] in ("Re: anew", "Re: look", "look*")
        found = named_files(database)
        owners = database["sessions_blobs.files"].distinct("metadata.incarnation")
        stored: Any = database.sessions.find_one({})
        assert owners == [stored["incarnation"]] or not found
    assert told


# --- two writers ----------------------------------------------------------------------------------


@pytest.mark.topology
@both_durabilities
def test_images_of_two_writers_are_kept_wherever_their_messages_came_to_stand(place: Place, durability: str) -> None:
    database = place.client[place.database]
    with ExitStack() as stack:
        managers = [stack.enter_context(place.manager(durability=durability)) for _ in range(2)]
        talker(managers[0])("before")
        managers = [stack.enter_context(place.manager(durability=durability)) for _ in range(2)]
        one, two = map(talker, managers)
        for n in range(3):
            one(shown(f"one {n}", n))
            two(shown(f"two {n}", n + 10))
    document: Any = database.sessions.find_one({})
    places = {}
    for message in document["agents"]["assistant"]["messages"]:
        for block in message["content"][1:]:
            places[block["image"]["source"]["bytes"]["value"]["file"]] = message["message_id"]
    meant = {file["_id"]: file["metadata"]["message"] for file in database["sessions_blobs.files"].find()}
    assert meant.keys() == places.keys()
    assert any(meant[file_id] != at for file_id, at in places.items()), "no commit was moved"

    for _ in range(2):
        assert place.sweep() == 0
        assert_only_named_files_are_left(database)
        archive_all(place)
    stored = place.repository.list_messages("s", "assistant")
    seen = {m.message["content"][0]["text"]: m.message["content"][1:] for m in stored}
    for n in range(3):
        assert seen[f"one {n}"] == [image(n)]
        assert seen[f"two {n}"] == [image(n + 10)]


def archive_all(place: Place) -> None:
    """Move everything into the history, live or not, so that the images lie in segments."""
    sessions = place.client[place.database][place.collection]
    removed = "agents.assistant.agent_data.conversation_manager_state.removed_message_count"
    sessions.update_one({}, {"$set": {removed: 14}})
    archive(place)
    stored: Any = sessions.find_one({})
    assert stored["agents"]["assistant"]["archived_count"] >= 12


def test_a_sweep_removes_only_the_history_of_lives_that_are_over(place: Place) -> None:
    database = place.client[place.database]
    # Of a session that is gone, one that is begun again, and one that lives.
    for session_id in ("gone", "again", "alive"):
        manager = MongoDBSessionManager(
            session_id,
            client=place.client,
            database_name=place.database,
            collection_name="sessions",
            archive_after_messages=2,
            archive_block=2,
        )
        agent = talker(manager, conversation_manager=SlidingWindowConversationManager(window_size=2))
        for n in range(6):
            agent(f"{n}")
        manager.close()
    segments = {name: database.sessions_history.count_documents({"_id.session": name}) for name in ("gone", "again")}
    assert all(segments.values())
    alive = list(database.sessions_history.find({"_id.session": "alive"}))
    database.sessions.delete_many({"_id": {"$in": ["gone", "again"]}})
    again = place._replace()
    with MongoDBSessionManager(
        "again",
        client=again.client,
        database_name=again.database,
        collection_name="sessions",
        archive_after_messages=2,
        archive_block=2,
    ) as manager:
        agent = talker(manager, conversation_manager=SlidingWindowConversationManager(window_size=2))
        for n in range(6):
            agent(f"new {n}")
    stored: Any = database.sessions.find_one({"_id": "again"})
    new_life = list(database.sessions_history.find({"_id.incarnation": stored["incarnation"]}))
    assert alive
    assert new_life

    assert swept(place.repository) == sum(segments.values())

    assert list(database.sessions_history.find({"_id.session": "alive"})) == alive
    assert list(database.sessions_history.find({"_id.session": "again"})) == new_life
    assert database.sessions_history.count_documents({}) == len(alive) + len(new_life)
    assert swept(place.repository) == 0
    found = place.repository.list_messages("again", "assistant")
    assert said(m.message for m in found) == [t for n in range(6) for t in (f"new {n}", f"Re: new {n}")]


def test_a_young_file_that_nobody_names_is_left_alone_by_a_sweep(place: Place) -> None:
    database = place.client[place.database]
    two_turns(place)
    database.sessions.delete_many({})
    files = left(database)
    assert place.repository.sweep() == 0
    assert left(database) == files
    assert place.sweep() == 2
    assert left(database) == (set(), set())
