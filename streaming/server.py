"""The HTTP server: the page, the REST routes under /v1, WHEP, the speech websocket, and what operators ask for."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from aiohttp import web
from aiohttp.typedefs import Handler

from engine.config import ServerConfig
from engine.errors import CapacityError, PersonaStreamError, ProtocolError, UnknownAvatarError
from engine.host import Host
from streaming import whep
from streaming.lease import Lease, Leases
from streaming.metrics import Metrics
from streaming.origin import origin_middleware
from streaming.problems import problem_middleware
from streaming.protocol import MAX_MESSAGE_BYTES
from streaming.samples import Sample
from streaming.speech_socket import SpeechSocket
from streaming.voices.voice import Voice

WEB = Path(__file__).parent / "web"
MAX_BODY_BYTES = 256 * 1024  # the largest body is an SDP offer; speech comes through the websocket
SHUTDOWN_S = 2.0
# Finds speech sockets whose client vanished: no word for 60 s, then no pong for 30 s. That is longer than back-pressure
# can keep us from reading, which is one message of 8 kHz sound (65 s).
PING_S = 60.0
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; media-src 'self' blob:; "
    "img-src 'self' data:; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}

METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS", "PUT")  # clients must not make up labels of metrics

LeaseRoute = Callable[[web.Request, Lease], Awaitable[web.StreamResponse]]


class Server:
    """Serves a Host's avatars. An async context: listening inside it; at its end all sessions are closed."""

    def __init__(
        self, host: Host, config: ServerConfig, voices: Mapping[str, Voice], samples: Mapping[str, Sample] | None = None
    ):
        self.metrics = Metrics()
        self.leases = Leases(host, config, self.metrics)
        self._host = host
        self._config = config
        self._voices = voices
        self._samples = samples or {}
        self._draining = False
        self._stack = AsyncExitStack()
        self._runner = web.AppRunner(self._make_app(), access_log=None, shutdown_timeout=SHUTDOWN_S)

    @property
    def url(self) -> str:
        """Where it listens, with the port that the system chose for port 0."""
        host, port = self._runner.addresses[0][:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._runner.setup()
            stack.push_async_callback(self._runner.cleanup)
            await stack.enter_async_context(self.leases)
            await self._listen()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draining = True
        await self._stack.__aexit__(kind, error, trace)

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
            middlewares=[self._count_requests, problem_middleware, origin_middleware], client_max_size=MAX_BODY_BYTES
        )
        session = "/v1/sessions/{session}"
        app.add_routes(
            [
                web.get("/healthz", self._health),
                web.get("/readyz", self._readiness),
                web.get("/capacity", self._capacity),
                web.get("/metrics", self._metrics_page),
                web.get("/v1/avatars", self._list_avatars),
                web.get("/v1/avatars/{avatar}/thumbnail.jpg", self._thumbnail),
                web.get("/v1/voices", self._list_voices),
                web.get("/v1/samples", self._list_samples),
                web.get("/v1/samples/{sample}.wav", self._sample),
                web.post("/v1/sessions", self._open_session),
                web.delete(session, self._leased(self._close_session)),
                web.options(f"{session}/whep", self._describe_whep),
                web.post(f"{session}/whep", self._leased(whep.add_viewer)),
                web.patch(f"{session}/whep/{{viewer}}", self._leased(whep.trickle)),
                web.delete(f"{session}/whep/{{viewer}}", self._leased(whep.remove_viewer)),
                web.get(f"{session}/speech", self._leased(self._speech)),
                web.get("/", self._page),
                web.get(r"/{file:[a-z]+\.(?:js|css|svg)}", self._page),
            ]
        )
        return app

    @web.middleware
    async def _count_requests(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        resource = request.match_info.route.resource
        method = request.method if request.method in METHODS else "other"
        self.metrics.requests.add(method, resource.canonical if resource else "none", str(response.status))
        return response

    def _leased(self, route: LeaseRoute) -> Handler:
        """A route of one session: it must exist, and the request must carry its token."""

        async def handler(request: web.Request) -> web.StreamResponse:
            lease = self.leases.find(request.match_info["session"])
            if lease is None:
                raise web.HTTPNotFound(text="no such session; it was closed, or never opened. POST /v1/sessions")
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                token = request.query.get("token", "")
            if not lease.admits(token.strip()):
                raise web.HTTPUnauthorized(
                    text="expected the session's token, as `Authorization: Bearer TOKEN` or `?token=TOKEN`",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            return await route(request, lease)

        return handler

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readiness(self, request: web.Request) -> web.Response:
        if self._draining:
            raise web.HTTPServiceUnavailable(text="shutting down")
        return web.json_response({"status": "ready", "avatars": len(self._host.avatars)})

    async def _capacity(self, request: web.Request) -> web.Response:
        live, most = len(self._host.sessions), self._config.max_sessions
        return web.json_response({"sessions": live, "max_sessions": most, "available": max(0, most - live)})

    async def _metrics_page(self, request: web.Request) -> web.Response:
        gauges = {
            "personastream_sessions": len(self._host.sessions),
            "personastream_sessions_max": self._config.max_sessions,
            "personastream_viewers": sum(len(lease.viewers) for lease in self.leases),
            "personastream_speech_sockets": sum(lease.sockets for lease in self.leases),
        }
        page = self.metrics.render(gauges, self._stages())
        return web.Response(body=page.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    def _stages(self) -> dict[str, tuple[int, float]]:
        """Runs and seconds of the engine's stages, over all avatars."""
        found: dict[str, tuple[int, float]] = {}
        for times in (performer.times for performer in self._host.performers.values()):
            for stage in times.stages:
                count, total_s = found.get(stage, (0, 0.0))
                found[stage] = (count + times.count(stage), total_s + times.total_s(stage))
        return found

    async def _list_avatars(self, request: web.Request) -> web.Response:
        avatars = [
            {
                "name": name,
                "width": avatar.width,
                "height": avatar.height,
                "thumbnail": f"/v1/avatars/{quote(name)}/thumbnail.jpg",
            }
            for name, avatar in self._host.avatars.items()
        ]
        return web.json_response({"avatars": avatars})

    async def _thumbnail(self, request: web.Request) -> web.Response:
        avatar = self._host.avatars.get(request.match_info["avatar"])
        if avatar is None:
            raise UnknownAvatarError(f"no avatar {request.match_info['avatar']!r}; GET /v1/avatars lists them")
        return web.Response(body=avatar.thumbnail_jpeg, content_type="image/jpeg")

    async def _list_voices(self, request: web.Request) -> web.Response:
        return web.json_response({"voices": list(self._voices)})

    async def _list_samples(self, request: web.Request) -> web.Response:
        samples = [
            {
                "name": sample.name,
                "url": f"/v1/samples/{quote(sample.name)}.wav",
                "duration_s": round(sample.duration_s, 2),
            }
            for sample in self._samples.values()
        ]
        return web.json_response({"samples": samples})

    async def _sample(self, request: web.Request) -> web.FileResponse:
        sample = self._samples.get(request.match_info["sample"])
        if sample is None:
            raise web.HTTPNotFound(text="no such sample; GET /v1/samples lists them")
        return web.FileResponse(sample.path, headers={"Content-Type": "audio/wav"})

    async def _open_session(self, request: web.Request) -> web.Response:
        avatar = _avatar_name(await request.read())
        if self._draining:  # asked after the body has come: a slow one must not get a session past the end
            raise CapacityError("the server is shutting down; try another one")
        lease = await self.leases.open(avatar)
        path = f"/v1/sessions/{lease.session.id}"
        body = {"id": lease.session.id, "token": lease.token, "whep": f"{path}/whep", "speech": f"{path}/speech"}
        return web.json_response(body, status=201, headers={"Location": path, "Cache-Control": "no-store"})

    async def _close_session(self, request: web.Request, lease: Lease) -> web.Response:
        await lease.close()
        return web.Response(status=204)

    async def _describe_whep(self, request: web.Request) -> web.Response:
        return whep.describe()

    async def _speech(self, request: web.Request, lease: Lease) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=PING_S, max_msg_size=MAX_MESSAGE_BYTES, compress=False)
        with lease.socket():
            await SpeechSocket(socket, lease, self._voices, self.metrics).run(request)
        return socket

    async def _page(self, request: web.Request) -> web.FileResponse:
        path = WEB / request.match_info.get("file", "index.html")
        if not path.is_file():
            raise web.HTTPNotFound(text=f"no page {request.path}")
        return web.FileResponse(path, headers=PAGE_HEADERS)


def _avatar_name(body: bytes) -> str:
    try:
        found = json.loads(body)
    except ValueError as error:
        raise ProtocolError(f'a body that is no JSON ({error}); expected {{"avatar": name}}') from error
    name = found.get("avatar") if isinstance(found, dict) else None
    if not isinstance(name, str):
        raise ProtocolError(f'a body without an avatar\'s name; expected {{"avatar": name}}, found {found!r:.60}')
    return name
