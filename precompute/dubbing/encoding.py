"""How the output's pictures are encoded: codec family, pixel format and colours are those of the source."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, cast

import av
import numpy as np

from engine.errors import MediaError
from precompute.dubbing.source import Remark, Source

Quality = Literal["best", "fast"]

# At equal quality of what moves, `superfast` costs 0.6 of the time of x264's `veryfast` and a
# third more bytes.
OPTIONS: dict[Quality, dict[str, dict[str, str]]] = {
    "best": {
        "libx264": {"crf": "16", "preset": "superfast"},
        "libx265": {"crf": "17", "preset": "superfast"},
        "libvpx-vp9": {"crf": "20", "deadline": "good", "cpu-used": "4"},
    },
    "fast": {
        "libx264": {"crf": "18", "preset": "ultrafast"},
        "libx265": {"crf": "17", "preset": "ultrafast"},
        "libvpx-vp9": {"crf": "20", "deadline": "realtime", "cpu-used": "7"},
    },
}
PARAMETERS = {"libx264": "x264-params", "libx265": "x265-params"}
# `mbtree` (`cutree`) saves bits where pictures change, 2.5 dB at a mouth. With it, x264 also reads memory that it has
# not set (AVX-512, widths that are not whole 64 pixels), and the same pictures become other bytes now and then.
FIXED = {"libx264": ("mbtree=0",), "libx265": ("cutree=0", "log-level=error")}
REFUSED_MATRICES = {8: "YCgCo", 10: "BT.2020 of constant luminance", 14: "ICtCp", 15: "IPT-PQ-C2"}  # ITU-T H.273
HDR_TRANSFERS = (16, 18)  # PQ and HLG, by their numbers there
PRIMARIES_UNIT, LIGHT_UNIT = 50_000, 10_000  # of SEI messages (ITU-T H.265, D.3.28)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    codec: str
    pix_fmt: str
    size: tuple[int, int]
    colours: tuple[int, int, int, int]  # matrix, primaries, transfer, range
    aspect: Fraction  # of a pixel
    rate: Fraction
    options: dict[str, str]
    remarks: tuple[Remark, ...] = field(default=(), compare=False)

    def add_to(self, container: av.container.OutputContainer, time_base: Fraction) -> av.VideoStream:
        """A stream of pictures in ticks of `time_base`."""
        stream = cast(av.VideoStream, container.add_stream(self.codec, rate=self.rate, options=self.options))
        stream.width, stream.height = self.size
        stream.pix_fmt = self.pix_fmt
        context = stream.codec_context
        context.time_base = stream.time_base = time_base
        self.describe(context)
        return stream

    def describe(self, context: Any) -> None:
        """Set colours and shape of pixels, which not every bit stream carries."""
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = self.colours
        context.sample_aspect_ratio = self.aspect


def encoding_of(source: Source, suffix: str, quality: Quality = "best") -> Encoding:
    """The encoding of the output with a name that ends in `suffix`.

    Raises MediaError for colours or pixels that it cannot hold.
    """
    frame = source.first
    codec = _codec(source, suffix)
    options = dict(OPTIONS[quality][codec])
    parameters = [*FIXED.get(codec, ()), *_light(frame, codec)]
    if parameters:
        options[PARAMETERS[codec]] = ":".join(parameters)
    if codec == "libvpx-vp9":
        options |= {"b": "0", "row-mt": "1"}
    return Encoding(
        codec=codec,
        pix_fmt=frame.format.name,
        size=(frame.width, frame.height),
        colours=(int(frame.colorspace), int(frame.color_primaries), int(frame.color_trc), int(frame.color_range)),
        aspect=source.display.aspect,
        rate=source.rate,
        options=options,
        remarks=tuple(_dynamic(source)),
    )


def _codec(source: Source, suffix: str) -> str:
    form = source.first.format
    deep = form.components[0].bits > 8
    if suffix == ".webm":
        if not deep:
            return "libvpx-vp9"
        raise MediaError(f"{source.path}: {form.name} has no place in a .webm file; choose a name that ends in .mkv")
    return "libx265" if source.codec == "hevc" or (deep and source.codec != "h264") else "libx264"


def _dynamic(source: Source) -> list[Remark]:
    """Remarks on colour data of single pictures, which is left out. Raises MediaError where nothing remains without."""
    frame, data = source.first, source.first.side_data
    matrix = REFUSED_MATRICES.get(int(frame.colorspace))
    dolby = bool(data.get("DOVI_METADATA") or data.get("DOVI_RPU_BUFFER"))
    if matrix or (dolby and frame.color_trc not in HDR_TRANSFERS):
        raise MediaError(
            f"{source.path}: the colours are {matrix or 'Dolby Vision alone'}, which the output cannot hold; export "
            "the video as HDR10, HLG or BT.709"
        )
    names = [name for name, found in (("Dolby Vision", dolby), ("HDR10+", bool(data.get("DYNAMIC_HDR_PLUS")))) if found]
    if not names:
        return []
    basis = "HLG" if frame.color_trc == HDR_TRANSFERS[1] else "HDR10"
    return [Remark("hdr-layer", f"the layer of {' and '.join(names)} is left out; the output is {basis}")]


def _light(frame: av.VideoFrame, codec: str) -> list[str]:
    """The encoder's parameters for the mastering display and the light level of HDR10."""
    if codec not in PARAMETERS:
        return []
    parameters = []
    mastering = frame.side_data.get("MASTERING_DISPLAY_METADATA")
    if mastering is not None:
        facts = np.frombuffer(cast(bytes, mastering), "<i4")  # AVMasteringDisplayMetadata: 10 ratios, 2 flags
        if facts[20] and facts[21]:
            values = facts[:20:2] / np.maximum(facts[1:20:2], 1)
            points = [tuple(values[n : n + 2]) for n in (2, 4, 0, 6)]  # green, blue, red, white
            pairs = [*points, (values[9], values[8])]
            units = [PRIMARIES_UNIT] * 4 + [LIGHT_UNIT]
            numbers = [
                ",".join(f"{round(value * unit)}" for value in pair) for pair, unit in zip(pairs, units, strict=True)
            ]
            text = "".join(f"{name}({pair})" for name, pair in zip(("G", "B", "R", "WP", "L"), numbers, strict=True))
            parameters.append(f"{'master-display' if codec == 'libx265' else 'mastering-display'}={text}")
    level = frame.side_data.get("CONTENT_LIGHT_LEVEL")
    if level is not None:
        most, mean = np.frombuffer(cast(bytes, level), "<u4")[:2]
        parameters.append(f"{'max-cll' if codec == 'libx265' else 'cll'}={most},{mean}")
    return parameters
