"""Managers that share a client: one factory per application, one manager per session."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, cast

from pymongo import MongoClient

from ._client.clients import check_client
from ._client.executor import executor_of
from ._client.forks import in_child
from ._client.pool_statistics import PoolReport, PoolStats
from ._model.archive_policy import ArchivePolicy
from ._model.limits import BLOB_THRESHOLD_BYTES
from ._session.metadata_cache import MetadataCacheStats, MetadataMemory, SessionMetadataCache
from ._session.options import Durability, FeedbackHook, MetadataHook, OnConflict, Settings
from ._session.outboxes import flush_managers_on
from ._statements.session_listing import SessionPage
from ._store.search_index import MessageHit
from .mongodb_connection_pool import OwnedClient
from .mongodb_session_manager import MongoDBSessionManager
from .mongodb_session_repository import RepositoryOfManagers
from .telemetry import Observer


class MongoDBSessionManagerFactory:
    """Makes session managers that share one client, so that a request opens no connection of its own.

    Make one when the application starts and close it when it ends. Any number of factories, with any options,
    live side by side: each owns its client and closes no other. May be used from any thread, and in a forked
    child, where a factory that owns its client makes a new one.

    Args:
        connection_string: A MongoDB URI. The factory owns the client it makes from it; defaults as for
            ``MongoDBConnectionPool.initialize``.
        database_name: Where sessions are stored, unless a call says otherwise.
        collection_name: The collection of the session documents, unless a call says otherwise.
        client: A client of yours to borrow. It is never closed here, and ``connection_string`` is ignored.
        metadata_fields: Default of every manager, like all below; see ``MongoDBSessionManager``.
        application_name: Stored with new sessions.
        session_type: Stored with new sessions.
        durability: ``"message"`` stores each message at once, ``"turn"`` a whole turn in one write.
        on_conflict: ``"rebase"`` appends behind what another process wrote meanwhile, ``"raise"`` raises.
        ttl_hours: A session ends by itself so many hours after its last activity; None: it does not.
        archive_after_messages: Embedded messages from which an agent is archived from.
        archive_after_bytes: Embedded bytes from which an agent is archived from.
        archive_block: How many messages are archived at once.
        blob_threshold_bytes: Size from which on a binary is kept in GridFS.
        metadata_hook: Called instead of a manager's operations on metadata.
        feedback_hook: Called instead of a manager's ``add_feedback``.
        metadata_cache: Answers ``get_metadata`` of the managers from memory; not a manager's parameter. Without one
            each call asks the database.
        index_messages: Whether the text of messages can be found with ``search_messages``.
        **kwargs: Any option of ``MongoClient``; these win over the connection string.

    Raises:
        ValueError: Neither ``connection_string`` nor ``client``; ``w=0``; an unknown ``durability`` or
            ``on_conflict``; a ``metadata_cache`` that another factory uses; more than 28 ``metadata_fields``.
        TypeError: Options beside a borrowed client, which has its own; or an ``AsyncMongoClient``; or a
            ``metadata_cache`` that is none, or ``metadata_fields`` that are one string.
        pymongo.errors.ConfigurationError: An option or the connection string is unusable.
    """

    def __init__(
        self,
        connection_string: str | None = None,
        database_name: str = "database_name",
        collection_name: str = "collection_name",
        client: MongoClient[Any] | None = None,
        *,
        metadata_fields: Sequence[str] | None = None,
        application_name: str | None = None,
        session_type: str = "default",
        durability: Durability = "message",
        on_conflict: OnConflict = "rebase",
        ttl_hours: float | None = None,
        archive_after_messages: int = ArchivePolicy.after_messages,
        archive_after_bytes: int = ArchivePolicy.after_bytes,
        archive_block: int = ArchivePolicy.block,
        blob_threshold_bytes: int = BLOB_THRESHOLD_BYTES,
        metadata_hook: MetadataHook | None = None,
        feedback_hook: FeedbackHook | None = None,
        metadata_cache: SessionMetadataCache | None = None,
        index_messages: bool = False,
        **kwargs: Any,
    ) -> None:
        if metadata_cache is not None and not isinstance(metadata_cache, SessionMetadataCache):
            raise TypeError(f"metadata_cache must be a SessionMetadataCache, not {type(metadata_cache).__name__}")
        if client is None:
            if connection_string is None:
                raise ValueError("give a connection_string, or a client to borrow")
            self._source: OwnedClient | _BorrowedClient = OwnedClient(connection_string, **kwargs)
        else:
            check_client(client)
            if kwargs:
                raise TypeError(
                    f"a borrowed client has its options already; these cannot be applied: {', '.join(sorted(kwargs))}"
                )
            self._source = _BorrowedClient(client)
        self._database_name = database_name
        self._collection_name = collection_name
        self._metadata_fields = metadata_fields
        self._metadata_cache = metadata_cache
        self._memory: MetadataMemory | None = None
        self._observer: Observer | None = None
        self._repositories: dict[tuple[Any, ...], RepositoryOfManagers] = {}
        try:
            if metadata_cache is not None:
                self._memory = metadata_cache._given_to(self)
            # What no manager would take is refused when the application starts, not at the first request.
            self._settings = Settings.among(locals())
            self.create_session_manager("defaults")
        except BaseException:
            if self._memory is not None:
                self._memory.end()
            self._source.close()
            raise

    @property
    def client(self) -> MongoClient[Any]:
        """The client that the managers share.

        Raises:
            RuntimeError: The factory has been closed.
        """
        if self._source.closed:
            raise RuntimeError("this MongoDBSessionManagerFactory is closed: make a new one")
        return self._source.client

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._source.closed

    def create_session_manager(
        self, session_id: str, database_name: str | None = None, collection_name: str | None = None, **kwargs: Any
    ) -> MongoDBSessionManager:
        """Make the manager of one session. Sends nothing: the first use reads the session.

        Args:
            session_id: The session, new or stored.
            database_name: Another database than the factory's.
            collection_name: Another collection than the factory's.
            **kwargs: Parameters of ``MongoDBSessionManager`` that differ from the factory's, such as
                ``durability="turn"``.

        Raises:
            RuntimeError: The factory has been closed.
            TypeError: A parameter is unknown, or an option of the client, which all managers share.
            InvalidIdentifierError: The session id cannot be used.
        """
        metadata_fields, settings = self._metadata_fields, self._settings
        if kwargs:
            # A manager takes whatever else it is given for options of a client of its own, and only warns.
            if unknown := kwargs.keys() - _PARAMETERS:
                raise TypeError(
                    "create_session_manager() takes no option of the client, which all managers of the factory share,"
                    f" and no unknown one: {', '.join(sorted(unknown))}"
                )
            metadata_fields = kwargs.pop("metadata_fields", metadata_fields)
            settings = replace(settings, **kwargs)
        repository = self._repository(database_name, collection_name, metadata_fields, settings.ttl_hours)
        return MongoDBSessionManager._of_parts(session_id, settings, repository, self._observer)

    def _repository(
        self,
        database_name: str | None,
        collection_name: str | None,
        metadata_fields: Sequence[str] | None,
        ttl_hours: float | None,
    ) -> RepositoryOfManagers:
        """Return the repository that the managers of one database, collection and ttl share."""
        client = self.client
        database_name = self._database_name if database_name is None else database_name
        collection_name = self._collection_name if collection_name is None else collection_name
        # One string is no list of its letters; the repository says so.
        fields = metadata_fields if isinstance(metadata_fields, str) else tuple(metadata_fields or ())
        place = database_name, collection_name, fields
        shared = ttl_hours == self._settings.ttl_hours  # Of other ttls there may be any number.
        repository = self._repositories.get(place) if shared else None
        if repository is None or repository.client is not client:  # The latter: this is a forked child.
            repository = RepositoryOfManagers(None, database_name, collection_name, client, fields, ttl_hours=ttl_hours)
            if self._memory is not None:
                repository.remember_in(self._memory)
            if shared:
                self._repositories[place] = repository
        return repository

    async def open(
        self,
        session_id: str,
        *,
        agent_id: str | Iterable[str] | None = None,
        database_name: str | None = None,
        collection_name: str | None = None,
        **kwargs: Any,
    ) -> MongoDBSessionManager:
        """Make the manager of one session and read the session, off the event loop.

        ``Agent(...)`` restores its conversation synchronously. After this it finds it fetched::

            manager = await factory.open(session_id, agent_id="assistant")
            agent = Agent(agent_id="assistant", session_manager=manager)

        What was fetched serves one ``Agent`` per id.

        Args:
            session_id: The session, new or stored.
            agent_id: The agent, or agents, that will be built on the manager.
            database_name: As for `create_session_manager`.
            collection_name: As for `create_session_manager`.
            **kwargs: As for `create_session_manager`.

        Raises:
            RuntimeError: The factory has been closed.
            TypeError: As for `create_session_manager`.
            InvalidIdentifierError: The session id or an agent id cannot be used.
            pymongo.errors.PyMongoError: The session could not be read.
        """
        manager = self.create_session_manager(session_id, database_name, collection_name, **kwargs)
        agent_ids = [agent_id] if isinstance(agent_id, str) else list(agent_id or ())
        await executor_of(self.client).run(partial(manager._session.prefetch, agent_ids))
        return manager

    def check_session_exists(
        self, session_id: str, database_name: str | None = None, collection_name: str | None = None
    ) -> bool:
        """Return whether there is a session with this id. Begins none.

        Args:
            session_id: The session.
            database_name: As for `create_session_manager`.
            collection_name: As for `create_session_manager`.

        Raises:
            RuntimeError: The factory has been closed.
            InvalidIdentifierError: The session id cannot be used.
        """
        return self.create_session_manager(session_id, database_name, collection_name).check_session_exists()

    def list_sessions(
        self, *, database_name: str | None = None, collection_name: str | None = None, **filters: Any
    ) -> SessionPage:
        """Return a page of stored sessions: their headers, no conversation.

        It waits for MongoDB; in async code: ``await asyncio.to_thread(factory.list_sessions, limit=20)``.

        Args:
            database_name: As for `create_session_manager`.
            collection_name: As for `create_session_manager`.
            **filters: As for ``MongoDBSessionRepository.list_sessions``: ``metadata``, ``application_name``,
                ``session_type``, ``agent_id``, ``created_from``, ``created_before``, ``updated_from``,
                ``updated_before``, ``sort_by``, ``newest_first``, ``limit``, ``cursor``. The factory's own
                ``application_name`` and ``session_type`` are no filters.

        Raises:
            RuntimeError: The factory has been closed.
            TypeError: A filter is unknown; or as for ``MongoDBSessionRepository.list_sessions``, like all below.
            ValueError: A time, ``sort_by``, ``limit`` or ``cursor`` is wrong.
            InvalidIdentifierError: A metadata key or ``agent_id`` cannot be used.
            UnstorableValueError: A value to compare with is none that MongoDB knows.
        """
        repository = self._repository(database_name, collection_name, self._metadata_fields, self._settings.ttl_hours)
        repository._ensure_indexes()
        return repository.list_sessions(**filters)

    def search_messages(
        self, text: str, *, database_name: str | None = None, collection_name: str | None = None, **conditions: Any
    ) -> list[MessageHit]:
        """Return the messages in which a text is found, of all sessions; see the repository's ``search_messages``.

        In async code: ``await asyncio.to_thread(factory.search_messages, "refund")``.

        Args:
            text: What to look for.
            database_name: Another database than the factory's.
            collection_name: Another collection than the factory's.
            **conditions: ``session_id``, ``agent_id``, ``role``, ``application_name``, ``limit``.

        Raises:
            RuntimeError: The factory has been closed.
            MongoDBSessionError: Nothing was ever indexed.
        """
        repository = self._repository(database_name, collection_name, self._metadata_fields, self._settings.ttl_hours)
        return repository.search_messages(text, **conditions)

    def get_connection_stats(self) -> FactoryStats:
        """Return what the connections of the shared client are doing. See `PoolStats` for each field.

        It sends nothing, except that the first call asks for the server's version and waits at most 0.1 s.
        Of a borrowed client the counts are ``None``, unless this library made it or it carries a
        ``PoolStatistics``. After ``close`` they are the last ones. With a ``metadata_cache`` its own are under that
        key; see `MetadataCacheStats`.
        """
        stats = cast("FactoryStats", dict(self._source.stats()))
        if self._metadata_cache is not None:
            stats["metadata_cache"] = self._metadata_cache.stats()
        return stats

    def close(self) -> None:
        """Close the client, if the factory made it. Does nothing the second time.

        What managers on that client have not stored yet is stored first; a new agent that was asked nothing is not. A
        borrowed client, and what waits to be sent on it, is left alone.

        Raises:
            pymongo.errors.PyMongoError: Something could not be stored. The factory stays open and the manager
                keeps it: call ``close()`` again.
            MongoDBSessionError: The same, for a reason that will not pass: the session was deleted or has expired, and
                what was unstored is given up; or it was written by somebody else with ``on_conflict="raise"``, and
                the manager's ``reload`` gives it up.
        """
        if self.closed:
            return
        if isinstance(self._source, OwnedClient) and (client := self._source.client_if_made) is not None:
            flush_managers_on(client)
            executor_of(client).close(wait=True)  # Archiving that is under way ends first.
        if self._memory is not None:
            self._memory.end()  # Managers of a borrowed client may go on; they ask the database.
        self._source.close()

    def __enter__(self) -> MongoDBSessionManagerFactory:
        """Return the factory; leaving the block closes it."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the factory."""
        self.close()


class FactoryStats(PoolStats, total=False):
    """What `MongoDBSessionManagerFactory.get_connection_stats` returns."""

    metadata_cache: MetadataCacheStats
    """Of the factory's ``SessionMetadataCache``; missing where it has none."""


class _BorrowedClient:
    """A client that somebody else closes. To a factory it looks like an `OwnedClient`."""

    def __init__(self, client: MongoClient[Any]) -> None:
        self.client = client
        self.closed = False
        self.stats = PoolReport(client).read

    def close(self) -> None:
        self.closed = True


def initialize_global_factory(
    connection_string: str | None = None,
    database_name: str = "database_name",
    collection_name: str = "collection_name",
    client: MongoClient[Any] | None = None,
    **kwargs: Any,
) -> MongoDBSessionManagerFactory:
    """Make the factory that `get_global_factory` returns everywhere in this process.

    Called again with the same arguments, it returns the same factory. With others it raises, rather than
    close the former one, whose managers may hold messages that are not stored yet, or forget it, which would
    leave its connections open for ever.

    Args:
        connection_string: As for `MongoDBSessionManagerFactory`, like all that follow.
        database_name: Where sessions are stored.
        collection_name: The collection of the session documents.
        client: A client of yours to borrow, instead of ``connection_string``.
        **kwargs: Further parameters of the factory, and any option of ``MongoClient``.

    Returns:
        The global factory.

    Raises:
        RuntimeError: There is a global factory with other arguments. Call `close_global_factory` first.
        ValueError: As for `MongoDBSessionManagerFactory`.
        TypeError: As for `MongoDBSessionManagerFactory`.
        pymongo.errors.ConfigurationError: As for `MongoDBSessionManagerFactory`.
    """
    global _global
    # By identity: two clients of one server compare equal.
    borrowed = None if client is None else id(client)
    arguments = connection_string, database_name, collection_name, borrowed, kwargs
    with _global_lock:
        if _global is None or _global[0].closed:
            factory = MongoDBSessionManagerFactory(connection_string, database_name, collection_name, client, **kwargs)
            _global = factory, arguments
        elif _global[1] != arguments:
            raise RuntimeError(
                "the global factory is already initialised with other arguments. Call close_global_factory()"
                " first; for a second factory beside it make a MongoDBSessionManagerFactory"
            )
        return _global[0]


def get_global_factory() -> MongoDBSessionManagerFactory:
    """Return the factory made by `initialize_global_factory`.

    Raises:
        RuntimeError: There is none, or it has been closed.
    """
    current = _global
    if current is None or current[0].closed:
        raise RuntimeError("there is no global factory: call initialize_global_factory(connection_string=...) first")
    return current[0]


def close_global_factory() -> None:
    """Close the global factory. Does nothing where there is none. Afterwards it can be initialised anew.

    Raises:
        pymongo.errors.PyMongoError: As for `MongoDBSessionManagerFactory.close`. The factory stays the global one.
        MongoDBSessionError: Likewise.
    """
    if _global is not None:
        _global[0].close()


# What may be other for one manager than for all of the factory.
_PARAMETERS = {"metadata_fields", *Settings.names()}

# The factory, perhaps closed, and the arguments it was made from.
_global: tuple[MongoDBSessionManagerFactory, tuple[Any, ...]] | None = None
_global_lock = threading.Lock()


@in_child
def _after_fork_in_child() -> None:
    # A thread of the parent may have held the lock, and is not here to let it go.
    global _global_lock
    _global_lock = threading.Lock()
