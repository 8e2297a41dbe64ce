"""Past conversations and a conversation's details: what the page shows and changes is what MongoDB holds."""

import re
from typing import Any

from playwright.sync_api import expect
from support.chat_page import Chat
from support.gated_model import Gate
from support.playground import Playground
from support.waiting import eventually


def test_conversations_are_listed_resumed_and_found_by_title_and_by_what_was_said(chat: Chat) -> None:
    chat.ask("repeat: the walrus sings")
    walrus = chat.conversation_id
    chat.get("new-chat").click()
    expect(chat.messages()).to_have_count(0)
    chat.ask("repeat: the penguin dances")
    penguin = chat.conversation_id
    assert walrus != penguin

    listed = chat.get("conversation")
    chat.get("conversations-toggle").click()
    expect(listed).to_have_count(2)
    assert [item.get_attribute("data-id") for item in listed.all()] == [penguin, walrus], "the newest first"

    search = chat.get("conversation-search")
    search.fill("walrus")
    expect(listed).to_have_count(1)
    expect(listed).to_have_attribute("data-id", walrus)
    search.fill("neither")
    expect(listed).to_have_count(0)
    search.fill("")
    expect(listed).to_have_count(2)

    listed.last.get_by_test_id("conversation-open").click()
    expect(chat.messages()).to_have_count(2)
    expect(chat.answer()).to_have_text("the walrus sings")
    expect(chat.ask("repeat: and on it goes")).to_have_text("and on it goes")
    assert chat.conversation_id == walrus


def test_a_deleted_conversation_is_gone_everywhere(chat: Chat, playground: Playground) -> None:
    chat.ask("repeat: to be kept")
    kept = chat.conversation_id
    chat.get("new-chat").click()
    chat.ask("repeat: to be deleted")
    deleted = playground.stored(chat.conversation_id)["_id"]
    assert documents_of(playground, deleted)

    show_list(chat)
    item = chat.page.locator(f'[data-testid="conversation"][data-id="{chat.conversation_id}"]')
    item.get_by_test_id("conversation-delete").click()
    # One click must not cost a conversation.
    expect(item).to_contain_text("Delete for good?")
    assert documents_of(playground, deleted)
    item.get_by_test_id("conversation-delete-confirm").click()
    expect(item).to_have_count(0)
    expect(chat.get("conversation")).to_have_count(1)
    expect(chat.get("conversation")).to_have_attribute("data-id", kept)
    expect(chat.messages()).to_have_count(0)
    assert documents_of(playground, deleted) == []


def documents_of(playground: Playground, session_id: str) -> list[Any]:
    """What names a session, in any collection."""
    return [
        (name, document["_id"])
        for name in playground.database.list_collection_names()
        for document in playground.database[name].find()
        if session_id in str(document)
    ]


def test_the_charts_show_the_stored_numbers(chat: Chat, playground: Playground) -> None:
    chat.ask("My name is Ada.")  # two model calls
    chat.ask("repeat: a few words")
    chat.ask("Show me Markdown")
    turns: list[dict[str, int]] = []
    for message in playground.stored_messages(chat.conversation_id):
        if message["role"] == "user" and "text" in message["content"][0]:
            turns.append({"input": 0, "output": 0, "latency": 0})
        if measured := message.get("event_loop_metrics"):
            turns[-1]["input"] += measured["accumulated_usage"]["inputTokens"]
            turns[-1]["output"] += measured["accumulated_usage"]["outputTokens"]
            turns[-1]["latency"] += measured["accumulated_metrics"]["latencyMs"]
    assert len(turns) == 3
    assert all(turn["output"] > 0 for turn in turns)

    def shown() -> list[dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for chart in ("chart-tokens", "chart-latency"):
            for bar in chat.get(chart).get_by_test_id("bar").all():
                kind = bar.get_attribute("data-kind") or "latency"
                value = float(bar.get_attribute("data-value") or "nan")
                found.setdefault(bar.get_attribute("data-turn") or "", {})[kind] = value
        return [found[turn] for turn in sorted(found, key=int)]

    for _ in range(2):
        with chat.details():
            eventually(lambda: shown() == turns, message=f"the charts show {turns}")
            summary = chat.get("summary").inner_text().replace(",", "").replace("\u202f", "").replace(" ", "")
            for kind in ("input", "output"):
                assert str(sum(turn[kind] for turn in turns)) in summary
            heights = [
                float(bar.evaluate("bar => bar.getBoundingClientRect().height"))
                for bar in chat.get("chart-latency").get_by_test_id("bar").all()
            ]
            assert all(height > 0 for height in heights)
            by_value = sorted(range(3), key=lambda at: turns[at]["latency"])
            assert sorted(heights) == [heights[at] for at in by_value], "a larger number has a larger bar"
            expect(chat.get("session-id")).to_contain_text(chat.conversation_id)
        chat.reload()
        expect(chat.answer()).to_contain_text("A heading")


def test_the_charts_follow_the_conversation(chat: Chat) -> None:
    chat.ask("repeat: one")
    with chat.details():
        expect(chat.get("chart-latency").get_by_test_id("bar")).to_have_count(1)
        chat.ask("repeat: two")
        expect(chat.get("chart-latency").get_by_test_id("bar")).to_have_count(2)
        expect(chat.get("chart-tokens").get_by_test_id("bar")).to_have_count(4)


def test_state_and_metadata_are_edited_and_stored(chat: Chat, playground: Playground) -> None:
    chat.ask("My name is Ada.")

    def state() -> Any:
        return playground.stored(chat.conversation_id)["agents"]["assistant"]["agent_data"]["state"]

    def metadata() -> Any:
        return playground.stored(chat.conversation_id)["metadata"]

    def save(what: str, value: str) -> None:
        chat.get(f"{what}-editor").fill(value)
        if chat.get(f"{what}-save").is_enabled():
            chat.get(f"{what}-save").click()

    chat.get("details-toggle").click()
    expect(chat.get("state-editor")).to_have_value(re.compile("Ada"))
    save("state", '{"name": "Grace", "notes": ["sail"]}')
    eventually(lambda: "Grace" in str(state()) and "sail" in str(state()), message="the state is stored")
    expect(chat.get("state-said")).to_have_text("Saved.")
    # The agent works with it.
    assert "Your name is Grace." in chat.ask("What is my name?").inner_text()

    before = state()
    for invalid in ('{"name": ', "[1, 2]", ""):
        save("state", invalid)
        expect(chat.get("state-said")).not_to_be_empty()
        expect(chat.get("state-editor")).to_have_attribute("aria-invalid", "true")
        expect(chat.get("state-editor")).to_have_value(invalid)
        assert state() == before

    save("metadata", '{"title": "Names", "plan": {"level": 2}}')
    eventually(lambda: metadata() == {"title": "Names", "plan": {"level": 2}}, message="the metadata is stored")
    expect(chat.get("metadata-said")).to_have_text("Saved.")
    save("metadata", '{"plan": {"level": 3}}')
    eventually(lambda: metadata() == {"plan": {"level": 3}}, message="what was left out is deleted")
    expect(chat.get("metadata-said")).to_have_text("Saved.")
    save("metadata", "no JSON")
    expect(chat.get("metadata-editor")).to_have_attribute("aria-invalid", "true")
    assert metadata() == {"plan": {"level": 3}}

    chat.reload()
    with chat.details():
        expect(chat.get("metadata-editor")).to_have_value(re.compile('"level": 3'))


def test_a_new_chat_begun_while_an_answer_streams_gets_nothing_of_it(
    chat: Chat, gate: Gate, playground: Playground
) -> None:
    gate.hold(after=5)
    chat.send("repeat: belongs to the first conversation only")
    expect(chat.answer()).to_contain_text("belongs")
    first = chat.conversation_id
    chat.get("new-chat").click()
    expect(chat.messages()).to_have_count(0)
    gate.open()
    expect(chat.ask("repeat: second")).to_have_text("second")
    assert chat.texts() == ["repeat: second", "second"]
    assert playground.stored_texts(chat.conversation_id) == ["repeat: second", "second"]
    show_list(chat)
    chat.page.locator(f'[data-id="{first}"]').get_by_test_id("conversation-open").click()
    expect(chat.answer()).to_contain_text("belongs")
    assert len(playground.stored_texts(first)) == 2


def show_list(chat: Chat) -> None:
    """Show the list of conversations, if it is not shown."""
    if not chat.get("conversations").is_visible():
        chat.get("conversations-toggle").click()
    expect(chat.get("conversations")).to_be_visible()
