"""The list of what is wrong with the document; a click shows the node, a button mends what can be mended."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QBrush
from PySide6.QtWidgets import QHeaderView, QTreeWidget, QTreeWidgetItem, QVBoxLayout, QWidget

from runtime.editing import remedies
from runtime.errors import Finding, Severity
from ui import theme
from ui.editor import Editor

_ORDER = (Severity.ERROR, Severity.WARNING, Severity.NOTE)
_FINDING = Qt.ItemDataRole.UserRole
_REMEDY = Qt.ItemDataRole.UserRole + 1


class ProblemsPane(QWidget):
    """Findings, worst first. Enter or a click jumps to the node; below a finding are its remedies."""

    title = "Problems"

    def __init__(self, editor: Editor, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._editor = editor
        self.list = QTreeWidget()
        self.list.setHeaderLabels(["Where", "What"])
        self.list.setRootIsDecorated(False)
        self.list.setWordWrap(True)
        self.list.setAccessibleName("Problems")
        self.list.header().setSectionResizeMode(0, QHeaderView.ResizeMode.ResizeToContents)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.list)
        self.list.itemClicked.connect(self._jump)
        self.list.itemActivated.connect(self._activate)
        editor.checked.connect(self.show_findings)
        self.show_findings([*editor.findings, *editor.reported])

    def show_findings(self, findings: list[Finding]) -> None:
        """Lists findings, errors first."""
        self.list.clear()
        look = theme.current()
        colours = {Severity.ERROR: look.error, Severity.WARNING: look.warning, Severity.NOTE: look.faint}
        for finding in sorted(findings, key=lambda f: _ORDER.index(f.severity)):
            place = f"{finding.node}.{finding.port}" if finding.node and finding.port else finding.node or "graph"
            row = QTreeWidgetItem([place, f"{finding.message} {finding.remedy}".strip()])
            row.setForeground(0, QBrush(theme.colour(colours[finding.severity])))
            row.setData(0, _FINDING, finding)
            row.setToolTip(1, str(finding))
            for remedy in remedies(self._editor.graph, finding):
                offer = QTreeWidgetItem(["", f"→ {remedy.label}"])
                offer.setForeground(1, QBrush(theme.colour(look.selected)))
                offer.setData(0, _FINDING, finding)
                offer.setData(0, _REMEDY, remedy)
                row.addChild(offer)
            self.list.addTopLevelItem(row)
            row.setExpanded(True)
        if not findings:
            row = QTreeWidgetItem(["", "Nothing is wrong."])
            row.setForeground(1, QBrush(theme.colour(look.faint)))
            self.list.addTopLevelItem(row)

    def _jump(self, row: QTreeWidgetItem) -> None:
        finding, remedy = row.data(0, _FINDING), row.data(0, _REMEDY)
        if remedy is not None:
            self._editor.edit(remedy.label, remedy.apply)
            self._editor.canvas.refresh()
        elif finding is not None and finding.node:
            self._editor.canvas.reveal(finding.node)

    def _activate(self, row: QTreeWidgetItem) -> None:
        self._jump(row)
        if row.data(0, _REMEDY) is None:
            self._editor.canvas.viewer.setFocus()
