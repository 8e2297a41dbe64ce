"""`metadata_hook` and `feedback_hook`: the application takes part in what is done, or forbids it."""

from collections.abc import Callable
from typing import Any

import pytest
from offline_model import OfflineScriptedModel, ToolCall
from strands import Agent
from support.application import Application

from mongodb_session_manager import (
    InvalidIdentifierError,
    MessageNotFoundError,
    MongoDBSessionManager,
    UnstorableValueError,
)


class Diary:
    """A hook that does what was asked for and notes what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def __call__(self, original: Callable[..., Any], action: str, session_id: str, **kwargs: Any) -> Any:
        manager = kwargs.pop("session_manager")
        assert isinstance(manager, MongoDBSessionManager)
        assert manager.session_id == session_id
        self.seen.append((action, session_id, kwargs))
        return original(*kwargs.values())


def test_a_hook_is_told_each_operation_and_the_operations_work_as_without_it(app: Application) -> None:
    diary, notes = Diary(), Diary()
    manager = app.manager(metadata_hook=diary, feedback_hook=notes)

    manager.update_metadata({"a": 1, "b.c": 2})
    manager.delete_metadata(["a"])
    found = manager.get_metadata()
    manager.add_feedback({"rating": "up"})

    assert found == {"metadata": {"b": {"c": 2}}}
    assert [feedback["rating"] for feedback in manager.get_feedbacks()] == ["up"]
    assert diary.seen == [
        ("update", "s", {"metadata": {"a": 1, "b.c": 2}}),
        ("delete", "s", {"keys": ["a"]}),
        ("get", "s", {}),
    ]
    assert notes.seen == [("add", "s", {"feedback": {"rating": "up"}})]


def test_a_hook_can_change_what_is_stored_and_what_is_read(app: Application) -> None:
    def change(original: Any, action: str, session_id: str, **kwargs: Any) -> Any:
        if action == "update":
            return original({**kwargs["metadata"], "by": "hook"})
        if action == "delete":
            return original([key for key in kwargs["keys"] if key != "precious"])
        return {"metadata": {**original()["metadata"], "seen": True}}

    def shorten(original: Any, action: str, session_id: str, *, feedback: Any, **kwargs: Any) -> None:
        original({**feedback, "comment": feedback["comment"][:3]})

    manager = app.manager(metadata_hook=change, feedback_hook=shorten)
    manager.update_metadata({"precious": 1, "other": 2})
    manager.delete_metadata(["precious", "other"])
    manager.add_feedback({"comment": "too long"})

    assert manager.get_metadata() == {"metadata": {"precious": 1, "by": "hook", "seen": True}}
    stored = app.session()
    assert stored["metadata"] == {"precious": 1, "by": "hook"}
    assert [feedback["comment"] for feedback in stored["feedbacks"]] == ["too"]


def test_a_hook_that_does_not_call_the_original_vetoes_and_nothing_is_sent(app: Application) -> None:
    def veto(original: Any, action: str, session_id: str, **kwargs: Any) -> Any:
        return {} if action == "get" else None

    manager = app.manager(metadata_hook=veto, feedback_hook=veto)
    manager.update_metadata({"a": 1})
    manager.delete_metadata(["a"])
    manager.add_feedback({"rating": "up"})

    assert manager.get_metadata() == {}
    assert app.recorder.names == []


def test_an_error_of_a_hook_reaches_the_caller_and_only_what_the_original_did_before_is_stored(
    app: Application,
) -> None:
    class Forbidden(Exception):
        pass

    def before(original: Any, action: str, session_id: str, **kwargs: Any) -> Any:
        raise Forbidden

    def after(original: Any, action: str, session_id: str, **kwargs: Any) -> Any:
        original(kwargs.get("metadata") or kwargs.get("feedback"))
        raise Forbidden

    made = app.factory()
    for hook in (before, after):
        manager = made.create_session_manager("s", metadata_hook=hook, feedback_hook=hook)
        with pytest.raises(Forbidden):
            manager.update_metadata({hook.__name__: 1})
        with pytest.raises(Forbidden):
            manager.add_feedback({"from": hook.__name__})

    plain = made.create_session_manager("s")
    assert plain.get_metadata() == {"metadata": {"after": 1}}
    assert [feedback["from"] for feedback in plain.get_feedbacks()] == ["after"]


def test_errors_of_the_original_reach_a_hook_which_may_handle_them(app: Application) -> None:
    def without_link(original: Any, action: str, session_id: str, *, feedback: Any, **kwargs: Any) -> None:
        try:
            original(feedback)
        except ValueError:
            original({"rating": feedback["rating"]})

    manager = app.manager(feedback_hook=without_link)
    app.agent(manager, "Hello.")("Hi.")

    manager.add_feedback({"rating": "up", "agent_id": "a", "message_id": 99})

    assert [feedback.keys() for feedback in manager.get_feedbacks()] == [{"rating", "created_at"}]


def test_bad_input_is_refused_before_a_hook_sees_it(app: Application) -> None:
    diary = Diary()
    manager = app.manager(metadata_hook=diary, feedback_hook=diary)

    for call, error in (
        (lambda: manager.update_metadata({"$set": 1}), InvalidIdentifierError),
        (lambda: manager.update_metadata([("a", 1)]), TypeError),
        (lambda: manager.delete_metadata("a"), TypeError),
        (lambda: manager.delete_metadata(["a..b"]), InvalidIdentifierError),
        (lambda: manager.add_feedback({"a.b": 1}), InvalidIdentifierError),
        (lambda: manager.add_feedback({"message_id": 1}), InvalidIdentifierError),
    ):
        with pytest.raises(error):
            call()

    assert (diary.seen, app.recorder.names) == ([], [])


def test_what_a_hook_passes_on_is_checked_as_if_a_caller_had_given_it(app: Application) -> None:
    def corrupt(original: Any, action: str, session_id: str, **kwargs: Any) -> Any:
        if action == "update":
            return original({"lease.$owner": 1} if "key" in kwargs["metadata"] else {"value": object()})
        return original({"$where": 1} if action == "add" else ["a", "a.b"])

    manager = app.manager(metadata_hook=corrupt, feedback_hook=corrupt)
    with pytest.raises(InvalidIdentifierError):
        manager.update_metadata({"key": 1})
    with pytest.raises(InvalidIdentifierError):
        manager.delete_metadata(["a"])
    with pytest.raises(InvalidIdentifierError):
        manager.add_feedback({"rating": "up"})
    with pytest.raises(UnstorableValueError):
        manager.update_metadata({"value": 1})
    assert app.recorder.names == []


def test_a_hook_that_forgets_to_return_what_was_read_is_told_so(app: Application) -> None:
    def forgets(original: Any, action: str, session_id: str, **kwargs: Any) -> None:
        original(*[value for name, value in kwargs.items() if name != "session_manager"])

    manager = app.manager(metadata_hook=forgets)
    manager.update_metadata({"a": 1})
    with pytest.raises(TypeError, match="must return a dict"):
        manager.get_metadata()


def test_feedback_is_linked_for_certain_whatever_a_hook_makes_of_it(app: Application) -> None:
    def link(original: Any, action: str, session_id: str, *, feedback: Any, **kwargs: Any) -> None:
        original({**feedback, "agent_id": "a", "message_id": 7})

    manager = app.manager(feedback_hook=link)
    app.agent(manager, "Hello.")("Hi.")

    with pytest.raises(MessageNotFoundError):
        manager.add_feedback({"rating": "up"})
    assert manager.get_feedbacks() == []


def test_what_an_agents_tool_does_passes_through_the_hook(app: Application) -> None:
    diary = Diary()
    manager = app.manager(metadata_hook=diary)
    script = [
        ToolCall("manage_metadata", {"action": "set", "metadata": {"topic": "fish"}}),
        ToolCall("manage_metadata", {"action": "get"}),
        ToolCall("manage_metadata", {"action": "delete", "keys": ["topic"]}),
        "Done.",
    ]
    agent = app.agent(manager, *script, tools=[manager.get_metadata_tool()])
    agent("Go.")

    assert [action for action, *_ in diary.seen] == ["update", "get", "delete"]


def test_the_model_is_told_what_became_of_its_call_and_not_which_keys_the_hook_made_of_it(app: Application) -> None:
    def partly(original: Any, action: str, session_id: str, **kwargs: Any) -> Any:
        if action == "get":
            return original()
        given = kwargs.get("metadata") or kwargs["keys"]
        allowed = [key for key in given if key != "tier"]
        if "hidden" in given:
            allowed = ["tenant.hidden"]
        if allowed:
            original(dict.fromkeys(allowed, 1) if action == "update" else allowed)
        return None

    manager = app.manager(metadata_hook=partly)
    agent = Agent(model=OfflineScriptedModel([]), tools=[manager.get_metadata_tool()])

    def told(**call: Any) -> tuple[str, str]:
        result = agent.tool.manage_metadata(**call, record_direct_tool_call=False)
        return result["status"], result["content"][0]["text"]

    assert told(action="set", metadata={"topic": 1}) == ("success", "Stored: topic")
    for refused in ({"action": "set", "metadata": {"tier": "gold"}}, {"action": "delete", "keys": ["tier"]}):
        status, text = told(**refused)
        assert (status, "refused by the application" in text) == ("error", True)
    for call in ({"action": "set", "metadata": {"tier": 1, "a": 1}}, {"action": "delete", "keys": ["hidden"]}):
        status, text = told(**call)
        assert (status, "not as given" in text, "tenant" in text) == ("success", True, False)
    assert told(action="delete", keys=["topic"]) == ("success", "Deleted: topic")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "call",
    [
        lambda manager: manager.update_metadata({"a": 1}),
        lambda manager: manager.delete_metadata(["a"]),
        lambda manager: manager.get_metadata(),
        lambda manager: manager.add_feedback({"rating": "up"}),
    ],
    ids=["update", "delete", "get", "feedback"],
)
def test_a_hook_behind_which_an_async_one_hides_is_an_error_rather_than_a_veto(app: Application, call: Any) -> None:
    hook = lambda *args, **kwargs: _async_hook(*args, **kwargs)  # noqa: E731
    manager = app.manager(metadata_hook=hook, feedback_hook=hook)

    with pytest.raises(TypeError, match="_hook must be a plain function"):
        call(manager)


def test_a_manager_may_have_another_hook_than_its_factory_or_none(app: Application) -> None:
    everyones, ones = Diary(), Diary()
    made = app.factory(metadata_hook=everyones)

    made.create_session_manager("s").update_metadata({"a": 1})
    made.create_session_manager("s", metadata_hook=ones).update_metadata({"a": 2})
    made.create_session_manager("s", metadata_hook=None).update_metadata({"a": 3})

    assert [kwargs["metadata"] for _, _, kwargs in everyones.seen] == [{"a": 1}]
    assert [kwargs["metadata"] for _, _, kwargs in ones.seen] == [{"a": 2}]


async def _async_hook(original: Any, action: str, session_id: str, **kwargs: Any) -> Any:
    """A hook that would never run."""
