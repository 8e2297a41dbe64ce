"""What is stored of a live conversation, and what Strands' sliding window makes of one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from strands.types.content import Message

from .._model.documents import measured_body
from .._model.encoding import PendingBlobs, fingerprint
from .._model.limits import MAX_HELD_ARCHIVED, MAX_HELD_ARCHIVED_BYTES
from .._model.shapes import StateField
from .._statements.live import HeldCopy, LiveView
from ..errors import UnstorableValueError
from .slots import Due, Ref, Row, Slot, id_of


def live_view(
    due: Due,
    removed: int,
    archived: int,
    turn_of: Callable[[Ref], Any],
    where: str,
    blobs: PendingBlobs,
    *,
    may_hold: bool,
) -> tuple[LiveView, UnstorableValueError | None]:
    """Return the view that is to be stored, without what cannot be stored; and why that cannot, if there is any.

    Args:
        due: What is live.
        removed: The ``removed_message_count`` that is stored with it.
        archived: How many messages lie in the history.
        turn_of: Tells the turn of a logged message; None if it is not known.
        where: What it is, for errors.
        blobs: Takes what is too large for the session document.
        may_hold: Whether it may hold content of logged messages.
    """
    places: list[Any] = []
    held: list[HeldCopy] = []
    refused: UnstorableValueError | None = None
    near = to_hold(due.rows, archived)
    for row in due.rows:
        slot = row.ref if isinstance(row.ref, Slot) else None
        if slot is not None and slot.state is not None:
            places.append(StateField(state=slot.state))
            continue
        of = row.ref if slot is None else None
        name = "" if slot is None else f"x{len(held)}"
        is_copy = row.form is not None or any(row is one for one in near)
        if slot is not None or (is_copy and may_hold):
            try:
                body, _ = measured_body(row.message, where, blobs)
            except UnstorableValueError as error:
                refused = refused or error
                places += [] if slot is not None else [row.ref]
                continue
            if slot is None and (turn_id := turn_of(row.ref)) is not None:
                body["turn_id"] = turn_id
            held.append(HeldCopy(of, name, body, row.shares))
        places.append(row.ref if slot is None else name)
    view = LiveView(places, due.newest, removed, due.is_exact, held)
    return (view if may_hold else view.without_copies()), refused


def to_hold(rows: list[Row], archived: int) -> list[Row]:
    """Return the few small live messages that lie in the history: held in the view they are read without that."""
    found = [row for row in rows if isinstance(id_of(row.ref), int) and id_of(row.ref) < archived]
    if len(found) > MAX_HELD_ARCHIVED or any(row.message is None for row in found):
        return []
    plain = [row for row in found if row.form is None and not row.redacted]
    return [row for row in plain if _size(row.message) <= MAX_HELD_ARCHIVED_BYTES]


def _size(message: Message) -> int:
    """Return about how many bytes a message has; of one that cannot be stored, more than can be held."""
    try:
        return len(fingerprint(message, "message"))
    except UnstorableValueError:
        return MAX_HELD_ARCHIVED_BYTES + 1


def trimmed(agent: Any, messages: list[Message]) -> list[Message]:
    """Return what Strands' sliding window leaves of these messages; the agent's own is not touched."""
    trial = SimpleNamespace(messages=list(messages))
    copy.copy(agent.conversation_manager).apply_management(trial)
    return list(trial.messages)
