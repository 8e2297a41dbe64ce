"""What a forked child makes anew: locks that a thread of the parent may have held, clients, threads, what is unsent."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakSet

T = TypeVar("T")


def in_child(reset: Callable[[], None]) -> Callable[[], None]:
    """Have a function called in each forked child; those that were given first come first."""
    if hasattr(os, "register_at_fork"):  # Not on Windows.
        os.register_at_fork(after_in_child=reset)
    return reset


def each_in_child(reset: Callable[[T], None]) -> WeakSet[T]:
    """Return a set, to be filled, for each of whose members a function is called in each forked child."""
    members: WeakSet[T] = WeakSet()

    @in_child
    def reset_members() -> None:
        for member in list(members):
            reset(member)

    return members
