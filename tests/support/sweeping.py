"""Sweeps of tests that would not wait for a grace time."""

from typing import Any

from mongodb_session_manager._store.blobs import BlobStore
from mongodb_session_manager._store.upkeep import BlobSweep, Failures, Named
from mongodb_session_manager.mongodb_session_repository import MongoDBSessionRepository


def swept(repository: MongoDBSessionRepository, older_than_seconds: float = 0) -> int:
    """Sweep twice: the first sweep marks what is orphaned, the second removes it. Returns how many were removed."""
    return sum(repository.sweep(older_than_seconds) for _ in range(2))


def swept_blobs(store: BlobStore, named: Named, **options: Any) -> int:
    """The same with the blobs alone, after the grace time: the marks of the first sweep are made so much older."""
    removed = sweep_blobs(store, named, **options)
    age_marks(store)
    return removed + sweep_blobs(store, named, **options)


def sweep_blobs(store: BlobStore, named: Named, grace_seconds: float = 24 * 3600) -> int:
    failures = Failures()
    removed = BlobSweep(store, grace_seconds).run(named, failures)
    failures.tell("the sweep could not do all")
    return removed


def age_marks(store: BlobStore, days: int = 2) -> None:
    """Let the marks of blobs be older."""
    for collection in (store.files, store.chunks):
        age = {"$subtract": ["$orphaned_at", days * 24 * 3600 * 1000]}
        collection.update_many({"orphaned_at": {"$exists": True}}, [{"$set": {"orphaned_at": age}}])
