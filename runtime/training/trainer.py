"""The loop around a training step: epochs, batches, validation, early stopping, checkpoints, a log."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol
from zlib import crc32

import numpy as np

from runtime.atomic import replacing
from runtime.backends.inputs import Acceptor
from runtime.errors import FileError, Finding, GraphError
from runtime.graph import Graph, PortRef
from runtime.guard import is_guarded
from runtime.onnx_types import from_ir_type
from runtime.routing import mixtures
from runtime.session import Session
from runtime.tensors import Tensor
from runtime.training.checkpoints import load_checkpoint, save_checkpoint
from runtime.training.evaluation import Evaluation, Metric, evaluate
from runtime.training.optimizers import Adam, Optimizer
from runtime.training.runner import StepRunner
from runtime.training.schedules import Schedule
from runtime.training.step import NORM, TOTAL, trainable_weights, training_step

CHECKPOINT = "checkpoint.zip"
LOG = "log.jsonl"
MOST_NAMED = 16
"""Rows of a batch that an error names."""
OPEN_BYTES = 1 << 20
"""Bytes of trained weights up to which the session that measures epochs stays open, and is given them as inputs.

Larger ones are worth a session of their own in which they are constants, laid out for the fastest kernels; and so are
those that operators of ONNX Runtime's own take.
"""

Report = Callable[["Progress"], None]
EpochReport = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a graph is trained.

    `losses` are outputs of the graph with their weights. `validation` is the share of the samples that are held back
    and never trained on, taken from their end; after each epoch the loss on them is computed, and the weights of the
    best epoch are kept. Training ends early after `patience` epochs without a better one (0: never). Batches are drawn
    without replacement in an order that `seed` and the epoch give; a last batch that is not full counts too.

    `metrics`, and the load of the experts of every mixture, are of the samples that are held back, or of all samples if
    none are.
    """

    losses: Mapping[str, float] = field(default_factory=lambda: {"loss": 1.0})
    optimizer: Optimizer = field(default_factory=Adam)
    schedule: Schedule = field(default_factory=Schedule)
    epochs: int = 10
    batch_size: int = 32
    seed: int = 0
    validation: float = 0.0
    patience: int = 0
    clip_norm: float | None = None
    accumulate: int = 1
    average: float | None = None
    shuffle: bool = True
    metrics: Sequence[Metric] = ()

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("patience", 0), ("accumulate", 1)):
            if getattr(self, name) < least:
                raise _option(f"{name} must be at least {least}; {getattr(self, name)} came.")
        if not 0 <= self.validation < 1:
            raise _option(f"validation must be at least 0 and less than 1; {self.validation} came.")
        if self.average is not None and not 0 <= self.average < 1:
            raise _option(f"average must be at least 0 and less than 1; {self.average} came.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise _option(f"clip_norm must be more than 0; {self.clip_norm} came.")
        if self.patience and not self.validation:
            raise _option("patience needs samples that are held back: set validation.")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training run is: the epoch (from 0), the steps done of all, the last losses, and the learning rate."""

    epoch: int
    step: int
    steps: int
    losses: Mapping[str, float]
    rate: float


class Runner(Protocol):
    """What makes training steps, and has the weights and the state; see `StepRunner`."""

    def run(
        self,
        batch: Mapping[str, np.ndarray],
        rate: float,
        apply: bool = True,
        cancel: threading.Event | None = None,
    ) -> dict[str, float]: ...

    def carried(self) -> dict[str, np.ndarray]: ...

    def weights(self) -> dict[str, np.ndarray]: ...

    def restore(self, carried: Mapping[str, np.ndarray]) -> None: ...


class Trainer:
    """Trains the weights of a graph on arrays by input name, which all have one sample in each row.

    `folder` keeps a checkpoint after every epoch and a log, a JSON object a line; None keeps nothing. `resume` goes on
    from the checkpoint there: on the same machine with the same number of threads, to the last bit as if the run had
    never stopped.
    """

    def __init__(
        self,
        graph: Graph,
        data: Mapping[str, np.ndarray],
        settings: Settings | None = None,
        *,
        folder: str | Path | None = None,
        resume: bool = False,
        backend: Literal["onnxruntime", "numpy"] = "onnxruntime",
        threads: int | None = None,
        runner: Runner | Callable[[], Runner] | None = None,
    ) -> None:
        """`runner` makes the steps, where not this process does (`runtime.training.parallel`).

        It may be a function that gives one, which is called when all else has been found to be right.
        """
        self.settings = settings = settings or Settings()
        self._graph = graph.copy()
        self._step = training_step(
            graph,
            settings.losses,
            settings.optimizer,
            clip_norm=settings.clip_norm,
            accumulate=settings.accumulate,
            average=settings.average,
        )
        self._options: dict[str, Any] = {"backend": backend, "threads": threads}
        self._data = self._checked(data)
        samples = len(next(iter(self._data.values())))
        self._training = self._share(samples)
        if settings.validation and not 0 < self._training < samples:
            raise _option(f"validation {settings.validation} of {samples} samples leaves one of the two parts empty.")
        self._samples = samples
        self._folder = None if folder is None else Path(folder)
        self.history: list[dict[str, float]] = []
        """One entry an epoch: the mean training losses, the validation losses ("validation <name>"), the rate, the
        metrics, and how even the load of each mixture's experts is, from 0 to 1 ("entropy of <node>")."""
        self.loads: list[dict[str, list[float]]] = []
        """One entry an epoch: by node, the share of the choices that each expert got."""
        self.epoch = 0
        self._steps_done = 0
        self._best: dict[str, np.ndarray] = {}
        self._best_loss = math.inf
        self._best_epoch = -1
        self._log: list[dict[str, Any]] = []
        self._digests: dict[str, str] | None = None
        self._scorer: Session | None = None
        carried: dict[str, np.ndarray] = {}
        if self._folder is not None:
            carried = self._open_folder(self._folder, resume)
        elif resume:
            raise _option("To resume, name the folder of the run.")
        if runner is None:
            runner = StepRunner(self._step, backend, threads)
        self._runner: Runner = runner() if callable(runner) else runner
        if carried:
            self._runner.restore(carried)

    # -- running --------------------------------------------------------------------------------------------------

    def run(
        self,
        report: Report | None = None,
        cancel: threading.Event | None = None,
        epoch_report: EpochReport | None = None,
    ) -> Graph:
        """Trains until the last epoch, or until validation has not improved for long; returns the trained graph.

        `report` is called after every step, `epoch_report` with the number of every epoch when `history` has its entry.
        After `cancel` is set, Cancelled ends the run within a step; a checkpoint
        holds the last whole epoch.
        """
        settings = self.settings
        per_epoch = -(-self._training // settings.batch_size)
        while self.epoch < settings.epochs and not self._is_late():
            sums: dict[str, float] = {}
            start = perf_counter()
            for index, rows in enumerate(self._batches(self.epoch)):
                rate = settings.schedule(self._steps_done)
                apply = (index + 1) % settings.accumulate == 0 or index + 1 == per_epoch
                batch = {name: self._data[name][rows] for name in self._step.batch}
                try:
                    losses = self._runner.run(batch, rate, apply, cancel)
                except GraphError as error:
                    raise GraphError([*error.findings, self._whence(self._steps_done + 1, rows)]) from error
                self._steps_done += 1
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value * len(rows)
                what = "loss is" if not math.isfinite(losses[TOTAL]) else "length of the gradients is"
                value = losses[TOTAL] if what == "loss is" else losses[NORM]
                if not math.isfinite(value):
                    found = Finding(
                        f"The {what} {value} at step {self._steps_done} (epoch {self.epoch + 1}).",
                        remedy="Lower the learning rate, clip the gradients, or look for NaN in the data.",
                        code="numerics",
                    )
                    raise GraphError([found, self._whence(self._steps_done, rows)])
                if report is not None:
                    report(Progress(self.epoch, self._steps_done, per_epoch * settings.epochs, losses, rate))
            entry = {name: value / self._training for name, value in sums.items()}
            entry["learning_rate"] = rate
            self._finish_epoch(entry, perf_counter() - start)
            if epoch_report is not None:
                epoch_report(self.epoch - 1)
        return self.trained()

    def note(self, event: Mapping[str, Any]) -> None:
        """Adds what happened to the log, with the time; it is written with the next epoch."""
        self._log.append({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event})

    def trained(self) -> Graph:
        """The graph with the weights of the best epoch, or of the last one if nothing was held back.

        With an average, its weights are those.
        """
        graph = self._graph.copy()
        for id, tensor in self.weights().items():
            graph.set(id, "tensor", tensor)
        return graph

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights `trained` gives; None if those are the last ones."""
        return self._best_epoch if self._best else None

    def weights(self) -> dict[str, Tensor]:
        """The weights of `trained` by the ids of their initializers."""
        weights = self._best or self._current()
        return {id: Tensor.from_array(weights[name]) for name, id in trainable_weights(self._graph).items()}

    def _current(self) -> dict[str, np.ndarray]:
        if self.settings.average is None:
            return self._runner.weights()
        carried = self._runner.carried()
        return {name: carried[f"average.{name}"] for name in self._step.weights}

    def _batches(self, epoch: int) -> Iterator[np.ndarray]:
        order = np.arange(self._training)
        if self.settings.shuffle:
            np.random.default_rng([self.settings.seed, epoch]).shuffle(order)
        for start in range(0, self._training, self.settings.batch_size):
            yield order[start : start + self.settings.batch_size]

    def _whence(self, step: int, rows: np.ndarray) -> Finding:
        """Which step and which samples an error came of."""
        named = ", ".join(map(str, sorted(rows)[:MOST_NAMED]))
        others = f" and {len(rows) - MOST_NAMED} others" if len(rows) > MOST_NAMED else ""
        where = f"step {step} (epoch {self.epoch + 1})"
        return Finding(f"This came at {where}, of the rows {named}{others} of the data.", code="batch")

    def _is_late(self) -> bool:
        patience = self.settings.patience
        return bool(patience and self._best_epoch >= 0 and self.epoch - 1 - self._best_epoch >= patience)

    def _finish_epoch(self, entry: dict[str, float], seconds: float) -> None:
        held_back = self._training < self._samples
        loads: dict[str, list[float]] = {}
        if held_back or self.settings.metrics or mixtures(self._graph):
            found = self._evaluate(range(self._training if held_back else 0, self._samples))
            if held_back:
                total = sum(found.losses[name] * factor for name, factor in self.settings.losses.items())
                entry |= {f"validation {name}": value for name, value in {**found.losses, TOTAL: total}.items()}
                if total < self._best_loss:
                    self._best_loss, self._best_epoch, self._best = total, self.epoch, self._current()
            prefix = "validation " if held_back else ""
            entry |= {f"{prefix}{name}": value for name, value in found.metrics.items()}
            entry |= {f"entropy of {node}": value for node, value in found.entropies().items()}
            loads = {node: list(load) for node, load in found.loads.items()}
        self.history.append(entry)
        self.loads.append(loads)
        self.epoch += 1
        if self._folder is not None:
            self._save(self._folder, entry, seconds)

    def _evaluate(self, rows: range) -> Evaluation:
        """Losses, metrics and loads on samples, with the weights as they are."""
        graph, weights, settings = self._graph.copy(), self._current(), self.settings
        ids = trainable_weights(graph)
        is_small = sum(array.nbytes for array in weights.values()) <= OPEN_BYTES
        is_small = is_small and not any(_is_for_own_operator(graph, id) for id in ids.values())
        for name, id in ids.items():
            graph.set(id, "tensor", Tensor.from_array(weights[name]))
            if is_small:
                graph.set(id, "overridable", True)
        # More threads would stay awake for a while, and keep the next steps from the cores.
        options = self._options | ({"threads": 1} if is_small else {})
        session = self._scorer or Session(graph, **options)
        self._scorer = session if is_small else None
        given = {str(graph.nodes[id].parameters.get("name") or id): weights[name] for name, id in ids.items()}
        losses, fixed = list(settings.losses), given if is_small else {}
        return evaluate(graph, session, self._data, rows, settings.batch_size, losses, settings.metrics, fixed)

    def _checked(self, data: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        targets = [metric.target for metric in self.settings.metrics if metric.target]
        names = list(dict.fromkeys([*self._step.batch, *targets]))
        missing = [name for name in names if name not in data]
        outputs = [s.parameters.get("name") or id for id, s in self._graph.nodes.items() if s.type == "Output"]
        for metric in self.settings.metrics:
            if metric.output not in outputs:
                raise _option(f"The metric {metric} is of no output of the graph. It has {', '.join(outputs)}.")
        if missing:
            there = f"The data has {', '.join(data) or 'nothing'}."
            raise GraphError(Finding("There is no data for this input.", name, remedy=there) for name in missing)
        arrays = {name: np.asarray(data[name]) for name in names}
        if not self._step.batch:
            raise _option("The graph has no inputs: there is nothing to train on.")
        single = [name for name, array in arrays.items() if not array.ndim]
        if single:
            raise _option(f"{single[0]} is a single number; expected an array with one sample in each row.")
        sizes = {name: len(array) for name, array in arrays.items()}
        if len(set(sizes.values())) > 1 or min(sizes.values()) < 1:
            listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise _option(f"All data must have the same number of samples, one at least; there are {listed}.")
        size = min(self.settings.batch_size, max(1, self._share(sizes[names[0]])))
        inputs = {str(value.name): value for value in self._step.model.graph.inputs}
        types = {name: from_ir_type(inputs[name].type, inputs[name].shape) for name in self._step.batch}
        Acceptor(types).accept({name: arrays[name][:size] for name in types})
        return arrays

    def _share(self, samples: int) -> int:
        """How many of so many samples are trained on."""
        return samples - round(samples * self.settings.validation)

    # -- keeping --------------------------------------------------------------------------------------------------

    def _signature(self) -> str:
        """What must be the same for a run to go on: all but how long it is."""
        settings = self.settings
        shown = {
            name: getattr(settings, name)
            for name in settings.__slots__
            if name not in ("epochs", "patience", "metrics")
        }
        if self._digests is None:
            self._digests = {
                name: f"{array.dtype}{list(array.shape)} {_checksum(array):08x}"
                for name, array in sorted(self._data.items())
                if name in self._step.batch
            }
        return repr((shown, self._digests, sorted(self._step.carried)))

    def _open_folder(self, folder: Path, resume: bool) -> dict[str, np.ndarray]:
        """Takes the folder; returns the weights and the state to go on from, if there are any."""
        path = folder / CHECKPOINT
        if not resume:
            if path.exists():
                raise FileError(path, "is there already: resume that run, or name another folder.")
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise FileError(folder, f"cannot be written: {error.strerror or error}.") from error
            self._write_log(folder)  # a folder that cannot be written is found now, not after the first epoch
            return {}
        tensors, state = load_checkpoint(path)
        if state.get("signature") != self._signature():
            raise FileError(path, "is of a run with other settings, other data or another graph.")
        self._best = {k[2:]: array for k, array in tensors.items() if k.startswith("b/")}
        self._best_loss = math.inf if state["best_loss"] is None else float(state["best_loss"])
        self._best_epoch, self.epoch = int(state["best_epoch"]), int(state["epoch"])
        self._steps_done, self.history = int(state["steps"]), list(state["history"])
        self.loads = list(state["loads"])
        self._log = list(state["log"])
        self._write_log(folder)  # it may have been written to, or not, after the checkpoint
        return {k[2:]: array for k, array in tensors.items() if k.startswith("c/")}

    def _save(self, folder: Path, entry: Mapping[str, float], seconds: float) -> None:
        tensors = {f"c/{name}": array for name, array in self._runner.carried().items()}
        tensors |= {f"b/{name}": array for name, array in self._best.items()}
        line = {"epoch": self.epoch, "step": self._steps_done, **entry, "seconds": round(seconds, 3)}
        line = finite(line)
        self._log.append({**line, "expert_load": self.loads[-1]} if self.loads[-1] else line)
        state = {
            "signature": self._signature(),
            "epoch": self.epoch,
            "steps": self._steps_done,
            "best_loss": None if math.isinf(self._best_loss) else self._best_loss,
            "best_epoch": self._best_epoch,
            "history": self.history,
            "loads": self.loads,
            "log": self._log,
        }
        save_checkpoint(folder / CHECKPOINT, tensors, state)
        self._write_log(folder)

    def _write_log(self, folder: Path) -> None:
        with replacing(folder / LOG) as file:
            file.write("".join(json.dumps(line) + "\n" for line in self._log).encode())


def _is_for_own_operator(graph: Graph, id: str) -> bool:
    """Whether a weight goes to an operator of ONNX Runtime's own, some of which take no weights but constants."""
    readers = [target.node for target in graph.targets(PortRef(id, "value"))]
    return any(
        graph.nodes[reader].type.startswith("com.microsoft.") and not is_guarded(graph.node_type(reader))
        for reader in readers
    )


def _checksum(array: np.ndarray) -> int:
    plain = array.astype(str) if array.dtype == object else array
    return crc32(np.ascontiguousarray(plain).reshape(-1).view(np.uint8).data)


def finite(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry as JSON can hold it: numbers that are not finite become None."""
    return {name: value if math.isfinite(value) else None for name, value in entry.items()}


def _option(message: str) -> GraphError:
    return GraphError(Finding(message, code="option"))
