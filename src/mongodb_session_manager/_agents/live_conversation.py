"""Which messages of one agent are live, and which stored ones they are. Sends nothing; runs on the event loop.

Nobody tells what a conversation manager, an undo or an application does to ``agent.messages``. So the list is looked at
at each event and compared with how it was at the last look: by identity first, which costs next to nothing while
messages are only appended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from strands.types.content import Message

from .._model.keys import exact_text
from .._statements.commits import TrackedMessage
from .left_messages import LeftMessages
from .live_views import to_hold, trimmed
from .looks import Look, Seen, asks_for_tools, fields_of_state, form_of, is_unchanged, same_objects, tracking_id_of
from .record import give_tracking_id, trims_by_itself
from .slots import Due, Ref, Row, Slot, alike, has, is_logged, ref_of, row_of, same_ref


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
        self._seen = Look([])
        # As an id where the message is as it was restored: most are never looked at.
        self._slots: list[int | Slot] = []
        self._left = LeftMessages()
        self._logged_now: list[tuple[Slot, bytes]] = []
        self._first: tuple[Any, ...] = ()
        self._others: list[tuple[TrackedMessage, range]] = []
        self._turns: tuple[list[int | Slot], Sequence[Any]] = [], ()
        self._turn_by_id: dict[Any, Any] | None = None
        self._has_notes = False
        self._told: set[str] = set()

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
        self._seen = Look(messages)
        for slot, message in zip(reversed(slots), reversed(messages), strict=True):
            ref = ref_of(slot)
            if isinstance(ref, int):
                self.last = TrackedMessage(ref, message, tracking_id_of(message))
                break

    def was_made(self, agent: Any) -> None:
        """Take note of what the restore made of it then: it trims a window and repairs tool uses each time."""
        self.look(agent)
        if repairs := self.fresh():
            self._differs()
        for slot in repairs:
            slot.fresh, slot.form = False, form_of(slot.message)  # It is in no log.
        if self._implied is not None:
            self._restored = self._rows()

    def look(self, agent: Any) -> None:
        """Find out what has become of the live conversation since the last look."""
        # A copy: a message may be appended in another thread while this one looks.
        live: list[Message] = list(agent.messages)
        known = len(self._seen.messages)
        if self._others:
            self._insert_others()
        if self._logged_now:
            self._look_again_at_what_was_logged()
        seen = Look(live)
        comes_back = any(tracking_id_of(message) in self._left for message in live[known:])
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
            self._left.leaves(before, self._seen.each()[index])
        found = self._slots[index] = Slot(message, fresh=True)
        return found

    def log(self, slot: Slot, tracked: TrackedMessage) -> None:
        """Take note that a live message was appended to the log."""
        slot.ref, slot.fresh, slot.form = tracked, False, None
        self._logged_now.append((slot, form_of(slot.message)))

    def appended(self, tracked: TrackedMessage) -> None:
        """Take note that a message was appended to the log; a restore would find it behind what is live."""
        self.last = self.newest = tracked
        if self._implied is not None:
            self._implied.append(Row(tracked, None, tracked.source))

    def note(self, tracked: TrackedMessage) -> None:
        """Take note of a message by hand: it is live behind the last one, in front of it if that asks for a tool."""
        self._has_notes = True
        # What Strands has appended and is about to tell of is logged behind it.
        logged = len(self._slots) - len(self.fresh())
        if not logged:
            self._first += (tracked,)
            return
        slot = self._slot(logged - 1)
        if logged == len(self._slots) and self.waits_for_results():
            if self._implied is None:
                self._implied = [*self._rows(), Row(tracked, None, tracked.source)]
            slot.before += (tracked,)
        else:
            slot.behind += (tracked,)

    def waits_for_results(self) -> bool:
        """Return whether the last live message asks for a tool."""
        return bool(self._seen.messages) and asks_for_tools(self._seen.messages[-1])

    def note_of(self, slot: Slot, *, told: bool) -> TrackedMessage | None:
        """Return the message that was appended by hand and is now in ``agent.messages`` in this place; None if none is.

        It is the same object or has the same tracking id. A message that no event has ``told`` of may also be the one
        that was appended by hand just before, if it has the same content.
        """
        if not self._has_notes:
            return None
        index = next(index for index, one in enumerate(self._slots) if one is slot)
        before = self._slots[index - 1] if index else None
        near = self._first if before is None else (*before.before, *before.behind) if isinstance(before, Slot) else ()
        for note in self._notes():
            source, tracking_id = note.source, tracking_id_of(slot.message)
            if source is slot.message or (tracking_id is not None and tracking_id == note.tracking_id):
                return note
        last = near[-1] if near and not told else None
        if not isinstance(last, TrackedMessage) or tracking_id_of(last.source) is not None:
            return None
        return last if form_of(last.source) == form_of(slot.message) else None

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
        previous = next((row.ref for row in self._rows_backwards() if is_logged(row.ref)), None)
        return () if same_ref(previous, self.newest) else (previous,)

    def turn_of(self, ref: Ref) -> Any:
        """Return the turn of a logged message; None if it is not known."""
        if isinstance(ref, TrackedMessage):
            return ref.turn_id
        if self._turn_by_id is None:
            refs = map(ref_of, self._turns[0])
            self._turn_by_id = dict(zip(refs, self._turns[1], strict=False))
        return self._turn_by_id.get(ref)

    # --- which messages are meant -------------------------------------------------------------------------------------

    def with_id(self, tracking_id: str | None) -> list[TrackedMessage]:
        """Return the logged messages with this ``tracking_id``, oldest first; what is no text names none."""
        if not tracking_id or not isinstance(tracking_id, str):
            return []
        tracking_id = exact_text(tracking_id)
        found = self._left.tracked(tracking_id)
        for index, message in enumerate(self._seen.messages):
            if tracking_id_of(message) == tracking_id and (tracked := self._tracked(index)) is not None:
                found.append(tracked)
        found += [note for note in self._notes() if note.tracking_id == tracking_id]
        if self.last is not None and self.last.tracking_id == tracking_id and not has(found, self.last):
            found.append(self.last)
        return found

    def made_of(self, source: Any) -> list[TrackedMessage]:
        """Return the logged messages that were made of this very object: two, where it was appended twice."""
        indexes = [index for index, message in enumerate(self._seen.messages) if message is source]
        live = [tracked for index in indexes if (tracked := self._tracked(index)) is not None]
        return live + [note for note in self._notes() if note.source is source]

    def redacted(self, tracked: TrackedMessage) -> None:
        """Take note that what is logged of a message is redacted: no other form of it is stored any more."""
        self._left.redacted(tracked)
        for index, slot in enumerate(self._slots):
            ref = ref_of(slot)
            if ref is tracked or (isinstance(ref, int) and ref == tracked.message_id):
                found = self._slot(index)
                found.redacted, found.form = True, None
                self._logged_now = [one for one in self._logged_now if one[0] is not found]

    def refused(self, messages: Sequence[TrackedMessage]) -> None:
        """Take note of messages that can never be stored; no other is to be redacted in the place of the last one."""
        if has(messages, self.last):
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
        if getattr(agent.model, "stateful", False):
            return None  # Strands clears such a conversation after each turn, and a restore makes nothing of it live.
        rows = self._rows() if self._implied is not None or is_due or archived > self._archived else None
        rides = False
        if self._implied is not None and rows is not None:
            if alike(rows, self._implied):
                self._implied = None
            else:
                is_due = True
                rides = (self._restored is not None and alike(rows, self._restored)) or self._is_trimmed(agent, rows)
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

    def tell_refused(self, error: Exception) -> bool:
        """Return whether an error of what no view can hold is to be told: once, not at each event from then on."""
        is_new, self._told = str(error) not in self._told, {*self._told, str(error)}
        return is_new

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
        ref = ref_of(slot)
        if not isinstance(ref, int):
            return ref
        if self.last is not None and self.last.message_id == ref:
            return self.last
        message = self._seen.messages[index]
        return TrackedMessage(ref, message, tracking_id_of(message))

    def _notes(self) -> Iterator[TrackedMessage]:
        slots = [slot for slot in self._slots if isinstance(slot, Slot)]
        for note in chain(self._first, *((*slot.before, *slot.behind) for slot in slots)):
            if isinstance(note, TrackedMessage):
                yield note

    def _rows(self) -> list[Row]:
        rows: list[Row] = [row_of(note) for note in self._first]
        for slot, message in zip(self._slots, self._seen.messages, strict=True):
            if not isinstance(slot, Slot):
                rows.append(Row(slot, None, message))
            elif not slot.fresh:
                rows += [row_of(note) for note in slot.before]
                ref = slot if slot.ref is None else slot.ref
                if not slot.refused:
                    rows.append(Row(ref, slot.form, slot.message, slot.shares, slot.redacted))
                rows += [row_of(note) for note in slot.behind]
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
            now = form_of(slot.message)
            if now != form and slot.form is None and not slot.redacted:
                self._differs()
                slot.form, slot.logged_form = now, form

    def _differs(self) -> None:
        """Remember what a restore would find, before something of it changes."""
        if self._implied is None:
            self._implied = self._rows()

    def _align(self, agent: Any, now: Look) -> None:
        """Find the place of each live message among those of the last look."""
        self._differs()
        old = self._seen.each()
        slots = [self._slot(index) for index in range(len(old))]
        new = now.each()
        came = same_objects(old, new)
        self._find_copies(old, new, slots, came)
        by_block: dict[int, Ref] | None = None
        fields = fields_of_state(agent)
        last_known = max((index for index, source in enumerate(came) if source is not None), default=-1)
        found: list[Slot] = []
        for index, seen in enumerate(new):
            source = came[index]
            if isinstance(source, Slot):
                slot = source
            elif source is not None:
                slot = slots[source]
                slot.copied = slot.message is not seen.message
                if not slot.copied and is_unchanged(old[source], seen):
                    found.append(slot)
                    continue
                if slot.logged_form is None and slot.ref is not None:
                    slot.logged_form = old[source].form()
            elif index > last_known and id(seen.message) not in fields:
                found.append(Slot(seen.message, fresh=True))
                continue
            else:
                give_tracking_id(seen.message)  # As Strands does at the next invocation, without a word.
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
        survivor: Slot | None = None
        for slot, seen in zip(slots, old, strict=True):
            if id(slot) in stays:
                survivor = slot
                continue
            if survivor is not None:
                # What another writer has said stays live. Not what was trimmed from the front.
                survivor.behind += tuple(one for one in (*slot.before, *slot.behind) if isinstance(one, range))
            if slot.ref is not None:
                self._left.leaves(slot, seen)
        if not any(id(slot) in stays for slot in slots[:1]):
            self._first = ()
        self._slots = list(found)

    def _find_copies(self, old: list[Seen], new: list[Seen], slots: list[Slot], came: list[Any]) -> None:
        """Find those live messages that are other objects than before: by their tracking ids, and what they hold."""
        unknown = [tracking_id_of(seen.message) for index, seen in enumerate(new) if came[index] is None]
        named: dict[str, list[Any]] = {one: [*self._left.with_id(one)] for one in unknown if one is not None}
        if not named:
            return
        used = {source for source in came if source is not None}
        for index, seen in enumerate(old):
            if index not in used and (tracking_id := tracking_id_of(seen.message)) in named:
                named[tracking_id].append(index)
        for is_same in (True, False):
            for index, seen in enumerate(new):
                candidates = named.get(tracking_id_of(seen.message) or "")
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
                            self._left.comes_back(one)
                        break

    def _is_trimmed(self, agent: Any, rows: list[Row]) -> bool:
        """Return whether a restore trims what is stored to these rows."""
        implied = self._implied or []
        if self._is_exact() or not trims_by_itself(agent) or any(row.message is None for row in implied):
            return False
        left = trimmed(agent, [row.message for row in implied])
        kept: list[Row] = []
        for row in reversed(implied):
            if left and row.message is left[-1]:
                left.pop()
                kept.append(row)
        return alike(kept[::-1], rows)

    def _is_exact(self) -> bool:
        return self._exact is not None and same_ref(self._exact, self.newest)

    def _would_be_trimmed(self, agent: Any) -> bool:
        if not trims_by_itself(agent) or len(agent.messages) <= agent.conversation_manager.window_size:
            return False
        # Where messages are pinned, Strands warns of each trial that cannot trim.
        return bool(self._seen.customs) or len(trimmed(agent, agent.messages)) != len(agent.messages)
