"""What is archived is the oldest block, whether it is live or not: nobody who keeps everything live fills a document.

A conversation manager that removes nothing, one that keeps summaries, and messages by hand that no window counts: each
of them would let the session document grow until it is full, if archiving waited for messages to leave the window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bson
import pytest
from offline_model import OfflineScriptedModel, ScriptedReply
from strands.agent.conversation_manager import (
    ConversationManager,
    NullConversationManager,
    SlidingWindowConversationManager,
    SummarizingConversationManager,
)
from strands.types.exceptions import ContextWindowOverflowException
from support.application import both_durabilities
from support.equality import assert_same
from support.histories import HISTORY, NEVER, SMALL, by_hand, echo, gapless, said, stored, talker, texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.application import Application
    from support.commands import Commands

pytestmark = pytest.mark.slow

TURNS = 60
MOST = 8 + 2
"""A session document has fewer messages than make archiving due, and those of the turn that made it due."""


def summarizing() -> ConversationManager:
    return SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2)


def full_each(turns: int) -> Callable[[Any], Any]:
    """A model that has no room for more at every so many turns, and then makes a summary when it is asked for one."""
    made = {"at": 0}

    def reply(messages: Any) -> Any:
        heard = messages[-1]["content"][0].get("text", "")
        if "summarize" in heard:
            return f"A summary of {len(messages) - 1}."
        number = int(heard.rsplit(" ", 1)[1])
        if number and number % turns == 0 and made["at"] != number:
            made["at"] = number
            return ScriptedReply(error=ContextWindowOverflowException("full"))
        return echo(messages)

    return reply


KEEPING: dict[str, Callable[[], dict[str, Any]]] = {
    "all": lambda: {"conversation_manager": NullConversationManager()},
    "summaries": lambda: {"conversation_manager": summarizing(), "model": OfflineScriptedModel(full_each(7))},
    "a window larger than the document": lambda: {
        "conversation_manager": SlidingWindowConversationManager(window_size=40)
    },
    "what fits, which changes": lambda: {
        "conversation_manager": SlidingWindowConversationManager(window_size=40),
        "model": OfflineScriptedModel(full_each(7)),
    },
}
each_manager = pytest.mark.parametrize("keeping", KEEPING.values(), ids=KEEPING)


def prompts(count: int) -> list[str]:
    return [f"prompt {number}" for number in range(count)]


def assert_restored_is_live(app: Application, live: Any, **options: Any) -> None:
    """What another process restores is what this agent has; the document is read, and not written."""
    with app.manager(**SMALL) as another:
        with app.recorder.recording() as commands:
            restored = talker(another, **options)
        assert_same(restored.messages, live.messages)
        assert_same(restored.conversation_manager.get_state(), live.conversation_manager.get_state())
    assert not commands.named("insert", "update", "delete")


@both_durabilities
@each_manager
def test_nothing_is_lost_and_the_document_stays_small_whatever_a_conversation_manager_keeps_live(
    app: Application, durability: Any, keeping: Callable[[], dict[str, Any]]
) -> None:
    sizes: list[int] = []
    with app.manager(durability=durability, **SMALL) as manager:
        agent = talker(manager, **keeping())
        for number, prompt in enumerate(prompts(TURNS), 1):
            agent(prompt)
            manager.flush()
            found = gapless(stored(app.database))
            assert texts(found.messages) == said(*prompts(number))
            assert len(found.embedded) < MOST
            sizes.append(len(bson.encode(app.session())))
            if number % 6 == 0:
                assert_restored_is_live(app, agent, **keeping())

    assert len(found.archived) >= 2 * TURNS - MOST
    assert texts(app.repository.list_messages("s", "assistant")) == said(*prompts(TURNS))
    assert max(sizes[TURNS // 2 :]) < 1.2 * max(sizes[: TURNS // 2]), "it grows with the conversation"


@both_durabilities
@each_manager
def test_a_turn_late_in_a_conversation_costs_no_command_and_hardly_a_byte_more_than_an_early_one(
    app: Application, durability: Any, keeping: Callable[[], dict[str, Any]]
) -> None:
    turns: list[Commands] = []
    with app.manager(durability=durability, **SMALL) as manager:
        agent = talker(manager, **keeping())
        for prompt in prompts(TURNS):
            with app.recorder.recording() as commands:
                agent(prompt)
                manager.flush()
            turns.append(commands)

    assert stored(app.database).archived
    # Both messages of a turn; what is live, where the context was full; a block is read, inserted and committed.
    assert max(map(len, turns[1:])) <= 2 + 1 + 3
    # Every second turn a block is archived, every seventh the context may be full. Whether what is live then rides with
    # the answer depends on how soon the prompt was sent.
    early, late = turns[4:32], turns[32:60]
    assert sum(map(len, late)) <= sum(map(len, early)) + 28 // 7
    assert sum(turn.request_bytes for turn in late) < 1.1 * sum(turn.request_bytes for turn in early)


@both_durabilities
def test_messages_by_hand_that_no_window_counts_do_not_fill_the_document(app: Application, durability: Any) -> None:
    notes = [f"note {number}" for number in range(60)]
    appends: list[Commands] = []
    with app.manager(durability=durability, **SMALL) as manager:
        agent = talker(manager)
        agent("hello")
        live = list(agent.messages)
        for number, note in enumerate(notes, 1):
            with app.recorder.recording() as commands:
                manager.append_message(by_hand(note), agent)
                manager.flush()
            appends.append(commands)
            found = gapless(stored(app.database))
            assert texts(found.messages) == [*said("hello"), *notes[:number]]
            assert len(found.embedded) < MOST
        assert agent.messages == live, "a message by hand does not get into the live conversation"

    early, late = appends[4:32], appends[32:60]
    assert sum(map(len, late)) <= sum(map(len, early))
    assert sum(append.request_bytes for append in late) < 1.1 * sum(append.request_bytes for append in early)
    with app.manager(**SMALL) as another:
        restored = talker(another, 100)
    assert texts(restored.messages) == [*said("hello"), *notes]


@both_durabilities
def test_what_is_live_and_archived_goes_on_in_process_after_process(app: Application, durability: Any) -> None:
    keeping = KEEPING["all"]
    for number in range(1, 13):
        with app.manager(durability=durability, **SMALL) as manager:
            agent = talker(manager, **keeping())
            assert texts(agent.messages) == said(*prompts(2 * number - 2))
            for prompt in prompts(2 * number)[-2:]:
                agent(prompt)
        found = gapless(stored(app.database))
        assert texts(found.messages) == texts(agent.messages) == said(*prompts(2 * number))
        assert len(found.embedded) < MOST
    assert_restored_is_live(app, agent, **keeping())


def test_archiving_changes_no_byte_of_a_message_that_is_live(app: Application) -> None:
    """What is live is read from where it was put: the segments have what the document had."""
    keeping = KEEPING["all"]
    with app.manager(**NEVER) as manager:
        agent = talker(manager, **keeping())
        for prompt in prompts(10):
            agent(prompt)
    before = app.session()["agents"]["assistant"]["messages"]
    assert app.database[HISTORY].count_documents({}) == 0

    assert_restored_is_live(app, agent, **keeping())  # Archives as it is closed.

    found = gapless(stored(app.database))
    assert len(found.archived) == 16
    assert_same(found.messages, before)
    assert_restored_is_live(app, agent, **keeping())
