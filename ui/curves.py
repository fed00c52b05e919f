"""Lines that grow while something runs: losses, rates, norms."""

from __future__ import annotations

import math
from collections.abc import Iterable

from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QHelpEvent, QPainter, QPaintEvent, QPen, QPolygonF
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from runtime.drawing.canvas import Colour
from runtime.drawing.style import blend
from runtime.drawing.words import number_text
from ui import theme

MOST_POINTS = 4000
"""Points of a line; when there are more, every second one is dropped."""
ASIDE, BELOW, ABOVE = 54, 18, 18


class Curves(QWidget):
    """Named lines over one x. The y axis is logarithmic where all is positive and far apart."""

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.lines: dict[str, list[tuple[float, float]]] = {}
        self._steps: dict[str, tuple[int, int]] = {}
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setAccessibleName(name)

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(320, 130)

    def clear(self) -> None:
        """Begins anew."""
        self.lines.clear()
        self._steps.clear()
        self.update()

    def add(self, name: str, x: float, y: float) -> None:
        """Lets a line grow. Of very many points, one in 2, 4, 8... is kept."""
        line = self.lines.setdefault(name, [])
        every, skipped = self._steps.get(name, (1, 0))
        if skipped + 1 < every:
            self._steps[name] = every, skipped + 1
            return
        line.append((x, y))
        if len(line) > MOST_POINTS:
            del line[1::2]
            every *= 2
        self._steps[name] = every, 0
        self.update()

    def colours(self) -> dict[str, Colour]:
        """Each line's colour."""
        look = theme.current()
        families = [theme.readable(look.title(family)) for family in ("mixture", "attention")]
        wheel = (look.selected, look.warning, look.ok, look.error, look.faint, *families)
        return {name: wheel[index % len(wheel)] for index, name in enumerate(self.lines)}

    def _room(self) -> QRectF:
        return QRectF(self.rect()).adjusted(ASIDE, ABOVE, -8, -BELOW)

    def _finite(self) -> Iterable[tuple[float, float]]:
        return (point for line in self.lines.values() for point in line if math.isfinite(point[1]))

    @property
    def is_logarithmic(self) -> bool:
        """Whether the y axis is."""
        values = [y for _, y in self._finite()]
        return bool(values) and min(values) > 0 and max(values) > 20 * min(values)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        look, painter = theme.current(), QPainter(self)
        painter.fillRect(self.rect(), theme.colour(look.background))
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setFont(theme.font(10))
        room, points = self._room(), list(self._finite())
        painter.setPen(QPen(theme.colour(blend(look.edge, look.background, 0.5)), 1))
        painter.drawRect(room)
        if not points:
            painter.setPen(theme.colour(look.faint))
            painter.drawText(room, Qt.AlignmentFlag.AlignCenter, self.accessibleName())
            return
        scale = math.log10 if self.is_logarithmic else float
        left, right = min(x for x, _ in points), max(x for x, _ in points)
        low, high = min(scale(y) for _, y in points), max(scale(y) for _, y in points)
        if high == low:
            low, high = low - 0.5, high + 0.5
        span = max(right - left, 1e-9)

        def place(x: float, y: float) -> QPointF:
            return QPointF(
                room.left() + room.width() * (x - left) / span,
                room.bottom() - room.height() * (scale(y) - low) / (high - low),
            )

        for share in (0.0, 0.5, 1.0):
            value = low + (high - low) * share
            value = 10**value if scale is math.log10 else value
            y = room.bottom() - room.height() * share
            painter.setPen(QPen(theme.colour(blend(look.edge, look.background, 0.35)), 1))
            painter.drawLine(QPointF(room.left(), y), QPointF(room.right(), y))
            painter.setPen(theme.colour(look.faint))
            label = QRectF(0, y - 7, ASIDE - 5, 14)
            painter.drawText(label, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, _short(value))
        for x, side in ((left, Qt.AlignmentFlag.AlignLeft), (right, Qt.AlignmentFlag.AlignRight)):
            painter.drawText(QRectF(room.left(), room.bottom() + 2, room.width(), BELOW), side, _short(x))
        at = room.left()
        for name, colour in self.colours().items():
            line = self.lines[name]
            painter.setPen(QPen(theme.colour(colour), 1.6))
            drawn: list[QPointF] = []
            for x, y in [*line, (0.0, math.nan)]:
                if math.isfinite(y) and (scale is not math.log10 or y > 0):
                    drawn.append(place(x, y))
                elif drawn:
                    if len(drawn) == 1:
                        painter.drawEllipse(drawn[0], 1.5, 1.5)
                    painter.drawPolyline(QPolygonF(drawn))
                    drawn = []
            text = f"{name} {_short(line[-1][1])}" if line else name
            painter.drawLine(QPointF(at, 9), QPointF(at + 14, 9))
            painter.setPen(theme.colour(look.ink))
            painter.drawText(QPointF(at + 18, 13), text)
            at += 30 + painter.fontMetrics().horizontalAdvance(text)

    def told(self, x: float) -> str:
        """What all lines have near a place."""
        room, points = self._room(), list(self._finite())
        if not points:
            return ""
        left, right = min(p for p, _ in points), max(p for p, _ in points)
        wanted = left + (right - left) * (x - room.left()) / max(1.0, room.width())
        told = []
        for name, line in self.lines.items():
            if line:
                near = min(line, key=lambda point: abs(point[0] - wanted))
                told.append(f"{name}: {_short(near[1])} at {_short(near[0])}")
        return "\n".join(told)

    def event(self, event: QEvent) -> bool:
        """Tips tell the numbers."""
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            QToolTip.showText(event.globalPos(), self.told(event.pos().x()), self)
            return True
        return super().event(event)


def _short(number: float) -> str:
    return number_text(float(f"{number:.3g}"))
