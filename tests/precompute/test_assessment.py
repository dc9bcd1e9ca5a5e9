"""A clip is assessed from landmarks and measures alone; these scans are synthetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from engine.errors import (
    ClipTooShortError,
    FaceTooSmallError,
    MouthCoveredError,
    NoFaceError,
    SeveralFacesError,
    StillPictureError,
    YawTooLargeError,
)
from engine.models.weights import load_face_model
from precompute.assessment import assess, find_shots
from precompute.person import fit_person
from precompute.scan import Scan, face_height
from precompute.track import POINTS, Landmarks

WIDTH, HEIGHT = 1280, 720
LOWER_LIP = (87, 14, 317)


def make_scan(frames=300, *, face_px=250.0, yaw_deg=0.0, opening=None, seed=0, centre=(640.0, 360.0), **changes):
    """A scan of a head that turns by yaw_deg [T] and opens its mouth by opening [T] (model units)."""
    model = load_face_model()
    rng = np.random.default_rng(seed)
    yaw = np.broadcast_to(np.asarray(yaw_deg, float), frames)
    opening = 0.06 * (1 + np.sin(np.arange(frames) / 3)) if opening is None else np.broadcast_to(opening, frames)
    face = np.repeat(model.mean.numpy()[None].astype(np.float64), frames, 0)
    face[:, list(LOWER_LIP), 1] = face[:, [82, 13, 312], 1] + opening[:, None]
    turned = np.einsum("tij,tvj->tvi", Rotation.from_euler("y", -yaw[:, None], degrees=True).as_matrix(), face)
    scale = face_px / float(face_height(np.pad(face[0], ((0, POINTS - 468), (0, 0)))))
    sway = 2 * np.sin(np.arange(frames) / 20)[:, None] * np.array([1, 0.3])
    points = np.zeros((frames, POINTS, 3), np.float32)
    points[:, :468] = turned * scale
    points[..., :2] += (np.asarray(centre) + sway)[:, None] if np.ndim(centre) == 1 else np.asarray(centre)[:, None]
    base = rng.integers(40, 200, (36, 64))
    fields = {
        "landmarks": Landmarks(points, np.ones(frames, np.int32)),
        "second_px": np.zeros(frames, np.float32),
        "change": np.full(frames, 0.02, np.float32),
        "sharpness": np.full(frames, 200.0, np.float32),
        "brightness": np.full(frames, 120.0, np.float32),
        "mouth_covered": np.zeros(frames, np.float32),
        "thumbnails": (base + rng.integers(-2, 3, (frames, 36, 64))).astype(np.uint8),
        "width": WIDTH,
        "height": HEIGHT,
    }
    return Scan(**(fields | changes))


def without_face(scan, where):
    scan.landmarks.points[where] = np.nan
    scan.landmarks.faces[where] = 0
    return scan


def assessed(scan, **options):
    return assess(scan, load_face_model(), **options)


def codes(assessment):
    return {remark.code for remark in assessment.remarks}


def test_a_good_clip_is_used_whole_and_without_remarks():
    assessment = assessed(make_scan(400))
    assert assessment.use == slice(0, 400)
    assert assessment.remarks == ()
    assert assessment.face_px == pytest.approx(250, rel=0.01)
    assert np.abs(assessment.yaw_deg).max() < 3


@pytest.mark.parametrize("yaw", [-40, -20, 20, 40])
def test_yaw_is_measured_in_degrees(yaw):
    assessment = assessed(make_scan(100, yaw_deg=yaw))
    assert np.median(assessment.yaw_deg) == pytest.approx(yaw, abs=3)


def test_mouth_opening_does_not_depend_on_pose_and_size():
    straight, turned = assessed(make_scan(200)), assessed(make_scan(200, yaw_deg=25, face_px=400))
    assert np.ptp(straight.opening) > 0.08
    assert np.allclose(straight.opening, turned.opening, atol=0.005)


def test_a_clip_below_two_seconds_is_too_short():
    with pytest.raises(ClipTooShortError, match=r"1\.96 s.*at least 2 s"):
        assessed(make_scan(49))
    assert assessed(make_scan(50)).usable_s == 2.0


def test_no_face_at_all():
    with pytest.raises(NoFaceError, match="no face was found in any frame"):
        assessed(without_face(make_scan(100), slice(None)))


def test_a_face_that_is_too_rarely_seen_is_reported_with_its_time():
    scan = without_face(make_scan(200), np.arange(200) % 40 > 20)
    with pytest.raises(NoFaceError, match="there is no face in") as caught:
        assessed(scan)
    assert caught.value.at_s == pytest.approx(21 / 25)


def test_a_second_speaker_of_similar_size_is_refused_at_the_time_of_appearance():
    second = np.zeros(300, np.float32)
    second[120:] = 220
    with pytest.raises(SeveralFacesError, match="crop or cut") as caught:
        assessed(make_scan(300, second_px=second))
    assert caught.value.at_s == pytest.approx(120 / 25)


def test_a_short_visit_is_cut_off():
    second = np.zeros(400, np.float32)
    second[330:] = 220
    assessment = assessed(make_scan(400, second_px=second))
    assert assessment.use == slice(0, 330)
    assert "part" in codes(assessment)
    assert set(assessment.problem[330:]) == {"several"}


def test_a_rival_that_the_tracker_loses_for_moments_stays_a_rival():
    second = np.where(np.arange(300) % 10 < 5, 230, 0).astype(np.float32)
    with pytest.raises(SeveralFacesError):
        assessed(make_scan(300, second_px=second))


def test_a_small_passer_by_is_tolerated_and_mentioned():
    second = np.zeros(300, np.float32)
    second[100:140] = 90
    assessment = assessed(make_scan(300, second_px=second))
    assert assessment.use == slice(0, 300)
    assert codes(assessment) == {"bystander"}


def test_a_small_face_is_refused_with_its_size():
    with pytest.raises(FaceTooSmallError, match=r"80 px high.*at least 120 px"):
        assessed(make_scan(100, face_px=80))


def test_size_counts_in_pixels_of_the_source():
    assert assessed(make_scan(300, face_px=100), source_scale=3.0).face_px == pytest.approx(300, rel=0.01)
    with pytest.raises(FaceTooSmallError):
        assessed(make_scan(300, face_px=200), source_scale=0.5)


def test_a_rather_small_face_is_mentioned():
    assert codes(assessed(make_scan(300, face_px=150))) == {"small"}


def test_a_head_turned_away_is_refused_with_the_angle():
    with pytest.raises(YawTooLargeError, match=r"more than 45°.*up to 5\d°"):
        assessed(make_scan(100, yaw_deg=55))


def test_only_the_frontal_part_of_a_clip_is_used():
    yaw = np.zeros(400)
    yaw[300:] = 60
    assessment = assessed(make_scan(400, yaw_deg=yaw))
    assert assessment.use == slice(0, 300)
    assert set(assessment.problem[305:]) == {"yaw"}


def test_a_wide_range_of_yaw_is_mentioned():
    assert "yaw" in codes(assessed(make_scan(400, yaw_deg=40 * np.sin(np.arange(400) / 30))))


def test_the_longest_shot_is_used_and_the_cut_is_named():
    change = np.full(500, 0.02, np.float32)
    change[180] = 0.6
    assessment = assessed(make_scan(500, change=change))
    assert assessment.shots == (slice(0, 180), slice(180, 500))
    assert assessment.use == slice(180, 500)
    assert "cuts at 7.20 s" in next(remark.text for remark in assessment.remarks if remark.code == "part")


def test_shots_of_one_second_are_no_clip():
    change = np.full(200, 0.02, np.float32)
    change[::25] = 0.6
    with pytest.raises(ClipTooShortError, match=r"lasts 1\.00 s.*cut at 1\.00, 2\.00"):
        assessed(make_scan(200, change=change))


def jump_cut(jump_px, picture):
    """A cut at frame 150 inside one scene: the head jumps and some of the picture changes."""
    centre = np.full((300, 2), (600.0, 360.0))
    centre[150:] += jump_px
    scan = make_scan(300, centre=centre)
    scan.thumbnails[150:] += np.uint8(picture)
    return scan


def test_a_cut_inside_one_scene_is_found_by_the_jump_of_the_head():
    assert find_shots(jump_cut(60, 20)) == (slice(0, 150), slice(150, 300))


@pytest.mark.parametrize(("jump_px", "picture"), [(60, 0), (0, 20), (10, 20)])
def test_a_fast_head_or_a_change_of_light_alone_is_no_cut(jump_px, picture):
    assert find_shots(jump_cut(jump_px, picture)) == (slice(0, 300),)


def test_gaps_of_three_frames_are_bridged_and_longer_ones_are_not():
    assert assessed(without_face(make_scan(200), slice(100, 103))).use == slice(0, 200)
    assert assessed(without_face(make_scan(200), slice(120, 126))).use == slice(0, 120)


def test_a_long_clip_is_limited_and_ends_with_a_face():
    assessment = assessed(without_face(make_scan(800), slice(498, 501)), max_frames=500)
    assert assessment.use == slice(0, 498)
    assert "no more than 20 s are kept" in assessment.remarks[0].text


@pytest.mark.parametrize(
    ("changes", "options", "code"),
    [
        ({"opening": 0.004}, {}, "mouth-still"),
        ({"opening": 0.12 + 0.05 * np.sin(np.arange(300))}, {}, "mouth-open"),
        ({"sharpness": np.full(300, 20.0)}, {}, "blur"),
        ({"brightness": np.full(300, 30.0)}, {}, "dark"),
        ({"brightness": np.full(300, 240.0)}, {}, "bright"),
        ({}, {"has_audio": False}, "silent"),
    ],
)
def test_what_will_be_seen_in_the_avatar_is_mentioned(changes, options, code):
    assert codes(assessed(make_scan(300, **changes), **options)) == {code}


def test_few_seconds_are_mentioned():
    assert codes(assessed(make_scan(200))) == {"short"}


def test_the_assessment_leaves_the_scan_untouched():
    scan = make_scan(100)
    before = scan.landmarks.points.copy()
    assessed(scan)
    assert torch.equal(torch.from_numpy(before), torch.from_numpy(scan.landmarks.points))


# ---- stills, jumps, orientation, colours


def frozen(scan, *where):
    for part in where:
        scan.thumbnails[part] = scan.thumbnails[part.start]
    return scan


@pytest.mark.parametrize("where", [slice(100, 160), slice(0, 60), slice(240, 300)])
def test_a_still_inside_a_clip_is_not_used_and_its_time_is_said(where):
    assessment = assessed(frozen(make_scan(300), where))
    assert set(assessment.problem[where]) == {"still"}
    assert assessment.use.stop <= where.start or assessment.use.start >= where.stop
    (text,) = [remark.text for remark in assessment.remarks if remark.code == "still"]
    assert f"from {where.start / 25:.2f} s on" in text


def test_slides_and_photographs_are_refused():
    with pytest.raises(StillPictureError, match="stands still in 100 % of the clip"):
        assessed(frozen(make_scan(300), slice(0, 300)))
    with pytest.raises(StillPictureError):  # three slides
        assessed(frozen(make_scan(300), slice(0, 100), slice(100, 200), slice(200, 300)))


def test_frames_that_are_shown_twice_are_no_still():
    scan = make_scan(300)
    scan.thumbnails[1::2] = scan.thumbnails[::2]  # 12.5 fps
    assert assessed(scan).use == slice(0, 300)


def test_a_jump_of_the_time_stamps_is_a_cut():
    assessment = assessed(make_scan(400, jumps=(150,)))
    assert assessment.use == slice(150, 400) and assessment.shots == (slice(0, 150), slice(150, 400))
    assert {"time-jump", "part"} <= codes(assessment)


def test_a_picture_that_is_not_upright_is_remarked_with_the_remedy():
    (text,) = [remark.text for remark in assessed(make_scan(300, turns=2)).remarks if remark.code == "turned"]
    assert "turn the video clockwise by 180°" in text
    with pytest.raises(NoFaceError, match="turn the video clockwise by 90°"):
        assessed(without_face(make_scan(300, turns=1), slice(None)))


def test_mapped_colours_are_remarked():
    assert codes(assessed(make_scan(400), wide_colours=True)) == {"hdr"}


# ---- slow changes to another person


def two_people(frames=400, change=slice(200, 201), every=20):
    """Embeddings of one person, and from `change` on of another; within it, mixed."""
    rng = np.random.default_rng(0)
    one, two = np.linalg.qr(rng.standard_normal((128, 2)))[0].T
    share = np.interp(np.arange(frames), [change.start, change.stop], [0, 1])
    mixed = [(1 - a) * one + a * (0.86 * one + 0.5 * two) + 0.01 * rng.standard_normal(128) for a in share]
    return {n: mixed[n] / np.linalg.norm(mixed[n]) for n in range(0, frames, every)}


@pytest.mark.parametrize(
    "change", [slice(200, 201), slice(190, 215), slice(170, 230), slice(100, 120), slice(330, 360)]
)
def test_a_slow_change_to_another_person_ends_the_shot_before_it_begins(change):
    assessment = assessed(make_scan(400, identities=two_people(change=change)))
    use = assessment.use
    assert use.stop <= change.start + 2 or use.start >= change.stop - 2
    assert use.stop - use.start > 0.75 * max(change.start, 400 - change.stop) - 40
    assert "person" in codes(assessment)


def test_one_person_whose_face_is_blurred_for_a_moment_stays_one_person():
    identities = two_people(change=slice(399, 400))
    identities[200] = np.roll(identities[200], 1) * 0.3 + identities[200] * 0.7
    assert assessed(make_scan(400, identities=identities)).use == slice(0, 400)


def with_object(scan, *stretches):
    for stretch in stretches:
        scan.mouth_covered[stretch] = 0.9
    return scan


def test_a_stretch_without_the_object_before_the_mouth_is_used_and_the_object_is_told_with_its_times():
    assessment = assessed(with_object(make_scan(400), slice(100, 130), slice(390, 400)))
    assert assessment.use == slice(132, 388)
    [remark] = [remark for remark in assessment.remarks if remark.code == "covered"]
    assert "from 3.9 to 5.3 s, 15.5 to 16.0 s" in remark.text


def test_a_mouth_that_is_covered_for_most_of_the_clip_is_refused():
    with pytest.raises(MouthCoveredError, match="covers the mouth in 100 % of the clip.*without a hand"):
        assessed(with_object(make_scan(300), slice(None)))
    with pytest.raises(MouthCoveredError, match=r"stretch .* lasts 1\.\d\d s.*an object covers the mouth in"):
        assessed(with_object(make_scan(200), *(slice(n, n + 10) for n in range(40, 200, 50))))


@pytest.mark.slow
def test_a_mouth_that_is_hardly_touched_gives_no_reference():
    scan = make_scan(200)
    scan.mouth_covered[50:80] = 0.25
    assessment = assessed(scan)
    assert assessment.use == slice(0, 200)
    good = fit_person(scan, assessment, (WIDTH, HEIGHT), load_face_model()).good
    assert not good[50:80].any() and good[:50].sum() > 25
