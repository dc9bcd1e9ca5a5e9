"""The encoders of a viewer: H.264 and Opus with our own settings behind aiortc's encoder interface.

aiortc's H.264 encoder assumes 30 fps, caps the bitrate with module constants and uses x264's `medium` preset, which
takes 20 ms of CPU for a 512x512 frame where `veryfast` takes 4 ms. Its Opus encoder shifts sound by the codec's delay.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.opus import OpusEncoder
from av.audio.codeccontext import AudioCodecContext
from av.frame import Frame
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace

from engine.media import FPS, SAMPLE_RATE_HZ

MIN_VIDEO_BITRATE_BPS = 300_000  # what a poor link's bandwidth estimate may push us down to
SOUND_BITRATE_BPS = 64_000  # one channel of full-band speech, transparent in Opus
BT709 = 1  # ITU-T H.273: the same number for matrix, primaries and transfer
TWO_THREAD_PIXELS = 1_000_000  # above this one thread takes too much of a frame's 40 ms


class PictureEncoder(H264Encoder):
    """One viewer's H.264 at 25 fps, constrained baseline, no frame held back; follows the viewer's bandwidth."""

    def __init__(self, bitrate_bps: int):
        super().__init__()
        self._most_bps = bitrate_bps
        self._wanted_bps = bitrate_bps

    @property
    def target_bitrate(self) -> int:
        return self._wanted_bps

    @target_bitrate.setter
    def target_bitrate(self, bitrate_bps: int) -> None:
        self._wanted_bps = max(min(MIN_VIDEO_BITRATE_BPS, self._most_bps), min(bitrate_bps, self._most_bps))

    def _encode_frame(self, frame: av.VideoFrame, force_keyframe: bool) -> Iterator[bytes]:
        codec = self.codec
        if codec is None or (codec.width, codec.height) != (frame.width, frame.height):
            codec = self.codec = open_h264(frame.width, frame.height, self._most_bps)
        if codec.bit_rate != self._wanted_bps:
            codec.bit_rate = self._wanted_bps  # x264 takes a new rate between two frames, without a key frame
        picture = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        picture.pict_type = PictureType.I if force_keyframe else PictureType.NONE
        yield from self._split_bitstream(b"".join(bytes(packet) for packet in codec.encode(picture)))


class SoundEncoder(OpusEncoder):
    """One viewer's Opus. The time stamp is the packet's own, so the codec's delay does not shift sound to picture."""

    def __init__(self) -> None:
        self.codec = open_opus()

    def encode(self, frame: Frame, force_keyframe: bool = False) -> tuple[list[bytes], int]:
        assert isinstance(frame, av.AudioFrame)
        packets = self.codec.encode(frame)
        if not packets or packets[0].pts is None:
            return [], 0
        return [bytes(packet) for packet in packets], packets[0].pts


def open_h264(width: int, height: int, bitrate_bps: int) -> VideoCodecContext:
    codec = av.CodecContext.create("libx264", "w")
    assert isinstance(codec, VideoCodecContext)
    codec.width, codec.height = width, height
    codec.pix_fmt = "yuv420p"
    codec.bit_rate = bitrate_bps
    codec.framerate = Fraction(FPS)
    codec.time_base = Fraction(1, FPS)
    codec.profile = "Baseline"
    # Browsers take BT.709 where a stream names no matrix; the stream names it for all others.
    codec.colorspace = codec.color_primaries = codec.color_trc = BT709
    codec.color_range = ColorRange.MPEG
    codec.options = {
        "preset": "veryfast",
        "tune": "zerolatency",
        "threads": "2" if width * height > TWO_THREAD_PIXELS else "1",
        # Key frames on demand (PLI) and every ten seconds, not at cuts; the half-second buffer keeps them small enough
        # for the link.
        "g": str(10 * FPS),
        "sc_threshold": "0",
        "maxrate": str(bitrate_bps),
        "bufsize": str(bitrate_bps // 2),
    }
    return codec


def open_opus() -> AudioCodecContext:
    codec = av.CodecContext.create("libopus", "w")
    assert isinstance(codec, AudioCodecContext)
    codec.bit_rate = SOUND_BITRATE_BPS
    codec.format = "s16"
    codec.layout = "mono"
    codec.sample_rate = SAMPLE_RATE_HZ
    codec.time_base = Fraction(1, SAMPLE_RATE_HZ)
    codec.options = {"application": "voip", "frame_duration": "20", "fec": "1", "packet_loss": "5"}
    return codec
