"""One EncodedStream as the two tracks of a WebRTC peer: encoded pictures at 25 fps and sound in 20 ms packets.

The peer's senders packetize the tracks' packets and encode nothing. A receiver aligns sound and picture by the pairs of
time stamp and wall clock in the senders' reports (RFC 3550, 6.4.1). One linear map from media time to wall clock serves
both tracks: a packet that left late shifts neither. Until the first report, after about a second, a receiver has only
the packets' arrival times. Packets therefore leave at the times of their stamps: a unit's first sound packet when
the unit is encoded, the second 20 ms later, and the picture 6.5 ms after the first, because Opus looks ahead that far
and stamps its packets accordingly.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from fractions import Fraction

import av
from aiortc import MediaStreamTrack, clock
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.opus import OpusEncoder
from aiortc.codecs.vpx import Vp8Encoder
from aiortc.mediastreams import VIDEO_TIME_BASE, MediaStreamError
from aiortc.rtcrtpsender import RTCRtpSender

from engine.errors import ProtocolError
from engine.media import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from engine.queues import MediaQueue, Policy, QueueClosed
from streaming.publish.broadcast import EncodedStream, EncodedUnit
from streaming.publish.encoders import OPUS_SAMPLES, SOUND_TIME_BASE, SoundPacket, VideoCodec
from streaming.webrtc import aiortc_private

OPUS_DELAY_S = 312 / SAMPLE_RATE_HZ  # from a packet's time stamp to that of its unit: libopus' lookahead at 48 kHz
PACKET_S = OPUS_SAMPLES / SAMPLE_RATE_HZ
VIDEO_TICKS_PER_SAMPLE = Fraction(VIDEO_TIME_BASE.denominator, SAMPLE_RATE_HZ)
TRACK_UNITS = 2  # one track may be ahead of the other by this many
SKEW_WINDOW_SAMPLES = 2 * TRACK_UNITS * SAMPLES_PER_FRAME  # media time in which a unit's other half can still leave
VIDEO_CODECS = {f"video/{codec.value}": codec for codec in VideoCodec}


class Skew:
    """Measures how far apart picture and sound of the same media time leave; calls `observe` with seconds >= 0."""

    def __init__(self, observe: Callable[[float], None]):
        self._observe = observe
        self._left_s: dict[int, float] = {}  # by media time: halves whose other half has not left

    def departed(self, pts: int, at_s: float) -> None:
        """A packet of media time `pts` leaves at loop time `at_s`."""
        other_s = self._left_s.pop(pts, None)
        if other_s is not None:
            self._observe(abs(at_s - other_s))
        else:
            self._left_s = {p: left_s for p, left_s in self._left_s.items() if p > pts - SKEW_WINDOW_SAMPLES}
            self._left_s[pts] = at_s


class WallClock:
    """Maps media time to wall clock, the same for both tracks; the first packet of either sets the offset."""

    def __init__(self) -> None:
        self._origin_ntp: int | None = None

    def at(self, pts: int) -> int:
        """Media time in samples at 48 kHz -> NTP time in units of 2^-32 s."""
        since_ntp = (pts << 32) // SAMPLE_RATE_HZ
        if self._origin_ntp is None:
            self._origin_ntp = clock.current_ntp_time() - since_ntp
        return self._origin_ntp + since_ntp


class Reports:
    """Puts the WallClock's time of the last packet into one sender's reports, in place of the moment it left."""

    def __init__(self, wall_clock: WallClock):
        self.sender: RTCRtpSender | None = None
        self._wall_clock = wall_clock
        self._ntp: int | None = None

    def packed(self, pts: int) -> None:
        """The track hands the packet of media time `pts` to the sender."""
        self._ntp = self._wall_clock.at(pts)

    def sent(self) -> None:
        """The sender asks for another packet, so the last one has left."""
        if self.sender is not None and self._ntp is not None:
            aiortc_private.set_report_time(self.sender, self._ntp)


class PictureTrack(MediaStreamTrack):
    """The pictures of the queue `units`, with time stamps from their media time."""

    kind = "video"

    def __init__(self, skew: Skew, wall_clock: WallClock) -> None:
        super().__init__()
        self.units: MediaQueue[EncodedUnit] = MediaQueue(TRACK_UNITS, Policy.WAIT)
        self.reports = Reports(wall_clock)
        self._skew = skew

    async def recv(self) -> av.Packet:
        self.reports.sent()
        while True:
            unit = await _next_unit(self, self.units)
            if unit.picture is not None:
                if not len(self.units):  # with another unit in the queue this one is late already
                    await asyncio.sleep(OPUS_DELAY_S)
                self._skew.departed(unit.pts, asyncio.get_running_loop().time())
                self.reports.packed(unit.pts)
                return _packet(unit.picture.data, int(unit.pts * VIDEO_TICKS_PER_SAMPLE), VIDEO_TIME_BASE)


class SoundTrack(MediaStreamTrack):
    """The sound of the queue `units`: the first 20 ms of a unit at once, the rest 20 ms later."""

    kind = "audio"

    def __init__(self, skew: Skew, wall_clock: WallClock) -> None:
        super().__init__()
        self.units: MediaQueue[EncodedUnit] = MediaQueue(TRACK_UNITS, Policy.WAIT)
        self.reports = Reports(wall_clock)
        self._skew = skew
        self._rest: deque[SoundPacket] = deque()
        self._due_s = 0.0

    async def recv(self) -> av.Packet:
        self.reports.sent()
        if self._rest:
            if not len(self.units):  # with another unit in the queue this one is late already
                await asyncio.sleep(self._due_s - asyncio.get_running_loop().time())
        else:
            while not self._rest:
                unit = await _next_unit(self, self.units)
                self._rest.extend(unit.sound)
            self._due_s = asyncio.get_running_loop().time()
            self._skew.departed(unit.pts, self._due_s + OPUS_DELAY_S)
        self._due_s += PACKET_S
        sound = self._rest.popleft()
        self.reports.packed(sound.pts)
        return _packet(sound.data, sound.pts, SOUND_TIME_BASE)


class TrackPair:
    """Feeds both tracks from one stream, and passes the receiver's feedback back to it."""

    def __init__(self, observe_skew: Callable[[float], None] = lambda seconds: None) -> None:
        skew, wall_clock = Skew(observe_skew), WallClock()
        self.picture = PictureTrack(skew, wall_clock)
        self.sound = SoundTrack(skew, wall_clock)
        self.stream: EncodedStream | None = None  # while the peer is connected

    def serve(self, sender: RTCRtpSender, codec: str) -> VideoCodec | None:
        """Have `sender` packetize for the negotiated `codec`, a MIME type in lower case, and pass feedback on.

        Returns the codec of the picture, None for sound. Raises ProtocolError for a codec that no encoder here makes.
        """
        packetizer: H264Packetizer | Vp8Packetizer | OpusPacketizer
        if codec == "audio/opus":
            packetizer = OpusPacketizer()
        elif codec == "video/h264":
            packetizer = H264Packetizer(self)
        elif codec == "video/vp8":
            packetizer = Vp8Packetizer(self)
        else:
            raise ProtocolError(f"the peer chose {codec}; expected Opus, H.264 or VP8")
        aiortc_private.set_packetizer(sender, packetizer)
        (self.picture if codec in VIDEO_CODECS else self.sound).reports.sender = sender
        if codec in VIDEO_CODECS:
            aiortc_private.on_keyframe_request(sender, self.request_keyframe)
        return VIDEO_CODECS.get(codec)

    async def put(self, unit: EncodedUnit, *, picture: bool, sound: bool) -> None:
        """Put the unit into the tracks that this peer reads; waits until both have room."""
        if picture:
            await self.picture.units.put(unit)
        if sound:
            await self.sound.units.put(unit)

    def request_keyframe(self) -> None:
        if self.stream is not None:
            self.stream.request_keyframe()

    @property
    def estimate_bps(self) -> int | None:
        """The capacity of the receiver's link, from its last REMB; None before the first."""
        return None if self.stream is None else self.stream.estimate_bps

    @estimate_bps.setter
    def estimate_bps(self, bitrate_bps: int) -> None:
        if self.stream is not None:
            self.stream.estimate_bps = bitrate_bps

    async def close(self) -> None:
        await self.picture.units.close()
        await self.sound.units.close()


class Feedback:
    """Passes the bitrate of a REMB, which aiortc sets as the target of a sender's encoder, to the stream."""

    def __init__(self, tracks: TrackPair):
        super().__init__()
        self._tracks = tracks

    @property
    def target_bitrate(self) -> int:
        return self._tracks.estimate_bps or 0

    @target_bitrate.setter
    def target_bitrate(self, bitrate_bps: int) -> None:
        self._tracks.estimate_bps = bitrate_bps


class H264Packetizer(Feedback, H264Encoder):
    """RFC 6184, mode 1; never encodes."""


class Vp8Packetizer(Feedback, Vp8Encoder):
    """RFC 7741; never encodes."""


class OpusPacketizer(OpusEncoder):
    """RFC 7587; never encodes, so it does not open the codec of its base class."""

    def __init__(self) -> None:
        pass


async def _next_unit(track: MediaStreamTrack, units: MediaQueue[EncodedUnit]) -> EncodedUnit:
    try:
        return await units.get()
    except QueueClosed:
        track.stop()
        raise MediaStreamError from None


def _packet(data: bytes, pts: int, time_base: Fraction) -> av.Packet:
    packet = av.Packet(data)
    packet.pts, packet.time_base = pts, time_base
    return packet
