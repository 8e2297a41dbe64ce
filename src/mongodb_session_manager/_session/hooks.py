"""The functions by which an application takes part in what is done with metadata and feedback."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

MetadataHook = Callable[..., Any]
"""``hook(original, action, session_id, **kwargs)``, called instead of an operation on the metadata of a session.

- ``action``: ``"update"``, with ``metadata`` (a dictionary) in ``kwargs``, ``"delete"``, with ``keys`` (a list), or
  ``"get"``. ``session_manager``, the manager, is always there.
- ``original``: the operation: ``original(metadata)``, ``original(keys)``, ``original()``.
- What it returns is what the caller of ``"get"`` gets, a dictionary; else it is ignored.

What the caller gave has been checked before, and what is passed to ``original`` is checked again. Not calling
``original`` vetoes: nothing is stored, and an agent's tool says so. An exception goes to the caller; what ``original``
had stored by then stays. A plain function, not an ``async`` one; it runs in the caller's thread, and where an agent's
tool is the caller, in one beside the event loop.
"""

FeedbackHook = Callable[..., Any]
"""The same around ``add_feedback``: ``action`` is ``"add"``, ``feedback`` (a dictionary) is in ``kwargs``, and
``original(feedback)`` stores it.
"""

T = TypeVar("T")


def check_hook(hook: T, name: str) -> T:
    """Return the hook if it can be called, or is None.

    Raises:
        TypeError: It cannot, or it is ``async``: then it would never run, and everything would be vetoed.
    """
    if hook is not None:
        if not callable(hook):
            raise TypeError(f"{name} must be a function, not {type(hook).__name__}")
        if inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(type(hook).__call__):
            raise TypeError(f"{name} must be a plain function, not an async one: its callers do not await")
    return hook


def call_hook(hook: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a hook and return what it returns.

    Raises:
        TypeError: That would have to be awaited, as behind a ``lambda`` around an ``async`` function: it never runs.
    """
    returned = hook(*args, **kwargs)
    if inspect.isawaitable(returned):
        if inspect.iscoroutine(returned):
            returned.close()  # Else Python warns that nobody awaited it.
        raise TypeError(f"{name} must be a plain function: it returned something to await, and its callers do not")
    return returned
