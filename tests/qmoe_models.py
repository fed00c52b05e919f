"""ONNX models of one QMoE node, and what computes them."""

import numpy as np
import onnx_ir as ir
import onnxruntime

import qmoe_node
from qmoe_node.checks import INPUTS
from qmoe_node.node import QMoE
from runtime import catalog, lowering
from runtime.backends.ortvalues import from_ort, ort_value
from runtime.ir_tensors import GraphTensor
from runtime.tensors import Tensor

TOKEN_INPUTS = ("input", "router_probs", "router_weights")


def model_of(inputs, attributes, *, variable=TOKEN_INPUTS, opset=21):
    """The model whose inputs are those in `variable`; all others are initializers."""
    if catalog.find(QMoE.type_name()) is not QMoE:
        catalog.register(QMoE)
    values, given, constants = {}, [], []
    for name, array in inputs.items():
        tensor = GraphTensor(Tensor.from_array(array), name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        values[name] = value
        if name in variable:
            if name in TOKEN_INPUTS:
                value.shape = ir.Shape([None] * (array.ndim - 1) + [array.shape[-1]])
            given.append(value)
        else:
            value.const_value = tensor
            constants.append(value)
    ports = [values.get(name) for name in INPUTS]
    while ports[-1] is None:
        ports.pop()
    node = ir.node("QMoE", ports, attributes, domain="com.microsoft", num_outputs=1, name="moe")
    output = node.outputs[0]
    output.name, output.type = "output", values["input"].type
    output.shape = values["input"].shape
    opsets = {"": opset, "com.microsoft": 1}
    graph = ir.Graph(given, [output], nodes=[node], initializers=constants, opset_imports=opsets, name="graph")
    return ir.Model(graph, ir_version=10)


def run_ort(model, inputs, quiet=3):
    """The output of a model, with what it must be fed."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = quiet
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    feeds = {name: ort_value(tensor) for name, tensor in model.meta.get(lowering.FEEDS, {}).items()}
    feeds |= {
        value.name: ort_value(Tensor.from_array(np.ascontiguousarray(inputs[value.name])))
        for value in session.get_inputs()
        if value.name in inputs
    }
    return from_ort(session.run_with_ort_values(["output"], feeds)[0])


def run_lowered(inputs, attributes, *, precision="exact", feeds=True, **options):
    """The output of the lowered model, and the model."""
    model = model_of(inputs, attributes, **options)
    lowering.lower(model, precision=precision, feeds=feeds)
    return run_ort(model, inputs), model


def difference(got, inputs, attributes):
    """The largest difference from the NumPy kernel, in units of what may be: 1e-5 of the largest output, and half
    a unit in the last place of narrow types."""
    wanted = qmoe_node.evaluate(inputs, attributes)
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    if not wanted.size:
        return 0.0
    got, exact = got.astype(np.float64), wanted.astype(np.float64)
    assert np.array_equal(np.isnan(got), np.isnan(exact))
    rounding = {"float32": 0.0, "float16": 2.0**-10, "bfloat16": 2.0**-7}[wanted.dtype.name]
    finite = np.isfinite(exact)
    assert np.array_equal(got[~finite & ~np.isnan(exact)], exact[~finite & ~np.isnan(exact)])
    allowed = 1e-5 * np.abs(exact[finite]).max(initial=1e-3) + rounding * np.abs(exact[finite]) + 1e-7
    return float((np.abs(got[finite] - exact[finite]) / allowed).max(initial=0))
