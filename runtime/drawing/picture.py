"""A graph as the picture of a snippet."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from runtime.drawing.paint import paint, size
from runtime.drawing.scene import Scene, scene_of
from runtime.drawing.style import THEMES
from runtime.errors import Finding, GraphError
from runtime.graph import Graph
from runtime.snippets.pictures import content_of, encode_content, write_picture
from runtime.snippets.raster import MAXIMUM_PIXELS, MAXIMUM_SIDE

LEAST_SCALE, MOST_SCALE = 1.0, 4.0
GROWTH = 1.25


def render(
    graph: Graph,
    *,
    nodes: Collection[str] | None = None,
    theme: str = "light",
    scale: float = 2.0,
    samples: int = 0,
    footer: bool = True,
) -> np.ndarray:
    """The pixels of a picture of a graph, or of some of its nodes, uint8 [height, width, 3].

    `scale` is pixels for each unit, 1 to 4; a picture that would be larger than can be read again is drawn smaller.
    `samples` is how many samples, three a pixel, there must be at least: margins grow until there are. GraphError for a
    node that is not there, a theme or a scale that there is not.
    """
    if theme not in THEMES:
        known = " and ".join(THEMES)
        raise GraphError(Finding(f"There is no theme {theme!r}.", remedy=f"There are {known}.", code="option"))
    if not LEAST_SCALE <= scale <= MOST_SCALE:
        raise GraphError(Finding(f"The scale is from 1 to 4; {scale:g} came.", code="option"))
    unknown = [id for id in nodes or () if id not in graph.nodes]
    if unknown:
        raise GraphError(Finding("There is no node with this id in the graph.", unknown[0], code="option"))
    scene = scene_of(graph, nodes)
    text = caption(scene) if footer else ""
    width, height = size(scene, text)
    fitting = min(MAXIMUM_SIDE / width, MAXIMUM_SIDE / height, (MAXIMUM_PIXELS / (width * height)) ** 0.5)
    pixels = paint(scene, THEMES[theme], min(scale, 0.99 * fitting), text).pixels
    return pixels if pixels.size >= samples else _enlarged(pixels, samples)


def caption(scene: Scene) -> str:
    """The line below a picture."""
    count = len(scene.boxes)
    parts = [scene.name, f"{count} node{'' if count == 1 else 's'}", "drop this picture on the canvas of QMoE Studio"]
    return " · ".join(part for part in parts if part)


def encoded_picture(graph: Graph, *, theme: str = "light", scale: float = 2.0) -> bytes:
    """A PNG file with a picture of a graph that carries it. GraphError if the graph is too large for one."""
    content = content_of(graph)
    return encode_content(content, render(graph, theme=theme, scale=scale, samples=content.samples))


def save_picture(
    graph: Graph,
    path: str | Path,
    *,
    nodes: Collection[str] | None = None,
    theme: str = "light",
    scale: float = 2.0,
) -> tuple[Finding, ...]:
    """Writes a picture of a graph, or of some of its nodes, that carries what it shows, and returns what is worth
    knowing of it. FileError or GraphError if it cannot be written."""
    if nodes is not None:
        from runtime.editing import extract

        graph = extract(graph, nodes)
    return write_picture(graph, path, lambda samples: render(graph, theme=theme, scale=scale, samples=samples))


def _enlarged(pixels: np.ndarray, samples: int) -> np.ndarray:
    """The picture with as much background below and at its right as makes up so many samples."""
    height, width, _ = pixels.shape
    while height * width * 3 < samples:
        height, width = int(height * GROWTH) + 1, int(width * GROWTH) + 1
    larger = np.empty((height, width, 3), np.uint8)
    larger[:] = pixels[0, 0]
    larger[: pixels.shape[0], : pixels.shape[1]] = pixels
    return larger
