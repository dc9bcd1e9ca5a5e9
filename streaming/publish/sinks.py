"""Sinks: the kinds of destinations, and the choice of one for a URL."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from engine.avatar.avatar import Avatar
from streaming.config import EncoderConfig
from streaming.errors import PublishError
from streaming.publish import ffmpeg, recorder, whip
from streaming.publish.broadcast import EncodedStream
from streaming.publish.encoders import SoundCodec, encoded_size
from streaming.publish.status import Status, without_secrets

SCHEMES = (*whip.SCHEMES, *ffmpeg.CONTAINERS)


class Sink(Protocol):
    """One kind of destination."""

    sound: SoundCodec  # beside H.264

    async def send(self, stream: EncodedStream, status: Status) -> None:
        """Send units until the stream ends, and report accepted bytes to `status`. Raises PublishError."""


def open_sink(url: str, avatar: Avatar, config: EncoderConfig) -> Sink:
    """`make_sink` for that avatar's pictures. Blocks: it may run ffmpeg once."""
    return make_sink(url, encoded_size(avatar.width, avatar.height, config), config)


def is_file(url: str) -> bool:
    """Whether `url` means a recording on this machine."""
    return "://" not in url or url.lower().startswith("file:")


def make_sink(url: str, size: tuple[int, int], config: EncoderConfig) -> Sink:
    """The sink of a `whip(s)://`, `rtmp(s)://` or `srt://` URL, or of a file path.

    size: width and height of the encoded picture, px. Raises PublishError for any other URL, and if this machine lacks
    a program or folder that the sink needs.
    """
    _check_form(url)
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator:
        return recorder.Recorder(Path(url), size, config)
    if scheme == "file":
        return recorder.Recorder(Path(rest), size, config)
    if scheme in whip.SCHEMES:
        return whip.WhipSink(url)
    if scheme in ffmpeg.CONTAINERS:
        return ffmpeg.FfmpegSink(url, size, config)
    raise PublishError(
        f"{without_secrets(url)}: cannot publish to {scheme}://; "
        f"expected {', '.join(f'{name}://' for name in SCHEMES)} or a file ({', '.join(recorder.CONTAINERS)})"
    )


def _check_form(url: str) -> None:
    """Refuse text that no library here takes, without showing it: it may hold a key. Raises PublishError."""
    try:
        urlsplit(url)
    except ValueError as error:
        raise PublishError(f"the destination does not parse as a URL ({error}); expected scheme://HOST/PATH") from None
    if not url.isprintable():
        raise PublishError("the destination holds control characters; expected scheme://HOST/PATH or a file")
