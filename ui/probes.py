"""The values of the last run: outputs, pinned probes, what the selected node gives, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QBrush, QKeyEvent
from PySide6.QtWidgets import QHeaderView, QSplitter, QTreeWidget, QTreeWidgetItem, QVBoxLayout, QWidget

from runtime.drawing.words import number_text
from runtime.editing import add_probe, probes_of, remove_probe
from runtime.graph import PortRef
from runtime.summaries import Summary, summarize
from ui import theme
from ui.running import Runner
from ui.values import ValueView
from ui.window import BOTTOM, Window

ENTRY = Qt.ItemDataRole.UserRole
COLUMNS = ("Value", "Type", "Smallest", "Mean", "Largest", "Not finite")


@dataclass(frozen=True)
class Entry:
    """A line: where it comes from, and what the run gave there, as far as it is there."""

    group: str
    name: str
    source: PortRef | None
    value: Any = None
    summary: Summary | None = None


class ProbesPane(QWidget):
    """A list of values, and the chosen one at large. Delete ends a probe; P probes what is chosen."""

    title = "Probes"

    def __init__(self, runner: Runner, window: Window) -> None:
        super().__init__()
        self._runner, self._editor, self._window = runner, window.editor, window
        self.list = QTreeWidget()
        self.list.setHeaderLabels(list(COLUMNS))
        self.list.setAccessibleName("Values")
        self.list.setRootIsDecorated(False)
        self.list.setIndentation(12)
        self.list.setUniformRowHeights(True)
        self.list.header().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.list.header().setStretchLastSection(True)
        self.value = ValueView()
        split = QSplitter()
        split.addWidget(self.list)
        split.addWidget(self.value)
        split.setSizes([620, 480])
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(split)
        self.setFocusProxy(self.list)
        self.list.currentItemChanged.connect(lambda now, before: self._show_chosen())
        self.list.itemActivated.connect(lambda row: self._reveal(row))
        self._later = QTimer(self, singleShot=True, interval=0)
        self._later.timeout.connect(self.show_entries)
        for signal in (runner.changed, runner.finished):
            signal.connect(lambda *_: self._later.start())
        editor = self._editor
        editor.selection_changed.connect(lambda ids: self._later.start())
        editor.edited.connect(lambda edit: self._later.start())
        editor.document_changed.connect(self._later.start)
        self._drawn: list[Any] = []
        self.show_entries()

    def entries(self) -> Iterator[Entry]:
        """The lines, group by group."""
        graph, result = self._editor.graph, self._runner.result
        summaries = result.summaries if result is not None else {}
        outputs = result.outputs if result is not None else {}
        for id, state in graph.nodes.items():
            if state.type == "Output":
                name = str(state.parameters.get("name") or id)
                source = graph.wires.get(PortRef(id, "value"))
                summary = summaries.get(str(source)) if name in outputs else None
                yield Entry("Outputs", name, source, outputs.get(name), summary)
        values = result.probes if result is not None else {}
        for number, port in enumerate(probes_of(graph), 1):
            yield Entry("Probes", f"{number}  {port}", port, values.get(str(port)), summaries.get(str(port)))
        for id in self._editor.canvas.selected[:4]:
            for name in self._outputs(id):
                port = PortRef(id, name)
                yield Entry("Selected", str(port), port, values.get(str(port)), summaries.get(str(port)))
        if result is not None:
            gradients = result.gradient_summaries
            for text, value in result.gradient_probes.items():
                yield Entry("Gradients", text, PortRef.parse(text), value, gradients.get(text))
            for name, value in result.gradients.items():
                yield Entry("Gradients", name, None, value, gradients.get(name))

    def _outputs(self, id: str) -> list[str]:
        item = self._editor.canvas.item(id)
        return [port.name for port in item.outputs] if item is not None else []

    def show_entries(self) -> None:
        """Lists what there is; the chosen line stays chosen."""
        entries = list(self.entries())
        marks = [(e.group, e.name, id(e.value), id(e.summary), self._is_stale(e)) for e in entries]
        if marks == self._drawn:
            return
        self._drawn = marks
        chosen = self.chosen
        self.list.clear()
        look = theme.current()
        faint, error = QBrush(theme.colour(look.faint)), QBrush(theme.colour(look.error))
        groups: dict[str, QTreeWidgetItem] = {}
        for entry in entries:
            if entry.group not in groups:
                group = groups[entry.group] = QTreeWidgetItem([entry.group])
                group.setFlags(Qt.ItemFlag.ItemIsEnabled)
                group.setForeground(0, faint)
                self.list.addTopLevelItem(group)
                group.setExpanded(True)
                group.setFirstColumnSpanned(True)
            row = QTreeWidgetItem([entry.name, *_columns(entry)])
            row.setData(0, ENTRY, entry)
            if self._is_stale(entry) or (entry.summary is None and entry.value is None):
                for column in range(len(COLUMNS)):
                    row.setForeground(column, faint)
            if row.text(5):
                row.setForeground(5, error)
            groups[entry.group].addChild(row)
            if chosen is not None and (chosen.group, chosen.name) == (entry.group, entry.name):
                self.list.setCurrentItem(row)
        if self.list.currentItem() is None:
            first = next((g.child(0) for g in groups.values() if g.childCount()), None)
            if first is not None:
                self.list.setCurrentItem(first)
        self._show_chosen()
        self._mark_probes()

    def _is_stale(self, entry: Entry) -> bool:
        if entry.group == "Gradients":
            return self._runner.is_stale
        return entry.source is not None and self._runner.is_stale_at(entry.source)

    def _mark_probes(self) -> None:
        """Writes the numbers of the probes beside their ports."""
        numbers: dict[str, dict[str, int]] = {}
        for number, port in enumerate(probes_of(self._editor.graph), 1):
            numbers.setdefault(port.node, {})[port.port] = number
        for id in self._editor.graph.nodes:
            item = self._editor.canvas.item(id)
            if item is not None and item.probes != numbers.get(id, {}):
                item.probes = numbers.get(id, {})
                item.update()

    @property
    def chosen(self) -> Entry | None:
        """The chosen line."""
        row = self.list.currentItem()
        found = row.data(0, ENTRY) if row is not None else None
        return found if isinstance(found, Entry) else None

    def _show_chosen(self) -> None:
        entry = self.chosen
        if entry is None:
            self.value.show_value(None, None, self._hint())
            return
        note = "From before the last edit." if self._is_stale(entry) else ""
        summary = entry.summary
        if summary is None and hasattr(entry.value, "dtype"):
            summary = summarize(entry.value)
        if entry.value is None and summary is None:
            note = "No value yet: run the graph (F5)."
        elif entry.value is None:
            note = "P probes it: then the next run brings its numbers."
        self.value.show_value(entry.value, summary, note)

    def _hint(self) -> str:
        return "" if self._runner.result is not None else "Run the graph (F5) to see values."

    def _reveal(self, row: QTreeWidgetItem) -> None:
        entry = row.data(0, ENTRY)
        if isinstance(entry, Entry) and entry.source is not None:
            self._editor.canvas.reveal(entry.source.node)
            self._editor.canvas.viewer.setFocus()

    def toggle_probe(self) -> None:
        """Probes what is chosen here, or the first output of the selected node; ends the probe if there is one."""
        entry = self.chosen
        source = entry.source if entry is not None and self.list.hasFocus() else None
        if source is None:
            ports = [PortRef(id, name) for id in self._editor.canvas.selected for name in self._outputs(id)]
            source = ports[0] if ports else None
        if source is None:
            self._editor.told.emit("Select a node to probe.")
            return
        graph, port = self._editor.graph, source
        if port in probes_of(graph):
            self._editor.edit(f"Unprobe {port}", lambda: remove_probe(graph, port))
        else:
            self._editor.edit(f"Probe {port}", lambda: add_probe(graph, port))

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        entry = self.chosen
        if event.key() == Qt.Key.Key_Delete and entry is not None and entry.group == "Probes":
            self.toggle_probe()
        elif event.key() == Qt.Key.Key_Escape:
            self._editor.canvas.viewer.setFocus()
        else:
            super().keyPressEvent(event)


def _columns(entry: Entry) -> list[str]:
    summary = entry.summary
    if summary is None:
        return [""] * 5
    numbers = [summary.minimum, summary.mean, summary.maximum]
    shown = ["" if n is None else number_text(float(f"{n:.4g}") if isinstance(n, float) else n) for n in numbers]
    wrong = summary.nans + summary.infinities
    shape = ", ".join(map(str, summary.shape))
    return [f"{summary.element} [{shape}]", *shown, f"{wrong:,}" if wrong else ""]


def install(window: Window) -> None:
    """Adds the pane and its command."""
    pane = ProbesPane(window.runner, window)
    window.add_pane(pane, BOTTOM)
    window.command("Run", "Probe", pane.toggle_probe, "P")
