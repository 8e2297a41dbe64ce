"""How a process learns what others have done to the metadata it remembers: a thread that follows a change stream."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Protocol

from pymongo.errors import OperationFailure

from .._model import limits
from .._store.sending import WATCHING_REFUSED
from .._store.session_store import SessionStore
from ..errors import described

logger = logging.getLogger(__name__)


class Forgetful(Protocol):
    """Remembers metadata, and forgets what has changed."""

    def forget(self, place: str, session_id: str | None = None) -> None:
        """Forget one session, or all sessions, of the collection with this full name."""


def watch(memory: Forgetful, place: str, store: SessionStore, watched: int) -> MetadataWatcher | None:
    """Begin to watch a collection; return None where that would leave too few connections for other commands.

    Args:
        memory: What is to forget.
        place: The full name of the collection.
        store: Its commands.
        watched: How many collections are watched already, each with a connection that waits for changes.
    """
    most = store.commands.client.options.pool_options.max_pool_size
    if most and watched >= most // 2:
        logger.warning(
            "collection=<%s>, maxPoolSize=<%d> | not watched, half of the connections at most are spared for that: "
            "only the time limit of the cache holds",
            place,
            most,
        )
        return None
    return MetadataWatcher(memory, place, store)


class MetadataWatcher:
    """Follows the changes of one collection and has a memory forget what they concern. Starts at once.

    Before a stream is open, and while it is lost, changes go unnoticed; so the memory forgets the whole collection
    each time that a stream was opened or lost.

    Args:
        memory: The memory. Where nobody else holds it any more, the thread ends.
        place: The full name of the collection.
        store: Opens the stream.

    Attributes:
        live: Whether a stream is open at this moment.
    """

    def __init__(self, memory: Forgetful, place: str, store: SessionStore) -> None:
        self.live = False
        self._memory = weakref.ref(memory)
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
        self._thread.join(limits.WATCH_JOIN_SECONDS)

    def _run(self) -> None:
        pause, told = 0.0, False
        while not self._ended.wait(pause):
            pause = min(max(2 * pause, limits.WATCH_FIRST_PAUSE_SECONDS), limits.WATCH_LONGEST_PAUSE_SECONDS)
            try:
                with self._store.reads.watch_metadata(limits.WATCH_AWAIT_MILLISECONDS) as stream:
                    self._forget(None)
                    self.live, told = True, False
                    while stream.alive and not self._ended.is_set():
                        changed = (stream.try_next() or {}).get("documentKey", {}).get("_id")
                        if isinstance(changed, str):  # Others are no sessions of ours.
                            self._forget(changed)
                        if self._memory() is None:
                            return
                        pause = 0.0
            except Exception as error:  # Whatever it is: a thread that ended would never tell of a change again.
                refused = isinstance(error, OperationFailure) and error.code in WATCHING_REFUSED
                # After the end: the client was closed meanwhile. And once for each loss, not for each attempt after it.
                if not self._ended.is_set() and (refused or not told):
                    ended = "not watched: only the time limit of the cache holds"
                    outcome = ended if refused else "watching is interrupted"
                    logger.warning("collection=<%s>, error=<%s> | %s", self._place, described(error), outcome)
                    told = True
                if refused:
                    return
            finally:
                self.live = False
                self._forget(None)

    def _forget(self, session_id: str | None) -> None:
        memory = self._memory()
        if memory is None:
            self._ended.set()
        else:
            memory.forget(self._place, session_id)
