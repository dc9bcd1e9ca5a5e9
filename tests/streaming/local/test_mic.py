"""Local speech: sources, the command `personastream mic`, and machines without sound hardware."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes.util
import os
import subprocess
import sys
import time
import urllib.request
import wave
from pathlib import Path

import pytest

from benchmarks.chromium import PROGRAM, console, open_page, until
from engine.commands.doctor import examine
from engine.media import PlaybackFinished
from streaming.errors import SoundDeviceError
from streaming.local.mic import speak_from
from streaming.local.sound_devices import Microphone, RawSource, list_devices, play

ROOT = Path(__file__).parents[3]


def portaudio() -> bool:
    try:
        return not list_devices()
    except SoundDeviceError:
        return False


needs_silence = pytest.mark.skipif(
    not portaudio(), reason="needs PortAudio (apt-get install libportaudio2) and a machine without sound devices"
)


@pytest.fixture
def raw(speech_wav, tmp_path):
    """A second of the bundled speech as a raw file, and its rate."""
    with wave.open(str(speech_wav)) as sound:
        path = tmp_path / "speech.raw"
        path.write_bytes(sound.readframes(sound.getframerate()))
        return path, sound.getframerate()


@pytest.fixture
def no_portaudio(monkeypatch):
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    for name in ("sounddevice", "_sounddevice"):
        monkeypatch.delitem(sys.modules, name, raising=False)


async def gather(source) -> bytes:
    async with contextlib.aclosing(source.blocks()) as blocks:
        return b"".join([pcm async for pcm in blocks])


async def test_a_file_is_heard_at_the_speed_at_which_it_is_spoken(raw):
    path, rate = raw
    began = time.monotonic()
    assert await gather(RawSource(str(path), rate)) == path.read_bytes()
    assert time.monotonic() - began > 0.9


async def test_a_pipe_is_heard_as_it_comes_and_in_whole_samples(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with subprocess.Popen(["sh", "-c", f"head -c 10001 /dev/zero > {path}"]):
        assert len(await gather(RawSource(str(path), 16_000))) == 10_000


async def test_a_source_that_is_not_there_is_a_typed_error(tmp_path):
    with pytest.raises(SoundDeviceError, match="cannot be read"):
        await gather(RawSource(str(tmp_path / "none"), 16_000))


@pytest.mark.asyncio(loop_scope="session")
async def test_what_a_source_hears_is_said_to_its_last_sample(engine, raw):
    path, rate = raw
    session = engine.open_session("speaker")
    events = session.subscribe_events()
    async with asyncio.timeout(60):
        await speak_from(RawSource(str(path), rate), session)
        ends = [event async for event in _until_finished(events)]
    await session.close()
    assert ends[-1].position_samples == len(path.read_bytes()) // 2 and not ends[-1].interrupted
    while engine.sessions:
        await asyncio.sleep(0.01)


async def _until_finished(events):
    async for event in events:
        yield event
        if isinstance(event, PlaybackFinished):
            return


def test_the_command_speaks_from_a_pipe_and_shows_the_avatar_on_a_page(avatar_path, raw):
    path, rate = raw
    command = [sys.executable, "-m", "streaming", "mic", str(avatar_path), "--source", "-", "--rate-hz", str(rate)]
    with subprocess.Popen(
        [*command, "--port", "0"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False
    ) as mic:
        try:
            url = mic.stdout.readline().split()[-1].decode()
            assert "/?session=" in url and "&token=" in url
            with urllib.request.urlopen(url, timeout=60) as page:
                assert b"<persona-stream" in page.read()
            mic.stdin.write(path.read_bytes())
            mic.stdin.close()
            assert mic.wait(timeout=60) == 0  # the source has ended and all of it was played
        finally:
            if mic.poll() is None:
                mic.kill()


@needs_silence
async def test_a_machine_without_a_microphone_or_loudspeaker_says_so(engine):
    with pytest.raises(SoundDeviceError, match=r"no microphone \(default\) at 16000 Hz .*devices: none"):
        await gather(Microphone(None, 16_000))
    with pytest.raises(SoundDeviceError, match="no microphone USB"):
        await gather(Microphone("USB", 16_000))
    with pytest.raises(SoundDeviceError, match="no microphone 7"):
        await gather(Microphone("7", 16_000))
    with pytest.raises(SoundDeviceError, match=r"no loudspeaker \(default\)"):
        await play(None, None)


@needs_silence
def test_the_command_without_a_microphone_is_one_line_and_exit_code_2(avatar_path):
    done = subprocess.run(
        [sys.executable, "-m", "streaming", "mic", str(avatar_path), "--port", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and "no microphone" in done.stderr and "Traceback" not in done.stderr


async def test_no_portaudio_names_the_remedy(no_portaudio):
    pytest.importorskip("cffi")
    with pytest.raises(SoundDeviceError, match="apt-get install libportaudio2"):
        await gather(Microphone(None, 16_000))


def test_the_doctor_lists_sound_devices_or_says_what_to_install(no_portaudio):
    (found,) = [finding for finding in examine() if finding.name == "sound devices"]
    assert found.ok and "install" in found.remedy


@pytest.mark.browser
@pytest.mark.skipif(not PROGRAM, reason="no chromium on PATH")
@pytest.mark.asyncio(loop_scope="session")
async def test_the_page_joins_a_session_that_a_program_has_opened_and_leaves_it_open(serving, engine, browser):
    async with serving() as client:
        session = await client.open_session()
        address = f"{client.server.url}/?session={session['id']}&token={session['token']}"
        async with open_page(browser, address) as page, asyncio.timeout(120):
            await until(page, "avatar.shadowRoot.querySelector('video').videoWidth > 0")
            (live_session,) = client.server.live_sessions
            assert live_session.session.id == session["id"] and len(live_session.viewers) == 1
            await page.evaluate("document.getElementById('stop').click()")
            while live_session.viewers:
                await asyncio.sleep(0.1)
            assert not await console(page)
        assert session["id"] in engine.sessions


DEVICES = """
import asyncio, sys
import numpy as np
from engine.media import MediaUnit
from engine.queues import MediaQueue, Policy
from streaming.local.sound_devices import Microphone, play

async def main():
    heard = []
    async for pcm in Microphone("default", 16_000).blocks():
        heard.append(pcm)
        if len(heard) == 10:
            break
    sys.stdout.buffer.write(b"".join(heard))
    units = MediaQueue(8, Policy.WAIT)
    for n in range(5):
        await units.put(MediaUnit(n, np.zeros((2, 2, 3), np.uint8), np.full(1920, 1000 + n, np.int16), 0, True, True))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(play(units, None))
        await asyncio.sleep(0.2)
        await units.close()

asyncio.run(main())
"""


@pytest.mark.skipif(not portaudio() or sys.platform != "linux", reason="needs PortAudio on ALSA")
def test_portaudio_carries_sound_in_and_out(tmp_path):
    """ALSA's file plugin is the sound card: what is recorded comes from one file, what is played goes to another."""
    spoken = b"".join((i % 1000).to_bytes(2, "little") for i in range(100_000))
    (tmp_path / "in.raw").write_bytes(spoken)
    (tmp_path / "asound.conf").write_text(
        f'pcm.!default {{ type file slave.pcm {{ type null }} file "{tmp_path}/out.raw" '
        f'infile "{tmp_path}/in.raw" format "raw" }}'
    )
    done = subprocess.run(
        [sys.executable, "-c", DEVICES],
        cwd=ROOT,
        env={**os.environ, "ALSA_CONFIG_PATH": str(tmp_path / "asound.conf")},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    blocks = [done.stdout[start : start + 640] for start in range(0, len(done.stdout), 640)]
    assert len(blocks) == 10 and all(block in spoken for block in blocks)  # 20 ms each; this card outruns every clock
    played = (tmp_path / "out.raw").read_bytes()
    units = b"".join((1000 + n).to_bytes(2, "little") * 1920 for n in range(5))
    assert units in played
