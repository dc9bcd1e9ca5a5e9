"""Drives a timeline frame by frame, as the tests of sound, barge-in and pictures need it."""

from __future__ import annotations

import numpy as np

from engine.audio import PcmResampler, float_to_pcm, pcm_to_float
from engine.config import SessionConfig
from engine.live.job import PaintJob
from engine.live.timeline import BEST
from engine.media import SAMPLES_PER_FRAME

CONFIG = SessionConfig()
LEAD = 3


def speech(seconds: float, rate_hz: int = 48_000, seed: int = 0) -> np.ndarray:
    """Noise that gets louder and softer: int16 [n]."""
    n = round(seconds * rate_hz)
    swell = 0.2 + 0.1 * np.sin(np.arange(n) / rate_hz * 20)
    return float_to_pcm((np.random.default_rng(seed).standard_normal(n) * swell * 0.5).astype(np.float32))


def at_48k(pcm: np.ndarray, rate_hz: int) -> np.ndarray:
    """The int16 samples that a listener should hear."""
    return float_to_pcm(PcmResampler(rate_hz, 48_000).push(pcm_to_float(pcm.tobytes(), 1), last=True))


class Player:
    """Drives a timeline frame by frame; `jobs_a_frame` bounds what the machine gets done between two frames."""

    def __init__(self, puppet, config=CONFIG, jobs_a_frame=1000, first_paint=0, lead=LEAD):
        self.puppet, self.timeline = puppet, puppet.new_timeline(config)
        self.jobs_a_frame, self.first_paint, self.lead = jobs_a_frame, first_paint, lead
        self.units, self.events, self.painted = [], [], []
        self.pace = BEST

    def work(self, jobs=None):
        for _ in range(self.jobs_a_frame if jobs is None else jobs):
            job = self.timeline.take(self.timeline.next_frame + self.first_paint, self.lead, self.pace)
            if job is None:
                return
            self.finish(job)

    def take(self, kind):
        """Begin the next job of that kind, with all others done before it; None if there is none."""
        while (job := self.timeline.take(self.timeline.next_frame, self.lead, self.pace)) is not None:
            if isinstance(job, kind):
                return job
            self.finish(job)
        return None

    def finish(self, job):
        """Do a job that was taken; `painted` notes the frames of pictures."""
        if isinstance(job, PaintJob):
            self.painted += [frame.due for frame in job.frames]
        self.timeline.finish(job, self.puppet.perform(job), self.lead)

    def until_late(self):
        """Do no more work, and emit until a picture is missing."""
        self.jobs_a_frame = 0
        while self.emit().fresh:
            pass

    def emit(self, frames=1):
        for _ in range(frames):
            self.work()
            unit = self.timeline.emit()
            assert len(unit.samples) == SAMPLES_PER_FRAME and unit.samples.dtype == np.int16
            assert unit.index == len(self.units)
            self.units.append(unit)
            self.events += unit.events
        return self.units[-1]

    def until_idle(self, limit=3000):
        for _ in range(limit):
            if self.timeline.idle:
                return self
            self.emit()
        raise AssertionError("never idle")

    def say(self, name, pcm, rate_hz=48_000, chunk=None, end=True):
        self.timeline.start_utterance(name, rate_hz, 1)
        self.push(name, pcm, chunk)
        if end:
            self.timeline.end_utterance(name)

    def push(self, name, pcm, chunk=None):
        for i in range(0, len(pcm), chunk or max(1, len(pcm))):
            self.timeline.push_audio(name, pcm[i : i + (chunk or len(pcm))].tobytes())

    def send_in_real_time(self, name, pcm, rate_hz, packet_frames=1):
        """One packet whenever its sound is complete, a frame emitted every 40 ms; ends the utterance."""
        self.timeline.start_utterance(name, rate_hz, 1)
        size = rate_hz // 25 * packet_frames
        for i in range(0, len(pcm), size):
            self.emit(packet_frames)
            self.push(name, pcm[i : i + size])
        self.timeline.end_utterance(name)

    @property
    def sound(self):
        return np.concatenate([u.samples for u in self.units])

    def spoken(self):
        """All sound between the first and the last sample that is not silence."""
        loud = np.flatnonzero(self.sound)
        return self.sound[loud[0] : loud[-1] + 1] if len(loud) else self.sound[:0]


def openings(player, opening_of):
    return np.array([opening_of(u.image) for u in player.units])
