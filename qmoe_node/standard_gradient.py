"""Gradients of routing and activations as standard ONNX operators, in float32.

The formulas are those of `routing.route_gradient` and `activations.activate_gradient`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from qmoe_node.activations import GELU_CUBIC, SQRT_2_OVER_PI
from qmoe_node.layer import GATED, Layer, Settings
from qmoe_node.standard import activate, every_expert, sparse_rounds, split
from runtime.types import ElementType, TensorType

if TYPE_CHECKING:
    import onnx_ir as ir

    from runtime.gradients.expressions import Expr, Formulas


def number(op: Formulas, value: float) -> Expr:
    """A constant of float32."""
    return op.constant(np.asarray(value, np.float32))


def row_sum(op: Formulas, x: Expr) -> Expr:
    """The sum over the last of two axes, which stays."""
    result: Expr = op.ReduceSum(x, [1], keepdims=1)
    return result


def route_gradient(
    op: Formulas,
    settings: Settings,
    logits: Expr,
    router_weights: Expr | None,
    indices: Expr,
    weights: Expr,
    upstream: Expr,
) -> tuple[Expr, Expr | None]:
    """The gradients of `logits` and `router_weights`, [T, E], from `upstream` [T, k], that of the final `weights`."""
    none = op.ConstantOfShape(op.Shape(logits))
    if settings.use_sparse_mixer:
        return _sparse_mixer(op, logits, indices, weights, upstream), None
    common = row_sum(op, weights * upstream)
    chosen = upstream - common if settings.normalize_routing_weights else upstream
    if router_weights is not None:
        if settings.normalize_routing_weights:
            total = row_sum(op, op.GatherElements(router_weights, indices, axis=1))
            chosen = op.Where(op.Equal(total, number(op, 0)), number(op, 0), chosen / total)
        placed = op.ScatterElements(none, indices, chosen, axis=1)
        return none, _nan_where(op, logits, placed)
    if settings.normalize_routing_weights:
        result = op.ScatterElements(none, indices, weights * chosen, axis=1)
    else:
        result = op.Softmax(logits, axis=-1) * (op.ScatterElements(none, indices, chosen, axis=1) - common)
    return _nan_where(op, weights, result), None


def _nan_where(op: Formulas, source: Expr, result: Expr) -> Expr:
    """The result with NaN in all rows in which the source has one."""
    marks = row_sum(op, op.Cast(op.IsNaN(source), to=1))
    filled: Expr = op.Where(op.Greater(marks, number(op, 0)), number(op, np.nan), result)
    return filled


def _sparse_mixer(op: Formulas, logits: Expr, indices: Expr, weights: Expr, upstream: Expr) -> Expr:
    largest = op.GatherElements(logits, indices, axis=1)
    every = expression(op, every_expert(op.tape, logits.value), ElementType.INT64)
    result: Expr | None = None
    for choice, near in enumerate(sparse_rounds(op.tape, logits.value, largest.value, indices.value)):
        share, own = (op.Slice(x, [choice], [choice + 1], [1]) for x in (weights, upstream))
        winner = op.Equal(op.Slice(indices, [choice], [choice + 1], [1]), every)
        steep = share * own
        part = op.Where(winner, steep, number(op, 0)) - steep * op.Mul(share, expression(op, near))
        result = part if result is None else result + part
    assert result is not None
    return result


def activate_gradient(
    op: Formulas, layer: Layer, first: Expr, third: Expr | None, upstream: Expr
) -> tuple[Expr, Expr | None]:
    """The gradients of fc1's output and of fc3's, from that of what fc2 is given."""
    settings = layer.settings
    name = settings.activation_type
    if name not in GATED:
        if third is None:
            return SLOPES[name](op, first, upstream), None
        activated = expression(op, activate(op.tape, layer, first.value, None))
        return SLOPES[name](op, first, upstream * third), upstream * activated
    gate, linear = first, third
    if third is None:
        parts = split(op.tape, first.value, settings.swiglu_fusion, layer.inter)
        gate, linear = (expression(op, part) for part in parts)
    assert linear is not None
    gradients = (_geglu if name == "geglu" else _swiglu)(op, settings, gate, linear, upstream)
    if third is not None:
        return gradients
    if settings.swiglu_fusion == 2:
        return op.Concat(*gradients, axis=1), None
    pairs = op.Concat(*(op.Unsqueeze(gradient, [2]) for gradient in gradients), axis=2)
    return op.Reshape(pairs, [-1, 2 * layer.inter]), None


def expression(op: Formulas, value: ir.Value, element: ElementType = ElementType.FLOAT) -> Expr:
    """A value that was written without its type, which is `element`."""
    from runtime.gradients.expressions import Expr

    if value.type is None:
        op.set_type(value, TensorType(element))
    return Expr(op, value)


def _relu(op: Formulas, x: Expr, upstream: Expr) -> Expr:
    result: Expr = op.Where(op.Greater(x, number(op, 0)), upstream, number(op, 0))
    return result


def _relu2(op: Formulas, x: Expr, upstream: Expr) -> Expr:
    positive = op.Where(op.Less(x, number(op, 0)), number(op, 0), x)
    return upstream * (number(op, 2) * positive)


def _gelu(op: Formulas, x: Expr, upstream: Expr) -> Expr:
    square = x * x
    share = _sigmoid(op, (x + x * (square * GELU_CUBIC)) * (2 * SQRT_2_OVER_PI))
    curvature = share * (1 - share)
    bend = x * curvature * ((square * (3 * GELU_CUBIC) + 1) * (2 * SQRT_2_OVER_PI))
    bend = op.Where(op.Equal(curvature, number(op, 0)), curvature, bend)  # the square may be infinite there
    return upstream * (share + bend)


def _swish(op: Formulas, x: Expr, upstream: Expr, alpha: float = 1.0) -> Expr:
    """The gradient of x in x sigmoid(alpha x)."""
    inner = x if alpha == 1 else x * alpha
    share = _sigmoid(op, inner)
    return upstream * (share * (1 + inner * (1 - share)))


def _sigmoid(op: Formulas, x: Expr) -> Expr:
    # ONNX Runtime's Sigmoid has no correct digit left below -16, its Exp has all.
    result: Expr = op.Reciprocal(op.Exp(-x) + 1)
    return result


def _identity(op: Formulas, x: Expr, upstream: Expr) -> Expr:
    return upstream


SLOPES: Mapping[str, Callable[[Formulas, Expr, Expr], Expr]] = {
    "relu": _relu,
    "gelu": _gelu,
    "silu": _swish,
    "identity": _identity,
    "relu2": _relu2,
}
"""The gradient of the argument of each activation of one argument."""


def _geglu(op: Formulas, settings: Settings, gate: Expr, linear: Expr, upstream: Expr) -> tuple[Expr, Expr]:
    share = _sigmoid(op, (gate + gate * (gate * gate * GELU_CUBIC)) * (2 * SQRT_2_OVER_PI))
    return _gelu(op, gate, upstream * linear), upstream * (gate * share)


def _swiglu(op: Formulas, settings: Settings, gate: Expr, linear: Expr, upstream: Expr) -> tuple[Expr, Expr]:
    alpha, limit, after = settings.activation_alpha, settings.swiglu_limit, settings.swiglu_limit_after_activation
    clamped = not np.isnan(limit) and limit != np.inf
    inner, factor = gate, linear
    if clamped:
        zero, bound = number(op, 0), number(op, limit)
        above, below = op.Greater(linear, bound), op.Less(linear, number(op, -limit))
        factor = op.Where(above, bound, op.Where(below, number(op, -limit), linear))
        if not after:
            inner = op.Where(op.Greater(gate, bound), bound, gate)
    # As the forward pass writes it, which is then not computed once more.
    activated = inner / (op.Exp(-inner if alpha == 1 else inner * -alpha) + 1)
    beta = settings.activation_beta
    gate_gradient = _swish(op, inner, upstream * (factor + beta if beta else factor), alpha)
    if clamped:
        beyond = op.Greater(activated if after else gate, bound)
        gate_gradient = op.Where(beyond, zero, gate_gradient)
        if after:
            activated = op.Where(beyond, bound, activated)
    linear_gradient = upstream * activated
    if clamped:
        # Within a limit of 0 nothing moves, not even what is 0 already.
        beyond = op.Or(above, below) if limit else op.GreaterOrEqual(op.Abs(linear), bound)
        linear_gradient = op.Where(beyond, zero, linear_gradient)
    return gate_gradient, linear_gradient
