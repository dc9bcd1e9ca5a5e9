"""The H.264 encoder of this machine: the first hardware encoder that works here, else x264."""

from __future__ import annotations

import contextlib
import logging
from fractions import Fraction
from functools import lru_cache

import av
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import ColorRange

from engine.errors import SettingError
from engine.media import FPS
from streaming.config import EncoderConfig

log = logging.getLogger(__name__)

BT709 = 1  # ITU-T H.273: one number for matrix, primaries and transfer characteristics
TWO_THREAD_PIXELS = 1_000_000  # above this size one thread takes too much of a frame's 40 ms
FRAME_TIME_BASE = Fraction(1, FPS)
# x264 spends no bits on a finer quantizer, at which nobody sees a difference (46 dB). A 512x512 picture then takes 0.7
# of the 2.5 Mbit/s, a third of the packets, and so a third of the event loop's time: a packet costs more than its bits.
FINEST_QUANTIZER = 18
SOFTWARE = "libx264"
ADJUSTABLE = ("libx264", "h264_nvenc")  # a new bitrate takes effect with the next picture
# In the order in which `auto` tries them, with their settings for the least delay. VA-API is not among them: PyAV's
# wheels are built without it.
HARDWARE = {
    "h264_nvenc": {
        "preset": "p4",
        "tune": "ull",
        "rc": "cbr",
        "zerolatency": "1",
        "delay": "0",
        "forced-idr": "1",
        "profile": "baseline",
    },
    "h264_videotoolbox": {"realtime": "1", "prio_speed": "1", "profile": "constrained_baseline"},
    "h264_qsv": {"preset": "veryfast", "async_depth": "1", "forced_idr": "1", "profile": "baseline"},
    "h264_amf": {
        "usage": "ultralowlatency",
        "quality": "speed",
        "rc": "cbr",
        "forced_idr": "1",
        "profile": "constrained_baseline",
    },
}
REASONS = {
    "h264_nvenc": "an NVIDIA GPU with NVENC (A100, H100 and H200 have none) and its driver",
    "h264_videotoolbox": "macOS",
    "h264_qsv": "an Intel GPU and its driver",
    "h264_amf": "an AMD GPU and its driver",
}
TRIAL_PX, TRIAL_PICTURES = 256, 3


def choose(config: EncoderConfig) -> str:
    """The name of the encoder to use on this machine. Raises SettingError if the one that was chosen does not work."""
    if config.codec == "auto":
        return next((name for name in HARDWARE if fault(name) is None), SOFTWARE)
    if config.codec != SOFTWARE and (why := fault(config.codec)) is not None:
        raise SettingError(
            f"{config.codec} does not work here ({why}); it needs {REASONS[config.codec]}: choose "
            "`--encoder.codec libx264`"
        )
    return config.codec


@lru_cache
def fault(name: str) -> str | None:
    """Why that hardware encoder cannot be used here, or None if it can. Encodes to find out, once in a process."""
    try:
        why = trial(create(name, TRIAL_PX, TRIAL_PX, 1_000_000))
    except (FFmpegError, OSError, ValueError) as error:
        why = str(getattr(error, "strerror", None) or error)
    log.info("%s", f"{name} works on this machine" if why is None else f"no {name} on this machine: {why}")
    return why


def trial(context: VideoCodecContext) -> str | None:
    """Why the encoder does not suit live video, or None: it returns pictures late, makes no key frame on demand, or its
    key frames decode only after others. Raises FFmpegError where it does not open."""
    for index in range(TRIAL_PICTURES):
        picture = av.VideoFrame(TRIAL_PX, TRIAL_PX, "yuv420p")
        picture.pts, picture.time_base = index, FRAME_TIME_BASE
        key = index in (0, TRIAL_PICTURES - 1)
        picture.pict_type = PictureType.I if key else PictureType.NONE
        packets = context.encode(picture)
        if [packet.pts for packet in packets] != [index]:
            return "it holds pictures back"
        if packets[0].is_keyframe != key:
            return "it ignores requests for key frames"
    decoder = av.CodecContext.create("h264", "r")
    with contextlib.suppress(FFmpegError):
        if decoder.decode(av.Packet(bytes(packets[0]))) + decoder.decode(None):
            return None
    return "its key frames do not decode alone"


def create(name: str, width: int, height: int, bitrate_bps: int) -> VideoCodecContext:
    """An encoder with the settings of live video, not yet open. Raises ValueError where PyAV has none of that name."""
    context = av.CodecContext.create(name, "w")
    assert isinstance(context, VideoCodecContext)
    formats = {form.name for form in context.codec.video_formats or ()}
    context.width, context.height, context.pix_fmt = width, height, "yuv420p" if "yuv420p" in formats else "nv12"
    context.bit_rate = bitrate_bps
    context.framerate, context.time_base = Fraction(FPS), FRAME_TIME_BASE
    # Browsers assume BT.709 for a stream that names no matrix; other players need the name.
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = ColorRange.MPEG
    context.options = {
        # `PictureEncoder` decides on key frames, not the codec. The half-second buffer keeps them small enough for the
        # link.
        "g": str(3600 * FPS),
        "maxrate": str(bitrate_bps),
        "bufsize": str(bitrate_bps // 2),
        "bf": "0",
    } | (HARDWARE[name] if name in HARDWARE else _x264_options(width * height))
    if name == SOFTWARE:
        context.profile = "Baseline"
    return context


def _x264_options(pixels: int) -> dict[str, str]:
    return {
        "preset": "superfast",
        "tune": "zerolatency",
        "threads": "2" if pixels > TWO_THREAD_PIXELS else "1",
        "forced-idr": "1",
        "sc_threshold": "0",
        "qmin": str(FINEST_QUANTIZER),
    }
