"""The ports of the selected node: what each expects, what is there, and a way to where that comes from."""

from __future__ import annotations

from PySide6.QtCore import Qt, QTimer, QUrl
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import QTextBrowser, QVBoxLayout, QWidget

from runtime.port_facts import ports_of
from ui import theme
from ui.editor import Editor
from ui.facts import port_html


class InputsView(QWidget):
    """A paragraph for each port. Tab goes from link to link; Enter or a click jumps to the node at the other end."""

    def __init__(self, editor: Editor, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._editor = editor
        self.text = QTextBrowser()
        self.text.setOpenLinks(False)
        self.text.setAccessibleName("Inputs and outputs")
        self.text.document().setDocumentMargin(10)
        self.text.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.text)
        self.text.anchorClicked.connect(self._jump)
        self._shown = ""
        self._later = QTimer(self, singleShot=True, interval=0)
        self._later.timeout.connect(self.follow)
        editor.selection_changed.connect(lambda ids: self._later.start())
        editor.checked.connect(lambda findings: self._later.start())
        editor.document_changed.connect(self._later.start)

    def follow(self) -> None:
        """Tells of the ports of the one node that is selected, if the tab is seen."""
        if not self.isVisible():
            return
        html = self._html()
        if html != self._shown:
            place = self.text.verticalScrollBar().value()
            self._shown = html
            self.text.setHtml(html)
            self.text.verticalScrollBar().setValue(place)

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802
        super().showEvent(event)
        self.follow()

    def _html(self) -> str:
        graph = self._editor.graph
        ids = [id for id in self._editor.canvas.selected if id in graph.nodes]
        faint = theme.css(theme.current().faint)
        if len(ids) != 1:
            return f'<p style="color: {faint}">Select one node to see its ports.</p>'
        parts: list[str] = []
        for is_output, title in ((False, "Inputs"), (True, "Outputs")):
            mine = [facts for facts in ports_of(graph, ids[0], self._editor.findings) if facts.is_output is is_output]
            if mine:
                parts.append(f'<p style="font-size: 13px; margin: 8px 0 2px 0"><b>{title}</b></p>')
                parts += [port_html(facts) for facts in mine]
        return "".join(parts)

    def _jump(self, url: QUrl) -> None:
        node = url.toString().removeprefix("node:")
        if node in self._editor.graph.nodes:
            self._editor.canvas.reveal(node)
