"""What failed besides an error that is on its way."""

from __future__ import annotations

import logging

from pymongo.errors import PyMongoError

from ..errors import MongoDBSessionError, described

logger = logging.getLogger(__name__)


def add_note(error: BaseException, failure: Exception, what: str = "the session could not be stored") -> None:
    """Let an error that is on its way say what failed besides, unless it says so itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (PyMongoError, MongoDBSessionError)):
            return
        cause = cause.__cause__
    note = f"Besides, {what}: {described(failure)}"
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:  # Python 3.10
        logger.error("error=<%s> | %s", described(error), note)
