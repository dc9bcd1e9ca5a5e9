"""The `.avatar` file: its contents, reading with all checks, and writing. docs/avatar-format.md describes every member.

One uncompressed ZIP, read in place. Nothing in it is ever executed or unpickled: a hostile file can only fail.
`read_avatar` checks the directory (`_spans`), the manifest (`engine.avatar.manifest`) and every tensor (`_tensor`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from engine.avatar.manifest import MAX_SIDE_PX, Manifest, Refusal, require
from engine.errors import AvatarFileError
from engine.files import replaced
from engine.models import weights
from engine.models.morphable import CROP_PX
from engine.models.persona import no_persona
from engine.models.renderer import FINE

SUFFIX = ".avatar"
CROPS_PX = (CROP_PX, FINE * CROP_PX)  # of references
NETWORKS = ("face_model", "geometry", "renderer")  # the tensors in the file depend on their weights
MAX_BOX_PX = 2 * MAX_SIDE_PX  # a crop may reach beyond the frame
# Far above the values of any face, and small enough that no computation overflows.
MAX_COEFFICIENT = 100.0  # in standard deviations
MAX_POSE = 10.0  # radians and crop widths
MAX_PERSONA = 10.0
_MIB = 1 << 20
# Member -> limit of its size in bytes; larger members are refused before they are read.
MEMBERS = {
    "manifest.json": _MIB,
    "base.mp4": 4096 * _MIB,
    "idle.mp4": 4096 * _MIB,
    "tracks.safetensors": 64 * _MIB,
    "style.safetensors": 4 * _MIB,
    "bank.safetensors": 512 * _MIB,
    "report.html": 32 * _MIB,
    "thumbnail.jpg": 4 * _MIB,
}
_AGAIN = "enrol the speaker again with `precompute`"

Spans = dict[str, tuple[int, int]]
"""The place of each member in the file: (offset, size) in bytes, by name."""


def network_fingerprints() -> dict[str, str]:
    """Fingerprint of each embedded network that an avatar depends on; `absent` where there is no file."""
    paths = {name: weights.default_path(name) for name in NETWORKS}
    return {name: weights.fingerprint(path) if path.is_file() else "absent" for name, path in paths.items()}


@dataclass(frozen=True, kw_only=True)
class Bank:
    """The lip references, sorted by mouth opening: crops [N, S, S, 3] uint8, S of 256 or 512; alpha [N, K_s],
    beta [N, K_e], pose [N, 6] float32; frames [N] int32, their places in the base video. S is also the size at which
    pictures are painted."""

    crops: Tensor
    alpha: Tensor
    beta: Tensor
    pose: Tensor
    frames: Tensor

    def coarse(self) -> Bank:
        """The same references with crops of 256 px."""
        if self.crops.shape[1] == CROP_PX:
            return self
        small = [cv2.resize(x, (CROP_PX, CROP_PX), interpolation=cv2.INTER_AREA) for x in self.crops.numpy()]
        return dataclasses.replace(self, crops=torch.from_numpy(np.stack(small)))


@dataclass(frozen=True, kw_only=True)
class AvatarData:
    """One person's enrolment without the videos.

    alpha [T, K_s], beta [T, K_e], pose [T, 6] float32; crop [T, 3] int32 (left, top, size) in base pixels;
    style [D] float32 (S of §3.1); rest_beta [K_e] float32: expression of the closed, quiet mouth; persona
    [C, C + 1] float32: change of the predicted lips (`engine.models.persona`), zero in files that have none.
    """

    manifest: Manifest
    alpha: Tensor
    beta: Tensor
    pose: Tensor
    crop: Tensor
    style: Tensor
    rest_beta: Tensor
    persona: Tensor
    bank: Bank
    thumbnail_jpeg: bytes


@dataclass(frozen=True, kw_only=True)
class AvatarContents(AvatarData):
    """Everything that is written to a file. base, idle: finished MP4 files with the same T frames."""

    base: Path
    idle: Path
    report_html: str


def read_avatar(path: Path, networks: Mapping[str, str]) -> tuple[AvatarData, Spans]:
    """The checked contents of the file, and the places of its members. `networks`: the network fingerprints that the
    manifest must have.

    Raises AvatarFileError for a file that is missing, damaged, hostile, of another format or of other networks.
    """
    if not path.is_file():
        raise AvatarFileError(f"{path}: there is no such file; make it with `precompute SPEAKER.mp4 -o {path.name}`")
    with _refusals(path), path.open("rb") as file:
        spans = _spans(file)
        manifest = Manifest.from_json(read_member(file, spans["manifest.json"]), networks)
        tracks, look, bank = (
            load_tensors(read_member(file, spans[f"{name}.safetensors"])) for name in ("tracks", "style", "bank")
        )
        frames, model = manifest.frames, weights.load_face_model()
        k_s, k_e = len(model.shape_basis), len(model.expression_basis)
        data = AvatarData(
            manifest=manifest,
            alpha=_bounded(tracks, "alpha", (frames, k_s)),
            beta=_bounded(tracks, "beta", (frames, k_e)),
            pose=_bounded(tracks, "pose", (frames, 6), MAX_POSE),
            crop=_boxes(tracks, frames),
            style=_bounded(look, "style", (None,)),
            rest_beta=_bounded(look, "rest_beta", (k_e,)),
            persona=_persona(look),
            bank=_bank(bank, k_s, k_e, frames),
            thumbnail_jpeg=read_member(file, spans["thumbnail.jpg"]),
        )
        return data, spans


def read_member(file: BinaryIO, span: tuple[int, int]) -> bytes:
    """The bytes at `span` (offset, size) of an opened file."""
    file.seek(span[0])
    return file.read(span[1])


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn every error of reading into an AvatarFileError with the path and the remedy."""
    try:
        yield
    except Refusal as error:
        raise AvatarFileError(f"{path}: {error}; {_AGAIN}") from error
    except (OSError, EOFError, ValueError, KeyError, TypeError, struct.error) as error:
        raise AvatarFileError(f"{path}: damaged avatar file ({error or type(error).__name__}); {_AGAIN}") from error
    except (zipfile.BadZipFile, NotImplementedError, SafetensorError, RecursionError, OverflowError) as error:
        raise AvatarFileError(f"{path}: not an intact avatar file ({error}); {_AGAIN}") from error


def _spans(file: BinaryIO) -> Spans:
    """The places of the members, after checking directory, headers and checksums."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    require(len(set(names)) == len(names) <= len(MEMBERS), "holds the same member twice or too many members")
    require(set(names) <= set(MEMBERS), f"holds unknown members {sorted(set(names) - set(MEMBERS))[:3]}")
    require(set(names) == set(MEMBERS), f"lacks {', '.join(sorted(set(MEMBERS) - set(names)))}")
    end = file.seek(0, os.SEEK_END)
    spans: Spans = {}
    for entry in entries:
        name, size = entry.filename, entry.file_size
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == size and not entry.flag_bits & 1
        require(stored, f"member {name} is compressed or encrypted; an avatar stores plain members")
        require(size <= MEMBERS[name], f"member {name} has {size} bytes, more than the {MEMBERS[name]} allowed")
        file.seek(entry.header_offset)
        header = file.read(30)
        require(len(header) == 30 and header[:4] == b"PK\3\4", f"member {name} does not begin where the directory says")
        name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
        require(file.read(name_bytes) == name.encode(), f"member {name} has another name in its header")
        offset = entry.header_offset + 30 + name_bytes + extra_bytes
        require(offset + size <= end, f"member {name} reaches past the end of the file")
        require(_checksum(file, offset, size) == entry.CRC, f"member {name} fails its checksum")
        spans[name] = (offset, size)
    return spans


def _checksum(file: BinaryIO, offset: int, size: int) -> int:
    file.seek(offset)
    crc = 0
    while size > 0:
        block = file.read(min(size, _MIB))
        if not block:
            raise EOFError("the file ends early")
        crc, size = zlib.crc32(block, crc), size - len(block)
    return crc


def _tensor(tensors: Mapping[str, Tensor], name: str, shape: tuple[int | None, ...], dtype: torch.dtype) -> Tensor:
    """The tensor called `name`, after checking it; None in `shape` stands for any size from 1 to 4096."""
    require(name in tensors, f"lacks the tensor {name}")
    tensor = tensors[name]
    fits = tensor.dtype == dtype and tensor.ndim == len(shape)
    fits = fits and all(
        1 <= size <= 4096 if wanted is None else size == wanted
        for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    require(fits, f"tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}")
    require(not dtype.is_floating_point or bool(tensor.isfinite().all()), f"tensor {name} holds NaN or infinity")
    return tensor


def _bounded(
    tensors: Mapping[str, Tensor], name: str, shape: tuple[int | None, ...], limit: float = MAX_COEFFICIENT
) -> Tensor:
    """The float32 tensor called `name`, with no number beyond `limit`."""
    tensor = _tensor(tensors, name, shape, torch.float32)
    largest = float(tensor.abs().max())
    require(largest <= limit, f"tensor {name} holds a number of size {largest:.3g}, expected {limit:g} at the most")
    return tensor


def _persona(look: Mapping[str, Tensor]) -> Tensor:
    """The persona; none in a file from before there were personas."""
    if "persona" not in look:
        return no_persona()
    return _bounded(look, "persona", tuple(no_persona().shape), MAX_PERSONA)


def _boxes(tracks: Mapping[str, Tensor], frames: int) -> Tensor:
    crop = _tensor(tracks, "crop", (frames, 3), torch.int32)
    fits = bool((crop[:, 2] > 0).all() and (crop >= -MAX_BOX_PX).all() and (crop <= MAX_BOX_PX).all())
    require(fits, f"crop boxes are out of range, expected sizes of 1 to {MAX_BOX_PX} px")
    return crop


def _bank(tensors: Mapping[str, Tensor], k_s: int, k_e: int, frames: int) -> Bank:
    crops = _tensor(tensors, "crops", (None, None, None, 3), torch.uint8)
    height, width = crops.shape[1:3]
    fits = height == width and height in CROPS_PX
    require(fits, f"references of {width}x{height} px, expected squares of {CROPS_PX}")
    places = _tensor(tensors, "frames", (len(crops),), torch.int32)
    require(bool(((places >= 0) & (places < frames)).all()), "the bank points outside the base video")
    return Bank(
        crops=crops,
        alpha=_bounded(tensors, "alpha", (len(crops), k_s)),
        beta=_bounded(tensors, "beta", (len(crops), k_e)),
        pose=_bounded(tensors, "pose", (len(crops), 6), MAX_POSE),
        frames=places,
    )


def write_avatar(path: Path, contents: AvatarContents) -> None:
    """Write the file; an older one stays intact until the new one is complete. Raises OSError."""
    tensors = {
        "tracks.safetensors": {n: getattr(contents, n) for n in ("alpha", "beta", "pose", "crop")},
        "style.safetensors": {n: getattr(contents, n) for n in ("style", "rest_beta", "persona")},
        "bank.safetensors": vars(contents.bank),
    }
    with replaced(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr("manifest.json", contents.manifest.to_json())
        archive.write(contents.base, "base.mp4")
        archive.write(contents.idle, "idle.mp4")
        for member, stored in tensors.items():
            archive.writestr(member, save_tensors({n: t.contiguous().cpu() for n, t in stored.items()}))
        archive.writestr("report.html", contents.report_html)
        archive.writestr("thumbnail.jpg", contents.thumbnail_jpeg)


def change_texts(source: Path, target: Path, texts: Mapping[str, str]) -> None:
    """Write the checked avatar `source` as `target`, which may be the same, with other texts in its manifest.

    Raises OutputError.
    """
    with replaced(target) as temporary, zipfile.ZipFile(source) as old, zipfile.ZipFile(temporary, "w") as new:
        for member in old.namelist():
            with old.open(member) as reader, new.open(zipfile.ZipInfo(member), "w", force_zip64=True) as writer:
                if member == "manifest.json":
                    fields = json.load(reader) | texts
                    writer.write(json.dumps(fields, indent=2, ensure_ascii=False).encode())
                else:
                    shutil.copyfileobj(reader, writer, _MIB)
