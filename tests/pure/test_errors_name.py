"""An error that names a session, agent or message in its text has it as an attribute as well, for callers."""

import ast
import inspect
import re
from pathlib import Path

import mongodb_session_manager
from mongodb_session_manager import errors

PACKAGE = Path(mongodb_session_manager.__file__).parent

TAKEN: dict[str, set[str]] = {
    name: {"session_id", "agent_id", "message_id"} & set(inspect.signature(kind).parameters)
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.MongoDBSessionError)
}
"""Which of the attributes each error can be given."""


def text_of(call: ast.Call) -> str:
    """What is known of the message: its literal parts."""
    parts = (node.value for argument in call.args[:1] for node in ast.walk(argument) if isinstance(node, ast.Constant))
    return "".join(part if isinstance(part, str) else "" for part in parts)


def unnamed(tree: ast.AST) -> list[str]:
    """The attributes that errors in a module name in their text and are not given, each with its line."""
    missing = []
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in TAKEN:
            named = set(re.findall(r"\b(session_id|agent_id|message_id)=", text_of(call)))
            given = {keyword.arg for keyword in call.keywords}
            lacking = sorted(named & TAKEN[call.func.id] - given)
            missing += [f"{call.lineno}: {call.func.id} without {name}" for name in lacking]
    return missing


def test_what_an_error_names_can_be_read_from_it() -> None:
    missing = [
        f"{path.relative_to(PACKAGE)}:{one}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "errors.py"
        for one in unnamed(ast.parse(path.read_text("utf-8")))
    ]
    assert missing == []


def test_a_missing_attribute_is_found() -> None:
    raised = 'raise AgentNotFoundError(f"session_id={s!r} has no agent_id={a!r}", session_id=s)'
    assert unnamed(ast.parse(raised)) == ["1: AgentNotFoundError without agent_id"]
