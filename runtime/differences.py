"""How far two arrays are apart: signal-to-noise ratio, cosine, largest difference; in pieces, whatever their size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PIECE = 1 << 20
"""Elements that are held as float64 at once."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far an array b is from an array a, both of `elements` numbers.

    `snr` is 10 log10(sum a² / sum (a - b)²) in decibels: inf where both are equal, -inf where a is zero and b is not.
    `cosine` is (sum a b) / sqrt(sum a² sum b²), None where one of them is zero. `largest` is the largest |a - b|.
    All of them are over the elements that are finite in both; `not_finite` counts the others. `spoiled` counts those
    of these that differ: finite in one only, or another infinity, or NaN in one only.
    """

    elements: int
    snr: float
    cosine: float | None
    largest: float
    not_finite: int = 0
    spoiled: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether the two are equal, number by number; NaN equals NaN."""
        return self.snr == math.inf and not self.spoiled and self.largest == 0


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """How far `second` is from `first`, which has the same shape. ValueError if it has not."""
    if first.shape != second.shape:
        raise ValueError(f"shapes {list(first.shape)} and {list(second.shape)}")
    wide = np.complex128 if "c" in (first.dtype.kind, second.dtype.kind) else np.float64
    signal = noise = other = product = largest = 0.0
    not_finite = spoiled = 0
    flat, flat_other = first.reshape(-1), second.reshape(-1)
    for start in range(0, flat.size, PIECE):
        given, found = flat[start : start + PIECE], flat_other[start : start + PIECE]
        a, b = given.astype(wide), found.astype(wide)
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            rest = a[~finite], b[~finite]
            not_finite += len(rest[0])
            same = (rest[0] == rest[1]) | (np.isnan(rest[0]) & np.isnan(rest[1]))
            spoiled += int(np.count_nonzero(~same))
            a, b = a[finite], b[finite]
        apart = np.abs(a - b)
        signal += float(np.vdot(a, a).real)
        other += float(np.vdot(b, b).real)
        product += float(np.vdot(a, b).real)
        noise += float(np.dot(apart, apart))
        largest = max(largest, float(apart.max(initial=0.0)))
    cosine = product / math.sqrt(signal) / math.sqrt(other) if signal and other else None
    if cosine is not None:
        cosine = 1.0 if not noise else max(-1.0, min(1.0, cosine))
    return Difference(flat.size, decibels(signal, noise), cosine, largest, not_finite, spoiled)


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two powers: inf without noise, -inf without signal."""
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
