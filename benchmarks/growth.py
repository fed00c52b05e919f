"""How time grows with tokens, experts and nodes: a table, and a plot in docs/growth.png."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator
from itertools import cycle, pairwise
from math import log10
from pathlib import Path
from typing import Any

from benchmarks.figures import THREADS, Figure, in_turn
from benchmarks.layers import Variant, feeds, layer
from benchmarks.transformer import transformer
from runtime import Session
from runtime.atomic import replacing
from runtime.check import check
from runtime.drawing.axes import decades

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "growth.png"
TOKENS = (1, 4, 16, 64, 256, 1024, 4096)
EXPERTS = (8, 16, 32, 64, 128, 256)
OTHERS = 16
"""Sets of few tokens that are computed in turn."""
LAYERS = (1, 2, 5, 10, 20, 40, 100, 200)
SIZE, LEFT, TOP, BOTTOM, FINENESS = (360, 340), 64, 40, 52, 3
COLOURS = ("#1f77b4", "#d95f02")
Curve = list[tuple[float, float]]


def figures(quick: bool) -> Iterator[Figure]:
    """A figure for each point, compared with the one before: the growth of time by that of the size."""
    panels: dict[str, dict[str, Curve]] = {}
    panels["tokens"] = {name: _tokens(name, quick) for name in ("onnxruntime", "numpy")}
    panels["experts (128 tokens)"] = {name: _experts(name, quick) for name in ("onnxruntime", "numpy")}
    panels["nodes"] = {"check": _nodes(quick)}
    for panel, curves in panels.items():
        for name, curve in curves.items():
            for (before, earlier), (size, seconds) in pairwise(curve):
                yield Figure(
                    f"{panel}: {before:,.0f} to {size:,.0f}, {name}",
                    seconds * 1e3,
                    "ms",
                    peer=earlier * 1e3 * size / before,
                    compared="ratio",
                    target=1.15,
                    note="peer: the one before, grown in proportion",
                )
    if not quick:
        draw(PICTURE, panels)


def _tokens(backend: str, quick: bool) -> Curve:
    graph = layer()
    session = Session(graph, backend, threads=THREADS)  # type: ignore[arg-type]
    curve = []
    for tokens in TOKENS[:-1:2] if quick else TOKENS:
        # Others in every call: the experts of the same few tokens would stay in the processor's cache.
        given = cycle([feeds(tokens, seed=seed) for seed in range(OTHERS if tokens <= OTHERS else 1)])
        curve.append((float(tokens), _median(lambda given=given: session.forward(next(given)))))  # type: ignore[misc]
    return curve


def _experts(backend: str, quick: bool) -> Curve:
    curve = []
    for experts in EXPERTS[::3] if quick else EXPERTS:
        variant = Variant(experts=experts, hidden=1024, inter=1024)
        session = Session(layer(variant), backend, threads=THREADS)  # type: ignore[arg-type]
        given = feeds(128, variant)
        curve.append((float(experts), _median(lambda session=session, given=given: session.forward(given))))  # type: ignore[misc]
        del session
        gc.collect()
    return curve


def _nodes(quick: bool) -> Curve:
    curve = []
    for layers in LAYERS[::3] if quick else LAYERS:
        graph = transformer(layers)
        curve.append((float(len(graph.nodes)), _median(lambda graph=graph: check(graph.copy()))))  # type: ignore[misc]
    return curve


def _median(call: Any) -> float:
    return statistics.median(in_turn([call], least=3, long=0.5)[0])


def draw(path: Path, panels: dict[str, dict[str, Curve]]) -> None:
    """Time against size, both axes logarithmic, a panel for each."""
    from PIL import Image, ImageDraw, ImageFont

    font: Any = ImageFont.load_default(13 * FINENESS)
    width, height = FINENESS * SIZE[0], FINENESS * SIZE[1]
    image = Image.new("RGB", (width * len(panels), height), "white")
    pen = ImageDraw.Draw(image)
    for number, (panel, curves) in enumerate(panels.items()):
        left, top = number * width + FINENESS * LEFT, FINENESS * TOP
        right, bottom = (number + 1) * width - FINENESS * 16, height - FINENESS * BOTTOM
        points = [point for curve in curves.values() for point in curve]
        columns = decades(min(x for x, _ in points), max(x for x, _ in points))
        rows = decades(min(y for _, y in points), max(y for _, y in points))

        def place(x: float, y: float, box: Any = (left, top, right, bottom), axes: Any = (columns, rows)) -> Any:
            across = (log10(x) - log10(axes[0][0])) / (log10(axes[0][-1]) - log10(axes[0][0]) or 1)
            up = (log10(y) - log10(axes[1][0])) / (log10(axes[1][-1]) - log10(axes[1][0]) or 1)
            return box[0] + across * (box[2] - box[0]), box[3] - up * (box[3] - box[1])

        for x in columns:
            pen.line((place(x, rows[0]), place(x, rows[-1])), "#dddddd", FINENESS)
            end = x == columns[-1]  # within the picture
            at = (place(x, rows[0])[0] + (12 * FINENESS if end else 0), bottom + 8 * FINENESS)
            pen.text(at, f"{x:,.0f}", "#333333", font, anchor="rt" if end else "mt")
        for y in rows:
            pen.line((place(columns[0], y), place(columns[-1], y)), "#dddddd", FINENESS)
            pen.text((left - 6 * FINENESS, place(columns[0], y)[1]), f"{y * 1e3:g} ms", "#333333", font, anchor="rm")
        pen.text(((left + right) / 2, height - 14 * FINENESS), panel, "#333333", font, anchor="ms")
        for index, (name, curve) in enumerate(curves.items()):
            line = [place(x, y) for x, y in curve]
            pen.line(line, COLOURS[index], 2 * FINENESS, joint="curve")
            for x, y in line:
                radius = 3 * FINENESS
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), COLOURS[index])
            pen.text((left + index * 110 * FINENESS, 12 * FINENESS), name, COLOURS[index], font)
    with replacing(path) as file:
        image.resize((SIZE[0] * len(panels), SIZE[1]), Image.Resampling.LANCZOS).save(file, "PNG")
