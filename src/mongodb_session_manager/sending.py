"""How often, and how soon, a command is sent again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError

T = TypeVar("T")

# A command whose connection broke is sent again this often, beyond PyMongo's own retry on replica sets.
_RECONNECTS = 2
_MAX_BACK_OFF_SECONDS = 0.05


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
