"""The cache of metadata that an application gives to a factory, and what may be answered from it.

Never any that is older than a write of this process, nor than a time. The danger is a slow reader that puts an old
value back after a newer one was written. So each read that may fill the memory is known while it is under way; a change
of its session makes it void, and while a change is under way nothing is put in.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypedDict, cast

from bson import ObjectId

from .._client.forks import each_in_child
from .._model.limits import MAX_CACHED_METADATA_BYTES
from .._store.session_reads import MetadataAsRead
from .._store.session_store import SessionStore
from .metadata_watch import MetadataWatcher, watch

_Key = tuple[str, str]  # The full name of the collection, the session's id.


def _key(store: SessionStore, session_id: str) -> _Key:
    return store.commands.collection.full_name, session_id


class _Entry(NamedTuple):
    began: float
    expires: float
    found: MetadataAsRead


class MetadataMemory:
    """What the managers of one factory remember, until the factory is closed; then the database is asked each time.

    Threads may share it.

    Args:
        owner: The factory. Where nobody holds it any more, another one may take the cache. None: there is none yet.
        max_entries: How many sessions' metadata are held.
        ttl_seconds: For how many seconds after it was read a value may be served.
        watches: Whether changes by other processes are learned of from change streams.
        counts: What is counted, by the keys of ``MetadataCacheStats``.
    """

    def __init__(
        self, owner: object | None, max_entries: int, ttl_seconds: float, counts: Counter[str], *, watches: bool
    ) -> None:
        self._owner = None if owner is None else weakref.ref(owner)
        self._max_entries = max_entries
        self._ttl_seconds = ttl_seconds
        self._counts = counts
        self._watches = watches
        self.reset()
        _memories.add(self)

    def reset(self) -> None:
        """Forget everything in a forked child. None of the parent's threads is there, and one may hold the lock."""
        self._lock = threading.Lock()
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        # What is being read now, by a token of the read. One that a change made void is not there any more.
        self._reads: dict[object, _Key] = {}
        self._writes: Counter[_Key] = Counter()
        self._watchers: dict[str, MetadataWatcher | None] = {}

    @property
    def owned(self) -> bool:
        """Whether the factory has it still."""
        return self._owner is not None and self._owner() is not None

    def sizes(self) -> tuple[int, int]:
        """Return how many sessions' metadata are held, and how many change streams are open."""
        with self._lock:
            return len(self._entries), sum(watcher is not None and watcher.live for watcher in self._watchers.values())

    def read(self, store: SessionStore, session_id: str, incarnation: ObjectId | None) -> bytes | None:
        """Return a session's metadata from memory, or else from the database; None if there is no such session.

        Args:
            store: Where the session is kept.
            session_id: The session.
            incarnation: The incarnation of the session that the reader knows, if any. Another one is not served.
        """
        key, read = _key(store, session_id), object()
        self._follow_changes(key[0], store)
        with self._lock:
            # The time of a value is when it was asked for: it may have changed right after.
            began = time.monotonic()
            if (entry := self._served(key, incarnation, began)) is not None:
                return entry.found.content
            self._reads[read] = key
        found: MetadataAsRead | None = None
        try:
            found = store.reads.read_metadata(session_id)
        finally:
            with self._lock:
                is_valid = self._reads.pop(read, None) is not None and key not in self._writes
                if is_valid and found is not None:
                    self._hold(key, began, found)
        return None if found is None else found.content

    def _served(self, key: _Key, incarnation: ObjectId | None, now: float) -> _Entry | None:
        """Return what may be served; drop what may not be any more."""
        if self._owner is None:
            return None
        if (entry := self._entries.get(key)) is not None:
            if now < entry.expires and incarnation in (None, entry.found.incarnation):
                self._counts["hits"] += 1
                self._entries.move_to_end(key)
                return entry
            del self._entries[key]
            self._counts["expirations" if now >= entry.expires else "invalidations"] += 1
        self._counts["misses"] += 1
        return None

    def _hold(self, key: _Key, began: float, found: MetadataAsRead) -> None:
        """Put in what was read, unless a read that began later has done so."""
        entry = self._entries.get(key)
        is_older = entry is not None and entry.began > began
        if self._owner is None or is_older or len(found.content) > MAX_CACHED_METADATA_BYTES:
            return
        seconds = self._ttl_seconds
        if found.seconds_left is not None:  # Its session expires.
            seconds = min(seconds, found.seconds_left)
        self._entries[key] = _Entry(began, began + seconds, found)
        self._entries.move_to_end(key)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
            self._counts["evictions"] += 1

    @contextmanager
    def changing(self, store: SessionStore, session_id: str) -> Iterator[None]:
        """Hold nothing about a session while the block runs, which changes or deletes it.

        However it ends: whether a write that failed was carried out is not always known.
        """
        key = _key(store, session_id)
        with self._lock:
            self._writes[key] += 1
            self._drop(key)
        try:
            yield
        finally:
            with self._lock:
                self._writes[key] -= 1
                if self._writes[key] <= 0:  # Below: a fork inside the block has emptied it.
                    del self._writes[key]
                self._drop(key)

    def forget(self, place: str | None = None, session_id: str | None = None) -> None:
        """Drop what is held of a session, of a collection, or of all; what is being read of it now will not be held."""
        with self._lock:
            if place is not None and session_id is not None:
                self._drop((place, session_id))
                return
            for key in [key for key in {*self._entries, *self._reads.values()} if place in (None, key[0])]:
                self._drop(key)

    def _drop(self, key: _Key) -> None:
        if self._entries.pop(key, None) is not None:
            self._counts["invalidations"] += 1
        self._reads = {read: of for read, of in self._reads.items() if of != key}

    def _follow_changes(self, place: str, store: SessionStore) -> None:
        """Learn of what other processes change in a collection, if the cache was made so; once for each collection."""
        if self._watches and place not in self._watchers:
            with self._lock:
                if place not in self._watchers and self._owner is not None:
                    watched = sum(watcher is not None for watcher in self._watchers.values())
                    self._watchers[place] = watch(self, place, store, watched)

    def end(self) -> None:
        """Take it from the factory: end what watches, and forget everything."""
        with self._lock:
            self._owner = None
            watchers = [watcher for watcher in self._watchers.values() if watcher is not None]
            self._watchers = {}
        for watcher in watchers:
            watcher.stop()
        for watcher in watchers:
            watcher.join()
        self.forget()


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
        if not 0 < ttl_seconds < math.inf:
            raise ValueError(f"ttl_seconds must be finite and above 0, not {ttl_seconds}")
        if not isinstance(watch, bool):
            raise TypeError(f"watch must be a bool, not {type(watch).__name__}")
        self._max_entries = max_entries
        self._ttl_seconds = ttl_seconds
        self._watches = watch
        self._counts: Counter[str] = Counter()
        self._memory = self._new_memory(None)
        self._lock = threading.Lock()
        _caches.add(self)

    def stats(self) -> MetadataCacheStats:
        """Return how often the cache could answer, and how full it is."""
        entries, watching = self._memory.sizes()
        counts = {name: self._counts[name] for name in MetadataCacheStats.__annotations__}
        now = {"entries": entries, "max_entries": self._max_entries, "watching": watching}
        return cast("MetadataCacheStats", counts | now)

    def clear(self) -> None:
        """Forget all metadata, for example after it was changed by a program that does not use this library."""
        self._memory.forget()

    def __repr__(self) -> str:
        """Name the limits."""
        return f"{type(self).__name__}(max_entries={self._max_entries}, ttl_seconds={self._ttl_seconds})"

    def _given_to(self, owner: object) -> MetadataMemory:
        """Return an empty memory for a factory to end; nobody else gets one before that, or before the factory is gone.

        Raises:
            ValueError: Another factory has one. The same session id means another session on another server.
        """
        with self._lock:
            former = self._memory
            if former.owned:
                raise ValueError("a SessionMetadataCache serves one factory at a time: make one for each")
            self._memory = self._new_memory(owner)
        former.end()
        return self._memory

    def _new_memory(self, owner: object | None) -> MetadataMemory:
        return MetadataMemory(owner, self._max_entries, self._ttl_seconds, self._counts, watches=self._watches)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._counts.clear()


_caches: weakref.WeakSet[SessionMetadataCache] = each_in_child(SessionMetadataCache._after_fork)
_memories: weakref.WeakSet[MetadataMemory] = each_in_child(MetadataMemory.reset)
