"""QMoE in standard ONNX operators: routing, and a loop over the chosen experts.

Only one expert's weights are ever held as float32. Codes become numbers by looking up each byte in a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from qmoe_node.checks import INPUTS, examine
from qmoe_node.layer import Layer, Projection
from qmoe_node.packing import E2M1, default_zero_point, piece_positions, unpack
from qmoe_node.standard import activate, as_float, cast_back, choose, mixing_weights
from runtime.errors import GraphError, Severity
from runtime.tensors import Tensor
from runtime.types import ElementType, TensorType

if TYPE_CHECKING:
    import onnx_ir as ir

    from runtime.lowering import Site
    from runtime.tape import Tape

DOMAIN = "qmoe.portable"
"""The domain of the functions that `expand` writes."""

LOWEST_OPSET = 13
"""Loops over values of all types that are needed, and sums over axes that are inputs."""
CAST_OPSETS = {ElementType.FLOAT8E4M3FN: 19, ElementType.FLOAT8E8M0: 24}
"""Since when there is a Cast from these types; it is the only operator that reads them."""
WIDER = {ElementType.FLOAT8E4M3FN: ElementType.FLOAT16, ElementType.FLOAT8E8M0: ElementType.FLOAT}
"""The smallest types that hold their values and that all operators read."""


@dataclass(frozen=True, slots=True)
class Operand:
    """An input of the node: its value, and its element type and number of dimensions if they are known.

    `is_bytes` says that the value holds the bytes of these elements as uint8.
    """

    value: ir.Value
    element: ElementType | None
    rank: int | None = None
    is_bytes: bool = False


def layer_at(site: Site) -> Layer:
    """The geometry of the layer at a site; GraphError if it is not known or not valid."""
    layer, findings = examine(site.id, site.types, site.attributes)
    forms = [type for port, type in site.types.items() if port.endswith(("_scales", "_zero_points"))]
    if layer is not None and all(isinstance(type, TensorType) and type.shape is not None for type in forms):
        return layer
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    if errors:
        raise GraphError(errors)
    raise GraphError.at(
        site.id,
        "fc1_experts_weights",
        "expected weights and scales whose shapes are known before the run; some sizes are open.",
        "Declare the shapes of the graph's inputs.",
        "shape",
    )


def operands_of(site: Site) -> dict[str, Operand]:
    """The node's inputs. Constants in types that few operators read become bytes."""
    operands: dict[str, Operand] = {}
    for port, value in site.inputs.items():
        known = site.types[port]
        element = known.element if isinstance(known, TensorType) else None
        rank = len(known.shape) if isinstance(known, TensorType) and known.shape is not None else None
        constant = site.constant(port) if element in CAST_OPSETS else None
        if constant is not None:
            stored = site.initializer(port, Tensor(ElementType.UINT8, constant.shape, constant.raw()))
            operands[port] = Operand(stored, element, rank, is_bytes=True)
            continue
        if element in CAST_OPSETS and site.opset < CAST_OPSETS[element]:
            raise GraphError.at(
                site.id,
                port,
                f"tensor({element}) that is no constant needs version {CAST_OPSETS[element]} of the standard "
                f"operators; the model has {site.opset}.",
                "Make it an initializer, or raise the version.",
                "opset",
            )
        operands[port] = Operand(value, element, rank)
    return operands


def expand(site: Site) -> None:
    """Replaces the node by a call of a function of standard operators.

    GraphError if the shapes of its weights are not known, or if the model's standard operators are too old.
    """
    from runtime.lowering import add_function

    layer = layer_at(site)
    check_opset(site)
    operands = {port: operand for port, operand in operands_of(site).items() if is_read(layer, port)}
    signature = repr((layer, site.opset, [(port, str(o.element), o.rank, o.is_bytes) for port, o in operands.items()]))
    name = f"QMoE_{sha256(signature.encode()).hexdigest()[:12]}"

    def write(tape: Tape, formals: Mapping[str, ir.Value]) -> ir.Value:
        inner = {port: replace(o, value=formals[port]) for port, o in operands.items()}
        x = inner["input"]
        tokens = as_float(tape, x.value, x.element)
        tokens = tape.op("Reshape", [tokens, tape.literal([-1, layer.hidden], np.int64)])
        mixed = write_layer(tape, layer, tokens, inner)
        mixed = tape.op("Reshape", [mixed, tape.op("Shape", [x.value])])
        return cast_back(tape, mixed, x.value, x.element)

    types = {port: TensorType(ElementType.UINT8 if o.is_bytes else o.element) for port, o in operands.items()}
    add_function(site, DOMAIN, name, types, write)
    site.replace(site.op(name, [o.value for o in operands.values()], domain=DOMAIN, name=site.node.name or ""))


def check_opset(site: Site) -> None:
    """GraphError if the model's standard operators are too old to write the layer with."""
    if site.opset < LOWEST_OPSET:
        raise GraphError.at(
            site.id,
            "",
            f"QMoE in standard operators needs version {LOWEST_OPSET} of them; the model has {site.opset}.",
            "Raise the version of the standard operators.",
            "opset",
        )


def is_read(layer: Layer, port: str) -> bool:
    """Whether the layer's numbers depend on an input; global scales count where the weights are floats."""
    if port.endswith("global_scale"):
        fc = layer.fc1 if port.startswith("fc1") else layer.fc2
        return fc.layout in ("float4", "columns") or (fc.layout == "float8" and not fc.block_size)
    return port in INPUTS and "_act_" not in port


def write_layer(tape: Tape, layer: Layer, tokens: ir.Value, operands: Mapping[str, Operand]) -> ir.Value:
    """The layer on `tokens` float32 [T, hidden]: float32 [T, hidden]."""
    settings = layer.settings
    operands = {port: _readable(tape, operand) for port, operand in operands.items()}
    logits = operands["router_probs"]
    given = operands.get("router_weights")
    choice = choose(
        tape,
        settings,
        as_float(tape, logits.value, logits.element),
        None if given is None else as_float(tape, given.value, given.element),
    )
    weights = mixing_weights(tape, settings, choice)
    flat = tape.op("Reshape", [choice.indices, tape.literal([-1], np.int64)])
    used = tape.op("Unique", [flat], sorted=1)
    start = tape.op("ConstantOfShape", [tape.op("Shape", [tokens])])

    body = tape.inner()
    turn = body.formal(ElementType.INT64, ())
    goes_on = body.formal(ElementType.BOOL, ())
    mixed = body.formal(ElementType.FLOAT, (None, layer.hidden))
    expert = body.op("Gather", [used, turn], axis=0)
    places = body.op("NonZero", [body.op("Equal", [choice.indices, expert])])
    rows = body.op("Gather", [places, body.literal(0, np.int64)], axis=0)
    shares = body.op("GatherND", [weights, body.op("Transpose", [places], perm=[1, 0])])
    column = body.literal([1], np.int64)
    outputs = write_expert(body, layer, expert, body.op("Gather", [tokens, rows], axis=0), operands)
    outputs = body.op("Mul", [outputs, body.op("Unsqueeze", [shares, column])])
    total = body.op("Add", [body.op("Gather", [mixed, rows], axis=0), outputs])
    total = body.op("ScatterND", [mixed, body.op("Unsqueeze", [rows, column]), total])
    graph = body.graph([turn, goes_on, mixed], [body.op("Identity", [goes_on]), total])

    count = tape.op("Size", [used])
    return tape.op("Loop", [count, tape.literal(True, np.bool_), start], body=graph)


def _readable(tape: Tape, operand: Operand) -> Operand:
    """The operand in a type that Gather takes."""
    if operand.element not in WIDER or operand.is_bytes:
        return operand
    wider = WIDER[operand.element]
    return replace(operand, value=tape.op("Cast", [operand.value], to=int(wider)), element=wider)


def write_expert(
    tape: Tape, layer: Layer, expert: ir.Value, tokens: ir.Value, operands: Mapping[str, Operand]
) -> ir.Value:
    """The outputs of the expert with index `expert`, float32 [t, hidden]."""
    first = _project(tape, layer.fc1, expert, tokens, operands)
    third = None if layer.fc3 is None else _project(tape, layer.fc3, expert, tokens, operands)
    return _project(tape, layer.fc2, expert, activate(tape, layer, first, third), operands)


def _project(
    tape: Tape, projection: Projection, expert: ir.Value, tokens: ir.Value, operands: Mapping[str, Operand]
) -> ir.Value:
    """W x + b: float32 [t, rows]."""
    weights = _weights(tape, projection, expert, operands)
    inputs = [tokens, weights]
    bias = operands.get(projection.port("experts_bias"))
    if bias is not None:
        inputs.append(_of_expert(tape, bias, expert))
    return tape.op("Gemm", inputs, transB=1)


def _weights(tape: Tape, projection: Projection, expert: ir.Value, operands: Mapping[str, Operand]) -> ir.Value:
    """One expert's weights, float32 [rows, columns]."""
    stored = operands[projection.port("experts_weights")]
    scales = operands.get(projection.port("scales"))
    global_scale = operands.get(projection.port("global_scale"))
    rows, columns = projection.rows, projection.columns
    if projection.layout == "float8":
        weights = _of_expert(tape, stored, expert)
        if scales is None:
            assert global_scale is not None
            return tape.op("Mul", [weights, _of_expert(tape, global_scale, expert)])
        squares = _of_expert(tape, scales, expert)
        squares = _spread(tape, squares, rows, projection.block_size, 0)
        return tape.op("Mul", [weights, _spread(tape, squares, columns, projection.block_size, 1)])
    assert scales is not None
    packed = tape.op("Gather", [stored.value, expert], axis=0)
    block_scales = _shape(tape, _of_expert(tape, scales, expert), rows, projection.blocks)
    if projection.layout in ("float4", "columns"):
        by_column = projection.layout == "columns"
        shape = (columns, rows) if by_column else (rows, columns)
        weights = _shape(tape, _look_up(tape, packed, _float4_table()), *shape)
        if by_column:
            weights = tape.op("Transpose", [weights], perm=[1, 0])
        weights = _times(tape, "Mul", weights, block_scales, projection)
        if global_scale is not None:
            weights = tape.op("Mul", [weights, _of_expert(tape, global_scale, expert)])
        return weights
    zeros = operands.get(projection.port("zero_points"))
    weights = _codes(tape, packed, projection, 0 if zeros is not None else default_zero_point(projection.bits))
    if zeros is not None:
        points = _zero_points(tape, projection, zeros, expert)
        weights = _times(tape, "Sub", weights, points, projection)
    return _times(tape, "Mul", weights, block_scales, projection)


def _codes(tape: Tape, packed: ir.Value, projection: Projection, subtracted: int) -> ir.Value:
    """Codes less `subtracted`, float32 [rows, columns]."""
    rows, columns, bits = projection.rows, projection.columns, projection.bits
    if projection.layout != "interleaved":
        return _unpacked(tape, packed, bits, (rows, columns), subtracted)
    group = 16 // bits
    pieces = _unpacked(tape, packed, bits, (rows // group, columns // 64, group, 64), subtracted)
    pieces = tape.op("Gather", [pieces, tape.literal(piece_positions(bits), np.int64)], axis=3)
    pieces = tape.op("Transpose", [pieces], perm=[0, 2, 1, 3])
    return _shape(tape, pieces, rows, columns)


def _zero_points(tape: Tape, projection: Projection, zeros: Operand, expert: ir.Value) -> ir.Value:
    """One expert's zero points, float32 [rows, blocks], from either packing."""
    rows, blocks, bits = projection.rows, projection.blocks, projection.bits
    packed = tape.op("Gather", [zeros.value, expert], axis=0)
    lead, count = ((rows,), blocks) if zeros.rank == 3 else ((), rows)
    digits = 3 if bits == 3 else 1
    if bits == 8:
        codes = as_float(tape, packed, ElementType.UINT8)
    else:
        codes = _look_up(tape, packed, _code_table(1 if bits == 3 else bits))
    codes = _shape(tape, codes, *lead, -1)
    bounds = [tape.literal([bound], np.int64) for bound in (0, count * digits, -1)]
    codes = tape.op("Slice", [codes, *bounds])
    if bits == 3:
        codes = _joined(tape, _shape(tape, codes, *lead, count, 3))
    return _shape(tape, codes, rows, blocks)


def _unpacked(tape: Tape, packed: ir.Value, bits: int, shape: tuple[int, ...], subtracted: int = 0) -> ir.Value:
    """Codes less `subtracted` in that shape, float32, from bytes that hold just as many."""
    if bits == 8:
        codes = as_float(tape, packed, ElementType.UINT8)
        codes = _shape(tape, codes, *shape)
        return tape.op("Sub", [codes, tape.literal(subtracted, np.float32)]) if subtracted else codes
    if bits != 3:
        return _shape(tape, _look_up(tape, packed, _code_table(bits) - np.float32(subtracted)), *shape)
    digits = _shape(tape, _look_up(tape, packed, _code_table(1)), *shape, 3)
    codes = _joined(tape, digits)
    return tape.op("Sub", [codes, tape.literal(subtracted, np.float32)]) if subtracted else codes


def _joined(tape: Tape, digits: ir.Value) -> ir.Value:
    """3-bit codes from their binary digits, which are the last axis."""
    values = tape.op("Mul", [digits, tape.literal([1, 2, 4], np.float32)])
    return tape.op("ReduceSum", [values, tape.literal([-1], np.int64)], keepdims=0)


@lru_cache(maxsize=8)
def _code_table(bits: int) -> np.ndarray:
    """The codes in each byte, float32 [256, 8 / bits]."""
    return unpack(np.arange(256, dtype=np.uint8)[:, None], bits, 8 // bits).astype(np.float32)


@lru_cache(maxsize=1)
def _float4_table() -> np.ndarray:
    """The two FP4 values in each byte, float32 [256, 2]."""
    return np.asarray(E2M1[unpack(np.arange(256, dtype=np.uint8)[:, None], 4, 2)])


def _look_up(tape: Tape, codes: ir.Value, table: np.ndarray) -> ir.Value:
    """The table's entry for every byte."""
    indices = tape.op("Cast", [codes], to=int(ElementType.INT32))
    return tape.op("Gather", [tape.literal(table, np.float32), indices], axis=0)


def _of_expert(tape: Tape, operand: Operand, expert: ir.Value) -> ir.Value:
    """One expert's part of an operand, float32."""
    own = tape.op("Gather", [operand.value, expert], axis=0)
    if operand.is_bytes:
        assert operand.element is not None
        with np.errstate(invalid="ignore"):
            table = np.arange(256, dtype=np.uint8).view(operand.element.dtype).astype(np.float32)
        return _look_up(tape, own, table)
    return as_float(tape, own, operand.element)


def _times(tape: Tape, operator: str, weights: ir.Value, values: ir.Value, projection: Projection) -> ir.Value:
    """`operator` on weights [rows, columns] and values [rows, blocks] of their blocks."""
    rows, columns, blocks, size = projection.rows, projection.columns, projection.blocks, projection.block_size
    if blocks == 1:
        return tape.op(operator, [weights, values])
    if columns % size:
        return tape.op(operator, [weights, _spread(tape, values, columns, size, 1)])
    result = tape.op(operator, [_shape(tape, weights, rows, blocks, size), _shape(tape, values, rows, blocks, 1)])
    return _shape(tape, result, rows, columns)


def _spread(tape: Tape, values: ir.Value, count: int, block_size: int, axis: int) -> ir.Value:
    """Values of blocks along an axis, repeated for each of `count` members."""
    return tape.op("Gather", [values, tape.literal(np.arange(count) // block_size, np.int64)], axis=axis)


def _shape(tape: Tape, value: ir.Value, *shape: int) -> ir.Value:
    return tape.op("Reshape", [value, tape.literal(shape, np.int64)])
