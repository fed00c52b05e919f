"""What a wire carries, beside the mouse: its type, and its values in the last run as numbers and as a line."""

from __future__ import annotations

import math
from html import escape

from PySide6.QtCore import QObject, QPointF, QSize, Qt, QTimer
from PySide6.QtGui import QCursor, QPainter, QPaintEvent, QPen, QPolygonF
from PySide6.QtWidgets import QFrame, QLabel, QSizePolicy, QVBoxLayout, QWidget

from runtime.drawing.words import number_text, type_text
from runtime.graph import PortRef
from runtime.summaries import Summary
from ui import theme
from ui.running import Runner
from ui.window import Window

REST = 220
"""Milliseconds for which the mouse rests on a wire before its values are told."""
AWAY = 16
"""Pixels between the cursor and the tip."""


class Sparkline(QWidget):
    """A line through the means of a value's stretches, with a line for zero if it is among them."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.points: tuple[float, ...] = ()
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(220, 44)

    def show_points(self, points: tuple[float, ...]) -> None:
        """Shows a line; NaN makes a gap."""
        self.points = points
        self.setVisible(len(points) > 1)
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        finite = [point for point in self.points if math.isfinite(point)]
        if not finite:
            return
        look, painter = theme.current(), QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        low, high = min(finite), max(finite)
        room = self.rect().adjusted(2, 4, -2, -4)
        span = (high - low) or 1.0

        def place(index: int, value: float) -> QPointF:
            x = room.left() + room.width() * index / max(1, len(self.points) - 1)
            return QPointF(x, room.bottom() - room.height() * ((value - low) / span if high > low else 0.5))

        if low < 0 < high:
            painter.setPen(QPen(theme.colour(look.edge), 1, Qt.PenStyle.DotLine))
            painter.drawLine(place(0, 0.0), place(len(self.points) - 1, 0.0))
        painter.setPen(QPen(theme.colour(look.selected), 1.5))
        line: list[QPointF] = []
        for index, value in enumerate([*self.points, math.nan]):
            if math.isfinite(value):
                line.append(place(index, value))
            elif line:
                painter.drawPolyline(QPolygonF(line))
                line = []


def short(number: float | int | None) -> str:
    """A number in four digits."""
    if number is None:
        return "none"
    return number_text(float(f"{number:.4g}") if isinstance(number, float) else number)


def summary_html(summary: Summary) -> str:
    """Range, mean and what is wrong with an array, as rich text."""
    look = theme.current()
    lines = []
    if summary.minimum is not None:
        numbers = f"{short(summary.minimum)} to {short(summary.maximum)}"
        lines.append(f"{numbers}, mean {short(summary.mean)} ± {short(summary.deviation)}")
    wrong = [f"{count:,} {what}" for count, what in ((summary.nans, "NaN"), (summary.infinities, "infinite")) if count]
    if wrong:
        lines.append(f'<b style="color: {theme.css(look.error)}">{", ".join(wrong)} of {summary.size:,}</b>')
    if summary.zeros and summary.size > 1:
        lines.append(f"{summary.zeros:.1%} zeros")
    if not summary.size:
        lines.append("no elements")
    return "<br>".join(lines)


class WireTip(QFrame):
    """The tip itself; it follows nothing, and takes no keys."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent, Qt.WindowType.ToolTip)
        self.setAttribute(Qt.WidgetAttribute.WA_ShowWithoutActivating)
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self.setObjectName("tip")
        self.text = QLabel()
        self.text.setTextFormat(Qt.TextFormat.RichText)
        self.line = Sparkline()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(9, 7, 9, 7)
        layout.setSpacing(5)
        layout.addWidget(self.text)
        layout.addWidget(self.line)


class WireTips(QObject):
    """Shows the tip when the mouse rests on a wire."""

    def __init__(self, runner: Runner, window: Window) -> None:
        super().__init__(window)
        self._runner, self._editor = runner, window.editor
        self._viewer = window.editor.canvas.viewer
        self._target: PortRef | None = None
        self.tip = WireTip(self._viewer)
        self._resting = QTimer(self, singleShot=True, interval=REST)
        self._resting.timeout.connect(self._show)
        self._viewer.wire_hovered.connect(self._hover)
        self._viewer.moved_view.connect(self.tip.hide)
        window.editor.edited.connect(lambda edit: self.tip.hide())
        window.editor.document_changed.connect(self.tip.hide)
        window.closing.connect(self.tip.close)

    def _hover(self, node: str, port: str) -> None:
        self._target = PortRef(node, port) if node else None
        self.tip.hide()
        if node:
            self._resting.start()
        else:
            self._resting.stop()

    def told(self, target: PortRef) -> tuple[str, Summary | None]:
        """What the tip says of the wire that ends there, as rich text, and its values' summary if there is one."""
        graph, look = self._editor.graph, theme.current()
        source = graph.wires[target]
        faint = theme.css(look.faint)
        lines = [
            f"<b>{escape(str(source))}</b> → {escape(str(target))}",
            escape(type_text(graph.checker.type_of(source)) or "type not known"),
        ]
        result = self._runner.result
        summary = result.summaries.get(str(source)) if result is not None else None
        if summary is not None and result is not None:
            lines.append(summary_html(summary))
            if summary.shape != () and str(summary.shape) not in lines[1]:
                lines[1] = f"{summary.element} [{', '.join(map(str, summary.shape))}]"
            gradient = result.gradient_summaries.get(str(source))
            if gradient is not None:
                lines.append(f"<i>gradient</i> {summary_html(gradient)}")
            if self._runner.is_stale_at(source):
                lines.append(f'<span style="color: {faint}">from before the last edit</span>')
        else:
            why = "no value in the last run" if result is not None else "run the graph (F5) to see values"
            lines.append(f'<span style="color: {faint}">{why}</span>')
        return "<br>".join(line for line in lines if line), summary

    def _show(self) -> None:
        target = self._target
        if target is None or target not in self._editor.graph.wires or self._viewer.is_wiring:
            return
        text, summary = self.told(target)
        look = theme.current()
        self.tip.setStyleSheet(
            f"#tip {{ background: {theme.css(look.box)}; border: 1px solid {theme.css(look.edge)}; }}"
        )
        self.tip.text.setText(text)
        self.tip.line.show_points(summary.sparkline if summary is not None else ())
        self.tip.adjustSize()
        corner = QCursor.pos()
        screen = self._viewer.screen().availableGeometry()
        x = min(corner.x() + AWAY, screen.right() - self.tip.width())
        below = corner.y() + AWAY
        y = below if below + self.tip.height() <= screen.bottom() else corner.y() - AWAY - self.tip.height()
        self.tip.move(x, y)
        self.tip.show()


def install(window: Window) -> None:
    """Adds the tips."""
    window.keep(WireTips(window.runner, window))
