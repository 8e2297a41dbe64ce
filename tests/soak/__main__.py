"""The command line; see `python -m soak --help`."""

import argparse
import random
import signal
import sys

from soak.run import run


def main() -> int:
    """Run on one kind of server or on both; return 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m soak", description="A randomised stress test.")
    parser.add_argument("--server", choices=("standalone", "replica_set", "both"), default="both")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long on each; the checks come on top")
    parser.add_argument("--seed", type=int, default=None, help="of every random choice; another one each time")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    # Also where a shell has begun it in the background, which ignores Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    kinds = ("standalone", "replica_set") if options.server == "both" else (options.server,)
    total = 0
    try:
        for kind in kinds:
            total += run(kind, options.seconds, seed)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    sys.stdout.write(f"soak: {total} findings, {options.seconds:g} s on {' and '.join(kinds)}, seed {seed}\n")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
