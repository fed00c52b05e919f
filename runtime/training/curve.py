"""The losses of a training run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, isfinite, log10
from pathlib import Path
from typing import Any

from runtime.atomic import replacing
from runtime.drawing.axes import decades, labels, ticks

SIZE = (900, 520)
MARGIN = (80, 30, 24, 56)  # left, top, right, bottom
LINE = 22
"""The height of a line of the legend, which is above the plot: there no curve runs through it."""
FINENESS = 3
"""How much larger the picture is drawn than it is written, so that slanted lines are smooth."""
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
    marks = decades(low, high) if logarithmic else ticks(low, high)
    texts = [f"{mark:g}" for mark in marks] if logarithmic else labels(marks)
    bottom, top = (log10(marks[0]), log10(marks[-1])) if logarithmic else (marks[0], marks[-1])
    left, above, right, below = (FINENESS * margin for margin in MARGIN)
    width, height = FINENESS * SIZE[0], FINENESS * SIZE[1]
    font: Any = ImageFont.load_default(15 * FINENESS)
    places = _legend([float(font.getlength(name)) / FINENESS for name in series])
    above += FINENESS * LINE * (1 + max((line for _, line in places), default=0))
    columns, rows = width - left - right, height - above - below

    def across(epoch: float) -> float:
        return left + columns * (epoch - 1) / max(1, len(history) - 1)

    def up(value: float) -> float:
        place = log10(value) if logarithmic else value
        return above + rows * (1 - (place - bottom) / (top - bottom or 1))

    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    thin, thick, dot = FINENESS, 2.5 * FINENESS, 3.5 * FINENESS
    for tick, label in zip(marks, texts, strict=True):
        draw.line((left, up(tick), width - right, up(tick)), GRID, thin)
        draw.text((left - 12 * FINENESS, up(tick)), label, INK, font, anchor="rm")
    for epoch in _epochs(len(history)):
        draw.text((across(epoch), height - below + 10 * FINENESS), str(epoch), INK, font, anchor="mt")
    draw.text((left + columns / 2, height - 22 * FINENESS), "epoch", INK, font, anchor="mt")
    for index, ((name, line), place) in enumerate(zip(series.items(), places, strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        points = [(across(e), up(v)) for e, v in enumerate(line, 1) if v is not None and isfinite(v)]
        if len(points) > 1:
            draw.line(points, colour, round(thick), joint="curve")
        for x, y in points if len(history) <= 40 else ():
            draw.ellipse((x - dot, y - dot, x + dot, y + dot), colour)
        start, middle = FINENESS * place[0], FINENESS * (24 + LINE * place[1])
        draw.line((start, middle, start + 26 * FINENESS, middle), colour, round(thick))
        draw.text((start + 34 * FINENESS, middle), name, INK, font, anchor="lm")
    with replacing(path) as file:
        image.resize(SIZE, Image.Resampling.LANCZOS).save(file, "PNG")


def _legend(widths: Sequence[float]) -> list[tuple[float, int]]:
    """Where each name of the legend begins, and in which line, for names that are so wide."""
    places: list[tuple[float, int]] = []
    start, line = float(MARGIN[0]), 0
    for width in widths:
        if places and start + 34 + width > SIZE[0] - MARGIN[2]:
            start, line = float(MARGIN[0]), line + 1
        places.append((start, line))
        start += 34 + width + 28
    return places


def _epochs(count: int) -> list[int]:
    step = max(1, ceil(count / 10))
    return sorted({1, *range(step, count + 1, step)}) if count else []
