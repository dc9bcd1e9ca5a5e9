"""The persona at enrolment: how this person's lips differ from those that the network predicts for the same speech.

Mean and covariance of the predicted lips are mapped onto those of the tracked lips by the optimal transport between two
Gaussians. Only distributions are compared, so the map holds for the sound of another voice as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import binary_dilation
from torch import Tensor

from engine.backends.backend import Backend
from engine.media import FPS
from engine.models.morphable import MorphableModel
from engine.models.persona import COMPONENTS, LipSpace, no_persona
from engine.models.speech import FRAME_SAMPLES, Samples, windows_of
from precompute.synchrony import high_pass, lag_curve, peak

MAX_FRAMES = 1500  # a minute; more does not change the map
MIN_SPEECH_S, HALF_TRUST_S = 2.0, 1.0  # a map from less speech is left out; one from HALF_TRUST_S would count half
LOUD_SHARE = 0.1  # of the level of the loudest tenth
NEAR_SPEECH_FRAMES = 5  # lips move before and after the sound
# Of clips with another person's sound one in twenty reaches a correlation of MATCH / sqrt(frames) (training log).
MATCH = 3.8
REGULARISATION = 0.15  # of the mean predicted variance
MAX_GAIN = 3.0  # speech hardly tells components that need more, so they would be noise
DRIFT_SHARE = 0.25  # of the shift of the mean beside its opening: smiles pass


@dataclass(frozen=True, kw_only=True)
class Persona:
    """`change`: as in `engine.models.persona.PersonaMap`; `speech_s`: the speech that it is from; `match`: correlation
    of tracked and predicted lip motion at the best lag; `lag_frames`: of the picture behind the sound; `reason`: why
    there is no change, else empty."""

    change: Tensor
    speech_s: float
    match: float = 0.0
    lag_frames: float = 0.0
    reason: str = ""

    def summary(self) -> dict[str, float | str]:
        """The figures for the avatar's manifest."""
        figures = {"speech_s": self.speech_s, "match": self.match, "lag_frames": self.lag_frames}
        return {**{name: round(value, 2) for name, value in figures.items()}, "left_out": self.reason}


def learn_persona(
    backend: Backend, model: MorphableModel, alpha: Tensor, beta: Tensor, good: np.ndarray, sound: Samples | None
) -> Persona:
    """The persona of a clip with shape alpha [K_s], expressions beta [T, K_e] and usable frames good [T] bool.

    sound: [n] at 16 kHz from the first frame on; None where the clip has none.
    """
    frames = min(len(beta), MAX_FRAMES)
    pcm = np.zeros(0, np.float32) if sound is None else sound[: frames * FRAME_SAMPLES]
    pcm = np.pad(pcm, (0, frames * FRAME_SAMPLES - len(pcm)))
    used = torch.from_numpy(speech_frames(pcm) & good[:frames])
    if int(used.sum()) < MIN_SPEECH_S * FPS:
        return persona_of(model, alpha, beta[:0], beta[:0], used)
    template = (model.mean + model.shape(alpha))[model.lower]
    predicted = _predict(backend, model, alpha, beta, pcm) - template
    return persona_of(model, alpha, beta[:frames], predicted, used)


def persona_of(model: MorphableModel, alpha: Tensor, beta: Tensor, predicted: Tensor, used: Tensor) -> Persona:
    """The persona of a clip from the frames used [T] bool: shape alpha [K_s], expressions beta [T, K_e], and predicted
    offsets [T, V_low, 3] of the lower face."""
    nothing = Persona(change=no_persona(), speech_s=int(used.sum()) / FPS)
    if nothing.speech_s < MIN_SPEECH_S:
        return replace(nothing, reason="the clip has too little speech")
    space = LipSpace(model)
    template = (model.mean + model.shape(alpha))[model.lower]
    tracked = model.expression(beta)[:, model.lower]
    motion = [high_pass(offsets[:, space.lips, :2].flatten(1)) for offsets in (predicted, tracked)]
    lag_frames, match = peak(lag_curve(*motion))
    nothing = replace(nothing, match=match, lag_frames=lag_frames)
    if match < MATCH / math.sqrt(len(beta)):
        return replace(nothing, reason="the lips do not follow the sound")
    trust = nothing.speech_s / (nothing.speech_s + HALF_TRUST_S)
    return replace(nothing, change=trust * lip_change(space, template, predicted[used], tracked[used]))


def speech_frames(pcm: Samples) -> np.ndarray:
    """Whether someone speaks in the frames [T] of pcm [T * FRAME_SAMPLES], or just before or after."""
    level = np.sqrt(np.square(pcm.reshape(-1, FRAME_SAMPLES)).mean(1))
    loud = level > max(LOUD_SHARE * float(np.quantile(level, 0.9)), 1e-3)
    near: np.ndarray = binary_dilation(loud, iterations=NEAR_SPEECH_FRAMES)
    return near


def _predict(backend: Backend, model: MorphableModel, alpha: Tensor, beta: Tensor, pcm: Samples) -> Tensor:
    """Lower vertices [T, V_low, 3] for pcm [T * FRAME_SAMPLES], as a session speaks it."""
    style = backend.style((model.mean + model.expression(beta))[None])
    template, state, parts = (model.mean + model.shape(alpha))[None], backend.initial_state(1), []
    for window in torch.from_numpy(windows_of(pcm, backend.speech_config)):
        lower, state = backend.step_geometry(backend.encode_speech(window[None]), style, template, state)
        parts.append(lower[0])
    return torch.cat(parts)[: len(pcm) // FRAME_SAMPLES]


def lip_change(space: LipSpace, template: Tensor, predicted: Tensor, tracked: Tensor) -> Tensor:
    """The change of components [COMPONENTS, COMPONENTS + 1] that gives predicted offsets [n, V_low, 3] the mean opening
    and the covariance of tracked ones [m, V_low, 3]."""
    ours, theirs = space.components(predicted), space.components(tracked)
    own, other = torch.cov(ours.T), torch.cov(theirs.T)
    ridge = REGULARISATION * own.diagonal().mean() * torch.eye(COMPONENTS)
    matrix = _transport(own + ridge, other + ridge) - torch.eye(COMPONENTS)
    shift = theirs.mean(0) - ours.mean(0)
    opens = _opening_direction(space, template, theirs.mean(0))
    shift = DRIFT_SHARE * shift + (1 - DRIFT_SHARE) * (shift @ opens) * opens
    return torch.cat([matrix, (shift - matrix @ ours.mean(0))[:, None]], 1)


def _transport(own: Tensor, other: Tensor) -> Tensor:
    """The symmetric matrix [C, C] that turns a covariance into another one, with gains within MAX_GAIN."""
    values, axes = torch.linalg.eigh(own)
    root, inverse = ((axes * values**power) @ axes.T for power in (0.5, -0.5))
    values, axes = torch.linalg.eigh(root @ other @ root)
    gains, axes = torch.linalg.eigh(inverse @ ((axes * values.clamp_min(0).sqrt()) @ axes.T) @ inverse)
    return (axes * gains.clamp(1 / MAX_GAIN, MAX_GAIN)) @ axes.T


def _opening_direction(space: LipSpace, template: Tensor, components: Tensor) -> Tensor:
    """The unit direction [COMPONENTS] in which the mouth opens fastest."""
    at = components.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(space.opening(template + space.offsets(at)), at)
    return gradient / gradient.norm()
