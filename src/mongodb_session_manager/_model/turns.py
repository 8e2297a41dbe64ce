"""Which messages are one turn, where several processes have taken turns on one agent at the same time. Pure."""

from __future__ import annotations

import operator
from typing import Any

from .documents import Document

# A window is looked at with these: no line of Python runs per message.
_TURN_ID = operator.methodcaller("get", "turn_id")
_BINARY = operator.attrgetter("binary")


def turns_interleave(window: list[Document]) -> bool:
    """Return whether a turn of a window may be in several pieces, so that ``turns_together`` is to look at it."""
    # By their bytes: an ObjectId is hashed and compared by Python code.
    turns: list[Any] = list(map(_TURN_ID, window))
    try:
        turns = list(map(_BINARY, turns))
    except AttributeError:  # Not every message has one.
        turns = [getattr(turn, "binary", turn) for turn in turns]
    pieces: int = 1 + sum(map(operator.ne, turns, turns[1:]))
    return pieces > max(1, len(set(turns)))


def turns_together(window: list[Document], interrupted: str | None = None) -> list[int]:
    """Return the order in which the messages of a window make each turn one piece: indexes into it.

    Two processes may have taken turns on one agent at the same time; then their messages interleave in the store.
    A model needs a tool's result right behind its use, so a message joins the others of its turn, which stands
    where it began. Without interleaving this is the order that is stored.

    Args:
        window: Stored messages, oldest first.
        interrupted: ``tracking_id`` of a message whose turn is still to go on, and so comes last.
    """
    turns: dict[Any, list[int]] = {}
    for index, message in enumerate(window):
        turn = message.get("turn_id")
        # By its bytes: an ObjectId is hashed and compared by Python code.
        turns.setdefault(index if turn is None else getattr(turn, "binary", turn), []).append(index)
    if interrupted is not None:
        waiting = [
            turn for turn, indexes in turns.items() if any(window[i].get("tracking_id") == interrupted for i in indexes)
        ]
        for turn in waiting:
            turns[turn] = turns.pop(turn)
    return [index for indexes in turns.values() for index in indexes]
