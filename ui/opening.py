"""Files that take long are read in a thread; a bar above the canvas says so, and says what was wrong with one."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QWidget

from runtime.errors import Finding, StudioError
from runtime.files import PICTURES, load
from runtime.graph import Graph
from ui import theme
from ui.canvas.mirror import Prepared, prepare

LARGE, LARGE_PICTURE = 100_000, 8_000_000
"""Bytes from which on a file is read in a thread."""


def is_large(path: Path) -> bool:
    """Whether reading a file may take longer than a window should stand still."""
    try:
        size = path.stat().st_size
    except OSError:
        return False
    return size > (LARGE_PICTURE if path.suffix.lower() in PICTURES else LARGE)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file that was read: its graph, ready to be shown, or what was wrong with it."""

    path: Path
    content: tuple[Graph, Prepared] | StudioError
    notes: list[Finding] = field(default_factory=list)


class OpeningBar(QWidget):
    """Hidden while there is nothing to say."""

    loaded = Signal(Loaded)
    """What is still wanted has been read."""
    _was_read = Signal(Loaded)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._wanted: Path | None = None
        self.label = QLabel(wordWrap=True)
        self.label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.progress = QProgressBar()
        self.progress.setRange(0, 0)
        self.progress.setMaximumWidth(160)
        self.button = QPushButton("Cancel")
        layout = QHBoxLayout(self)
        layout.addWidget(self.label, 1)
        layout.addWidget(self.progress)
        layout.addWidget(self.button)
        self.button.clicked.connect(self.cancel)
        self._was_read.connect(self._arrived)
        self.hide()

    def start(self, path: Path) -> None:
        """Reads a file; `loaded` brings it. One that is being read already is forgotten."""
        self._wanted = path
        self._show(f"Opening {path} …", is_error=False)

        def work() -> None:
            notes: list[Finding] = []
            try:
                graph = load(path, notes)
                content: tuple[Graph, Prepared] | StudioError = (graph, prepare(graph))
            except StudioError as error:
                content = error
            except OSError as error:
                content = StudioError(f"{path}: {error.strerror or error}.")
            if self._wanted is path:
                self._was_read.emit(Loaded(path, content, notes))

        threading.Thread(target=work, name="opening", daemon=True).start()

    def show_error(self, title: str, error: Exception) -> None:
        """Says what could not be done, until it is closed."""
        self._show(f"{title}. {error}", is_error=True)

    def _show(self, text: str, *, is_error: bool) -> None:
        look = theme.current()
        self.label.setText(text if len(text) < 1500 else text[:1500] + " …")
        self.label.setStyleSheet(f"color: {theme.css(look.error if is_error else look.ink)}")
        self.progress.setVisible(not is_error)
        self.button.setText("Close" if is_error else "Cancel")
        self.show()

    def cancel(self) -> None:
        """Forgets what is being read, and hides."""
        self._wanted = None
        self.hide()

    def _arrived(self, loaded: Loaded) -> None:
        if loaded.path is not self._wanted:  # cancelled while this was on its way from the thread
            return
        self._wanted = None
        if not isinstance(loaded.content, Exception):
            self.hide()
        self.loaded.emit(loaded)
