"""What is worth knowing about an array at a glance: range, mean, NaN, a histogram, a line of 48 points."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from runtime.types import ElementType

BINS = 32
POINTS = 48
CHUNK = 1 << 17
"""Elements that are looked at together: as many as fit a processor's cache as doubles."""


@dataclass(frozen=True, slots=True)
class Summary:
    """An array in numbers.

    `minimum`, `mean`, `maximum` and `deviation` are of the finite elements, None if there are none, as for texts. Bools
    count as 0 and 1, complex numbers as their absolute values. `zeros` is the share of zeros (of texts: of empty ones).
    `histogram` counts the finite elements in equal bins from `minimum` to `maximum`. `sparkline` has the means of equal
    stretches of the elements, rows first, or the elements themselves if there are few; NaN where none is finite.
    """

    element: ElementType
    shape: tuple[int, ...]
    minimum: float | int | None = None
    mean: float | None = None
    maximum: float | int | None = None
    deviation: float | None = None
    nans: int = 0
    infinities: int = 0
    zeros: float = 0.0
    histogram: tuple[int, ...] = ()
    sparkline: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def summarize(array: np.ndarray) -> Summary:
    """The summary of an array of any element type. TypeError if ONNX has none of its kind."""
    element = ElementType.of(array.dtype)
    if not array.size:
        return Summary(element, array.shape)
    if element is ElementType.STRING:
        empty = sum(len(item) == 0 if isinstance(item, str | bytes) else False for item in array.flat)
        return Summary(element, array.shape, zeros=empty / array.size)
    with np.errstate(all="ignore"):
        return _of_numbers(array, element)


def _of_numbers(array: np.ndarray, element: ElementType) -> Summary:
    moments = _Moments()
    starts = np.linspace(0, array.size, min(POINTS, array.size) + 1).astype(np.int64)
    sums, counts = np.zeros(len(starts) - 1), np.zeros(len(starts) - 1, np.int64)
    for start, numbers in _chunks(array):
        finite = moments.add(numbers)
        _add_to_line(sums, counts, starts, start, numbers, finite)
    line = tuple((sums / np.where(counts, counts, np.nan)).tolist())
    nans, infinities = moments.nans, moments.infinities
    zeros = moments.zeros / array.size
    if not moments.count:
        return Summary(element, array.shape, nans=nans, infinities=infinities, zeros=zeros, sparkline=line)
    low, high = moments.low, moments.high
    return Summary(
        element,
        array.shape,
        _exact(array, low, "min"),
        moments.mean,
        _exact(array, high, "max"),
        math.sqrt(moments.squares / moments.count) if math.isfinite(moments.squares) else math.inf,
        nans,
        infinities,
        zeros,
        _histogram(array, low, high, bool(nans or infinities)),
        line,
    )


class _Moments:
    """Count, range, mean and the sum of squared distances from it, chunk by chunk."""

    def __init__(self) -> None:
        self.count = self.nans = self.infinities = self.zeros = 0
        self.low, self.high = math.inf, -math.inf
        self.mean = self.squares = 0.0

    def add(self, numbers: np.ndarray) -> np.ndarray | None:
        """Counts a chunk in; returns which of it are finite, None if all are."""
        self.zeros += numbers.size - int(np.count_nonzero(numbers))
        low, high = float(numbers.min()), float(numbers.max())
        finite = None
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = np.isfinite(numbers)
            nans = int(np.count_nonzero(np.isnan(numbers)))
            self.nans += nans
            self.infinities += numbers.size - int(np.count_nonzero(finite)) - nans
            numbers = numbers[finite]
            if not numbers.size:
                return finite
            low, high = float(numbers.min()), float(numbers.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        count, mean = numbers.size, float(numbers.mean())
        if not math.isfinite(mean):  # the sum overflowed
            mean = float((numbers / count).sum())
        apart = numbers - mean
        total = self.count + count
        shift = mean - self.mean
        self.squares += float(np.dot(apart, apart)) + shift * shift * self.count * count / total
        self.mean += shift * count / total
        self.count = total
        return finite


def _add_to_line(
    sums: np.ndarray,
    counts: np.ndarray,
    starts: np.ndarray,
    start: int,
    numbers: np.ndarray,
    finite: np.ndarray | None,
) -> None:
    """Adds a chunk that begins at element `start` to the stretches of the line that it overlaps."""
    stop = start + numbers.size
    first = int(np.searchsorted(starts, start, "right")) - 1
    last = int(np.searchsorted(starts, stop, "left"))
    edges = np.maximum(starts[first:last] - start, 0)
    lengths = np.diff(np.append(edges, numbers.size))
    if finite is not None:
        numbers = np.where(finite, numbers, 0.0)
        counts[first:last] += np.add.reduceat(finite.astype(np.int64), edges)
    else:
        counts[first:last] += lengths
    sums[first:last] += np.add.reduceat(numbers, edges)


def _histogram(array: np.ndarray, low: float, high: float, has_others: bool) -> tuple[int, ...]:
    counts = np.zeros(BINS, np.int64)
    width = high / BINS - low / BINS
    if not width > 0:
        counts[BINS // 2] = sum(int(np.count_nonzero(np.isfinite(numbers))) for _, numbers in _chunks(array))
        return tuple(counts.tolist())
    for _, numbers in _chunks(array):
        if has_others:
            numbers = numbers[np.isfinite(numbers)]
        bins = np.minimum((numbers / width - low / width).astype(np.int64), BINS - 1)
        counts += np.bincount(np.maximum(bins, 0), minlength=BINS)
    return tuple(counts.tolist())


def _exact(array: np.ndarray, value: float, name: str) -> float | int:
    """A bound of the elements: for integers a whole number, exact where doubles are not."""
    if array.dtype.kind not in "iu":  # also those of ml_dtypes, whose kind is V
        element = ElementType.of(array.dtype)
        return value if element.is_float or array.dtype.kind == "c" else int(value)
    return int(getattr(array, name)()) if abs(value) > 1 << 53 else int(value)


def _chunks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The elements as doubles, rows first, some at a time, and the number of the first."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
    for start in range(0, array.size, CHUNK):
        chunk = np.asarray(flat[start : start + CHUNK])
        if chunk.dtype.kind == "c":
            chunk = np.abs(chunk)
        yield start, chunk.astype(np.float64)
