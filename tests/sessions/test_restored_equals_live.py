"""Session persistence verification: what a fresh process restores is what the live one held, types included.

`support/flows.py` has the flows. Each runs on Strands' `FileSessionManager` as well, which shows that the
expectation is one of Strands, or records that Strands' own stores do not meet it.
"""

import base64
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from support.equality import assert_same, differences
from support.flows import FLOWS, Flow, picture
from support.stores import FileStore, MongoStore, alternating_clients, run

every_flow = pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS.keys())
in_one_process_and_in_many = pytest.mark.parametrize("moves", [False, True], ids=["stays", "moves"])


@pytest.fixture(params=["message", "turn"])
def durability(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def clients(server: Any) -> Iterator[Iterator[MongoClient[Any]]]:
    with alternating_clients(server.uri) as clients:
        yield clients


@pytest.fixture
def mongo_store(clients: Iterator[MongoClient[Any]], database_name: str, durability: Any) -> Iterator[MongoStore]:
    with ExitStack() as stack:
        yield MongoStore(clients, database_name, durability, stack)


@pytest.mark.slow
@every_flow
@in_one_process_and_in_many
def test_a_fresh_process_restores_what_the_live_agent_held(flow: Flow, moves: bool, mongo_store: MongoStore) -> None:
    steps = list(run(flow, mongo_store, moves=moves))
    assert_same([restored for _, restored in steps], [live for live, _ in steps])


@pytest.mark.slow
@every_flow
def test_strands_own_store_restores_the_same_or_its_limit_is_recorded(flow: Flow, tmp_path: Path) -> None:
    if flow.strands_cannot_store:
        with pytest.raises(flow.strands_cannot_store):
            list(run(flow, FileStore(tmp_path), moves=False))
        return
    lost = []
    for moves in (False, True):
        steps = list(run(flow, FileStore(tmp_path / str(moves)), moves=moves))
        lost += differences([restored for _, restored in steps], [live for live, _ in steps])
    recorded = flow.lost_by_strands
    assert bool(lost) == bool(recorded), "\n".join(map(str, lost)) or f"no longer lost: {recorded}"


@pytest.mark.slow
@pytest.mark.topology
def test_a_process_that_was_started_anew_restores_every_flow(
    server: Any, clients: Iterator[MongoClient[Any]], database_name: str, durability: Any
) -> None:
    expected = {}
    with ExitStack() as stack:
        for name, flow in FLOWS.items():
            store = MongoStore(clients, database_name, durability, stack, session_id=name)
            live = flow.build(store.manager())
            for step in flow.steps:
                step(live)
            expected[name] = picture(live)
        # Nothing is closed before the other process reads: this one might as well have been killed.
        finished = subprocess.run(
            [sys.executable, "-m", "support.restore_in_new_process", database_name, durability, *FLOWS],
            env={**os.environ, "FLOWS_URI": server.uri, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert finished.returncode == 0, finished.stderr
    restored = pickle.loads(base64.b64decode(finished.stdout))
    assert_same(restored, expected)
