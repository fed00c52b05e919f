"""The codes in a QMoE node's tensors, as one can look at them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qmoe_node.attributes import PROJECTIONS, read_settings
from qmoe_node.packing import E2M1, deinterleave, unpack
from runtime.tensor_views import TensorView
from runtime.types import ElementType, TensorType


def tensor_views(port: str, type_: TensorType, attributes: Mapping[str, Any]) -> list[TensorView]:
    """Integer codes and zero points of 2, 3 and 4 bits; FP4 codes, and the numbers that they stand for."""
    fc, _, what = port.partition("_")
    shape = type_.shape
    if fc not in PROJECTIONS or what not in ("experts_weights", "zero_points"):
        return []
    if type_.element is not ElementType.UINT8 or not shape:
        return []
    length = shape[-1]
    if not isinstance(length, int):
        return []
    settings = read_settings(attributes, lambda *told, **more: None)
    if settings.quant_type != "int":
        if what == "zero_points" or settings.quant_type == "fp8":
            return []
        codes = _rows("FP4 codes", 4, length)
        return [codes, TensorView("FP4 values", codes.count, 4, codes.unpack, values=tuple(E2M1.tolist()))]
    bits = settings.bits[PROJECTIONS.index(fc)]
    if bits == 8:
        return []
    if what == "zero_points":
        return [_rows(f"{bits}-bit zero points", bits, length)]
    if settings.weights_prepacked == 1:
        return _interleaved(bits, length, shape[-2] if len(shape) > 1 else None)
    return [_rows(f"{bits}-bit codes", bits, length)]


def _rows(title: str, bits: int, length: int) -> TensorView:
    count = length * 8 // bits

    def codes(packed: np.ndarray) -> np.ndarray:
        return unpack(packed, bits, count)

    return TensorView(title, count, bits, codes)


def _interleaved(bits: int, length: int, rows: object) -> list[TensorView]:
    """The prepacked layout, put in order; nothing if the shape cannot be one of it."""
    columns, group = length * 8 // bits, 16 // bits
    if bits not in (2, 4) or columns % 64 or not isinstance(rows, int) or rows % group:
        return []

    def codes(packed: np.ndarray) -> np.ndarray:
        return deinterleave(packed, bits, columns)

    return [TensorView(f"{bits}-bit codes in order", columns, bits, codes, rows_together=group)]
