"""What a manager offers of its session's metadata, to the application and to an agent's tool: by way of the hook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._model.keys import check_metadata, check_metadata_paths
from .hooks import MetadataHook, call_hook


class SessionMetadata:
    """The metadata of one session.

    Args:
        session_id: The session's id, for the hook.
        hook: Called instead of each operation, if it is not None.
        session_manager: Whose hook it is.
        read: Returns ``{"metadata": {…}}``, or ``{}`` if the session does not exist.
        update: Sets fields that were checked.
        delete: Removes keys that were checked.
    """

    def __init__(
        self,
        session_id: str,
        hook: MetadataHook | None,
        session_manager: Any,
        *,
        read: Callable[[], dict[str, Any]],
        update: Callable[[dict[str, Any]], None],
        delete: Callable[[list[str]], None],
    ) -> None:
        self._session_id = session_id
        self._hook = hook
        self._session_manager = session_manager
        self._read = read
        self._update = update
        self._delete = delete

    def get(self) -> dict[str, Any]:
        """Return ``{"metadata": {…}}``, or ``{}`` if the session does not exist; whatever the hook makes of that.

        Raises:
            TypeError: The hook returned no dictionary.
        """
        if self._hook is None:
            return self._read()
        found = self._call_hook(self._hook, self._read, "get")
        if not isinstance(found, dict):
            raise TypeError(f"metadata_hook returned {type(found).__name__} for 'get': it must return a dict")
        return found

    def update(self, metadata: Mapping[str, Any]) -> list[str]:
        """Set fields; return the keys that were set, other ones where the hook changed them."""
        done: list[str] = []

        def update(metadata: Mapping[str, Any]) -> None:
            checked = check_metadata(metadata)
            self._update(checked)
            done.extend(checked)

        if self._hook is None:
            update(metadata)
        else:
            self._call_hook(self._hook, update, "update", metadata=check_metadata(metadata))
        return done

    def delete(self, keys: Sequence[str]) -> list[str]:
        """Remove fields; return their keys, as ``update`` does."""
        done: list[str] = []

        def delete(keys: Sequence[str]) -> None:
            checked = check_metadata_paths(keys)
            self._delete(checked)
            done.extend(checked)

        if self._hook is None:
            delete(keys)
        else:
            self._call_hook(self._hook, delete, "delete", keys=check_metadata_paths(keys))
        return done

    def _call_hook(self, hook: MetadataHook, original: Callable[..., Any], action: str, **given: Any) -> Any:
        names: Any = {**given, "session_manager": self._session_manager}
        return call_hook(hook, "metadata_hook", original, action, self._session_id, **names)
