"""Pictures painted on a device are the CPU's: alike where something was painted, bit-equal elsewhere, in any company.

The device is the CPU here: all but the rasteriser's kernel, which has tests of its own, is the same code.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from painted import ALIKE_DB, check, psnr

from engine.audio import read_speech
from engine.avatar.avatar import Avatar
from engine.backends import graphs
from engine.backends.cpu import CpuBackend
from engine.errors import AvatarFileError, SettingError
from engine.live.job import PaintJob
from engine.live.pipeline import AvatarPipeline
from engine.models.morphable import load_face_model
from engine.models.renderer import RendererConfig
from engine.paint.align import triangles
from engine.paint.gpu import painter as gpu_painter
from engine.paint.gpu.batch import BatchPainter
from engine.paint.gpu.painter import GpuPainter, paint
from engine.paint.painter import FittedVideo, Painter
from engine.paint.raster import CpuRasteriser

WINDOWS = RendererConfig()


class OnTensors(CpuBackend):
    """A backend that paints as a GPU's does."""

    def __init__(self, *networks, **settings):
        super().__init__(*networks, **settings)
        model = load_face_model()
        rasteriser = CpuRasteriser(torch.from_numpy(triangles(model)))
        self.canvas = BatchPainter(self.device, rasteriser, graphs.load("renderer", "float32"), model, WINDOWS)


@pytest.fixture(scope="module")
def model():
    return load_face_model()


@pytest.fixture(scope="module")
def backend():
    return OnTensors.embedded(windows=WINDOWS)


@pytest.fixture(scope="module")
def reference():
    backend = CpuBackend.embedded(windows=WINDOWS)
    backend.bfloat16 = False
    return backend


@pytest.fixture(scope="module")
def avatar(avatar_path):
    return Avatar.open(avatar_path, quality="fast")


@pytest.fixture(scope="module")
def footage(avatar):
    return FittedVideo.of(avatar)


@pytest.fixture(scope="module")
def lips(avatar, model):
    """lips(i): those of another frame than frame i."""
    vertices = model.vertices(avatar.alpha, avatar.beta)[:, model.lower]
    return lambda index: vertices[(index + 37) % len(vertices)]


@pytest.mark.parametrize("place", [0, 1, 60, -1])
def test_a_picture_is_what_the_cpu_paints(backend, reference, avatar, footage, model, lips, place):
    index = place % avatar.frames  # at both ends there are fewer neighbours
    painter = GpuPainter(backend.canvas, footage, avatar.bank, model)
    (picture,) = paint([(painter, index, lips(index))])
    expected = Painter(reference, footage, avatar.bank, model, WINDOWS).paint(index, lips(index))
    check(picture, expected, footage.read(index))


@pytest.mark.parametrize("box", [(0, 0, 200), (40, -60, 300), (400, 380, 230), (-100, -120, 700)])
def test_boxes_of_any_size_and_beyond_the_frame(backend, reference, avatar, footage, model, lips, box):
    moved = replace(footage, crop=torch.tensor(box, dtype=torch.int32).expand(avatar.frames, 3))
    (picture,) = paint([(GpuPainter(backend.canvas, moved, avatar.bank, model), 30, lips(30))])
    expected = Painter(reference, moved, avatar.bank, model, WINDOWS).paint(30, lips(30))
    # The face is not where the box says, so the mask's edge lies across strong contrasts and its half levels show.
    check(picture, expected, footage.read(30), 42)


@pytest.mark.parametrize("box", [(2000, 50, 256), (-900, 50, 256), (50, 2000, 256), (50, -900, 256)])
def test_a_box_beside_the_frame_changes_nothing(backend, avatar, footage, model, lips, box):
    moved = replace(footage, crop=torch.tensor(box, dtype=torch.int32).expand(avatar.frames, 3))
    (picture,) = paint([(GpuPainter(backend.canvas, moved, avatar.bank, model), 30, lips(30))])
    assert np.array_equal(picture, footage.read(30))


def test_people_in_one_batch_do_not_meet(backend, reference, avatar, footage, model, lips):
    other = replace(
        footage, read=lambda index: 255 - footage.read(index), crop=footage.crop - torch.tensor([7, 9, -11])
    )
    negative = replace(avatar.bank, crops=255 - avatar.bank.crops)
    one = GpuPainter(backend.canvas, footage, avatar.bank, model)
    two = GpuPainter(backend.canvas, other, negative, model)
    asked = [(one, 10, lips(10)), (two, 10, lips(10)), (two, 50, lips(20)), (one, 11, lips(11))]
    together = paint(asked)
    for picture, (painter, index, lower) in zip(together, asked, strict=True):
        own = (footage, avatar.bank) if painter is one else (other, negative)
        expected = Painter(reference, *own, model, WINDOWS).paint(index, lower)
        check(picture, expected, own[0].read(index))
        assert psnr(picture, paint([(painter, index, lower)])[0]) > 60


def test_frames_come_up_once_and_room_for_few_is_enough(backend, reference, avatar, footage, model, lips, monkeypatch):
    monkeypatch.setattr(gpu_painter, "FRAMES", 6)
    read = []
    counted = replace(footage, read=lambda index: read.append(index) or footage.read(index))
    painter = GpuPainter(backend.canvas, counted, avatar.bank, model)
    for index in (20, 20, 21):
        paint([(painter, index, lips(index))])
    assert {18, 19, 20, 21, 22, 23} <= set(read) and max(Counter(read).values()) == 1
    places = [20, 60, 22, 90]
    for index, picture in zip(places, paint([(painter, i, lips(i)) for i in places]), strict=True):
        expected = Painter(reference, footage, avatar.bank, model, WINDOWS).paint(index, lips(index))
        check(picture, expected, footage.read(index))


def test_what_was_given_out_is_never_painted_over(backend, avatar, footage, model, lips):
    painter = GpuPainter(backend.canvas, footage, avatar.bank, model)
    (first,) = paint([(painter, 10, lips(10))])
    kept = first.copy()
    paint([(painter, 10, lips(50)), (painter, 40, lips(40))])
    assert np.array_equal(first, kept)
    assert np.array_equal(paint([(painter, 10, lips(10))])[0], kept)


def test_fine_textures_are_refused(backend, avatar, footage, model):
    fine = replace(avatar.bank, crops=avatar.bank.crops.repeat_interleave(2, 1).repeat_interleave(2, 2))
    with pytest.raises(SettingError, match="--quality fast"):
        GpuPainter(backend.canvas, footage, fine, model)


def test_the_performer_paints_on_the_backends_canvas(backend, reference, avatar, model, lips):
    jobs = [PaintJob(20, lips(20), 0, 0), PaintJob(20, None, 0, 0)]
    on_device, on_cpu = (AvatarPipeline(b, avatar, model) for b in (backend, reference))
    for job in jobs:
        picture, expected = on_device.perform(job), on_cpu.perform(job)
        if job.lips is None:
            assert np.array_equal(picture, expected)
        else:
            check(picture, expected, on_device.avatar.open_base().read(job.base))


def test_frames_are_fetched_ahead_in_both_directions(backend, avatar, footage, model, lips):
    read = {}
    counted = replace(
        footage, read=lambda index: read.setdefault(index, threading.current_thread()) and footage.read(index)
    )
    painter = GpuPainter(backend.canvas, counted, avatar.bank, model)
    for index in (20, 21, 22, 23, 22, 21, 20, 19, 18, 17):
        paint([(painter, index, lips(index))])
    here = {index for index, thread in read.items() if thread is threading.current_thread()}
    assert here == {0, 18, 19, 20, 21, 22}, "for the size, and for the first picture; all others came from the pool"
    assert {15, 16, 17, 23, 24, 25} <= set(read)


def test_a_frame_that_cannot_be_read_fails_its_picture_and_no_other(backend, avatar, footage, model, lips, monkeypatch):
    def read(index):
        if index in (23, 61):
            raise AvatarFileError(f"holds a video that breaks off at frame {index}")
        return footage.read(index)

    monkeypatch.setattr(gpu_painter, "FRAMES", 6)  # others have to go before it is known that it fails
    painter = GpuPainter(backend.canvas, replace(footage, read=read), avatar.bank, model)
    (first,) = paint([(painter, 20, lips(20))])
    for index, broken in ((21, 23), (21, 23), (60, 61), (60, 61)):  # fetched ahead, and when it was wanted
        with pytest.raises(AvatarFileError, match=f"frame {broken}"):
            paint([(painter, index, lips(index))])
    assert np.array_equal(paint([(painter, 20, lips(20))])[0], first)


def test_the_performer_measures_its_batches_on_a_canvas(backend, avatar, model):
    costs = AvatarPipeline(backend, avatar, model).warm()
    assert costs.seconds.keys() == {"lips", "picture", "idle"} and costs.seconds["picture"][1] > 0


def test_speech_looks_the_same_through_a_canvas(backend, reference, avatar, model, speech_wav):
    pcm = read_speech(speech_wav)[24_000:48_000]
    spoken = [list(AvatarPipeline(b, avatar, model).speak(pcm)) for b in (backend, reference)]
    assert len(spoken[0]) == len(spoken[1]) > 12
    assert all(psnr(unit.image, expected.image) > ALIKE_DB for unit, expected in zip(*spoken, strict=True))
