"""Random conversations: after every step a fresh process restores exactly what is live."""

from typing import Any

import pytest
from pymongo import MongoClient
from support.random_conversations import RandomConversation, TwoWriters, failure

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("first", range(0, 100, 10))
def test_whatever_happens_to_a_live_agent_a_fresh_process_restores_exactly_that(
    first: int, server: Any, database_name: str
) -> None:
    with MongoClient(server.uri) as client:
        found = [failure(RandomConversation, seed, client, database_name) for seed in range(first, first + 10)]
    assert not any(found), "\n".join(found)


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_of_two_processes_whose_turns_interleave_nothing_is_lost_doubled_or_torn(
    first: int, server: Any, database_name: str
) -> None:
    with MongoClient(server.uri) as client:
        found = [failure(TwoWriters, seed, client, database_name) for seed in range(first, first + 10)]
    assert not any(found), "\n".join(found)
