"""The letters: how wide a text is, and what a letter covers of each pixel, from outlines that come along.

Everything is computed in integers, so that a picture is the same on every machine.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "fonts"
FAMILY = "Inter"
FULL = 256
"""What covers a pixel wholly."""
_LINES = 16
"""Lines on which coverage is measured in each row of pixels."""


class Font:
    """One style of the font. Sizes are in pixels an em; places have y downwards, and 0 is the base line."""

    def __init__(self, style: str) -> None:
        with np.load(FOLDER / "outlines.npz", allow_pickle=False) as file:
            self._advances, self._points = file[f"{style}.advances"].tolist(), file[f"{style}.points"].astype(np.int64)
            self._contours, self._ends = file[f"{style}.contours"].tolist(), file[f"{style}.ends"].tolist()
            self.units, self.ascent, self.descent, self.capital = file[f"{style}.metrics"].tolist()
            self._indices = {chr(code): index for index, code in enumerate(file[f"{style}.codes"].tolist()) if index}

    def width(self, text: str, size: float) -> float:
        """The width of a text in pixels. A letter that the font lacks is drawn as a box and as wide as one."""
        return sum(self._advances[self._indices.get(letter, 0)] for letter in text) * size / self.units

    def fitted(self, text: str, size: float, width: float) -> str:
        """The text, or as much of it as fits into `width` with three dots at its end."""
        if self.width(text, size) <= width:
            return text
        while text and self.width(text + "…", size) > width:
            text = text[:-1]
        return text.rstrip() + "…"

    def placed(self, text: str, size: float) -> list[tuple[str, float]]:
        """The letters that show, each with how far from the start of the text it stands, in pixels."""
        places, x = [], 0
        for letter in text:
            if not letter.isspace():
                places.append((letter, x * size / self.units))
            x += self._advances[self._indices.get(letter, 0)]
        return places

    @lru_cache(maxsize=4096)  # noqa: B019 - there are two fonts, which live as long as the process
    def coverage(self, letter: str, size: float, shift: int) -> tuple[np.ndarray, int, int]:
        """How much a letter covers of pixels, 0 to FULL, int64 [rows, columns], and the place of the first of them.

        `shift` moves it to the right by so many quarters of a pixel.
        """
        index = self._indices.get(letter, 0)
        first, last = self._contours[index], self._contours[index + 1]
        if first == last:
            return np.zeros((0, 0), np.int64), 0, 0
        scale = round(size * 256)  # units -> 1/256 pixel, upside down
        starts, ends = [], []
        for contour in range(first, last):
            points = self._points[self._ends[contour - 1] if contour else 0 : self._ends[contour]]
            starts.append(points)
            ends.append(np.roll(points, -1, axis=0))
        lines = np.concatenate([np.concatenate(starts), np.concatenate(ends)], axis=1)
        x0, y0, x1, y1 = (lines * [1, -1, 1, -1] * scale // self.units).T
        x0, x1 = x0 + shift * 64, x1 + shift * 64
        left, right = int(min(x0.min(), x1.min())) >> 8, (int(max(x0.max(), x1.max())) >> 8) + 1
        top, bottom = int(min(y0.min(), y1.min())) >> 8, (int(max(y0.max(), y1.max())) >> 8) + 1
        step = 256 // _LINES
        levels = np.arange(top * _LINES, bottom * _LINES) * step + step // 2
        low, high = np.minimum(y0, y1), np.maximum(y0, y1)
        line, level = np.nonzero((low[:, None] <= levels) & (levels < high[:, None]))
        crossing = x0[line] + (x1 - x0)[line] * (levels[level] - y0[line]) // (y1 - y0)[line]
        sign = np.where(y1[line] > y0[line], 1, -1)
        columns = (np.arange(left, right) + 1) * 256
        covered = np.zeros((bottom - top, right - left), np.int64)
        np.add.at(covered, level // _LINES, sign[:, None] * np.clip(columns - crossing[:, None], 0, 256))
        return np.minimum(np.abs(covered) // _LINES, FULL), left, top


@cache
def regular() -> Font:
    """For parameters, ports and types."""
    return Font("Regular")


@cache
def bold() -> Font:
    """For titles."""
    return Font("SemiBold")
