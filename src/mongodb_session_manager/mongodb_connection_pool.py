"""How clients are made, and the one client that a process may share.

A factory that makes its client has an `OwnedClient`; `MongoDBConnectionPool` is one `OwnedClient` for the whole
process.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from pymongo import MongoClient

from ._client.clients import by_name, open_client
from ._client.forks import each_in_child, in_child
from ._client.pool_statistics import PoolReport, PoolStats


class OwnedClient:
    """A client that its maker closes, and that is made anew in a forked child.

    A client must not cross a fork: both processes would talk over the same connections. So each process gets
    its own from the same arguments, at its first need.

    Args:
        connection_string: As for ``open_client``, which is called at once.
        **options: As for ``open_client``.

    Attributes:
        closed: Whether `close` was called, here or in the process this one was forked from.
    """

    def __init__(self, connection_string: str, **options: Any) -> None:
        self._connection_string = connection_string
        self._options = options
        self._lock = threading.Lock()
        self._report: PoolReport | None = None
        self.closed = False
        self._made()
        _owned.add(self)

    @property
    def client(self) -> MongoClient[dict[str, Any]]:
        """The client of this process. After `close`, the closed one."""
        return self._made().client

    @property
    def client_if_made(self) -> MongoClient[dict[str, Any]] | None:
        """The client of this process, or None where it has not been needed since the fork."""
        return None if self._report is None else self._report.client

    def made_from(self, connection_string: str, options: dict[str, Any]) -> bool:
        """Return whether these are the arguments of this client. Case does not count in option names."""
        return self._connection_string == connection_string and by_name(self._options) == by_name(options)

    def stats(self) -> PoolStats:
        """Return the state of the connections. Waits for no database; see `PoolReport.read`."""
        return self._made().read()

    def close(self) -> None:
        """Close the client. Does nothing the second time."""
        with self._lock:
            self.closed = True
            if self._report is not None:
                self._report.client.close()

    def _made(self) -> PoolReport:
        if (report := self._report) is not None:
            return report
        with self._lock:
            if self._report is None:
                if self.closed:
                    raise RuntimeError("this client was closed before this process needed it")
                self._report = PoolReport(open_client(self._connection_string, self._options, shared=True))
            return self._report

    def _reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        if not self.closed:
            # PyMongo has cut the inherited client loose from the parent's connections, for those who hold it.
            self._report = None


class MongoDBConnectionPool:
    """The client that a whole process shares. All methods are class methods, for any thread to call.

    For one application with one database. Where clients with different options are to live side by side, make
    a ``MongoDBSessionManagerFactory`` for each: it owns its client.
    """

    _lock = threading.Lock()
    _owned: OwnedClient | None = None

    @classmethod
    def initialize(cls, connection_string: str, **kwargs: Any) -> MongoClient[dict[str, Any]]:
        """Make the shared client.

        Called again with the same arguments, it returns the same client. With others it raises: it neither
        hands out a client with options other than those asked for, nor closes one that somebody uses.

        Args:
            connection_string: A MongoDB URI, such as ``mongodb://user:password@host:27017/``. Its options win
                over the defaults below.
            **kwargs: Any option of ``MongoClient``; these win over the connection string. Defaults:
                ``maxPoolSize=100``, ``minPoolSize=10`` (or ``maxPoolSize`` where that is smaller),
                ``maxIdleTimeMS=30000``, ``waitQueueTimeoutMS=5000``, ``retryWrites=True``,
                ``retryReads=True``.

        Returns:
            The shared client. `close` of this class closes it; do not close it yourself.

        Raises:
            RuntimeError: The pool was initialised with other arguments and has not been closed.
            TypeError: ``connection_string`` is no string, for example an ``AsyncMongoClient``.
            ValueError: ``w=0``, or options that contradict each other.
            pymongo.errors.ConfigurationError: An option or the connection string is unusable.
        """
        with cls._lock:
            if cls._owned is None:
                cls._owned = OwnedClient(connection_string, **kwargs)
            elif not cls._owned.made_from(connection_string, kwargs):
                raise RuntimeError(
                    "MongoDBConnectionPool is already initialised with other arguments. Call"
                    " MongoDBConnectionPool.close() first, once nobody uses its client; for a second client"
                    " beside it make a MongoDBSessionManagerFactory"
                )
            return cls._owned.client

    @classmethod
    def get_client(cls) -> MongoClient[dict[str, Any]]:
        """Return the shared client. In a forked child, that is a new one made from the same arguments.

        Raises:
            RuntimeError: The pool was not initialised, or has been closed.
        """
        return cls._initialised().client

    @classmethod
    def get_pool_stats(cls) -> PoolStats:
        """Return what the shared client's connections are doing. See `PoolStats` for each field.

        It sends nothing, except that the first call asks for the server's version and waits at most 0.1 s.

        Raises:
            RuntimeError: The pool was not initialised, or has been closed.
        """
        return cls._initialised().stats()

    @classmethod
    def close(cls) -> None:
        """Close the shared client, whoever uses it. Afterwards the pool can be initialised anew.

        Does nothing where there is none.
        """
        with cls._lock:
            owned, cls._owned = cls._owned, None
        if owned is not None:
            owned.close()

    @classmethod
    def _initialised(cls) -> OwnedClient:
        owned = cls._owned
        if owned is None:
            raise RuntimeError(
                "MongoDBConnectionPool is not initialised: call"
                " MongoDBConnectionPool.initialize(connection_string) first"
            )
        return owned


_owned: weakref.WeakSet[OwnedClient] = each_in_child(lambda owned: owned._reset_after_fork())


@in_child
def _after_fork_in_child() -> None:
    # A thread of the parent may have held the lock, and is not here to let it go.
    MongoDBConnectionPool._lock = threading.Lock()
