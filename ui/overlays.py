"""What the last run shows on the nodes themselves: times, and a tint for the chosen overlay."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QObject
from PySide6.QtGui import QActionGroup

from runtime.overlays import Mark, Overlay, marks
from ui.running import Runner
from ui.window import Window

CHOICES: dict[Overlay, tuple[str, str]] = {
    "none": ("No overlay", "Alt+1"),
    "time": ("Overlay: time", "Alt+2"),
    "gradient": ("Overlay: gradient", "Alt+3"),
}


class Overlays(QObject):
    """Marks the nodes after each run, or when another overlay is chosen."""

    def __init__(self, runner: Runner, window: Window) -> None:
        super().__init__(window)
        self._runner, self._editor = runner, window.editor
        self.shown: Overlay = "none"
        group = QActionGroup(self)
        for overlay, (text, keys) in CHOICES.items():
            action = window.command("View", text, lambda overlay=overlay: self.choose(overlay), keys)  # type: ignore[misc]
            action.setCheckable(True)
            action.setChecked(overlay == self.shown)
            group.addAction(action)
        runner.finished.connect(lambda result: self.show_marks())
        self._editor.document_changed.connect(self.show_marks)

    def choose(self, overlay: Overlay) -> None:
        """Shows another overlay; that of gradients needs them at every wire from then on."""
        self.shown = overlay
        self._runner.probes_all_gradients = overlay == "gradient"
        result = self._runner.result
        if overlay == "gradient" and (result is None or not result.gradient_probes):
            went_back = result is not None and result.backward_seconds > 0
            why = "once more: the last run kept no gradients at wires" if went_back else "to see gradients"
            self._editor.told.emit(f"Run backward (F6) {why}.")
        elif overlay == "time" and (result is None or not result.times):
            self._editor.told.emit("Run the graph (F5), with its time measured, to see times.")
        self.show_marks()

    def show_marks(self, *_: Any) -> None:
        """Writes and tints."""
        result = self._runner.result
        found = marks(result, self.shown) if result is not None else {}
        for id in self._editor.graph.nodes:
            item, mark = self._editor.canvas.item(id), found.get(id, Mark())
            if item is not None and (item.badge, item.tint) != (mark.text, mark.tint):
                item.badge, item.tint = mark.text, mark.tint
                item.update()


def install(window: Window) -> None:
    """Adds the overlays and their commands."""
    window.keep(Overlays(window.runner, window))
