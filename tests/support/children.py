"""Programs and forked children: what must not happen in the process that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def run_script(script: str, *arguments: str) -> None:
    """Run a program, which must end well and complain of nothing."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def in_child(work: Callable[[], object]) -> int:
    """Do something in a forked child; returns its exit code. For programs: a test's process has threads of others."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
