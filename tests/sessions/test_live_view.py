"""The live view: what is live is stored beside the log, and nothing that was redacted comes back by it."""

import copy
from typing import Any

import pytest
from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall
from strands import Agent, ToolContext, tool
from strands.agent.conversation_manager import (
    NullConversationManager,
    SlidingWindowConversationManager,
    SummarizingConversationManager,
)
from strands.types.exceptions import ContextWindowOverflowException
from support.application import Application, both_durabilities, dialogue
from support.histories import SESSIONS, SMALL
from support.random_conversations import Guide

from mongodb_session_manager import UnstorableValueError

pytestmark = both_durabilities

FULL = ScriptedReply(error=ContextWindowOverflowException("full"))


def say(agent: Agent, *prompts: str) -> None:
    for prompt in prompts:
        agent(prompt)


def restored(app: Application, **options: Any) -> Agent:
    """The agent, as another process restores it."""
    return app.agent(app.process(), **options)


def window(size: int) -> dict[str, Any]:
    return {"conversation_manager": SlidingWindowConversationManager(window_size=size)}


# --- the log


def test_a_prompt_that_is_given_as_the_same_object_again_is_stored_each_time(app: Application, durability: str) -> None:
    manager, agent = app.opened("one", "two", "three", durability=durability)
    prompt: Any = [{"role": "user", "content": [{"text": "Check the queue."}]}]
    agent(prompt)
    agent(prompt)
    agent.messages.clear()
    agent(prompt)
    manager.flush()
    asked = ("user", "Check the queue.")
    assert app.dialogue() == [asked, ("assistant", "one"), asked, ("assistant", "two"), asked, ("assistant", "three")]
    assert restored(app).messages == agent.messages


def test_messages_that_no_event_tells_of_are_logged_as_context(app: Application, durability: str) -> None:
    manager, agent = app.opened("ok", durability=durability, interventions=[Guide()])
    agent("guide me")
    agent.messages.append({"role": "user", "content": [{"text": "By the way"}]})
    manager.sync_agent(agent)
    manager.flush()
    origins = [message.get("origin") for message in app.messages()]
    assert origins == [None, "context", None, "context"]
    assert restored(app).messages == agent.messages
    assert "live" not in app.record(), "in the order of the log nothing has to be said of what is live"


def test_what_is_said_after_an_undo_names_what_it_follows(app: Application, durability: str) -> None:
    manager, agent = app.opened("a", "b", "c", durability=durability)
    say(agent, "one", "two")
    del agent.messages[2:]
    agent("two, please")
    manager.flush()
    assert [message.get("parent", "before it") for message in app.messages()] == [
        *["before it"] * 4,
        1,
        "before it",
    ]
    assert restored(app).messages == agent.messages


# --- what is live


def test_a_plain_sliding_window_is_one_number(app: Application, durability: str) -> None:
    manager, agent = app.opened(*"abcd", durability=durability, **window(4))
    say(agent, "one", "two", "three", "four")
    manager.flush()
    assert app.record()["live"].keys() == {"tail", "removed"}
    assert restored(app, **window(4)).messages == agent.messages


def test_what_is_taken_out_by_hand_stays_out(app: Application, durability: str) -> None:
    manager, agent = app.opened(*"abcdef", durability=durability)
    say(agent, *"abcdef")
    agent.conversation_manager.reduce_context(agent)
    del agent.messages[2:4]
    manager.close()
    assert len(agent.messages) == 8
    assert restored(app).messages == agent.messages


def test_an_agent_that_holds_more_than_its_window_is_restored_as_it_is(app: Application, durability: str) -> None:
    manager, agent = app.opened("a", "b", durability=durability, **window(2))
    agent("one")
    for text in ("two", "three"):
        agent.messages.append({"role": "user", "content": [{"text": text}]})
    manager.sync_agent(agent)
    manager.flush()
    again = restored(app, **window(2))
    assert again.messages == agent.messages
    again("four")  # Then Strands trims it, as it would have trimmed the live one.
    assert restored(app, **window(2)).messages == again.messages


def test_a_summary_is_stored_once_and_is_the_very_object_of_its_manager(app: Application, durability: str) -> None:
    def summarizing() -> dict[str, Any]:
        return {"conversation_manager": SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2)}

    manager, agent = app.opened("a", "b", FULL, "A summary.", "c", durability=durability, **summarizing())
    say(agent, "one", "two", "three")
    manager.flush()
    again = restored(app, **summarizing())
    assert again.messages == agent.messages
    assert again.messages[0] is again.conversation_manager.get_state()["summary_message"]
    assert app.record()["live"]["before"] == [{"state": "summary_message"}]
    other = restored(app, conversation_manager=NullConversationManager())
    assert other.messages == agent.messages, "whatever conversation manager goes on"


def test_a_view_of_a_program_that_knows_none_does_not_count(app: Application, durability: str) -> None:
    manager, agent = app.opened(*"abcd", durability=durability, **window(4))
    say(agent, "one", "two", "three", "four")
    manager.close()
    moved = {"agents.a.agent_data.conversation_manager_state.removed_message_count": 4}
    app.database[SESSIONS].update_one({"_id": "s"}, {"$set": moved})
    assert dialogue(restored(app, **window(4)).messages) == app.dialogue()[4:]


def test_a_new_conversation_manager_takes_over_what_is_live(app: Application, durability: str) -> None:
    manager, agent = app.opened(*"abcd", durability=durability, **window(4))
    say(agent, "one", "two", "three")
    del agent.messages[:2]
    manager.close()
    other = restored(app, model=OfflineScriptedModel(lambda _: "ok"), conversation_manager=NullConversationManager())
    assert other.messages == agent.messages
    other("four")
    again = restored(app, conversation_manager=NullConversationManager())
    assert again.messages == other.messages


def test_a_message_that_was_refused_is_in_no_view_and_later_turns_go_on(app: Application, durability: str) -> None:
    model = OfflineScriptedModel(lambda _: "ok")
    manager, agent = app.opened(durability=durability, model=model, **window(4))
    say(agent, "one", "two")
    agent.messages.append({"role": "user", "content": [{"text": object()}]})  # type: ignore[typeddict-item]
    with pytest.raises(UnstorableValueError):
        manager.sync_agent(agent)
    del agent.messages[:2]
    manager.sync_agent(agent)
    manager.flush()
    del agent.messages[-1]
    say(agent, "three", "four")
    manager.flush()
    assert restored(app, **window(4)).messages == agent.messages


# --- by hand


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_message_by_hand_while_a_tool_runs_does_not_cut_its_result_off(
    app: Application, durability: str, role: Any
) -> None:
    manager = app.manager(durability=durability)

    @tool(context=True)
    def pay(tool_context: ToolContext) -> str:
        """Pay."""
        manager.append_message({"role": role, "content": [{"text": "One moment"}]}, tool_context.agent)
        return "paid"

    agent = app.agent(manager, ToolCall("pay"), "Done.", tools=[pay])
    agent("Pay 5")
    manager.flush()
    again = restored(app, tools=[pay])
    assert dialogue(again.messages)[:2] == [("user", "Pay 5"), (role, "One moment")]
    assert [again.messages[0], *again.messages[2:]] == agent.messages


@pytest.mark.parametrize(
    ("same", "live_first"),
    [("the object", True), ("the object", False), ("the tracking id", False), ("the content", False)],
)
def test_a_message_that_is_appended_by_hand_and_to_the_live_conversation_is_stored_once(
    app: Application, durability: str, same: str, live_first: bool
) -> None:
    manager, agent = app.opened("ok", "sure", durability=durability)
    agent("hello")
    message: Any = {"role": "assistant", "content": [{"text": "By the way"}]}
    if same == "the tracking id":
        message["tracking_id"] = "t"
    live = message if same == "the object" else copy.deepcopy(message)
    if live_first:
        agent.messages.append(live)
    manager.append_message(message, agent)
    if not live_first:
        agent.messages.append(live)
    agent("go on")
    manager.flush()
    assert [text for _, text in app.dialogue()] == ["hello", "ok", "By the way", "go on", "sure"]
    assert restored(app).messages == agent.messages


# --- redaction


def edited(agent: Agent) -> None:
    """The application has changed a live message; what is logged stays as it was said."""
    agent.messages[0]["content"] = [{"text": "my PIN is 1234 (checked)"}]


def redaction(agent: Agent, index: int = 0) -> Any:
    """What replaces the message that has the same tracking id."""
    named = {"tracking_id": agent.messages[index]["tracking_id"]}
    return {"role": "user", "content": [{"text": "[redacted]"}], **named}


def test_a_redaction_takes_the_live_form_along(app: Application, durability: str) -> None:
    manager, agent = app.opened("ok", "sure", durability=durability)
    agent("my PIN is 1234")
    edited(agent)
    manager.sync_agent(agent)
    manager.flush()
    assert app.record()["live"]["held"].keys() == {"0"}
    manager.redact_latest_message(redaction(agent), agent)
    manager.flush()
    app.nothing_at_rest("1234")
    agent("go on")
    manager.flush()
    app.nothing_at_rest("1234")


def test_what_another_process_has_redacted_is_not_brought_back_by_a_view(app: Application, durability: str) -> None:
    manager, agent = app.opened("ok", "sure", durability=durability)
    agent("my PIN is 1234")
    manager.flush()
    process = app.process(durability=durability)
    other = app.agent(process)
    edited(agent)
    process.redact_latest_message(redaction(other), other)
    process.flush()
    agent("go on")
    manager.sync_agent(agent)
    manager.flush()
    app.nothing_at_rest("1234")
    agent.messages[0]["content"] = [{"text": "1234 it was"}]
    manager.sync_agent(agent)
    manager.flush()
    app.nothing_at_rest("1234")
    assert dialogue(restored(app).messages)[0] == ("user", "[redacted]")


def test_a_redaction_takes_along_a_live_form_that_waits_for_the_end_of_its_turn(
    app: Application, durability: str
) -> None:
    manager = app.manager(durability=durability)

    @tool(context=True)
    def edit(tool_context: ToolContext) -> str:
        """Edit the prompt."""
        edited(tool_context.agent)
        return "edited"

    @tool(context=True)
    def redact(tool_context: ToolContext) -> str:
        """Redact the prompt."""
        manager.redact_latest_message(redaction(tool_context.agent), tool_context.agent)
        return "redacted"

    agent = app.agent(manager, ToolCall("edit"), ToolCall("redact"), "Done.", tools=[edit, redact])
    agent("my PIN is 1234")
    manager.flush()
    app.nothing_at_rest("1234")


def test_a_redaction_by_a_program_that_knows_no_views_takes_the_live_forms_along(
    app: Application, durability: str
) -> None:
    manager, agent = app.opened("ok", "sure", durability=durability)
    agent("my PIN is 1234")
    edited(agent)
    manager.close()
    text = {"content": [{"text": "[redacted]"}]}
    changed = {f"agents.a.messages.0.{name}": value for name, value in {**text, "redact_message": text}.items()}
    counted = {"agents.a.rewrites": 1, "agents.a.edits": 1}
    app.database[SESSIONS].update_one({"_id": "s"}, {"$set": changed, "$inc": counted})
    again = restored(app)
    assert dialogue(again.messages)[0] == ("user", "[redacted]")


@pytest.mark.parametrize("restarts", [False, True], ids=["here", "in another process"])
def test_a_snapshot_from_before_a_redaction_does_not_bring_the_text_back(
    app: Application, durability: str, restarts: bool
) -> None:
    model = OfflineScriptedModel(lambda _: "ok")
    manager, agent = app.opened(durability=durability, model=model)
    agent("my PIN is 1234")
    snapshots = [agent.take_snapshot(preset="session")]
    edited(agent)
    manager.sync_agent(agent)
    snapshots.append(agent.take_snapshot(preset="session"))
    manager.redact_latest_message(redaction(agent), agent)
    if restarts:
        manager.close()
        manager, agent = app.opened(durability=durability, model=model)
    else:
        agent.messages.clear()
        manager.sync_agent(agent)
    for snapshot in snapshots:
        agent.load_snapshot(copy.deepcopy(snapshot))
        agent("go on")
        manager.flush()
        app.nothing_at_rest("1234")


def test_a_redaction_reaches_a_message_that_was_merged_with_another(app: Application, durability: str) -> None:
    manager, agent = app.opened("ok", "sure", durability=durability)
    say(agent, "hello", "my PIN is 1234")
    first, _, secret, last = agent.messages
    agent.messages[:] = [{**first, "content": [*first["content"], *secret["content"]]}, last]
    manager.sync_agent(agent)
    manager.flush()
    assert restored(app).messages == agent.messages
    other = restored(app)
    merged = redaction(other)
    merged["tracking_id"] = secret["tracking_id"]
    manager.redact_latest_message(merged, agent)
    manager.flush()
    app.nothing_at_rest("1234")


# --- the history


def test_what_is_live_and_archived_is_restored_and_a_few_small_ones_need_no_read_more(
    app: Application, durability: str
) -> None:
    options = {"conversation_manager": NullConversationManager()}
    manager = app.manager(durability=durability, **SMALL)
    agent = app.agent(manager, model=OfflineScriptedModel(lambda _: "ok"), **options)
    say(agent, *map(str, range(8)))
    manager.flush()
    del agent.messages[1:13]
    agent("the last")
    manager.flush()
    assert app.record()["archived_count"] >= 12
    snapshot = copy.deepcopy(agent.messages)
    app.recorder.clear()
    again = app.agent(app.manager(**SMALL), **options)
    assert again.messages == snapshot
    assert app.recorder.names == ["find"]


def test_what_is_held_of_the_history_is_gone_with_its_redaction(app: Application, durability: str) -> None:
    options = {"conversation_manager": NullConversationManager()}
    manager = app.manager(durability=durability, **SMALL)
    agent = app.agent(manager, model=OfflineScriptedModel(lambda _: "ok"), **options)
    say(agent, "my PIN is 1234", "one")
    del agent.messages[1:]
    say(agent, "two", "three", "four")
    manager.flush()
    manager.sync_agent(agent)  # The view that holds the first message waits for a commit.
    manager.redact_latest_message(redaction(agent), agent)
    for prompt in ("five", "six", "seven", "eight"):
        agent(prompt)
        manager.flush()
        app.nothing_at_rest("1234")
    assert dialogue(app.agent(app.process(**SMALL), **options).messages)[0] == ("user", "[redacted]")


def test_many_stretches_of_the_history_are_read_together(app: Application, durability: str) -> None:
    options = {"conversation_manager": NullConversationManager()}
    manager = app.manager(durability=durability, **SMALL)
    agent = app.agent(manager, model=OfflineScriptedModel(lambda _: "ok"), **options)
    for number in range(20):
        agent(f"prompt {number}")
        del agent.messages[-2:]
        agent(f"prompt {number} again")
    manager.flush()
    assert len(app.record()["live"]["before"]) > 15
    app.recorder.clear()
    again = app.agent(app.manager(**SMALL), **options)
    assert again.messages == agent.messages
    assert len(app.recorder.names) <= 3
