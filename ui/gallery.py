"""Snippets as thumbnails: those that come along, and the user's own; Enter or a drag puts one onto the canvas."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from PySide6.QtCore import QMimeData, QObject, QSettings, QSize, Qt, QUrl, Signal
from PySide6.QtGui import QDrag, QIcon, QImage, QPainter, QPixmap, QShowEvent
from PySide6.QtWidgets import QFileDialog, QListWidget, QListWidgetItem, QPushButton, QVBoxLayout, QWidget

from runtime.drawing.picture import render
from runtime.errors import StudioError
from runtime.files import PICTURES, YAML, load
from runtime.shipped import snippets_folder
from ui import theme
from ui.editor import Editor

THUMBNAIL = QSize(176, 104)
MOST_DRAWN = 400
"""A graph with more nodes has its name for a thumbnail: drawing it would take long and show nothing."""
_PATH = Qt.ItemDataRole.UserRole


class Thumbnails(QObject):
    """Draws files in a thread of its own; `drawn` brings path and picture."""

    drawn = Signal(str, QImage)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def draw(self, paths: list[Path]) -> None:
        """Draws these, and no more what was asked for before."""
        self.stop()
        self._stop = stop = threading.Event()
        look = theme.current().name

        def work() -> None:
            for path in paths:
                if stop.is_set():
                    return
                image = thumbnail(path, look)
                if image is not None and not stop.is_set():
                    self.drawn.emit(str(path), image)

        self._thread = threading.Thread(target=work, name="thumbnails", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the drawing."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def thumbnail(path: Path, look: str) -> QImage | None:
    """A file's graph, small; None if it cannot be read or is too large to be made out."""
    try:
        graph = load(path)
        if len(graph.nodes) > MOST_DRAWN:
            return None
        pixels = np.ascontiguousarray(render(graph, theme=look, scale=1.0, footer=False))
    except (StudioError, OSError):
        return None
    height, width, _ = pixels.shape
    image = QImage(pixels.data, width, height, 3 * width, QImage.Format.Format_RGB888)
    mode, way = Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
    return image.scaled(2 * THUMBNAIL, mode, way).copy()


def as_icon(image: QImage) -> QIcon:
    """A thumbnail in the middle of an icon's area."""
    canvas = QPixmap(2 * THUMBNAIL)
    canvas.fill(theme.colour(theme.current().background))
    painter = QPainter(canvas)
    painter.drawImage((canvas.width() - image.width()) // 2, (canvas.height() - image.height()) // 2, image)
    painter.end()
    canvas.setDevicePixelRatio(2.0)
    return QIcon(canvas)


class SnippetList(QListWidget):
    """Files as thumbnails with their names below; a drag carries the file."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setViewMode(QListWidget.ViewMode.IconMode)
        self.setIconSize(THUMBNAIL)
        self.setGridSize(QSize(THUMBNAIL.width() + 16, THUMBNAIL.height() + 34))
        self.setResizeMode(QListWidget.ResizeMode.Adjust)
        self.setMovement(QListWidget.Movement.Static)
        self.setDragEnabled(True)
        self.setWordWrap(True)

    def show_files(self, paths: list[Path]) -> None:
        """Lists files, for now without pictures."""
        self.clear()
        for path in paths:
            row = QListWidgetItem(path.stem)
            row.setData(_PATH, str(path))
            row.setToolTip(str(path))
            blank = QPixmap(THUMBNAIL)
            blank.fill(theme.colour(theme.current().terminal))
            row.setIcon(QIcon(blank))
            self.addItem(row)

    def show_picture(self, path: str, image: QImage) -> None:
        """Gives a file its thumbnail."""
        for number in range(self.count()):
            if self.item(number).data(_PATH) == path:
                self.item(number).setIcon(as_icon(image))

    def path_of(self, row: QListWidgetItem) -> Path:
        """The file of a row."""
        return Path(str(row.data(_PATH)))

    def startDrag(self, actions: Qt.DropAction) -> None:  # noqa: N802
        row = self.currentItem()
        if row is not None:
            data = QMimeData()
            data.setUrls([QUrl.fromLocalFile(str(self.path_of(row)))])
            drag = QDrag(self)
            drag.setMimeData(data)
            drag.setPixmap(row.icon().pixmap(THUMBNAIL / 2))
            drag.exec(Qt.DropAction.CopyAction)


class SnippetsPane(QWidget):
    """The snippets that come along and those in the user's folder. Enter inserts one in the middle of the canvas."""

    title = "Snippets"
    chosen = Signal(Path)
    """A file is to be inserted."""

    def __init__(self, editor: Editor, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._editor = editor
        self.list = SnippetList()
        self.list.setAccessibleName("Snippets")
        folder = QPushButton("Your folder…")
        folder.clicked.connect(self.ask_folder)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.list)
        layout.addWidget(folder)
        self._thumbnails = Thumbnails(self)
        self._thumbnails.drawn.connect(self.list.show_picture)
        self.list.itemActivated.connect(lambda row: self.chosen.emit(self.list.path_of(row)))
        self._is_listed = False

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802
        """Lists the snippets when they are looked at for the first time: thumbnails take a while."""
        super().showEvent(event)
        if not self._is_listed:
            self._is_listed = True
            self.refresh()

    def refresh(self) -> None:
        """Lists what is there now."""
        paths = snippet_files(snippets_folder())
        own = QSettings().value("snippets")
        if own:
            paths += snippet_files(Path(str(own)))
        self.list.show_files(paths)
        self._thumbnails.draw(paths)

    def ask_folder(self) -> None:
        """Asks for the folder of the user's own snippets."""
        folder = QFileDialog.getExistingDirectory(self, "Folder of your snippets")
        if folder:
            QSettings().setValue("snippets", folder)
            self.refresh()

    def stop(self) -> None:
        """Ends the drawing of thumbnails."""
        self._thumbnails.stop()


def snippet_files(folder: Path) -> list[Path]:
    """The snippets of a folder: each once, as YAML if it is there in that form."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in YAML + PICTURES[:1])
    except OSError:
        return []
    yaml = {path.stem for path in files if path.suffix.lower() in YAML}
    return [path for path in files if path.suffix.lower() in YAML or path.stem not in yaml]
