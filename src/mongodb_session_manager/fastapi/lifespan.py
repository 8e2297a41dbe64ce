"""The factory of an application: made when it starts, closed when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import Any

from fastapi import FastAPI
from pymongo import MongoClient
from starlette.requests import HTTPConnection

from .. import mongodb_session_factory as factories
from .._model.limits import ENDING_SECONDS
from .metrics import SessionMetrics

# The requests that are under way: what tells that one is over, and its factory.
_under_way: dict[asyncio.Future[None], factories.MongoDBSessionManagerFactory] = {}

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]


def session_lifespan(
    connection_string: str | None = None,
    database_name: str = "database_name",
    collection_name: str = "collection_name",
    client: MongoClient[Any] | None = None,
    *,
    lifespan: Lifespan | None = None,
    **options: Any,
) -> Lifespan:
    """Return a lifespan for ``FastAPI(lifespan=…)`` that owns the application's factory.

    The factory is ``app.state.session_factory`` and the global one, ``get_global_factory()``; its figures are
    ``app.state.session_metrics``. At the end it is closed, off the event loop, and what is unsent is stored before.

    Args:
        connection_string: A MongoDB URI.
        database_name: Where sessions are stored.
        collection_name: The collection of the session documents.
        client: A client of yours to borrow, instead of ``connection_string``. See ``SessionMetrics`` for how its
            commands are counted.
        lifespan: Your own, run inside: it finds the factory there, and its state is the application's.
        **options: Further parameters of ``MongoDBSessionManagerFactory``, and any option of ``MongoClient``.

    Returns:
        The lifespan. Entering it raises what ``initialize_global_factory`` raises, a ``RuntimeError`` where another
        factory is the global one; leaving it, what ``close_global_factory`` raises.
    """

    @asynccontextmanager
    async def owns_the_factory(app: FastAPI) -> AsyncIterator[Mapping[str, Any] | None]:
        metrics = SessionMetrics()
        given = dict(options)
        if client is None:
            given["event_listeners"] = [*(options.get("event_listeners") or ()), metrics]
        # Off the loop: the name of a cluster may have to be looked up.
        factory = await asyncio.to_thread(
            factories.initialize_global_factory, connection_string, database_name, collection_name, client, **given
        )
        try:
            metrics.watch(factory)
            app.state.session_factory = factory
            app.state.session_metrics = metrics
            async with nullcontext() if lifespan is None else lifespan(app) as state:
                yield state
        finally:
            await _requests_are_over(factory)
            await asyncio.to_thread(factories.close_global_factory)

    return owns_the_factory


def factory_of(connection: HTTPConnection) -> factories.MongoDBSessionManagerFactory:
    """Return the application's factory; of an application mounted into another one, the global factory.

    Raises:
        RuntimeError: There is neither.
    """
    found = getattr(connection.app.state, "session_factory", None)
    return found if isinstance(found, factories.MongoDBSessionManagerFactory) else factories.get_global_factory()


@contextmanager
def request_under_way(factory: factories.MongoDBSessionManagerFactory) -> Iterator[None]:
    """Let the application end only when this is over: what a request has still to store needs the factory's client."""
    is_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    _under_way[is_over] = factory
    try:
        yield
    finally:
        del _under_way[is_over]
        is_over.set_result(None)


async def _requests_are_over(factory: factories.MongoDBSessionManagerFactory) -> None:
    """Wait for requests that are ending: a server that is told to end cancels them, and ends the lifespan at once."""
    here = asyncio.get_running_loop()
    ending = [over for over, of in list(_under_way.items()) if of is factory and over.get_loop() is here]
    if ending:
        await asyncio.wait(ending, timeout=ENDING_SECONDS)
