"""Which clients this library works with, and how it makes one without letting a credential out."""

from __future__ import annotations

import re
from typing import Any

from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import InvalidURI, PyMongoError


def open_client(connection_string: str, **options: Any) -> MongoClient[dict[str, Any]]:
    """Make a client that this library can work with.

    Args:
        connection_string: A MongoDB URI, or a host name.
        **options: Any option of ``MongoClient``, under its own name.

    Raises:
        TypeError: ``connection_string`` is no string, for example a client.
        ValueError: The options turn acknowledgements off (``w=0``), or contradict each other.
        pymongo.errors.InvalidURI: The connection string cannot be read.
        pymongo.errors.ConfigurationError: An option is unknown or unusable.
    """
    check_connection_string(connection_string)
    client: MongoClient[dict[str, Any]] | None = None
    try:
        client = MongoClient(connection_string, **options)
    except (PyMongoError, ValueError):
        if not _looks_unescaped(connection_string):
            raise
    if client is None:
        # Raised out here, so that PyMongo's error, which may quote the password, is not its context.
        raise InvalidURI(
            "the connection string cannot be read: user name and password must be percent-encoded, for"
            " example with urllib.parse.quote_plus (PyMongo's message is withheld: it may quote the password)"
        )
    try:
        check_client(client)
    except ValueError:
        client.close()
        raise
    return client


def check_connection_string(connection_string: object) -> None:
    """Refuse what is no connection string.

    Raises:
        TypeError: It is no string; if it is a client, the error says where that goes.
    """
    if isinstance(connection_string, str):
        return
    if isinstance(connection_string, (MongoClient, AsyncMongoClient)):
        check_client(connection_string)
        raise TypeError("connection_string must be a string; a client of your own goes in client=")
    raise TypeError(f"connection_string must be a string, not {type(connection_string).__name__}")


def check_client(client: object) -> None:
    """Refuse a client with which this library cannot keep its promises.

    Raises:
        TypeError: It is an ``AsyncMongoClient``, or no ``MongoClient`` at all.
        ValueError: Its writes are not acknowledged (``w=0``), so that a lost message would go unnoticed.
    """
    if isinstance(client, AsyncMongoClient):
        raise TypeError(
            "an AsyncMongoClient cannot be used: it is bound to one event loop, and Strands runs each"
            " synchronous call, each graph and each restore on a new one. Pass a MongoClient; its commands"
            " are sent from threads, so that the event loop does not wait for them"
        )
    if not isinstance(client, MongoClient):
        raise TypeError(f"client must be a pymongo.MongoClient, not {type(client).__name__}")
    if not client.write_concern.acknowledged:
        raise ValueError("w=0 cannot be used: the server would not say whether a message was stored")


def _looks_unescaped(connection_string: str) -> bool:
    """Return whether the credentials may run on behind a ``/`` or ``?``, where PyMongo ends them."""
    return "@" in "".join(re.split("[/?]", connection_string.partition("://")[2], maxsplit=1)[1:])
