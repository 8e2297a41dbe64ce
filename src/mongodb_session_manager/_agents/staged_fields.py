"""Which fields of an agent's record have changed since they were staged or stored last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .._model.encoding import fingerprint, fingerprints


class StagedFields:
    """Compares the fields of an agent's record with what was staged last, by their fingerprints.

    Content is compared, types included; not versions, which count changes that change nothing. Only the agent's state
    is compared by identity and version first, because its content is expensive to take: a deep copy of 31 ms for 5,000
    small dictionaries. So that is done in a thread, by ``take_state``.

    Attributes:
        changed_state: An ``AgentState`` that may have changed; None: it has not.
    """

    changed_state: Any = None
    _state: Any = None
    _state_version: int | None = None
    _stored_state: Any = None

    def __init__(self) -> None:
        self._marks: dict[str, bytes] = {}

    def changed(self, fields: Mapping[str, Any]) -> dict[str, bytes]:
        """Return the fingerprints of those fields whose content is not what was staged last."""
        return {name: mark for name, mark in fingerprints(fields).items() if mark != self._marks.get(name)}

    def staged(self, marks: Mapping[str, bytes]) -> None:
        """Take note of what was staged, by ``changed``'s fingerprints."""
        self._marks.update(marks)

    def stored(self, fields: Mapping[str, Any]) -> None:
        """Take note of fields as they are stored."""
        self._marks.update(fingerprints(fields))

    def stored_state(self, state: Any, stored: Any) -> None:
        """Take note that ``stored`` is what the store holds of ``state``, an ``AgentState``."""
        self._state, self._state_version, self._stored_state = state, state._get_version(), stored
        self._marks.pop("state", None)

    def forget(self, names: Iterable[str]) -> None:
        """Let fields that were not stored after all be found changed again."""
        for name in names:
            self._marks.pop(name, None)
            if name == "state":
                self._state_version = self._stored_state = None

    def look_at_state(self, state: Any) -> bool:
        """Return, and note, whether the agent's state may have changed; cheap enough for an event loop."""
        if state is self._state and state._get_version() == self._state_version:
            return False
        self.changed_state = state
        return True

    def take_state(self) -> dict[str, Any]:
        """Return ``{"state": content}`` of a state that may have changed, else ``{}``. Slow: call it in a thread."""
        # Taken first: a change that comes from here on is noticed again.
        state, self.changed_state = self.changed_state, None
        if state is None:
            return {}
        version = state._get_version()
        content = state.get()
        if self._stored_state is not None:
            self._marks["state"] = fingerprint(self._stored_state)
            self._stored_state = None
        self._state, self._state_version = state, version
        return {"state": content}
