"""The messages that have left an agent's live conversation: a snapshot, or an undo of an undo, may bring them back."""

from __future__ import annotations

from itertools import chain

from .._model.limits import KEPT_BEYOND_LIVE
from .._statements.commits import TrackedMessage
from .looks import Seen, tracking_id_of
from .slots import Slot, has, id_of


class LeftMessages:
    """Logged messages that are no longer live, by their tracking ids; the oldest are forgotten."""

    def __init__(self) -> None:
        self._slots: dict[str, list[Slot]] = {}
        self._count = 0

    def __contains__(self, tracking_id: str | None) -> bool:
        """Return whether a message with this tracking id has left."""
        return tracking_id in self._slots

    def with_id(self, tracking_id: str) -> list[Slot]:
        """Return those with this tracking id, oldest first; their live messages are not kept."""
        return list(self._slots.get(tracking_id, ()))

    def tracked(self, tracking_id: str) -> list[TrackedMessage]:
        """Return the same as logged messages."""
        refs = [slot.ref for slot in self.with_id(tracking_id) if slot.ref is not None]
        return [TrackedMessage(ref, None, tracking_id) if isinstance(ref, int) else ref for ref in refs]

    def redacted(self, tracked: TrackedMessage) -> None:
        """Take note that what is logged of a message was redacted."""
        for left in chain.from_iterable(self._slots.values()):
            left.redacted = left.redacted or left.ref is tracked or left.ref == tracked.message_id

    def leaves(self, slot: Slot, seen: Seen) -> None:
        """Remember a message that is live no more."""
        tracking_id = tracking_id_of(seen.message)
        if tracking_id is None:
            return
        if slot.logged_form is None:
            slot.logged_form = seen.form()
        # The message itself is let go: it may be large.
        ref = slot.ref if id_of(slot.ref) is None else id_of(slot.ref)
        left = Slot({"role": "user", "content": []}, ref, logged_form=slot.logged_form, redacted=slot.redacted)
        self._slots.setdefault(tracking_id, []).append(left)
        self._count += 1
        while self._count > KEPT_BEYOND_LIVE:
            oldest = next(iter(self._slots))
            self._count -= len(self._slots.pop(oldest))

    def comes_back(self, slot: Slot) -> None:
        """Forget a message that is live again."""
        for tracking_id, left in list(self._slots.items()):
            if has(left, slot):
                left.remove(slot)
                self._count -= 1
                if not left:
                    del self._slots[tracking_id]
