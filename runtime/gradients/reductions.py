"""Rules for operators that reduce or normalise along axes."""

from __future__ import annotations

import numpy as np

from runtime.gradients.expressions import Expr
from runtime.gradients.walk import Call, Gradients, Rule


def axes_of(n: Call) -> Expr | list[int] | None:
    """The axes that are reduced: numbers, or an expression where they are not known before the run; None for none.

    Without axes, all are reduced, or with `noop_with_empty_axes` none.
    """
    if n.has(1):
        known = n.b.known()
        if known is None:
            return n.b
        axes = known.reshape(-1).tolist()
    else:
        axes = list(n.get("axes") or ())
    if axes:
        return [int(axis) for axis in axes]
    return None if n.get("noop_with_empty_axes", 0) else list(range(n.a.rank))


def kept(n: Call, value: Expr) -> Expr:
    """A result of the reduction, or its gradient, with the reduced dimensions in place."""
    axes = axes_of(n)
    if n.get("keepdims", 1) or axes is None:
        return value
    if isinstance(axes, list):
        return n.op.Unsqueeze(value, axes)
    return n.op.Reshape(value, n.op.Shape(n.op.ReduceSum(n.a, axes, keepdims=1)))


def spread(n: Call, value: Expr) -> Expr:
    """The value for every element that was reduced."""
    return n.op.Expand(kept(n, value), n.op.Shape(n.a))


def again(n: Call, value: Expr) -> Expr:
    """The sum over the same axes, which stay."""
    axes = axes_of(n)
    return value if axes is None else n.op.ReduceSum(value, axes, keepdims=1)


def _mean(n: Call) -> Gradients:
    count = n.op.Div(n.op.Size(n.a), n.op.Max(n.op.Size(n.out), n.op.constant(np.asarray(1, np.int64))))
    return spread(n, n.d / count.cast(n.d.element))


def _extreme(n: Call) -> Gradients:
    """To the elements that are the result; in equal parts where there are several."""
    hits = n.op.Equal(n.a, kept(n, n.out)).cast(n.d.element)
    return kept(n, n.d) * hits / again(n, hits)


def without_zeros(x: Expr) -> tuple[Expr, Expr]:
    """Where `x` is zero, as numbers, and `x` with ones there."""
    is_zero = x.op.Equal(x, x.op.operand(0.0, x))
    return is_zero.cast(x.element), x.op.Where(is_zero, x.op.operand(1.0, x), x)


def product_of_others(x: Expr, product: Expr, zeros: Expr) -> Expr:
    """What products are without their factor `x`: where one is zero, only that one has a slope; where two are, none.

    `product` is that of the factors other than zero, `zeros` counts the others.
    """
    is_zero, others = without_zeros(x)
    result: Expr = x.op.Where(x.op.Equal(zeros, is_zero), product / others, x.op.operand(0.0, x))
    return result


def _product(n: Call) -> Gradients:
    op, axes = n.op, axes_of(n)
    is_zero, others = without_zeros(n.a)
    if axes is None:
        return n.d
    if op.opset >= 18:
        product = op.ReduceProd(others, axes, keepdims=1)
    elif isinstance(axes, list):
        product = op.ReduceProd(others, axes=axes, keepdims=1)
    else:
        raise n.error("its axes are not known before the run.")
    return kept(n, n.d) * product_of_others(n.a, product, again(n, is_zero))


def _euclidean(n: Call) -> Gradients:
    norm = kept(n, n.out)
    none = n.op.operand(0.0, norm)
    slope = n.op.Where(n.op.Equal(norm, none), none, n.a / norm)
    return kept(n, n.d) * slope


def _log_sum(n: Call) -> Gradients:
    return spread(n, n.d * n.op.Exp(-n.out))


def _softmax(n: Call) -> Gradients:
    weighted = n.d * n.out
    return weighted - n.out * n.op.ReduceSum(weighted, [n.get("axis", -1)], keepdims=1)


def _log_softmax(n: Call) -> Gradients:
    return n.d - n.op.Exp(n.out) * n.op.ReduceSum(n.d, [n.get("axis", -1)], keepdims=1)


def _cumulated(n: Call) -> Gradients:
    return n.op.CumSum(n.d, n.b, exclusive=n.get("exclusive", 0), reverse=1 - n.get("reverse", 0))


def _cumulated_product(n: Call) -> Gradients:
    """What the products send back, over the factor. The first zero is taken out of them: the factors before it have
    a slope in the products without it, itself in those with it, and the factors behind it have none."""
    op, nothing = n.op, n.op.operand(0.0, n.a)
    exclusive, reverse = n.get("exclusive", 0), n.get("reverse", 0)
    is_zero, divisor = without_zeros(n.a)
    zeros = op.CumSum(is_zero, n.b, reverse=reverse)
    inside = op.CumSum(is_zero, n.b, exclusive=exclusive, reverse=reverse)
    first = op.And(op.Equal(zeros, 1.0), op.Equal(is_zero, 1.0))
    product = op.CumProd(op.Where(first, op.operand(1.0, n.a), n.a), n.b, exclusive=exclusive, reverse=reverse)
    sent = n.d * product
    to_zero = op.CumSum(sent, n.b, exclusive=exclusive, reverse=1 - reverse)
    without = op.Where(op.Equal(inside, nothing), sent, nothing)
    before = op.CumSum(without, n.b, exclusive=exclusive, reverse=1 - reverse) / divisor
    return op.Where(first, to_zero, op.Where(op.Equal(zeros, nothing), before, nothing))


RULES: dict[str, Rule] = {
    "CumProd": _cumulated_product,
    "CumSum": _cumulated,
    "LogSoftmax": _log_softmax,
    "ReduceL1": lambda n: kept(n, n.d) * n.op.Sign(n.a),
    "ReduceL2": _euclidean,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": lambda n: kept(n, n.d) * n.op.Exp(n.a - kept(n, n.out)),
    "ReduceMax": _extreme,
    "ReduceMean": _mean,
    "ReduceMin": _extreme,
    "ReduceProd": _product,
    "ReduceSum": lambda n: spread(n, n.d),
    "ReduceSumSquare": lambda n: kept(n, n.d) * 2.0 * n.a,
    "Softmax": _softmax,
}
"""By operator: gradients in the shape of the input."""
