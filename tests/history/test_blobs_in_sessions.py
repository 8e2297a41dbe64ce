"""Large binaries and texts in sessions: wherever they lie, they come back whole, and are gone with what named them.

`test_blobs.py` is about the files themselves, `test_blob_faults.py` about processes that die and writers that race.
"""

import asyncio
import copy
import itertools
import random
import sys
import threading
from collections import UserDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from offline_model import OfflineScriptedModel, ScriptedReply, ToolCall
from pymongo import MongoClient, monitoring
from pymongo.database import Database
from strands import Agent, ToolContext, tool
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.types.exceptions import EventLoopException
from strands.types.session import SessionAgent, SessionMessage
from support.application import Application
from support.blobs import (
    THRESHOLD,
    assert_every_named_file_is_whole,
    assert_only_named_files_are_left,
    data,
    image,
    left,
    named_files,
    nested,
    said,
    shown,
    talker,
)
from support.equality import assert_same
from support.failpoints import fail_command
from support.flows import FLOWS, Flow
from support.histories import by_hand, manager_of
from support.repositories import MultiAgent
from support.stores import MongoStore, alternating_clients, run
from support.sweeping import swept

from mongodb_session_manager import (
    BlobMissingError,
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    SessionConflictError,
    UnstorableValueError,
)
from mongodb_session_manager._model.encoding import PLAIN_CODEC_OPTIONS
from mongodb_session_manager._model.limits import BLOB_CHUNK_BYTES

MEGABYTE = 1024 * 1024
_RAW: Any = PLAIN_CODEC_OPTIONS.with_options(document_class=RawBSONDocument)
both_durabilities = pytest.mark.parametrize("durability", ["message", "turn"])


@pytest.fixture
def app(applications: Callable[..., Application]) -> Application:
    """A process in which the size of a blob does not matter."""
    return applications(blob_threshold_bytes=THRESHOLD)


def files_of(app: Application) -> Any:
    return app.database["sessions_blobs.files"]


def opened(app: Application, session_id: str = "s", **options: Any) -> tuple[MongoDBSessionManager, Agent]:
    manager = app.manager(session_id, **options)
    return manager, talker(manager)


def restored(app: Application, session_id: str = "s", **options: Any) -> Agent:
    """The agent as a new process restores it."""
    return talker(app.manager(session_id), **options)


def repository_messages(app: Application) -> list[Any]:
    """The stored conversation, without Strands' repairs."""
    return [found.message for found in app.repository.list_messages("s", "assistant")]


def message_in(app: Application, message_id: int) -> SessionMessage:
    found = app.repository.read_message("s", "assistant", message_id)
    assert found is not None
    return found


def uploads(commands: Any) -> int:
    return len(commands.on("sessions_blobs.files").named("update"))


def assert_no_blob_is_in_the_sessions(app: Application, *blobs: bytes) -> None:
    raw = b"".join(
        document.raw
        for name in ("sessions", "sessions_history")
        for document in app.database.get_collection(name, codec_options=_RAW).find()
    )
    for blob in blobs:
        assert blob not in raw


# --- stored and restored --------------------------------------------------------------------------

EVERYTHING: list[Any] = [
    {"text": "Look at this."},
    image(1),
    {"document": {"format": "pdf", "name": "report", "source": {"bytes": data(2, 500)}}},
    {"video": {"format": "mp4", "source": {"bytes": data(3, 900)}}},
    {"text": "Briefly."},
]


@tool
def film(seed: int) -> dict[str, Any]:
    """Return binaries of every kind, and a text beside them."""
    document = {"document": {"format": "csv", "name": "data", "source": {"bytes": data(seed + 1)}}}
    return {"status": "success", "content": [{"text": "filmed"}, image(seed), document, {"json": {"raw": "x"}}]}


@pytest.mark.topology
@both_durabilities
def test_images_documents_videos_and_results_of_tools_come_back_in_a_new_process(
    app: Application, durability: str
) -> None:
    thought = ScriptedReply(redacted_reasoning=data(9), text="Seen.")
    model = OfflineScriptedModel([ToolCall("film", {"seed": 5}), thought, "And again."])
    manager = app.manager(durability=durability)
    agent = Agent(model=model, agent_id="assistant", tools=[film], session_manager=manager, callback_handler=None)
    agent(EVERYTHING)
    agent(EVERYTHING[:2])
    manager.close()

    assert_same(restored(app).messages, agent.messages)
    assert_no_blob_is_in_the_sessions(app, *(data(seed) for seed in (1, 5, 6, 9)), data(2, 500), data(3, 900))
    # Three and two of the user, two of the tool, one of the model; each with one file of its own.
    assert len(named_files(app.database)) == 3 + 2 + 1 + 1
    assert_only_named_files_are_left(app.database)


class Interrupted(UserDict[str, Any]):
    """A value in whose midst something else happens."""

    def __init__(self, value: dict[str, Any], meanwhile: Callable[[], object]) -> None:
        super().__init__(value)
        self._meanwhile = meanwhile

    def __iter__(self) -> Iterator[str]:
        self._meanwhile()
        return super().__iter__()


@pytest.mark.topology
@pytest.mark.parametrize("other", [{"text": "Hm."}, {"text": object()}], ids=["stored", "refused"])
def test_messages_that_are_appended_in_two_threads_at_once_keep_their_blobs(app: Application, other: Any) -> None:
    manager, agent = opened(app, durability="turn")

    def append_other() -> None:
        with suppress(UnstorableValueError):
            manager.append_message({"role": "user", "content": [other]}, agent)

    def meanwhile() -> None:
        thread = threading.Thread(target=append_other)
        thread.start()
        thread.join()

    manager.append_message({"role": "user", "content": [image(1), Interrupted({"text": "Look."}, meanwhile)]}, agent)
    manager.close()

    [message] = [message for message in repository_messages(app) if len(message["content"]) == 2]
    assert message["content"] == [image(1), {"text": "Look."}]
    [owner] = files_of(app).find()
    stored = app.session()["agents"]["assistant"]["messages"]
    assert [m["message_id"] for m in stored if len(m["content"]) == 2] == [owner["metadata"]["message"]]


@both_durabilities
@pytest.mark.parametrize("depth", [0, 1, 7, 30])
def test_a_binary_or_text_comes_back_from_anywhere_in_a_message(app: Application, durability: str, depth: int) -> None:
    deep = nested({"image": data(1), "short": b"short", 3: data(2), "pair": (data(3), "x" * MEGABYTE)}, depth)
    message: Any = {
        "role": "user",
        "content": [{"text": "Deep."}, {"toolResult": {"toolUseId": "t", "status": "success", "content": [deep]}}],
        "metadata": {"custom": {"raw": data(4)}},
        "a field of its own": {"raw": data(5)},
    }
    manager, agent = opened(app, durability=durability)
    manager.append_message(message, agent)
    manager.close()

    (stored,) = app.repository.list_messages("s", "assistant")
    found: Any = dict(stored.message)
    del found["tracking_id"]
    assert_same(found, message)
    assert len(named_files(app.database)) == 6
    assert_no_blob_is_in_the_sessions(app, *map(data, range(1, 6)))
    assert_only_named_files_are_left(app.database)


class StoreOfSmallBlobs(MongoStore):
    def manager(self) -> MongoDBSessionManager:
        options: Any = {"durability": self.durability, "blob_threshold_bytes": 1}
        manager = manager_of(next(self.clients), self.database_name, self.session_id, **options)
        return self.stack.enter_context(manager)


FLOWS_WITH_BYTES = (
    "plain",
    "tool_use",
    "interrupt_in_a_tool",
    "interrupt_in_a_hook",
    "redaction_of_the_user",
    "sliding_window",
    "summarizing",
    "graph_with_bytes",
)


@both_durabilities
@pytest.mark.parametrize("name", FLOWS_WITH_BYTES)
def test_whatever_passes_through_strands_comes_back_when_every_byte_is_a_blob(
    server: Any, database: Database[Any], durability: Any, name: str
) -> None:
    flow: Flow = FLOWS[name]
    with ExitStack() as stack:
        clients = stack.enter_context(alternating_clients(server.uri))
        store = StoreOfSmallBlobs(clients, database.name, durability, stack)
        steps = list(run(flow, store, moves=True))
    assert_same([restored for _, restored in steps], [live for live, _ in steps])
    assert_every_named_file_is_whole(database)


@tool(context=True)
def sign(tool_context: ToolContext) -> str:
    """Ask a person to agree; the proof is an image."""
    answer = tool_context.interrupt("sign", reason={"proof": data(7), "terms": "x" * MEGABYTE})
    return f"signed by {answer}"


@pytest.mark.slow
@both_durabilities
def test_an_interrupt_that_shows_an_image_is_answered_in_a_new_process(app: Application, durability: str) -> None:
    def signer() -> Agent:
        model = OfflineScriptedModel(
            lambda messages: "Signed." if "toolResult" in messages[-1]["content"][0] else ToolCall("sign")
        )
        manager = app.manager(durability=durability)
        return Agent(model=model, agent_id="assistant", tools=[sign], session_manager=manager, callback_handler=None)

    agent = signer()
    agent("Sign this")
    again = signer()
    assert_same(again._interrupt_state.to_dict(), agent._interrupt_state.to_dict())
    (interrupt,) = again._interrupt_state.interrupts.values()
    assert_same(interrupt.reason, {"proof": data(7), "terms": "x" * MEGABYTE})
    assert_no_blob_is_in_the_sessions(app, data(7))

    result = again([{"interruptResponse": {"interruptId": interrupt.id, "response": "Alice"}}])

    assert str(result) == "Signed.\n"
    assert named_files(app.database) == {}  # The question is answered.
    swept(app.repository)
    assert_only_named_files_are_left(app.database)


def big_state(seed: int) -> dict[str, Any]:
    return {"image": data(seed, 128 * 1024), "text": f"{seed}é" * MEGABYTE, "small": b"small", "n": seed}


@pytest.mark.slow
def test_the_repository_keeps_large_state_of_agents_beside_the_session(app: Application) -> None:
    repository = app.repository
    app.manager().update_metadata({"begun": True})
    agent = SessionAgent("a", big_state(1), {"summary": big_state(2)}, {"interrupt_state": big_state(3)})

    repository.create_agent("s", agent)

    found = repository.read_agent("s", "a")
    assert found is not None
    for name in ("state", "conversation_manager_state", "_internal_state"):
        assert_same(getattr(found, name), getattr(agent, name))
    assert len(named_files(app.database)) == 6
    assert_no_blob_is_in_the_sessions(app, data(1, 128 * 1024))

    agent.state = big_state(4)
    repository.update_agent("s", agent)

    found = repository.read_agent("s", "a")
    assert found is not None
    assert_same(found.state, big_state(4))
    assert_every_named_file_is_whole(app.database)
    # What a state no longer names is left to the sweep.
    assert len(left(app.database)[0]) == 12
    assert swept(repository) == 6
    assert_only_named_files_are_left(app.database)


@pytest.mark.slow
def test_the_repository_keeps_large_state_of_graphs_beside_the_session(app: Application) -> None:
    repository = app.repository
    app.manager().update_metadata({"begun": True})
    repository.create_multi_agent("s", MultiAgent("graph", big_state(1)))
    assert_same(repository.read_multi_agent("s", "graph"), big_state(1))
    repository.update_multi_agent("s", MultiAgent("graph", big_state(2)))
    assert_same(repository.read_multi_agent("s", "graph"), big_state(2))
    assert_no_blob_is_in_the_sessions(app, data(2, 128 * 1024))
    assert swept(repository) == 2
    assert_same(repository.read_multi_agent("s", "graph"), big_state(2))
    assert_only_named_files_are_left(app.database)


@pytest.mark.slow
def test_creating_an_agent_that_is_there_is_a_conflict_however_large_its_state_is(app: Application) -> None:
    app.manager().update_metadata({"begun": True})
    agent = SessionAgent("a", {"image": data(1, 16 * MEGABYTE)}, {})
    app.repository.create_agent("s", agent)
    app.repository.create_agent("s", agent)  # The very same: as after an answer that was lost.
    with pytest.raises(SessionConflictError):
        app.repository.create_agent("s", SessionAgent("a", {"image": data(2, 16 * MEGABYTE)}, {}))
    found = app.repository.read_agent("s", "a")
    assert found is not None
    assert found.state == agent.state


@both_durabilities
def test_an_agent_can_begin_with_large_messages_on_a_new_session_and_on_one_that_exists(
    app: Application, durability: str
) -> None:
    begun: list[Any] = [
        {"role": "user", "content": shown("one", 1)},
        {"role": "assistant", "content": [{"text": "two"}]},
        {"role": "user", "content": shown("three", 2, 3)},
    ]
    for agent_id, files in (("new session", 3), ("same session", 6)):
        manager = app.manager(durability=durability)
        agent = talker(manager, agent_id, messages=copy.deepcopy(begun))
        assert_same(restored(app, agent_id=agent_id).messages, agent.messages)
        assert len(named_files(app.database)) == files
        agent("four")
        manager.close()
        assert said(restored(app, agent_id=agent_id).messages) == ["one*", "two", "three**", "four", "Re: four"]
    assert_only_named_files_are_left(app.database)


@both_durabilities
@pytest.mark.parametrize("with_text", [True, False])
def test_a_message_appended_by_hand_that_strands_then_appends_is_stored_once_with_one_file(
    app: Application, durability: str, with_text: bool
) -> None:
    prompt: Any = shown("look", 1) if with_text else [image(1)]
    manager, agent = opened(app, durability=durability)
    manager.append_message({"role": "user", "content": prompt}, agent)

    with app.recorder.recording() as commands:
        agent(prompt)
        manager.close()

    assert uploads(commands) == 0
    assert_same(restored(app).messages, agent.messages)
    assert len(agent.messages) == 2
    assert len(left(app.database)[0]) == 1
    assert_only_named_files_are_left(app.database)


@both_durabilities
def test_a_message_appended_by_hand_without_the_image_that_strands_then_appends_gets_it(
    app: Application, durability: str
) -> None:
    manager, agent = opened(app, durability=durability)
    manager.append_message(by_hand("look"), agent)
    agent(shown("look", 1))
    manager.close()
    assert said(restored(app).messages) == ["look*", "Re: look"]
    assert_same(restored(app).messages, agent.messages)
    assert_only_named_files_are_left(app.database)


@both_durabilities
def test_a_session_of_an_older_version_takes_images(app: Application, durability: str) -> None:
    message = {"message_id": 0, "message": {"role": "user", "content": [{"text": "Hello"}]}}
    agent = {"agent_data": {"agent_id": "assistant", "state": {}}, "messages": [message]}
    older: dict[str, Any] = {"_id": "s", "session_id": "s", "session_type": "default", "agents": {"assistant": agent}}
    app.database.sessions.insert_one(older)
    big: Any = [{"text": "look"}, image(1, 128 * 1024)]
    app.repository.update_message("s", "assistant", SessionMessage({"role": "user", "content": big}, 0))
    manager = app.manager(durability=durability)
    talker(manager)(shown("and this", 2))
    manager.close()
    messages = restored(app).messages
    assert said(messages) == ["look*", "and this*", "Re: and this"]
    assert messages[0]["content"] == big
    assert_only_named_files_are_left(app.database)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_message_of_64_mb_in_many_blocks_comes_back_byte_for_byte(app: Application) -> None:
    chunk = BLOB_CHUNK_BYTES
    sizes = [*itertools.repeat(3 * MEGABYTE + 1, 20), 128 * 1024 - 1, 128 * 1024, 4 * MEGABYTE]
    sizes += [chunk - 1, chunk, chunk + 1, 32 * chunk, 33 * chunk]
    assert sum(sizes) >= 64 * MEGABYTE
    # Not random byte by byte: what is compared is that no block or chunk is missing or in another's place.
    page = random.Random(64).randbytes(9 * MEGABYTE)
    blocks = [{"image": {"format": "png", "source": {"bytes": page[seed : seed + n]}}} for seed, n in enumerate(sizes)]
    prompt: Any = [{"text": "Look."}, *blocks]
    manager = app.manager(blob_threshold_bytes=128 * 1024)
    talker(manager)(prompt)
    manager.close()
    user, _ = restored(app).messages
    assert user["content"] == prompt
    assert len(left(app.database)[0]) == len(sizes) - 1  # One byte less than the threshold stays in the message.


@tool
def long_text(characters: int) -> str:
    """Return a text of so many characters."""
    return "0123456789" * (characters // 10)


def reader(app: Application, durability: str, characters: int) -> Agent:
    model = OfflineScriptedModel(
        lambda messages: (
            ToolCall("long_text", {"characters": characters})
            if messages[-1]["content"][0].get("text") == "read"
            else "Read."
        )
    )
    manager = app.manager(durability=durability)
    return Agent(model=model, agent_id="assistant", tools=[long_text], session_manager=manager, callback_handler=None)


@pytest.mark.slow
@both_durabilities
def test_a_tool_result_of_10_mb_of_text_comes_back_and_the_conversation_goes_on(
    app: Application, durability: str
) -> None:
    agent = reader(app, durability, 10 * MEGABYTE)
    agent("read")
    agent("more")
    again = reader(app, durability, 10 * MEGABYTE)
    assert_same(again.messages, agent.messages)
    assert len(again.messages[2]["content"][0]["toolResult"]["content"][0]["text"]) >= 10 * 10**6
    for prompt in ("one", "read", "two"):  # Two such results do not fit into one document.
        again(prompt)
    assert_same(restored(app).messages, again.messages)
    assert len(str(app.session())) < 10_000
    assert_only_named_files_are_left(app.database)


@pytest.mark.slow
@both_durabilities
def test_a_text_of_16_mb_is_refused_by_field_size_and_limit_and_the_conversation_goes_on(
    app: Application, durability: str
) -> None:
    agent = reader(app, durability, 16 * MEGABYTE)
    with app.recorder.recording() as commands, pytest.raises(EventLoopException) as refused:
        agent("read")
    assert isinstance(refused.value.original_exception, UnstorableValueError)
    for part in ("['toolResult']['content'][0]['text']", str(16 * MEGABYTE // 10 * 10), str(15 * MEGABYTE)):
        assert part in str(refused.value)
    assert commands.request_bytes < 100_000, "some of it was sent"
    assert [message["role"] for message in repository_messages(app)] == ["user", "assistant"]

    agent("more")
    agent("and more")

    stored = repository_messages(app)
    texts = [block["text"] for message in stored for block in message["content"] if "text" in block]
    assert texts == ["read", "more", "Read.", "and more", "Read."]
    assert left(app.database) == (set(), set())


# --- state ----------------------------------------------------------------------------------------


@both_durabilities
def test_an_image_in_the_state_that_does_not_change_is_uploaded_once(app: Application, durability: str) -> None:
    manager, agent = opened(app, durability=durability)
    agent._model_state["screen"] = {"image": data(1)}
    with app.recorder.recording() as commands:
        agent("one")
    assert uploads(commands) == 1

    with app.recorder.recording() as commands:
        agent("two")
        manager.sync_agent(agent)
        manager.close()
        again = restored(app)
        assert again._model_state == {"screen": {"image": data(1)}}
        again("three")
    assert uploads(commands) == 0
    # Both fetches of a restored agent: no more than the one image.
    assert len(commands.on("sessions_blobs.chunks").named("find")) == 1
    assert_only_named_files_are_left(app.database)


@pytest.mark.slow
@both_durabilities
def test_an_image_in_the_state_that_is_replaced_is_left_to_the_sweep(app: Application, durability: str) -> None:
    manager, agent = opened(app, durability=durability)
    for seed in (1, 2):
        agent._model_state["screen"] = {"image": data(seed)}
        agent(f"{seed}")
    manager.close()

    files, _ = left(app.database)
    assert len(files) == 2
    assert app.repository.sweep() == 0  # It is young.
    assert left(app.database)[0] == files
    assert swept(app.repository) == 1
    assert_only_named_files_are_left(app.database)
    assert restored(app)._model_state == {"screen": {"image": data(2)}}


# --- removed --------------------------------------------------------------------------------------


def two_turns_with_images(app: Application, **options: Any) -> tuple[MongoDBSessionManager, Agent]:
    manager, agent = opened(app, **options)
    agent(shown("one", 1, 2))
    agent(shown("two", 3))
    return manager, agent


@pytest.mark.slow
def test_updating_a_message_deletes_what_only_it_named(app: Application) -> None:
    two_turns_with_images(app)
    message = message_in(app, 0)
    message.message = by_hand("gone")
    app.repository.update_message("s", "assistant", message)

    assert said(restored(app).messages) == ["gone", "Re: one", "two*", "Re: two"]
    assert len(left(app.database)[0]) == 1
    assert_only_named_files_are_left(app.database)


def test_updating_a_message_with_what_it_holds_keeps_it_whole(app: Application) -> None:
    app.manager().update_metadata({"begun": True})
    app.repository.create_agent("s", SessionAgent("assistant", {}, {}))
    big = [{"text": "look"}, image(1, 128 * 1024)]
    app.repository.create_message("s", "assistant", SessionMessage({"role": "user", "content": big}, 0))
    message = message_in(app, 0)
    app.repository.update_message("s", "assistant", message)
    found = message_in(app, 0)
    assert_same(found.message, message.message)
    assert_only_named_files_are_left(app.database)


@both_durabilities
def test_an_image_that_a_guardrail_redacts_is_never_sent_or_deleted_at_once(app: Application, durability: str) -> None:
    manager, agent = opened(app, durability=durability)
    agent("before")
    with app.recorder.recording() as commands:
        agent(shown("my secret", 1, 2))
        manager.close()

    assert uploads(commands) == (2 if durability == "message" else 0)
    assert left(app.database) == (set(), set())
    assert said(restored(app).messages) == ["before", "Re: before", "[redacted]", "No."]
    assert_same(restored(app).messages, agent.messages)


@pytest.mark.slow
@both_durabilities
def test_redacting_the_latest_message_deletes_its_images_and_no_others(app: Application, durability: str) -> None:
    manager, agent = two_turns_with_images(app, durability=durability)
    manager.append_message({"role": "user", "content": shown("three", 4, 5)}, agent)
    assert len(left(app.database)[0]) == 5
    manager.redact_latest_message(by_hand("gone"), agent)
    manager.close()
    assert said(restored(app).messages) == ["one**", "Re: one", "two*", "Re: two", "gone"]
    assert len(left(app.database)[0]) == 3
    assert_only_named_files_are_left(app.database)


@pytest.mark.slow
@both_durabilities
def test_what_a_redaction_leaves_of_a_message_keeps_its_blobs(app: Application, durability: str) -> None:
    """Role and content are replaced; the message's metadata stays, and with it what is large in it."""
    manager, agent = opened(app, durability=durability)
    custom = {"scan": data(1), "text": "x" * MEGABYTE}
    message: Any = {"role": "user", "content": shown("secret", 2), "metadata": {"custom": custom}}
    manager.append_message(message, agent)
    manager.redact_latest_message(by_hand("gone"), agent)
    manager.close()

    (message,) = restored(app).messages
    assert message["content"] == [{"text": "gone"}]
    assert_same(message["metadata"], {"custom": custom})
    assert len(left(app.database)[0]) == 2
    assert_only_named_files_are_left(app.database)


def test_what_a_redaction_leaves_of_a_message_that_was_not_sent_yet_is_sent_with_its_blobs(app: Application) -> None:
    model = OfflineScriptedModel([ScriptedReply(text="No.", redact_user="[redacted]")])
    custom = {"scan": data(1)}
    manager = app.manager(durability="turn")
    agent = Agent(model=model, agent_id="assistant", session_manager=manager, callback_handler=None)
    message: Any = {"role": "user", "content": shown("secret", 2), "metadata": {"custom": custom}}
    agent([message])
    manager.close()

    first, _ = restored(app).messages
    assert first["content"] == [{"text": "[redacted]"}]
    assert_same(first.get("metadata"), {"custom": custom})
    assert len(left(app.database)[0]) == 1
    assert_only_named_files_are_left(app.database)


@pytest.mark.slow
def test_what_an_update_leaves_of_an_archived_message_keeps_its_blobs(app: Application) -> None:
    manager = archived_conversation(app, metadata={"custom": {"scan": data(99)}})
    files = set(left(app.database)[0])
    redacted = SessionMessage(by_hand("gone"), 0)
    app.repository.update_message("s", "assistant", redacted)
    found = message_in(app, 0)
    assert found.message["content"] == [{"text": "gone"}]
    assert_same(found.message["metadata"], {"custom": {"scan": data(99)}})
    assert len(files) - len(left(app.database)[0]) == 1
    assert_only_named_files_are_left(app.database)
    manager.close()


@pytest.mark.slow
def test_deleting_a_session_deletes_the_files_of_that_life_only(app: Application) -> None:
    two_turns_with_images(app)
    files_of(app).update_many({}, {"$set": {"metadata.incarnation": ObjectId()}})  # Of another life, as yet unswept.
    foreign, _ = left(app.database)
    talker(app.manager("neighbour"))(shown("one", 1))
    neighbour = left(app.database)[0] - foreign
    talker(app.manager())(shown("three", 4))

    app.repository.delete_session("s")

    assert left(app.database) == (foreign | neighbour, foreign | neighbour)
    talker(app.manager())(shown("anew", 5))
    assert said(restored(app).messages) == ["anew*", "Re: anew"]
    swept(app.repository)
    assert_only_named_files_are_left(app.database)
    assert neighbour < left(app.database)[0]


def archived_conversation(app: Application, **first_message: Any) -> MongoDBSessionManager:
    """Six turns with an image each; the first turns are archived."""
    manager = app.manager(archive_after_messages=2, archive_block=2)
    agent = talker(manager, conversation_manager=SlidingWindowConversationManager(window_size=4))
    if first_message:
        manager.append_message({"role": "user", "content": shown("zero", 100), **first_message}, agent)
        manager.append_message({"role": "assistant", "content": [{"text": "Re: zero"}]}, agent)
    for n in range(6):
        agent(shown(f"{n}", n))
    manager.close()
    archived = app.session()["agents"]["assistant"]["archived_count"]
    assert archived >= 4
    return manager


@pytest.mark.slow
def test_images_of_archived_messages_are_read_and_are_gone_with_a_redaction(app: Application) -> None:
    archived_conversation(app)
    stored = app.repository.list_messages("s", "assistant")
    assert said(message.message for message in stored) == [t for n in range(6) for t in (f"{n}*", f"Re: {n}")]
    for n in range(6):
        assert stored[2 * n].message["content"][1:] == [image(n)]
    assert_only_named_files_are_left(app.database)

    files, _ = left(app.database)

    redacted = SessionMessage(by_hand("gone"), 2)
    app.repository.update_message("s", "assistant", redacted)

    found = message_in(app, 2)
    assert said([found.message]) == ["gone"]
    assert len(files - left(app.database)[0]) == 1, "those of the others stay, and what the live view holds of them"
    assert data(1) not in [chunk["data"] for chunk in app.database["sessions_blobs.chunks"].find()]
    assert_only_named_files_are_left(app.database)


@pytest.mark.slow
def test_deleting_a_session_deletes_the_files_of_archived_messages(app: Application) -> None:
    archived_conversation(app)
    app.repository.delete_session("s")
    assert left(app.database) == (set(), set())
    assert app.database.sessions_history.find_one() is None


# --- reading --------------------------------------------------------------------------------------


def test_a_page_of_messages_fetches_the_blobs_of_that_page_only(app: Application) -> None:
    manager, agent = opened(app)
    for n in range(5):
        agent([{"text": f"{n}"}, image(n, 50_000)])
    manager.close()

    def page(offset: int, limit: int) -> tuple[list[str], Any]:
        with app.recorder.recording() as commands:
            found = app.repository.list_messages("s", "assistant", limit=limit, offset=offset)
        return said(message.message for message in found), commands

    texts, commands = page(2, 2)
    assert texts == ["1*", "Re: 1"]
    assert commands.names == ["find", "find"]
    assert 50_000 < commands.reply_bytes < 60_000
    texts, commands = page(0, 5)
    assert texts == ["0*", "Re: 0", "1*", "Re: 1", "2*"]
    assert commands.names == ["find", "find"]
    assert 150_000 < commands.reply_bytes < 160_000
    texts, commands = page(3, 1)
    assert texts == ["Re: 1"]
    assert commands.names == ["find"]
    assert commands.reply_bytes < 10_000
    with app.recorder.recording() as commands:
        app.repository.read_agent("s", "assistant")
        app.repository.read_session("s")
        app.manager().get_message_count("assistant")
    assert commands.on("sessions_blobs.chunks") == []


@pytest.mark.slow
def test_an_archived_page_of_messages_fetches_the_blobs_of_that_page_only(app: Application) -> None:
    archived_conversation(app)
    with app.recorder.recording() as commands:
        found = app.repository.list_messages("s", "assistant", limit=2, offset=2)
    assert said(message.message for message in found) == ["1*", "Re: 1"]
    (fetch,) = commands.on("sessions_blobs.chunks")
    assert len(fetch.command["filter"]["files_id"]["$in"]) == 1


@pytest.mark.parametrize("how", ["no chunk", "no file", "cut"])
def test_a_message_whose_blob_is_not_whole_is_an_error_and_never_an_empty_message(app: Application, how: str) -> None:
    two_turns_with_images(app)
    file_id = next(iter(named_files(app.database)))
    if how == "cut":
        app.database["sessions_blobs.chunks"].update_one({"files_id": file_id}, {"$set": {"data": b"short"}})
    else:
        app.database["sessions_blobs.chunks"].delete_many({"files_id": file_id})
        if how == "no file":
            files_of(app).delete_one({"_id": file_id})

    reads: list[Callable[[], object]] = [
        lambda: restored(app),
        lambda: app.repository.list_messages("s", "assistant"),
        lambda: app.repository.read_message("s", "assistant", 0),
    ]
    for read in reads:
        with pytest.raises(BlobMissingError, match=str(file_id)) as missing:
            read()
        assert missing.value.file_id == file_id
    # What lies beside it can be read, and the message can be replaced.
    assert said(m.message for m in app.repository.list_messages("s", "assistant", offset=1)) == [
        "Re: one",
        "two*",
        "Re: two",
    ]
    app.repository.update_message("s", "assistant", SessionMessage({"role": "user", "content": [{"text": "!"}]}, 0))
    assert said(restored(app).messages) == ["!", "Re: one", "two*", "Re: two"]


class Heart(monitoring.CommandListener):
    """Beats on the event loop; notes for each command its thread, and how often the heart beat meanwhile."""

    def __init__(self) -> None:
        self.beats = 0
        self.names: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.fewest_beats = sys.maxsize
        self._began: dict[int, int] = {}

    async def beat(self) -> None:
        while True:
            self.beats += 1
            await asyncio.sleep(0.002)

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name in COMMANDS:
            collection = event.command[event.command_name]
            self.names.append(event.command_name + (" blobs" if "_blobs" in str(collection) else ""))
            self.threads.add(threading.current_thread())
            self._began[event.request_id] = self.beats

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        if event.request_id in self._began:
            self.fewest_beats = min(self.fewest_beats, self.beats - self._began.pop(event.request_id))

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


COMMANDS = ("find", "update", "insert", "delete")


@pytest.mark.slow
@both_durabilities
def test_a_turn_of_20_mb_its_redaction_and_its_restore_run_in_threads_and_the_loop_goes_on(
    server: Any, client: MongoClient[Any], database: Database[Any], durability: Any
) -> None:
    heart = Heart()
    prompt: Any = [{"text": "Look."}, image(20, 20 * MEGABYTE)]

    async def requests(factory: MongoDBSessionManagerFactory) -> None:
        beating = asyncio.create_task(heart.beat())
        async with await factory.open("s", agent_id="assistant", durability=durability) as manager:
            async for _ in talker(manager).stream_async(prompt):
                pass
        async with await factory.open("s", agent_id="assistant", durability=durability) as manager:
            agent = talker(manager)
            assert agent.messages[0]["content"] == prompt
            manager.append_message({"role": "user", "content": shown("secret", 1)}, agent)
            manager.redact_latest_message(by_hand("gone"), agent)
            await asyncio.to_thread(manager.flush)
        beating.cancel()

    with ExitStack() as stack:
        slow: MongoClient[Any] = MongoClient(server.uri, appname="slow", event_listeners=[heart])
        factory = MongoDBSessionManagerFactory(
            client=stack.enter_context(slow),
            database_name=database.name,
            collection_name="sessions",
            blob_threshold_bytes=THRESHOLD,
        )
        stack.enter_context(fail_command(client, COMMANDS, app_name="slow", block_ms=100))
        asyncio.run(requests(factory))

    # The file and three inserts of 8 MB at most. A turn that has collected 8 MB commits early.
    begun = ["update blobs", *["insert blobs"] * 3, "update", "update"]
    assert heart.names[: 2 + len(begun)] == ["find", "update", *begun]
    assert heart.names[2 + len(begun) :][:2] == ["find", "find blobs"]
    assert threading.main_thread() not in heart.threads
    assert heart.fewest_beats >= 3, "a command held up the event loop"
    assert said(talker(MongoDBSessionManager("s", None, database.name, "sessions", client)).messages)[2:] == ["gone"]


# --- nobody reads somebody else's file ------------------------------------------------------------


def forged(file_id: Any, length: int, kind: str = "blob") -> dict[str, Any]:
    return {"__encoded__": kind, "value": {"file": file_id, "length": length}}


def file_of_another(app: Application) -> tuple[Any, int]:
    """A file of a session `victim`, and its length."""
    talker(app.manager("victim"))(shown("private", 1))
    (found,) = named_files(app.database).items()
    return found


@both_durabilities
def test_what_looks_like_a_marker_in_messages_and_state_comes_back_as_it_was(app: Application, durability: str) -> None:
    file_id, length = file_of_another(app)
    fakes: Any = [forged(str(file_id), length), forged(str(file_id), length, "text"), forged(file_id.binary, length)]
    content: Any = [
        {"text": str(fakes[0])},
        {"toolUse": {"toolUseId": "t", "name": "x", "input": {"fake": fakes, **fakes[0]}}},
        fakes[1],
    ]
    manager = app.manager("thief", durability=durability)
    agent = talker(manager, state={"fakes": fakes[:2]})
    agent._model_state["fake"] = fakes[2]
    manager.append_message({"role": "user", "content": content}, agent)
    manager.append_message({"role": "assistant", "content": [{"text": "Hm."}]}, agent)
    manager.close()

    with app.recorder.recording() as commands:
        (first, _) = app.repository.list_messages("thief", "assistant")
        thief = restored(app, "thief")
    assert_same(first.message["content"], content)
    assert thief.state.get("fakes") == fakes[:2]
    assert_same(thief._model_state, {"fake": fakes[2]})
    assert commands.on("sessions_blobs.chunks") == []


@both_durabilities
def test_an_object_id_in_a_message_is_refused_so_nobody_can_name_a_file(app: Application, durability: str) -> None:
    manager, agent = opened(app, durability=durability)
    with app.recorder.recording() as commands, pytest.raises(UnstorableValueError):
        manager.append_message({"role": "user", "content": [forged(ObjectId(), 5)]}, agent)  # type: ignore[list-item]
    assert commands.names == []


def test_what_looks_like_a_marker_in_metadata_and_feedback_comes_back_as_it_was(app: Application) -> None:
    fake = forged(*file_of_another(app))
    manager = app.manager("thief")
    talker(manager)("Hello")

    manager.update_metadata({"fake": fake, "deep.fake": [fake]})
    manager.add_feedback({"rating": "up", "fake": fake})

    with app.recorder.recording() as commands:
        for found in (manager.get_metadata(), app.repository.get_metadata("thief")):
            assert_same(found, {"metadata": {"fake": fake, "deep": {"fake": [fake]}}})
        (feedback,) = manager.get_feedbacks()
        assert_same(feedback["fake"], fake)
        (feedback,) = app.repository.get_feedbacks("thief")
        assert_same(feedback["fake"], fake)
        assert said(restored(app, "thief").messages) == ["Hello", "Re: Hello"]
    assert commands.on("sessions_blobs.chunks") == []
    app.repository.delete_session("thief")
    assert said(restored(app, "victim").messages) == ["private*", "Re: private"]


@pytest.mark.slow
def test_archived_feedback_that_looks_like_a_marker_comes_back_as_it_was(app: Application) -> None:
    fake = forged(*file_of_another(app))
    app.manager("thief").update_metadata({"begun": True})
    for n in range(201):
        app.repository.add_feedback("thief", {"n": n, "fake": fake})
    assert app.database.sessions_history.find_one({"_id.session": "thief"}) is not None
    with app.recorder.recording() as commands:
        found = app.repository.get_feedbacks("thief")
    assert [feedback["n"] for feedback in found] == list(range(201))
    for feedback in found:
        assert_same(feedback["fake"], fake)
    assert commands.on("sessions_blobs.chunks") == []
