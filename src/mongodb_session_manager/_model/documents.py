"""The stored shape: Strands' types to documents and back. Pure; nothing here knows a client or a clock.

One document per session, its agents and their messages nested in it; `docs/data-model.md` shows it whole. A reader
accepts more than a writer writes: the nested form ``message: {role, content}``, a ``content`` that is a plain string,
documents without counters, and fields it does not know.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import chain
from typing import Any

from bson import ObjectId
from strands.types.content import Message
from strands.types.session import Session, SessionAgent, SessionMessage

from ..errors import DamagedSessionError, UnstorableValueError, shown
from .archive_policy import Embedded
from .encoding import PendingBlobs, decode, encode, size_in_bson, to_bson
from .foreign import mappings, name_of
from .keys import check_tracking_id, decode_key, exact_text
from .limits import INT64_MAX, MAX_SEARCHED_BYTES, MAX_VALUE_BYTES

Document = dict[str, Any]

SCHEMA_VERSION = 1


STATES = ("state", "conversation_manager_state", "_internal_state")
"""Fields of ``agent_data`` that may be as large as an application makes them."""

# Fields of a Strands message that have a place of their own; whatever else it holds is kept in `extra`.
_MESSAGE_FIELDS = frozenset(("role", "content", "tracking_id", "metadata"))

_TOOL_BLOCKS = frozenset(("toolUse", "toolResult"))

# A window is looked at with it: no line of Python runs per message.
_CONTENT = operator.itemgetter("content")


@dataclass
class MongoDBSessionAgent(SessionAgent):
    """A Strands ``SessionAgent`` that also says which model and system prompt the agent was built with.

    Attributes:
        model: The model's id as its provider names it, or None if it names none.
        system_prompt: The system prompt as text, or None.
    """

    model: str | None = None
    system_prompt: str | None = None


@dataclass
class StoredAgent:
    """What the store holds of one agent when a session is opened.

    Attributes:
        agent_data: The stored ``agent_data``, decoded; None if the session has no such agent.
        message_count: The next ``message_id``.
        changes: How often its record was changed.
        window_offset: The offset of ``window[0]``: how many messages of the conversation come before it.
        window: The stored messages from there on, oldest first, decoded.
        embedded: What of it lies in the session document.
    """

    agent_data: Document | None
    message_count: int = 0
    changes: int = 0
    window_offset: int = 0
    window: list[Document] = field(default_factory=list)
    embedded: Embedded = field(default_factory=Embedded)


# --- sessions -------------------------------------------------------------------------------------------------------


def new_session(
    session_id: str, session_type: str, application_name: str | None, created_at: datetime, updated_at: datetime
) -> Document:
    """Return the document of a session without agents. Its ``incarnation`` is new."""
    document: Document = {
        "_id": session_id,
        "session_id": session_id,
        "session_type": session_type,
        "schema_version": SCHEMA_VERSION,
        "incarnation": ObjectId(),
        "created_at": created_at,
        "updated_at": updated_at,
        "agent_ids": [],
        "metadata": {},
        "feedbacks": [],
        "agents": {},
    }
    if application_name is not None:
        document["application_name"] = application_name
    return document


def to_session(document: Mapping[str, Any]) -> Session:
    """Return the header of a session document as Strands' ``Session``."""
    return Session(
        session_id=document.get("session_id", document["_id"]),
        session_type=document.get("session_type", "default"),
        created_at=to_iso(document.get("created_at")),
        updated_at=to_iso(document.get("updated_at")),
    )


# --- agents ---------------------------------------------------------------------------------------------------------


def agent_data(agent: SessionAgent, blobs: PendingBlobs | None = None) -> Document:
    """Return what is stored of an agent, encoded. ``model`` and ``system_prompt`` only if the agent names them.

    Args:
        agent: The agent.
        blobs: Takes what is too large for the session document.
    """
    agent_id = exact_text(agent.agent_id)
    where = f"agent_id={agent_id!r} "
    data: Document = {"agent_id": agent_id}
    for name in STATES:
        data[name] = encode(getattr(agent, name), where + name, blobs)
    for name in ("model", "system_prompt"):
        value = getattr(agent, name, None)
        if value is not None:
            data[name] = encode(value, where + name)
    for name, value in data.items():
        check_size({name: value}, where + name)
    data["created_at"] = agent.created_at
    data["updated_at"] = agent.updated_at
    return data


def new_agent(data: Document, now: datetime) -> Document:
    """Return the record of an agent that has no messages yet."""
    return {
        "agent_data": data,
        "created_at": now,
        "updated_at": now,
        "message_count": 0,
        "archived_count": 0,
        "edits": 0,
        "changes": 0,
        "usage": {},
        "messages": [],
    }


def states(data: Mapping[str, Any]) -> list[Document]:
    """Return ``state``, ``conversation_manager_state`` and ``_internal_state`` of a decoded ``agent_data``."""
    return [value if type(value := data.get(name)) is dict else {} for name in STATES]


def to_session_agent(data: Mapping[str, Any], key: str) -> MongoDBSessionAgent:
    """Return a decoded ``agent_data`` as a ``SessionAgent``; fields that are missing take Strands' defaults."""
    state, manager_state, internal_state = states(data)
    return MongoDBSessionAgent(
        agent_id=data.get("agent_id", decode_key(key)),
        state=state,
        conversation_manager_state=manager_state,
        _internal_state=internal_state,
        created_at=to_iso(data.get("created_at")),
        updated_at=to_iso(data.get("updated_at")),
        model=data.get("model"),
        system_prompt=data.get("system_prompt"),
    )


def check_message_count(session_id: str, key: str, stored: Any, messages: int = 0) -> int:
    """Return an agent's stored ``message_count``, which decides the id of the next message.

    A shell writes whole numbers as floating point, so ``3.0`` is 3. Older documents have no counter, which is for
    whoever reads them to see; null was never written, and where messages are archived it could not be made good.

    Args:
        session_id: The session.
        key: The agent's key.
        stored: What is stored.
        messages: How many messages the agent has: each has an id below the counter.

    Raises:
        DamagedSessionError: It is no whole number from 0 to 2**63 - 1, or less than there are messages.
    """
    is_number = isinstance(stored, (int, float)) and not isinstance(stored, bool)
    if is_number and 0 <= stored <= INT64_MAX and stored == int(stored):
        if stored >= messages:
            return int(stored)
        # The next message would get an id that another one has.
        what = f"is {shown(stored)}, and there are {messages} messages"
    else:
        # Of what is no number only the type: another program may have put anything there.
        found = shown(stored) if is_number else "null" if stored is None else f"a {type(stored).__name__}"
        what = f"is {found}, which is no number of messages"
    raise DamagedSessionError(session_id, name_of(key), f"agents.{key}.message_count", what)


# --- messages -------------------------------------------------------------------------------------------------------


def measured_body(message: Mapping[str, Any], where: str, blobs: PendingBlobs | None = None) -> tuple[Document, int]:
    """Return the part of a stored message that comes from Strands' message, an encoded copy, and its size in bytes.

    A ``content`` that is a string becomes one text block.

    Args:
        message: Strands' message.
        where: What it is, for the error.
        blobs: Takes what is too large for the session document.

    Raises:
        UnstorableValueError: The message has no role or content, or holds a value that cannot be stored.
        TypeError: Its ``tracking_id`` is no text.
    """
    if not isinstance(message, (dict, Mapping)) or "role" not in message or "content" not in message:
        raise UnstorableValueError(f"{where} is no message: it needs 'role' and 'content'")
    check_tracking_id(message)
    extra = {name: value for name, value in message.items() if name not in _MESSAGE_FIELDS}
    plain = {name: value for name, value in message.items() if name in _MESSAGE_FIELDS}
    plain["content"] = text_blocks(plain["content"])
    body: Document = encode(plain, where, blobs)
    if extra:
        body["extra"] = encode(extra, where, blobs)
    return body, check_size(body, where)


def text_blocks(content: Any) -> Any:
    """Return a message's content as blocks."""
    return [{"text": content}] if isinstance(content, str) else content


def message_text(message: Mapping[str, Any]) -> str:
    """Return the text of a message: its text blocks, joined."""
    return "".join(_texts(message.get("content")))


def _texts(content: Any) -> list[str]:
    texts = [block.get("text") for block in mappings(text_blocks(content))]
    return [text for text in texts if isinstance(text, str)]


def search_document(
    session_id: str, incarnation: ObjectId, key: str, message: Mapping[str, Any], edits: int
) -> Document:
    """Return what is stored of a message (encoded) to be searched; its ``text`` is empty where it has none.

    Args:
        session_id: The session.
        incarnation: Which incarnation of it.
        key: The agent's key.
        message: The stored message with its ``message_id``, or what is left of it when all but texts is left out.
        edits: The agent's ``edits`` when it was read. Of two documents of a message the one with more is right.
    """
    # What lies in GridFS stays there.
    plain = to_message(decode(dict(message)))
    text = "\n".join(_texts(plain["content"]))
    document: Document = {
        "_id": {"session": session_id, "incarnation": incarnation, "agent": key, "message": message["message_id"]},
        "session_id": session_id,
        "agent_id": decode_key(key),
        "role": plain["role"],
        # Lone surrogates cannot be stored, and nobody searches for them.
        "text": text.encode("utf-8", "replace")[:MAX_SEARCHED_BYTES].decode("utf-8", "ignore"),
        "edits": edits,
    }
    if "created_at" in message:
        document["created_at"] = message["created_at"]
    return document


def has_tool_result(message: Mapping[str, Any]) -> bool:
    """Return whether a message carries the result of a tool."""
    return any("toolResult" in block for block in mappings(message.get("content")))


def have_tool_blocks(messages: Iterable[Message]) -> bool:
    """Return whether any of these live messages asks for a tool or carries the result of one."""
    blocks = chain.from_iterable(map(_CONTENT, messages))
    return not _TOOL_BLOCKS.isdisjoint(chain.from_iterable(blocks))


def message_document(message_id: int, body: Mapping[str, Any], created_at: datetime, updated_at: datetime) -> Document:
    """Return a stored message: what it is first, then what is known about it."""
    return {
        "message_id": message_id,
        "role": body["role"],
        "content": body["content"],
        "created_at": created_at,
        "updated_at": updated_at,
        **body,
    }


def session_message_body(message: SessionMessage, blobs: PendingBlobs | None = None) -> Document:
    """Return what is stored of Strands' ``SessionMessage``; ``blobs`` takes what is too large for its document.

    Where it is redacted, the redacted message *replaces* the original, so that the original is stored nowhere.
    """
    where = f"message_id={message.message_id} message"
    said: Mapping[str, Any] = message.message
    if message.redact_message is not None:
        kept = said if isinstance(said, Mapping) else {}
        said = {**{k: kept[k] for k in ("tracking_id", "metadata") if k in kept}, **message.redact_message}
    body, _ = measured_body(said, where, blobs)
    if message.redact_message is not None:
        body["redact_message"] = encode(message.redact_message, where, blobs)
    return body


def to_message(stored: Mapping[str, Any]) -> Message:
    """Return a stored message (decoded) as the live message of an agent."""
    source = stored
    if "role" not in stored:
        source = stored.get("message", stored)
        if isinstance(redacted := stored.get("redact_message"), dict):
            source = {**source, **redacted}  # Older documents keep the original beside it.
    content = source.get("content")
    message: Any = {"role": source.get("role", "user"), "content": [] if content is None else text_blocks(content)}
    for name in ("tracking_id", "metadata"):
        if name in source:
            message[name] = source[name]
    if "extra" in stored and isinstance(stored["extra"], dict):
        message.update(stored["extra"])
    return message  # type: ignore[no-any-return]


def to_messages(window: list[Document], offset: int) -> tuple[list[int], list[Message]]:
    """Return the ids of the stored messages (decoded) of a window, and the live messages of an agent that they are.

    Args:
        window: Stored messages. They are used up: one that has nothing else to tell becomes the live message itself.
        offset: How many messages of the conversation come before: the id of the first where it has none.
    """
    message_ids: list[int] = []
    messages: list[Message] = []
    for stored in window:
        message_ids.append(stored.pop("message_id", offset + len(messages)))
        stored.pop("turn_id", None)
        plain = stored.keys() <= _MESSAGE_FIELDS and "role" in stored and type(stored.get("content")) is list
        messages.append(stored if plain else to_message(stored))  # type: ignore[arg-type]
    return message_ids, messages


def to_session_message(stored: Mapping[str, Any]) -> SessionMessage:
    """Return a stored message (decoded) as Strands' ``SessionMessage``; metrics are left out, as the spec says."""
    return SessionMessage(
        message=to_message(stored),
        message_id=stored.get("message_id", 0),
        redact_message=stored.get("redact_message"),
        created_at=to_iso(stored.get("created_at")),
        updated_at=to_iso(stored.get("updated_at")),
    )


# --- values ---------------------------------------------------------------------------------------------------------


def check_size(value: Document | bytes, where: str) -> int:
    """Return the size of an encoded value, given as such or as BSON; refuse what no session document could hold.

    It is that of ``size_in_bson``.

    Raises:
        UnstorableValueError: It has more than ``MAX_VALUE_BYTES``.
    """
    if (size := len(value) if isinstance(value, bytes) else size_in_bson(value)) > MAX_VALUE_BYTES:
        path, largest = ("", size) if isinstance(value, bytes) else _largest(value)
        most = f"; most of it is {path}, {largest} bytes" if path and 2 * largest > size else ""
        raise UnstorableValueError(f"{where} has {size} bytes{most}; at most {MAX_VALUE_BYTES} can be stored")
    return size


def check_storable(document: Document, what: str, session_id: str | None = None) -> None:
    """Refuse what BSON cannot hold, before anything is sent. Dates, ObjectIds and the like are stored as such.

    Raises:
        UnstorableValueError: A value of the document is of such a kind, or too large; ``what`` is in the message.
    """
    for key, value in document.items():
        where = f"{what}[{shown(key)}]"
        try:
            content = to_bson({"value": value})
        except Exception as error:
            message = f"{where} cannot be stored: {type(error).__name__}"
            raise UnstorableValueError(message, session_id=session_id) from error
        check_size(content, where)


def _largest(value: Any) -> tuple[str, int]:
    """Return the path of the largest text or binary in an encoded value, and its size in bytes."""
    if isinstance(value, (str, bytes)):
        return "", len(value.encode("utf-8") if isinstance(value, str) else value)
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [(f"[{shown(key)}]{path}", size) for key, (path, size) in ((key, _largest(inner)) for key, inner in items)]
    return max(found, key=lambda one: one[1], default=("", 0))


def stored_time(moment: datetime) -> datetime:
    """Return a time as MongoDB keeps it: UTC, in whole milliseconds."""
    moment = moment.astimezone(timezone.utc)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def parse_time(text: Any, default: datetime) -> datetime:
    """Return an ISO time as MongoDB keeps it, or ``default`` if it is none. A time without a zone is UTC."""
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except (AttributeError, ValueError, TypeError):
        return default
    return stored_time(moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc))


def to_iso(moment: Any) -> str:
    """Return a stored time as ISO 8601 text; text stays as it is, and what is missing becomes the epoch."""
    if isinstance(moment, str):
        return moment
    return (moment if isinstance(moment, datetime) else datetime.fromtimestamp(0, timezone.utc)).isoformat()
