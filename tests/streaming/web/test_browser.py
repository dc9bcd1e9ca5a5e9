"""The whole way in a browser: server process, page, WebRTC, decoder, loudspeaker; `benchmarks.browser` times it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from benchmarks import chromium
from benchmarks.browser import counters
from benchmarks.live_page import CHANGED, INTERRUPT, LOUD, SAMPLE, live_page, marks, write_sample
from benchmarks.serving import serving

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(not chromium.PROGRAM, reason="no chromium on PATH"),
]

SAMPLE_S = 60.0  # far longer than a test waits for silence
NEAR_MS = 500.0  # marks are 2 s apart
SILENT = f"probe.sound.length > 375 && probe.sound.slice(-375).every(([, level]) => level < {LOUD})"  # for a second
TYPE = "document.querySelector('#text').value = 'Hello.'; document.querySelector('#say').requestSubmit()"
INTERRUPTED = (
    "probe.told.filter(([time, found]) => time > %s && found.type === 'playback.finished' && found.interrupted)"
)


def heard(at_ms: float) -> str:
    return f"probe.sound.some(([time, level]) => time > {at_ms} && level > {LOUD})"


async def interrupt(page: chromium.Page) -> None:
    """Press Interrupt; the sound ends, and how far it came is told."""
    at_ms = await page.evaluate("performance.now()")
    await page.evaluate(f"{INTERRUPT}.click()")
    await page.until("!avatar.speaking")
    await page.until(SILENT, SAMPLE_S / 2)
    told = await page.evaluate(INTERRUPTED % at_ms)
    assert told and all(message["position_samples"] > 0 for _, message in told), told


async def test_the_avatar_says_every_source_of_speech_and_is_interrupted(
    avatar_path: Path, speech_wav: Path, tmp_path: Path
) -> None:
    """A sample, typed text, a chosen file, and the microphone, which is Chromium's beeping stand-in."""
    write_sample(speech_wav, tmp_path, SAMPLE_S)
    async with serving(avatar_path, "--samples", str(tmp_path)) as server, live_page(server.url) as page:
        decoded = (await page.evaluate("probe.stats()"))["video"]["framesDecoded"]
        await page.until(SILENT)
        await page.evaluate(f"{SAMPLE}.click()")
        await page.until("avatar.speaking")
        await page.until(heard(0))
        spoken_ms = await page.evaluate("performance.now()")
        await page.until(f"probe.frames.filter(([at,, moved]) => at > {spoken_ms} && moved > {CHANGED}).length >= 10")
        assert (await counters(server.url))["personastream_viewer_units_total", "fresh", "speaking"] >= 10
        assert (await page.evaluate("probe.stats()"))["video"]["framesDecoded"] > decoded
        await interrupt(page)

        root = (await page.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await page.call("DOM.querySelector", nodeId=root, selector="#file"))["nodeId"]
        for begin in (
            lambda: page.evaluate(TYPE),
            lambda: page.call("DOM.setFileInputFiles", nodeId=node, files=[str(speech_wav)]),
            lambda: page.evaluate("document.querySelector('#microphone').click()"),
        ):
            at_ms = await page.evaluate("performance.now()")
            await begin()
            await page.until(heard(at_ms))
            await page.evaluate(f"{INTERRUPT}.click()")
            await page.until("!avatar.busy")
            await page.until(SILENT)
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
        found = np.empty((0, 2))
        async with asyncio.timeout(90):
            while len(found) < 2 or np.abs(found[-2:, 1]).max() > NEAR_MS:
                await asyncio.sleep(0.5)
                found = marks(*[np.array(await page.evaluate(f"probe.{name}")) for name in ("frames", "sound")])
