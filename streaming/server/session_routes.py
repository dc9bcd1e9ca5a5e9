"""The routes of sessions: open, renew the token, close; viewers, sockets and publications."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import WSCloseCode, web

from streaming.config import ServerConfig
from streaming.publish import routes as publish_routes
from streaming.server.access import Access
from streaming.server.address import address
from streaming.server.auth import token_of
from streaming.server.event_stream import stream_events
from streaming.server.json_body import text_field
from streaming.server.limits import client_address
from streaming.server.live_session import LiveSession
from streaming.server.live_sessions import LiveSessions
from streaming.server.session_events import CLOSED
from streaming.speech.disconnect import on_disconnect
from streaming.speech.protocol import MAX_MESSAGE_BYTES
from streaming.speech.speech_socket import SpeechSocket
from streaming.speech.unit_socket import UnitSocket
from streaming.voices.voice import Voice
from streaming.webrtc import whep
from streaming.webrtc.ice import Ice
from streaming.webrtc.whep import Whep

NO_MODEL = (
    "this server gives a model a face, it is none: connect to your model's own Realtime API, and forward its events to "
    "the speech websocket of a session (POST /v1/sessions, then /v1/sessions/{id}/speech)"
)


def opened(session: dict[str, Any], at: Callable[[str], str]) -> web.Response:
    """The response to a request that opened `session`; `at`: the address of a path of its server."""
    path = f"/v1/sessions/{session['id']}"
    below = {name: at(f"{path}/{name}") for name in ("whep", "speech", "events")}
    headers = {"Location": at(path), "Cache-Control": "no-store"}
    return web.json_response(session | below, status=201, headers=headers)


async def refuse_realtime(request: web.Request) -> web.StreamResponse:
    """GET /v1/realtime, where OpenAI's clients connect: an `error` event for them, 404 for others."""
    socket = web.WebSocketResponse()
    if not socket.can_prepare(request):
        raise web.HTTPNotFound(text=NO_MODEL)
    await socket.prepare(request)
    error = {"type": "invalid_request_error", "code": "not-found", "message": NO_MODEL, "param": None, "event_id": None}
    with contextlib.suppress(ConnectionError):
        await socket.send_json({"type": "error", "event_id": "event_1", "error": error})
    await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"not a model; see the error event")
    return socket


class SessionRoutes:
    """Everything under /v1/sessions. used: called with the avatar of each new session."""

    def __init__(
        self,
        live_sessions: LiveSessions,
        config: ServerConfig,
        voices: Mapping[str, Voice],
        ice: Ice,
        access: Access,
        used: Callable[[str], None],
    ):
        self._live_sessions, self._config, self._voices = live_sessions, config, voices
        self._ice, self._access, self._used = ice, access, used
        self._whep = Whep(live_sessions, ice)

    def table(self) -> list[web.RouteDef]:
        session, of_session = "/v1/sessions/{session}", self._access.of_session
        return [
            web.post("/v1/sessions", self._access.with_key(self._open)),
            web.get("/v1/realtime", refuse_realtime),
            web.delete(session, of_session(self._close)),
            web.post(f"{session}/token", of_session(self._renew_token)),
            web.get(f"{session}/events", of_session(self._events)),
            web.options(f"{session}/whep", self._describe_whep),
            web.post(f"{session}/whep", of_session(self._whep.add_viewer)),
            web.post(f"{session}/offer", of_session(self._whep.answer_json)),
            web.patch(f"{session}/whep/{{viewer}}", of_session(whep.trickle)),
            web.delete(f"{session}/whep/{{viewer}}", of_session(whep.remove_viewer)),
            web.get(f"{session}/publish", of_session(publish_routes.list_all)),
            web.post(f"{session}/publish", of_session(self._publish)),
            web.get(f"{session}/publish/{{publication}}", of_session(publish_routes.show)),
            web.delete(f"{session}/publish/{{publication}}", of_session(publish_routes.remove)),
            web.get(f"{session}/speech", of_session(self._speech)),
            web.get(f"{session}/units", of_session(self._units)),
        ]

    async def _open(self, request: web.Request) -> web.Response:
        avatar = text_field(await request.read(), "avatar", "name")
        body = await self.open(avatar, client_address(request, self._config.proxies))
        return opened(body, lambda path: address(request, path, body["token"]))

    async def open(self, avatar: str, client: str, session_id: str | None = None) -> dict[str, Any]:
        """Open a session for a client at the address `client`: the answer, without addresses. Raises as
        `LiveSessions.open`."""
        live_session = await self._live_sessions.open(avatar, client, session_id)
        self._used(avatar)
        return {"id": live_session.session.id, **self._credentials(live_session, live_session.token)}

    async def _renew_token(self, request: web.Request, live_session: LiveSession) -> web.Response:
        body = self._credentials(live_session, live_session.renew_token())
        return web.json_response(body, headers={"Cache-Control": "no-store"})

    def _credentials(self, live_session: LiveSession, token: str) -> dict[str, Any]:
        servers = self._ice.servers(live_session.session.id)
        return {"token": token, "expires_in_s": self._config.token_ttl_s, "ice_servers": servers}

    async def _close(self, request: web.Request, live_session: LiveSession) -> web.Response:
        await live_session.close(CLOSED)
        return web.Response(status=204)

    async def _events(self, request: web.Request, live_session: LiveSession) -> web.StreamResponse:
        return await stream_events(request, live_session, self._config.timeouts.event_keepalive_s)

    async def _describe_whep(self, request: web.Request) -> web.Response:
        """Open to everybody; the ICE servers only for clients that may use the session."""
        live_session = self._live_sessions.find(request.match_info["session"])
        admitted = live_session is not None and self._access.admits(token_of(request), live_session)
        return self._whep.describe(live_session if admitted else None)

    async def _publish(self, request: web.Request, live_session: LiveSession) -> web.Response:
        if not self._config.publish_api:
            raise web.HTTPForbidden(
                text="this server publishes to the destinations of --publish alone; start it with --publish-api"
            )
        return await publish_routes.add(request, live_session, self._config.encoder)

    async def _speech(self, request: web.Request, live_session: LiveSession) -> web.WebSocketResponse:
        socket = self._websocket()
        assert request.transport is not None
        with live_session.socket() as leave, on_disconnect(request.transport, leave):
            await SpeechSocket(socket, live_session, self._voices, self._config.timeouts.ping_s).run(request)
        return socket

    async def _units(self, request: web.Request, live_session: LiveSession) -> web.WebSocketResponse:
        socket = self._websocket()
        assert request.transport is not None
        with live_session.socket() as leave, on_disconnect(request.transport, leave):
            await UnitSocket(socket, live_session).run(request)
        return socket

    def _websocket(self) -> web.WebSocketResponse:
        return web.WebSocketResponse(
            heartbeat=self._config.timeouts.silent_client_s, max_msg_size=MAX_MESSAGE_BYTES, compress=False
        )
