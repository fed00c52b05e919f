"""Bars of the Experts pane: how many tokens each expert got, and how far its weights are from float ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QWidget

from runtime.drawing.style import blend
from runtime.experts import Loads
from ui import theme
from ui.expert_columns import BOTTOM, LABELS, RIGHT, Columns

HINT = "Compare with float weights to see how far the dequantized ones are from them."


class LoadBars(Columns):
    """How many tokens each expert got, with a line at the mean."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.values: tuple[float, ...] = ()
        self.low: frozenset[int] = frozenset()
        self.setAccessibleName("Load of each expert")

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(300, 84)

    def show_loads(self, loads: Loads | None) -> None:
        """Shows how many tokens each expert got."""
        self.values = tuple(loads.counts.astype(float).tolist()) if loads is not None else ()
        self.low = frozenset(loads.starved if loads is not None else ())
        self.count = len(self.values)
        self.current = min(self.current, self.count - 1)
        self.setAccessibleDescription("; ".join(map(self.words, range(min(self.count, 64)))))
        self.update()

    def words(self, expert: int) -> str:
        """What a tip says of an expert."""
        tokens = int(self.values[expert])
        if expert in self.low:
            return f"expert {expert} is starved: {tokens:,} {'token' if tokens == 1 else 'tokens'}"
        return f"expert {expert}: {tokens:,} tokens, {tokens / max(1.0, sum(self.values)):.1%}"

    def room(self) -> QRectF:
        return QRectF(self.rect()).adjusted(1, 3, -1, -LABELS)

    def told(self, x: float, y: float) -> str:
        expert = self.expert_at(x)
        return self.words(expert) if expert >= 0 else ""

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        look, painter = theme.current(), QPainter(self)
        painter.fillRect(self.rect(), theme.colour(look.background))
        room, most = self.room(), max(self.values, default=0.0) or 1.0
        fill, low = theme.colour(blend(look.selected, look.background, 0.7)), theme.colour(look.error)
        for expert, value in enumerate(self.values):
            column = self.column(expert)
            gap = 1.0 if column.width() > 4 else 0.0
            height = max(column.height() * value / most, 1.5 if value or expert in self.low else 0.0)
            bar = QRectF(column.left(), room.bottom() - height, column.width() - gap, height)
            painter.fillRect(bar, low if expert in self.low else fill)
        if self.values:
            self.paint_numbers(painter, self.low)
            self._paint_starved(painter)
            mean = sum(self.values) / len(self.values)
            y = room.bottom() - room.height() * mean / most
            painter.setPen(QPen(theme.colour(look.warning), 1, Qt.PenStyle.DashLine))
            painter.drawLine(QPointF(room.left(), y), QPointF(room.right(), y))
        self.paint_marks(painter)

    def _paint_starved(self, painter: QPainter) -> None:
        """Words above the bars of starved experts, where there is room."""
        painter.setPen(theme.colour(theme.current().error))
        for expert in self.low:
            column = self.column(expert)
            text = f"starved: {int(self.values[expert])} tokens"
            if painter.fontMetrics().horizontalAdvance(text) < column.width():
                painter.drawText(column.adjusted(0, 0, 0, -8), Qt.AlignmentFlag.AlignHCenter | BOTTOM, text)


class ErrorBars(Columns):
    """The relative error of each expert's weights, a bar for each projection."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.errors: tuple[Mapping[str, float], ...] = ()
        self.said = HINT
        self.stale = False
        self.setAccessibleName("Error of each expert's weights")

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(300, 130)

    def show_errors(
        self, errors: Sequence[Mapping[str, float]], count: int = 0, told: str = HINT, stale: bool = False
    ) -> None:
        """Shows errors by projection, and words beside them; `count` is the number of experts if some are not there."""
        self.errors, self.said, self.stale = tuple(errors), told, stale
        self.count = max(count, len(self.errors))
        self.current = min(self.current, self.count - 1)
        self.setAccessibleDescription("; ".join(map(self.words, range(min(len(self.errors), 64)))))
        self.update()

    def words(self, expert: int) -> str:
        """What a tip says of an expert."""
        return f"expert {expert}: {errors_text(self.errors[expert])}"

    def room(self) -> QRectF:
        return QRectF(self.rect()).adjusted(1, LABELS + 2, -1, -LABELS)

    def told(self, x: float, y: float) -> str:
        expert = self.expert_at(x)
        return self.words(expert) if 0 <= expert < len(self.errors) else ""

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        look, painter = theme.current(), QPainter(self)
        painter.fillRect(self.rect(), theme.colour(look.background))
        if not self.errors:
            painter.setPen(theme.colour(look.faint))
            painter.setFont(theme.font(12))
            place = self.rect().adjusted(8, 8, -8, -8)
            painter.drawText(place, Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap, self.said)
            self.paint_marks(painter)
            return
        room, names = self.room(), list(self.errors[0])
        most = max((e for error in self.errors for e in error.values() if math.isfinite(e)), default=0.0) or 1.0
        strength = 0.35 if self.stale else 0.8
        fills = dict(zip(names, (look.selected, look.ok, look.warning), strict=False))
        for expert, error in enumerate(self.errors):
            column = self.column(expert)
            gap = min(4.0, column.width() * 0.15)
            step = (column.width() - gap) / len(names)
            for number, name in enumerate(names):
                wild = not math.isfinite(error[name])
                height = room.height() * (1.0 if wild else error[name] / most)
                bar = QRectF(column.left() + gap / 2 + number * step, room.bottom() - height, step, height)
                fill = look.error if wild else blend(fills[name], look.background, strength)
                painter.fillRect(bar, theme.colour(fill))
        self.paint_numbers(painter)
        painter.setFont(theme.font(11))
        x = room.left() + 4
        for name in names:
            painter.fillRect(QRectF(x, 5, 9, 9), theme.colour(blend(fills[name], look.background, strength)))
            painter.setPen(theme.colour(look.ink))
            painter.drawText(QPointF(x + 13, 14), name)
            x += 13 + painter.fontMetrics().horizontalAdvance(name) + 14
        painter.setPen(theme.colour(look.faint))
        text = f"{self.said}  ·  the highest bar is {most:.2%} of the weights' norm"
        painter.drawText(QRectF(x, 0, room.right() - x - 4, LABELS + 2), RIGHT, text)
        self.paint_marks(painter)


def error_text(error: float) -> str:
    """A relative error, and the signal to noise ratio that it is."""
    if not error:
        return "equal"
    return f"{error:.2%} ({-20 * math.log10(error):.1f} dB)" if math.isfinite(error) else "not finite"


def errors_text(errors: Mapping[str, float]) -> str:
    """The errors of an expert by projection."""
    return ", ".join(f"{name} {error_text(error)}" for name, error in errors.items())
