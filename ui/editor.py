"""What an editor window is about: a document, its file, its canvas, and the signals that every pane listens to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, Signal

from runtime.errors import Finding, Severity
from runtime.files import load, save
from runtime.graph import Edit, Graph, Set
from ui.canvas.mirror import Canvas, Prepared


class Editor(QObject):
    """One open document. Panes are given it, read `graph`, edit with `edit`, and hear of everything by signals."""

    document_changed = Signal()
    """Another document is shown."""
    edited = Signal(object)
    """The document heard an edit (of undo and redo too)."""
    checked = Signal(list)
    """The findings after the last edits, and those of the last run."""
    selection_changed = Signal(list)
    """The ids of the selected nodes."""
    title_changed = Signal()
    """The file, or whether it has been changed."""
    told = Signal(str)
    """A sentence for the status bar."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.canvas = Canvas(self)
        self.graph = Graph()
        self.path: Path | None = None
        self._stamp: tuple[int, int] | None = None
        self.findings: list[Finding] = []
        self.reported: list[Finding] = []
        self._end_listening: Callable[[], None] = lambda: None
        self._changed = False
        self.canvas.checked.connect(self._on_checked)
        self.canvas.selection_changed.connect(self.selection_changed)
        self.canvas.edit_failed.connect(self.told)
        self.canvas.viewer.refused.connect(self.told)
        self.show(Graph("untitled"))

    # -- the document -------------------------------------------------------------------------------------------------

    @property
    def is_changed(self) -> bool:
        """Whether the document differs from its file."""
        return self._changed

    @property
    def name(self) -> str:
        """What the document is called: its file's name, or its own."""
        return self.path.name if self.path is not None else self.graph.name or "untitled"

    def show(
        self, graph: Graph, path: Path | None = None, *, changed: bool = False, prepared: Prepared | None = None
    ) -> None:
        """Shows another document, with what `ui.canvas.mirror.prepare` made of it if that was done before."""
        self._end_listening()
        self.graph, self.path, self._changed = graph, path, changed
        self.keep_over_file()
        self.reported = []
        self.canvas.show(graph, prepared)
        # Panes hear of an edit after the canvas has drawn it.
        self._end_listening = graph.listen(self._hear)
        self.document_changed.emit()
        self.title_changed.emit()
        self.canvas.fit()

    def open(self, path: Path) -> list[Finding]:
        """Opens a file and returns what is worth knowing of it. FileError, and the document stays, if it is wrong."""
        notes: list[Finding] = []
        stamp = _stamp(path)
        self.show(load(path, notes), path)
        self._stamp = stamp  # what was written while it was being read is not what is shown
        return notes

    def save(self, path: Path) -> list[Finding]:
        """Writes the document to a file and makes that its file. FileError or GraphError if that cannot be done.

        A new file's name becomes the document's only as far as the window's title goes.
        """
        notes = save(self.graph, path)
        self.path, self._changed = path, False
        self.keep_over_file()
        self.title_changed.emit()
        return notes

    def is_file_changed(self) -> bool:
        """Whether something else has written or removed the document's file since it was read or written here."""
        return _stamp(self.path) != self._stamp

    def keep_over_file(self) -> None:
        """Takes the file as it is now for known: saving replaces it."""
        self._stamp = _stamp(self.path)

    def _hear(self, edit: Edit) -> None:
        was, self._changed = self._changed, True
        self.edited.emit(edit)
        if not was:
            self.title_changed.emit()

    def report(self, findings: Iterable[Finding]) -> None:
        """Lists what the last run found, beside the findings of the check, until the next run."""
        self.reported = list(findings)
        self.checked.emit([*self.findings, *self.reported])

    def _on_checked(self, findings: list[Finding]) -> None:
        self.findings = findings
        self.checked.emit([*findings, *self.reported])

    @property
    def errors(self) -> list[Finding]:
        """The findings that keep the graph from running."""
        return [finding for finding in self.findings if finding.severity is Severity.ERROR]

    # -- edits --------------------------------------------------------------------------------------------------------

    def edit(self, label: str, change: Callable[[], Any], merge: str = "") -> bool:
        """Makes edits as one undo step; False, and a sentence in the status bar, if that cannot be done."""
        return self.canvas.edit(label, change, merge)

    def set_parameter(self, node: str, name: str, value: Any, merge: str = "") -> bool:
        """Sets a node's parameter (ABSENT: back to its default) as one undo step."""
        return self.edit(f"Set {node}.{name}", lambda: self.graph.apply(Set(node, "parameters", name, value)), merge)

    def undo(self) -> None:
        """Takes the last step back."""
        label = self.graph.undo()
        self.canvas.reconcile()
        self.told.emit(f"Undone: {label}" if label else "There is nothing to undo.")

    def redo(self) -> None:
        """Makes the last undone step again."""
        label = self.graph.redo()
        self.canvas.reconcile()
        self.told.emit(f"Done again: {label}" if label else "There is nothing to do again.")

    def travel(self, steps: int) -> None:
        """Undoes (negative) or redoes so many steps."""
        for _ in range(abs(steps)):
            if (self.graph.undo if steps < 0 else self.graph.redo)() is None:
                break
        self.canvas.reconcile()

    def remove_selected(self) -> None:
        """Removes the selected nodes, and the selected wires."""
        from runtime.graph import PortRef

        nodes = self.canvas.selected
        wires = [PortRef(p.input_port.node.id, p.input_port.name) for p in self.canvas.viewer.selected_pipes()]

        def change() -> None:
            for target in wires:
                if target in self.graph.wires:
                    self.graph.cut(target)
            for id in nodes:
                self.graph.remove(id)

        if nodes or wires:
            what = (
                nodes[0]
                if len(nodes) == 1 and not wires
                else f"{len(nodes) or len(wires)} {'nodes' if nodes else 'wires'}"
            )
            self.edit(f"Remove {what}", change)

    def close(self) -> None:
        """Ends following the document."""
        self._end_listening()
        self._end_listening = lambda: None
        self.canvas.close()


def _stamp(path: Path | None) -> tuple[int, int] | None:
    """What tells a file from what it was before; None if it cannot be seen."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
