"""Round numbers along the axes of a plot."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers that hold a range."""
    span = (high - low) or abs(high) or 1.0
    raw = span / 4
    unit = 10.0 ** floor(log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw)
    first, last = floor(low / step), ceil(high / step)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def labels(ticks: Sequence[float]) -> list[str]:
    """The ticks, all with as many digits after the point as the one that needs most."""
    texts = [f"{tick:g}" for tick in ticks]
    if any("e" in text for text in texts):
        return texts
    digits = max(len(text.partition(".")[2]) for text in texts)
    return [f"{tick:.{digits}f}" for tick in ticks]


def decades(low: float, high: float) -> list[float]:
    """The powers of ten that hold a range of positive numbers."""
    return [10.0**power for power in range(floor(log10(low)), ceil(log10(high)) + 1)]
