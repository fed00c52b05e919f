"""Where the inputs' values come from when the graph runs: a row for each input, a number for each open dimension."""

from __future__ import annotations

import json
from pathlib import Path

from PySide6.QtCore import QSignalBlocker, Qt, QTimer
from PySide6.QtWidgets import (
    QComboBox,
    QFileDialog,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QScrollArea,
    QSpinBox,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from runtime.arrays import FORMS
from runtime.drawing.words import type_text
from runtime.errors import GraphError
from runtime.feeds import (
    DEFAULT_SIZE,
    LARGEST_SIZE,
    MOST_TYPED,
    Source,
    set_size,
    set_source,
    sizes_of,
    source_of,
    symbols_of,
)
from runtime.graph import PortRef
from runtime.guard import input_names
from ui import theme
from ui.fields import WheelPasses
from ui.running import Runner
from ui.window import RIGHT, Window

KINDS = {"random": "random", "file": "from a file", "values": "typed"}
LONGEST = 200_000
"""Characters that may be typed."""


class SourceRow(QWidget):
    """One input: its name and type, where its values come from, and the seed, the file or the numbers."""

    def __init__(self, id: str, pane: FeedingPane) -> None:
        super().__init__()
        self.id, self._pane = id, pane
        self.kind = QComboBox()
        self.kind.addItems(list(KINDS.values()))
        self.kind.setAccessibleName(f"Where {id} comes from")
        self.seed = QSpinBox(maximum=LARGEST_SIZE, prefix="seed ")
        self.seed.setAccessibleName(f"Seed of {id}")
        self.seed.setKeyboardTracking(False)
        WheelPasses(self.kind, self.seed)
        self.text = QLineEdit()
        self.text.setMaxLength(LONGEST)
        self.text.setAccessibleName(f"Values of {id}")
        self.browse = QToolButton(text="…")
        self.browse.setAccessibleName(f"Choose a file for {id}")
        self.title = QLabel()
        self.title.setTextFormat(Qt.TextFormat.PlainText)
        self.problem = QLabel(wordWrap=True)
        line = QHBoxLayout()
        for widget in (self.kind, self.seed, self.text, self.browse):
            line.addWidget(widget)
        line.setStretch(2, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 6)
        layout.setSpacing(3)
        layout.addWidget(self.title)
        layout.addLayout(line)
        layout.addWidget(self.problem)
        self.kind.activated.connect(lambda index: self._choose_kind(list(KINDS)[index]))
        self.seed.valueChanged.connect(lambda seed: self._set(Source(seed=seed)))
        self.text.editingFinished.connect(self.commit)
        self.browse.clicked.connect(self.ask)

    def show_state(self) -> None:
        """Shows what the document says."""
        graph, runner = self._pane.editor.graph, self._pane.runner
        name = input_names(graph)[self.id]
        told = self.id if name == self.id else f"{self.id} ({name})"
        self.title.setText(f"{told}  {type_text(graph.checker.type_of(PortRef(self.id, 'value')))}")
        outside = runner.files.get(self.id)
        try:
            source = source_of(graph, self.id)
            self.say("")
        except GraphError as error:
            source = Source()
            self.say(str(error))
        kind = "file" if outside is not None else source.kind
        self._show_kind(kind)
        with QSignalBlocker(self.seed):
            self.seed.setValue(source.seed)
        if not self.text.hasFocus() or not self.text.isModified():
            values = "" if source.values is None else json.dumps(source.values)
            self.text.setText(str(outside) if outside is not None else source.file if kind == "file" else values)
        if outside is not None:
            self.say("The file is not beside the document: it is known until the window closes.", faint=True)

    def _show_kind(self, kind: str) -> None:
        self.kind.setCurrentIndex(list(KINDS).index(kind))
        self.seed.setVisible(kind == "random")
        self.text.setVisible(kind != "random")
        self.browse.setVisible(kind == "file")
        forms = ", ".join(FORMS)
        self.text.setPlaceholderText(
            f"a file: {forms}" if kind == "file" else "[[0.5, 1], [2, 3]], or one number for all"
        )

    def _choose_kind(self, kind: str) -> None:
        self._show_kind(kind)
        self.say("")
        if kind == "random":
            self._pane.runner.files.pop(self.id, None)
            self._set(Source())
        else:
            self.text.clear()
            self.text.setFocus()

    def commit(self) -> None:
        """Gives what was typed to the document; or says why it is no source."""
        text, kind = self.text.text().strip(), list(KINDS)[self.kind.currentIndex()]
        if not self.text.isModified() or not text:
            return
        self.text.setModified(False)
        if kind == "file":
            self.take_file(Path(text).expanduser())
            return
        try:
            values = json.loads(text)
        except ValueError as error:
            self.say(f"These are no numbers: {error}. Write [[0.5, 1], [2, 3]], or one number.")
            return
        self._pane.runner.files.pop(self.id, None)
        self._set(Source(values=values), f"These are no numbers, or more than {MOST_TYPED:,}.")

    def ask(self) -> None:
        """Asks for a file."""
        endings = " ".join(f"*{form}" for form in FORMS)
        folder = self._pane.folder or Path.cwd()
        name, _ = QFileDialog.getOpenFileName(self, f"Values of {self.id}", str(folder), f"Arrays ({endings})")
        if name:
            self.take_file(Path(name))

    def take_file(self, path: Path) -> None:
        """Takes the values from a file: the document remembers it if it lies in its folder or below."""
        if path.suffix.lower() not in FORMS:
            self.say(f"Expected a file that ends with one of {', '.join(FORMS)}.")
            return
        folder, runner = self._pane.folder, self._pane.runner
        whole = path if path.is_absolute() or folder is None else folder / path
        if not whole.is_file():
            self.say(f"{path} is not there.")
            return
        if folder is not None and whole.resolve().is_relative_to(folder.resolve()):
            runner.files.pop(self.id, None)
            self._set(Source(file=whole.resolve().relative_to(folder.resolve()).as_posix()))
        else:
            runner.files[self.id] = whole.resolve()
            self.show_state()

    def _set(self, source: Source, reason: str = "") -> None:
        graph = self._pane.editor.graph
        if self._pane.editor.edit(f"Set the values of {self.id}", lambda: set_source(graph, self.id, source)):
            self.show_state()
        else:
            self.say(reason or "The document cannot remember this.")

    def say(self, text: str, *, faint: bool = False) -> None:
        """Shows what is wrong, or worth knowing, below the row."""
        look = theme.current()
        self.problem.setText(text)
        self.problem.setStyleSheet(f"color: {theme.css(look.faint if faint else look.error)};")
        self.problem.setVisible(bool(text))


class FeedingPane(QScrollArea):
    """All inputs, and the sizes of open dimensions."""

    title = "Run inputs"

    def __init__(self, runner: Runner, window: Window) -> None:
        super().__init__()
        self.runner, self.editor = runner, window.editor
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.rows: dict[str, SourceRow] = {}
        self.spins: dict[str, QSpinBox] = {}
        self._made: object = None
        self._later = QTimer(self, singleShot=True, interval=0)
        self._later.timeout.connect(self.show_inputs)
        editor = self.editor
        editor.checked.connect(lambda findings: self._later.start())
        editor.edited.connect(lambda edit: self._later.start())
        editor.document_changed.connect(self._later.start)
        self.show_inputs()

    @property
    def folder(self) -> Path | None:
        """The document's folder."""
        return self.editor.path.parent if self.editor.path is not None else None

    def show_inputs(self) -> None:
        """Shows a row for each input; rows are made anew only if there are others than before."""
        graph = self.editor.graph
        inputs, symbols = list(input_names(graph)), symbols_of(graph)
        if (inputs, symbols) != self._made:
            self._made = inputs, symbols
            self._make(inputs, symbols)
        for row in self.rows.values():
            row.show_state()
        sizes = sizes_of(graph)
        for name, spin in self.spins.items():
            with QSignalBlocker(spin):
                spin.setValue(sizes.get(name, DEFAULT_SIZE))

    def _make(self, inputs: list[str], symbols: list[str]) -> None:
        body = QWidget()
        layout = QVBoxLayout(body)
        layout.setContentsMargins(10, 8, 10, 8)
        self.rows = {id: SourceRow(id, self) for id in inputs}
        self.spins = {name: self._spin(name) for name in symbols}
        if not inputs:
            layout.addWidget(QLabel("The graph has no inputs.", wordWrap=True))
        for row in self.rows.values():
            layout.addWidget(row)
        if symbols:
            text = "Sizes of open dimensions, where no file says another"
            layout.addWidget(QLabel(text, wordWrap=True))
            form = QFormLayout()
            for name, spin in self.spins.items():
                form.addRow(name, spin)
            layout.addLayout(form)
        layout.addStretch(1)
        self.setWidget(body)

    def _spin(self, name: str) -> QSpinBox:
        spin = QSpinBox(maximum=LARGEST_SIZE)
        spin.setAccessibleName(f"Size of {name}")
        spin.setKeyboardTracking(False)
        WheelPasses(spin)
        spin.valueChanged.connect(lambda size: self._set_size(name, size))
        return spin

    def _set_size(self, name: str, size: int) -> None:
        graph = self.editor.graph
        self.editor.edit(f"Set {name} to {size}", lambda: set_size(graph, name, size), f"size {name}")


def install(window: Window) -> None:
    """Adds the pane."""
    window.add_pane(FeedingPane(window.runner, window), RIGHT)
