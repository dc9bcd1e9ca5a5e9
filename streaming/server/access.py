"""Access: which requests may use a route of the server, or a route of one session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Handler

from engine.errors import SessionClosedError
from streaming.server.auth import Secrets, token_of, unauthorized
from streaming.server.live_session import LiveSession
from streaming.server.live_sessions import LiveSessions

SessionRoute = Callable[[web.Request, LiveSession], Awaitable[web.StreamResponse]]


def unguarded(route: Handler) -> Handler:
    """A route that is open to everybody."""
    return route


def with_key(secrets: Secrets, route: Handler, is_token: Callable[[str], bool] = lambda token: False) -> Handler:
    """A route of the server: the request must carry a server key, if the server has any. `is_token`: whether a text is
    the token of a session."""

    async def handler(request: web.Request) -> web.StreamResponse:
        token = token_of(request)
        if secrets.keys and not secrets.admit(token):
            if is_token(token):
                raise web.HTTPForbidden(text="a session's token opens that session alone; expected a server key")
            raise unauthorized("expected a key of this server, as `Authorization: Bearer KEY`")
        return await route(request)

    return handler


class Access:
    """Wraps routes in the check of the request's key or token. Problems: 401, 403; for sessions 404 and 410 too."""

    def __init__(self, secrets: Secrets, live_sessions: LiveSessions):
        self._secrets, self._live_sessions = secrets, live_sessions

    def with_key(self, route: Handler) -> Handler:
        """A route of the server: the request must carry a server key, if the server has any."""
        return with_key(self._secrets, route, self._live_sessions.owns)

    def with_key_or_token(self, route: Handler) -> Handler:
        """A route that a server key opens, if the server has any, and so does the token of any session."""

        async def handler(request: web.Request) -> web.StreamResponse:
            token = token_of(request)
            if self._secrets.keys and not (self._secrets.admit(token) or self._live_sessions.owns(token)):
                raise unauthorized("expected a key of this server or a session's token, as `Authorization: Bearer KEY`")
            return await route(request)

        return handler

    def of_session(self, route: SessionRoute) -> Handler:
        """A route of one session: it must exist, and the request must carry its token or a server key."""

        async def handler(request: web.Request) -> web.StreamResponse:
            live_session = self._find(request.match_info["session"])
            token = token_of(request)
            if not self.admits(token, live_session):
                if self._live_sessions.owns(token):
                    raise web.HTTPForbidden(text="the token of another session; expected the token of this session")
                raise unauthorized(
                    "expected the session's token, as `Authorization: Bearer TOKEN` or `?token=TOKEN`; if it has "
                    "expired, POST /v1/sessions/{id}/token with a server key issues another one"
                )
            return await route(request, live_session)

        return handler

    def is_key(self, token: str) -> bool:
        return self._secrets.admit(token)

    def admits(self, token: str, live_session: LiveSession) -> bool:
        """Whether `token` is that session's token or a server key."""
        return live_session.admits(token) or self._secrets.admit(token)

    def _find(self, session_id: str) -> LiveSession:
        live_session, ending = self._live_sessions.find(session_id), self._live_sessions.ending(session_id)
        if ending is not None:
            raise SessionClosedError(f"session {session_id} was closed: {ending.detail}; open another one")
        if live_session is None:
            raise web.HTTPNotFound(text="no such session; it was closed, or never opened. POST /v1/sessions")
        return live_session
