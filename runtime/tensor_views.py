"""Ways to look at a tensor: its elements, or the codes that its bytes hold; in slices, so that large ones stay where
they are.

A node type says what its inputs hold by `tensor_views`, a function of (port, TensorType, attributes) that returns
`TensorView`s; for ONNX Runtime's operators that pack codes, this module says it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.graph import Graph, PortRef
from runtime.summaries import BINS, Summary, summarize
from runtime.tensors import Tensor
from runtime.types import ElementType, TensorType

MOST_STRIPS = 256
"""A tensor of up to so many slices along its first axis gets a histogram for each."""


@dataclass(frozen=True, slots=True)
class TensorView:
    """Bytes as codes. `unpack` makes [..., count] uint8 codes of [..., bytes], of whole groups of `rows_together` rows.

    `values` are the numbers that the codes stand for, where these are not the codes themselves.
    """

    title: str
    count: int
    bits: int
    unpack: Callable[[np.ndarray], np.ndarray]
    rows_together: int = 1
    values: tuple[float, ...] | None = None

    def read(self, packed: np.ndarray) -> np.ndarray:
        """The codes, or the numbers that they stand for."""
        codes = self.unpack(packed)
        return codes if self.values is None else np.array(self.values, np.float32)[codes]


def packed_view(title: str, type_: TensorType, bits: int) -> list[TensorView]:
    """The view of codes of 2 or 4 bits that are packed along the last axis of bytes, lowest bits first."""
    if type_.element is not ElementType.UINT8 or bits not in (2, 4) or not type_.shape:
        return []
    per_byte = 8 // bits
    length = type_.shape[-1]
    assert isinstance(length, int)

    def unpack(packed: np.ndarray) -> np.ndarray:
        shifts = np.arange(per_byte, dtype=np.uint8) * bits
        codes: np.ndarray = packed[..., None] >> shifts & (1 << bits) - 1
        return codes.reshape(*packed.shape[:-1], packed.shape[-1] * per_byte)

    return [TensorView(title, length * per_byte, bits, unpack)]


def _of_bits(**ports: str) -> Callable[[str, TensorType, Mapping[str, Any]], list[TensorView]]:
    """The hook of an operator with an attribute `bits` of 4 by default; for each port, what its codes are."""

    def tensor_views(port: str, type_: TensorType, attributes: Mapping[str, Any]) -> list[TensorView]:
        bits = attributes.get("bits", 4)
        return packed_view(f"{bits}-bit {ports[port]}", type_, bits) if port in ports else []

    return tensor_views


_CONTRIBUTED = {
    "com.microsoft.MatMulNBits": _of_bits(B="codes", zero_points="zero points"),
    "com.microsoft.GatherBlockQuantized": _of_bits(data="codes", zero_points="zero points"),
}


def views_at(graph: Graph, target: PortRef, type_: TensorType) -> list[TensorView]:
    """How the tensor that is wired to an input can be looked at, beside its elements."""
    node_type = graph.node_type(target.node)
    if node_type is None:
        return []
    hook = node_type.tensor_views or _CONTRIBUTED.get(node_type.type_name())
    if hook is None:
        return []
    return list(hook(target.port, type_, node_type.to_attributes(graph.nodes[target.node].parameters)))


@dataclass(frozen=True, slots=True)
class TensorSource:
    """A tensor of a node: where it lies, and the port at which it is looked at (None if it is wired nowhere)."""

    owner: str
    parameter: str
    tensor: Tensor
    target: PortRef | None = None

    @property
    def is_initializer(self) -> bool:
        """Whether it is an Initializer's."""
        return self.parameter == "tensor"


def sources_of(graph: Graph, id: str) -> list[TensorSource]:
    """The tensors of a node: its own, then those that are wired to its inputs."""
    found = []
    for name, value in graph.nodes[id].parameters.items():
        if isinstance(value, Tensor):
            targets = graph.targets(PortRef(id, "value"))
            viewed = next((target for target in targets if views_at(graph, target, value.type)), None)
            found.append(TensorSource(id, name, value, viewed or next(iter(targets), None)))
    for port, source in graph.inputs_of(id).items():
        tensor = graph.nodes[source.node].parameters.get("tensor")
        if isinstance(tensor, Tensor):
            found.append(TensorSource(source.node, "tensor", tensor, PortRef(id, port)))
    return found


class Pages:
    """A tensor as tables: one of rows and columns for every index of the axes before the last two."""

    def __init__(self, tensor: Tensor, view: TensorView | None = None) -> None:
        """GraphError if the elements are not there."""
        self.view = view
        self.tensor = tensor
        self._array = tensor.array()
        shape = tensor.shape
        self.shape: tuple[int, ...] = (*shape[:-1], view.count) if view is not None and shape else shape

    @property
    def lead(self) -> tuple[int, ...]:
        """Lengths of the axes before the last two."""
        return self.shape[:-2]

    @property
    def rows(self) -> int:
        """Rows of each table; a vector is a column."""
        return self.shape[-2] if len(self.shape) > 1 else math.prod(self.shape)

    @property
    def columns(self) -> int:
        """Columns of each table."""
        return self.shape[-1] if len(self.shape) > 1 else 1

    def table(self, lead: tuple[int, ...], start: int, stop: int) -> np.ndarray:
        """Some rows of one table, [rows, columns]."""
        if len(self.shape) < 2:
            flat = self._array if self.view is None else self.view.read(self._array)
            return flat.reshape(-1, 1)[start:stop]
        if self.view is None:
            return self._array[lead][start:stop]
        together = self.view.rows_together
        first, last = start // together * together, -(-stop // together) * together
        return self.view.read(self._array[lead][first:last])[start - first : stop - first]

    def slices(self) -> int:
        """How many slices along the first axis are told apart; 1 if they are not."""
        return self.shape[0] if len(self.shape) > 1 and 2 <= self.shape[0] <= MOST_STRIPS else 1

    def analyse(self) -> Analysis:
        """Summary and histograms; goes through all elements."""
        return self._of_values() if self.view is None else self._of_codes(self.view)

    def _of_values(self) -> Analysis:
        summary = summarize(self._array)
        low, high = summary.minimum, summary.maximum
        strips: list[tuple[int, ...]] = []
        if self.slices() > 1 and low is not None and high is not None and low < high:
            edges = np.linspace(float(low), float(high), BINS + 1)
            if np.isfinite(edges).all() and (np.diff(edges) > 0).all():
                for index in range(self.slices()):
                    part = self._array[index].reshape(-1)
                    numbers = (np.abs(part) if part.dtype.kind == "c" else part).astype(np.float64)
                    counts, _ = np.histogram(numbers[np.isfinite(numbers)], edges)
                    strips.append(tuple(counts.tolist()))
        return Analysis(summary, summary.histogram, tuple(strips), low, high)

    def _of_codes(self, view: TensorView) -> Analysis:
        size = 1 << view.bits
        parts = [self._array] if len(self.shape) < 3 else self._array
        counts = np.array([np.bincount(view.unpack(part).reshape(-1), minlength=size) for part in parts])
        total = counts.sum(axis=0)
        values = np.arange(size, dtype=np.float64) if view.values is None else np.array(view.values)
        order = np.argsort(values, kind="stable")
        number = max(1, int(total.sum()))
        used = values[total > 0]
        mean = float((values * total).sum() / number)
        deviation = math.sqrt(float((total * (values - mean) ** 2).sum() / number))
        whole = view.values is None
        element = ElementType.UINT8 if whole else ElementType.FLOAT
        low, high = (float(used.min()), float(used.max())) if used.size else (0.0, 0.0)
        summary = Summary(
            element,
            self.shape,
            int(low) if whole else low,
            mean,
            int(high) if whole else high,
            deviation,
            zeros=float(total[values == 0].sum() / number),
        )
        strips = tuple(tuple(row.tolist()) for row in counts[:, order]) if 1 < self.slices() == len(counts) else ()
        return Analysis(summary, tuple(total[order].tolist()), strips, float(values.min()), float(values.max()), True)


@dataclass(frozen=True, slots=True)
class Analysis:
    """What all elements tell: a summary, a histogram from `low` to `high`, and one for each slice of the first axis.

    With `by_code` there is a bar for every code, and `low` and `high` are the values of the outer ones.
    """

    summary: Summary
    histogram: tuple[int, ...] = ()
    strips: tuple[tuple[int, ...], ...] = ()
    low: float | int | None = None
    high: float | int | None = None
    by_code: bool = False
