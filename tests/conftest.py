"""Fixtures shared by the suite: the bundled speaker, really enrolled once, and the bundled speech."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
EXCERPT_S = 6.0


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def speaker_video() -> Path:
    """The bundled synthetic speaker: 512 x 512, 25 fps, with sound."""
    return ROOT / "demo" / "speaker.mp4"


@pytest.fixture(scope="session")
def speech_wav() -> Path:
    """A bundled speech sample, 24 kHz mono."""
    return ROOT / "demo" / "speech_a.wav"


@pytest.fixture(scope="session")
def avatar_path(speaker_video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real avatar, enrolled from the first seconds of the bundled speaker."""
    from precompute.enroll import enroll

    excerpt = tmp_path_factory.mktemp("speaker") / "excerpt.mp4"
    copy_excerpt(speaker_video, excerpt, EXCERPT_S)
    avatar = excerpt.with_name("speaker.avatar")
    enroll(excerpt, avatar)
    return avatar


def copy_excerpt(source: Path, target: Path, seconds: float) -> None:
    """The first seconds of a video, copied packet by packet."""
    import av

    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        streams = {s.index: writer.add_stream_from_template(s) for s in reader.streams if s.type in ("video", "audio")}
        for packet in reader.demux(*(reader.streams[i] for i in streams)):
            if packet.dts is not None and packet.pts is not None and packet.pts * packet.time_base < seconds:
                packet.stream = streams[packet.stream.index]
                writer.mux(packet)
