"""The HTTP server: all its routes, and its life from listening to draining."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from aiohttp.typedefs import Handler

from engine.errors import PersonaStreamError, SettingError
from engine.live.engine import Engine
from engine.live.pipeline import AvatarPipeline
from streaming.config import JobsConfig, ServerConfig
from streaming.server.access import Access, unguarded
from streaming.server.address import BASE_PATH, PROXIES, checked_base_path
from streaming.server.auth import KEYS_VARIABLE, Secrets
from streaming.server.avatar_routes import AvatarRoutes
from streaming.server.avatars import Avatars
from streaming.server.catalog import Catalog, Sample
from streaming.server.cors import Cors, is_loopback
from streaming.server.dub_job import DubJob
from streaming.server.dub_routes import DubRoutes
from streaming.server.enrolment_job import EnrolmentJob
from streaming.server.health import Health
from streaming.server.http_errors import connection_log, problem_middleware
from streaming.server.jobs import Jobs
from streaming.server.json_body import text_field
from streaming.server.live_sessions import LiveSessions
from streaming.server.made_avatars import MadeAvatars
from streaming.server.metrics import Metrics
from streaming.server.session_routes import SessionRoutes
from streaming.voices.voice import Voice
from streaming.webrtc import aiortc_private
from streaming.webrtc.ice import Ice

SHUTDOWN_S = 2.0
MAX_PORT = 65_535
METHODS = (
    "GET",
    "HEAD",
    "POST",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "PUT",
)  # labels of metrics


class Server:
    """Serves an Engine's avatars. An async context: it listens inside, and closes all sessions at its end.

    Raises SettingError for invalid settings, DependencyError for a version of aiortc that it cannot use, and
    PersonaStreamError if it cannot listen.
    """

    def __init__(
        self,
        engine: Engine,
        config: ServerConfig,
        voices: Mapping[str, Voice],
        samples: Mapping[str, Sample] | None = None,
        secrets: Secrets | None = None,
    ):
        secrets = secrets or Secrets()
        check_config(config, secrets)
        self.metrics = Metrics()
        ice = Ice(config.ice, secrets.turn)
        self.live_sessions = LiveSessions(engine, config, ice, self.metrics)
        self._engine, self._config = engine, config
        self._cors = Cors(config.cors_origins, own_names_only=not (secrets.keys or config.open))
        self._access = Access(secrets, self.live_sessions)
        self._dubs, self._enrolments = (
            Jobs[DubJob]("dub", config.dubs),
            Jobs[EnrolmentJob]("enrolment", config.enrolments),
        )
        jobs = (self._dubs, self._enrolments)
        self._health = Health(engine, self.live_sessions, jobs, config, self.metrics)
        self._catalog = Catalog(lambda: engine.avatars, lambda: voices, samples or {})
        self.avatars = Avatars(engine, config.max_avatar_bytes, self._avatars_in_use, self._observe)
        self._session_routes = SessionRoutes(self.live_sessions, config, voices, ice, self._access, self.avatars.used)
        self._made = MadeAvatars(config.enrolments.folder, self.avatars)
        self._avatar_routes = AvatarRoutes(
            self._enrolments, self.live_sessions, config, lambda: engine.avatars, self._made, self._access
        )
        self._dub_routes = DubRoutes(self._dubs, self.live_sessions, config, voices, self._access)
        self._stack = AsyncExitStack()
        self._runner = web.AppRunner(
            self._make_app(), access_log=None, logger=connection_log(), shutdown_timeout=SHUTDOWN_S
        )

    @property
    def url(self) -> str:
        """The address it listens at, with the port that the system chose for port 0."""
        host, port = self._runner.addresses[0][:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def __aenter__(self) -> Self:
        await aiortc_private.check()
        async with AsyncExitStack() as stack:
            self._engine.latencies.observers.append(self.metrics.observe)
            stack.callback(self._engine.latencies.observers.remove, self.metrics.observe)
            for pipeline in self._engine.pipelines.values():
                self._observe(pipeline)
            stack.callback(self._stop_observing)
            await stack.enter_async_context(self._made)
            await self._runner.setup()
            stack.push_async_callback(self._runner.cleanup)
            await self._listen()
            await stack.enter_async_context(self.live_sessions)  # no await in between: no request can arrive before
            await stack.enter_async_context(self._dubs)
            await stack.enter_async_context(self._enrolments)
            self._stack = stack.pop_all()
        return self

    def _observe(self, pipeline: AvatarPipeline) -> None:
        """Count the durations of its stages in the metrics."""
        pipeline.times.observers.append(self.metrics.observe_stage)

    def _stop_observing(self) -> None:
        for pipeline in self._engine.pipelines.values():
            if self.metrics.observe_stage in pipeline.times.observers:  # another server may have loaded it
                pipeline.times.observers.remove(self.metrics.observe_stage)

    def _avatars_in_use(self) -> set[str]:
        return {live_session.avatar for live_session in self.live_sessions}

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def drain(self) -> None:
        """Report not ready, open no more sessions, and wait until the open ones have ended: each when the speech that
        has begun is played, or after `drain_s`. All other requests are still answered."""
        await self.live_sessions.drain()

    async def open_session(
        self, avatar: str, client: str, session_id: str | None = None, origin: str | None = None
    ) -> dict[str, Any]:
        """Open a session for a client at the address `client`, and admit pages of `origin`: the answer of
        `POST /v1/sessions`, without addresses. Raises UnknownAvatarError, CapacityError, QuotaError, DrainingError."""
        if origin is not None:
            self._cors.add(origin)
        return await self._session_routes.open(avatar, client, session_id)

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.read()
        path = Path(text_field(body, "path", "file on the server")) if body else None
        await self.avatars.load(request.match_info["avatar"], path)
        return web.Response(status=204)

    async def _unload(self, request: web.Request) -> web.Response:
        self.avatars.unload(request.match_info["avatar"])
        return web.Response(status=204)

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
            middlewares=[self._count_requests, problem_middleware, self._cors.check],
            client_max_size=self._config.max_body_bytes,
        )
        app[BASE_PATH], app[PROXIES] = checked_base_path(self._config.base_path), self._config.proxies
        app.on_response_prepare.append(self._cors.add_headers)
        public = self._config.public_catalog
        app.add_routes(
            [
                web.get("/healthz", self._health.health),
                web.get("/readyz", self._health.readiness),
                web.get("/capacity", self._access.with_key(self._health.capacity)),
                web.get("/metrics", self._access.with_key(self._health.metrics)),
                web.post("/v1/avatars/{avatar}/load", self._access.with_key(self._load)),
                web.post("/v1/avatars/{avatar}/unload", self._access.with_key(self._unload)),
                *self._session_routes.table(),
                *self._dub_routes.table(),
                *self._avatar_routes.table(),
                *self._catalog.table(unguarded if public else self._access.with_key_or_token),
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


def check_config(config: ServerConfig, secrets: Secrets) -> None:
    """Raises SettingError."""
    _check_ranges(config)
    _check_exposure(config, secrets)


def _check_ranges(config: ServerConfig) -> None:
    least = {"max_body_bytes": 1, "max_sessions": 1, "max_viewers": 1, "max_session_viewers": 1, "token_ttl_s": 1e-3}
    least |= {"max_avatar_bytes": 1}
    least |= {"port": 0, "proxies": 0, "sessions_per_minute": 0, "max_session_s": 0, "idle_session_s": 0, "drain_s": 0}
    _check_least("--", config, least)
    of_jobs = {"at_once": 0, "waiting": 0, "max_bytes": 1, "max_s": 1, "keep_s": 0, "kept": 1}
    _check_least("--dubs.", config.dubs, of_jobs)
    _check_least("--enrolments.", config.enrolments, of_jobs)
    if not 0 < config.max_load < math.inf:
        raise SettingError(f"--max-load {config.max_load}; expected more than 0, a share of the device's time")
    if config.port > MAX_PORT:
        raise SettingError(f"--port {config.port}; expected at most {MAX_PORT}, or 0 for any free port")


def _check_least(prefix: str, config: ServerConfig | JobsConfig, least: Mapping[str, float]) -> None:
    for name, low in least.items():
        value = getattr(config, name)
        if value is not None and not value >= low:  # nor NaN
            raise SettingError(f"{prefix}{name.replace('_', '-')} {value}; expected at least {low}")


def _check_exposure(config: ServerConfig, secrets: Secrets) -> None:
    if not (secrets.keys or config.open or is_loopback(config.host)):
        raise SettingError(
            f"--host {config.host or '(all)'} lets other machines in and no key is set, so anybody who reaches port "
            f"{config.port} could open sessions. Set a key (export {KEYS_VARIABLE}=$(openssl rand -hex 16)), "
            "or pass --open to let everybody in"
        )
