"""The commands: the one layer that talks to MongoDB about session documents.

The repository (Strands' interface) and the manager both stand on it. Every method sends what its summary line says;
a write that matches nothing is explained by one read and ends in the error that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial, wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import ASCENDING, IndexModel, MongoClient
from pymongo.change_stream import ChangeStream
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import DocumentTooLarge, DuplicateKeyError, OperationFailure, WriteError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import Primary, PrimaryPreferred
from pymongo.results import UpdateResult

from . import messages_view, session_listing, statements
from .archive_policy import Embedded
from .archiving import Archiver
from .blobs import BlobOwner, BlobStore
from .clients import check_client
from .command_pool import command_pool
from .direct import DirectCommands
from .documents import Document, StoredAgent, check_message_count
from .encoding import CODEC_OPTIONS, PLAIN_CODEC_OPTIONS, blob_files
from .errors import (
    AgentNotFoundError,
    BlobMissingError,
    HistoryIncompleteError,
    MessageNotFoundError,
    MongoDBSessionError,
    SessionBusyError,
    SessionConflictError,
    SessionNotFoundError,
    UnstorableValueError,
)
from .expiry import EXPIRED, FOREVER, expiry_of_new_parts, parts_kept_until, parts_needed_until
from .foreign import count, mapping, mappings
from .history import History
from .indexes import EXPIRY_INDEX, ensure_indexes
from .metadata_cache import MetadataAsRead
from .pending_blobs import PendingBlobs
from .reading import Reader
from .search_index import SearchIndex
from .sending import attempts, is_there, until_known
from .session_listing import Listing, SessionPage
from .statements import FEEDBACKS, MAX_METADATA_BYTES, Commit, MessageLink, Rewrite, SessionRef, Update
from .upkeep import Failures

P = ParamSpec("P")
T = TypeVar("T")

_INT32_MAX = 2**31 - 1
_NAMESPACE_EXISTS = 48
_PATH_NOT_VIABLE = 28
# What MongoDB answers where an update would make a document larger than 16 MB.
# What it answers where the field to push to is no list, or the one to add to no number.
_NOT_A_LIST = frozenset((2, 14))
_DOCUMENT_TOO_LARGE = frozenset((10334, 17419, 17420))


def _read_again_if_gone(
    read: Callable[Concatenate[SessionStore, str, P], T],
) -> Callable[Concatenate[SessionStore, str, P], T]:
    """Let a method read anew where the session was deleted between its document and its history: it is gone, then.

    Only where the session is still there is something missing.
    """

    @wraps(read)
    def reading(self: SessionStore, session_id: str, /, *args: P.args, **kwargs: P.kwargs) -> T:
        for _ in attempts(f"session_id={session_id!r} could not be read"):
            try:
                return read(self, session_id, *args, **kwargs)
            except HistoryIncompleteError as error:
                which = {"_id": session_id, "incarnation": error.incarnation}
                if self.find_one(which, {"_id": 1}) is not None:
                    raise
        raise AssertionError  # `attempts` never ends without an error.

    return reading


@dataclass
class OpenedSession:
    """What is read when a session is opened: which life of it, and the live windows of the agents asked for.

    Attributes:
        incarnation: The life of the session that was opened.
        bytes: Size of the session document.
        parts_expire: Whether segments and blobs of the session have an expiry.
        agents: By key; an agent that the session does not have has ``agent_data`` None.
    """

    incarnation: ObjectId
    bytes: int
    parts_expire: bool
    agents: dict[str, StoredAgent]


class MultiAgentAsRead(NamedTuple):
    """What is known of the stored state of a graph or swarm.

    Attributes:
        state: The state; None if it is not stored.
        changes: How often it was changed; None if it is not stored.
    """

    state: Any
    changes: int | None


class SessionStore:
    """Sends commands about the session documents of one collection.

    Args:
        client: Borrowed; whoever made it closes it.
        database_name: Database.
        collection_name: Collection of the session documents.
        metadata_fields: Metadata fields to index.

    Raises:
        TypeError: ``client`` is an ``AsyncMongoClient``, which is bound to one event loop; Strands uses many.
        ValueError: The write concern is ``w=0``: no write could be known to have happened.
    """

    def __init__(
        self,
        client: MongoClient[Any],
        database_name: str,
        collection_name: str,
        metadata_fields: Sequence[str] = (),
    ) -> None:
        check_client(client)
        preference = client.read_preference
        self.client = client
        self.pool = command_pool(client)
        self.collection: Collection[Document] = client.get_database(database_name).get_collection(
            collection_name,
            codec_options=CODEC_OPTIONS,
            # Other preferences would resume old conversations.
            read_preference=preference if isinstance(preference, PrimaryPreferred) else Primary(),
        )
        self._raw = self.collection.with_options(
            codec_options=PLAIN_CODEC_OPTIONS.with_options(document_class=RawBSONDocument)
        )
        self._writes = self.collection.with_options(codec_options=PLAIN_CODEC_OPTIONS)
        self._direct = DirectCommands(self._raw, self._writes)
        # What decides that something is deleted must be true for ever: no failover may take back what is read here.
        self._settled = self._raw.with_options(read_preference=Primary(), read_concern=ReadConcern("majority"))
        self.blobs = BlobStore(self.collection.database, collection_name)
        self._reader = Reader(self.blobs)
        self.history = History(self._writes, self._reader)
        self.archiver = Archiver(self, self.history, now)
        self.search = SearchIndex(self, self.history, self._writes, self._reader)
        self._metadata_fields = tuple(metadata_fields)
        self._indexes_ensured: set[bool] = set()

    # --- indexes ----------------------------------------------------------------------------------------------------

    def ensure_indexes(self, *, expiring: bool = False) -> None:
        """Create the indexes, once per process and collection. A failure is logged, as the specification says.

        Args:
            expiring: Whether sessions expire: one command more, the first time.
        """
        if expiring not in self._indexes_ensured:
            names = ["created_at", "updated_at", *(f"metadata.{name}" for name in self._metadata_fields)]
            keys = [[(name, ASCENDING)] for name in names] + session_listing.indexes(self._metadata_fields)
            ensured = ensure_indexes(self.collection, [IndexModel(key) for key in keys])
            # By itself: it might be at odds with one of the application's own.
            if ensured and (not expiring or ensure_indexes(self.collection, [EXPIRY_INDEX])):
                self._indexes_ensured.add(expiring)

    # --- sessions ---------------------------------------------------------------------------------------------------

    def open(
        self, session_id: str, agent_keys: Sequence[str] = (), create: Callable[[], Document] | None = None
    ) -> OpenedSession | None:
        """Read the session and the live windows of these agents: one command.

        Args:
            session_id: Which session.
            agent_keys: Keys of the agents whose windows are wanted.
            create: Makes the document to insert where there is none: one command more. A session that has expired
                and is still there counts as none; the new one takes its place.

        Returns:
            The session, or None if there is none and ``create`` is None.
        """
        projection = statements.open_projection(agent_keys)
        for _ in attempts(f"session_id={session_id!r} could not be opened"):
            document = self._find_session(session_id, projection)
            if document is None or document["expired"]:
                if create is None:
                    return None
                new = create()
                if self._insert_if_absent(new) if document is None else self._replace_expired(document, new):
                    agents = {key: StoredAgent(agent_data=None) for key in agent_keys}
                    return OpenedSession(new["incarnation"], 0, "parts_expire_at" in new, agents)
                continue
            found = document["agents_opened"]
            counted = [_has_counters(session_id, key, agent) for key, agent in zip(agent_keys, found, strict=True)]
            if "incarnation" not in document or not all(counted):
                self.adopt(session_id, agent_keys)
                continue
            parts_expire = document.get("parts_expire_at") is not None
            opened = OpenedSession(document["incarnation"], int(document["bytes"]), parts_expire, {})
            for key, agent in zip(agent_keys, found, strict=True):
                stored = opened.agents[key] = _stored_agent(agent)
                start, stop = stored.embedded.removed, stored.embedded.archived
                if start < stop:  # The live window reaches into the history.
                    stored.window_offset = start
                    try:
                        stored.window[:0] = self.history.read(session_id, opened.incarnation, key, start, stop)
                    except HistoryIncompleteError:
                        if not self.is_over(session_id, opened.incarnation):
                            raise
                        break  # It was deleted in between.
            else:
                return opened
        raise AssertionError  # `attempts` never ends without an error.

    def adopt(self, session_id: str, agent_keys: Sequence[str]) -> None:
        """Give an older document its incarnation and counters: one command."""
        self.collection.update_one({"_id": session_id}, statements.adopt(agent_keys))

    def insert(self, document: Document) -> None:
        """Insert a new session document, in the place of one that has expired, too.

        Raises:
            DuplicateKeyError: There is a session with this id.
        """
        session_id = document["_id"]
        for _ in attempts(f"session_id={session_id!r} could not be created"):
            try:
                self.collection.insert_one(document)
            except DuplicateKeyError as error:
                if not is_there(error):
                    raise
                there = self.find_one({"_id": session_id}, {"incarnation": 1, "expired": EXPIRED})
                if there is None:
                    continue  # It was removed just now.
                if there.get("incarnation") == document["incarnation"]:
                    return  # It is this one: only the answer to the first attempt was lost.
                if not there["expired"]:
                    raise
                if not self._replace_expired(there, document):
                    continue
            return

    def _replace_expired(self, expired: Document, document: Document) -> bool:
        """Put a new session into the place of one that has expired, and delete what belonged to that.

        Returns:
            False if that is no longer there.
        """
        session_id, before = document["_id"], expired.get("incarnation")
        which = statements.expired(session_id, before)
        indexed = self._has_indexed(session_id)
        replaced = until_known(lambda: self.collection.replace_one(which, document)).matched_count
        # If not, perhaps only the answer to the first attempt was lost.
        mine = {"_id": session_id, "incarnation": document["incarnation"]}
        if not replaced and self.find_one(mine, {"_id": 1}) is None:
            return False
        self._delete_parts(session_id, before, indexed=indexed)
        return True

    def _has_indexed(self, session_id: str) -> bool:
        """Return whether messages of a session may be in the search."""
        return bool((self.find_one({"_id": session_id}, {"indexed": statements.ANY_INDEXED}) or {}).get("indexed"))

    def delete(self, session: SessionRef) -> None:
        """Delete a session, then its history. What a process leaves that dies in between, a sweep removes.

        Raises:
            SessionNotFoundError: There is no such session.
            SessionBusyError: A process holds its lease.
        """
        session_id = session.session_id
        for _ in attempts(f"session_id={session_id!r} could not be deleted"):
            try:
                standing = self._standing(session)
            except SessionNotFoundError:
                self._delete_expired(session_id)  # It is absent, and what MongoDB has not removed yet goes now.
                raise
            # Only the life that was read: a command that arrives late finds no other.
            incarnation, which = standing["incarnation"], here(session, standing).filter()
            if until_known(lambda which=which: self.collection.delete_one(which)).deleted_count or self.is_over(  # type: ignore[misc]
                session_id, incarnation
            ):
                self._delete_parts(session_id, incarnation, indexed=standing["any_indexed"])
                return

    def _delete_expired(self, session_id: str) -> None:
        """Delete a session that has expired and that MongoDB has not removed yet, if there is one."""
        which = {"_id": session_id, "$expr": EXPIRED}
        found = self.find_plain(which, {"incarnation": 1, "any_indexed": statements.ANY_INDEXED})
        if found is not None:
            expired = statements.expired(session_id, found.get("incarnation"))
            if until_known(lambda: self.collection.delete_one(expired)).deleted_count:
                self._delete_parts(session_id, found.get("incarnation"), indexed=found["any_indexed"])

    def _delete_parts(self, session_id: str, incarnation: ObjectId | None, *, indexed: bool) -> None:
        if incarnation is None:
            return  # An older document has none.
        self.history.delete_session(session_id, incarnation)
        self.blobs.delete_session(session_id, incarnation)
        if indexed:
            self.search.delete_session(session_id, incarnation)

    def is_over(self, session_id: str, incarnation: ObjectId) -> bool:
        """Return whether a life of a session is over, for certain: before what belonged to it is deleted."""
        return not self.holds(session_id, statements.may_be_life(incarnation))

    def holds(self, session_id: str, condition: Document) -> bool:
        """Return whether an expression is true of a session document, for certain.

        It asks by an update that changes nothing. A read might be answered by a server that lags behind, or that does
        not know yet that it is no longer the primary; a write is acknowledged by a majority.
        """
        return self.update(Update({"_id": session_id, "$expr": condition}, {"$set": {"_id": session_id}}))

    def find_one(self, query: Document, projection: Mapping[str, Any]) -> Document | None:
        """Return one document, decoded."""
        missing: ObjectId | None = None
        while (found := self._raw.find_one(query, projection)) is not None:
            try:
                return self._reader.decode(found)
            except BlobMissingError as error:
                if error.file_id == missing:
                    raise
                missing = error.file_id  # Perhaps it was redacted or deleted since it was read: then not again.
        return None

    def _find_session(self, session_id: str, projection: Mapping[str, Any]) -> Document | None:
        """Return what ``find_one`` returns, for less."""
        query = {"_id": session_id}
        answer = self._direct.find_one(query, projection)
        if answer is None:
            return self.find_one(query, projection)
        try:
            found: list[Document] = self._reader.decode(answer)["cursor"]["firstBatch"]
        except BlobMissingError:
            return self.find_one(query, projection)  # Perhaps it was redacted or deleted since it was read.
        return found[0] if found else None

    def find_plain(self, query: Document, projection: Mapping[str, Any]) -> Document | None:
        """Return one document whose values are not encoded: metadata, feedback."""
        found = self._raw.find_one(query, projection)
        return None if found is None else self._reader.plain(found)

    def find_raw(self, query: Document, projection: Mapping[str, Any]) -> RawBSONDocument | None:
        """Return one document as it is stored, and will be after any failover."""
        return self._settled.find_one(query, projection)

    def _insert_if_absent(self, document: Document) -> bool:
        """Insert a document unless there is one with its id; return whether this one was inserted."""
        update = Update({"_id": document["_id"]}, {"$setOnInsert": document})
        # In one driver session: once it was sent again, a replica set refuses the first one, should it arrive later,
        # when the session was deleted, perhaps. (A standalone server knows no such numbers.)
        with self.client.start_session(causal_consistency=False) as one_session:
            try:
                result = self._send(update, upsert=True, driver_session=one_session)
            except DuplicateKeyError as error:
                if not is_there(error):
                    raise
                # Two first requests at once: this upsert lost the race for the id. Now it matches.
                result = self._send(update, upsert=True, driver_session=one_session)
        return result.upserted_id is not None

    def list_sessions(self, asked: Listing) -> SessionPage:
        """Return a page of headers: one command.

        One more where the beginning of a conversation is archived that a title needs, and one more where the former
        page ended among sessions with the same time.
        """
        found: list[Document] = []
        for query in asked.filters:
            # One more than asked for tells whether there is a next page.
            if (missing := asked.limit + 1 - len(found)) > 0:
                cursor = self._raw.find(
                    query, session_listing.PROJECTION, sort=asked.order.sort, limit=missing, allow_disk_use=True
                )
                found += map(self._reader.plain, cursor)
        segments = [segment for one in found[: asked.limit] if (segment := session_listing.first_segment(one))]
        return session_listing.page(asked, found, self.history.first_user_texts(segments))

    # --- writes -----------------------------------------------------------------------------------------------------

    def commit(self, session: SessionRef, work: Commit, rebase: bool) -> None:
        """Store everything in ``work`` in one update, exactly once; ``work.position`` is then where it begins.

        Args:
            session: Whose.
            work: What to store. After an error it can be given again; its position may have moved, and ``creates`` is
                None once another process has begun the agent.
            rebase: Whether to append behind what others have stored meanwhile.

        Raises:
            SessionConflictError: Others have stored messages meanwhile and ``rebase`` is false.
            SessionNotFoundError: The session was deleted.
            AgentNotFoundError: Somebody has removed the agent from the session.
            SessionBusyError: Somebody else holds the session's lease, or the writer's own has run out.
        """
        for _ in attempts(f"session_id={session.session_id!r}, agent {work.key!r}"):
            try:
                update = statements.commit(session, work, now())
                # Changed fields alone go with the driver's own method, which numbers them on a replica set.
                matched = self._direct.update_one(update) if work.messages or work.creates is not None else None
                if matched is None:
                    matched = self.update(update)
                if matched:
                    return
            except WriteError as error:
                if error.code not in _NOT_A_LIST or not work.guardrail_events:
                    raise
                work.guardrail_events = []  # Somebody else keeps something of that name; the commit is what counts.
                continue
            standing = self._standing(session, statements.position_projection(work.key, work.position), [work.key])
            if work.messages and self.commit_id_at(session, work.key, work.position, standing) == work.commit_id:
                return  # It had arrived: only its answer was lost.
            if standing["exists"]:
                # Agents are inserted only if absent: whoever came first decides how the agent began.
                work.creates = None
                if work.empty:
                    return
                work.changes = int(standing["changes"])
                if work.messages and standing["message_count"] != work.position:
                    if not rebase:
                        raise SessionConflictError(
                            f"session_id={session.session_id!r}, agent {work.key!r}: another process has stored "
                            f"messages from message_id={work.position} on"
                        )
                    work.position = int(standing["message_count"])  # A shell writes numbers as floating point.
            elif work.creates is None:
                raise AgentNotFoundError(f"session_id={session.session_id!r} has no agent {work.key!r} any more")
            self._see_to_expiry(session, standing)

    def rewrite(self, session: SessionRef, work: Rewrite, moment: datetime) -> None:
        """Replace parts of stored messages, wherever they are, and delete the blobs that they no longer name.

        Args:
            session: Whose.
            work: What is replaced, of which messages. After an error it can be given again.
            moment: The messages' new ``updated_at``.

        Raises:
            AgentNotFoundError: The session has no such agent.
            MessageNotFoundError: There is no such message, or another one has its ``message_id``.
        """
        session_id, where = session.session_id, f"session_id={session.session_id!r}, agent {work.key!r}"
        for _ in attempts(f"{where}: message_id={work.message_id} could not be replaced"):
            standing = self._standing(session, statements.rewrite_projection(work), [work.key])
            if not standing["exists"]:
                raise AgentNotFoundError(f"session_id={session_id!r} has no agent {work.key!r}")
            if standing.get("listed"):
                work.guardrail_event = None  # It had arrived: only its answer was lost. The rest may be done again.
            replaced: list[Document] = standing["messages"]
            if not replaced and not self.history.has(session_id, standing["incarnation"], work):
                raise MessageNotFoundError(f"{where} has no message_id={work.message_id}, or another one has this id")
            work.unnamed |= _unnamed(replaced, work.body)
            self._see_to_expiry(session, standing)
            try:
                # The session document is changed first: it decides who may make a change.
                if self.update(statements.rewrite(here(session, standing), work, standing, moment)):
                    break
            except WriteError as error:
                if error.code not in _NOT_A_LIST or work.guardrail_event is None:
                    raise
                work.guardrail_event = None  # As in `commit`.
        # An archiver may hold a copy of an embedded message that it has yet to commit.
        edit = int(standing["edits"]) + 1
        archived, read_to_index = self.history.rewrite(session_id, standing["incarnation"], work, edit, moment)
        work.unnamed |= _unnamed(archived, work.body)
        if "indexed" in standing or read_to_index:
            self.search.rewrite(session_id, work.key, replaced + archived, work.body, standing)
        self.delete_blobs(work.unnamed)

    def delete_blobs(self, file_ids: Iterable[ObjectId]) -> None:
        """Delete blobs that nothing names any more. A sweep finds those of a process that ends before."""
        self.blobs.delete(file_ids)

    def read_agent_data(self, session_id: str, key: str) -> Document | None:
        """Return what is stored of an agent, decoded, or None if the session has no such agent."""
        projection = {"_id": 0, "agent_data": statements.agent_data_expression(key)}
        document = self.find_one(statements.live(session_id), projection)
        return (document or {}).get("agent_data")

    def read_message(self, session_id: str, key: str, message_id: int) -> Document | None:
        """Return one stored message, decoded, or None."""
        projection = {
            "incarnation": 1,
            **statements.position_projection(key, message_id),
            **statements.message_projection(key, message_id),
        }
        document = self.find_one(statements.live(session_id), projection)
        if document is None or not document["exists"]:
            return None
        if document["messages"]:
            message: Document = document["messages"][0]
            return message
        return self._archived(session_id, key, message_id, document)

    @_read_again_if_gone
    def list_messages(self, session_id: str, key: str, offset: int, limit: int | None) -> list[Document]:
        """Return a page of an agent's stored messages, decoded, oldest first."""
        if limit == 0:
            return []
        # 32 bits are what $slice takes; no conversation has as many messages.
        offset = min(offset, _INT32_MAX)
        limit = None if limit is None else min(limit, _INT32_MAX - offset)
        document = self.find_one(statements.live(session_id), statements.page_projection(key, offset, limit))
        if document is None:
            return []
        messages: list[Document] = document["messages"]
        archived = int(document["archived_count"])
        stop = archived if limit is None else min(archived, offset + limit)
        if offset < stop:
            messages[:0] = self.history.read(session_id, document["incarnation"], key, offset, stop)
        return messages

    def count_messages(self, session_id: str, key: str) -> int:
        """Return how many messages an agent's conversation has."""
        document = self.find_one(statements.live(session_id), {"_id": 0, "count": statements.count_expression(key)})
        return int((document or {}).get("count") or 0)

    def set_metadata(self, session: SessionRef, metadata: Mapping[str, Any]) -> None:
        """Set metadata fields and leave the others.

        Raises:
            UnstorableValueError: The session's metadata would have more than ``MAX_METADATA_BYTES``, or what lies above
                a dotted key is no object, or an array that is shorter.
        """
        needed = {
            "metadata_changes": statements.METADATA_CHANGES_SO_FAR,
            "size": statements.metadata_size_expression(metadata),
            "without_gaps": statements.metadata_without_gaps_expression(metadata),
        }

        def write(session: SessionRef, standing: Document) -> Update:
            return statements.set_metadata(session, metadata, standing["metadata_changes"], now())

        def is_refused(standing: Document) -> bool:
            return bool(standing["size"] > MAX_METADATA_BYTES or not standing["without_gaps"])

        try:
            standing = self.guarded(session, write, needed, is_refused)
        except WriteError as error:
            if error.code != _PATH_NOT_VIABLE:
                raise
            # The server's own message quotes the value that is there; an agent may not be allowed to see it.
            keys = ", ".join(map(repr, metadata))
            raise UnstorableValueError(
                f"session_id={session.session_id!r}: one of {keys} lies below a value that is no object"
            ) from error
        if standing is not None:
            if not standing["without_gaps"]:
                raise UnstorableValueError(
                    f"session_id={session.session_id!r}: one of {', '.join(map(repr, metadata))} lies beyond the end "
                    "of a list: set the whole list, or one element directly behind its last"
                )
            raise UnstorableValueError(
                f"session_id={session.session_id!r}: with {', '.join(map(repr, metadata))} its metadata would have "
                f"{standing['size']} bytes; at most {MAX_METADATA_BYTES} can be stored"
            )

    def unset_metadata(self, session: SessionRef, keys: Sequence[str]) -> None:
        """Remove metadata fields and leave the others."""

        def write(session: SessionRef, standing: Document) -> Update:
            return statements.unset_metadata(session, keys, standing["metadata_changes"], now())

        self.guarded(session, write, {"metadata_changes": statements.METADATA_CHANGES_SO_FAR})

    def read_metadata(self, session_id: str) -> MetadataAsRead | None:
        """Return a session's metadata as it is stored on the primary, and of which life of it.

        It will be remembered: what a secondary has not yet, would hide a write for that long.
        """
        left = {"$cond": [{"$eq": [{"$type": "$expires_at"}, "date"]}, {"$subtract": ["$expires_at", "$$NOW"]}, None]}
        projection = {"_id": 0, "incarnation": 1, "metadata": 1, "milliseconds_left": left}
        primary = self._raw.with_options(read_preference=Primary())
        found = primary.find_one(statements.live(session_id), projection)
        if found is None:
            return None
        milliseconds = found["milliseconds_left"]
        seconds = None if milliseconds is None else milliseconds / 1000
        return MetadataAsRead(found.get("incarnation"), found.raw, seconds)

    def metadata(self, content: bytes) -> Document:
        """Return the values of metadata that were read as they are stored."""
        return dict(mapping(self._reader.plain(RawBSONDocument(content)).get("metadata")))

    def watch_metadata(self, max_await_ms: int) -> ChangeStream[Document]:
        """Open a stream of the changes after which a session's metadata may be other than before.

        Args:
            max_await_ms: How long the server waits for a change before it says that there is none; less where the
                client's ``timeoutMS`` or ``socketTimeoutMS`` is shorter.
        """
        options = self.client.options
        for seconds in (options.timeout, options.pool_options.socket_timeout):
            if seconds:
                max_await_ms = min(max_await_ms, max(1, int(seconds * 500)))
        return self.collection.watch(statements.METADATA_CHANGES, max_await_time_ms=max_await_ms)

    def add_feedback(self, session: SessionRef, feedback: Document, link: MessageLink | None, moment: datetime) -> None:
        """Append a feedback, once; older ones move into the history where there are many.

        Args:
            session: Whose.
            feedback: The feedback.
            link: What it is about, if that is to be checked: by the same command, unless that is archived and the
                agent's ids have gaps.
            moment: Now.

        Raises:
            AgentNotFoundError: The session has no such agent.
            MessageNotFoundError: The agent has no such message.
        """
        session_id, keys = session.session_id, [] if link is None else [link.agent_key]
        sent = False
        for _ in attempts(f"session_id={session_id!r}: a feedback could not be stored"):
            standing = self._standing(session, statements.feedback_projection(feedback, link), keys)
            incarnation = standing["incarnation"]
            if standing["stored"]:
                return
            if sent and standing["archived"] and self.history.has_feedback(session_id, incarnation, feedback):
                return  # It was stored, its answer was lost, and others came that moved it into the history.
            if link is not None and not standing["linked"]:
                message_id = link.message_id
                if not standing["exists"]:
                    raise AgentNotFoundError(f"session_id={session_id!r} has no agent {link.agent_key!r}")
                if message_id is None or not self._archived(session_id, link.agent_key, message_id, standing):
                    raise MessageNotFoundError(
                        f"session_id={session_id!r}, agent {link.agent_key!r} has no message_id={message_id}"
                    )
                # Messages do not go away while this life of the session lasts.
                link, session = link._replace(message_id=None), here(session, standing)
            elif standing["full"]:
                self.archiver.archive_feedbacks(session_id, incarnation)
            else:
                self._see_to_expiry(session, standing)
                sent = True
                update = statements.add_feedback(here(session, standing), feedback, link, standing["count"], moment)
                if self.update(update):
                    return

    @_read_again_if_gone
    def get_feedbacks(self, session_id: str) -> list[Document]:
        """Return a session's feedbacks, decoded, oldest first."""
        projection = {"incarnation": 1, "feedbacks": 1, "feedbacks_archived": 1}
        document = self.find_plain(statements.live(session_id), projection)
        if document is None:
            return []
        feedbacks = mappings(document.get("feedbacks"))
        archived = count(document.get("feedbacks_archived"))
        if archived:
            feedbacks[:0] = self.history.read(session_id, document["incarnation"], FEEDBACKS, 0, archived)
        return feedbacks

    @_read_again_if_gone
    def read_metrics(self, session_id: str, agent_id: str | None) -> tuple[list[tuple[str, Any]], list[Any]]:
        """Return each agent's key and running totals, and the rating of each feedback; of one agent, or of all."""
        document = self.find_plain(statements.live(session_id), statements.metrics_projection(agent_id))
        if document is None:
            return [], []
        ratings: list[Any] = document["ratings"]
        archived = count(document["feedbacks_archived"])
        if archived:
            ratings += self.history.ratings(session_id, document["incarnation"], archived, agent_id)
        return [(agent["key"], agent.get("usage")) for agent in document["agents"]], ratings

    def get_guardrail_events(self, session_id: str) -> list[Document]:
        """Return the interventions that are listed in a session, oldest first."""
        document = self.find_plain(statements.live(session_id), {"_id": 0, "guardrail_events": 1})
        return (document or {}).get("guardrail_events") or []

    def put_multi_agent(
        self, session: SessionRef, multi_agent_id: str, state: Any, known: MultiAgentAsRead | None = None
    ) -> MultiAgentAsRead:
        """Store the state of a graph or swarm, of one that is stored already or of a new one.

        Args:
            session: Whose.
            multi_agent_id: Of which graph or swarm.
            state: Its state, encoded.
            known: What was last read or stored of it, if that is known: then one command will do.

        Returns:
            What is stored of it now.
        """
        changes: int | None = None

        def write(session: SessionRef, standing: Document) -> Update:
            nonlocal changes
            changes = standing["changes"]
            return statements.multi_agent(session, multi_agent_id, state, changes, now())

        as_known = None if known is None else {"incarnation": session.incarnation, "changes": known.changes}
        self.guarded(session, write, statements.multi_agent_projection(multi_agent_id), known=as_known)
        return MultiAgentAsRead(state, 0 if changes is None else changes + 1)

    def read_multi_agent(self, session_id: str, multi_agent_id: str) -> MultiAgentAsRead:
        """Return the stored state of a graph or swarm, decoded; None if it is not stored."""
        projection = {
            "_id": 0,
            "state": statements.multi_agent_state_expression(multi_agent_id),
            **statements.multi_agent_projection(multi_agent_id),
        }
        document = self.find_one(statements.live(session_id), projection) or {}
        return MultiAgentAsRead(document.get("state"), document.get("changes"))

    def guarded(
        self,
        session: SessionRef,
        write: Callable[[SessionRef, Document], Update],
        needed: Document | None = None,
        settled: Callable[[Document], bool] = lambda _: False,
        *,
        known: Document | None = None,
        agent_keys: Sequence[str] = (),
    ) -> Document | None:
        """Read how a session stands and send the update that is right for that; return None if it was applied.

        Such an update matches only as long as the session stands so. One that arrives late, behind a newer one, changes
        nothing; one that was applied while its answer was lost does not match when it is sent again, and what is read
        then tells.

        Args:
            session: Whose.
            write: Makes the update, for the life of the session that was read, from how things stand.
            needed: Projection of what, besides ``statements.STANDING``, the update depends on.
            settled: Whether how things stand says that the update is not to be sent, or was applied.
            known: How things stand as far as ``write`` needs it, if that is known: then nothing is read at first.
            agent_keys: Agents whose counters the update depends on.

        Returns:
            None, or how things stand, as ``needed`` projects it.

        Raises:
            SessionNotFoundError: There is no such session.
            SessionBusyError: Somebody holds its lease.
        """
        for _ in attempts(f"session_id={session.session_id!r}"):
            if known is None:
                standing = self._standing(session, needed or {}, agent_keys)
                if settled(standing):
                    return standing
                self._see_to_expiry(session, standing)
            else:
                standing, known = known, None
            if self.update(write(here(session, standing), standing)):
                return None
        raise AssertionError  # `attempts` never ends without an error.

    def update(self, update: Update) -> bool:
        """Send an update and return whether it matched."""
        return bool(self._send(update).matched_count)

    def _send(
        self, update: Update, *, upsert: bool = False, driver_session: ClientSession | None = None
    ) -> UpdateResult:
        which, changes, array_filters = update
        options: Any = {"upsert": upsert, "array_filters": array_filters, "session": driver_session}
        return self._with_room(update, partial(self._writes.update_one, which, changes, **options))

    def _with_room(self, update: Update, send: Callable[[], T]) -> T:
        """Send an update until its outcome is known; where the document has no room for it, make some.

        Raises:
            UnstorableValueError: Even without any message there is no room for it. Nothing of it was written.
        """
        for _ in attempts(f"session_id={update.filter['_id']!r}: no room could be made"):
            try:
                return until_known(send)
            except (WriteError, DocumentTooLarge) as error:
                if isinstance(error, WriteError) and error.code not in _DOCUMENT_TOO_LARGE:
                    raise
                if isinstance(error, DocumentTooLarge) or self.archiver.make_room(update.filter["_id"]) is None:
                    raise UnstorableValueError(
                        f"session_id={update.filter['_id']!r} has no room for this: MongoDB holds 16 MB in a document"
                    ) from error
        raise AssertionError  # `attempts` never ends without an error.

    def commit_id_at(self, session: SessionRef, key: str, message_id: int, standing: Document) -> ObjectId | None:
        """Return the id of the commit that stored a message, given how things stand at its position."""
        if standing["exists"] and not standing["embedded"]:
            return (self._archived(session.session_id, key, message_id, standing) or {}).get("commit_id")
        return standing.get("commit_id")

    def _archived(self, session_id: str, key: str, message_id: int, standing: Document) -> Document | None:
        """Return a message that is not embedded, given how things stand at its position."""
        if not standing["archived_count"]:
            return None
        if message_id >= check_message_count(session_id, key, standing.get("message_count", 0)):
            return None
        return self.history.read_message(session_id, standing["incarnation"], key, message_id)

    def _standing(
        self,
        session: SessionRef,
        needed: Mapping[str, Any] | None = None,
        agent_keys: Sequence[str] = (),
        *,
        whose_lease_it_is: bool = True,
    ) -> Document:
        """Read how a session stands that this writer may write to; an older document gets what it lacks first.

        Args:
            session: Whose.
            needed: Projection of what is wanted besides ``statements.STANDING``.
            agent_keys: Agents that must have their counters.
            whose_lease_it_is: Whether it matters who holds the session's lease.

        Raises:
            SessionNotFoundError: There is no such session.
            SessionBusyError: Somebody holds its lease.
        """
        for _ in attempts(f"session_id={session.session_id!r}: its counters could not be added"):
            standing = self._explain(session, needed or {}, whose_lease_it_is=whose_lease_it_is)
            if "message_count" in standing:
                # A writer would wait for ever for a counter that is no number.
                (key,) = agent_keys
                check_message_count(session.session_id, key, standing["message_count"], standing["stored_count"])
            lacks_counters = standing.get("exists") and "message_count" not in standing
            if standing.get("incarnation") is not None and not lacks_counters:
                return standing
            self.adopt(session.session_id, agent_keys)
        raise AssertionError  # `attempts` never ends without an error.

    def _explain(
        self, session: SessionRef, projection: Mapping[str, Any], *, whose_lease_it_is: bool = True
    ) -> Document:
        """Read why a write did not match; raise the error for it, or return how things stand, as it is stored."""
        wanted = statements.unless_expired({**statements.STANDING, **projection})
        standing = self.find_plain({"_id": session.session_id}, wanted)
        if standing is None:
            raise SessionNotFoundError(f"session_id={session.session_id!r} does not exist")
        if session.incarnation is not None and standing.get("incarnation") != session.incarnation:
            raise SessionNotFoundError(
                f"session_id={session.session_id!r} was deleted; another has begun under this id"
            )
        if standing["expired"]:
            raise _expired(session)
        lease, left = standing.get("lease"), _lease_seconds(standing)
        if not whose_lease_it_is:
            return standing
        if session.lease_token is not None and (lease is None or lease["token"] != session.lease_token or left <= 0):
            raise SessionBusyError(f"session_id={session.session_id!r}: the lease of this manager has run out")
        if session.lease_token is None and left > 0:
            raise SessionBusyError(f"session_id={session.session_id!r} is leased by another process", left)
        return standing

    # --- expiry -----------------------------------------------------------------------------------------------------

    def _see_to_expiry(self, session: SessionRef, standing: Document) -> None:
        """Let the parts of a session live on where this writer would let the session outlive them."""
        session_id, promised = session.session_id, standing.get("parts_expire_at")
        if session.ttl is not None:
            if promised is None or promised >= parts_needed_until(now() + session.ttl, session.ttl):
                return
            until = parts_kept_until(now(), session.ttl)
        elif standing.get("ttl_hours") is None:
            return
        elif promised is None or promised >= FOREVER:
            self.update(statements.end_expiry(session_id, standing))
            return
        else:
            until = FOREVER
        # Or where somebody else is moving them to, or has died over it.
        until = max(until, standing.get("parts_moving_to") or until)
        if self.update(statements.announce_parts(session_id, standing, until)):
            self.history.keep(session_id, standing["incarnation"], until)
            self.blobs.keep_session(session_id, standing["incarnation"], until, standing["now"])
            if standing["any_indexed"]:
                self.search.keep(session_id, standing["incarnation"], until)
            self.update(statements.promise_parts(session_id, standing, until))

    def let_parts_expire(self, session: SessionRef) -> None:
        """Give an expiry to the parts of a session that has got a ttl when it had some already.

        The session document comes first: from then on nobody lets the session live longer than that without moving
        its parts on, and a part that was moved on, or made since, is not touched here.
        """
        assert session.ttl is not None
        assert session.incarnation is not None
        session_id, incarnation = session.session_id, session.incarnation
        began, until = self.blobs.server_time(), parts_kept_until(now(), session.ttl)
        if self.update(statements.begin_expiry_of_parts(session_id, incarnation, until)):
            self.history.let_expire(session_id, incarnation, until)
            if self._has_indexed(session_id):
                self.search.let_expire(session_id, incarnation, until)
            self.blobs.let_expire(self.blobs.files_of(session_id, incarnation, before=began), until)

    # --- blobs ------------------------------------------------------------------------------------------------------

    def upload(self, session: SessionRef, key: str, message_id: int | None, blobs: PendingBlobs) -> SessionRef:
        """Store the blobs of a message, or of the state of an agent, before the commit that names them.

        Returns:
            The session, of the life that the blobs belong to: the only one whose documents may name them.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        if not blobs.blobs:
            return session
        incarnation = session.incarnation or self._standing(session)["incarnation"]
        owner: BlobOwner = {
            "session": session.session_id,
            "incarnation": incarnation,
            "agent": key,
            "message": message_id,
        }
        self.blobs.upload(blobs, owner)
        if session.ttl is not None:
            self._keep_as_long_as_promised(session, incarnation, blobs.uploaded)
        return session._replace(incarnation=incarnation)

    def _keep_as_long_as_promised(self, session: SessionRef, incarnation: ObjectId, file_ids: set[ObjectId]) -> None:
        """Let files that were just stored expire no sooner than the session promises of its parts.

        Whoever moves the parts on says so first, and leaves alone what has no expiry yet. So it is read again once they
        have theirs: if it still says the same, whoever moves them on from here finds them with it.
        """
        which = statements.life(session.session_id, incarnation)
        kept: datetime | None = None
        for _ in attempts(f"session_id={session.session_id!r}: its blobs could not be kept"):
            standing = self.find_raw(which, {"parts_expire_at": 1, "parts_moving_to": 1})
            if standing is None:
                self.delete_blobs(file_ids)
                self._explain(session, {})
                raise _expired(session)
            until = expiry_of_new_parts(standing)
            if until == kept:
                return
            assert until is not None  # What was promised is never taken back.
            self.blobs.keep(file_ids, until)
            kept = until

    def sweep(self, older_than_seconds: float) -> int:
        """Remove blobs that nobody names, and segments and search documents of lives that are over; return how many.

        Raises:
            MongoDBSessionError: Errors of single sessions; what there is of all others was done.
        """
        failures = Failures()
        removed = 0
        for parts in (self.history, self.search):
            removed += parts.sweep(self.collection.name, self.holds, older_than_seconds, failures)
        removed += self.blobs.sweep(self._named, failures, older_than_seconds)
        failures.tell("the sweep could not do all")
        return removed

    def _named(
        self, session_id: str, incarnation: ObjectId, key: str, files: Mapping[ObjectId, int | None]
    ) -> set[ObjectId]:
        """Return those of these files that the session still names; see ``BlobStore.sweep``."""
        document = self.find_raw({"_id": session_id, "incarnation": incarnation}, {})
        if document is None:
            return set() if self.is_over(session_id, incarnation) else set(files)
        missing = dict(files)

        def look_in(found: RawBSONDocument) -> None:
            content = bytes(found.raw)
            for file_id in [file_id for file_id in missing if file_id.binary in content]:
                del missing[file_id]

        # The session document first, then its history: what moves meanwhile moves there.
        look_in(document)
        for message_id in sorted({message_id for message_id in missing.values() if message_id is not None}):
            for segment in self.history.raw_segments_covering(session_id, incarnation, key, message_id):
                look_in(segment)
        # A commit that found others' messages before it has put its own elsewhere.
        if missing:
            for segment in self.history.raw_segments(session_id, incarnation, key):
                look_in(segment)
        return files.keys() - missing.keys()

    # --- the view ---------------------------------------------------------------------------------------------------

    def create_messages_view(self) -> str:
        """Make the view of all messages, or bring it up to date; return its name.

        Raises:
            MongoDBSessionError: Something else has that name.
        """
        database, name = self.collection.database, f"{self.collection.name}_messages"
        pipeline = messages_view.pipeline(self.collection.name, self.history.collection.name)
        try:
            database.create_collection(name, viewOn=self.collection.name, pipeline=pipeline, check_exists=False)
        except OperationFailure as error:
            if error.code != _NAMESPACE_EXISTS:
                raise
            there = next(iter(database.list_collections(filter={"name": name})), {})
            if there.get("options", {}).get("viewOn") != self.collection.name:
                raise MongoDBSessionError(
                    f"{database.name}.{name} is there already and is no view of {self.collection.name}; it was left as "
                    "it is. Rename it, or keep the sessions in a collection of another name"
                ) from error
            database.command("collMod", name, viewOn=self.collection.name, pipeline=pipeline)
        return name

    # --- leases -----------------------------------------------------------------------------------------------------

    def take_lease(self, session: SessionRef, owner: str, token: str, seconds: float) -> float | None:
        """Take the lease of a session; return None, or for how many seconds somebody else has it.

        Raises:
            SessionNotFoundError: The session was deleted.
        """
        for _ in attempts(f"session_id={session.session_id!r}: its lease could not be taken"):
            standing = self._standing(session, {"leases": statements.LEASES_SO_FAR}, whose_lease_it_is=False)
            if (left := _lease_seconds(standing)) > 0:
                return None if standing["lease"]["token"] == token else left
            if self.update(statements.take_lease(here(session, standing), owner, token, seconds, standing["leases"])):
                return None
        raise AssertionError  # `attempts` never ends without an error.

    def release_lease(self, session_id: str, token: str) -> None:
        """Give a lease back, if it is still this one."""
        self.update(statements.release_lease(session_id, token))


def now() -> datetime:
    """Return the time as MongoDB keeps it."""
    moment = datetime.now(timezone.utc)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def here(session: SessionRef, standing: Mapping[str, Any]) -> SessionRef:
    """Return the session, of the life that was read: no later one is meant."""
    return session._replace(incarnation=standing["incarnation"])


def _lease_seconds(standing: Mapping[str, Any]) -> float:
    """Return for how many seconds the lease of a session still runs, by the server's clock."""
    lease = standing.get("lease")
    return (lease["expires_at"] - standing["now"]).total_seconds() if lease else 0.0


def _unnamed(messages: Sequence[Document], body: Document) -> set[ObjectId]:
    """Return the files that messages name, as they were before, and no longer where ``body`` replaced parts of them."""
    left = statements.left_by_rewriting(messages, body)
    return blob_files(messages).keys() - blob_files([body, *left]).keys()


def _expired(session: SessionRef) -> SessionNotFoundError:
    return SessionNotFoundError(f"session_id={session.session_id!r} has expired")


def _has_counters(session_id: str, key: str, agent: Document | None) -> bool:
    """Return whether an agent as it was read is one that has its counters, or is not there.

    Raises:
        DamagedSessionError: It has one that can be none.
    """
    if agent is None:
        return True
    if "message_count" not in agent:
        return False
    messages = int(agent["archived_count"]) + int(agent["embedded"])
    check_message_count(session_id, key, agent["message_count"], messages)
    return True


def _stored_agent(found: Document | None) -> StoredAgent:
    if found is None:
        return StoredAgent(agent_data=None)
    embedded = Embedded(
        archived=int(found["archived_count"]),
        count=int(found["embedded"]),
        bytes=int(found["bytes"]),
        removed=max(0, int(found["removed"])),
    )
    return StoredAgent(
        agent_data=found.get("agent_data", {}),
        message_count=int(found["message_count"]),
        changes=int(found["changes"]),
        window_offset=max(embedded.removed, embedded.archived),
        window=found["window"],
        embedded=embedded,
    )
