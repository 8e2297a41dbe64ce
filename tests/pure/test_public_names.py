"""What users import stays as it is, unless that is meant; and it is what the documentation names."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from support.public_names import CHECKED_IN, MODULES, described, public_names

import mongodb_session_manager

ROOT = Path(__file__).parents[2]
PACKAGE = Path(mongodb_session_manager.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LISTING = [module for module in MODULES if hasattr(importlib.import_module(module), "__all__")]


def defined_names() -> set[str]:
    """Every class, and every name of a type, that a module of the package defines without an underscore."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
            found |= {node.name} if isinstance(node, ast.ClassDef) else set(names)
    return {name for name in found if re.match("[A-Z][A-Za-z]*[a-z]", name)}


def test_public_names_and_signatures_change_only_on_purpose() -> None:
    """If this is on purpose: `PYTHONPATH=tests python -m support.public_names`, and a line in the changelog."""
    assert described().splitlines() == CHECKED_IN.read_text("utf-8").splitlines()


@pytest.mark.parametrize("module", LISTING)
def test_all_public_names_of_a_module_are_listed_in_order_and_exist(module: str) -> None:
    found = importlib.import_module(module)
    assert found.__all__ == sorted(set(found.__all__))
    assert all(hasattr(found, name) for name in found.__all__)


@pytest.mark.parametrize("module", LISTING)
def test_the_documentation_names_every_public_name(module: str) -> None:
    documentation = "\n".join(page.read_text("utf-8") for page in PAGES)
    assert [name for name in public_names(module) if not re.search(rf"\b{name}\b", documentation)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_imports_is_public(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mongodb_session_manager"):
                assert {alias.name for alias in node.names} <= set(public_names(node.module or "")), node.module


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_type_that_a_page_names_can_be_imported(page: Path) -> None:
    """No page tells of a class of the package that only a private module has."""
    public = {name for module in MODULES for name in public_names(module)}
    named = set(re.findall(r"`([A-Z]\w+)", page.read_text("utf-8")))
    assert named & defined_names() - public == set()
