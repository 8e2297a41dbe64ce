"""Which metadata may be answered from memory: never any that is older than a write of this process, nor than a time.

The danger of such a cache is a slow reader that puts an old value back after a newer one was written. So each read
that may fill the cache is known while it is under way; a change of its session makes it void, and while a change is
under way nothing is put in.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypedDict

from bson import ObjectId

from .._client.forks import each_in_child
from .._model.limits import MAX_CACHED_METADATA_BYTES
from .._store.session_reads import MetadataAsRead


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


class SessionPlace(NamedTuple):
    """A collection of session documents."""

    database: str
    collection: str


class Watcher(Protocol):
    """Tells a cache of changes that others make in one collection."""

    live: bool
    """Whether it does so at this moment."""

    def stop(self) -> None:
        """End, soon."""

    def join(self) -> None:
        """Wait for the end, for a moment at most."""


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
        self._owner: weakref.ref[object] | None = None
        self._token: object = None
        self._reset()
        _caches.add(self)

    def _reset(self) -> None:
        # Also in a forked child: a thread of the parent may have held the lock, and none of its threads is there.
        self._lock = threading.Lock()
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._reads: dict[_Key, set[_Read]] = {}
        self._writes: dict[_Key, int] = {}
        self._watchers: dict[SessionPlace, Watcher | None] = {}
        self._hits = self._misses = self._evictions = self._expirations = self._invalidations = 0

    def stats(self) -> MetadataCacheStats:
        """Return how often the cache could answer, and how full it is."""
        with self._lock:
            return {
                "entries": len(self._entries),
                "max_entries": self._max_entries,
                "hits": self._hits,
                "misses": self._misses,
                "evictions": self._evictions,
                "expirations": self._expirations,
                "invalidations": self._invalidations,
                "watching": sum(watcher is not None and watcher.live for watcher in self._watchers.values()),
            }

    def clear(self) -> None:
        """Forget all metadata, for example after it was changed by a program that does not use this library."""
        self._forget_all()

    def __repr__(self) -> str:
        """Name the limits."""
        return f"{type(self).__name__}(max_entries={self._max_entries}, ttl_seconds={self._ttl_seconds})"

    # --- for the repository, the factory and the watchers -------------------------------------------------------------

    def _read(
        self,
        use: CacheUse,
        place: SessionPlace,
        session_id: str,
        incarnation: ObjectId | None,
        ask: Callable[[], MetadataAsRead | None],
    ) -> bytes | None:
        """Return a session's metadata from memory, or else what ``ask`` returns.

        Args:
            use: By what right the cache is used; where that is over, the database is asked.
            place: Where the session is.
            session_id: Which one.
            incarnation: The incarnation of the session that the reader knows, if any. Another one is not served.
            ask: Asks the database; None means that there is no such session.
        """
        key = (place, session_id)
        with self._lock:
            is_current = self._token is use.token
            # The time of a value is when it was asked for: it may have changed right after.
            now = time.monotonic()
            if is_current and (entry := self._entries.get(key)) is not None:
                if now >= entry.expires:
                    self._expirations += 1
                elif incarnation is not None and incarnation != entry.found.incarnation:
                    self._invalidations += 1
                else:
                    self._hits += 1
                    self._entries.move_to_end(key)
                    return entry.found.content
                del self._entries[key]
            if is_current:
                self._misses += 1
            read = _Read()
            self._reads.setdefault(key, set()).add(read)
        found: MetadataAsRead | None = None
        try:
            found = ask()
        finally:
            with self._lock:
                if reads := self._reads.get(key):
                    reads.discard(read)
                    if not reads:
                        del self._reads[key]
                void = read.void or key in self._writes or self._token is not use.token
                standing = self._entries.get(key)
                is_newest = standing is None or standing.began <= now
                if found is not None and not void and is_newest and len(found.content) <= MAX_CACHED_METADATA_BYTES:
                    seconds = self._ttl_seconds
                    if found.seconds_left is not None:  # Its session expires.
                        seconds = min(seconds, found.seconds_left)
                    self._entries[key] = _Entry(now, now + seconds, found)
                    self._entries.move_to_end(key)
                    if len(self._entries) > self._max_entries:
                        self._entries.popitem(last=False)
                        self._evictions += 1
        return None if found is None else found.content

    @contextmanager
    def _changing(self, place: SessionPlace, session_id: str) -> Iterator[None]:
        """Keep nothing about a session while the block runs, which changes or deletes it.

        However it ends: whether a write that failed was carried out is not always known.
        """
        key = (place, session_id)
        with self._lock:
            self._writes[key] = self._writes.get(key, 0) + 1
            self._drop(key)
        try:
            yield
        finally:
            with self._lock:
                # A fork inside the block has emptied it.
                if (others := self._writes.pop(key, 1) - 1) > 0:
                    self._writes[key] = others
                self._drop(key)

    def _forget(self, place: SessionPlace, session_id: str) -> None:
        """Drop what is known of a session; what is being read of it now will not be kept."""
        with self._lock:
            self._drop((place, session_id))

    def _forget_all(self, place: SessionPlace | None = None) -> None:
        """Drop what is known of all sessions, or of those in one collection; likewise what is being read now."""
        with self._lock:
            for key in [key for key in {*self._entries, *self._reads} if place is None or key[0] == place]:
                self._drop(key)

    def _drop(self, key: _Key) -> None:
        if self._entries.pop(key, None) is not None:
            self._invalidations += 1
        for read in self._reads.get(key, ()):
            read.void = True

    def _watch(self, use: CacheUse, place: SessionPlace, start: Callable[[int], Watcher | None]) -> None:
        """Have a collection watched, unless it is.

        Args:
            use: As for ``_read``.
            place: The collection.
            start: Begins it, given how many are watched already, or returns None if it is not to be.
        """
        if self._watches and place not in self._watchers:
            with self._lock:
                if place not in self._watchers and self._token is use.token:
                    self._watchers[place] = start(sum(watcher is not None for watcher in self._watchers.values()))

    def _attach(self, owner: object) -> CacheUse:
        """Give the cache to a factory: empty, and nobody else uses it from now on.

        Raises:
            ValueError: Another one has it. The same session id means another session on another server.
        """
        token = object()
        self._change_owner(weakref.ref(owner), token)
        return CacheUse(self, token)

    def _detach(self) -> None:
        """Take the cache from the factory. Another one may have it then."""
        self._change_owner(None, None)

    def _change_owner(self, owner: weakref.ref[object] | None, token: object) -> None:
        """End what watches, and forget everything; whoever used the cache before asks the database from now on."""
        with self._lock:
            if owner is not None and self._owner is not None and self._owner() is not None:
                raise ValueError("a SessionMetadataCache serves one factory at a time: make one for each")
            self._owner, self._token = owner, token
            watchers = [watcher for watcher in self._watchers.values() if watcher is not None]
            self._watchers = {}
        for watcher in watchers:
            watcher.stop()
        for watcher in watchers:
            watcher.join()
        self._forget_all()


class CacheUse(NamedTuple):
    """The right to use a cache: a factory's, until that is closed or the cache is another's.

    Attributes:
        cache: The cache.
        token: Its own as long as the right lasts.
    """

    cache: SessionMetadataCache
    token: object


_Key = tuple[SessionPlace, str]


class _Entry(NamedTuple):
    began: float
    expires: float
    found: MetadataAsRead


class _Read:
    """A read of the database that is under way."""

    __slots__ = ("void",)

    def __init__(self) -> None:
        self.void = False


_caches: weakref.WeakSet[SessionMetadataCache] = each_in_child(lambda cache: cache._reset())
