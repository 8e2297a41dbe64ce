"""The two commands of every turn, without what PyMongo's collection methods do besides: a cursor, a result, a retry.

That is a quarter of what a turn would cost besides its commands. Nothing is lost by leaving it out: whatever does not
go smoothly is told by None, and the caller uses the collection's own method. That sends the command again, retries it
as the driver does, and raises the driver's errors. So only what may be sent twice goes this way: reads, and updates
whose filter no longer matches once they are applied. An update that is merely idempotent does not: the first one may
arrive late, behind a newer one, and only the driver's transaction numbers keep it from being applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pymongo.collection import Collection
from pymongo.errors import (
    AutoReconnect,
    DocumentTooLarge,
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    ServerSelectionTimeoutError,
    WriteConcernError,
    WTimeoutError,
)

from .._statements.sessions import Update

_RETRYABLE = "RetryableWriteError"
# After these a driver sends a write again. A server only labels them where a command has a transaction number.
_RETRYABLE_CODES = frozenset((6, 7, 89, 91, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436))
_WRITE_CONCERN_FAILED = 64


class DirectCommands:
    """Sends the two commands to one collection.

    Args:
        reads: The collection; its options decide how it is read, and how the answer is decoded.
        writes: The same collection; its options decide when something counts as written.
    """

    def __init__(self, reads: Collection[Any], writes: Collection[Any]) -> None:
        self._database = reads.database
        self._name = reads.name
        self._read_concern = reads.read_concern
        options = self._database.client.options
        # Then PyMongo does not read again, either, when its time is over.
        self._reads_once = options.timeout is not None or not options.retry_reads
        self._how_to_read: dict[str, Any] = {
            "codec_options": reads.codec_options,
            "read_preference": reads.read_preference,
        }
        self._write_concern = writes.write_concern
        self._how_to_write: dict[str, Any] = {"codec_options": writes.codec_options}

    def find_one(self, query: Mapping[str, Any], projection: Mapping[str, Any]) -> Any:
        """Return the server's whole answer to a ``find`` of one document, or None if something went wrong.

        Args:
            query: Which document.
            projection: What of it.
        """
        command: dict[str, Any] = {
            "find": self._name,
            "filter": query,
            "projection": projection,
            "limit": 1,
            "singleBatch": True,
        }
        if self._read_concern.level is not None:
            command["readConcern"] = self._read_concern.document
        try:
            return self._database.command(command, **self._how_to_read)
        except (ServerSelectionTimeoutError, ExecutionTimeout):
            raise  # PyMongo or the server has waited long enough.
        except (AutoReconnect, OperationFailure) as error:
            if self._reads_once and isinstance(error, NetworkTimeout):
                raise
            return None

    def update_one(self, update: Update) -> int | None:
        """Update one document; return how many matched, or None if something went wrong: perhaps it is updated.

        Raises:
            OperationFailure: The server says why it does not do that, and that nobody need try again.
            WriteConcernError: It is done, and not known to as many servers as were asked for.
        """
        command: dict[str, Any] = {"update": self._name, "updates": [{"q": update.filter, "u": update.update}]}
        if not self._write_concern.is_server_default:
            command["writeConcern"] = self._write_concern.document
        try:
            answer = self._database.command(command, **self._how_to_write)
        except ServerSelectionTimeoutError:
            raise
        except (AutoReconnect, DocumentTooLarge):
            return None
        except OperationFailure as error:
            if not error.has_error_label(_RETRYABLE) and error.code not in _RETRYABLE_CODES:
                raise
            return None
        if "writeErrors" in answer or _RETRYABLE in answer.get("errorLabels", ()):
            return None
        if (concern := answer.get("writeConcernError")) is not None:
            if concern.get("code") in _RETRYABLE_CODES:
                return None
            error_type = WTimeoutError if concern.get("code") == _WRITE_CONCERN_FAILED else WriteConcernError
            raise error_type(concern.get("errmsg"), concern.get("code"), concern)
        matched: int = answer["n"]
        return matched
