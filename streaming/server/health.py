"""Health: routes for operators and their tools: health, readiness, capacity and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.registry import Collector

from engine.backends.select import describe
from engine.errors import DrainingError
from engine.live.engine import Engine
from engine.live.session import SessionCounters
from engine.media import FPS
from streaming.config import ServerConfig
from streaming.publish.status import State
from streaming.server.job import State as JobState
from streaming.server.jobs import Jobs
from streaming.server.live_sessions import LiveSessions
from streaming.server.metrics import Metrics


class Health:
    """The routes outside /v1. The server is ready as soon as it listens: the networks have all run once by then."""

    def __init__(
        self,
        engine: Engine,
        live_sessions: LiveSessions,
        jobs: Sequence[Jobs[Any]],
        config: ServerConfig,
        metrics: Metrics,
    ):
        self._engine, self._live_sessions, self._config, self._metrics = engine, live_sessions, config, metrics
        metrics.registry.register(LiveState(engine, live_sessions, jobs, config))

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readiness(self, request: web.Request) -> web.Response:
        self._engine.need_device()
        if self._live_sessions.draining:
            raise DrainingError("the server is shutting down")
        return web.json_response({"status": "ready", "avatars": len(self._engine.avatars)})

    async def capacity(self, request: web.Request) -> web.Response:
        live, most = len(self._engine.sessions), self._config.max_sessions
        available = min(self._engine.room, max(0, most - live))
        return web.json_response(
            {
                "sessions": live,
                "max_sessions": most,
                "available": 0 if self._live_sessions.draining else available,
                "viewers": self._live_sessions.viewers,
                "max_viewers": self._config.max_viewers,
                "draining": self._live_sessions.draining,
                "device": describe(self._engine.backend.device),
                "fallback": self._engine.backend.fallback,
                "quality": self._engine.quality.pace.level,
                "frames_per_picture": self._engine.quality.pace.stride,
                "quality_reason": self._engine.quality.reason,
            }
        )

    async def metrics(self, request: web.Request) -> web.Response:
        page, content_type = self._metrics.render(request.headers.get("Accept", ""))
        return web.Response(body=page, headers={"Content-Type": content_type})


class LiveState(Collector):
    """Metrics of the present state, read at each request of the page."""

    def __init__(self, engine: Engine, live_sessions: LiveSessions, jobs: Sequence[Jobs[Any]], config: ServerConfig):
        self._engine, self._live_sessions, self._jobs, self._config = engine, live_sessions, jobs, config
        self._sizes: dict[Path, int] = {}  # of files, which may be gone later

    def collect(self) -> Iterator[Metric]:
        sessions = self._engine.sessions.values()
        numbers = {
            "sessions": ("Sessions that are open.", len(sessions)),
            "sessions_max": ("The most sessions that may be open.", self._config.max_sessions),
            "viewers": ("Viewers of all sessions.", self._live_sessions.viewers),
            "speech_sockets": (
                "Speech websockets that are open.",
                sum(live_session.sockets for live_session in self._live_sessions),
            ),
            "draining": ("1 while the server drains.", int(self._live_sessions.draining)),
        }
        for name, (text, value) in numbers.items():
            yield GaugeMetricFamily(f"personastream_{name}", text, value)
        yield InfoMetricFamily(
            "personastream_device",
            "The device that computes, and why it is not a faster one that the machine seems to have.",
            {"device": describe(self._engine.backend.device), "fallback": self._engine.backend.fallback},
        )
        pace = self._engine.quality.pace
        levels = {str(level): level == pace.level for level in self._engine.backend.levels}
        yield StateSetMetricFamily("personastream_quality", "The quality of the pictures.", levels)
        yield GaugeMetricFamily(
            "personastream_frames_per_picture",
            "Frames of speech for each new picture; above 1 under overload.",
            pace.stride,
        )
        depth = GaugeMetricFamily("personastream_queue_depth_seconds", "Media in queues, in seconds.", labels=["queue"])
        depth.add_metric(["speech"], sum(session.buffered_ms for session in sessions) / 1000)
        depth.add_metric(["units"], sum(session.viewer_backlog for session in sessions) / FPS)
        yield depth
        yield from _publications(self._live_sessions)
        for jobs in self._jobs:
            kinds = f"{jobs.kind}s"
            text = f"{kinds.capitalize()}, until they are deleted."
            states = GaugeMetricFamily(f"personastream_{kinds}", text, labels=["state"])
            counts = Counter(job.state for job in jobs)
            for state in JobState:
                states.add_metric([state.value], counts[state])
            yield states
        sizes = GaugeMetricFamily("personastream_avatar_bytes", "Size of a served avatar's file.", labels=["avatar"])
        for name, avatar in self._engine.avatars.items():
            if avatar.path not in self._sizes:
                self._sizes[avatar.path] = avatar.path.stat().st_size
            sizes.add_metric([name], self._sizes[avatar.path])
        yield sizes
        yield from _engine_counters(self._engine.counters)


def _publications(live_sessions: LiveSessions) -> Iterator[Metric]:
    states = GaugeMetricFamily("personastream_publications", "Destinations that are published to.", labels=["state"])
    counts = Counter(
        each.status.state.value for live_session in live_sessions for each in live_session.destinations.values()
    )
    for state in State:
        states.add_metric([state.value], counts[state.value])
    yield states


def _engine_counters(counters: SessionCounters) -> Iterator[Metric]:
    yield CounterMetricFamily("personastream_units", "Frames with their sound that sessions emitted.", counters.units)
    missed = CounterMetricFamily(
        "personastream_deadline_misses",
        "Frames of speech whose new picture came too late (picture), and frames that were emitted late (tick).",
        labels=["kind"],
    )
    missed.add_metric(["picture"], counters.speaking - counters.fresh_speaking)
    missed.add_metric(["tick"], counters.late)
    yield missed
