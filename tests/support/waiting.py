"""Waiting for something that another thread, process or server brings about."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], deadline_seconds: float = 60.0, message: str = "") -> T:
    """Return the first true result of `condition`.

    Args:
        condition: asked again and again, every 10 ms; its exceptions are not caught.
        deadline_seconds: how long to go on. Long, because it costs nothing where the condition comes true.
        message: what was waited for; the condition's name if it is empty.

    Raises:
        AssertionError: the deadline passed; the message holds the last result.
    """
    deadline = time.monotonic() + deadline_seconds
    pause = threading.Event()
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            wanted = message or getattr(condition, "__name__", repr(condition))
            raise AssertionError(f"not within {deadline_seconds:g} s: {wanted} (last result: {result!r})")
        pause.wait(0.01)
