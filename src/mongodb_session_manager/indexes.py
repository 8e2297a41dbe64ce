"""Indexes are made once per process and collection; a failure is logged, not raised: everything works without, slower.

Nothing expires without the index for it, though; what has expired is not shown all the same.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from typing import Any

from pymongo import ASCENDING, IndexModel
from pymongo.collection import Collection
from pymongo.errors import PyMongoError

logger = logging.getLogger(__name__)

EXPIRY_INDEX = IndexModel(
    [("expires_at", ASCENDING)],
    name="expires_at_ttl",
    expireAfterSeconds=0,
    # Documents that never expire cost nothing.
    partialFilterExpression={"expires_at": {"$exists": True}},
)
"""Lets MongoDB remove documents at their ``expires_at``."""


def ensure_indexes(collection: Collection[Any], indexes: Sequence[IndexModel]) -> bool:
    """Make the indexes of a collection; return whether they are there.

    One command, and none if this process has made the same indexes before.
    """
    mine = _names(collection, indexes)
    with _lock:
        if mine in _ensured:
            return True
        _ensured.add(mine)
    try:
        collection.create_indexes(list(indexes))
    except PyMongoError as error:
        with _lock:
            _ensured.discard(mine)
        logger.warning("collection=<%s>, error=<%s> | indexes not created", collection.full_name, error)
        return False
    # Under the name as well that it has now: the connection has told which servers there are.
    with _lock:
        _ensured.add(_names(collection, indexes))
    return True


def _names(collection: Collection[Any], indexes: Sequence[IndexModel]) -> _Names:
    """Return what tells this collection and these indexes from others of the process."""
    servers = frozenset(collection.database.client.topology_description.server_descriptions())
    return servers, collection.full_name, tuple(str(index.document["name"]) for index in indexes)


_Names = tuple[frozenset[Any], str, tuple[str, ...]]

_ensured: set[_Names] = set()
_lock = threading.Lock()


def _after_fork_in_child() -> None:
    # A thread of the parent may have held the lock, and is not here to let it go.
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # Not on Windows.
    os.register_at_fork(after_in_child=_after_fork_in_child)
