"""Offline speech: one utterance through the same timeline and pipeline as a live session, as fast as it goes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from engine.config import SessionConfig
from engine.live.pipeline import AvatarPipeline, finish
from engine.media import SAMPLE_RATE_HZ, MediaUnit


def speak(pipeline: AvatarPipeline, pcm: np.ndarray, config: SessionConfig | None = None) -> Iterator[MediaUnit]:
    """The units of a session that says pcm [N] int16 (48 kHz) from its first frame until the mouth has closed."""
    timeline = pipeline.new_timeline(config or SessionConfig())
    timeline.start_utterance("speech", SAMPLE_RATE_HZ, 1)
    timeline.push_audio("speech", pcm.tobytes())
    timeline.end_utterance("speech")
    while not timeline.idle:
        while (job := timeline.next_job(timeline.next_frame, 0)) is not None:
            job = timeline.take(job)
            finish(timeline, job, pipeline.perform(job), 0)
        yield timeline.emit()
