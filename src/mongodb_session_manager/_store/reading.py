"""From the bytes that MongoDB returns to the values that were stored."""

from __future__ import annotations

import bson
from bson.raw_bson import RawBSONDocument

from .._model.documents import Document
from .._model.encoding import CODEC_OPTIONS, MARKER, blob_files, decode
from .blobs import BlobStore

_MARKER = MARKER.encode()


class Reader:
    """Decodes documents that were read as they are.

    Args:
        blobs: Where the large parts of them are kept.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def decode(self, found: RawBSONDocument) -> Document:
        """Return a document with its values as they were before they were encoded; its blobs are fetched.

        Only for what is encoded, messages and agents: elsewhere somebody could have stored what looks like a marker.

        Raises:
            BlobMissingError: A blob that it names is not there.
        """
        raw = bytes(found.raw)  # PyMongo may give a `memoryview`.
        document: Document = bson.decode(raw, CODEC_OPTIONS)
        # The walk through all of it is only made where its bytes hold an encoded value.
        # (From behind: `bytes.rfind` takes half as long as `in`, which was half of a regular expression.)
        if raw.rfind(_MARKER) < 0:
            return document
        decoded: Document = decode(document, self._blobs.fetch(blob_files(document)))
        return decoded

    def plain(self, found: RawBSONDocument) -> Document:
        """Return a document whose values are not encoded: metadata, feedback."""
        document: Document = bson.decode(found.raw, CODEC_OPTIONS)
        return document
