"""The view of all messages, in the database."""

from __future__ import annotations

from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from .._model.documents import Document
from .._statements import messages_view
from ..errors import MongoDBSessionError
from .server_codes import NAMESPACE_EXISTS


def create_messages_view(sessions: Collection[Document], history: Collection[Document]) -> str:
    """Make the view of all messages, or bring it up to date; return its name.

    Raises:
        MongoDBSessionError: Something else has that name.
    """
    database, name = sessions.database, f"{sessions.name}_messages"
    pipeline = messages_view.pipeline(sessions.name, history.name)
    try:
        database.create_collection(name, viewOn=sessions.name, pipeline=pipeline, check_exists=False)
    except OperationFailure as error:
        if error.code != NAMESPACE_EXISTS:
            raise
        there = next(iter(database.list_collections(filter={"name": name})), {})
        if there.get("options", {}).get("viewOn") != sessions.name:
            raise MongoDBSessionError(
                f"{database.name}.{name} is there already and is no view of {sessions.name}; it was left as it is. "
                "Rename it, or keep the sessions in a collection of another name"
            ) from error
        database.command("collMod", name, viewOn=sessions.name, pipeline=pipeline)
    return name
