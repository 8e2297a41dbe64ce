"""Every Python block in the documentation runs as it stands."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mongodb_session_manager.local import LocalMongoDB

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for folder in (".", "docs", "benchmarks", "examples") for page in (ROOT / folder).glob("*.md"))

# What the blocks name, and what stands in for it here. Nobody has a model provider in a test.
LOCALHOST = "mongodb://localhost:27017/"
OFFLINE = "Agent(model=__import__('offline_model').OfflineScriptedModel(['Hello, Alice.']), "


def blocks() -> Iterator[Any]:
    for page in PAGES:
        for found in re.finditer(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
            line = page.read_text("utf-8")[: found.start()].count("\n") + 2
            yield pytest.param(found[1], id=f"{page.relative_to(ROOT)}:{line}")


@pytest.mark.parametrize("code", list(blocks()))
def test_a_block_of_the_documentation_runs_as_it_stands(
    code: str, server: LocalMongoDB, database_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = code.replace(LOCALHOST, server.uri).replace("my_database", database_name)
    code = re.sub(r"\bAgent\(", OFFLINE, code)
    names: dict[str, Any] = {"__name__": "documentation"}
    exec(compile(code, "documentation", "exec"), names)
    if "app" in names:
        with TestClient(names["app"]) as browser:
            turn = {"session_id": "s1", "prompt": "I am Alice."}
            answer = browser.post("/chat", params=turn, headers={"X-Session-ID": "s1"})
            assert (answer.status_code, answer.text) == (200, "Hello, Alice.")
