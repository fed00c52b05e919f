"""Reverse mode on ONNX IR: a walk from the outputs back to the inputs, one rule an operator.

What all rules have in common is done here, once: which nodes matter, sums where a value is used more than once,
broadcasting, absent inputs and outputs, values without gradient, and the coefficient of what is sent on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from runtime import catalog
from runtime.backends.control import attribute_values, document_node, operator_name
from runtime.backends.numpy import read_by
from runtime.compile import PREFIX
from runtime.errors import Finding, GraphError
from runtime.gradients.expressions import Expr, Formulas
from runtime.tape import OWNER
from runtime.types import Shape

WEIGHT = "qmoe.weight"
"""The entry of a value's `meta` that is true for a weight that has become an input of its model."""

Gradients: TypeAlias = "Expr | Sequence[Expr | None] | None"
Rule: TypeAlias = "Callable[[Call], Gradients]"


@dataclass(slots=True)
class Call:
    """One node on the way back: what a rule sees.

    `x` are its inputs, `y` its outputs, `g` the gradients of the outputs (None where nothing flows back); `needs` says
    of which inputs gradients are wanted. A rule returns the gradients of the inputs in their order; None, or nothing
    more, where there is none.
    """

    op: Formulas
    node: ir.Node
    x: list[Expr | None]
    y: list[Expr]
    g: list[Expr | None]
    needs: list[bool]
    attributes: dict[str, Any]

    def __getitem__(self, position: int) -> Expr:
        """An input that is connected."""
        value = self.x[position]
        if value is None:
            raise self.error(f"input number {position} is not connected, and the gradient needs it.")
        return value

    @property
    def a(self) -> Expr:
        """The first input."""
        return self[0]

    @property
    def b(self) -> Expr:
        """The second input."""
        return self[1]

    @property
    def c(self) -> Expr:
        """The third input."""
        return self[2]

    @property
    def out(self) -> Expr:
        """The first output."""
        return self.y[0]

    @property
    def d(self) -> Expr:
        """The gradient of the first output; zeros if there is none."""
        return self.gradient(0)

    @property
    def version(self) -> int:
        """The version of the node's operator set."""
        return self.op.opsets.get(self.node.domain, 1)

    def gradient(self, position: int) -> Expr:
        """The gradient of an output; zeros if there is none."""
        given = self.g[position]
        return self.op.like(0, self.y[position]) if given is None else given

    def has(self, position: int) -> bool:
        """Whether an input is connected."""
        return position < len(self.x) and self.x[position] is not None

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or what it is where it is not set."""
        return self.attributes.get(name, default)

    def error(self, message: str, remedy: str = "") -> GraphError:
        """An error about the node."""
        name = operator_name(self.node)
        return GraphError.at(document_node(self.node), "", f"the gradient of {name}: {message}", remedy, "gradient")


def pull_back(
    op: Formulas, nodes: Sequence[ir.Node], gradients: Mapping[ir.Value, Expr], wanted: Collection[ir.Value]
) -> dict[ir.Value, Expr]:
    """The gradients of `wanted` values, and of those on the way to them, from those of what `nodes` compute.

    New nodes go on the tape of `op`. Values that nothing flows back to are absent. GraphError names a node without a
    rule, or one that keeps nothing for the backward pass.
    """
    return _Walk(op, nodes, gradients, wanted).run()


class _NoRule(GraphError):
    """There is no gradient for an operator."""

    def __init__(self, finding: Finding, operator: str) -> None:
        super().__init__(finding)
        self.operator = operator


class _Walk:
    def __init__(
        self, op: Formulas, nodes: Sequence[ir.Node], gradients: Mapping[ir.Value, Expr], wanted: Collection[ir.Value]
    ) -> None:
        self.op = op
        self.nodes = nodes
        self.wanted = wanted
        self.gradients = dict(gradients)
        self.live = live_values(nodes, wanted)

    def run(self) -> dict[ir.Value, Expr]:
        for node in reversed(self.nodes):
            if any(value in self.gradients for value in node.outputs):
                read = [value for value in read_by(node) if value in self.live]
                if read:
                    self._through(node)
        return self.gradients

    def _through(self, node: ir.Node) -> None:
        from runtime.gradients.table import FORMS, RULES, WITH_SUBGRAPHS

        tape, name = self.op.tape, operator_name(node)
        tape.owner = node.metadata_props.get(OWNER, tape.owner)
        call = self._call(node)
        start = len(tape.nodes)
        node_type = catalog.find(name, self.op.opsets)
        try:
            if node_type is not None and node_type.gradient is not None:
                found = self._by_rule(call, (node_type.gradient, False))
            elif name in WITH_SUBGRAPHS:
                found = WITH_SUBGRAPHS[name](call, self.live)
            elif name in RULES:
                found = self._by_rule(call, RULES[name])
            elif name in FORMS:
                found = by_form(call, FORMS[name](call), self.live)
            elif (body := function_body(call)) is not None:
                found = by_form(call, body, self.live)
            else:
                raise self._no_rule(node, name)
        except _NoRule as error:  # of a node that stands for a part of this one: the path is that of this one
            raise self._no_rule(node, error.operator) from error
        self._check_kept(node, tape.nodes[start:])
        coefficient = json.loads(node.metadata_props.get(PREFIX + "lda coeff", "1"))
        for value, gradient in found.items():
            if coefficient != 1 and not is_weight(value) and not _is_within(node, value):
                gradient = gradient * coefficient
            before = self.gradients.get(value)
            self.gradients[value] = gradient if before is None else before + gradient

    def _call(self, node: ir.Node) -> Call:
        op = self.op
        return Call(
            op,
            node,
            [None if value is None else Expr(op, value) for value in node.inputs],
            [Expr(op, value) for value in node.outputs],
            [self.gradients.get(value) for value in node.outputs],
            [value in self.live for value in node.inputs],
            attribute_values(node),
        )

    def _by_rule(self, call: Call, rule: tuple[Rule, bool]) -> dict[ir.Value, Expr]:
        function, broadcasts = rule
        results = function(call)
        if results is None or isinstance(results, Expr):
            results = (results,)
        found: dict[ir.Value, Expr] = {}
        for x, needed, gradient in zip(call.x, call.needs, results, strict=False):
            if x is None or gradient is None or not needed:
                continue
            if broadcasts:
                gradient = sum_to(gradient, x)
            before = found.get(x.value)
            found[x.value] = gradient if before is None else before + gradient
        return found

    def _check_kept(self, node: ir.Node, written: Iterable[ir.Node]) -> None:
        """GraphError if the backward pass reads numbers of a node that keeps none."""
        if json.loads(node.metadata_props.get(PREFIX + "training?", "true")):
            return
        own = {*node.outputs, *(value for value in read_by(node) if value is not None and not is_weight(value))}
        for new in written:
            if new.op_type != "Shape" and any(value in own for value in new.inputs):
                raise GraphError.at(
                    document_node(node),
                    "training?",
                    "the node is not in training mode, so that it keeps nothing for the backward pass, which needs "
                    "numbers of it.",
                    "Switch training? on, or freeze the weights before it.",
                    "training",
                )

    def _no_rule(self, node: ir.Node, operator: str) -> _NoRule:
        path = self._path_forward(node) + [document_node(node)] + self._path_back(node)
        chain = " <- ".join(dict.fromkeys(path))
        inside = "" if operator == operator_name(node) else f", a part of {operator_name(node)},"
        finding = Finding(
            f"{operator}{inside} has no gradient, and one is needed on the way {chain}.",
            document_node(node),
            remedy="Freeze the weights that are behind it, or put an operator with a gradient in its place.",
            code="no-gradient",
        )
        return _NoRule(finding, operator)

    def _path_forward(self, node: ir.Node) -> list[str]:
        """Document nodes from the outputs that were started from to the one after `node`."""
        path: list[str] = []
        current: ir.Node | None = node
        while current is not None:
            follower = next(
                (
                    user
                    for value in current.outputs
                    for user in value.consumers()
                    if user in self._set and any(out in self.gradients for out in user.outputs)
                ),
                None,
            )
            if follower is not None:
                path.insert(0, document_node(follower))
            else:
                path.insert(0, next((str(v.name) for v in current.outputs if v in self.gradients), ""))
            current = follower
        return path

    def _path_back(self, node: ir.Node) -> list[str]:
        """Document nodes from before `node` to the first wanted value behind it."""
        path: list[str] = []
        current: ir.Node | None = node
        while current is not None:
            source = next((value for value in read_by(current) if value in self.live), None)
            if source is None or source in self.wanted:
                return path + ([str(source.name)] if source is not None else [])
            current = source.producer()
            if current is not None:
                path.append(document_node(current))
        return path

    @property
    def _set(self) -> set[ir.Node]:
        return set(self.nodes)


def is_weight(value: ir.Value) -> bool:
    """Whether a value belongs to the node that reads it, rather than to one before it."""
    return value.is_initializer() or bool(value.meta.get(WEIGHT))


def _is_within(node: ir.Node, value: ir.Value) -> bool:
    """Whether a value is one of those inside the document's node that `node` is a part of."""
    producer = value.producer()
    return producer is not None and document_node(producer) == document_node(node)


def live_values(nodes: Iterable[ir.Node], wanted: Collection[ir.Value]) -> set[ir.Value]:
    """The values that depend on wanted ones in a way that has a gradient."""
    from runtime.gradients.table import FLAT

    live = set(wanted)
    for node in nodes:
        if operator_name(node) in FLAT or not any(value in live for value in read_by(node)):
            continue
        live.update(value for value in node.outputs if value.dtype is None or value.dtype.is_floating_point())
    return live


def by_form(call: Call, outputs: Sequence[Expr | None] | Expr, live: Collection[ir.Value]) -> dict[ir.Value, Expr]:
    """The gradients of a node's inputs by way of simpler operators, just written, that compute the same `outputs`."""
    results = (outputs,) if isinstance(outputs, Expr) else tuple(outputs)
    seeds: dict[ir.Value, Expr] = {}
    for result, given in zip(results, call.g, strict=False):
        if given is not None and result is not None:
            before = seeds.get(result.value)
            seeds[result.value] = given if before is None else before + given
    sources = [value for value in read_by(call.node) if value in live]
    nodes = behind(seeds, set(sources))
    found = pull_back(call.op, nodes, seeds, sources)
    return {value: found[value] for value in sources if value in found}


def behind(values: Iterable[ir.Value], stop: Collection[ir.Value]) -> list[ir.Node]:
    """The nodes that compute some values from those in `stop`, in an order in which they can run."""
    order: list[ir.Node] = []
    seen: set[ir.Node] = set()
    stack: list[tuple[ir.Node, bool]] = [
        (n, False) for v in values if v not in stop and (n := v.producer()) is not None
    ]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((n, False) for v in read_by(node) if v not in stop and (n := v.producer()) is not None)
    return order


def sum_to(gradient: Expr, x: Expr) -> Expr:
    """The gradient of a value that was broadcast: summed over the dimensions in which it was repeated."""
    op = gradient.op
    given, own = gradient.shape, x.shape
    if given is not None and own is not None:
        axes = _repeated(given, own)
        if axes is not None:
            if not axes:
                return gradient
            lead = len(given) - len(own)
            summed = op.ReduceSum(gradient, axes, keepdims=1)
            return op.Squeeze(summed, list(range(lead))) if lead else summed
    shape, wide = op.Shape(x), op.Shape(gradient)
    missing = op.Sub(op.Size(wide), op.Size(shape))
    ones = op.Expand(op.constant(np.asarray(1, np.int64)), op.Unsqueeze(missing, [0]))
    padded = op.Concat(ones, shape, axis=0)
    axes_now = op.Reshape(op.NonZero(op.Not(op.Equal(padded, wide))), [-1])
    return op.Reshape(op.ReduceSum(gradient, axes_now, keepdims=1, noop_with_empty_axes=1), shape)


def _repeated(given: Shape, own: Shape) -> list[int] | None:
    """The axes of `given` over which a value of shape `own` was repeated; None if that is not certain."""
    lead = len(given) - len(own)
    if lead < 0:
        return None
    axes = list(range(lead))
    for axis, size in enumerate(own, lead):
        if size == 1:
            if given[axis] != 1:
                axes.append(axis)
        elif size is None or given[axis] is None or size != given[axis]:
            return None
    return axes


def function_body(call: Call) -> Sequence[Expr | None] | None:
    """The node's outputs, computed by the simpler operators that its schema or its model's function defines."""
    from runtime.gradients.functions import written

    node_type = catalog.find(operator_name(call.node), call.op.opsets)
    return None if node_type is None else written(call, node_type)
