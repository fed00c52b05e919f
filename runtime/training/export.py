"""A training step as an ONNX file that a plain ONNX Runtime can train with."""

from __future__ import annotations

from pathlib import Path

from runtime.atomic import replacing
from runtime.ir_tensors import GraphTensor
from runtime.lowering import lower
from runtime.onnx_export import parts_of, write_in_one
from runtime.training.step import Step
from runtime.types import TensorType


def save_step(step: Step, path: str | Path) -> None:
    """Writes a training step as one ONNX file: standard operators, and those that ONNX Runtime's CPU has itself.

    Weights and state are inputs whose defaults are their first values, so that the first step needs the batch and the
    learning rate only; `qmoe.training_step` in the metadata says which output becomes which input of the next step.
    FileError if the file cannot be written, GraphError if there is a node that ONNX Runtime cannot run.
    """
    model = step.model.clone()
    lower(model, precision="exact", feeds=False)
    for value in model.graph.inputs:
        first = step.carried.get(str(value.name))
        if first is not None:
            value.const_value = GraphTensor(first, str(value.name))
            model.graph.register_initializer(value)
    with replacing(path) as file:
        write_in_one(parts_of(model, lambda name: TensorType()), file)
