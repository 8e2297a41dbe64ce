"""Opens a session in another process, which runs the same example and is told nothing but the session's id."""

import argparse
import os
import subprocess
import sys


def resume_in_another_process(session_id: str, uri: str) -> None:
    """Run this example again with `--resume`, and wait for its end."""
    subprocess.run(  # noqa: S603 - the very program that runs
        [sys.executable, sys.argv[0], "--resume", session_id],
        # The connection string may hold a password: in the environment, other users cannot read it.
        env={**os.environ, "MONGODB_URI": uri},
        check=True,
    )


def session_to_resume(description: str) -> str | None:
    """Return the id after `--resume`, if this is the other process."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--resume", metavar="SESSION_ID", help="continue a session of MONGODB_URI and ask for the name")
    return parser.parse_args().resume
