"""Counters and latency histograms of the server, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

LATENCY_BUCKETS_S = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.5, 5.0)


@dataclass
class Total:
    """A number that only grows, for each combination of its labels."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    values: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def add(self, *values: str, count: int = 1) -> None:
        assert len(values) == len(self.labels), self.name
        self.values[values] += count

    def lines(self) -> list[str]:
        values = self.values if self.values or self.labels else {(): 0}
        shown = [f"{self.name}{_labels(self.labels, key)} {count}" for key, count in sorted(values.items())]
        return [f"# HELP {self.name} {self.help}", f"# TYPE {self.name} counter", *shown]


@dataclass
class Latency:
    """A histogram of seconds."""

    name: str
    help: str
    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS_S) + 1))
    sum_s: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self.sum_s += seconds

    def lines(self) -> list[str]:
        shown, seen = [], 0
        for bound, count in zip((*map(str, LATENCY_BUCKETS_S), "+Inf"), self.counts, strict=True):
            seen += count
            shown.append(f'{self.name}_bucket{{le="{bound}"}} {seen}')
        shown += [f"{self.name}_sum {self.sum_s:.6f}", f"{self.name}_count {seen}"]
        return [f"# HELP {self.name} {self.help}", f"# TYPE {self.name} histogram", *shown]


@dataclass
class Metrics:
    """All that the server counts. Labels never hold a session, so their number stays small."""

    requests: Total = field(
        default_factory=lambda: Total(
            "personastream_http_requests_total", "HTTP requests answered.", ("method", "route", "status")
        )
    )
    sessions_opened: Total = field(
        default_factory=lambda: Total("personastream_sessions_opened_total", "Sessions opened since the start.")
    )
    units: Total = field(
        default_factory=lambda: Total(
            "personastream_viewer_units_total",
            "Frames with their sound handed to viewers; a late picture repeats its predecessor.",
            ("picture", "state"),
        )
    )
    dropped: Total = field(
        default_factory=lambda: Total(
            "personastream_viewer_units_dropped_total", "Frames with their sound that slow viewers lost."
        )
    )
    first_sound: Latency = field(
        default_factory=lambda: Latency(
            "personastream_speech_start_seconds", "From the start of an utterance to its first sample played."
        )
    )
    interruption: Latency = field(
        default_factory=lambda: Latency(
            "personastream_interruption_seconds", "From a cancel to the end of the interrupted playback."
        )
    )

    def render(self, gauges: dict[str, int], stages: dict[str, tuple[int, float]]) -> str:
        """The page that Prometheus reads. `gauges`: the numbers that hold right now, by name; `stages`: how often each
        stage of the engine ran and the seconds that it took in all."""
        lines = [line for name in self.__dataclass_fields__ for line in getattr(self, name).lines()]
        lines += ["# HELP personastream_stage_seconds Time that the engine's stages took."]
        lines += ["# TYPE personastream_stage_seconds summary"]
        for stage, (count, total_s) in sorted(stages.items()):
            labels = _labels(("stage",), (stage,))
            lines += [f"personastream_stage_seconds_sum{labels} {total_s:.6f}"]
            lines += [f"personastream_stage_seconds_count{labels} {count}"]
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value}"]
        return "\n".join(lines) + "\n"


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not names:
        return ""
    escaped = (value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for value in values)
    return "{" + ",".join(f'{name}="{value}"' for name, value in zip(names, escaped, strict=True)) + "}"
