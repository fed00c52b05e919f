"""Malformed QMoE nodes: every one is refused with a finding at the right port, on arrays and in a graph alike."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

import qmoe_node
from qmoe_node.attributes import ATTRIBUTES
from qmoe_node.node import QMoE
from runtime.errors import GraphError, Severity, StudioError
from runtime.node import NodeContext
from runtime.types import UNKNOWN, ElementType, SequenceType, TensorType
from tests.qmoe_layers import make_float_layer, make_layer

SWIGLU = {"activation_type": "swiglu", "swiglu_fusion": 1}
THREE_BITS = {
    "kind": "float16",
    "bits": (3, 3, 3),
    "hidden": 64,
    "inter": 32,
    "block_size": 32,
    "weights_prepacked": 0,
    **SWIGLU,
}


def sets(**changes):
    """A change of attributes."""

    def change(inputs, attributes):
        attributes.update(changes)

    return change


def drops(*names):
    def change(inputs, attributes):
        for name in names:
            del inputs[name]

    return change


def casts(name, dtype):
    def change(inputs, attributes):
        inputs[name] = inputs[name].astype(dtype)

    return change


def cuts(name, *index):
    """A tensor is replaced by a part of it."""

    def change(inputs, attributes):
        inputs[name] = inputs[name][index]

    return change


def reshapes(name, *shape):
    def change(inputs, attributes):
        inputs[name] = inputs[name].reshape(shape)

    return change


def gives(name, value):
    def change(inputs, attributes):
        inputs[name] = np.array(value) if isinstance(value, list) else value

    return change


ALL = slice(None)
F32, U8 = np.float32, np.uint8

MALFORMED = [
    # (port, layer, change)
    ("input", {}, drops("input")),
    ("router_probs", {}, drops("router_probs")),
    ("fc1_experts_weights", {}, drops("fc1_experts_weights")),
    ("fc2_experts_weights", {}, drops("fc2_experts_weights")),
    ("fc1_scales", {}, drops("fc1_scales")),
    ("fc2_scales", {}, drops("fc2_scales")),
    ("fc3_scales", {"fc3": True}, drops("fc3_scales")),
    ("fc3_experts_weights", {"activation_type": "swiglu"}, sets()),
    ("fc4_scales", {}, gives("fc4_scales", [1.0])),
    ("fc3_scales", {}, gives("fc3_scales", np.zeros((4, 48), F32))),
    ("fc3_experts_bias", {}, gives("fc3_experts_bias", np.zeros((4, 48), F32))),
    ("fc3_zero_points", {}, gives("fc3_zero_points", np.zeros((4, 24), U8))),
    # element types
    ("input", {}, casts("input", np.float64)),
    ("input", {}, casts("input", np.int32)),
    ("router_probs", {}, casts("router_probs", np.float16)),
    ("fc1_experts_bias", {}, casts("fc1_experts_bias", ml_dtypes.bfloat16)),
    ("fc1_experts_weights", {}, casts("fc1_experts_weights", np.int8)),
    ("fc2_experts_weights", {}, casts("fc2_experts_weights", F32)),
    ("fc1_scales", {}, casts("fc1_scales", np.float64)),
    ("fc2_scales", {}, casts("fc2_scales", np.float16)),
    ("fc1_zero_points", {"zero_points": True}, casts("fc1_zero_points", np.int8)),
    ("router_weights", {"router_weights": True}, casts("router_weights", np.float16)),
    ("input", {}, casts("input", ml_dtypes.int4)),
    # ranks
    ("input", {}, reshapes("input", 160)),
    ("input", {}, reshapes("input", 1, 1, 5, 32)),
    ("router_probs", {"tokens": 6, "batch": 2}, reshapes("router_probs", 2, 3, 4)),
    ("router_probs", {}, reshapes("router_probs", 20)),
    ("fc1_experts_weights", {}, reshapes("fc1_experts_weights", 4, 48 * 16)),
    ("fc2_experts_weights", {}, reshapes("fc2_experts_weights", 4, 2, 16, 24)),
    ("fc1_scales", {}, reshapes("fc1_scales", 192)),
    ("fc1_experts_bias", {}, reshapes("fc1_experts_bias", 4, 48, 1)),
    ("fc2_scales", {"block_size": 16}, cuts("fc2_scales", ALL, ALL, 0)),
    # shapes and packing
    ("input", {}, cuts("input", ALL, slice(0, 31))),
    ("router_probs", {}, cuts("router_probs", slice(0, 4))),
    ("router_probs", {}, cuts("router_probs", ALL, slice(0, 3))),
    ("router_weights", {"router_weights": True}, cuts("router_weights", ALL, slice(0, 3))),
    ("fc1_experts_weights", {}, cuts("fc1_experts_weights", ALL, ALL, slice(0, 8))),
    ("fc1_experts_weights", {}, gives("fc1_experts_weights", np.zeros((4, 48, 32), U8))),
    ("fc1_experts_weights", {}, cuts("fc1_experts_weights", slice(0, 3))),
    ("fc1_experts_weights", {}, gives("fc1_experts_weights", np.zeros((4, 32, 24), U8))),
    ("fc2_experts_weights", {}, cuts("fc2_experts_weights", ALL, slice(0, 16))),
    ("fc1_experts_weights", {"hidden": 31}, sets()),
    ("fc2_experts_weights", {"inter": 47, "bits": (2, 2, 2)}, sets()),
    ("fc1_scales", {}, cuts("fc1_scales", ALL, slice(0, 47))),
    ("fc1_scales", {}, cuts("fc1_scales", slice(0, 3))),
    ("fc2_scales", {"block_size": 16}, cuts("fc2_scales", ALL, ALL, slice(0, 2))),
    ("fc1_scales", {"row_rank": 3}, gives("fc1_scales", np.zeros((4, 48, 2), F32))),
    ("fc1_experts_bias", {}, cuts("fc1_experts_bias", ALL, slice(0, 24))),
    ("fc2_experts_bias", {}, cuts("fc2_experts_bias", slice(0, 1))),
    ("fc1_zero_points", {"zero_points": True}, cuts("fc1_zero_points", ALL, slice(0, 23))),
    ("fc2_zero_points", {"zero_points": True}, reshapes("fc2_zero_points", 4, 16, 1)),
    ("fc1_zero_points", {"zero_points": True, "block_size": 16}, gives("fc1_zero_points", np.zeros((4, 24), U8))),
    ("fc2_zero_points", {"zero_points": True, "block_size": 16}, cuts("fc2_zero_points", ALL, ALL, slice(0, 1))),
    ("fc3_experts_weights", {"fc3": True}, cuts("fc3_experts_weights", ALL, slice(0, 24))),
    ("fc3_experts_bias", {"fc3": True}, cuts("fc3_experts_bias", ALL, slice(0, 24))),
    # attributes
    ("k", {}, sets(k=0)),
    ("k", {}, sets(k=-1)),
    ("k", {}, sets(k=5)),
    ("k", {}, sets(k=2.0)),
    ("k", {}, sets(k="2")),
    *[("expert_weight_bits", {}, sets(expert_weight_bits=bits)) for bits in (0, 1, 5, 6, 7, 16, -4)],
    ("fc1_expert_weight_bits", {}, sets(fc1_expert_weight_bits=0)),
    *[("block_size", {}, sets(block_size=size)) for size in (-32, 1, 8, 24, 48)],
    ("activation_type", {}, sets(activation_type="tanh")),
    ("activation_type", {}, sets(activation_type="Relu")),
    ("activation_type", {}, sets(activation_type=3)),
    ("swiglu_fusion", {}, sets(swiglu_fusion=3)),
    ("swiglu_fusion", {}, sets(swiglu_fusion=-1)),
    ("swiglu_limit", SWIGLU, sets(swiglu_limit=-1.0)),
    ("swiglu_limit", SWIGLU, sets(swiglu_limit=-np.inf)),
    ("swiglu_limit", SWIGLU, sets(swiglu_limit="7")),
    ("activation_alpha", SWIGLU, sets(activation_alpha=None)),
    ("quant_type", {}, sets(quant_type="foo")),
    ("quant_type", {}, sets(quant_type="wfp4afp8")),
    ("weights_prepacked", {}, sets(weights_prepacked=2)),
    ("normalize_routing_weights", {}, sets(normalize_routing_weights=2)),
    ("use_sparse_mixer", {}, sets(use_sparse_mixer=2)),
    ("temperature", {}, sets(temperature=1.0)),
    # combinations
    *[
        ("swiglu_fusion", {"activation_type": name}, sets(swiglu_fusion=fusion))
        for name in ("relu", "gelu", "silu", "identity", "relu2")
        for fusion in (1, 2)
    ],
    ("swiglu_fusion", {"activation_type": "geglu"}, sets()),
    ("fc3_experts_weights", {"activation_type": "geglu", "fc3": True}, sets()),
    ("fc3_experts_weights", {"activation_type": "geglu", "swiglu_fusion": 1, "fc3": True}, sets()),
    ("fc3_experts_weights", {"fc3": True, **SWIGLU}, sets()),
    ("fc3_expert_weight_bits", SWIGLU, sets(fc3_expert_weight_bits=8)),
    ("k", {}, sets(use_sparse_mixer=1, k=1)),
    ("k", {}, sets(use_sparse_mixer=1, k=3)),
    ("router_weights", {"router_weights": True}, sets(use_sparse_mixer=1)),
    ("swiglu_limit_after_activation", {"activation_type": "silu"}, sets(swiglu_limit_after_activation=1)),
    ("weights_prepacked", {"bits": (8, 8, 8)}, sets(weights_prepacked=1)),
    ("fc1_experts_weights", {"inter": 64}, sets(weights_prepacked=1)),
    # three bits
    ("input", THREE_BITS | {"kind": "float"}, sets()),
    ("fc1_scales", THREE_BITS | {"scale_kind": "bfloat16"}, sets()),
    ("activation_type", THREE_BITS | {"activation_type": "silu", "swiglu_fusion": 0}, sets()),
    ("swiglu_fusion", THREE_BITS, sets(swiglu_fusion=2)),
    ("weights_prepacked", THREE_BITS, sets(weights_prepacked=-1)),
    ("block_size", THREE_BITS | {"block_size": 16}, sets()),
    ("block_size", THREE_BITS | {"hidden": 48}, sets()),
    ("fc1_scales", THREE_BITS | {"block_size": 0}, sets(block_size=32)),
    ("fc1_zero_points", THREE_BITS | {"zero_points": True}, sets()),
    ("fc2_global_scale", THREE_BITS, gives("fc2_global_scale", np.ones(4, F32))),
]

FP4, NVFP4, FP8 = {"quant_type": "fp4"}, {"quant_type": "nvfp4"}, {"quant_type": "fp8"}
MALFORMED_FLOATS = [
    ("fc1_scales", FP4, drops("fc1_scales")),
    ("fc1_scales", FP4, gives("fc1_scales", np.zeros((3, 64, 1), F32))),
    ("fc1_scales", FP4, cuts("fc1_scales", ALL, slice(0, 32))),
    ("fc1_experts_weights", FP4, cuts("fc1_experts_weights", ALL, slice(0, 16))),
    ("fc2_experts_weights", FP4, reshapes("fc2_experts_weights", 3, 32, 32)),
    ("block_size", FP4, sets(block_size=16)),
    ("fc1_global_scale", FP4, gives("fc1_global_scale", np.ones(2, F32))),
    ("fc1_global_scale", FP4, casts("fc1_global_scale", np.float16)),
    ("fc1_zero_points", FP4, gives("fc1_zero_points", np.zeros((3, 64, 1), U8))),
    ("fc2_experts_weights", FP4 | {"inter": 48}, sets()),
    ("fc2_global_scale", NVFP4, drops("fc2_global_scale")),
    ("fc3_experts_weights", NVFP4 | {"fc3": True}, sets()),
    ("fc1_experts_weights", FP8, gives("fc1_experts_weights", np.zeros((3, 64, 32), U8))),
    ("fc1_global_scale", FP8, drops("fc1_global_scale")),
    ("fc1_scales", FP8, gives("fc1_scales", np.ones((3, 1, 1), F32))),
    ("fc2_scales", FP8 | {"block_size": 32}, cuts("fc2_scales", ALL, ALL, slice(0, 1))),
    ("fc2_scales", FP8 | {"block_size": 32}, drops("fc2_scales")),
    ("fc3_experts_weights", FP8 | {"fc3": True}, sets()),
    ("fc1_act_scale", FP8, gives("fc1_act_scale", np.ones(1, F32))),
    ("activation_type", FP4, sets(activation_type="geglu", swiglu_fusion=1)),
]
CASES = [(make_layer, *case) for case in MALFORMED] + [(make_float_layer, *case) for case in MALFORMED_FLOATS]


def in_graph(inputs, attributes):
    types = {name: TensorType(ElementType.of(array.dtype), array.shape) for name, array in inputs.items()}
    return QMoE.infer(NodeContext("moe", types, attributes, values=inputs, outputs=("output",)))


def errors(findings):
    return [finding for finding in findings if finding.severity is Severity.ERROR]


@pytest.mark.parametrize(("make", "port", "layer", "change"), CASES)
def test_malformed(make, port, layer, change):
    inputs, attributes = make(**layer)
    change(inputs, attributes)
    with pytest.raises(GraphError) as caught:
        qmoe_node.evaluate(inputs, attributes)
    ports = [finding.port for finding in caught.value.findings]
    assert port in ports
    assert all(finding.node == "QMoE" and finding.message for finding in caught.value.findings)
    with pytest.raises(GraphError):
        QMoE.evaluate(inputs, attributes)
    required = {"input", "router_probs", "fc1_experts_weights", "fc2_experts_weights", "fc4_scales", "temperature"}
    found = errors(in_graph(inputs, attributes).findings)
    if not (port in required and port not in inputs) and port not in ("fc4_scales", "temperature"):
        assert port in [finding.port for finding in found]
        assert all(finding.node == "moe" for finding in found)


@pytest.mark.parametrize(
    ("port", "layer", "change"),
    [case for case in MALFORMED if case[0] in ("fc1_scales", "fc1_experts_weights", "fc2_experts_weights", "input")],
)
def test_the_odd_tensor_alone_is_blamed(port, layer, change):
    inputs, attributes = make_layer(**layer)
    change(inputs, attributes)
    with pytest.raises(GraphError) as caught:
        qmoe_node.evaluate(inputs, attributes)
    assert {finding.port for finding in caught.value.findings} <= {port, "fc1_scales", "fc2_scales", "fc1_zero_points"}


@pytest.mark.parametrize(
    "layer",
    [
        {},
        {"kind": "float", "scale_kind": "float16"},
        {"block_size": 16, "zero_points": True},
        {"row_rank": 3, "zero_points": True},
        {"fc3": True, "activation_type": "silu", "bits": (8, 4, 2)},
        SWIGLU | {"tokens": 6, "batch": 2},
    ],
)
def test_a_valid_node_has_no_findings(layer):
    inputs, attributes = make_layer(**layer)
    inference = in_graph(inputs, attributes)
    assert not inference.findings
    assert inference.outputs["output"] == TensorType(ElementType.FLOAT, inputs["input"].shape)


def test_nothing_known_is_nothing_wrong():
    inputs, attributes = make_layer(zero_points=True, router_weights=True)
    inference = QMoE.infer(NodeContext("moe", dict.fromkeys(inputs, UNKNOWN), attributes))
    assert not inference.findings
    assert inference.outputs["output"] == UNKNOWN


def test_symbolic_sizes_are_kept_and_fit():
    inputs, attributes = make_layer(batch=5, block_size=16)
    types = {name: TensorType(ElementType.of(array.dtype), array.shape) for name, array in inputs.items()}
    types["input"] = TensorType(ElementType.FLOAT, ("batch", "sequence", 32))
    types["router_probs"] = TensorType(ElementType.FLOAT, ("tokens", 4))
    types["fc1_scales"] = TensorType(None, ("experts", None, None))
    inference = QMoE.infer(NodeContext("moe", types, attributes))
    assert not inference.findings
    assert inference.outputs["output"] == TensorType(ElementType.FLOAT, ("batch", "sequence", 32))


def test_certain_mistakes_are_found_among_unknown_sizes():
    types = {
        "input": TensorType(ElementType.FLOAT, ("tokens", 64)),
        "router_probs": TensorType(None, ("tokens", 8)),
        "fc1_experts_weights": TensorType(ElementType.UINT8, (8, None, 33)),
        "fc1_scales": UNKNOWN,
        "fc2_experts_weights": TensorType(None, (8, 64, None)),
        "fc2_scales": TensorType(ElementType.UINT8),
    }
    findings = QMoE.infer(NodeContext("moe", types, {"k": 9})).findings
    assert sorted(finding.port for finding in findings) == ["fc1_experts_weights", "fc2_scales", "k"]


def test_a_sequence_is_not_a_tensor():
    inputs, attributes = make_layer()
    types = {name: TensorType(ElementType.of(array.dtype), array.shape) for name, array in inputs.items()}
    types["input"] = SequenceType(TensorType(ElementType.FLOAT))
    assert [finding.port for finding in QMoE.infer(NodeContext("moe", types, attributes)).findings] == ["input"]


def test_inputs_without_effect_are_a_warning():
    inputs, attributes = make_layer()
    expected = qmoe_node.evaluate(inputs, attributes)
    inputs["fc1_global_scale"] = np.full(4, 3, np.float32)
    np.testing.assert_array_equal(qmoe_node.evaluate(inputs, attributes), expected)
    (finding,) = in_graph(inputs, attributes).findings
    assert (finding.port, finding.severity) == ("fc1_global_scale", Severity.WARNING)


def test_unknown_backend():
    with pytest.raises(StudioError, match="backend"):
        qmoe_node.evaluate(*make_layer(), backend="abacus")


def test_the_declaration_has_every_port_and_attribute_of_the_schema():
    schema = next(schema for schema in get_all_operator_schema() if schema.name == "QMoE")
    assert [port.name for port in QMoE.inputs] == [port.name for port in schema.inputs]
    assert [port.type for port in QMoE.inputs] == [port.typeStr for port in schema.inputs]
    optional = [port.option.name == "Optional" for port in schema.inputs]
    assert [port.optional for port in QMoE.inputs] == optional
    assert {parameter.attribute for parameter in QMoE.parameters} - {None} == set(schema.attributes) == set(ATTRIBUTES)
    assert {name: list(kinds) for name, kinds in QMoE.type_constraints.items()} == {
        constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints
    }
    assert all(item.doc for item in (*QMoE.inputs, *QMoE.outputs, *QMoE.parameters))


def test_shown_zeros_mean_the_operators_defaults():
    assert QMoE.to_attributes({"k": 0, "swiglu_limit": 0.0, "activation_alpha": 0.0, "expert_weight_bits": 0}) == {}
    assert QMoE.to_attributes({"swiglu_limit override": 0.0}) == {"swiglu_limit": 0.0}
    assert QMoE.to_parameters({"activation_alpha": 0.0}) == {"activation_alpha override": 0.0}
    for name in ("activation_alpha", "activation_beta", "block_size", "expert_weight_bits", "k", "swiglu_limit"):
        assert QMoE.parameter(name).default == 0


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_tensor_of_another_shape_is_always_refused(data):
    block_size = data.draw(st.sampled_from([0, 16]))
    inputs, attributes = make_layer(
        fc3=True, router_weights=True, zero_points=True, block_size=block_size, activation_type="silu"
    )
    name = data.draw(st.sampled_from(sorted(inputs)))
    old = inputs[name].shape
    shape = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, *old]), max_size=4).map(tuple))
    # Without blocks, scales of one block are row-wise scales in another form.
    same = {old, (*old, 1)} if name.endswith("_scales") and not block_size else {old}
    if name == "input":
        same |= {(*lead, old[1]) for lead in [shape[:-1]] if len(lead) == 2 and lead[0] * lead[1] == old[0]}
    assume(shape not in same)
    inputs[name] = np.zeros(shape, inputs[name].dtype)
    with pytest.raises(GraphError) as caught:
        qmoe_node.evaluate(inputs, attributes)
    ports = {finding.port for finding in caught.value.findings}
    # Another number of tokens is the router's mistake as much as the input's.
    assert name in ports or (name == "input" and ports == {"router_probs", "router_weights"})
