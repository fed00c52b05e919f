"""QMoEGrad in standard ONNX operators: routing, and a loop over the chosen experts.

Only one expert's weights, and their gradients, are ever held as float32. What belongs to the layer's own tensors comes
out of the loop expert by expert, and is put in its places at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from qmoe_node.differentiable import WEIGHTS
from qmoe_node.layer import FLOAT_LAYOUTS, Layer, Projection
from qmoe_node.portable import DOMAIN, check_opset, is_read, layer_at, operands_of
from qmoe_node.standard import activate, as_float, cast_back, choose, in_shape_of, mixing_weights
from qmoe_node.standard_gradient import activate_gradient, expression, number, route_gradient, row_sum
from qmoe_node.standard_grouped import Grouped, is_small
from qmoe_node.standard_weights import (
    Operand,
    block_sums,
    expert_values,
    of_expert,
    readable,
    reshape,
    scale_values,
    square_sums,
)
from runtime.gradients.expressions import Expr, Formulas
from runtime.types import ElementType, TensorType

if TYPE_CHECKING:
    import onnx_ir as ir

    from runtime.lowering import Site
    from runtime.tape import Tape


def lower(site: Site) -> None:
    """Replaces a QMoEGrad node by standard operators. GraphError if the shapes of its weights are not known."""
    layer = layer_at(site)
    check_opset(site)
    operands, wrt = operands_of(site), list(site.attributes["wrt"])
    site.replace(*_write(site, layer, operands, wrt, at_once=is_small(layer)))


def expand(site: Site) -> None:
    """Replaces a QMoEGrad node by a call of a function of standard operators; errors as in `lower`."""
    from runtime.lowering import add_function

    layer = layer_at(site)
    check_opset(site)
    wrt = list(site.attributes["wrt"])
    operands = operands_of(site)
    operands = {port: o for port, o in operands.items() if is_read(layer, port) or port in ("output_gradient", *wrt)}
    signature = repr(
        (layer, wrt, site.opset, [(port, str(o.element), o.rank, o.is_bytes) for port, o in operands.items()])
    )
    name = f"QMoEGrad_{sha256(signature.encode()).hexdigest()[:12]}"

    def write(tape: Tape, formals: Mapping[str, ir.Value]) -> Sequence[ir.Value]:
        return _write(tape, layer, {port: replace(o, value=formals[port]) for port, o in operands.items()}, wrt)

    types = {port: TensorType(ElementType.UINT8 if o.is_bytes else o.element) for port, o in operands.items()}
    add_function(site, DOMAIN, name, types, write)
    inputs = [o.value for o in operands.values()]
    site.replace(*site.ops(name, inputs, len(wrt), domain=DOMAIN, name=site.node.name or ""))


def _write(
    tape: Tape, layer: Layer, operands: Mapping[str, Operand], wrt: Sequence[str], at_once: bool = False
) -> list[ir.Value]:
    """The gradients of the inputs in `wrt`, each in its input's shape and type; see `QMoEGrad`.

    `at_once`: experts not one after the other, for layers that are small.
    """
    op = Formulas(tape, {"": tape.opset})
    results = []
    if at_once:
        tokens, upstream = (_rows(op, layer, operands[port]) for port in ("input", "output_gradient"))
        gradients = Grouped(op, layer, operands, tokens).gradients(upstream, wrt)
        for port in wrt:
            if port not in gradients:  # a tensor that the layer does not read
                gradients[port] = op.Expand(number(op, 0), op.Shape(Expr(op, operands[port].value)))
    else:
        gradients = _Backward(op, layer, operands, wrt).gradients()
    for port in wrt:
        gradient, operand = gradients[port].value, operands[port]
        if port == "input":
            gradient = in_shape_of(tape, gradient, operand.value)
        elif port.endswith("_scales") and operand.rank == 2:
            gradient = reshape(tape, gradient, layer.experts, -1)
        narrow = operand.element in (ElementType.FLOAT8E4M3FN, ElementType.FLOAT8E8M0)
        if port not in WEIGHTS and not narrow:
            gradient = cast_back(tape, gradient, operand.value, operand.element)
        results.append(gradient)
    return results


def _rows(op: Formulas, layer: Layer, operand: Operand) -> Expr:
    """Tokens, or their gradients, as float32 [T, hidden]."""
    tokens = as_float(op.tape, operand.value, operand.element)
    return expression(op, tokens if operand.rank == 2 else reshape(op.tape, tokens, -1, layer.hidden))


Rows: TypeAlias = "dict[str, tuple[Expr, tuple[int, ...]]]"
"""By port: what experts add to the gradient of a tensor of the layer, and the shape that it has for each expert."""


@dataclass(frozen=True, slots=True)
class _Weights:
    """One expert's weights of a projection, before and after scaling, float32 [rows, columns]."""

    values: ir.Value
    scaled: ir.Value


class _Backward:
    """The writing of one backward pass."""

    def __init__(self, op: Formulas, layer: Layer, operands: Mapping[str, Operand], wrt: Sequence[str]) -> None:
        self.op = op
        self.layer = layer
        self.operands = {port: readable(op.tape, operand) for port, operand in operands.items()}
        self.wrt = wrt
        self.tokens = _rows(op, layer, self.operands["input"])
        self.upstream = _rows(op, layer, self.operands["output_gradient"])

    def _float(self, port: str) -> Expr | None:
        operand = self.operands.get(port)
        return None if operand is None else expression(self.op, as_float(self.op.tape, operand.value, operand.element))

    def gradients(self) -> dict[str, Expr]:
        """The gradients in float32 by port; those of the tokens as [T, hidden]."""
        op, layer, settings = self.op, self.layer, self.layer.settings
        logits, router_weights = self._float("router_probs"), self._float("router_weights")
        assert logits is not None
        given = None if router_weights is None else router_weights.value
        choice = choose(op.tape, settings, logits.value, given)
        weights = expression(op, mixing_weights(op.tape, settings, choice))
        indices = expression(op, choice.indices, ElementType.INT64)
        used = op.Unique(op.Reshape(indices, [-1]), sorted=1)

        moved, shares, sums = self._loop(indices, weights, used)
        found = {"input": moved}
        routed = route_gradient(op, settings, logits, router_weights, indices, weights, shares)
        found["router_probs"] = routed[0]
        if routed[1] is not None:
            found["router_weights"] = routed[1]
        places = op.Unsqueeze(used, [1])
        for port, (rows, shape) in sums.items():
            empty = op.Expand(number(op, 0), [layer.experts, *shape])
            found[port] = op.ScatterND(empty, places, op.Reshape(rows, [-1, *shape]))
        for port in self.wrt:
            if port not in found:  # a tensor that the layer does not read
                found[port] = op.Expand(number(op, 0), op.Shape(Expr(op, self.operands[port].value)))
        return found

    def _loop(self, indices: Expr, weights: Expr, used: Expr) -> tuple[Expr, Expr, Rows]:
        """The gradients of the tokens [T, hidden] and of the mixing weights [T, k]; and by port those of the layer's
        tensors, a row for each expert that is used, with the shape of one row."""
        outer, layer = self.op.tape, self.layer
        body = outer.inner()
        turn, goes_on = body.formal(ElementType.INT64, ()), body.formal(ElementType.BOOL, ())
        carried = [
            body.formal(ElementType.FLOAT, (None, layer.hidden)),
            body.formal(ElementType.FLOAT, (None, layer.settings.k)),
        ]
        op = Formulas(body, {"": outer.opset})
        moved, shares = (Expr(op, value) for value in carried)
        expert = body.op("Gather", [used.value, turn], axis=0)
        places = op.NonZero(op.Equal(Expr(op, indices.value), Expr(op, expert)))
        rows = op.Gather(places, op.constant(np.asarray(0, np.int64)), axis=0)
        pairs = op.Transpose(places, perm=[1, 0])
        tokens = expression(op, body.op("Gather", [self.tokens.value, rows.value], axis=0))
        upstream = expression(op, body.op("Gather", [self.upstream.value, rows.value], axis=0))
        share = op.Unsqueeze(expression(op, body.op("GatherND", [weights.value, pairs.value])), [1])
        into, own, sums = self._expert(op, expert, tokens, upstream, share)
        column = op.Unsqueeze(rows, [1])
        moved_on = op.ScatterND(moved, column, op.Gather(moved, rows, axis=0) + into) if into is not None else moved
        shares_on = op.ScatterND(shares, pairs, op.Squeeze(own, [1]))
        ends = [op.Identity(Expr(op, goes_on)), op.Identity(moved_on), shares_on, *(row for row, _ in sums.values())]
        graph = body.graph([turn, goes_on, *carried], [end.value for end in ends])
        start = [self.op.ConstantOfShape(self.op.Shape(x)).value for x in (self.tokens, weights)]
        count = self.op.Size(used).value
        results = outer.ops("Loop", [count, outer.literal(True, np.bool_), *start], 2 + len(sums), body=graph)
        found = [expression(self.op, value) for value in results]
        stacked = {port: (row, shape) for row, (port, (_, shape)) in zip(found[2:], sums.items(), strict=True)}
        return found[0], found[1], stacked

    def _expert(
        self, op: Formulas, expert: ir.Value, tokens: Expr, upstream: Expr, share: Expr
    ) -> tuple[Expr | None, Expr, Rows]:
        """One expert's part: the gradients of its tokens [t, hidden], if wanted, and of their mixing weights [t, 1];
        and its rows of those of the layer's tensors."""
        layer, tape = self.layer, op.tape
        weights = {projection.name: self._weights(op, projection, expert) for projection in layer.projections}
        first = self._project(op, layer.fc1, weights["fc1"], expert, tokens)
        third = None if layer.fc3 is None else self._project(op, layer.fc3, weights["fc3"], expert, tokens)
        inner = expression(op, activate(tape, layer, first.value, None if third is None else third.value))
        sums: Rows = {}
        # W^T dy without the mixing weight, from which the weight's own gradient, dy . (W z + b), follows.
        back = op.MatMul(upstream, expression(op, weights["fc2"].scaled))
        own = row_sum(op, back * inner)
        bias = self.operands.get("fc2_experts_bias")
        if bias is not None:
            part = expression(op, of_expert(tape, bias, expert))
            own = own + row_sum(op, upstream * part)
        self._collect(op, layer.fc2, expert, weights["fc2"], share * inner, upstream, share * upstream, sums)
        gradients = activate_gradient(op, layer, first, third, share * back)
        into: Expr | None = None
        for projection, gradient in zip((layer.fc1, layer.fc3), gradients, strict=True):
            if projection is None or gradient is None:
                continue
            self._collect(op, projection, expert, weights[projection.name], tokens, gradient, gradient, sums)
            if "input" in self.wrt:
                part = op.MatMul(gradient, expression(op, weights[projection.name].scaled))
                into = part if into is None else into + part
        return into, own, sums

    def _weights(self, op: Formulas, projection: Projection, expert: ir.Value) -> _Weights:
        values = expert_values(op.tape, projection, expert, self.operands)
        return _Weights(values, scale_values(op.tape, projection, expert, self.operands, values))

    def _project(self, op: Formulas, projection: Projection, weights: _Weights, expert: ir.Value, tokens: Expr) -> Expr:
        """W x + b: float32 [t, rows]."""
        bias = self.operands.get(projection.port("experts_bias"))
        added = [] if bias is None else [of_expert(op.tape, bias, expert)]
        return expression(op, op.tape.op("Gemm", [tokens.value, weights.scaled, *added], transB=1))

    def _collect(
        self,
        op: Formulas,
        projection: Projection,
        expert: ir.Value,
        weights: _Weights,
        x: Expr,
        g: Expr,
        outgoing: Expr,
        sums: Rows,
    ) -> None:
        """An expert's rows of the gradients of a projection's tensors: that of W is g^T x, that of b the sum of
        `outgoing`."""
        rows, columns, blocks = projection.rows, projection.columns, projection.blocks
        ports = {what: projection.port(what) for what in ("experts_bias", "experts_weights", "scales", "global_scale")}
        if ports["experts_bias"] in self.wrt:
            sums[ports["experts_bias"]] = op.ReduceSum(outgoing, [0], keepdims=0), (rows,)
        overall = ports["global_scale"] in self.wrt and is_read(self.layer, ports["global_scale"])
        if not (overall or ports["experts_weights"] in self.wrt or ports["scales"] in self.wrt):
            return
        gradient = op.Gemm(g, x, transA=1)
        if ports["experts_weights"] in self.wrt:
            sums[ports["experts_weights"]] = gradient, (rows, columns)
        if not (overall or ports["scales"] in self.wrt):
            return
        factors = gradient * expression(op, weights.values)
        by_row = expression(op, block_sums(op.tape, projection, factors.value))
        scales = self.operands.get(ports["scales"])
        if projection.layout == "float8" and scales is not None:
            squares = expression(op, square_sums(op.tape, projection, by_row.value))
            sums[ports["scales"]] = squares, (-(-rows // projection.block_size), blocks)
            return
        if overall:
            scaled = by_row
            if scales is not None:
                block_scales = reshape(op.tape, of_expert(op.tape, scales, expert), rows, blocks)
                scaled = by_row * expression(op, block_scales)
            sums[ports["global_scale"]] = op.ReduceSum(scaled, keepdims=0), ()
        if ports["scales"] in self.wrt:
            global_scale = self.operands.get(ports["global_scale"])
            if global_scale is not None and projection.layout in FLOAT_LAYOUTS:
                by_row = by_row * expression(op, of_expert(op.tape, global_scale, expert))
            sums[ports["scales"]] = by_row, (rows, blocks)
