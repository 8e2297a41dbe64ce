"""All that is stored, read with a plain client: raw documents, nothing decoded by the library under test."""

from dataclasses import dataclass, field
from typing import Any

import bson
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo.database import Database

from soak.journal import texts, tokens_in

FEEDBACKS = "$feedbacks"


@dataclass(frozen=True)
class Place:
    """Where a token stands: in the message at this position of an agent's conversation, or the feedback."""

    session: str
    life: str
    agent: str
    position: int


@dataclass
class Conversation:
    """An agent's messages, archived and embedded, or a session's feedbacks.

    Attributes:
        session: the session document.
        agent: the agent's key.
        record: the agent's record; for feedbacks the session document.
        segments: documents of the history that count, in their order.
        beyond: those that do not count, or not yet.
        messages: all messages, in their order.
        archived: how many of them should be in segments.
    """

    session: dict[str, Any]
    agent: str
    record: dict[str, Any]
    segments: list[dict[str, Any]] = field(default_factory=list)
    beyond: list[dict[str, Any]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    archived: int = 0

    @property
    def name(self) -> str:
        """What findings call it."""
        return f"{self.session['_id']}, {self.agent}"


class Stored:
    """Everything in a database, read once.

    Attributes:
        sessions: the session documents by id.
        history: the segments.
        search: the search documents.
        files: the files of blobs by id.
        chunks: for each file its chunks' bytes, in their order.
        conversations: of all agents of all sessions.
        feedbacks: of all sessions.
        places: where each token stands.
        anywhere: in which collections each token is found, whatever it is a part of.
    """

    def __init__(self, database: Database[Any], collection: str) -> None:
        raw = database.with_options(codec_options=database.codec_options.with_options(document_class=RawBSONDocument))
        self.anywhere: dict[str, set[str]] = {}
        documents: dict[str, list[dict[str, Any]]] = {}
        for name in database.list_collection_names():
            if name.startswith("system."):
                continue
            read = documents[name] = []
            for document in raw[name].find({}):
                for token in tokens_in(document.raw):
                    self.anywhere.setdefault(token, set()).add(name)
                read.append(bson.decode(document.raw))
        self.sessions = {document["_id"]: document for document in documents.get(collection, [])}
        self.history = documents.get(f"{collection}_history", [])
        self.search = documents.get(f"{collection}_search", [])
        self.files = {file["_id"]: file for file in documents.get(f"{collection}_blobs.files", [])}
        self.chunks: dict[ObjectId, list[bytes]] = {}
        self.chunk_documents = documents.get(f"{collection}_blobs.chunks", [])
        for chunk in sorted(self.chunk_documents, key=lambda chunk: chunk["n"]):
            self.chunks.setdefault(chunk["files_id"], []).append(bytes(chunk["data"]))
        self.conversations: list[Conversation] = []
        self.feedbacks: list[Conversation] = []
        self.places: dict[str, list[Place]] = {}
        for session in self.sessions.values():
            for agent, record in session.get("agents", {}).items():
                self.conversations.append(self._conversation(session, agent, record, "messages", "archived_count"))
            self.feedbacks.append(self._conversation(session, FEEDBACKS, session, "feedbacks", "feedbacks_archived"))
        for conversation in self.conversations + self.feedbacks:
            self._find_tokens(conversation)

    def _conversation(
        self, session: dict[str, Any], agent: str, record: dict[str, Any], embedded: str, archived: str
    ) -> Conversation:
        found = Conversation(session, agent, record, archived=int(record.get(archived, 0)))
        owner = (session["_id"], session["incarnation"], agent)
        for segment in self.history:
            if (segment["_id"]["session"], segment["_id"]["incarnation"], segment["_id"]["agent"]) == owner:
                counts = segment["_id"]["first"] < found.archived
                (found.segments if counts else found.beyond).append(segment)
        found.segments.sort(key=lambda segment: segment["_id"]["first"])
        found.messages = [message for segment in found.segments for message in segment["messages"]]
        found.messages += record.get(embedded, [])
        return found

    def _find_tokens(self, conversation: Conversation) -> None:
        session = conversation.session
        for position, message in enumerate(conversation.messages):
            content = message if conversation.agent == FEEDBACKS else {"content": message["content"]}
            text = str(content.get("comment", "")).encode() if conversation.agent == FEEDBACKS else texts(content)
            for token in dict.fromkeys(tokens_in(text)):
                place = Place(session["_id"], str(session["incarnation"]), conversation.agent, position)
                self.places.setdefault(token, []).append(place)

    def content(self, file_id: ObjectId) -> bytes:
        """The bytes of a blob."""
        return b"".join(self.chunks.get(file_id, []))


def blobs_in(value: Any) -> list[tuple[ObjectId, int]]:
    """The files that an encoded value names, with their lengths."""
    if isinstance(value, dict):
        if value.get("__encoded__") in ("blob", "text"):
            return [(value["value"]["file"], int(value["value"]["length"]))]
        return [found for part in value.values() for found in blobs_in(part)]
    if isinstance(value, list):
        return [found for part in value for found in blobs_in(part)]
    return []
