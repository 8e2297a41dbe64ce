"""Lets processes begin something together."""

import subprocess
from collections.abc import Sequence


def begin_together(running: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until each of these processes has written the line ``ready``; then write a line to all of them."""
    for one in running:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n", one.communicate()[1]
    for one in running:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
