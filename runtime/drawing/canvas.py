"""Pixels, and shapes with soft edges on them: boxes, curves, letters.

Coverage is rounded to 256 steps before it meets a colour, and colours are mixed in integers: with arithmetic that every
machine does alike, the pixels are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil, floor, sqrt

import numpy as np

from runtime.drawing.font import FULL, Font

Colour = tuple[int, int, int]
Point = tuple[float, float]
Bezier = tuple[Point, Point, Point, Point]


class Canvas:
    """A picture of `width` x `height` units, each `scale` pixels wide. `pixels` is uint8 [rows, columns, RGB]."""

    def __init__(self, width: float, height: float, scale: float, background: Colour) -> None:
        self.scale = scale
        self.pixels = np.empty((max(1, ceil(height * scale)), max(1, ceil(width * scale)), 3), np.uint8)
        self.pixels[:] = background
        self._covered = np.zeros(self.pixels.shape[:2], np.int32)

    def box(
        self,
        left: float,
        top: float,
        width: float,
        height: float,
        *,
        radius: float = 0.0,
        fill: Colour | None = None,
        line: Colour | None = None,
        thickness: float = 1.0,
        only: tuple[float, float] | None = None,
    ) -> None:
        """A box with round corners, filled, with a line inside its edge; `only` what of it is between two heights."""
        s = self.scale
        x0, y0, x1, y1 = left * s, top * s, (left + width) * s, (top + height) * s
        upper, lower = (round(only[0] * s), round(only[1] * s)) if only else (y0 - 1, y1 + 1)
        window = self._window(x0 - 1, upper, x1 + 1, lower)
        if window is None:
            return
        rows, columns = window
        # The distance to a box with round corners: that to the box that is smaller by the radius, less the radius.
        r = min(radius * s, (x1 - x0) / 2, (y1 - y0) / 2)
        x, y = np.arange(columns.start, columns.stop) + 0.5, np.arange(rows.start, rows.stop) + 0.5
        dx = np.maximum(x0 + r - x, x - (x1 - r))[None, :]
        dy = np.maximum(y0 + r - y, y - (y1 - r))[:, None]
        inside = np.minimum(np.maximum(dx, dy), 0.0)
        away = np.sqrt(np.maximum(dx, 0.0) ** 2 + np.maximum(dy, 0.0) ** 2) + inside - r
        outer = _steps(0.5 - away)
        if fill is not None:
            self._mix(rows, columns, outer, fill)
        if line is not None:
            self._mix(rows, columns, outer - _steps(0.5 - away - thickness * s), line)

    def dot(self, x: float, y: float, radius: float, fill: Colour, line: Colour | None = None) -> None:
        """A disc around a point."""
        self.box(x - radius, y - radius, 2 * radius, 2 * radius, radius=radius, fill=fill, line=line, thickness=1.2)

    def path(self, points: Sequence[Point], colour: Colour, thickness: float) -> None:
        """A line through points, with round ends."""
        s, half = self.scale, max(thickness * self.scale, 0.7) / 2
        windows = []
        for (xa, ya), (xb, yb) in pairwise(points):
            ax, ay, bx, by = xa * s, ya * s, xb * s, yb * s
            reach = half + 1
            window = self._window(min(ax, bx) - reach, min(ay, by) - reach, max(ax, bx) + reach, max(ay, by) + reach)
            if window is None:
                continue
            rows, columns = window
            x = np.arange(columns.start, columns.stop)[None, :] + (0.5 - ax)
            y = np.arange(rows.start, rows.stop)[:, None] + (0.5 - ay)
            squared = max((bx - ax) * (bx - ax) + (by - ay) * (by - ay), 1e-12)
            along = np.clip((x * (bx - ax) + y * (by - ay)) / squared, 0.0, 1.0)
            ex, ey = x - along * (bx - ax), y - along * (by - ay)
            covered = _steps(half + 0.5 - np.sqrt(ex * ex + ey * ey))
            np.maximum(self._covered[rows, columns], covered, out=self._covered[rows, columns])
            windows.append(window)
        # Where pieces overlap, each pixel is mixed once, with the most that any of them covers of it.
        for rows, columns in windows:
            self._mix(rows, columns, self._covered[rows, columns], colour)
            self._covered[rows, columns] = 0

    def curve(self, points: Bezier, colour: Colour, thickness: float, *, dash: float = 0.0, gap: float = 0.0) -> None:
        """A cubic Bezier curve; with `dash`, in pieces of that length with a `gap` between them."""
        if not dash:
            self.path(along(points, 6 + 4 / self.scale), colour, thickness)
            return
        for piece in pieces(along(points, 2), dash, gap):
            self.path(piece, colour, thickness)

    def text(self, x: float, y: float, text: str, font: Font, size: float, colour: Colour) -> None:
        """A text that starts at `x` and whose letters stand on `y`."""
        s = self.scale
        base = round(y * s)
        for letter, place in font.placed(text, size * s):
            quarters = floor((x * s + place) * 4 + 0.5)
            covered, left, top = font.coverage(letter, size * s, quarters % 4)
            left, top = left + quarters // 4, top + base
            height, width = covered.shape
            window = self._window(left, top, left + width, top + height)
            if window is not None:
                rows, columns = window
                part = covered[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
                self._mix(rows, columns, part, colour)

    def _window(self, x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice] | None:
        """The pixels of an area that are in the picture: rows and columns."""
        height, width = self._covered.shape
        rows = slice(max(0, floor(y0)), min(height, ceil(y1)))
        columns = slice(max(0, floor(x0)), min(width, ceil(x1)))
        return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None

    def _mix(self, rows: slice, columns: slice, covered: np.ndarray, colour: Colour) -> None:
        share = covered[:, :, None].astype(np.int32)
        below = self.pixels[rows, columns]
        self.pixels[rows, columns] = (below * (FULL - share) + np.array(colour, np.int32) * share + FULL // 2) // FULL


def along(points: Bezier, spacing: float) -> list[Point]:
    """Points on a cubic Bezier curve, at most about `spacing` apart."""
    a, b, c, d = points
    span = sum(abs(q[0] - p[0]) + abs(q[1] - p[1]) for p, q in pairwise(points))
    count = max(2, min(400, ceil(span / spacing)))
    found = []
    for index in range(count + 1):
        t = index / count
        u = 1 - t
        w = (u * u * u, 3 * u * u * t, 3 * u * t * t, t * t * t)
        x = w[0] * a[0] + w[1] * b[0] + w[2] * c[0] + w[3] * d[0]
        y = w[0] * a[1] + w[1] * b[1] + w[2] * c[1] + w[3] * d[1]
        found.append((x, y))
    return found


def pieces(points: Sequence[Point], dash: float, gap: float) -> Iterator[list[Point]]:
    """A line through points, cut into pieces of length `dash` with a `gap` between them."""
    piece, left, drawn = [points[0]], dash, True
    for (x0, y0), (x1, y1) in pairwise(points):
        length = sqrt((x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0))
        at = 0.0
        while length - at > left:
            at += left
            end = (x0 + (x1 - x0) * at / length, y0 + (y1 - y0) * at / length)
            if drawn:
                yield [*piece, end]
            drawn, left, piece = not drawn, gap if drawn else dash, [end]
        left -= length - at
        if drawn:
            piece.append((x1, y1))
    if drawn and len(piece) > 1:
        yield piece


def _steps(coverage: np.ndarray) -> np.ndarray:
    """Coverage 0 to 1 in whole steps, 0 to FULL."""
    steps: np.ndarray = np.floor(np.clip(coverage, 0.0, 1.0) * FULL + 0.5).astype(np.int32)
    return steps
