"""What is too large for a session document, while it waits to be stored beside it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from bson import ObjectId

from ..errors import shown
from .limits import MAX_TEXT_BYTES, TEXT_BLOB_THRESHOLD_CHARACTERS


@dataclass
class Blob:
    """A binary or a text that is to be uploaded.

    Attributes:
        marker: The document that stands for it in the encoded value; the very same, not a copy.
        data: Its content. A text is encoded when it is uploaded: megabytes take milliseconds.
        uploaded_at: When its last upload began, in seconds of ``clock()``; None: it is not uploaded.
    """

    marker: dict[str, Any]
    data: bytes | str = field(repr=False)
    uploaded_at: float | None = None

    @property
    def content(self) -> bytes:
        """The bytes of its file."""
        return self.data if isinstance(self.data, bytes) else self.data.encode("utf-8", "surrogatepass")


@dataclass
class PendingBlobs:
    """Takes the large parts of one value out of it while it is encoded, and keeps them until they are committed.

    Attributes:
        threshold: From how many bytes on a binary becomes a blob.
        text_threshold: From how many characters on a text becomes a blob.
        max_text: A text of more bytes is refused.
        blobs: What was taken out, in the order of the value.
    """

    threshold: int
    text_threshold: int = TEXT_BLOB_THRESHOLD_CHARACTERS
    max_text: int = MAX_TEXT_BYTES
    blobs: list[Blob] = field(default_factory=list)

    def add(self, marker: dict[str, Any], data: bytes | str) -> None:
        """Take ``data``, for which ``marker`` stands in the encoded value."""
        self.blobs.append(Blob(marker, data))

    def only(self, markers: Iterable[dict[str, Any]]) -> PendingBlobs:
        """Return those of them for which one of these markers stands."""
        kept = {id(marker) for marker in markers}
        return replace(self, blobs=[blob for blob in self.blobs if id(blob.marker) in kept])

    @property
    def uploaded(self) -> set[ObjectId]:
        """The files of those that were uploaded."""
        return {blob.marker["value"]["file"] for blob in self.blobs if blob.uploaded_at is not None}

    @property
    def contents(self) -> dict[ObjectId, bytes]:
        """What ``BlobStore.fetch`` returns once they are uploaded."""
        return {blob.marker["value"]["file"]: blob.content for blob in self.blobs}

    @property
    def total_bytes(self) -> int:
        """How much memory they hold, in bytes; a character counts as one."""
        return sum(len(blob.data) for blob in self.blobs)


def check_threshold(value: object) -> int:
    """Return ``value`` if it can be a threshold in bytes.

    Raises:
        ValueError: It is no ``int`` of at least 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"blob_threshold_bytes must be an int of at least 1, not {shown(value)}")
    return value
