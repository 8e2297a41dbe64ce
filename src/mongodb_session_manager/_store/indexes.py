"""Indexes are made once per process and collection; a failure is logged, not raised: everything works without, slower.

Nothing expires without the index for it, though; what has expired is not shown all the same.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from pymongo import ASCENDING, IndexModel
from pymongo.collection import Collection
from pymongo.errors import OperationFailure, PyMongoError

from .._client.forks import in_child
from ..errors import described
from .server_codes import INDEX_REFUSED, UNAUTHORIZED

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
    """Make the indexes of a collection; return whether that is settled: they are there, or refused for good.

    One command, and none if this process has settled the same indexes before. Where the server refuses them, each is
    tried by itself: one that stands in the way of another of the application's own does not keep off the others.
    """
    mine = _names(collection, indexes)
    with _lock:
        if mine in _ensured:
            return True
        _ensured.add(mine)
    settled = True
    try:
        collection.create_indexes(list(indexes))
    except PyMongoError as error:
        code = error.code if isinstance(error, OperationFailure) else None
        if isinstance(error, OperationFailure) and code != UNAUTHORIZED and len(indexes) > 1:
            each = [ensure_indexes(collection, [index]) for index in indexes]
            settled = all(each)
        else:
            settled = code in INDEX_REFUSED
            logger.warning("collection=<%s>, error=<%s> | indexes not created", collection.full_name, described(error))
    with _lock:
        if settled:
            # Under the name as well that it has now: the connection has told which servers there are.
            _ensured.add(_names(collection, indexes))
        else:
            _ensured.discard(mine)
    return settled


def _names(collection: Collection[Any], indexes: Sequence[IndexModel]) -> _Names:
    """Return what tells this collection and these indexes from others of the process."""
    servers = frozenset(collection.database.client.topology_description.server_descriptions())
    return servers, collection.full_name, tuple(str(index.document["name"]) for index in indexes)


_Names = tuple[frozenset[Any], str, tuple[str, ...]]

_ensured: set[_Names] = set()
_lock = threading.Lock()


@in_child
def _after_fork_in_child() -> None:
    # A thread of the parent may have held the lock, and is not here to let it go.
    global _lock
    _lock = threading.Lock()
