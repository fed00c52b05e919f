"""QMoE rewritten for ONNX Runtime's kernels, and into standard operators: both give the operator's own numbers."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

import qmoe_node
from runtime import Graph, Session, Tensor, lowering
from runtime.errors import GraphError, Severity
from tests.qmoe_layers import layers, make_float_layer, make_layer
from tests.qmoe_models import TOKEN_INPUTS, difference, model_of, run_lowered, run_ort

GEGLU = {"activation_type": "geglu", "swiglu_fusion": 1}
SWIGLU = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.702, "activation_beta": 1.0}


def operators(model):
    return [node.op_type for node in model.graph if node.domain == "com.microsoft"]


def kernel(model):
    return next(node for node in model.graph if node.op_type == "QMoE")


def expanded(inputs, attributes, **options):
    model = model_of(inputs, attributes, **options)
    lowering.expand(model)
    return model


# Lowering


@settings(deadline=None, max_examples=120)
@given(layers(), st.booleans(), st.booleans())
def test_lowered_node_computes_what_the_operator_means(layer, feeds, constant):
    inputs, attributes, _ = layer
    variable = TOKEN_INPUTS if constant else tuple(inputs)
    got, _ = run_lowered(inputs, attributes, feeds=feeds, variable=variable)
    assert difference(got, inputs, attributes) <= 1


@pytest.mark.parametrize("quant_type", ["fp4", "nvfp4", "fp8"])
@pytest.mark.parametrize("variable", [False, True])
def test_float_weights(quant_type, variable):
    inputs, attributes = make_float_layer(quant_type=quant_type, activation_type="swiglu", swiglu_fusion=1)
    options = {"variable": tuple(name for name in inputs if name != "fc1_scales")} if variable else {}
    if variable and quant_type == "fp4":
        options["variable"] = tuple(name for name in options["variable"] if name != "fc2_scales")
    got, _ = run_lowered(inputs, attributes, **options)
    assert difference(got, inputs, attributes) <= 1


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("block_size", [0, 32, 128])
def test_narrow_codes_run_as_blocks_of_4_bits(bits, block_size):
    inputs, attributes = make_layer(
        bits=(bits,) * 3, block_size=block_size, hidden=64, inter=192, zero_points=True, **SWIGLU
    )
    got, model = run_lowered(inputs, attributes)
    assert difference(got, inputs, attributes) <= 1
    assert operators(model) == ["QMoE"]
    assert kernel(model).attributes["expert_weight_bits"].value == 4
    assert kernel(model).attributes["block_size"].value in (32, 64)


def test_three_bits():
    inputs, attributes = make_layer(
        bits=(3, 3, 3), block_size=32, hidden=64, inter=64, kind="float16", weights_prepacked=0, **SWIGLU
    )
    got, model = run_lowered(inputs, attributes)
    assert difference(got, inputs, attributes) <= 1
    assert operators(model) == ["QMoE"]


@pytest.mark.parametrize("feeds", [True, False])
def test_8_bit_blocks_keep_float_activations(feeds):
    inputs, attributes = make_layer(bits=(8, 8, 8), block_size=32, hidden=128, inter=256, **SWIGLU)
    got, model = run_lowered(inputs, attributes, feeds=feeds)
    assert difference(got, inputs, attributes) <= 1
    assert operators(model) == ["QMoE"]
    assert bool(model.meta.get(lowering.FEEDS)) is feeds
    if not feeds:  # the file needs no inputs but its own
        assert {value.name for value in model.graph.inputs if value.const_value is None} == {"input", "router_probs"}


@pytest.mark.parametrize("bits", [4, 8])
def test_fast_precision_may_round_activations_and_says_so(bits):
    inputs, attributes = make_layer(bits=(bits,) * 3, hidden=128, inter=256, **SWIGLU)
    model = model_of(inputs, attributes)
    findings = lowering.lower(model, precision="fast")
    assert [(finding.node, finding.severity, finding.code) for finding in findings] == [
        ("moe", Severity.NOTE, "fast-kernel")
    ]
    assert 1 < difference(run_ort(model, inputs), inputs, attributes) < 5000


def test_unchanged_weights_are_not_copied():
    inputs, attributes = make_layer(hidden=64, inter=64, block_size=32, **SWIGLU)
    model = model_of(inputs, attributes)
    before = dict(model.graph.initializers)
    lowering.lower(model)
    assert set(model.graph.initializers) == set(before)
    assert all(model.graph.initializers[name].const_value is value.const_value for name, value in before.items())


def test_weights_that_nobody_reads_any_more_go():
    inputs, attributes = make_layer(bits=(2, 2, 2), fc3=True, activation_type="silu")
    model = model_of(inputs, attributes)
    lowering.lower(model)
    read = {value.name for node in model.graph for value in node.inputs if value is not None}
    assert set(model.graph.initializers) <= read


@pytest.mark.parametrize("kind", ["plain", "normalized", "weights"])
def test_equal_logits_go_to_the_lower_expert(kind):
    options = {"normalize_routing_weights": 1} if kind == "normalized" else {}
    inputs, attributes = make_layer(experts=6, router_weights=kind == "weights", **options)
    inputs["router_probs"] = np.array(
        [
            [0, 0, 0, 0, 0, 0],
            [1, 2, 2, 2, 1, 0],
            [0.0, -0.0, -1, 0, 0, -0.0],
            [-9, -9, -9, -9, -8, -9],
            [3, 1, 3, 1, 3, 1],
        ],
        np.float32,
    )
    got, _ = run_lowered(inputs, attributes)
    assert difference(got, inputs, attributes) <= 1


EDGE_LOGITS = [
    [np.nan, 1, 2, 3],
    [np.inf, 0, 0, 0],
    [-np.inf, -np.inf, -np.inf, -np.inf],
    [-np.inf, 5, -np.inf, -np.inf],
    [1e4, -1e4, 0, 0],
]


@pytest.mark.parametrize("activation", [{"activation_type": "silu"}, GEGLU])
@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize("router_weights", [False, True])
def test_extreme_logits(activation, normalize, router_weights):
    inputs, attributes = make_layer(router_weights=router_weights, normalize_routing_weights=normalize, **activation)
    inputs["router_probs"] = np.array(EDGE_LOGITS, np.float32)
    got, _ = run_lowered(inputs, attributes)
    assert difference(got, inputs, attributes) <= 1
    model = expanded(inputs, attributes)
    assert difference(run_ort(model, inputs), inputs, attributes) <= 1


@pytest.mark.parametrize("activation", [{"activation_type": "silu"}, GEGLU])
@pytest.mark.parametrize("normalize", [0, 1])
def test_extreme_mixing_weights(activation, normalize):
    inputs, attributes = make_layer(
        experts=2, tokens=7, k=2, router_weights=True, normalize_routing_weights=normalize, **activation
    )
    inputs["router_weights"] = np.array(
        [[0, 0], [1e-12, 3e-12], [-1e-9, -2e-9], [2, -1], [np.nan, 1], [1e-30, 1], [3e38, 1e38]], np.float32
    )
    if not normalize:
        inputs["router_weights"][6] = [np.inf, 1]
        inputs["fc2_experts_bias"] += 100  # no output is zero
    got, _ = run_lowered(inputs, attributes)
    with np.errstate(over="ignore"):
        for row in range(7):
            one = {name: array[row : row + 1] if name in TOKEN_INPUTS else array for name, array in inputs.items()}
            assert difference(got[row : row + 1], one, attributes) <= 1


SATURATING = [
    {"activation_type": "silu"},
    {"activation_type": "gelu"},
    {"activation_type": "gelu", "bits": (8, 8, 8), "block_size": 16},
    {"activation_type": "gelu", "fc3": True},
    SWIGLU,
    SWIGLU | {"swiglu_limit": 1e9, "swiglu_limit_after_activation": 1},
]


@pytest.mark.parametrize("options", SATURATING)
@pytest.mark.parametrize("shift", [-5, -10, -18])
def test_small_numbers_have_all_their_digits(options, shift):
    """Where every gate is closed, ONNX Runtime's own Sigmoid and Tanh have no correct digit left."""
    if options["activation_type"] == "gelu":
        shift /= 3
    inputs, attributes = make_layer(hidden=64, inter=64, experts=3, **options)
    inputs["fc1_scales"] *= 0.1
    inputs["fc1_experts_bias"][:] = shift
    inputs["fc2_experts_bias"][:] = 0
    inputs["fc2_scales"] /= np.abs(qmoe_node.evaluate(inputs, attributes)).max()
    assert np.abs(qmoe_node.evaluate(inputs, attributes)).max() > 0.5
    for variable in (TOKEN_INPUTS, tuple(inputs)):
        got, _ = run_lowered(inputs, attributes, variable=variable)
        assert difference(got, inputs, attributes) <= 1
    assert difference(run_ort(expanded(inputs, attributes), inputs), inputs, attributes) <= 1


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "identity", "relu2"])
@pytest.mark.parametrize("fc3", [False, True])
@pytest.mark.parametrize("gate", [-np.inf, np.inf, np.nan, 1e30, -1e30])
def test_extreme_gates(name, fc3, gate):
    inputs, attributes = make_layer(activation_type=name, fc3=fc3, experts=2)
    inputs["fc1_experts_bias"][:, 0] = gate
    for variable in (TOKEN_INPUTS, tuple(inputs)):
        got, _ = run_lowered(inputs, attributes, variable=variable)
        assert difference(got, inputs, attributes) <= 1


def test_nan_in_a_token_stays_in_its_row():
    inputs, attributes = make_layer(hidden=128, inter=128, bits=(8, 8, 8), block_size=32, **SWIGLU)
    inputs["input"][2, 3] = np.nan
    got, _ = run_lowered(inputs, attributes)
    assert np.isnan(got[2]).all() and np.isfinite(np.delete(got, 2, axis=0)).all()


def test_router_weights_known_to_be_positive_need_no_second_pass():
    inputs, attributes = make_layer(router_weights=True)
    inputs["router_weights"] = np.abs(inputs["router_weights"])
    constant, model = run_lowered(inputs, attributes, variable=("input", "router_probs"))
    variable, signed = run_lowered(inputs, attributes)
    assert difference(constant, inputs, attributes) <= 1
    assert difference(variable, inputs, attributes) <= 1
    assert len(model.graph) < len(signed.graph)


def test_every_new_node_belongs_to_the_node_it_stands_for():
    inputs, attributes = make_layer(fc3=True, activation_type="gelu", kind="float16")
    model = model_of(inputs, attributes)
    lowering.lower(model)
    assert {node.metadata_props["qmoe.node"] for node in model.graph.all_nodes()} == {"moe"}
    names = [node.name for node in model.graph.all_nodes()]
    assert len(set(names)) == len(names)
    assert model.graph.outputs[0].name == "output"


@pytest.mark.parametrize("options", [{"router_weights": True}, {"bits": (8, 8, 8), "block_size": 16}, {"fc3": True}])
def test_lowering_twice_changes_no_numbers(options):
    inputs, attributes = make_layer(activation_type="silu", **options)
    model = model_of(inputs, attributes)
    lowering.lower(model, feeds=False)
    lowering.lower(model, feeds=False)
    assert difference(run_ort(model, inputs), inputs, attributes) <= 1
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names)


def test_open_weight_shapes_are_refused_with_a_sentence():
    inputs, attributes = make_layer()
    model = model_of(inputs, attributes, variable=tuple(inputs))
    for value in model.graph.inputs:
        if value.name.startswith("fc1"):
            value.shape = ir.Shape([None] * len(value.shape))
    for value in model.graph.inputs:
        if value.name in ("fc2_experts_weights", "fc2_scales"):
            value.shape = ir.Shape([None] * len(value.shape))
    with pytest.raises(GraphError, match="known before the run") as caught:
        lowering.lower(model)
    assert caught.value.findings[0].node == "moe"


def test_nodes_in_subgraphs_and_functions_are_lowered():
    inputs, attributes = make_layer(bits=(8, 8, 8), block_size=16, hidden=32, inter=32, **SWIGLU)
    model = model_of(inputs, attributes)
    (node,) = list(model.graph)
    output = node.outputs[0]
    graph = model.graph
    graph.outputs.clear()
    graph.remove(node)
    output.name = "inner"
    body = ir.Graph([], [output], nodes=[node], name="body")
    other = ir.node("Identity", [graph.inputs[0]])
    other.outputs[0].name = "other"
    otherwise = ir.Graph([], [other.outputs[0]], nodes=[other], name="otherwise")
    condition = ir.node("Constant", [], {"value": ir.tensor(np.array(True))})
    condition.outputs[0].name = "condition"
    choice = ir.node("If", [condition.outputs[0]], {"then_branch": body, "else_branch": otherwise}, name="choice")
    choice.outputs[0].name = "output"
    choice.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.extend([condition, choice])
    graph.outputs.append(choice.outputs[0])
    lowering.lower(model)
    assert difference(run_ort(model, inputs), inputs, attributes) <= 1
    assert {inner.metadata_props["qmoe.node"] for inner in body} == {"choice"}


# Standard operators


@settings(deadline=None, max_examples=60)
@given(layers(), st.booleans())
def test_standard_operators_compute_what_the_operator_means(layer, constant):
    inputs, attributes, _ = layer
    variable = TOKEN_INPUTS if constant else tuple(inputs)
    model = expanded(inputs, attributes, variable=variable)
    assert {node.domain for function in model.functions.values() for node in function.all_nodes()} == {""}
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert difference(run_ort(model, inputs), inputs, attributes) <= 1
    feeds = {name: array for name, array in inputs.items() if name in variable}
    (got,) = ReferenceEvaluator(proto).run(None, feeds)
    assert difference(np.asarray(got), inputs, attributes) <= 1


@pytest.mark.parametrize("opset", [13, 15, 18, 21])
@pytest.mark.parametrize("options", [{"use_sparse_mixer": 1}, {"router_weights": True}, {"kind": "float16"}])
def test_standard_operators_of_several_versions(opset, options):
    inputs, attributes = make_layer(**options, activation_type="gelu", fc3=True)
    model = expanded(inputs, attributes, opset=opset)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert difference(run_ort(model, inputs), inputs, attributes) <= 1


def test_too_old_standard_operators_are_refused():
    inputs, attributes = make_layer()
    with pytest.raises(GraphError, match=r"version 13 .* has 12"):
        expanded(inputs, attributes, opset=12)


@pytest.mark.parametrize("quant_type", ["fp4", "nvfp4", "fp8"])
@pytest.mark.parametrize("prepacked", [-1, 1])
def test_float_weights_in_standard_operators(quant_type, prepacked):
    block_size = {"fp4": 32, "nvfp4": 16, "fp8": 128}[quant_type]
    inputs, attributes = make_float_layer(
        quant_type=quant_type, prepacked=prepacked, block_size=block_size, activation_type="swiglu", swiglu_fusion=2
    )
    model = expanded(inputs, attributes)
    assert difference(run_ort(model, inputs), inputs, attributes) <= 1
    feeds = {name: inputs[name] for name in ("input", "router_probs")}
    (got,) = ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)
    assert difference(got, inputs, attributes) <= 1


@pytest.mark.parametrize("bits", [2, 4])
def test_prepacked_codes_in_standard_operators(bits):
    inputs, attributes = make_layer(hidden=64, inter=64, bits=(bits,) * 3, weights_prepacked=1, **SWIGLU)
    assert difference(run_ort(expanded(inputs, attributes), inputs), inputs, attributes) <= 1
    got, _ = run_lowered(inputs, attributes)
    assert difference(got, inputs, attributes) <= 1


def test_layers_of_the_same_form_share_a_function():
    inputs, attributes = make_layer()
    model = model_of(inputs, attributes)
    (node,) = list(model.graph)
    second = ir.node("QMoE", [node.outputs[0], *node.inputs[1:]], attributes, domain="com.microsoft", name="second")
    second.outputs[0].name = "deeper"
    second.outputs[0].type = node.outputs[0].type
    model.graph.append(second)
    model.graph.outputs.append(second.outputs[0])
    lowering.expand(model)
    assert len(model.functions) == 1
    assert [call.name for call in model.graph] == ["moe", "second"]


@pytest.mark.parametrize("port", ["fc1_experts_bias", "fc1_experts_weights", "fc2_scales", "fc1_scales"])
@pytest.mark.parametrize("how", ["input", "constant expression"])
def test_8_bit_blocks_stay_exact_where_some_tensors_are_no_initializers(port, how):
    inputs, attributes = make_layer(bits=(8, 8, 8), block_size=32, hidden=64, inter=64, activation_type="silu")
    graph = qmoe_graph(inputs, attributes)
    if how == "input":
        kind = "tensor(uint8)" if inputs[port].dtype == np.uint8 else "tensor(float)"
        graph.cut(f"moe.{port}")
        graph.add("Input", "fed", parameters={"type": kind, "shape": list(inputs[port].shape)})
        graph.wire("fed.value", f"moe.{port}")
    else:
        graph.cut(f"moe.{port}")
        graph.add("Identity", "same")
        graph.wire(f"{port}.value", "same.input")
        graph.wire("same.output", f"moe.{port}")
    feeds = {name: inputs[name] for name in ("input", "router_probs")} | (
        {"fed": inputs[port]} if how == "input" else {}
    )
    got = Session(graph).forward(feeds)["y"]
    assert difference(got, inputs, attributes) <= 1


@pytest.mark.parametrize("shape", [(1, 0), (2, 0), (0, 3)])
@pytest.mark.parametrize("options", [{"activation_type": "gelu"}, SWIGLU, {"bits": (8, 8, 8), "block_size": 16}])
def test_no_tokens_in_three_dimensions(shape, options):
    inputs, attributes = make_layer(hidden=32, inter=32, **options)
    inputs["input"] = np.zeros((*shape, 32), np.float32)
    inputs["router_probs"] = np.zeros((0, inputs["router_probs"].shape[1]), np.float32)
    for backend in ("numpy", "onnxruntime"):
        assert qmoe_node.evaluate(inputs, attributes, backend=backend).shape == (*shape, 32)
    assert run_ort(expanded(inputs, attributes), inputs).shape == (*shape, 32)


def qmoe_graph(inputs, attributes):
    graph = Graph("g", opsets={"": 21})
    graph.add("com.microsoft.QMoE", "moe", parameters=dict(attributes))
    for name, array in inputs.items():
        if name in ("input", "router_probs"):
            graph.add("Input", name, parameters={"type": "tensor(float)", "shape": list(array.shape)})
        else:
            graph.add("Initializer", name, parameters={"tensor": Tensor.from_array(array)})
        graph.wire(f"{name}.value", f"moe.{name}")
    graph.add("Output", "y")
    graph.wire("moe.output", "y.value")
    return graph
