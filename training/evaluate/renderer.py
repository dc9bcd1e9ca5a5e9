"""The renderer on people that training never saw, target frame excluded, beside what copying would give.

Three kinds of frames. `same`: self-reenactment as in the paper's Table 1: the lower face is rendered from other frames
of the video and pasted into the frame itself. `crossed`: as in live use the base frame has a similar pose and another
mouth; the truth is the frame that the mouth comes from. `driven`: a run of base frames with the mouths of another run,
through the engine's painter, for flicker. Of people whose face is large enough, `fine_same` and `fine_crossed` are the
first two kinds at 512 px (`training.evaluate.fine`).
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional

from engine.models import weights
from engine.models.morphable import CROP_PX, LIPS_INNER, LIPS_OUTER, MorphableModel, project
from engine.models.renderer import CELL_PX, DualAttentionRenderer, RendererConfig
from engine.paint.composite import paste
from engine.paint.painter import LIP_REFERENCES
from engine.paint.window import Window
from training.data.clips import crops_path, read_manifest
from training.evaluate.contact_sheet import attention_strip, fine_sheet, sheet_row
from training.evaluate.fine import Cast, FineClip, FineMeasures, is_large
from training.evaluate.flicker import Flicker, driven_run
from training.evaluate.measures import Identity, frechet, mouth_cavity, psnr, sharpness, signed, ssim, teeth
from training.renderer.lpips import Features, Lpips
from training.renderer.samples import ClipFaces, Sample, SampleMaker, collate, neighbours, sorted_bank
from training.renderer.train import render

log = logging.getLogger(__name__)

FRAMES_PER_CLIP = 3
GAP_FRAMES = 5
LIP_VERTICES = [*LIPS_OUTER, *LIPS_INNER]
PICTURE_EVERY = 11
MIN_TOOTH_PX = 40
FRECHET_PX = 128
BOX = np.array([0, 0, CROP_PX])  # a crop is its own frame


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which references are shown: as the engine does, or otherwise to see what that is worth."""

    near: int = 5  # N_f
    bank: int = 25  # N_l
    laid: int = LIP_REFERENCES  # so many of the bank and the face references are laid onto the lips
    spread: bool = True  # the bank spread over all mouth openings, or drawn at random
    similar: bool = True  # of the bank the most similar, or any
    dual: bool = True  # Lip- and Face-Attention, or the latter alone over the references of both


@dataclass(frozen=True)
class Case:
    """One frame of an unseen person: crops [256, 256, 3] uint8 of the truth and of the frame pasted into, the mesh
    [V, 3] of the truth. `copies` are what copying would give instead of the rendered window: the base frame and, with
    their lips put onto the target's, the lip references; `nearest` of them has the most similar lips."""

    name: str
    kind: str
    sample: Sample
    truth: np.ndarray
    under: np.ndarray
    mesh: np.ndarray
    copies: list[np.ndarray]
    nearest: int

    @property
    def window(self) -> Window:
        rows, columns = self.sample.face_difference.shape[-2:]
        row, column = self.sample.cell.tolist()
        return Window(row, column, rows, columns)


class CaseMaker:
    """Cases of one clip."""

    def __init__(self, faces: ClipFaces, maker: SampleMaker, choice: Choice):
        self._faces, self._maker, self._choice = faces, maker, choice
        self._rng = np.random.default_rng(0)

    def bank(self, target: int) -> list[int]:
        """Lip references: frames more than GAP_FRAMES from the target. Nearer ones show the same mouth, which live
        speech never finds."""
        if self._choice.spread:
            return sorted_bank(self._faces, self._choice.bank, target, GAP_FRAMES)
        far = np.flatnonzero(np.abs(self._faces.index - self._faces.index[target]) > GAP_FRAMES)
        return [int(row) for row in self._rng.choice(far, min(self._choice.bank, len(far)), replace=False)]

    def other_base(self, target: int) -> int:
        """Of similar pose, with another mouth."""
        faces = self._faces
        distance = np.abs(faces.pose - faces.pose[target]).sum(1) - np.abs(faces.opening - faces.opening[target])
        distance[np.abs(faces.index - faces.index[target]) <= GAP_FRAMES] = np.inf
        return int(np.argmin(distance))

    def cast(self, target: int, kind: str) -> Cast:
        """Who takes part: the rows of the base frame and of the references."""
        faces = self._faces
        base = target if kind == "same" else self.other_base(target)
        around = np.flatnonzero(np.abs(faces.index - faces.index[target]) <= GAP_FRAMES)
        near = neighbours(faces, base, self._choice.near, excluded=[target] if kind == "same" else around.tolist())
        return Cast(kind, target, base, near, self.bank(target))

    def case(self, cast: Cast) -> Case:
        faces, choice = self._faces, self._choice
        kind, target, base, near, bank = cast.kind, cast.target, cast.base, cast.near, cast.bank
        candidates = bank + near
        if not choice.similar:
            candidates = [candidates[i] for i in self._rng.permutation(len(candidates))[: choice.laid]]
        shown = near if choice.dual else near + self._similar(target, bank)
        sample = self._maker.make(faces, [target], shown, candidates, None, choice.laid)[0]
        copied = near[:1] + bank
        return Case(
            name=faces.clip.name,
            kind=kind,
            sample=sample,
            truth=faces.crop(target),
            under=faces.crop(base),
            mesh=project(faces.canonical[target], faces.poses[target]).numpy(),
            copies=self._copies(sample, target, near[0], bank),
            nearest=copied.index(self._similar(target, copied)[0]),
        )

    def _similar(self, target: int, rows: list[int]) -> list[int]:
        """Of `rows` the `choice.laid` whose lips are the most similar to the target's, these first."""
        faces = self._faces
        offsets = faces.canonical[rows][:, LIP_VERTICES] - faces.canonical[target][LIP_VERTICES]
        order = offsets.square().sum((1, 2)).argsort(stable=True)
        return [rows[i] for i in order[: self._choice.laid].tolist()]

    def _copies(self, sample: Sample, target: int, base: int, bank: list[int]) -> list[np.ndarray]:
        faces, (rows, columns) = self._faces, sample.face_difference.shape[-2:]
        window = Window(*sample.cell.tolist(), rows, columns)
        still = faces.crop(base)[window.pixels]
        inside = np.kron(sample.lip_mask[0].numpy() > 0, np.ones((CELL_PX, CELL_PX), bool))[..., None]

        def centre(row: int) -> np.ndarray:
            return project(faces.canonical[row], faces.poses[row]).numpy()[list(LIPS_OUTER), :2].mean(0)

        copies = [still]
        for row in bank:
            shift = centre(target) - centre(row)
            move = np.array([[1, 0, shift[0] - window.left], [0, 1, shift[1] - window.top]], np.float64)
            moved = cv2.warpAffine(
                faces.crop(row), move, (window.width, window.height), borderMode=cv2.BORDER_REPLICATE
            )
            copies.append(np.where(inside, moved, still))
        return copies


class Measures:
    """The figures of one case; the features for the Fréchet distances are kept until the end."""

    def __init__(self) -> None:
        self._lpips, self._vgg, self._identity = Lpips(), Features("vgg16"), Identity()
        self.features: dict[str, list[np.ndarray]] = defaultdict(list)

    @torch.inference_mode()
    def __call__(self, case: Case, rendered: np.ndarray) -> dict[str, float]:
        """`rendered` [h, w, 3] uint8: the face window."""
        window, mask = case.window, case.sample.paste[0].numpy()
        lips = self._placed(np.kron(case.sample.lip_mask[0].numpy() > 0, np.ones((CELL_PX, CELL_PX))), window)
        pasted = self._placed((mask > 0.5).astype(np.float64), window)
        tooth = teeth(case.truth, mouth_cavity(case.mesh, CROP_PX))
        best = int(np.argmax([psnr(self._whole(copy, window), case.truth, lips) for copy in case.copies]))
        shown = {"ours": rendered, "base": case.copies[0], "nearest": case.copies[case.nearest]}
        shown["best"] = case.copies[best]
        identity = self._identity.embed(case.truth, case.mesh)
        figures: dict[str, float] = {}
        for name, pixels in shown.items():
            crop = paste(case.under, BOX, window, pixels, mask)
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
                figures[f"teeth_lpips/{name}"] = self._in_teeth(raw, case, tooth)
            if name in ("ours", "base"):  # the dear ones
                figures[f"crop_lpips/{name}"] = self._distance(crop, case.truth)
                figures[f"crop_csim/{name}"] = float(identity @ self._identity.embed(crop, case.mesh))
                self.features[f"{case.kind}/{name}"].append(self._described(crop[window.pixels]))
        self.features[f"{case.kind}/truth"].append(self._described(case.truth[window.pixels]))
        return figures

    def _distance(self, image: np.ndarray, truth: np.ndarray) -> float:
        return float(self._lpips(signed(image)[None], signed(truth)[None]))

    def _in_teeth(self, image: np.ndarray, case: Case, tooth: np.ndarray) -> float:
        """LPIPS of the twice enlarged mouth under the tooth pixels."""
        y, x = np.nonzero(tooth)
        top, left = (int(np.clip((v.min() + v.max()) // 2 - 32, 0, CROP_PX - 64)) for v in (y, x))
        part = np.s_[top : top + 64, left : left + 64]
        pair = [
            functional.interpolate(signed(i[part])[None], scale_factor=2, mode="bilinear") for i in (image, case.truth)
        ]
        weight = functional.interpolate(torch.from_numpy(tooth[part])[None, None].float(), scale_factor=2)
        return float(self._lpips(*pair, weight))

    def _described(self, image: np.ndarray) -> np.ndarray:
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


def clips(data: Path, runs: Path, model: MorphableModel) -> Iterator[ClipFaces]:
    """The real validation people."""
    for clip in read_manifest(data):
        if clip.split == "val" and clip.kind == "real" and crops_path(runs, clip).exists():
            yield ClipFaces(clip, runs, model)


def evaluate(
    data: Path, runs: Path, out: Path, *, path: Path | None = None, choice: Choice = Choice()
) -> dict[str, float]:
    """Write `out`/renderer.json, `out`/renderer.png (truth, ours, base frame, PNCC; below them where three queries
    look)
    and, of large faces, `out`/fine.png (truth, fast, best); the figures, means over frames."""
    network = weights.load(DualAttentionRenderer, RendererConfig, path or weights.default_path("renderer"))
    model = weights.load_face_model()
    maker, measures, flicker, fine = SampleMaker(model), Measures(), Flicker(model), FineMeasures(network, model)
    rows: dict[str, list[float]] = defaultdict(list)
    pictures: list[np.ndarray] = []
    zoomed: list[list[np.ndarray]] = []
    number = 0
    for faces in clips(data, runs, model):
        cases = CaseMaker(faces, maker, choice)
        fine_clip = FineClip(faces, runs) if is_large(faces, runs) else None
        for target in np.linspace(2, len(faces) - 3, FRAMES_PER_CLIP).astype(int).tolist():
            for kind in ("same", "crossed"):
                cast = cases.cast(target, kind)
                case = cases.case(cast)
                asked = case.sample if choice.dual else replace(case.sample, lip_mask=0 * case.sample.lip_mask)
                rendered = render_uint8(network, asked)
                for name, value in measures(case, rendered).items():
                    rows[f"{kind}/{name}"].append(value)
                if fine_clip is not None:
                    zoomed.append(fine(fine_clip, cast))
                if number % PICTURE_EVERY == 0:
                    shown = paste(case.under, BOX, case.window, rendered, case.sample.paste[0].numpy())
                    images = [case.truth, shown, case.under]
                    pictures.append(sheet_row([image[case.window.pixels] for image in images], case.sample.pncc))
                    pictures.append(attention_strip(network, case.sample))
                number += 1
        for name, run in zip(("ours", "recorded"), driven_run(network, faces, model), strict=True):
            for figure, value in flicker(run).items():
                rows[f"driven/{figure}/{name}"].append(value)
    figures = {name: float(np.mean(values)) for name, values in (rows | fine.figures).items()}
    for name in ("temporal_lpips", "still_difference"):
        figures[f"driven/{name}_ratio"] = figures[f"driven/{name}/ours"] / figures[f"driven/{name}/recorded"]
    for name in [n for n in measures.features if not n.endswith("truth")]:
        kind = name.split("/")[0]
        true, made = (np.stack(measures.features[key]) for key in (f"{kind}/truth", name))
        figures[f"{kind}/frechet_vgg/{name.split('/')[1]}"] = frechet(made, true)
    out.mkdir(parents=True, exist_ok=True)
    (out / "renderer.json").write_text(json.dumps(figures, indent=2))
    cv2.imwrite(str(out / "renderer.png"), np.concatenate(pictures)[..., ::-1])
    if zoomed:
        cv2.imwrite(str(out / "fine.png"), fine_sheet(zoomed)[..., ::-1])
    return figures


@torch.inference_mode()
def render_uint8(network: DualAttentionRenderer, sample: Sample) -> np.ndarray:
    """The face window [h, w, 3]."""
    pixels = render(network, collate([sample]))[0]
    return ((pixels.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
