"""The older part of conversations: segments in a collection beside the sessions. Sends commands about those only.

A segment holds the messages that follow one another from a position on, exactly as they were embedded. It is inserted
once and never replaced; it counts as soon as the session document says so (``archived_count``). Positions count
messages; a ``message_id`` may be higher, where the ids that were given to a repository have gaps.

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
from .._model.foreign import name_of
from .._model.limits import INT64_MAX
from .._statements import feedback as feedback_statements
from .._statements import related_expiry, rewrites, searching, session_listing, sweeping, totals
from .._statements import segments as segments_statements
from .._statements.rewrites import Rewrite
from ..errors import BlobMissingError, HistoryIncompleteError
from .indexes import EXPIRY_INDEX, ensure_indexes
from .reading import Reader
from .related_collection import Holds, RelatedCollection
from .sending import attempts, is_there, until_known
from .upkeep import Failures, Orphans


class History(RelatedCollection):
    """The segments of the sessions of one collection.

    Args:
        sessions: The collection of the session documents.
        reader: Decodes what is read.
    """

    number = "first"

    def __init__(self, sessions: Collection[Document], reader: Reader) -> None:
        self.collection: Collection[Document] = sessions.database.get_collection(
            f"{sessions.name}_history",
            codec_options=sessions.codec_options,
            read_preference=sessions.read_preference,
        )
        self._raw: Collection[RawBSONDocument] = self.collection.with_options(
            codec_options=sessions.codec_options.with_options(document_class=RawBSONDocument)
        )
        self._raw_majority = self._raw.with_options(read_preference=Primary(), read_concern=ReadConcern("majority"))
        self._reader = reader

    def read(self, session_id: str, incarnation: ObjectId, key: str, start: int, stop: int) -> list[Document]:
        """Return the messages from position ``start`` up to ``stop``, decoded; reads only the segments they are in.

        Raises:
            HistoryIncompleteError: They are not all there; perhaps the session was deleted meanwhile.
        """

        def where(first: int) -> Document:
            return segments_statements.segment_id(session_id, incarnation, key, first)

        page = segments_statements.segment_page_projection(start, stop)
        plain = key == feedback_statements.FEEDBACKS
        begin, rest = {"$gte": where(0), "$lte": where(start)}, {"$gt": where(start), "$lt": where(stop)}
        segments = self._find({"_id": begin}, page, newest_first=True, limit=1, plain=plain)
        if segments and segments[0]["_id"]["first"] + segments[0]["count"] < stop:
            segments += self._find({"_id": rest}, page, plain=plain)
        messages = [message for segment in segments for message in segment["messages"]]
        if len(messages) != stop - start:
            raise _incomplete(session_id, incarnation, key, start, stop, len(messages))
        return messages

    def ratings(self, session_id: str, incarnation: ObjectId, stop: int, agent_id: str | None) -> list[Any]:
        """Return the ratings of the archived feedbacks, up to position ``stop``; None for one without.

        Args:
            session_id: The session.
            incarnation: Its incarnation.
            stop: How many feedbacks are archived.
            agent_id: Only those of feedbacks that name this agent; None for all.

        Raises:
            HistoryIncompleteError: They are not all there; perhaps the session was deleted meanwhile.
        """
        begin, end = (
            segments_statements.segment_id(session_id, incarnation, feedback_statements.FEEDBACKS, first)
            for first in (0, stop)
        )
        projection = totals.segment_ratings_projection(agent_id)
        segments = self._find({"_id": {"$gte": begin, "$lt": end}}, projection, plain=True)
        found = sum(segment["count"] for segment in segments)
        if found != stop:
            raise _incomplete(session_id, incarnation, feedback_statements.FEEDBACKS, 0, stop, found)
        return [rating for segment in segments for rating in segment["ratings"]]

    def read_message(self, session_id: str, incarnation: ObjectId, key: str, message_id: int) -> Document | None:
        """Return one message, decoded, or None if no segment has it."""
        for segment in self._covering(session_id, incarnation, key, message_id):
            found = self._find({"_id": segment}, segments_statements.segment_message_projection(message_id))
            if found and found[0]["messages"]:
                message: Document = found[0]["messages"][0]
                return message
        return None

    def has(self, session_id: str, incarnation: ObjectId, work: Rewrite) -> bool:
        """Return whether a segment has a message that is meant to be replaced."""
        return self.collection.find_one(_holding(session_id, incarnation, work), {"_id": 1}) is not None

    def rewrite(
        self, session_id: str, incarnation: ObjectId, work: Rewrite, edit: int, moment: datetime
    ) -> tuple[list[Document], bool]:
        """Replace parts of messages in the segments that have them, committed or not: all are looked at.

        Args:
            session_id: The session.
            incarnation: Its incarnation.
            work: What is replaced, of which messages.
            edit: The number of this change among all of the agent's; a message that has a higher one is left alone.
            moment: Their new ``updated_at``.

        Returns:
            The messages that it replaced parts of, as they were stored, and whether an indexer has read one of them.
        """
        found: list[Document] = []
        indexed = False
        held = {"messages": work.found_in("$messages")}
        for segment in list(self.collection.find(_holding(session_id, incarnation, work), held)):
            message_ids = [message["message_id"] for message in segment["messages"]]
            update = rewrites.rewrite_in_segment(segment["_id"], work, message_ids, edit, moment)
            options: Any = {"array_filters": update.array_filters}
            until_known(partial(self.collection.update_one, update.filter, update.update, **options))
            found += segment["messages"]
            # Asked behind the change: an indexer leaves its mark before it reads.
            mark = self.collection.find_one({"_id": segment["_id"]}, {"indexed": 1})
            indexed = indexed or "indexed" in (mark or {})
        return found, indexed

    def has_feedback(self, session_id: str, incarnation: ObjectId, feedback: Document) -> bool:
        """Return whether a segment has this very feedback, which its ``commit_id`` tells."""
        which = _segments_of(session_id, incarnation, feedback_statements.FEEDBACKS)
        which["messages.commit_id"] = feedback["commit_id"]
        return self.collection.find_one(which, {"_id": 1}) is not None

    def read_to_index(self, session_id: str, incarnation: ObjectId, key: str, position: int) -> list[Document]:
        """Return the text of the messages from a position to the end of the segment that has it, and mark the segment.

        The mark comes before what is returned was read: whoever changes a message in it later knows that the old text
        may be in the search.

        Raises:
            HistoryIncompleteError: No segment has it.
        """
        low, high = (segments_statements.segment_id(session_id, incarnation, key, first) for first in (0, position))
        which: Document = {"_id": {"$gte": low, "$lte": high}}
        projection = {**searching.unindexed_in_segment_projection(position), "indexed": 1}
        for _ in attempts(f"session_id={session_id!r}: a segment could not be read"):
            found = self.collection.find_one(which, projection, sort=[("_id", -1)])
            if found is None or not found["messages"]:
                break
            if "indexed" in found:
                messages: list[Document] = found["messages"]
                return messages
            which = {"_id": found["_id"]}
            until_known(partial(self.collection.update_one, which, {"$set": {"indexed": True}}))
        raise _incomplete(session_id, incarnation, key, position, position + 1, 0)

    def first_user_texts(self, segments: Sequence[Document]) -> dict[str, Any]:
        """Return the first user text of each of these segments, by session id, cut, as it is stored: one command.

        Args:
            segments: Their ``_id``, one for each session.
        """
        if not segments:
            return {}
        found = self.collection.find({"_id": {"$in": list(segments)}}, session_listing.SEGMENT_PROJECTION)
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

    def standing(self, segment_id: Document, expires_at: datetime | None) -> Document | None:
        """Return ``{count, edits}`` of a segment, or None if there is none; it expires no sooner than this."""
        if expires_at is not None:
            until_known(lambda: self.collection.update_one({"_id": segment_id}, related_expiry.keep_until(expires_at)))
        return self.collection.find_one({"_id": segment_id}, {"_id": 0, "count": 1, "edits": 1})

    def let_expire(self, session_id: str, incarnation: ObjectId, until: datetime) -> bool:
        """Give an expiry to those segments of an incarnation that have none; return whether there was one."""
        there_were = super().let_expire(session_id, incarnation, until)
        if there_were:
            ensure_indexes(self.collection, [EXPIRY_INDEX])
        return there_were

    def delete(self, segment_ids: Sequence[Document]) -> None:
        """Delete segments that the caller has inserted and nobody has committed."""
        until_known(lambda: self.collection.delete_many({"_id": {"$in": list(segment_ids)}}))

    def delete_stale(self, segment_id: Document, edits: int) -> None:
        """Delete a segment that was read at this many edits and can never be committed any more."""
        self.collection.delete_one({"_id": segment_id, "edits": edits})

    def _covering(self, session_id: str, incarnation: ObjectId, key: str, message_id: int) -> Iterator[Document]:
        """Yield the ``_id`` of the segment whose messages reach over this id."""
        # No message stands at a position above its id, and where ids have no gaps, none below it. With gaps: halve.
        low = 0
        high = position = message_id
        while low <= high:
            begin, end = (
                segments_statements.segment_id(session_id, incarnation, key, first) for first in (0, position)
            )
            which = {"_id": {"$gte": begin, "$lte": end}}
            found = self._find(which, segments_statements.segment_bounds(), newest_first=True, limit=1)
            if not found or (last_id := found[0].get("last_id", -1)) < message_id:
                low = position + 1
            elif found[0].get("first_id", -1) <= message_id <= last_id:
                yield found[0]["_id"]
                return
            else:
                high = found[0]["_id"]["first"] - 1
            position = (low + high) // 2

    def raw_segments_covering(
        self, session_id: str, incarnation: ObjectId, key: str, message_id: int
    ) -> Iterator[RawBSONDocument]:
        """Yield the segment whose messages reach over this id, as it is stored."""
        for segment_id in self._covering(session_id, incarnation, key, message_id):
            if (segment := self._raw_majority.find_one({"_id": segment_id})) is not None:
                yield segment

    def raw_segments(self, session_id: str, incarnation: ObjectId, key: str) -> Iterator[RawBSONDocument]:
        """Yield all segments of an agent as they are stored."""
        which = _segments_of(session_id, incarnation, key)
        with self._raw_majority.find(which, sort=[("_id", 1)]) as found:
            yield from found

    def sweep(
        self, sessions: str, holds: Holds, grace_seconds: float, failures: Failures, *, but: Sequence[Document] = ()
    ) -> int:
        """Delete, besides, what archivers that died have left and nobody can commit any more.

        A message was edited since.
        """
        orphans = Orphans(self.collection, grace_seconds)
        stale: list[Document] = [*but]
        deleted = 0
        with self._majority().aggregate(sweeping.stale_segments(sessions), allowDiskUse=True) as found:
            for segment in found:
                stale.append(segment["_id"])
                with failures.of(segment["_id"]["session"]):
                    deleted += self._sweep_stale(orphans, holds, segment)
        return deleted + super().sweep(sessions, holds, grace_seconds, failures, but=stale)

    @staticmethod
    def _sweep_stale(orphans: Orphans, holds: Holds, segment: Document) -> int:
        outdates = sweeping.outdates(segment["_id"], segment["edits"])
        return orphans.settle_all(segment, lambda: holds(segment["_id"]["session"], outdates), marked=True)

    def _find(
        self,
        query: Document,
        projection: Mapping[str, Any] | None = None,
        *,
        newest_first: bool = False,
        limit: int = 0,
        plain: bool = False,
    ) -> list[Document]:
        decode = self._reader.plain if plain else self._reader.decode
        missing: ObjectId | None = None
        for _ in attempts("archived messages could not be read"):
            found = self._raw.find(query, projection, sort=[("_id", -1 if newest_first else 1)], limit=limit)
            try:
                return [decode(document) for document in found]
            except BlobMissingError as error:
                if error.file_id == missing:
                    raise
                missing = error.file_id  # Perhaps it was redacted or deleted since it was read: then not again.
        raise AssertionError  # `attempts` never ends without an error.


def _segments_of(session_id: str, incarnation: ObjectId, key: str) -> Document:
    """Return the filter of all segments of an agent, or of the feedbacks."""
    low, high = (segments_statements.segment_id(session_id, incarnation, key, first) for first in (0, INT64_MAX))
    return {"_id": {"$gte": low, "$lte": high}}


def _holding(session_id: str, incarnation: ObjectId, work: Rewrite) -> Document:
    """Return the filter of the segments that have a message that is meant to be replaced."""
    return {**_segments_of(session_id, incarnation, work.key), "messages": {"$elemMatch": work.condition()}}


def _incomplete(
    session_id: str, incarnation: ObjectId, key: str, start: int, stop: int, found: int
) -> HistoryIncompleteError:
    """Return the error for messages, or feedbacks, of which only so many were found."""
    agent_id = None if key == feedback_statements.FEEDBACKS else name_of(key)
    missing = max(1, stop - start - found)  # Or there are more than there should be, and it is not known which.
    return HistoryIncompleteError(
        session_id, agent_id, first=start, last=stop - 1, missing=missing, incarnation=incarnation
    )
