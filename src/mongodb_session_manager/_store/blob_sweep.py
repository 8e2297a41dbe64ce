"""Which files in GridFS are orphaned, and how they are removed: files that nobody names, and chunks without a file.

Dead processes leave such files, and so do sessions that expired. All times are the server's. A sweep can be ended at
any point, run again, and run twice at once. It never removes a file that is named, or will be:

- A commit names a file at most an hour after its upload began (and a little for its command to arrive); afterwards the
  writer uploads again, under another id. So a file that is older than the grace time and not named *now* will only be
  named if it was before: by a session that is about to be restored. This needs a value well above an hour: two hours
  (7200) at least outside of tests. It is not enforced.
- Who names it is asked after the file was found.
- A chunk without a file document belongs to no upload under way, because the file document is written first.
- What seems orphaned is marked first, see ``Orphans``: its session may be restored after it.

Somebody else's files in the bucket are left alone, and so are their chunks. Only of a chunk whose file is gone nobody
can tell whose it was: if the id of the file is an ``ObjectId``, it is taken for one of these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from datetime import timedelta
from functools import partial
from typing import Any

from bson import ObjectId
from pymongo import ASCENDING, IndexModel

from .._model.documents import Document
from .._model.limits import IDS_PER_COMMAND
from .._model.related_shapes import BlobOwner
from .._statements.sweeping import says_whose
from .blobs import OWNER_INDEX, BlobStore, batches
from .upkeep import Failures, Orphans

Named = Callable[[str, ObjectId, str, Mapping[ObjectId, int | None]], AbstractSet[ObjectId]]
"""Tells which files are still named: ``named(session, incarnation, agent, {file: message it was meant for})``.

Asked for up to 1,000 files of one owner at a time. It must know every place, and read them in the order in which
content moves: the session document first, then its history. An owner that does not exist names nothing.
"""

# Made when there are marks: there hardly ever are.
_ORPHANS_INDEX = IndexModel([("orphaned_at", ASCENDING)], name="orphaned_at", sparse=True)


class BlobSweep:
    """Removes the orphaned files of one collection of sessions.

    Args:
        store: Where they are.
        grace_seconds: Grace time since the upload, and since the mark.
    """

    def __init__(self, store: BlobStore, grace_seconds: float) -> None:
        self._store = store
        self._before = store.server_time() - timedelta(seconds=grace_seconds)
        self._orphaned_files = Orphans(store.files, grace_seconds, self._delete_files)
        self._orphaned_chunks = Orphans(store.chunks, grace_seconds, self._delete_chunks)

    def run(self, named: Named, failures: Failures) -> int:
        """Sweep; return how many files were removed, those included of which only chunks were left.

        Args:
            named: Tells which files are still named.
            failures: Takes errors of single sessions.
        """
        removed = 0
        for files in batches(self._older_files(), IDS_PER_COMMAND):
            by_owner: dict[tuple[str, ObjectId, str], list[Document]] = {}
            for file in files:
                owner = file["metadata"]
                by_owner.setdefault((owner["session"], owner["incarnation"], owner["agent"]), []).append(file)
            for key, owned in by_owner.items():
                with failures.of(key[0]):
                    removed += self._sweep_files(owned, partial(named, *key))
        return removed + self._sweep_chunks()

    # --- files that nobody names ------------------------------------------------------------------------------------

    def _older_files(self) -> Iterator[Document]:
        """Yield ``_id``, ``metadata`` and any mark of the older files of this library, each session's together.

        Somebody else's have no such metadata.
        """
        is_ours = [{"$eq": [{"$type": "$_id"}, "objectId"]}, says_whose("$metadata", "message", "null", "missing")]
        query = {"uploadDate": {"$lt": self._before}, "$expr": {"$and": is_ours}}
        wanted = {"orphaned_at": 1, **{f"metadata.{name}": 1 for name in BlobOwner.__annotations__}}
        files = self._store.files.find(query, wanted, batch_size=IDS_PER_COMMAND).sort(OWNER_INDEX)
        with contextlib.closing(files.allow_disk_use(True)):
            yield from files

    def _sweep_files(
        self, files: list[Document], named: Callable[[Mapping[ObjectId, int | None]], AbstractSet[ObjectId]]
    ) -> int:
        meant_for = {file["_id"]: file["metadata"].get("message") for file in files}

        def unnamed() -> Document | None:
            found = list(meant_for.keys() - named(meant_for))
            return {"_id": {"$in": found}} if found else None

        marked = any("orphaned_at" in file for file in files)
        return self._orphaned_files.sweep({"_id": {"$in": list(meant_for)}}, unnamed, marked=marked)

    def _delete_files(self, which: Document) -> int:
        ids = [file["_id"] for file in self._store.files.find(which, {"_id": 1})]
        self._store.delete(ids)
        return len(ids)

    # --- chunks without a file --------------------------------------------------------------------------------------

    def _sweep_chunks(self) -> int:
        """Delete the chunks without a file; return of how many files they were."""
        removed = 0
        # Those with a mark first: what is marked behind it is not deleted by the same sweep.
        for ids in batches(self._marked(), IDS_PER_COMMAND):
            removed += self._orphaned_chunks.sweep(_chunks_of(ids), partial(self._without_file, ids), marked=True)
        for ids in batches(self._older_with_chunks(), IDS_PER_COMMAND):
            if self._without_file(ids) is not None:
                # Without it, a sweep would read every chunk there is to find those with a mark.
                self._store.chunks.create_indexes([_ORPHANS_INDEX])
                self._orphaned_chunks.sweep(_chunks_of(ids), partial(self._without_file, ids), marked=False)
        return removed

    def _marked(self) -> list[ObjectId]:
        """Return the ids of the files whose chunks have a mark."""
        if _ORPHANS_INDEX.document["name"] not in self._store.chunks.index_information():
            return []
        marked = self._store.chunks.find({"orphaned_at": {"$exists": True}}, {"files_id": 1})
        return list({chunk["files_id"] for chunk in marked if isinstance(chunk["files_id"], ObjectId)})

    def _older_with_chunks(self) -> Iterator[ObjectId]:
        """Yield the ids of older files that have chunks, read from an index. Somebody else's are no ObjectIds."""
        pipeline: list[dict[str, Any]] = [
            {"$match": {"files_id": {"$lt": ObjectId.from_datetime(self._before)}}},
            {"$group": {"_id": "$files_id"}},
            {"$match": {"$expr": {"$eq": [{"$type": "$_id"}, "objectId"]}}},
        ]
        with self._store.chunks.aggregate(pipeline, allowDiskUse=True, batchSize=IDS_PER_COMMAND) as found:
            for group in found:
                yield group["_id"]

    def _without_file(self, ids: list[ObjectId]) -> Document | None:
        """Return the filter of the chunks of those of these files that have no file document; None: all have one."""
        existing = {file["_id"] for file in self._store.files.find({"_id": {"$in": ids}}, {"_id": 1})}
        left = [file_id for file_id in ids if file_id not in existing]
        return _chunks_of(left) if left else None

    def _delete_chunks(self, which: Document) -> int:
        ids = {chunk["files_id"] for chunk in self._store.chunks.find(which, {"files_id": 1})}
        self._store.chunks.delete_many(which)
        return len(ids)


def _chunks_of(file_ids: list[ObjectId]) -> Document:
    return {"files_id": {"$in": file_ids}}
