"""How fast the editor is: its start, a document of 2,000 nodes opened, moved about and edited, off the screen."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from time import perf_counter

from benchmarks.check_speed import transformer
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


def milliseconds(call: Callable[[], object], times: int = 1) -> tuple[float, float]:
    """Median and largest time of a call."""
    found = []
    for _ in range(times):
        start = perf_counter()
        call()
        found.append((perf_counter() - start) * 1e3)
    return statistics.median(found), max(found)


def main() -> None:
    """Prints a line for each figure with its target."""
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

    def pan() -> None:
        canvas.viewer.pan(15 / canvas.viewer.zoom(), 0)
        canvas.viewer.viewport().repaint()

    def line(label: str, times: tuple[float, float], target: str) -> None:
        print(f"  {label:<44}{times[0]:8.1f} ms  (at most {times[1]:.1f})  target {target}")

    print(f"editor, {len(graph.nodes):,} nodes and {len(graph.wires):,} wires, {SIZE[0]} x {SIZE[1]}, off the screen")
    line("open, laid out and checked, to its picture", milliseconds(open_graph), "< 2000")
    line("pan, all visible", milliseconds(pan, 30), "< 60")
    canvas.viewer.zoom_to(1.0)
    canvas.viewer.centre_on(canvas.item(list(graph.nodes)[1000]).sceneBoundingRect().center())  # type: ignore[union-attr]
    line("pan, 1:1", milliseconds(pan, 30), "< 20")
    middle = list(graph.nodes)[1000]
    line("move a node", milliseconds(lambda: canvas.move({middle: (perf_counter() % 100, 0.0)}), 20), "")
    line("refresh after an edit", milliseconds(canvas.refresh, 5), "")

    def set_parameter() -> None:
        editor.set_parameter(middle, "note", perf_counter())
        running.processEvents()

    line("an edit, until all panes show it", milliseconds(set_parameter, 10), "")
    editor.show(Graph())
    window.close()
    folder = tempfile.mkdtemp(prefix="qmoe-bytecode-")
    environment = os.environ | {"PYTHONPYCACHEPREFIX": folder}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def start() -> None:
        subprocess.run([sys.executable, "-c", START], check=True, env=environment, capture_output=True)

    start()  # Python compiles once
    line("start of an empty editor, a process of its own", milliseconds(start, 3), "< 2000")


if __name__ == "__main__":
    main()
