"""Rules for operators that move elements: what went somewhere comes back from there, added up where it went twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from runtime.gradients.expressions import Expr
from runtime.gradients.reductions import product_of_others, without_zeros
from runtime.gradients.walk import Call, Gradients, Rule, sum_to
from runtime.types import ElementType


def integer(number: int) -> np.ndarray:
    """A scalar int64."""
    return np.asarray(number, np.int64)


def reshaped(n: Call) -> Gradients:
    """For operators that change nothing but the shape."""
    return n.op.Reshape(n.d, n.op.Shape(n.a), allowzero=1 if n.op.opset >= 14 else None)


def zeros_of(n: Call, x: Expr) -> Expr:
    """Zeros in the shape of `x`, for gradients to be scattered into."""
    return n.op.like(0.0, x)


def add_at(n: Call, operator: str, zeros: Expr, indices: Expr, updates: Expr, **attributes: Any) -> Expr:
    """ScatterElements or ScatterND that adds where indices repeat."""
    if n.op.opset < 16:
        raise n.error(
            f"it adds up in {operator}, for which the graph's operator set version {n.op.opset} is too old.",
            "Raise it to 16 or more.",
        )
    element = zeros.element
    if element in (ElementType.FLOAT16, ElementType.BFLOAT16):  # sums of 16 bits lose too much, and have no kernel
        zeros, updates = zeros.cast(ElementType.FLOAT), updates.cast(ElementType.FLOAT)
    result: Expr = n.op.apply(operator, zeros, indices, updates, reduction="add", **attributes)
    return result.cast(element)


def from_where_they_came(n: Call, select: Callable[[Expr], Expr], repeats: bool = False) -> Expr:
    """The gradient of the first input of an operator that picks elements: `select` picks their positions instead.

    `repeats` says that it may pick one more than once.
    """
    op = n.op
    size = op.Size(n.a)
    positions = op.Reshape(op.Range(op.constant(integer(0)), size, op.constant(integer(1))), op.Shape(n.a))
    flat = op.Reshape(select(positions), [-1])
    zeros = op.Expand(op.operand(0.0, n.d), op.Unsqueeze(size, [0]))
    updates = op.Reshape(n.d, [-1])
    if repeats:
        back = add_at(n, "ScatterElements", zeros, flat, updates, axis=0)
    else:
        back = op.ScatterElements(zeros, flat, updates, axis=0)
    return op.Reshape(back, op.Shape(n.a))


def _transpose(n: Call) -> Gradients:
    order = n.get("perm") or list(reversed(range(n.a.rank)))
    return n.op.Transpose(n.d, perm=[order.index(axis) for axis in range(len(order))])


def _concat(n: Call) -> Gradients:
    axis, start, gradients = n.get("axis"), None, []
    for x, needed in zip(n.x, n.needs, strict=True):
        assert x is not None
        size = n.op.Slice(n.op.Shape(x), [axis % x.rank], [axis % x.rank + 1])
        begin = n.op.constant(np.zeros(1, np.int64)) if start is None else start
        start = size if start is None else start + size
        gradients.append(n.op.Slice(n.d, begin, start, [axis]) if needed else None)
    return gradients


def _split(n: Call) -> Gradients:
    return n.op.Concat(*(n.gradient(index) for index in range(len(n.y))), axis=n.get("axis", 0))


def _slice(n: Call) -> Gradients:
    """By padding with zeros where the bounds are known and nothing is skipped; else through positions."""
    constants = [x.known() if x is not None else None for x in n.x[1:]]
    steps = constants[3] if n.has(4) else np.ones(1, np.int64)
    known = all(c is not None or x is None for c, x in zip(constants, n.x[1:], strict=True))
    if known and steps is not None and np.all(steps == 1) and n.a.shape is not None:
        starts, ends = constants[0], constants[1]
        assert starts is not None and ends is not None
        axes = constants[2] if n.has(3) else np.arange(len(starts))
        assert axes is not None
        sizes = [n.a.shape[axis] for axis in axes]
        if all(isinstance(size, int) for size in sizes):
            rank = n.a.rank
            pads = np.zeros(2 * rank, np.int64)
            for start, end, axis, size in zip(starts, ends, axes, sizes, strict=True):
                first, last, _ = slice(int(start), int(end)).indices(int(size or 0))
                pads[axis % rank], pads[axis % rank + rank] = first, int(size or 0) - max(first, last)
            return n.op.Pad(n.d, pads, zero_of(n.d))
    return from_where_they_came(n, lambda positions: n.op.Slice(positions, *n.x[1:]))


def zero_of(x: Expr) -> Expr:
    """A scalar zero of the element type."""
    return x.op.operand(0.0, x)


def _pad(n: Call) -> Gradients:
    """What was padded is cut off; repeated elements add up; a constant gathers what is around."""
    op, mode = n.op, n.get("mode", "constant")
    axes = n.x[3] if n.has(3) else None
    if mode != "constant":
        return from_where_they_came(n, lambda positions: op.Pad(positions, n.b, None, axes, mode=mode), True)
    inner = op.Pad(n.d, -n.b, None, axes)
    constant = op.ReduceSum(n.d, keepdims=0) - op.ReduceSum(inner, keepdims=0) if n.has(2) and n.needs[2] else None
    if constant is not None and n.c.shape is not None and len(n.c.shape):
        constant = op.Reshape(constant, op.Shape(n.c))
    return inner, None, constant


def _gather(n: Call) -> Gradients:
    axis = n.get("axis", 0)
    if n.a.shape is not None and axis % n.a.rank == 0:
        return add_at(n, "ScatterND", zeros_of(n, n.a), n.op.Unsqueeze(n.b, [-1]), n.d)
    return from_where_they_came(n, lambda positions: n.op.Gather(positions, n.b, axis=axis), True)


def _gather_elements(n: Call) -> Gradients:
    return add_at(n, "ScatterElements", zeros_of(n, n.a), n.b, n.d, axis=n.get("axis", 0))


def _gather_nd(n: Call) -> Gradients:
    if not n.get("batch_dims", 0):
        return add_at(n, "ScatterND", zeros_of(n, n.a), n.b, n.d)
    batch = n.get("batch_dims")
    return from_where_they_came(n, lambda positions: n.op.GatherND(positions, n.b, batch_dims=batch), True)


Pick: TypeAlias = "Callable[[Call, Expr], Expr]"
Put: TypeAlias = "Callable[[Call, Expr, Expr, str | None], Expr]"


def _scatter(pick: Pick, put: Put) -> Rule:
    """ScatterElements and ScatterND; `pick` reads at the indices, `put` writes there, by a reduction."""

    def rule(n: Call) -> Gradients:
        reduction = n.get("reduction", "none")
        if reduction == "add":
            return n.d, None, pick(n, n.d)
        if reduction == "mul":
            return _scattered_product(n, pick, put)
        if reduction in ("max", "min"):
            return _scattered_extreme(n, pick, put)
        return put(n, n.d, n.op.like(0.0, n.c), None), None, pick(n, n.d)

    return rule


def _counted(put: Put, n: Call, data: Expr, updates: Expr) -> Expr:
    """How many of what came together in each place are marked with 1."""
    narrow = ElementType.FLOAT  # sums of 16 bits have no kernel
    return put(n, data.cast(narrow), updates.cast(narrow), "add").cast(n.d.element)


def _scattered_product(n: Call, pick: Pick, put: Put) -> Gradients:
    (no_data, data), (no_updates, updates) = without_zeros(n.a), without_zeros(n.c)
    product, zeros = put(n, data, updates, "mul"), _counted(put, n, no_data, no_updates)
    to_updates = pick(n, n.d) * product_of_others(n.c, pick(n, product), pick(n, zeros)) if n.needs[2] else None
    return n.d * product_of_others(n.a, product, zeros), None, to_updates


def _scattered_extreme(n: Call, pick: Pick, put: Put) -> Gradients:
    """To the elements that are the result; in equal parts where there are several."""
    element = n.d.element
    hits = n.op.Equal(n.a, n.out).cast(element), n.op.Equal(n.c, pick(n, n.out)).cast(element)
    share = n.d / _counted(put, n, *hits)
    return share * hits[0], None, pick(n, share) * hits[1]


def _top_k(n: Call) -> Gradients:
    axis = n.get("axis", -1)
    return n.op.ScatterElements(zeros_of(n, n.a), n.y[1], n.d, axis=axis)


def _tile(n: Call) -> Gradients:
    """Every dimension becomes two, the repeats and the size, and the repeats are summed."""
    op, rank = n.op, n.a.rank
    if rank == 0:
        return n.d
    pairs = op.Concat(op.Unsqueeze(n.b, [1]), op.Unsqueeze(op.Shape(n.a), [1]), axis=1)
    wide = op.Reshape(n.d, op.Reshape(pairs, [-1]))
    return op.ReduceSum(wide, list(range(0, 2 * rank, 2)), keepdims=0)


def _depth_to_space(n: Call) -> Gradients:
    block = n.get("blocksize")
    if n.get("mode", "DCR") == "DCR":
        return n.op.SpaceToDepth(n.d, blocksize=block)
    return from_where_they_came(n, lambda positions: n.op.DepthToSpace(positions, blocksize=block, mode="CRD"))


def _compress(n: Call) -> Gradients:
    axis = n.get("axis")
    return from_where_they_came(n, lambda positions: n.op.Compress(positions, n.b, axis=axis))


def _reverse(n: Call) -> Gradients:
    return n.op.ReverseSequence(n.d, n.b, batch_axis=n.get("batch_axis", 1), time_axis=n.get("time_axis", 0))


def _tensor_scatter(n: Call) -> Expr:
    """A ScatterElements of updates that lie one behind the other along an axis, from where each batch says."""
    op, rank = n.op, n.a.rank
    axis = n.get("axis", -2) % rank
    shape = op.Shape(n.b)
    count = op.Squeeze(op.Slice(shape, [axis], [axis + 1]))
    places = op.Range(op.constant(integer(0)), count, op.constant(integer(1)))
    places = op.Reshape(places, [-1, *[1] * (rank - axis - 1)])
    if n.has(2):
        places = op.Reshape(n.c, [-1, *[1] * (rank - 1)]) + places
    if n.get("mode", "linear") == "circular":
        places = op.Mod(places, op.Slice(op.Shape(n.a), [axis], [axis + 1]))
    result: Expr = op.ScatterElements(n.a, op.Expand(places, shape), n.b, axis=axis)
    return result


RULES: dict[str, Rule] = {
    "Compress": _compress,
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": lambda n: sum_to(n.d, n.a),
    "Flatten": reshaped,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Pad": _pad,
    "Reshape": reshaped,
    "ReverseSequence": _reverse,
    "ScatterElements": _scatter(
        lambda n, x: n.op.GatherElements(x, n.b, axis=n.get("axis", 0)),
        lambda n, x, updates, how: n.op.ScatterElements(x, n.b, updates, axis=n.get("axis", 0), reduction=how),
    ),
    "ScatterND": _scatter(
        lambda n, x: n.op.GatherND(x, n.b), lambda n, x, updates, how: n.op.ScatterND(x, n.b, updates, reduction=how)
    ),
    "Slice": _slice,
    "SpaceToDepth": lambda n: n.op.DepthToSpace(n.d, blocksize=n.get("blocksize"), mode=n.get("mode", "DCR")),
    "Split": _split,
    "Squeeze": reshaped,
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Trilu": lambda n: n.op.Trilu(n.d, n.x[1] if n.has(1) else None, upper=n.get("upper", 1)),
    "Unsqueeze": reshaped,
}
"""By operator: gradients in the shapes of the inputs."""

FORMS: dict[str, Callable[[Call], Expr]] = {"TensorScatter": _tensor_scatter}
"""By operator: what it is in simpler operators."""
