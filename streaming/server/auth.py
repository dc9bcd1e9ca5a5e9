"""Server keys, session tokens, and the secrets that come from the environment."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import web

from engine.errors import SettingError

KEYS_VARIABLE = "PERSONASTREAM_API_KEY"
TURN_VARIABLE = "PERSONASTREAM_TURN_SECRET"
BROADCAST_VARIABLE = "PERSONASTREAM_BROADCAST_TOKEN"


@dataclass(frozen=True)
class Secrets:
    """Secrets, which must not be on a command line: every user of the machine can read it."""

    keys: tuple[str, ...] = field(default=(), repr=False)  # server keys; several while one is being replaced
    turn: str | None = field(default=None, repr=False)  # shared with the TURN server
    broadcast: str | None = field(default=None, repr=False)  # the token of the standing broadcast's session

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Secrets:
        """Raises SettingError for a key that no HTTP header can carry."""
        keys = tuple(key.strip() for key in environment.get(KEYS_VARIABLE, "").split(",") if key.strip())
        for key in keys:
            if not all("!" <= letter <= "~" for letter in key):
                raise SettingError(
                    f"{KEYS_VARIABLE} holds a key with characters that no HTTP header can carry; "
                    "expected visible ASCII, and commas between several keys"
                )
        return cls(keys, environment.get(TURN_VARIABLE) or None, environment.get(BROADCAST_VARIABLE) or None)

    def admit(self, token: str) -> bool:
        """Whether `token` is a server key. Takes the same time for any token (timing attacks)."""
        return any([same(key, token) for key in self.keys])  # a list: all keys are compared


class Token:
    """The secret of one session, valid for `ttl_s` from loop time `now`; random unless `text` is given."""

    def __init__(self, ttl_s: float, now: float, text: str | None = None):
        self.text = text or secrets.token_urlsafe(24)
        self.expires = now + ttl_s

    def admits(self, token: str, now: float) -> bool:
        return same(self.text, token) and now < self.expires


def same(secret: str, token: str) -> bool:
    """Compare in constant time."""
    # aiohttp puts surrogates for header bytes that are not UTF-8: such a token is wrong, not an error
    return hmac.compare_digest(secret.encode(), token.encode(errors="surrogatepass"))


def token_of(request: web.Request) -> str:
    """The request's token: `Authorization: Bearer TOKEN`, or `?token=TOKEN` for clients that cannot set headers."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return (token if scheme.lower() == "bearer" else request.query.get("token", "")).strip()


def unauthorized(text: str) -> web.HTTPUnauthorized:
    return web.HTTPUnauthorized(text=text, headers={"WWW-Authenticate": 'Bearer realm="personastream"'})
