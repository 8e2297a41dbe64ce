"""The history: segments in a collection beside the sessions, read, rewritten, inserted, deleted and swept.

A segment holds consecutive messages, exactly as they were embedded; ``first`` in its ``_id`` is the offset of the first
of them. It is inserted once and never replaced; it counts as soon as the session document says so (``archived_count``).
An offset counts messages; a ``message_id`` may be higher, where the ids that were given to a repository have gaps.

The order of the fields in ``_id`` makes MongoDB's own index on it the one that finds segments: by session, incarnation,
agent, offset of the first message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import Primary

from .._model.documents import Document
from .._model.encoding import from_bson
from .._model.foreign import name_of
from .._model.related_shapes import SegmentId
from .._statements import reading, rewrites, searching, segments, session_headers, sessions, sweeping
from .._statements.feedback import FEEDBACKS
from .._statements.rewrites import Rewrite
from ..errors import HistoryIncompleteError
from .blobs import BlobStore
from .indexes import EXPIRY_INDEX, ensure_indexes
from .related_collection import Holds, RelatedCollection
from .sending import attempts, is_there, until_known
from .upkeep import Failures, Orphans


class History(RelatedCollection):
    """The segments of the sessions of one collection.

    Args:
        sessions: The collection of the session documents.
        blobs: The large parts of messages; decodes what holds them.
    """

    number = "first"

    def __init__(self, sessions: Collection[Document], blobs: BlobStore) -> None:
        super().__init__(sessions, "history")
        self._raw: Collection[RawBSONDocument] = self.collection.with_options(
            codec_options=sessions.codec_options.with_options(document_class=RawBSONDocument)
        )
        self._raw_majority = self._raw.with_options(read_preference=Primary(), read_concern=ReadConcern("majority"))
        self._blobs = blobs

    def read(self, session_id: str, incarnation: ObjectId, key: str, start: int, stop: int) -> list[Document]:
        """Return the messages from offset ``start`` up to ``stop``, decoded; reads only the segments they are in.

        Raises:
            HistoryIncompleteError: They are not all there; perhaps the session was deleted meanwhile.
        """
        page = segments.segment_page_projection(start, stop)
        read = partial(self._find, session_id, projection=page, plain=key == FEEDBACKS)
        up_to = segments.segments_up_to(session_id, incarnation, key, start)
        found: list[Document] = read({"_id": up_to}, newest=True)
        if found and found[0]["_id"]["first"] + found[0]["count"] < stop:
            after, before = (segments.segment_id(session_id, incarnation, key, first) for first in (start, stop))
            found += read({"_id": {"$gt": after, "$lt": before}})
        messages = [message for segment in found for message in segment["messages"]]
        if len(messages) != stop - start:
            raise _incomplete(session_id, incarnation, key, start, stop, len(messages))
        return messages

    def ratings(self, session_id: str, incarnation: ObjectId, stop: int, agent_id: str | None) -> list[Any]:
        """Return the ratings of the archived feedbacks, up to offset ``stop``; None for one without.

        Args:
            session_id: The session.
            incarnation: Its incarnation.
            stop: How many feedbacks are archived.
            agent_id: Only those of feedbacks that name this agent; None for all.

        Raises:
            HistoryIncompleteError: They are not all there; perhaps the session was deleted meanwhile.
        """
        begin, end = (segments.segment_id(session_id, incarnation, FEEDBACKS, first) for first in (0, stop))
        projection = reading.segment_ratings_projection(agent_id)
        found: list[Document] = self._find(session_id, {"_id": {"$gte": begin, "$lt": end}}, projection, plain=True)
        feedbacks = sum(segment["count"] for segment in found)
        if feedbacks != stop:
            raise _incomplete(session_id, incarnation, FEEDBACKS, 0, stop, feedbacks)
        return [rating for segment in found for rating in segment["ratings"]]

    def read_message(self, session_id: str, incarnation: ObjectId, key: str, message_id: int) -> Document | None:
        """Return one message, decoded, or None if no segment has it."""
        segment_id = self._covering(session_id, incarnation, key, message_id)
        if segment_id is None:
            return None
        found = self._find(session_id, {"_id": segment_id}, segments.segment_message_projection(message_id))
        messages: list[Document] = found[0]["messages"] if found else []
        return messages[0] if messages else None

    def has(self, session_id: str, incarnation: ObjectId, work: Rewrite) -> bool:
        """Return whether a segment has a message that is meant to be replaced."""
        return self.collection.find_one(_holding(session_id, incarnation, work), {"_id": 1}) is not None

    def rewrite(
        self, session_id: str, incarnation: ObjectId, work: Rewrite, edit: int, moment: datetime
    ) -> tuple[list[Document], bool]:
        """Rewrite messages in all segments that have them, committed or not.

        Args:
            session_id: The session.
            incarnation: Its incarnation.
            work: What is replaced, of which messages.
            edit: The number of this change among all of the agent's; a message that has a higher one is left alone.
            moment: Their new ``updated_at``.

        Returns:
            The messages as they were stored before, and whether an indexer has read one of them.
        """
        found: list[Document] = []
        indexed = False
        held = {"messages": work.found_in("$messages")}
        for segment in list(self.collection.find(_holding(session_id, incarnation, work), held)):
            message_ids = [message["message_id"] for message in segment["messages"]]
            which, changes, array_filters = rewrites.rewrite_in_segment(segment["_id"], work, message_ids, edit, moment)
            until_known(partial(self.collection.update_one, which, changes, array_filters=array_filters))
            found += segment["messages"]
            # Read after the change: an indexer leaves its mark before it reads.
            mark = self.collection.find_one({"_id": segment["_id"]}, {"indexed": 1})
            indexed = indexed or "indexed" in (mark or {})
        return found, indexed

    def has_feedback(self, session_id: str, incarnation: ObjectId, feedback: Document) -> bool:
        """Return whether a segment has this very feedback, which its ``commit_id`` tells."""
        of_session = segments.segments_up_to(session_id, incarnation, FEEDBACKS)
        which = {"_id": of_session, "messages.commit_id": feedback["commit_id"]}
        return self.collection.find_one(which, {"_id": 1}) is not None

    def read_to_index(self, session_id: str, incarnation: ObjectId, key: str, offset: int) -> list[Document | None]:
        """Return the text of the messages from an offset to the end of the segment that has it, and mark the segment.

        The mark is there before the text is read: whoever changes a message in it later knows that the old text may be
        in the search.

        Raises:
            HistoryIncompleteError: No segment has it.
        """
        which: Document = {"_id": segments.segments_up_to(session_id, incarnation, key, offset)}
        projection = {**searching.unindexed_in_segment_projection(offset), "indexed": 1}
        for _ in attempts(f"session_id={session_id!r}: a segment could not be read", session_id):
            found = self.collection.find_one(which, projection, sort=[("_id", -1)])
            if found is None or not found["messages"]:
                break
            if "indexed" in found:
                messages: list[Document | None] = found["messages"]
                return messages
            which = {"_id": found["_id"]}
            until_known(partial(self.collection.update_one, which, {"$set": {"indexed": True}}))
        raise _incomplete(session_id, incarnation, key, offset, offset + 1, 0)

    def first_user_texts(self, segment_ids: Sequence[SegmentId]) -> dict[str, Any]:
        """Return the first user text of each of these segments, by session id, cut, as it is stored: one command.

        Args:
            segment_ids: One for each session.
        """
        if not segment_ids:
            return {}
        found = self.collection.find({"_id": {"$in": list(segment_ids)}}, session_headers.SEGMENT_PROJECTION)
        return {segment["_id"]["session"]: segment["text"] for segment in found}

    def insert(self, segment: Mapping[str, Any]) -> bool:
        """Insert a segment; return False if there is one with its ``_id``."""
        if "expires_at" in segment:
            ensure_indexes(self.collection, [EXPIRY_INDEX])
        try:
            until_known(lambda: self.collection.insert_one(dict(segment)))
        except DuplicateKeyError as error:
            if not is_there(error):
                raise
            return False  # Or it is this one, and only the answer to the first attempt was lost.
        return True

    def standing(self, segment_id: SegmentId, expires_at: datetime | None) -> Document | None:
        """Let a segment expire no sooner than this; return its ``count`` and ``edits``, or None if there is none."""
        if expires_at is not None:
            until_known(lambda: self.collection.update_one({"_id": segment_id}, sessions.keep_until(expires_at)))
        return self.collection.find_one({"_id": segment_id}, {"_id": 0, "count": 1, "edits": 1})

    def let_expire(self, session_id: str, incarnation: ObjectId, until: datetime) -> bool:
        """Give an expiry to those segments of an incarnation that have none; return whether there was one."""
        there_were = super().let_expire(session_id, incarnation, until)
        if there_were:
            ensure_indexes(self.collection, [EXPIRY_INDEX])
        return there_were

    def delete(self, segment_ids: Sequence[SegmentId]) -> None:
        """Delete segments that the caller has inserted and that nobody has committed."""
        until_known(lambda: self.collection.delete_many({"_id": {"$in": list(segment_ids)}}))

    def delete_stale(self, segment_id: SegmentId, edits: int) -> None:
        """Delete a segment whose messages were read at this many ``edits`` and that can never be committed any more."""
        self.collection.delete_one({"_id": segment_id, "edits": edits})

    def _covering(self, session_id: str, incarnation: ObjectId, key: str, message_id: int) -> SegmentId | None:
        """Return the ``_id`` of the segment whose lowest id is not above this one and whose highest not below; or None.

        The offset of a message is never above its id. Where ids have no gaps both are the same, and the first look
        finds the segment; otherwise the range of possible offsets is halved at each look.
        """
        low, high = 0, message_id
        offset = message_id
        while low <= high:
            which = {"_id": segments.segments_up_to(session_id, incarnation, key, offset)}
            found: list[Document] = self._find(session_id, which, segments.segment_bounds(), newest=True)
            if not found or (last_id := found[0].get("last_id", -1)) < message_id:
                low = offset + 1
            elif found[0].get("first_id", -1) <= message_id <= last_id:
                covering: SegmentId = found[0]["_id"]
                return covering
            else:
                high = found[0]["_id"]["first"] - 1
            offset = (low + high) // 2
        return None

    def raw_segment_covering(
        self, session_id: str, incarnation: ObjectId, key: str, message_id: int
    ) -> RawBSONDocument | None:
        """Return the segment in which a message with this id would lie, as it is stored; None if there is none."""
        segment_id = self._covering(session_id, incarnation, key, message_id)
        return None if segment_id is None else self._raw_majority.find_one({"_id": segment_id})

    def raw_segments(self, session_id: str, incarnation: ObjectId, key: str) -> Iterator[RawBSONDocument]:
        """Yield all segments of an agent as they are stored."""
        which = {"_id": segments.segments_up_to(session_id, incarnation, key)}
        with self._raw_majority.find(which, sort=[("_id", 1)]) as found:
            yield from found

    def sweep(
        self, sessions: str, holds: Holds, grace_seconds: float, failures: Failures, *, but: Sequence[SegmentId] = ()
    ) -> int:
        """Sweep as well segments that archivers have left when they died, and that nobody can commit any more.

        A message in them was edited since it was read.
        """
        orphans = Orphans(self.collection, grace_seconds)
        stale: list[SegmentId] = [*but]
        deleted = 0
        with self._majority().aggregate(sweeping.stale_segments(sessions), allowDiskUse=True) as found:
            for segment in found:
                stale.append(segment["_id"])
                with failures.of(segment["_id"]["session"]):
                    is_stale = partial(holds, segment["_id"]["session"], sweeping.outdates(segment))
                    # Its `edits` are in the filter: a segment that takes its place meanwhile is another one.
                    deleted += orphans.sweep_together(segment, is_stale, marked=True)
        return deleted + super().sweep(sessions, holds, grace_seconds, failures, but=stale)

    def _find(
        self,
        session_id: str,
        query: Document,
        projection: Mapping[str, Any],
        *,
        newest: bool = False,
        plain: bool = False,
    ) -> list[Document]:
        """Return segments, or only the newest one, as the projection yields them, decoded unless they are plain."""
        find = partial(self._raw.find, query, projection, sort=[("_id", -1 if newest else 1)], limit=int(newest))
        if plain:
            return [from_bson(document.raw) for document in find()]
        return self._blobs.decoded(find, f"session_id={session_id!r}: archived messages", session_id)


def _holding(session_id: str, incarnation: ObjectId, work: Rewrite) -> Document:
    """Return the filter of the segments that have a message that is meant to be replaced."""
    of_agent = segments.segments_up_to(session_id, incarnation, work.key)
    return {"_id": of_agent, "messages": {"$elemMatch": work.condition()}}


def _incomplete(
    session_id: str, incarnation: ObjectId, key: str, start: int, stop: int, found: int
) -> HistoryIncompleteError:
    """Return the error for messages, or feedbacks, of which only so many were found."""
    agent_id = None if key == FEEDBACKS else name_of(key)
    missing = max(1, stop - start - found)  # Or there are more than there should be, and it is not known which.
    return HistoryIncompleteError(
        session_id, agent_id, first=start, last=stop - 1, missing=missing, incarnation=incarnation
    )
