"""Strands Agents sessions in MongoDB."""

from ._model.documents import MongoDBSessionAgent
from ._model.metrics_summary import (
    AgentMetrics,
    FeedbackCounts,
    LatencyMetrics,
    MetricsSummary,
    ModelMetrics,
    ModelPrice,
    TokenCounts,
    ToolMetrics,
)
from ._session.lease import SessionLease
from ._session.metadata_cache import SessionMetadataCache
from ._statements.session_headers import SessionHeader
from ._statements.session_listing import SessionPage
from ._store.search_index import MessageHit
from .errors import (
    AgentNotFoundError,
    BlobMissingError,
    DamagedSessionError,
    HistoryIncompleteError,
    InvalidIdentifierError,
    MessageNotFoundError,
    MongoDBSessionError,
    SessionBusyError,
    SessionConflictError,
    SessionExistsError,
    SessionNotFoundError,
    UnstorableValueError,
)
from .mongodb_connection_pool import MongoDBConnectionPool
from .mongodb_session_factory import (
    MongoDBSessionManagerFactory,
    close_global_factory,
    get_global_factory,
    initialize_global_factory,
)
from .mongodb_session_manager import MongoDBSessionManager, create_mongodb_session_manager
from .mongodb_session_repository import MongoDBSessionRepository

__all__ = [
    "AgentMetrics",
    "AgentNotFoundError",
    "BlobMissingError",
    "DamagedSessionError",
    "FeedbackCounts",
    "HistoryIncompleteError",
    "InvalidIdentifierError",
    "LatencyMetrics",
    "MessageHit",
    "MessageNotFoundError",
    "MetricsSummary",
    "ModelMetrics",
    "ModelPrice",
    "MongoDBConnectionPool",
    "MongoDBSessionAgent",
    "MongoDBSessionError",
    "MongoDBSessionManager",
    "MongoDBSessionManagerFactory",
    "MongoDBSessionRepository",
    "SessionBusyError",
    "SessionConflictError",
    "SessionExistsError",
    "SessionHeader",
    "SessionLease",
    "SessionMetadataCache",
    "SessionNotFoundError",
    "SessionPage",
    "TokenCounts",
    "ToolMetrics",
    "UnstorableValueError",
    "close_global_factory",
    "create_mongodb_session_manager",
    "get_global_factory",
    "initialize_global_factory",
]
