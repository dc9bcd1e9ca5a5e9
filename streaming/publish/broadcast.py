"""Broadcast: a session's units encoded once, for all its viewers and destinations."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import av
from av.error import FFmpegError

from engine.errors import SessionClosedError
from engine.live.session import Session
from engine.media import MediaUnit
from engine.metrics import StageTimes
from engine.queues import MediaQueue, Policy, QueueClosed
from streaming.config import EncoderConfig
from streaming.publish.encoders import (
    Picture,
    PictureConverter,
    PictureEncoder,
    SoundCodec,
    SoundEncoder,
    SoundPacket,
    VideoCodec,
    encoded_size,
)

log = logging.getLogger(__name__)

# Half a second: the encoder or a reader can be this far behind after the process got no CPU time. A unit
# lost between encoder and reader costs all pictures up to the next key frame.
CATCH_UP_UNITS = 12


@dataclass(frozen=True)
class EncodedUnit:
    """One frame and its sound in the codecs of an EncodedStream.

    `picture` is None if the stream has no pictures, or if its reader could not decode this one: before its first key
    frame, or after a loss.
    """

    number: int  # counts encoded units; a gap shows a loss
    pts: int  # media time, samples at 48 kHz
    picture: Picture | None
    sound: tuple[SoundPacket, ...]
    fresh: bool
    speaking: bool


class EncodedStream:
    """The encoded units of one viewer or destination, in a bounded queue that no other reader waits for.

    A reader that is too slow loses the oldest units. Its pictures then pause until the next key frame, which the stream
    requests at once; its sound continues. A new reader begins in the same way.

    steady: hold the full bitrate.  estimate_bps: capacity of the reader's link, None if unknown.
    """

    def __init__(
        self, broadcast: Broadcast, video: VideoCodec | None, sound: SoundCodec | None, capacity: int, steady: bool
    ):
        self.video, self.sound, self.steady = video, sound, steady
        self.estimate_bps: int | None = None
        self.units: MediaQueue[EncodedUnit] = MediaQueue(capacity, Policy.DROP_OLDEST)
        self._broadcast = broadcast
        self._next: int | None = None

    @property
    def dropped(self) -> int:
        return self.units.dropped

    async def __aiter__(self) -> AsyncIterator[EncodedUnit]:
        async for unit in self.units:
            yield self._decodable(unit)

    async def skip_waiting(self) -> None:
        """Drop the units in the queue; the next one read is new."""
        while len(self.units):
            await self.units.get()

    def request_keyframe(self) -> None:
        """Request a key frame, as a receiver that lost a packet does (PLI of RFC 4585, FIR of RFC 5104)."""
        if self.video is not None:
            self._broadcast.request_keyframe(self.video)

    def _decodable(self, unit: EncodedUnit) -> EncodedUnit:
        if unit.picture is None:
            self._next = unit.number + 1 if self._next == unit.number else None
            return unit
        if unit.picture.keyframe or unit.number == self._next:
            self._next = unit.number + 1
            return unit
        if self._next is not None:  # the first unit after a loss
            self._next = None
            self.request_keyframe()
        return dataclasses.replace(unit, picture=None)


class Broadcast:
    """Encodes in its own thread while there are streams, once for each codec in use.

    Bitrate: all viewers share one encode, so its rate follows the lowest of their bandwidth estimates (REMB), never
    below `min_bitrate_bps` and never above `bitrate_bps`. A viewer whose link cannot carry the minimum loses pictures;
    the others do not. While the session is published the rate is `bitrate_bps`: broadcasters expect a steady rate.
    """

    def __init__(self, session: Session, config: EncoderConfig):
        self.times = StageTimes()  # durations of the stage `encode`, all codecs together
        self._session = session
        self._config = config
        self._streams: list[EncodedStream] = []
        self._converter = PictureConverter(config)
        self._pictures: dict[VideoCodec, PictureEncoder] = {}
        self._sounds: dict[SoundCodec, SoundEncoder] = {}
        self._has_streams = asyncio.Event()
        self._number = 0
        self._ended = False

    @property
    def session_id(self) -> str:
        return self._session.id

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of the encoded pictures."""
        return encoded_size(self._session.avatar.width, self._session.avatar.height, self._config)

    def open(
        self,
        video: VideoCodec | None,
        sound: SoundCodec | None,
        *,
        capacity: int = CATCH_UP_UNITS,
        steady: bool = False,
    ) -> EncodedStream:
        """A new stream of `capacity` units, which the caller closes. Raises SessionClosedError."""
        if self._ended:
            raise SessionClosedError(f"session {self._session.id} is closed")
        stream = EncodedStream(self, video, sound, capacity, steady)
        self._streams.append(stream)
        stream.request_keyframe()
        self._has_streams.set()
        return stream

    def close(self, stream: EncodedStream) -> None:
        """Forget the stream. Encoders that no other stream uses are freed with the next unit."""
        if stream in self._streams:
            self._streams.remove(stream)

    def request_keyframe(self, codec: VideoCodec) -> None:
        """Request one key frame for all streams of that codec; a new encoder begins with one."""
        if codec in self._pictures:
            self._pictures[codec].request_keyframe()

    async def run(self) -> None:
        """Encode while there are streams, until cancelled or the session ends; then close all streams."""
        thread = ThreadPoolExecutor(1, thread_name_prefix=f"encode {self._session.id}")
        try:
            while True:
                await self._has_streams.wait()
                if not await self._encode_while_used(thread):
                    return
        finally:
            self._ended = True
            thread.shutdown(wait=False)  # an encoder that hangs must not stop the other sessions
            for stream in self._streams:
                await stream.units.close()

    async def _encode_while_used(self, thread: ThreadPoolExecutor) -> bool:
        """Encode until no stream is left; False if the session ended."""
        try:
            units = self._session.subscribe(CATCH_UP_UNITS)
        except SessionClosedError:
            return False
        loop = asyncio.get_running_loop()
        try:
            async for unit in units:
                if not self._streams:
                    self._has_streams.clear()
                    return True
                self._set_codecs({stream.video for stream in self._streams}, {stream.sound for stream in self._streams})
                for video, encoder in self._pictures.items():
                    encoder.bitrate_bps = shared_rate(self._config, [s for s in self._streams if s.video is video])
                pictures, sounds = await loop.run_in_executor(thread, self._encode, unit)
                await self._hand_out(unit, pictures, sounds)
            return False
        finally:
            self._session.unsubscribe(units)
            self._pictures, self._sounds = {}, {}

    def _set_codecs(self, videos: Iterable[VideoCodec | None], sounds: Iterable[SoundCodec | None]) -> None:
        """Keep or open an encoder for each of these codecs, and free all others."""
        self._pictures = {
            codec: self._pictures.get(codec) or PictureEncoder(codec, self._config) for codec in videos if codec
        }
        self._sounds = {
            codec: self._sounds.get(codec) or SoundEncoder(codec, self._config) for codec in sounds if codec
        }

    def _encode(
        self, unit: MediaUnit
    ) -> tuple[dict[VideoCodec, Picture | None], dict[SoundCodec, tuple[SoundPacket, ...]]]:
        """Encode the unit in every codec in use; runs in the encoding thread."""
        with self.times.measure("encode"):
            pictures: dict[VideoCodec, Picture | None] = {}
            if self._pictures:
                planes = self._converter.convert(unit.image)
                pictures = {codec: self._encode_picture(codec, planes, unit.index) for codec in self._pictures}
            return pictures, {codec: encoder.encode(unit.samples, unit.pts) for codec, encoder in self._sounds.items()}

    def _encode_picture(self, codec: VideoCodec, planes: av.VideoFrame, index: int) -> Picture | None:
        """Encode in one codec. An encoder that fails is replaced, by x264 for H.264; raises if that one fails too."""
        try:
            return self._pictures[codec].encode(planes, index)
        except (FFmpegError, OSError) as error:
            log.warning("session %s: the %s encoder failed (%s); opening another one", self.session_id, codec, error)
        software = dataclasses.replace(self._config, codec="libx264")
        self._pictures[codec] = PictureEncoder(codec, software)
        return self._pictures[codec].encode(planes, index)

    async def _hand_out(
        self,
        unit: MediaUnit,
        pictures: dict[VideoCodec, Picture | None],
        sounds: dict[SoundCodec, tuple[SoundPacket, ...]],
    ) -> None:
        for stream in list(self._streams):
            if stream.video not in (None, *pictures) or stream.sound not in (None, *sounds):
                continue  # opened while this unit was encoded
            picture = pictures[stream.video] if stream.video else None
            sound = sounds[stream.sound] if stream.sound else ()
            try:
                await stream.units.put(EncodedUnit(self._number, unit.pts, picture, sound, unit.fresh, unit.speaking))
            except QueueClosed:
                self.close(stream)
        self._number += 1


def shared_rate(config: EncoderConfig, streams: Iterable[EncodedStream]) -> int:
    """The bitrate that streams of one codec share, by the rule in `Broadcast`."""
    estimates = [config.bitrate_bps]
    for stream in streams:
        if stream.steady:
            return config.bitrate_bps
        if stream.estimate_bps is not None:
            estimates.append(stream.estimate_bps)
    return max(min(config.min_bitrate_bps, config.bitrate_bps), min(estimates))
