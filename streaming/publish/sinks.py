"""Where a broadcast can go: `--publish URL` to its sink."""

from __future__ import annotations

from pathlib import Path

from engine.avatar.avatar import Avatar
from streaming.config import EncoderConfig
from streaming.errors import PublishError
from streaming.publish import ffmpeg, recorder, whip
from streaming.publish.destination import Sink, hidden
from streaming.publish.encoders import encoded_size

SCHEMES = (*whip.SCHEMES, *ffmpeg.CONTAINERS)


def open_sink(url: str, avatar: Avatar, config: EncoderConfig) -> Sink:
    """`make_sink` for that avatar's pictures; may take a moment."""
    return make_sink(url, encoded_size(avatar.width, avatar.height, config), config)


def publishes_file(url: str) -> bool:
    return "://" not in url or url.lower().startswith("file:")


def make_sink(url: str, size: tuple[int, int], config: EncoderConfig) -> Sink:
    """The sink of a `whip(s)://`, `rtmp(s)://` or `srt://` URL, or of a file; `size`: of the encoded picture.

    PublishError for anything else, and where this machine lacks what the sink needs.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator:
        return recorder.Recorder(Path(url), size, config)
    if scheme == "file":
        return recorder.Recorder(Path(rest), size, config)
    if scheme in whip.SCHEMES:
        return whip.WhipSink(url)
    if scheme in ffmpeg.CONTAINERS:
        return ffmpeg.Relay(url, size, config)
    raise PublishError(
        f"{hidden(url)}: cannot publish to {scheme}://; expected {', '.join(f'{name}://' for name in SCHEMES)} "
        f"or a file ({', '.join(recorder.CONTAINERS)})"
    )
