"""Two people with two voices in the same batches: neither shows the face or style, or says the sound, of the other."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pytest
import torch
from stand_ins import NotingBackend
from talk import conversing, say, watch

from engine.audio import PcmResampler, read_speech
from engine.avatar.avatar import Avatar
from engine.backends.cpu import CpuBackend
from engine.live.batching import BatchTimes
from engine.live.job import LipsJob
from engine.live.pipeline import AvatarPipeline, Work
from engine.live.scheduler import Scheduler
from engine.live.segment import Utterance
from engine.models.renderer import RendererConfig
from engine.models.weights import load_face_model

pytestmark = pytest.mark.slow

FREE = {1: 0.0, 2: -1.0, 4: -2.0}  # the more the better, whatever the machine makes of it
COSTS = BatchTimes({"lips": FREE, "best": FREE})
EXCERPT_FRAMES = 75
EQUAL_DB = 60.0


@pytest.fixture(scope="module")
def mirrored_path(speaker_video, tmp_path_factory):
    """Somebody else: the bundled speaker as a mirror shows them."""
    from precompute.enrolment import Enrolment

    clip = tmp_path_factory.mktemp("mirrored") / "mirrored.mp4"
    with av.open(str(speaker_video)) as source, av.open(str(clip), "w") as target:
        stream = target.add_stream("libx264", 25, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 512, 512, "yuv420p"
        for _, frame in zip(range(EXCERPT_FRAMES), source.decode(video=0), strict=False):
            flipped = av.VideoFrame.from_ndarray(cv2.flip(frame.to_ndarray(format="rgb24"), 1), format="rgb24")
            target.mux(stream.encode(flipped))
        target.mux(stream.encode(None))
    Enrolment(clip, clip.with_suffix(".avatar")).run()
    return clip.with_suffix(".avatar")


@pytest.fixture(scope="module")
def backend():
    return NotingBackend(CpuBackend.embedded(), windows=RendererConfig())


@pytest.fixture(scope="module")
def people(backend, avatar_path, mirrored_path):
    model = load_face_model()
    return [AvatarPipeline(backend, Avatar.open(path), model) for path in (avatar_path, mirrored_path)]


@pytest.fixture(scope="module")
def voices(speech_wav):
    """Two voices of 1.2 s at 16 kHz."""
    other = speech_wav.with_name("speech_b.wav")
    return [read_speech(path)[24_000 : 24_000 + 57_600 : 3] for path in (speech_wav, other)]


def psnr_db(one, other):
    error = np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-12))


def lips_job(pipeline, pcm):
    segment, utterance = pipeline.new_segment(), Utterance("a", 48_000, 1, PcmResampler(48_000, 48_000))
    segment.append(utterance, np.repeat(pcm, 3).astype(np.float32) / 32768, last=True)
    return LipsJob(segment, segment.begin_step(), 0)


def test_lips_in_one_batch_are_those_of_each_alone(people, voices, backend):
    work = [Work(person, lips_job(person, pcm)) for person in people for pcm in voices]
    together = people[0].perform_all(work)
    assert backend.rows["speech"][-1] == 4
    for one, outcome in zip(work, together, strict=True):
        alone = one.pipeline.perform(one.job)
        for field in ("keys", "values"):
            torch.testing.assert_close(
                getattr(outcome.geometry, field), getattr(alone.geometry, field), atol=1e-4, rtol=0
            )
        np.testing.assert_array_equal(outcome.speech.pcm, alone.speech.pcm)
        torch.testing.assert_close(outcome.lips, alone.lips, atol=1e-5, rtol=0)
    lips = [outcome.lips for outcome in together]
    pairs = [(i, j) for i in range(4) for j in range(i)]
    assert all((lips[i] - lips[j]).abs().max() > 1e-3 for i, j in pairs), "all four differ, or this would show nothing"


def test_pictures_in_one_batch_are_those_of_each_alone(people):
    work = [Work(person, person.paint_job(base, person.rest)) for base in (5, 30) for person in people]
    together = people[1].perform_all(work)
    for one, outcome in zip(work, together, strict=True):
        assert psnr_db(outcome[0], one.pipeline.perform(one.job)[0]) >= EQUAL_DB
    assert psnr_db(together[0][0], together[1][0]) < 30


def test_sessions_in_the_same_batches_show_and_say_what_they_would_alone(virtual, people, voices, backend):
    def conversations(*who):
        async def main(loop):
            backend.note = lambda network: network == "geometry" or loop.spend(0.004)
            scheduler = Scheduler(lambda batch: batch[0].pipeline.perform_all(batch), COSTS)
            async with conversing(scheduler, [people[i] for i in who]) as sessions:
                tasks = [loop.create_task(watch(session, 2.6, loop)) for session in sessions]
                for i, session in zip(who, sessions, strict=True):
                    await say(session, "a", voices[i])
                return [[unit for _, unit in await task] for task in tasks]

        return virtual(main)

    (first,), (second,) = conversations(0), conversations(1)
    backend.rows.clear()
    together = conversations(0, 1)
    assert backend.rows["speech"].count(2) >= 2, backend.rows
    for alone, beside in zip((first, second), together, strict=True):
        assert len(alone) == len(beside) >= 60
        speaking = [unit for unit in beside if unit.speaking]
        assert len(speaking) == 30 and all(unit.fresh for unit in speaking)
        for one, other in zip(alone, beside, strict=True):
            np.testing.assert_array_equal(one.samples, other.samples)
            assert psnr_db(one.image, other.image) >= EQUAL_DB
    assert psnr_db(first[40].image, second[40].image) < 30
