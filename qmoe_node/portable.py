"""QMoE in standard ONNX operators: routing, and a loop over the chosen experts.

Only one expert's weights are ever held as float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from qmoe_node.checks import INPUTS, examine
from qmoe_node.layer import Layer, Projection
from qmoe_node.standard import activate, as_float, cast_back, choose, in_shape_of, mixing_weights
from qmoe_node.standard_weights import Operand, expert_weights, of_expert, readable
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
        mixed = in_shape_of(tape, mixed, x.value)
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
    operands = {port: readable(tape, operand) for port, operand in operands.items()}
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
    weights = expert_weights(tape, projection, expert, operands)
    inputs = [tokens, weights]
    bias = operands.get(projection.port("experts_bias"))
    if bias is not None:
        inputs.append(of_expert(tape, bias, expert))
    return tape.op("Gemm", inputs, transB=1)
