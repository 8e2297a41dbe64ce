"""Indexing: how the messages of a conversation get into the search, behind a turn or at an operator's wish.

Three commands index a batch: read messages from the session document (or from a segment), put their search documents,
and move the agent's ``indexed.count`` in the session document, by an update that matches only where it still is what
was read. Where an indexer dies in between, the next one begins where ``indexed.count`` stands.

Before an indexer reads, or as it does, it leaves a mark: ``indexed`` in the session document, ``indexed`` in a segment.
So whoever changes a message later knows that its old text may be in the search; see ``search_index.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from bson import ObjectId

from .._model.documents import Document
from .._model.encoding import from_bson
from .._model.expiry import NOT_EXPIRED
from .._model.foreign import name_of
from .._model.keys import is_key
from .._model.limits import INDEXED_PER_BATCH, MAX_BEHIND_ATTEMPTS, SESSIONS_PER_BATCH
from .._model.shapes import IndexingProgress
from .._statements import searching
from .._statements.searching import UnindexedMessages
from ..errors import HistoryIncompleteError, MongoDBSessionError, SessionNotFoundError
from .history import History
from .search_index import SearchIndex, is_count, message_id_of
from .sending import back_off
from .session_commands import SessionCommands
from .upkeep import Failures


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
        while lost_races < MAX_BEHIND_ATTEMPTS and (task.batches is None or batches < task.batches):
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
                if self._advance(task, batch):
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
        found = self.commands.find_raw(which, searching.unindexed_projection(task.key, INDEXED_PER_BATCH))
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
            return _Batch(standing, start, standing["messages"], is_last=len(standing["messages"]) < INDEXED_PER_BATCH)
        try:
            messages = self.history.read_to_index(task.session_id, task.incarnation, task.key, start)
        except HistoryIncompleteError:
            if self.commands.is_over(task.session_id, task.incarnation):
                raise _IncarnationIsOverError from None
            raise
        return _Batch(standing, start, messages, is_last=False)

    def _advance(self, task: IndexingTask, batch: _Batch) -> bool:
        """Say that the messages of a batch are in the search; return False if somebody else has said so of some."""
        if not batch.messages:
            return True
        stop = batch.offset + len(batch.messages)
        return self.commands.update(searching.indexed(task.session_id, task.key, batch.standing, stop))

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
        cursor = self.commands.collection.find(query, projection, batch_size=SESSIONS_PER_BATCH)
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


def _well_formed(standing: UnindexedMessages) -> IndexingProgress | None:
    """Return what an agent's record says of the search, or None if it says nothing that was written here."""
    indexed = standing.get("indexed")
    if not isinstance(indexed, dict) or not (is_count(indexed.get("count")) and is_count(indexed.get("rewrites"))):
        return None
    return indexed if indexed["count"] <= standing["total"] else None


def _sound(messages: Iterable[Document | None], offset: int) -> Iterator[Document]:
    """Yield messages with their ``message_id``, the first of which has this offset.

    One that another program has spoilt is left out: what is no message, has an id that is none, or a role that is none.
    """
    for index, message in enumerate(messages, offset):
        if message is None or not isinstance(message.get("role", ""), str):
            continue
        message_id = message_id_of(message.get("message_id", index))
        if message_id is not None:
            yield {**message, "message_id": message_id}
