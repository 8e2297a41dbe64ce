"""Archiving: when the older messages of a conversation leave the session document, and in which commands.

Three commands move a block: read it, insert it as a segment with the ``edits`` it was read at, and one update of the
session document that drops exactly those messages; its guard names ``archived_count`` and ``edits``. Before the third
nothing has changed; after it the segment counts. So an archiver may die at any command.

An archiver that finds a segment where its own would begin commits that one, if no message was edited since it was read.
Otherwise nobody can commit it any more, and it is deleted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bson import ObjectId
from bson.raw_bson import RawBSONDocument

from .._model import limits
from .._model.archive_policy import ArchivePolicy, Embedded
from .._model.documents import Document
from .._model.expiry import expiry_of_new_related
from .._model.related_shapes import SegmentId
from .._statements import feedback, segments
from .history import History
from .session_commands import SessionCommands, now

_MAKING_ROOM = ArchivePolicy(1, limits.ROOM_SEGMENT_BYTES, limits.ROOM_SEGMENT_MESSAGES)


@dataclass(eq=False)
class Archiver:
    """Moves messages of the sessions of one collection into their history.

    Attributes:
        commands: About session documents.
        history: Sends those about segments.
    """

    commands: SessionCommands
    history: History

    def archive(self, session_id: str, incarnation: ObjectId, key: str, policy: ArchivePolicy) -> Embedded | None:
        """Archive an agent's messages as long as that is due; return what stays embedded, or None without the agent."""
        left: Embedded | None = None
        for _ in range(limits.MAX_SEGMENTS_AT_ONCE):
            moved, left = self._step(session_id, incarnation, key, policy, force=False)
            if not moved or left is None or not left.due(policy, 0):
                break
        return left

    def archive_feedbacks(self, session_id: str, incarnation: ObjectId) -> None:
        """Archive the older feedbacks of a session that has no room for more."""
        policy = ArchivePolicy(1, limits.MAX_EMBEDDED_FEEDBACK_BYTES, limits.MAX_EMBEDDED_FEEDBACKS // 2)
        self._step(session_id, incarnation, feedback.FEEDBACKS, policy, force=True)

    def make_room(self, session_id: str, needed: int = limits.FULL_DOCUMENT_BYTES) -> int | None:
        """Archive what is embedded, live or not, until the session document is small again.

        Args:
            session_id: Which session.
            needed: How many bytes are to be added to it; where they would not fit, the last message is archived, too.

        Returns:
            The size of the session document then, in bytes; None if nothing was archived.
        """
        made = False
        for _ in range(limits.MAX_SEGMENTS_AT_ONCE):
            sizes = self.commands.find_one({"_id": session_id}, segments.SIZES)
            if sizes is None:
                return None
            archivable = sum(int(agent["messages"]) for agent in sizes["agents"]) + int(sizes["feedbacks"])
            little = sizes["bytes"] <= limits.MAKE_ROOM_TO_BYTES or archivable <= limits.MAKE_ROOM_TO_BYTES
            if little and sizes["bytes"] + needed <= limits.FULL_DOCUMENT_BYTES:
                return int(sizes["bytes"]) if made else None
            if "incarnation" not in sizes or any("archived_count" not in agent for agent in sizes["agents"]):
                self.commands.adopt(session_id, [agent["key"] for agent in sizes["agents"]])
                continue
            bytes_by_key = {agent["key"]: int(agent["messages"]) for agent in sizes["agents"]}
            bytes_by_key[feedback.FEEDBACKS] = int(sizes["feedbacks"])
            largest = max(bytes_by_key, key=bytes_by_key.__getitem__)
            moved, _ = self._step(session_id, sizes["incarnation"], largest, _MAKING_ROOM, force=True)
            if not moved:
                return int(sizes["bytes"]) if made else None
            made = True
        return None

    def _step(
        self, session_id: str, incarnation: ObjectId, key: str, policy: ArchivePolicy, *, force: bool
    ) -> tuple[int, Embedded | None]:
        """Archive one block.

        Returns:
            How many messages were archived, and what stays embedded; None if the agent is gone.
        """
        mine: list[SegmentId] = []
        for _ in range(limits.MAX_BEHIND_ATTEMPTS):
            which = {"_id": session_id, "incarnation": incarnation}
            found = self.commands.find_raw(which, segments.block_projection(key, policy.block))
            if found is None:
                if mine and self.commands.is_over(session_id, incarnation):
                    # Whoever deleted the session may not have found it. All else is the sweep's: a session document
                    # may only be missing because a restore has yet to bring it.
                    self.history.delete(mine)
                return 0, None
            agent = found["agent"]
            if "edits" not in agent or "archived_count" not in agent:
                return 0, None
            standing = Embedded.of(agent)
            messages = found["messages"]
            count = _cut(messages, policy)
            if force:
                count = count or len(messages)
                if not count:
                    return 0, standing
            else:
                standing.tried = standing.removed
                grown = standing.grown(policy, int(found["bytes"]))
                if not grown or count is None or count > standing.removed - standing.archived:
                    return 0, standing
            moved = self._move(session_id, found, key, messages[:count], mine)
            if moved:
                standing.archived += moved
                standing.count -= moved
                standing.bytes -= sum(len(message.raw) for message in messages[:moved])
                standing.tried = -1
                return moved, standing
        return 0, Embedded()

    def _move(
        self,
        session_id: str,
        session: Mapping[str, Any],
        key: str,
        messages: Sequence[RawBSONDocument],
        mine: list[SegmentId],
    ) -> int:
        """Make a segment of these messages and commit it, or commit the one that another archiver has made.

        Its ``_id`` is added to ``mine`` if it was made here.

        Returns:
            How many messages it has; 0 if none was committed.
        """
        first, edits = int(session["agent"]["archived_count"]), int(session["agent"]["edits"])
        segment_id = segments.segment_id(session_id, session["incarnation"], key, first)
        expires_at = expiry_of_new_related(session)
        count = len(messages)
        segment: Document = {
            "_id": segment_id,
            "count": count,
            "edits": edits,
            "created_at": now(),
            "messages": messages,
        }
        if expires_at is not None:
            segment["expires_at"] = expires_at
        if self.history.insert(segment):
            mine.append(segment_id)
        else:
            # It may have been inserted when the session was to expire sooner, and after the others were prolonged.
            there = self.history.standing(segment_id, expires_at)
            if there is None:
                return 0
            if there["edits"] < edits:
                # A message was edited since it was read, and `edits` only grows: nobody can commit it any more.
                self.history.delete_stale(segment_id, int(there["edits"]))
                return 0
            if there["edits"] > edits:
                return 0  # It is newer than what was read here.
            count = int(there["count"])
        committed = self.commands.update(segments.archive(session_id, session, key, first, count, edits))
        return count if committed else 0


def _cut(messages: Sequence[RawBSONDocument], policy: ArchivePolicy) -> int | None:
    """Return how many of the oldest messages make a segment, or None if they are too few for one.

    It depends on the messages alone, not on how many follow them, so two archivers cut alike.
    """
    size = 0
    for index, message in enumerate(messages):
        if index and size + len(message.raw) > limits.MAX_SEGMENT_BYTES:
            return index
        size += len(message.raw)
        if index + 1 == policy.block or size >= policy.segment_bytes:
            return index + 1
    return None
