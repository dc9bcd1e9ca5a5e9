"""Pages of other sites must not drive a server that listens on the same machine or network as their reader."""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

CHANGING = ("POST", "PATCH", "DELETE")


@web.middleware
async def origin_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a browser asks for another site's page: requests that change something, and websockets, which
    browsers open across sites without asking. Programs send no Origin and pass."""
    origin = request.headers.get("Origin")
    changing = request.method in CHANGING or request.headers.get("Upgrade", "").lower() == "websocket"
    if origin is not None and changing and not same_site(origin, request.host):
        raise web.HTTPForbidden(
            text=f"a request of a page from {origin:.100}; expected one from {request.host:.100}. "
            "Serve the page from this server, or through a proxy that passes the Host header on"
        )
    return await handler(request)


def same_site(origin: str, host: str) -> bool:
    """Whether a page from `origin` (scheme://host[:port]) came from the server that the client calls `host`."""
    try:
        return urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:  # not a URL at all
        return False
