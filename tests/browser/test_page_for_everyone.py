"""The page can be read and used by everyone: in light and dark, wide and narrow, by keyboard, without motion."""

import re
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from support.chat_page import Chat
from support.gated_model import Gate
from support.waiting import eventually

from browser.conftest import OpenBrowser

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
WIDE_CONTENT = (
    "repeat: | one | two | three | four | five | six |\n|---|---|---|---|---|---|\n"
    f"| {'a' * 40} | {'b' * 40} | c | d | e | f |\n\n"
    f"```\n{'a line of code that does not end ' * 12}\n```\n\n"
    f"{'unbreakable' * 30}\n\nhttps://example.com/{'path/' * 60}"
)


def assert_accessible(chat: Chat, where: str) -> None:
    """No rule of axe-core is broken in a serious or critical way."""
    # What moves is between two colours: axe would measure the contrast of neither.
    eventually(
        lambda: chat.page.evaluate("document.getAnimations().every(a => a.playState !== 'running')"),
        message="nothing moves",
    )
    results = Axe().run(chat.page)
    serious = [found for found in results.response["violations"] if found["impact"] in ("serious", "critical")]
    broken = [(found["id"], found["help"], [node["html"][:200] for node in found["nodes"]]) for found in serious]
    assert not broken, f"{where}: {broken}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(scheme: Any, open_browser: OpenBrowser) -> None:
    chat = open_browser(color_scheme=scheme, reduced_motion="reduce")
    assert_accessible(chat, "empty")
    chat.ask("My name is Ada.")
    chat.ask("Show me Markdown")
    chat.get("tool-call").locator("summary").first.click()
    chat.send("Fail")
    expect(chat.get("retry")).to_be_visible()
    assert_accessible(chat, "a conversation, a table, a tool call, a failure")
    chat.get("conversations-toggle").click()
    expect(chat.get("conversation")).to_have_count(1)
    assert_accessible(chat, "the list")
    chat.page.keyboard.press("Escape")
    chat.get("details-toggle").click()
    expect(chat.get("chart-tokens").get_by_test_id("bar").first).to_be_visible()
    assert_accessible(chat, "the details")


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["360", "1280"])
def test_nothing_is_cut_off_and_everything_can_be_reached(size: Any, open_browser: OpenBrowser) -> None:
    chat = open_browser(**size, reduced_motion="reduce")
    chat.ask("My name is Ada.")
    chat.ask(WIDE_CONTENT)
    assert_fits(chat)
    chat.get("input").fill("something to send")
    assert_reachable(chat, "close", "new-chat", "conversations-toggle", "details-toggle", "theme", "input", "send")
    for control in ("copy", "thumb-up", "thumb-down"):
        chat.messages("assistant").last.get_by_test_id(control).click(trial=True)
    chat.get("tool-call").locator("summary").first.click()
    assert_fits(chat)

    chat.get("conversations-toggle").click()
    expect(chat.get("conversation")).to_have_count(1)
    assert_fits(chat)
    assert_reachable(chat, "conversation-search", "conversation-open", "conversation-delete")
    chat.page.keyboard.press("Escape")

    chat.get("details-toggle").click()
    expect(chat.get("chart-tokens").get_by_test_id("bar").first).to_be_visible()
    assert_fits(chat)
    chat.get("state-editor").fill("{}")
    chat.get("metadata-editor").fill('{"title": "another"}')
    assert_reachable(chat, "state-editor", "state-save", "metadata-editor", "metadata-save", "chart-latency", "summary")


def assert_fits(chat: Chat) -> None:
    """Nothing is wider than the window, and nothing can be scrolled sideways but tables and code."""
    wider = chat.page.evaluate(
        """() => [document.documentElement, ...document.querySelectorAll('body, body *')].filter(element => {
            if (!element.checkVisibility({visibilityProperty: true})) return false
            const overflow = getComputedStyle(element).overflowX
            const sideways = element.scrollWidth > element.clientWidth + 1
            const scrolls = sideways && (overflow === 'auto' || overflow === 'scroll')
            const page = element === document.documentElement || element === document.body
            return page ? sideways : scrolls && !element.matches('pre, pre *, table, :has(> table), :has(> pre)')
        }).map(element => element.outerHTML.slice(0, 200))"""
    )
    assert wider == []
    width = chat.page.viewport_size
    assert width is not None
    box = chat.get("panel").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width["width"]


def assert_reachable(chat: Chat, *controls: str) -> None:
    """Each can be scrolled to, and a click there would hit it and nothing that covers it."""
    for control in controls:
        chat.get(control).first.scroll_into_view_if_needed()
        chat.get(control).first.click(trial=True)


def test_on_a_phone_the_panel_is_the_screen(open_browser: OpenBrowser) -> None:
    chat = open_browser(**PHONE)
    eventually(
        lambda: chat.get("panel").bounding_box() == {"x": 0, "y": 0, "width": 360, "height": 740},
        message="the panel fills the screen",
    )
    chat.get("close").click()
    expect(chat.get("panel")).to_be_hidden()
    expect(chat.get("fab")).to_be_in_viewport()


def tab_to(chat: Chat, test_id: str) -> None:
    """Press Tab until something has the focus."""
    wanted = chat.get(test_id)
    for _ in range(60):
        if wanted.first.evaluate("element => element === document.activeElement"):
            return
        chat.page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not lead to {test_id}")


def test_everything_works_by_keyboard(chat: Chat, gate: Gate) -> None:
    keyboard = chat.page.keyboard
    chat.page.goto(chat.url)
    expect(chat.get("fab").or_(chat.get("panel")).filter(visible=True).first).to_be_visible()
    if chat.get("panel").is_visible():
        keyboard.press("Escape")
        expect(chat.get("panel")).to_be_hidden()
    tab_to(chat, "fab")
    keyboard.press("Enter")
    expect(chat.get("input")).to_be_focused()

    keyboard.type("repeat: two")
    keyboard.press("Shift+Enter")
    keyboard.type("lines")
    keyboard.press("Enter")
    chat.answered()
    expect(chat.answer()).to_contain_text("lines")
    expect(chat.get("input")).to_be_focused()

    gate.hold(after=4)
    keyboard.type("Tell me a long story")
    keyboard.press("Enter")
    expect(chat.answer()).to_contain_text("Chapter")
    tab_to(chat, "stop")
    keyboard.press("Enter")
    chat.answered()
    gate.open()
    expect(chat.get("input")).to_be_focused()

    tab_to(chat, "new-chat")
    keyboard.press("Enter")
    expect(chat.messages()).to_have_count(0)
    tab_to(chat, "conversations-toggle")
    keyboard.press("Enter")
    expect(chat.get("conversation")).to_have_count(1)
    tab_to(chat, "conversation-open")
    keyboard.press("Enter")
    expect(chat.messages()).to_have_count(4)

    tab_to(chat, "details-toggle")
    keyboard.press("Enter")
    expect(chat.get("details")).to_be_visible()
    tab_to(chat, "state-editor")
    keyboard.type(" ")
    tab_to(chat, "metadata-editor")
    keyboard.press("Escape")
    expect(chat.get("details")).to_be_hidden()
    expect(chat.get("details-toggle")).to_be_focused()
    if chat.get("panel").is_visible():
        keyboard.press("Escape")
    expect(chat.get("panel")).to_be_hidden()
    expect(chat.get("fab")).to_be_focused()


def test_the_focus_is_seen(chat: Chat) -> None:
    chat.ask("repeat: hello")
    for control in ("close", "new-chat", "copy", "input"):
        tab_to(chat, control)
        seen = chat.get(control).first.evaluate(
            """element => {
                const outlined = node => {
                    const style = getComputedStyle(node)
                    return style.outlineStyle !== 'none' && style.outlineWidth !== '0px' || style.boxShadow !== 'none'
                }
                return outlined(element) || outlined(element.parentElement)
            }"""
        )
        assert seen, f"nothing shows that {control} has the focus"


def test_dark_mode_is_remembered(open_browser: OpenBrowser) -> None:
    chat = open_browser(color_scheme="light")

    def background() -> str:
        return str(chat.get("panel").evaluate("panel => getComputedStyle(panel).backgroundColor"))

    light = background()
    chat.get("theme").click()
    eventually(lambda: background() != light, message="the panel is dark")
    chat.page.evaluate("document.getAnimations().forEach(animation => animation.finish())")
    dark = background()
    chat.reload()
    eventually(lambda: background() == dark, message="the panel is dark again")
    chat.get("theme").click()
    eventually(lambda: background() == light, message="the panel is light again")
    assert open_browser(color_scheme="dark").get("panel").evaluate("p => getComputedStyle(p).backgroundColor") == dark


def test_a_reader_is_left_in_peace_and_led_back(chat: Chat, gate: Gate) -> None:
    chat.ask("Tell me a long story")
    log = chat.get("messages")
    at_the_end = "log => Math.abs(log.scrollHeight - log.clientHeight - log.scrollTop) < 4"
    eventually(lambda: log.evaluate(at_the_end), message="the log follows what is said")

    gate.hold(after=40)
    chat.send("Tell me a long story")
    expect(chat.messages("assistant")).to_have_count(2)
    assert gate.waiting.wait(30)
    log.hover()
    chat.page.mouse.wheel(0, -700)
    expect(chat.get("jump-to-latest")).to_be_visible()
    read_at = log.evaluate("log => log.scrollTop")
    length = log.evaluate("log => log.scrollHeight")
    gate.hold(after=150)
    eventually(lambda: log.evaluate("log => log.scrollHeight") > length + 40, message="the answer has grown")
    assert log.evaluate("log => log.scrollTop") == pytest.approx(read_at, abs=2)

    chat.get("jump-to-latest").click()
    eventually(lambda: log.evaluate(at_the_end), message="the reader is at the end")
    gate.open()
    chat.answered()
    eventually(lambda: log.evaluate(at_the_end), message="the log follows again")
    expect(chat.get("jump-to-latest")).to_be_hidden()


def test_who_wants_no_motion_sees_none(open_browser: OpenBrowser, gate: Gate) -> None:
    chat = open_browser(reduced_motion="reduce")
    gate.hold()
    chat.send("repeat: hello")
    expect(chat.get("typing")).to_be_visible()
    moving = "document.getAnimations().filter(animation => animation.playState === 'running').length"
    eventually(lambda: chat.page.evaluate(moving) == 0, message="nothing moves while an answer is waited for")
    gate.open()
    chat.answered()
    chat.get("details-toggle").click()
    expect(chat.get("details")).to_be_visible()
    eventually(lambda: chat.page.evaluate(moving) == 0, message="nothing moves")


def test_a_screen_reader_is_told_what_things_are(chat: Chat) -> None:
    expect(chat.get("messages")).to_have_attribute("role", "log")
    chat.ask("repeat: hello")
    toggles = ("conversations-toggle", "details-toggle")
    for control in ("close", "send", "new-chat", "theme", "copy", "thumb-up", "input", *toggles):
        expect(chat.get(control).first).to_have_accessible_name(re.compile(r"\w{3}"))
    for control in toggles:
        expect(chat.get(control)).to_have_attribute("aria-expanded", "false")
