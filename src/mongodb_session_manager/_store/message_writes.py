"""How messages are stored and replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from bson import ObjectId
from pymongo.errors import WriteError

from .._model.documents import Document
from .._model.encoding import blob_files
from .._model.keys import decode_key
from .._statements import commits, rewrites
from .._statements.commits import Commit
from .._statements.rewrites import Rewrite, RewriteStanding
from .._statements.sessions import SessionRef
from ..errors import AgentNotFoundError, MessageNotFoundError, SessionConflictError
from .history import History
from .related_documents import RelatedDocuments
from .search_index import SearchIndex
from .sending import NOT_A_LIST_OR_NUMBER, attempts
from .session_commands import SessionCommands, now
from .session_reads import SessionReads


@dataclass(eq=False)
class MessageWrites:
    """Appends to and rewrites the conversations of one collection.

    Attributes:
        commands: About session documents.
        reads: Finds out which commit has stored a message.
        history: About segments.
        search: About search documents.
        related: Keeps what belongs to a session as long as the session.
    """

    commands: SessionCommands
    reads: SessionReads
    history: History
    search: SearchIndex
    related: RelatedDocuments

    def commit(self, session: SessionRef, work: Commit) -> None:
        """Store everything in ``work`` in one update, exactly once. This is the one way in which messages are appended.

        A writer that has not opened the session (it knows no incarnation) reads first; else the update is sent at once.

        Args:
            session: Whose.
            work: What to store. After an error it can be given again; its ``first_message_id`` may have moved, and
                ``creates`` is None once another writer has begun the agent.

        Raises:
            SessionConflictError: Other writers have stored messages under its ids, and ``work.rebase`` is false.
            SessionNotFoundError: The session was deleted.
            AgentNotFoundError: The session does not have the agent, or not any more.
            SessionBusyError: Another process holds the session's lease, or the writer's own has run out.
        """
        for times in attempts(_named(session, work.key), session.session_id):
            if times or session.incarnation is None:
                needed = commits.append_projection(work.key, work.first_message_id or 0)
                standing = self.commands.standing(session, needed, [work.key])
                if self._is_stored(session, work, standing.found):
                    return
                self.related.see_to_expiry(session, standing)
                session = session.pinned(standing.incarnation)
            try:
                if self.commands.update(commits.commit(session, work, now())):
                    return
            except WriteError as error:
                events = [message for message in work.messages if message.guardrail_events]
                if error.code not in NOT_A_LIST_OR_NUMBER or not events:
                    raise
                for message in events:  # Another program keeps something of that name; the commit is what counts.
                    message.guardrail_events = ()

    def _is_stored(self, session: SessionRef, work: Commit, found: Document) -> bool:
        """Return whether nothing of a commit is left to send; else make it fit how the session stands."""
        where, first = _named(session, work.key), work.first_message_id or 0
        session_id, agent_id = session.session_id, decode_key(work.key)
        if work.messages and self.reads.commit_id_at(session, work.key, first, found) == work.commit_id:
            return True  # It had arrived: only its answer was lost.
        if not found["exists"]:
            if work.creates is None:
                raise _no_agent(session, work.key)
            return False
        work.creates = None  # Another writer came first and has decided how the agent began.
        work.changes = int(found["changes"])
        message_count = found["message_count"]
        if work.is_behind(message_count):
            if not work.rebase:
                raise SessionConflictError(
                    f"{where}: message_id={first} is taken by another writer; the next is {message_count}",
                    session_id=session_id,
                    agent_id=agent_id,
                    message_id=first,
                )
            work.first_message_id = int(message_count)  # A shell writes numbers as floating point.
        return work.empty

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
        session_id, where = session.session_id, _named(session, work.key)
        agent_id = decode_key(work.key)
        for _ in attempts(f"{where}: message_id={work.message_id} could not be replaced", session_id):
            standing = self.commands.standing(session, rewrites.rewrite_projection(work), [work.key])
            found, here = cast(RewriteStanding, standing.found), session.pinned(standing.incarnation)
            if not found["exists"]:
                raise _no_agent(session, work.key)
            if found.get("listed"):
                work.guardrail_event = None  # It had arrived: only its answer was lost. The rest may be done again.
            replaced = found["messages"]
            if not replaced and not self.history.has(session_id, found["incarnation"], work):
                raise MessageNotFoundError(
                    f"{where} has no message_id={work.message_id}, or another message has this id",
                    session_id=session_id,
                    agent_id=agent_id,
                    message_id=work.message_id,
                )
            work.unnamed |= _unnamed(replaced, work.body)
            self.related.see_to_expiry(session, standing)
            try:
                # The session document is changed first: it decides who may make a change.
                if self.commands.update(rewrites.rewrite(here, work, found, moment)):
                    break
            except WriteError as error:
                if error.code not in NOT_A_LIST_OR_NUMBER or work.guardrail_event is None:
                    raise
                work.guardrail_event = None  # As in `commit`.
        # An archiver may hold a copy of an embedded message that it has yet to commit.
        edit = int(found["edits"]) + 1
        archived, read_to_index = self.history.rewrite(session_id, found["incarnation"], work, edit, moment)
        work.unnamed |= _unnamed(archived, work.body)
        if "indexed" in found or read_to_index:
            self.search.rewrite(session_id, work, replaced + archived, found)
        # Nothing names these any more. Where the process dies before this, a sweep finds them.
        self.commands.blobs.delete(work.unnamed)


def _unnamed(messages: Sequence[Document], body: Document) -> set[ObjectId]:
    """Return the files that messages name, as they were before, and no longer where ``body`` replaced parts of them."""
    left = rewrites.left_by_rewriting(messages, body)
    return blob_files(messages).keys() - blob_files([body, *left]).keys()


def _named(session: SessionRef, key: str) -> str:
    return f"session_id={session.session_id!r}, agent_id={decode_key(key)!r}"


def _no_agent(session: SessionRef, key: str) -> AgentNotFoundError:
    where, agent_id = _named(session, key), decode_key(key)
    return AgentNotFoundError(
        f"{where}: the session has no such agent", session_id=session.session_id, agent_id=agent_id
    )
