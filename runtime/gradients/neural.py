"""Rules and forms for convolutions, pooling, normalizations and the losses of the standard operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from runtime.gradients.expressions import Expr
from runtime.gradients.shaping import add_at, zero_of
from runtime.gradients.walk import Call, Gradients, Rule
from runtime.types import ElementType

# -- windows ------------------------------------------------------------------------------------------------------


def window(n: Call, rank: int) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads [begins..., ends...] of a node whose window has `rank` dimensions.

    Pads that are chosen by `auto_pad` depend on sizes, which then must be known.
    """
    strides = list(n.get("strides") or [1] * rank)
    dilations = list(n.get("dilations") or [1] * rank)
    mode = n.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        return strides, dilations, list(n.get("pads") or [0] * 2 * rank) if mode == "NOTSET" else [0] * 2 * rank
    kernel = list(n.get("kernel_shape") or known_sizes(n, n.b, 2))
    begins, ends = [], []
    for size, stride, dilation, width in zip(known_sizes(n, n.a, 2), strides, dilations, kernel, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size)
        small = total // 2
        begins.append(total - small if mode == "SAME_LOWER" else small)
        ends.append(total - begins[-1])
    return strides, dilations, begins + ends


def known_sizes(n: Call, x: Expr, start: int) -> list[int]:
    """The sizes of a value from dimension `start` on, which must be numbers."""
    sizes = [size for size in (x.shape or ())[start:] if isinstance(size, int)]
    if x.shape is None or len(sizes) < len(x.shape) - start:
        raise n.error("sizes must be known before the run.", "Declare the shapes of the graph's inputs.")
    return sizes


def spatial(x: Expr) -> Expr:
    """The sizes after the first two, int64."""
    result: Expr = x.op.Slice(x.op.Shape(x), [2], [x.rank])
    return result


def fitted(x: Expr, like: Expr) -> Expr:
    """The value cut, or filled up with zeros at the ends, to the sizes of `like` after the first two."""
    op, rank = x.op, x.rank
    missing = spatial(like) - spatial(x)
    nothing = np.zeros(2 + rank, np.int64)
    return op.Pad(x, op.Concat(op.constant(nothing), missing, axis=0), zero_of(x))


def _convolution(n: Call) -> Gradients:
    """X gets the transposed convolution of the gradient; W the convolution of X with it, strides and dilations
    exchanged, the batch taking the place of the channels."""
    op, rank = n.op, n.a.rank - 2
    strides, dilations, pads = window(n, rank)
    group = n.get("group", 1)
    to_x = to_w = to_b = None
    if n.needs[0]:
        # What the windows did not reach at the end has no slope: zeros there, which also undo the pads.
        full = op.ConvTranspose(n.d, n.b, strides=strides, dilations=dilations, group=group)
        cut = op.Pad(full, np.array([0, 0, *(-p for p in pads[:rank]), *[0] * (rank + 2)], np.int64))
        to_x = fitted(cut, n.a)
    if n.needs[1]:
        x = op.Pad(n.a, np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64), zero_of(n.a))
        to_w = weight_gradient(n, x, n.d, n.b, group, strides, dilations)
    if n.has(2) and n.needs[2]:
        to_b = op.ReduceSum(n.d, [0, *range(2, rank + 2)], keepdims=0)
    return to_x, to_w, to_b


def weight_gradient(
    n: Call, x: Expr, d: Expr, weights: Expr, group: int, strides: Sequence[int], dilations: Sequence[int]
) -> Expr:
    """The gradient of W [M, C / group, ...] in Y = conv(X, W), from X [N, C, ...], already padded, and Y's `d`."""
    op, rank = n.op, x.rank - 2
    order = [1, 0, *range(2, rank + 2)]
    if group == 1:
        image, kernel = op.Transpose(x, perm=order), op.Transpose(d, perm=order)
    else:
        # [N, G c, ...] -> [c, G N, ...]: every group convolves its own channels, the batch being summed over.
        image, kernel = _grouped(x, group), op.Transpose(d, perm=order)
    found = op.Conv(image, kernel, strides=list(dilations), dilations=list(strides), group=group)
    return fitted(op.Transpose(found, perm=order), weights)


def _grouped(x: Expr, group: int) -> Expr:
    op, rank = x.op, x.rank - 2
    shape = op.Concat([0, group, -1], spatial(x), axis=0)
    apart = op.Transpose(op.Reshape(x, shape), perm=[2, 1, 0, *range(3, rank + 3)])
    batch = op.Slice(op.Shape(x), [0], [1])
    result: Expr = op.Reshape(apart, op.Concat([-1], batch * np.asarray([group]), spatial(x), axis=0))
    return result


def _transposed_convolution(n: Call) -> Gradients:
    """X gets the convolution of the gradient; W, as in a convolution, with X and the gradient exchanged."""
    op, rank = n.op, n.a.rank - 2
    strides, dilations = list(n.get("strides") or [1] * rank), list(n.get("dilations") or [1] * rank)
    group, pads = n.get("group", 1), list(n.get("pads") or [0] * 2 * rank)
    if n.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER") or n.get("output_shape"):
        pads = _pads_of_output(n, strides, dilations)
    padded = op.Pad(n.d, np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64), zero_of(n.d))
    to_x = to_w = to_b = None
    if n.needs[0]:
        found = op.Conv(padded, n.b, strides=strides, dilations=dilations, group=group)
        to_x = fitted(found, n.a)
    if n.needs[1]:
        to_w = weight_gradient(n, padded, n.a, n.b, group, strides, dilations)
    if n.has(2) and n.needs[2]:
        to_b = op.ReduceSum(n.d, [0, *range(2, rank + 2)], keepdims=0)
    return to_x, to_w, to_b


def _pads_of_output(n: Call, strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """The pads of a ConvTranspose that says how large its output is (the ONNX operator specification)."""
    rank, mode = n.a.rank - 2, n.get("auto_pad", "NOTSET")
    sizes, kernel = known_sizes(n, n.a, 2), list(n.get("kernel_shape") or known_sizes(n, n.b, 2))
    extra = list(n.get("output_padding") or [0] * rank)
    wanted = list(n.get("output_shape") or [size * stride for size, stride in zip(sizes, strides, strict=True)])[-rank:]
    begins, ends = [], []
    for i in range(rank):
        total = strides[i] * (sizes[i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - wanted[i]
        half = total // 2
        begins.append(half if mode == "SAME_UPPER" else total - half)
        ends.append(total - begins[-1])
    return begins + ends


# -- pooling ------------------------------------------------------------------------------------------------------


def _max_pool(n: Call) -> Gradients:
    """To the elements that were the largest, which the second output names by their places."""
    op = n.op
    options = {name: n.get(name) for name in ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")}
    named = len(n.y) > 1 and not n.get("storage_order", 0)  # which could count columns first
    places = n.y[1] if named else op.MaxPool(n.a, outputs=2, **options)[1]
    size = op.Unsqueeze(op.Size(n.a), [0])
    zeros = op.Expand(zero_of(n.d), size)
    flat = add_at(n, "ScatterElements", zeros, op.Reshape(places, [-1]), op.Reshape(n.d, [-1]), axis=0)
    return op.Reshape(flat, op.Shape(n.a))


def _max_unpool(n: Call) -> Gradients:
    """From the places that the indices name. They count in the output that the window makes; a larger one that is
    asked for has zeros at its ends."""
    op, d = n.op, n.d
    if n.has(2):
        kernel = np.asarray(n.get("kernel_shape"), np.int64)
        rank = len(kernel)
        strides, _, pads = window(n, rank)
        rest = kernel - np.asarray(strides) - np.asarray(pads).reshape(2, rank).sum(axis=0)
        ends = spatial(n.a) * np.asarray(strides, np.int64) + rest
        d = op.Slice(d, [0] * rank, ends, list(range(2, rank + 2)))
    flat = op.Gather(op.Reshape(d, [-1]), op.Reshape(n.b, [-1]))
    return op.Reshape(flat, op.Shape(n.a))


def sum_windows_back(n: Call, d: Expr, kernel: Sequence[int]) -> Expr:
    """What the sum over windows sends back: a transposed convolution with ones, every channel by itself."""
    op, rank = n.op, n.a.rank - 2
    strides, dilations, pads = window(n, rank)
    single = op.Reshape(d, op.Concat([-1, 1], spatial(d), axis=0))
    ones = op.constant(np.ones((1, 1, *kernel), d.element.dtype))
    full = op.ConvTranspose(single, ones, strides=strides, dilations=dilations)
    cut = op.Pad(full, np.array([0, 0, *(-p for p in pads[:rank]), *[0] * (rank + 2)], np.int64))
    return op.Reshape(fitted(cut, n.a), op.Shape(n.a))


def _average_pool(n: Call) -> Gradients:
    """Every element of a window gets the same share: of the whole window, or of what is no padding."""
    op, rank, kernel = n.op, n.a.rank - 2, list(n.get("kernel_shape"))
    if n.get("count_include_pad", 0) and not n.get("ceil_mode", 0):
        return sum_windows_back(n, n.d * (1 / prod(kernel)), kernel)
    strides, dilations, pads = window(n, rank)
    counted = op.Expand(op.operand(1.0, n.d), op.Concat([1, 1], spatial(n.a), axis=0))
    around = np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64)
    counted = op.Pad(counted, around, op.operand(float(n.get("count_include_pad", 0)), n.d))
    # With ceil_mode, a last window may reach beyond the padding: nothing is counted there.
    beyond = np.array([*[0] * (rank + 4), *(stride - 1 for stride in strides)], np.int64)
    counted = op.Pad(counted, beyond, zero_of(n.d))
    ones = op.constant(np.ones((1, 1, *kernel), n.d.element.dtype))
    counts = fitted(op.Conv(counted, ones, strides=strides, dilations=dilations), n.d)
    return sum_windows_back(n, n.d / counts, kernel)


def _lp_pool(n: Call) -> Gradients:
    """y = (sum |x|^p)^(1/p): x gets d sign(x) (|x| / y)^(p - 1)."""
    op, kernel, p = n.op, list(n.get("kernel_shape")), float(n.get("p", 2))
    none = op.operand(0.0, n.out)
    share = op.Where(op.Equal(n.out, none), none, n.d * op.Pow(n.out, 1 - p))
    return sum_windows_back(n, share, kernel) * op.Sign(n.a) * op.Pow(op.Abs(n.a), p - 1)


def _global_average_pool(n: Call) -> Gradients:
    op = n.op
    count = op.ReduceProd(spatial(n.a), keepdims=0).cast(n.d.element)
    return op.Expand(n.d / count, op.Shape(n.a))


def _global_max_pool(n: Call) -> Gradients:
    hits = n.op.Equal(n.a, n.out).cast(n.d.element)
    return n.d * hits / n.op.ReduceSum(hits, list(range(2, n.a.rank)), keepdims=1)


def _global_lp_pool(n: Call) -> Gradients:
    op, p = n.op, float(n.get("p", 2))
    none = op.operand(0.0, n.out)
    share = op.Where(op.Equal(n.out, none), none, n.d * op.Pow(n.out, 1 - p))
    return share * op.Sign(n.a) * op.Pow(op.Abs(n.a), p - 1)


# -- normalizations -----------------------------------------------------------------------------------------------


def wide(x: Expr) -> Expr:
    """The value in float32, if it is narrower: what normalizations compute in."""
    return x if x.element is ElementType.DOUBLE else x.cast(ElementType.FLOAT)


def standardized(x: Expr, axes: Sequence[int], epsilon: float) -> Expr:
    """(x - mean) / sqrt(variance + epsilon), both over `axes`."""
    op, element, x = x.op, x.element, wide(x)
    centred = x - op.reduce("ReduceMean", x, axes)
    return (centred / op.Sqrt(op.reduce("ReduceMean", centred * centred, axes) + epsilon)).cast(element)


def per_channel(x: Expr, rank: int) -> Expr:
    """A vector over the channels, as it is multiplied with [N, C, ...]."""
    result: Expr = x.op.Reshape(x, [1, -1, *[1] * (rank - 2)])
    return result


def _layer_normalization(n: Call) -> Expr | Sequence[Expr]:
    axis = n.get("axis", -1) % n.a.rank
    axes, op, x = list(range(axis, n.a.rank)), n.op, wide(n.a)
    mean = op.reduce("ReduceMean", x, axes)
    centred = x - mean
    inverse = 1.0 / op.Sqrt(op.reduce("ReduceMean", centred * centred, axes) + n.get("epsilon", 1e-5))
    result = (centred * inverse).cast(n.a.element) * n.b
    if n.has(2):
        result = result + n.c
    return [result, mean.cast(ElementType.FLOAT), inverse.cast(ElementType.FLOAT)][: len(n.y)]


def _rms_normalization(n: Call) -> Expr | Sequence[Expr]:
    axes = list(range(n.get("axis", -1) % n.a.rank, n.a.rank))
    x = wide(n.a)
    inverse = 1.0 / n.op.Sqrt(n.op.reduce("ReduceMean", x * x, axes) + n.get("epsilon", 1e-5))
    return [(x * inverse).cast(n.a.element) * n.b, inverse][: len(n.y)]


def _group_normalization(n: Call) -> Expr:
    op, groups = n.op, n.get("num_groups")
    flat = op.Reshape(n.a, [0, groups, -1])
    normal = op.Reshape(standardized(flat, [-1], n.get("epsilon", 1e-5)), op.Shape(n.a))
    scale, bias = n.b, n.c
    if n.version < 21:  # one number for each group, not for each channel
        per_group = op.Reshape(op.Reshape(normal, [0, groups, -1]), [0, groups, -1])
        scaled = per_group * op.Reshape(scale, [1, -1, 1]) + op.Reshape(bias, [1, -1, 1])
        result: Expr = op.Reshape(scaled, op.Shape(n.a))
        return result
    return normal * per_channel(scale, n.a.rank) + per_channel(bias, n.a.rank)


def _instance_normalization(n: Call) -> Expr:
    rank = n.a.rank
    normal = standardized(n.a, list(range(2, rank)), n.get("epsilon", 1e-5))
    return normal * per_channel(n.b, rank) + per_channel(n.c, rank)


def _batch_normalization(n: Call) -> Expr | Sequence[Expr]:
    """With the statistics that are given, or in training mode with those of the batch."""
    op, rank, epsilon = n.op, n.a.rank, n.get("epsilon", 1e-5)
    scale, bias = per_channel(n.b, rank), per_channel(n.c, rank)
    if not n.get("training_mode", 0):
        mean, variance = per_channel(n[3], rank), per_channel(n[4], rank)
        return (n.a - mean) / op.Sqrt(variance + epsilon) * scale + bias
    axes, momentum = [0, *range(2, rank)], n.get("momentum", 0.9)
    mean = op.reduce("ReduceMean", n.a, axes)
    variance = op.reduce("ReduceMean", (n.a - mean) * (n.a - mean), axes)
    result = (n.a - mean) / op.Sqrt(variance + epsilon) * scale + bias
    running = (old * momentum + op.Reshape(new, [-1]) * (1 - momentum) for old, new in ((n[3], mean), (n[4], variance)))
    return [result, *running][: len(n.y)]


def _lp_normalization(n: Call) -> Expr:
    """x / |x|_p, and 0 where the norm is."""
    op, axis = n.op, [n.get("axis", -1)]
    norm = op.reduce("ReduceL1" if n.get("p", 2) == 1 else "ReduceL2", n.a, axis)
    none = op.Equal(norm, 0.0)
    return op.Where(none, zero_of(n.a), n.a / op.Where(none, op.operand(1.0, norm), norm))


def _mean_variance_normalization(n: Call) -> Expr:
    axes = list(n.get("axes") or [0, 2, 3])
    return standardized(n.a, axes, 1e-9)


def _local_response(n: Call) -> Expr:
    """x / (bias + alpha / size * sum of x^2 over `size` neighbouring channels)^beta."""
    op, rank, size = n.op, n.a.rank, n.get("size")
    before = (size - 1) // 2
    pads = np.zeros(2 * rank, np.int64)
    pads[1], pads[rank + 1] = before, size - 1 - before
    padded = op.Pad(n.a * n.a, pads, zero_of(n.a))
    channels = op.Slice(op.Shape(n.a), [1], [2])
    total: Expr | None = None
    for start in range(size):
        part = op.Slice(padded, [start], channels + np.asarray([start]), [1])
        total = part if total is None else total + part
    assert total is not None
    scale = n.get("bias", 1.0) + total * (n.get("alpha", 1e-4) / size)
    result: Expr = n.a / op.Pow(scale, n.get("beta", 0.75))
    return result


# -- losses -------------------------------------------------------------------------------------------------------


def negative_likelihood(n: Call, logarithms: Expr) -> Expr:
    """-w[t] x[t] of every sample, reduced; the mean is over the weights. `ignore_index` counts as nothing."""
    op, target = n.op, n.b
    ignored = n.get("ignore_index")
    at = op.Unsqueeze(target, [1])
    keep: Expr | None = None
    if ignored is not None:
        is_ignored = op.Equal(at, np.asarray(ignored, target.element.dtype))
        at = op.Where(is_ignored, np.asarray(0, target.element.dtype), at)
        keep = op.Not(is_ignored).cast(logarithms.element)
    picked = op.Neg(op.GatherElements(logarithms, at, axis=1))
    weights = op.Unsqueeze(op.Gather(n.c, op.Squeeze(at, [1])), [1]) if n.has(2) else None
    if keep is not None:
        weights = keep if weights is None else weights * keep
    losses = picked if weights is None else picked * weights
    reduction = n.get("reduction", "mean")
    if reduction == "none":
        return op.Squeeze(losses, [1])
    total = op.ReduceSum(losses, keepdims=0)
    if reduction == "sum":
        return total
    counted = op.Size(losses).cast(losses.element) if weights is None else op.ReduceSum(weights, keepdims=0)
    return total / counted


def _softmax_cross_entropy(n: Call) -> Expr | Sequence[Expr]:
    logarithms = n.op.LogSoftmax(n.a, axis=1)
    return [negative_likelihood(n, logarithms), logarithms][: len(n.y)]


RULES: dict[str, Rule] = {
    "AveragePool": _average_pool,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "GlobalAveragePool": _global_average_pool,
    "GlobalLpPool": _global_lp_pool,
    "GlobalMaxPool": _global_max_pool,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
    "MaxUnpool": _max_unpool,
}
"""By operator: gradients in the shapes of the inputs."""

FORMS: dict[str, Callable[[Call], Expr | Sequence[Expr]]] = {
    "BatchNormalization": _batch_normalization,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _local_response,
    "LayerNormalization": _layer_normalization,
    "LpNormalization": _lp_normalization,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "NegativeLogLikelihoodLoss": lambda n: negative_likelihood(n, n.a),
    "RMSNormalization": _rms_normalization,
    "SimplifiedLayerNormalization": _rms_normalization,
    "SoftmaxCrossEntropyLoss": _softmax_cross_entropy,
}
"""By operator: what it is in simpler operators."""
