"""Mixtures of experts in float weights, written with standard operators that compute what was routed and no more.

T tokens, E experts, k of them for each token, S = T k pairs of both, C the most tokens that one expert got.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from runtime.gradients.contrib import (
    argument,
    fast_gelu,
    gated,
    halves,
    interleaved,
    optional_sum,
    reshaped_like,
    swish,
)
from runtime.gradients.expressions import Expr
from runtime.gradients.products import transposed
from runtime.gradients.walk import Call


def _mixture(n: Call) -> Expr:
    """The sum of the selected experts' outputs, weighted: ONNX Runtime's MoE."""
    op, k = n.op, n.get("k", 1)
    if n.get("use_sparse_mixer", 0):
        raise n.error("there is none for the sparse mixer.")
    hidden = op.Slice(op.Shape(n.a), [-1], [2**31 - 1])
    x = op.Reshape(n.a, op.Concat([-1], hidden, axis=0)) if n.a.rank > 2 else n.a
    experts = op.Slice(op.Shape(n.c), [0], [1])
    weights, selected = routed(n.b, k, bool(n.get("normalize_routing_weights", 0)))
    tokens_of, place = grouped(op.Reshape(selected, [-1]), experts, k)

    rows = op.Reshape(op.Gather(x, tokens_of, axis=0), op.Concat(experts, [-1], hidden, axis=0))
    out = _layer(_activated(n, rows), n[4], argument(n, 5))
    flat = op.Reshape(out, op.Concat([-1], hidden, axis=0))
    chosen = op.Reshape(op.Gather(flat, place, axis=0), op.Concat([-1, k], hidden, axis=0))
    return reshaped_like(op.ReduceSum(chosen * op.Unsqueeze(weights, [-1]), [1], keepdims=0), n.a)


def routed(logits: Expr, k: int, normalized: bool) -> tuple[Expr, Expr]:
    """Weights and experts [T, k]: the softmax over all experts at the k largest logits.

    Of equal ones, the last counts first, as in ONNX Runtime's CPU kernel; TopK prefers the first, and is given the
    experts in reverse order.
    """
    op = logits.op
    count = op.Slice(op.Shape(logits), [1], [2])
    backwards = op.Slice(logits, [-1], [-(2**31)], [1], [-1])
    _, found = op.TopK(backwards, [k], axis=1, outputs=2)
    selected = count - 1 - found
    weights = op.GatherElements(op.Softmax(logits, axis=-1), selected, axis=1)
    if normalized:
        weights = weights / op.ReduceSum(weights, [1], keepdims=1)
    return weights, selected


def grouped(expert: Expr, experts: Expr, k: int) -> tuple[Expr, Expr]:
    """A table of C places for each expert: the token at each of the E C places, and the place of each of S pairs.

    At places that are left empty stands token 0, and no pair reads what comes of it.
    """
    op = expert.op
    zero, one = (op.constant(np.asarray(number, np.int64)) for number in (0, 1))
    numbers = op.Range(zero, op.Squeeze(experts, [0]), one)
    hits = op.Cast(op.Equal(op.Unsqueeze(expert, [1]), numbers), to=7)
    before = op.ReduceSum(op.CumSum(hits, zero, exclusive=1) * hits, [1], keepdims=0)
    capacity = op.ReduceMax(op.ReduceSum(hits, [0], keepdims=0), keepdims=1)
    place = expert * capacity + before
    pairs = op.Range(zero, op.Squeeze(op.Shape(expert), [0]), one)
    empty = op.Expand(zero, experts * capacity)
    return op.ScatterElements(empty, place, pairs / k, axis=0), place


def _layer(x: Expr, weights: Expr, bias: Expr | None) -> Expr:
    """x W^T + b for each expert; bias [E, N]."""
    return optional_sum(x @ transposed(weights), bias and bias.op.Unsqueeze(bias, [1]))


def _activated(n: Call, x: Expr) -> Expr:
    """What comes between the two layers of every expert, [E, C, I]."""
    op, name, fusion = n.op, n.get("activation_type", "relu"), n.get("swiglu_fusion", 0)
    h = _layer(x, n.c, argument(n, 3))
    third = _layer(x, n[6], argument(n, 7)) if n.has(6) else None
    if name not in ("swiglu", "geglu"):
        simple = {"relu": op.Relu, "gelu": fast_gelu, "silu": swish, "identity": lambda z: z, "relu2": _relu_squared}
        if name not in simple:
            raise n.error(f"there is none for the activation {name}.")
        z: Expr = simple[name](h)
        return z if third is None else z * third
    if fusion:
        gate, linear = interleaved(h) if fusion == 1 else halves(h)
    elif third is not None:
        gate, linear = h, third
    else:
        raise n.error(f"{name} without fusion needs fc3_experts_weights.")
    if name == "geglu":
        return fast_gelu(gate) * linear
    alpha, beta, limit = n.get("activation_alpha", 1.0), n.get("activation_beta", 0.0), n.get("swiglu_limit")
    if limit is not None and n.get("swiglu_limit_after_activation", 0):
        high, low = op.operand(limit, gate), op.operand(-limit, gate)
        return op.Min(swish(gate, alpha), high) * (op.Max(op.Min(linear, high), low) + beta)
    return gated(gate, linear, alpha, beta, limit)


def _relu_squared(x: Expr) -> Expr:
    z: Expr = x.op.Relu(x)
    return z * z


FORMS: dict[str, Callable[[Call], Expr]] = {
    "com.microsoft.MoE": _mixture,
}
"""By operator: what it is in simpler operators."""
