"""What a manager is asked to do: its parameters, checked, and its hooks, called.

A factory has them checked once, for all of its managers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, Literal

from .._model.archive_policy import ArchivePolicy
from .._model.expiry import check_ttl
from .._model.keys import check_int, check_name
from ..errors import shown

Durability = Literal["message", "turn"]
"""Whether each message is stored as it is added, or a whole turn in one update at its end."""

OnConflict = Literal["rebase", "raise"]
"""Where another process has stored messages meanwhile: append behind them, or raise ``SessionConflictError``."""

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


@dataclass(eq=False)
class Settings:
    """The parameters of a manager that belong to no session and no client; ``MongoDBSessionManager`` explains them.

    Their defaults stand where they are given. Made anew with others by ``dataclasses.replace``, they are checked anew.

    Attributes:
        ttl: How long a session lives from its last activity on; None: until it is deleted.
        archive_policy: When messages leave the session document.

    Raises:
        TypeError: A parameter is of a type that it cannot be.
        ValueError: One has a value that it cannot have.
    """

    application_name: str | None
    session_type: str
    durability: Durability
    on_conflict: OnConflict
    ttl_hours: float | None
    archive_after_messages: int
    archive_after_bytes: int
    archive_block: int
    blob_threshold_bytes: int
    metadata_hook: MetadataHook | None
    feedback_hook: FeedbackHook | None
    index_messages: bool
    ttl: timedelta | None = field(init=False)
    archive_policy: ArchivePolicy = field(init=False)

    @classmethod
    def among(cls, arguments: Mapping[str, Any]) -> Settings:
        """Return the settings among the arguments of a constructor that has all of them as parameters."""
        return cls(**{name: arguments[name] for name in cls.names()})

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the parameters."""
        return [field.name for field in fields(cls) if field.init]

    def __post_init__(self) -> None:
        """Check them; keep names as plain text."""
        if self.durability not in ("message", "turn"):
            raise ValueError(f"durability must be 'message' or 'turn', not {shown(self.durability)}")
        check_on_conflict(self.on_conflict)
        if not isinstance(self.index_messages, bool):
            raise TypeError(f"index_messages must be True or False, not {shown(self.index_messages)}")
        self.archive_policy = ArchivePolicy(self.archive_after_messages, self.archive_after_bytes, self.archive_block)
        check_int(self.blob_threshold_bytes, "blob_threshold_bytes", 1)
        self.ttl = check_ttl(self.ttl_hours)
        if self.application_name is not None:
            self.application_name = check_name(self.application_name, "application_name")
        self.session_type = check_name(self.session_type, "session_type")
        check_hook(self.metadata_hook, "metadata_hook")
        check_hook(self.feedback_hook, "feedback_hook")

    @property
    def by_turn(self) -> bool:
        """Whether messages wait for the end of their turn."""
        return self.durability == "turn"

    @property
    def rebase(self) -> bool:
        """Whether new commits append behind what others have stored meanwhile."""
        return self.on_conflict == "rebase"


def check_on_conflict(on_conflict: str) -> None:
    """Refuse what ``on_conflict`` cannot be.

    Raises:
        ValueError: It is neither ``"rebase"`` nor ``"raise"``.
    """
    if on_conflict not in ("rebase", "raise"):
        raise ValueError(f"on_conflict must be 'rebase' or 'raise', not {shown(on_conflict)}")


def check_hook(hook: object, name: str) -> None:
    """Refuse a hook that cannot be called; None is none.

    Raises:
        TypeError: It cannot, or it is ``async``: then it would never run, and everything would be vetoed.
    """
    if hook is not None:
        if not callable(hook):
            raise TypeError(f"{name} must be a function, not {type(hook).__name__}")
        if inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(type(hook).__call__):
            raise TypeError(f"{name} must be a plain function, not an async one: its callers do not await")


def call_hook(
    hook: Callable[..., Any] | None, name: str, original: Callable[..., Any], action: str, manager: Any, **given: Any
) -> Any:
    """Call a hook of a manager in place of an operation, and return what it returns; without one, the operation.

    Args:
        hook: The hook; None: there is none.
        name: Its name, for the error.
        original: The operation.
        action: The operation's name, for the hook.
        manager: The manager.
        **given: What the operation is given, under the name by which the hook gets it.

    Raises:
        TypeError: What it returns would have to be awaited, as behind a ``lambda`` around an ``async`` function: it
            never runs.
    """
    if hook is None:
        return original(*given.values())
    returned = hook(original, action, manager.session_id, session_manager=manager, **given)
    if inspect.isawaitable(returned):
        if inspect.iscoroutine(returned):
            returned.close()  # Else Python warns that nobody awaited it.
        raise TypeError(f"{name} must be a plain function: it returned something to await, and its callers do not")
    return returned
