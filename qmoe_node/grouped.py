"""A layer as one matrix product for each expert and projection, for activations that ONNX Runtime's QMoE lacks.

The tokens are sorted by expert and split; an expert that got none multiplies an empty matrix. Activation, biases and
mixing are done once for all experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qmoe_node.layer import Layer, Projection
from qmoe_node.relayout import Blocks, blocks_of, halved
from qmoe_node.standard import activate, as_float, by_expert, choose, mixing_weights
from runtime.tensors import Tensor
from runtime.types import TensorType

if TYPE_CHECKING:
    import onnx_ir as ir

    from runtime.lowering import Site


def write_grouped(
    site: Site, layer: Layer, tokens: ir.Value, arrays: Mapping[str, np.ndarray], exact: bool
) -> ir.Value:
    """The layer on `tokens` float32 [T, hidden], with the constants `arrays`: float32 [T, hidden]."""
    k = site.literal(layer.settings.k, np.int64)
    logits = _router_input(site, "router_probs")
    router_weights = _router_input(site, "router_weights") if "router_weights" in site.inputs else None
    choice = choose(site, layer.settings, logits, router_weights)
    weights = mixing_weights(site, layer.settings, choice)
    groups = by_expert(site, layer, choice.indices)
    sorted_tokens = site.op("Gather", [tokens, site.op("Div", [groups.order, k])], axis=0)

    def project(projection: Projection, values: ir.Value) -> ir.Value:
        blocks = blocks_of(layer, projection, arrays)
        if exact and blocks.bits == 8 and projection.columns % blocks.block_size == 0:
            blocks = halved(blocks)
            values = site.op("Concat", [values, values], axis=1)
        parts = site.ops("Split", [values, groups.counts], layer.experts, axis=0)
        return _project(site, projection, blocks, parts, groups.experts, exact)

    first = project(layer.fc1, sorted_tokens)
    third = None if layer.fc3 is None else project(layer.fc3, sorted_tokens)
    outputs = project(layer.fc2, activate(site, layer, first, third))

    outputs = site.op("Gather", [outputs, groups.place], axis=0)
    shape = site.op("Concat", [site.op("Shape", [weights]), site.literal([layer.hidden], np.int64)], axis=0)
    outputs = site.op("Reshape", [outputs, shape])
    shares = site.op("Unsqueeze", [weights, site.literal([1], np.int64)])
    return site.op("Squeeze", [site.op("MatMul", [shares, outputs]), site.literal([1], np.int64)])


def _router_input(site: Site, port: str) -> ir.Value:
    known = site.types[port]
    return as_float(site, site.inputs[port], known.element if isinstance(known, TensorType) else None)


def _project(
    site: Site, projection: Projection, blocks: Blocks, parts: Sequence[ir.Value], chosen: ir.Value, exact: bool
) -> ir.Value:
    """W x + b of every expert's tokens `parts`: float32 [T * k, rows], sorted by expert, as `chosen` says."""
    tensors = {"weights": blocks.codes, "scales": blocks.scales, "zero_points": blocks.zeros}
    results = []
    for expert, part in enumerate(parts):
        own = [
            site.initializer(f"{projection.name}.{what}", Tensor.from_array(array[expert]))
            for what, array in tensors.items()
            if array is not None
        ]
        product = site.op(
            "MatMulNBits",
            [part, *own],
            domain="com.microsoft",
            K=blocks.columns,
            N=projection.rows,
            bits=blocks.bits,
            block_size=blocks.block_size,
            accuracy_level=1 if exact else 4,
        )
        results.append(product)
    result = site.op("Concat", results, axis=0)
    if blocks.bias is None:
        return result
    bias = site.initializer(f"{projection.name}.bias", Tensor.from_array(blocks.bias))
    return site.op("Add", [result, site.op("Gather", [bias, chosen], axis=0)])
