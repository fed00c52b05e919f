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


def _product(n: Call) -> Gradients:
    """The product of the others: where one is zero, only that one has a slope; where two are, none."""
    op, d = n.op, kept(n, n.d)
    nothing, one = op.operand(0.0, n.a), op.operand(1.0, n.a)
    is_zero = op.Equal(n.a, nothing)
    zeros = again(n, is_zero.cast(n.a.element))
    others = op.Where(is_zero, one, n.a)
    axes = axes_of(n)
    if axes is None:
        return n.d
    if op.opset >= 18:
        product = op.ReduceProd(others, axes, keepdims=1)
    elif isinstance(axes, list):
        product = op.ReduceProd(others, axes=axes, keepdims=1)
    else:
        raise n.error("its axes are not known before the run.")
    at_zero = op.Where(op.Equal(zeros, one), product, nothing)
    elsewhere = op.Where(op.Equal(zeros, nothing), product / others, nothing)
    return d * op.Where(is_zero, at_zero, elsewhere)


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


RULES: dict[str, Rule] = {
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
