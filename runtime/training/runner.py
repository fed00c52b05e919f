"""Running a training step again and again: weights and state go round without leaving the backend's memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np

from runtime.backends.control import Control, KernelValues, Placement, document_node
from runtime.errors import GraphError
from runtime.tensors import Tensor
from runtime.training.step import APPLY, NEXT, RATE, Step


class _Engine(Protocol):
    def run(self, feeds: Mapping[str, Any], wanted: tuple[str, ...], control: Control) -> list[Any]: ...


class StepRunner:
    """A training step with its carried tensors.

    On "onnxruntime" these stay ONNX Runtime's own values; if there is a node that it cannot run, or that NumPy runs
    faster, NumPy kernels run it in between, and `is_whole` is false. GraphError if there is a node that nothing can
    run.
    """

    def __init__(
        self, step: Step, backend: Literal["onnxruntime", "numpy"] = "onnxruntime", threads: int | None = None
    ) -> None:
        self.step = step
        self._ids = {document_node(node) for node in step.model.graph}
        self._carried = tuple(step.carried)
        self._wanted = (*step.numbers, *(NEXT + name for name in self._carried))
        self._numbers = len(self._wanted) - len(self._carried)
        self._engine: _Engine
        self.is_whole = False
        if backend == "numpy":
            from runtime.backends.numpy import Engine as NumpyEngine

            self._engine = NumpyEngine(step.model, threads)
        else:
            from runtime.backends.native import NativePiece, Options
            from runtime.backends.onnxruntime import Engine as NativeEngine
            from runtime.backends.onnxruntime import why_numpy_pays

            options = Options(threads=threads or 0)
            model = step.model
            self.is_whole = not any(why_numpy_pays(node, model.opset_imports, options) for node in model.graph)
            if self.is_whole:
                try:
                    self._piece = NativePiece(model.clone(), options, Placement())
                except GraphError:
                    self.is_whole = False
            if not self.is_whole:
                self._engine = NativeEngine(model.clone(), options, frozenset())
        self._values: dict[str, Any] = {}
        self._rounds: list[tuple[Any, dict[str, Any]]] = []
        self._told: dict[str, Any] = {}
        self.restore({name: tensor.array() for name, tensor in step.carried.items()})

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
        feeds: dict[str, Any] = {**batch, RATE: np.asarray(rate, np.float32)}
        if self.step.accumulates:
            feeds[APPLY] = np.asarray(apply)
        control = Control(None, cancel)
        if self.is_whole:
            binding, after = self._rounds[0]
            self._piece.run_binding(self._wanted, binding, feeds, control)
            results = [self._told.get(name) for name in self._wanted[: self._numbers]]
            if None in results:
                results = binding.get_outputs()
            self._values = after
            self._rounds.reverse()
        else:
            control.kept = {id: KernelValues(is_one_run=True) for id in self._ids}
            results = self._engine.run(feeds | self._values, self._wanted, control)
            self._values = dict(zip(self._carried, results[self._numbers :], strict=True))
        return {
            name: float(_array(value).reshape(()))
            for name, value in zip(self._wanted[: self._numbers], results, strict=False)
        }

    def carried(self) -> dict[str, np.ndarray]:
        """Copies of the weights and the state by name."""
        return {name: np.array(_array(value)) for name, value in self._values.items()}

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the weights by name."""
        return {name: np.array(_array(self._values[name])) for name in self.step.weights}

    def restore(self, carried: Mapping[str, np.ndarray]) -> None:
        """Goes on from these weights and this state. GraphError if they are not those of this step."""
        from runtime.backends.ortvalues import ort_value

        for name, first in self.step.carried.items():
            given = carried.get(name)
            if given is None or given.shape != first.shape or given.dtype != first.element.dtype:
                came = "nothing" if given is None else f"{given.dtype}{list(given.shape)}"
                raise GraphError.at(name, "", f"expected {first.type} of a training run; {came} came.", code="state")
        arrays = {name: np.array(carried[name]) for name in self._carried}
        if not self.is_whole:
            self._values = arrays
            return
        # Two sets of the same memory, of which each step reads one and writes the other: nothing is made or bound anew.
        one, other = (
            {name: ort_value(Tensor.from_array(np.array(array))) for name, array in arrays.items()} for _ in range(2)
        )
        outputs = self._piece.session(self._wanted).get_outputs()[: self._numbers]
        single = [output.name for output in outputs if output.type == "tensor(float)" and output.shape == []]
        self._told = {name: ort_value(Tensor.from_array(np.zeros((), np.float32))) for name in single}
        self._values = one
        self._rounds = [
            (self._piece.bind(self._wanted, given, self._told | {NEXT + name: found[name] for name in found}), found)
            for given, found in ((one, other), (other, one))
        ]


def _array(value: Any) -> np.ndarray:
    from runtime.backends.ortvalues import from_ort

    return value if isinstance(value, np.ndarray) else np.asarray(from_ort(value))
