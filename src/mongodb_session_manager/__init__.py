"""Strands Agents sessions in MongoDB."""

from .documents import MongoDBSessionAgent
from .errors import (
    AgentNotFoundError,
    BlobMissingError,
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

__all__ = [
    "AgentNotFoundError",
    "BlobMissingError",
    "InvalidIdentifierError",
    "MessageHit",
    "MessageNotFoundError",
    "MongoDBConnectionPool",
    "MongoDBSessionAgent",
    "MongoDBSessionError",
    "MongoDBSessionManager",
    "MongoDBSessionManagerFactory",
    "MongoDBSessionRepository",
    "SessionBusyError",
    "SessionConflictError",
    "SessionExistsError",
    "SessionLease",
    "SessionNotFoundError",
    "UnstorableValueError",
    "close_global_factory",
    "create_mongodb_session_manager",
    "get_global_factory",
    "initialize_global_factory",
]
