"""Gradients through operators with subgraphs: If becomes an If of gradients, Loop and Scan are unrolled.

A body is written again where it is needed (`replay`), so that the rules see ordinary nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from runtime.backends.control import Control
from runtime.backends.numpy import Program, read_by, subgraphs
from runtime.gradients.expressions import Expr, Formulas
from runtime.gradients.walk import Call, behind, by_form, pull_back

Values: TypeAlias = "Mapping[ir.Value, Expr | None]"

MOST_ITERATIONS = 1024
"""Loops that go on longer are not unrolled: the model of their gradient would be too large."""

RANDOM = frozenset("Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split())


def replay(op: Formulas, graph: ir.Graph, inputs: Sequence[Expr | None], outer: Values) -> list[Expr]:
    """Writes a subgraph's nodes once more, on the tape of `op`; returns its outputs.

    `inputs` take the places of its formal inputs; values from outside are those of `outer`, or else themselves.
    """
    values: dict[ir.Value, Expr | None] = {**outer, **dict(zip(graph.inputs, inputs, strict=True))}
    for initializer in graph.initializers.values():
        if initializer not in values and initializer.const_value is not None:
            values[initializer] = op.constant(initializer.const_value.numpy())

    def now(value: ir.Value) -> Expr:
        return values.get(value) or Expr(op, value)

    for node in graph:
        read = [None if v is None or (v in values and values[v] is None) else now(v).value for v in node.inputs]
        attributes: dict[str, Any] = {name: _rewritten(op, given, values) for name, given in node.attributes.items()}
        written = op.tape.ops(node.op_type, read, len(node.outputs), domain=node.domain, **attributes)
        new = written[0].producer()
        assert new is not None
        new.metadata_props.update(node.metadata_props)
        op.complete([new])
        values.update(zip(node.outputs, (Expr(op, value) for value in written), strict=True))
    return [now(value) for value in graph.outputs]


def _rewritten(op: Formulas, attribute: ir.Attr, values: Values) -> ir.Attr:
    """An attribute; the subgraph in it is written again, because it may read values that were."""
    if attribute.type != ir.AttributeType.GRAPH:
        return attribute
    inner, graph = op.inner(), attribute.as_graph()
    formals = [ir.Value(name=op.tape.unique("value"), type=v.type, shape=v.shape) for v in graph.inputs]
    outer = {value: item and Expr(inner, item.value) for value, item in values.items()}
    outputs = replay(inner, graph, [Expr(inner, formal) for formal in formals], outer)
    return ir.AttrGraph(attribute.name, inner.tape.graph(formals, [_own(inner, item).value for item in outputs]))


def _own(op: Formulas, item: Expr) -> Expr:
    """The value as one that the tape of `op` computes: a subgraph gives out nothing else."""
    producer = item.value.producer()
    return Expr(op, item.value) if producer is not None and producer in op.tape.nodes else op.Identity(item)


def if_gradients(n: Call, live: Collection[ir.Value]) -> dict[ir.Value, Expr]:
    """An If on the same condition: each branch runs once more and goes back; zeros where it does not use a value."""
    sources = [value for value in read_by(n.node) if value in live]
    branches: list[tuple[Formulas, dict[ir.Value, Expr]]] = []
    for name in ("then_branch", "else_branch"):
        inner = n.op.inner()
        outputs = replay(inner, n.node.attributes[name].as_graph(), [], {})
        seeds: dict[ir.Value, Expr] = {}
        for output, given in zip(outputs, n.g, strict=True):
            if given is not None:
                before, more = seeds.get(output.value), Expr(inner, given.value)
                seeds[output.value] = more if before is None else before + more
        branches.append((inner, pull_back(inner, list(inner.tape.nodes), seeds, sources)))
    reached = sorted((v for v in sources if any(v in found for _, found in branches)), key=lambda v: v.name or "")
    if not reached:
        return {}
    graphs: list[ir.Graph] = []
    for inner, found in branches:
        results = [_own(inner, found.get(v) or inner.like(0, Expr(inner, v))).value for v in reached]
        _keep(inner, results)
        graphs.append(inner.tape.graph([], results))
    gradients = n.op.apply("If", n.a, outputs=len(reached), then_branch=graphs[0], else_branch=graphs[1])
    expressions = gradients if len(reached) > 1 else (gradients,)
    for value, gradient in zip(reached, expressions, strict=True):
        n.op.set_type(gradient.value, n.op.type_of(value))
    return dict(zip(reached, expressions, strict=True))


def _keep(op: Formulas, results: Iterable[ir.Value]) -> None:
    """Takes from the tape what nobody needs for `results`."""
    needed, kept = set(results), []
    for node in reversed(op.tape.nodes):
        if any(value in needed for value in node.outputs):
            needed |= read_by(node)
            kept.append(node)
        else:
            cut_off(node)
    op.tape.nodes[:] = kept[::-1]


def cut_off(node: ir.Node) -> None:
    """Takes a node that is no longer needed, and those of its subgraphs, from the users of what they read."""
    for position in range(len(node.inputs)):
        node.replace_input_with(position, None)
    for graph in subgraphs(node):
        graph.outputs.clear()
        for inner in graph:
            cut_off(inner)


def loop_gradients(n: Call, live: Collection[ir.Value]) -> dict[ir.Value, Expr]:
    """By way of the body, written once for every iteration."""
    op, graph = n.op, n.node.attributes["body"].as_graph()
    limit = _number(n, 0, "trip count")
    alive = _number(n, 1, "condition")
    carried = list(n.x[2:])
    scanned: list[list[Expr]] = [[] for _ in n.y[len(carried) :]]
    iteration = 0
    while (alive is None or alive) and (limit is None or iteration < limit):
        if iteration == MOST_ITERATIONS:
            raise n.error(f"it is unrolled, and goes on for more than {MOST_ITERATIONS} iterations.")
        start = [op.constant(np.asarray(iteration, np.int64)), op.constant(np.asarray(True))]
        condition, *results = replay(op, graph, [*start, *carried], {})
        constant = computed_before(op, condition.value)
        if constant is None:
            raise n.error(
                "its condition is computed from values that are known only in the run, and so is the number of its "
                "iterations.",
                "Give it a constant condition and a constant trip count.",
            )
        alive = int(constant.reshape(()))
        carried = [*results[: len(carried)]]
        for collected, item in zip(scanned, results[len(carried) :], strict=True):
            collected.append(item)
        iteration += 1
    return by_form(n, [*carried, *(_stacked(op, items, 0) for items in scanned)], live)


def _number(n: Call, position: int, what: str) -> int | None:
    """An input of Loop that says how long it goes on; None if it is not connected."""
    if not n.has(position):
        return None
    constant = computed_before(n.op, n[position].value)
    if constant is None:
        raise n.error(f"its {what} is not known before the run.", f"Give it a constant {what}.")
    return int(constant.reshape(()))


def scan_gradients(n: Call, live: Collection[ir.Value]) -> dict[ir.Value, Expr]:
    """By way of the body, written once for every element of the scan inputs."""
    op, graph, count = n.op, n.node.attributes["body"].as_graph(), n.get("num_scan_inputs")
    if n.version < 9:
        raise n.error("there is none for its batched form.", "Raise the graph's operator set to 9 or more.")
    state: list[Expr | None] = list(n.x[: len(n.x) - count])
    scans = [n[position] for position in range(len(state), len(n.x))]

    def setting(name: str, size: int) -> list[int]:
        return list(n.get(name) or [0] * size)

    in_axes, in_reversed = setting("scan_input_axes", count), setting("scan_input_directions", count)
    lengths = [None if x.shape is None else x.shape[axis] for x, axis in zip(scans, in_axes, strict=True)]
    length = next((size for size in lengths if isinstance(size, int)), None)
    if length is None:
        raise n.error("the length of its scan inputs is not known before the run.", "Give them a fixed shape.")
    if length > MOST_ITERATIONS:
        raise n.error(f"it is unrolled, and goes on for more than {MOST_ITERATIONS} iterations.")
    columns = [
        elements[::-1] if backwards else elements
        for x, axis, backwards in zip(scans, in_axes, in_reversed, strict=True)
        if (elements := _elements(op, x, axis, length)) is not None
    ]
    scanned: list[list[Expr]] = [[] for _ in n.y[len(state) :]]
    for iteration in range(length):
        results = replay(op, graph, [*state, *(column[iteration] for column in columns)], {})
        state = [*results[: len(state)]]
        for collected, item in zip(scanned, results[len(state) :], strict=True):
            collected.append(item)
    axes, directions = setting("scan_output_axes", len(scanned)), setting("scan_output_directions", len(scanned))
    stacked = [
        _stacked(op, items[::-1] if backwards else items, axis)
        for items, axis, backwards in zip(scanned, axes, directions, strict=True)
    ]
    return by_form(n, [*state, *stacked], live)


def _elements(op: Formulas, x: Expr, axis: int, length: int) -> list[Expr]:
    """What lies along an axis, one after the other; cut at once, so that the way back is one Concat."""
    if length == 0:
        return []
    parts = op.Split(x, [1] * length, axis=axis, outputs=length)
    return [op.Squeeze(part, [axis]) for part in (parts if length > 1 else (parts,))]


def _stacked(op: Formulas, items: Sequence[Expr], axis: int) -> Expr | None:
    """The items along a new axis; None if there are none: nothing flows back from there."""
    return op.Concat(*(op.Unsqueeze(item, [axis]) for item in items), axis=axis) if items else None


def computed_before(op: Formulas, value: ir.Value) -> np.ndarray | None:
    """The numbers of a value that depends on nothing but constants; None for any other."""
    known = op.known(value)
    if known is not None:
        return known
    nodes = behind([value], ())
    own = {output for node in nodes for output in node.outputs}
    start = {read: op.known(read) for node in nodes for read in read_by(node) if read not in own}
    if not nodes or any(item is None for item in start.values()) or any(node.op_type in RANDOM for node in nodes):
        return None
    program = Program(nodes, op.opsets)
    values = {**program.constants, **start}
    program.run(values, {value}, Control())
    return np.asarray(values[value])


WITH_SUBGRAPHS: dict[str, Callable[[Call, Collection[ir.Value]], dict[ir.Value, Expr]]] = {
    "If": if_gradients,
    "Loop": loop_gradients,
    "Scan": scan_gradients,
}
"""By operator: gradients of all values that it reads, also from inside its subgraphs."""
