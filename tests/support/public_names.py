"""Every public name with its signature, as text: what an application may rely on.

`PYTHONPATH=tests python -m support.public_names` writes `tests/support/public_names.txt` anew. Run it when the public
face is meant to change; the difference in that file then shows reviewers what changes for users.
"""

import importlib
import inspect
import sys
from pathlib import Path
from types import FunctionType
from typing import Any, ForwardRef, is_typeddict

CHECKED_IN = Path(__file__).with_suffix(".txt")

MODULES: dict[str, set[str] | None] = {
    "mongodb_session_manager": None,
    "mongodb_session_manager.errors": None,
    "mongodb_session_manager.fastapi": None,
    "mongodb_session_manager.local": None,
    "mongodb_session_manager.mongodb_connection_pool": {"MongoDBConnectionPool"},
    "mongodb_session_manager.mongodb_session_factory": {
        *("MongoDBSessionManagerFactory", "close_global_factory", "get_global_factory", "initialize_global_factory"),
    },
    "mongodb_session_manager.mongodb_session_manager": {"MongoDBSessionManager", "create_mongodb_session_manager"},
    "mongodb_session_manager.mongodb_session_repository": {"MongoDBSessionRepository"},
    "mongodb_session_manager.telemetry": None,
}
"""The modules that users import from. Where one has no `__all__`, these of its names are public."""

_MADE_HERE = {"LocalNode", "SessionLease"}
"""Made by the library alone: their constructors are not public."""

_LEFT_OUT = {"ABC", "BaseException", "Generic", "Protocol", "StrandsRepository", "object"}
"""Bases that say nothing to users, or are private."""


def public_names(module: str) -> list[str]:
    """The public names of one of these modules, sorted."""
    found = importlib.import_module(module)
    listed = getattr(found, "__all__", None) or MODULES[module]
    return sorted(listed or {name for name, value in vars(found).items() if _is_error(value, module)})


def described() -> str:
    """All public names of all public modules, a line for each signature."""
    lines: list[str] = []
    seen: set[int] = set()
    for module in MODULES:
        lines += [f"# {module}"]
        for name in public_names(module):
            value = getattr(importlib.import_module(module), name)
            if id(value) in seen:
                lines += [name]  # Described above.
            else:
                seen.add(id(value))
                lines += [*_lines(name, value)]
        lines += [""]
    return "\n".join(lines)


def _is_error(value: Any, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, Exception) and value.__module__ == module


def _lines(name: str, value: Any) -> list[str]:
    if isinstance(value, FunctionType):
        return [f"{_kind(value)}{name}{inspect.signature(value)}"]
    if is_typeddict(value):
        return [f"{name}: TypedDict", *(f"    {key}: {_type(hint)}" for key, hint in value.__annotations__.items())]
    if not isinstance(value, type):
        return [f"{name} = {value}"]
    bases = [base.__name__ for base in value.__mro__[1:] if not base.__name__.startswith("_")]
    is_a = [f"    is a {base}" for base in bases if base not in _LEFT_OUT]
    signature = "" if name in _MADE_HERE or issubclass(value, Exception) else str(inspect.signature(value))
    return [f"class {name}{signature}", *is_a, *sorted(_members(value))]


def _type(hint: Any) -> str:
    if isinstance(hint, ForwardRef):
        return hint.__forward_arg__
    return hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))


def _members(of: type) -> list[str]:
    """A line for each public method and property that this package defines, wherever in its classes."""
    ours = [base for base in reversed(of.__mro__) if base.__module__.startswith("mongodb_session_manager")]
    found = {name: value for base in ours for name, value in vars(base).items()}
    lines = []
    for name, value in found.items():
        if name.startswith("_") and name not in ("__aenter__", "__aexit__", "__enter__", "__exit__"):
            continue
        if isinstance(value, property):
            returned = inspect.signature(value.fget).return_annotation if value.fget else ""
            lines += [f"    property {name} -> {returned}"]
        elif isinstance(value, (classmethod, staticmethod)):
            function = value.__func__
            lines += [f"    {type(value).__name__} {_kind(function)}{name}{inspect.signature(function)}"]
        elif isinstance(value, FunctionType):
            lines += [f"    {_kind(value)}{name}{inspect.signature(value)}"]
    return lines


def _kind(function: Any) -> str:
    return "async def " if inspect.iscoroutinefunction(function) else "def "


if __name__ == "__main__":
    written = described()
    if sys.argv[1:] == ["-"]:
        sys.stdout.write(written)
    else:
        CHECKED_IN.write_text(written, encoding="utf-8")
