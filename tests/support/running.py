"""Python programs of a test's own, each in a process of its own that finds what the tests find."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def run_python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, within two minutes."""
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.run(command, env=_env(), capture_output=True, text=True, timeout=120, check=False)


def start_python(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a script; its standard streams are pipes."""
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=_env(), stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
