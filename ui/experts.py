"""The experts of a mixture in the last run: loads, tokens, who works with whom; and their weights' errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QRunnable, Qt, QThreadPool, QTimer, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import (
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QSplitter,
    QTableWidget,
    QTableWidgetItem,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from runtime.errors import StudioError
from runtime.experts import find_twin, loads_of, together, tokens_of, twin_errors
from runtime.files import load
from runtime.graph import Graph
from runtime.routing import mixtures
from ui import theme
from ui.editor import Editor
from ui.expert_views import LoadBars, TokenMap
from ui.heat_map import HeatMap
from ui.running import Runner
from ui.window import BOTTOM, Window

MOST_LISTED = 500
"""Tokens of an expert that are listed."""


class _Signals(QObject):
    done = Signal(object, object, str)
    """Whose errors, the errors of each expert, and why there are none."""


class _Compare(QRunnable):
    """Compares a layer's weights with those of its float twin, expert by expert."""

    def __init__(self, graph: Graph, node: str, other: Graph | Path | None, signals: _Signals) -> None:
        super().__init__()
        self._graph, self._node, self._other, self._signals = graph, node, other, signals
        self.cancelled = False

    def run(self) -> None:
        errors: list[dict[str, float]] = []
        reason = ""
        try:
            other = load(self._other) if isinstance(self._other, Path) else self._other or self._graph
            for error in twin_errors(self._graph, self._node, other, find_twin(self._graph, self._node, other)):
                if self.cancelled:
                    return
                errors.append(error)
        except (StudioError, OSError) as error:
            reason = str(error)
        with suppress(RuntimeError):  # the window may be gone
            self._signals.done.emit(self._node, errors, reason)


class ExpertsPane(QWidget):
    """One mixture at a time: the one that is selected on the canvas, else the chosen one."""

    title = "Experts"

    def __init__(self, runner: Runner, editor: Editor) -> None:
        super().__init__()
        self._runner, self._editor = runner, editor
        self._expert = -1
        self._files: dict[str, Path] = {}
        self._errors: dict[str, list[dict[str, float]]] = {}
        self._job: _Compare | None = None
        self._pool = QThreadPool(self)
        self._pool.setMaxThreadCount(1)
        self._signals = _Signals()
        self._signals.done.connect(self._compared)
        self._drawn: object = None
        self._make()
        self._later = QTimer(self, singleShot=True, interval=0)
        self._later.timeout.connect(self.follow)
        runner.changed.connect(self._later.start)
        runner.finished.connect(lambda result: self._later.start())
        editor.selection_changed.connect(self._follow_selection)
        editor.edited.connect(lambda edit: self._later.start())
        editor.document_changed.connect(self._leave)
        self.follow()

    def _make(self) -> None:
        self.node = QComboBox()
        self.node.setAccessibleName("Mixture")
        self.node.setMinimumContentsLength(14)
        self.words = QLabel()
        self.compare = QPushButton("Compare with float…")
        self.compare.setToolTip("How far the dequantized weights are from those of a MoE node in another file")
        top = QHBoxLayout()
        for widget in (self.node, self.words, self.compare):
            top.addWidget(widget)
        top.setStretch(1, 1)
        self.bars, self.map = LoadBars(), TokenMap()
        self.pairs = HeatMap()
        self.pairs.setAccessibleName("Tokens that two experts share")
        self.errors = LoadBars()
        self.errors.setAccessibleName("Error of each expert's weights")
        self.tabs = QTabWidget(documentMode=True)
        self.tabs.setAccessibleName("Shown of the mixture")
        self.tabs.addTab(self.map, "Tokens")
        self.tabs.addTab(self.pairs, "Together")
        self.tabs.addTab(self.errors, "Weights' error")
        left = QWidget()
        column = QVBoxLayout(left)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addWidget(self.bars, 2)
        column.addWidget(self.tabs, 3)
        self.about = QLabel(wordWrap=True)
        self.list = QTableWidget(0, 3)
        self.list.setHorizontalHeaderLabels(["Token", "Choice", "Weight"])
        self.list.verticalHeader().hide()
        self.list.verticalHeader().setDefaultSectionSize(20)
        self.list.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
        self.list.setSelectionBehavior(QTableWidget.SelectionBehavior.SelectRows)
        self.list.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.list.setAccessibleName("Tokens of the expert")
        right = QWidget()
        side = QVBoxLayout(right)
        side.setContentsMargins(6, 0, 0, 0)
        side.addWidget(self.about)
        side.addWidget(self.list)
        split = QSplitter()
        split.addWidget(left)
        split.addWidget(right)
        split.setSizes([760, 320])
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 4, 8, 4)
        layout.addLayout(top)
        layout.addWidget(split, 1)
        self.setFocusProxy(self.bars)
        for view in (self.bars, self.map, self.errors):
            view.chosen.connect(self.choose)
        self.node.currentTextChanged.connect(lambda text: self.follow())
        self.compare.clicked.connect(self.ask)

    # -- what is shown ------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        if self._job is not None:
            self._job.cancelled = True
        self._files.clear()
        self._errors.clear()
        self._expert = -1
        self._later.start()

    def _follow_selection(self, ids: Sequence[str]) -> None:
        if len(ids) == 1 and self.node.findText(ids[0]) >= 0:
            self.node.setCurrentText(ids[0])

    def follow(self) -> None:
        """Shows the mixtures that there are, and the chosen one."""
        nodes = mixtures(self._editor.graph)
        if nodes != [self.node.itemText(index) for index in range(self.node.count())]:
            chosen = self.node.currentText()
            self.node.blockSignals(True)
            self.node.clear()
            self.node.addItems(nodes)
            self.node.setCurrentIndex(max(0, self.node.findText(chosen)) if nodes else -1)
            self.node.blockSignals(False)
        self._show_strips()
        node, result = self.node.currentText(), self._runner.result
        routing = result.routings.get(node) if result is not None else None
        stale = self._runner.is_stale
        shown = (node, id(routing), stale, len(self._errors.get(node, ())), theme.current().name)
        if shown == self._drawn:
            return
        self._drawn = shown
        self.compare.setEnabled(bool(node))
        loads = loads_of(routing) if routing is not None else None
        self.bars.show_loads(loads)
        self.map.show_routing(routing)
        if routing is not None:
            self.pairs.show_matrix(together(routing))
        else:
            self.pairs.show_matrix(HeatMap().matrix)
        self._show_errors()
        if loads is None:
            empty = "The graph has no QMoE node." if not node else "Run the graph (F5) to see where tokens go."
            self.words.setText(empty)
        else:
            parts = [
                f"{loads.tokens:,} tokens, {loads.k} experts each",
                f"largest load {loads.imbalance:.2f} times the mean",
                f"evenness {loads.entropy:.1%}",
            ]
            if loads.starved:
                parts.append(f"starved: {', '.join(map(str, loads.starved[:12]))}")
            if stale:
                parts.append("from before the last edit")
            self.words.setText("  ·  ".join(parts))
        self.choose(self._expert if self._expert < self.bars.count else -1)

    def _show_strips(self) -> None:
        """Paints the loads below each mixture on the canvas."""
        result = self._runner.result
        routings = result.routings if result is not None else {}
        for id in mixtures(self._editor.graph):
            item = self._editor.canvas.item(id)
            loads = loads_of(routings[id]).shares if id in routings else ()
            if item is not None and item.loads != loads:
                item.loads = loads
                item.update()

    def choose(self, expert: int) -> None:
        """Shows an expert: its tokens, and how far its weights are from float ones."""
        self._expert = expert
        for view in (self.bars, self.map, self.errors):
            view.mark(expert)
        result, node = self._runner.result, self.node.currentText()
        routing = result.routings.get(node) if result is not None else None
        if routing is None or expert < 0:
            self.about.setText("Click an expert to see its tokens." if routing is not None else "")
            self.list.setRowCount(0)
            return
        tokens = tokens_of(routing, expert)
        lines = [f"<b>Expert {expert}</b>: {len(tokens):,} tokens"]
        if len(tokens) > MOST_LISTED:
            lines.append(f"the {MOST_LISTED} with the largest weights are listed")
        errors = self._errors.get(node, [])
        if expert < len(errors):
            lines.append(", ".join(f"{name} {_error_words(error)}" for name, error in errors[expert].items()))
        self.about.setText("<br>".join(lines))
        self.list.setRowCount(min(len(tokens), MOST_LISTED))
        for row, (token, rank, weight) in enumerate(tokens[:MOST_LISTED].tolist()):
            for column, text in enumerate((f"{token:,}", str(rank + 1), f"{weight:.4g}")):
                cell = QTableWidgetItem(text)
                cell.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                self.list.setItem(row, column, cell)

    # -- float twins --------------------------------------------------------------------------------------------------

    def ask(self) -> None:
        """Asks for a file with the float weights; a float node in this graph is taken without a question."""
        node = self.node.currentText()
        try:
            find_twin(self._editor.graph, node, self._editor.graph)
        except StudioError:
            name, _ = QFileDialog.getOpenFileName(
                self, f"Float weights of {node}", "", "Graphs (*.yaml *.yml *.png *.onnx)"
            )
            if name:
                self.compare_with(Path(name))
            return
        self.compare_with(None)

    def compare_with(self, file: Path | None) -> None:
        """Compares with a file, or with this graph, beside the window's work."""
        if self._job is not None:
            self._job.cancelled = True
        self.errors.show_values((), ())
        self.compare.setText("Comparing…")
        self.compare.setEnabled(False)
        self.tabs.setCurrentWidget(self.errors)
        self._job = _Compare(self._editor.graph.copy(), self.node.currentText(), file, self._signals)
        self._pool.start(self._job)

    def _compared(self, node: Any, errors: Any, reason: str) -> None:
        self._job = None
        self.compare.setText("Compare with float…")
        self.compare.setEnabled(True)
        if reason:
            self._editor.told.emit(reason)
            self.words.setText(reason)
            return
        self._errors[node] = errors
        self._drawn = None
        self.follow()

    def _show_errors(self) -> None:
        errors = self._errors.get(self.node.currentText(), [])
        values = [math.sqrt(sum(e * e for e in error.values()) / len(error)) for error in errors]
        words = [
            f"expert {number}: " + ", ".join(f"{name} {_error_words(e)}" for name, e in error.items())
            for number, error in enumerate(errors)
        ]
        self.errors.show_values(values, words)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        if event.key() == Qt.Key.Key_Escape:
            self._editor.canvas.viewer.setFocus()
        else:
            super().keyPressEvent(event)


def _error_words(error: float) -> str:
    if not error:
        return "equal"
    return f"{error:.2%} ({-20 * math.log10(error):.1f} dB)" if math.isfinite(error) else "infinitely far"


def install(window: Window) -> None:
    """Adds the pane."""
    pane = ExpertsPane(window.runner, window.editor)
    window.add_pane(pane, BOTTOM)
    window.closing.connect(pane._leave)
