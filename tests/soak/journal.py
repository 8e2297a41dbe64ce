"""What the writers meant to do and what they were told: a line each, written before and after, in a file per process.

A line is with the kernel when `write` returns, so a process that is killed leaves all that it knew: what has an
intent and no acknowledgement may have been done or not.
"""

import collections
import contextlib
import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOKEN = re.compile(rb"w\d\dg\d{3}n\d{6}[a-z]")
"""What is found again in the raw documents: writer, process of that writer, number, and what it is a part of."""

NUMBERS_PER_PROCESS = 1_000_000
"""What numbers of values begin with: so many times the number of the process."""


def token(writer: int, generation: int, number: int, part: str) -> str:
    """A text that is nowhere else; one word, so that it can be searched."""
    return f"w{writer:02d}g{generation:03d}n{number:06d}{part}"


def tokens_in(content: bytes) -> list[str]:
    """The tokens in some bytes, in their order."""
    return [found.decode() for found in TOKEN.findall(content)]


def texts(message: Any) -> bytes:
    """All texts of a message's content, one after the other."""
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            for part in value.values():
                walk(part)
        elif isinstance(value, list):
            for part in value:
                walk(part)

    with contextlib.suppress(KeyError):
        walk(message["content"])
    return "\n".join(found).encode()


class Journal:
    """The lines of one writer, one process."""

    def __init__(self, folder: Path, writer: int, generation: int) -> None:
        path = folder / f"w{writer:02d}g{generation:03d}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, event: str, **facts: Any) -> None:
        """Add a line."""
        os.write(self._file, json.dumps({"t": time.monotonic(), "e": event, **facts}).encode() + b"\n")

    def close(self) -> None:
        """End the file."""
        os.close(self._file)


@dataclass
class Said:
    """A message that somebody meant to store.

    Attributes:
        token: what it says.
        writer: who.
        session: where.
        agent: in whose conversation.
        life: which life of the session, if the writer knew.
        acknowledged: whether it was told that the message is stored.
        blob: size of the binary in it, if there is one.
        replacement: what a redaction was to put there.
        redacted: whether the redaction was acknowledged.
    """

    token: str
    writer: int
    session: str
    agent: str
    life: str | None
    blob: int = 0
    acknowledged: bool = False
    replacement: str | None = None
    redacted: bool = False


@dataclass
class Value:
    """A value of a key that only one writer writes: `None` if it was to be deleted."""

    number: int
    value: int | None
    life: str | None
    acknowledged: bool = False


@dataclass
class Told:
    """What all the writers meant to do and were told, as their journals have it; tests fill it by hand.

    Attributes:
        messages: by token, in the order in which each writer began them.
        feedbacks: by token: session, life, whether acknowledged.
        values: by what ("metadata" or "state"), session, agent and key.
        alone: turns that were acknowledged within a lease: session, life, agent, tokens.
        lives: when each life of each session was first and last known to be, in seconds of one clock.
        deleted: sessions and when a deletion began that was acknowledged.
        did: how often what ended how.
        errors: how often which error was met.
        findings: what the writers themselves have found, and when.
        ended: processes that came to their end.
    """

    messages: dict[str, Said] = field(default_factory=dict)
    feedbacks: dict[str, Said] = field(default_factory=dict)
    values: dict[tuple[str, str, str, str], list[Value]] = field(default_factory=dict)
    alone: list[tuple[str, str, str, list[str]]] = field(default_factory=list)
    lives: dict[tuple[str, str], float] = field(default_factory=dict)
    deleted: list[tuple[str, float]] = field(default_factory=list)
    did: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    findings: dict[str, list[str]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)


def read_journals(folder: Path) -> Told:
    """Read all journals of a run."""
    told = Told()
    for path in sorted(folder.glob("w*.jsonl")):
        _read(told, path.stem, path.read_bytes().splitlines())
    return told


def _read(told: Told, name: str, lines: Iterable[bytes]) -> None:
    writer, values = int(name[1:3]), {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # Only a last line can be cut off: its process was killed.
        event, life = entry["e"], entry.get("life")
        if life is not None:
            where = entry["session"], life
            told.lives[where] = min(entry["t"], told.lives.get(where, entry["t"]))
        if event in ("message", "feedback"):
            said = Said(entry["token"], writer, entry["session"], entry.get("agent", ""), life, entry.get("blob", 0))
            (told.messages if event == "message" else told.feedbacks)[said.token] = said
        elif event == "stored":
            for token_ in entry["tokens"]:
                said = told.messages.get(token_) or told.feedbacks[token_]
                said.acknowledged, said.life = True, life or said.life
        elif event == "redact":
            told.messages[entry["token"]].replacement = entry["by"]
        elif event == "redacted":
            told.messages[entry["token"]].redacted = True
        elif event == "set":
            key = entry["what"], entry["session"], entry["agent"], entry["key"]
            values[entry["number"]] = value = Value(entry["number"], entry["value"], life)
            told.values.setdefault(key, []).append(value)
        elif event == "was set":
            values[entry["number"]].acknowledged = True
            values[entry["number"]].life = life or values[entry["number"]].life
        elif event == "alone":
            told.alone.append((entry["session"], life, entry["agent"], entry["tokens"]))
        elif event == "deleted":
            told.deleted.append((entry["session"], entry["began"]))
        elif event == "did":
            told.did[entry["kind"], entry["outcome"]] += 1
            if entry["error"]:
                told.errors[entry["error"]] += 1
        elif event == "finding":
            told.findings.setdefault(entry["what"], []).append(f"{name}, {entry['when']}")
        elif event == "end":
            told.ended.add(name)
