"""The search: one document per message with its text, in a collection beside the sessions: put, rewritten, found.

A text index on the sessions would be paid for by every append, so messages are copied here after their turn, by an
indexer (``indexing.py``).

What a redaction removes must not come back from an indexer that had read it before, however late that one's command
arrives. Three rules see to that, none of which needs an indexer to be alive:

- An indexer leaves a mark before it reads. Whoever changes a message gets the mark with the answer to the change;
  without a mark nobody has read the old text.
- Whoever finds the mark puts the new text here itself, even where there is no search document yet.
- Every search document says at how many ``edits`` its text was read, and the server keeps the newer of two; a change
  wins ties, because a segment is changed a moment after ``edits``. So a late old text meets a newer document and is
  dropped.

A process that dies between changing a message and changing it here leaves ``rewrites`` ahead of ``indexed.rewrites`` in
the session document; the next indexer then goes through the conversation from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bson import ObjectId
from pymongo import TEXT, IndexModel, UpdateOne
from pymongo.errors import BulkWriteError, OperationFailure

from .._model.documents import Document, search_document
from .._model.expiry import NOT_EXPIRED, expiry_of_new_related
from .._model.limits import INT64_MAX, MAX_HIT_PAGES, MAX_HITS_AT_ONCE
from .._statements import searching, sweeping
from .._statements.rewrites import Rewrite, left_by_rewriting
from .._statements.searching import IndexingStanding
from ..errors import MongoDBSessionError
from .indexes import EXPIRY_INDEX
from .related_collection import RelatedCollection
from .sending import INDEX_NOT_FOUND, until_known
from .session_commands import SessionCommands


@dataclass(frozen=True)
class MessageHit:
    """A message that a search has found.

    Attributes:
        session_id: Its session.
        agent_id: The agent in whose conversation it stands.
        message_id: Its zero-based index there.
        role: ``"user"`` or ``"assistant"``.
        text: Its text blocks, one per line, at most 32 KB of them.
        created_at: When it was said, in UTC; None for a message of an older document that does not tell.
        score: How well it fits, as MongoDB scores it; higher is better.
    """

    session_id: str
    agent_id: str
    message_id: int
    role: str
    text: str
    created_at: datetime | None
    score: float


class SearchIndex(RelatedCollection):
    """The search documents of the sessions of one collection.

    Args:
        commands: About session documents.
    """

    number = "message"

    def __init__(self, commands: SessionCommands) -> None:
        super().__init__(commands.writes, "search")
        self._commands = commands

    def ensure_index(self, *, again: bool = False) -> None:
        """Create the text index, once per process and collection; perhaps again, in case that was dropped."""
        mine = frozenset(self._commands.client.topology_description.server_descriptions()), self.collection.full_name
        if mine in _ensured and not again:
            return
        # No language: conversations are in many, and no word is too common to be looked for.
        self.collection.create_indexes([IndexModel([("text", TEXT)], default_language="none"), EXPIRY_INDEX])
        _ensured.add(mine)

    # --- search documents -------------------------------------------------------------------------------------------

    def rewrite(self, session_id: str, work: Rewrite, replaced: Iterable[Document], standing: IndexingStanding) -> None:
        """Let messages be found by what they say now, and by nothing that they said before.

        Args:
            session_id: The session.
            work: What was replaced.
            replaced: The messages as they were stored before.
            standing: How things stood right before.
        """
        # A message that was embedded and in a segment at once is put once.
        left = left_by_rewriting(replaced, work.body)
        messages = {message["message_id"]: {**message, **work.body} for message in left}
        now: IndexingStanding = {**standing, "edits": standing["edits"] + 1}
        self.put(session_id, work.key, messages.values(), now, wins_ties=True)
        rewrites = standing["rewrites"] + 1
        self._commands.update(searching.rewrite_indexed(session_id, standing["incarnation"], work.key, rewrites))

    def put(
        self,
        session_id: str,
        key: str,
        messages: Iterable[Document],
        standing: IndexingStanding,
        *,
        wins_ties: bool = False,
    ) -> list[Document]:
        """Upsert the search documents of messages, in one command: the only place where any is written.

        Args:
            session_id: The session.
            key: The agent's key.
            messages: The messages, or only their text; each with its ``message_id``.
            standing: How things stood when they were read.
            wins_ties: Whether they replace documents with as many ``edits``.

        Returns:
            The search documents.
        """
        documents, operations = [], []
        for message in messages:
            document = search_document(session_id, standing["incarnation"], key, message, standing["edits"])
            if "application_name" in standing:
                document["application_name"] = standing["application_name"]
            if (expires_at := expiry_of_new_related(standing)) is not None:
                document["expires_at"] = expires_at
            put = searching.put_search_document(document, wins_ties=wins_ties)
            # A message without text needs a document only where there is one that says something else.
            operations.append(UpdateOne(put.filter, put.update, upsert=wins_ties or bool(document["text"])))
            documents.append(document)
        if operations:
            # One that has lost the race for its _id is tried again by the server, and then meets what is there.
            try:
                until_known(lambda: self.collection.bulk_write(operations, ordered=False))
            except BulkWriteError as error:
                # Its own text repeats the message, and goes into logs.
                details = error.details.get("writeErrors") or error.details.get("writeConcernErrors") or [{}]
                raise OperationFailure(f"{self.collection.full_name}: not written", details[0].get("code")) from None
        return documents

    def delete(self, documents: Sequence[Document]) -> None:
        """Delete search documents."""
        if documents:
            ids = [document["_id"] for document in documents]
            until_known(lambda: self.collection.delete_many({"_id": {"$in": ids}}))

    # --- searching --------------------------------------------------------------------------------------------------

    def search(self, text: str, limit: int, conditions: Mapping[str, str]) -> list[MessageHit]:
        """Return the messages of live sessions that fit best; arguments as for the repository's method.

        Raises:
            MongoDBSessionError: Nothing has ever been indexed here.
        """
        # What somebody else has put there says of no session.
        query = {"$text": {"$search": text}, "$expr": sweeping.says_whose("$_id", self.number), **conditions}
        score = {"$meta": "textScore"}
        wanted = {"score": score, **dict.fromkeys(("session_id", "agent_id", "role", "text", "created_at"), 1)}
        hits: list[MessageHit] = []
        skipped, page = 0, limit
        for _ in range(MAX_HIT_PAGES):
            cursor = self.collection.find(query, wanted, skip=skipped, limit=page, allow_disk_use=True)
            try:
                found = list(cursor.sort([("score", score), ("_id", 1)]))
            except OperationFailure as error:
                if error.code != INDEX_NOT_FOUND:
                    raise
                raise MongoDBSessionError(
                    f"{self.collection.full_name} has no text index: nothing was indexed. Make managers with "
                    "index_messages=True, and call the repository's index_messages() for what there is already",
                    session_id=conditions.get("session_id"),
                ) from error
            alive = self._alive(found)
            hits += [hit for document in found if _incarnation_of(document) in alive and (hit := _hit(document))]
            if len(hits) >= limit or len(found) < page:
                break
            # Documents of sessions that are gone took the places of others.
            skipped, page = skipped + page, min(2 * page, max(limit, MAX_HITS_AT_ONCE))
        return hits[:limit]

    def _alive(self, found: Sequence[Document]) -> set[tuple[str, ObjectId]]:
        """Return which incarnations are not over, of those that the documents belong to."""
        ids = list({document["_id"]["session"] for document in found})
        query = {"_id": {"$in": ids}, "incarnation": {"$type": "objectId"}, "$expr": NOT_EXPIRED}
        sessions = self._commands.collection.find(query, {"incarnation": 1}) if ids else ()
        alive = ((session["_id"], session["incarnation"]) for session in sessions)
        # An array with an ObjectId in it matches as well.
        return {(session_id, incarnation) for session_id, incarnation in alive if isinstance(incarnation, ObjectId)}


def _incarnation_of(document: Document) -> tuple[str, ObjectId]:
    return document["_id"]["session"], document["_id"]["incarnation"]


def _hit(document: Document) -> MessageHit | None:
    """Return a search document as a hit; None if it is none that was written here."""
    texts: dict[str, Any] = {name: document.get(name) for name in ("session_id", "agent_id", "role", "text")}
    message_id, created_at = message_id_of(document["_id"]["message"]), document.get("created_at")
    if message_id is None or not all(isinstance(text, str) for text in texts.values()):
        return None
    return MessageHit(
        message_id=message_id,
        created_at=created_at if isinstance(created_at, datetime) else None,
        score=document["score"],
        **texts,
    )


def is_count(stored: Any) -> bool:
    """Return whether a stored value is a whole number that can be a count or an id."""
    return isinstance(stored, int) and not isinstance(stored, bool) and 0 <= stored <= INT64_MAX


def message_id_of(stored: Any) -> int | None:
    """Return a stored ``message_id``, which a shell may have written as floating point; None for what is none."""
    if isinstance(stored, float) and stored.is_integer():
        stored = int(stored)
    return stored if is_count(stored) else None


_ensured: set[tuple[frozenset[Any], str]] = set()
