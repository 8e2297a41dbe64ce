"""What a manager is asked to do: its parameters, checked. A factory has them checked once, for all of its managers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from .._model.archive_policy import ArchivePolicy
from .._model.expiry import check_ttl
from .._model.keys import check_name
from .._model.pending_blobs import check_threshold
from ..errors import shown
from .hooks import FeedbackHook, MetadataHook, check_hook

Durability = Literal["message", "turn"]
OnConflict = Literal["rebase", "raise"]


@dataclass(frozen=True)
class Settings:
    """The parameters of a manager that belong to no session and no client; ``MongoDBSessionManager`` explains them.

    Attributes:
        by_turn: Whether messages wait for the end of their turn (``durability="turn"``).
        rebase: Whether new commits append behind what others have stored meanwhile (``on_conflict="rebase"``).
        ttl: How long a session lives from its last activity on; None: until it is deleted.
        archive_policy: When messages leave the session document.
        blob_threshold: From how many bytes on a binary becomes a blob.
        index_messages: Whether the text of messages can be found.
        application_name: Stored with a new session, if it is not None.
        session_type: Stored with a new session.
        metadata_hook: Called instead of the operations on metadata.
        feedback_hook: Called instead of ``add_feedback``.
    """

    by_turn: bool
    rebase: bool
    ttl: timedelta | None
    archive_policy: ArchivePolicy
    blob_threshold: int
    index_messages: bool
    application_name: str | None
    session_type: str
    metadata_hook: MetadataHook | None
    feedback_hook: FeedbackHook | None


def check_settings(
    *,
    application_name: str | None,
    session_type: str,
    durability: Durability,
    on_conflict: OnConflict,
    ttl_hours: float | None,
    archive_after_messages: int,
    archive_after_bytes: int,
    archive_block: int,
    blob_threshold_bytes: int,
    metadata_hook: MetadataHook | None,
    feedback_hook: FeedbackHook | None,
    index_messages: bool,
) -> Settings:
    """Return parameters of a manager as its settings; their defaults stand where they are given.

    Raises:
        TypeError: One is of a type that it cannot be.
        ValueError: One has a value that it cannot have.
    """
    if durability not in ("message", "turn"):
        raise ValueError(f"durability must be 'message' or 'turn', not {shown(durability)}")
    check_on_conflict(on_conflict)
    if not isinstance(index_messages, bool):
        raise TypeError(f"index_messages must be True or False, not {shown(index_messages)}")
    return Settings(
        by_turn=durability == "turn",
        rebase=on_conflict == "rebase",
        ttl=check_ttl(ttl_hours),
        archive_policy=ArchivePolicy(archive_after_messages, archive_after_bytes, archive_block),
        blob_threshold=check_threshold(blob_threshold_bytes),
        index_messages=index_messages,
        application_name=None if application_name is None else check_name(application_name, "application_name"),
        session_type=check_name(session_type, "session_type"),
        metadata_hook=check_hook(metadata_hook, "metadata_hook"),
        feedback_hook=check_hook(feedback_hook, "feedback_hook"),
    )


def check_on_conflict(on_conflict: str) -> None:
    """Refuse what ``on_conflict`` cannot be.

    Raises:
        ValueError: It is neither ``"rebase"`` nor ``"raise"``.
    """
    if on_conflict not in ("rebase", "raise"):
        raise ValueError(f"on_conflict must be 'rebase' or 'raise', not {shown(on_conflict)}")
