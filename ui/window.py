"""The window: the canvas in the middle, panes around it, and every command in a menu with its shortcut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QByteArray, QSettings, QSize, Qt, Signal
from PySide6.QtGui import QAction, QCloseEvent, QKeyEvent, QKeySequence, QResizeEvent
from PySide6.QtWidgets import (
    QAbstractSpinBox,
    QApplication,
    QFileDialog,
    QLabel,
    QLineEdit,
    QMainWindow,
    QMenu,
    QMessageBox,
    QPlainTextEdit,
    QToolBar,
    QVBoxLayout,
    QWidget,
)
from shiboken6 import isValid

from runtime.errors import Finding, StudioError
from runtime.feeds import bring_along
from runtime.graph import Graph
from ui import theme
from ui.collecting import Collector
from ui.editor import Editor
from ui.history import HistoryPane
from ui.minimap import MiniMap
from ui.opening import Loaded, OpeningBar, is_large
from ui.problems import ProblemsPane
from ui.sides import Area, Pane, Sides

if TYPE_CHECKING:
    from ui.running import Runner

MENUS = ("File", "Edit", "Insert", "Diagram", "Run", "View", "Help")
LEFT, RIGHT, BELOW_RIGHT, BOTTOM = Area.LEFT, Area.RIGHT, Area.BELOW_RIGHT, Area.BOTTOM
FILES = "Graphs (*.yaml *.yml *.png *.onnx);;All files (*)"


class Window(QMainWindow):
    """One document in a window. `editor` is what panes talk to; `command` adds to menus."""

    closing = Signal()
    """The window is about to go: threads and processes end."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self.editor = editor = Editor(self)
        self.commands: dict[str, QAction] = {}
        self.panes: dict[str, Pane] = {}
        self._kept: list[object] = []
        self._collector = Collector(self)
        self.runner: Runner
        self._covers: list[QWidget] = []
        self.may_overwrite: Callable[[Path], bool] = lambda path: True
        self.menus: dict[str, QMenu] = {name: self.menuBar().addMenu(f"&{name}") for name in MENUS}
        self.tools = QToolBar("Tools", movable=False)
        self.tools.setObjectName("tools")
        self.tools.setIconSize(QSize(16, 16))
        self.addToolBar(self.tools)
        self._make_canvas()
        self._make_commands()
        self.add_pane(ProblemsPane(editor), BOTTOM)
        self.add_pane(HistoryPane(editor), BOTTOM)
        self._say = QLabel()
        self._say.setContentsMargins(8, 0, 0, 0)
        self._zoom = QLabel()
        self.statusBar().addWidget(self._say, 1)
        self.statusBar().addPermanentWidget(self._zoom)
        editor.told.connect(self.say)
        editor.title_changed.connect(self._show_title)
        editor.edited.connect(lambda edit: self._show_possible())
        editor.document_changed.connect(self._show_possible)
        editor.document_changed.connect(lambda: self.say(""))
        editor.canvas.viewer.moved_view.connect(self._show_zoom)
        self._show_title()
        self._show_possible()
        # Parts know the window, so they come after it.
        from ui.parts import MENUS as ORDER
        from ui.parts import PARTS

        for part in PARTS:
            part.install(self)
        self._order_menus(ORDER)
        self.panes["Palette"].show()
        self.resize(1500, 950)
        self.sides.share_out()
        self._recall()
        if path is not None:
            self.open(path)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _make_canvas(self) -> None:
        middle = QWidget()
        layout = QVBoxLayout(middle)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.editor.canvas.viewer)
        self.middle = middle
        self.sides = Sides(middle)
        self.setCentralWidget(self.sides)
        self.minimap = MiniMap(self.editor, middle)
        self.opening = OpeningBar(middle)
        self.opening.loaded.connect(self._loaded)
        self.closing.connect(self.opening.cancel)
        # What was being read was to replace the document that was shown then.
        self.editor.document_changed.connect(self.opening.cancel)
        self._is_edited_since = False
        self.editor.edited.connect(self._note_edit)
        layout.insertWidget(0, self.opening)

    def add_bar(self, bar: QWidget) -> None:
        """Puts a bar above the canvas."""
        layout = self.middle.layout()
        assert isinstance(layout, QVBoxLayout)
        layout.insertWidget(0, bar)

    def cover(self, page: QWidget) -> None:
        """Lays a page over the canvas, as large as it; it shows and hides itself."""
        self._covers.append(page)
        self._place_map()

    def add_pane(self, pane: QWidget, area: Area, *, shown: bool = True) -> Pane:
        """Puts a pane, which has a `title`, into an area, as a tab beside those that are there already."""
        title = str(getattr(pane, "title"))  # noqa: B009
        made = self.panes[title] = Pane(title, pane, self.sides.sides[area])
        self.menus["View"].addAction(made.action)
        if shown:
            made.list()
        return made

    def show_pane(self, title: str) -> None:
        """Brings a pane to the front and gives it the keys."""
        self.panes[title].show()
        self.panes[title].focus()

    def go_to_pane(self, step: int) -> None:
        """Gives the keys to the next pane that is in front (or the one before), and to the canvas after the last."""
        panes = [pane for area in Area for pane in self.sides.sides[area].panes if pane.isVisible()]
        now = next((index for index, pane in enumerate(panes) if pane.has_focus), len(panes))
        index = (now + step) % (len(panes) + 1)
        if index < len(panes):
            panes[index].focus()
        else:
            self.editor.canvas.viewer.setFocus()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Esc, where nothing else wants it, comes back to the canvas."""
        if event.key() == Qt.Key.Key_Escape:
            self.editor.canvas.viewer.setFocus()
        else:
            super().keyPressEvent(event)

    def keep(self, part: object) -> None:
        """Keeps a part that is no widget for as long as the window lives."""
        self._kept.append(part)

    def command(
        self, menu: str, text: str, call: Callable[[], Any], shortcut: str | QKeySequence.StandardKey | None = None
    ) -> QAction:
        """Adds a command to a menu and returns it; `commands` has it by its text."""
        action = QAction(text, self)

        def do() -> None:
            if call not in (self.editor.undo, self.editor.redo):  # these take back what was before it
                self.settle()
            call()

        action.triggered.connect(lambda checked=False: do())
        if shortcut is not None:
            action.setShortcut(QKeySequence(shortcut))
        self.menus[menu].addAction(action)
        self.commands[text] = action
        return action

    def settle(self) -> None:
        """Takes what is being typed in a field, as if the field were left; the keys stay with it."""
        focused = QApplication.focusWidget()
        if isinstance(focused, QLineEdit | QPlainTextEdit | QAbstractSpinBox) and self.isAncestorOf(focused):
            focused.clearFocus()
            if isValid(focused):
                focused.setFocus()

    def _order_menus(self, order: Mapping[str, Sequence[str]]) -> None:
        """Puts the actions of menus into an order; lines are drawn where a text is empty."""
        for name, texts in order.items():
            menu = self.menus[name]
            others = [action for action in menu.actions() if not action.isSeparator()]
            for action in menu.actions():
                menu.removeAction(action)
            by_text = {action.text(): action for action in others} | self.commands
            for text in texts:
                found = by_text.get(text)
                if found in others and found is not None:
                    menu.addAction(found)
                    others.remove(found)
                elif not text:
                    menu.addSeparator()
            menu.addActions(others)

    def _make_commands(self) -> None:
        editor, canvas = self.editor, self.editor.canvas
        add = self.command
        add("File", "New", self.new, QKeySequence.StandardKey.New)
        add("File", "Open…", self.ask_open, QKeySequence.StandardKey.Open)
        add("File", "Save", self.save, QKeySequence.StandardKey.Save)
        add("File", "Save as…", self.ask_save, "Ctrl+Shift+S")
        add("File", "Quit", self.close, QKeySequence.StandardKey.Quit)
        add("Edit", "Undo", editor.undo, QKeySequence.StandardKey.Undo)
        add("Edit", "Redo", editor.redo, "Ctrl+Shift+Z")
        add("Edit", "Remove", editor.remove_selected, QKeySequence.StandardKey.Delete)
        add("Edit", "Select all", lambda: canvas.select(list(editor.graph.nodes)), QKeySequence.StandardKey.SelectAll)
        add("Diagram", "Clean up", lambda: canvas.clean_up(canvas.selected or None), "Ctrl+U")
        add("View", "Fit", lambda: canvas.fit(canvas.selected or None), "F")
        add("View", "Zoom 1:1", lambda: canvas.viewer.zoom_to(1.0), "Ctrl+1")
        add("View", "Zoom in", lambda: canvas.viewer.zoom_by(1.25), QKeySequence.StandardKey.ZoomIn)
        add("View", "Zoom out", lambda: canvas.viewer.zoom_by(0.8), QKeySequence.StandardKey.ZoomOut)
        add("View", "Dark theme", self.toggle_theme)
        add("View", "Next pane", lambda: self.go_to_pane(1), "Ctrl+F6")
        add("View", "Pane before", lambda: self.go_to_pane(-1), "Ctrl+Shift+F6")
        add("View", "Canvas alone", self.sides.toggle, "F11")

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._place_map()

    def _place_map(self) -> None:
        room = self.editor.canvas.viewer.geometry()
        self.minimap.move(room.right() - self.minimap.width() - 10, room.bottom() - self.minimap.height() - 10)
        self.minimap.raise_()
        for page in self._covers:
            page.setGeometry(room)
            page.raise_()

    def _remember(self) -> None:
        """Stores the window's size and the edges between panes."""
        settings = QSettings()
        settings.setValue("geometry", self.saveGeometry())
        self.sides.remember(settings)

    def _recall(self) -> None:
        """Puts the window and its edges where they were the last time."""
        settings = QSettings()
        geometry = settings.value("geometry")
        if isinstance(geometry, QByteArray):
            self.restoreGeometry(geometry)
        self.sides.recall(settings)

    # -- what is shown ------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Shows a sentence in the status bar."""
        self._say.setText(" ".join(text.split())[:400])

    def _show_title(self) -> None:
        self.setWindowTitle(f"{self.editor.name}[*] - QMoE Studio")
        self.setWindowModified(self.editor.is_changed)

    def _show_zoom(self) -> None:
        self._zoom.setText(f"{self.editor.canvas.viewer.zoom():.0%}")
        self._place_map()

    def _show_possible(self) -> None:
        graph = self.editor.graph
        for text, labels in (("Undo", graph.undo_labels), ("Redo", graph.redo_labels)):
            self.commands[text].setEnabled(bool(labels))
            self.commands[text].setText(f"{text} {labels[-1]}" if labels else text)

    def toggle_theme(self) -> None:
        """Changes between the light and the dark theme."""
        application = QApplication.instance()
        assert isinstance(application, QApplication)
        name = "light" if theme.current().name == "dark" else "dark"
        theme.apply(application, name)
        QSettings().setValue("theme", name)
        self.editor.canvas.refresh()
        self.editor.canvas.viewer.scene().update()
        self.editor.report(self.editor.reported)

    # -- files --------------------------------------------------------------------------------------------------------

    def new(self) -> None:
        """Shows an empty document, once the current one is safe."""
        if self.is_safe_to_leave():
            self.editor.show(Graph("untitled"))

    def open(self, path: Path) -> bool:
        """Opens a file; what is wrong with it is shown in a message, and the document stays.

        A large one is read while the window goes on; False then too, until it is there.
        """
        if is_large(path):
            self._is_edited_since = False
            self.opening.start(path)
            return False
        try:
            notes = self.editor.open(path)
        except StudioError as error:
            self.tell_error(f"{path.name} cannot be opened", error)
            return False
        self._opened(path, notes)
        return True

    def _opened(self, path: Path, notes: list[Finding]) -> None:
        self.say(" ".join([f"Opened {path}.", *map(str, notes)]))

    def _loaded(self, loaded: Loaded) -> None:
        if isinstance(loaded.content, Exception):
            self.tell_error(f"{loaded.path.name} cannot be opened", loaded.content)
            return
        if self._is_edited_since and not self.is_safe_to_leave():
            return
        graph, prepared = loaded.content
        self.editor.show(graph, loaded.path, prepared=prepared)
        self._opened(loaded.path, loaded.notes)

    def _note_edit(self, edit: object) -> None:
        self._is_edited_since = True

    def open_safely(self, path: Path) -> None:
        """Opens a file once the current document is safe."""
        if self.is_safe_to_leave():
            self.open(path)

    def ask_open(self) -> None:
        """Asks for a file and opens it."""
        if self.is_safe_to_leave():
            name, _ = QFileDialog.getOpenFileName(self, "Open", str(self._folder()), FILES)
            if name:
                self.open(Path(name))

    def save(self) -> bool:
        """Saves to the document's file; asks for one if it has none."""
        return self.save_to(self.editor.path) if self.editor.path is not None else self.ask_save()

    def ask_save(self) -> bool:
        """Asks for a file and saves to it; a name without an ending is that of a snippet's text."""
        path = self.editor.path
        suggested = self._folder() / f"{self.editor.name}.yaml" if path is None else path
        name, _ = QFileDialog.getSaveFileName(self, "Save as", str(suggested), FILES)
        if not name:
            return False
        chosen = Path(name)
        if not chosen.suffix:
            chosen = chosen.with_suffix(".yaml")
            if chosen.exists() and not self._may_replace(chosen):
                return False
        return self.save_to(chosen)

    def _may_replace(self, path: Path) -> bool:
        """Asks whether a file that is there already may go."""
        buttons = QMessageBox.StandardButton
        text = f"{path.name} is there already. Replace it?"
        return QMessageBox.question(self, "QMoE Studio", text, buttons.Yes | buttons.Cancel) == buttons.Yes

    def save_to(self, path: Path) -> bool:
        """Saves to a file; whether that could be done."""
        if not self.may_overwrite(path):
            return False
        before = self.editor.path
        try:
            notes = self.editor.save(path)
            copied, missing = bring_along(self.editor.graph, before.parent if before is not None else None, path.parent)
        except StudioError as error:
            self.tell_error(f"{path.name} cannot be saved", error)
            return False
        told = [f"Saved {path}.", *map(str, notes)]
        if copied:
            told.append(f"Copied what inputs read there too: {', '.join(copied)}.")
        if missing:
            told.append(f"Inputs read {', '.join(missing)}, which is not there: put it beside the document.")
        self.say(" ".join(told))
        return True

    def _folder(self) -> Path:
        return self.editor.path.parent if self.editor.path is not None else Path.cwd()

    def is_safe_to_leave(self) -> bool:
        """Whether the document is saved, or its author says that it need not be."""
        self.settle()
        if not self.editor.is_changed or (not self.editor.graph.nodes and self.editor.path is None):
            return True
        buttons = QMessageBox.StandardButton
        answer = QMessageBox.question(
            self,
            "QMoE Studio",
            f"Save the changes of {self.editor.name}?",
            buttons.Save | buttons.Discard | buttons.Cancel,
            buttons.Save,
        )
        return answer == buttons.Discard or (answer == buttons.Save and self.save())

    def tell_error(self, title: str, error: Exception) -> None:
        """Shows an error in a bar above the canvas, until it is closed or something else is opened."""
        self.opening.show_error(title, error)
        self.say(f"{title}: {error}")

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        if not self.is_safe_to_leave():
            event.ignore()
            return
        self._remember()
        self.closing.emit()
        QApplication.clipboard().clear()  # what is still there at the end would be freed too late
        self.editor.close()
        self._collector.end()
        event.accept()
