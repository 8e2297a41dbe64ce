"""Starts the playground, backend and page, and ends both together.

    make playground           in the root folder: http://localhost:8881/chat.html, until Ctrl-C

Conversations stay in `.data` beside this file. The environment chooses: `BACKEND_PORT`, `FRONTEND_PORT`; `MONGODB_URI`
for another MongoDB than the bundled one; a model, as `examples/model_from_environment.py` tells.
"""

import contextlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
BACKEND = HERE.parents[1] / "examples" / "example_fastapi_streaming.py"
FRONTEND = HERE / "frontend.py"
DATA = HERE / ".data"

START_SECONDS = 120  # The first start of MongoDB on a slow disk takes 10.
END_SECONDS = 20  # The backend stores what it has streamed (5 s at most), then MongoDB ends.


class PlaygroundError(Exception):
    """It cannot start or go on; the message says what to do."""


def main() -> None:
    """Run until Ctrl-C, SIGTERM or the end of one of the two."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # A shell starts what is in the background without it.
    try:
        backend_port, frontend_port = _port("BACKEND_PORT", 8880), _port("FRONTEND_PORT", 8881)
        origins = [f"--frontend-origin=http://{host}:{frontend_port}" for host in ("localhost", "127.0.0.1")]
        print("Starting MongoDB, the backend and the page …", flush=True)
        with contextlib.ExitStack() as stack:
            backend = stack.enter_context(
                _child("backend", BACKEND, "--serve", f"--port={backend_port}", f"--data={DATA}", *origins)
            )
            frontend = stack.enter_context(
                _child("page", FRONTEND, f"--port={frontend_port}", f"--backend-port={backend_port}")
            )
            children = {"backend": backend, "page": frontend}
            _wait_for(f"http://127.0.0.1:{backend_port}/health/ready", children)
            _wait_for(f"http://127.0.0.1:{frontend_port}/chat.html", children)
            print(
                f"\n  The playground: http://localhost:{frontend_port}/chat.html\n"
                f"  Conversations:  {DATA}\n  Ctrl-C ends it.\n",
                flush=True,
            )
            while True:
                _check(children)
                time.sleep(0.2)
    except PlaygroundError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("Ended.", flush=True)


def _port(variable: str, default: int) -> int:
    """Return the port that a variable chooses, if nobody listens on it.

    Raises:
        PlaygroundError: It is none, or taken.
    """
    chosen = os.environ.get(variable, str(default))
    if not chosen.isdecimal() or not 0 < int(chosen) < 65536:
        raise PlaygroundError(f"{variable}={chosen} is no port")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(chosen)))
        except OSError as error:
            raise PlaygroundError(f"Port {chosen} is taken; choose another: {variable}=… make playground") from error
    return int(chosen)


@contextlib.contextmanager
def _child(name: str, script: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script in a process that ends with this context, or with this process however that ends."""
    process = subprocess.Popen(  # noqa: S603 - this interpreter, this file
        [sys.executable, __file__, "--with-parent", str(script), *arguments],
        stdin=subprocess.PIPE,  # Nothing is written to it; it closes when this process is no more.
        start_new_session=True,  # Ctrl-C comes to this process only, and is passed on once.
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"The {name} does not end within {END_SECONDS} s and is killed.", flush=True)
            process.kill()
            process.wait()


def _with_parent(script: str, *arguments: str) -> None:
    """Run a script in this process until it ends or the parent is gone, which closes standard input."""

    def watch() -> None:
        os.read(0, 1)  # Not through sys.stdin, whose lock must not be held when the interpreter ends.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(END_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


def _wait_for(url: str, children: dict[str, subprocess.Popen[bytes]]) -> None:
    """Wait until a server answers."""
    directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        _check(children)
        with contextlib.suppress(urllib.error.URLError, OSError), directly.open(url, timeout=5):
            return
        time.sleep(0.1)
    raise PlaygroundError(f"{url} does not answer within {START_SECONDS} s")


def _check(children: dict[str, subprocess.Popen[bytes]]) -> None:
    for name, process in children.items():
        if (status := process.poll()) is not None:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            raise PlaygroundError(f"The {name} has ended ({how}); what it said is above. The rest is ended, too.")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    if sys.argv[1:2] == ["--with-parent"]:
        _with_parent(*sys.argv[2:])
    else:
        main()
