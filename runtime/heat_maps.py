"""Matrices as pictures: a colour for each number."""

from __future__ import annotations

import numpy as np

from runtime.drawing.canvas import Colour

_STOPS = np.array([[59, 76, 192], [141, 176, 254], [221, 221, 221], [244, 152, 122], [180, 4, 38]], np.float64)
"""Blue below zero, grey at zero, red above, of even lightness to both sides (Moreland, Diverging Color Maps, 2009)."""
NOT_FINITE = (255, 0, 255)


def heat_map(matrix: np.ndarray, bound: float | None = None) -> np.ndarray:
    """Colours, uint8 [rows, columns, 3], of the numbers of a matrix [rows, columns].

    Zero is grey; `bound` is the size that has the full colour, by default the largest in the matrix. What is not finite
    is magenta.
    """
    numbers = np.abs(matrix) if matrix.dtype.kind == "c" else matrix
    numbers = numbers.astype(np.float64)
    finite = np.isfinite(numbers)
    if bound is None:
        bound = float(np.abs(numbers[finite]).max(initial=0.0))
    with np.errstate(all="ignore"):
        share = np.where(finite, numbers / bound if bound > 0 else 0.0, 0.0)
    place = (np.clip(share, -1, 1) + 1) * (len(_STOPS) - 1) / 2
    low = np.minimum(place.astype(np.int64), len(_STOPS) - 2)
    part = (place - low)[..., None]
    colours = np.rint(_STOPS[low] * (1 - part) + _STOPS[low + 1] * part).astype(np.uint8)
    colours[~finite] = NOT_FINITE
    return colours


def shades(matrix: np.ndarray, low: Colour, high: Colour) -> np.ndarray:
    """Colours, uint8 [rows, columns, 3], from `low` for nothing (or less) to `high` for the largest number.

    Small numbers are lifted, so that they are seen. What is not finite is magenta.
    """
    numbers = matrix.astype(np.float64)
    finite = np.isfinite(numbers)
    most = float(numbers[finite].max(initial=0.0)) or 1.0
    share = np.clip(np.where(finite, numbers, 0.0) / most, 0, 1)[..., None] ** 0.6
    colours = np.rint(np.array(low) * (1 - share) + np.array(high) * share).astype(np.uint8)
    colours[~finite] = NOT_FINITE
    return np.ascontiguousarray(colours)


def shrunk(matrix: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A matrix with at most so many rows and columns: of each patch the number that is farthest from zero.

    A patch with something that is not finite is NaN, so that it is seen.
    """
    matrix = matrix.astype(np.float64) if matrix.dtype.kind not in "fc" else matrix
    for axis, most in ((0, rows), (1, columns)):
        length = matrix.shape[axis]
        if length > most:
            starts = np.linspace(0, length, most, endpoint=False).astype(np.int64)
            high = np.maximum.reduceat(matrix, starts, axis)
            low = np.minimum.reduceat(matrix, starts, axis)
            matrix = np.where(-low > high, low, high)
    return matrix
