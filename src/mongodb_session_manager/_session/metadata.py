"""What a manager offers of its session's metadata, to the application and to an agent's tool: by way of the hook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._model.keys import check_metadata, check_metadata_paths
from .hooks import MetadataHook, call_hook
from .managed_session import ManagedSession
from .stored_metadata import StoredMetadata


@dataclass(eq=False)
class SessionMetadata:
    """The metadata of one manager's session.

    Attributes:
        session: The session.
        stored: The metadata of all sessions of the collection.
        hook: Called instead of each operation, if it is not None.
        session_manager: Whose hook it is.
    """

    session: ManagedSession
    stored: StoredMetadata
    hook: MetadataHook | None
    session_manager: Any

    def get(self) -> dict[str, Any]:
        """Return ``{"metadata": {…}}``, or ``{}`` if the session does not exist; whatever the hook makes of that.

        Raises:
            TypeError: The hook returned no dictionary.
        """

        def read() -> dict[str, Any]:
            return self.stored.read(self.session.session_id, self.session.incarnation)

        if self.hook is None:
            return read()
        found = self._call(self.hook, read, "get")
        if not isinstance(found, dict):
            raise TypeError(f"metadata_hook returned {type(found).__name__} for 'get': it must return a dict")
        return found

    def update(self, metadata: Mapping[str, Any]) -> list[str]:
        """Set fields; return the keys that were set, other ones where the hook changed them."""

        def update(fields: dict[str, Any]) -> None:
            self.stored.update(self.session.session_id, self.session.open_ref, fields)

        return self._change("update", "metadata", metadata, check_metadata, update)

    def delete(self, keys: Sequence[str]) -> list[str]:
        """Remove fields; return their keys, as ``update`` does."""

        def delete(paths: list[str]) -> None:
            self.stored.delete(self.session.open_ref(), paths)

        return self._change("delete", "keys", keys, check_metadata_paths, delete)

    def _change(
        self, action: str, name: str, given: Any, check: Callable[[Any], Any], store: Callable[[Any], None]
    ) -> list[str]:
        """Check what is given, store it by way of the hook, and return the keys of what was stored."""
        done: list[str] = []

        def original(given: Any) -> None:
            checked = check(given)
            store(checked)
            done.extend(checked)

        if self.hook is None:
            original(given)
        else:
            self._call(self.hook, original, action, **{name: check(given)})
        return done

    def _call(self, hook: MetadataHook, original: Callable[..., Any], action: str, **given: Any) -> Any:
        given["session_manager"] = self.session_manager
        return call_hook(hook, "metadata_hook", original, action, self.session.session_id, **given)
