"""A training step over workers: each computes the gradients of a part of the batch, and their mean counts.

Workers hold no state: every step they are sent the weights. So one may come or go between two steps, or die in one.

The mean of the parts is the whole's only if losses are means over rows. That shows when both are computed, which is
done in the steps 1, 2, 4, 8 and so on of those that are divided: ever more rarely, so that it costs next to nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from runtime.backends.control import Control, KernelValues, document_node
from runtime.cluster import Done, Pool, Task, Tell
from runtime.errors import GraphError
from runtime.graph import Graph, PortRef
from runtime.guard import input_names
from runtime.training.runner import StepRunner
from runtime.training.step import GRADIENT, TOTAL, gradient_step, update_step
from runtime.types import ElementType, TensorType

if TYPE_CHECKING:
    from runtime.training.trainer import Settings

TOLERANCE = 1e-5
"""How far the mean of the parts' losses may be, relative to it, from the loss of the whole batch."""
ROUNDING = {ElementType.FLOAT16: 2.0**-9, ElementType.BFLOAT16: 2.0**-6}
"""The same where a loss is told in few bits, of which the last may differ."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """Losses and gradients of some rows: means over these."""

    losses: Mapping[str, float]
    gradients: Mapping[str, np.ndarray] = field(repr=False)
    rows: int


class GradientRunner:
    """What a worker has: the model of a graph's gradients, and what runs it."""

    def __init__(
        self,
        graph: Graph,
        losses: Mapping[str, float],
        backend: Literal["onnxruntime", "numpy"] = "onnxruntime",
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        self._step = step = gradient_step(graph, losses)
        self._ids = {document_node(node) for node in step.model.graph}
        self._engine: Any
        if backend == "numpy":
            from runtime.backends.numpy import Engine as NumpyEngine

            self._engine = NumpyEngine(step.model)
        else:
            from runtime.backends.native import Options, check_providers
            from runtime.backends.onnxruntime import Engine as NativeEngine

            self._engine = NativeEngine(step.model, Options(check_providers(providers), threads or 0), frozenset())

    def run(self, weights: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]) -> Gradients:
        """The gradients at these weights of the mean over these rows."""
        step = self._step
        control = Control(kept={id: KernelValues(is_one_run=True) for id in self._ids})
        values = self._engine.run({**batch, **weights}, step.outputs, control)
        found = dict(zip(step.outputs, values, strict=True))
        gradients = {name: np.asarray(found[GRADIENT + name]) for name in step.weights}
        losses = {name: float(np.asarray(found[name]).reshape(())) for name in (*step.losses, TOTAL)}
        return Gradients(losses, gradients, len(next(iter(batch.values()))))


class ClusterRunner:
    """Makes training steps with the workers of a pool; else as a `StepRunner`, whose place it takes in a `Trainer`.

    The pool's graphs must have the graph as "graph". If a loss is no mean over the rows of a batch, `tell` gets
    `{"event": "warning"}`, and from then on a batch goes to one worker as a whole, which gives one machine's numbers;
    or, with `by_parts`, batches are divided all the same, and losses and gradients are the means of the parts'.

    GraphError if inputs have a fixed number of rows, so that a batch cannot be divided.
    """

    def __init__(
        self,
        graph: Graph,
        settings: Settings,
        pool: Pool,
        *,
        tell: Tell | None = None,
        backend: Literal["onnxruntime", "numpy"] = "onnxruntime",
        threads: int | None = None,
        by_parts: bool = False,
    ) -> None:
        undivided = _undivided(graph)
        if undivided is not None and pool.workers > 1:
            raise undivided
        self._is_divisible = undivided is None  # a second worker may join later
        self._parts = pool.workers
        self._pool, self._tell = pool, tell or (lambda event: None)
        self._losses = dict(settings.losses)
        self._tolerance = _tolerance(graph, self._losses)
        self._by_parts = by_parts
        self._is_mean = True
        step = update_step(
            graph,
            settings.optimizer,
            clip_norm=settings.clip_norm,
            accumulate=settings.accumulate,
            average=settings.average,
        )
        self._update = StepRunner(step, backend, threads)
        self._divided = 0
        self.rows: dict[int, int] = {}
        """How many rows each worker has computed, by its number."""

    def run(
        self,
        batch: Mapping[str, np.ndarray],
        rate: float,
        apply: bool = True,
        cancel: threading.Event | None = None,
    ) -> dict[str, float]:
        """Makes one step; returns the losses, the total loss and the norm of the gradients.

        A step that is cancelled, or fails, changes nothing.
        """
        rows = len(next(iter(batch.values())))
        divides = self._is_divisible and (self._is_mean or self._by_parts)
        # By parts numbers depend on how many there are: they stay as many, whoever joins.
        count = min(self._parts if self._by_parts else self._pool.workers, rows) if divides else 1
        bounds = [rows * part // count for part in range(count + 1)]
        weights = self._pool.share(self._update.weights())
        parts = [{name: array[first:end] for name, array in batch.items()} for first, end in pairwise(bounds)]
        is_checked = self._is_mean and count > 1 and not self._divided & (self._divided + 1)
        if is_checked:
            parts.append(dict(batch))
        found = self._computed(weights, parts, cancel)
        losses, gradients = _mean(found[:count])
        if is_checked:
            whole = found[count]
            self._compare(whole, losses)
            if not self._is_mean and not self._by_parts:
                losses, gradients = _mean([whole])
        self._divided += count > 1
        numbers = self._update.run({GRADIENT + name: value for name, value in gradients.items()}, rate, apply, cancel)
        return {**losses, **numbers}

    def carried(self) -> dict[str, np.ndarray]:
        """Copies of the weights and the state by name."""
        return self._update.carried()

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the weights by name."""
        return self._update.weights()

    def restore(self, carried: Mapping[str, np.ndarray]) -> None:
        """Goes on from these weights and this state. GraphError if they are not those of this step."""
        self._update.restore(carried)

    def _computed(
        self, weights: Any, parts: Sequence[Mapping[str, np.ndarray]], cancel: threading.Event | None
    ) -> list[Gradients]:
        """The gradients of the parts, in their order, whoever computed them when."""
        tasks = (Task(index, "gradients", (weights, part, self._losses)) for index, part in enumerate(parts))
        found: dict[int, Done] = {done.task.index: done for done in self._pool.map(tasks, cancel)}
        values = [found[index].value for index in range(len(parts))]
        for value in values:
            if not isinstance(value, Gradients):
                raise GraphError(value.findings)
        for done in found.values():
            self.rows[done.worker] = self.rows.get(done.worker, 0) + done.value.rows
        return values

    def _compare(self, whole: Gradients, losses: Mapping[str, float]) -> None:
        """Tells of losses that are others as means of the parts."""
        then = (
            "Training goes by the parts."
            if self._by_parts
            else "So a batch is not divided: one worker computes it, with one machine's numbers."
        )
        for name, value in whole.losses.items():
            if abs(losses[name] - value) > self._tolerance * max(1.0, abs(value)):
                self._is_mean = False
                text = (
                    f"{name} is no mean over the rows of a batch: {value:.6g} of the whole, {losses[name]:.6g} as the "
                    f"mean of the workers' parts. {then}"
                )
                self._tell({"event": "warning", "message": text})


def _undivided(graph: Graph) -> GraphError | None:
    """Why a batch cannot be divided, if it cannot."""
    for id, name in input_names(graph).items():
        type = graph.checker.type_of(PortRef(id, "value"))
        if isinstance(type, TensorType) and type.shape and isinstance(type.shape[0], int):
            text = f"{name} has {type.shape[0]} rows in every batch, and workers get parts of one."
            remedy = "Name its first dimension instead, such as batch; or train with one worker."
            return GraphError.at(id, "shape", text, remedy, "shape")
    return None


def _tolerance(graph: Graph, losses: Collection[str]) -> float:
    """How far losses may be apart that are the same but for rounding."""
    given = {str(state.parameters.get("name") or id): id for id, state in graph.nodes.items() if state.type == "Output"}
    found = [TOLERANCE]
    for name in losses:
        source = graph.wires.get(PortRef(given.get(name, ""), "value"))
        type = graph.checker.type_of(source) if source is not None else None
        if isinstance(type, TensorType) and type.element is not None:
            found.append(ROUNDING.get(type.element, TOLERANCE))
    return max(found)


def _mean(parts: Sequence[Gradients]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Losses and gradients of all parts together, weighted by their rows, summed in float64."""
    rows = sum(part.rows for part in parts)
    losses = {name: sum(part.losses[name] * part.rows for part in parts) / rows for name in parts[0].losses}
    gradients: dict[str, np.ndarray] = {}
    for name, first in parts[0].gradients.items():
        total = sum(part.gradients[name].astype(np.float64) * (part.rows / rows) for part in parts)
        gradients[name] = np.asarray(total).astype(first.dtype)
    return losses, gradients
