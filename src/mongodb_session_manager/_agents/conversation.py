"""What a process knows of one agent's stored conversation."""

from __future__ import annotations

from bson import ObjectId

from .._model.archive_policy import DocumentSize, Embedded
from .._model.encoding import PendingBlobs
from .._statements.commits import Commit
from .._statements.live import LiveView
from ..errors import UnstorableValueError
from .live_conversation import LiveConversation
from .live_views import live_view
from .slots import Due


class Conversation:
    """One agent's stored conversation, as far as this process knows.

    Attributes:
        agent_id: The agent.
        key: Its key in the session document.
        next_message_id: The ``message_id`` that the next message will get.
        changes: How often the agent's record was changed.
        rewrites: How often the content of one of its stored messages was replaced.
        embedded: What the agent has in the session document.
        document: The size of that document.
        live: What is live of it.
        held_files: The files of the blobs that the stored view holds, as far as it was stored here.
    """

    next_message_id = 0
    changes = 0
    rewrites = 0

    def __init__(self, agent_id: str, key: str, document: DocumentSize) -> None:
        self.agent_id = agent_id
        self.key = key
        self.document = document
        self.embedded = Embedded()
        self.live = LiveConversation()
        self.held_files: set[ObjectId] = set()

    def view(
        self, due: Due, removed: int, where: str, blobs: PendingBlobs
    ) -> tuple[LiveView, UnstorableValueError | None]:
        """Return the view that is to be stored; see ``live_view``."""
        live, archived = self.live, self.embedded.archived
        return live_view(due, removed, archived, live.turn_of, where, blobs, may_hold=live.may_hold)

    def was_stored(self, commit: Commit) -> None:
        """Take note that a commit is stored."""
        first = commit.first_message_id or 0
        for message_id, message in enumerate(commit.messages, first):
            message.message_id = message_id
            message.commit = message.blobs = message.totals = None
            message.body, message.follows = {}, ()
        if commit.messages:
            self.next_message_id = first + len(commit.messages)
        if commit.creates is None and (commit.fields or commit.view):
            self.changes = commit.changes + 1
        if commit.view is not None and commit.rewrites != self.rewrites:
            self.rewrites, self.live.may_hold = commit.rewrites, False
        if commit.messages and commit.others:
            self.live.others_came_first(commit.messages[0], commit.others)
        embedded = self.embedded
        embedded.count += len(commit.messages)
        # A field that is stored anew takes the place of another.
        embedded.bytes += commit.bytes - commit.field_bytes
        self.document.bytes += commit.bytes - commit.field_bytes
