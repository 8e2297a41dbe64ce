"""Blobs and what goes wrong: whoever dies, loses a connection or races, no named blob is lost and no other is left.

After each fault the session goes on in a new process. Then every file that anything stored names is whole, and after a
sweep there is no other file or chunk.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import count, product
from queue import SimpleQueue
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.types.session import SessionAgent, SessionMessage
from support.blobs import (
    assert_every_named_file_is_whole,
    assert_only_named_files_are_left,
    data,
    image,
    named_files,
    said,
    shown,
    talker,
)
from support.deeds import WITH_IMAGES, Place, turn_with_images
from support.histories import by_hand, interruptions
from support.killed import Crash, crashes
from support.repositories import MultiAgent
from support.snapshots import keep
from support.wire_proxy import Cut, Moment, WireProxy

from mongodb_session_manager import SessionNotFoundError
from mongodb_session_manager._model.archive_policy import ArchivePolicy

both_durabilities = pytest.mark.parametrize("durability", ["message", "turn"])


@pytest.fixture
def place(client: MongoClient[Any], database_name: str) -> Place:
    return Place(client, database_name)


def empty(place: Place) -> None:
    """Delete every document, and keep the collections and their indexes: making them costs more than a test."""
    for name in ("", "_history", "_blobs.files", "_blobs.chunks"):
        place.database[f"{place.collection}{name}"].delete_many({})


def two_images(place: Place) -> None:
    with place.manager() as manager:
        talker(manager)(shown("before", 1, 2))


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


def leave_rubbish(place: Place) -> None:
    """Two lives of sessions of which only blobs and history are left."""
    for session_id in ("s", "other"):
        with place.manager(session_id, archive_after_messages=2, archive_block=2) as manager:
            agent = talker(manager, conversation_manager=SlidingWindowConversationManager(window_size=2))
            for n in range(3):
                agent(shown(f"{n}", n))
        place.sessions.delete_one({"_id": session_id})


@pytest.mark.topology
@pytest.mark.parametrize("deed", OUTCOMES)
def test_a_process_killed_before_or_after_any_command_about_blobs_loses_and_leaves_nothing(
    server: Any, place: Place, deed: str
) -> None:
    if deed == "a sweep":
        leave_rubbish(place)
    two_images(place)
    keep(place.database)
    seen: list[Crash] = []
    for crash in crashes(server.uri, place.database_name, deed):
        seen.append(crash)
        assert_every_named_file_is_whole(place.database)
        before = talker(place.manager())
        assert said(before.messages) in OUTCOMES[deed](crash), crash
        images = [block for message in before.messages for block in message["content"][1:]]
        assert images == [image(n) for n in range(1, len(images) + 1)], crash

        agent = talker(place.manager())
        agent(shown("go on", 9))
        place.sweep()

        again = talker(place.manager())
        assert said(again.messages) == [*said(before.messages), "go on*", "Re: go on"], crash
        assert again.messages == agent.messages, crash
        assert_only_named_files_are_left(place.database)
        if deed == "a sweep":
            assert not list(place.database.sessions_history.find()), crash
    hit = [crash.command for crash in seen][0::2]
    assert {name: hit.count(name) for name in WRITES[deed]} == WRITES[deed]


# --- a connection that is cut ---------------------------------------------------------------------

COMMANDS = ("find", "aggregate", "update", "insert", "delete")
MOMENTS: tuple[Moment, Moment] = ("before it is run", "before its answer arrives")
# What is stored then, and whether an error of the connection may be told.
CUT: dict[str, tuple[list[str], bool]] = {
    "a turn with message": (TURN, False),
    "a turn with turn": (TURN, False),
    "a redaction": ([*BEFORE, "[redacted]"], False),
    "a deletion": ([], True),
    "a sweep": (BEFORE, True),
}
CUTS_AT_A_TIME = 8


@pytest.mark.topology
@pytest.mark.parametrize("name", CUT)
def test_a_connection_that_is_cut_at_any_command_about_blobs_loses_and_leaves_nothing(place: Place, name: str) -> None:
    expected, may_fail = CUT[name]
    place.client.admin.command("ping")
    assert place.client.address is not None
    host, port = place.client.address

    # Many at a time, since a client waits half a second after a cut; the collections are used again and again.
    free: SimpleQueue[Place] = SimpleQueue()
    for number in range(CUTS_AT_A_TIME):
        free.put(replace(place, collection=f"c{number}"))

    def run(number: int, moment: Moment) -> bool:
        """Cut one command; return whether there was one to be cut."""
        mine = free.get_nowait()
        empty(mine)
        try:
            return cut(mine, number, moment)
        finally:
            free.put(mine)

    def cut(mine: Place, number: int, moment: Moment) -> bool:
        two_images(mine)
        if name == "a sweep":
            lonely = mine.manager()
            talker(lonely, "other")(shown("gone", 5))
            mine.sessions.update_one({"_id": "s"}, {"$unset": {"agents.other": ""}})
        client: MongoClient[Any]
        with (
            WireProxy(host, port) as proxy,
            MongoClient(proxy.uri, retryWrites=False, heartbeatFrequencyMS=500) as client,
        ):
            proxy.cut(Cut(COMMANDS, moment, number))
            try:
                WITH_IMAGES[name](replace(mine, client=client))
            except (AutoReconnect, SessionNotFoundError):
                assert may_fail, mine
            proxy.heal()
            was_cut = bool(proxy.cut_commands)
        found = said(talker(mine.manager()).messages)
        assert found == expected or (may_fail and was_cut and found == BEFORE), mine
        assert_every_named_file_is_whole(mine.database, mine.collection)
        mine.sweep()
        assert_only_named_files_are_left(mine.database, mine.collection)
        return was_cut

    with ThreadPoolExecutor(CUTS_AT_A_TIME) as threads:
        for first in count(1, 4):
            cases = list(product(range(first, first + 4), MOMENTS))
            if not all(threads.map(lambda case: run(*case), cases)):
                break


# --- others, at every command -----------------------------------------------------------------------


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
    for moment in ("started", "succeeded"):
        for client, interruption in interruptions(uri, moment):
            empty(place)
            prepare(place)
            interruption.at_its_command(lambda: other(place))
            outcome: object
            try:
                outcome = act(replace(place, client=client))
            except Exception as error:
                outcome = error
            assert interruption.acted or interruption.number > 2, "nothing was sent"
            if interruption.acted:
                yield f"{moment} {interruption.number}", outcome


def two_turns(place: Place) -> None:
    with place.manager() as manager:
        agent = talker(manager)
        for n in (1, 2):
            agent(shown(f"{n}", n))


@pytest.mark.topology
@both_durabilities
def test_a_sweep_in_the_midst_of_a_turn_deletes_nothing(server: Any, place: Place, durability: str) -> None:
    act = turn_with_images(durability)
    for moment, outcome in at_each_command(server.uri, place, two_turns, act, lambda mine: mine.repository.sweep()):
        assert outcome is None, moment
        assert said(talker(place.manager()).messages) == ["1*", "Re: 1", "2*", "Re: 2", "look**", "Re: look"]
        assert_only_named_files_are_left(place.database)


POLICY = ArchivePolicy(after_messages=1, block=2)


def conversation_to_archive(place: Place) -> None:
    """Four turns of which the oldest three can be archived."""
    manager = place.manager()
    agent = talker(manager, conversation_manager=SlidingWindowConversationManager(window_size=2))
    for n in range(4):
        agent(shown(f"{n}", n))
    agent.state.set("window", "moved")
    manager.close()
    stored: Any = place.sessions.find_one({})
    assert "archived_count" not in stored["agents"]["assistant"] or not stored["agents"]["assistant"]["archived_count"]
    assert stored["agents"]["assistant"]["agent_data"]["conversation_manager_state"]["removed_message_count"] >= 4


def archive(place: Place) -> None:
    stored: Any = place.sessions.find_one({})
    place.repository._store.archiver.archive("s", stored["incarnation"], "assistant", POLICY)


ARCHIVED = [text for n in range(4) for text in (f"{n}*", f"Re: {n}")]


@pytest.mark.topology
@pytest.mark.parametrize("order", ["archive in a sweep", "sweep in an archiving"])
def test_a_sweep_while_messages_move_into_the_history_deletes_nothing(server: Any, place: Place, order: str) -> None:
    act, other = (Place.sweep, archive) if order == "archive in a sweep" else (archive, Place.sweep)
    for moment, outcome in at_each_command(server.uri, place, conversation_to_archive, act, other):
        assert outcome in (None, 0), moment
        stored = place.repository.list_messages("s", "assistant")
        assert said(message.message for message in stored) == ARCHIVED, moment
        assert place.sweep() == 0
        archived: Any = place.sessions.find_one({})
        assert archived["agents"]["assistant"]["archived_count"] >= 4
        assert_only_named_files_are_left(place.database)


def redact_the_first(place: Place) -> None:
    place.repository.update_message("s", "assistant", SessionMessage(by_hand("gone"), 0))


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


BIG: Any = {"role": "user", "content": [{"text": "look"}, image(3, 128 * 1024)]}
SCREEN = {"screen": data(3, 128 * 1024)}
WRITERS: dict[str, Callable[[Place], object]] = {
    "a manager": turn_with_images("message"),
    "the repository": lambda place: place.repository.create_message("s", "assistant", SessionMessage(BIG, 7)),
    "an update": lambda place: place.repository.update_message("s", "assistant", SessionMessage(BIG, 0)),
    "an update of an agent": lambda place: place.repository.update_agent("s", SessionAgent("assistant", SCREEN, {})),
    "a graph": lambda place: place.repository.create_multi_agent("s", MultiAgent("graph", SCREEN)),
}


@pytest.mark.parametrize("act", WRITERS.values(), ids=WRITERS)
def test_a_session_that_is_begun_again_in_the_midst_of_a_write_loses_no_blob(
    server: Any, place: Place, act: Callable[[Place], None]
) -> None:
    told = 0
    for moment, outcome in at_each_command(server.uri, place, two_turns, act, delete_and_begin_again):
        # Strands wraps what is raised behind the first model call.
        cause = getattr(outcome, "original_exception", outcome)
        assert cause is None or isinstance(cause, SessionNotFoundError), (moment, outcome)
        told += outcome is not None
        place.sweep()
        # Whatever is stored can be read, and nothing else is left.
        assert_only_named_files_are_left(place.database)
        assert said(talker(place.manager()).messages)[-1] in ("Re: anew", "Re: look", "look*")
        found = named_files(place.database)
        owners = place.database["sessions_blobs.files"].distinct("metadata.incarnation")
        stored: Any = place.database.sessions.find_one({})
        assert owners == [stored["incarnation"]] or not found
    assert told


# --- two writers ----------------------------------------------------------------------------------


@pytest.mark.topology
@both_durabilities
def test_images_of_two_writers_are_kept_wherever_their_messages_came_to_stand(place: Place, durability: str) -> None:
    with ExitStack() as stack:
        managers = [stack.enter_context(place.manager(durability=durability)) for _ in range(2)]
        talker(managers[0])("before")
        managers = [stack.enter_context(place.manager(durability=durability)) for _ in range(2)]
        one, two = map(talker, managers)
        for n in range(3):
            one(shown(f"one {n}", n))
            two(shown(f"two {n}", n + 10))
    document: Any = place.database.sessions.find_one({})
    places = {}
    for message in document["agents"]["assistant"]["messages"]:
        for block in message["content"][1:]:
            places[block["image"]["source"]["bytes"]["value"]["file"]] = message["message_id"]
    meant = {file["_id"]: file["metadata"]["message"] for file in place.database["sessions_blobs.files"].find()}
    assert meant.keys() == places.keys()
    assert any(meant[file_id] != at for file_id, at in places.items()), "no commit was moved"

    for _ in range(2):
        assert place.sweep() == 0
        assert_only_named_files_are_left(place.database)
        archive_all(place)
    stored = place.repository.list_messages("s", "assistant")
    seen = {m.message["content"][0]["text"]: m.message["content"][1:] for m in stored}
    for n in range(3):
        assert seen[f"one {n}"] == [image(n)]
        assert seen[f"two {n}"] == [image(n + 10)]


def archive_all(place: Place) -> None:
    """Move everything into the history, live or not, so that the images lie in segments."""
    removed = "agents.assistant.agent_data.conversation_manager_state.removed_message_count"
    place.sessions.update_one({}, {"$set": {removed: 14}})
    archive(place)
    stored: Any = place.sessions.find_one({})
    assert stored["agents"]["assistant"]["archived_count"] >= 12
