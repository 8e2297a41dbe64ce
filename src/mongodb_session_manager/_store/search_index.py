"""The search: one document per message with its text, in a collection beside the sessions, and who keeps it right.

A text index on the sessions would be paid for by every append, so messages are copied here after their turn, by a
indexer. Three commands feed a batch: read it from the session document (or a segment), upsert its search documents, and
move the agent's ``indexed.count`` in the session document, by an update that matches only where it still is what was
read. An indexer that dies in between is followed by another, which begins where ``indexed.count`` stands.

What a redaction removes must not come back from an indexer that had read it before, however late that one's command
arrives. Three rules see to that, none of which needs an indexer to be alive:

- An indexer leaves a mark before, or as, it reads: ``indexed`` in the session document, ``indexed`` in a segment.
  Whoever changes a message gets the mark with the answer to the change; without one nobody has read the old text.
- Who finds the mark puts the new text here himself, even where no document is yet.
- Every document says at how many ``edits`` its text was read, and the server keeps the newer of two; a change wins
  ties, because a segment is changed a moment after ``edits``. So a late old text meets a newer document and is dropped.

A process that dies between changing a message and changing it here leaves ``rewrites`` ahead of ``indexed.rewrites`` in
the session document; the next indexer then goes through the conversation from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bson import ObjectId
from pymongo import TEXT, IndexModel, UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, OperationFailure

from .._model.documents import Document, search_document
from .._model.expiry import NOT_EXPIRED, expiry_of_new_related
from .._model.keys import is_key
from .._model.limits import (
    INDEXED_PER_BATCH,
    INT64_MAX,
    MAX_BEHIND_ATTEMPTS,
    MAX_HIT_PAGES,
    MAX_HITS_AT_ONCE,
    SESSIONS_PER_BATCH,
)
from .._statements import rewrites as rewrites_statements
from .._statements import searching, sweeping
from ..errors import HistoryIncompleteError, MongoDBSessionError, SessionNotFoundError
from .history import History
from .indexes import EXPIRY_INDEX
from .reading import Reader
from .related_collection import RelatedCollection
from .sending import back_off, until_known
from .server_codes import INDEX_NOT_FOUND
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


@dataclass
class IndexingTask:
    """Which messages are to be found that cannot be yet.

    Attributes:
        session_id: The session.
        incarnation: Which incarnation of it; nothing is done if that is over.
        key: The agent's key.
        at_least: The ``message_count`` that the agent is known to have.
        rebuild: Whether to go through all of its messages, whatever was done before.
        batches: How many batches of them at most; None: all.
        complete: Set when there are no more.
    """

    session_id: str
    incarnation: ObjectId
    key: str
    at_least: int = 0
    rebuild: bool = False
    batches: int | None = None
    complete: bool = False


class SearchIndex(RelatedCollection):
    """The searchable messages of the sessions of one collection.

    Args:
        commands: About session documents.
        history: Sends those about segments.
        sessions: The collection of the session documents.
        reader: Decodes what is read.
    """

    number = "message"

    def __init__(
        self, commands: SessionCommands, history: History, sessions: Collection[Document], reader: Reader
    ) -> None:
        self.collection: Collection[Document] = sessions.database.get_collection(
            f"{sessions.name}_search",
            codec_options=sessions.codec_options,
            read_preference=sessions.read_preference,
        )
        self._commands = commands
        self._history = history
        self._reader = reader

    def ensure_index(self, *, again: bool = False) -> None:
        """Create the text index, once per process and collection; perhaps again, in case that was dropped."""
        mine = frozenset(self._commands.client.topology_description.server_descriptions()), self.collection.full_name
        if mine in _ensured and not again:
            return
        # No language: conversations are in many, and no word is too common to be looked for.
        self.collection.create_indexes([IndexModel([("text", TEXT)], default_language="none"), EXPIRY_INDEX])
        _ensured.add(mine)

    # --- feeding ----------------------------------------------------------------------------------------------------

    def index(self, task: IndexingTask) -> int:
        """Let an agent's messages be found that cannot be yet; return how many were looked at."""
        session_id, incarnation, key = task.session_id, task.incarnation, task.key
        self.ensure_index()
        if task.rebuild:
            self._commands.update(searching.begin_indexing(session_id, incarnation, key))
        looked_at = lost_races = batches = 0
        put: list[Document] = []
        while lost_races < MAX_BEHIND_ATTEMPTS and (task.batches is None or batches < task.batches):
            standing = self._standing(session_id, incarnation, key)
            if standing is None:
                self._take_back(put)
                task.complete = True
                return looked_at
            indexed = _well_formed(standing)
            # What was written with w=1 may have yet to reach a majority.
            settled = standing.get("message_count", -1) >= task.at_least
            if not settled or indexed is None or indexed["rewrites"] != standing["rewrites"]:
                if settled:
                    self._commands.update(searching.begin_indexing(session_id, incarnation, key))
                back_off(lost_races)
                lost_races += 1
                continue
            if standing["archived_count"] is None:
                raise MongoDBSessionError(f"session_id={session_id!r}, agent {key!r}: archived_count is no count")
            start, archived = int(indexed["count"]), int(standing["archived_count"])
            try:
                messages = self._messages(session_id, incarnation, key, start, standing)
            except HistoryIncompleteError:
                if self._commands.is_over(session_id, incarnation):
                    self._take_back(put)
                    task.complete = True
                    return looked_at
                raise
            put = [
                self._document(session_id, key, message["message_id"], message, standing)
                for message in _sound(messages, start)
            ]
            self._put(put)
            batches += 1
            stop = start + len(messages)
            if stop == start or self._commands.update(searching.indexed(session_id, key, standing, stop)):
                looked_at += len(messages)
                if start >= archived and len(messages) < INDEXED_PER_BATCH:
                    task.complete = True
                    return looked_at
            else:
                back_off(lost_races)
                lost_races += 1
        return looked_at

    def index_all(self, session_id: str | None = None, *, rebuild: bool = False) -> int:
        """IndexingTask what is behind, of one session or of all; return how many messages were looked at.

        Raises:
            SessionNotFoundError: There is no such session.
            MongoDBSessionError: Messages of single sessions could not be read; all others were looked_at.
        """
        self.ensure_index(again=True)
        looked_at = sessions = 0
        failures = Failures()
        # Without an id that is a text, it is nobody's session.
        query: Document = {"_id": {"$type": "string"}, "$expr": NOT_EXPIRED}
        if session_id is not None:
            query["_id"] = session_id
        for found in self._commands.collection.find(
            query, searching.behind_projection(), batch_size=SESSIONS_PER_BATCH
        ):
            sessions += 1
            agents = [agent for agent in found["agents"] if rebuild or agent["behind"]]
            incarnation: ObjectId | None = None
            for agent in agents:
                with failures.of(found["_id"]):
                    key = _addressable(found["_id"], agent["key"])
                    incarnation = incarnation or self._adopted(found, agents)
                    if incarnation is not None:  # Otherwise it was deleted.
                        looked_at += self.index(IndexingTask(found["_id"], incarnation, key, rebuild=rebuild))
        failures.tell("the search could not take in all messages")
        if session_id is not None and not sessions:
            raise SessionNotFoundError(f"session_id={session_id!r} does not exist")
        return looked_at

    def _adopted(self, found: Document, agents: Sequence[Document]) -> ObjectId | None:
        """Return which incarnation of a session it is; give an older document what it lacks first. None: it is gone."""
        session_id, incarnation = found["_id"], found.get("incarnation")
        lacking = [agent["key"] for agent in agents if not agent["adopted"] and is_key(agent["key"])]
        if incarnation is None or lacking:
            self._commands.adopt(session_id, lacking)
            incarnation = (self._commands.find_one({"_id": session_id}, {"incarnation": 1}) or {}).get("incarnation")
        if incarnation is not None and not isinstance(incarnation, ObjectId):
            raise MongoDBSessionError(f"session_id={session_id!r}: incarnation is no ObjectId")
        return incarnation

    def _standing(self, session_id: str, incarnation: ObjectId, key: str) -> Document | None:
        """Return how things stand, ``{}`` if that is not settled yet, None if the session or the agent is gone."""
        projection = searching.unindexed_projection(key, INDEXED_PER_BATCH)
        found = self._commands.find_raw({"_id": session_id, "incarnation": incarnation}, projection)
        if found is None:
            return None if self._commands.is_over(session_id, incarnation) else {}
        standing = self._reader.plain(found)
        return standing if "archived_count" in standing else None

    def _messages(
        self, session_id: str, incarnation: ObjectId, key: str, start: int, standing: Document
    ) -> Sequence[Document]:
        if start < standing["archived_count"]:
            return self._history.read_to_index(session_id, incarnation, key, start)
        messages: list[Document] = standing["messages"]
        return messages

    def _take_back(self, put: Sequence[Document]) -> None:
        """Delete what was put last, of an incarnation that is over: whoever deleted the session may not have found it.

        All else is the sweep's: a session document may only be missing because a restore has yet to bring it.
        """
        if put:
            ids = [document["_id"] for document in put]
            until_known(lambda: self.collection.delete_many({"_id": {"$in": ids}}))

    # --- changes ----------------------------------------------------------------------------------------------------

    def rewrite(
        self,
        session_id: str,
        key: str,
        replaced: Iterable[Document],
        body: Mapping[str, Any],
        standing: Mapping[str, Any],
    ) -> None:
        """Let messages be found by what they say now, and by nothing that they said before.

        Args:
            session_id: The session.
            key: The agent's key.
            replaced: The messages as they were stored.
            body: What was replaced in each of them.
            standing: How things stood right before, as ``searching.indexing_standing`` projects it.
        """
        now = {**standing, "edits": standing["edits"] + 1}
        documents = {
            message["message_id"]: self._document(session_id, key, message["message_id"], {**left, **body}, now)
            for message, left in zip(replaced, rewrites_statements.left_by_rewriting(replaced, body), strict=True)
        }
        self._put(documents.values(), wins_ties=True)
        rewrites = standing["rewrites"] + 1
        self._commands.update(searching.rewrite_indexed(session_id, standing["incarnation"], key, rewrites))

    def _document(
        self, session_id: str, key: str, message_id: int, message: Mapping[str, Any], standing: Mapping[str, Any]
    ) -> Document:
        document = search_document(
            session_id, standing["incarnation"], key, message_id, message, int(standing["edits"])
        )
        if "application_name" in standing:
            document["application_name"] = standing["application_name"]
        if (expires_at := expiry_of_new_related(standing)) is not None:
            document["expires_at"] = expires_at
        return document

    def _put(self, documents: Iterable[Document], *, wins_ties: bool = False) -> None:
        """Upsert search documents, in one command: the only place where any is written."""
        puts = [(document, searching.put_search_document(document, wins_ties=wins_ties)) for document in documents]
        # A message without text needs a document only where there is one that says something else.
        operations = [
            UpdateOne(put.filter, put.update, upsert=wins_ties or bool(document["text"])) for document, put in puts
        ]
        if operations:
            # One that has lost the race for its _id is tried again by the server, and then meets what is there.
            try:
                until_known(lambda: self.collection.bulk_write(operations, ordered=False))
            except BulkWriteError as error:
                # Its own text repeats the message, and goes into logs.
                details = error.details.get("writeErrors") or error.details.get("writeConcernErrors") or [{}]
                raise OperationFailure(f"{self.collection.full_name}: not written", details[0].get("code")) from None

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
            try:
                found = list(
                    self.collection.find(query, wanted)
                    .sort([("score", score), ("_id", 1)])
                    .skip(skipped)
                    .limit(page)
                    .allow_disk_use(True)
                )
            except OperationFailure as error:
                if error.code != INDEX_NOT_FOUND:
                    raise
                raise MongoDBSessionError(
                    f"{self.collection.full_name} has no text index: nothing was indexed. Make managers with "
                    "index_messages=True, and call the repository's index_messages() for what there is already"
                ) from error
            alive = self._alive(found)
            hits += [_hit(document) for document in found if _life(document) in alive and not _is_spoilt(document)]
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
        return {
            (session["_id"], session["incarnation"])
            for session in sessions
            if isinstance(session["incarnation"], ObjectId)
        }


def _life(document: Document) -> tuple[str, ObjectId]:
    return document["_id"]["session"], document["_id"]["incarnation"]


def _well_formed(standing: Document) -> Document | None:
    """Return what an agent's record says of the search, or None if it says nothing that was written here."""
    indexed = standing.get("indexed")
    if not isinstance(indexed, dict) or not all(_is_count(indexed.get(name)) for name in ("count", "rewrites")):
        return None
    return indexed if indexed["count"] <= standing["total"] else None


def _is_count(stored: Any) -> bool:
    return isinstance(stored, int) and not isinstance(stored, bool) and 0 <= stored <= INT64_MAX


def _sound(messages: Iterable[Document | None], start: int) -> Iterator[Document]:
    """Yield messages with their ``message_id``, from this position of a conversation on.

    One that somebody has spoilt is left out: what is none, or is not found by its id, or was said by nobody.
    """
    for position, message in enumerate(messages, start):
        if message is None or not isinstance(message.get("role", ""), str):
            continue
        message_id = _message_id(message.get("message_id", position))
        if message_id is not None:
            yield {**message, "message_id": message_id}


def _message_id(stored: Any) -> int | None:
    """Return a stored ``message_id``, which a shell may have written as floating point; None for what is none."""
    if isinstance(stored, float) and stored.is_integer():
        stored = int(stored)
    return stored if _is_count(stored) else None


def _addressable(session_id: str, key: str) -> str:
    """Return the key of an agent, if it is one under which the agent is found."""
    if not is_key(key):
        raise MongoDBSessionError(f"session_id={session_id!r}: {key!r} is no key of an agent")
    return key


def _is_spoilt(document: Document) -> bool:
    """Return whether a search document is none that was written here."""
    if _message_id(document["_id"]["message"]) is None:
        return True
    return not all(isinstance(document.get(name), str) for name in ("session_id", "agent_id", "role", "text"))


def _hit(document: Document) -> MessageHit:
    created_at = document.get("created_at")
    return MessageHit(
        session_id=document["session_id"],
        agent_id=document["agent_id"],
        message_id=int(document["_id"]["message"]),
        role=document["role"],
        text=document["text"],
        created_at=created_at if isinstance(created_at, datetime) else None,
        score=document["score"],
    )


_ensured: set[tuple[frozenset[Any], str]] = set()
