"""Small SVG charts and inline pictures for the report, without a library and without scripts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np

WIDTH, HEIGHT = 640, 150
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 10, 22
JPEG_QUALITY = 85


def picture(image: np.ndarray, *, alt: str) -> str:
    """An <img> of image [H, W, 3] uint8 RGB with its bytes inside."""
    jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    return f'<img alt="{escape(alt)}" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers between low and high."""
    raw = (high - low) / count or 1.0
    magnitude = 10.0 ** np.floor(np.log10(raw))
    step = magnitude * next(m for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    return [float(t) for t in np.arange(np.ceil(low / step) * step, high + step * 1e-6, step)]


class _Axes:
    def __init__(self, x: tuple[float, float], y: tuple[float, float]):
        self._x, self._y = x, y if y[1] > y[0] else (y[0], y[0] + 1)

    def x(self, value: float) -> float:
        return LEFT + (value - self._x[0]) / max(1e-9, self._x[1] - self._x[0]) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self._y[0]) / (self._y[1] - self._y[0]) * (HEIGHT - TOP - BOTTOM)

    def frame(self, x_unit: str) -> str:
        lines = []
        for tick in _ticks(*self._y, 3):
            y = self.y(tick)
            lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            lines.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
        for tick in _ticks(*self._x, 6):
            label = f"{tick:g}{x_unit}"
            lines.append(
                f'<text class="tick" x="{self.x(tick):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{label}</text>'
            )
        return "".join(lines)


def _svg(body: str, title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>'


def curves(
    lines: Sequence[tuple[str, np.ndarray]],
    *,
    start_s: float,
    fps: int,
    title: str,
    low: float | None = None,
    high: float | None = None,
) -> str:
    """Curves over time; each is (name, values [n]), drawn in the colours c0, c1 of the page. NaN leaves a gap."""
    values = np.concatenate([line for _, line in lines])
    bottom = float(np.nanmin(values)) if low is None else low
    top = max(float(np.nanmax(values)), -np.inf if high is None else high)
    count = len(lines[0][1])
    axes = _Axes((start_s, start_s + count / fps), (bottom, top))
    body = axes.frame(" s")
    for number, (_, line) in enumerate(lines):
        step = max(1, count // 1200)  # more points than pixels only make the file larger
        path, pen = [], "M"
        for n in range(0, count, step):
            if np.isnan(line[n]):
                pen = "M"
                continue
            path.append(f"{pen}{axes.x(start_s + n / fps):.1f} {axes.y(float(line[n])):.1f}")
            pen = "L"
        body += f'<path class="c{number}" d="{"".join(path)}"/>'
    return _svg(body, title) + _legend([name for name, _ in lines])


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    items = "".join(f'<span><i class="c{n}"></i>{escape(name)}</span>' for n, name in enumerate(names))
    return f'<p class="legend">{items}</p>'


def histogram(values: np.ndarray, marks: np.ndarray, *, title: str, bins: int = 40) -> str:
    """Histogram of values [n]; marks [m] are drawn as ticks below the bars."""
    low, high = 0.0, max(0.05, float(np.nanmax(values)) * 1.02)
    counts, edges = np.histogram(values[~np.isnan(values)], bins=bins, range=(low, high))
    axes = _Axes((low, high), (0, float(counts.max())))
    body = axes.frame("")
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        x, y = axes.x(left) + 0.5, axes.y(float(count))
        width, height = axes.x(right) - x - 0.5, axes.y(0) - y
        body += f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    for mark in marks:
        x, y = axes.x(float(mark)), axes.y(0)
        body += f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 1:.1f}" y2="{y + 5:.1f}"/>'
    return _svg(body, title)


def timeline(spans: Sequence[tuple[str, float, float, str]], total_s: float) -> str:
    """Rows of bars over a clip of `total_s`. Each span is (CSS class, start_s, stop_s, row label)."""
    rows = list(dict.fromkeys(label for *_, label in spans))
    height = 26 * len(rows) + 22
    body = ""
    for row, label in enumerate(rows):
        y = 4 + 26 * row
        body += f'<text class="tick" x="80" y="{y + 13}" text-anchor="end">{escape(label)}</text>'
        body += f'<rect class="lane" x="90" y="{y}" width="530" height="18" rx="4"/>'
        for css_class, start, stop, span_label in spans:
            if span_label == label:
                x, width = 90 + 530 * start / total_s, max(1.5, 530 * (stop - start) / total_s - 1)
                body += f'<rect class="{css_class}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="18" rx="4"/>'
    for tick in _ticks(0, total_s, 6):
        x = 90 + 530 * tick / total_s
        body += f'<text class="tick" x="{x:.1f}" y="{height - 5}" text-anchor="middle">{tick:g} s</text>'
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="parts of the clip">{body}</svg>'
