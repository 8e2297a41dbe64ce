"""What a process knows of one agent's stored conversation, and which of its messages are live."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from .._model.archive_policy import DocumentSize, Embedded
from .._model.keys import exact_text
from .._model.limits import KEPT_BEYOND_LIVE
from .._statements.commits import Commit, TrackedMessage

_TRACKING_ID = operator.methodcaller("get", "tracking_id")


class KnownMessages:
    """The stored and waiting messages of one agent that are live, by their tracking ids.

    Attributes:
        last: The message that was appended last; None if there is none, or if it was refused.
    """

    last: TrackedMessage | None = None
    _last_restored: TrackedMessage | None = None

    def __init__(self) -> None:
        # By tracking id, oldest first. Restored messages join when they are first looked for: few ever are.
        self._known: dict[str, list[TrackedMessage]] = {}
        self._restored: list[tuple[int, Any]] = []
        self._restored_ids: set[str | None] = set()

    def restored(self, message_ids: Sequence[int], messages: list[Any]) -> None:
        """Take note of the stored messages of the live conversation: their ids, and the messages made of them."""
        self._restored = list(zip(message_ids, messages, strict=True))
        try:
            self._restored_ids = set(map(_TRACKING_ID, messages))
        except TypeError:  # Another program has stored what is no text, and cannot be looked for.
            self._restored_ids = set(map(_tracking_id, messages))
        if messages:
            last = TrackedMessage(message_ids[-1], messages[-1], _tracking_id(messages[-1]))
            self.last = self._last_restored = last

    def appended(self, message: TrackedMessage) -> None:
        """Take note of a new message."""
        self.last = message
        if message.tracking_id:
            self._known.setdefault(message.tracking_id, []).append(message)

    def refused(self, messages: Sequence[TrackedMessage]) -> None:
        """Forget messages that can never be stored; no other is to be redacted in the place of the last one."""
        for message in messages:
            for same in self._known.values():
                if message in same:
                    same.remove(message)
        if self.last in messages:
            self.last = None

    def with_id(self, tracking_id: str | None) -> list[TrackedMessage]:
        """Return the known messages with this ``tracking_id``, oldest first; what is no text names none."""
        if not tracking_id or not isinstance(tracking_id, str):
            return []
        tracking_id = exact_text(tracking_id)
        if tracking_id in self._restored_ids:
            self._restored_ids.remove(tracking_id)
            last = self._last_restored
            found = [
                last if last is not None and source is last.source else TrackedMessage(message_id, source, tracking_id)
                for message_id, source in self._restored
                if source.get("tracking_id") == tracking_id
            ]
            self._known[tracking_id] = found + self._known.get(tracking_id, [])
        return self._known.get(tracking_id, [])

    def made_of(self, source: Any) -> list[TrackedMessage]:
        """Return the known messages that were made of this very object: two, where it was appended twice."""
        return [message for same in self._known.values() for message in same if message.source is source]

    def prune(self, live: list[Any]) -> None:
        """Forget messages that have left the live conversation, so that a long one does not fill the memory."""
        if len(self._known) + len(self._restored_ids) <= 2 * len(live) + KEPT_BEYOND_LIVE:
            return
        kept = set(map(_tracking_id, live))
        self._restored = [stored for stored in self._restored if _tracking_id(stored[1]) in kept]
        self._restored_ids &= kept
        self._known = {
            tracking_id: same
            for tracking_id, same in self._known.items()
            if tracking_id in kept or any(message.commit is not None for message in same)
        }


class Conversation:
    """One agent's stored conversation, as far as this process knows.

    Attributes:
        agent_id: The agent.
        key: Its key in the session document.
        next_message_id: The ``message_id`` that the next message will get.
        changes: How often the agent's record was changed.
        embedded: What the agent has in the session document.
        document: The size of that document.
        messages: Which live messages are which stored ones.
    """

    next_message_id = 0
    changes = 0

    def __init__(self, agent_id: str, key: str, document: DocumentSize) -> None:
        self.agent_id = agent_id
        self.key = key
        self.document = document
        self.embedded = Embedded()
        self.messages = KnownMessages()

    def was_stored(self, commit: Commit) -> None:
        """Take note that a commit is stored."""
        first = commit.first_message_id or 0
        for message_id, message in enumerate(commit.messages, first):
            message.message_id = message_id
            message.commit = message.blobs = message.totals = None
            message.body = {}
        if commit.messages:
            self.next_message_id = first + len(commit.messages)
        if commit.creates is None and commit.fields:
            self.changes = commit.changes + 1
        embedded = self.embedded
        embedded.count += len(commit.messages)
        # A field that is stored anew takes the place of another.
        embedded.bytes += commit.bytes - commit.field_bytes
        self.document.bytes += commit.bytes - commit.field_bytes
        window = commit.fields.get("conversation_manager_state")
        if isinstance(window, dict) and isinstance(removed := window.get("removed_message_count"), int):
            embedded.removed = removed


def _tracking_id(message: Mapping[str, Any]) -> str | None:
    """Return the ``tracking_id`` by which a message can be looked for."""
    value = message.get("tracking_id")
    return exact_text(value) if isinstance(value, str) else None
