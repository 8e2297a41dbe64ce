"""What stands beside the chat itself: one's conversations, their messages, state, metadata, feedback and figures.

All of it is plain library calls. The endpoints are `def`, so FastAPI runs them in threads, and none of them makes the
event loop wait for MongoDB. Those that may not meet a turn that is under way are refused by its lease: 409.
"""

import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal

from chat_guard import Identity, Json, JsonObject, own_application, own_options, own_session_id, to_json
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from strands import Agent
from strands.agent.state import AgentState

from mongodb_session_manager import (
    MongoDBSessionError,
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    SessionBusyError,
    SessionHeader,
)
from mongodb_session_manager.fastapi import open_session

LISTED_TURNS = 50
SEARCHED_SESSIONS = 1_000
SEARCHED_MESSAGES = 1_000  # So that a long conversation about one thing does not hide the others.
EXCERPT_CHARACTERS = 160

Document = dict[str, Any]


class MetadataChange(BaseModel):
    """A change of metadata; a dot in a key addresses a nested field."""

    set: JsonObject = {}
    delete: list[str] = Field([], max_length=1_000)


class StateChange(BaseModel):
    """A change of the agent's state: what else the agent's tools have put into it meanwhile stays."""

    model_config = ConfigDict(extra="forbid")
    set: JsonObject = {}
    delete: list[str] = Field([], max_length=1_000)


class Feedback(BaseModel):
    """What somebody says of a message; the newest counts."""

    message_id: Annotated[int, Field(ge=0, lt=2**31)]
    rating: Literal["up", "down"]
    comment: Annotated[str, Field(max_length=2_000)] = ""


async def factory_of(request: Request) -> MongoDBSessionManagerFactory:
    """Return the application's factory."""
    return request.app.state.session_factory


Factory = Annotated[MongoDBSessionManagerFactory, Depends(factory_of)]


def existing(factory: Factory, session_id: Annotated[str, Depends(own_session_id)]) -> MongoDBSessionManager:
    """Return the manager of a conversation that is there; it has read nothing else and begun nothing."""
    manager = factory.create_session_manager(session_id)
    if not manager.check_session_exists():
        raise HTTPException(404, "There is no such conversation.")
    return manager


Existing = Annotated[MongoDBSessionManager, Depends(existing)]


async def id_of_existing(manager: Existing) -> str:
    """Return the id of a conversation that is there."""
    return manager.session_id


def conversations_router(agent_id: str, build_agent: Callable[[MongoDBSessionManager], Agent]) -> APIRouter:
    """Return the router; `build_agent` builds the agent of that id on a session."""
    router = APIRouter()

    @router.get("/conversations")
    def conversations(
        factory: Factory,
        owner: Identity,
        search: Annotated[str, Query(max_length=200)] = "",
        cursor: Annotated[str | None, Query(max_length=500)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Json:
        application = own_application(owner)
        if words := search.split():
            return Json({"conversations": found(factory, application, words)[:limit], "cursor": None})
        try:
            page = factory.list_sessions(application_name=application, sort_by="updated_at", limit=limit, cursor=cursor)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return Json({"conversations": [summary_of(header) for header in page.sessions], "cursor": page.cursor})

    @router.get("/conversation")
    def conversation(
        manager: Existing,
        before: Annotated[int | None, Query(ge=0)] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> Json:
        stop = manager.get_message_count(agent_id)
        stop = stop if before is None else min(before, stop)
        start = max(0, stop - limit)
        messages = messages_of(manager, agent_id, start, stop)
        ratings = ratings_of(manager, agent_id)
        return Json(
            {
                "id": uuid_of(manager.session_id),
                "title": title_of(manager, agent_id),
                "messages": [
                    {**shown(message), "feedback": ratings.get(message["message_id"])} for message in messages
                ],
                "more": start > 0,
            }
        )

    @router.delete("/conversation", status_code=204)
    def delete(manager: Existing) -> Response:
        patiently(lambda: manager.session_repository.delete_session(manager.session_id))
        return Response(status_code=204)

    @router.get("/conversation/details")
    def details(manager: Existing) -> Json:
        agent = manager.session_repository.read_agent(manager.session_id, agent_id)
        metrics = manager.get_metrics_summary(agent_id)
        ratings = list(ratings_of(manager, agent_id).values())
        return Json(
            {
                "state": agent.state if agent else {},
                "metadata": manager.get_metadata().get("metadata", {}),
                "turns": newest_turns(manager, agent_id, metrics.turns),
                "summary": {
                    "messages": metrics.messages,
                    "turns": metrics.turns,
                    "input_tokens": metrics.tokens.input,
                    "output_tokens": metrics.tokens.output,
                    "latency_ms_p50": metrics.latency.p50,
                    "latency_ms_p95": metrics.latency.p95,
                    "tool_calls": sum(tool.calls for tool in metrics.tools.values()),
                    "feedback": {rating: ratings.count(rating) for rating in ("up", "down")},
                },
            }
        )

    # As for a turn, in a lease: a turn that is under way would overwrite the state at its end.
    opened = open_session(
        agent_id=agent_id, session_id=Depends(id_of_existing), request_options=Depends(own_options), lease=20
    )

    @router.put("/conversation/state")
    def put_state(session: Annotated[MongoDBSessionManager, opened], change: StateChange) -> Json:
        agent = build_agent(session)
        kept = {key: value for key, value in agent.state.get().items() if key not in change.delete}
        agent.state = AgentState({**kept, **change.set})
        session.sync_agent(agent)
        stored = session.session_repository.read_agent(session.session_id, agent_id)
        return Json(stored.state if stored else {})

    @router.put("/conversation/metadata")
    def put_metadata(manager: Existing, change: MetadataChange) -> Json:
        # The repository's methods, for which a conversation that was deleted meanwhile is an error: it stays deleted.
        repository, session_id = manager.session_repository, manager.session_id
        patiently(lambda: repository.update_metadata(session_id, change.set))
        patiently(lambda: repository.delete_metadata(session_id, change.delete))
        return Json(repository.get_metadata(session_id).get("metadata", {}))

    @router.post("/conversation/feedback", status_code=201)
    def feedback(manager: Existing, given: Feedback) -> Json:
        stored = {**given.model_dump(), "agent_id": agent_id}
        patiently(lambda: manager.session_repository.add_feedback(manager.session_id, stored))
        return Json({"message_id": given.message_id, "rating": given.rating}, 201)

    return router


def patiently(write: Callable[[], None], seconds: float = 1) -> None:
    """Write, and wait so long for a turn to end: its lease ends a moment after the last byte of its answer."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return write()
        except SessionBusyError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


# --- Lists and search


def uuid_of(session_id: str) -> str:
    """Return what the frontend calls a conversation."""
    return session_id.rpartition(".")[2]


def summary_of(header: SessionHeader, excerpt: str | None = None) -> Document:
    """Return a conversation as the list shows it."""
    return {
        "id": uuid_of(header.session_id),
        "title": header.title or "New conversation",
        "created_at": header.created_at.isoformat(),
        "updated_at": header.updated_at.isoformat(),
        "messages": header.message_count,
        "input_tokens": header.input_tokens,
        "output_tokens": header.output_tokens,
        "excerpt": excerpt,
    }


def found(factory: MongoDBSessionManagerFactory, application: str, words: list[str]) -> list[Document]:
    """Return the conversations that have all of these words, in the title or in one message, the newest first."""
    phrases = " ".join(f'"{word}"' for word in (word.replace('"', "") for word in words) if word)
    excerpts: dict[str, str] = {}
    with suppress(MongoDBSessionError):  # Nobody has said anything yet that could be found.
        searched = {"application_name": application, "limit": SEARCHED_MESSAGES}
        for hit in factory.search_messages(phrases, **searched) if phrases else []:
            excerpts.setdefault(hit.session_id, excerpt(hit.text, words))
    result = []
    for header in all_headers(factory, application):
        title = (header.title or "").casefold()
        if header.session_id in excerpts or all(word.casefold() in title for word in words):
            result.append(summary_of(header, excerpts.get(header.session_id)))
    return result


def all_headers(factory: MongoDBSessionManagerFactory, application: str) -> Iterator[SessionHeader]:
    """Yield the newest sessions of an application."""
    cursor = None
    for _ in range(SEARCHED_SESSIONS // 100):
        page = factory.list_sessions(application_name=application, sort_by="updated_at", limit=100, cursor=cursor)
        yield from page.sessions
        cursor = page.cursor
        if cursor is None:
            return


def excerpt(text: str, words: list[str]) -> str:
    """Cut out of a text what stands around the first of the words that is in it."""
    line = " ".join(text.split())
    at = min((at for at in (line.casefold().find(word.casefold()) for word in words) if at >= 0), default=0)
    start = max(0, at - EXCERPT_CHARACTERS // 3)
    cut = line[start : start + EXCERPT_CHARACTERS]
    return ("…" if start else "") + cut + ("…" if start + len(cut) < len(line) else "")


# --- Messages


def messages_of(manager: MongoDBSessionManager, agent_id: str, start: int, stop: int) -> list[Document]:
    """Return the stored messages from `message_id` start up to stop, archived ones included."""
    return manager.session_repository.list_message_documents(
        manager.session_id, agent_id, limit=stop - start, offset=start
    )


def shown(message: Document) -> Document:
    """Return a stored message as the frontend shows it."""
    blocks = message["content"]
    return {
        "message_id": message["message_id"],
        "role": message["role"],
        "text": text_of(message),
        "tool_uses": [tool_use(block["toolUse"]) for block in blocks if "toolUse" in block],
        "tool_results": [tool_result(block["toolResult"]) for block in blocks if "toolResult" in block],
        "created_at": message["created_at"].isoformat(),
        "metrics": metrics_of([message]) if message.get("event_loop_metrics") else None,
    }


def text_of(message: Document) -> str:
    """Return what a message says."""
    return "".join(block.get("text", "") for block in message["content"])


def tool_use(block: Document) -> Document:
    """Return a call of a tool as the frontend shows it."""
    return {"id": block["toolUseId"], "name": block["name"], "input": block["input"]}


def tool_result(block: Document) -> Document:
    """Return what a tool has answered as the frontend shows it."""
    parts = [part["text"] if "text" in part else to_json(part.get("json", "…")) for part in block["content"]]
    return {"id": block["toolUseId"], "status": block["status"], "text": "\n".join(parts)}


def metrics_of(messages: list[Document]) -> Document:
    """Return what stored messages have cost together."""
    stored = [found for message in messages if (found := message.get("event_loop_metrics"))]
    usage = [found.get("accumulated_usage", {}) for found in stored]
    return {
        "input_tokens": sum(found.get("inputTokens", 0) for found in usage),
        "output_tokens": sum(found.get("outputTokens", 0) for found in usage),
        "latency_ms": sum(found.get("accumulated_metrics", {}).get("latencyMs", 0) for found in stored),
    }


def title_of(manager: MongoDBSessionManager, agent_id: str) -> str:
    """Return the title that the list shows as well: the one that was given, or the first words."""
    given = manager.get_metadata().get("metadata", {}).get("title")
    if isinstance(given, str) and given.strip():
        return given
    first = " ".join("".join(map(text_of, messages_of(manager, agent_id, 0, 1))).split())
    cut = textwrap.shorten(first, 80, placeholder="…", break_on_hyphens=False)
    return cut if len(cut) > 40 or len(first) <= 80 else first[:79] + "…"


def ratings_of(manager: MongoDBSessionManager, agent_id: str) -> dict[int, str]:
    """Return the newest rating of each message that has one, by `message_id`."""
    return {
        feedback["message_id"]: feedback["rating"]
        for feedback in manager.get_feedbacks()
        if feedback.get("agent_id") == agent_id and feedback.get("message_id") is not None
    }


# --- Turns


def is_prompt(message: Document) -> bool:
    """Return whether a user's message begins a turn; the others hold results of tools."""
    return message["role"] == "user" and not any("toolResult" in block for block in message["content"])


def newest_turns(manager: MongoDBSessionManager, agent_id: str, total: int) -> list[Document]:
    """Return what the newest turns have cost, oldest first; `total` is how many there were."""
    start = manager.get_message_count(agent_id)
    messages: list[Document] = []
    while start > 0 and sum(map(is_prompt, messages)) < LISTED_TURNS:
        stop, start = start, max(0, start - 2 * LISTED_TURNS)
        messages[:0] = messages_of(manager, agent_id, start, stop)
    begins = [index for index, message in enumerate(messages) if is_prompt(message)][-LISTED_TURNS:]
    first = max(total, len(begins)) - len(begins) + 1
    return [
        {"turn": turn, "created_at": messages[begin]["created_at"].isoformat(), **metrics_of(messages[begin:end])}
        for turn, (begin, end) in enumerate(zip(begins, [*begins[1:], None], strict=True), first)
    ]
