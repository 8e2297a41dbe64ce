"""A writer: request after request, each with a manager of its own, as a web service does it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bson.codec_options import DEFAULT_CODEC_OPTIONS
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, BulkWriteError, OperationFailure, PyMongoError
from strands.types.exceptions import EventLoopException
from strands.types.session import SessionMessage

from mongodb_session_manager import MongoDBSessionManager
from mongodb_session_manager.errors import (
    BlobMissingError,
    InvalidIdentifierError,
    MongoDBSessionError,
    SessionBusyError,
    SessionConflictError,
    SessionNotFoundError,
    UnstorableValueError,
)
from mongodb_session_manager.mongodb_session_repository import MongoDBSessionRepository, RepositoryOfManagers
from soak import allowed, plan
from soak.journal import NUMBERS_PER_PROCESS, Journal, texts, token, tokens_in
from soak.visit import Visit
from soak.world import COLLECTION, WRITERS

if TYPE_CHECKING:
    from collections.abc import Callable

# What a server answers while it shuts down, steps down, comes back, is asked too late; and what the failpoints answer.
_TRANSIENT = frozenset(
    (1, 6, 7, 43, 50, 64, 89, 91, 112, 133, 134, 175, 189, 225, 237, 262, 276, 9001, 10107, 11600, 11602, 13435, 13436)
)
_TIMES_TO_REDACT = 4


def write(specification: dict[str, Any]) -> None:
    """Be a writer until the time is over."""
    folder = Path(specification["folder"])
    logging.basicConfig(filename=folder / "library.log", level=logging.WARNING)
    Writer(specification).run()


class Writer:
    """One writer.

    Args:
        specification: `uri`, `database`, `folder`, `seed`, `began`, `until`, `writer`, `generation`.
    """

    def __init__(self, specification: dict[str, Any]) -> None:
        self.number: int = specification["writer"]
        self.generation: int = specification["generation"]
        self._database: str = specification["database"]
        self._began: float = specification["began"]
        self._until: float = specification["until"]
        self._stop = Path(specification["folder"]) / "stop"
        self.rng = random.Random(f"{specification['seed']}/{self.number}/{self.generation}")
        self.journal = Journal(Path(specification["folder"]), self.number, self.generation)
        # Some give up on a node that does not answer, and their command is run all the same when it goes on.
        gives_up = "&socketTimeoutMS=1500" if self.rng.random() < 0.4 else ""
        self._client: MongoClient[Any] = MongoClient(specification["uri"] + gives_up, appname=WRITERS)
        self._numbers = itertools.count(1)
        self._repositories: dict[float | None, MongoDBSessionRepository] = {}
        # What may be redacted by its id: own messages, by session and agent.
        self.mine: dict[tuple[str, str], set[str]] = {}
        self.own_agent = f"writer-{self.number:02d}"

    def run(self) -> None:
        """Make requests until the time is over."""
        try:
            while time.monotonic() < self._until and not self._stop.exists():
                self.request(plan.choose(self.rng, time.monotonic() - self._began))
                threading.Event().wait(self.rng.uniform(0, 0.05))
        finally:
            self.close()
        self.journal.write("end")

    def close(self) -> None:
        """Close the client; managers that were never closed can send no more."""
        self._client.close()

    def token(self, part: str) -> str:
        """A new token."""
        return token(self.number, self.generation, next(self._numbers), part)

    def number_of(self) -> int:
        """A number that only grows, over all processes of this writer."""
        return self.generation * NUMBERS_PER_PROCESS + next(self._numbers)

    def manager(self, session: plan.Session) -> MongoDBSessionManager:
        """A manager as a new request makes it."""
        options = plan.manager_options(session, self.rng)
        return MongoDBSessionManager(session.id, None, self._database, COLLECTION, self._client, **options)

    def repository(self, session: plan.Session) -> MongoDBSessionRepository:
        """A repository for this session: its ttl must be the session's."""
        if session.ttl_hours not in self._repositories:
            self._repositories[session.ttl_hours] = RepositoryOfManagers(
                None,
                self._database,
                COLLECTION,
                self._client,
                ttl_hours=session.ttl_hours,
            )
        return self._repositories[session.ttl_hours]

    def attempt(self, kind: str, session: plan.Session, act: Callable[[], object]) -> Exception | None:
        """Do something; return the error with which it ended. One that is never to be is a finding."""
        error: Exception | None = None
        try:
            act()
            outcome = "acknowledged"
        except Exception as raised:
            error = _root(raised)
            outcome = "finding" if self._is_named(session, error) else _outcome(error, session)
            if outcome == "finding":
                where = _frames(error)
                self.finding(f"raised {type(error).__name__}: {str(error)[:300]}\n{where}", f"{kind} in {session.id}")
        code = f" {error.code}" if isinstance(error, OperationFailure) else ""
        self.journal.write("did", kind=kind, outcome=outcome, error=error and f"{type(error).__name__}{code}")
        return error

    def _is_named(self, session: plan.Session, error: Exception) -> bool:
        """Whether the blob that is missing is named by the session all the same: the session goes before its blobs."""
        if not isinstance(error, BlobMissingError):
            return False
        raw = self._client[self._database].with_options(
            codec_options=DEFAULT_CODEC_OPTIONS.with_options(document_class=RawBSONDocument)
        )
        try:
            found = raw[COLLECTION].find_one({"_id": session.id})
        except PyMongoError:
            return False
        return found is not None and error.file_id.binary in found.raw

    def finding(self, what: str, when: str = "") -> None:
        """Something that is not to be; told once for all times that it was met."""
        self.journal.write("finding", what=what, when=when)

    def request(self, session: plan.Session) -> None:
        """Make one request."""
        chance = self.rng.random()
        if session.kind == "mortal" and chance < 0.08:
            self._delete(session)
        elif session.lasts and chance < 0.12:
            self._redact_by_id(session)
        elif chance < 0.2:
            self._read(session)
        else:
            Visit(self, session).run()

    def _delete(self, session: plan.Session) -> None:
        began = time.monotonic()
        if self.attempt("delete", session, lambda: self.repository(session).delete_session(session.id)) is None:
            self.journal.write("deleted", session=session.id, began=began)

    def _redact_by_id(self, session: plan.Session) -> None:
        """Redact an own message by its id: where it lies by now, is for the repository to find."""
        agent_id = self.rng.choice((plan.SHARED, self.own_agent))
        mine = self.mine.get((session.id, agent_id))
        if not mine:
            return
        repository, found = self.repository(session), []

        def look() -> None:
            count = self.manager(session).get_message_count(agent_id)
            offset = self.rng.randrange(max(1, count - 20))
            found.extend(repository.list_messages(session.id, agent_id, limit=40, offset=offset))

        if self.attempt("list messages", session, look) is not None:
            return
        candidates = [(one, name) for one in found for name in tokens_in(texts(one.message)) if name in mine]
        if not candidates:
            return
        message, redacted = self.rng.choice(candidates)
        mine.discard(redacted)
        replacement = redacted[:-1] + "x"
        self.journal.write("redact", token=redacted, by=replacement)
        role = message.message["role"]
        new = SessionMessage({"role": role, "content": [{"text": replacement}]}, message.message_id)
        # Whoever is told that a redaction was interrupted does it again.
        for _ in range(_TIMES_TO_REDACT):
            redact = lambda: repository.update_message(session.id, agent_id, new)  # noqa: E731
            error = self.attempt("redact by id", session, redact)
            if error is None:
                self.journal.write("redacted", token=redacted)
                self.look_for(session, redacted)
                return
            self.pause()

    def look_for(self, session: plan.Session, redacted: str) -> None:
        """What was redacted is not found any more."""

        def search() -> None:
            try:
                hits = self.repository(session).search_messages(f'"{redacted}"', session_id=session.id)
            except MongoDBSessionError:
                return  # Nothing was ever indexed.
            if hits:
                where = f"{session.id}, {hits[0].agent_id} {hits[0].message_id}"
                self.finding("redacted, and found by the search right after that", f"{redacted} in {where}")

        self.attempt("search", session, search)

    def _read(self, session: plan.Session) -> None:
        repository = self.repository(session)

        def summary() -> None:
            repository.get_metrics_summary(session.id)

        def sessions() -> None:
            page = repository.list_sessions(application_name="soak", limit=self.rng.randint(1, 20))
            if page.cursor:
                repository.list_sessions(application_name="soak", limit=20, cursor=page.cursor)

        def feedbacks() -> None:
            repository.get_feedbacks(session.id)

        def index() -> None:
            with contextlib.suppress(SessionNotFoundError):  # It has not begun yet.
                repository.index_messages(session.id)

        kinds: list[tuple[str, Callable[[], object]]] = [
            ("summary", summary),
            ("list sessions", sessions),
            ("feedbacks", feedbacks),
        ]
        # As an operator does beside those that write: nothing that is new is swept.
        kinds += [("sweep", repository.sweep), ("index", index)]
        kind, act = self.rng.choices(kinds, (4, 4, 4, 1, 1))[0]
        self.attempt(kind, session, act)

    def pause(self) -> None:
        """Give others a moment before something is tried again."""
        threading.Event().wait(self.rng.uniform(0.05, 0.5))


def _root(error: Exception) -> Exception:
    """The error that Strands has wrapped."""
    while isinstance(error, EventLoopException):
        error = error.original_exception
    return error


def _frames(error: Exception) -> str:
    """Where an error came from: the last places in the library."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if "mongodb_session_manager" in one.filename]
    return "\n".join(f"    {Path(one.filename).name}:{one.lineno} {one.name}: {one.line}" for one in frames[-4:])


def _outcome(error: Exception, session: plan.Session) -> str:
    """What an error means: `"unknown"` (it may have been done), `"refused"`, or `"finding"` (it is never to be)."""
    if type(error) is MongoDBSessionError and isinstance(error.__cause__, PyMongoError):
        return _outcome(error.__cause__, session)  # A sweep that could not do one session, and why.
    if isinstance(error, AutoReconnect):
        return "unknown"
    if isinstance(error, OperationFailure):
        return "unknown" if _codes(error) <= _TRANSIENT or allowed.is_the_drivers(error) else "finding"
    if isinstance(error, PyMongoError):
        return "unknown" if error.timeout else "finding"
    if isinstance(error, SessionBusyError):
        return "refused" if session.kind == "leased" else "finding"
    if isinstance(error, SessionConflictError):
        # With `on_conflict="raise"`; a writer that lost every race says so, too.
        return "finding" if "other writers came first" in str(error) else "refused"
    never = InvalidIdentifierError, UnstorableValueError
    if isinstance(error, MongoDBSessionError) and not isinstance(error, never) and not session.lasts:
        return "refused"  # It was deleted or has expired meanwhile; below it, anything may be missing.
    return "finding"


def _codes(error: OperationFailure) -> set[int | None]:
    """The codes with which a server answered: of a bulk write each of its own."""
    if not isinstance(error, BulkWriteError):
        return {error.code}
    details = error.details
    return {one.get("code") for name in ("writeErrors", "writeConcernErrors") for one in details.get(name, ())}
