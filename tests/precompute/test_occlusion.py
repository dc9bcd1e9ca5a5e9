"""Objects before the mouth are detected in real frames of the bundled speaker; they are not those of training."""

from __future__ import annotations

import numpy as np
import pytest

from precompute.occlusion import Occlusion, covered_frames, mouth_patch
from precompute.scan import scan
from training.evaluate.occlusion import OBJECTS, PLACES, lay_over, skin_of


@pytest.fixture(scope="module")
def clean(face_frames):
    return scan(face_frames)


@pytest.fixture(scope="module")
def meshes(clean):
    return clean.landmarks.points


@pytest.fixture(scope="module")
def occlusion():
    return Occlusion()


def covered_by(name, place, frames, meshes, *, seed=0):
    """Frames with an object, and the shares of the lips that it covers."""
    draw = OBJECTS[name](np.random.default_rng(seed), skin_of(frames[0], meshes[0]))
    images, shares = zip(
        *(lay_over(*pair, draw, PLACES[place], 0.2) for pair in zip(frames, meshes, strict=True)), strict=True
    )
    return list(images), np.array(shares)


def test_a_clip_without_objects_has_no_covered_frame(clean):
    assert clean.mouth_covered.max() < 0.15
    assert not covered_frames(clean.mouth_covered).any()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_before_the_mouth_is_detected_also_where_it_stays_for_the_whole_clip(
    name, seed, face_frames, meshes, occlusion
):
    images, truth = covered_by(name, "mouth", face_frames[::6], meshes[::6], seed=seed)
    assert truth.min() > 0.5
    shares = np.array([occlusion.share(*pair) for pair in zip(images, meshes[::6], strict=True)])
    assert covered_frames(shares).mean() >= 0.9


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_that_only_touches_the_chin_is_none(name, face_frames, meshes, occlusion):
    images, truth = covered_by(name, "chin", face_frames[::6], meshes[::6])
    assert truth.max() == 0
    shares = np.array([occlusion.share(*pair) for pair in zip(images, meshes[::6], strict=True)])
    assert not covered_frames(shares).any()


@pytest.mark.slow
def test_the_frames_with_a_visiting_object_are_found_and_the_others_are_not(face_frames, meshes):
    images, _ = covered_by("mug", "mouth", face_frames, meshes)
    clip = scan(face_frames[:30] + images[30:50] + face_frames[50:])
    covered = covered_frames(clip.mouth_covered)
    assert covered[30:50].all()
    assert not covered[:26].any() and not covered[54:].any()


def test_the_patch_shows_the_same_lips_in_a_picture_of_another_size(face_frames, meshes):
    image, mesh = face_frames[0], meshes[0]
    half = image.reshape(180, 2, 180, 2, 3).mean((1, 3)).astype(np.uint8)
    difference = np.abs(mouth_patch(image, mesh).astype(int) - mouth_patch(half, mesh / 2))
    assert difference.mean() < 6


def test_the_colour_of_the_light_does_not_cover_a_mouth(face_frames, meshes, occlusion):
    for tint in ((1.0, 0.75, 0.5), (0.5, 0.6, 0.6), (0.3, 0.3, 0.3)):
        lit = (face_frames[0] * np.array(tint)).astype(np.uint8)
        assert occlusion.share(lit, meshes[0]) < 0.15


def test_a_finding_takes_its_whole_approach_and_a_single_frame_is_none():
    share = np.zeros(40)
    share[5] = 0.9
    share[18:26] = 0.3, 0.35, 0.8, 0.9, 0.9, 0.9, 0.3, 0.25
    assert set(np.flatnonzero(covered_frames(share))) == set(range(16, 28))


def test_frames_without_a_face_are_not_covered():
    assert not covered_frames(np.full(20, np.nan)).any()
