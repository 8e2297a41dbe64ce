"""Whose a conversation is: the browser's that began it, known by an identity in a cookie that this server has signed.

Its stored id is `<identity>.<uuid>`, and the identity cannot be guessed: nobody can so much as name another's
conversation.
"""

import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Header, Request


async def identity(request: Request) -> str:
    """Return who asks; a browser that does not say, or says what was not signed here, becomes somebody new."""
    found = request.session.get("identity") or secrets.token_urlsafe(24)
    request.session["identity"] = found  # Set anew each time: the cookie's year begins with the last request.
    return str(found)


Identity = Annotated[str, Depends(identity)]


async def own_session_id(owner: Identity, chosen: Annotated[UUID, Header(alias="X-Session-ID")]) -> str:
    """Return the stored id of the conversation that the frontend has chosen a UUID for."""
    return f"{owner}.{chosen}"


async def own_options(owner: Identity) -> Mapping[str, str]:
    """Return what a session is stored with, so that its owner's sessions can be listed and searched."""
    return {"application_name": own_application(owner)}


def own_application(owner: str) -> str:
    """Return the `application_name` that all sessions of an owner have."""
    return f"playground.{owner}"


def signing_key(folder: Path | None = None) -> str:
    """Return the key that identities are signed with: `CHAT_SECRET`, the one kept in the folder, or a new one.

    Raises:
        SystemExit: `CHAT_SECRET` is too short to be a secret.
    """
    if given := os.environ.get("CHAT_SECRET"):
        if len(given) < 16:
            raise SystemExit("CHAT_SECRET must have 16 characters or more")
        return given
    if folder is None:
        return secrets.token_hex(32)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / "signing-key"
    if not file.exists():
        # Named when it is whole: an empty key would be everybody's.
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as new:  # Mode 0600.
            new.write(secrets.token_hex(32))
        Path(new.name).replace(file)
    return file.read_text()
