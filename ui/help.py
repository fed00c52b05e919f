"""Context help: what the mouse is over, in the words of the declarations. Ctrl+H shows and hides it."""

from __future__ import annotations

from html import escape

from PySide6.QtCore import QEvent, QObject, QPoint, Qt, QTimer, QUrl
from PySide6.QtGui import QDesktopServices, QMouseEvent, QShowEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QTextBrowser, QToolButton, QVBoxLayout, QWidget

from runtime import catalog
from runtime.errors import Severity
from runtime.graph import PortRef
from runtime.manual import page
from runtime.port_facts import PortFacts, facts_of
from runtime.types import TensorType, format_shape
from ui import theme
from ui.canvas.items import NodeItem
from ui.editor import Editor
from ui.facts import link, port_html
from ui.window import BELOW_RIGHT, Window

REST = 60
"""Milliseconds for which the mouse rests on a node before it is told of."""

Subject = tuple[str, ...]
"""("node", id), ("port", id, port, "in" or "out"), ("wire", id, port), ("type", name), or nothing."""


class HelpPane(QWidget):
    """A page about one thing: a node, a port, a wire, or a node type. It follows the mouse unless it is locked."""

    title = "Context help"

    def __init__(self, editor: Editor, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._editor = editor
        self._subject: Subject = ()
        self._shown = ""
        self._mouse = QPoint()
        self.heading = QLabel()
        self.heading.setFont(theme.font(13, bold=True))
        self.lock = QToolButton(text="Stay on this", checkable=True)
        self.lock.setToolTip("Do not follow the mouse")
        self.text = QTextBrowser()
        self.text.setOpenLinks(False)
        self.text.setAccessibleName("Context help")
        self.text.document().setDocumentMargin(10)
        top = QHBoxLayout()
        top.setContentsMargins(10, 4, 4, 0)
        top.addWidget(self.heading, 1)
        top.addWidget(self.lock)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addLayout(top)
        layout.addWidget(self.text)
        self.setMinimumHeight(170)
        self._resting = QTimer(self, singleShot=True, interval=REST)
        self._resting.timeout.connect(self._look)
        self._later = QTimer(self, singleShot=True, interval=0)
        self._later.timeout.connect(self.follow)
        viewer = editor.canvas.viewer
        viewer.viewport().installEventFilter(self)
        viewer.port_hovered.connect(self._on_port)
        viewer.wire_hovered.connect(self._on_wire)
        editor.selection_changed.connect(self._on_selection)
        editor.checked.connect(lambda findings: self._later.start())
        editor.document_changed.connect(self._on_document)
        self.text.anchorClicked.connect(self._open)

    # -- what it is about ---------------------------------------------------------------------------------------------

    def show_type(self, name: str) -> None:
        """Tells of a node type, such as one in a palette."""
        self._turn(("type", name))

    def _on_port(self, node: str, port: str, is_output: bool) -> None:
        if node:
            self._turn(("port", node, port, "out" if is_output else "in"))

    def _on_wire(self, node: str, port: str) -> None:
        if node:
            self._turn(("wire", node, port))

    def _on_selection(self, ids: list[str]) -> None:
        if len(ids) == 1:
            self._turn(("node", ids[0]))

    def _on_document(self) -> None:
        self._subject = ()
        self.lock.setChecked(False)
        self._later.start()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        if (
            isinstance(event, QMouseEvent)
            and event.type() == QEvent.Type.MouseMove
            and event.buttons() == Qt.MouseButton.NoButton
            and self.isVisible()
        ):
            self._mouse = event.position().toPoint()
            self._resting.start()
        return False

    def _look(self) -> None:
        found = self._editor.canvas.viewer.what_is_at(self._mouse)
        if isinstance(found, NodeItem):
            self._turn(("node", found.id))

    def _turn(self, subject: Subject) -> None:
        if not self.lock.isChecked() and subject != self._subject:
            self._subject = subject
            self._later.start()

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802
        super().showEvent(event)
        if not self._subject:
            self._on_selection(self._editor.canvas.selected)
        self.follow()

    # -- what it says -------------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Tells of its subject as it is now, if the pane is seen."""
        if not self.isVisible():
            return
        graph = self._editor.graph
        heading, text, is_markdown = "", "", False
        match self._subject:
            case ("type", name):
                heading, text, is_markdown = name, self._page(name), True
            case ("node", id) if id in graph.nodes:
                node_type = graph.node_type(id)
                heading, is_markdown = id, True
                text = page(node_type) if node_type is not None else self._page(graph.nodes[id].type)
                problems = [str(f) for f in self._editor.findings if f.node == id]
                text = "".join(f"> {' '.join(problem.split())}\n\n" for problem in problems) + text
            case ("port", id, port, side) if id in graph.nodes:
                ref = PortRef(id, port)
                facts = facts_of(graph, ref, side == "out", self._editor.findings)
                heading, text = f"{'Output' if side == 'out' else 'Input'} {ref}", self._port_page(facts)
            case ("wire", id, port) if PortRef(id, port) in graph.wires:
                heading, text = "Wire", self._wire_page(PortRef(id, port))
            case _:
                text = "<p>Move the mouse over a node, a port or a wire.</p>"
        if (heading, text) == (self.heading.text(), self._shown):
            return
        self.heading.setText(heading)
        self._shown = text
        if is_markdown:
            self.text.setMarkdown(text)
        else:
            self.text.setHtml(text)

    def _page(self, name: str) -> str:
        node_type = catalog.find(name, self._editor.graph.opsets)
        return page(node_type) if node_type is not None else f"# {name}\n\nNo operator of this name is known here.\n"

    def _port_page(self, facts: PortFacts) -> str:
        text = port_html(facts)
        if facts.declared is not None and facts.declared.doc:
            text += f"<p>{_paragraphs(facts.declared.doc)}</p>"
        return text

    def _wire_page(self, target: PortRef) -> str:
        graph = self._editor.graph
        facts = facts_of(graph, target, False, self._editor.findings)
        source = graph.wires[target]
        value = graph.checker.type_of(source)
        look = theme.current()
        faint = theme.css(look.faint)
        lines = [f"<b>{escape(facts.there)}</b>"]
        if isinstance(value, TensorType):
            element = str(value.element) if value.element is not None else "not known yet"
            lines.append(f'<span style="color: {faint}">elements</span> {escape(element)}')
            shape = format_shape(value.shape) if value.shape is not None else "not known yet"
            if value.shape == ():
                shape = "[], a single number"
            lines.append(f'<span style="color: {faint}">shape</span> {escape(shape)}')
        lines.append(f'<span style="color: {faint}">from</span> {link(source, "")}')
        lines.append(f'<span style="color: {faint}">to</span> {link(target, "")}')
        others = [other for other in graph.targets(source) if other != target]
        if others:
            ends = ", ".join(link(other, "") for other in others)
            lines.append(f'<span style="color: {faint}">also to</span> {ends}')
        lines.append(f'<span style="color: {faint}">its end expects</span> {escape(facts.expected)}')
        for finding in facts.findings:
            colour = theme.css(look.error if finding.severity is Severity.ERROR else look.warning)
            lines.append(f'<span style="color: {colour}">{escape(str(finding))}</span>')
        return "<br>".join(lines)

    def _open(self, url: QUrl) -> None:
        if url.scheme() in ("http", "https"):
            QDesktopServices.openUrl(url)
            return
        node = url.toString().removeprefix("node:")
        if node in self._editor.graph.nodes:
            self._editor.canvas.reveal(node)


def _paragraphs(text: str) -> str:
    return escape(text.strip()).replace("\n\n", "</p><p>")


def install(window: Window) -> None:
    """Adds the pane, hidden at first, and its command."""
    pane = HelpPane(window.editor)
    dock = window.add_pane(pane, BELOW_RIGHT, shown=False)
    window.command("Help", "Context help", lambda: dock.hide() if dock.isVisible() else dock.show(), "Ctrl+H")
