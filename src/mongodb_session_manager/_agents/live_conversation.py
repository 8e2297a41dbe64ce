"""Which messages of one agent are live, and which stored ones they are. Sends nothing; runs on the event loop.

Nobody tells what a conversation manager, an undo or an application does to ``agent.messages``. So the list is looked at
at each event and compared with how it was at the last look: by identity first, which costs next to nothing while
messages are only appended.
"""

from __future__ import annotations

import copy
import hashlib
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace
from typing import Any, NamedTuple

from strands.types.content import Message

from .._model.documents import measured_body
from .._model.encoding import PendingBlobs, fingerprint
from .._model.keys import exact_text
from .._model.limits import KEPT_BEYOND_LIVE, MAX_HELD_ARCHIVED, MAX_HELD_ARCHIVED_BYTES
from .._model.shapes import StateField
from .._statements.commits import TrackedMessage
from .._statements.live import HeldCopy, LiveView
from .record import trims_by_itself

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
            self.form, self.logged_form = _form(self.message), b""
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


@dataclass(slots=True)
class _Seen:
    """A live message as it was at a look: its blocks and what the application attached may be replaced in place."""

    message: Message
    blocks: Sequence[Any]
    custom: Any

    def form(self) -> bytes:
        """Return the fingerprint of what it was."""
        content = fingerprint([self.message.get("role"), list(self.blocks), self.custom], "message")
        return hashlib.blake2b(content, digest_size=16).digest()


class _Look:
    """The live messages at one moment, in a form that the next look is compared with without a line of Python each.

    Attributes:
        messages: The messages.
        lengths: How many blocks each has.
        blocks: The blocks of all.
        customs: Copies of what the application attached to some of them, by their places; a pin is such a thing.
    """

    def __init__(self, live: list[Message]) -> None:
        self.messages = list(live)
        contents: list[Any] = [message.get("content") for message in self.messages]
        contents = [content if type(content) is list else [content] for content in contents]
        self.lengths = list(map(len, contents))
        self.blocks: list[Any] = list(chain.from_iterable(contents))
        attached: list[Any] = [message.get("metadata") for message in self.messages]
        self.customs = {
            index: dict(custom)
            for index, metadata in enumerate(attached)
            if metadata and "custom" in metadata and isinstance(custom := metadata["custom"], dict) and custom
        }

    def begins_with(self, before: _Look) -> bool:
        """Return whether these are the same messages as before, unchanged, and perhaps more behind them."""
        known = len(before.messages)
        return (
            len(self.messages) >= known
            and all(map(operator.is_, before.messages, self.messages))
            and self.lengths[:known] == before.lengths
            and all(map(operator.is_, before.blocks, self.blocks))
            and before.customs == {index: custom for index, custom in self.customs.items() if index < known}
        )

    def each(self) -> list[_Seen]:
        """Return each message with its blocks and what is attached to it."""
        found: list[_Seen] = []
        start = 0
        for index, (message, length) in enumerate(zip(self.messages, self.lengths, strict=True)):
            found.append(_Seen(message, self.blocks[start : start + length], self.customs.get(index)))
            start += length
        return found


class LiveConversation:
    """The live conversation of one agent.

    Attributes:
        last: The message that was appended last; None if there is none, or if it was refused.
        newest: The newest logged message; None if nothing is logged.
        may_hold: Whether copies of logged messages may be stored. Not once another process has redacted one.
    """

    last: TrackedMessage | None = None
    newest: Ref | None = None
    may_hold = True
    # The newest message when a view was stored that no restore is to trim.
    _exact: Ref | None = None
    # What a restore would make of what is stored or waits for a commit; None: what is live.
    _implied: list[Row] | None = None
    # What a restore made of what was stored; it would do so again.
    _restored: list[Row] | None = None
    # How many messages were archived when that was looked at last.
    _archived = 0

    def __init__(self) -> None:
        self._seen = _Look([])
        # As an id where the message is as it was restored: most are never looked at.
        self._slots: list[int | Slot] = []
        self._left: dict[str, list[Slot]] = {}
        self._left_count = 0
        self._logged_now: list[tuple[Slot, bytes]] = []
        self._first: tuple[Any, ...] = ()
        self._others: list[tuple[TrackedMessage, range]] = []
        self._turns: tuple[list[int | Slot], Sequence[Any]] = [], ()

    # --- what is live -------------------------------------------------------------------------------------------------

    def restored(
        self,
        slots: list[int | Slot],
        messages: list[Message],
        newest: int | None,
        *,
        exact: bool = False,
        turn_ids: Sequence[Any] = (),
    ) -> None:
        """Take note of what a restore made of what is stored.

        Args:
            slots: The place of each message.
            messages: The live messages.
            newest: The id of the newest message of the log; None if it is empty.
            exact: Whether no restore is to trim what is stored.
            turn_ids: The turn of each message, where these are known.
        """
        self._slots, self.newest = slots, newest
        self._turns = slots[:], turn_ids
        self._exact = newest if exact else None
        self._seen = _Look(messages)
        for slot, message in zip(reversed(slots), reversed(messages), strict=True):
            ref = slot if isinstance(slot, int) else slot.ref
            if isinstance(ref, int):
                self.last = TrackedMessage(ref, message, _tracking_id(message))
                break

    def was_made(self, agent: Any) -> None:
        """Take note of what the restore made of it then: it trims a window and repairs tool uses each time."""
        self.look(agent)
        if repairs := self.fresh():
            self._differs()
        for slot in repairs:
            slot.fresh, slot.form = False, _form(slot.message)  # It is in no log.
        if self._implied is not None:
            self._restored = self._rows()

    def look(self, agent: Any) -> None:
        """Find out what has become of the live conversation since the last look."""
        live: list[Message] = agent.messages
        known = len(self._seen.messages)
        if self._others:
            self._insert_others()
        if self._logged_now:
            self._look_again_at_what_was_logged()
        seen = _Look(live)
        comes_back = self._left and any(_tracking_id(message) in self._left for message in live[known:])
        if not comes_back and seen.begins_with(self._seen):
            self._slots += [Slot(message, fresh=True) for message in live[known:]]
        else:
            self._align(agent, seen)
        self._seen = seen

    def fresh(self, before: Message | None = None) -> list[Slot]:
        """Return what was appended and is not logged yet, oldest first; only what comes before a message."""
        found: list[Slot] = []
        for slot in reversed(self._slots):
            if not isinstance(slot, Slot) or not slot.fresh:
                break
            if before is not None and slot.message is before:
                before, found = None, []
                continue
            found.append(slot)
        return found[::-1]

    def slot_of(self, message: Message) -> Slot | None:
        """Return the place of this very object, the last one if it is live several times."""
        for index in range(len(self._seen.messages) - 1, -1, -1):
            if self._seen.messages[index] is message:
                return self._slot(index)
        return None

    def occurs_again(self, message: Message) -> Slot:
        """Take note that an object was appended that was live before and had left since the last look."""
        index = max(index for index, live in enumerate(self._seen.messages) if live is message)
        self._differs()
        before = self._slot(index)
        if before.ref is not None:
            self._leave(before, self._seen.each()[index])
        found = self._slots[index] = Slot(message, fresh=True)
        return found

    def log(self, slot: Slot, tracked: TrackedMessage) -> None:
        """Take note that a live message was appended to the log."""
        slot.ref, slot.fresh, slot.form = tracked, False, None
        self._logged_now.append((slot, _form(slot.message)))

    def appended(self, tracked: TrackedMessage) -> None:
        """Take note that a message was appended to the log; a restore would find it behind what is live."""
        self.last = self.newest = tracked
        if self._implied is not None:
            self._implied.append(Row(tracked, None, tracked.source))

    def note(self, tracked: TrackedMessage) -> None:
        """Take note of a message by hand: it is live behind the last one, in front of it if that asks for a tool."""
        if not self._slots:
            self._first += (tracked,)
            return
        slot = self._slot(len(self._slots) - 1)
        if self.waits_for_results():
            if self._implied is None:
                self._implied = [*self._rows(), Row(tracked, None, tracked.source)]
            slot.before += (tracked,)
        else:
            slot.behind += (tracked,)

    def waits_for_results(self) -> bool:
        """Return whether the last live message asks for a tool."""
        return bool(self._seen.messages) and _asks_for_tools(self._seen.messages[-1])

    def is_live_now(self, tracked: TrackedMessage, message: Message) -> None:
        """Take note that Strands has appended the message that was appended by hand before."""
        self._first = tuple(one for one in self._first if one is not tracked)
        for slot in self._slots:
            if isinstance(slot, Slot):
                slot.before = tuple(one for one in slot.before if one is not tracked)
                slot.behind = tuple(one for one in slot.behind if one is not tracked)
        if (found := self.slot_of(message)) is not None:
            self.log(found, tracked)

    def follows(self) -> tuple[Any, ...]:
        """Return what the next message of the log follows, as in ``TrackedMessage``; ``()``: the newest of the log."""
        previous = next((row.ref for row in self._rows_backwards() if _is_logged(row.ref)), None)
        return () if _same(previous, self.newest) else (previous,)

    def turn_of(self, ref: Ref) -> Any:
        """Return the turn of a logged message; None if it is not known."""
        if isinstance(ref, TrackedMessage):
            return ref.turn_id
        slots, turn_ids = self._turns
        for slot, turn_id in zip(slots, turn_ids, strict=False):
            if ref == (slot.ref if isinstance(slot, Slot) else slot):
                return turn_id
        return None

    # --- which messages are meant -------------------------------------------------------------------------------------

    def with_id(self, tracking_id: str | None) -> list[TrackedMessage]:
        """Return the logged messages with this ``tracking_id``, oldest first; what is no text names none."""
        if not tracking_id or not isinstance(tracking_id, str):
            return []
        tracking_id = exact_text(tracking_id)
        left = [slot.ref for slot in self._left.get(tracking_id, ()) if slot.ref is not None]
        found = [TrackedMessage(one, None, tracking_id) if isinstance(one, int) else one for one in left]
        for index, message in enumerate(self._seen.messages):
            if _tracking_id(message) == tracking_id and (tracked := self._tracked(index)) is not None:
                found.append(tracked)
        found += [note for note in self._notes() if note.tracking_id == tracking_id]
        if self.last is not None and self.last.tracking_id == tracking_id and not _has(found, self.last):
            found.append(self.last)
        return found

    def made_of(self, source: Any) -> list[TrackedMessage]:
        """Return the logged messages that were made of this very object: two, where it was appended twice."""
        indexes = [index for index, message in enumerate(self._seen.messages) if message is source]
        live = [tracked for index in indexes if (tracked := self._tracked(index)) is not None]
        return live + [note for note in self._notes() if note.source is source]

    def redacted(self, tracked: TrackedMessage) -> None:
        """Take note that what is logged of a message is redacted: no other form of it is stored any more."""
        for left in chain.from_iterable(self._left.values()):
            left.redacted = left.redacted or left.ref is tracked or left.ref == tracked.message_id
        for index, slot in enumerate(self._slots):
            ref = slot.ref if isinstance(slot, Slot) else slot
            if ref is tracked or (isinstance(ref, int) and ref == tracked.message_id):
                found = self._slot(index)
                found.redacted, found.form = True, None
                self._logged_now = [one for one in self._logged_now if one[0] is not found]

    def refused(self, messages: Sequence[TrackedMessage]) -> None:
        """Take note of messages that can never be stored; no other is to be redacted in the place of the last one."""
        if _has(messages, self.last):
            self.last = None

    # --- what is to be stored of it -----------------------------------------------------------------------------------

    def to_store(self, agent: Any, archived: int, *, is_due: bool, is_over: bool) -> Due | None:
        """Return what is to be stored of the live conversation, if a restore would not find it as it is.

        Args:
            agent: The agent, which was just looked at.
            archived: How many of its messages lie in the history.
            is_due: Whether it is to be stored in any case, with the state of the conversation manager.
            is_over: Whether no turn is running.

        Returns:
            What is to be stored, or None.
        """
        rows = self._rows() if self._implied is not None or is_due or archived > self._archived else None
        rides = False
        if self._implied is not None and rows is not None:
            if _alike(rows, self._implied):
                self._implied = None
            else:
                is_due = True
                rides = (self._restored is not None and _alike(rows, self._restored)) or self._is_trimmed(agent, rows)
        if archived > self._archived and rows is not None:
            self._archived = archived
            if not is_due and to_hold(rows, archived):
                is_due = rides = True
        is_exact = is_over and self._would_be_trimmed(agent)
        if is_exact and (is_due or not self._is_exact()):
            rows, is_due, rides = self._rows(), True, False
        return Due(rows, self.newest, rides=rides, is_exact=is_exact) if is_due and rows is not None else None

    def stored(self, due: Due) -> None:
        """Take note that a view is in a commit; what is logged from now on is behind it."""
        self._implied, self._restored = list(due.rows), None
        self._exact = due.newest if due.is_exact else None

    def lost(self) -> None:
        """Take note that a view could not be stored: what a restore would find is not known."""
        self._implied, self._restored, self._exact = [Row(None)], None, None

    def others_came_first(self, message: TrackedMessage, ids: range) -> None:
        """Take note that other writers' messages were stored in front of this one. In any thread."""
        self._others.append((message, ids))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _slot(self, index: int) -> Slot:
        slot = self._slots[index]
        if not isinstance(slot, Slot):
            slot = self._slots[index] = Slot(self._seen.messages[index], slot)
        return slot

    def _tracked(self, index: int) -> TrackedMessage | None:
        slot = self._slots[index]
        ref = slot.ref if isinstance(slot, Slot) else slot
        if not isinstance(ref, int):
            return ref
        if self.last is not None and self.last.message_id == ref:
            return self.last
        message = self._seen.messages[index]
        return TrackedMessage(ref, message, _tracking_id(message))

    def _notes(self) -> Iterator[TrackedMessage]:
        slots = [slot for slot in self._slots if isinstance(slot, Slot)]
        for note in chain(self._first, *((*slot.before, *slot.behind) for slot in slots)):
            if isinstance(note, TrackedMessage):
                yield note

    def _rows(self) -> list[Row]:
        rows: list[Row] = [_row_of_note(note) for note in self._first]
        for slot, message in zip(self._slots, self._seen.messages, strict=True):
            if not isinstance(slot, Slot):
                rows.append(Row(slot, None, message))
            elif not slot.fresh:
                rows += [_row_of_note(note) for note in slot.before]
                ref = slot if slot.ref is None else slot.ref
                if not slot.refused:
                    rows.append(Row(ref, slot.form, slot.message, slot.shares, slot.redacted))
                rows += [_row_of_note(note) for note in slot.behind]
        return rows

    def _rows_backwards(self) -> Iterator[Row]:
        for index in range(len(self._slots) - 1, -1, -1):
            slot = self._slots[index]
            if not isinstance(slot, Slot):
                yield Row(slot)
            elif not slot.fresh:
                yield from reversed([Row(ref) for ref in (*slot.before, slot.ref, *slot.behind)])
        yield from reversed([Row(ref) for ref in self._first])

    def _insert_others(self) -> None:
        others, self._others = self._others, []
        for message, ids in others:
            for slot in self._slots:
                if isinstance(slot, Slot) and slot.ref is message:
                    slot.before += (ids,)
            if self._implied is not None:
                at = [index for index, row in enumerate(self._implied) if row.ref is message]
                self._implied[at[0] : at[0]] = [Row(ids)] if at else []

    def _look_again_at_what_was_logged(self) -> None:
        """Find what another callback has changed inside a message after it was logged."""
        logged, self._logged_now = self._logged_now, []
        for slot, form in logged:
            now = _form(slot.message)
            if now != form and slot.form is None and not slot.redacted:
                self._differs()
                slot.form, slot.logged_form = now, form

    def _differs(self) -> None:
        """Remember what a restore would find, before something of it changes."""
        if self._implied is None:
            self._implied = self._rows()

    def _align(self, agent: Any, now: _Look) -> None:
        """Find the place of each live message among those of the last look."""
        self._differs()
        old = self._seen.each()
        slots = [self._slot(index) for index in range(len(old))]
        new = now.each()
        came = _same_objects(old, new)
        self._find_copies(old, new, slots, came)
        by_block: dict[int, Ref] | None = None
        fields = _fields_of_state(agent)
        last_known = max((index for index, source in enumerate(came) if source is not None), default=-1)
        found: list[Slot] = []
        for index, seen in enumerate(new):
            source = came[index]
            if isinstance(source, Slot):
                slot = source
            elif source is not None:
                slot = slots[source]
                slot.copied = slot.message is not seen.message
                if not slot.copied and _is_unchanged(old[source], seen):
                    found.append(slot)
                    continue
                if slot.logged_form is None and slot.ref is not None:
                    slot.logged_form = old[source].form()
            elif index > last_known and id(seen.message) not in fields:
                found.append(Slot(seen.message, fresh=True))
                continue
            else:
                slot = Slot(seen.message, state=fields.get(id(seen.message)))
            slot.message = seen.message
            form = seen.form()
            slot.form = None if slot.redacted or form == slot.logged_form else form
            if slot.form is not None:
                if by_block is None:
                    by_block = {
                        id(block): one.ref
                        for one, before in zip(slots, old, strict=True)
                        if one.ref is not None
                        for block in before.blocks
                    }
                refs = {id(ref): ref for block in seen.blocks if (ref := by_block.get(id(block))) is not None}
                slot.shares = tuple(ref for ref in refs.values() if ref is not slot.ref)
            found.append(slot)
        stays = {id(slot) for slot in found}
        for slot, seen in zip(slots, old, strict=True):
            if id(slot) not in stays and slot.ref is not None:
                self._leave(slot, seen)
        if not any(id(slot) in stays for slot in slots[:1]):
            self._first = ()
        self._slots = list(found)

    def _find_copies(self, old: list[_Seen], new: list[_Seen], slots: list[Slot], came: list[Any]) -> None:
        """Find those live messages that are other objects than before: by their tracking ids, and what they hold."""
        used = {source for source in came if source is not None}
        named: dict[str, list[Any]] = {}
        for index, seen in enumerate(old):
            if index not in used and (tracking_id := _tracking_id(seen.message)) is not None:
                named.setdefault(tracking_id, [*self._left.get(tracking_id, ())]).append(index)
        for tracking_id, left in self._left.items():
            named.setdefault(tracking_id, list(left))
        for is_same in (True, False):
            for index, seen in enumerate(new):
                candidates = named.get(_tracking_id(seen.message) or "")
                if came[index] is not None or not candidates:
                    continue
                form = seen.form() if is_same else None
                for one in candidates:
                    slot = one if isinstance(one, Slot) else slots[one]
                    if not is_same or form in (
                        slot.form,
                        slot.logged_form if isinstance(one, Slot) or slot.logged_form else old[one].form(),
                    ):
                        came[index] = one
                        candidates.remove(one)
                        if isinstance(one, Slot):
                            self._comes_back(one)
                        break

    def _leave(self, slot: Slot, seen: _Seen) -> None:
        """Remember a message that is no longer live: a snapshot may bring it back."""
        tracking_id = _tracking_id(seen.message)
        if tracking_id is None:
            return
        if slot.logged_form is None:
            slot.logged_form = seen.form()
        # The message itself is let go: it may be large.
        ref = slot.ref if _id(slot.ref) is None else _id(slot.ref)
        left = Slot({"role": "user", "content": []}, ref, logged_form=slot.logged_form, redacted=slot.redacted)
        self._left.setdefault(tracking_id, []).append(left)
        self._left_count += 1
        while self._left_count > KEPT_BEYOND_LIVE:
            oldest = next(iter(self._left))
            self._left_count -= len(self._left.pop(oldest))

    def _comes_back(self, slot: Slot) -> None:
        for tracking_id, left in list(self._left.items()):
            if _has(left, slot):
                left.remove(slot)
                self._left_count -= 1
                if not left:
                    del self._left[tracking_id]

    def _is_trimmed(self, agent: Any, rows: list[Row]) -> bool:
        """Return whether a restore trims what is stored to these rows."""
        implied = self._implied or []
        if self._is_exact() or not trims_by_itself(agent) or any(row.message is None for row in implied):
            return False
        left = _trimmed(agent, [row.message for row in implied])
        kept: list[Row] = []
        for row in reversed(implied):
            if left and row.message is left[-1]:
                left.pop()
                kept.append(row)
        return _alike(kept[::-1], rows)

    def _is_exact(self) -> bool:
        return self._exact is not None and _same(self._exact, self.newest)

    def _would_be_trimmed(self, agent: Any) -> bool:
        if not trims_by_itself(agent) or len(agent.messages) <= agent.conversation_manager.window_size:
            return False
        # Where messages are pinned, Strands warns of each trial that cannot trim.
        return bool(self._seen.customs) or len(_trimmed(agent, agent.messages)) != len(agent.messages)


def live_view(
    live: LiveConversation, due: Due, removed: int, archived: int, where: str, blobs: PendingBlobs
) -> LiveView:
    """Return the view that is to be stored.

    Args:
        live: The live conversation.
        due: What of it is to be stored.
        removed: The ``removed_message_count`` that is stored with it.
        archived: How many messages lie in the history.
        where: What it is, for errors.
        blobs: Takes what is too large for the session document.

    Raises:
        UnstorableValueError: A live message holds what cannot be stored.
    """
    places: list[Any] = []
    held: list[HeldCopy] = []
    near = to_hold(due.rows, archived)
    for row in due.rows:
        slot = row.ref if isinstance(row.ref, Slot) else None
        if slot is not None and slot.state is not None:
            places.append(StateField(state=slot.state))
            continue
        of = row.ref if slot is None else None
        name = "" if slot is None else f"x{len(held)}"
        is_copy = row.form is not None or any(row is one for one in near)
        if slot is not None or (is_copy and live.may_hold):
            body, _ = measured_body(row.message, where, blobs)
            if slot is None and (turn_id := live.turn_of(row.ref)) is not None:
                body["turn_id"] = turn_id
            held.append(HeldCopy(of, name, body, row.shares))
        places.append(row.ref if slot is None else name)
    view = LiveView(places, due.newest, removed, due.is_exact, held)
    return view if live.may_hold else view.without_copies()


def to_hold(rows: list[Row], archived: int) -> list[Row]:
    """Return the few small live messages that lie in the history: held in the view they are read without that."""
    found = [row for row in rows if isinstance(_id(row.ref), int) and _id(row.ref) < archived]
    if len(found) > MAX_HELD_ARCHIVED or any(row.message is None for row in found):
        return []
    plain = [row for row in found if row.form is None and not row.redacted]
    return [row for row in plain if len(fingerprint(row.message, "message")) <= MAX_HELD_ARCHIVED_BYTES]


def _trimmed(agent: Any, messages: list[Message]) -> list[Message]:
    """Return what Strands' sliding window leaves of these messages; the agent's own is not touched."""
    trial = SimpleNamespace(messages=list(messages))
    copy.copy(agent.conversation_manager).apply_management(trial)
    return list(trial.messages)


def _same_objects(old: list[_Seen], new: list[_Seen]) -> list[Any]:
    """Return for each live message the index that the same object had before; None if it is new.

    An object may be live several times: what is the same from the beginning and from the end is settled first.
    """
    n, m = len(old), len(new)
    start = 0
    while start < min(n, m) and old[start].message is new[start].message:
        start += 1
    end = 0
    while end < min(n, m) - start and old[n - 1 - end].message is new[m - 1 - end].message:
        end += 1
    came: list[Any] = [*range(start), *[None] * (m - start - end), *range(n - end, n)]
    where: dict[int, list[int]] = {}
    for index in range(start, n - end):
        where.setdefault(id(old[index].message), []).append(index)
    for index in range(start, m - end):
        if indexes := where.get(id(new[index].message)):
            came[index] = indexes.pop(0)
    return came


def _is_unchanged(old: _Seen, new: _Seen) -> bool:
    same = len(old.blocks) == len(new.blocks) and all(map(operator.is_, old.blocks, new.blocks))
    return same and old.custom == new.custom


def _fields_of_state(agent: Any) -> dict[int, str]:
    """Return which messages the conversation manager keeps in its state: the field's name by the object's id."""
    manager = getattr(agent, "conversation_manager", None)
    state = manager.get_state() if manager is not None else {}
    return {id(value): name for name, value in state.items() if isinstance(value, dict)}


def _alike(one: Sequence[Row], other: Sequence[Row]) -> bool:
    return len(one) == len(other) and all(
        _same(a.ref, b.ref) and a.form == b.form for a, b in zip(one, other, strict=True)
    )


def _same(one: Any, other: Any) -> bool:
    """Return whether two refs mean the same message."""
    return one is other or (isinstance(one, (int, range)) and one == other)


def _is_logged(ref: Any) -> bool:
    return isinstance(ref, (int, TrackedMessage))


def _id(ref: Any) -> Any:
    return ref.message_id if isinstance(ref, TrackedMessage) else ref


def _row_of_note(note: Any) -> Row:
    return Row(note, None, note.source if isinstance(note, TrackedMessage) else None)


def _form(message: Message) -> bytes:
    return _Look([message]).each()[0].form()


def _asks_for_tools(message: Any) -> bool:
    return any("toolUse" in block for block in message["content"] if isinstance(block, dict))


def _tracking_id(message: Any) -> str | None:
    """Return the ``tracking_id`` by which a message can be looked for."""
    value = message.get("tracking_id")
    return exact_text(value) if isinstance(value, str) else None


def _has(these: Sequence[Any], one: Any) -> bool:
    return any(other is one for other in these)
