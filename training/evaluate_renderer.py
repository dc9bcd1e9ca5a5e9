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
from engine.compose import face_window
from engine.models.morphable import LIPS_INNER, LIPS_OUTER, project
from engine.models.renderer import DualAttentionRenderer, RendererConfig
from engine.painter import LIP_REFERENCES
from training.data import crops_path, read_manifest
from training.faces import ClipFaces, Sample, SampleMaker, collate, neighbours, sorted_bank
from training.perceptual import Lpips
from training.renderer import render

log = logging.getLogger(__name__)

FRAMES_PER_CLIP = 6
NEAR, LIPS = 5, 25  # N_f and N_l of inference
GAP_FRAMES = 5
LIP_VERTICES = [*LIPS_OUTER, *LIPS_INNER]
PICTURE_EVERY = 17


@dataclass(frozen=True)
class Case:
    """One frame of an unseen person. `copies` [1 + N_f + N_l, 3, H, W]: what copying would give: the base frame, each
    face reference at the same place, and the base frame with each lip reference's lips put onto the target's; `nearest`
    is the one whose lips have the most similar geometry, what one would copy without knowing the truth."""

    name: str
    sample: Sample
    copies: Tensor
    nearest: int
    crossed: bool  # the base frame shows another mouth than the target


def _copies(faces: ClipFaces, sample: Sample, target: int, near: list[int], lips: list[int]) -> Tensor:
    config = RendererConfig()
    height, width = sample.truth.shape[1:]
    aim = project(faces.canonical[target], faces.poses[target]).numpy()
    cell = face_window(aim, config)

    def window(row: int, shift: np.ndarray) -> Tensor:
        """The face window of frame `row`, moved by `shift` px so that its lips lie on the target's."""
        move = np.array([[1, 0, -cell[1] * 4 + shift[0]], [0, 1, -cell[0] * 4 + shift[1]]], np.float64)
        moved = cv2.warpAffine(
            faces.crop(row), move, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        return torch.from_numpy(moved).permute(2, 0, 1).float() / 127.5 - 1

    def centre(row: int) -> np.ndarray:
        return project(faces.canonical[row], faces.poses[row]).numpy()[list(LIPS_OUTER), :2].mean(0)

    still = [window(row, np.zeros(2)) for row in near]
    inside = functional.interpolate(sample.lip_mask[None], scale_factor=4.0, mode="nearest")[0] > 0
    lip = [torch.where(inside, window(row, centre(target) - centre(row)), still[0]) for row in lips]
    return torch.stack([*still, *lip])


def cases(data: Path, runs: Path, config: RendererConfig) -> Iterator[Case]:
    """Frames of the real validation people, each once with its own neighbours as face references and once with a base
    frame whose mouth differs most among those of similar pose. Lip references are the sorted bank of all frames that
    lie more than GAP_FRAMES from the target: those nearer show the same mouth, which live speech never finds."""
    model = weights.load_face_model()
    maker = SampleMaker(model, config)
    for clip in read_manifest(data):
        if clip.split != "val" or clip.kind != "real" or not crops_path(runs, clip).exists():
            continue
        faces = ClipFaces(clip, runs, model)
        for target in np.linspace(2, len(faces) - 3, FRAMES_PER_CLIP).astype(int).tolist():
            lips = sorted_bank(faces, LIPS, target, GAP_FRAMES)
            distance = np.abs(faces.pose - faces.pose[target]).sum(1) - np.abs(faces.opening - faces.opening[target])
            distance[np.abs(faces.index - faces.index[target]) <= GAP_FRAMES] = np.inf
            for crossed, base in ((False, target), (True, int(np.argmin(distance)))):
                near = neighbours(faces, base, NEAR, excluded=target)
                sample = maker.make(faces, target, near, lips + near, None, LIP_REFERENCES)  # as engine.painter does
                offsets = faces.canonical[near + lips][:, LIP_VERTICES] - faces.canonical[target][LIP_VERTICES]
                nearest = int(offsets.square().sum((1, 2)).argmin())
                yield Case(clip.name, sample, _copies(faces, sample, target, near, lips), nearest, crossed)


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
    """Write `out`/renderer.json and `out`/renderer.png (truth, ours, ours in the base frame, base frame, best reference
    by lip PSNR, PNCC); the figures."""
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
        in_lips = psnr(case.copies, sample.truth, lips)
        best = int(in_lips.argmax())
        shown = torch.lerp(sample.base, ours, sample.paste)  # what the viewer sees: the pasted part in the base frame
        rows.append(
            {
                "crossed": float(case.crossed),
                "lips_psnr": float(psnr(ours, sample.truth, lips)),
                "lips_psnr_base": float(in_lips[0]),
                "lips_psnr_nearest_reference": float(in_lips[case.nearest]),
                "lips_psnr_best_reference": float(in_lips.max()),
                "pasted_psnr": float(psnr(ours, sample.truth, pasted)),
                "pasted_psnr_base": float(psnr(sample.base, sample.truth, pasted)),
                "lpips": float(lpips(shown[None], sample.truth[None])),
                "lpips_base": float(lpips(sample.base[None], sample.truth[None])),
                "lips_sharpness_ratio": sharpness(ours, lips) / max(sharpness(sample.truth, lips), 1e-8),
            }
        )
        if number % PICTURE_EVERY == PICTURE_EVERY // 2:
            pictures.append(_row([sample.truth, ours, shown, sample.base, case.copies[best]], sample.pncc))
    figures = {
        f"{kind}/{name}": float(np.mean([row[name] for row in rows if row["crossed"] == crossed]))
        for kind, crossed in (("same", 0.0), ("crossed", 1.0))
        for name in rows[0]
        if name != "crossed"
    }
    for kind in ("same", "crossed"):
        for copy in ("base", "nearest_reference", "best_reference"):
            gain = figures[f"{kind}/lips_psnr"] - figures[f"{kind}/lips_psnr_{copy}"]
            figures[f"{kind}/lips_gain_over_{copy}_db"] = gain
    out.mkdir(parents=True, exist_ok=True)
    (out / "renderer.json").write_text(json.dumps(figures, indent=2))
    cv2.imwrite(str(out / "renderer.png"), np.concatenate(pictures[:24])[..., ::-1])
    return figures


def _row(images: list[Tensor], pncc: Tensor) -> np.ndarray:
    pixels = [((image.clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).numpy() for image in images]
    return np.concatenate([*pixels, (pncc * 255).byte().permute(1, 2, 0).numpy()], axis=1)
