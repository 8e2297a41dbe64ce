"""What was stored at one moment, put back again and again: cheaper than to live through it anew for each fault.

The collections and their indexes stay, since making them costs more than most tests.
"""

from typing import Any

from pymongo.database import Database

KEPT = "kept_"


def keep(database: Database[Any]) -> None:
    """Keep a copy of all documents, in the database itself, where other processes find it."""
    for name in database.list_collection_names():
        database[name].aggregate([{"$out": f"{KEPT}{name}"}])


def put_back(database: Database[Any]) -> None:
    """Let the documents be again what they were when they were kept."""
    names = database.list_collection_names()
    for name in names:
        if not name.startswith(KEPT):
            database[name].delete_many({})
    for name in names:
        if name.startswith(KEPT):
            database[name].aggregate([{"$merge": name.removeprefix(KEPT)}])
