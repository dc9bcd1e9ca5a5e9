"""Train the dual-attention renderer on the face window (§3.2)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from engine.models.renderer import CELL_PX, DualAttentionRenderer, References, RendererConfig
from engine.weights import load_face_model, save
from training.data import crops_path, read_manifest
from training.faces import ClipFaces, Sample, SampleMaker, TrainingSampler, collate
from training.loop import Run
from training.perceptual import Lpips

log = logging.getLogger(__name__)

LIP_WEIGHT = 4.0
PASTE_WEIGHT = 2.0
GRADIENT_WEIGHT = 0.5
PERCEPTUAL_WEIGHT = 0.2
LIP_PERCEPTUAL_WEIGHT = 0.4


def lip_windows(images: Tensor, sample: Sample, config: RendererConfig) -> Tensor:
    """The lip windows of face windows [B, 3, H, W], enlarged twice: teeth are small for AlexNet's first layer."""
    size = (config.lip_rows * CELL_PX, config.lip_columns * CELL_PX)
    corners = (sample.lip_cell * CELL_PX).tolist()
    windows = [image[:, y : y + size[0], x : x + size[1]] for image, (y, x) in zip(images, corners, strict=True)]
    return functional.interpolate(torch.stack(windows), scale_factor=2, mode="bilinear")


class TrainingFaces(IterableDataset[Sample]):
    """Endless random samples of the training people."""

    def __init__(self, data: Path, runs: Path, config: RendererConfig, *, near: int, lips: int, seed: int):
        self._data, self._runs, self._config = data, runs, config
        self._near, self._lips, self._seed = near, lips, seed

    def __iter__(self) -> Iterator[Sample]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        rng = np.random.default_rng((self._seed, worker.id if worker else 0))
        model = load_face_model()
        clips = [
            ClipFaces(clip, self._runs, model)
            for clip in read_manifest(self._data)
            if clip.split == "train" and crops_path(self._runs, clip).exists()
        ]
        sampler = TrainingSampler(clips, SampleMaker(model, self._config), rng, near=self._near, lips=self._lips)
        while True:
            yield sampler.draw()


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
    """L1 and L1 of gradients, weighted up where pixels are pasted back and again on the lips."""
    lips = functional.interpolate(sample.lip_mask, scale_factor=4.0, mode="bilinear")
    weight = 0.05 + PASTE_WEIGHT * sample.paste + LIP_WEIGHT * lips
    weight = weight / weight.mean(dim=(1, 2, 3), keepdim=True)
    error = pixels - sample.truth
    slopes = (error.diff(dim=-1).abs() * weight[..., 1:]).mean() + (
        error.diff(dim=-2).abs() * weight[..., 1:, :]
    ).mean()
    return (error.abs() * weight).mean() + GRADIENT_WEIGHT * slopes


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
    """Train from crops under `runs`; the checkpoint runs/<name>.pt resumes, the averaged weights go to `target`."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = RendererConfig()
    network = DualAttentionRenderer(config)
    run = Run(
        network, runs / f"{name}.pt", steps=steps, learning_rate=learning_rate, weight_decay=0.0, average_decay=0.998
    )
    faces = TrainingFaces(data, runs, config, near=near, lips=lips, seed=run.step)
    perceptual = Lpips()
    batches = iter(DataLoader(faces, batch_size=batch, num_workers=1, collate_fn=collate, prefetch_factor=4))
    began, shown, recent = time.monotonic(), run.step, []
    with (runs / f"{name}.csv").open("a") as curve:
        for step in run.steps():
            sample = next(batches)
            pixels = render(network, sample)
            loss = loss_of(pixels, sample) + PERCEPTUAL_WEIGHT * perceptual(pixels, sample.truth).mean()
            lip_pair = (lip_windows(image, sample, config) for image in (pixels, sample.truth))
            loss = loss + LIP_PERCEPTUAL_WEIGHT * perceptual(*lip_pair).mean()
            run.update(loss)
            recent.append(float(loss.detach()))
            if len(recent) == 50:
                rate = (step + 1 - shown) * batch / (time.monotonic() - began)
                log.info("step %d loss %.4f, %.1f samples/s", step + 1, np.mean(recent), rate)
                curve.write(f"{step + 1},{np.mean(recent):.5f}\n")
                curve.flush()
                recent.clear()
    save(run.average, target, facts={"steps": str(run.step), "batch": str(batch), "near": str(near), "lips": str(lips)})
