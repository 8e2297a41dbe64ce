"""Blobs: binaries and texts too large for a session document, kept in GridFS beside it: stored, read, kept, deleted.

A blob is uploaded before the commit that names it and belongs to one message or to the state of one agent. Its file is
written once under a random id and never changed. ``<collection>_blobs.files`` and ``<collection>_blobs.chunks`` are a
GridFS bucket that every driver and tool can read; they are written here, not by PyMongo's ``GridFSBucket``, for three
reasons:

- The file document goes first, so that no chunk is without an owner while it is written: what a dead process leaves is
  found by its session, and a chunk without a file document is always rubbish.
- ``uploadDate`` is the server's time. ``GridFSBucket`` takes the client's, and a client whose clock is a day slow would
  have its blobs swept before it could commit them.
- A read of all blobs of a window is one command.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import pymongo
from bson import Int64, ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import ASCENDING, IndexModel, ReadPreference
from pymongo.database import Database
from pymongo.errors import AutoReconnect, PyMongoError, ServerSelectionTimeoutError

from .._model import limits
from .._model.documents import Document
from .._model.encoding import CODEC_OPTIONS, PLAIN_CODEC_OPTIONS, Blob, PendingBlobs, decode_document
from .._model.related_shapes import BlobOwner
from ..errors import BlobMissingError
from .indexes import EXPIRY_INDEX, ensure_indexes
from .sending import attempts, until_known

OWNER_INDEX = [("metadata.session", ASCENDING), ("metadata.incarnation", ASCENDING)]
"""The keys of the index by which the files of a session are found."""

_T = TypeVar("_T")


class BlobStore:
    """Sends the commands about the blobs of one collection of sessions. Every method blocks.

    Reads come from the primary: a secondary may not have a blob yet that its session document names. Writes have the
    write concern of the database.

    Args:
        database: Where the sessions are.
        collection_name: Collection of the session documents.

    Attributes:
        bucket_name: The bucket, ``<collection>_blobs``.
        files: Its files.
        chunks: Their content.
    """

    def __init__(self, database: Database[Any], collection_name: str) -> None:
        self.bucket_name = f"{collection_name}_blobs"
        options: dict[str, Any] = {"codec_options": PLAIN_CODEC_OPTIONS, "read_preference": ReadPreference.PRIMARY}
        self.files = database.get_collection(f"{self.bucket_name}.files", **options)
        self.chunks = database.get_collection(f"{self.bucket_name}.chunks", **options)

    def upload(self, blobs: PendingBlobs, owner: BlobOwner) -> None:
        """Store the blobs that are not stored yet, and write the ids of their files into their markers.

        One whose upload is more than an hour old is uploaded again, under another id, because a sweep might have
        removed it; so call this right before each attempt to commit. The file of the first upload is left to the
        sweep: a commit whose answer was lost may name it.

        Two commands for each blob, and one more for every 8 MB beyond the first. Memory: 8 MB of chunks, and a text's
        bytes.

        Args:
            blobs: After an error, those that were stored are not sent again.
            owner: Whose they are.

        Raises:
            pymongo.errors.PyMongoError: A blob could not be stored. No commit may name it.
        """
        oldest = clock() - limits.FRESH_UPLOAD_SECONDS
        due = [blob for blob in blobs.blobs if blob.uploaded_at is None or blob.uploaded_at < oldest]
        if due:
            self._ensure_indexes()
        for blob in due:
            self._upload(blob, owner)

    def fetch(self, files: Mapping[ObjectId, int]) -> dict[ObjectId, bytes]:
        """Return the content of files, all read with one ``find`` (and a ``getMore`` for each 16 MB beyond the first).

        Args:
            files: Their ids, each with its length in bytes, as ``encoding.blob_files`` returns them.

        Raises:
            BlobMissingError: One of them is not there, or has another length. Nothing is returned then.
        """
        fetched: dict[ObjectId, bytes] = {}
        if not files:
            return fetched
        chunks = self.chunks.find(
            {"files_id": {"$in": list(files)}},
            {"_id": 0, "files_id": 1, "n": 1, "data": 1},
            sort=[("files_id", ASCENDING), ("n", ASCENDING)],
            # Without it, the first answer ends after 101 chunks however small they are.
            batch_size=limits.INT32_MAX,
        )
        with contextlib.closing(chunks):
            for file_id, of_file in itertools.groupby(chunks, key=lambda chunk: chunk["files_id"]):
                content = io.BytesIO()  # Its getvalue() does not copy, as joining a list of chunks would.
                for n, chunk in enumerate(of_file):
                    if chunk["n"] != n:
                        raise self._missing(file_id, f"has no chunk {n}")
                    content.write(chunk["data"])
                fetched[file_id] = content.getvalue()
        for file_id, length in files.items():
            found = len(fetched.setdefault(file_id, b""))
            if found != length:
                raise self._missing(file_id, f"has {found} bytes instead of {length}")
        return fetched

    def decoded(
        self, read: Callable[[], Iterable[RawBSONDocument]], what: str, session_id: str | None = None
    ) -> list[Document]:
        """Read documents and return them decoded; where one of their blobs is missing, they are read again.

        Perhaps that was redacted or deleted since they were read: then they no longer name it.
        Only for what is encoded, messages and agents: elsewhere somebody could have stored what looks like a marker.

        Args:
            read: Reads them.
            what: For the error: what is read.
            session_id: For the error: the session.

        Raises:
            BlobMissingError: They still name it.
        """
        missing: ObjectId | None = None
        for _ in attempts(f"{what} could not be read with its blobs", session_id):
            try:
                return [decode_document(bytes(document.raw), self.fetch) for document in read()]
            except BlobMissingError as error:
                error.session_id = session_id
                if error.file_id == missing:
                    raise
                missing = error.file_id
        raise AssertionError  # `attempts` never ends without an error.

    def delete(self, file_ids: Iterable[ObjectId]) -> None:
        """Delete files; those that are not there are no error. Two commands for each 1,000.

        The chunks go first. A deletion that is interrupted can then be repeated by whoever only knows the owner.
        """
        for ids in batches(file_ids, limits.IDS_PER_COMMAND):
            until_known(partial(self.chunks.delete_many, {"files_id": {"$in": ids}}))
            until_known(partial(self.files.delete_many, {"_id": {"$in": ids}}))

    def delete_session(self, session_id: str, incarnation: ObjectId) -> None:
        """Delete all files of one incarnation of a session, those of interrupted uploads included."""
        with contextlib.closing(self.files.find(_of(session_id, incarnation), {"_id": 1})) as files:
            self.delete(file["_id"] for file in files)

    def keep(self, file_ids: Iterable[ObjectId], until: datetime) -> None:
        """Let these files expire no sooner than this."""
        self._change(file_ids, {"$max": {"expires_at": until}}, lambda _: {})

    def keep_session(self, session_id: str, incarnation: ObjectId, until: datetime, now: datetime) -> None:
        """Let the files of one incarnation of a session expire no sooner than this.

        Those without an expiry get it if they were stored before ``now``, by the server's clock. One that was stored
        since belongs to a session that has lost its ttl meanwhile, or gets its expiry from whoever is storing it.
        """
        with contextlib.closing(self.files.find(_of(session_id, incarnation), {"uploadDate": 1})) as files:
            for found in batches(files, limits.IDS_PER_COMMAND):
                older = [file["_id"] for file in found if file["uploadDate"] < now]
                ids = [file["_id"] for file in found]
                self._change(ids, {"$set": {"expires_at": until}}, partial(_expires_too_soon, until, older))

    def let_expire(self, session_id: str, incarnation: ObjectId, until: datetime, before: datetime) -> None:
        """Give an expiry to those files of one incarnation of a session that have none.

        Only to those whose upload began before a time, by the server's clock.
        """
        which = {**_of(session_id, incarnation), "uploadDate": {"$lt": before}}
        with contextlib.closing(self.files.find(which, {"_id": 1})) as files:
            ids = (file["_id"] for file in files)
            self._change(ids, {"$set": {"expires_at": until}}, lambda _: {"expires_at": None})

    def _change(
        self, file_ids: Iterable[ObjectId], change: dict[str, Any], which: Callable[[str], dict[str, Any]]
    ) -> None:
        """Change those of these files, and their chunks, that meet a condition.

        Args:
            file_ids: The files.
            change: The change.
            which: Returns the condition, given the name of the field that holds a file's id.
        """
        self._ensure_indexes()
        for ids in batches(file_ids, limits.IDS_PER_COMMAND):
            for collection, id_field in ((self.chunks, "files_id"), (self.files, "_id")):
                query = {id_field: {"$in": ids}, **which(id_field)}
                until_known(partial(collection.update_many, query, change))

    def server_time(self) -> datetime:
        """Return the time of the server's clock."""
        moment: datetime = self.files.database.command("hello", codec_options=CODEC_OPTIONS)["localTime"]
        return moment

    def _upload(self, blob: Blob, owner: BlobOwner) -> None:
        """Store one blob under a new id; each attempt has an id of its own, so that none finishes another's file."""
        content = blob.content
        failed: list[ObjectId] = []
        while True:
            begun, file_id = clock(), ObjectId()
            blob.marker["value"].update(file=file_id, length=len(content))
            blob.uploaded_at = None
            try:
                self._store(file_id, content, owner)
            except PyMongoError as error:
                failed.append(file_id)
                lost = isinstance(error, AutoReconnect) and not isinstance(error, ServerSelectionTimeoutError)
                if lost and len(failed) <= limits.MAX_RECONNECTS:
                    continue
                self._discard(failed)
                raise
            blob.uploaded_at = begun
            self._discard(failed)
            return

    def _store(self, file_id: ObjectId, content: bytes, owner: BlobOwner) -> None:
        size = limits.BLOB_CHUNK_BYTES
        file = {"length": Int64(len(content)), "chunkSize": size, "metadata": owner}
        # An upsert, because an insert cannot take the server's time.
        begun: Document = {"$setOnInsert": file, "$currentDate": {"uploadDate": True}}
        self.files.update_one({"_id": file_id}, begun, upsert=True)
        for starts in batches(range(0, len(content), size), limits.BLOB_CHUNKS_PER_INSERT):
            self.chunks.insert_many(
                {"files_id": file_id, "n": start // size, "data": content[start : start + size]} for start in starts
            )

    def _discard(self, file_ids: list[ObjectId]) -> None:
        """Delete what failed attempts have left, if that is possible now."""
        with contextlib.suppress(PyMongoError), pymongo.timeout(limits.DISCARD_SECONDS):
            self.delete(file_ids)

    def _missing(self, file_id: ObjectId, what: str) -> BlobMissingError:
        return BlobMissingError(f"{self.bucket_name}: file {file_id} {what}", file_id)

    def _ensure_indexes(self) -> None:
        """Create the indexes, once per process and bucket. A failure is logged: everything works without, slower."""
        ensure_indexes(self.files, [IndexModel(OWNER_INDEX), EXPIRY_INDEX])
        by_file = IndexModel([("files_id", ASCENDING), ("n", ASCENDING)], unique=True)
        ensure_indexes(self.chunks, [by_file, EXPIRY_INDEX])


def clock() -> float:
    """Return the seconds by which the age of an upload is told; they go on while the machine sleeps, where known."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _expires_too_soon(until: datetime, older: list[ObjectId], id_field: str) -> dict[str, Any]:
    """Return the condition that a file expires before this, or has no expiry and is one of the older ones."""
    return {"$or": [{"expires_at": {"$lt": until}}, {"expires_at": None, id_field: {"$in": older}}]}


def _of(session_id: str, incarnation: ObjectId) -> dict[str, Any]:
    """Return the filter of the files of one incarnation of a session, those of interrupted uploads included."""
    return {"metadata.session": {"$eq": session_id}, "metadata.incarnation": incarnation}


def batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield the items in lists of up to ``size``."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
