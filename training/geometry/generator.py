"""One training run of the geometry generator on a corpus, and its prediction for one clip."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.models.geometry import GeometryConfig, GeometryGenerator
from engine.models.morphable import MorphableModel
from engine.models.weights import load
from training.geometry.corpus import Corpus
from training.geometry.loss import GeometryLoss
from training.optimisation import Optimisation

FEATURE_NOISE, CHANNEL_DROPOUT = 0.3, 0.1

log = logging.getLogger(__name__)


def _roughen(features: Tensor) -> Tensor:
    """Features [B, T, D] with noise and with some channels at zero throughout, as there are few training voices."""
    noisy = features + FEATURE_NOISE * features.std() * torch.randn_like(features)
    return nn.functional.dropout1d(noisy.transpose(1, 2), CHANNEL_DROPOUT).transpose(1, 2)


def fit_generator(
    corpus: Corpus,
    model: MorphableModel,
    checkpoint: Path,
    *,
    features: int,
    steps: int,
    batch: int = 24,
    rate: float = 1e-3,
    start: Path | None = None,
) -> GeometryGenerator:
    """Train a generator on the corpus, from the weights in `start` or from the face model; resumes from `checkpoint`;
    returns the averaged weights."""
    if start is None:
        generator = GeometryGenerator(GeometryConfig(features=features))
        generator.start_from(model)
    else:
        generator = load(GeometryGenerator, GeometryConfig, start).requires_grad_(True)
    optimisation = Optimisation(
        generator, checkpoint, steps=steps, learning_rate=rate, weight_decay=0.05, average_decay=0.99
    )
    loss_of = GeometryLoss(model)
    for step in optimisation.steps():
        crops = corpus.draw(batch)
        noisy = _roughen(crops["features"])
        style = generator.style(crops["style"]) * crops["styled"]
        predicted = generator(noisy, style, crops["template"])
        template = crops["template"][:, generator.lower]
        loss = loss_of(predicted, template, crops["beta"], crops["known"], crops["contact"])
        optimisation.update(loss)
        if step % 100 == 0:
            log.info("%s step %d loss %.3f", checkpoint.stem, step, loss.item())
    return optimisation.average.eval()


@torch.inference_mode()
def predict(
    generator: GeometryGenerator,
    model: MorphableModel,
    features: Tensor,
    alpha: Tensor,
    style_beta: Tensor | None,
) -> Tensor:
    """Offsets [T, V_low, 3] from the template for features [T, D]; the style is zero without `style_beta` [T', K]."""
    template = (model.mean + model.shape(alpha))[None]
    style = torch.zeros(1, generator.config.width)
    if style_beta is not None:
        style = generator.style((model.mean + model.expression(style_beta))[None])
    vertices = generator(features[None], style, template)[0]
    return vertices - template[0, generator.lower]
