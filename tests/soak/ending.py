"""What an operator does when nothing writes any more, before what is left is looked at."""

import contextlib
from typing import Any

from offline_model import OfflineScriptedModel
from pymongo import MongoClient
from strands import Agent
from support.waiting import eventually

from mongodb_session_manager import MongoDBSessionManager
from mongodb_session_manager.errors import SessionNotFoundError
from mongodb_session_manager.mongodb_session_repository import RepositoryOfManagers
from soak import plan
from soak.world import COLLECTION

_SWEEPS = 2


def tidy_up(client: MongoClient[Any], database: str) -> list[str]:
    """Wait for what expires, sweep, index what is not indexed; return what cannot be restored before and after."""
    found = restored(client, database)
    sessions = client[database][COLLECTION]
    brief = {"_id": {"$regex": "^brief-"}}
    eventually(lambda: not sessions.count_documents(brief), message="what has expired is removed")
    repository = RepositoryOfManagers(None, database, COLLECTION, client)
    for _ in range(_SWEEPS):
        repository.sweep(0)
    repository.index_messages()
    return found + restored(client, database)


def restored(client: MongoClient[Any], database: str) -> list[str]:
    """Build each agent of each session, and read all of its messages; return what fails."""
    found: list[str] = []
    repository = RepositoryOfManagers(None, database, COLLECTION, client)
    for session in list(client[database][COLLECTION].find({}, {"agent_ids": 1})):
        planned = plan.by_id(session["_id"])
        for agent_id in session.get("agent_ids", []):
            try:
                read = [message.message_id for message in repository.list_messages(session["_id"], agent_id)]
                if read != list(range(len(read))):
                    found.append(f"restored: {agent_id} of {session['_id']} is read as {read}")
                if not planned.lasts and not repository.session_exists(session["_id"]):
                    continue  # It has expired; it is not to be begun anew.
                options: dict[str, Any] = {"ttl_hours": planned.ttl_hours}
                manager = MongoDBSessionManager(session["_id"], None, database, COLLECTION, client, **options)
                with contextlib.suppress(SessionNotFoundError):
                    Agent(
                        model=OfflineScriptedModel(), agent_id=agent_id, session_manager=manager, callback_handler=None
                    )
            except Exception as error:
                found.append(f"restored: {agent_id} of {session['_id']}: {error!r}")
    return found
