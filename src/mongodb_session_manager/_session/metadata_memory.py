"""Which metadata may be answered from memory: never any that is older than a write of this process, nor than a time.

The danger is a slow reader that puts an old value back after a newer one was written. So each read that may fill the
memory is known while it is under way; a change of its session makes it void, and while a change is under way nothing
is put in.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from bson import ObjectId

from .._client.forks import each_in_child
from .._model.limits import MAX_CACHED_METADATA_BYTES
from .._store.session_reads import MetadataAsRead
from .._store.session_store import SessionStore
from .metadata_watch import MetadataWatcher, watch

_Key = tuple[str, str]  # The full name of the collection, the session's id.


class _Entry(NamedTuple):
    began: float
    expires: float
    found: MetadataAsRead


class MetadataMemory:
    """What the managers of one factory remember, until the factory is closed; then the database is asked each time.

    Threads may share it.

    Args:
        owner: The factory. Where nobody holds it any more, another one may take the cache.
        max_entries: How many sessions' metadata are held.
        ttl_seconds: For how many seconds after it was read a value may be served.
        watches: Whether changes by other processes are learned of from change streams.
        counts: What is counted, by the keys of ``MetadataCacheStats``.
    """

    def __init__(
        self, owner: object, max_entries: int, ttl_seconds: float, counts: Counter[str], *, watches: bool
    ) -> None:
        self._owner: weakref.ref[object] | None = weakref.ref(owner)
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
        self._reads: dict[_Key, set[object]] = {}
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

    def read(
        self, place: str, session_id: str, incarnation: ObjectId | None, ask: Callable[[], MetadataAsRead | None]
    ) -> bytes | None:
        """Return a session's metadata from memory, or else what ``ask`` returns.

        Args:
            place: The full name of the session's collection.
            session_id: The session.
            incarnation: The incarnation of the session that the reader knows, if any. Another one is not served.
            ask: Asks the database; None means that there is no such session.
        """
        key, read = (place, session_id), object()
        with self._lock:
            # The time of a value is when it was asked for: it may have changed right after.
            began = time.monotonic()
            if (entry := self._served(key, incarnation, began)) is not None:
                return entry.found.content
            self._reads.setdefault(key, set()).add(read)
        found: MetadataAsRead | None = None
        try:
            found = ask()
        finally:
            with self._lock:
                reads = self._reads.get(key, set())
                if read in reads:
                    reads.remove(read)
                    if not reads:
                        del self._reads[key]
                    if found is not None and key not in self._writes:
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
        if (
            self._owner is None
            or len(found.content) > MAX_CACHED_METADATA_BYTES
            or (entry is not None and entry.began > began)
        ):
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
    def changing(self, place: str, session_id: str) -> Iterator[None]:
        """Hold nothing about a session while the block runs, which changes or deletes it.

        However it ends: whether a write that failed was carried out is not always known.
        """
        key = (place, session_id)
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

    def forget(self, place: str, session_id: str) -> None:
        """Drop what is held of a session; what is being read of it now will not be held."""
        with self._lock:
            self._drop((place, session_id))

    def forget_all(self, place: str | None = None) -> None:
        """Drop what is held of all sessions, or of those in one collection; likewise what is being read now."""
        with self._lock:
            for key in [key for key in {*self._entries, *self._reads} if place in (None, key[0])]:
                self._drop(key)

    def _drop(self, key: _Key) -> None:
        if self._entries.pop(key, None) is not None:
            self._counts["invalidations"] += 1
        self._reads.pop(key, None)

    def follow_changes(self, place: str, store: SessionStore) -> None:
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
            watchers, self._watchers = self._watchers, {}
        for watcher in watchers.values():
            if watcher is not None:
                watcher.stop()
        for watcher in watchers.values():
            if watcher is not None:
                watcher.join()
        self.forget_all()


_memories: weakref.WeakSet[MetadataMemory] = each_in_child(MetadataMemory.reset)
