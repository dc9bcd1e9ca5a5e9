"""Identity: an embedding of faces, near for one person and far for two, to notice that a clip shows another one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from engine.errors import WeightsError

EYES_AND_NOSE = (263, 362, 33, 133, 2)  # vertices, in the order of dlib's five landmarks
CHIP_PX, CHIP_PADDING = 150, 0.25  # as the network was trained


def is_installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("dlib", "face_recognition_models"))


class Identity:
    """dlib's face embedding (CC0), from the packages `dlib-bin` and `face_recognition_models`. Raises WeightsError."""

    def __init__(self) -> None:
        package = importlib.util.find_spec("face_recognition_models")
        if not is_installed() or package is None or not package.submodule_search_locations:
            raise WeightsError("dlib or its models are not installed; run `pip install 'personastream[enroll]'`")
        import dlib

        models = Path(package.submodule_search_locations[0]) / "models"
        self._dlib = dlib
        self._network = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))

    def embed(self, image: np.ndarray, mesh: np.ndarray) -> np.ndarray:
        """The embedding [128] of length 1 of the face in image [H, W, 3] uint8 with the mesh [V, 3] in its pixels."""
        points = self._dlib.points(
            [self._dlib.point(*np.rint(mesh[v, :2]).astype(int).tolist()) for v in EYES_AND_NOSE]
        )
        height, width = image.shape[:2]
        shape = self._dlib.full_object_detection(self._dlib.rectangle(0, 0, width, height), points)
        chip = self._dlib.get_face_chip(np.ascontiguousarray(image), shape, CHIP_PX, CHIP_PADDING)
        embedding = np.array(self._network.compute_face_descriptor(chip))
        unit: np.ndarray = embedding / np.linalg.norm(embedding)
        return unit
