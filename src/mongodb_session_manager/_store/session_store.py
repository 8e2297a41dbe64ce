"""All that sends commands about the sessions of one collection, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pymongo import ASCENDING, IndexModel, MongoClient
from pymongo.errors import OperationFailure

from .._statements import messages_view, session_listing
from ..errors import MongoDBSessionError
from .archiving import Archiver
from .guarded_writes import GuardedWrites
from .history import History
from .indexes import EXPIRY_INDEX, ensure_indexes
from .message_writes import MessageWrites
from .related_documents import RelatedDocuments
from .search_index import Indexer, SearchIndex
from .sending import NAMESPACE_EXISTS
from .session_commands import SessionCommands
from .session_lifecycle import SessionLifecycle
from .session_reads import SessionReads


class SessionStore:
    """Writes the sessions of one collection, and holds all that sends commands about them.

    Args:
        client: Borrowed; whoever made it closes it.
        database_name: Database.
        collection_name: Collection of the session documents.
        metadata_fields: Metadata fields to index.

    Attributes:
        commands: Single commands about session documents.
        reads: What is read of a session.
        lifecycle: How a session begins, is opened and ends.
        messages: How messages are stored and replaced.
        changes: How everything else is changed.
        history: The commands about segments.
        archiver: Moves messages there.
        search: The commands about search documents.
        indexer: Brings messages into the search.
        related: Keeps and deletes related documents.

    Raises:
        TypeError: ``client`` is an ``AsyncMongoClient``, which is bound to one event loop; Strands uses many.
        ValueError: The write concern is ``w=0``: no write could be known to have happened.
    """

    def __init__(
        self, client: MongoClient[Any], database_name: str, collection_name: str, metadata_fields: Sequence[str] = ()
    ) -> None:
        self.commands = SessionCommands(client, database_name, collection_name)
        self.history = History(self.commands.writes, self.commands.blobs)
        self.search = SearchIndex(self.commands)
        self.indexer = Indexer(self.commands, self.history, self.search)
        self.archiver = Archiver(self.commands, self.history)
        self.commands.when_full = self.archiver.make_room
        self.related = RelatedDocuments(self.commands, self.history, self.search)
        self.reads = SessionReads(self.commands, self.history)
        self.lifecycle = SessionLifecycle(self.commands, self.history, self.related)
        self.messages = MessageWrites(self.commands, self.reads, self.history, self.search, self.related)
        self.changes = GuardedWrites(self.commands, self.reads, self.history, self.archiver, self.related)
        self._metadata_fields = tuple(metadata_fields)
        self._indexes_ensured: set[bool] = set()

    def ensure_indexes(self, *, expiring: bool = False) -> None:
        """Create the indexes, once per process and collection. A failure is logged, as the specification says.

        Args:
            expiring: Whether sessions expire: one command more, the first time.
        """
        if expiring not in self._indexes_ensured:
            names = ["created_at", "updated_at", *(f"metadata.{name}" for name in self._metadata_fields)]
            keys = [[(name, ASCENDING)] for name in names] + session_listing.indexes(self._metadata_fields)
            ensured = ensure_indexes(self.commands.collection, [IndexModel(key) for key in keys])
            # By itself: it might be at odds with one of the application's own.
            if ensured and (not expiring or ensure_indexes(self.commands.collection, [EXPIRY_INDEX])):
                self._indexes_ensured.add(expiring)

    def create_messages_view(self) -> str:
        """Make the view of all messages, or bring it up to date; return its name.

        Raises:
            MongoDBSessionError: Something else has that name.
        """
        sessions, database = self.commands.collection, self.commands.collection.database
        name = f"{sessions.name}_messages"
        pipeline = messages_view.pipeline(sessions.name, self.history.collection.name)
        try:
            database.create_collection(name, viewOn=sessions.name, pipeline=pipeline, check_exists=False)
        except OperationFailure as error:
            if error.code != NAMESPACE_EXISTS:
                raise
            there = next(iter(database.list_collections(filter={"name": name})), {})
            if there.get("options", {}).get("viewOn") != sessions.name:
                raise MongoDBSessionError(
                    f"{database.name}.{name} is there already and is no view of {sessions.name}; it was left as it is. "
                    "Rename it, or keep the sessions in a collection of another name"
                ) from error
            database.command("collMod", name, viewOn=sessions.name, pipeline=pipeline)
        return name
