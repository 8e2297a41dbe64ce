"""The shapes of related documents, field by field: segments, search documents, blobs; and of what names a blob.

What ``shapes.py`` says of session documents holds for these as well.
"""

# No `from __future__ import annotations`: a `NotRequired` in a string is not seen when the class is made.

from datetime import datetime
from typing import Literal

from bson import ObjectId
from typing_extensions import NotRequired, TypedDict

from .shapes import Encoded, Feedback, StoredMessage

# --- related documents ----------------------------------------------------------------------------------------------


class RelatedDocument(TypedDict, total=False):
    """What all related documents have in common.

    Attributes:
        expires_at: When MongoDB removes it. Missing: its session has no ttl.
        orphaned_at: When a sweep first found no session to which it belongs. Missing: the last one found it.
    """

    expires_at: datetime
    orphaned_at: datetime


class SegmentId(TypedDict):
    """Which messages a segment holds.

    Attributes:
        session: The session's id.
        incarnation: The incarnation of it.
        agent: The agent key; ``"$feedbacks"`` for the session's feedbacks.
        first: The offset of the first of them: how many messages come before.
    """

    session: str
    incarnation: ObjectId
    agent: str
    first: int


class Segment(RelatedDocument):
    """Archived messages, or archived feedbacks.

    Attributes:
        _id: Which ones.
        count: How many.
        edits: The agent's ``edits`` when they were read; 0 for feedbacks.
        created_at: When they were archived.
        indexed: True: they were read from here to be searched. Missing: they were not.
        messages: The messages exactly as they were embedded.
    """

    _id: SegmentId
    count: int
    edits: int
    created_at: datetime
    indexed: NotRequired[bool]
    messages: list[StoredMessage] | list[Feedback]


class SearchDocumentId(TypedDict):
    """Which message a search document is about.

    Attributes:
        session: The session's id.
        incarnation: The incarnation of it.
        agent: The agent key.
        message: The ``message_id``.
    """

    session: str
    incarnation: ObjectId
    agent: str
    message: int


class SearchDocument(RelatedDocument):
    """The copy of a message's text by which it is found.

    Attributes:
        _id: Which message.
        session_id: The session's id.
        agent_id: The agent's id.
        role: The message's role.
        application_name: The session's. Missing: it has none.
        text: Its text blocks, joined by line breaks and cut; empty: it has no text any more.
        created_at: That of the message. Missing: it has none.
        edits: The agent's ``edits`` when the text was read. Of two documents of a message the one with more is right.
    """

    _id: SearchDocumentId
    session_id: str
    agent_id: str
    role: str
    application_name: NotRequired[str]
    text: str
    created_at: NotRequired[datetime]
    edits: int


# --- blobs ----------------------------------------------------------------------------------------------------------


class BlobOwner(TypedDict):
    """Whose a blob is.

    Attributes:
        session: The session's id.
        incarnation: The incarnation of it.
        agent: The agent key.
        message: The ``message_id`` it was meant for (a commit behind other writers' messages moves it); None: it is a
            part of a state.
    """

    session: str
    incarnation: ObjectId
    agent: str
    message: int | None


class BlobFile(RelatedDocument):
    """A blob, as a file of GridFS.

    Attributes:
        _id: Its id.
        length: Its length in bytes.
        chunkSize: The length of every chunk but the last, in bytes.
        uploadDate: When its upload began, by the server's clock.
        metadata: Whose it is.
    """

    _id: ObjectId
    length: int
    chunkSize: int
    uploadDate: datetime
    metadata: BlobOwner


class BlobChunk(RelatedDocument):
    """A part of a file of GridFS.

    Attributes:
        _id: Its id.
        files_id: Of which file.
        n: Its number in the file. The first is 0.
        data: Its bytes.
    """

    _id: ObjectId
    files_id: ObjectId
    n: int
    data: bytes


class BlobReference(TypedDict):
    """Which file a blob is.

    Attributes:
        file: Its id.
        length: Its length in bytes, of a text as UTF-8.
    """

    file: ObjectId
    length: int


class EncodedMarker(TypedDict):
    """What stands in an encoded value for a value that BSON lacks; ``_model/encoding.py`` has the table.

    Attributes:
        __encoded__: What it stands for.
        value: Its content, another for each kind.
    """

    __encoded__: Literal["int", "str", "tuple", "dict", "bson"]
    value: Encoded


class BlobMarker(TypedDict):
    """What stands in an encoded value for a blob.

    Attributes:
        __encoded__: ``"blob"`` for bytes, ``"text"`` for a text.
        value: Which file it is.
    """

    __encoded__: Literal["blob", "text"]
    value: BlobReference
