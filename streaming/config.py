"""Every default of the server, once. The command line is made from these dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engine.config import MAX_LOAD


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
class IceConfig:
    """How viewers and the server find a network path to each other."""

    stun: tuple[str, ...] = ()  # stun:host[:port]
    turn: tuple[str, ...] = ()  # turn:host[:port][?transport=udp|tcp]; its secret comes from PERSONASTREAM_TURN_SECRET
    turn_ttl_s: int = 3600  # what is made for one viewer opens new paths for so long
    server_relay: bool = False  # the server takes an address on the TURN server too, if nothing else leads to it
    public_ip: str | None = None  # how the server is reached from outside where a NAT maps its ports one to one
    udp_ports: tuple[int, int] | None = None  # first and last for pictures and sound; a viewer takes one


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The HTTP, WebRTC and websocket surface."""

    host: str = "127.0.0.1"
    port: int = 8080
    open: bool = False  # let everybody in: listen beyond this machine although no key is set
    proxies: int = 0  # of ours, in front of this server; the client's address then comes from X-Forwarded-For
    cors_origins: tuple[str, ...] = ()  # whose pages may use the API beside our own: https://app.example, or *
    max_body_bytes: int = 256 * 1024  # the largest body is an SDP offer; speech comes through the websocket
    max_sessions: int = 4
    max_load: float = MAX_LOAD  # of the device, by all sessions that talk; above 1 is a bet that not all do so at once
    sessions_per_minute: int = 60  # of one address; 0: no limit
    max_session_s: float | None = None  # a session is closed after this, whoever uses it
    idle_session_s: float = 60.0  # a session without viewers and without a speech socket is closed after this
    max_viewers: int = 64  # of all sessions
    max_session_viewers: int = 20  # of one session: they share an encode, but each is encrypted for in Python
    token_ttl_s: float = 3600.0  # a session's token opens nothing new after this; POST .../token gives another one
    drain_s: float = 20.0  # what is being said when the server is asked to stop may take so long to its end
    publish_api: bool = False  # who may use a session may also have this server publish it to any URL
    ice: IceConfig = field(default_factory=IceConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)


@dataclass(frozen=True, kw_only=True)
class BroadcastConfig:
    """A session that is published for as long as the server runs, without any viewer."""

    publish: tuple[str, ...] = ()  # whip(s)://, rtmp(s)://, srt:// or a file (.mp4 .mkv .flv .ts); may be repeated
    publish_avatar: str | None = None  # the first avatar where none is named
    publish_session: str = "broadcast"  # its id; its token comes from PERSONASTREAM_BROADCAST_TOKEN


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
