"""How fast the editor is: its start, a document of 2,000 nodes opened, moved about and edited, off the screen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import cycle
from time import perf_counter

from benchmarks.figures import Figure, beside
from benchmarks.transformer import transformer
from runtime import Graph

SIZE = (1600, 1000)
START = """
from ui.app import application
from ui.window import Window

running = application("light")
window = Window()
window.show()
running.processEvents()
"""


def figures(quick: bool) -> Iterator[Figure]:
    """All of them."""
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    import ui.library  # noqa: F401 - before Qt

    # isort: split
    from ui.app import application
    from ui.window import Window

    running = application("light")
    window = Window()
    window.resize(*SIZE)
    window.show()
    running.processEvents()
    editor, canvas = window.editor, window.editor.canvas
    end = perf_counter() + 3
    while perf_counter() < end:  # the first page's thumbnails are drawn meanwhile
        running.processEvents()
    graph = transformer()

    def open_graph() -> None:
        editor.show(graph)
        running.processEvents()
        canvas.viewer.viewport().repaint()

    steps = cycle([15] * 10 + [-15] * 10)

    def pan() -> None:
        canvas.viewer.pan(next(steps) / canvas.viewer.zoom(), 0)
        canvas.viewer.viewport().repaint()

    size = f"{len(graph.nodes):,} nodes"
    yield beside(
        f"open {size}, laid out and checked, to its picture", open_graph, compared="ours", target=2000, least=3
    )
    canvas.fit()
    yield beside("pan, all visible", pan, compared="ours", target=60, least=30)
    canvas.viewer.zoom_to(1.0)
    canvas.viewer.centre_on(canvas.item(list(graph.nodes)[1000]).sceneBoundingRect().center())  # type: ignore[union-attr]
    yield beside("pan, 1:1", pan, compared="ours", target=20, least=30)
    middle = list(graph.nodes)[1000]

    def set_parameter() -> None:
        editor.set_parameter(middle, "note", perf_counter())
        running.processEvents()

    yield beside("an edit, until all panes show it", set_parameter, least=10)
    editor.show(Graph())
    window.close()
    folder = tempfile.mkdtemp(prefix="qmoe-bytecode-")
    environment = os.environ | {"PYTHONPYCACHEPREFIX": folder}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def start() -> None:
        subprocess.run([sys.executable, "-c", START], check=True, env=environment, capture_output=True)

    try:
        yield beside("start of an empty editor, a process of its own", start, compared="ours", target=2000, least=3)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
