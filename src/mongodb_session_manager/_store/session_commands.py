"""The commands about one session document: find it, change it, and say why a change did not match.

Archiving, the search, what belongs to a session and the store itself stand on them; they know none of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any

from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import DocumentTooLarge, DuplicateKeyError, WriteError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import Primary, PrimaryPreferred
from pymongo.results import UpdateResult

from .._client.clients import check_client
from .._client.executor import executor_of
from .._model.documents import Document, check_message_count, stored_time
from .._model.encoding import CODEC_OPTIONS, PLAIN_CODEC_OPTIONS, from_bson
from .._statements import changes, sessions, sweeping
from .._statements.sessions import SessionRef, Standing, Update
from ..errors import SessionBusyError, SessionNotFoundError, UnstorableValueError
from .blobs import BlobStore
from .sending import DOCUMENT_TOO_LARGE, attempts, is_there, until_known


class SessionCommands:
    """Sends single commands about the session documents of one collection.

    Args:
        client: Borrowed; whoever made it closes it.
        database_name: Database.
        collection_name: Collection of the session documents.

    Attributes:
        client: The client.
        executor: Its threads.
        collection: The session documents, their integers as plain ``int``.
        raw: The same, as they are stored.
        writes: The same, for what is encoded already.
        settled: The same as ``raw``, and what is read there no failover takes back.
        blobs: The large parts of session documents; decodes what holds them.
        when_full: Makes room in a session document and returns its size, or None where there was nothing to move.

    Raises:
        TypeError: ``client`` is an ``AsyncMongoClient``, which is bound to one event loop; Strands uses many.
        ValueError: The write concern is ``w=0``: no write could be known to have happened.
    """

    def __init__(self, client: MongoClient[Any], database_name: str, collection_name: str) -> None:
        check_client(client)
        preference = client.read_preference
        self.client = client
        self.executor = executor_of(client)
        self.collection: Collection[Document] = client.get_database(database_name).get_collection(
            collection_name,
            codec_options=CODEC_OPTIONS,
            # Other preferences would resume old conversations.
            read_preference=preference if isinstance(preference, PrimaryPreferred) else Primary(),
        )
        self.raw = self.collection.with_options(
            codec_options=PLAIN_CODEC_OPTIONS.with_options(document_class=RawBSONDocument)
        )
        self.writes = self.collection.with_options(codec_options=PLAIN_CODEC_OPTIONS)
        # What decides that something is deleted must be true for ever: no failover may take back what is read here.
        self.settled = self.raw.with_options(read_preference=Primary(), read_concern=ReadConcern("majority"))
        self.blobs = BlobStore(self.collection.database, collection_name)
        self.when_full: Callable[[str], int | None] = lambda _: None

    def adopt(self, session_id: str, agent_keys: Sequence[str]) -> None:
        """Give an older document its incarnation and counters: one command."""
        self.collection.update_one({"_id": session_id}, changes.adopt(agent_keys))

    def is_over(self, session_id: str, incarnation: ObjectId) -> bool:
        """Return whether an incarnation of a session is over, for certain: before what belonged to it is deleted."""
        return not self.holds(session_id, sweeping.may_be_incarnation(incarnation))

    def holds(self, session_id: str, condition: Document) -> bool:
        """Return whether an expression is true of a session document, for certain.

        It asks by an update that changes nothing. A read might be answered by a server that lags behind, or that does
        not know yet that it is no longer the primary; a write is acknowledged by a majority.
        """
        return self.update(Update({"_id": session_id, "$expr": condition}, {"$set": {"_id": session_id}}))

    def find_one(self, query: Document, projection: Mapping[str, Any]) -> Document | None:
        """Return one document, decoded."""
        found = self.blobs.decoded(lambda: self.raw.find(query, projection, limit=-1), "a session")
        return found[0] if found else None

    def find_plain(self, query: Document, projection: Mapping[str, Any]) -> Document | None:
        """Return one document whose values are not encoded: metadata, feedback."""
        found = self.raw.find_one(query, projection)
        return None if found is None else from_bson(found.raw)

    def find_raw(self, query: Document, projection: Mapping[str, Any]) -> RawBSONDocument | None:
        """Return one document as it is stored, and will be after any failover."""
        return self.settled.find_one(query, projection)

    def insert_if_absent(self, document: Document) -> bool:
        """Insert a document unless there is one with its id; return whether this one was inserted."""
        update = Update({"_id": document["_id"]}, {"$setOnInsert": document})
        # In one driver session: once it was sent again, a replica set refuses the first one, should it arrive later,
        # when the session was deleted, perhaps. (A standalone server knows no such numbers.)
        with self.client.start_session(causal_consistency=False) as one_session:
            try:
                result = self._send(update, upsert=True, driver_session=one_session)
            except DuplicateKeyError as error:
                if not is_there(error):
                    raise
                # Two first requests at once: this upsert lost the race for the id. Now it matches.
                result = self._send(update, upsert=True, driver_session=one_session)
        return result.upserted_id is not None

    def update(self, update: Update) -> bool:
        """Send an update and return whether it matched."""
        return bool(self._send(update).matched_count)

    def _send(
        self, update: Update, *, upsert: bool = False, driver_session: ClientSession | None = None
    ) -> UpdateResult:
        """Send an update until its outcome is known; where the document has no room for it, make some.

        Raises:
            UnstorableValueError: Even without any message there is no room for it. Nothing of it was written.
        """
        options: Any = {"upsert": upsert, "array_filters": update.array_filters, "session": driver_session}
        send = partial(self.writes.update_one, update.filter, update.update, **options)
        session_id = update.filter["_id"]
        for _ in attempts(f"session_id={session_id!r}: no room could be made", session_id):
            try:
                return until_known(send)
            except (WriteError, DocumentTooLarge) as error:
                if isinstance(error, WriteError) and error.code not in DOCUMENT_TOO_LARGE:
                    raise
                if isinstance(error, DocumentTooLarge) or self.when_full(session_id) is None:
                    raise UnstorableValueError(
                        f"session_id={session_id!r} has no room for this: MongoDB holds 16 MB in a document",
                        session_id=session_id,
                    ) from error
        raise AssertionError  # `attempts` never ends without an error.

    def standing(
        self,
        session: SessionRef,
        needed: Mapping[str, Any] | None = None,
        agent_keys: Sequence[str] = (),
        *,
        whose_lease_it_is: bool = True,
    ) -> Standing:
        """Read how a session stands that this writer may write to; an older document gets what it lacks first.

        Args:
            session: Whose.
            needed: Projection of what is wanted besides ``sessions.STANDING``.
            agent_keys: Agents that must have their counters.
            whose_lease_it_is: Whether it matters who holds the session's lease.

        Raises:
            SessionNotFoundError: There is no such session.
            SessionBusyError: Another process holds its lease, or the writer's own has run out.
        """
        session_id = session.session_id
        wanted = sessions.unless_expired({**sessions.STANDING, **(needed or {})})
        for _ in attempts(f"session_id={session_id!r}: its counters could not be added", session_id):
            found = self.find_plain({"_id": session_id}, wanted)
            if found is None:
                raise SessionNotFoundError(f"session_id={session_id!r} does not exist", session_id=session_id)
            standing = Standing.of(found)
            if session.incarnation is not None and standing.incarnation != session.incarnation:
                raise SessionNotFoundError(
                    f"session_id={session_id!r} was deleted; another has begun under this id", session_id=session_id
                )
            if standing.expired:
                raise has_expired(session)
            if whose_lease_it_is:
                _check_lease(session, standing)
            if "message_count" in found:
                # A writer would wait for ever for a counter that is no number.
                (key,) = agent_keys
                check_message_count(session_id, key, found["message_count"], found["stored_count"])
            lacks_counters = found.get("exists") and "message_count" not in found
            if found.get("incarnation") is not None and not lacks_counters:
                return standing
            self.adopt(session_id, agent_keys)
        raise AssertionError  # `attempts` never ends without an error.


def _check_lease(session: SessionRef, standing: Standing) -> None:
    lease, left, session_id = standing.lease, standing.lease_seconds, session.session_id
    if session.lease_token is None:
        if left > 0:
            raise SessionBusyError(
                f"session_id={session_id!r} is leased by another process", left, session_id=session_id
            )
    elif lease is None or lease["token"] != session.lease_token or left <= 0:
        raise SessionBusyError(
            f"session_id={session_id!r}: the lease of this manager has run out", session_id=session_id
        )


def now() -> datetime:
    """Return the time as MongoDB keeps it."""
    return stored_time(datetime.now(timezone.utc))


def has_expired(session: SessionRef) -> SessionNotFoundError:
    """Return the error that says so."""
    return SessionNotFoundError(f"session_id={session.session_id!r} has expired", session_id=session.session_id)
