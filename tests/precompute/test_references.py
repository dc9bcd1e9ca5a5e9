"""Lip references, the mouth at rest, and the order of idle frames."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from engine.models.morphable import mouth_opening
from engine.models.weights import load_face_model
from engine.paint.composite import cut
from precompute.bank import FINE_FROM_PX, build, choose, good_frames
from precompute.fit import FaceFit
from precompute.idle import painted, resting_lower_face
from precompute.rest import mirrored, rest_expression


def a_fit(lip_error):
    zeros = np.zeros((len(lip_error), 50), np.float32)
    return FaceFit(zeros, zeros, zeros[:, :6], np.zeros((len(lip_error), 3), np.int32), lip_error, lip_error)


def a_talk(frames):
    """Openings [T], lips [T, 40, 3] whose mouth opens so far, and turns of the head [T, 3]."""
    rng = np.random.default_rng(0)
    opening = rng.permutation(np.linspace(0, 1, frames))
    lips = 0.01 * rng.standard_normal((frames, 40, 3))
    lips[:, 20:, 1] += opening[:, None]
    return opening, lips, 0.1 * rng.standard_normal((frames, 3))


def test_references_spread_over_the_openings_from_closed_to_open():
    opening, lips, turns = a_talk(400)
    chosen = choose(opening, lips, turns, np.ones(400, bool))
    assert len(set(chosen.tolist())) == 25
    assert (np.diff(opening[chosen]) > 0).all() and opening[chosen[0]] == 0 and opening[chosen[-1]] == 1
    assert np.diff(opening[chosen]).max() < 1 / 12 + 0.01


@pytest.mark.parametrize("what", ["teeth", "profile"])
def test_a_rare_shape_of_the_lips_and_a_rare_turn_of_the_head_become_references(what):
    opening, lips, turns = a_talk(400)
    middle = int(np.argsort(opening)[210])  # not one of those that are evenly spaced
    if what == "teeth":
        lips[middle, :, 0] += 0.3
    else:
        turns[middle, 1] += 1.0
    assert middle in choose(opening, lips, turns, np.ones(400, bool))


def test_bad_frames_are_never_references():
    good = np.ones(200, bool)
    good[::2] = False
    assert (choose(*a_talk(200), good) % 2 == 1).all()


def test_few_good_frames_are_all_references_once():
    good = np.zeros(200, bool)
    good[50:60] = True
    assert sorted(choose(*a_talk(200), good).tolist()) == list(range(50, 60))


def test_blurred_untracked_badly_fitted_and_turned_frames_are_bad():
    error = np.full(100, 0.4, np.float32)
    error[10] = 2
    tracked, sharpness, yaw = np.ones(100, bool), np.full(100, 200.0), np.zeros(100)
    tracked[20], sharpness[30], yaw[40] = False, 50, 35
    sharpness[20] = np.nan
    assert set(np.flatnonzero(~good_frames(a_fit(error), tracked, sharpness, yaw))) == {10, 20, 30, 40}


def test_a_clip_that_is_bad_throughout_still_gives_references():
    error = np.linspace(0.1, 5, 60).astype(np.float32)
    sharpness = np.linspace(1, 500, 60)
    assert good_frames(a_fit(error), np.ones(60, bool), sharpness, np.linspace(-60, 60, 60)).sum() >= 25


@pytest.mark.parametrize(
    ("size", "quality", "side"),
    [(FINE_FROM_PX, "best", 512), (FINE_FROM_PX - 2, "best", 256), (700, "best", 512), (700, "fast", 256)],
)
def test_crops_are_as_fine_as_the_face_is_large_and_the_quality_wants(size, quality, side):
    fit = a_fit(np.full(30, 0.4, np.float32))
    fit.crop[:] = (10, 20, size)
    fit.crop[0, 2] = 5000  # one frame does not decide
    frame = np.random.default_rng(0).integers(0, 256, (800, 900, 3), np.uint8)
    bank = build(np.arange(5, 8), fit, lambda index: frame + np.uint8(index), quality)
    assert bank["crops"].shape == (3, side, side, 3)
    expected = [cut(frame + np.uint8(index), fit.crop[5], side) for index in (5, 6, 7)]
    assert np.array_equal(bank["crops"].numpy(), np.stack(expected)) and bank["frames"].tolist() == [5, 6, 7]


def test_mirroring_twice_is_nothing():
    mirror = mirrored(load_face_model())
    assert (mirror[mirror] == torch.arange(468)).float().mean() > 0.98
    assert mirror[61] == 291  # the corners of the mouth


def talking(frames=200, *, closing=True):
    """Coefficients of a person who talks with pauses; without `closing` the lips never meet."""
    model = load_face_model()
    generator = torch.Generator().manual_seed(0)
    alpha = (torch.randn(1, 50, generator=generator) * 0.5).expand(frames, -1)
    opening_of = torch.stack([mouth_opening(model.vertices(alpha[0], x)) for x in torch.eye(50) * 1.5])
    widest = int((opening_of - mouth_opening(model.vertices(alpha[0], torch.zeros(50)))).abs().argmax())
    beta = torch.zeros(frames, 50)
    swing = torch.sin(torch.arange(frames) / 2.5)
    swing[80:120] = -1.0  # a pause
    sign = 1.0 if opening_of[widest] > mouth_opening(model.vertices(alpha[0], torch.zeros(50))) else -1.0
    beta[:, widest] = sign * (swing + (0.0 if closing else 2.0))
    return model, alpha, beta


@pytest.mark.parametrize("closing", [True, False])
def test_rest_is_a_closed_mouth_even_if_the_clip_never_shows_one(closing):
    model, alpha, beta = talking(closing=closing)
    rest = rest_expression(model, alpha, beta, np.ones(len(beta), bool))
    opening = mouth_opening(model.vertices(alpha, beta))
    at_rest = mouth_opening(model.vertices(alpha[0], rest))
    assert at_rest <= max(0.02, float(opening.min()) + 0.005)
    assert rest.abs().max() < 6


def test_rest_is_symmetric_in_the_lower_face():
    model, alpha, beta = talking()
    beta = beta + torch.randn(50, generator=torch.Generator().manual_seed(3)) * 0.5
    rest = rest_expression(model, alpha, beta, np.ones(len(beta), bool))
    mirror = mirrored(model)

    def skew(coefficients):
        offsets = model.expression(coefficients)
        other = offsets[mirror] * torch.tensor([-1.0, 1.0, 1.0])
        return (offsets - other)[model.lower].norm()

    assert skew(rest) < 0.5 * skew(beta.mean(0))


def test_a_resting_lower_face_follows_the_shape_of_each_frame():
    model = load_face_model()
    alpha = torch.randn(7, 50, generator=torch.Generator().manual_seed(1))
    lower = resting_lower_face(model, alpha, torch.zeros(50))
    assert lower.shape == (7, int(model.lower.sum()), 3)
    assert torch.allclose(lower[3], (model.mean + model.shape(alpha[3]))[model.lower])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_idle_frames_come_in_order_and_a_painter_is_never_shared(workers):
    def make_painter():
        busy = threading.Lock()

        def paint(index, lower):
            assert busy.acquire(blocking=False), "two threads in one painter"
            time.sleep(0.0005 * (index % 3))
            busy.release()
            return np.array([index, int(lower[0, 0])])

        return paint

    lower = torch.arange(61.0)[:, None, None].expand(-1, 4, 3)
    frames = list(painted(lower, [make_painter() for _ in range(workers)]))
    assert [frame.tolist() for frame in frames] == [[n, n] for n in range(61)]


def test_a_failing_painter_stops_the_work():
    def paint(index, lower):
        if index == 20:
            raise RuntimeError("out of paint")
        return np.zeros(1)

    with pytest.raises(RuntimeError, match="out of paint"):
        list(painted(torch.zeros(500, 4, 3), [paint, paint]))
