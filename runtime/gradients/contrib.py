"""ONNX Runtime's own operators, written with standard ones: activations, products, normalizations, and more.

Each form computes what the operator computes, so that its gradient is that of the simpler operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi, sqrt
from typing import TypeAlias

import numpy as np

from runtime.gradients.elementwise import sigmoid
from runtime.gradients.expressions import Expr
from runtime.gradients.products import transposed
from runtime.gradients.walk import Call, Gradients, Rule
from runtime.types import ElementType

Form: TypeAlias = "Callable[[Call], Sequence[Expr | None] | Expr]"


def optional_sum(*terms: Expr | None) -> Expr:
    """The sum of those that are there; the first one is."""
    total, *others = terms
    assert total is not None
    for term in others:
        total = total if term is None else total + term
    return total


def argument(n: Call, position: int) -> Expr | None:
    """An input, None where it is not connected."""
    return n[position] if n.has(position) else None


# -- activations ------------------------------------------------------------------------------------------------------


def gelu(x: Expr) -> Expr:
    """x Phi(x), Phi being the normal distribution function."""
    return 0.5 * x * (1 + x.op.Erf(x * sqrt(0.5)))


def fast_gelu(x: Expr) -> Expr:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return 0.5 * x * (1 + x.op.Tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x)))


def swish(x: Expr, alpha: float = 1.0) -> Expr:
    """x sigmoid(alpha x)."""
    return x * sigmoid(x if alpha == 1 else x * alpha)


def gated(gate: Expr, linear: Expr, alpha: float, beta: float, limit: float | None) -> Expr:
    """SwiGLU: gate sigmoid(alpha gate) (linear + beta), the gate at most and the linear part within `limit`."""
    op = gate.op
    if limit is not None:
        high, low = op.operand(limit, gate), op.operand(-limit, gate)
        gate, linear = op.Min(gate, high), op.Max(op.Min(linear, high), low)
    return swish(gate, alpha) * (linear + beta if beta else linear)


def halves(x: Expr) -> tuple[Expr, Expr]:
    """The first and the second half of the last dimension."""
    first, second = x.op.Split(x, axis=-1, outputs=2, num_outputs=2 if x.op.opset >= 18 else None)
    return first, second


def interleaved(x: Expr) -> tuple[Expr, Expr]:
    """The elements of the last dimension with even and those with odd places."""
    op = x.op
    pairs = op.Reshape(x, op.Concat(op.Slice(op.Shape(x), [0], [-1]), [-1, 2], axis=0))
    even, odd = op.Split(pairs, [1, 1], axis=-1, outputs=2)
    return op.Squeeze(even, [-1]), op.Squeeze(odd, [-1])


def _bias_split_gelu(n: Call) -> Expr:
    left, right = halves(n.a + n.b)
    return left * gelu(right)


def _swiglu(n: Call) -> Expr:
    gate, up = (n.a, n.b) if n.has(1) else halves(n.a)
    limit = n.get("limit", 0.0)
    return gated(gate, up, n.get("activation_alpha", 1.0), n.get("activation_beta", 0.0), limit if limit > 0 else None)


def _gated_add(n: Call) -> Expr:
    return n.a + n.b * (sigmoid(n.c @ n[3]) if n.has(3) else n.c)


def _bias_dropout(n: Call) -> Expr:
    """data + bias, what was dropped left out, + residual."""
    x = n.a + n.b
    mode = n[4].known() if n.has(4) else None
    if n.has(4) and (mode is None or mode):
        if len(n.y) < 2:
            raise n.error("it needs to know what was dropped.", "Give its second output, the mask, a name or a wire.")
        ratio = n[3].cast(x.element) if n.has(3) else n.op.operand(0.5, x)
        kept = n.op.Where(n.y[1], x / (1 - ratio), n.op.operand(0.0, x))
        x = kept if mode is not None else n.op.Where(n[4], kept, x)
    return optional_sum(x, argument(n, 2))


def _bias_softmax(n: Call) -> Expr:
    """Softmax of data + bias over all dimensions from `axis` on."""
    x, axis = n.a + n.b, n.get("axis", 1) % n.a.rank
    if axis == x.rank - 1:
        result: Expr = n.op.Softmax(x, axis=-1)
        return result
    flat = n.op.Softmax(n.op.Reshape(x, n.op.Concat(n.op.Slice(n.op.Shape(x), [0], [axis]), [-1], axis=0)), axis=-1)
    return reshaped_like(flat, x)


def reshaped_like(value: Expr, x: Expr) -> Expr:
    """The same elements in the shape of `x`."""
    result: Expr = value.op.Reshape(value, value.op.Shape(x))
    return result


# -- products ---------------------------------------------------------------------------------------------------------


def activated(n: Call, x: Expr) -> Expr:
    """The activation that a fused operator's attributes name, with its parameters."""
    name = n.get("activation")
    if not name:
        return x
    names = {"LeakyRelu": ["alpha"], "HardSigmoid": ["alpha", "beta"], "Elu": ["alpha"], "Clip": []}.get(name, [])
    values = n.get("activation_params") or [n.get(f"activation_{item}") for item in names]
    if name == "Clip":
        result: Expr = n.op.Clip(x, *(n.op.operand(float(value), x) for value in values))
    else:
        given = {item: value for item, value in zip(names, values, strict=False) if value is not None}
        result = n.op.apply(name, x, **given)
    return result


def _fused_matmul(n: Call) -> Expr:
    """alpha A' B'. With transBatchA, the batch of A lies behind its first matrix dimension: [M, ..., K]."""
    factors = []
    for x, name in ((n.a, "A"), (n.b, "B")):
        if n.get(f"transBatch{name}", 0):
            rank = x.rank
            x = n.op.Transpose(x, perm=[*range(1, rank - 1), 0, rank - 1])
        factors.append(transposed(x) if n.get(f"trans{name}", 0) and x.rank > 1 else x)
    product = factors[0] @ factors[1]
    alpha = n.get("alpha", 1.0)
    return activated(n, product if alpha == 1 else product * alpha)


def _fused_gemm(n: Call) -> Expr:
    settings = {name: n.get(name) for name in ("alpha", "beta", "transA", "transB")}
    return activated(n, n.op.Gemm(n.a, n.b, argument(n, 2), **settings))


def _fused_conv(n: Call) -> Expr:
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    product = n.op.Conv(n.a, n.b, argument(n, 2), **{name: n.get(name) for name in names})
    return activated(n, optional_sum(product, argument(n, 3)))


def _integer_matmul(n: Call) -> Expr:
    """(A - zero point)(B - zero point) in integers, times both scales, + bias."""
    product = n.op.MatMulInteger(n.a, n.b, argument(n, 4), argument(n, 5)).cast(n.c.element)
    return optional_sum(product * (n.c * n[3]), argument(n, 6))


# -- normalizations ---------------------------------------------------------------------------------------------------


def mean(x: Expr) -> Expr:
    """Over the last dimension, which stays."""
    op = x.op
    result: Expr = op.ReduceMean(x, [-1], keepdims=1) if op.opset >= 18 else op.ReduceMean(x, axes=[-1], keepdims=1)
    return result


def rms_norm(x: Expr, scale: Expr | None, epsilon: float) -> tuple[Expr, Expr]:
    """x / sqrt(mean(x^2) + epsilon) * scale, and the factor."""
    factor = 1 / x.op.Sqrt(mean(x * x) + epsilon)
    return x * factor * scale if scale is not None else x * factor, factor


def layer_norm(x: Expr, scale: Expr, bias: Expr | None, epsilon: float) -> tuple[Expr, Expr, Expr]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, the mean and the factor."""
    middle = mean(x)
    normal, factor = rms_norm(x - middle, scale, epsilon)
    return optional_sum(normal, bias), middle, factor


def at_least_float(x: Expr) -> Expr:
    """The value in no less than 32 bits: so are means and factors given out."""
    return x.cast(ElementType.FLOAT) if x.element in (ElementType.FLOAT16, ElementType.BFLOAT16) else x


def _skip_layer_norm(n: Call) -> list[Expr]:
    x = optional_sum(n.a, n.b, argument(n, 4))
    normal, middle, factor = layer_norm(x, n.c, argument(n, 3), n.get("epsilon", 1e-12))
    return [normal, at_least_float(middle), at_least_float(factor), x]


def _skip_rms_norm(n: Call) -> list[Expr | None]:
    x = optional_sum(n.a, n.b, argument(n, 3))
    normal, factor = rms_norm(x, n.c, n.get("epsilon", 1e-12))
    return [normal, None, at_least_float(factor), x]


def _simplified_layer_norm(n: Call) -> list[Expr]:
    """The root mean square over all dimensions from `axis` on."""
    axis = n.get("axis", -1) % n.a.rank
    if axis == n.a.rank - 1:
        normal, factor = rms_norm(n.a, n.b, n.get("epsilon", 1e-5))
        return [normal, at_least_float(factor)]
    lead = n.op.Slice(n.op.Shape(n.a), [0], [axis])
    flat = n.op.Reshape(n.a, n.op.Concat(lead, [-1], axis=0))
    normal, factor = rms_norm(flat, None, n.get("epsilon", 1e-5))
    for _ in range(n.a.rank - axis - 1):
        factor = n.op.Unsqueeze(factor, [-1])
    return [reshaped_like(normal, n.a) * n.b, at_least_float(factor)]


def _gated_rms_norm(n: Call) -> Expr:
    """Over groups as long as `scale`, times the activated gate."""
    op = n.op
    groups = op.Reshape(n.a, op.Concat([-1], op.Shape(n.b), axis=0))
    normal, _ = rms_norm(groups, n.b, n.get("epsilon", 1e-5))
    gate = sigmoid(n.c) if n.get("activation", "silu") == "sigmoid" else swish(n.c)
    return reshaped_like(normal, n.a) * gate


def _embed_layer_norm(n: Call) -> list[Expr | None]:
    """The sum of the embeddings of words, positions and segments, normalised; the sum is the third output."""
    op = n.op
    positions = argument(n, 8)
    if positions is None:
        length = op.Squeeze(op.Slice(op.Shape(n.a), [1], [2]), [0])
        zero, one = (op.constant(np.asarray(number, np.int64)) for number in (0, 1))
        positions = op.Range(zero, length, one)
    total = op.Gather(n.c, n.a, axis=0) + op.Gather(n[3], positions, axis=0)
    if n.has(1) and n.has(4):
        total = total + op.Gather(n[4], n.b, axis=0)
    return [layer_norm(total, n[5], n[6], n.get("epsilon", 1e-12))[0], None, total]


def _branchwise_rms_norm(n: Call) -> Expr:
    """Each branch [H] of [..., C, H] or [..., C H]; scale [C H], [C, H] or [H]."""
    op, branches = n.op, n.get("num_branches", 0)
    lead = op.Slice(op.Shape(n.a), [0], [-1])
    x = op.Reshape(n.a, op.Concat(lead, [branches, -1], axis=0)) if branches else n.a
    normal, _ = rms_norm(x, None, n.get("epsilon", 1e-5))
    if not n.has(1):
        return reshaped_like(normal, n.a)
    scale = n.b
    if scale.rank == 1:  # one for each branch, or the same for all
        size = op.Slice(op.Shape(x), [-1], [2**31 - 1])
        scale = op.Reshape(scale, op.Concat([-1], size, axis=0))
    return reshaped_like(normal * scale, n.a)


def _group_norm(n: Call, x: Expr) -> Expr:
    """Over all positions and the channels of one group; scale and bias [C], then perhaps SiLU."""
    op, last, rank = n.op, n.get("channels_last", 1), x.rank
    if last:
        x = op.Transpose(x, perm=[0, rank - 1, *range(1, rank - 1)])
    groups = op.Reshape(x, [0, n.get("groups"), -1])
    middle = groups - mean(groups)
    normal = reshaped_like(rms_norm(middle, None, n.get("epsilon", 1e-5))[0], x)
    scale, bias = (op.Reshape(item, [-1] + [1] * (rank - 2)) for item in (n.b, n.c))
    y = normal * scale + bias
    if n.get("activation", 0):
        y = swish(y)
    return op.Transpose(y, perm=[0, *range(2, rank), 1]) if last else y


def _skip_group_norm(n: Call) -> list[Expr]:
    skip = n[3]
    if skip.rank == 2:
        skip = n.op.Unsqueeze(skip, [1, 2] if n.get("channels_last", 1) else [2, 3])
    bias = argument(n, 4)
    if bias is not None and not n.get("channels_last", 1):
        bias = n.op.Reshape(bias, [-1, 1, 1])
    x = optional_sum(n.a, skip, bias)
    return [_group_norm(n, x), x]


# -- moving, convolving, measuring -------------------------------------------------------------------------------------


def _linear_attention_gate(n: Call) -> list[Expr | None]:
    decay = n.c * n.op.Softplus(n.a.cast(n.b.element) + n.b)
    return [decay.cast(n.a.element), sigmoid(n[3]) if n.has(3) else None]


def _expand_dims(n: Call) -> Expr:
    result: Expr = n.op.Unsqueeze(n.a, n.op.Reshape(n.b, [1]).cast(ElementType.INT64))
    return result


def _pad(n: Call) -> Expr:
    value = n.op.Reshape(n.c, n.op.constant(np.zeros(0, np.int64))) if n.has(2) else None
    result: Expr = n.op.Pad(n.a, n.op.Reshape(n.b, [-1]), value, mode=n.get("mode"))
    return result


def _unfold(n: Call) -> Expr:
    """Windows along a dimension, each as a new last dimension."""
    op, axis, size, step = n.op, n.get("dim", -1) % n.a.rank, n.get("size"), n.get("step", 1)
    if size is None or n.a.shape is None or not isinstance(n.a.shape[axis], int):
        raise n.error("it needs to know the size of its dimension before the run.")
    starts = np.arange(0, n.a.shape[axis] - size + 1, step)
    windows = op.Gather(n.a, starts[:, None] + np.arange(size), axis=axis)
    rank = n.a.rank + 1
    result: Expr = op.Transpose(windows, perm=[*range(axis + 1), *range(axis + 2, rank), axis + 1])
    return result


def _distances(n: Call) -> Expr:
    """Between all rows of A and of B: |a|^2 + |b|^2 - 2 a b. The root has no slope at distance 0."""
    op = n.op
    squares = [op.ReduceSum(x * x, [1], keepdims=1) for x in (n.a, n.b)]
    squared = squares[0] + transposed(squares[1]) - 2.0 * (n.a @ transposed(n.b))
    zero = op.operand(0.0, squared)
    apart = squared > 0
    if n.get("metric", "sqeuclidean") == "sqeuclidean":
        return op.Where(apart, squared, zero)
    if n.get("metric") != "euclidean":
        raise n.error(f"there is none for the metric {n.get('metric')}.")
    result: Expr = op.Where(apart, op.Sqrt(op.Where(apart, squared, op.operand(1.0, squared))), zero)
    return result


def _grid_sample(n: Call) -> Expr:
    mode = n.get("mode", "bilinear")
    if n.op.opset >= 20:
        mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    settings = {name: n.get(name) for name in ("align_corners", "padding_mode")}
    result: Expr = n.op.GridSample(n.a, n.b, mode=mode, **settings)
    return result


def _causal_convolution(n: Call) -> list[Expr]:
    """Of every channel alone, along the last axis, with what came before the input in front of it.

    y[t] = bias + sum over taps j of weight[j] x[t - (taps - 1 - j) dilation]. The second output is the end of the
    input that the next part needs.
    """
    op, dilation = n.op, n.get("dilation", 1)
    plain = {"ndim": 1, "state_window": 0, "input_channels": 0, "state_length": 0, "state_update_capacity": 0}
    if any(n.get(name, value) != value for name, value in plain.items()) or n.get("state_channels_last", -1) != -1:
        raise n.error("there is one for a single dimension and a plain state alone.")
    last = n.get("channels_last", 0)
    if n.a.rank != 3 or n.b.shape is None or not isinstance(n.b.shape[2], int):
        raise n.error("its input must have three dimensions, and the number of taps must be known before the run.")
    taps = n.b.shape[2]
    before = (taps - 1) * dilation
    x, past = (x and op.Transpose(x, perm=[0, 2, 1]) if last else x for x in (n.a, argument(n, 3)))
    assert x is not None
    if past is None:
        pads = [0, 0, before, 0, 0, 0]
        whole = op.Pad(x, pads, op.operand(0.0, x))
    else:
        whole = op.Concat(past, x, axis=2)
    weights = op.Split(n.b, [1] * taps, axis=2, outputs=taps) if taps > 1 else (n.b,)
    y: Expr | None = None
    for tap, weight in enumerate(weights):
        stop = (taps - 1 - tap) * dilation
        part = op.Slice(whole, [tap * dilation], [-stop if stop else 2**31 - 1], [2]) * op.Squeeze(weight, [1])
        y = part if y is None else y + part
    assert y is not None
    if n.has(2):
        y = y + op.Unsqueeze(n.c, [1])
    if n.get("activation", "none") != "none":
        y = swish(y)
    state = op.Slice(whole, [-before], [2**31 - 1], [2]) if before else op.Slice(whole, [0], [0], [2])
    return [op.Transpose(item, perm=[0, 2, 1]) if last else item for item in (y, state)]


FORMS: dict[str, Form] = {
    "com.microsoft.BiasAdd": lambda n: n.a + n.b + n.c,
    "com.microsoft.BiasDropout": _bias_dropout,
    "com.microsoft.BiasGelu": lambda n: gelu(n.a + n.b),
    "com.microsoft.BiasSoftmax": _bias_softmax,
    "com.microsoft.BiasSplitGelu": _bias_split_gelu,
    "com.microsoft.BranchwiseRMSNorm": _branchwise_rms_norm,
    "com.microsoft.CausalConvWithState": _causal_convolution,
    "com.microsoft.CDist": _distances,
    "com.microsoft.EmbedLayerNormalization": _embed_layer_norm,
    "com.microsoft.ExpandDims": _expand_dims,
    "com.microsoft.FastGelu": lambda n: fast_gelu(optional_sum(n.a, argument(n, 1))),
    "com.microsoft.FusedConv": _fused_conv,
    "com.microsoft.FusedGemm": _fused_gemm,
    "com.microsoft.FusedMatMul": _fused_matmul,
    "com.microsoft.FusedMatMulActivation": _fused_matmul,
    "com.microsoft.GatedAdd": _gated_add,
    "com.microsoft.GatedRMSNorm": _gated_rms_norm,
    "com.microsoft.GatherND": lambda n: n.op.GatherND(n.a, n.b.cast(ElementType.INT64)),
    "com.microsoft.Gelu": lambda n: gelu(n.a),
    "com.microsoft.GemmFastGelu": lambda n: fast_gelu(optional_sum(n.a @ n.b, argument(n, 2))),
    "com.microsoft.GridSample": _grid_sample,
    "com.microsoft.GroupNorm": lambda n: _group_norm(n, n.a),
    "com.microsoft.LinearAttentionGate": _linear_attention_gate,
    "com.microsoft.MatMulIntegerToFloat": _integer_matmul,
    "com.microsoft.Pad": _pad,
    "com.microsoft.QuickGelu": lambda n: swish(n.a, n.get("alpha", 1.702)),
    "com.microsoft.ScaledSiLU": lambda n: swish(n.a * n.b if n.has(1) else n.a * n.get("alpha", 1.0)),
    "com.microsoft.SkipGroupNorm": _skip_group_norm,
    "com.microsoft.SkipLayerNormalization": _skip_layer_norm,
    "com.microsoft.SkipSimplifiedLayerNormalization": _skip_rms_norm,
    "com.microsoft.SwiGLU": _swiglu,
    "com.microsoft.TransposeMatMul": _fused_matmul,
    "com.microsoft.Trilu": lambda n: n.op.Trilu(n.a, argument(n, 1), upper=n.get("upper")),
    "com.microsoft.UnfoldTensor": _unfold,
    "SimplifiedLayerNormalization": _simplified_layer_norm,
}
"""By operator: what it is in simpler operators."""


def _inverse(n: Call) -> Gradients:
    """d(X^-1) = -X^-1 dX X^-1."""
    rank = n.a.rank
    back = n.op.Transpose(n.out, perm=[*range(rank - 2), rank - 1, rank - 2])
    return -(back @ n.d @ back)


RULES: dict[str, Rule] = {
    "com.microsoft.Inverse": _inverse,
}
"""By operator: gradients in the shapes of the inputs."""
