"""Prints for the examples: lines of at most 100 characters, in colour on a terminal only."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from strands import Agent

WIDTH = 100
BOLD, DIM, CYAN, GREEN, RED = "1", "2", "36", "32", "31"


def say(text: str = "", style: str = "") -> None:
    """Print a line."""
    text = shortened(text, WIDTH)
    coloured = style and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(f"\x1b[{style}m{text}\x1b[0m" if coloured else text, flush=True)


def title(text: str) -> None:
    """Print the title of a part."""
    say()
    say(f"── {text} " + "─" * (WIDTH - len(text) - 4), style=BOLD)


def talk(agent: Agent, prompt: str) -> None:
    """Send a prompt to an agent and print the turn, with the tools that it used."""
    before = len(agent.messages)
    say(f"  you        {prompt}", style=CYAN)
    agent(prompt)
    for block in [block for message in agent.messages[before + 1 :] for block in message["content"]]:
        if "text" in block:
            say(f"  assistant  {block['text']}", style=GREEN)
        elif "toolUse" in block:
            say(f"  tool       {block['toolUse']['name']}({block['toolUse']['input']})", style=DIM)
        elif "toolResult" in block:
            say(f"             → {block['toolResult']['content'][0].get('text')}", style=DIM)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column is a text, and whose others are numbers."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, *rows]:
        name, *numbers = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        say("   ".join([f"  {name.strip():<{widths[0]}}", *numbers]), style=DIM if row is header else "")


def document(value: Mapping[str, Any]) -> None:
    """Print a stored document, one value per line. Of a long list, print only both ends."""
    for line in _lines_of(value.items(), "  "):
        say(line)


def shortened(text: str, length: int) -> str:
    """Cut a text in its middle, so that it has at most `length` characters."""
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return f"{text[:head]}…{text[head + 1 - length :]}"


def _lines_of(pairs: Any, indent: str) -> Iterator[str]:
    for key, value in pairs:
        inline = f"{indent}{key}: {_plain(value)}"
        if len(inline) <= WIDTH or not isinstance(value, dict | list):
            yield inline
            continue
        yield f"{indent}{key}:"
        if isinstance(value, dict):
            yield from _lines_of(value.items(), indent + "  ")
            continue
        items = [(f"[{at}]", item) for at, item in enumerate(value)]
        left_out = max(0, len(items) - 4)
        yield from _lines_of(items[:2], indent + "  ")
        if left_out:
            yield f"{indent}  … {left_out} more"
        yield from _lines_of(items[2 + left_out :], indent + "  ")


def _plain(value: Any) -> str:
    """Write a value on one line, as a person would."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="milliseconds")
    return repr(value) if isinstance(value, str) else str(value)
