"""The renderer on people that training never saw, target frame excluded, beside what copying would give."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine import weights
from engine.models.morphable import load_face_model
from engine.models.renderer import DualAttentionRenderer, RendererConfig
from training.data import crops_path, read_manifest
from training.faces import ClipFaces, Sample, SampleMaker, collate, neighbours, sorted_bank
from training.perceptual import Lpips
from training.renderer import render

log = logging.getLogger(__name__)

FRAMES_PER_CLIP = 6
NEAR, LIPS = 5, 25  # N_f and N_l of inference


@dataclass(frozen=True)
class Case:
    """One frame of an unseen person: its sample and the pixels of every reference at the target's place."""

    name: str
    sample: Sample
    crossed: bool  # the base frame shows another mouth than the target

    @property
    def copies(self) -> Tensor:
        """What copying would give: each face reference at the same place, and each lip reference with its lips put
        where the target's are; [n, 3, H, W]."""
        faces = self.sample.face_pixels[:, :, 4:-4, 4:-4]
        lips = faces[:1].expand(len(self.sample.lip_pixels), -1, -1, -1).clone()
        row, column = (int(v) * 4 for v in self.sample.lip_cell)
        height, width = (n - 8 for n in self.sample.lip_pixels.shape[-2:])
        lips[:, :, row : row + height, column : column + width] = self.sample.lip_pixels[:, :, 4:-4, 4:-4]
        return torch.cat([faces, lips])


def cases(data: Path, runs: Path, config: RendererConfig) -> Iterator[Case]:
    """Frames of the real validation people, each once with its own neighbours and once with a base frame whose mouth
    differs most among those of similar pose."""
    model = load_face_model()
    maker = SampleMaker(model, config)
    for clip in read_manifest(data):
        if clip.split != "val" or clip.kind != "real" or not crops_path(runs, clip).exists():
            continue
        faces = ClipFaces(clip, runs, model)
        for target in np.linspace(2, len(faces) - 3, FRAMES_PER_CLIP).astype(int).tolist():
            lips = sorted_bank(faces, LIPS, excluded=target)
            yield Case(
                clip.name,
                maker.make(faces, target, neighbours(faces, target, NEAR, excluded=target), lips, None),
                False,
            )
            distance = np.abs(faces.pose - faces.pose[target]).sum(1) - np.abs(faces.opening - faces.opening[target])
            base = int(np.argmin(np.where(np.arange(len(faces)) == target, np.inf, distance)))
            yield Case(
                clip.name, maker.make(faces, target, neighbours(faces, base, NEAR, excluded=target), lips, None), True
            )


def psnr(pixels: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB under weight [1, H, W], images [..., 3, H, W] in [-1, 1]."""
    squared = ((pixels - truth).square() * weight).sum((-3, -2, -1)) / (3 * weight.sum())
    return 10 * torch.log10(4 / squared.clamp_min(1e-8))


def sharpness(pixels: Tensor, weight: Tensor) -> float:
    """Variance of the Laplacian of the grey image [3, H, W] under weight [1, H, W]."""
    grey = pixels.mean(0).numpy()
    laplacian = torch.from_numpy(cv2.Laplacian(grey, cv2.CV_32F))
    return float((laplacian.square() * weight[0]).sum() / weight.sum())


def evaluate(data: Path, runs: Path, out: Path, *, path: Path | None = None) -> dict[str, float]:
    """Write `out`/renderer.json and `out`/renderer.png (truth, ours, base frame, PNCC); the figures."""
    network = weights.load(DualAttentionRenderer, RendererConfig, path or weights.default_path("renderer"))
    lpips = Lpips()
    rows: list[dict[str, float]] = []
    pictures: list[np.ndarray] = []
    for number, case in enumerate(cases(data, runs, network.config)):
        with torch.inference_mode():
            ours = render(network, collate([case.sample]))[0].clamp(-1, 1)
        sample = case.sample
        lips = functional.interpolate(sample.lip_mask[None], scale_factor=4.0, mode="nearest")[0]
        pasted = (sample.paste > 0.5).float()
        copies = case.copies
        in_lips = psnr(copies, sample.truth, lips)
        openings = int(in_lips[NEAR:].argmax())
        rows.append(
            {
                "crossed": float(case.crossed),
                "lips_psnr": float(psnr(ours, sample.truth, lips)),
                "lips_psnr_base": float(in_lips[0]),
                "lips_psnr_best_face_reference": float(in_lips[:NEAR].max()),
                "lips_psnr_best_lip_reference": float(in_lips[NEAR + openings]),
                "pasted_psnr": float(psnr(ours, sample.truth, pasted)),
                "pasted_psnr_base": float(psnr(copies[0], sample.truth, pasted)),
                "lpips": float(lpips(ours[None], sample.truth[None])),
                "lpips_base": float(lpips(copies[:1], sample.truth[None])),
                "lips_sharpness_ratio": sharpness(ours, lips) / max(sharpness(sample.truth, lips), 1e-8),
            }
        )
        if number % 17 == 0:
            pictures.append(_row([sample.truth, ours, copies[0], copies[NEAR + openings]], sample.pncc[:, 4:-4, 4:-4]))
    figures = {
        f"{kind}/{name}": float(np.mean([row[name] for row in rows if row["crossed"] == crossed]))
        for kind, crossed in (("same", 0.0), ("crossed", 1.0))
        for name in rows[0]
        if name != "crossed"
    }
    for kind in ("same", "crossed"):
        best = max(figures[f"{kind}/lips_psnr_best_face_reference"], figures[f"{kind}/lips_psnr_best_lip_reference"])
        figures[f"{kind}/lips_gain_over_best_reference_db"] = figures[f"{kind}/lips_psnr"] - best
    out.mkdir(parents=True, exist_ok=True)
    (out / "renderer.json").write_text(json.dumps(figures, indent=2))
    cv2.imwrite(str(out / "renderer.png"), np.concatenate(pictures[:24])[..., ::-1])
    return figures


def _row(images: list[Tensor], pncc: Tensor) -> np.ndarray:
    pixels = [((image.clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).numpy() for image in images]
    return np.concatenate([*pixels, (pncc * 255).byte().permute(1, 2, 0).numpy()], axis=1)
