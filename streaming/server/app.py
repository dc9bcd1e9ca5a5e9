"""The HTTP server: which routes there are, who may use them, and the life of the server from listening to draining."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from aiohttp.typedefs import Handler

from engine.errors import PersonaStreamError, ProtocolError, SessionClosedError, SettingError
from engine.live.engine import Engine
from engine.metrics import StageTimes
from streaming.config import ServerConfig
from streaming.publish import routes
from streaming.server import session_events
from streaming.server.auth import KEYS_VARIABLE, Secrets, token_of, unauthorized
from streaming.server.catalog import Catalog, Sample
from streaming.server.cors import Cors, is_loopback
from streaming.server.health import Health
from streaming.server.http_errors import problem_middleware
from streaming.server.limits import client_address
from streaming.server.live_session import CLOSED, LiveSession
from streaming.server.live_sessions import LiveSessions
from streaming.server.metrics import Metrics
from streaming.speech.disconnect import on_hangup
from streaming.speech.protocol import MAX_MESSAGE_BYTES
from streaming.speech.speech_socket import SpeechSocket
from streaming.speech.unit_socket import UnitSocket
from streaming.voices.voice import Voice
from streaming.webrtc import whep
from streaming.webrtc.ice import Ice
from streaming.webrtc.whep import Whep

SHUTDOWN_S = 2.0
# Finds speech sockets whose client vanished: no word for 60 s, then no pong for 30 s. That is longer than back-pressure
# can keep us from reading, which is one message of 8 kHz sound (65 s).
PING_S = 60.0
MAX_PORT = 65_535
METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS", "PUT")  # clients must not make up labels of metrics

SessionRoute = Callable[[web.Request, LiveSession], Awaitable[web.StreamResponse]]


class Server:
    """Serves an Engine's avatars. An async context: listening inside it; at its end all sessions are closed.

    Raises SettingError for settings that cannot be, PersonaStreamError if it cannot listen.
    """

    def __init__(
        self,
        engine: Engine,
        config: ServerConfig,
        voices: Mapping[str, Voice],
        samples: Mapping[str, Sample] | None = None,
        secrets: Secrets | None = None,
    ):
        self._secrets = secrets or Secrets()
        _refuse_nonsense(config)
        _refuse_to_expose(config, self._secrets)
        self.metrics = Metrics()
        self._ice = Ice(config.ice, self._secrets.turn)
        self.live_sessions = LiveSessions(engine, config, self._ice, self.metrics)
        self._engine, self._config, self._voices = engine, config, voices
        self._origins = Cors(config.cors_origins, own_names_only=not (self._secrets.keys or config.open))
        self._operations = Health(engine, self.live_sessions, config, self.metrics)
        self._listing = Catalog(engine, voices, samples or {})
        self._whep = Whep(self.live_sessions, self._ice)
        self._stack = AsyncExitStack()
        self._runner = web.AppRunner(self._make_app(), access_log=None, shutdown_timeout=SHUTDOWN_S)

    @property
    def url(self) -> str:
        """Where it listens, with the port that the system chose for port 0."""
        host, port = self._runner.addresses[0][:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for times, observe in self._measured():
                times.observers.append(observe)
                stack.callback(times.observers.remove, observe)
            await self._runner.setup()
            stack.push_async_callback(self._runner.cleanup)
            await stack.enter_async_context(self.live_sessions)
            await self._listen()
            self._stack = stack.pop_all()
        return self

    def _measured(self) -> Iterator[tuple[StageTimes, Callable[[str, float], None]]]:
        yield self._engine.latencies, self.metrics.observe
        for pipeline in self._engine.pipelines.values():
            yield pipeline.times, self.metrics.observe_stage

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def drain(self) -> None:
        """Be not ready and open no session any more; return when the open ones have said what they had begun, or
        `drain_s` have passed, and are closed. What goes on elsewhere is answered meanwhile."""
        await self.live_sessions.drain()

    async def _listen(self) -> None:
        host, port = self._config.host, self._config.port
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise PersonaStreamError(
                f"{host} port {port} cannot be opened ({error.strerror or error}); choose others with --host and --port"
            ) from error

    def _make_app(self) -> web.Application:
        app = web.Application(
            middlewares=[self._count_requests, problem_middleware, self._origins.check],
            client_max_size=self._config.max_body_bytes,
        )
        app.on_response_prepare.append(self._origins.tell)
        session = "/v1/sessions/{session}"
        app.add_routes(
            [
                web.get("/healthz", self._operations.health),
                web.get("/readyz", self._operations.readiness),
                web.get("/capacity", self._keyed(self._operations.capacity)),
                web.get("/metrics", self._keyed(self._operations.metrics)),
                web.get("/v1/avatars", self._listing.avatars),
                web.get("/v1/avatars/{avatar}/thumbnail.jpg", self._listing.thumbnail),
                web.get("/v1/voices", self._listing.voices),
                web.get("/v1/samples", self._listing.samples),
                web.get("/v1/samples/{sample}.wav", self._listing.sample),
                web.post("/v1/sessions", self._keyed(self._open_session)),
                web.delete(session, self._leased(self._close_session)),
                web.post(f"{session}/token", self._leased(self._renew_token)),
                web.get(f"{session}/events", self._leased(session_events.stream)),
                web.options(f"{session}/whep", self._describe_whep),
                web.post(f"{session}/whep", self._leased(self._whep.add_viewer)),
                web.post(f"{session}/offer", self._leased(self._whep.answer_json)),
                web.patch(f"{session}/whep/{{viewer}}", self._leased(whep.trickle)),
                web.delete(f"{session}/whep/{{viewer}}", self._leased(whep.remove_viewer)),
                web.get(f"{session}/publish", self._leased(routes.list_all)),
                web.post(f"{session}/publish", self._leased(self._publish)),
                web.get(f"{session}/publish/{{publication}}", self._leased(routes.show)),
                web.delete(f"{session}/publish/{{publication}}", self._leased(routes.remove)),
                web.get(f"{session}/speech", self._leased(self._speech)),
                web.get(f"{session}/units", self._leased(self._units)),
                web.get("/", self._listing.page),
                web.get(r"/{file:[a-z-]+\.(?:js|css|svg)}", self._listing.page),
            ]
        )
        return app

    @web.middleware
    async def _count_requests(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        resource = request.match_info.route.resource
        method = request.method if request.method in METHODS else "other"
        self.metrics.requests.labels(method, resource.canonical if resource else "none", str(response.status)).inc()
        return response

    def _keyed(self, route: Handler) -> Handler:
        """A route for those who have a server key, if this server has any."""

        async def handler(request: web.Request) -> web.StreamResponse:
            token = token_of(request)
            if self._secrets.keys and not self._secrets.admit(token):
                if self.live_sessions.owns(token):
                    raise web.HTTPForbidden(text="a session's token opens that session alone; expected a server key")
                raise unauthorized("expected a key of this server, as `Authorization: Bearer KEY`")
            return await route(request)

        return handler

    def _leased(self, route: SessionRoute) -> Handler:
        """A route of one session: it must exist, and the request must carry its token or a server key."""

        async def handler(request: web.Request) -> web.StreamResponse:
            live_session = self._find(request.match_info["session"])
            token = token_of(request)
            if not (live_session.admits(token) or self._secrets.admit(token)):
                if self.live_sessions.owns(token):
                    raise web.HTTPForbidden(text="the token of another session; expected the one of this session")
                raise unauthorized(
                    "expected the session's token, as `Authorization: Bearer TOKEN` or `?token=TOKEN`; one that has "
                    "expired is replaced by POST /v1/sessions/{id}/token with a server key"
                )
            return await route(request, live_session)

        return handler

    def _find(self, session_id: str) -> LiveSession:
        live_session, ending = self.live_sessions.find(session_id), self.live_sessions.ending(session_id)
        if ending is not None:
            raise SessionClosedError(f"session {session_id} was closed: {ending.detail}; open another one")
        if live_session is None:
            raise web.HTTPNotFound(text="no such session; it was closed, or never opened. POST /v1/sessions")
        return live_session

    async def _open_session(self, request: web.Request) -> web.Response:
        avatar = _avatar_name(await request.read())
        live_session = await self.live_sessions.open(avatar, client_address(request, self._config.proxies))
        path = f"/v1/sessions/{live_session.session.id}"
        body = {
            "id": live_session.session.id,
            **self._access(live_session, live_session.token),
            "whep": f"{path}/whep",
            "speech": f"{path}/speech",
            "events": f"{path}/events",
        }
        return web.json_response(body, status=201, headers={"Location": path, "Cache-Control": "no-store"})

    async def _renew_token(self, request: web.Request, live_session: LiveSession) -> web.Response:
        return web.json_response(
            self._access(live_session, live_session.renew_token()), headers={"Cache-Control": "no-store"}
        )

    def _access(self, live_session: LiveSession, token: str) -> dict[str, Any]:
        servers = self._ice.servers(live_session.session.id)
        return {"token": token, "expires_in_s": self._config.token_ttl_s, "ice_servers": servers}

    async def _close_session(self, request: web.Request, live_session: LiveSession) -> web.Response:
        await live_session.close(CLOSED)
        return web.Response(status=204)

    async def _publish(self, request: web.Request, live_session: LiveSession) -> web.Response:
        if not self._config.publish_api:
            raise web.HTTPForbidden(
                text="this server publishes what --publish names alone; start it with --publish-api"
            )
        return await routes.add(request, live_session, self._config.encoder)

    async def _describe_whep(self, request: web.Request) -> web.Response:
        """For everybody, but the ICE servers only for those who may use the session."""
        live_session, token = self.live_sessions.find(request.match_info["session"]), token_of(request)
        mine = live_session is not None and (live_session.admits(token) or self._secrets.admit(token))
        return self._whep.describe(live_session if mine else None)

    async def _speech(self, request: web.Request, live_session: LiveSession) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=PING_S, max_msg_size=MAX_MESSAGE_BYTES, compress=False)
        assert request.transport is not None
        with live_session.socket() as leave, on_hangup(request.transport, leave):
            await SpeechSocket(socket, live_session, self._voices).run(request)
        return socket

    async def _units(self, request: web.Request, live_session: LiveSession) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=PING_S, max_msg_size=MAX_MESSAGE_BYTES, compress=False)
        assert request.transport is not None
        with live_session.socket() as leave, on_hangup(request.transport, leave):
            await UnitSocket(socket, live_session).run(request)
        return socket


def _refuse_nonsense(config: ServerConfig) -> None:
    least = {"max_body_bytes": 1, "max_sessions": 1, "max_viewers": 1, "max_session_viewers": 1, "token_ttl_s": 1e-3}
    least |= {"port": 0, "proxies": 0, "sessions_per_minute": 0, "max_session_s": 0, "idle_session_s": 0, "drain_s": 0}
    for name, low in least.items():
        found = getattr(config, name)
        if found is not None and found < low:
            raise SettingError(f"--{name.replace('_', '-')} {found}; expected at least {low}")
    if not 0 < config.max_load < math.inf:
        raise SettingError(f"--max-load {config.max_load}; expected more than 0, a share of the device's time")
    if config.port > MAX_PORT:
        raise SettingError(f"--port {config.port}; expected at most {MAX_PORT}, or 0 for any that is free")


def _refuse_to_expose(config: ServerConfig, secrets: Secrets) -> None:
    if not (secrets.keys or config.open or is_loopback(config.host)):
        raise SettingError(
            f"--host {config.host or '(all)'} lets other machines in and no key is set, so anybody who reaches port "
            f"{config.port} could open sessions. Set a key (export {KEYS_VARIABLE}=$(openssl rand -hex 16)), "
            "or pass --open if everybody may"
        )


def _avatar_name(body: bytes) -> str:
    try:
        found = json.loads(body)
    except ValueError as error:
        raise ProtocolError(f'a body that is no JSON ({error}); expected {{"avatar": name}}') from error
    name = found.get("avatar") if isinstance(found, dict) else None
    if not isinstance(name, str):
        raise ProtocolError(f'a body without an avatar\'s name; expected {{"avatar": name}}, found {found!r:.60}')
    return name
