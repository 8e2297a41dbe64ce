"""How a process learns what others have done to the metadata it remembers: a thread that follows a change stream."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING

from pymongo.errors import OperationFailure

from .._model.limits import (
    WATCH_AWAIT_MILLISECONDS,
    WATCH_FIRST_PAUSE_SECONDS,
    WATCH_JOIN_SECONDS,
    WATCH_LONGEST_PAUSE_SECONDS,
)
from .._store.server_codes import WATCHING_REFUSED
from ..errors import described

if TYPE_CHECKING:
    from .._store.session_store import SessionStore
    from .metadata_cache import SessionMetadataCache, SessionPlace

logger = logging.getLogger(__name__)


def watch(
    cache: SessionMetadataCache, place: SessionPlace, store: SessionStore, watched: int
) -> MetadataWatcher | None:
    """Begin to watch a collection; return None where that would leave too few connections for other commands.

    Args:
        cache: What is to forget.
        place: The collection.
        store: Its commands.
        watched: How many collections are watched already, each with a connection that waits for changes.
    """
    most = store.commands.client.options.pool_options.max_pool_size
    if most and watched >= most // 2:
        logger.warning(
            "collection=<%s>, maxPoolSize=<%d> | not watched, half of the connections at most are spared for that: "
            "only the time limit of the cache holds",
            ".".join(place),
            most,
        )
        return None
    return MetadataWatcher(cache, place, store)


class MetadataWatcher:
    """Follows the changes of one collection and has a cache forget what they concern. Starts at once.

    Before a stream is open, and while it is lost, changes go unnoticed; so the cache forgets the whole collection
    each time that one was opened, and each time that one was lost.

    Args:
        cache: The cache. Where nobody else holds it any more, the thread ends.
        place: The collection.
        store: Opens the stream.
    """

    def __init__(self, cache: SessionMetadataCache, place: SessionPlace, store: SessionStore) -> None:
        self.live = False
        self._cache = weakref.ref(cache)
        self._place = place
        self._store = store
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mongodb-metadata-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Have the thread end, within half a second if the server answers."""
        self._ended.set()

    def join(self) -> None:
        """Wait until it has, at most two seconds."""
        self._thread.join(WATCH_JOIN_SECONDS)

    def _run(self) -> None:
        pause, told = 0.0, False
        while not self._ended.wait(pause):
            pause = min(max(2 * pause, WATCH_FIRST_PAUSE_SECONDS), WATCH_LONGEST_PAUSE_SECONDS)
            try:
                with self._store.reads.watch_metadata(WATCH_AWAIT_MILLISECONDS) as stream:
                    self._forget_all()
                    self.live, told = True, False
                    while stream.alive and not self._ended.is_set():
                        event = stream.try_next()
                        cache = self._cache()
                        if cache is None:
                            return
                        session_id = ((event or {}).get("documentKey") or {}).get("_id")
                        if isinstance(session_id, str):  # Others are no sessions of ours.
                            cache._forget(self._place, session_id)
                        del cache
                        pause = 0.0
            except Exception as error:  # Whatever it is: a thread that ended would never tell of a change again.
                # After the end: the client was closed meanwhile.
                if not self._ended.is_set():
                    if isinstance(error, OperationFailure) and error.code in WATCHING_REFUSED:
                        logger.warning(
                            "collection=<%s>, error=<%s> | not watched: only the time limit of the cache holds",
                            ".".join(self._place),
                            described(error),
                        )
                        return
                    if not told:  # Once for each loss, not at each attempt to open it again.
                        told = True
                        logger.warning(
                            "collection=<%s>, error=<%s> | watching is interrupted",
                            ".".join(self._place),
                            described(error),
                        )
            finally:
                self.live = False
                self._forget_all()

    def _forget_all(self) -> None:
        cache = self._cache()
        if cache is None:
            self._ended.set()
        else:
            cache._forget_all(self._place)
