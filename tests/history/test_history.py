"""The older part of a conversation moves into segments; nobody who reads the conversation notices.

Thresholds are small here, so a few turns are enough. What happens when archiving is disturbed is in
`test_history_faults.py`.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import bson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strands import Agent
from strands.agent.conversation_manager import NullConversationManager, SlidingWindowConversationManager
from strands.types.session import SessionMessage
from support.application import both_durabilities
from support.commands import Commands
from support.equality import assert_same
from support.gates import Gate
from support.histories import (
    HISTORY,
    NEVER,
    SESSIONS,
    SMALL,
    Stored,
    at_rest,
    by_hand,
    foreign_segments,
    gapless,
    lay_out,
    said,
    stored,
    talker,
    texts,
)

from mongodb_session_manager import (
    MessageNotFoundError,
    MongoDBSessionManager,
    MongoDBSessionRepository,
    UnstorableValueError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymongo.database import Database
    from support.application import Application

MEGABYTE = 1024 * 1024


def converse(app: Application, *prompts: str, session_id: str = "s", window: int = 4, **options: Any) -> Agent:
    """Take these turns in a process of their own; return its agent."""
    with app.manager(session_id, **options) as manager:
        agent = talker(manager, window)
        for prompt in prompts:
            agent(prompt)
    return agent


def archive(app: Application) -> None:
    """Open the session with small thresholds and close it again."""
    with app.manager(**SMALL) as manager:
        talker(manager)


def listed(app: Application, session_id: str = "s", **page: int) -> list[str]:
    return texts(app.repository.list_messages(session_id, "assistant", **page))


def assert_holds(app: Application, expected: list[str]) -> Stored:
    """This is what is stored and what is listed."""
    found = gapless(stored(app.database))
    assert texts(found.messages) == listed(app) == expected
    return found


def prompts(count: int, first: int = 0) -> list[str]:
    return [f"prompt {number}" for number in range(first, first + count)]


# --- when, and how much


@pytest.mark.slow
@pytest.mark.topology
@both_durabilities
@pytest.mark.parametrize("window", [2, 4, 40])
def test_archiving_begins_after_the_turn_that_makes_it_due_and_moves_the_oldest_block_live_or_not(
    app: Application, durability: Any, window: int
) -> None:
    archived_before, began_at = 0, 0
    with app.manager(durability=durability, **SMALL) as manager:
        agent = talker(manager, window)
        for number, prompt in enumerate(prompts(14), 1):
            agent(prompt)
            manager.flush()

            found = gapless(stored(app.database))
            assert texts(found.messages) == said(*prompts(number))
            assert texts(agent.messages) == said(*prompts(number))[-window:]
            assert not found.beyond
            assert [segment["count"] for segment in found.segments] == [4] * len(found.segments)
            due = 2 * number - archived_before >= 8
            assert len(found.archived) - archived_before == 4 * due, number
            assert len(found.embedded) < 8, "one more block was due"
            archived_before = len(found.archived)
            began_at = began_at or number * bool(archived_before)
        assert began_at == 4
        assert archived_before == 24


def test_below_the_thresholds_nothing_is_archived_however_much_has_left_the_window(app: Application) -> None:
    converse(app, *prompts(10), archive_after_messages=100, archive_block=2)

    assert stored(app.database).archived == []
    assert app.database[HISTORY].count_documents({}) == 0
    assert not app.recorder.commands.on(HISTORY)


@pytest.mark.slow
def test_with_the_default_thresholds_200_messages_are_many_enough_and_100_of_them_leave(app: Application) -> None:
    converse(app, *prompts(99), durability="turn")
    assert stored(app.database).archived == []

    converse(app, "one more", durability="turn")

    found = gapless(stored(app.database))
    assert (len(found.archived), len(found.embedded)) == (100, 100)


@pytest.mark.slow
def test_where_bytes_force_it_a_segment_has_as_many_messages_as_half_of_archive_after_bytes(app: Application) -> None:
    converse(app, *(f"{'x' * 700} {number}" for number in range(12)), archive_after_bytes=8000, archive_block=100)

    found = gapless(stored(app.database))
    assert len(found.segments) >= 2
    for segment in found.segments:
        sizes = [len(bson.encode(message)) for message in segment["messages"]]
        assert sum(sizes[:-1]) < 4000 <= sum(sizes)
    assert texts(found.messages) == listed(app)


@pytest.mark.slow
def test_a_document_that_many_agents_fill_is_archived_from_though_none_of_them_holds_much(app: Application) -> None:
    with app.manager(archive_after_bytes=8000, archive_block=2) as manager:
        agents = [talker(manager, 2, agent_id=f"agent-{number}") for number in range(12)]
        for turn in range(3):
            for agent in agents:
                agent(f"turn {turn} {'x' * 300}")

    counts = [len(stored(app.database, "s", agent.agent_id).embedded) for agent in agents]
    document = app.session()
    assert len(bson.encode(document["agents"]["agent-11"])) < 8000
    assert min(counts) < 6
    repository = app.repository
    for agent in agents:
        assert len(repository.list_messages("s", agent.agent_id)) == 6


# --- who waits for it


def leave_with(manager: MongoDBSessionManager) -> None:
    with manager:
        pass


async def leave_async_with(manager: MongoDBSessionManager) -> None:
    async with manager:
        pass


ENDINGS: dict[str, Callable[[MongoDBSessionManager], object]] = {
    "flush": MongoDBSessionManager.flush,
    "close": MongoDBSessionManager.close,
    "with": leave_with,
    "async with": lambda manager: asyncio.run(leave_async_with(manager)),
}


@pytest.mark.slow
@pytest.mark.topology
@both_durabilities
@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_who_ends_a_session_waits_until_its_archiving_is_done(
    app: Application, durability: Any, ending: Callable[[MongoDBSessionManager], None]
) -> None:
    manager = app.manager(durability=durability, **SMALL)
    agent = talker(manager)
    with app.slow("insert"):
        for prompt in prompts(6):
            agent(prompt)
        ending(manager)
        commands = list(app.recorder.commands)

        found = gapless(stored(app.database))
        assert len(found.archived) >= 4
        assert len(found.embedded) < 8 + 4
        assert not found.beyond
    manager.close()
    assert app.recorder.commands == commands


@pytest.mark.topology
@both_durabilities
def test_the_turn_itself_does_not_wait_for_its_archiving(app: Application, durability: Any) -> None:
    gate = Gate()
    with app.manager(client=app.new_client(event_listeners=[gate]), durability=durability, **SMALL) as manager:
        agent = talker(manager)
        with gate.holding("insert") as archiving:
            for prompt in prompts(7):
                agent(prompt)
            archiving.wait()
            assert stored(app.database).archived == []
            assert texts(stored(app.database).messages) == said(*prompts(7))
        manager.flush()
    assert len(gapless(stored(app.database)).archived) >= 8


@pytest.mark.slow
@pytest.mark.topology
def test_archiving_that_fails_is_logged_and_the_next_turn_does_it(
    app: Application, caplog: pytest.LogCaptureFixture
) -> None:
    with app.manager(**SMALL) as manager:
        agent = talker(manager)
        with app.failing("insert"):
            for prompt in prompts(6):
                agent(prompt)
            manager.flush()
        assert stored(app.database).archived == []
        assert "not archived" in caplog.text
        agent("and on")

    found = gapless(stored(app.database))
    assert len(found.archived) >= 4
    assert texts(found.messages) == said(*prompts(6), "and on")


@pytest.mark.slow
@both_durabilities
def test_messages_appended_by_hand_are_archived_in_their_places(app: Application, durability: Any) -> None:
    expected = []
    with app.manager(durability=durability, **SMALL) as manager:
        agent = talker(manager)
        for prompt in prompts(8):
            manager.append_message(by_hand(f"before {prompt}"), agent)
            agent(prompt)
            expected += [f"before {prompt}", *said(prompt)]

    assert len(assert_holds(app, expected).archived) >= 8


@pytest.mark.parametrize("name", ["archive_after_messages", "archive_after_bytes", "archive_block"])
@pytest.mark.parametrize("value", [0, -1, "x", "8", True, False, 1.5, None])
def test_a_threshold_that_makes_no_sense_is_refused_before_anything_is_sent(
    app: Application, name: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=name):
        app.manager(**{name: value})
    assert app.recorder.names == []


@pytest.mark.parametrize("name", ["archive_after_messages", "archive_after_bytes", "archive_block"])
def test_the_least_threshold_is_one_and_works(app: Application, name: str) -> None:
    converse(app, *prompts(6), **{"archive_after_messages": 4, "archive_block": 2, name: 1})

    assert assert_holds(app, said(*prompts(6))).archived


# --- reading


@pytest.mark.slow
def test_every_page_is_what_it_is_of_the_whole_list(app: Application) -> None:
    converse(app, *prompts(11), **SMALL)
    assert len(stored(app.database).segments) >= 3
    repository = app.repository
    whole = repository.list_messages("s", "assistant")
    assert texts(whole) == said(*prompts(11))

    for offset in range(len(whole) + 3):
        for limit in [*range(0, len(whole) + 3, 1), None]:
            page = repository.list_messages("s", "assistant", limit=limit, offset=offset)
            assert page == whole[offset:][:limit], (offset, limit)


@pytest.mark.slow
def test_pages_of_any_conversation_however_it_is_cut_and_numbered(app: Application) -> None:
    repository = app.repository
    layouts = st.tuples(
        st.lists(st.integers(1, 40), min_size=1, max_size=25),  # from one id to the next
        st.lists(st.integers(1, 6), max_size=6),
    )
    far = st.integers(0, 30) | st.sampled_from([2**31 - 1, 2**31, 2**62])

    @given(layouts, far, st.none() | far)
    @settings(max_examples=60)
    def check(layout: tuple[list[int], list[int]], offset: int, limit: int | None) -> None:
        steps, blocks = layout
        ids = [sum(steps[: n + 1]) - 1 for n in range(len(steps))]
        while sum(blocks) > len(ids):
            blocks = blocks[:-1]
        lay_out(app.database, ids, blocks)

        try:
            page = repository.list_messages("s", "assistant", limit=limit, offset=offset)
            assert [message.message_id for message in page] == ids[offset:][:limit]
            for message_id in {*ids, *(n + 1 for n in ids), 0, 10**6}:
                message = repository.read_message("s", "assistant", message_id)
                assert (message.message_id if message else None) == (message_id if message_id in ids else None)
        finally:
            repository.delete_session("s")
        assert app.database[HISTORY].count_documents({}) == 0

    check()


@pytest.mark.parametrize("offset", [2**63 + 2**32, 2**70])
def test_a_page_that_begins_beyond_64_bits_is_empty(app: Application, offset: int) -> None:
    converse(app, *prompts(6), **SMALL)

    assert listed(app, offset=offset, limit=1) == []


GAPPED = [1, 2, 5, 100, 101, 102, 500, 501, 502, 503, 504, 1000, 1001, 5000, 5001]


def begin_with_gaps(app: Application) -> MongoDBSessionRepository:
    """A conversation with ids that have gaps: its first eight messages are archived, the last four are live."""
    with app.manager() as manager:
        talker(manager)
    repository = app.repository
    for number in GAPPED:
        repository.create_message("s", "assistant", SessionMessage(by_hand(f"text {number}"), number))
    agent = repository.read_agent("s", "assistant")
    assert agent is not None
    agent.conversation_manager_state = {
        **SlidingWindowConversationManager(window_size=4).get_state(),
        "removed_message_count": len(GAPPED) - 4,
    }
    repository.update_agent("s", agent)
    archive(app)
    assert len(stored(app.database).segments) == 2
    return repository


@pytest.mark.slow
def test_messages_whose_ids_have_gaps_are_found_by_id_archived_or_not(app: Application) -> None:
    repository = begin_with_gaps(app)

    for number in [*range(110), *range(495, 510), *range(995, 1005), *range(4995, 5005)]:
        found = repository.read_message("s", "assistant", number)
        assert texts([found] if found else []) == ([f"text {number}"] if number in GAPPED else [])


@pytest.mark.slow
def test_every_message_can_be_updated_archived_or_not_and_ids_in_gaps_are_not_found(app: Application) -> None:
    repository = begin_with_gaps(app)
    before = stored(app.database).messages

    for number in (0, 3, 99, 103, 999, 5002):
        with pytest.raises(MessageNotFoundError):
            repository.update_message("s", "assistant", SessionMessage(by_hand("no"), number))
    for number in GAPPED:
        repository.update_message("s", "assistant", SessionMessage(by_hand(f"new {number}"), number))

    found = stored(app.database)
    assert texts(found.messages) == listed(app) == [f"new {number}" for number in GAPPED]
    assert b"text " not in at_rest(app.database)
    assert [message["created_at"] for message in found.messages] == [message["created_at"] for message in before]
    assert all(message["updated_at"] >= old["updated_at"] for message, old in zip(found.messages, before, strict=True))


def test_a_message_far_below_its_id_is_found_in_a_few_reads(app: Application) -> None:
    ids = list(range(100_000, 100_600))
    lay_out(app.database, ids, [2] * 250)
    repository = app.repository

    for number in (ids[0], ids[123], ids[499]):
        with app.recorder.recording() as commands:
            message = repository.read_message("s", "assistant", number)
        assert message is not None
        assert message.message_id == number
        assert len(commands) <= 15


@pytest.mark.slow
def test_a_page_in_the_middle_of_a_long_conversation_reads_only_the_segments_that_hold_it(app: Application) -> None:
    lay_out(app.database, list(range(4_010)), [2] * 2_000)
    lay_out(app.database, list(range(410)), [2] * 200, session_id="another")
    repository = app.repository

    def reads(read: Callable[[], Any]) -> Commands:
        with app.recorder.recording() as commands:
            read()
        return commands

    whole_segment = reads(lambda: listed(app, offset=2_000, limit=2))
    across_five = reads(lambda: listed(app, offset=2_001, limit=8))
    one_message = reads(lambda: repository.read_message("s", "assistant", 3_001))
    newest = reads(lambda: listed(app, offset=4_000, limit=10))

    assert [command.collection for command in newest] == [SESSIONS]
    assert [command.collection for command in whole_segment] == [SESSIONS, HISTORY]
    assert [command.collection for command in across_five] == [SESSIONS, HISTORY, HISTORY]
    assert len(one_message) <= 3
    assert [documents_examined(app, reads) for reads in (whole_segment, across_five)] == [1, 5]
    assert documents_examined(app, one_message) <= 2
    assert whole_segment.reply_bytes < 2_000


def documents_examined(app: Application, commands: Commands) -> int:
    """How many segments the server looked at, each found by the index on `_id`."""
    examined = 0
    for command in commands.on(HISTORY):
        assert command.name == "find"
        query = {k: v for k, v in command.command.items() if k in ("find", "filter", "projection", "sort", "limit")}
        plan = app.database.command("explain", query, verbosity="executionStats")
        stages = str(plan["queryPlanner"]["winningPlan"])
        assert "IXSCAN" in stages or "IDHACK" in stages
        assert "COLLSCAN" not in stages
        assert "'SORT'" not in stages
        examined += plan["executionStats"]["totalDocsExamined"]
        assert plan["executionStats"]["totalKeysExamined"] <= plan["executionStats"]["totalDocsExamined"] + 1
    return examined


@pytest.mark.slow
def test_the_number_of_messages_is_that_of_all_archived_or_not(app: Application) -> None:
    with app.manager(**SMALL) as manager:
        agent = talker(manager)
        for number, prompt in enumerate(prompts(12), 1):
            agent(prompt)
            assert manager.get_message_count("assistant") == 2 * number
        manager.flush()
        assert stored(app.database).archived
        assert manager.get_message_count("assistant") == 24


# --- what archiving leaves as it was


@pytest.mark.slow
@both_durabilities
def test_an_agent_that_is_restored_is_the_live_one(app: Application, durability: Any) -> None:
    with app.manager(durability=durability, **SMALL) as manager:
        live = talker(manager)
        for prompt in prompts(13):
            live.state.set("last", prompt)
            live(prompt)
            manager.flush()
            with app.manager() as another:
                restored = talker(another)
            assert_same(restored.messages, live.messages)
            assert_same(restored.conversation_manager.get_state(), live.conversation_manager.get_state())
            assert_same(restored.state.get(), live.state.get())
    assert len(stored(app.database).segments) >= 3


def test_archiving_changes_nothing_of_a_session_document_but_where_the_oldest_messages_are(app: Application) -> None:
    converse(app, *prompts(8), **NEVER)
    before = app.session()

    archive(app)

    after = app.session()
    assert after["agents"]["assistant"].pop("archived_count") == 12
    assert before["agents"]["assistant"].pop("archived_count") == 0
    assert after["agents"]["assistant"]["usage"]["messages"] == 16
    assert after["agents"]["assistant"].pop("messages") == before["agents"]["assistant"].pop("messages")[12:]
    assert_same(after, before)  # updated_at, usage and the live view, too


@pytest.mark.topology
def test_archiving_needs_no_lease_and_leaves_the_one_of_another_process(app: Application) -> None:
    converse(app, *prompts(8), **NEVER)
    with app.manager() as holder, holder.lease(60):
        archive(app)
        assert app.session()["lease"]["owner"]
    assert len(gapless(stored(app.database)).archived) == 12


ODD: dict[str, Any] = {
    "tuple": (1, (2, "x")),
    "big": 2**70,
    "long": 2**40,
    "small": 1,
    "float": 1.0,
    "zero": -0.0,
    "reference": {"$ref": "a", "$id": 1, "$db": "b"},
    "operators": {"$set": {"a.b": 1}, "": None, "a\0b": "\ud800"},
    "marker": {"__encoded__": "int", "value": "0x1"},
    "numbers as keys": {1: "one", None: "none"},
    "bytes": b"\0\xff",
}


@pytest.mark.slow
def test_values_and_fields_that_nobody_knows_are_archived_byte_for_byte(app: Application) -> None:
    with app.manager(**NEVER) as manager:
        agent = talker(manager)
        odd = {"toolUse": {"toolUseId": "1", "name": "look_up", "input": ODD}}
        manager.append_message({"role": "assistant", "content": [odd]}, agent)
        result = {"toolUseId": "1", "status": "success", "content": [{"json": ODD}]}
        manager.append_message({"role": "user", "content": [{"toolResult": result}]}, agent)
        for prompt in prompts(7):
            agent(prompt)
    unknown = {
        "rating": bson.Decimal128("1.50"),
        "by": bson.DBRef("people", 7),
        "at": bson.Timestamp(1, 2),
        "n": bson.Int64(1),
    }
    app.database[SESSIONS].update_one({}, {"$set": {"agents.assistant.messages.$[].of_ours": unknown}})
    before = [message.raw for message in raw_messages(app.database)]
    listed = app.repository.list_messages("s", "assistant")

    archive(app)

    found = stored(app.database)
    assert len(found.archived) == 12
    assert [message.raw for message in raw_messages(app.database)] == before
    assert all(message["of_ours"] == unknown for message in found.messages)
    assert_same(app.repository.list_messages("s", "assistant"), listed)
    assert_same(listed[0].message["content"][0]["toolUse"]["input"], ODD)
    read = app.repository.read_message("s", "assistant", 1)
    assert read is not None
    assert_same(read.message["content"][0]["toolResult"]["content"], [{"json": ODD}])


def raw_messages(database: Database[Any]) -> list[Any]:
    """All messages of the conversation as they are stored, oldest first."""
    raw = database.codec_options.with_options(document_class=bson.raw_bson.RawBSONDocument)
    segments = database.get_collection(HISTORY, codec_options=raw).find().sort("_id", 1)
    found = [message for segment in segments for message in segment["messages"]]
    document = database.get_collection(SESSIONS, codec_options=raw).find_one()
    assert document is not None
    return found + list(document["agents"]["assistant"]["messages"])


@pytest.mark.slow
def test_a_thousand_messages_cost_hardly_a_command_more_where_they_are_archived(app: Application) -> None:
    def commands(turns: int, session_id: str, **options: Any) -> int:
        with app.recorder.recording() as sent, app.manager(session_id, **options) as manager:
            agent = talker(manager, 40)
            for prompt in prompts(turns):
                agent(prompt)
        return len(sent)

    commands(1, "the first, which ensures the indexes")
    one_turn, ten_turns = commands(1, "one turn", **NEVER), commands(10, "ten turns", **NEVER)
    assert (ten_turns - one_turn) % 9 == 0
    without = one_turn + (ten_turns - one_turn) // 9 * 499

    assert without < commands(500, "archived") < 1.05 * without
    assert len(gapless(stored(app.database, "archived")).archived) >= 800


# --- redaction


@pytest.mark.parametrize("message_id", range(10))
def test_a_redacted_message_is_in_none_of_the_collections(app: Application, message_id: int) -> None:
    texts_of_turns = [f"secret of the {number}" for number in range(5)]
    converse(app, *texts_of_turns, **SMALL)
    found = stored(app.database)
    assert len(found.archived) == 4
    text = texts(found.messages)[message_id]
    role = found.messages[message_id]["role"]
    repository = app.repository
    message = repository.read_message("s", "assistant", message_id)
    assert message is not None

    # The answer to a prompt repeats it, so a word that only this message says stands for it.
    for name, path in ((HISTORY, "messages"), (SESSIONS, "agents.assistant.messages")):
        app.database[name].update_many(
            {},
            {"$set": {f"{path}.$[m].content.0.text": "the very secret"}},
            array_filters=[{"m.message_id": message_id}],
        )
    assert b"the very secret" in at_rest(app.database)
    message.redact_message = by_hand("[redacted]", role)
    repository.update_message("s", "assistant", message)

    app.nothing_at_rest("the very secret")
    expected = [text if n != message_id else "[redacted]" for n, text in enumerate(said(*texts_of_turns))]
    assert listed(app) == expected
    assert text not in listed(app)
    after = stored(app.database).messages[message_id]
    kept = ("message_id", "tracking_id", "turn_id", "created_at", "metadata", "event_loop_metrics")
    assert {k: after[k] for k in kept if k in after} == {
        k: found.messages[message_id][k] for k in kept if k in found.messages[message_id]
    }


@pytest.mark.slow
@pytest.mark.topology
def test_the_latest_message_of_a_process_is_redacted_where_another_process_has_archived_it(app: Application) -> None:
    with app.manager() as manager:
        agent = talker(manager)
        manager.append_message(by_hand("my secret"), agent)
        converse(app, *prompts(8), **SMALL)
        assert "my secret" in texts(stored(app.database).archived)

        manager.redact_latest_message(by_hand("[redacted]"), agent)

    app.nothing_at_rest("secret")
    found = assert_holds(app, ["[redacted]", *said(*prompts(8))])
    assert found.archived[0]["guardrail_event"]["action"] == "redacted"
    assert found.archived[0]["redact_message"] == by_hand("[redacted]")


def test_what_was_redacted_before_it_is_archived_stays_redacted(app: Application) -> None:
    with app.manager(**SMALL) as manager:
        agent = talker(manager)
        manager.append_message(by_hand("my secret"), agent)
        manager.redact_latest_message(by_hand("[redacted]"), agent)
        for prompt in prompts(8):
            agent(prompt)

    assert len(stored(app.database).archived) >= 8
    app.nothing_at_rest("secret")
    assert listed(app) == ["[redacted]", *said(*prompts(8))]


@pytest.mark.slow
@pytest.mark.parametrize("same_process", [True, False])
def test_a_prompt_that_was_tried_again_is_redacted_in_both_places_though_the_first_is_archived(
    app: Application, same_process: bool
) -> None:
    with app.manager(**SMALL) as manager, app.manager() as another:
        agent = talker(manager, 2)
        agent([{"text": "my secret"}])
        tracking_id = agent.messages[0]["tracking_id"]
        for prompt in prompts(6):
            agent(prompt)
        manager.flush()
        assert "my secret" in texts(stored(app.database).archived)
        if not same_process:
            manager, agent = another, talker(another, 2)
        manager.append_message({**by_hand("my secret"), "tracking_id": tracking_id}, agent)

        manager.redact_latest_message({**by_hand("[redacted]"), "tracking_id": tracking_id}, agent)

    found = listed(app)
    assert (found[0], found[-1]) == ("[redacted]", "[redacted]")


# --- the life of a session


@pytest.mark.slow
def test_a_deleted_session_takes_its_own_segments_along_and_no_others(app: Application) -> None:
    others = ["s0", "S", "s ", "t", "r", "ss", "s.s", "$s"]
    for session_id in ("s", *others):
        converse(app, *prompts(6), session_id=session_id, **SMALL)
    with app.manager(**SMALL) as manager:
        for agent_id in ("assistant.two", "zz", "$agent", "a"):
            agent = talker(manager, 2, agent_id=agent_id)
            for prompt in prompts(6):
                agent(prompt)
    before = app.database[HISTORY].count_documents({})
    mine = app.database[HISTORY].count_documents({"_id.session": "s"})
    assert mine >= 5

    app.repository.delete_session("s")

    assert app.database[HISTORY].count_documents({"_id.session": "s"}) == 0
    assert app.database[HISTORY].count_documents({}) == before - mine
    for session_id in others:
        assert listed(app, session_id) == said(*prompts(6))


@pytest.mark.slow
@pytest.mark.topology
def test_a_session_that_begins_again_sees_nothing_of_the_one_before(app: Application) -> None:
    converse(app, *prompts(8), **SMALL)
    orphans = list(app.database[HISTORY].find())
    app.repository.delete_session("s")
    app.database[HISTORY].insert_many(orphans)  # as a process leaves them that dies while it deletes

    agent = converse(app, "hello", **SMALL)

    assert texts(agent.messages) == listed(app) == said("hello")
    repository = app.repository
    assert [repository.read_message("s", "assistant", n) is None for n in range(16)] == [False, False] + [True] * 14
    converse(app, *prompts(8, first=100), **SMALL)
    found = assert_holds(app, said("hello", *prompts(8, first=100)))
    assert found.archived
    assert len(foreign_segments(app.database)) == len(orphans)


@pytest.mark.slow
def test_agents_of_a_session_have_histories_of_their_own(app: Application) -> None:
    agent_ids = ["assistant", "assistant.", "assistant%2E", "a", "$feedbacks", "b c"]
    with app.manager(**SMALL) as manager:
        agents = [talker(manager, 2, agent_id=agent_id) for agent_id in agent_ids]
        for prompt in prompts(7):
            for agent in agents:
                agent(f"{agent.agent_id} {prompt}")

    assert app.database[HISTORY].count_documents({}) >= 2 * len(agent_ids)
    repository = app.repository
    for agent_id in agent_ids:
        expected = said(*(f"{agent_id} {prompt}" for prompt in prompts(7)))
        assert texts(repository.list_messages("s", agent_id)) == expected


# --- a window that reaches into the history


@pytest.mark.parametrize("field", ["live.tail", "agent_data.conversation_manager_state.removed_message_count"])
@pytest.mark.parametrize("first", [0, 1, 3, 4, 5, 8, 11, 12, 13])
def test_a_window_that_begins_in_the_history_is_restored_from_there(app: Application, first: int, field: str) -> None:
    converse(app, *prompts(8), **SMALL)
    assert len(stored(app.database).archived) == 12
    # Where only the count was moved, it was by a version that knows no live view.
    app.database[SESSIONS].update_one({}, {"$set": {f"agents.assistant.{field}": first}})

    with app.recorder.recording() as commands, app.manager() as manager:
        agent = talker(manager, 40)
        assert texts(agent.messages) == said(*prompts(8))[first:]
        assert len(commands.named("find").on(HISTORY)) <= (2 if first < 12 else 0)
        agent("and on")

    assert listed(app) == said(*prompts(8), "and on")


@pytest.mark.slow
@pytest.mark.parametrize("stored_form", ["nested", "string", "direct"])
def test_a_long_conversation_of_an_older_document_is_archived_by_the_next_turn(
    app: Application, stored_form: str
) -> None:
    def message(number: int) -> dict[str, Any]:
        role, text = ("user", "assistant")[number % 2], f"text {number}"
        if stored_form == "direct":
            return {"message_id": number, "role": role, "content": [{"text": text}]}
        content: Any = [{"text": text}] if stored_form == "nested" else text
        return {"message_id": number, "message": {"role": role, "content": content}, "of_ours": number}

    older = {
        "_id": "s",
        "agents": {
            "assistant": {
                "agent_data": {"agent_id": "assistant", "state": {"n": 1}, "conversation_manager_state": {}},
                "messages": [message(number) for number in range(3_000)],
            }
        },
    }
    app.database[SESSIONS].insert_one(older)

    converse(app, "hello")

    found = stored(app.database)
    assert len(found.archived) >= 2_800
    assert len(found.embedded) < 200
    assert {segment["count"] for segment in found.segments} <= {*range(1, 101)}
    expected = [*(f"text {number}" for number in range(3_000)), *said("hello")]
    assert listed(app) == expected
    assert found.archived[:2_500] == older["agents"]["assistant"]["messages"][:2_500]  # type: ignore[index]
    repository = app.repository
    for number in (0, 99, 100, 1_777, 2_999, 3_000, 3_001):
        read = repository.read_message("s", "assistant", number)
        assert texts([read]) == [expected[number]]
    repository.update_message("s", "assistant", SessionMessage(by_hand("[redacted]"), 5))
    assert b"text 5\0" not in at_rest(app.database)
    assert listed(app, offset=4, limit=3) == ["text 4", "[redacted]", "text 6"]


# --- 16 MB: MongoDB takes no more in a document


def large(number: int, size: int = 100 * 1024) -> str:
    return f"{number} " + "x" * size


def document_bytes(database: Database[Any], session_id: str = "s") -> int:
    sizes = database[SESSIONS].aggregate(
        [{"$match": {"_id": session_id}}, {"$project": {"n": {"$bsonSize": "$$ROOT"}}}]
    )
    return int(sizes.next()["n"])


@pytest.mark.slow
def test_thirty_megabytes_that_are_all_live_do_not_fill_the_document_and_the_agent_is_restored_whole(
    app: Application,
) -> None:
    with app.manager() as manager:
        agent = talker(manager, conversation_manager=NullConversationManager())
        for number in range(300):
            manager.append_message(by_hand(large(number)), agent)
        agent("and on")

    found = gapless(stored(app.database))
    assert len(found.archived) >= 100
    with app.manager() as manager:
        restored = talker(manager, conversation_manager=NullConversationManager())
        assert texts(restored.messages) == [*(large(number) for number in range(300)), *said("and on")]
        restored("once more")
    assert listed(app, offset=300) == said("and on", "once more")


@pytest.mark.slow
def test_room_is_made_before_the_document_has_6_mb_the_second_time_as_the_first(app: Application) -> None:
    sizes = []
    with app.manager() as manager:
        agent = talker(manager, conversation_manager=NullConversationManager())
        for number in range(22):
            for _ in range(10):
                manager.append_message(by_hand(large(number)), agent)
            sizes.append(document_bytes(app.database))

    assert sum(after < before for before, after in itertools.pairwise(sizes)) >= 2
    assert 4 * MEGABYTE < max(sizes) <= 6.5 * MEGABYTE


@pytest.mark.slow
def test_a_repository_alone_keeps_the_document_below_16_mb_as_well(app: Application) -> None:
    with app.manager() as manager:
        talker(manager)
    repository = app.repository

    for number in range(200):
        repository.create_message("s", "assistant", SessionMessage(by_hand(large(number)), 3 * number))

    found = stored(app.database)
    assert found.archived
    assert [message["message_id"] for message in found.messages] == list(range(0, 600, 3))
    assert listed(app) == [large(number) for number in range(200)]


@pytest.mark.slow
def test_three_hundred_agents_with_full_windows_stay_writable(app: Application) -> None:
    window = [by_hand(f"{number} " + "x" * 2_000, ("user", "assistant")[number % 2]) for number in range(40)]
    agent_ids = [f"agent-{number}" for number in range(300)]
    with app.manager() as manager:
        for agent_id in agent_ids:
            talker(manager, 40, agent_id=agent_id, messages=[dict(message) for message in window])
    assert document_bytes(app.database) < 16 * MEGABYTE

    with app.manager() as manager:
        for agent_id in (agent_ids[0], agent_ids[150], agent_ids[-1]):
            agent = talker(manager, 40, agent_id=agent_id)
            assert texts(agent.messages) == texts(window)
            agent("and on")

    repository = app.repository
    for agent_id in agent_ids[::30]:
        assert texts(repository.list_messages("s", agent_id))[:40] == texts(window)
    assert texts(repository.list_messages("s", agent_ids[150], offset=40)) == said("and on")
    assert manager.get_message_count(agent_ids[77]) == 40


@pytest.mark.slow
def test_an_answer_is_counted_though_the_prompt_in_its_commit_found_no_room(app: Application) -> None:
    converse(app, "hi", window=100)
    # Somebody else's field leaves room for the answer, and not for the prompt.
    update = {"$set": {"of_somebody_else": "x" * (15 * MEGABYTE + MEGABYTE // 2)}}
    assert app.database[SESSIONS].update_one({"_id": "s"}, update).matched_count

    with app.manager(durability="turn") as manager:
        agent = app.agent(manager, "Short.", agent_id="assistant")
        with pytest.raises(UnstorableValueError, match="no room"):
            agent("y" * 900_000)

    assert texts(gapless(stored(app.database)).messages) == [*said("hi"), "Short."]
    usage = app.record("assistant")["usage"]
    assert (usage["messages"], usage["turns"]) == (3, 1)
    (model,) = usage["models"].values()
    assert model["calls"] == 2


@pytest.mark.slow
@both_durabilities
def test_a_text_of_16_mb_is_refused_by_name_and_size_and_the_session_goes_on(app: Application, durability: Any) -> None:
    with app.manager(durability=durability, **SMALL) as manager:
        agent = talker(manager)
        agent("hi")
        with pytest.raises(UnstorableValueError, match=r"message.*'text'.* 16777\d{3} bytes.* 15728640"):
            manager.append_message(by_hand("z" * (16 * MEGABYTE)), agent)
        agent("and on")
        repository = app.repository
        with pytest.raises(UnstorableValueError, match=r"message_id=4 message.*'text'.* 16777\d{3} bytes.* 15728640"):
            repository.create_message("s", "assistant", SessionMessage(by_hand("z" * (16 * MEGABYTE)), 4))
        agent.state.set("huge", "z" * (16 * MEGABYTE))
        with pytest.raises(UnstorableValueError, match=r"state.* 16777\d{3} bytes.* 15728640"):
            manager.sync_agent(agent)
        agent.state.set("huge", "")
        for prompt in prompts(5):
            agent(prompt)

    found = gapless(stored(app.database))
    assert texts(found.messages) == said("hi", "and on", *prompts(5))
    assert found.archived
