"""Opens a session in another process. It runs the same example and gets only the session's id."""

import argparse
import os
import subprocess
import sys


def resume_in_another_process(session_id: str, uri: str) -> None:
    """Run this example again with `--resume`, and wait until it ends."""
    subprocess.run(  # noqa: S603 - this same program
        [sys.executable, sys.argv[0], "--resume", session_id],
        # The connection string may hold a password: in the environment, other users cannot read it.
        env={**os.environ, "MONGODB_URI": uri},
        check=True,
    )


def session_to_resume(description: str) -> str | None:
    """Return the id after `--resume`; None if this is the first process."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--resume", metavar="SESSION_ID", help="continue a session of MONGODB_URI and ask for the name")
    return parser.parse_args().resume
