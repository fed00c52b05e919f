"""QMoE on ONNX Runtime's CPU kernels: the numbers that the operator means, on the fastest kernel that gives them.

The runtime's own QMoE kernel computes the experts wherever it can. Its routing is not the operator's, so standard
operators route, and the kernel is given mixing weights that leave it no choice. Weights are laid out anew, once, for
the kernel that is fast and exact: 4-bit blocks. What no kernel computes becomes a loop over the chosen experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qmoe_node.checks import INPUTS
from qmoe_node.grouped import write_grouped
from qmoe_node.layer import Layer, Settings
from qmoe_node.portable import check_opset, layer_at, operands_of, write_layer
from qmoe_node.relayout import Form, KernelLayer, kernel_form, relayout
from qmoe_node.standard import as_float, cast_back, choose, in_shape_of, row_sum
from runtime.errors import Finding, Severity
from runtime.tensors import Tensor
from runtime.types import ElementType, TensorType

if TYPE_CHECKING:
    import onnx_ir as ir

    from runtime.lowering import Site

NOT_NEGATIVE = ("Softmax", "Sigmoid", "Relu", "Abs", "Exp", "Softplus", "HardSigmoid")
"""Operators whose results are never negative."""


def lower(site: Site, exact: bool) -> None:
    """Rewrites one QMoE node. GraphError if the shapes of its weights are not known, or do not fit together."""
    layer = layer_at(site)
    form = kernel_form(layer)
    arrays = constants(site)
    experts = relayout(layer, form, arrays, exact) if form is not None and arrays is not None else None
    x = site.inputs["input"]
    element = _element(site, "input")
    tokens = as_float(site, x, element)
    flat = _rank(site, "input") != 2
    if flat:
        tokens = site.op("Reshape", [tokens, site.literal([-1, layer.hidden], np.int64)])
    if experts is not None:
        mixed = _with_kernel(site, layer, tokens, _node_inputs(site, layer, experts), experts.attributes)
        if not experts.exact:
            site.findings.append(_rounded(site))
    elif form is not None and _runs_as_stored(layer, form) and not (exact and _may_become_constant(site, layer)):
        attributes = form.attributes | {"expert_weight_bits": layer.fc1.bits}
        if layer.settings.block_size and _rank(site, "fc1_scales") == 3:
            attributes["block_size"] = layer.settings.block_size
        mixed = _with_kernel(site, layer, tokens, _stored_inputs(site, layer, exact), attributes)
    elif arrays is not None and layer.settings.quant_type != "fp8":
        mixed = write_grouped(site, layer, tokens, arrays, exact)
        if not exact:
            site.findings.append(_rounded(site))
    else:
        check_opset(site)
        mixed = _without_kernel(site, layer, tokens)
    if flat:
        mixed = in_shape_of(site, mixed, x)
    site.replace(cast_back(site, mixed, x, element))


def _without_kernel(site: Site, layer: Layer, tokens: ir.Value) -> ir.Value:
    """The layer in standard operators."""
    from qmoe_node.standard_gradient import expression
    from qmoe_node.standard_grouped import Grouped, is_small
    from runtime.gradients.expressions import Formulas

    operands = operands_of(site)
    if not is_small(layer):
        return write_layer(site, layer, tokens, operands)
    op = Formulas(site, {"": site.opset})
    return Grouped(op, layer, operands, expression(op, tokens)).forward().value


def _rounded(site: Site) -> Finding:
    return Finding(
        "Runs on a kernel that rounds activations to 8 bits; expect errors of about one percent.",
        site.id,
        severity=Severity.NOTE,
        remedy='Choose precision "exact" for float32 activations.',
        code="fast-kernel",
    )


def constants(site: Site) -> dict[str, np.ndarray] | None:
    """The layer's tensors by port; None if one of them is not constant."""
    arrays: dict[str, np.ndarray] = {}
    for port in site.inputs:
        if port.startswith("fc") and "act" not in port:
            tensor = site.constant(port)
            if tensor is None:
                return None
            arrays[port] = tensor.array()
    return arrays


def _with_kernel(
    site: Site, layer: Layer, tokens: ir.Value, experts: dict[str, ir.Value], attributes: dict[str, Any]
) -> ir.Value:
    """The experts on ONNX Runtime's QMoE, float32 [T, hidden].

    Of equal logits the kernel prefers the last, and it leaves out experts whose weight is at most 1e-8, and rows of
    NaN: so it is told whom to take, its weights' sizes add up to about one, and a factor for each row comes after it.
    """
    settings = layer.settings
    logits = as_float(site, site.inputs["router_probs"], _element(site, "router_probs"))
    given = site.inputs.get("router_weights")
    signed = given is not None and not _never_negative(site, given)
    if given is None and not settings.use_sparse_mixer:
        routing = _by_softmax(site, layer, logits)
    else:
        routing = _by_weights(site, settings, logits, signed)
    order, weights = routing.order, routing.weights
    if signed:
        # Every token twice: once with its positive weights, once with its negative ones, whose result is subtracted.
        order = weights = site.op("Relu", [site.op("Concat", [weights, site.op("Neg", [weights])], axis=0)])
        tokens = site.op("Concat", [tokens, tokens], axis=0)
    ports: dict[str, ir.Value] = {"input": tokens, "router_probs": order, "router_weights": weights, **experts}
    inputs = [ports.get(name) for name in INPUTS]
    while inputs[-1] is None:
        inputs.pop()
    own = {"k": settings.k, "normalize_routing_weights": int(routing.normalize), **attributes}
    mixed = site.op("QMoE", inputs, domain="com.microsoft", name=site.node.name or "", **own)
    if signed:
        halves = site.op("Reshape", [mixed, site.literal([2, -1, layer.hidden], np.int64)])
        plus, minus = (site.op("Gather", [halves, site.literal(at, np.int64)], axis=0) for at in (0, 1))
        mixed = site.op("Sub", [plus, minus])
    return site.op("Mul", [mixed, routing.factor])


@dataclass(frozen=True, slots=True)
class _KernelRouting:
    """What makes the kernel route as the operator does: it takes the k experts that are the largest in `order` [T, E],
    with their `weights` [T, E], which it divides by their sum if it is to `normalize`; `factor` [T, 1] comes after."""

    order: ir.Value
    weights: ir.Value
    normalize: bool
    factor: ir.Value


def _by_softmax(site: Site, layer: Layer, logits: ir.Value) -> _KernelRouting:
    """Few operators: for a single token each of them costs as much as a thousandth of its experts."""
    count = site.literal([layer.settings.k], np.int64)
    largest, indices = site.ops("TopK", [logits, count], 2, axis=-1, largest=1, sorted=1)
    weights = site.op("Softmax", [logits], axis=-1)
    infinite = site.literal(np.inf, np.float32)
    chosen = site.op("Clip", [largest, infinite, infinite])
    order = site.op("ScatterElements", [logits, indices, chosen], axis=1)
    if layer.settings.normalize_routing_weights:
        # One; NaN where the row is.
        nothing = site.literal(np.zeros((layer.experts, 1)), np.float32)
        factor = site.op("Gemm", [weights, nothing, site.literal([1], np.float32)])
    else:
        factor = row_sum(site, site.op("GatherElements", [weights, indices], axis=1))
    return _KernelRouting(order, weights, True, factor)


def _by_weights(site: Site, settings: Settings, logits: ir.Value, signed: bool) -> _KernelRouting:
    """With the sparse mixer's weights, or those of `router_weights`, which may be negative if they are `signed`."""
    given = site.inputs.get("router_weights")
    choice = choose(
        site, settings, logits, None if given is None else as_float(site, given, _element(site, "router_weights"))
    )
    weights = choice.weights
    if settings.use_sparse_mixer:
        factor = row_sum(site, weights)  # NaN where the row is
        weights = site.op("Div", [weights, factor])
    else:
        size = row_sum(site, site.op("Abs", [weights]) if signed else weights)
        largest = site.literal(np.finfo(np.float32).max, np.float32)
        size = site.op("Where", [site.op("Greater", [size, largest]), largest, size])
        # A row of zeros stays one: a file of this graph may be read, and its weights of NaN would be wrong ones.
        zero, one = site.literal(0, np.float32), site.literal(1, np.float32)
        divisor = site.op("Where", [site.op("Equal", [size, zero]), one, size])
        weights = site.op("Div", [weights, divisor])
        factor = size
        if settings.normalize_routing_weights:
            total = row_sum(site, choice.weights) if signed else size
            factor = site.op("Where", [site.op("Equal", [total, zero]), zero, site.op("Div", [size, total])])
        assert choice.unordered is not None
        factor = site.op("Where", [choice.unordered, site.literal(np.nan, np.float32), factor])
    empty = site.op("ConstantOfShape", [site.op("Shape", [logits])])
    weights = site.op("ScatterElements", [empty, choice.indices, weights], axis=1)
    return _KernelRouting(weights, weights, False, factor)


def _node_inputs(site: Site, layer: Layer, experts: KernelLayer) -> dict[str, ir.Value]:
    """The kernel's weights as values of the model: the node's own where they are as they were."""
    values: dict[str, ir.Value] = {}
    for port, tensor in experts.tensors.items():
        if tensor is None:
            values[port] = site.inputs[port]
        elif port in experts.variable:
            values[port] = site.feed(port, tensor)
        else:
            values[port] = site.initializer(port, tensor)
    return values


def _runs_as_stored(layer: Layer, form: Form) -> bool:
    """Whether the kernel reads the tensors as they are, exactly, also where they are no constants."""
    bits = layer.fc1.bits
    if form.pair is not None or layer.fc1.layout != "rows" or layer.fc2.bits != bits:
        return False
    # ONNX Runtime has a kernel for 2-bit blocks that rounds activations.
    return bits in (4, 8) or (bits == 2 and layer.fc1.blocks == layer.fc2.blocks == 1 and not layer.settings.block_size)


def _rounds_with_constant_scales(layer: Layer) -> bool:
    """Whether the kernel rounds activations where a projection's scales are constants: 8-bit blocks."""
    return layer.fc1.bits == 8 and bool(layer.settings.block_size)


def _may_become_constant(site: Site, layer: Layer) -> bool:
    """Whether ONNX Runtime will find scales to be constants that it then must not: it folds what no input changes."""
    if not _rounds_with_constant_scales(layer):
        return False
    ports = [projection.port("scales") for projection in (layer.fc1, layer.fc2)]
    return any(site.constant(port) is None and not _varies(site.inputs[port]) for port in ports)


def _varies(value: ir.Value) -> bool:
    """Whether a value depends on an input of the graph."""
    seen: set[ir.Value] = set()
    stack = [value]
    while stack:
        current = stack.pop()
        if current.is_graph_input():
            return True
        maker = current.producer()
        if maker is not None and current not in seen:
            seen.add(current)
            stack.extend(given for given in maker.inputs if given is not None)
    return False


def _stored_inputs(site: Site, layer: Layer, exact: bool) -> dict[str, ir.Value]:
    values: dict[str, ir.Value] = {}
    for projection in (layer.fc1, layer.fc2):
        for what in ("experts_weights", "zero_points"):
            if projection.port(what) in site.inputs:
                values[projection.port(what)] = site.inputs[projection.port(what)]
        for what in ("scales", "experts_bias"):
            port = projection.port(what)
            if port in site.inputs:
                constant = site.constant(port) if what == "scales" and _rounds_with_constant_scales(layer) else None
                if exact and constant is not None:
                    wide = Tensor.from_array(constant.array().astype(np.float32))
                    values[port] = site.feed(port, wide)
                else:
                    values[port] = as_float(site, site.inputs[port], _element(site, port))
                if what == "scales" and _rank(site, port) == 3 and not layer.settings.block_size:
                    values[port] = site.op("Squeeze", [values[port], site.literal([2], np.int64)])
    return values


def _never_negative(site: Site, value: ir.Value) -> bool:
    """Whether router weights are certainly not negative."""
    tensor = site.constant("router_weights")
    if tensor is not None:
        return bool(np.all(tensor.array().astype(np.float32) >= 0))
    producer = value.producer()
    return producer is not None and producer.domain == "" and producer.op_type in NOT_NEGATIVE


def _element(site: Site, port: str) -> ElementType | None:
    value = site.types.get(port)
    return value.element if isinstance(value, TensorType) else None


def _rank(site: Site, port: str) -> int | None:
    value = site.types.get(port)
    return len(value.shape) if isinstance(value, TensorType) and value.shape is not None else None
