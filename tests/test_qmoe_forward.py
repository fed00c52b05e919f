"""QMoE's numbers: against torch's experts, against a naive float64 evaluation, and at the edges."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qmoe_node
from qmoe_node.node import QMoE
from tests.qmoe_layers import layers, make_float_layer, make_layer
from tests.qmoe_oracle import oracle

CASES = sorted((Path(__file__).parent / "data" / "qmoe").glob("*.npz"))


def assert_close(inputs, attributes, inter):
    """float32 within 1e-5 of the largest output; narrower types within a rounding of it besides."""
    output = qmoe_node.evaluate(inputs, attributes)
    expected = oracle(inputs, attributes, inter)
    assert output.shape == inputs["input"].shape
    assert output.dtype == inputs["input"].dtype
    largest = np.abs(expected).max(initial=0)
    rounding = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}[output.dtype.name]
    tolerance = 1e-5 * largest + rounding * np.abs(expected) + (1e-7 if rounding else 0)
    assert np.all(np.abs(output.astype(np.float64) - expected) <= tolerance)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_experts_of_torch(path):
    with np.load(path) as case:
        inputs = {name[3:]: case[name] for name in case.files if name.startswith("in.")}
        output = qmoe_node.evaluate(inputs, json.loads(str(case["attrs"])))
        expected = case["expected_routed"]
        assert np.abs(output * case["output_scale"] - expected).max() <= 1e-5 * np.abs(expected).max()
        routing = QMoE.routing(inputs, json.loads(str(case["attrs"])))
        np.testing.assert_array_equal(routing["experts"], case["topk_indices"])


def test_all_cases_are_there():
    assert len(CASES) == 9


@settings(deadline=None, max_examples=150)
@given(layers())
def test_every_option_against_float64(case):
    assert_close(*case)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("zero_points", [False, True])
def test_three_bits(kind, zero_points):
    inputs, attributes = make_layer(
        kind=kind,
        bits=(3, 3, 3),
        hidden=64,
        inter=32,
        block_size=32,
        activation_type="swiglu",
        swiglu_fusion=1,
        weights_prepacked=0,
    )
    if zero_points:
        for fc, blocks in (("fc1", 2), ("fc2", 1)):
            rows = inputs[f"{fc}_scales"].shape[1]
            row = np.packbits([0, 0, 1] * blocks, bitorder="little")
            inputs[f"{fc}_zero_points"] = np.tile(row, (4, rows, 1))
    assert_close(inputs, attributes, 32)


@pytest.mark.parametrize("bits", [(2, 2, 2), (4, 4, 4), (2, 4, 2)])
@pytest.mark.parametrize("zero_points", [False, True])
def test_prepacked_integers(bits, zero_points):
    inputs, attributes = make_layer(
        hidden=128,
        inter=64,
        experts=2,
        bits=bits,
        block_size=32,
        zero_points=zero_points,
        activation_type="swiglu",
        swiglu_fusion=1,
        weights_prepacked=1,
    )
    assert_close(inputs, attributes, 64)


@pytest.mark.parametrize("quant_type", ["fp4", "nvfp4"])
@pytest.mark.parametrize("prepacked", [-1, 0, 1])
@pytest.mark.parametrize("activation", [{}, {"activation_type": "swiglu", "swiglu_fusion": 1}])
def test_four_bit_floats(quant_type, prepacked, activation):
    inputs, attributes = make_float_layer(quant_type=quant_type, prepacked=prepacked, **activation)
    assert_close(inputs, attributes, 64)


def test_four_bit_floats_without_a_global_scale_and_with_fc3():
    inputs, attributes = make_float_layer(quant_type="fp4", fc3=True, activation_type="silu")
    del inputs["fc1_global_scale"]
    assert_close(inputs, attributes, 64)


def test_prepacked_four_bit_floats_may_keep_their_logical_dimensions():
    inputs, attributes = make_float_layer(quant_type="nvfp4", prepacked=1)
    expected = qmoe_node.evaluate(inputs, attributes)
    for fc in ("fc1", "fc2"):
        weights = inputs[f"{fc}_experts_weights"]
        experts, rows, halved = weights.shape
        inputs[f"{fc}_experts_weights"] = weights.reshape(experts, halved * 2, rows // 2)
    np.testing.assert_array_equal(qmoe_node.evaluate(inputs, attributes), expected)


def test_block_scale_of_255_is_nan_and_of_0_is_not_zero():
    inputs, attributes = make_float_layer(quant_type="fp4", tokens=1, experts=1, activation_type="identity")
    attributes["k"] = 1
    scales = np.full(inputs["fc2_scales"].shape, 127, np.uint8)
    scales[0, 0] = 255
    scales[0, 1] = 0
    inputs["fc2_scales"] = scales.view(ml_dtypes.float8_e8m0fnu)
    output = qmoe_node.evaluate(inputs, attributes)[0]
    assert np.isnan(output[0])
    assert 0 < abs(output[1]) < 1e-35
    assert np.all(np.isfinite(output[1:]))


@pytest.mark.parametrize("block_size", [0, 16, 32, 128])
@pytest.mark.parametrize("inter", [64, 40])
def test_eight_bit_floats(block_size, inter):
    inputs, attributes = make_float_layer(quant_type="fp8", block_size=block_size, inter=inter, activation_type="silu")
    assert_close(inputs, attributes, inter)


def test_eight_bit_floats_gated():
    inputs, attributes = make_float_layer(
        quant_type="fp8", block_size=32, inter=40, fc3=True, activation_type="swiglu", swiglu_limit=1.0
    )
    assert_close(inputs, attributes, 40)


def test_a_layer_larger_than_a_tile():
    inputs, attributes = make_layer(tokens=2, experts=2, hidden=2048, inter=1056, k=2, bits=(8, 2, 8), zero_points=True)
    weights = {}
    for fc, width, rows, columns in (("fc1", 8, 1056, 2048), ("fc2", 2, 2048, 1056)):
        bits = np.unpackbits(inputs[f"{fc}_experts_weights"], axis=-1, bitorder="little")
        codes = bits.reshape(2, rows, columns, width) @ 2.0 ** np.arange(width)
        zeros = np.unpackbits(inputs[f"{fc}_zero_points"], axis=-1, bitorder="little").reshape(2, rows, width)
        zeros = zeros @ 2.0 ** np.arange(width)
        weights[fc] = (codes - zeros[..., None]) * inputs[f"{fc}_scales"].astype(np.float64)[..., None]
    x, logits = inputs["input"].astype(np.float64), inputs["router_probs"].astype(np.float64)
    mixing = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.zeros(x.shape)
    for expert in range(2):
        middle = np.maximum(x @ weights["fc1"][expert].T + inputs["fc1_experts_bias"][expert], 0)
        expected += mixing[:, expert, None] * (middle @ weights["fc2"][expert].T + inputs["fc2_experts_bias"][expert])
    output = qmoe_node.evaluate(inputs, attributes)
    assert np.abs(output - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["int", "fp4", "nvfp4", "fp8"])
def test_the_layout_in_memory_does_not_matter(kind):
    inputs, attributes = (
        make_layer(block_size=16, zero_points=True) if kind == "int" else make_float_layer(quant_type=kind)
    )
    expected = qmoe_node.evaluate(inputs, attributes)
    inputs = {name: np.asfortranarray(array) for name, array in inputs.items()}
    np.testing.assert_allclose(qmoe_node.evaluate(inputs, attributes), expected, rtol=0, atol=2e-6)


def test_inputs_stay_what_they_were():
    inputs, attributes = make_layer(block_size=16, zero_points=True)
    for array in inputs.values():
        array.flags.writeable = False
    before = {name: array.copy() for name, array in inputs.items()}
    qmoe_node.evaluate(inputs, attributes)
    assert all(np.array_equal(inputs[name], before[name]) for name in inputs)


def one_hot_experts(experts, **attributes):
    """Expert e answers every token with e + 1, so that the output shows which experts were mixed, and how."""
    inputs, attributes = make_layer(tokens=1, experts=experts, hidden=8, inter=8, **attributes)
    inputs["fc2_scales"][:] = 0
    inputs["fc2_experts_bias"][:] = np.arange(1, experts + 1)[:, None]
    return inputs, attributes


def test_ties_go_to_the_lower_index():
    inputs, attributes = one_hot_experts(5, k=2, normalize_routing_weights=1)
    inputs["router_probs"][:] = [[1, 3, -0.0, 3, 3]]
    np.testing.assert_allclose(qmoe_node.evaluate(inputs, attributes), (2 + 4) / 2)
    inputs["router_probs"][:] = [[-1, 0.0, -0.0, 0.0, -1]]
    np.testing.assert_allclose(qmoe_node.evaluate(inputs, attributes), (2 + 3) / 2)


def test_small_zero_and_negative_weights_count():
    inputs, attributes = one_hot_experts(3, k=3)
    inputs["router_weights"] = np.array([[1e-12, -1, 0]], np.float32)
    inputs["fc2_experts_bias"][:] = np.array([1e12, 5, 7], np.float32)[:, None]
    np.testing.assert_allclose(qmoe_node.evaluate(inputs, attributes), 1 - 5)


def test_router_weights_whose_sum_is_zero_give_zero():
    inputs, attributes = one_hot_experts(3, k=2, normalize_routing_weights=1)
    inputs["router_probs"][:] = [[2, 1, 0]]
    inputs["router_weights"] = np.array([[1, -1, 3]], np.float32)
    np.testing.assert_array_equal(qmoe_node.evaluate(inputs, attributes), 0)


def test_sparse_mixer_weights_are_independent():
    inputs, attributes = one_hot_experts(4, k=2, use_sparse_mixer=1)
    inputs["router_probs"][:] = [[10, 5, 0, -5]]
    np.testing.assert_allclose(qmoe_node.evaluate(inputs, attributes), 1 + 2)
    attributes["normalize_routing_weights"] = 1
    np.testing.assert_allclose(qmoe_node.evaluate(inputs, attributes), 1 + 2)


@pytest.mark.parametrize("logit", [np.nan, np.inf])
@pytest.mark.parametrize("mode", [{}, {"normalize_routing_weights": 1}, {"use_sparse_mixer": 1}])
def test_a_logit_without_a_softmax_makes_its_row_nan(logit, mode):
    inputs, attributes = make_layer(k=2, **mode)
    clean = qmoe_node.evaluate(inputs, attributes)
    inputs["router_probs"][1, 3] = logit
    output = qmoe_node.evaluate(inputs, attributes)
    assert np.all(np.isnan(output[1]))
    np.testing.assert_array_equal(np.delete(output, 1, 0), np.delete(clean, 1, 0))


def test_a_nan_logit_makes_its_row_nan_with_router_weights_too():
    inputs, attributes = make_layer(router_weights=True)
    inputs["router_probs"][0, 0] = np.nan
    assert np.all(np.isnan(qmoe_node.evaluate(inputs, attributes)[0]))


def test_a_logit_of_minus_infinity_has_no_weight():
    inputs, attributes = one_hot_experts(2, k=2)
    inputs["router_probs"][:] = [[0, -np.inf]]
    np.testing.assert_array_equal(qmoe_node.evaluate(inputs, attributes), 1)
    inputs["router_probs"][:] = -np.inf
    assert np.all(np.isnan(qmoe_node.evaluate(inputs, attributes)))


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "identity", "relu2", "swiglu", "geglu"])
def test_nan_in_the_input(name):
    fusion = {"swiglu_fusion": 1, "swiglu_limit": 1.0} if name in ("swiglu", "geglu") else {}
    inputs, attributes = make_layer(activation_type=name, **fusion)
    clean = qmoe_node.evaluate(inputs, attributes)
    inputs["input"][2, 3] = np.nan
    output = qmoe_node.evaluate(inputs, attributes)
    if name == "relu":
        assert np.all(np.isfinite(output[2]))
    else:
        assert np.all(np.isnan(output[2]))
    np.testing.assert_array_equal(np.delete(output, 2, 0), np.delete(clean, 2, 0))


def test_float16_overflows_only_at_the_end():
    inputs, attributes = make_layer(kind="float16", activation_type="identity", k=1, biases=False, zero_points=False)
    inputs["input"] *= np.float16(10000)
    inputs["fc1_scales"] *= np.float16(20)
    inputs["fc2_scales"] *= np.float16(0.05)
    hidden = oracle(inputs, attributes, 48)
    output = qmoe_node.evaluate(inputs, attributes).astype(np.float64)
    assert np.all(np.isfinite(output))
    np.testing.assert_allclose(output, hidden, rtol=1e-3, atol=1e-3 * np.abs(hidden).max())
    inputs["fc2_scales"] *= np.float16(1000)
    assert np.any(np.isinf(qmoe_node.evaluate(inputs, attributes)))


@pytest.mark.parametrize("shape", [(0, 32), (2, 0, 32)])
def test_no_tokens(shape):
    inputs, attributes = make_layer(tokens=0)
    inputs["input"] = inputs["input"].reshape(shape)
    assert qmoe_node.evaluate(inputs, attributes).shape == shape


def test_scales_follow_the_formula_whatever_they_are():
    inputs, attributes = make_layer(k=4, biases=False, activation_type="identity")
    inputs["fc2_scales"][:, 0] = -inputs["fc2_scales"][:, 0]
    inputs["fc2_scales"][:, 1] = 0
    inputs["fc2_scales"][:, 2] = np.nan
    output = qmoe_node.evaluate(inputs, attributes)
    assert np.all(output[:, 1] == 0)
    assert np.all(np.isnan(output[:, 2]))
    inputs["fc2_scales"][:, 0] = -inputs["fc2_scales"][:, 0]
    np.testing.assert_array_equal(qmoe_node.evaluate(inputs, attributes)[:, 0], -output[:, 0])


def test_true_zeros_are_not_defaults():
    swiglu = {"activation_type": "swiglu", "swiglu_fusion": 1}
    plain = qmoe_node.evaluate(*make_layer(**swiglu))
    for zero in ("activation_alpha", "swiglu_limit"):
        inputs, attributes = make_layer(**swiglu, **{zero: 0.0})
        assert_close(inputs, attributes, 48)
        assert not np.allclose(qmoe_node.evaluate(inputs, attributes), plain)


@pytest.mark.parametrize("fusion", [0, 1, 2])
@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("limit", [0.25, 1.0, np.nan])
@pytest.mark.parametrize("alpha", [1.0, 1.702])
def test_swiglu_limits(fusion, after, limit, alpha):
    inputs, attributes = make_layer(
        activation_type="swiglu",
        swiglu_fusion=fusion,
        fc3=fusion == 0,
        swiglu_limit=limit,
        swiglu_limit_after_activation=after,
        activation_alpha=alpha,
        activation_beta=1.0,
    )
    assert_close(inputs, attributes, 48)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.permutations(range(6)))
def test_the_order_of_tokens_does_not_matter(seed, order):
    inputs, attributes = make_layer(seed, tokens=6, k=3)
    output = qmoe_node.evaluate(inputs, attributes)
    for name in ("input", "router_probs"):
        inputs[name] = inputs[name][order]
    np.testing.assert_allclose(qmoe_node.evaluate(inputs, attributes), output[order], rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.permutations(range(4)))
def test_the_order_of_experts_does_not_matter(seed, order):
    inputs, attributes = make_layer(seed, zero_points=True, k=2)
    output = qmoe_node.evaluate(inputs, attributes)
    for name in inputs:
        if name != "input":
            inputs[name] = inputs[name][:, order] if name == "router_probs" else inputs[name][order]
    np.testing.assert_allclose(qmoe_node.evaluate(inputs, attributes), output, rtol=0, atol=1e-5)
