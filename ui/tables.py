"""Arrays as tables of which a page at a time is read."""

from __future__ import annotations

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QPersistentModelIndex, Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QToolButton, QWidget

from runtime.drawing.words import number_text
from runtime.tensor_views import Pages
from ui import theme

PAGE = 256
"""Rows and columns of a page."""

Index = QModelIndex | QPersistentModelIndex


class TableModel(QAbstractTableModel):
    """One page of one table of a tensor; nothing of it is read before it is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self._pages: Pages | None = None
        self._lead: tuple[int, ...] = ()
        self._row = self._column = 0
        self._rows: list[list[object]] | None = None

    def show(self, pages: Pages | None, lead: tuple[int, ...] = (), row: int = 0, column: int = 0) -> None:
        """Shows the page that begins at a row and a column."""
        self.beginResetModel()
        self._pages, self._lead, self._row, self._column, self._rows = pages, lead, row, column, None
        self.endResetModel()

    def rowCount(self, parent: Index | None = None) -> int:  # noqa: N802
        if self._pages is None or (parent is not None and parent.isValid()):
            return 0
        return max(0, min(PAGE, self._pages.rows - self._row))

    def columnCount(self, parent: Index | None = None) -> int:  # noqa: N802
        if self._pages is None or (parent is not None and parent.isValid()):
            return 0
        return max(0, min(PAGE, self._pages.columns - self._column))

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        """The number of a cell."""
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        if role not in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.ToolTipRole) or self._pages is None:
            return None
        if self._rows is None:
            table = self._pages.table(self._lead, self._row, self._row + PAGE)
            self._rows = table[:, self._column : self._column + PAGE].tolist()
        value = self._rows[index.row()][index.column()]
        return repr(value) if role == Qt.ItemDataRole.ToolTipRole else number_text(value)

    def headerData(  # noqa: N802
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> object:
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        return section + (self._column if orientation == Qt.Orientation.Horizontal else self._row)


class Pager(QWidget):
    """`rows 0 to 255 of 5,760`, and a way to the next; nothing where one page has all."""

    turned = Signal()
    """Another page is wanted: the one at `start`."""

    def __init__(self, what: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._what = what
        self.start = self._total = 0
        self._text = QLabel()
        self.back = QToolButton(text="<")
        self.forth = QToolButton(text=">")
        self.back.setAccessibleName(f"Earlier {what}")
        self.forth.setAccessibleName(f"Later {what}")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._text)
        layout.addStretch(1)
        layout.addWidget(self.back)
        layout.addWidget(self.forth)
        self.back.clicked.connect(lambda: self._turn(-PAGE))
        self.forth.clicked.connect(lambda: self._turn(PAGE))

    def show_total(self, total: int) -> None:
        """Begins anew with so many."""
        self._total, self.start = total, 0
        self.setVisible(total > PAGE)
        self._tell()

    def _turn(self, step: int) -> None:
        self.start = min(max(self.start + step, 0), (self._total - 1) // PAGE * PAGE)
        self._tell()
        self.turned.emit()

    def _tell(self) -> None:
        self._text.setStyleSheet(f"color: {theme.css(theme.current().faint)};")
        last = min(self.start + PAGE, self._total) - 1
        self._text.setText(f"{self._what} {self.start:,} to {last:,} of {self._total:,}")
        self.back.setEnabled(self.start > 0)
        self.forth.setEnabled(last + 1 < self._total)
