"""Measure an avatar in Chromium: frame rate, latency, and the skew between sound and picture.

Chromium runs on the same machine and uses a part of its cores. Two parts: in `talk` the avatar speaks through the page
and is interrupted; in `marks` a corner of the picture flashes while the sound beeps, and a trend is fitted to the skew.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import aiohttp
import numpy as np
import torch
import tyro
from playwright.async_api import Page
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table
from scipy.stats import theilslopes

from benchmarks import chromium, command
from benchmarks.chromium import PageError, until
from benchmarks.cpu_time import CpuTimes, thread_names
from benchmarks.live_page import CHANGED, INTERRUPT, LOUD, SAMPLE, live_page, marks, write_sample
from benchmarks.serving import ROOT, ServerProcess, serving
from engine.config import Quality
from engine.errors import SettingError

SAMPLE_S = 30.0
LEAST_S = 2.0
SPEECH_S = 1.5  # before an interruption
SILENCE_S = 1.0  # the last sound is searched for this long after an interruption
FIRST_MS = 300  # of speech, sent before the clock for the first synced frame starts
EVEN_MS = 80.0  # the longest gap of an even cadence: one picture of 25 a second is missing
HALF_REFRESH_MS = 1_000 / 60 / 2  # the browser shows pictures at the refreshes of a screen of 60 Hz
TAKE_S = 20.0  # interval at which the probe's records are moved out of the page
# WebAudio hears a remote track this much later than the loudspeaker plays it: its buffer, and the sink of a machine
# without a sound card. Measured against the browser's own estimate of both playout times.
TAP_MS = 40.0
LEAST_CORES = 0.005  # a smaller share of a core is not listed
MS_PER_HOUR = 3_600_000

Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Measure an avatar in Chromium."""

    avatar: Annotated[Path, tyro.conf.Positional]
    seconds: float = 60.0
    """Duration of uninterrupted speech in `talk`, and of flashes in `marks`."""
    parts: tuple[Literal["talk", "marks"], ...] = ("talk", "marks")
    rounds: int = 10
    """How often speech is begun and interrupted, to measure the first synced frame and the barge-in."""
    settle_s: float = 12.0
    """Duration of the first flashes, which do not count: a browser that starts on a busy machine buffers sound before
    its loudspeaker runs, and needs seconds to play the excess."""
    quality: Quality | None = None
    """`--quality` of `personastream serve`."""
    speech: Path = ROOT / "demo" / "speech_a.wav"
    json: Path | None = None
    """File for the figures."""

    def run(self) -> Figures:
        """The figures, printed and written. Raises SettingError, PageError, ServerEndError."""
        if not self.seconds >= LEAST_S or self.rounds < 1 or self.settle_s < 0:
            raise SettingError(
                f"--seconds {self.seconds} --rounds {self.rounds} --settle-s {self.settle_s}; "
                f"expected at least {LEAST_S}, 1 and 0"
            )
        chromium.program()
        figures: Figures = {}
        options = () if self.quality is None else ("--quality", self.quality)
        if "talk" in self.parts:
            figures |= asyncio.run(talk(self.avatar, options, self.speech, self.seconds, self.rounds))
        if "marks" in self.parts:
            figures |= asyncio.run(flash(self.avatar, options, self.seconds, self.settle_s))
        Console(width=100).print(_table(figures))
        if self.json is not None:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            self.json.write_text(json.dumps(figures, indent=2) + "\n")
        return figures


async def talk(avatar: Path, options: tuple[str, ...], speech: Path, seconds: float, rounds: int) -> Figures:
    """Serve with `options`; the avatar speaks and is interrupted `rounds` times, then speaks for `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        write_sample(speech, Path(folder), SAMPLE_S)
        arguments = (*options, "--samples", folder)
        async with (
            serving(avatar, *arguments, module="benchmarks.named_server") as server,
            live_page(server.url) as page,
        ):
            before, first_ms, barge_in_ms = await page.evaluate("probe.stats()"), [], []
            for _ in range(rounds):
                first_ms.append(await first_frame_ms(page))
                await asyncio.sleep(SPEECH_S)
                barge_in_ms.append(await interruption_ms(page))
            first_ms.append(await first_frame_ms(page))
            spoken_ms, counted = await page.evaluate("performance.now()"), await counters(server.url)
            used = CpuTimes.now(server.pid)
            for left_s in np.arange(seconds, 0, -SAMPLE_S):
                await asyncio.sleep(min(left_s, SAMPLE_S))
                if left_s > SAMPLE_S:
                    await page.evaluate(f"{SAMPLE}.click()")
            cores = CpuTimes.now(server.pid).cores_since(used)
            after, counts = await page.evaluate("probe.stats()"), await counters(server.url)
            machine = await machine_figures(server)
            frames = np.array(await page.evaluate(f"probe.frames.filter(([seen]) => seen >= {spoken_ms})"))
            skews_ms = np.array(await page.evaluate("probe.skews")).reshape(-1, 2)[:, 1]
    increase = {name: value - counted.get(name, 0.0) for name, value in counts.items()}
    return (
        machine
        | receiver_figures(before, after)
        | speech_figures(frames, increase)
        | latency_figures("first_synced_frame", first_ms)
        | latency_figures("barge_in", barge_in_ms)
        | skew_figures(skews_ms)
        | {"cores": {name: round(share, 3) for name, share in cores.items() if share > LEAST_CORES}}
    )


async def machine_figures(server: ServerProcess) -> Figures:
    """The processor, as the server describes it, its instruction set, the threads of inference, and the quality of
    pictures that the server chose, None if it does not say."""
    async with aiohttp.ClientSession() as http, http.get(f"{server.url}/capacity") as reply:
        capacity = await reply.json()
    return {
        "device": capacity["device"],
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "inference_threads": sum(name.startswith("inference") for name in thread_names(server.pid)),
        "quality": capacity.get("quality"),
    }


def receiver_figures(before: Figures, after: Figures) -> Figures:
    """Figures from two results of `probe.stats()`."""
    video, audio = after["video"], after["audio"]
    watched_s = (video["timestamp"] - before["video"]["timestamp"]) / 1_000
    concealed = audio.get("concealedSamples", 0) / max(1, audio.get("totalSamplesReceived", 1))
    return {
        "watched_s": watched_s,
        "decoded_fps": (video["framesDecoded"] - before["video"]["framesDecoded"]) / watched_s,
        "freezes": video.get("freezeCount", 0),
        "packets_lost": video["packetsLost"] + audio["packetsLost"],
        "sound_concealed_percent": 100 * concealed,
        "rtt_ms": 1_000 * after.get("rtt", 0.0),
    }


def speech_figures(frames: np.ndarray, increase: dict[tuple[str, ...], float]) -> Figures:
    """Figures from `probe.frames` in speech, and from the increase of the server's counters meanwhile."""
    spoken_s = (frames[-1, 0] - frames[0, 0]) / 1_000
    new = frames[frames[:, 2] > CHANGED]
    gaps_ms = np.diff(new[:, 1])
    fresh, repeated = (
        increase.get(("personastream_viewer_units_total", kind, "speaking"), 0.0) for kind in ("fresh", "repeated")
    )
    return {
        "rendered_fps_in_speech": len(frames) / spoken_s,
        "distinct_fps_in_speech": len(new) / spoken_s,
        "new_picture_gap_ms": [round(float(np.percentile(gaps_ms, percent)), 1) for percent in (50, 95, 99)],
        "new_picture_gaps_even_percent": 100 * float(np.mean(gaps_ms <= EVEN_MS + HALF_REFRESH_MS)),
        "fresh_fps_in_speech": fresh / spoken_s,
        "repeated_in_speech": int(repeated),
        "units": int(increase.get(("personastream_units_total",), 0.0)),
        "units_late": int(increase.get(("personastream_deadline_misses_total", "tick"), 0.0)),
    }


def latency_figures(name: str, values_ms: list[float]) -> Figures:
    """All values of a latency, and their 50th and 95th percentile."""
    return {
        f"{name}_ms": [round(value) for value in values_ms],
        f"{name}_p50_p95_ms": [round(float(np.percentile(values_ms, percent))) for percent in (50, 95)],
    }


def skew_figures(skews_ms: np.ndarray) -> Figures:
    """Figures from Chromium's own estimates; None if it gave none."""
    return {
        "picture_ahead_median_ms": float(np.median(skews_ms)) if len(skews_ms) else None,
        "picture_ahead_p99_abs_ms": float(np.percentile(np.abs(skews_ms), 99)) if len(skews_ms) else None,
    }


async def first_frame_ms(page: Page) -> float:
    """Click the sample's button; the time from FIRST_MS of speech sent to the first picture with sound."""
    at = await page.evaluate(f"({SAMPLE}.click(), performance.now())")
    sent = f"probe.sent.find(([time, type, ms]) => time > {at} && type === 'speech.audio' && ms >= {FIRST_MS})"
    heard = f"probe.sound.find(([time, level]) => time > {at} && level > {LOUD})"
    # sound and picture of a unit travel together; the first picture shown at or after the first sound is the synced one
    shown = f"probe.frames.find(([, shown]) => shown >= {heard}[0])"
    await until(page, f"{sent} && {shown}")
    return float(await page.evaluate(f"{shown}[1] - {sent}[0]"))


async def interruption_ms(page: Page) -> float:
    """Click Interrupt in loud speech; the time until the last sound was heard."""
    await until(page, f"probe.sound.slice(-8).every(([, level]) => level > {2 * LOUD})")
    at = await page.evaluate(f"({INTERRUPT}.click(), performance.now())")
    await asyncio.sleep(SILENCE_S)
    heard = await page.evaluate(f"probe.sound.findLast(([time, level]) => time > {at} && level > {LOUD})?.[0]")
    return float((heard or at) - at)


async def counters(url: str) -> dict[tuple[str, ...], float]:
    """The server's metrics by name and the values of the labels."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as reply:
        families = text_string_to_metric_families(await reply.text())
        samples = [sample for family in families for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


async def flash(avatar: Path, options: tuple[str, ...], seconds: float, settle_s: float) -> Figures:
    """Serve with `options`; the picture flashes while the sound beeps, for `settle_s` uncounted, then for `seconds`."""
    records: dict[str, list[list[float]]] = {"frames": [], "sound": [], "skews": []}
    async with serving(avatar, *options, module="benchmarks.marked_server") as server, live_page(server.url) as page:
        from_ms = await page.evaluate("performance.now()") + 1_000 * settle_s
        for left_s in np.arange(settle_s + seconds, 0, -TAKE_S):
            await asyncio.sleep(min(left_s, TAKE_S))
            for name, gathered in records.items():  # as text: playwright's own copying of many arrays is slow
                gathered += json.loads(await page.evaluate(f"JSON.stringify(probe.{name}.splice(0))"))
    pairs = marks(np.array(records["frames"]), np.array(records["sound"]))
    estimates = np.array(records["skews"]).reshape(-1, 2)
    pairs, estimates = pairs[pairs[:, 0] > from_ms], estimates[estimates[:, 0] > from_ms]
    if len(pairs) < 2:
        raise PageError(f"{len(pairs)} flashes with a beep in {seconds:.0f} s; expected 2 or more, watch for longer")
    ahead_ms, half = pairs[:, 1] - TAP_MS, len(pairs) // 2
    return {
        "marks": len(pairs),
        "mark_picture_ahead_median_ms": float(np.median(ahead_ms)),
        "mark_spread_ms": float(np.percentile(ahead_ms, 95) - np.percentile(ahead_ms, 5)),
        "mark_trend_ms_per_hour": float(theilslopes(ahead_ms, pairs[:, 0] / MS_PER_HOUR)[0]),
        "mark_second_half_ms": float(np.median(ahead_ms[half:]) - np.median(ahead_ms[:half])),
        "mark_playout_median_ms": float(np.median(estimates[:, 1])) if len(estimates) else None,
    }


def _table(figures: Figures) -> Table:
    table = Table("figure", "value", title="browser")
    for name, value in figures.items():
        if isinstance(value, dict):
            for part, share in value.items():
                table.add_row(f"{name}, {part}", f"{share:.2f}")
        else:
            table.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
    return table


if __name__ == "__main__":
    command.run(Watch, "python -m benchmarks.browser")
