"""Runs and training in a process of their own: nothing waits for them, and a crash costs no more than the run.

    worker = Worker()
    worker.run(graph, {"x": array}, backend="onnxruntime", everything=True)
    for event in worker.poll():  # whenever worker.fileno() is readable, or now and then
        ...

The process stays when a run has ended, with the graph open: the next run of the same graph starts at once.
"""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import Finding, GraphError
from runtime.graph import Graph, NodeState, PortRef, same
from runtime.jobs import (
    At,
    Backend,
    BestWeights,
    Cancelled,
    Crashed,
    EpochFinished,
    Event,
    Excerpt,
    Failed,
    Finished,
    Opening,
    Order,
    Paused,
    Precision,
    Progressed,
    Result,
    RunJob,
    Started,
    Training,
    TrainingProgressed,
    TrainJob,
)
from runtime.tensors import Tensor

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    import numpy as np

    from runtime.training.trainer import Settings

__all__ = [
    "BestWeights",
    "Cancelled",
    "Crashed",
    "EpochFinished",
    "Event",
    "Excerpt",
    "Failed",
    "Finished",
    "Paused",
    "Progressed",
    "Result",
    "Started",
    "Training",
    "TrainingProgressed",
    "Worker",
    "why_again",
]

PATIENCE = 2.0
"""Seconds that a cancelled run has to stop by itself."""
TRAINING_PATIENCE = 15.0
"""The same of a training run: it stops after its step, and what it has reached would be lost with its process."""
_COMPARED = 16 << 20
"""Bytes of the largest tensor that is compared with another by content; larger ones count as changed."""


class Worker:
    """One process that does one job at a time. All methods return at once; what happens is told by `poll`.

    `preload` are modules that the process imports first, such as those that register node types. The process starts
    with the first job, or by `start`, and again after a crash. Jobs are numbered; events carry the number.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self._preload = tuple(preload)
        self._lock = threading.RLock()
        self._events: deque[Event] = deque()
        self._bell, self._ring = socket.socketpair()
        self._bell.setblocking(False)
        self._ring.setblocking(False)
        self._child: _Child | None = None
        self._number = 0
        self._active = 0
        self._is_paused = False
        self._is_training = False
        self._is_closed = False
        self._sent: tuple[Graph, Opening] | None = None
        self._again = ""
        """Why the graph must be opened again though it has not changed."""

    # -- jobs -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the process, if there is none, so that the first job need not wait for it."""
        with self._lock:
            self._living()

    def run(
        self,
        graph: Graph,
        inputs: Mapping[str, Any],
        *,
        backend: Backend = "onnxruntime",
        threads: int | None = None,
        precision: Precision = "exact",
        probes: Iterable[PortRef | str] = (),
        backward: Mapping[str, Any] | None = None,
        gradient_probes: Iterable[PortRef | str] = (),
        times: bool = True,
        check_numerics: bool = False,
        until: str | None = None,
        everything: bool = False,
    ) -> int:
        """Runs a graph as it is now, and returns the job's number; a `Finished` event has the `Result`.

        `inputs` are arrays, or tensors, by name. `backward` gives the gradient of each output that counts
        ({"loss": 1.0}); then the run goes back, too. `until` names a node: only what it needs is run, and the values of
        its outputs are among the probes. `everything` summarizes all wires that the run computes. `times` measures
        nodes, which takes an ONNX Runtime session of its own each time. GraphError if a job is under way, or the
        worker is closed.
        """
        with self._lock:
            self._refuse_if_busy()
            child = self._living()
            self._is_training = False
            opening = Opening(backend, threads, precision, until or "")
            reason = self._why(graph, opening)
            previous = self._sent[0] if self._sent is not None else None
            is_known = previous is not None and not _difference(previous, graph)
            twin = previous if is_known and previous is not None else graph.copy()
            self._sent, self._again = (twin, opening), ""
            job = RunJob(
                self._next(),
                None if is_known else twin,
                bool(reason),
                opening,
                dict(inputs),
                tuple(str(probe) for probe in probes),
                None if backward is None else dict(backward),
                tuple(str(probe) for probe in gradient_probes),
                times,
                check_numerics,
                everything,
                reason,
            )
            child.put(job)
            return job.job

    def train(
        self,
        graph: Graph,
        data: Mapping[str, np.ndarray | Tensor],
        settings: Settings | None = None,
        *,
        folder: str | Path | None = None,
        resume: bool = False,
        backend: Backend = "onnxruntime",
        threads: int | None = None,
    ) -> int:
        """Trains a graph as it is now, and returns the job's number; a `Finished` event has the `Training`.

        The arguments are the Trainer's. GraphError if a job is under way, or the worker is closed.
        """
        from runtime.training.trainer import Settings as Defaults

        with self._lock:
            self._refuse_if_busy()
            child = self._living()
            self._is_training = True
            place = None if folder is None else str(folder)
            job = TrainJob(
                self._next(), graph.copy(), dict(data), settings or Defaults(), place, resume, backend, threads
            )
            child.put(job)
            return job.job

    def pause(self) -> None:
        """Lets a training run wait after its next step; a `Paused` event tells when it does."""
        self._order("pause")

    def resume(self) -> None:
        """Lets a paused training run go on."""
        self._order("resume")

    def request_best(self) -> None:
        """Asks for what the last training run has reached so far: a `BestWeights` event, within a step."""
        with self._lock:
            if self._child is not None and not self._child.is_gone:
                self._child.put(Order("best"))
            else:
                self._tell(Failed(0, (Finding("Nothing has been trained yet.", code="training"),)))

    def cancel(self) -> None:
        """Stops the job, if there is one: within PATIENCE or TRAINING_PATIENCE seconds, or its process is ended."""
        with self._lock:
            child, job = self._child, self._active
            if child is None or not job or child.is_cancelled:
                return
            child.is_cancelled = True
            child.put(Order("cancel", job))
            patience = TRAINING_PATIENCE if self._is_training else PATIENCE
            timer = threading.Timer(patience, self._kill_if, (child, job))
            timer.daemon = True
            timer.start()

    def close(self) -> None:
        """Ends the process, and any job, within 2 seconds. The worker cannot be used again."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            child, self._child = self._child, None
            is_busy, self._active = bool(self._active), 0
        if child is not None:
            child.end(0.2 if is_busy else 1.0)
        self._bell.close()
        self._ring.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what happens ---------------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a job is under way: from `run` or `train` until its last event is there to be polled."""
        return bool(self._active)

    @property
    def is_paused(self) -> bool:
        """Whether a training run waits."""
        return self._is_paused

    @property
    def process_id(self) -> int | None:
        """The number of the process; None if there is none now."""
        child = self._child
        return child.process.pid if child is not None and not child.is_gone else None

    def fileno(self) -> int:
        """A socket that is readable while there are events: for QSocketNotifier, select and the like."""
        return self._bell.fileno()

    def poll(self) -> list[Event]:
        """What has happened since the last call; of progress between two other events, only the last."""
        with self._lock:
            with suppress(OSError):  # nothing there, or closed
                while self._bell.recv(4096):
                    pass
            events = list(self._events)
            self._events.clear()
        after = [*events[1:], None] if events else []
        return [
            event
            for event, following in zip(events, after, strict=True)
            if not (isinstance(event, Progressed) and isinstance(following, Progressed))
        ]

    # -- within ---------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        self._number += 1
        self._active = self._number
        return self._number

    def _refuse_if_busy(self) -> None:
        if self._is_closed:
            raise GraphError(Finding("This worker is closed.", code="closed"))
        if self._active:
            raise GraphError(Finding("A run is under way.", remedy="Wait for its end, or cancel it.", code="busy"))

    def _living(self) -> _Child:
        if self._child is None or self._child.is_gone:
            self._sent = None
            try:
                self._child = _Child(self, self._preload)
            except OSError as error:
                text = f"No process can be started for it: {error.strerror or error}."
                raise GraphError(Finding(text, remedy="Close other programs.", code="process")) from error
        return self._child

    def _order(self, what: Any) -> None:
        with self._lock:
            if self._child is not None and self._active:
                self._child.put(Order(what, self._active))

    def _kill_if(self, child: _Child, job: int) -> None:
        with self._lock:
            is_late = self._child is child and self._active == job
        if is_late:
            child.process.kill()

    def _why(self, graph: Graph, opening: Opening) -> str:
        """Why the process has to open the graph again; empty if it need not."""
        if self._sent is None:
            return self._again or "first run"
        before, opened = self._sent
        reason = why_again(before, graph)
        if reason:
            return reason
        for name in ("backend", "threads", "precision"):
            if getattr(opened, name) != getattr(opening, name):
                return f"{name} is {getattr(opening, name)} now"
        if opened.until != opening.until:
            return f"only what {opening.until} needs is run" if opening.until else "the whole graph is run again"
        return self._again

    def _hear(self, child: _Child, message: Any) -> None:
        """Takes what a process has said; called on the thread that reads its pipe."""
        with self._lock:
            if child is not self._child:
                return
            if isinstance(message, At):
                child.at = message
                return
            if isinstance(message, Paused):
                self._is_paused = message.is_paused
            if isinstance(message, Finished | Failed | Cancelled) and message.job == self._active:
                self._end_job(child)
                if isinstance(message, Failed):
                    codes = {finding.code for finding in message.findings}
                    if child.at.phase == "opening" or "memory" in codes:
                        self._again = "the last attempt failed"
                    if codes & {"pipe", "preload"}:
                        self._sent = None
            self._tell(message)

    def _end_job(self, child: _Child) -> None:
        self._active = 0
        self._is_paused = False
        child.is_cancelled = False

    def _lose(self, child: _Child, exit_code: int) -> None:
        """Notes that a process is gone."""
        with self._lock:
            if child is not self._child:
                return
            self._child, self._sent = None, None
            job, was_cancelled, at = self._active, child.is_cancelled, child.at
            self._again = "its process was ended" if was_cancelled else "its process had ended"
            if not job:
                return
            self._end_job(child)
            if was_cancelled:
                self._tell(Cancelled(job, killed=True))
                return
            if at.job != job:
                at = At(job, "starting")
            self._tell(Crashed(job, at.nodes, at.phase, exit_code, _signal_name(exit_code), _remedy(at)))

    def _give_up(self, child: _Child, job: int, error: Exception) -> None:
        """Notes that a job cannot be sent."""
        with self._lock:
            if child is self._child and job == self._active:
                self._sent = None
                self._end_job(child)
                self._tell(Failed(job, (Finding(f"It cannot be sent to another process: {error}", code="pipe"),)))

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        with suppress(OSError):  # full: it is readable already; or closed
            self._ring.send(b"!")


class _Child:
    """A process, and the two threads that write to it and read from it."""

    def __init__(self, worker: Worker, preload: Sequence[str]) -> None:
        from runtime import worker_process

        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=worker_process.main, args=(other, tuple(preload)), name="qmoe-worker", daemon=True
        )
        self.process.start()
        other.close()
        self.at = At(0, "starting")
        self.is_cancelled = False
        self.is_gone = False
        self._worker = worker
        self._outgoing: queue.SimpleQueue[RunJob | TrainJob | Order | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="worker reads", daemon=True)
        """It alone waits for the process: of two threads that do, one would learn nothing."""
        self._reader.start()
        threading.Thread(target=self._write, name="worker writes", daemon=True).start()

    def put(self, message: RunJob | TrainJob | Order) -> None:
        """Sends a message, soon."""
        self._outgoing.put(message)

    def end(self, patience: float) -> None:
        """Ends the process; kills it after `patience` seconds."""
        self.put(Order("close"))
        self._reader.join(patience)
        if self._reader.is_alive():
            self.process.kill()
            self._reader.join(0.7)

    def _write(self) -> None:
        while (message := self._outgoing.get()) is not None:
            try:
                if isinstance(message, Order):
                    self.connection.send(message)
                    continue
                try:
                    content = pickle.dumps(message, 5)
                except Exception as error:  # a class of a plug-in, or of a caller
                    self._worker._give_up(self, message.job, error)
                    continue
                self.connection.send(Order("job", message.job))
                self.connection.send_bytes(content)
                del content, message
            except OSError:  # the process is gone, which the other thread notices
                return

    def _read(self) -> None:
        connection: Connection = self.connection
        with suppress(EOFError, OSError):
            while True:
                self._worker._hear(self, pickle.loads(connection.recv_bytes()))
        self.process.join(5)
        if self.process.is_alive():  # it has closed its end and goes on
            self.process.kill()
            self.process.join()
        self.is_gone = True
        self._outgoing.put(None)
        connection.close()
        self._worker._lose(self, self.process.exitcode or 0)


def why_again(before: Graph, after: Graph) -> str:
    """In a few words, why a session of one graph does not serve for another; empty if they mean the same.

    Layout has no meaning: nodes may have moved.
    """
    return _difference(before, after)


def _difference(before: Graph, after: Graph) -> str:
    if before is after:
        return ""
    for id, state in after.nodes.items():
        old = before.nodes.get(id)
        if old is None:
            return f"{id} was added"
        if old is not state and (change := _change(old, state)):
            return change
    for id in before.nodes:
        if id not in after.nodes:
            return f"{id} was removed"
    if before.wires != after.wires:
        for target in {**after.wires, **before.wires}:
            if before.wires.get(target) != after.wires.get(target):
                return f"the wire to {target} changed"
    if list(before.nodes) != list(after.nodes):
        return "the order of the nodes changed"
    for section in ("opsets", "functions", "info", "extra"):
        if not same(before.section(section), after.section(section)):
            return f"{section} changed"
    return ""


def _change(old: NodeState, new: NodeState) -> str:
    if old.type != new.type:
        return f"{new.id} is a {new.type} now"
    for key in {**old.parameters, **new.parameters}:
        if (
            key not in old.parameters
            or key not in new.parameters
            or not _equal(old.parameters[key], new.parameters[key])
        ):
            return f"parameter {key} of {new.id} changed"
    return "" if same(old.extra, new.extra) else f"{new.id} changed"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a is not b and a.nbytes > _COMPARED:
        return False
    return same(a, b)


def _signal_name(exit_code: int) -> str:
    if exit_code >= 0:
        return ""
    with suppress(ValueError):
        return signal.Signals(-exit_code).name
    return f"signal {-exit_code}"


def _remedy(at: At) -> str:
    if at.phase == "starting":
        return "Run it again; if that does not help, see what the terminal says."
    if at.nodes:
        return "Run it with the backend numpy, which checks what its kernels are given, to see what is wrong there."
    return "Run it with the backend numpy, or run to a node, to find which one it is."
