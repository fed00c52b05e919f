"""Every command with its keys, to be found by a few letters; and LabVIEW's own keys for those who have them in hand."""

from __future__ import annotations

from PySide6.QtCore import QSettings, Qt
from PySide6.QtGui import QKeyEvent, QKeySequence
from PySide6.QtWidgets import QCheckBox, QHeaderView, QLineEdit, QTreeWidget, QTreeWidgetItem, QVBoxLayout, QWidget

from ui.window import BELOW_RIGHT, Window

LABVIEW = {"Remove broken wires": ("Ctrl+B", "Ctrl+Shift+B"), "Bypass": ("Ctrl+Shift+B", "Ctrl+B")}
"""Commands whose keys change places: LabVIEW's first, then those of image and audio graph editors."""
_COMMAND = Qt.ItemDataRole.UserRole


class ShortcutsPane(QWidget):
    """Commands and keys. Enter does what the chosen line says."""

    title = "Shortcuts"

    def __init__(self, window: Window) -> None:
        super().__init__()
        self._window = window
        self.field = QLineEdit()
        self.field.setPlaceholderText("Find a command")
        self.field.setAccessibleName("Find a command")
        self.list = QTreeWidget()
        self.list.setHeaderLabels(["Command", "Keys", "Menu"])
        self.list.setRootIsDecorated(False)
        self.list.setAccessibleName("Commands")
        self.list.header().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.labview = QCheckBox("Ctrl+B removes broken wires, as in LabVIEW")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 6, 8, 6)
        for widget in (self.field, self.list, self.labview):
            layout.addWidget(widget)
        self.setFocusProxy(self.field)
        self.field.textChanged.connect(lambda text: self.show_commands())
        self.field.returnPressed.connect(lambda: self._do(self.list.currentItem()))
        self.list.itemActivated.connect(self._do)
        self.labview.toggled.connect(self.use_labview)
        self.labview.setChecked(QSettings().value("labview", "false") == "true")
        self.show_commands()

    def use_labview(self, on: bool) -> None:
        """Gives LabVIEW's keys to its commands, or takes them back."""
        QSettings().setValue("labview", "true" if on else "false")
        for text in LABVIEW:
            self._window.commands[text].setShortcut(QKeySequence())
        for text, keys in LABVIEW.items():
            self._window.commands[text].setShortcut(QKeySequence(keys[0 if on else 1]))
        self.show_commands()

    def show_commands(self) -> None:
        """Lists the commands that hold what was typed."""
        wanted = self.field.text().casefold().split()
        self.list.clear()
        for menu, shown in self._window.menus.items():
            for text, action in self._window.commands.items():
                if action not in shown.actions():
                    continue
                keys = ", ".join(k.toString(QKeySequence.SequenceFormat.NativeText) for k in action.shortcuts())
                if all(word in f"{text} {keys} {menu}".casefold() for word in wanted):
                    row = QTreeWidgetItem([text, keys, menu])
                    row.setData(0, _COMMAND, text)
                    self.list.addTopLevelItem(row)
        first = self.list.topLevelItem(0)
        if first is not None:
            self.list.setCurrentItem(first)

    def _do(self, row: QTreeWidgetItem | None) -> None:
        if row is not None:
            self._window.commands[row.data(0, _COMMAND)].trigger()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        if event.key() == Qt.Key.Key_Escape:
            self._window.editor.canvas.viewer.setFocus()
        elif event.key() in (Qt.Key.Key_Up, Qt.Key.Key_Down) and self.field.hasFocus():
            self.list.setFocus()
        else:
            super().keyPressEvent(event)


def install(window: Window) -> None:
    """Adds the pane, hidden at first, and its command; it comes after all others, whose commands it lists."""
    dock = window.add_pane(ShortcutsPane(window), BELOW_RIGHT, shown=False)

    def go() -> None:
        pane = dock.widget()
        assert isinstance(pane, ShortcutsPane)
        pane.show_commands()
        window.show_pane("Shortcuts")

    window.command("Help", "Shortcuts…", go, "F1")
