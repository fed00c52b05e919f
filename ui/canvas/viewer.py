"""The view: NodeGraphQt's gestures, with its faults mended, and with the document's word on every wire."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from NodeGraphQt.base.menu import BaseMenu
from NodeGraphQt.qgraphics.node_abstract import AbstractNodeItem
from NodeGraphQt.widgets.scene import NodeScene
from NodeGraphQt.widgets.viewer import NodeViewer
from PySide6.QtCore import QMimeData, QPoint, QPointF, QRectF, Qt, Signal
from PySide6.QtGui import (
    QContextMenuEvent,
    QDragEnterEvent,
    QDragLeaveEvent,
    QDragMoveEvent,
    QDropEvent,
    QKeyEvent,
    QPainter,
    QResizeEvent,
    QTransform,
    QWheelEvent,
)
from PySide6.QtWidgets import QGraphicsItem, QGraphicsView, QToolTip, QWidget

from ui import theme
from ui.canvas.items import IN, OUT, NodeItem, PipeItem, PortItem

LEAST_ZOOM, MOST_ZOOM = 0.02, 4.0
GRID = 20.0
MARGIN = 40.0

WhyNot = Callable[[PortItem, PortItem], str | None]


class Scene(NodeScene):
    """A plain background with a grid of dots where they can be told apart."""

    def drawBackground(self, painter: QPainter, rect: QRectF) -> None:  # noqa: N802
        look = theme.current()
        painter.fillRect(rect, theme.colour(look.background))
        zoom = painter.worldTransform().m11()
        if zoom < 0.45:
            return
        painter.setPen(theme.colour(look.grid))
        step = GRID if zoom >= 0.8 else 2 * GRID
        left, top = math.floor(rect.left() / step) * step, math.floor(rect.top() / step) * step
        lines = [QPointF(left + i * step, 0) for i in range(int((rect.right() - left) / step) + 1)]
        for point in lines:
            painter.drawLine(QPointF(point.x(), rect.top()), QPointF(point.x(), rect.bottom()))
        for i in range(int((rect.bottom() - top) / step) + 1):
            painter.drawLine(QPointF(rect.left(), top + i * step), QPointF(rect.right(), top + i * step))


class Viewer(NodeViewer):
    """The widget that shows a document. What is done with it goes out as signals; it changes no document itself."""

    port_hovered = Signal(str, str, bool)
    """Node, port, whether it is an output; empty when the mouse leaves."""
    wire_hovered = Signal(str, str)
    """Node and port at which the wire ends; empty when the mouse leaves."""
    wire_dropped = Signal(str, str, bool, object)
    """A wire from this node and port (an output?) was let go over nothing, there in the scene."""
    wire_clicked = Signal(str, str, object)
    """A wire was clicked: where it ends, and where on the screen."""
    refused = Signal(str)
    """Why a wire was not made, in a sentence."""
    menu_wanted = Signal(object, object, object)
    """What lies there (a node's id, a port, a wire's end, or None), where in the scene, where on the screen."""
    data_hovered = Signal(object, object)
    """Data is dragged over the canvas: its QMimeData (None when it left), where in the scene."""
    data_dropped_at = Signal(object, object, bool)
    """Data was dropped: its QMimeData, where in the scene, whether Ctrl was held."""
    moved_view = Signal()
    """The visible part has changed."""

    def __init__(self, parent: QWidget | None = None) -> None:
        self._scene_range: QRectF
        super().__init__(parent)
        self.why_not: WhyNot = lambda start, end: None
        self.accepts: Callable[[QMimeData], bool] = lambda data: False
        self.setScene(Scene(self))
        for item in (self._cursor_text, self._LIVE_PIPE, self._SLICER_PIPE):
            self.scene().addItem(item)
        self.setCacheMode(QGraphicsView.CacheModeFlag.CacheNone)
        self.setViewportUpdateMode(QGraphicsView.ViewportUpdateMode.MinimalViewportUpdate)
        self.setOptimizationFlag(QGraphicsView.OptimizationFlag.DontSavePainterState)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setFrameShape(QGraphicsView.Shape.NoFrame)
        self.viewport().setMouseTracking(True)
        self.acyclic = False  # the document decides
        self.pipe_collision = False  # theirs looks for a wire where the node was one event ago
        self._pressed_wire: PipeItem | None = None
        # Its menus would be built from files of code and its shortcuts would answer before the window's.
        self._ctx_menu_bar.clear()
        self._ctx_graph_menu, self._ctx_node_menu = BaseMenu("", self), BaseMenu("", self)

    # -- what NodeGraphQt gets wrong ----------------------------------------------------------------------------------

    def focusInEvent(self, event: Any) -> None:  # noqa: N802
        QGraphicsView.focusInEvent(self, event)

    def focusOutEvent(self, event: Any) -> None:  # noqa: N802
        self.clear_key_state()
        QGraphicsView.focusOutEvent(self, event)

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """Shows more or less of the scene; the zoom stays."""
        zoom = self.zoom()
        centre = self._scene_range.center()
        size = self.viewport().size()
        self._scene_range = QRectF(0, 0, max(1, size.width()) / zoom, max(1, size.height()) / zoom)
        self._scene_range.moveCenter(centre)
        self._update_scene()
        self._last_size = self.size()
        QGraphicsView.resizeEvent(self, event)

    def _update_scene(self) -> None:
        """Shows `_scene_range`. (Theirs leaves a margin of two pixels, so that the zoom creeps with every call.)"""
        size, shown = self.viewport().size(), self._scene_range
        zoom = min(max(1, size.width()) / shown.width(), max(1, size.height()) / shown.height())
        self.setTransform(QTransform.fromScale(zoom, zoom))
        self.setSceneRect(shown)
        self.moved_view.emit()

    def _combined_rect(self, nodes: Sequence[QGraphicsItem]) -> QRectF:
        """The rectangle around nodes. (Theirs groups the items, which takes quadratic time.)"""
        whole = QRectF()
        for node in nodes:
            whole = whole.united(node.sceneBoundingRect())
        return whole

    def _set_viewer_zoom(self, value: float, sensitivity: float | None = None, pos: QPoint | None = None) -> None:
        if sensitivity is not None:
            value = 60.0 if value > 0 else -60.0
        self.zoom_by(1.0015**value, self.mapToScene(pos) if pos is not None else None)

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        """Zooms about the cursor; with Shift or a horizontal wheel, moves."""
        turn = event.angleDelta()
        sideways = turn.x() if turn.x() else turn.y() if event.modifiers() & Qt.KeyboardModifier.ShiftModifier else 0
        if sideways:
            self.pan(-sideways / self.zoom() / 2, 0.0)
        elif turn.y():
            self.zoom_by(1.0015 ** turn.y(), self.mapToScene(event.position().toPoint()))
        event.accept()

    def zoom(self) -> float:
        """Screen pixels for each unit of the scene."""
        return self.transform().m11() or 1.0

    def zoom_by(self, factor: float, about: QPointF | None = None) -> None:
        """Zooms, within bounds; the place `about` of the scene stays where it is on the screen."""
        zoom = self.zoom()
        factor = min(max(zoom * factor, LEAST_ZOOM), MOST_ZOOM) / zoom
        if factor != 1.0:
            self.scale(factor, factor, about)

    def zoom_to(self, zoom: float) -> None:
        """Shows the middle of what is visible at a zoom."""
        self.zoom_by(zoom / self.zoom())

    def pan(self, x: float, y: float) -> None:
        """Moves the visible part over the scene."""
        self._set_viewer_pan(x, y)

    def fit(self, rectangle: QRectF) -> None:
        """Shows a part of the scene as large as it fits, no larger than 1:1."""
        if rectangle.isEmpty():
            return
        rectangle = rectangle.adjusted(-MARGIN, -MARGIN, MARGIN, MARGIN)
        size = self.viewport().size()
        width, height = max(1, size.width()), max(1, size.height())
        zoom = min(1.0, width / rectangle.width(), height / rectangle.height())
        zoom = min(max(zoom, LEAST_ZOOM), MOST_ZOOM)
        self._scene_range = QRectF(0, 0, width / zoom, height / zoom)
        self._scene_range.moveCenter(rectangle.center())
        self._update_scene()

    def centre_on(self, place: QPointF) -> None:
        """Moves the visible part so that a place is in its middle."""
        self._scene_range.moveCenter(place)
        self._update_scene()

    def visible(self) -> QRectF:
        """The visible part of the scene."""
        return QRectF(self._scene_range)

    # -- wires --------------------------------------------------------------------------------------------------------

    def establish_connection(self, start_port: PortItem, end_port: PortItem) -> PipeItem:
        """Draws a wire between two ports."""
        pipe = PipeItem()
        pipe.set_connections(start_port, end_port)
        self.scene().addItem(pipe)
        pipe.draw_path(start_port)
        pipe.reset()
        return pipe

    def _validate_accept_connection(self, from_port: PortItem, to_port: PortItem) -> bool:
        """Whether the document takes this wire; if not, the reason stands at the cursor."""
        if from_port is to_port:
            return True
        reason = self.why_not(from_port, to_port)
        if reason is not None:
            self._say(reason)
        return reason is None

    def _validate_reject_connection(self, from_port: PortItem, to_port: PortItem) -> bool:
        return False

    def _say(self, text: str) -> None:
        self.refused.emit(text)
        QToolTip.showText(self.viewport().mapToGlobal(self._previous_pos), text, self)

    @property
    def is_wiring(self) -> bool:
        """Whether a wire is being drawn."""
        return bool(self._LIVE_PIPE.isVisible())

    def cancel_wire(self) -> None:
        """Ends the drawing of a wire; one that was taken off its port is put back by whoever reconciles."""
        if self.is_wiring:
            self._detached_port = None
            self.end_live_connection()

    def start_live_connection(self, selected_port: PortItem) -> None:
        super().start_live_connection(selected_port)
        colour = theme.current().wire(selected_port.terminal.type)
        self._LIVE_PIPE.color = (*colour, 255)

    def apply_live_connection(self, event: Any) -> None:
        """As theirs; and a wire that is let go over nothing asks for a node."""
        start, detached = self._start_port, self._detached_port
        over = [item for item in self.scene().items(event.scenePos()) if isinstance(item, PortItem)]
        far = math.hypot(*(self._previous_pos - self._origin_pos).toTuple()) > 8 if self._origin_pos else False
        if self.is_wiring and start is not None and not over and detached is None:
            if not far:  # a click on a port: the wire stays at the cursor until the next click
                return
            place, name, is_output, id = event.scenePos(), start.name, start.port_type == OUT, start.node.id
            start.hovered = False
            self.end_live_connection()
            self.wire_dropped.emit(id, name, is_output, place)
            return
        if (
            self.is_wiring
            and start is not None
            and over
            and over[0].port_type == start.port_type
            and over[0] is not start
        ):
            self._say("A wire goes from an output to an input.")
        super().apply_live_connection(event)
        if start is not None and not self.is_wiring:
            self.connection_changed.emit([], [])  # whoever hears it makes the drawing equal to the document

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        if event.key() == Qt.Key.Key_Escape and self.is_wiring:
            self.cancel_wire()
            self.connection_changed.emit([], [])
            return
        self._note_modifiers(event)
        QGraphicsView.keyPressEvent(self, event)

    def keyReleaseEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        self._note_modifiers(event)
        QGraphicsView.keyReleaseEvent(self, event)

    def mousePressEvent(self, event: Any) -> None:  # noqa: N802
        self._note_modifiers(event)
        self._pressed_wire = None
        if event.button() == Qt.MouseButton.LeftButton and not self.is_wiring:
            items = self.items(event.position().toPoint())
            if items and isinstance(items[0], PipeItem):
                self._pressed_wire = items[0]
        super().mousePressEvent(event)

    def mouseMoveEvent(self, event: Any) -> None:  # noqa: N802
        super().mouseMoveEvent(event)
        if not self.LMB_state or self.is_wiring or not self._node_positions:
            return
        nodes, wires = self.selected_items()
        for wire in wires:
            wire.setSelected(False)
        under = self._wire_under(nodes[0]) if len(nodes) == 1 else None
        self.COLLIDING_state = under is not None
        if under is not None:
            under.setSelected(True)

    def _wire_under(self, node: NodeItem) -> PipeItem | None:
        """The wire that a node without wires was dragged onto."""
        moved = QPointF(*node.xy_pos) - QPointF(*self._node_positions.get(node, node.xy_pos))
        if node.pipes() or moved.manhattanLength() < GRID / 2:
            return None
        return next((item for item in node.collidingItems() if isinstance(item, PipeItem) and item.isVisible()), None)

    def mouseReleaseEvent(self, event: Any) -> None:  # noqa: N802
        wire, origin = self._pressed_wire, self._origin_pos
        self._pressed_wire = None
        end = wire.input_port if wire is not None else None
        super().mouseReleaseEvent(event)
        self.COLLIDING_state = False
        if end is not None and origin is not None:
            moved = event.position().toPoint() - origin
            if abs(moved.x()) + abs(moved.y()) <= 3:
                self.wire_clicked.emit(end.node.id, end.name, event.globalPosition().toPoint())

    def _note_modifiers(self, event: Any) -> None:
        """Theirs know of Alt, Ctrl and Shift only what the view's own key events told."""
        held = event.modifiers()
        self.ALT_state = bool(held & Qt.KeyboardModifier.AltModifier)
        self.CTRL_state = bool(held & Qt.KeyboardModifier.ControlModifier)
        self.SHIFT_state = bool(held & Qt.KeyboardModifier.ShiftModifier)

    # -- menus and drops ----------------------------------------------------------------------------------------------

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:  # noqa: N802
        self.RMB_state = False
        self.menu_wanted.emit(self.what_is_at(event.pos()), self.mapToScene(event.pos()), event.globalPos())
        event.accept()

    def what_is_at(self, place: QPoint) -> PortItem | NodeItem | PipeItem | AbstractNodeItem | None:
        """The uppermost port, node or wire at a place of the widget."""
        found = [item for item in self.items(place) if isinstance(item, PortItem | PipeItem | AbstractNodeItem)]
        ports = [item for item in found if isinstance(item, PortItem)]
        return ports[0] if ports else found[0] if found else None

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        self._consider(event)

    def dragMoveEvent(self, event: QDragMoveEvent) -> None:  # noqa: N802
        self._consider(event)

    def _consider(self, event: QDragMoveEvent) -> None:
        if self.accepts(event.mimeData()):
            self.data_hovered.emit(event.mimeData(), self.mapToScene(event.position().toPoint()))
            event.acceptProposedAction()
        else:
            event.ignore()

    def dragLeaveEvent(self, event: QDragLeaveEvent) -> None:  # noqa: N802
        self.data_hovered.emit(None, QPointF())

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        self.data_hovered.emit(None, QPointF())
        opens = bool(event.modifiers() & Qt.KeyboardModifier.ControlModifier)
        self.data_dropped_at.emit(event.mimeData(), self.mapToScene(event.position().toPoint()), opens)
        event.acceptProposedAction()


__all__ = ["IN", "OUT", "Viewer"]
