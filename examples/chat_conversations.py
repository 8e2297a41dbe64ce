"""The other endpoints of the chat: a user's conversations, their messages, state, metadata, feedback and figures.

They only call the library. The endpoints are `def` functions, so FastAPI runs them in threads, and the event loop never
waits for MongoDB. While a turn is running, its lease refuses the endpoints that write: 409.
"""

import time
from collections.abc import Callable
from typing import Annotated, Literal

from chat_identity import Identity, own_application, own_options, own_session_id
from chat_json import Json, JsonObject
from chat_list import conversations_with, summary_of, uuid_of
from chat_messages import figures_of, messages_of, metrics_of, newest_turns, ratings_of, shown, title_of
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from strands import Agent
from strands.agent.state import AgentState

from mongodb_session_manager import MongoDBSessionManager, MongoDBSessionManagerFactory, SessionBusyError
from mongodb_session_manager.fastapi import open_session

LISTED_TURNS = 50


class Change(BaseModel):
    """A change of the agent's state or of metadata. Keys that it does not name are kept."""

    model_config = ConfigDict(extra="forbid")
    set: JsonObject = {}
    delete: list[str] = Field([], max_length=1_000)


class Feedback(BaseModel):
    """A rating of a message. The newest one counts."""

    message_id: Annotated[int, Field(ge=0, lt=2**31)]
    rating: Literal["up", "down"]
    comment: Annotated[str, Field(max_length=2_000)] = ""


async def factory_of(request: Request) -> MongoDBSessionManagerFactory:
    """Return the application's factory."""
    return request.app.state.session_factory


Factory = Annotated[MongoDBSessionManagerFactory, Depends(factory_of)]


def existing(factory: Factory, session_id: Annotated[str, Depends(own_session_id)]) -> MongoDBSessionManager:
    """Return the manager of an existing conversation; nothing else is read, and no session is created."""
    manager = factory.create_session_manager(session_id)
    if not manager.check_session_exists():
        raise HTTPException(404, "There is no such conversation.")
    return manager


Existing = Annotated[MongoDBSessionManager, Depends(existing)]


async def id_of_existing(manager: Existing) -> str:
    """Return the id of an existing conversation."""
    return manager.session_id


def conversations_router(agent_id: str, build_agent: Callable[[MongoDBSessionManager], Agent]) -> APIRouter:
    """Return the router. `build_agent` builds the agent with the id `agent_id` on a session."""
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
            return Json({"conversations": conversations_with(factory, application, words)[:limit], "cursor": None})
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
        found, ratings = messages_of(manager, agent_id, start, stop), ratings_of(manager, agent_id)
        messages = [{**shown(message), "feedback": ratings.get(message["message_id"])} for message in found]
        title = title_of(manager, agent_id)
        return Json({"id": uuid_of(manager.session_id), "title": title, "messages": messages, "more": start > 0})

    @router.delete("/conversation", status_code=204)
    def delete(manager: Existing) -> Response:
        patiently(lambda: manager.session_repository.delete_session(manager.session_id))
        return Response(status_code=204)

    @router.get("/conversation/details")
    def details(manager: Existing) -> Json:
        agent = manager.session_repository.read_agent(manager.session_id, agent_id)
        metrics = manager.get_metrics_summary(agent_id)
        turns = newest_turns(manager, agent_id, LISTED_TURNS)
        first = max(metrics.turns, len(turns)) - len(turns) + 1
        return Json(
            {
                "state": agent.state if agent else {},
                "metadata": manager.get_metadata().get("metadata", {}),
                "turns": [
                    {"turn": number, "created_at": turn[0]["created_at"].isoformat(), **metrics_of(turn)}
                    for number, turn in enumerate(turns, first)
                ],
                "summary": figures_of(metrics, ratings_of(manager, agent_id)),
            }
        )

    # With a lease, because a running turn would overwrite the state at its end.
    opened = open_session(
        agent_id=agent_id, session_id=Depends(id_of_existing), request_options=Depends(own_options), lease=20
    )

    @router.put("/conversation/state")
    def put_state(session: Annotated[MongoDBSessionManager, opened], change: Change) -> Json:
        agent = build_agent(session)
        kept = {key: value for key, value in agent.state.get().items() if key not in change.delete}
        agent.state = AgentState({**kept, **change.set})
        session.sync_agent(agent)
        stored = session.session_repository.read_agent(session.session_id, agent_id)
        return Json(stored.state if stored else {})

    @router.put("/conversation/metadata")
    def put_metadata(manager: Existing, change: Change) -> Json:
        # The repository raises an error if the conversation was deleted meanwhile; a manager would create it again.
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
    """Write; wait up to `seconds` for a turn's lease, which ends shortly after the last byte of the answer."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return write()
        except SessionBusyError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)
