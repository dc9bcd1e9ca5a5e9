"""The addresses in answers: below the prefix of a proxy, and with the client's token if it came that way."""

from __future__ import annotations

import re
from urllib.parse import quote

from aiohttp import web

from engine.errors import SettingError

BASE_PATH = web.AppKey("base_path", str)
PROXIES = web.AppKey("proxies", int)
PREFIX = re.compile(r"(/[A-Za-z0-9._~%-]+)*")


def address(request: web.Request, path: str, token: str | None = None) -> str:
    """The path of a resource of this server, for the client of `request`.

    A client that authorised itself with `?token=` may have no other way to do so: the address then carries `token`, by
    default its own.
    """
    return with_token(request, prefix(request) + path, token)


def with_token(request: web.Request, url: str, token: str | None = None) -> str:
    """`url`, with a token as in `address`."""
    given = "" if "Authorization" in request.headers else request.query.get("token", "")
    return f"{url}?token={quote(token or given, safe='')}" if given else url


def prefix(request: web.Request) -> str:
    """The path under which a proxy shows this server: --base-path, or X-Forwarded-Prefix behind --proxies."""
    forwarded = request.headers.get("X-Forwarded-Prefix", "").rstrip("/") if request.app[PROXIES] else ""
    return forwarded if forwarded and PREFIX.fullmatch(forwarded) else request.app[BASE_PATH]


def checked_base_path(path: str) -> str:
    """`path` without its last slash. Raises SettingError."""
    base = path.rstrip("/")
    if not PREFIX.fullmatch(base):
        raise SettingError(f"--base-path {path}; expected a path such as /avatar")
    return base
