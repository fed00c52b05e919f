"""The tensors of the selected node: statistics, histograms, numbers; other numbers from a file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PySide6.QtCore import QObject, QRunnable, Qt, QThreadPool, QTimer, Signal
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import (
    QComboBox,
    QFileDialog,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QSpinBox,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from runtime.arrays import FORMS, read_arrays
from runtime.drawing.words import number_text, type_text
from runtime.errors import StudioError
from runtime.graph import ABSENT, Set
from runtime.nodes.terminals import Initializer
from runtime.tensor_views import Analysis, Pages, TensorSource, TensorView, sources_of, views_at
from runtime.tensors import Tensor
from ui.editor import Editor
from ui.fields import ChoiceField
from ui.plots import Histogram, Strips
from ui.tables import Pager, TableModel

AT_ONCE = 1 << 21
"""Tensors of up to so many elements are gone through at once, larger ones beside the window's work."""
MAPPED_FROM = 1 << 28
"""Bytes from which on a file's array is not copied into memory."""


class _Done(QObject):
    ready = Signal(object, object, str)
    """What was asked, the analysis (or None), and why there is none."""


class _Work(QRunnable):
    def __init__(self, key: object, call: Callable[[], Analysis], done: _Done) -> None:
        super().__init__()
        self._key, self._call, self._done = key, call, done

    def run(self) -> None:
        try:
            answer, reason = self._call(), ""
        except Exception as error:  # a thread has nobody above it
            answer, reason = None, str(error) or type(error).__name__
        with suppress(RuntimeError):  # the window may be gone
            self._done.ready.emit(self._key, answer, reason)


class TensorsView(QScrollArea):
    """The tensors of one node; nothing is read of them while the tab is hidden."""

    def __init__(self, editor: Editor, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._editor = editor
        self._sources: list[TensorSource] = []
        self._views: list[TensorView | None] = [None]
        self._shown = (0, "")
        self._arrays: dict[str, np.ndarray] = {}
        self._analysis: Analysis | None = None
        self.pages: Pages | None = None
        self._pool = QThreadPool(self)
        self._pool.setMaxThreadCount(1)
        self._done = _Done()
        self._done.ready.connect(self._show_analysis)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._make()
        self._later = QTimer(self, singleShot=True, interval=0)
        self._later.timeout.connect(self.follow)
        editor.selection_changed.connect(lambda ids: self._later.start())
        editor.document_changed.connect(self._later.start)
        editor.edited.connect(self._hear)

    def _make(self) -> None:
        body = QWidget()
        layout = QVBoxLayout(body)
        layout.setContentsMargins(10, 8, 10, 8)
        layout.setSpacing(6)
        self.which = QComboBox()
        self.which.setAccessibleName("Tensor")
        self.view_as = QComboBox()
        self.view_as.setAccessibleName("Shown as")
        for box in (self.which, self.view_as):
            box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.message = QLabel(wordWrap=True)
        self.facts = QLabel(wordWrap=True)
        self.facts.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.facts.setAccessibleName("Statistics")
        self.histogram = Histogram()
        self.strips_title = QLabel()
        self.strips = Strips()
        self.slices = QWidget()
        self._slice_row = QHBoxLayout(self.slices)
        self._slice_row.setContentsMargins(0, 0, 0, 0)
        self.spins: list[QSpinBox] = []
        self.model = TableModel()
        self.table = QTableView()
        self.table.setModel(self.model)
        self.table.setAccessibleName("Values")
        self.table.setMinimumHeight(220)
        self.table.setFrameShape(QFrame.Shape.NoFrame)
        self.table.horizontalHeader().setDefaultSectionSize(74)
        self.table.verticalHeader().setDefaultSectionSize(20)
        self.row_pager, self.column_pager = Pager("rows"), Pager("columns")
        layout.addWidget(self.which)
        layout.addWidget(self.message)
        layout.addWidget(self._make_edits())
        layout.addWidget(self.view_as)
        layout.addWidget(self.facts)
        layout.addWidget(self.histogram)
        layout.addWidget(self.strips_title)
        layout.addWidget(self.strips)
        layout.addWidget(self.slices)
        layout.addWidget(self.table, 1)
        layout.addWidget(self.row_pager)
        layout.addWidget(self.column_pager)
        layout.addStretch(0)
        self.setWidget(body)
        self.which.activated.connect(lambda index: self._show_source())
        self.view_as.activated.connect(lambda index: self._show_view())
        self.strips.chosen.connect(self._choose_slice)
        for pager in (self.row_pager, self.column_pager):
            pager.turned.connect(self._show_table)

    def _make_edits(self) -> QWidget:
        """What changes an Initializer: its training type, its numbers."""
        self.edits = QWidget()
        layout = QVBoxLayout(self.edits)
        layout.setContentsMargins(0, 0, 0, 0)
        declared = Initializer.parameter("training_type")
        assert declared is not None
        self.training = ChoiceField(declared)
        self.training.setAccessibleName("training_type")
        self.training.setToolTip(declared.doc)
        self.training.committed.connect(self._set_training)
        self.replace_button = QPushButton("Replace…")
        self.replace_button.setToolTip(f"Other numbers, from a file ({', '.join(FORMS)})")
        self.replace_button.clicked.connect(self.ask_replace)
        row = QHBoxLayout()
        row.addWidget(self.training, 1)
        row.addWidget(self.replace_button)
        layout.addLayout(row)
        self.archive = QWidget(visible=False)
        inner = QHBoxLayout(self.archive)
        inner.setContentsMargins(0, 0, 0, 0)
        self.names = QComboBox()
        self.names.setAccessibleName("Array of the file")
        self.take_button = QPushButton("Take")
        self.take_button.clicked.connect(self._take_chosen)
        inner.addWidget(QLabel("Array"))
        inner.addWidget(self.names, 1)
        inner.addWidget(self.take_button)
        layout.addWidget(self.archive)
        return self.edits

    # -- following ----------------------------------------------------------------------------------------------------

    def _hear(self, edit: object) -> None:
        if not (isinstance(edit, Set) and edit.is_layout):
            self._later.start()

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802
        super().showEvent(event)
        self.follow()

    @property
    def source(self) -> TensorSource | None:
        """The tensor that is shown."""
        index = self.which.currentIndex()
        return self._sources[index] if 0 <= index < len(self._sources) else None

    def follow(self) -> None:
        """Shows the tensors of the one node that is selected, if the tab is seen."""
        if not self.isVisible():
            return
        graph = self._editor.graph
        ids = [id for id in self._editor.canvas.selected if id in graph.nodes]
        before = self.source
        self._sources = sources_of(graph, ids[0]) if len(ids) == 1 else []
        self.which.clear()
        self.which.addItems([self._title(source, ids[0]) for source in self._sources])
        for index, source in enumerate(self._sources):
            if before is not None and (source.owner, source.parameter) == (before.owner, before.parameter):
                self.which.setCurrentIndex(index)
        self.which.setVisible(len(self._sources) > 1)
        self._show_source()

    def choose(self, name: str) -> None:
        """Shows the tensor of a parameter of the selected node."""
        self.follow()
        for index, source in enumerate(self._sources):
            if source.parameter == name:
                self.which.setCurrentIndex(index)
        self._show_source()

    @staticmethod
    def _title(source: TensorSource, id: str) -> str:
        if source.owner == id:
            return f"{source.parameter} · {type_text(source.tensor.type)}"
        port = source.target.port if source.target is not None else ""
        return f"{port} · {type_text(source.tensor.type)}"

    def _editable(self) -> str:
        """The Initializer whose tensor is shown, or that is selected and has none yet."""
        source = self.source
        if source is not None:
            return source.owner if source.is_initializer else ""
        selected = self._editor.canvas.selected
        graph = self._editor.graph
        return selected[0] if len(selected) == 1 and graph.nodes[selected[0]].type == "Initializer" else ""

    def _show_source(self) -> None:
        source, graph = self.source, self._editor.graph
        owner = self._editable()
        self.edits.setVisible(bool(owner))
        if owner:
            self.training.show_value(graph.nodes[owner].parameters.get("training_type", ABSENT))
        if self._arrays and self.archive.property("owner") != owner:
            self._drop_archive()
        views: list[TensorView] = []
        if source is not None and source.target is not None and source.target.node in graph.nodes:
            views = views_at(graph, source.target, source.tensor.type)
        titles = ["values", *(view.title for view in views)]
        before = self.view_as.currentText()
        self._views = [None, *views]
        self.view_as.clear()
        self.view_as.addItems(titles)
        # Packed bytes say little; whoever has looked at them as codes goes on to do so.
        self.view_as.setCurrentIndex(titles.index(before) if before in titles else min(1, len(views)))
        self.view_as.setVisible(len(titles) > 1)
        self._show_view()

    def _show_view(self) -> None:
        source = self.source
        view = self._views[max(0, self.view_as.currentIndex())]
        key = (id(source.tensor), view.title if view is not None else "") if source is not None else (0, "")
        if self._shown == key and self.pages is not None:  # which keeps the tensor, and so its id
            return
        self._shown = key
        self.pages, self._analysis = None, None
        told = "" if source is not None else "Select a tensor, or a node that tensors are wired to."
        if source is None and self._editable():
            told = "No numbers yet: load them from a file."
        if source is not None:
            try:
                self.pages = Pages(source.tensor, view)
            except StudioError as error:
                told = str(error)
        self.message.setText(told)
        self.message.setVisible(bool(told))
        for widget in (self.facts, self.histogram, self.table):
            widget.setVisible(self.pages is not None)
        self.strips.show_strips(())
        self.strips_title.hide()
        self._make_slices()
        if self.pages is None or source is None:
            self.model.show(None)
            self.row_pager.show_total(0)
            self.column_pager.show_total(0)
            return
        self.row_pager.show_total(self.pages.rows)
        self.column_pager.show_total(self.pages.columns)
        self._show_table()
        self.facts.setText(self._size_text(source.tensor))
        self.histogram.show_counts((), None, None)
        if source.tensor.size * (8 // view.bits if view is not None else 1) <= AT_ONCE:
            self._show_analysis(key, self.pages.analyse(), "")
        else:
            self.facts.setText(f"{self._size_text(source.tensor)}\nCounting…")
            self._pool.clear()
            self._pool.start(_Work(key, self.pages.analyse, self._done))

    @staticmethod
    def _size_text(tensor: Tensor) -> str:
        text = f"{type_text(tensor.type)}, {_bytes_text(tensor.nbytes)}"
        return f"{text} in {tensor.file.name}" if tensor.file is not None else text

    def _show_analysis(self, key: object, analysis: object, reason: str) -> None:
        if key != self._shown:
            return
        source = self.source
        if source is None:
            return
        if not isinstance(analysis, Analysis):
            self.facts.setText(f"{self._size_text(source.tensor)}\n{reason}")
            return
        self._analysis = analysis
        summary = analysis.summary
        lines = [self._size_text(source.tensor)]
        if summary.minimum is not None and summary.mean is not None:
            lines.append(
                f"from {number_text(summary.minimum)} to {number_text(summary.maximum)}, "
                f"mean {number_text(float(f'{summary.mean:.5g}'))}, "
                f"deviation {number_text(float(f'{summary.deviation or 0.0:.5g}'))}"
            )
        if summary.size:
            others = f", {summary.nans:,} NaN, {summary.infinities:,} infinite" if summary.element.is_float else ""
            lines.append(f"{summary.zeros:.1%} zeros{others}")
        self.facts.setText("\n".join(lines))
        self.table.horizontalHeader().setDefaultSectionSize(44 if analysis.by_code else 74)
        self.histogram.show_counts(analysis.histogram, analysis.low, analysis.high, analysis.by_code)
        self.strips.show_strips(analysis.strips)
        self.strips_title.setVisible(bool(analysis.strips))
        self.strips_title.setText(f"Histogram of each {self._slice_word()}")

    def _slice_word(self) -> str:
        """What the first axis counts: experts, where the port that the tensor is wired to says so."""
        source = self.source
        graph = self._editor.graph
        if source is None or source.target is None:
            return "slice"
        node_type = graph.node_type(source.target.node)
        port = node_type.input_port(source.target.port) if node_type is not None else None
        told = f"{port.shape} {port.doc} {port.name}" if port is not None else ""
        return "expert" if "expert" in told else "slice"

    # -- numbers ------------------------------------------------------------------------------------------------------

    def _make_slices(self) -> None:
        while self._slice_row.count():
            taken = self._slice_row.takeAt(0)
            widget = taken.widget() if taken is not None else None
            if widget is not None:
                widget.deleteLater()
        self.spins = []
        lead = self.pages.lead if self.pages is not None else ()
        self.slices.setVisible(bool(lead))
        if not lead:
            return
        self._slice_row.addWidget(QLabel("Table ["))
        for axis, length in enumerate(lead):
            spin = QSpinBox(maximum=max(0, length - 1))
            spin.setAccessibleName(f"Index on axis {axis}")
            spin.valueChanged.connect(self._on_slice)
            self.spins.append(spin)
            self._slice_row.addWidget(spin)
        self._slice_row.addWidget(QLabel(", :, : ]"))
        self._slice_row.addStretch(1)

    def _choose_slice(self, index: int) -> None:
        if self._analysis is not None and index < len(self._analysis.strips):
            self.histogram.show_beside(self._analysis.strips[index])
        if self.spins:
            self.spins[0].setValue(index)

    def _on_slice(self) -> None:
        if self.strips.strips and self.strips.current != self.spins[0].value():
            self.strips.choose(self.spins[0].value())
        self._show_table()

    def _show_table(self) -> None:
        lead = tuple(spin.value() for spin in self.spins)
        empty = self.pages is None or any(not length for length in self.pages.lead)
        self.model.show(None if empty else self.pages, lead, self.row_pager.start, self.column_pager.start)

    # -- edits --------------------------------------------------------------------------------------------------------

    def _set_training(self, value: object, merge: str) -> None:
        owner = self._editable()
        if owner:
            self._editor.set_parameter(owner, "training_type", value)

    def ask_replace(self) -> None:
        """Asks for a file of arrays."""
        endings = " ".join(f"*{form}" for form in FORMS)
        name, _ = QFileDialog.getOpenFileName(self, "Replace the numbers", "", f"Arrays ({endings})")
        if name:
            self.replace(Path(name))

    def replace(self, path: Path) -> None:
        """Takes the numbers from a file: its only array, else the one of the tensor's name, else the one chosen."""
        owner = self._editable()
        if not owner:
            return
        try:
            arrays = read_arrays(path)
        except StudioError as error:
            self._editor.told.emit(str(error))
            return
        own = str(self._editor.graph.nodes[owner].parameters.get("name") or owner)
        if len(arrays) == 1:
            self._take(owner, next(iter(arrays.values())))
        elif own in arrays:
            self._take(owner, arrays[own])
        elif not arrays:
            self._editor.told.emit(f"{path.name} holds no arrays.")
        else:
            self._arrays = arrays
            self.archive.setProperty("owner", owner)
            self.names.clear()
            self.names.addItems([f"{name} · {array.dtype}{list(array.shape)}" for name, array in arrays.items()])
            self.archive.setVisible(True)
            self.names.setFocus()

    def _take_chosen(self) -> None:
        owner, index = self.archive.property("owner"), self.names.currentIndex()
        arrays = list(self._arrays.values())
        if owner in self._editor.graph.nodes and 0 <= index < len(arrays):
            self._take(owner, arrays[index])
        self._drop_archive()

    def _drop_archive(self) -> None:
        self._arrays = {}
        self.archive.setVisible(False)

    def _take(self, owner: str, array: np.ndarray) -> None:
        try:
            tensor = Tensor.from_array(np.array(array) if array.nbytes < MAPPED_FROM else array)
        except TypeError as error:
            self._editor.told.emit(f"These numbers cannot be a tensor: {error}.")
            return
        label = f"Replace the numbers of {owner}"
        graph = self._editor.graph
        if self._editor.edit(label, lambda: graph.apply(Set(owner, "parameters", "tensor", tensor))):
            self._editor.told.emit(f"{owner} is {type_text(tensor.type)} now.")


def _bytes_text(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
