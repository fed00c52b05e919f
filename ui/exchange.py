"""Copy, cut, paste, duplicate, and graphs that are dragged onto the canvas."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PySide6.QtCore import QFileInfo, QMimeData, QPointF, QUrl
from PySide6.QtGui import QCursor, QImage
from PySide6.QtWidgets import QApplication, QFileDialog

from runtime.drawing.picture import render, save_picture
from runtime.drawing.scene import scene_of
from runtime.editing import duplicate, extract, paste
from runtime.errors import Finding, StudioError
from runtime.graph import Graph
from ui import theme
from ui.gallery import SnippetsPane
from ui.ghost import Ghost
from ui.transfer import may_hold_graph, offer, receive
from ui.window import LEFT, Window

MOST_PREVIEWED = 16 << 20
"""Files that are larger are not read before they are dropped."""


class Exchange:
    """Commands of the Edit menu, and what the canvas does with data that is dragged over it."""

    def __init__(self, window: Window) -> None:
        self._window, self._editor = window, window.editor
        self._ghost: Ghost | None = None
        viewer = self._editor.canvas.viewer
        viewer.accepts = may_hold_graph
        viewer.data_hovered.connect(self._hover)
        viewer.data_dropped_at.connect(self._drop)

    # -- the clipboard ------------------------------------------------------------------------------------------------

    def copy(self) -> bool:
        """Puts the selection on the clipboard: as a picture that carries it, and as text."""
        nodes = self._editor.canvas.selected
        if not nodes:
            self._editor.told.emit("Nothing is selected.")
            return False
        try:
            QApplication.clipboard().setMimeData(offer(extract(self._editor.graph, nodes), theme=theme.current().name))
        except StudioError as error:
            self._editor.told.emit(str(error))
            return False
        self._editor.told.emit(f"Copied {_count(nodes)}.")
        return True

    def copy_plain(self) -> None:
        """Puts a picture of the selection, or of everything, on the clipboard that carries no graph."""
        nodes = self._editor.canvas.selected or None
        pixels = render(self._editor.graph, nodes=nodes, theme=theme.current().name, footer=False)
        height, width, _ = pixels.shape
        image = QImage(pixels.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888)
        QApplication.clipboard().setImage(image.copy())
        self._editor.told.emit("Copied a picture without the graph.")

    def cut(self) -> None:
        """Copies the selection and removes it."""
        if self.copy():
            self._editor.remove_selected()

    def paste(self) -> None:
        """Inserts what is on the clipboard at the cursor, or beside the selection if the cursor is elsewhere."""
        data: QMimeData | None = QApplication.clipboard().mimeData()
        if data is None or not data.formats():
            self._editor.told.emit("The clipboard is empty.")
            return
        self._insert(data, self._paste_place(), "Paste")

    def duplicate(self) -> None:
        """Copies the selection beside itself, fed as it is."""
        nodes = self._editor.canvas.selected
        made: list[str] = []
        if nodes and self._editor.edit(
            f"Duplicate {_count(nodes)}", lambda: made.extend(duplicate(self._editor.graph, nodes))
        ):
            self._editor.canvas.select(made)

    def _paste_place(self) -> QPointF:
        viewer = self._editor.canvas.viewer
        cursor = viewer.viewport().mapFromGlobal(QCursor.pos())
        if viewer.viewport().rect().contains(cursor) and viewer.underMouse():
            return viewer.mapToScene(cursor)
        area = self._editor.canvas.area(self._editor.canvas.selected)
        return area.topLeft() + QPointF(30, 30) if not area.isEmpty() else viewer.visible().center()

    # -- drags --------------------------------------------------------------------------------------------------------

    def _hover(self, data: Any, place: Any) -> None:
        """Shows what would be inserted. What is dragged is read once, when it comes in."""
        if data is None or not may_hold_graph(data):
            self._remove_ghost()
            return
        if self._ghost is None:
            self._ghost = Ghost(scene_of(self._read(data) or Graph("?")))
            self._editor.canvas.viewer.scene().addItem(self._ghost)
        self._ghost.setPos(place)

    def _read(self, data: QMimeData) -> Graph | None:
        files = [QFileInfo(url.toLocalFile()).size() for url in data.urls() if url.isLocalFile()]
        if sum(files) > MOST_PREVIEWED:
            return None
        try:
            return receive(data).graphs[0][1]
        except StudioError as error:
            self._editor.told.emit(str(error))
            return None

    def _remove_ghost(self) -> None:
        if self._ghost is not None:
            self._editor.canvas.viewer.scene().removeItem(self._ghost)
            self._ghost = None

    def _drop(self, data: Any, place: Any, opens: bool) -> None:
        if not may_hold_graph(data):
            return
        if not opens:
            self._insert(data, place, "Drop")
            return
        try:
            received = receive(data)
        except StudioError as error:
            self._editor.told.emit(str(error))
            return
        if not self._window.is_safe_to_leave():
            return
        if received.paths:
            self._window.open(received.paths[0])
        else:
            self._editor.show(received.graphs[0][1], changed=True)
        self._tell(received.notes)

    def _insert(self, data: QMimeData, place: QPointF, verb: str) -> None:
        """Inserts all graphs in the data as one undo step, and selects what came."""
        try:
            received = receive(data)
        except StudioError as error:
            self._editor.told.emit(str(error))
            return
        names = ", ".join(name for name, _ in received.graphs)
        made: list[str] = []

        def change() -> None:
            x, y = place.x(), place.y()
            for _, graph in received.graphs:
                new = paste(self._editor.graph, graph, (x, y))
                made.extend(new)
                y = self._editor.canvas.area(new).bottom() + 40

        if self._editor.edit(f"{verb} {names}", change):
            self._editor.canvas.select(made)
            self._editor.canvas.viewer.setFocus()
            self._editor.told.emit(f"Inserted {_count(made)} from {names}.")
            self._tell(received.notes)

    def _tell(self, notes: Iterable[Finding]) -> None:
        for note in notes:
            self._editor.told.emit(str(note))

    def insert_file(self, path: Path) -> None:
        """Inserts a file in the middle of what is visible."""
        data = QMimeData()
        data.setUrls([QUrl.fromLocalFile(str(path))])
        self._insert(data, self._editor.canvas.viewer.visible().center(), "Insert")

    def save_selection(self) -> None:
        """Asks for a file and writes the selection, or everything, into it as a picture that carries it."""
        nodes = self._editor.canvas.selected or None
        name, _ = QFileDialog.getSaveFileName(
            self._window, "Save as snippet picture", "snippet.png", "Pictures (*.png)"
        )
        if name:
            self.save_picture(Path(name), nodes)

    def save_picture(self, path: Path, nodes: list[str] | None) -> None:
        """Writes nodes, or everything, into a picture."""
        try:
            notes = save_picture(self._editor.graph, path, nodes=nodes, theme=theme.current().name)
        except StudioError as error:
            self._window.tell_error(f"{path.name} cannot be saved", error)
            return
        self._editor.told.emit(f"Saved {path}.")
        self._tell(notes)


def _count(nodes: list[str]) -> str:
    return nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes"


def install(window: Window) -> None:
    """Adds the commands to the Edit menu."""
    exchange = Exchange(window)
    window.keep(exchange)
    for text, call, shortcut in (
        ("Cut", exchange.cut, "Ctrl+X"),
        ("Copy", exchange.copy, "Ctrl+C"),
        ("Copy as plain picture", exchange.copy_plain, "Ctrl+Shift+C"),
        ("Paste", exchange.paste, "Ctrl+V"),
        ("Duplicate", exchange.duplicate, "Ctrl+D"),
    ):
        window.command("Edit", text, call, shortcut)
    window.command("File", "Save selection as snippet picture…", exchange.save_selection)
    pane = SnippetsPane(window.editor)
    pane.chosen.connect(exchange.insert_file)
    window.closing.connect(pane.stop)
    window.add_pane(pane, LEFT)
