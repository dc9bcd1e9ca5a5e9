"""A session's units as the two tracks of one viewer: picture at 25 fps and sound in 20 ms pieces."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import av
from aiortc import MediaStreamTrack
from aiortc.mediastreams import VIDEO_TIME_BASE, MediaStreamError

from engine.media import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, MediaUnit
from engine.queues import MediaQueue, Policy, QueueClosed

SOUND_TIME_BASE = Fraction(1, SAMPLE_RATE_HZ)
PACKET_SAMPLES = SAMPLES_PER_FRAME // 2
PACKET_S = PACKET_SAMPLES / SAMPLE_RATE_HZ
VIDEO_TICKS_PER_SAMPLE = Fraction(VIDEO_TIME_BASE.denominator, SAMPLE_RATE_HZ)
TRACK_UNITS = 2  # what one track may be ahead of the other


class PictureTrack(MediaStreamTrack):
    """The pictures of the units put into `units`, with time stamps from their media time."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self.units: MediaQueue[MediaUnit] = MediaQueue(TRACK_UNITS, Policy.WAIT)

    async def recv(self) -> av.VideoFrame:
        unit = await _next_unit(self, self.units)
        frame = av.VideoFrame.from_ndarray(unit.image, format="rgb24")
        frame.pts = int(unit.pts * VIDEO_TICKS_PER_SAMPLE)
        frame.time_base = VIDEO_TIME_BASE
        return frame


class SoundTrack(MediaStreamTrack):
    """The sound of the units put into `units`, two 20 ms frames for each.

    The second half leaves 20 ms after the first: the sender reports pair a packet's time stamp with the wall clock
    at which it left, and a receiver aligns sound and picture by them.
    """

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.units: MediaQueue[MediaUnit] = MediaQueue(TRACK_UNITS, Policy.WAIT)
        self._second: tuple[MediaUnit, float] | None = None

    async def recv(self) -> av.AudioFrame:
        if self._second is None:
            unit = await _next_unit(self, self.units)
            self._second = (unit, asyncio.get_running_loop().time() + PACKET_S)
            return _sound_frame(unit, 0)
        unit, due_s = self._second
        if not len(self.units):  # with a unit waiting we are late already
            await asyncio.sleep(due_s - asyncio.get_running_loop().time())
        self._second = None
        return _sound_frame(unit, PACKET_SAMPLES)


class TrackPair:
    """Feeds both tracks from one queue, so that a viewer who is too slow loses sound and picture together."""

    def __init__(self) -> None:
        self.picture = PictureTrack()
        self.sound = SoundTrack()

    async def put(self, unit: MediaUnit, *, picture: bool, sound: bool) -> None:
        """Wait until the tracks that this viewer reads have room, and hand them the unit."""
        if picture:
            await self.picture.units.put(unit)
        if sound:
            await self.sound.units.put(unit)

    async def close(self) -> None:
        await self.picture.units.close()
        await self.sound.units.close()


async def _next_unit(track: MediaStreamTrack, units: MediaQueue[MediaUnit]) -> MediaUnit:
    try:
        return await units.get()
    except QueueClosed:
        track.stop()
        raise MediaStreamError from None


def _sound_frame(unit: MediaUnit, offset: int) -> av.AudioFrame:
    samples = unit.samples[offset : offset + PACKET_SAMPLES]
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
    frame.sample_rate = SAMPLE_RATE_HZ
    frame.pts = unit.pts + offset
    frame.time_base = SOUND_TIME_BASE
    return frame
