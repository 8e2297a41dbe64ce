"""A conversation on the page is the stored one: whatever happens, nothing is lost and nothing is there twice."""

import re
from collections.abc import Iterator

import pytest
from example_fastapi_streaming import COLLECTION, DATABASE
from playwright.sync_api import expect
from pymongo import MongoClient
from support.chat_page import Chat
from support.gated_model import Gate
from support.playground import SECRET, BackendProcess, Playground, served_frontend
from support.waiting import eventually

from browser.conftest import OpenBrowser
from mongodb_session_manager.local import LocalMongoDB

COUNTED = " ".join(f"word{number}" for number in range(60))


def begin_to_answer(chat: Chat, gate: Gate) -> None:
    """Ask, and hold the answer after some words."""
    gate.hold(after=3)
    chat.send(f"repeat: {COUNTED}")
    expect(chat.answer()).to_contain_text("word1")


def assert_shown_again(chat: Chat, shown: list[str]) -> None:
    """After a reload the page shows the same."""
    chat.reload()
    expect(chat.messages()).to_have_count(len(shown))
    assert chat.texts() == shown


def test_an_answer_is_seen_growing_while_the_model_still_speaks(chat: Chat, gate: Gate) -> None:
    gate.hold(after=3)
    chat.send(f"repeat: {COUNTED}")
    seen: list[str] = []
    for _ in range(5):
        known = len(seen[-1]) if seen else 0
        expect(chat.answer()).to_have_text(re.compile(rf"^.{{{known}}}\s*\S"))
        assert gate.waiting.wait(30)
        # What has been let through is all that can be shown.
        seen.append(chat.answer().inner_text().strip())
        expect(chat.get("stop")).to_be_visible()
        gate.hold(after=3)
    assert seen == sorted(set(seen), key=len), "each look saw more than the one before"
    assert all(COUNTED.startswith(text) and text != COUNTED for text in seen)
    gate.open()
    chat.answered()
    expect(chat.answer()).to_have_text(COUNTED)


def test_a_reload_shows_the_same_conversation_once(chat: Chat, playground: Playground) -> None:
    chat.ask("My name is Ada.")
    chat.ask("What is my name?")
    chat.ask("Show me Markdown")
    shown = chat.texts()
    ids = [message.get_attribute("data-message-id") for message in chat.messages().all()]
    assert len(set(ids)) == len(ids)
    assert "Your name is Ada." in shown[3]
    conversation = chat.stored_in_the_browser()

    assert_shown_again(chat, shown)
    assert [message.get_attribute("data-message-id") for message in chat.messages().all()] == ids
    assert chat.stored_in_the_browser() == conversation
    assert "Your name is Ada." in chat.ask("What is my name?").inner_text()


def test_a_double_click_asks_once(chat: Chat, playground: Playground) -> None:
    chat.get("input").fill("repeat: once and completely")
    chat.get("send").dblclick()
    expect(chat.answer()).to_have_text("once and completely")
    chat.answered()

    # Twice in one task of the browser: nothing that the first click brings about is painted yet.
    chat.get("input").fill("repeat: once more")
    chat.get("send").evaluate("button => { button.click(); button.click(); }")
    expect(chat.answer()).to_have_text("once more")
    chat.answered()

    chat.get("input").fill("repeat: by keyboard")
    chat.page.keyboard.press("Enter")
    chat.page.keyboard.press("Enter")
    expect(chat.answer()).to_have_text("by keyboard")
    chat.answered()

    said = ["once and completely", "once more", "by keyboard"]
    stored = playground.stored_texts(chat.conversation_id)
    assert stored == [text for answer in said for text in (f"repeat: {answer}", answer)]
    expect(chat.messages()).to_have_count(6)


def test_what_was_said_until_stop_is_kept(chat: Chat, gate: Gate, playground: Playground) -> None:
    gate.hold(after=5)
    chat.send(f"repeat: {COUNTED}")
    expect(chat.answer()).to_contain_text("word2")
    chat.get("stop").click()
    chat.answered()
    gate.open()

    shown = chat.answer().inner_text().strip()
    chat.reload()
    expect(chat.messages()).to_have_count(2)
    kept = chat.answer().inner_text().strip()
    assert COUNTED.startswith(kept)
    assert kept.startswith(shown)
    assert kept != COUNTED
    assert [text.strip() for text in playground.stored_texts(chat.conversation_id, "assistant")] == [kept]

    expect(chat.ask("repeat: and on it goes")).to_have_text("and on it goes")
    expect(chat.messages()).to_have_count(4)


@pytest.mark.parametrize("midway", ["", " midway"])
def test_retry_after_a_failure_asks_nothing_twice(midway: str, chat: Chat, playground: Playground) -> None:
    chat.ask("repeat: before")
    chat.send(f"Fail{midway}")
    expect(chat.get("notice")).to_have_attribute("data-kind", "error")
    expect(chat.messages("user")).to_have_count(2)

    chat.get("retry").click()
    expect(chat.answer()).to_contain_text("This time it worked.")
    chat.answered()

    expect(chat.get("notice").and_(chat.page.locator("[data-kind=error]"))).to_be_hidden()
    expect(chat.get("retry")).to_be_hidden()
    stored = playground.stored_texts(chat.conversation_id, "user")
    assert stored == ["repeat: before", f"Fail{midway}"]
    assert_shown_again(chat, chat.texts())


def test_a_question_left_without_an_answer_can_be_asked_again_after_a_reload(
    chat: Chat, playground: Playground
) -> None:
    chat.send("Fail")
    expect(chat.get("retry")).to_be_visible()
    chat.reload()
    expect(chat.messages("user")).to_have_count(1)
    chat.get("retry").click()
    expect(chat.answer()).to_contain_text("This time it worked.")
    chat.answered()
    assert playground.stored_texts(chat.conversation_id, "user") == ["Fail"]


def test_without_a_network_nothing_typed_is_lost(chat: Chat, playground: Playground) -> None:
    chat.watch.expect("net::ERR_")
    chat.ask("repeat: with a network")
    chat.page.context.set_offline(True)
    notice = chat.page.locator('[data-testid="notice"][data-kind="offline"]')
    expect(notice).to_be_visible()
    chat.send("repeat: again with a network")
    expect(chat.messages("user")).to_have_count(2)

    chat.page.context.set_offline(False)
    expect(notice).to_be_hidden()
    chat.get("retry").click()
    expect(chat.answer()).to_have_text("again with a network")
    chat.answered()
    assert playground.stored_texts(chat.conversation_id) == [
        "repeat: with a network",
        "with a network",
        "repeat: again with a network",
        "again with a network",
    ]
    expect(chat.messages()).to_have_count(4)


def test_a_second_tab_is_told_to_wait_and_recovers(chat: Chat, gate: Gate, playground: Playground) -> None:
    chat.watch.expect("status of 409")
    chat.ask("repeat: hello")
    other = chat.another_tab()
    expect(other.messages()).to_have_count(2)
    begin_to_answer(chat, gate)

    with other.page.expect_response(lambda response: response.status == 409) as refused:
        other.send("repeat: from the second tab")
    owner, _, _ = playground.stored(chat.conversation_id)["_id"].partition(".")
    assert owner not in refused.value.text(), "what is kept from scripts in a cookie is not told in an error"
    notice = other.page.locator('[data-testid="notice"][data-kind="busy"]')
    expect(notice).to_be_visible()
    gate.open()
    chat.answered()
    expect(chat.answer()).to_have_text(COUNTED)

    # It asks again by itself, or when it is told to.
    retry = other.get("retry")
    answered = other.messages("assistant").filter(has_text="from the second tab")
    expect(answered.or_(retry).filter(visible=True).first).to_be_visible()
    if retry.is_visible():
        retry.click()
    expect(answered).to_have_count(1)
    other.answered()
    expect(notice).to_be_hidden()
    said = playground.stored_texts(chat.conversation_id, "user")
    assert said == ["repeat: hello", f"repeat: {COUNTED}", "repeat: from the second tab"]
    other.reload()
    expect(other.messages()).to_have_count(6)


def test_a_question_that_another_tab_sees_answered_is_not_asked_again(
    chat: Chat, gate: Gate, playground: Playground
) -> None:
    chat.ask("repeat: hello")
    begin_to_answer(chat, gate)
    other = chat.another_tab()
    expect(other.get("retry")).to_be_enabled()  # What it reads is a question without an answer.
    gate.open()
    chat.answered()

    other.get("retry").click()
    expect(other.answer()).to_have_text(COUNTED)
    expect(other.messages()).to_have_count(4)
    assert playground.stored_texts(chat.conversation_id, "user") == ["repeat: hello", f"repeat: {COUNTED}"]


def test_what_was_refused_because_another_tab_was_faster_is_there_after_a_reload(
    chat: Chat, gate: Gate, playground: Playground
) -> None:
    chat.watch.expect("status of 409")
    chat.ask("repeat: hello")
    other = chat.another_tab()
    begin_to_answer(chat, gate)
    other.send("repeat: from the second tab")
    expect(other.get("retry")).to_be_visible()
    gate.open()
    chat.answered()

    other.reload()
    expect(other.get("retry")).to_be_enabled()
    other.get("retry").click()
    expect(other.messages("assistant").last).to_contain_text("from the second tab")
    other.answered()
    said = ["repeat: hello", f"repeat: {COUNTED}", "repeat: from the second tab"]
    assert playground.stored_texts(chat.conversation_id, "user") == said


@pytest.mark.parametrize("spoilt", ["", "null", "[]", "17", '"x"', "{", '{"a": {"b": 1}}'])
def test_whatever_stands_in_the_browser_the_page_can_be_used(spoilt: str, chat: Chat) -> None:
    chat.ask("repeat: before")
    chat.page.evaluate(
        """spoilt => { for (const storage of [localStorage, sessionStorage])
            for (const key of ["session", "drafts", "unsent", "theme", "open"])
                storage.setItem(`chat.${key}`, spoilt) }""",
        spoilt,
    )
    chat.reload()
    expect(chat.ask("repeat: after")).to_have_text("after")


def test_a_typed_draft_survives_a_reload_and_is_gone_once_sent(chat: Chat) -> None:
    chat.get("input").fill("half a thought")
    chat.reload()
    expect(chat.get("input")).to_have_value("half a thought")
    chat.ask("repeat: done")
    expect(chat.get("input")).to_have_value("")
    chat.reload()
    expect(chat.messages()).to_have_count(2)
    expect(chat.get("input")).to_have_value("")


def test_a_tool_call_is_shown_with_what_went_in_and_what_came_out(chat: Chat) -> None:
    chat.ask("Note: buy milk")
    for _ in range(2):
        call = chat.get("tool-call")
        expect(call).to_have_count(1)
        expect(call).to_contain_text("add_note")
        if call.get_attribute("open") is None:
            call.locator("summary").click()
        expect(call).to_contain_text("buy milk")
        expect(call).to_contain_text("added")
        expect(chat.answer()).to_contain_text("It is noted.")
        chat.reload()
        expect(chat.messages().first).to_be_visible()


def test_copy_copies_the_markdown(chat: Chat) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.ask("repeat: some **strong** words")
    expect(chat.answer()).to_have_text("some strong words")
    chat.messages("assistant").last.hover()
    chat.messages("assistant").last.get_by_test_id("copy").click()
    eventually(
        lambda: chat.page.evaluate("navigator.clipboard.readText()") == "some **strong** words",
        message="the clipboard holds the Markdown",
    )


def test_thumbs_are_stored_with_the_message_and_shown_again(chat: Chat, playground: Playground) -> None:
    chat.ask("repeat: one")
    chat.ask("repeat: two")
    first = chat.messages("assistant").first
    first.hover()
    first.get_by_test_id("thumb-up").click()
    expect(first.get_by_test_id("thumb-up")).to_have_attribute("aria-pressed", "true")
    chat.reload()
    expect(first.get_by_test_id("thumb-up")).to_have_attribute("aria-pressed", "true")
    expect(chat.messages("assistant").last.get_by_test_id("thumb-up")).to_have_attribute("aria-pressed", "false")

    first.hover()
    first.get_by_test_id("thumb-down").click()
    expect(first.get_by_test_id("thumb-down")).to_have_attribute("aria-pressed", "true")
    expect(first.get_by_test_id("thumb-up")).to_have_attribute("aria-pressed", "false")

    def stored() -> list[tuple[str, int]]:
        feedbacks = playground.stored(chat.conversation_id)["feedbacks"]
        return [(feedback["rating"], feedback["message_id"]) for feedback in feedbacks]

    eventually(lambda: stored() == [("up", 1), ("down", 1)], message="both thumbs are stored")


@pytest.fixture
def backend(standalone: LocalMongoDB) -> Iterator[BackendProcess]:
    process = BackendProcess(MONGODB_URI=standalone.uri, CHAT_SECRET=SECRET)
    yield process
    process.end()


def test_a_killed_backend_is_told_of_and_resumed(
    backend: BackendProcess, open_browser: OpenBrowser, standalone: LocalMongoDB
) -> None:
    with served_frontend(backend.port) as url:
        backend.start("--frontend-origin", url, pace_ms=50)
        chat = open_browser(url, backend.url)
        chat.ask("My name is Ada.")
        chat.watch.expect("net::ERR_")  # which of them depends on what was under way
        chat.send("Tell me a long story")
        expect(chat.answer()).to_contain_text("Once")
        backend.end()
        expect(chat.get("notice")).to_have_attribute("data-kind", "offline")
        expect(chat.get("stop")).to_be_hidden()

        backend.start("--frontend-origin", url, pace_ms=0)
        expect(chat.get("notice")).to_be_hidden()
        # The turn that died keeps others out until its lease has run out: 20 s, which this test does not wait for.
        with MongoClient(standalone.uri) as client:
            client[DATABASE][COLLECTION].update_many({}, {"$unset": {"lease": 1}})
        chat.get("retry").click()
        expect(chat.answer()).to_contain_text("another hand.")
        chat.answered()
        assert "Your name is Ada." in chat.ask("What is my name?").inner_text()

        shown = chat.texts()
        assert shown[0::2] == ["My name is Ada.", "Tell me a long story", "What is my name?"]
        assert [text.count("Chapter 8.") for text in shown] == [0, 0, 0, 1, 0, 0]
        assert_shown_again(chat, shown)
