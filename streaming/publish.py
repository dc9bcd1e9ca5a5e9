"""Where a broadcast can go: `--publish URL` to its sink."""

from __future__ import annotations

from pathlib import Path

from engine.avatar import Avatar
from engine.config import EncoderConfig
from engine.errors import PublishError
from streaming import recorder, relay, whip
from streaming.encoders import encoded_size
from streaming.publication import Sink, hidden

SCHEMES = (*whip.SCHEMES, *relay.CONTAINERS)


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
    if scheme in relay.CONTAINERS:
        return relay.Relay(url, size, config)
    raise PublishError(
        f"{hidden(url)}: cannot publish to {scheme}://; expected {', '.join(f'{name}://' for name in SCHEMES)} "
        f"or a file ({', '.join(recorder.CONTAINERS)})"
    )
