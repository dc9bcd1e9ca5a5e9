"""The page, live in Chromium, with the probe in it: pictures, sound, messages sent and received, on one clock."""

from __future__ import annotations

import contextlib
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
from playwright.async_api import Page

from benchmarks import chromium
from benchmarks.chromium import until

PROBE = Path(__file__).with_name("probe.js")
VIDEO = "avatar.shadowRoot.querySelector('video')"
INTERRUPT = "avatar.shadowRoot.querySelector('.interrupt')"
SAMPLE = "document.querySelector('#samples button')"
MOUTH = (0.35, 0.5, 0.3, 0.25)  # left, top, width, height of a portrait's mouth, in parts of the frame
LOUD = 0.01  # RMS of full scale: silence is below 0.001, speech around 0.1
BEEP = 0.05
WHITE = 128
# The mouth of a new picture differs by more mean grey levels; in a repeated one H.264 leaves less than 0.1.
CHANGED = 0.25
PAUSE_MS = 500  # the shortest time between two beeps; closer ones are one beep


@contextlib.asynccontextmanager
async def live_page(url: str) -> AsyncIterator[Page]:
    """The page in a new Chromium, as soon as it shows a picture. Raises PageError; at the end of the block, for
    errors in the page."""
    async with (
        chromium.launch(chromium.SOUND_AT_ONCE) as browser,
        chromium.open_page(browser, url, PROBE.read_text()) as page,
    ):
        await until(page, "document.querySelector('#state')?.textContent === 'Live'")
        await until(page, f"{VIDEO}.videoWidth > 0")
        await page.evaluate(f"probe.watch({VIDEO}, {list(MOUTH)})")
        await page.evaluate(f"probe.listen({VIDEO}.srcObject)")
        await until(page, "probe.frames.length > 5 && probe.sound.length > 0")
        yield page


def write_sample(speech: Path, folder: Path, seconds: float) -> None:
    """Write the WAV file `speech` without the silence at its ends, repeated for `seconds`, as the only sample of
    `folder`."""
    with wave.open(str(speech)) as sound:
        parameters = sound.getparams()
        pcm = np.frombuffer(sound.readframes(sound.getnframes()), np.int16).reshape(-1, parameters.nchannels)
    loud = np.flatnonzero(np.abs(pcm).max(axis=1) > 0.05 * np.abs(pcm).max())
    pcm = pcm[loud[0] : loud[-1]]
    frames = int(seconds * parameters.framerate)
    with wave.open(str(folder / "speech.wav"), "wb") as sound:
        sound.setparams(parameters)
        sound.writeframes(np.tile(pcm, (1 + frames // len(pcm), 1))[:frames].tobytes())


def marks(frames: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """Pair flashes with beeps, from `probe.frames` and `probe.sound` of a marked server.

    [N, 2] in ms: the time at which each flash was shown, and how much later the nearest beep was heard.
    """
    flashes = frames[1:][(frames[1:, 3] > WHITE) & (frames[:-1, 3] <= WHITE), 1]
    beeps = sound[1:][(sound[1:, 1] > BEEP) & (sound[:-1, 1] <= BEEP), 0]
    beeps = beeps[np.diff(beeps, prepend=-np.inf) > PAUSE_MS]
    if not len(beeps):
        return np.empty((0, 2))
    return np.array([(flash, beeps[np.abs(beeps - flash).argmin()] - flash) for flash in flashes]).reshape(-1, 2)
