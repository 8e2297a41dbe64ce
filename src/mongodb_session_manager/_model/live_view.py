"""The live view: which messages of an agent's log are live now, in order, and in which form. Pure.

Stored messages are a log that only grows. What a conversation manager, an undo or an edit did to the live conversation
is stored beside it: places, oldest first. A place is the ``message_id`` of a logged message, the name of a message in
``held`` that is in no log, or the field of the conversation manager's state that has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .documents import Document
from .shapes import LiveViewDocument, StateField

Place = int | str | StateField
"""Where a live message is found: a ``message_id``, a name in ``held``, or a field of the manager's state."""


def compact(places: Sequence[Place], next_message_id: int) -> tuple[list[Any], int]:
    """Return ``before`` and ``tail`` of the view with these places, as the log ends before ``next_message_id``.

    The tail is the longest run of places that ends with the newest message of the log.
    """
    tail, rest = next_message_id, len(places)
    while rest and places[rest - 1] == tail - 1:
        tail, rest = tail - 1, rest - 1
    before: list[Any] = []
    for place in places[:rest]:
        if not isinstance(place, int):
            before.append(place)
        elif before and isinstance(before[-1], list) and before[-1][1] == place - 1:
            before[-1][1] = place
        else:
            before.append([place, place])
    return before, tail


def ranges(view: LiveViewDocument, next_message_id: int) -> list[tuple[int, int]]:
    """Return the first and last ids of the stretches of the log that are live, in the order of the view."""
    found = [(int(place[0]), int(place[1])) for place in view.get("before", []) if isinstance(place, list)]
    tail = int(view["tail"])
    return [*found, (tail, next_message_id - 1)] if tail < next_message_id else found


def joined(stretches: Iterable[range], gap: int) -> list[tuple[int, int]]:
    """Return the first id, and the one behind the last, of what spans these stretches; near ones are joined.

    Args:
        stretches: Ids of the log.
        gap: Two are joined if fewer ids than this lie between them.
    """
    found: list[tuple[int, int]] = []
    for stretch in sorted((stretch for stretch in stretches if stretch), key=lambda stretch: stretch.start):
        if found and stretch.start - found[-1][1] < gap:
            found[-1] = found[-1][0], max(found[-1][1], stretch.stop)
        else:
            found.append((stretch.start, stretch.stop))
    return found


def places(view: LiveViewDocument, logged: Iterable[int]) -> list[Place]:
    """Return the places of a view, oldest first, whose messages are there: in the log, in ``held`` or in the state.

    Args:
        view: The view.
        logged: The ids of the logged messages that were read: all that the view names and does not hold.
    """
    held = view.get("held", {})
    there = sorted({*logged, *(int(name) for name in held if name.isdecimal())})
    found: list[Place] = []
    for place in view.get("before", []):
        if isinstance(place, list):
            found += [message_id for message_id in there if place[0] <= message_id <= place[1]]
        elif not isinstance(place, str) or place in held:
            found.append(place)
    return found + [message_id for message_id in there if message_id >= view["tail"]]


def without_copies(view: LiveViewDocument) -> LiveViewDocument:
    """Return the view that holds nothing of logged messages."""
    held = {name: one for name, one in view.get("held", {}).items() if not name.isdecimal() and "of" not in one}
    return {**view, "held": held}


def held_form(view: Mapping[str, Any], place: Place) -> Document | None:
    """Return what the view holds of the message at a place; None if it is as it is logged, or in the state."""
    held: Mapping[str, Document] = view.get("held", {})
    return None if isinstance(place, dict) else held.get(str(place))
