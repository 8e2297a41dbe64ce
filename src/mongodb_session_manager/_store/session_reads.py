"""What is read of a session: its conversation wherever it lies, metadata, feedbacks, totals; and lists of sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar, cast

from bson import ObjectId
from pymongo.change_stream import ChangeStream
from pymongo.read_preferences import Primary

from .._model.documents import Document, check_message_count
from .._model.encoding import from_bson
from .._model.foreign import count, mapping, mappings, name_of
from .._model.limits import INT32_MAX
from .._statements import changes, commits, reading, session_headers, sessions
from .._statements.expressions import count_of
from .._statements.feedback import FEEDBACKS
from .._statements.session_headers import ListedSession
from .._statements.session_listing import Listing, SessionPage, page
from .._statements.sessions import SessionRef
from ..errors import HistoryIncompleteError
from .history import History
from .sending import attempts
from .session_commands import SessionCommands

P = ParamSpec("P")
T = TypeVar("T")


def _read_again_if_gone(
    read: Callable[Concatenate[SessionReads, str, P], T],
) -> Callable[Concatenate[SessionReads, str, P], T]:
    """Let a method read once more where archived messages are missing because the session was just deleted.

    Then the second read finds no session. Only where the session is still there is the error raised.
    """

    @wraps(read)
    def read_again(self: SessionReads, session_id: str, /, *args: P.args, **kwargs: P.kwargs) -> T:
        for _ in attempts(f"session_id={session_id!r} could not be read", session_id):
            try:
                return read(self, session_id, *args, **kwargs)
            except HistoryIncompleteError as error:
                which = {"_id": session_id, "incarnation": error.incarnation}
                if self.commands.find_one(which, {"_id": 1}) is not None:
                    raise
        raise AssertionError  # `attempts` never ends without an error.

    return read_again


class MetadataAsRead(NamedTuple):
    """What the database answered.

    Attributes:
        incarnation: The incarnation of the session; None in older documents.
        content: BSON that holds ``metadata``. Bytes, so that nobody's change of a value reaches the cache.
        seconds_left: Until the session expires, by the server's clock; None if it does not.
    """

    incarnation: ObjectId | None
    content: bytes
    seconds_left: float | None = None


class MultiAgentAsRead(NamedTuple):
    """What is known of the stored state of a graph or swarm.

    Attributes:
        state: The state; None if it is not stored.
        changes: How often it was changed; None if it is not stored.
    """

    state: Any
    changes: int | None


@dataclass(eq=False)
class SessionReads:
    """Reads the sessions of one collection.

    Attributes:
        commands: About session documents.
        history: About segments.
    """

    commands: SessionCommands
    history: History

    def list_sessions(self, asked: Listing) -> SessionPage:
        """Return a page of headers: one command.

        A second one where the former page ended among sessions with the same time, and another where a title needs the
        beginning of a conversation that is archived.
        """
        found: list[ListedSession] = []
        for query in asked.filters:
            # One more than asked for tells whether there is a next page.
            if (missing := asked.limit + 1 - len(found)) > 0:
                cursor = self.commands.raw.find(
                    query, session_headers.PROJECTION, sort=asked.sort, limit=missing, allow_disk_use=True
                )
                found += cast(list[ListedSession], [from_bson(one.raw) for one in cursor])
        segments = [segment for one in found[: asked.limit] if (segment := session_headers.first_segment(one))]
        return page(asked, found, self.history.first_user_texts(segments))

    def read_agent_data(self, session_id: str, key: str) -> Document | None:
        """Return what is stored of an agent, decoded, or None if the session has no such agent."""
        projection = {"_id": 0, "agent_data": reading.agent_data_expression(key)}
        document = self.commands.find_one(sessions.not_expired(session_id), projection)
        return (document or {}).get("agent_data")

    def read_message(self, session_id: str, key: str, message_id: int) -> Document | None:
        """Return one stored message, decoded, or None."""
        projection = {
            "incarnation": 1,
            **commits.append_projection(key, message_id),
            **reading.message_projection(key, message_id),
        }
        document = self.commands.find_one(sessions.not_expired(session_id), projection)
        if document is None or not document["exists"]:
            return None
        if document["messages"]:
            message: Document = document["messages"][0]
            return message
        return self.archived_message(session_id, key, message_id, document)

    @_read_again_if_gone
    def list_messages(self, session_id: str, key: str, offset: int, limit: int | None) -> list[Document]:
        """Return a page of an agent's stored messages, decoded, oldest first."""
        if limit == 0:
            return []
        offset = min(offset, INT32_MAX)
        limit = None if limit is None else min(limit, INT32_MAX - offset)
        projection = reading.page_projection(key, offset, limit)
        document = self.commands.find_one(sessions.not_expired(session_id), projection)
        if document is None:
            return []
        messages: list[Document] = document["messages"]
        archived = int(document["archived_count"])
        stop = archived if limit is None else min(archived, offset + limit)
        if offset < stop:
            messages[:0] = self.history.read(session_id, document["incarnation"], key, offset, stop)
        return messages

    def list_agents(self, session_id: str) -> list[str]:
        """Return the ids of a session's agents, in the order in which they joined it."""
        # Keys only: no message is read. `agent_ids` lacks in older documents.
        projection = {"_id": 0, "keys": reading.AGENT_KEYS}
        document = self.commands.find_one(sessions.not_expired(session_id), projection)
        return [name_of(key) for key in (document or {}).get("keys") or []]

    def count_messages(self, session_id: str, key: str) -> int:
        """Return how many messages an agent's conversation has."""
        projection = {"_id": 0, "count": count_of(f"$agents.{key}")}
        document = self.commands.find_one(sessions.not_expired(session_id), projection)
        return int((document or {}).get("count") or 0)

    def read_metadata(self, session_id: str) -> MetadataAsRead | None:
        """Return a session's metadata as it is stored on the primary, and of which incarnation of it.

        From the primary, because it will be remembered: a secondary that lags behind would hide a write for that long.
        """
        left = {"$cond": [{"$eq": [{"$type": "$expires_at"}, "date"]}, {"$subtract": ["$expires_at", "$$NOW"]}, None]}
        projection = {"_id": 0, "incarnation": 1, "metadata": 1, "milliseconds_left": left}
        primary = self.commands.raw.with_options(read_preference=Primary())
        found = primary.find_one(sessions.not_expired(session_id), projection)
        if found is None:
            return None
        milliseconds = found["milliseconds_left"]
        seconds = None if milliseconds is None else milliseconds / 1000
        return MetadataAsRead(found.get("incarnation"), found.raw, seconds)

    def metadata(self, content: bytes) -> Document:
        """Return the values of metadata that were read as they are stored."""
        return dict(mapping(from_bson(content).get("metadata")))

    def watch_metadata(self, max_await_ms: int) -> ChangeStream[Document]:
        """Open a stream of the changes after which a session's metadata may be other than before.

        Args:
            max_await_ms: How long the server waits for a change before it says that there is none; less where the
                client's ``timeoutMS`` or ``socketTimeoutMS`` is shorter.
        """
        options = self.commands.client.options
        for seconds in (options.timeout, options.pool_options.socket_timeout):
            if seconds:
                max_await_ms = min(max_await_ms, max(1, int(seconds * 500)))
        return self.commands.collection.watch(changes.METADATA_CHANGES, max_await_time_ms=max_await_ms)

    @_read_again_if_gone
    def get_feedbacks(self, session_id: str) -> list[Document]:
        """Return a session's feedbacks, decoded, oldest first."""
        projection = {"incarnation": 1, "feedbacks": 1, "feedbacks_archived": 1}
        document = self.commands.find_plain(sessions.not_expired(session_id), projection)
        if document is None:
            return []
        feedbacks = mappings(document.get("feedbacks"))
        archived = count(document.get("feedbacks_archived"))
        if archived:
            feedbacks[:0] = self.history.read(session_id, document["incarnation"], FEEDBACKS, 0, archived)
        return feedbacks

    @_read_again_if_gone
    def read_metrics(self, session_id: str, agent_id: str | None) -> tuple[list[tuple[str, Any]], list[Any]]:
        """Return what a summary of metrics is made of, of one agent or of all.

        Returns:
            Of each agent its key and its running totals as stored, None where it has none; the rating of each feedback:
            text, a number, a bool, None for one without.
        """
        document = self.commands.find_plain(sessions.not_expired(session_id), reading.metrics_projection(agent_id))
        if document is None:
            return [], []
        ratings, archived = document["ratings"], count(document["feedbacks_archived"])
        if archived:
            ratings += self.history.ratings(session_id, document["incarnation"], archived, agent_id)
        return [(agent["key"], agent.get("usage")) for agent in document["agents"]], ratings

    def get_guardrail_events(self, session_id: str) -> list[Document]:
        """Return the interventions that are listed in a session, oldest first."""
        document = self.commands.find_plain(sessions.not_expired(session_id), {"_id": 0, "guardrail_events": 1})
        return (document or {}).get("guardrail_events") or []

    def read_multi_agent(self, session_id: str, multi_agent_id: str) -> MultiAgentAsRead:
        """Return the stored state of a graph or swarm, decoded; None if it is not stored."""
        projection = {
            "_id": 0,
            "state": changes.multi_agent_state_expression(multi_agent_id),
            **changes.multi_agent_projection(multi_agent_id),
        }
        document = self.commands.find_one(sessions.not_expired(session_id), projection) or {}
        return MultiAgentAsRead(document.get("state"), document.get("changes"))

    def commit_id_at(self, session: SessionRef, key: str, message_id: int, standing: Document) -> ObjectId | None:
        """Return the id of the commit that stored a message; None if there is no such message, or it has none.

        Args:
            session: The session.
            key: The agent's key.
            message_id: The message.
            standing: What ``append_projection`` says of it.
        """
        if standing["exists"] and not standing["embedded"]:
            return (self.archived_message(session.session_id, key, message_id, standing) or {}).get("commit_id")
        return standing.get("commit_id")

    def archived_message(
        self, session_id: str, key: str, message_id: int, standing: Mapping[str, Any]
    ) -> Document | None:
        """Return a message that is not embedded, decoded; None if it is not archived, either.

        Args:
            session_id: The session.
            key: The agent's key.
            message_id: The message.
            standing: What ``append_projection`` says of it.
        """
        if not standing["archived_count"]:
            return None
        if message_id >= check_message_count(session_id, key, standing.get("message_count", 0)):
            return None
        return self.history.read_message(session_id, standing["incarnation"], key, message_id)
