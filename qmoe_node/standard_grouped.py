"""A small layer in standard ONNX operators: tokens sorted by expert, products for each expert, all else once for all.

A loop over experts runs some hundred operators for each of them; where products are small, calling operators is what
takes time. Both passes write the same operators for what they share, which ONNX Runtime then computes once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from qmoe_node.layer import Layer, Projection
from qmoe_node.packing import default_zero_point
from qmoe_node.standard import activate, as_float, by_expert, choose, mixing_weights
from qmoe_node.standard_gradient import activate_gradient, expression, number, route_gradient
from qmoe_node.standard_weights import Operand, look_up_codes, reshape
from runtime.gradients.expressions import Expr, Formulas
from runtime.types import ElementType

MOST_WEIGHTS = 1 << 20
"""Of all experts together, which are held as float32 at once (4 MiB)."""


def is_small(layer: Layer) -> bool:
    """Whether all experts at once are worth while: integer codes, in whole blocks, and few of them."""
    weights = layer.experts * sum(projection.rows * projection.columns for projection in layer.projections)
    return weights <= MOST_WEIGHTS and all(
        projection.layout == "rows"
        and projection.bits in (2, 4, 8)
        and projection.block_size
        and projection.columns % projection.block_size == 0
        and projection.columns % (8 // projection.bits) == 0
        for projection in layer.projections
    )


@dataclass(frozen=True, slots=True)
class _Weights:
    """A projection's weights of all experts before scaling, float32 [E, rows, columns], and each expert's after it,
    [1, rows, columns]."""

    values: Expr
    scaled: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """What a forward pass leaves of S = T k tokens, sorted by expert: float32 [1, S, width]."""

    tokens: Expr
    weights: Mapping[str, _Weights]
    first: Expr
    third: Expr | None
    inner: Expr


class Grouped:
    """The writing of a layer that `is_small`. `tokens` are float32 [T, hidden]."""

    def __init__(self, op: Formulas, layer: Layer, operands: Mapping[str, Operand], tokens: Expr) -> None:
        self.op, self.layer, self.operands, self.tokens = op, layer, operands, tokens
        logits, given = self._float("router_probs"), self._float("router_weights")
        assert logits is not None
        self._logits, self._router_weights = logits, given
        choice = choose(op.tape, layer.settings, logits.value, None if given is None else given.value)
        self._indices = expression(op, choice.indices, ElementType.INT64)
        self._weights = expression(op, mixing_weights(op.tape, layer.settings, choice))
        groups = by_expert(op.tape, layer, choice.indices)
        self._experts = expression(op, groups.experts, ElementType.INT64)
        self._order = expression(op, groups.order, ElementType.INT64)
        self._counts = expression(op, groups.counts, ElementType.INT64)
        self._place = expression(op, groups.place, ElementType.INT64)
        self._rows = op.Div(self._order, op.constant(np.asarray(layer.settings.k, np.int64)))

    def forward(self) -> Expr:
        """The layer's output, float32 [T, hidden]."""
        run = self._run()
        return self._summed(self._shares() * self._project(self.layer.fc2, run.weights["fc2"], run.inner))

    def gradients(self, upstream: Expr, wrt: Collection[str]) -> dict[str, Expr]:
        """The gradients by port of inputs in `wrt`, and perhaps of others, from that of the output [T, hidden].

        In float32: those of tokens [T, hidden], of scales [E, rows, blocks], of weights [E, rows, columns].
        """
        op, layer, run = self.op, self.layer, self._run()
        outgoing, shares = self._sorted(upstream), self._shares()
        # W^T dy without the mixing weight, from which the weight's own gradient, dy . (W z + b), follows.
        back = self._products(outgoing, run.weights["fc2"].scaled)
        own = op.ReduceSum(back * run.inner, [2], keepdims=0)
        bias = self._bias(layer.fc2)
        if bias is not None:
            own = own + op.ReduceSum(outgoing * bias, [2], keepdims=0)
        own = op.Reshape(op.Gather(op.Reshape(own, [-1]), self._place, axis=0), [-1, layer.settings.k])
        found = self._of_projection(layer.fc2, run.weights["fc2"], run.inner, shares * outgoing, wrt)
        third = None if run.third is None else op.Squeeze(run.third, [0])
        first, upward = op.Squeeze(run.first, [0]), op.Squeeze(shares * back, [0])
        into: Expr | None = None
        steps = activate_gradient(op, layer, first, third, upward)
        for projection, step in zip((layer.fc1, layer.fc3), steps, strict=True):
            if projection is None or step is None:
                continue
            weights, gradient = run.weights[projection.name], op.Unsqueeze(step, [0])
            found |= self._of_projection(projection, weights, run.tokens, gradient, wrt)
            if "input" in wrt:
                part = self._products(gradient, weights.scaled)
                into = part if into is None else into + part
        if into is not None:
            found["input"] = self._summed(into)
        settings, weights_given = layer.settings, self._router_weights
        routed = route_gradient(op, settings, self._logits, weights_given, self._indices, self._weights, own)
        found["router_probs"] = routed[0]
        if routed[1] is not None:
            found["router_weights"] = routed[1]
        return found

    def _run(self) -> _Run:
        op, layer = self.op, self.layer
        tokens = self._sorted(self.tokens)
        weights = {projection.name: self._unpacked(projection) for projection in layer.projections}
        first = self._project(layer.fc1, weights["fc1"], tokens)
        third = None if layer.fc3 is None else self._project(layer.fc3, weights["fc3"], tokens)
        flat = None if third is None else op.Squeeze(third, [0]).value
        inner = expression(op, activate(op.tape, layer, op.Squeeze(first, [0]).value, flat))
        return _Run(tokens, weights, first, third, op.Unsqueeze(inner, [0]))

    def _sorted(self, values: Expr) -> Expr:
        """[1, S, width] from [T, width]."""
        return self.op.Unsqueeze(self.op.Gather(values, self._rows, axis=0), [0])

    def _summed(self, values: Expr) -> Expr:
        """[T, width] from [1, S, width]: the sum over each token's choices, in their order."""
        op = self.op
        in_place = op.Gather(op.Squeeze(values, [0]), self._place, axis=0)
        width = self.layer.hidden
        return op.ReduceSum(op.Reshape(in_place, [-1, self.layer.settings.k, width]), [1], keepdims=0)

    def _shares(self) -> Expr:
        """The mixing weights, [1, S, 1]."""
        op = self.op
        return op.Reshape(op.Gather(op.Reshape(self._weights, [-1]), self._order, axis=0), [1, -1, 1])

    def _split(self, values: Expr) -> tuple[Expr, ...]:
        """Each expert's part of [1, S, width]."""
        parts = self.op.Split(values, self._counts, axis=1, outputs=self.layer.experts)
        return parts if isinstance(parts, tuple) else (parts,)

    def _products(self, values: Expr, matrices: tuple[Expr, ...]) -> Expr:
        """Each expert's part of [1, S, rows], times its matrix [1, rows, columns]."""
        parts = zip(self._split(values), matrices, strict=True)
        return self.op.Concat(*(self.op.MatMul(part, matrix) for part, matrix in parts), axis=1)

    def _project(self, projection: Projection, weights: _Weights, tokens: Expr) -> Expr:
        """W x + b of every expert's tokens: float32 [1, S, rows] from [1, S, columns]."""
        transposed = tuple(self.op.Transpose(matrix, perm=[0, 2, 1]) for matrix in weights.scaled)
        products = self._products(tokens, transposed)
        bias = self._bias(projection)
        return products if bias is None else products + bias

    def _bias(self, projection: Projection) -> Expr | None:
        """Each token's bias, [1, S, rows]."""
        bias = self._float(projection.port("experts_bias"))
        return None if bias is None else self.op.Unsqueeze(self.op.Gather(bias, self._experts, axis=0), [0])

    def _of_projection(
        self, projection: Projection, weights: _Weights, x: Expr, gradient: Expr, wrt: Collection[str]
    ) -> dict[str, Expr]:
        """The gradients of a projection's tensors from that of W x + b, [1, S, rows]."""
        op, found = self.op, {}
        ports = {what: projection.port(what) for what in ("experts_bias", "experts_weights", "scales")}
        parts = self._split(gradient)
        if ports["experts_bias"] in wrt:
            found[ports["experts_bias"]] = op.Concat(*(op.ReduceSum(part, [1], keepdims=0) for part in parts), axis=0)
        if not {ports["experts_weights"], ports["scales"]} & set(wrt):
            return found
        pairs = zip(parts, self._split(x), strict=True)
        matrix = op.Concat(*(op.MatMul(op.Transpose(g, perm=[0, 2, 1]), own) for g, own in pairs), axis=0)
        found[ports["experts_weights"]] = matrix
        blocks = [self.layer.experts, projection.rows, projection.blocks, projection.block_size]
        found[ports["scales"]] = op.ReduceSum(op.Reshape(matrix * weights.values, blocks), [3], keepdims=0)
        return found

    def _unpacked(self, projection: Projection) -> _Weights:
        op, tape, experts = self.op, self.op.tape, self.layer.experts
        shape = (experts, projection.rows, projection.blocks, projection.block_size)
        zeros = self.operands.get(projection.port("zero_points"))
        codes = look_up_codes(tape, self.operands[projection.port("experts_weights")].value, projection.bits)
        values = expression(op, reshape(tape, codes, *shape))
        if zeros is not None:
            lead, count = (shape[:2], projection.blocks) if zeros.rank == 3 else (shape[:1], projection.rows)
            points = expression(op, reshape(tape, look_up_codes(tape, zeros.value, projection.bits), *lead, -1))
            values = values - op.Reshape(op.Slice(points, [0], [count], [-1]), [*shape[:3], 1])
        else:
            values = values - number(op, default_zero_point(projection.bits))
        scales = self._float(projection.port("scales"))
        scaled = values if scales is None else values * op.Reshape(scales, [*shape[:3], 1])
        whole = [*shape[:2], projection.columns]
        parts = op.Split(op.Reshape(scaled, whole), [1] * experts, axis=0, outputs=experts)
        return _Weights(op.Reshape(values, whole), parts if isinstance(parts, tuple) else (parts,))

    def _float(self, port: str) -> Expr | None:
        operand = self.operands.get(port)
        return None if operand is None else expression(self.op, as_float(self.op.tape, operand.value, operand.element))
