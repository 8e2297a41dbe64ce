"""Who owns a conversation: the browser that began it. A cookie that this server has signed holds its identity.

The stored session id is `<identity>.<uuid>`. Nobody can guess an identity, so nobody can name another's conversation.
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
    """Return the caller's identity. A browser without a valid cookie gets a new one."""
    found = request.session.get("identity") or secrets.token_urlsafe(24)
    request.session["identity"] = found  # Set each time, so that the cookie's year starts with the latest request.
    return str(found)


Identity = Annotated[str, Depends(identity)]


async def own_session_id(owner: Identity, chosen: Annotated[UUID, Header(alias="X-Session-ID")]) -> str:
    """Return the stored id of the conversation whose UUID the frontend has chosen."""
    return f"{owner}.{chosen}"


async def own_options(owner: Identity) -> Mapping[str, str]:
    """Return the manager's options. By the `application_name`, the owner's sessions are listed and searched."""
    return {"application_name": own_application(owner)}


def own_application(owner: str) -> str:
    """Return the `application_name` that all sessions of an owner have."""
    return f"playground.{owner}"


def signing_key(folder: Path | None = None) -> str:
    """Return the key that signs identities: `CHAT_SECRET`, the key in the folder, or a new one.

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
        # Renamed when it is complete: with an empty key, anybody could sign.
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as new:  # Mode 0600.
            new.write(secrets.token_hex(32))
        Path(new.name).replace(file)
    return file.read_text()
