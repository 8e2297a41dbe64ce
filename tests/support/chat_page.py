"""The playground as its user meets it: what can be seen and done on the page, and what must never happen there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, ConsoleMessage, Dialog, Locator, Page, Request, expect

DEADLINE = 30_000  # milliseconds; it costs nothing where things go well

expect.set_options(timeout=DEADLINE)


class Watch:
    """Collects what a browser must not see: errors, dialogs, requests to elsewhere.

    Args:
        context: the browser to watch.
        allowed: the hosts with ports that pages may ask.
    """

    def __init__(self, context: BrowserContext, allowed: set[str]) -> None:
        self.problems: list[str] = []
        self.session_id = ""  # the one that the page asked for last
        self._allowed = allowed
        self._expected: list[re.Pattern[str]] = []
        context.on("console", self._console)
        context.on("weberror", lambda error: self._problem(f"page error: {error.error}"))
        context.on("dialog", self._dialog)
        context.on("request", self._request)

    def expect(self, pattern: str) -> None:
        """From now on, a problem in which `pattern` is found is none."""
        self._expected.append(re.compile(pattern))

    def _problem(self, text: str) -> None:
        if not any(pattern.search(text) for pattern in self._expected):
            self.problems.append(text)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._problem(f"console {message.type}: {message.text} ({message.location.get('url', '')})")

    def _dialog(self, dialog: Dialog) -> None:
        self._problem(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        self.session_id = request.headers.get("x-session-id", self.session_id)
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.netloc not in self._allowed:
            self._problem(f"request to {request.url}")


class Chat:
    """One tab with the playground.

    Args:
        page: the tab.
        url: the playground's address.
        watch: what watches the tab's browser.
    """

    def __init__(self, page: Page, url: str, watch: Watch) -> None:
        self.page = page
        self.watch = watch
        self.url = url
        page.set_default_timeout(DEADLINE)

    def get(self, test_id: str) -> Locator:
        """What the page calls `test_id`."""
        return self.page.get_by_test_id(test_id)

    def open(self) -> Chat:
        """Load the page and open the panel."""
        self.page.goto(self.url)
        self.show_panel()
        return self

    def another_tab(self) -> Chat:
        """Open the playground in another tab of the same browser."""
        return Chat(self.page.context.new_page(), self.url, self.watch).open()

    def reload(self) -> None:
        """Load the page anew and open the panel, if it did not open by itself."""
        self.page.reload()
        self.show_panel()

    def show_panel(self) -> None:
        """Open the panel unless it is open."""
        expect(self.get("fab").or_(self.get("panel")).filter(visible=True).first).to_be_visible()
        if not self.get("panel").is_visible():
            self.get("fab").click()
        expect(self.get("panel")).to_be_visible()
        expect(self.get("input")).to_be_editable()

    def messages(self, role: str = "") -> Locator:
        """The messages, of one role or all."""
        return self.page.locator('[data-testid="message"]' + (f'[data-role="{role}"]' if role else ""))

    def texts(self, role: str = "") -> list[str]:
        """What each message says, as shown; the texts before and after a tool call in one."""
        return [
            "\n".join(message.get_by_test_id("message-text").all_inner_texts()).strip()
            for message in self.messages(role).all()
        ]

    def answer(self) -> Locator:
        """The text of the latest answer; behind a tool call, if there was one."""
        return self.messages("assistant").last.get_by_test_id("message-text").last

    def send(self, prompt: str) -> None:
        """Ask something, without waiting for the answer."""
        self.get("input").fill(prompt)
        self.get("send").click()

    def ask(self, prompt: str) -> Locator:
        """Ask something and wait for the end of the answer, which is returned."""
        before = self.messages("user").count()
        self.send(prompt)
        expect(self.messages("user")).to_have_count(before + 1)
        self.answered()
        return self.answer()

    def answered(self) -> None:
        """Wait until no turn is under way and the latest message is a stored answer."""
        expect(self.get("stop")).to_be_hidden()
        expect(self.messages().last).to_have_attribute("data-role", "assistant")
        expect(self.messages().last).to_have_attribute("data-message-id", re.compile(r"\d+"))

    @property
    def conversation_id(self) -> str:
        """The id of the conversation that is shown, as the page last told the backend."""
        return self.watch.session_id

    def stored_in_the_browser(self) -> dict[str, Any]:
        """What the page has stored: `{"localStorage": {…}, "sessionStorage": {…}}`."""
        return dict(self.page.evaluate("({localStorage: {...localStorage}, sessionStorage: {...sessionStorage}})"))

    @contextmanager
    def details(self) -> Iterator[Locator]:
        """The details, open during the block."""
        self.get("details-toggle").click()
        expect(self.get("details")).to_be_visible()
        yield self.get("details")
        self.get("details-toggle").click()
        expect(self.get("details")).to_be_hidden()
