"""Offline speech: the units of an avatar that speaks a whole recording, as fast as the machine computes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine.audio import speech_samples
from engine.avatar.avatar import Avatar
from engine.backends.backend import Backend
from engine.backends.cpu import CpuBackend
from engine.config import SessionConfig
from engine.live.pipeline import AvatarPipeline
from engine.media import MediaUnit
from engine.models.weights import load_face_model


def speak(
    avatar: str | Path | Avatar,
    speech: str | Path | np.ndarray,
    *,
    config: SessionConfig | None = None,
    backend: Backend | None = None,
) -> Iterator[MediaUnit]:
    """The units of `avatar` saying `speech`, from its first sample until the mouth has closed: 25 a second of speech.

    speech: a sound file, or mono samples [N] at 48 kHz, int16 or float32 in [-1, 1].  backend: the CPU by default;
    `engine.backends.select.backend_for("auto")` takes a GPU where there is one.

    The units are those of a live session. Files are read at once; units are computed on demand. Raises
    AvatarFileError, SpeechFormatError, WeightsError.
    """
    pcm = speech_samples(speech)
    backend = backend or CpuBackend.embedded()
    if not isinstance(avatar, Avatar):
        avatar = Avatar.open(Path(avatar), quality=backend.quality)
    return AvatarPipeline(backend, avatar, load_face_model()).speak(pcm, config)
