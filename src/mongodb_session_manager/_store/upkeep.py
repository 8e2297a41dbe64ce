"""How a sweep deletes what is orphaned, and how work on all sessions goes on where one session fails.

A sweep finds what nobody needs by reading several collections, and they may be in the midst of a restore: then history
seems orphaned whose session document comes a minute later. So there is one rule for everything that a sweep deletes,
``Orphans``: it is marked first, and deleted by a later sweep, after the grace time, if it is orphaned then. All times
are the server's. A sweep can be ended at any point, run again, and run twice at once.

Orphaned in GridFS are files that nobody names, and chunks without a file. Dead processes leave such files, and so do
sessions that expired. A sweep never removes a file that is named, or will be:

- A commit names a file at most an hour after its upload began (and a little for its command to arrive); afterwards the
  writer uploads again, under another id. So a file that is older than the grace time and not named *now* will only be
  named if it was before: by a session that is about to be restored. This needs a value well above an hour: two hours
  (7200) at least outside of tests. It is not enforced.
- Who names it is asked after the file was found.
- A chunk without a file document belongs to no upload under way, because the file document is written first.

Somebody else's files in the bucket are left alone, and so are their chunks. Only of a chunk whose file is gone nobody
can tell whose it was: if the id of the file is an ``ObjectId``, it is taken for one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from bson import ObjectId
from bson.errors import BSONError
from pymongo import ASCENDING, IndexModel
from pymongo.collection import Collection
from pymongo.errors import DocumentTooLarge, OperationFailure

from .._model.documents import Document
from .._model.limits import IDS_PER_COMMAND, MAX_SHOWN_SESSIONS
from .._model.related_shapes import BlobOwner
from .._statements.sweeping import says_whose
from ..errors import MongoDBSessionError, described, shown
from .blobs import OWNER_INDEX, BlobStore, batches
from .sending import UNAUTHORIZED

_MARKED: Document = {"orphaned_at": {"$exists": True}}
_UNMARKED: Document = {"orphaned_at": {"$not": {"$type": "date"}}}


class Orphans:
    """Deletes documents that have been orphaned for longer than the grace time: their mark ``orphaned_at`` tells.

    Args:
        collection: Where they are.
        grace_seconds: How long a mark must have stood.
        delete: Deletes what meets a filter and returns how much that was; None: as the collection does it.
    """

    def __init__(
        self, collection: Collection[Any], grace_seconds: float, delete: Callable[[Document], int] | None = None
    ) -> None:
        self._collection = collection
        self._delete = delete or (lambda which: collection.delete_many(which).deleted_count)
        since = {"$subtract": ["$$NOW", round(grace_seconds * 1000)]}
        self._due: Document = {"orphaned_at": {"$type": "date"}, "$expr": {"$lte": ["$orphaned_at", since]}}

    def sweep(self, which: Document, orphaned: Callable[[], Document | None], *, marked: bool) -> int:
        """Delete what was marked long enough ago, mark what was not, and take the mark off what is orphaned no more.

        Args:
            which: The documents.
            orphaned: Returns, for certain, the filter of those of them that are orphaned now; None: none is. It is
                called right before anything is deleted.
            marked: Whether one of them had a mark when they were found. Without one, nothing is deleted.

        Returns:
            How many were deleted.
        """
        orphans = orphaned()
        deleted = 0
        if orphans is not None:
            if marked:
                deleted = self._delete({"$and": [orphans, self._due]})
            # Only now: no grace time is so short that one sweep both marks and deletes.
            mark = [{"$set": {"orphaned_at": "$$NOW"}}]
            if self._collection.update_many({"$and": [orphans, _UNMARKED]}, mark).modified_count:
                # Its owner may have come back in between, and another sweep have looked before there was a mark.
                marked, orphans = True, orphaned()
        if marked:
            back = [which, _MARKED] if orphans is None else [which, _MARKED, {"$nor": [orphans]}]
            self._collection.update_many({"$and": back}, {"$unset": {"orphaned_at": ""}})
        return deleted

    def sweep_together(self, which: Document, orphaned: Callable[[], bool], *, marked: bool) -> int:
        """Do the same with documents of which all are orphaned, or none: ``orphaned`` returns whether they are."""
        return self.sweep(which, lambda: which if orphaned() else None, marked=marked)


class Failures:
    """Errors of single sessions: each ends the work on its session only, and is raised when all others are done."""

    def __init__(self) -> None:
        self._sessions: dict[str, None] = {}
        self._first: Exception | None = None

    @contextmanager
    def of(self, session_id: str) -> Iterator[None]:
        """Keep an error of the work on one session. An error that every other session would meet is raised at once."""
        try:
            yield
        except (MongoDBSessionError, OperationFailure, DocumentTooLarge, BSONError) as error:
            if isinstance(error, OperationFailure) and (error.timeout or error.code == UNAUTHORIZED):
                raise
            self._sessions[session_id] = None
            self._first = self._first or error

    def tell(self, what: str) -> None:
        """Raise an error that names the sessions, if there are any.

        Args:
            what: What was not done, or not all of it.

        Raises:
            MongoDBSessionError: There are; its cause is the first error.
        """
        if self._first is None:
            return
        named = ", ".join(map(shown, list(self._sessions)[:MAX_SHOWN_SESSIONS]))
        others = len(self._sessions) - MAX_SHOWN_SESSIONS
        more = f" and {others} more" if others > 0 else ""
        raise MongoDBSessionError(
            f"{what} of session_id={named}{more}; all others are done. The first error: {described(self._first)}",
            session_id=next(iter(self._sessions)) if len(self._sessions) == 1 else None,
        ) from self._first


# --- blobs ------------------------------------------------------------------------------------------------------------

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
        with closing(files.allow_disk_use(True)):
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
