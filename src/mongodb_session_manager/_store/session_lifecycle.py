"""How a session begins, is opened and ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import itemgetter

from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from .._model import live_view
from .._model.archive_policy import Embedded
from .._model.documents import Document, StoredAgent, check_message_count
from .._model.expiry import EXPIRED
from .._model.limits import READ_ACROSS_MESSAGES
from .._statements import sessions
from .._statements.reading import open_projection
from .._statements.sessions import SessionRef
from ..errors import HistoryIncompleteError, SessionNotFoundError
from .history import History
from .related_documents import RelatedDocuments
from .sending import attempts, is_there, until_known
from .session_commands import SessionCommands


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


@dataclass(eq=False)
class SessionLifecycle:
    """Begins, opens and deletes the sessions of one collection.

    Attributes:
        commands: About session documents.
        history: About segments.
        related: Deletes what belonged to a session.
    """

    commands: SessionCommands
    history: History
    related: RelatedDocuments

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
        projection = open_projection(agent_keys)
        for _ in attempts(f"session_id={session_id!r} could not be opened", session_id):
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
                try:
                    self._read_archived(session_id, opened.incarnation, key, agent, stored)
                except HistoryIncompleteError:
                    if not self.commands.is_over(session_id, opened.incarnation):
                        raise
                    break  # It was deleted in between.
            else:
                return opened
        raise AssertionError  # `attempts` never ends without an error.

    def _read_archived(
        self, session_id: str, incarnation: ObjectId, key: str, found: Document | None, stored: StoredAgent
    ) -> None:
        """Read what is live of an agent and lies in the history."""
        archived = stored.embedded.archived
        if found is None or not archived:
            return
        if stored.live is None:
            removed = max(0, int(found["removed"]))
            if removed < archived:
                stored.window[:0] = self.history.read(session_id, incarnation, key, removed, archived)
            return
        first_id = found.get("first_id", stored.message_count)
        held = {int(name) for name in stored.live.get("held", {}) if name.isdecimal()}
        gapless = archived + stored.embedded.count == stored.message_count
        read = self.history.read if gapless else self.history.read_between
        stretches = [range(first, min(last + 1, first_id)) for first, last in live_view.ranges(stored.live, first_id)]
        needed = set(chain.from_iterable(stretches)) - held
        # What lies between two stretches that are near is read as well: one command instead of two.
        for start, stop in live_view.joined(stretches, READ_ACROSS_MESSAGES):
            if not needed.isdisjoint(range(start, stop)):
                messages = read(session_id, incarnation, key, start, stop)
                stored.window += [message for message in messages if message["message_id"] in needed]
        stored.window.sort(key=itemgetter("message_id"))

    def insert(self, document: Document) -> None:
        """Insert a new session document, in the place of one that has expired, too.

        Raises:
            DuplicateKeyError: There is a session with this id.
        """
        session_id = document["_id"]
        for _ in attempts(f"session_id={session_id!r} could not be created", session_id):
            try:
                self.commands.collection.insert_one(document)
                return
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
                if self._replace_expired(there, document):
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
        for _ in attempts(f"session_id={session_id!r} could not be deleted", session_id):
            try:
                standing = self.commands.standing(session)
            except SessionNotFoundError:
                self._delete_expired(session_id)  # It is absent, and what MongoDB has not removed yet goes now.
                raise
            # Only the incarnation that was read: a command that arrives late finds no other.
            incarnation, which = standing.incarnation, session.pinned(standing.incarnation).filter()
            deleted = until_known(partial(self.commands.collection.delete_one, which)).deleted_count
            if deleted or self.commands.is_over(session_id, incarnation):
                self.related.delete_related(session_id, incarnation, indexed=standing.any_indexed)
                return

    def _delete_expired(self, session_id: str) -> None:
        """Delete a session that has expired and that MongoDB has not removed yet, if there is one."""
        which = {"_id": session_id, "$expr": EXPIRED}
        found = self.commands.find_plain(which, {"incarnation": 1, "any_indexed": sessions.ANY_INDEXED})
        if found is not None:
            expired = sessions.expired(session_id, found.get("incarnation"))
            if until_known(lambda: self.commands.collection.delete_one(expired)).deleted_count:
                self.related.delete_related(session_id, found.get("incarnation"), indexed=found["any_indexed"])


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
    live = found.get("live")
    return StoredAgent(
        agent_data=found.get("agent_data", {}),
        message_count=int(found["message_count"]),
        changes=int(found["changes"]),
        rewrites=int(found["rewrites"]),
        live=live if live is None or found["copies_count"] else live_view.without_copies(live),
        window=found["window"],
        embedded=Embedded.of(found),
    )
