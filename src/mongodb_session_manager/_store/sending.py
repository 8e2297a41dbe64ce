"""How often, and how soon, a command is sent again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from pymongo.errors import AutoReconnect, DuplicateKeyError, ServerSelectionTimeoutError

from ..errors import SessionConflictError

T = TypeVar("T")

# A command whose connection broke is sent again this often, beyond PyMongo's own retry on replica sets.
_RECONNECTS = 2
_MAX_BACK_OFF_SECONDS = 0.05

# A writer that loses every race this often is not racing: something else keeps its command from matching.
_MAX_ATTEMPTS = 500


def attempts(
    what: str, *, session_id: str | None = None, agent_id: str | None = None, message_id: int | None = None
) -> Iterator[int]:
    """Yield how often something was tried before, with a pause in between.

    Every loop that reads how something stands and then sends what is right for that runs over this.

    Args:
        what: For the error: what could not be done, and of which session.
        session_id: For the error: the session.
        agent_id: The agent.
        message_id: The message.

    Raises:
        SessionConflictError: It was tried too often.
    """
    for times in range(_MAX_ATTEMPTS):
        if times:
            back_off(times - 1)
        yield times
    raise SessionConflictError(
        f"{what}: other writers came first {_MAX_ATTEMPTS} times",
        session_id=session_id,
        agent_id=agent_id,
        message_id=message_id,
    )


def is_there(error: DuplicateKeyError) -> bool:
    """Return whether an insert failed because there is a document with its ``_id``.

    Otherwise a unique index of the application's own has refused it, and trying again is of no use.
    """
    pattern = (error.details or {}).get("keyPattern")
    return pattern is None or dict(pattern) == {"_id": 1}


def until_known(send: Callable[[], T]) -> T:
    """Send a command until its outcome is known; it must be guarded or idempotent, for it may arrive twice."""
    reconnects = 0
    while True:
        try:
            return send()
        except ServerSelectionTimeoutError:
            raise  # Nothing was sent, and PyMongo has waited long enough.
        except AutoReconnect:
            # Sent or not, nobody knows.
            if reconnects == _RECONNECTS:
                raise
            back_off(reconnects)
            reconnects += 1


def back_off(times: int) -> None:
    """Wait a moment, longer and more random each time, so that writers that collided do not collide again."""
    time.sleep(random.uniform(0, min(_MAX_BACK_OFF_SECONDS, 0.001 * 2 ** min(times, 10))))
