"""Comment frames: a title over a tinted area; they move with the nodes in them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from NodeGraphQt.constants import Z_VAL_BACKDROP
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QPainter, QPainterPath, QPen
from PySide6.QtWidgets import (
    QGraphicsObject,
    QInputDialog,
    QStyleOptionGraphicsItem,
    QWidget,
)

from runtime.editing import Frame, frames_of, move_frame, nodes_in, remove_frame, set_frame
from runtime.graph import Graph, Set
from ui import theme
from ui.editor import Editor

TITLE, CORNER = 26.0, 16.0
SMALLEST = 60.0
COLOURS = {"blue": "#2468c8", "green": "#2f9e44", "amber": "#c77700", "red": "#d3222a", "violet": "#7a3fb0"}


class FrameItem(QGraphicsObject):
    """One frame. Its title bar moves it, its lower right corner resizes it, a double click edits the title."""

    def __init__(self, editor: Editor, frame: Frame) -> None:
        super().__init__()
        self._editor, self.frame = editor, frame
        self._grip: str = ""
        self._from = QPointF()
        self._rectangle = QRectF()
        self.setZValue(Z_VAL_BACKDROP)
        self.setAcceptHoverEvents(True)
        self.show_frame(frame)

    def show_frame(self, frame: Frame) -> None:
        """Shows a frame as the document has it."""
        self.prepareGeometryChange()
        self.frame = frame
        x, y, width, height = frame.rectangle
        self.setPos(x, y)
        self._rectangle = QRectF(0, 0, width, height)
        self.update()

    def boundingRect(self) -> QRectF:  # noqa: N802
        return self._rectangle.adjusted(-2, -2, 2, 2)

    def shape(self) -> QPainterPath:
        """Only the title and the corner take the mouse: what lies in the frame stays in reach."""
        path = QPainterPath()
        path.addRect(QRectF(0, 0, self._rectangle.width(), TITLE))
        path.addRect(self._corner())
        return path

    def _corner(self) -> QRectF:
        return QRectF(self._rectangle.right() - CORNER, self._rectangle.bottom() - CORNER, CORNER, CORNER)

    def paint(self, painter: QPainter, option: QStyleOptionGraphicsItem, widget: QWidget | None = None) -> None:
        look = theme.current()
        colour = QColor(COLOURS.get(self.frame.color, theme.css(look.faint)))
        fill, bar = QColor(colour), QColor(colour)
        fill.setAlpha(22)
        bar.setAlpha(60)
        painter.setPen(QPen(colour, 1.0))
        painter.setBrush(fill)
        painter.drawRoundedRect(self._rectangle, 6, 6)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(bar)
        painter.drawRoundedRect(QRectF(0, 0, self._rectangle.width(), TITLE), 6, 6)
        painter.setPen(theme.colour(look.ink))
        painter.setFont(theme.font(13, bold=True))
        painter.drawText(QPointF(10, 18), self.frame.title)
        painter.setPen(QPen(colour, 1.4))
        corner = self._corner()
        for inset in (4.0, 8.0):
            start = QPointF(corner.right() - inset, corner.bottom() - 2)
            painter.drawLine(start, QPointF(corner.right() - 2, corner.bottom() - inset))

    def mousePressEvent(self, event: Any) -> None:  # noqa: N802
        if event.button() != Qt.MouseButton.LeftButton:
            event.ignore()
            return
        self._grip = "corner" if self._corner().contains(event.pos()) else "title"
        self._from = event.scenePos()
        event.accept()

    def mouseMoveEvent(self, event: Any) -> None:  # noqa: N802
        by = event.scenePos() - self._from
        x, y, width, height = self.frame.rectangle
        if self._grip == "corner":
            self.prepareGeometryChange()
            self._rectangle = QRectF(0, 0, max(SMALLEST, width + by.x()), max(SMALLEST, height + by.y()))
            self.update()
        elif self._grip == "title":
            self.setPos(x + by.x(), y + by.y())

    def mouseReleaseEvent(self, event: Any) -> None:  # noqa: N802
        by, grip, frame = event.scenePos() - self._from, self._grip, self.frame
        self._grip = ""
        x, y, width, height = frame.rectangle
        graph = self._editor.graph
        if by.manhattanLength() < 3:
            self.show_frame(frame)
        elif grip == "corner":
            size = (max(SMALLEST, width + by.x()), max(SMALLEST, height + by.y()))
            self._editor.edit("Resize a frame", lambda: set_frame(graph, replace(frame, rectangle=(x, y, *size))))
        elif grip == "title":
            self._editor.edit(f"Move {frame.title}", lambda: move_frame(graph, frame.id, by.x(), by.y()))

    def mouseDoubleClickEvent(self, event: Any) -> None:  # noqa: N802
        self.ask_title()

    def ask_title(self) -> None:
        """Asks for another title."""
        text, accepted = QInputDialog.getText(
            self._editor.canvas.viewer.window(), "Comment", "Title", text=self.frame.title
        )
        if accepted:
            self.rename(text)

    def rename(self, title: str) -> None:
        """Gives the frame another title."""
        frame = replace(self.frame, title=title.strip() or "Comment")
        self._editor.edit("Rename a frame", lambda: set_frame(self._editor.graph, frame))

    def colour(self, name: str) -> None:
        """Gives the frame a colour of `COLOURS`."""
        frame = replace(self.frame, color=name)
        self._editor.edit("Colour a frame", lambda: set_frame(self._editor.graph, frame))

    def remove(self) -> None:
        """Takes the frame away; the nodes in it stay."""
        self._editor.edit("Remove a frame", lambda: remove_frame(self._editor.graph, self.frame.id))


class Frames:
    """Keeps the frames that are drawn equal to those of the document."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self.items: dict[str, FrameItem] = {}
        editor.edited.connect(self._hear)
        editor.document_changed.connect(self.refresh)
        self.refresh()

    def _hear(self, edit: object) -> None:
        if isinstance(edit, Set) and not edit.node and edit.section == "layout" and edit.key == "frames":
            self.refresh()

    def refresh(self) -> None:
        """Draws the document's frames."""
        graph: Graph = self._editor.graph
        wanted = {frame.id: frame for frame in frames_of(graph)}
        scene = self._editor.canvas.viewer.scene()
        for id in [id for id in self.items if id not in wanted]:
            scene.removeItem(self.items.pop(id))
        for id, frame in wanted.items():
            if id in self.items:
                self.items[id].show_frame(frame)
            else:
                self.items[id] = FrameItem(self._editor, frame)
                scene.addItem(self.items[id])

    def at(self, place: QPointF) -> FrameItem | None:
        """The frame whose title or corner is at a place of the scene."""
        return next((item for item in self.items.values() if item.contains(item.mapFromScene(place))), None)

    def around(self, nodes: Collection[str]) -> FrameItem | None:
        """The smallest frame that holds all these nodes."""
        graph = self._editor.graph
        found = [frame for frame in frames_of(graph) if nodes and set(nodes) <= set(nodes_in(graph, frame))]
        smallest = min(found, key=lambda frame: frame.rectangle[2] * frame.rectangle[3], default=None)
        return self.items.get(smallest.id) if smallest is not None else None
