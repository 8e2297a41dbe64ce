"""A process that is killed, at whichever command, loses and doubles nothing that it was told is stored.

`support/crash_script.py` has the conversation and kills it before and after each of its commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.crash_script import PROMPTS, SAID, TURN_ENDS, Crash, crashes, talker

from mongodb_session_manager import MongoDBSessionManager

if TYPE_CHECKING:
    from pymongo import MongoClient
    from pymongo.database import Database

pytestmark = pytest.mark.topology


def texts(messages: Any) -> list[str]:
    """What each message says; a tool's use and result as such."""
    return [block.get("text") or next(iter(block)) for message in messages for block in message["content"]]


def stored_messages(database: Database[Any], session_id: str) -> list[dict[str, Any]]:
    """The stored conversation, after a look at what must be true of it whenever a process was killed."""
    document = database.sessions.find_one({"_id": session_id})
    if document is None:
        return []
    assert document["agent_ids"] == ["assistant"], session_id
    agent = document["agents"]["assistant"]
    messages = agent["messages"]
    assert [message["message_id"] for message in messages] == list(range(len(messages))), session_id
    assert agent["message_count"] == len(messages), session_id
    assert agent["usage"].get("messages", 0) == len(messages), session_id
    return messages


def assert_nothing_is_lost_or_doubled(database: Database[Any], crash: Crash, durability: str) -> None:
    said = texts(stored_messages(database, crash.session_id))
    at_rest = str(database.sessions.find_one({"_id": crash.session_id}))
    may_hold_the_secret = durability == "message" and crash.acknowledged < len(SAID)
    expected = list(SAID[: len(said)])
    if may_hold_the_secret:
        said = ["[redacted]" if text == PROMPTS[-1] else text for text in said]
    else:
        assert "secret" not in at_rest, crash
    assert said == expected, crash
    assert len(said) >= crash.acknowledged, crash
    # At most the one message, or turn, whose answer the process did not live to see.
    if durability == "message":
        assert len(said) <= crash.acknowledged + 1, crash
    else:
        assert len(said) in TURN_ENDS, crash
        assert len(said) <= next((end for end in TURN_ENDS if end > crash.acknowledged), len(SAID)), crash


def assert_the_next_process_goes_on(client: MongoClient[Any], database: Database[Any], crash: Crash) -> None:
    before = texts(stored_messages(database, crash.session_id))
    manager = MongoDBSessionManager(
        crash.session_id, client=client, database_name=database.name, collection_name="sessions"
    )
    agent = talker(manager)
    assert texts(agent.messages) == before, crash

    result = agent("go on")
    manager.close()

    assert str(result) == "Re: go on\n", crash
    after = texts(stored_messages(database, crash.session_id))
    # A tool call that was cut off is answered first; Strands adds that result by itself.
    repaired = ["toolResult"] if before[-1:] == ["toolUse"] else []
    assert after == [*before, *repaired, "go on", "Re: go on"], crash
    assert texts(agent.messages) == after, crash


@pytest.mark.new_database
@pytest.mark.parametrize("durability", ["message", "turn"])
def test_a_process_killed_before_or_after_any_of_its_commands_loses_and_doubles_nothing_and_the_next_goes_on(
    server: Any, client: MongoClient[Any], database: Database[Any], durability: str
) -> None:
    seen = []
    for crash in crashes("crash_script", server.uri, database.name, durability):
        seen.append(crash)
        assert_nothing_is_lost_or_doubled(database, crash, durability)
        assert_the_next_process_goes_on(client, database, crash)

    # The last two were not killed; all commands before were hit: those that open, and 2 + 4 + 3 messages and
    # redactions of three turns, or one update for each turn.
    *killed, one_to_the_end, another_to_the_end = seen
    assert all(crash.killed for crash in killed)
    assert (one_to_the_end.killed, one_to_the_end.acknowledged) == (False, len(SAID))
    assert (another_to_the_end.killed, another_to_the_end.acknowledged) == (False, len(SAID))
    hit = [crash.command for crash in killed]
    assert hit[0::2] == hit[1::2]
    assert hit[0::2].count("update") == 1 + (9 if durability == "message" else 3)
    assert {"createIndexes", "find", "endSessions"} <= set(hit), "opening or closing was not hit"
