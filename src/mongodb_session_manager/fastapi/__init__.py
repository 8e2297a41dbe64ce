"""FastAPI: a lifespan, the request's session, errors as statuses, health and metrics.

Needs the extra ``fastapi``: ``pip install 'mongodb-session-manager[fastapi]'``.
"""

try:
    import fastapi as _fastapi  # noqa: F401
    import prometheus_client as _prometheus_client  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "mongodb_session_manager.fastapi needs an extra: pip install 'mongodb-session-manager[fastapi]'",
        name=error.name,
    ) from error

from .exceptions import add_exception_handlers, status_of
from .lifespan import session_lifespan
from .metrics import SessionMetrics
from .router import create_router
from .sessions import open_session, stream_turn

__all__ = [
    "SessionMetrics",
    "add_exception_handlers",
    "create_router",
    "open_session",
    "session_lifespan",
    "status_of",
    "stream_turn",
]
