"""The errors this library raises.

MongoDBSessionError                 (a Strands ``SessionException``)
├── SessionNotFoundError            (also ``ValueError``)
├── AgentNotFoundError              (also ``ValueError``)
├── MessageNotFoundError            (also ``ValueError``)
├── InvalidIdentifierError          (also ``ValueError``)
├── UnstorableValueError            (also ``ValueError``)
├── SessionExistsError              (also PyMongo's ``DuplicateKeyError``)
├── SessionConflictError
├── SessionBusyError
├── BlobMissingError
├── HistoryIncompleteError
└── DamagedSessionError

Failures of the database stay PyMongo's own errors (``pymongo.errors.PyMongoError``). No message of an error holds
the content of a conversation or a credential.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bson import ObjectId
from pymongo.errors import DuplicateKeyError, PyMongoError
from strands.types.exceptions import SessionException

from ._model.limits import MAX_SHOWN_BITS, MAX_SHOWN_CHARACTERS

# What the server does not name itself, because it is said of a single write.
_CODE_NAMES = {121: "DocumentValidationFailure", 11000: "DuplicateKey"}


def described(error: BaseException) -> str:
    """Return what a log line, a note or another error may say of an error: nothing that quotes a conversation.

    A server's own words do: a validator quotes the value it refuses, a unique index the key. So of an error of the
    database there is its type, its code and the name of the code: ``WriteError code=121 (DocumentValidationFailure)``.
    Errors of this library hold no content; of these there is their text. Of all others there is their type.
    """
    kind = type(error).__name__
    if isinstance(error, MongoDBSessionError):
        return f"{kind}: {error}"
    if not isinstance(error, PyMongoError):
        return kind
    details = getattr(error, "details", None)
    said: Mapping[str, Any] = details if isinstance(details, Mapping) else {}
    # Of several writes at once there is no code but that of each.
    writes = said.get("writeErrors") or said.get("writeConcernErrors")
    if isinstance(writes, list) and writes and isinstance(writes[0], Mapping):
        said = writes[0]
    code = said.get("code") or getattr(error, "code", None)
    if not isinstance(code, int):
        return kind
    name = said.get("codeName") or _CODE_NAMES.get(code)
    return f"{kind} code={code} ({name})" if name else f"{kind} code={code}"


def shown(value: object) -> str:
    """Return a value that was refused as an error shows it: cut where it is long."""
    if isinstance(value, str):
        text = str.__str__(value)
        return repr(text) if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]!r}…"
    if isinstance(value, int) and value.bit_length() > MAX_SHOWN_BITS:
        return f"(an int of {value.bit_length()} bits)"  # Python refuses to print a very long one.
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}…"


class MongoDBSessionError(SessionException):
    """Base of every error of this library. Catch it to catch them all.

    Attributes:
        session_id: The session that the error is about; None where it is about none, or where that is not known.
        agent_id: The agent, likewise.
        message_id: The message, likewise.
    """

    def __init__(
        self, *args: object, session_id: str | None = None, agent_id: str | None = None, message_id: int | None = None
    ) -> None:
        super().__init__(*args)
        self.session_id = session_id
        self.agent_id = agent_id
        self.message_id = message_id


class SessionNotFoundError(MongoDBSessionError, ValueError):
    """The session does not exist, or was deleted since it was opened.

    A manager that raises it will not bring the session back: open a new manager to begin a new session.
    """


class AgentNotFoundError(MongoDBSessionError, ValueError):
    """The session has no such agent, or the manager has not been given that agent yet.

    ``manager.list_agents()`` tells which there are. An agent is given to a manager when it is built with
    ``session_manager=manager``.
    """


class MessageNotFoundError(MongoDBSessionError, ValueError):
    """The agent has no message with this ``message_id``.

    ``repository.list_messages(session_id, agent_id)`` tells which there are.
    """


class InvalidIdentifierError(MongoDBSessionError, ValueError):
    """An id or a metadata key that cannot be used. Nothing was sent to the database.

    The text says which rule it breaks. Choose another one, or encode it.
    """


class UnstorableValueError(MongoDBSessionError, ValueError):
    """A value that MongoDB cannot hold, named by its path. Nothing was written and no ``message_id`` was taken.

    Take it out, or turn it into what can be stored: None, bool, int, float, str, bytes, list, tuple or dict.
    """


class SessionExistsError(MongoDBSessionError, DuplicateKeyError):
    """``create_session`` was given the id of a session that exists. It was left as it is.

    Read that one with ``read_session``, or choose another id.
    """

    def __init__(self, message: str, *, session_id: str | None = None) -> None:
        # 11000 is the server's code for a duplicate key, for callers that look at `code`.
        DuplicateKeyError.__init__(self, message, 11000)
        self.session_id = session_id
        self.agent_id = self.message_id = None


class SessionConflictError(MongoDBSessionError):
    """Somebody else wrote to this agent's conversation first.

    From a manager with ``on_conflict="raise"``: nothing was lost. ``manager.reload(agent)`` goes on from what is
    stored, ``manager.flush(on_conflict="rebase")`` appends behind it. From ``create_message``: the ``message_id`` is
    taken, or lies below one that is; use a higher one.
    """


class SessionBusyError(MongoDBSessionError):
    """Another process holds the lease of this session, or the lease of this manager has run out.

    Try again after ``retry_after`` seconds, or take the lease with ``manager.lease(seconds, wait=…)``, which waits.

    Attributes:
        retry_after: Seconds until the lease that stands in the way ends, where known.
    """

    def __init__(self, message: str, retry_after: float | None = None, *, session_id: str | None = None) -> None:
        super().__init__(message, session_id=session_id)
        self.retry_after = retry_after


class BlobMissingError(MongoDBSessionError):
    """A large binary that a message or a state names is not in the store any more, or not whole.

    It was deleted since the message was read; then the message itself is gone, or redacted: read it again. Or
    something other than this library has removed it: restore the collections of blobs from the same backup.

    Attributes:
        file_id: The file in GridFS.
    """

    def __init__(self, message: str, file_id: ObjectId, *, session_id: str | None = None) -> None:
        super().__init__(message, session_id=session_id)
        self.file_id = file_id


class HistoryIncompleteError(MongoDBSessionError):
    """Archived messages are missing, though their session is there: no deletion of the session has taken them.

    Something other than this library has removed them from ``<collection>_history``, or the session document was
    restored without its history. Nothing is read in their place; restore the segments from the same backup.

    Attributes:
        session_id: The session.
        agent_id: The agent whose messages they are; None for archived feedbacks.
        first: How many messages come before the first one that was to be read.
        last: How many come before the last one.
        missing: How many of these are not there.
        incarnation: Which incarnation of the session they belong to.
    """

    def __init__(
        self,
        session_id: str,
        agent_id: str | None,
        *,
        first: int,
        last: int,
        missing: int,
        incarnation: ObjectId | None = None,
    ) -> None:
        whose = "archived feedbacks" if agent_id is None else f"archived messages of agent_id={agent_id!r}"
        super().__init__(
            f"session_id={session_id!r}: {missing} of the {whose} from offset {first} to {last} are missing",
            session_id=session_id,
            agent_id=agent_id,
        )
        self.first = first
        self.last = last
        self.missing = missing
        self.incarnation = incarnation


class DamagedSessionError(MongoDBSessionError):
    """A session document holds something that no version of this library has written, and that cannot be guessed.

    Another program has changed it. Nothing was written; correct the field, or restore the session.

    Attributes:
        session_id: The session.
        agent_id: The agent in whose record it stands.
        field: The field's path in the session document, such as ``"agents.support.message_count"``.
    """

    def __init__(self, session_id: str, agent_id: str, field: str, what: str) -> None:
        super().__init__(f"session_id={session_id!r}: {field} {what}", session_id=session_id, agent_id=agent_id)
        self.field = field
