"""Blobs: binaries too large for a session document, kept in GridFS beside it.

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
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import pymongo
from bson import Int64, ObjectId
from pymongo import ASCENDING, IndexModel, ReadPreference
from pymongo.database import Database
from pymongo.errors import AutoReconnect, PyMongoError, ServerSelectionTimeoutError

from .._model.encoding import CODEC_OPTIONS, PLAIN_CODEC_OPTIONS
from .._model.limits import (
    BLOB_CHUNK_BYTES,
    BLOB_CHUNKS_PER_INSERT,
    DISCARD_SECONDS,
    FRESH_UPLOAD_SECONDS,
    IDS_PER_COMMAND,
    INT32_MAX,
    MAX_RECONNECTS,
    SWEEP_GRACE_SECONDS,
)
from .._model.pending_blobs import Blob, PendingBlobs
from .._model.related_shapes import BlobOwner
from .._statements.sweeping import says_whose
from ..errors import BlobMissingError
from .indexes import EXPIRY_INDEX, ensure_indexes
from .sending import until_known
from .upkeep import Failures, Orphans

_T = TypeVar("_T")


Named = Callable[[str, ObjectId, str, Mapping[ObjectId, int | None]], AbstractSet[ObjectId]]
"""Tells which files are still named: ``named(session, incarnation, agent, {file: message it was meant for})``."""


class BlobStore:
    """Sends the commands about the blobs of one collection of sessions. Every method blocks.

    Reads come from the primary: a secondary may not have a blob yet that its session document names. Writes have the
    write concern of the database.

    Args:
        database: Where the sessions are.
        collection_name: Collection of the session documents.
    """

    def __init__(self, database: Database[Any], collection_name: str) -> None:
        self.bucket_name = f"{collection_name}_blobs"
        options: dict[str, Any] = {"codec_options": PLAIN_CODEC_OPTIONS, "read_preference": ReadPreference.PRIMARY}
        self._files = database.get_collection(f"{self.bucket_name}.files", **options)
        self._chunks = database.get_collection(f"{self.bucket_name}.chunks", **options)

    # --- one session ------------------------------------------------------------------------------------------------

    def upload(self, blobs: PendingBlobs, owner: BlobOwner) -> None:
        """Store the blobs that are not stored yet, and put the names of their files into their markers.

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
        due = [
            blob
            for blob in blobs.blobs
            if blob.uploaded_at is None or clock() - blob.uploaded_at > FRESH_UPLOAD_SECONDS
        ]
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
        chunks = self._chunks.find(
            {"files_id": {"$in": list(files)}},
            {"_id": 0, "files_id": 1, "n": 1, "data": 1},
            sort=[("files_id", ASCENDING), ("n", ASCENDING)],
            # Without it, the first answer ends after 101 chunks however small they are.
            batch_size=INT32_MAX,
        )
        with contextlib.closing(chunks):
            for file_id, parts in itertools.groupby(chunks, key=lambda chunk: chunk["files_id"]):
                content = io.BytesIO()  # Its getvalue() does not copy, as joining a list of chunks would.
                for n, chunk in enumerate(parts):
                    if chunk["n"] != n:
                        raise self._missing(file_id, f"has no chunk {n}")
                    content.write(chunk["data"])
                fetched[file_id] = content.getvalue()
        for file_id, length in files.items():
            found = len(fetched.setdefault(file_id, b""))
            if found != length:
                raise self._missing(file_id, f"has {found} bytes instead of {length}")
        return fetched

    def delete(self, file_ids: Iterable[ObjectId]) -> None:
        """Delete files; those that are not there are no error. Two commands for each 1,000.

        The chunks go first. A deletion that is interrupted can then be repeated by whoever only knows the owner.
        """
        for ids in _batches(file_ids, IDS_PER_COMMAND):
            until_known(partial(self._chunks.delete_many, {"files_id": {"$in": ids}}))
            until_known(partial(self._files.delete_many, {"_id": {"$in": ids}}))

    def delete_session(self, session_id: str, incarnation: ObjectId | None) -> None:
        """Delete all files of one incarnation of a session, those of interrupted uploads included; None: of all."""
        self.delete(self.files_of(session_id, incarnation))

    def keep(self, file_ids: Iterable[ObjectId], until: datetime) -> None:
        """Let these files expire no sooner than this."""
        self._change(file_ids, {}, {"$max": {"expires_at": until}})

    def let_expire(self, file_ids: Iterable[ObjectId], until: datetime) -> None:
        """Give an expiry to those of these files that have none."""
        self._change(file_ids, {"expires_at": None}, {"$set": {"expires_at": until}})

    def keep_session(self, session_id: str, incarnation: ObjectId, until: datetime, now: datetime) -> None:
        """Let the blobs of one incarnation of a session expire no sooner than this, one update for each collection.

        Those without an expiry get it if they were stored before ``now``, by the server's clock. One that was stored
        since belongs to a session that has lost its ttl meanwhile, or gets its expiry from whoever is storing it.
        """
        files = self._files.find(self._of(session_id, incarnation), {"uploadDate": 1})
        with contextlib.closing(files):
            for found in _batches(files, IDS_PER_COMMAND):
                older = [file["_id"] for file in found if file["uploadDate"] < now]
                sooner = [{"expires_at": {"$lt": until}}]
                self._change(
                    [file["_id"] for file in found],
                    {"$or": [*sooner, {"expires_at": None, "_id": {"$in": older}}]},
                    {"$set": {"expires_at": until}},
                    {"$or": [*sooner, {"expires_at": None, "files_id": {"$in": older}}]},
                )

    def _change(
        self,
        file_ids: Iterable[ObjectId],
        which: dict[str, Any],
        change: dict[str, Any],
        which_chunks: dict[str, Any] | None = None,
    ) -> None:
        """Change those of these files, and their chunks, of which this is true."""
        self._ensure_indexes()
        for ids in _batches(file_ids, IDS_PER_COMMAND):
            chunks = {"files_id": {"$in": ids}, **(which if which_chunks is None else which_chunks)}
            until_known(partial(self._chunks.update_many, chunks, change))
            until_known(partial(self._files.update_many, {"_id": {"$in": ids}, **which}, change))

    def files_of(
        self, session_id: str, incarnation: ObjectId | None, *, before: datetime | None = None
    ) -> Iterator[ObjectId]:
        """Yield the files of one incarnation of a session, those of interrupted uploads included.

        Args:
            session_id: The session.
            incarnation: The incarnation; None: every one.
            before: Only files whose upload began earlier, by the server's clock.
        """
        query = self._of(session_id, incarnation)
        if before is not None:
            query["uploadDate"] = {"$lt": before}
        with contextlib.closing(self._files.find(query, {"_id": 1})) as files:
            for file in files:
                yield file["_id"]

    @staticmethod
    def _of(session_id: str, incarnation: ObjectId | None) -> dict[str, Any]:
        query: dict[str, Any] = {"metadata.session": {"$eq": session_id}}
        if incarnation is not None:
            query["metadata.incarnation"] = incarnation
        return query

    # --- all sessions -----------------------------------------------------------------------------------------------

    def sweep(self, named: Named, failures: Failures, grace_seconds: float = SWEEP_GRACE_SECONDS) -> int:
        """Remove the files that nobody names any more, and chunks without a file.

        Dead processes leave such files, and so do sessions that expired. All times are the server's. It can be ended
        at any point, run again, and run twice at once.

        It never removes a file that is named, or will be:

        - A commit names a file at most an hour after its upload began (and a little for its command to arrive);
          afterwards the writer uploads again, under another id. So a file that is older than the grace time and not
          named *now* will only be named if it was before: by a session that is about to be restored. This needs a
          value well above an hour: two hours (7200) at least outside of tests. It is not enforced.
        - ``named`` is asked after the file was found.
        - A chunk without a file document belongs to no upload under way, because the file document is written first.
        - What seems orphaned is marked first, see ``Orphans``: its session may be restored after it.

        Somebody else's files in the bucket are left alone, and so are their chunks. Only of a chunk whose file is gone
        nobody can tell whose it was: if the id of the file is an ``ObjectId``, it is taken for one of these.

        Args:
            named: Which of these files the owner still names, a set; asked for up to 1,000 files of one owner at a
                time. It must know every place, and read them in the order in which content moves: the session document
                first, then its history. An owner that does not exist names nothing.
            failures: Takes errors of single sessions.
            grace_seconds: Grace time since the upload, and since the mark.

        Returns:
            How many files were removed, those included of which only chunks were left.
        """
        before = self.server_time() - timedelta(seconds=grace_seconds)
        orphans = Orphans(self._files, grace_seconds, self._delete_files)
        removed = 0
        for files in _batches(self._older_files(before), IDS_PER_COMMAND):
            owners: dict[tuple[str, ObjectId, str], list[dict[str, Any]]] = {}
            for file in files:
                owner = file["metadata"]
                owners.setdefault((owner["session"], owner["incarnation"], owner["agent"]), []).append(file)
            for owner_key, owned in owners.items():
                with failures.of(owner_key[0]):
                    removed += self._sweep_owned(orphans, partial(named, *owner_key), owned)
        return removed + self._sweep_chunks(before, grace_seconds)

    @staticmethod
    def _sweep_owned(
        orphans: Orphans,
        named: Callable[[Mapping[ObjectId, int | None]], AbstractSet[ObjectId]],
        files: list[dict[str, Any]],
    ) -> int:
        meant_for = {file["_id"]: file["metadata"].get("message") for file in files}

        def unnamed() -> dict[str, Any] | None:
            found = list(meant_for.keys() - named(meant_for))
            return {"_id": {"$in": found}} if found else None

        marked = any("orphaned_at" in file for file in files)
        return orphans.settle({"_id": {"$in": list(meant_for)}}, unnamed, marked=marked)

    def _older_files(self, before: datetime) -> Iterator[dict[str, Any]]:
        """Yield the older files of this library, each owner's together. Somebody else's have no such metadata."""
        is_ours = [{"$eq": [{"$type": "$_id"}, "objectId"]}, says_whose("$metadata", "message", "null", "missing")]
        query = {"uploadDate": {"$lt": before}, "$expr": {"$and": is_ours}}
        wanted = {"orphaned_at": 1, **{f"metadata.{name}": 1 for name in BlobOwner.__annotations__}}
        files = self._files.find(query, wanted, batch_size=IDS_PER_COMMAND).sort(_OWNER_INDEX)
        with contextlib.closing(files.allow_disk_use(True)):
            yield from files

    def _delete_files(self, which: dict[str, Any]) -> int:
        ids = [file["_id"] for file in self._files.find(which, {"_id": 1})]
        self.delete(ids)
        return len(ids)

    def _sweep_chunks(self, before: datetime, grace_seconds: float) -> int:
        """Delete the chunks without a file; return of how many files they were."""
        orphans = Orphans(self._chunks, grace_seconds, self._delete_chunks)

        def of(ids: list[ObjectId]) -> dict[str, Any]:
            return {"files_id": {"$in": ids}}

        def without_file(ids: list[ObjectId]) -> dict[str, Any] | None:
            existing = {file["_id"] for file in self._files.find({"_id": {"$in": ids}}, {"_id": 1})}
            left = [file_id for file_id in ids if file_id not in existing]
            return of(left) if left else None

        removed = 0
        # Those with a mark first: what is marked behind it is not deleted by the same sweep.
        for ids in _batches(self._files_with_marked_chunks(), IDS_PER_COMMAND):
            removed += orphans.settle(of(ids), partial(without_file, ids), marked=True)
        for ids in _batches(self._older_files_with_chunks(before), IDS_PER_COMMAND):
            if without_file(ids) is not None:
                # Without it, a sweep would read every chunk there is to find those with a mark.
                self._chunks.create_indexes([_ORPHANS_INDEX])
                orphans.settle(of(ids), partial(without_file, ids), marked=False)
        return removed

    def _files_with_marked_chunks(self) -> list[ObjectId]:
        """Return the ids under which there are chunks with a mark."""
        if _ORPHANS_INDEX.document["name"] not in self._chunks.index_information():
            return []
        marked = self._chunks.find({"orphaned_at": {"$exists": True}}, {"files_id": 1})
        return list({chunk["files_id"] for chunk in marked if isinstance(chunk["files_id"], ObjectId)})

    def _delete_chunks(self, which: dict[str, Any]) -> int:
        ids = {chunk["files_id"] for chunk in self._chunks.find(which, {"files_id": 1})}
        self._chunks.delete_many(which)
        return len(ids)

    def _older_files_with_chunks(self, before: datetime) -> Iterator[ObjectId]:
        """Yield the older ids under which there are chunks; the index knows them. Somebody else's have others."""
        pipeline: list[dict[str, Any]] = [
            {"$match": {"files_id": {"$lt": ObjectId.from_datetime(before)}}},
            {"$group": {"_id": "$files_id"}},
            {"$match": {"$expr": {"$eq": [{"$type": "$_id"}, "objectId"]}}},
        ]
        with self._chunks.aggregate(pipeline, allowDiskUse=True, batchSize=IDS_PER_COMMAND) as found:
            for group in found:
                yield group["_id"]

    def server_time(self) -> datetime:
        """Return the time of the server's clock."""
        answer = self._files.database.command("hello", codec_options=CODEC_OPTIONS)
        moment: datetime = answer["localTime"]
        return moment

    # --- uploads ----------------------------------------------------------------------------------------------------

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
                if lost and len(failed) <= MAX_RECONNECTS:
                    continue
                self._discard(failed)
                raise
            blob.uploaded_at = begun
            self._discard(failed)
            return

    def _store(self, file_id: ObjectId, content: bytes, owner: BlobOwner) -> None:
        file = {"length": Int64(len(content)), "chunkSize": BLOB_CHUNK_BYTES, "metadata": owner}
        # An upsert, because an insert cannot take the server's time.
        self._files.update_one(
            {"_id": file_id}, {"$setOnInsert": file, "$currentDate": {"uploadDate": True}}, upsert=True
        )
        for starts in _batches(range(0, len(content), BLOB_CHUNK_BYTES), BLOB_CHUNKS_PER_INSERT):
            self._chunks.insert_many(
                {"files_id": file_id, "n": start // BLOB_CHUNK_BYTES, "data": content[start : start + BLOB_CHUNK_BYTES]}
                for start in starts
            )

    def _discard(self, file_ids: list[ObjectId]) -> None:
        """Delete what failed attempts have left, if that is possible now."""
        with contextlib.suppress(PyMongoError), pymongo.timeout(DISCARD_SECONDS):
            self.delete(file_ids)

    def _missing(self, file_id: ObjectId, what: str) -> BlobMissingError:
        return BlobMissingError(f"{self.bucket_name}: file {file_id} {what}", file_id)

    def _ensure_indexes(self) -> None:
        """Create the indexes, once per process and bucket. A failure is logged: everything works without, slower."""
        ensure_indexes(self._files, [IndexModel(_OWNER_INDEX), EXPIRY_INDEX])
        by_file = IndexModel([("files_id", ASCENDING), ("n", ASCENDING)], unique=True)
        ensure_indexes(self._chunks, [by_file, EXPIRY_INDEX])


def clock() -> float:
    """Return the seconds by which the age of an upload is told; they go on while the machine sleeps, where known."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield the items in lists of up to ``size``."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


# Made when there are marks: there hardly ever are.
_ORPHANS_INDEX = IndexModel([("orphaned_at", ASCENDING)], name="orphaned_at", sparse=True)
_OWNER_INDEX = [("metadata.session", ASCENDING), ("metadata.incarnation", ASCENDING)]
