"""Dubbing: the same video with other words, stage by stage.

    Dubbing(Path("talk.mp4"), {"auto": Path("speech.wav")}, Path("out.mp4")).run()

The first pass finds the faces; people, shots and references follow from it. The second pass paints new mouths into the
pictures and encodes them in parts, so that an interrupted run can go on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from engine.audio import SPEECH_RATE_HZ
from engine.backends.backend import Backend
from engine.backends.cpu import CpuBackend
from engine.config import Quality
from engine.errors import NoFaceError, OutputError, SettingError
from engine.media import FPS
from engine.models.weights import load_face_model
from engine.sound_file import SoundFile
from precompute.dubbing import faces as first_pass
from precompute.dubbing import people as stage
from precompute.dubbing import speaker
from precompute.dubbing.cast import Part, active, part, speech_at
from precompute.dubbing.faces import Faces
from precompute.dubbing.lips import Lips, share_of_speech, speech_features, spoken
from precompute.dubbing.painting import NewMouth, PaintedFace, Window, paint
from precompute.dubbing.people import Person, Place
from precompute.dubbing.planes import Region
from precompute.dubbing.source import Picture, Remark, Source
from precompute.frame_size import scan_size

AUTO = "auto"
HEARD_S = 300  # of the original sound: enough to know whose it is
NEAR_PICTURES = 100  # references nearer to each other than this are read in one go
STAGES = {"faces": 0.3, "people": 0.06, "references": 0.04, "pictures": 0.59, "file": 0.01}
"""The stages, and the share of the time that each takes, roughly: for the time left."""
PROGRESS_S = 0.25

Progress = Callable[[str, int, int, float | None], None]
"""(stage of STAGES, done, total, seconds left of the whole or None)."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The user's choices; `engine.dubbing.DubOptions` explains them."""

    length: Length = "video"
    from_s: float | None = None
    to_s: float | None = None
    mix_db: float | None = None
    report: Path | None = None
    resume: bool = False
    quality: Quality = "best"


@dataclass(frozen=True)
class Voice:
    """One speech: its sound, and how far lips follow it, [T] at 25 Hz."""

    sound: SoundFile
    share: np.ndarray


class Dubbing:
    """Dubs one video. Each stage is a method; `run` calls them in order.

    speech: sound files by the number of the face that speaks them, as the report shows it, or by `auto`: the face that
    the original sound belongs to.  `progress` and `remark` are called on the thread that runs the stages; an exception that they raise
    ends the work.

    Raises OutputError, NotAVideoError, CorruptVideoError, SpeechFormatError, SettingError, before any work where it can.
    """

    def __init__(
        self,
        video: Path,
        speech: Mapping[str, Path],
        output: Path,
        options: Options | None = None,
        *,
        backend: Backend | None = None,
        progress: Progress = lambda *_: None,
        remark: Callable[[Remark], None] = lambda _: None,
    ) -> None:
        self.video, self.output, self.options = video, output, options or Options()
        check_output(output, SUFFIXES, {"video": video, **{f"speech {key}": path for key, path in speech.items()}})
        if self.options.report is not None:
            check_output(self.options.report, (".html",), option="--report")
        self.source = Source(video)
        self.voices = {key: _voice(path) for key, path in speech.items()}
        self.speech_files = dict(speech)
        self.speech_s = max(voice.sound.duration_s for voice in self.voices.values())
        check_length(self.source.duration_s, self.speech_s, self._timing)  # by the header: before minutes of work
        self.remarks: list[Remark] = []
        self._backend = backend or CpuBackend.embedded(quality=self.options.quality)
        self._model = load_face_model()
        self._clock = _Clock(progress)
        self._told = remark
