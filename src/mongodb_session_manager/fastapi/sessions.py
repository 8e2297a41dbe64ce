"""The session of a request: opened before the endpoint, stored and closed after the last byte of the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, Literal

from fastapi import Depends, Header
from pymongo.errors import PyMongoError
from starlette.requests import HTTPConnection
from strands import Agent
from strands.types.content import Message

from .._model.limits import REQUEST_LEASE_WAIT_SECONDS
from .._session.lease import SessionLease
from ..errors import MongoDBSessionError
from ..mongodb_session_manager import MongoDBSessionManager
from .lifespan import factory_of, request_under_way


def open_session(
    *,
    agent_id: str | Iterable[str] | None = None,
    session_id: Any = None,
    lease: float | None = None,
    lease_wait: float = REQUEST_LEASE_WAIT_SECONDS,
    request_options: Any = None,
    scope: Literal["request", "function"] = "request",
    **options: Any,
) -> Any:
    """Return a dependency: the manager of the request's session, opened off the event loop.

    ``Session = Annotated[MongoDBSessionManager, open_session(agent_id="support")]`` is the type of a parameter then.
    Building these agents on it sends nothing. When the response has been sent, a stream to its end, what is unsaved is
    stored and the session closed.

    Args:
        agent_id: The agent, or agents, that the endpoint will build.
        session_id: Where the id comes from: ``Header(…)``, ``Path(…)``, ``Query(…)`` or ``Cookie(…)`` of FastAPI; one
            without an alias is named ``session_id``. Or ``Depends(…)`` on a function of yours that returns it. Default:
            the header ``X-Session-ID``.
        lease: Make the request the only writer of the session. The lease runs for so many seconds and is renewed while
            the request lasts, so a process that dies keeps nobody out for longer. A second request waits
            ``lease_wait`` seconds, then raises ``SessionBusyError``. The lease ends just after the last byte of a
            response, so 0 would refuse a client that is quick to ask again.
        lease_wait: See above.
        request_options: ``Depends(…)`` on a function of yours that returns a mapping: parameters of this request's
            manager that win over ``options``, ``database_name`` and ``collection_name`` among them. For tenants.
        scope: ``"function"`` stores and closes before the response is sent, so that a failure of that becomes the
            response; not for streams.
        **options: Parameters of ``MongoDBSessionManager`` that differ from the factory's, such as
            ``durability="turn"``.
    """
    agent_ids = [agent_id] if isinstance(agent_id, str) else list(agent_id or ())
    source = Header(alias="X-Session-ID") if session_id is None else session_id
    further = Depends(_no_options) if request_options is None else request_options

    async def session(
        connection: HTTPConnection, session_id: str = source, chosen: Any = further
    ) -> AsyncIterator[MongoDBSessionManager]:
        factory = factory_of(connection)
        manager = factory.create_session_manager(session_id, **{**options, **chosen})
        manager._agents.kept = []  # The endpoint's are gone when it has returned.
        with request_under_way(factory):
            try:
                async with manager, nullcontext() if lease is None else _leased(manager, lease, lease_wait):
                    # Inside the lease: the agents are to have what its former holder wrote.
                    await manager._executor.run(partial(manager._session.prefetch, agent_ids))
                    async with _turns_of(manager):
                        yield manager
            finally:
                manager._agents.kept = None

    return Depends(session, scope=scope)


async def _no_options() -> Mapping[str, Any]:
    return {}


@asynccontextmanager
async def _leased(manager: MongoDBSessionManager, seconds: float, wait: float) -> AsyncIterator[None]:
    """Hold the session's lease, however long that takes."""
    async with manager.lease(seconds, wait) as lease:
        renewing = asyncio.create_task(_renew(manager, lease))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)


async def _renew(manager: MongoDBSessionManager, lease: SessionLease) -> None:
    pause = lease.seconds / 3
    while True:
        await asyncio.sleep(pause)
        try:
            await manager._executor.run(lease.renew)
            pause = lease.seconds / 3
        except PyMongoError:
            pause = lease.seconds / 30  # There is time for more attempts.
        except MongoDBSessionError:
            return  # It has run out, or the session is gone: the next write says so.


async def stream_turn(
    session: MongoDBSessionManager, agent: Agent, prompt: Any = None, **options: Any
) -> AsyncGenerator[dict[str, Any], None]:
    """Take one turn and yield Strands' events, as ``agent.stream_async`` does, for a client that may go away.

    If nobody reads on, the model is stopped and what it had said is stored as its answer, so that the conversation
    holds what the person has read. The turn runs in a task of its own, one event at a time; the request's session waits
    for its end.

    Args:
        session: The request's session, from ``open_session``.
        agent: An agent that was built on it.
        prompt: As for ``agent.stream_async``.
        **options: Likewise.

    Yields:
        Strands' events; ``event["data"]`` is a piece of text where there is one.

    Raises:
        RuntimeError: The session is not one of ``open_session``, or its request is over.
        Exception: What ``agent.stream_async`` raises.
    """
    turns = _turns.get(id(session))
    if turns is None:
        raise RuntimeError("stream_turn needs the session of a request that is under way: one from open_session()")
    events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    # In a task of its own: a response whose client is gone is cancelled again and again until it has ended, which keeps
    # the loop busy while a commit settles; and one that was waiting to send leaves its generator where it stands.
    turn = asyncio.create_task(_take_turn(session, agent, prompt, options, events))
    turn.add_done_callback(lambda _: events.put_nowait(None))
    turns.append(turn)
    try:
        while (event := await events.get()) is not None:
            yield event
            events.task_done()
        turn.result()
    finally:
        turn.cancel()  # Whoever has the session waits for that.


async def _take_turn(
    session: MongoDBSessionManager,
    agent: Agent,
    prompt: Any,
    options: dict[str, Any],
    events: asyncio.Queue[dict[str, Any] | None],
) -> None:
    said: list[str] = []
    try:
        async with aclosing(agent.stream_async(prompt, **options)) as stream:  # type: ignore[type-var]
            async for event in stream:
                if "data" in event:
                    said.append(event["data"])
                elif "message" in event:
                    said.clear()
                events.put_nowait(event)
                await events.join()  # The next one when somebody asks for it.
    except asyncio.CancelledError:
        # Behind an answer there is none to be completed: it was just being stored.
        if said and agent.messages and agent.messages[-1]["role"] == "user":
            answer: Message = {"role": "assistant", "content": [{"text": "".join(said)}]}
            agent.messages.append(answer)
            session.append_message(answer, agent)
        raise


# The turns that are under way, by the identity of the open session of a request.
_turns: dict[int, list[asyncio.Task[None]]] = {}


@asynccontextmanager
async def _turns_of(session: MongoDBSessionManager) -> AsyncIterator[None]:
    turns = _turns[id(session)] = []
    try:
        yield
    finally:
        del _turns[id(session)]
        for turn in turns:
            turn.cancel()
        await asyncio.gather(*turns, return_exceptions=True)  # Whoever read the stream has its error.
