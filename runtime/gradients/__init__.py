"""Gradients of ONNX models as ONNX models.

`differentiate` adds to a model the standard operators that compute gradients of its outputs, so that they run on
every backend and export; `backward_model` gives them alone, for what a forward pass has kept. `walk` goes back through
the graph, `table` has one short rule an operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from runtime import catalog
from runtime.backends.control import document_node
from runtime.backends.numpy import read_by
from runtime.backends.partition import Piece, extract
from runtime.errors import Finding, GraphError
from runtime.gradients.control import cut_off
from runtime.gradients.expressions import Expr, Formulas
from runtime.gradients.walk import pull_back
from runtime.lowering import STANDARD_OPSET, names_of
from runtime.tape import Tape

LOWEST_OPSET = 13
"""The version of the standard operators from which on gradients can be written: axes are inputs."""

PREFIX = "gradient"
"""Starts the names of what gradients add to a model."""


@dataclass(frozen=True, slots=True)
class Differentiated:
    """What was added to a model: `seeds` are inputs by the output whose gradient they take, `gradients` names of
    values by the name of the value that they are the gradient of. Values that nothing flows back to are absent."""

    seeds: Mapping[str, str]
    gradients: Mapping[str, str]
    nodes: Sequence[ir.Node]


@dataclass(frozen=True, slots=True)
class Backward:
    """The backward pass as a model of its own. `kept` are the values of the forward pass that it reads, by the
    document's node whose gradient needs them; see `Differentiated` for the rest."""

    model: ir.Model
    inputs: Sequence[str]
    seeds: Mapping[str, str]
    gradients: Mapping[str, str]
    kept: Mapping[str, Sequence[str]]


def backward_model(model: ir.Model, outputs: Sequence[str], wanted: Sequence[str]) -> Backward:
    """The gradients of a model's `outputs` with respect to `wanted` values, as `differentiate` finds them."""
    added = differentiate(model, outputs, wanted)
    own = {value for node in added.nodes for value in node.outputs}
    read: dict[ir.Value, None] = {}
    kept: dict[str, list[str]] = {}
    for node in added.nodes:
        for value in sorted(read_by(node), key=lambda value: value.name or ""):
            if value not in own and (value.is_graph_input() or not value.is_initializer()):
                read[value] = None
                group = kept.setdefault(document_node(node), [])
                if value.name not in {*group, *added.seeds.values()}:
                    group.append(str(value.name))
    results = {value.name: value for value in own}
    names = dict.fromkeys(name for name in added.gradients.values() if name in results)
    piece = Piece(True, list(added.nodes), list(read), [results[name] for name in names])
    return Backward(extract(model, piece), [str(value.name) for value in read], added.seeds, added.gradients, kept)


def differentiate(model: ir.Model, outputs: Sequence[str], wanted: Sequence[str]) -> Differentiated:
    """Adds to a model, in place, the gradients of its `outputs` with respect to `wanted` values.

    For every output there is a new input, of its type and shape: the gradient that comes from outside (1 for a loss).
    Types of the values must be known (`Compiled.give_types`), and shapes as far as possible. GraphError names an
    operator that has no gradient and the way on which it is needed.
    """
    graph = model.graph
    version = model.opset_imports.setdefault("", STANDARD_OPSET)
    if version < LOWEST_OPSET:
        raise GraphError(
            Finding(
                f"Gradients need version {LOWEST_OPSET} of the standard operators; the graph has {version}.",
                remedy="Raise the graph's operator set version.",
                code="opset",
            )
        )
    tape = Tape(PREFIX, "", version, names_of(model))
    op = Formulas(tape, model.opset_imports)
    values = {value.name: value for node in graph for value in node.outputs}
    values |= {value.name: value for value in [*graph.initializers.values(), *graph.inputs]}
    seeds: dict[str, ir.Value] = {}
    for name in outputs:
        output = values[name]
        seeds[name] = ir.Value(name=f"{PREFIX}/{name}", type=output.type, shape=output.shape)
    op.complete(graph)
    start = {values[name]: Expr(op, seed) for name, seed in seeds.items()}
    found = pull_back(op, list(graph), start, [values[name] for name in wanted])
    graph.inputs.extend(seeds.values())
    graph.extend(tape.nodes)
    for node in tape.nodes:
        model.opset_imports.setdefault(node.domain, catalog.newest_opset(node.domain))
    gradients = {name: found[values[name]].value for name in wanted if values[name] in found}
    nodes = _without_unused(tape.nodes, set(gradients.values()))
    return Differentiated(
        {name: str(seed.name) for name, seed in seeds.items()},
        {name: str(value.name) for name, value in gradients.items()},
        nodes,
    )


def _without_unused(nodes: Sequence[ir.Node], needed: set[ir.Value]) -> list[ir.Node]:
    """Removes nodes of which nobody reads anything; returns the others."""
    left = []
    for node in reversed(nodes):
        if any(value.uses() or value in needed for value in node.outputs):
            left.append(node)
        else:
            assert node.graph is not None
            cut_off(node)
            node.graph.remove(node, safe=True)
    return left[::-1]
