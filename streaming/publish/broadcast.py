"""Broadcast: a session's units encoded once, for all its viewers and publications."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from engine.errors import SessionClosedError
from engine.live.session import Session
from engine.media import MediaUnit
from engine.metrics import StageTimes
from engine.queues import MediaQueue, Policy, QueueClosed
from streaming.config import EncoderConfig
from streaming.publish.encoders import (
    Picture,
    PictureEncoder,
    SoundCodec,
    SoundEncoder,
    SoundPacket,
    VideoCodec,
    to_planes,
)

# Half a second, in units: what the encoder or a reader catches up with after this process had no processor for a while.
# What is lost between encoder and reader costs all pictures up to the next key frame.
CATCH_UP_UNITS = 12


@dataclass(frozen=True)
class EncodedUnit:
    """One frame and its sound as an outlet asked for them, handed on together.

    `picture` is None where the outlet takes none, or could not decode it: before its first key frame, or after a loss.
    """

    number: int  # counts what was encoded, so that a loss on the way shows
    pts: int  # media time, samples at 48 kHz
    picture: Picture | None
    sound: tuple[SoundPacket, ...]
    fresh: bool
    speaking: bool


class EncodedStream:
    """What one viewer or publication gets: a bounded queue of its own that no other reader waits for.

    A reader that is too slow loses the oldest units; its pictures then pause until the next key frame, which is asked
    for at once, while the sound goes on. A new reader begins in the same way.
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
        """Go on with the newest unit; what waits is lost."""
        while len(self.units):
            await self.units.get()

    def request_keyframe(self) -> None:
        """Ask for a key frame, as a receiver that lost something does (RTCP PLI or FIR)."""
        if self.video is not None:
            self._broadcast.request_keyframe(self.video)

    def _decodable(self, unit: EncodedUnit) -> EncodedUnit:
        if unit.picture is None:
            self._next = unit.number + 1 if self._next == unit.number else None
            return unit
        if unit.picture.keyframe or unit.number == self._next:
            self._next = unit.number + 1
            return unit
        if self._next is not None:  # lost something just now
            self._next = None
            self.request_keyframe()
        return dataclasses.replace(unit, picture=None)


class Broadcast:
    """Encodes in a thread of its own while there is an outlet, each codec that is asked for once.

    Bitrate: all viewers share one stream, so it follows the lowest of their bandwidth estimates (REMB), never below
    `min_bitrate_bps` and never above `bitrate_bps`; a viewer whose link cannot carry the minimum loses pictures, the
    others do not. While something is published the rate is `bitrate_bps`, which broadcasters expect to be steady.
    """

    def __init__(self, session: Session, config: EncoderConfig):
        self.times = StageTimes()  # of the stage `encode`, over all codecs
        self._session = session
        self._config = config
        self._outlets: list[EncodedStream] = []
        self._pictures: dict[VideoCodec, PictureEncoder] = {}
        self._sounds: dict[SoundCodec, SoundEncoder] = {}
        self._wanted = asyncio.Event()
        self._number = 0
        self._ended = False

    @property
    def session_id(self) -> str:
        return self._session.id

    def open(
        self,
        video: VideoCodec | None,
        sound: SoundCodec | None,
        *,
        capacity: int = CATCH_UP_UNITS,
        steady: bool = False,
    ) -> EncodedStream:
        """A new outlet, which the caller closes; `steady` holds the full bitrate. SessionClosedError."""
        if self._ended:
            raise SessionClosedError(f"session {self._session.id} is closed")
        outlet = EncodedStream(self, video, sound, capacity, steady)
        self._outlets.append(outlet)
        outlet.request_keyframe()
        self._wanted.set()
        return outlet

    def close(self, outlet: EncodedStream) -> None:
        """Forget the outlet. Encoders that nobody else needs are freed with the next unit."""
        if outlet in self._outlets:
            self._outlets.remove(outlet)

    def request_keyframe(self, codec: VideoCodec) -> None:
        """One for all outlets of that codec; an encoder that is not there yet begins with one."""
        if codec in self._pictures:
            self._pictures[codec].request_keyframe()

    def rate_bps(self, codec: VideoCodec) -> int | None:
        """What pictures of that codec are encoded at right now; None while nobody takes any."""
        return self._pictures[codec].bitrate_bps if codec in self._pictures else None

    async def run(self) -> None:
        """Encode whenever somebody wants it, until cancelled or the session ends; then all outlets close."""
        with ThreadPoolExecutor(1, thread_name_prefix=f"encode {self._session.id}") as thread:
            try:
                while True:
                    await self._wanted.wait()
                    if not await self._serve(thread):
                        return
            finally:
                self._ended = True
                for outlet in self._outlets:
                    await outlet.units.close()

    async def _serve(self, thread: ThreadPoolExecutor) -> bool:
        """Encode until nobody is left; False if the session ended."""
        try:
            units = self._session.subscribe(CATCH_UP_UNITS)
        except SessionClosedError:
            return False
        loop = asyncio.get_running_loop()
        try:
            async for unit in units:
                if not self._outlets:
                    self._wanted.clear()
                    return True
                self._keep({outlet.video for outlet in self._outlets}, {outlet.sound for outlet in self._outlets})
                for video, encoder in self._pictures.items():
                    encoder.bitrate_bps = shared_rate(self._config, [o for o in self._outlets if o.video is video])
                pictures, sounds = await loop.run_in_executor(thread, self._encode, unit)
                await self._hand_out(unit, pictures, sounds)
            return False
        finally:
            self._session.unsubscribe(units)
            self._pictures, self._sounds = {}, {}

    def _keep(self, videos: Iterable[VideoCodec | None], sounds: Iterable[SoundCodec | None]) -> None:
        """Have an encoder for each of these codecs, and for no other."""
        self._pictures = {
            codec: self._pictures.get(codec) or PictureEncoder(codec, self._config) for codec in videos if codec
        }
        self._sounds = {
            codec: self._sounds.get(codec) or SoundEncoder(codec, self._config) for codec in sounds if codec
        }

    def _encode(
        self, unit: MediaUnit
    ) -> tuple[dict[VideoCodec, Picture | None], dict[SoundCodec, tuple[SoundPacket, ...]]]:
        """In the thread: the unit in every codec that is wanted."""
        with self.times.measure("encode"):
            pictures: dict[VideoCodec, Picture | None] = {}
            if self._pictures:
                planes = to_planes(unit.image, self._config)
                pictures = {codec: encoder.encode(planes, unit.index) for codec, encoder in self._pictures.items()}
            return pictures, {codec: encoder.encode(unit.samples, unit.pts) for codec, encoder in self._sounds.items()}

    async def _hand_out(
        self,
        unit: MediaUnit,
        pictures: dict[VideoCodec, Picture | None],
        sounds: dict[SoundCodec, tuple[SoundPacket, ...]],
    ) -> None:
        for outlet in list(self._outlets):
            if outlet.video not in (None, *pictures) or outlet.sound not in (None, *sounds):
                continue  # opened while this unit was encoded
            picture = pictures[outlet.video] if outlet.video else None
            sound = sounds[outlet.sound] if outlet.sound else ()
            try:
                await outlet.units.put(EncodedUnit(self._number, unit.pts, picture, sound, unit.fresh, unit.speaking))
            except QueueClosed:
                self.close(outlet)
        self._number += 1


def shared_rate(config: EncoderConfig, outlets: Iterable[EncodedStream]) -> int:
    """The bitrate that outlets of one codec share, by the rule of `Broadcast`."""
    estimates = [config.bitrate_bps]
    for outlet in outlets:
        if outlet.steady:
            return config.bitrate_bps
        if outlet.estimate_bps is not None:
            estimates.append(outlet.estimate_bps)
    return max(min(config.min_bitrate_bps, config.bitrate_bps), min(estimates))
