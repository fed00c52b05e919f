"""ONNX Runtime's attention operators, written with standard ones.

B sequences, N heads (M of keys and values), S queries, L keys, head size D (V of values).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from runtime.gradients.contrib import argument, interleaved, rms_norm
from runtime.gradients.expressions import Expr
from runtime.gradients.products import transposed
from runtime.gradients.quantized import size_of
from runtime.gradients.walk import Call
from runtime.types import ElementType


def scalar(x: Expr, number: int) -> Expr:
    """An int64 constant without dimensions."""
    return x.op.constant(np.asarray(number, np.int64))


def up_to(size: Expr) -> Expr:
    """0, 1, ... below a size, int64 [1]."""
    op = size.op
    result: Expr = op.Range(scalar(size, 0), op.Squeeze(size, [0]), scalar(size, 1))
    return result


def heads(x: Expr, count: int) -> Expr:
    """[B, S, N D] as [B, N, S, D]; what has four dimensions already is that."""
    if x.rank == 4:
        return x
    result: Expr = x.op.Transpose(x.op.Reshape(x, [0, 0, count, -1]), perm=[0, 2, 1, 3])
    return result


def merged(x: Expr) -> Expr:
    """[B, N, S, D] as [B, S, N D]."""
    result: Expr = x.op.Reshape(x.op.Transpose(x, perm=[0, 2, 1, 3]), [0, 0, -1])
    return result


def softmax(scores: Expr, sink: Expr | None) -> Expr:
    """Over the last dimension; a sink [N or 1] adds its exponential to the sum of every row [B, N, S, L]."""
    op = scores.op
    if sink is None:
        result: Expr = op.Softmax(scores, axis=-1)
        return result
    column = op.ReduceSum(scores, [-1], keepdims=1) * 0.0 + op.Reshape(sink, [1, -1, 1, 1])
    wide = op.Softmax(op.Concat(scores, column, axis=-1), axis=-1)
    kept: Expr = op.Slice(wide, [0], size_of(scores, 3), [-1])
    return kept


def attend(
    q: Expr,
    k: Expr,
    v: Expr,
    scale: float | None,
    biases: Sequence[Expr | None],
    sink: Expr | None = None,
    softcap: float = 0.0,
) -> tuple[Expr, Expr, Expr]:
    """softmax(q k^T scale + biases) v as [B, N, S, V], the scores, and what the softmax made of them.

    Where there are fewer heads of keys and values than of queries, neighbouring queries share them.
    """
    op = q.op
    q = q * scale if scale is not None else q / op.Sqrt(size_of(q, 3).cast(q.element))
    shared = q.shape is None or k.shape is None or q.shape[1] != k.shape[1]
    if shared:
        shape, groups = op.Shape(q), size_of(k, 1)
        last = op.Slice(shape, [2], [4])
        grouped = op.Reshape(q, op.Concat([0], groups, [-1], last, axis=0))
        scores = op.Reshape(
            grouped @ op.Unsqueeze(transposed(k), [2]), op.Concat(op.Slice(shape, [0], [3]), [-1], axis=0)
        )
    else:
        scores = q @ transposed(k)
    if softcap:
        scores = softcap * op.Tanh(scores / softcap)
    for bias in biases:
        scores = scores if bias is None else scores + bias
    weights = softmax(scores, sink)
    if shared:
        apart = op.Reshape(weights, op.Concat([0], groups, [-1], op.Slice(op.Shape(weights), [2], [4]), axis=0))
        out = op.Reshape(apart @ op.Unsqueeze(v, [2]), op.Concat(op.Slice(shape, [0], [3]), [-1], axis=0))
    else:
        out = weights @ v
    return out, scores, weights


def hidden(visible: Expr, like: Expr, value: float | None = None) -> Expr:
    """What is added to scores: 0 where they are visible, elsewhere `value`, or so little that they do not count."""
    op = like.op
    if value is None:
        value = -6e4 if like.element == ElementType.FLOAT16 else -1e9
    result: Expr = op.Where(visible, op.operand(0.0, like), op.operand(value, like))
    return result


def causal(q: Expr, past: Expr | None, length: Expr, window: int = -1) -> Expr:
    """Which keys a query sees, bool [S, L]: those up to itself, and with a window only the last ones of them."""
    op = q.op
    row = op.Unsqueeze(up_to(size_of(q, 2)), [1])
    if past is not None:
        row = row + past
    column = up_to(length)
    visible: Expr = column <= row
    return visible if window < 0 else op.And(visible, column > row - window)


# -- rotary positions -------------------------------------------------------------------------------------------------


def rotated(x: Expr, cosine: Expr, sine: Expr, interleave: bool) -> Expr:
    """Pairs of elements of the last dimension turned by angles [..., R / 2]; elements beyond R stay."""
    op = x.op
    half = size_of(cosine, cosine.rank - 1)
    rest = size_of(x, x.rank - 1) - half - half
    if interleave:
        turning, staying = op.Split(x, op.Concat(half + half, rest, axis=0), axis=-1, outputs=2)
        first, second = interleaved(turning)
    else:
        first, second, staying = op.Split(x, op.Concat(half, half, rest, axis=0), axis=-1, outputs=3)
    new = [first * cosine - second * sine, first * sine + second * cosine]
    if interleave:
        pairs = op.Concat(*(op.Unsqueeze(item, [-1]) for item in new), axis=-1)
        new = [op.Reshape(pairs, op.Shape(turning))]
    result: Expr = op.Concat(*new, staying, axis=-1)
    return result


def _rotary(n: Call) -> Expr:
    """Of [B, S, N D] or [B, N, S, D]; positions are those of every token, or that of the first."""
    op, x = n.op, n.a
    if n.get("is_packed_batching", 0):
        raise n.error("there is none for packed batches.")
    flat = x.rank == 3
    if flat:
        count = n.get("num_heads", 0) if n.get("rotary_embedding_dim", 0) else 0
        size = size_of(n.c, 1)
        split = [0, 0, count, -1] if count else op.Concat([0, 0, -1], size + size, axis=0)
        x = op.Reshape(x, split)
    positions = n.b if n.b.rank == 2 else op.Unsqueeze(n.b + up_to(size_of(x, 1 if flat else 2)), [0])
    cosine, sine = (op.Unsqueeze(op.Gather(table, positions, axis=0), [2 if flat else 1]) for table in (n.c, n[3]))
    y = rotated(x, cosine, sine, bool(n.get("interleaved", 0)))
    return op.Reshape(y, op.Shape(n.a)) if flat else y


# -- operators --------------------------------------------------------------------------------------------------------


def padding(n: Call, mask: Expr | None, like: Expr, length: Expr) -> Expr | None:
    """What a mask adds to scores [B, N, S, L].

    Its forms: lengths [B], ends and starts [2 B], or ones and zeros [B, L], [B, S, L] or [B, 1, S, L].
    """
    if mask is None:
        return None
    op, value = n.op, n.get("mask_filter_value", -10000.0)
    if mask.rank > 1:
        visible = mask > 0
        missing = [1, 2] if mask.rank == 2 else [1] if mask.rank == 3 else []
        return hidden(op.Unsqueeze(visible, missing) if missing else visible, like, value)
    column, mask = up_to(length), mask.cast(scalar(mask, 0).element)
    batch = size_of(like, 0)
    end = op.Reshape(op.Slice(mask, [0], batch), [-1, 1, 1, 1])
    visible = column < end
    given, sequences = (mask.shape or (None,))[0], (like.shape or (None,))[0]
    twice = isinstance(sequences, int) and given == 2 * sequences
    if not twice and (given is None or given != sequences):
        raise n.error("a mask with one dimension must be known to have the size of the batch, or twice that.")
    if twice:
        start = op.Reshape(op.Slice(mask, batch, batch + batch), [-1, 1, 1, 1])
        visible = op.And(visible, column >= start)
    return hidden(visible, like, value)


def _multi_head(n: Call) -> list[Expr | None]:
    op, count = n.op, n.get("num_heads")
    if n.has(8) or n.has(9):
        raise n.error("there is none for shared buffers of past keys and values.")
    q, k, v = _three(n)
    if n.has(3):
        sizes = op.Concat(*(size_of(x, 3) * count for x in (q, k, v)), axis=0)
        parts = op.Split(n[3], sizes, axis=0, outputs=3)
        q, k, v = (
            x if x is n.x[place] else x + op.Unsqueeze(op.Reshape(part, [count, -1]), [1])
            for place, (x, part) in enumerate(zip((q, k, v), parts, strict=True))
        )
    past = None
    if n.has(6):
        past = size_of(n[6], 2)
        k, v = op.Concat(n[6], k, axis=2), op.Concat(n[7], v, axis=2)
    length = size_of(k, 2)
    biases = [argument(n, 5), padding(n, argument(n, 4), q, length)]
    if n.get("unidirectional", 0):
        biases.append(hidden(causal(q, past, length), q))
    out, _, weights = attend(q, k, v, n.get("scale") or None, biases)
    return [merged(out), k, v, weights]


def _three(n: Call) -> tuple[Expr, Expr, Expr]:
    """Queries, keys and values [B, N, S, D], also from one or two inputs that hold all: [B, S, N, 3 or 2, D]."""
    op, count = n.op, n.get("num_heads")

    def apart(x: Expr) -> list[Expr]:
        parts = 2 if x is not n.x[0] else 3
        pieces = op.Split(x, [1] * parts, axis=3, outputs=parts)
        return [op.Transpose(op.Squeeze(piece, [3]), perm=[0, 2, 1, 3]) for piece in pieces]

    if not n.has(1):
        q, k, v = apart(n.a)
        return q, k, v
    if not n.has(2):
        k, v = apart(n.b)
        return heads(n.a, count), k, v
    return heads(n.a, count), heads(n.b, count), heads(n.c, count)


def _attention(n: Call) -> list[Expr | None]:
    """Queries, keys and values are products of one input with weights that lie side by side."""
    op, count = n.op, n.get("num_heads")
    if n.get("do_rotary", 0) or n.get("past_present_share_buffer", 0):
        raise n.error("there is none with rotary positions or a shared buffer of past keys and values.")
    product = n.a @ n.b
    if n.has(2):
        product = product + n.c
    sizes = n.get("qkv_hidden_sizes")
    parts = (
        op.Split(product, list(sizes), axis=-1, outputs=3)
        if sizes
        else op.Split(product, axis=-1, outputs=3, num_outputs=3 if op.opset >= 18 else None)
    )
    q, k, v = (heads(part, count) for part in parts)
    past = None
    if n.has(4):
        past = size_of(n[4], 3)
        before = [op.Squeeze(part, [0]) for part in op.Split(n[4], [1, 1], axis=0, outputs=2)]
        k, v = op.Concat(before[0], k, axis=2), op.Concat(before[1], v, axis=2)
    length = size_of(k, 2)
    biases = [argument(n, 5), padding(n, argument(n, 3), q, length)]
    if n.get("unidirectional", 0):
        biases.append(hidden(causal(q, past, length), q))
    out, _, _ = attend(q, k, v, n.get("scale") or None, biases)
    if sizes and sizes[1] != sizes[2]:  # keys and values do not fit into one tensor
        return [merged(out)]
    return [merged(out), op.Concat(op.Unsqueeze(k, [0]), op.Unsqueeze(v, [0]), axis=0)]


def _grouped_query(n: Call) -> list[Expr | None]:
    """Past keys and values must be whole: as long as what came before, which is the same for every sequence.

    Whether a buffer is longer than that, shows in the run only; the gradient is then NaN, not wrong.
    """
    op, count, shared = n.op, n.get("num_heads"), n.get("kv_num_heads")
    if {n.get("k_quant_type", "NONE"), n.get("v_quant_type", "NONE")} != {"NONE"} or n.has(12) or n.has(13):
        raise n.error("there is none for quantized keys and values.")
    if n.get("sliding_window_cache", 0) or n.has(16):
        raise n.error("there is none for a sliding cache or for padded parts of a sequence.")
    if n.has(1):
        q, k, v = heads(n.a, count), heads(n.b, shared), heads(n.c, shared)
    else:
        whole = heads(n.a, count + 2 * shared)
        q, k, v = op.Split(whole, [count, shared, shared], axis=1, outputs=3)
    if n.has(14):
        epsilon = n.get("qk_norm_epsilon", 1e-6)
        q = rms_norm(q, n[14], n.get("q_norm_epsilon", epsilon))[0]
        k = rms_norm(k, n[15], n.get("k_norm_epsilon", epsilon))[0]
    past = size_of(n[3], 2) if n.has(3) else None
    if n.get("do_rotary", 0):
        positions = up_to(size_of(q, 2))
        if n.has(9):
            positions = op.Unsqueeze(n[9], [1])
        elif past is not None:
            positions = positions + past
        cosine, sine = (op.Gather(table, positions, axis=0) for table in (n[7], n[8]))
        q, k = (rotated(x, cosine, sine, bool(n.get("rotary_interleaved", 0))) for x in (q, k))
    if past is not None:
        k, v = op.Concat(n[3], k, axis=2), op.Concat(n[4], v, axis=2)
    biases = [argument(n, 10)]
    if n.get("causal", 1):
        biases.append(hidden(causal(q, past, size_of(k, 2), n.get("local_window_size", -1)), q))
    sink = argument(n, 11)
    if sink is None and n.get("smooth_softmax", -1) == 1:
        sink = op.operand(np.zeros(1, q.element.dtype))
    out, scores, weights = attend(q, k, v, n.get("scale") or None, biases, sink, n.get("softcap", 0.0))
    result = merged(out)
    if past is not None and n.has(5):
        whole_keys = op.Equal(n[5].cast(ElementType.INT64) + np.asarray(1, np.int64), size_of(k, 2))
        known = op.Where(whole_keys, op.operand(1.0, result), op.operand(float("nan"), result))
        result = result * op.Unsqueeze(known, [1, 2])
    return [result, k, v, weights if n.get("qk_output", 0) == 2 else scores]


FORMS: dict[str, Callable[[Call], Expr | list[Expr | None]]] = {
    "com.microsoft.Attention": _attention,
    "com.microsoft.GroupQueryAttention": _grouped_query,
    "com.microsoft.MultiHeadAttention": _multi_head,
    "com.microsoft.RotaryEmbedding": _rotary,
}
"""By operator: what it is in simpler operators."""
