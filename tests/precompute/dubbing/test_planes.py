"""A rectangle of a picture as RGB, and back: samples that nobody painted stay bit for bit."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from drawings import drawing, planes_of, same_samples

from precompute.dubbing.planes import Region, edited
from precompute.dubbing.source import Source

MATRICES = {"bt709": 1, "bt601": 6, "bt2020": 9}
ORIENTATIONS = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0)]
FORMATS = [
    ("libx264", "yuv420p"), ("libx264", "yuvj420p"), ("libx264", "yuv422p"), ("libx264", "yuv444p"),
    ("libx264", "yuv422p10le"), ("libx265", "yuv420p10le"), ("libx265", "yuv444p10le"),
]  # fmt: skip


def blocks(number, size):
    """Colours of skin and cloth in blocks, without fine detail."""
    width, height = size
    rng = np.random.default_rng(number)
    coarse = rng.integers(40, 216, (height // 16, width // 16, 3), np.uint8)
    return coarse.repeat(16, 0).repeat(16, 1)


@pytest.fixture(scope="session")
def picture_of(make_video, tmp_path_factory):
    """picture_of(codec, pix_fmt, ...): the first picture of a video that is nearly lossless."""

    def make(codec="libx264", pix_fmt="yuv420p", *, colours=(1, 1, 1, 1), **facts):
        options = {"crf": "2"} if codec == "libx264" else {"x265-params": "log-level=error:crf=2"}
        path = tmp_path_factory.mktemp("video") / "v.mkv"
        if facts.get("matrix"):
            path = path.with_suffix(".mp4")
        colours = (*colours[:3], 2) if pix_fmt.startswith("yuvj") else colours
        return next(
            Source(
                make_video(path, 2, codec=codec, pix_fmt=pix_fmt, options=options, colours=colours, **facts)
            ).pictures()
        )

    return make


@pytest.mark.parametrize(("codec", "pix_fmt"), FORMATS)
def test_unpainted_pixels_leave_every_sample_as_it_was(picture_of, codec, pix_fmt):
    picture = picture_of(codec, pix_fmt)
    region = Region(picture, (11, 9, 61, 50))
    assert same_samples(edited(picture, [(region, region.rgb, 1.0)]), picture.frame)
    assert same_samples(edited(picture, [(region, 255 - region.rgb, 0.0)]), picture.frame)


@pytest.mark.parametrize(("codec", "pix_fmt"), FORMATS)
def test_samples_beyond_the_painted_pixels_stay_bit_for_bit(picture_of, codec, pix_fmt):
    picture = picture_of(codec, pix_fmt)
    before = [samples.copy() for samples in planes_of(picture.frame)]
    region = Region(picture, (10, 10, 60, 50))
    painted = region.rgb.copy()
    painted[10:20, 12:30] = 255 - painted[10:20, 12:30]
    after = edited(picture, [(region, painted, 1.0)])
    x, y = region.left + 12, region.top + 10
    for number, (old, new) in enumerate(zip(before, planes_of(after), strict=True)):
        assert np.array_equal(old, planes_of(picture.frame)[number])  # the source's own samples
        wide, high = 96 // old.shape[1], 64 // old.shape[0]
        reach = 0 if number == 0 or (wide, high) == (1, 1) else 4  # pixels that a sample of chroma averages over
        rows = slice((y - reach) // high, -(-(y + 10 + reach) // high))
        columns = slice((x - reach) // wide, -(-(x + 18 + reach) // wide))
        assert (old[rows, columns] != new[rows, columns]).mean() > 0.4
        old[rows, columns] = new[rows, columns]
        assert np.array_equal(old, new)


@pytest.mark.parametrize(("codec", "pix_fmt"), FORMATS)
@pytest.mark.parametrize("matrix", MATRICES)
def test_painted_pixels_are_read_back_as_they_were_painted(picture_of, codec, pix_fmt, matrix):
    picture = picture_of(codec, pix_fmt, draw=blocks, colours=(MATRICES[matrix], 1, 1, 1))
    region = Region(picture, (16, 16, 80, 48))
    painted = blocks(7, (64, 32))
    after = Region(replace(picture, frame=edited(picture, [(region, painted, 1.0)])), (16, 16, 80, 48)).rgb
    inner = (np.indices((32, 64)) % 16 // 4 % 3 != 0).all(0)  # off the edges of blocks, where chroma mixes
    assert np.abs(after.astype(int) - painted)[inner].max() <= 4
    half = Region(replace(picture, frame=edited(picture, [(region, painted, 0.5)])), (16, 16, 80, 48)).rgb
    assert np.abs(half.astype(int) - (painted / 2 + region.rgb / 2))[inner].max() <= 4


@pytest.mark.parametrize("colours", [(1, 1, 1, 1), (6, 6, 6, 1), (9, 9, 16, 1), (1, 1, 1, 2), (6, 6, 6, 2)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p10le"])
def test_rgb_is_that_of_the_frames_matrix_and_range(picture_of, colours, pix_fmt):
    """The fixture's colours were converted by FFmpeg."""
    region = Region(picture_of(pix_fmt=pix_fmt, draw=blocks, colours=colours), (0, 0, 96, 64))
    inner = (np.indices((64, 96)) % 16 // 4 % 3 != 0).all(0)
    assert np.abs(region.rgb.astype(int) - blocks(0, (96, 64)))[inner].max() <= 6


def rising(_, size):
    """Red falls and blue rises from row to row."""
    rows = np.linspace(20, 230, size[1]).astype(np.uint8)[:, None].repeat(size[0], 1)
    return np.stack([rows[::-1], np.full_like(rows, 128), rows], -1)


def test_colours_lie_between_the_rows_that_share_them(picture_of):
    region = Region(picture_of(draw=rising), (0, 0, 96, 64))
    difference = (region.rgb.astype(int) - rising(0, (96, 64)))[4:-4]
    assert abs((difference[..., 2] - difference[..., 0]).mean()) < 1


@pytest.mark.parametrize("matrix", ORIENTATIONS)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p"])
def test_regions_are_upright_for_every_display_matrix(picture_of, matrix, pix_fmt):
    a, b, c, d = matrix
    picture = picture_of(pix_fmt=pix_fmt, matrix=[a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])
    width, height = picture.display.size
    whole = Region(picture, (0, 0, width, height))
    assert whole.rgb.shape == (height, width, 3) and (whole.left, whole.top) == (0, 0)
    wanted = drawing(0).transpose(1, 0, 2) if b else drawing(0)
    wanted = wanted[:: -1 if b < 0 or d < 0 else 1, :: -1 if a < 0 or c < 0 else 1]
    assert np.abs(whole.rgb.astype(int) - wanted).mean() < 12
    region = Region(picture, (13, 21, 40, 43))
    assert region.left <= 13 and region.top <= 21
    rows, columns = slice(region.top, None), slice(region.left, None)
    assert np.array_equal(region.rgb, whole.rgb[rows, columns][: region.rgb.shape[0], : region.rgb.shape[1]])
    painted = region.rgb.copy()
    painted[4:12, 6:16] = (200, 90, 60)
    after = Region(replace(picture, frame=edited(picture, [(region, painted, 1.0)])), (0, 0, width, height)).rgb
    assert np.abs(after[rows, columns][6:10, 8:14].astype(int) - (200, 90, 60)).mean() < 12
    after[rows, columns][:16, 2:20] = whole.rgb[rows, columns][:16, 2:20]
    assert np.array_equal(after, whole.rgb)


@pytest.mark.parametrize("aspect", [Fraction(4, 3), Fraction(8, 9)])
def test_regions_of_wide_pixels_are_square(picture_of, aspect):
    picture = picture_of(draw=blocks, aspect=aspect)
    width = picture.display.size[0]
    region = Region(picture, (20, 10, 70, 50))
    assert width == round(96 * aspect)
    grid = ((np.arange(region.rgb.shape[1]) + region.left + 0.5) / aspect).astype(float)
    columns, rows = grid.astype(int), np.arange(region.rgb.shape[0]) + region.top
    wanted = blocks(0, (96, 64))[rows][:, columns]
    inner = (np.abs(grid % 16 - 8) < 4)[None, :] & (np.abs(rows % 16 - 7.5) < 4)[:, None]
    assert np.abs(region.rgb.astype(int) - wanted)[inner].max() <= 6
    assert same_samples(edited(picture, [(region, region.rgb, 1.0)]), picture.frame)
    painted = region.rgb.copy()
    painted[10:30, 10:30] = (200, 90, 60)
    after = Region(replace(picture, frame=edited(picture, [(region, painted, 1.0)])), (20, 10, 70, 50)).rgb
    assert np.abs(after[14:26, 14:26].astype(int) - (200, 90, 60)).mean() <= 3
    assert np.array_equal(after[:, 38:], region.rgb[:, 38:])


@pytest.mark.parametrize("box", [(-20, -20, 9, 9), (90, 60, 300, 300), (5, 5, 5, 5), (0, 0, 1000, 1000)])
def test_regions_are_clipped_to_the_picture(picture_of, box):
    picture = picture_of()
    region = Region(picture, box)
    height, width = region.rgb.shape[:2]
    assert region.left >= 0 and region.top >= 0
    assert 0 < width <= 96 - region.left and 0 < height <= 64 - region.top
    edited(picture, [(region, 255 - region.rgb, 1.0)])


def test_an_odd_size_has_its_last_row_and_column(picture_of):
    picture = picture_of(codec="libx264", pix_fmt="yuv444p", size=(95, 63))
    assert Region(picture, (0, 0, 95, 63)).rgb.shape == (63, 95, 3)
    picture = picture_of(codec="libx264", pix_fmt="yuv420p", size=(94, 62))
    assert Region(picture, (80, 50, 94, 62)).rgb.shape == (12, 14, 3)


def test_several_regions_are_painted_into_one_copy(picture_of):
    picture = picture_of(draw=blocks)
    regions = [Region(picture, (0, 0, 32, 32)), Region(picture, (48, 16, 80, 48))]
    after = edited(picture, [(region, np.full_like(region.rgb, 128), 1.0) for region in regions])
    seen = Region(replace(picture, frame=after), (0, 0, 96, 64)).rgb
    assert np.abs(seen[4:28, 4:28].astype(int) - 128).mean() <= 1
    assert np.abs(seen[20:44, 52:76].astype(int) - 128).mean() <= 1


def test_a_copy_keeps_time_colours_and_side_data(picture_of):
    picture = picture_of(colours=(9, 9, 16, 1), matrix=[0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30])
    copy = edited(picture, [])
    names = ("pts", "time_base", "colorspace", "color_primaries", "color_trc", "color_range")
    assert [getattr(copy, name) for name in names] == [getattr(picture.frame, name) for name in names]
    assert bytes(copy.side_data["DISPLAYMATRIX"]) == bytes(picture.frame.side_data["DISPLAYMATRIX"])
