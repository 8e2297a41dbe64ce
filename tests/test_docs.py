"""Every Python block in the documentation runs, and every link to a file leads to one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.testclient import TestClient

import mongodb_session_manager

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mongodb_session_manager.local import LocalMongoDB

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])

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
    code: str, standalone: LocalMongoDB, database_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = code.replace(LOCALHOST, standalone.uri).replace("my_database", database_name)
    code = re.sub(r"\bAgent\(", OFFLINE, code)
    names: dict[str, Any] = {"__name__": "documentation"}
    exec(compile(code, "documentation", "exec"), names)
    if "app" in names:
        with TestClient(names["app"]) as browser:
            turn = {"session_id": "s1", "prompt": "I am Alice."}
            answer = browser.post("/chat", params=turn, headers={"X-Session-ID": "s1"})
            assert (answer.status_code, answer.text) == (200, "Hello, Alice.")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_to_a_file_leads_to_one(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_the_public_names_are_sorted_complete_and_documented() -> None:
    names = mongodb_session_manager.__all__
    assert names == sorted(names)
    for name in names:
        assert getattr(mongodb_session_manager, name).__doc__, name


def test_the_readme_names_the_two_commands_on_its_first_screen() -> None:
    first_screen = (ROOT / "README.md").read_text("utf-8").splitlines()[:24]
    for command in ("make demo", "make test"):
        assert any(line.startswith(command) for line in first_screen), command
