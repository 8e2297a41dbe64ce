"""Which Chromium the browser tests and the pictures use, how it is started, and how it comes onto a machine.

As a program (`make browser`): installs one where none is found and one can be.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Error, Playwright, sync_playwright

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
# Nothing in /dev/shm, which is small in containers; nothing that a browser does by itself; no host but this machine.
ARGUMENTS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--font-render-hinting=none",
    "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
    "--no-first-run",
    "--no-proxy-server",
)
MISSING = "no Chromium: the browser tests did not run (`make browser` installs one; CHROMIUM=… names one)"


class NoChromiumError(RuntimeError):
    """No Chromium on the PATH, in `CHROMIUM`, or among Playwright's downloads."""


def find(playwright: Playwright) -> str:
    """Return the path of a Chromium that runs.

    Raises:
        NoChromiumError: there is none; or `CHROMIUM` names something else.
    """
    if named := os.environ.get("CHROMIUM"):
        candidates = [shutil.which(named)]
    else:
        candidates = [*map(shutil.which, NAMES), playwright.chromium.executable_path]
    for candidate in candidates:
        # Ubuntu's chromium-browser may be a stub that only says how to install the real one.
        if candidate and Path(candidate).exists() and _runs(candidate):
            return candidate
    raise NoChromiumError(f"{MISSING}; {named} is none that runs" if named else MISSING)


def launch(playwright: Playwright) -> Browser:
    """Start a headless Chromium with an empty profile of its own.

    Raises:
        NoChromiumError: as `find` raises it.
    """
    # Without Chromium's sandbox, as Playwright starts it: root cannot have one, nor many a container. It opens nothing
    # but the playground, see ARGUMENTS.
    return playwright.chromium.launch(executable_path=find(playwright), args=list(ARGUMENTS))


def install() -> int:
    """Install a Chromium if there is none; returns the program's exit code, which is an error's only in CI."""
    with sync_playwright() as playwright:
        try:
            print(f"Chromium: {find(playwright)}")
        except NoChromiumError as missing:
            print(missing)
        else:
            return 0
    for command in _ways_to_install():
        print(" ".join(command), flush=True)
        if subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, check=False).returncode:
            print("That did not work.")
    with sync_playwright() as playwright:
        try:
            launch(playwright).close()
        except (NoChromiumError, Error) as error:
            print(f"{'!' * 100}\n{MISSING}\n{error}\n{'!' * 100}", file=sys.stderr)
            return 1 if _in_ci() else 0
    return 0


def _ways_to_install() -> list[list[str]]:
    if os.geteuid() == 0 and shutil.which("apt-get"):
        packages = ["chromium", "fonts-dejavu-core"]
        return [["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]]
    return [[sys.executable, "-m", "playwright", "install", "chromium"]]


def _runs(path: str) -> bool:
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


if __name__ == "__main__":
    sys.exit(install())
