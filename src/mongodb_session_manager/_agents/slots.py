"""The places of a live conversation: which message of the log each is, and in which form. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from strands.types.content import Message

from .._statements.commits import TrackedMessage
from .looks import form_of

Ref = int | TrackedMessage
"""A logged message: by its id as it was restored, or the one that was appended here."""


@dataclass(slots=True, eq=False)
class Slot:
    """A place in the live conversation.

    Attributes:
        message: The live message.
        ref: The logged message that it is; None: it is in no log.
        form: Fingerprint of the live message where it is not as it is logged; None: it is.
        logged_form: Fingerprint of what is logged, once it differs or was left.
        state: The field of the conversation manager's state that has the message; None: no field has.
        fresh: Appended, and neither logged nor stored in a view yet.
        copied: The last look found another object in the place of the one before.
        by_hand: It was logged by hand, before Strands has told of it.
        redacted: What is logged was redacted. Nothing else of it is stored.
        refused: It can never be stored, and so is in no log and in no view.
        shares: Other logged messages whose content blocks it has.
        before: Logged messages that are live in front of it, and not in ``agent.messages``: appended by hand, or ids
            that another writer took.
        behind: The same, behind it.
    """

    message: Message
    ref: Ref | None = None
    form: bytes | None = None
    logged_form: bytes | None = None
    state: str | None = None
    fresh: bool = False
    copied: bool = False
    by_hand: bool = False
    redacted: bool = False
    refused: bool = False
    shares: tuple[Ref, ...] = ()
    before: tuple[Any, ...] = ()
    behind: tuple[Any, ...] = ()

    def as_held(self) -> Slot:
        """Take note that the message was held in a view: what is logged of it is another, which was not read."""
        if self.ref is not None:
            self.form, self.logged_form = form_of(self.message), b""
        return self


class Row(NamedTuple):
    """One message of what is live, or of what a restore would find.

    Attributes:
        ref: The logged message, ids that another writer took, or the ``Slot`` of what is in no log; None: not known.
        form: As in ``Slot``.
        message: The live message; None if it is not known.
        shares: As in ``Slot``.
        redacted: As in ``Slot``.
    """

    ref: Any
    form: bytes | None = None
    message: Any = None
    shares: tuple[Ref, ...] = ()
    redacted: bool = False


@dataclass(frozen=True)
class Due:
    """A live conversation that is to be stored.

    Attributes:
        rows: What is live, oldest first.
        newest: The newest message of the log; None: the log is empty.
        rides: Whether it may wait for a commit that is made anyway: a restore would make the same of what is stored.
        is_exact: Whether no restore is to trim it: the application holds more than the window of its manager.
    """

    rows: list[Row]
    newest: Ref | None
    rides: bool
    is_exact: bool


def row_of(note: Any) -> Row:
    return Row(note, None, note.source if isinstance(note, TrackedMessage) else None)


def alike(one: Sequence[Row], other: Sequence[Row]) -> bool:
    return len(one) == len(other) and all(
        same_ref(a.ref, b.ref) and a.form == b.form for a, b in zip(one, other, strict=True)
    )


def same_ref(one: Any, other: Any) -> bool:
    """Return whether two refs mean the same message."""
    return one is other or (isinstance(one, (int, range)) and one == other)


def is_logged(ref: Any) -> bool:
    return isinstance(ref, (int, TrackedMessage))


def ref_of(slot: int | Slot) -> Ref | None:
    """Return the logged message of a place; of one that was not looked at since the restore, the place is the id."""
    return slot.ref if isinstance(slot, Slot) else slot


def id_of(ref: Any) -> Any:
    return ref.message_id if isinstance(ref, TrackedMessage) else ref


def has(these: Sequence[Any], one: Any) -> bool:
    return any(other is one for other in these)
