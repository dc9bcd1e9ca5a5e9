"""All defaults of the server. The command line and its help are made from these dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from engine.config import MAX_LOAD
from engine.dubbing import DUBBING
from engine.enrolment import ENROLMENT


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The one encode of a session that all its viewers and broadcasts share."""

    # for H.264; auto: the first of the hardware encoders that works on this machine, else x264
    codec: Literal["auto", "libx264", "h264_nvenc", "h264_videotoolbox", "h264_qsv", "h264_amf"] = "auto"
    height_px: int | None = None  # of the encoded picture; its width follows. None: the avatar's own
    bitrate_bps: int = 2_500_000  # of the picture: the rate of broadcasts, the maximum for viewers
    min_bitrate_bps: int = 300_000  # the lowest rate to which one viewer's poor link may bring all viewers of a session
    keyframe_interval_s: float = 2.0  # the interval that broadcasters expect
    keyframe_gap_s: float = 0.5  # requests for key frames within this time share one
    opus_bitrate_bps: int = 64_000  # sound of viewers and WHIP: transparent for one channel of speech
    aac_bitrate_bps: int = 128_000  # sound of RTMP, SRT and files


@dataclass(frozen=True, kw_only=True)
class IceConfig:
    """How viewers and the server find a network path to each other."""

    stun: tuple[str, ...] = ()  # stun:host[:port]
    turn: tuple[str, ...] = ()  # turn:host[:port][?transport=udp|tcp]; its secret comes from PERSONASTREAM_TURN_SECRET
    turn_ttl_s: int = 3600  # a viewer's credentials open new paths for this long
    server_relay: bool = False  # the server takes an address on the TURN server too, if there is no other path to it
    public_ip: str | None = None  # the server's address from outside, if a NAT maps its ports one to one
    udp_ports: tuple[int, int] | None = None  # first and last port for pictures and sound; each viewer needs one


@dataclass(frozen=True, kw_only=True)
class JobsConfig:
    """Work on uploads of clients; its settings are explained where it has defaults."""

    at_once: int
    waiting: int
    max_bytes: int
    max_s: float
    keep_s: float
    kept: int
    program: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DubsConfig(JobsConfig):
    """Videos that clients dub. Uploads and results are in TMPDIR, and deleted when the server ends."""

    at_once: int = 1  # dubs that run at the same time, at low priority; 0: this server dubs no videos
    waiting: int = 4  # more dubs that may be uploaded or wait for their turn
    max_bytes: int = 2 << 30  # of one upload, video and sound together
    max_s: float = 1800.0  # length of the video, and of the speech
    keep_s: float = 3600.0  # files of a finished dub are deleted after this time
    kept: int = 16  # finished dubs; beyond it the oldest is deleted
    program: Annotated[tuple[str, ...], tyro.conf.Suppress] = DUBBING.program  # the process that does the work


@dataclass(frozen=True, kw_only=True)
class EnrolmentsConfig(JobsConfig):
    """Avatars that clients make from videos."""

    folder: Path | None = (
        None  # made avatars are kept there, and served after a restart. Default: until the server ends
    )
    at_once: int = 1  # enrolments that run at the same time, at low priority; 0: this server makes no avatars
    waiting: int = 4  # more that may be uploaded or wait for their turn
    max_bytes: int = 1 << 30  # of one upload, a video or a finished avatar
    max_s: float = 300.0  # length of the video; at most 120 s of it are used
    keep_s: float = 3600.0  # state and remarks of an ended enrolment; its video is deleted at once
    kept: int = 16  # ended enrolments; beyond it the oldest is forgotten, and its avatar stays
    program: Annotated[tuple[str, ...], tyro.conf.Suppress] = ENROLMENT.program  # the process that does the work


@dataclass(frozen=True, kw_only=True)
class TimeoutConfig:
    """How long the server waits for a client. These are not options of the command line."""

    ping_s: float = 15.0  # a speech socket is pinged this often: proxies close silent connections, many after 60 s
    # A websocket that is silent for this long is closed if it does not answer a ping within half that time. A program
    # answers pings while it reads: some send speech for a while and only then read.
    silent_client_s: float = 60.0
    viewer_connect_s: float = 30.0  # a viewer that is not connected this long after its answer is removed
    event_keepalive_s: float = 15.0  # an event stream sends a comment this often: proxies close silent connections
    upload_stall_s: float = 30.0  # an upload that brings nothing for this long is given up


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The HTTP, WebRTC and websocket interface."""

    host: str = "127.0.0.1"  # the address to listen at; 0.0.0.0: all, which needs a key or --open
    port: int = 8080  # 0: any free port
    open: bool = False  # admit everybody: listen beyond localhost without a key
    public_catalog: bool = False  # with a key set, show the avatars' pictures to everybody
    proxies: int = 0  # your reverse proxies before this server; the client's address then comes from X-Forwarded-For
    base_path: str = ""  # a path such as /avatar, under which a proxy that removes it shows the server
    cors_origins: tuple[str, ...] = ()  # other sites whose pages may use the API: https://app.example, or * for all
    max_body_bytes: int = 256 * 1024  # of an HTTP request; the largest body is an SDP offer
    max_sessions: int = 4  # open at the same time
    max_avatar_bytes: int | None = None  # memory of loaded avatars; beyond it, the least recently used are unloaded
    max_load: float = MAX_LOAD  # share of the device's time, if all sessions talk; above 1: they never all talk
    sessions_per_minute: int = 60  # opened from one address; 0: no limit
    max_session_s: float | None = None  # a session is closed after this time, even if it is in use
    idle_session_s: float = 60.0  # a session without viewers, sockets and destinations is closed after this time
    max_viewers: int = 64  # of all sessions together
    max_session_viewers: int = 20  # of one session: they share an encode, but Python encrypts for each of them
    token_ttl_s: float = 3600.0  # a session's token opens nothing new after this time; POST .../token issues another
    drain_s: float = 20.0  # when the server is asked to stop, speech that has begun may take this long to end
    publish_api: bool = False  # clients may publish their session through this server to any URL
    ice: IceConfig = field(default_factory=IceConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    dubs: DubsConfig = field(default_factory=DubsConfig)
    enrolments: EnrolmentsConfig = field(default_factory=EnrolmentsConfig)
    timeouts: Annotated[TimeoutConfig, tyro.conf.Suppress] = field(default_factory=TimeoutConfig)


@dataclass(frozen=True, kw_only=True)
class BroadcastConfig:
    """A session that is published for as long as the server runs, without any viewer."""

    publish: tuple[str, ...] = ()  # whip(s)://, rtmp(s)://, srt:// or a file (.mp4 .mkv .flv .ts)
    publish_avatar: str | None = None  # the avatar of the published session; by default the first
    publish_session: str = "broadcast"  # the session's id; its token comes from PERSONASTREAM_BROADCAST_TOKEN


@dataclass(frozen=True, kw_only=True)
class VoicesConfig:
    """The voices beside eSpeak NG. API keys come from environment variables alone."""

    kokoro_model: Path | None = None  # kokoro-v1.0.onnx; or PERSONASTREAM_KOKORO_MODEL
    kokoro_voices: Path | None = None  # the voices file that kokoro-onnx reads; or PERSONASTREAM_KOKORO_VOICES
    piper_models: tuple[Path, ...] = ()  # NAME.onnx, with NAME.onnx.json beside it
    api_url: str = ""  # an API with POST {url}/audio/speech, such as https://api.openai.com/v1
    api_model: str = "gpt-4o-mini-tts"  # the model that the API is asked for
    api_voices: tuple[str, ...] = ("alloy",)  # their names in the API; here they are called api/NAME
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable with the API's key
    api_rate_hz: int = 24_000  # sample rate of the API's `pcm` format
    socket_service: Literal["cartesia", "deepgram", "elevenlabs"] | None = None  # a service with a websocket
    socket_url: str = ""  # by default the service's own address
    socket_model: str = ""  # the model that the service is asked for
    socket_voices: tuple[str, ...] = ()  # their ids at the service; here they are called SERVICE/ID
    socket_key_env: str = ""  # the environment variable with the key; by default the service's name and _API_KEY
    socket_rate_hz: int = 24_000  # sample rate that the service is asked for
    stall_s: float = 8.0  # after this time without data a remote voice has failed
