"""From the bytes that MongoDB returns to the values that were stored."""

from __future__ import annotations

import re

import bson
from bson.raw_bson import RawBSONDocument

from .documents import Document
from .encoding import CODEC_OPTIONS, MARKER, decode

_MARKER = re.compile(MARKER.encode())


class Reader:
    """Decodes documents that were read as they are."""

    def decode(self, found: RawBSONDocument) -> Document:
        """Return a document with its values as they were before they were encoded."""
        document: Document = bson.decode(found.raw, CODEC_OPTIONS)
        # The walk through all of it is only made where its bytes hold an encoded value.
        return decode(document) if _MARKER.search(found.raw) else document
