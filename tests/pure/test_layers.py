"""The layers: imports point down and in no circle, pure code stays pure, one package sends commands, a map has it all.

Read from the source by `ast`, imports for type checkers included: what only types name is known as well.
"""

import ast
import re
from pathlib import Path

import mongodb_session_manager

PACKAGE = Path(mongodb_session_manager.__file__).parent
CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"

FACES = {
    "mongodb_session_manager",
    "mongodb_session_repository",
    "mongodb_session_factory",
    "mongodb_connection_pool",
}
_BELOW = {
    "limits": set(),
    "errors": {"limits"},
    "telemetry": set(),
    "_client": {"errors"},
    "_model": {"errors"},
    "_statements": {"_model"},
    "_store": {"_statements", "_client"},
    "_agents": {"_store", "telemetry"},
    "_session": {"_agents"},
    "faces": {"_session"},
    "_local": set(),
    "local": {"_local"},
    "fastapi": {"faces"},
    "__init__": {"faces", "local", "fastapi"},
}
"""Each layer, and the layers right below it. What lies below these may be imported as well."""

PURE = {"_model", "_statements"}
NOT_PURE = re.compile(
    r"(threading|concurrent|asyncio|multiprocessing|socket|time|weakref|atexit)(\.|$)"
    r"|pymongo\.(\w*[cC]lient\w*|mongo_client|collection|database|synchronous|asynchronous)(\.|$)"
    r"|\w*\.?_client(\.|$)"
)
CLOCKS = {"now", "utcnow", "today", "monotonic", "perf_counter", "sleep"}

COMMANDS = {
    *("find", "find_one", "find_raw_batches", "aggregate", "distinct", "count_documents", "estimated_document_count"),
    *("find_one_and_update", "find_one_and_replace", "find_one_and_delete", "watch", "bulk_write"),
    *("insert_one", "insert_many", "update_one", "update_many", "replace_one", "delete_one", "delete_many"),
    *("create_index", "create_indexes", "drop_index", "drop_indexes", "index_information", "list_indexes"),
    *("command", "create_collection", "list_collections", "list_collection_names", "drop_collection", "drop_database"),
}
MAY_SEND = {
    "_local.mongod": "asks servers that it has started whether they are there",
    "fastapi.router": "a ping, to say whether the database answers",
}


def modules() -> dict[str, Path]:
    """Every module by its name below the package."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imported(name: str) -> set[str]:
    """The full names of what a module imports."""
    found = set()
    package = ["mongodb_session_manager", *name.split(".")[:-1]]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module or "").split(".") if node.module else base
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def imported_modules(name: str) -> set[str]:
    """The modules of this package that a module imports."""
    found = set()
    for full in imported(name):
        parts = full.split(".")
        if parts.pop(0) == "mongodb_session_manager":
            ways = (".".join(parts), ".".join(parts[:-1]), ".".join([*parts, "__init__"]))
            known = [way for way in (*ways, ".".join([*parts[:-1], "__init__"])) if way in MODULES]
            found.add(known[0] if known else "__init__")
    return found


IMPORTS = {name: imported_modules(name) for name in MODULES}


def layer(name: str) -> str:
    top = name.split(".")[0]
    if name == "_model.limits":
        return "limits"  # Numbers alone: errors and clients have bounds as well.
    return "faces" if top in FACES else top


def below(name: str) -> set[str]:
    """A layer and all that lies below it."""
    return {name}.union(*map(below, _BELOW[name]))


def test_no_module_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, " imports ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(IMPORTS[name]):
                visit(other, [*way, name])
            done.add(name)

    for name in MODULES:
        visit(name, [])


def test_every_import_points_down() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in sorted(others)
        if layer(other) not in below(layer(name))
    ]
    assert wrong == []


def test_pure_packages_know_no_client_no_clock_and_no_thread() -> None:
    wrong = []
    for name in (name for name in MODULES if layer(name) in PURE):
        wrong += [f"{name} imports {other}" for other in sorted(imported(name)) if NOT_PURE.match(other)]
        calls = (node.func for node in ast.walk(TREES[name]) if isinstance(node, ast.Call))
        wrong += [
            f"{name}:{call.lineno} asks a clock"
            for call in calls
            if isinstance(call, ast.Attribute) and call.attr in CLOCKS
        ]
        names = {node.id for node in ast.walk(TREES[name]) if isinstance(node, ast.Name)}
        wrong += [f"{name} names {client}" for client in ("MongoClient", "AsyncMongoClient") if client in names]
    assert wrong == []


def test_only_the_store_sends_commands() -> None:
    wrong = []
    for name in (name for name in MODULES if layer(name) != "_store" and name not in MAY_SEND):
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.Attribute) and node.attr in COMMANDS:
                receiver = node.value
                owner = receiver.attr if isinstance(receiver, ast.Attribute) else getattr(receiver, "id", "")
                # `SessionCommands` names some of its methods as PyMongo does.
                # `fastapi.metrics` has a `watch` of its own.
                if not owner.endswith("commands") and (owner, node.attr) != ("metrics", "watch"):
                    wrong.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    assert wrong == []


def test_every_exception_is_still_one() -> None:
    for name in MAY_SEND:
        assert COMMANDS & {node.attr for node in ast.walk(TREES[name]) if isinstance(node, ast.Attribute)}, name


def test_every_module_has_a_row_in_the_map_and_every_row_a_module() -> None:
    text = CONTRIBUTING.read_text(encoding="utf-8")
    table = text.partition("| file in `src/mongodb_session_manager/`")[2].partition("\n\n")[0]
    files = re.findall(r"`([\w/]+)\.py`", "\n".join(row.split("|")[1] for row in table.splitlines()[2:]))
    rows = [file.replace("/", ".") for file in files]
    assert sorted(rows) == sorted(name for name in MODULES if not name.endswith("__init__"))
