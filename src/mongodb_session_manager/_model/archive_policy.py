"""When messages leave the session document: thresholds, and what is known of a document's size. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .keys import check_int
from .limits import MAKE_ROOM_ABOVE_BYTES, MAX_PLANNED_SEGMENT_BYTES


@dataclass(frozen=True)
class ArchivePolicy:
    """When messages leave the session document.

    Attributes:
        after_messages: An agent with this many embedded messages is archived from.
        after_bytes: Or with this many bytes of them.
        block: How many messages make a segment; fewer, where they have half of ``after_bytes``.
    """

    after_messages: int = 200
    after_bytes: int = 256 * 1024
    block: int = 100

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("after_messages", "after_bytes", "block"):
            check_int(getattr(self, name), f"archive_{name}", 1)

    @property
    def document_bytes(self) -> int:
        """A session document of this size is archived from, whatever one agent holds: so hundreds of agents fit."""
        return 4 * self.after_bytes

    @property
    def segment_bytes(self) -> int:
        """How many bytes make a segment of fewer than ``block`` messages."""
        return max(1, min(self.after_bytes // 2, MAX_PLANNED_SEGMENT_BYTES))


@dataclass
class DocumentSize:
    """The size of a session document, as far as this process knows.

    Attributes:
        bytes: As it was read, and grown since.
        make_room_above: Where a write would take it above this, room is made first. More than at first where little of
            it can be archived.
    """

    bytes: int = 0
    make_room_above: int = MAKE_ROOM_ABOVE_BYTES


@dataclass
class Embedded:
    """What one agent has in the session document, as far as this process knows.

    Attributes:
        archived: How many messages were archived before.
        count: How many are embedded.
        bytes: Their size, and that of the agent's record.
        removed: How many messages of the conversation are no longer live, as it is stored.
        tried: ``removed`` when archiving last found too few bytes for a segment.
    """

    archived: int = 0
    count: int = 0
    bytes: int = 0
    removed: int = 0
    tried: int = -1

    @classmethod
    def of(cls, agent: Mapping[str, Any]) -> Embedded:
        """Return what a projection tells in ``archived_count``, ``embedded``, ``bytes`` and ``removed``."""
        archived, removed = int(agent["archived_count"]), max(0, int(agent["removed"]))
        return cls(archived, int(agent["embedded"]), int(agent["bytes"]), removed)

    def due(self, policy: ArchivePolicy, document_bytes: int) -> bool:
        """Return whether there is a segment to be made of messages that are no longer live."""
        removable = min(self.removed - self.archived, self.count)
        if removable < 1:
            return False
        if not self.grown(policy, document_bytes):
            return False
        if removable >= policy.block:
            return True
        # Their bytes may suffice: that is worth a look each time when about a segment's bytes have become removable.
        estimated = (self.removed - max(self.tried, self.archived)) * (self.bytes // max(1, self.count))
        return estimated >= policy.segment_bytes

    def grown(self, policy: ArchivePolicy, document_bytes: int) -> bool:
        """Return whether so much is embedded that some of it should leave."""
        return (
            self.count >= policy.after_messages
            or self.bytes >= policy.after_bytes
            or document_bytes >= policy.document_bytes
        )
