"""A video is read by index from inside another file, forwards and backwards, in bounded memory."""

from __future__ import annotations

import io
import random
from pathlib import Path

import av
import numpy as np
import pytest

from engine.avatar.video import GOP_FRAMES, VideoReader
from engine.errors import AvatarFileError

FRAMES, HEIGHT, WIDTH = 61, 96, 128
PREFIX = b"x" * 1234


def level(index: int) -> int:
    return 20 + 3 * index


def write_video(path, images):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0", "g": str(GOP_FRAMES), "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A video of grey frames, each of its own level, behind some bytes of another member."""
    folder = tmp_path_factory.mktemp("video")
    video = folder / "plain.mp4"
    write_video(video, [np.full((HEIGHT, WIDTH, 3), level(index), np.uint8) for index in range(FRAMES)])
    path = folder / "packed.bin"
    path.write_bytes(PREFIX + video.read_bytes() + b"tail")
    return path, len(PREFIX), video.stat().st_size


def open_reader(packed, **changes):
    path, offset, size = packed
    return VideoReader(path, **({"offset": offset, "size": size, "shape": (HEIGHT, WIDTH), "frames": FRAMES} | changes))


def orders():
    everywhere = list(range(FRAMES))
    random.Random(1).shuffle(everywhere)
    return {
        "forwards": list(range(FRAMES)),
        "backwards": list(range(FRAMES))[::-1],
        "anywhere": everywhere,
        "wrap": [58, 59, 60, 0, 1, 2, 30, 29, 30],
    }


@pytest.mark.parametrize("order", ["forwards", "backwards", "anywhere", "wrap"])
def test_every_order_of_reading_gives_the_requested_frame(packed, order):
    with open_reader(packed) as reader:
        for index in orders()[order]:
            image = reader.read(index)
            assert image.shape == (HEIGHT, WIDTH, 3)
            assert image.dtype == np.uint8
            assert abs(float(image.mean()) - level(index)) < 2, index


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A video whose frames take many bytes, so that the bytes read from its file show how often it is decoded."""
    path = tmp_path_factory.mktemp("video") / "noisy.mp4"
    random_bytes = np.random.default_rng(0).integers
    write_video(path, [random_bytes(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(FRAMES)])
    return path


class CountingPath(type(Path())):
    """A path that counts the bytes read from its file."""

    def open(self, mode):
        self.bytes_read = 0
        counter = self

        class CountingFile(io.FileIO):
            def read(self, count=-1):
                data = super().read(count)
                counter.bytes_read += len(data)
                return data

        return CountingFile(self, mode)


@pytest.mark.parametrize("order", ["forwards", "backwards"])
def test_a_group_of_pictures_is_not_read_again_for_each_of_its_frames(noisy, order):
    path = CountingPath(noisy)
    with VideoReader(path, shape=(HEIGHT, WIDTH), frames=FRAMES) as reader:
        for index in orders()[order]:
            reader.read(index)
    assert path.bytes_read < 3 * noisy.stat().st_size


def test_the_cache_respects_its_budget_even_when_that_means_decoding_again(noisy):
    path = CountingPath(noisy)
    frame_bytes = HEIGHT * WIDTH * 3 // 2
    with VideoReader(path, shape=(HEIGHT, WIDTH), frames=FRAMES, cache_bytes=3 * frame_bytes) as reader:
        for index in range(GOP_FRAMES):
            reader.read(index)
        before = path.bytes_read
        for index in (GOP_FRAMES - 1, GOP_FRAMES - 3):
            reader.read(index)
        assert path.bytes_read == before, "three frames are kept"
        reader.read(GOP_FRAMES - 4)
        assert path.bytes_read > before, "and no more"


def test_planes_are_the_same_picture(packed):
    with open_reader(packed) as reader:
        planes = reader.read_yuv(17)
        assert planes.shape == (HEIGHT * 3 // 2, WIDTH)
        rgb = av.VideoFrame.from_ndarray(planes, format="yuv420p").to_ndarray(format="rgb24")
        assert np.abs(rgb.astype(int) - reader.read(17)).max() <= 2


@pytest.mark.parametrize(
    "wrong", [{"frames": FRAMES + 1}, {"shape": (HEIGHT, WIDTH + 2)}, {"offset": 3}, {"size": 500}]
)
def test_a_video_of_another_size_or_length_is_refused(packed, wrong):
    with pytest.raises(AvatarFileError, match="precompute"):
        open_reader(packed, **wrong)


def test_a_video_that_breaks_off_is_refused_where_it_does(packed, tmp_path):
    path, offset, size = packed
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + size // 3
    stop = data.index(b"moov")  # the index lies behind the pictures and stays whole
    data[start:stop] = bytes(stop - start)
    broken = tmp_path / "broken.bin"
    broken.write_bytes(data)
    with open_reader((broken, offset, size)) as reader:
        reader.read(0)
        with pytest.raises(AvatarFileError, match=r"precompute"):
            for index in range(FRAMES):
                reader.read(index)


def test_outside_and_after_closing_are_errors(packed):
    reader = open_reader(packed)
    with pytest.raises(IndexError):
        reader.read(FRAMES)
    with pytest.raises(IndexError):
        reader.read(-1)
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read(0)
