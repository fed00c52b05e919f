"""Running the document: forward and backward, in a process of its own, and what the last run gave."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from PySide6.QtCore import QObject, QSocketNotifier, Signal
from PySide6.QtGui import QActionGroup, QKeySequence
from PySide6.QtWidgets import QComboBox, QLabel, QProgressBar

from runtime.drawing.words import seconds_text
from runtime.editing import probes_of
from runtime.errors import FileError, Finding, GraphError
from runtime.feeds import feeds_of
from runtime.graph import Cut, Graph, PortRef, Set, Wire
from runtime.jobs import Backend, Cancelled, Crashed, Event, Failed, Finished, Phase, Progressed, Result, Started
from runtime.types import TensorType
from runtime.worker import Worker
from ui import icons
from ui.editor import Editor
from ui.window import Window

PHASES: dict[Phase, str] = {"starting": "Starting", "opening": "Opening", "forward": "Forward", "backward": "Backward"}


class Runner(QObject):
    """Runs the document when it is told to. `result` is what the last run gave; edits make parts of it stale."""

    changed = Signal()
    """A run began, went on or ended, or the document has been edited since."""
    finished = Signal(object)
    """A run ended well: the Result."""
    failed = Signal()
    """A run could not begin, or ended badly."""

    def __init__(self, editor: Editor, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._editor = editor
        self.worker = Worker()
        self.backend: Backend = "onnxruntime"
        self.measures_times = True
        self.checks_numerics = False
        self.probes_all_gradients = False
        self.files: dict[str, Path] = {}
        """Files outside the document's folder that were chosen for inputs, by the Input node's id: for this session."""
        self.result: Result | None = None
        self.progress: Progressed | None = None
        self._job = 0
        self._is_partial = False
        self._edited_meanwhile: set[str] = set()
        self._stale: set[str] = set()
        self._wants_backward = False
        self._bell = QSocketNotifier(self.worker.fileno(), QSocketNotifier.Type.Read, self)
        self._bell.activated.connect(self.poll)
        editor.edited.connect(self._hear)
        editor.document_changed.connect(self.forget)

    # -- what there is ------------------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a run is under way."""
        return self.worker.is_busy

    @property
    def is_stale(self) -> bool:
        """Whether an edit since the last run may have changed some of its values."""
        return bool(self._stale)

    def is_stale_at(self, source: PortRef) -> bool:
        """Whether an edit since the last run may have changed this value."""
        return source.node in self._stale

    # -- orders -------------------------------------------------------------------------------------------------------

    def forward(self, until: str = "") -> bool:
        """Runs forward, all of it or what one node needs; whether that has begun."""
        return self._run(False, until)

    def backward(self) -> bool:
        """Runs forward and back from all losses: the scalar outputs, or all outputs of floats if none is a scalar."""
        return self._run(True)

    def stop(self) -> None:
        """Cancels the run."""
        if self.is_busy:
            self.worker.cancel()
            self._editor.told.emit("Stopping…")

    def warm_up(self) -> None:
        """Starts the process, so that the first run need not wait for it."""
        try:
            self.worker.start()
        except GraphError as error:
            self._editor.told.emit(str(error))

    def forget(self) -> None:
        """Drops the last run's result, and stops one that is under way: another document is shown."""
        self.worker.cancel()
        self._job = 0  # its end, if that has not been heard yet, says nothing about this document
        self.result, self.progress = None, None
        self._stale.clear()
        self.files.clear()
        self.changed.emit()

    def close(self) -> None:
        """Ends the process."""
        self._bell.setEnabled(False)
        self.worker.close()

    def _run(self, backward: bool, until: str = "") -> bool:
        editor = self._editor
        editor.canvas.refresh()
        if self.is_busy:
            editor.told.emit("A run is under way; Ctrl+. stops it.")
            return False
        graph = editor.graph
        self._editor.report([])
        try:
            feeds = feeds_of(graph, editor.path.parent if editor.path is not None else None, self.files)
            probes = probes_of(graph)
            self._job = self.worker.run(
                graph,
                feeds,
                backend=self.backend,
                probes=probes,
                backward=self._losses() if backward else None,
                gradient_probes=self._of_floats(graph.wires.values() if self.probes_all_gradients else probes)
                if backward
                else (),
                times=self.measures_times,
                check_numerics=self.checks_numerics,
                until=until or None,
                everything=True,
            )
        except GraphError as error:
            self._fail(error.findings)
            return False
        except FileError as error:
            self._fail([Finding(str(error), remedy="Choose another file in Run inputs.", code="file")])
            return False
        self.progress = None
        self._is_partial, self._wants_backward = bool(until), backward
        self._edited_meanwhile = set()
        self.changed.emit()
        return True

    def _losses(self) -> dict[str, float]:
        graph = self._editor.graph
        outputs: dict[str, Any] = {}
        for id, state in graph.nodes.items():
            source = graph.wires.get(PortRef(id, "value"))
            if state.type == "Output" and source is not None and self._is_float(source):
                outputs[str(state.parameters.get("name") or id)] = graph.checker.type_of(source)
        scalars = [name for name, type_ in outputs.items() if type_.shape == ()]
        if not outputs:
            text = "There is no output of floats to go back from."
            raise GraphError(Finding(text, remedy="Add an Output after a loss.", code="backward"))
        if not scalars:
            self._editor.told.emit(f"No output is a scalar: gradients are those of the sum of {', '.join(outputs)}.")
        return dict.fromkeys(scalars or outputs, 1.0)

    def _is_float(self, source: PortRef) -> bool:
        type_ = self._editor.graph.checker.type_of(source)
        return isinstance(type_, TensorType) and type_.element is not None and type_.element.is_float

    def _of_floats(self, sources: Iterable[PortRef]) -> list[PortRef]:
        return [source for source in dict.fromkeys(sources) if self._is_float(source)]

    # -- what happens -------------------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Takes what the process has told."""
        for event in self.worker.poll():
            self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case _ if event.job != self._job:
                pass
            case Started(_, reason):
                self._editor.told.emit(f"Running: {reason}." if reason else "Running.")
            case Progressed():
                self.progress = event
            case Finished(_, Result() as result):
                self._finish(result)
            case Failed(_, findings):
                self._fail(findings)
            case Crashed():
                self._fail([event.finding])
            case Cancelled():
                self._editor.told.emit("Stopped.")
        if not self.is_busy:
            self.progress = None
        self.changed.emit()

    def _finish(self, result: Result) -> None:
        self.result = result
        self._stale = self._edited_meanwhile & set(self._editor.graph.nodes)
        self._editor.report(result.findings)
        seconds = [f"forward {seconds_text(result.forward_seconds)}"]
        if self._wants_backward:
            seconds.append(f"backward {seconds_text(result.backward_seconds)}")
        opening = f", opened in {seconds_text(result.opening_seconds)} ({result.reason})" if result.reason else ""
        part = " to the selected node" if self._is_partial else ""
        self._editor.told.emit(f"Ran{part} on {self.backend}: {', '.join(seconds)}{opening}.")
        self.finished.emit(result)

    def _fail(self, findings: Iterable[Finding]) -> None:
        found = list(findings)
        self._editor.report(found)
        self._editor.told.emit("The run failed: " + " ".join(map(str, found[:1])))
        for finding in found:
            if finding.node in self._editor.graph.nodes:
                self._editor.canvas.reveal(finding.node)
                break
        self.failed.emit()

    def _hear(self, edit: Any) -> None:
        """Notes whose values are no longer those of the last run: what was edited, and all that it feeds."""
        match edit:
            case Set(node, section, key):
                if section == "layout" and key not in ("source", "sizes"):
                    return
            case Wire(_, target) | Cut(target):
                node = target.node
            case _:
                return  # a node that comes or goes has no wires then
        touched = _downstream(self._editor.graph, node) if node else set(self._editor.graph.nodes)
        if self.is_busy:
            self._edited_meanwhile |= touched
        if self.result is not None and not touched <= self._stale:
            self._stale |= touched
            self.changed.emit()


def _downstream(graph: Graph, node: str) -> set[str]:
    found, waiting = {node}, [node]
    while waiting:
        id = waiting.pop()
        if id not in graph.nodes:
            continue
        for source, target in graph.wires_of(id):
            if source.node == id and target.node not in found:
                found.add(target.node)
                waiting.append(target.node)
    return found


class RunTools(QObject):
    """Commands, tool bar and progress of runs."""

    def __init__(self, runner: Runner, window: Window) -> None:
        super().__init__(window)
        self._runner, self._window, self._editor = runner, window, window.editor
        add = window.command
        self.run = add("Run", "Run", self._go, "F5")
        self.run.setShortcuts([QKeySequence("F5"), QKeySequence("Ctrl+R")])
        self.back = add("Run", "Run backward", self._go_back, "F6")
        self.here = add("Run", "Run to here", self._go_here, "Ctrl+F5")
        self.halt = add("Run", "Stop", runner.stop, "Ctrl+.")
        self._make_choices()
        self.times = self._switch("Measure time per node", "measures_times")
        self.numerics = self._switch("Stop at NaN or infinity", "checks_numerics")
        self.numerics.setToolTip("Names the first node whose output is not finite")
        for action in (self.run, self.back, self.halt):
            window.tools.addAction(action)
        self.backends = QComboBox()
        self.backends.setAccessibleName("Backend")
        self.backends.setToolTip("What runs the graph")
        self.backends.addItems(["onnxruntime", "numpy"])
        self.backends.currentTextChanged.connect(self._choose)
        window.tools.addWidget(self.backends)
        self.bar = QProgressBar()
        self.bar.setFixedWidth(140)
        self.bar.setTextVisible(False)
        self.bar.setAccessibleName("Progress")
        self.at = QLabel()
        for widget in (self.at, self.bar):
            window.statusBar().addPermanentWidget(widget)
            widget.hide()
        runner.changed.connect(self.show_state)
        runner.failed.connect(window.panes["Problems"].show)
        self._editor.checked.connect(lambda findings: self.show_state())
        self.show_state()

    def _switch(self, text: str, name: Literal["measures_times", "checks_numerics"]) -> Any:
        action = self._window.command("Run", text, lambda: setattr(self._runner, name, action.isChecked()))
        action.setCheckable(True)
        action.setChecked(getattr(self._runner, name))
        return action

    def _make_choices(self) -> None:
        group = QActionGroup(self)
        backends: tuple[Backend, ...] = ("onnxruntime", "numpy")
        self.choices = {}
        for backend in backends:
            text = f"On {backend}"
            action = self._window.command("Run", text, lambda name=backend: self._choose(name))  # type: ignore[misc]
            action.setCheckable(True)
            action.setChecked(backend == self._runner.backend)
            group.addAction(action)
            self.choices[backend] = action

    def _choose(self, backend: str) -> None:
        self._runner.backend = "numpy" if backend == "numpy" else "onnxruntime"
        self.backends.setCurrentText(backend)
        self.choices[self._runner.backend].setChecked(True)

    def _go(self) -> None:
        self._editor.canvas.refresh()
        if self._editor.errors:
            self._show_problems()
        else:
            self._runner.forward()

    def _go_back(self) -> None:
        self._editor.canvas.refresh()
        if self._editor.errors:
            self._show_problems()
        else:
            self._runner.backward()

    def _go_here(self) -> None:
        chosen = self._editor.canvas.selected
        if len(chosen) == 1:
            self._runner.forward(chosen[0])
        else:
            self._editor.told.emit("Select the one node that is to be run to.")

    def _show_problems(self) -> None:
        self._window.show_pane("Problems")
        count = len(self._editor.errors)
        self._editor.told.emit(f"{count} {'error keeps' if count == 1 else 'errors keep'} the graph from running.")

    def show_state(self) -> None:
        """Shows whether the graph can run, and how far a run is."""
        runner, broken = self._runner, bool(self._editor.errors)
        busy = runner.is_busy
        self.run.setIcon(icons.broken() if broken else icons.run())
        self.run.setToolTip("Errors keep the graph from running: show them" if broken else "Run forward (F5)")
        self.back.setIcon(icons.backward())
        self.halt.setIcon(icons.stop())
        for action in (self.run, self.back, self.here):
            action.setEnabled(not busy)
        self.halt.setEnabled(busy)
        self.backends.setEnabled(not busy)
        self.bar.setVisible(busy)
        self.at.setVisible(busy)
        progress = runner.progress
        if busy and progress is not None and progress.total:
            self.bar.setRange(0, progress.total)
            self.bar.setValue(progress.done)
            self.at.setText(f"{PHASES.get(progress.phase, 'Running')} {progress.node}")
        elif busy:
            self.bar.setRange(0, 0)
            self.at.setText("Opening")


def install(window: Window) -> None:
    """Adds the commands, the tool bar's buttons and the progress."""
    window.runner = Runner(window.editor, window)
    window.closing.connect(window.runner.close)
    window.keep(RunTools(window.runner, window))
