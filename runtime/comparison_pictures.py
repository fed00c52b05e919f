"""Pictures of how far two graphs are apart: the signal-to-noise ratio along the graph, errors of experts by blocks."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from runtime.atomic import replacing
from runtime.comparison import Comparison, WireDifference
from runtime.differences import Difference
from runtime.errors import FileError
from runtime.heat_maps import shades, shrunk
from runtime.mixture_differences import MixtureDifference

FINENESS = 2
"""How much larger than they are written pictures are drawn, so that slanted lines are smooth."""
INK, PALE, GRID = "#333333", "#777777", "#dddddd"
WHOLE, ALONE, RED = "#1f77b4", "#d95f02", "#b3382c"
EMPTY, FULL = (247, 249, 251), (140, 32, 26)

ROW, MOST_ROWS, PLOT, NAMES = 24, 60, 620, 420
"""Of the ratios along the graph: height of a row, how many there are at most, widths of the plot and of most names."""
CELLS = (620, 420)
"""The size that the cells of a heat map take, about, in pixels."""
SMALLEST, LARGEST = 3, 36
"""Of a heat map's cells."""


def save_pictures(folder: Path, comparison: Comparison) -> list[Path]:
    """Writes snr.png, and experts_NODE.png for each mixture, into a folder, which is made if it is not there.

    FileError if that cannot be done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(folder, f"cannot be made: {error.strerror or error}.") from error
    paths = [folder / "snr.png"]
    save_ratios(paths[0], comparison)
    for mixture in comparison.mixtures:
        paths.append(folder / f"experts_{mixture.second}.png")
        save_experts(paths[-1], mixture)
    return paths


# -- along the graph --------------------------------------------------------------------------------------------------


def save_ratios(path: Path, comparison: Comparison) -> None:
    """Writes a PNG with a row for each wire that depends on the inputs, in order: its ratios in decibels.

    Of very many wires, a row stands for several that follow each other, and shows the worst of both ratios.
    """
    from PIL import Image, ImageDraw, ImageFont

    wires = [wire for wire in comparison.wires if not wire.is_constant]
    size = ceil(len(wires) / MOST_ROWS) or 1
    groups = [wires[start : start + size] for start in range(0, len(wires), size)]
    rows = [min(group, key=lambda wire: (-wire.accumulated.spoiled, wire.accumulated.snr)) for group in groups]
    ratios = [one.snr for wire in wires for one in (wire.accumulated, wire.isolated) if one and isfinite(one.snr)]
    low, high = min((0.0, *ratios)), max((10.0, *ratios))
    step = next(step for step in (5, 10, 20, 50, 100, 500, 1000) if (high - low) / step <= 10 or step == 1000)
    low, high = step * floor(low / step), step * ceil(high / step)

    f = FINENESS
    font: Any = ImageFont.load_default(13 * f)
    labels = [_fitting(_label(wire), font, f * NAMES) for wire in rows]
    longest = max((font.getlength(label) for label in labels), default=0.0)
    left, top, exact = ceil(longest) + f * 36, f * 64, f * 70
    width, height = left + f * PLOT + exact + f * 20, top + f * (ROW * max(1, len(rows)) + 40)
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    bottom = top + f * ROW * max(1, len(rows))

    def across(found: Difference) -> float:
        if found.snr == inf:
            return left + f * PLOT + exact * 0.6
        share = (max(found.snr, low) - low) / (high - low)
        return left + f * PLOT * share

    for tick in range(low, high + 1, step):
        x = left + f * PLOT * (tick - low) / (high - low)
        draw.line((x, top, x, bottom), GRID, f)
        draw.text((x, bottom + 8 * f), f"{tick}", INK, font, anchor="mt")
    x = left + f * PLOT + exact * 0.6
    draw.line((x, top, x, bottom), GRID, f)
    draw.text((x, bottom + 8 * f), "exact", INK, font, anchor="mt")
    draw.text((left + f * PLOT / 2, bottom + 26 * f), "signal-to-noise ratio, dB", INK, font, anchor="mt")
    for place, (colour, word) in enumerate(
        ((WHOLE, "of the whole run"), (ALONE, "of the node alone, on the first graph's values"))
    ):
        x = left + 190 * f * place
        draw.ellipse((x, 26 * f, x + 9 * f, 35 * f), colour if colour == WHOLE else "white", colour, 2 * f)
        draw.text((x + 16 * f, 30.5 * f), word, INK, font, anchor="lm")
    middles = [top + f * ROW * (row + 0.5) for row in range(len(rows))]
    points = [(across(wire.accumulated), y) for wire, y in zip(rows, middles, strict=True)]
    if len(points) > 1:
        draw.line(points, WHOLE, 2 * f, joint="curve")
    if size > 1:
        draw.text((left, 46 * f), f"each row shows the worst of {size} wires", PALE, font, anchor="lt")
    for wire, group, (x, y), text in zip(rows, groups, points, labels, strict=True):
        is_worst = wire is comparison.worst
        draw.text((left - 16 * f, y), text, RED if is_worst else INK, font, anchor="rm")
        alone = [one.isolated for one in group if one.isolated is not None]
        if alone:
            own = across(min(alone, key=lambda found: found.snr))
            draw.ellipse((own - 5.5 * f, y - 5.5 * f, own + 5.5 * f, y + 5.5 * f), "white", ALONE, 2 * f)
        dot = 3.5 * f
        draw.ellipse((x - dot, y - dot, x + dot, y + dot), RED if is_worst else WHOLE)
        if not isfinite(wire.accumulated.snr) and wire.accumulated.snr < 0:
            draw.text((left + 8 * f, y), "no signal", RED, font, anchor="lm")
    if not rows:
        draw.text((left + f * PLOT / 2, (top + bottom) / 2), "nothing depends on the inputs", PALE, font, anchor="mm")
    _save(image, path)


def _label(wire: WireDifference) -> str:
    return str(wire.second) + (f" ({wire.output})" if wire.output else "")


def _fitting(text: str, font: Any, width: float) -> str:
    """A text that is no wider; cut in the middle if need be."""
    keep = len(text)
    short = text
    while keep > 8 and font.getlength(short) > width:
        keep -= 1
        short = f"{text[: keep // 2]}…{text[len(text) - keep // 2 :]}"
    return short


# -- experts and blocks -----------------------------------------------------------------------------------------------


def save_experts(path: Path, mixture: MixtureDifference) -> None:
    """Writes a PNG of heat maps, experts x blocks of columns: errors of weights, and of what projections give."""
    from PIL import Image

    panels = []
    for name, size in mixture.block_sizes.items():
        panels.append(
            [
                _panel(
                    mixture.block_weight_errors(name), f"{name}: weights, by blocks of {size} columns", mixture.tokens
                ),
                _panel(mixture.block_output_errors(name), f"{name}: what it gives, by use", mixture.tokens),
            ]
        )
    widths = [max(row[side].width for row in panels) for side in range(2)]
    heights = [max(panel.height for panel in row) for row in panels]
    head = 40 * FINENESS
    whole = Image.new("RGB", (sum(widths), head + sum(heights)), "white")
    _title(whole, mixture)
    y = head
    for row, height in zip(panels, heights, strict=True):
        whole.paste(row[0], (0, y))
        whole.paste(row[1], (widths[0], y))
        y += height
    _save(whole, path)


def _title(image: Any, mixture: MixtureDifference) -> None:
    from PIL import ImageDraw, ImageFont

    font: Any = ImageFont.load_default(15 * FINENESS)
    changed = f"{mixture.changed_tokens:,} of {mixture.token_count:,} tokens changed experts"
    draw = ImageDraw.Draw(image)
    draw.text((20 * FINENESS, 22 * FINENESS), f"{mixture.second}: relative errors; {changed}", INK, font, anchor="lm")


def _panel(matrix: np.ndarray, title: str, tokens: np.ndarray) -> Any:
    """A heat map [experts, blocks] with its scale, and how many tokens each expert has."""
    from PIL import Image, ImageDraw, ImageFont

    f = FINENESS
    experts, blocks = matrix.shape
    shown = shrunk(matrix, CELLS[1] // SMALLEST, CELLS[0] // SMALLEST)
    rows, columns = shown.shape
    wide, tall = (
        min(LARGEST, max(SMALLEST, most // max(1, n))) for most, n in zip(CELLS, (columns, rows), strict=True)
    )
    width, height = max(220, wide * columns), tall * rows
    left, top, right, bottom = 56, 40, 84, 62
    image = Image.new("RGB", (f * (left + width + right), f * (top + height + bottom)), "white")
    draw = ImageDraw.Draw(image)
    font: Any = ImageFont.load_default(13 * f)
    small: Any = ImageFont.load_default(11 * f)
    draw.text((f * left, f * 8), title, INK, font)
    draw.text((f * (left - 8), f * (top - 4)), "expert", PALE, small, anchor="rb")

    finite = shown[np.isfinite(shown)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    least = least if least > most / 2 else 0.0  # a scale from zero would show no difference
    colours = shades(shown - least, EMPTY, FULL)
    cells = Image.fromarray(colours).resize((f * wide * columns, f * tall * rows), Image.Resampling.NEAREST)
    image.paste(cells, (f * left, f * top))
    draw.rectangle((f * left - 1, f * top - 1, f * (left + wide * columns), f * (top + height)), outline=GRID)
    draw.text((f * (left + wide * columns + 8), f * (top - 4)), "tokens", PALE, small, anchor="lb")
    for expert in _marks(experts, 420 // 15):
        y = f * (top + height * (expert + 0.5) / experts)
        draw.text((f * (left - 8), y), str(expert), INK, small, anchor="rm")
        draw.text((f * (left + wide * columns + 8), y), f"{tokens[expert]:,}", INK, small, anchor="lm")
    for block in _marks(blocks, max(1, wide * columns // 34)):
        x = f * (left + wide * columns * (block + 0.5) / blocks)
        draw.text((x, f * (top + height + 6)), str(block), INK, small, anchor="mt")
    _scale(image, draw, small, (left, top + height + 30), least, most)
    return image


def _scale(image: Any, draw: Any, font: Any, place: tuple[int, int], least: float, most: float) -> None:
    """A bar of the colours, with the errors that its ends stand for."""
    from PIL import Image

    f, length = FINENESS, 120
    bar = shades(np.linspace(0, 1, f * length)[None, :].repeat(f * 10, 0), EMPTY, FULL)
    x = place[0] + 40
    image.paste(Image.fromarray(bar), (f * x, f * place[1]))
    draw.text((f * (x - 6), f * (place[1] + 5)), f"{100 * least:.3g} %", INK, font, anchor="rm")
    draw.text((f * (x + length + 6), f * (place[1] + 5)), f"{100 * most:.3g} %", INK, font, anchor="lm")


def _marks(count: int, most: int) -> Sequence[int]:
    """Which of so many rows or columns are numbered: at most so many, evenly apart."""
    step = next((s for s in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100) if count <= s * most), count)
    return range(0, count, max(1, step))


def _save(image: Any, path: Path) -> None:
    from PIL import Image

    size = (image.width // FINENESS, image.height // FINENESS)
    with replacing(path) as file:
        image.resize(size, Image.Resampling.LANCZOS).save(file, "PNG")
