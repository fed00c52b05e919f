"""What an empty window shows: recent files and the snippets that come along, to be opened."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QObject, Qt
from PySide6.QtGui import QDragEnterEvent, QDragLeaveEvent, QDragMoveEvent, QDropEvent
from PySide6.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QListWidgetItem,
    QMenu,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from runtime.recent import RecentFiles
from runtime.shipped import snippets_folder
from ui import theme
from ui.editor import Editor
from ui.gallery import SnippetList, Thumbnails, snippet_files
from ui.window import Window

MOST_RECENT = 12


class Recent(QObject):
    """The menu of recent files, and who notes them."""

    def __init__(self, window: Window) -> None:
        super().__init__(window)
        self._window = window
        self.files = RecentFiles()
        self.menu = QMenu("Open recent", window)
        self.menu.aboutToShow.connect(self._fill)
        window.menus["File"].addMenu(self.menu)
        window.editor.title_changed.connect(self._note)
        self._noted: Path | None = None

    def _note(self) -> None:
        path = self._window.editor.path
        if path is not None and path != self._noted:
            self._noted = path
            finding = self.files.add(path)
            if finding is not None:
                self._window.say(str(finding))

    def _fill(self) -> None:
        self.menu.clear()
        for recent in self.files.files()[:MOST_RECENT]:
            action = self.menu.addAction(f"{recent.path.name}   {recent.path.parent}")
            action.setEnabled(not recent.is_missing)
            action.triggered.connect(lambda checked=False, path=recent.path: self._window.open_safely(path))
        self.menu.addSeparator()
        self.menu.addAction("Forget all", self.files.clear)


class StartPage(QWidget):
    """Lies over the canvas while the document is empty and has no file."""

    def __init__(self, window: Window, recent: Recent, parent: QWidget) -> None:
        super().__init__(parent)
        self._window, self._recent = window, recent
        self.setAutoFillBackground(True)
        title = QLabel("QMoE Studio")
        title.setFont(theme.font(26, bold=True))
        hint = QLabel(
            "Drop a snippet's picture, a .yaml or an .onnx file here, or press Ctrl+Space and type the name of a node."
        )
        buttons = QHBoxLayout()
        for text, call in (("Open…", window.ask_open), ("Begin with an empty diagram", self.begin)):
            button = QPushButton(text)
            button.clicked.connect(call)
            buttons.addWidget(button)
        buttons.addStretch(1)
        self.list = SnippetList()
        self.list.setAccessibleName("Recent files and snippets")
        self.list.itemActivated.connect(self._open)
        self.list.itemClicked.connect(self._open)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(40, 32, 40, 24)
        layout.addWidget(title)
        layout.addWidget(hint)
        layout.addLayout(buttons)
        layout.addWidget(self.list, 1)
        self._thumbnails = Thumbnails(self)
        self._thumbnails.drawn.connect(self.list.show_picture)
        window.closing.connect(self._thumbnails.stop)
        editor = window.editor
        editor.document_changed.connect(self.consider)
        editor.edited.connect(lambda edit: self._leave(editor))
        editor.title_changed.connect(self.consider)
        self._begun = self._listed = False
        self.setAcceptDrops(True)
        self.consider()

    def consider(self) -> None:
        """Shows the page if there is nothing else to show."""
        editor = self._window.editor
        is_empty = not editor.graph.nodes and editor.path is None and not self._begun
        if is_empty and not self._listed:
            recent = [file.path for file in self._recent.files.files() if not file.is_missing][:MOST_RECENT]
            paths = list(dict.fromkeys([*recent, *snippet_files(snippets_folder())]))
            self.list.show_files(paths)
            self._thumbnails.draw(paths)
        self._listed = is_empty
        self.setVisible(is_empty)
        if is_empty:
            self.raise_()

    def _leave(self, editor: Editor) -> None:
        if editor.graph.nodes:
            self.hide()

    def begin(self) -> None:
        """Gives way to the empty canvas."""
        self._begun = True
        self.hide()
        self._window.editor.canvas.viewer.setFocus(Qt.FocusReason.OtherFocusReason)

    # What is dragged over the page is for the canvas below it.

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        self._window.editor.canvas.viewer.dragEnterEvent(event)

    def dragMoveEvent(self, event: QDragMoveEvent) -> None:  # noqa: N802
        self._window.editor.canvas.viewer.dragMoveEvent(event)

    def dragLeaveEvent(self, event: QDragLeaveEvent) -> None:  # noqa: N802
        self._window.editor.canvas.viewer.dragLeaveEvent(event)

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        self._window.editor.canvas.viewer.dropEvent(event)

    def _open(self, row: QListWidgetItem) -> None:
        self._window.open_safely(self.list.path_of(row))


def install(window: Window) -> None:
    """Adds the menu and the page."""
    recent = Recent(window)
    window.cover(StartPage(window, recent, window.middle))
