"""The experts of a mixture in the last run: loads, tokens, who works with whom; and their weights' errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import (
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QScrollBar,
    QSizePolicy,
    QSplitter,
    QTableView,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from runtime.errors import StudioError
from runtime.experts import find_twin, loads_of, scale_ranges, together, tokens_of
from runtime.graph import PortRef
from runtime.routing import Routing, mixtures
from runtime.twins import beside
from ui.comparing import Comparison, Comparisons, basis, is_same
from ui.editor import Editor
from ui.expert_bars import ErrorBars, LoadBars, errors_text
from ui.expert_columns import Columns
from ui.expert_maps import PairMap, TokenMap
from ui.expert_tokens import TokensModel
from ui.running import Runner
from ui.window import BOTTOM, Window

MOST_NAMED = 12
"""Starved experts that are named."""


class ExpertsPane(QWidget):
    """One mixture at a time: the one that is selected on the canvas, else the chosen one."""

    title = "Experts"

    def __init__(self, runner: Runner, editor: Editor) -> None:
        super().__init__()
        self._runner, self._editor = runner, editor
        self._expert = -1
        self._drawn: tuple[str, Routing | None, bool] | None = None
        self.comparisons = Comparisons(self)
        self._make()
        self._later = QTimer(self, singleShot=True, interval=0)
        self._later.timeout.connect(self.follow)
        runner.changed.connect(self._later.start)
        runner.finished.connect(lambda result: self._later.start())
        editor.selection_changed.connect(self._follow_selection)
        editor.edited.connect(lambda edit: self._later.start())
        editor.document_changed.connect(self._leave)
        self.comparisons.changed.connect(self._later.start)
        self.follow()

    def _make(self) -> None:
        self.node = QComboBox()
        self.node.setAccessibleName("Mixture")
        self.node.setMinimumContentsLength(14)
        self.words = QLabel()
        self.words.setAccessibleName("Balance of the experts")
        self.words.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.words.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.compare = QPushButton("Compare with float…")
        self.compare.setToolTip("How far the dequantized weights are from those of a MoE node in another file")
        top = QHBoxLayout()
        for widget in (self.node, self.words, self.compare):
            top.addWidget(widget)
        top.setStretch(1, 1)
        self.bars, self.map = LoadBars(), TokenMap()
        self.pairs, self.errors = PairMap(), ErrorBars()
        self.slide = QScrollBar(Qt.Orientation.Vertical)
        self.slide.setAccessibleName("Tokens that are shown")
        policy = self.slide.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        self.slide.setSizePolicy(policy)
        tokens = QWidget()
        beside = QHBoxLayout(tokens)
        beside.setContentsMargins(0, 0, 0, 0)
        beside.setSpacing(0)
        beside.addWidget(self.map, 1)
        beside.addWidget(self.slide)
        self.tabs = QTabWidget(documentMode=True)
        self.tabs.setAccessibleName("Shown of the mixture")
        self.tabs.addTab(tokens, "Tokens")
        self.tabs.addTab(self.pairs, "Together")
        self.tabs.addTab(self.errors, "Weights' error")
        left = QWidget()
        column = QVBoxLayout(left)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        above = QHBoxLayout()
        above.addWidget(self.bars)
        above.addSpacing(self.slide.sizeHint().width())  # so that bars stand above the map's columns
        above.setSpacing(0)
        column.addLayout(above, 2)
        column.addWidget(self.tabs, 3)
        self.about = QLabel(wordWrap=True)
        self.model = TokensModel()
        self.list = QTableView()
        self.list.setModel(self.model)
        self.list.verticalHeader().hide()
        self.list.verticalHeader().setDefaultSectionSize(20)
        self.list.setSelectionBehavior(QTableView.SelectionBehavior.SelectRows)
        self.list.setSelectionMode(QTableView.SelectionMode.SingleSelection)
        self.list.setTabKeyNavigation(False)
        self.list.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.list.setAccessibleName("Tokens of the expert")
        self.list.setToolTip("Enter or a double click shows the token in the map")
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
        for view in self._views():
            view.chosen.connect(self.choose)
        self.map.moved.connect(self._follow_map)
        self.slide.valueChanged.connect(lambda first: self.map.look_at(first, self.map.shown))
        self.list.activated.connect(lambda index: self._reveal(self.model.token(index.row())))
        self.node.currentTextChanged.connect(lambda text: self.follow())
        self.tabs.currentChanged.connect(lambda index: self._compare_unasked())
        self.compare.clicked.connect(self.ask)

    def _views(self) -> tuple[Columns, ...]:
        return (self.bars, self.map, self.pairs, self.errors)

    # -- what is shown ------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        self.comparisons.clear()
        self._expert = -1
        self._later.start()

    @property
    def routing(self) -> Routing | None:
        """Where the last run's tokens went in the mixture that is shown."""
        result = self._runner.result
        return result.routings.get(self.node.currentText()) if result is not None else None

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
        self._show_comparison()
        routing, stale = self.routing, self._runner.is_stale
        shown = (self.node.currentText(), routing, stale)
        if self._drawn is None or shown[0] != self._drawn[0] or routing is not self._drawn[1]:
            self.map.show_routing(routing)
            self.bars.show_loads(loads_of(routing) if routing is not None else None)
            if routing is not None:
                self.pairs.show_pairs(together(routing), routing.experts.shape[1])
            else:
                self.pairs.show_pairs(np.zeros((0, 0), np.int64), 0)
            self.choose(self._expert if self._expert < self._count() else -1)
        self._drawn = shown
        self.words.setText(self._words())
        self.words.setToolTip(self.words.text())

    def _count(self) -> int:
        return max(view.count for view in self._views())

    def _words(self) -> str:
        """How evenly the experts are used."""
        if self.routing is None:
            has_mixture = bool(self.node.currentText())
            return "Run the graph (F5) to see where tokens go." if has_mixture else "The graph has no QMoE node."
        loads = loads_of(self.routing)
        parts = [
            f"{loads.tokens:,} tokens, {loads.k} {'expert' if loads.k == 1 else 'experts'} each",
            f"largest load {loads.imbalance:.2f} times the mean",
            f"evenness {loads.entropy:.1%}",
        ]
        if loads.starved:
            more = "…" if len(loads.starved) > MOST_NAMED else ""
            named = ", ".join(map(str, loads.starved[:MOST_NAMED]))
            parts.append(f"{len(loads.starved)} of {len(loads.counts)} starved: {named}{more}")
        if self._runner.is_stale:
            parts.insert(0, "from before the last edit")
        return "  ·  ".join(parts)

    def _show_strips(self) -> None:
        """Paints the loads below each mixture on the canvas."""
        result = self._runner.result
        routings = result.routings if result is not None else {}
        for id in mixtures(self._editor.graph):
            item = self._editor.canvas.item(id)
            if item is None:
                continue
            loads = loads_of(routings[id]).shares if id in routings else ()
            stale = self._runner.is_stale_at(PortRef(id, "output"))
            if (item.loads, item.loads_are_stale) != (loads, stale):
                item.loads, item.loads_are_stale = loads, stale
                item.update()

    def _follow_map(self) -> None:
        """Keeps the scroll bar where the map is."""
        view = self.map
        self.slide.blockSignals(True)
        self.slide.setRange(0, max(0, view.tokens - view.shown))
        self.slide.setPageStep(max(1, view.shown))
        self.slide.setSingleStep(max(1, view.shown // 8))
        self.slide.setValue(view.first)
        self.slide.blockSignals(False)
        self.slide.setVisible(view.shown < view.tokens)

    def _reveal(self, token: int) -> None:
        self.tabs.setCurrentIndex(0)
        self.map.reveal(token)
        self.map.setFocus()

    def choose(self, expert: int) -> None:
        """Shows an expert: its tokens, its scales, and how far its weights are from float ones."""
        self._expert = expert
        for view in self._views():
            view.mark(expert)
        routing = self.routing
        tokens = tokens_of(routing, expert) if routing is not None and 0 <= expert < routing.count else None
        self.model.show(tokens)
        self.list.setVisible(tokens is not None)
        self.about.setText(self._about(expert, tokens))

    def _about(self, expert: int, tokens: np.ndarray | None) -> str:
        node = self.node.currentText()
        if expert < 0 or node not in self._editor.graph.nodes:
            return "Click an expert to see its tokens." if self._count() else ""
        of = f": {len(tokens):,} {'token' if len(tokens) == 1 else 'tokens'}" if tokens is not None else ""
        if tokens is not None and expert in self.bars.low:
            of += ", starved"
        lines = [f"<b>Expert {expert}</b>{of}"]
        ranges = scale_ranges(self._editor.graph, node, expert)
        if ranges:
            texts = (f"{port.replace('_', ' ')} {low:.3g} to {high:.3g}" for port, (low, high) in ranges.items())
            lines.append("; ".join(texts))
        comparison = self.comparisons.of(node)
        if comparison is not None and expert < len(comparison.errors):
            lines.append(f"error: {errors_text(comparison.errors[expert])}")
        return "<br>".join(lines)

    # -- float twins --------------------------------------------------------------------------------------------------

    def ask(self) -> None:
        """Compares with the float node in this graph or what the node remembers, else asks for a file; or stops.

        What has been compared and edited since is compared with the same again.
        """
        node = self.node.currentText()
        known = self.comparisons.of(node)
        if self.comparisons.is_busy:
            self.comparisons.stop()
        elif known is not None and known.errors and self._is_stale(known):
            self.compare_with(known.file)
        elif self._has_twin():
            self.compare_with(None)
        elif (remembered := beside(self._editor.graph, node, self._editor.path)) is not None:
            self.compare_with(remembered)
        else:
            name, _ = QFileDialog.getOpenFileName(
                self, f"Float weights of {node}", "", "Graphs (*.yaml *.yml *.png *.onnx)"
            )
            if name:
                self.compare_with(Path(name))

    def compare_with(self, file: Path | None) -> None:
        """Compares with a file, or with this graph, beside the window's work."""
        self.tabs.setCurrentWidget(self.errors)
        self.comparisons.start(self._editor.graph, self.node.currentText(), file)

    def _has_twin(self) -> bool:
        graph = self._editor.graph
        try:
            find_twin(graph, self.node.currentText(), graph)
        except StudioError:
            return False
        return True

    def _compare_unasked(self) -> None:
        """Compares with a float node in this graph when its errors are looked at for the first time."""
        node = self.node.currentText()
        looked_at = self.tabs.currentWidget() is self.errors and self.errors.isVisible()
        if looked_at and node and not self.comparisons.is_busy and not self.comparisons.of(node) and self._has_twin():
            self.comparisons.start(self._editor.graph, node, None)

    def _is_stale(self, comparison: Comparison) -> bool:
        return not is_same(comparison.basis, basis(self._editor.graph, comparison.node))

    def _show_comparison(self) -> None:
        node = self.node.currentText()
        comparison = self.comparisons.of(node) if node else None
        stale = comparison is not None and self._is_stale(comparison)
        self.compare.setEnabled(bool(node))
        text = "Compare again" if stale and comparison is not None and comparison.errors else "Compare with float…"
        self.compare.setText("Stop comparing" if self.comparisons.is_busy else text)
        if comparison is None:
            self.errors.show_errors(())
        else:
            self.errors.show_errors(comparison.errors, comparison.experts, self._told(comparison, stale), stale)
        self.errors.mark(self._expert)
        if self._drawn is not None:
            self.about.setText(self._about(self._expert, self.model.tokens))

    @staticmethod
    def _told(comparison: Comparison, stale: bool) -> str:
        """What is said beside the errors, or instead of them."""
        if comparison.reason:
            return comparison.reason
        with_what = comparison.file.name if comparison.file is not None else "this graph"
        if not comparison.is_ended:
            return f"comparing with {with_what}: {len(comparison.errors)} of {comparison.experts} experts"
        return f"against {with_what}" + (", from before the last edit" if stale else "")

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        if event.key() == Qt.Key.Key_Escape:
            self._editor.canvas.viewer.setFocus()
        else:
            super().keyPressEvent(event)


def install(window: Window) -> None:
    """Adds the pane."""
    pane = ExpertsPane(window.runner, window.editor)
    window.add_pane(pane, BOTTOM)
    window.closing.connect(pane.comparisons.stop)
