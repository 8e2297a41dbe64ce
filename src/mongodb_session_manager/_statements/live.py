"""The live view of an agent: what a commit stores of it, and what a redaction takes out of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .._model.documents import Document
from .._model.live_view import Place, compact
from .expressions import array_at, is_object, number_at, object_at

Logged = Any
"""A logged message: its ``message_id``, or a ``TrackedMessage`` that will have one when it is stored."""


@dataclass(frozen=True, eq=False)
class HeldCopy:
    """A live message that is not as it is logged.

    Attributes:
        of: The message whose live form it is: an id or a message that waits; None if it is in no log.
        name: Its name in ``held`` if it is in no log.
        body: What is stored of it.
        shares: The other messages whose content blocks it has.
    """

    of: Logged | None
    name: str
    body: Document
    shares: tuple[Logged, ...] = ()

    @property
    def is_copy(self) -> bool:
        """Whether it holds content of logged messages, which may be redacted."""
        return self.of is not None or bool(self.shares)

    def concerns(self, message: Logged) -> bool:
        """Return whether it holds content of this message, a ``TrackedMessage``."""
        named = [one for one in (self.of, *self.shares) if one is not None]
        return any(one is message or one == message.message_id for one in named)


@dataclass(frozen=True, eq=False)
class LiveView:
    """A live view that waits to be stored; ids of messages that are stored with it are known when it is sent.

    Attributes:
        places: Its places, oldest first: ids, messages that wait, ids of another writer, names, fields of the state.
        newest: The newest message of the log when it was so; None: the log is empty.
        removed: The ``removed_message_count`` that is stored with it.
        is_exact: Whether no restore is to trim it.
        held: Live messages that are not as they are logged.
    """

    places: list[Any]
    newest: Logged | None
    removed: int
    is_exact: bool = False
    held: list[HeldCopy] = field(default_factory=list)

    @property
    def has_copies(self) -> bool:
        """Whether it holds content of logged messages."""
        return any(held.is_copy for held in self.held)

    def without_copies(self) -> LiveView:
        """Return the view that shows logged messages as they are logged."""
        return replace(self, held=[held for held in self.held if not held.is_copy])

    def without(self, message: Logged) -> LiveView:
        """Return the view that holds nothing of this message."""
        return replace(self, held=[held for held in self.held if not held.concerns(message)])

    def document(
        self, id_of: Callable[[Any], int | None], next_message_id: int, others: Mapping[int, range], rewrites: int
    ) -> Document:
        """Return what is stored of it.

        Args:
            id_of: Tells the id of a message; None if it was refused.
            next_message_id: The id behind the log where ``newest`` was refused.
            others: Ids that other writers took meanwhile, by the id of the message that was to follow the ones before.
            rewrites: The agent's ``rewrites``, as the update demands them.
        """
        newest = None if self.newest is None else id_of(self.newest)
        end = 0 if self.newest is None else next_message_id if newest is None else newest + 1
        found: list[Place] = []
        for place in self.places:
            if isinstance(place, range):
                found += place
            elif isinstance(place, (str, dict)):
                found.append(place)  # type: ignore[arg-type]
            elif (message_id := id_of(place)) is not None:
                found += others.get(message_id, ())
                found.append(message_id)
        before, tail = compact(found, end)
        document: Document = {"tail": tail, "removed": self.removed}
        if self.is_exact:
            document["at"] = end
        if before:
            document["before"] = before
        held: Document = {}
        for one in self.held:
            name = one.name if one.of is None else id_of(one.of)
            if name is not None:
                shares = sorted({message_id for other in one.shares if (message_id := id_of(other)) is not None})
                held[str(name)] = {**one.body, "of": shares} if shares else one.body
        if held:
            document["held"] = held
        if self.has_copies:
            document["rewrites"] = rewrites
        return document


def held_with(agent: str, message_id: int, tracking_id: str | None) -> Document:
    """Return the expression for what an agent's view holds of a message, or of its copies: ``{k, v}`` each."""
    is_meant: list[Document] = [{"$eq": ["$$h.k", str(message_id)]}, {"$in": [message_id, array_at("$$h.v.of")]}]
    if tracking_id is not None:
        is_meant.append({"$eq": ["$$h.v.tracking_id", {"$literal": tracking_id}]})
    held = {"$objectToArray": object_at(f"{agent}.live.held")}
    return {"$filter": {"input": held, "as": "h", "cond": {"$or": is_meant}}}


def counts(agent: str, removed: Any) -> Document:
    """Return the expression for whether an agent has a view, and no program that knows none has moved the window."""
    live = f"{agent}.live"
    return {"$and": [is_object(live), {"$isNumber": f"{live}.tail"}, {"$eq": [f"{live}.removed", removed]}]}


def copies_count(agent: str) -> Document:
    """Return the expression for whether no program that knows no views has redacted what a view may hold."""
    rewrites = number_at(f"{agent}.rewrites")
    return {"$eq": [{"$ifNull": [f"{agent}.live.rewrites", rewrites]}, rewrites]}


def is_live(agent: str) -> Document:
    """Return the expression for whether a view needs the logged message ``$$m``: it names it and does not hold it."""
    spans = {"$filter": {"input": array_at(f"{agent}.live.before"), "as": "p", "cond": {"$isArray": "$$p"}}}
    within = {
        "$and": [
            {"$gte": ["$$m.message_id", {"$first": "$$p"}]},
            {"$lte": ["$$m.message_id", {"$last": "$$p"}]},
        ]
    }
    named = {"$anyElementTrue": {"$map": {"input": spans, "as": "p", "in": within}}}
    held = {"$map": {"input": {"$objectToArray": object_at(f"{agent}.live.held")}, "as": "h", "in": "$$h.k"}}
    is_held = {"$in": [{"$convert": {"input": "$$m.message_id", "to": "string", "onError": "", "onNull": ""}}, held]}
    is_named = {"$or": [{"$gte": ["$$m.message_id", f"{agent}.live.tail"]}, named]}
    holds_nothing = {"$or": [{"$ne": [{"$type": f"{agent}.live.held"}, "object"]}, {"$not": [copies_count(agent)]}]}
    return {"$and": [is_named, {"$or": [holds_nothing, {"$not": [is_held]}]}]}
