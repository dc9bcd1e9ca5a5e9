"""Which web pages may use the server: its own, and those of origins that its operator names (CORS)."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from engine.errors import ProtocolError, SettingError

CHANGING = ("POST", "PUT", "PATCH", "DELETE")
ALLOWED = {
    hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, PUT, PATCH, DELETE, OPTIONS",
    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "Authorization, Content-Type, If-Match",
    hdrs.ACCESS_CONTROL_MAX_AGE: "86400",
}
MAX_ADDED = 256  # origins
EXPOSED = "Location, ETag, Link, Accept-Post, Accept-Patch, Retry-After, WWW-Authenticate"


class Cors:
    """Refuses requests from pages of other sites: those that change something, and websockets, which browsers open
    across sites without a preflight. Programs send no Origin and pass.

    others: origins (`https://app.example`) whose pages are allowed, or `*` for all.  own_names_only: answer only to
    names of this machine; for a server without keys. A page could otherwise reach it through a name that resolves to
    127.0.0.1 (DNS rebinding). Raises SettingError.
    """

    def __init__(self, others: tuple[str, ...], *, own_names_only: bool):
        for other in others:
            if other != "*" and (urlsplit(other).scheme not in ("http", "https") or urlsplit(other).path):
                raise SettingError(f"--cors-origins {other}; expected origins like https://app.example, or *")
        self._others = {other.lower() for other in others}
        self._added: OrderedDict[str, None] = OrderedDict()
        self._own_names_only = own_names_only

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        name = _host_of(request)
        if self._own_names_only and not is_loopback(name):
            raise web.HTTPForbidden(
                text=f"the request is for host {request.host:.100}; a server without a key answers to localhost alone. "
                "Set PERSONASTREAM_API_KEY, or start it with --open to let everybody in"
            )
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None:
            return await handler(request)
        preflight = request.method == "OPTIONS" and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if preflight and self._named(origin):
            return web.Response(status=204, headers=ALLOWED)
        changing = request.method in CHANGING or request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"
        if (changing or preflight) and not (same_site(origin, request.host) or self._named(origin)):
            raise web.HTTPForbidden(
                text=f"the request is from a page of {origin:.100}; expected {request.host:.100}. Serve the page "
                "from this server or through a proxy that passes the Host header on, or name it in --cors-origins"
            )
        return await handler(request)

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Name in the response the origin that may read it; a handler of `on_response_prepare`."""
        origin = request.headers.get(hdrs.ORIGIN)
        if self._others or self._added:
            response.headers.add(hdrs.VARY, "Origin")
        if origin is not None and self._named(origin):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED

    def add(self, origin: str) -> None:
        """Allow the pages of one more origin: a cluster's director has let one of them open a session. The oldest such
        origins are forgotten."""
        self._added[origin.lower()] = None
        self._added.move_to_end(origin.lower())
        if len(self._added) > MAX_ADDED:
            self._added.popitem(last=False)

    def _named(self, origin: str) -> bool:
        return "*" in self._others or origin.lower() in self._others or origin.lower() in self._added


def _host_of(request: web.Request) -> str:
    """The name in the request's Host. Raises ProtocolError for one that is no name."""
    try:
        return request.url.host or ""
    except ValueError as error:
        raise ProtocolError(f"Host is {request.host!r:.100} ({error}); expected NAME or NAME:PORT") from error


def same_site(origin: str, host: str) -> bool:
    """Whether a page of `origin` (scheme://host[:port]) comes from the server that the client calls `host`."""
    try:
        return urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:  # not a URL at all
        return False


def is_loopback(host: str) -> bool:
    """Whether this name or address can only mean this machine. Makes no DNS query."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")
