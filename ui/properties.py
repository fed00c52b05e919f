"""The pane of what is selected: its parameters, its ports, its tensors."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QTabWidget, QVBoxLayout, QWidget

from ui.editor import Editor
from ui.inputs import InputsView
from ui.parameters import ParametersView
from ui.tensors import TensorsView
from ui.window import RIGHT, Window

WIDTH = 380


class PropertiesPane(QWidget):
    """Tabs about the selected node, or about the graph if none is selected."""

    title = "Properties"

    def __init__(self, editor: Editor, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._editor = editor
        self.parameters = ParametersView(editor)
        self.inputs = InputsView(editor)
        self.tensor = TensorsView(editor)
        self.tabs = QTabWidget(documentMode=True)
        self.tabs.setAccessibleName("About the selection")
        for widget, title in ((self.parameters, "Parameters"), (self.inputs, "Inputs"), (self.tensor, "Tensor")):
            self.tabs.addTab(widget, title)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.tabs)
        self.setMinimumWidth(WIDTH)
        self.parameters.opened.connect(self.show_tensor)

    def show_tensor(self, name: str = "") -> None:
        """Shows the tensor of a parameter of the selected node."""
        self.tabs.setCurrentWidget(self.tensor)
        self.tensor.choose(name)

    def go(self) -> None:
        """Puts the focus into the first field."""
        self.tabs.setCurrentWidget(self.parameters)
        self.parameters.focus_first()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Esc, where nothing is to be taken back, goes to the canvas."""
        if event.key() == Qt.Key.Key_Escape:
            self._editor.canvas.viewer.setFocus()
        else:
            super().keyPressEvent(event)


def install(window: Window) -> None:
    """Adds the pane and the command that goes to it."""
    editor = window.editor
    pane = PropertiesPane(editor)
    dock = window.add_pane(pane, RIGHT)

    def go() -> None:
        dock.show()
        pane.go()

    def opened(id: str) -> None:
        if id in editor.graph.nodes and editor.graph.nodes[id].type == "Initializer":
            dock.show()
            pane.show_tensor()

    editor.canvas.node_opened.connect(opened)
    window.command("View", "Go to properties", go, "Alt+Return")
