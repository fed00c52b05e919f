"""Which expert sees which class, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.atomic import replacing

CELL, LEFT, TOP, RIGHT, BOTTOM = 64, 110, 70, 30, 30
EMPTY, FULL, INK = (247, 249, 251), (23, 92, 140), "#333333"


def save_map(path: Path, counts: np.ndarray, rows: Sequence[str], title: str) -> None:
    """Writes a PNG of `counts` [rows, experts]: each row's share of every expert, in percent, the darker the more.

    FileError if it cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    height, width = counts.shape
    image = Image.new("RGB", (LEFT + CELL * width + RIGHT, TOP + CELL * height + BOTTOM), "white")
    draw = ImageDraw.Draw(image)
    font: Any = ImageFont.load_default(16)
    small: Any = ImageFont.load_default(13)
    draw.text((LEFT, 14), title, INK, font)
    for expert in range(width):
        draw.text((LEFT + CELL * (expert + 0.5), TOP - 10), f"expert {expert}", INK, small, anchor="mb")
    largest = max(float(shares.max(initial=0)), 1e-9)
    for row, name in enumerate(rows):
        draw.text((LEFT - 12, TOP + CELL * (row + 0.5)), name, INK, font, anchor="rm")
        for expert in range(width):
            share = float(shares[row, expert])
            depth = share / largest
            colour = tuple(round(a + (b - a) * depth) for a, b in zip(EMPTY, FULL, strict=True))
            x, y = LEFT + CELL * expert, TOP + CELL * row
            draw.rectangle((x + 1, y + 1, x + CELL - 2, y + CELL - 2), colour)
            if share >= 0.005:
                ink = "white" if depth > 0.5 else INK
                draw.text((x + CELL / 2, y + CELL / 2), f"{share:.0%}", ink, font, anchor="mm")
    with replacing(path) as file:
        image.save(file, "PNG")
