"""manifest.json of the `.avatar` file: its contents, and their checks when it is read. docs/avatar-format.md has the
members and their limits.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.avatar.loop import LOOP_MODES, Loop
from engine.media import FPS

FORMAT = 1
MAX_SIDE_PX = 4096
MAX_FRAMES = 90_000  # an hour
INDEPENDENT = {"renderer"}  # it painted the idle video, which a later renderer shows as it is


class Refusal(Exception):
    """Why a file is refused, without the path and the remedy, which `engine.avatar.file.read_avatar` adds."""


def require(condition: bool, reason: str) -> None:
    """Raise Refusal with that reason unless the condition holds."""
    if not condition:
        raise Refusal(reason)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """summary: enrolment's numbers and texts about the clip, for people and dashboards; `quality` in the file."""

    name: str
    width: int
    height: int
    frames: int
    loop: Loop
    source_sha256: str
    consent: str
    created: str  # ISO 8601, UTC
    networks: dict[str, str]
    summary: dict[str, Any]

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        fields["quality"] = fields.pop("summary")
        return json.dumps({"format": FORMAT, "fps": FPS, **fields}, indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: bytes, networks: Mapping[str, str]) -> Manifest:
        """The checked manifest. `networks`: the network fingerprints that it must have.

        Raises Refusal, ValueError for text that is not JSON, RecursionError for JSON that is nested too deeply.
        """
        data = json.loads(text.decode())
        require(isinstance(data, dict), "manifest.json is not an object")
        version = data.get("format")
        require(version == FORMAT, f"format {version!r}, this engine reads format {FORMAT}")
        require(data.get("fps") == FPS, f"{data.get('fps')!r} fps, this engine plays {FPS}")
        width, height = (_integer(data, key, 16, MAX_SIDE_PX) for key in ("width", "height"))
        frames = _integer(data, "frames", 2, MAX_FRAMES)
        require(width % 2 == 0 and height % 2 == 0, f"odd frame size {width}x{height}")
        summary = data.get("quality")
        require(isinstance(summary, dict), "manifest.json holds no quality summary")
        return cls(
            width=width,
            height=height,
            frames=frames,
            loop=_loop(data, frames),
            networks=_networks(data, networks),
            summary=summary,
            **_texts(data),
        )


def _networks(data: Mapping[str, Any], expected: Mapping[str, str]) -> dict[str, str]:
    made_with = data.get("networks")
    if not isinstance(made_with, dict):
        raise Refusal("manifest.json names no networks")
    for network in expected.keys() - INDEPENDENT:
        fingerprint = expected[network]
        require(
            made_with.get(network) == fingerprint,
            f"made with {network} weights {made_with.get(network)!r}, this engine has {fingerprint!r}",
        )
    return {str(key): str(value) for key, value in made_with.items()}


def _loop(data: Mapping[str, Any], frames: int) -> Loop:
    loop = data.get("loop")
    if not isinstance(loop, dict) or loop.get("mode") not in LOOP_MODES:
        raise Refusal("manifest.json describes no loop")
    start, stop = _integer(loop, "start", 0, frames - 1), _integer(loop, "stop", 1, frames)
    require(start < stop, "the loop is empty")
    return Loop(loop["mode"], start, stop)


def _texts(data: Mapping[str, Any]) -> dict[str, Any]:
    texts = {key: data.get(key) for key in ("name", "source_sha256", "consent", "created")}
    require(all(isinstance(text, str) for text in texts.values()), f"manifest.json lacks one of {', '.join(texts)}")
    fits = re.fullmatch(r"[\w][\w .-]{0,99}", texts["name"] or "") is not None
    require(fits, f"bad avatar name {texts['name']!r:.80}")
    return texts


def _integer(data: Mapping[str, Any], key: str, low: int, high: int) -> int:
    value = data.get(key)
    if type(value) is not int or not low <= value <= high:
        raise Refusal(f"manifest.json has {key} = {value!r:.40}, expected a whole number from {low} to {high}")
    return value
