"""The search: one document per message with its text, in a collection beside the sessions: put, rewritten, found.

A text index on the sessions would be paid for by every append, so messages are copied here after their turn, by an
indexer: behind a turn, or at an operator's wish. Three commands index a batch: read messages from the session document
(or from a segment), put their search documents, and move the agent's ``indexed.count`` in the session document, by an
update that matches only where it still is what was read. Where an indexer dies in between, the next one begins where
``indexed.count`` stands.

What a redaction removes must not come back from an indexer that had read it before, however late that one's command
arrives. Three rules see to that, none of which needs an indexer to be alive:

- An indexer leaves a mark before it reads, or as it does: ``indexed`` in the session document, ``indexed`` in a
  segment. Whoever changes a message gets the mark with the answer to the change; without a mark nobody has read the
  old text.
- Whoever finds the mark puts the new text here itself, even where there is no search document yet.
- Every search document says at how many ``edits`` its text was read, and the server keeps the newer of two; a change
  wins ties, because a segment is changed a moment after ``edits``. So a late old text meets a newer document and is
  dropped.

A process that dies between changing a message and changing it here leaves ``rewrites`` ahead of ``indexed.rewrites`` in
the session document; the next indexer then goes through the conversation from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, cast

from bson import ObjectId
from pymongo import TEXT, IndexModel, UpdateOne
from pymongo.errors import BulkWriteError, OperationFailure

from .._model import limits
from .._model.documents import Document, search_document
from .._model.encoding import from_bson
from .._model.expiry import NOT_EXPIRED, expiry_of_new_related
from .._model.foreign import name_of
from .._model.keys import is_key
from .._model.shapes import IndexingProgress
from .._statements import searching, sweeping
from .._statements.rewrites import Rewrite, left_by_rewriting
from .._statements.searching import IndexingStanding, UnindexedMessages
from ..errors import HistoryIncompleteError, MongoDBSessionError, SessionNotFoundError
from .history import History
from .indexes import EXPIRY_INDEX, ensured, known_as
from .related_collection import RelatedCollection
from .sending import INDEX_NOT_FOUND, back_off, until_known
from .session_commands import SessionCommands
from .upkeep import Failures


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
        # No language: conversations are in many, and no word is too common to be looked for.
        wanted = [IndexModel([("text", TEXT)], default_language="none"), EXPIRY_INDEX]
        mine = known_as(self.collection, wanted)
        if again or mine not in ensured:
            self.collection.create_indexes(wanted)
            ensured.add(mine)

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
        for _ in range(limits.MAX_HIT_PAGES):
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
            hits += [hit for document in self._alive(found) if (hit := _hit(document))]
            if len(hits) >= limit or len(found) < page:
                break
            # Documents of sessions that are gone took the places of others.
            skipped, page = skipped + page, min(2 * page, max(limit, limits.MAX_HITS_AT_ONCE))
        return hits[:limit]

    def _alive(self, found: Sequence[Document]) -> list[Document]:
        """Return those search documents whose incarnation is not over."""
        ids = list({document["_id"]["session"] for document in found})
        query = {"_id": {"$in": ids}, "incarnation": {"$type": "objectId"}, "$expr": NOT_EXPIRED}
        sessions = self._commands.collection.find(query, {"incarnation": 1}) if ids else ()
        alive = {session["_id"]: session["incarnation"] for session in sessions}
        return [one for one in found if alive.get(one["_id"]["session"]) == one["_id"]["incarnation"]]


# --- indexing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IndexingTask:
    """Which messages to index: those of one conversation that are not in the search yet.

    Attributes:
        session_id: The session.
        incarnation: Which incarnation of it; nothing is done if that is over.
        key: The agent's key.
        at_least: The ``message_count`` that the agent is known to have.
        rebuild: Whether to go through all of its messages, whatever was done before.
        batches: How many batches of them at most; None: all.
    """

    session_id: str
    incarnation: ObjectId
    key: str
    at_least: int = 0
    rebuild: bool = False
    batches: int | None = None


class IndexingResult(NamedTuple):
    """What an indexer has done.

    Attributes:
        looked_at: How many messages it went through.
        complete: Whether there are no more.
    """

    looked_at: int
    complete: bool


class _Batch(NamedTuple):
    """Messages that were read to be indexed.

    Attributes:
        standing: How things stood when they were read.
        offset: That of the first of them.
        messages: Their text; None for what is no message.
        is_last: Whether none follows.
    """

    standing: UnindexedMessages
    offset: int
    messages: Sequence[Document | None]
    is_last: bool


class _IncarnationIsOverError(Exception):
    """There is nothing to index any more: the session, or the agent, is gone."""


@dataclass(eq=False)
class Indexer:
    """Brings the messages of the sessions of one collection into the search.

    Attributes:
        commands: About session documents.
        history: Sends those about segments.
        search: Sends those about search documents.
    """

    commands: SessionCommands
    history: History
    search: SearchIndex

    def index(self, task: IndexingTask) -> IndexingResult:
        """Index the messages of one conversation, batch by batch: read them, put them, say how far that is.

        Raises:
            HistoryIncompleteError: Archived messages are missing.
            MongoDBSessionError: It is not known how many messages are archived.
        """
        self.search.ensure_index()
        if task.rebuild:
            self._begin(task)
        looked_at = lost_races = batches = 0
        put: list[Document] = []
        while lost_races < limits.MAX_BEHIND_ATTEMPTS and (task.batches is None or batches < task.batches):
            try:
                batch = self._read(task)
            except _IncarnationIsOverError:
                # Whoever deleted the session may not have found what was put last. All else is the sweep's: a session
                # document may only be missing because a restore has yet to bring it.
                self.search.delete(put)
                return IndexingResult(looked_at, complete=True)
            if batch is not None:
                messages = _sound(batch.messages, batch.offset)
                put = self.search.put(task.session_id, task.key, messages, batch.standing)
                batches += 1
                stop = batch.offset + len(batch.messages)
                advanced = searching.indexed(task.session_id, task.key, batch.standing, stop)
                # If it does not match, somebody else has said so of some.
                if not batch.messages or self.commands.update(advanced):
                    looked_at += len(batch.messages)
                    if batch.is_last:
                        return IndexingResult(looked_at, complete=True)
                    continue
            back_off(lost_races)
            lost_races += 1
        return IndexingResult(looked_at, complete=False)

    def _begin(self, task: IndexingTask) -> None:
        """Mark the agent's messages as being indexed, from the first one on."""
        self.commands.update(searching.begin_indexing(task.session_id, task.incarnation, task.key))

    def _read(self, task: IndexingTask) -> _Batch | None:
        """Read the next batch; None where it has to be read again: it was not marked yet, or did not show all yet."""
        which = {"_id": task.session_id, "incarnation": task.incarnation}
        found = self.commands.find_raw(which, searching.unindexed_projection(task.key, limits.INDEXED_PER_BATCH))
        if found is None and not self.commands.is_over(task.session_id, task.incarnation):
            return None
        standing = cast(UnindexedMessages, {} if found is None else from_bson(found.raw))
        if "archived_count" not in standing:  # Not even an agent is there.
            raise _IncarnationIsOverError
        # What was written with w=1 may have yet to reach a majority.
        if standing["message_count"] < task.at_least:
            return None
        indexed = _well_formed(standing)
        if indexed is None or indexed["rewrites"] != standing["rewrites"]:
            # Nobody has begun; or somebody died between a rewrite and its search document: then all is gone through.
            self._begin(task)
            return None
        start, archived = indexed["count"], standing["archived_count"]
        if archived is None:
            raise MongoDBSessionError(
                f"session_id={task.session_id!r}, agent {task.key!r}: archived_count is no count",
                session_id=task.session_id,
                agent_id=name_of(task.key),
            )
        if start >= archived:
            embedded = standing["messages"]
            return _Batch(standing, start, embedded, is_last=len(embedded) < limits.INDEXED_PER_BATCH)
        try:
            messages = self.history.read_to_index(task.session_id, task.incarnation, task.key, start)
        except HistoryIncompleteError:
            if self.commands.is_over(task.session_id, task.incarnation):
                raise _IncarnationIsOverError from None
            raise
        return _Batch(standing, start, messages, is_last=False)

    def index_all(self, session_id: str | None = None, *, rebuild: bool = False) -> int:
        """Index what is not in the search yet, of one session or of all; return how many messages were looked at.

        Raises:
            SessionNotFoundError: There is no such session.
            MongoDBSessionError: Messages of single sessions could not be read; all others were looked at.
        """
        self.search.ensure_index(again=True)
        looked_at = sessions = 0
        failures = Failures()
        # Without an id that is a text, it is nobody's session.
        query: Document = {"_id": {"$type": "string"}, "$expr": NOT_EXPIRED}
        if session_id is not None:
            query["_id"] = session_id
        projection = searching.behind_projection()
        cursor = self.commands.collection.find(query, projection, batch_size=limits.SESSIONS_PER_BATCH)
        for found in cursor:
            sessions += 1
            agents = [agent for agent in found["agents"] if rebuild or agent["behind"]]
            incarnation: ObjectId | None = None
            for key in (agent["key"] for agent in agents):
                with failures.of(found["_id"]):
                    if not is_key(key):
                        raise MongoDBSessionError(
                            f"session_id={found['_id']!r}: {key!r} is no key of an agent", session_id=found["_id"]
                        )
                    incarnation = incarnation or self._adopted(found, agents)
                    if incarnation is not None:  # Otherwise it was deleted.
                        looked_at += self.index(IndexingTask(found["_id"], incarnation, key, rebuild=rebuild)).looked_at
        failures.tell("the search could not take in all messages")
        if session_id is not None and not sessions:
            raise SessionNotFoundError(f"session_id={session_id!r} does not exist", session_id=session_id)
        return looked_at

    def _adopted(self, found: Document, agents: Sequence[Document]) -> ObjectId | None:
        """Return the incarnation of a session; an older document is adopted first. None: the session is gone."""
        session_id, incarnation = found["_id"], found.get("incarnation")
        lacking = [agent["key"] for agent in agents if not agent["adopted"] and is_key(agent["key"])]
        if incarnation is None or lacking:
            self.commands.adopt(session_id, lacking)
            incarnation = (self.commands.find_one({"_id": session_id}, {"incarnation": 1}) or {}).get("incarnation")
        if incarnation is not None and not isinstance(incarnation, ObjectId):
            raise MongoDBSessionError(f"session_id={session_id!r}: incarnation is no ObjectId", session_id=session_id)
        return incarnation


# --- what was read --------------------------------------------------------------------------------------------------


def _hit(document: Document) -> MessageHit | None:
    """Return a search document as a hit; None if it is none that was written here."""
    texts: dict[str, Any] = {name: document.get(name) for name in ("session_id", "agent_id", "role", "text")}
    message_id, created_at = _message_id_of(document["_id"]["message"]), document.get("created_at")
    if message_id is None or not all(isinstance(text, str) for text in texts.values()):
        return None
    return MessageHit(
        message_id=message_id,
        created_at=created_at if isinstance(created_at, datetime) else None,
        score=document["score"],
        **texts,
    )


def _is_count(stored: Any) -> bool:
    """Return whether a stored value is a whole number that can be a count or an id."""
    return isinstance(stored, int) and not isinstance(stored, bool) and 0 <= stored <= limits.INT64_MAX


def _message_id_of(stored: Any) -> int | None:
    """Return a stored ``message_id``, which a shell may have written as floating point; None for what is none."""
    if isinstance(stored, float) and stored.is_integer():
        stored = int(stored)
    return stored if _is_count(stored) else None


def _well_formed(standing: UnindexedMessages) -> IndexingProgress | None:
    """Return what an agent's record says of the search, or None if it says nothing that was written here."""
    indexed = standing.get("indexed")
    if not isinstance(indexed, dict) or not (_is_count(indexed.get("count")) and _is_count(indexed.get("rewrites"))):
        return None
    return indexed if indexed["count"] <= standing["total"] else None


def _sound(messages: Iterable[Document | None], offset: int) -> Iterator[Document]:
    """Yield messages with their ``message_id``, the first of which has this offset.

    One that another program has spoilt is left out: what is no message, has an id that is none, or a role that is none.
    """
    for index, message in enumerate(messages, offset):
        if message is None or not isinstance(message.get("role", ""), str):
            continue
        message_id = _message_id_of(message.get("message_id", index))
        if message_id is not None:
            yield {**message, "message_id": message_id}
