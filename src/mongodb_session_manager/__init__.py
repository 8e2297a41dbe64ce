"""Strands Agents sessions in MongoDB."""

from .documents import MongoDBSessionAgent
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
from .lease import SessionLease
from .metadata_cache import SessionMetadataCache
from .metrics_summary import (
    AgentMetrics,
    FeedbackCounts,
    LatencyMetrics,
    MetricsSummary,
    ModelMetrics,
    ModelPrice,
    TokenCounts,
    ToolMetrics,
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
from .search_index import MessageHit
from .session_listing import SessionHeader, SessionPage

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
