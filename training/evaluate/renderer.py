"""Figures of the renderer on unseen people, without the target frame among the references, compared with copying.

There are three kinds of frames. `same`: self-reenactment as in the paper's Table 1; the lower face is rendered from
other frames of the video and pasted into the frame itself. `crossed`: as live, the base frame has a similar pose and
another mouth; the truth is the frame of that mouth. `driven`: consecutive base frames with the mouths of another
stretch, through the engine's painter, for flicker, with every picture rendered (`ours`) and every second one (`half`).
For large faces, `fine_same` and `fine_crossed` are the first two kinds at 512 px (`training.evaluate.fine`).
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional

from engine.models import weights
from engine.models.morphable import CROP_PX, MorphableModel
from engine.models.renderer import CELL_PX, DualAttentionRenderer, RendererConfig
from engine.paint.composite import paste
from engine.paint.window import Window
from precompute.identity import Identity
from training.data.clips import crops_path, read_manifest
from training.evaluate.cases import Case, CaseMaker, Choice
from training.evaluate.contact_sheet import attention_strip, fine_sheet, sheet_row
from training.evaluate.fine import FineClip, FineMeasures, is_large
from training.evaluate.flicker import Flicker, LaidPictures, driven_sequences
from training.evaluate.measures import frechet, mouth_cavity, psnr, sharpness, signed, ssim, teeth
from training.renderer.lpips import Features, Lpips
from training.renderer.samples import ClipFaces, Sample, SampleMaker, collate
from training.renderer.train import render

log = logging.getLogger(__name__)

FRAMES_PER_CLIP = 3
PICTURE_EVERY = 11
MIN_TOOTH_PX = 40
FRECHET_PX = 128
BOX = np.array([0, 0, CROP_PX])  # the crop is the whole frame


class Measures:
    """Measures cases. `features`: of all cases so far, for the Fréchet distances."""

    def __init__(self) -> None:
        self._lpips, self._vgg, self._identity = Lpips(), Features("vgg16"), Identity()
        self.features: dict[str, list[np.ndarray]] = defaultdict(list)

    @torch.inference_mode()
    def __call__(self, case: Case, rendered: np.ndarray) -> dict[str, float]:
        """The figures of one case; rendered [h, w, 3] uint8 is the face window."""
        window, mask = case.window, case.sample.paste[0].numpy()
        lips = self._placed(np.kron(case.sample.lip_mask[0].numpy() > 0, np.ones((CELL_PX, CELL_PX))), window)
        pasted = self._placed((mask > 0.5).astype(np.float64), window)
        tooth = teeth(case.truth, mouth_cavity(case.mesh, CROP_PX))
        best = int(np.argmax([psnr(self._whole(copy, window), case.truth, lips) for copy in case.copies]))
        windows = {"ours": rendered, "base": case.copies[0], "nearest": case.copies[case.nearest]}
        windows["best"] = case.copies[best]
        identity = self._identity.embed(case.truth, case.mesh)
        figures: dict[str, float] = {}
        for name, pixels in windows.items():
            crop = paste(case.base, BOX, window, pixels, mask)
            raw = self._whole(pixels, window)
            figures |= {
                f"crop_ssim/{name}": ssim(crop, case.truth),
                f"crop_psnr/{name}": psnr(crop, case.truth),
                f"pasted_ssim/{name}": ssim(crop, case.truth, pasted),
                f"pasted_psnr/{name}": psnr(raw, case.truth, pasted),
                f"lips_psnr/{name}": psnr(raw, case.truth, lips),
                f"lips_ssim/{name}": ssim(crop, case.truth, lips),
                f"window_lpips/{name}": self._distance(crop[window.pixels], case.truth[window.pixels]),
                f"lips_sharpness/{name}": sharpness(raw, lips) / max(sharpness(case.truth, lips), 1e-8),
            }
            if tooth.sum() >= MIN_TOOTH_PX:
                figures[f"teeth_lpips/{name}"] = self._teeth_lpips(raw, case, tooth)
            if name in ("ours", "base"):  # these figures are expensive
                figures[f"crop_lpips/{name}"] = self._distance(crop, case.truth)
                figures[f"crop_csim/{name}"] = float(identity @ self._identity.embed(crop, case.mesh))
                self.features[f"{case.kind}/{name}"].append(self._vgg_features(crop[window.pixels]))
        self.features[f"{case.kind}/truth"].append(self._vgg_features(case.truth[window.pixels]))
        return figures

    def _distance(self, image: np.ndarray, truth: np.ndarray) -> float:
        return float(self._lpips(signed(image)[None], signed(truth)[None]))

    def _teeth_lpips(self, image: np.ndarray, case: Case, tooth: np.ndarray) -> float:
        """LPIPS of the twice enlarged mouth under the tooth pixels."""
        y, x = np.nonzero(tooth)
        top, left = (int(np.clip((v.min() + v.max()) // 2 - 32, 0, CROP_PX - 64)) for v in (y, x))
        part = np.s_[top : top + 64, left : left + 64]
        pair = [
            functional.interpolate(signed(i[part])[None], scale_factor=2, mode="bilinear") for i in (image, case.truth)
        ]
        weight = functional.interpolate(torch.from_numpy(tooth[part])[None, None].float(), scale_factor=2)
        return float(self._lpips(*pair, weight))

    def _vgg_features(self, image: np.ndarray) -> np.ndarray:
        small = cv2.resize(image, (FRECHET_PX, FRECHET_PX), interpolation=cv2.INTER_AREA)
        return self._vgg(signed(small)[None])[-1].mean((2, 3))[0].numpy()

    @staticmethod
    def _placed(part: np.ndarray, window: Window) -> np.ndarray:
        whole = np.zeros((CROP_PX, CROP_PX))
        whole[window.pixels] = part
        return whole

    @staticmethod
    def _whole(pixels: np.ndarray, window: Window) -> np.ndarray:
        whole = np.zeros((CROP_PX, CROP_PX, 3), np.uint8)
        whole[window.pixels] = pixels
        return whole


class Evaluation:
    """Measures clip after clip: figures by name, and rows of pictures."""

    def __init__(self, network: DualAttentionRenderer, model: MorphableModel, runs: Path, choice: Choice) -> None:
        self.pictures: list[np.ndarray] = []
        self.fine_pictures: list[list[np.ndarray]] = []
        self._network, self._model, self._runs, self._choice = network, model, runs, choice
        self._maker, self._measures = SampleMaker(model), Measures()
        self._flicker, self._laid, self._fine = Flicker(model), LaidPictures(model), FineMeasures(network, model)
        self._values: dict[str, list[float]] = defaultdict(list)
        self._cases = 0

    def measure(self, faces: ClipFaces) -> None:
        """Measure FRAMES_PER_CLIP frames of a clip, and the flicker of one stretch."""
        cases = CaseMaker(faces, self._maker, self._choice)
        fine_clip = FineClip(faces, self._runs) if is_large(faces, self._runs) else None
        for target in np.linspace(2, len(faces) - 3, FRAMES_PER_CLIP).astype(int).tolist():
            for kind in ("same", "crossed"):
                cast = cases.cast(target, kind)
                self._measure_case(cases.case(cast))
                if fine_clip is not None:
                    self.fine_pictures.append(self._fine(fine_clip, cast))
        sequences = driven_sequences(self._network, faces, self._model)
        for name, sequence in sequences.items():
            for figure, value in self._flicker(sequence).items():
                self._values[f"driven/{figure}/{name}"].append(value)
        for figure, value in self._laid(sequences["ours"], sequences["half"]).items():
            self._values[f"driven/{figure}"].append(value)

    def figures(self) -> dict[str, float]:
        """Means over all frames, ratios of flicker and Fréchet distances."""
        figures = {name: float(np.mean(values)) for name, values in (self._values | self._fine.figures).items()}
        for name in ("temporal_lpips", "still_difference"):
            for kind in ("ours", "half"):
                figures[f"driven/{name}_ratio/{kind}"] = (
                    figures[f"driven/{name}/{kind}"] / figures[f"driven/{name}/recorded"]
                )
        features = self._measures.features
        for key in [key for key in features if not key.endswith("truth")]:
            kind, name = key.split("/")
            ours, true = np.stack(features[key]), np.stack(features[f"{kind}/truth"])
            figures[f"{kind}/frechet_vgg/{name}"] = frechet(ours, true)
        return figures

    def _measure_case(self, case: Case) -> None:
        sample = case.sample
        if not self._choice.dual:
            sample = replace(sample, lip_mask=0 * sample.lip_mask)
        rendered = render_uint8(self._network, sample)
        for name, value in self._measures(case, rendered).items():
            self._values[f"{case.kind}/{name}"].append(value)
        if self._cases % PICTURE_EVERY == 0:
            ours = paste(case.base, BOX, case.window, rendered, case.sample.paste[0].numpy())
            windows = [image[case.window.pixels] for image in (case.truth, ours, case.base)]
            self.pictures += [sheet_row(windows, case.sample.pncc), attention_strip(self._network, case.sample)]
        self._cases += 1


def evaluate(
    data: Path, runs: Path, out: Path, *, path: Path | None = None, choice: Choice | None = None
) -> dict[str, float]:
    """Write figures to `out`/renderer.json and pictures to `out`/renderer.png (truth, ours, base frame, PNCC; below
    them the attention of three queries) and, for large faces, `out`/fine.png (truth, fast, best).

    Evaluates the real validation people, with the weights in `path` (default: the embedded ones). Returns the figures.
    """
    network = weights.load(DualAttentionRenderer, RendererConfig, path or weights.default_path("renderer"))
    model = weights.load_face_model()
    evaluation = Evaluation(network, model, runs, choice or Choice())
    for clip in read_manifest(data):
        if clip.split == "val" and clip.kind == "real" and crops_path(runs, clip).exists():
            evaluation.measure(ClipFaces(clip, runs, model))
    figures = evaluation.figures()
    out.mkdir(parents=True, exist_ok=True)
    (out / "renderer.json").write_text(json.dumps(figures, indent=2))
    cv2.imwrite(str(out / "renderer.png"), np.concatenate(evaluation.pictures)[..., ::-1])
    if evaluation.fine_pictures:
        cv2.imwrite(str(out / "fine.png"), fine_sheet(evaluation.fine_pictures)[..., ::-1])
    return figures


@torch.inference_mode()
def render_uint8(network: DualAttentionRenderer, sample: Sample) -> np.ndarray:
    """The face window [h, w, 3]."""
    pixels = render(network, collate([sample]))[0]
    return ((pixels.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
