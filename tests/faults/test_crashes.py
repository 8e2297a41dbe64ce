"""A process that is killed, at whichever command, loses and doubles nothing that it was told is stored.

`support/killed.py` kills it before and after each of its commands.
"""

from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from support.deeds import PROMPTS_OF_ALL_KINDS, TURN_ENDS
from support.deeds import SAID_OF_ALL_KINDS as SAID
from support.histories import SESSIONS, gapless, manager_of, stored, texts, tool_talker
from support.killed import Crash, crashes

pytestmark = pytest.mark.topology


def said_in(database: Database[Any], crash: Crash) -> list[str]:
    """What the stored messages say, after a look at what must be true of them whenever a process was killed."""
    document = database[SESSIONS].find_one({"_id": crash.session_id})
    if document is None:
        return []
    assert document["agent_ids"] == ["assistant"], crash
    return texts(gapless(stored(database, crash.session_id)).messages)


def assert_nothing_is_lost_or_doubled(database: Database[Any], crash: Crash, durability: str) -> None:
    said = said_in(database, crash)
    at_rest = str(database.sessions.find_one({"_id": crash.session_id}))
    may_hold_the_secret = durability == "message" and crash.acknowledged < len(SAID)
    expected = list(SAID[: len(said)])
    if may_hold_the_secret:
        said = ["[redacted]" if text == PROMPTS_OF_ALL_KINDS[-1] else text for text in said]
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
    before = said_in(database, crash)
    with manager_of(client, database.name, crash.session_id) as manager:
        agent = tool_talker(manager)
        assert texts(agent.messages) == before, crash
        assert str(agent("go on")) == "Re: go on\n", crash

    after = said_in(database, crash)
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
    for crash in crashes(server.uri, database.name, f"converse with {durability}"):
        seen.append(crash)
        assert_nothing_is_lost_or_doubled(database, crash, durability)
        assert_the_next_process_goes_on(client, database, crash)

    # The last two were not killed; all commands before were hit: those that open, and 2 + 4 + 3 messages and
    # redactions of three turns, or one update for each turn.
    *killed, one_to_the_end, another_to_the_end = seen
    assert one_to_the_end.acknowledged == another_to_the_end.acknowledged == len(SAID)
    hit = [crash.command for crash in killed]
    assert hit[0::2].count("update") == 1 + (9 if durability == "message" else 3)
    assert {"createIndexes", "find", "endSessions"} <= set(hit), "opening or closing was not hit"
