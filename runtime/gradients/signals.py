"""Rules for Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from runtime.gradients.expressions import Expr
from runtime.gradients.shaping import integer, zero_of
from runtime.gradients.walk import Call, Gradients, Rule
from runtime.types import ElementType


def _transformed(x: Expr, axis: Expr | int, **flags: int) -> Expr:
    """DFT along an axis, which before version 20 is an attribute."""
    op = x.op
    if isinstance(axis, int) and op.opset >= 20:
        axis = op.constant(integer(axis))
    result: Expr = op.DFT(x, axis=axis, **flags) if isinstance(axis, int) else op.DFT(x, None, axis, **flags)
    return result


def _resized(x: Expr, shape: Expr) -> Expr:
    """The value cut, or filled up with zeros, at the ends."""
    op = x.op
    result: Expr = op.Pad(x, op.Concat(np.zeros(x.rank, np.int64), shape - op.Shape(x), axis=0), zero_of(x))
    return result


def _transform(n: Call) -> Gradients:
    """A linear map goes back by its conjugate transpose: by the inverse transform times the length, and the other way
    round. What a one-sided transform leaves out is zero on the way back, and what it gives for two counts twice."""
    op, rank, onesided = n.op, n.a.rank, n.get("onesided", 0)
    axis: Expr | int = n.c if n.has(2) else n.get("axis", -2 if op.opset >= 20 else 1)
    place = op.constant(integer(axis)) if isinstance(axis, int) else axis
    chosen = op.Equal(op.constant(np.arange(rank)), op.Mod(place, integer(rank)))

    def along(x: Expr) -> Expr:
        result: Expr = op.ReduceSum(op.Where(chosen, op.Shape(x), integer(0)), keepdims=0)
        return result

    if n.get("inverse", 0):
        back, length = _transformed(n.d, axis, onesided=onesided), along(n.d)
        if onesided:
            places = op.Range(op.constant(integer(0)), along(back), op.constant(integer(1)))
            single = op.Or(op.Equal(places, integer(0)), op.Equal(places + places, length))
            times = op.Where(single, op.operand(1.0, back), op.operand(2.0, back))
            back = back * op.Reshape(times, op.Where(chosen, integer(-1), integer(1)))
        back = back / length.cast(back.element)
    else:
        length = op.Cast(op.Squeeze(n.b), to=int(ElementType.INT64)) if n.has(1) else along(n.a)
        back = _transformed(_resized(n.d, op.Where(chosen, length, op.Shape(n.d))), axis, inverse=1)
        back = back * length.cast(back.element)
    return _resized(back, op.Shape(n.a))  # which leaves out the imaginary part where there was none


def _short_time_transform(n: Call) -> Expr:
    """The transforms of frames, each multiplied with the window."""
    op, zero, one = n.op, n.op.constant(integer(0)), n.op.constant(integer(1))
    length, step = (op.Cast(op.Squeeze(x), to=int(zero.element)) for x in (n[3] if n.has(3) else op.Size(n.c), n.b))
    count = (op.Squeeze(op.Slice(op.Shape(n.a), [1], [2])) - length) / step + one
    places = op.Unsqueeze(op.Range(zero, count, one) * step, [1]) + op.Range(zero, length, one)
    frames = op.Gather(n.a, places, axis=1)
    if n.has(2):
        frames = frames * op.Unsqueeze(n.c, [1])
    return _transformed(frames, 2, onesided=n.get("onesided", 1))


RULES: dict[str, Rule] = {"DFT": _transform}
"""By operator: gradients in the shapes of the inputs."""

FORMS: dict[str, Callable[[Call], Expr]] = {"STFT": _short_time_transform}
"""By operator: what it is in simpler operators."""
