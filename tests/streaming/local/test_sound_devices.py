"""Sources of local speech, the loudspeaker, and machines without sound hardware."""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from silent_machine import needs_silence, portaudio

from engine.commands.doctor import examine
from streaming.errors import SoundDeviceError
from streaming.local.sound_devices import Microphone, RawSource, play

ROOT = Path(__file__).parents[3]


@pytest.fixture
def no_portaudio(monkeypatch):
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    for name in ("sounddevice", "_sounddevice"):
        monkeypatch.delitem(sys.modules, name, raising=False)


async def gather(source) -> bytes:
    async with contextlib.aclosing(source.blocks()) as blocks:
        return b"".join([pcm async for pcm in blocks])


async def test_a_file_is_read_at_its_sample_rate(raw_speech):
    path, rate = raw_speech
    began = time.monotonic()
    assert await gather(RawSource(str(path), rate)) == path.read_bytes()
    assert time.monotonic() - began > 0.9


async def test_a_pipe_is_read_as_it_arrives_and_in_whole_samples(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with subprocess.Popen(["sh", "-c", f"head -c 10001 /dev/zero > {path}"]):
        assert len(await gather(RawSource(str(path), 16_000))) == 10_000


async def test_a_source_that_does_not_exist_is_a_typed_error(tmp_path):
    with pytest.raises(SoundDeviceError, match="cannot be read"):
        await gather(RawSource(str(tmp_path / "none"), 16_000))


@needs_silence
async def test_a_machine_without_a_microphone_or_loudspeaker_says_so():
    with pytest.raises(SoundDeviceError, match=r"no microphone \(default\) at 16000 Hz .*devices: none"):
        await gather(Microphone(None, 16_000))
    with pytest.raises(SoundDeviceError, match="no microphone USB"):
        await gather(Microphone("USB", 16_000))
    with pytest.raises(SoundDeviceError, match="no microphone 7"):
        await gather(Microphone("7", 16_000))
    with pytest.raises(SoundDeviceError, match=r"no loudspeaker \(default\)"):
        await play(None, None)


async def test_no_portaudio_names_the_remedy(no_portaudio):
    pytest.importorskip("cffi")
    with pytest.raises(SoundDeviceError, match="apt-get install libportaudio2"):
        await gather(Microphone(None, 16_000))


def test_the_doctor_lists_sound_devices_or_says_what_to_install(no_portaudio):
    (found,) = [finding for finding in examine() if finding.name == "sound devices"]
    assert found.ok and "install" in found.remedy


DEVICES = """
import asyncio, sys
from pathlib import Path
import numpy as np
from engine.media import MediaUnit
from engine.queues import MediaQueue, Policy
from streaming.local.sound_devices import Microphone, play

def unit(n, level):
    return MediaUnit(n, np.zeros((2, 2, 3), np.uint8), np.full(1920, level, np.int16), 0, True, True)

class Heard:
    def __init__(self, played):
        self.file, self.samples = open(played, "rb"), np.zeros(0, np.int16)

    def whole_units(self):
        new = np.frombuffer(self.file.read(), np.int16)
        self.samples = np.concatenate([self.samples, new[new >= 10_000]])
        return (np.unique(self.samples, return_counts=True)[1] == 1920).sum()

async def main(played):
    recorded = []
    async for pcm in Microphone("default", 16_000).blocks():
        recorded.append(pcm)
        if len(recorded) == 10:
            break
    sys.stdout.buffer.write(b"".join(recorded))
    units = MediaQueue(8, Policy.WAIT)
    heard = Heard(played)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(play(units, None))
        for n in range(50):
            await units.put(unit(n, 10_000 + n))
            await asyncio.sleep(0.04)
            if heard.whole_units() >= 5:
                break
        await units.close()

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.skipif(not portaudio() or sys.platform != "linux", reason="needs PortAudio on ALSA")
def test_portaudio_carries_sound_in_and_out(tmp_path):
    """ALSA's file plugin is the sound card: it records from one file and plays to another, faster than real time."""
    spoken, played = tmp_path / "in.raw", tmp_path / "out.raw"
    spoken.write_bytes(b"".join((1 + i % 1000).to_bytes(2, "little") for i in range(100_000)))
    (tmp_path / "asound.conf").write_text(
        f'pcm.!default {{ type file slave.pcm {{ type null }} file "{played}" infile "{spoken}" format "raw" }}'
    )
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, str(played)],
        cwd=ROOT,
        env={**os.environ, "ALSA_CONFIG_PATH": str(tmp_path / "asound.conf")},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    recorded = np.frombuffer(done.stdout, np.int16)
    assert len(recorded) == 10 * 320 and recorded.min() >= 1 and recorded.max() <= 1000  # 10 blocks of 20 ms
    # A busy machine overruns this card: sound is lost between PortAudio's buffers, never within one.
    assert np.isin(np.diff(recorded.astype(int)), (1, -999)).mean() > 0.9
    # A busy machine underruns it: PortAudio then inserts silence or loses blocks. The script plays until five units
    # came out whole; all must be in order, and none may be repeated.
    heard = np.fromfile(played, np.int16)  # the plugin writes what it records there too
    heard = heard[heard >= 10_000].astype(int)
    samples = np.unique(heard, return_counts=True)[1]
    assert (np.diff(heard) >= 0).all() and samples.max() == 1920 and (samples == 1920).sum() >= 5
