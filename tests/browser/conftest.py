"""One browser, a profile for each test; backend, frontend and MongoDB are real.

The scope is this folder, not the run: Playwright keeps an event loop running in the main thread while it is open, and
no other test could have one there.
"""

import os
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from playwright.sync_api import Browser, sync_playwright
from pymongo import MongoClient
from support.chat_page import Chat, Watch
from support.chromium import NoChromiumError, launch
from support.gated_model import Gate
from support.playground import Playground, served_playground

from mongodb_session_manager.local import LocalMongoDB


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """The machine's Chromium. Where there is none, the test is skipped; in CI it fails."""
    with sync_playwright() as playwright:
        try:
            browser = launch(playwright)
        except NoChromiumError as missing:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(missing))
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def playground(chromium: Browser, standalone: LocalMongoDB) -> Iterator[Playground]:
    """The playground on a database of its own. Behind the browser, so that nothing starts where there is none."""
    client: MongoClient[dict[str, Any]]
    with MongoClient(standalone.uri, appname="tests") as client, pytest.MonkeyPatch.context() as monkeypatch:
        database = client[f"test_{uuid.uuid4().hex}"]
        monkeypatch.setenv("OFFLINE_PACE_MS", "0")
        with served_playground(standalone.uri, database) as running:
            yield running
        client.drop_database(database)


@pytest.fixture
def gate(playground: Playground) -> Iterator[Gate]:
    """What the pieces of answers pass; open after the test."""
    yield playground.gate
    playground.gate.open()


class OpenBrowser(Protocol):
    """Opens the playground in a browser that shares nothing with the others."""

    def __call__(self, url: str = "", **options: Any) -> Chat:
        """Open `url`, else the worker's playground; `options` are those of Playwright's `new_context`."""


@pytest.fixture
def open_browser(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[OpenBrowser]:
    """Opens browsers. Whatever goes wrong in them, unseen by the test, fails it."""
    opened: list[Chat] = []

    def open_one(url: str = "", backend_url: str = "", **options: Any) -> Chat:
        if not url:
            running: Playground = request.getfixturevalue("playground")
            url, backend_url = running.url, running.backend_url
        context = chromium.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "locale": "en-GB", "timezone_id": "UTC", **options}
        )
        watch = Watch(context, {url.removeprefix("http://"), backend_url.removeprefix("http://")})
        opened.append(Chat(context.new_page(), url, watch))
        return opened[-1].open()

    yield open_one
    for chat in opened:
        chat.page.context.close()
    problems = [problem for chat in opened for problem in chat.watch.problems]
    assert not problems, "\n".join(problems)


@pytest.fixture
def chat(open_browser: OpenBrowser) -> Chat:
    """The playground, open in a browser of the test's own."""
    return open_browser()
