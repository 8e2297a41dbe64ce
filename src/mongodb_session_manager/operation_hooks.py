"""The functions by which an application takes part in what is done with metadata and feedback."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar


class MetadataHook(Protocol):
    """Called instead of an operation on the metadata of a manager's session; a plain function, not ``async``.

    What the caller gave has been checked before, and what is passed to ``original`` is checked again. Not calling
    ``original`` vetoes: nothing is stored. An exception goes to the caller; what ``original`` had stored by then stays.
    It runs in the caller's thread; where an agent's tool is the caller, in a thread beside the event loop.
    """

    def __call__(self, original: Callable[..., Any], action: str, session_id: str, **kwargs: Any) -> Any:
        """Do the operation, or something else.

        Args:
            original: The operation: ``original(metadata)``, ``original()`` or ``original(keys)``.
            action: ``"update"``, ``"get"`` or ``"delete"``.
            session_id: The session.
            **kwargs: ``session_manager``, the manager; for ``"update"`` ``metadata``, a dictionary; for ``"delete"``
                ``keys``, a list.

        Returns:
            For ``"get"`` what the caller is to get: ``original()``, or another dictionary. Else it is ignored.
        """


class FeedbackHook(Protocol):
    """Called instead of ``add_feedback`` of a manager; what is said of ``MetadataHook`` holds here as well."""

    def __call__(self, original: Callable[..., Any], action: str, session_id: str, **kwargs: Any) -> Any:
        """Store the feedback, or do something else.

        Args:
            original: ``original(feedback)`` stores it.
            action: ``"add"``.
            session_id: The session.
            **kwargs: ``feedback``, a dictionary; ``session_manager``, the manager.
        """


T = TypeVar("T")


def check_hook(hook: T, name: str) -> T:
    """Return the hook if it can be called.

    Raises:
        TypeError: It cannot, or it is ``async``: then it would never run, and everything would be vetoed.
    """
    if hook is not None:
        if not callable(hook):
            raise TypeError(f"{name} must be a function, not {type(hook).__name__}")
        if inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(type(hook).__call__):
            raise TypeError(f"{name} must be a plain function, not an async one: its callers do not await")
    return hook
