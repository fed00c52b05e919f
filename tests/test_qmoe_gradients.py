"""QMoE's gradients: against central differences in float64, against torch's, and between the backends."""

import json
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

import qmoe_node
import runtime
from qmoe_node import kernel, kernel_weights
from qmoe_node.activations import NAMES, activate, activate_gradient, join, split
from qmoe_node.differentiable import DIFFERENTIABLE, WEIGHTS
from qmoe_node.grad import QMoEGrad
from qmoe_node.layer import GATED, Settings
from qmoe_node.packing import pack
from qmoe_node.parallel import in_order
from qmoe_node.routing import route, route_gradient
from runtime import Graph, GraphError, Session, Tensor, catalog
from runtime.check import Checker, check
from runtime.graph import PortRef
from tests.qmoe_layers import layers, make_float_layer, make_layer
from tests.qmoe_oracle import chosen
from tests.qmoe_slopes import Slopes

STEP = 1e-6
BLOCKS = sorted((Path(__file__).parent / "data" / "qmoe_gradients").glob("*.npz"))
"""Blocks of tiny random models with torch's float32 gradients; weights are bfloat16, held as uint16."""


@st.composite
def activations(draw):
    """(settings, whether there is an fc3) over all forms of activations."""
    name = draw(st.sampled_from(NAMES))
    fusion = draw(st.sampled_from([0, 1, 2])) if name in GATED else 0
    third = fusion == 0 if name in GATED else draw(st.booleans())
    limit = draw(st.sampled_from([0.0, 0.5, 2.0, float("inf"), float("nan")]))
    return Settings(
        activation_type=name,
        activation_alpha=draw(st.sampled_from([0.0, 1.0, 1.702, -0.5])),
        activation_beta=draw(st.sampled_from([0.0, 1.0, -0.25])),
        swiglu_fusion=fusion,
        swiglu_limit=limit,
        swiglu_limit_after_activation=draw(st.booleans()),
    ), third


@settings(deadline=None, max_examples=150)
@given(activations(), st.integers(0, 2**20))
def test_activations_in_double_precision(case, seed):
    options, has_third = case
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((3, 8)) * 3
    third = rng.standard_normal((3, 8)) * 3 if has_third else None
    upstream = rng.standard_normal(activate(options, first, third).shape)
    gradients = activate_gradient(options, first, third, upstream)

    def slopes(which):
        # Elementwise, so that all elements of one tensor move at once where gate and linear part are apart.
        moved = []
        for column in range(8):
            given = [first, third]
            results = []
            for sign in (1, -1):
                changed = given[which].copy()
                changed[:, column] += sign * STEP
                arguments = [changed if index == which else given[index] for index in range(2)]
                results.append((activate(options, *arguments) * upstream).sum(axis=-1))
            moved.append((results[0] - results[1]) / (2 * STEP))
        return np.stack(moved, axis=-1)

    for which in range(2 if has_third else 1):
        difference = np.abs(slopes(which) - gradients[which])
        assert difference.max() <= 1e-7 * max(1, np.abs(gradients[which]).max())
    assert has_third or gradients[1] is None


@pytest.mark.parametrize("name", NAMES)
def test_slopes_far_out_are_finite_and_nan_stays_nan(name):
    x = np.array([[-3e38, -1e20, -300, 0, 300, 1e9, np.nan, 1]], np.float32)
    options = Settings(activation_type=name)
    third = np.ones_like(x) if name in GATED else None
    first, _ = activate_gradient(options, x, third, np.ones_like(x))
    assert first.dtype == np.float32
    assert np.isnan(first[0, 6]) == (name not in ("relu", "identity"))
    assert np.isfinite(np.delete(first, 6)).all()


def test_nothing_flows_beyond_a_clamp_and_the_gate_is_clamped_from_above_only():
    options = Settings(activation_type="swiglu", swiglu_limit=1.0)
    gate, linear = np.float32([[2, -2, 0.5, 0.5]]), np.float32([[0.5, 0.5, 2, -2]])
    gates, linears = activate_gradient(options, gate, linear, np.ones_like(gate))
    assert (gates != 0).tolist() == [[False, True, True, True]]
    assert (linears != 0).tolist() == [[True, True, False, False]]


FORMS = [(normalized, given, False) for normalized in (False, True) for given in (False, True)] + [(False, False, True)]


@pytest.mark.parametrize(("normalized", "given_weights", "sparse"), FORMS)
def test_routing_in_double_precision(normalized, given_weights, sparse):
    attributes = {"k": 2, "normalize_routing_weights": int(normalized), "use_sparse_mixer": int(sparse)}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        logits = rng.standard_normal((1, 8)).astype(np.float32) * (0.3 if sparse else 2)
        own = rng.uniform(0.1, 1, (1, 8)).astype(np.float32) if given_weights else None
        upstream = rng.standard_normal((1, 2)).astype(np.float32)
        options = {"normalize_routing_weights": normalized, "use_sparse_mixer": sparse, "router_weights": own}
        routing = route(logits, 2, **options)
        found = route_gradient(logits, routing, upstream, **options)
        shares = dict(zip(routing.indices[0].tolist(), upstream[0].tolist(), strict=True))
        rows = {"logits": logits[0].tolist(), "own": own[0].tolist() if given_weights else None}
        moving = "own" if given_weights else "logits"
        expected = np.empty(8)
        for expert in range(8):
            ends = []
            for sign in (1, -1):
                row = list(rows[moving])
                row[expert] += sign * STEP
                moved = rows | {moving: row}
                ends.append(sum(weight * shares[e] for e, weight in chosen(moved["logits"], moved["own"], attributes)))
            expected[expert] = (ends[0] - ends[1]) / (2 * STEP)
        got = found.router_weights if given_weights else found.router_probs
        assert np.abs(got[0] - expected).max() <= 2e-6 * max(1, np.abs(expected).max())
        assert given_weights == (found.router_weights is not None)
        assert not given_weights or not found.router_probs.any()


def test_routing_at_its_edges():
    logits = np.array([[1, 2, np.nan, 0], [1, 2, 3, 4]], np.float32)
    upstream = np.ones((2, 2), np.float32)
    routing = route(logits, 2)
    assert np.isnan(route_gradient(logits, routing, upstream).router_probs).all(axis=1).tolist() == [True, False]
    cancelling = np.array([[0, 0, 0, 0], [0, 0, -1, 1]], np.float32)
    options = {"router_weights": cancelling, "normalize_routing_weights": True}
    routing = route(logits, 2, **options)
    found = route_gradient(logits, routing, upstream, **options)
    assert np.isnan(found.router_weights[0]).all()
    assert not found.router_weights[1].any()
    assert not found.router_probs.any()
    sparse = {"router_weights": cancelling, "use_sparse_mixer": True}
    routing = route(logits[1:], 2, **sparse | {"router_weights": cancelling[1:]})
    found = route_gradient(logits[1:], routing, upstream[1:], **sparse)
    assert not found.router_weights.any()
    nobody = np.zeros((0, 4), np.float32)
    assert route_gradient(nobody, route(nobody, 2), nobody[:, :2]).router_probs.shape == (0, 4)


def every_port(inputs):
    return [port for port in (*DIFFERENTIABLE, *WEIGHTS) if port in inputs]


def upstream_of(inputs, seed=1):
    given = inputs["input"]
    return np.random.default_rng(seed).standard_normal(given.shape).astype(given.dtype)


def assert_slopes(inputs, attributes, inter, tolerance=1e-5):
    """All gradients beside measured slopes, relative to the largest; narrow types are rounded besides."""
    upstream = upstream_of(inputs)
    gradients = qmoe_node.gradients(inputs, attributes, upstream, wrt=every_port(inputs))
    slopes = Slopes(inputs, attributes, inter, upstream)
    for port, gradient in gradients.items():
        if port in WEIGHTS:
            assert gradient.dtype == np.float32
        else:
            assert gradient.shape == inputs[port].shape
            assert gradient.dtype == (inputs[port].dtype if inputs[port].dtype.itemsize > 1 else np.float32)
        rounding = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}[gradient.dtype.name]
        difference, _ = slopes.largest_difference({port: gradient}, np.random.default_rng(2))
        assert difference <= tolerance + 2 * rounding, port


@settings(deadline=None, max_examples=60)
@given(layers())
def test_every_option_against_slopes(case):
    assert_slopes(*case)


@pytest.mark.parametrize("prepacked", [-1, 1])
@pytest.mark.parametrize("quant_type", ["fp4", "nvfp4"])
@pytest.mark.parametrize("overall", [True, False])
def test_four_bit_floats(quant_type, prepacked, overall):
    inputs, attributes = make_float_layer(
        quant_type=quant_type, prepacked=prepacked, activation_type="swiglu", swiglu_fusion=1
    )
    if not overall and quant_type == "fp4":
        inputs = {name: array for name, array in inputs.items() if not name.endswith("global_scale")}
    assert_slopes(inputs, attributes, 64)


@pytest.mark.parametrize("block_size", [0, 16, 48])
def test_eight_bit_floats(block_size):
    inputs, attributes = make_float_layer(quant_type="fp8", block_size=block_size, fc3=bool(block_size))
    assert_slopes(inputs, attributes | {"activation_type": "silu"}, 64)


@pytest.mark.parametrize("bits", [2, 4])
def test_prepacked_integers(bits):
    inputs, attributes = make_layer(bits=(bits,) * 3, hidden=64, inter=64, block_size=32, activation_type="gelu")
    assert_slopes(inputs, attributes | {"weights_prepacked": 1}, 64)


def test_three_bits():
    inputs, attributes = make_layer(
        kind="bfloat16",
        bits=(3, 3, 3),
        hidden=64,
        inter=32,
        block_size=32,
        activation_type="swiglu",
        swiglu_fusion=1,
        weights_prepacked=0,
    )
    assert_slopes(inputs, attributes, 32)


@pytest.mark.parametrize("experts", [8, 16])
def test_the_sparse_mixer(experts):
    inputs, attributes = make_layer(experts=experts, hidden=16, inter=8, use_sparse_mixer=1)
    inputs["router_probs"] *= np.float32(0.2)  # so that the masks leave more than the winners
    assert_slopes(inputs, attributes, 8)


@pytest.mark.parametrize("block_size", [0, 16])
@pytest.mark.parametrize("quant_type", ["int", "fp4", "nvfp4", "fp8"])
def test_tiles_make_no_difference(quant_type, block_size, monkeypatch):
    if quant_type == "int":
        inputs, attributes = make_layer(hidden=40, inter=36, zero_points=True, block_size=block_size)
    else:
        block_size = block_size if quant_type == "fp8" else 0
        inputs, attributes = make_float_layer(quant_type=quant_type, block_size=block_size, tokens=6)
    upstream, wrt = upstream_of(inputs), every_port(inputs)
    whole = qmoe_node.gradients(inputs, attributes, upstream, wrt=wrt)
    monkeypatch.setattr(kernel_weights, "TILE_ELEMENTS", 1)
    for port, gradient in qmoe_node.gradients(inputs, attributes, upstream, wrt=wrt).items():
        np.testing.assert_allclose(gradient, whole[port], rtol=0, atol=2e-6 * np.abs(whole[port]).max())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_threads_change_no_bit(bits, monkeypatch):
    inputs, attributes = make_layer(experts=8, tokens=40, hidden=64, inter=64, bits=(bits,) * 3, block_size=32)
    upstream, wrt = upstream_of(inputs), every_port(inputs)
    alone = qmoe_node.gradients(inputs, attributes, upstream, wrt=wrt), qmoe_node.evaluate(inputs, attributes)
    monkeypatch.setattr(kernel, "WORTH_THREADS", 0)
    monkeypatch.setattr(kernel, "available_threads", lambda: 4)
    for _ in range(5):
        found = qmoe_node.gradients(inputs, attributes, upstream, wrt=wrt), qmoe_node.evaluate(inputs, attributes)
        assert all((found[0][port] == alone[0][port]).all() for port in alone[0]) and (found[1] == alone[1]).all()


def test_an_error_in_a_thread_is_told_and_products_have_their_threads_again(monkeypatch):
    before = [pool["num_threads"] for pool in threadpool_info()]

    def work(item):
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        list(in_order(work, range(100), 4))
    assert [pool["num_threads"] for pool in threadpool_info()] == before
    assert [result for _, result in in_order(lambda item: 2 * item, range(50), 3)] == list(range(0, 100, 2))


def test_float_weights_are_never_held(monkeypatch):
    inputs, attributes = make_layer(experts=2, tokens=4, hidden=512, inter=512, block_size=32)
    upstream = upstream_of(inputs)
    qmoe_node.gradients(inputs, attributes, upstream)  # tables and modules are made once
    monkeypatch.setattr(kernel_weights, "TILE_ELEMENTS", 1 << 14)
    tracemalloc.start()
    qmoe_node.gradients(inputs, attributes, upstream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 512 * 512 * 4 / 2  # half of one projection of one expert


def test_what_is_asked_for_is_what_comes():
    inputs, attributes = make_layer(biases=False, router_weights=True)
    upstream = upstream_of(inputs)
    found = qmoe_node.gradients(inputs, attributes, upstream)
    assert list(found) == ["input", "router_probs", "router_weights", "fc1_scales", "fc2_scales"]
    assert not found["router_probs"].any()
    for port in every_port(inputs):
        (name,) = alone = qmoe_node.gradients(inputs, attributes, upstream, wrt=[port, port])
        assert name == port
        if port in found:
            np.testing.assert_array_equal(alone[port], found[port])
    assert qmoe_node.gradients(inputs, attributes, upstream, wrt=[]) == {}
    floats, attributes = make_float_layer(quant_type="nvfp4")
    found = qmoe_node.gradients(floats, attributes, upstream_of(floats))
    assert list(found) == ["input", "router_probs", "fc1_global_scale", "fc2_global_scale"]


def test_gradients_of_narrow_types_are_rounded_once():
    inputs, attributes = make_layer(kind="float16", tokens=64)
    upstream = upstream_of(inputs)
    wide = {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in inputs.items()}
    exact = qmoe_node.gradients(wide, attributes, upstream.astype(np.float32))
    for port, gradient in qmoe_node.gradients(inputs, attributes, upstream).items():
        np.testing.assert_array_equal(gradient, exact[port].astype(np.float16))


def test_experts_without_tokens_get_zeros_and_unused_scales_too():
    inputs, attributes = make_layer(tokens=1, experts=6, k=1)
    inputs["fc1_global_scale"] = np.ones(6, np.float32)
    found = qmoe_node.gradients(inputs, attributes, upstream_of(inputs))
    (used,) = {int(np.argmax(inputs["router_probs"]))}
    for port in ("fc1_scales", "fc2_scales", "fc1_experts_bias", "fc2_experts_bias"):
        assert [bool(found[port][expert].any()) for expert in range(6)] == [expert == used for expert in range(6)]
    assert not found["fc1_global_scale"].any()


def test_malformed_requests_name_the_port():
    inputs, attributes = make_layer()
    upstream = upstream_of(inputs)
    for wrt, port, words in (
        (["fc1_zero_points"], "fc1_zero_points", "no gradient"),
        (["fc3_scales"], "fc3_scales", "nothing is connected"),
        (["weights"], "weights", "no input 'weights'"),
    ):
        with pytest.raises(GraphError, match=words) as caught:
            qmoe_node.gradients(inputs, attributes, upstream, wrt=wrt)
        assert [(finding.node, finding.port) for finding in caught.value.findings] == [("QMoE", port)]
    for wrong in (upstream[:-1], upstream.astype(np.float16), [1.0]):
        with pytest.raises(GraphError, match="output_gradient"):
            qmoe_node.gradients(inputs, attributes, wrong)
    with pytest.raises(GraphError, match="at most 4"):
        qmoe_node.gradients(inputs, attributes | {"k": 9}, upstream)


def floats_as_codes(weights, columns_apart, rows_apart):
    """(codes, scales) of a layer that computes with float weights [experts, rows, columns] exactly.

    Every weight is code 1 times a scale of its own: it stands in a block of 16 columns in which all other weights
    are zero. Rows and columns of the new layer are that far apart.
    """
    experts, rows, columns = weights.shape
    codes = np.full((experts, rows_apart * rows, columns_apart * columns), 2, np.uint8)
    codes[:, :, ::columns_apart] = 3
    scales = np.zeros((experts, rows_apart * rows, columns), np.float32)
    scales[:, ::rows_apart] = weights
    return pack(codes, 2), scales


@pytest.mark.parametrize("path", BLOCKS, ids=lambda path: path.stem)
def test_gradients_of_torch(path):
    with np.load(path) as file:
        case = {name: file[name] for name in file.files}
    for name, array in case.items():
        if array.dtype == np.uint16:
            case[name] = array.view(ml_dtypes.bfloat16).astype(np.float32)
    attributes = json.loads(str(case["attrs"]))
    gate, linear = split(case["gate_up"].swapaxes(1, 2), attributes["swiglu_fusion"])
    experts, hidden, inter = gate.shape
    x = np.zeros((*case["x"].shape, 16), np.float32)
    x[..., 0] = case["x"]
    logits = case["x"].reshape(-1, hidden) @ case["router"].T + case.get("router_bias", 0)
    inputs = {"input": x.reshape(1, -1, 16 * hidden), "router_probs": logits.astype(np.float32)}
    apart = [
        np.repeat(part.swapaxes(1, 2), 16, axis=1) * (np.arange(16 * inter) % 16 == 0)[:, None]
        for part in (gate, linear)
    ]
    first = join(*(part.swapaxes(1, 2) for part in apart), attributes["swiglu_fusion"]).swapaxes(1, 2)
    inputs["fc1_experts_weights"], inputs["fc1_scales"] = floats_as_codes(first, 16, 1)
    inputs["fc2_experts_weights"], inputs["fc2_scales"] = floats_as_codes(case["down"], 16, 16)
    if "down_bias" in case:
        biases = [np.zeros((experts, inter, 16), np.float32) for _ in range(2)]
        for bias, part in zip(biases, split(case["gate_up_bias"], attributes["swiglu_fusion"]), strict=True):
            bias[..., 0] = part
        inputs["fc1_experts_bias"] = join(*(bias.reshape(experts, -1) for bias in biases), attributes["swiglu_fusion"])
        inputs["fc2_experts_bias"] = np.zeros((experts, 16 * hidden), np.float32)
        inputs["fc2_experts_bias"][:, ::16] = case["down_bias"]
    attributes |= {"expert_weight_bits": 2, "block_size": 16}
    output = qmoe_node.evaluate(inputs, attributes)[..., ::16]
    assert np.abs(output - case["y"]).max() <= 1e-5 * np.abs(case["y"]).max()
    upstream = np.zeros_like(inputs["input"])
    upstream[..., ::16] = case["cotangent"]
    found = qmoe_node.gradients(inputs, attributes, upstream)

    def fused(gradient):
        """Rows of fc1 as torch has them, from rows of the layer with dead ones between."""
        parts = split(gradient.swapaxes(1, -1), attributes["swiglu_fusion"])
        return join(*(part[..., ::16] for part in parts), attributes["swiglu_fusion"]).swapaxes(1, -1)

    own = {
        "x": found["input"][..., ::16] + (found["router_probs"] @ case["router"]).reshape(case["x"].shape),
        "router": found["router_probs"].T @ case["x"].reshape(-1, hidden),
        "router_bias": found["router_probs"].sum(axis=0),
        "gate_up": fused(found["fc1_scales"]),
        "down": found["fc2_scales"][:, ::16],
    }
    if "down_bias" in case:
        own["gate_up_bias"] = fused(found["fc1_experts_bias"])
        own["down_bias"] = found["fc2_experts_bias"][:, ::16]
    for name in [name[5:] for name in case if name.startswith("grad.")]:
        expected = case[f"grad.{name}"]
        got = own[name][:2] if name in ("gate_up", "down") else own[name]
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max(), name
    for name in ("gate_up", "down"):
        norms = np.sqrt(np.square(own[name].astype(np.float64)).sum(axis=(1, 2)))
        np.testing.assert_allclose(norms, case[f"gradnorm.{name}"], rtol=1e-5)


def test_all_blocks_are_there():
    assert [path.stem for path in BLOCKS] == ["gpt_oss", "mixtral", "qwen3_moe"]


def graph_of(inputs, attributes, **settings):
    """A graph of one QMoE node, whose tensors of its own are initializers."""
    graph = Graph("block")
    parameters = qmoe_node._parameters(attributes)
    graph.add("com.microsoft.QMoE", "moe", parameters={**parameters, **settings})
    for name, array in inputs.items():
        if name in ("input", "router_probs", "router_weights"):
            declared = {"type": f"tensor({Tensor.from_array(array).type.element})", "shape": list(array.shape)}
            graph.add("Input", name, parameters=declared)
        else:
            graph.add("Initializer", name, parameters={"tensor": Tensor.from_array(array)})
        graph.wire(f"{name}.value", f"moe.{name}")
    graph.add("Output", "y")
    graph.wire("moe.output", "y.value")
    return graph


def gradient_graph(inputs, attributes, wrt):
    """A graph of one QMoEGrad node, with one output for each gradient."""
    if catalog.find("qmoe.QMoEGrad") is None:
        catalog.register(QMoEGrad)
    graph = Graph("gradients")
    graph.add("qmoe.QMoEGrad", "grad", parameters={**qmoe_node._parameters(attributes), "wrt": list(wrt)})
    given = {"output_gradient": upstream_of(inputs), **inputs}
    for name, array in given.items():
        if name in qmoe_node.TOKEN_INPUTS:
            declared = {"type": f"tensor({Tensor.from_array(array).type.element})", "shape": list(array.shape)}
            graph.add("Input", name, parameters=declared)
        else:
            graph.add("Initializer", name, parameters={"tensor": Tensor.from_array(array)})
        graph.wire(f"{name}.value", f"grad.{name}")
    for index, port in enumerate(wrt):
        graph.add("Output", f"to_{port}")
        graph.wire(f"grad.gradients.{index}", f"to_{port}.value")
    return graph, {name: array for name, array in given.items() if name in qmoe_node.TOKEN_INPUTS}


def assert_agreement(found, inputs, attributes):
    """Within 1e-5 of the largest of the NumPy kernel's gradients, and a rounding of narrow types."""
    exact = qmoe_node.gradients(inputs, attributes, upstream_of(inputs), wrt=list(found))
    for port, gradient in found.items():
        wanted = exact[port]
        assert gradient.shape == wanted.shape and gradient.dtype == wanted.dtype, port
        wanted, gradient = wanted.astype(np.float64), gradient.astype(np.float64)
        assert np.array_equal(np.isnan(wanted), np.isnan(gradient)), port
        rounding = {"float32": 0, "float16": 2**-10, "bfloat16": 2**-7}[exact[port].dtype.name]
        largest = max(np.nanmax(np.abs(wanted), initial=0), 1 if port.startswith("router") else 1e-6)
        difference = np.nan_to_num(np.abs(gradient - wanted))
        assert np.all(difference <= 1e-5 * largest + rounding * np.nan_to_num(np.abs(wanted)) + 1e-7), port


def run_native(inputs, attributes):
    """All gradients by ONNX Runtime's kernels alone."""
    wrt = every_port(inputs)
    graph, feeds = gradient_graph(inputs, attributes, wrt)
    session = Session(graph, "onnxruntime")
    found = session.forward(feeds)
    assert session.placement == {"grad": "onnxruntime"}
    return {port: found[f"to_{port}"] for port in wrt}


@settings(deadline=None, max_examples=20)
@given(layers())
def test_backends_agree_on_every_option(case):
    inputs, attributes, _ = case
    assert_agreement(run_native(inputs, attributes), inputs, attributes)


@pytest.mark.parametrize(
    "case",
    [
        make_float_layer(quant_type="fp4", activation_type="swiglu", swiglu_fusion=1),
        make_float_layer(quant_type="nvfp4", prepacked=1, activation_type="swiglu", swiglu_fusion=1, swiglu_limit=1.0),
        make_float_layer(quant_type="fp8", block_size=16, fc3=True),
        make_float_layer(quant_type="fp8"),
        make_float_layer(quant_type="fp8", block_size=48, activation_type="gelu"),
        make_layer(bits=(2, 2, 2), hidden=64, inter=64, block_size=32, weights_prepacked=1),
        make_layer(experts=8, use_sparse_mixer=1, kind="bfloat16"),
        make_layer(tokens=0, block_size=16),
        make_layer(tokens=6, batch=2, zero_points=True, row_rank=3),
    ],
    ids=["fp4", "nvfp4", "fp8-fc3", "fp8", "fp8-squares", "prepacked", "sparse-mixer", "no-tokens", "batch"],
)
def test_backends_agree(case):
    assert_agreement(run_native(*case), *case)
    inputs, attributes = case
    found = qmoe_node.gradients(inputs, attributes, upstream_of(inputs), backend="onnxruntime")
    assert list(found) == list(qmoe_node.gradients(inputs, attributes, upstream_of(inputs)))
    assert_agreement(found, inputs, attributes)


def test_a_nan_in_a_logit_makes_its_token_nan_on_both_backends():
    inputs, attributes = make_layer(router_weights=True, normalize_routing_weights=1)
    inputs["router_probs"][1, 2] = np.nan
    found = qmoe_node.gradients(inputs, attributes, upstream_of(inputs), wrt=["input", "router_weights"])
    for gradient in found.values():
        assert np.isnan(gradient).all(axis=1).tolist() == [False, True, False, False, False]
    assert_agreement({port: run_native(inputs, attributes)[port] for port in found}, inputs, attributes)


@pytest.mark.parametrize("kind", ["float", "float16"])
def test_a_file_of_standard_operators(kind, tmp_path):
    inputs, attributes = make_layer(kind=kind, activation_type="swiglu", swiglu_fusion=2, block_size=16)
    wrt = every_port(inputs)
    graph, feeds = gradient_graph(inputs, attributes, wrt)
    path = tmp_path / "gradients.onnx"
    runtime.save(graph, path, target="portable")
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {entry.domain for entry in model.opset_import} == {"", "qmoe.portable"}
    results = onnxruntime.InferenceSession(path).run([f"to_{port}" for port in wrt], feeds)
    assert_agreement(dict(zip(wrt, results, strict=True)), inputs, attributes)


@pytest.mark.parametrize("backend", ["numpy", "onnxruntime"])
def test_graphs_with_a_node(backend):
    inputs, attributes = make_layer(kind="float16", activation_type="geglu", swiglu_fusion=1)
    session = Session(graph_of(inputs, attributes), backend)
    session.forward({name: inputs[name] for name in ("input", "router_probs")})
    wanted = [port for port in DIFFERENTIABLE if port in inputs]
    assert_agreement(session.backward({"y": upstream_of(inputs)}, wanted), inputs, attributes)
    assert session.last_run.kept == {"moe": inputs["input"].nbytes + inputs["router_probs"].nbytes}
    assert list(session.backward({"y": 1.0}, ["fc1_scales"])) == ["fc1_scales"]


@pytest.mark.parametrize("backend", ["numpy", "onnxruntime"])
def test_the_coefficient_multiplies_only_what_goes_to_other_nodes(backend):
    inputs, attributes = make_layer(router_weights=True)
    feeds = {name: inputs[name] for name in ("input", "router_probs", "router_weights")}
    wanted = [port for port in DIFFERENTIABLE if port in inputs]
    plain, scaled = (Session(graph_of(inputs, attributes, **{"lda coeff": value}), backend) for value in (1.0, 0.25))
    for session in (plain, scaled):
        session.forward(feeds)
    before, after = (session.backward({"y": upstream_of(inputs)}, wanted) for session in (plain, scaled))
    for port in wanted:
        factor = 0.25 if port in feeds else 1
        np.testing.assert_allclose(after[port], factor * before[port], rtol=1e-6)


def test_a_node_that_is_not_in_training_keeps_nothing():
    inputs, attributes = make_layer()
    session = Session(graph_of(inputs, attributes, **{"training?": False}), "numpy")
    session.forward({name: inputs[name] for name in ("input", "router_probs")})
    with pytest.raises(GraphError, match="keeps nothing for the backward pass") as caught:
        session.backward({"y": 1.0})
    assert [(finding.node, finding.port) for finding in caught.value.findings] == [("moe", "training?")]
    assert not session.last_run.kept


def test_gradients_of_gradients_stop_with_a_sentence():
    inputs, attributes = make_layer()
    graph, feeds = gradient_graph(inputs, attributes, ["input"])
    session = Session(graph, "numpy")
    session.forward(feeds)
    with pytest.raises(GraphError, match="qmoe.QMoEGrad has no gradient"):
        session.backward({"to_input": 1.0}, ["input"])


@pytest.mark.parametrize("backend", ["numpy", "onnxruntime"])
def test_gradients_flow_through_to_nodes_before(backend):
    inputs, attributes = make_layer(activation_type="silu", normalize_routing_weights=1)
    graph = graph_of(inputs, attributes)
    rng = np.random.default_rng(5)
    router = rng.standard_normal((32, 4)).astype(np.float32)
    graph.remove("router_probs")
    graph.add("Initializer", "router", parameters={"tensor": Tensor.from_array(router)})
    graph.add("MatMul", "logits")
    graph.wire("input.value", "logits.A")
    graph.wire("router.value", "logits.B")
    graph.wire("logits.Y", "moe.router_probs")
    session = Session(graph, backend)
    session.forward({"input": inputs["input"]})
    found = session.backward({"y": upstream_of(inputs)}, ["input", "router"])
    inputs["router_probs"] = inputs["input"] @ router
    own = qmoe_node.gradients(inputs, attributes, upstream_of(inputs))
    expected = {
        "input": own["input"] + own["router_probs"] @ router.T,
        "router": inputs["input"].T @ own["router_probs"],
    }
    for name, gradient in expected.items():
        assert np.abs(found[name] - gradient).max() <= 1e-5 * np.abs(gradient).max()


def test_the_operator_knows_its_outputs_and_what_is_wrong():
    inputs, attributes = make_layer(kind="float16", activation_type="swiglu", swiglu_fusion=1)
    graph, _ = gradient_graph(inputs, attributes, ["fc1_experts_weights", "fc1_scales", "input"])
    types = [str(Checker(graph).type_of(PortRef("grad", f"gradients.{index}"))) for index in range(3)]
    assert types == ["tensor(float) [4, 96, 32]", "tensor(float16) [4, 96]", "tensor(float16) [5, 32]"]
    graph.set("grad", "wrt", ["input", "fc1_zero_points", "nothing"])
    assert [(finding.node, finding.port) for finding in check(graph)] == [("grad", "wrt")] * 2


def test_scales_that_another_node_computes_leave_the_backward_pass_with_onnx_runtime():
    inputs, attributes = make_layer(block_size=16)
    graph = graph_of(inputs, attributes)
    graph.remove("fc1_scales")
    logarithms = np.log(inputs["fc1_scales"])
    graph.add("Initializer", "logarithms", parameters={"tensor": Tensor.from_array(logarithms)})
    graph.add("Exp", "scales")
    graph.wire("logarithms.value", "scales.input")
    graph.wire("scales.output", "moe.fc1_scales")
    session = Session(graph, "onnxruntime")
    session.forward({name: inputs[name] for name in ("input", "router_probs")})
    found = session.backward({"y": upstream_of(inputs)}, ["logarithms"])["logarithms"]
    expected = qmoe_node.gradients(inputs, attributes, upstream_of(inputs))["fc1_scales"] * inputs["fc1_scales"]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    ((_, engine),) = session._current._backwards.values()
    assert engine.placement.backends["moe"] == "onnxruntime"


def test_the_gradient_of_a_large_layer_runs_in_numpy_and_says_so(monkeypatch):
    inputs, attributes = make_layer(experts=4, hidden=512, inter=512, block_size=32)
    graph = graph_of(inputs, attributes)
    made = []
    original = onnxruntime.InferenceSession

    def counted(*arguments, **keywords):
        made.append(arguments)
        return original(*arguments, **keywords)

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    session = Session(graph, "onnxruntime")
    feeds = {name: inputs[name] for name in ("input", "router_probs")}
    session.forward(feeds)
    found = session.backward({"y": upstream_of(inputs)}, ["input", "router_probs", "fc1_scales", "fc2_scales"])
    session.forward(feeds)
    assert len(made) == 1, "the backward pass reads the graph's inputs only"
    assert session.placement == {"moe": "onnxruntime"}
    assert [(finding.node, finding.code) for finding in session.findings] == [("moe", "on-numpy")]
    monkeypatch.setattr(QMoEGrad, "numpy_pays", None)
    rewritten = Session(graph, "onnxruntime")
    rewritten.forward(feeds)
    for name, expected in rewritten.backward({"y": upstream_of(inputs)}, list(found)).items():
        assert np.abs(found[name] - expected).max() <= 1e-5 * np.abs(expected).max(), name
    assert not rewritten.findings
