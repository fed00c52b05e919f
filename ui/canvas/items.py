"""What is drawn: a node as one item that paints everything on it, ports without paint, wires as plain paths.

NodeGraphQt's own items have a child item for every text and icon; with 2,000 nodes they take seconds to make, and more
to pan. These keep its interface, which its viewer's gestures need.
"""

from __future__ import annotations

from typing import Any

from NodeGraphQt.constants import Z_VAL_NODE, Z_VAL_PIPE, Z_VAL_PORT, PortTypeEnum
from NodeGraphQt.qgraphics.node_abstract import AbstractNodeItem
from NodeGraphQt.qgraphics.pipe import PipeItem as LibraryPipeItem
from NodeGraphQt.qgraphics.port import PortItem as LibraryPortItem
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QPainter, QPainterPath, QPainterPathStroker, QPen
from PySide6.QtWidgets import QGraphicsItem, QGraphicsPathItem, QStyleOptionGraphicsItem, QWidget

from runtime.drawing import font
from runtime.drawing.paint import DOT, RADIUS
from runtime.drawing.scene import (
    CHIP_OFFSET,
    PADDING,
    PARAMETER_ROW,
    PILL_HEIGHT,
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_HEIGHT,
    TITLE_SIZE,
    Box,
    Terminal,
    bezier,
)
from runtime.drawing.style import blend
from runtime.drawing.words import type_text
from runtime.errors import Severity
from runtime.graph import PortRef
from runtime.types import TensorType, ValueType
from ui import theme
from ui.canvas import load_strip

IN, OUT = PortTypeEnum.IN.value, PortTypeEnum.OUT.value
COARSE, NO_TEXT = 0.16, 0.42
"""Zoom below which a node is a filled box, and below which it has no small text."""
EDGE = 14.0
"""How far a node's item reaches beyond its box: for dots and badges."""

# What NodeGraphQt's wires paint, Qt's own path item paints several times as fast.
if "paint" in vars(LibraryPipeItem):
    del LibraryPipeItem.paint


class PortItem(LibraryPortItem):
    """Where a wire can be taken or dropped. The node paints it."""

    def __init__(self, parent: NodeItem, terminal: Terminal, is_output: bool) -> None:
        QGraphicsItem.__init__(self, parent)
        self.setFlag(QGraphicsItem.GraphicsItemFlag.ItemHasNoContents)
        self.setAcceptHoverEvents(True)
        self.setZValue(Z_VAL_PORT)
        self._pipes: list[PipeItem] = []
        self._width = self._height = 18.0
        self._hovered = False
        self._name = terminal.port
        self._display_name = True
        self._port_type = OUT if is_output else IN
        self._multi_connection = is_output
        self._locked = False
        self.terminal = terminal

    def boundingRect(self) -> QRectF:  # noqa: N802
        return QRectF(0.0, 0.0, self._width, self._height)

    def centre(self) -> QPointF:
        """The place of its dot in the scene."""
        return self.scenePos() + QPointF(self._width / 2, self._height / 2)

    def hoverEnterEvent(self, event: Any) -> None:  # noqa: N802
        self._hovered = True
        self.parentItem().update()
        viewer = self.node.viewer()
        if viewer is not None:
            viewer.port_hovered.emit(self.node.id, self._name, self._port_type == OUT)

    def hoverLeaveEvent(self, event: Any) -> None:  # noqa: N802
        self._hovered = False
        self.parentItem().update()
        viewer = self.node.viewer()
        if viewer is not None:
            viewer.port_hovered.emit("", "", False)

    def setToolTip(self, text: str) -> None:  # noqa: N802
        """NodeGraphQt's tips say nothing that the port does not show."""


class PipeItem(LibraryPipeItem):
    """A wire: coloured by element type, thin for single numbers, dashed and red where it is broken."""

    def __init__(self) -> None:
        QGraphicsPathItem.__init__(self)
        self.setZValue(Z_VAL_PIPE)
        self.setAcceptHoverEvents(True)
        self.setFlag(QGraphicsItem.GraphicsItemFlag.ItemIsSelectable)
        self._active = self._highlight = False
        self._input_port: PortItem | None = None
        self._output_port: PortItem | None = None
        self.value: ValueType = TensorType()
        self.broken = False

    def target(self) -> PortRef:
        """Where it ends."""
        assert self._input_port is not None
        return PortRef(self._input_port.node.id, self._input_port.name)

    def show_value(self, value: ValueType, broken: bool) -> None:
        """What it carries, and whether the checker finds fault with it."""
        self.value, self.broken = value, broken
        self._style()

    def activate(self) -> None:
        self._active = True
        self._style()

    def highlight(self) -> None:
        self._highlight = True
        self._style()

    def reset(self) -> None:
        self._active = self._highlight = False
        self._style()

    def _style(self) -> None:
        look = theme.current()
        scalar = isinstance(self.value, TensorType) and self.value.shape == ()
        width = (1.3 if scalar else 2.0) + (1.6 if self._active or self._highlight else 0.0)
        if self.broken:
            pen = QPen(theme.colour(look.error), width, Qt.PenStyle.DashLine)
        else:
            pen = QPen(theme.colour(look.wire(self.value)), width)
        self.setPen(pen)

    def draw_path(self, start_port: Any, end_port: Any = None, cursor_pos: QPointF | None = None) -> None:
        """Lays the wire between its ports; the arguments are NodeGraphQt's and not needed."""
        if self._input_port is None or self._output_port is None:
            return
        start, end = self._output_port.centre(), self._input_port.centre()
        path = QPainterPath(start)
        _, b, c, d = bezier(start.x(), start.y(), end.x(), end.y())
        path.cubicTo(*b, *c, *d)
        self.setPath(path)

    def shape(self) -> QPainterPath:
        """Near the line, so that it can be hit, and not the area below its curve."""
        stroker = QPainterPathStroker()
        stroker.setWidth(10.0)
        return stroker.createStroke(self.path())

    def hoverEnterEvent(self, event: Any) -> None:  # noqa: N802
        self.activate()
        self._tell(True)

    def hoverLeaveEvent(self, event: Any) -> None:  # noqa: N802
        self._active = False
        self._highlight = self.isSelected()
        self._style()
        self._tell(False)

    def _tell(self, entered: bool) -> None:
        viewer, port = self.viewer(), self._input_port
        if viewer is not None and port is not None:
            viewer.wire_hovered.emit(port.node.id if entered else "", port.name if entered else "")

    def delete(self) -> None:
        """Takes the wire out of the scene and off its ports."""
        for port in (self._input_port, self._output_port):
            if port is not None and self in port.connected_pipes:
                port.remove_pipe(self)
        if self.scene() is not None:
            self.scene().removeItem(self)

    def reset_path(self) -> None:
        self.setPath(QPainterPath())


class NodeItem(AbstractNodeItem):
    """A node: paints the box that `runtime.drawing` makes of it, and what a run has shown of it."""

    def __init__(self, name: str = "node", parent: QGraphicsItem | None = None) -> None:
        super().__init__(name, parent)
        self.setCacheMode(QGraphicsItem.CacheMode.NoCache)
        self.setFlag(QGraphicsItem.GraphicsItemFlag.ItemSendsGeometryChanges)
        self._properties["visible"] = True
        self._width: float
        self._height: float
        self.box: Box | None = None
        self.badge = ""
        """A short text at the upper right, such as the node's time."""
        self.tint: float | None = None
        """What an overlay shows, 0 to 1; None if nothing."""
        self.loads: tuple[float, ...] = ()
        """The share of each expert, for the strip on a mixture."""
        self.loads_are_stale = False
        """Whether the shares are from before the last edit."""
        self.probes: dict[str, int] = {}
        """The numbers of probes at outputs."""
        self._inputs: dict[str, PortItem] = {}
        self._outputs: dict[str, PortItem] = {}
        self._chips: tuple[tuple[str, float], ...] = ()
        self._reach = 0.0

    # -- what NodeGraphQt asks of a node ------------------------------------------------------------------------------

    @property
    def inputs(self) -> list[PortItem]:
        """The input ports, in order."""
        return list(self._inputs.values())

    @property
    def outputs(self) -> list[PortItem]:
        """The output ports, in order."""
        return list(self._outputs.values())

    @property
    def widgets(self) -> dict[str, Any]:
        """None: parameters are edited beside the canvas."""
        return {}

    @property
    def name(self) -> str:
        return str(self._properties["name"])

    @name.setter
    def name(self, name: str) -> None:
        self._properties["name"] = name

    def add_input(self, name: str, multi_port: bool, display_name: bool, locked: bool) -> PortItem:
        """The port item of an input of the box."""
        return self._inputs[name]

    def add_output(self, name: str, multi_port: bool, display_name: bool, locked: bool) -> PortItem:
        """The port item of an output of the box."""
        return self._outputs[name]

    def draw_node(self) -> None:
        self.update()

    def activate_pipes(self) -> None:
        for pipe in self.pipes():
            pipe.activate()

    def highlight_pipes(self) -> None:
        for pipe in self.pipes():
            pipe.highlight()

    def reset_pipes(self) -> None:
        for pipe in self.pipes():
            pipe.reset()

    # -- the box ------------------------------------------------------------------------------------------------------

    def show_box(self, box: Box) -> bool:
        """Shows a box; whether its ports are others than before (then wires must be laid anew)."""
        before = self.box
        self.prepareGeometryChange()
        self.box = box
        self._width, self._height = box.width, box.height
        changed = before is None or _ports(before) != _ports(box)
        if changed:
            for port in (*self._inputs.values(), *self._outputs.values()):
                for pipe in tuple(port.connected_pipes):
                    pipe.delete()
                if port.scene() is not None:
                    port.scene().removeItem(port)
                port.setParentItem(None)
            self._inputs = {t.port: PortItem(self, t, False) for t in box.inputs}
            self._outputs = {t.port: PortItem(self, t, True) for t in box.outputs}
        for ports, terminals, x in ((self._inputs, box.inputs, 0.0), (self._outputs, box.outputs, box.width)):
            for terminal in terminals:
                port = ports[terminal.port]
                port.terminal = terminal
                port.setPos(x - port._width / 2, terminal.y - port._height / 2)
        self._chips = _chips(box)
        widest = max((font.regular().width(text, SMALL_SIZE) for text, _ in self._chips), default=0.0)
        self._reach = widest + CHIP_OFFSET if self._chips else 0.0
        if not changed and before is not None and before.width != box.width:
            self.lay_pipes()
        self.update()
        return changed

    def port(self, name: str, is_output: bool) -> PortItem | None:
        """The item of a port."""
        return (self._outputs if is_output else self._inputs).get(name)

    def pipes(self) -> list[PipeItem]:
        """The wires at this node."""
        return [pipe for port in (*self._inputs.values(), *self._outputs.values()) for pipe in port.connected_pipes]

    def lay_pipes(self) -> None:
        """Lays the wires at this node anew."""
        for pipe in self.pipes():
            pipe.draw_path(None)

    def boundingRect(self) -> QRectF:  # noqa: N802
        return QRectF(-EDGE, -EDGE, self._width + self._reach + 2 * EDGE, self._height + 2 * EDGE)

    def shape(self) -> QPainterPath:
        path = QPainterPath()
        path.addRect(QRectF(0.0, 0.0, self._width, self._height))
        return path

    def itemChange(self, change: QGraphicsItem.GraphicsItemChange, value: Any) -> Any:  # noqa: N802
        if change == QGraphicsItem.GraphicsItemChange.ItemPositionHasChanged:
            self.lay_pipes()
        elif change == QGraphicsItem.GraphicsItemChange.ItemSelectedHasChanged and self.scene() is not None:
            self._properties["selected"] = bool(value)
            (self.highlight_pipes if value else self.reset_pipes)()
            self.setZValue(Z_VAL_NODE + (1 if value else 0))
        return super().itemChange(change, value)

    def mousePressEvent(self, event: Any) -> None:  # noqa: N802
        if event.button() == Qt.MouseButton.LeftButton and any(p.hovered for p in (*self.inputs, *self.outputs)):
            event.ignore()
            return
        super().mousePressEvent(event)

    def mouseReleaseEvent(self, event: Any) -> None:  # noqa: N802
        if event.modifiers() == Qt.KeyboardModifier.AltModifier:
            event.ignore()
            return
        super().mouseReleaseEvent(event)

    def mouseDoubleClickEvent(self, event: Any) -> None:  # noqa: N802
        viewer = self.viewer()
        if event.button() == Qt.MouseButton.LeftButton and viewer is not None:
            viewer.node_double_clicked.emit(self.id)

    # -- painting -----------------------------------------------------------------------------------------------------

    def paint(self, painter: QPainter, option: QStyleOptionGraphicsItem, widget: QWidget | None = None) -> None:
        box = self.box
        if box is None:
            return
        zoom = painter.worldTransform().m11()
        look = theme.current()
        selected = self.isSelected()
        if zoom < COARSE:
            fill = look.terminal if box.pill else look.title(box.family)
            if box.severity is Severity.ERROR:
                fill = look.error
            painter.fillRect(QRectF(0, 0, box.width, box.height), theme.colour(look.selected if selected else fill))
            return
        if box.pill:
            self._paint_pill(painter, box, zoom)
        else:
            self._paint_node(painter, box, zoom)
            if self.loads:
                fill = theme.readable(look.title(box.family))
                place = QPointF(box.width, box.height)
                load_strip.paint(painter, place, self.loads, fill, self.loads_are_stale, zoom)
        self._paint_ports(painter, box)
        if zoom >= NO_TEXT:
            self._paint_badge(painter, box)

    def _edge(self, box: Box) -> QPen:
        look = theme.current()
        if self.isSelected():
            return QPen(theme.colour(look.selected), 2.2)
        if box.severity is Severity.ERROR:
            return QPen(theme.colour(look.error), 1.8)
        if box.severity is Severity.WARNING:
            return QPen(theme.colour(look.warning), 1.5)
        return QPen(theme.colour(look.edge), 1.0)

    def _paint_node(self, painter: QPainter, box: Box, zoom: float) -> None:
        look = theme.current()
        whole = QRectF(0, 0, box.width, box.height)
        title = look.title(box.family)
        painter.setPen(Qt.PenStyle.NoPen)
        fill = look.box if self.tint is None else blend(look.warning, look.box, 0.5 * self.tint)
        painter.setBrush(theme.colour(fill))
        painter.drawRoundedRect(whole, RADIUS, RADIUS)
        painter.setBrush(theme.colour(title))
        painter.setClipRect(QRectF(0, 0, box.width, TITLE_HEIGHT), Qt.ClipOperation.IntersectClip)
        painter.drawRoundedRect(whole, RADIUS, RADIUS)
        painter.setClipping(False)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setPen(self._edge(box) if box.known else QPen(theme.colour(look.faint), 1.4, Qt.PenStyle.DashLine))
        painter.drawRoundedRect(whole, RADIUS, RADIUS)
        painter.setFont(theme.font(TITLE_SIZE, bold=True))
        painter.setPen(theme.colour(look.title_ink))
        painter.drawText(QPointF(PADDING, 18.0), box.title)
        if zoom < NO_TEXT:
            return
        painter.setFont(theme.font(TEXT_SIZE))
        painter.setPen(theme.colour(blend(look.title_ink, title, 0.75)))
        painter.drawText(
            QRectF(0, 0, box.width - PADDING, TITLE_HEIGHT),
            Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter,
            box.detail,
        )
        for terminal in box.inputs:
            ink = look.ink if terminal.connected or terminal.required else look.faint
            painter.setPen(theme.colour(ink))
            painter.drawText(QPointF(PADDING, terminal.y + 4), terminal.label)
        painter.setPen(theme.colour(look.ink))
        right = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        for terminal in box.outputs:
            painter.drawText(QRectF(0, terminal.y - 10, box.width - PADDING, 20), right, terminal.label)
        if box.parameters:
            top = box.height - PARAMETER_ROW * len(box.parameters) - 8
            painter.setPen(QPen(theme.colour(blend(look.edge, look.box, 0.5)), 1.0))
            painter.drawLine(QPointF(1, top), QPointF(box.width - 1, top))
            painter.setFont(theme.font(SMALL_SIZE))
            for number, (name, value) in enumerate(box.parameters):
                row = QRectF(PADDING, top + PARAMETER_ROW * number + 2, box.width - 2 * PADDING, PARAMETER_ROW)
                painter.setPen(theme.colour(look.faint))
                painter.drawText(row, Qt.AlignmentFlag.AlignVCenter, name)
                painter.setPen(theme.colour(look.ink))
                painter.drawText(row, right, value)

    def _paint_pill(self, painter: QPainter, box: Box, zoom: float) -> None:
        look = theme.current()
        terminal = (box.inputs or box.outputs)[0]
        colour = look.wire(terminal.type)
        whole = QRectF(0, 0, box.width, box.height)
        is_tensor = box.kind == "Initializer"
        radius = 3.0 if is_tensor else PILL_HEIGHT / 2
        fill = look.terminal if self.tint is None else blend(look.warning, look.terminal, 0.5 * self.tint)
        painter.setBrush(theme.colour(fill))
        pen = self._edge(box)
        if not is_tensor and not self.isSelected() and box.severity is None:
            pen = QPen(theme.colour(blend(colour, look.edge, 0.8)), 1.4)
        painter.setPen(pen)
        painter.drawRoundedRect(whole, radius, radius)
        if is_tensor and box.training_type != "constant":
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(theme.colour(colour))
            if box.training_type == "trainable weight":
                painter.drawRoundedRect(QRectF(0, 0, 4, box.height), 1.5, 1.5)
            else:
                painter.drawRoundedRect(QRectF(0, 0, 4, 7), 1.5, 1.5)
                painter.drawRoundedRect(QRectF(0, box.height - 7, 4, 7), 1.5, 1.5)
        if zoom < NO_TEXT:
            return
        painter.setFont(theme.font(TEXT_SIZE, bold=True))
        painter.setPen(theme.colour(look.ink))
        painter.drawText(QPointF(PADDING + 2, 14.0), box.title)
        after = PADDING + 2 + painter.fontMetrics().horizontalAdvance(box.title) + 8
        painter.setFont(theme.font(SMALL_SIZE))
        painter.setPen(theme.colour(look.faint))
        painter.drawText(QPointF(after, 13.7), box.detail)

    def _paint_ports(self, painter: QPainter, box: Box) -> None:
        look = theme.current()
        for ports, terminals, x in ((self._inputs, box.inputs, 0.0), (self._outputs, box.outputs, box.width)):
            for terminal in terminals:
                port = ports[terminal.port]
                radius = DOT + (2.0 if port.hovered else 0.0)
                connected = bool(port.connected_pipes)
                if connected:
                    painter.setPen(Qt.PenStyle.NoPen)
                    painter.setBrush(theme.colour(look.wire(terminal.type)))
                else:
                    needed = terminal.required and ports is self._inputs
                    line = look.error if needed else look.edge
                    painter.setPen(QPen(theme.colour(line), 1.4))
                    painter.setBrush(theme.colour(look.background))
                painter.drawEllipse(QPointF(x, terminal.y), radius, radius)

    def _paint_badge(self, painter: QPainter, box: Box) -> None:
        look = theme.current()
        painter.setFont(theme.font(SMALL_SIZE))
        for text, y in self._chips:
            width = painter.fontMetrics().horizontalAdvance(text)
            painter.fillRect(
                QRectF(box.width + CHIP_OFFSET - 2, y - 15, width + 4, 12), theme.colour(look.background, 220)
            )
            painter.setPen(theme.colour(look.faint))
            painter.drawText(QPointF(box.width + CHIP_OFFSET, y - 5), text)
        for terminal in box.outputs if self.probes else ():
            if terminal.port in self.probes:
                painter.setPen(Qt.PenStyle.NoPen)
                painter.setBrush(theme.colour(look.selected))
                flag = QRectF(box.width + 3, terminal.y + 3, 11, 11)
                painter.drawRoundedRect(flag, 3, 3)
                painter.setPen(theme.colour(look.title_ink))
                painter.setFont(theme.font(9, bold=True))
                painter.drawText(flag, Qt.AlignmentFlag.AlignCenter, str(self.probes[terminal.port]))
        if self.badge and not box.pill:  # pills stand too close for it
            painter.setFont(theme.font(SMALL_SIZE))
            painter.setPen(theme.colour(look.faint))
            painter.drawText(QPointF(2.0, -3.0), self.badge)

    def tip(self) -> str:
        """What a port or the node says when the mouse rests on it."""
        return self.box.kind if self.box else ""


def _chips(box: Box) -> tuple[tuple[str, float], ...]:
    """The types that stand beside a node's outputs: those of its wires."""
    if box.pill:
        return ()
    return tuple((text, t.y) for t in box.outputs if t.connected and (text := type_text(t.type)))


def port_tip(port: PortItem) -> str:
    """Name, declared type and the type that is there."""
    found = type_text(port.terminal.type)
    declared = port.terminal.hint
    return " · ".join(part for part in (port.name, declared if declared != found else "", found) if part)


def _ports(box: Box) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(t.port for t in box.inputs), tuple(t.port for t in box.outputs)
