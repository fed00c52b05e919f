"""A layer's tensors as ONNX Runtime's QMoE kernel wants them: codes keep their values, only where they lie changes.

The kernel knows plain activations without fc3, and swiglu with alternating rows of gate and linear part. Other gated
forms are brought into that one. Rows of 4-bit codes get scales by block, for which the kernel is several times
faster, and narrower codes become 4-bit ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isinf, isnan
from typing import Any

import numpy as np

from qmoe_node.layer import Layer, Projection
from qmoe_node.packing import E2M1, codes_of, default_zero_point, pack, unpack, zero_points
from runtime.tensors import Tensor

PLAIN = ("relu", "silu", "identity")
"""The activations without a gate that the kernel computes; its gelu has no correct digit left below -5."""
BLOCK_SIZES = (64, 32, 128, 16)
"""The kernel's block sizes, the best first: as fast as any, and fewer scales."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a projection."""

    projection: Projection
    rows: slice = field(default_factory=lambda: slice(None))


@dataclass(frozen=True, slots=True)
class Form:
    """What the kernel computes instead: its attributes, and gate and linear part where fc1 is put together anew."""

    attributes: dict[str, Any]
    pair: tuple[Part, Part] | None = None


@dataclass(slots=True)
class KernelLayer:
    """The kernel's attributes and its tensors by port, None where the node's own is right as it is.

    `variable` are ports whose tensors must not reach ONNX Runtime as constants, for the result to be exact.
    """

    attributes: dict[str, Any]
    exact: bool
    tensors: dict[str, Tensor | None] = field(default_factory=dict)
    variable: set[str] = field(default_factory=set)


def kernel_form(layer: Layer) -> Form | None:
    """The form in which the kernel computes the layer; None if there is none."""
    settings = layer.settings
    if settings.quant_type == "fp8":
        return None
    name, fc1, fc3 = settings.activation_type, layer.fc1, layer.fc3
    if name == "swiglu":
        limited = not (isinf(settings.swiglu_limit) or isnan(settings.swiglu_limit))
        if limited and settings.swiglu_limit_after_activation:
            return None
        attributes = _swiglu(settings.activation_alpha, settings.activation_beta)
        if limited:
            attributes["swiglu_limit"] = settings.swiglu_limit
        if settings.swiglu_fusion == 1:
            return Form(attributes)
        if fc3 is not None:
            return Form(attributes, (Part(fc1), Part(fc3)))
        return Form(attributes, (Part(fc1, slice(layer.inter)), Part(fc1, slice(layer.inter, None))))
    if fc3 is None:
        return Form({"activation_type": name}) if name in PLAIN else None
    if name == "silu":
        return Form(_swiglu(1.0), (Part(fc1), Part(fc3)))
    return None


def _swiglu(alpha: float, beta: float = 0.0) -> dict[str, Any]:
    return {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": alpha, "activation_beta": beta}


def relayout(layer: Layer, form: Form, arrays: Arrays, exact: bool) -> KernelLayer:
    """The kernel's form of constant tensors `arrays`; where not `exact`, for kernels that round activations."""
    floating = layer.settings.quant_type != "int"
    wide = floating or any(projection.bits == 8 for projection in layer.projections)
    bits = 8 if wide else 4
    block_size = _block_size(layer, by_block=floating or not wide or not exact)
    attributes: dict[str, Any] = form.attributes | {"expert_weight_bits": bits}
    if block_size:
        attributes["block_size"] = block_size
    rounding = not exact and bool(block_size) and not (layer.hidden % block_size or layer.inter % block_size)
    if rounding and bits == 4:
        attributes["accuracy_level"] = 4
    result = KernelLayer(attributes, not rounding)
    explicit = any(projection.port("zero_points") in arrays for projection in layer.projections)
    parts: dict[str, tuple[Part, ...]] = {"fc1": form.pair or (Part(layer.fc1),), "fc2": (Part(layer.fc2),)}
    for fc, pieces in parts.items():
        result.tensors |= _converted(layer, fc, pieces, arrays, bits, block_size, explicit)
        if exact and bits == 8 and block_size:
            # With constant scales the kernel rounds activations.
            result.variable.add(f"{fc}_scales")
    for port in result.variable:
        if result.tensors[port] is None:
            result.tensors[port] = Tensor.from_array(arrays[port])
    return result


def _converted(
    layer: Layer, fc: str, pieces: tuple[Part, ...], arrays: Arrays, bits: int, block_size: int, explicit: bool
) -> dict[str, Tensor | None]:
    """The tensors of one of the kernel's projections by port, with zero points if `explicit`."""
    tensors: dict[str, Tensor | None] = {}
    projection = pieces[0].projection
    unchanged = len(pieces) == 1 and projection.layout == "rows" and projection.bits == bits
    tensors[f"{fc}_experts_weights"] = None if unchanged else _codes(layer, pieces, arrays, bits)
    scales = _alternating([_scales(piece, arrays, block_size) for piece in pieces])
    tensors[f"{fc}_scales"] = _as_it_was(arrays.get(f"{fc}_scales"), scales)
    if explicit:
        zeros = _alternating([_zero_points(piece, arrays, bits, block_size) for piece in pieces])
        packed = pack(zeros if block_size else zeros[..., 0], bits)
        tensors[f"{fc}_zero_points"] = _as_it_was(arrays.get(f"{fc}_zero_points"), packed)
    if any(piece.projection.port("experts_bias") in arrays for piece in pieces):
        bias = _alternating([_bias(layer, piece, arrays) for piece in pieces])
        tensors[f"{fc}_experts_bias"] = _as_it_was(arrays.get(f"{fc}_experts_bias"), bias)
    return tensors


@dataclass(frozen=True, slots=True)
class Blocks:
    """One projection as blocks of 4 or 8 bit codes: `codes` uint8 [E, rows, blocks, bytes], `scales` float32
    [E, rows, blocks], `zeros` packed along the blocks or None, `bias` float32 [E, rows] or None."""

    bits: int
    block_size: int
    columns: int
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None
    bias: np.ndarray | None


def blocks_of(layer: Layer, projection: Projection, arrays: Arrays) -> Blocks:
    """One projection of a layer as blocks; a short last block is filled up with zeros, which stand for nothing."""
    bits = 8 if layer.settings.quant_type != "int" or projection.bits == 8 else 4
    own = projection.block_size if projection.blocks > 1 else 0
    sizes = [size for size in BLOCK_SIZES if not (projection.columns % size or own % size)]
    block_size = sizes[0] if sizes else own or BLOCK_SIZES[-1]
    name = projection.name
    tensors = _converted(layer, name, (Part(projection),), arrays, bits, block_size, f"{name}_zero_points" in arrays)
    found = {port: arrays[port] if tensor is None else tensor.array() for port, tensor in tensors.items()}
    codes = found[f"{name}_experts_weights"]
    blocks = -(-projection.columns // block_size)
    missing = blocks * block_size * bits // 8 - codes.shape[-1]
    if missing:
        codes = np.pad(codes, ((0, 0), (0, 0), (0, missing)))
    codes = codes.reshape(layer.experts, projection.rows, blocks, block_size * bits // 8)
    zeros, bias = found.get(f"{name}_zero_points"), found.get(f"{name}_experts_bias")
    return Blocks(bits, block_size, projection.columns, codes, found[f"{name}_scales"], zeros, bias)


def halved(blocks: Blocks) -> Blocks:
    """8-bit blocks as 4-bit ones of a matrix twice as wide, for tokens that are put beside themselves.

    A code is 16 times its high half plus its low half; so the first columns hold the high halves, with scales that are
    16 times as large, and the second ones the low halves. The kernel is exact for 4 bits, and fast.
    """
    experts, rows, count, size = blocks.codes.shape
    columns = blocks.codes.reshape(experts, rows, count * size)
    codes = np.empty((experts, rows, columns.shape[-1]), np.uint8)
    for own, wanted in zip(columns, codes, strict=True):
        wanted[:, : columns.shape[-1] // 2] = pack(own >> 4, 4)
        wanted[:, columns.shape[-1] // 2 :] = pack(own & 15, 4)
    middle = np.uint8(default_zero_point(8))
    zeros = np.broadcast_to(middle, blocks.scales.shape) if blocks.zeros is None else blocks.zeros
    return Blocks(
        4,
        blocks.block_size,
        2 * blocks.columns,
        codes.reshape(experts, rows, 2 * count, size // 2),
        np.concatenate((blocks.scales * np.float32(16), blocks.scales), axis=-1),
        pack(np.concatenate((zeros >> 4, zeros & 15), axis=-1), 4),
        blocks.bias,
    )


def _block_size(layer: Layer, by_block: bool) -> int:
    """The columns in a block: those of the layer's own blocks where they cannot be cut; 0 for scales by row."""
    own = layer.settings.block_size
    if layer.settings.quant_type != "int":
        return layer.fc1.block_size
    blockwise = own > 0 and (layer.fc1.blocks > 1 or layer.fc2.blocks > 1 or layer.fc1.block_size == own)
    if not by_block:
        return own if blockwise else 0
    columns: tuple[int, ...] = (layer.hidden, layer.inter)
    if blockwise:
        if own in BLOCK_SIZES and not any(count % own for count in columns):
            return own
        columns = (*columns, own)
    for size in BLOCK_SIZES:
        if not any(count % size for count in columns):
            return size
    return own if blockwise else 0


def _codes(layer: Layer, pieces: tuple[Part, ...], arrays: Arrays, bits: int) -> Tensor:
    """Packed codes, one expert after the other."""
    rows = sum(_row_count(piece) for piece in pieces)
    columns = pieces[0].projection.columns
    packed = np.empty((layer.experts, rows, columns * bits // 8), np.uint8)
    for expert in range(layer.experts):
        for index, piece in enumerate(pieces):
            packed[expert, index :: len(pieces)] = _part_codes(piece, arrays, expert, bits)
    return Tensor.from_array(packed)


def _part_codes(piece: Part, arrays: Arrays, expert: int, bits: int) -> np.ndarray:
    projection = piece.projection
    packed = arrays[projection.port("experts_weights")][expert]
    if projection.layout in ("float4", "columns"):
        if projection.layout == "columns":
            codes = unpack(packed.reshape(projection.columns, -1), 4, projection.rows).T
        else:
            codes = unpack(packed.reshape(projection.rows, -1), 4, projection.columns)
        # Twice an FP4 value is an integer.
        doubled: np.ndarray = (2 * E2M1 + default_zero_point(8)).astype(np.uint8)[codes]
        return doubled[piece.rows]
    if projection.layout == "rows" and projection.bits == bits:
        return np.asarray(packed[piece.rows])
    codes = codes_of(projection, packed)[piece.rows]
    return pack(codes + _shift(projection, bits), bits)


def _shift(projection: Projection, bits: int) -> np.uint8:
    """What is added to codes and zero points that become wider."""
    return np.uint8(default_zero_point(bits) - default_zero_point(projection.bits))


def _scales(piece: Part, arrays: Arrays, block_size: int) -> np.ndarray:
    """float32 [E, rows, blocks], or [E, rows] without blocks."""
    projection = piece.projection
    own = arrays[projection.port("scales")]
    changes = projection.layout in ("float4", "columns")
    scales = own.reshape(*own.shape[:2], projection.blocks)[:, piece.rows].astype(np.float32, copy=changes)
    if changes:
        global_scale = arrays.get(projection.port("global_scale"))
        if global_scale is not None:
            scales *= global_scale[:, None, None]
        scales *= np.float32(0.5)
    return _by_block(scales, projection, block_size) if block_size else scales[..., 0]


def _zero_points(piece: Part, arrays: Arrays, bits: int, block_size: int) -> np.ndarray:
    """Codes, uint8 [E, rows, blocks]."""
    projection = piece.projection
    packed = arrays.get(projection.port("zero_points"))
    experts = len(arrays[projection.port("scales")])
    if packed is None:
        zeros = np.full((experts, projection.rows, projection.blocks), default_zero_point(projection.bits), np.uint8)
    else:
        zeros = zero_points(packed, projection.bits, projection.rows, projection.blocks)
    zeros = zeros[:, piece.rows] + _shift(projection, bits)
    return _by_block(zeros, projection, block_size) if block_size else zeros


def _by_block(values: np.ndarray, projection: Projection, block_size: int) -> np.ndarray:
    """Values of the projection's blocks, repeated for blocks of `block_size`, which divides them."""
    blocks = -(-projection.columns // block_size)
    if projection.blocks == blocks:
        return values
    times = blocks if projection.blocks == 1 else projection.block_size // block_size
    return np.repeat(values, times, axis=-1)[..., :blocks]


def _bias(layer: Layer, piece: Part, arrays: Arrays) -> np.ndarray:
    """float32 [E, rows], zeros where there is none."""
    bias = arrays.get(piece.projection.port("experts_bias"))
    if bias is None:
        return np.zeros((layer.experts, _row_count(piece)), np.float32)
    return np.asarray(bias[:, piece.rows].astype(np.float32))


def _row_count(piece: Part) -> int:
    return len(range(*piece.rows.indices(piece.projection.rows)))


def _alternating(parts: list[np.ndarray]) -> np.ndarray:
    """[E, rows, ...] of one part, or rows of two in turn."""
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    return np.stack((first, second), axis=2).reshape(len(first), -1, *first.shape[2:])


def _as_it_was(own: np.ndarray | None, wanted: np.ndarray) -> Tensor | None:
    """The tensor that is wanted, None if it is the one that there is."""
    if own is not None and own.dtype == wanted.dtype and own.shape == wanted.shape:
        same = own.ctypes.data == wanted.ctypes.data and own.strides == wanted.strides
        if same or np.array_equal(own, wanted):
            return None
    return Tensor.from_array(wanted)
