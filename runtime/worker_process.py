"""The process of a worker: takes jobs from a pipe, does one at a time, and ends when the pipe does."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime import errors, routing
from runtime.errors import FileError, Finding, GraphError, StudioError
from runtime.graph import Graph, PortRef
from runtime.jobs import (
    At,
    BestWeights,
    Cancelled,
    EpochFinished,
    Excerpt,
    Failed,
    Finished,
    Opening,
    Order,
    Paused,
    Phase,
    Progressed,
    Result,
    RunJob,
    Started,
    Training,
    TrainingProgressed,
    TrainJob,
)
from runtime.reaching import only_for
from runtime.summaries import Summary, summarize
from runtime.tensors import Tensor

if TYPE_CHECKING:
    from runtime.session import Session
    from runtime.training.trainer import Progress, Trainer

_NONE: frozenset[str] = frozenset()
LARGEST = 64 << 20
"""Bytes of the largest array that is sent whole."""
EXCERPT = 256 << 10
"""Bytes of an array's first rows that are sent if it is larger."""


def main(connection: Connection, preload: Sequence[str]) -> None:
    """What the process runs."""
    with suppress(ValueError, AttributeError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C in a terminal is the parent's business
    _without_core_files()
    _Process(connection).serve(preload)


class _Process:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._jobs: queue.SimpleQueue[RunJob | TrainJob | None] = queue.SimpleQueue()
        self._cancel = threading.Event()
        self._pause = threading.Event()
        self._wake = threading.Event()
        """Set whenever an order has come: a paused training run looks then."""
        self._wants_best = threading.Event()
        self._current = 0
        self._graph: Graph | None = None
        """The document's graph; `_part` is what the session has of it."""
        self._part = Graph()
        self._session: Session | None = None
        self._opened: Opening | None = None
        self._added: frozenset[str] = frozenset()
        """Names of the outputs that the graph as it was opened has only so that a node's values can be seen."""
        self._trainer: Trainer | None = None
        self._training = False

    # -- the pipe -------------------------------------------------------------------------------------------------

    def serve(self, preload: Sequence[str]) -> None:
        """Does jobs until the other end closes."""
        threading.Thread(target=self._listen, name="orders", daemon=True).start()
        failed = _import_all(preload)
        _warm_up()
        while (job := self._jobs.get()) is not None:
            self._current = job.job
            if failed is not None:
                self._send(Failed(job.job, (failed,)))
                continue
            self._do(job)

    def _listen(self) -> None:
        """Takes what comes. When the pipe ends the parent has, and with it this process, whatever it is doing."""
        try:
            while True:
                order: Order = self._connection.recv()
                if order.what == "job":
                    self._take(order.job, self._connection.recv_bytes())
                elif not self._obey(order):
                    break
        except (EOFError, OSError):
            pass
        os._exit(0)

    def _take(self, number: int, content: bytes) -> None:
        self._cancel.clear()
        self._pause.clear()
        try:
            job = pickle.loads(content)
        except Exception as error:  # a file that has changed, a class that is missing here
            self._send(Failed(number, (Finding(_sentence(error), code="pipe"),), traceback.format_exc()))
            return
        self._jobs.put(job)

    def _obey(self, order: Order) -> bool:
        match order.what:
            case "cancel":
                self._cancel.set()
            case "pause":
                self._pause.set()
            case "resume":
                self._pause.clear()
            case "best":
                self._wants_best.set()
                self._wake.set()
                if not self._training:
                    self._tell_best()
            case "close":
                return False
        self._wake.set()
        return True

    def _send(self, message: Any) -> None:
        content = pickle.dumps(message, 5)
        with self._sending, suppress(OSError):  # the listening thread notices that the other end is gone
            self._connection.send_bytes(content)

    # -- jobs -----------------------------------------------------------------------------------------------------

    def _do(self, job: RunJob | TrainJob) -> None:
        try:
            if isinstance(job, RunJob):
                self._run(job)
            else:
                self._train(job)
        except errors.Cancelled:
            self._training = False
            reached = _reached(self._trainer) if isinstance(job, TrainJob) and self._trainer is not None else None
            self._send(Cancelled(job.job, training=reached))
        except GraphError as error:
            self._send(Failed(job.job, error.findings))
        except StudioError as error:
            self._send(Failed(job.job, (Finding(str(error), code="file" if isinstance(error, FileError) else ""),)))
        except MemoryError:
            self._forget()
            message = "There is not enough memory for it."
            self._send(Failed(job.job, (Finding(message, remedy="Use smaller inputs.", code="memory"),)))
        except Exception as error:  # a mistake of ours or of a plug-in: the editor goes on, and shows it
            text = f"Something went wrong that should not: {_sentence(error)}"
            self._send(Failed(job.job, (Finding(text, code="internal"),), traceback.format_exc()))
        finally:
            self._training = False
            self._send(At(job.job, "waiting"))

    def _forget(self) -> None:
        self._session = None
        self._opened = None

    def _at(self, phase: Phase) -> Callable[[tuple[str, ...]], None]:
        job = self._current
        self._send(At(job, phase))
        return lambda nodes: self._send(At(job, phase, nodes))

    def _open(self, job: RunJob) -> tuple[Session, Graph]:
        from runtime.session import Session

        if job.graph is not None:
            self._graph = job.graph
        if job.fresh or self._opened != job.opening:
            self._forget()
        if self._session is None:
            assert self._graph is not None
            opening = job.opening
            self._at("opening")
            self._part, self._added = only_for(self._graph, opening.until) if opening.until else (self._graph, _NONE)
            self._session = Session(self._part, opening.backend, threads=opening.threads, precision=opening.precision)
            self._opened = opening
        return self._session, self._part

    def _run(self, job: RunJob) -> None:
        self._send(Started(job.job, job.reason))
        start = perf_counter()
        session, graph = self._open(job)
        opened = perf_counter()
        is_part = bool(job.opening.until)
        mixtures = routing.mixtures(graph)
        wanted = [PortRef.parse(probe) for probe in job.probes]
        if is_part:  # the rest of the graph does not run
            wanted = [port for port in wanted if port in set(graph.wires.values())]
        asked = dict.fromkeys([*wanted, *_results_of(graph, job.opening.until)])
        wires = _computed(graph) if job.everything else []
        routed = [source for node in mixtures for source in routing.given_to(graph, node)]
        watched = dict.fromkeys([*asked, *wires, *routed])
        inputs = {name: _array(value) for name, value in job.inputs.items() if name in session.inputs or not is_part}
        session.announce = self._at("forward")
        outputs = session.forward(
            inputs,
            watched,
            check_numerics=job.check_numerics,
            times=job.times,
            progress=self._progress("forward"),
            cancel=self._cancel,
        )
        forward = perf_counter()
        ran = session.last_run
        findings = list(session.findings)
        routings: dict[str, routing.Routing] = {}
        for node in mixtures:
            try:
                routings[node] = routing.routing_of(graph, node, ran.probes)
            except GraphError as error:
                findings += error.findings
        probes = {str(port): ran.probes[str(port)] for port in asked}
        summaries = _summaries({str(port): ran.probes[str(port)] for port in dict.fromkeys([*wires, *asked])})
        gradients: dict[str, Any] = {}
        back = type(ran)()
        if job.backward is not None:
            session.announce = self._at("backward")
            gradients = session.backward(
                {name: _array(value) for name, value in job.backward.items()},
                probes=job.gradient_probes,
                times=job.times,
                progress=self._progress("backward"),
                cancel=self._cancel,
            )
            back = session.last_run
        backward = perf_counter()
        if self._cancel.is_set():
            raise errors.Cancelled("The run was cancelled.")
        gradient_summaries = _summaries({**gradients, **back.probes})
        result = Result(
            {name: _value(value, {}) for name, value in outputs.items() if name not in self._added},
            {name: _value(value, summaries, name) for name, value in probes.items()},
            {name: _value(value, gradient_summaries, name) for name, value in gradients.items()},
            {name: _value(value, gradient_summaries, name) for name, value in back.probes.items()},
            summaries,
            gradient_summaries,
            ran.times,
            back.times,
            back.norms,
            back.kept,
            routings,
            session.placement,
            tuple(findings),
            job.reason,
            opened - start,
            forward - opened,
            backward - forward,
        )
        self._send(Finished(job.job, result))

    def _progress(self, phase: Phase) -> Callable[[int, int, str], None]:
        job = self._current
        return lambda done, total, node: self._send(Progressed(job, node, done, total, phase))

    # -- training -------------------------------------------------------------------------------------------------

    def _train(self, job: TrainJob) -> None:
        from runtime.training.trainer import Trainer

        self._send(Started(job.job))
        self._at("training")
        self._trainer = None
        data = {name: _array(value) for name, value in job.data.items()}
        trainer = self._trainer = Trainer(
            job.graph,
            data,
            job.settings,
            folder=job.folder,
            resume=job.resume,
            backend=job.backend,
            threads=job.threads,
        )
        self._training = True
        trainer.run(lambda progress: self._stepped(job.job, progress), self._cancel, self._epoch_ended)
        self._training = False
        if self._wants_best.is_set():
            self._tell_best()
        self._send(Finished(job.job, _reached(trainer)))

    def _stepped(self, job: int, progress: Progress) -> None:
        from runtime.training.step import NORM

        losses = {name: value for name, value in progress.losses.items() if name != NORM}
        self._send(
            TrainingProgressed(
                job, progress.epoch, progress.step, progress.steps, losses, progress.rate, progress.losses[NORM]
            )
        )
        if self._pause.is_set():
            self._send(Paused(job, True))
            while self._pause.is_set() and not self._cancel.is_set():
                if self._wants_best.is_set():
                    self._tell_best()
                self._wake.wait()
                self._wake.clear()
            self._send(Paused(job, False))
        if self._wants_best.is_set():
            self._tell_best()

    def _epoch_ended(self, epoch: int) -> None:
        trainer = self._trainer
        assert trainer is not None
        entry, loads = trainer.history[epoch], trainer.loads[epoch]
        self._send(EpochFinished(self._current, epoch, entry, loads, trainer.best_epoch == epoch))

    def _tell_best(self) -> None:
        self._wants_best.clear()
        trainer = self._trainer
        if trainer is None:
            self._send(Failed(0, (Finding("Nothing has been trained yet.", code="training"),)))
        else:
            self._send(BestWeights(self._current, _reached(trainer)))


def _reached(trainer: Trainer) -> Training:
    return Training(trainer.weights(), trainer.best_epoch, tuple(trainer.history), tuple(trainer.loads))


def _results_of(graph: Graph, until: str) -> list[PortRef]:
    """The ports whose values a run as far as a node is about."""
    return [source for source in dict.fromkeys(graph.wires.values()) if source.node == until] if until else []


def _computed(graph: Graph) -> list[PortRef]:
    """The sources of all wires that a run computes; tensors of the document it does not."""
    return [source for source in dict.fromkeys(graph.wires.values()) if graph.nodes[source.node].type != "Initializer"]


def _array(value: Any) -> Any:
    return value.array() if isinstance(value, Tensor) else value


def _summaries(values: Mapping[str, Any]) -> dict[str, Summary]:
    return {name: summarize(value) for name, value in values.items() if isinstance(value, np.ndarray)}


def _value(value: Any, summaries: Mapping[str, Summary], name: str = "") -> Any:
    """What is sent of a value: all of it, or an excerpt."""
    if not isinstance(value, np.ndarray) or value.nbytes <= LARGEST:
        return value
    return Excerpt(first_rows(value), summaries.get(name) or summarize(value))


def first_rows(array: np.ndarray, most: int = EXCERPT) -> np.ndarray:
    """The first rows of an array, as many as take `most` bytes; of a row that is larger, its first parts."""
    for axis in range(array.ndim):
        rest = array.nbytes // max(1, array.shape[axis])
        array = array[(slice(None),) * axis + (slice(0, max(1, most // max(1, rest))),)]
        if array.nbytes <= most:
            break
    return array.copy()


def _import_all(modules: Iterable[str]) -> Finding | None:
    """Imports modules, which may register node types; says which one cannot be."""
    for name in modules:
        try:
            import_module(name)
        except Exception as error:  # whatever somebody else's module raises
            return Finding(f"The module {name} cannot be imported: {_sentence(error)}", code="preload")
    return None


def _warm_up() -> None:
    """Runs the smallest graph: what it loads, the first job need not load. What is missing here, a job will say."""
    from runtime.session import Session

    graph = Graph(opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": (1,)})
    graph.add("Neg", "neg")
    graph.add("Output", "y")
    graph.wire("x.value", "neg.X")
    graph.wire("neg.Y", "y.value")
    with suppress(Exception):
        Session(graph).forward({"x": np.zeros(1, np.float32)})


def _sentence(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text if isinstance(error, StudioError) else f"{type(error).__name__}: {text}"


def _without_core_files() -> None:
    """A crash is reported by the parent; a copy of the memory on the disk would only take its place."""
    if sys.platform != "win32":
        import resource

        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
