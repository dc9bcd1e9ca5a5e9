"""Train the dual-attention renderer on the face window (§3.2)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from engine.backends.cpu import native_bfloat16
from engine.models.renderer import CELL_PX, DualAttentionRenderer, References, RendererConfig
from engine.models.weights import load_face_model, save
from training.data.clips import crops_path, read_manifest
from training.optimisation import Optimisation
from training.renderer.adversary import Judges, convincing_loss, judging_loss
from training.renderer.lpips import Lpips
from training.renderer.samples import ClipFaces, Sample, SampleMaker, TrainingSampler, collate

log = logging.getLogger(__name__)

LIP_WEIGHT = 4.0
PASTE_WEIGHT = 2.0
GRADIENT_WEIGHT = 0.5
PERCEPTUAL_WEIGHT = 0.2
LIP_PERCEPTUAL_WEIGHT = 0.8
TEXTURE_WEIGHT = 0.5
TEXTURE_TAPS = 2  # of VGG16 on the lips: more taps would cost as much as all other work
ADVERSARIAL_WEIGHT = 0.04
TEMPORAL_WEIGHT = 1.0
JUDGES_ALONE_STEPS = 60  # before their scores enter the renderer's loss
JUDGES_LEARNING_RATE = 1.5e-3
SAVE_JUDGES_EVERY = 100


class TrainingFaces(IterableDataset[tuple[Sample, Sample]]):
    """Endless random pairs of samples of the training people."""

    def __init__(self, data: Path, runs: Path, config: RendererConfig, *, near: int, lips: int, seed: int):
        self._data, self._runs, self._config = data, runs, config
        self._near, self._lips, self._seed = near, lips, seed

    def __iter__(self) -> Iterator[tuple[Sample, Sample]]:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        worker = get_worker_info()
        rng = np.random.default_rng((self._seed, worker.id if worker else 0))
        model = load_face_model()
        clips = [
            ClipFaces(clip, self._runs, model)
            for clip in read_manifest(self._data)
            if clip.split == "train" and crops_path(self._runs, clip).exists()
        ]
        clips = [faces for faces in clips if (np.diff(faces.index) == 1).any()]
        sampler = TrainingSampler(clips, SampleMaker(model, self._config), rng, near=self._near, lips=self._lips)
        while True:
            yield sampler.draw()


def collate_pairs(pairs: list[tuple[Sample, Sample]]) -> Sample:
    """A batch: the first frames of all pairs, then the second frames."""
    return collate([first for first, _ in pairs] + [second for _, second in pairs])


def render(network: DualAttentionRenderer, sample: Sample) -> Tensor:
    """Pixels [B, 3, H, W] for a batch."""
    pixels: Tensor = network(
        sample.pncc,
        sample.lip_mask,
        sample.lip_cell,
        References(sample.lip_pixels, sample.lip_difference),
        References(sample.face_pixels, sample.face_difference),
    )
    return pixels


def loss_of(pixels: Tensor, sample: Sample) -> Tensor:
    """L1 of pixels [B, 3, H, W], of their gradients, and of the change from the first to the second frame of each pair.

    Weighted up where pixels are pasted back, and more on the lips.
    """
    lips = functional.interpolate(sample.lip_mask, scale_factor=4.0, mode="bilinear")
    weight = 0.05 + PASTE_WEIGHT * sample.paste + LIP_WEIGHT * lips
    weight = weight / weight.mean(dim=(1, 2, 3), keepdim=True)
    error = pixels - sample.truth
    slopes = (error.diff(dim=-1).abs() * weight[..., 1:]).mean() + (
        error.diff(dim=-2).abs() * weight[..., 1:, :]
    ).mean()
    first, second = error.chunk(2)
    flicker = ((second - first).abs() * weight.chunk(2)[0]).mean()
    return (error.abs() * weight).mean() + GRADIENT_WEIGHT * slopes + TEMPORAL_WEIGHT * flicker


class Teachers:
    """The losses apart from the pixel loss: LPIPS, texture and the judges."""

    def __init__(self, judges: Judges, config: RendererConfig):
        self._judges, self._config = judges, config
        self._lpips, self._texture = Lpips(), Lpips("vgg16", TEXTURE_TAPS)

    def views(self, images: Tensor, sample: Sample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The judges' inputs for face windows [B, 3, H, W]: lips and face, each with its PNCC."""
        return self._lips(images, sample), self._lips(sample.pncc, sample), images, sample.pncc

    def loss(self, shown: Tensor, sample: Sample, adversarial_weight: float) -> Tensor:
        """The loss of shown [B, 3, H, W]: the rendered pixels pasted into the true surroundings."""
        loss = PERCEPTUAL_WEIGHT * self._lpips(shown, sample.truth).mean()
        lips, truth = self._lips(shown, sample), self._lips(sample.truth, sample)
        # Enlarged, as teeth are small for AlexNet's first layer.
        large = [functional.interpolate(x, scale_factor=2, mode="bilinear") for x in (lips, truth)]
        loss = loss + LIP_PERCEPTUAL_WEIGHT * self._lpips(*large).mean()
        loss = loss + TEXTURE_WEIGHT * self._texture(lips, truth).mean()
        if adversarial_weight:
            loss = loss + adversarial_weight * convincing_loss(self._judges(*self.views(shown, sample)))
        return loss

    def judges_loss(self, shown: Tensor, sample: Sample) -> Tensor:
        """The judges' loss on recorded and on rendered images."""
        true, rendered = (self._judges(*self.views(images, sample)) for images in (sample.truth, shown.detach()))
        return judging_loss(true, rendered)

    def _lips(self, images: Tensor, sample: Sample) -> Tensor:
        """The lip windows of face windows [B, 3, H, W]."""
        height, width = self._config.lip_rows * CELL_PX, self._config.lip_columns * CELL_PX
        corners = (sample.lip_cell * CELL_PX).tolist()
        return torch.stack(
            [image[:, y : y + height, x : x + width] for image, (y, x) in zip(images, corners, strict=True)]
        )


def train(
    data: Path,
    runs: Path,
    target: Path,
    *,
    name: str = "renderer",
    steps: int = 3100,
    batch: int = 6,
    near: int = 4,
    lips: int = 8,
    learning_rate: float = 4e-4,
    threads: int = 1,
) -> None:
    """Train on the crops in `runs`; resumes from runs/<name>.pt and writes the averaged weights to `target`.

    The judges join half way, when the renderer is nearly as good as the other losses make it; their checkpoint is
    runs/<name>-judges.pt.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config, adversarial_from = RendererConfig(), steps // 2
    optimisation = Optimisation(
        DualAttentionRenderer(config),
        runs / f"{name}.pt",
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=0.0,
        average_decay=0.998,
    )
    judging = Optimisation(
        Judges(),
        runs / f"{name}-judges.pt",
        steps=steps - adversarial_from,
        learning_rate=JUDGES_LEARNING_RATE,
        weight_decay=0.0,
    )
    teachers = Teachers(judging.module, config)
    faces = TrainingFaces(data, runs, config, near=near, lips=lips, seed=optimisation.step)
    batches = iter(DataLoader(faces, batch_size=batch // 2, num_workers=1, collate_fn=collate_pairs, prefetch_factor=4))
    began, shown_at, recent = time.monotonic(), optimisation.step, []
    with (runs / f"{name}.csv").open("a") as curve:
        for step in optimisation.steps():
            sample = next(batches)
            judges_learn = step >= adversarial_from
            judges_count = step >= adversarial_from + JUDGES_ALONE_STEPS
            with torch.autocast("cpu", torch.bfloat16, enabled=native_bfloat16()):
                pixels = render(optimisation.module, sample)
                shown = torch.lerp(sample.truth, pixels.float(), sample.paste)
                loss = loss_of(pixels.float(), sample)
                loss = loss + teachers.loss(shown, sample, ADVERSARIAL_WEIGHT if judges_count else 0.0)
            optimisation.update(loss)
            row = [float(loss.detach())]
            if judges_learn:
                with torch.autocast("cpu", torch.bfloat16, enabled=native_bfloat16()):
                    judges_loss = teachers.judges_loss(shown, sample)
                judging.update(judges_loss)
                judging.step = step + 1 - adversarial_from
                row.append(float(judges_loss.detach()))
                if step % SAVE_JUDGES_EVERY == 0:
                    judging.save()
            recent.append(row)
            if len(recent) == 50:
                rate = (step + 1 - shown_at) * batch / (time.monotonic() - began)
                means = np.mean([r for r in recent if len(r) == len(row)], axis=0)
                log.info("step %d loss %s, %.1f samples/s", step + 1, np.round(means, 4), rate)
                curve.write(f"{step + 1}," + ",".join(f"{x:.5f}" for x in means) + "\n")
                curve.flush()
                recent.clear()
    facts = {"steps": str(optimisation.step), "batch": str(batch), "near": str(near), "lips": str(lips)}
    save(optimisation.average, target, facts=facts)
