"""Which part of a graph runs where: the largest pieces for ONNX Runtime, NumPy between them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.backends.control import document_node
from runtime.backends.numpy import read_by

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(slots=True)
class Piece:
    """Nodes that run together, in order, and what flows in and out.

    `barriers` are nodes whose inputs must be looked at, as real values, before the piece runs.
    """

    native: bool
    nodes: list[ir.Node] = field(default_factory=list)
    inputs: list[ir.Value] = field(default_factory=list)
    outputs: list[ir.Value] = field(default_factory=list)
    barriers: list[ir.Node] = field(default_factory=list)


def partition(graph: ir.Graph, on_numpy: Collection[str], barriers: Collection[ir.Node]) -> list[Piece]:
    """Cuts a graph into pieces, in the order in which they run.

    `on_numpy` are ids of the document nodes that run in NumPy, `barriers` those other nodes that must not share a
    piece with what feeds them. A node goes into the earliest piece of its kind that its inputs allow: pieces
    alternate between ONNX Runtime (even) and NumPy (odd), so that a graph without either set is one piece.
    """
    stages: dict[ir.Value, int] = {}
    pieces: dict[int, Piece] = {}
    for node in graph:
        native = document_node(node) not in on_numpy
        barrier = native and node in barriers
        feeding = [stages[value] for value in read_by(node) if value in stages]
        stage = max(feeding, default=0)
        stage += stage % 2 != (0 if native else 1)
        if barrier and stage in feeding:
            stage += 2
        piece = pieces.setdefault(stage, Piece(native))
        piece.nodes.append(node)
        if barrier:
            piece.barriers.append(node)
        stages.update(dict.fromkeys(node.outputs, stage))
    ordered = [pieces[stage] for stage in sorted(pieces)]
    _connect(ordered, graph)
    return ordered


def _connect(pieces: list[Piece], graph: ir.Graph) -> None:
    """Fills in the values that each piece takes and gives. Initializers belong to whoever reads them."""
    given_out = set(graph.outputs)
    made_by = {value: index for index, piece in enumerate(pieces) for node in piece.nodes for value in node.outputs}
    inputs = set(graph.inputs)
    for index, piece in enumerate(pieces):
        taken: dict[ir.Value, None] = {}
        for node in piece.nodes:
            for value in sorted(read_by(node), key=lambda value: value.name or ""):
                origin = made_by.get(value)
                if (value in inputs) or (origin is not None and origin != index):
                    taken[value] = None
                if origin is not None and origin != index and value not in pieces[origin].outputs:
                    pieces[origin].outputs.append(value)
        piece.inputs = list(taken)
        for node in piece.nodes:
            for value in node.outputs:
                if value in given_out and value not in piece.outputs:
                    piece.outputs.append(value)


def extract(model: ir.Model, piece: Piece) -> ir.Model:
    """A model of its own of one piece. The given model keeps its nodes; tensors are shared."""
    import onnx_ir as ir

    positions = {node: index for index, node in enumerate(model.graph)}
    kept = {positions[node] for node in piece.nodes}
    twin = model.clone()
    graph = twin.graph
    graph.outputs.clear()
    nodes = list(graph)
    values = {value.name: value for node in nodes for value in node.outputs}
    values |= {value.name: value for value in graph.inputs}
    inputs: list[ir.Value] = []
    for value in piece.inputs:
        old = values[value.name]
        if value in set(model.graph.inputs):
            inputs.append(old)
            continue
        new = ir.Value(name=value.name, type=value.type, shape=value.shape)
        old.replace_all_uses_with(new)
        inputs.append(new)
    graph.remove([node for index, node in enumerate(nodes) if index not in kept])
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    graph.outputs.extend(values[value.name] for value in piece.outputs)
    used = set().union(*(read_by(node) for node in graph)) if len(graph) else set()
    for name, value in list(graph.initializers.items()):
        if value not in used and value not in set(inputs):
            del graph.initializers[name]
    return twin


def sorted_inputs(node: ir.Node) -> list[ir.Value]:
    """The values that a node reads, initializers left out."""
    return sorted((value for value in read_by(node) if not value.is_initializer()), key=lambda value: value.name or "")
