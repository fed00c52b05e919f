"""Scales, biases and router of a quantized mixture, trained towards what the float one gives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np

from runtime.errors import Finding, GraphError
from runtime.graph import Graph
from runtime.session import Session
from runtime.tensors import Tensor
from runtime.training.optimizers import Adam
from runtime.training.schedules import Schedule
from runtime.training.step import TOTAL
from runtime.training.trainer import Progress as TrainerProgress
from runtime.training.trainer import Settings, Trainer

TARGET, LOSS, UNIT = "tuning_target", "tuning_loss", "tuning_unit"
BATCH = 64
HELD_BACK = 0.2
"""The share of the samples on which it is judged whether tuning helps."""
RATE = 2e-3
"""Learning rate, as a part of the typical size of the scales."""
LEAST_SAMPLES = 10

Progress = Callable[[int, int, float], None]
"""`progress(done, steps, loss)`."""


def tuned(
    graph: Graph,
    inputs: Mapping[str, np.ndarray],
    targets: np.ndarray,
    steps: int,
    *,
    rate: float = RATE,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> dict[str, Tensor]:
    """The graph's trainable weights after so many steps towards `targets`, by the ids of their initializers.

    Arrays of `inputs` by name, and `targets` for the graph's only output, have a sample in each row. The last fifth is
    held back: weights are those that were best there, which may be the ones that there were before. GraphError for too
    few samples, and if the loss becomes NaN.
    """
    count = len(targets)
    if count < LEAST_SAMPLES:
        text = f"{count} calibration tokens are too few to tune with; expected {LEAST_SAMPLES} at least."
        raise GraphError(Finding(text, code="data"))
    whole = _with_loss(graph, targets)
    size = _typical_scale(graph)
    batch = min(BATCH, count)
    per_epoch = -(-(count - round(count * HELD_BACK)) // batch)
    epochs = max(1, -(-steps // per_epoch))
    schedule = Schedule(kind="cosine", rate=rate * size, steps=max(1, epochs * per_epoch), end=rate * size / 50)
    settings = Settings({LOSS: 1.0}, Adam(), schedule, epochs, batch, validation=HELD_BACK)
    data = {**inputs, TARGET: targets}
    trainer = Trainer(whole, data, settings)
    before = _loss(whole, {name: array[-round(count * HELD_BACK) :] for name, array in data.items()}, batch)

    def report(step: TrainerProgress) -> None:
        if progress is not None:
            progress(min(step.step, steps), steps, step.losses[TOTAL])

    trainer.run(report, cancel)
    best = min(entry[f"validation {LOSS}"] for entry in trainer.history)
    return trainer.weights() if best < before else {}


def _loss(graph: Graph, data: Mapping[str, np.ndarray], batch: int) -> float:
    """The mean loss over all samples."""
    session, total = Session(graph), 0.0
    count = len(data[TARGET])
    for start in range(0, count, batch):
        part = {name: array[start : start + batch] for name, array in data.items()}
        total += float(session.forward(part)[LOSS]) * len(part[TARGET])
    return total / count


def _with_loss(graph: Graph, targets: np.ndarray) -> Graph:
    """The graph with the mean squared error of its output, in units of the targets' mean square."""
    whole = graph.copy()
    output = next(id for id, state in whole.nodes.items() if state.type == "Output")
    source = whole.inputs_of(output)["value"]
    whole.add("Input", TARGET, parameters={"type": "tensor(float)", "shape": ["batch", *targets.shape[1:]]})
    whole.add("qmoe.loss.MeanSquaredError", LOSS)
    whole.wire(source, f"{LOSS}.y_pred")
    whole.wire(f"{TARGET}.value", f"{LOSS}.y_true")
    mean = max(float(np.square(targets, dtype=np.float64).mean()), 1e-30)
    whole.add("Initializer", UNIT, parameters={"tensor": Tensor.from_array(np.array(1 / mean, np.float32))})
    whole.add("Mul", f"{LOSS}_relative")
    whole.wire(f"{LOSS}.loss", f"{LOSS}_relative.A")
    whole.wire(f"{UNIT}.value", f"{LOSS}_relative.B")
    whole.add("Output", f"{LOSS}_output", parameters={"name": LOSS})
    whole.wire(f"{LOSS}_relative.C", f"{LOSS}_output.value")
    whole.remove(output)
    return whole


def _typical_scale(graph: Graph) -> float:
    """The median size of all scales."""
    scales = [
        np.abs(state.parameters["tensor"].array()).ravel()
        for id, state in graph.nodes.items()
        if state.type == "Initializer" and id.endswith("_scales")
    ]
    return float(np.median(np.concatenate(scales))) if scales else 1.0
