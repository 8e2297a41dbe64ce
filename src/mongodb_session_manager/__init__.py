"""Strands Agents sessions in MongoDB."""

from ._client.pool_statistics import PoolConfiguration, PoolStatistics, PoolStats, ServerPoolStats
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
from ._session.metadata_cache import MetadataCacheStats, SessionMetadataCache
from ._session.options import Durability, FeedbackHook, MetadataHook, OnConflict
from ._statements.session_headers import SessionHeader
from ._statements.session_listing import SessionPage, SortBy
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
    FactoryStats,
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
    "Durability",
    "FactoryStats",
    "FeedbackCounts",
    "FeedbackHook",
    "HistoryIncompleteError",
    "InvalidIdentifierError",
    "LatencyMetrics",
    "MessageHit",
    "MessageNotFoundError",
    "MetadataCacheStats",
    "MetadataHook",
    "MetricsSummary",
    "ModelMetrics",
    "ModelPrice",
    "MongoDBConnectionPool",
    "MongoDBSessionAgent",
    "MongoDBSessionError",
    "MongoDBSessionManager",
    "MongoDBSessionManagerFactory",
    "MongoDBSessionRepository",
    "OnConflict",
    "PoolConfiguration",
    "PoolStatistics",
    "PoolStats",
    "ServerPoolStats",
    "SessionBusyError",
    "SessionConflictError",
    "SessionExistsError",
    "SessionHeader",
    "SessionLease",
    "SessionMetadataCache",
    "SessionNotFoundError",
    "SessionPage",
    "SortBy",
    "TokenCounts",
    "ToolMetrics",
    "UnstorableValueError",
    "close_global_factory",
    "create_mongodb_session_manager",
    "get_global_factory",
    "initialize_global_factory",
]
