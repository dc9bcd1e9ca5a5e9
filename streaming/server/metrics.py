"""The server's metrics for Prometheus. No label holds a session id, so the number of series is bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder

LATENCY_BUCKETS_S = (0.02, 0.04, 0.08, 0.12, 0.16, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.5, 5.0)
STAGE_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.5)
SKEW_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)


class Metrics:
    """The metrics of one server; `render` makes its /metrics page."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the series of each counter
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "personastream_http_requests",
            "HTTP requests answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.sessions_opened = Counter(
            "personastream_sessions_opened", "Sessions opened since the start.", registry=self.registry
        )
        self.sessions_closed = Counter(
            "personastream_sessions_closed",
            "Sessions that ended, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.viewers_left = Counter(
            "personastream_viewers_left", "Viewers that left, by reason.", ["reason"], registry=self.registry
        )
        self.units = Counter(
            "personastream_viewer_units",
            "Frames with their sound sent to viewers; a late picture repeats the previous one.",
            ["picture", "state"],
            registry=self.registry,
        )
        self.dropped = Counter(
            "personastream_viewer_units_dropped",
            "Frames with their sound that slow viewers lost.",
            registry=self.registry,
        )
        self.first_frame = Histogram(
            "personastream_first_frame_seconds",
            "From the first sound after silence to its first new picture.",
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.interrupt_tail = Histogram(
            "personastream_interrupt_tail_seconds",
            "From a barge-in to the first silent frame.",
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.stages = Histogram(
            "personastream_stage_seconds",
            "Duration of one run of a stage.",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=self.registry,
        )
        self.av_skew = Histogram(
            "personastream_av_skew_seconds",
            "Between the departures of a picture and of its sound to a viewer.",
            buckets=SKEW_BUCKETS_S,
            registry=self.registry,
        )

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Count one run of a stage; an observer of the engine's and the encoders' StageTimes."""
        self.stages.labels(stage).observe(seconds)

    def observe(self, name: str, seconds: float) -> None:
        """Count a latency of a session; an observer of `Engine.latencies`."""
        getattr(self, name).observe(seconds)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, in the format that the Accept header asks for."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type
