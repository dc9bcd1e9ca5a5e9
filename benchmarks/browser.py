"""An avatar watched in Chromium: how smooth, how soon, and how far apart sound and picture are.

Chromium runs on the same machine and takes its share of it. Two parts: `talk` has the avatar speak through the page,
and interrupts it; `marks` lets a corner flash while the sound beeps, and looks for a trend over any length.
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
import tyro
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table
from scipy.stats import theilslopes

from benchmarks import chromium, command
from benchmarks.chromium import Page, PageError
from benchmarks.live_page import CHANGED, INTERRUPT, LOUD, SAMPLE, live_page, marks, write_sample
from benchmarks.serving import ROOT, serving
from engine.config import Quality
from engine.errors import SettingError

SAMPLE_S = 30.0
LEAST_S = 2.0
PAUSE_S = 3.0  # of speech before it is interrupted
SILENCE_S = 2.0  # behind an interruption, in which the last sound is looked for
FIRST_MS = 300  # of speech that are sent before the clock for the first synced frame starts
TAKE_S = 20.0  # what the probe has gathered is taken out of the page so often
# WebAudio hears a remote track this much later than the loudspeaker plays it: its buffer, and the sink of a machine
# without a sound card. Measured against the browser's own estimate of both playout times.
TAP_MS = 40.0
MS_PER_HOUR = 3_600_000

Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Watch an avatar in Chromium."""

    avatar: Annotated[Path, tyro.conf.Positional]
    seconds: float = 60.0
    """Of uninterrupted speech in `talk`, and of flashes in `marks`."""
    parts: tuple[Literal["talk", "marks"], ...] = ("talk", "marks")
    rounds: int = 3
    """Times that speech is begun and interrupted, for the first synced frame and the barge-in."""
    settle_s: float = 12.0
    """Of flashes that do not count: a browser that starts on a busy machine gathers sound before its loudspeaker runs,
    and plays it off over seconds."""
    quality: Quality | None = None
    """That of `personastream serve`."""
    speech: Path = ROOT / "demo" / "speech_a.wav"
    json: Path | None = None
    """Where to write the figures."""

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
    """Served with those options, speak and be interrupted `rounds` times, then speak for so long."""
    with tempfile.TemporaryDirectory() as folder:
        write_sample(speech, Path(folder), SAMPLE_S)
        async with serving(avatar, *options, "--samples", folder) as server, live_page(server.url) as page:
            before, first_ms, barge_ms = await page.evaluate("probe.stats()"), [], []
            for _ in range(rounds):
                first_ms.append(await first_frame_ms(page))
                await asyncio.sleep(PAUSE_S)
                barge_ms.append(await barge_in_ms(page))
            first_ms.append(await first_frame_ms(page))
            spoken_ms, counted = await page.evaluate("performance.now()"), await counters(server.url)
            for left_s in np.arange(seconds, 0, -SAMPLE_S):
                await asyncio.sleep(min(left_s, SAMPLE_S))
                if left_s > SAMPLE_S:
                    await page.evaluate(f"{SAMPLE}.click()")
            after, counts = await page.evaluate("probe.stats()"), await counters(server.url)
            frames = np.array(await page.evaluate(f"probe.frames.filter(([seen]) => seen >= {spoken_ms})"))
            skews = np.array(await page.evaluate("probe.skews")).reshape(-1, 2)[:, 1]
    spoken_s = (frames[-1, 0] - frames[0, 0]) / 1_000
    watched_s = (after["video"]["timestamp"] - before["video"]["timestamp"]) / 1_000
    fresh, repeated, units, late = (
        counts.get(name, 0.0) - counted.get(name, 0.0)
        for name in (
            ("personastream_viewer_units_total", "fresh", "speaking"),
            ("personastream_viewer_units_total", "repeated", "speaking"),
            ("personastream_units_total",),
            ("personastream_deadline_misses_total", "tick"),
        )
    )
    return {
        "watched_s": watched_s,
        "decoded_fps": (after["video"]["framesDecoded"] - before["video"]["framesDecoded"]) / watched_s,
        "rendered_fps_in_speech": len(frames) / spoken_s,
        "distinct_fps_in_speech": float((frames[:, 2] > CHANGED).sum() / spoken_s),
        "fresh_fps_in_speech": fresh / spoken_s,
        "repeated_in_speech": int(repeated),
        "units": int(units),
        "units_late": int(late),
        "first_synced_frame_ms": [round(value) for value in first_ms],
        "barge_in_ms": [round(value) for value in barge_ms],
        "freezes": after["video"].get("freezeCount", 0),
        "packets_lost": after["video"]["packetsLost"] + after["audio"]["packetsLost"],
        "sound_concealed_percent": 100
        * after["audio"].get("concealedSamples", 0)
        / max(1, after["audio"].get("totalSamplesReceived", 1)),
        "rtt_ms": 1_000 * after.get("rtt", 0.0),
        "picture_ahead_median_ms": float(np.median(skews)) if len(skews) else None,
        "picture_ahead_p99_abs_ms": float(np.percentile(np.abs(skews), 99)) if len(skews) else None,
    }


async def first_frame_ms(page: Page) -> float:
    """Press the sample's button; the time from FIRST_MS of speech sent to the first picture with sound."""
    at = await page.evaluate(f"({SAMPLE}.click(), performance.now())")
    sent = f"probe.sent.find(([time, type, ms]) => time > {at} && type === 'speech.audio' && ms >= {FIRST_MS})"
    heard = f"probe.sound.find(([time, level]) => time > {at} && level > {LOUD})"
    # sound and picture of a unit travel together; the first picture shown at or after the first sound is the synced one
    shown = f"probe.frames.find(([, shown]) => shown >= {heard}[0])"
    await page.until(f"{sent} && {shown}")
    return float(await page.evaluate(f"{shown}[1] - {sent}[0]"))


async def barge_in_ms(page: Page) -> float:
    """Press Interrupt in loud speech; the time until the last sound was heard."""
    await page.until(f"probe.sound.slice(-8).every(([, level]) => level > {2 * LOUD})")
    at = await page.evaluate(f"({INTERRUPT}.click(), performance.now())")
    await asyncio.sleep(SILENCE_S)
    heard = await page.evaluate(f"probe.sound.findLast(([time, level]) => time > {at} && level > {LOUD})?.[0]")
    return float((heard or at) - at)


async def counters(url: str) -> dict[tuple[str, ...], float]:
    """The server's metrics by name and the values of their labels."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as reply:
        families = text_string_to_metric_families(await reply.text())
        return {(sample.name, *sample.labels.values()): sample.value for one in families for sample in one.samples}


async def flash(avatar: Path, options: tuple[str, ...], seconds: float, settle_s: float) -> Figures:
    """Served with those options, flashes and beeps for so long, after so many that do not count."""
    frames: list[list[float]] = []
    sound: list[list[float]] = []
    skews: list[list[float]] = []
    async with serving(avatar, *options, module="benchmarks.marked_server") as server, live_page(server.url) as page:
        from_ms = await page.evaluate("performance.now()") + 1_000 * settle_s
        for left_s in np.arange(settle_s + seconds, 0, -TAKE_S):
            await asyncio.sleep(min(left_s, TAKE_S))
            for gathered, name in ((frames, "frames"), (sound, "sound"), (skews, "skews")):
                gathered += await page.evaluate(f"probe.{name}.splice(0)")
    found, estimates = marks(np.array(frames), np.array(sound)), np.array(skews).reshape(-1, 2)
    found, estimates = found[found[:, 0] > from_ms], estimates[estimates[:, 0] > from_ms]
    if len(found) < 2:
        raise PageError(f"{len(found)} flashes with a beep in {seconds:.0f} s; expected 2 or more, watch for longer")
    ahead_ms = found[:, 1] - TAP_MS
    return {
        "marks": len(found),
        "mark_picture_ahead_median_ms": float(np.median(ahead_ms)),
        "mark_spread_ms": float(np.percentile(ahead_ms, 95) - np.percentile(ahead_ms, 5)),
        "mark_trend_ms_per_hour": float(theilslopes(ahead_ms, found[:, 0] / MS_PER_HOUR)[0]),
        "mark_second_half_ms": float(np.median(ahead_ms[len(found) // 2 :]) - np.median(ahead_ms[: len(found) // 2])),
        "mark_playout_median_ms": float(np.median(estimates[:, 1])) if len(estimates) else None,
    }


def _table(figures: Figures) -> Table:
    table = Table("figure", "value", title="browser")
    for name, value in figures.items():
        table.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
    return table


if __name__ == "__main__":
    command.run(Watch, "python -m benchmarks.browser")
