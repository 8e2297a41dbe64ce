"""Which status an error is. Bodies are FastAPI's own: ``{"detail": …}``, without hosts and credentials."""

from __future__ import annotations

import math
from itertools import chain

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pymongo.errors import ConnectionFailure, PyMongoError
from starlette.websockets import WebSocket
from strands.types.exceptions import EventLoopException

from .. import errors
from .._model.limits import RETRY_AFTER_SECONDS

_STATUS: dict[int, tuple[type[Exception], ...]] = {
    404: (errors.SessionNotFoundError, errors.AgentNotFoundError, errors.MessageNotFoundError),
    409: (errors.SessionBusyError, errors.SessionConflictError, errors.SessionExistsError),
    422: (errors.InvalidIdentifierError, errors.UnstorableValueError),
}


def add_exception_handlers(app: FastAPI) -> None:
    """Answer the errors of this library and of a database that is away with statuses.

    - 404: the session, agent or message is not there.
    - 409: the session is leased by another request, with ``Retry-After``; it was written by somebody else first; or it
      exists already.
    - 422: an id cannot be used, a value cannot be stored.
    - 503 with ``Retry-After``: the database does not answer.

    Whatever else PyMongo raises stays an error of the server, 500. An error inside a stream that has begun ends the
    stream: its status is sent already. ``status_of`` tells which it would have been.
    """
    for expected in (*chain.from_iterable(_STATUS.values()), PyMongoError, EventLoopException):
        app.add_exception_handler(expected, _answer)


def status_of(error: Exception) -> tuple[int, str] | None:
    """Return the status and the detail that an error is answered with; None for one that stays an error of the server.

    For a stream that has begun, whose own status is sent already: tell the client in an event.
    """
    found = _cause(error)
    for status, kinds in _STATUS.items():
        if isinstance(found, kinds):
            return status, str(found.args[0]) if found.args else type(found).__name__
    if isinstance(found, ConnectionFailure) or (isinstance(found, PyMongoError) and found.timeout):
        # PyMongo's own words name the hosts.
        return 503, "The database does not answer at the moment."
    return None


async def _answer(request: Request, error: Exception) -> JSONResponse:
    answer = status_of(error)
    if answer is None or isinstance(request, WebSocket):  # The latter has no statuses.
        raise error
    status, detail = answer
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else None
    found = _cause(error)
    if isinstance(found, errors.SessionBusyError):
        headers = {"Retry-After": str(max(1, math.ceil(found.retry_after or 0)))}
    return JSONResponse({"detail": detail}, status, headers)


def _cause(error: Exception) -> Exception:
    return error.original_exception if isinstance(error, EventLoopException) else error
