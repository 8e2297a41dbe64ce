"""What the chat's server refuses, and with which answers: unknown hosts and origins, large requests, errors."""

import math
from collections.abc import Sequence

from chat_json import Json
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mongodb_session_manager import MongoDBSessionError, SessionBusyError
from mongodb_session_manager.fastapi import add_exception_handlers, status_of

MAX_BODY_BYTES = 64 * 1024
MAX_PROMPT_CHARACTERS = 8_000
YEAR_SECONDS = 365 * 24 * 3600


def guards(key: str, origins: Sequence[str], hosts: Sequence[str]) -> list[Middleware]:
    """Return the middleware of the application, the outermost first."""
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_credentials=True,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Content-Type", "X-Session-ID"],
            expose_headers=["Retry-After"],
        ),
        Middleware(ErrorsWithHeaders),
        Middleware(RequestGuard, origins=frozenset(origins)),
        # Not "strict": after a link on another site the browser would send no cookie, and would get a new identity.
        Middleware(SessionMiddleware, secret_key=key, session_cookie="chat", max_age=YEAR_SECONDS, same_site="lax"),
    ]


class ErrorsWithHeaders:
    """Answers 500 inside the CORS middleware. Otherwise the page could not read the error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on the request. If the application raises, answer 500 and let the server log the error."""
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception:
            if scope["type"] == "http" and not begun:
                await JSONResponse({"detail": "The server has failed."}, 500)(scope, receive, send)
            raise


class RequestGuard:
    """Refuses a change by a page of another site, and a body that is too large, also without a Content-Length."""

    def __init__(self, app: ASGIApp, origins: frozenset[str]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on with its body, which has already been read."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        origin = Headers(scope=scope).get("origin")
        if origin is not None and origin not in self._origins:
            await JSONResponse({"detail": "This origin may not do that."}, 403)(scope, receive, send)
            return
        messages = await self._body(scope, receive)
        if messages is None:
            detail = f"A request may have {MAX_BODY_BYTES} bytes."
            await JSONResponse({"detail": detail}, 413, {"Connection": "close"})(scope, receive, send)
            return

        async def receive_again() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, receive_again, send)

    async def _body(self, scope: Scope, receive: Receive) -> list[Message] | None:
        """Read the body; return None if it is larger than allowed."""
        stated = Headers(scope=scope).get("content-length", "0")
        if not stated.isdecimal() or int(stated) > MAX_BODY_BYTES:
            return None
        messages: list[Message] = []
        size, more = 0, True
        while more:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > MAX_BODY_BYTES:
                return None
            more = message.get("more_body", False)
        return messages


def add_error_handlers(app: FastAPI) -> None:
    """Add the library's handlers, and remove the identity from their texts: no script of the page may know it."""
    add_exception_handlers(app)  # 404, 409, 422, 503 instead of 500

    async def refuse(request: Request, error: Exception) -> Json:
        status, detail = status_of(error) or (500, "")
        return Json({"detail": detail.replace(f"{request.session['identity']}.", "")}, status)

    for kind in list(app.exception_handlers):
        if isinstance(kind, type) and issubclass(kind, MongoDBSessionError):
            app.add_exception_handler(kind, refuse)

    @app.exception_handler(SessionBusyError)
    async def busy(_: Request, error: SessionBusyError) -> Json:
        detail = "Something else is writing to this conversation: another tab, perhaps."
        return Json({"detail": detail}, 409, {"Retry-After": str(max(1, math.ceil(error.retry_after or 0)))})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Json:
        # As FastAPI does, but without the input, which may not be JSON.
        kept = ("type", "loc", "msg")
        return Json({"detail": [{name: found[name] for name in kept} for found in error.errors()]}, 422)
