"""What a process knows of one agent's stored conversation."""

from __future__ import annotations

from .._model.archive_policy import DocumentSize, Embedded
from .._statements.commits import Commit
from .known_messages import KnownMessages


class Conversation:
    """One agent's stored conversation, as far as this process knows.

    Attributes:
        agent_id: The agent.
        key: Its key in the session document.
        next_message_id: The ``message_id`` that the next message will get.
        changes: How often the agent's record was changed.
        embedded: What the agent has in the session document.
        document: The size of that document.
        messages: Which live messages are which stored ones.
    """

    next_message_id = 0
    changes = 0

    def __init__(self, agent_id: str, key: str, document: DocumentSize) -> None:
        self.agent_id = agent_id
        self.key = key
        self.document = document
        self.embedded = Embedded()
        self.messages = KnownMessages()

    def was_stored(self, commit: Commit) -> None:
        """Take note that a commit is stored."""
        first = commit.first_message_id or 0
        for message_id, message in enumerate(commit.messages, first):
            message.message_id = message_id
            message.commit = message.blobs = message.totals = None
            message.body = {}
        if commit.messages:
            self.next_message_id = first + len(commit.messages)
        if commit.creates is None and commit.fields:
            self.changes = commit.changes + 1
        embedded = self.embedded
        embedded.count += len(commit.messages)
        # A field that is stored anew takes the place of another.
        embedded.bytes += commit.bytes - commit.field_bytes
        self.document.bytes += commit.bytes - commit.field_bytes
        window = commit.fields.get("conversation_manager_state")
        if isinstance(window, dict) and isinstance(removed := window.get("removed_message_count"), int):
            embedded.removed = removed
