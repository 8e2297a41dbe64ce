"""The metadata of sessions: checked, read and changed, from memory where it may be, by way of the hook of a manager."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from bson import ObjectId

from .._model.documents import Document, check_storable
from .._model.encoding import to_bson
from .._model.foreign import mapping
from .._model.keys import check_metadata, check_metadata_paths
from .._model.limits import MAX_METADATA_BYTES
from .._statements.sessions import SessionRef, not_expired
from .._store.session_store import SessionStore
from ..errors import UnstorableValueError
from .managed_session import ManagedSession
from .metadata_cache import MetadataMemory
from .options import call_hook


class StoredMetadata:
    """Reads and changes the metadata of sessions; ids and keys have been checked.

    Args:
        store: The sessions.
        memory: What may answer in place of the database; None: nothing.
    """

    def __init__(self, store: SessionStore, memory: MetadataMemory | None) -> None:
        self._store = store
        self._memory = memory

    def get(self, session_id: str) -> dict[str, Any]:
        """Return ``{"metadata": {…}}`` from the database, or ``{}`` if the session does not exist."""
        document = self._store.commands.find_plain(not_expired(session_id), {"_id": 0, "metadata": 1})
        return {} if document is None else {"metadata": dict(mapping(document.get("metadata")))}

    def read(self, session_id: str, incarnation: ObjectId | None) -> dict[str, Any]:
        """Return what ``get`` returns, from memory where it may be; of this incarnation, if one is given."""
        if self._memory is None:
            return self.get(session_id)
        content = self._memory.read(self._store, session_id, incarnation)
        return {} if content is None else {"metadata": self._store.reads.metadata(content)}

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
        return nullcontext() if self._memory is None else self._memory.changing(self._store, session_id)


@dataclass(eq=False)
class SessionMetadata:
    """The metadata of one manager's session.

    Attributes:
        session: The session.
        stored: The metadata of all sessions of the collection.
        session_manager: The manager, for the hook that is called instead of each operation.
    """

    session: ManagedSession
    stored: StoredMetadata
    session_manager: Any

    def get(self) -> dict[str, Any]:
        """Return ``{"metadata": {…}}``, or ``{}`` if the session does not exist; whatever the hook makes of that.

        Raises:
            TypeError: The hook returned no dictionary.
        """
        read = partial(self.stored.read, self.session.session_id, self.session.incarnation)
        found = self._call(read, "get")
        if not isinstance(found, dict):
            raise TypeError(f"metadata_hook returned {type(found).__name__} for 'get': it must return a dict")
        return found

    def update(self, metadata: Mapping[str, Any]) -> list[str]:
        """Set fields; return the keys that were set, other ones where the hook changed them."""
        store = partial(self.stored.update, self.session.session_id, self.session.open_ref)
        return self._change("update", "metadata", metadata, check_metadata, store)

    def delete(self, keys: Sequence[str]) -> list[str]:
        """Remove fields; return their keys, as ``update`` does."""

        def store(paths: Sequence[str]) -> None:
            self.stored.delete(self.session.open_ref(), paths)

        return self._change("delete", "keys", keys, check_metadata_paths, store)

    def _change(
        self, action: str, name: str, given: Any, check: Callable[[Any], Any], store: Callable[[Any], None]
    ) -> list[str]:
        """Check what is given, store it by way of the hook, and return the keys of what was stored."""
        done: list[str] = []

        def original(given: Any) -> None:
            checked = check(given)
            store(checked)
            done.extend(checked)

        self._call(original, action, **{name: check(given)})
        return done

    def _call(self, original: Callable[..., Any], action: str, **given: Any) -> Any:
        hook = self.session.settings.metadata_hook
        return call_hook(hook, "metadata_hook", original, action, self.session_manager, **given)
