"""Trains the document beside the window's work: the plan, live losses and norms, pause, and the best weights."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PySide6.QtCore import QSignalBlocker, QSocketNotifier, Qt, QTimer
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSpinBox,
    QSplitter,
    QTabWidget,
    QToolButton,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from runtime.arrays import FORMS, read_arrays
from runtime.drawing.words import number_text
from runtime.errors import Finding, GraphError, StudioError
from runtime.feeds import Source, feeds_of
from runtime.graph import Graph, same
from runtime.guard import input_names
from runtime.jobs import (
    BestWeights,
    Cancelled,
    Crashed,
    EpochFinished,
    Event,
    Failed,
    Finished,
    Paused,
    Training,
    TrainingProgressed,
)
from runtime.tensors import Tensor
from runtime.training.plan import OPTIMIZER_NAMES, Plan, plan_of, scalar_losses, set_plan, settings_of, why_wrong
from runtime.training.schedules import KINDS
from runtime.worker import Worker
from ui import theme
from ui.curves import Curves
from ui.editor import Editor
from ui.fields import WheelPasses
from ui.running import Runner
from ui.window import BOTTOM, Window

NUMBERS: tuple[tuple[str, str, float, float, int], ...] = (
    ("rate", "Learning rate", 0, 1e6, 6),
    ("momentum", "Momentum", 0, 0.9999, 4),
    ("weight_decay", "Weight decay", 0, 1e6, 5),
    ("validation", "Held back", 0, 0.99, 2),
    ("clip_norm", "Clip the norm at", 0, 1e12, 3),
)
COUNTS: tuple[tuple[str, str, int, int], ...] = (
    ("epochs", "Epochs", 1, 1_000_000),
    ("batch_size", "Batch size", 1, 1_000_000_000),
    ("warm_up", "Warm-up steps", 0, 1_000_000_000),
    ("patience", "Patience, epochs", 0, 1_000_000),
    ("seed", "Seed", 0, 2**31 - 1),
)


class PlanForm(QScrollArea):
    """The plan in the document, field by field; each change is an undo step."""

    def __init__(self, editor: Editor, pane: TrainingPane) -> None:
        super().__init__()
        self._editor, self._pane = editor, pane
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        body = QWidget()
        self.form = form = QFormLayout(body)
        form.setContentsMargins(8, 6, 8, 6)
        form.setVerticalSpacing(3)
        self.data = QLineEdit()
        self.data.setPlaceholderText("those of Run inputs")
        self.data.setAccessibleName("Data")
        browse = QToolButton(text="…")
        browse.setAccessibleName("Choose a file of data")
        line = QHBoxLayout()
        line.addWidget(self.data)
        line.addWidget(browse)
        form.addRow("Data", line)
        self.losses = QLineEdit()
        self.losses.setAccessibleName("Losses")
        self.losses.setToolTip("Outputs with their weights: loss=1 balance_loss=0.01")
        form.addRow("Losses", self.losses)
        self.metrics = QLineEdit()
        self.metrics.setAccessibleName("Metrics")
        self.metrics.setPlaceholderText("accuracy:logits:y")
        form.addRow("Metrics", self.metrics)
        self.choices: dict[str, QComboBox] = {}
        for name, label, texts in (("optimizer", "Optimizer", list(OPTIMIZER_NAMES)), ("schedule", "Schedule", KINDS)):
            box = self.choices[name] = QComboBox()
            box.addItems(list(texts))
            box.setAccessibleName(label)
            box.activated.connect(lambda index, name=name: self._set(name, self.choices[name].currentText()))
            form.addRow(label, box)
        self.numbers: dict[str, QDoubleSpinBox | QSpinBox] = {}
        for name, label, low, high, digits in NUMBERS:
            spin = QDoubleSpinBox(decimals=digits, minimum=low, maximum=high)
            spin.setStepType(QDoubleSpinBox.StepType.AdaptiveDecimalStepType)
            spin.valueChanged.connect(lambda value, name=name: self._set(name, value))
            self._add_number(name, label, spin)
        for name, label, least, most in COUNTS:
            count = QSpinBox(minimum=least, maximum=most)
            count.valueChanged.connect(lambda value, name=name: self._set(name, value))
            self._add_number(name, label, count)
        self.numbers["clip_norm"].setSpecialValueText("never")
        self.numbers["patience"].setSpecialValueText("to the end")
        WheelPasses(*self.choices.values(), *self.numbers.values())
        self.setWidget(body)
        browse.clicked.connect(self.ask)
        self.data.editingFinished.connect(self._take_data)
        self.losses.editingFinished.connect(self._take_losses)
        self.metrics.editingFinished.connect(lambda: self._set("metrics", self.metrics.text().strip()))
        self.show_plan()

    def _add_number(self, name: str, label: str, spin: QDoubleSpinBox | QSpinBox) -> None:
        spin.setAccessibleName(label)
        spin.setKeyboardTracking(False)
        self.numbers[name] = spin
        self.form.addRow(label, spin)

    def show_plan(self) -> None:
        """Shows what the document says."""
        plan, wrong = plan_of(self._editor.graph)
        for name, box in self.choices.items():
            box.setCurrentText(getattr(plan, name))
        for name, spin in self.numbers.items():
            with QSignalBlocker(spin):
                spin.setValue(getattr(plan, name))
        self.form.setRowVisible(self.numbers["momentum"], plan.optimizer == "SGD")
        fresh = " ".join(f"{name}=1" for name in scalar_losses(self._editor.graph))
        self.losses.setPlaceholderText(fresh or "no scalar output")
        texts = (
            (self.losses, " ".join(f"{name}={weight:g}" for name, weight in plan.losses.items())),
            (self.metrics, plan.metrics),
            (self.data, str(self._pane.outside) if self._pane.outside else plan.data),
        )
        for field, text in texts:
            if not (field.hasFocus() and field.isModified()):
                field.setText(text)
        if wrong:
            self._pane.say(" ".join(wrong), wrong=True)

    def _set(self, name: str, value: Any) -> None:
        graph = self._editor.graph
        plan = plan_of(graph)[0]
        if getattr(plan, name) == value:
            return
        reason = why_wrong(name, value)
        if reason:
            self._pane.say(reason, wrong=True)
            return
        self._pane.say("")
        self._editor.edit("Plan the training", lambda: set_plan(graph, replace(plan, **{name: value})), f"plan {name}")

    def _take_losses(self) -> None:
        if not self.losses.isModified():
            return
        self.losses.setModified(False)
        losses: dict[str, float] = {}
        for part in self.losses.text().replace(",", " ").split():
            name, equals, number = part.partition("=")
            try:
                losses[name] = float(number) if equals else 1.0
            except ValueError:
                self._pane.say(f"{part}: expected an output and its weight, such as loss=1.", wrong=True)
                return
        self._set("losses", losses)

    def ask(self) -> None:
        """Asks for a file of data."""
        endings = " ".join(f"*{form}" for form in FORMS)
        folder = str(self._editor.path.parent if self._editor.path is not None else Path.cwd())
        name, _ = QFileDialog.getOpenFileName(self, "Data to train on", folder, f"Arrays ({endings})")
        if name:
            self.take_file(Path(name))

    def _take_data(self) -> None:
        if not self.data.isModified():
            return
        self.data.setModified(False)
        text = self.data.text().strip()
        if text:
            self.take_file(Path(text).expanduser())
        else:
            self._pane.outside = None
            self._set("data", "")

    def take_file(self, path: Path) -> None:
        """Takes a file of data: the document remembers it if it lies in its folder or below."""
        folder = self._editor.path.parent if self._editor.path is not None else None
        whole = path if path.is_absolute() or folder is None else folder / path
        if path.suffix.lower() not in FORMS:
            self._pane.say(f"{path}: expected a file that ends with one of {', '.join(FORMS)}.", wrong=True)
            return
        if not whole.is_file():
            self._pane.say(f"{path} is not there.", wrong=True)
            return
        whole = whole.resolve()
        self._pane.say("")
        if folder is not None and whole.is_relative_to(folder.resolve()):
            self._pane.outside = None
            self._set("data", whole.relative_to(folder.resolve()).as_posix())
        else:
            self._pane.outside = whole
            self._pane.say("The data are not beside the document: the file is known until the window closes.")
        self.show_plan()


class TrainingPane(QWidget):
    """The plan at the left, what happens at the right. A process of its own trains, so that the window can run, too."""

    title = "Training"

    def __init__(self, runner: Runner, editor: Editor) -> None:
        super().__init__()
        self._runner, self._editor = runner, editor
        self.outside: Path | None = None
        self._worker: Worker | None = None
        self._bell: QSocketNotifier | None = None
        self._job = 0
        self._graph: Graph | None = None
        self._begun = 0.0
        self._wants_best = False
        self._make()
        self._later = QTimer(self, singleShot=True, interval=0)
        self._later.timeout.connect(self.plan.show_plan)
        editor.edited.connect(lambda edit: self._later.start())
        editor.checked.connect(lambda findings: self._later.start())
        editor.document_changed.connect(self._leave)
        self._show_state()

    def _make(self) -> None:
        self.message = QLabel(wordWrap=True)
        self.plan = PlanForm(self._editor, self)
        self.start, self.pause = QPushButton("Start"), QPushButton("Pause")
        self.halt, self.best = QPushButton("Stop"), QPushButton("Take best weights")
        self.best.setToolTip("Puts the weights of the best epoch into the document, as one undo step")
        self.progress = QProgressBar()
        self.progress.setAccessibleName("Progress of the training")
        self.progress.setTextVisible(False)
        self.progress.setMinimumWidth(120)
        self.at = QLabel()
        buttons = QHBoxLayout()
        for widget in (self.start, self.pause, self.halt, self.best, self.progress, self.at):
            buttons.addWidget(widget)
        buttons.setStretch(4, 1)
        self.loss, self.norm = Curves("Loss by step"), Curves("Gradient norm by step")
        self.rate = Curves("Learning rate by step")
        self.epochs = QTreeWidget()
        self.epochs.setRootIsDecorated(False)
        self.epochs.setAccessibleName("Epochs")
        self.epochs.header().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.tabs = QTabWidget(documentMode=True)
        self.tabs.setAccessibleName("Shown of the training")
        self.tabs.addTab(self.loss, "Loss")
        self.tabs.addTab(self.norm, "Gradient norm")
        self.tabs.addTab(self.rate, "Rate")
        self.tabs.addTab(self.epochs, "Epochs")
        right = QWidget()
        column = QVBoxLayout(right)
        column.setContentsMargins(6, 4, 6, 2)
        column.setSpacing(3)
        column.addLayout(buttons)
        column.addWidget(self.message)
        column.addWidget(self.tabs, 1)
        split = QSplitter()
        split.addWidget(self.plan)
        split.addWidget(right)
        split.setSizes([320, 780])
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(split)
        self.setFocusProxy(self.start)
        self.start.clicked.connect(self.begin)
        self.pause.clicked.connect(self.toggle_pause)
        self.halt.clicked.connect(self.stop)
        self.best.clicked.connect(self.take_best)
        self.say("")

    # -- orders -------------------------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a training run is under way."""
        return self._worker is not None and bool(self._job) and self._worker.is_busy

    def begin(self) -> bool:
        """Starts training the document as it is now; whether that could be done."""
        editor = self._editor
        editor.canvas.refresh()
        if editor.errors:
            count = len(editor.errors)
            self.say(f"{count} {'error keeps' if count == 1 else 'errors keep'} the graph from running.", wrong=True)
            return False
        if self.is_busy:
            self.say("It trains already.", wrong=True)
            return False
        try:
            plan = plan_of(editor.graph)[0]
            data = self._data(plan)
            samples = min((len(array) for array in data.values() if array.ndim), default=0)
            settings = settings_of(editor.graph, plan, samples)
            self._job = self._living().train(editor.graph, data, settings, backend=self._runner.backend)
        except StudioError as error:
            self.say(str(error), wrong=True)
            return False
        self._graph = editor.graph
        self._begun = time.monotonic()
        for curves in (self.loss, self.norm, self.rate):
            curves.clear()
        self.epochs.clear()
        self.progress.setRange(0, 0)
        self.at.setText("Opening")
        self.say("")
        self._show_state()
        return True

    def _data(self, plan: Plan) -> dict[str, Any]:
        editor = self._editor
        folder = editor.path.parent if editor.path is not None else None
        if self.outside is not None:
            path: Path | None = self.outside
        elif plan.data and folder is not None:
            path = Source(file=plan.data).place(folder)
        elif plan.data:
            text = f"The data are in {plan.data}, beside the document; but that is in no file yet."
            raise GraphError(Finding(text, remedy="Save the document, or choose the file anew.", code="input"))
        else:
            path = None
        if path is None:
            return feeds_of(editor.graph, folder, self._runner.files)
        arrays, names = read_arrays(path), input_names(editor.graph).values()
        missing = [name for name in names if name not in arrays]
        if missing:
            text = f"{path.name} has no array {missing[0]}; it has {', '.join(arrays) or 'none'}."
            raise GraphError(Finding(text, remedy="An array for every input is needed.", code="input"))
        return {name: arrays[name] for name in names}

    def toggle_pause(self) -> None:
        """Lets training wait after its next step, or go on."""
        if self._worker is not None and self.is_busy:
            if self._worker.is_paused:
                self._worker.resume()
            else:
                self._worker.pause()

    def stop(self) -> None:
        """Ends training; what it had reached can still be taken."""
        if self._worker is not None:
            self._worker.cancel()

    def take_best(self) -> None:
        """Puts the best weights so far into the document."""
        if self._worker is not None:
            self._wants_best = True
            self._worker.request_best()

    def close(self) -> bool:
        """Ends the process."""
        if self._bell is not None:
            self._bell.setEnabled(False)
        if self._worker is not None:
            self._worker.close()
        return super().close()

    def _leave(self) -> None:
        """Another document is shown: this one's training ends."""
        self._job = 0
        self.outside = None
        if self._worker is not None:
            self._worker.cancel()
        self._graph = None
        for curves in (self.loss, self.norm, self.rate):
            curves.clear()
        self.epochs.clear()
        self.at.setText("")
        self.say("")
        self.plan.show_plan()
        self._show_state()

    def _living(self) -> Worker:
        if self._worker is None:
            self._worker = Worker()
            self._bell = QSocketNotifier(self._worker.fileno(), QSocketNotifier.Type.Read, self)
            self._bell.activated.connect(self.poll)
        return self._worker

    # -- what happens -------------------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Takes what the process has told."""
        if self._worker is None:
            return
        for event in self._worker.poll():
            if event.job == self._job or isinstance(event, BestWeights | Failed):
                self._take(event)
        self._show_state()

    def _take(self, event: Event) -> None:
        match event:
            case TrainingProgressed():
                self._progressed(event)
            case EpochFinished(_, epoch, entry, _, is_best):
                self._add_epoch(epoch, entry, is_best)
            case Paused(_, paused):
                self.say("Paused." if paused else "")
            case Finished(_, Training() as training):
                seconds = time.monotonic() - self._begun
                best = f", best epoch {training.best_epoch + 1}" if training.best_epoch is not None else ""
                self.say(f"Trained {len(training.history)} epochs in {seconds:.1f} s{best}.")
                self.take_weights(training)
            case Cancelled(_, killed):
                self.say(
                    "Stopped: its process had to be ended." if killed else "Stopped. Its best weights can be taken."
                )
            case BestWeights(_, training) if self._wants_best:
                self._wants_best = False
                self.take_weights(training)
            case Failed(job, findings) if job in (0, self._job):
                self._fail(findings)
            case Crashed():
                self._fail([event.finding])

    def _progressed(self, event: TrainingProgressed) -> None:
        for name, value in event.losses.items():
            if len(event.losses) > 2 or name != "total_loss":  # of one loss, the total is the same
                self.loss.add(name, event.step, value)
        self.norm.add("gradient norm", event.step, event.gradient_norm)
        self.rate.add("learning rate", event.step, event.rate)
        self.progress.setRange(0, event.steps)
        self.progress.setValue(event.step)
        left = (time.monotonic() - self._begun) / max(1, event.step) * (event.steps - event.step)
        self.at.setText(f"epoch {event.epoch + 1}, step {event.step:,} of {event.steps:,}, {_time_text(left)} left")

    def _add_epoch(self, epoch: int, entry: Mapping[str, float], is_best: bool) -> None:
        names = list(entry)
        self.epochs.setHeaderLabels(["Epoch", *(name.replace("_", " ") for name in names)])
        row = QTreeWidgetItem([str(epoch + 1), *(number_text(float(f"{entry[name]:.4g}")) for name in names)])
        if is_best:
            for index in range(self.epochs.topLevelItemCount()):
                other = self.epochs.topLevelItem(index)
                if other is not None:
                    other.setText(0, other.text(0).removesuffix(" best"))
            row.setText(0, f"{epoch + 1} best")
        self.epochs.addTopLevelItem(row)
        self.epochs.scrollToItem(row)
        step = self.progress.value()
        for name in names:
            if name.startswith("validation ") and name.removeprefix("validation ") in self.loss.lines:
                self.loss.add(name, step, entry[name])

    def _fail(self, findings: Iterable[Finding]) -> None:
        found = list(findings)
        self.say("The training failed: " + " ".join(map(str, found)), wrong=True)
        self._editor.report(found)
        named = next((finding.node for finding in found if finding.node in self._editor.graph.nodes), "")
        if named:
            self._editor.canvas.reveal(named)

    def take_weights(self, training: Training) -> bool:
        """Puts trained weights into the document as one undo step; whether something changed."""
        graph = self._editor.graph
        if graph is not self._graph:
            return False
        changed: dict[str, Tensor] = {}
        lost: list[str] = []
        for id, tensor in training.weights.items():
            state = graph.nodes.get(id)
            before = state.parameters.get("tensor") if state is not None else None
            if not isinstance(before, Tensor) or before.type != tensor.type:
                lost.append(id)
            elif not same(before, tensor):
                changed[id] = tensor
        epoch = training.best_epoch
        label = f"Take the weights of epoch {epoch + 1}" if epoch is not None else "Take trained weights"

        def change() -> None:
            for id, tensor in changed.items():
                graph.set(id, "tensor", tensor)

        done = bool(changed) and self._editor.edit(label, change)
        told = [self.message.text()] if self.message.text() else []
        if done:
            told.append(f"{label}: {len(changed)} tensors.")
        if lost:
            told.append(f"No longer there, or of another shape: {', '.join(lost)}.")
        self.say(" ".join(told), wrong=bool(lost))
        return done

    def say(self, text: str, *, wrong: bool = False) -> None:
        """Shows a sentence above the curves."""
        look = theme.current()
        self.message.setStyleSheet(f"color: {theme.css(look.error if wrong else look.faint)};")
        self.message.setText(text)
        self.message.setVisible(bool(text))

    def _show_state(self) -> None:
        busy = self.is_busy
        self.start.setEnabled(not busy)
        self.pause.setEnabled(busy)
        self.pause.setText("Go on" if busy and self._worker is not None and self._worker.is_paused else "Pause")
        self.halt.setEnabled(busy)
        self.best.setEnabled(bool(self._job) and self.epochs.topLevelItemCount() > 0)
        self.progress.setVisible(busy)
        if not busy and self.at.text():
            self.at.setText("")

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        if event.key() == Qt.Key.Key_Escape:
            self._editor.canvas.viewer.setFocus()
        else:
            super().keyPressEvent(event)


def _time_text(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def install(window: Window) -> None:
    """Adds the pane and its command."""
    pane = TrainingPane(window.runner, window.editor)
    window.add_pane(pane, BOTTOM)
    window.closing.connect(pane.close)

    def train() -> None:
        window.show_pane("Training")
        pane.begin()

    window.command("Run", "Train", train, "F7")
