"""What the examples print with: lines of 100 characters at most, coloured on a terminal only."""

import os
import sys
from collections.abc import Sequence

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


def table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> None:
    """Print a table whose first columns, `texts` of them, are texts, and whose others are numbers."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        cells = [
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  " + "   ".join(cells), style=DIM if row is header else "")


def shortened(text: str, length: int) -> str:
    """Cut a text in its middle, so that it has at most `length` characters."""
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return f"{text[:head]}…{text[head + 1 - length :]}"
