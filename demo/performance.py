"""Phonemes -> face parameters of every frame: lip shapes with coarticulation, blinks, gaze, brows and head sway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d
from speech import SAMPLE_RATE_HZ, Phoneme

FPS = 25
STEPS_HZ = 200  # the curves are computed at this rate, then sampled at the frames
LEAD_S = 0.035  # lips move ahead of the sound
SHAPES = (
    "jawOpen",
    "mouthFunnel",
    "mouthPucker",
    "wide",
    "mouthLowerDown",
    "mouthUpperUp",
    "mouthRollLower",
    "tongueOut",
)
VOWELS = {  # symbol: jaw, then the other shapes by name
    "ɑ": (0.46, {"mouthLowerDown": 0.25, "mouthUpperUp": 0.1}),
    "a": (0.44, {"wide": 0.2, "mouthLowerDown": 0.3, "mouthUpperUp": 0.15}),
    "æ": (0.40, {"wide": 0.4, "mouthLowerDown": 0.35, "mouthUpperUp": 0.25}),
    "ʌ": (0.30, {"mouthLowerDown": 0.25}),
    "ɐ": (0.28, {"mouthLowerDown": 0.2}),
    "ɛ": (0.28, {"wide": 0.4, "mouthLowerDown": 0.35, "mouthUpperUp": 0.2}),
    "e": (0.24, {"wide": 0.55, "mouthLowerDown": 0.4, "mouthUpperUp": 0.2}),
    "ɪ": (0.17, {"wide": 0.45, "mouthLowerDown": 0.35}),
    "i": (0.13, {"wide": 0.85, "mouthLowerDown": 0.5, "mouthUpperUp": 0.25}),
    "ə": (0.19, {"mouthLowerDown": 0.2}),
    "ɚ": (0.16, {"mouthFunnel": 0.35, "mouthPucker": 0.2}),
    "ɜ": (0.18, {"mouthFunnel": 0.4, "mouthPucker": 0.2}),
    "ɔ": (0.34, {"mouthFunnel": 0.65, "mouthPucker": 0.1}),
    "o": (0.26, {"mouthFunnel": 0.6, "mouthPucker": 0.4}),
    "ʊ": (0.14, {"mouthFunnel": 0.45, "mouthPucker": 0.55}),
    "u": (0.11, {"mouthFunnel": 0.35, "mouthPucker": 0.85}),
}
CONSONANTS = {
    "w": (0.07, {"mouthFunnel": 0.25, "mouthPucker": 0.9}),
    "ɹ": (0.12, {"mouthFunnel": 0.45, "mouthPucker": 0.35}),
    "f": (0.015, {"mouthRollLower": 0.75, "mouthUpperUp": 0.35}),
    "v": (0.015, {"mouthRollLower": 0.75, "mouthUpperUp": 0.35}),
    "θ": (0.10, {"tongueOut": 0.35, "mouthLowerDown": 0.3}),
    "ð": (0.10, {"tongueOut": 0.3, "mouthLowerDown": 0.3}),
    "ʃ": (0.07, {"mouthFunnel": 0.7, "mouthPucker": 0.2}),
    "ʒ": (0.07, {"mouthFunnel": 0.7, "mouthPucker": 0.2}),
    "ʧ": (0.07, {"mouthFunnel": 0.65, "mouthPucker": 0.2}),
    "ʤ": (0.07, {"mouthFunnel": 0.65, "mouthPucker": 0.2}),
    "s": (0.05, {"wide": 0.4, "mouthLowerDown": 0.45, "mouthUpperUp": 0.2}),
    "z": (0.05, {"wide": 0.4, "mouthLowerDown": 0.45, "mouthUpperUp": 0.2}),
    "t": (0.08, {"wide": 0.2, "mouthLowerDown": 0.35}),
    "d": (0.09, {"wide": 0.2, "mouthLowerDown": 0.35}),
    "ɾ": (0.12, {"mouthLowerDown": 0.3}),
    "n": (0.10, {"wide": 0.15, "mouthLowerDown": 0.3}),
    "l": (0.17, {"wide": 0.15, "mouthLowerDown": 0.3}),
    "k": (0.15, {"mouthLowerDown": 0.2}),
    "ɡ": (0.15, {"mouthLowerDown": 0.2}),
    "ŋ": (0.14, {"wide": 0.15, "mouthLowerDown": 0.2}),
    "h": (0.18, {"mouthLowerDown": 0.2}),
    "j": (0.10, {"wide": 0.6, "mouthLowerDown": 0.4}),
}
CLOSED = frozenset("pbm")
PAUSES = frozenset(",.!?;:—…")


@dataclass(frozen=True)
class Frame:
    """One frame: face units 0..1; `turn` pitch, yaw, roll and `gaze` pitch, yaw in degrees; `lean` in decimetres."""

    units: dict[str, float]
    turn: np.ndarray
    gaze: np.ndarray
    lean: np.ndarray
    opening: float  # of the lips, 0 closed


def perform(phonemes: Sequence[Phoneme], pcm: np.ndarray, start_s: float, frames: int, seed: int = 7) -> list[Frame]:
    """The face in `frames` frames, with speech from `start_s` on; lips are closed before and after, the sway loops."""
    length_s = frames / FPS
    time = np.arange(round(length_s * STEPS_HZ)) / STEPS_HZ
    shapes, closed = _lips(phonemes, start_s - LEAD_S, time)
    loudness = _loudness(pcm, start_s, time)
    shapes[:, 0] *= 0.82 + 0.3 * loudness
    shapes *= 1 - closed[:, None]
    random = np.random.default_rng(seed)
    blink = _blinks(time, random)
    turn = _sway(time / length_s) + np.array([2.2, 0.6, 0.8]) * gaussian_filter1d(loudness, 0.22 * STEPS_HZ)[:, None]
    gaze = _gaze(time, length_s, random) - 0.85 * turn[:, :2]
    brows = gaussian_filter1d(loudness, 0.15 * STEPS_HZ) * (0.55 + 0.45 * np.sin(time * 1.9))
    breath = np.sin(2 * np.pi * np.round(length_s / 4) * time / length_s)
    result = []
    for frame in range(frames):
        at = min(round(frame / FPS * STEPS_HZ), len(time) - 1)
        shape = dict(zip(SHAPES, shapes[at], strict=True))
        units = _units(shape, closed[at]) | {
            "eyeBlinkLeft": blink[at],
            "eyeBlinkRight": blink[at],
            "browInnerUp": 0.45 + 0.35 * brows[at],
            "browOuterUpLeft": 0.3 * brows[at],
            "browOuterUpRight": 0.3 * brows[at],
        }
        lean = np.array([0.012 * np.sin(2 * np.pi * 2 * frame / frames), 0.008 * breath[at], 0.0])
        result.append(Frame(units, turn[at], gaze[at], lean, float(shape["jawOpen"] + 0.1 * shape["mouthLowerDown"])))
    return result


def _units(shape: dict[str, float], closed: float) -> dict[str, float]:
    """Spread our few shapes over the left and right face units; a closed mouth is pressed and smiles a little."""
    smile = 0.25 + 0.2 * shape["wide"]
    units = {name: shape[name] for name in ("jawOpen", "mouthFunnel", "mouthPucker", "mouthRollLower", "tongueOut")}
    # the rest pose leaves a slit between the lips: a jaw below zero closes it
    units["jawOpen"] = 1.2 * units["jawOpen"] - 0.05 * closed
    units["mouthShrugLower"] = 0.12 * closed
    for side in ("Left", "Right"):
        units[f"mouthSmile{side}"] = smile
        units[f"mouthStretch{side}"] = 0.30 * shape["wide"]
        units[f"mouthLowerDown{side}"] = shape["mouthLowerDown"] * 0.8
        units[f"mouthUpperUp{side}"] = shape["mouthUpperUp"] * 0.8
        units[f"mouthPress{side}"] = 0.15 * closed
        units[f"cheekSquint{side}"] = 0.25 * smile
    return units


def _lips(phonemes: Sequence[Phoneme], start_s: float, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shapes [N, shapes] with neighbours blended, and how closed the lips must be [N] in 0..1."""
    target = np.zeros((len(time), len(SHAPES)))
    shut = np.zeros(len(time))
    rest = np.ones(len(time), bool)
    for phoneme in _merge_marks(phonemes):
        begin, end = phoneme.start_s + start_s, phoneme.end_s + start_s
        span = slice(round(begin * STEPS_HZ), round(end * STEPS_HZ))
        if phoneme.symbol in CLOSED:
            held_s = max(end - begin - 0.02, 0.055)
            shut = np.maximum(shut, _ramp(time, begin, begin + held_s, 0.055))
            target[span] = target[max(span.start - 1, 0)]  # behind closed lips the jaw keeps its last position
            rest[span] = False
        elif phoneme.symbol in VOWELS or phoneme.symbol in CONSONANTS:
            jaw, others = VOWELS.get(phoneme.symbol) or CONSONANTS[phoneme.symbol]
            target[span, 0] = jaw
            for name, weight in others.items():
                target[span, SHAPES.index(name)] = weight
            rest[span] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[False], rest, [False]]).astype(int)))
    for first, last in edges.reshape(-1, 2):
        begin, end = first / STEPS_HZ, last / STEPS_HZ
        if end - begin >= 0.12:
            before = -1.0 if first == 0 else begin + 0.05
            after = end + 1.0 if last == len(time) else end - 0.05
            shut = np.maximum(shut, _ramp(time, before, after, 0.09))
    return gaussian_filter1d(target, 0.032 * STEPS_HZ, axis=0), shut


def _ramp(time: np.ndarray, begin: float, end: float, soft_s: float) -> np.ndarray:
    """1 between `begin` and `end`, easing to 0 within `soft_s` on both sides."""
    away = np.clip(np.maximum(begin - time, time - end) / soft_s, 0, 1)
    return 1 - away * away * (3 - 2 * away)


def _merge_marks(phonemes: Sequence[Phoneme]) -> list[Phoneme]:
    """Adds stress marks to the next sound, length marks and word gaps to the previous one."""
    merged: list[Phoneme] = []
    waiting: float | None = None
    for phoneme in phonemes:
        if phoneme.symbol in "ˈˌ":
            waiting = phoneme.start_s if waiting is None else waiting
        elif phoneme.symbol in "ː ʰʲ" and merged:
            merged[-1] = Phoneme(merged[-1].symbol, merged[-1].start_s, phoneme.end_s)
        else:
            start_s = phoneme.start_s if waiting is None else waiting
            merged.append(Phoneme(phoneme.symbol, start_s, phoneme.end_s))
            waiting = None
    return merged


def _loudness(pcm: np.ndarray, start_s: float, time: np.ndarray) -> np.ndarray:
    energy = np.sqrt(gaussian_filter1d(pcm.astype(float) ** 2, 0.04 * SAMPLE_RATE_HZ))
    heard = np.interp(time - start_s, np.arange(len(pcm)) / SAMPLE_RATE_HZ, energy, left=0, right=0)
    return np.clip(heard / np.percentile(energy, 95), 0, 1)


def _blinks(time: np.ndarray, random: np.random.Generator) -> np.ndarray:
    blink, at = np.zeros(len(time)), 1.6
    while at < time[-1] - 0.5:
        closing = np.clip((time - at) / 0.09, 0, 1)
        opening = np.clip((time - at - 0.13) / 0.17, 0, 1)
        blink = np.maximum(blink, closing * closing * (3 - 2 * closing) - opening * opening * (3 - 2 * opening))
        at += random.uniform(3.0, 4.8)
    return blink


def _sway(phase: np.ndarray) -> np.ndarray:
    """Pitch, yaw, roll in degrees [N, 3]: whole periods over the clip, so that the clip loops."""

    def wave(cycles: int, shift: float) -> np.ndarray:
        return np.sin(2 * np.pi * (cycles * phase + shift))

    pitch = 1.3 * wave(3, 0.1) + 0.8 * wave(8, 0.4) + 0.4 * wave(17, 0.7)
    yaw = 4.6 * wave(2, 0.0) + 2.2 * wave(5, 0.3) + 0.7 * wave(11, 0.6)
    roll = 1.5 * wave(3, 0.55) + 0.8 * wave(7, 0.15)
    return np.stack([pitch, yaw, roll], 1)


def _gaze(time: np.ndarray, length_s: float, random: np.random.Generator) -> np.ndarray:
    """Small jumps of the eyes around the camera [N, 2] degrees of pitch and yaw; first and last look straight."""
    gaze, at = np.zeros((len(time), 2)), 1.2
    while at < length_s - 2.0:
        gaze[time >= at] = random.normal(0, [0.8, 1.6])
        at += random.uniform(0.9, 2.2)
    gaze[time >= length_s - 1.2] = 0
    return gaussian_filter1d(gaze, 0.012 * STEPS_HZ, axis=0)
