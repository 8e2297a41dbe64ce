"""Archiving that is disturbed, at each of its commands and by everything, loses, doubles and betrays nothing.

The process that archives is killed (`support/killed.py`), its connection is cut (`support/wire_proxy.py`), others
archive, append, redact and delete at the same time: wherever the order decides, right between two of its commands
(`support.histories.Interruption`).
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from strands.types.session import SessionMessage
from support.deeds import (
    CONVERSATION,
    PROMPTS,
    REDACTED,
    SECRET,
    archive,
    begin_again,
    converse,
    delete,
    leave_uncommitted,
    redact,
)
from support.histories import (
    HISTORY,
    NEVER,
    SESSIONS,
    SMALL,
    Interruption,
    at_rest,
    by_hand,
    foreign_segments,
    gapless,
    manager_of,
    repository_of,
    said,
    stored,
    talker,
    texts,
)
from support.killed import Crash, crashes
from support.sweeping import swept
from support.wire_proxy import Cut, Moment, WireProxy

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionRepository, SessionNotFoundError

MOMENTS: tuple[Moment, Moment] = ("before it is run", "before its answer arrives")
both_durabilities = pytest.mark.parametrize("durability", ["message", "turn"])

# The commands of an archiving that finds three blocks due.
BLOCK = ["find", "insert", "update"]
ARCHIVING = BLOCK * 3
COMMANDS = range(1, len(ARCHIVING) + 1)


@dataclass(frozen=True)
class World:
    """A database and who works on it; every client is closed at the end of the test.

    Attributes:
        uri: of the server.
        database: for a look behind the library's back.
        client: what everybody else than the disturbed process uses.
        stack: ends with the test.
    """

    uri: str
    database: Database[Any]
    client: MongoClient[Any]
    stack: ExitStack

    def manager(self, session_id: str = "s", *, client: MongoClient[Any] | None = None, **options: Any) -> Any:
        return manager_of(client or self.client, self.database.name, session_id, **options)

    def new_client(self, **options: Any) -> MongoClient[Any]:
        client: MongoClient[Any] = MongoClient(self.uri, **options)
        return self.stack.enter_context(client)

    def do(self, step: Callable[[MongoClient[Any], str, str], object], session_id: str = "s") -> None:
        step(self.client, self.database.name, session_id)

    @property
    def repository(self) -> MongoDBSessionRepository:
        return repository_of(self.client, self.database.name)

    def listed(self, session_id: str = "s") -> list[str]:
        return texts(self.repository.list_messages(session_id, "assistant"))

    def assert_gone(self, secret: str = SECRET) -> None:
        assert secret.encode() not in at_rest(self.database)

    def assert_holds(self, expected: list[str], session_id: str = "s") -> Any:
        """This is what is stored and what is listed, and nothing lies uncommitted beside it."""
        found = gapless(stored(self.database, session_id))
        assert texts(found.messages) == expected, session_id
        assert self.listed(session_id) == expected, session_id
        assert not found.beyond, session_id
        return found

    def next_process_takes_a_turn(self, session_id: str, before: list[str]) -> None:
        """Open the session as after a crash, take a turn, archive; then everything is as if nothing had happened."""
        with self.manager(session_id, **SMALL) as manager:
            agent = talker(manager)
            assert texts(agent.messages) == before[-4:], session_id
            assert str(agent("and on")) == "Re: and on\n", session_id
        found = self.assert_holds([*before, *said("and on")], session_id)
        assert len(found.embedded) < 8 or len(found.archived) >= 8, session_id


@pytest.fixture
def world(server: Any, database: Database[Any], client: MongoClient[Any]) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(server.uri, database, stack.enter_context(MongoClient(server.uri)), stack)


@pytest.fixture
def interrupted(world: World) -> Callable[..., None]:
    """Archives the conversation; at the n-th of its commands somebody else acts first."""

    def archive(number: int, act: Callable[[], object], **options: Any) -> None:
        interruption = Interruption(number=number)
        manager = world.manager(client=world.new_client(event_listeners=[interruption]), **{**SMALL, **options})
        talker(manager)
        interruption.at_its_command(act)
        manager.flush()
        interruption.disarm()
        assert interruption.commands, "nothing was due"
        manager.close()

    return archive


# --- the process is killed


def killed(world: World, deed: str, action: str = "nothing") -> list[Crash]:
    """What became of each process that was killed, and last of those that were not."""
    found = list(crashes(world.uri, world.database.name, deed, action))
    # The driver's own: a client says goodbye to its sessions at the end.
    commands = [one.command for one in found[:-2:2] if one.command != "endSessions"]
    assert commands == ARCHIVING if deed == "archive" else commands.count("update") >= 2
    return found


@pytest.mark.topology
def test_a_process_killed_at_any_command_of_an_archiving_loses_and_doubles_nothing(world: World) -> None:
    for one in killed(world, "archive"):
        assert world.listed(one.session_id) == CONVERSATION, one
        assert texts(gapless(stored(world.database, one.session_id)).messages) == CONVERSATION, one
        world.next_process_takes_a_turn(one.session_id, CONVERSATION)


@pytest.mark.topology
def test_a_message_redacted_right_before_its_archiver_is_killed_is_gone_after_the_next_archiving(
    world: World,
) -> None:
    for one in killed(world, "archive", "redact"):
        expected = REDACTED if one.command else CONVERSATION
        assert world.listed(one.session_id) == expected, one
        world.next_process_takes_a_turn(one.session_id, expected)
        if not one.command:
            world.do(redact, one.session_id)

    world.assert_gone()


def test_a_session_deleted_before_its_archiver_is_killed_is_gone_and_a_sweep_removes_what_is_left_of_it(
    world: World,
) -> None:
    ended = [one for one in killed(world, "archive", "delete") if one.command]
    assert foreign_segments(world.database), "nothing was inserted for a session that was gone"
    for one in ended:
        assert world.database[SESSIONS].find_one({"_id": one.session_id}) is None
        assert world.listed(one.session_id) == []
        with world.manager(one.session_id) as manager:
            agent = talker(manager)
            assert agent.messages == []
            agent("a new life")
        assert world.listed(one.session_id) == said("a new life")

    swept(world.repository)
    assert foreign_segments(world.database) == []


def test_a_session_begun_again_before_its_archiver_is_killed_sees_nothing_of_the_old_one_and_a_sweep_removes_it(
    world: World,
) -> None:
    ended = killed(world, "archive", "begin again")
    assert foreign_segments(world.database), "nothing was inserted for a life that was over"
    for one in ended:
        if one.command:
            assert world.listed(one.session_id) == said("a new life")
            world.next_process_takes_a_turn(one.session_id, said("a new life"))
            for number in range(4, 16):
                assert world.repository.read_message(one.session_id, "assistant", number) is None

    swept(world.repository)
    assert foreign_segments(world.database) == []
    for one in ended:
        expected = said("a new life", "and on") if one.command else CONVERSATION
        assert world.listed(one.session_id) == expected


@pytest.mark.topology
def test_a_redaction_killed_at_any_of_its_commands_and_done_again_leaves_its_text_in_no_collection(
    world: World,
) -> None:
    for one in killed(world, "redact"):
        said_now = world.listed(one.session_id)
        assert said_now[2:] == CONVERSATION[2:], one
        assert all(now in (old, "[redacted]") for now, old in zip(said_now, CONVERSATION, strict=True)), one

        world.do(redact, one.session_id)

        assert world.listed(one.session_id) == REDACTED, one
        world.next_process_takes_a_turn(one.session_id, REDACTED)
    world.assert_gone()


# --- the connection is cut


@pytest.fixture
def through_a_proxy(proxies: Any) -> Iterator[Callable[..., MongoClient[Any]]]:
    # After `proxies`, so that its clients end before them.
    with ExitStack() as stack:

        def connect(proxy: WireProxy, **options: Any) -> MongoClient[Any]:
            client: MongoClient[Any] = MongoClient(
                proxy.uri, **{"heartbeatFrequencyMS": 500, "retryWrites": False, "retryReads": False, **options}
            )
            return stack.enter_context(client)

        yield connect


@pytest.mark.topology
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("retry", [True, False], ids=["driver retries", "driver does not retry"])
def test_a_connection_cut_at_any_command_of_an_archiving_loses_and_doubles_nothing(
    world: World, proxies: Any, through_a_proxy: Any, moment: Moment, retry: bool
) -> None:
    def run(command: str, number: int) -> str:
        session_id = f"{command} {number}"
        world.do(converse, session_id)
        proxy = proxies()
        client = through_a_proxy(proxy, retryWrites=retry, retryReads=retry)
        manager = world.manager(session_id, client=client, **SMALL)
        agent = talker(manager)
        proxy.cut(Cut(command, moment, number))
        manager.flush()
        assert proxy.cut_commands == [command], session_id
        found = gapless(stored(world.database, session_id))
        assert texts(found.messages) == CONVERSATION, session_id
        if retry:
            assert len(found.archived) == 12, session_id
        # The same process goes on as well: what failed stays due.
        agent("meanwhile")
        manager.close()
        return session_id

    cases = [(name, ARCHIVING[: n + 1].count(name)) for n, name in enumerate(ARCHIVING)]
    with ThreadPoolExecutor(len(cases)) as threads:
        ended = list(threads.map(lambda case: run(*case), cases))

    for session_id in ended:
        world.next_process_takes_a_turn(session_id, [*CONVERSATION, *said("meanwhile")])


def others_go_on(world: World) -> None:
    """Take the turns of the conversation, and archive the first of them."""
    with world.manager(**SMALL) as other:
        agent = talker(other, 2)
        for prompt in PROMPTS:
            agent(prompt)


@pytest.mark.topology
@both_durabilities
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_message_of_unknown_outcome_is_stored_once_though_it_would_have_been_archived_meanwhile(
    world: World, proxies: Any, through_a_proxy: Any, durability: str, moment: Moment
) -> None:
    with world.manager(**NEVER) as manager:
        talker(manager)("before")

    proxy = proxies()
    with world.manager(client=through_a_proxy(proxy), durability=durability, **NEVER) as manager:
        agent = talker(manager)
        proxy.cut(Cut("update", moment, meanwhile=lambda: others_go_on(world)))
        agent("mine")
    assert proxy.cut_commands == ["update"]

    found = gapless(stored(world.database))
    assert len(found.archived) >= 8
    if moment == "before it is run":
        assert texts(found.messages) == [*said("before"), *CONVERSATION, *said("mine")]
        return
    assert "mine" in texts(found.archived)
    if durability == "turn":
        assert texts(found.messages) == [*said("before", "mine"), *CONVERSATION]
    else:
        assert texts(found.messages) == [*said("before"), "mine", *CONVERSATION, "Re: mine"]


@pytest.mark.topology
def test_a_repository_message_of_unknown_outcome_is_stored_once_though_it_was_archived_meanwhile(
    world: World, proxies: Any, through_a_proxy: Any
) -> None:
    with world.manager(**NEVER) as manager:
        talker(manager)("before")

    proxy = proxies()
    repository = repository_of(through_a_proxy(proxy), world.database.name)
    proxy.cut(Cut("update", "before its answer arrives", meanwhile=lambda: others_go_on(world)))

    repository.create_message("s", "assistant", SessionMessage(by_hand("mine"), 2))

    found = gapless(stored(world.database))
    assert texts(found.archived)[:3] == [*said("before"), "mine"]
    assert texts(found.messages) == [*said("before"), "mine", *CONVERSATION]


# --- somebody else archives or appends at the same time


def archiver(block: int) -> Callable[[World], None]:
    def act(world: World) -> None:
        with world.manager(archive_after_messages=8, archive_block=block) as manager:
            talker(manager)

    return act


def talk(world: World) -> None:
    with world.manager(**NEVER) as manager:
        talker(manager)("meanwhile")


# What somebody else does, and what is stored then.
OTHERS: dict[str, tuple[Callable[[World], object], list[str]]] = {
    "an archiver of the same blocks": (archiver(4), CONVERSATION),
    "an archiver of smaller blocks": (archiver(3), CONVERSATION),
    "an archiver of larger blocks": (archiver(7), CONVERSATION),
    "a sweep": (lambda world: swept(world.repository), CONVERSATION),
    "a turn": (talk, [*CONVERSATION, *said("meanwhile")]),
    "a redaction": (lambda world: world.do(redact), REDACTED),
}


@pytest.mark.parametrize("number", COMMANDS)
@pytest.mark.parametrize("other", OTHERS)
def test_whatever_another_does_between_any_two_commands_of_an_archiver_every_message_is_moved_once_and_as_it_is_now(
    world: World, interrupted: Any, number: int, other: str
) -> None:
    act, expected = OTHERS[other]
    world.do(converse)
    assert SECRET.encode() in at_rest(world.database)

    interrupted(number, lambda: act(world))

    found = world.assert_holds(expected)
    assert len(found.archived) == 12 if expected != CONVERSATION or other == "a sweep" else len(found.archived) >= 6
    if other == "a redaction":
        world.assert_gone()
    world.next_process_takes_a_turn("s", expected)


@pytest.mark.parametrize("number", range(1, 10))
@pytest.mark.parametrize("block", [4, 3])
def test_another_archiver_between_any_two_commands_of_one_that_finds_a_stale_segment_moves_every_message_once(
    world: World, interrupted: Any, number: int, block: int
) -> None:
    world.do(converse)
    leave_uncommitted(world.database, text="stale")

    interrupted(number, lambda: archiver(block)(world))

    world.assert_holds(CONVERSATION)
    world.assert_gone("stale")


@pytest.mark.topology
@pytest.mark.parametrize("round_number", range(3))
def test_archivers_that_cut_differently_and_writers_all_at_once_lose_and_double_nothing(
    world: World, round_number: int
) -> None:
    policies = [
        {"archive_after_messages": 8, "archive_block": 4},
        {"archive_after_messages": 5, "archive_block": 3},
        {"archive_after_messages": 2, "archive_block": 1},
        {"archive_after_messages": 12, "archive_block": 10},
        {"archive_after_bytes": 1500, "archive_block": 100},
    ]
    world.do(converse)
    start = threading.Barrier(len(policies))

    def talk(writer: int) -> None:
        client = world.new_client()  # As every process has one.
        start.wait(60)
        for turn in range(10):
            # As in a web service: each request opens, takes its turn, archives and ends.
            with world.manager(client=client, **policies[writer]) as manager:
                talker(manager, 2 + writer)(f"writer {writer}, turn {turn}")

    with ThreadPoolExecutor(len(policies)) as threads:
        list(threads.map(talk, range(len(policies))))

    found = gapless(stored(world.database))
    everything = texts(found.messages)
    assert everything[: len(CONVERSATION)] == CONVERSATION
    assert len(everything) == len(CONVERSATION) + len(policies) * 20
    for writer in range(len(policies)):
        mine = [text for text in everything if f"writer {writer}," in text]
        assert mine == said(*(f"writer {writer}, turn {turn}" for turn in range(10)))
    assert world.listed() == everything
    assert len({segment["count"] for segment in found.segments}) > 1, "nobody cut differently"
    with world.manager(**SMALL) as manager:
        assert len(talker(manager).messages) <= 4
    assert not stored(world.database).beyond


# --- somebody redacts at the same time


@pytest.mark.topology
@pytest.mark.parametrize("number", range(1, 12))
def test_a_message_archived_between_any_two_commands_of_its_redaction_is_in_no_collection(
    world: World, number: int
) -> None:
    world.do(converse)
    interruption = Interruption(number=number)
    client = world.new_client(event_listeners=[interruption])
    client.admin.command("ping")
    interruption.at_its_command(lambda: world.do(archive))

    redact(client, world.database.name, "s")
    interruption.disarm()

    world.assert_gone()
    world.assert_holds(REDACTED)
    world.next_process_takes_a_turn("s", REDACTED)


@pytest.mark.topology
@pytest.mark.parametrize("archiver_stops_at", [2, 3])
@pytest.mark.parametrize("number", range(1, 8))
def test_a_message_redacted_while_two_archivers_interleave_is_in_no_collection(
    world: World, interrupted: Any, archiver_stops_at: int, number: int
) -> None:
    def another_archives_and_is_interrupted_as_well() -> None:
        interrupted(number, lambda: world.do(redact), archive_block=3)

    world.do(converse)
    interrupted(archiver_stops_at, another_archives_and_is_interrupted_as_well)
    if texts(stored(world.database).messages) != REDACTED:
        # The other had fewer commands to send than that: it found nothing due.
        world.do(redact)

    world.assert_gone()
    world.assert_holds(REDACTED)
    world.next_process_takes_a_turn("s", REDACTED)


def test_a_redaction_reaches_the_copy_in_a_segment_that_was_never_committed(world: World) -> None:
    world.do(converse)
    leave_uncommitted(world.database)
    assert SECRET in str(list(world.database[HISTORY].find()))

    world.do(redact)

    world.assert_gone()
    assert len(stored(world.database).beyond) == 1
    world.next_process_takes_a_turn("s", REDACTED)
    world.assert_gone()


def test_a_redaction_that_was_killed_before_it_reached_an_uncommitted_copy_needs_only_the_next_archiving(
    world: World,
) -> None:
    half_done = [one for one in killed(world, "redact early") if SECRET not in world.listed(one.session_id)]
    assert len([one for one in half_done if one.command]) >= 4
    for one in half_done:
        expected = ["[redacted]", world.listed(one.session_id)[1], *CONVERSATION[2:]]
        world.next_process_takes_a_turn(one.session_id, expected)
        raw = str(list(world.database[HISTORY].find({"_id.session": one.session_id})))
        assert raw.count(SECRET) == expected.count(f"Re: {SECRET}"), one

    for session_id in world.database[SESSIONS].distinct("_id"):
        world.do(redact, session_id)
    world.assert_gone()


def test_a_segment_that_was_never_committed_is_not_read(world: World) -> None:
    world.do(converse)
    leave_uncommitted(world.database)
    world.database[HISTORY].update_many({}, {"$set": {"messages.$[].content.0.text": "not to be read"}})

    assert world.listed() == CONVERSATION
    repository = world.repository
    read = [repository.read_message("s", "assistant", number) for number in range(len(CONVERSATION))]
    assert texts(read) == CONVERSATION
    for offset in range(6):
        assert texts(repository.list_messages("s", "assistant", offset=offset, limit=2)) == CONVERSATION[offset:][:2]
    with world.manager(**NEVER) as manager:
        assert texts(talker(manager).messages) == CONVERSATION[-4:]


def test_an_archiver_adopts_the_segment_of_a_dead_one_and_the_next_begins_behind_it(world: World) -> None:
    world.do(converse)
    leave_uncommitted(world.database)
    marked = world.database[HISTORY].update_one({}, {"$set": {"of": "the dead one"}})
    assert marked.modified_count == 1

    with world.manager(archive_after_messages=8, archive_block=6) as manager:
        talker(manager)

    found = gapless(stored(world.database))
    assert [(segment["count"], segment.get("of")) for segment in found.segments] == [(4, "the dead one"), (6, None)]
    assert texts(found.messages) == CONVERSATION


def test_an_archiver_does_not_adopt_a_segment_that_was_read_before_a_message_was_edited(world: World) -> None:
    world.do(converse)
    leave_uncommitted(world.database, text="stale")

    world.next_process_takes_a_turn("s", CONVERSATION)

    world.assert_gone("stale")


# --- somebody deletes the session at the same time


@pytest.mark.topology
@pytest.mark.parametrize("number", COMMANDS)
def test_a_session_deleted_between_any_two_commands_of_an_archiver_leaves_nothing(
    world: World, interrupted: Any, number: int
) -> None:
    world.do(converse)

    interrupted(number, lambda: world.do(delete))

    assert world.database[SESSIONS].count_documents({}) == 0
    assert world.database[HISTORY].count_documents({}) == 0
    assert world.listed() == []


@pytest.mark.parametrize("number", COMMANDS)
def test_a_session_begun_again_between_any_two_commands_of_an_archiver_is_untouched(
    world: World, interrupted: Any, number: int
) -> None:
    def begin_again_and_archive() -> None:
        world.do(begin_again)
        with world.manager(**SMALL) as manager:
            agent = talker(manager)
            for prompt in PROMPTS[1:]:
                agent(prompt)

    world.do(converse)

    interrupted(number, begin_again_and_archive)

    assert foreign_segments(world.database) == []
    expected = said("a new life", *PROMPTS[1:])
    assert world.assert_holds(expected).archived
    world.assert_gone()
    world.next_process_takes_a_turn("s", expected)


def test_a_manager_whose_session_was_deleted_while_it_archived_says_so_at_the_next_turn(world: World) -> None:
    world.do(converse)
    interruption = Interruption()
    client = world.new_client(event_listeners=[interruption])
    manager: MongoDBSessionManager = world.manager(client=client, **SMALL)
    agent = talker(manager)
    interruption.arm("started", 3, lambda: world.do(delete))
    manager.flush()

    with pytest.raises(SessionNotFoundError):
        agent("and on")
    with pytest.raises(SessionNotFoundError):
        manager.close()

    assert world.database[SESSIONS].count_documents({}) == 0
    assert world.database[HISTORY].count_documents({}) == 0
