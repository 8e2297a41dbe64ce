"""What a process does to a session, at each command of which it is killed or cut off, and what others do meanwhile."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bson
from bson import ObjectId
from pymongo import MongoClient
from pymongo.database import Database
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.hooks import MessageAddedEvent
from strands.hooks.registry import HookOrder
from strands.types.session import SessionMessage

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionRepository
from support import blobs
from support.histories import HISTORY, NEVER, SESSIONS, SMALL, by_hand, manager_of, said, talker, tool_talker
from support.snapshots import put_back
from support.sweeping import swept

Step = Callable[[MongoClient[Any], str, str], None]
Acknowledge = Callable[[int], None]

SEARCH = "sessions_search"


@dataclass(frozen=True)
class Scene:
    """Where a deed is done.

    Attributes:
        plain: for what is stored before.
        client: at one of its commands the process is killed.
        database_name: of the database.
        session_id: a session that no other process uses.
        file: with a session in it, where the deed needs one.
    """

    plain: MongoClient[Any]
    client: MongoClient[Any]
    database_name: str
    session_id: str
    file: str


# --- a conversation with a tool and a guardrail

PROMPTS_OF_ALL_KINDS = ("hi", "look it up", "my secret")
SAID_OF_ALL_KINDS = ("hi", "Re: hi", "look it up", "toolUse", "toolResult", "Found.", "[redacted]", "I cannot.")
"""What the messages say at the end."""
TURN_ENDS = (0, 2, 6, 8)
"""How many messages there are when no turn is under way."""


def converse_in_all_kinds(durability: Any) -> Callable[[Scene], Callable[[Acknowledge], None]]:
    """Open, take a text turn, a tool turn and a redacted turn, close."""

    def deed(scene: Scene) -> Callable[[Acknowledge], None]:
        def act(acknowledge: Acknowledge) -> None:
            with manager_of(scene.client, scene.database_name, scene.session_id, durability=durability) as manager:
                agent = tool_talker(manager)
                if durability == "message":
                    # After the manager's own callback, so the message is stored by then.
                    agent.hooks.add_callback(
                        MessageAddedEvent,
                        lambda event: acknowledge(len(event.agent.messages)),
                        order=HookOrder.SDK_LAST + 1,
                    )
                for prompt in PROMPTS_OF_ALL_KINDS:
                    agent(prompt)
                    acknowledge(len(agent.messages))

        return act

    return deed


# --- a conversation of which a part is archived, searched or redacted

SECRET = "secret 0"
PROMPTS = (SECRET, *(f"prompt {number}" for number in range(1, 8)))
CONVERSATION = said(*PROMPTS)
REDACTED = ["[redacted]", "[redacted]", *CONVERSATION[2:]]
"""What the messages say once the secret, and the answer that repeats it, are redacted."""


def nothing(client: MongoClient[Any], database_name: str, session_id: str) -> None:
    """Leave everything as it is."""


def converse(client: MongoClient[Any], database_name: str, session_id: str) -> None:
    """The conversation, all of it in the session document."""
    with manager_of(client, database_name, session_id, durability="turn", **NEVER) as manager:
        agent = talker(manager)
        for prompt in PROMPTS:
            agent(prompt)


def archive(client: MongoClient[Any], database_name: str, session_id: str) -> None:
    with manager_of(client, database_name, session_id, **SMALL) as manager:
        talker(manager)


def index(client: MongoClient[Any], database_name: str, session_id: str) -> None:
    """Index messages as a manager does behind a turn."""
    with manager_of(client, database_name, session_id, index_messages=True) as manager:
        talker(manager)


def redact(client: MongoClient[Any], database_name: str, session_id: str) -> None:
    """Redact the first turn, as the guardrails of an application would, whoever has the session."""
    with manager_of(client, database_name, session_id) as manager:
        for message_id, role in enumerate(("user", "assistant")):
            message = SessionMessage(by_hand("", role), message_id, redact_message=by_hand("[redacted]", role))
            manager.session_repository.update_message(session_id, "assistant", message)


def delete(client: MongoClient[Any], database_name: str, session_id: str) -> None:
    with manager_of(client, database_name, session_id) as manager:
        manager.session_repository.delete_session(session_id)


def begin_again(client: MongoClient[Any], database_name: str, session_id: str) -> None:
    """Delete the session and take a turn under its id."""
    delete(client, database_name, session_id)
    with manager_of(client, database_name, session_id) as manager:
        talker(manager)("a new life")


ACTIONS: dict[str, Step] = {"nothing": nothing, "redact": redact, "delete": delete, "begin again": begin_again}


def leave_uncommitted(database: Database[Any], session_id: str = "s", text: str = "") -> None:
    """Leave what an archiver leaves that dies before its third command.

    Args:
        text: what its messages say, if a message was edited since: then nobody may commit it any more.
    """
    document = database[SESSIONS].find_one({"_id": session_id})
    assert document is not None
    agent = document["agents"]["assistant"]
    key = {"session": session_id, "incarnation": document["incarnation"], "agent": "assistant", "first": 0}
    segment = {"_id": key, "count": 4, "edits": agent["edits"], "messages": agent["messages"][:4]}
    database[HISTORY].insert_one(segment)
    if text:
        database[SESSIONS].update_one({"_id": session_id}, {"$inc": {"agents.assistant.edits": 1}})
        database[HISTORY].update_one({"_id": key}, {"$set": {"messages.$[].content.0.text": text}})


def archiving(scene: Scene) -> Callable[[Acknowledge], None]:
    converse(scene.plain, scene.database_name, scene.session_id)
    manager = manager_of(scene.client, scene.database_name, scene.session_id, **SMALL)
    talker(manager)
    return lambda _: manager.flush()


def after(step: Callable[[Scene], object], deed: Step) -> Callable[[Scene], Callable[[Acknowledge], None]]:
    """A deed that is done when this was done before."""

    def prepared(scene: Scene) -> Callable[[Acknowledge], None]:
        step(scene)
        return lambda _: deed(scene.client, scene.database_name, scene.session_id)

    return prepared


def archived(scene: Scene) -> None:
    for step in (converse, archive):
        step(scene.plain, scene.database_name, scene.session_id)


def half_archived(scene: Scene) -> None:
    converse(scene.plain, scene.database_name, scene.session_id)
    leave_uncommitted(scene.plain[scene.database_name], scene.session_id)


def put_from_file(scene: Scene) -> None:
    put_session(scene.plain[scene.database_name], bson.decode(Path(scene.file).read_bytes()), scene.session_id)
    scene.client.admin.command("ping")


STATES = ("embedded", "archived", "indexed", "indexed, then archived", "archived, then indexed")
STEPS: dict[str, Step] = {"embedded": nothing, "archived": archive, "indexed": index}


def session_in_state(client: MongoClient[Any], database_name: str, state: str) -> dict[str, Any]:
    """The documents of a session in one of the `STATES`, by collection; none of them is left in the database."""
    session_id = f"template, {state}"
    converse(client, database_name, session_id)
    for done in state.split(", then "):
        STEPS[done](client, database_name, session_id)
    database = client[database_name]
    found: dict[str, Any] = {}
    for name in (SESSIONS, HISTORY, SEARCH):
        query = {"_id" if name == SESSIONS else "_id.session": session_id}
        found[name] = list(database[name].find(query))
        database[name].delete_many(query)
    return found


def put_session(database: Database[Any], session: dict[str, Any], session_id: str) -> None:
    """Put a copy of such a session into the database, a life of its own."""
    incarnation = ObjectId()
    for name, documents in session.items():
        for document in documents:
            if name == SESSIONS:
                copy = {**document, "_id": session_id, "session_id": session_id, "incarnation": incarnation}
            else:
                copy = {**document, "_id": {**document["_id"], "session": session_id, "incarnation": incarnation}}
            if name == SEARCH:
                copy["session_id"] = session_id
            database[name].insert_one(copy)


# --- what has images: each begins with what is kept in the database (`support/snapshots.py`)


@dataclass(frozen=True)
class Place:
    """A client, and the collection of the sessions."""

    client: MongoClient[Any]
    database_name: str
    collection: str = SESSIONS

    def manager(self, session_id: str = "s", **options: Any) -> MongoDBSessionManager:
        return MongoDBSessionManager(
            session_id,
            client=self.client,
            database_name=self.database_name,
            collection_name=self.collection,
            **{"blob_threshold_bytes": blobs.THRESHOLD, **options},
        )

    @property
    def database(self) -> Database[Any]:
        return self.client[self.database_name]

    @property
    def sessions(self) -> Any:
        return self.database[self.collection]

    @property
    def repository(self) -> MongoDBSessionRepository:
        return MongoDBSessionRepository(
            client=self.client, database_name=self.database_name, collection_name=self.collection
        )

    def sweep(self) -> int:
        """Sweep without any grace. Ids tell whole seconds, so this is ahead of the one that is passing."""
        return swept(self.repository, -2)


def unheard(messages: int) -> None:
    """Nobody is told."""


def turn_with_images(durability: Any) -> Callable[..., None]:
    def act(place: Place, acknowledge: Acknowledge = unheard) -> None:
        with place.manager(durability=durability) as manager:
            agent = blobs.talker(manager)
            agent._model_state["screen"] = blobs.data(7)
            agent(blobs.shown("look", 3, 4))
            acknowledge(4)

    return act


def redaction_of_an_image(place: Place, acknowledge: Acknowledge = unheard) -> None:
    with place.manager() as manager:
        agent = blobs.talker(manager)
        manager.append_message({"role": "user", "content": blobs.shown("my secret", 3)}, agent)
        acknowledge(3)
        manager.redact_latest_message(by_hand("[redacted]"), agent)
        acknowledge(4)


def deletion(place: Place, acknowledge: Acknowledge = unheard) -> None:
    place.repository.delete_session("s")
    acknowledge(1)


def sweeping(place: Place, acknowledge: Acknowledge = unheard) -> None:
    place.sweep()
    acknowledge(1)


def turn_that_moves_parts_on(place: Place, acknowledge: Acknowledge = unheard) -> None:
    with place.manager(ttl_hours=10, **SMALL) as manager:
        agent = blobs.talker(manager, conversation_manager=SlidingWindowConversationManager(window_size=4))
        agent(blobs.shown("hello", 1))


WITH_IMAGES: dict[str, Callable[..., None]] = {
    "a turn with message": turn_with_images("message"),
    "a turn with turn": turn_with_images("turn"),
    "a redaction": redaction_of_an_image,
    "a deletion": deletion,
    "a sweep": sweeping,
    "a turn that moves parts on": turn_that_moves_parts_on,
}


def with_images(act: Callable[..., None]) -> Callable[[Scene], Callable[[Acknowledge], None]]:
    def deed(scene: Scene) -> Callable[[Acknowledge], None]:
        put_back(scene.plain[scene.database_name])
        return lambda acknowledge: act(Place(scene.client, scene.database_name), acknowledge)

    return deed


DEEDS: dict[str, Callable[[Scene], Callable[[Acknowledge], None]]] = {
    "converse with message": converse_in_all_kinds("message"),
    "converse with turn": converse_in_all_kinds("turn"),
    "archive": archiving,
    "redact": after(archived, redact),
    "redact early": after(half_archived, redact),
    "index what is in the file": after(put_from_file, index),
    "redact what is in the file": after(put_from_file, redact),
    **{name: with_images(act) for name, act in WITH_IMAGES.items()},
}
"""What each does before it can be killed; what it returns is what it is killed in."""
