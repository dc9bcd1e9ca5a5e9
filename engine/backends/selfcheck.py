"""How a GPU may run the networks: tried on this very card in a child process, and remembered.

A driver or library that crashes, hangs or computes nonsense shows there, before the first session. The pictures of an
invented person must be the CPU's; then those of recorded graphs must be the eager ones. TensorRT is chosen only where
`python -m benchmarks.backends` has measured that it is faster here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from engine import backends, models, paint
from engine.avatar.file import Bank
from engine.backends import graphs
from engine.backends.backend import Backend
from engine.backends.cpu import CpuBackend
from engine.backends.cuda import CudaBackend, cpu_parts, cuda_device
from engine.backends.graphs import Precision
from engine.backends.onnx import psnr_db
from engine.backends.tensorrt.cache import cache_folder
from engine.backends.tensorrt.runner import driver_version
from engine.config import GpuMode
from engine.errors import PersonaStreamError, PlanError
from engine.models import weights
from engine.models.geometry import GeometryState
from engine.models.morphable import CROP_PX, MorphableModel
from engine.models.renderer import FINE
from engine.models.weights import load_face_model
from engine.paint.painter import FittedVideo

log = logging.getLogger(__name__)

PRECISION: Precision = "float16"
TO_CPU_DB, TO_EAGER_DB = 40.0, 55.0  # of float16 against float32, and of the same kernels in another order
CHECK_S = 300.0
FRAMES, BANK, SIZE_PX = 8, 6, 384
BOX = (40, 30, 300)  # left, top and size of the crop in the frame
LOWER_FACE = np.s_[30 + 150 : 30 + 300, 40 : 40 + 300]


@dataclass(frozen=True)
class Verdict:
    """mode: None where not even eager PyTorch gives the CPU's pictures."""

    mode: GpuMode | None
    reason: str


def verdict(device: torch.device, folder: Path | None = None, python: str = sys.executable) -> Verdict:
    """The remembered verdict on this card, driver and weights; without one, the card is checked."""
    path = _remembered(device, folder)
    if path.is_file():
        return Verdict(**json.loads(path.read_text()))
    log.info("%s: checking pictures against the CPU's, once for this card, driver and weights", device)
    found = check_apart(device, python)
    if found.mode is not None:  # else it may have been another process that took the memory
        remember(device, found, folder)
    return found


def remember(device: torch.device, found: Verdict, folder: Path | None = None) -> None:
    """From now on `verdict` returns `found` for this card, driver and weights."""
    path = _remembered(device, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(found)))


def _remembered(device: torch.device, folder: Path | None) -> Path:
    try:
        driver = driver_version()
    except PlanError:
        driver = "unknown"
    sources = (source for room in (models, backends, paint) for source in Path(room.__path__[0]).rglob("*.[pc][yu]"))
    facts = [torch.cuda.get_device_name(device), driver, torch.__version__, PRECISION]
    facts += [weights.fingerprint(weights.default_path(name)) for name in graphs.NETWORKS]
    facts += [hashlib.sha256(source.read_bytes()).hexdigest() for source in sorted(sources)]
    return (folder or cache_folder("gpu")) / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"


def check_apart(device: torch.device, python: str = sys.executable, within_s: float = CHECK_S) -> Verdict:
    """`steps` in a child process: the last mode that passed."""
    command = [python, "-m", "engine.backends.selfcheck", str(device.index or 0)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=within_s, check=False)
        output = child.stdout
        how = child.stderr.strip().rpartition("\n")[2] or f"it ended with {child.returncode}"
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        how = f"it took more than {within_s:.0f} s"
    passed = [Verdict(**json.loads(line)) for line in output.splitlines() if line.startswith("{")]
    if passed and passed[-1].mode == "graphs":
        return passed[-1]
    if not passed:
        return Verdict(None, f"the check of its pictures failed, {how}")
    return Verdict(passed[-1].mode, f"{passed[-1].reason}; the check of recorded graphs failed, {how}")


def steps(device: torch.device) -> Iterator[Verdict]:
    """The modes that pass on this device, one after the other. Raises ValueError for the first that does not."""
    _, windows, _ = cpu_parts()
    cpu = outputs(CpuBackend.embedded(windows=windows, bfloat16=False, int8=False))
    eager = outputs(CudaBackend.through_torch(device, "eager", PRECISION))
    yield Verdict("eager", f"pictures and networks are {_alike_db(eager, cpu, TO_CPU_DB):.0f} dB from the CPU's")
    recorded = outputs(CudaBackend.through_torch(device, "graphs", PRECISION))
    yield Verdict("graphs", f"recorded graphs are {_alike_db(recorded, eager, TO_EAGER_DB):.0f} dB from eager networks")


def _alike_db(found: list[torch.Tensor], expected: list[torch.Tensor], least_db: float) -> float:
    worst = min(psnr_db(one, other) for one, other in zip(found, expected, strict=True))
    if not worst >= least_db:  # nor NaN
        raise ValueError(f"outputs are {worst:.1f} dB apart, expected at least {least_db:g}")
    return worst


def outputs(backend: Backend) -> list[torch.Tensor]:
    """What the backend computes for invented speech and an invented person: features, lips, states, and the lower faces
    of pictures in batches of 1, 3 and 8, fine ones too where it paints them. Also the warm-up of a backend."""
    free = {**graphs.USUAL, "batch": 3}
    features = backend.encode_speech(*graphs.load("speech", "float32").example(free))
    moved, style, template, keys, values = graphs.load("geometry", "float32").example(free)
    lower, state = backend.step_geometry(moved, style, template, GeometryState(keys, values))
    model = load_face_model()
    pictures = []
    for zoom in (1, FINE) if backend.quality == "best" else (1,):
        video, bank = invented_person(model, zoom)
        painter = backend.painter(video, bank, model)
        lips = model.vertices(video.alpha, video.beta)[:, model.lower].flip(0)
        for size in (1, 3, FRAMES):
            batch = [(painter, [(index, lips[index])], zoom > 1) for index in range(size)]
            pictures += [torch.from_numpy(picture[LOWER_FACE]).float() for (picture,) in painter.paint_together(batch)]
    return [features, lower, state.keys, state.values, *pictures]


def invented_person(model: MorphableModel, zoom: int = 1) -> tuple[FittedVideo, Bank]:
    """A person of coloured clouds who moves head and mouth, in a video of 384 px; references of zoom 256 px."""
    chance, seeded = np.random.default_rng(0), torch.Generator().manual_seed(0)

    def clouds(side_px: int) -> np.ndarray:
        small = chance.integers(0, 256, (side_px // 8, side_px // 8, 3), dtype=np.uint8)
        return cv2.resize(small, (side_px, side_px), interpolation=cv2.INTER_CUBIC)

    frames = [clouds(SIZE_PX) for _ in range(FRAMES)]
    alpha = torch.zeros(model.shape_basis.shape[0])
    beta = 0.5 * torch.randn(FRAMES, model.expression_basis.shape[0], generator=seeded)
    pose = torch.tensor([0.0, 0.0, 0.0, 0.38, 0.5, 0.25]) + 0.01 * torch.randn(FRAMES, 6, generator=seeded)
    crop = torch.tensor([BOX], dtype=torch.int32).expand(FRAMES, 3)
    video = FittedVideo(
        read=lambda index: frames[index].copy(), alpha=alpha.expand(FRAMES, -1), beta=beta, pose=pose, crop=crop
    )
    crops = torch.from_numpy(np.stack([clouds(zoom * CROP_PX) for _ in range(BANK)]))
    places = torch.arange(BANK, dtype=torch.int32)
    return video, Bank(crops=crops, alpha=alpha.expand(BANK, -1), beta=beta[:BANK], pose=pose[:BANK], frames=places)


def main() -> None:
    """The child process: INDEX of the CUDA device."""
    try:
        for step in steps(cuda_device(int(sys.argv[1]))):
            print(json.dumps(asdict(step)), flush=True)
    except (RuntimeError, ValueError, PersonaStreamError) as error:
        sys.exit(str(error).partition("\n")[0])


if __name__ == "__main__":
    main()
