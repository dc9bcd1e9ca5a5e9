"""Test cases of the renderer: a frame of an unseen person and the references that it is rendered from."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from engine.models.morphable import LIPS_INNER, LIPS_OUTER, project
from engine.models.renderer import CELL_PX
from engine.paint.references import LIP_REFERENCES
from engine.paint.window import Window
from training.renderer.samples import ClipFaces, Sample, SampleMaker, neighbours, sorted_bank

GAP_FRAMES = 5
LIP_VERTICES = [*LIPS_OUTER, *LIPS_INNER]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The choice of references: by default that of the engine; other values measure the effect of its parts."""

    near: int = 5  # N_f
    bank: int = 25  # N_l
    laid: int = LIP_REFERENCES  # number of references, from bank and face references, warped onto the lips
    spread: bool = True  # the bank spread over all mouth openings, or drawn at random
    similar: bool = True  # the most similar lips, or any
    dual: bool = True  # Lip- and Face-Attention, or the latter alone over the references of both


@dataclass(frozen=True)
class Cast:
    """The rows of a clip in a case: `target` is rendered onto the frame `base`, with face references `near` and
    lip references `bank`."""

    kind: str
    target: int
    base: int
    near: list[int]
    bank: list[int]


@dataclass(frozen=True)
class Case:
    """One frame of an unseen person: crops [256, 256, 3] uint8 of the truth and of the base frame, and the mesh [V, 3]
    of the truth.

    copies: face windows copied instead of rendered, first the base frame, then the base frame with the lips
    of each lip reference.  nearest: the index of the copy with the most similar lips.
    """

    name: str
    kind: str
    sample: Sample
    truth: np.ndarray
    base: np.ndarray
    mesh: np.ndarray
    copies: list[np.ndarray]
    nearest: int

    @property
    def window(self) -> Window:
        rows, columns = self.sample.face_difference.shape[-2:]
        row, column = self.sample.cell.tolist()
        return Window(int(row), int(column), rows, columns)


class CaseMaker:
    """Cases of one clip."""

    def __init__(self, faces: ClipFaces, maker: SampleMaker, choice: Choice):
        self._faces, self._maker, self._choice = faces, maker, choice
        self._rng = np.random.default_rng(0)

    def bank(self, target: int) -> list[int]:
        """Lip references: frames more than GAP_FRAMES from the target. Nearer frames show the same mouth, which does
        not happen live."""
        if self._choice.spread:
            return sorted_bank(self._faces, self._choice.bank, target, GAP_FRAMES)
        far = np.flatnonzero(np.abs(self._faces.index - self._faces.index[target]) > GAP_FRAMES)
        return [int(row) for row in self._rng.choice(far, min(self._choice.bank, len(far)), replace=False)]

    def other_base(self, target: int) -> int:
        """The row of a base frame of similar pose with another mouth."""
        faces = self._faces
        distance = np.abs(faces.pose - faces.pose[target]).sum(1) - np.abs(faces.opening - faces.opening[target])
        distance[np.abs(faces.index - faces.index[target]) <= GAP_FRAMES] = np.inf
        return int(np.argmin(distance))

    def cast(self, target: int, kind: str) -> Cast:
        """The rows of the base frame and of the references for a case."""
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
        face_rows = near if choice.dual else near + self._similar(target, bank)
        sample = self._maker.make(faces, [target], face_rows, candidates, None, choice.laid)[0]
        copied = near[:1] + bank
        return Case(
            name=faces.clip.name,
            kind=kind,
            sample=sample,
            truth=faces.crop(target),
            base=faces.crop(base),
            mesh=project(faces.canonical[target], faces.poses[target]).numpy(),
            copies=self._copies(sample, target, near[0], bank),
            nearest=copied.index(self._similar(target, copied)[0]),
        )

    def _similar(self, target: int, rows: list[int]) -> list[int]:
        """The `choice.laid` of `rows` with the lips most similar to the target's, the most similar first."""
        faces = self._faces
        offsets = faces.canonical[rows][:, LIP_VERTICES] - faces.canonical[target][LIP_VERTICES]
        order = offsets.square().sum((1, 2)).argsort(stable=True)
        return [rows[i] for i in order[: self._choice.laid].tolist()]

    def _copies(self, sample: Sample, target: int, base: int, bank: list[int]) -> list[np.ndarray]:
        faces, (rows, columns) = self._faces, sample.face_difference.shape[-2:]
        row, column = sample.cell.tolist()
        window = Window(int(row), int(column), rows, columns)
        still = faces.crop(base)[window.pixels]
        inside = np.kron(sample.lip_mask[0].numpy() > 0, np.ones((CELL_PX, CELL_PX), bool))[..., None]

        def centre(row: int) -> np.ndarray:
            return project(faces.canonical[row], faces.poses[row]).numpy()[list(LIPS_OUTER), :2].mean(0)

        copies = [still]
        for source in bank:
            shift = centre(target) - centre(source)
            move = np.array([[1, 0, shift[0] - window.left], [0, 1, shift[1] - window.top]], np.float64)
            moved = cv2.warpAffine(
                faces.crop(source), move, (window.width, window.height), borderMode=cv2.BORDER_REPLICATE
            )
            copies.append(np.where(inside, moved, still))
        return copies
