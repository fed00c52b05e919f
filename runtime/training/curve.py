"""The losses of a training run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, isfinite, log10
from pathlib import Path
from typing import Any

from runtime.atomic import replacing

SIZE = (900, 520)
MARGIN = (80, 24, 24, 56)  # left, top, right, bottom
COLOURS = ("#1f77b4", "#d95f02", "#2a9d4a", "#8b4fb3", "#b3382c", "#6b6b6b")
GRID, INK = "#dddddd", "#333333"


def save_curve(path: Path, history: Sequence[Mapping[str, float]], names: Sequence[str]) -> None:
    """Writes a PNG with one line for each of `names` over the epochs. FileError if it cannot be written.

    The scale is logarithmic if the largest number is more than twenty times the smallest, and all are positive.
    """
    from PIL import Image, ImageDraw, ImageFont

    series = {name: [entry.get(name) for entry in history] for name in names if any(name in entry for entry in history)}
    values = [value for line in series.values() for value in line if value is not None and isfinite(value)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    logarithmic = low > 0 and high / low > 20
    ticks = _decades(low, high) if logarithmic else _ticks(low, high)
    bottom, top = (log10(ticks[0]), log10(ticks[-1])) if logarithmic else (ticks[0], ticks[-1])
    left, above, right, below = MARGIN
    width, height = SIZE[0] - left - right, SIZE[1] - above - below

    def across(epoch: float) -> float:
        return left + width * (epoch - 1) / max(1, len(history) - 1)

    def up(value: float) -> float:
        place = log10(value) if logarithmic else value
        return above + height * (1 - (place - bottom) / (top - bottom or 1))

    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    font: Any = ImageFont.load_default(15)
    for tick in ticks:
        draw.line((left, up(tick), SIZE[0] - right, up(tick)), GRID)
        draw.text((left - 8, up(tick)), f"{tick:g}", INK, font, anchor="rm")
    for epoch in _epochs(len(history)):
        draw.text((across(epoch), SIZE[1] - below + 8), str(epoch), INK, font, anchor="mt")
    draw.text((left + width / 2, SIZE[1] - 22), "epoch", INK, font, anchor="mt")
    for index, (name, line) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        points = [(across(e), up(v)) for e, v in enumerate(line, 1) if v is not None and isfinite(v)]
        if len(points) > 1:
            draw.line(points, colour, 3, joint="curve")
        for x, y in points if len(points) < 2 else ():
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
        draw.line(
            (SIZE[0] - right - 190, above + 14 + 22 * index, SIZE[0] - right - 160, above + 14 + 22 * index), colour, 3
        )
        draw.text((SIZE[0] - right - 150, above + 14 + 22 * index), name, INK, font, anchor="lm")
    with replacing(path) as file:
        image.save(file, "PNG")


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that hold a range."""
    span = (high - low) or abs(high) or 1.0
    raw = span / 4
    unit = 10.0 ** floor(log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw)
    first, last = floor(low / step), ceil(high / step)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def _decades(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(floor(log10(low)), ceil(log10(high)) + 1)]


def _epochs(count: int) -> list[int]:
    step = max(1, ceil(count / 10))
    return sorted({1, *range(step, count + 1, step)}) if count else []
