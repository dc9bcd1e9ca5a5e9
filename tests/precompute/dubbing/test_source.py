"""Every picture of any video comes once, in order, at its own time."""

from __future__ import annotations

import gc
from fractions import Fraction

import av
import numpy as np
import pytest
from drawings import drawing, same_samples

from engine.errors import CorruptVideoError, NotAVideoError, StillPictureError
from precompute.dubbing.source import Source, Times

RATES = [Fraction(24_000, 1001), Fraction(30_000, 1001), Fraction(30), Fraction(50), Fraction(60)]


def numbers_drawn(pictures):
    """The number of each picture by its brightness in `grey`."""
    return [round(float(picture.frame.to_ndarray(format="gray").mean()) / 4) for picture in pictures]


def grey(number, size):
    return np.full((size[1], size[0], 3), 4 * number, np.uint8)


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_every_picture_has_its_exact_time_at_any_rate(tmp_path, make_video, fps, suffix):
    source = Source(make_video(tmp_path / f"v{suffix}", 40, fps=fps, draw=grey, colours=(1, 1, 1, 2)))
    pictures = list(source.pictures())
    assert [picture.time_s for picture in pictures] == [n / fps for n in range(40)]
    assert {picture.duration_s for picture in pictures} == {1 / fps}
    assert [picture.number for picture in pictures] == numbers_drawn(pictures) == list(range(40))
    assert source.rate == fps and source.frames_estimate == 40 and source.remarks == ()


def test_pictures_that_were_read_are_freed_at_once(tmp_path, make_video):
    """They have megabytes each, of which the garbage collector knows nothing: it would leave hundreds of them."""
    source = Source(make_video(tmp_path / "v.mp4", 40))
    gc.collect()
    before, most = frames_alive(), 0
    gc.disable()
    try:
        for picture in source.pictures():
            picture.scaled((32, 32))
            most = max(most, frames_alive() - before)
    finally:
        gc.enable()
    assert most < 10


def frames_alive():
    return sum(type(found) is av.VideoFrame for found in gc.get_objects())


def test_a_variable_rate_keeps_every_time_also_a_long_pause(tmp_path, make_video):
    times_s = [Fraction(n, 1000) for n in (0, 33, 40, 41, 90, 140, 6_140, 6_180, 6_181)]
    source = Source(make_video(tmp_path / "v.mp4", times_s, time_base=Fraction(1, 16_000)))
    assert [picture.time_s for picture in source.pictures()] == times_s
    assert source.remarks == ()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_first_picture_behind_zero_is_time_zero_and_its_place_is_kept(tmp_path, make_video, suffix):
    source = Source(make_video(tmp_path / f"v{suffix}", [Fraction(n + 20, 40) for n in range(8)], fps=40))
    assert [picture.time_s for picture in source.pictures()] == [Fraction(n, 40) for n in range(8)]
    assert source.times.origin_s == Fraction(1, 2)


def test_pictures_before_the_edit_list_are_not_shown(tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", [Fraction(n - 3, 25) for n in range(10)], draw=grey, colours=(1, 1, 1, 2))
    pictures = list(Source(path).pictures())
    assert numbers_drawn(pictures) == list(range(3, 10))
    assert [picture.time_s for picture in pictures] == [Fraction(n, 25) for n in range(7)]


@pytest.mark.parametrize("starts_s", [(100, 0), (30, 0), (0, 4000)])
def test_stamps_that_jump_are_repaired_and_remarked(tmp_path, make_video, starts_s):
    data = b""
    for start_s in starts_s:
        path = make_video(tmp_path / "piece.ts", [start_s + Fraction(n, 25) for n in range(25)], options={"bf": "0"})
        data += path.read_bytes()
    joined = tmp_path / "joined.ts"
    joined.write_bytes(data)
    source = Source(joined)
    times_s = [picture.time_s for picture in source.pictures()]
    assert len(times_s) >= 49 and set(np.diff(times_s)) == {Fraction(1, 25)}
    assert [remark.code for remark in source.remarks] == ["time-jump"]
    assert source.remarks[0].at_s == pytest.approx(1.0, abs=0.05)


def test_stamps_that_are_missing_are_those_of_the_rate(tmp_path, make_video):
    path = make_video(tmp_path / "v.avi", 20, codec="mpeg4", options={"bf": "0"}, draw=grey, colours=(1, 1, 1, 2))
    assert [picture.time_s for picture in Source(path).pictures()] == [Fraction(n, 25) for n in range(20)]


@pytest.mark.parametrize(("codec", "suffix", "options"), [
    ("libx264", ".mp4", {"g": "8", "bf": "3"}),
    ("libx264", ".mkv", {"g": "8", "bf": "3", "x264-params": "open-gop=1"}),
    ("libx264", ".ts", {"g": "8", "bf": "3"}),
    ("libx265", ".mp4", {"x265-params": "log-level=error:keyint=8:min-keyint=8:open-gop=1:bframes=3"}),
    ("libvpx-vp9", ".webm", {"g": "8"}),
    ("libx264", ".mp4", {"x264-params": "intra-refresh=1:keyint=8"}),
    ("mpeg4", ".avi", {"g": "8"}),
])  # fmt: skip
def test_reading_from_the_middle_gives_the_same_pictures(tmp_path, make_video, codec, suffix, options):
    path = make_video(tmp_path / f"v{suffix}", 40, codec=codec, options=options)
    first = Source(path)
    whole = list(first.pictures())
    assert len(whole) == 40
    source = Source(path, first.times)
    for start, stop in ((1, 4), (8, 12), (15, 17), (23, 40), (39, 40), (40, None)):
        part = list(source.pictures(start, stop))
        wanted = whole[start:stop]
        assert [(p.number, p.time_s, p.duration_s) for p in part] == [
            (p.number, p.time_s, p.duration_s) for p in wanted
        ]
        assert all(same_samples(a.frame, b.frame) for a, b in zip(part, wanted, strict=True))


def test_reading_from_the_middle_does_not_decode_from_the_beginning(tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", 60, options={"g": "10"})
    source = Source(path)
    list(source.pictures())
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for place, size in places[:30]:
        data[place : place + size] = bytes(size)
    path.write_bytes(data)
    assert len(list(Source(path, source.times).pictures(45))) == 15


def test_pictures_come_backwards_in_pieces(tmp_path, make_video, monkeypatch):
    source = Source(make_video(tmp_path / "v.mp4", 30, options={"g": "10"}))
    forwards = list(source.pictures(3, 27))
    monkeypatch.setattr("precompute.dubbing.source.HELD_BYTES", 1)  # four pictures at a time
    backwards = list(source.backwards(3, 27))
    assert [picture.number for picture in backwards] == list(range(26, 2, -1))
    assert all(same_samples(a.frame, b.frame) for a, b in zip(backwards, forwards[::-1], strict=True))


def test_times_are_saved_and_loaded(tmp_path, make_video):
    source = Source(make_video(tmp_path / "v.mp4", 20, fps=Fraction(30_000, 1001)))
    list(source.pictures())
    source.times.save(tmp_path / "times.npz")
    loaded = Times.load(tmp_path / "times.npz")
    assert (loaded.time_base, loaded.end, loaded.origin_s) == (source.times.time_base, source.times.end, 0)
    assert all(
        np.array_equal(getattr(loaded, name), getattr(source.times, name)) for name in ("ticks", "stamps", "keys")
    )
    assert loaded.duration_s == 20 * Fraction(1001, 30_000)


# ---- damage


def long_video(path, make_video):
    return make_video(path, 100, options={"g": "10"}, container_options={"movflags": "faststart"})


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_corrupt_tail_ends_the_pictures_with_a_remark(tmp_path, make_video, suffix):
    path = long_video(tmp_path / f"v{suffix}", make_video)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 5])
    source = Source(path)
    count = len(list(source.pictures()))
    assert 60 <= count < 95
    assert [remark.code for remark in source.remarks] == ["cut-off"]
    assert source.remarks[0].at_s == pytest.approx(count / 25, abs=0.1)
    assert "4.00 s" in source.remarks[0].text
    assert len(list(source.pictures(count - 5))) == 5 and len(source.remarks) == 1


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_video_of_which_less_than_half_remains_is_refused(tmp_path, make_video, suffix):
    path = long_video(tmp_path / f"v{suffix}", make_video)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(CorruptVideoError, match="of 4.00 s can be read") as caught:
        list(Source(path).pictures())
    assert 0 < caught.value.at_s < 2


def test_pictures_behind_a_damaged_place_are_read(tmp_path, make_video):
    path = long_video(tmp_path / "v.mp4", make_video)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[40:50]:
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    source = Source(path)
    pictures = list(source.pictures())
    assert 88 <= len(pictures) <= 100 and pictures[-1].time_s == Fraction(99, 25)
    assert [remark.code for remark in source.remarks] == ["damaged"]
    assert source.remarks[0].at_s == pytest.approx(1.6, abs=0.5)


@pytest.mark.parametrize("content", [b"", b"text\n" * 1000])
def test_what_is_no_video_is_refused(tmp_path, content):
    path = tmp_path / "v.mp4"
    path.write_bytes(content)
    with pytest.raises(NotAVideoError):
        Source(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_is_no_video(tmp_path, suffix):
    path = tmp_path / f"face{suffix}"
    av.VideoFrame.from_ndarray(drawing(0), format="rgb24").save(path)
    with pytest.raises(StillPictureError, match="is a picture"):
        Source(path)


# ---- orientation, pixels


@pytest.mark.parametrize("matrix", [
    (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0),
])  # fmt: skip
def test_pictures_are_scaled_upright_for_every_display_matrix(tmp_path, make_video, matrix):
    a, b, c, d = matrix
    units = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    source = Source(make_video(tmp_path / "v.mp4", 3, matrix=units, options={"crf": "5"}))
    wanted = drawing(0).transpose(1, 0, 2) if b else drawing(0)
    wanted = wanted[:: -1 if b < 0 or d < 0 else 1, :: -1 if a < 0 or c < 0 else 1]
    height, width = wanted.shape[:2]
    assert source.upright_size == (width, height) and (source.width, source.height) == (96, 64)
    upright = next(source.pictures()).scaled((width, height))
    assert np.abs(upright.astype(int) - wanted).mean() < 20  # fine colours are lost in chroma


def test_wide_pixels_are_square_as_displayed(tmp_path, make_video):
    source = Source(make_video(tmp_path / "v.mp4", 3, aspect=Fraction(4, 3)))
    assert source.upright_size == (128, 64)
    assert next(source.pictures()).scaled((64, 32)).shape == (32, 64, 3)


@pytest.mark.parametrize(("codec", "pix_fmt", "kept", "remarked"), [
    ("libx264", "yuvj420p", "yuvj420p", False),
    ("libx265", "yuv420p10le", "yuv420p10le", False),
    ("libx264", "yuv422p10le", "yuv422p10le", False),
    ("libx264", "yuv444p", "yuv444p", False),
    ("libx264", "gray", "yuv420p", False),
    ("libx265", "yuv420p12le", "yuv420p10le", True),
    ("ffv1", "bgr0", "yuv444p", True),
    ("ffv1", "yuva420p", "yuv420p", True),
    ("ffv1", "yuv411p", "yuv422p", False),
])  # fmt: skip
def test_pixel_formats_stay_or_become_the_nearest_one(tmp_path, make_video, codec, pix_fmt, kept, remarked):
    options = {"x265-params": "log-level=error"} if codec == "libx265" else {}
    source = Source(make_video(tmp_path / "v.mkv", 3, codec=codec, pix_fmt=pix_fmt, options=options))
    pictures = list(source.pictures())
    assert {picture.frame.format.name for picture in pictures} == {source.first.format.name} == {kept}
    assert [remark.code for remark in source.remarks] == ["pixel-format"] * remarked
    assert [picture.time_s for picture in pictures] == [Fraction(n, 25) for n in range(3)]


def test_an_interlaced_video_has_whole_pictures_at_the_same_times(tmp_path, make_video):
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
    source = Source(make_video(tmp_path / "v.mp4", 20, options=options))
    pictures = list(source.pictures())
    assert [picture.time_s for picture in pictures] == [Fraction(n, 25) for n in range(20)]
    assert not any(picture.frame.interlaced_frame for picture in pictures)
    assert [remark.code for remark in source.remarks] == ["interlaced"]
    assert all(same_samples(a.frame, b.frame) for a, b in zip(source.pictures(12), pictures[12:], strict=True))
