"""Sources of local speech, and the loudspeaker: microphone, raw sound from a file or pipe.

PortAudio is loaded when a device is opened, not before: a server has none and needs none.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import stat
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.media import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, MediaUnit
from engine.queues import MediaQueue, Policy
from streaming.errors import SoundDeviceError

BLOCK_MS = 20
BACKLOG_BLOCKS = 50  # one second: an event loop that is blocked for longer loses the oldest sound
LEAD_UNITS = 3  # the loudspeaker is this far behind the session: a late unit leaves no gap


class SoundSource(Protocol):
    """Speech in real time."""

    @property
    def sample_rate_hz(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def blocks(self) -> AsyncGenerator[bytes, None]:
        """s16le sound, interleaved, until the source ends. Raises SoundDeviceError if it cannot be opened."""
        ...


@dataclass(frozen=True)
class RawSource:
    """s16le from a file, at its sample rate, or from a pipe as it arrives; `-` is the standard input."""

    path: str
    sample_rate_hz: int
    channels: int = 1

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """See SoundSource."""
        size = self.sample_rate_hz * BLOCK_MS // 1000 * self.channels * 2
        try:
            file = sys.stdin.buffer if self.path == "-" else Path(self.path).open("rb")  # noqa: SIM115  # closed below
        except OSError as error:
            raise SoundDeviceError(
                f"{self.path} cannot be read ({error.strerror}); expected raw s16le sound"
            ) from error
        with file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                loop = asyncio.get_running_loop()
                began = loop.time()
                sent = 0
                while pcm := file.read(size):
                    yield pcm
                    sent += 1
                    await asyncio.sleep(began + sent * BLOCK_MS / 1000 - loop.time())
                return
            reader = asyncio.StreamReader()
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), file
            )
            with contextlib.closing(transport):
                while not reader.at_eof():
                    try:
                        yield await reader.readexactly(size)
                    except asyncio.IncompleteReadError as rest:
                        yield rest.partial[: len(rest.partial) // (2 * self.channels) * 2 * self.channels]


@dataclass(frozen=True)
class Microphone:
    """A sound device, by its number or a part of its name; None is the system's default."""

    device: str | None
    sample_rate_hz: int
    channels: int = 1

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """See SoundSource."""
        loop = asyncio.get_running_loop()
        queue: MediaQueue[bytes] = MediaQueue(BACKLOG_BLOCKS, Policy.DROP_OLDEST)

        def record(data: Any, *_: Any) -> None:  # on PortAudio's thread
            asyncio.run_coroutine_threadsafe(queue.put(bytes(data)), loop)

        with _stream("RawInputStream", "microphone", self.device, self.sample_rate_hz, self.channels, record):
            async for pcm in queue:
                yield pcm


async def play(units: MediaQueue[MediaUnit], device: str | None) -> None:
    """Play the sound of `units` on the loudspeaker `device` until the queue closes. Raises SoundDeviceError."""
    waiting = bytearray()
    lead = LEAD_UNITS * SAMPLES_PER_FRAME * 2
    begun = False
    lock = threading.Lock()

    def fill(out: Any, *_: Any) -> None:  # on PortAudio's thread
        nonlocal begun
        with lock:
            begun = begun or len(waiting) >= lead
            count = min(len(out), len(waiting)) if begun else 0
            sound = bytes(waiting[:count])
            del waiting[:count]
        out[:] = sound + bytes(len(out) - count)

    with _stream("RawOutputStream", "loudspeaker", device, SAMPLE_RATE_HZ, 1, fill):
        async for unit in units:
            with lock:
                waiting.extend(unit.samples.astype("<i2").tobytes())
                del waiting[: max(0, len(waiting) - 4 * lead)]  # the device's clock is slower than this machine's


def list_devices() -> list[str]:
    """One line for each sound device of this machine. Raises SoundDeviceError without PortAudio."""
    return [
        f"{number}: {device['name']} ({device['max_input_channels']} in, {device['max_output_channels']} out)"
        for number, device in enumerate(_sounddevice().query_devices())
    ]


@contextlib.contextmanager
def _stream(
    kind: str, what: str, device: str | None, sample_rate_hz: int, channels: int, callback: Any
) -> Iterator[None]:
    sounddevice = _sounddevice()
    chosen = int(device) if device is not None and device.isdigit() else device
    try:
        stream = getattr(sounddevice, kind)(
            samplerate=sample_rate_hz,
            blocksize=sample_rate_hz * BLOCK_MS // 1000,
            device=chosen,
            channels=channels,
            dtype="int16",
            callback=callback,
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        devices = "; ".join(list_devices()) or "none"
        raise SoundDeviceError(
            f"no {what} {device or '(default)'} at {sample_rate_hz} Hz ({error}); this machine's devices: {devices}"
        ) from error
    with stream:
        yield


def _sounddevice() -> Any:
    try:
        return importlib.import_module("sounddevice")
    except ModuleNotFoundError:
        raise SoundDeviceError("sounddevice is not installed; run `pip install personastream[local]`") from None
    except OSError as error:  # the package is installed, its library is not
        raise SoundDeviceError(
            f"{error}; install your system's PortAudio (Debian: `apt-get install libportaudio2`)"
        ) from None
