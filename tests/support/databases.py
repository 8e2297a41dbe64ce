"""Databases that are used again: to make the collections of a session and their indexes costs more than most tests."""

import contextlib
import uuid
from collections import deque
from collections.abc import Iterator
from typing import Any

from pymongo import MongoClient
from pymongo.database import Database
from strands.agent.conversation_manager import SlidingWindowConversationManager

from mongodb_session_manager import MongoDBSessionManager
from support.blobs import THRESHOLD, shown, talker
from support.histories import SESSIONS, SMALL

_AT_REST = 4


class FurnishedDatabases:
    """Databases with every collection that this library makes, each with its indexes and without documents.

    Args:
        client: of the server.
    """

    def __init__(self, client: MongoClient[dict[str, Any]]) -> None:
        self._client = client
        self._free: deque[tuple[str, Any]] = deque()

    @contextlib.contextmanager
    def lend(self) -> Iterator[str]:
        """Lend a database to one test; it is used again if that has left nothing but documents.

        It is emptied when it is lent again, some tests later: a thread that the test has left behind may still write.
        """
        name, furniture = self._free.popleft() if len(self._free) >= _AT_REST else self._furnish()
        database = self._client[name]
        _empty(database, furniture)
        yield name
        if _furniture(database) == furniture:
            self._free.append((name, furniture))
        else:
            self._client.drop_database(name)

    def _furnish(self) -> tuple[str, Any]:
        name = f"test_{uuid.uuid4().hex}"
        for ttl_hours in (None, 1):
            with MongoDBSessionManager(
                f"{ttl_hours}",
                client=self._client,
                database_name=name,
                collection_name=SESSIONS,
                blob_threshold_bytes=THRESHOLD,
                index_messages=True,
                ttl_hours=ttl_hours,
                **SMALL,
            ) as manager:
                agent = talker(manager, conversation_manager=SlidingWindowConversationManager(window_size=2))
                for n in range(5):
                    agent(shown(f"{n}", n))
        return name, _furniture(self._client[name])


def _furniture(database: Database[Any]) -> dict[str, Any]:
    """The collections and views, their options and indexes; all by one command."""
    catalog = database.client.admin.aggregate([{"$listCatalog": {}}, {"$match": {"db": database.name}}])
    return {made["name"]: (made["type"], _made_of(made)) for made in catalog}


def _made_of(made: dict[str, Any]) -> Any:
    if made["type"] == "view":
        return made["viewOn"], made["pipeline"]
    # Of an index only what was asked for; whether it has met a list is up to the documents.
    return made["md"]["options"], [index["spec"] for index in made["md"]["indexes"]]


def _empty(database: Database[Any], furniture: dict[str, Any]) -> None:
    for name, (kind, _) in furniture.items():
        if kind == "collection" and not name.startswith("system."):
            database[name].delete_many({})
