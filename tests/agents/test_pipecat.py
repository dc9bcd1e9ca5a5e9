"""The avatar in a Pipecat pipeline, with the framework's own test harness."""

from __future__ import annotations

import pytest

pytest.importorskip("pipecat", reason="pipecat-ai lives in an environment of its own, see docs/agents.md")

from pipecat.frames.frames import (
    InterruptionFrame,
    OutputImageRawFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.tests.utils import SleepFrame, run_test

from streaming.agents.pipecat import SAMPLE_RATE_HZ, AvatarService


def spoken(pcm: bytes) -> list:
    """The frames of a TTS service for one utterance."""
    pieces = [pcm[start : start + 4_800] for start in range(0, len(pcm), 4_800)]
    return [TTSStartedFrame(), *(TTSAudioRawFrame(piece, 24_000, 1) for piece in pieces), TTSStoppedFrame()]


def seconds(frames) -> float:
    return sum(frame.num_frames for frame in frames if isinstance(frame, TTSAudioRawFrame)) / SAMPLE_RATE_HZ


async def test_speech_comes_out_with_pictures_and_its_end_behind_it(avatar, buzz):
    down, up = await run_test(AvatarService(avatar), frames_to_send=[SleepFrame(0.5), *spoken(buzz(1.0))])
    assert not up
    kinds = [type(frame) for frame in down]
    sound = [n for n, kind in enumerate(kinds) if kind is TTSAudioRawFrame]
    assert 1.0 <= seconds(down) <= 1.04 and all(down[n].sample_rate == SAMPLE_RATE_HZ for n in sound)
    assert sound[-1] < kinds.index(TTSStoppedFrame)  # and the pipeline's end waited for both
    images = [frame for frame in down if isinstance(frame, OutputImageRawFrame)]
    assert all(frame.sync_with_audio and len(frame.image) == 3 * frame.size[0] * frame.size[1] for frame in images)
    assert any(kind is OutputImageRawFrame for kind in kinds[sound[0] : sound[-1]])
    times = [frame.pts for frame in images]
    assert times == sorted(times) and all((time - times[0]) % 40_000_000 == 0 for time in times)


async def test_an_interruption_drops_earlier_speech_and_the_next_utterance_is_whole(avatar, buzz):
    frames = [*spoken(buzz(20)), SleepFrame(1.5), InterruptionFrame(), SleepFrame(1.0), *spoken(buzz(0.5))]
    down, _ = await run_test(AvatarService(avatar), frames_to_send=frames)
    cut = next(n for n, frame in enumerate(down) if isinstance(frame, InterruptionFrame))
    assert 0.2 < seconds(down[:cut]) < 20
    assert not any(isinstance(frame, TTSStoppedFrame) for frame in down[:cut])
    assert 0.5 <= seconds(down[cut:]) <= 0.54
    assert sum(isinstance(frame, TTSStoppedFrame) for frame in down) == 1


async def test_an_utterance_without_sound_ends_at_once(avatar):
    down, _ = await run_test(AvatarService(avatar), frames_to_send=[TTSStartedFrame(), TTSStoppedFrame()])
    assert any(isinstance(frame, TTSStoppedFrame) for frame in down)
