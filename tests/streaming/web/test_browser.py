"""A server process watched in a browser: page, WebRTC, decoder, loudspeaker; `benchmarks.browser` measures it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from playwright.async_api import Page

from benchmarks.browser import counters
from benchmarks.chromium import PROGRAM, until
from benchmarks.live_page import CHANGED, INTERRUPT, LOUD, SAMPLE, live_page, marks, write_sample
from benchmarks.serving import serving

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(not PROGRAM, reason="no chromium on PATH"),
]

SAMPLE_S = 300.0  # longer than a test waits for pictures, and for the silence after an interruption
TIMEOUT_S = 120.0
FRESH_IN_SPEECH = ("personastream_viewer_units_total", "fresh", "speaking")
NEAR_MS = 500.0  # marks are 2 s apart
SILENT = f"probe.sound.length > 375 && probe.sound.slice(-375).every(([, level]) => level < {LOUD})"  # for a second
TYPE = "document.querySelector('#text').value = 'Hello.'; document.querySelector('#say').requestSubmit()"


def heard(at_ms: float) -> str:
    return f"probe.sound.some(([time, level]) => time > {at_ms} && level > {LOUD})"


async def interrupt(page: Page) -> None:
    """Click Interrupt; the sound ends, and the page receives the position at which it did."""
    received = await page.evaluate("probe.received.length")
    await page.evaluate(f"{INTERRUPT}.click()")
    await until(page, "!avatar.speaking")
    await until(page, SILENT)
    messages = [message for _, message in await page.evaluate(f"probe.received.slice({received})")]
    finished = [message for message in messages if message["type"] == "playback.finished" and message["interrupted"]]
    assert finished and all(message["position_samples"] > 0 for message in finished), messages


async def test_every_source_of_speech_is_seen_and_heard_and_interrupted(
    avatar_path: Path, speech_wav: Path, tmp_path: Path
) -> None:
    """A sample, typed text, a chosen file, and the microphone, which is Chromium's beeping stand-in."""
    write_sample(speech_wav, tmp_path, SAMPLE_S)
    async with serving(avatar_path, "--samples", str(tmp_path)) as server, live_page(server.url) as page:
        decoded = (await page.evaluate("probe.stats()"))["video"]["framesDecoded"]
        await until(page, SILENT)
        await page.evaluate(f"{SAMPLE}.click()")
        await until(page, "avatar.speaking")
        await until(page, heard(0))
        spoken_ms = await page.evaluate("performance.now()")
        moved = f"probe.frames.filter(([at,, change]) => at > {spoken_ms} && change > {CHANGED})"
        await until(page, f"{moved}.length >= 3")
        async with asyncio.timeout(TIMEOUT_S):
            while (await counters(server.url)).get(FRESH_IN_SPEECH, 0) < 3:
                await asyncio.sleep(0.5)
        assert (await page.evaluate("probe.stats()"))["video"]["framesDecoded"] > decoded
        await interrupt(page)

        for begin in (
            lambda: page.evaluate(TYPE),
            lambda: page.set_input_files("#file", speech_wav),
            lambda: page.evaluate("document.querySelector('#microphone').click()"),
        ):
            at_ms = await page.evaluate("performance.now()")
            await begin()
            await until(page, heard(at_ms))
            await page.evaluate(f"{INTERRUPT}.click()")
            await until(page, "!avatar.busy")
            await until(page, SILENT)
        assert await page.evaluate("document.querySelector('#microphone').getAttribute('aria-pressed')") == "false"


async def test_a_flash_is_seen_when_its_beep_is_heard_and_the_servers_key_is_hidden(
    avatar_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONASTREAM_API_KEY", "sesame")
    async with (
        serving(avatar_path, module="benchmarks.marked_server") as server,
        live_page(f"{server.url}/?key=sesame") as page,
    ):
        assert "key" not in await page.evaluate("location.href")
        assert await page.evaluate("sessionStorage.getItem('key')") == "sesame"
        pairs = np.empty((0, 2))
        async with asyncio.timeout(180):
            while len(pairs) < 2 or np.abs(pairs[-2:, 1]).max() > NEAR_MS:
                await asyncio.sleep(0.5)
                pairs = marks(*[np.array(await page.evaluate(f"probe.{name}")) for name in ("frames", "sound")])
