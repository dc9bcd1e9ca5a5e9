"""The HTTP interface of a cluster: that of a server, as far as it concerns no session. Sessions are at their nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from http import HTTPStatus

import aiohttp
from aiohttp import hdrs, web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.errors import DrainingError
from streaming.cluster.fleet import Fleet
from streaming.cluster.library import Library
from streaming.cluster.placement import run_of
from streaming.config import ServerConfig
from streaming.errors import NodeLostError
from streaming.server.access import unguarded, with_key
from streaming.server.address import BASE_PATH, PROXIES, checked_base_path, with_token
from streaming.server.auth import Secrets
from streaming.server.catalog import Catalog, Sample
from streaming.server.cors import Cors
from streaming.server.http_errors import problem_middleware
from streaming.server.json_body import text_field
from streaming.server.limits import SessionRate, client_address
from streaming.server.metrics import Metrics
from streaming.server.session_routes import opened, refuse_realtime

PROBE_S = 1.0  # for a node to answer
ELSEWHERE = "the session is at its node: use the addresses in the answer of POST /v1/sessions"
NO_AVATARS = "a cluster makes no avatars over HTTP; make them with `precompute`, and start the cluster with their files"
NO_DUBS = "a cluster dubs no videos over HTTP; use `personastream dub --cluster`"


class DirectorRoutes:
    """Places sessions, and answers for the whole cluster. Raises SettingError."""

    def __init__(
        self, fleet: Fleet, library: Library, config: ServerConfig, secrets: Secrets, samples: Mapping[str, Sample]
    ):
        self._fleet, self._config, self._secrets = fleet, config, secrets
        self._rate = SessionRate(config.sessions_per_minute)
        self._cors = Cors(config.cors_origins, own_names_only=not (secrets.keys or config.open))
        self._catalog = Catalog(lambda: library.entries, self._voices, samples, elsewhere=True)
        self._metrics = Metrics()
        self._metrics.registry.register(FleetState(fleet))

    def app(self) -> web.Application:
        """Raises SettingError."""
        app = web.Application(
            middlewares=[problem_middleware, self._cors.check], client_max_size=self._config.max_body_bytes
        )
        app[BASE_PATH], app[PROXIES] = checked_base_path(self._config.base_path), self._config.proxies
        app.on_response_prepare.append(self._cors.add_headers)
        public = self._config.public_catalog
        app.add_routes(
            [
                web.get("/healthz", self._health),
                web.get("/readyz", self._readiness),
                web.get("/capacity", with_key(self._secrets, self._capacity)),
                web.get("/metrics", with_key(self._secrets, self._show_metrics)),
                web.post("/v1/sessions", with_key(self._secrets, self._open)),
                web.get("/v1/sessions/{session}", self._find),
                web.route("*", r"/v1/sessions/{below:.+}", self._elsewhere),
                web.route("*", r"/v1/dubs{below:.*}", self._no_dubs),
                web.route("*", r"/v1/enrolments{below:.*}", self._no_avatars),
                web.post("/v1/avatars", self._no_avatars),
                web.get("/v1/realtime", refuse_realtime),
                *self._catalog.table(unguarded if public else partial(with_key, self._secrets)),
            ]
        )
        return app

    def _voices(self) -> Iterator[str]:
        return iter(dict.fromkeys(voice for report in self._fleet.reports.values() for voice in report.voices))

    async def _open(self, request: web.Request) -> web.Response:
        avatar = text_field(await request.read(), "avatar", "name")
        client = client_address(request, self._config.proxies)
        self._rate.take(client, request.loop.time())
        node, session = await self._fleet.open(avatar, client, request.headers.get(hdrs.ORIGIN))
        session |= {"url": f"{node.url}/v1/sessions/{session['id']}"}
        return opened(session, lambda path: with_token(request, node.url + path, session["token"]))

    async def _find(self, request: web.Request) -> web.Response:
        """Where a session is. Its client asks when the node does not answer, which may be sooner than Ray notices."""
        session = request.match_info["session"]
        run = run_of(session)
        for report in self._fleet.reports.values():
            if report.run == run and await _answers(report.url):
                return web.json_response({"url": f"{report.url}/v1/sessions/{session}"})
        self._fleet.forget(run)
        raise NodeLostError(f"session {session} ended with its node, which is gone; open another one")

    async def _elsewhere(self, request: web.Request) -> web.Response:
        raise web.HTTPNotFound(text=ELSEWHERE)

    async def _no_avatars(self, request: web.Request) -> web.Response:
        raise web.HTTPForbidden(text=NO_AVATARS)

    async def _no_dubs(self, request: web.Request) -> web.Response:
        raise web.HTTPForbidden(text=NO_DUBS)

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readiness(self, request: web.Request) -> web.Response:
        if all(report.draining for report in self._fleet.reports.values()):
            raise DrainingError("no node of this cluster takes sessions; they start or drain")
        return web.json_response({"status": "ready", "nodes": len(self._fleet.reports)})

    async def _capacity(self, request: web.Request) -> web.Response:
        reports = self._fleet.reports
        return web.json_response(
            {
                "sessions": sum(report.sessions for report in reports.values()),
                "max_sessions": sum(report.max_sessions for report in reports.values()),
                "available": sum(max(0, report.room) for report in reports.values()),
                "viewers": sum(report.viewers for report in reports.values()),
                "max_viewers": sum(report.max_viewers for report in reports.values()),
                "draining": all(report.draining for report in reports.values()),
                "nodes": [
                    {
                        "name": name,
                        "url": report.url,
                        "sessions": report.sessions,
                        "available": max(0, report.room),
                        "draining": report.draining,
                        "device": report.device,
                    }
                    for name, report in reports.items()
                ],
                "starting": self._fleet.starting,
            }
        )

    async def _show_metrics(self, request: web.Request) -> web.Response:
        page, content_type = self._metrics.render(request.headers.get("Accept", ""))
        return web.Response(body=page, headers={"Content-Type": content_type})


async def _answers(url: str) -> bool:
    """Whether a node answers at its address."""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with aiohttp.request("GET", f"{url}/healthz", timeout=aiohttp.ClientTimeout(PROBE_S)) as reply:
            return reply.status == HTTPStatus.OK
    return False


class FleetState(Collector):
    """Metrics of the cluster, read at each request of the page. Each node has its own page."""

    def __init__(self, fleet: Fleet):
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        reports = self._fleet.reports.values()
        numbers = {
            "nodes": ("Nodes that answer.", len(reports)),
            "nodes_starting": ("Nodes that do not answer, or not yet.", len(self._fleet.starting)),
            "sessions": ("Sessions of all nodes.", sum(report.sessions for report in reports)),
            "available": ("Further sessions that would be admitted.", sum(max(0, each.room) for each in reports)),
            "viewers": ("Viewers of all nodes.", sum(report.viewers for report in reports)),
        }
        for name, (text, value) in numbers.items():
            yield GaugeMetricFamily(f"personastream_cluster_{name}", text, value)
        yield CounterMetricFamily(
            "personastream_cluster_sessions_opened", "Sessions placed since the director's start.", self._fleet.opened
        )
        yield CounterMetricFamily(
            "personastream_cluster_sessions_refused", "Sessions that no node had room for.", self._fleet.refused
        )
