"""Encoded parts: a run that was killed goes on, and its pictures are those of an unbroken one."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from drawings import planes_of

from engine.errors import MediaError, OutputError
from precompute.dubbing.encoding import encoding_of
from precompute.dubbing.source import Source
from precompute.dubbing.timing import plan
from precompute.dubbing.writer import Parts


@pytest.fixture
def read(make_video, tmp_path):
    """read(name, ...): a source that was read once, and the plan that shows the whole."""

    def make(name="v.mp4", count=60, **facts):
        source = Source(make_video(tmp_path / name, count, **facts))
        list(source.pictures())
        return source, plan(source.times, "video", speech_s=0.1)

    return make


@pytest.fixture
def short_parts(monkeypatch):
    monkeypatch.setattr("precompute.dubbing.writer.PART_S", 0.8)  # 20 pictures


def frames(source, made, start=0):
    return (picture.frame for _, picture in made.pictures(source, start))


def contents(parts):
    return [path.read_bytes() for path in parts.paths]


def test_parts_hold_ten_seconds_and_say_which_picture_is_next(tmp_path, read):
    source, made = read(count=300, fps=25, size=(32, 32), options={"preset": "ultrafast"})
    with Parts(tmp_path / "parts", made, encoding_of(source, ".mp4")) as parts:
        written = parts.write(frames(source, made))
        assert [next(written) for _ in range(260)] == list(range(1, 261))
        assert parts.next == 250 and len(parts.paths) == 1
        assert [number for number in written][-1] == 300 == parts.next and len(parts.paths) == 2


def test_a_resumed_run_gives_the_same_parts_as_an_unbroken_one(tmp_path, read, short_parts):
    source, made = read()
    encoding = encoding_of(source, ".mp4")
    with Parts(tmp_path / "whole", made, encoding) as whole:
        assert [*whole.write(frames(source, made))][-1] == 60
    with Parts(tmp_path / "broken", made, encoding, job="a") as broken:
        written = broken.write(frames(source, made))
        for _ in range(30):
            next(written)
        written.close()
    assert len(list((tmp_path / "broken").glob("*.nut"))) == 1
    again = Source(source.path, source.times)
    with Parts(tmp_path / "broken", made, encoding, job="a", resume=True) as broken:
        assert broken.next == 20
        list(broken.write(frames(again, made, broken.next)))
        assert contents(broken) == contents(whole)


KILLED = """
import sys
from pathlib import Path
import precompute.dubbing.writer as writer
from precompute.dubbing.encoding import encoding_of
from precompute.dubbing.source import Source
from precompute.dubbing.timing import plan
writer.PART_S = 0.8
source = Source(Path(sys.argv[1]))
list(source.pictures())
made = plan(source.times, "video", speech_s=0.1)
parts = writer.Parts(Path(sys.argv[2]), made, encoding_of(source, ".mp4"))
for number in parts.write(picture.frame for _, picture in made.pictures(source)):
    if number == 50:
        print("written", flush=True)
        sys.stdin.read()
"""


def test_a_killed_run_leaves_whole_parts_alone(tmp_path, read, short_parts):
    source, made = read()
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(source.path), str(tmp_path / "parts")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert run.stdout.readline() == b"written\n"
    run.send_signal(signal.SIGKILL)
    run.communicate()
    with (
        Parts(tmp_path / "whole", made, encoding_of(source, ".mp4")) as whole,
        Parts(tmp_path / "parts", made, encoding_of(source, ".mp4"), resume=True) as parts,
    ):
        list(whole.write(frames(source, made)))
        assert parts.next == 40
        list(parts.write(frames(source, made, 40)))
        assert contents(parts) == contents(whole)
        named = {path.name for path in (tmp_path / "parts").glob("[!.]*")}
        assert named == {"000000.nut", "000001.nut", "000002.nut", "job.json"}


@pytest.mark.parametrize("change", ["job", "quality", "plan", "no resume"])
def test_parts_of_another_job_are_not_taken(tmp_path, read, short_parts, change):
    source, made = read()
    folder, encoding = tmp_path / "parts", encoding_of(source, ".mp4")
    with Parts(folder, made, encoding, job="a") as parts:
        list(parts.write(frames(source, made)))
    if change == "plan":
        made = plan(source.times, "cut", speech_s=1.0)
    if change == "quality":
        encoding = encoding_of(source, ".mp4", "fast")
    job = "b" if change == "job" else "a"
    with Parts(folder, made, encoding, job=job, resume=change != "no resume") as parts:
        assert parts.next == 0


def test_two_runs_do_not_write_the_same_output(tmp_path, read):
    source, made = read()
    with (
        Parts(tmp_path / "parts", made, encoding_of(source, ".mp4")) as parts,
        pytest.raises(OutputError, match="another run"),
    ):
        Parts(parts.folder, made, encoding_of(source, ".mp4"))


def test_a_folder_without_a_whole_part_is_removed(tmp_path, read):
    source, made = read()
    with Parts(tmp_path / "parts", made, encoding_of(source, ".mp4")) as parts:
        next(parts.write(frames(source, made)))
    assert not (tmp_path / "parts").exists()


def test_files_of_others_in_the_folder_stay(tmp_path, read):
    source, made = read()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "notes.txt").write_text("mine")
    with Parts(tmp_path / "parts", made, encoding_of(source, ".mp4")) as parts:
        list(parts.write(frames(source, made)))
        parts.remove()
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["notes.txt"]


def test_a_full_disk_is_told_and_whole_parts_stay(tmp_path, read, short_parts):
    source, made = read(size=(320, 240))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Parts(tmp_path / "parts", made, encoding_of(source, ".mp4")) as parts:
        written = parts.write(frames(source, made))
        for _ in range(25):
            next(written)
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(parts.paths[0]) // 2, before[1]))
        try:
            with pytest.raises(OutputError, match="make room"):
                list(written)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert len(parts.paths) == 1


# ---- encoding


def decoded_of(path):
    """The codec's name, and all frames."""
    with av.open(str(path)) as container:
        return container.streams.video[0].codec_context.name, list(container.decode(video=0))


@pytest.mark.parametrize(("codec", "pix_fmt", "name", "suffix", "kept"), [
    ("libx264", "yuv420p", "v.mp4", ".mp4", "h264"),
    ("libx264", "yuvj420p", "v.mp4", ".mp4", "h264"),
    ("libx264", "yuv422p", "v.mkv", ".mkv", "h264"),
    ("libx264", "yuv444p", "v.mp4", ".mp4", "h264"),
    ("libx264", "yuv420p10le", "v.mp4", ".mp4", "h264"),
    ("libx265", "yuv420p", "v.mp4", ".mp4", "hevc"),
    ("libx265", "yuv420p10le", "v.mp4", ".mp4", "hevc"),
    ("prores_ks", "yuv422p10le", "v.mov", ".mov", "hevc"),
    ("libvpx-vp9", "yuv420p", "v.webm", ".webm", "vp9"),
    ("libvpx-vp9", "yuv420p", "v.webm", ".mp4", "h264"),
    ("mpeg4", "yuv420p", "v.avi", ".mp4", "h264"),
])  # fmt: skip
def test_codec_family_and_pixel_format_are_kept(tmp_path, read, codec, pix_fmt, name, suffix, kept):
    options = {"x265-params": "log-level=error"} if codec == "libx265" else {}
    source, made = read(name, 6, codec=codec, pix_fmt=pix_fmt, options=options)
    with Parts(tmp_path / "parts", made, encoding_of(source, suffix)) as parts:
        list(parts.write(frames(source, made)))
        name, decoded = decoded_of(parts.paths[0])
    assert (name, decoded[0].format.name, len(decoded)) == (kept, source.first.format.name, 6)
    for old, new in zip(planes_of(source.first), planes_of(decoded[0]), strict=True):
        assert np.abs(old.astype(int) - new).mean() < (2 << (decoded[0].format.components[0].bits - 8)) + 1


def test_ten_bits_are_refused_for_webm_with_the_name_that_holds_them(read):
    source, _ = read("v.mkv", 2, codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": "log-level=error"})
    with pytest.raises(MediaError, match=r"yuv420p10le has no place in a \.webm file; .* \.mkv"):
        encoding_of(source, ".webm")


@pytest.mark.parametrize("colours", [(1, 1, 1, 1), (6, 6, 6, 1), (9, 9, 16, 1), (9, 9, 18, 1), (5, 5, 6, 2)])
@pytest.mark.parametrize(("codec", "pix_fmt"), [("libx264", "yuv420p"), ("libx265", "yuv420p10le")])
def test_colours_and_shape_of_pixels_are_kept(tmp_path, read, colours, codec, pix_fmt):
    options = {"x265-params": "log-level=error"} if codec == "libx265" else {}
    source, made = read(count=4, codec=codec, pix_fmt=pix_fmt, options=options, colours=colours, aspect=Fraction(4, 3))
    with Parts(tmp_path / "parts", made, encoding_of(source, ".mp4")) as parts:
        list(parts.write(frames(source, made)))
        written = Source(parts.paths[0])
    frame = written.first
    assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == colours
    assert written.display.aspect == Fraction(4, 3)


HDR10 = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400"


def test_hdr10_keeps_its_mastering_display_and_light_level(tmp_path, read):
    options = {"x265-params": f"log-level=error:hdr10=1:{HDR10}"}
    source, made = read(count=4, codec="libx265", pix_fmt="yuv420p10le", options=options, colours=(9, 9, 16, 1))
    with Parts(tmp_path / "parts", made, encoding_of(source, ".mp4")) as parts:
        list(parts.write(frames(source, made)))
        _, decoded = decoded_of(parts.paths[0])
    for name in ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL"):
        assert bytes(decoded[0].side_data[name]) == bytes(source.first.side_data[name])


@pytest.mark.parametrize("matrix", [8, 14])
def test_colours_that_the_output_cannot_hold_are_refused_by_name(read, matrix):
    source, _ = read(
        name="v.mkv",
        count=2,
        codec="ffv1",
        colours=(matrix, 9, 16, 1),
        draw=lambda number, size: np.zeros((size[1], size[0], 3), np.uint8),
    )
    with pytest.raises(MediaError, match="YCgCo|ICtCp"):
        encoding_of(source, ".mp4")


def test_pictures_with_types_of_their_own_do_not_decide_the_encoders(tmp_path, read):
    source, made = read(count=20, options={"g": "1"})
    with Parts(tmp_path / "parts", made, encoding_of(source, ".mp4")) as parts:
        list(parts.write(frames(source, made)))
        with av.open(str(parts.paths[0])) as container:
            assert [packet.is_keyframe for packet in container.demux(video=0) if packet.size].count(True) == 1
