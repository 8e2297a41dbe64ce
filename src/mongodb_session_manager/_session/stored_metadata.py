"""The metadata of the sessions of one collection: read, from memory where it may be, and changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from bson import ObjectId

from .._model.documents import Document, check_storable
from .._model.encoding import to_bson
from .._model.foreign import mapping
from .._model.limits import MAX_METADATA_BYTES
from .._statements.sessions import SessionRef, not_expired
from .._store.session_store import SessionStore
from ..errors import UnstorableValueError
from .metadata_memory import MetadataMemory


class StoredMetadata:
    """Reads and changes the metadata of sessions; ids and keys have been checked.

    Args:
        store: The sessions.
        memory: What may answer in place of the database; None: nothing.
    """

    def __init__(self, store: SessionStore, memory: MetadataMemory | None) -> None:
        self._store = store
        self._memory = memory
        self._place: str = store.commands.collection.full_name

    def get(self, session_id: str) -> dict[str, Any]:
        """Return ``{"metadata": {…}}`` from the database, or ``{}`` if the session does not exist."""
        document = self._store.commands.find_plain(not_expired(session_id), {"_id": 0, "metadata": 1})
        return {} if document is None else {"metadata": dict(mapping(document.get("metadata")))}

    def read(self, session_id: str, incarnation: ObjectId | None) -> dict[str, Any]:
        """Return what ``get`` returns, from memory where it may be; of this incarnation, if one is given."""
        if self._memory is None:
            return self.get(session_id)
        self._memory.follow_changes(self._place, self._store)
        reads = self._store.reads
        content = self._memory.read(self._place, session_id, incarnation, lambda: reads.read_metadata(session_id))
        return {} if content is None else {"metadata": reads.metadata(content)}

    def update(self, session_id: str, session: Callable[[], SessionRef], metadata: Document) -> None:
        """Set fields; ``session`` is called, to open the session, when they are known to be storable.

        Raises:
            UnstorableValueError: A value cannot be stored, or there is too much.
            SessionNotFoundError: There is no such session.
        """
        check_storable(metadata, "metadata", session_id)
        if (size := len(to_bson(metadata))) > MAX_METADATA_BYTES:
            raise UnstorableValueError(
                f"metadata of {size} bytes: at most {MAX_METADATA_BYTES} can be set at once", session_id=session_id
            )
        opened = session()
        if metadata:
            with self.changing(session_id):
                self._store.changes.set_metadata(opened, metadata)

    def delete(self, session: SessionRef, keys: Sequence[str]) -> None:
        """Remove fields; those that are not there are no error.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        if keys:
            with self.changing(session.session_id):
                self._store.changes.unset_metadata(session, keys)

    def changing(self, session_id: str) -> AbstractContextManager[None]:
        """Return a context in which the session may be changed or deleted: nothing of it is in memory meanwhile."""
        return nullcontext() if self._memory is None else self._memory.changing(self._place, session_id)
