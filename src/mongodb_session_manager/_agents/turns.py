"""Which turn each message of an agent belongs to, and whether one is running."""

from __future__ import annotations

import sys
from typing import Any

from bson import ObjectId
from strands import Agent


class Turns:
    """The turns of one agent.

    Attributes:
        last_id: The turn of the message that came last; None before the first.
        invoked: Whether the agent is between the beginning and the end of an invocation.
    """

    # What most agents begin with stands here: these objects are made for each request.
    last_id: ObjectId | None = None
    invoked = False
    # Whether the invocation's first message has come.
    _has_begun = False
    # None: the next message makes one.
    _id: ObjectId | None = None
    # An exception that was being handled when the invocation began: not its own.
    _outer_error: BaseException | None = None

    def begin(self) -> None:
        """Take note that an invocation begins."""
        self.invoked = True
        self._has_begun = False
        self._id = None
        self._outer_error = sys.exc_info()[1]

    def end(self) -> BaseException | None:
        """Take note that an invocation is over; return the error that ended it, if one did."""
        self.invoked = self._has_begun = False
        error, outer_error = sys.exc_info()[1], self._outer_error
        self._outer_error = None
        # An exception that was being handled before the turn began is somebody else's.
        return None if error is outer_error else error

    def is_running(self, agent: Any) -> bool:
        """Return whether a turn is running. A ``BidiAgent`` tells no beginning: while it runs, it is in a turn."""
        return self.invoked or (not isinstance(agent, Agent) and getattr(agent, "_started", True))

    def of_message(self, role: str, *, from_agent: bool, carries_results: bool) -> tuple[ObjectId, bool]:
        """Return the turn of a message that is appended now, and whether it begins that turn.

        Args:
            role: Its role.
            from_agent: Whether Strands has appended it; else the agent was built with it.
            carries_results: Whether it carries results of tools.
        """
        begins = from_agent and role == "user" and not carries_results and not self._has_begun
        if from_agent and self.invoked and not self._has_begun and carries_results and self.last_id:
            # An interrupted turn goes on: its tool results belong to the tool uses that were stored before.
            self._id = self.last_id
        elif self._id is None or (begins and not self.invoked):
            self._id = ObjectId()
        if from_agent:
            self._has_begun = self.invoked
        self.last_id = self._id
        return self._id, begins

    def of_message_by_hand(self, role: str) -> ObjectId:
        """Return the turn of a message that the application appends."""
        if role == "user" and not self.invoked:
            self._id = None
        self._id = self.last_id = self._id or ObjectId()
        return self._id

    def join(self, turn_id: ObjectId) -> None:
        """Go on with the turn that a message appended by hand has begun."""
        self._id = turn_id
        self._has_begun = self.invoked


def is_interrupted(agent: Any) -> bool:
    """Return whether the agent's turn will go on with an answer to an interrupt."""
    state = getattr(agent, "_interrupt_state", None)  # Not every kind of agent in every version has one.
    return bool(state and state.activated)
