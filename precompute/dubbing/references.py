"""The lip references of each person in each shot. A short shot borrows from the others, in its own colours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import torch

from engine.avatar.file import Bank
from engine.models.morphable import CROP_PX
from engine.models.renderer import FINE
from engine.paint.composite import cut
from precompute.bank import FINE_FROM_PX
from precompute.dubbing.people import Person, boxes
from precompute.dubbing.planes import Region
from precompute.dubbing.source import Source

REFERENCES = 75  # three times as many as an avatar has: the nearest six then show nearly the same teeth
OWN_SHARE = 0.7  # of the person's range of mouth openings: a shot that has it needs no references of other shots
FROM_SHOT = 30  # references of its own for a shot that borrows the others
NEAR_PICTURES = 100  # references nearer to each other are read in one go
GAIN = 0.7, 1.4  # of the contrast of borrowed references


@dataclass(frozen=True)
class Place:
    """A picture of a run: the run's number in the person, and the picture's in the run."""

    run: int
    picture: int


def choose(person: Person) -> dict[int, list[Place]]:
    """For each shot of the person the places of its lip references, from the most closed to the most open mouth.

    A shot that shows most of the person's mouth openings has references of its own; others borrow from all shots.
    """
    places = [Place(r, int(t)) for r, good in enumerate(person.good) for t in np.flatnonzero(good)]
    opening = np.array([person.runs[place.run].opening[place.picture] for place in places])
    shots = np.array([person.runs[place.run].shot for place in places])
    low, high = np.percentile(opening, [2, 98])
    everywhere = _evenly(places, opening, REFERENCES)
    chosen: dict[int, list[Place]] = {}
    for shot in sorted({run.shot for run in person.runs}):
        own = np.flatnonzero(shots == shot)
        reach = np.ptp(np.percentile(opening[own], [2, 98])) if len(own) else 0.0
        if len(own) >= REFERENCES and reach >= OWN_SHARE * (high - low):
            chosen[shot] = _evenly([places[i] for i in own], opening[own], REFERENCES)
        else:
            mine = _evenly([places[i] for i in own], opening[own], FROM_SHOT)
            both = list(dict.fromkeys([*mine, *everywhere]))
            chosen[shot] = sorted(both, key=lambda place: person.runs[place.run].opening[place.picture])
    return chosen


def portrait(person: Person) -> Place:
    """The place where the person is seen best: large, sharp and from the front."""
    scores = [
        np.where(good, run.face_px * np.sqrt(run.sharpness) * np.cos(np.radians(run.yaw_deg)), -1.0)
        for run, good in zip(person.runs, person.good, strict=True)
    ]
    run = int(np.argmax([score.max() for score in scores]))
    return Place(run, int(np.argmax(scores[run])))


def _evenly(places: Sequence[Place], opening: np.ndarray, count: int) -> list[Place]:
    """Up to `count` places, evenly spaced in the order of opening."""
    order = np.argsort(opening, kind="stable")
    picks = np.unique(np.rint(np.linspace(0, len(order) - 1, min(count, len(order)))).astype(int)) if len(order) else []
    return [places[order[i]] for i in picks]


class Crops:
    """The crops of references, as lossless pictures in a folder: a film has thousands."""

    def __init__(self, folder: Path, best: bool):
        self._folder, self._best = folder, best
        folder.mkdir(exist_ok=True)

    def read_from(self, source: Source, wanted: Sequence[tuple[Person, Place]]) -> Iterator[int]:
        """Cut the wanted crops that are not there yet out of the source. Yields the number of those done."""
        missing = [(person, place) for person, place in wanted if not self._path(person, place).exists()]
        missing.sort(key=lambda entry: _number(*entry))
        done = len(wanted) - len(missing)
        group: list[tuple[Person, Place]] = []
        for entry in [*missing, None]:
            if group and (entry is None or _number(*entry) - _number(*group[-1]) > NEAR_PICTURES):
                for number in self._cut(source, group):
                    yield done + number
                done, group = done + len(group), []
            if entry is not None:
                group.append(entry)

    def _cut(self, source: Source, group: Sequence[tuple[Person, Place]]) -> Iterator[int]:
        pictures = source.pictures(_number(*group[0]), _number(*group[-1]) + 1)
        by_number = {number: list(entries) for number, entries in groupby(group, lambda entry: _number(*entry))}
        done = 0
        for picture in pictures:
            for person, place in by_number.get(picture.number, ()):
                box = person.runs[place.run].crop[place.picture]
                region = Region(picture, tuple(boxes(box, source.upright_size).tolist()))
                moved = box - np.array([region.left, region.top, 0])
                self._write(self._path(person, place), cut(region.rgb, moved, self._side(person)))
                done += 1
                yield done

    def _write(self, path: Path, crop: np.ndarray) -> None:
        data = cv2.imencode(".png", crop[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(data.tobytes())
        unfinished.replace(path)

    def _path(self, person: Person, place: Place) -> Path:
        return self._folder / f"{person.number}-{_number(person, place)}.png"

    def _side(self, person: Person) -> int:
        """Side of the person's crops, as at enrolment."""
        sizes = np.concatenate([run.crop[:, 2] for run in person.runs])
        return FINE * CROP_PX if self._best and np.percentile(sizes, 75) >= FINE_FROM_PX else CROP_PX

    def read(self, person: Person, place: Place) -> np.ndarray:
        """The crop [S, S, 3] uint8 RGB of a place."""
        return cv2.imread(str(self._path(person, place)))[..., ::-1]

    def bank(self, person: Person, shot: int, places: Sequence[Place]) -> Bank:
        """The references of `shot`. Borrowed ones take the colours that the face has in this shot."""
        images = [self.read(person, place) for place in places]
        own = [image for p, image in zip(places, images, strict=True) if person.runs[p.run].shot == shot]
        here = _colour(own) if own else None
        matched = [
            image if here is None or person.runs[p.run].shot == shot else _recoloured(image, here)
            for p, image in zip(places, images, strict=True)
        ]
        at = [(person.runs[p.run], p.picture) for p in places]
        return Bank(
            crops=torch.from_numpy(np.stack(matched)),
            alpha=torch.stack([run.alpha[t] for run, t in at]),
            beta=torch.stack([run.beta[t] for run, t in at]),
            pose=torch.stack([run.pose[t] for run, t in at]),
            frames=torch.tensor([run.start + t for run, t in at], dtype=torch.int32),
        )


def _number(person: Person, place: Place) -> int:
    """The number of the picture in the source."""
    return person.runs[place.run].start + place.picture


def _centre(image: np.ndarray) -> np.ndarray:
    """The middle of a crop, which is skin, lips and little else."""
    side = len(image)
    return image[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4]


def _colour(images: Iterable[np.ndarray]) -> np.ndarray:
    """Mean and deviation [2, 3] of the faces in CIE Lab."""
    rows = [cv2.cvtColor(_centre(image), cv2.COLOR_RGB2LAB).reshape(-1, 3).astype(np.float32) for image in images]
    pixels = np.concatenate(rows)
    return np.stack([pixels.mean(0), pixels.std(0)])


def _recoloured(image: np.ndarray, to: np.ndarray) -> np.ndarray:
    """image with the mean and deviation `to` [2, 3] of its face in CIE Lab (Reinhard et al. 2001)."""
    mean, deviation = _colour([image])
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    gain = np.clip(to[1] / np.maximum(deviation, 1.0), *GAIN)
    changed = np.clip((lab - mean) * gain + to[0], 0, 255).astype(np.uint8)
    return cv2.cvtColor(changed, cv2.COLOR_LAB2RGB)
