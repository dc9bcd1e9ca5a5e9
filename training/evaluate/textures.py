"""Painted mouths of unseen people across halves: the engine's painter has base frames and references of one half of a
clip, and paints the recorded lips of the other half, which are the truth. `base` is the base frame left as it is.

- texture: squared high-pass (SIGMA px of the mouth box) inside the inner lips where they are open, over the truth's.
- dists, lpips: of the mouth box, BOX_PX px of an interocular distance around the lips, upright.
- flicker: change inside the mouth from frame to frame with the mesh's motion removed, over the recording's.
- leak: share of base frames with an open mouth that, painted with closed lips, the tracker sees open.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from engine.models import weights
from engine.models.morphable import LIPS_INNER, LIPS_OUTER, MorphableModel
from engine.models.renderer import DualAttentionRenderer, RendererConfig
from engine.paint.painter import CpuPainter
from engine.paint.shape import Shape
from precompute.rest import rest_expression
from precompute.track import track
from training.data.clips import crops_path, read_manifest
from training.evaluate.dists import Dists
from training.evaluate.flicker import Flicker, Sequence, clip_painter
from training.evaluate.measures import signed
from training.renderer.lpips import Lpips
from training.renderer.samples import ClipFaces

BOX_PX = 128
EYES = (33, 263)  # outer corners, one interocular distance apart
SIGMA = 2 * BOX_PX / 120  # 2 px at an interocular distance of 120 px
MIN_CAVITY_PX = 150
STRETCH_FRAMES = 8
TALKING_OPENING, OPEN_OPENING = 0.08, 0.04  # of the interocular distance
LEAK_FRAMES = 6
COMPARED_EVERY = 2  # frames
UPPER, UNDER = (82, 13, 312), (87, 14, 317)


def mouth_box(image: np.ndarray, mesh: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upright box [BOX_PX, BOX_PX, 3] around the lips of mesh [V, 3] px, and the mask of the inner mouth in it."""
    right, left = mesh[list(EYES), :2]
    (x, y), size = left - right, float(np.hypot(*(left - right)))
    centre = mesh[list(LIPS_OUTER), :2].mean(0)
    turn = np.array([[x, y], [-y, x]]) / size * BOX_PX / size
    move = np.concatenate([turn, (BOX_PX / 2 - turn @ (centre - 0.5))[:, None]], 1)
    box = cv2.warpAffine(image, move, (BOX_PX, BOX_PX), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    lips = (mesh[list(LIPS_INNER), :2] - 0.5) @ turn.T + move[:, 2]
    cavity = np.zeros((BOX_PX, BOX_PX), np.uint8)
    cv2.fillPoly(cavity, [np.rint(lips * 16).astype(np.int32)], (1,), shift=4)
    return box, cavity > 0


def detail(box: np.ndarray, cavity: np.ndarray) -> float:
    """Mean squared high-pass of the grey box inside the mouth."""
    grey = cv2.cvtColor(box, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(np.square(grey - cv2.GaussianBlur(grey, (0, 0), SIGMA))[cavity].mean())


@dataclass
class MouthTextures:
    """Measures clip after clip. `figures`: by person, then by name, one value a clip and direction; `sheets`: by
    person, boxes of the truth over painted ones and base frames."""

    network: DualAttentionRenderer
    model: MorphableModel
    figures: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    sheets: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._dists, self._lpips, self._flicker = Dists(), Lpips(), Flicker(self.model)

    def measure(self, faces: ClipFaces) -> None:
        """Both directions of a clip that has two stretches of frames."""
        middle = len(faces) // 2
        for rows, others in ((range(middle), range(middle, len(faces))), (range(middle, len(faces)), range(middle))):
            bases, targets = _stretches(faces, rows), _stretches(faces, others)
            if bases and targets:
                self._direction(faces, bases, targets, list(others))

    @torch.inference_mode()
    def _direction(self, faces: ClipFaces, bases: list[int], targets: list[int], judged: list[int]) -> None:
        painter = clip_painter(self.network, faces, self.model, without=judged)
        lower = self.model.lower
        first = max(targets, key=lambda row: faces.opening[row : row + STRETCH_FRAMES].mean())
        base = min(bases, key=lambda row: float(np.abs(faces.pose[row] - faces.pose[first]).sum()))
        painted, shapes = [], []
        for i in range(STRETCH_FRAMES):
            vertices = faces.canonical[base + i].clone()
            vertices[lower] = faces.canonical[first + i][lower]
            painted.append(painter.paint(base + i, vertices[lower]))
            shapes.append(Shape.posed(vertices, faces.neutral[base + i], faces.poses[base + i]))
        ours = Sequence(painted, shapes)
        recorded, left = (_recording(faces, row) for row in (first, base))
        figures = self._compare(ours, recorded)
        figures |= {f"base_{name}": value for name, value in self._compare(left, recorded).items()}
        still = self._flicker(recorded).get("inside")
        if still:
            figures["flicker"] = self._flicker(ours)["inside"] / still
        if (leak := self._leak(painter, faces, judged)) is not None:
            figures["leak"] = leak
        for name, value in figures.items():
            self.figures[faces.clip.identity][name].append(value)
        self.sheets.setdefault(faces.clip.identity, [_boxes(sequence) for sequence in (recorded, ours, left)])

    def _compare(self, ours: Sequence, truth: Sequence) -> dict[str, float]:
        energies, dists, lpips = [], [], []
        for i in range(0, len(truth.crops), COMPARED_EVERY):
            (box, cavity), (true_box, true_cavity) = (
                mouth_box(sequence.crops[i], sequence.shapes[i].mesh) for sequence in (ours, truth)
            )
            pair = [signed(image)[None] for image in (box, true_box)]
            dists.append(float(self._dists(*pair)))
            lpips.append(float(self._lpips(*pair)))
            if min(cavity.sum(), true_cavity.sum()) >= MIN_CAVITY_PX:
                energies.append((detail(box, cavity), detail(true_box, true_cavity)))
        figures = {"dists": float(np.mean(dists)), "lpips": float(np.mean(lpips))}
        if energies:
            own, true = np.mean(energies, axis=0)
            figures["texture"] = float(own / max(true, 1e-6))
        return figures

    def _leak(self, painter: CpuPainter, faces: ClipFaces, judged: list[int]) -> float | None:
        talking = [row for row in range(len(faces)) if row not in judged and faces.opening[row] > TALKING_OPENING]
        if not talking:
            return None
        chosen = [talking[i] for i in np.linspace(0, len(talking) - 1, min(LEAK_FRAMES, len(talking))).astype(int)]
        rest = rest_expression(self.model, faces.alpha, faces.beta, np.ones(len(faces), bool))
        closed = self.model.vertices(faces.alpha, rest.expand(len(faces), -1))[:, self.model.lower]
        points = track([painter.paint(row, closed[row]) for row in chosen]).points
        gaps = np.linalg.norm(points[:, UPPER, :2] - points[:, UNDER, :2], axis=-1).mean(1)
        eyes = np.linalg.norm(points[:, EYES[1], :2] - points[:, EYES[0], :2], axis=-1)
        return float((gaps / eyes > OPEN_OPENING).mean())


def _recording(faces: ClipFaces, first: int) -> Sequence:
    """The stretch from row `first` on, as recorded."""
    rows = range(first, first + STRETCH_FRAMES)
    shapes = [Shape.posed(faces.canonical[row], faces.neutral[row], faces.poses[row]) for row in rows]
    return Sequence([faces.crop(row) for row in rows], shapes)


def _boxes(sequence: Sequence) -> np.ndarray:
    """The mouth boxes of a sequence side by side."""
    shown = zip(sequence.crops, sequence.shapes, strict=True)
    return np.concatenate([mouth_box(crop, shape.mesh)[0] for crop, shape in shown], 1)


def _stretches(faces: ClipFaces, rows: range) -> list[int]:
    """First rows of stretches of STRETCH_FRAMES consecutive frames within `rows`."""
    last = STRETCH_FRAMES - 1
    return [row for row in rows[:-last] if faces.index[row + last] - faces.index[row] == last]


def pictures(data: Path, runs: Path, out: Path, path: Path | None = None) -> dict[str, float]:
    """The figures of the module's docstring over the real validation people, with the renderer in `path` (default: the
    embedded one); draws for every person `out`/mouth-IDENTITY.png: the truth, painted, the base frames as they are."""
    network = weights.load(DualAttentionRenderer, RendererConfig, path or weights.default_path("renderer"))
    model = weights.load_face_model()
    textures = MouthTextures(network, model)
    for clip in read_manifest(data):
        if clip.split == "val" and clip.kind == "real" and crops_path(runs, clip).exists():
            textures.measure(ClipFaces(clip, runs, model))
    for identity, rows in textures.sheets.items():
        cv2.imwrite(str(out / f"mouth-{identity}.png"), np.concatenate(rows)[..., ::-1])
    return summary(textures.figures)


def summary(figures: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Means over people, and the worst texture of a person."""
    people = {person: {name: float(np.mean(x)) for name, x in values.items()} for person, values in figures.items()}
    names = sorted({name for values in people.values() for name in values})
    means = {name: float(np.mean([values[name] for values in people.values() if name in values])) for name in names}
    textures = [values["texture"] for values in people.values() if "texture" in values]
    return {"people": len(people), **means, "texture_least": min(textures, default=0.0)}
