"""Makes the fonts of `runtime/drawing/fonts` from styles of Inter 4: `python make_fonts.py FOLDER` (needs fontTools).

Of each style there is an .otf for Qt, without kerning or ligatures, so that both painters place the same letters at the
same places, and its outlines as straight lines in `outlines.npz`, for the painter that needs no font engine.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from fontTools.pens.basePen import BasePen
from fontTools.subset import Options, Subsetter, load_font, save_font

HERE = Path(__file__).parent.parent / "runtime" / "drawing" / "fonts"
STYLES = ("Regular", "SemiBold")
RANGES = ((0x20, 0x7E), (0xA0, 0x17F), (0x370, 0x3FF), (0x400, 0x45F), (0x2010, 0x2026), (0x2070, 0x2099))
MORE = "←↑→↓↔−×÷±≈≠≤≥∞√∑∏∂∅●○■□▲▶▼◀◆✓✗�"
CURVE_PIECES = 5
"""Straight lines for each curve: at 60 pixels an em the error is below a hundredth of a pixel."""


class Outline(BasePen):
    """Gathers a glyph's contours as polygons."""

    def __init__(self, glyphs: object) -> None:
        super().__init__(glyphs)
        self.contours: list[list[tuple[float, float]]] = []

    def _moveTo(self, point: tuple[float, float]) -> None:  # noqa: N802
        self.contours.append([point])

    def _lineTo(self, point: tuple[float, float]) -> None:  # noqa: N802
        self.contours[-1].append(point)

    def _curveToOne(self, *points: tuple[float, float]) -> None:  # noqa: N802
        a, b, c, d = np.array([self._getCurrentPoint(), *points], float)
        for t in np.arange(1, CURVE_PIECES + 1) / CURVE_PIECES:
            x, y = a * (1 - t) ** 3 + 3 * b * t * (1 - t) ** 2 + 3 * c * t * t * (1 - t) + d * t**3
            self.contours[-1].append((x, y))


def main(folder: Path) -> None:
    arrays: dict[str, np.ndarray] = {}
    wanted = {code for first, last in RANGES for code in range(first, last + 1)} | set(map(ord, MORE))
    for style in STYLES:
        options = Options(layout_features=[], hinting=False, name_IDs=["*"], notdef_outline=True, drop_tables=["GDEF"])
        font = load_font(str(folder / f"Inter-{style}.otf"), options)
        subsetter = Subsetter(options)
        subsetter.populate(unicodes=wanted)
        subsetter.subset(font)
        save_font(font, str(HERE / f"Inter-{style}.otf"), options)
        glyphs, names = font.getGlyphSet(), font.getBestCmap()
        codes, advances, starts, points, ends = [0], [], [0], [], []
        codes += sorted(names)
        for code in codes:
            pen = Outline(glyphs)
            glyph = glyphs[names.get(code, ".notdef")]
            glyph.draw(pen)
            advances.append(glyph.width)
            for contour in pen.contours:
                points += contour
                ends.append(len(points))
            starts.append(len(ends))
        arrays |= {
            f"{style}.codes": np.array(codes, np.int32),
            f"{style}.advances": np.array(advances, np.int16),
            f"{style}.contours": np.array(starts, np.int32),
            f"{style}.ends": np.array(ends, np.int32),
            f"{style}.points": np.round(points).astype(np.int16),
            f"{style}.metrics": np.array(
                [font["head"].unitsPerEm, font["hhea"].ascent, -font["hhea"].descent, font["OS/2"].sCapHeight], np.int32
            ),
        }
    np.savez_compressed(HERE / "outlines.npz", allow_pickle=False, **arrays)


main(Path(sys.argv[1]))
