"""Random changes of training speech: microphone, room, codec, noise, other voices, speed."""

from __future__ import annotations

import numpy as np
import scipy.signal

from engine.models.speech import RATE_HZ


def augment(pcm: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """pcm [N] float32 as through another microphone in another room: level, spectral tilt, echoes, codec, white noise.

    The voice `other` [N] is sometimes mixed in.
    """
    level = np.sqrt((pcm**2).mean()) + 1e-5
    if rng.random() < 0.4:  # one-zero filter: darker or brighter
        pcm = pcm + rng.uniform(-0.7, 0.7) * np.concatenate([pcm[:1] * 0, pcm[:-1]])
    if rng.random() < 0.3:
        pcm = room(pcm, rng)
    if rng.random() < 0.2:
        pcm = codec(pcm, rng)
    if rng.random() < 0.6:
        noise = rng.standard_normal(len(pcm)).astype(np.float32)
        pcm = pcm + noise * level * 10 ** (rng.uniform(-60, -10) / 20)
    if rng.random() < 0.15:
        pcm = pcm + other * level / (np.sqrt((other**2).mean()) + 1e-5) * 10 ** (rng.uniform(-40, -12) / 20)
    gain = 10 ** (rng.uniform(-36, -12) / 20) / (np.sqrt((pcm**2).mean()) + 10 ** (-46 / 20))
    return (pcm * gain).clip(-1, 1).astype(np.float32)


def stretch(pcm: np.ndarray, speed: float, samples: int) -> np.ndarray:
    """The first `samples` of pcm [N] float32 played `speed` times as fast: a higher or lower voice."""
    place = np.arange(samples, dtype=np.float32) * speed
    return np.interp(place, np.arange(len(pcm), dtype=np.float32), pcm).astype(np.float32)


def codec(pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """pcm [N] float32 over a telephone or a bad link: mu-law of 5-8 bits (G.711 has 8), or nothing above 3.4-6 kHz."""
    if rng.random() < 0.5:
        steps = 2 ** int(rng.integers(4, 8))
        peak = np.abs(pcm).max() + 1e-5
        coded = np.sign(pcm) * np.log1p(255 * np.abs(pcm) / peak) / np.log(256)
        decoded: np.ndarray = (
            np.sign(coded) * peak * np.expm1(np.abs(np.round(coded * steps) / steps) * np.log(256)) / 255
        )
        return decoded.astype(np.float32)
    spectrum = np.fft.rfft(pcm)
    spectrum[int(len(spectrum) * rng.uniform(3.4, 6.0) / 8) :] = 0
    return np.fft.irfft(spectrum, len(pcm)).astype(np.float32)


def room(pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """pcm [N] float32 in a small room: exponentially decaying noise (100-400 ms to -60 dB) follows the direct sound."""
    samples = int(rng.uniform(0.1, 0.4) * RATE_HZ)
    tail = rng.standard_normal(samples) * 10 ** (-3 * np.arange(samples) / samples)
    tail *= rng.uniform(0.1, 0.6) / np.linalg.norm(tail)
    return pcm + scipy.signal.fftconvolve(pcm, tail)[: len(pcm)].astype(np.float32)
