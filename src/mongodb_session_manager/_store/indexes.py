"""Indexes are made once per process and collection; a failure is logged, not raised: everything works without, slower.

Nothing expires without the index for it, though; what has expired is not shown all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pymongo import ASCENDING, IndexModel
from pymongo.collection import Collection
from pymongo.errors import OperationFailure, PyMongoError

from ..errors import described
from .sending import INDEX_REFUSED, UNAUTHORIZED

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
    """Make the indexes of a collection; return whether that is done: they are there, or refused for good.

    One command, and none if this process has done it before. Where the server refuses them, each is tried by itself:
    one that conflicts with an index of the application's own must not prevent the others.
    """
    mine = known_as(collection, indexes)
    # Without a lock: two threads that come here at once send the command twice, which changes nothing.
    if mine in ensured:
        return True
    ensured.add(mine)
    done = True
    try:
        collection.create_indexes(list(indexes))
    except PyMongoError as error:
        code = error.code if isinstance(error, OperationFailure) else None
        if isinstance(error, OperationFailure) and code != UNAUTHORIZED and len(indexes) > 1:
            each = [ensure_indexes(collection, [index]) for index in indexes]
            done = all(each)
        else:
            done = code in INDEX_REFUSED
            logger.warning("collection=<%s>, error=<%s> | indexes not created", collection.full_name, described(error))
    if done:
        # Under the name as well that it has now: the connection has told which servers there are.
        ensured.add(known_as(collection, indexes))
    else:
        ensured.discard(mine)
    return done


def known_as(collection: Collection[Any], indexes: Sequence[IndexModel]) -> KnownAs:
    """Return what tells this collection and these indexes from others of the process."""
    servers = frozenset(collection.database.client.topology_description.server_descriptions())
    return servers, collection.full_name, tuple(str(index.document["name"]) for index in indexes)


KnownAs = tuple[frozenset[Any], str, tuple[str, ...]]

ensured: set[KnownAs] = set()
"""What this process need not make again."""
