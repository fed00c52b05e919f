"""The tensors of the selected node."""

from PySide6.QtWidgets import QWidget

from ui.editor import Editor


class TensorView(QWidget):
    """Nothing yet."""

    def __init__(self, editor: Editor, parent: QWidget | None = None) -> None:
        super().__init__(parent)

    def choose(self, name: str) -> None:
        """Shows the tensor of a parameter."""
