"""Writes the document for others: an ONNX model for whom it is meant, or a picture of a theme and a size."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from runtime.drawing.picture import save_picture
from runtime.drawing.style import THEMES
from runtime.errors import Finding, StudioError
from runtime.files import save
from ui import theme
from ui.window import Window

TARGETS = {
    "onnxruntime": "ONNX Runtime: what its CPU kernels compute right",
    "schema": "the operators' schemas, for other runtimes",
    "portable": "any runtime: standard operators only",
}
SCALES = ("1", "2", "3", "4")


class ExportBar(QWidget):
    """A line above the canvas: where to, for whom; Enter writes, Esc closes."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self._window, self._editor = window, window.editor
        self._suffix = ".onnx"
        self.what = QLabel()
        self.file = QLineEdit()
        self.file.setAccessibleName("File")
        self.file.setMinimumWidth(160)
        browse = QPushButton("…")
        browse.setAccessibleName("Choose a file")
        self.target = QComboBox()
        self.target.setAccessibleName("For")
        self.target.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.target.setMinimumContentsLength(22)
        for name, words in TARGETS.items():
            self.target.addItem(words, name)
        self.look, self.scale = QComboBox(), QComboBox()
        self.look.setAccessibleName("Theme")
        self.look.addItems(list(THEMES))
        self.scale.setAccessibleName("Scale")
        self.scale.addItems([f"{scale}x" for scale in SCALES])
        self.selection = QCheckBox("only the selection")
        self.go = QPushButton("Export")
        close = QPushButton("Close")
        self.told = QLabel(wordWrap=True)
        self.told.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        line = QHBoxLayout()
        parts = (self.what, self.file, browse, self.target, self.look, self.scale, self.selection)
        for widget in (*parts, self.go, close):
            line.addWidget(widget)
        line.setStretch(1, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(10, 6, 10, 6)
        layout.addLayout(line)
        layout.addWidget(self.told)
        browse.clicked.connect(self.ask)
        self.go.clicked.connect(self.export)
        self.file.returnPressed.connect(self.export)
        close.clicked.connect(self.leave)
        self._editor.document_changed.connect(self.hide)
        self.hide()

    def begin(self, suffix: str) -> None:
        """Asks where to; `suffix` is ".onnx" or ".png"."""
        self._suffix = suffix
        model = suffix == ".onnx"
        self.what.setText("Export as ONNX to" if model else "Export as picture to")
        self.target.setVisible(model)
        for widget in (self.look, self.scale, self.selection):
            widget.setVisible(not model)
        chosen = bool(self._editor.canvas.selected)
        self.selection.setEnabled(chosen)
        self.selection.setChecked(chosen)
        self.look.setCurrentText(theme.current().name)
        self.scale.setCurrentIndex(1)
        path = self._editor.path
        place = path.with_suffix(suffix) if path is not None else Path.cwd() / f"{self._editor.name}{suffix}"
        if place == path:
            place = place.with_name(f"{place.stem}.export{suffix}")
        self.file.setText(str(place))
        self._say([])
        self.show()
        self.file.setFocus()
        self.file.selectAll()

    def ask(self) -> None:
        """Asks for a file."""
        name, _ = QFileDialog.getSaveFileName(self, "Export", self.file.text(), f"*{self._suffix}")
        if name:
            self.file.setText(name)

    def export(self) -> None:
        """Writes the file, and tells what is worth knowing of it."""
        path = Path(self.file.text()).expanduser()
        if path.suffix.lower() != self._suffix:
            self._say([f"Expected a name that ends with {self._suffix}."], wrong=True)
            return
        graph = self._editor.graph
        try:
            if self._suffix == ".onnx":
                notes: list[Finding] = list(save(graph, path, target=str(self.target.currentData())))
            else:
                nodes = self._editor.canvas.selected if self.selection.isChecked() else None
                scale = float(SCALES[self.scale.currentIndex()])
                notes = list(save_picture(graph, path, nodes=nodes, theme=self.look.currentText(), scale=scale))
        except StudioError as error:
            self._say(str(error).splitlines(), wrong=True)
            return
        self._editor.told.emit(f"Exported {path} ({path.stat().st_size:,} bytes).")
        if notes:
            self._say([f"Exported {path.name}.", *map(str, notes)])
        else:
            self.leave()

    def leave(self) -> None:
        """Closes the bar."""
        self.hide()
        self._editor.canvas.viewer.setFocus()

    def _say(self, lines: list[str], *, wrong: bool = False) -> None:
        look = theme.current()
        self.told.setStyleSheet(f"color: {theme.css(look.error if wrong else look.ink)};")
        self.told.setText("\n".join(lines[:12]))
        self.told.setVisible(bool(lines))

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        if event.key() == Qt.Key.Key_Escape:
            self.leave()
        else:
            super().keyPressEvent(event)


def install(window: Window) -> None:
    """Adds the bar and its commands."""
    bar = ExportBar(window)
    window.add_bar(bar)
    window.command("File", "Export as ONNX…", lambda: bar.begin(".onnx"), "Ctrl+E")
    window.command("File", "Export as picture…", lambda: bar.begin(".png"), "Ctrl+Shift+E")
