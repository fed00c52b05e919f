"""The slopes of a QMoE node, measured: central differences of the naive float64 evaluation.

    slopes = Slopes(inputs, attributes, inter, output_gradient)
    slopes.largest_difference(gradients)

Weights are scaled here, so that scales can move without unpacking again; `matrix_of` of the naive evaluation does the
unpacking, given scales of one.
"""

import numpy as np

from tests.qmoe_oracle import matrix_of, oracle

STEP = 1e-6
ELEMENTS = 8
"""How many elements of an input are moved, one by one."""


def widened(array):
    return array.astype(np.float32).astype(np.float64)


class Slopes:
    """Where each element of an input (or a dequantized weight) takes the sum of output * output_gradient."""

    def __init__(self, inputs, attributes, inter, output_gradient):
        self.attributes, self.inter = attributes, inter
        self.upstream = widened(output_gradient)
        self.values = {
            name: widened(array)
            for name, array in inputs.items()
            if not name.endswith(("experts_weights", "zero_points"))
        }
        self.inputs = inputs
        self.experts = inputs["router_probs"].shape[1]
        self.codes = self._unscaled()

    def _unscaled(self):
        """The weights before scaling: from copies of the inputs in which all scales are one."""
        ones = {
            name: np.ones_like(array) if name.endswith(("scales", "global_scale")) else array
            for name, array in self.inputs.items()
        }
        hidden = self.inputs["input"].shape[-1]
        gated = self.attributes.get("activation_type") in ("swiglu", "geglu")
        fused = 2 if gated and self.attributes.get("swiglu_fusion", 0) else 1
        sizes = {"fc1": (fused * self.inter, hidden), "fc2": (hidden, self.inter), "fc3": (self.inter, hidden)}
        return {
            (fc, expert): matrix_of(ones, self.attributes, fc, expert, *size)
            for fc, size in sizes.items()
            if f"{fc}_experts_weights" in self.inputs
            for expert in range(self.experts)
        }

    def _scaled(self, values, fc, expert):
        codes = self.codes[fc, expert]
        kind, size = self.attributes.get("quant_type", "int"), self.attributes.get("block_size", 0)
        scales, overall = values.get(f"{fc}_scales"), values.get(f"{fc}_global_scale")
        rows, columns = np.arange(codes.shape[0]), np.arange(codes.shape[1])
        if kind == "fp8":
            if scales is None:
                return codes * overall[expert]
            return codes * scales[expert][rows[:, None] // size, columns // size]
        if kind != "int":
            size = 32 if kind == "fp4" else 16
            return codes * scales[expert][:, columns // size] * (1 if overall is None else overall[expert])
        if size and scales.ndim == 3:
            return codes * scales[expert][:, columns // size]
        return codes * scales[expert].reshape(-1, 1)

    def weights(self, values=None):
        """The dequantized weights by (projection, expert)."""
        values = self.values if values is None else values
        return {key: self._scaled(values, *key) for key in self.codes}

    def value(self, values, matrices=None):
        """The number whose slopes are measured."""
        output = oracle(values, self.attributes, self.inter, self.weights(values) if matrices is None else matrices)
        return float((output * self.upstream).sum())

    def _inputs(self, values):
        kept = {name: array for name, array in self.inputs.items() if name.endswith("experts_weights")}
        return kept | values

    def along(self, port, direction):
        """The slope of an input in a direction; None where there is a corner."""
        ends = []
        for sign in (1, 0, -1):
            if port.endswith("experts_weights"):
                weights = self.weights()
                moved = {
                    key: matrix + sign * STEP * direction[key[1]] if port.startswith(key[0]) else matrix
                    for key, matrix in weights.items()
                }
                ends.append(self.value(self._inputs(self.values), moved))
            else:
                moved = self.values | {port: self.values[port] + sign * STEP * direction}
                ends.append(self.value(self._inputs(moved)))
        if abs(ends[0] - 2 * ends[1] + ends[2]) > STEP * 1e-3 * max(1e-2, abs(ends[0] - ends[2]) / STEP):
            return None
        return (ends[0] - ends[2]) / (2 * STEP)

    def largest_difference(self, gradients, rng):
        """The largest difference of `gradients` from slopes, each relative to the largest gradient of its input, and
        how many slopes were measured. The router's gradients are differences of dot products, which may cancel: they
        count as at least 1, the size of a typical term.
        """
        worst, tried = 0.0, 0
        for port, gradient in gradients.items():
            gradient = widened(gradient)
            largest = max(np.abs(gradient).max(initial=0), 1 if port.startswith("router") else 1e-6)
            places = rng.permutation(gradient.size)[:ELEMENTS]
            directions = [np.eye(1, gradient.size, place).reshape(gradient.shape) for place in places]
            directions += [rng.standard_normal(gradient.shape)] if gradient.size else []
            for direction in directions:
                slope = self.along(port, direction)
                if slope is not None:
                    tried += 1
                    size = max(1, np.linalg.norm(direction))
                    worst = max(worst, abs(slope - (gradient * direction).sum()) / largest / size)
        return worst, tried
