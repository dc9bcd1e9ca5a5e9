"""Muxer: encoded units into one container (MP4, Matroska, FLV, MPEG-TS, NUT), written to any file object."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import IO

import av
from av.error import FFmpegError

from engine.media import FPS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from streaming.config import EncoderConfig
from streaming.publish.broadcast import EncodedUnit
from streaming.publish.encoders import SOUND_TIME_BASE

AAC_SAMPLES = 1_024
VIDEO_TIME_BASE = Fraction(1, 90_000)
OPTIONS = {
    # One fragment for each key frame, no index at the end: a file that was never closed plays up to its last fragment.
    "mp4": {"movflags": "frag_keyframe+empty_moov+default_base_moof"},
    "flv": {"flvflags": "no_duration_filesize"},
}
STALL_S = 10.0  # a destination that accepts nothing for this time has failed
CLOSE_S = 5.0


class Muxer:
    """Writes H.264 and AAC units as one file or stream. Blocks: run it in its own thread.

    Begins at the first key frame. Time stamps are media time minus `origin_pts`, by default the pts of the first
    picture. With the same origin they continue over a new connection.

    size: width and height of the picture, px.
    """

    def __init__(
        self,
        file: IO[bytes],
        container: str,
        size: tuple[int, int],
        config: EncoderConfig,
        origin_pts: int | None = None,
    ):
        # Each packet is written at once: a process that dies leaves none in a buffer.
        options = OPTIONS.get(container, {}) | {"flush_packets": "1"}
        self._container = av.open(file, "w", format=container, options=options)
        self._video = self._container.add_mux_stream("h264", rate=FPS, width=size[0], height=size[1])
        self._video.time_base = VIDEO_TIME_BASE
        # This codec only supplies the AudioSpecificConfig, which is the same for encoders of equal settings.
        self._sound = self._container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="stereo")
        self._sound.bit_rate = config.aac_bitrate_bps
        self.origin_pts = origin_pts
        self._first_pts: int | None = None

    def write(self, unit: EncodedUnit) -> None:
        """Write one unit. Raises OSError if the destination fails."""
        if self._first_pts is None:
            if unit.picture is None or not unit.picture.keyframe:
                return
            self._first_pts = unit.pts
            self.origin_pts = unit.pts if self.origin_pts is None else self.origin_pts
        if unit.picture is not None:
            self._mux(self._video, unit.picture.data, unit.pts, SAMPLES_PER_FRAME, keyframe=unit.picture.keyframe)
        for sound in unit.sound:
            if sound.pts >= self._first_pts:
                self._mux(self._sound, sound.data, sound.pts, AAC_SAMPLES, keyframe=True)

    def close(self) -> None:
        """Write the container's trailer. Raises OSError if the destination fails."""
        try:
            self._container.close()
        except FFmpegError as error:
            raise OSError(f"{error}") from error

    def _mux(self, stream: av.stream.Stream, data: bytes, pts: int, samples: int, *, keyframe: bool) -> None:
        assert self.origin_pts is not None
        packet = av.Packet(data)
        packet.stream = stream
        packet.time_base = SOUND_TIME_BASE
        packet.pts = packet.dts = pts - self.origin_pts
        packet.duration = samples
        packet.is_keyframe = keyframe
        try:
            self._container.mux(packet)
        except FFmpegError as error:  # only some of them are OSErrors
            raise OSError(f"{error}") from error


async def mux_all(
    units: AsyncIterable[EncodedUnit],
    muxer: Muxer,
    on_written: Callable[[], None],
    abort: Callable[[], None],
    stall_s: float = STALL_S,
) -> None:
    """Write all units in a separate thread, call `on_written` after each, and close the muxer.

    Raises OSError if the destination fails, TimeoutError if it accepts nothing for `stall_s`; `abort` must then end the
    write that blocks.
    """
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1, thread_name_prefix="mux")
    try:
        async for unit in units:
            async with asyncio.timeout(stall_s):
                await loop.run_in_executor(thread, muxer.write, unit)
            on_written()
    except TimeoutError:
        abort()
        raise
    finally:
        closing = loop.run_in_executor(thread, muxer.close)
        thread.shutdown(wait=False)
        try:
            async with asyncio.timeout(CLOSE_S):
                await closing
        except TimeoutError:
            abort()
        except OSError:
            pass  # the destination failed: it accepts no trailer
