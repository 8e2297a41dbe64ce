"""Serves the playground's page: its public files and nothing else, under a strict Content-Security-Policy.

    python frontend.py        http://localhost:8881/chat.html

The page asks the backend on the host name that it was itself loaded from.
"""

import argparse
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HERE = Path(__file__).parent
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript"}
# What a browser may have; the sources of the style sheet, the packages and these programs are not among it.
PUBLIC = ["chat.html", "chat.css", "*.js", "widget/*.js", "vendor/*/*js"]


def create_app(backend_port: int, hosts: list[str]) -> Starlette:
    """Build the server.

    Args:
        backend_port: Where the page finds the backend, on the host name that the page was loaded from.
        hosts: The names under which the page may be loaded.
    """

    async def config(_request: Request) -> JSONResponse:
        return JSONResponse({"backendPort": backend_port})

    def file(path: Path) -> Route:
        media_type = MEDIA_TYPES[path.suffix]

        async def serve(_request: Request) -> FileResponse:
            return FileResponse(path, media_type=media_type)

        return Route(f"/{path.relative_to(HERE).as_posix()}", serve)

    async def home(_request: Request) -> RedirectResponse:
        return RedirectResponse("/chat.html")

    return Starlette(
        routes=[
            Route("/", home),
            Route("/config.json", config),
            *(file(path) for pattern in PUBLIC for path in sorted(HERE.glob(pattern))),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts),
            Middleware(_SecurityHeaders, backends=[f"http://{host}:{backend_port}" for host in hosts]),
        ],
    )


class _SecurityHeaders:
    """Nothing from elsewhere, nothing inline; HTML from strings only by way of DOMPurify, whose policy this names."""

    def __init__(self, app: ASGIApp, backends: list[str]) -> None:
        self._app = app
        self._headers = {
            "Content-Security-Policy": "; ".join(
                [
                    "default-src 'none'",
                    "script-src 'self'",
                    "style-src 'self'",
                    "img-src 'self' data:",
                    f"connect-src 'self' {' '.join(backends)}",
                    "base-uri 'none'",
                    "form-action 'none'",
                    "frame-ancestors 'none'",
                    "require-trusted-types-for 'script'",
                    "trusted-types dompurify",
                ]
            ),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",  # A changed file is seen at the next reload.
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8881)
    parser.add_argument("--backend-port", type=int, default=8880)
    options = parser.parse_args()

    hosts = list(dict.fromkeys(["localhost", "127.0.0.1", options.host]))
    print(f"The page: http://localhost:{options.port}/chat.html", flush=True)
    app = create_app(options.backend_port, hosts)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
