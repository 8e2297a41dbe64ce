"""What the live messages of an agent are at one moment, and which of them are those of a moment before. Pure."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from strands.types.content import Message

from .._model.encoding import fingerprint
from .._model.keys import exact_text
from ..errors import UnstorableValueError


@dataclass(slots=True)
class Seen:
    """A live message as it was at a look: its blocks and what the application attached may be replaced in place."""

    message: Message
    blocks: Sequence[Any]
    custom: Any

    def form(self) -> bytes:
        """Return the fingerprint of what it was."""
        try:
            content = fingerprint([self.message.get("role"), list(self.blocks), self.custom], "message")
        except UnstorableValueError:  # Told when it is to be stored; here it only has to differ from all that can be.
            content = repr(([id(block) for block in self.blocks], self.custom and id(self.message))).encode()
        return hashlib.blake2b(content, digest_size=16).digest()


class Look:
    """The live messages at one moment, in a form that the next look is compared with without a line of Python each.

    Attributes:
        messages: The messages.
        lengths: How many blocks each has.
        blocks: The blocks of all.
        customs: Copies of what the application attached to some of them, by their places; a pin is such a thing.
    """

    def __init__(self, live: list[Message]) -> None:
        self.messages = list(live)
        contents: list[Any] = [message.get("content") for message in self.messages]
        contents = [content if type(content) is list else [content] for content in contents]
        self.lengths = list(map(len, contents))
        self.blocks: list[Any] = list(chain.from_iterable(contents))
        attached: list[Any] = [message.get("metadata") for message in self.messages]
        self.customs = {
            index: dict(custom)
            for index, metadata in enumerate(attached)
            if metadata and "custom" in metadata and isinstance(custom := metadata["custom"], dict) and custom
        }

    def begins_with(self, before: Look) -> bool:
        """Return whether these are the same messages as before, unchanged, and perhaps more behind them."""
        known = len(before.messages)
        return (
            len(self.messages) >= known
            and all(map(operator.is_, before.messages, self.messages))
            and self.lengths[:known] == before.lengths
            and all(map(operator.is_, before.blocks, self.blocks))
            and before.customs == {index: custom for index, custom in self.customs.items() if index < known}
        )

    def each(self) -> list[Seen]:
        """Return each message with its blocks and what is attached to it."""
        found: list[Seen] = []
        start = 0
        for index, (message, length) in enumerate(zip(self.messages, self.lengths, strict=True)):
            found.append(Seen(message, self.blocks[start : start + length], self.customs.get(index)))
            start += length
        return found


def same_objects(old: list[Seen], new: list[Seen]) -> list[Any]:
    """Return for each live message the index that the same object had before; None if it is new.

    An object may be live several times: what is the same from the beginning and from the end is settled first.
    """
    n, m = len(old), len(new)
    start = 0
    while start < min(n, m) and old[start].message is new[start].message:
        start += 1
    end = 0
    while end < min(n, m) - start and old[n - 1 - end].message is new[m - 1 - end].message:
        end += 1
    came: list[Any] = [*range(start), *[None] * (m - start - end), *range(n - end, n)]
    where: dict[int, list[int]] = {}
    for index in range(start, n - end):
        where.setdefault(id(old[index].message), []).append(index)
    for index in range(start, m - end):
        if indexes := where.get(id(new[index].message)):
            came[index] = indexes.pop(0)
    return came


def is_unchanged(old: Seen, new: Seen) -> bool:
    same = len(old.blocks) == len(new.blocks) and all(map(operator.is_, old.blocks, new.blocks))
    return same and old.custom == new.custom


def form_of(message: Message) -> bytes:
    return Look([message]).each()[0].form()


def asks_for_tools(message: Any) -> bool:
    return any("toolUse" in block for block in message["content"] if isinstance(block, dict))


def tracking_id_of(message: Any) -> str | None:
    """Return the ``tracking_id`` by which a message can be looked for."""
    value = message.get("tracking_id")
    return exact_text(value) if isinstance(value, str) else None


def fields_of_state(agent: Any) -> dict[int, str]:
    """Return which messages the conversation manager keeps in its state: the field's name by the object's id."""
    manager = getattr(agent, "conversation_manager", None)
    state = manager.get_state() if manager is not None else {}
    return {id(value): name for name, value in state.items() if isinstance(value, dict)}
