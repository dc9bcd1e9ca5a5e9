"""A rectangle of a picture as upright RGB, and painted rectangles back into the picture's planes.

Only the difference between the painted and the original pixels is added to the planes. Samples under unchanged pixels
therefore stay as they are, bit for bit, and what RGB of 8 bits cannot hold stays in the planes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache

import av
import cv2
import numpy as np

from precompute.dubbing.source import Display, Picture
from precompute.video import UNNAMED, filter_graph

# Weights of red and blue in luma, by the matrix's number in ITU-T H.273, table 4.
LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}
LUMA |= {9: (0.2627, 0.0593)}
HD = (1280, 576)  # video wider or higher than that, which names no matrix, has that of BT.709
FULL_RANGE = 2
MARGIN = 2  # samples of the coarsest plane around the rectangle: what interpolation reaches

Box = tuple[int, int, int, int]  # left, top, right, bottom


class Region:
    """A rectangle of upright pixels of one picture.

    box: left, top, right, bottom in upright pixels; clipped to the picture and widened to whole samples of chroma.
    left, top: where rgb[0, 0] lies in the upright picture.
    rgb: uint8 [h, w, 3] by the frame's own matrix and range; its primaries and transfer curve stay.
    """

    def __init__(self, picture: Picture, box: Box):
        frame, display = picture.frame, picture.display
        self._display = display
        wide, high = subsampling(frame.format)
        square = _coded_box(display, box)
        self._square = _aligned(square, (wide, high), (display.square_width, display.height))
        left, top, right, bottom = self._square
        coded = (int(left / _scale(display)), top, -int(-right // _scale(display)), bottom)
        around = (coded[0] - MARGIN * wide, top - MARGIN * high, coded[2] + MARGIN * wide, bottom + MARGIN * high)
        self.window = _aligned(around, (wide, high), (frame.width, frame.height))
        pixels = _to_rgb(frame, self.window)
        self._resampled = _scale(display) != 1
        if self._resampled:
            pixels = _warped(pixels, self._across(), (right - left, pixels.shape[0]), cv2.INTER_CUBIC)
            pixels = pixels[top - self.window[1] :][: bottom - top]
        else:
            x, y = left - self.window[0], top - self.window[1]
            pixels = pixels[y : y + bottom - top, x : x + right - left]
        self.rgb = np.ascontiguousarray(_turned(pixels, display))
        self.left, self.top = _upright_corner(display, self._square)

    def difference(self, painted: np.ndarray) -> np.ndarray:
        """What `painted` [h, w, 3] uint8 changes: float32 RGB of the coded pixels of `window`."""
        left, top, right, bottom = self.window
        columns = self._square[2] - self._square[0] if self._resampled else right - left
        x, y = 0 if self._resampled else self._square[0] - left, self._square[1] - top
        whole = np.zeros((bottom - top, columns, 3), np.float32)
        inner = whole[y : y + self._square[3] - self._square[1], x : x + self._square[2] - self._square[0]]
        np.subtract(painted, self.rgb, out=_turned(inner, self._display), dtype=np.float32)
        if not self._resampled:
            return whole
        inverse = cv2.invertAffineTransform(self._across())
        return _warped(whole, inverse, (right - left, bottom - top), cv2.INTER_LINEAR, edge=cv2.BORDER_CONSTANT)

    def _across(self) -> np.ndarray:
        """The map from columns of square pixels of the region to columns of coded pixels of the window."""
        shrink = 1 / _scale(self._display)
        shift = (self._square[0] + 0.5) * shrink - 0.5 - self.window[0]
        return np.array([[shrink, 0, shift], [0, 1, 0]])


def edited(picture: Picture, edits: Sequence[tuple[Region, np.ndarray, float]]) -> av.VideoFrame:
    """A copy of the picture's frame in which each region is replaced by painted pixels with a weight in [0, 1]."""
    frame = _copy(picture.frame)
    if not edits:
        return frame
    matrix, top_value = _to_planes(frame)[:, :3], (1 << _bits(frame)) - 1
    for region, painted, weight in edits:
        change = cv2.transform(region.difference(painted), (matrix * weight).astype(np.float32))
        for number, samples in enumerate(_views(frame, region.window)):
            added = _decimated(change[..., number], frame.format) if number else change[..., 0]
            np.clip(np.rint(added + samples), 0, top_value, out=samples, casting="unsafe")
    return frame


def subsampling(form: av.VideoFormat) -> tuple[int, int]:
    """Columns and rows of luma for one sample of chroma."""
    return 16 // form.chroma_width(16), 16 // form.chroma_height(16)


def _to_rgb(frame: av.VideoFrame, window: Box) -> np.ndarray:
    luma, *chroma = _views(frame, window)
    height, width = luma.shape
    wide, high = subsampling(frame.format)
    # H.264, HEVC and MPEG-2 place chroma on the left one of two columns and between two rows.
    place = np.array([[1 / wide, 0, 0], [0, 1 / high, (1 / high - 1) / 2]])
    exact = luma.dtype != np.uint8  # more than 8 bits are rounded to 8 at the end alone
    planes: list[np.ndarray] = [luma.astype(np.float32) if exact else luma]
    for samples in chroma:
        values = samples.astype(np.float32) if exact else np.ascontiguousarray(samples)
        planes.append(values if (wide, high) == (1, 1) else _warped(values, place, (width, height), cv2.INTER_LINEAR))
    rgb = cv2.transform(cv2.merge(planes), _inverse(_to_planes(frame)))
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8) if exact else rgb


# Averages over the pixels of a sample of chroma, sharpened by what linear interpolation in `_to_rgb` loses. Otherwise
# a trace of the original chroma would stay under painted pixels.
_ACROSS = np.array([-1, -2, 9, 20, 9, -2, -1], np.float32) / 32
_DOWN = np.array([0, -1, -1, 10, 10, -1, -1], np.float32) / 16
_NONE = np.array([0, 1, 0], np.float32)


def _decimated(values: np.ndarray, form: av.VideoFormat) -> np.ndarray:
    """Changes [H, W] at every pixel -> at the samples of chroma, where `_to_rgb` places them."""
    wide, high = subsampling(form)
    if (wide, high) == (1, 1):
        return values
    across = _ACROSS if wide == 2 else _NONE
    down = _DOWN if high == 2 else _NONE
    return cv2.sepFilter2D(values, cv2.CV_32F, across, down, borderType=cv2.BORDER_REPLICATE)[::high, ::wide]


def _warped(
    image: np.ndarray, place: np.ndarray, size: tuple[int, int], how: int, edge: int = cv2.BORDER_REPLICATE
) -> np.ndarray:
    """`image` at the places place @ (x, y, 1) of all x, y in `size`."""
    return cv2.warpAffine(image, place, size, flags=how | cv2.WARP_INVERSE_MAP, borderMode=edge)


def _views(frame: av.VideoFrame, window: Box) -> list[np.ndarray]:
    """The samples of Y, Cb and Cr under a window of pixels: views of the frame."""
    left, top, right, bottom = window
    wide, high = subsampling(frame.format)
    kind: np.dtype = np.dtype("<u2" if _bits(frame) > 8 else np.uint8)
    views = []
    for number, plane in enumerate(frame.planes[:3]):
        across, down = (wide, high) if number else (1, 1)
        rows = np.asarray(memoryview(plane)).view(kind).reshape(-1, plane.line_size // kind.itemsize)
        views.append(rows[top // down : -(-bottom // down), left // across : -(-right // across)])
    return views


def _bits(frame: av.VideoFrame) -> int:
    return frame.format.components[0].bits


def _to_planes(frame: av.VideoFrame) -> np.ndarray:
    hd = frame.width >= HD[0] or frame.height > HD[1]
    unnamed = 1 if hd else 6
    matrix = unnamed if frame.colorspace in (0, UNNAMED) else int(frame.colorspace)
    full = frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")
    return _matrix(matrix, full, _bits(frame))


@lru_cache
def _matrix(matrix: int, full: bool, bits: int) -> np.ndarray:
    """[3, 4]: RGB in [0, 255] and 1 -> samples of Y, Cb, Cr (ITU-T H.273, 8.3)."""
    red, blue = LUMA[matrix]
    luma = np.array([red, 1 - red - blue, blue])
    rows = np.array([luma, (np.eye(3)[2] - luma) / (2 * (1 - blue)), (np.eye(3)[0] - luma) / (2 * (1 - red))])
    most, step = (1 << bits) - 1, 1 << (bits - 8)
    scale = np.array([most] * 3 if full else [219 * step, 224 * step, 224 * step]) / 255
    offset = np.array([0 if full else 16 * step, 128 * step, 128 * step])
    return np.hstack([rows * scale[:, None], offset[:, None]])


def _inverse(to_planes: np.ndarray) -> np.ndarray:
    back = np.linalg.inv(to_planes[:, :3])
    return np.hstack([back, -back @ to_planes[:, 3:]]).astype(np.float32)


def _copy(frame: av.VideoFrame) -> av.VideoFrame:
    """A frame of its own memory, with the time, the colours and the side data (captions) of `frame`."""
    if not hasattr(_of_thread, "graphs"):
        _of_thread.graphs = {}
    key = (frame.width, frame.height, frame.format.name, frame.time_base, frame.colorspace, frame.color_range)
    if key not in _of_thread.graphs:
        _of_thread.graphs[key] = filter_graph(frame, ("copy", ""))
    graph = _of_thread.graphs[key]
    graph.push(frame)
    copy = graph.pull()
    assert isinstance(copy, av.VideoFrame)
    return copy


_of_thread = threading.local()


# ---- rectangles


def _scale(display: Display) -> float:
    """Square pixels for one coded pixel, across."""
    return display.square_width / display.width


def _coded_box(display: Display, box: Box) -> Box:
    """A box of upright pixels -> the same in the coded frame with square pixels."""
    width, height = display.size
    left, top, right, bottom = box
    if display.mirrored:
        left, right = width - right, width - left
    if display.flipped:
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if display.transposed else (left, top, right, bottom)


def _upright_corner(display: Display, square: Box) -> tuple[int, int]:
    left, top, right, bottom = square
    if display.transposed:
        left, top, right, bottom = top, left, bottom, right
    width, height = display.size
    return (width - right if display.mirrored else left), (height - bottom if display.flipped else top)


def _aligned(box: Box, steps: tuple[int, int], size: tuple[int, int]) -> Box:
    """The smallest box around `box` that begins and ends at whole steps or at the edge of a picture of `size`."""
    edges = []
    for low, high, step, most in zip(box[:2], box[2:], steps, size, strict=True):
        low = min(max(0, low), most - 1) // step * step
        edges.append((low, min(most, -(-max(high, low + 1) // step) * step)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _turned(image: np.ndarray, display: Display) -> np.ndarray:
    if display.transposed:
        image = image.transpose(1, 0, 2)
    return image[:: -1 if display.flipped else 1, :: -1 if display.mirrored else 1]
