"""The cache of metadata that an application gives to a factory: its limits, whose it is, what it counts."""

from __future__ import annotations

import math
import threading
import weakref
from collections import Counter
from typing import TypedDict, cast

from .._client.forks import each_in_child
from .metadata_memory import MetadataMemory


class MetadataCacheStats(TypedDict):
    """What a cache has done since it was made. Only numbers."""

    entries: int
    """Sessions whose metadata is held at this moment; some may be past their time and not be served any more."""
    max_entries: int
    """How many there can be."""
    hits: int
    """Reads that were answered from memory."""
    misses: int
    """Reads for which the database was asked."""
    evictions: int
    """Entries that made room for others. Many of them: ``max_entries`` is too small."""
    expirations: int
    """Entries that were asked for after ``ttl_seconds`` and not served."""
    invalidations: int
    """Entries that were dropped because the session was changed or deleted, here or, with ``watch``, elsewhere."""
    watching: int
    """Collections whose change stream is open at this moment; 0 without ``watch``, and on a standalone server."""


class SessionMetadataCache:
    """Keeps the metadata of sessions in memory, so that ``manager.get_metadata()`` need not ask the database.

    Give it to a factory; all managers that the factory makes use it::

        factory = MongoDBSessionManagerFactory(uri, metadata_cache=SessionMetadataCache(ttl_seconds=30))

    What a manager of this factory has written is never hidden by an older value. What *another process* has written
    may be, for ``ttl_seconds`` at most; with ``watch`` only until the server has told of it. A session that does not
    exist is not remembered as such, nor is metadata of more than 64 KB. Threads may share it. A forked child begins
    with an empty one.

    Args:
        max_entries: How many sessions' metadata are held; beyond that the one that was not used for longest goes.
        ttl_seconds: For how many seconds after it was read a value may be served.
        watch: Also learn of changes that other processes make, from a change stream: one daemon thread and one
            connection for each collection in use, of half of ``maxPoolSize`` at most. Change streams need a replica
            set or a sharded cluster. Elsewhere, where the user may not open one, and while one is lost, the time
            limit alone holds, which is logged; ``stats()["watching"]`` tells.

    Raises:
        TypeError: ``max_entries`` is no ``int``, ``ttl_seconds`` no number, ``watch`` no ``bool``.
        ValueError: ``max_entries`` is below 1, or ``ttl_seconds`` not above 0 or not finite.
    """

    def __init__(self, max_entries: int = 1000, ttl_seconds: float = 60.0, *, watch: bool = False) -> None:
        if not isinstance(max_entries, int) or isinstance(max_entries, bool):
            raise TypeError(f"max_entries must be an int, not {type(max_entries).__name__}")
        if max_entries < 1:
            raise ValueError(f"max_entries must be at least 1, not {max_entries}")
        if not isinstance(ttl_seconds, (int, float)) or isinstance(ttl_seconds, bool):
            raise TypeError(f"ttl_seconds must be a number, not {type(ttl_seconds).__name__}")
        if not (math.isfinite(ttl_seconds) and ttl_seconds > 0):
            raise ValueError(f"ttl_seconds must be finite and above 0, not {ttl_seconds}")
        if not isinstance(watch, bool):
            raise TypeError(f"watch must be a bool, not {type(watch).__name__}")
        self._max_entries = max_entries
        self._ttl_seconds = ttl_seconds
        self._watches = watch
        self._counts: Counter[str] = Counter()
        self._memory: MetadataMemory | None = None
        self._lock = threading.Lock()
        _caches.add(self)

    def stats(self) -> MetadataCacheStats:
        """Return how often the cache could answer, and how full it is."""
        entries, watching = (0, 0) if self._memory is None else self._memory.sizes()
        counts = {name: self._counts[name] for name in MetadataCacheStats.__annotations__}
        now = {"entries": entries, "max_entries": self._max_entries, "watching": watching}
        return cast("MetadataCacheStats", counts | now)

    def clear(self) -> None:
        """Forget all metadata, for example after it was changed by a program that does not use this library."""
        if self._memory is not None:
            self._memory.forget_all()

    def __repr__(self) -> str:
        """Name the limits."""
        return f"{type(self).__name__}(max_entries={self._max_entries}, ttl_seconds={self._ttl_seconds})"

    def _given_to(self, owner: object) -> MetadataMemory:
        """Return an empty memory for a factory; nobody else gets one before the factory ends it, or is gone.

        Raises:
            ValueError: Another factory has one. The same session id means another session on another server.
        """
        with self._lock:
            former = self._memory
            if former is not None and former.owned:
                raise ValueError("a SessionMetadataCache serves one factory at a time: make one for each")
            self._memory = MetadataMemory(
                owner, self._max_entries, self._ttl_seconds, self._counts, watches=self._watches
            )
        if former is not None:
            former.end()
        return self._memory

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._counts.clear()


def memory_for(owner: object, cache: SessionMetadataCache) -> MetadataMemory:
    """Give a cache to a factory; see ``SessionMetadataCache``. The memory that is returned is the factory's to end."""
    return cache._given_to(owner)


_caches: weakref.WeakSet[SessionMetadataCache] = each_in_child(SessionMetadataCache._after_fork)
