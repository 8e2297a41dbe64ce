"""The two commands of every turn, without what PyMongo's collection methods do besides: a cursor, a result, a retry.

In a turn that costs half as much as all that this library itself does in Python. Nothing is lost by leaving it out:
whatever does not go smoothly is told by None, and the caller uses the collection's own method. That sends the command
again, retries it as the driver does, and raises the driver's errors. So only what may be sent twice goes this way:
reads, and updates that are idempotent or whose filter no longer matches once they are applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pymongo.collection import Collection
from pymongo.errors import (
    AutoReconnect,
    DocumentTooLarge,
    OperationFailure,
    ServerSelectionTimeoutError,
    WriteConcernError,
    WTimeoutError,
)

from .statements import Update

_RETRYABLE = "RetryableWriteError"
_WRITE_CONCERN_FAILED = 64


def find_one(collection: Collection[Any], query: Mapping[str, Any], projection: Mapping[str, Any]) -> Any:
    """Return the server's whole answer to a ``find`` of one document, or None if something went wrong.

    Args:
        collection: Where; its options decide how it is read, and how the answer is decoded.
        query: Which document.
        projection: What of it.
    """
    command: dict[str, Any] = {
        "find": collection.name,
        "filter": query,
        "projection": projection,
        "limit": 1,
        "singleBatch": True,
    }
    if collection.read_concern.level is not None:
        command["readConcern"] = collection.read_concern.document
    try:
        return collection.database.command(
            command, codec_options=collection.codec_options, read_preference=collection.read_preference
        )
    except ServerSelectionTimeoutError:
        raise  # Nothing was sent, and PyMongo has waited long enough.
    except (AutoReconnect, OperationFailure):
        return None


def update_one(collection: Collection[Any], update: Update) -> int | None:
    """Update one document; return how many matched, or None if something went wrong: perhaps it is updated.

    Args:
        collection: Where; its options decide when it counts as written.
        update: The update.

    Raises:
        OperationFailure: The server says why it does not do that, and that nobody need try again.
        WriteConcernError: It is done, and not known to as many servers as were asked for.
    """
    command: dict[str, Any] = {"update": collection.name, "updates": [{"q": update.filter, "u": update.update}]}
    if not collection.write_concern.is_server_default:
        command["writeConcern"] = collection.write_concern.document
    try:
        answer = collection.database.command(command, codec_options=collection.codec_options)
    except ServerSelectionTimeoutError:
        raise
    except (AutoReconnect, DocumentTooLarge):
        return None
    except OperationFailure as error:
        if not error.has_error_label(_RETRYABLE):
            raise
        return None
    if "writeErrors" in answer or _RETRYABLE in answer.get("errorLabels", ()):
        return None
    if (concern := answer.get("writeConcernError")) is not None:
        error_type = WTimeoutError if concern.get("code") == _WRITE_CONCERN_FAILED else WriteConcernError
        raise error_type(concern.get("errmsg"), concern.get("code"), concern)
    matched: int = answer["n"]
    return matched
