"""How far a layer's dequantized weights are from those of a float layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qmoe_node.checks import examine
from qmoe_node.kernel_weights import expert_weights, tiles
from qmoe_node.layer import Layer, Projection
from runtime.errors import Finding, GraphError, Severity
from runtime.types import ValueType


def weight_errors(
    types: Mapping[str, ValueType],
    arrays: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
    floats: Mapping[str, np.ndarray],
) -> Iterator[dict[str, float]]:
    """For each expert, ||Q - W|| / ||W|| by projection ("fc1", "fc2", "fc3"), Q being the dequantized weights.

    `types` are those of all inputs of the QMoE node by port, `arrays` its tensors, `attributes` its own. `floats` are
    the weights W of a MoE node by port, float [experts, rows, columns]; its rows are in the same order. GraphError if
    the node makes no layer, what Q is made of is not all there, or W has another shape. All that is checked at once;
    an expert's weights are dequantized when its errors are asked for.
    """
    layer, findings = examine("", types, attributes)
    if layer is None:
        raise GraphError(finding for finding in findings if finding.severity is Severity.ERROR)
    for projection in layer.projections:
        _check_given(projection, types, arrays)
        _check_shape(layer, projection, floats)
    return (
        {p.name: _error(p, arrays, floats[p.port("experts_weights")], expert) for p in layer.projections}
        for expert in range(layer.experts)
    )


def _check_given(projection: Projection, types: Mapping[str, ValueType], arrays: Mapping[str, np.ndarray]) -> None:
    """Weights without their scales would be compared as if these were 1."""
    for what in ("experts_weights", "scales", "zero_points", "global_scale"):
        port = projection.port(what)
        if port in types and port not in arrays:
            raise GraphError(Finding("it is computed when the graph runs, so it cannot be compared.", "", port))


def _check_shape(layer: Layer, projection: Projection, floats: Mapping[str, np.ndarray]) -> None:
    port = projection.port("experts_weights")
    expected = (layer.experts, projection.rows, projection.columns)
    found = floats[port].shape if port in floats else None
    if found != expected:
        text = f"the float weights are {list(found) if found else 'not there'}; expected {list(expected)}."
        raise GraphError(Finding(text, "", port, code="twin"))


def _error(projection: Projection, arrays: Mapping[str, np.ndarray], floats: np.ndarray, expert: int) -> float:
    apart = size = 0.0
    for start, stop in tiles(projection):
        wanted = floats[expert, start:stop].astype(np.float64)
        found = expert_weights(projection, arrays, expert, start, stop)
        with np.errstate(all="ignore"):  # what is not finite stays so
            apart += float(np.square(found - wanted).sum())
            size += float(np.square(wanted).sum())
    return math.sqrt(apart / size) if size else math.inf if apart else 0.0
