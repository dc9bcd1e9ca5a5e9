"""Pictures of the GPU's painter are those of the CPU's: alike in the painted part, bit-equal elsewhere, in any batch.

The device is the CPU here. All code is that of a GPU but the rasteriser's kernels, which have their own tests.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from on_tensors import OnTensors
from painted import ALIKE_DB, check, painted_together, psnr

from engine.audio import read_speech
from engine.avatar.avatar import Avatar
from engine.backends.cpu import CpuBackend
from engine.errors import AvatarFileError
from engine.live.pipeline import AvatarPipeline
from engine.models.renderer import RendererConfig
from engine.models.weights import load_face_model
from engine.paint.painter import FittedVideo

WINDOWS = RendererConfig()


@pytest.fixture(scope="module")
def model():
    return load_face_model()


@pytest.fixture(scope="module")
def backend():
    return OnTensors(CpuBackend.embedded())


@pytest.fixture(scope="module")
def reference():
    return CpuBackend.embedded(windows=WINDOWS, bfloat16=False)


@pytest.fixture(scope="module")
def avatar(avatar_path):
    return Avatar.open(avatar_path, quality="fast")


@pytest.fixture(scope="module")
def video(avatar):
    return FittedVideo.of(avatar)


@pytest.fixture(scope="module")
def lips(avatar, model):
    """lips(i): those of another frame than frame i."""
    vertices = model.vertices(avatar.alpha, avatar.beta)[:, model.lower]
    return lambda index: vertices[(index + 37) % len(vertices)]


@pytest.mark.parametrize("place", [0, 1, 60, -1])
def test_a_picture_is_what_the_cpu_paints(backend, reference, avatar, video, model, lips, place):
    index = place % avatar.frames  # at both ends there are fewer neighbours
    painter = backend.painter(video, avatar.bank, model)
    picture = painter.paint(index, lips(index))
    expected = reference.painter(video, avatar.bank, model).paint(index, lips(index))
    check(picture, expected, video.read(index))


@pytest.fixture(scope="module")
def large(video, avatar):
    """The video at twice its size, with fine references: as of a face of more than 256 px."""
    fine = avatar.bank.crops.repeat_interleave(2, 1).repeat_interleave(2, 2)
    noise = torch.randint(-20, 21, fine.shape, generator=torch.Generator().manual_seed(0))
    bank = replace(avatar.bank, crops=(fine.int() + noise).clamp(0, 255).byte())

    def read(index):
        return cv2.resize(video.read(index), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)

    return replace(video, read=read, crop=2 * video.crop), bank


@pytest.mark.parametrize("place", [0, 60])
def test_a_fine_picture_is_what_the_cpu_paints(backend, reference, large, model, lips, place):
    video, bank = large
    painters = [each.painter(video, bank, model) for each in (backend, reference)]
    for fine in (True, False):
        (picture,), (expected,) = (
            painter.paint_together([(painter, [(place, lips(place))], fine)])[0] for painter in painters
        )
        check(picture, expected, video.read(place))


def test_fine_and_coarse_pictures_come_in_the_order_in_which_they_were_asked_for(
    backend, avatar, video, large, model, lips
):
    coarse, fine = backend.painter(video, avatar.bank, model), backend.painter(*large, model)
    batch = [
        (fine, [(10, lips(10))], True),
        (coarse, [(20, lips(20)), (21, lips(21))], True),
        (fine, [(30, lips(30))], False),
    ]
    together = fine.paint_together(batch)
    for (painter, run, sharp), pictures in zip(batch, together, strict=True):
        for frame, picture in zip(run, pictures, strict=True):
            ((alone,),) = painter.paint_together([(painter, [frame], sharp)])
            assert picture.shape == alone.shape and psnr(picture, alone) > 60


def test_the_room_of_an_avatar_that_has_gone_is_used_again(avatar, video, model, lips):
    backend = OnTensors(CpuBackend.embedded())
    first = backend.painter(video, avatar.bank, model)
    expected = first.paint(20, lips(20))
    bytes_before = backend.batch_painter.device_bytes
    del first
    gc.collect()
    again = backend.painter(video, avatar.bank, model)
    assert backend.batch_painter.device_bytes == bytes_before
    assert np.abs(again.paint(20, lips(20)).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("box", [(0, 0, 200), (40, -60, 300), (400, 380, 230), (-100, -120, 700)])
def test_boxes_of_any_size_and_beyond_the_frame(backend, reference, avatar, video, model, lips, box):
    moved = replace(video, crop=torch.tensor(box, dtype=torch.int32).expand(avatar.frames, 3))
    picture = backend.painter(moved, avatar.bank, model).paint(30, lips(30))
    expected = reference.painter(moved, avatar.bank, model).paint(30, lips(30))
    # The face is not where the box says, so the mask's edge lies across strong contrasts and its half levels show.
    check(picture, expected, video.read(30), 42)


@pytest.mark.parametrize("box", [(2000, 50, 256), (-900, 50, 256), (50, 2000, 256), (50, -900, 256)])
def test_a_box_beside_the_frame_changes_nothing(backend, avatar, video, model, lips, box):
    moved = replace(video, crop=torch.tensor(box, dtype=torch.int32).expand(avatar.frames, 3))
    picture = backend.painter(moved, avatar.bank, model).paint(30, lips(30))
    assert np.array_equal(picture, video.read(30))


@pytest.mark.slow
def test_pictures_of_people_in_one_batch_are_independent(backend, reference, avatar, video, model, lips):
    other = replace(video, read=lambda index: 255 - video.read(index), crop=video.crop - torch.tensor([7, 9, -11]))
    negative = replace(avatar.bank, crops=255 - avatar.bank.crops)
    one = backend.painter(video, avatar.bank, model)
    two = backend.painter(other, negative, model)
    batch = [(one, 10, lips(10)), (two, 10, lips(10)), (two, 50, lips(20)), (one, 11, lips(11))]
    for picture, (painter, index, lower) in zip(painted_together(batch), batch, strict=True):
        own = (video, avatar.bank) if painter is one else (other, negative)
        expected = reference.painter(*own, model).paint(index, lower)
        check(picture, expected, own[0].read(index))
        assert psnr(picture, painter.paint(index, lower)) > 60


def test_frames_come_up_once_and_room_for_few_is_enough(backend, reference, avatar, video, model, lips):
    read = []
    counted = replace(video, read=lambda index: read.append(index) or video.read(index))
    painter = backend.painter(counted, avatar.bank, model, cached_frames=6)
    for index in (20, 20, 21):
        painter.paint(index, lips(index))
    assert {18, 19, 20, 21, 22, 23} <= set(read) and max(Counter(read).values()) == 1
    places = [20, 60, 22, 90]
    for index, picture in zip(places, painted_together([(painter, i, lips(i)) for i in places]), strict=True):
        expected = reference.painter(video, avatar.bank, model).paint(index, lips(index))
        check(picture, expected, video.read(index))


def test_a_returned_picture_is_never_painted_over(backend, avatar, video, model, lips):
    painter = backend.painter(video, avatar.bank, model)
    first = painter.paint(10, lips(10))
    kept = first.copy()
    painted_together([(painter, 10, lips(50)), (painter, 40, lips(40))])
    assert np.array_equal(first, kept)
    assert np.array_equal(painter.paint(10, lips(10)), kept)


def test_a_pipeline_paints_with_the_painter_of_its_backend(backend, reference, avatar, model, lips):
    on_device, on_cpu = (AvatarPipeline(b, avatar, model) for b in (backend, reference))
    (picture,), (expected,) = (p.perform(p.paint_job(20, lips(20))) for p in (on_device, on_cpu))
    check(picture, expected, FittedVideo.of(avatar).read(20))


def test_frames_are_fetched_ahead_in_both_directions(backend, avatar, video, model, lips):
    read = {}
    counted = replace(
        video, read=lambda index: read.setdefault(index, threading.current_thread()) and video.read(index)
    )
    painter = backend.painter(counted, avatar.bank, model)
    for index in (20, 21, 22, 23, 22, 21, 20, 19, 18, 17):
        painter.paint(index, lips(index))
    here = {index for index, thread in read.items() if thread is threading.current_thread()}
    assert here == {0, 18, 19, 20, 21, 22}, "for the size, and for the first picture; all others came from the pool"
    assert {15, 16, 17, 23, 24, 25} <= set(read)


def test_a_frame_that_cannot_be_read_fails_its_picture_and_no_other(backend, avatar, video, model, lips):
    def read(index):
        if index in (23, 61):
            raise AvatarFileError(f"holds a video that breaks off at frame {index}")
        return video.read(index)

    painter = backend.painter(replace(video, read=read), avatar.bank, model, cached_frames=6)
    first = painter.paint(20, lips(20))
    for index, broken in ((21, 23), (21, 23), (60, 61), (60, 61)):  # fetched ahead, and when it was wanted
        with pytest.raises(AvatarFileError, match=f"frame {broken}"):
            painter.paint(index, lips(index))
    # Its frames have other places in the atlas now, where coordinates round differently.
    assert np.abs(painter.paint(20, lips(20)).astype(int) - first).max() <= 1


@pytest.mark.slow
def test_a_pipeline_measures_batches_of_pictures(backend, avatar, model):
    costs = AvatarPipeline(backend, avatar, model).warm()
    assert costs.seconds.keys() == {"lips", "fast", "idle"} and costs.seconds["fast"][1] > 0


@pytest.mark.slow
def test_speech_looks_as_on_the_cpu(backend, reference, avatar, model, speech_wav):
    pcm = read_speech(speech_wav)[24_000:48_000]
    spoken = [list(AvatarPipeline(b, avatar, model).speak(pcm)) for b in (backend, reference)]
    assert len(spoken[0]) == len(spoken[1]) > 12
    assert all(psnr(unit.image, expected.image) > ALIKE_DB for unit, expected in zip(*spoken, strict=True))
