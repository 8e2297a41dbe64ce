"""What a load balancer, an orchestrator and Prometheus ask."""

from __future__ import annotations

import asyncio

import pymongo
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pymongo.errors import PyMongoError

from ..mongodb_session_factory import MongoDBSessionManagerFactory
from .lifespan import factory_of
from .metrics import SessionMetrics


def create_router(*, ping_timeout: float = 1.0, metrics: SessionMetrics | None = None) -> APIRouter:
    """Return a router with ``/health``, ``/health/ready`` and ``/metrics``, for ``app.include_router(…)``.

    - ``GET /health``: the process answers; MongoDB is not asked. 200 ``{"status": "ok"}``.
    - ``GET /health/ready``, also ``/health?ready``: MongoDB answers a ping, sent off the event loop. Else 503
      ``{"status": "unavailable"}``.
    - ``GET /metrics``: Prometheus' text; ``{"pool": …}``, see ``factory.get_connection_stats``, to a client whose
      ``Accept`` header names ``application/json`` first.

    ``/metrics`` names the hosts of the database: keep it from the public.

    Args:
        ping_timeout: Seconds in which MongoDB must have answered.
        metrics: What is told; default: that of ``session_lifespan``, or a new one for the application's factory, which
            then does not count commands.

    Raises:
        ValueError: ``ping_timeout`` is not above 0.
    """
    if not ping_timeout > 0:
        raise ValueError("ping_timeout must be above 0 seconds")
    router = APIRouter(tags=["operations"])

    @router.get("/health")
    async def health(request: Request) -> Response:
        if "ready" in request.query_params:
            return await ready(request)
        return JSONResponse({"status": "ok"})

    @router.get("/health/ready")
    async def ready(request: Request) -> Response:
        # In a thread of asyncio's: those of the client may all wait for a database that does not answer.
        answers = await asyncio.to_thread(_ping, factory_of(request), ping_timeout)
        return JSONResponse({"status": "ok"} if answers else {"status": "unavailable"}, 200 if answers else 503)

    @router.get("/metrics")
    async def figures(request: Request) -> Response:
        accept = ",".join(request.headers.getlist("accept"))
        factory = factory_of(request)
        if asks_for_json(accept):
            return JSONResponse({"pool": await asyncio.to_thread(factory.get_connection_stats)})
        state = request.app.state
        told = metrics or getattr(state, "session_metrics", None)
        if told is None:
            told = state.session_metrics = SessionMetrics()
        told.watch(factory)
        content, media_type = await asyncio.to_thread(told.render, accept)
        return Response(content, headers={"Content-Type": media_type})

    return router


def asks_for_json(accept: str) -> bool:
    """Return whether an ``Accept`` header names JSON first. Prometheus names its own formats; ``*/*`` is no wish."""
    first = accept.split(",")[0]
    return first.partition(";")[0].strip().lower() == "application/json"


def _ping(factory: MongoDBSessionManagerFactory, seconds: float) -> bool:
    try:
        with pymongo.timeout(seconds):
            factory.client.admin.command("ping")
    except (PyMongoError, RuntimeError):  # The latter: it is closed already.
        return False
    return True
