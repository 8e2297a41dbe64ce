"""Which sessions there are, and how each of them is treated. The same in all processes."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# So that sessions are begun again and again, by many at once, and none grows for a quarter of an hour.
_EPOCH_SECONDS = 40.0
_HOUR = 3600.0
BLOB_BYTES = 2000
"""From this size on a binary is a blob."""
_BRIEF_SECONDS = 6.0
SHARED = "shared"
"""The agent that all writers write to."""


@dataclass(frozen=True)
class Session:
    """A session of the test.

    Attributes:
        kind: `"plain"`, `"kept"` (a ttl of a day), `"leased"`, `"mortal"` (is deleted and begun again) or `"brief"`
            (expires).
        index_messages: whether its managers feed the search.
        ttl_hours: the same for all that write to it.
    """

    id: str
    kind: str
    index_messages: bool
    ttl_hours: float | None = None

    @property
    def lasts(self) -> bool:
        """Whether nothing ends it."""
        return self.kind not in ("mortal", "brief")


def by_id(session_id: str) -> Session:
    """The session of this id, which says all about it."""
    kind, index, _ = session_id.split("-", 2)
    ttl = {"kept": 24.0, "brief": _BRIEF_SECONDS / _HOUR}.get(kind)
    return Session(session_id, kind, index == "indexed", ttl)


def choose(rng: random.Random, seconds: float) -> Session:
    """A session that is written to so many seconds after the beginning."""
    epoch = int(seconds / _EPOCH_SECONDS)
    names = ("plain-indexed", "plain-bare", "kept-indexed", "leased-indexed", "mortal-indexed", "brief-indexed")
    return by_id(f"{rng.choices(names, (4, 2, 3, 2, 3, 2))[0]}-{epoch}")


def manager_options(session: Session, rng: random.Random) -> Mapping[str, Any]:
    """The settings of one more manager of this session."""
    return {
        "durability": rng.choice(("message", "turn")),
        "on_conflict": "raise" if rng.random() < 0.1 else "rebase",
        "ttl_hours": session.ttl_hours,
        # Of two processes with different ones, each archives as it likes.
        "archive_after_messages": rng.choice((6, 6, 8, 12)),
        "archive_block": rng.choice((2, 4, 4, 5)),
        "blob_threshold_bytes": BLOB_BYTES,
        "index_messages": session.index_messages,
        "application_name": "soak",
    }


def blob(token: str, size: int) -> bytes:
    """The binary that goes with a token; it begins with it, so that it can be found where it should not be."""
    return token.encode() + random.Random(token).randbytes(size - len(token))
