"""A training step as a graph: batch, weights, state and learning rate in; losses, weights and state out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from runtime.backends.onnxruntime import inline_functions
from runtime.check import Checker
from runtime.compile import compile_graph
from runtime.errors import Finding, GraphError, Severity
from runtime.gradients.expressions import Expr, Formulas
from runtime.gradients.walk import WEIGHT, pull_back
from runtime.graph import Graph
from runtime.lowering import names_of, write_forms
from runtime.nodes.terminals import Initializer
from runtime.tape import Tape, tensor_type
from runtime.tensors import Tensor
from runtime.training.optimizers import Optimizer
from runtime.types import ElementType

RATE = "learning_rate"
TOTAL = "total_loss"
NEXT = "next."
STEP = "step"
NORM = "gradient_norm"
APPLY = "apply"
GRADIENT = "gradient."
COUNT = "accumulated_steps"
METADATA = "qmoe.training_step"
"""The entry of a model's metadata, JSON, that says which output becomes which input of the next step."""


@dataclass(frozen=True, slots=True)
class Step:
    """A training step.

    The model's inputs are the graph's own inputs (`batch`), `learning_rate`, and the carried tensors: weights by their
    names, and state. Its outputs are `losses` (and "total_loss", "gradient_norm") and the carried tensors' next values,
    called "next.<name>". `carried` gives the first values by input name; `weights` are those of them that are weights.
    With accumulation, `apply` is one more input: whether this step changes the weights, or only adds up.
    """

    model: ir.Model
    batch: tuple[str, ...]
    losses: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    carried: Mapping[str, Tensor]
    accumulates: bool

    @property
    def numbers(self) -> tuple[str, ...]:
        """The outputs that are told and not carried."""
        return tuple(name for name in self.outputs if not name.startswith(NEXT))


@dataclass(frozen=True, slots=True)
class GradientStep:
    """The half of a training step that reads data: a model with the inputs `batch` and `weights`, and the outputs
    `losses`, "total_loss", and "gradient.<name>" of each weight."""

    model: ir.Model
    batch: tuple[str, ...]
    losses: tuple[str, ...]
    weights: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """All of them."""
        return (*dict.fromkeys((*self.losses, TOTAL)), *(GRADIENT + name for name in self.weights))


def training_step(
    graph: Graph,
    losses: Mapping[str, float],
    optimizer: Optimizer,
    *,
    clip_norm: float | None = None,
    accumulate: int = 1,
    average: float | None = None,
) -> Step:
    """The training step of a graph.

    `losses` gives the weight of every output that is a loss, one number each; they and the regularizers (`l1` and
    `l2` of initializers) add up to what falls. All initializers that are trainable weights change. `clip_norm` scales
    the gradients so that together their Euclidean length is at most that (torch's clip_grad_norm_). With `accumulate`
    n, gradients are averaged over n steps before they count. `average` d keeps an average a = d a + (1 - d) w of every
    weight as well, called "average.<name>".

    GraphError if the graph has errors, no trainable weight, or an operator without a gradient in the way.
    """
    model, trainable = _model_of(graph)
    return _Writer(model, graph, optimizer, clip_norm, accumulate, average).write(trainable, losses)


def gradient_step(graph: Graph, losses: Mapping[str, float]) -> GradientStep:
    """The gradients of a training step, without what is made of them; arguments and errors as of `training_step`."""
    model, trainable = _model_of(graph)
    return _Writer(model, graph).write_gradients(trainable, losses)


def update_step(
    graph: Graph,
    optimizer: Optimizer,
    *,
    clip_norm: float | None = None,
    accumulate: int = 1,
    average: float | None = None,
) -> Step:
    """What a training step makes of gradients: a `Step` whose batch are the gradients, "gradient.<name>"."""
    model, trainable = _model_of(graph)
    empty = ir.Model(ir.Graph([], [], nodes=[], opset_imports=dict(model.opset_imports)), ir_version=model.ir_version)
    return _Writer(empty, graph, optimizer, clip_norm, accumulate, average).write_update(trainable)


def _model_of(graph: Graph) -> tuple[ir.Model, dict[str, str]]:
    """A graph's model, and the ids of its trainable weights by name."""
    checker = Checker(graph.copy())
    errors = [finding for finding in checker.findings() if finding.severity is Severity.ERROR]
    if errors:
        raise GraphError(errors)
    trainable = trainable_weights(graph)
    if not trainable:
        raise GraphError(
            Finding(
                "The graph has no trainable weight.",
                remedy='Set training_type of an Initializer to "trainable weight".',
                code="training",
            )
        )
    compiled = compile_graph(graph)
    compiled.mark_nodes()
    inline_functions(compiled.model)
    compiled.give_types(checker.type_of)
    write_forms(compiled.model)
    return compiled.model, trainable


def trainable_weights(graph: Graph) -> dict[str, str]:
    """The ids of trainable initializers by name."""
    return {
        str(state.parameters.get("name") or id): id
        for id, state in graph.nodes.items()
        if state.type == Initializer.type_name() and state.parameters.get("training_type") == "trainable weight"
    }


class _Writer:
    def __init__(
        self,
        model: ir.Model,
        graph: Graph,
        optimizer: Optimizer | None = None,
        clip_norm: float | None = None,
        accumulate: int = 1,
        average: float | None = None,
    ) -> None:
        self.model, self.graph, self.optimizer = model, graph, optimizer
        self.clip_norm, self.accumulate, self.average = clip_norm, accumulate, average
        self.tape = Tape("training", "", model.opset_imports.get("", 21), names_of(model))
        self.op = Formulas(self.tape, model.opset_imports)
        self.op.complete(model.graph)
        self.batch = tuple(str(value.name) for value in model.graph.inputs)
        self.carried: dict[str, Tensor] = {}
        self.next: dict[str, Expr] = {}

    def write(self, trainable: Mapping[str, str], factors: Mapping[str, float]) -> Step:
        """The step; `trainable` gives the ids of weights by name, `factors` the weights of losses."""
        weights = {name: self._weight(name, id) for name, id in trainable.items()}
        rate = self._input(RATE, ElementType.FLOAT, ())
        step = self._carried(STEP, np.zeros((), np.int64))
        total, outputs = self._total(factors, weights, trainable)
        gradients = self._gradients(total, weights)
        results = {TOTAL: total, **self._updates(weights, gradients, rate, step)}
        for name, output in outputs.items():
            if name in self.carried or name == RATE or results.get(name, output).value is not output.value:
                raise _taken(name)
        results = {**outputs, **results}
        return self._step(results, tuple(outputs), tuple(weights))

    def write_gradients(self, trainable: Mapping[str, str], factors: Mapping[str, float]) -> GradientStep:
        """The losses and gradients alone."""
        weights = {name: self._weight(name, id) for name, id in trainable.items()}
        total, outputs = self._total(factors, weights, trainable)
        gradients = self._gradients(total, weights)
        results = {**outputs, TOTAL: total, **{GRADIENT + name: gradient for name, gradient in gradients.items()}}
        self._finish(results)
        return GradientStep(self.model, self.batch, tuple(outputs), tuple(weights))

    def write_update(self, trainable: Mapping[str, str]) -> Step:
        """What becomes of gradients that come from elsewhere."""
        tensors = {name: self.graph.nodes[id].parameters["tensor"] for name, id in trainable.items()}
        weights: dict[str, Expr] = {}
        for name, tensor in tensors.items():
            self.carried[name] = tensor
            weights[name] = self._input(name, tensor.element, tensor.shape)
        self.batch = tuple(GRADIENT + name for name in tensors)
        gradients = {
            name: self._input(GRADIENT + name, tensor.element, tensor.shape) for name, tensor in tensors.items()
        }
        rate = self._input(RATE, ElementType.FLOAT, ())
        step = self._carried(STEP, np.zeros((), np.int64))
        return self._step(self._updates(weights, gradients, rate, step), (), tuple(weights))

    def _updates(
        self, weights: Mapping[str, Expr], gradients: dict[str, Expr], rate: Expr, step: Expr
    ) -> dict[str, Expr]:
        """The norm of the gradients, and the next values of what is carried."""
        apply = self._accumulation(gradients) if self.accumulate > 1 else None
        norm = self._norm(gradients)
        if self.clip_norm is not None:
            limit = norm.op.operand(self.clip_norm, norm)
            scale = self.op.Min(limit / (norm + 1e-6), 1.0)
            gradients = {name: gradient * scale.cast(gradient.element) for name, gradient in gradients.items()}
        counted = step + self.op.constant(np.asarray(1, np.int64))
        for name, weight in weights.items():
            self._update(name, weight, gradients[name], rate, counted, apply)
        self.next[STEP] = counted if apply is None else self.op.Where(apply, counted, step)
        return {NORM: norm, **{NEXT + name: value for name, value in self.next.items()}}

    def _step(self, results: Mapping[str, Expr], losses: tuple[str, ...], weights: tuple[str, ...]) -> Step:
        self._finish(results)
        pairs = [[name, NEXT + name] for name in self.carried]
        notes = {"carried": pairs, "weights": list(weights), "losses": list(losses), "accumulate": self.accumulate}
        self.model.metadata_props[METADATA] = json.dumps(notes)
        return Step(
            self.model, self.batch, losses, tuple(results), weights, dict(self.carried), accumulates=self.accumulate > 1
        )

    def _finish(self, results: Mapping[str, Expr]) -> None:
        """Makes the model's outputs these."""
        graph = self.model.graph
        wanted = {value.name: value for value in graph.inputs}
        wanted |= {name: result.value for name, result in results.items()}
        for node in [*graph, *self.tape.nodes]:
            for value in node.outputs:
                if wanted.get(value.name, value) is not value:  # another output of the graph that is not a loss
                    value.name = self.tape.unique("value")
        given: list[ir.Value] = []
        for name, result in results.items():
            value = result.value
            if value.name != name or value.is_graph_input():
                value = self.op.Identity(result).value
                value.name = name
            given.append(value)
        graph.extend(self.tape.nodes)
        graph.outputs.clear()
        graph.outputs.extend(given)
        _drop_unused(self.model)

    def _weight(self, name: str, id: str) -> Expr:
        """A weight that becomes an input of the step."""
        tensor = self.graph.nodes[id].parameters["tensor"]
        if tensor.element is None or not tensor.element.is_float:
            raise GraphError.at(id, "tensor", f"A trainable weight holds floats; this one is {tensor.type}.")
        graph = self.model.graph
        value = graph.initializers.pop(name)
        value.const_value = None
        value.meta[WEIGHT] = True
        if value not in graph.inputs:
            graph.inputs.append(value)
        self.batch = tuple(other for other in self.batch if other != name)
        self.carried[name] = tensor
        return Expr(self.op, value)

    def _input(self, name: str, element: ElementType, shape: Sequence[int]) -> Expr:
        if any(value.name == name for value in self.model.graph.inputs) or name in self.model.graph.initializers:
            raise _taken(name)
        value = ir.Value(name=name, type=tensor_type(element), shape=ir.Shape(shape))
        self.model.graph.inputs.append(value)
        return Expr(self.op, value)

    def _carried(self, name: str, first: np.ndarray) -> Expr:
        tensor = Tensor.from_array(first)
        self.carried[name] = tensor
        return self._input(name, tensor.element, tensor.shape)

    def _total(
        self, factors: Mapping[str, float], weights: Mapping[str, Expr], ids: Mapping[str, str]
    ) -> tuple[Expr, dict[str, Expr]]:
        """What falls, and the losses by output name."""
        values = {str(value.name): value for value in self.model.graph.outputs}
        outputs: dict[str, Expr] = {}
        total: Expr | None = None
        for name, factor in factors.items():
            if name not in values:
                there = ", ".join(values) or "none"
                raise GraphError.at(name, "", "The graph has no such output.", f"The outputs are {there}.", "output")
            loss = outputs[name] = Expr(self.op, values[name])
            if not loss.element.is_float or loss.shape not in ((), (1,)):
                raise GraphError.at(name, "", f"A loss is one number; this output is {loss.type}.", code="shape")
            term = self.op.Reshape(loss, np.asarray([], np.int64)) if loss.shape else loss
            term = term.cast(ElementType.FLOAT) if term.element is not ElementType.DOUBLE else term
            term = term if factor == 1 else term * factor
            total = term if total is None else total + term.cast(total.element)
        if total is None:
            raise GraphError(Finding("Training needs a loss, and none was named.", code="training"))
        for name, weight in weights.items():
            parameters = self.graph.nodes[ids[name]].parameters
            for key, size in (("l1", self.op.Abs), ("l2", lambda x: x * x)):
                if parameters.get(key):
                    penalty = self.op.ReduceSum(size(weight), keepdims=0) * float(parameters[key])
                    total = total + penalty.cast(total.element)
        return total, outputs

    def _gradients(self, total: Expr, weights: Mapping[str, Expr]) -> dict[str, Expr]:
        nodes = [*self.model.graph, *self.tape.nodes]
        one = self.op.operand(1.0, total)
        found = pull_back(self.op, nodes, {total.value: one}, [weight.value for weight in weights.values()])
        return {
            name: found[weight.value] if weight.value in found else self.op.like(0.0, weight)
            for name, weight in weights.items()
        }

    def _accumulation(self, gradients: dict[str, Expr]) -> Expr:
        """Replaces the gradients by their average with those of the steps before; whether they count now.

        The last steps of an epoch may be fewer than the others.
        """
        apply = self._input(APPLY, ElementType.BOOL, ())
        count = self._carried(COUNT, np.zeros((), np.float32)) + 1.0
        self.next[COUNT] = self.op.Where(apply, self.op.like(0.0, count), count)
        for name, gradient in gradients.items():
            key = f"accumulated.{name}"
            before = self._carried(key, np.zeros_like(self.carried[name].array()))
            summed = before + gradient
            gradients[name] = summed / count.cast(summed.element)
            self.next[key] = self.op.Where(apply, self.op.like(0.0, before), summed)
        return apply

    def _norm(self, gradients: Mapping[str, Expr]) -> Expr:
        """The Euclidean length of all gradients together, float32."""
        total: Expr | None = None
        for gradient in gradients.values():
            wide = gradient.cast(ElementType.FLOAT)
            square = self.op.ReduceSum(wide * wide, keepdims=0)
            total = square if total is None else total + square
        assert total is not None
        norm: Expr = self.op.Sqrt(total)
        return norm

    def _update(self, name: str, weight: Expr, gradient: Expr, rate: Expr, step: Expr, apply: Expr | None) -> None:
        assert self.optimizer is not None
        zeros = np.zeros_like(self.carried[name].array())
        state = {slot: self._carried(f"{slot}.{name}", zeros) for slot in self.optimizer.slots}
        element = weight.element
        changed, new = self.optimizer.update(weight, gradient, state, rate.cast(element), step.cast(ElementType.DOUBLE))
        results: dict[str, tuple[Expr, Expr]] = {name: (weight, changed)}
        results |= {f"{slot}.{name}": (state[slot], new[slot]) for slot in state}
        if self.average is not None:
            key = f"average.{name}"
            before = self._carried(key, self.carried[name].array())
            results[key] = (before, self.average * before + (1 - self.average) * changed)
        for key, (old, value) in results.items():
            self.next[key] = value if apply is None else self.op.Where(apply, value, old)


def _taken(name: str) -> GraphError:
    return GraphError(
        Finding(
            "A training step has a tensor of its own by this name.", name, remedy="Rename this one.", code="training"
        )
    )


def _drop_unused(model: ir.Model) -> None:
    """Removes nodes of which nobody reads anything, and initializers."""
    graph = model.graph
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]


def notes_of(model: Any) -> dict[str, Any]:
    """What an exported step says of itself: which output becomes which input, its weights and losses."""
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA), "{}")
    notes: dict[str, Any] = json.loads(text)
    return notes
