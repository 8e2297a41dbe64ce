"""How everything but messages is changed: read how the session stands, then write only if it still stands so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pymongo.errors import WriteError

from .._model.documents import Document
from .._model.keys import decode_key
from .._model.limits import MAX_METADATA_BYTES
from .._statements import changes as statements
from .._statements import feedback as feedback_statements
from .._statements.feedback import MessageLink
from .._statements.sessions import SessionRef, Update
from ..errors import AgentNotFoundError, MessageNotFoundError, UnstorableValueError
from .archiving import Archiver
from .history import History
from .related_documents import RelatedDocuments
from .sending import PATH_NOT_VIABLE, attempts
from .session_commands import SessionCommands, now
from .session_reads import MultiAgentAsRead, SessionReads


@dataclass(eq=False)
class GuardedWrites:
    """Changes the sessions of one collection: metadata, feedback, graphs and swarms, the lease, an agent's record.

    Attributes:
        commands: About session documents.
        reads: Looks for an archived message that a feedback is about.
        history: Looks for an archived feedback.
        archiver: Makes room for a feedback.
        related: Keeps what belongs to a session as long as the session.
    """

    commands: SessionCommands
    reads: SessionReads
    history: History
    archiver: Archiver
    related: RelatedDocuments

    def guarded(
        self,
        session: SessionRef,
        write: Callable[[SessionRef, Document], Update],
        needed: Document | None = None,
        done: Callable[[Document], bool] = lambda _: False,
        *,
        known: Document | None = None,
        agent_keys: Sequence[str] = (),
    ) -> Document | None:
        """Read how a session stands and send the update that is right for that; return None if it was applied.

        The update names in its filter what was read. So it changes nothing where it arrives late, behind a newer one.
        Where it was applied and its answer was lost, it does not match when it is sent again, and ``done`` tells.

        Args:
            session: Whose.
            write: Makes the update from the session, with the incarnation that was read, and its standing.
            needed: Projection of what the update depends on, besides ``sessions.STANDING``.
            done: Whether the standing says that the update was applied, or is not to be sent.
            known: The standing as far as ``write`` needs it, if it is known: then nothing is read at first.
            agent_keys: Agents whose counters the update depends on.

        Returns:
            None; or the standing, where ``done`` says so.

        Raises:
            SessionNotFoundError: There is no such session.
            SessionBusyError: Another process holds its lease.
        """
        for _ in attempts(f"session_id={session.session_id!r}", session.session_id):
            if known is None:
                standing = self.commands.standing(session, needed or {}, agent_keys)
                found = standing.found
                if done(found):
                    return found
                self.related.see_to_expiry(session, standing)
            else:
                found, known = known, None
            if self.commands.update(write(session.pinned(found["incarnation"]), found)):
                return None
        raise AssertionError  # `attempts` never ends without an error.

    def set_metadata(self, session: SessionRef, metadata: Mapping[str, Any]) -> None:
        """Set metadata fields and leave the others.

        Raises:
            UnstorableValueError: The session's metadata has more than ``MAX_METADATA_BYTES`` already, or what lies
                above a dotted key is no object.
        """
        needed = {"metadata_changes": statements.METADATA_CHANGES_SO_FAR, "size": statements.METADATA_SIZE}
        try:
            full = self.guarded(
                session,
                lambda here, found: statements.set_metadata(here, metadata, found["metadata_changes"], now()),
                needed,
                lambda found: bool(found["size"] > MAX_METADATA_BYTES),
            )
        except WriteError as error:
            if error.code != PATH_NOT_VIABLE:
                raise
            # The server's own message quotes the value that is there; an agent may not be allowed to see it.
            keys = ", ".join(map(repr, metadata))
            raise UnstorableValueError(
                f"session_id={session.session_id!r}: one of {keys} lies below a value that is no object",
                session_id=session.session_id,
            ) from error
        if full is not None:
            raise UnstorableValueError(
                f"session_id={session.session_id!r}: its metadata has {full['size']} bytes, and nothing can be set "
                f"where it has more than {MAX_METADATA_BYTES}: delete some of it first",
                session_id=session.session_id,
            )

    def unset_metadata(self, session: SessionRef, keys: Sequence[str]) -> None:
        """Remove metadata fields and leave the others."""
        self.guarded(
            session,
            lambda here, found: statements.unset_metadata(here, keys, found["metadata_changes"], now()),
            {"metadata_changes": statements.METADATA_CHANGES_SO_FAR},
        )

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
        for _ in attempts(f"session_id={session_id!r}: a feedback could not be stored", session_id):
            standing = self.commands.standing(session, feedback_statements.feedback_projection(feedback, link), keys)
            found = standing.found
            incarnation = found["incarnation"]
            if found["stored"]:
                return
            if sent and found["archived"] and self.history.has_feedback(session_id, incarnation, feedback):
                return  # It was stored, its answer was lost, and others came that moved it into the history.
            if link is not None and not found["linked"]:
                message_id = link.message_id
                agent_id = decode_key(link.agent_key)
                if not found["exists"]:
                    raise AgentNotFoundError(
                        f"session_id={session_id!r} has no agent_id={agent_id!r}",
                        session_id=session_id,
                        agent_id=agent_id,
                    )
                if message_id is None or not self.reads.archived_message(session_id, link.agent_key, message_id, found):
                    raise MessageNotFoundError(
                        f"session_id={session_id!r}, agent_id={agent_id!r} has no message_id={message_id}",
                        session_id=session_id,
                        agent_id=agent_id,
                        message_id=message_id,
                    )
                # Messages do not go away while this incarnation of the session lasts.
                link, session = link._replace(message_id=None), session.pinned(incarnation)
            elif found["full"]:
                self.archiver.archive_feedbacks(session_id, incarnation)
            else:
                self.related.see_to_expiry(session, standing)
                sent = True
                update = feedback_statements.add_feedback(
                    session.pinned(incarnation), feedback, link, found["count"], moment
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
            return statements.multi_agent(session, multi_agent_id, state, changes, now())

        as_known = None if known is None else {"incarnation": session.incarnation, "changes": known.changes}
        self.guarded(session, write, statements.multi_agent_projection(multi_agent_id), known=as_known)
        return MultiAgentAsRead(state, 0 if changes is None else changes + 1)

    def take_lease(self, session: SessionRef, owner: str, token: str, seconds: float) -> float | None:
        """Take the lease of a session; return None, or for how many seconds somebody else has it.

        Raises:
            SessionNotFoundError: The session was deleted.
        """
        for _ in attempts(f"session_id={session.session_id!r}: its lease could not be taken", session.session_id):
            standing = self.commands.standing(session, {"leases": statements.LEASES_SO_FAR}, whose_lease_it_is=False)
            if standing.lease is not None and (left := standing.lease_seconds) > 0:
                return None if standing.lease["token"] == token else left
            here, taken_before = session.pinned(standing.incarnation), standing.found["leases"]
            if self.commands.update(statements.take_lease(here, owner, token, seconds, taken_before)):
                return None
        raise AssertionError  # `attempts` never ends without an error.

    def release_lease(self, session_id: str, token: str) -> None:
        """Give a lease back, if it is still this one."""
        self.commands.update(statements.release_lease(session_id, token))
