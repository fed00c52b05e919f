"""One value of a run, to look at: as numbers, as a heat map, as a histogram."""

from __future__ import annotations

from typing import Any

import numpy as np
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QSpinBox,
    QTableView,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from runtime.jobs import Excerpt
from runtime.summaries import Summary
from runtime.tensor_views import Pages
from runtime.tensors import Tensor
from ui.heat_map import HeatMap
from ui.plots import Histogram
from ui.tables import Pager, TableModel
from ui.wire_tip import summary_html


class ValueView(QWidget):
    """Shows an array, or the first rows of one, with its summary above."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._pages: Pages | None = None
        self.facts = QLabel(wordWrap=True)
        self.slices = QWidget()
        self._slice_row = QHBoxLayout(self.slices)
        self._slice_row.setContentsMargins(0, 0, 0, 0)
        self.spins: list[QSpinBox] = []
        self.model = TableModel()
        self.table = QTableView()
        self.table.setModel(self.model)
        self.table.setFrameShape(QFrame.Shape.NoFrame)
        self.table.setAccessibleName("Values")
        self.table.horizontalHeader().setDefaultSectionSize(74)
        self.table.verticalHeader().setDefaultSectionSize(20)
        self.rows, self.columns = Pager("rows"), Pager("columns")
        sheet = QWidget()
        layout = QVBoxLayout(sheet)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.table)
        layout.addWidget(self.rows)
        layout.addWidget(self.columns)
        self.map, self.histogram = HeatMap(), Histogram()
        self.tabs = QTabWidget(documentMode=True)
        self.tabs.setAccessibleName("Shown as")
        for widget, title in ((sheet, "Table"), (self.map, "Heat map"), (self.histogram, "Histogram")):
            self.tabs.addTab(widget, title)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 4, 4, 2)
        layout.setSpacing(3)
        for widget in (self.facts, self.slices, self.tabs):
            layout.addWidget(widget)
        for pager in (self.rows, self.columns):
            pager.turned.connect(self._show_page)
        self.show_value(None, None)

    def show_value(self, value: Any, summary: Summary | None, note: str = "") -> None:
        """Shows a value of a run; None shows nothing."""
        lines = [note] if note else []
        if isinstance(value, Excerpt):
            lines.append(f"The first {len(value.first):,} of {value.shape[0]:,} rows are here; the numbers are of all.")
            value = value.first
        array = value if isinstance(value, np.ndarray) and value.dtype.kind not in "OUS" else None
        if summary is not None:
            lines.append(summary_html(summary))
        if array is None and value is not None:
            lines.append(str(value)[:400])
        self.facts.setText("<br>".join(lines))
        self.facts.setVisible(bool(lines))
        self._pages = Pages(Tensor.from_array(array)) if array is not None else None
        self.tabs.setVisible(array is not None)
        self._make_slices()
        if self._pages is not None:
            self.rows.show_total(self._pages.rows)
            self.columns.show_total(self._pages.columns)
        if summary is not None:
            self.histogram.show_counts(summary.histogram, summary.minimum, summary.maximum)
        self._show_page()

    def _make_slices(self) -> None:
        before = [spin.value() for spin in self.spins]
        while self._slice_row.count():
            taken = self._slice_row.takeAt(0)
            widget = taken.widget() if taken is not None else None
            if widget is not None:
                widget.deleteLater()
        self.spins = []
        lead = self._pages.lead if self._pages is not None else ()
        self.slices.setVisible(bool(lead))
        if not lead:
            return
        self._slice_row.addWidget(QLabel("Of the axes before the last two"))
        for axis, length in enumerate(lead):
            spin = QSpinBox(maximum=max(0, length - 1))
            spin.setAccessibleName(f"Index on axis {axis}")
            if axis < len(before):
                spin.setValue(before[axis])  # the same place in a run after the next
            spin.valueChanged.connect(self._show_page)
            self.spins.append(spin)
            self._slice_row.addWidget(spin)
        self._slice_row.addStretch(1)

    def _show_page(self) -> None:
        pages, lead = self._pages, tuple(spin.value() for spin in self.spins)
        if pages is None or any(not length for length in pages.lead):
            self.model.show(None)
            self.map.show_matrix(np.zeros((0, 0)))
            return
        self.model.show(pages, lead, self.rows.start, self.columns.start)
        self.map.show_matrix(pages.table(lead, 0, pages.rows))
