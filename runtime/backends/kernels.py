"""Kernels of our own for standard operators: those that run subgraphs, those around optional values, and a few more.

`onnx.reference` runs subgraphs with an evaluator of its own, which knows none of our kernels, leaves out scan axes and
directions, makes a sequence of an optional value, has no Scatter, rounds Erf to float32, and pads by no negative
widths. Formulas: the ONNX operator specification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import erf, pi, sqrt
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from runtime.backends.control import attribute_values
from runtime.errors import Finding, GraphError
from runtime.types import ElementType

if TYPE_CHECKING:
    import onnx_ir as ir

    from runtime.backends.control import Control
    from runtime.backends.numpy import Body, Kernel, Values

MakeBody: TypeAlias = "Callable[[ir.Graph], Body]"


def make_if(node: ir.Node, body: MakeBody, opsets: Mapping[str, int]) -> Kernel:
    """If: one of two subgraphs."""
    branches = {name: body(node.attributes[name].value) for name in ("then_branch", "else_branch")}

    def kernel(inputs: list[Any], values: Values, control: Control) -> Sequence[Any]:
        return branches["then_branch" if _truth(inputs[0]) else "else_branch"]([], values, control)

    return kernel


def make_loop(node: ir.Node, body: MakeBody, opsets: Mapping[str, int]) -> Kernel:
    """Loop: repeats its body until the trip count is reached or the condition fails; stacks the scan outputs."""
    run = body(node.attributes["body"].value)

    def kernel(inputs: list[Any], values: Values, control: Control) -> Sequence[Any]:
        limit, condition, *carried = [*inputs, None, None][: max(2, len(inputs))]
        scanned: list[list[Any]] = [[] for _ in run.outputs[1 + len(carried) :]]
        alive = condition is None or _truth(condition)
        for iteration in count():
            if not alive or (limit is not None and iteration >= int(limit.reshape(()))):
                break
            outputs = run([np.array(iteration, np.int64), np.array(True), *carried], values, control)
            alive = _truth(outputs[0])
            carried = outputs[1 : 1 + len(carried)]
            for collected, output in zip(scanned, outputs[1 + len(carried) :], strict=True):
                collected.append(output)
        types = run.outputs[1 + len(carried) :]
        return [*carried, *(_stack(collected, value, 0) for collected, value in zip(scanned, types, strict=True))]

    return kernel


def make_scan(node: ir.Node, body: MakeBody, opsets: Mapping[str, int]) -> Kernel:
    """Scan: runs its body along an axis of its scan inputs. Versions from 9; the batched form of 8 is refused."""
    if opsets.get("", 9) < 9:
        raise GraphError(
            Finding(
                "There is no NumPy kernel for Scan with a batch axis, which is that of operator set 8.",
                node.metadata_props.get("qmoe.node") or node.name or "",
                remedy="Raise the graph's operator set to 9 or more, or run it on the onnxruntime backend.",
                code="no-kernel",
            )
        )
    run = body(node.attributes["body"].value)
    attributes = attribute_values(node)
    scan_count = attributes["num_scan_inputs"]
    state_count = len(node.inputs) - scan_count
    out_values = run.outputs[state_count:]

    def setting(name: str, size: int) -> list[int]:
        return list(attributes.get(name) or [0] * size)

    in_axes, in_reversed = setting("scan_input_axes", scan_count), setting("scan_input_directions", scan_count)
    out_axes = setting("scan_output_axes", len(out_values))
    out_reversed = setting("scan_output_directions", len(out_values))

    def kernel(inputs: list[Any], values: Values, control: Control) -> Sequence[Any]:
        state, scans = inputs[:state_count], inputs[state_count:]
        slices = [
            np.flip(np.moveaxis(array, axis, 0), 0) if backwards else np.moveaxis(array, axis, 0)
            for array, axis, backwards in zip(scans, in_axes, in_reversed, strict=True)
        ]
        if len({len(array) for array in slices}) != 1:
            raise ValueError(f"scan inputs have different lengths: {[len(array) for array in slices]}")
        collected: list[list[Any]] = [[] for _ in out_values]
        for index in range(len(slices[0])):
            outputs = run([*state, *(array[index] for array in slices)], values, control)
            state = outputs[:state_count]
            for items, output in zip(collected, outputs[state_count:], strict=True):
                items.append(output)
        return [
            *state,
            *(
                _stack(items[::-1] if backwards else items, value, axis)
                for items, value, axis, backwards in zip(collected, out_values, out_axes, out_reversed, strict=True)
            ),
        ]

    return kernel


def make_sequence_map(node: ir.Node, body: MakeBody, opsets: Mapping[str, int]) -> Kernel:
    """SequenceMap: runs its body on every element of a sequence; other sequences go along, tensors stay."""
    run = body(node.attributes["body"].value)

    def kernel(inputs: list[Any], values: Values, control: Control) -> Sequence[Any]:
        results: list[list[Any]] = [[] for _ in run.outputs]
        for index in range(len(inputs[0])):
            formal = [value[index] if isinstance(value, list) else value for value in inputs]
            for result, output in zip(results, run(formal, values, control), strict=True):
                result.append(output)
        return results

    return kernel


CONTROL_FLOW: dict[str, Callable[[ir.Node, MakeBody, Mapping[str, int]], Kernel]] = {
    "If": make_if,
    "Loop": make_loop,
    "Scan": make_scan,
    "SequenceMap": make_sequence_map,
}


def _identity(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    return (inputs[0],)


def _optional(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    return (inputs[0] if inputs else None,)


def _optional_get_element(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    if inputs[0] is None:
        raise ValueError("the optional value is absent")
    return (inputs[0],)


def _optional_has_element(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    return (np.array(bool(inputs) and inputs[0] is not None),)


def _scatter(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    """Scatter, the older name of ScatterElements."""
    data, indices, updates = inputs
    axis = attributes.get("axis", 0)
    position = list(np.indices(indices.shape))
    position[axis] = np.where(indices < 0, indices + data.shape[axis], indices)
    result = data.copy()
    result[tuple(position)] = updates
    return (result,)


def _erf(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    """Erf in the precision of its input; `onnx.reference` has that of float32."""
    (x,) = inputs
    return (np.asarray(_erf_of(x.astype(np.float64))).astype(x.dtype),)


_erf_of = np.vectorize(erf, otypes=[np.float64])


def _gather_elements(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    """GatherElements; that of `onnx.reference` refuses negative axes, and indices with fewer rows than the data."""
    data, indices = inputs
    axis = attributes.get("axis", 0) % data.ndim
    rows = tuple(slice(None) if d == axis else slice(size) for d, size in enumerate(indices.shape))
    places = np.where(indices < 0, indices + data.shape[axis], indices)
    return (np.take_along_axis(data[rows], places, axis),)


def _gelu(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    """Gelu in the precision of its input, where `onnx.reference` has that of float32."""
    (given,) = inputs
    x = given.astype(np.float64)
    if attributes.get("approximate", "none") == "tanh":
        y = 0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
    else:
        y = 0.5 * x * (1 + _erf_of(x * sqrt(0.5)))
    return (np.asarray(y).astype(given.dtype),)


def _log_softmax(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    """LogSoftmax since version 13; that of `onnx.reference` is infinite where a probability is too small."""
    (x,) = inputs
    axis = attributes.get("axis", -1)
    shifted = x - x.max(axis=axis, keepdims=True, initial=-np.inf)
    return ((shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))).astype(x.dtype),)


def _normalized(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x - mean) / sqrt(variance + epsilon), the mean, and the reciprocal of the root; float32 or wider."""
    wide = x.astype(np.result_type(x.dtype if x.dtype.kind == "f" else np.float32, np.float32))
    mean = wide.mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(np.square(wide - mean).mean(axis=axes, keepdims=True) + wide.dtype.type(epsilon))
    return (wide - mean) * inverse, mean, inverse


def _layer_normalization(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    """LayerNormalization in the precision of its input, float32 at least; `onnx.reference` takes no doubles."""
    x, scale, bias = [*inputs, None][:3]
    axes = tuple(range(attributes.get("axis", -1) % x.ndim, x.ndim))
    normal, mean, inverse = _normalized(x, axes, attributes.get("epsilon", 1e-5))
    y = normal.astype(x.dtype) * scale
    return y if bias is None else y + bias, mean.astype(np.float32), inverse.astype(np.float32)


def _mean_variance_normalization(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    """MeanVarianceNormalization in the precision of its input, float32 at least."""
    (x,) = inputs
    axes = tuple(attributes.get("axes", (0, 2, 3)))
    wide = x.astype(np.result_type(x.dtype if x.dtype.kind == "f" else np.float32, np.float32))
    mean = wide.mean(axis=axes, keepdims=True)
    deviation = np.sqrt((wide * wide).mean(axis=axes, keepdims=True) - mean * mean)
    return (((wide - mean) / (deviation + 1e-9)).astype(x.dtype),)


@dataclass(frozen=True, slots=True)
class _Window:
    """How the window of a convolution moves: per dimension, and pads at both ends."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begins: list[int]
    ends: list[int]

    @classmethod
    def of(cls, attributes: dict[str, Any], kernel: Sequence[int], sizes: Sequence[int]) -> _Window:
        rank = len(kernel)
        strides = list(attributes.get("strides") or [1] * rank)
        dilations = list(attributes.get("dilations") or [1] * rank)
        mode = attributes.get("auto_pad", "NOTSET")
        pads = list(attributes.get("pads") or [0] * 2 * rank) if mode == "NOTSET" else [0] * 2 * rank
        for i, size in enumerate(sizes):
            if mode.startswith("SAME"):
                total = max(0, (-(-size // strides[i]) - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - size)
                pads[i] = total // 2 if mode == "SAME_UPPER" else total - total // 2
                pads[rank + i] = total - pads[i]
        return cls(list(kernel), strides, dilations, pads[:rank], pads[rank:])

    def slices(self, offset: Sequence[int], counts: Sequence[int]) -> tuple[slice, ...]:
        """Where `counts` steps of the window's element at `offset` lie, in the padded tensor."""
        starts = [at * dilation for at, dilation in zip(offset, self.dilations, strict=True)]
        return tuple(
            slice(start, start + stride * (count - 1) + 1, stride)
            for start, stride, count in zip(starts, self.strides, counts, strict=True)
        )


def _wide(dtype: np.dtype) -> np.dtype:
    """The type in which numbers are added up: float32 for narrower floats."""
    return np.dtype(np.float32) if dtype.kind != "i" and dtype.itemsize < 4 and dtype.kind != "u" else dtype


def _convolution(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    """Conv, one product for each element of the window."""
    x, weights, bias = [*inputs, None][:3]
    group, (batch, channels), sizes = attributes.get("group", 1), x.shape[:2], x.shape[2:]
    window = _Window.of(attributes, weights.shape[2:], sizes)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(window.begins, window.ends, strict=True)])
    extents = [d * (k - 1) + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
    room = zip(padded.shape[2:], extents, window.strides, strict=True)
    counts = [(size - extent) // stride + 1 for size, extent, stride in room]
    made = weights.shape[0] // group
    kernels = weights.reshape(group, made, channels // group, *window.kernel)
    total = np.zeros((batch, group, made, *counts), _wide(x.dtype))
    for offset in np.ndindex(*window.kernel):
        part = padded[(slice(None), slice(None), *window.slices(offset, counts))]
        part = part.reshape(batch, group, channels // group, *counts)
        total += np.einsum("ngc...,gmc->ngm...", part, kernels[(..., *offset)])
    y = total.reshape(batch, -1, *counts)
    return ((y if bias is None else y + bias.reshape(-1, *[1] * len(sizes))).astype(x.dtype),)


def _transposed_convolution(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    """ConvTranspose, one product for each element of the window; `onnx.reference` fails on groups."""
    x, weights, bias = [*inputs, None][:3]
    group, (batch, channels), sizes = attributes.get("group", 1), x.shape[:2], x.shape[2:]
    rank = len(sizes)
    plain = {name: value for name, value in attributes.items() if name != "auto_pad"}
    window = _Window.of(plain, weights.shape[2:], sizes)
    extra = list(attributes.get("output_padding") or [0] * rank)
    mode, wanted = attributes.get("auto_pad", "NOTSET"), list(attributes.get("output_shape") or [])[-rank:]
    if mode.startswith("SAME") and not wanted:
        wanted = [size * stride for size, stride in zip(sizes, window.strides, strict=True)]
    full = [
        stride * (size - 1) + more + dilation * (kernel - 1) + 1
        for size, stride, more, dilation, kernel in zip(
            sizes, window.strides, extra, window.dilations, window.kernel, strict=True
        )
    ]
    begins, ends = window.begins, window.ends
    if wanted:
        totals = [size - want for size, want in zip(full, wanted, strict=True)]
        begins = [total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in totals]
        ends = [total - begin for total, begin in zip(totals, begins, strict=True)]
    made = weights.shape[1]
    kernels = weights.reshape(group, channels // group, made, *window.kernel)
    given = x.reshape(batch, group, channels // group, *sizes)
    total = np.zeros((batch, group * made, *full), _wide(x.dtype))
    for offset in np.ndindex(*window.kernel):
        part = np.einsum("ngc...,gcm->ngm...", given, kernels[(..., *offset)])
        total[(slice(None), slice(None), *window.slices(offset, sizes))] += part.reshape(batch, -1, *sizes)
    pads = np.array([0, 0, *(-b for b in begins), 0, 0, *(-e for e in ends)])
    (y,) = _pad([total, pads], {})
    return ((y if bias is None else y + bias.reshape(-1, *[1] * rank)).astype(x.dtype),)


def _max_pool(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    """MaxPool with the places of the largest elements; those of `onnx.reference` are wrong beyond one channel."""
    (x,) = inputs
    rank = x.ndim - 2
    kernel = attributes["kernel_shape"]
    strides = attributes.get("strides") or [1] * rank
    dilations = attributes.get("dilations") or [1] * rank
    mode, ceil = attributes.get("auto_pad", "NOTSET"), attributes.get("ceil_mode", 0)
    pads = list(attributes.get("pads") or [0] * 2 * rank) if mode == "NOTSET" else [0] * 2 * rank
    counts = []
    for i, size in enumerate(x.shape[2:]):
        extent = dilations[i] * (kernel[i] - 1) + 1
        if mode.startswith("SAME"):
            counts.append(-(-size // strides[i]))
            total = max(0, (counts[i] - 1) * strides[i] + extent - size)
            pads[i] = total // 2 if mode == "SAME_UPPER" else total - total // 2
            pads[rank + i] = total - pads[i]
            continue
        room = size + pads[i] + pads[rank + i] - extent
        count = (-(-room // strides[i]) if ceil else room // strides[i]) + 1
        if ceil and (count - 1) * strides[i] >= size + pads[i]:
            count -= 1  # a window that would begin in the padding at the end
        counts.append(count)
    lowest = -np.inf if x.dtype.kind == "f" or x.dtype.isbuiltin != 1 else np.iinfo(x.dtype).min
    y = np.full((*x.shape[:2], *counts), lowest, x.dtype)
    places = np.zeros(y.shape, np.int64)
    flat = np.arange(x.size).reshape(x.shape)
    if attributes.get("storage_order", 0):
        order = np.arange(int(np.prod(x.shape[2:]))).reshape(x.shape[2:], order="F")
        flat = flat - flat % order.size + order
    for offset in np.ndindex(*kernel):
        # The output's elements whose window has an element of the input, and not of the padding, at this offset.
        inside, taken = [], []
        for i, size in enumerate(x.shape[2:]):
            positions = np.arange(counts[i]) * strides[i] + offset[i] * dilations[i] - pads[i]
            valid = np.flatnonzero((positions >= 0) & (positions < size))
            inside.append(valid)
            taken.append(positions[valid])
        here: Any = (slice(None), slice(None), *np.ix_(*inside))
        there: Any = (slice(None), slice(None), *np.ix_(*taken))
        better = x[there] > y[here]
        better |= np.isnan(x[there]) if x.dtype.kind == "f" else False
        y[here] = np.where(better, x[there], y[here])
        places[here] = np.where(better, flat[there], places[here])
    return y, places


def _mean(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    """Mean; that of `onnx.reference` fails where the first input is not the largest."""
    total = inputs[0]
    for other in inputs[1:]:
        total = total + other
    return (np.asarray(total / np.asarray(len(inputs), total.dtype)).astype(total.dtype),)


def _softsign(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    """Softsign; that of `onnx.reference` fails on scalars."""
    (x,) = inputs
    return (np.asarray(x / (1 + np.abs(x))).astype(x.dtype),)


def _pad(inputs: list[Any], attributes: dict[str, Any]) -> tuple[Any, ...]:
    """Pad, which also cuts off where pads are negative."""
    x, pads, value, axes = [*inputs, None, None, None][:4]
    pads = np.asarray(attributes.get("pads") if pads is None else pads).reshape(2, -1)
    chosen = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
    widths = [(0, 0)] * x.ndim
    for axis, begin, end in zip(chosen, *pads.tolist(), strict=True):
        widths[axis] = (begin, end)
    cut = tuple(slice(max(0, -b), size - max(0, -e)) for (b, e), size in zip(widths, x.shape, strict=True))
    added = [(max(0, begin), max(0, end)) for begin, end in widths]
    mode = attributes.get("mode", "constant")
    if mode != "constant":
        return (np.pad(x[cut], added, mode=mode),)
    fill = attributes.get("value", 0) if value is None else value
    return (np.pad(x[cut], added, constant_values=np.asarray(fill).reshape(()).astype(x.dtype)),)


PLAIN: dict[str, Callable[[list[Any], dict[str, Any]], tuple[Any, ...]]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Erf": _erf,
    "GatherElements": _gather_elements,
    "Gelu": _gelu,
    "Identity": _identity,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _log_softmax,
    "MaxPool": _max_pool,
    "Mean": _mean,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "Optional": _optional,
    "OptionalGetElement": _optional_get_element,
    "OptionalHasElement": _optional_has_element,
    "Pad": _pad,
    "Scatter": _scatter,
    "Softsign": _softsign,
}
"""By type name: kernels on positional inputs and attributes. An absent optional value is None."""

SINCE = {"LogSoftmax": 13}
"""The first version of the standard operators that a kernel is right for, where it is not right for all."""


def _truth(condition: Any) -> bool:
    return bool(np.asarray(condition).reshape(()))


def _stack(items: Sequence[Any], value: ir.Value, axis: int) -> np.ndarray:
    """The iterations' results along a new axis; without any, of the type that the body declares."""
    if items:
        return np.stack(items, axis if axis >= 0 else axis + items[0].ndim + 1)
    element = ElementType(value.dtype.value) if value.dtype is not None else ElementType.FLOAT
    shape = [size if isinstance(size, int) else 0 for size in (value.shape or ())]
    shape.insert(axis if axis >= 0 else axis + len(shape) + 1, 0)
    return np.empty(shape, element.dtype)
