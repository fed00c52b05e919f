"""A document's file that something else changes meanwhile: a bar says so, and saving over it asks first."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QEvent, QObject
from PySide6.QtWidgets import QHBoxLayout, QLabel, QMessageBox, QPushButton, QWidget

from ui.window import Window


class DiskBar(QWidget):
    """Hidden while the file is as the editor read or wrote it. Looks whenever the window comes to the front."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self._window, self._editor = window, window.editor
        self.label = QLabel(wordWrap=True)
        self.again = QPushButton("Open again")
        self.keep = QPushButton("Keep what is here")
        layout = QHBoxLayout(self)
        layout.addWidget(self.label, 1)
        for button, call in ((self.again, self._open_again), (self.keep, self._keep)):
            button.clicked.connect(call)
            layout.addWidget(button)
        self._editor.document_changed.connect(self.look)
        self._editor.title_changed.connect(self.look)
        window.may_overwrite = self._may_overwrite
        window.installEventFilter(self)
        self.hide()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """The window comes to the front."""
        if event.type() == QEvent.Type.WindowActivate:
            self.look()
        return super().eventFilter(watched, event)

    def look(self) -> None:
        """Compares the file with what was read or written."""
        path = self._editor.path
        is_other = path is not None and self._editor.is_file_changed()
        if path is not None and is_other:
            is_there = path.exists()
            what = "was changed by another program" if is_there else "is no longer there; saving writes it again"
            mine = " There are unsaved changes here." if is_there and self._editor.is_changed else ""
            self.label.setText(f"{path.name} {what}.{mine}")
            self.again.setVisible(is_there)
        self.setVisible(is_other)

    def _open_again(self) -> None:
        if self._editor.path is not None:
            self._window.open_safely(self._editor.path)

    def _keep(self) -> None:
        self._editor.keep_over_file()
        self.hide()

    def _may_overwrite(self, path: Path) -> bool:
        """Asks, if the document's own file is no longer what was read or written."""
        if path != self._editor.path or not path.exists() or not self._editor.is_file_changed():
            return True
        buttons = QMessageBox.StandardButton
        text = f"{path.name} was changed by another program since it was opened here. Replace it by what is here?"
        answer = QMessageBox.question(self._window, "QMoE Studio", text, buttons.Yes | buttons.Cancel, buttons.Cancel)
        return answer == buttons.Yes


def install(window: Window) -> None:
    """Adds the bar, and the question before saving."""
    window.add_bar(DiskBar(window))
