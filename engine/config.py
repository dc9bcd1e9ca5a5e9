"""Every default of the runtime, once. The command lines are made from these dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """How speech is cut into windows on the 25 Hz grid (frames of 40 ms). Trained weights carry their own."""

    left_frames: int = 37  # 1.5 s of context, enough for a syllable's neighbourhood and the speaker's level
    step_frames: int = 4
    lookahead_frames: int = 3


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """One conversation."""

    attack_frames: int = 3  # idle -> speech, in geometry: short, or the first syllable is lost
    crossfade_frames: int = 5  # speech -> idle, in geometry
    release_frames: int = 8  # silence played through the network after the last word, so that it closes the mouth
    lead_frames: int = 8  # pictures made ahead of the frame that is due; bounds memory and the cost of a barge-in
    buffered_speech_ms: int = 30_000  # beyond this, push_audio waits


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The one encode of a session that all its viewers and broadcasts share."""

    codec: Literal["auto", "h264_nvenc", "libx264"] = "auto"  # of H.264; auto: the GPU's where it has one
    height_px: int | None = None  # of the encoded picture, its width follows; None: the avatar's own
    bitrate_bps: int = 2_500_000  # of the picture: what broadcasts get, and the most that viewers do
    min_bitrate_bps: int = 300_000  # what a viewer's poor link may push all viewers of the session down to
    keyframe_interval_s: float = 2.0  # what broadcasters ask for
    keyframe_gap_s: float = 0.5  # requests within it share one key frame
    opus_bitrate_bps: int = 64_000  # one channel of full-band speech, transparent in Opus
    aac_bitrate_bps: int = 128_000


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The HTTP, WebRTC and websocket surface."""

    host: str = "127.0.0.1"
    port: int = 8080
    max_sessions: int = 4
    idle_session_s: float = 60.0  # a session without viewers and without a speech socket is closed after this
    encoder: EncoderConfig = field(default_factory=EncoderConfig)


@dataclass(frozen=True, kw_only=True)
class VoicesConfig:
    """The voices beside eSpeak NG. API keys come from environment variables alone."""

    kokoro_model: Path | None = None  # kokoro-v1.0.onnx; or PERSONASTREAM_KOKORO_MODEL
    kokoro_voices: Path | None = None  # the voices file that kokoro-onnx reads; or PERSONASTREAM_KOKORO_VOICES
    piper_models: tuple[Path, ...] = ()  # NAME.onnx, with NAME.onnx.json beside it
    api_url: str = ""  # an API with POST {url}/audio/speech, such as https://api.openai.com/v1
    api_model: str = "gpt-4o-mini-tts"
    api_voices: tuple[str, ...] = ("alloy",)
    api_key_env: str = "OPENAI_API_KEY"
    api_rate_hz: int = 24_000  # of its `pcm` format
    socket_service: Literal["cartesia", "deepgram", "elevenlabs"] | None = None
    socket_url: str = ""  # the service's own where it is empty
    socket_model: str = ""
    socket_voices: tuple[str, ...] = ()
    socket_key_env: str = ""  # the service's name and _API_KEY where it is empty
    socket_rate_hz: int = 24_000
    stall_s: float = 8.0  # a remote voice that sends nothing for so long has failed
