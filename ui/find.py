"""Ctrl+F: finds nodes by their id, type or parameters, one after the other."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QObject, Qt
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QLineEdit, QWidget

from runtime.drawing.words import value_text
from ui.editor import Editor
from ui.window import Window


class FindBar(QWidget):
    """Enter shows the next node that is found, Shift+Enter the one before, Esc closes."""

    def __init__(self, editor: Editor) -> None:
        super().__init__()
        self._editor = editor
        self.field = QLineEdit()
        self.field.setPlaceholderText("Find a node by its name, type or parameters")
        self.field.setAccessibleName("Find in the diagram")
        self.count = QLabel()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(8, 4, 8, 4)
        layout.addWidget(self.field, 1)
        layout.addWidget(self.count)
        self.field.installEventFilter(self)
        self.field.textChanged.connect(self._tell)
        self.hide()

    def begin(self) -> None:
        """Shows the bar."""
        self.show()
        self.field.setFocus()
        self.field.selectAll()

    def found(self) -> list[str]:
        """The ids of the nodes that hold all words, in the document's order."""
        words = self.field.text().lower().split()
        return [id for id in self._editor.graph.nodes if words and all(word in self._text(id) for word in words)]

    def _text(self, id: str) -> str:
        state = self._editor.graph.nodes[id]
        told = " ".join(f"{name}={value_text(value)}" for name, value in state.parameters.items())
        return f"{id} {state.type} {told}".lower()

    def step(self, back: bool = False) -> None:
        """Shows the next node that is found after the selected one, or the one before."""
        found = self.found()
        if not found:
            return
        chosen = self._editor.canvas.selected
        order = list(self._editor.graph.nodes)
        here = order.index(chosen[-1]) if chosen else (len(order) if back else -1)
        places = [order.index(id) for id in found]
        later = [p for p in places if (p < here if back else p > here)]
        next_one = (max(later) if back else min(later)) if later else (max(places) if back else min(places))
        self._editor.canvas.reveal(order[next_one])
        self.count.setText(f"{places.index(next_one) + 1} of {len(found)}")

    def _tell(self, text: str) -> None:
        count = len(self.found())
        self.count.setText(f"{count} found" if text.strip() else "")

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """Enter and Esc in the field."""
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
                self.step(bool(event.modifiers() & Qt.KeyboardModifier.ShiftModifier))
                return True
            if event.key() == Qt.Key.Key_Escape:
                self.hide()
                self._editor.canvas.viewer.setFocus()
                return True
        return super().eventFilter(watched, event)


def install(window: Window) -> None:
    """Adds the bar and its command."""
    bar = FindBar(window.editor)
    window.add_bar(bar)
    window.command("Edit", "Find…", bar.begin, "Ctrl+F")
