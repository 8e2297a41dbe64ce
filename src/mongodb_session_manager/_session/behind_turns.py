"""What runs in a thread behind a turn, and no turn waits for: archiving and indexing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace

from pymongo.errors import PyMongoError

from .._agents.unit_of_work import AgentWork
from .._model.limits import INDEXED_BATCHES_BEHIND_A_TURN
from .._store.indexing import IndexingTask
from .._store.session_store import SessionStore
from ..errors import MongoDBSessionError, described
from ..telemetry import traced
from .managed_session import ManagedSession
from .options import Settings

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class BehindTurns:
    """Archives and indexes the conversations of one manager.

    Attributes:
        session: The session they belong to.
        settings: What the manager is asked to do.
        store: Where the session is kept.
    """

    session: ManagedSession
    settings: Settings
    store: SessionStore

    def begin(self, work: AgentWork) -> None:
        """Begin to archive and to index what is due."""
        self._archive_if_due(work)
        self._index_if_due(work)

    def wait_for(self, works: Callable[[], list[AgentWork]]) -> Iterator[Future[None]]:
        """Begin what is due for those agents, and yield all that is under way, twice: for then more may be due."""
        for _ in range(2):
            for work in works():
                if not work.unsent:
                    self.begin(work)
            for work in works():
                archiving, work.archiving = work.archiving, None
                indexing, work.indexing = work.indexing, None
                yield from (under_way for under_way in (archiving, indexing) if under_way is not None)

    def _archive_if_due(self, work: AgentWork) -> None:
        """Begin to archive in a thread what has left the live conversation, if there is enough of it."""
        session, embedded = self.session, work.conversation.embedded
        under_way = work.archiving is not None and not work.archiving.done()
        due = session.related_should_expire or embedded.due(self.settings.archive_policy, session.document.bytes)
        if due and not under_way:
            work.archiving = self.store.commands.executor.submit_behind(lambda: self._archive(work))

    def _archive(self, work: AgentWork) -> None:
        session, conversation, policy = self.session, work.conversation, self.settings.archive_policy
        before, incarnation = replace(conversation.embedded), session.incarnation
        assert incarnation is not None
        try:
            if session.related_should_expire:
                self.store.related.let_related_expire(session.ref())
                session.related_should_expire = False
            archive, attributes = self.store.archiver.archive, {"agent_id": conversation.agent_id}
            left = traced("archive", attributes, archive, session.session_id, incarnation, conversation.key, policy)
        except PyMongoError as error:
            # Nothing is lost by that, and it stays due: the next turn, here or in another process, tries again.
            logger.warning("session_id=<%s>, error=<%s> | not archived", session.session_id, described(error))
            return
        if left is not None:
            session.document.bytes = max(0, session.document.bytes - before.bytes + left.bytes)
            # And what was committed meanwhile.
            embedded = conversation.embedded
            left.count += embedded.count - before.count
            left.bytes += embedded.bytes - before.bytes
            left.removed = max(left.removed, embedded.removed)
            conversation.embedded = left

    def _index_if_due(self, work: AgentWork) -> None:
        """Begin to index in a thread, if the search may lack messages; also those that a dead process has left."""
        done = work.indexed == work.conversation.next_message_id
        if not self.settings.index_messages or done or self.session.incarnation is None:
            return
        if work.indexing is None or work.indexing.done():
            work.indexing = self.store.commands.executor.submit_behind(lambda: self._index(work))

    def _index(self, work: AgentWork) -> None:
        session, conversation = self.session, work.conversation
        assert session.incarnation is not None
        message_count = conversation.next_message_id
        task = IndexingTask(
            session.session_id,
            session.incarnation,
            conversation.key,
            at_least=message_count,
            batches=INDEXED_BATCHES_BEHIND_A_TURN,
        )
        try:
            done = self.store.indexer.index(task)
        except (PyMongoError, MongoDBSessionError) as error:
            # The messages themselves are stored, and it stays due.
            logger.warning("session_id=<%s>, error=<%s> | not indexed", session.session_id, described(error))
        else:
            if done.complete:
                work.indexed = message_count
