"""What was said is found, what was redacted or deleted is not, and a turn pays for neither.

An indexer that copies messages into the search is stopped and killed at each of its commands while others redact and
delete (`support/killed.py`), and so is a redaction while others feed.
"""

import contextlib
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

import bson
import pytest
from offline_model import ToolCall
from pymongo import MongoClient
from strands import tool
from strands.types.session import SessionMessage
from support.application import Application, both_durabilities
from support.deeds import (
    CONVERSATION,
    PROMPTS,
    REDACTED,
    SEARCH,
    SECRET,
    STATES,
    archive,
    converse,
    delete,
    index,
    put_session,
    redact,
    session_in_state,
)
from support.histories import (
    HISTORY,
    SESSIONS,
    SMALL,
    Interruption,
    at_rest,
    by_hand,
    repository_of,
    said,
    stored,
    talker,
    texts,
)
from support.killed import Crash, crashes
from support.repositories import a_message, begin
from support.sweeping import swept

from mongodb_session_manager import (
    InvalidIdentifierError,
    MessageHit,
    MongoDBSessionError,
    SessionNotFoundError,
)
from mongodb_session_manager._store.search_index import IndexingTask

FEEDING = ["find", "update", "update"]
"""The commands of a feeding: read a batch, put it, say so."""
every_state = pytest.mark.parametrize("state", STATES)


class World(Application):
    """Processes whose managers index, and what can be found of what they have said."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.defaults = {"index_messages": True}
        self.templates: dict[str, Any] = {}

    def found(self, text: str, **conditions: Any) -> list[str]:
        """The texts of the messages that are found, in order of session and message."""
        hits = self.repository.search_messages(text, **{"limit": 1000, **conditions})
        return [hit.text for hit in sorted(hits, key=lambda hit: (hit.session_id, hit.message_id))]

    def indexed(self, session_id: str = "s", text: str = "secret prompt redacted") -> list[str]:
        """All of a conversation that can be found."""
        return self.found(text, session_id=session_id)

    def index(self, session_id: str = "s") -> None:
        index(self.client, self.database.name, session_id)

    def redact(self, session_id: str = "s") -> None:
        redact(self.client, self.database.name, session_id)

    def prepare(self, state: str, session_id: str = "s") -> None:
        """Let there be a session with the conversation, in this state."""
        put_session(self.database, self.template(state), session_id)

    def template(self, state: str) -> dict[str, Any]:
        if state not in self.templates:
            self.templates[state] = session_in_state(self.client, self.database.name, state)
        return self.templates[state]

    def interrupted(self, deed: Any, number: int, act: Any, session_id: str = "s") -> list[str]:
        """Do a deed; at the n-th of its commands somebody else acts first. Return the commands of the deed."""
        interruption = Interruption()
        # Closed at once: the watch that hundreds of clients keep on a replica set costs more than the test.
        with MongoClient(self.uri, event_listeners=[interruption]) as client:
            client.admin.command("ping")
            interruption.arm("started", number, act)
            deed(client, self.database.name, session_id)
        if interruption.error is not None:
            raise interruption.error
        return interruption.commands

    def at_each_command(self, deed: Any, act: Callable[[str], None], state: str) -> Iterator[tuple[str, bool]]:
        """Do a deed in sessions of this state, one for each of its commands, at which somebody else acts first.

        Yields each session's id, which has the command's number, and whether anybody acted: in the last nobody did.
        """
        for number in range(1, 100):
            session_id = f"s{number}"
            self.prepare(state, session_id)
            acted: list[str] = []

            def acting(session_id: str = session_id, acted: list[str] = acted) -> None:
                acted.append(session_id)
                act(session_id)

            commands = self.interrupted(deed, number, acting, session_id)
            assert acted or number > len(commands)
            yield session_id, bool(acted)
            if not acted:
                return


@pytest.fixture
def world(server: Any, database: Any) -> Iterator[World]:
    with contextlib.closing(World(server.uri, database)) as world:
        yield world


# --- finding


@pytest.mark.slow
@pytest.mark.topology
@both_durabilities
def test_what_was_said_is_found_once_the_manager_is_flushed(world: World, durability: str) -> None:
    manager = world.manager(durability=durability, application_name="shop")
    agent = talker(manager)
    agent("a refund for the blue kettle")
    manager.flush()

    user, assistant = sorted(manager.session_repository.search_messages("kettle"), key=lambda hit: hit.message_id)

    assert isinstance(user, MessageHit)
    assert (user.session_id, user.agent_id, user.message_id, user.role) == ("s", "assistant", 0, "user")
    assert (assistant.message_id, assistant.role) == (1, "assistant")
    assert (user.text, assistant.text) == tuple(said("a refund for the blue kettle"))
    assert user.score >= assistant.score > 0
    assert user.created_at == stored(world.database).messages[0]["created_at"].replace(tzinfo=timezone.utc)
    agent("and a green one")
    manager.close()
    assert world.found("green kettle") == said("a refund for the blue kettle", "and a green one")


@pytest.mark.slow
def test_words_phrases_and_exclusions_are_mongodbs_and_conditions_narrow_them(world: World) -> None:
    for session_id, application in (("one", "shop"), ("two", "bank")):
        with world.manager(session_id, application_name=application) as manager:
            for agent_id in ("clerk", "porter.1"):
                talker(manager, agent_id=agent_id)(f"Der {agent_id} von {session_id} heißt Müller")

    assert len(world.found("muller")) == 8, "case and accents counted"
    assert len(world.found("der")) == 8, "a word was too common to be found"
    assert world.found('"von one" -re -clerk') == ["Der porter.1 von one heißt Müller"]
    assert len(world.found("muller", session_id="two")) == 4
    assert world.found("muller", session_id="one", agent_id="porter.1", role="user") == [
        "Der porter.1 von one heißt Müller"
    ]
    assert len(world.found("muller", role="assistant")) == 4
    assert len(world.found("muller", application_name="bank")) == 4
    assert world.found("muller", agent_id="nobody") == []
    assert world.found("absent") == []


def test_the_best_come_first_and_no_more_than_asked_for(world: World) -> None:
    with world.manager() as manager:
        agent = talker(manager, window=40)
        for number in range(8):
            agent("kettle " * number + "tea")

    hits = world.repository.search_messages("kettle", role="user", limit=3)

    scores = [hit.score for hit in hits]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == max(hit.score for hit in world.repository.search_messages("kettle", role="user"))


def test_only_the_text_blocks_are_searched(world: World) -> None:
    @tool
    def look_up(word: str) -> str:
        """Look something up."""
        return "inside the result"

    with world.manager(blob_threshold_bytes=100) as manager:
        agent = world.agent(manager, ToolCall("look_up", {"word": "argument"}), "all done", tools=[look_up])
        image = {"image": {"format": "png", "source": {"bytes": b"x" * 200}}}
        agent([{"text": "first"}, image, {"text": "second \ud800"}])

    assert world.found("first second") == ["first\nsecond ?"]
    assert world.found("argument inside result") == []
    assert world.database[SEARCH].count_documents({}) == 2, "a document without text"


@pytest.mark.slow
def test_of_a_long_text_the_beginning_is_found_and_one_in_gridfs_keeps_nothing_from_being_indexed(world: World) -> None:
    long, longer = "begin " + "ü" * 40_000 + " end", "begin " + "x " * 600_000
    with world.manager() as manager:
        agent = world.agent(manager, *["fine"] * 3)
        agent(long)
        agent(longer)
        agent("begin and end")

    assert world.found("begin") == [long.encode()[: 32 * 1024].decode(errors="ignore"), "begin and end"]
    assert world.found("end") == ["begin and end"]


@pytest.mark.slow
@pytest.mark.new_database
def test_the_factory_searches_as_well(world: World) -> None:
    factory = world.factory(index_messages=True)
    with pytest.raises(MongoDBSessionError, match="index_messages=True"):
        factory.search_messages("kettle")
    with factory.create_session_manager("s") as manager:
        talker(manager)("a kettle")
    with factory.create_session_manager("other", index_messages=False) as manager:
        talker(manager)("a kettle")
    with factory.create_session_manager("s", collection_name="elsewhere") as manager:
        talker(manager)("a kettle elsewhere")

    assert [hit.session_id for hit in factory.search_messages("kettle", role="user", limit=5)] == ["s"]
    assert len(factory.search_messages("elsewhere", collection_name="elsewhere")) == 2


@pytest.mark.parametrize(
    ("text", "conditions", "error"),
    [
        ("", {}, ValueError),
        (" ", {}, ValueError),
        ("\ud800", {}, ValueError),
        (None, {}, TypeError),
        ({"$ne": ""}, {}, TypeError),
        ("x", {"session_id": {"$gt": ""}}, TypeError),
        ("x", {"session_id": ""}, InvalidIdentifierError),
        ("x", {"agent_id": "a/b"}, InvalidIdentifierError),
        ("x", {"role": "system"}, ValueError),
        ("x", {"application_name": 5}, TypeError),
        ("x", {"limit": 0}, ValueError),
        ("x", {"limit": True}, ValueError),
        ("x", {"limit": 2**31}, ValueError),
        ("x", {"limit": 1.0}, ValueError),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(
    world: World, text: Any, conditions: Any, error: type[Exception]
) -> None:
    repository = world.repository
    with world.recorder.recording() as commands:
        with pytest.raises(error):
            repository.search_messages(text, **conditions)
        with pytest.raises((TypeError, ValueError)):
            repository.index_messages("")
        with pytest.raises(TypeError, match="index_messages"):
            world.manager(index_messages="yes")
    assert commands == []


@pytest.mark.new_database
def test_where_nothing_was_ever_indexed_the_error_says_what_to_do(world: World) -> None:
    with pytest.raises(MongoDBSessionError, match="index_messages=True"):
        world.repository.search_messages("anything")
    with pytest.raises(SessionNotFoundError):
        world.repository.index_messages("nobody")


# --- what it costs


@pytest.mark.new_database
@both_durabilities
def test_who_does_not_use_it_pays_nothing_and_who_does_sends_three_commands_behind_a_turn(
    world: World, durability: str
) -> None:
    def one_turn(session_id: str, **options: Any) -> list[Any]:
        manager = world.manager(session_id, durability=durability, **options)
        agent = talker(manager)
        agent("the first turn")
        manager.flush()
        with world.recorder.recording() as commands:
            agent("hello")
            manager.flush()
        return commands

    off = one_turn("without", index_messages=False)
    assert SEARCH not in world.database.list_collection_names()
    assert "indexed" not in world.record("assistant", "without")
    on = one_turn("with it")

    def appends(commands: list[Any]) -> list[set[str]]:
        """What each append changes, apart from the histograms of measured times."""
        updates = [update["u"] for command in commands for update in command.command.get("updates", ())]
        return [set(update["$set"]) | set(update["$push"]) for update in updates if "$push" in update]

    assert sorted(command.name for command in on) == sorted([*(command.name for command in off), *FEEDING])
    assert [command.collection for command in on].count(SEARCH) == 1
    assert appends(on) == appends(off) != []
    # No text index: that is what would make an append slow.
    indexed = [field for index in world.database[SESSIONS].index_information().values() for field in index["key"]]
    assert "text" not in [direction for _, direction in indexed]


@pytest.mark.slow
def test_a_redaction_and_a_deletion_send_nothing_more_where_nobody_has_indexed(world: World) -> None:
    world.prepare("archived")
    with world.recorder.recording() as commands:
        world.redact()
        world.repository.delete_session("s")
    assert commands.on(SEARCH) == []


@pytest.mark.slow
@pytest.mark.topology
@pytest.mark.new_database
def test_the_index_is_created_once_per_process(world: World) -> None:
    for number in range(3):
        with world.manager(f"s{number}") as manager:
            talker(manager)("hello")
    assert len(world.recorder.commands.named("createIndexes").on(SEARCH)) == 1


@pytest.mark.topology
def test_a_failure_of_mongodb_while_indexing_fails_no_turn_and_the_next_goes_on(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with world.manager("before") as manager:
        talker(manager)("hello")
    manager = world.manager()
    agent = talker(manager)
    manager.flush()
    with world.failing("find", error_code=2), caplog.at_level(logging.WARNING):
        agent("kettle")
        manager.flush()
    assert "not indexed" in caplog.text
    assert world.found("kettle") == []

    manager.flush()

    assert world.found("kettle") == said("kettle")


# --- sessions that were there before


@pytest.mark.slow
@pytest.mark.new_database
def test_sessions_that_were_there_before_are_indexed_by_request_archived_messages_included(world: World) -> None:
    for session_id in ("one", "two"):
        world.prepare("archived", session_id)
    with world.manager("three", index_messages=False) as manager:
        agent = talker(manager, window=400)
        for number in range(105):
            agent(f"prompt {number}")

    assert world.repository.index_messages("one") == 16
    assert world.indexed("one") == CONVERSATION
    assert world.repository.index_messages() == 16 + 210
    assert world.indexed("two") == CONVERSATION
    assert world.indexed("three") == said(*(f"prompt {number}" for number in range(105)))
    assert world.repository.index_messages() == 0

    world.database[SEARCH].drop()
    assert world.repository.index_messages() == 0
    assert world.repository.index_messages(rebuild=True) == 2 * 16 + 210
    assert world.indexed("two") == CONVERSATION


def test_what_a_repository_wrote_with_gaps_in_its_ids_is_indexed_by_request(world: World) -> None:
    repository = world.repository
    begin(repository, agent_id="assistant")
    ids = [1, 5, 6, 90]
    for message_id in ids:
        repository.create_message("s", "assistant", a_message(message_id, f"kettle {message_id}"))

    assert repository.index_messages("s") == 4

    assert sorted(hit.message_id for hit in repository.search_messages("kettle")) == ids
    repository.update_message("s", "assistant", SessionMessage(by_hand(""), 6, by_hand("[redacted]")))
    assert world.found("kettle redacted") == ["kettle 1", "kettle 5", "[redacted]", "kettle 90"]


def test_older_documents_are_indexed_by_request(world: World) -> None:
    moment = datetime.now(timezone.utc)
    messages = [
        {"message_id": 0, "message": {"role": "user", "content": [{"text": "nested kettle"}]}, "created_at": moment},
        {"message": {"role": "assistant", "content": "plain kettle"}},
        {"role": "user", "content": "flat kettle"},
        {"role": "user", "content": None},
        "no message",
    ]
    world.database[SESSIONS].insert_one({"_id": "s", "agents": {"a": {"agent_data": {}, "messages": messages}}})
    world.repository.index_messages()
    assert world.found("kettle") == ["nested kettle", "plain kettle", "flat kettle"]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["at once", "afterwards"])
def test_messages_are_found_wherever_they_are_archived_to(world: World, when: str) -> None:
    options = SMALL if when == "at once" else {}
    with world.manager(**options) as manager:
        agent = talker(manager)
        for prompt in PROMPTS:
            agent(prompt)
    archive(world.client, world.database.name, "s")
    assert stored(world.database).archived
    assert world.indexed() == CONVERSATION
    assert world.repository.index_messages() == 0


# --- redaction


@pytest.mark.slow
@pytest.mark.topology
@every_state
def test_what_is_redacted_is_found_no_more_and_lies_in_no_collection(world: World, state: str) -> None:
    world.prepare(state)
    if "indexed" in state:
        assert world.indexed() == CONVERSATION
    world.redact()
    world.nothing_at_rest(SECRET)
    if "indexed" in state:
        assert world.repository.index_messages("s") == 0, "the redaction has done all there was to do"
    world.index()
    assert world.indexed() == REDACTED
    world.nothing_at_rest(SECRET)


@pytest.mark.slow
@every_state
def test_a_redaction_at_any_command_of_an_indexer_leaves_its_text_in_no_collection(world: World, state: str) -> None:
    def act(session_id: str) -> None:
        world.redact(session_id)
        assert SECRET.encode() not in at_rest(world.database), "while the indexer stands still"

    for session_id, acted in world.at_each_command(index, act, state):
        if not acted:
            world.redact(session_id)
        assert SECRET.encode() not in at_rest(world.database), session_id
        assert world.indexed(session_id) == REDACTED, session_id


@pytest.mark.slow
@every_state
def test_an_indexer_at_any_command_of_a_redaction_leaves_its_text_in_no_collection(world: World, state: str) -> None:
    for session_id, _ in world.at_each_command(redact, world.index, state):
        assert SECRET.encode() not in at_rest(world.database), session_id
        world.index(session_id)
        assert world.indexed(session_id) == REDACTED, session_id


@pytest.mark.slow
@pytest.mark.parametrize("state", ["embedded", "archived", "indexed, then archived"])
def test_an_indexer_that_reads_inside_a_redaction_and_writes_long_after_it_brings_nothing_back(
    world: World, state: str
) -> None:
    """The redaction stands still at each of its commands while an indexer begins that does so at each of its own."""
    world.prepare(state, "dry run")
    total = len(world.interrupted(redact, 0, None, "dry run"))
    for number in range(1, total + 1):
        for indexer_number in range(1, 7):  # The first batch has the secret.
            session_id = f"{number} {indexer_number}"
            world.prepare(state, session_id)
            indexer = StandingStill(world, session_id, indexer_number)
            try:
                world.interrupted(redact, number, indexer.begin, session_id)
            finally:
                indexer.end()
            assert SECRET.encode() not in at_rest(world.database), (number, indexer_number)
            world.index(session_id)
            assert world.indexed(session_id) == REDACTED, (number, indexer_number)


class StandingStill:
    """An indexer in a thread that stands still at its n-th command until it is to end."""

    def __init__(self, world: World, session_id: str, number: int) -> None:
        incarnation = world.session(session_id)["incarnation"]
        self._feed = lambda: world.interrupted(feed(incarnation), number, self._stand_still, session_id)
        self._there, self._goes_on = threading.Event(), threading.Event()
        self._threads = ThreadPoolExecutor(1)
        self._feeding: Future[Any] | None = None

    def begin(self) -> None:
        self._feeding = self._threads.submit(self._feed)
        self._feeding.add_done_callback(lambda _: self._there.set())
        assert self._there.wait(30)

    def end(self) -> None:
        self._goes_on.set()
        self._threads.shutdown()
        assert self._feeding is not None
        self._feeding.result()

    def _stand_still(self) -> None:
        self._there.set()
        assert self._goes_on.wait(30)


def test_a_prompt_that_was_tried_again_is_redacted_wherever_it_is_found(world: World) -> None:
    with world.manager() as manager:
        agent = talker(manager)
        for _ in range(2):
            manager.append_message({**by_hand(SECRET), "tracking_id": "t"}, agent)
            agent.messages.append({**by_hand(SECRET), "tracking_id": "t"})
    with world.manager() as manager:
        agent = talker(manager)
        assert world.found("secret") == [SECRET, SECRET]
        manager.redact_latest_message({**by_hand("[redacted]"), "tracking_id": "t"}, agent)
    world.nothing_at_rest(SECRET)
    assert world.found("redacted") == ["[redacted]", "[redacted]"]


def killed(world: World, deed: str, action: str, state: str) -> list[Crash]:
    """What became of each process that was killed, and last of those that were not."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(bson.encode(world.template(state)))
        file.flush()
        found = list(crashes(world.uri, world.database.name, f"{deed} what is in the file", action, file.name))
    assert len(found) > 6, "hardly anything was killed"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("state", ["embedded", "archived"])
def test_what_an_indexer_that_was_killed_has_not_done_the_next_process_does(world: World, state: str) -> None:
    for one in killed(world, "index", "nothing", state):
        with world.manager(one.session_id) as manager:
            assert texts(talker(manager).messages) == CONVERSATION[-4:]
        assert world.indexed(one.session_id) == CONVERSATION, one
        assert world.database[SEARCH].count_documents({"session_id": one.session_id}) == 16


@pytest.mark.slow
@pytest.mark.parametrize("state", ["embedded", "archived"])
def test_what_is_redacted_right_before_an_indexer_is_killed_lies_in_no_collection(world: World, state: str) -> None:
    found = killed(world, "index", "redact", state)
    for one in found:
        if not one.command:
            world.redact(one.session_id)
    world.nothing_at_rest(SECRET)  # No other indexer is needed for that.
    for one in found:
        world.index(one.session_id)
        assert world.indexed(one.session_id) == REDACTED, one


@pytest.mark.slow
@pytest.mark.parametrize("state", ["indexed", "indexed, then archived"])
def test_what_a_redaction_that_was_killed_has_left_in_the_search_the_next_indexer_removes(
    world: World, state: str
) -> None:
    for one in killed(world, "redact", "nothing", state):
        said_now = texts(world.repository.list_messages(one.session_id, "assistant"))
        world.index(one.session_id)
        assert world.indexed(one.session_id) == said_now, one
        world.redact(one.session_id)
        assert world.indexed(one.session_id) == REDACTED, one
    world.nothing_at_rest(SECRET)


# --- deletion


@pytest.mark.slow
@every_state
def test_what_is_deleted_is_found_no_more_and_a_new_life_of_the_session_finds_only_its_own(
    world: World, state: str
) -> None:
    world.prepare(state)
    world.repository.delete_session("s")
    world.nothing_at_rest(SECRET)
    with world.manager() as manager:
        talker(manager)("prompt of a new life")
    assert world.indexed() == said("prompt of a new life")


@pytest.mark.slow
@pytest.mark.parametrize("state", ["embedded", "archived"])
@pytest.mark.parametrize("begins_again", [False, True], ids=["deleted", "begun again"])
def test_a_deletion_at_any_command_of_an_indexer_leaves_nothing(world: World, state: str, begins_again: bool) -> None:
    incarnations: dict[str, Any] = {}

    def feed_it(client: Any, database_name: str, session_id: str) -> None:
        # Without a manager, whose opening would begin the session anew.
        incarnations[session_id] = world.session(session_id)["incarnation"]
        feed(incarnations[session_id])(client, database_name, session_id)

    def act(session_id: str) -> None:
        delete(world.client, world.database.name, session_id)
        if begins_again:
            with world.manager(session_id) as manager:
                talker(manager)("prompt of a new life")

    for session_id, acted in world.at_each_command(feed_it, act, state):
        if acted:
            left = {"_id.incarnation": incarnations[session_id]}
            assert world.database[SEARCH].count_documents(left) == 0, session_id
            assert world.indexed(session_id) == (said("prompt of a new life") if begins_again else [])


def feed(incarnation: Any) -> Any:
    def deed(client: Any, database_name: str, session_id: str) -> None:
        repository_of(client, database_name)._store.indexer.index(IndexingTask(session_id, incarnation, "assistant"))

    return deed


@pytest.mark.slow
def test_what_an_indexer_leaves_that_is_killed_after_a_deletion_is_not_found_and_a_sweep_removes_it(
    world: World,
) -> None:
    ended = [one for one in killed(world, "index", "delete", "embedded") if one.command]
    left = world.database[SEARCH].count_documents({"session_id": {"$in": [one.session_id for one in ended]}})
    assert left, "no indexer has put anything after the deletion"
    for one in ended:
        assert world.indexed(one.session_id) == []
    assert swept(world.repository) >= left
    assert world.database[SEARCH].count_documents({"session_id": {"$in": [one.session_id for one in ended]}}) == 0


@pytest.mark.slow
def test_messages_of_sessions_that_are_gone_take_no_place_among_those_that_are_found(world: World) -> None:
    for number in range(5):
        with world.manager(f"gone {number}") as manager:
            talker(manager)("kettle")
    with world.manager("alive") as manager:
        talker(manager)("a kettle among many other things")
    world.database[SESSIONS].delete_many({"_id": {"$regex": "^gone"}})  # As MongoDB itself does, when they expire.

    hits = world.repository.search_messages("kettle", limit=2)

    assert [hit.session_id for hit in hits] == ["alive", "alive"]
    assert swept(world.repository) == 10
    assert world.database[SEARCH].count_documents({}) == 2


# --- several indexers


@pytest.mark.slow
@pytest.mark.parametrize("state", ["embedded", "archived"])
def test_indexers_at_any_command_of_each_other_leave_every_message_once(world: World, state: str) -> None:
    for session_id, _ in world.at_each_command(index, world.index, state):
        assert world.indexed(session_id) == CONVERSATION
        assert world.database[SEARCH].count_documents({"session_id": session_id}) == 16
        assert world.repository.index_messages(session_id) == 0


@pytest.mark.slow
@pytest.mark.topology
def test_many_processes_that_write_archive_redact_and_feed_at_once_leave_the_search_right(world: World) -> None:
    converse(world.client, world.database.name, "s")

    def process(number: int) -> None:
        with world.manager(client=world.new_client(), **SMALL) as manager:
            agent = talker(manager)
            for turn in range(4):
                agent(f"prompt {number} {turn}")
                if turn == number == 1:
                    redact(world.new_client(), world.database.name, "s")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(process, range(4)))
    world.index()

    world.nothing_at_rest(SECRET)
    assert sorted(world.indexed()) == sorted(texts(stored(world.database).messages))
    assert world.database[HISTORY].count_documents({}) > 0
