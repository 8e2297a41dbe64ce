"""Which clients this library works with, and how it makes one without letting a credential out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import InvalidURI, PyMongoError

from .pool_statistics import PoolStatistics

DEFAULT_OPTIONS: dict[str, Any] = {
    "maxPoolSize": 100,
    "minPoolSize": 10,
    "maxIdleTimeMS": 30_000,
    "waitQueueTimeoutMS": 5_000,
    "retryWrites": True,
    "retryReads": True,
}
"""What a client gets unless the caller or the connection string says otherwise."""


def open_client(
    connection_string: str, options: Mapping[str, Any], *, shared: bool = False
) -> MongoClient[dict[str, Any]]:
    """Make a client that this library can work with.

    Args:
        connection_string: A MongoDB URI, or a host name.
        options: Any options of ``MongoClient``, under their own names. They win over the connection string.
        shared: Whether many use it. Then it gets ``DEFAULT_OPTIONS`` where neither the options nor the connection
            string say otherwise, a ``maxPoolSize`` below the default ``minPoolSize`` lowers that, and its connections
            are counted: a ``PoolStatistics`` joins the ``event_listeners``.

    Returns:
        The client. It connects in the background; nothing has been sent for the caller yet.

    Raises:
        TypeError: ``connection_string`` is no string; if it is a client, the error says where that goes.
        ValueError: The options turn acknowledgements off (``w=0``), or contradict each other.
        pymongo.errors.InvalidURI: The connection string cannot be read.
        pymongo.errors.ConfigurationError: An option is unknown or unusable.
    """
    if isinstance(connection_string, (MongoClient, AsyncMongoClient)):
        check_client(connection_string)
        raise TypeError("connection_string must be a string; a client of your own goes in client=")
    if not isinstance(connection_string, str):
        raise TypeError(f"connection_string must be a string, not {type(connection_string).__name__}")
    if shared:
        options = _with_defaults(connection_string, options)
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


def _with_defaults(connection_string: str, options: Mapping[str, Any]) -> dict[str, Any]:
    given = {**_uri_options(connection_string), **by_name(options)}
    defaults = {name: value for name, value in DEFAULT_OPTIONS.items() if name.lower() not in given}
    if "minPoolSize" in defaults:
        most = given.get("maxpoolsize", DEFAULT_OPTIONS["maxPoolSize"])
        # None is no limit, nor is 0; but PyMongo 4.18 refuses any minimum beside 0. It also refuses what is no number.
        with suppress(TypeError, ValueError):
            defaults["minPoolSize"] = min(defaults["minPoolSize"], max(0, int(most)))
    listeners = next((name for name in options if name.lower() == "event_listeners"), "event_listeners")
    return {**defaults, **options, listeners: [*(options.get(listeners) or ()), PoolStatistics()]}


def by_name(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by lower-case name: PyMongo knows them in any case."""
    return {name.lower(): value for name, value in options.items()}


def _uri_options(connection_string: str) -> dict[str, Any]:
    """Return the options in a connection string as text, by lower-case name."""
    if "://" not in connection_string:
        return {}
    query = connection_string.partition("?")[2]
    pairs = (item.partition("=") for item in re.split("[&;]", query))
    return {name.lower(): value for name, _, value in pairs}
