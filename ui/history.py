"""The steps that can be undone and redone; a click travels to one."""

from __future__ import annotations

from PySide6.QtCore import QTimer
from PySide6.QtGui import QBrush
from PySide6.QtWidgets import QListWidget, QListWidgetItem, QVBoxLayout, QWidget

from ui import theme
from ui.editor import Editor


class HistoryPane(QWidget):
    """One history for everything, oldest first; the current state is marked."""

    title = "History"

    def __init__(self, editor: Editor, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._editor = editor
        self.list = QListWidget()
        self.list.setAccessibleName("History")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.list)
        self.list.itemClicked.connect(self._travel)
        self._later = QTimer(self, singleShot=True, interval=0)
        self._later.timeout.connect(self.show_steps)
        editor.edited.connect(lambda edit: self._later.start())
        editor.document_changed.connect(self.show_steps)
        self.show_steps()

    def show_steps(self) -> None:
        """Lists the steps."""
        self.list.clear()
        done = ["Opened", *self._editor.graph.undo_labels]
        coming = list(reversed(self._editor.graph.redo_labels))
        for label in done:
            self.list.addItem(label)
        for label in coming:
            row = QListWidgetItem(label)
            row.setForeground(QBrush(theme.colour(theme.current().faint)))
            self.list.addItem(row)
        self.list.setCurrentRow(len(done) - 1)

    def _travel(self, row: QListWidgetItem) -> None:
        self._editor.travel(self.list.row(row) - len(self._editor.graph.undo_labels))
