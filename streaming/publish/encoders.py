"""A session's encoders: H.264 or VP8 for pictures, Opus or AAC for sound. Packets out, no network.

aiortc's own encoders assume 30 fps, cap the bitrate with module constants and use x264's `medium` preset, which takes
20 ms of CPU for a 512x512 frame where `superfast` takes 2 ms. Its Opus encoder shifts sound by the codec's delay.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from engine.errors import SettingError
from engine.media import FPS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from streaming.config import EncoderConfig
from streaming.publish import h264
from streaming.publish.h264 import FRAME_TIME_BASE, TWO_THREAD_PIXELS

log = logging.getLogger(__name__)

SOUND_TIME_BASE = Fraction(1, SAMPLE_RATE_HZ)
OPUS_SAMPLES = SAMPLES_PER_FRAME // 2  # 20 ms, the usual packet of WebRTC


class VideoCodec(Enum):
    H264 = "h264"
    VP8 = "vp8"


class SoundCodec(Enum):
    OPUS = "opus"
    AAC = "aac"


@dataclass(frozen=True)
class Picture:
    """One encoded frame: an H.264 access unit (Annex B, parameter sets in every key frame) or a VP8 frame."""

    data: bytes
    keyframe: bool


@dataclass(frozen=True)
class SoundPacket:
    """20 ms of Opus, or 1024 samples of AAC. `pts`: media time of its first decoded sample, in samples at 48 kHz."""

    pts: int
    data: bytes


class PictureEncoder:
    """Encodes pictures in one codec: 25 fps, no frame held back, key frames at intervals and on request."""

    def __init__(self, codec: VideoCodec, config: EncoderConfig):
        self._codec = codec
        self._config = config
        self._context: VideoCodecContext | None = None
        self._interval_frames = max(1, round(config.keyframe_interval_s * FPS))
        self._gap_frames = min(self._interval_frames, round(config.keyframe_gap_s * FPS))
        self._since_key = 0
        self._keyframe_requested = False
        self.bitrate_bps = config.bitrate_bps  # may change at any time; VP8 follows at its next key frame

    def request_keyframe(self) -> None:
        """Make the next picture a key frame, but at the earliest `keyframe_gap_s` after the last key frame.

        All requests within the gap share one key frame, so that many requests cannot fill the stream with key frames.
        """
        self._keyframe_requested = True

    def encode(self, planes: av.VideoFrame, index: int) -> Picture | None:
        """Encode the planes of frame `index`, which only grows. Returns None if the codec drops the picture."""
        distance = self._since_key + 1
        keyframe = distance >= (self._gap_frames if self._keyframe_requested else self._interval_frames)
        context = self._ready(planes, keyframe)
        planes.pts, planes.time_base = index, FRAME_TIME_BASE
        planes.pict_type = PictureType.I if keyframe else PictureType.NONE
        packets = context.encode(planes)
        if not packets:
            return None
        is_key = any(packet.is_keyframe for packet in packets)
        self._since_key = 0 if is_key else distance
        self._keyframe_requested = self._keyframe_requested and not is_key
        return Picture(b"".join(bytes(packet) for packet in packets), is_key)

    def _ready(self, planes: av.VideoFrame, keyframe: bool) -> VideoCodecContext:
        """The codec at the present bitrate: some change it between two frames, the others only when opened."""
        context = self._context
        if context is None or (context.width, context.height) != (planes.width, planes.height):
            context = self._open(planes.width, planes.height)
        elif context.bit_rate != self.bitrate_bps:
            if context.name in h264.ADJUSTABLE:
                context.bit_rate = self.bitrate_bps
            elif keyframe:
                context = self._open(planes.width, planes.height)
        return context

    def _open(self, width: int, height: int) -> VideoCodecContext:
        if self._codec is VideoCodec.H264:
            context = self._open_h264(width, height)
        else:
            context = open_vp8(width, height, self.bitrate_bps)
        self._context = context
        return context

    def _open_h264(self, width: int, height: int) -> VideoCodecContext:
        context = h264.create(h264.choose(self._config), width, height, self.bitrate_bps)
        try:
            context.open()
        except FFmpegError as error:
            if self._config.codec != "auto":
                raise
            log.warning("%s does not open another encoder (%s); using x264", context.name, error)
            context = h264.create(h264.SOFTWARE, width, height, self.bitrate_bps)  # a GPU limits their number
        return context


class PictureConverter:
    """Converts a session's pictures to YUV 4:2:0 (BT.709, limited range) in the encoders' size, once for all encoders.

    PyAV's own `reformat` prepares each conversion anew and starts threads for it: 2 ms of CPU for a 512x512 picture,
    where this takes 0.6 ms.
    """

    def __init__(self, config: EncoderConfig):
        self._config = config
        self._reformatter = VideoReformatter()
        self._image: np.ndarray | None = None
        self._planes: av.VideoFrame | None = None

    def convert(self, image: np.ndarray) -> av.VideoFrame:
        """The planes of a picture [H, W, 3] uint8 RGB with contiguous rows. The same array again, as a session emits it
        where it repeats a picture, gives the same planes again."""
        if self._planes is None or image is not self._image:
            width, height = encoded_size(image.shape[1], image.shape[0], self._config)
            self._planes = self._reformatter.reformat(
                av.VideoFrame.from_numpy_buffer(image, format="rgb24"),
                width=width,
                height=height,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
            self._image = image
        return self._planes


class SoundEncoder:
    """Encodes sound in one codec. Units that are missing become silence, so that a broadcast's sound has no gaps."""

    def __init__(self, codec: SoundCodec, config: EncoderConfig):
        self._codec = codec
        self._context = open_opus(config.opus_bitrate_bps) if codec is SoundCodec.OPUS else open_aac(config)
        self._next_pts: int | None = None

    def encode(self, samples: np.ndarray, pts: int) -> tuple[SoundPacket, ...]:
        """Encode the next unit's samples [1920] int16, and silence for the units missing before `pts`.

        Returns the packets that are complete. Their time stamps include the codec's delay: it shifts no sound.
        """
        packets: list[SoundPacket] = []
        missing = 0 if self._next_pts is None else pts - self._next_pts
        for start in range(pts - missing, pts, SAMPLES_PER_FRAME):
            packets += self._encode(np.zeros_like(samples), start)
        packets += self._encode(samples, pts)
        self._next_pts = pts + SAMPLES_PER_FRAME
        return tuple(packets)

    def _encode(self, samples: np.ndarray, pts: int) -> list[SoundPacket]:
        opus = self._codec is SoundCodec.OPUS
        packets: list[SoundPacket] = []
        for piece in range(0, len(samples), OPUS_SAMPLES):
            cut = samples[piece : piece + OPUS_SAMPLES]
            interleaved = cut if opus else np.repeat(cut, 2)
            frame = av.AudioFrame.from_ndarray(
                interleaved.reshape(1, -1), format="s16", layout="mono" if opus else "stereo"
            )
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE_HZ, pts + piece, SOUND_TIME_BASE
            packets += [SoundPacket(p.pts, bytes(p)) for p in self._context.encode(frame) if p.pts is not None]
        return packets


def encoded_size(width: int, height: int, config: EncoderConfig) -> tuple[int, int]:
    """Width and height of the encoded picture, px, both even, for a picture of this width and height."""
    if config.height_px is None:
        return width, height
    return round(width * config.height_px / height / 2) * 2, config.height_px // 2 * 2


def check_encoder(config: EncoderConfig) -> None:
    """Raises SettingError if the settings are invalid or this machine cannot encode with them."""
    for name, most in (("bitrate_bps", 200_000_000), ("min_bitrate_bps", 200_000_000), ("opus_bitrate_bps", 510_000)):
        if not 6_000 <= getattr(config, name) <= most:
            raise SettingError(f"encoder.{name} is {getattr(config, name)}; expected 6000 to {most}")
    if config.height_px is not None and not 64 <= config.height_px <= 4_320:
        raise SettingError(
            f"encoder.height_px is {config.height_px}; expected 64 to 4320, or None for the avatar's own"
        )
    if config.keyframe_interval_s <= 0 or config.keyframe_gap_s < 0:
        raise SettingError(
            f"encoder.keyframe_interval_s is {config.keyframe_interval_s} and encoder.keyframe_gap_s "
            f"{config.keyframe_gap_s}; expected more than 0, and at least 0"
        )
    log.info("H.264 by %s", h264.choose(config))


def open_vp8(width: int, height: int, bitrate_bps: int) -> VideoCodecContext:
    """libvpx, for browsers without H.264: real time, constant bitrate, no frame held back."""
    codec = av.CodecContext.create("libvpx", "w")
    assert isinstance(codec, VideoCodecContext)
    codec.width, codec.height, codec.pix_fmt, codec.bit_rate = width, height, "yuv420p", bitrate_bps
    codec.framerate, codec.time_base = Fraction(FPS), FRAME_TIME_BASE
    codec.options = {
        "deadline": "realtime",
        "cpu-used": "-12",
        "lag-in-frames": "0",
        "g": str(3600 * FPS),
        "minrate": str(bitrate_bps),
        "maxrate": str(bitrate_bps),
        "bufsize": str(bitrate_bps),
        "undershoot-pct": "100",
        "overshoot-pct": "15",
        "static-thresh": "1",
        "error-resilient": "1",
        "threads": "2" if width * height > TWO_THREAD_PIXELS else "1",
    }
    return codec


def open_opus(bitrate_bps: int) -> AudioCodecContext:
    codec = _sound_context("libopus", "s16", "mono", bitrate_bps)
    codec.options = {"application": "voip", "frame_duration": "20", "fec": "1", "packet_loss": "5"}
    return codec


def open_aac(config: EncoderConfig) -> AudioCodecContext:
    """AAC-LC in stereo, which every broadcaster accepts; both channels carry the voice."""
    return _sound_context("aac", "fltp", "stereo", config.aac_bitrate_bps)


def _sound_context(name: str, form: str, layout: str, bitrate_bps: int) -> AudioCodecContext:
    codec = av.CodecContext.create(name, "w")
    assert isinstance(codec, AudioCodecContext)
    codec.format, codec.layout = form, layout
    codec.sample_rate = SAMPLE_RATE_HZ
    codec.bit_rate = bitrate_bps
    codec.time_base = SOUND_TIME_BASE
    return codec
