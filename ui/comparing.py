"""Comparing the weights of mixtures with float ones, beside the window's work."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QRunnable, QThreadPool, Signal

from runtime.experts import expert_count, find_twin, twin_errors
from runtime.files import load
from runtime.graph import Graph
from runtime.twins import with_floats

TELL_EVERY = 0.15
"""Seconds between two tellings of how far a comparison is."""


@dataclass
class Comparison:
    """What is known of one mixture: errors of the first of its `experts`; `reason` says why there are none.

    `file` has the float weights, or is a checkpoint's folder; None if they are in the document itself. `basis` is what
    was compared. While it goes on, `is_ended` is False.
    """

    node: str
    file: Path | None
    basis: tuple[object, ...]
    experts: int = 0
    errors: list[dict[str, float]] = field(default_factory=list)
    reason: str = ""
    is_ended: bool = False


class _Signals(QObject):
    told = Signal(object, object, str, bool)
    """The comparison, the errors so far, why there are none, whether that is all."""


class _Work(QRunnable):
    """Compares expert by expert, so that it can be stopped in between."""

    def __init__(self, comparison: Comparison, graph: Graph, signals: _Signals) -> None:
        super().__init__()
        self._comparison, self._graph, self._signals = comparison, graph, signals
        self.cancelled = False

    def run(self) -> None:
        errors: list[dict[str, float]] = []
        reason, told = "", time.monotonic()
        try:
            node, file = self._comparison.node, self._comparison.file
            other = self._graph if file is None else self._floats(node, file)
            for error in twin_errors(self._graph, node, other, find_twin(self._graph, node, other)):
                if self.cancelled:
                    return
                errors.append(error)
                if time.monotonic() - told > TELL_EVERY:
                    told = time.monotonic()
                    self._tell(list(errors), "", False)
        except Exception as error:  # a thread has nobody above it
            errors, reason = [], str(error) or type(error).__name__
        self._tell(errors, reason, True)

    def _floats(self, node: str, file: Path) -> Graph:
        """The graph in a file; of a checkpoint's folder, this graph with the floats that the node remembers."""
        return with_floats(self._graph, file, file, [node]) if file.is_dir() else load(file)

    def _tell(self, errors: list[dict[str, float]], reason: str, ended: bool) -> None:
        with suppress(RuntimeError):  # the window may be gone
            self._signals.told.emit(self._comparison, errors, reason, ended)


class Comparisons(QObject):
    """One comparison at a time; of each mixture, the last one is kept."""

    changed = Signal()
    """A comparison began, went on or ended."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._last: dict[str, Comparison] = {}
        self._running: Comparison | None = None
        self._work: _Work | None = None
        self._pool = QThreadPool(self)
        self._pool.setMaxThreadCount(1)
        self._signals = _Signals()
        self._signals.told.connect(self._take)

    @property
    def is_busy(self) -> bool:
        """Whether a comparison is under way."""
        return self._running is not None

    def of(self, node: str) -> Comparison | None:
        """The last comparison of a mixture."""
        return self._last.get(node)

    def start(self, graph: Graph, node: str, file: Path | None) -> None:
        """Compares a mixture of a graph with a file, or with the graph itself, instead of what is under way."""
        self.stop()
        self._running = self._last[node] = Comparison(node, file, basis(graph, node), expert_count(graph, node))
        self._work = _Work(self._running, graph.copy(), self._signals)
        self._pool.start(self._work)
        self.changed.emit()

    def stop(self) -> None:
        """Ends what is under way, and forgets it."""
        if self._work is not None and self._running is not None:
            self._work.cancelled = True
            self._last.pop(self._running.node, None)
            self._running = self._work = None
            self.changed.emit()

    def clear(self) -> None:
        """Forgets everything: another document is shown."""
        self.stop()
        self._last.clear()
        self.changed.emit()

    def _take(self, comparison: Any, errors: Any, reason: str, ended: bool) -> None:
        if not isinstance(comparison, Comparison) or comparison is not self._running:
            return
        comparison.errors, comparison.reason, comparison.is_ended = errors, reason, ended
        if ended:
            self._running = self._work = None
        self.changed.emit()


def basis(graph: Graph, node: str) -> tuple[object, ...]:
    """What the weights of a mixture are made of; see `is_same`."""
    sources = {port: graph.nodes[source.node] for port, source in graph.inputs_of(node).items()}
    tensors = {
        port: tensor for port, state in sources.items() if (tensor := state.parameters.get("tensor")) is not None
    }
    return (dict(graph.nodes[node].parameters), tuple(tensors), *tensors.values())


def is_same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    """Whether two bases are the same: tensors are so only if they are one, so that none is read."""
    return one[:2] == other[:2] and all(a is b for a, b in zip(one[2:], other[2:], strict=True))
