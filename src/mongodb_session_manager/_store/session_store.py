"""What is done with a session: opened, appended to, changed, leased, deleted.

The repository (Strands' interface) and the manager both stand on it. Every method sends what its summary line says;
a write that matches nothing is explained by one read and ends in the error that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, cast

from bson import ObjectId
from pymongo import ASCENDING, IndexModel, MongoClient
from pymongo.errors import DuplicateKeyError, OperationFailure, WriteError

from .._model.archive_policy import Embedded
from .._model.documents import Document, StoredAgent, check_message_count
from .._model.encoding import blob_files
from .._model.expiry import EXPIRED
from .._statements import (
    commits,
    leases,
    messages_view,
    metadata_changes,
    multi_agent_states,
    opening,
    rewrites,
    session_listing,
    sessions,
)
from .._statements import feedback as feedback_statements
from .._statements.commits import Commit
from .._statements.feedback import MessageLink
from .._statements.metadata_changes import MAX_METADATA_BYTES
from .._statements.rewrites import Rewrite, RewriteStanding
from .._statements.sessions import SessionRef, Update
from ..errors import (
    AgentNotFoundError,
    HistoryIncompleteError,
    MessageNotFoundError,
    MongoDBSessionError,
    SessionConflictError,
    SessionNotFoundError,
    UnstorableValueError,
)
from .archiving import Archiver
from .history import History
from .indexes import EXPIRY_INDEX, ensure_indexes
from .indexing import Indexer
from .related_documents import RelatedDocuments
from .search_index import SearchIndex
from .sending import attempts, is_there, until_known
from .session_commands import SessionCommands, lease_seconds, now, pin_incarnation
from .session_reads import MultiAgentAsRead, SessionReads

_NAMESPACE_EXISTS = 48
_PATH_NOT_VIABLE = 28
# What it answers where the field to push to is no list, or the one to add to no number.
_NOT_A_LIST = frozenset((2, 14))


@dataclass
class OpenedSession:
    """What is read when a session is opened: which incarnation of it, and the live windows of the agents asked for.

    Attributes:
        incarnation: The incarnation of the session that was opened.
        bytes: Size of the session document.
        related_expire: Whether segments and blobs of the session have an expiry.
        agents: By key; an agent that the session does not have has ``agent_data`` None.
    """

    incarnation: ObjectId
    bytes: int
    related_expire: bool
    agents: dict[str, StoredAgent]


class SessionStore:
    """Writes the sessions of one collection, and holds all that sends commands about them.

    Args:
        client: Borrowed; whoever made it closes it.
        database_name: Database.
        collection_name: Collection of the session documents.
        metadata_fields: Metadata fields to index.

    Attributes:
        commands: Single commands about session documents.
        reads: What is read of a session.
        history: Its segments.
        archiver: Moves messages there.
        search: Its search documents.
        indexer: Brings messages into the search.
        related: Keeps and deletes what belongs to a session.

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
        self.commands = SessionCommands(client, database_name, collection_name)
        self.history = History(self.commands.writes, self.commands.reader)
        self.search = SearchIndex(self.commands)
        self.indexer = Indexer(self.commands, self.history, self.search)
        self.archiver = Archiver(self.commands, self.history, now)
        self.commands.when_full = self.archiver.make_room
        self.related = RelatedDocuments(self.commands, self.history, self.search)
        self.reads = SessionReads(self.commands, self.history)
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
            ensured = ensure_indexes(self.commands.collection, [IndexModel(key) for key in keys])
            # By itself: it might be at odds with one of the application's own.
            if ensured and (not expiring or ensure_indexes(self.commands.collection, [EXPIRY_INDEX])):
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
        projection = opening.open_projection(agent_keys)
        for _ in attempts(f"session_id={session_id!r} could not be opened"):
            document = self.commands.find_one({"_id": session_id}, projection)
            if document is None or document["expired"]:
                if create is None:
                    return None
                new = create()
                if self.commands.insert_if_absent(new) if document is None else self._replace_expired(document, new):
                    agents = {key: StoredAgent(agent_data=None) for key in agent_keys}
                    return OpenedSession(new["incarnation"], 0, "parts_expire_at" in new, agents)
                continue
            found = document["agents_opened"]
            counted = [_has_counters(session_id, key, agent) for key, agent in zip(agent_keys, found, strict=True)]
            if "incarnation" not in document or not all(counted):
                self.commands.adopt(session_id, agent_keys)
                continue
            related_expire = document.get("parts_expire_at") is not None
            opened = OpenedSession(document["incarnation"], int(document["bytes"]), related_expire, {})
            for key, agent in zip(agent_keys, found, strict=True):
                stored = opened.agents[key] = _stored_agent(agent)
                start, stop = stored.embedded.removed, stored.embedded.archived
                if start < stop:  # The live window reaches into the history.
                    stored.window_offset = start
                    try:
                        stored.window[:0] = self.history.read(session_id, opened.incarnation, key, start, stop)
                    except HistoryIncompleteError:
                        if not self.commands.is_over(session_id, opened.incarnation):
                            raise
                        break  # It was deleted in between.
            else:
                return opened
        raise AssertionError  # `attempts` never ends without an error.

    def insert(self, document: Document) -> None:
        """Insert a new session document, in the place of one that has expired, too.

        Raises:
            DuplicateKeyError: There is a session with this id.
        """
        session_id = document["_id"]
        for _ in attempts(f"session_id={session_id!r} could not be created"):
            try:
                self.commands.collection.insert_one(document)
            except DuplicateKeyError as error:
                if not is_there(error):
                    raise
                there = self.commands.find_one({"_id": session_id}, {"incarnation": 1, "expired": EXPIRED})
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
        which = sessions.expired(session_id, before)
        indexed = self.related.has_indexed(session_id)
        replaced = until_known(lambda: self.commands.collection.replace_one(which, document)).matched_count
        # If not, perhaps only the answer to the first attempt was lost.
        mine = {"_id": session_id, "incarnation": document["incarnation"]}
        if not replaced and self.commands.find_one(mine, {"_id": 1}) is None:
            return False
        self.related.delete_related(session_id, before, indexed=indexed)
        return True

    def delete(self, session: SessionRef) -> None:
        """Delete a session, then its history. What a process leaves that dies in between, a sweep removes.

        Raises:
            SessionNotFoundError: There is no such session.
            SessionBusyError: A process holds its lease.
        """
        session_id = session.session_id
        for _ in attempts(f"session_id={session_id!r} could not be deleted"):
            try:
                standing = self.commands.standing(session)
            except SessionNotFoundError:
                self._delete_expired(session_id)  # It is absent, and what MongoDB has not removed yet goes now.
                raise
            # Only the incarnation that was read: a command that arrives late finds no other.
            incarnation, which = standing["incarnation"], pin_incarnation(session, standing).filter()
            deleted = until_known(partial(self.commands.collection.delete_one, which)).deleted_count
            if deleted or self.commands.is_over(session_id, incarnation):
                self.related.delete_related(session_id, incarnation, indexed=standing["any_indexed"])
                return

    def _delete_expired(self, session_id: str) -> None:
        """Delete a session that has expired and that MongoDB has not removed yet, if there is one."""
        which = {"_id": session_id, "$expr": EXPIRED}
        found = self.commands.find_plain(which, {"incarnation": 1, "any_indexed": sessions.ANY_INDEXED})
        if found is not None:
            expired = sessions.expired(session_id, found.get("incarnation"))
            if until_known(lambda: self.commands.collection.delete_one(expired)).deleted_count:
                self.related.delete_related(session_id, found.get("incarnation"), indexed=found["any_indexed"])

    # --- writes -----------------------------------------------------------------------------------------------------

    def commit(self, session: SessionRef, work: Commit, rebase: bool) -> None:
        """Store everything in ``work`` in one update, exactly once; ``work.first_message_id`` is then where it begins.

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
                if self.commands.update(commits.commit(session, work, now())):
                    return
            except WriteError as error:
                if error.code not in _NOT_A_LIST or not work.guardrail_events:
                    raise
                work.guardrail_events = []  # Somebody else keeps something of that name; the commit is what counts.
                continue
            first = work.first_message_id
            standing = self.commands.standing(session, commits.append_projection(work.key, first), [work.key])
            if work.messages and self.reads.commit_id_at(session, work.key, first, standing) == work.commit_id:
                return  # It had arrived: only its answer was lost.
            if standing["exists"]:
                # Agents are inserted only if absent: whoever came first decides how the agent began.
                work.creates = None
                if work.empty:
                    return
                work.changes = int(standing["changes"])
                if work.messages and standing["message_count"] != first:
                    if not rebase:
                        raise SessionConflictError(
                            f"session_id={session.session_id!r}, agent {work.key!r}: another process has stored "
                            f"messages from message_id={first} on"
                        )
                    work.first_message_id = int(standing["message_count"])  # A shell writes numbers as floating point.
            elif work.creates is None:
                raise AgentNotFoundError(f"session_id={session.session_id!r} has no agent {work.key!r} any more")
            self.related.see_to_expiry(session, standing)

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
            found = self.commands.standing(session, rewrites.rewrite_projection(work), [work.key])
            standing = cast(RewriteStanding, found)
            if not standing["exists"]:
                raise AgentNotFoundError(f"session_id={session_id!r} has no agent {work.key!r}")
            if standing.get("listed"):
                work.guardrail_event = None  # It had arrived: only its answer was lost. The rest may be done again.
            replaced = standing["messages"]
            if not replaced and not self.history.has(session_id, standing["incarnation"], work):
                raise MessageNotFoundError(f"{where} has no message_id={work.message_id}, or another one has this id")
            work.unnamed |= _unnamed(replaced, work.body)
            self.related.see_to_expiry(session, found)
            try:
                # The session document is changed first: it decides who may make a change.
                if self.commands.update(rewrites.rewrite(pin_incarnation(session, standing), work, standing, moment)):
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
        self.related.delete_blobs(work.unnamed)

    def set_metadata(self, session: SessionRef, metadata: Mapping[str, Any]) -> None:
        """Set metadata fields and leave the others.

        Raises:
            UnstorableValueError: The session's metadata has more than ``MAX_METADATA_BYTES`` already, or what lies
                above a dotted key is no object.
        """
        needed = {
            "metadata_changes": metadata_changes.METADATA_CHANGES_SO_FAR,
            "size": metadata_changes.METADATA_SIZE,
        }

        def write(session: SessionRef, standing: Document) -> Update:
            return metadata_changes.set_metadata(session, metadata, standing["metadata_changes"], now())

        def is_refused(standing: Document) -> bool:
            return bool(standing["size"] > MAX_METADATA_BYTES)

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
            raise UnstorableValueError(
                f"session_id={session.session_id!r}: its metadata has {standing['size']} bytes, and nothing can be set "
                f"where it has more than {MAX_METADATA_BYTES}: delete some of it first"
            )

    def unset_metadata(self, session: SessionRef, keys: Sequence[str]) -> None:
        """Remove metadata fields and leave the others."""

        def write(session: SessionRef, standing: Document) -> Update:
            return metadata_changes.unset_metadata(session, keys, standing["metadata_changes"], now())

        self.guarded(session, write, {"metadata_changes": metadata_changes.METADATA_CHANGES_SO_FAR})

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
            standing = self.commands.standing(session, feedback_statements.feedback_projection(feedback, link), keys)
            incarnation = standing["incarnation"]
            if standing["stored"]:
                return
            if sent and standing["archived"] and self.history.has_feedback(session_id, incarnation, feedback):
                return  # It was stored, its answer was lost, and others came that moved it into the history.
            if link is not None and not standing["linked"]:
                message_id = link.message_id
                if not standing["exists"]:
                    raise AgentNotFoundError(f"session_id={session_id!r} has no agent {link.agent_key!r}")
                if message_id is None or not self.reads.archived_message(
                    session_id, link.agent_key, message_id, standing
                ):
                    raise MessageNotFoundError(
                        f"session_id={session_id!r}, agent {link.agent_key!r} has no message_id={message_id}"
                    )
                # Messages do not go away while this incarnation of the session lasts.
                link, session = link._replace(message_id=None), pin_incarnation(session, standing)
            elif standing["full"]:
                self.archiver.archive_feedbacks(session_id, incarnation)
            else:
                self.related.see_to_expiry(session, standing)
                sent = True
                update = feedback_statements.add_feedback(
                    pin_incarnation(session, standing), feedback, link, standing["count"], moment
                )
                if self.commands.update(update):
                    return

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
            return multi_agent_states.multi_agent(session, multi_agent_id, state, changes, now())

        as_known = None if known is None else {"incarnation": session.incarnation, "changes": known.changes}
        self.guarded(session, write, multi_agent_states.multi_agent_projection(multi_agent_id), known=as_known)
        return MultiAgentAsRead(state, 0 if changes is None else changes + 1)

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
            write: Makes the update, for the incarnation of the session that was read, from how things stand.
            needed: Projection of what, besides ``sessions.STANDING``, the update depends on.
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
                standing = self.commands.standing(session, needed or {}, agent_keys)
                if settled(standing):
                    return standing
                self.related.see_to_expiry(session, standing)
            else:
                standing, known = known, None
            if self.commands.update(write(pin_incarnation(session, standing), standing)):
                return None
        raise AssertionError  # `attempts` never ends without an error.

    # --- expiry -----------------------------------------------------------------------------------------------------

    # --- blobs ------------------------------------------------------------------------------------------------------

    # --- the view ---------------------------------------------------------------------------------------------------

    def create_messages_view(self) -> str:
        """Make the view of all messages, or bring it up to date; return its name.

        Raises:
            MongoDBSessionError: Something else has that name.
        """
        database, name = self.commands.collection.database, f"{self.commands.collection.name}_messages"
        pipeline = messages_view.pipeline(self.commands.collection.name, self.history.collection.name)
        try:
            database.create_collection(
                name, viewOn=self.commands.collection.name, pipeline=pipeline, check_exists=False
            )
        except OperationFailure as error:
            if error.code != _NAMESPACE_EXISTS:
                raise
            there = next(iter(database.list_collections(filter={"name": name})), {})
            if there.get("options", {}).get("viewOn") != self.commands.collection.name:
                raise MongoDBSessionError(
                    f"{database.name}.{name} is there already and is no view of {self.commands.collection.name}; it "
                    "was left as it is. Rename it, or keep the sessions in a collection of another name"
                ) from error
            database.command("collMod", name, viewOn=self.commands.collection.name, pipeline=pipeline)
        return name

    # --- leases -----------------------------------------------------------------------------------------------------

    def take_lease(self, session: SessionRef, owner: str, token: str, seconds: float) -> float | None:
        """Take the lease of a session; return None, or for how many seconds somebody else has it.

        Raises:
            SessionNotFoundError: The session was deleted.
        """
        for _ in attempts(f"session_id={session.session_id!r}: its lease could not be taken"):
            standing = self.commands.standing(session, {"leases": leases.LEASES_SO_FAR}, whose_lease_it_is=False)
            if (left := lease_seconds(standing)) > 0:
                return None if standing["lease"]["token"] == token else left
            if self.commands.update(
                leases.take_lease(pin_incarnation(session, standing), owner, token, seconds, standing["leases"])
            ):
                return None
        raise AssertionError  # `attempts` never ends without an error.

    def release_lease(self, session_id: str, token: str) -> None:
        """Give a lease back, if it is still this one."""
        self.commands.update(leases.release_lease(session_id, token))


def _unnamed(messages: Sequence[Document], body: Document) -> set[ObjectId]:
    """Return the files that messages name, as they were before, and no longer where ``body`` replaced parts of them."""
    left = rewrites.left_by_rewriting(messages, body)
    return blob_files(messages).keys() - blob_files([body, *left]).keys()


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
