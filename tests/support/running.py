"""Python programs of a test's own, each in a process of its own that finds what the tests find; forked children."""

import os
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable


def run_python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, within two minutes."""
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.run(command, env=_env(), capture_output=True, text=True, timeout=120, check=False)


def run_script(script: str, *arguments: str) -> None:
    """Run a script that must end well and complain of nothing."""
    done = run_python(script, *arguments)
    assert (done.returncode, done.stderr) == (0, "")


def start_python(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a script; its standard streams are pipes."""
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=_env(), stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


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
