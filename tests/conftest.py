"""What holds for all tests: where their fixtures are, how many examples a property gets, which marks a folder gives."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings
from support.chromium import MISSING

pytest_plugins = ["fixtures.servers", "fixtures.databases", "fixtures.applications", "fixtures.proxies"]

# No deadlines: a machine that is busy is not a failure of the code under test.
settings.register_profile("dev", max_examples=100, deadline=None)
settings.register_profile("ci", max_examples=1000, deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

TESTS = Path(__file__).parent
MARKS_OF_FOLDERS = {"browser", "faults", "programs"}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test with the name of its folder, if that is a mark; and as `slow` what needs the replica set."""
    folder = item.path.relative_to(TESTS).parts[0]
    if folder in MARKS_OF_FOLDERS:
        item.add_marker(folder)
    if "replica_set" in item.fixturenames:  # type: ignore[attr-defined]
        item.add_marker("slow")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Say loudly, and last, that the tests in a browser did not run, where there is no browser."""
    yield
    missed = [report for report in terminalreporter.stats.get("skipped", ()) if MISSING in str(report.longrepr)]
    if missed:
        terminalreporter.write_sep("!", f"{len(missed)} tests: {MISSING}", red=True, bold=True)
