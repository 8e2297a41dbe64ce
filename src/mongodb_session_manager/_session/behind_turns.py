"""What runs in a thread behind a turn, and no turn waits for: archiving and indexing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace

from pymongo.errors import PyMongoError

from .._agents.unit_of_work import AgentWork
from .._model.limits import INDEXED_BATCHES_BEHIND_A_TURN
from .._store.search_index import IndexingTask
from ..errors import MongoDBSessionError, described
from ..telemetry import traced
from .managed_session import ManagedSession

logger = logging.getLogger(__name__)


def begin(session: ManagedSession, work: AgentWork) -> None:
    """Begin to archive and to index what is due of an agent's conversation."""
    _archive_if_due(session, work)
    _index_if_due(session, work)


def under_way(session: ManagedSession, works: Callable[[], list[AgentWork]]) -> Iterator[Future[None]]:
    """Begin what is due for those agents, and yield all that is under way, twice: for then more may be due."""
    for _ in range(2):
        for work in works():
            if not work.unsent:
                begin(session, work)
        for work in works():
            futures = work.archiving, work.indexing
            work.archiving = work.indexing = None
            yield from (future for future in futures if future is not None)


def _archive_if_due(session: ManagedSession, work: AgentWork) -> None:
    """Begin to archive the oldest messages in a thread, if there are enough of them."""
    embedded = work.conversation.embedded
    is_under_way = work.archiving is not None and not work.archiving.done()
    due = session.related_should_expire or embedded.due(session.settings.archive_policy, session.document.bytes)
    if due and not is_under_way:
        work.archiving = session.store.commands.executor.submit_behind(lambda: _archive(session, work))


def _archive(session: ManagedSession, work: AgentWork) -> None:
    store, conversation, policy = session.store, work.conversation, session.settings.archive_policy
    before, incarnation = replace(conversation.embedded), session.incarnation
    assert incarnation is not None
    try:
        if session.related_should_expire:
            store.related.let_related_expire(session.ref())
            session.related_should_expire = False
        archive, attributes = store.archiver.archive, {"agent_id": conversation.agent_id}
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
        conversation.embedded = left


def _index_if_due(session: ManagedSession, work: AgentWork) -> None:
    """Begin to index in a thread, if the search may lack messages; also those that a dead process has left."""
    done = work.indexed == work.conversation.next_message_id
    if not session.settings.index_messages or done or session.incarnation is None:
        return
    if work.indexing is None or work.indexing.done():
        work.indexing = session.store.commands.executor.submit_behind(lambda: _index(session, work))


def _index(session: ManagedSession, work: AgentWork) -> None:
    conversation = work.conversation
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
        done = session.store.indexer.index(task)
    except (PyMongoError, MongoDBSessionError) as error:
        # The messages themselves are stored, and it stays due.
        logger.warning("session_id=<%s>, error=<%s> | not indexed", session.session_id, described(error))
    else:
        if done.complete:
            work.indexed = message_count
