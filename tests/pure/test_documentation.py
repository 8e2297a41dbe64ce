"""The documentation: every link leads to a page and a heading that are there, every public name has a place."""

import inspect
import re
from pathlib import Path

import pytest

import mongodb_session_manager

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for folder in (".", "docs", "benchmarks", "examples") for page in (ROOT / folder).glob("*.md"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    without_code = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text("utf-8")):
        found = page.parent / target if target else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), f"{target}#{anchor}"


def test_the_index_of_the_documentation_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


CLASSES = {
    "manager.md": mongodb_session_manager.MongoDBSessionManager,
    "repository.md": mongodb_session_manager.MongoDBSessionRepository,
    "factory.md": mongodb_session_manager.MongoDBSessionManagerFactory,
    "pool.md": mongodb_session_manager.MongoDBConnectionPool,
}


@pytest.mark.parametrize("page", CLASSES)
def test_the_page_of_a_class_names_its_parameters_with_their_defaults_and_all_methods(page: str) -> None:
    text, documented = (ROOT / "docs" / page).read_text("utf-8"), CLASSES[page]
    constructor = documented.initialize if page == "pool.md" else documented
    table = text.partition("| parameter | type | default | meaning |")[2].partition("\n\n")[0]
    stated = dict(re.findall(r"^\| `(\w+)` \| .*? \| (?:`(.*?)`)? ?\|", table, re.MULTILINE))
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    for name, parameter in parameters.items():
        assert f"`{name}`" in text, name
        if name in stated:
            default = "" if parameter.default is parameter.empty else repr(parameter.default).replace("'", '"')
            assert stated[name] == default, name
    assert stated
    assert stated.keys() <= parameters.keys()
    for name in dir(documented):
        if not name.startswith("_") and name != "register_hooks":
            assert re.search(rf"`(await )?{name}\b", text), name


def test_the_public_names_are_documented() -> None:
    for name in mongodb_session_manager.__all__:
        value = getattr(mongodb_session_manager, name)
        # The others are types for annotations: their documentation stands below them in the source.
        assert value.__doc__ or not (inspect.isclass(value) or inspect.isroutine(value)), name


def test_the_readme_names_the_first_commands_on_its_first_screen() -> None:
    first_screen = (ROOT / "README.md").read_text("utf-8").splitlines()[:24]
    for command in ("make demo", "make quick", "make test"):
        assert any(line.startswith(command) for line in first_screen), command
